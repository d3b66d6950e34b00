"""What a window needs beyond GLFW to be an overlay: one seam, one module per window system.

Above the game also after the game was raised, without the keyboard focus, without a frame, and
with the loss of the display reported instead of ending the process.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable


class Surface(ABC):
    """The native side of one GLFW window; methods belong to the main thread."""

    @property
    @abstractmethod
    def lost(self) -> bool:
        """Whether the display server is gone; no further GLFW or GL call is safe then."""

    @abstractmethod
    def float_above(self, window: int, game: int | None) -> None:
        """Make a window that was never shown an overlay above the game.

        Args:
            window: X11 window id or HWND of the overlay.
            game: X11 window id or HWND of the game; None if it is unknown.
        """

    @abstractmethod
    def shown(self) -> None:
        """Say that the overlay was just shown or moved, so that it is put on top."""

    @abstractmethod
    def exclude_from_capture(self, window: int) -> None:
        """Hide the overlay from recorders and screenshots, where the system can."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held besides the window; idempotent."""


def open_surface(display: int, wake: Callable[[], None]) -> Surface:
    """Open the native side; right after GLFW was initialised.

    Args:
        display: address of GLFW's Xlib Display; 0 elsewhere.
        wake: called on another thread when the display is lost.

    Raises:
        DisplayLost: there is no X server.
    """
    if sys.platform == "win32":
        from overlay.present.surface.win32 import Win32Surface

        return Win32Surface()
    else:
        from overlay.present.surface.x11 import X11Surface

        return X11Surface(display, wake)
