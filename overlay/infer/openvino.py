"""Nets on the CPU with OpenVINO, on the infer thread.

`OpenVinoUpscaler` compiles a shipped net for each size it meets; `OpenVinoEngine` opens what
`engines.build.openvino` compiled before. Both read the captured pixels where they are. A shipped
net gives blocks of output pixels, and turning the blocks into rows is the only copy on the host;
an engine writes its picture into the buffer that is shown.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from typing import cast

import numpy as np
import openvino as ov  # type: ignore[import-untyped]

from engines import load
from engines.build.openvino import EngineFile, cpu_options, first_line, shared_core, tensor
from engines.errors import BuildFailed, ModelInvalid
from engines.spec import Engine, ModelSpec, Output
from overlay.errors import OverlayError
from overlay.frame import BufferRing, Frame, Lease, Picture, Pixels, Size
from overlay.infer import Upscaler
from overlay.infer.chroma import ChromaMerger
from overlay.infer.engine import available_threads, check_size, threads_text

log = logging.getLogger(__name__)

#: Bytes of one run of output pixels of an input pixel, as one numpy item.
_RUN = {2: np.dtype(np.uint16), 3: np.dtype("V3"), 4: np.dtype(np.uint32)}


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


class _OneRequest(Upscaler):
    """One compiled model, one inference at a time.

    Args:
        model: name, for people.
        scale, output: as in `ModelSpec`.
        threads: of the inference; 0 = as many as there are cores.
        filter: shader for what is left between the result and the size on screen.
        merge: join luma and chroma here, on the infer thread, and give "bgra" pictures; without
            it the presenter's shader does that, which costs nothing on a GPU.
    """

    backend = "openvino"
    _readied = "compiled"

    def __init__(
        self, model: str, scale: int, output: Output, threads: int, filter: str, merge: bool
    ) -> None:
        self.model = model
        self.scale = scale
        self._output = output
        self._filter = filter
        self._merge = merge and output == "luma"
        self._threads = threads or available_threads()
        self.device = f"CPU, {threads_text(self._threads)}"
        self._core = shared_core()
        self._size: Size | None = None
        self._request: ov.InferRequest | None = None
        self._frame: Frame | None = None
        self._input: ov.Tensor | None = None  # what OpenVINO reads; alive until the result
        self._lease: Lease | None = None  # what the frame in flight becomes

    @abstractmethod
    def _open(self, size: Size) -> ov.CompiledModel:
        """Give the model for a size.

        Raises:
            EngineError: it cannot be had.
        """

    @abstractmethod
    def _bind(self, request: ov.InferRequest) -> None:
        """Say where the result of each inference goes, where that stays the same."""

    @abstractmethod
    def _begin(self, request: ov.InferRequest, lease: Lease) -> None:
        """Say where the result of this inference goes, where that does not stay the same."""

    @abstractmethod
    def _finish(self, frame: Frame, lease: Lease) -> None:
        """Complete the picture after the inference."""

    def warm_up(self, size: Size) -> None:
        """Compile or open for `size`, allocate the buffers, run once.

        Raises:
            EngineError: the model cannot run at this size; says why.
        """
        if size == self._size:
            return
        start = time.perf_counter()
        self._size, self._request = None, None
        compiled = self._open(size)
        shape = (size.height * self.scale, size.width * self.scale)
        self._staging = np.zeros((size.height, size.width, 4), np.uint8)
        self._luma = np.zeros(shape, np.uint8) if self._merge else None
        self._merger = ChromaMerger(size, self.scale) if self._merge else None
        luma = self._output == "luma" and not self._merge
        self._ring = BufferRing.of_shape(shape if luma else (*shape, 4))
        try:
            request = compiled.create_infer_request()
            request.set_input_tensor(tensor(self._staging))
            self._bind(request)
            self._begin(request, self._ring.take())
            request.infer()
        except RuntimeError as exc:
            raise BuildFailed(
                f"{self.model} cannot run on {size} frames: {first_line(exc)}"
            ) from exc
        self._size, self._request = size, request
        took_ms = 1e3 * (time.perf_counter() - start)
        did = self._readied
        log.info("%s %s for %s in %.0f ms (%s)", did, self.model, size, took_ms, self.device)

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
        self._input = tensor(pixels)
        request.set_input_tensor(self._input)
        lease = self._ring.take()
        self._begin(request, lease)
        request.start_async()
        self._frame, self._lease = frame, lease

    def poll(self, timeout_s: float) -> Picture | None:
        """Wait up to `timeout_s` for the frame in flight and give its picture."""
        frame, lease, request = self._frame, self._lease, self._request
        if frame is None or lease is None or request is None:
            return None
        try:
            if not request.wait_for(max(0, round(timeout_s * 1e3))):
                return None
        except RuntimeError as exc:
            self._frame = self._lease = None
            raise OverlayError(f"{self.model} failed on a frame: {first_line(exc)}") from exc
        self._frame = self._lease = None
        self._finish(frame, lease)
        return Picture(
            frame=frame,
            kind="bgra" if self._merge else self._output,
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
        self._frame = self._lease = self._request = self._size = self._input = None

    def _open_request(self) -> ov.InferRequest:
        assert self._request is not None, "warm_up makes it"
        return self._request

    def _join(self, frame: Frame, luma: Pixels, lease: Lease) -> None:
        assert self._merger is not None, "warm_up makes it where luma is merged"
        self._merger.merge(frame.pixels, luma, lease.buffer)


class OpenVinoUpscaler(_OneRequest):
    """A shipped net, compiled here.

    Args:
        spec: a model with output "luma".
        threads: of the inference; 0 = as many as there are cores.
        filter: shader for what is left between the result and the size on screen.
        merge: give "bgra" pictures, see `_OneRequest`.
    Raises:
        EngineMissing: the model file is not there.
        ModelInvalid: the model file is damaged.
    """

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
        super().__init__(spec.id, spec.scale, spec.output, threads, filter, merge)
        self._graph = read_graph(self._core, spec)

    def _open(self, size: Size) -> ov.CompiledModel:
        try:
            self._graph.reshape([1, size.height, size.width, 4])
            return self._core.compile_model(self._graph, "CPU", cpu_options(self._threads))
        except RuntimeError as exc:
            raise BuildFailed(
                f"{self.model} cannot run on {size} frames: {first_line(exc)}"
            ) from exc

    def _bind(self, request: ov.InferRequest) -> None:
        height, width = self._staging.shape[:2]
        self._blocks = np.zeros((height, width, self.scale**2), np.uint8)
        request.set_output_tensor(tensor(self._blocks))

    def _begin(self, request: ov.InferRequest, lease: Lease) -> None:
        """The blocks stay where they are."""

    def _finish(self, frame: Frame, lease: Lease) -> None:
        if self._luma is None:
            interleave(self._blocks, lease.buffer)
        else:
            interleave(self._blocks, self._luma)
            self._join(frame, self._luma, lease)


class OpenVinoEngine(_OneRequest):
    """An engine from the cache; its pictures are written where they are shown from.

    Args:
        engine: of back end "openvino".
        threads: of the inference; 0 = as many as there are cores.
        filter: shader for what is left between the result and the size on screen.
        merge: give "bgra" pictures of a luma engine, see `_OneRequest`.
    Raises:
        EngineMismatch: the engine is damaged, or no engine for OpenVINO.
    """

    _readied = "opened"

    def __init__(
        self,
        engine: Engine,
        threads: int = 0,
        filter: str = "bicubic",
        *,
        merge: bool = False,
    ) -> None:
        super().__init__(engine.model, engine.scale, engine.output, threads, filter, merge)
        self._engine = engine
        self._file = EngineFile.parse(engine.data)
        self._file.check_sizes(engine.sizes, engine.model)

    def _open(self, size: Size) -> ov.CompiledModel:
        check_size(self._engine, size)
        return self._file.open(self._core, size, self.scale, self._output, self._threads)

    def _bind(self, request: ov.InferRequest) -> None:
        if self._luma is not None:
            request.set_output_tensor(tensor(self._luma))

    def _begin(self, request: ov.InferRequest, lease: Lease) -> None:
        if self._luma is None:
            request.set_output_tensor(tensor(lease.buffer))

    def _finish(self, frame: Frame, lease: Lease) -> None:
        if self._luma is not None:
            self._join(frame, self._luma, lease)


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
        raise ModelInvalid(f"OpenVINO cannot read {spec.onnx}: {first_line(exc)}") from exc
