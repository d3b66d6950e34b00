import math
from dataclasses import replace

import pytest

from overlay.frame import Size
from overlay.hud import (
    HudFigures,
    hud_view,
    interval_colour,
    loss_colour,
    rate_colour,
    time_colour,
)

FIGURES = HudFigures(
    output_fps=58.4,
    source_fps=60.0,
    frame_ms_p50=16.7,
    frame_ms_p99=19.0,
    latency_ms_p50=9.5,
    latency_ms_p99=14.0,
    source=Size(480, 270),
    result=Size(960, 540),
    output=Size(1920, 1080),
    model="default-x2",
    backend="openvino",
    device="CPU, 2 threads",
    stage_ms=(("capture", 0.1), ("infer", 7.5), ("swap", 13.0), ("queue", 17.0), ("draw", 0.2)),
    presented=990,
    duplicate=5,
    superseded=9,
    failed=1,
    frame_times_ms=(16.0, 17.0, 40.0),
)


def text_of(view):
    return ["".join(span.text for span in line) for line in view.lines]


def colour_of(view, text):
    spans = [span for line in view.lines for span in line if span.text.strip() == text]
    assert spans, f"{text!r} is not in {text_of(view)}"
    return spans[0].colour


@pytest.mark.parametrize(
    ("fps", "colour"),
    [(60, "green"), (57, "green"), (56.9, "amber"), (48, "amber"), (47.9, "red"), (1, "red")],
)
def test_rate_colours(fps, colour):
    assert rate_colour(fps, 60) == colour
    assert interval_colour(1000 / fps, 1000 / 60) == colour


@pytest.mark.parametrize(
    ("ms", "colour"), [(0.1, "green"), (7.4, "green"), (7.5, "amber"), (9.9, "amber"), (10, "red")]
)
def test_time_colours(ms, colour):
    assert time_colour(ms, 10) == colour


@pytest.mark.parametrize(
    ("lost", "colour"), [(0, "grey"), (9, "green"), (10, "amber"), (49, "amber"), (50, "red")]
)
def test_loss_colours(lost, colour):
    assert loss_colour(lost, 1000) == colour


@pytest.mark.parametrize("unknown", [math.nan, 0.0, math.inf])
def test_what_is_unknown_is_white(unknown):
    assert rate_colour(unknown, 60) == "white"
    assert interval_colour(0, 16) == "white"
    if unknown != math.inf:
        assert time_colour(unknown, 10) == "white"
    assert loss_colour(3, 0) == "grey"


def test_off_is_nothing():
    assert hud_view(FIGURES, "off", "top-left") is None


def test_compact_has_rates_and_latency():
    view = hud_view(FIGURES, "compact", "bottom-right")
    assert text_of(view) == [" 58.4 fps   source  60.0", "  9.5 ms    p99     14.0"]
    assert view.sparkline == ()
    assert view.corner == "bottom-right"
    assert colour_of(view, "58.4") == "green"
    assert colour_of(view, "9.5") == "green"
    assert colour_of(view, "14.0") == "amber"


def test_full_has_everything():
    view = hud_view(FIGURES, "full", "top-left")
    assert text_of(view) == [
        "output     58.4 fps  source   60.0",
        "frame      16.7 ms   p99      19.0",
        "latency     9.5 ms   p99      14.0",
        "stages   capture 0.1   infer   7.5   swap    13.0  queue   17.0  ",
        "         draw    0.2   ",
        "frames      990 shown  5 same  9 skipped  1 failed",
        "size     480x270 → 960x540 → 1920x1080",
        "model    default-x2 · openvino",
        "device   CPU, 2 threads",
    ]
    assert view.sparkline == (16.0, 17.0, 40.0)
    assert colour_of(view, "7.5") == "green"
    assert colour_of(view, "13.0") == "amber"
    assert colour_of(view, "17.0") == "red"
    assert colour_of(view, "9") == "green"


def test_rate_is_judged_by_what_the_source_gives():
    slow = replace(FIGURES, output_fps=34.0, source_fps=35.0, frame_ms_p50=28.6)
    view = hud_view(slow, "full", "top-left")
    assert colour_of(view, "34.0") == "green"
    assert colour_of(view, "28.6") == "green"
    assert view.budget_ms == pytest.approx(1000 / 35)


def test_rate_beyond_the_display_is_not_asked_for():
    fast = replace(FIGURES, output_fps=59.0, source_fps=200.0)
    view = hud_view(fast, "compact", "top-left")
    assert colour_of(view, "59.0") == "green"
    assert view.budget_ms == pytest.approx(1000 / 60)


def test_sizes_that_do_not_change_are_said_once():
    same = replace(FIGURES, result=Size(480, 270), output=Size(480, 270))
    assert "size     480x270" in text_of(hud_view(same, "full", "top-left"))


def test_nothing_known_yet():
    unknown = replace(
        FIGURES, output_fps=0.0, source_fps=0.0, frame_ms_p50=math.nan, frame_ms_p99=math.inf,
        latency_ms_p50=math.nan, latency_ms_p99=math.nan, stage_ms=(("infer", math.nan),),
    )  # fmt: skip
    lines = text_of(hud_view(unknown, "full", "top-left"))
    assert lines[1] == "frame         - ms   p99         -"
    assert not any("nan" in line or "inf " in line for line in lines)


def test_notices_are_shown_and_cut():
    view = hud_view(replace(FIGURES, notice="x" * 100, paused=True), "compact", "top-left")
    assert text_of(view)[2:] == ["paused: no new frames from the game", "x" * 57 + "..."]
