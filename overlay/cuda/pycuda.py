"""CUDA through PyCUDA, where that is what is installed.

PyCUDA has no graphs, cannot set a stream's priority, and has OpenGL only if it was built with it.
Its objects belong to a context that must be current on the calling thread, so every call here
makes the primary context current and ends that again: a thread that ends with a current context
ends the program.

Written against the documentation and source of PyCUDA 2026.1
(https://documen.tician.de/pycuda/driver.html).
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
from pycuda import driver as _driver  # type: ignore[import-not-found, unused-ignore]

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
)
from overlay.cuda.releases import Releases
from overlay.errors import BackendUnavailable
from overlay.frame import Pixels

log = logging.getLogger(__name__)

# The package has no types.
driver: Any = _driver

#: CU_STREAM_NON_BLOCKING, which PyCUDA has no name for.
_NON_BLOCKING = 1


class PyCuda(Cuda):
    """Device 0 through `pycuda.driver`.

    Raises:
        BackendUnavailable: there is no device.
    """

    name = "pycuda"
    has_graphs = False

    def __init__(self) -> None:
        self.has_gl = bool(driver.have_gl_ext())
        try:
            driver.init()
            if not driver.Device.count():
                raise BackendUnavailable("pycuda: the driver sees no NVIDIA GPU (0 devices)")
            device = driver.Device(0)
            self.device = Device(
                name=device.name(),
                capability=device.compute_capability(),
                driver=_version_text(driver.get_driver_version()),
                memory_bytes=device.total_memory(),
            )
            self._context = device.retain_primary_context()
        except driver.Error as exc:
            raise BackendUnavailable(f"pycuda cannot use an NVIDIA GPU: {exc}") from exc
        self._releases = Releases()
        self._handles = itertools.count(1)
        self._objects: dict[int, Any] = {}  # PyCUDA's, by handle or address
        self._closed = False

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Make the context current on this thread; translate errors."""
        if self._closed:
            raise CudaError("pycuda: the device was closed")
        try:
            self._context.push()
            try:
                yield
            finally:
                driver.Context.pop()
        except driver.Error as exc:
            raise CudaError(str(exc)) from exc

    def _keep(self, made: Made, key: int, thing: Any) -> None:
        """Keep PyCUDA's object, which frees what it stands for when it is dropped."""
        self._objects[key] = thing
        self._releases.add(made, lambda: self._objects.pop(key))

    # Streams and events

    def stream(self, name: str, *, urgent: bool = False) -> Stream:
        """Make a stream; PyCUDA cannot make it urgent."""
        with self._current():
            thing = driver.Stream(_NON_BLOCKING)
        stream = Stream(int(thing.handle), name)
        self._keep(stream, stream.handle, thing)
        return stream

    def event(self, name: str, *, timing: bool = False) -> Event:
        """Make an event; its `handle` is a number of ours, as PyCUDA does not tell CUDA's."""
        flags = driver.event_flags
        with self._current():
            thing = driver.Event(flags.DEFAULT if timing else flags.DISABLE_TIMING)
        event = Event(next(self._handles), name)
        self._keep(event, event.handle, thing)
        return event

    def record(self, event: Event, stream: Stream) -> None:
        """Record it."""
        with self._current():
            self._objects[event.handle].record(self._objects[stream.handle])

    def wait(self, stream: Stream, event: Event) -> None:
        """Let the stream wait."""
        with self._current():
            self._objects[stream.handle].wait_for_event(self._objects[event.handle])

    def done(self, event: Event) -> bool:
        """Ask."""
        with self._current():
            return bool(self._objects[event.handle].query())

    def synchronize(self, event: Event) -> None:
        """Block."""
        with self._current():
            self._objects[event.handle].synchronize()

    def elapsed_ms(self, start: Event, end: Event) -> float:
        """Give the time between two events made with timing."""
        with self._current():
            return float(self._objects[end.handle].time_since(self._objects[start.handle]))

    # Memory

    def pinned(self, shape: tuple[int, ...], name: str) -> Pixels:
        """Allocate.

        Freed by `close`, or after it when nobody refers to the array any more: a picture on
        screen may live longer than what made it.
        """
        size = math.prod(shape)
        check_size(size, name)
        with self._current():
            flags = driver.host_alloc_flags.PORTABLE
            owner: Pixels = driver.pagelocked_zeros((size,), np.uint8, mem_flags=flags)
        memory = (ctypes.c_uint8 * size).from_address(owner.ctypes.data)
        # Whichever thread drops the last reference must have the context.
        weakref.finalize(memory, _free_host, self._context, [owner]).atexit = False
        pixels: Pixels = np.ctypeslib.as_array(memory).reshape(shape)
        self._releases.add(pixels, _nothing)
        return pixels

    def pin(self, pixels: Pixels) -> bool:
        """Refuse, unless `pinned` made the array.

        PyCUDA pins through a second array, and how it ties the two together is an error in NumPy
        ("Cannot set the NumPy array 'base' dependency more than once").
        """
        return pixels in self._releases

    def buffer(self, size: int, name: str) -> DeviceBuffer:
        """Allocate."""
        check_size(size, name)
        with self._current():
            thing = driver.mem_alloc(size)
        buffer = DeviceBuffer(int(thing), size, name)
        self._keep(buffer, buffer.address, thing)
        return buffer

    def upload(self, target: DeviceBuffer, source: Pixels, stream: Stream) -> None:
        """Copy."""
        check_copy(source, target)
        with self._current():
            driver.memcpy_htod_async(target.address, source, self._objects[stream.handle])

    def download(self, target: Pixels, source: DeviceBuffer, stream: Stream) -> None:
        """Copy."""
        check_copy(target, source)
        with self._current():
            driver.memcpy_dtoh_async(target, source.address, self._objects[stream.handle])

    def copy(self, target: DeviceBuffer, source: DeviceBuffer, stream: Stream) -> None:
        """Copy."""
        size = check_copy(source, target)
        with self._current():
            queue = self._objects[stream.handle]
            driver.memcpy_dtod_async(target.address, source.address, size, queue)

    def free(self, *made: Made) -> None:
        """Free these."""
        with self._current():
            driver.Context.synchronize()
            self._releases.free(*made)

    # Graphs

    def captured(self, enqueue: Callable[[], None], stream: Stream, name: str) -> Graph:
        """Say that there are none."""
        raise Unsupported("PyCUDA has no CUDA graphs; cuda-bindings has")

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Say that there are none."""
        raise Unsupported("PyCUDA has no CUDA graphs; cuda-bindings has")

    # OpenGL

    def register_gl(self, buffer: int, size: int) -> GlBuffer:
        """Register, to be overwritten."""
        if not self.has_gl:
            raise Unsupported("PyCUDA was built without OpenGL; cuda-bindings has it")
        from pycuda import gl as _gl

        gl: Any = _gl
        try:
            with self._current():
                flags = gl.graphics_map_flags.WRITE_DISCARD
                thing = gl.RegisteredBuffer(buffer, flags)
        except CudaError as exc:
            raise Unsupported(
                f"CUDA cannot write OpenGL buffers here ({exc}); "
                "the OpenGL context must be current, and of the same GPU"
            ) from exc
        made = GlBuffer(next(self._handles), buffer, size)
        self._objects[made.handle] = thing
        self._releases.add(made, lambda: self._unregister(made.handle))
        return made

    def _unregister(self, handle: int) -> None:
        thing = self._objects.pop(handle)
        try:
            thing.unregister()
        except driver.Error as exc:
            raise CudaError(str(exc)) from exc

    def unregister_gl(self, buffer: GlBuffer) -> None:
        """Unregister."""
        with self._current():
            self._releases.take(buffer)()

    def mapped(self, buffer: GlBuffer, stream: Stream) -> AbstractContextManager[DeviceBuffer]:
        """Map for the `with` block; unmapped also if that fails."""
        return self._mapped(buffer, stream)

    @contextmanager
    def _mapped(self, buffer: GlBuffer, stream: Stream) -> Iterator[DeviceBuffer]:
        with self._current():
            mapping = self._objects[buffer.handle].map(self._objects[stream.handle])
        try:
            with self._current():
                address, size = mapping.device_ptr_and_size()
            yield DeviceBuffer(int(address), int(size), f"OpenGL buffer {buffer.buffer}")
        finally:
            with self._current():
                mapping.unmap()  # in the stream of the mapping

    def close(self) -> None:
        """Wait for the device and free everything; failures are logged.

        The context itself goes with the last object in it.
        """
        if self._closed:
            return
        try:
            with self._current():
                try:
                    driver.Context.synchronize()
                except driver.Error as exc:
                    log.warning("before freeing its memory: %s", exc)
                self._releases.free_all()
        except CudaError as exc:
            log.warning("while closing the device: %s", exc)
        self._closed = True


def _nothing() -> None:
    """Leave it to the last reference."""


def _free_host(context: Any, owner: list[Pixels]) -> None:
    """Drop the array that PyCUDA frees the memory with, where it can do so."""
    try:
        context.push()
        try:
            owner.clear()
        finally:
            driver.Context.pop()
    except driver.Error as exc:
        log.warning("CUDA could not free pinned memory: %s", exc)


def _version_text(version: int) -> str:
    """Write CUDA's number of a version: 13010 is "13.1"."""
    return f"{version // 1000}.{version % 1000 // 10}"
