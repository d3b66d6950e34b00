"""Windows of an X display, with and without a window manager."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from overlay.errors import DisplayLost, WindowNotFound
from overlay.frame import Region
from overlay.window import Desktop, Query, Window, find, open_desktop
from tests.conftest import xvfb_process
from tests.games import FakeGame, crispy_doom

pytestmark = pytest.mark.display


@pytest.fixture
def desktop(any_display: str) -> Iterator[Desktop]:
    with open_desktop(any_display) as opened:
        yield opened


def by_id(desktop: Desktop, identity: int) -> Window | None:
    return next((window for window in desktop.windows() if window.id == identity), None)


def wait_for(desktop: Desktop, game: FakeGame, visible: bool) -> Window:
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        window = by_id(desktop, game.window_id)
        if window is not None and window.visible == visible:
            return window
        time.sleep(0.02)
    raise AssertionError(f"{window} never became {visible=}")


def test_everything_about_a_window(desktop: Desktop, any_display: str) -> None:
    title = "Game \u2014 \u0394\u00e9mo \u6e38\u620f [3]"
    with FakeGame(any_display, title=title, wm_class="klass", size=(321, 123)) as game:
        assert by_id(desktop, game.window_id) == Window(
            id=game.window_id,
            title=title,
            wm_class="klass klass",
            pid=game.pid,
            region=Region(*game.where()),
            visible=True,
        )
        game.rename("Other\x1b[31m\tname")
        renamed = by_id(desktop, game.window_id)
        assert renamed is not None
        assert renamed.title == "Other [31m name"  # nothing for a terminal to obey
    assert by_id(desktop, game.window_id) is None


def test_topmost_comes_first(desktop: Desktop, any_display: str) -> None:
    with FakeGame(any_display, title="twin") as one, FakeGame(any_display, title="twin") as two:
        for game in (one, two, one):
            game.raise_()
            deadline = time.monotonic() + 3
            while (found := find(desktop, Query(title="^twin$"))).id != game.window_id:
                assert time.monotonic() < deadline, f"{found} is on top"
                time.sleep(0.02)


def test_minimised_windows_are_listed_as_such(desktop: Desktop, any_display: str) -> None:
    with FakeGame(any_display, title="minimal") as game:
        assert wait_for(desktop, game, visible=True).visible
        game.minimise()
        assert wait_for(desktop, game, visible=False).title == "minimal"
        assert find(desktop, Query(title="minimal")).id == game.window_id
        game.restore()
        wait_for(desktop, game, visible=True)


def test_region_is_the_client_area_and_follows(desktop: Desktop, any_display: str) -> None:
    with FakeGame(any_display) as game:
        game.move(400, 300)
        game.resize(500, 280)
        deadline = time.monotonic() + 3
        while game.where()[2:] != (500, 280) and time.monotonic() < deadline:
            time.sleep(0.02)
        found = by_id(desktop, game.window_id)
        assert found is not None
        assert found.region == Region(*game.where())
        assert found.region.size == (500, 280)


def test_find_by_pid_class_and_id(desktop: Desktop, any_display: str) -> None:
    with FakeGame(any_display, wm_class="unusual") as game:
        for query in (
            Query(pid=game.pid),
            Query(wm_class="^unusual"),
            Query(id=game.window_id),
            Query(title="fake game", wm_class="unusual", pid=game.pid, id=game.window_id),
        ):
            assert find(desktop, query).id == game.window_id
        with pytest.raises(WindowNotFound, match='closest titles: "Fake Game"'):
            find(desktop, Query(title="nothing like it"))


def test_our_own_windows_are_left_out(desktop: Desktop, any_display: str) -> None:
    import xcffib
    import xcffib.xproto as xproto

    connection = xcffib.connect(any_display)
    core = connection.core
    window = connection.generate_id()
    screen = connection.get_setup().roots[0]
    core.CreateWindow(
        24, window, screen.root, 5, 5, 200, 100, 0, 1, screen.root_visual,
        xproto.CW.OverrideRedirect, [1],
    )  # fmt: skip
    atom = {
        name: core.InternAtom(False, len(name), name).reply().atom
        for name in ("WM_NAME", "_NET_WM_PID")
    }
    core.ChangeProperty(0, window, atom["WM_NAME"], xproto.Atom.STRING, 8, 4, b"mine")
    core.MapWindow(window)
    core.GetInputFocus().reply()
    titled = [found.title for found in desktop.windows()]
    if any_display == os.environ["DISPLAY"]:  # openbox does not list override-redirect ones
        assert "mine" in titled  # without a pid nobody knows whose it is
    pid = xproto.Atom.CARDINAL
    core.ChangeProperty(0, window, atom["_NET_WM_PID"], pid, 32, 1, [os.getpid()])
    core.GetInputFocus().reply()
    assert "mine" not in [found.title for found in desktop.windows()]
    connection.disconnect()


def click(display: str, x: int, y: int, *rest: str) -> None:
    env = {**os.environ, "DISPLAY": display}
    command = ["xdotool", "mousemove", str(x), str(y), *(rest or ("click", "1"))]
    subprocess.run(command, env=env, check=True, timeout=20)


def pick_in_background(desktop: Desktop) -> tuple[threading.Thread, list[object]]:
    result: list[object] = []

    def run() -> None:
        try:
            result.append(desktop.pick())
        except WindowNotFound as exc:
            result.append(str(exc))

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.3)
    return thread, result


def test_pick_with_a_click_that_the_game_does_not_get(desktop: Desktop, any_display: str) -> None:
    with FakeGame(any_display, pos=(300, 200)) as game:
        game.raise_()
        left, top, _, _ = game.where()
        thread, result = pick_in_background(desktop)
        click(any_display, left + 50, top + 50)
        thread.join(5)
        assert not thread.is_alive()
        assert isinstance(result[0], Window)
        assert result[0].id == game.window_id
        click(any_display, left + 51, top + 52)  # the pointer is free again
        event = game.wait_event("button_press")
        assert (event["x"], event["y"]) == (51, 52)
        assert sum(event["event"] == "button_press" for event in game.events) == 1


@pytest.mark.parametrize("how", [("click", "3"), ("key", "Escape")])
def test_pick_can_be_cancelled(desktop: Desktop, any_display: str, how: tuple[str, str]) -> None:
    with FakeGame(any_display, pos=(300, 200)):
        thread, result = pick_in_background(desktop)
        click(any_display, 350, 280, *how)
        thread.join(5)
        assert result == ["picking a window was cancelled"]


def test_pick_on_the_bare_desktop(desktop: Desktop, any_display: str) -> None:
    thread, result = pick_in_background(desktop)
    click(any_display, 1900, 1060)
    thread.join(5)
    assert result == ["there is no window where you clicked"]


def test_pick_tells_when_another_program_has_the_pointer(display: str) -> None:
    import xcffib
    import xcffib.xproto as xproto

    holder = xcffib.connect(display)
    root = holder.get_setup().roots[0].root
    mode = xproto.GrabMode.Async
    assert holder.core.GrabPointer(False, root, 0, mode, mode, 0, 0, 0).reply().status == 0
    with (
        open_desktop(display) as desktop,
        pytest.raises(WindowNotFound, match="another program holds the mouse pointer"),
    ):
        desktop.pick()
    holder.disconnect()


def test_dead_server_is_reported() -> None:
    with xvfb_process() as (name, server):
        desktop = open_desktop(name)
        assert desktop.windows() == []
        server.kill()
        server.wait(5)
        with pytest.raises(DisplayLost, match="X server closed the connection"):
            desktop.windows()
        desktop.close()
        desktop.close()


@pytest.mark.game
def test_real_game_is_found(any_display: str) -> None:
    with crispy_doom(any_display) as game, open_desktop(any_display) as desktop:
        found = find(desktop, Query(title="freedoom", wm_class="crispy-doom"))
        assert found.id == game.window_id
        assert found.region.size == (480, 270)
        assert found.visible
        assert found.pid in (0, game.process.pid)
