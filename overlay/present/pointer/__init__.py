"""The pointer over a magnified game: a click must land on what the player sees.

The real pointer stays inside the game's client area, where clicks reach the game, and is
invisible; the presenter draws it where the overlay shows that point. All of it belongs to the
window system's connection of this process, so that it ends with the process, however it ends.

Back ends are one module each: `x11` and `win32`. Imported only by `open_pointer`.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from overlay.closing import Closing
from overlay.frame import Pixels, Region
from overlay.present.placement import PointMap


@dataclass(frozen=True, slots=True, eq=False)
class CursorSprite:
    """The pointer as it would look on the game, at the game's own scale.

    Attributes:
        pixels: uint8 BGRA, (H, W, 4), premultiplied by alpha; the same object as long as the
            shape is the same.
        hotspot: the pixel of `pixels` that points.
        position: the pixel of the game's client area that `hotspot` covers.
        serial: changes with `pixels`.
    """

    pixels: Pixels
    hotspot: tuple[int, int]
    position: tuple[float, float]
    serial: int

    @property
    def corner(self) -> tuple[float, float]:
        """Where the sprite's top left corner is, in pixels of the client area."""
        return self.position[0] - self.hotspot[0], self.position[1] - self.hotspot[1]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the client area."""
        return self.pixels.shape[1], self.pixels.shape[0]


class Pointer(Closing):
    """Confines, hides and reports the pointer. Methods belong to the main thread.

    The game's window is given at the start. Confinement holds only while that window has the
    keyboard focus: it is suspended and taken up again by itself.
    """

    @abstractmethod
    def watch(self, game: Region) -> None:
        """Report position and shape while the pointer is within the game; do not confine it."""

    @abstractmethod
    def confine(self, game: Region, points: PointMap) -> None:
        """Keep the pointer, invisible, in the game's client area while the game has the focus.

        A pointer outside moves to the point of the game that the overlay shows under it.
        Calling it again with the same values is free; with others it moves the fence.
        """

    @abstractmethod
    def release(self) -> None:
        """Let the pointer go and show it, where the player last saw it; stop reporting it."""

    @property
    @abstractmethod
    def confined(self) -> bool:
        """Whether the pointer is confined at this moment."""

    @abstractmethod
    def position(self) -> tuple[float, float] | None:
        """Pixel of the client area the pointer is on; None outside of it, or not watched."""

    @abstractmethod
    def sprite(self) -> CursorSprite | None:
        """What to draw for the pointer; None if nothing is.

        A new object means a new look or position, the same object that nothing changed.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the pointer and free the connection; idempotent."""


def open_pointer(window: int, changed: Callable[[], None]) -> Pointer:
    """Open the window system's pointer.

    Args:
        window: the game's X11 window id or HWND; its focus decides about confinement.
        changed: called on another thread, at most every 4 ms, when `sprite` may have changed.

    Raises:
        BackendUnavailable: the window system cannot do it; the message says what is missing.
        DisplayLost: there is no connection to it.
    """
    if sys.platform == "win32":
        from overlay.present.pointer.win32 import Win32Pointer

        return Win32Pointer(window, changed)
    else:
        from overlay.present.pointer.x11 import X11Pointer

        return X11Pointer(window, changed)
