"""Blur kernels of Real-ESRGAN (Wang et al., "Real-ESRGAN", ICCVW 2021, section 3.2 and 3.3).

All are float64 (size, size), size odd, sum 1, point-symmetric.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Kernel = NDArray[np.float64]


def gaussian(
    size: int, sigma: tuple[float, float], angle: float = 0.0, beta: float = 1.0
) -> Kernel:
    """Make a generalised Gaussian, exp(-q^beta / 2) (Liu et al., "Blind image SR", 2020).

    Args:
        size: odd number of taps in both directions.
        sigma: standard deviations in pixels along the kernel's two axes; equal: isotropic.
        angle: of the first axis against the right, radians, towards the bottom.
        beta: shape: 1 a Gaussian, less a sharper peak, more a flatter top.
    """
    return _normal(np.exp(-0.5 * _distance(size, sigma, angle) ** beta))


def plateau(size: int, sigma: tuple[float, float], angle: float = 0.0, beta: float = 1.0) -> Kernel:
    """Make a plateau-shaped kernel, 1 / (1 + q^beta); arguments as for `gaussian`."""
    return _normal(1 / (1 + _distance(size, sigma, angle) ** beta))


def sinc(size: int, cutoff: float) -> Kernel:
    """Make a circular low-pass: `cutoff` J1(cutoff r) / (2 pi r) at distance r.

    Args:
        size: odd number of taps in both directions.
        cutoff: angular frequency, 0 to pi, radians a pixel; what is above is cut off, and rings.
    """
    x, y = _grid(size)
    radius = np.hypot(x, y)
    middle = size // 2
    radius[middle, middle] = 1.0
    kernel = cutoff * bessel_j1(cutoff * radius) / (2 * np.pi * radius)
    kernel[middle, middle] = cutoff**2 / (4 * np.pi)  # the limit at r = 0
    return _normal(kernel)


def bessel_j1(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bessel function of the first kind and order 1, for |x| < 100, to 1e-12.

    Its integral (1/pi) of cos(t - x sin t) over 0..pi, by the midpoint rule, which converges
    exponentially for periodic functions.
    """
    t = (np.arange(128) + 0.5) * (np.pi / 128)
    found: NDArray[np.float64] = np.cos(t - x[..., None] * np.sin(t)).mean(axis=-1)
    return found


def _grid(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"the size of a kernel must be odd, not {size}")
    axis = np.arange(size, dtype=np.float64) - size // 2
    x, y = np.meshgrid(axis, axis)
    return x, y


def _distance(size: int, sigma: tuple[float, float], angle: float) -> NDArray[np.float64]:
    """Squared Mahalanobis distance q of every tap from the middle."""
    x, y = _grid(size)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    distance: NDArray[np.float64] = (along / sigma[0]) ** 2 + (across / sigma[1]) ** 2
    return distance


def _normal(kernel: NDArray[np.float64]) -> Kernel:
    normal: Kernel = kernel / kernel.sum()
    return normal
