"""What the numbers of a video's frames mean, and the way to RGB and back.

All conversions are FFmpeg's swscale, told what goes in and what is to come out: left to itself it
would guess from the size, which changes here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from overlay.files.errors import FileError

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

#: Kr and Kb of the matrices (numbers and values of ITU-T H.273, table 4) that are known here.
WEIGHTS = {
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.601, 625 lines
    6: (0.299, 0.114),  # BT.601, 525 lines
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020, not constant luminance
}
_RGB, _UNKNOWN = 0, 2
_BT709, _BT601 = 1, 6
#: Curves of high dynamic range: PQ and HLG (H.273, table 3).
_HDR = {16: "PQ", 18: "HLG"}
_LIMITED, _FULL = 1, 2
#: swscale's exact ways: no rounded tables, chroma at every pixel, the same on every processor.
_EXACT = (
    Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)  # fmt: skip
_BICUBIC, _LANCZOS = Interpolation.BICUBIC | _EXACT, Interpolation.LANCZOS | _EXACT


@dataclass(frozen=True, slots=True)
class Colour:
    """What the numbers of a frame mean, in the numbers of ITU-T H.273.

    Attributes:
        matrix: one of `WEIGHTS`; what was not said is guessed as players do, and said then.
        full: whether all levels are used; else luma is 16 to 235 (of 8 bits).
        primaries, transfer: 2 = not said.
        rgb: whether the source is RGB; the result is as the rest says.
    """

    matrix: int
    full: bool
    primaries: int = _UNKNOWN
    transfer: int = _UNKNOWN
    rgb: bool = False

    @property
    def range(self) -> int:
        """FFmpeg's number of the range."""
        return _FULL if self.full else _LIMITED

    @property
    def hdr(self) -> str:
        """Name of the curve if it is one of high dynamic range, else ""."""
        return _HDR.get(self.transfer, "")


def colour_of(frame: Any) -> Colour:
    """Read a decoded frame's colour.

    Raises:
        FileError: there is no way to RGB for it.
    """
    matrix = int(frame.colorspace)
    rgb = frame.format.is_rgb
    full = int(frame.color_range) == _FULL or frame.format.name.startswith("yuvj")
    if rgb:
        matrix, full = _BT709, False
    elif matrix == _UNKNOWN:
        matrix = _BT709 if frame.width >= 1280 or frame.height > 576 else _BT601
    elif matrix not in WEIGHTS:
        raise FileError(
            f"colours of matrix {matrix} (ITU-T H.273) are not known here: convert to BT.709 first"
        )
    return Colour(matrix, full, int(frame.color_primaries), int(frame.color_trc), rgb)


def rgb_from_frame(
    frame: Any, colour: Colour, layout: Literal["rgb24", "rgb48le", "bgra"]
) -> Pixels:
    """Convert a decoded frame.

    Args:
        frame: PyAV's, of any format.
    Returns:
        (H, W, 3 or 4) of full range: uint8, uint16 for rgb48le; a copy.
    """
    pixels: Pixels = converted(frame, colour, layout, to_full=True).to_ndarray()
    return pixels


def frame_from_rgb(pixels: Pixels, colour: Colour, layout: str, size: tuple[int, int]) -> Any:
    """Convert RGB to a frame of 4:2:0, resampled with Lanczos if need be.

    Args:
        pixels: (H, W, 3) of full range, uint8 or uint16.
        layout: FFmpeg's name of the result, yuv420p say.
        size: (width, height) of the result.
    """
    given = "rgb24" if pixels.dtype == np.uint8 else "rgb48le"
    frame = av_frame(np.ascontiguousarray(pixels), given)
    return _tagged(
        frame.reformat(
            *size, layout, src_colorspace=colour.matrix, dst_colorspace=colour.matrix,
            interpolation=_LANCZOS, src_color_range=_FULL, dst_color_range=colour.range,
        ),
        colour,
    )  # fmt: skip


def converted(frame: Any, colour: Colour, layout: str, to_full: bool = False) -> Any:
    """Change the layout of a decoded frame, not its size."""
    given = _FULL if colour.rgb else colour.range
    return frame.reformat(
        format=layout, src_colorspace=colour.matrix, dst_colorspace=colour.matrix,
        interpolation=_BICUBIC, src_color_range=given,
        dst_color_range=_FULL if to_full else colour.range,
    )  # fmt: skip


def resized(frame: Any, size: tuple[int, int], colour: Colour) -> Any:
    """Resample a frame with Lanczos; layout and colours stay."""
    if (frame.width, frame.height) == size:
        return _tagged(frame, colour)
    return _tagged(
        frame.reformat(
            *size, frame.format.name, src_colorspace=colour.matrix, dst_colorspace=colour.matrix,
            interpolation=_LANCZOS, src_color_range=colour.range, dst_color_range=colour.range,
        ),
        colour,
    )  # fmt: skip


def _tagged(frame: Any, colour: Colour) -> Any:
    frame.colorspace, frame.color_range = colour.matrix, colour.range
    frame.color_primaries, frame.color_trc = colour.primaries, colour.transfer
    return frame


def av_frame(pixels: NDArray[Any], layout: str) -> Any:
    """Make a frame of an array, which is copied."""
    from av import VideoFrame

    return VideoFrame.from_ndarray(pixels, layout)
