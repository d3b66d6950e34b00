"""`BindingsCuda`: statuses, the order of freeing, and what it says without a GPU."""

from __future__ import annotations

import gc
import logging
import threading
from typing import Any

import numpy as np
import pytest
from cuda.bindings import runtime as real  # type: ignore[import-untyped, unused-ignore]

from overlay.cuda import Cuda, CudaError, Unsupported, bindings, open_cuda
from overlay.cuda.recording import RecordingCuda
from overlay.errors import BackendUnavailable
from tests.overlay.cuda.simulated import SimulatedRuntime, is_driverless

ERRORS = real.cudaError_t
driverless = pytest.mark.skipif(not is_driverless(), reason="there is a driver")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> SimulatedRuntime:
    runtime = SimulatedRuntime(RecordingCuda())
    monkeypatch.setattr(bindings, "runtime", runtime)
    return runtime


@pytest.fixture
def cuda(runtime: SimulatedRuntime) -> Cuda:
    return bindings.BindingsCuda()


# Without a GPU: the real package --------------------------------------------------------------


@driverless
def test_no_driver_is_said_in_one_line() -> None:
    with pytest.raises(BackendUnavailable) as caught:
        open_cuda("cuda-bindings")
    said = str(caught.value)
    assert "NVIDIA's driver is not installed (cudaErrorInsufficientDriver" in said
    assert said.endswith("install it, if there is an NVIDIA GPU")
    assert "\n" not in said


@driverless
def test_auto_says_why_of_what_is_installed() -> None:
    with pytest.raises(BackendUnavailable, match=r"^cuda-bindings: .*driver") as caught:
        open_cuda()
    assert "pycuda" not in str(caught.value)


def test_auto_says_how_to_install_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay.cuda.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"^cuda-bindings is not installed: pip install"):
        open_cuda()


def test_an_unknown_back_end_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match=r"'opencl' \(one of auto, cuda-bindings, pycuda"):
        open_cuda("opencl")


# What the driver may say ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "status", "said"),
    [
        (
            12020,
            ERRORS.cudaErrorInsufficientDriver,
            r"driver knows CUDA 12\.2, and CUDA 13 is needed .*update it, or pip install "
            r'"cuda-bindings<13"$',
        ),
        (13010, ERRORS.cudaErrorNoDevice, r"sees no NVIDIA GPU .*CUDA_VISIBLE_DEVICES$"),
        (0, ERRORS.cudaErrorInsufficientDriver, r"driver is not installed"),
    ],
)
def test_the_reason_and_the_fix_are_named(
    runtime: SimulatedRuntime, driver: int, status: Any, said: str
) -> None:
    runtime.driver = driver
    runtime.statuses["cudaGetDeviceCount"] = status
    with pytest.raises(BackendUnavailable, match=said):
        bindings.BindingsCuda()
    assert set(runtime.calls) <= {"cudaGetDeviceCount", "cudaDriverGetVersion"}


def test_no_device_is_no_device(runtime: SimulatedRuntime) -> None:
    runtime.count = 0
    with pytest.raises(BackendUnavailable, match="0 devices"):
        bindings.BindingsCuda()


def test_a_device_that_is_taken_is_unavailable(runtime: SimulatedRuntime) -> None:
    runtime.statuses["cudaSetDevice"] = ERRORS.cudaErrorDevicesUnavailable
    with pytest.raises(BackendUnavailable, match="cudaSetDevice failed: cudaErrorDevicesUnavail"):
        bindings.BindingsCuda()


def test_the_device_is_described(cuda: Cuda) -> None:
    assert cuda.device.name == "Simulated"
    assert cuda.device.capability == (9, 0)
    assert cuda.device.driver == "13.1"


# Statuses -------------------------------------------------------------------------------------


