"""Which engine of which back end is opened, and why not another."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from engines import load, make
from engines.build import DEFAULT_OPTIONS, open_builder
from engines.cache import EngineCache, Entry, Identity
from engines.errors import EngineMismatch, EngineMissing
from overlay.cuda import CudaError
from overlay.cuda.recording import RecordingCuda
from overlay.errors import BackendUnavailable, OverlayError
from overlay.frame import Size
from overlay.infer import candidates, find, measure_ms, open_upscaler
from overlay.infer.find import Wish, open_engine
from overlay.infer.resize import ResizeUpscaler

SIZE = Size(64, 48)
MODEL = "realesr-animevideov3-x4"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setenv("OVERLAY_CACHE", str(tmp_path / "cache"))
    return EngineCache()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GPU, and back ends that open nothing; notes which were asked."""
    asked: list[str] = []

    def stand_in(name: str) -> ResizeUpscaler:
        asked.append(name)
        return ResizeUpscaler("bilinear", SIZE, SIZE)

    def engine(cache: EngineCache, entry: Entry, wish: Wish) -> ResizeUpscaler:
        return stand_in(entry.identity.backend)

    import overlay.infer.torch_cuda as torch_cuda

    cuda = RecordingCuda()
    monkeypatch.setattr(find, "shared_cuda", lambda: cuda)
    monkeypatch.setattr(find, "_opened", engine)
    monkeypatch.setattr(torch_cuda, "open_torch", lambda *a, **k: stand_in("torch-cuda"))
    monkeypatch.setattr(find, "find_spec", lambda name: True)
    for name in ("tensorrt", "tensorrt-rtx"):
        kind = type(open_builder(name))
        monkeypatch.setattr(kind, "version", lambda self: "11.4")
        monkeypatch.setattr(kind, "device", lambda self, options: {"gpu": "test"})
    return asked


def identity(backend: str, **changes: Any) -> Identity:
    located = load.locate(MODEL)
    builder = open_builder(backend)
    wanted = make.identity(located, builder, ((SIZE.width, SIZE.height),), None, DEFAULT_OPTIONS)
    return replace(wanted, **changes)


def store(cache: EngineCache, backend: str, ms: float = 1.0, **changes: Any) -> Entry:
    entry = Entry(
        sidecar=Path(), identity=identity(backend, **changes), reference=MODEL, scale=4,
        output="bgra", licence="BSD-3-Clause", file="", sha256="", bytes=0, built="", seconds=1.0,
        checks={"ms_p50": ms},
    )  # fmt: skip
    return cache.store(entry, b"engine")


def test_auto_takes_tensorrt_then_rtx_then_torch_then_the_cpu(
    cache: EngineCache, opened: list[str]
) -> None:
    expected = []
    for backend in ("onnxruntime", "tensorrt-rtx", "tensorrt"):
        store(cache, backend)
        open_engine(MODEL, "auto", Wish(SIZE)).close()
        expected.append({"onnxruntime": "torch-cuda"}.get(backend, backend))
    assert opened == expected


def test_of_the_cpu_s_engines_the_fastest_is_taken(
    cache: EngineCache, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "gpu_reason", lambda: "no GPU")
    store(cache, "openvino", ms=20.0)
    store(cache, "onnxruntime", ms=10.0)
    open_engine(MODEL, "auto", Wish(SIZE)).close()
    assert opened == ["onnxruntime"]


def test_what_does_not_open_is_passed_over(
    cache: EngineCache, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = find._opened

    def fails(cache: EngineCache, entry: Entry, wish: Wish) -> Any:
        if entry.identity.backend == "tensorrt":
            raise EngineMismatch("of another GPU")
        return real(cache, entry, wish)

    monkeypatch.setattr(find, "_opened", fails)
    store(cache, "tensorrt")
    store(cache, "tensorrt-rtx")
    open_engine(MODEL, "auto", Wish(SIZE)).close()
    assert opened == ["tensorrt-rtx"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"backend_version": "10.16"}, "version of tensorrt changed: built for 10.16, now 11.4"),
        ({"model_sha256": "0" * 64}, "the model's weights changed"),
        ({"sizes": ((80, 60),)}, "it was built for 80x60"),
    ],
)
def test_a_refused_engine_says_why(
    cache: EngineCache, opened: list[str], changes: dict[str, Any], told: str
) -> None:
    store(cache, "tensorrt", **changes)
    with pytest.raises(EngineMissing, match=told) as caught:
        open_engine(MODEL, "tensorrt", Wish(SIZE))
    assert "\n" not in str(caught.value)
    assert f"--models {MODEL} --sizes 64x48 --backend tensorrt" in str(caught.value)


