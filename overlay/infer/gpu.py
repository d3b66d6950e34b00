"""The GPU path: what all upscalers on CUDA share.

Two slots, three streams, and no wait of the host in the loop:

    host      submit 0          submit 1          poll 0 (asks, never blocks the device)
    copy      ┤upload 0├        ┤upload 1├
    compute             ┤ run 0 ├        ┤ run 1 ├
    download                     ┤ download 0 ├   ┤ download 1 ├

Each arrow between streams is an event. The upload of a frame overlaps the inference of the one
before; a third frame waits for nobody, as the pipeline never submits more than two.

A slot is the memory that one frame goes through, with its events:

    copy      waits for `inferred`    the last inference has read the slot's input
    compute   waits for `uploaded`    the frame is there
    compute   waits for `released`    the slot's last picture was downloaded, or drawn
    download  waits for `inferred`    the picture is there

As `poll` gives a picture only once it is done, the first and the third wait are met at once, save
after a frame that was given up on an error: its work may still run, and its slot is used again.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from engines.errors import EngineError
from engines.spec import Output
from overlay.cuda import Cuda, CudaError, DeviceBuffer, Event, Graph, Made, Stream
from overlay.errors import OverlayError
from overlay.frame import (
    BufferRing,
    DevicePicture,
    DeviceTimes,
    Frame,
    Lease,
    Picture,
    Pixels,
    Size,
    nothing,
)
from overlay.infer import Upscaler
from overlay.trace.deviceclock import CudaClock

log = logging.getLogger(__name__)

#: Frames submitted and not yet polled.
IN_FLIGHT = 2
#: Pictures that others hold: drawn, in the slot before the presenter, and on the way there.
_HELD = 3
#: Buffers of the capture source that are page-locked; its ring has a dozen.
_PINS = 32
#: What a slot may keep, frames and pictures, for work that was given up.
_KEPT = 2
_Kind = TypeVar("_Kind", bound=Made)

#: How long `poll` sleeps between two questions; the system adds its own 50 to 100 us.
_STEP_S = 50e-6


class Program(ABC):
    """What runs on the compute stream: a TensorRT engine, a PyTorch module.

    Its input is uint8 BGRA, (1, H, W, 4); its output uint8, (1, H*scale, W*scale, 4) or, for
    luma, (1, H*scale, W*scale). One inference runs at a time, in the order of the stream.
    """

    #: For people: "FP16, TensorRT-RTX 1.7".
    title: str
    #: Whether the library captures graphs by itself.
    own_graphs: bool = False

    @abstractmethod
    def prepare(self, cuda: Cuda, size: Size, stream: Stream) -> None:
        """Get ready for frames of a size; `enqueue` follows once, to warm up.

        Nothing is in the stream.

        Raises:
            EngineError: it does not take this size.
        """

    def attach(self, slot: int, source: DeviceBuffer, target: DeviceBuffer) -> None:  # noqa: B027
        """Look at a slot's buffers, after `prepare`: nothing is captured or in flight yet.

        Raises:
            OverlayError, EngineError: it cannot use them.
        """

    @abstractmethod
    def enqueue(
        self, slot: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream
    ) -> None:
        """Put one inference into a stream; the buffers of a slot are the same until `prepare`.

        Raises:
            OverlayError, EngineError: it cannot.
        """

    def capturable(self, stream: Stream) -> bool:
        """Whether `enqueue` may be captured in a graph; asked after the warm-up."""
        return True

    def captures_itself(self) -> bool:
        """Hear that `enqueue` was not captured; True for "prepare me again, with my own graphs"."""
        return False

    def warmed(self) -> None:  # noqa: B027 - most have nothing to keep
        """Hear that the warm-up is over: what was compiled for it can be stored."""

    @abstractmethod
    def close(self) -> None:
        """Free everything; idempotent. The device is idle."""


@dataclass(slots=True, eq=False)
class _Slot:
    """The memory that one frame goes through; events are named in the module's docstring.

    Attributes:
        shape: of the picture.
        staging: page-locked, for frames that are not.
        enqueue: puts the program's work for this slot into the compute stream.
        frame, lease: of the frame in flight; `lease` is the host memory its picture goes to,
            None where it stays on the device.
        submitted_ns: when its upload was asked for.
        kept: what work that was given up may still touch.
    """

    index: int
    shape: tuple[int, ...]
    input: DeviceBuffer
    output: DeviceBuffer
    staging: Pixels
    upload_begins: Event
    uploaded: Event
    infer_begins: Event
    inferred: Event
    download_begins: Event
    released: Event
    enqueue: Callable[[], None]
    reads: tuple[DeviceBuffer, ...]
    writes: tuple[DeviceBuffer, ...]
    graph: Graph | None = None
    frame: Frame | None = None
    lease: Lease | None = None
    submitted_ns: int = 0
    kept: list[object] = field(default_factory=list)

    def made(self) -> list[Made]:
        """List what the device holds for it, in the order of making."""
        events = (self.upload_begins, self.uploaded, self.infer_begins)
        more = (self.inferred, self.download_begins, self.released)
        graph = () if self.graph is None else (self.graph,)
        return [self.input, self.output, self.staging, *events, *more, *graph]


class _SlotLease:
    """The right to read a slot's output; it ends with the last reference to it."""

    __slots__ = ("_give_back", "_slot")

    def __init__(self, slot: _Slot, give_back: Callable[[_Slot], None]) -> None:
        self._slot = slot
        self._give_back = give_back

    def __del__(self) -> None:
        self._give_back(self._slot)


