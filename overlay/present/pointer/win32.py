"""The pointer on Windows: ClipCursor, and an invisible system cursor.

A clip ends by itself when another window is activated or the process ends. A cursor hidden for
other programs does not: the Magnification API (`MagShowSystemCursor`) hides it for the whole
desktop and shows it again when the process that hid it ends, which `SetSystemCursor` would not.
A thread looks at position, shape and foreground window, as Windows reports none of them to a
process without the focus. Never run by the project itself; see docs/platforms.md.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import sys
import threading
from collections.abc import Callable
from ctypes import wintypes

import numpy as np

from overlay.errors import BackendUnavailable
from overlay.frame import Pixels, Region
from overlay.present.placement import PointMap
from overlay.present.pointer import CursorSprite, Pointer

assert sys.platform == "win32"

log = logging.getLogger(__name__)

_LOOK_S = 0.008
_CURSOR_SHOWING = 1
_DI_NORMAL = 3

_user32 = ctypes.WinDLL("user32", use_last_error=True)
_gdi32 = ctypes.WinDLL("gdi32", use_last_error=True)
for _name in ("CreateCompatibleDC", "CreateDIBSection", "SelectObject"):
    getattr(_gdi32, _name).restype = ctypes.c_void_p
_gdi32.CreateCompatibleDC.argtypes = (ctypes.c_void_p,)
_gdi32.CreateDIBSection.argtypes = (
    ctypes.c_void_p, ctypes.c_void_p, wintypes.UINT, ctypes.c_void_p, ctypes.c_void_p,
    wintypes.DWORD,
)  # fmt: skip
_gdi32.SelectObject.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
_gdi32.DeleteObject.argtypes = (ctypes.c_void_p,)
_gdi32.DeleteDC.argtypes = (ctypes.c_void_p,)
_gdi32.GetObjectW.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_user32.GetIconInfo.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
_user32.DrawIconEx.argtypes = (
    ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int,
    wintypes.UINT, ctypes.c_void_p, wintypes.UINT,
)  # fmt: skip
_user32.GetForegroundWindow.restype = ctypes.c_void_p


class _CursorInfo(ctypes.Structure):
    _fields_ = (
        ("size", wintypes.DWORD),
        ("flags", wintypes.DWORD),
        ("cursor", ctypes.c_void_p),
        ("place", wintypes.POINT),
    )


class _IconInfo(ctypes.Structure):
    _fields_ = (
        ("icon", wintypes.BOOL),
        ("x", wintypes.DWORD),
        ("y", wintypes.DWORD),
        ("mask", ctypes.c_void_p),
        ("colour", ctypes.c_void_p),
    )


class _Bitmap(ctypes.Structure):
    _fields_ = (
        ("type", wintypes.LONG),
        ("width", wintypes.LONG),
        ("height", wintypes.LONG),
        ("width_bytes", wintypes.LONG),
        ("planes", wintypes.WORD),
        ("bits", wintypes.WORD),
        ("data", ctypes.c_void_p),
    )


class _BitmapInfo(ctypes.Structure):
    _fields_ = (
        ("size", wintypes.DWORD),
        ("width", wintypes.LONG),
        ("height", wintypes.LONG),
        ("planes", wintypes.WORD),
        ("bits", wintypes.WORD),
        ("compression", wintypes.DWORD),
        ("bytes", wintypes.DWORD),
        ("x_per_metre", wintypes.LONG),
        ("y_per_metre", wintypes.LONG),
        ("used", wintypes.DWORD),
        ("important", wintypes.DWORD),
    )


def _drawn(cursor: int, size: tuple[int, int], ground: int) -> Pixels | None:
    """Draw a cursor on a plain ground: uint8 BGRA, (H, W, 4)."""
    width, height = size
    info = _BitmapInfo(ctypes.sizeof(_BitmapInfo), width, -height, 1, 32)
    data = ctypes.c_void_p()
    canvas = _gdi32.CreateCompatibleDC(None)
    bitmap = _gdi32.CreateDIBSection(canvas, ctypes.byref(info), 0, ctypes.byref(data), None, 0)
    if not bitmap or data.value is None:
        _gdi32.DeleteDC(canvas)
        return None
    before = _gdi32.SelectObject(canvas, bitmap)
    raw = (ctypes.c_ubyte * (width * height * 4)).from_address(data.value)
    pixels: Pixels = np.frombuffer(memoryview(raw), np.uint8).reshape(height, width, 4)
    pixels[:] = ground
    _user32.DrawIconEx(canvas, 0, 0, cursor, width, height, 0, None, _DI_NORMAL)
    _gdi32.GdiFlush()
    copy = pixels.copy()
    _gdi32.SelectObject(canvas, before)
    _gdi32.DeleteObject(bitmap)
    _gdi32.DeleteDC(canvas)
    return copy


def _shape(cursor: int) -> tuple[Pixels, tuple[int, int]] | None:
    """Read a cursor as BGRA premultiplied, and its hotspot.

    Drawn on black and on white: the difference is how much shows through, for cursors with and
    without an alpha channel alike. (Pixels that invert what is below come out as black.)
    """
    icon, bitmap = _IconInfo(), _Bitmap()
    if not _user32.GetIconInfo(cursor, ctypes.byref(icon)):
        return None
    _gdi32.GetObjectW(icon.mask, ctypes.sizeof(bitmap), ctypes.byref(bitmap))
    # A cursor without colour has its two masks in one bitmap, one above the other.
    size = (bitmap.width, bitmap.height if icon.colour else bitmap.height // 2)
    for handle in (icon.mask, icon.colour):
        if handle:
            _gdi32.DeleteObject(handle)
    black, white = _drawn(cursor, size, 0), _drawn(cursor, size, 255)
    if black is None or white is None:
        return None
    through = np.clip(white[..., :3].astype(np.int16) - black[..., :3], 0, 255)
    black[..., 3] = 255 - through.max(axis=2)
    np.minimum(black[..., :3], black[..., 3:], out=black[..., :3])
    return black, (int(icon.x), int(icon.y))


class Win32Pointer(Pointer):
    """The pointer of the session's desktop.

    Raises:
        BackendUnavailable: the Magnification API is missing.
    """

    def __init__(self, window: int, changed: Callable[[], None]) -> None:
        try:
            self._magnification = ctypes.WinDLL("magnification")
        except OSError as exc:
            raise BackendUnavailable(f"the Magnification API is missing: {exc}") from exc
        self._magnification.MagInitialize()
        self._window = window
        self._changed = changed
        self._lock = threading.RLock()  # guards everything below
        self._game: Region | None = None
        self._points: PointMap | None = None
        self._fenced: Region | None = None
        self._cursor = 0
        self._shape: tuple[Pixels, tuple[int, int]] | None = None
        self._serial = 0
        self._position: tuple[float, float] | None = None
        self._sprite: CursorSprite | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pointer", daemon=True)
        self._thread.start()
        atexit.register(self.close)

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
        with self._lock:
            return self._position

    def sprite(self) -> CursorSprite | None:
        with self._lock:
            if self._position is None or self._shape is None:
                self._sprite = None
            elif self._sprite is None or (
                (self._sprite.position, self._sprite.serial) != (self._position, self._serial)
            ):
                self._sprite = CursorSprite(*self._shape, self._position, self._serial)
            return self._sprite

    def close(self) -> None:
        if self._ending.is_set():
            return
        self.release()
        self._ending.set()
        self._thread.join()
        self._magnification.MagUninitialize()
        atexit.unregister(self.close)

    def _want(self, game: Region | None, points: PointMap | None) -> None:
        with self._lock:
            if (game, points) == (self._game, self._points):
                return
            old, position = self._points, self._position
            confined = self._fenced is not None
            self._game, self._points = game, points
            self._apply()
            if points is None and old is not None and confined and position is not None:
                x, y = old.overlay_from_game(position[0] + 0.5, position[1] + 0.5)
                _user32.SetCursorPos(int(x), int(y))
            self._look()

    def _apply(self) -> None:
        """Clip and hide the cursor, or let it go, as focus and wishes ask for."""
        hold = self._points is not None and _user32.GetForegroundWindow() == self._window
        fence = self._game if hold else None
        if fence is not None:
            if self._fenced is None:
                self._bring_in()
                self._magnification.MagShowSystemCursor(False)
            # Every time: Windows drops the clip whenever a window is activated or moved.
            box = wintypes.RECT(
                fence.left, fence.top, fence.left + fence.width, fence.top + fence.height
            )
            _user32.ClipCursor(ctypes.byref(box))
        elif self._fenced is not None:
            _user32.ClipCursor(None)
            self._magnification.MagShowSystemCursor(True)
        self._fenced = fence

    def _bring_in(self) -> None:
        """Move a pointer that the overlay shows outside the game to what is shown there."""
        assert self._points is not None
        place, game = wintypes.POINT(), self._points.game
        _user32.GetCursorPos(ctypes.byref(place))
        inside = 0 <= place.x - game.left < game.width and 0 <= place.y - game.top < game.height
        if not inside and self._points.shows(place.x + 0.5, place.y + 0.5):
            x, y = self._points.game_from_overlay(place.x + 0.5, place.y + 0.5)
            _user32.SetCursorPos(game.left + int(x), game.top + int(y))

    def _look(self) -> bool:
        """See where the pointer is and how it looks; True if that is news."""
        before = (self._position, self._serial)
        self._position = None
        info = _CursorInfo(size=ctypes.sizeof(_CursorInfo))
        if self._game is not None and _user32.GetCursorInfo(ctypes.byref(info)):
            if info.cursor and info.cursor != self._cursor:
                self._cursor = info.cursor
                self._shape = _shape(info.cursor)
                self._serial += 1
            x, y = info.place.x - self._game.left, info.place.y - self._game.top
            inside = 0 <= x < self._game.width and 0 <= y < self._game.height
            if inside and info.flags & _CURSOR_SHOWING:
                self._position = (float(x), float(y))
        return before != (self._position, self._serial)

    def _run(self) -> None:
        while not self._ending.wait(_LOOK_S):
            with self._lock:
                if self._game is None:
                    continue
                self._apply()
                news = self._look()
            if news:
                self._changed()
