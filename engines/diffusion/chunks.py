"""Big pictures in overlapping chunks, joined without seams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
#: Standard deviation of the weights over a chunk's length.
_SPREAD = 0.1


@dataclass(frozen=True, slots=True)
class Span:
    """One chunk along one axis.

    Attributes:
        start, stop: in source pixels.
        weights: float32 [(stop - start) * scale]: the chunk's share of each result pixel; those
            of all chunks of an axis are 1 together.
    """

    start: int
    stop: int
    weights: Floats


def spans(length: int, chunk: int, overlap: int, scale: int) -> list[Span]:
    """Cut an axis into chunks that overlap by `overlap` or, for the last two, more.

    Weights are Gaussian bells around the middle of each chunk ("Mixture of Diffusers", Jiménez
    2023, arXiv 2302.02412, whose variance of 0.01 is kept), divided by their sum: next to a
    chunk's edge its neighbour has nearly all the weight.

    Args:
        length: of the axis, in source pixels.
        chunk: longest chunk.
        overlap: at least 1, at most half of `chunk`.
        scale: result pixels of a source pixel.
    Raises:
        ValueError: the overlap does not suit the chunk, or there is nothing to cut.
    """
    if length < 1 or not 1 <= overlap <= chunk // 2:
        raise ValueError(f"cannot cut {length} pixels into chunks of {chunk} by {overlap}")
    count = max(1, -(-(length - overlap) // (chunk - overlap)))
    starts = [max(0, min(number * (chunk - overlap), length - chunk)) for number in range(count)]
    size = min(chunk, length) * scale
    place = (np.arange(size) + 0.5) / size - 0.5
    bell = np.exp(-0.5 * (place / _SPREAD) ** 2)
    total = np.zeros(length * scale)
    for start in starts:
        total[start * scale : start * scale + size] += bell
    return [
        Span(
            start,
            start + size // scale,
            (bell / total[start * scale : start * scale + size]).astype(np.float32),
        )
        for start in starts
    ]


def upscaled(
    picture: Floats,
    scale: int,
    chunk: int,
    overlap: int,
    run: Callable[[Floats, int, int], Floats],
    progress: Callable[[float], None] = lambda fraction: None,
) -> Floats:
    """Upscale chunk by chunk.

    Beside the result only one chunk is held at a time. A picture that is no larger than a chunk
    is one chunk, and the result is what `run` gave.

    Args:
        picture: float32 (H, W, C); not modified.
        chunk: width and height of a chunk in source pixels.
        overlap: of neighbours, in source pixels, see `spans`.
        run: takes a piece (h, w, C) and its top and left in the picture; gives it upscaled,
            (h*scale, w*scale, C).
        progress: told the finished share after every chunk.
    Returns:
        float32 (H*scale, W*scale, C).
    Raises:
        ValueError: as `spans`.
    """
    rows = spans(picture.shape[0], chunk, overlap, scale)
    columns = spans(picture.shape[1], chunk, overlap, scale)
    height, width, channels = picture.shape
    canvas = np.zeros((height * scale, width * scale, channels), np.float32)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            piece = picture[row.start : row.stop, column.start : column.stop]
            part = run(piece, row.start, column.start)
            weights = row.weights[:, None, None] * column.weights[None, :, None]
            y, x = row.start * scale, column.start * scale
            canvas[y : y + part.shape[0], x : x + part.shape[1]] += part * weights
            progress((i * len(columns) + j + 1) / (len(rows) * len(columns)))
    return canvas
