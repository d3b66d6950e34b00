"""The pointer on X11: XFixes barriers, a hidden cursor, XInput motion; on a connection of its own.

The server undoes all of it when the connection ends, so a crash releases the pointer too. The
connection's thread follows motion, shape and focus; it also confines and releases when the
focus changes. State shared with the main thread is guarded by one lock.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import xcffib
import xcffib.xfixes as xfixes
import xcffib.xinput as xinput
import xcffib.xproto as xproto

from overlay.errors import BackendUnavailable
from overlay.frame import Pixels, Region
from overlay.present.placement import PointMap
from overlay.present.pointer import CursorSprite, Pointer
from overlay.present.xclient import GENERIC_EVENT, XClient

log = logging.getLogger(__name__)

_ALL_MASTER_DEVICES = 1
_RAW_MOTION = 1 << 17
_POINTER_ROOT = 1
_NO_END, _FAR = 0xFFFF, 0x7FFF  # -1 and the largest coordinate, as 16-bit numbers


class _Watcher(XClient):
    """Requests and events; `owner` decides."""

    rest_s = 0.004

    def __init__(self, owner: X11Pointer, window: int) -> None:
        super().__init__("pointer")
        self._owner = owner
        self.window = window
        self.fixes: Any = self.connection(xfixes.key)
        self.input: Any = self.connection(xinput.key)
        try:
            version = self.fixes.QueryVersion(5, 0).reply().major_version
            self.input.XIQueryVersion(2, 2).reply()
        except xcffib.XcffibException as exc:
            self.close()
            raise BackendUnavailable(f"the X server lacks XFIXES or XInput 2: {exc!r}") from exc
        if version < 5:
            self.close()
            raise BackendUnavailable(
                f"the X server has XFIXES {version}, pointer barriers need 5; use --no-pointer"
            )
        self._active_window = self.atom("_NET_ACTIVE_WINDOW")
        self._wm_check = self.atom("_NET_SUPPORTING_WM_CHECK")
        mask = xproto.EventMask
        self.core.ChangeWindowAttributes(self.root, xproto.CW.EventMask, [mask.PropertyChange])
        self.core.ChangeWindowAttributes(
            window, xproto.CW.EventMask, [mask.FocusChange | mask.StructureNotify]
        )
        self.fixes.SelectCursorInput(self.root, xfixes.CursorNotifyMask.DisplayCursor)
        self._moved = False

    def handle(self, event: Any) -> None:
        if event is GENERIC_EVENT:
            self._moved = True
        elif isinstance(event, xfixes.CursorNotifyEvent):
            self._owner.reshaped()
        elif isinstance(event, xproto.PropertyNotifyEvent):
            if event.atom == self._active_window:
                self._owner.refocused()
        elif isinstance(event, xproto.UnmapNotifyEvent | xproto.DestroyNotifyEvent):
            if event.window == self.window:
                self._owner.refocused()
        elif isinstance(event, xproto.FocusInEvent | xproto.FocusOutEvent):
            self._owner.refocused()

    def drained(self) -> None:
        if self._moved:
            self._moved = False
            self._owner.moved()

    def gone(self) -> None:
        self._owner.moved()

    def focused(self) -> bool:
        """Ask whether keys reach the game: the window manager's word, else the input focus."""
        if self._managed():
            active = self.words(self.root, self._active_window)
            if active:
                return active[0] == self.window
        focus = int(self.core.GetInputFocus().reply().focus)
        if focus == _POINTER_ROOT:  # keys go to whatever is under the pointer
            return bool(self.ancestors(self.window))
        return self.window in self.ancestors(focus)

    def _managed(self) -> bool:
        # A window manager that died leaves its properties behind, but not its window.
        check = self.words(self.root, self._wm_check)
        return bool(check) and self.words(check[0], self._wm_check) == check

    def follow_motion(self, on: bool) -> None:
        mask: Any = xinput.EventMask
        wanted = mask.synthetic(_ALL_MASTER_DEVICES, 1, [_RAW_MOTION if on else 0])
        self.input.XISelectEvents(self.root, 1, [wanted])

    def pointer(self) -> tuple[int, int]:
        """Where the pointer is on the desktop."""
        reply = self.core.QueryPointer(self.root).reply()
        return int(reply.root_x), int(reply.root_y)

    def warp(self, x: int, y: int) -> None:
        self.core.WarpPointer(xproto.Window._None, self.root, 0, 0, 0, 0, x, y)
        self.connection.flush()

    def cursor(self) -> tuple[Pixels, tuple[int, int]] | None:
        """Read the shape the game gave the cursor, as BGRA premultiplied, and its hotspot."""
        try:
            reply = self.fixes.GetCursorImage().reply()
        except xcffib.Error:  # no cursor yet
            return None
        words = np.array(reply.cursor_image.list, np.uint32)
        pixels = words.reshape(reply.height, reply.width).view(np.uint8)
        return pixels.reshape(reply.height, reply.width, 4), (int(reply.xhot), int(reply.yhot))

    def fence(self, game: Region) -> list[int]:
        """Put up a barrier along each side of a region that is not the screen's edge.

        Each is a line without ends. With ends at the corners a fast diagonal move slips between
        two barriers; moreover X servers look for the crossing of a slanted move on the wrong
        side of its start (the sign is wrong in xibarriers.c), which only a line without ends
        forgives.
        """
        width, height = self.screen.width_in_pixels, self.screen.height_in_pixels
        right, bottom = game.left + game.width, game.top + game.height
        lines = [(x, _NO_END, x, _FAR) for x in (game.left, right) if 0 < x < width]
        lines += [(_NO_END, y, _FAR, y) for y in (game.top, bottom) if 0 < y < height]
        barriers = []
        for line in lines:
            barriers.append(int(self.connection.generate_id()))
            self.fixes.CreatePointerBarrier(barriers[-1], self.root, *line, 0, 0, [])
        return barriers


