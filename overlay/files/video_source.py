"""A video as it is read: what it is, when its frames are, and the frames of a stretch of it.

Nothing is decoded before the size in the header was checked, and a file never leads to another
one: the reader of its kind is named, and may open files only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from engines.frames import MAX_PIXELS
from overlay.closing import Closing
from overlay.files.errors import FileError, SourceDamaged
from overlay.files.video_colour import Colour, colour_of

log = logging.getLogger(__name__)

#: First bytes of Matroska and WebM (EBML); all else is tried as MP4 and MOV.
_EBML = b"\x1a\x45\xdf\xa3"
#: Videos of more frames are not read: 46 hours at 60 Hz.
MAX_FRAMES = 10_000_000
#: Bytes that are read, and stretch of time in µs that is looked at, to tell what streams there are.
_PROBE = {"probesize": str(16 << 20), "analyzeduration": "10000000", "protocol_whitelist": "file"}


@dataclass(frozen=True, slots=True)
class Clip:
    """The video in a file.

    Attributes:
        path: of the file.
        stream: its number in the file.
        size: (width, height) in pixels as stored, before it is turned.
        depth: bits of a sample.
        base: unit of all times, in seconds.
        rate: frames per second, on average.
        aspect: width / height of a pixel.
        colour: what its numbers mean.
        matrix: how it is to be turned when shown, as FFmpeg's nine numbers; () = not at all.
        times: when each frame is shown, in units of `base`, rising.
        keys: (time, decoding time) of the frames at which decoding can begin.
        last: how long the last frame is shown, in units of `base`.
    """

    path: Path
    stream: int
    size: tuple[int, int]
    depth: int
    base: Fraction
    rate: Fraction
    aspect: Fraction
    colour: Colour
    matrix: tuple[int, ...]
    times: tuple[int, ...]
    keys: tuple[tuple[int, int], ...]
    last: int


def _open(path: Path) -> Any:
    try:
        if not path.is_file():
            raise FileError(f"{path} is not there, or is not a file")
        with path.open("rb") as file:
            kind = "matroska" if file.read(4) == _EBML else "mp4"
    except OSError as exc:
        raise FileError(f"cannot read {path}: {exc.strerror or exc}") from exc
    try:
        return av.open(f"file:{path}", format=kind, options=_PROBE, metadata_errors="replace")
    except av.error.FFmpegError as exc:
        raise _damaged(path, exc) from exc


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a video for reading.

    Raises:
        FileError: it is not there or no video; also for what the body runs into while reading.
    """
    try:
        with _open(path) as file:
            yield file
    except av.error.FFmpegError as exc:
        raise _damaged(path, exc) from exc


def _damaged(path: Path, exc: Any) -> FileError:
    return FileError(f"{path} is damaged, or no video that can be read: {exc.strerror or exc}")


def read_clip(path: Path) -> Clip:
    """Tell what is in a file; reads all of it, and decodes its first frame.

    Raises:
        FileError: it cannot be read, or is of a kind that is not upscaled; says why.
    """
    with opened(path) as file:
        stream = _video_of(file, path)
        _check_header(stream, path)
        number = stream.index
        times, keys, last = _scanned(file, stream, path)
    with opened(path) as file:
        stream = _bounded(file.streams[number])
        first = _first_frame(file, stream, path)
        _check_frame(first, stream, path)
        depth = max(component.bits for component in first.format.components)
        rate = stream.average_rate or stream.guessed_rate or Fraction(0)
        return Clip(
            path, number, (first.width, first.height), depth, stream.time_base,
            rate if 0 < rate <= 1000 else Fraction(25), stream.sample_aspect_ratio or Fraction(1),
            colour_of(first), _matrix(first), times, keys, last,
        )  # fmt: skip


def _bounded(stream: Any) -> Any:
    """Let a stream's decoder refuse larger frames, whatever the file's header says."""
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def is_cover(stream: Any) -> bool:
    """Whether a stream is a still picture that players show for the file."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _video_of(file: Any, path: Path) -> Any:
    found = [stream for stream in file.streams.video if not is_cover(stream)]
    if not found:
        raise FileError(f"{path} holds no video")
    return found[0]


def _check_header(stream: Any, path: Path) -> None:
    context = stream.codec_context
    if context is None:
        raise FileError(f"{path}: no decoder for its video here: convert it to H.264 first")
    width, height = context.width, context.height
    if width * height > MAX_PIXELS:
        raise FileError(
            f"{path}: {width}x{height}: videos of more than {MAX_PIXELS} pixels are not read"
        )
    if stream.metadata.get("alpha_mode") == "1":
        raise _transparent(path)


def _transparent(path: Path) -> FileError:
    return FileError(f"{path} has transparency, which would be lost: convert it to pictures first")


def _scanned(
    file: Any, stream: Any, path: Path
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...], int]:
    """Read all packets: the times of the frames, where decoding can begin, the last duration."""
    times: dict[int, int] = {}
    keys = []
    for packet in file.demux(stream):
        if packet.pts is None or not packet.size:
            continue
        if len(times) >= MAX_FRAMES:
            raise FileError(f"{path} has more than {MAX_FRAMES} frames: cut it first")
        if packet.is_keyframe:
            keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
        if not packet.is_discard:  # outside the edit list: needed for decoding, never shown
            times[packet.pts] = packet.duration or 0
    if not times:
        raise FileError(f"{path} holds no frame that could be read: it is empty or damaged")
    _check_whole(file, stream, len(times), path)
    rising = tuple(sorted(times))
    usual = rising[-1] - rising[-2] if len(rising) > 1 else 0
    return rising, tuple(sorted(keys)), times[rising[-1]] or usual


def _check_whole(file: Any, stream: Any, found: int, path: Path) -> None:
    """An MP4's index knows how many frames there were before a file was cut short."""
    if "mp4" in file.format.name:
        known = sum(not entry.is_discard for entry in stream.index_entries)
        if found < known:
            raise FileError(f"{path} is damaged: it ends after {found} of {known} frames")


