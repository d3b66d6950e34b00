"""The ways to run a net that the GPU suite compares; each goes from bytes to bytes.

All rows let cuDNN try its algorithms (`cudnn.benchmark`); FP32 uses TF32 only where the name says
so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from engines.fast import FORMS, Form, faster, kernels
from engines.fast.kernels import Tile
from evaluation.bench import gpu_fp8
from evaluation.bench.gpu_nets import Model, Picture
from evaluation.bench.timing import Device

#: Puts one frame through; gives uint8 BGRA or luma.
Step = Callable[[], Tensor]


class NotHere(Exception):
    """This method cannot run for this net, or on this machine; the message says why."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a method gets.

    Attributes:
        net: in FP32, on the CPU; methods copy it.
        frame: uint8 BGRA [1, H, W, 4], on the device.
        tile: for our own convolutions; None: as `Tile` says.
    """

    model: Model
    net: nn.Module
    frame: Tensor
    device: Device
    tile: Tile | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """A way to run a net.

    Attributes:
        title: for people.
        prepare: makes the step; may take minutes, and raises NotHere.
        quick: whether preparing takes seconds at most.
        kind: the matrix product whose ceiling is its own.
        more: what else its row says; called after the times were taken.
    """

    title: str
    prepare: Callable[[Case], Step]
    quick: bool = True
    kind: str = "fp16"
    more: Callable[[Case], Mapping[str, object]] | None = None


def _eager(kind: torch.dtype, channels_last: bool) -> Callable[[Case], Step]:
    def prepare(case: Case) -> Step:
        picture = _picture(case, kind, channels_last)
        return lambda: picture(case.frame)

    return prepare


def _picture(case: Case, kind: torch.dtype, channels_last: bool) -> Callable[[Tensor], Tensor]:
    picture = Picture(copy.deepcopy(case.net).to(kind), kind).to(case.device.name)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return picture.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def _graphed(case: Case) -> Step:
    picture = _picture(case, torch.float16, True)
    return captured(lambda: picture(case.frame), case.device)


def captured(step: Step, device: Device) -> Step:
    """Capture a step in a CUDA graph; the result is the same tensor every time."""
    if not device.is_cuda:
        raise NotHere("CUDA graphs need an NVIDIA GPU")
    new_stream: Any = torch.cuda.Stream
    aside = new_stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def _compiled(mode: str) -> Callable[[Case], Step]:
    def prepare(case: Case) -> Step:
        if not case.device.is_cuda:
            raise NotHere("torch.compile is compared on GPUs only")
        torch._dynamo.reset()
        function: Any = torch.compile(_picture(case, torch.float16, True), mode=mode, dynamic=False)
        function(case.frame)
        return lambda: function(case.frame)

    return prepare


def _fast(form: Form, tile: Tile | None = None, tuned: bool = False) -> Callable[[Case], Step]:
    def prepare(case: Case) -> Step:
        if case.model.architecture not in FORMS[form].architectures:
            raise NotHere(f"{case.model.architecture} has no form {form!r}")
        if tuned and case.tile is None:
            raise NotHere("no tiles were measured in this run")
        if not case.device.is_cuda:
            quick = faster(case.net, form, torch.float32)
            return lambda: quick(case.frame)
        if not kernels.has_triton():
            raise NotHere("Triton is not installed")
        net = copy.deepcopy(case.net).to(case.device.name)
        quick = faster(net, form, tile=case.tile if tuned else tile)
        return captured(lambda: quick(case.frame), case.device)

    return prepare


def _fp8(case: Case) -> Step:
    picture = _fp8_picture(case)
    if not case.device.is_cuda:
        return lambda: picture(case.frame)
    if torch.cuda.get_device_capability() < (8, 9):
        raise NotHere("FP8 products need compute capability 8.9 or later")
    return captured(lambda: picture(case.frame), case.device)


def _fp8_picture(case: Case) -> Picture:
    if case.model.architecture == "luma":
        raise NotHere("FP8 is tried on Compact and RRDB only")
    try:
        return gpu_fp8.picture(case.net, case.frame)
    except ValueError as exc:
        raise NotHere(str(exc)) from exc


def _fp8_loss(case: Case) -> Mapping[str, object]:
    return {"loss": gpu_fp8.loss(case.net, _fp8_picture(case), case.frame, case.model.scale)}


def _tensorrt(name: str, package: str) -> Callable[[Case], Step]:
    """Build an engine and run it as the overlay does, between tensors of PyTorch's."""

    def prepare(case: Case) -> Step:
        if not find_spec(package):
            raise NotHere(f"{package} is not installed")
        if not case.device.is_cuda:
            raise NotHere(f"{name} needs an NVIDIA GPU")
        from engines.errors import EngineError
        from evaluation.bench import gpu_engine
        from overlay.errors import OverlayError

        try:
            step, capturable = gpu_engine.step(name, case.model, _graph(case), case.frame)
        except (EngineError, OverlayError, ImportError) as exc:
            raise NotHere(str(exc)) from exc
        return captured(step, case.device) if capturable else step

    return prepare


