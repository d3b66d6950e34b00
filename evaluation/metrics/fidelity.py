"""PSNR and SSIM: how far a picture is from the truth, pixel for pixel and window for window."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Planes = NDArray[np.float32]

#: PSNR of equal pictures, in dB: means stay finite.
EQUAL_DB = 100.0
#: What piq adds to a squared error of pictures in 0..1: no PSNR of its is above 80 dB.
PIQ_EPSILON = 1e-8

#: Side of SSIM's windows in pixels.
SIDE = 11
_SIGMA = 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
#: BT.601 luma of full-range R, G, B in 16..235, as MATLAB's rgb2ycbcr.
_VIDEO_LUMA = np.array([65.481, 128.553, 24.966], np.float32) / np.float32(255)


def psnr(picture: Pixels, truth: Pixels) -> float:
    """Peak signal-to-noise ratio over all pixels and channels at once.

    Args:
        picture, truth: uint8, equal shapes.
    Returns:
        dB for a peak of 255; `EQUAL_DB` for equal pictures, and never more.
    """
    return decibels(_squared_error(picture, truth) / 255**2)


def psnr_y(picture: Pixels, truth: Pixels) -> float:
    """PSNR of `video_luma`, peak 255: the Y of the super-resolution papers.

    Args:
        picture, truth: uint8 RGB (H, W, 3).
    """
    return decibels(_squared_error(video_luma(picture), video_luma(truth)) / 255**2)


def psnr_piq(picture: Pixels, truth: Pixels) -> float:
    """PSNR as `piq.psnr` computes it: at most 80 dB."""
    return float(-10 * np.log10(_squared_error(picture, truth) / 255**2 + PIQ_EPSILON))


def video_luma(rgb: Pixels) -> Planes:
    """BT.601 luma in 16..235, float32 (H, W), not rounded, of uint8 RGB (H, W, 3)."""
    return np.float32(16) + rgb.astype(np.float32) @ _VIDEO_LUMA


def _squared_error(a: NDArray[np.uint8] | Planes, b: NDArray[np.uint8] | Planes) -> float:
    difference = a.astype(np.float32) - b.astype(np.float32)
    return float(np.mean(np.square(difference), dtype=np.float64))


def decibels(error: float) -> float:
    """Give the PSNR of a mean squared error of values in 0..1; `EQUAL_DB` at most."""
    return EQUAL_DB if error == 0 else min(EQUAL_DB, float(-10 * np.log10(error)))


class Ssim:
    """Structural similarity (Wang et al. 2004), mean over windows, then over R, G and B.

    Gaussian windows of 11x11, sigma 1.5, biased variances, K1 = 0.01, K2 = 0.03, only windows
    that lie inside the picture, at the picture's own size.

    Args:
        pooled: first average blocks of round(shorter side / 256) pixels, as the authors' code
            suggests for one viewing distance and `piq.ssim` does unless told not to.
    """

    def __init__(self, *, pooled: bool = False) -> None:
        self._pooled = pooled
        self._truth: Pixels | Planes | None = None

    def __call__(self, picture: Pixels | Planes, truth: Pixels | Planes) -> float:
        """Compare (H, W, 3) of 11x11 pixels or more; order of channels does not matter.

        Args:
            picture, truth: uint8, or float32 levels of 255.
        """
        if truth is not self._truth:
            self._planes = self._prepared(truth)
            self._mean, self._square = _blurred(self._planes), _blurred(self._planes**2)
            self._truth = truth
        a, b = self._prepared(picture), self._planes
        mean_a, mean_b = _blurred(a), self._mean
        means, squares = mean_a * mean_b, mean_a**2 + mean_b**2
        variances = _blurred(a * a) + self._square - squares
        covariance = _blurred(a * b) - means
        top = (2 * means + _C1) * (2 * covariance + _C2)
        return float(np.mean(top / ((squares + _C1) * (variances + _C2)), dtype=np.float64))

    def _prepared(self, picture: Pixels | Planes) -> Planes:
        planes = picture.astype(np.float32)
        block = round(min(planes.shape[:2]) / 256) if self._pooled else 1
        if block > 1:
            height, width = (side // block * block for side in planes.shape[:2])
            size = (width // block, height // block)
            planes = cv2.resize(planes[:height, :width], size, interpolation=cv2.INTER_AREA).astype(
                np.float32, copy=False
            )
        if min(planes.shape[:2]) < SIDE:
            raise ValueError(f"SSIM needs {SIDE}x{SIDE} pixels, not {planes.shape[:2]}")
        return planes


def _blurred(planes: Planes) -> Planes:
    inner = SIDE // 2
    blurred = cv2.GaussianBlur(planes, (SIDE, SIDE), _SIGMA)
    return blurred[inner:-inner, inner:-inner].astype(np.float32, copy=False)
