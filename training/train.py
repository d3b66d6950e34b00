"""Train one default net: `python -m training.train --scale 2`.

One loop: aligned luma crops in, mean squared error, Adam with a cosine schedule, an average of the
weights over the last iterations as the result. Everything random comes from `--seed`. It runs in
two stages: all frames alike, then half of the crops from the ray caster, without which the nets
would learn filtered textures only.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engines.archs.luma import TrainableLumaNet
from training.pairs import PairSampler, training_stacks


@dataclass(frozen=True, slots=True)
class Settings:
    """What a training run depends on, besides its data."""

    scale: int
    channels: int = 16
    depth: int = 4
    batch: int = 8
    crop: int = 48  # LR pixels
    gradient: float = 0.0
    seed: int = 1
    average: float = 0.999


@dataclass(frozen=True, slots=True)
class Stage:
    """One cosine of the schedule.

    Attributes:
        iterations: its length.
        rate: learning rate at its beginning.
        synthetic: share of the crops that come from the ray caster; None: as many as it has
            frames.
    """

    iterations: int
    rate: float = 2e-3
    synthetic: float | None = None


STAGES = (Stage(16_000), Stage(6_000, rate=1e-3, synthetic=0.5))


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


def rate_at(iteration: int, stage: Stage) -> float:
    """Learning rate: 200 iterations up, then half a cosine down to 1 %."""
    warm = min(1.0, (iteration + 1) / 200)
    falling = 0.5 * (1 + math.cos(math.pi * iteration / stage.iterations))
    return stage.rate * warm * max(falling, 0.01)


def train(
    sampler: PairSampler,
    settings: Settings,
    stage: Stage,
    start: Mapping[str, Tensor] | None = None,
) -> Iterator[Progress]:
    """Train one stage and yield after every iteration; the last `net` is the result.

    Args:
        sampler: of crops with a margin of `settings.depth`.
        settings: of the net and the run.
        stage: length, rate.
        start: folded weights to go on from.
    """
    torch.manual_seed(settings.seed)
    net = TrainableLumaNet(settings.scale, settings.channels, settings.depth)
    if start is not None:
        net.restart(start)
    average = copy.deepcopy(net).requires_grad_(False)
    adam = torch.optim.Adam(net.parameters(), lr=stage.rate, betas=(0.9, 0.99))
    for iteration in range(stage.iterations):
        for group in adam.param_groups:
            group["lr"] = rate_at(iteration, stage)
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


def sampler_for(data: Path, settings: Settings, stage: Stage) -> PairSampler:
    """Open the training frames under `data` for one stage."""
    game = training_stacks(data / "openarena", settings.scale)
    synthetic = training_stacks(data / "raycaster", settings.scale)
    shares = None
    if stage.synthetic is not None:
        shares = [(1 - stage.synthetic) * len(low) / frames(game) for low, _ in game]
        shares += [stage.synthetic * len(low) / frames(synthetic) for low, _ in synthetic]
    return PairSampler(
        [*game, *synthetic],
        settings.scale,
        settings.crop,
        margin=settings.depth,
        seed=settings.seed,
        shares=shares,
    )


def frames(stacks: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
    """How many frames the stacks hold together."""
    return sum(len(low) for low, _ in stacks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    standard = Settings(scale=2)
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), required=True)
    parser.add_argument("--channels", type=int, default=standard.channels)
    parser.add_argument("--depth", type=int, default=standard.depth)
    parser.add_argument("--batch", type=int, default=standard.batch)
    parser.add_argument("--crop", type=int, default=standard.crop)
    parser.add_argument("--gradient", type=float, default=standard.gradient)
    parser.add_argument("--seed", type=int, default=standard.seed)
    parser.add_argument("--threads", type=int, default=1, help="more seldom help such small nets")
    parser.add_argument("--first", type=int, default=0, help="stage to begin with (0)")
    parser.add_argument("--start", type=Path, help="weights to begin with, for --first 1")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, help="default: data/runs/default-x<scale>.safetensors")
    options = vars(parser.parse_args(arguments))
    data: Path = options.pop("data")
    out: Path | None = options.pop("out")
    start: Path | None = options.pop("start")
    first: int = options.pop("first")
    torch.set_num_threads(options.pop("threads"))
    settings = Settings(**options)
    out = out or Path(f"data/runs/default-x{settings.scale}.safetensors")
    out.parent.mkdir(parents=True, exist_ok=True)
    weights = load_file(start) if start else None
    for index, stage in enumerate(STAGES[first:], first):
        print(f"stage {index}: {stage}, {settings}", flush=True)
        seeded = replace(settings, seed=settings.seed + index)
        weights = run(sampler_for(data, seeded, stage), seeded, stage, weights, out)
    return 0


def run(
    sampler: PairSampler,
    settings: Settings,
    stage: Stage,
    start: Mapping[str, Tensor] | None,
    out: Path,
) -> dict[str, Tensor]:
    """Train one stage, print progress, save the weights now and then, and return them."""
    losses: list[float] = []
    began = time.perf_counter()
    weights: dict[str, Tensor] = {}
    for progress in train(sampler, settings, stage, start):
        losses.append(progress.loss)
        if progress.iteration % 500 == 0 or progress.iteration == stage.iterations:
            speed = progress.iteration / (time.perf_counter() - began)
            decibels = -10 * math.log10(sum(losses[-500:]) / len(losses[-500:]))
            print(f"{progress.iteration:6} {decibels:.3f} dB  {speed:.1f} it/s", flush=True)
            weights = progress.net.folded()
            save_file(weights, out)
    return weights


if __name__ == "__main__":
    sys.exit(main())
