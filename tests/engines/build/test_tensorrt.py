"""TensorRT's builder, which cannot run here: its parts, with others standing in.

TensorRT-RTX has the same interface and builds without a GPU, so it stands in for TensorRT. For
the runner, CUDA's device memory is ours, and the engine repeats pixels.
"""

from __future__ import annotations

import ast
import ctypes
import dataclasses
import json
import os
import sys
import weakref
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.build import Options, Request, _trt, cuda, open_builder
from engines.build.tensorrt import (
    TensorRtBuilder,
    _configure,
    _set_timing_cache,
    layer_counts,
)
from engines.errors import BuilderMissing, BuildFailed, EngineError, EngineMismatch
from engines.spec import ModelSpec, Size
from tests.games import strict

SIZE = (64, 48)
ToyGraph = Callable[..., bytes]


def silent(text: str, fraction: float | None) -> None:
    """A progress that nobody looks at."""


def no_gpu() -> bool:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    missing: bool = runtime.cudaGetDeviceCount()[0] != runtime.cudaError_t.cudaSuccess
    return missing


# --- without a GPU ------------------------------------------------------------------------------


def test_without_a_gpu_no_tensorrt_is_touched(
    monkeypatch: pytest.MonkeyPatch, toy_graph: ToyGraph, toy_spec: ModelSpec
) -> None:
    """Making its objects without one ends the process."""
    if not no_gpu():
        pytest.skip("there is a GPU here")
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # importing it is an error
    monkeypatch.setattr("engines.build.tensorrt.DISTRIBUTIONS", ("numpy",))
    builder = open_builder("tensorrt")
    request = Request(toy_spec, toy_graph(SIZE), (SIZE,), "fp16")
    for call in (
        builder.check,
        lambda: builder.device(Options()),
        lambda: builder.build(request, silent),
        lambda: builder.open(b"no engine", toy_spec, (SIZE,)),
    ):
        with pytest.raises(BuilderMissing, match=r"no NVIDIA GPU here \(cudaError\w+: ") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_missing_package_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = open_builder("tensorrt")
    monkeypatch.setattr("engines.build.tensorrt.DISTRIBUTIONS", ("tensorrt-no-such",))
    for call in (builder.check, builder.version):
        with pytest.raises(BuilderMissing, match="TensorRT is not installed: pip install tensorrt"):
            call()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BuilderMissing, match="cuda-bindings is missing"):
        builder.device(Options())


# --- TensorRT-RTX stands in ---------------------------------------------------------------------

has_no_timing_cache = pytest.mark.filterwarnings("ignore:.*Timing cache:DeprecationWarning")


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> TensorRtBuilder:
    """The builder, with TensorRT-RTX for TensorRT and a GPU that it believes in."""
    if not strict():
        pytest.importorskip("tensorrt_rtx")
    import tensorrt_rtx  # type: ignore[import-untyped, unused-ignore]

    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_rtx)
    monkeypatch.setattr(cuda, "gpu_runtime", lambda wish: None)
    return TensorRtBuilder()


@has_no_timing_cache
@pytest.mark.parametrize(
    "options",
    [Options(), Options(hardware_compatible=True, level=1), Options(version_compatible=True)],
)
def test_it_builds(
    builder: TensorRtBuilder, toy_graph: ToyGraph, toy_spec: ModelSpec, options: Options
) -> None:
    request = Request(toy_spec, toy_graph(SIZE), (SIZE,), "fp16", options)
    built = builder.build(request, silent)
    assert len(built.engine) > 50_000
    assert built.timing_cache
    again = dataclasses.replace(request, timing_cache=built.timing_cache)
    assert builder.build(again, silent).timing_cache


@has_no_timing_cache
def test_a_timing_cache_of_another_device_is_left_aside(
    builder: TensorRtBuilder, toy_graph: ToyGraph, toy_spec: ModelSpec
) -> None:
    other = Request(toy_spec, toy_graph(SIZE), (SIZE,), "fp16", timing_cache=b"another" * 99)
    fresh = Request(toy_spec, toy_graph(SIZE), (SIZE,), "fp16")
    assert builder.build(other, silent).engine == builder.build(fresh, silent).engine


