"""The X11 back end: its contract, and what can happen to a window."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from overlay.capture import CaptureSource
from overlay.capture.x11 import X11DisplayLost, X11Source
from overlay.errors import BackendUnavailable, SourceClosed, WindowNotFound
from overlay.frame import Frame, Region, Size
from tests.conftest import xvfb_process
from tests.contracts.capture import (
    CaptureContract,
    Stage,
    nothing_leaks,
    open_files,
    shared_memory_segments,
    take,
)
from tests.games import FakeGame, crispy_doom, decode, picture

pytestmark = pytest.mark.display

COVER = 0xA5A5  # the number the covering window shows


class FakeGameStage(Stage):
    def __init__(self, game: FakeGame) -> None:
        self.game = game
        self.number = 100

    def open(self) -> CaptureSource:
        return X11Source(self.game.window_id, self.game.display)

    def change(self) -> None:
        self.number += 1
        self.game.draw(self.number)

    def region(self) -> Region:
        return Region(*self.game.where())


class TestContract(CaptureContract):
    @pytest.fixture
    def stage(self, any_display: str) -> Iterator[Stage]:
        with FakeGame(any_display, number=100) as game:
            yield FakeGameStage(game)


def until(source: CaptureSource, number: int, size: tuple[int, int] | None = None) -> Frame:
    """Grab until the frame that shows `number` (in this size); older ones may come first.

    A window manager resizes when it pleases, so the game may draw in the old size before.
    """
    deadline = time.monotonic() + 5
    seen = []
    while time.monotonic() < deadline:
        frame = source.grab(0.2)
        if frame is not None:
            seen.append(decode(frame.pixels))
            if seen[-1] == number and size in (None, frame.size):
                return frame
    raise AssertionError(f"never saw {number}, only {seen}")


def grab_on(source: CaptureSource, seconds: float = 10.0) -> None:
    """Grab until something is raised."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        source.grab(0.05)


@pytest.mark.parametrize("depth", [24, 32])
def test_pixels_are_exactly_those_of_the_game(any_display: str, depth: int) -> None:
    with (
        FakeGame(any_display, depth=depth, size=(333, 187)) as game,
        X11Source(game.window_id, any_display) as source,
    ):
        for number in (1, 2, 54321):
            game.draw(number)
            frame = until(source, number)
            assert np.array_equal(frame.pixels[..., :3], picture(number, (333, 187)))


def test_border_of_the_window_is_not_captured(display: str) -> None:
    with (
        FakeGame(display, border=7, number=5) as game,
        X11Source(game.window_id, display) as source,
    ):
        frame = take(source)
        assert np.array_equal(frame.pixels[..., :3], picture(5, (480, 270)))
        assert frame.region == Region(*game.where()) == Region(107, 87, 480, 270)


def test_every_drawing_is_captured_once(display: str) -> None:
    with FakeGame(display) as game, X11Source(game.window_id, display) as source:
        take(source)
        while source.grab(0.2) is not None:
            pass
        numbers = []
        for number in range(1, 41):
            game.draw(number)
            numbers.append(decode(take(source).pixels))
            assert source.grab(0.0) is None
        assert numbers == list(range(1, 41))


def test_moves_are_followed(any_display: str) -> None:
    with (
        FakeGame(any_display) as game,
        X11Source(game.window_id, any_display) as source,
    ):
        take(source)
        game.move(321, 234)
        game.draw(9)
        until(source, 9)
        source.grab(0.2)
        assert source.region == Region(*game.where())
        assert abs(source.region.left - 321) < 20


def test_resizes_are_followed(any_display: str) -> None:
    with (
        FakeGame(any_display) as game,
        X11Source(game.window_id, any_display) as source,
    ):
        held = take(source)
        kept = held.pixels.copy()
        for number, size in enumerate([(640, 360), (320, 180), (640, 360), (480, 270)], 1):
            game.resize(*size)
            game.draw(number)
            frame = until(source, number, size)
            assert source.region == Region(*game.where())
            assert np.array_equal(frame.pixels[..., :3], picture(number, size))
        assert np.array_equal(held.pixels, kept)


def test_storm_of_resizes_ends_with_the_last_picture(any_display: str) -> None:
    with (
        FakeGame(any_display) as game,
        X11Source(game.window_id, any_display) as source,
    ):
        take(source)
        files, segments = open_files(), shared_memory_segments()
        game.animate(200)
        for step in range(40):
            game.resize(480 - step % 7 * 16, 270 - step % 5 * 9)
            source.grab(0.0)
        game.animate(0)
        game.resize(480, 270)
        game.draw(60000)
        frame = until(source, 60000, (480, 270))
        assert np.array_equal(frame.pixels[..., :3], picture(60000, (480, 270)))
        assert open_files() == files
        assert shared_memory_segments() <= segments + 2  # the buffers of old sizes are freed


