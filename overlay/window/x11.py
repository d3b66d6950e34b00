"""Windows of an X11 display, with or without a window manager, through xcffib.

Under a window manager that publishes `_NET_CLIENT_LIST` the list is taken from there; else the
tree of windows is walked for what ICCCM calls clients. Used on the thread that opened it.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Iterator
from typing import Any

import xcffib
import xcffib.xproto as xproto

from overlay.errors import BackendUnavailable, DisplayLost, WindowNotFound
from overlay.frame import Region
from overlay.window import Desktop, Window

assert sys.platform != "win32"

# xcffib is generated code without annotations, so a connection is Any inside this module.
Connection = Any

_CROSSHAIR = 34  # glyph of the X cursor font
_ESCAPE = 0xFF1B  # keysym
_PROPERTY_WORDS = 1024  # how much of a property is read, in units of 4 bytes
_SMALLEST_PX = 32  # unmapped windows below this are helpers of toolkits, not games


def connect(display: str | None = None) -> Connection:
    """Connect to an X display; None = $DISPLAY.

    Raises:
        BackendUnavailable: nothing answers there.
    """
    try:
        return xcffib.connect(display)  # type: ignore[no-untyped-call]
    except xcffib.ConnectionException as exc:
        name = display or os.environ.get("DISPLAY", "")
        raise BackendUnavailable(
            f"cannot connect to the X display {name!r}: is it running, and may this user use it "
            "($XAUTHORITY)?"
        ) from exc


def root_window(connection: Connection) -> int:
    """Give the root window of the connection's first screen."""
    return int(connection.get_setup().roots[0].root)


def client_region(connection: Connection, window: int) -> Region:
    """Ask where a window's pixels are on the desktop, without its frame and border.

    Raises:
        xcffib.Error: the window is gone.
    """
    # ConfigureNotify gives coordinates relative to the window manager's frame; this does not.
    shape = connection.core.GetGeometry(window)
    spot = connection.core.TranslateCoordinates(window, root_window(connection), 0, 0)
    shape, spot = shape.reply(), spot.reply()
    return Region(spot.dst_x, spot.dst_y, shape.width, shape.height)


