"""Tiles of a large odd picture give what the whole picture gives."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from engines import archs, frames, load, nets, tiles, zoo
from engines.load import Loaded
from engines.offline_net import OfflineNet
from engines.spec import ModelSpec
from tests.engines.nets import picture_state

Pixels = NDArray[np.uint8]
SIZE = (637, 411)
TILES = {"emt-x2": 320}  # which has a border of its own around each

#: What is made smaller; where there is nothing, the weights are real.
SHAPES: dict[str, dict[str, int]] = {
    "realesrgan-x4plus": {"features": 16, "growth": 8, "blocks": 6},
    "realesrgan-x2plus": {"features": 16, "growth": 8, "blocks": 6},
    "realesr-animevideov3-x4": {},
    "realesr-animevideov3-x3": {},
    "span-x2": {"features": 24},
    "emt-x2": {"features": 30, "blocks": 1, "layers": 3},
    "default-x4": {},
}


#: Half a minute of one core, on which others may run too.
LONG = {"emt-x2": (pytest.mark.slow, pytest.mark.timeout(600))}


@cache
def picture() -> Pixels:
    """Pieces of four game frames beside and below each other, RGB."""
    four = [frame[..., 2::-1] for frame in frames.read((480, 270), most=4)]
    return np.ascontiguousarray(np.block([[[four[0]], [four[1]]], [[four[2]], [four[3]]]]))[
        : SIZE[1], : SIZE[0]
    ]


def loaded(name: str) -> Loaded:
    """A row's net: its real weights, or smaller ones that make pictures."""
    if not SHAPES[name]:
        return load.read(load.locate(name))
    row = zoo.spec(name)
    row = replace(row, shape=tuple({**dict(row.shape), **SHAPES[name]}.items()))
    located = load.Located(row.id, row, (), "", "random weights")
    return Loaded(
        located,
        row,
        archs.net_with(row.architecture, dict(row.shape), picture_state(row, deviation=0.3)),
    )


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=LONG.get(name, ())) for name in SHAPES],
)
def test_tiles_of_a_large_odd_picture_are_the_whole(
    name: str,
) -> None:
    model = OfflineNet(name, nets.open_net(loaded(name), "cpu"))
    whole = model.upscale(picture(), chunk=max(SIZE)).astype(int)
    assert whole.shape == (SIZE[1] * model.scale, SIZE[0] * model.scale, 3)
    assert whole.std() > 15, "a flat picture has no seams"
    told: list[float] = []
    tiled = model.upscale(picture(), chunk=TILES.get(name, 192), progress=told.append)
    assert len(told) == (2 * 2 if name in TILES else 3 * 4)
    assert np.abs(tiled - whole).max() <= 1


@pytest.mark.parametrize("row", [row for row in zoo.ZOO if not row.offline], ids=lambda row: row.id)
def test_margins_are_what_was_measured_or_all_that_is_seen(row: ModelSpec) -> None:
    margin = tiles.margin_of(row)
    assert margin >= tiles.MEASURED.get(row.id, 0)
    if row.architecture not in ("rrdb", "emt"):
        assert row.id not in tiles.MEASURED
        assert row.receptive_field <= margin < row.receptive_field + tiles.grid_of(row)


@pytest.mark.parametrize("name", SHAPES)
def test_without_margins_seams_would_show(name: str) -> None:
    """The same nets where frames meet: 270 pixels down and 480 to the right."""
    model = OfflineNet(name, nets.open_net(loaded(name), "cpu"))
    spec: ModelSpec = model._net.spec
    corner = np.ascontiguousarray(picture()[206:336, 416:596])
    whole = model.upscale(corner, chunk=999).astype(int)
    tiled = tiles.upscaled(corner, spec, 64, model._piece, margin=0)
    assert np.abs(tiled - whole).max() > 1
