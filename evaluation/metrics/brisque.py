"""BRISQUE: how unnatural a picture looks, without a truth; lower is better.

Mittal, Moorthy, Bovik: No-reference image quality assessment in the spatial domain. IEEE
Transactions on Image Processing 21 (2012). 36 statistics of locally normalised luma at two sizes,
then a support vector regression with a radial kernel that was fitted on people's opinions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import lgamma
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.errors import MetricUnavailable
from evaluation.metrics.fidelity import Pixels, Planes

Values = NDArray[np.float64]
#: How the second size is made: "cubic", OpenCV's (a = -0.75, no antialiasing), or "antialiased",
#: MATLAB's imresize (a = -0.5, stretched to the step of two pixels).
Halving = Literal["cubic", "antialiased"]

FEATURES = 36
#: More support vectors than this are no BRISQUE model; the known ones have 770 and 774.
_MOST_VECTORS = 100_000
_SIDE, _SIGMA = 7, 7 / 6
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
#: Below this a normalised value is rounding error of a flat area, whose sign must not count.
_NOTHING = 1e-6
#: Smallest picture: its half must hold the window.
SMALLEST = 2 * _SIDE

#: Least and greatest value of each feature over the training pictures of the authors' release,
#: which its SVM ("allmodel", rho -153.591) takes as -1 and 1.
AUTHORS_RANGES = np.array(
    [
        (0.338, 10), (0.017204, 0.806612), (0.236, 1.642), (-0.123884, 0.20293),
        (0.000155, 0.712298), (0.001122, 0.470257), (0.244, 1.641), (-0.123586, 0.179083),
        (0.000152, 0.710456), (0.000975, 0.470984), (0.249, 1.555), (-0.135687, 0.100858),
        (0.000174, 0.684173), (0.000913, 0.534174), (0.258, 1.561), (-0.143408, 0.100486),
        (0.000179, 0.685696), (0.000888, 0.536508), (0.471, 3.264), (0.012809, 0.703171),
        (0.218, 1.046), (-0.094876, 0.187459), (1.5e-05, 0.442057), (0.001272, 0.40803),
        (0.222, 1.042), (-0.115772, 0.162604), (1.6e-05, 0.444362), (0.001374, 0.40243),
        (0.227, 0.996), (-0.117188, 0.098323), (3e-05, 0.531903), (0.001122, 0.369589),
        (0.228, 0.99), (-0.12243, 0.098658), (2.8e-05, 0.530092), (0.001118, 0.370399),
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Svr:
    """A support vector regression with the kernel exp(-gamma |x - v|^2).

    Attributes:
        vectors: float64 (N, 36).
        weights: float64 (N,).
        gamma, rho: of the kernel; what is subtracted at the end.
    """

    vectors: Values
    weights: Values
    gamma: float
    rho: float

    def __call__(self, x: Values) -> float:
        """Predict for scaled features (36,)."""
        distances = np.sum((self.vectors - x) ** 2, axis=1)
        return float(self.weights @ np.exp(-self.gamma * distances)) - self.rho


def parse_svm(text: str, name: str) -> Svr:
    """Read a model in LIBSVM's text format.

    Args:
        text: of the file.
        name: of the file, for messages.
    Raises:
        MetricUnavailable: it is no epsilon-SVR with a radial kernel over 36 features.
    """
    head, found, body = text.partition("\nSV\n")
    fields = {key: value for key, _, value in (n.partition(" ") for n in head.splitlines())}
    lines = body.splitlines()
    try:
        if not found or fields["svm_type"] != "epsilon_svr" or fields["kernel_type"] != "rbf":
            raise ValueError("no epsilon_svr with an rbf kernel")
        if not 0 < len(lines) == int(fields["total_sv"]) <= _MOST_VECTORS:
            raise ValueError(f"{len(lines)} support vectors, {fields['total_sv']} announced")
        rows = np.array([_row(line) for line in lines])
        gamma, rho = float(fields["gamma"]), float(fields["rho"])
        if not np.isfinite([*rows.ravel(), gamma, rho]).all():
            raise ValueError("it holds numbers that are not finite")
    except (ValueError, KeyError) as exc:
        raise MetricUnavailable(f"{name} is no BRISQUE model in LIBSVM's format: {exc}") from exc
    return Svr(rows[:, 1:], rows[:, 0], gamma, rho)


def _row(line: str) -> list[float]:
    """Read "weight 1:value 2:value ..."; what is not named is 0."""
    weight, *pairs = line.split()
    row = [float(weight), *[0.0] * FEATURES]
    for pair in pairs:
        index, value = pair.split(":")
        if not 1 <= int(index) <= FEATURES:
            raise ValueError(f"feature {index}, there are {FEATURES}")
        row[int(index)] = float(value)
    return row


class Brisque:
    """A fitted model.

    Args:
        svr: the regression.
        ranges: float64 (36, 2): of each feature what is scaled to -1 and what to 1.
        halving: as the model's training pictures were halved.
    """

    def __init__(self, svr: Svr, ranges: Values, halving: Halving) -> None:
        self._svr = svr
        self._low, self._high = ranges[:, 0], ranges[:, 1]
        self._halving: Halving = halving

    def __call__(self, rgb: Pixels, truth: Pixels | None = None) -> float:
        """Judge uint8 RGB (H, W, 3) of `SMALLEST` pixels a side or more; about 0 to 100."""
        x = features(rgb, self._halving)
        return self._svr(2 * (x - self._low) / (self._high - self._low) - 1)


def features(rgb: Pixels, halving: Halving) -> Values:
    """Compute the 36 features of the paper, float64 (36,), of uint8 RGB (H, W, 3)."""
    if min(rgb.shape[:2]) < SMALLEST:
        raise ValueError(f"BRISQUE needs {SMALLEST}x{SMALLEST} pixels, not {rgb.shape[:2]}")
    luma = np.rint(rgb.astype(np.float32) @ _LUMA)
    return np.array([*_statistics(luma), *_statistics(_halved(luma, halving))])


def _halved(luma: Planes, halving: Halving) -> Planes:
    height, width = (side // 2 for side in luma.shape)
    if halving == "cubic":
        half = cv2.resize(luma, (width, height), interpolation=cv2.INTER_CUBIC)
        return half.astype(np.float32, copy=False)
    from evaluation.baselines import cubic_matrix

    rows, columns = (cubic_matrix(side, side // 2, a=-0.5) for side in luma.shape)
    return (rows @ luma @ columns.T).astype(np.float32, copy=False)


def _statistics(luma: Planes) -> list[float]:
    """18 features at one size."""
    normal = _normalised(luma)
    found = list(_symmetric_fit(normal))
    for shift in ((0, 1), (1, 0), (1, 1), (-1, 1)):  # right, down, and both diagonals
        product = normal * np.roll(normal, shift, axis=(0, 1))
        found += _asymmetric_fit(product)
    return found


def _normalised(luma: Planes) -> Values:
    """(luma - local mean) / (local deviation + 1), zeros outside the picture.

    In double precision: where the picture is flat the deviation is a small difference of squares.
    """

    def smooth(plane: Values) -> Values:
        border = cv2.BORDER_CONSTANT
        blurred = cv2.GaussianBlur(plane, (_SIDE, _SIDE), _SIGMA, borderType=border)
        return blurred.astype(np.float64, copy=False)

    exact = luma.astype(np.float64)
    mean = smooth(exact)
    deviation = np.sqrt(np.abs(smooth(exact * exact) - mean * mean))
    normal = (exact - mean) / (deviation + 1)
    return np.where(np.abs(normal) < _NOTHING, 0.0, normal)


@cache
def _shapes() -> tuple[Values, Values]:
    """Shape parameters, and for each E[|x|]^2 / E[x^2] of the generalised Gaussian."""
    shapes = np.arange(0.2, 10.0005, 0.001)
    ratios = np.array([np.exp(2 * lgamma(2 / s) - lgamma(1 / s) - lgamma(3 / s)) for s in shapes])
    return shapes, ratios


def _symmetric_fit(x: Values) -> tuple[float, float]:
    """Fit a generalised Gaussian by moments: shape, variance."""
    shapes, ratios = _shapes()
    variance, spread = _mean(x * x), _mean(np.abs(x))
    if variance == 0:  # a flat picture: any shape fits, the paper's search would end at its first
        return float(shapes[-1]), 0.0
    # 1 / ratio: the search is on the inverse, as in the paper's code, which matters at its ends.
    best = int(np.argmin(np.abs(1 / ratios - variance / spread**2)))
    return float(shapes[best]), variance


def _asymmetric_fit(x: Values) -> list[float]:
    """Fit an asymmetric generalised Gaussian by moments: shape, mean, variance left and right."""
    shapes, ratios = _shapes()
    left, right = x[x < 0], x[x > 0]
    low = _mean(left * left) if left.size else 0.0
    high = _mean(right * right) if right.size else 0.0
    if low == 0 or high == 0:
        return [float(shapes[-1]), 0.0, low, high]
    gamma = np.sqrt(low / high)
    ratio = _mean(np.abs(x)) ** 2 / _mean(x * x)
    wanted = ratio * (gamma**3 + 1) * (gamma + 1) / (gamma**2 + 1) ** 2
    shape = float(shapes[int(np.argmin(np.abs(ratios - wanted)))])
    scale = np.exp(lgamma(2 / shape) - (lgamma(1 / shape) + lgamma(3 / shape)) / 2)
    return [shape, float((np.sqrt(high) - np.sqrt(low)) * scale), low, high]


def _mean(values: Values) -> float:
    return float(np.mean(values))
