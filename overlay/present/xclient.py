"""A connection to the X server of our own, with a thread that reads its events.

Pointer, hotkeys and stacking each have one. What a client did to the pointer and the keyboard
(barriers, a hidden cursor, grabbed keys) is undone by the server when its connection ends, also
after SIGKILL; and nothing here disturbs the connection GLFW draws through.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import xcffib
import xcffib.xproto as xproto

from overlay.errors import DisplayLost

log = logging.getLogger(__name__)

#: What `handle` gets for an extension's generic event.
GENERIC_EVENT = object()


def no_display(display: str | None = None) -> str:
    """Say that there is no X server, and what to do."""
    name = display or os.environ.get("DISPLAY", "")
    found = f"the X server {name!r} does not answer" if name else "DISPLAY is not set"
    return (
        f"no display: {found}; start the overlay in a desktop session (on Wayland with XWayland),"
        " set DISPLAY, or use --present offscreen"
    )


class _Connection(xcffib.Connection):
    def hoist_event(self, e: Any) -> Any:
        # The parser for XInput's raw events counts their valuators wrongly and reads past the
        # end of the event. We need only that there was one.
        if e.response_type & 0x7F == 35:
            return GENERIC_EVENT
        return super().hoist_event(e)  # type: ignore[no-untyped-call]


class XClient(ABC):
    """A connection and its event thread.

    Requests may be sent on any thread (libxcb locks); events are read on ours only.

    Args:
        name: of the thread, for people.
        display: name of the display; None = $DISPLAY.

    Raises:
        DisplayLost: there is no X server there.
    """

    #: Rest after each batch of events, so that a fast mouse costs little; in seconds.
    rest_s = 0.0

    def __init__(self, name: str, display: str | None = None) -> None:
        connect: Any = _Connection
        try:
            self.connection: Any = connect(display=display)
        except xcffib.ConnectionException as exc:
            raise DisplayLost(no_display(display)) from exc
        self.core: Any = self.connection.core
        setup = self.connection.get_setup()
        self.setup: Any = setup
        self.screen: Any = setup.roots[self.connection.pref_screen]
        self.root: int = self.screen.root
        self._mailbox: int = self.connection.generate_id()
        self.core.CreateWindow(
            0, self._mailbox, self.root, -1, -1, 1, 1, 0, xproto.WindowClass.InputOnly, 0, 0, []
        )  # fmt: skip
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._ending = threading.Event()
        #: The server is gone; nothing works any more.
        self.lost = False

    def start(self) -> None:
        """Begin to read events; the last thing a subclass does in its constructor."""
        self.connection.flush()
        self._thread.start()

    @abstractmethod
    def handle(self, event: Any) -> None:
        """Take one event (`GENERIC_EVENT` for an extension's); on the event thread."""

    def drained(self) -> None:  # noqa: B027 (a hook, empty on purpose)
        """Called after each batch of events; on the event thread."""

    def gone(self) -> None:  # noqa: B027 (likewise)
        """Called when the server is gone; on the event thread."""

    def sync(self) -> None:
        """Wait until the server has done all that was asked of it."""
        self.core.GetInputFocus().reply()

    def atom(self, name: str) -> int:
        """Look up an atom by a round trip."""
        return int(self.core.InternAtom(False, len(name), name).reply().atom)

    def words(self, window: int, name: int, count: int = 1) -> list[int]:
        """Read a property of 32-bit values; empty if there is none, or no window."""
        try:
            reply = self.core.GetProperty(False, window, name, 0, 0, count).reply()
        except xcffib.Error:
            return []
        return [int(v) for v in reply.value.to_atoms()] if reply.format == 32 else []

    def ancestors(self, window: int) -> list[int]:
        """List a window and its parents up to, and without, the root; empty if it is gone."""
        found = []
        while window not in (0, self.root):
            found.append(window)
            try:
                window = int(self.core.QueryTree(window).reply().parent)
            except xcffib.Error:
                return []
        return found

    def close(self) -> None:
        """End the thread and the connection; idempotent."""
        if self._ending.is_set():
            return
        self._ending.set()
        try:
            if self._thread.is_alive():
                # Without an event mask it goes to the window's creator: us.
                data: Any = xproto.ClientMessageData
                message: Any = xproto.ClientMessageEvent
                content = data.synthetic([0] * 5, "IIIII")
                event = message.synthetic(32, self._mailbox, 1, content)
                self.core.SendEvent(False, self._mailbox, 0, event.pack())
                self.connection.flush()
        except xcffib.ConnectionException:
            self.lost = True
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        self.connection.disconnect()

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                event = self._next(self.connection.wait_for_event)
                while event is not None and not self._ending.is_set():
                    self.handle(event)
                    event = self._next(self.connection.poll_for_event)
                if not self._ending.is_set():
                    self.drained()
                    time.sleep(self.rest_s)
        except xcffib.ConnectionException:
            self.lost = True
            if not self._ending.is_set():
                self.gone()

    def _next(self, read: Callable[[], Any]) -> Any:
        """Read an event, passing over errors of requests that came too late."""
        while True:
            try:
                return read()
            except xcffib.Error as exc:
                # The game's window went away between two requests, say.
                log.debug("late X error in %s: %r", self._thread.name, exc)
