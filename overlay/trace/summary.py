"""Sum up a trace: averages, percentiles and counts, each defined in docs/trace.md.

Percentiles are those of all single frames (never of averages), with linear interpolation
between the two nearest samples (numpy's default, Hyndman and Fan's type 7).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from overlay.trace import GpuPart, Outcome
from overlay.trace.recorder import Counts, TraceRecorder
from overlay.trace.table import STAGES, TraceTable

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True, slots=True)
class Percentiles:
    """p50, p95 and p99 of some frames, in ms; None where there is no frame."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None

    def to_json(self) -> Json:
        return {"p50": _rounded(self.p50), "p95": _rounded(self.p95), "p99": _rounded(self.p99)}


@dataclass(frozen=True, slots=True)
class Summary:
    """What a trace says.

    Attributes:
        fps: n * 1000 / (sum of the n frame times in ms); 0 with fewer than two frames.
        counts: captured = presented + duplicate + superseded + failed + pending.
        frame_time_ms: of the times between consecutive presented frames.
        capture_to_present_ms: READY to PRESENTED, of presented frames.
        stages_ms: per stage of `table.STAGES`, of all frames that passed it.
        gpu_ms: "upload", "infer", "download" and "draw": device times where measured.
        one_percent_low_quantile_fps: 1000 / (99th percentile of the frame times).
        one_percent_low_mean_fps: 1000 / (mean of the frame times at or above that percentile).
        duration_s: from the first captured to the last presented frame.
        upscalers: "model (back end)" -> presented frames.
        rows: of so many captured frames all figures but `counts` are; fewer than captured only
            for a live run that was longer than the recorder's ring.
        damage: what the trace lacks, in one line; None if it is whole.
    """

    fps: float
    counts: Counts
    frame_time_ms: Percentiles
    capture_to_present_ms: Percentiles
    stages_ms: dict[str, Percentiles]
    gpu_ms: dict[str, Percentiles]
    one_percent_low_quantile_fps: float | None
    one_percent_low_mean_fps: float | None
    duration_s: float
    upscalers: dict[str, int]
    rows: int
    damage: str | None = None

    def to_json(self) -> dict[str, Json]:
        """Give the documented fields of `--json`."""
        return {
            "fps": round(self.fps, 3),
            "frames": {
                "captured": self.counts.captured,
                "presented": self.counts.presented,
                "duplicate": self.counts.duplicate,
                "superseded": self.counts.superseded,
                "failed": self.counts.failed,
                "pending": self.counts.pending,
            },
            "capture_to_present_ms": self.capture_to_present_ms.to_json(),
            "frame_time_ms": self.frame_time_ms.to_json(),
            "one_percent_low_fps": {
                "quantile": _rounded(self.one_percent_low_quantile_fps),
                "mean": _rounded(self.one_percent_low_mean_fps),
            },
            "stages_ms": {name: value.to_json() for name, value in self.stages_ms.items()},
            "gpu_ms": {name: value.to_json() for name, value in self.gpu_ms.items()},
            "duration_s": round(self.duration_s, 3),
            "upscalers": dict(self.upscalers),
            "rows": self.rows,
            "damage": self.damage,
        }

    def __str__(self) -> str:
        return "\n".join(self._text())

    def _text(self) -> Iterator[str]:
        c = self.counts
        yield (
            f"{c.captured} frames captured in {self.duration_s:.1f} s: {c.presented} presented, "
            f"{c.duplicate} duplicate, {c.superseded} superseded, {c.failed} failed"
            + (f", {c.pending} pending" if c.pending else "")
        )
        lows = ""
        if self.one_percent_low_quantile_fps and self.one_percent_low_mean_fps:
            lows = (
                f"   1% low {self.one_percent_low_quantile_fps:.1f} (1000/p99) "
                f"{self.one_percent_low_mean_fps:.1f} (mean of the slowest 1%)"
            )
        yield f"{self.fps:.1f} fps{lows}"
        for name, frames in self.upscalers.items():
            yield f"  {frames} frames by {name}"
        yield f"{'ms':<20}{'p50':>10}{'p95':>10}{'p99':>10}"
        yield _line("frame time", self.frame_time_ms)
        yield _line("capture to present", self.capture_to_present_ms)
        for name, value in self.stages_ms.items():
            yield _line(f"  {name}", value)
        for name, value in self.gpu_ms.items():
            if value.p50 is not None:
                yield _line(f"  {name} on device", value)
        if self.rows < c.captured and self.damage is None:
            yield f"(figures of the last {self.rows} frames)"
        if self.damage is not None:
            yield f"incomplete: {self.damage}"


def summarise(trace: TraceTable | TraceRecorder) -> Summary:
    """Sum up a trace.

    Of a recorder the counts are those of the whole run. All else is too, unless the run was
    longer than the ring and has no file: then it is of the last `rows` frames.

    Raises:
        TraceError: the file of a long run was removed meanwhile.
    """
    if isinstance(trace, TraceRecorder):
        return _summarise(trace.whole_table(), trace.counts())
    counts = Counts(len(trace), *(trace.count(Outcome(value)) for value in (1, 2, 3, 4, 0)))
    return _summarise(trace, counts)


def _summarise(table: TraceTable, counts: Counts) -> Summary:
    frame_ms = table.frame_times_ms()
    frame_time = percentiles(frame_ms)
    total_ms = float(frame_ms.sum())
    quantile = mean = None
    if len(frame_ms) and total_ms > 0:
        p99 = np.percentile(frame_ms, 99)
        slowest = float(frame_ms[frame_ms >= p99].mean())
        quantile = 1000 / float(p99) if p99 > 0 else None
        mean = 1000 / slowest if slowest > 0 else None
    return Summary(
        fps=len(frame_ms) * 1000 / total_ms if total_ms > 0 else 0.0,
        counts=counts,
        frame_time_ms=frame_time,
        capture_to_present_ms=percentiles(table.capture_to_present_ms()),
        stages_ms={name: percentiles(table.stage_ms(name)) for name in STAGES},
        gpu_ms={
            part.name.lower(): percentiles(_measured_ms(table.gpu_ns[part])) for part in GpuPart
        },
        one_percent_low_quantile_fps=quantile,
        one_percent_low_mean_fps=mean,
        duration_s=_duration_s(table),
        upscalers=_upscalers(table),
        rows=len(table),
        damage=table.damage,
    )


def percentiles(values_ms: NDArray[np.float64]) -> Percentiles:
    """p50, p95 and p99 of the values that are not NaN."""
    values_ms = values_ms[~np.isnan(values_ms)]
    if len(values_ms) == 0:
        return Percentiles()
    return Percentiles(*np.percentile(values_ms, (50, 95, 99)).tolist())


def _measured_ms(values_ns: NDArray[np.int64]) -> NDArray[np.float64]:
    return values_ns[values_ns > 0] / 1e6


def _duration_s(table: TraceTable) -> float:
    stamps = table.stamps[table.stamps != np.iinfo(np.int64).min]
    return float(stamps.max() - stamps.min()) / 1e9 if len(stamps) else 0.0


def _upscalers(table: TraceTable) -> dict[str, int]:
    used = np.bincount(table.label[table.outcome == Outcome.PRESENTED], minlength=1).tolist()
    return {
        f"{table.labels[label][0]} ({table.labels[label][1]})": frames
        for label, frames in enumerate(used)
        if frames and table.labels[label] != ("", "")
    }


def _line(name: str, value: Percentiles) -> str:
    cells = (
        f"{'-' if p is None else format(p, '.3f'):>10}" for p in (value.p50, value.p95, value.p99)
    )
    return f"{name:<20}{''.join(cells)}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
