"""Flicker: how much the error of a sequence changes from one frame to the next.

With e_t = upscaled - true luma of frame t, flicker is the mean of |e_t - e_(t-1)| over pixels and
pairs of consecutive frames, which is |(sr_t - sr_(t-1)) - (hr_t - hr_(t-1))|: change that the true
sequence does not have. An error that stays where it is costs nothing. Like the temporal terms
of TecoGAN (Chu et al. 2020: tLP compares changes between frames of result and truth) it needs no
optical flow; unlike a warping error (Lai et al. 2018) it cannot be won by blurring the motion of
the truth away. What it also counts is error that moves along with a moving texture, so it falls
with sharpness as well as with steadiness: compare within one sequence, beside PSNR. Frames must
follow each other in time, not only in number: `motion` says how much the truth itself changes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.fidelity import Pixels, Planes

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Flicker:
    """Flicker of one upscaler; keeps one frame's error."""

    def __init__(self) -> None:
        self._before: tuple[Planes, Planes] | None = None  # error and truth
        self._at: tuple[str, int] | None = None
        #: Mean |change of the truth| at each frame that was counted, in levels.
        self.motion: list[float] = []

    def __call__(self, rgb: Pixels, truth: Pixels, sequence: str, frame: int) -> float | None:
        """Take the next frame.

        Args:
            rgb, truth: uint8 RGB (H, W, 3).
            sequence, frame: where it belongs; a frame counts if the one before it, of the same
                sequence and size, was the last one taken.
        Returns:
            Mean |change of the error| in levels of BT.601 full-range luma, 0..255; None for a
            frame without a predecessor.
        """
        true = luma(truth)
        now = luma(rgb) - true, true
        before = self._before if self._at == (sequence, frame - 1) else None
        self._before, self._at = now, (sequence, frame)
        if before is None or before[0].shape != true.shape:
            return None
        error, motion = (
            float(np.mean(np.abs(a - b), dtype=np.float64))
            for a, b in zip(now, before, strict=True)
        )
        self.motion.append(motion)
        return error


def luma(rgb: Pixels) -> NDArray[np.float32]:
    """BT.601 full-range luma, float32 (H, W), 0..255, of uint8 RGB (H, W, 3)."""
    return rgb.astype(np.float32) @ _LUMA