@pytest.mark.parametrize(
    ("kept", "fits", "used"),
    [(b"good", True, b"good"), (b"other", False, b""), (b"bad", True, b"")],
)
def test_a_timing_cache_is_used_where_it_fits(kept: bytes, fits: bool, used: bytes) -> None:
    taken: list[bytes] = []

    def take(cache: bytes, ignore_mismatch: bool) -> bool:
        taken.append(cache)
        return (fits or not cache) and not ignore_mismatch

    create = lambda data: None if data == b"bad" else data  # noqa: E731
    config: Any = SimpleNamespace(create_timing_cache=create, set_timing_cache=take)
    _set_timing_cache(config, kept)
    assert taken[-1] == used


@pytest.mark.parametrize("level", [-1, 6])
def test_a_level_out_of_range_is_refused(
    builder: TensorRtBuilder, toy_graph: ToyGraph, toy_spec: ModelSpec, level: int
) -> None:
    request = Request(toy_spec, toy_graph(SIZE), (SIZE,), "fp16", Options(level=level))
    with pytest.raises(BuildFailed, match=f"levels 0 to 5, not {level}"):
        builder.build(request, silent)


def test_each_option_reaches_the_configuration(builder: TensorRtBuilder) -> None:
    import tensorrt_rtx as trt  # type: ignore[import-untyped, unused-ignore]

    flags: list[Any] = []
    config: Any = SimpleNamespace(set_flag=flags.append)
    options = Options((), True, True, True, 5)
    _configure(config, options)
    assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert (config.builder_optimization_level, config.max_aux_streams) == (5, 0)
    names = ["VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "STRIP_PLAN", "REFIT_IDENTICAL"]
    assert flags == [getattr(trt.BuilderFlag, name) for name in names]


# --- the report ---------------------------------------------------------------------------------


def test_layers_are_counted_by_kind_and_type() -> None:
    def layer(kind: str, words: str) -> dict[str, Any]:
        return {"Name": "x", "LayerType": kind, "Outputs": [{"Format/Datatype": words}]}

    layers = [
        layer("CaskConvolution", "Channel major FP16 format where channel % 8 == 0"),
        layer("CaskConvolution", "Half"),
        layer("Reformat", "Row major linear UINT8 format"),
        layer("Odd", "something new"),
        {"Name": "no outputs", "LayerType": "Odd", "Outputs": []},
    ]
    assert layer_counts(json.dumps({"Layers": layers, "Bindings": []})) == {
        "layers": 5,
        "layer_kinds": {"CaskConvolution": 2, "Odd": 2, "Reformat": 1},
        "layer_types": {"fp16": 2, "unknown": 2, "uint8": 1},
    }


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"Layers": 3}', '{"Layers": null}'])
def test_a_report_in_another_form_is_left_out(text: str) -> None:
    assert layer_counts(text) == {}


def test_the_report_is_bounded() -> None:
    layers = [{"LayerType": f"kind {i}" + "x" * 999, "Outputs": [3]} for i in range(9999)]
    assert len(json.dumps(layer_counts(json.dumps({"Layers": layers})))) < 3000
    assert layer_counts('{"Layers": ["only", "names"]}')["layers"] == 2


# --- CUDA stands in -----------------------------------------------------------------------------


class Status(IntEnum):
    """CUDA's."""

    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815


