"""The ring: rows, counts, figures, and what they cost."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from overlay.frame import Size
from overlay.trace import GpuPart, Outcome, Stage, Trace
from overlay.trace.recorder import NullTrace, TraceRecorder
from overlay.trace.table import MISSING

MS = 1_000_000


@pytest.mark.parametrize("kind", [NullTrace, TraceRecorder])
def test_every_trace_keeps_the_contract(kind, frames) -> None:
    trace: Trace = kind()
    with trace:
        source = frames.frame(7, 1000, 2000)
        assert [trace.begin(source), trace.begin(source), trace.begin(source)] == [0, 1, 2]
        trace.stamp(1, Stage.SUBMITTED, 3000)
        trace.stamp(99, Stage.SUBMITTED, 3000)
        trace.stamp(-1, Stage.SUBMITTED, 3000)
        trace.describe(1, frames.picture(source), Size(10, 10))
        trace.describe(99, frames.picture(source), Size(10, 10))
        trace.end(1, Outcome.FAILED, "why")
        trace.end(99, Outcome.FAILED, "why")
    trace.close()


def test_a_row_holds_what_was_recorded(frames) -> None:
    recorder = TraceRecorder()
    start = recorder.start_ns
    frames.present(recorder, 41, start + 5 * MS, [1, 2, 3, 4, 5, 6, 7])
    table = recorder.table()
    assert table.ids.tolist() == [0]
    assert table.sequence.tolist() == [41]
    assert table.outcome.tolist() == [Outcome.PRESENTED]
    assert (table.stamps[:, 0] / MS).tolist() == [5, 6, 8, 11, 15, 20, 26, 33]
    assert table.sizes[:, 0].tolist() == [480, 270, 960, 540, 1920, 1080]
    assert table.labels[table.label[0]] == ("default-x2", "openvino")
    assert (table.infer_gpu_ns[0], table.draw_gpu_ns[0]) == (3 * MS, MS // 2)
    assert table.capture_to_present_ms().tolist() == [28.0]
    assert [float(table.stage_ms(name)[0]) for name in ("capture", "infer", "swap")] == [1, 3, 7]


def test_a_row_holds_the_times_of_the_device(frames) -> None:
    recorder = TraceRecorder()
    start = recorder.start_ns
    times = frames.times(start + 9 * MS, download=False)
    frames.present(recorder, 0, start + 5 * MS, [1] * 7, times, (40, start + 70, 3))
    frames.present(recorder, 1, start + 25 * MS, [1] * 7)
    table = recorder.table()
    assert table.gpu_ns[:, 0].tolist() == [MS // 2, 3 * MS, 0, 40]
    assert table.gpu_start_ns[:, 0].tolist() == [9 * MS, 9 * MS + MS // 2, MISSING, 70]
    assert table.gpu_error_ns[:, 0].tolist() == [7000, 3]
    assert [int(table.error_ns(part)[0]) for part in GpuPart] == [7000, 7000, 7000, 3]
    assert table.gpu_ns[:, 1].tolist() == [0, 3 * MS, 0, MS // 2]
    assert (table.gpu_start_ns[:, 1] == MISSING).all()
    assert table.gpu_error_ns[:, 1].tolist() == [0, 0]


def test_a_recycled_row_keeps_nothing_of_the_old_one(frames) -> None:
    recorder = TraceRecorder(capacity=4)
    for i in range(4):
        times = frames.times(recorder.start_ns + MS)
        frames.present(recorder, i, recorder.start_ns + MS, [1] * 7, times, (1, 2, 3))
    row = recorder.begin(frames.frame(9, recorder.start_ns + 2 * MS))
    table = recorder.table(row)
    assert table.ids.tolist() == [4]
    assert table.outcome.tolist() == [Outcome.PENDING]
    assert (table.stamps[2:, 0] == MISSING).all()
    assert table.sizes[2:, 0].tolist() == [0, 0, 0, 0]
    assert table.labels[table.label[0]] == ("", "")
    assert not table.gpu_ns.any()
    assert not table.gpu_error_ns.any()
    assert (table.gpu_start_ns == MISSING).all()
    assert table.reason[0] == 0


def test_rows_that_left_the_ring_are_ignored(frames) -> None:
    recorder = TraceRecorder(capacity=4)
    rows = [recorder.begin(frames.frame(i, recorder.start_ns + i + 1)) for i in range(6)]
    recorder.stamp(rows[0], Stage.PRESENTED, 123)
    recorder.describe(rows[0], frames.picture(frames.frame(0, 1)), Size(1, 1))
    recorder.end(rows[0], Outcome.PRESENTED)
    table = recorder.table()
    assert table.ids.tolist() == [3, 4, 5]
    assert (table.stamps[Stage.PRESENTED] == MISSING).all()
    assert recorder.counts().presented == 0
    assert recorder.outcome(0) is None
    assert recorder.outcome(5) == Outcome.PENDING


def test_a_row_ends_once(frames) -> None:
    recorder = TraceRecorder()
    row = recorder.begin(frames.frame(0, 1))
    recorder.end(row, Outcome.SUPERSEDED, "infer slot")
    recorder.end(row, Outcome.PRESENTED)
    assert recorder.outcome(row) == Outcome.SUPERSEDED
    assert recorder.counts().presented == 0
    with pytest.raises(ValueError, match="cannot end as PENDING"):
        recorder.end(row, Outcome.PENDING)


@pytest.mark.parametrize("seed", range(5))
def test_counts_add_up(seed: int, frames) -> None:
    recorder = TraceRecorder(capacity=256)
    frames.fill(recorder, 1000, seed)
    for _ in range(3):
        recorder.begin(frames.frame(0, recorder.start_ns + 10**12))
    counts = recorder.counts()
    assert counts.captured == 1003
    assert counts.pending == 3
    ended = counts.presented + counts.duplicate + counts.superseded + counts.failed
    assert counts.captured == ended + counts.pending
    assert min(counts.presented, counts.duplicate, counts.superseded, counts.failed) > 0
    recorder.close()
    closed = recorder.counts()
    assert (closed.pending, closed.failed) == (0, counts.failed + 3)


def test_a_row_that_nobody_ends_fails_when_it_leaves_the_ring(frames) -> None:
    recorder = TraceRecorder(capacity=4)
    for i in range(6):
        recorder.begin(frames.frame(i, i + 1))
    assert recorder.counts().failed == 2
    assert recorder.counts().pending == 4


def test_close_ends_pending_rows_as_failed(frames) -> None:
    recorder = TraceRecorder()
    recorder.begin(frames.frame(0, 1))
    recorder.close()
    recorder.close()
    table = recorder.table()
    assert table.outcome.tolist() == [Outcome.FAILED]
    assert table.reasons[table.reason[0]] == "the run ended"


def test_the_window_measures_only_its_seconds(frames) -> None:
    recorder = TraceRecorder()
    start = recorder.start_ns + MS
    for i in range(100):  # 10 fps, then 50 fps
        at = start + (i * 100 * MS if i < 50 else 5000 * MS + (i - 50) * 20 * MS)
        frames.present(recorder, i, at, [1, 1, 5, 1, 1, 0.5, 0.5])
    end = start + 5000 * MS + 49 * 20 * MS
    figures = recorder.window(0.9, end + 10 * MS, last=5)
    assert figures.output_fps == pytest.approx(50, rel=1e-6)
    assert figures.source_fps == pytest.approx(50, rel=1e-6)
    assert figures.frame_time_p50_ms == pytest.approx(20)
    assert figures.frame_time_p99_ms == pytest.approx(20)
    assert figures.capture_to_present_p50_ms == pytest.approx(10)
    assert figures.stages_ms["infer"] == pytest.approx(5)
    assert figures.frame_times_ms == pytest.approx((20,) * 5)
    assert figures.counts.captured == 100
    assert recorder.window(30, end + 10 * MS).frame_time_p99_ms == pytest.approx(100)


def test_the_window_counts_duplicates_and_drops_right(frames) -> None:
    recorder = TraceRecorder()
    at = recorder.start_ns + MS
    for i in range(60):
        at += 10 * MS
        if i % 3 == 0:
            frames.present(recorder, i, at, [0.1] * 7)
        else:
            row = recorder.begin(frames.frame(i, at))
            recorder.end(row, Outcome.DUPLICATE if i % 3 == 1 else Outcome.SUPERSEDED, "x")
    figures = recorder.window(10, at)
    assert figures.output_fps == pytest.approx(100 / 3, rel=0.05)
    assert figures.source_fps == pytest.approx(200 / 3, rel=0.05)


def test_the_window_falls_to_zero_when_nothing_comes(frames) -> None:
    recorder = TraceRecorder()
    for i in range(60):
        frames.present(recorder, i, recorder.start_ns + i * 16 * MS, [0.1] * 7)
    end = recorder.start_ns + 60 * 16 * MS
    assert recorder.window(5, end).output_fps == pytest.approx(62.5, rel=0.01)
    assert 10 < recorder.window(5, end + 2000 * MS).output_fps < 30
    assert recorder.window(5, end + 9000 * MS).output_fps == 0.0


def test_the_window_of_an_empty_trace() -> None:
    figures = TraceRecorder().window(30)
    assert (figures.output_fps, figures.frame_times_ms, figures.stages_ms) == (0.0, (), {})


def test_the_window_agrees_with_numpy_and_survives_the_turn_of_the_ring(frames) -> None:
    recorder = TraceRecorder(capacity=512)
    frames.fill(recorder, 1200)
    table = recorder.table()
    assert len(table) == 511
    assert table.ids.tolist() == list(range(1200 - 511, 1200))
    assert np.diff(table.sequence).tolist() == [1] * 510
    figures = recorder.window(1e6, int(table.stamps.max()) + recorder.start_ns)
    frame_ms, latency = table.frame_times_ms(), table.capture_to_present_ms()
    assert figures.frame_time_p99_ms == pytest.approx(np.percentile(frame_ms, 99))
    assert figures.frame_time_p50_ms == pytest.approx(np.percentile(frame_ms, 50))
    assert figures.capture_to_present_p99_ms == pytest.approx(np.percentile(latency, 99))
    infer = table.stage_ms("infer")
    assert figures.stages_ms["infer"] == pytest.approx(float(np.nanmean(infer)))


def test_many_names_do_not_pile_up(frames) -> None:
    recorder = TraceRecorder()
    for i in range(3000):
        source = frames.frame(i, i + 1)
        row = recorder.begin(source)
        recorder.describe(row, frames.picture(source, model=f"m{i}"), Size(1, 1))
        recorder.end(row, Outcome.FAILED, f"reason {i}")
    table = recorder.table()
    assert len(table.reasons) <= 1001
    assert len(table.labels) <= 1001
    assert table.reasons[table.reason[-1]] == "other"
    assert table.labels[table.label[-1]] == ("other", "other")


def test_threads_lose_no_frame(tmp_path: Path, frames) -> None:
    path = tmp_path / "t.csv"
    recorder = TraceRecorder(path, capacity=8192)
    begun: list[int] = []

    def capture(sequence: int) -> None:
        for _ in range(1500):
            source = frames.frame(sequence, time.perf_counter_ns())
            row = recorder.begin(source)
            begun.append(row)
            recorder.stamp(row, Stage.SUBMITTED, time.perf_counter_ns())
            recorder.stamp(row, Stage.PRESENTED, time.perf_counter_ns())
            recorder.end(row, Outcome.PRESENTED if row % 2 else Outcome.SUPERSEDED, "slot")
            time.sleep(0.0001)

    threads = [threading.Thread(target=capture, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        table = recorder.table()  # a reader never sees a row that is half there
        ended = table.outcome == Outcome.PRESENTED
        assert (table.stamps[Stage.PRESENTED][ended] != MISSING).all()
        counts = recorder.counts()
        assert counts.captured == counts.presented + counts.superseded + counts.pending
    for thread in threads:
        thread.join()
    recorder.close()
    assert sorted(begun) == list(range(4500))
    assert recorder.damage is None
    counts = recorder.counts()
    assert (counts.presented, counts.superseded) == (2250, 2250)

    from overlay.trace.csvfile import read_trace

    table = read_trace(path)
    assert table.damage is None
    assert table.ids.tolist() == list(range(4500))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_and_cost_is_small(frames) -> None:
    recorder = TraceRecorder()
    source = frames.frame(0, recorder.start_ns)
    shown = frames.picture(source, times=frames.times(recorder.start_ns))

    def run(n: int) -> None:
        for i in range(n):
            row = recorder.begin(source)
            for stage in list(Stage)[2:]:
                recorder.stamp(row, stage, recorder.start_ns + i)
            recorder.describe(row, shown, Size(1920, 1080), i, i, i)
            recorder.end(row, Outcome.PRESENTED)

    def resident_kib() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4

    run(20_000)
    before = resident_kib()
    begin = time.thread_time()
    run(100_000)
    print(f"{(time.thread_time() - begin) * 10:.1f} us a frame")  # noqa: T201 (shown by -s)
    assert resident_kib() - before < 1024
    begin = time.thread_time()
    recorder.window(1e6)
    print(f"window over the whole ring {(time.thread_time() - begin) * 1e3:.2f} ms")  # noqa: T201


def test_capacity_is_checked() -> None:
    with pytest.raises(ValueError, match="at least 2, not 1"):
        TraceRecorder(capacity=1)
