"""A small data set in the documented layout, drawn here: edges and texture, aligned sizes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from training.dataset import SIZES


def picture(seed: int) -> np.ndarray:
    """Blocks of several sizes over soft noise, uint8 BGR (1080, 1920, 3)."""
    dice = np.random.default_rng(seed)
    total = np.zeros((1080, 1920, 3), np.float32)
    for side, kind in ((240, cv2.INTER_CUBIC), (60, cv2.INTER_NEAREST), (8, cv2.INTER_NEAREST)):
        small = dice.random((1080 // side + 1, 1920 // side + 1, 3), dtype=np.float32)
        total += cv2.resize(small, (1920, 1080), interpolation=kind) * (side / 240) ** 0.4
    return (255 * (total - total.min()) / np.ptp(total)).astype(np.uint8)


def write_frames(
    root: Path,
    *,
    games: tuple[str, ...] = ("alpha",),
    split: str = "train",
    count: int = 3,
    heights: tuple[int, ...] = (270, 540),
    seed: int = 0,
) -> None:
    """Write one sequence of each game."""
    for number, game in enumerate(games):
        for frame in range(count):
            large = picture(seed + 100 * number + frame)
            for height in heights:
                folder = root / "GameEngineData" / f"{height}p" / split
                folder.mkdir(parents=True, exist_ok=True)
                small = cv2.resize(large, SIZES[height], interpolation=cv2.INTER_AREA)
                name = f"{game}_{split}_{frame:04d}.png"
                done, data = cv2.imencode(".png", small, [cv2.IMWRITE_PNG_COMPRESSION, 1])
                assert done
                (folder / name).write_bytes(data.tobytes())
