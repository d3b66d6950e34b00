"""The training loop: it learns, it repeats, and its pairs are aligned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from engines.archs.luma import TrainableLumaNet
from training.pairs import (
    HELD_OUT,
    PairSampler,
    luma,
    luma_stack,
    maps_of,
    shifted,
    training_stacks,
)
from training.train import Settings, Stage, loss_of, rate_at, train

TINY = Settings(scale=2, channels=8, depth=3, batch=4, crop=16)
SHORT = Stage(iterations=60)


def stack_of(size: int, count: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Blurred noise with edges, large, and its area-downscaled small version."""
    dice = np.random.default_rng(5)
    large = np.stack(
        [
            cv2.resize(
                dice.integers(0, 256, (size // 8, size // 8), dtype=np.uint8),
                (size, size),
                interpolation=cv2.INTER_NEAREST,
            )
            for _ in range(count)
        ]
    )
    small = np.stack(
        [cv2.resize(p, (size // 2, size // 2), interpolation=cv2.INTER_AREA) for p in large]
    )
    return small, large


def run(
    seed: int, start: dict[str, torch.Tensor] | None = None
) -> tuple[list[float], dict[str, torch.Tensor]]:
    settings = replace(TINY, seed=seed)
    sampler = PairSampler([stack_of(96)], 2, settings.crop, settings.depth, seed)
    progress = list(train(sampler, settings, SHORT, start))
    return [step.loss for step in progress], progress[-1].net.folded()


def test_loss_falls_and_runs_repeat() -> None:
    losses, weights = run(seed=3)
    assert len(losses) == SHORT.iterations
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    again, weights_again = run(seed=3)
    assert losses == again
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
    assert run(seed=4)[0] != losses


def test_loss_knows_right_from_wrong() -> None:
    picture = torch.rand(1, 1, 8, 8)
    right = float(loss_of(picture, picture, gradient=0.5))
    wrong = float(loss_of(picture, picture + 0.1, gradient=0.5))
    noisy = float(loss_of(picture, picture + 0.1 * torch.randn(1, 1, 8, 8), gradient=0.5))
    assert right < 0.003 < wrong
    assert noisy > wrong - 0.05


def test_rate_rises_then_falls() -> None:
    stage = Stage(iterations=2000)
    rates = [rate_at(i, stage) for i in range(2000)]
    assert max(rates) == pytest.approx(stage.rate, rel=0.05)
    assert rates[0] < 0.01 * stage.rate
    assert rates[-1] == pytest.approx(0.01 * stage.rate, rel=0.01)


def test_a_second_stage_goes_on_where_the_first_ended() -> None:
    losses, weights = run(seed=3)
    more, _ = run(seed=3, start=weights)
    assert np.mean(more[:5]) < 0.8 * np.mean(losses[:5])
    net = TrainableLumaNet(2, TINY.channels, TINY.depth)
    net.restart(weights)
    assert all(torch.equal(net.folded()[name], weights[name]) for name in weights)
    with pytest.raises(ValueError, match="another scale"):
        TrainableLumaNet(3, TINY.channels, TINY.depth).restart(weights)


def test_shares_say_how_often_a_stack_is_chosen() -> None:
    dark, bright = (np.full((n, 20, 20), level, np.uint8) for n, level in ((9, 10), (1, 200)))
    stacks = [(stack, stack.repeat(2, 1).repeat(2, 2)) for stack in (dark, bright)]
    for shares, expected in ((None, 0.1), ((0.25, 0.75), 0.75), ((1, 0), 0.0)):
        crops = PairSampler(stacks, 2, 8, 2, seed=0, shares=shares).batch(400).low
        assert (crops == 200).all(axis=(1, 2)).mean() == pytest.approx(expected, abs=0.07)


def test_crops_are_aligned() -> None:
    large = np.add.outer(np.arange(60) * 2, np.arange(80)).astype(np.uint8)[None]  # a ramp
    small = large[:, ::2, ::2]
    sampler = PairSampler([(small, large)], 2, crop=8, margin=3, seed=0)
    batch = sampler.batch(64)
    assert batch.low.shape == (64, 14, 14)
    assert batch.high.shape == (64, 16, 16)
    inner = batch.low[:, 3:-3, 3:-3].astype(int)
    blocks = batch.high.reshape(64, 8, 2, 8, 2).astype(int)
    # small[i] is one corner of its block; which one depends on how the crop was mirrored
    corners = np.stack([blocks[:, :, a, :, b] for a in (0, 1) for b in (0, 1)])
    assert ((corners == inner).all(axis=(2, 3)).any(axis=0)).all()


def test_equal_seeds_give_equal_crops() -> None:
    batches = [PairSampler([stack_of(64)], 2, 8, 2, seed).batch(5) for seed in (1, 1, 2)]
    assert (batches[0].low == batches[1].low).all()
    assert (batches[0].high == batches[1].high).all()
    assert (batches[0].low != batches[2].low).any()


def test_frames_that_do_not_match_are_refused() -> None:
    small, large = stack_of(64)
    with pytest.raises(ValueError, match="HR frames are"):
        PairSampler([(small, large[:, :-2])], 2, 8, 2, 0)


def collected(root: Path, names: list[str]) -> Path:
    """A tiny collection as the collectors write it."""
    for name in names:
        for height in (270, 540, 1080):
            folder = root / name / str(height)
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = np.full((height // 30, height // 30 * 2, 3), number * 9, np.uint8)
                cv2.imwrite(str(folder / f"{number:04d}.png"), pixels)
    return root


def test_the_split_is_by_whole_maps(tmp_path: Path) -> None:
    root = collected(tmp_path / "openarena", ["oa_dm1", HELD_OUT[0]])
    assert maps_of(root, held_out=False) == ["oa_dm1"]
    assert maps_of(root, held_out=True) == [HELD_OUT[0]]
    stacks = training_stacks(root, 4)
    assert [(low.shape, high.shape) for low, high in stacks] == [((2, 9, 18), (2, 36, 72))]


def test_missing_data_says_how_to_collect_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m training\.collect\.openarena"):
        training_stacks(tmp_path / "openarena", 2)


def test_luma_stack_is_made_once_and_again_when_frames_are_added(tmp_path: Path) -> None:
    folder = collected(tmp_path, ["a"]) / "a" / "270"
    first = luma_stack(folder)
    assert [int(frame[0, 0]) for frame in first] == [0, 9]
    cv2.imwrite(str(folder / "0002.png"), np.full((9, 18, 3), 200, np.uint8))
    assert len(luma_stack(folder)) == 3


def test_luma_is_bt601_full_range() -> None:
    pixels = np.array([[[255, 0, 0, 7], [0, 255, 0, 7], [0, 0, 255, 7], [255, 255, 255, 7]]])
    np.testing.assert_allclose(luma(pixels)[0], [29.07, 149.685, 76.245, 255], atol=1e-3)


def test_shifted_takes_every_step_from_the_offset() -> None:
    picture = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert shifted(picture, 2, (3, -1))[0, 0] == picture[3, 7]
    assert shifted(picture, 2, (3, -1))[1, 1] == picture[5, 1]
