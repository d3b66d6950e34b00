"""Encoders, and one stretch of a video encoded by itself.

A segment is complete: its first frame needs no other. It is Matroska in memory, whose times are
numbers of frames; the real times come when segments are joined. The software encoders give the
same bytes for the same frames wherever they run, as their threads are counted and, in x264, all
processors are treated alike.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, get_args

import av
import numpy as np
from av.codec.context import Flags

from overlay.errors import BackendUnavailable, SettingsError
from overlay.files.errors import FileError
from overlay.files.video_colour import Colour

log = logging.getLogger(__name__)

Codec = Literal["auto", "h264", "hevc", "vp9"]
CODECS: tuple[Codec, ...] = get_args(Codec)
Where = Literal["auto", "hardware", "software"]
WHERE: tuple[Where, ...] = get_args(Where)

#: FFmpeg's encoders of each codec, those in hardware in the order in which they are tried.
SOFTWARE = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9"}
HARDWARE = {
    "h264": ("h264_nvenc", "h264_qsv", "h264_amf", "h264_videotoolbox"),
    "hevc": ("hevc_nvenc", "hevc_qsv", "hevc_amf", "hevc_videotoolbox"),
    "vp9": ("vp9_qsv",),
}
#: Longest side that a codec's levels, or most decoders, take.
MAX_SIDE = {"h264": 8192, "hevc": 8192, "vp9": 16384}
#: Threads of software encoders; the number changes the result, so it is not the machine's.
_THREADS = 4
#: Quality unless it is said, by codec: no loss that is seen at once.
_CRF = {"h264": 18, "hevc": 20, "vp9": 24}
#: Added to frame numbers, so that none is decoded after it is shown.
_AHEAD = 64
#: Times of a segment are Matroska's milliseconds, and mean frames.
_TICK = Fraction(1, 1000)


@dataclass(frozen=True, slots=True)
class Coding:
    """How frames are encoded.

    Attributes:
        codec: h264, hevc or vp9.
        encoder: FFmpeg's name of it.
        crf: constant quality, lower is better; hardware takes it for its own scale.
        layout: FFmpeg's name of the pixel format.
        size: (width, height) in pixels.
        rate: frames per second, on average.
        aspect: width / height of a pixel.
        colour: what the numbers mean.
        length: frames of a segment, at most.
    """

    codec: str
    encoder: str
    crf: int
    layout: str
    size: tuple[int, int]
    rate: Fraction
    aspect: Fraction
    colour: Colour
    length: int


def codec_for(codec: Codec, ending: str, deep: bool) -> str:
    """Choose the codec: VP9 in WebM, HEVC for more than 8 bits, else H.264.

    Raises:
        SettingsError: the container does not hold the one that was asked for.
    """
    if codec == "auto":
        codec = "vp9" if ending == ".webm" else "hevc" if deep else "h264"
    if ending == ".webm" and codec != "vp9":
        raise SettingsError(f"WebM holds no {codec}: --codec vp9, or --format mkv")
    return codec


def quality(codec: str, crf: int | None) -> int:
    """The quality that was asked for, or the codec's usual one."""
    return _CRF[codec] if crf is None else crf


def choose_encoder(codec: str, where: Where, layout: str, size: tuple[int, int]) -> str:
    """Choose the encoder; of those in hardware the first that encodes a few frames.

    Raises:
        BackendUnavailable: none in hardware works, and one was asked for.
    """
    if where != "software":
        for name in HARDWARE[codec]:
            if _works(name, layout, size):
                log.info("encoding with %s", name)
                return name
        if where == "hardware":
            tried = ", ".join(HARDWARE[codec])
            raise BackendUnavailable(
                f"no hardware here encodes {codec} at {size[0]}x{size[1]} (tried {tried}): "
                "--encoder software"
            )
        log.info("no hardware here encodes %s: encoding with %s", codec, SOFTWARE[codec])
    if SOFTWARE[codec] not in av.codecs_available:
        raise BackendUnavailable(
            f"this PyAV has no {SOFTWARE[codec]}: pip install --force-reinstall av, "
            "or another --codec"
        )
    return SOFTWARE[codec]


