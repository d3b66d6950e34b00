"""Give a luma picture its source's chroma on the host, on the infer thread.

For where OpenGL runs on the CPU: there the presenter's shader, which does the same, takes some
three times as long.
"""

from __future__ import annotations

import cv2
import numpy as np

from overlay.frame import Pixels


class ChromaMerger:
    """`merge.merge_luma` for every frame: fast, approximate, without allocation.

    In 8-bit YCrCb, so a level or two off.

    Args:
        size: (width, height) of the source in pixels.
        scale: of the luma.
    """

    def __init__(self, size: tuple[int, int], scale: int) -> None:
        width, height = size
        self._size = (width * scale, height * scale)
        self._small = np.zeros((height, width, 3), np.uint8)
        self._large = np.zeros((height * scale, width * scale, 3), np.uint8)

    def merge(self, source: Pixels, luma: Pixels, picture: Pixels) -> None:
        """Write the merged picture.

        Args:
            source: uint8 BGRA, (H, W, 4); read.
            luma: uint8 BT.601 full range, (H*s, W*s); read.
            picture: uint8 BGRA, (H*s, W*s, 4), contiguous; written, alpha 255.
        """
        cv2.cvtColor(source, cv2.COLOR_BGR2YCrCb, dst=self._small)
        cv2.resize(self._small, self._size, dst=self._large, interpolation=cv2.INTER_LINEAR)
        cv2.insertChannel(luma, self._large, 0)
        cv2.cvtColor(self._large, cv2.COLOR_YCrCb2BGR, dst=picture, dstCn=4)
