"""Windows of the Windows desktop, through user32 and dwmapi with ctypes.

The process is made aware of each monitor's scale once, so that all coordinates are physical
pixels. Used on the thread that opened it. Never run by the tests: there is no Windows there.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from ctypes import wintypes

from overlay.errors import WindowNotFound
from overlay.frame import Region
from overlay.window import Desktop, Window

assert sys.platform == "win32"

_PER_MONITOR_AWARE_V2 = -4
_DWMWA_EXTENDED_FRAME_BOUNDS = 9
_DWMWA_CLOAKED = 14
_GWL_EXSTYLE = -20
_WS_EX_TOOLWINDOW = 0x80
_GA_ROOT = 2
_WH_MOUSE_LL = 14
_HC_ACTION = 0
_WM_LBUTTONDOWN, _WM_LBUTTONUP, _WM_RBUTTONDOWN = 0x0201, 0x0202, 0x0204
_VK_ESCAPE = 0x1B
_PM_REMOVE = 1
_LRESULT = ctypes.c_ssize_t

_EnumProc = ctypes.WINFUNCTYPE(wintypes.BOOL, wintypes.HWND, wintypes.LPARAM)
_HookProc = ctypes.WINFUNCTYPE(_LRESULT, ctypes.c_int, wintypes.WPARAM, wintypes.LPARAM)


class _MouseHook(ctypes.Structure):
    """MSLLHOOKSTRUCT."""

    _fields_ = (
        ("pt", wintypes.POINT),
        ("mouseData", wintypes.DWORD),
        ("flags", wintypes.DWORD),
        ("time", wintypes.DWORD),
        ("dwExtraInfo", ctypes.c_size_t),
    )


def _user32() -> ctypes.WinDLL:
    """Load user32 of our own, so that these prototypes do not disturb other users of it."""
    dll = ctypes.WinDLL("user32", use_last_error=True)
    hwnd, out = wintypes.HWND, ctypes.POINTER
    dll.EnumWindows.argtypes = [_EnumProc, wintypes.LPARAM]
    dll.IsWindow.argtypes = [hwnd]
    dll.IsWindowVisible.argtypes = [hwnd]
    dll.IsIconic.argtypes = [hwnd]
    dll.GetWindowTextLengthW.argtypes = [hwnd]
    dll.GetWindowTextW.argtypes = [hwnd, wintypes.LPWSTR, ctypes.c_int]
    dll.GetClassNameW.argtypes = [hwnd, wintypes.LPWSTR, ctypes.c_int]
    dll.GetClientRect.argtypes = [hwnd, out(wintypes.RECT)]
    dll.ClientToScreen.argtypes = [hwnd, out(wintypes.POINT)]
    dll.GetWindowThreadProcessId.argtypes = [hwnd, out(wintypes.DWORD)]
    dll.GetWindowThreadProcessId.restype = wintypes.DWORD
    dll.GetWindowLongW.argtypes = [hwnd, ctypes.c_int]
    dll.GetWindowLongW.restype = wintypes.LONG
    dll.GetAncestor.argtypes = [hwnd, wintypes.UINT]
    dll.GetAncestor.restype = hwnd
    dll.WindowFromPoint.argtypes = [wintypes.POINT]
    dll.WindowFromPoint.restype = hwnd
    dll.GetAsyncKeyState.argtypes = [ctypes.c_int]
    dll.GetAsyncKeyState.restype = ctypes.c_short
    dll.SetWindowsHookExW.argtypes = [
        ctypes.c_int, _HookProc, wintypes.HINSTANCE, wintypes.DWORD,
    ]  # fmt: skip
    dll.SetWindowsHookExW.restype = wintypes.HHOOK
    dll.CallNextHookEx.argtypes = [
        wintypes.HHOOK, ctypes.c_int, wintypes.WPARAM, wintypes.LPARAM,
    ]  # fmt: skip
    dll.CallNextHookEx.restype = _LRESULT
    dll.UnhookWindowsHookEx.argtypes = [wintypes.HHOOK]
    dll.PeekMessageW.argtypes = [
        out(wintypes.MSG), hwnd, wintypes.UINT, wintypes.UINT, wintypes.UINT,
    ]  # fmt: skip
    dll.SetProcessDpiAwarenessContext.argtypes = [ctypes.c_void_p]
    return dll


def _dwmapi() -> ctypes.WinDLL:
    dll = ctypes.WinDLL("dwmapi")
    dll.DwmGetWindowAttribute.argtypes = [
        wintypes.HWND, wintypes.DWORD, ctypes.c_void_p, wintypes.DWORD,
    ]  # fmt: skip
    dll.DwmGetWindowAttribute.restype = ctypes.c_long
    return dll


user32 = _user32()
dwmapi = _dwmapi()


def use_physical_pixels() -> None:
    """Make the process aware of each monitor's scale; harmless when it already is."""
    # It fails with ACCESS_DENIED when a toolkit or the manifest has chosen before us.
    user32.SetProcessDpiAwarenessContext(_PER_MONITOR_AWARE_V2)


def client_region(hwnd: int) -> Region | None:
    """Ask where a window's client area is, in physical pixels; None if the window is gone."""
    rect, origin = wintypes.RECT(), wintypes.POINT()
    if not user32.GetClientRect(hwnd, ctypes.byref(rect)):
        return None
    if not user32.ClientToScreen(hwnd, ctypes.byref(origin)):
        return None
    return Region(origin.x, origin.y, rect.right, rect.bottom)


