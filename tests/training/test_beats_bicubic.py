"""The shipped nets beat bicubic on a game they never saw."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from engines import load, zoo
from engines.archs.luma import LumaNet
from training import quality
from training.evaluate_default import upscaler
from training.pairs import read

#: Half of what the shipped nets gain on these crops, in dB: a worse net is noticed.
GAIN_DB = {2: 0.07, 3: 0.025, 4: 0.095}

CROPS = Path(__file__).parents[1] / "data" / "freedoom"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_default_beats_both_bicubics_on_freedoom(scale: int) -> None:
    net = upscaler(LumaNet(load.state_dict(zoo.spec(f"default-x{scale}"))))
    files = sorted(CROPS.glob(f"*-x{scale}-lr.png"))
    assert len(files) >= 2
    ours, theirs = [], []
    for file in files:
        low, high = read(file), read(file.with_name(file.name.replace("-lr", "-hr")))
        inner = (slice(8, -8), slice(8, -8))
        plain = quality.to_bytes(quality.catmull_rom(low, scale)), quality.cv2_cubic(low, scale)
        ours.append(quality.psnr(net(low, scale)[inner], high[inner]))
        theirs.append(max(quality.psnr(p[inner], high[inner]) for p in plain))
    assert np.mean(ours) > np.mean(theirs) + GAIN_DB[scale]


def test_the_crops_are_aligned_pairs() -> None:
    for file in sorted(CROPS.glob("*-lr.png")):
        low, high = read(file), read(file.with_name(file.name.replace("-lr", "-hr")))
        size = (low.shape[1], low.shape[0])
        down = cv2.resize(high, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
        assert quality.psnr(down, low) > 24, file.name
