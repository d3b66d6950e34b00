"""Capture a region of a monitor by Desktop Duplication, through dxcam.

On the capture thread; `close` and the properties also from others. It sees whatever is on the
monitor there, so the presenter excludes the overlay from capture (display affinity). Written
from the package's sources and never run by the tests: there is no Windows there.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from overlay.capture import CaptureSource
from overlay.capture.compare import same_pixels
from overlay.errors import BackendUnavailable, CaptureLost, SettingsError, SourceClosed
from overlay.frame import BufferRing, Frame, Lease, Region

assert sys.platform == "win32"

import dxcam  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: E402

_POLL_S = 0.001  # dxcam asks for a new frame without waiting
_MOST_OUTPUTS = 16


class DxcamSource(CaptureSource):
    """Frames of a region of one monitor; a picture equal to the last gives no frame.

    Args:
        region: what to capture, physical pixels, within one monitor.
    Raises:
        BackendUnavailable: Desktop Duplication does not work here.
        SettingsError: no monitor contains the region.
    """

    name = "dxcam"

    def __init__(self, region: Region) -> None:
        self._region = region
        self._closed = threading.Event()
        self._working = threading.Lock()  # held by grab, and by close while it frees
        self._camera, monitor = _camera_at(region)
        left, top = region.left - monitor.left, region.top - monitor.top
        self._box = (left, top, left + region.width, top + region.height)
        self._ring = BufferRing.of_shape((region.height, region.width, 4))
        self._last: Lease | None = None
        self._sequence = 0

    def grab(self, timeout_s: float) -> Frame | None:
        """Wait until the region changes; see `CaptureSource.grab`.

        Raises:
            CaptureLost: the desktop cannot be captured at the moment (mode switch, lock screen).
            SourceClosed: this source was closed.
        """
        deadline = time.perf_counter_ns() + int(timeout_s * 1e9)
        with self._working:
            while True:
                if self._closed.is_set():
                    raise SourceClosed("the capture was closed")
                frame = self._look()
                if frame is not None:
                    return frame
                if time.perf_counter_ns() >= deadline:
                    return None
                # Not Event.wait, which wakes at the coarse ticks of the system clock.
                time.sleep(_POLL_S)

    @property
    def region(self) -> Region:
        """The region given, in physical pixels; it does not move."""
        return self._region

    @property
    def visible(self) -> bool:
        """Always: a region of a monitor cannot be minimised."""
        return True

    def close(self) -> None:
        """Make a waiting `grab` return and free the duplication; idempotent."""
        self._closed.set()
        with self._working:
            self._last = None
            self._camera.release()

    def _look(self) -> Frame | None:
        try:
            view = self._camera.grab_view(region=self._box)
        except Exception as exc:  # COM errors, which dxcam does not translate
            raise CaptureLost(f"the desktop cannot be captured at the moment: {exc}") from exc
        ready_ns = time.perf_counter_ns()
        if view is None:
            return None
        lease = self._ring.take()
        np.copyto(lease.buffer, view)
        # The duplication tells of changes anywhere on the monitor.
        if self._last is not None and same_pixels(lease.buffer, self._last.buffer):
            return None
        self._last = lease
        captured_ns = time.perf_counter_ns()
        frame = Frame(lease.buffer, self._sequence, ready_ns, captured_ns, self._region, lease)
        self._sequence += 1
        return frame


def _camera_at(region: Region) -> tuple[Any, Region]:
    """Open the camera of the monitor that contains a region, and give the monitor's region."""
    monitors = []
    for camera, monitor in _cameras():
        if (
            monitor.left <= region.left
            and monitor.top <= region.top
            and region.left + region.width <= monitor.left + monitor.width
            and region.top + region.height <= monitor.top + monitor.height
        ):
            return camera, monitor
        camera.release()
        monitors.append(str(monitor))
    raise SettingsError(
        f"no monitor contains the region {region}; there are {', '.join(monitors) or 'none'}"
    )


def _cameras() -> Iterator[tuple[Any, Region]]:
    for device in range(_MOST_OUTPUTS):
        for output in range(_MOST_OUTPUTS):
            try:
                camera = dxcam.create(
                    device_idx=device, output_idx=output, output_color="BGRA", backend="dxgi"
                )
            except IndexError:
                if output == 0:
                    return
                break
            except Exception as exc:  # COM errors, which dxcam does not translate
                raise BackendUnavailable(
                    f"Desktop Duplication does not work here: {exc}; use `wgc` or `mss`"
                ) from exc
            # dxcam knows where its monitor is but does not publish it.
            place = camera._output.desc.DesktopCoordinates
            width, height = place.right - place.left, place.bottom - place.top
            yield camera, Region(place.left, place.top, width, height)