@lru_cache(maxsize=32)
def _works(encoder: str, layout: str, size: tuple[int, int]) -> bool:
    """Whether an encoder gives as many frames as it was given, grey ones."""
    if encoder not in av.codecs_available:
        return False
    coding = Coding("", encoder, 20, layout, size, Fraction(30), Fraction(1), Colour(1, False), 4)
    frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 128, np.uint8), "rgb24")
    try:
        segment = SegmentEncoder(coding)
        for _ in range(coding.length):
            segment.add(frame.reformat(format=layout))
        return len(packets_of(segment.end())[1]) == coding.length
    except (av.error.FFmpegError, FileError, ValueError) as exc:
        log.debug("%s does not work here: %s", encoder, exc)
        return False


def _options(coding: Coding) -> dict[str, str]:
    name, crf = coding.encoder, str(coding.crf)
    known = {
        "libx264": {"crf": crf, "preset": "medium", "x264-params": "cpu-independent=1"},
        "libx265": {
            "crf": crf, "preset": "medium",
            "x265-params": f"pools={_THREADS}:frame-threads=2:open-gop=0:log-level=error",
        },
        "libvpx-vp9": {
            "crf": crf, "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1",
            "tile-columns": "2",
        },
    }  # fmt: skip
    if name in known:
        return known[name]
    return {
        "nvenc": {"rc": "vbr", "cq": crf, "preset": "p5", "b:v": "0"},
        "qsv": {"global_quality": crf},
        "amf": {"rc": "cqp", "qp_i": crf, "qp_p": crf, "qp_b": crf},
    }.get(name.rpartition("_")[2], {})


def _layout(coding: Coding) -> str:
    """What an encoder takes: hardware often has chroma in one plane."""
    if coding.encoder in SOFTWARE.values():
        return coding.layout
    return "nv12" if coding.layout == "yuv420p" else "p010le"


class SegmentEncoder:
    """Encodes one segment.

    Args:
        coding: how.
    Raises:
        FFmpegError: the encoder does not open.
    """

    def __init__(self, coding: Coding) -> None:
        self._file = io.BytesIO()
        self._out: Any = av.open(
            self._file, "w", format="matroska", container_options={"fflags": "+bitexact"}
        )
        self._layout = _layout(coding)
        self._count, self._packets = 0, 0
        rate = coding.rate.limit_denominator(1 << 16)
        self._stream: Any = self._out.add_stream(
            coding.encoder, rate=rate, options=_options(coding)
        )
        context: Any = self._stream.codec_context
        context.width, context.height = coding.size
        context.pix_fmt = self._layout
        self._base = context.time_base = 1 / rate
        context.thread_count = _THREADS
        context.gop_size = max(coding.length, 1)
        context.flags |= int(Flags.closed_gop)
        context.sample_aspect_ratio = coding.aspect
        context.colorspace, context.color_range = coding.colour.matrix, coding.colour.range
        context.color_primaries = coding.colour.primaries
        context.color_trc = coding.colour.transfer

    def add(self, frame: Any) -> None:
        """Take the next frame."""
        if frame.format.name != self._layout:
            frame = frame.reformat(format=self._layout)
        frame.pts, frame.time_base = self._count, self._base
        self._count += 1
        self._mux(self._stream.encode(frame))

    def end(self) -> bytes:
        """Give the segment.

        Raises:
            FileError: the encoder lost frames.
        """
        self._mux(self._stream.encode(None))
        self._out.close()
        if self._packets != self._count:
            raise FileError(
                f"the encoder gave {self._packets} frames for {self._count}: --encoder software"
            )
        return self._file.getvalue()

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            shown = round(packet.pts * packet.time_base / self._base)
            packet.pts, packet.dts = shown + _AHEAD, self._packets
            packet.time_base, packet.duration = _TICK, 1
            self._packets += 1
            self._out.mux_one(packet)


def packets_of(segment: bytes) -> tuple[Any, list[tuple[int, Any]]]:
    """Read a segment.

    Returns:
        The open file, and of each packet, in order of decoding, the number of its frame in the
        segment and itself.
    Raises:
        FFmpegError: it is damaged.
    """
    file: Any = av.open(io.BytesIO(segment), format="matroska")
    stream = file.streams.video[0]
    return file, [(p.pts - _AHEAD, p) for p in file.demux(stream) if p.size and p.pts is not None]
