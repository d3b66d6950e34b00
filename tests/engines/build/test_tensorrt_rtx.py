"""Real builds with TensorRT-RTX, which needs no GPU for them."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from engines.build import Beside, Builder, Options, Request, _trt, open_builder
from engines.build.cuda import device_facts
from engines.build.tensorrt_rtx import TARGETS, TensorRtRtxBuilder, _configure, _library
from engines.errors import BuilderMissing, BuildFailed
from engines.export import export
from engines.load import locate, read
from engines.spec import ModelSpec, Size
from tests.games import strict

if not strict():
    pytest.importorskip("tensorrt_rtx")

SIZE = (64, 48)
ToyGraph = Callable[..., bytes]


def silent(text: str, fraction: float | None) -> None:
    """A progress that nobody looks at."""


@pytest.fixture
def builder() -> Builder:
    return open_builder("tensorrt-rtx")


@pytest.fixture
def request_of(toy_spec: ModelSpec) -> Callable[..., Request]:
    """Makes a request for FP16, of one size unless told."""

    def make(graph: bytes, sizes: tuple[Size, ...] = (SIZE,), *targets: str) -> Request:
        return Request(toy_spec, graph, sizes, "fp16", Options(targets=targets))

    return make


def test_it_builds_without_a_gpu(
    builder: Builder, toy_graph: ToyGraph, request_of: Callable[..., Request]
) -> None:
    builder.check()
    built = builder.build(request_of(toy_graph(SIZE)), silent)
    assert b"trt" in built.engine[:32]
    assert len(built.engine) > 50_000
    assert built.report["network_layers"] == pytest.approx(20, abs=5)
    assert built.timing_cache == b""


@pytest.mark.parametrize("sizes", [((48, 32),), ((48, 32), (64, 40))])
def test_it_takes_exported_graphs(builder: Builder, sizes: tuple[Size, ...]) -> None:
    loaded = read(locate("default-x2"))
    graph = export(loaded, sizes, "fp16")
    told: list[str] = []
    request = Request(loaded.spec, graph, sizes, "fp16")
    built = builder.build(request, lambda text, fraction: told.append(text))
    assert len(built.engine) > len(graph)
    assert told


def test_the_same_request_gives_the_same_bytes(
    builder: Builder, toy_graph: ToyGraph, request_of: Callable[..., Request]
) -> None:
    request = request_of(toy_graph(SIZE))
    assert builder.build(request, silent).engine == builder.build(request, silent).engine


def test_several_sizes_need_a_dynamic_graph(
    builder: Builder, toy_graph: ToyGraph, request_of: Callable[..., Request]
) -> None:
    sizes = (SIZE, (96, 64), (128, 72))
    built = builder.build(request_of(toy_graph(None), sizes), silent)
    one = builder.build(request_of(toy_graph(None)), silent)
    assert len(built.engine) > len(one.engine)  # a part for each of them
    with pytest.raises(BuildFailed, match=r"input is \(1, 48, 64, 4\), and 64x48, 96x64, 128x72"):
        builder.build(request_of(toy_graph(SIZE), sizes), silent)


@pytest.mark.parametrize("sizes", [((64, 47),), ((0, 48),), ((-64, -48),)])
def test_a_size_that_the_graph_has_not_is_refused(
    builder: Builder,
    toy_graph: ToyGraph,
    request_of: Callable[..., Request],
    sizes: tuple[Size, ...],
) -> None:
    with pytest.raises(BuildFailed, match=r"toy-x2: .*(is wanted|not all positive)"):
        builder.build(request_of(toy_graph(SIZE), sizes), silent)


def test_every_target_is_built_for(
    builder: Builder, toy_graph: ToyGraph, request_of: Callable[..., Request]
) -> None:
    graph = toy_graph(SIZE)
    default = builder.build(request_of(graph), silent)
    turing = builder.build(request_of(graph, (SIZE,), "7.5"), silent)
    every = builder.build(request_of(graph, (SIZE,), *TARGETS), silent)
    assert b"sm75" in turing.engine
    assert b"sm75" not in default.engine
    assert all(f"sm{target.replace('.', '')}".encode() in every.engine for target in TARGETS)
    assert turing.report["targets"] == "7.5"


def test_targets_are_the_device_in_one_order(builder: Builder) -> None:
    assert builder.device(Options()) == {"targets": "ampere and later"}
    assert builder.device(Options(targets=("8.9", "7.5", "8.9"))) == {"targets": "7.5,8.9"}


def test_the_engine_allocates_nothing_while_it_runs() -> None:
    """Else its stream could not be captured in a CUDA graph."""
    import tensorrt_rtx as trt  # type: ignore[import-untyped, unused-ignore]

    flags: list[Any] = []
    config: Any = SimpleNamespace(set_flag=flags.append)
    _configure(config, ())
    assert flags == [trt.BuilderFlag.REQUIRE_USER_ALLOCATION]


@pytest.mark.parametrize("target", ["9.0", "8.7", "sm86", "", "CURRENT", "12"])
def test_an_unknown_target_gets_the_list(
    builder: Builder, toy_graph: ToyGraph, request_of: Callable[..., Request], target: str
) -> None:
    with pytest.raises(BuildFailed, match=r"no target '.*7\.5.*8\.0.*8\.6.*8\.9.*12\.0.*12\.1"):
        builder.device(Options(targets=("8.6", target)))
    with pytest.raises(BuildFailed, match="no target") as caught:
        builder.build(request_of(toy_graph(SIZE), (SIZE,), target), silent)
    assert ("Hopper" in str(caught.value)) == (target == "9.0")


def test_a_refused_node_is_named_in_one_line(
    builder: Builder, toy_graph: ToyGraph, request_of: Callable[..., Request]
) -> None:
    with pytest.raises(BuildFailed) as caught:
        builder.build(request_of(toy_graph(SIZE, uint8_transpose=True)), silent)
    assert str(caught.value).startswith(
        "TensorRT-RTX cannot build toy-x2: node 0, Transpose 'turn': "
        "first input has type UInt8 but must have type Float"
    )
    assert "\n" not in str(caught.value)
    assert "cuda" not in str(caught.value).lower()


def broken(graph: bytes) -> dict[str, tuple[bytes, str]]:
    """Graphs that are none, and what is said about them."""
    unknown = onnx.load_model_from_string(graph)
    unknown.graph.node[3].op_type = "Frobnicate"
    output = onnx.load_model_from_string(graph)
    output.graph.node[-1].output[0] = output.graph.output[0].name = "image"
    return {
        "garbage": (b"garbage" * 100, "not ONNX .700 bytes"),
        "empty": (b"", "not valid"),
        "truncated": (graph[:-100], "not ONNX"),
        "unknown operator": (unknown.SerializeToString(), "Frobnicate"),
        "other names": (output.SerializeToString(), "from bgra to image, not from bgra to picture"),
    }


@pytest.mark.parametrize(
    "kind", ["garbage", "empty", "truncated", "unknown operator", "other names"]
)
def test_a_broken_graph_gets_one_line(
    builder: Builder, toy_graph: ToyGraph, request_of: Callable[..., Request], kind: str
) -> None:
    data, message = broken(toy_graph(SIZE))[kind]
    with pytest.raises(BuildFailed, match=message) as caught:
        builder.build(request_of(data), silent)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_huge_graph_is_not_even_parsed(
    builder: Builder, request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_trt, "MAX_ONNX", 1000)
    with pytest.raises(BuildFailed, match="1001 bytes, more than 1000"):
        builder.build(request_of(b"\0" * 1001), silent)


@pytest.mark.parametrize("place", ["initializer", "node"])
def test_a_graph_cannot_name_files(
    builder: Builder,
    toy_graph: ToyGraph,
    request_of: Callable[..., Request],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    """TensorRT's parser would open the file, which is in the working directory."""
    monkeypatch.chdir(tmp_path)
    model = onnx.load_model_from_string(toy_graph(SIZE))
    tensor = next(x for x in model.graph.initializer if x.name == "weights1")
    Path("weights.bin").write_bytes(tensor.raw_data)
    facts = {"location": "weights.bin", "offset": "0", "length": str(len(tensor.raw_data))}
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in facts.items():
        tensor.external_data.add(key=key, value=value)
    if place == "node":
        node = onnx.helper.make_node("Constant", [], ["weights1"], value=tensor)
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(0, node)
    with pytest.raises(BuildFailed, match="keeps 'weights1' in another file"):
        builder.build(request_of(model.SerializeToString()), silent)


