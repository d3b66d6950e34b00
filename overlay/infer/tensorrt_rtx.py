"""TensorRT-RTX on the GPU path: engines for many GPUs, finished by the one that runs them.

What is compiled for this GPU (in seconds, at the first opening) is the runtime cache, which is
kept beside the engine. Engines of `engines.build.tensorrt_rtx` allocate nothing while they run,
so that our graphs can be captured; where they cannot, TensorRT-RTX captures its own.
"""

# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from engines.build import _trt as shared
from engines.build import tensorrt_rtx as builder
from engines.errors import EngineError
from engines.spec import Engine
from overlay.cuda import Cuda, Stream
from overlay.infer._trt_program import TensorRtProgram, upscaler
from overlay.infer.gpu import GpuUpscaler

if TYPE_CHECKING:
    import tensorrt_rtx as trt

log = logging.getLogger(__name__)

BACKEND = "tensorrt-rtx"


class RtxTensorRt(TensorRtProgram):
    """An engine for TensorRT-RTX.

    Args:
        cuda, engine: as `TensorRtProgram`.
        kept: the runtime cache as `keep` was given it before; one of another GPU, system or
            version is ignored.
        keep: stores the runtime cache.
    """

    def __init__(
        self,
        cuda: Cuda,
        engine: Engine,
        kept: bytes = b"",
        keep: Callable[[bytes], None] | None = None,
    ) -> None:
        super().__init__(cuda, engine, builder._library, builder.TITLE)
        self._kept, self._keep = kept, keep

    def _new_context(self, cuda: Cuda, engine: trt.ICudaEngine) -> trt.IExecutionContext | None:
        config: trt.IRuntimeConfig = engine.create_runtime_config()
        cache: trt.IRuntimeCache = config.create_runtime_cache()
        if self._kept and not cache.deserialize(self._kept):
            log.info("the runtime cache of %s is not for this GPU: a new one", self._facts.model)
        config.set_runtime_cache(cache)
        if self.own_graphs:
            import tensorrt_rtx as trt

            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache: trt.IRuntimeCache = cache
        return engine.create_execution_context(config)

    def capturable(self, stream: Stream) -> bool:
        """Ask the library, unless it captures by itself."""
        return not self.own_graphs and bool(self._context.is_stream_capturable(stream.handle))

    def captures_itself(self) -> bool:
        """Let the library capture: in a new context, for its strategy cannot be changed."""
        if self.own_graphs:
            return False
        self.own_graphs = True  # for every size from now on
        self.__dict__.pop("_context", None)
        return True

    def warmed(self) -> None:
        """Store what was compiled; that it cannot be is no reason to stop."""
        serialized: trt.IHostMemory = self._cache.serialize()
        cache = shared.content(serialized)
        if self._keep is None or cache == self._kept:
            return
        self._kept = cache
        try:
            self._keep(cache)
        except EngineError as exc:
            log.warning("the runtime cache of %s was not kept: %s", self._facts.model, exc)

    def close(self) -> None:
        super().close()
        self.__dict__.pop("_cache", None)


def open_tensorrt_rtx(
    engine: Engine,
    cuda: Cuda,
    filter: str = "bicubic",
    *,
    download: bool = True,
    kept: bytes = b"",
    keep: Callable[[bytes], None] | None = None,
) -> GpuUpscaler:
    """Open an engine of back end "tensorrt-rtx".

    Args:
        engine: from the cache, fresh.
        cuda: the device; stays open.
        filter: shader for what is left between the result and the size on screen.
        download: as `GpuUpscaler`.
        kept: what `keep` was given before, on this machine: `EngineCache.kept`.
        keep: stores what was compiled for this GPU: `EngineCache.keep`. Called after warming up.
    Raises:
        BackendUnavailable: TensorRT-RTX is missing.
        EngineMismatch: the engine is damaged, or not for this GPU.
        CudaError: the device fails.
    """
    return upscaler(RtxTensorRt(cuda, engine, kept, keep), engine, cuda, filter, download)
