"""PyTorch on the GPU path: nets without an engine, on any NVIDIA GPU that PyTorch knows.

FP16, channels last, and the same numbers as the exported graphs (`engines.export`): the steps
around the net are theirs. Everything here but `TorchProgram`'s streams runs on the CPU too.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from engines import load
from engines.archs.luma import LumaNet, LumaPicture
from engines.errors import BuilderMissing, EngineError
from engines.load import Loaded, Located
from overlay.cuda import Cuda, DeviceBuffer, Stream
from overlay.errors import BackendUnavailable, OverlayError
from overlay.frame import Size
from overlay.infer.gpu import GpuUpscaler, Program

log = logging.getLogger(__name__)

BACKEND = "torch-cuda"
INSTALL = "install PyTorch with CUDA, see https://pytorch.org/get-started"

#: Gives a uint8 tensor of a shape over a buffer's memory.
View = Callable[[DeviceBuffer, tuple[int, ...]], Tensor]


class PictureNet(nn.Module):
    """A net with the steps around it: uint8 BGRA in, uint8 picture out.

    Args:
        loaded: a net, from a file of weights; not changed.
        kind: what to compute in.
    Raises:
        EngineError: it is an ONNX graph.
    """

    def __init__(self, loaded: Loaded, kind: torch.dtype = torch.float16) -> None:
        super().__init__()
        if loaded.module is None:
            raise EngineError(
                f"{loaded.located.name} is an ONNX graph, and torch-cuda runs PyTorch's nets: "
                "build an engine of it, for tensorrt, tensorrt-rtx or onnxruntime"
            )
        self.scale = loaded.spec.scale
        self.luma = loaded.spec.output == "luma"
        self.multiple = loaded.spec.size_multiple
        self.kind = kind
        module = copy.deepcopy(loaded.module)  # the FP32 original stays what it is
        if isinstance(module, LumaNet):
            module = LumaPicture(module)
        self.net = module.eval().to(kind)
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.requires_grad_(False)

    def forward(self, bgra: Tensor) -> Tensor:
        """Upscale one frame.

        Args:
            bgra: uint8 BGRA [1, H, W, 4]; alpha is ignored.
        Returns:
            uint8 [1, H*scale, W*scale, 4], BGRA with alpha 255; for luma [1, H*scale, W*scale].
        """
        return self._luma(bgra) if self.luma else self._colours(bgra)

    def _luma(self, bgra: Tensor) -> Tensor:
        planes = bgra.permute(0, 3, 1, 2).to(self.kind)
        luma: Tensor = self.net(planes)
        return luma.round_().clamp_(0, 255).squeeze(1).to(torch.uint8)

    def _colours(self, bgra: Tensor) -> Tensor:
        height, width = bgra.shape[1:3]
        rgb = bgra[..., :3].flip(3).permute(0, 3, 1, 2).to(self.kind) / 255  # [1, 3, H, W]
        right, below = -width % self.multiple, -height % self.multiple
        if right or below:
            rgb = F.pad(rgb, (0, right, 0, below), mode="replicate")
        planes: Tensor = self.net(rgb)
        planes = planes[..., : height * self.scale, : width * self.scale]
        levels = planes.clamp(0, 1).mul_(255).round_()
        picture = levels.new_full((1, *levels.shape[2:], 4), 255, dtype=torch.uint8)
        picture[..., :3].copy_(levels.flip(1).permute(0, 2, 3, 1))
        return picture


class _CudaArray:
    """Memory on the device, as PyTorch takes it over."""

    def __init__(self, buffer: DeviceBuffer, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": "|u1",
            "data": (buffer.address, False),
            "strides": None,
            "stream": None,  # who waits for whom is settled with events
        }


def device_view(buffer: DeviceBuffer, shape: tuple[int, ...]) -> Tensor:
    """Give a tensor over a buffer of device 0; the buffer must outlive it."""
    return torch.as_tensor(_CudaArray(buffer, shape), device="cuda:0")


class _Pools:
    """Frees PyTorch's pools only while none is in use, on whichever thread.

    A `MemPool` that is freed while another thread allocates from any ends the process: its
    destructor checks that no capture is under way, and a pool in use counts as one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_use = 0
        self._retired: list[torch.cuda.MemPool] = []

    @contextmanager
    def using(self, pool: torch.cuda.MemPool) -> Iterator[None]:
        """Allocate from a pool, on this thread."""
        with self._lock:
            self._in_use += 1
        try:
            with torch.cuda.use_mem_pool(pool):
                yield
        finally:
            with self._lock:
                self._in_use -= 1
                self._free()

    def retire(self, pools: list[torch.cuda.MemPool]) -> None:
        """Take the pools out of a list, and free them as soon as that can be."""
        with self._lock:
            self._retired += pools
            pools.clear()
            self._free()

    def _free(self) -> None:
        if not self._in_use:
            self._retired.clear()