def test_int8_is_not_offered(
    builder: Builder, toy_graph: ToyGraph, request_of: Callable[..., Request]
) -> None:
    assert builder.precisions == ("fp16", "fp32")
    request = dataclasses.replace(request_of(toy_graph(SIZE)), precision="int8")
    with pytest.raises(BuildFailed, match="not int8"):
        builder.build(request, silent)


def test_fp32_computes_in_fp32_not_tf32(
    builder: Builder, toy_graph: ToyGraph, request_of: Callable[..., Request]
) -> None:
    request = request_of(toy_graph(SIZE))
    exact = builder.build(dataclasses.replace(request, precision="fp32"), silent).engine
    assert b"tf32=0" in exact
    assert b"tf32=1" in builder.build(request, silent).engine


def test_progress_only_rises(
    builder: Builder, toy_graph: ToyGraph, request_of: Callable[..., Request]
) -> None:
    told: list[tuple[str, float]] = []

    def progress(text: str, fraction: float | None) -> None:
        assert fraction is not None
        told.append((text, fraction))

    builder.build(request_of(toy_graph(SIZE, layers=8)), progress)
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] > 0.8
    assert len({text for text, _ in told}) > 4
    assert len(set(fractions)) > 20


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("after", [0.0, 0.5])
def test_raising_in_progress_ends_the_build(
    builder: Builder,
    toy_graph: ToyGraph,
    request_of: Callable[..., Request],
    error: type[BaseException],
    after: float,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="engines.build.tensorrt")
    told: list[float] = []

    def progress(text: str, fraction: float | None) -> None:
        told.append(fraction or 0.0)
        if told[-1] >= after:
            raise error("enough")

    with pytest.raises(error, match="enough"):
        builder.build(request_of(toy_graph(SIZE)), progress)
    assert after <= told[-1] < after + 0.3  # not called again
    assert "BuildCanceled" in caplog.messages[-1]
    assert capfd.readouterr().err == ""
    assert builder.build(request_of(toy_graph(SIZE)), silent).engine  # and it can go on


