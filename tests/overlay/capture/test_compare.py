"""Comparing pictures."""

from __future__ import annotations

import timeit

import numpy as np
import pytest

from overlay.capture.compare import same_pixels


def test_it_sees_any_single_byte() -> None:
    a = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    assert same_pixels(a, a.copy())
    for at in (0, a.size // 2, a.size - 1):
        b = a.copy()
        b.reshape(-1)[at] ^= 1
        assert not same_pixels(a, b)


def test_other_shapes_differ() -> None:
    assert not same_pixels(np.zeros((4, 6, 4), np.uint8), np.zeros((6, 4, 4), np.uint8))


def test_it_refuses_what_memcmp_cannot_compare() -> None:
    whole = np.zeros((8, 8, 4), np.uint8)
    with pytest.raises(ValueError, match="must be contiguous uint8"):
        same_pixels(whole[:, ::2], whole[:, ::2])
    with pytest.raises(ValueError, match="must be contiguous uint8"):
        same_pixels(whole, np.zeros((8, 8, 4), np.uint16))  # type: ignore[arg-type]


def test_it_is_not_slower_than_numpy() -> None:
    a = np.random.default_rng(0).integers(0, 256, (270, 480, 4), dtype=np.uint8)
    b = a.copy()

    def best(function: object) -> float:
        return min(timeit.repeat(lambda: function(a, b), number=20, repeat=15))  # type: ignore[operator]

    assert best(same_pixels) <= best(np.array_equal) * 1.2
