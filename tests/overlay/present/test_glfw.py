"""The presenter with a window: what is seen, who gets keys and clicks, and how it ends."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mss
import numpy as np
import pytest
import xcffib
import xcffib.xproto

import overlay.present.surface as seam
from overlay.errors import DisplayLost, SettingsError
from overlay.frame import Frame, Picture, Pixels, Region, Size
from overlay.present import Command, Look
from overlay.present.glfw import GlfwPresenter, cursor_region, key_action
from overlay.present.hotkeys import bindings
from overlay.present.pointer import CursorSprite
from overlay.window import Window
from tests.contracts.presenter import PresenterContract
from tests.games import FakeGame
from tests.overlay.present.player import OwnServer, Player, eventually, give_red_cursor

pytestmark = pytest.mark.display

ROOT = Path(__file__).resolve().parents[3]


class TestContract(PresenterContract):
    @pytest.fixture
    def presenter(self, display: str) -> Iterator[GlfwPresenter]:
        with GlfwPresenter(Look(scale=2, fit="fit")) as presenter:
            yield presenter


# --- helpers ----------------------------------------------------------------------------------


def window_of(game: FakeGame) -> Window:
    return Window(game.window_id, game.title, "fakegame", game.pid, region_of(game), True)


def region_of(game: FakeGame) -> Region:
    return Region(*game.where())


def plain(region: Region, colour: tuple[int, int, int] = (0, 0, 0)) -> Picture:
    """A picture of one BGR colour, of the game's size."""
    pixels = np.zeros((region.height, region.width, 4), np.uint8)
    pixels[..., :3] = colour
    return Picture(Frame(pixels, 0, 0, 0, region), "source", pixels, 1, "t", "t", "nearest")


def screen(region: Region) -> Pixels:
    """Grab a part of the screen as a player sees it: uint8 BGR, (H, W, 3)."""
    box = dict(left=region.left, top=region.top, width=region.width, height=region.height)
    with mss.MSS() as grabber:
        return np.asarray(grabber.grab(box))[..., :3]


def run(presenter: GlfwPresenter, until: Any, timeout_s: float = 5.0) -> bool:
    """Turn the presenter's loop until something is true."""
    deadline = time.monotonic() + timeout_s
    while not until():
        if time.monotonic() > deadline:
            return False
        presenter.wait(0.01)
    return True


def commands(presenter: GlfwPresenter, count: int) -> list[Command]:
    """Turn the presenter's loop until `count` commands came out of it."""
    got: list[Command] = []
    deadline = time.monotonic() + 5
    while len(got) < count and time.monotonic() < deadline:
        got += presenter.wait(0.05)
    return got


def turn(presenter: GlfwPresenter, seconds: float) -> None:
    """Turn the presenter's loop for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        presenter.wait(0.02)


def attributes(player: Player, window: int) -> Any:
    return player.core.GetWindowAttributes(window).reply()


def stacking(player: Player, *windows: int) -> list[int]:
    """Sort windows from bottom to top."""
    order = list(player.core.QueryTree(player.root).reply().children)

    def top(window: int) -> int:
        while (parent := player.core.QueryTree(window).reply().parent) != player.root:
            window = parent
        return window

    return sorted(windows, key=lambda window: order.index(top(window)))


@pytest.fixture
def desktop(any_display: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Without and with a window manager, as $DISPLAY."""
    monkeypatch.setenv("DISPLAY", any_display)
    return any_display


