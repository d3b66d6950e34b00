"""Pictures brought to one size, and figures of how far they are from each other.

Everything is on the scale of 8 bits: 16-bit levels are divided by 257 and not rounded. It is done
in squares, so that large pictures need little memory beside their own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.metrics.fidelity import SIDE, Ssim, decibels
from overlay.compare.pairs import Pair
from overlay.errors import SettingsError
from overlay.files.enlarge import resized
from overlay.files.errors import FileError
from overlay.files.images import Picture, Pixels, read, transparent

log = logging.getLogger(__name__)

Levels = NDArray[np.float32]
Enlarge = Literal["nearest", "bicubic"]
#: (left, top, width, height) in pixels.
Crop = tuple[int, int, int, int]

#: Filters that bring pictures to one size.
FILTERS = {"nearest": Image.Resampling.NEAREST, "bicubic": Image.Resampling.BICUBIC}
#: What transparent pictures are laid over, in levels of 255.
GREY = 128
#: Ends of the heat map's scale, and the share of pixels that must lie below.
_ENDS = (4, 8, 16, 32, 64, 128, 255)
_WITHIN = 0.999
#: What 16-bit levels may be off by after their division; two of them are 1/257 apart.
_NOISE = np.float32(1e-3)
#: Side in pixels of the squares that are worked on.
_SQUARE = 1024


@dataclass(frozen=True, slots=True)
class Layer:
    """A picture as it is compared.

    Attributes:
        label: what it is called.
        pixels: uint8 or uint16 RGB, (H, W, 3).
        own: (width, height) of its file.
        notes: what was done to it, in words.
    """

    label: str
    pixels: Pixels
    own: tuple[int, int]
    notes: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """The size of its file, and what was done to it."""
        return ", ".join([_text(self.own), *self.notes])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as it is compared."""
        return self.pixels.shape[1], self.pixels.shape[0]


@dataclass(frozen=True, slots=True)
class Figures:
    """How far a picture is from another.

    Attributes:
        psnr: dB, peak 255, over all pixels of R, G and B; 100 for equal pictures.
        ssim: as `evaluation.metrics` has it; None for pictures of less than 11x11.
        mean, largest: difference in levels of 255, over pixels and channels.
        share: of the pixels, those with any difference, 0 to 1.
        histogram: int64 (256,), pixels by the difference of the channel that differs most, in
            levels, rounded up.
    """

    psnr: float
    ssim: float | None
    mean: float
    largest: float
    share: float
    histogram: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is known about a pair.

    Attributes:
        name: of the pair.
        layers: A, B, and the truth if there is one; of one size.
        figures: by the indices of two layers: of A and B, or of each of them and the truth.
        end: where the scale of heat maps ends, in levels.
    """

    name: str
    layers: list[Layer]
    figures: dict[tuple[int, int], Figures]
    end: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of all layers."""
        return self.layers[0].size

    @property
    def beyond(self) -> bool:
        """Whether some pixels differ by more than the scale of heat maps shows."""
        return any(found.largest > self.end for found in self.figures.values())


def compare(pair: Pair, enlarge: Enlarge, crop: Crop | None = None, end: int = 0) -> Comparison:
    """Read a pair and measure it.

    Args:
        enlarge, crop: as of `load`.
        end: where the scale of heat maps ends, in levels; 0 = where 99.9 % of the pixels are.
    Raises:
        FileError, SettingsError: as `load`.
    """
    layers = load(pair, enlarge, crop)
    couples = [(0, 2), (1, 2)] if len(layers) > 2 else [(0, 1)]
    found = {(one, other): figures(layers[one], layers[other]) for one, other in couples}
    return Comparison(pair.name, layers, found, end or scale_end([*found.values()]))


# --- reading -------------------------------------------------------------------------------------


def load(pair: Pair, enlarge: Enlarge, crop: Crop | None) -> list[Layer]:
    """Read the pictures of a pair and bring them to the size of the largest.

    Args:
        enlarge: how the smaller ones are enlarged.
        crop: (left, top, width, height) in pixels of the common size, or None.
    Raises:
        FileError: one cannot be read, or they are not of one shape.
        SettingsError: the crop is not within the pictures.
    """
    pictures = [read(path) for path in pair.paths]
    size = max((picture.size for picture in pictures), key=lambda size: size[0] * size[1])
    for picture, path in zip(pictures, pair.paths, strict=True):
        if not _same_shape(picture.size, size):
            raise FileError(
                f"{path} is {_text(picture.size)} and the largest is {_text(size)}: pictures of "
                "other proportions are not compared; cut them alike first"
            )
    if crop is not None and (crop[0] + crop[2] > size[0] or crop[1] + crop[3] > size[1]):
        wanted = ",".join(map(str, crop))
        raise SettingsError(f"--crop {wanted} is not within {pair.name}, {_text(size)}")
    if len({picture.icc for picture in pictures}) > 1:
        log.warning("%s: colour profiles differ, and are not applied", pair.name)
    return [
        _layer(picture, label, size, enlarge, crop)
        for picture, label in zip(pictures, pair.labels, strict=True)
    ]


