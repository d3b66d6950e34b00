"""The latency self-test: its code, its counting, and one run of the whole loop."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from overlay import latency
from overlay.errors import DisplayLost, OverlayError, SettingsError
from overlay.frame import Frame, Picture, Region, Size
from overlay.latency import code
from overlay.latency.child import Child
from overlay.latency.machine import CpuUse
from overlay.latency.result import Latency, evaluate
from overlay.latency.stamps import Sightings, Stamps
from overlay.trace import Outcome, Stage
from overlay.trace.recorder import TraceRecorder
from overlay.trace.table import STAGES

ROOT = Path(__file__).resolve().parents[2]


# --- the code -----------------------------------------------------------------------------------


def strip(number: int, width: int = 480) -> np.ndarray:
    """Paint a strip as one row: uint8, (width,)."""
    edges = [block * width // code.BLOCKS for block in range(code.BLOCKS + 1)]
    row = np.zeros(width, np.uint8)
    for block, light in enumerate(code.blocks(number)):
        row[edges[block] : edges[block + 1]] = 255 if light else 0
    return row


def read(row: np.ndarray) -> int | None:
    return code.decode(row[code.columns(len(row))])


@pytest.mark.parametrize("width", [128, 480, 640, 961, 1920])
def test_every_kind_of_number_is_read_back(width: int) -> None:
    for number in (0, 1, 2, 3, 255, 256, 4660, 32767, 32768, 65534, 65535):
        assert read(strip(number, width)) == number


def test_all_numbers_are_read_back() -> None:
    values = np.array([code.blocks(n) for n in range(0, code.LARGEST + 1, 7)], np.uint8) * 255
    assert [code.decode(row) for row in values] == list(range(0, code.LARGEST + 1, 7))


def test_neighbours_differ_in_one_bit_of_each_half() -> None:
    for number in range(0, 3000):
        now, then = code.blocks(number), code.blocks(number + 1)
        different = [block for block in range(code.BLOCKS) if now[block] != then[block]]
        assert len(different) == 2
        assert different[1] == different[0] + code.BITS


@pytest.mark.parametrize("number", [-1, 65536])
def test_numbers_that_do_not_fit_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="a strip holds 0 to 65535"):
        code.blocks(number)


def test_a_row_that_is_too_narrow_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 128 pixels"):
        code.columns(127)


def test_a_torn_row_is_one_of_its_two_numbers_or_nothing() -> None:
    generator = np.random.default_rng(7)
    refused = 0
    for _ in range(150):
        old = int(generator.integers(0, 60000))
        new = old + int(generator.integers(1, 40))
        for tear in range(0, 481, 15):
            row = np.concatenate([strip(new)[:tear], strip(old)[tear:]])
            got = read(row)
            assert got in (old, new, None)
            refused += got is None
    assert refused > 400


@pytest.mark.parametrize("weight", [0.4, 0.5, 0.6])
def test_a_blended_row_is_refused(weight: float) -> None:
    for old, new in ((1, 2), (7, 8), (1000, 1003)):
        row = strip(old) * weight + strip(new) * (1 - weight)
        assert read(row.astype(np.uint8)) is None


@pytest.mark.parametrize("level", [0, 60, 128, 200, 255])
def test_a_plain_row_is_refused(level: int) -> None:
    assert read(np.full(480, level, np.uint8)) is None


def test_a_strip_survives_scaling_and_noise() -> None:
    import cv2

    picture = np.repeat(strip(40321)[None, :, None], 270, axis=0).repeat(4, axis=2)
    noise = np.random.default_rng(1).integers(-40, 40, picture.shape)
    picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
    for size in ((960, 540), (1920, 1080), (700, 394), (240, 135)):
        for way in (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4):
            assert code.decode_pixels(cv2.resize(picture, size, interpolation=way)) == 40321


def test_the_row_that_is_read_lies_in_the_strip() -> None:
    for height in (36, 270, 540, 1080):
        top = height * (1 - code.STRIP_SHARE)
        assert top < code.strip_row(height) < height - 1


# --- counting -----------------------------------------------------------------------------------

MS = 1_000_000


class Run:
    """Stamps of a made-up run: frame n is drawn at n * 10 ms."""

    def __init__(self, frames: int) -> None:
        self.trace = TraceRecorder()
        self.zero = self.trace.start_ns
        self.drawn = np.zeros(1000, np.int64)
        self.drawn[1 : frames + 1] = self.zero + np.arange(1, frames + 1) * 10 * MS
        self.seen: list[tuple[int, int, int]] = []
        self.numbers: dict[int, int] = {}

    def frame(
        self, number: int, outcome: Outcome = Outcome.PRESENTED, seen_ms: float | None = 5
    ) -> None:
        """Let it pass: ready +1, captured +1.5, …, presented +4, seen +`seen_ms` after drawn."""
        at = int(self.drawn[number])
        sequence = len(self.numbers)
        self.numbers[sequence] = number
        pixels = np.zeros((2, 2, 4), np.uint8)
        frame = Frame(pixels, sequence, at + MS, at + 3 * MS // 2, Region(0, 0, 2, 2))
        row = self.trace.begin(frame)
        if outcome == Outcome.PRESENTED:
            for step, stage in enumerate(list(Stage)[2:], 1):
                self.trace.stamp(row, stage, at + 3 * MS // 2 + step * 5 * MS // 12)
            picture = Picture(frame, "source", pixels, 1, "bilinear", "opengl", "bilinear")
            self.trace.describe(row, picture, Size(4, 4))
        self.trace.end(row, outcome)
        if seen_ms is not None:
            self.see(number, at + int(seen_ms * MS))

    def see(self, number: int, at_ns: int) -> None:
        self.seen.append((number, at_ns, at_ns - MS // 2))

    def result(self, first: int = 1, last: int = 999) -> Latency:
        """Evaluate frames `first` to `last`."""
        columns = np.array(self.seen, np.int64).reshape(-1, 3).T
        return evaluate(
            self.drawn,
            Sightings(*columns),
            self.trace.table(),
            self.numbers,
            trace_start_ns=self.zero,
            begin_ns=self.zero + first * 10 * MS,
            end_ns=self.zero + last * 10 * MS + 1,
        )


def test_a_perfect_run() -> None:
    run = Run(20)
    for number in range(1, 21):
        run.frame(number)
    found = run.result()
    assert (found.source_frames, found.seen, found.lost, found.duplicated) == (20, 20, 0, 0)
    assert sum(found.lost_where.values()) == 0
    assert found.source_fps == pytest.approx(100)
    assert found.seen_fps == pytest.approx(100)
    assert found.capture_to_screen_ms.p50 == pytest.approx(5)
    assert found.capture_to_screen_ms.p99 == pytest.approx(5)
    assert found.probe_period_ms.p50 == pytest.approx(0.5)
    stages = {name: value.p50 for name, value in found.stages_ms.items()}
    assert list(stages) == ["drawn_to_ready", *STAGES, "presented_to_seen"]
    assert stages["drawn_to_ready"] == pytest.approx(1)
    assert stages["capture"] == pytest.approx(0.5)
    assert stages["presented_to_seen"] == pytest.approx(1)
    assert sum(value for value in stages.values() if value is not None) == pytest.approx(5)


def test_only_the_measured_time_counts() -> None:
    run = Run(20)
    for number in range(1, 21):
        run.frame(number, seen_ms=50 if number < 6 or number > 15 else 5)
    found = run.result(first=6, last=15)
    assert found.source_frames == 10
    assert found.capture_to_screen_ms.p99 == pytest.approx(5)


def test_percentiles_are_those_of_all_frames() -> None:
    run = Run(101)
    for number in range(1, 102):
        run.frame(number, seen_ms=4 + number / 100)
    found = run.result().capture_to_screen_ms
    assert found.p50 == pytest.approx(4.51)
    assert found.p95 == pytest.approx(4.96)
    assert found.p99 == pytest.approx(5.0)


def test_lost_frames_and_where() -> None:
    run = Run(8)
    run.frame(1)
    run.frame(2, Outcome.SUPERSEDED, seen_ms=None)
    run.frame(3, Outcome.FAILED, seen_ms=None)
    run.frame(4, Outcome.PRESENTED, seen_ms=None)
    # 5 was never captured
    run.frame(6, Outcome.DUPLICATE, seen_ms=None)
    run.frame(7, Outcome.SUPERSEDED, seen_ms=None)
    run.frame(8)
    found = run.result()
    assert (found.source_frames, found.seen, found.lost) == (8, 2, 6)
    assert found.lost_where == {
        "not_captured": 1, "duplicate": 1, "superseded": 2, "failed": 1, "presented": 1,
    }  # fmt: skip
    assert found.duplicated == 0
    assert found.seen_fps == pytest.approx(1e3 / 70)


def test_a_number_presented_twice_is_duplicated() -> None:
    run = Run(3)
    run.frame(1)
    run.frame(2)
    run.frame(2, seen_ms=None)  # captured and presented once more; on screen nothing changed
    run.frame(3)
    assert run.result().duplicated == 1


def test_a_number_that_comes_back_is_duplicated() -> None:
    run = Run(3)
    for number in (1, 2, 3):
        run.frame(number)
    run.see(2, int(run.drawn[3]) + 6 * MS)
    found = run.result()
    assert found.duplicated == 1
    assert found.capture_to_screen_ms.p99 == pytest.approx(5)  # the first sight counts


def test_the_same_event_counts_once() -> None:
    run = Run(3)
    run.frame(1)
    run.frame(2)
    run.frame(1, seen_ms=15)  # presented again after a later one, and seen again
    run.frame(3)
    assert run.result().duplicated == 1


def test_nothing_seen() -> None:
    run = Run(4)
    found = run.result()
    assert (found.source_frames, found.seen, found.lost) == (4, 0, 4)
    assert found.capture_to_screen_ms.p50 is None
    assert found.seen_fps == 0
    assert json.loads(json.dumps(found.to_json()))["capture_to_screen_ms"]["p99"] is None


# --- stamps, children, options ------------------------------------------------------------------


def test_stamps_are_shared(tmp_path: Path) -> None:
    mine = Stamps.create(tmp_path / "stamps")
    theirs = Stamps(tmp_path / "stamps")
    theirs.drawn[7] = 123
    theirs.saw(7, 456, 400)
    theirs.looked(True)
    theirs.looked(False)
    assert mine.drawn[7] == 123
    assert mine.unreadable == 1
    assert [column.tolist() for column in mine.sightings()] == [[7], [456], [400]]


def test_a_child_ends_when_its_parent_is_killed() -> None:
    program = (
        "import sys, time\n"
        "from overlay.latency.child import Child\n"
        "child = Child('tests.overlay.latency_child', [])\n"
        "print(child.ready['pid'], flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert _alive(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
        deadline = time.monotonic() + 10
        while _alive(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_child_that_stops_is_gone() -> None:
    with Child("tests.overlay.latency_child", []) as child:
        pid = child.ready["pid"]
        assert child.ended is None
        assert _alive(pid)
    assert not _alive(pid)
    assert child.ended is not None
    child.stop()


def test_a_child_that_cannot_start_says_why() -> None:
    with pytest.raises(DisplayLost, match="no display for a test"):
        Child("tests.overlay.latency_child", ["error"])
    with pytest.raises(OverlayError, match="ended with status 9"):
        Child("tests.overlay.latency_child", ["crash"])


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    latency.add_arguments(parser)
    return parser.parse_args(words)


def test_options() -> None:
    plan = latency.plan(parse("--model", "bilinear", "--rate", "30", "--seconds", "2", "--vsync"))
    assert (plan.source_size, plan.rate_hz, plan.seconds) == ((480, 270), 30, 2)
    assert plan.settings.model == "bilinear"
    assert plan.settings.output == (960, 540)
    assert plan.settings.vsync
    assert not plan.settings.pointer
    assert latency.plan(parse("--pointer")).settings.pointer
    assert latency.plan(parse("--scale", "3")).settings.output is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source-size", "100x100"], "--source-size: 100x100 is too small"),
        (["--source-size", "big"], "--source-size: 'big': expected WIDTHxHEIGHT"),
        (["--rate", "0"], "--rate: expected 1 to 240 Hz, not 0"),
        (["--seconds", "0"], "--seconds: expected 0.5 to 1032 at 60 Hz, not 0"),
        (["--seconds", "500", "--rate", "240"], "--seconds: expected 0.5 to 213 at 240 Hz"),
        (["--present", "offscreen"], "--present: the self-test looks at the screen"),
        (["--hud-corner", "bottom-left"], "--hud-corner: bottom-left is where the coded strip is"),
        (["--fit", "fill"], "--fit: fill cuts off the coded strip"),
    ],
)
def test_bad_options(words: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        latency.plan(parse(*words))


def test_the_verdict_needs_to_know_the_others() -> None:
    assert CpuUse(1.0, 0.5, 0.55).verdict == "quiet"
    assert CpuUse(1.0, 0.5, 1.5).verdict == "loaded"
    assert CpuUse(1.0, 0.5, None).verdict == "unknown"
    assert CpuUse(1.0, 0.5, 0.4).other_cores == 0


# --- the whole loop -----------------------------------------------------------------------------


def test_no_display_is_said_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":9876")
    with pytest.raises(DisplayLost, match="9876"):
        latency.run(parse("--seconds", "1"))


@pytest.fixture
def own_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.mark.display
@pytest.mark.usefixtures("display", "own_locks")
def test_the_loop(capsys: pytest.CaptureFixture[str]) -> None:
    before = _children()
    assert latency.run(parse("--seconds", "3", "--model", "bilinear", "--json")) == 0
    said = json.loads(capsys.readouterr().out)
    late = said["capture_to_screen_ms"]
    assert 0 < late["p50"] <= late["p95"] <= late["p99"]
    assert late["p50"] < 500
    assert 3 * 10 <= said["source_frames"] <= 3 * 61
    assert said["seen"] + said["lost"] == said["source_frames"]
    assert sum(said["lost_where"].values()) == said["lost"]
    assert said["seen"] > said["source_frames"] / 3
    assert 0 <= said["duplicated"] <= said["source_frames"] / 10
    assert 3 < said["seen_fps"] <= said["source_fps"] * 1.05
    assert said["source_fps"] < 61
    stages = {name: value["p50"] for name, value in said["stages_ms"].items()}
    assert list(stages) == ["drawn_to_ready", *STAGES, "presented_to_seen"]
    assert stages["drawn_to_ready"] > 0
    assert stages["capture"] > 0
    assert 0.2 * late["p50"] < sum(stages.values()) < 3 * late["p50"]
    assert 0 < said["probe_period_ms"]["p50"] < 100
    assert said["output_size"] == "960x540"
    assert said["source_size"] == "480x270"
    assert said["model"] == "bilinear"
    assert said["frames"]["captured"] >= said["seen"]
    assert said["machine"]["cores"] >= 1
    assert _children() == before


@pytest.mark.display
@pytest.mark.usefixtures("display", "own_locks")
@pytest.mark.parametrize("helpers", [1, 2])  # while it opens; while it runs
def test_sigterm_leaves_nothing_behind(helpers: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "overlay", "latency", "--seconds", "60", "--model", "bilinear"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with process:
        deadline = time.monotonic() + 30
        while len(_children(process.pid)) < helpers and time.monotonic() < deadline:
            time.sleep(0.1)
        children = _children(process.pid)
        assert len(children) >= helpers
        process.terminate()
        assert process.wait(15) == 143
    assert not any(_alive(pid) for pid in children)
    assert not list(tmp_path.glob("overlay-latency-*"))


def _children(parent: int | None = None) -> set[int]:
    """List the self-test's helpers that run, of any parent that is alive or of one."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_bytes().split(b"\0")
            status = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        helper = any(word in (b"overlay.latency.source", b"overlay.latency.probe") for word in line)
        if helper and int(status[1]) == (parent or os.getpid()):
            found.add(int(entry.name))
    return found
