"""The demo: what it says when something is missing, and that it runs as promised."""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from overlay import demo
from overlay.errors import BackendUnavailable, CaptureError, OverlayError, SettingsError
from overlay.frame import Size
from tests.conftest import xvfb
from tests.games import require


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_args, **_kwargs: None)


@pytest.mark.usefixtures("no_programs")
def test_without_the_game_it_says_how_to_get_it() -> None:
    with pytest.raises(
        BackendUnavailable, match=r"apt-get install .*crispy-doom freedoom"
    ) as found:
        demo.find_game()
    assert found.value.exit_code == 4


def test_without_its_data_it_names_freedoom(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_args, **_kwargs: "/usr/games/crispy-doom")
    monkeypatch.setattr(demo, "_IWAD_FOLDERS", (str(tmp_path),))
    monkeypatch.delenv("DOOMWADDIR", raising=False)
    with pytest.raises(BackendUnavailable, match=r"not installed \(Freedoom\)"):
        demo.find_game()
    (tmp_path / "freedoom2.wad").touch()
    assert demo.find_game() == ("/usr/games/crispy-doom", tmp_path / "freedoom2.wad")


@pytest.mark.usefixtures("no_programs")
def test_without_a_display_and_xvfb_it_names_the_package() -> None:
    with ExitStack() as stack, pytest.raises(BackendUnavailable, match=r"apt-get install .*xvfb"):
        demo._start_display(stack, {}, Size(640, 480))


@pytest.mark.display
def test_a_window_manager_counts_only_once_it_maps_windows() -> None:
    openbox = require("openbox", "openbox")
    with xvfb("320x240x24") as display, ExitStack() as stack:
        assert not demo.wait_for_manager(display, 0.3)
        process = demo._start(stack, [openbox], {**os.environ, "DISPLAY": display})
        assert demo.wait_for_manager(display, 30)
        process.send_signal(signal.SIGSTOP)  # it has announced itself, and does nothing
        assert not demo.wait_for_manager(display, 1)
        waking = threading.Timer(1, process.send_signal, [signal.SIGCONT])
        waking.start()
        assert demo.wait_for_manager(display, 30)
        waking.join()


def test_elsewhere_than_on_linux_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    with pytest.raises(SettingsError, match="overlay run --window"):
        demo.run(options())


def test_a_flat_picture_is_blank_and_a_game_is_not() -> None:
    flat = np.full((40, 60, 3), 17, np.uint8)
    assert demo.is_blank(flat)
    noise = np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    assert not demo.is_blank(noise)


def test_a_game_that_ends_at_once_is_not_waited_for(tmp_path: Path) -> None:
    with ExitStack() as stack:
        overlay = demo._start(stack, ["sleep", "60"], os.environ)
        player = demo._start(stack, ["sh", "-c", "exit 7"], os.environ)
        began = time.monotonic()
        with pytest.raises(CaptureError, match=r"ended by itself \(exit code 7\)"):
            demo._wait_for_frame(overlay, player, tmp_path / "trace.csv")
        assert time.monotonic() - began < 10
    assert overlay.poll() == -signal.SIGTERM


def test_the_first_frame_is_waited_for(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    with ExitStack() as stack:
        command = f"echo '# header' > {trace}; sleep 1; echo '0,0,presented,' >> {trace}; sleep 60"
        overlay = demo._start(stack, ["sh", "-c", command], os.environ)
        player = demo._start(stack, ["sleep", "60"], os.environ)
        demo._wait_for_frame(overlay, player, trace)
        assert "presented" in trace.read_text()
        assert overlay.poll() is None


def leave_results(folder: Path, presented: int = 5) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "screenshot.png"), noise)
    (folder / "trace.csv").write_text("id\n0\n")
    summary = {"fps": 30.0, "frames": {"captured": 9, "presented": presented}}
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.mark.parametrize("name", ["screenshot.png", "trace.csv", "summary.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"")])
def test_a_missing_or_empty_result_is_named(tmp_path: Path, name: str, damage: Any) -> None:
    leave_results(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(OverlayError, match=f"left no {name}"):
        demo._report(tmp_path)


def test_a_run_without_frames_is_a_failure(tmp_path: Path) -> None:
    leave_results(tmp_path, presented=0)
    with pytest.raises(OverlayError, match="presented no frame"):
        demo._report(tmp_path)


def test_a_blank_screenshot_is_a_failure(tmp_path: Path) -> None:
    leave_results(tmp_path)
    cv2.imwrite(str(tmp_path / "screenshot.png"), np.zeros((40, 60, 3), np.uint8))
    with pytest.raises(OverlayError, match="shows nothing"):
        demo._report(tmp_path)


def state_and_parent(pid: int) -> tuple[str, int] | None:
    """Read a process's state letter and its parent; None if there is no such process."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return words[0], int(words[1])


def children(pid: int) -> set[int]:
    """Give the processes started by `pid` and by those."""
    every = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    parents = {child: found[1] for child in every if (found := state_and_parent(child))}
    wanted, found_all = {pid}, set[int]()
    while wanted:
        wanted = {child for child, parent in parents.items() if parent in wanted} - found_all
        found_all |= wanted
    return found_all


def alive(pid: int) -> bool:
    found = state_and_parent(pid)
    return found is not None and found[0] != "Z"


@contextmanager
def running_demo(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    for program, package in (("Xvfb", "xvfb"), ("openbox", "openbox"), ("crispy-doom",) * 2):
        require(program, package)
    env = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    process = subprocess.Popen(
        [sys.executable, "-m", "overlay", "demo", "--out", str(folder), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=20)


@pytest.mark.game
@pytest.mark.slow
def test_it_leaves_screenshot_trace_and_summary(tmp_path: Path) -> None:
    with running_demo(tmp_path / "out", "--seconds", "5") as process:
        out, err = process.communicate(timeout=100)
    assert process.returncode == 0, out + err
    folder = tmp_path / "out"
    frames = json.loads((folder / "summary.json").read_text())["frames"]
    with (folder / "trace.csv").open(newline="") as file:
        rows = [row for row in csv.reader(file) if row and not row[0].startswith("#")]
    assert len(rows) - 1 == frames["captured"]
    assert frames["presented"] > 10
    ends = ("presented", "duplicate", "superseded", "failed")
    assert sum(frames[name] for name in ends) == frames["captured"]
    picture = cv2.imread(str(folder / "screenshot.png"))
    assert picture is not None
    assert picture.shape[:2] == (demo.SCREEN.height, demo.SCREEN.width)
    for name in ("screenshot.png", "trace.csv", "summary.json", "summary.txt"):
        assert str(folder / name) in out


@pytest.mark.game
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_it_started(tmp_path: Path, number: signal.Signals) -> None:
    with running_demo(tmp_path / "out", "--seconds", "60", "--model", "fsr1") as process:
        trace = tmp_path / "out" / "trace.csv"
        end = time.monotonic() + 60
        while not (trace.exists() and b",presented," in trace.read_bytes()):
            assert time.monotonic() < end
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        started = children(process.pid)
        assert len(started) >= 4  # Xvfb, openbox, the game, the overlay
        os.kill(process.pid, number)
        process.communicate(timeout=40)
    assert process.returncode == 128 + number
    end = time.monotonic() + 10
    while time.monotonic() < end and any(alive(pid) for pid in started):
        time.sleep(0.1)
    assert not [pid for pid in started if alive(pid)]
