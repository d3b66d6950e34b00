"""Quality against latency: which upscalers are beaten by none in both, as PNG and as HTML.

Quality is drawn as what lies between an upscaler and bicubic on the same frames: frames differ far
more from each other than upscalers do, so that intervals of plain means would tell nothing.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import product
from math import ceil, floor, log10
from typing import Any

from evaluation.metrics.errors import EvaluationError
from evaluation.results import REFERENCE, metric, text

# Okabe and Ito's palette, told apart with any colour vision.
COLOURS = {"net": "#0072b2", "shader": "#d55e00", "baseline": "#666666"}
MARKS = {"net": "o", "shader": "D", "baseline": "s"}
INSTALL_PLOT = 'pip install "sr-overlay[plot]"'


#: Latencies nearer to each other than this count as equal.
_SAME = 1.02


@dataclass(frozen=True, slots=True)
class Point:
    """One upscaler.

    Attributes:
        model, kind: as in a result.
        ms: latency, p50; where it was measured: "openvino, CPU, 2 threads".
        quality: the metric's mean.
        gain: mean difference from bicubic, in the metric's own sign; its 95 % interval, None if
            there is none.
        best: no other one is at least as good in both and better in one.
    """

    model: str
    kind: str
    ms: float
    where: str
    quality: float
    gain: float
    interval: tuple[float, float] | None
    best: bool = False


def points(
    result: Mapping[str, Any], name: str, latency: Sequence[Mapping[str, Any]]
) -> list[Point]:
    """Join quality and latency of the same model, scale and input size, sorted by latency.

    Args:
        result: of `evaluation.results.read`.
        name: of the metric.
        latency: rows of `overlay bench --json` ("rows"); the fastest back end of a model counts.
    """
    fastest: dict[str, Mapping[str, Any]] = {}
    for row in latency:
        if row["scale"] != result["scale"] or row["input_size"] != result["lr_size"]:
            continue
        for model in _names(row):
            if model not in fastest or _ms(row) < _ms(fastest[model]):
                fastest[model] = row
    good = [row for row in result["results"] if row["status"] == "ok" and name in row]
    reference = next((row[name] for row in good if row["model"] == REFERENCE), 0.0)
    paired = {
        pair["model"]: pair
        for pair in result["paired"]
        if pair["against"] == REFERENCE and pair["metric"] == name
    }
    found = []
    for row in good:
        if row["model"] in fastest:
            timed = fastest[row["model"]]
            pair = paired.get(row["model"], {})
            interval = pair.get("ci95")
            found.append(
                Point(
                    row["model"], row["kind"], _ms(timed), f"{timed['backend']}, {timed['device']}",
                    row[name], pair.get("difference", row[name] - reference),
                    (interval[0], interval[1]) if interval else None,
                )
            )  # fmt: skip
    return _marked(sorted(found, key=lambda point: point.ms), metric(name).higher_is_better)


def _names(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Say by which names evaluation knows what a benchmark timed.

    The shader "bicubic" is Catmull-Rom; the one called "lanczos" has another order than cv2's.
    """
    model = str(row["model"])
    if row["kind"] != "shader":
        return (model,)
    same = {"bicubic": ("catmull-rom",), "lanczos": (), "nearest": ("nearest",)}
    return (f"shader:{model}", *same.get(model, (model,)))


def _ms(row: Mapping[str, Any]) -> float:
    return float(row["whole"]["ms"]["p50"])


def _marked(found: Sequence[Point], higher: bool) -> list[Point]:
    sign = 1 if higher else -1

    def beats(other: Point, one: Point) -> bool:
        faster, gain = one.ms / other.ms, sign * (other.gain - one.gain)
        return faster >= 1 / _SAME and gain >= 0 and (faster > _SAME or gain > 0)

    return [replace(one, best=not any(beats(other, one) for other in found)) for one in found]


