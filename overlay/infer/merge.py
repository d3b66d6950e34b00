"""Join a net's luma with the source's chroma on the host, as the presenter's shader does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from overlay.frame import Pixels

#: BT.601 full-range luma weights in BGR order.
LUMA_BGR = np.array([0.114, 0.587, 0.299], np.float32)

#: Catmull-Rom's weights of the samples at -1, 0, 1 and 2 for a point t past sample 0: rows are
#: the coefficients of 1, t, t^2 and t^3.
_CATMULL_ROM = 0.5 * np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]])


def merge_luma(source: Pixels, luma: Pixels) -> Pixels:
    """Give luma the chroma of the source: RGB = up(source) + (luma - luma(up(source))).

    `up` is Catmull-Rom with half-pixel centres and clamped borders. Equal to the presenter's
    `merge.glsl` within one level.

    Args:
        source: uint8 BGRA, (H, W, 4), host memory; alpha is ignored; not modified.
        luma: uint8 BT.601 full-range luma, (H*s, W*s), s whole, host memory; not modified.
    Returns:
        uint8 BGRA, (H*s, W*s, 4), a new array; alpha is 255.

    Raises:
        ValueError: the sizes are no whole multiple of each other.
    """
    scale = luma.shape[0] // source.shape[0]
    if luma.shape != (source.shape[0] * scale, source.shape[1] * scale):
        raise ValueError(f"luma of shape {luma.shape} is no multiple of {source.shape[:2]}")
    large = _enlarge(_enlarge(source[..., :3].astype(np.float32), scale, 0), scale, 1)
    large += (luma - large @ LUMA_BGR)[..., np.newaxis]
    merged = np.full((*luma.shape, 4), 255, np.uint8)
    merged[..., :3] = np.clip(np.rint(large), 0, 255)
    return merged


def _enlarge(image: NDArray[np.float32], scale: int, axis: int) -> NDArray[np.float32]:
    """Enlarge (H, W, 3) along one axis: each of `scale` phases is a filter of four taps."""
    count = image.shape[axis]
    shape = list(image.shape)
    shape[axis] = count * scale
    large = np.empty(shape, np.float32)
    for phase in range(scale):
        where = (phase + 0.5) / scale - 0.5
        base = int(np.floor(where))
        weights = (where - base) ** np.arange(4) @ _CATMULL_ROM
        taps = [
            np.float32(weight) * image.take(np.arange(count) + base + k - 1, axis, mode="clip")
            for k, weight in enumerate(weights)
        ]
        target = (slice(None),) * axis + (slice(phase, None, scale),)
        large[target] = sum(taps)
    return large
