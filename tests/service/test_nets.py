"""The shipped nets behind the service: the same pictures as `overlay upscale` gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")

from engines.offline import open_offline
from overlay.files import enlarge, images
from overlay.files.images import Picture
from service import backends, pictures
from service.backends import LiveModel, LocalBackend, open_backend
from service.pool import ModelPool
from service.schemas import Order
from service.settings import Settings
from service.workers import Stop

SEEN = np.random.default_rng(3)


def noise(*shape: int, dtype: Any = np.uint8) -> Any:
    return SEEN.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.fixture(scope="module")
def local() -> LocalBackend:
    found = open_backend(Settings(threads=1))
    assert isinstance(found, LocalBackend)
    return found


def service_result(local: LocalBackend, picture: Picture, **order: Any) -> Picture:
    data = pictures.encode(picture, "png", 95)
    pool = ModelPool(local, 1 << 30)
    full = Order(**{"model": "default-x2", "format": "png", **order})
    result = pictures.upscale(data, full, pool, lambda name: int(name[-1]), Stop())
    pool.close()
    return images.decoded(result.data, Path("a.png"))


@pytest.mark.parametrize("colour", [(9, 11, 3), (9, 11)])
@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("order", [{}, {"outscale": 1.5}])
def test_sixteen_bits_are_what_upscale_gives(
    local: LocalBackend, colour: tuple[int, ...], clear: bool, order: dict[str, Any]
) -> None:
    alpha = noise(9, 11, dtype=np.uint16) if clear else None
    if alpha is not None:
        alpha[2:5] = 0
    picture = Picture(noise(*colour, dtype=np.uint16), alpha)
    wish = enlarge.Wish("default-x2", **order)
    wanted = enlarge.enlarged(picture, Path("a.png"), wish)
    got = service_result(local, picture, **order)
    np.testing.assert_array_equal(got.colour, wanted.colour)
    assert (got.alpha is None) == (wanted.alpha is None)
    if got.alpha is not None and wanted.alpha is not None:
        np.testing.assert_array_equal(got.alpha, wanted.alpha)


def test_eight_bits_are_what_the_overlay_shows(local: LocalBackend) -> None:
    """Live chroma is rounded before it is joined: a level or two beside `overlay upscale`."""
    smooth = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)
    picture = Picture(np.stack([smooth * 2, 255 - smooth, smooth], 2))
    wanted = enlarge.enlarged(picture, Path("a.png"), enlarge.Wish("default-x2")).colour
    got = service_result(local, picture).colour
    off = np.abs(got.astype(int) - wanted.astype(int))
    assert got.shape == (80, 120, 3)
    assert off.mean() < 1
    assert off.max() <= 4


def test_a_large_picture_goes_in_tiles(
    local: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "LIVE_BYTES", 30 * 20 * 128)
    model = local.open("default-x2")
    assert isinstance(model, LiveModel)
    small, large = noise(20, 30, 3), noise(20, 31, 3)
    model.upscale(small, seed=0, progress=Stop())
    assert model._deep is None
    got = model.upscale(large, seed=0, progress=Stop())
    assert model._deep is not None
    np.testing.assert_array_equal(got, open_offline("default-x2").upscale(large))
    model.close()


def test_few_sizes_stay_ready(local: LocalBackend) -> None:
    model = local.open("default-x2")
    assert isinstance(model, LiveModel)
    for width in (16, 17, 18, 19, 20, 16):
        model.upscale(noise(16, width, 3), seed=0, progress=Stop())
    assert [size.width for size in model._live] == [18, 19, 20, 16]
    assert model.bytes > backends._IDLE
    model.close()
    assert not model._live


def test_the_shipped_nets_are_offered_and_what_is_missing_says_how_to_get_it() -> None:
    offers = {one.id: one for one in LocalBackend(Settings()).offers()}
    assert offers["default-x4"].available
    missing = offers["realesrgan-x2plus"]
    if not missing.available:
        assert "https://github.com/xinntao" in missing.reason
    assert "compact-x2" not in offers, "a shape has no weights"
