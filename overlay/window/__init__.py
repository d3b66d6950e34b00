"""Windows of the desktop: list them, find the game, pick one with a click.

Back ends are one module each: `x11` and `win32`. They are imported only by `open_desktop`.
"""

from __future__ import annotations

import os
import re
import sys
from abc import abstractmethod
from dataclasses import dataclass
from difflib import SequenceMatcher

from overlay.closing import Closing
from overlay.errors import BackendUnavailable, SettingsError, WindowNotFound
from overlay.frame import Region

CLOSEST_TITLES = 5


@dataclass(frozen=True, slots=True)
class Window:
    """A top-level window.

    Attributes:
        id: X11 window id or HWND.
        title, wm_class: as the program set them (`wm_class`: window class on Windows).
        pid: 0 if unknown.
        region: client area (without frame and title bar), physical pixels, desktop coordinates.
        visible: mapped and not minimised.
    """

    id: int
    title: str
    wm_class: str
    pid: int
    region: Region
    visible: bool


@dataclass(frozen=True, slots=True)
class Query:
    """What window is wanted; all fields that are set must match.

    Attributes:
        title: regular expression, searched in the title, ignoring case.
        wm_class: regular expression, searched in the class, ignoring case.
        pid, id: exact.
    """

    title: str | None = None
    wm_class: str | None = None
    pid: int | None = None
    id: int | None = None

    def __str__(self) -> str:
        parts = []
        if self.title is not None:
            parts.append(f"title {self.title!r}")
        if self.wm_class is not None:
            parts.append(f"class {self.wm_class!r}")
        if self.pid is not None:
            parts.append(f"pid {self.pid}")
        if self.id is not None:
            parts.append(f"id {self.id:#x}")
        return " and ".join(parts) or "anything"


class Desktop(Closing):
    """The window system's list of windows."""

    @abstractmethod
    def windows(self) -> list[Window]:
        """List visible and minimised top-level windows, topmost first, without our own."""

    @abstractmethod
    def pick(self) -> Window:
        """Let the player click on a window.

        Raises:
            WindowNotFound: cancelled, or nothing under the pointer.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the connection; idempotent."""


def find(desktop: Desktop, query: Query) -> Window:
    """Find the window that is wanted.

    Of several matches the topmost visible one is taken, else the topmost minimised one.

    Raises:
        SettingsError: the query is empty, or a regular expression in it is wrong.
        WindowNotFound: no window matches; the message names the closest titles.
    """
    if query == Query():
        raise SettingsError("no window asked for: give a title, class, pid or id")
    title, wm_class = _compile("title", query.title), _compile("class", query.wm_class)
    windows = desktop.windows()
    matches = [
        window
        for window in windows
        if (title is None or title.search(window.title))
        and (wm_class is None or wm_class.search(window.wm_class))
        and query.pid in (None, window.pid)
        and query.id in (None, window.id)
    ]
    for window in matches:
        if window.visible:
            return window
    if matches:
        return matches[0]
    raise WindowNotFound(f"no window with {query}; {_closest(windows, query)}{_wayland()}")


def _wayland() -> str:
    """Say what else it may be in a Wayland session, whose own windows are not in the list."""
    if not os.environ.get("WAYLAND_DISPLAY"):
        return ""
    return (
        "; a native Wayland window cannot be listed or captured: start the game under XWayland "
        "(SDL_VIDEODRIVER=x11), or see `pipewire-capture` in docs/platforms.md"
    )


def _compile(field: str, pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error as exc:
        raise SettingsError(
            f"{field} {pattern!r} is not a regular expression: {exc}; "
            f"for the plain text write {re.escape(pattern)!r}"
        ) from exc


def _closest(windows: list[Window], query: Query) -> str:
    """Name the windows whose titles look most like what was asked for."""
    named = [window for window in windows if window.title]
    if not named:
        return "there is no window with a title at all (is the game running on this display?)"
    wanted = (query.title or query.wm_class or "").lower()

    def likeness(window: Window) -> float:
        texts = (window.title.lower(), window.wm_class.lower())
        return max(SequenceMatcher(None, wanted, text).ratio() for text in texts)

    # Stable: without a title to compare with, the topmost windows come first.
    named.sort(key=likeness, reverse=True)
    titles = ", ".join(f'"{window.title}"' for window in named[:CLOSEST_TITLES])
    return f"closest titles: {titles} (`overlay windows` lists all)"


def open_desktop(display: str | None = None) -> Desktop:
    """Open the list of windows of this session.

    Args:
        display: X display; None = $DISPLAY. Ignored on Windows.
    Raises:
        BackendUnavailable: there is no window system that can be asked here.
    """
    if sys.platform == "win32":
        from overlay.window.win32 import Win32Desktop

        return Win32Desktop()
    elif sys.platform == "darwin":
        raise BackendUnavailable(
            "windows cannot be listed on macOS; capture a region of the screen with `mss` instead"
        )
    else:
        require_x_display(display)
        try:
            from overlay.window.x11 import X11Desktop
        except ImportError as exc:
            raise BackendUnavailable(f"xcffib is missing ({exc}): pip install xcffib") from exc
        return X11Desktop(display)


def require_x_display(display: str | None = None) -> None:
    """Explain why there is no X display to talk to, if there is none named.

    Raises:
        BackendUnavailable: neither `display` nor $DISPLAY names one.
    """
    if display or os.environ.get("DISPLAY"):
        return
    if os.environ.get("WAYLAND_DISPLAY"):
        raise BackendUnavailable(
            "this Wayland session has no XWayland ($DISPLAY is not set), and native Wayland "
            "windows cannot be listed or captured: run the game under XWayland "
            "(SDL_VIDEODRIVER=x11), or see `pipewire-capture` in docs/platforms.md"
        )
    raise BackendUnavailable(
        "there is no X display: $DISPLAY is not set; start from a desktop session, "
        "or under `xvfb-run`"
    )