def test_messages_are_logged_and_one_build_does_not_tell_of_another(
    builder: Builder,
    toy_graph: ToyGraph,
    request_of: Callable[..., Request],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="engines.build.tensorrt")
    with pytest.raises(BuildFailed, match="UInt8"):
        builder.build(request_of(toy_graph(SIZE, uint8_transpose=True)), silent)
    assert any("UInt8" in record.message for record in caplog.records)
    assert max(record.levelno for record in caplog.records) == logging.INFO
    builder.build(request_of(toy_graph(SIZE)), silent)
    said = _trt.logger(_library(), "TensorRT-RTX")
    assert said.reason() == "no reason given"


def test_its_version_is_known_without_importing_it(builder: Builder) -> None:
    import tensorrt_rtx  # type: ignore[import-untyped, unused-ignore]

    assert builder.version() == tensorrt_rtx.__version__


def test_a_missing_library_is_said_with_the_command(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BuilderMissing, match=r"cannot be loaded .*pip install"):
        builder.check()
    monkeypatch.setattr("engines.build.tensorrt_rtx.DISTRIBUTIONS", ("tensorrt-no-such",))
    with pytest.raises(BuilderMissing, match=r"not installed: pip install"):
        builder.version()


def test_opening_without_a_gpu_touches_no_tensorrt(
    builder: Builder, toy_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cuda.bindings import runtime  # type: ignore[import-untyped, unused-ignore]

    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU here")
    monkeypatch.setattr("engines.build.tensorrt_rtx._library", lambda: pytest.fail("touched"))
    with pytest.raises(BuilderMissing, match=r"no NVIDIA GPU here \(cudaError\w+: .*\)") as caught:
        builder.open(b"no engine", toy_spec, (SIZE,))
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not os.path.exists("/dev/nvidia0"), reason="needs an NVIDIA GPU")
def test_it_runs_each_of_its_sizes(
    toy_graph: ToyGraph, toy_spec: ModelSpec, request_of: Callable[..., Request]
) -> None:
    if device_facts("this test")["sm"] not in TARGETS:
        pytest.skip("TensorRT-RTX is not for this GPU")
    sizes = (SIZE, (96, 64))
    builder = TensorRtRtxBuilder()
    engine = builder.build(request_of(toy_graph(None), sizes), silent).engine
    runner = builder.open(engine, toy_spec, sizes)
    for width, height in (*sizes, *sizes):
        frame = np.full((height, width, 4), 90, np.uint8)
        first = runner(frame).copy()
        assert first.shape == (height * 2, width * 2, 4)
        assert np.array_equal(first, runner(frame))
    cache = runner.kept()
    runner.close()
    runner.close()
    assert cache
    builder.open(engine, toy_spec, sizes, Beside(kept=cache)).close()