def calls_of_all(cuda: Cuda) -> dict[str, Any]:
    """Give, for each function of CUDA's that may fail, a call that needs it."""
    stream, event = cuda.stream("stream"), cuda.event("event", timing=True)
    buffer, pixels = cuda.buffer(64, "buffer"), cuda.pinned((64,), "pixels")
    graph = cuda.captured(lambda: cuda.copy(buffer, buffer, stream), stream, "graph")
    shared = cuda.register_gl(2, 64)
    cuda.record(event, stream)

    def capture() -> None:
        cuda.captured(lambda: None, stream, "graph")

    def map_it() -> None:
        with cuda.mapped(shared, stream):
            pass

    return {
        "cudaStreamCreateWithPriority": lambda: cuda.stream("stream"),
        "cudaEventCreateWithFlags": lambda: cuda.event("event"),
        "cudaEventRecord": lambda: cuda.record(event, stream),
        "cudaStreamWaitEvent": lambda: cuda.wait(stream, event),
        "cudaEventQuery": lambda: cuda.done(event),
        "cudaEventSynchronize": lambda: cuda.synchronize(event),
        "cudaEventElapsedTime": lambda: cuda.elapsed_ms(event, event),
        "cudaHostAlloc": lambda: cuda.pinned((1,), "pixels"),
        "cudaMalloc": lambda: cuda.buffer(1, "buffer"),
        "cudaMemcpyAsync": lambda: cuda.upload(buffer, pixels, stream),
        "cudaDeviceSynchronize": lambda: cuda.free(),
        "cudaStreamBeginCapture": capture,
        "cudaStreamEndCapture": capture,
        "cudaGraphInstantiate": capture,
        "cudaGraphUpload": capture,
        "cudaGraphLaunch": lambda: cuda.launch(graph, stream),
        "cudaGraphicsGLRegisterBuffer": lambda: cuda.register_gl(1, 4096),
        "cudaGraphicsMapResources": map_it,
        "cudaGraphicsUnmapResources": map_it,
        "cudaGraphicsResourceGetMappedPointer": map_it,
        "cudaGraphicsUnregisterResource": lambda: cuda.unregister_gl(shared),
    }


def test_every_status_is_checked(cuda: Cuda, runtime: SimulatedRuntime) -> None:
    calls = calls_of_all(cuda)
    for name, call in calls.items():
        if name == "cudaStreamEndCapture":  # would leave the fake capturing
            continue
        runtime.statuses[name] = ERRORS.cudaErrorLaunchFailure
        with pytest.raises(
            CudaError, match=f"{name} failed: cudaErrorLaunchFailure: unspecified launch failure"
        ):
            call()
        assert name not in runtime.statuses, f"{name} was not called"
        assert runtime.last == ERRORS.cudaSuccess, "the next who asks is told of this error"
        if name == "cudaGraphicsUnmapResources":
            runtime.recording._unmap_gl(runtime.recording.registered[0], stream_of(runtime))
    known = {name[1:] for name in vars(SimulatedRuntime) if name.startswith("_cuda")}
    opening: tuple[str, ...] = (
        "cudaGetDeviceCount",
        "cudaDriverGetVersion",
        "cudaGetDeviceProperties",
    )
    opening += ("cudaSetDevice", "cudaDeviceGetStreamPriorityRange", "cudaGetLastError")
    freeing = {name for name in known if "Destroy" in name or "Free" in name}
    others = {*opening, *freeing, "cudaHostRegister", "cudaHostUnregister"}
    assert known - others == set(calls)


def stream_of(runtime: SimulatedRuntime) -> Any:
    return next(one for one in runtime.objects.found.values() if type(one).__name__ == "Stream")


def test_the_capture_is_destroyed_whatever_happens(cuda: Cuda, runtime: SimulatedRuntime) -> None:
    stream = cuda.stream("stream")

    def fails() -> None:
        raise ZeroDivisionError

    runtime.statuses["cudaGraphInstantiate"] = ERRORS.cudaErrorMemoryAllocation
    with pytest.raises(CudaError, match="cudaGraphInstantiate"):
        cuda.captured(lambda: None, stream, "graph")
    assert runtime._captured == {}
    with pytest.raises(ZeroDivisionError):
        cuda.captured(fails, stream, "graph")
    assert runtime._captured == {}
    assert runtime.calls.count("cudaGraphDestroy") == 2


def test_opengl_that_cannot_be_shared_is_unsupported(cuda: Cuda, runtime: SimulatedRuntime) -> None:
    runtime.statuses["cudaGraphicsGLRegisterBuffer"] = ERRORS.cudaErrorOperatingSystem
    with pytest.raises(Unsupported, match=r"cudaErrorOperatingSystem.*must be current"):
        cuda.register_gl(1, 4096)


def test_memory_of_others_that_cannot_be_pinned(cuda: Cuda, runtime: SimulatedRuntime) -> None:
    pixels = np.zeros(100, np.uint8)
    runtime.statuses["cudaHostRegister"] = ERRORS.cudaErrorHostMemoryAlreadyRegistered
    assert not cuda.pin(pixels)
    assert runtime.last == ERRORS.cudaSuccess
    assert cuda.pin(pixels)
    assert cuda.pin(pixels.reshape(10, 10))
    assert runtime.calls.count("cudaHostRegister") == 2


def test_an_urgent_stream_has_the_highest_priority(
    cuda: Cuda, runtime: SimulatedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, int]] = []

    def make(self: SimulatedRuntime, flags: int, priority: int) -> Any:
        given.append((flags, priority))
        return real.cudaStream_t(self.objects.stream())

    monkeypatch.setattr(SimulatedRuntime, "_cudaStreamCreateWithPriority", make)
    cuda.stream("compute", urgent=True)
    cuda.stream("copy")
    assert given == [(real.cudaStreamNonBlocking, -5), (real.cudaStreamNonBlocking, 0)]


