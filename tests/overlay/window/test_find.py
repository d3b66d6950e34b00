"""Choosing among windows, without any window system."""

from __future__ import annotations

import sys

import pytest

from overlay.errors import BackendUnavailable, SettingsError, WindowNotFound
from overlay.frame import Region
from overlay.window import Desktop, Query, Window, find, open_desktop


def window(
    identity: int, title: str, *, wm_class: str = "game", pid: int = 1, visible: bool = True
) -> Window:
    return Window(identity, title, wm_class, pid, Region(0, 0, 10, 10), visible)


class FakeDesktop(Desktop):
    def __init__(self, *windows: Window) -> None:
        self._windows = list(windows)

    def windows(self) -> list[Window]:
        return self._windows

    def pick(self) -> Window:
        return self._windows[0]

    def close(self) -> None:
        pass


DESKTOP = FakeDesktop(
    window(1, "Doom (minimised)", visible=False),
    window(2, "Freedoom: Phase 1", wm_class="crispy-doom crispy-doom", pid=22),
    window(3, "DOOM", pid=33),
    window(4, "Minetest 5.6.1", wm_class="Minetest"),
    window(5, "Terminal"),
    window(6, "Mail"),
    window(7, "Browser"),
)


@pytest.mark.parametrize(
    ("query", "identity"),
    [
        (Query(title="doom"), 2),  # the topmost visible one
        (Query(title="^doom"), 3),
        (Query(title="minimised"), 1),
        (Query(title=r"Mine\w+ \d"), 4),
        (Query(wm_class="MINETEST"), 4),
        (Query(title="doom", pid=33), 3),
        (Query(pid=22), 2),
        (Query(id=5), 5),
    ],
)
def test_all_that_is_set_must_match(query: Query, identity: int) -> None:
    assert find(DESKTOP, query).id == identity


def test_not_found_names_query_and_closest_titles() -> None:
    with pytest.raises(WindowNotFound) as caught:
        find(DESKTOP, Query(title="Mintest", pid=5))
    message = str(caught.value)
    assert "title 'Mintest' and pid 5" in message
    assert 'closest titles: "Minetest 5.6.1", "' in message
    assert message.count('"') == 10  # five titles, no more


def test_not_found_on_an_empty_desktop() -> None:
    with pytest.raises(WindowNotFound, match="id 0x2a; there is no window with a title"):
        find(FakeDesktop(), Query(id=42))


def test_wrong_regular_expression() -> None:
    with pytest.raises(SettingsError, match=r"title 'Doom \(' is not a regular expression.*Doom"):
        find(DESKTOP, Query(title="Doom ("))
    with pytest.raises(SettingsError, match="class '\\*' is not"):
        find(DESKTOP, Query(wm_class="*"))
    with pytest.raises(SettingsError, match="no window asked for"):
        find(DESKTOP, Query())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows always has a desktop")
def test_session_without_x(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(BackendUnavailable, match=r"no X display: \$DISPLAY is not set"):
        open_desktop()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    with pytest.raises(BackendUnavailable, match=r"XWayland.*pipewire-capture"):
        open_desktop()
    with pytest.raises(BackendUnavailable, match="cannot connect to the X display ':4711'"):
        open_desktop(":4711")
