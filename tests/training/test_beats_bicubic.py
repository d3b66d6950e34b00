"""The shipped nets, as they are shown, beat bicubic on a game they never saw."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluation.metrics.fidelity import psnr, psnr_y
from evaluation.upscale import open_upscaler
from training.dataset import read_png

#: Half of what the shipped nets gain on these crops in RGB and in Y, in dB: a worse net, or a
#: worse way to add its chroma, is noticed. The crops are the middles of those two frames of 64 a
#: scale that are nearest the median gain.
GAIN_DB = {2: (0.143, 0.148), 3: (0.148, 0.153), 4: (0.205, 0.202)}

CROPS = Path(__file__).parents[1] / "data" / "freedoom"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_default_beats_both_bicubics_on_freedoom(scale: int) -> None:
    names = (f"default-x{scale}", "catmull-rom", "bicubic")
    files = sorted(CROPS.glob(f"*-x{scale}-lr.png"))
    assert len(files) >= 2
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for file in files:
        low, high = read_png(file), read_png(file.with_name(file.name.replace("-lr", "-hr")))
        inner = (slice(8, -8), slice(8, -8), slice(None, None, -1))  # RGB
        for name in names:
            with open_upscaler(name) as upscaler:
                picture = upscaler(low, scale)[inner]
            figures[name].append((psnr(picture, high[inner]), psnr_y(picture, high[inner])))
    ours, *theirs = (np.mean(figures[name], axis=0) for name in names)
    assert (ours > np.max(theirs, axis=0) + GAIN_DB[scale]).all()


def test_the_crops_are_aligned_pairs() -> None:
    for file in sorted(CROPS.glob("*-lr.png")):
        low, high = read_png(file), read_png(file.with_name(file.name.replace("-lr", "-hr")))
        size = (low.shape[1], low.shape[0])
        down = cv2.resize(high, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
        assert psnr(down, low) > 24, file.name