class HostCuda:
    """`cuda.bindings.runtime` as far as it is used, with "device" memory that is ours."""

    cudaError_t = Status  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaHostRegisterDefault = 0  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2
    )

    def __init__(self) -> None:
        self.devices = 1
        self.memory: dict[int, Any] = {}
        self.calls: list[str] = []
        self.fails: str = ""

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name == self.fails:
                return (Status.cudaErrorMemoryAllocation, None)
            does = getattr(type(self), f"_{name}", lambda *_: 7)
            return (Status.cudaSuccess, does(self, *arguments))

        return call

    def _cudaGetDeviceCount(self) -> int:  # noqa: N802
        return self.devices

    def _cudaGetErrorName(self, status: Status) -> bytes:  # noqa: N802
        return status.name.encode()

    def _cudaGetErrorString(self, status: Status) -> bytes:  # noqa: N802
        return b"out of memory"

    def _cudaMalloc(self, size: int) -> int:  # noqa: N802
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def _cudaHostRegister(self, address: int, size: int, flags: int) -> None:  # noqa: N802
        self.memory[address] = size

    def _cudaFree(self, address: int) -> None:  # noqa: N802
        del self.memory[address]

    _cudaHostUnregister = _cudaFree  # noqa: N815

    def _cudaMemcpyAsync(self, to: int, source: int, size: int, *_: Any) -> None:  # noqa: N802
        ctypes.memmove(to, source, size)


class Repeat:
    """An engine and its context: repeats each pixel 2x2."""

    def __init__(self, sizes: list[Size]) -> None:
        self.sizes, self.num_optimization_profiles = sizes, len(sizes)
        self.profile, self.runs = 0, True
        self.address: dict[str, int] = {}

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [(1, self.sizes[index][1], self.sizes[index][0], 4)] * 3

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape == self.get_tensor_profile_shape(name, self.profile)[0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (1, self.shape[1] * 2, self.shape[2] * 2, 4)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.address[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        height, width = self.shape[1:3]

        def at(name: str, size: int) -> Any:
            return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address[name]))

        source = at("bgra", height * width * 4).reshape(height, width, 4)
        at("picture", source.size * 4)[:] = source.repeat(2, 0).repeat(2, 1).ravel()
        return self.runs


@pytest.fixture
def host_cuda(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    stand_in = HostCuda()
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(runtime=stand_in))
    monkeypatch.setattr(_trt, "_loggers", {})
    return stand_in


def opened(engine: Repeat | None, spec: ModelSpec, sizes: list[Size]) -> _trt.TensorRtRunner:
    engines = [engine]
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: engines.pop())
    library: Any = SimpleNamespace(ILogger=object, Runtime=lambda log: runtime)
    prepare: Any = lambda found: found  # noqa: E731
    return _trt.TensorRtRunner(lambda: library, "TensorRT", b"", spec, tuple(sizes), prepare)


def test_the_runner_switches_sizes_and_frees_all(host_cuda: HostCuda, toy_spec: ModelSpec) -> None:
    sizes = [(6, 4), (3, 5), (8, 2)]
    engine = Repeat(sizes[::-1])
    weakref.finalize(engine, host_cuda.calls.append, "engine")
    runner = opened(engine, toy_spec, sizes)
    del engine
    rng = np.random.default_rng(3)
    for width, height in (*sizes, *sizes):
        frame = rng.integers(0, 256, (height, width, 4), np.uint8)
        last = runner(frame)
        assert np.array_equal(last, frame.repeat(2, 0).repeat(2, 1))
    with pytest.raises(EngineMismatch, match="not for 4x6"):
        runner(np.zeros((6, 4, 4), np.uint8))
    runner.close()
    runner.close()
    assert host_cuda.memory == {}
    assert np.array_equal(last, frame.repeat(2, 0).repeat(2, 1))  # a picture outlives it
    frees = ["engine", "cudaFree", "cudaFree", "cudaHostUnregister", "cudaHostUnregister"]
    assert host_cuda.calls[-6:] == [*frees, "cudaStreamDestroy"]


@pytest.mark.parametrize(
    "fails",
    ["cudaStreamCreateWithFlags", "cudaHostRegister", "cudaMalloc"],
)
def test_a_status_of_cuda_is_an_error_that_leaves_nothing(
    host_cuda: HostCuda, toy_spec: ModelSpec, fails: str
) -> None:
    host_cuda.fails = fails
    with pytest.raises(EngineError, match="cudaErrorMemoryAllocation: out of memory"):
        opened(Repeat([SIZE]), toy_spec, [SIZE])
    assert host_cuda.memory == {}


