"""From stamps to figures: pure functions; every field is defined in docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from overlay.latency.stamps import Sightings, Times
from overlay.trace import Outcome, Stage
from overlay.trace.summary import Json, Percentiles, percentiles
from overlay.trace.table import MISSING, STAGES, TraceTable

#: Rows of `stages_ms`, in the order in which a frame passes them.
DRAWN_TO_READY, PRESENTED_TO_SEEN = "drawn_to_ready", "presented_to_seen"


@dataclass(frozen=True, slots=True)
class Latency:
    """What one run of the self-test found. Times in ms, rates in frames a second.

    Attributes:
        capture_to_screen_ms: from the stamp right before the source's swap to the end of the
            probe's look that first showed the frame: the whole loop.
        stages_ms: the way there, of the frames that were presented and seen.
        probe_period_ms: from the look before to the look that first showed a frame.
        source_frames: drawn in the measured time.
        seen: of these, seen at least once.
        lost: of these, never seen.
        lost_where: what became of the lost ones; the counts add up to `lost`.
        duplicated: how often one of them was shown again after it was shown.
        source_fps, seen_fps: cadence of the drawn and of the seen frames.
        unreadable: rows that the probe refused (torn, blended, another window), over all.
    """

    capture_to_screen_ms: Percentiles
    stages_ms: dict[str, Percentiles]
    probe_period_ms: Percentiles
    source_frames: int
    seen: int
    lost: int
    lost_where: dict[str, int]
    duplicated: int
    source_fps: float
    seen_fps: float
    unreadable: int

    def to_json(self) -> dict[str, Json]:
        """Give the documented fields of `--json`."""
        return {
            "capture_to_screen_ms": self.capture_to_screen_ms.to_json(),
            "source_frames": self.source_frames,
            "seen": self.seen,
            "lost": self.lost,
            "lost_where": dict(self.lost_where),
            "duplicated": self.duplicated,
            "source_fps": round(self.source_fps, 2),
            "seen_fps": round(self.seen_fps, 2),
            "unreadable": self.unreadable,
            "stages_ms": {name: value.to_json() for name, value in self.stages_ms.items()},
            "probe_period_ms": self.probe_period_ms.to_json(),
        }


def evaluate(
    drawn: Times,
    sightings: Sightings,
    table: TraceTable,
    numbers: Mapping[int, int],
    *,
    trace_start_ns: int,
    begin_ns: int,
    end_ns: int,
    unreadable: int = 0,
) -> Latency:
    """Work out the figures of the frames drawn from `begin_ns` to before `end_ns`.

    Args:
        drawn: int64, (n,): `perf_counter_ns` at which each number was drawn; 0 = never.
        sightings: of the probe.
        table: the trace, with all its rows ended.
        numbers: sequence number of a captured frame -> the number that was in its pixels.
        trace_start_ns: the trace's time 0.
    """
    measured = np.flatnonzero((drawn >= begin_ns) & (drawn < end_ns) & (drawn > 0))
    first, times_seen, period_ns = _first_seen(sightings, len(drawn))
    seen = measured[first[measured] > 0]
    rows = _rows_of(table, numbers)
    presented = {n: _presented(table, of_n) for n, of_n in rows.items()}
    lost = [int(n) for n in measured if not first[n]]
    return Latency(
        capture_to_screen_ms=percentiles((first[seen] - drawn[seen]) / 1e6),
        stages_ms=_stages(drawn - trace_start_ns, first - trace_start_ns, seen, table, presented),
        probe_period_ms=percentiles(period_ns[seen] / 1e6),
        source_frames=len(measured),
        seen=len(seen),
        lost=len(lost),
        lost_where=_lost_where(lost, table, rows),
        duplicated=_duplicated(measured, times_seen, presented),
        source_fps=_rate(drawn[measured]),
        seen_fps=_rate(np.sort(first[seen])),
        unreadable=unreadable,
    )


def _first_seen(sightings: Sightings, count: int) -> tuple[Times, Times, Times]:
    """Per number: when it was first seen (0 = never), how often, and the time between looks."""
    first = np.zeros(count, np.int64)
    period = np.zeros(count, np.int64)
    numbers, at = np.unique(sightings.number, return_index=True)
    first[numbers] = sightings.seen_ns[at]
    period[numbers] = sightings.seen_ns[at] - sightings.before_ns[at]
    return first, np.bincount(sightings.number, minlength=count), period


def _rows_of(table: TraceTable, numbers: Mapping[int, int]) -> dict[int, list[int]]:
    """Number -> indices of the trace's rows that captured it."""
    rows: dict[int, list[int]] = {}
    for index, sequence in enumerate(table.sequence.tolist()):
        if (number := numbers.get(sequence)) is not None:
            rows.setdefault(number, []).append(index)
    return rows


def _presented(table: TraceTable, rows: list[int]) -> list[int]:
    return [row for row in rows if table.outcome[row] == Outcome.PRESENTED]


def _stages(
    drawn: Times,
    first: Times,
    seen: NDArray[np.intp],
    table: TraceTable,
    presented: Mapping[int, list[int]],
) -> dict[str, Percentiles]:
    pairs = [(int(n), presented[int(n)][0]) for n in seen if presented.get(int(n))]
    numbers = np.array([n for n, _ in pairs], np.intp)
    rows = np.array([row for _, row in pairs], np.intp)
    ready, shown = table.stamps[Stage.READY][rows], table.stamps[Stage.PRESENTED][rows]
    stages = {DRAWN_TO_READY: _between(drawn[numbers], ready)}
    stages |= {name: percentiles(table.stage_ms(name)[rows]) for name in STAGES}
    stages[PRESENTED_TO_SEEN] = _between(shown, first[numbers])
    return stages


def _between(begin: Times, end: Times) -> Percentiles:
    known = (begin != MISSING) & (end != MISSING)
    return percentiles((end[known] - begin[known]) / 1e6)


def _lost_where(
    lost: list[int], table: TraceTable, rows: Mapping[int, list[int]]
) -> dict[str, int]:
    """Say how far the lost frames came: not captured, or their row's outcome in the trace.

    A frame that was presented and not seen was on the screen for less than the probe's period
    (or under the HUD, or the probe did not run).
    """
    where = {"not_captured": 0, "duplicate": 0, "superseded": 0, "failed": 0, "presented": 0}
    best = [Outcome.FAILED, Outcome.DUPLICATE, Outcome.SUPERSEDED, Outcome.PRESENTED]
    for number in lost:
        outcomes = {Outcome(int(table.outcome[row])) for row in rows.get(number, [])}
        reached = [outcome for outcome in best if outcome in outcomes]
        where[reached[-1].name.lower() if reached else "not_captured"] += 1
    return where


def _duplicated(
    measured: NDArray[np.intp], times_seen: Times, presented: Mapping[int, list[int]]
) -> int:
    """Count showings beyond the first: presented again, or back on screen after another frame.

    Both show the same event twice (a frame presented again after a later one is also seen
    again), so per frame the larger of the two counts.
    """
    return sum(max(0, len(presented.get(int(n), ())) - 1, int(times_seen[n]) - 1) for n in measured)


def _rate(times_ns: Times) -> float:
    """Intervals per second."""
    span = int(times_ns[-1] - times_ns[0]) if len(times_ns) > 1 else 0
    return (len(times_ns) - 1) * 1e9 / span if span > 0 else 0.0
