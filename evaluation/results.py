"""What an evaluation found, as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evaluation.metrics import FLICKER, METRICS, Metric
from evaluation.metrics.errors import EvaluationError
from evaluation.statistics import Estimate, difference, mean_of

#: Differences less likely than this by chance are said to be differences.
SIGNIFICANT = 0.05
#: The row others are marked against.
REFERENCE = "bicubic"
#: Larger result files are refused.
_MAX_BYTES = 512 << 20

Status = Literal["ok", "failed", "skipped"]


def metric(name: str) -> Metric:
    """Give a metric of a result; flicker is one of them."""
    return FLICKER if name == FLICKER.name else METRICS[name]


@dataclass(slots=True)
class Frames:
    """What was measured of one model.

    Attributes:
        model, kind, about: as of `evaluation.upscale.Upscaler`.
        status: "failed" and "skipped" have a `reason`, and no figures count.
        values: by frame's name, then by metric; no flicker for frames without a predecessor.
    """

    model: str
    kind: str = ""
    about: str = ""
    status: Status = "ok"
    reason: str = ""
    values: dict[str, dict[str, float]] = field(default_factory=dict)

    def column(self, name: str, frames: Iterable[str]) -> dict[str, float]:
        """Values of one metric by frame, for those of the frames that have one."""
        have = ((frame, self.values.get(frame, {}).get(name)) for frame in frames)
        return {frame: value for frame, value in have if value is not None}


@dataclass(frozen=True, slots=True)
class Result:
    """All that a run found out.

    Attributes:
        facts: machine, command, data, crop, definitions; JSON as it stands.
        scale: HR / LR.
        metrics: names, in the order of the columns.
        rows: one a model, in the order of the table.
        clusters: of every frame that was evaluated, its sequence.
        problems: what was left out and why, for people.
        against: models that all others are compared with.
        seed: of the bootstrap.
    """

    facts: Mapping[str, Any]
    scale: int
    metrics: Sequence[str]
    rows: Sequence[Frames]
    clusters: Mapping[str, str]
    problems: Sequence[str]
    against: Sequence[str]
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Give the documented object; docs/metrics.md."""
        return {
            **self.facts,
            "scale": self.scale,
            "frames": len(self.clusters),
            "sequences": len(set(self.clusters.values())),
            "problems": list(self.problems),
            "results": [self._summary(row) for row in self.rows],
            "paired": list(self._paired()),
            "per_image": list(self._per_image()),
        }

    def _summary(self, row: Frames) -> dict[str, Any]:
        found: dict[str, Any] = {
            "model": row.model,
            "kind": row.kind,
            "about": row.about,
            "scale": self.scale,
            "status": row.status,
            "reason": row.reason,
            "n": len(row.values) if row.status == "ok" else 0,
        }
        if row.status != "ok":
            return found
        intervals = {}
        for name in self.metrics:
            values = row.column(name, self.clusters)
            if not values:
                continue
            clusters = [self.clusters[frame] for frame in values]
            estimate = mean_of(list(values.values()), clusters, self.seed)
            found[name] = _rounded(estimate.mean)
            intervals[name] = _interval(estimate)
        return {**found, "ci95": intervals}

    def _paired(self) -> Iterator[dict[str, Any]]:
        """Compare every row with those of `against`, metric by metric."""
        good = {row.model: row for row in self.rows if row.status == "ok"}
        for row in good.values():
            if row.kind == "baseline" and row.model not in self.against:
                continue
            for other in (good[name] for name in self.against if name in good):
                for name in self.metrics if other is not row else ():
                    one, two = (r.column(name, self.clusters) for r in (row, other))
                    frames = [frame for frame in one if frame in two]
                    if frames:
                        yield self._comparison(row, other, name, frames)

    def _comparison(
        self, row: Frames, other: Frames, name: str, frames: Sequence[str]
    ) -> dict[str, Any]:
        one, two = ([r.values[frame][name] for frame in frames] for r in (row, other))
        found = difference(one, two, [self.clusters[frame] for frame in frames], self.seed)
        gain = found.mean if metric(name).higher_is_better else -found.mean
        sure = found.p is not None and found.p < SIGNIFICANT
        return {
            "model": row.model,
            "against": other.model,
            "metric": name,
            "difference": _rounded(found.mean),
            "ci95": _interval(found),
            "p": None if found.p is None else round(found.p, 5),
            "n": found.n,
            "sequences": found.clusters,
            "verdict": ("better" if gain > 0 else "worse") if sure else "undecided",
        }

    def _per_image(self) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            for frame, values in row.values.items() if row.status == "ok" else ():
                cells = {name: _rounded(value) for name, value in values.items()}
                yield {
                    "model": row.model, "name": frame, "sequence": self.clusters[frame], **cells
                }  # fmt: skip


def _rounded(value: float) -> float:
    return round(value, 6)


