"""Crops side by side: LR, interpolation, models, HR, each with its name, as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

_CAPTION = 26
_GAP = 4
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def busiest(truth: Pixels, side: int, scale: int) -> tuple[int, int]:
    """Find the square with the most detail.

    Args:
        truth: uint8 BGR (H, W, 3).
        side: of the square, at most the picture's; a multiple of `scale`.
        scale: the corner lies on a multiple of it.
    Returns:
        (top, left) in pixels of `truth`.
    """
    grey = cv2.cvtColor(truth, cv2.COLOR_BGR2GRAY).astype(np.float32)
    detail = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    # Strong edges count less than many edges: a border between wall and sky is no texture.
    sums = cv2.integral(np.minimum(detail, 40).astype(np.float32))
    step = scale * max(1, 16 // scale)
    tops = np.arange(0, truth.shape[0] - side + 1, step)
    lefts = np.arange(0, truth.shape[1] - side + 1, step)
    top, left = tops[:, None], lefts[None, :]
    total = sums[top + side, left + side] - sums[top, left + side]
    total = total - sums[top + side, left] + sums[top, left]
    row, column = np.unravel_index(int(np.argmax(total)), total.shape)
    return int(tops[row]), int(lefts[column])


def sheet(
    pictures: Mapping[str, Pixels], corner: tuple[int, int], side: int, columns: int, zoom: int = 1
) -> Pixels:
    """Put crops beside each other.

    Args:
        pictures: by caption, uint8 BGR, all of HR's size.
        corner: (top, left) of the crop.
        side: of the crop in HR pixels.
        columns: in a row.
        zoom: every pixel is shown as a square of so many.
    Returns:
        uint8 BGR.
    """
    top, left = corner
    tiles = []
    for caption, picture in pictures.items():
        cut = picture[top : top + side, left : left + side]
        large = cut.repeat(zoom, axis=0).repeat(zoom, axis=1)
        tiles.append(_captioned(large, caption))
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % columns)
    rows = [_joined(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return _joined(rows, axis=0)


def _captioned(tile: Pixels, caption: str) -> Pixels:
    width = tile.shape[1]
    bar = np.full((_CAPTION, width, 3), 255, np.uint8)
    size = 0.55
    while size > 0.25 and cv2.getTextSize(caption, _FONT, size, 1)[0][0] > width - 8:
        size -= 0.05
    cv2.putText(bar, caption, (4, 18), _FONT, size, (20, 20, 20), 1, cv2.LINE_AA)
    return np.vstack([bar, tile])


def _joined(parts: Sequence[Pixels], axis: int) -> Pixels:
    shape = list(parts[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    between = [piece for part in parts for piece in (part, gap)][:-1]
    return np.concatenate(between, axis=axis)
