"""CUDA through NVIDIA's cuda-bindings: the runtime API of device 0, in its primary context.

The primary context is the one that PyTorch and TensorRT use too, so that their memory, streams
and ours are of one world. The runtime makes it current by itself on every thread.

What there is to know of a call is in NVIDIA's "CUDA Runtime API", under the call's name, which
is also the first word of the message if it fails.
"""

from __future__ import annotations

import ctypes
import logging
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn

import numpy as np
from cuda.bindings import runtime as _runtime  # type: ignore[import-untyped, unused-ignore]

from overlay.cuda import (
    Cuda,
    CudaError,
    Device,
    DeviceBuffer,
    Event,
    GlBuffer,
    Graph,
    Made,
    Stream,
    Unsupported,
    check_copy,
    check_size,
    whole_bytes,
)
from overlay.cuda.releases import Releases
from overlay.errors import BackendUnavailable
from overlay.frame import Pixels

log = logging.getLogger(__name__)

# Whether or not the package has types, its calls are `(status, *values)` with names of C.
runtime: Any = _runtime


class BindingsCuda(Cuda):
    """Device 0 through `cuda.bindings.runtime`.

    Raises:
        BackendUnavailable: there is no driver or no device, or the driver is too old.
    """

    name = "cuda-bindings"
    has_graphs = True
    has_gl = True

    def __init__(self) -> None:
        self._cuda: Any = runtime
        self._success = runtime.cudaError_t.cudaSuccess
        self._not_ready = runtime.cudaError_t.cudaErrorNotReady
        self._kinds = runtime.cudaMemcpyKind
        self.device = self._open()
        self._releases = Releases()
        # Whoever waits for the whole device while some thread captures fails, and so does the
        # capture, in every mode of it (CUDA Programming Guide, "Prohibited Operations").
        self._capturing = threading.RLock()
        self._addresses: dict[int, int] = {}  # of pinned memory, by id
        self._pinned_parts: dict[tuple[int, int], Pixels] = {}  # what `pin` pinned, by place
        lowest, highest = self._call("cudaDeviceGetStreamPriorityRange")
        self._priorities = {False: lowest, True: highest}

    def _open(self) -> Device:
        """Check driver and device, and make the context."""
        status, count = runtime.cudaGetDeviceCount()
        if status != self._success:
            raise BackendUnavailable(_no_driver(self._status_text(status), _driver()))
        if not count:
            raise BackendUnavailable("cuda-bindings: the driver sees no NVIDIA GPU (0 devices)")
        try:
            self._call("cudaSetDevice", 0)
            self._call("cudaFree", 0)  # makes the context where cudaSetDevice does not
            found = self._call("cudaGetDeviceProperties", 0)
        except CudaError as exc:
            raise BackendUnavailable(f"cuda-bindings cannot use the NVIDIA GPU: {exc}") from exc
        return Device(
            name=found.name.decode(),
            capability=(found.major, found.minor),
            driver=version_text(_driver()),
            memory_bytes=found.totalGlobalMem,
        )

    # Statuses

    def _call(self, name: str, *args: object) -> Any:
        """Call, check the status, and give the value, or the tuple of several."""
        status, *values = getattr(self._cuda, name)(*args)
        if status != self._success:
            self._fail(name, status)
        return values[0] if len(values) == 1 else tuple(values)

    def _fail(self, name: str, status: Any) -> NoReturn:
        self._cuda.cudaGetLastError()  # else the next who asks would be told of this one
        raise CudaError(f"{name} failed: {self._status_text(status)}")

    def _status_text(self, status: Any) -> str:
        """Say what a status is: "cudaErrorMemoryAllocation: out of memory"."""
        name = self._cuda.cudaGetErrorName(status)[1].decode()
        return f"{name}: {self._cuda.cudaGetErrorString(status)[1].decode()}"

    # Streams and events

    def stream(self, name: str, *, urgent: bool = False) -> Stream:
        """Make a stream: cudaStreamNonBlocking, of the lowest or highest priority there is."""
        flags, priority = self._cuda.cudaStreamNonBlocking, self._priorities[urgent]
        handle = int(self._call("cudaStreamCreateWithPriority", flags, priority))
        stream = Stream(handle, name)
        self._releases.add(stream, lambda: self._call("cudaStreamDestroy", handle))
        return stream

    def event(self, name: str, *, timing: bool = False) -> Event:
        """Make an event; without timing, recording it costs the device less."""
        cuda = self._cuda
        flags = cuda.cudaEventDefault if timing else cuda.cudaEventDisableTiming
        handle = int(self._call("cudaEventCreateWithFlags", flags))
        event = Event(handle, name)
        self._releases.add(event, lambda: self._call("cudaEventDestroy", handle))
        return event

    def record(self, event: Event, stream: Stream) -> None:
        """Record it."""
        status = self._cuda.cudaEventRecord(event.handle, stream.handle)[0]
        if status != self._success:
            self._fail("cudaEventRecord", status)

    def wait(self, stream: Stream, event: Event) -> None:
        """Let the stream wait."""
        status = self._cuda.cudaStreamWaitEvent(stream.handle, event.handle, 0)[0]
        if status != self._success:
            self._fail("cudaStreamWaitEvent", status)

    def done(self, event: Event) -> bool:
        """Ask."""
        status = self._cuda.cudaEventQuery(event.handle)[0]
        if status == self._success:
            return True
        if status != self._not_ready:
            self._fail("cudaEventQuery", status)
        return False

    def synchronize(self, event: Event) -> None:
        """Block."""
        self._call("cudaEventSynchronize", event.handle)

    def elapsed_ms(self, start: Event, end: Event) -> float:
        """Give the time between two events made with timing."""
        return float(self._call("cudaEventElapsedTime", start.handle, end.handle))

    # Memory

    def pinned(self, shape: tuple[int, ...], name: str) -> Pixels:
        """Allocate with cudaHostAlloc.

        Freed by `close`, or after it when nobody refers to the array any more: a picture on
        screen may live longer than what made it.
        """
        size = math.prod(shape)
        check_size(size, name)
        address = int(self._call("cudaHostAlloc", size, self._cuda.cudaHostAllocPortable))
        memory = (ctypes.c_uint8 * size).from_address(address)
        # Not at exit: the driver may be gone by then, and the process frees it anyway.
        weakref.finalize(memory, _free_host, self._cuda, address, name).atexit = False
        pixels: Pixels = np.ctypeslib.as_array(memory).reshape(shape)
        pixels.fill(0)
        self._addresses[id(pixels)] = address
        key = id(pixels)
        self._releases.add(pixels, lambda: self._addresses.pop(key))  # and the registry's reference
        return pixels

    def pin(self, pixels: Pixels) -> bool:
        """Register with cudaHostRegister; the array is kept until `close`.

        True also for memory that was pinned here before; False where another part of the
        program registered some of it, as that may end any time.
        """
        data = whole_bytes(pixels)
        place = (data.ctypes.data, data.nbytes)
        if place in self._pinned_parts:
            return True
        flags = self._cuda.cudaHostRegisterPortable
        status = self._cuda.cudaHostRegister(*place, flags)[0]
        if status != self._success:
            self._cuda.cudaGetLastError()
            log.debug("%d bytes were not pinned: %s", data.nbytes, self._status_text(status))
            return False
        self._pinned_parts[place] = pixels
        self._addresses[id(pixels)] = place[0]
        self._releases.add(pixels, lambda: self._unpin(place))
        return True

    def _unpin(self, place: tuple[int, int]) -> None:
        del self._addresses[id(self._pinned_parts.pop(place))]
        self._call("cudaHostUnregister", place[0])

    def buffer(self, size: int, name: str) -> DeviceBuffer:
        """Allocate with cudaMalloc."""
        check_size(size, name)
        address = int(self._call("cudaMalloc", size))
        buffer = DeviceBuffer(address, size, name)
        self._releases.add(buffer, lambda: self._call("cudaFree", address))
        return buffer

    def upload(self, target: DeviceBuffer, source: Pixels, stream: Stream) -> None:
        """Copy with cudaMemcpyAsync."""
        size = check_copy(source, target)
        address = self._addresses.get(id(source)) or source.ctypes.data
        kind = self._kinds.cudaMemcpyHostToDevice
        self._copy(target.address, address, size, kind, stream)

    def download(self, target: Pixels, source: DeviceBuffer, stream: Stream) -> None:
        """Copy with cudaMemcpyAsync."""
        size = check_copy(target, source)
        address = self._addresses.get(id(target)) or target.ctypes.data
        kind = self._kinds.cudaMemcpyDeviceToHost
        self._copy(address, source.address, size, kind, stream)

    def copy(self, target: DeviceBuffer, source: DeviceBuffer, stream: Stream) -> None:
        """Copy with cudaMemcpyAsync."""
        check_copy(source, target)
        kind = self._kinds.cudaMemcpyDeviceToDevice
        self._copy(target.address, source.address, source.size, kind, stream)

    def _copy(self, target: int, source: int, size: int, kind: Any, stream: Stream) -> None:
        status = self._cuda.cudaMemcpyAsync(target, source, size, kind, stream.handle)[0]
        if status != self._success:
            self._fail("cudaMemcpyAsync", status)

    def free(self, *made: Made) -> None:
        """Free these; not while a graph is captured."""
        with self._capturing:
            self._call("cudaDeviceSynchronize")
            self._releases.free(*made)

    # Graphs

    def captured(self, enqueue: Callable[[], None], stream: Stream, name: str) -> Graph:
        """Capture, in the mode that lets other threads go on; instantiate; upload."""
        with self._capturing:
            captured = self._capture(enqueue, stream)
        try:
            executable = self._call("cudaGraphInstantiate", captured, 0)
        finally:
            self._call("cudaGraphDestroy", captured)
        graph = Graph(int(executable), name)
        self._releases.add(graph, lambda: self._call("cudaGraphExecDestroy", graph.handle))
        self._call("cudaGraphUpload", graph.handle, stream.handle)
        return graph

    def _capture(self, enqueue: Callable[[], None], stream: Stream) -> Any:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream.handle, mode)
        try:
            enqueue()
        except BaseException:
            self._abandon_capture(stream)
            raise
        return self._call("cudaStreamEndCapture", stream.handle)

    def _abandon_capture(self, stream: Stream) -> None:
        """End a capture that failed, so that the stream can be used again."""
        status, captured = self._cuda.cudaStreamEndCapture(stream.handle)
        if status == self._success:
            self._cuda.cudaGraphDestroy(captured)
        else:
            self._cuda.cudaGetLastError()

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Launch."""
        status = self._cuda.cudaGraphLaunch(graph.handle, stream.handle)[0]
        if status != self._success:
            self._fail("cudaGraphLaunch", status)

    # OpenGL

    def register_gl(self, buffer: int, size: int) -> GlBuffer:
        """Register with cudaGraphicsRegisterFlagsWriteDiscard."""
        flags = self._cuda.cudaGraphicsRegisterFlags.cudaGraphicsRegisterFlagsWriteDiscard
        try:
            handle = int(self._call("cudaGraphicsGLRegisterBuffer", buffer, flags))
        except CudaError as exc:
            raise Unsupported(
                f"CUDA cannot write OpenGL buffers here ({exc}); "
                "the OpenGL context must be current, and of the same GPU"
            ) from exc
        made = GlBuffer(handle, buffer, size)
        self._releases.add(made, lambda: self._call("cudaGraphicsUnregisterResource", handle))
        return made

    def unregister_gl(self, buffer: GlBuffer) -> None:
        """Unregister."""
        self._releases.take(buffer)()

    def mapped(self, buffer: GlBuffer, stream: Stream) -> AbstractContextManager[DeviceBuffer]:
        """Map for the `with` block; unmapped also if that fails."""
        return self._mapped(buffer, stream)

    @contextmanager
    def _mapped(self, buffer: GlBuffer, stream: Stream) -> Iterator[DeviceBuffer]:
        # The calls take a pointer to handles: of an object its address, an int as it is.
        resource = self._cuda.cudaGraphicsResource_t(buffer.handle)
        self._call("cudaGraphicsMapResources", 1, resource, stream.handle)
        try:
            address, size = self._call("cudaGraphicsResourceGetMappedPointer", resource)
            yield DeviceBuffer(int(address), int(size), f"OpenGL buffer {buffer.buffer}")
        finally:
            self._call("cudaGraphicsUnmapResources", 1, resource, stream.handle)

    def close(self) -> None:
        """Wait for the device and free everything; failures are logged."""
        if isinstance(self._cuda, _Closed):
            return
        with self._capturing:
            try:
                self._call("cudaDeviceSynchronize")
            except CudaError as exc:
                log.warning("before freeing its memory: %s", exc)
            self._releases.free_all()
            self._cuda = _Closed()


class _Closed:
    """In place of the runtime after `close`: handles that were freed must not be used."""

    def __getattr__(self, name: str) -> NoReturn:
        raise CudaError(f"{name}: the device was closed")


def _free_host(cuda: Any, address: int, name: str) -> None:
    status = cuda.cudaFreeHost(address)[0]
    if status != cuda.cudaError_t.cudaSuccess:
        text = cuda.cudaGetErrorName(status)[1].decode()
        log.warning("CUDA could not free pinned memory %s: cudaFreeHost: %s", name, text)


def _driver() -> int:
    """Give the newest CUDA that the driver knows, 13000 say; 0 without a driver."""
    status, version = runtime.cudaDriverGetVersion()
    return int(version) if status == runtime.cudaError_t.cudaSuccess else 0


def _no_driver(status: str, driver: int) -> str:
    """Say why there is no device, and what to do."""
    if not driver:
        reason, fix = "NVIDIA's driver is not installed", "install it, if there is an NVIDIA GPU"
    elif "InsufficientDriver" in status:
        needed = int(runtime.cudaRuntimeGetVersion()[1]) // 1000
        reason = f"NVIDIA's driver knows CUDA {version_text(driver)}, and CUDA {needed} is needed"
        fix = f'update it, or pip install "cuda-bindings<{needed}"'
    else:
        reason, fix = "the driver sees no NVIDIA GPU", "check nvidia-smi and CUDA_VISIBLE_DEVICES"
    return f"cuda-bindings: {reason} ({status}); {fix}"


def version_text(version: int) -> str:
    """Write CUDA's number of a version: 13010 is "13.1"."""
    return f"{version // 1000}.{version % 1000 // 10}"
