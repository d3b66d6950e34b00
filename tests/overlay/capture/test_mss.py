"""The mss back end: its contract, and its pace."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from overlay.capture import CaptureSource
from overlay.capture.mss import MssSource
from overlay.errors import BackendUnavailable, SettingsError
from overlay.frame import Region, Size
from tests.contracts.capture import CaptureContract, Stage, take
from tests.games import FakeGame, decode, picture

pytestmark = pytest.mark.display


class ScreenStage(Stage):
    def __init__(self, game: FakeGame) -> None:
        self.game = game
        self.number = 100

    def open(self) -> CaptureSource:
        return MssSource(self.region(), max_hz=200, display=self.game.display)

    def change(self) -> None:
        self.number += 1
        self.game.draw(self.number)

    def region(self) -> Region:
        return Region(*self.game.where())


class TestContract(CaptureContract):
    @pytest.fixture
    def stage(self, display: str) -> Iterator[Stage]:
        with FakeGame(display, number=100) as game:
            game.raise_()
            yield ScreenStage(game)


def test_pixels_are_those_on_the_screen(display: str) -> None:
    with FakeGame(display, number=77) as game:
        game.raise_()
        with MssSource(Region(*game.where()), display=display) as source:
            frame = take(source)
            assert np.array_equal(frame.pixels[..., :3], picture(77, (480, 270)))


def test_an_equal_picture_gives_no_frame(display: str) -> None:
    with (
        FakeGame(display, number=1) as game,
        MssSource(Region(*game.where()), max_hz=100, display=display) as source,
    ):
        take(source)
        game.repeat()
        assert source.grab(0.2) is None
        game.draw(2)
        assert decode(take(source).pixels) == 2


def test_it_polls_at_the_rate_given(display: str) -> None:
    with FakeGame(display) as game, MssSource(Region(*game.where()), max_hz=20) as source:
        game.animate(200)
        take(source)
        started = time.perf_counter()
        for _ in range(10):
            take(source)
        assert 0.42 <= time.perf_counter() - started < 2


def test_a_monitor_by_number(display: str) -> None:
    with MssSource(1, display=display) as source:
        assert source.region == Region(0, 0, 1920, 1080)
        assert take(source).size == Size(1920, 1080)


@pytest.mark.parametrize(
    "region", [Region(1900, 0, 100, 100), Region(-1, 0, 10, 10), Region(0, 0, 0, 10)]
)
def test_a_region_outside_the_screen_is_refused(display: str, region: Region) -> None:
    with pytest.raises(SettingsError, match=r"not within the desktop 1920x1080\+0\+0"):
        MssSource(region, display=display)


def test_settings_are_checked(display: str) -> None:
    with pytest.raises(SettingsError, match="no monitor 9; there are 1 to 1"):
        MssSource(9, display=display)
    with pytest.raises(SettingsError, match="above 0 Hz, not 0"):
        MssSource(1, max_hz=0, display=display)
    with pytest.raises(BackendUnavailable, match="cannot be read with mss"):
        MssSource(1, display=":4711")