def _first_frame(file: Any, stream: Any, path: Path) -> Any:
    for packet in file.demux(stream):
        for frame in packet.decode():
            return frame
    raise FileError(f"{path} holds no frame that could be decoded")


def _check_frame(frame: Any, stream: Any, path: Path) -> None:
    if frame.width * frame.height > MAX_PIXELS:
        raise FileError(f"{path}: its frames are {frame.width}x{frame.height}, which is too large")
    if frame.interlaced_frame:
        raise FileError(
            f"{path} is interlaced, and lines of two moments in one picture cannot be upscaled: "
            "deinterlace it first (ffmpeg -vf bwdif, say)"
        )
    if any(component.is_alpha for component in frame.format.components):
        raise _transparent(path)


def _matrix(frame: Any) -> tuple[int, ...]:
    with suppress(KeyError):
        return tuple(np.frombuffer(frame.side_data["DISPLAYMATRIX"], np.int32).tolist())
    return ()


class FrameReader(Closing):
    """Gives the frames of stretches of a video; one after another without reading anything twice.

    Args:
        clip: where from.
    Raises:
        FileError: the file cannot be opened.
    """

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._file: Any = None
        self._frames: Iterator[Any] = iter(())
        self._next: Any = None  # decoded, and of a later stretch
        self._at: int | None = None  # where the next stretch may begin without seeking
        self._complained = False

    def stretch(self, start: int, stop: int | None) -> Iterator[Any]:
        """Give the frames shown from `start` up to before `stop`, None = the end, in order.

        Gives:
            PyAV's video frames, as decoded; their `pts` rise.
        Raises:
            FileError: a frame cannot be decoded, or has another size.
        """
        if self._at != start:
            self._seek(start)
        last = None
        while (frame := self._next or next(self._frames, None)) is not None:
            self._next = None
            if stop is not None and frame.pts >= stop:
                self._next = frame
                break
            if frame.pts >= start and (last is None or frame.pts > last):
                last = frame.pts
                yield self._checked(frame)
        self._at = stop

    def _seek(self, start: int) -> None:
        """Begin to decode at the last key frame that is shown no later than `start`."""
        before = [key for key in self._clip.keys if key[0] <= start]
        if len(before) > 1:
            key, decoded = before[-1]
            stream = self._open()
            self._file.seek(decoded, stream=stream)
            packets = self._packets(stream)
            first = next(packets, None)
            if first is not None and first.pts is not None and first.pts <= key:
                self._frames = self._decoded(chain([first], packets))
                return
            log.debug("%s: its index leads behind %d", self._clip.path, key)
        self._frames = self._decoded(self._packets(self._open()))

    def _open(self) -> Any:
        self.close()
        self._file = _open(self._clip.path)
        stream = _bounded(self._file.streams[self._clip.stream])
        stream.thread_type = "AUTO"
        return stream

    def _packets(self, stream: Any) -> Iterator[Any]:
        try:
            yield from self._file.demux(stream)
        except av.error.FFmpegError as exc:
            # A disk that is gone for a moment looks alike, unless the data themselves are wrong.
            wrong = SourceDamaged if isinstance(exc, av.error.InvalidDataError) else FileError
            raise wrong(f"{self._clip.path} cannot be read on: {exc.strerror or exc}") from exc

    def _decoded(self, packets: Iterator[Any]) -> Iterator[Any]:
        for packet in packets:
            yield from self._of(packet)

    def _of(self, packet: Any) -> Iterator[Any]:
        try:
            frames = packet.decode()
        except av.error.FFmpegError as exc:
            when = float((packet.pts or 0) * self._clip.base)
            raise SourceDamaged(
                f"{self._clip.path} is damaged: its frame at {when:.2f} s cannot be decoded "
                f"({exc.strerror or exc}); repair it first, or cut it before"
            ) from exc
        yield from (frame for frame in frames if frame.pts is not None)

    def _checked(self, frame: Any) -> Any:
        if frame.is_corrupt and not self._complained:
            self._complained = True
            when = float(frame.pts * self._clip.base)
            log.warning("%s is damaged at %.2f s: parts were guessed", self._clip.path, when)
        if (frame.width, frame.height) != self._clip.size:
            width, height = self._clip.size
            raise SourceDamaged(
                f"{self._clip.path} changes from {width}x{height} to {frame.width}x{frame.height}: "
                "cut it there first"
            )
        return frame

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file, self._frames, self._next, self._at = None, iter(()), None, None
