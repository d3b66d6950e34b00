"""Crops: aligned, repeatable, mixed by share, and without the frames that are wrong."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.training.frames import write_frames
from training import config
from training.config import Config, ConfigError
from training.errors import DataError
from training.loader import Crops, Episode, ahead, luma, open_frames, planes, turned

CONFIG = Path(__file__).parents[2] / "training" / "configs" / "smoke.toml"


def settings(root: Path, *changes: str) -> Config:
    return config.read(CONFIG, [f"data.root={root}", *changes])


def episode(low: np.ndarray, scale: int = 2, source: int = 0) -> Episode:
    """A sequence whose HR pixels are the LR ones repeated."""
    high = low.repeat(scale, 1).repeat(scale, 2)
    return Episode(source, low, high, tuple(range(len(low))))


def noise(count: int = 3, height: int = 20, width: int = 24, channels: int = 1) -> np.ndarray:
    dice = np.random.default_rng(7)
    return dice.integers(0, 256, (count, height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_are_aligned_however_they_are_turned(channels: int) -> None:
    crops = Crops([episode(noise(channels=channels))], 2, 8, margin=3, seed=0)
    batch = crops.batch(0, 64)
    assert batch.low.shape == (64, 14, 14, channels)
    assert batch.high.shape == (64, 16, 16, channels)
    inner = batch.low[:, 3:-3, 3:-3]
    assert (inner.repeat(2, 1).repeat(2, 2) == batch.high).all()


def test_all_eight_ways_to_turn_are_different_and_taken() -> None:
    square = np.arange(9, dtype=np.uint8).reshape(3, 3, 1)
    ways = {turned(square, way).tobytes() for way in range(8)}
    assert len(ways) == 8
    crops = Crops([episode(square[None])], 2, 3, margin=0, seed=1)
    assert {crop.tobytes() for crop in crops.batch(0, 200).low} == ways


def test_every_place_of_a_frame_is_cropped() -> None:
    frame = np.arange(48, dtype=np.uint8).reshape(1, 6, 8, 1)
    seen = Crops([episode(frame)], 2, 2, margin=1, seed=1).batch(0, 500).low
    assert set(seen.ravel()) == set(range(48))


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    frames = [episode(noise())]
    batches = [Crops(frames, 2, 8, 2, seed).batch(step, 5) for seed, step in
               ((1, 4), (1, 4), (1, 5), (2, 4))]  # fmt: skip
    assert (batches[0].low == batches[1].low).all()
    assert (batches[0].high == batches[1].high).all()
    assert (batches[0].low != batches[2].low).any()
    assert (batches[0].low != batches[3].low).any()


def test_processes_share_the_crops_of_one_batch() -> None:
    crops = Crops([episode(noise())], 2, 8, 2, seed=3)
    whole = crops.batch(9, 6)
    parts = [crops.batch(9, 6, slice(i, i + 3)) for i in (0, 3)]
    assert (np.concatenate([part.low for part in parts]) == whole.low).all()
    assert (np.concatenate([part.high for part in parts]) == whole.high).all()


def test_shares_say_how_often_a_source_is_chosen() -> None:
    dark, bright = (np.full((n, 20, 20, 1), level, np.uint8) for n, level in ((9, 10), (1, 200)))
    frames = [episode(dark, source=0), episode(bright, source=1)]
    for shares, expected in (((), 0.1), ((1, 3), 0.75), ((1, 0), 0.0)):
        crops = Crops(frames, 2, 8, 2, seed=0, shares=shares).batch(0, 1000).low
        assert (crops == 200).all(axis=(1, 2, 3)).mean() == pytest.approx(expected, abs=0.05)
    with pytest.raises(ConfigError, match=r"data\.sources\.2 has a share and no frames"):
        Crops(frames, 2, 8, 2, seed=0, shares=(1, 1, 1))


def test_frames_that_do_not_fit_are_refused() -> None:
    low = noise()
    with pytest.raises(DataError, match="HR frames are"):
        Crops([Episode(0, low, low, (0,))], 2, 8, 2, 0)
    with pytest.raises(DataError, match=r"make data\.crop smaller"):
        Crops([episode(low)], 2, 20, 2, 0)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order_and_are_made_ahead(workers: int) -> None:
    made = threading.Semaphore(0)

    def make(step: int) -> int:
        made.release()
        return step * step

    batches = ahead(make, 2, 40, workers)
    assert next(batches) == 4
    if workers:  # more are made without being asked for
        assert made.acquire(timeout=10)
        assert made.acquire(timeout=10)
    assert list(batches) == [step * step for step in range(3, 40)]


def test_an_error_in_a_thread_arrives() -> None:
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda step: 1 // (step - 3), 0, 9, 2))


def test_leaving_early_leaves_no_thread() -> None:
    before = threading.active_count()
    batches = ahead(lambda step: step, 0, 10**9, 2)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_bad_frames_are_reported_and_never_cropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_frames(tmp_path, count=5)
    low, high = (tmp_path / "GameEngineData" / height / "train" for height in ("270p", "540p"))
    (high / "alpha_train_0000.png").unlink()
    whole = (low / "alpha_train_0001.png").read_bytes()
    (low / "alpha_train_0001.png").write_bytes(whole[: len(whole) // 2])
    damaged = bytearray((high / "alpha_train_0002.png").read_bytes())
    damaged[len(damaged) // 2] ^= 255  # header and end are whole
    (high / "alpha_train_0002.png").write_bytes(damaged)
    cv2.imwrite(str(low / "alpha_train_0003.png"), np.zeros((200, 480, 3), np.uint8))
    with caplog.at_level(logging.WARNING):
        (found,) = open_frames(settings(tmp_path), "luma")
    assert len(Crops([found], 2, 8, 0, 0)) == 1
    for frame in range(4):
        assert f"alpha_train_{frame:04d}" in caplog.text
    assert "alpha_train_0004" not in caplog.text
    good = found.low[found.good[0], ..., 0]
    expected = luma(cv2.imread(str(low / "alpha_train_0004.png")).astype(np.uint8))
    assert np.abs(good - expected).max() <= 0.5


def test_frames_are_decoded_once_and_again_when_they_change(tmp_path: Path) -> None:
    write_frames(tmp_path, count=2)
    open_frames(settings(tmp_path), "rgb")
    stacks = sorted((tmp_path / "cache").glob("*.npy"))
    times = [stack.stat().st_mtime_ns for stack in stacks]
    (found,) = open_frames(settings(tmp_path), "rgb")
    assert [stack.stat().st_mtime_ns for stack in stacks] == times
    assert found.high.shape == (2, 540, 960, 3)
    truth = cv2.imread(str(tmp_path / "GameEngineData/540p/train/alpha_train_0001.png"))
    assert (found.high[1] == truth[..., ::-1]).all()
    write_frames(tmp_path, count=2, seed=50)
    (again,) = open_frames(settings(tmp_path), "rgb")
    assert (again.low != found.low).any()


def test_no_frames_at_all_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="overlay data"):
        open_frames(settings(tmp_path), "luma")
    write_frames(tmp_path, count=1)
    beta = 'data.sources=[{games=["beta"], heights=[[270, 540]]}]'
    with pytest.raises(DataError, match="no training frames of beta in"):
        open_frames(settings(tmp_path, beta), "luma")


def test_luma_is_bt601_full_range() -> None:
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    np.testing.assert_allclose(luma(pixels)[0], [29.07, 149.685, 76.245, 255], atol=1e-3)
    assert planes(pixels, "luma").shape == (1, 4, 1)
    assert planes(pixels, "rgb")[0, 0].tolist() == [0, 0, 255]
