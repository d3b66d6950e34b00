"""ONNX Runtime's engines: the graph itself, checked, and the choice of what runs it."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from engines import export, frames
from engines.build import Options, Request, open_builder
from engines.build import onnxruntime as module
from engines.build.onnxruntime import (
    GRAPH_VERSION,
    PROVIDERS,
    OnnxRuntimeBuilder,
    OnnxSession,
    candidates,
    open_session,
)
from engines.errors import BuilderMissing, BuildFailed, EngineMismatch
from engines.spec import Output, Size
from tests import graphs

Pixels = NDArray[np.uint8]

SMALL, OTHER = (48, 32), (34, 50)


def quiet(what: str, done: float | None) -> None: ...


def request(*sizes: Size, output: Output = "bgra") -> Request:
    graph = graphs.graph(sizes[0] if len(sizes) == 1 else None, 2, output)
    return Request(graphs.spec(2, output), graph, sizes, "fp32")


@pytest.mark.parametrize("output", ["bgra", "luma"])
@pytest.mark.parametrize("sizes", [(SMALL,), (SMALL, OTHER)])
def test_an_engine_gives_what_the_graph_gives(output: Output, sizes: tuple[Size, ...]) -> None:
    wanted = request(*sizes, output=output)
    builder = OnnxRuntimeBuilder()
    built = builder.build(wanted, quiet)
    assert built.engine == wanted.onnx
    runner = builder.open(built.engine, wanted.spec, sizes)
    reference = ReferenceEvaluator(onnx.load_from_string(wanted.onnx))
    for size in (*sizes, sizes[0]):
        frame = frames.read(size)[1]
        frame.flags.writeable = False
        made = runner(frame)
        correct = reference.run(None, {"bgra": frame[None]})[0][0]  # type: ignore[call-overload]
        assert made.shape == correct.shape
        assert np.abs(made.astype(int) - correct).max() <= 1
    runner.close()


def test_an_engine_is_for_any_machine() -> None:
    builder = open_builder("onnx")
    assert isinstance(builder, OnnxRuntimeBuilder)
    builder.check()
    assert builder.device(Options()) == {}
    assert builder.version() == GRAPH_VERSION
    assert f"opset {export.OPSET}, IR {export._IR_VERSION}" == GRAPH_VERSION


def test_damaged_and_foreign_graphs_are_refused_in_one_line() -> None:
    builder, wanted = OnnxRuntimeBuilder(), request(SMALL)
    bad = {
        b"": "cannot run this",
        b"no graph": "cannot run this",
        wanted.onnx[:-9]: "cannot run this",
        graphs.graph(OTHER): "another model or size: it takes bgra uint8 1x50x34x4 to picture",
        graphs.graph(SMALL, 3): "another model or size",
        graphs.graph(SMALL, 2, "luma"): "another model or size",
    }
    for data, reason in bad.items():
        with pytest.raises(EngineMismatch, match=reason) as caught:
            builder.open(data, wanted.spec, wanted.sizes)
        assert "\n" not in str(caught.value)
        with pytest.raises(BuildFailed, match="graph of small-x2 does not run"):
            builder.build(replace(wanted, onnx=data), quiet)
    with pytest.raises(EngineMismatch, match="another model or size"):
        builder.open(wanted.onnx, wanted.spec, (SMALL, OTHER))
    runner = builder.open(wanted.onnx, wanted.spec, (SMALL,))
    with pytest.raises(EngineMismatch, match="does not run on 34x50"):
        runner(frames.read(OTHER)[0])


def test_without_the_library_it_builds_and_says_how_to_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    wanted, builder = request(SMALL), OnnxRuntimeBuilder()
    builder.check()
    with caplog.at_level(logging.INFO):
        assert builder.build(wanted, quiet).engine == wanted.onnx
    assert "small-x2 is not checked" in caplog.text
    with pytest.raises(BuilderMissing, match="pip install onnxruntime"):
        builder.open(wanted.onnx, wanted.spec, wanted.sizes)


def test_providers_are_tried_in_our_order() -> None:
    present = module.library().get_available_providers()
    assert candidates("auto") == [name for name in PROVIDERS if PROVIDERS[name] in present]
    assert candidates("auto")[-1] == "cpu"
    assert candidates("cpu") == ["cpu"]
    for unknown in ("cuda", "x"):
        if unknown not in candidates("auto"):
            with pytest.raises(BuilderMissing, match=rf"'{unknown}' here \(only .*cpu\): pip"):
                candidates(unknown)


def test_a_provider_that_fails_gives_way_to_the_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked for CUDA, this package gives a session without it, as one without the driver does."""
    if "cuda" in candidates("auto"):
        pytest.skip("CUDA is here")
    monkeypatch.setattr(module, "candidates", lambda provider: ["cuda", "cpu"])
    wanted = request(SMALL)
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), caplog.at_level(logging.WARNING):
        session = open_session(wanted.onnx, wanted.sizes, 2, "bgra")
    assert session.provider == "cpu"
    assert "cannot run this with cuda: CUDAExecutionProvider cannot be loaded" in caplog.text

    monkeypatch.setattr(module, "candidates", lambda provider: ["cuda"])
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(BuilderMissing, match="provider cuda cannot run this: CUDAExec"),
    ):
        open_session(wanted.onnx, wanted.sizes, 2, "bgra", "cuda")


def test_a_provider_that_fails_at_its_first_run_gives_way_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(OnnxSession):
        def __init__(self, data: bytes, provider: str, threads: int) -> None:
            super().__init__(data, "cpu", threads)
            self.provider = provider

        def run(self, bgra: Pixels, picture: Pixels) -> None:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no kernel\nsecond line")

    monkeypatch.setattr(module, "OnnxSession", Failing)
    monkeypatch.setattr(module, "candidates", lambda provider: ["directml", "cpu"])
    wanted = request(SMALL)
    assert open_session(wanted.onnx, wanted.sizes, 2, "bgra").provider == "cpu"
    assert caplog.messages == ["ONNX Runtime cannot run this with directml: 1 : FAIL : no kernel"]


def test_threads_do_not_spin() -> None:
    session = OnnxSession(request(SMALL).onnx, "cpu", 2)
    options = session._session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