# Freeing --------------------------------------------------------------------------------------

FREES = [
    "cudaDeviceSynchronize",
    "cudaGraphicsUnregisterResource",
    "cudaGraphExecDestroy",
    "cudaFreeHost",
    "cudaFree",
    "cudaEventDestroy",
    "cudaStreamDestroy",
]


def make_all(cuda: Cuda) -> None:
    stream = cuda.stream("stream")
    cuda.event("event")
    cuda.buffer(64, "buffer")
    cuda.pinned((64,), "pixels")
    cuda.captured(lambda: None, stream, "graph")
    cuda.register_gl(2, 64)


def test_freed_in_the_opposite_order_of_making(cuda: Cuda, runtime: SimulatedRuntime) -> None:
    make_all(cuda)
    runtime.calls.clear()
    cuda.close()
    assert runtime.calls == FREES
    cuda.close()
    assert runtime.calls == FREES


def test_some_are_freed_the_last_first(cuda: Cuda, runtime: SimulatedRuntime) -> None:
    stream, event, buffer = cuda.stream("stream"), cuda.event("event"), cuda.buffer(1, "buffer")
    kept = cuda.buffer(1, "kept")
    runtime.calls.clear()
    cuda.free(stream, event, buffer)
    expected = ["cudaDeviceSynchronize", "cudaFree", "cudaEventDestroy", "cudaStreamDestroy"]
    assert runtime.calls == expected
    cuda.close()
    assert runtime.calls == [*expected, "cudaDeviceSynchronize", "cudaFree"]
    assert kept.address not in runtime.objects.found


@pytest.mark.parametrize("name", FREES)
def test_one_failure_does_not_keep_the_rest(
    cuda: Cuda, runtime: SimulatedRuntime, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_all(cuda)
    runtime.calls.clear()
    runtime.statuses[name] = ERRORS.cudaErrorIllegalAddress
    with caplog.at_level(logging.WARNING):
        cuda.close()
    assert [call for call in runtime.calls if call != "cudaGetLastError"] == FREES
    (record,) = caplog.records
    assert name in record.getMessage()
    assert "cudaErrorIllegalAddress" in record.getMessage()


def test_pinned_memory_waits_for_its_last_reader(cuda: Cuda, runtime: SimulatedRuntime) -> None:
    pixels = cuda.pinned((8, 8), "pixels")
    row = pixels[3]
    cuda.close()
    del pixels
    gc.collect()
    assert "cudaFreeHost" not in runtime.calls
    row[:] = 1
    del row
    assert runtime.calls[-1] == "cudaFreeHost"


def test_pinned_memory_stays_while_the_device_may_use_it(
    cuda: Cuda, runtime: SimulatedRuntime
) -> None:
    cuda.pinned((8, 8), "pixels")
    gc.collect()
    assert "cudaFreeHost" not in runtime.calls


def test_memory_of_others_is_given_back(cuda: Cuda, runtime: SimulatedRuntime) -> None:
    cuda.pin(np.zeros(100, np.uint8))
    cuda.close()
    assert runtime.calls[-1] == "cudaHostUnregister"


def test_a_copy_asks_numpy_for_the_address_once(cuda: Cuda, runtime: SimulatedRuntime) -> None:
    """Pinned arrays are known by themselves; `ctypes.data` takes as long as the rest of a call."""
    stream, buffer = cuda.stream("stream"), cuda.buffer(64, "buffer")
    known, unknown = cuda.pinned((64,), "pixels"), cuda.pinned((64,), "pixels")[:32]
    held: Any = cuda
    assert held._addresses[id(known)] == known.ctypes.data
    assert id(unknown) not in held._addresses
    unknown[:] = 9
    cuda.upload(buffer, known, stream)
    cuda.upload(buffer, unknown, stream)
    runtime.recording.advance()
    (device,) = runtime.recording._device.values()
    assert device.data.tolist() == [9] * 32 + [0] * 32


def test_nobody_waits_for_the_device_while_a_graph_is_captured(
    cuda: Cuda, runtime: SimulatedRuntime
) -> None:
    stream, buffer, old = cuda.stream("stream"), cuda.buffer(8, "new"), cuda.buffer(8, "old")
    during: list[list[str]] = []
    other = threading.Thread(target=cuda.free, args=(old,))

    def enqueue() -> None:
        runtime.calls.clear()
        other.start()
        other.join(0.2)  # it must be waiting
        during.append(runtime.calls.copy())
        cuda.copy(buffer, buffer, stream)

    cuda.captured(enqueue, stream, "graph")
    other.join()
    assert during == [[]]
    assert runtime.calls.index("cudaDeviceSynchronize") > runtime.calls.index(
        "cudaStreamEndCapture"
    )
