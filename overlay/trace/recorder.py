"""Keep the trace in a ring of preallocated columns; called from every thread of the frame path.

What a frame costs here: one `begin`, a few `stamp`s, one `describe`, one `end`, together a few
microseconds and no memory that stays. The columns are numpy arrays for those who read many rows
at once (HUD, writer, flight recorder) and are written through memoryviews, which take a Python
int several times faster than numpy does.

Threads. `stamp` and `describe` take no lock: each cell of a row has one writer at a time (the
thread that has the frame), an aligned 64-bit store is one step under the interpreter's lock and
on the machine, and a row is addressed by an id that is never used again. `begin` and `end` take
a lock, for the next id and the counters. Readers copy first and then drop the rows that a
`begin` may have recycled meanwhile.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from overlay import __version__
from overlay.frame import DeviceTimes, Frame, Picture, Size
from overlay.trace import GpuPart, Outcome, Stage, Trace
from overlay.trace.table import MISSING, STAGES, Column, Metadata, TraceTable

if TYPE_CHECKING:
    from overlay.trace.csvfile import TraceWriter

log = logging.getLogger(__name__)

_N_STAGES = len(Stage)
_UPLOAD, _INFER, _DOWNLOAD, _DRAW = GpuPart
_MAX_NAMES = 1000  # distinct reasons, and (model, back end) pairs; more become "other"
_PENDING, _PRESENTED, _DUPLICATE = Outcome.PENDING, Outcome.PRESENTED, Outcome.DUPLICATE
_FAILED = Outcome.FAILED


@dataclass(frozen=True, slots=True)
class Counts:
    """How many frames were captured, and what became of them.

    captured = presented + duplicate + superseded + failed + pending; pending is 0 once closed.
    """

    captured: int = 0
    presented: int = 0
    duplicate: int = 0
    superseded: int = 0
    failed: int = 0
    pending: int = 0


@dataclass(frozen=True, slots=True)
class LiveFigures:
    """What the HUD shows, over the last seconds.

    Attributes:
        output_fps, source_fps: presented frames, and captured frames that were no duplicates,
            per second; they fall towards 0 when nothing comes any more.
        frame_time_p50_ms, frame_time_p99_ms: of the times between presented frames.
        capture_to_present_p50_ms, capture_to_present_p99_ms: READY to PRESENTED.
        stages_ms: mean of each stage that some frame passed (see `table.STAGES`).
        frame_times_ms: the latest frame times, oldest first.
        counts: since the trace began, not only of the last seconds.
    """

    output_fps: float
    source_fps: float
    frame_time_p50_ms: float
    frame_time_p99_ms: float
    capture_to_present_p50_ms: float
    capture_to_present_p99_ms: float
    stages_ms: dict[str, float]
    frame_times_ms: tuple[float, ...]
    counts: Counts


class NullTrace(Trace):
    """Hand out ids and keep nothing."""

    def __init__(self) -> None:
        self._next = 0
        self._lock = threading.Lock()

    def begin(self, frame: Frame) -> int:
        with self._lock:
            self._next += 1
            return self._next - 1

    def stamp(self, row: int, stage: Stage, at_ns: int) -> None:
        pass

    def describe(
        self,
        row: int,
        picture: Picture,
        output: Size,
        gpu_ns: int = 0,
        gpu_start_ns: int = 0,
        gpu_error_ns: int = 0,
    ) -> None:
        pass

    def end(self, row: int, outcome: Outcome, reason: str = "") -> None:
        pass

    def close(self) -> None:
        pass


class TraceRecorder(Trace):
    """The trace of a run.

    Args:
        path: also write every row to this file, replacing what is there (see `csvfile`).
        metadata: facts about the run for the file's first line.
        capacity: rows kept, rounded up to a power of two; the default holds 18 minutes at
            60 frames a second in 14.7 MB.

    Raises:
        TraceError: `path` cannot be written.
    """

    def __init__(
        self,
        path: Path | None = None,
        metadata: Metadata | None = None,
        capacity: int = 65536,
    ) -> None:
        if capacity < 2:
            raise ValueError(f"capacity must be at least 2, not {capacity}")
        self._capacity = capacity = 1 << (capacity - 1).bit_length()
        self._mask = capacity - 1
        #: `perf_counter_ns` at time 0 of the trace.
        self.start_ns = time.perf_counter_ns()
        started_unix_ns = time.time_ns()
        self.metadata: Metadata = {
            "version": __version__,
            "pid": os.getpid(),
            **(metadata or {}),
            "started": datetime.fromtimestamp(started_unix_ns // 10**9, UTC).isoformat(),
            "started_unix_ns": started_unix_ns,
        }
        self._lock = threading.Lock()  # guards _next, _tally, the names and recycling a row
        self._next = 0
        self._tally = [0] * len(Outcome)  # _tally[PENDING] is not kept
        self._closed = False

        # full, not zeros: it touches the memory now, so that none is added while frames flow
        self._stamps = np.full((_N_STAGES, capacity), 0, np.int64)  # 0 = not stamped
        self._facts = np.full((20, capacity), 0, np.int64)
        views = [memoryview(column) for column in (*self._stamps, *self._facts)]
        self._stamp_views = views[:_N_STAGES]
        self._ready, self._captured = views[Stage.READY], views[Stage.CAPTURED]
        facts = views[_N_STAGES:]
        self._sequence, self._outcome, self._reason = facts[:3]
        self._gpu_all = facts[3:13]
        self._gpu_views, self._gpu_starts, self._gpu_errors = facts[3:7], facts[7:11], facts[11:13]
        self._size_views, self._label = facts[13:19], facts[19]
        self._reasons: dict[str, int] = {"": 0}
        self._labels: dict[tuple[str, str], int] = {("", ""): 0}
        self._writer: TraceWriter | None = None
        if path is not None:
            from overlay.trace.csvfile import TraceWriter

            self._writer = TraceWriter(self, path)

    # -- the frame path -------------------------------------------------------------------------

    def begin(self, frame: Frame) -> int:
        height, width = frame.pixels.shape[:2]
        sizes = self._size_views
        with self._lock:
            row = self._next
            slot = row & self._mask
            if row >= self._capacity and self._outcome[slot] == _PENDING:
                self._tally[_FAILED] += 1  # nobody ended it in a whole turn of the ring
            for view in self._stamp_views:
                view[slot] = 0
            self._ready[slot] = frame.ready_ns
            self._captured[slot] = frame.captured_ns
            self._sequence[slot] = frame.sequence
            self._outcome[slot] = 0
            self._reason[slot] = 0
            for view in self._gpu_all:
                view[slot] = 0
            sizes[0][slot] = width
            sizes[1][slot] = height
            sizes[2][slot] = sizes[3][slot] = sizes[4][slot] = sizes[5][slot] = 0
            self._label[slot] = 0
            self._next = row + 1  # only now can a reader see it
        return row

    def stamp(self, row: int, stage: Stage, at_ns: int) -> None:
        if row < 0 or row >= self._next or row < self._next - self._capacity:
            return
        self._stamp_views[stage][row & self._mask] = at_ns

    def describe(
        self,
        row: int,
        picture: Picture,
        output: Size,
        gpu_ns: int = 0,
        gpu_start_ns: int = 0,
        gpu_error_ns: int = 0,
    ) -> None:
        if row < 0 or row >= self._next or row < self._next - self._capacity:
            return
        slot = row & self._mask
        sizes = self._size_views
        height, width = picture.pixels.shape[:2]
        sizes[2][slot] = width
        sizes[3][slot] = height
        sizes[4][slot] = output[0]
        sizes[5][slot] = output[1]
        self._gpu_views[_INFER][slot] = picture.infer_ns
        self._gpu_views[_DRAW][slot] = gpu_ns
        self._gpu_starts[_DRAW][slot] = gpu_start_ns
        self._gpu_errors[1][slot] = gpu_error_ns
        if picture.times is not None:
            self._note(slot, picture.times)
        name = (picture.model, picture.backend)
        label = self._labels.get(name)
        self._label[slot] = self._label_of(name) if label is None else label

    def _note(self, slot: int, times: DeviceTimes) -> None:
        parts = ((_UPLOAD, times.upload), (_INFER, times.infer), (_DOWNLOAD, times.download))
        for part, span in parts:
            if span is not None:
                self._gpu_starts[part][slot], self._gpu_views[part][slot] = span
        self._gpu_errors[0][slot] = times.error_ns

    def end(self, row: int, outcome: Outcome, reason: str = "") -> None:
        """Close the row. A row ends once: a second outcome is ignored."""
        if outcome == _PENDING:
            raise ValueError("a row cannot end as PENDING")
        with self._lock:
            if row < 0 or row >= self._next or row < self._next - self._capacity:
                return
            slot = row & self._mask
            if self._outcome[slot] != _PENDING:
                return
            if reason:
                index = self._reasons.get(reason)
                self._reason[slot] = self._reason_of(reason) if index is None else index
            self._outcome[slot] = outcome
            self._tally[outcome] += 1

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            first = max(0, self._next - self._capacity)
            rows = range(first, self._next)
        for row in rows:
            if self._outcome[row & self._mask] == _PENDING:
                self.end(row, _FAILED, "the run ended")
        if self._writer is not None:
            self._writer.close()

    def _label_of(self, name: tuple[str, str]) -> int:
        with self._lock:
            if len(self._labels) >= _MAX_NAMES:
                name = ("other", "other")
            return self._labels.setdefault(name, len(self._labels))

    def _reason_of(self, reason: str) -> int:  # the lock is held
        if len(self._reasons) >= _MAX_NAMES:
            reason = "other"
        return self._reasons.setdefault(reason, len(self._reasons))

    # -- readers, on any other thread -----------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Rows the ring holds."""
        return self._capacity

    @property
    def captured(self) -> int:
        """Rows begun so far; the next row's id."""
        return self._next

    @property
    def oldest(self) -> int:
        """The oldest row that no `begin` running now can be recycling."""
        return max(0, self._next - self._capacity + 1)

    @property
    def damage(self) -> str | None:
        """Why the file being written is incomplete; None if it is not, or there is none."""
        return self._writer.damage if self._writer is not None else None

    def outcome(self, row: int) -> Outcome | None:
        """What became of a row; None if it left the ring or does not exist yet."""
        if row < 0 or row >= self._next or row < self._next - self._capacity:
            return None
        return Outcome(self._outcome[row & self._mask])

    def counts(self) -> Counts:
        """Count the frames so far; consistent, also while the run goes on."""
        with self._lock:
            captured = self._next
            _, presented, duplicate, superseded, failed = self._tally
        pending = captured - presented - duplicate - superseded - failed
        return Counts(captured, presented, duplicate, superseded, failed, pending)

    def whole_table(self) -> TraceTable:
        """Give every row of the run if they can be had, else those in the ring.

        A run longer than the ring is read back from its file, once the recorder is closed.

        Raises:
            TraceError: the file was removed meanwhile.
        """
        if self.oldest > 0 and self._closed and self._writer is not None and not self.damage:
            from overlay.trace.csvfile import read_trace

            return read_trace(self._writer.path)
        return self.table()

    def table(self, first: int = 0, stop: int | None = None) -> TraceTable:
        """Copy the rows `first` <= id < `stop`, as far as the ring still holds them."""
        stop = self._next if stop is None else min(stop, self._next)
        first = min(max(first, self.oldest), stop)
        slots = self._slots(first, stop)
        # Facts first: a row seen as ended has all its stamps.
        facts, stamps = self._facts[:, slots].copy(), self._stamps[:, slots].copy()
        recycled = min(max(self.oldest - first, 0), stop - first)
        first, facts, stamps = first + recycled, facts[:, recycled:], stamps[:, recycled:]
        stamps, starts = (
            np.where(times == 0, MISSING, times - self.start_ns) for times in (stamps, facts[7:11])
        )
        with self._lock:
            reasons, labels = tuple(self._reasons), tuple(self._labels)
        return TraceTable(
            ids=np.arange(first, first + stamps.shape[1], dtype=np.int64),
            sequence=facts[0],
            outcome=facts[1],
            reason=facts[2],
            stamps=stamps,
            gpu_ns=facts[3:7],
            gpu_start_ns=starts,
            gpu_error_ns=facts[11:13],
            sizes=facts[13:19],
            label=facts[19],
            reasons=reasons,
            labels=labels,
            metadata=self.metadata,
            damage=self.damage,
        )

    def since(self, seconds: float, now_ns: int | None = None) -> TraceTable:
        """Copy the rows captured in the last `seconds` (what the ring still holds of them)."""
        return self.table(self._first_since(seconds, now_ns))

    def window(self, seconds: float, now_ns: int | None = None, last: int = 120) -> LiveFigures:
        """Figures over the last `seconds`, for the HUD; well under a millisecond.

        Args:
            seconds: length of the window, ending at `now_ns` (default: now).
            last: at most so many frame times are listed.
        """
        now_ns = time.perf_counter_ns() if now_ns is None else now_ns
        slots = self._slots(self._first_since(seconds, now_ns), self._next)
        stamps = self._stamps[:, slots]
        outcome = self._facts[1, slots]
        shown = stamps[:, (outcome == _PRESENTED) & (stamps[Stage.PRESENTED] != 0)]
        presented = shown[Stage.PRESENTED]
        frame_ms = np.diff(presented) / 1e6
        latency = (presented - shown[Stage.READY]) / 1e6
        source = stamps[Stage.READY, outcome != _DUPLICATE]
        p50, p99 = _p50_p99(frame_ms)
        latency_p50, latency_p99 = _p50_p99(latency)
        return LiveFigures(
            output_fps=_rate(presented, now_ns),
            source_fps=_rate(source, now_ns),
            frame_time_p50_ms=p50,
            frame_time_p99_ms=p99,
            capture_to_present_p50_ms=latency_p50,
            capture_to_present_p99_ms=latency_p99,
            stages_ms=_stage_means(stamps),
            frame_times_ms=tuple(frame_ms[-last:].tolist()) if last > 0 else (),
            counts=self.counts(),
        )

    def _first_since(self, seconds: float, now_ns: int | None) -> int:
        """The first row captured in the last `seconds`, by bisection (they are in order)."""
        now_ns = time.perf_counter_ns() if now_ns is None else now_ns
        first = self.oldest
        rows = range(first, self._next)
        captured, mask = self._captured, self._mask
        begin = now_ns - int(seconds * 1e9)
        return first + bisect_left(rows, begin, key=lambda row: captured[row & mask])

    def _slots(self, first: int, stop: int) -> slice | NDArray[np.intp]:
        if first >= stop:
            return slice(0, 0)
        begin, end = first & self._mask, ((stop - 1) & self._mask) + 1
        if begin < end:
            return slice(begin, end)
        return np.arange(first, stop) & self._mask


