"""The real `overlay` command, made observable: `python spied.py FOLDER ARGUMENT…`.

Everything runs as it does for a player, with two additions:

- every frame that the capture source hands to the pipeline is noted in FOLDER/frames.log (its
  number, when, a checksum of its colours, how many of its pixels have the marker's colour), and
  the newest one is kept in FOLDER/newest.raw;
- with MARKER=1 in the environment, a block in a colour no game uses is painted into the top left
  corner of what the presenter draws, after everything else.

`tests.live.helpers` starts it and reads what it notes.
"""

from __future__ import annotations

import os
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: Blue, green, red of the marker: in no palette and in no texture.
MARKER = (253, 1, 254)
MARKER_PX = 40
#: Largest frame that is kept, in bytes.
ROOM = 1920 * 1080 * 4
_MARKER_WORD = MARKER[0] | MARKER[1] << 8 | MARKER[2] << 16


class Notes:
    """What was captured, in files that the test reads meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._log = (folder / "frames.log").open("w", buffering=1)
        self._newest = np.memmap(folder / "newest.raw", np.uint8, "w+", shape=(ROOM,))
        # count * 2, odd while the pixels change; width; height
        self._head = np.memmap(folder / "newest.head", np.int64, "w+", shape=(3,))
        self._count = 0

    def add(self, pixels: Any) -> None:
        height, width = pixels.shape[:2]
        words = np.ascontiguousarray(pixels).view(np.uint32)[..., 0] & 0xFFFFFF
        self._head[0] = 2 * self._count + 1
        self._head[1:] = width, height
        self._newest[: pixels.size].reshape(pixels.shape)[:] = pixels
        self._count += 1
        self._head[0] = 2 * self._count
        marked = int(np.count_nonzero(words == _MARKER_WORD))
        at_ms = time.monotonic_ns() // 1_000_000
        self._log.write(f"{self._count} {at_ms} {zlib.crc32(words.tobytes())} {marked}\n")


def note_captures(notes: Notes) -> None:
    """Note each frame that any source gives from here on."""
    import overlay.run

    opens = overlay.run.open_source

    def open_noting(*args: Any, **options: Any) -> Any:
        source: Any = opens(*args, **options)
        grab: Callable[[float], Any] = source.grab

        def noting(timeout_s: float) -> Any:
            frame = grab(timeout_s)
            if frame is not None:
                notes.add(frame.pixels)
            return frame

        source.grab = noting
        return source

    overlay.run.open_source = open_noting


def paint_marker() -> None:
    """Paint the marker over everything that is drawn from here on."""
    from overlay.present.gl import GL
    from overlay.present.renderer import Renderer

    draw = Renderer.draw

    def draw_marked(self: Any, *args: Any, **options: Any) -> Any:
        times = draw(self, *args, **options)
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, self.target)
        GL.glEnable(GL.GL_SCISSOR_TEST)
        GL.glScissor(0, self.surface.height - MARKER_PX, MARKER_PX, MARKER_PX)
        blue, green, red = (value / 255 for value in MARKER)
        GL.glClearColor(red, green, blue, 1.0)
        GL.glClear(GL.GL_COLOR_BUFFER_BIT)
        GL.glDisable(GL.GL_SCISSOR_TEST)
        return times

    setattr(Renderer, "draw", draw_marked)  # noqa: B010 - mypy refuses the assignment


def main() -> int:
    from overlay.cli import main as overlay

    note_captures(Notes(Path(sys.argv[1])))
    if os.environ.get("MARKER"):
        paint_marker()
    return overlay(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
