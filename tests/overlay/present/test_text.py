import numpy as np
import pytest

from overlay.frame import Size
from overlay.hud import HudView, Span
from overlay.present import Look, text
from overlay.present.offscreen import OffscreenPresenter
from overlay.present.text import CHARACTERS, COLOURS, Metrics, atlas, boxes
from tests.contracts.presenter import picture_of

SURFACE = Size(1280, 720)
CORNERS = ["top-left", "top-right", "bottom-left", "bottom-right"]


def view(*lines, **options):
    return HudView(tuple((Span(line),) for line in lines), **options)


def glyphs_of(rows):
    return "".join(CHARACTERS[int(index)] for index in rows[rows[:, 8] >= 0, 8])


@pytest.mark.parametrize(
    ("height", "expected"), [(270, 14), (540, 14), (720, 17), (1080, 26), (2160, 51), (4320, 72)]
)
def test_text_grows_with_the_surface(height, expected):
    metrics = Metrics.of(Size(16 * height // 9, height))
    assert metrics.cell.height == expected
    assert 0.4 < metrics.cell.width / metrics.cell.height < 0.6


@pytest.mark.parametrize("height", [14, 26, 51])
def test_every_character_has_a_shape_of_its_own_within_its_cell(height):
    cell = Size(height // 2, height)
    pixels = atlas(cell)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (cell.height, cell.width * len(CHARACTERS))
    shapes = {}
    for index, character in enumerate(CHARACTERS):
        glyph = pixels[:, index * cell.width : (index + 1) * cell.width]
        shapes[glyph.tobytes()] = character
        assert glyph.any() == (character != " "), character
        if character != " ":
            assert glyph.max() > 100, character
        # nothing is cut off above or below
        assert glyph[0].max() < 64, character
        assert glyph[-1].max() < 64, character
    assert len(shapes) == len(CHARACTERS)


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("surface", [SURFACE, Size(640, 360), Size(3840, 2160)])
def test_hud_stands_in_its_corner(corner, surface):
    rows = boxes(view("output  60.0 fps", "x", sparkline=(16.0,) * 50, corner=corner), surface)
    left, top = rows[:, 0].min(), rows[:, 1].min()
    right, bottom = (rows[:, 0] + rows[:, 2]).max(), (rows[:, 1] + rows[:, 3]).max()
    gap = Metrics.of(surface).padding
    assert (left == gap) == corner.endswith("left")
    assert (surface.width - right == gap) == corner.endswith("right")
    assert (top == gap) == corner.startswith("top")
    assert (surface.height - bottom == gap) == corner.startswith("bottom")
    panel = rows[0]
    assert tuple(panel[:4]) == (left, top, right - left, bottom - top)  # the panel holds it all


def test_each_character_is_one_box_and_spaces_are_none():
    rows = boxes(view("a b", "→·%"), SURFACE)
    assert glyphs_of(rows) == "ab→·%"
    cell = Metrics.of(SURFACE).cell
    a, b, arrow = rows[1], rows[2], rows[3]
    assert b[0] - a[0] == 2 * cell.width
    assert arrow[1] - a[1] == cell.height
    assert tuple(a[2:4]) == cell


def test_unknown_characters_show_as_question_marks():
    assert glyphs_of(boxes(view("é漢"), SURFACE)) == "??"


def test_spans_follow_one_another_in_their_colours():
    rows = boxes(HudView(((Span("ab", "red"), Span("c", "green")),)), SURFACE)
    assert np.diff(rows[1:, 0]).tolist() == [Metrics.of(SURFACE).cell.width] * 2
    np.testing.assert_allclose(rows[1, 4:7], COLOURS["red"])
    np.testing.assert_allclose(rows[3, 4:7], COLOURS["green"])


def test_sparkline_bars():
    hud = view("x" * 40, sparkline=(10.0, 10.0, 10.0, 10.0, 12.0, 30.0, 500.0), budget_ms=10.0)
    bars = boxes(hud, SURFACE)[-5:-1]
    rule = boxes(hud, SURFACE)[-1]
    strip = 2 * Metrics.of(SURFACE).cell.height
    assert bars[:, 3].tolist() == [strip / 2, round(strip * 0.6), strip, strip]
    np.testing.assert_allclose(
        bars[:, 4:7], [COLOURS[name] for name in ("green", "amber", "red", "red")]
    )
    assert len(set(bars[:, 1] + bars[:, 3])) == 1  # they stand on one line
    assert (np.diff(bars[:, 0]) > 0).all()  # the latest at the right
    assert bars[0, 1] == rule[1]  # a bar of the budget ends at the rule


def test_sparkline_of_slow_frames_is_no_solid_block():
    hud = view("x" * 40, sparkline=(50.0, 60.0, 70.0), budget_ms=10.0)
    *bars, rule = boxes(hud, SURFACE)[-4:]
    heights = [bar[3] for bar in bars]
    strip = 2 * Metrics.of(SURFACE).cell.height
    assert heights == sorted(set(heights))
    assert heights[-1] < strip
    assert rule[1] > bars[0][1]  # the budget is far below them


def test_sparkline_shows_the_latest_where_not_all_fit():
    times = tuple(map(float, range(1, 401)))
    rows = boxes(view("x" * 30, sparkline=times, budget_ms=400.0), SURFACE)
    bars = rows[-1 - (rows[:, 8] < 0).sum() + 2 : -1]
    assert 100 < len(bars) < 400
    assert bars[-1, 3] > bars[0, 3] > 5
    assert (bars[:, 2] >= 1).all()


def test_empty_hud_is_a_panel():
    assert len(boxes(HudView(()), SURFACE)) == 1


def test_layout_is_made_once_per_view_and_size(monkeypatch):
    calls = []

    def counted(hud, surface):
        calls.append(surface)
        return boxes(hud, surface)

    monkeypatch.setattr(text, "boxes", counted)
    picture = picture_of(np.zeros((36, 64, 4), np.uint8))
    with OffscreenPresenter(Look(size=Size(640, 360))) as presenter:
        hud = view("one")
        for _ in range(3):
            presenter.show(picture, hud)
        assert len(calls) == 1
        presenter.adapt(Look(size=Size(1280, 720)))
        presenter.show(picture, hud)
        assert calls[1:] == [Size(1280, 720)]
        presenter.show(picture, view("two"))
        assert len(calls) == 3


def test_longer_text_than_ever_before_fits_the_buffer():
    picture = picture_of(np.zeros((36, 64, 4), np.uint8))
    with OffscreenPresenter(Look(size=SURFACE)) as presenter:
        for count in (1, 30, 3):
            presenter.show(picture, view(*["#" * 70] * count))
            shown = presenter.grab()
            cell = Metrics.of(SURFACE).cell
            lit = (shown[..., 1] > 128).any(axis=1)
            assert lit[: cell.height * (count + 1)].any()
            assert not lit[cell.height * (count + 2) :].any()


def test_drawn_text_is_the_atlas_in_the_colour():
    white = picture_of(np.full((36, 64, 4), 255, np.uint8))
    surface = SURFACE
    metrics = Metrics.of(surface)
    (wide, high), gap = metrics.cell, metrics.padding
    with OffscreenPresenter(Look(size=surface)) as presenter:
        presenter.show(white, HudView(((Span("W", "amber"),),)))
        shown = presenter.grab()[..., 2::-1].astype(float) / 255  # RGB
    top = left = 2 * gap
    index = CHARACTERS.index("W")
    cover = atlas(metrics.cell)[:, index * wide : (index + 1) * wide, None] / 255
    panel = shown[gap + 1, gap + 1]
    expected = cover * COLOURS["amber"] + (1 - cover) * panel
    np.testing.assert_allclose(
        shown[top : top + high, left : left + wide], expected, atol=2.1 / 255
    )
    assert panel.max() < 0.35  # dark enough on white
    assert (shown[high + 3 * gap + 1 :] == 1).all()