_POOLS = _Pools()


class TorchProgram(Program):
    """A net of PyTorch's as a program.

    What it allocates for itself comes from a pool of its own, so that nothing else that uses
    PyTorch gets the memory that a captured graph works in.

    Args:
        net: from uint8 BGRA [1, H, W, 4] to a uint8 picture, [1, H*scale, W*scale, 4] or, for
            luma, [1, H*scale, W*scale]; moved to `device`.
        scale: output size / input size.
        luma: whether it gives luma.
        title: for people.
        device: "cuda"; "cpu" for tests.
        view: gives tensors over the device's buffers.
        compiled: let `torch.compile` make kernels of it, which takes a minute for each size.
    """

    def __init__(
        self,
        net: nn.Module,
        scale: int,
        luma: bool,
        title: str,
        *,
        device: str = "cuda",
        view: View = device_view,
        compiled: bool = False,
    ) -> None:
        self.title = title
        self._scale, self._luma = scale, luma
        self._view = view
        self._on_gpu = device != "cpu"
        self._net: nn.Module | None = net.to(device)
        self._compiled = compiled
        self._upscale = self._function()
        self._views: dict[int, tuple[Tensor, Tensor]] = {}
        self._streams: dict[int, torch.cuda.Stream] = {}
        self._pools: list[torch.cuda.MemPool] = []  # one, from `prepare` on
        if self._on_gpu:
            # The weights are there; our streams do not wait for that.
            torch.cuda.current_stream().synchronize()

    def _function(self) -> Callable[[Tensor], Tensor]:
        assert self._net is not None
        if not self._compiled:
            return self._net
        # Graphs are captured here, per slot and with its addresses, not by PyTorch.
        mode = "max-autotune-no-cudagraphs"
        function: Callable[[Tensor], Tensor] = torch.compile(self._net, mode=mode, dynamic=False)
        return function

    def prepare(self, cuda: Cuda, size: Size, stream: Stream) -> None:
        """Forget the buffers, the memory and the kernels of an earlier size.

        Raises:
            OverlayError: the device fails.
        """
        self._views.clear()
        self._size = size
        if self._compiled:
            torch.compiler.reset()  # it keeps eight sizes, then compiles no more
        if self._on_gpu:
            with _translated():
                _POOLS.retire(self._pools)
                torch.cuda.empty_cache()
                self._pools.append(torch.cuda.MemPool())

    def enqueue(
        self, slot: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream
    ) -> None:
        """Put one inference into a stream.

        Raises:
            OverlayError: PyTorch fails, for want of memory say.
        """
        with _translated():
            bgra, picture = self._views.get(slot) or self._new_views(slot, source, target)
            self._run(bgra, picture, stream)

    def _run(self, bgra: Tensor, picture: Tensor, stream: Stream) -> None:
        with torch.inference_mode(), self._in(stream):
            picture.copy_(self._upscale(bgra))

    def _new_views(
        self, slot: int, source: DeviceBuffer, target: DeviceBuffer
    ) -> tuple[Tensor, Tensor]:
        width, height = self._size
        shape = (1, height * self._scale, width * self._scale)
        picture = self._view(target, shape if self._luma else (*shape, 4))
        self._views[slot] = self._view(source, (1, height, width, 4)), picture
        return self._views[slot]

    def _in(self, stream: Stream) -> AbstractContextManager[None]:
        return self._in_stream(stream) if self._on_gpu else nullcontext()

    @contextmanager
    def _in_stream(self, stream: Stream) -> Iterator[None]:
        """Run in a stream of ours, with memory of our own and the quickest of cuDNN's ways."""
        outside = self._streams.get(stream.handle)
        if outside is None:
            outside = torch.cuda.ExternalStream(stream.handle)  # type: ignore[no-untyped-call]
            self._streams[stream.handle] = outside
        with (
            torch.cuda.stream(outside),
            _POOLS.using(self._pools[0]),
            torch.backends.cudnn.flags(enabled=True, benchmark=True),
        ):
            yield

    def close(self) -> None:
        """Free net and memory."""
        self._views.clear()
        self._streams.clear()
        self._net, self._upscale = None, _closed
        try:
            _POOLS.retire(self._pools)
            if self._on_gpu:
                torch.cuda.empty_cache()
        except RuntimeError as exc:  # the device was lost, and its memory with it
            log.warning("PyTorch did not give its memory back: %s", _first_line(exc))