def _interval(estimate: Estimate) -> list[float] | None:
    return None if estimate.ci95 is None else [_rounded(bound) for bound in estimate.ci95]


# --- tables --------------------------------------------------------------------------------------


def csv_table(result: Mapping[str, Any]) -> str:
    """Write one line a frame and model, metrics as columns; empty where there is no value."""
    columns = ["model", "name", "sequence", *result["metrics"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(result["per_image"])
    return text.getvalue()


def markdown_table(result: Mapping[str, Any]) -> str:
    """Write the means with half the width of their intervals, as Markdown.

    A figure worse than that of `REFERENCE`, not by chance alone, is marked with a "▼".
    """
    names = list(result["metrics"])
    worse = {
        (pair["model"], pair["metric"])
        for pair in result["paired"]
        if pair["against"] == REFERENCE and pair["verdict"] == "worse"
    }
    head = [f"{name} {'↑' if metric(name).higher_is_better else '↓'}" for name in names]
    lines = [_line(["model", "n", *head]), "|---|" + "---:|" * (len(names) + 1)]
    for row in result["results"]:
        if row["status"] != "ok":
            lines.append(_line([f"`{row['model']}`", f"{row['status']}: {row['reason']}"]))
            continue
        cells = [_cell(row, name, (row["model"], name) in worse) for name in names]
        lines.append(_line([f"`{row['model']}`", str(row["n"]), *cells]))
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _cell(row: Mapping[str, Any], name: str, worse: bool) -> str:
    if name not in row:
        return ""
    interval = row["ci95"].get(name)
    half = "" if interval is None else f" ±{text(name, (interval[1] - interval[0]) / 2)}"
    return f"{text(name, row[name])}{half}{' ▼' if worse else ''}"


def text(name: str, value: float) -> str:
    """Write a value with the digits that its metric deserves."""
    return f"{value:.{2 if metric(name).unit or name == 'brisque' else 4}f}"


# --- reading -------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    """Read a result's JSON.

    Raises:
        EvaluationError: it cannot be read, or is no result of `evaluation.evaluate`.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise EvaluationError(f"{path} is larger than {_MAX_BYTES >> 20} MiB: no result")
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise EvaluationError(f"cannot read the result {path}: {exc}") from exc
    problem = _wrong(found)
    if problem:
        raise EvaluationError(f"{path} is no result of evaluation.evaluate --json: {problem}")
    return dict(found)


#: What a result needs beside its rows, and of which type.
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "metrics": list, "definitions": dict, "machine": dict, "problems": list, "scale": int,
    "crop": int, "seed": int, "frames": int, "sequences": int, "lr_size": str, "hr_size": str,
    "lr": str, "hr": str, "command": str,
}  # fmt: skip


def _wrong(found: Any) -> str:
    """Say what is wrong with a result; "" if nothing is."""
    if not isinstance(found, dict):
        return "it is no object"
    for key, kind in _TYPES.items():
        if not isinstance(found.get(key), kind):
            return f"{key} is {_short(found.get(key))}"
    for name in found["metrics"]:
        if not isinstance(name, str) or (name != FLICKER.name and name not in METRICS):
            return f"the unknown metric {_short(name)}"
    for key, check in (("results", _row), ("paired", _pair), ("per_image", _image)):
        rows = found.get(key)
        if not isinstance(rows, list):
            return f"{key} is {_short(rows)}"
        bad = next((row for row in rows if not check(row, found["metrics"])), None)
        if bad is not None:
            return f"{key} holds {_short(bad)}"
    return ""


def _short(value: object) -> str:
    return repr(value)[:80]


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _span(value: object) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) == 2 and all(map(_number, value))
    )


def _row(row: Any, names: Sequence[str]) -> bool:
    if not (isinstance(row, dict) and isinstance(row.get("model"), str)):
        return False
    if row.get("status") != "ok":
        return row.get("status") in ("failed", "skipped") and isinstance(row.get("reason"), str)
    intervals = row.get("ci95")
    return (
        row.get("kind") in ("baseline", "shader", "net")
        and _number(row.get("n"))
        and all(_number(row[name]) for name in names if name in row)
        and isinstance(intervals, dict)
        and all(map(_span, intervals.values()))
    )


def _pair(pair: Any, names: Sequence[str]) -> bool:
    return (
        isinstance(pair, dict)
        and all(isinstance(pair.get(key), str) for key in ("model", "against", "verdict"))
        and pair.get("metric") in names
        and _number(pair.get("difference"))
        and "p" in pair
        and (pair["p"] is None or _number(pair["p"]))
        and _span(pair.get("ci95"))
    )


def _image(image: Any, names: Sequence[str]) -> bool:
    return (
        isinstance(image, dict)
        and all(isinstance(image.get(key), str) for key in ("model", "name"))
        and all(_number(image[name]) for name in names if name in image)
    )