def _onnxruntime(case: Case) -> Step:
    """Run the exported FP16 graph in ONNX Runtime's CUDA provider, in and out on the device."""
    try:
        onnxruntime: Any = import_module("onnxruntime")
    except ImportError as exc:
        raise NotHere("ONNX Runtime is not installed") from exc
    provider = "CUDAExecutionProvider" if case.device.is_cuda else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise NotHere(f"ONNX Runtime {onnxruntime.__version__} here has no {provider}")
    session = onnxruntime.InferenceSession(_graph(case), providers=[provider])
    if provider not in session.get_providers():
        raise NotHere(f"ONNX Runtime's {provider} cannot be loaded here")
    _, height, width, _ = case.frame.shape
    scale = case.model.scale
    shape = (1, height * scale, width * scale)
    whole = shape if case.model.architecture == "luma" else (*shape, 4)
    out = torch.empty(whole, dtype=torch.uint8, device=case.device.name)
    binding = session.io_binding()
    name = "cuda" if case.device.is_cuda else "cpu"
    for bind, names, tensor in (
        (binding.bind_input, session.get_inputs(), case.frame),
        (binding.bind_output, session.get_outputs(), out),
    ):
        bind(names[0].name, name, 0, "uint8", tuple(tensor.shape), tensor.data_ptr())

    def step() -> Tensor:
        session.run_with_iobinding(binding)
        return out

    return step


def _graph(case: Case) -> bytes:
    from dataclasses import replace

    from engines import load, zoo
    from engines.archs.luma import LumaPicture
    from engines.export import export

    spec = zoo.spec(case.model.id)
    net = case.net.net if isinstance(case.net, LumaPicture) else case.net
    loaded = replace(load.random_weights(spec), module=net)
    _, height, width, _ = case.frame.shape
    return export(loaded, [(width, height)], "fp16" if case.device.is_cuda else "fp32")


#: By name, in the order of the tables.
METHODS = {
    "fp32": Method("PyTorch FP32 eager, no TF32", _eager(torch.float32, False), kind="fp32"),
    "tf32": Method("PyTorch FP32 eager, TF32", _eager(torch.float32, False), kind="tf32"),
    "fp16": Method("PyTorch FP16 eager", _eager(torch.float16, False)),
    "fp16-cl": Method("PyTorch FP16 eager, channels_last", _eager(torch.float16, True)),
    "graph": Method("the same in a CUDA graph", _graphed),
    "epilogue": Method("quick form 'epilogue'", _fast("epilogue")),
    "folded": Method("quick form 'folded'", _fast("folded")),
    "split": Method("quick form 'split'", _fast("split")),
    "direct": Method("quick form 'direct'", _fast("direct")),
    "direct-tuned": Method("quick form 'direct', best tile", _fast("direct", tuned=True)),
    "stacked": Method("quick form 'stacked'", _fast("stacked")),
    "stacked-64": Method("quick form 'stacked', tiles of 64", _fast("stacked", Tile(64, 4, 3))),
    "fp8": Method(
        "PyTorch FP8 products of patches, CUDA graph", _fp8, kind="fp8", more=_fp8_loss
    ),
    "onnxruntime": Method("ONNX Runtime CUDA, FP16", _onnxruntime),
    "tensorrt": Method("TensorRT, FP16", _tensorrt("tensorrt", "tensorrt"), quick=False),
    "tensorrt-rtx": Method(
        "TensorRT-RTX, FP16", _tensorrt("tensorrt-rtx", "tensorrt_rtx"), quick=False
    ),
    "compile": Method("torch.compile FP16", _compiled("default"), quick=False),
    "compile-graph": Method(
        "torch.compile FP16, CUDA graphs", _compiled("reduce-overhead"), quick=False
    ),
    "compile-max": Method(
        "torch.compile FP16, max-autotune", _compiled("max-autotune"), quick=False
    ),
}  # fmt: skip

#: What the ratios are of.
BASELINES = ("fp32", "tf32", "compile")