def frame_region(hwnd: int) -> Region | None:
    """Ask where a window with its frame is, without its shadow; None if it is gone."""
    rect = wintypes.RECT()
    status = dwmapi.DwmGetWindowAttribute(
        hwnd, _DWMWA_EXTENDED_FRAME_BOUNDS, ctypes.byref(rect), ctypes.sizeof(rect)
    )
    if status != 0:
        return None
    return Region(rect.left, rect.top, rect.right - rect.left, rect.bottom - rect.top)


def is_alive(hwnd: int) -> bool:
    """Ask whether the window still exists."""
    return bool(user32.IsWindow(hwnd))


def is_visible(hwnd: int) -> bool:
    """Ask whether the window is shown and not minimised."""
    return bool(user32.IsWindowVisible(hwnd)) and not user32.IsIconic(hwnd)


class Win32Desktop(Desktop):
    """The top-level windows of the desktop."""

    def __init__(self) -> None:
        use_physical_pixels()
        self._own_pid = ctypes.WinDLL("kernel32").GetCurrentProcessId()

    def windows(self) -> list[Window]:
        """List visible and minimised top-level windows, topmost first, without our own."""
        handles: list[int] = []

        def note(hwnd: int, _: int) -> bool:
            handles.append(hwnd)
            return True

        user32.EnumWindows(_EnumProc(note), 0)  # in stacking order, from the top
        described = (self._describe(hwnd) for hwnd in handles)
        return [window for window in described if window is not None]

    def pick(self) -> Window:
        """Let the player click on a window; Escape or the right button cancels.

        Raises:
            WindowNotFound: cancelled, nothing under the pointer, or the hook is refused.
        """
        hwnd = self._root_at(_clicked_point(lambda: self._key_is_down(_VK_ESCAPE)))
        window = self._describe(hwnd) if hwnd else None
        if window is None:
            raise WindowNotFound("there is no window where you clicked")
        return window

    def close(self) -> None:
        """There is nothing to free."""

    def _describe(self, hwnd: int) -> Window | None:
        """Ask for everything about a window; None for hidden, cloaked, tool and own windows."""
        if not user32.IsWindowVisible(hwnd):
            return None
        if user32.GetWindowLongW(hwnd, _GWL_EXSTYLE) & _WS_EX_TOOLWINDOW or self._cloaked(hwnd):
            return None
        pid = wintypes.DWORD()
        user32.GetWindowThreadProcessId(hwnd, ctypes.byref(pid))
        length = user32.GetWindowTextLengthW(hwnd)
        if pid.value == self._own_pid or length == 0:
            return None
        title = ctypes.create_unicode_buffer(length + 1)
        user32.GetWindowTextW(hwnd, title, length + 1)
        wm_class = ctypes.create_unicode_buffer(257)
        user32.GetClassNameW(hwnd, wm_class, 257)
        region = client_region(hwnd)
        if region is None:
            return None
        visible = not user32.IsIconic(hwnd)
        return Window(hwnd, title.value, wm_class.value, pid.value, region, visible)

    def _cloaked(self, hwnd: int) -> bool:
        """Ask whether the window is invisible although shown (suspended app, other desktop)."""
        cloaked = wintypes.DWORD()
        status = dwmapi.DwmGetWindowAttribute(
            hwnd, _DWMWA_CLOAKED, ctypes.byref(cloaked), ctypes.sizeof(cloaked)
        )
        return status == 0 and cloaked.value != 0

    def _root_at(self, point: wintypes.POINT) -> int:
        return user32.GetAncestor(user32.WindowFromPoint(point), _GA_ROOT) or 0

    def _key_is_down(self, key: int) -> bool:
        return bool(user32.GetAsyncKeyState(key) & 0x8000)


def _clicked_point(cancelled: Callable[[], bool]) -> wintypes.POINT:
    """Wait for a click and keep it from the window under it.

    Raises:
        WindowNotFound: cancelled, or Windows refuses the hook.
    """
    clicks: list[tuple[int, int, int]] = []  # filled by the hook, on this thread

    def on_mouse(code: int, message: int, data: int) -> int:
        if code == _HC_ACTION and message in (_WM_LBUTTONDOWN, _WM_LBUTTONUP, _WM_RBUTTONDOWN):
            point = _MouseHook.from_address(data).pt
            clicks.append((message, point.x, point.y))
            return 1  # swallowed
        return int(user32.CallNextHookEx(None, code, message, data))

    callback = _HookProc(on_mouse)  # must live as long as the hook
    hook = user32.SetWindowsHookExW(_WH_MOUSE_LL, callback, None, 0)
    if not hook:
        raise WindowNotFound(
            f"Windows refuses to watch the mouse (error {ctypes.get_last_error()}); "
            "name the window by title or class instead"
        )
    try:
        message = wintypes.MSG()
        while True:
            # The hook is called from within the message loop of the thread that set it.
            while user32.PeekMessageW(ctypes.byref(message), None, 0, 0, _PM_REMOVE):
                pass
            for kind, x, y in clicks:
                if kind == _WM_LBUTTONUP:  # the whole click was ours
                    return wintypes.POINT(x, y)
                if kind == _WM_RBUTTONDOWN:
                    raise WindowNotFound("picking a window was cancelled")
            if cancelled():
                raise WindowNotFound("picking a window was cancelled")
            time.sleep(0.005)
    finally:
        user32.UnhookWindowsHookEx(hook)
