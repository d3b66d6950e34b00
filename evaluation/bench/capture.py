"""Time the capture of a window that draws at 60 Hz, beside mss, which reads the screen."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from overlay.capture import CaptureSource, open_source
from overlay.capture.compare import same_pixels
from overlay.errors import CaptureLost
from overlay.frame import Frame, Size
from overlay.latency.child import Child, orderly_exit
from overlay.latency.code import decode_pixels
from overlay.latency.stamps import Stamps, Times
from overlay.trace.summary import Json, Percentiles, percentiles
from overlay.window import Query, find, open_desktop

RATE_HZ = 60.0
_WARM = 30


@dataclass(frozen=True, slots=True)
class CaptureRow:
    """One back end at one size.

    Attributes:
        size: of the window.
        frames: handed on by the source and timed.
        capture_ms: from the moment the source knew of new content until the pixels were there.
        drawn_to_captured_ms: from the stamp right before the window's swap until then.
        identical: frames handed on although no pixel had changed.
        missed: frames that the window drew meanwhile and that were not captured.
    """

    backend: str
    size: Size
    frames: int
    capture_ms: Percentiles
    drawn_to_captured_ms: Percentiles
    identical: int
    missed: int

    def to_json(self) -> dict[str, Json]:
        """Give the documented fields of `--json`."""
        return {
            "backend": self.backend,
            "size": str(self.size),
            "frames": self.frames,
            "capture_ms": self.capture_ms.to_json(),
            "drawn_to_captured_ms": self.drawn_to_captured_ms.to_json(),
            "identical": self.identical,
            "missed": self.missed,
        }


def measure_capture(size: Size, count: int) -> list[CaptureRow]:
    """Time `count` frames of the window's capture, and of mss on the same place of the screen.

    Raises:
        OverlayError: there is no display, or it cannot be captured.
    """
    with orderly_exit(), ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="overlay-bench-", ignore_cleanup_errors=True)
        )
        path = Path(folder) / "stamps"
        stamps = Stamps.create(path)
        arguments = ["--stamps", str(path), "--size", str(size), "--rate", str(RATE_HZ)]
        child = stack.enter_context(Child("overlay.latency.source", arguments))
        with open_desktop() as desktop:
            window = find(desktop, Query(id=int(child.ready["window"])))
        rows = []
        for name in ("auto", "mss"):
            with open_source(
                name, window=window, region=window.region if name == "mss" else None,
                rate_hz=RATE_HZ,
            ) as source:  # fmt: skip
                rows.append(_time_source(source, size, count, stamps.drawn))
        return rows


def _time_source(source: CaptureSource, size: Size, count: int, drawn: Times) -> CaptureRow:
    took, late, numbers = [], [], []
    identical = 0
    previous: Frame | None = None
    deadline = time.monotonic() + 5 + 4 * (count + _WARM) / RATE_HZ
    seen = 0
    while seen < count + _WARM and time.monotonic() < deadline:
        try:
            frame = source.grab(0.1)
        except CaptureLost:
            continue
        if frame is None:
            continue
        seen += 1
        if seen > _WARM:
            took.append((frame.captured_ns - frame.ready_ns) / 1e6)
            identical += previous is not None and same_pixels(previous.pixels, frame.pixels)
            number = decode_pixels(frame.pixels)
            if number:
                numbers.append(number)
                late.append((frame.captured_ns - int(drawn[number])) / 1e6)
        previous = frame
    different = len(set(numbers))
    span = max(numbers) - min(numbers) + 1 if numbers else 0
    return CaptureRow(
        source.name, size, len(took), percentiles(np.array(took)), percentiles(np.array(late)),
        identical, span - different,
    )  # fmt: skip
