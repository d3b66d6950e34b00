"""The embedded nets on the CPU with OpenVINO, on the infer thread.

The graph reads the captured pixels where they are and writes blocks of output pixels into one
buffer allocated per size; turning the blocks into rows is the only copy on the host.
"""

from __future__ import annotations

import logging
import os
import time
from typing import cast

import numpy as np
import openvino as ov  # type: ignore[import-untyped]

from engines import load
from engines.errors import BuildFailed, ModelInvalid
from engines.spec import ModelSpec
from overlay.errors import OverlayError
from overlay.frame import BufferRing, Frame, Picture, Pixels, Size
from overlay.infer import Upscaler
from overlay.infer.chroma import ChromaMerger

log = logging.getLogger(__name__)

#: Bytes of one run of output pixels of an input pixel, as one numpy item.
_RUN = {2: np.dtype(np.uint16), 3: np.dtype("V3"), 4: np.dtype(np.uint32)}


def available_threads() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def interleave(blocks: Pixels, picture: Pixels) -> None:
    """Put the blocks that a net gives in their places.

    Args:
        blocks: uint8 (H, W, scale*scale), the last axis (dy, dx); read.
        picture: uint8 (H*scale, W*scale), contiguous; written.
    """
    height, width, count = blocks.shape
    scale = round(count**0.5)
    run = _RUN[scale]
    source = blocks.view(run)  # (H, W, dy)
    target = picture.view(run).reshape(height, scale, width)  # (H, dy, W)
    np.copyto(target, source.transpose(0, 2, 1))


class OpenVinoUpscaler(Upscaler):
    """One net, one inference at a time.

    Args:
        spec: a model with output "luma".
        threads: of the inference; 0 = as many as there are cores.
        filter: shader for what is left between the result and the size on screen.
        merge: join luma and chroma here, on the infer thread, and give "bgra" pictures; without
            it the presenter's shader does that, which costs nothing on a GPU.
    Raises:
        EngineMissing: the model file is not there.
        ModelInvalid: the model file is damaged.
    """

    backend = "openvino"

    def __init__(
        self,
        spec: ModelSpec,
        threads: int = 0,
        filter: str = "bicubic",
        *,
        merge: bool = False,
    ) -> None:
        if spec.output != "luma":
            raise ValueError(f"{spec.id} gives {spec.output}; this back end runs luma nets")
        self.model = spec.id
        self.scale = spec.scale
        self._spec = spec
        self._filter = filter
        self._merge = merge
        self._threads = threads or available_threads()
        self.device = f"CPU, {self._threads} thread{'s' if self._threads > 1 else ''}"
        self._core = ov.Core()
        self._graph = read_graph(self._core, spec)
        self._size: Size | None = None
        self._request: ov.InferRequest | None = None
        self._frame: Frame | None = None
        self._input: ov.Tensor | None = None  # what OpenVINO reads; alive until the result

    def warm_up(self, size: Size) -> None:
        """Compile for `size`, allocate the buffers, run once.

        Raises:
            BuildFailed: OpenVINO cannot compile the model for this size.
        """
        if size == self._size:
            return
        start = time.perf_counter()
        self._size, self._request = None, None
        try:
            self._graph.reshape([1, size.height, size.width, 4])
            compiled = self._core.compile_model(self._graph, "CPU", self._options())
            request = compiled.create_infer_request()
            self._staging = np.zeros((size.height, size.width, 4), np.uint8)
            self._blocks = np.zeros((size.height, size.width, self.scale**2), np.uint8)
            request.set_input_tensor(_tensor(self._staging))
            request.set_output_tensor(_tensor(self._blocks))
            request.infer()
        except RuntimeError as exc:
            raise BuildFailed(f"{self.model} cannot run on {size} frames: {_first(exc)}") from exc
        shape = (size.height * self.scale, size.width * self.scale)
        self._luma = np.zeros(shape, np.uint8) if self._merge else None
        self._merger = ChromaMerger(size, self.scale)
        self._ring = BufferRing.of_shape((*shape, 4) if self._merge else shape)
        self._size, self._request = size, request
        took_ms = 1e3 * (time.perf_counter() - start)
        log.info("compiled %s for %s in %.0f ms (%s)", self.model, size, took_ms, self.device)

    def submit(self, frame: Frame) -> None:
        """Start on `frame`; its pixels are read in place if they can be."""
        if self._frame is not None:
            raise RuntimeError("a frame is in flight; poll it before submitting the next")
        self.warm_up(frame.size)
        request = self._open_request()
        pixels = frame.pixels
        if not (pixels.flags.c_contiguous and pixels.flags.writeable):  # OpenVINO wants both
            np.copyto(self._staging, pixels)
            pixels = self._staging
        self._input = _tensor(pixels)
        request.set_input_tensor(self._input)
        request.start_async()
        self._frame = frame

    def poll(self, timeout_s: float) -> Picture | None:
        """Wait up to `timeout_s` for the frame in flight and give its luma picture."""
        frame, request = self._frame, self._request
        if frame is None or request is None:
            return None
        try:
            if not request.wait_for(max(0, round(timeout_s * 1e3))):
                return None
        except RuntimeError as exc:
            self._frame = None
            raise OverlayError(f"{self.model} failed on a frame: {_first(exc)}") from exc
        self._frame = None
        lease = self._ring.take()
        if self._luma is None:
            interleave(self._blocks, lease.buffer)
        else:
            interleave(self._blocks, self._luma)
            self._merger.merge(frame.pixels, self._luma, lease.buffer)
        return Picture(
            frame=frame,
            kind="bgra" if self._merge else "luma",
            pixels=lease.buffer,
            scale=self.scale,
            model=self.model,
            backend=self.backend,
            shader=self._filter,
            lease=lease,
            infer_ns=round(request.latency * 1e6),
        )

    @property
    def in_flight(self) -> int:
        """1 between `submit` and the `poll` that gives the picture, else 0."""
        return int(self._frame is not None)

    def close(self) -> None:
        """Wait for what is in flight and free the compiled model."""
        if self._request is not None and self._frame is not None:
            self._request.cancel()
            try:
                self._request.wait()
            except RuntimeError:
                log.debug("the inference in flight was given up")
        self._frame = self._request = self._size = self._input = None

    def _open_request(self) -> ov.InferRequest:
        assert self._request is not None, "warm_up makes it"
        return self._request

    def _options(self) -> dict[str, str | int]:
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self._threads,
            # The game runs on the same cores: a pinned thread would have to wait for it.
            "ENABLE_CPU_PINNING": False,
            # Machines with bfloat16 units would use them unasked: too coarse for 8 bits.
            "INFERENCE_PRECISION_HINT": "f32",
        }


def read_graph(core: ov.Core, spec: ModelSpec) -> ov.Model:
    """Read a model's verified ONNX file.

    Raises:
        EngineMissing: it is not there.
        ModelInvalid: it is damaged, or OpenVINO cannot read it.
    """
    data = load.onnx_bytes(spec)
    try:
        return cast("ov.Model", core.read_model(data))
    except RuntimeError as exc:
        raise ModelInvalid(f"OpenVINO cannot read {spec.onnx}: {_first(exc)}") from exc


def _tensor(pixels: Pixels) -> ov.Tensor:
    """Wrap (H, W, C) as a tensor (1, H, W, C) on the same memory."""
    return ov.Tensor(pixels[None], shared_memory=True)


def _first(error: BaseException) -> str:
    """The first line that says something; OpenVINO's messages begin with file names."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (told or lines or [type(error).__name__])[0]
