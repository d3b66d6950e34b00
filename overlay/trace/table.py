"""A trace in memory: one row per captured frame, one numpy column per quantity.

The recorder hands out tables of what its ring holds, the file reader makes them from CSV, and
everything downstream (summary, converters, plots) takes nothing else. Off the frame path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from overlay.trace import GpuPart, Outcome, Stage

Column = NDArray[np.int64]
Millis = NDArray[np.float64]
Metadata = Mapping[str, str | int | float | bool | None]

#: A stamp that was never written.
MISSING = int(np.iinfo(np.int64).min)

#: Stages of the frame path: name -> (from stamp, to stamp). They follow one another without a
#: gap, so that for a presented frame their sum is capture to present.
STAGES: dict[str, tuple[Stage, Stage]] = {
    "capture": (Stage.READY, Stage.CAPTURED),
    "wait": (Stage.CAPTURED, Stage.SUBMITTED),
    "infer": (Stage.SUBMITTED, Stage.INFERRED),
    "queue": (Stage.INFERRED, Stage.PRESENTING),
    "upload": (Stage.PRESENTING, Stage.UPLOADED),
    "draw": (Stage.UPLOADED, Stage.DRAWN),
    "swap": (Stage.DRAWN, Stage.PRESENTED),
}


@dataclass(frozen=True, slots=True, eq=False)
class TraceTable:
    """Rows of a trace, in id order.

    Attributes:
        ids: int64, (n,); consecutive unless rows were lost.
        sequence: int64, (n,); the source's own numbers.
        outcome: int64, (n,); values of `Outcome`.
        reason: int64, (n,); index into `reasons`, where 0 is "".
        stamps: int64, (8, n), indexed by `Stage`; ns since the trace started, or `MISSING`.
        gpu_ns: int64, (4, n), indexed by `GpuPart`; device times, 0 where not measured.
        gpu_start_ns: int64, (4, n); when they began, ns since the trace started, or `MISSING`.
        gpu_error_ns: int64, (2, n); how far the starts may be off: of upload, inference and
            download, all by the same; and of drawing.
        sizes: int64, (6, n); width and height in pixels of the captured frame, of the
            upscaler's result and of the picture on screen; 0 where there was none.
        label: int64, (n,); index into `labels`, where 0 is ("", "").
        reasons: why rows ended as they did.
        labels: (model, back end).
        metadata: about the run; "started_unix_ns" is the wall clock at time 0.
        damage: what is missing from these rows, in one line; None if nothing is.
    """

    ids: Column
    sequence: Column
    outcome: Column
    reason: Column
    stamps: Column
    gpu_ns: Column
    gpu_start_ns: Column
    gpu_error_ns: Column
    sizes: Column
    label: Column
    reasons: tuple[str, ...] = ("",)
    labels: tuple[tuple[str, str], ...] = (("", ""),)
    metadata: Metadata = field(default_factory=dict)
    damage: str | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def infer_gpu_ns(self) -> Column:
        """Device time of the inference: int64, (n,); 0 where not measured."""
        column: Column = self.gpu_ns[GpuPart.INFER]
        return column

    @property
    def draw_gpu_ns(self) -> Column:
        """Device time of drawing: int64, (n,); 0 where not measured."""
        column: Column = self.gpu_ns[GpuPart.DRAW]
        return column

    def error_ns(self, part: GpuPart) -> Column:
        """How far the starts of a part may be off: int64, (n,); 0 where there is no start."""
        column: Column = self.gpu_error_ns[int(part == GpuPart.DRAW)]
        return column

    def count(self, outcome: Outcome) -> int:
        """Count the rows that ended as `outcome`."""
        return int(np.count_nonzero(self.outcome == outcome))

    def between_ms(self, begin: Stage, end: Stage) -> Millis:
        """Time from one stamp to another: float64, (n,), ms; NaN where either is missing."""
        first, last = self.stamps[begin], self.stamps[end]
        known = (first != MISSING) & (last != MISSING)
        return np.where(known, np.where(known, last - first, 0) / 1e6, np.nan)

    def stage_ms(self, name: str) -> Millis:
        """Duration of one of `STAGES` for every row: float64, (n,), ms; NaN = not passed."""
        return self.between_ms(*STAGES[name])

    def presented(self) -> NDArray[np.intp]:
        """Indices of the presented rows in the order in which they were presented."""
        stamp = self.stamps[Stage.PRESENTED]
        rows = np.flatnonzero((self.outcome == Outcome.PRESENTED) & (stamp != MISSING))
        return rows[np.argsort(stamp[rows], kind="stable")]

    def frame_times_ms(self) -> Millis:
        """Times between consecutive presented frames: float64, (presented - 1,), ms."""
        times: Millis = np.diff(self.stamps[Stage.PRESENTED][self.presented()]) / 1e6
        return times

    def capture_to_present_ms(self) -> Millis:
        """READY to PRESENTED of the presented frames, in order: float64, (presented,), ms."""
        values = self.between_ms(Stage.READY, Stage.PRESENTED)[self.presented()]
        return values[~np.isnan(values)]
