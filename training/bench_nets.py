"""Time the default nets, and their int8 versions: `python -m training.bench_nets [--int8]`.

The time is that of the whole step: captured BGRA bytes in, luma bytes in their places out. It
also prints the CPU time per frame and how many cores other programs kept busy meanwhile: on a
machine that is not quiet only the CPU time says anything.
"""

# ruff: noqa: T201 - a command-line program

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
import psutil  # type: ignore[import-untyped]

from engines import load, zoo
from engines.spec import ModelSpec
from overlay.frame import Frame, Region, Size
from overlay.infer.openvino import OpenVinoUpscaler
from training import quality
from training.pairs import Image, freedoom_pairs, held_out_pairs, maps_of, read

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


def bgra(bgr: Image) -> Image:
    """Add an alpha channel: (H, W, 3) to (1, H, W, 4)."""
    return np.concatenate([bgr, np.zeros_like(bgr[..., :1])], axis=-1)[None]


def quantised(spec: ModelSpec, frames: Sequence[Image]) -> ov.Model:
    """Make the int8 version of a net, calibrated on `frames` (uint8 BGR)."""
    import nncf  # type: ignore[import-untyped]

    nncf.set_log_level(logging.ERROR)
    model = ov.Core().read_model(load.onnx_bytes(spec))
    calibration = nncf.Dataset([bgra(frame) for frame in frames])
    made: ov.Model = nncf.quantize(model, calibration, subset_size=len(frames))
    return made


def int8_figures(spec: ModelSpec, data: Path, runs: int) -> str:
    """PSNR of int8 against FP32 on frames not calibrated on, and the time of both."""
    core = ov.Core()
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    height = SOURCES[spec.scale].height
    calibration = [
        read(file)
        for root in (data / "openarena", data / "raycaster")
        for name in maps_of(root, held_out=False)
        for file in sorted((root / name / str(height)).glob("*.png"))[::20]
    ]
    pairs = [
        *list(held_out_pairs(data / "openarena", spec.scale, 16))[:12],
        *list(freedoom_pairs(data / "freedoom", spec.scale))[::4],
    ]
    plain = core.compile_model(core.read_model(load.onnx_bytes(spec)), "CPU", options)
    small = core.compile_model(quantised(spec, calibration), "CPU", options)
    values = []
    for _, low, _ in pairs:
        given = bgra(low)
        values.append(quality.psnr(small([given])[0], plain([given])[0]))
    times = []
    for compiled in (plain, small):
        request = compiled.create_infer_request()
        request.set_input_tensor(ov.Tensor(np.repeat(given, 1, axis=0)))
        for _ in range(10):
            request.infer()
        cpu = time.process_time()
        for _ in range(runs):
            request.infer()
        times.append(1e3 * (time.process_time() - cpu) / runs)
    mean, worst = float(np.mean(values)), min(values)
    return f"{mean:.1f} | {worst:.1f} | {times[0]:.1f} | {times[1]:.1f}"


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
    parser.add_argument("--int8", action="store_true", help="also quantise (needs nncf, data)")
    parser.add_argument("--data", type=Path, default=Path("data"))
    options = parser.parse_args(arguments)
    print(f"OpenVINO {ov.__version__}, {os.cpu_count()} cores, {options.runs} runs")
    print("| model | size | p50 ms | p95 ms | p99 ms | CPU ms a frame | others, cores |")
    print("|" + "---|" * 7)
    for row in rows(options.runs):
        print(row, flush=True)
    if options.int8:
        print("\n| model | int8 to FP32, mean dB | worst dB | FP32 CPU ms | int8 CPU ms |")
        print("|" + "---|" * 5)
        for spec in zoo.SHIPPED:
            figures = int8_figures(spec, options.data, options.runs)
            print(f"| {spec.id} | {figures} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
