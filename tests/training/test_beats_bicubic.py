"""The shipped nets beat bicubic on a game they never saw, in luma: the rest is the presenter's."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluation.metrics.fidelity import psnr, psnr_y
from evaluation.upscale import open_upscaler
from training.dataset import read_png

#: Half of what the shipped nets gain on these crops, in dB: a worse net is noticed.
GAIN_DB = {2: 0.105, 3: 0.035, 4: 0.128}

CROPS = Path(__file__).parents[1] / "data" / "freedoom"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_default_beats_both_bicubics_on_freedoom(scale: int) -> None:
    names = (f"default-x{scale}", "catmull-rom", "bicubic")
    files = sorted(CROPS.glob(f"*-x{scale}-lr.png"))
    assert len(files) >= 2
    figures: dict[str, list[float]] = {name: [] for name in names}
    for file in files:
        low, high = read_png(file), read_png(file.with_name(file.name.replace("-lr", "-hr")))
        inner = (slice(8, -8), slice(8, -8), slice(None, None, -1))  # RGB
        for name in names:
            with open_upscaler(name) as upscaler:
                figures[name].append(psnr_y(upscaler(low, scale)[inner], high[inner]))
    ours, *theirs = (np.mean(figures[name]) for name in names)
    assert ours > max(theirs) + GAIN_DB[scale]


def test_the_crops_are_aligned_pairs() -> None:
    for file in sorted(CROPS.glob("*-lr.png")):
        low, high = read_png(file), read_png(file.with_name(file.name.replace("-lr", "-hr")))
        size = (low.shape[1], low.shape[0])
        down = cv2.resize(high, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
        assert psnr(down, low) > 24, file.name
