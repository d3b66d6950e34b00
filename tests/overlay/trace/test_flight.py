"""The flight recorder: saves in the background, rarely, and not for ever."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from overlay.trace import Outcome
from overlay.trace.csvfile import read_trace, write_trace
from overlay.trace.flight import FlightRecorder
from overlay.trace.recorder import TraceRecorder
from overlay.trace.table import TraceTable

MS = 1_000_000


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay.trace.flight._POLL_S", 0.01)


def wait_for(condition) -> bool:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(condition())


def test_saves_the_last_seconds_when_asked(tmp_path: Path, frames, monkeypatch) -> None:
    def slow(table: TraceTable, path: Path) -> None:
        time.sleep(0.6)
        write_trace(table, path)

    monkeypatch.setattr("overlay.trace.flight.write_trace", slow)
    recorder = TraceRecorder()
    now = time.perf_counter_ns()
    for i in range(100):  # one every second until now
        frames.present(recorder, i, now - (99 - i) * 1000 * MS, [0.01] * 7)
    pending = recorder.begin(frames.frame(100, now))
    with FlightRecorder(recorder, tmp_path / "flights", seconds=30.5) as flight:
        begin = time.perf_counter()
        flight.save()
        assert time.perf_counter() - begin < 0.5
    (path,) = (tmp_path / "flights").iterdir()
    assert path.name.endswith("-asked.csv")
    table = read_trace(path)
    assert table.damage is None
    assert 69 <= table.sequence[0] <= 75  # 69 where the machine is not slow
    assert table.sequence.tolist() == list(range(int(table.sequence[0]), 101))
    assert table.outcome[-1] == Outcome.PENDING
    assert recorder.outcome(pending) == Outcome.PENDING


def test_saves_once_for_late_frames_within_the_cooldown(tmp_path: Path, frames) -> None:
    recorder = TraceRecorder()
    saved: list[Path] = []
    with FlightRecorder(recorder, tmp_path, late_ms=50, on_saved=saved.append):
        frames.present(recorder, 0, recorder.start_ns, [1, 1, 20, 1, 1, 1, 1])
        time.sleep(0.1)
        assert saved == []
        for i in range(5):
            frames.present(recorder, i, recorder.start_ns + i * MS, [1, 1, 50, 1, 1, 1, 1])
            time.sleep(0.05)
        assert wait_for(lambda: saved)
    assert len(saved) == 1
    assert saved[0].name.endswith("-late.csv")


def test_late_frames_save_again_after_the_cooldown(tmp_path: Path, frames) -> None:
    recorder = TraceRecorder()
    saved: list[Path] = []
    with FlightRecorder(recorder, tmp_path, late_ms=5, cooldown_s=0.02, on_saved=saved.append):
        for i in range(2):
            frames.present(recorder, i, recorder.start_ns, [1] * 7)
            assert wait_for(lambda wanted=i + 1: len(saved) == wanted)
            time.sleep(0.05)
    assert len(saved) == 2


def test_a_frame_that_is_late_only_later_is_found(tmp_path: Path, frames) -> None:
    recorder = TraceRecorder()
    saved: list[Path] = []
    with FlightRecorder(recorder, tmp_path, late_ms=50, on_saved=saved.append):
        row = recorder.begin(frames.frame(0, recorder.start_ns + 1))
        time.sleep(0.05)
        assert saved == []
        recorder.stamp(row, 7, recorder.start_ns + 60 * MS)
        recorder.end(row, Outcome.PRESENTED)
        assert wait_for(lambda: saved)


def test_old_files_are_pruned_others_are_left(tmp_path: Path, frames) -> None:
    other = tmp_path / "mine.csv"
    other.write_text("keep")
    recorder = TraceRecorder()
    frames.present(recorder, 0, recorder.start_ns, [1] * 7)
    saved: list[Path] = []
    with FlightRecorder(recorder, tmp_path, max_files=3, on_saved=saved.append) as flight:
        for wanted in range(1, 7):
            flight.save()
            assert wait_for(lambda wanted=wanted: len(saved) == wanted)
    assert len(set(saved)) == 6
    left = set(tmp_path.iterdir())
    assert left == {other, *saved[-3:]}


def test_the_newest_file_stays_however_large(tmp_path: Path, frames) -> None:
    skewed = tmp_path / "flight-20990101-000000-000000-late.csv"
    skewed.write_text("from a clock that went wrong")
    os.utime(skewed, (2**32, 2**32))
    recorder = TraceRecorder()
    saved: list[Path] = []
    with FlightRecorder(recorder, tmp_path, max_bytes=1, on_saved=saved.append) as flight:
        for wanted in (1, 2):
            flight.save()
            assert wait_for(lambda wanted=wanted: len(saved) == wanted)
    assert list(tmp_path.iterdir()) == [saved[-1]]


def test_an_unwritable_folder_is_one_line(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("")
    with (
        caplog.at_level(logging.INFO),
        FlightRecorder(TraceRecorder(), tmp_path / "file" / "x") as flight,
    ):
        flight.save()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the flight recorder cannot save" in caplog.text


def test_close_is_idempotent_and_ends_the_thread(tmp_path: Path) -> None:
    flight = FlightRecorder(TraceRecorder(), tmp_path, late_ms=1)
    flight.close()
    flight.close()
    assert not flight._thread.is_alive()
    with pytest.raises(ValueError, match="nothing to keep"):
        FlightRecorder(TraceRecorder(), tmp_path, seconds=0)
