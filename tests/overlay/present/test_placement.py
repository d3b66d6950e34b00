"""Where the overlay goes, and which point of it is which point of the game."""

from __future__ import annotations

import pytest

from overlay.errors import SettingsError
from overlay.frame import Region, Size
from overlay.present import Look
from overlay.present.fit import place
from overlay.present.placement import (
    PointMap,
    chosen_monitor,
    monitor_index,
    overlap_px,
    shrunk,
    surface_region,
)

MAIN = Region(0, 0, 1920, 1080)
LEFT = Region(-2560, -200, 2560, 1440)  # left of and above the primary monitor
BELOW = Region(300, 1080, 3840, 2160)
ALL = [MAIN, LEFT, BELOW]


def test_overlap_counts_shared_pixels_only() -> None:
    assert overlap_px(Region(0, 0, 10, 10), Region(5, 5, 10, 10)) == 25
    assert overlap_px(Region(0, 0, 10, 10), Region(10, 0, 10, 10)) == 0
    assert overlap_px(Region(-10, -10, 10, 10), Region(20, 20, 5, 5)) == 0


@pytest.mark.parametrize(
    ("game", "index"),
    [
        (Region(100, 100, 480, 270), 0),
        (Region(-300, 100, 480, 270), 1),  # 300 of 480 columns are on the left monitor
        (Region(-100, 100, 480, 270), 0),
        (Region(-2700, -300, 480, 270), 1),
        (Region(400, 1000, 480, 270), 2),  # 190 of 270 rows are on the lower monitor
        (Region(2500, 100, 480, 270), 0),  # on none: the nearest
        (Region(-3500, 2000, 480, 270), 1),
    ],
)
def test_monitor_is_the_one_with_most_of_the_game(game: Region, index: int) -> None:
    assert monitor_index(game, ALL) == index


def test_an_unknown_monitor_is_refused_with_the_list() -> None:
    with pytest.raises(SettingsError, match=r"no monitor 3.*0 \(1920x1080\+0\+0\)"):
        chosen_monitor(Look(monitor=3), MAIN, ALL)
    assert chosen_monitor(Look(monitor=2), MAIN, ALL) == 2


def test_over_takes_the_whole_monitor_of_the_game() -> None:
    assert surface_region(Look(), Region(100, 100, 480, 270), ALL) == MAIN
    assert surface_region(Look(), Region(-900, 0, 480, 270), ALL) == LEFT
    assert surface_region(Look(monitor=2), Region(-900, 0, 480, 270), ALL) == BELOW


def test_over_with_a_size_is_centred_on_the_game() -> None:
    look = Look(size=Size(960, 540))
    assert surface_region(look, Region(600, 400, 480, 270), ALL) == Region(360, 265, 960, 540)
    look = Look(scale=3)
    assert surface_region(look, Region(-1500, 300, 480, 270), ALL) == Region(-1980, 30, 1440, 810)


@pytest.mark.parametrize(
    ("game", "expected"),
    [
        (Region(0, 0, 480, 270), Region(0, 0, 960, 540)),
        (Region(1700, 780, 480, 270), Region(960, 540, 960, 540)),
        (Region(-2560, -200, 480, 270), Region(-2560, -200, 960, 540)),
        (Region(-480, 970, 480, 270), Region(-960, 700, 960, 540)),
    ],
)
def test_over_stays_within_the_monitor(game: Region, expected: Region) -> None:
    assert surface_region(Look(scale=2), game, ALL) == expected


def test_too_large_a_size_is_shrunk_with_its_aspect() -> None:
    region = surface_region(Look(scale=6), Region(100, 100, 480, 200), [MAIN])
    assert region.size == Size(1920, 800)
    assert shrunk(Size(100, 50), Size(1000, 1000)) == Size(100, 50)
    assert shrunk(Size(1000, 10), Size(100, 100)) == Size(100, 1)


@pytest.mark.parametrize(
    ("game", "expected"),
    [
        (Region(100, 400, 480, 270), Region(580, 265, 960, 540)),  # right
        (Region(1300, 400, 480, 270), Region(340, 265, 960, 540)),  # left
        (Region(1300, 0, 480, 270), Region(340, 0, 960, 540)),  # left, kept within
        (Region(480, 50, 960, 200), Region(0, 250, 1920, 400)),  # below
        (Region(480, 850, 960, 200), Region(0, 450, 1920, 400)),  # above
    ],
)
def test_beside_takes_the_first_side_with_room(game: Region, expected: Region) -> None:
    assert surface_region(Look(mode="beside", scale=2), game, [MAIN]) == expected


def test_beside_works_left_of_the_origin() -> None:
    region = surface_region(Look(mode="beside"), Region(-2500, 0, 480, 270), ALL)
    assert region == Region(-2020, -135, 960, 540)


def test_beside_covers_as_little_as_possible_where_there_is_no_room() -> None:
    game = Region(100, 60, 1600, 900)
    region = surface_region(Look(mode="beside", scale=1), game, [MAIN])
    assert region == Region(320, 180, 1600, 900)  # the corner away from the game


def test_beside_on_another_monitor_is_centred_there() -> None:
    look = Look(mode="beside", scale=4, monitor=1)
    assert surface_region(look, Region(100, 100, 480, 270), ALL) == Region(-2240, -20, 1920, 1080)


def test_window_and_fullscreen() -> None:
    game = Region(100, 100, 480, 270)
    assert surface_region(Look(mode="window"), game, [MAIN]) == Region(480, 270, 960, 540)
    assert surface_region(Look(mode="fullscreen", size=Size(9, 9)), game, [MAIN]) == MAIN
    assert surface_region(Look(mode="fullscreen", monitor=1), game, ALL) == LEFT


@pytest.mark.parametrize("fit", ["fit", "integer", "fill", "stretch"])
def test_points_map_there_and_back(fit: str) -> None:
    game = Region(-400, 77, 480, 270)
    points = PointMap(game, LEFT, place(game.size, LEFT.size, fit))  # type: ignore[arg-type]
    for x, y in [(0, 0), (0.5, 0.5), (479.5, 269.5), (123.25, 45.75)]:
        there = points.overlay_from_game(x, y)
        assert points.game_from_overlay(*there) == pytest.approx((x, y))


def test_points_of_a_letterboxed_picture() -> None:
    game = Region(500, 300, 480, 360)
    points = PointMap(game, MAIN, place(game.size, MAIN.size, "fit"))
    assert points.picture == Region(240, 0, 1440, 1080)
    assert points.overlay_from_game(0, 0) == (240, 0)
    assert points.overlay_from_game(240, 180) == (960, 540)
    assert points.shows(240, 0)
    assert not points.shows(239, 0)  # a bar
    assert not points.shows(1680, 500)
    assert points.shows(1679, 1079)


def test_fill_shows_no_more_than_the_surface() -> None:
    game = Region(0, 0, 100, 100)
    surface = Region(1000, 0, 200, 100)
    points = PointMap(game, surface, place(game.size, surface.size, "fill"))
    assert points.overlay_from_game(50, 50) == (1100, 50)
    assert points.overlay_from_game(50, 0) == (1100, -50)  # cut off
    assert not points.shows(1100, -50)
    assert points.shows(1100, 0)


def test_identity_only_where_every_point_stays() -> None:
    game = Region(10, 20, 480, 270)
    assert PointMap(game, game, Region(0, 0, 480, 270)).identity
    assert PointMap(game, MAIN, Region(10, 20, 480, 270)).identity
    assert not PointMap(game, MAIN, Region(11, 20, 480, 270)).identity
    assert not PointMap(game, MAIN, Region(0, 0, 1920, 1080)).identity
