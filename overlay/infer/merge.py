"""Join a net's luma with the source's chroma on the host, as the presenter's shader does."""

from __future__ import annotations

import cv2
import numpy as np

from overlay.frame import Pixels

#: BT.601 full-range luma weights in BGR order.
LUMA_BGR = np.array([0.114, 0.587, 0.299], np.float32)

#: Before bilinear enlarging: exactly Catmull-Rom halfway between pixels, close to it elsewhere.
CRISPEN = np.array([-0.125, 1.25, -0.125], np.float32)

#: Levels beyond 0 and 255 that are kept of the overshoot, so that 8 bits go in larger steps.
SPARE = np.float32(255 / 8)
_STEP = np.float32(1.25)


def merge_luma(source: Pixels, luma: Pixels) -> Pixels:
    """Give luma the chroma of the source: RGB = up(source) + (luma - luma(up(source))).

    `up` filters with `CRISPEN` along both axes, keeps 8 bits of that, and enlarges bilinearly
    with half-pixel centres and clamped borders: what the presenter's `crispen.glsl` and
    `merge.glsl` do, within one level but for ties.

    Args:
        source: uint8 BGRA, (H, W, 4), host memory; alpha is ignored; not modified.
        luma: uint8 BT.601 full-range luma, (H*s, W*s), host memory; not modified.
    Returns:
        uint8 BGRA, (H*s, W*s, 4), a new array; alpha is 255.
    """
    plain = source[..., :3].astype(np.float32)
    crisp = cv2.sepFilter2D(plain, -1, CRISPEN, CRISPEN, borderType=cv2.BORDER_REPLICATE)
    crisp = np.clip(np.rint((crisp + SPARE) / _STEP), 0, 255) * _STEP - SPARE
    size = (luma.shape[1], luma.shape[0])
    large = cv2.resize(crisp, size, interpolation=cv2.INTER_LINEAR)
    large += (luma - large @ LUMA_BGR)[..., np.newaxis]
    merged = np.full((*luma.shape, 4), 255, np.uint8)
    merged[..., :3] = np.clip(np.rint(large), 0, 255)
    return merged