class GpuUpscaler(Upscaler):
    """A program on CUDA.

    The captured pixels are read where they are: the capture source's buffers are page-locked when
    they are first seen, and held until their upload is complete.

    Args:
        cuda: the device; stays open.
        program: what upscales; closed by `close`.
        model, backend: their names, on the command line.
        scale, output: as in `ModelSpec`.
        filter: shader for what is left between the result and the size on screen.
        download: give pictures in host memory; without it they stay on the device (see
            `DevicePicture`). An attribute too: it may be set, on the thread of `submit`, once a
            presenter finds that it cannot take them from there.
    Raises:
        CudaError: streams cannot be made.
    """

    slots = IN_FLIGHT

    def __init__(
        self,
        cuda: Cuda,
        program: Program,
        *,
        model: str,
        backend: str,
        scale: int,
        output: Output,
        filter: str = "bicubic",
        download: bool = True,
    ) -> None:
        self.model = model
        self.backend = backend
        self.scale = scale
        self.device = f"{cuda.device.name}, {program.title}"
        self.download = download
        self._cuda = cuda
        self._program = program
        self._output = output
        self._filter = filter
        self._count = IN_FLIGHT + (0 if download else _HELD)
        self._copy = cuda.stream("copy")
        self._compute = cuda.stream("compute", urgent=True)
        self._download = cuda.stream("download")
        self._clock = CudaClock(cuda, self._copy)
        self._size: Size | None = None
        self._all: list[_Slot] = []
        self._free: deque[_Slot] = deque()
        self._flying: deque[_Slot] = deque()
        self._returned: deque[_Slot] = deque()  # to be sorted; `_SlotLease` adds on any thread
        self._stale: list[_Slot] = []  # of an earlier size, to be freed outside of the loop
        self._pinned: list[Pixels] = []  # of `_ring`
        self._drafts: list[Made] = []
        self._seen: dict[tuple[int, int], Pixels | None] = {}  # by address; None: not pinned
        self._warned = self._closed = False
        self._broken = ""

    # Getting ready ---------------------------------------------------------------------------

    def warm_up(self, size: Size) -> None:
        """Allocate for frames of `size`, run once, capture the graphs.

        Raises:
            EngineError: the program does not take this size.
            CudaError: the device cannot, for want of memory say.
        """
        if size == self._size:
            return
        if self._closed:
            raise RuntimeError("the upscaler was closed")
        start = time.perf_counter()
        self._size = None
        self._retire()
        self._drafts.clear()
        try:
            self._allocate(size)
            self._prepare(size)
            graphs = "our" if self._capture() else "its own" if self._program.own_graphs else "no"
            if graphs == "no" and self._program.captures_itself():
                self._prepare(size)
                graphs = "its own"
        except BaseException:
            self._discard()
            raise
        self._drafts.clear()
        self._size = size
        took_ms = 1e3 * (time.perf_counter() - start)
        log.info("readied %s for %s in %.0f ms, %s graphs", self.model, size, took_ms, graphs)

    def _prepare(self, size: Size) -> None:
        self._program.prepare(self._cuda, size, self._compute)
        for slot in self._all:
            self._program.attach(slot.index, slot.input, slot.output)
        self._run_once(self._all[0])
        self._program.warmed()

    def _allocate(self, size: Size) -> None:
        shape = (size.height * self.scale, size.width * self.scale)
        self._shape = shape if self._output == "luma" else (*shape, 4)
        for index in range(self._count):
            self._all.append(self._new_slot(index, (size.height, size.width, 4)))
        self._free.extend(self._all)
        self._ring = BufferRing(self._new_picture)
        if self.download:
            self._allocate_pictures()

    def _allocate_pictures(self) -> None:
        leases = [self._ring.take() for _ in range(IN_FLIGHT + _HELD)]
        leases.clear()  # they are free again, and there

    def _new_picture(self) -> Pixels:
        pixels = self._draft(self._cuda.pinned(self._shape, f"picture {len(self._pinned)}"))
        self._pinned.append(pixels)
        return pixels

    def _draft(self, made: _Kind) -> _Kind:
        """Remember what was made for a size, to be freed if getting ready for it fails."""
        self._drafts.append(made)
        return made

    def _new_slot(self, index: int, shape: tuple[int, ...]) -> _Slot:
        def event(name: str) -> Event:
            return self._draft(self._cuda.event(f"{name} {index}", timing=True))

        source = self._draft(self._cuda.buffer(math.prod(shape), f"input {index}"))
        target = self._draft(self._cuda.buffer(math.prod(self._shape), f"output {index}"))
        return _Slot(
            index=index,
            shape=self._shape,
            input=source,
            output=target,
            staging=self._draft(self._cuda.pinned(shape, f"staging {index}")),
            upload_begins=event("upload begins"),
            uploaded=event("uploaded"),
            infer_begins=event("inference begins"),
            inferred=event("inferred"),
            download_begins=event("download begins"),
            released=event("released"),
            enqueue=lambda: self._program.enqueue(index, source, target, self._compute),
            reads=(source,),
            writes=(target,),
        )

    def _run_once(self, slot: _Slot) -> None:
        self._cuda.upload(slot.input, slot.staging, self._compute)
        self._cuda.compute(slot.enqueue, self._compute, slot.reads, slot.writes)
        self._cuda.record(slot.inferred, self._compute)
        self._cuda.synchronize(slot.inferred)

    def _capture(self) -> bool:
        """Capture a graph per slot; False where that cannot be."""
        if not self._cuda.has_graphs or not self._program.capturable(self._compute):
            return False
        try:
            for slot in self._all:
                slot.graph = self._captured(slot)
        except (OverlayError, EngineError) as exc:
            log.warning("%s runs without CUDA graphs: %s", self.model, exc)
            for slot in self._all:
                slot.graph = None
            return False
        return True

    def _captured(self, slot: _Slot) -> Graph:
        def enqueue() -> None:
            self._cuda.compute(slot.enqueue, self._compute, slot.reads, slot.writes)

        return self._draft(self._cuda.captured(enqueue, self._compute, f"inference {slot.index}"))

    # The loop --------------------------------------------------------------------------------

    def submit(self, frame: Frame) -> None:
        """Start on `frame`; a new size warms up first, which waits for the device.

        Raises:
            RuntimeError: too many frames are in flight.
            OverlayError, EngineError: it cannot be started; the frame is given up.
        """
        if len(self._flying) >= self.slots:
            raise RuntimeError(f"{self.slots} frames are in flight; poll before the next submit")
        if self._broken:
            raise CudaError(self._broken)
        if frame.size != self._size:
            self.warm_up(frame.size)
        slot = self._take()
        slot.frame = frame
        try:
            if self.download:
                slot.lease = self._take_picture()
            self._enqueue(slot, frame.pixels)
        except BaseException as exc:
            self._give_up(slot)
            if isinstance(exc, OverlayError):
                raise OverlayError(f"{self.model} failed on a frame: {exc}") from exc
            raise
        self._flying.append(slot)

    def _take(self) -> _Slot:
        """Give a slot that nobody uses.

        Raises:
            OverlayError: somebody holds too many pictures.
        """
        self._take_back()
        try:
            slot = self._free.popleft()
        except IndexError:
            raise OverlayError(
                f"all {len(self._all)} pictures of {self.model} on the GPU are held"
            ) from None
        if slot.kept and not self._is_settled(slot) and len(slot.kept) > _KEPT:
            self._returned.append(slot)
            raise OverlayError(f"{self.model} is busy with frames that were given up")
        return slot

    def _take_back(self) -> None:
        """Sort what was returned: of this size to be used again, of another to be freed."""
        while (slot := self._next_returned()) is not None:
            (self._free if slot in self._all else self._stale).append(slot)

    def _next_returned(self) -> _Slot | None:
        try:
            return self._returned.popleft()
        except IndexError:
            return None

    def _take_picture(self) -> Lease:
        if not self._pinned:  # pictures stayed on the device until now
            self._allocate_pictures()
        return self._ring.take()

    def _enqueue(self, slot: _Slot, pixels: Pixels) -> None:
        cuda, copy, compute = self._cuda, self._copy, self._compute
        source = self._source(slot, pixels)
        slot.submitted_ns = time.perf_counter_ns()
        cuda.wait(copy, slot.inferred)
        cuda.record(slot.upload_begins, copy)
        cuda.upload(slot.input, source, copy)
        cuda.record(slot.uploaded, copy)
        cuda.wait(compute, slot.uploaded)
        cuda.wait(compute, slot.released)
        cuda.record(slot.infer_begins, compute)
        if slot.graph is not None:
            cuda.launch(slot.graph, compute)
        else:
            cuda.compute(slot.enqueue, compute, slot.reads, slot.writes)
        cuda.record(slot.inferred, compute)
        if slot.lease is not None:
            cuda.wait(self._download, slot.inferred)
            cuda.record(slot.download_begins, self._download)
            cuda.download(slot.lease.buffer, slot.output, self._download)
            cuda.record(slot.released, self._download)

    def _source(self, slot: _Slot, pixels: Pixels) -> Pixels:
        """Give page-locked memory with the frame: its own, or a copy."""
        pinned = self._pinned_frame(pixels) if pixels.flags.c_contiguous else None
        if pinned is not None:
            return pinned
        if not self._warned:
            self._warned = True
            why = "cannot be page-locked" if pixels.flags.c_contiguous else "are not contiguous"
            log.info("captured frames %s: each is copied on the host first", why)
        if slot.kept and not self._cuda.done(slot.uploaded):
            raise OverlayError("its staging buffer is read by a frame that was given up")
        np.copyto(slot.staging, pixels)
        return slot.staging

    def _pinned_frame(self, pixels: Pixels) -> Pixels | None:
        """Page-lock memory that is seen for the first time; what is locked is held."""
        place = (pixels.__array_interface__["data"][0], pixels.nbytes)
        if place not in self._seen:
            if len(self._seen) >= _PINS:
                return None
            self._seen[place] = pixels if self._cuda.pin(pixels) else None
        return self._seen[place]

    def poll(self, timeout_s: float) -> Picture | None:
        """Give the oldest picture once it is done; asks, and sleeps in between."""
        if not self._flying:
            return None
        slot = self._flying[0]
        try:
            if not self._wait(slot, timeout_s):
                return None
            picture = self._finish(slot)
        except BaseException as exc:
            self._flying.popleft()
            self._give_up(slot)
            if isinstance(exc, OverlayError):
                raise OverlayError(f"{self.model} failed on a frame: {exc}") from exc
            raise
        self._flying.popleft()
        slot.frame = slot.lease = None
        slot.kept.clear()
        if picture.device is None:
            self._returned.append(slot)
        return picture

    def _wait(self, slot: _Slot, timeout_s: float) -> bool:
        """Ask whether a slot's frame is done until it is, or the time is over."""
        last = slot.inferred if slot.lease is None else slot.released
        if self._cuda.done(last):
            return True
        end = time.perf_counter() + timeout_s
        while (left_s := end - time.perf_counter()) > 0:
            time.sleep(min(left_s, _STEP_S))
            if self._cuda.done(last):
                return True
        return False

    def _finish(self, slot: _Slot) -> Picture:
        assert slot.frame is not None, "submit sets it"
        times = self._times(slot, time.perf_counter_ns())
        assert times.infer is not None
        device, lease = None, slot.lease
        if lease is None:
            device = DevicePicture(
                self._cuda, slot.output, slot.shape, slot.inferred, slot.released,
                _SlotLease(slot, self._give_back),
            )  # fmt: skip
        return Picture(
            frame=slot.frame,
            kind=self._output,
            pixels=nothing(slot.shape) if lease is None else lease.buffer,
            scale=self.scale,
            model=self.model,
            backend=self.backend,
            shader=self._filter,
            lease=lease,
            infer_ns=times.infer.duration_ns,
            device=device,
            times=times,
        )

    def _times(self, slot: _Slot, seen_ns: int) -> DeviceTimes:
        """Read the events of a frame that was seen to be done at `seen_ns`."""
        infer = (slot.infer_begins, slot.inferred)
        download = None if slot.lease is None else (slot.download_begins, slot.released)
        upload = (slot.upload_begins, slot.uploaded)
        return self._clock.times(slot.submitted_ns, seen_ns, upload, infer, download)

    @property
    def in_flight(self) -> int:
        """How many frames were submitted and not yet given back by `poll`."""
        return len(self._flying)

    # After errors, sizes and the end ---------------------------------------------------------

    def _give_up(self, slot: _Slot) -> None:
        """Let a frame go whose work may still run: what comes next in its slot waits for that."""
        slot.kept += [slot.frame, slot.lease]
        slot.frame = slot.lease = None
        try:
            self._cuda.record(slot.uploaded, self._copy)
            self._cuda.record(slot.inferred, self._compute)
            self._cuda.record(slot.released, self._download)
        except CudaError as exc:
            self._broken = f"{self.model} cannot go on: {exc}"
        self._returned.append(slot)

    def _is_settled(self, slot: _Slot) -> bool:
        """Whether work that was given up is done; drops what it may have touched."""
        if not all(self._cuda.done(mark) for mark in (slot.uploaded, slot.inferred, slot.released)):
            return False
        slot.kept.clear()
        return True

    def _give_back(self, slot: _Slot) -> None:
        """Take back a picture that stayed on the device; on any thread."""
        self._returned.append(slot)
        if self._closed:
            self._free_returned()

    def _retire(self) -> None:
        """Free what a size needed; slots in flight, or held by others, are freed later."""
        self._take_back()
        retired = [*self._stale, *self._free]
        for kept in (self._stale, self._free, self._all):
            kept.clear()
        for slot in self._flying:
            self._cuda.synchronize(slot.inferred)
        made: list[Made] = [one for slot in retired for one in slot.made()]
        made += self._pinned
        self._pinned.clear()
        if made:
            self._cuda.free(*made)
        while self._seen:
            _, pixels = self._seen.popitem()
            with suppress(ValueError):  # somebody else had locked it, and has freed it
                self._cuda.free(*([] if pixels is None else [pixels]))

    def _discard(self) -> None:
        """Free what was made for a size that cannot be had."""
        for kept in (self._free, self._all, self._pinned):
            kept.clear()
        drafts = self._drafts.copy()
        self._drafts.clear()
        with suppress(CudaError):  # the error that led here is the one to tell of
            self._cuda.free(*drafts)

    def _free_returned(self) -> None:
        """Free what others held beyond the end; each is taken by one thread only."""
        while (slot := self._next_returned()) is not None:
            with suppress(CudaError):  # it was freed with the whole device
                self._cuda.free(*slot.made())

    def close(self) -> None:
        """Wait for what is in flight and free everything but what others hold; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._size = None
        self._returned.extend(self._flying)
        self._flying.clear()
        try:
            self._retire()
        except CudaError as exc:
            log.warning("%s was not freed properly: %s", self.model, exc)
        finally:
            self._program.close()
        with suppress(CudaError):  # the whole device was closed
            self._clock.close()
            self._cuda.free(self._copy, self._compute, self._download)
        self._free_returned()
