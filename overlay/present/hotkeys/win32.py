"""Hotkeys on Windows: RegisterHotKey on a thread with a message loop.

Windows ends the registrations with the thread, so also with the process. Never run by the
project itself; see docs/platforms.md.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from ctypes import wintypes

from overlay.present import Action, Command
from overlay.present.hotkeys import HELD, Hotkeys
from overlay.present.hotkeys.keys import Key, Modifier

assert sys.platform == "win32"

log = logging.getLogger(__name__)

_MODIFIERS: dict[Modifier, int] = {"alt": 0x1, "ctrl": 0x2, "shift": 0x4, "super": 0x8}
_MOD_NOREPEAT = 0x4000
_WM_QUIT, _WM_HOTKEY, _WM_TIMER = 0x0012, 0x0312, 0x0113
_PM_NOREMOVE = 0
_HOLD_MS = 15  # how often a held key is looked at: Windows does not report its release

_user32 = ctypes.WinDLL("user32", use_last_error=True)
_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_user32.RegisterHotKey.argtypes = (wintypes.HWND, ctypes.c_int, wintypes.UINT, wintypes.UINT)
_user32.GetAsyncKeyState.restype = ctypes.c_short
_user32.SetTimer.restype = ctypes.c_size_t
_user32.SetTimer.argtypes = (wintypes.HWND, ctypes.c_size_t, wintypes.UINT, ctypes.c_void_p)
_user32.KillTimer.argtypes = (wintypes.HWND, ctypes.c_size_t)
_user32.PostThreadMessageW.argtypes = (
    wintypes.DWORD, wintypes.UINT, wintypes.WPARAM, wintypes.LPARAM,
)  # fmt: skip


class Win32Hotkeys(Hotkeys):
    """Hotkeys of the session's desktop."""

    def __init__(self, keys: Mapping[Action, Key], wake: Callable[[], None]) -> None:
        super().__init__(wake)
        self._keys = keys
        self._thread_id = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hotkeys", daemon=True)
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        if self._thread.is_alive():
            _user32.PostThreadMessageW(self._thread_id, _WM_QUIT, 0, 0)
            self._thread.join()

    def _run(self) -> None:
        message = wintypes.MSG()
        # The first look makes the thread's message queue, which close() posts to.
        _user32.PeekMessageW(ctypes.byref(message), None, 0, 0, _PM_NOREMOVE)
        self._thread_id = int(_kernel32.GetCurrentThreadId())
        actions = self._register()
        self._ready.set()
        held: dict[Action, Key] = {}
        timer = 0
        while _user32.GetMessageW(ctypes.byref(message), None, 0, 0) > 0:
            if message.message == _WM_HOTKEY:
                action = actions[int(message.wParam)]
                self.push(Command(action))
                if action in HELD:
                    held[action] = self._keys[action]
                    timer = timer or _user32.SetTimer(None, 0, _HOLD_MS, None)
            elif message.message == _WM_TIMER:
                for action, key in list(held.items()):
                    if not _user32.GetAsyncKeyState(key.codes.vk) & 0x8000:
                        del held[action]
                        self.push(Command(action, pressed=False))
                if not held and timer:
                    _user32.KillTimer(None, timer)
                    timer = 0
        for number in actions:
            _user32.UnregisterHotKey(None, number)

    def _register(self) -> dict[int, Action]:
        bound: dict[Action, Key] = {}
        taken: dict[Action, Key] = {}
        actions: dict[int, Action] = {}
        for number, (action, key) in enumerate(self._keys.items(), 1):
            mask = _MOD_NOREPEAT | sum(_MODIFIERS[modifier] for modifier in key.modifiers)
            if _user32.RegisterHotKey(None, number, mask, key.codes.vk):
                bound[action] = key
                actions[number] = action
            else:
                taken[action] = key
                log.warning(
                    "hotkey %s (%s) is taken by another program; choose another under [hotkeys]",
                    key,
                    action,
                )
        self.bound, self.taken = bound, taken
        return actions
