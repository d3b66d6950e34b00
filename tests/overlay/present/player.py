"""A player: presses real keys and moves the real pointer of an X display, through XTEST."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable
from typing import Any

import xcffib
import xcffib.xfixes
import xcffib.xproto
import xcffib.xtest

from tests.games import dies_with_parent, require

_SYMBOLS = {"ctrl": 0xFFE3, "alt": 0xFFE9, "shift": 0xFFE1, "super": 0xFFEB, "num": 0xFF7F}
_SYMBOLS |= {"caps": 0xFFE5, "f9": 0xFFC6, "escape": 0xFF1B}


def eventually(true: Callable[[], Any], timeout_s: float = 5.0, every_s: float = 0.01) -> bool:
    """Wait until something is true; False after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


class Player:
    """Keyboard and pointer of one display."""

    def __init__(self, display: str) -> None:
        self.connection = xcffib.connect(display)
        self.core = self.connection.core
        setup = self.connection.get_setup()
        self.root = setup.roots[0].root
        self.test = self.connection(xcffib.xtest.key)
        self._down: list[int] = []
        first = setup.min_keycode
        table = self.core.GetKeyboardMapping(first, setup.max_keycode - first + 1).reply()
        width = table.keysyms_per_keycode
        self._codes: dict[int, int] = {}
        for index, symbol in enumerate(table.keysyms):
            self._codes.setdefault(symbol, first + index // width)

    def code(self, name: str) -> int:
        """Give the keycode of a key."""
        return self._codes[_SYMBOLS.get(name) or ord(name)]

    def _fake(self, kind: int, detail: int, x: int = 0, y: int = 0) -> None:
        self.test.FakeInput(kind, detail, 0, self.root if kind == 6 else 0, x, y, 0)
        self.core.GetInputFocus().reply()

    def down(self, *names: str) -> None:
        """Press keys and keep them down."""
        for name in names:
            self._fake(2, self.code(name))
            self._down.append(self.code(name))

    def up(self, *names: str) -> None:
        """Let keys go."""
        for name in names:
            self._fake(3, self.code(name))
            self._down.remove(self.code(name))

    def tap(self, *names: str) -> None:
        """Press keys in order and let them go in the opposite one: "ctrl", "alt", "q"."""
        self.down(*names)
        self.up(*reversed(names))

    def move_to(self, x: int, y: int) -> None:
        """Jump to a place on the desktop, as a tablet does."""
        self._fake(6, 0, x, y)

    def move_by(self, x: int, y: int) -> None:
        """Move as a mouse does."""
        self._fake(6, 1, x, y)

    def click(self, button: int = 1) -> None:
        self._fake(4, button)
        self._fake(5, button)

    @property
    def place(self) -> tuple[int, int]:
        """Where the pointer is."""
        reply = self.core.QueryPointer(self.root).reply()
        return reply.root_x, reply.root_y

    def focus(self, window: int) -> None:
        """Give a window the keyboard, as without a window manager."""
        self.core.SetInputFocus(1, window, 0)
        self.core.GetInputFocus().reply()

    def activate(self, window: int) -> None:
        """Ask the window manager to give a window the keyboard."""
        name = "_NET_ACTIVE_WINDOW"
        atom = self.core.InternAtom(False, len(name), name).reply().atom
        data = xcffib.xproto.ClientMessageData.synthetic([2, 0, 0, 0, 0], "IIIII")
        event = xcffib.xproto.ClientMessageEvent.synthetic(32, window, atom, data)
        mask = xcffib.xproto.EventMask
        to = mask.SubstructureRedirect | mask.SubstructureNotify
        self.core.SendEvent(False, self.root, to, event.pack())
        self.core.GetInputFocus().reply()

    @property
    def focused(self) -> int:
        """The window that has the keyboard."""
        return self.core.GetInputFocus().reply().focus

    def close(self) -> None:
        """Let everything go and restore what others expect."""
        for code in self._down:
            self._fake(3, code)
        self.focus(1)
        self.connection.disconnect()

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def give_red_cursor(player: Player, window: int) -> None:
    """Give a window a 16x8 cursor, all of it opaque red, that points with its pixel (5, 2)."""
    core, connection = player.core, player.connection
    bitmap, gc, cursor = (connection.generate_id() for _ in range(3))
    core.CreatePixmap(1, bitmap, player.root, 16, 8)
    core.CreateGC(gc, bitmap, xcffib.xproto.GC.Foreground, [1])
    whole = xcffib.xproto.RECTANGLE.synthetic(0, 0, 16, 8)
    core.PolyFillRectangle(bitmap, gc, 1, [whole])
    core.CreateCursor(cursor, bitmap, bitmap, 65535, 0, 0, 0, 0, 0, 5, 2)
    core.ChangeWindowAttributes(window, xcffib.xproto.CW.Cursor, [cursor])
    core.GetInputFocus().reply()


class OwnServer:
    """An X server that a test may kill."""

    def __init__(self, *options: str) -> None:
        command = [require("Xvfb", "xvfb"), "-screen", "0", "1280x800x24", "-nolisten", "tcp"]
        read_end, write_end = os.pipe()
        self.process = subprocess.Popen(
            dies_with_parent([*command, "-displayfd", str(write_end), *options]),
            pass_fds=[write_end],
            stderr=subprocess.DEVNULL,
        )
        os.close(write_end)
        number = b""
        while not number.endswith(b"\n"):
            assert select.select([read_end], [], [], 30)[0]
            number += os.read(read_end, 64)
        self.name = f":{int(number)}"
        os.close(read_end)

    def __enter__(self) -> OwnServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
