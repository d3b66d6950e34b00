"""Replay recorded frames: a folder of pictures, a video, or a seeded pattern.

The fake of the capture seam, for tests and benchmarks; nothing here needs a display. On the
capture thread; `close` and the properties also from others.

With a rate it behaves like a game: frames that are not grabbed in time are skipped, and the gap
shows in their numbers. Without one ("as fast as possible") every frame is handed on, in order.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path

import cv2
import numpy as np

from overlay.capture import CaptureSource
from overlay.capture.picture_file import SUFFIXES, read_picture
from overlay.errors import CaptureError, SettingsError, SourceClosed
from overlay.frame import BufferRing, Frame, Lease, Pixels, Region, Size

MEMORY_LIMIT_BYTES = 1 << 30  # folders up to this size, decoded, are kept in memory
PATTERN_FRAMES = 600  # a pattern that does not loop ends after so many


class Reel(ABC):
    """Frames in order; used on one thread."""

    @abstractmethod
    def read(self) -> tuple[Pixels, Lease | None] | None:
        """Give the next frame, uint8 BGRA, (H, W, 4), and its lease; None at the end."""

    @abstractmethod
    def skip(self, count: int) -> None:
        """Pass over frames, as cheaply as can be; at the end it stops."""

    @abstractmethod
    def rewind(self) -> None:
        """Go back to the first frame."""

    def close(self) -> None:  # noqa: B027  (nothing to free is the common case)
        """Free what is open; idempotent."""


class FolderReel(Reel):
    """The pictures of a folder in the order of their names.

    Decoded once into memory if that fits into `memory_limit` bytes, else from disk each time.

    Raises:
        CaptureError: there is no picture in it, or one cannot be read.
    """

    def __init__(self, folder: Path, memory_limit: int = MEMORY_LIMIT_BYTES) -> None:
        try:
            entries = sorted(folder.iterdir())
        except OSError as exc:
            raise CaptureError(f"cannot read the folder {folder}: {exc.strerror}") from exc
        self._paths = [path for path in entries if path.suffix.lower() in SUFFIXES]
        if not self._paths:
            kinds = ", ".join(sorted(SUFFIXES))
            raise CaptureError(f"there is no picture ({kinds}) in {folder}")
        self._next = 0
        first = read_picture(self._paths[0])
        self._decoded: list[Pixels] = [first]  # of the first so many paths
        held = first.nbytes
        if held * len(self._paths) <= memory_limit:
            for path in self._paths[1:]:
                pixels = read_picture(path)
                held += pixels.nbytes
                if held > memory_limit:  # later ones are larger than the first
                    break
                self._decoded.append(pixels)

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def in_memory(self) -> int:
        """How many of the pictures are kept decoded."""
        return len(self._decoded)

    def read(self) -> tuple[Pixels, Lease | None] | None:
        at = self._next
        if at >= len(self._paths):
            return None
        self._next += 1
        return (self._decoded[at] if at < self.in_memory else read_picture(self._paths[at])), None

    def skip(self, count: int) -> None:
        self._next = min(self._next + count, len(self._paths))

    def rewind(self) -> None:
        self._next = 0


class VideoReel(Reel):
    """The frames of a video file, decoded by OpenCV.

    Raises:
        CaptureError: it cannot be opened or has no frame.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ring: BufferRing | None = None
        self._shape: tuple[int, ...] = ()
        self._scratch: np.ndarray | None = None
        self._video = cv2.VideoCapture()
        self.rewind()
        if self.read() is None:
            self.close()
            raise CaptureError(f"no frame of the video {path} can be decoded")
        self.rewind()

    def read(self) -> tuple[Pixels, Lease | None] | None:
        ok, self._scratch = self._video.read(self._scratch)
        if not ok or self._scratch is None:
            return None
        shape = (*self._scratch.shape[:2], 4)
        if self._ring is None or shape != self._shape:
            self._ring, self._shape = BufferRing.of_shape(shape), shape
        lease = self._ring.take()
        cv2.cvtColor(self._scratch, cv2.COLOR_BGR2BGRA, dst=lease.buffer)
        return lease.buffer, lease

    def skip(self, count: int) -> None:
        for _ in range(count):
            if not self._video.grab():
                return

    def rewind(self) -> None:
        # Opened anew: seeking is not exact with every codec.
        try:
            opened = self._video.open(str(self._path))
        except cv2.error:
            opened = False
        if not opened:
            raise CaptureError(f"cannot open the video {self._path}: unknown or damaged format")

    def close(self) -> None:
        self._video.release()


