"""Every figure of the summary against its definition in docs/trace.md."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from overlay.trace import Outcome
from overlay.trace.csvfile import read_trace
from overlay.trace.recorder import TraceRecorder
from overlay.trace.summary import summarise
from overlay.trace.table import STAGES

MS = 1_000_000


@pytest.fixture
def recorder(frames) -> TraceRecorder:
    """101 frames: 99 frame times of 10 ms and one of 60 ms."""
    recorder = TraceRecorder()
    at = recorder.start_ns
    for i in range(101):
        at += (60 if i == 50 else 10) * MS
        frames.present(recorder, i, at, [1, 2, i, 0, 0, 0, 100 - i])  # 103 ms each
    return recorder


def test_averages_and_lows_are_as_defined(recorder: TraceRecorder) -> None:
    summary = summarise(recorder)
    assert summary.fps == pytest.approx(100 * 1000 / (99 * 10 + 60))
    assert summary.frame_time_ms.p50 == pytest.approx(10)
    assert summary.frame_time_ms.p99 == pytest.approx(10 + 0.01 * 50)  # linear: 99 % of the way
    assert summary.one_percent_low_quantile_fps == pytest.approx(1000 / 10.5)
    assert summary.one_percent_low_mean_fps == pytest.approx(1000 / 60)
    assert summary.capture_to_present_ms.p50 == pytest.approx(103)
    assert summary.duration_s == pytest.approx((100 * 10 + 50 + 103) / 1000)
    assert summary.upscalers == {"default-x2 (openvino)": 101}


def test_stage_percentiles_are_of_all_frames(recorder: TraceRecorder) -> None:
    stages = summarise(recorder).stages_ms
    assert list(stages) == list(STAGES)
    infer = stages["infer"]
    assert (infer.p50, infer.p95, infer.p99) == pytest.approx((50, 95, 99))
    assert stages["swap"].p95 == pytest.approx(95)
    assert stages["wait"].p99 == pytest.approx(2)


def test_order_of_presentation_counts_not_of_capture(frames) -> None:
    recorder = TraceRecorder()
    frames.present(recorder, 0, recorder.start_ns, [1, 1, 1, 1, 1, 1, 44])
    frames.present(recorder, 1, recorder.start_ns + 10 * MS, [1, 1, 1, 1, 1, 1, 4])
    assert summarise(recorder).frame_time_ms.p50 == pytest.approx(30)


@pytest.mark.parametrize("seed", range(4))
def test_the_file_and_the_recorder_say_the_same(tmp_path: Path, seed: int, frames) -> None:
    path = tmp_path / "t.csv"
    with TraceRecorder(path) as recorder:
        frames.fill(recorder, 400, seed)
    live, read = summarise(recorder).to_json(), summarise(read_trace(path)).to_json()
    assert live == read
    counts = read["frames"]
    assert isinstance(counts, dict)
    ended = sum(counts[name] for name in ("presented", "duplicate", "superseded", "failed"))
    assert counts["captured"] == ended == 400


def test_json_has_the_documented_fields(recorder: TraceRecorder) -> None:
    data = json.loads(json.dumps(summarise(recorder).to_json(), allow_nan=False))
    assert data["fps"] == pytest.approx(95.238, abs=1e-3)
    assert set(data["frames"]) >= {"captured", "presented", "duplicate", "superseded", "failed"}
    for name in ("capture_to_present_ms", "frame_time_ms"):
        assert set(data[name]) == {"p50", "p95", "p99"}
    assert set(data["stages_ms"]) == set(STAGES)
    assert set(data["one_percent_low_fps"]) == {"quantile", "mean"}
    assert data["gpu_ms"]["infer"]["p50"] == 3.0
    assert data["damage"] is None


@pytest.mark.parametrize("presented", [0, 1])
def test_too_few_frames_are_not_an_error(presented: int, frames) -> None:
    recorder = TraceRecorder()
    for i in range(presented):
        frames.present(recorder, i, recorder.start_ns + MS, [1] * 7)
    recorder.end(recorder.begin(frames.frame(9, recorder.start_ns + 2)), Outcome.FAILED, "x")
    summary = summarise(recorder)
    data = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert data["fps"] == 0
    assert data["frame_time_ms"] == {"p50": None, "p95": None, "p99": None}
    assert data["one_percent_low_fps"] == {"quantile": None, "mean": None}
    assert f"{presented} presented" in str(summary)


def test_the_text_names_damage_and_definitions(tmp_path: Path, frames) -> None:
    path = tmp_path / "t.csv"
    with TraceRecorder(path) as recorder:
        frames.fill(recorder, 100)
    path.write_bytes(path.read_bytes()[:-30])
    text = str(summarise(read_trace(path)))
    assert "incomplete: line " in text
    assert "1% low" in text
    assert "(1000/p99)" in text
    assert "(mean of the slowest 1%)" in text


def test_pauses_are_part_of_the_average(frames) -> None:
    recorder = TraceRecorder()
    for at_ms in (0, 10, 20, 1020):
        frames.present(recorder, 0, recorder.start_ns + at_ms * MS, [0.1] * 7)
    assert summarise(recorder).fps == pytest.approx(3 * 1000 / 1020)
    assert np.isclose(summarise(recorder).frame_time_ms.p50 or 0, 10)


def test_a_run_longer_than_the_ring_is_summed_up_whole_from_its_file(
    tmp_path: Path, frames
) -> None:
    path = tmp_path / "t.csv"
    recorder = TraceRecorder(path, capacity=256)
    for seed in range(3):
        frames.fill(recorder, 200, seed)
        deadline = time.monotonic() + 10
        while path.read_bytes().count(b"\n") < 2 + 200 * (seed + 1):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert summarise(recorder).rows == 255  # still running
    recorder.close()
    summary = summarise(recorder)
    assert (summary.rows, summary.counts.captured) == (600, 600)
    assert summary == summarise(read_trace(path))


def test_a_run_longer_than_the_ring_without_a_file_says_so(frames) -> None:
    with TraceRecorder(capacity=256) as recorder:
        frames.fill(recorder, 600)
    summary = summarise(recorder)
    assert (summary.rows, summary.counts.captured) == (255, 600)
    assert "(figures of the last 255 frames)" in str(summary)