def _closed(bgra: Tensor) -> Tensor:
    raise RuntimeError("the program was closed")


@contextmanager
def _translated() -> Iterator[None]:
    """Make PyTorch's errors ours: out of memory, a failure of CUDA's."""
    try:
        yield
    except RuntimeError as exc:
        raise OverlayError(f"PyTorch: {_first_line(exc)}") from exc


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return next(filter(None, lines), type(error).__name__)[:300]


def require_gpu() -> None:
    """Check that PyTorch sees the GPU.

    Raises:
        BackendUnavailable: it does not.
    """
    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise BackendUnavailable(
            f"torch-cuda: PyTorch {torch.__version__} ({build}) sees no NVIDIA GPU; {INSTALL}"
        )


def read(located: Located) -> Loaded:
    """Read a net, or make one with random weights of a row that was located without files.

    Raises:
        BackendUnavailable: a library that reads it is missing.
        EngineError: it cannot be read.
    """
    try:
        if located.spec is not None and not located.files:
            return load.random_weights(located.spec)
        return load.read(located)
    except BuilderMissing as exc:
        raise BackendUnavailable(str(exc)) from exc


def open_torch(
    located: Located,
    cuda: Cuda,
    filter: str = "bicubic",
    *,
    download: bool = True,
    compiled: bool = False,
) -> GpuUpscaler:
    """Open a model with PyTorch.

    Args:
        located: where its weights are, as `engines.load.locate` says.
        cuda: the device, the primary context of device 0; stays open.
        filter: shader for what is left between the result and the size on screen.
        download: as `GpuUpscaler`.
        compiled: as `TorchProgram`.
    Raises:
        BackendUnavailable: PyTorch sees no GPU.
        EngineError: the weights cannot be read, or are an ONNX graph.
        CudaError: the device fails.
    """
    require_gpu()
    return upscaler(read(located), cuda, filter, download=download, compiled=compiled)


def upscaler(
    loaded: Loaded,
    cuda: Cuda,
    filter: str = "bicubic",
    *,
    download: bool = True,
    compiled: bool = False,
    net: nn.Module | None = None,
    kind: torch.dtype = torch.float16,
    device: str = "cuda",
    view: View = device_view,
) -> GpuUpscaler:
    """Put a net that was read on the GPU path.

    Args:
        net: what to run instead of `PictureNet`: a quicker form of the same net.
        kind: what to compute in.
        device, view: as `TorchProgram`.
    """
    how = {torch.float16: "FP16", torch.float32: "FP32"}.get(kind, str(kind))
    title = f"{how}, PyTorch {torch.__version__}{', compiled' if compiled else ''}"
    spec = loaded.spec
    luma = spec.output == "luma"
    try:
        program = TorchProgram(
            net or PictureNet(loaded, kind), spec.scale, luma, title,
            device=device, view=view, compiled=compiled,
        )  # fmt: skip
    except RuntimeError as exc:
        raise OverlayError(f"{loaded.located.name} on PyTorch: {_first_line(exc)}") from exc
    try:
        return GpuUpscaler(
            cuda,
            program,
            model=loaded.located.name,
            backend=BACKEND,
            scale=spec.scale,
            output=spec.output,
            filter=filter,
            download=download,
        )
    except BaseException:
        program.close()
        raise
