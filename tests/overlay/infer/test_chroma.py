"""The fast merge on the host is the shader's merge, nearly, and touches nothing it should not."""

import cv2
import numpy as np
import pytest

from overlay.infer.chroma import ChromaMerger
from overlay.infer.merge import merge_luma


def scene(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 4), np.uint8)
    return np.ascontiguousarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_it_is_close_to_the_exact_merge(scale: int) -> None:
    source = scene(90, 161)
    size = (161 * scale, 90 * scale)
    luma = cv2.cvtColor(cv2.resize(source, size), cv2.COLOR_BGRA2GRAY)
    picture = np.zeros((size[1], size[0], 4), np.uint8)
    before = source.copy()
    ChromaMerger((161, 90), scale).merge(source, luma, picture)
    exact = merge_luma(source, luma)
    difference = picture[..., :3].astype(int) - exact[..., :3]
    assert 10 * np.log10(255**2 / (difference**2).mean()) > 48
    assert (picture[..., 3] == 255).all()
    assert (source == before).all()
    again = cv2.cvtColor(picture, cv2.COLOR_BGRA2GRAY)
    assert np.abs(again.astype(int) - luma).mean() < 1.0, "the net's luma is kept"


def test_the_buffer_given_is_the_one_written() -> None:
    source = scene(16, 24)
    picture = np.zeros((32, 48, 4), np.uint8)
    ChromaMerger((24, 16), 2).merge(source, np.full((32, 48), 128, np.uint8), picture)
    assert picture.any()