def _rate(times_ns: Column, now_ns: int) -> float:
    """Events per second: their cadence, or less once the next one is overdue."""
    if len(times_ns) < 2:
        return 0.0
    first, last = int(times_ns[0]), int(times_ns[-1])
    intervals = len(times_ns) - 1
    span = last - first
    overdue = now_ns - last
    if overdue > 3 * span / intervals:
        span += overdue
    return intervals * 1e9 / span if span > 0 else 0.0


def _p50_p99(values: NDArray[np.float64]) -> tuple[float, float]:
    """Median and 99th percentile as `numpy.percentile` defines them (linear), but faster."""
    n = len(values)
    if n == 0:
        return 0.0, 0.0
    at = (0.5 * (n - 1), 0.99 * (n - 1))
    below = [int(p) for p in at]
    above = [min(b + 1, n - 1) for b in below]
    ordered = np.partition(values, sorted({*below, *above}))
    low, high = (
        float(ordered[b] + (ordered[a] - ordered[b]) * (p - b))
        for p, b, a in zip(at, below, above, strict=True)
    )
    return low, high


def _stage_means(stamps: Column) -> dict[str, float]:
    means = {}
    for name, (begin, end) in STAGES.items():
        passed = (stamps[begin] != 0) & (stamps[end] != 0)
        n = int(np.count_nonzero(passed))
        if n:
            means[name] = float(np.sum(stamps[end] - stamps[begin], where=passed)) / n / 1e6
    return means
