"""`cuda.bindings.runtime` and `pycuda` as they are called, with the recording fake behind them.

So the adapters can be run without a GPU. What the real packages would make of a call is checked
as far as they are here: without a driver, `cuda.bindings.runtime` takes the arguments apart and
then says that there is no driver; that it got so far shows that their number and types are right.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections import Counter
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import runtime as real  # type: ignore[import-untyped, unused-ignore]

from overlay.cuda import CudaError, DeviceBuffer, Event, GlBuffer, Graph, Stream, Unsupported
from overlay.cuda.late import RUBBISH
from overlay.cuda.recording import RecordingCuda
from overlay.frame import Pixels

#: Sizes of the OpenGL buffer objects there are, by name.
GL_SIZES = {1: 4096, 2: 64}


def host(address: int, size: int) -> Pixels:
    """View memory of the host by its address."""
    pixels: Pixels = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    return pixels


def is_driverless() -> bool:
    return bool(real.cudaDriverGetVersion()[1] == 0)


class Objects:
    """The fake's objects by their numbers."""

    def __init__(self, recording: RecordingCuda) -> None:
        self.recording = recording
        self.found: dict[int, Any] = {}
        self.names: Counter[str] = Counter()

    def name(self, kind: str) -> str:
        self.names[kind] += 1
        return f"{kind} {self.names[kind]}"

    def stream(self) -> int:
        made = self.recording.stream(self.name("stream"))
        self.found[made.handle] = made
        return made.handle

    def event(self, timing: bool) -> int:
        made = self.recording.event(self.name("event"), timing=timing)
        self.found[made.handle] = made
        return made.handle

    def pinned(self, size: int) -> int:
        pixels = self.recording.pinned((size,), self.name("host memory"))
        self.found[pixels.ctypes.data] = pixels
        return pixels.ctypes.data

    def buffer(self, size: int) -> int:
        made = self.recording.buffer(size, self.name("device memory"))
        self.found[made.address] = made
        return made.address

    def free(self, number: int) -> None:
        self.recording.free(self.found.pop(number))

    def register(self, buffer: int) -> int:
        if buffer not in GL_SIZES:
            raise CudaError("cudaErrorInvalidValue")
        made = self.recording.register_gl(buffer, GL_SIZES[buffer])
        self.found[made.handle] = made
        return made.handle


