"""Join a net's luma with the colours of its source, in float."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: BT.601 full-range luma weights in BGR order.
LUMA_BGR = np.array([0.114, 0.587, 0.299], np.float32)
LUMA_RGB = np.ascontiguousarray(LUMA_BGR[::-1])


def with_luma(source: Floats, luma: NDArray[np.uint8] | Floats, weights: Floats) -> Floats:
    """Give luma the chroma of the source: up(source) + (luma - luma(up(source))).

    `up` enlarges bilinearly with half-pixel centres and clamped borders.

    Args:
        source: (H, W, 3), not modified.
        luma: BT.601 full range, (H*s, W*s), on the same scale of numbers; not modified.
        weights: luma of the source's channels, in their order.
    Returns:
        (H*s, W*s, 3), a new array, not clipped.
    """
    size = (luma.shape[1], luma.shape[0])
    large = cv2.resize(source, size, interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)
    large += (luma - large @ weights)[..., np.newaxis]
    return large
