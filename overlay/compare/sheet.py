"""Comparisons as one picture: side by side, cut at a line, or as heat maps.

Text is set by Pillow, in the font that comes with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from overlay.compare.measure import Comparison, Figures, Layer, heat, levels
from overlay.files.errors import FileError
from overlay.files.images import MAX_RESULT

Pixels = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

#: Colours of heat maps, uint8 RGB (256, 3): black where nothing differs, to yellow and white.
HEAT: Pixels = np.ascontiguousarray(
    cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)[:, 0, ::-1],
    np.uint8,
)
_PAPER, _INK, _SOFT = (24, 24, 27), (235, 235, 240), (170, 170, 180)
_FONT = 14  # size in pixels
_LINE = 19  # from line to line
_PAD = 8
_LEAST = 320  # narrower pictures get so wide a panel, for the words above them
_TICKS = 4  # parts of a legend


def eight(layer: Layer) -> Pixels:
    """Give uint8 RGB, (H, W, 3)."""
    if layer.pixels.dtype == np.uint8:
        return layer.pixels.astype(np.uint8, copy=False)
    return np.rint(levels(layer.pixels)).astype(np.uint8)


def side_by_side(found: Comparison, zoom: int = 1) -> Pixels:
    """Draw all layers beside each other, each with its name and figures.

    Args:
        zoom: every pixel becomes a square of so many.
    Returns:
        uint8 RGB, (H, W, 3).
    Raises:
        FileError: the result would be too large.
    """
    _check(found, zoom, len(found.layers))
    panels = []
    for index, layer in enumerate(found.layers):
        lines = [layer.about]
        for (one, other), each in found.figures.items():
            if one == index:
                lines += [figures_text(each), f"against {found.layers[other].label}"]
        panels.append(_Panel(_large(eight(layer), zoom), layer.label, lines))
    return _row(panels)


def wipe(found: Comparison, zoom: int = 1, at: float = 0.5) -> Pixels:
    """Draw A to the left of a line and B to the right of it.

    Args:
        zoom: every pixel becomes a square of so many.
        at: where the line is, 0 to 1 of the width.
    Returns:
        uint8 RGB, (H, W, 3).
    Raises:
        FileError: the result would be too large.
    """
    _check(found, zoom, 1)
    a, b = found.layers[:2]
    width = found.size[0]
    column = round(at * width)
    pixels = _large(np.concatenate([eight(a)[:, :column], eight(b)[:, column:]], 1), zoom)
    if 0 < column < width:
        pixels[:, max(0, column * zoom - 2) : column * zoom + 2] = 0
        pixels[:, column * zoom - 1 : column * zoom + 1] = 255
    lines = [f"left: {a.about}   right: {b.about}"]
    if len(found.layers) > 2:
        one, other = map(figures_text, found.figures.values())
        lines += [f"left: {one}   right: {other}", f"against {found.layers[2].label}"]
    else:
        lines += map(figures_text, found.figures.values())
    return _row([_Panel(pixels, f"left: {a.label}   right: {b.label}", lines)])


def differences(found: Comparison, zoom: int = 1) -> Pixels:
    """Draw heat maps of what has figures, and their scale.

    Args:
        zoom: every pixel becomes a square of so many.
    Returns:
        uint8 RGB, (H, W, 3).
    Raises:
        FileError: the result would be too large.
    """
    _check(found, zoom, len(found.figures))
    panels = []
    for (one, other), each in found.figures.items():
        a, b = found.layers[one], found.layers[other]
        lines = [f"and {b.label}", f"{a.about} and {b.about}", figures_text(each)]
        map_ = _large(HEAT[heat(a, b, found.end)], zoom)
        panels.append(_Panel(map_, f"difference of {a.label}", lines))
    row = _row(panels)
    return np.concatenate([row, _legend(row.shape[1], found)])


# --- words ---------------------------------------------------------------------------------------


def figures_text(found: Figures) -> str:
    """Say PSNR and SSIM."""
    psnr = "equal" if found.largest == 0 else f"PSNR {found.psnr:.2f} dB"
    return psnr if found.ssim is None else f"{psnr}   SSIM {found.ssim:.4f}"


def scale_text(found: Comparison, level: int) -> str:
    """Name a place on the scale of heat maps."""
    return f"{level} or more" if level == found.end and found.beyond else str(level)


def _legend(width: int, found: Comparison) -> Pixels:
    """Draw the scale of heat maps: a bar, and levels below it."""
    board = Image.new("RGB", (width, 2 * _LINE + 3 * _PAD), _PAPER)
    draw = ImageDraw.Draw(board)
    font = ImageFont.load_default(_FONT)
    long = min(width, 512) - 2 * _PAD
    bar = HEAT[np.linspace(0, 255, long).astype(np.uint8)][None].repeat(_LINE, 0)
    board.paste(Image.fromarray(bar), (_PAD, _PAD))
    for tick in range(_TICKS + 1):
        text = scale_text(found, found.end * tick // _TICKS)
        anchor = "la" if tick == 0 else "ra" if tick == _TICKS else "ma"
        x = _PAD + long * tick // _TICKS
        draw.text((x, 2 * _PAD + _LINE), text, _SOFT, font, anchor=anchor)
    words = "levels of 255, of the channel that differs most"
    if width >= long + 4 * _PAD + draw.textlength(words, font):
        draw.text((long + 3 * _PAD, _PAD + 2), words, _SOFT, font)
    return np.array(board, np.uint8)


# --- panels --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Panel:
    """A picture, uint8 RGB (H, W, 3), and what is said above it."""

    pixels: Pixels
    title: str
    lines: Sequence[str]


def _row(panels: Sequence[_Panel]) -> Pixels:
    """Draw panels whose pictures are of one size beside each other: uint8 RGB."""
    height, width = panels[0].pixels.shape[:2]
    wide = max(_LEAST, width)
    head = (1 + max(len(panel.lines) for panel in panels)) * _LINE + 2 * _PAD
    row: Pixels = np.empty((head + height, len(panels) * (wide + _PAD) - _PAD, 3), np.uint8)
    row[:] = _PAPER
    for number, panel in enumerate(panels):
        left = number * (wide + _PAD)
        row[:head, left : left + wide] = _heading((wide, head), [panel.title, *panel.lines])
        inner = left + (wide - width) // 2
        row[head:, inner : inner + width] = panel.pixels
    return row


def _heading(size: tuple[int, int], lines: Sequence[str]) -> Pixels:
    board = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(board)
    font = ImageFont.load_default(_FONT)
    for number, line in enumerate(lines):
        text = _shortened(line, font, size[0] - 2 * _PAD)
        draw.text((_PAD, _PAD + number * _LINE), text, _SOFT if number else _INK, font)
    return np.array(board, np.uint8)


def _shortened(text: str, font: Font, width: int) -> str:
    """Leave out the middle of what is too wide."""
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept > 2 and font.getlength(_cut(text, kept)) > width:
        kept -= 1
    return _cut(text, kept)


def _cut(text: str, kept: int) -> str:
    return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"


def _large(pixels: Pixels, zoom: int) -> Pixels:
    return pixels.repeat(zoom, 0).repeat(zoom, 1)


def _check(found: Comparison, zoom: int, panels: int) -> None:
    """Raises FileError if so many panels would be too large."""
    width, height = (side * zoom for side in found.size)
    if max(_LEAST, width) * height * panels > MAX_RESULT // 2:
        raise FileError(
            f"{found.name}: {panels} times {width}x{height} is too large for one picture: --crop, "
            "or a smaller --zoom"
        )
