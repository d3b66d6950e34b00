"""Capture a region of the screen by polling it, through mss; works wherever mss does.

On the capture thread; `close` and the properties also from others. It sees whatever is on the
screen there, the overlay too: place the overlay elsewhere ("beside"), or exclude it from
capture (the presenter does so on Windows). The region does not follow a window.
"""

from __future__ import annotations

import threading
import time

import mss
import numpy as np

from overlay.capture import CaptureSource
from overlay.capture.compare import same_pixels
from overlay.errors import BackendUnavailable, CaptureLost, SettingsError, SourceClosed
from overlay.frame import BufferRing, Frame, Lease, Region


class MssSource(CaptureSource):
    """Frames of a screen region, polled at a rate; a picture equal to the last gives no frame.

    Args:
        region: what to capture, physical pixels; or the number of a monitor, from 1 (0 = all).
        max_hz: how often to look.
        display: X display; None = $DISPLAY. Ignored elsewhere.
    Raises:
        BackendUnavailable: the screen cannot be read here.
        SettingsError: the region is not on the screen, or there is no such monitor.
    """

    name = "mss"

    def __init__(
        self, region: Region | int = 1, max_hz: float = 60.0, display: str | None = None
    ) -> None:
        if max_hz <= 0:
            raise SettingsError(f"the capture rate must be above 0 Hz, not {max_hz}")
        self._closed = threading.Event()
        self._working = threading.Lock()  # held by grab, and by close while it frees
        self._period_ns = int(1e9 / max_hz)
        self._due_ns = 0  # when to look next, on an absolute grid
        self._last: Lease | None = None
        self._sequence = 0
        try:
            self._screen = mss.MSS(display=display) if display else mss.MSS()
            monitors = self._screen.monitors
        except mss.ScreenShotError as exc:
            raise BackendUnavailable(f"the screen cannot be read with mss: {exc}") from exc
        try:
            self._region = _checked(region, monitors)
        except SettingsError:
            self._screen.close()
            raise
        self._box = {
            "left": self._region.left,
            "top": self._region.top,
            "width": self._region.width,
            "height": self._region.height,
        }
        self._ring = BufferRing.of_shape((self._region.height, self._region.width, 4))

    def grab(self, timeout_s: float) -> Frame | None:
        """Look at the screen at each tick until it differs; see `CaptureSource.grab`.

        Raises:
            CaptureLost: the screen cannot be read at the moment.
            SourceClosed: this source was closed.
        """
        deadline = time.perf_counter_ns() + int(timeout_s * 1e9)
        with self._working:
            while True:
                if not self._wait_for_tick(deadline):
                    return None
                frame = self._look()
                if frame is not None:
                    return frame

    @property
    def region(self) -> Region:
        """The region given, in physical pixels; it does not move."""
        return self._region

    @property
    def visible(self) -> bool:
        """Always: a region of the screen cannot be minimised."""
        return True

    def close(self) -> None:
        """Make a waiting `grab` return and free the connection; idempotent."""
        self._closed.set()
        with self._working:
            self._last = None
            self._screen.close()

    def _wait_for_tick(self, deadline: int) -> bool:
        """Sleep until the next look is due; False if that is after `deadline`."""
        due, now = self._due_ns, time.perf_counter_ns()
        if due > deadline:
            if self._closed.wait(max(0, deadline - now) / 1e9):
                raise SourceClosed("the capture was closed")
            return False
        if self._closed.wait(max(0, due - now) / 1e9):
            raise SourceClosed("the capture was closed")
        now = time.perf_counter_ns()
        # The next tick stays on the grid; ticks that are already over are left out.
        self._due_ns = max(due, now - self._period_ns) + self._period_ns
        return True

    def _look(self) -> Frame | None:
        ready_ns = time.perf_counter_ns()
        try:
            shot = self._screen.grab(self._box)
        except mss.ScreenShotError as exc:
            raise CaptureLost(f"the screen cannot be read at the moment: {exc}") from exc
        height, width = self._region.height, self._region.width
        pixels = np.frombuffer(shot.raw, np.uint8).reshape(height, width, 4)
        if self._last is not None and same_pixels(pixels, self._last.buffer):
            return None
        lease = self._ring.take()
        np.copyto(lease.buffer, pixels)
        self._last = lease
        captured_ns = time.perf_counter_ns()
        frame = Frame(lease.buffer, self._sequence, ready_ns, captured_ns, self._region, lease)
        self._sequence += 1
        return frame


def _checked(region: Region | int, monitors: list[dict[str, int]]) -> Region:
    """Find the region of a monitor, or check that a region is on the screen.

    Args:
        monitors: as mss lists them; the first is the whole desktop.
    """
    if isinstance(region, int):
        if not 0 <= region < len(monitors):
            raise SettingsError(f"there is no monitor {region}; there are 1 to {len(monitors) - 1}")
        return _region_of(monitors[region])
    desktop = _region_of(monitors[0])
    if (
        min(region.size) <= 0
        or region.left < desktop.left
        or region.top < desktop.top
        or region.left + region.width > desktop.left + desktop.width
        or region.top + region.height > desktop.top + desktop.height
    ):
        raise SettingsError(f"the region {region} is not within the desktop {desktop}")
    return region


def _region_of(monitor: dict[str, int]) -> Region:
    return Region(monitor["left"], monitor["top"], monitor["width"], monitor["height"])
