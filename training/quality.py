"""Picture quality: the plain upscales to beat, and the measures."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from training.pairs import Image, Plane, luma


def bicubic_matrix(length: int, scale: int, a: float = -0.5) -> Plane:
    """Make the (length*scale, length) matrix of Keys' cubic (1981), half-pixel centres.

    Args:
        length: input samples; beyond its ends the edge sample is repeated.
        scale: factor.
        a: -0.5 is Catmull-Rom, -0.75 is cv2's and torch's.
    """
    matrix = np.zeros((length * scale, length), np.float32)
    for row in range(length * scale):
        position = (row + 0.5) / scale - 0.5
        first = int(np.floor(position)) - 1
        for tap in range(first, first + 4):
            d = abs(position - tap)
            if d <= 1:
                weight = (a + 2) * d**3 - (a + 3) * d**2 + 1
            else:
                weight = a * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[row, min(max(tap, 0), length - 1)] += weight
    return matrix


def catmull_rom(bgr: Image, scale: int) -> Plane:
    """Upscale uint8 BGR (H, W, 3) to float32 BGR (H*scale, W*scale, 3), not clamped."""
    rows = bicubic_matrix(bgr.shape[0], scale)
    columns = bicubic_matrix(bgr.shape[1], scale).T
    planes = [rows @ (bgr[..., c].astype(np.float32) @ columns) for c in range(3)]
    return np.stack(planes, axis=-1)


def cv2_cubic(bgr: Image, scale: int) -> Image:
    """Upscale uint8 BGR (H, W, 3) with cv2's INTER_CUBIC."""
    size = (bgr.shape[1] * scale, bgr.shape[0] * scale)
    return cv2.resize(bgr, size, interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)


def to_bytes(picture: Plane) -> Image:
    """Round and clamp to uint8."""
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def with_luma(bgr: Plane, new_luma: NDArray[np.uint8]) -> Image:
    """Replace the luma of float BGR (H, W, 3) by uint8 (H, W), as the presenter does.

    The same difference is added to the three channels, so that chroma stays.
    """
    difference = new_luma.astype(np.float32) - luma(bgr)
    return to_bytes(bgr + difference[..., None])


def psnr(picture: NDArray[np.uint8] | Plane, truth: NDArray[np.uint8] | Plane) -> float:
    """Peak signal-to-noise ratio in dB, peak 255; 100 for equal pictures."""
    error = float(np.mean((picture.astype(np.float64) - truth.astype(np.float64)) ** 2))
    return 100.0 if error == 0 else float(10 * np.log10(255**2 / error))


def video_luma(bgr: Image) -> Plane:
    """BT.601 luma in 16..235, float32 (H, W): the Y of the super-resolution papers."""
    return 16 + luma(bgr) * np.float32(219 / 255)


def ssim(a: Plane, b: Plane) -> float:
    """Structural similarity (Wang et al. 2004): 11x11 Gaussian, sigma 1.5, planes 0..255."""

    def smooth(plane: Plane) -> Plane:
        blurred = cv2.GaussianBlur(plane, (11, 11), 1.5)[5:-5, 5:-5]
        return blurred.astype(np.float32, copy=False)

    mean_a, mean_b = smooth(a), smooth(b)
    var_a = smooth(a * a) - mean_a**2
    var_b = smooth(b * b) - mean_b**2
    both = smooth(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float(np.mean(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))


def sharpness(picture: Image, truth: Image) -> float:
    """Variance of the luma Laplacian, divided by the truth's: 1 is as sharp as the truth."""
    values = [float(cv2.Laplacian(luma(p), cv2.CV_32F).var()) for p in (picture, truth)]
    return values[0] / max(values[1], 1e-9)
