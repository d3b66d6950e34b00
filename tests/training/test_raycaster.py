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


def test_the_weapon_ends_at_the_same_height_at_every_size() -> None:
    scene = Scene(7)
    scene.hud = None
    with_weapon = {size: scene.render(*size) for size in ((480, 270), (1440, 810))}
    scene.weapon = (scene.weapon[0], 1e-6)
    for size, picture in with_weapon.items():
        with_weapon[size] = np.abs(picture.astype(int) - scene.render(*size)).sum(-1) > 0
    small, large = with_weapon.values()
    assert small.sum() > 500
    assert (large[1::3, 1::3] == small).mean() > 0.999
