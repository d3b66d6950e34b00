"""The fake of the seam: cv2.resize on a worker thread, under the same contract as real engines.

For tests and for machines without OpenGL. `delay_s` makes it as slow as an engine may be.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

import cv2
import numpy as np

from overlay.errors import SettingsError
from overlay.frame import BufferRing, Frame, Lease, Picture, Size
from overlay.infer import Upscaler

#: cv2's filters by the names of our shaders; cv2's cubic is a little sharper than Catmull-Rom.
FILTERS = {
    "nearest": cv2.INTER_NEAREST_EXACT,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}


class ResizeUpscaler(Upscaler):
    """Upscale with cv2 by the smallest whole factor that reaches the output.

    Args:
        model: a filter of `FILTERS`; "default" is bicubic.
        source: size of the frames for which `output` is meant.
        output: size on screen.
        delay_s: how much longer than cv2 each frame shall take.
    Raises:
        SettingsError: unknown filter.
    """

    backend = "resize"
    device = "CPU, cv2"

    def __init__(self, model: str, source: Size, output: Size, delay_s: float = 0.0) -> None:
        name = "bicubic" if model == "default" else model
        if name not in FILTERS:
            raise SettingsError(f"resize has no filter {model!r} (one of {', '.join(FILTERS)})")
        self.model = name
        self.scale = max(1, -(-output.width // source.width), -(-output.height // source.height))
        self._flag = FILTERS[name]
        self._delay_s = delay_s
        self._worker = ThreadPoolExecutor(1, "resize")
        self._size: Size | None = None
        self._frame: Frame | None = None
        self._result: Future[tuple[Lease, int]] | None = None

    def warm_up(self, size: Size) -> None:
        """Allocate the buffers for frames of `size`."""
        if size != self._size:
            shape = (size.height * self.scale, size.width * self.scale, 4)
            self._ring = BufferRing.of_shape(shape)
            self._size = size

    def submit(self, frame: Frame) -> None:
        """Start on `frame`."""
        if self._frame is not None:
            raise RuntimeError("a frame is in flight; poll it before submitting the next")
        self.warm_up(frame.size)
        self._frame = frame
        self._result = self._worker.submit(self._resize, frame, self._ring.take())

    def _resize(self, frame: Frame, lease: Lease) -> tuple[Lease, int]:
        start = time.perf_counter_ns()
        height, width = lease.buffer.shape[:2]
        made = cv2.resize(frame.pixels, (width, height), lease.buffer, interpolation=self._flag)
        if made is not lease.buffer:
            np.copyto(lease.buffer, made)
        if self._delay_s:
            time.sleep(self._delay_s)
        return lease, time.perf_counter_ns() - start

    def poll(self, timeout_s: float) -> Picture | None:
        """Wait up to `timeout_s` for the frame in flight and give its BGRA picture."""
        if self._frame is None or self._result is None:
            return None
        try:
            lease, took_ns = self._result.result(timeout_s)
        except FutureTimeout:
            return None
        frame, self._frame, self._result = self._frame, None, None
        return Picture(
            frame=frame,
            kind="bgra",
            pixels=lease.buffer,
            scale=self.scale,
            model=self.model,
            backend=self.backend,
            shader="bilinear",
            lease=lease,
            infer_ns=took_ns,
        )

    @property
    def in_flight(self) -> int:
        """1 between `submit` and the `poll` that gives the picture, else 0."""
        return int(self._frame is not None)

    def close(self) -> None:
        """Wait for what is in flight and end the thread."""
        self._worker.shutdown()
        self._frame = self._result = None