@pytest.fixture
def managed(openbox: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """With a window manager, as $DISPLAY."""
    monkeypatch.setenv("DISPLAY", openbox)
    return openbox


# --- what is seen -----------------------------------------------------------------------------


def test_covers_follows_and_hides(desktop: str) -> None:
    with Player(desktop) as player, FakeGame(desktop, pos=(600, 400)) as game:
        region = region_of(game)
        with GlfwPresenter(Look(scale=2, pointer=False), window_of(game)) as presenter:
            presenter.follow(region, True)
            presenter.show(plain(region, (10, 200, 30)), None)
            assert presenter.target_size(region.size) == Size(960, 540)
            x, y = region.left + 240 - 480, region.top + 135 - 270
            assert eventually(lambda: (screen(Region(x, y, 960, 540)) == (10, 200, 30)).all())
            assert (screen(Region(x - 2, y - 2, 2, 544)) != (10, 200, 30)).any(axis=2).all()
            assert (screen(Region(x + 960, y - 2, 2, 544)) != (10, 200, 30)).any(axis=2).all()

            game.move(700, 500)
            moved = region_of(game)
            presenter.follow(moved, True)
            presenter.show(plain(moved, (10, 200, 30)), None)
            x, y = moved.left - 240, moved.top - 135
            assert eventually(lambda: (screen(Region(x, y, 960, 540)) == (10, 200, 30)).all())

            presenter.follow(moved, False)
            assert attributes(player, presenter.window_id).map_state == 0
            there = Region(x, y, 960, 540)  # others draw what was covered in their own time
            assert eventually(lambda: not (screen(there) == (10, 200, 30)).all(axis=2).any())
            presenter.follow(moved, True)
            presenter.show(plain(moved, (200, 20, 30)), None)
            assert eventually(lambda: (screen(Region(x, y, 960, 540)) == (200, 20, 30)).all())


def test_over_fills_the_monitor_with_bars(display: str) -> None:
    with FakeGame(display, size=(400, 300)) as game:
        region = region_of(game)
        with GlfwPresenter(Look(pointer=False), window_of(game)) as presenter:
            presenter.follow(region, True)
            presenter.show(plain(region, (0, 0, 255)), None)
            assert presenter.target_size(region.size) == Size(1440, 1080)
            seen = screen(Region(0, 0, 1920, 1080))
            assert (seen[:, 240:1680] == (0, 0, 255)).all()
            assert (seen[:, :240] == 0).all()
            assert (seen[:, 1680:] == 0).all()
            assert presenter.grab().shape == (1080, 1920, 4)


def test_beside_leaves_the_game_in_sight(display: str) -> None:
    with FakeGame(display, pos=(100, 300), number=5) as game:
        region = region_of(game)
        with GlfwPresenter(Look(mode="beside"), window_of(game)) as presenter:
            before = screen(region)
            presenter.follow(region, True)
            presenter.show(plain(region, (0, 0, 255)), None)
            np.testing.assert_array_equal(screen(region), before)
            assert (screen(Region(580, 165, 960, 540)) == (0, 0, 255)).all()


def test_an_unchanged_place_asks_nothing_of_the_server(
    display: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeGame(display, pos=(600, 400)) as game:
        region = region_of(game)
        with GlfwPresenter(Look(scale=2), window_of(game)) as presenter:
            presenter.follow(region, True)
            moves: list[Region] = []
            monkeypatch.setattr(presenter, "_move", moves.append)
            presenter.follow(region, True)
            assert moves == []
            presenter.follow(Region(region.left + 8, region.top, *region.size), True)
            assert moves == [Region(region.left - 232, region.top - 135, 960, 540)]


def test_what_was_covered_is_drawn_again(display: str) -> None:
    with FakeGame(display, pos=(600, 400)) as game:
        region = region_of(game)
        with GlfwPresenter(Look(scale=2, pointer=False), window_of(game)) as presenter:
            presenter.follow(region, True)
            presenter.show(plain(region, (10, 200, 30)), None)
            turn(presenter, 0.1)
            place = Region(region.left, region.top, 480, 270)
            with FakeGame(display, title="Menu", override=True, pos=(600, 400)):
                turn(presenter, 0.1)
                assert not (screen(place) == (10, 200, 30)).all()
            assert run(presenter, lambda: (screen(place) == (10, 200, 30)).all())


def test_a_change_of_monitors_moves_the_overlay(
    display: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with GlfwPresenter(Look()) as presenter:
        presenter.follow(Region(0, 0, 320, 180), True)
        assert presenter.target_size(Size(320, 180)) == Size(1920, 1080)
        monkeypatch.setattr(presenter, "_monitors", lambda: [Region(0, 0, 1280, 720)])
        monkeypatch.setattr(presenter, "_refresh_rate", lambda index: 60.0)
        presenter._on_monitor(None, 0)  # what GLFW calls
        presenter.wait(0)
        assert presenter.target_size(Size(320, 180)) == Size(1280, 720)
        assert presenter.grab().shape == (720, 1280, 4)


def test_wake_is_quick(display: str) -> None:
    with GlfwPresenter(Look(scale=2)) as presenter:
        woken = threading.Event()
        said = [0.0]

        def wake() -> None:
            said[0] = time.perf_counter()
            woken.set()
            presenter.wake()

        delays = []
        for _ in range(30):
            woken.clear()
            timer = threading.Timer(0.01, wake)
            timer.start()
            while not woken.is_set():
                presenter.wait(5)
            delays.append(time.perf_counter() - said[0])
            timer.join()
        assert sorted(delays)[len(delays) // 2] < 0.005


# --- who gets keys and clicks -----------------------------------------------------------------


def test_the_game_keeps_the_keyboard(managed: str) -> None:
    with Player(managed) as player, FakeGame(managed, pos=(300, 200)) as game:
        region = region_of(game)
        player.activate(game.window_id)
        assert eventually(lambda: player.focused == game.window_id)
        with GlfwPresenter(Look(), window_of(game), {}) as presenter:
            for visible in (True, False, True):
                presenter.follow(region, visible)
                presenter.show(plain(region), None)
                presenter.wait(0.1)
                assert player.focused == game.window_id
            player.tap("x")
            game.wait_event("key_press", detail=player.code("x"))
        assert player.focused == game.window_id


def test_clicks_pass_through_where_the_pointer_is_free(desktop: str) -> None:
    with Player(desktop) as player, FakeGame(desktop, pos=(300, 200)) as game:
        region = region_of(game)
        with GlfwPresenter(Look(pointer=False), window_of(game)) as presenter:
            presenter.follow(region, True)
            presenter.show(plain(region), None)
            presenter.wait(0.1)
            player.move_to(region.left + 33, region.top + 44)
            player.click()
            game.wait_event("button_press", detail=1, x=33, y=44)


@pytest.mark.parametrize("point", [(0, 0), (479, 269), (317, 51)])
def test_a_click_lands_on_what_the_player_sees(desktop: str, point: tuple[int, int]) -> None:
    """Move until the drawn cursor is over what shows `point`, then click."""
    with Player(desktop) as player, FakeGame(desktop, pos=(600, 400)) as game:
        region = region_of(game)
        player.move_to(region.left + 100, region.top + 100)
        with GlfwPresenter(Look(scale=2), window_of(game)) as presenter:
            give_red_cursor(player, game.window_id)
            if player.focused != 1:
                player.activate(game.window_id)
            presenter.follow(region, True)
            overlay = Region(region.left - 240, region.top - 135, 960, 540)
            presenter.show(plain(region), None)
            target = (2 * point[0], 2 * point[1])

            def drawn() -> tuple[int, int]:
                """Where the hotspot of the red cursor is drawn, in pixels of the overlay."""
                red = np.argwhere((screen(overlay) == (0, 0, 255)).all(axis=2))
                if not len(red):
                    return (-1, -1)
                (top, left), (bottom, right) = red.min(axis=0), red.max(axis=0) + 1
                # The sprite is 32x16 here and points with (10, 4); where the edge of the
                # picture cuts it off, its other side tells.
                x = left + 10 if left > 0 else right - 22
                y = top + 4 if top > 0 else bottom - 12
                return int(x), int(y)

            # As a hand does: look where the cursor is drawn, and move by what is missing.
            for _ in range(4):
                turn(presenter, 0.15)
                x, y = drawn()
                assert x >= 0
                player.move_by((target[0] - x) // 2, (target[1] - y) // 2)
            turn(presenter, 0.15)
            assert drawn() == target
            player.click()
            press = game.wait_event("button_press", detail=1)
            assert abs(press["x"] - point[0]) <= 1
            assert abs(press["y"] - point[1]) <= 1
            player.move_by(4000, 4000)
            assert player.place == (region.left + 479, region.top + 269)


def test_the_drawn_cursor_moves_over_a_still_game(display: str) -> None:
    with Player(display) as player, FakeGame(display, pos=(600, 400)) as game:
        region = region_of(game)
        give_red_cursor(player, game.window_id)
        player.move_to(region.left + 100, region.top + 100)
        with GlfwPresenter(Look(scale=2), window_of(game)) as presenter:
            presenter.follow(region, True)
            presenter.show(plain(region), None)
            assert run(presenter, lambda: (presenter.grab()[200, 200, :3] == (0, 0, 255)).all())
            player.move_by(50, -30)

            def there() -> bool:
                seen = screen(Region(region.left - 240, region.top - 135, 960, 540))
                expected = np.zeros((540, 960), bool)
                # Hotspot (5, 2) on game pixel (150, 70); 16x8 game pixels large; all doubled.
                expected[2 * 68 : 2 * 76, 2 * 145 : 2 * 161] = True
                return bool(((seen == (0, 0, 255)).all(axis=2) == expected).all())

            assert run(presenter, there)


def test_a_moving_game_takes_the_cursor_along(display: str) -> None:
    """While pictures come, a moving pointer causes no drawing of its own."""
    with Player(display) as player, FakeGame(display, pos=(600, 400)) as game:
        region = region_of(game)
        player.move_to(region.left + 100, region.top + 100)
        with GlfwPresenter(Look(scale=1.1), window_of(game)) as presenter:
            presenter.follow(region, True)
            drawn: list[Picture] = []
            show = presenter.show

            def count(picture: Picture, hud: None) -> Any:
                drawn.append(picture)
                return show(picture, hud)

            presenter.show = count  # type: ignore[method-assign, assignment]
            pictures = [plain(region) for _ in range(20)]
            for picture in pictures:
                presenter.show(picture, None)
                end = time.perf_counter() + 0.016
                while time.perf_counter() < end:
                    player.move_by(1, 0)
                    presenter.wait(0.004)
            assert len(drawn) - len(pictures) <= 4  # a busy machine may be late
            turn(presenter, 0.1)
            before = len(drawn)
            player.move_by(-5, 0)
            assert run(presenter, lambda: len(drawn) > before)


def test_a_still_game_and_pointer_cost_nothing(display: str) -> None:
    with Player(display) as player, FakeGame(display, pos=(600, 400)) as game:
        region = region_of(game)
        player.move_to(region.left + 100, region.top + 100)
        with GlfwPresenter(Look(scale=2), window_of(game), {}) as presenter:
            presenter.follow(region, True)
            for picture in (None, plain(region)):  # also while there is nothing to draw yet
                if picture is not None:
                    presenter.show(picture, None)
                turn(presenter, 0.2)
                turns, end = 0, time.monotonic() + 0.5
                while time.monotonic() < end:
                    presenter.wait(0.25)
                    turns += 1
                assert turns <= 6


def test_stays_above_a_raised_game(desktop: str) -> None:
    with Player(desktop) as player, FakeGame(desktop, pos=(300, 200)) as game:
        region = region_of(game)
        with GlfwPresenter(Look(), window_of(game)) as presenter:
            presenter.follow(region, True)
            both = [game.window_id, presenter.window_id]
            for _ in range(3):
                game.raise_()
                assert eventually(lambda: stacking(player, *both) == both)
            # A window that is not the game may cover the overlay, and is left alone.
            with FakeGame(desktop, title="Menu", override=True, pos=(5, 5)) as menu:
                three = [*both, menu.window_id]
                time.sleep(0.1)
                assert stacking(player, *three) == three


def test_stays_above_a_fullscreen_game(managed: str) -> None:
    with Player(managed) as player, FakeGame(managed, pos=(300, 200)) as game:
        window = window_of(game)
        with GlfwPresenter(Look(), window) as presenter:
            presenter.follow(window.region, True)

            def atom(name: str) -> int:
                return int(player.core.InternAtom(False, len(name), name).reply().atom)

            values = [1, atom("_NET_WM_STATE_FULLSCREEN"), 0, 2, 0]
            data = xcffib.xproto.ClientMessageData.synthetic(values, "IIIII")
            event = xcffib.xproto.ClientMessageEvent.synthetic(
                32, game.window_id, atom("_NET_WM_STATE"), data
            )
            player.core.SendEvent(False, player.root, 0x180000, event.pack())
            player.connection.flush()
            assert eventually(lambda: game.where() == (0, 0, 1920, 1080))
            player.activate(game.window_id)
            game.raise_()
            both = [game.window_id, presenter.window_id]
            assert eventually(lambda: stacking(player, *both) == both)
            time.sleep(0.2)
            assert stacking(player, *both) == both


# --- commands ---------------------------------------------------------------------------------


def test_hotkeys_come_out_of_wait(display: str) -> None:
    with Player(display) as player, FakeGame(display, pos=(600, 400)) as game:
        region = region_of(game)
        with GlfwPresenter(Look(scale=2), window_of(game), {"hud": "f9"}) as presenter:
            presenter.follow(region, True)
            presenter.show(plain(region), None)
            player.move_to(region.left + 9, region.top + 9)

            def press(*keys: str) -> list[Command]:
                player.tap(*keys)
                return commands(presenter, 1)

            assert press("f9") == [Command("hud")]
            # The pointer hotkey is obeyed by the presenter itself.
            player.move_by(5000, 0)
            assert player.place[0] == region.left + 479
            assert press("ctrl", "alt", "m") == [Command("pointer")]
            player.move_by(5000, 0)
            assert player.place[0] == 1919
            assert press("ctrl", "alt", "m") == [Command("pointer")]
            assert player.place[0] == region.left + 479
        player.move_by(5000, 0)
        assert player.place[0] == 1919  # close released it


def test_hiding_releases_the_pointer(display: str) -> None:
    with Player(display) as player, FakeGame(display, pos=(600, 400)) as game:
        region = region_of(game)
        with GlfwPresenter(Look(scale=2), window_of(game)) as presenter:
            presenter.follow(region, True)
            player.move_by(5000, 0)
            assert player.place[0] == 1919  # no picture yet: it would be nowhere to be seen
            presenter.show(plain(region), None)
            player.move_by(5000, 0)
            assert player.place[0] == region.left + 479
            presenter.follow(region, False)
            player.move_by(5000, 0)
            assert player.place[0] == 1919


def test_same_size_leaves_the_pointer_alone(display: str) -> None:
    with Player(display) as player, FakeGame(display, pos=(600, 400)) as game:
        region = region_of(game)
        player.move_to(region.left + 9, region.top + 9)
        with GlfwPresenter(Look(scale=1), window_of(game)) as presenter:
            presenter.follow(region, True)
            presenter.show(plain(region), None)
            player.move_by(5000, 0)
            assert player.place[0] == 1919


def test_window_mode_is_an_ordinary_window(managed: str) -> None:
    with (
        Player(managed) as player,
        GlfwPresenter(Look(mode="window", scale=2), None, {}) as presenter,
    ):
        source = Region(0, 0, 320, 180)
        presenter.follow(source, True)
        presenter.show(plain(source, (0, 255, 0)), None)
        assert run(presenter, lambda: attributes(player, presenter.window_id).map_state == 2)
        assert attributes(player, presenter.window_id).override_redirect == 0
        player.activate(presenter.window_id)
        assert run(presenter, lambda: player.focused == presenter.window_id)
        player.tap("h")
        player.down("c")
        player.up("c")
        assert commands(presenter, 3) == [
            Command("hud"),
            Command("source"),
            Command("source", pressed=False),
        ]

        values = [640, 480]
        player.core.ConfigureWindow(presenter.window_id, 4 | 8, values)
        player.connection.flush()
        assert run(presenter, lambda: presenter.target_size(Size(320, 180)) == Size(640, 360))
        assert presenter.grab().shape == (480, 640, 4)

        def atom(name: str) -> int:
            return int(player.core.InternAtom(False, len(name), name).reply().atom)

        data = xcffib.xproto.ClientMessageData.synthetic(
            [atom("WM_DELETE_WINDOW"), 0, 0, 0, 0], "IIIII"
        )
        event = xcffib.xproto.ClientMessageEvent.synthetic(
            32, presenter.window_id, atom("WM_PROTOCOLS"), data
        )
        player.core.SendEvent(False, presenter.window_id, 0, event.pack())
        player.connection.flush()
        assert commands(presenter, 1) == [Command("quit")]


def test_fullscreen_covers_the_monitor(managed: str) -> None:
    with Player(managed) as player, GlfwPresenter(Look(mode="fullscreen"), None, {}) as presenter:
        source = Region(0, 0, 320, 180)
        presenter.follow(source, True)
        presenter.show(plain(source, (0, 255, 0)), None)
        assert run(presenter, lambda: (screen(Region(0, 0, 1920, 1080)) == (0, 255, 0)).all())
        player.activate(presenter.window_id)
        assert run(presenter, lambda: player.focused == presenter.window_id)
        player.tap("escape")
        assert commands(presenter, 1) == [Command("quit")]


def test_keys_of_the_own_window() -> None:
    import glfw

    keys = bindings({"hud": "ctrl+shift+f5"})
    shift, control, alt = glfw.MOD_SHIFT, glfw.MOD_CONTROL, glfw.MOD_ALT
    assert key_action(keys, glfw.KEY_F5, control | shift) == "hud"
    assert key_action(keys, glfw.KEY_F5, 0) == "hud"
    assert key_action(keys, glfw.KEY_F5, glfw.MOD_NUM_LOCK) == "hud"
    assert key_action(keys, glfw.KEY_F5, control) is None
    assert key_action(keys, glfw.KEY_Q, control | alt) == "quit"
    assert key_action(keys, glfw.KEY_Z, 0) is None


def test_cursor_region_is_magnified_around_the_hotspot() -> None:
    sprite = CursorSprite(np.zeros((8, 16, 4), np.uint8), (5, 2), (100.0, 50.0), 1)
    placed = Region(40, 10, 960, 540)
    assert cursor_region(sprite, Size(480, 270), placed) == Region(40 + 190, 10 + 96, 32, 16)


def test_the_windows_surface_implements_the_seam() -> None:
    path = Path(seam.__file__).with_name("win32.py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    [back_end] = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(b) == "Surface" for b in node.bases)
    ]
    assert back_end.name == "Win32Surface"
    methods = {node.name for node in back_end.body if isinstance(node, ast.FunctionDef)}
    assert methods >= seam.Surface.__abstractmethods__


# --- how it fails and ends --------------------------------------------------------------------


def test_mistakes_are_refused_before_a_window_is_made(display: str) -> None:
    with pytest.raises(SettingsError, match="no action 'qit'"):
        GlfwPresenter(Look(), None, {"qit": "f9"})
    with pytest.raises(SettingsError, match="no monitor 7; there are: 0"):
        GlfwPresenter(Look(monitor=7))
    with GlfwPresenter(Look()):  # what failed left nothing behind
        pass


def test_nothing_is_left_open(display: str) -> None:
    def count() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    with FakeGame(display) as game:
        window = window_of(game)
        GlfwPresenter(Look(), window, {}).close()
        before = count()
        for _ in range(3):
            with GlfwPresenter(Look(), window, {}) as presenter:
                presenter.follow(window.region, True)
                presenter.show(plain(window.region), None)
        assert count() == before


def test_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(DisplayLost, match=r"DISPLAY is not set.*--present offscreen"):
        GlfwPresenter(Look())


PROGRAM = """
import sys
import numpy as np
from overlay.errors import OverlayError
from overlay.frame import Frame, Picture, Region
from overlay.present import Look
from overlay.window import Window
region = Region(100, 100, 480, 270)
pixels = np.zeros((270, 480, 4), np.uint8)
picture = Picture(Frame(pixels, 0, 0, 0, region), "source", pixels, 1, "t", "t", "nearest")
try:
    from overlay.present.glfw import GlfwPresenter
    window = Window(int(sys.argv[2]), "", "", 0, region, True) if len(sys.argv) > 2 else None
    with GlfwPresenter(Look(scale=2), window, {}) as presenter:
        presenter.follow(region, True)
        presenter.show(picture, None)
        print("ready", flush=True)
        while sys.argv[1] != "once":
            presenter.wait(30 if sys.argv[1] == "wait" else 0)
            if sys.argv[1] == "show":
                presenter.show(picture, None)
except OverlayError as exc:
    print(type(exc).__name__, exc, flush=True)
    sys.exit(exc.exit_code)
"""


def start(*args: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-c", PROGRAM, *args],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("busy_with", ["wait", "show"])
def test_a_dying_display_ends_the_run_in_order(busy_with: str) -> None:
    """Xlib would end the process with exit(1), without finishing the trace."""
    with OwnServer() as server:
        # Any window serves as the game; so the pointer's connection is there as well.
        connection = xcffib.connect(server.name)
        root = connection.get_setup().roots[0].root
        program = start(busy_with, str(root), DISPLAY=server.name)
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        time.sleep(0.2)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        began = time.monotonic()
        out, _ = program.communicate(timeout=20)
        assert out.startswith("DisplayLost the display server is gone"), out
        assert out.count("\n") == 1, out
        assert program.returncode == 6
        assert time.monotonic() - began < 5


def test_no_opengl() -> None:
    with OwnServer("-extension", "GLX") as server:
        program = start("once", DISPLAY=server.name)
        out, _ = program.communicate(timeout=20)
        assert out.startswith("BackendUnavailable no OpenGL 3.3 window: "), out
        assert program.returncode == 4


def test_a_wayland_session_uses_xwayland(display: str) -> None:
    env = dict(XDG_SESSION_TYPE="wayland", WAYLAND_DISPLAY="wayland-9", DISPLAY=display)
    env["PYGLFW_LIBRARY_VARIANT"] = ""
    program = start("once", **env)
    out, _ = program.communicate(timeout=20)
    assert out == "ready\n"
    assert program.returncode == 0
