"""Capture: the first stage of the frame path, on its own thread.

Back ends are one module each: `x11`, `mss`, `replay`, `wgc`, `dxcam`. They are imported only by
`open_source`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from overlay.frame import Frame, Region


class CaptureSource(ABC):
    """Frames of one window, region or recording.

    `grab` is called on one thread, the capture thread; the properties and `close` may be used
    from others.
    """

    #: The back end's name on the command line.
    name: str

    @abstractmethod
    def grab(self, timeout_s: float) -> Frame | None:
        """Wait for new content and capture it.

        Content that did not change gives no frame. A resize shows as a frame of another size.

        Args:
            timeout_s: how long to wait at most; 0 asks once.
        Returns:
            The newest frame, or None if nothing new came in time (a minimised window, say).
            Its buffer goes back to the source when the frame is no longer referenced.
        Raises:
            CaptureLost: for now; calling again may succeed.
            SourceClosed: the window closed or the recording ended.
        """

    @property
    @abstractmethod
    def region(self) -> Region:
        """The client area on the desktop, in physical pixels, as last seen; it follows moves."""

    @property
    @abstractmethod
    def visible(self) -> bool:
        """Whether the window is mapped and not minimised, as last seen."""

    @abstractmethod
    def close(self) -> None:
        """Stop capturing, make a waiting `grab` return soon, and free everything; idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