def test_minimised_window_gives_nothing_and_comes_back(any_display: str) -> None:
    with (
        FakeGame(any_display) as game,
        X11Source(game.window_id, any_display) as source,
    ):
        take(source)
        for number in (1, 2):
            game.minimise()
            deadline = time.monotonic() + 3
            while source.visible and time.monotonic() < deadline:
                source.grab(0.05)
            assert not source.visible
            game.draw(number)
            assert source.grab(0.2) is None
            game.restore()
            frame = until(source, number)
            assert source.visible
            assert np.array_equal(frame.pixels[..., :3], picture(number, (480, 270)))


def test_opening_on_a_minimised_window_waits_for_it(any_display: str) -> None:
    with FakeGame(any_display) as game:
        game.minimise()
        time.sleep(0.3)
        with X11Source(game.window_id, any_display) as source:
            assert not source.visible
            assert source.grab(0.1) is None
            game.restore()
            game.draw(3)
            assert until(source, 3).size == Size(480, 270)


@pytest.mark.parametrize("how", ["quit", "kill"])
def test_closed_window_ends_the_source(any_display: str, how: str) -> None:
    with (
        FakeGame(any_display) as game,
        X11Source(game.window_id, any_display) as source,
    ):
        take(source)
        game.animate(100)
        take(source)
        getattr(game, how)()
        with pytest.raises(SourceClosed, match=r"window 0x[0-9a-f]+ was closed"):
            grab_on(source)


def test_killed_x_server_is_reported() -> None:
    with xvfb_process() as (name, server), FakeGame(name) as game:
        source = X11Source(game.window_id, name)
        take(source)
        server.kill()
        with pytest.raises(X11DisplayLost, match="X server closed the connection"):
            grab_on(source)
        source.close()
        source.close()


@pytest.mark.parametrize("where", ["whole", "part"])
def test_covering_window_is_never_captured(any_display: str, where: str) -> None:
    size = (700, 500) if where == "whole" else (250, 500)
    with (
        FakeGame(any_display, number=7) as game,
        FakeGame(
            any_display, number=COVER, override=True, title="cover", pos=(60, 40), size=size
        ) as cover,
    ):
        cover.raise_()
        true = picture(7, (480, 270))
        with X11Source(game.window_id, any_display) as source:
            # Opened while covered: the first frame is the game's already.
            assert np.array_equal(take(source).pixels[..., :3], true)
            game.draw(8)
            assert np.array_equal(until(source, 8).pixels[..., :3], picture(8, (480, 270)))
            for number, change in enumerate(
                [
                    lambda: game.resize(600, 340),
                    lambda: (game.minimise(), time.sleep(0.1), game.restore()),
                    lambda: game.move(130, 90),
                    lambda: game.resize(480, 270),
                ],
                20,
            ):
                game.draw(number)
                until(source, number)
                change()
                cover.raise_()
                deadline = time.monotonic() + 0.3
                while time.monotonic() < deadline:
                    frame = source.grab(0.05)
                    if frame is not None:
                        expected = picture(number, frame.size)
                        assert np.array_equal(frame.pixels[..., :3], expected)


@pytest.mark.parametrize("change", ["open", "resize", "restore"])
def test_stopped_game_under_a_cover_shows_nothing_rather_than_the_cover(
    display: str, change: str
) -> None:
    """A new pixmap holds what was on the screen until the game paints it."""
    with (
        FakeGame(display, number=7) as game,
        FakeGame(
            display, number=COVER, override=True, title="cover", pos=(60, 40), size=(700, 500)
        ) as cover,
    ):
        cover.raise_()
        source = None
        if change != "open":
            source = X11Source(game.window_id, display)
            take(source)
        if change == "restore":
            game.minimise()
            source.grab(0.2)
        os.kill(game.pid, signal.SIGSTOP)
        if change == "open":
            source = X11Source(game.window_id, display)
        command = ["windowsize", str(game.window_id), "600", "340"]
        if change == "restore":
            command = ["windowmap", str(game.window_id)]
        if change != "open":
            subprocess.run(
                ["xdotool", *command], env={**os.environ, "DISPLAY": display}, check=True
            )
        with source:
            deadline = time.monotonic() + 1.0
            while time.monotonic() < deadline:
                frame = source.grab(0.1)
                assert frame is None or change != "open"
                if frame is not None:  # the old size, from before the change
                    assert np.array_equal(frame.pixels[..., :3], picture(7, frame.size))
            os.kill(game.pid, signal.SIGCONT)
            assert np.array_equal(until(source, 7).pixels[..., :3], picture(7, source.region.size))


