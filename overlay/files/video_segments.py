"""A video as a list of segments, each made by itself; those that are done are kept.

What a segment becomes depends on the source, the recipe and its number alone, not on what was
made before it or where: an interrupted run goes on, and others may make some of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import av

from overlay.files.batch import PARTS
from overlay.files.errors import FileError
from overlay.files.video_encode import Coding, SegmentEncoder
from overlay.files.video_models import Enlarger
from overlay.files.video_source import Clip, FrameReader
from overlay.trace.atomic import write_atomically

log = logging.getLogger(__name__)

#: Frames that wait between two stages, at most, and bytes of them; one may always wait.
_WAITING, _WAITING_BYTES = 4, 1 << 28
#: A stage looks this often whether another one has failed.
_LOOK_S = 0.1
#: Names of files in the kept folder.
_OURS = ("[0-9]*.segment", "[0-9]*.json", "recipe.json", "joined", ".*.part")
#: Form of the kept folder; another one is not read.
_FORM = 1


@dataclass(frozen=True, slots=True)
class Segment:
    """A finished stretch.

    Attributes:
        number: from 0, in order of time.
        data: Matroska, see `video_encode`.
        times: when its frames are shown, in units of the clip's base.
    """

    number: int
    data: bytes
    times: list[int]


def cuts_of(clip: Clip, length: int) -> list[tuple[int, int | None]]:
    """Cut a video after every `length` frames.

    Returns:
        (first time, time before which it ends; None = the end) of each segment.
    """
    starts = list(clip.times[::length])
    return list(zip(starts, [*starts[1:], None], strict=True))


# --- making --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Spent:
    """What the stages took.

    Attributes:
        frames: done.
        decode_s, infer_s, encode_s: time in which each was at work, waiting for others not
            included; conversions belong to the stage beside the model.
        wall_s: from the first to the last.
    """

    frames: int = 0
    decode_s: float = 0.0
    infer_s: float = 0.0
    encode_s: float = 0.0
    wall_s: float = 0.0


def made(
    clip: Clip,
    cuts: Sequence[tuple[int, int | None]],
    numbers: Sequence[int],
    enlarger: Enlarger,
    coding: Coding,
    told: Callable[[], None] = lambda: None,
    spent: Spent | None = None,
) -> Generator[Segment, None, None]:
    """Make segments, with decoding, the model and encoding on a thread each.

    Args:
        cuts: of the whole clip, see `cuts_of`.
        numbers: of those to make, rising.
        told: called on the caller's thread after each frame has been through the model.
        spent: filled.
    Raises:
        OverlayError, EngineError: a stage failed.
    """
    width, height = enlarger.largest
    room = min(_WAITING, max(1, _WAITING_BYTES // (3 * width * height)))
    line = _Line(spent or Spent(), room)

    def decode() -> None:
        with FrameReader(clip) as reader:
            for number in numbers:
                for frame in line.timed("decode_s", reader.stretch(*cuts[number])):
                    with line.clock("decode_s"):
                        item = enlarger.prepare(frame)
                    line.give(line.decoded, (number, frame.pts, item))

    def encode() -> None:
        for number, items in groupby(line.take(line.enlarged), itemgetter(0)):
            line.give(line.done, _encoded(number, items, enlarger, coding, line))

    with line.running(decode, line.decoded), line.running(encode, line.done):
        for thing in line.take(line.decoded):
            with line.clock("infer_s"):
                enlarger.run(thing[2])
            line.spent.frames += 1
            told()
            line.give(line.enlarged, thing)
            while not line.done.empty():  # None comes only after the end that is given below
                yield line.done.get()
        line.give(line.enlarged, None)
        yield from line.take(line.done)
    line.spent.wall_s += time.perf_counter() - line.start


def _encoded(
    number: int, items: Iterator[Any], enlarger: Enlarger, coding: Coding, line: _Line
) -> Segment:
    times = []
    with line.clock("encode_s"):
        encoder = SegmentEncoder(coding)
    for _, shown, item in items:
        with line.clock("encode_s"):
            encoder.add(enlarger.finish(item))
        times.append(shown)
    with line.clock("encode_s"):
        return Segment(number, encoder.end(), times)


class _Line:
    """The queues between the stages; the first error of any ends all.

    Every queue is written by one thread and read by one.

    Args:
        spent: filled; each field by one thread.
        room: frames that may wait before the model, and as many behind it.
    """

    def __init__(self, spent: Spent, room: int) -> None:
        self.decoded: queue.Queue[Any] = queue.Queue(room)
        self.enlarged: queue.Queue[Any] = queue.Queue(room)
        self.done: queue.Queue[Any] = queue.Queue()  # few: the caller takes them while it gives
        self.spent = spent
        self.start = time.perf_counter()
        self._error: BaseException | None = None  # the first; written before `_end` is set
        self._end = threading.Event()

    @contextmanager
    def running(self, stage: Callable[[], None], out: queue.Queue[Any]) -> Iterator[None]:
        """Run a stage on a thread; after it, None is put into `out`."""

        def run() -> None:
            try:
                stage()
                self.give(out, None)
            except _Ended:
                pass
            except BaseException as exc:  # raised again on the caller's thread
                self._error = self._error or exc
                self._end.set()

        thread = threading.Thread(target=run, name=stage.__name__, daemon=True)
        thread.start()
        try:
            yield
        except _Ended:
            assert self._error is not None
            raise _as_ours(self._error) from self._error
        finally:
            self._end.set()
            thread.join()

    def give(self, out: queue.Queue[Any], thing: Any) -> None:
        """Put, waiting for room.

        Raises:
            _Ended: another stage failed.
        """
        while not self._end.is_set():
            try:
                return out.put(thing, timeout=_LOOK_S)
            except queue.Full:
                pass
        raise _Ended

    def take(self, out: queue.Queue[Any]) -> Iterator[Any]:
        """Give what comes until None; raises `_Ended`, see `give`."""
        while True:
            try:
                thing = out.get(timeout=_LOOK_S)
            except queue.Empty:
                if self._end.is_set():
                    raise _Ended from None
                continue
            if thing is None:
                return
            yield thing

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Count the time of the body."""
        start = time.perf_counter()
        yield
        setattr(self.spent, stage, getattr(self.spent, stage) + time.perf_counter() - start)

    def timed(self, stage: str, things: Iterator[Any]) -> Iterator[Any]:
        """Count the time of each step of an iterator."""
        while True:
            with self.clock(stage):
                thing = next(things, None)
            if thing is None:
                return
            yield thing


