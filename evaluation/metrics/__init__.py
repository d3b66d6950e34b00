"""Quality of pictures, one number each. All take RGB at full resolution; docs/metrics.md.

`open_metric` loads what a metric needs; nothing heavy is imported before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.errors import EvaluationError, MetricUnavailable

if TYPE_CHECKING:
    from evaluation.metrics.lpips import Trunk

Pixels = NDArray[np.uint8]
#: Picture and truth, uint8 RGB (H, W, 3) of one shape, to a number. Where no truth is needed it
#: may be None. What is computed of the truth is kept for the next call with the same object.
Compare = Callable[[Pixels, Pixels | None], float]

INSTALL_TRAIN = 'pip install "sr-overlay[train]"'


@dataclass(frozen=True, slots=True)
class Metric:
    """What is known about a metric before it is opened.

    Attributes:
        name: on the command line.
        higher_is_better: which way is up.
        needs_reference: whether it compares with a truth.
        unit: "dB", "levels" of 255, or "".
        doc: its definition in one line.
        srgd: the definition under `srgd_compatible`; "" where SRGD did not measure it.
    """

    name: str
    higher_is_better: bool
    needs_reference: bool
    unit: str
    doc: str
    srgd: str = ""


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "psnr", True, True, "dB",
            "peak 255, error over all pixels of R, G and B; 100 for equal pictures",
            "piq: 1e-8 is added to the error in 0..1, so at most 80 dB",
        ),
        Metric(
            "psnr-y", True, True, "dB",
            "of BT.601 luma in 16..235, peak 255",
        ),
        Metric(
            "ssim", True, True, "",
            "Wang et al. 2004: 11x11 Gaussian, sigma 1.5, full resolution, inner windows only, "
            "mean over R, G and B",
            "piq's default: pictures first averaged over blocks of round(shorter side / 256)",
        ),
        Metric(
            "lpips-alex", False, True, "",
            "LPIPS 0.1, AlexNet",
        ),
        Metric(
            "lpips-vgg", False, True, "",
            "LPIPS 0.1, VGG16",
            "VGG16, channels in BGR order",
        ),
        Metric(
            "haarpsi", True, True, "",
            "Reisenhofer et al. 2018, colour, pictures halved first as in the paper",
            "channels in BGR order, so that red and blue change places in Y, I and Q",
        ),
        Metric(
            "brisque", False, False, "",
            "Mittal et al. 2012; SVM and feature ranges of the package brisque 0.2.0, second size "
            "by OpenCV's cubic without antialiasing",
            "channels in BGR order; your SVM in LIBSVM's format with the ranges of the authors' "
            "release, second size antialiased as in MATLAB",
        ),
    )
}  # fmt: skip

#: Of sequences, so not in `METRICS`; `evaluation.metrics.flicker.Flicker` computes it.
FLICKER = Metric(
    "flicker", False, True, "levels",
    "mean |(sr_t - sr_t-1) - (hr_t - hr_t-1)| of BT.601 luma over consecutive frames",
)  # fmt: skip


def open_metric(
    name: str,
    *,
    weights: Path | None = None,
    srgd_compatible: bool = False,
    device: str = "cpu",
) -> Compare:
    """Open a metric.

    Args:
        name: a key of `METRICS`.
        weights: the folder of the converted weights, None for the usual ones; for BRISQUE with
            `srgd_compatible` the file of the SVM.
        srgd_compatible: measure as the seed project SRGD did, mistakes included: piq's pooled
            SSIM and capped PSNR, BGR where RGB is meant.
        device: PyTorch's, for LPIPS.
    Raises:
        EvaluationError: there is no such metric, or SRGD did not have it.
        MetricUnavailable: its weights are not there, or are wrong; or a library is missing.
    """
    metric = METRICS.get(name)
    if metric is None:
        raise EvaluationError(f"unknown metric {name!r} (one of {', '.join(METRICS)})")
    if srgd_compatible and not metric.srgd:
        known = ", ".join(m.name for m in METRICS.values() if m.srgd)
        raise EvaluationError(f"SRGD did not measure {name}; it did {known}")
    try:
        compare = _opened(name, weights, srgd_compatible, device)
    except ModuleNotFoundError as exc:
        raise MetricUnavailable(f"{name} needs {exc.name}: {INSTALL_TRAIN}") from exc
    if srgd_compatible:
        return _Swapped(compare)
    return compare


def _opened(name: str, weights: Path | None, srgd: bool, device: str) -> Compare:
    from evaluation.metrics import fidelity, haarpsi
    from evaluation.metrics import weights as files

    if name == "brisque":
        return _brisque(weights) if srgd else files.brisque(weights)
    compare: Callable[[Pixels, Pixels], float]
    if name == "psnr":
        compare = fidelity.psnr_piq if srgd else fidelity.psnr
    elif name == "psnr-y":
        compare = fidelity.psnr_y
    elif name == "ssim":
        compare = fidelity.Ssim(pooled=srgd)
    elif name == "haarpsi":
        compare = haarpsi.HaarPsi()
    else:
        from evaluation.metrics.lpips import LpipsMetric

        trunk: Trunk = "alex" if name == "lpips-alex" else "vgg"
        compare = LpipsMetric(files.lpips(trunk, weights), device)
    return _WithTruth(name, compare)


def _brisque(svm: Path | None) -> Compare:
    """Open BRISQUE as piq computes it, with the user's SVM."""
    from evaluation.metrics.brisque import AUTHORS_RANGES, Brisque, parse_svm

    if svm is None:
        raise MetricUnavailable(
            "BRISQUE as SRGD measured it needs the SVM of its authors, which may not be shipped: "
            "give your file in LIBSVM's text format (allmodel) with --brisque-svm"
        )
    try:
        if svm.stat().st_size > 64 << 20:
            raise MetricUnavailable(f"{svm} is larger than 64 MiB: no BRISQUE model")
        text = svm.read_text("ascii", "replace")
    except OSError as exc:
        raise MetricUnavailable(f"cannot read {svm}: {exc.strerror}") from exc
    return Brisque(parse_svm(text, str(svm)), AUTHORS_RANGES, "antialiased")


class _WithTruth:
    """Sees to it that picture and truth go together."""

    def __init__(self, name: str, compare: Callable[[Pixels, Pixels], float]) -> None:
        self._name, self._compare = name, compare

    def __call__(self, picture: Pixels, truth: Pixels | None) -> float:
        if truth is None or picture.shape != truth.shape:
            has = None if truth is None else truth.shape
            raise ValueError(f"{self._name} compares equal shapes, not {picture.shape} and {has}")
        return self._compare(picture, truth)


class _Swapped:
    """Gives a metric its pictures with red and blue changed."""

    def __init__(self, compare: Compare) -> None:
        self._compare = compare
        self._truth: Pixels | None = None
        self._swapped: Pixels | None = None

    def __call__(self, picture: Pixels, truth: Pixels | None) -> float:
        if truth is not self._truth:
            self._truth = truth
            self._swapped = None if truth is None else np.ascontiguousarray(truth[..., ::-1])
        return self._compare(np.ascontiguousarray(picture[..., ::-1]), self._swapped)
