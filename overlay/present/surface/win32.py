"""The overlay's window on Windows: styles that GLFW has no hint for.

GLFW makes the process per-monitor DPI aware (version 2) when it starts, so that all its
coordinates are physical pixels. Never run by the project itself; see docs/platforms.md.
"""

from __future__ import annotations

import ctypes
import logging
import sys

from overlay.present.surface import Surface

assert sys.platform == "win32"

log = logging.getLogger(__name__)

_GWL_EXSTYLE = -20
_WS_EX_TOPMOST = 0x00000008
_WS_EX_TRANSPARENT = 0x00000020
_WS_EX_TOOLWINDOW = 0x00000080
_WS_EX_LAYERED = 0x00080000
_WS_EX_NOACTIVATE = 0x08000000
_LWA_ALPHA = 0x2
_HWND_TOPMOST = -1
_SWP = 0x0001 | 0x0002 | 0x0010  # keep size, keep place, do not activate
_WDA_EXCLUDEFROMCAPTURE = 0x11

_user32 = ctypes.WinDLL("user32", use_last_error=True)
_user32.GetWindowLongPtrW.argtypes = (ctypes.c_void_p, ctypes.c_int)
_user32.GetWindowLongPtrW.restype = ctypes.c_ssize_t
_user32.SetWindowLongPtrW.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_ssize_t)
_user32.SetWindowLongPtrW.restype = ctypes.c_ssize_t
_user32.SetLayeredWindowAttributes.argtypes = (
    ctypes.c_void_p, ctypes.c_uint32, ctypes.c_ubyte, ctypes.c_uint32,
)  # fmt: skip
_user32.SetWindowPos.argtypes = (
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int,
    ctypes.c_uint,
)  # fmt: skip
_user32.SetWindowDisplayAffinity.argtypes = (ctypes.c_void_p, ctypes.c_uint32)


class Win32Surface(Surface):
    """The overlay's window; the desktop of a session cannot go away under it."""

    def __init__(self) -> None:
        self._window = 0

    @property
    def lost(self) -> bool:
        return False

    def float_above(self, window: int, game: int | None) -> None:
        self._window = window
        style = _user32.GetWindowLongPtrW(window, _GWL_EXSTYLE)
        style |= _WS_EX_NOACTIVATE | _WS_EX_TOPMOST | _WS_EX_TOOLWINDOW
        style |= _WS_EX_TRANSPARENT | _WS_EX_LAYERED  # clicks go through
        _user32.SetWindowLongPtrW(window, _GWL_EXSTYLE, style)
        _user32.SetLayeredWindowAttributes(window, 0, 255, _LWA_ALPHA)  # opaque

    def shown(self) -> None:
        _user32.SetWindowPos(self._window, _HWND_TOPMOST, 0, 0, 0, 0, _SWP)

    def exclude_from_capture(self, window: int) -> None:
        if not _user32.SetWindowDisplayAffinity(window, _WDA_EXCLUDEFROMCAPTURE):
            log.warning(
                "the overlay cannot be hidden from recorders (error %d); Windows 10 2004 or"
                " later can",
                ctypes.get_last_error(),
            )

    def close(self) -> None:
        self._window = 0
