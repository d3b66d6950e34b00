"""Means with confidence intervals, and paired differences with a test, by the cluster bootstrap.

Frames of one map are not independent, so whole sequences are drawn with replacement, not frames
(Efron and Tibshirani 1993; Field and Welsh 2007 for clusters). What is drawn from K sequences
varies too little by sqrt((K - 1) / K), which is made good (Rao and Wu 1988). With few sequences
intervals stay rough: no resampling knows what other maps look like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

RESAMPLES = 4000
#: Two-sided confidence of the intervals.
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over frames.

    Attributes:
        mean, n: over all frames; how many.
        clusters: how many sequences they are of.
        ci95: percentile interval; None with fewer than two sequences.
        p: of the hypothesis that the true mean is 0, two-sided; None as above, or where it was
            not asked for.
    """

    mean: float
    n: int
    clusters: int
    ci95: tuple[float, float] | None
    p: float | None = None


def mean_of(values: Sequence[float], clusters: Sequence[str], seed: int = 0) -> Estimate:
    """Mean over frames with its interval.

    Args:
        values: one a frame, finite.
        clusters: the sequence of each.
        seed: of the resampling; equal seeds give equal results.
    Raises:
        ValueError: there are no values, or not one sequence for each.
    """
    return _estimate(values, clusters, seed, test=False)


def difference(
    one: Sequence[float], other: Sequence[float], clusters: Sequence[str], seed: int = 0
) -> Estimate:
    """Mean of one - other over the same frames, its interval, and a test that it is 0.

    The p value is the share of resampled means, shifted to have mean 0, that lie as far from 0 as
    the one found (with 1 added above and below, so it is never 0). It is at least 2 / 2^K for K
    sequences, the chance that they all point in one direction: no test of K independent ones can
    be surer, and with fewer than six nothing is significant at 0.05.
    """
    pairs = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    return _estimate(pairs.tolist(), clusters, seed, test=True)


def _estimate(
    values: Sequence[float], clusters: Sequence[str], seed: int, *, test: bool
) -> Estimate:
    if not values or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values for {len(clusters)} frames")
    names, index = np.unique(np.array(clusters, dtype=object).astype(str), return_inverse=True)
    sums = np.bincount(index, weights=np.asarray(values, np.float64)).astype(np.float64)
    counts = np.bincount(index).astype(np.float64)
    mean = float(sums.sum() / counts.sum())
    if len(names) < 2:
        return Estimate(mean, len(values), len(names), None)
    spread = np.sqrt(len(names) / (len(names) - 1))
    means = mean + (_resampled(sums, counts, seed) - mean) * spread
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    p = None
    if test:
        as_far = int(np.sum(np.abs(means - mean) >= abs(mean)))
        p = 1.0 if mean == 0 else max((as_far + 1) / (RESAMPLES + 1), 2.0 ** (1 - len(names)))
    return Estimate(mean, len(values), len(names), (float(low), float(high)), p)


def _resampled(sums: Values, counts: Values, seed: int) -> Values:
    """Means over frames of sequences drawn with replacement, float64 (RESAMPLES,)."""
    dice = np.random.default_rng(seed)
    found = np.empty(RESAMPLES)
    step = max(1, 1_000_000 // len(sums))  # bounds the memory
    for start in range(0, RESAMPLES, step):
        size = (min(step, RESAMPLES - start), len(sums))
        drawn = dice.integers(len(sums), size=size)
        found[start : start + step] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return found
