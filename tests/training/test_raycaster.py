"""The ray caster: seeded, aligned between sizes, not all the same."""

from __future__ import annotations

import cv2
import numpy as np

from evaluation.metrics.fidelity import psnr
from training.collect.raycaster import Scene


def test_a_seed_gives_one_picture_and_another_seed_another() -> None:
    first, again, other = (Scene(seed).render(64, 36) for seed in (4, 4, 5))
    assert first.shape == (36, 64, 3)
    assert first.dtype == np.uint8
    assert (first == again).all()
    assert (first != other).mean() > 0.5


def test_sizes_show_the_same_place_at_the_same_spot() -> None:
    scene = Scene(7)
    large, small = scene.render(480, 270), scene.render(160, 90)
    # an odd factor has a pixel centre in common: every third pixel is the small picture
    assert (large[1::3, 1::3] == small).mean() > 0.98
    moved = np.roll(large, 3, axis=1)
    down = [
        cv2.resize(p, (160, 90), interpolation=cv2.INTER_AREA).astype(np.uint8)
        for p in (large, moved)
    ]
    assert psnr(down[0], small) > psnr(down[1], small) + 3
