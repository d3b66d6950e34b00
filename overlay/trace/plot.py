"""Draw a trace: frame times, capture to present, the stages' share, outcomes, percentiles.

`plot_html` needs nothing and makes one file without scripts or links; `plot_png` needs
matplotlib (extra `plot`). Long traces are thinned to the minimum and maximum per pixel column,
so that no spike is lost.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from overlay.errors import BackendUnavailable
from overlay.trace import Outcome, Stage
from overlay.trace.atomic import write_atomically
from overlay.trace.summary import Percentiles, Summary, summarise
from overlay.trace.table import MISSING, STAGES, TraceTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = NDArray[np.float64]

# Okabe and Ito's palette, told apart with any colour vision.
_STAGE_COLOURS = dict(
    zip(
        STAGES,
        ("#56b4e9", "#bbbbbb", "#d55e00", "#888888", "#f0e442", "#009e73", "#0072b2"),
        strict=True,
    )
)
_OUTCOME_COLOURS = {
    Outcome.PRESENTED: "#009e73",
    Outcome.DUPLICATE: "#bbbbbb",
    Outcome.SUPERSEDED: "#e69f00",
    Outcome.FAILED: "#d55e00",
}
_LINE = "#0072b2"
_BUDGETS_MS = {"60 fps": 1000 / 60, "30 fps": 1000 / 30}
_BINS = 160


@dataclass(frozen=True, slots=True)
class _Curve:
    """A value per frame over time; `top` is where the axis ends, `above` what it cuts off."""

    title: str
    times_s: Values
    values: Values
    top: float
    above: int
    p99: float | None

    @property
    def heading(self) -> str:
        cut = f", {self.above} frames above {self.top:.0f} ms" if self.above else ""
        return f"{self.title}{cut}"


@dataclass(frozen=True, slots=True)
class _Drawing:
    """Everything a plot shows, the same for HTML and PNG."""

    title: str
    subtitle: str
    summary: Summary
    curves: tuple[_Curve, _Curve]
    edges_s: Values  # (bins + 1,)
    stages_ms: dict[str, Values]  # mean per bin, (bins,)
    outcomes: dict[Outcome, Values]  # frames per second, (bins,)


def plot_html(table: TraceTable, path: Path, title: str = "Overlay trace") -> None:
    """Write the plot as one self-contained HTML page.

    Everything from the trace is escaped, and the page forbids scripts and loading anything.

    Raises:
        TraceError: the file cannot be written.
    """
    write_atomically(path, "".join(_page(_drawing(table, title))).encode())


def plot_png(table: TraceTable, path: Path, title: str = "Overlay trace") -> None:
    """Write the plot as a PNG of 1500x1650 pixels.

    Raises:
        BackendUnavailable: matplotlib is not installed.
        TraceError: the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise BackendUnavailable(
            'drawing a PNG needs matplotlib: pip install ".[plot]", '
            "or draw the HTML page, which needs nothing"
        ) from exc
    drawing = _drawing(table, title)
    figure = Figure(figsize=(15, 16.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)  # takes the figure's drawing over, without pyplot's global state
    panels = figure.subplots(5, 1, height_ratios=(4, 4, 4, 3, 3.4))
    figure.suptitle(_literal(f"{drawing.title}\n{drawing.subtitle}"), fontsize=13)
    for axes, curve in zip(panels, drawing.curves, strict=False):
        _draw_curve(axes, curve)
    for axes in panels[:4]:
        axes.set_xlim(drawing.edges_s[0], drawing.edges_s[-1])
        axes.spines[["top", "right"]].set_visible(False)
    _draw_stages(panels[2], drawing)
    _draw_outcomes(panels[3], drawing)
    panels[3].set_xlabel("seconds since the trace began")
    _draw_table(panels[4], drawing.summary)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    write_atomically(path, data.getvalue())


# -- what is drawn ------------------------------------------------------------------------------


def _drawing(table: TraceTable, title: str) -> _Drawing:
    summary = summarise(table)
    rows = table.presented()
    presented_s = table.stamps[Stage.PRESENTED][rows] / 1e9
    latency = table.between_ms(Stage.READY, Stage.PRESENTED)[rows]
    known = ~np.isnan(latency)
    captured = table.stamps[Stage.CAPTURED]
    captured_s = np.where(captured == MISSING, np.nan, captured / 1e9)
    edges = _edges(np.concatenate([presented_s, captured_s[~np.isnan(captured_s)]]))
    return _Drawing(
        title=title,
        subtitle=_subtitle(table, summary),
        summary=summary,
        curves=(
            _curve("Frame time, ms", presented_s[1:], table.frame_times_ms()),
            _curve("Capture to present, ms", presented_s[known], latency[known]),
        ),
        edges_s=edges,
        stages_ms={
            name: _bin_mean(edges, presented_s, table.stage_ms(name)[rows]) for name in STAGES
        },
        outcomes={
            outcome: np.histogram(captured_s[table.outcome == outcome], edges)[0]
            / float(edges[1] - edges[0])
            for outcome in _OUTCOME_COLOURS
        },
    )


def _subtitle(table: TraceTable, summary: Summary) -> str:
    c = summary.counts
    text = (
        f"{summary.fps:.1f} fps, {c.captured} captured, {c.presented} presented, "
        f"{c.duplicate} duplicate, {c.superseded} superseded, {c.failed} failed"
    )
    used = ", ".join(summary.upscalers)
    text += f"; {used[:120]}" if used else ""
    return text + (f"; incomplete: {table.damage}" if table.damage else "")


def _edges(times_s: Values) -> Values:
    first, last = (float(times_s.min()), float(times_s.max())) if len(times_s) else (0.0, 1.0)
    if not last > first:
        last = first + 1.0
    return np.linspace(first, last, max(2, min(_BINS, len(times_s) // 4) + 1))


def _curve(title: str, times_s: Values, values: Values) -> _Curve:
    if len(values) == 0:
        return _Curve(title, times_s, values, 1.0, 0, None)
    p95, p99 = np.percentile(values, (95, 99)).tolist()
    # One long pause must not flatten the rest: the axis ends at four times p95.
    top = max(min(float(values.max()) * 1.05, 4 * p95), 1e-3)
    above = int(np.count_nonzero(values > top))
    times_s, values = _thin(times_s, np.minimum(values, top))
    return _Curve(title, times_s, values, top, above, p99)


def _thin(times: Values, values: Values, columns: int = 1200) -> tuple[Values, Values]:
    """Keep the smallest and the largest value of each of `columns` equal runs."""
    if len(values) <= 2 * columns:
        return times, values
    keep: set[int] = set()
    for run in np.array_split(np.arange(len(values)), columns):
        keep.update((int(run[values[run].argmin()]), int(run[values[run].argmax()])))
    index = np.array(sorted(keep))
    return times[index], values[index]


def _bin_mean(edges: Values, times: Values, values: Values) -> Values:
    known = ~np.isnan(values)
    total, _ = np.histogram(times[known], edges, weights=values[known])
    count, _ = np.histogram(times[known], edges)
    mean: Values = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    return mean


def _table_rows(summary: Summary) -> Iterator[tuple[str, Percentiles]]:
    yield "frame time", summary.frame_time_ms
    yield "capture to present", summary.capture_to_present_ms
    yield from summary.stages_ms.items()
    for name, value in summary.gpu_ms.items():
        if value.p50 is not None:
            yield f"{name} on device", value


def _cells(value: Percentiles) -> list[str]:
    return ["-" if v is None else f"{v:.3f}" for v in (value.p50, value.p95, value.p99)]


# -- HTML ---------------------------------------------------------------------------------------

_STYLE = """
:root{color-scheme:light dark;--ink:#222;--soft:#777;--grid:#ddd;--paper:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--soft:#999;--grid:#444;--paper:#1b1b1b}}
body{font:14px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);
max-width:1080px;margin:24px auto;padding:0 16px}
h1{font-size:20px;margin:0}h2{font-size:14px;margin:22px 0 2px}p{margin:2px 0;color:var(--soft)}
svg{width:100%;height:auto;display:block}svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
.grid{stroke:var(--grid)}.budget{stroke:var(--soft);stroke-dasharray:2 3}
.p99{stroke:#d55e00;stroke-dasharray:6 4}.key{display:inline-block;width:10px;height:10px;
margin:0 4px 0 12px}table{border-collapse:collapse;margin-top:8px}
td,th{padding:2px 14px 2px 0;text-align:right;font-variant-numeric:tabular-nums}
td:first-child,th:first-child{text-align:left}th{border-bottom:1px solid var(--grid)}
.damage{color:#d55e00}
"""
_W, _H, _LEFT, _RIGHT, _TOP, _BOTTOM = 1040, 200, 46, 1000, 8, 22


def _page(drawing: _Drawing) -> Iterator[str]:
    yield (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(drawing.title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(drawing.title)}</h1><p>{escape(drawing.subtitle)}</p>\n"
    )
    for curve in drawing.curves:
        yield f"<h2>{escape(curve.heading)}</h2>"
        yield from _svg(drawing.edges_s, curve.top, _curve_marks(drawing.edges_s, curve))
    tops = np.sum(list(drawing.stages_ms.values()), axis=0)
    yield "<h2>Where a presented frame's time went, mean ms" + _key(_STAGE_COLOURS) + "</h2>"
    stages = {_STAGE_COLOURS[name]: values for name, values in drawing.stages_ms.items()}
    yield from _svg(drawing.edges_s, float(tops.max()), _stack(drawing.edges_s, stages))
    names = {outcome.name.lower(): colour for outcome, colour in _OUTCOME_COLOURS.items()}
    yield "<h2>Captured frames per second, by outcome" + _key(names) + "</h2>"
    tops = np.sum(list(drawing.outcomes.values()), axis=0)
    outcomes = {_OUTCOME_COLOURS[key]: values for key, values in drawing.outcomes.items()}
    yield from _svg(drawing.edges_s, float(tops.max()), _stack(drawing.edges_s, outcomes))
    yield "<p>seconds since the trace began</p><h2>Percentiles, ms</h2>"
    yield "<table><tr><th></th><th>p50</th><th>p95</th><th>p99</th></tr>"
    for name, value in _table_rows(drawing.summary):
        cells = "".join(f"<td>{cell}</td>" for cell in _cells(value))
        yield f"<tr><td>{escape(name)}</td>{cells}</tr>"
    yield "</table></body></html>\n"


def _key(colours: dict[str, str]) -> str:
    return "".join(
        f'<span class="key" style="background:{colour}"></span>{escape(name)}'
        for name, colour in colours.items()
    )


def _svg(edges: Values, top: float, marks: Iterator[str]) -> Iterator[str]:
    yield f'<svg viewBox="0 0 {_W} {_H}">'
    top = top if top > 0 else 1.0
    for value in _ticks(0, top):
        y = _H - _BOTTOM - value / top * (_H - _TOP - _BOTTOM)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    for value in _ticks(float(edges[0]), float(edges[-1]), 10):
        x = float(_x(np.array([value]), edges)[0])
        yield f'<text x="{x:.1f}" y="{_H - 6}" text-anchor="middle">{value:g}</text>'
    yield from marks
    yield "</svg>\n"


def _curve_marks(edges: Values, curve: _Curve) -> Iterator[str]:
    lines = [("budget", name, ms) for name, ms in _BUDGETS_MS.items()]
    if curve.p99 is not None:
        lines.append(("p99", "p99", curve.p99))
    points = " ".join(
        f"{x:.1f},{y:.1f}"
        for x, y in zip(_x(curve.times_s, edges), _y(curve.values, curve.top), strict=True)
    )
    yield f'<polyline fill="none" stroke="{_LINE}" stroke-width="0.8" points="{points}"/>'
    for style, name, ms in lines:
        if ms <= curve.top:
            y = float(_y(np.array([ms]), curve.top)[0])
            yield f'<line class="{style}" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            above = -3 if style == "p99" else 9
            yield f'<text x="{_RIGHT + 3}" y="{y + above:.1f}">{name}</text>'


def _stack(edges: Values, layers: dict[str, Values]) -> Iterator[str]:
    """Draw layers on top of one another as steps, a colour each."""
    base = np.zeros(len(edges) - 1)
    top = float(np.sum(list(layers.values()), axis=0).max()) or 1.0
    x = np.repeat(_x(edges, edges), 2)[1:-1]
    for colour, values in layers.items():
        upper, lower = np.repeat(_y(base + values, top), 2), np.repeat(_y(base, top), 2)
        there = zip(x, upper, strict=True)
        back = zip(x[::-1], lower[::-1], strict=True)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in (*there, *back))
        yield f'<polygon fill="{colour}" points="{points}"/>'
        base = base + values


def _x(times: Values, edges: Values) -> Values:
    x: Values = _LEFT + (times - edges[0]) / (edges[-1] - edges[0]) * (_RIGHT - _LEFT)
    return x


def _y(values: Values, top: float) -> Values:
    return _H - _BOTTOM - values / top * (_H - _TOP - _BOTTOM)


def _ticks(first: float, last: float, wanted: int = 4) -> list[float]:
    """Choose round numbers from `first` to `last`."""
    raw = max((last - first) / wanted, 1e-9)
    power = 10.0 ** np.floor(np.log10(raw))
    step = float(next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999))
    begin = int(np.ceil(first / step))
    return [round(i * step, 9) for i in range(begin, begin + 2 * wanted + 2) if i * step <= last]


# -- PNG ----------------------------------------------------------------------------------------


def _literal(text: str) -> str:
    """Keep matplotlib from reading formulas, and to characters that its font has."""
    return text.encode("ascii", "replace").decode().replace("$", r"\$")


def _draw_curve(axes: Axes, curve: _Curve) -> None:
    axes.set_title(curve.heading, loc="left", fontsize=11)
    axes.plot(curve.times_s, curve.values, color=_LINE, linewidth=0.8)
    axes.set_ylim(0, curve.top)
    axes.grid(axis="y", color="#dddddd")
    for name, ms in _BUDGETS_MS.items():
        if ms <= curve.top:
            axes.axhline(ms, color="#777777", linewidth=0.8, linestyle=":")
            _label_line(axes, ms, name, "top")
    if curve.p99 is not None and curve.p99 <= curve.top:
        axes.axhline(curve.p99, color="#d55e00", linewidth=1, linestyle="--")
        _label_line(axes, curve.p99, "p99", "bottom")


def _label_line(axes: Axes, ms: float, name: str, side: Literal["top", "bottom"]) -> None:
    """Name a line at its right end, below or above it so that two names do not collide."""
    place = axes.get_yaxis_transform()
    axes.text(1.003, ms, name, transform=place, fontsize=8, verticalalignment=side)


def _draw_stages(axes: Axes, drawing: _Drawing) -> None:
    axes.set_title("Where a presented frame's time went, mean ms", loc="left", fontsize=11)
    _draw_layers(axes, drawing.edges_s, drawing.stages_ms, _STAGE_COLOURS)


def _draw_outcomes(axes: Axes, drawing: _Drawing) -> None:
    axes.set_title("Captured frames per second, by outcome", loc="left", fontsize=11)
    layers = {key.name.lower(): values for key, values in drawing.outcomes.items()}
    colours = {key.name.lower(): colour for key, colour in _OUTCOME_COLOURS.items()}
    _draw_layers(axes, drawing.edges_s, layers, colours)


def _draw_layers(
    axes: Axes, edges: Values, layers: dict[str, Values], colours: dict[str, str]
) -> None:
    base = np.zeros(len(edges) - 1)
    for name, values in layers.items():
        axes.stairs(base + values, edges, baseline=base, fill=True, color=colours[name], label=name)
        base = base + values
    axes.set_ylim(0, float(base.max()) * 1.05 or 1.0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)


def _draw_table(axes: Axes, summary: Summary) -> None:
    from matplotlib.transforms import Bbox

    axes.set_axis_off()
    axes.set_title("Percentiles, ms", loc="left", fontsize=11)
    rows = list(_table_rows(summary))
    table = axes.table(
        cellText=[_cells(value) for _, value in rows],
        rowLabels=[name for name, _ in rows],
        colLabels=["p50", "p95", "p99"],
        bbox=Bbox.from_bounds(0.14, 0.0, 0.4, 0.98),
        edges="horizontal",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(10)
