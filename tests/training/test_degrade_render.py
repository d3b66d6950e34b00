"""The figures of a render, and the fit of its imitation."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import pytest

from training import degrade as package
from training.degrade.render import figures, fit, table
from training.degrade.steps import Picture, Sample, boxed, pointed
from training.errors import DataError


def scene(seed: int = 0, size: tuple[int, int] = (384, 252)) -> Picture:
    """Polygons on a texture, float32 luma."""
    dice = np.random.default_rng(seed)
    picture = cv2.GaussianBlur(dice.random((size[1], size[0]), np.float32), (0, 0), 1.0)
    for _ in range(25):
        corners = dice.integers(0, size[0], (1, 3, 2)).astype(np.int32)
        value = float(dice.random())
        mask = cv2.fillPoly(np.zeros_like(picture), corners, 1.0)
        picture = np.where(mask > 0, 0.7 * value + 0.3 * picture, picture)
    return picture.astype(np.float32)


def test_figures_of_the_area_itself() -> None:
    area = boxed(scene(), 4, 1.0)
    found = figures(area, area)
    assert (found.laplacian, found.psnr) == (1.0, 80.0)
    assert found.bands == pytest.approx((1, 1, 1, 1))


def test_figures_of_points_and_blurs() -> None:
    high = scene()
    area = boxed(high, 4, 1.0)
    sharp, soft = figures(pointed(high, 4), area), figures(boxed(high, 4, 2.0), area)
    assert sharp.laplacian > 1.5
    assert sharp.bands[-1] > sharp.bands[0]
    assert soft.laplacian < 0.5
    assert soft.bands[-1] < soft.bands[0]
    assert figures(area + np.float32(0.1), area).psnr == pytest.approx(20, abs=0.01)


@pytest.mark.parametrize(("step", "width", "edge"), [(2, 1.5, 0.15), (3, 1.25, 0.2), (4, 2.0, 0.2)])
def test_the_fit_finds_what_was_applied(step: int, width: float, edge: float) -> None:
    high = scene(step)
    colour = np.repeat(high[..., None], 3, axis=2)
    low = Sample(step, width, edge, 0).apply(colour, (384, 252))[..., 0]
    found = fit(low, high)
    assert (found.width, found.edge) == (width, edge)
    assert found.imitated_psnr > 40


def test_the_fit_tells_area_from_points() -> None:
    high = scene()
    assert fit(pointed(high, 4), high).edge == 0.05
    area = fit(boxed(high, 4, 1.0), high)
    assert (area.width, area.edge) == (1.0, 0.4)


def test_what_cannot_be_measured() -> None:
    with pytest.raises(DataError, match="no whole multiple"):
        fit(np.zeros((10, 10), np.float32), np.zeros((25, 20), np.float32))
    with pytest.raises(DataError, match="too flat"):
        fit(np.zeros((10, 10), np.float32), np.zeros((20, 20), np.float32))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        high = np.rint(scene() * 255).astype(np.uint8)
        for folder, picture in (("lr", pointed(high, 2)), ("hr", high)):
            (tmp_path / folder).mkdir(exist_ok=True)
            if (folder, name) == ("lr", "b"):
                picture = np.zeros_like(picture)
            colour = np.repeat(picture[..., None], 3, axis=2)
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), colour)
    parser = argparse.ArgumentParser()
    package.add_command(parser.add_subparsers())
    line = f"measure-render --lr {tmp_path / 'lr'} --hr {tmp_path / 'hr'}"
    arguments = parser.parse_args(line.split())
    assert arguments.data_run(arguments) == 0
    out = capsys.readouterr().out
    assert "b: the frame is too flat" in out
    assert "1 of 2 pairs" in out
    assert table([fit(pointed(scene(), 2), scene())]).splitlines()[1].startswith("width")
    arguments = parser.parse_args(line.split()[:3])
    with pytest.raises(DataError, match="belong together"):
        arguments.data_run(arguments)
