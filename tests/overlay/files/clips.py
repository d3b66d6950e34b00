"""Small videos that the tests make themselves."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from engines import frames

FREEDOOM = Path(__file__).parents[2] / "data" / "freedoom"


def game_frames(count: int, size: tuple[int, int] = (96, 54)) -> list[NDArray[np.uint8]]:
    """Pan over a game's frame: uint8 RGB, (H, W, 3)."""
    large = cv2.imread(str(FREEDOOM / "map07-0012-x4-hr.png"))
    assert large is not None
    wide = cv2.resize(large, (size[0] + 2 * count, size[1] + count), interpolation=cv2.INTER_AREA)
    rgb = cv2.cvtColor(wide, cv2.COLOR_BGR2RGB)
    return [
        np.ascontiguousarray(rgb[i : i + size[1], 2 * i : 2 * i + size[0]]).astype(np.uint8)
        for i in range(count)
    ]


def shipped_frames(count: int) -> list[NDArray[np.uint8]]:
    """Six views of Freedoom, moving sideways: uint8 RGB, (270, 480, 3)."""
    views = frames.read((480, 270))
    rgb = [np.ascontiguousarray(view[..., 2::-1]) for view in views]
    return [np.roll(rgb[i * len(rgb) // count], 2 * i, 1) for i in range(count)]


def write(
    path: Path,
    pictures: Sequence[NDArray[np.uint8]],
    times: Sequence[int] | None = None,
    *,
    base: Fraction = Fraction(1, 15360),
    codec: str = "libx264",
    layout: str = "yuv420p",
    colour: Sequence[int] = (1, 1, 1, 1),
    audio: bool = False,
    options: dict[str, str] | None = None,
    rotation: float = 0,
    aspect: Fraction = Fraction(1),
    interlaced: bool = False,
) -> Path:
    """Write a video.

    Args:
        times: of the pictures in units of `base`; None = 30 a second.
        colour: matrix, range, primaries, transfer.
        audio: a sine of 440 Hz as AAC, as long as the pictures at 30 a second.
    """
    times = [512 * i for i in range(len(pictures))] if times is None else times
    path.parent.mkdir(parents=True, exist_ok=True)
    # The start of a track is rounded to this; FFmpeg's own is 1000.
    scale = {"movie_timescale": str(base.denominator)} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", container_options=scale) as out:
        stream: Any = out.add_stream(codec, rate=30, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = layout
        context = stream.codec_context
        context.time_base = stream.time_base = base
        context.sample_aspect_ratio = aspect
        context.colorspace, context.color_range = colour[:2]
        context.color_primaries, context.color_trc = colour[2:]
        if interlaced:
            context.options = {**context.options, "flags": "+ildct+ilme"}
        if rotation:
            stream.set_display_rotation(rotation)
        sound: Any = out.add_stream("aac", rate=44100, layout="mono") if audio else None
        for shown, pixels in zip(times, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(
                format=layout, dst_colorspace=colour[0], src_color_range=2,
                dst_color_range=colour[1],
            )  # fmt: skip
            frame.pts, frame.time_base = shown, base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if audio:
            _add_sine(out, sound, len(pictures) / 30)
    return path


def _add_sine(out: Any, stream: Any, seconds: float) -> None:
    samples = np.sin(np.arange(int(44100 * seconds)) * (2 * np.pi * 440 / 44100)) * 0.3
    for at in range(0, len(samples) - 1023, 1024):
        frame = av.AudioFrame.from_ndarray(
            samples[None, at : at + 1024].astype(np.float32), "fltp", "mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = 44100, at, Fraction(1, 44100)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def times_of(path: Path) -> list[Fraction]:
    """When each decoded frame is shown, in seconds."""
    with av.open(str(path)) as file:
        found = []
        for frame in file.decode(video=0):
            assert frame.pts is not None
            assert frame.time_base is not None
            found.append(frame.pts * frame.time_base)
        return found


def pictures_of(path: Path) -> list[NDArray[np.uint8]]:
    """Decode all frames to uint8 RGB by what the file says of its colours."""
    with av.open(str(path)) as file:
        return [
            np.asarray(
                frame.reformat(
                    format="rgb24", src_colorspace=frame.colorspace,
                    src_color_range=frame.color_range, dst_color_range=2,
                ).to_ndarray()
            )
            for frame in file.decode(video=0)
        ]  # fmt: skip


def packets_of(path: Path, kind: str) -> list[tuple[Fraction, Fraction, bytes]]:
    """Time, decoding time and content of the packets of the streams of a kind."""
    with av.open(str(path)) as file:
        streams = [stream for stream in file.streams if stream.type == kind]
        found = []
        for packet in file.demux(streams):
            if packet.size and packet.pts is not None and packet.dts is not None:
                base = packet.time_base
                found.append((packet.pts * base, packet.dts * base, bytes(packet)))
        return found
