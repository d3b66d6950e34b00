"""The pointer over a magnified game: clicks land on what the player sees; and it comes free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xcffib.xproto

from overlay.frame import Region
from tests.games import FakeGame
from tests.live.helpers import GAME_SIZE, Overlay, Screen, assert_covered, wait_for
from tests.overlay.present.player import eventually

pytestmark = [pytest.mark.display, pytest.mark.slow, pytest.mark.timeout(300)]

_CURSOR_PX = 15  # width and height; its middle points
_OPTIONS = ("--model", "bilinear", "--hud", "off")


@pytest.fixture
def screen(any_display: str) -> Iterator[Screen]:
    with Screen(any_display) as screen:
        yield screen


@pytest.fixture
def game(screen: Screen) -> Iterator[FakeGame]:
    with FakeGame(screen.display, pos=(500, 300), size=GAME_SIZE) as game:
        give_cursor(screen, game.window_id)
        screen.play(game.window_id)
        yield game


def give_cursor(screen: Screen, window: int) -> None:
    """Give a window a cursor: a red square, the pixel in its middle green."""
    core, connection = screen.core, screen.connection
    shape, mask, gc, cursor = (connection.generate_id() for _ in range(4))
    whole = xcffib.xproto.RECTANGLE.synthetic(0, 0, _CURSOR_PX, _CURSOR_PX)
    middle = _CURSOR_PX // 2
    dot = xcffib.xproto.RECTANGLE.synthetic(middle - 1, middle - 1, 3, 3)
    core.CreatePixmap(1, shape, screen.root, _CURSOR_PX, _CURSOR_PX)
    core.CreatePixmap(1, mask, screen.root, _CURSOR_PX, _CURSOR_PX)
    core.CreateGC(gc, shape, xcffib.xproto.GC.Foreground, [1])
    core.PolyFillRectangle(shape, gc, 1, [whole])
    core.PolyFillRectangle(mask, gc, 1, [whole])
    core.ChangeGC(gc, xcffib.xproto.GC.Foreground, [0])
    core.PolyFillRectangle(shape, gc, 1, [dot])
    core.CreateCursor(cursor, shape, mask, 65535, 0, 0, 0, 65535, 0, middle, middle)
    core.ChangeWindowAttributes(window, xcffib.xproto.CW.Cursor, [cursor])
    core.GetInputFocus().reply()


def seen_pointer(overlay: Overlay) -> tuple[float, float] | None:
    """Find on the screen what the drawn cursor points at: a place on the desktop."""
    shown = overlay.picture().astype(int)
    green = (shown[..., 1] > 180) & (shown[..., 0] < 90) & (shown[..., 2] < 90)
    if not green.any():
        return None
    rows, columns = green.nonzero()
    # The dot's middle; at an edge a part of the dot is cut off.
    return (
        overlay.region.left + float(columns.mean()) + 0.5,
        overlay.region.top + float(rows.mean()) + 0.5,
    )


def point_at(overlay: Overlay, x: int, y: int) -> None:
    """Move the mouse as a player does: until the cursor that is *seen* is there."""

    def there() -> bool:
        seen = seen_pointer(overlay)
        if seen is None:
            return False
        away = x + 0.5 - seen[0], y + 0.5 - seen[1]
        if max(map(abs, away)) <= 1.5:
            return True
        steps = [round(distance / 2) for distance in away]
        if steps == [0, 0]:
            steps = [(distance > 1.5) - (distance < -1.5) for distance in away]
        overlay.screen.move_by(*steps)
        eventually(lambda: seen_pointer(overlay) != seen, 1.0)
        return False

    wait_for(f"the cursor is seen at {x}, {y}", there)


def is_free(screen: Screen) -> bool:
    """Push the mouse about: whether it gets everywhere."""
    screen.move_by(-3000, -3000)
    corner = screen.place
    screen.move_by(3000, 3000)
    return corner == (0, 0) and screen.place == (1919, 1079)


def is_confined(screen: Screen, game: Region) -> bool:
    """Push the mouse about: whether it stays in the game."""
    screen.move_by(-3000, -3000)
    corner = screen.place
    screen.move_by(3000, 3000)
    last = game.left + game.width - 1, game.top + game.height - 1
    return corner == (game.left, game.top) and screen.place == last


def test_a_click_lands_on_what_is_seen_there(
    screen: Screen, game: FakeGame, tmp_path: Path
) -> None:
    where = Region(*game.where())
    screen.move_to(where.left + 240, where.top + 100)
    with Overlay(screen, game.window_id, tmp_path, *_OPTIONS) as overlay:
        assert_covered(overlay)
        shown = overlay.region
        assert shown.size == (960, 540)
        wait_for("the game's cursor is drawn", lambda: seen_pointer(overlay) is not None)
        right, bottom = shown.width - 1, shown.height - 1
        corners = [(0, 0), (right, 0), (0, bottom), (right, bottom)]
        for x, y in [*corners, (right // 2, bottom // 2), (100, 411), (777, 30), (333, 222)]:
            point_at(overlay, shown.left + x, shown.top + y)
            screen.click()
            press = game.wait_event("button_press", 10)
            assert abs(press["x"] - x / 2) <= 1, (x, y, press)
            assert abs(press["y"] - y / 2) <= 1, (x, y, press)
        overlay.end()


def end_by_key(overlay: Overlay) -> None:
    overlay.end()


def end_by_terminate(overlay: Overlay) -> None:
    overlay.process.terminate()
    overlay.process.wait(30)


def end_by_crash(overlay: Overlay) -> None:
    overlay.process.kill()
    overlay.process.wait(30)


@pytest.mark.parametrize("end", [end_by_key, end_by_terminate, end_by_crash])
def test_the_pointer_is_free_after_the_end(
    screen: Screen, game: FakeGame, tmp_path: Path, end: Any
) -> None:
    where = Region(*game.where())
    with Overlay(screen, game.window_id, tmp_path, *_OPTIONS) as overlay:
        wait_for("the pointer is confined", lambda: is_confined(screen, where))
        end(overlay)
        wait_for("the pointer is free", lambda: is_free(screen))
        wait_for("the overlay is gone", lambda: screen.overlay_window() is None)


def test_the_pointer_is_free_by_hotkey_and_while_another_window_has_the_focus(
    screen: Screen, game: FakeGame, tmp_path: Path
) -> None:
    where = Region(*game.where())
    with (
        FakeGame(screen.display, title="Other", pos=(1500, 850), size=(300, 200)) as other,
        Overlay(screen, game.window_id, tmp_path, *_OPTIONS) as overlay,
    ):
        screen.play(game.window_id)
        wait_for("the pointer is confined", lambda: is_confined(screen, where))
        wait_for("a cursor is drawn", lambda: seen_pointer(overlay) is not None)

        screen.tap("ctrl", "alt", "m")
        wait_for("the key frees the pointer", lambda: is_free(screen))
        wait_for("no cursor is drawn", lambda: seen_pointer(overlay) is None)
        screen.tap("ctrl", "alt", "m")
        wait_for("the key confines it again", lambda: is_confined(screen, where))

        screen.play(other.window_id)
        wait_for("the pointer is free without focus", lambda: is_free(screen))
        screen.play(game.window_id)
        wait_for("the focus confines it again", lambda: is_confined(screen, where))
        wait_for("a cursor is drawn", lambda: seen_pointer(overlay) is not None)
        overlay.end()
