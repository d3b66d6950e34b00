"""What a render at low resolution differs by, measured from pairs.

A low-resolution render is no downscaled high-resolution one: edges are sampled once a pixel
(aliasing), and surfaces come from other mip levels, filtered. `steps.Sample` imitates that with
two parameters; here they are fitted to pairs. Not the pixels are matched (which side of an edge a
sample falls on cannot be known), but three figures of LR against the area-averaged HR: the ratio
of the variances of the Laplacian, PSNR, and the ratio of the energies in four bands of frequency.

Measured on 60 OpenArena frames of the train split at each size (`overlay data measure-render
--game openarena --low 270`, 360, 540), medians; the ranges of the preset are the quartiles:

    size               width  edge   Laplacian    PSNR, dB        energy, highest band
                                     real  fit    real   fit      real  fit
    270p of 1080p      2.00   0.20   1.20  1.27   38.36  38.13    1.18  1.24
    360p of 1080p      2.00   0.15   1.17  1.23   38.52  38.32    1.17  1.19
    540p of 1080p      1.50   0.10   1.29  1.27   41.21  41.09    1.32  1.26

Drawn from the preset, on 24 frames of maps it was not fitted to, as against the real render:
270p 1.42 (real 1.36), 36.3 dB (36.6), 1.31 (1.50); 540p 1.33 (1.46), 39.7 dB (39.6), 1.33 (1.58).
It does not fit games without mip levels: Freedoom's 270p has 2.58, 32.1 dB, 2.87.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

from training.dataset import Pair, Problem, read_png
from training.degrade.steps import Picture, boxed, contrast, pointed
from training.errors import DataError

#: What is tried: all pairs of these.
WIDTHS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5)
EDGES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
#: Limits of the bands in cycles a pixel of LR.
BANDS = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2)


@dataclass(frozen=True, slots=True)
class Figures:
    """A picture of LR's size against the area-averaged HR, both luma.

    Attributes:
        laplacian: ratio of the variances of the Laplacian; above 1 is more aliased.
        psnr: dB, at most 80.
        bands: ratios of the energies between the limits `BANDS`.
    """

    laplacian: float
    psnr: float
    bands: tuple[float, ...]

    def distance(self, other: Figures) -> float:
        """Squared distance: an octave of energy weighs as much as 3 dB."""
        bands = np.log2(np.array(self.bands) / np.array(other.bands))
        return float(
            np.log2(self.laplacian / other.laplacian) ** 2
            + ((self.psnr - other.psnr) / 3) ** 2
            + np.mean(bands**2)
        )


@dataclass(frozen=True, slots=True)
class Fit:
    """The parameters of `steps.Sample` that come nearest to one pair.

    Attributes:
        width, edge: see `steps.Sample`.
        real, imitated: figures of the rendered LR, and of the imitation.
        imitated_psnr: dB between the rendered LR and the imitation.
    """

    width: float
    edge: float
    real: Figures
    imitated: Figures
    imitated_psnr: float


def fit(low: Picture, high: Picture) -> Fit:
    """Fit one pair, float32 luma (h, w) and (h*step, w*step), 0..1.

    Raises:
        DataError: HR is no whole multiple of LR, or they show nothing to measure.
    """
    step = high.shape[0] // low.shape[0]
    if high.shape != (low.shape[0] * step, low.shape[1] * step) or step < 2:
        raise DataError(f"HR {high.shape[::-1]} is no whole multiple of LR {low.shape[::-1]}")
    area = boxed(high, step, 1.0)
    if min(area.std(), low.std()) < 1 / 255:
        raise DataError("the frame is too flat to be measured")
    real = figures(low, area)
    point, range_ = pointed(high, step), contrast(high, step)
    surfaces = {width: boxed(high, step, width) for width in WIDTHS}
    best: Fit | None = None
    for width, edge in product(WIDTHS, EDGES):
        imitation = np.where(range_ > edge, point, surfaces[width])
        found = Fit(width, edge, real, figures(imitation, area), _psnr(imitation, low))
        if best is None or real.distance(found.imitated) < real.distance(best.imitated):
            best = found
    assert best is not None
    return best


def measure(pairs: Iterable[Pair]) -> tuple[list[Fit], list[Problem]]:
    """Fit pairs; frames that cannot be read or are flat are reported and passed over."""
    fits, problems = [], []
    for pair in pairs:
        try:
            fits.append(fit(_luma(read_png(pair.low)), _luma(read_png(pair.high))))
        except DataError as exc:
            problems.append(Problem(pair.name, pair.low, str(exc)))
    return fits, problems


def figures(picture: Picture, area: Picture) -> Figures:
    """Measure a picture against the area-averaged HR, both float32 luma (h, w), 0..1."""
    ratio = _laplacian(picture) / max(_laplacian(area), 1e-12)
    bands = _energies(picture) / np.maximum(_energies(area), 1e-12)
    return Figures(
        float(max(ratio, 1e-6)),
        _psnr(picture, area),
        tuple(float(max(band, 1e-6)) for band in bands),
    )


def table(fits: Sequence[Fit]) -> str:
    """Lay out quartiles of the fits as lines for people."""
    rows: dict[str, list[float]] = {
        "width": [f.width for f in fits],
        "edge": [f.edge for f in fits],
        "Laplacian, real": [f.real.laplacian for f in fits],
        "Laplacian, imitated": [f.imitated.laplacian for f in fits],
        "PSNR real to area": [f.real.psnr for f in fits],
        "PSNR imitated to area": [f.imitated.psnr for f in fits],
        "PSNR real to imitated": [f.imitated_psnr for f in fits],
    }
    for band in range(len(BANDS) - 1):
        limits = f"{BANDS[band]:.3f}-{BANDS[band + 1]:.3f}"
        rows[f"energy {limits}, real"] = [f.real.bands[band] for f in fits]
        rows[f"energy {limits}, imitated"] = [f.imitated.bands[band] for f in fits]
    lines = [f"{'':28}{'p25':>8}{'p50':>8}{'p75':>8}"]
    for name, values in rows.items():
        quartiles = np.percentile(values, (25, 50, 75))
        lines.append(f"{name:28}" + "".join(f"{value:8.2f}" for value in quartiles))
    return "\n".join(lines)


def _luma(bgr: NDArray[np.uint8]) -> Picture:
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY).astype(np.float32) / np.float32(255)


def _laplacian(picture: Picture) -> float:
    return float(cv2.Laplacian(picture, cv2.CV_32F).var())


def _psnr(picture: Picture, truth: Picture) -> float:
    error = float(np.mean((picture - truth) ** 2, dtype=np.float64))
    return float(10 * np.log10(1 / max(error, 1e-8)))


def _energies(picture: Picture) -> NDArray[np.float64]:
    """Energy of the Hann-windowed picture in each band."""
    height, width = picture.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    power = np.abs(np.fft.rfft2((picture - picture.mean()) * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    return np.histogram(radius, BANDS, weights=power)[0].astype(np.float64)
