"""The measures and the plain upscales, against values worked out elsewhere."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from training import quality


def picture(height: int = 24, width: int = 32) -> np.ndarray:
    dice = np.random.default_rng(2)
    return dice.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_cubic_matrix_is_cv2s_with_its_coefficient() -> None:
    pixels = picture()
    rows = quality.bicubic_matrix(24, 4, a=-0.75)
    columns = quality.bicubic_matrix(32, 4, a=-0.75)
    ours = quality.to_bytes((rows @ pixels[..., 0].astype(np.float32)) @ columns.T)
    theirs = quality.cv2_cubic(pixels, 4)[..., 0]
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_catmull_rom_keeps_straight_lines() -> None:
    ramp = np.repeat(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], 3, axis=2)
    ramp = np.repeat(ramp, 8, axis=0)
    made = quality.catmull_rom(ramp, 2)
    expected = (np.arange(40) + 0.5) / 2 * 10 - 5
    np.testing.assert_allclose(made[8, 4:-4, 0], expected[4:-4], atol=1e-3)


def test_psnr() -> None:
    a = np.full((8, 8), 100, np.uint8)
    assert quality.psnr(a, a) == 100
    assert quality.psnr(a, a + np.uint8(1)) == pytest.approx(48.1308, abs=1e-3)


def test_ssim_is_one_for_equal_and_falls_with_noise() -> None:
    y = cv2.GaussianBlur(picture(64, 64)[..., 0].astype(np.float32), (0, 0), 3)
    noisy = y + np.random.default_rng(0).normal(0, 5, y.shape).astype(np.float32)
    assert quality.ssim(y, y) == pytest.approx(1)
    assert 0.1 < quality.ssim(y, noisy.astype(np.float32)) < 0.95


def test_sharpness_falls_with_blur() -> None:
    sharp = picture(64, 64)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 1).astype(np.uint8)
    assert quality.sharpness(sharp, sharp) == pytest.approx(1)
    assert quality.sharpness(blurred, sharp) < 0.2


def test_with_luma_replaces_luma_and_keeps_chroma() -> None:
    base = np.full((4, 4, 3), (60, 80, 100), np.float32)
    made = quality.with_luma(base, np.full((4, 4), 110, np.uint8)).astype(float)
    assert quality.luma(made.astype(np.float32))[0, 0] == pytest.approx(110, abs=1)
    assert list(made[0, 0] - made[0, 0, 0]) == [0, 20, 40]


def test_video_luma_has_the_range_of_the_papers() -> None:
    black, white = (np.full((1, 1, 3), level, np.uint8) for level in (0, 255))
    assert quality.video_luma(black)[0, 0] == pytest.approx(16)
    assert quality.video_luma(white)[0, 0] == pytest.approx(235, abs=1e-3)