class SimulatedRuntime:
    """Stands for `cuda.bindings.runtime`; names and constants are the real ones.

    Attributes:
        calls: what was called, in order.
        statuses: what the next call of a function shall say instead of being done.
    """

    def __init__(self, recording: RecordingCuda) -> None:
        self.recording = recording
        self.objects = Objects(recording)
        self.calls: list[str] = []
        self.statuses: dict[str, Any] = {}
        self.driver = 13010
        self.count = 1
        self.last = real.cudaError_t.cudaSuccess
        self._captured: dict[int, Graph] = {}
        self._check = is_driverless()

    def __getattr__(self, name: str) -> Any:
        does = getattr(type(self), f"_{name}", None)
        if does is None:
            found = getattr(real, name)
            may = name in ("cudaGetErrorName", "cudaGetErrorString", "cudaRuntimeGetVersion")
            assert may or not callable(found) or isinstance(found, type), name
            return found

        def call(*args: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            expected = getattr(real, name)(*args) if self._check else None
            status, values = self._try(name, does, args)
            if expected is not None:  # as many values as the real one gives
                values = values if values else (None,) * (len(expected) - 1)
                assert len(values) == len(expected) - 1, (name, values, expected)
            return (status, *values)

        return call

    def _try(self, name: str, does: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        if name in self.statuses:
            self.last = self.statuses.pop(name)
            return self.last, ()
        try:
            values = does(self, *args)
        except Unsupported:
            self.last = real.cudaError_t.cudaErrorOperatingSystem
            return self.last, ()
        except CudaError as exc:
            found = re.search(r"cudaError\w+", str(exc))
            self.last = getattr(real.cudaError_t, found[0] if found else "cudaErrorUnknown")
            return self.last, ()
        success = real.cudaError_t.cudaSuccess
        if values is None:
            return success, ()
        return success, values if isinstance(values, tuple) else (values,)

    # The functions, under their names

    def _cudaGetDeviceCount(self) -> Any:  # noqa: N802
        return self.count

    def _cudaDriverGetVersion(self) -> Any:  # noqa: N802
        return self.driver

    def _cudaSetDevice(self, device: int) -> None:  # noqa: N802
        assert device == 0

    def _cudaGetLastError(self) -> Any:  # noqa: N802
        self.last = real.cudaError_t.cudaSuccess

    def _cudaGetDeviceProperties(self, device: int) -> Any:  # noqa: N802
        return SimpleNamespace(name=b"Simulated", major=9, minor=0, totalGlobalMem=1 << 37)

    def _cudaDeviceGetStreamPriorityRange(self) -> Any:  # noqa: N802
        return (0, -5)

    def _cudaDeviceSynchronize(self) -> None:  # noqa: N802
        self.recording.advance()

    def _cudaStreamCreateWithPriority(self, flags: int, priority: int) -> Any:  # noqa: N802
        assert flags == real.cudaStreamNonBlocking
        assert priority in (0, -5)
        return real.cudaStream_t(self.objects.stream())

    def _cudaStreamDestroy(self, stream: int) -> None:  # noqa: N802
        self.objects.free(int(stream))

    def _cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:  # noqa: N802
        assert flags == 0
        self.recording.wait(self._stream(stream), self._event(event))

    def _cudaEventCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        return real.cudaEvent_t(self.objects.event(not flags & real.cudaEventDisableTiming))

    def _cudaEventDestroy(self, event: int) -> None:  # noqa: N802
        self.objects.free(int(event))

    def _cudaEventRecord(self, event: int, stream: int) -> None:  # noqa: N802
        self.recording.record(self._event(event), self._stream(stream))

    def _cudaEventQuery(self, event: int) -> None:  # noqa: N802
        if not self.recording.done(self._event(event)):
            raise CudaError("cudaErrorNotReady")

    def _cudaEventSynchronize(self, event: int) -> None:  # noqa: N802
        self.recording.synchronize(self._event(event))

    def _cudaEventElapsedTime(self, start: int, end: int) -> Any:  # noqa: N802
        return self.recording.elapsed_ms(self._event(start), self._event(end))

    def _cudaHostAlloc(self, size: int, flags: int) -> Any:  # noqa: N802
        assert flags == real.cudaHostAllocPortable
        address = self.objects.pinned(size)
        host(address, size).fill(RUBBISH)
        return address

    def _cudaFreeHost(self, address: int) -> None:  # noqa: N802
        self.objects.free(address)

    def _cudaHostRegister(self, address: int, size: int, flags: int) -> None:  # noqa: N802
        assert flags == real.cudaHostRegisterPortable
        pixels = host(address, size)
        if address in self.objects.found or not self.recording.pin(pixels):
            raise CudaError("cudaErrorHostMemoryAlreadyRegistered")
        self.objects.found[address] = pixels

    def _cudaHostUnregister(self, address: int) -> None:  # noqa: N802
        self.objects.free(address)

    def _cudaMalloc(self, size: int) -> Any:  # noqa: N802
        return self.objects.buffer(size)

    def _cudaFree(self, address: int) -> None:  # noqa: N802
        if address:
            self.objects.free(address)

    def _cudaMemcpyAsync(  # noqa: N802
        self, target: int, source: int, size: int, kind: Any, stream: int
    ) -> None:
        queue, kinds = self._stream(stream), real.cudaMemcpyKind
        if kind == kinds.cudaMemcpyHostToDevice:
            self.recording.upload(DeviceBuffer(target, size, "target"), host(source, size), queue)
        elif kind == kinds.cudaMemcpyDeviceToHost:
            self.recording.download(host(target, size), DeviceBuffer(source, size, "source"), queue)
        else:
            assert kind == kinds.cudaMemcpyDeviceToDevice
            buffers = DeviceBuffer(target, size, "target"), DeviceBuffer(source, size, "source")
            self.recording.copy(*buffers, queue)

    def _cudaStreamBeginCapture(self, stream: int, mode: Any) -> None:  # noqa: N802
        assert mode == real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.recording._begin_capture(self._stream(stream), "graph")

    def _cudaStreamEndCapture(self, stream: int) -> Any:  # noqa: N802
        graph = self.recording._end_capture()
        self._captured[graph.handle] = graph
        return real.cudaGraph_t(graph.handle)

    def _cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:  # noqa: N802
        made = self._captured[int(graph)]
        self.objects.found[made.handle] = made
        return real.cudaGraphExec_t(made.handle)

    def _cudaGraphDestroy(self, graph: Any) -> None:  # noqa: N802
        del self._captured[int(graph)]

    def _cudaGraphUpload(self, graph: int, stream: int) -> None:  # noqa: N802
        assert isinstance(self.objects.found[graph], Graph)

    def _cudaGraphLaunch(self, graph: int, stream: int) -> None:  # noqa: N802
        self.recording.launch(self.objects.found[graph], self._stream(stream))

    def _cudaGraphExecDestroy(self, graph: int) -> None:  # noqa: N802
        self.objects.free(graph)

    def _cudaGraphicsGLRegisterBuffer(self, buffer: int, flags: Any) -> Any:  # noqa: N802
        assert flags == real.cudaGraphicsRegisterFlags.cudaGraphicsRegisterFlagsWriteDiscard
        return real.cudaGraphicsResource_t(self.objects.register(buffer))

    def _cudaGraphicsUnregisterResource(self, resource: int) -> None:  # noqa: N802
        self.recording.unregister_gl(self.objects.found.pop(int(resource)))

    def _cudaGraphicsMapResources(self, count: int, resources: Any, stream: int) -> None:  # noqa: N802
        self.recording._map_gl(self._gl(count, resources), self._stream(stream))

    def _cudaGraphicsUnmapResources(self, count: int, resources: Any, stream: int) -> None:  # noqa: N802
        self.recording._unmap_gl(self._gl(count, resources), self._stream(stream))

    def _cudaGraphicsResourceGetMappedPointer(self, resource: Any) -> Any:  # noqa: N802
        made = self.objects.found[int(resource)]
        state = self.recording._gl_states[made.handle]
        return state.addresses[state.turn], made.size

    def _gl(self, count: int, resources: Any) -> GlBuffer:
        assert count == 1
        # An int would be taken for the address of an array of handles.
        assert isinstance(resources, real.cudaGraphicsResource_t)
        made = self.objects.found[int(resources)]
        assert isinstance(made, GlBuffer)
        return made

    def _stream(self, handle: int) -> Stream:
        made = self.objects.found[int(handle)]
        assert isinstance(made, Stream)
        return made

    def _event(self, handle: int) -> Event:
        made = self.objects.found[int(handle)]
        assert isinstance(made, Event)
        return made


class PycudaError(Exception):
    """`pycuda.driver.Error`."""


class SimulatedPycuda:
    """Stands for `pycuda`: what was made belongs to a context, which must be current to use it.

    Attributes:
        current: how deep the context is current on each thread; 0 when all is well at the end.
        leaks: what was dropped while the context was not current.
    """

    def __init__(self, recording: RecordingCuda, *, gl: bool = True) -> None:
        self.recording = recording
        self.objects = Objects(recording)
        self.current: Counter[int] = Counter()
        self.leaks: list[str] = []
        self.count = 1
        self.has_gl = gl
        self.package = ModuleType("pycuda")
        self.package.driver = self._driver()  # type: ignore[attr-defined]
        self.package.gl = SimpleNamespace(  # type: ignore[attr-defined]
            graphics_map_flags=SimpleNamespace(WRITE_DISCARD=2),
            RegisteredBuffer=self.guarded(lambda *args: _Registered(self, *args)),
        )

    def modules(self) -> dict[str, Any]:
        package: Any = self.package
        return {"pycuda": package, "pycuda.driver": package.driver, "pycuda.gl": package.gl}

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Do what the fake does, with PyCUDA's errors, where the context is current."""

        def call(*args: Any, **names: Any) -> Any:
            if not self.current[threading.get_ident()]:
                raise PycudaError("explicit_context_dependent failed: no currently active context?")
            try:
                return function(*args, **names)
            except CudaError as exc:
                text = str(exc).replace("cudaErrorMemoryAllocation", "out of memory")
                raise PycudaError(f"cuSomething failed: {text}") from exc

        return call

    def dropped(self, number: int) -> None:
        if not self.current[threading.get_ident()]:
            self.leaks.append(str(self.objects.found.pop(number)))
        elif not self.recording._closed:
            self.objects.free(number)

    def _driver(self) -> Any:
        driver = ModuleType("pycuda.driver")
        recording, objects = self.recording, self.objects
        streams = objects.found

        def pagelocked_zeros(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
            assert (dtype, mem_flags) == (np.uint8, 1)
            (size,) = shape
            return _owned(self, objects.pinned(size), size)

        def upload(target: int, source: Pixels, stream: Any) -> None:
            buffer = DeviceBuffer(target, source.nbytes, "target")
            recording.upload(buffer, source, streams[stream.handle])

        def download(target: Pixels, source: int, stream: Any) -> None:
            buffer = DeviceBuffer(source, target.nbytes, "source")
            recording.download(target, buffer, streams[stream.handle])

        def copy(target: int, source: int, size: int, stream: Any) -> None:
            buffers = DeviceBuffer(target, size, "target"), DeviceBuffer(source, size, "source")
            recording.copy(*buffers, streams[stream.handle])

        vars(driver).update(
            Error=PycudaError,
            init=lambda: None,
            have_gl_ext=lambda: self.has_gl,
            get_driver_version=lambda: 13010,
            Device=_Device(self),
            Context=SimpleNamespace(
                pop=self._pop, synchronize=self.guarded(lambda: recording.advance() and None)
            ),
            Stream=self.guarded(lambda flags: _Stream(self, flags)),
            Event=self.guarded(lambda flags: _Event(self, flags)),
            event_flags=SimpleNamespace(DEFAULT=0, DISABLE_TIMING=2),
            host_alloc_flags=SimpleNamespace(PORTABLE=1),
            pagelocked_zeros=self.guarded(pagelocked_zeros),
            mem_alloc=self.guarded(lambda size: _Allocation(self, objects.buffer(size))),
            memcpy_htod_async=self.guarded(upload),
            memcpy_dtoh_async=self.guarded(download),
            memcpy_dtod_async=self.guarded(copy),
        )
        return driver

    def push(self) -> None:
        self.current[threading.get_ident()] += 1

    def _pop(self) -> None:
        assert self.current[threading.get_ident()] > 0
        self.current[threading.get_ident()] -= 1


class _Device:
    def __init__(self, pycuda: SimulatedPycuda) -> None:
        self._pycuda = pycuda

    def __call__(self, number: int) -> Any:
        return SimpleNamespace(
            name=lambda: "Simulated",
            compute_capability=lambda: (9, 0),
            total_memory=lambda: 1 << 37,
            retain_primary_context=lambda: SimpleNamespace(push=self._pycuda.push),
        )

    def count(self) -> int:
        return self._pycuda.count


class _Thing:
    """Something of PyCUDA's that is freed when it is dropped."""

    def __init__(self, pycuda: SimulatedPycuda, number: int) -> None:
        self._pycuda, self.handle = pycuda, number

    @property
    def made(self) -> Any:
        return self._pycuda.objects.found[self.handle]

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._pycuda.guarded(function)(*args)

    def __int__(self) -> int:
        return self.handle

    def __del__(self) -> None:
        self._pycuda.dropped(self.handle)


class _Allocation(_Thing):
    pass


class _Stream(_Thing):
    def __init__(self, pycuda: SimulatedPycuda, flags: int) -> None:
        assert flags == 1
        super().__init__(pycuda, pycuda.objects.stream())

    def wait_for_event(self, event: _Event) -> None:
        self.call(self._pycuda.recording.wait, self.made, event.made)


class _Event(_Thing):
    def __init__(self, pycuda: SimulatedPycuda, flags: int) -> None:
        assert flags in (0, 2)
        super().__init__(pycuda, pycuda.objects.event(timing=not flags))

    def record(self, stream: _Stream) -> None:
        self.call(self._pycuda.recording.record, self.made, stream.made)

    def query(self) -> Any:
        return self.call(self._pycuda.recording.done, self.made)

    def synchronize(self) -> None:
        self.call(self._pycuda.recording.synchronize, self.made)

    def time_since(self, start: _Event) -> Any:
        return self.call(self._pycuda.recording.elapsed_ms, start.made, self.made)


class _Registered:
    def __init__(self, pycuda: SimulatedPycuda, buffer: int, flags: int) -> None:
        assert flags == 2
        self._pycuda = pycuda
        self.made: GlBuffer = pycuda.objects.found[pycuda.objects.register(buffer)]

    def unregister(self) -> None:
        self._pycuda.guarded(self._pycuda.recording.unregister_gl)(self.made)

    def map(self, stream: _Stream) -> Any:
        recording, guarded = self._pycuda.recording, self._pycuda.guarded
        state = guarded(recording._map_gl)(self.made, stream.made)
        place = state.addresses[state.turn], self.made.size
        return SimpleNamespace(
            device_ptr_and_size=guarded(lambda: place),
            unmap=lambda: guarded(recording._unmap_gl)(self.made, stream.made),
        )


def _owned(pycuda: SimulatedPycuda, address: int, size: int) -> Pixels:
    """Give an array that frees its memory with the last reference to it, as PyCUDA's do."""

    class Owner(_Thing):
        __array_interface__ = {  # noqa: RUF012
            "shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3,
        }  # fmt: skip

    # The fake forgets memory that it frees, so this keeps it for the arrays that still show it.
    memory = pycuda.objects.found[address]
    owner = Owner(pycuda, address)
    owner.memory = memory  # type: ignore[attr-defined]
    return np.asarray(owner)
