"""Time the default nets: `python -m training.bench_nets`.

The time is that of the whole step: captured BGRA bytes in, luma bytes in their places out. It
also prints the CPU time per frame and how many cores other programs kept busy meanwhile: on a
machine that is not quiet only the CPU time says anything, and `--shapes 16x4 24x5 --turns 5`
compares the CPU time of nets of other shapes.
"""

# ruff: noqa: T201 - a command-line program

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
import psutil  # type: ignore[import-untyped]
import torch

from engines import zoo
from engines.archs.luma import TrainableLumaNet
from engines.export import onnx_model
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


class Candidate(OpenVinoUpscaler):
    """A luma net of another shape, with random weights.

    Args:
        scale, features, depth: as in `TrainableLumaNet`.
    """

    def __init__(self, scale: int, features: int, depth: int) -> None:
        super().__init__(zoo.spec(f"default-x{scale}"))
        self.model = f"x{scale} {features}x{depth}"
        torch.manual_seed(0)
        weights = TrainableLumaNet(scale, features, depth, width=8).folded()
        model = onnx_model(weights, "candidate").SerializeToString()
        self._graph = self._core.read_model(model)


def shipped() -> Iterator[OpenVinoUpscaler]:
    """The default nets."""
    return (OpenVinoUpscaler(spec) for spec in zoo.SHIPPED if spec.output == "luma")


def rows(upscalers: Iterable[OpenVinoUpscaler], runs: int) -> Iterator[str]:
    """One line of the speed table per net."""
    for made in upscalers:
        with made as upscaler:
            size = SOURCES[upscaler.scale]
            upscaler.warm_up(size)
            timing = time_upscaler(upscaler, size, runs)
            out = Size(size.width * upscaler.scale, size.height * upscaler.scale)
            yield f"| {upscaler.model} | {size} → {out} | {timing} |"


def compared(upscalers: Sequence[OpenVinoUpscaler], runs: int, turns: int) -> Iterator[str]:
    """CPU time of each net relative to the first, medians of turns: for a machine in use."""
    size = SOURCES[upscalers[0].scale]
    ratios: list[list[float]] = [[] for _ in upscalers]
    for upscaler in upscalers:
        upscaler.warm_up(size)
    for _ in range(turns):
        times = [time_upscaler(upscaler, size, runs).cpu_ms for upscaler in upscalers]
        for ratio, time_ms in zip(ratios, times, strict=True):
            ratio.append(time_ms / times[0])
    for upscaler, ratio in zip(upscalers, ratios, strict=True):
        low, middle, high = np.percentile(ratio, (10, 50, 90))
        yield f"| {upscaler.model} | {size} | {middle:.2f} | {low:.2f} to {high:.2f} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.bench_nets", description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), default=4, help="of --shapes")
    parser.add_argument(
        "--shapes", nargs="+", metavar="FEATURESxDEPTH", help="random nets, 24x5 say"
    )
    parser.add_argument(
        "--turns", type=int, default=0, help="measure --shapes so often in turns, CPU time only"
    )
    options = parser.parse_args(arguments)
    print(f"OpenVINO {ov.__version__}, {os.cpu_count()} cores, {options.runs} runs")
    nets: Iterable[OpenVinoUpscaler] = shipped()
    if options.shapes:
        shapes = [[int(part) for part in shape.split("x")] for shape in options.shapes]
        nets = [Candidate(options.scale, features, depth) for features, depth in shapes]
    if options.turns and options.shapes:
        print("| net | size | CPU time / first's | 10th to 90th percentile |\n|" + "---|" * 4)
        lines = compared(list(nets), options.runs, options.turns)
    else:
        print("| model | size | p50 ms | p95 ms | p99 ms | CPU ms a frame | others, cores |")
        print("|" + "---|" * 7)
        lines = rows(nets, options.runs)
    for row in lines:
        print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