def test_an_engine_with_options_of_its_own_is_compared_with_them(
    cache: EngineCache, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(open_builder("tensorrt"))
    monkeypatch.setattr(
        kind, "device", lambda self, options: {"compatible": str(options.hardware_compatible)}
    )
    entry = store(cache, "tensorrt", device={"compatible": "True"})
    cache.store(replace(entry, options={"hardware_compatible": True}), b"engine")
    open_engine(MODEL, "tensorrt", Wish(SIZE)).close()
    assert opened == ["tensorrt"]


def test_an_engine_of_a_back_end_that_was_not_asked_is_named(cache: EngineCache) -> None:
    store(cache, "tensorrt-rtx")
    with pytest.raises(EngineMissing, match="there is one for tensorrt-rtx, which was not asked"):
        open_engine(MODEL, "onnxruntime", Wish(SIZE))


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "torch-cuda"])
def test_without_a_gpu_its_back_ends_say_so_in_one_line(backend: str) -> None:
    with pytest.raises(BackendUnavailable, match="driver") as caught:
        open_upscaler("default-x2", backend=backend, source=SIZE, output=SIZE)
    assert "\n" not in str(caught.value)


def test_without_a_gpu_auto_takes_the_cpu_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    find._say_no_gpu.cache_clear()
    caplog.set_level(logging.INFO, "overlay.infer")
    for _ in range(2):
        with open_upscaler("default-x2", source=SIZE, output=SIZE) as upscaler:
            assert upscaler.backend == "openvino"
    said = [line for line in caplog.messages if "no NVIDIA GPU is used: " in line]
    assert len(said) == 1
    assert "driver" in said[0]


def test_default_leaves_a_gpu_that_is_too_slow(
    cache: EngineCache,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(
        "overlay.infer.measure_ms", lambda upscaler, source: 40.0 if upscaler.scale == 1 else 5.0
    )  # the stand-in on the GPU does not enlarge
    with open_upscaler("default", source=SIZE, output=SIZE) as upscaler:
        assert (opened, upscaler.backend) == (["torch-cuda"], "openvino")
    assert "40.0 ms a frame, more than 33 ms" in caplog.text
    with open_upscaler("default-x2", source=SIZE, output=SIZE) as named:
        assert named.scale == 1, "what is asked for by name is taken however slow it is"


def test_default_leaves_a_gpu_that_fails_on_the_first_frames(
    cache: EngineCache,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    closed: list[str] = []

    def fails(upscaler: Any, source: Size) -> float:
        if upscaler.backend == "openvino":
            return 5.0
        monkeypatch.setattr(upscaler, "close", lambda: closed.append(upscaler.backend))
        raise OverlayError("default-x2 failed on a frame: cudaErrorIllegalAddress")

    monkeypatch.setattr("overlay.infer.measure_ms", fails)
    with open_upscaler("default", source=SIZE, output=SIZE) as upscaler:
        assert (opened, upscaler.backend) == (["torch-cuda"], "openvino")
    assert closed == ["resize"]
    assert "cudaErrorIllegalAddress" in caplog.text


def test_a_device_that_fails_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise CudaError("cudaStreamCreate failed: cudaErrorMemoryAllocation")

    monkeypatch.setattr(find, "shared_cuda", fails)
    assert "cudaErrorMemoryAllocation" in find.gpu_reason()


def test_doctor_lists_the_gpu_s_back_ends_with_the_reason() -> None:
    found = {one.name: one for one in candidates()}
    for name in find.ON_GPU:
        assert not found[name].available
        assert "driver" in found[name].reason


def test_the_graph_of_an_engine_without_weights_is_made_again(cache: EngineCache) -> None:
    entry = store(cache, "onnxruntime")
    assert onnx.load_from_string(find._graph(entry)).graph.input[0].name == "bgra"


@pytest.mark.parametrize(
    "error",
    [
        BackendUnavailable("PyTorch 2.13.0+cpu (without CUDA) sees no NVIDIA GPU"),
        OSError("[WinError 126] error loading c10_cuda.dll"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    ],
)
@pytest.mark.parametrize("model", ["default-x2", MODEL])
def test_a_gpu_that_pytorch_cannot_use_costs_a_warning_only(
    cache: EngineCache,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    model: str,
    error: Exception,
) -> None:
    import overlay.infer.torch_cuda as torch_cuda

    def fails(*args: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(torch_cuda, "open_torch", fails)
    store(cache, "onnxruntime")
    with open_upscaler(model, source=SIZE, output=SIZE) as upscaler:
        assert upscaler.backend in ("openvino", "resize")
    told = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(told) == 1
    assert f"{model} does not run on the GPU: torch-cuda: {error}" in told[0]


def test_an_upscaler_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(ResizeUpscaler):
        def poll(self, timeout_s: float) -> None:
            time.sleep(0.01)

    monkeypatch.setattr("overlay.infer._PATIENCE_S", 0.05)
    with (
        Stuck("bilinear", SIZE, SIZE) as stuck,
        pytest.raises(OverlayError, match="did not answer"),
    ):
        measure_ms(stuck, SIZE)