@pytest.mark.parametrize("fails", ["cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_a_frame_that_fails_leaves_nothing(
    host_cuda: HostCuda, toy_spec: ModelSpec, fails: str
) -> None:
    runner = opened(Repeat([SIZE]), toy_spec, [SIZE])
    host_cuda.fails = fails
    with pytest.raises(EngineError, match=r"CUDA failed to (copy|run)"):
        runner(np.zeros((SIZE[1], SIZE[0], 4), np.uint8))
    host_cuda.fails = "cudaStreamDestroy"  # and one that cannot be freed does not keep the rest
    runner.close()
    assert host_cuda.memory == {}


def test_an_engine_that_tensorrt_refuses(host_cuda: HostCuda, toy_spec: ModelSpec) -> None:
    with pytest.raises(EngineMismatch, match="TensorRT refuses this engine: no reason given"):
        opened(None, toy_spec, [SIZE])
    with pytest.raises(EngineMismatch, match="does not take 64x48"):
        opened(Repeat([(48, 64)]), toy_spec, [SIZE])
    engine = Repeat([SIZE])
    engine.runs = False
    with pytest.raises(EngineError, match="cannot run: no reason given"):
        opened(engine, toy_spec, [SIZE])(np.zeros((SIZE[1], SIZE[0], 4), np.uint8))


def test_a_driver_without_a_gpu_is_no_gpu(host_cuda: HostCuda, toy_spec: ModelSpec) -> None:
    host_cuda.devices = 0
    with pytest.raises(BuilderMissing, match=r"no NVIDIA GPU here \(0 CUDA devices\)"):
        opened(Repeat([SIZE]), toy_spec, [SIZE])


def test_every_name_of_cuda_exists() -> None:
    """In the installed cuda-bindings; the stand-in above has any."""
    runtime: Any = pytest.importorskip("cuda.bindings.runtime")
    names = {
        node.attr
        for node in ast.walk(ast.parse(Path(cuda.__file__).read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith("cuda")
    }
    assert len(names) > 15
    owners = (runtime, runtime.cudaError_t, runtime.cudaMemcpyKind)
    assert [name for name in names if not any(hasattr(owner, name) for owner in owners)] == []


# --- with TensorRT and a GPU --------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not os.path.exists("/dev/nvidia0"), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("strip", [False, True])
def test_it_builds_and_runs(toy_graph: ToyGraph, toy_spec: ModelSpec, strip: bool) -> None:
    pytest.importorskip("tensorrt")
    builder = TensorRtBuilder()
    sizes = (SIZE, (96, 64))
    options = Options(strip_weights=strip)
    built = builder.build(Request(toy_spec, toy_graph(None), sizes, "fp16", options), silent)
    runner = builder.open(built.engine, toy_spec, sizes)
    for width, height in (*sizes, *sizes):
        assert runner(np.full((height, width, 4), 90, np.uint8)).shape[:2] == (
            height * 2,
            width * 2,
        )
    runner.close()
    if strip:
        with pytest.raises(EngineMismatch, match="without its weights"):
            TensorRtBuilder().open(built.engine, toy_spec, sizes)


def test_an_engine_for_more_than_this_gpu_and_version_is_not_bound_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = {"gpu": "NVIDIA GeForce RTX 4090", "sm": "8.9", "driver": "CUDA 13.0"}
    monkeypatch.setattr(cuda, "device_facts", lambda wish: facts)
    monkeypatch.setattr(TensorRtBuilder, "version", lambda self: "11.4.0.106")
    builder = TensorRtBuilder()
    assert builder.device(Options()) == facts
    assert builder.bound_version(Options()) == "11.4.0.106"
    assert builder.device(Options(hardware_compatible=True)) == {"compatible": "ampere and later"}
    assert builder.bound_version(Options(version_compatible=True)) == "11.x"
