"""TensorRT 10 and 11 on the GPU path: engines that `engines.build.tensorrt` built on this GPU."""

# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engines.build import tensorrt as builder
from engines.spec import Engine
from overlay.cuda import Cuda
from overlay.infer._trt_program import TensorRtProgram, upscaler
from overlay.infer.gpu import GpuUpscaler

if TYPE_CHECKING:
    import tensorrt as trt

BACKEND = "tensorrt"


class PlainTensorRt(TensorRtProgram):
    """An engine for TensorRT 10 or 11.

    Args:
        cuda, engine: as `TensorRtProgram`.
        graph: gives the graph of an engine that was built without its weights.
    """

    def __init__(
        self, cuda: Cuda, engine: Engine, graph: Callable[[], bytes] | None = None
    ) -> None:
        super().__init__(cuda, engine, builder._library, builder.TITLE)
        self._graph = graph

    def _new_context(self, cuda: Cuda, engine: trt.ICudaEngine) -> trt.IExecutionContext | None:
        builder._refit(engine, self._graph)
        return engine.create_execution_context()


def open_tensorrt(
    engine: Engine,
    cuda: Cuda,
    filter: str = "bicubic",
    *,
    download: bool = True,
    graph: Callable[[], bytes] | None = None,
) -> GpuUpscaler:
    """Open an engine of back end "tensorrt".

    Args:
        engine: from the cache, fresh.
        cuda: the device; stays open.
        filter: shader for what is left between the result and the size on screen.
        download: as `GpuUpscaler`.
        graph: gives the graph it was built from, for one that was built without its weights.
    Raises:
        BackendUnavailable: TensorRT is missing.
        EngineMismatch: the engine is damaged, or of another version or GPU.
        CudaError: the device fails.
    """
    return upscaler(PlainTensorRt(cuda, engine, graph), engine, cuda, filter, download)
