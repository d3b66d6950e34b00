"""PyTorch on the GPU path: nets without an engine, on any NVIDIA GPU that PyTorch knows.

FP16, channels last, and the same numbers as the exported graphs (`engines.export`): the steps
around the net are theirs. Where a net has a quick form (`engines.fast`) that runs instead, once it
was compared with the plain net on a piece of a game frame. Everything here but `TorchProgram`'s
streams runs on the CPU too.

Importing PyTorch takes seconds and, with its libraries on the device, hundreds of MB: measured as
"open" by the GPU suite. What a net takes a frame is for `overlay.infer.measure_ms` to say, after
`warm_up`, as on the CPU.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from engines import fast, load
from engines.archs.luma import LumaNet, LumaPicture
from engines.errors import BuilderMissing, EngineError
from engines.fast import kernels
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
#: What to run of a net: None for the quick form that should be best, if it is right.
Form = fast.Form | Literal["plain"] | None

#: What quick forms are compared on: (width, height) with multiples of 4, which is what nets want,
#: and a number of pixels that no tile divides.
_PIECE = (72, 52)


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


class QuickNet(nn.Module):
    """A quick form of a net for frames of any size; the plain net for those it cannot take.

    Args:
        form: its name, for people.
        quick: uint8 BGRA [1, H, W, 4] to the picture, of sizes that are multiples of
            `plain.multiple`.
        plain: the same net.
    """

    def __init__(self, form: str, quick: nn.Module, plain: PictureNet) -> None:
        super().__init__()
        self.form, self.quick, self.plain = form, quick, plain
        self._refused: set[torch.Size] = set()

    def forward(self, bgra: Tensor) -> Tensor:
        """Upscale one frame, as `PictureNet` does."""
        if bgra.shape not in self._refused:
            try:
                return self.quickly(bgra)
            except RuntimeError:  # the device's, for want of memory say
                raise
            except Exception as exc:  # ours and Triton's: the size is too large for a kernel
                self._refused.add(bgra.shape)
                log.warning("the plain net runs, as %r does not: %s", self.form, _named(exc))
        picture: Tensor = self.plain(bgra)
        return picture

    def quickly(self, bgra: Tensor) -> Tensor:
        """Do it with the quick form, or raise what that raises."""
        height, width = bgra.shape[1:3]
        right, below = -width % self.plain.multiple, -height % self.plain.multiple
        if right:
            bgra = torch.cat((bgra, bgra[:, :, -1:].expand(-1, -1, right, -1)), 2)
        if below:
            bgra = torch.cat((bgra, bgra[:, -1:].expand(-1, below, -1, -1)), 1)
        picture: Tensor = self.quick(bgra)
        return picture[:, : height * self.plain.scale, : width * self.plain.scale]


def quickest(loaded: Loaded, plain: PictureNet, device: str) -> nn.Module:
    """Give the form that should be quickest; the plain net where there is none, or it is wrong.

    It is compared on a piece of a game frame, in FP16, with the plain net: within what the
    model's row accepts between FP16 and FP32. That, a failure or a missing Triton is logged.

    Args:
        plain: of `loaded`; moved to `device`.
        device: "cuda", or "cpu" for tests.
    """
    form, why = "", ""
    try:
        found = fast.quickest(loaded.module) if loaded.module is not None else None
        if found is None:
            return plain
        form, module = found
        if device != "cpu" and not kernels.has_triton():
            why = "needs Triton, which is not installed"
        else:
            quick = QuickNet(form, module.to(device), plain.to(device))
            why = _mismatch(quick, loaded, device)
            if not why:
                return quick
    except Exception as exc:  # whatever Triton, its compilers and the driver may raise
        why = _named(exc)
    log.warning("%s runs as the plain net; its form %r: %s", loaded.located.name, form, why)
    return plain


def _mismatch(quick: QuickNet, loaded: Loaded, device: str) -> str:
    """Say how a quick form is wrong; "" if it is right."""
    bgra = torch.from_numpy(_piece())[None].to(device)
    with torch.inference_mode():
        found, expected = quick.quickly(bgra), quick.plain(bgra)
    apart = (found.cpu().int() - expected.cpu().int()).abs()
    most, mean = int(apart.max()), float(apart[..., :3].float().mean())
    spec = loaded.spec
    if most <= spec.fp16_max and mean <= spec.fp16_mean:
        log.debug("%s, form %r: %d levels apart, %.4f in the mean", spec.id, quick.form, most, mean)
        return ""
    return (
        f"it differs by {most} levels, {mean:.3f} in the mean, of {spec.fp16_max} and "
        f"{spec.fp16_mean:g} that are accepted"
    )


def _piece() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Give a piece of a shipped game frame, uint8 BGRA (H, W, 4); stripes if none can be read."""
    try:
        from engines import frames

        return frames.read(_PIECE, most=1)[0]
    except ImportError:  # OpenCV is missing
        y, x = np.mgrid[: _PIECE[1], : _PIECE[0]]
        waves = [127.5 + 127.5 * np.sin(x / a + y / b) for a, b in ((3, 50), (40, 2), (7, 11))]
        return np.stack([*waves, np.full(x.shape, 255.0)], -1).astype(np.uint8)


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


