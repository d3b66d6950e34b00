"""The self-test's game: a window that draws its frame number as a coded strip.

A process of its own (`python -m overlay.latency.source`), so that it competes with the overlay
as a game does. Frame n is due n periods after the first; a late frame does not delay the ones
after it, and frames that were missed altogether are not made up for.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from overlay.frame import Region, Size
from overlay.latency.child import end_with_parent, say
from overlay.latency.code import BLOCKS, LARGEST, STRIP_SHARE, blocks
from overlay.latency.stamps import Stamps, Times
from overlay.settings import parse_size

if sys.platform == "linux" and os.environ.get("DISPLAY"):
    # In a Wayland session the wheel's GLFW would open a window that X11 capture cannot see.
    os.environ.setdefault("PYGLFW_LIBRARY_VARIANT", "x11")

import glfw

from overlay.present.gl import GL, renderer_name

TITLE = "Overlay latency source"

GLFW: Any = glfw  # its stubs have no types for half of what is used here


class CodedWindow:
    """The window. It never asks for the focus.

    Args:
        size: of the client area, in pixels.
        title: of the window.
        where: its top left corner; None = in the middle of the primary monitor.

    Raises:
        RuntimeError: there is no display, or it has no OpenGL 3.3; the message is GLFW's.
    """

    def __init__(
        self, size: Size, title: str = TITLE, where: tuple[int, int] | None = None
    ) -> None:
        self._error = "no reason given"
        GLFW.set_error_callback(self._note)
        if not GLFW.init():
            raise RuntimeError(
                f"no display: {self._error}; start it in a desktop session, or set DISPLAY"
            )
        if where is None:
            left, top, width, height = GLFW.get_monitor_workarea(GLFW.get_primary_monitor())
            where = (left + (width - size.width) // 2, top + (height - size.height) // 2)
        hints = {
            glfw.CONTEXT_VERSION_MAJOR: 3,
            glfw.CONTEXT_VERSION_MINOR: 3,
            glfw.OPENGL_PROFILE: glfw.OPENGL_CORE_PROFILE,
            glfw.DECORATED: 0,
            glfw.RESIZABLE: 0,
            glfw.FOCUSED: 0,
            glfw.FOCUS_ON_SHOW: 0,
            glfw.POSITION_X: where[0],
            glfw.POSITION_Y: where[1],
        }
        for hint, value in hints.items():
            GLFW.window_hint(hint, value)
        self._window = GLFW.create_window(size.width, size.height, title, None, None)
        if not self._window:
            raise RuntimeError(f"GLFW cannot open a window: {self._error}")
        GLFW.make_context_current(self._window)
        GLFW.swap_interval(0)
        GL.glEnable(GL.GL_SCISSOR_TEST)
        #: The size in pixels that the window really got.
        self.size = Size(*GLFW.get_framebuffer_size(self._window))
        self.renderer = renderer_name()

    def _note(self, code: int, text: bytes | str) -> None:
        self._error = text.decode(errors="replace") if isinstance(text, bytes) else text

    @property
    def id(self) -> int:
        """X11 window id or HWND."""
        native = "get_win32_window" if sys.platform == "win32" else "get_x11_window"
        return int(getattr(GLFW, native)(self._window))

    @property
    def region(self) -> Region:
        left, top = GLFW.get_window_pos(self._window)
        return Region(left, top, self.size.width, self.size.height)

    def draw(self, number: int) -> None:
        """Draw frame `number` and wait until the GL has finished; not shown yet."""
        width, height = self.size
        strip = round(height * STRIP_SHARE)
        _fill(0, strip, width, height - strip, 0.1, 0.15 + 0.1 * (number >> 5 & 1), 0.25)
        for bar in range(8):  # something that moves, at several speeds
            left = (number * (bar + 1) + bar * width // 8) % width
            bottom = strip + (height - strip) * bar // 8
            tall = (height - strip) // 8
            _fill(left, bottom, width // 12, tall, 0.2 + bar / 12, 0.7 - bar / 16, 0.3)
        edges = [block * width // BLOCKS for block in range(BLOCKS + 1)]
        for block, light in enumerate(blocks(number)):
            level = 1.0 if light else 0.0
            _fill(edges[block], 0, edges[block + 1] - edges[block], strip, level, level, level)
        GL.glFinish()

    def show(self) -> bool:
        """Swap and handle events; False once someone closed the window."""
        GLFW.swap_buffers(self._window)
        GLFW.poll_events()
        return not GLFW.window_should_close(self._window)


def _fill(
    left: int, bottom: int, width: int, height: int, red: float, green: float, blue: float
) -> None:
    GL.glScissor(left, bottom, width, height)
    GL.glClearColor(red, green, blue, 1.0)
    GL.glClear(GL.GL_COLOR_BUFFER_BIT)


def draw_frames(window: CodedWindow, drawn: Times, rate_hz: float, last: int = LARGEST) -> None:
    """Draw frame 1, 2, … `last` at `rate_hz`; return when the window is closed.

    `drawn[n]` is stamped when frame n is finished, right before its swap.
    """
    period = 1 / rate_hz
    due = time.perf_counter()
    for number in range(1, last + 1):
        window.draw(number)
        drawn[number] = time.perf_counter_ns()
        if not window.show():
            return
        due += period
        now = time.perf_counter()
        if now > due + period:
            due += (now - due) // period * period  # frames missed altogether
        time.sleep(max(0.0, due - now))


def main() -> None:
    """Run as the parent asks; see `overlay.latency.child` for how it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stamps", type=Path, required=True)
    parser.add_argument("--size", type=parse_size, required=True)
    parser.add_argument("--rate", type=float, required=True)
    arguments = parser.parse_args()
    end_with_parent()
    try:
        window = CodedWindow(arguments.size)
    except RuntimeError as exc:
        say(error=str(exc))
        return
    stamps = Stamps(arguments.stamps)
    window.draw(0)
    window.show()
    say(window=window.id, region=str(window.region), renderer=window.renderer)
    draw_frames(window, stamps.drawn, arguments.rate)


if __name__ == "__main__":
    main()
