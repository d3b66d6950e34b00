"""Minetest: its worlds stand still, its window is read when it has come to rest."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.games import FakeGame, picture, require
from training.collect import minetest
from training.collect.collect import Task, collect
from training.collect.minetest import Game, Minetest, Window, generated
from training.collect.packaged import private_display
from training.collect.runner import CollectError, Size
from training.collect.store import Store
from training.dataset import find_pairs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Minetest is drawn under Xvfb")

SIZE: Size = (320, 180)


def program(path: Path, script: str) -> str:
    """Write a program that does not do what Minetest does."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("true", "generated no world: no .*places"),
        ('touch "$4/places" "$4/map.sqlite"', "seed 5 has no view; take another"),
        ("echo no such game >&2; exit 3", "status 3: no such game"),
    ],
)
def test_a_world_that_was_not_generated_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    fake = program(tmp_path / "minetest", script)
    monkeypatch.setattr(minetest, "_program", lambda: fake)
    with pytest.raises(CollectError, match=message):
        generated(5, 2)


def test_a_game_that_ends_or_does_not_answer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log.txt"
    log.write_text("out of luck\n")
    with subprocess.Popen(["sleep", "60"]) as process:
        game = Game(process, tmp_path, log)
        monkeypatch.setattr(minetest, "PLACE_S", 0.2)
        with pytest.raises(CollectError, match=r"did not answer within 0 s: out of luck"):
            game.go(3, "1 2 3 0 0")
        assert (tmp_path / "asked").read_text() == "3 1 2 3 0 0"
        (tmp_path / "there").write_text("3")
        game.go(3, "1 2 3 0 0")
        process.kill()
        process.wait()
        with pytest.raises(CollectError, match=r"ended with status -9: out of luck"):
            game.go(3, "1 2 3 0 0")


def test_without_the_game_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minetest, "_program", lambda: None)
    with pytest.raises(CollectError, match="apt install minetest xvfb"):
        Minetest().versions()


@contextmanager
def repeating(game: FakeGame) -> Iterator[None]:
    """Let a game draw its picture again and again."""
    end = threading.Event()

    def draw() -> None:
        while not end.wait(0.03):
            game.repeat()

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@pytest.mark.display
def test_a_picture_counts_when_it_has_come_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    require("Xvfb", "xvfb")
    monkeypatch.setattr(minetest, "STILL_S", 0.3)
    monkeypatch.setattr(minetest, "FRAME_S", 0.1)
    with (
        private_display(*SIZE) as display,
        FakeGame(display, pos=(0, 0), size=SIZE, number=1) as game,
        Window(display, SIZE) as window,
    ):
        with repeating(game):
            first = window.still(None, lambda: None)
        assert np.array_equal(first, picture(1, SIZE))
        monkeypatch.setattr(minetest, "PLACE_S", 1.5)
        refused = pytest.raises(CollectError, match="did not come to rest within 2 s")
        with refused:  # nothing is drawn any more: nobody knows what comes
            window.still(None, lambda: None)
        with repeating(game), refused:  # still the last place's
            window.still(first, lambda: None)
        game.animate(20)
        with refused:
            window.still(None, lambda: None)
        game.animate(0)
        monkeypatch.setattr(minetest, "PLACE_S", 20)
        game.draw(7)
        with repeating(game):
            assert np.array_equal(window.still(first, lambda: None), picture(7, SIZE))


@pytest.mark.game
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_minetest_draws_the_same_views_at_two_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("Xvfb", "xvfb")
    if minetest._program() is None:
        require("minetest", "minetest")
    monkeypatch.setattr(minetest, "RANGE", 40)  # a smaller world
    monkeypatch.setattr(Minetest, "sizes", ((480, 270), (960, 540)))
    runner = Minetest()
    outcome = collect(Task(runner, runner.episodes(2)[0]), Store(tmp_path))
    assert (outcome.what, outcome.frames) == ("kept", 2), outcome.reason
    pairs, problems = find_pairs(tmp_path, split="test", low=270, high=540)
    assert ([pair.frame for pair in pairs], problems) == ([0, 1], [])
