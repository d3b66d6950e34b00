"""What a net must beat: interpolation on the CPU, each with its kernel stated.

All with half-pixel centres and borders repeated, in uint8, rounded and clamped at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Upscale = Callable[[Pixels, int], Pixels]


@lru_cache(maxsize=16)
def cubic_matrix(length: int, wanted: int, a: float) -> NDArray[np.float32]:
    """Cubic convolution along one axis as a matrix (Keys 1981).

    Args:
        length, wanted: pixels before and after. Where they become fewer the kernel is stretched
            by their ratio, which antialiases, as in MATLAB's imresize.
        a: the kernel's slope at 1; -0.5 is Catmull-Rom.
    Returns:
        float32 (wanted, length); rows sum to 1. Beyond the border the picture is repeated when it
        is enlarged, mirrored when it is made smaller (MATLAB's way).
    """
    step = length / wanted
    stretch = max(1.0, step)
    taps = int(np.ceil(4 * stretch)) + 2
    centre = (np.arange(wanted) + 0.5) * step - 0.5
    index = np.floor(centre - taps / 2).astype(int)[:, None] + 1 + np.arange(taps)
    weights = _cubic(np.abs(centre[:, None] - index) / stretch, a)
    weights /= weights.sum(axis=1, keepdims=True)
    if stretch > 1:
        folded = np.mod(index, 2 * length)
        index = np.minimum(folded, 2 * length - 1 - folded)
    matrix = np.zeros((wanted, length))
    rows = np.broadcast_to(np.arange(wanted)[:, None], index.shape)
    np.add.at(matrix, (rows, np.clip(index, 0, length - 1)), weights)
    matrix.setflags(write=False)
    return matrix.astype(np.float32)


def _cubic(distance: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    d = distance
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def catmull_rom(picture: Pixels, scale: int) -> Pixels:
    """Cubic convolution with a = -0.5; uint8 (H, W, 3) to (H*scale, W*scale, 3)."""
    height, width = picture.shape[:2]
    rows = cubic_matrix(height, height * scale, -0.5)
    columns = cubic_matrix(width, width * scale, -0.5).T
    planes = picture.astype(np.float32)
    large = np.stack([rows @ (planes[..., c] @ columns) for c in range(3)], axis=-1)
    rounded: Pixels = np.clip(np.rint(large), 0, 255).astype(np.uint8)
    return rounded


def _opencv(interpolation: int) -> Upscale:
    def upscale(picture: Pixels, scale: int) -> Pixels:
        size = (picture.shape[1] * scale, picture.shape[0] * scale)
        return cv2.resize(picture, size, interpolation=interpolation).astype(np.uint8, copy=False)

    return upscale


#: By name: what the kernel is, and the function: uint8 (H, W, 3) to (H*scale, W*scale, 3).
BASELINES: dict[str, tuple[str, Upscale]] = {
    "nearest": ("every pixel repeated", _opencv(cv2.INTER_NEAREST)),
    "bilinear": ("2x2 taps, cv2.INTER_LINEAR", _opencv(cv2.INTER_LINEAR)),
    "bicubic": ("4x4 taps, Keys a = -0.75, cv2.INTER_CUBIC", _opencv(cv2.INTER_CUBIC)),
    "catmull-rom": ("4x4 taps, Keys a = -0.5", catmull_rom),
    "lanczos": ("8x8 taps, Lanczos of order 4, cv2.INTER_LANCZOS4", _opencv(cv2.INTER_LANCZOS4)),
}