def _same_shape(size: tuple[int, int], large: tuple[int, int]) -> bool:
    """Whether one factor enlarges both sides, to a pixel of either picture."""
    factors = [((b - 1) / (a + 1), (b + 1) / (a - 0.9)) for a, b in zip(size, large, strict=True)]
    return max(low for low, _ in factors) <= min(high for _, high in factors)


def _layer(
    picture: Picture,
    label: str,
    size: tuple[int, int],
    enlarge: Enlarge,
    crop: Crop | None,
) -> Layer:
    notes = []
    if transparent(picture):
        notes.append(f"transparent, laid over grey {GREY}")
    pixels = _opaque(picture)
    if picture.size != size:
        notes.append(f"enlarged to {_text(size)} ({enlarge})")
        pixels = resized(pixels, size, FILTERS[enlarge])
    if crop is not None:
        left, top, width, height = crop
        cut: Any = pixels[top : top + height, left : left + width].copy()
        pixels = cut
    return Layer(label, pixels, picture.size, tuple(notes))


def _opaque(picture: Picture) -> Pixels:
    """Give RGB, (H, W, 3), with what is transparent laid over grey."""
    colour: Any = picture.colour
    rgb: Pixels = np.repeat(colour[..., None], 3, 2) if picture.grey else colour
    if picture.alpha is None or not transparent(picture):
        return rgb
    laid: Pixels = np.empty_like(rgb)
    top = np.iinfo(rgb.dtype).max
    for square in _squares(*picture.size):
        seen = picture.alpha[square][..., None] / np.float32(top)
        mixed = rgb[square] * seen + np.float32(GREY * (top // 255)) * (1 - seen)
        laid[square] = np.rint(mixed).astype(rgb.dtype)
    return laid


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


# --- figures -------------------------------------------------------------------------------------


def _squares(width: int, height: int, more: int = 0) -> Iterator[tuple[slice, slice]]:
    """Cut a picture into squares, (rows, columns), each `more` pixels longer than its step."""
    for top in range(0, height - more, _SQUARE):
        for left in range(0, width - more, _SQUARE):
            bottom, right = min(height, top + _SQUARE + more), min(width, left + _SQUARE + more)
            yield slice(top, bottom), slice(left, right)


def levels(pixels: Pixels) -> Levels:
    """Give float32 levels of 255."""
    found = pixels.astype(np.float32)
    if pixels.dtype == np.uint16:
        found /= np.float32(257)
    return found


def figures(a: Layer, b: Layer) -> Figures:
    """Compare two pictures of one size."""
    count = a.size[0] * a.size[1]
    squares = absolute = largest = 0.0
    histogram = np.zeros(256, np.int64)
    for square in _squares(*a.size):
        difference = np.abs(levels(a.pixels[square]) - levels(b.pixels[square]))
        squares += float(np.sum(np.square(difference), dtype=np.float64))
        absolute += float(np.sum(difference, dtype=np.float64))
        most = difference.max(2)
        largest = max(largest, float(most.max()))
        histogram += np.bincount(np.ceil(most - _NOISE).astype(np.uint8).ravel(), minlength=256)
    return Figures(
        decibels(squares / (3 * count) / 255**2), _ssim(a, b), absolute / (3 * count), largest,
        float(1 - histogram[0] / count), histogram,
    )  # fmt: skip


def _ssim(a: Layer, b: Layer) -> float | None:
    """Give the SSIM: the mean over the squares' windows, which lie in one square each."""
    more = SIDE - 1
    if min(a.size) < SIDE:
        return None
    total, windows = 0.0, 0
    for rows, columns in _squares(*a.size, more):
        found = Ssim()(levels(a.pixels[rows, columns]), levels(b.pixels[rows, columns]))
        count = (rows.stop - rows.start - more) * (columns.stop - columns.start - more)
        total += found * count
        windows += count
    return total / windows


# --- heat maps -----------------------------------------------------------------------------------


def scale_end(found: Sequence[Figures]) -> int:
    """Choose where a heat map's scale ends, in levels.

    Returns:
        The first of a few round numbers that 99.9 % of the pixels do not exceed.
    """
    histogram = np.sum([each.histogram for each in found], axis=0)
    below = np.cumsum(histogram) / histogram.sum()
    return next(end for end in _ENDS if below[end] >= _WITHIN or end == _ENDS[-1])


def heat(a: Layer, b: Layer, end: int) -> NDArray[np.uint8]:
    """Draw the difference of the channel that differs most.

    Args:
        end: the difference, in levels, that becomes 255.
    Returns:
        uint8 (H, W); `sheet.HEAT` has the colours.
    """
    width, height = a.size
    found = np.empty((height, width), np.uint8)
    for square in _squares(width, height):
        most = np.abs(levels(a.pixels[square]) - levels(b.pixels[square])).max(2)
        found[square] = np.rint(np.minimum(most, end) * np.float32(255 / end)).astype(np.uint8)
    return found