def png(found: Sequence[Point], name: str, title: str) -> bytes:
    """Draw with matplotlib: latency on a logarithmic axis, better is up.

    Raises:
        EvaluationError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as exc:
        raise EvaluationError(f"the PNG needs matplotlib: {INSTALL_PLOT}") from exc
    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    front = [point for point in found if point.best]
    axes.plot(
        [p.ms for p in front], [p.gain for p in front],
        color="#009e73", linewidth=1.2, linestyle="--", zorder=1, label="beaten by none",
    )  # fmt: skip
    for kind in dict.fromkeys(point.kind for point in found):
        some = [point for point in found if point.kind == kind]
        bars = [
            [abs(p.gain - (p.interval or (p.gain, p.gain))[end]) for p in some] for end in (0, 1)
        ]
        axes.errorbar(
            [p.ms for p in some], [p.gain for p in some], yerr=bars, fmt=MARKS[kind],
            color=COLOURS[kind], ecolor="#cccccc", elinewidth=1, markersize=7, label=kind, zorder=2,
        )  # fmt: skip
    if not metric(name).higher_is_better:
        axes.invert_yaxis()
    axes.margins(x=0.18, y=0.12)
    _label(axes, found)
    if found and found[0].ms < 1000 / 30 < found[-1].ms:
        axes.axvline(1000 / 30, color="#999999", linewidth=0.8, linestyle=":")
        axes.text(
            1000 / 30, 0.01, " 30 fps", transform=axes.get_xaxis_transform(), color="#777777",
            fontsize=8,
        )  # fmt: skip
    axes.set_xlabel("a whole frame, p50, ms")
    axes.set_ylabel(_axis(name))
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25, which="major")
    axes.set_xticks(_ticks(*axes.get_xlim()), minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False, fontsize=9)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def _label(axes: Any, found: Sequence[Point]) -> None:
    """Write names beside the points, in turn above and below where two are near each other."""
    figure = axes.figure
    figure.draw_without_rendering()
    taken: list[Any] = []
    for point in found:
        for right, up in product((7, -7), (6, -14, 18, -26)):
            note = axes.annotate(
                point.model, (point.ms, point.gain), xytext=(right, up),
                textcoords="offset points", fontsize=8.5,
                ha="left" if right > 0 else "right",
                fontweight="bold" if point.best else "normal",
            )  # fmt: skip
            box = note.get_window_extent(figure.canvas.get_renderer())
            if not any(box.overlaps(other) for other in taken):
                break
            note.remove()
        else:
            axes.add_artist(note)
        taken.append(box)


def _axis(name: str) -> str:
    found = metric(name)
    way = "higher" if found.higher_is_better else "lower"
    unit = f", {found.unit}" if found.unit else ""
    return f"{name} minus that of {REFERENCE}{unit} ({way} is better)"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis."""
    exponents = range(floor(log10(low)), ceil(log10(high)) + 1)
    ticks = [m * 10.0**e for e in exponents for m in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


# --- HTML ----------------------------------------------------------------------------------------

_WIDTH, _HEIGHT = 860, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 20, 50


def svg(found: Sequence[Point], name: str) -> str:
    """Draw the same as inline SVG; a point's figures show when the pointer is over it."""
    if not found:
        return "<p>No model has both a quality and a latency.</p>"
    x, x_ticks = _log_axis([point.ms for point in found])
    y, y_ticks = _axis_of(found, metric(name).higher_is_better)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">']
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in x_ticks:
        at = f"{x(value):.1f}"
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{at}" y="{bottom + 18}" class="mid">{value:g}</text>')
    for value in y_ticks:
        at = f"{y(value):.1f}"
        parts.append(f'<line class="grid" y1="{at}" y2="{at}" x1="{_LEFT}" x2="{right}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" class="end">{value:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{_HEIGHT - 8}" class="mid">a whole frame, p50, ms</text>'
    )
    parts.append(
        f'<text transform="translate(16 {bottom / 2 + 40:.0f}) rotate(-90)" class="mid">'
        f"{escape(_axis(name))}</text>"
    )
    front = " ".join(f"{x(p.ms):.1f},{y(p.gain):.1f}" for p in found if p.best)
    parts.append(f'<polyline class="front" points="{front}"/>')
    parts += [_dot(point, x(point.ms), y(point.gain), name) for point in found]
    return "\n".join([*parts, "</svg>"])


def _dot(point: Point, x: float, y: float, name: str) -> str:
    interval = ""
    if point.interval is not None:
        interval = " [" + ", ".join(text(name, bound) for bound in point.interval) + "]"
    lines = [
        point.model,
        f"{name} {text(name, point.quality)}, minus {REFERENCE} {text(name, point.gain)}{interval}",
        f"{point.ms:.2f} ms ({point.where})",
        *(["beaten by none"] if point.best else []),
    ]
    said = "\n".join(lines)
    weight = ' font-weight="bold"' if point.best else ""
    left = x > _WIDTH - 180
    shift = -9 if left else 9
    return (
        f'<g class="point"><title>{escape(said)}</title>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{COLOURS[point.kind]}"/>'
        f'<text x="{x + shift:.1f}" y="{y - 7:.1f}"{weight} class="{"end" if left else "start"}">'
        f"{escape(point.model)}</text></g>"
    )


def _log_axis(values: Sequence[float]) -> tuple[Any, list[float]]:
    low, high = log10(min(values)) - 0.15, log10(max(values)) + 0.3
    width = _WIDTH - _LEFT - _RIGHT

    def place(value: float) -> float:
        return _LEFT + width * (log10(value) - low) / (high - low)

    return place, _ticks(10**low, 10**high)


def _axis_of(found: Sequence[Point], higher: bool) -> tuple[Any, list[float]]:
    values = [point.gain for point in found]
    spare = max((max(values) - min(values)) * 0.12, 1e-6)
    low, high = min(values) - spare, max(values) + spare
    height = _HEIGHT - _TOP - _BOTTOM

    def place(value: float) -> float:
        share = (value - low) / (high - low)
        return _TOP + height * ((1 - share) if higher else share)

    step = 10.0 ** floor(log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 7)
    first = ceil(low / step)
    ticks = [round(step * k, 10) for k in range(first, floor(high / step) + 1)]
    return place, ticks
