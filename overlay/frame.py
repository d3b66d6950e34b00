"""What travels along the frame path: regions, frames, pictures, and the buffers they live in.

Pixels are never copied to be handed on. A `BufferRing` owns the memory; whoever holds a
`Frame` or a `Picture` holds a `Lease` on one buffer, and the buffer returns to its ring when the
last reference is dropped. Nothing on the path has to remember to release anything, also not
after an exception. (This relies on CPython's reference counting.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from overlay.cuda import Cuda, DeviceBuffer, Event

Pixels = NDArray[np.uint8]


class Size(NamedTuple):
    """Width and height in physical pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle in physical pixels, in the coordinates of the whole desktop."""

    left: int
    top: int
    width: int
    height: int

    @property
    def size(self) -> Size:
        return Size(self.width, self.height)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}+{self.left}+{self.top}"


class Lease:
    """The right to use one buffer of a ring; it ends with the last reference to it."""

    __slots__ = ("_free", "buffer")

    def __init__(self, buffer: Pixels, free: deque[Pixels]) -> None:
        self.buffer = buffer
        self._free = free

    def __del__(self) -> None:
        self._free.append(self.buffer)


class BufferRing:
    """Buffers of one shape, allocated on first need and used again for ever after.

    Thread-safe: `take` may be called on one thread while leases end on others.

    Args:
        allocate: makes one buffer, an uint8 array of the ring's shape.
        limit: how many buffers there may be; the stages of the frame path hold eight at most.
    """

    def __init__(self, allocate: Callable[[], Pixels], limit: int = 12) -> None:
        self._allocate = allocate
        self._limit = limit
        self._count = 0
        self._free: deque[Pixels] = deque()  # append and pop are atomic

    @classmethod
    def of_shape(cls, shape: tuple[int, ...], limit: int = 12) -> BufferRing:
        """Make a ring of plain host memory."""
        return cls(lambda: np.zeros(shape, np.uint8), limit)

    def take(self) -> Lease:
        """Lease a free buffer.

        Raises:
            RuntimeError: `limit` buffers are in use, so that some stage hoards frames.
        """
        try:
            return Lease(self._free.pop(), self._free)
        except IndexError:
            pass
        if self._count >= self._limit:
            raise RuntimeError(f"all {self._limit} frame buffers are held; a stage hoards frames")
        self._count += 1
        return Lease(self._allocate(), self._free)


@dataclass(slots=True, eq=False)
class Frame:
    """One captured frame of the game.

    Attributes:
        pixels: uint8 BGRA, (H, W, 4), host memory, alpha undefined; read only. Valid as long
            as this object is referenced.
        sequence: the source's own number for it (from 0); gaps are frames the source skipped.
        ready_ns: `perf_counter_ns` at which the source said that new content was there.
        captured_ns: `perf_counter_ns` at which `pixels` was complete.
        region: where the captured pixels were on the desktop.
        id: the row of the trace, given by the pipeline; -1 before.
    """

    pixels: Pixels
    sequence: int
    ready_ns: int
    captured_ns: int
    region: Region
    lease: object | None = field(default=None, repr=False)
    id: int = -1

    @property
    def size(self) -> Size:
        return Size(self.pixels.shape[1], self.pixels.shape[0])


class DeviceSpan(NamedTuple):
    """A piece of work on the device: its start in `perf_counter_ns`, its duration in ns."""

    start_ns: int
    duration_ns: int


@dataclass(frozen=True, slots=True)
class DeviceTimes:
    """When the parts of an inference ran on the device.

    Attributes:
        upload, infer, download: None where there was none, or it was not measured.
        error_ns: the starts may be off by so much, all of them in the same direction; the
            durations and the distances between the starts are those of the device's own clock.
    """

    upload: DeviceSpan | None = None
    infer: DeviceSpan | None = None
    download: DeviceSpan | None = None
    error_ns: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class DevicePicture:
    """Pixels that stay on the device, for the presenter to copy.

    Who copies them waits for `ready` in a stream of its own, copies, and records `released`
    there, before the last reference to the picture is dropped: then the buffer is used again.

    Attributes:
        cuda: the device.
        buffer: uint8 of `shape`, contiguous and no larger.
        shape: (H*scale, W*scale, 4) for "bgra", (H*scale, W*scale) for "luma".
        ready: the mark after which `buffer` may be read.
        released: the mark after which `buffer` may be overwritten.
    """

    cuda: Cuda
    buffer: DeviceBuffer
    shape: tuple[int, ...]
    ready: Event
    released: Event
    lease: object | None = field(default=None, repr=False)


PictureKind = Literal["source", "bgra", "luma"]


@dataclass(slots=True, eq=False, weakref_slot=True)
class Picture:
    """What an upscaler hands to the presenter.

    Attributes:
        frame: the frame it was made from; the presenter needs its pixels too (chroma, hold to
            compare, paired screenshots).
        kind: what `pixels` is:
            "source"  the frame's own pixels; the presenter scales them with `shader`;
            "bgra"    uint8 BGRA, (H*scale, W*scale, 4), alpha undefined;
            "luma"    uint8 BT.601 full-range luma, (H*scale, W*scale); the presenter adds the
                      source's chroma: RGB = up(source RGB) + (pixels - luma(up(source RGB))).
        pixels: in host memory; where `device` is set it has the right shape, and nothing in it
            (see `nothing`).
        scale: 1 for "source".
        shader: the shader that scales "source" pictures; for the others the filter for what is
            left between `pixels` and the size on screen.
        infer_ns: device time of the inference where the back end measures it, else 0.
        device: where the pixels are if they were not downloaded.
        times: when it was made, by the device's clock, where the back end measures that.
    """

    frame: Frame
    kind: PictureKind
    pixels: Pixels
    scale: int
    model: str
    backend: str
    shader: str
    lease: object | None = field(default=None, repr=False)
    infer_ns: int = 0
    device: DevicePicture | None = None
    times: DeviceTimes | None = None

    @property
    def size(self) -> Size:
        return Size(self.pixels.shape[1], self.pixels.shape[0])


def nothing(shape: tuple[int, ...]) -> Pixels:
    """Give black pixels of any shape in one byte, read-only: they stand in for a device's."""
    return np.broadcast_to(np.uint8(0), shape)
