"""Engines by themselves: built for the case at hand, run by the overlay's own programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engines import zoo
from engines.build import Request, open_builder
from engines.spec import Engine
from evaluation.bench.gpu_nets import Model
from overlay.cuda import Cuda, DeviceBuffer, Stream, shared_cuda
from overlay.frame import Size

if TYPE_CHECKING:
    from overlay.infer._trt_program import TensorRtProgram


def built(backend: str, model: Model, graph: bytes, size: Size) -> Engine:
    """Build an engine in FP16 for one size.

    Args:
        backend: "tensorrt" or "tensorrt-rtx".
        graph: ONNX, FP16, of this size, as `engines.export` makes it.
    Raises:
        EngineError: it cannot be built here; says why.
    """
    spec = zoo.spec(model.id)
    sizes = ((size.width, size.height),)
    builder = open_builder(backend)
    builder.check()
    done = builder.build(Request(spec, graph, sizes, "fp16"), lambda what, part: None)
    return Engine(spec.id, spec.scale, spec.output, sizes, "fp16", backend, done.engine)


def opened(cuda: Cuda, engine: Engine) -> TensorRtProgram:
    """Open an engine as the upscalers do."""
    if engine.backend == "tensorrt":
        from overlay.infer.tensorrt import PlainTensorRt

        return PlainTensorRt(cuda, engine)
    from overlay.infer.tensorrt_rtx import RtxTensorRt

    return RtxTensorRt(cuda, engine)


def step(
    backend: str, model: Model, graph: bytes, frame: Tensor
) -> tuple[Callable[[], Tensor], bool]:
    """Build, open and warm up an engine.

    Args:
        frame: uint8 BGRA [1, H, W, 4], on the device.
    Returns:
        What puts one inference into PyTorch's current stream and gives the picture, uint8
        [1, H*scale, W*scale, 4] or, for luma, [1, H*scale, W*scale], the same tensor each time;
        and whether it may be captured.
    Raises:
        EngineError, OverlayError: it cannot be had here.
    """
    cuda = shared_cuda()
    size = Size(frame.shape[2], frame.shape[1])
    program = opened(cuda, built(backend, model, graph, size))
    return prepared(program, cuda, model, frame)


def prepared(
    program: TensorRtProgram, cuda: Cuda, model: Model, frame: Tensor
) -> tuple[Callable[[], Tensor], bool]:
    """Run a program once between tensors; gives what `step` does."""
    height, width = frame.shape[1:3]
    shape = (1, height * model.scale, width * model.scale)
    whole = shape if model.architecture == "luma" else (*shape, 4)
    out = torch.empty(whole, dtype=torch.uint8, device=frame.device)
    source, target = (DeviceBuffer(t.data_ptr(), t.nbytes, "bench") for t in (frame, out))
    program.prepare(cuda, Size(width, height), _stream(frame))

    def run() -> Tensor:
        program.enqueue(0, source, target, _stream(frame))
        return out

    run()
    return run, program.capturable(_stream(frame))


def _stream(frame: Tensor) -> Stream:
    """PyTorch's current one."""
    return Stream(torch.cuda.current_stream().cuda_stream if frame.is_cuda else 0, "bench")