class Atoms:
    """Names of properties, each asked for once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        if name not in self._known:
            reply = self._connection.core.InternAtom(False, len(name), name).reply()
            self._known[name] = int(reply.atom)
        return self._known[name]


def property_values(connection: Connection, window: int, atom: int) -> list[int]:
    """Read a property of 32-bit values; empty if it is not set.

    Raises:
        xcffib.Error: the window is gone.
    """
    reply = connection.core.GetProperty(False, window, atom, 0, 0, _PROPERTY_WORDS).reply()
    if reply.format != 32 or not reply.value_len:
        return []
    data = bytes(reply.value.buf())
    return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]


def is_minimised(connection: Connection, window: int, atoms: Atoms) -> bool:
    """Ask whether the window manager says so; some keep minimised windows mapped."""
    return atoms["_NET_WM_STATE_HIDDEN"] in property_values(
        connection, window, atoms["_NET_WM_STATE"]
    )


class X11Desktop(Desktop):
    """The windows of one X display.

    Args:
        display: X display; None = $DISPLAY.
    Raises:
        BackendUnavailable: it cannot be connected to.
    """

    def __init__(self, display: str | None = None) -> None:
        self._connection: Connection | None = connect(display)
        self._atoms = Atoms(self._connection)
        self._root = root_window(self._connection)

    def windows(self) -> list[Window]:
        """List visible and minimised top-level windows, topmost first, without our own.

        Raises:
            DisplayLost: the X server is gone.
        """
        with _display_lost():
            listed = self._client_list()
            found = []
            for window in self._clients() if listed is None else listed:
                # A window may close at any moment, also between two questions about it.
                with contextlib.suppress(xcffib.Error):
                    described = self._describe(window)
                    if described is not None:
                        found.append(described)
            return found

    def pick(self) -> Window:
        """Let the player click on a window; Escape or another button than the left cancels.

        Raises:
            WindowNotFound: cancelled, nothing under the pointer, or the pointer is taken.
            DisplayLost: the X server is gone.
        """
        with _display_lost():
            core = self._open().core
            font, cursor = self._open().generate_id(), self._open().generate_id()
            core.OpenFont(font, len("cursor"), "cursor")
            white, black = (0xFFFF,) * 3, (0, 0, 0)
            core.CreateGlyphCursor(cursor, font, font, _CROSSHAIR, _CROSSHAIR + 1, *white, *black)
            core.CloseFont(font)
            try:
                self._grab_pointer(cursor)
                return self._clicked_window()
            finally:
                core.UngrabKeyboard(xproto.Time.CurrentTime)
                core.UngrabPointer(xproto.Time.CurrentTime)
                core.FreeCursor(cursor)
                self._open().flush()

    def close(self) -> None:
        """Free the connection; idempotent."""
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None

    def _open(self) -> Connection:
        if self._connection is None:
            raise ValueError("the desktop is closed")
        return self._connection

    # --- listing ---

    def _client_list(self) -> list[int] | None:
        """Read the window manager's list, topmost first; None if there is no such list."""
        for name in ("_NET_CLIENT_LIST_STACKING", "_NET_CLIENT_LIST"):
            values = property_values(self._open(), self._root, self._atoms[name])
            if values and self._window_manager_lives():
                return values[::-1]
        return None

    def _window_manager_lives(self) -> bool:
        """Tell a living window manager from one that died and left its lists behind."""
        check = self._atoms["_NET_SUPPORTING_WM_CHECK"]
        values = property_values(self._open(), self._root, check)
        try:
            return bool(values) and property_values(self._open(), values[0], check) == values
        except xcffib.Error:
            return False

    def _clients(self) -> Iterator[int]:
        """Walk the tree: under each child of the root, the client it frames, else itself."""
        for window in reversed(self._children(self._root)):
            client = self._client_below(window)
            yield window if client is None else client

    def _client_below(self, window: int, depth: int = 3) -> int | None:
        """Find the nearest window with WM_STATE, which a window manager puts on clients only."""
        with contextlib.suppress(xcffib.Error):
            if property_values(self._open(), window, self._atoms["WM_STATE"]):
                return window
        if depth > 0:
            for child in reversed(self._children(window)):
                client = self._client_below(child, depth - 1)
                if client is not None:
                    return client
        return None

    def _children(self, window: int) -> list[int]:
        try:
            return [int(child) for child in self._open().core.QueryTree(window).reply().children]
        except xcffib.Error:
            return []

    def _describe(self, window: int) -> Window | None:
        """Ask for everything about a window; None for desktops, docks, helpers and our own.

        Raises:
            xcffib.Error: the window is gone.
        """
        connection, atoms = self._open(), self._atoms
        attributes = connection.core.GetWindowAttributes(window).reply()
        if attributes._class == xproto.WindowClass.InputOnly:
            return None
        kinds = property_values(connection, window, atoms["_NET_WM_WINDOW_TYPE"])
        if {atoms["_NET_WM_WINDOW_TYPE_DESKTOP"], atoms["_NET_WM_WINDOW_TYPE_DOCK"]} & set(kinds):
            return None
        pids = property_values(connection, window, atoms["_NET_WM_PID"])
        pid = pids[0] if pids else 0
        if pid == os.getpid():
            return None
        title = self._text(window, "_NET_WM_NAME") or self._text(window, "WM_NAME")
        wm_class = self._text(window, "WM_CLASS")
        region = client_region(connection, window)
        mapped = attributes.map_state == xproto.MapState.Viewable
        if not mapped and not self._may_be_minimised(window, title, region):
            return None
        if not title and not wm_class:
            return None
        visible = mapped and not is_minimised(connection, window, atoms)
        return Window(window, title, wm_class, pid, region, visible)

    def _may_be_minimised(self, window: int, title: str, region: Region) -> bool:
        """Tell a minimised game from windows that were never meant to be seen."""
        if property_values(self._open(), window, self._atoms["WM_STATE"]):
            return True
        # Without a window manager nothing marks it; toolkits' helpers are tiny or untitled.
        return bool(title) and min(region.size) >= _SMALLEST_PX

    def _text(self, window: int, name: str) -> str:
        reply = (
            self._open()
            .core.GetProperty(False, window, self._atoms[name], 0, 0, _PROPERTY_WORDS)
            .reply()
        )
        if reply.format != 8 or not reply.value_len:
            return ""
        data = bytes(reply.value.buf())
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        # WM_CLASS is two words ending in NUL; nothing unprintable may reach a terminal.
        text = text.replace("\0", " ")
        return "".join(char if char.isprintable() else " " for char in text).strip()

    # --- picking ---

    def _grab_pointer(self, cursor: int) -> None:
        core = self._open().core
        mask = xproto.EventMask.ButtonPress | xproto.EventMask.ButtonRelease
        asynchronous, now = xproto.GrabMode.Async, xproto.Time.CurrentTime
        deadline = time.monotonic() + 1.0
        while True:
            status = (
                core.GrabPointer(
                    False, self._root, mask, asynchronous, asynchronous, 0, cursor, now
                )
                .reply()
                .status
            )
            if status == xproto.GrabStatus.Success:
                break
            if time.monotonic() > deadline:
                raise WindowNotFound(
                    "another program holds the mouse pointer, so no window can be clicked on; "
                    "let the game release it, or name the window by title or class"
                )
            time.sleep(0.05)
        # Without the keyboard only Escape does not work; the right button still cancels.
        core.GrabKeyboard(False, self._root, now, asynchronous, asynchronous).reply()

    def _clicked_window(self) -> Window:
        pressed: int | None = None
        while True:
            event = self._next_event()
            if isinstance(event, xproto.ButtonReleaseEvent):
                if pressed is not None:  # only now, so that the game does not get the release
                    return self._window_at(pressed)
            elif isinstance(event, xproto.ButtonPressEvent):
                if event.detail != 1:
                    raise WindowNotFound("picking a window was cancelled")
                pressed = event.child
            elif isinstance(event, xproto.KeyPressEvent) and self._is_escape(event.detail):
                raise WindowNotFound("picking a window was cancelled")

    def _next_event(self) -> object:
        connection = self._open()
        while True:
            event = connection.poll_for_event()
            if event is not None:
                return event
            # Not wait_for_event: that could not be interrupted with Ctrl+C.
            select.select([connection.get_file_descriptor()], [], [], 0.5)

    def _is_escape(self, keycode: int) -> bool:
        reply = self._open().core.GetKeyboardMapping(keycode, 1).reply()
        return _ESCAPE in list(reply.keysyms)

    def _window_at(self, child: int) -> Window:
        if child:
            client = self._client_below(child)
            with contextlib.suppress(xcffib.Error):
                window = self._describe(child if client is None else client)
                if window is not None:
                    return window
        raise WindowNotFound("there is no window where you clicked")


@contextlib.contextmanager
def _display_lost() -> Iterator[None]:
    try:
        yield
    except xcffib.ConnectionException as exc:
        raise DisplayLost("the X server closed the connection") from exc
