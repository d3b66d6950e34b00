"""Finished segments and all else that the source holds, to one file.

No frame is encoded here. Audio, subtitles, chapters, attachments and their metadata are copied as
they are; each frame of the result gets the time of its frame in the source.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av

from overlay.files.batch import PARTS
from overlay.files.errors import FileError
from overlay.files.video_encode import packets_of
from overlay.files.video_source import Clip, is_cover, opened

log = logging.getLogger(__name__)

#: FFmpeg's writer of each ending.
_WRITERS = {
    ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm",
}  # fmt: skip
#: What a file says about how it was written, which is no longer so.
_STALE = (
    "major_brand", "minor_version", "compatible_brands", "encoder", "handler_name", "vendor_id",
    "duration", "bps", "number_of_frames", "number_of_bytes", "_statistics",
)  # fmt: skip
#: Frames that may be decoded before one that is shown earlier.
_DELAYS = 64


def check_container(clip: Clip, target: Path) -> None:
    """Say before the work is done what the container cannot hold.

    Raises:
        FileError: a stream cannot be copied into it.
    """
    with opened(clip.path) as source:
        for stream in _copied(source, clip, target):
            if stream.type != "attachment":
                _check_stream(stream, clip, target)


def _check_stream(stream: Any, clip: Clip, target: Path) -> None:
    writer = _WRITERS[target.suffix.lower()]
    name = stream.codec.canonical_name
    if not {name, stream.codec.name} & _held_by(writer):
        other = "" if writer == "matroska" else " --format mkv"
        raise FileError(
            f"{clip.path}: {writer} holds no {name} (its {stream.type} {stream.index}):{other}"
        )


@cache
def _held_by(writer: str) -> frozenset[str]:
    with av.open(io.BytesIO(), "w", format=writer) as out:
        return frozenset(out.supported_codecs)


def _copied(source: Any, clip: Clip, target: Path) -> list[Any]:
    """List the streams that are copied, and say what is left out."""
    kept, left = [], []
    for stream in source.streams:
        if stream.index == clip.stream:
            continue
        matroska = _WRITERS[target.suffix.lower()] == "matroska"
        if stream.type in ("audio", "subtitle") or (stream.type == "attachment" and matroska):
            kept.append(stream)
        elif stream.type != "data" or not source.chapters():  # QuickTime's chapters come so
            cover = stream.type == "video" and is_cover(stream)
            left.append(f"{'cover' if cover else stream.type} {stream.index}")
    if left:
        log.warning("%s: left out of %s: %s", clip.path, target.name, ", ".join(left))
    return kept


def join(
    clip: Clip, segments: Sequence[tuple[Callable[[], bytes], list[int]]], file: Any, target: Path
) -> None:
    """Write the result.

    Args:
        segments: of each, in order, what reads it, and the times of its frames.
        file: open for writing and seeking; stays open.
        target: for its ending, and for messages.
    Raises:
        FileError: the segments do not fit together, or the container does not take something.
        OSError: writing failed.
    """
    times = [shown for _, part in segments for shown in part]
    with opened(clip.path) as source:
        try:
            writer = _WRITERS[target.suffix.lower()]
            options = {"fflags": "+bitexact"}
            if writer in ("mp4", "mov"):  # a start that is not 0 is rounded to it
                options["movie_timescale"] = str(_timescale(clip.base))
            with av.open(file, "w", format=writer, container_options=options) as out:
                _write(out, source, clip, segments, times, target)
        except av.error.FFmpegError as exc:
            if exc.errno and exc.errno > 0:
                raise OSError(exc.errno, exc.strerror) from exc
            raise FileError(f"{target} cannot be made: {exc.strerror or exc}") from exc


def _timescale(base: Fraction) -> int:
    return base.denominator if base.numerator == 1 and base.denominator <= 1_000_000 else 90_000


def _write(
    out: Any, source: Any, clip: Clip, segments: Any, times: list[int], target: Path
) -> None:
    template, _ = packets_of(segments[0][0]())
    video = out.add_stream_from_template(template.streams.video[0])
    video.time_base = clip.base
    if clip.matrix:
        video.set_display_matrix(clip.matrix)
    if video.codec.canonical_name == "hevc" and "mp4" in out.format.name + "mov":
        video.codec_tag = "hvc1"  # what Apple's players take
    origin = source.streams[clip.stream]
    video.metadata.update(_kept(origin.metadata))
    video.disposition = origin.disposition
    streams = {}
    for stream in _copied(source, clip, target):
        if stream.type == "attachment":
            out.add_attachment(stream.name or "attachment", stream.mimetype or "", stream.data)
            continue
        copy = out.add_stream_from_template(stream)
        copy.time_base = stream.time_base
        copy.metadata.update(_kept(stream.metadata))
        copy.disposition = stream.disposition
        streams[stream.index] = copy
    out.metadata.update(_kept(source.metadata))
    if source.chapters():
        out.set_chapters(source.chapters())
    extra = template.streams.video[0].codec_context.extradata
    _mux(
        out,
        _video(video, clip, segments, times, extra, target),
        _others(source, streams) if streams else iter(()),
    )


def _kept(metadata: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if not key.lower().startswith(_STALE)}


def _video(
    stream: Any, clip: Clip, segments: Any, times: list[int], extra: Any, target: Path
) -> Iterator[Any]:
    """Give the frames with their times.

    The n-th in order of decoding is decoded when the n-th of the source is shown, less the
    greatest delay; before the first frame, times go on backwards as they do after it.
    """
    delay = _delay(segments)
    ends = [*times[1:], times[-1] + clip.last]
    before = [2 * times[0] - shown for shown in times[delay:0:-1]]
    if len(before) < delay:  # fewer frames than that
        before = list(range(times[0] - delay, times[0]))
    decoded = [*before, *times]
    at = 0
    for data, part in segments:
        file, packets = packets_of(data())
        if file.streams.video[0].codec_context.extradata != extra or len(packets) != len(part):
            raise FileError(f"the segments of {target} do not fit together: remove {target}{PARTS}")
        for number, (shown, packet) in enumerate(packets):
            frame = at + shown
            packet.stream, packet.time_base = stream, clip.base
            packet.pts, packet.dts = times[frame], decoded[at + number]
            packet.duration = ends[frame] - times[frame]
            yield packet
        at += len(part)


def _delay(segments: Any) -> int:
    """How many frames are decoded before one that is shown earlier, at most."""
    most = 0
    for data, _ in segments:
        for number, (shown, _) in enumerate(packets_of(data())[1]):
            most = max(most, number - shown)
    return most


def _others(source: Any, streams: dict[int, Any]) -> Iterator[Any]:
    for packet in source.demux([source.streams[index] for index in streams]):
        if packet.size and packet.dts is not None:
            packet.stream = streams[packet.stream_index]
            yield packet


def _mux(out: Any, video: Iterator[Any], others: Iterator[Any]) -> None:
    """Write two rows of packets, each in order, in order of time."""
    frame, other = next(video, None), next(others, None)
    while frame is not None or other is not None:
        if other is None or (frame is not None and _when(frame) <= _when(other)):
            out.mux_one(frame)
            frame = next(video, None)
        else:
            out.mux_one(other)
            other = next(others, None)


def _when(packet: Any) -> Fraction:
    when: Fraction = packet.dts * packet.time_base
    return when
