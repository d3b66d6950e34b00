"""Engines with ONNX Runtime, on a worker thread: GPUs and CPUs that no other back end serves."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

import numpy as np

from engines.build.onnxruntime import OnnxSession, first_line, open_session
from engines.errors import BuilderMissing, EngineError
from engines.spec import Engine
from overlay.errors import BackendUnavailable, OverlayError
from overlay.frame import BufferRing, Frame, Lease, Picture, Pixels, Size
from overlay.infer import Upscaler
from overlay.infer.chroma import ChromaMerger
from overlay.infer.engine import available_threads, check_size, threads_text

log = logging.getLogger(__name__)

_TITLES = {"tensorrt-rtx": "TensorRT-RTX", "cuda": "CUDA", "directml": "DirectML"}


class OnnxRuntimeUpscaler(Upscaler):
    """An engine from the cache; its pictures are written where they are shown from.

    Args:
        engine: of back end "onnxruntime".
        threads: of an inference on the CPU; 0 = as many as there are cores.
        filter: shader for what is left between the result and the size on screen.
        merge: join luma and chroma here and give "bgra" pictures of a luma engine.
        provider: of `engines.build.onnxruntime.PROVIDERS`; "auto" = the first that runs it.
    Raises:
        BackendUnavailable: ONNX Runtime is not installed, or the provider not there.
        EngineMismatch: the engine is damaged.
    """

    backend = "onnxruntime"

    def __init__(
        self,
        engine: Engine,
        threads: int = 0,
        filter: str = "bicubic",
        *,
        merge: bool = False,
        provider: str = "auto",
    ) -> None:
        self.model = engine.model
        self.scale = engine.scale
        self._engine = engine
        self._filter = filter
        self._merge = merge and engine.output == "luma"
        self._threads = threads or available_threads()
        self._session = self._open_session(provider)
        self.device = self._device()
        self._size: Size | None = None
        self._worker = ThreadPoolExecutor(1, "onnxruntime")
        self._frame: Frame | None = None
        self._result: Future[tuple[Lease, int]] | None = None

    def _open_session(self, provider: str) -> OnnxSession:
        engine = self._engine
        start = time.perf_counter()
        try:
            session = open_session(
                engine.data, engine.sizes, engine.scale, engine.output, provider, self._threads
            )
        except BuilderMissing as exc:
            raise BackendUnavailable(str(exc)) from exc
        took_ms = 1e3 * (time.perf_counter() - start)
        log.info("opened %s with %s in %.0f ms", engine.model, session.provider, took_ms)
        return session

    def _device(self) -> str:
        provider = self._session.provider
        if provider == "cpu":
            return f"CPU, {threads_text(self._threads)}, ONNX Runtime"
        return f"{_TITLES.get(provider, provider)}, ONNX Runtime"

    def warm_up(self, size: Size) -> None:
        """Allocate the buffers for frames of `size`, run once.

        Raises:
            EngineMismatch: the engine does not take this size.
        """
        if size == self._size:
            return
        check_size(self._engine, size)
        self._size = None
        shape = (size.height * self.scale, size.width * self.scale)
        self._staging = np.zeros((size.height, size.width, 4), np.uint8)
        self._luma = np.zeros(shape, np.uint8) if self._merge else None
        self._merger = ChromaMerger(size, self.scale)
        luma = self._engine.output == "luma" and not self._merge
        self._ring = BufferRing.of_shape(shape if luma else (*shape, 4))
        try:
            self._run(self._staging, self._ring.take())
        except Exception as exc:  # ONNX Runtime's errors have no common base
            raise EngineError(
                f"{self.model} cannot run on {size} frames: {first_line(exc)}"
            ) from exc
        self._size = size

    def submit(self, frame: Frame) -> None:
        """Start on `frame`; its pixels are read in place if they can be."""
        if self._frame is not None:
            raise RuntimeError("a frame is in flight; poll it before submitting the next")
        self.warm_up(frame.size)
        self._result = self._worker.submit(self._upscale, frame, self._ring.take())
        self._frame = frame

    def _upscale(self, frame: Frame, lease: Lease) -> tuple[Lease, int]:
        start = time.perf_counter_ns()
        pixels = frame.pixels
        if not pixels.flags.c_contiguous:
            np.copyto(self._staging, pixels)
            pixels = self._staging
        self._run(pixels, lease)
        return lease, time.perf_counter_ns() - start

    def poll(self, timeout_s: float) -> Picture | None:
        """Wait up to `timeout_s` for the frame in flight and give its picture."""
        frame, result = self._frame, self._result
        if frame is None or result is None:
            return None
        try:
            lease, took_ns = result.result(timeout_s)
        except FutureTimeout:
            return None
        except Exception as exc:  # ONNX Runtime's errors have no common base
            # The result holds the error, whose traceback holds this frame and the buffer.
            self._frame = self._result = result = None
            raise OverlayError(f"{self.model} failed on a frame: {first_line(exc)}") from exc
        self._frame = self._result = None
        return Picture(
            frame=frame,
            kind="bgra" if self._merge else self._engine.output,
            pixels=lease.buffer,
            scale=self.scale,
            model=self.model,
            backend=self.backend,
            shader=self._filter,
            lease=lease,
            infer_ns=took_ns,
        )

    def _run(self, pixels: Pixels, lease: Lease) -> None:
        if self._luma is None:
            self._session.run(pixels, lease.buffer)
        else:
            self._session.run(pixels, self._luma)
            self._merger.merge(pixels, self._luma, lease.buffer)

    @property
    def in_flight(self) -> int:
        """1 between `submit` and the `poll` that gives the picture, else 0."""
        return int(self._frame is not None)

    def close(self) -> None:
        """Wait for what is in flight and end the thread."""
        self._worker.shutdown()
        self._frame = self._result = self._size = None
