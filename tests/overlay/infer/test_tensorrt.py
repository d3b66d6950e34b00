"""TensorRT and TensorRT-RTX on the GPU path: a stand-in for the library, streams of the fake.

The names and signatures that the stand-in imitates are proved against the real bindings in
`tests/engines/build/test_trt_names.py`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.build import _trt as shared
from engines.errors import BuilderMissing, CacheError, EngineError, EngineMismatch
from engines.spec import Engine, Output
from overlay.cuda import DeviceBuffer, Stream
from overlay.cuda.recording import RecordingCuda
from overlay.errors import BackendUnavailable
from overlay.infer import Upscaler
from overlay.infer.gpu import GpuUpscaler
from overlay.infer.tensorrt import open_tensorrt
from overlay.infer.tensorrt_rtx import open_tensorrt_rtx
from tests.contracts.upscaler import OTHER, SMALL, frame, wait
from tests.hostprogram import enlarged
from tests.overlay.infer.test_gpu import TestContract as Contract
from tests.overlay.infer.test_gpu import check, finish

SCALE = 2


class Library:
    """`tensorrt` and `tensorrt_rtx`, as far as an engine is run with them.

    Attributes:
        events: what was asked for.
        fails: names of methods that answer as TensorRT does when it fails.
    """

    class ILogger:
        def __init__(self) -> None: ...

    def __init__(self, cuda: HandleCuda, output: Output = "bgra") -> None:
        self.cuda, self.output = cuda, output
        self.events: list[str] = []
        self.fails: set[str] = set()
        self.says = "error: something is wrong"
        self.capturable = True
        self.cache = b"compiled"
        self.profiles = [(1, SMALL.height, SMALL.width, 4), (1, OTHER.height, OTHER.width, 4)]

    def ask(self, name: str, text: str = "") -> bool:
        """Note a call; False if it fails."""
        self.events.append(f"{name} {text}".strip())
        if name in self.fails:
            self.log.log(1, self.says)
        return name not in self.fails

    def Runtime(self, log: Any) -> Any:  # noqa: N802 - TensorRT's name
        self.log = log
        return SimpleNamespace(
            deserialize_cuda_engine=lambda data: (
                StandInEngine(self) if self.ask("deserialize", data.decode()) else None
            )
        )


class StandInEngine:
    refittable = False

    def __init__(self, library: Library) -> None:
        self.library = library
        self.num_optimization_profiles = len(library.profiles)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        assert name == "bgra"
        return [self.library.profiles[index]] * 3

    def create_execution_context(self, config: Any = None) -> Any:
        return StandInContext(self.library) if self.library.ask("context") else None

    def create_runtime_config(self) -> Any:
        library = self.library
        config = SimpleNamespace(cuda_graph_strategy=None)
        config.create_runtime_cache = lambda: SimpleNamespace(
            deserialize=lambda data: library.ask("read cache", data.decode()),
            serialize=lambda: library.cache,
        )
        config.set_runtime_cache = lambda cache: library.ask("use cache")
        library.config = config  # type: ignore[attr-defined]
        return config


class StandInContext:
    def __init__(self, library: Library) -> None:
        self.library = library
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        return self.library.ask("profile", str(profile))

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return self.library.ask("shape", "x".join(map(str, shape)))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == "picture"
        _, height, width, _ = self.shape
        channels = (4,) if self.library.output == "bgra" else ()
        return (1, height * SCALE, width * SCALE, *channels)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.library.ask("address")

    def is_stream_capturable(self, stream: int) -> bool:
        return self.library.capturable

    def execute_async_v3(self, stream: int) -> bool:
        if not self.library.ask("execute"):
            return False
        library, cuda = self.library, self.library.cuda
        _, height, width, _ = self.shape
        source = DeviceBuffer(self.addresses["bgra"], height * width * 4, "bgra")
        wide = 4 if library.output == "bgra" else 1
        size = height * width * SCALE**2 * wide
        target = DeviceBuffer(self.addresses["picture"], size, "picture")

        def run() -> None:
            bgra = cuda.array(source).reshape(height, width, 4)
            cuda.array(target)[:] = enlarged(bgra, SCALE, library.output).reshape(-1)

        cuda.kernel(run, cuda.streams[stream])
        return True


class HandleCuda(RecordingCuda):
    """Knows its streams by their handles, as TensorRT does."""

    def __init__(self, seed: int = 0, **more: Any) -> None:
        super().__init__(seed, **more)
        self.streams: dict[int, Stream] = {}

    def stream(self, name: str, *, urgent: bool = False) -> Stream:
        stream = super().stream(name, urgent=urgent)
        self.streams[stream.handle] = stream
        return stream


def engine(backend: str, output: Output = "bgra") -> Engine:
    return Engine("small-x2", SCALE, output, (SMALL, OTHER), "fp16", backend, b"plan")


Open = Callable[..., GpuUpscaler]
OPEN: dict[str, Open] = {"tensorrt": open_tensorrt, "tensorrt-rtx": open_tensorrt_rtx}


@pytest.fixture(params=list(OPEN))
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def cuda() -> Iterator[HandleCuda]:
    with HandleCuda(7) as cuda:
        yield cuda
    assert cuda.complaints == []


@pytest.fixture
def library(cuda: HandleCuda, backend: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    yield from stand_in(cuda, backend, "bgra", monkeypatch)


def stand_in(
    cuda: HandleCuda, backend: str, output: Output, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Library]:
    library = Library(cuda, output)
    module = f"engines.build.{backend.replace('-', '_')}"
    monkeypatch.setattr(f"{module}._library", lambda: library)
    monkeypatch.setattr(shared, "_loggers", {})
    if backend == "tensorrt":  # it asks tensorrt whether weights are missing
        monkeypatch.setattr(f"{module}._refit", lambda engine, graph: None)
    return iter([library])


def opened(backend: str, cuda: HandleCuda, **more: Any) -> GpuUpscaler:
    return OPEN[backend](engine(backend), cuda, **more)


def test_it_warms_up_once_and_captures_each_slot(
    library: Library, backend: str, cuda: HandleCuda
) -> None:
    with opened(backend, cuda) as upscaler:
        upscaler.warm_up(SMALL)
        asked = [event for event in library.events if "cache" not in event]
        run = ["address", "address", "execute"]
        assert asked == [
            *("deserialize plan", "context", "profile 0", "shape 1x32x48x4"),
            *run,  # to warm up
            "execute",  # captured, with the addresses that are set
            *run,  # captured for the other slot
        ]
        library.events.clear()
        for seed in range(4):
            check(finish(upscaler, frame(seed=seed)))
        assert library.events == [], "a graph is launched, TensorRT not asked"
        check(finish(upscaler, frame(OTHER)))
        assert library.events[:2] == ["profile 1", "shape 1x50x34x4"]
        check(finish(upscaler, frame()))
        assert (upscaler.backend, upscaler.model) == (backend, "small-x2")
        title = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}[backend]
        assert upscaler.device == f"recording, FP16, {title}"


def test_without_graphs_addresses_are_set_for_each_slot(
    library: Library, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(6):
        with HandleCuda(seed, graphs=False) as cuda:
            library.cuda = cuda
            with opened(backend, cuda) as upscaler:
                for turn in range(6):
                    upscaler.submit(frame(seed=turn))
                    if upscaler.in_flight == 2:
                        check(wait(upscaler))
                check(wait(upscaler))
        assert cuda.complaints == []


def test_never_the_default_stream(library: Library, backend: str, cuda: HandleCuda) -> None:
    with opened(backend, cuda) as upscaler:
        finish(upscaler, frame())
        computed = {one.stream for one in cuda.operations("compute")}
        assert computed == {"compute"}
        assert 0 not in cuda.streams


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deserialize", "refuses the engine of small-x2 on recording: error: something is wrong"),
        ("context", "cannot run the engine of small-x2: error: something is wrong"),
        ("profile", "engine of small-x2 cannot choose profile 0: error: something is wrong"),
        ("shape", r"engine of small-x2 cannot take the shape \(1, 32, 48, 4\): error"),
        ("address", "engine of small-x2 cannot take bgra: error"),
        ("execute", "engine of small-x2 cannot run: error"),
    ],
)
def test_what_tensorrt_refuses_is_said_in_one_line(
    library: Library, backend: str, cuda: HandleCuda, name: str, message: str
) -> None:
    library.fails = {name}
    with pytest.raises(EngineError, match=message) as caught, opened(backend, cuda) as upscaler:
        upscaler.warm_up(SMALL)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, EngineMismatch) == (name in ("deserialize", "context"))
    assert (cuda.device_bytes, cuda.pinned_bytes) == (0, 0)


def test_a_frame_that_fails_is_given_up(library: Library, backend: str) -> None:
    with HandleCuda(1, graphs=False) as cuda:
        library.cuda = cuda
        with opened(backend, cuda) as upscaler:
            check(finish(upscaler, frame()))
            library.fails = {"execute"}
            with pytest.raises(EngineError, match="cannot run: error: something"):
                upscaler.submit(frame())
            library.fails = set()
            assert upscaler.in_flight == 0
            check(finish(upscaler, frame(seed=1)))


def test_other_sizes_and_engines_are_a_mismatch(
    library: Library, backend: str, cuda: HandleCuda
) -> None:
    with opened(backend, cuda) as upscaler:
        check(finish(upscaler, frame()))
        with pytest.raises(EngineMismatch, match="small-x2 was built for 48x32, 34x50"):
            upscaler.submit(frame(SMALL._replace(width=50)))
        library.output = "luma"
        with pytest.raises(EngineMismatch, match=r"gives \(1, 100, 68\), not \(1, 100, 68, 4\)"):
            upscaler.submit(frame(OTHER))
        library.output = "bgra"
        check(finish(upscaler, frame()))
        library.profiles.reverse()
        del library.profiles[0]
    with (
        opened(backend, cuda) as upscaler,
        pytest.raises(EngineMismatch, match="engine of small-x2 does not take 34x50"),
    ):
        upscaler.warm_up(OTHER)


def test_a_missing_library_is_said_with_the_command(
    backend: str, cuda: HandleCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise BuilderMissing("TensorRT cannot be loaded: pip install it")

    monkeypatch.setattr(f"engines.build.{backend.replace('-', '_')}._library", missing)
    with pytest.raises(BackendUnavailable, match="pip install it"):
        opened(backend, cuda)


# --- what only TensorRT-RTX has -------------------------------------------------------------------


@pytest.fixture
def rtx(cuda: HandleCuda, monkeypatch: pytest.MonkeyPatch) -> Library:
    return next(stand_in(cuda, "tensorrt-rtx", "bgra", monkeypatch))


def test_the_runtime_cache_is_read_and_kept_when_it_changed(rtx: Library, cuda: HandleCuda) -> None:
    kept: list[bytes] = []
    with opened("tensorrt-rtx", cuda, kept=b"old", keep=kept.append) as upscaler:
        upscaler.warm_up(SMALL)
        assert rtx.events[1:4] == ["read cache old", "use cache", "context"]
        assert kept == [b"compiled"]
        upscaler.warm_up(OTHER)
        assert kept == [b"compiled"], "nothing new was compiled"
        rtx.cache = b"compiled for both"
        upscaler.warm_up(SMALL)
    assert kept == [b"compiled", b"compiled for both"]


def test_a_cache_that_cannot_be_read_or_kept_is_no_reason_to_stop(
    rtx: Library, cuda: HandleCuda, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def full(data: bytes) -> None:
        raise CacheError("no space left")

    rtx.fails = {"read cache"}
    with opened("tensorrt-rtx", cuda, kept=b"of another GPU", keep=full) as upscaler:
        check(finish(upscaler, frame()))
    assert "the runtime cache of small-x2 is not for this GPU: a new one" in caplog.text
    assert "the runtime cache of small-x2 was not kept: no space left" in caplog.text


def test_it_is_asked_whether_its_stream_can_be_captured(rtx: Library, cuda: HandleCuda) -> None:
    rtx.capturable = False
    with opened("tensorrt-rtx", cuda) as upscaler:
        check(finish(upscaler, frame()))
        assert cuda.calls["captured"] == 0


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx-cu13"
)
@pytest.mark.parametrize(("has_graphs", "capturable"), [(True, True), (True, False), (False, True)])
def test_where_we_capture_no_graphs_it_captures_its_own(
    has_graphs: bool,
    capturable: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import tensorrt_rtx as trt  # type: ignore[import-untyped, unused-ignore]

    caplog.set_level(logging.INFO)
    ours = has_graphs and capturable
    with HandleCuda(0, graphs=has_graphs) as cuda:
        library: Any = next(stand_in(cuda, "tensorrt-rtx", "bgra", monkeypatch))
        library.capturable = capturable
        with opened("tensorrt-rtx", cuda) as upscaler:
            check(finish(upscaler, frame()))
            assert (cuda.calls["captured"] > 0) == ours
            assert ("its own graphs" in caplog.text) != ours
            library.capturable = True
            check(finish(upscaler, frame(OTHER)))
            assert cuda.calls["captured"] == (4 if ours else 0), "it stays with what it chose"
        own = None if ours else trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        assert library.config.cuda_graph_strategy == own


# --- the contract ---------------------------------------------------------------------------------


class TestTensorRt(Contract):
    @pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
    def upscaler(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Upscaler]:
        with HandleCuda(5) as cuda:
            stand_in(cuda, request.param, "bgra", monkeypatch)
            with opened(request.param, cuda) as upscaler:
                yield upscaler
            assert cuda.complaints == []


class TestTensorRtLuma(Contract):
    kind = "luma"

    @pytest.fixture
    def upscaler(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upscaler]:
        with HandleCuda(5) as cuda:
            stand_in(cuda, "tensorrt", "luma", monkeypatch)
            with open_tensorrt(engine("tensorrt", "luma"), cuda) as upscaler:
                yield upscaler
            assert cuda.complaints == []


# --- the real thing -------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not os.path.exists("/dev/nvidia0"), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("output", ["bgra", "luma"])
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_real_engines_give_what_their_runners_give(name: str, output: Output) -> None:
    pytest.importorskip("onnx")
    from engines.build import Request, open_builder
    from overlay.cuda import open_cuda
    from tests import graphs

    builder = open_builder(name)
    try:
        builder.check()
        sizes = (tuple(SMALL), tuple(OTHER))
        request = Request(graphs.spec(2, output), graphs.graph(None, 2, output), sizes, "fp32")
        data = builder.build(request, lambda what, done: None).engine
        runner = builder.open(data, graphs.spec(2, output), sizes)
    except EngineError as exc:
        pytest.skip(f"{name} cannot be used here: {exc}")
    try:
        made = graphs.engine(name, data, *sizes, output=output)
        with open_cuda() as cuda, OPEN[name](made, cuda) as upscaler:
            for size in (SMALL, OTHER, SMALL):
                for seed in range(4):
                    given = frame(size, seed)
                    picture = finish(upscaler, given)
                    assert np.array_equal(picture.pixels, runner(given.pixels))
    finally:
        runner.close()


def test_importing_them_imports_nothing_heavy() -> None:
    code = (
        "import sys, overlay.infer.tensorrt, overlay.infer.tensorrt_rtx\n"
        "print({'tensorrt', 'tensorrt_rtx', 'torch', 'onnx', 'cuda'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
