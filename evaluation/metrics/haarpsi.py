"""HaarPSI: similarity of Haar wavelet coefficients, weighted by where there is something to see.

Reisenhofer, Bosse, Kutyniok, Wiegand: A Haar wavelet-based perceptual similarity index for image
quality assessment. Signal Processing: Image Communication 61 (2018).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.fidelity import Pixels, Planes

#: The paper's constants, fitted on four databases of people's opinions.
_C = np.float32(30.0)
_ALPHA = np.float32(4.2)
#: Y, I and Q of R, G and B, rounded as in the authors' code.
_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], np.float32
)
_SCALES = 3
#: Pictures must have a side of twice the coarsest filter, as they are halved first.
SMALLEST = 2 ** (_SCALES + 1)


class _Parts:
    """What is needed of one picture: |Haar coefficients| of Y, |2x2 means| of I and Q."""

    def __init__(self, rgb: Pixels) -> None:
        yiq = rgb.astype(np.float32) @ _YIQ.T
        height, width = yiq.shape[:2]
        even = np.zeros((height + height % 2, width + width % 2, 3), np.float32)
        even[:height, :width] = yiq
        half = (even.shape[1] // 2, even.shape[0] // 2)
        small = cv2.resize(even, half, interpolation=cv2.INTER_AREA)
        luma = _plane(small, 0)
        #: By orientation, then by scale.
        self.details = [
            [_magnitude(luma, _haar(scale, transposed)) for scale in range(1, _SCALES + 1)]
            for transposed in (False, True)
        ]
        box = np.full((2, 2), 0.25, np.float32)
        self.chroma = [_magnitude(_plane(small, channel), box) for channel in (1, 2)]


def _plane(picture: NDArray[Any], channel: int) -> Planes:
    return np.ascontiguousarray(picture[..., channel], np.float32)


def _haar(scale: int, transposed: bool) -> Planes:
    side = 2**scale
    kernel = np.full((side, side), 1 / side, np.float32)
    kernel[side // 2 :] *= -1
    return np.ascontiguousarray(kernel.T) if transposed else kernel


def _magnitude(plane: Planes, kernel: Planes) -> Planes:
    """|Correlation|, zero outside, aligned as MATLAB's conv2(..., 'same')."""
    before = kernel.shape[0] // 2 - 1
    filtered = cv2.filter2D(
        plane, cv2.CV_32F, kernel, anchor=(before, before), borderType=cv2.BORDER_CONSTANT
    )
    return np.abs(filtered).astype(np.float32, copy=False)


def _similar(a: Planes, b: Planes) -> Planes:
    similarity = (2 * a * b + _C) / (a * a + b * b + _C)
    return similarity.astype(np.float32, copy=False)


class HaarPsi:
    """HaarPSI with the paper's constants, on pictures halved by averaging 2x2 pixels."""

    def __init__(self) -> None:
        self._truth: Pixels | None = None

    def __call__(self, rgb: Pixels, truth: Pixels) -> float:
        """Compare uint8 RGB (H, W, 3), sides of `SMALLEST` or more; 0..1, 1 for equal ones."""
        if min(rgb.shape[:2]) < SMALLEST:
            raise ValueError(f"HaarPSI needs {SMALLEST}x{SMALLEST} pixels, not {rgb.shape[:2]}")
        if truth is not self._truth:
            self._parts, self._truth = _Parts(truth), truth
        a, b = _Parts(rgb), self._parts
        similarities: list[Planes] = []
        weights: list[Planes] = []
        for one, other in zip(a.details, b.details, strict=True):
            finest = [_similar(one[scale], other[scale]) for scale in range(_SCALES - 1)]
            similarities.append(np.mean(finest, axis=0, dtype=np.float32))
            weights.append(np.maximum(one[-1], other[-1]))
        colours = [_similar(one, other) for one, other in zip(a.chroma, b.chroma, strict=True)]
        similarities.append(np.mean(colours, axis=0, dtype=np.float32))
        weights.append((weights[0] + weights[1]) / np.float32(2))
        return _pooled(np.stack(similarities), np.stack(weights))


def _pooled(similarity: Planes, weight: Planes) -> float:
    """Weighted mean of the logistic function of the similarities, undone and squared."""
    logistic: NDArray[np.float32] = 1 / (1 + np.exp(-_ALPHA * similarity))
    total = float(np.sum(weight, dtype=np.float64))
    if total == 0:  # both pictures are black or flat: nothing stands out, all counts alike
        mean = float(np.mean(logistic, dtype=np.float64))
    else:
        mean = float(np.sum(logistic * weight, dtype=np.float64)) / total
    return float((np.log(mean / (1 - mean)) / float(_ALPHA)) ** 2)
