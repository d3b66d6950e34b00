"""Join a net's luma with the source's chroma on the host, as the presenter's shader does."""

from __future__ import annotations

import numpy as np

from engines.chroma import LUMA_BGR, with_luma
from overlay.frame import Pixels


def merge_luma(source: Pixels, luma: Pixels) -> Pixels:
    """Give luma the chroma of the source: RGB = up(source) + (luma - luma(up(source))).

    `up` enlarges bilinearly with half-pixel centres and clamped borders: what the presenter's
    `merge.glsl` does, within one level.

    Args:
        source: uint8 BGRA, (H, W, 4), host memory; alpha is ignored; not modified.
        luma: uint8 BT.601 full-range luma, (H*s, W*s), host memory; not modified.
    Returns:
        uint8 BGRA, (H*s, W*s, 4), a new array; alpha is 255.
    """
    large = with_luma(source[..., :3].astype(np.float32), luma, LUMA_BGR)
    merged = np.full((*luma.shape, 4), 255, np.uint8)
    merged[..., :3] = np.clip(np.rint(large), 0, 255)
    return merged
