"""The real program over Minetest: a game drawn by OpenGL, with a menu that takes clicks.

Minetest's pause menu is laid out for 800x600, so that in so small a window only its upper left
part is to be seen, with the button "Continue".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from overlay.frame import Region
from tests.games import RunningGame
from tests.live.helpers import (
    Overlay,
    Screen,
    assert_covered,
    assert_marker_on_screen,
    assert_trace_adds_up,
    box_of,
    difference,
    still_minetest,
    wait_for,
)

pytestmark = [pytest.mark.game, pytest.mark.slow, pytest.mark.timeout(300)]

_MENU = Region(345, 205, 135, 65)  # a part of the pause menu, in the game's pixels
_ON_BUTTON = (400, 238)  # "Continue"


@pytest.fixture
def screen(any_display: str) -> Iterator[Screen]:
    with Screen(any_display) as screen:
        yield screen


@pytest.fixture
def minetest(screen: Screen, tmp_path: Path) -> Iterator[RunningGame]:
    """Minetest in the screen's corner, where that of the overlay lies over it."""
    home = tmp_path / "home"
    home.mkdir()
    with still_minetest(screen, home) as game:
        screen.move_window(game.window_id, 0, 0)
        screen.play(game.window_id)
        yield game


class Menu:
    """The pause menu, as the game draws it and as the player sees it."""

    def __init__(self, overlay: Overlay, game: Region) -> None:
        self.overlay = overlay
        self.game = game

    def picture(self) -> np.ndarray:
        """Give its place in the newest captured frame."""
        part = _MENU
        return self.overlay.captured.newest()[
            part.top : part.top + part.height, part.left : part.left + part.width
        ]

    def press_escape(self) -> None:
        """Open it, and see it."""
        before = self.picture()
        self.overlay.screen.tap("escape")
        wait_for("the menu opens", lambda: (difference(before, self.picture()) > 20).mean() > 0.4)

    def hover(self, x: int, y: int) -> None:
        """Move the mouse to a pixel of the game, as from where it is."""
        screen = self.overlay.screen
        left, top = screen.place
        screen.move_by(self.game.left + x - left, self.game.top + y - top)
        assert screen.place == (self.game.left + x, self.game.top + y)

    def rest(self) -> np.ndarray:
        """Wait until nothing moves behind it; give its picture."""

        def still() -> bool:
            before, frames = self.picture(), len(self.overlay.captured.notes())
            wait_for("frames", lambda: len(self.overlay.captured.notes()) > frames + 10)
            return bool(difference(before, self.picture()).max() < 4)

        wait_for("a still menu", still)
        return self.picture()

    def lit(self, dark: np.ndarray) -> Region | None:
        """Give the part around the button, in the game's pixels, that is not as it was."""
        changed = (difference(dark, self.picture()) > 8).astype(np.uint8)
        labels = cv2.connectedComponents(changed, connectivity=4)[1]
        label = labels[_ON_BUTTON[1] - _MENU.top - 8, _ON_BUTTON[0] - _MENU.left - 40]
        box = box_of(labels == label) if label else None  # beside the text
        return box and Region(_MENU.left + box.left, _MENU.top + box.top, *box.size)


def test_minetest_covered_seen_and_played(
    screen: Screen, minetest: RunningGame, tmp_path: Path
) -> None:
    options = ("--model", "bilinear", "--hud", "off")
    with Overlay(screen, minetest.window_id, tmp_path, *options, marker=True) as overlay:
        captured = overlay.captured
        game = screen.region(minetest.window_id)
        assert_covered(overlay)
        assert_marker_on_screen(overlay)

        # The mouse turns the player, whom the game's own pointer, kept in the middle, steers.
        for _ in range(12):
            seen = {note.checksum for note in captured.notes()}
            screen.move_by(25, 0)
            wait_for("a new view", lambda seen=seen: captured.notes()[-1].checksum not in seen)

        # Keys: Escape opens the menu, and the pointer is the player's.
        menu = Menu(overlay, game)
        menu.press_escape()
        menu.hover(20, 200)
        dark = menu.rest()

        # The button lights up, in the game and where the overlay shows it.
        shown = overlay.picture()
        menu.hover(*_ON_BUTTON)
        wait_for("the button lights up", lambda: menu.lit(dark) is not None)
        button = menu.lit(dark)
        assert button is not None
        assert button.left <= _ON_BUTTON[0] < button.left + button.width
        assert button.top <= _ON_BUTTON[1] < button.top + button.height
        assert button.width < 120
        assert button.height < 40
        menu.hover(button.left + 10, button.top + 5)  # the drawn cursor leaves its other end
        part = Region(2 * button.left + 60, 2 * button.top + 4, 100, 2 * button.height - 8)
        rows = slice(part.top, part.top + part.height)
        columns = slice(part.left, part.left + part.width)
        wait_for(
            "it is seen to light up",
            lambda: (difference(shown, overlay.picture())[rows, columns] > 6).mean() > 0.5,
        )

        # It does so from edge to edge and no further: the pointer is where it is seen to be.
        # (Minetest's own sense of the button is up to 4 pixels off, also without an overlay.)
        right, bottom = button.left + button.width, button.top + button.height
        x, y = _ON_BUTTON
        inside = [(button.left + 5, y), (right - 6, y), (x, button.top + 6), (x, bottom - 6)]
        outside = [(button.left - 6, y), (right + 5, y), (x, button.top - 6), (x, bottom + 5)]
        for on, off in zip(inside, outside, strict=True):
            menu.hover(*on)
            wait_for(f"lit at {on}", lambda: menu.lit(dark) is not None)
            menu.hover(*off)
            wait_for(f"dark at {off}", lambda: menu.lit(dark) is None)

        # A click where the overlay shows the button goes on with the game.
        menu.hover(*_ON_BUTTON)
        screen.click()
        wait_for("the menu closes", lambda: (difference(dark, menu.picture()) > 20).mean() > 0.4)
        assert_marker_on_screen(overlay)
        result = overlay.end()
        assert [note for note in captured.notes() if note.marked] == []
        assert_trace_adds_up(overlay, result)
