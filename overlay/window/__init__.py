"""Windows of the desktop: list them, find the game, pick one with a click.

Back ends are one module each: `x11` and `win32`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from overlay.frame import Region


@dataclass(frozen=True, slots=True)
class Window:
    """A top-level window.

    Attributes:
        id: X11 window id or HWND.
        title, wm_class: as the program set them (`wm_class`: window class on Windows).
        pid: 0 if unknown.
        region: client area (without frame and title bar), physical pixels, desktop coordinates.
        visible: mapped and not minimised.
    """

    id: int
    title: str
    wm_class: str
    pid: int
    region: Region
    visible: bool


@dataclass(frozen=True, slots=True)
class Query:
    """What window is wanted; all fields that are set must match.

    Attributes:
        title: regular expression, searched in the title, ignoring case.
        wm_class: regular expression, searched in the class, ignoring case.
        pid, id: exact.
    """

    title: str | None = None
    wm_class: str | None = None
    pid: int | None = None
    id: int | None = None


class Desktop(ABC):
    """The window system's list of windows."""

    @abstractmethod
    def windows(self) -> list[Window]:
        """List visible and minimised top-level windows, topmost first, without our own."""

    @abstractmethod
    def pick(self) -> Window:
        """Let the player click on a window.

        Raises:
            WindowNotFound: cancelled, or nothing under the pointer.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the connection; idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
