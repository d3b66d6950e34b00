"""Kill tests: what can go wrong in mid-run, on a real display, with the real program.

Each ends in recovery or in one clear line with the right exit code, and always in a complete,
readable trace.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from overlay.trace import Outcome
from overlay.trace.csvfile import read_trace
from tests.conftest import xvfb
from tests.games import FakeGame

pytestmark = pytest.mark.display


class Running:
    """`overlay run` over a small game, in a process of its own."""

    def __init__(
        self, display: str, tmp_path: Path, *arguments: str, state: Path | None = None
    ) -> None:
        self.trace = tmp_path / "run.csv"
        self._out: IO[str] = (tmp_path / "out.txt").open("w+")
        self._err: IO[str] = (tmp_path / "err.txt").open("w+")
        env = {
            **os.environ,
            "DISPLAY": display,
            "XDG_STATE_HOME": str(state or tmp_path),
            "PYTHONFAULTHANDLER": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "overlay", "run", "--model", "bilinear", "--hud", "off",
             "--scale", "2", "--trace", str(self.trace), "--json", *arguments],
            env=env, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._err,
        )  # fmt: skip

    def wait_for_rows(self, more: int = 5) -> None:
        """Wait until `more` more frames are in the trace's file."""
        goal = self.rows + more
        self.wait_until(lambda: self.rows >= goal, f"{more} more frames")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            if self.process.poll() is not None:
                pytest.fail(f"overlay ended ({self.process.returncode}): {self.errors}")
            if time.monotonic() > deadline:
                self.process.send_signal(signal.SIGABRT)  # its threads' stacks are the clue
                self.process.wait(10)
                pytest.fail(f"no {what} in 30 s: {self.errors}")
            time.sleep(0.05)

    def end(self, code: int) -> dict[str, Any]:
        """Wait for the end, check exit code and trace, and give the JSON."""
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"overlay did not end: {self.errors}")
        assert self.process.returncode == code, self.errors
        assert "Traceback" not in self.errors
        table = read_trace(self.trace)
        assert table.damage is None
        assert len(table) > 0
        assert table.count(Outcome.PENDING) == 0
        self._out.seek(0)
        text = self._out.read()
        return json.loads(text) if text else {}

    @property
    def rows(self) -> int:
        try:
            lines = self.trace.read_bytes().splitlines(keepends=True)
        except OSError:
            return 0
        return sum(line[:1].isdigit() and line.endswith(b"\n") for line in lines)

    @property
    def errors(self) -> str:
        self._err.flush()
        return Path(self._err.name).read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self._out.close()
        self._err.close()


@contextlib.contextmanager
def running(display: str, tmp_path: Path, game: FakeGame, *arguments: str) -> Iterator[Running]:
    run = Running(display, tmp_path, "--pid", str(game.pid), *arguments)
    try:
        run.wait_for_rows()
        yield run
    finally:
        run.close()


@pytest.fixture
def game(display: str) -> Iterator[FakeGame]:
    with FakeGame(display=display, size=(240, 136)) as found:
        found.animate(60)
        yield found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_a_summary(
    display: str, tmp_path: Path, game: FakeGame, number: signal.Signals, code: int
) -> None:
    with running(display, tmp_path, game) as run:
        run.process.send_signal(number)
        result = run.end(code)
    assert result["frames"]["captured"] == len(read_trace(run.trace))


def test_sigkill_leaves_a_readable_trace(display: str, tmp_path: Path, game: FakeGame) -> None:
    with running(display, tmp_path, game) as run:
        run.process.kill()
        run.process.wait(10)
        table = read_trace(run.trace)
        assert len(table) >= 5
        assert table.damage is not None
        assert "incomplete" in table.damage or "end" in table.damage


def test_the_game_closing_after_frames_is_a_good_end(
    display: str, tmp_path: Path, game: FakeGame
) -> None:
    with running(display, tmp_path, game) as run:
        game.quit()
        assert run.end(0)["frames"]["presented"] > 0


def test_the_game_dying_is_a_good_end_too(display: str, tmp_path: Path, game: FakeGame) -> None:
    with running(display, tmp_path, game) as run:
        game.kill()
        assert run.end(0)["frames"]["presented"] > 0


def test_a_resized_game_goes_on(display: str, tmp_path: Path, game: FakeGame) -> None:
    with running(display, tmp_path, game) as run:
        for size in [(300, 200), (161, 91), (240, 136)]:
            game.resize(*size)
            run.wait_for_rows(20)
        run.process.send_signal(signal.SIGTERM)
        run.end(143)
    widths = set(read_trace(run.trace).sizes[0].tolist())
    assert {240, 300, 161} <= widths


def test_a_minimised_game_stops_frames_and_comes_back(openbox: str, tmp_path: Path) -> None:
    with FakeGame(display=openbox, size=(240, 136)) as game:
        game.animate(60)
        with running(openbox, tmp_path, game) as run:
            game.minimise()
            time.sleep(0.8)
            still = run.rows
            time.sleep(0.8)
            assert run.rows <= still + 1, "frames of a minimised game"
            game.restore()
            run.wait_for_rows(20)
            run.process.send_signal(signal.SIGTERM)
            run.end(143)


def test_a_moved_game_goes_on(display: str, tmp_path: Path, game: FakeGame) -> None:
    with running(display, tmp_path, game) as run:
        game.move(300, 200)
        run.wait_for_rows(20)
        run.process.send_signal(signal.SIGTERM)
        run.end(143)


def test_a_display_that_dies_ends_it_with_exit_code_6(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(contextlib.ExitStack())
        name = server.enter_context(xvfb("1024x768x24"))
        game = stack.enter_context(FakeGame(display=name, size=(240, 136)))
        game.animate(60)
        run = stack.enter_context(running(name, tmp_path, game))
        server.close()
        run.end(6)
        errors = [line for line in run.errors.splitlines() if "overlay: error" in line]
        assert len(errors) == 1, run.errors


def test_a_second_overlay_on_the_same_window_says_so(
    display: str, tmp_path: Path, game: FakeGame
) -> None:
    with running(display, tmp_path, game) as run:
        (tmp_path / "second").mkdir()
        second = Running(display, tmp_path / "second", "--pid", str(game.pid), state=tmp_path)
        try:
            second.process.wait(30)
            assert second.process.returncode == 2, second.errors
            assert f"already runs over this window (process {run.process.pid})" in second.errors
        finally:
            second.close()
        run.wait_for_rows(5)
        run.process.send_signal(signal.SIGTERM)
        run.end(143)


def test_no_window_matches(display: str, tmp_path: Path, game: FakeGame) -> None:
    run = Running(display, tmp_path, "--window", "no such game at all")
    try:
        run.process.wait(30)
        assert run.process.returncode == 3
        assert "no such game at all" in run.errors
    finally:
        run.close()
