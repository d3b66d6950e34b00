"""Time the default nets: `python -m training.bench_nets`.

The time is that of the whole step: captured BGRA bytes in, luma bytes in their places out. It
also prints the CPU time per frame and how many cores other programs kept busy meanwhile: on a
machine that is not quiet only the CPU time says anything.
"""

# ruff: noqa: T201 - a command-line program

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
import psutil  # type: ignore[import-untyped]

from engines import zoo
from overlay.frame import Frame, Region, Size
from overlay.infer.openvino import OpenVinoUpscaler

SOURCES = {2: Size(480, 270), 3: Size(640, 360), 4: Size(480, 270)}


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds a frame; `others` is in cores."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms: float
    others: float

    def __str__(self) -> str:
        wall = f"{self.p50_ms:.1f} | {self.p95_ms:.1f} | {self.p99_ms:.1f}"
        return f"{wall} | {self.cpu_ms:.1f} | {self.others:.2f}"


def time_upscaler(upscaler: OpenVinoUpscaler, size: Size, runs: int) -> Timing:
    """Run seeded noise frames one after another, as the infer thread does."""
    dice = np.random.default_rng(0)
    region = Region(0, 0, size.width, size.height)
    shape = (size.height, size.width, 4)
    frames = [
        Frame(dice.integers(0, 256, shape, dtype=np.uint8), i, 0, 0, region) for i in range(4)
    ]
    took: list[float] = []
    for run in range(-20, runs):
        if run == 0:
            busy, cpu, start = _busy_s(), time.process_time(), time.perf_counter()
        before = time.perf_counter()
        upscaler.submit(frames[run % 4])
        while upscaler.poll(1.0) is None:
            pass
        took.append(1e3 * (time.perf_counter() - before))
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    p50, p95, p99 = np.percentile(took[20:], (50, 95, 99))
    others = (_busy_s() - busy - cpu) / wall
    return Timing(float(p50), float(p95), float(p99), 1e3 * cpu / runs, others)


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def rows(runs: int) -> Iterator[str]:
    """One line of the speed table per model."""
    for spec in zoo.SHIPPED:
        size = SOURCES[spec.scale]
        with OpenVinoUpscaler(spec) as upscaler:
            upscaler.warm_up(size)
            timing = time_upscaler(upscaler, size, runs)
            out = Size(size.width * spec.scale, size.height * spec.scale)
            yield f"| {spec.id} | {size} → {out} | {timing} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.bench_nets")
    parser.add_argument("--runs", type=int, default=200)
    options = parser.parse_args(arguments)
    print(f"OpenVINO {ov.__version__}, {os.cpu_count()} cores, {options.runs} runs")
    print("| model | size | p50 ms | p95 ms | p99 ms | CPU ms a frame | others, cores |")
    print("|" + "---|" * 7)
    for row in rows(options.runs):
        print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
