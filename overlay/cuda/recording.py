"""The fake of the seam: no GPU, late copies, and an eye on every access.

Copies and programs run on host memory behind made-up addresses, so that results can be compared
bit by bit. Nothing runs when it is asked for: every stream is a queue, and the queues advance in
any order that the waits allow (a seeded dice) when the host asks (`done`, `synchronize`, `close`)
or the test says so (`advance`). What no wait protects is therefore often wrong; and whether the
dice show it or not, `overlay.cuda.races` tells of every two accesses that nothing orders.

The host is one timeline, whatever the thread: that threads hand over to each other properly is
not checked here. What the host does with pinned memory is seen where the test says so
(`host_read`, `host_write`), and else by its effect: a source that changed before its copy ran is
a race, and the target of a download holds rubbish until the download ran.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

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
from overlay.cuda.late import OPENGL, RUBBISH, LateDevice, Operation, Queue, Range, Run, inside
from overlay.cuda.races import Allocation, Race, Timeline, join
from overlay.cuda.releases import describe
from overlay.frame import Pixels

P = ParamSpec("P")
R = TypeVar("R")

_PAGE = 4096


class Forbidden(AssertionError):
    """A call that waits for the device, in the loop, where nothing may."""


@dataclass(slots=True)
class _Step:
    """Work as it was asked for: what a graph keeps."""

    kind: str
    reads: Sequence[DeviceBuffer | Pixels]
    writes: Sequence[DeviceBuffer | Pixels]
    run: Run


@dataclass(slots=True)
class _Capture:
    stream: Stream
    name: str
    steps: list[_Step] = field(default_factory=list)
    events: set[int] = field(default_factory=set)
    broken: str = ""


@dataclass(slots=True)
class _GlState:
    """An OpenGL buffer: two addresses that it is mapped to in turn."""

    registered: GlBuffer
    allocation: Allocation
    addresses: tuple[int, int]
    turn: int = 0
    mapped: bool = False


def _call(
    *, waits: bool = False, capturable: bool = False
) -> Callable[
    [Callable[Concatenate[RecordingCuda, P], R]], Callable[Concatenate[RecordingCuda, P], R]
]:
    """Count the calls of a method, one at a time; fail those that are out of place or told to.

    Args:
        waits: it waits for the device, so it is forbidden in the loop.
        capturable: it may be called during a capture.
    """

    def decorate(
        method: Callable[Concatenate[RecordingCuda, P], R],
    ) -> Callable[Concatenate[RecordingCuda, P], R]:
        name = method.__name__.strip("_")

        @functools.wraps(method)
        def call(self: RecordingCuda, /, *args: P.args, **names: P.kwargs) -> R:
            with self._lock:
                self._enter(name, waits, capturable)
                return method(self, *args, **names)

        return call

    return decorate


class RecordingCuda(Cuda):
    """Record, order and check; run late, on the host.

    Args:
        seed: of the dice that choose which stream advances, and how far `done` lets them.
        graphs: whether `captured` works.
        gl: whether `register_gl` works.
        pinnable: whether `pin` works.
        drop: a wait to leave out, (stream name, event name), to see that it is missed; with
            "host" for the stream `done` says True, and `synchronize` returns, at once.

    Attributes:
        log: everything that was asked for, in that order; clear it as you like.
        waits: all waits there were, (stream name, event name), "host" for `done`; see `drop`.
        calls: how often each method was called.
        complaints: every Race and Forbidden that was raised, for when somebody caught it.
    """

    name = "recording"

    def __init__(
        self,
        seed: int = 0,
        *,
        graphs: bool = True,
        gl: bool = True,
        pinnable: bool = True,
        drop: tuple[str, str] | None = None,
    ) -> None:
        self.device = Device("recording", (0, 0), "0.0", 1 << 40)
        self.has_graphs = graphs
        self.has_gl = gl
        self.pinnable = pinnable
        self.drop = drop
        self._late = LateDevice(seed)
        self.log = self._late.log
        self.complaints = self._late.complaints
        self.waits: set[tuple[str, str]] = set()
        self.calls: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._failures: dict[str, list[int]] = {}
        self._closed = self._in_loop = False
        self._handles = 0x1000
        self._marks: dict[int, Operation] = {}
        self._timed: dict[int, bool] = {}
        self._next_address = 0x7000_0000_0000
        self._device: dict[int, Allocation] = {}  # by address
        self._pinned: dict[int, Allocation] = {}  # by address of the host
        self._graphs: dict[int, tuple[list[_Step], Operation | None]] = {}
        self._gl_states: dict[int, _GlState] = {}
        self._capture: _Capture | None = None
        self._computing: tuple[Stream, Sequence[DeviceBuffer], Sequence[DeviceBuffer]] | None = None
        self._kernels = 0

    # What only the fake has: time, the host, OpenGL, failures

    def advance(self, steps: int | None = None) -> int:
        """Let the device run up to `steps` operations, all by default; gives how many ran."""
        with self._lock:
            return self._late.advance(steps)

    def kernel(self, function: Callable[[], None], stream: Stream) -> None:
        """Put a function into a stream: what a program's `enqueue` does on this device.

        It is called when its turn comes (again for each launch, if it was captured), and works on
        `array` of the buffers that the surrounding `compute` names.
        """
        with self._lock:
            if self._computing is None:
                raise RuntimeError("a kernel outside compute(): nothing says what it touches")
            inside, reads, writes = self._computing
            if inside is not stream:
                raise RuntimeError(f"a kernel in {stream.name}, in compute() for {inside.name}")
            self._kernels += 1
            self._add(_Step("compute", reads, writes, lambda _reads, _writes: function()), stream)

    def array(self, buffer: DeviceBuffer) -> Pixels:
        """Give the bytes of a buffer as they are now: uint8, (size,).

        In a kernel only of those that its `compute` names, read-only unless it writes them;
        elsewhere of any, for the test to look at.
        """
        with self._lock:
            found = self._device_range(buffer, must_be_mapped=False)
            work = self._late.running
            if work is None or any(inside(found, one) for one in work.writes):
                return found.pixels()
            if not any(inside(found, one) for one in work.reads):
                raise self._late.complain(
                    Race(f"{work.operation} touches {buffer.name}, which it does not name")
                )
            pixels = found.pixels()
            pixels.flags.writeable = False
            return pixels

    def host_read(self, pixels: Pixels) -> None:
        """Note that the host reads these pixels now.

        Raises:
            Race: a copy into them was not seen to be done.
        """
        self._host_access("host read", pixels, writes=False)

    def host_write(self, pixels: Pixels) -> None:
        """Note that the host writes these pixels now.

        Raises:
            Race: a copy from or into them was not seen to be done.
        """
        self._host_access("host write", pixels, writes=True)

    def draw_gl(self, buffer: GlBuffer) -> Pixels:
        """Let OpenGL read the whole buffer; what it read is in the array once that ran.

        Raises:
            Race: it is mapped, or work on it was not ordered before its unmapping.
        """
        with self._lock:
            state = self._gl_states[buffer.handle]
            if state.mapped:
                raise self._late.complain(
                    Race(f"OpenGL draws {state.allocation.name}, still mapped")
                )
            drawn = np.full(buffer.size, RUBBISH, np.uint8)
            join(self._late.opengl.clock, self._late.host.clock)
            whole = Range(state.allocation, 0, buffer.size)
            self._late.push(
                self._late.queues[OPENGL],
                "draw",
                reads=[whole],
                run=lambda reads, _writes: np.copyto(drawn, reads[0]),
            )
            return drawn

    def enter_loop(self) -> None:
        """From now on calls that wait for the device are Forbidden."""
        self._in_loop = True

    def leave_loop(self) -> None:
        """Allow them again."""
        self._in_loop = False

    def fail(self, method: str, nth: int = 1) -> None:
        """Let the nth call of a method from now on raise CudaError ("map_gl", "unmap_gl" too)."""
        self._failures.setdefault(method, []).append(self.calls[method] + nth)

    def operations(self, kind: str, stream: str | None = None) -> list[Operation]:
        """List what is in the log of one kind, in one stream or in all."""
        return [
            one for one in self.log if one.kind == kind and (stream is None or one.stream == stream)
        ]

    @property
    def device_bytes(self) -> int:
        """How much device memory is allocated, without OpenGL's."""
        shared = {address for one in self._gl_states.values() for address in one.addresses}
        return sum(one.data.size for key, one in self._device.items() if key not in shared)

    @property
    def pinned_bytes(self) -> int:
        """How much host memory is page-locked."""
        return sum(one.data.size for one in self._pinned.values())

    @property
    def registered(self) -> list[GlBuffer]:
        """Which OpenGL buffers are registered."""
        return [state.registered for state in self._gl_states.values()]

    # Streams and events

    @_call(waits=True)
    def stream(self, name: str, *, urgent: bool = False) -> Stream:
        """Make a queue."""
        stream = Stream(self._handle(), name)
        self._late.queues[stream.handle] = Queue(Timeline(stream.handle, name))
        return stream

    @_call(waits=True)
    def event(self, name: str, *, timing: bool = False) -> Event:
        """Make a mark."""
        event = Event(self._handle(), name)
        self._timed[event.handle] = timing
        return event

    @_call(capturable=True)
    def record(self, event: Event, stream: Stream) -> None:
        """Put a mark at the end of the queue."""
        self._known(event)
        if self._is_captured(stream):
            self._capture_of(stream).events.add(event.handle)
            return
        self._marks[event.handle] = self._late.push(self._queue(stream), "record", name=event.name)

    @_call(capturable=True)
    def wait(self, stream: Stream, event: Event) -> None:
        """Hold the queue until the mark's newest record is reached."""
        self._known(event)
        self.waits.add((stream.name, event.name))
        if self._capture is not None:
            if event.handle in self._capture.events:
                if self._is_captured(stream):
                    return
                raise self._break(f"lets {stream.name} wait for an event of the capture")
            if self._is_captured(stream):
                raise self._break(f"waits for {event.name}, which was recorded outside")
        mark = self._marks.get(event.handle)
        if mark is None or self.drop == (stream.name, event.name):
            return
        queue = self._queue(stream)
        join(queue.timeline.clock, mark.stamp.clock)
        self._late.push(queue, "wait", name=event.name, after=mark)

    @_call()
    def done(self, event: Event) -> bool:
        """Ask, after the device was given a little time."""
        self._known(event)
        mark = self._marks.get(event.handle)
        if mark is None:
            return True
        self.waits.add(("host", event.name))
        if self.drop == ("host", event.name):
            return True
        if not mark.done:
            self.advance(self._late.some())
        if mark.done:
            self._seen(mark, "done", event.name)
        return mark.done

    @_call(waits=True)
    def synchronize(self, event: Event) -> None:
        """Run what it takes, and perhaps more."""
        self._known(event)
        mark = self._marks.get(event.handle)
        self.waits.add(("host", event.name))
        if mark is None or self.drop == ("host", event.name):
            return
        while not mark.done:
            self.advance(1)
        self._seen(mark, "synchronize", event.name)

    @_call()
    def elapsed_ms(self, start: Event, end: Event) -> float:
        """Count the work that ran between the two, `late.WORK_MS` each."""
        for event in (start, end):
            self._known(event)
            if not self._timed[event.handle]:
                raise CudaError(
                    f"cudaErrorInvalidResourceHandle: {event.name} was made without timing"
                )
        first, last = self._marks.get(start.handle), self._marks.get(end.handle)
        if first is None or last is None:
            raise CudaError(
                f"cudaErrorInvalidResourceHandle: {start.name} or {end.name} was never recorded"
            )
        if not (first.done and last.done):
            raise CudaError(f"cudaErrorNotReady: {start.name} to {end.name}")
        return last.at_ms - first.at_ms

    # Memory

    @_call(waits=True)
    def pinned(self, shape: tuple[int, ...], name: str) -> Pixels:
        """Allocate host memory that counts as page-locked."""
        check_size(math.prod(shape), name)
        pixels = np.zeros(shape, np.uint8)
        self._pinned[_address(pixels)] = Allocation(pixels.reshape(-1), name)
        return pixels

    @_call()
    def pin(self, pixels: Pixels) -> bool:
        """Count somebody's memory as page-locked; it is kept until `close`."""
        data = whole_bytes(pixels)
        start, end = _address(data), _address(data) + data.nbytes
        for address, allocation in self._pinned.items():
            if start < address + allocation.data.nbytes and address < end:
                return (start, end) == (address, address + allocation.data.nbytes)
        if not self.pinnable or not data.nbytes:
            return False
        self._pinned[start] = Allocation(data, f"host memory at {start:#x}")
        return True

    @_call(waits=True)
    def buffer(self, size: int, name: str) -> DeviceBuffer:
        """Allocate memory that holds rubbish."""
        check_size(size, name)
        if size + self.device_bytes > self.device.memory_bytes:
            raise CudaError(f"cudaErrorMemoryAllocation: {name}, {size} bytes")
        address = self._new_address(size)
        self._device[address] = Allocation(np.full(size, RUBBISH, np.uint8), name)
        return DeviceBuffer(address, size, name)

    @_call(capturable=True)
    def upload(self, target: DeviceBuffer, source: Pixels, stream: Stream) -> None:
        """Copy later, from what `source` holds now; it must not change before."""
        part = _part(target, check_copy(source, target))
        data = whole_bytes(source)
        if self._host_range(data) is None:  # staged by the driver, which may wait for that
            self._forbid_in_loop("upload from memory that is not pinned")
            held = data.copy()

            def staged(_reads: list[Pixels], writes: list[Pixels]) -> None:
                np.copyto(writes[0], held)

            self._add(_Step("upload", [], [part], staged), stream)
            return
        self._add(_Step("upload", [data], [part], _copy), stream)

    @_call(capturable=True)
    def download(self, target: Pixels, source: DeviceBuffer, stream: Stream) -> None:
        """Copy later; at once, after all before, into memory that is not pinned."""
        part = _part(source, check_copy(target, source))
        data = whole_bytes(target)
        if self._host_range(data) is not None:
            self._add(_Step("download", [part], [data], _copy), stream)
            return
        self._forbid_in_loop("download into memory that is not pinned")
        if self._is_captured(stream):
            raise self._break("downloads into memory that is not pinned")
        copy: Run = lambda reads, _writes: np.copyto(data, reads[0])  # noqa: E731
        operation = self._put(_Step("download", [part], [], copy), stream)
        while not operation.done:
            self.advance(1)
        join(self._late.host.clock, operation.stamp.clock)

    @_call(capturable=True)
    def copy(self, target: DeviceBuffer, source: DeviceBuffer, stream: Stream) -> None:
        """Copy later."""
        part = _part(target, check_copy(source, target))
        self._add(_Step("copy", [source], [part], _copy), stream)

    @_call()
    def free(self, *made: Made) -> None:
        """Run everything and forget these, so that using them again fails."""
        self._forbid_in_loop("free")
        self._drain()
        for one in reversed(made):
            if isinstance(one, GlBuffer):
                self.unregister_gl(one)
            elif not self._forget(one):
                raise ValueError(f"{describe(one)} is not of this device, or was freed")

    def _forget(self, made: Made) -> bool:
        if isinstance(made, np.ndarray):
            return self._pinned.pop(_address(made), None) is not None
        if isinstance(made, DeviceBuffer):
            return self._device.pop(made.address, None) is not None
        self._marks.pop(made.handle, None)
        kinds: tuple[dict[int, Any], ...] = (self._late.queues, self._timed, self._graphs)
        return any([kind.pop(made.handle, None) is not None for kind in kinds])

    # Graphs

    @_call(waits=True)
    def captured(self, enqueue: Callable[[], None], stream: Stream, name: str) -> Graph:
        """Keep what `enqueue` puts into the stream."""
        if not self.has_graphs:
            raise Unsupported("this device was made without graphs")
        self._begin_capture(stream, name)
        try:
            enqueue()
        except BaseException:
            self._capture = None
            raise
        return self._end_capture()

    def _begin_capture(self, stream: Stream, name: str) -> None:
        self._queue(stream)
        self._capture = _Capture(stream, name)

    def _end_capture(self) -> Graph:
        capture, self._capture = self._capture, None
        assert capture is not None
        if capture.broken:
            raise CudaError(f"cudaErrorStreamCaptureInvalidated: {capture.name} {capture.broken}")
        graph = Graph(self._handle(), capture.name)
        self._graphs[graph.handle] = (capture.steps, None)
        return graph

    @_call(capturable=True)
    def launch(self, graph: Graph, stream: Stream) -> None:
        """Put what was kept into the stream; it waits for the graph's last launch."""
        if graph.handle not in self._graphs:
            raise CudaError(f"cudaErrorInvalidResourceHandle: {graph.name} is not of this device")
        steps, last = self._graphs[graph.handle]
        if self._is_captured(stream):
            self._capture_of(stream).steps.extend(steps)
            return
        queue = self._queue(stream)
        if last is not None:
            join(queue.timeline.clock, last.stamp.clock)
            self._late.push(queue, "wait", name=graph.name, after=last)
        for step in steps:
            last = self._put(step, stream, graph.name)
        self._graphs[graph.handle] = (steps, last)

    # OpenGL

    @_call(waits=True)
    def register_gl(self, buffer: int, size: int) -> GlBuffer:
        """Make memory for a buffer object."""
        if not self.has_gl:
            raise Unsupported("this device was made without OpenGL")
        made = GlBuffer(self._handle(), buffer, size)
        allocation = Allocation(np.full(size, RUBBISH, np.uint8), f"OpenGL buffer {buffer}")
        addresses = (self._new_address(size), self._new_address(size))
        self._device.update(dict.fromkeys(addresses, allocation))
        self._gl_states[made.handle] = _GlState(made, allocation, addresses)
        return made

    @_call(waits=True)
    def unregister_gl(self, buffer: GlBuffer) -> None:
        """Forget it, once all work is done."""
        state = self._gl_states.get(buffer.handle)
        if state is None:
            raise ValueError(f"OpenGL buffer {buffer.buffer} is not of this device, or was freed")
        if state.mapped:
            raise CudaError(f"cudaErrorAlreadyMapped: OpenGL buffer {buffer.buffer}")
        self._drain()
        for address in state.addresses:
            del self._device[address]
        del self._gl_states[buffer.handle]

    def mapped(self, buffer: GlBuffer, stream: Stream) -> AbstractContextManager[DeviceBuffer]:
        """Map it, each time to another address."""
        return self._mapped(buffer, stream)

    @contextmanager
    def _mapped(self, buffer: GlBuffer, stream: Stream) -> Iterator[DeviceBuffer]:
        state = self._map_gl(buffer, stream)
        name = state.allocation.name
        try:
            yield DeviceBuffer(state.addresses[state.turn], buffer.size, name)
        finally:
            self._unmap_gl(buffer, stream)

    @_call()
    def _map_gl(self, buffer: GlBuffer, stream: Stream) -> _GlState:
        state = self._gl_states.get(buffer.handle)
        if state is None:
            raise CudaError(
                f"cudaErrorInvalidResourceHandle: OpenGL buffer {buffer.buffer} is not registered"
            )
        if state.mapped:
            raise CudaError(f"cudaErrorAlreadyMapped: OpenGL buffer {buffer.buffer}")
        state.mapped, state.turn = True, 1 - state.turn
        join(self._late.opengl.clock, self._late.host.clock)
        issued = self._late.push(self._late.queues[OPENGL], "wait", name="map")
        queue = self._queue(stream)
        join(queue.timeline.clock, issued.stamp.clock)
        whole = Range(state.allocation, 0, buffer.size)
        self._late.push(queue, "map", writes=[whole], after=issued)
        return state

    @_call()
    def _unmap_gl(self, buffer: GlBuffer, stream: Stream) -> None:
        state = self._gl_states[buffer.handle]
        whole = Range(state.allocation, 0, buffer.size)
        unmapped = self._late.push(self._queue(stream), "unmap", writes=[whole])
        state.mapped = False
        join(self._late.opengl.clock, unmapped.stamp.clock)
        self._late.push(self._late.queues[OPENGL], "wait", name="unmap", after=unmapped)

    # Programs

    def compute(
        self,
        enqueue: Callable[[], None],
        stream: Stream,
        reads: Sequence[DeviceBuffer],
        writes: Sequence[DeviceBuffer],
    ) -> None:
        """Note the accesses, and what `kernel` is given by `enqueue`."""
        self._compute(enqueue, stream, reads, writes)

    @_call(capturable=True)
    def _compute(
        self,
        enqueue: Callable[[], None],
        stream: Stream,
        reads: Sequence[DeviceBuffer],
        writes: Sequence[DeviceBuffer],
    ) -> None:
        if self._computing is not None:
            raise RuntimeError("compute() inside compute()")
        self._computing, self._kernels = (stream, tuple(reads), tuple(writes)), 0
        try:
            enqueue()
        finally:
            self._computing = None
        if not self._kernels:
            self._add(_Step("compute", tuple(reads), tuple(writes), _nothing), stream)

    def close(self) -> None:
        """Run everything that was asked for and forget it; idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._in_loop = False
            try:
                self._drain()
            finally:
                self._device.clear()
                self._pinned.clear()
                self._gl_states.clear()
                self._graphs.clear()

    # Inside

    def _enter(self, name: str, waits: bool, capturable: bool) -> None:
        self.calls[name] += 1
        if self._closed:
            raise CudaError(f"{name}: the device was closed")
        if waits:
            self._forbid_in_loop(name)
        if self._capture is not None and not capturable:
            raise self._break(f"calls {name}, which a capture does not allow")
        if self.calls[name] in self._failures.get(name, ()):
            raise CudaError(f"cudaErrorUnknown: {name} was told to fail")

    def _forbid_in_loop(self, what: str) -> None:
        if self._in_loop:
            raise self._late.complain(Forbidden(f"{what} in the loop, where nothing may wait"))

    def _break(self, reason: str) -> CudaError:
        assert self._capture is not None
        self._capture.broken = reason
        return CudaError(f"cudaErrorStreamCaptureUnsupported: {self._capture.name} {reason}")

    def _is_captured(self, stream: Stream) -> bool:
        return self._capture is not None and self._capture.stream is stream

    def _capture_of(self, stream: Stream) -> _Capture:
        assert self._capture is not None
        assert self._capture.stream is stream
        return self._capture

    def _handle(self) -> int:
        self._handles += 1
        return self._handles

    def _new_address(self, size: int) -> int:
        address = self._next_address
        self._next_address += (size // _PAGE + 2) * _PAGE  # never two next to each other
        return address

    def _queue(self, stream: Stream) -> Queue:
        try:
            return self._late.queues[stream.handle]
        except KeyError:
            raise CudaError(
                f"cudaErrorInvalidResourceHandle: {stream.name} is not of this device"
            ) from None

    def _known(self, event: Event) -> None:
        if event.handle not in self._timed:
            raise CudaError(f"cudaErrorInvalidResourceHandle: {event.name} is not of this device")

    def _add(self, step: _Step, stream: Stream) -> None:
        """Keep a step in the capture, or put it into the queue."""
        if self._is_captured(stream):
            for one in (*step.reads, *step.writes):
                self._range(one)  # unknown memory fails now
            self._capture_of(stream).steps.append(step)
        else:
            self._put(step, stream)

    def _put(self, step: _Step, stream: Stream, graph: str = "") -> Operation:
        reads = [self._range(one) for one in step.reads]
        writes = [self._range(one) for one in step.writes]
        run = step.run
        if step.kind == "upload" and reads and not self._late.is_pending(reads[0], ("download",)):
            run = self._watched(reads[0].pixels(), run)
        if step.kind == "download" and writes and not self._late.is_pending(writes[0]):
            writes[0].pixels().fill(RUBBISH)
        return self._late.push(
            self._queue(stream), step.kind, name=graph, run=run, reads=reads, writes=writes
        )

    def _watched(self, source: Pixels, run: Run) -> Run:
        """Copy, and complain if the source is not what it was when the copy was asked for."""
        held = source.copy()

        def check(reads: list[Pixels], writes: list[Pixels]) -> None:
            if not np.array_equal(held, reads[0]):
                title = self._late.running and self._late.running.operation
                raise self._late.complain(
                    Race(f"the source of {title} was written before it was read")
                )
            run(reads, writes)

        return check

    def _seen(self, mark: Operation, kind: str, name: str) -> None:
        """Let the host come after a mark."""
        join(self._late.host.clock, mark.stamp.clock)
        operation = self._late.note(kind, self._late.host, name, (), ())
        operation.done = True

    def _host_access(self, kind: str, pixels: Pixels, *, writes: bool) -> None:
        with self._lock:
            found = self._host_range(whole_bytes(pixels))
            if found is None:
                return
            ranges = [found]
            operation = self._late.note(
                kind, self._late.host, "", () if writes else ranges, ranges if writes else ()
            )
            operation.done = True

    def _drain(self) -> None:
        self.advance()
        assert not any(queue.work for queue in self._late.queues.values())

    def _range(self, memory: DeviceBuffer | Pixels) -> Range:
        if isinstance(memory, DeviceBuffer):
            return self._device_range(memory)
        found = self._host_range(memory)
        if found is None:
            raise CudaError("host memory of a graph is not pinned any more")
        return found

    def _device_range(self, buffer: DeviceBuffer, must_be_mapped: bool = True) -> Range:
        found = _find(self._device, buffer.address, buffer.size)
        if found is None:
            raise CudaError(
                f"cudaErrorInvalidValue: {buffer.name} ({buffer.size} bytes at "
                f"{buffer.address:#x}) is no memory of this device, or was freed"
            )
        base = buffer.address - found.start
        for state in self._gl_states.values() if must_be_mapped else ():
            if base in state.addresses and not (
                state.mapped and base == state.addresses[state.turn]
            ):
                raise self._late.complain(Race(f"{buffer.name} is used where it is not mapped"))
        return found

    def _host_range(self, data: Pixels) -> Range | None:
        return _find(self._pinned, _address(data), data.nbytes)


def _copy(reads: list[Pixels], writes: list[Pixels]) -> None:
    np.copyto(writes[0], reads[0])


def _nothing(reads: list[Pixels], writes: list[Pixels]) -> None:
    pass


def _find(allocations: dict[int, Allocation], address: int, size: int) -> Range | None:
    """Find the allocation that holds all of some bytes."""
    for base, allocation in allocations.items():
        if base <= address and address + size <= base + allocation.data.nbytes:
            return Range(allocation, address - base, address - base + size)
    return None


def _address(pixels: Pixels) -> int:
    address: int = pixels.__array_interface__["data"][0]
    return address


def _part(buffer: DeviceBuffer, size: int) -> DeviceBuffer:
    """Give the first bytes of a buffer."""
    return DeviceBuffer(buffer.address, size, buffer.name)