def test_uncovered_game_that_never_paints_is_still_captured(display: str) -> None:
    """With nothing above it, what the pixmap holds is the game's, however still it stands."""
    with FakeGame(display, number=7) as game:
        os.kill(game.pid, signal.SIGSTOP)
        with X11Source(game.window_id, display) as source:
            frame = take(source, 0.5)
            assert np.array_equal(frame.pixels[..., :3], picture(7, (480, 270)))
        os.kill(game.pid, signal.SIGCONT)


def test_two_sources_of_one_window(display: str) -> None:
    with (
        FakeGame(display) as game,
        X11Source(game.window_id, display) as one,
        X11Source(game.window_id, display) as other,
    ):
        game.draw(5)
        assert until(one, 5).size == until(other, 5).size
        one.close()
        game.draw(6)
        until(other, 6)


def test_shared_memory_is_freed_even_after_a_kill(display: str) -> None:
    before = shared_memory_segments()
    with FakeGame(display) as game:
        code = (
            "import os, signal, sys\n"
            "from overlay.capture.x11 import X11Source\n"
            f"source = X11Source({game.window_id}, {display!r})\n"
            "frame = source.grab(5)\n"
            "assert frame is not None\n"
            "print(os.getpid(), flush=True)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=30
        )
        pid = int(done.stdout)
        assert done.returncode == -signal.SIGKILL
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            with open("/proc/sysvipc/shm") as table:
                left = [line for line in list(table)[1:] if int(line.split()[4]) == pid]
            if not left:
                break
            time.sleep(0.05)
        assert not left
        assert shared_memory_segments() == before
        game.draw(4)  # and the game goes on
        with X11Source(game.window_id, display) as source:
            until(source, 4)


def test_no_such_window(display: str) -> None:
    with nothing_leaks(), pytest.raises(WindowNotFound, match="no X11 window 0x1234567"):
        X11Source(0x1234567, display)


def test_no_such_display() -> None:
    with pytest.raises(BackendUnavailable, match="cannot connect to the X display ':4711'"):
        X11Source(1, ":4711")


def test_damage_during_the_opening_is_not_the_last(
    display: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A covered game draws between the subtraction of old damage and the server's answer."""
    sync = X11Source._sync

    def slow_sync(source: X11Source) -> None:
        source._connection.flush()  # the subtraction is on its way
        time.sleep(0.05)  # three pictures of the game
        sync(source)

    monkeypatch.setattr(X11Source, "_sync", slow_sync)
    with (
        FakeGame(display, pos=(50, 50), size=(200, 100)) as game,
        FakeGame(display, override=True, title="cover", pos=(0, 0), size=(600, 400)) as cover,
    ):
        game.animate(60)
        cover.raise_()
        with X11Source(game.window_id, display) as source:
            for _ in range(3):
                assert take(source).size == Size(200, 100)
            game.resize(210, 110)
            deadline = time.monotonic() + 10
            while take(source).size != Size(210, 110):
                assert time.monotonic() < deadline


@pytest.mark.game
def test_crispy_doom_keeps_changing_under_a_cover(display: str) -> None:
    with (
        crispy_doom(display) as game,
        FakeGame(
            display, number=COVER, override=True, title="cover", pos=(0, 0), size=(1920, 1080)
        ) as cover,
        X11Source(game.window_id, display) as source,
    ):
        cover.raise_()
        background = picture(COVER, (1920, 1080))[3, 3]
        previous = None
        changed = 0
        deadline = time.monotonic() + 60
        # Doom draws some pictures many times over, of its title screen above all.
        while changed < 100:
            assert time.monotonic() < deadline, f"only {changed} new pictures in a minute"
            frame = take(source)
            assert frame.size == Size(480, 270)
            assert frame.pixels[..., :3].max() > 60, "all black"
            marked = (frame.pixels[::8, ::8, :3] == background).all(-1).mean()
            assert marked < 0.2, "the cover was captured"
            if previous is not None:
                changed += not np.array_equal(previous.pixels, frame.pixels)
            previous = frame
