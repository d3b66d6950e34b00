"""The overlay's window on X11: override-redirect, kept above the game, and a display that may go.

Xlib ends the process with `exit(1)` when its connection breaks, and for most X errors. Here both
become a flag, so that the run ends in order and its trace is complete.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable
from typing import Any

import xcffib
import xcffib.xproto as xproto

from overlay.present.surface import Surface
from overlay.present.xclient import XClient

log = logging.getLogger(__name__)

_ErrorHandler = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_IoErrorHandler = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_IoErrorExitHandler = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)


class _XError(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("display", ctypes.c_void_p),
        ("resource", ctypes.c_ulong),
        ("serial", ctypes.c_ulong),
        ("code", ctypes.c_ubyte),
        ("request", ctypes.c_ubyte),
        ("minor", ctypes.c_ubyte),
    )


class _Broken:
    """Whether GLFW's connection broke; set by Xlib on whichever thread noticed."""

    flag = False


_broken = _Broken()


def _on_io_error(display: int) -> int:
    _broken.flag = True
    return 0


def _on_io_error_exit(display: int, data: int) -> None:
    # Returning is what counts: Xlib would call exit(1) otherwise.
    _broken.flag = True


def _on_error(display: int, event: int) -> int:
    error = ctypes.cast(event, ctypes.POINTER(_XError)).contents
    log.debug("X error %d of request %d.%d", error.code, error.request, error.minor)
    return 0


def _on_io_error_old(display: int) -> int:
    log.critical("the display server is gone")
    os._exit(6)


# Xlib keeps these addresses, so they live as long as the process.
_error_handler = _ErrorHandler(_on_error)
_io_error_handler = _IoErrorHandler(_on_io_error)
_io_error_handler_old = _IoErrorHandler(_on_io_error_old)
_io_error_exit_handler = _IoErrorExitHandler(_on_io_error_exit)


def survive_display_loss(display: int) -> None:
    """Make Xlib report a broken connection instead of ending the process.

    The handlers are never taken back, because the GL driver uses the connection until the end.
    Xlib before 1.7 (2020) cannot be kept from exiting; there the loss of the display ends the
    process with status 6 and one line, without finishing the trace.

    Args:
        display: address of the Xlib Display.
    """
    _broken.flag = False
    xlib = ctypes.CDLL("libX11.so.6")
    xlib.XSetErrorHandler(_error_handler)
    try:
        set_exit_handler = xlib.XSetIOErrorExitHandler
    except AttributeError:
        xlib.XSetIOErrorHandler(_io_error_handler_old)
        return
    xlib.XSetIOErrorHandler(_io_error_handler)
    set_exit_handler.argtypes = (ctypes.c_void_p, _IoErrorExitHandler, ctypes.c_void_p)
    set_exit_handler(display, _io_error_exit_handler, None)


class _Stacking(XClient):
    """Keeps the overlay above the game while it is shown."""

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__("stacking")
        self._wake = wake
        self._check = False  # owned by the event thread
        self.overlay = 0
        self.game: int | None = None

    def raise_overlay(self) -> None:
        stack = xproto.ConfigWindow.StackMode
        self.core.ConfigureWindow(self.overlay, stack, [xproto.StackMode.Above])
        self.connection.flush()

    def handle(self, event: Any) -> None:
        restacking = (
            xproto.ConfigureNotifyEvent
            | xproto.CirculateNotifyEvent
            | xproto.MapNotifyEvent
            | xproto.ReparentNotifyEvent
        )
        if isinstance(event, restacking) and event.window != self.overlay:
            self._check = True

    def drained(self) -> None:
        """Raise the overlay if the game is above it.

        Only then: menus and notifications may cover the overlay, and two overlays must not
        chase each other.
        """
        if not self._check or self.game is None:
            return
        self._check = False
        try:
            order = list(self.core.QueryTree(self.root).reply().children)
            frame = self.ancestors(self.game)[-1:]
            tops = [window for window in order if window in (self.overlay, *frame)]
            if len(tops) == 2 and tops[1] != self.overlay:
                log.debug("the game was raised above the overlay")
                self.raise_overlay()
        except xcffib.Error as exc:
            log.debug("stacking not checked: %r", exc)

    def gone(self) -> None:
        self._wake()


class X11Surface(Surface):
    """The overlay's window, on a connection and thread of its own.

    Args:
        display: address of GLFW's Xlib Display.
        wake: called on another thread when the server is gone.

    Raises:
        DisplayLost: there is no X server.
    """

    def __init__(self, display: int, wake: Callable[[], None]) -> None:
        survive_display_loss(display)
        self._client = _Stacking(wake)
        self._client.start()

    @property
    def lost(self) -> bool:
        return self._client.lost or _broken.flag

    def float_above(self, window: int, game: int | None) -> None:
        client = self._client
        client.overlay, client.game = window, game
        # No window manager: no frame, no focus, no say in where it is or what is above it.
        client.core.ChangeWindowAttributes(window, xproto.CW.OverrideRedirect, [1])
        mask = xproto.EventMask.SubstructureNotify
        client.core.ChangeWindowAttributes(client.root, xproto.CW.EventMask, [mask])
        client.sync()  # done before GLFW's connection maps the window

    def shown(self) -> None:
        try:
            self._client.raise_overlay()
        except xcffib.ConnectionException:
            self._client.lost = True

    def exclude_from_capture(self, window: int) -> None:
        log.warning("X11 cannot hide a window from recorders; the overlay stays visible to them")

    def close(self) -> None:
        self._client.close()