class _Trials:
    """Lets cuDNN try its ways while anybody needs that, and then sets it as it was.

    The setting is the process's. What was tried is used again only while it is on, so it must be
    on for the warm-up, for a capture and for inferences without graphs, and another thread may be
    at one of them while this one is done.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_use = 0
        self._before = False

    @contextmanager
    def on(self) -> Iterator[None]:
        """Have them on, on all threads."""
        with self._lock:
            if not self._in_use:
                self._before = torch.backends.cudnn.benchmark
                torch.backends.cudnn.benchmark = True
            self._in_use += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_use -= 1
                if not self._in_use:
                    torch.backends.cudnn.benchmark = self._before


_TRIALS = _Trials()


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

    def attach(self, slot: int, source: DeviceBuffer, target: DeviceBuffer) -> None:
        """Look at a slot's buffers through tensors, before anything is captured.

        Raises:
            OverlayError: PyTorch does not take them.
        """
        with _translated():
            self._new_views(slot, source, target)

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
            _TRIALS.on(),
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


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"


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
    form: Form = None,
) -> GpuUpscaler:
    """Open a model with PyTorch.

    Args:
        located: where its weights are, as `engines.load.locate` says.
        cuda: the device, the primary context of device 0; stays open.
        filter: shader for what is left between the result and the size on screen.
        download: as `GpuUpscaler`.
        compiled: as `TorchProgram`.
        form: as `upscaler`.
    Raises:
        BackendUnavailable: PyTorch sees no GPU.
        EngineError: the weights cannot be read, or are an ONNX graph.
        CudaError: the device fails.
    """
    require_gpu()
    return upscaler(
        read(located), cuda, filter, download=download, compiled=compiled, form=form
    )  # fmt: skip


def upscaler(
    loaded: Loaded,
    cuda: Cuda,
    filter: str = "bicubic",
    *,
    download: bool = True,
    compiled: bool = False,
    form: Form = None,
    kind: torch.dtype = torch.float16,
    device: str = "cuda",
    program: type[TorchProgram] = TorchProgram,
) -> GpuUpscaler:
    """Put a net that was read on the GPU path.

    Args:
        form: "plain" for the net as it is, or a form of `engines.fast.FORMS`, which is taken
            unchecked; None: `quickest`, and the plain net where it is compiled or not in FP16.
        kind: what to compute in.
        device: "cuda"; "cpu" for tests, with a `program` that finds its tensors there.
    Raises:
        ValueError: the net has no such form.
    """
    spec = loaded.spec
    try:
        net = _formed(loaded, form, kind, device, compiled)
        made = program(
            net, spec.scale, spec.output == "luma", _title(net, kind, compiled),
            device=device, compiled=compiled,
        )  # fmt: skip
    except RuntimeError as exc:
        raise OverlayError(f"{loaded.located.name} on PyTorch: {_first_line(exc)}") from exc
    try:
        return GpuUpscaler(
            cuda,
            made,
            model=loaded.located.name,
            backend=BACKEND,
            scale=spec.scale,
            output=spec.output,
            filter=filter,
            download=download,
        )
    except BaseException:
        made.close()
        raise


def _formed(
    loaded: Loaded, form: Form, kind: torch.dtype, device: str, compiled: bool
) -> nn.Module:
    plain = PictureNet(loaded, kind)
    if form is None and kind == torch.float16 and not compiled and device != "cpu":
        return quickest(loaded, plain, device)
    if form is None or form == "plain":
        return plain
    assert loaded.module is not None, "PictureNet refuses graphs"
    return QuickNet(form, fast.faster(loaded.module, form, kind), plain)


def _title(net: nn.Module, kind: torch.dtype, compiled: bool) -> str:
    how = {torch.float16: "FP16", torch.float32: "FP32"}.get(kind, str(kind))
    form = f", {net.form}" if isinstance(net, QuickNet) else ""
    return f"{how}{form}, PyTorch {torch.__version__}{', compiled' if compiled else ''}"