class X11Pointer(Pointer):
    """The pointer of one X screen.

    Args:
        window: the game's window.
        changed: called on the event thread when `sprite` may have changed.

    Raises:
        BackendUnavailable: the server lacks XFIXES 5 or XInput 2.
        DisplayLost: there is no X server.
    """

    def __init__(self, window: int, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._sprite: CursorSprite | None = None  # owned by the main thread
        # Replaced as a whole, so that the main thread reads them without waiting for the server:
        self._position: tuple[float, float] | None = None
        self._shape: tuple[Pixels, tuple[int, int], int] | None = None
        self._lock = threading.RLock()  # guards everything below
        self._game: Region | None = None
        self._points: PointMap | None = None  # while confinement is wanted
        self._fence: list[int] = []
        self._fenced: Region | None = None  # while it is in force
        self._serial = 0
        self._client = _Watcher(self, window)
        self._read_shape()
        self._client.start()

    def watch(self, game: Region) -> None:
        self._want(game, None)

    def confine(self, game: Region, points: PointMap) -> None:
        self._want(game, points)

    def release(self) -> None:
        self._want(None, None)

    @property
    def confined(self) -> bool:
        with self._lock:
            return self._fenced is not None

    def position(self) -> tuple[float, float] | None:
        return self._position

    def sprite(self) -> CursorSprite | None:
        position, shape = self._position, self._shape
        if position is None or shape is None:
            self._sprite = None
            return None
        pixels, hotspot, serial = shape
        last = self._sprite
        if last is None or (last.position, last.serial) != (position, serial):
            self._sprite = CursorSprite(pixels, hotspot, position, serial)
        return self._sprite

    def close(self) -> None:
        self.release()
        self._client.close()

    def _want(self, game: Region | None, points: PointMap | None) -> None:
        with self._lock:
            if (game, points) == (self._game, self._points) or self._client.lost:
                return
            old, watched = self._points, self._game is not None
            self._game, self._points = game, points
            try:
                if (game is not None) != watched:
                    self._client.follow_motion(game is not None)
                self._apply(self._shown_at(old) if points is None else None)
                self._locate()
            except xcffib.ConnectionException:
                self._client.lost = True
                self._changed()

    def _shown_at(self, points: PointMap | None) -> tuple[int, int] | None:
        """Where on the desktop the player sees the confined pointer."""
        if self._fenced is None or self._position is None or points is None:
            return None
        x, y = points.overlay_from_game(self._position[0] + 0.5, self._position[1] + 0.5)
        return int(x), int(y)

    def _apply(self, land: tuple[int, int] | None = None) -> None:
        """Make the barriers what they are to be; `land` is where a released pointer goes."""
        client = self._client
        hold = self._points is not None and client.focused()
        fence = self._game if hold else None
        if fence == self._fenced:
            client.connection.flush()
            return
        for barrier in self._fence:
            client.fixes.DeletePointerBarrier(barrier)
        self._fence = client.fence(fence) if fence is not None else []
        if fence is not None and self._fenced is None:
            client.fixes.HideCursor(client.root)
        elif fence is None:
            client.fixes.ShowCursor(client.root)
            if land is not None:
                client.warp(*land)
        if fence is not None:
            self._bring_in(*client.pointer(), look_through=self._fenced is None)
        log.debug("pointer %s", f"confined to {fence}" if fence else "released")
        self._fenced = fence
        client.sync()

    def _bring_in(self, x: int, y: int, look_through: bool = False) -> tuple[int, int]:
        """Move a pointer that is outside the game into it; give where it is then."""
        assert self._points is not None
        game = self._points.game
        left, top = x - game.left, y - game.top
        if 0 <= left < game.width and 0 <= top < game.height:
            return x, y
        if look_through and self._points.shows(x + 0.5, y + 0.5):
            on_x, on_y = self._points.game_from_overlay(x + 0.5, y + 0.5)
            left, top = int(on_x), int(on_y)
        x = game.left + min(max(left, 0), game.width - 1)
        y = game.top + min(max(top, 0), game.height - 1)
        self._client.warp(x, y)
        return x, y

    def _locate(self) -> bool:
        """Ask where the pointer is; True if that is news."""
        before, now = self._position, None
        if self._game is not None and not self._client.lost:
            x, y = self._client.pointer()
            if self._fenced is not None:
                # Tablets, virtual machines and games that warp the pointer jump over barriers.
                x, y = self._bring_in(x, y)
            left, top = x - self._game.left, y - self._game.top
            if 0 <= left < self._game.width and 0 <= top < self._game.height:
                now = (float(left), float(top))
        self._position = now
        return before != now

    def _read_shape(self) -> None:
        found = self._client.cursor()
        self._serial += 1
        self._shape = (*found, self._serial) if found is not None else None

    # Called by the event thread:

    def moved(self) -> None:
        """Take note that the pointer moved, or that the server is gone."""
        with self._lock:
            news = self._locate()
        if news or self._client.lost:
            self._changed()

    def reshaped(self) -> None:
        """Take note of a new cursor shape."""
        with self._lock:
            self._read_shape()
        if self._position is not None:
            self._changed()

    def refocused(self) -> None:
        """Take note that the keyboard focus may have changed."""
        with self._lock:
            self._apply()
            self._locate()
        self._changed()
