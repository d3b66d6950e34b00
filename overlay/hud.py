"""What the HUD says: pure functions from figures to coloured text, no drawing.

The presenter draws a `HudView` inside the frame it presents anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from overlay.frame import Size

Corner = Literal["top-left", "top-right", "bottom-left", "bottom-right"]
Level = Literal["off", "compact", "full"]
Colour = Literal["white", "grey", "green", "amber", "red"]


@dataclass(frozen=True, slots=True)
class Span:
    """A run of text in one colour (printable ASCII and a few symbols)."""

    text: str
    colour: Colour = "white"


@dataclass(frozen=True, slots=True)
class HudView:
    """One state of the HUD; a new object means new text, the same object means no change.

    Attributes:
        lines: text lines from top to bottom, each a row of spans.
        sparkline: the latest frame times in ms, oldest first; empty for none.
        budget_ms: the time between frames that is aimed at, drawn as a line across the
            sparkline.
        corner: where it stands.
    """

    lines: tuple[tuple[Span, ...], ...]
    sparkline: tuple[float, ...] = ()
    budget_ms: float = 1000 / 60
    corner: Corner = "top-left"


@dataclass(frozen=True, slots=True)
class HudFigures:
    """What there is to say; times in ms, NaN or 0 where nothing is known yet.

    Attributes:
        output_fps, source_fps: frames presented and new frames captured per second.
        frame_ms_p50, frame_ms_p99: times between presented frames.
        latency_ms_p50, latency_ms_p99: from capture to present.
        stage_ms: (name, duration) of each stage, in frame order.
        presented, duplicate, superseded, failed: counts of frames.
        source, result, output: sizes of the game, of the upscaler's result, and on screen.
        model, backend, device: what upscales, and what it runs on.
        budget_ms: the shortest time between frames that makes sense (the display's).
        frame_times_ms: the latest times between frames, oldest first.
        paused: the game gives no frames at all for now.
        notice: a line about what just happened; empty for none.
    """

    output_fps: float
    source_fps: float
    frame_ms_p50: float
    frame_ms_p99: float
    latency_ms_p50: float
    latency_ms_p99: float
    source: Size
    result: Size
    output: Size
    model: str
    backend: str
    device: str = ""
    stage_ms: tuple[tuple[str, float], ...] = ()
    presented: int = 0
    duplicate: int = 0
    superseded: int = 0
    failed: int = 0
    budget_ms: float = 1000 / 60
    frame_times_ms: tuple[float, ...] = ()
    paused: bool = False
    notice: str = ""

    @property
    def target_fps(self) -> float:
        """The rate that can be had: the source's, at most the display's."""
        most = 1000 / self.budget_ms
        return min(self.source_fps, most) if self.source_fps > 0 else most


# The thresholds of the three colour functions are those of OBS Studio's statistics window
# (obsproject.com/forum/threads/100352), which players know.


def rate_colour(fps: float, target_fps: float) -> Colour:
    """Green from 95 % of the target, amber from 80 %, red below; white if unknown."""
    if not (isfinite(fps) and fps > 0 and target_fps > 0):
        return "white"
    share = fps / target_fps
    return "green" if share >= 0.95 else "amber" if share >= 0.80 else "red"


def time_colour(ms: float, budget_ms: float) -> Colour:
    """Green up to 75 % of the frame budget, amber from there, red from 100 %: time *spent*.

    A time *between* frames is judged as a rate: `rate_colour(1000 / ms, target)`.
    """
    if not (isfinite(ms) and ms > 0):
        return "white"
    return "red" if ms >= budget_ms else "amber" if ms >= 0.75 * budget_ms else "green"


def loss_colour(lost: int, total: int) -> Colour:
    """Grey for none, green below 1 % of all frames, amber from 1 %, red from 5 %."""
    if lost <= 0 or total <= 0:
        return "grey"
    share = lost / total
    return "red" if share >= 0.05 else "amber" if share >= 0.01 else "green"


def interval_colour(ms: float, target_ms: float) -> Colour:
    """Judge a time between frames as the rate that it makes."""
    return rate_colour(1000 / ms, 1000 / target_ms) if ms > 0 else "white"


def hud_view(figures: HudFigures, level: Level, corner: Corner) -> HudView | None:
    """Put figures into words.

    Returns:
        None at level "off"; at "compact" rates and latency on two lines; at "full" everything.
    """
    if level == "off":
        return None
    lines = _compact(figures) if level == "compact" else _full(figures)
    if figures.paused:
        lines.append((Span("paused: no new frames from the game", "amber"),))
    if figures.notice:
        lines.append((Span(_short(figures.notice, 60), "amber"),))
    sparkline = figures.frame_times_ms if level == "full" else ()
    return HudView(tuple(lines), sparkline, 1000 / figures.target_fps, corner)


_Line = tuple[Span, ...]
_LABEL = 9  # characters


def _number(value: float, width: int) -> str:
    text = f"{value:.1f}" if isfinite(value) and value < 10_000 else "-"
    return text.rjust(width)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _label(text: str) -> Span:
    return Span(text.ljust(_LABEL), "grey")


def _compact(figures: HudFigures) -> list[_Line]:
    target, budget = figures.target_fps, figures.budget_ms
    return [
        (
            Span(_number(figures.output_fps, 5), rate_colour(figures.output_fps, target)),
            Span(" fps   source ", "grey"),
            Span(_number(figures.source_fps, 5)),
        ),
        (
            Span(_number(figures.latency_ms_p50, 5), time_colour(figures.latency_ms_p50, budget)),
            Span(" ms    p99    ", "grey"),
            Span(_number(figures.latency_ms_p99, 5), time_colour(figures.latency_ms_p99, budget)),
        ),
    ]


def _full(figures: HudFigures) -> list[_Line]:
    target, budget = figures.target_fps, figures.budget_ms
    target_ms = 1000 / target
    frame_p50, frame_p99 = figures.frame_ms_p50, figures.frame_ms_p99
    delay_p50, delay_p99 = figures.latency_ms_p50, figures.latency_ms_p99
    lines: list[_Line] = [
        (
            _label("output"),
            Span(_number(figures.output_fps, 6), rate_colour(figures.output_fps, target)),
            Span(" fps  source ", "grey"),
            Span(_number(figures.source_fps, 6)),
        ),
        (
            _label("frame"),
            Span(_number(frame_p50, 6), interval_colour(frame_p50, target_ms)),
            Span(" ms   p99    ", "grey"),
            Span(_number(frame_p99, 6), interval_colour(frame_p99, target_ms)),
        ),
        (
            _label("latency"),
            Span(_number(delay_p50, 6), time_colour(delay_p50, budget)),
            Span(" ms   p99    ", "grey"),
            Span(_number(delay_p99, 6), time_colour(delay_p99, budget)),
        ),
    ]
    lines += _stages(figures)
    total = figures.presented + figures.superseded + figures.failed
    lines += [
        (
            _label("frames"),
            Span(f"{figures.presented:6d}"),
            Span(" shown  ", "grey"),
            Span(f"{figures.duplicate}"),
            Span(" same  ", "grey"),
            Span(f"{figures.superseded}", loss_colour(figures.superseded, total)),
            Span(" skipped  ", "grey"),
            Span(f"{figures.failed}", loss_colour(figures.failed, total)),
            Span(" failed", "grey"),
        ),
        (_label("size"), Span(_sizes(figures))),
        (_label("model"), Span(figures.model), Span(f" · {figures.backend}", "grey")),
    ]
    if figures.device:
        lines.append((_label("device"), Span(_short(figures.device, 44))))
    return lines


def _stages(figures: HudFigures) -> list[_Line]:
    """Four stages to a line."""
    lines: list[_Line] = []
    for start in range(0, len(figures.stage_ms), 4):
        spans = [_label("stages" if start == 0 else "")]
        for name, ms in figures.stage_ms[start : start + 4]:
            spans.append(Span(f"{_short(name, 7):<8}", "grey"))
            spans.append(Span(f"{_number(ms, 0):<6}", time_colour(ms, figures.budget_ms)))
        lines.append(tuple(spans))
    return lines


def _sizes(figures: HudFigures) -> str:
    """The sizes a frame goes through, equal neighbours once."""
    sizes = [figures.source, figures.result, figures.output]
    steps = [a for a, b in zip(sizes, [*sizes[1:], None], strict=True) if a != b]
    return " → ".join(map(str, steps))
