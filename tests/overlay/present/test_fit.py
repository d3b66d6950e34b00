import pytest

from overlay.frame import Region, Size
from overlay.present.fit import place, source_from_surface, surface_from_source


@pytest.mark.parametrize(
    ("source", "surface", "fit", "region"),
    [
        ((480, 270), (1920, 1080), "fit", (0, 0, 1920, 1080)),
        ((480, 270), (1920, 1080), "fill", (0, 0, 1920, 1080)),
        ((480, 270), (1920, 1080), "integer", (0, 0, 1920, 1080)),
        # bars above and below, to the left and right
        ((480, 270), (960, 600), "fit", (0, 30, 960, 540)),
        ((320, 240), (1920, 1080), "fit", (240, 0, 1440, 1080)),
        # cut at the edges
        ((480, 270), (960, 600), "fill", (-54, 0, 1067, 600)),
        ((320, 240), (1920, 1080), "fill", (0, -180, 1920, 1440)),
        # whole multiples, and what happens when not even one fits
        ((640, 360), (1920, 1200), "integer", (0, 60, 1920, 1080)),
        ((500, 300), (1920, 1080), "integer", (210, 90, 1500, 900)),
        ((800, 600), (400, 400), "integer", (0, 50, 400, 300)),
        ((480, 270), (1000, 1000), "stretch", (0, 0, 1000, 1000)),
        # nothing vanishes
        ((10000, 1), (100, 100), "fit", (0, 49, 100, 1)),
    ],
)
def test_placement(source, surface, fit, region):
    assert place(Size(*source), Size(*surface), fit) == Region(*region)


@pytest.mark.parametrize("width", [3, 479, 480, 481, 1366])
@pytest.mark.parametrize("height", [2, 269, 270, 768])
def test_fit_stays_inside_and_fill_covers(width, height):
    surface = Size(1277, 719)
    inside = place(Size(width, height), surface, "fit")
    assert inside.width == surface.width or inside.height == surface.height
    assert inside.width <= surface.width
    assert inside.height <= surface.height
    over = place(Size(width, height), surface, "fill")
    assert over.width >= surface.width
    assert over.height >= surface.height
    assert over.left <= 0
    assert over.top <= 0


def test_fit_of_large_sizes_does_not_round_like_a_float():
    # 2^27 + 1 has no float32; the arithmetic is in integers
    assert place(Size(3, 1), Size(3 * 134217729, 10**9), "fit").height == 134217729


def test_a_side_of_zero_is_refused():
    with pytest.raises(ValueError, match="0x10"):
        place(Size(0, 10), Size(10, 10), "fit")


def test_points_go_there_and_back():
    source, placed = Size(480, 270), Region(0, 30, 960, 540)
    assert surface_from_source(placed, source, 0, 0) == (0, 30)
    assert surface_from_source(placed, source, 480, 270) == (960, 570)
    assert surface_from_source(placed, source, 10.5, 4) == (21, 38)
    assert source_from_surface(placed, source, 21, 38) == (10.5, 4)