class PatternReel(Reel):
    """A picture made from a seed, with edges, gradients and noise, that moves every frame.

    The same seed and size give the same frames everywhere.
    """

    def __init__(self, size: Size, seed: int) -> None:
        if min(size) < 1:
            raise SettingsError(f"the pattern's size must be at least 1x1, not {size}")
        self._size = size
        self._sheet = _pattern_sheet(size, seed)
        self._ring = BufferRing.of_shape((size.height, size.width, 4))
        self._next = 0

    def read(self) -> tuple[Pixels, Lease | None] | None:
        if self._next >= PATTERN_FRAMES:
            return None
        width, height = self._size
        left, top = self._next * 3 % width, self._next * 2 % height
        lease = self._ring.take()
        np.copyto(lease.buffer, self._sheet[top : top + height, left : left + width])
        # The number itself, so that no two frames of a run are alike, however small they are.
        lease.buffer[0, 0, :2] = self._next & 0xFF, self._next >> 8
        self._next += 1
        return lease.buffer, lease

    def skip(self, count: int) -> None:
        self._next = min(self._next + count, PATTERN_FRAMES)

    def rewind(self) -> None:
        self._next = 0


def _pattern_sheet(size: Size, seed: int) -> Pixels:
    """Paint twice the size in both directions, repeating, so that any window of it can be cut.

    Returns:
        uint8 BGRA, (2*H, 2*W, 4).
    """
    random = np.random.default_rng(seed)
    width, height = size
    tile = np.zeros((height, width, 4), np.uint8)
    across = np.linspace(0, 255, width, dtype=np.uint8)
    down = np.linspace(255, 0, height, dtype=np.uint8)
    tile[..., 0], tile[..., 1], tile[..., 2] = across, down[:, None], (across[::-1] // 2)
    for _ in range(24):
        left, top = int(random.integers(width)), int(random.integers(height))
        wide, high = int(random.integers(width) // 6 + 1), int(random.integers(height) // 6 + 1)
        tile[top : top + high, left : left + wide, :3] = random.integers(0, 256, 3)
    noise = random.integers(0, 24, (height, width, 1), dtype=np.uint8)
    tile[..., :3] = np.maximum(tile[..., :3], noise) - noise
    tile[..., 3] = 255
    return np.tile(tile, (2, 2, 1))


class ReplaySource(CaptureSource):
    """Recorded frames at a rate, or as fast as they are grabbed.

    A frame equal to the last one is handed on all the same: it is what was recorded.

    Args:
        path: a folder of pictures or a video file; None or "pattern" = the seeded pattern.
        rate_hz: frames a second, skipping what is not grabbed in time; None = every frame, at
            once.
        loop: start again at the end instead of raising `SourceClosed`.
        pattern_size, seed: of the pattern.
        memory_limit: how many bytes of decoded pictures of a folder to keep in memory.
    Raises:
        CaptureError: there is nothing readable at `path`.
        SettingsError: the rate or size makes no sense.
    """

    name = "replay"

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        rate_hz: float | None = 60.0,
        loop: bool = True,
        pattern_size: Size = Size(480, 270),  # noqa: B008  (immutable)
        seed: int = 0,
        memory_limit: int = MEMORY_LIMIT_BYTES,
    ) -> None:
        if rate_hz is not None and rate_hz <= 0:
            raise SettingsError(f"the replay rate must be above 0 Hz, not {rate_hz}")
        self._reel = open_reel(path, pattern_size, seed, memory_limit)
        self._rate_hz = rate_hz
        self._loop = loop
        self._closed = threading.Event()
        self._working = threading.Lock()  # held by grab, and by close while it frees
        self._started_ns = 0
        self._sequence = 0  # of the next frame
        self._ready = self._reel.read()  # decoded ahead, while there is time
        assert self._ready is not None
        height, width = self._ready[0].shape[:2]
        self._region = Region(0, 0, width, height)

    def grab(self, timeout_s: float) -> Frame | None:
        """Wait until the next frame is due and give it; see `CaptureSource.grab`.

        Raises:
            SourceClosed: the recording ended, or this source was closed.
            CaptureError: a picture or the video became unreadable.
        """
        with self._working:
            if not self._closed.is_set() and self._ready is None:
                self._ready = self._advance(0)
            if not self._wait_until_due(timeout_s):
                return None
            ready_ns = time.perf_counter_ns()
            self._skip_late(ready_ns)
            assert self._ready is not None
            (pixels, lease), self._ready = self._ready, None
            height, width = pixels.shape[:2]
            self._region = Region(0, 0, width, height)
            captured_ns = time.perf_counter_ns()
            frame = Frame(pixels, self._sequence, ready_ns, captured_ns, self._region, lease)
            self._sequence += 1
            return frame

    @property
    def region(self) -> Region:
        """The size of the last frame, at the desktop's corner."""
        return self._region

    @property
    def visible(self) -> bool:
        """Always: a recording cannot be minimised."""
        return True

    def close(self) -> None:
        """Make a waiting `grab` return and close the files; idempotent."""
        self._closed.set()
        with self._working:
            self._ready = None
            self._reel.close()

    def _wait_until_due(self, timeout_s: float) -> bool:
        wait_s = 0.0
        if self._rate_hz is not None:
            now = time.perf_counter_ns()
            self._started_ns = self._started_ns or now
            due = self._started_ns + int(self._sequence * 1e9 / self._rate_hz)
            wait_s = max(0, due - now) / 1e9
        if self._closed.wait(min(wait_s, timeout_s)):
            raise SourceClosed("the replay was closed")
        return wait_s <= timeout_s

    def _skip_late(self, now: int) -> None:
        """Leave out the frames whose time is over, as a game does."""
        if self._rate_hz is None:
            return
        current = int((now - self._started_ns) * self._rate_hz / 1e9)
        late = current - self._sequence
        if late > 0:
            self._ready = self._advance(late - 1)
            self._sequence += late

    def _advance(self, skip: int) -> tuple[Pixels, Lease | None]:
        """Read the next frame but `skip`, going round if it loops.

        Raises:
            SourceClosed: there is none.
        """
        if skip:
            self._reel.skip(skip)
        frame = self._reel.read()
        if frame is None and self._loop:
            self._reel.rewind()
            frame = self._reel.read()
        if frame is None:
            raise SourceClosed("the replay came to its end")
        return frame


def open_reel(
    path: str | Path | None,
    pattern_size: Size = Size(480, 270),  # noqa: B008  (immutable)
    seed: int = 0,
    memory_limit: int = MEMORY_LIMIT_BYTES,
) -> Reel:
    """Open what is at `path`; None or "pattern" is the seeded pattern.

    Raises:
        CaptureError: there is nothing readable.
    """
    if path is None or str(path) == "pattern":
        return PatternReel(pattern_size, seed)
    place = Path(path).expanduser()
    if place.is_dir():
        return FolderReel(place, memory_limit)
    if not place.exists():
        raise CaptureError(f"there is nothing to replay at {place}: no such file or folder")
    return VideoReel(place)
