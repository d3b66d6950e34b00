"""A model of Triton's Python back end: copied as `model.py` beside `model.onnx`.

Runs in the server's own Python with numpy and OpenVINO or ONNX Runtime, and imports nothing of
this project. One picture of a batch after the other in OpenVINO, which is compiled for the size
as in the overlay, so that both give the same bytes; a whole batch in ONNX Runtime.
"""

# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

#: Takes a batch, (N, H, W, 4), gives one.
Run = Callable[[NDArray[Any]], NDArray[Any]]

#: Sizes for which a model stays compiled in OpenVINO.
_SIZES = 4


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph.

        Args:
            args: Triton's: `model_config` (JSON), `model_repository`, `model_version`.
        """
        config = json.loads(args["model_config"])
        said = {key: one["string_value"] for key, one in config.get("parameters", {}).items()}
        self._input = config["input"][0]["name"]
        self._output = config["output"][0]["name"]
        graph = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._run = open_graph(graph, said.get("runtime", "auto"), int(said.get("threads", "0")))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests; one that fails does not fail the others."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            given = pb_utils.get_input_tensor_by_name(request, self._input).as_numpy()
            made = pb_utils.Tensor(self._output, np.ascontiguousarray(self._run(given)))
        except Exception as exc:  # whatever the runtime raises is the client's answer
            line = (str(exc).strip().splitlines() or [type(exc).__name__])[-1][:300]
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(line))
        return pb_utils.InferenceResponse([made])


def open_graph(graph: Path, runtime: str, threads: int) -> Run:
    """Open a graph.

    Args:
        runtime: "openvino", "onnxruntime", or "auto": the first that is installed.
        threads: of an inference; 0 = the runtime's choice.
    Raises:
        ImportError: the runtime is not installed.
    """
    if runtime == "auto":
        try:
            return _openvino(graph, threads)
        except ImportError:
            return _onnxruntime(graph, threads)
    return {"openvino": _openvino, "onnxruntime": _onnxruntime}[runtime](graph, threads)


def _openvino(graph: Path, threads: int) -> Run:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino as ov

    core = ov.Core()
    # As `engines.build.openvino.cpu_options`.
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    model = core.read_model(graph)
    compiled: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def request(shape: tuple[int, ...]) -> Any:
        if shape not in compiled:
            if len(compiled) >= _SIZES:
                compiled.popitem(last=False)
            model.reshape([1, *shape])
            compiled[shape] = core.compile_model(model, "CPU", options).create_infer_request()
        compiled.move_to_end(shape)
        return compiled[shape]

    def run(batch: NDArray[Any]) -> NDArray[Any]:
        one = request(batch.shape[1:])
        return np.concatenate([one.infer([picture[None]])[0].copy() for picture in batch])

    return run


def _onnxruntime(graph: Path, threads: int) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def run(batch: NDArray[Any]) -> NDArray[Any]:
        made: NDArray[Any] = session.run(None, {given.name: batch})[0]
        return made

    return run
