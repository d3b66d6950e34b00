"""Times of work on a device: by CUDA's events where there is a GPU, by the clock everywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

#: Runs before the timed ones: at least, and for at least so many seconds.
_WARM_RUNS = 3
_WARM_S = 0.2
#: Fewer timed runs than this make no percentile, however long they take.
_LEAST_RUNS = 5


@dataclass(frozen=True, slots=True)
class Timed:
    """Times of one piece of work.

    Attributes:
        device_ms: between two events around each run, queued back to back; empty without a GPU.
        wall_ms: on the host, from the call until the device is done, each run alone.
        per_second: runs per second, back to back.
    """

    device_ms: Sequence[float]
    wall_ms: Sequence[float]
    per_second: float

    @property
    def best_ms(self) -> float:
        """The median of the device's times, or of the host's if there is no device."""
        return float(np.median(self.device_ms or self.wall_ms))

    def to_json(self) -> dict[str, Any]:
        """Give p50, p95 and p99 of each, in ms."""
        result: dict[str, Any] = {
            "runs": len(self.wall_ms),
            "per_second": round(self.per_second, 2),
        }
        for name, values in (("device_ms", self.device_ms), ("wall_ms", self.wall_ms)):
            if values:
                result[name] = percentiles(values)
        return result


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Give p50, p95, p99 and the least."""
    points = np.percentile(values, [50, 95, 99])
    names = ("p50", "p95", "p99")
    found = {name: round(float(value), 5) for name, value in zip(names, points, strict=True)}
    return {**found, "min": round(float(min(values)), 5)}


class Device:
    """Where work runs.

    Args:
        name: "cuda" or "cpu".
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_cuda = name.startswith("cuda")

    def synchronize(self) -> None:
        """Wait until the device is done."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def time(self, step: Callable[[], object], runs: int, seconds: float) -> Timed:
        """Warm up, then time `runs` runs, or as many as fit into `seconds`."""
        one_s = self._warm_up(step)
        count = max(_LEAST_RUNS, min(runs, int(seconds / max(one_s, 1e-6))))
        begin = time.perf_counter()
        device_ms = self._queued(step, count) if self.is_cuda else []
        queued_s = time.perf_counter() - begin
        alone = min(count, 100, int(seconds / 2 / max(one_s, 1e-6)))
        wall_ms = [self._alone(step) for _ in range(max(_LEAST_RUNS, alone))]
        rate = count / queued_s if self.is_cuda else 1e3 / float(np.mean(wall_ms))
        return Timed(device_ms, wall_ms, rate)

    def _warm_up(self, step: Callable[[], object]) -> float:
        """Run until it is warm; gives the seconds of the last run."""
        end = time.perf_counter() + (_WARM_S if self.is_cuda else 0.0)
        took_s = 0.0
        for run in range(10_000):
            took_s = self._alone(step) / 1e3
            if run + 1 >= (_WARM_RUNS if self.is_cuda else 1) and time.perf_counter() >= end:
                break
        return took_s

    def _alone(self, step: Callable[[], object]) -> float:
        begin = time.perf_counter_ns()
        step()
        self.synchronize()
        return (time.perf_counter_ns() - begin) / 1e6

    def _queued(self, step: Callable[[], object], count: int) -> list[float]:
        """Time runs by events; the host runs ahead of the device."""
        event: Any = torch.cuda.Event
        marks = [event(enable_timing=True) for _ in range(count + 1)]
        marks[0].record()
        for mark in marks[1:]:
            step()
            mark.record()
        self.synchronize()
        return [float(a.elapsed_time(b)) for a, b in pairwise(marks)]