class _Ended(Exception):
    """Another stage has failed."""


def _as_ours(error: BaseException) -> BaseException:
    if isinstance(error, av.error.FFmpegError):
        return FileError(f"the encoder failed: {error.strerror or error}; try another --encoder")
    return error


# --- keeping -------------------------------------------------------------------------------------


class Kept:
    """The folder beside a result in which finished segments wait for the others.

    Each is `N.segment` and, written after it, `N.json`, with its digest: without that it is not
    there. `recipe.json` says what they are parts of.

    Args:
        target: of the video.
        recipe: all that decides what the segments become.
    Raises:
        TraceError: it cannot be written.
    """

    def __init__(self, target: Path, recipe: dict[str, Any]) -> None:
        self.folder = folder_of(target)
        wanted = json.dumps({"form": _FORM, **recipe}, indent=1, sort_keys=True, default=str)
        file = self.folder / "recipe.json"
        if self.folder.is_dir() and _text(file) != wanted:
            if file.exists():
                log.warning("%s is of another source or other options: starting anew", self.folder)
            self.remove()
        self.folder.mkdir(exist_ok=True)
        if not file.exists():
            write_atomically(file, wanted.encode())

    def done(self, count: int) -> dict[int, list[int]]:
        """Tell which of `count` segments are there, and the times of their frames."""
        found = {}
        for number in range(count):
            try:
                about = json.loads(_text(self._file(number, "json")) or "{}")
                data = self._file(number, "segment").read_bytes()
                if about["sha256"] == hashlib.sha256(data).hexdigest():
                    found[number] = list(map(int, about["times"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found

    def keep(self, segment: Segment) -> None:
        """Write a segment.

        Raises:
            TraceError: it cannot be written.
        """
        about = {"times": segment.times, "sha256": hashlib.sha256(segment.data).hexdigest()}
        write_atomically(self._file(segment.number, "segment"), segment.data)
        write_atomically(self._file(segment.number, "json"), json.dumps(about).encode())

    def data(self, number: int) -> bytes:
        """Read a segment that is there."""
        return self._file(number, "segment").read_bytes()

    def _file(self, number: int, ending: str) -> Path:
        return self.folder / f"{number:06}.{ending}"

    def remove(self) -> None:
        """Take away what is ours, and the folder if it is empty then."""
        with suppress(OSError):
            for pattern in _OURS:
                for file in self.folder.glob(pattern):
                    file.unlink()
            self.folder.rmdir()


def folder_of(target: Path) -> Path:
    """The folder of a result's segments."""
    return target.with_name(target.name + PARTS)


def _text(file: Path) -> str | None:
    try:
        return file.read_text("utf-8")
    except (OSError, ValueError):
        return None
