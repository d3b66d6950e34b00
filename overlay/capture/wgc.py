"""Capture one window with Windows Graphics Capture, through windows-capture.

Frames arrive on a thread of that library, which copies the client area into a leased buffer and
puts it into one slot, the newest winning; `grab` takes it on the capture thread. The window is
captured by its handle, so that the overlay is never in the picture. Written from the package's
sources and never run by the tests: there is no Windows there.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any

import numpy as np

from overlay.capture import CaptureSource
from overlay.capture.crop import client_box
from overlay.errors import BackendUnavailable, CaptureLost, SourceClosed, WindowNotFound
from overlay.frame import BufferRing, Frame, Region, Size

assert sys.platform == "win32"

import windows_capture  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: E402

from overlay.window import win32  # noqa: E402

log = logging.getLogger(__name__)

# What older versions of Windows refuse, the newest demand first: no yellow border needs
# Windows 11, an update interval Windows 11 24H2, no mouse pointer Windows 10 2004.
_OPTIONS: tuple[dict[str, object], ...] = (
    {"cursor_capture": False, "draw_border": False, "minimum_update_interval": 1},
    {"cursor_capture": False, "draw_border": False},
    {"cursor_capture": False, "draw_border": None},
    {"cursor_capture": None, "draw_border": None},
)


class WgcSource(CaptureSource):
    """Frames of the client area of one window, also while it is covered.

    Args:
        hwnd: the window.
    Raises:
        WindowNotFound: there is no such window.
        BackendUnavailable: this version of Windows cannot capture windows.
    """

    name = "wgc"

    def __init__(self, hwnd: int) -> None:
        win32.use_physical_pixels()
        region = win32.client_region(hwnd)
        if region is None:
            raise WindowNotFound(f"there is no window {hwnd:#x}")
        self._hwnd = hwnd
        self._region = region
        self._ring: BufferRing | None = None  # used by the library's thread only
        self._ring_size = Size(0, 0)
        self._sequence = 0  # used by the library's thread only
        self._changed = threading.Condition()
        self._newest: Frame | None = None  # guarded by _changed
        self._closed = False  # guarded by _changed
        self._gone = False  # guarded by _changed
        self._failure: Exception | None = None  # guarded by _changed
        self._control = self._start()

    def grab(self, timeout_s: float) -> Frame | None:
        """Wait for the next frame; see `CaptureSource.grab`.

        Raises:
            CaptureLost: a frame could not be taken over.
            SourceClosed: the window or this source was closed.
        """

        def something() -> bool:
            return self._newest is not None or self._closed or self._gone or bool(self._failure)

        with self._changed:
            self._changed.wait_for(something, timeout_s)
            if self._closed:
                raise SourceClosed("the capture was closed")
            frame, self._newest = self._newest, None
            failure, self._failure = self._failure, None
            if frame is None and self._gone:
                raise SourceClosed(f"the game's window {self._hwnd:#x} was closed")
        if failure is not None:
            raise CaptureLost(f"window {self._hwnd:#x} cannot be captured: {failure}") from failure
        return frame

    @property
    def region(self) -> Region:
        """The client area on the desktop, in physical pixels."""
        return win32.client_region(self._hwnd) or self._region

    @property
    def visible(self) -> bool:
        """Whether the window is shown and not minimised; a minimised one gives no frames."""
        return win32.is_visible(self._hwnd)

    def close(self) -> None:
        """Make a waiting `grab` return and stop the library's thread; idempotent."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._newest = None
            self._changed.notify_all()
        self._control.stop()

    def _start(self) -> Any:
        """Start capturing with as many of the options as this Windows takes."""
        for options in _OPTIONS:
            capture = windows_capture.WindowsCapture(window_hwnd=self._hwnd, **options)
            self._listen(capture)
            try:
                control = capture.start_free_threaded()
            except Exception as exc:  # the library raises nothing more specific
                log.info("Windows refuses to capture with %s: %s", options, exc)
                refusal = exc
                continue
            return control
        raise BackendUnavailable(
            f"Windows cannot capture window {self._hwnd:#x}: {refusal}; it needs Windows 10 "
            "version 1903, else use `dxcam` or `mss`"
        ) from refusal

    def _listen(self, capture: Any) -> None:
        # The library knows its handlers by these names.
        @capture.event  # type: ignore[untyped-decorator,unused-ignore]
        def on_frame_arrived(frame: Any, capture_control: Any) -> None:
            self._take(frame.frame_buffer)

        @capture.event  # type: ignore[untyped-decorator,unused-ignore]
        def on_closed() -> None:
            with self._changed:
                self._gone = True
                self._changed.notify_all()

    def _take(self, captured: np.ndarray) -> None:
        """Copy the client area out of a frame, which is only valid during this call.

        Args:
            captured: uint8 BGRA, (H, W, 4), rows padded; the window with its frame.
        """
        ready_ns = time.perf_counter_ns()
        try:
            frame = self._copy(captured, ready_ns)
        except Exception as exc:  # must not reach the library's thread; grab raises it
            with self._changed:
                self._failure = exc
                self._changed.notify_all()
            return
        if frame is not None:
            with self._changed:
                self._newest = frame
                self._changed.notify_all()

    def _copy(self, captured: np.ndarray, ready_ns: int) -> Frame | None:
        outer, inner = win32.frame_region(self._hwnd), win32.client_region(self._hwnd)
        if outer is None or inner is None:
            return None
        box = client_box(outer, inner, Size(captured.shape[1], captured.shape[0]))
        if box is None:
            return None
        size = Size(box.width, box.height)
        if self._ring is None or size != self._ring_size:
            self._ring, self._ring_size = BufferRing.of_shape((size.height, size.width, 4)), size
        lease = self._ring.take()
        rows = slice(box.top, box.top + box.height)
        np.copyto(lease.buffer, captured[rows, box.left : box.left + box.width])
        self._region = inner
        captured_ns = time.perf_counter_ns()
        sequence, self._sequence = self._sequence, self._sequence + 1
        return Frame(lease.buffer, sequence, ready_ns, captured_ns, inner, lease)
