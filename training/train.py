"""Train one default net: `python -m training.train --scale 2`.

One loop: aligned luma crops in, mean squared error, Adam with a cosine schedule, an average of the
weights over the last iterations as the result. Everything random comes from `--seed`.

Squared error and not L1: a game's small render is aliased, so that one LR picture fits many HR
ones; L1 then picks the likeliest edge and is worse than bicubic where it is wrong.
"""

# ruff: noqa: T201 - a command-line program

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from engines.archs.luma import TrainableLumaNet
from training.pairs import PairSampler, training_stacks


@dataclass(frozen=True, slots=True)
class Settings:
    """What a training run depends on, besides its data."""

    scale: int
    channels: int = 16
    depth: int = 4
    iterations: int = 16_000
    batch: int = 8
    crop: int = 48  # LR pixels
    rate: float = 2e-3
    gradient: float = 0.0
    seed: int = 1
    average: float = 0.999


@dataclass(frozen=True, slots=True)
class Progress:
    """State after one iteration; `net` is the weight average, not a copy."""

    iteration: int
    loss: float
    net: TrainableLumaNet


def loss_of(output: Tensor, target: Tensor, gradient: float) -> Tensor:
    """Mean squared error of [N, 1, H, W] pictures, 0..1, plus that of their differences.

    Args:
        output: upscaled.
        target: true.
        gradient: weight of the error of horizontal and vertical pixel differences, which asks
            for edges as steep as the true ones.
    """
    error = output - target
    loss = error.square().mean()
    if gradient:
        slopes = error.diff(dim=2).square().mean() + error.diff(dim=3).square().mean()
        loss = loss + gradient * slopes
    return loss


def rate_at(iteration: int, settings: Settings) -> float:
    """Learning rate: 200 iterations up, then half a cosine down to 1 %."""
    warm = min(1.0, (iteration + 1) / 200)
    falling = 0.5 * (1 + math.cos(math.pi * iteration / settings.iterations))
    return settings.rate * warm * max(falling, 0.01)


def train(sampler: PairSampler, settings: Settings) -> Iterator[Progress]:
    """Train and yield after every iteration; the last `net` is the result."""
    torch.manual_seed(settings.seed)
    net = TrainableLumaNet(settings.scale, settings.channels, settings.depth)
    average = copy.deepcopy(net).requires_grad_(False)
    adam = torch.optim.Adam(net.parameters(), lr=settings.rate, betas=(0.9, 0.99))
    for iteration in range(settings.iterations):
        for group in adam.param_groups:
            group["lr"] = rate_at(iteration, settings)
        crops = sampler.batch(settings.batch)
        low, high = to_tensor(crops.low), to_tensor(crops.high)
        loss = loss_of(net(low), high, settings.gradient)
        adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        keep = min(settings.average, iteration / (iteration + 10))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), net.parameters(), strict=True):
                slow.lerp_(fast, 1 - keep)
        yield Progress(iteration + 1, float(loss.detach()), average)


def to_tensor(luma: np.ndarray) -> Tensor:
    """uint8 (N, H, W) to float [N, 1, H, W], 0..1, channels last."""
    tensor = torch.from_numpy(luma)[:, None].to(torch.float32) / 255
    return tensor.to(memory_format=torch.channels_last)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    standard = Settings(scale=2)
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), required=True)
    parser.add_argument("--channels", type=int, default=standard.channels)
    parser.add_argument("--depth", type=int, default=standard.depth)
    parser.add_argument("--iterations", type=int, default=standard.iterations)
    parser.add_argument("--batch", type=int, default=standard.batch)
    parser.add_argument("--crop", type=int, default=standard.crop)
    parser.add_argument("--rate", type=float, default=standard.rate)
    parser.add_argument("--gradient", type=float, default=standard.gradient)
    parser.add_argument("--seed", type=int, default=standard.seed)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, help="default: data/runs/default-x<scale>.safetensors")
    options = vars(parser.parse_args(arguments))
    data: Path = options.pop("data")
    out: Path | None = options.pop("out")
    torch.set_num_threads(options.pop("threads"))
    settings = Settings(**options)
    out = out or Path(f"data/runs/default-x{settings.scale}.safetensors")
    out.parent.mkdir(parents=True, exist_ok=True)
    sampler = PairSampler(
        [
            *training_stacks(data / "openarena", settings.scale),
            *training_stacks(data / "raycaster", settings.scale),
        ],
        settings.scale,
        settings.crop,
        margin=settings.depth,
        seed=settings.seed,
    )
    print(f"{len(sampler)} frame pairs, {settings}", flush=True)
    losses: list[float] = []
    start = time.perf_counter()
    for progress in train(sampler, settings):
        losses.append(progress.loss)
        if progress.iteration % 500 == 0 or progress.iteration == settings.iterations:
            speed = progress.iteration / (time.perf_counter() - start)
            decibels = -10 * math.log10(sum(losses[-500:]) / len(losses[-500:]))
            print(f"{progress.iteration:6} {decibels:.3f} dB  {speed:.1f} it/s", flush=True)
            save_file(progress.net.folded(), out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
