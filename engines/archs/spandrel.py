"""Other people's architectures, read by spandrel (https://github.com/chaiNNer-org/spandrel).

Spandrel gets tensors, never a file. It knows an architecture by the names of its tensors and
guesses the net's size from their shapes, so the net that it makes is bounded here by the tensors
that there are.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from engines.errors import BuilderMissing, ModelInvalid
from engines.load import INSTALL_BUILD, UNKNOWN_LICENCE
from engines.spec import ModelSpec, Source

#: Purposes, in spandrel's words, of nets that take and give whole pictures.
_PURPOSES = ("SR", "Restoration")
#: A net may have so many parameters more than the file has; some are made of others.
_SPARE = 1 << 20
#: Definitions of operators that torchvision lacks; forgotten by PyTorch when this is.
_definitions: list[torch.library.Library] = []


def read(
    state: Mapping[str, Tensor], name: str, path: Path, sha256: str
) -> tuple[ModelSpec, nn.Module]:
    """Make the net that has these tensors.

    Args:
        state: tensors by parameter name.
        name: id for the net.
        path: of its file, for messages.
        sha256: identity of the file.
    Returns:
        What is known about it, and the net as in `engines.load.Loaded`.
    Raises:
        ModelInvalid: spandrel does not know such a net, or it is no upscaler from RGB to RGB.
        BuilderMissing: spandrel is not installed.
    """
    model = _described(state, path)
    scale, requirements = model.scale, model.size_requirements
    if model.purpose not in _PURPOSES:
        raise ModelInvalid(f"{path} is for {model.purpose} ({model.architecture.name}), not for SR")
    if (model.input_channels, model.output_channels) != (3, 3):
        raise ModelInvalid(
            f"{path} takes {model.input_channels} channels and gives {model.output_channels}; "
            "nets from RGB to RGB can be used"
        )
    if not isinstance(scale, int) or not 1 <= scale <= 8 or requirements.square:
        raise ModelInvalid(f"{path} enlarges by {scale} or takes square pictures only")
    net: nn.Module = model.model
    net = net.float().eval().requires_grad_(False)
    multiple = max(1, requirements.multiple_of or 1)
    _try(net, scale, multiple, max(16, requirements.minimum or 0), path)
    spec = ModelSpec(
        id=name,
        architecture="spandrel",
        scale=scale,
        licence=UNKNOWN_LICENCE,
        sources=(Source("file", path.name, sha256),),
        size_multiple=multiple,
        notes=f"{model.architecture.name}"
        + ("" if model.supports_half else "; not meant to compute in FP16"),
    )
    return spec, net


def _described(state: Mapping[str, Tensor], path: Path) -> Any:
    """Give spandrel's description of the net."""
    try:
        spandrel = _imported("spandrel")
    except ImportError as exc:
        raise BuilderMissing(
            f"{path} is neither compact, rrdb nor span; spandrel, which reads other nets, cannot "
            f"be imported ({_line(exc)}): {INSTALL_BUILD}"
        ) from exc
    numbers = sum(tensor.numel() for tensor in state.values())
    copy = {key: t.float() if t.is_floating_point() else t for key, t in state.items()}
    try:
        with _bounded(2 * numbers + _SPARE), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return spandrel.ModelLoader(device="cpu").load_from_state_dict(copy)
    except spandrel.UnsupportedModelError:
        raise ModelInvalid(
            f"{path} holds {len(state)} tensors ({', '.join(sorted(state))[:80]}…) of no known net"
        ) from None
    except Exception as exc:  # 42 architectures, each with guesses of its own about the tensors
        raise ModelInvalid(f"{path} cannot be read by spandrel: {_line(exc)}") from exc


@contextmanager
def _bounded(numbers: int) -> Iterator[None]:
    """Stop the making of a net that has more parameters than `numbers`."""
    total = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal total
        total += parameter.numel() if parameter is not None else 0
        if total > numbers:
            raise ValueError("its tensors describe a net far larger than they are")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _try(net: nn.Module, scale: int, multiple: int, minimum: int, path: Path) -> None:
    """Run the net once on a small picture."""
    side = -(-minimum // multiple) * multiple
    picture = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output = net(picture)
    except Exception as exc:  # other people's code on a stranger's weights
        raise ModelInvalid(f"{path} does not run: {_line(exc)}") from exc
    wanted = (1, 3, side * scale, side * scale)
    if not isinstance(output, Tensor) or tuple(output.shape) != wanted:
        raise ModelInvalid(f"{path} does not give one picture {scale} times as large")
    if not bool(torch.isfinite(output).all()):
        raise ModelInvalid(f"{path} gives NaN or infinity for an ordinary picture")


def _imported(name: str) -> Any:
    """Import spandrel, which needs torchvision, two operators of which it never calls.

    Torchvision of one build beside PyTorch of another (CUDA's and the CPU's, say) fails to
    import for want of these operators; then, and only then, they are declared without code.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import_module("torchvision")
        except RuntimeError as exc:
            if "torchvision::nms" not in str(exc):
                raise ImportError(_line(exc)) from exc
            _declare_operators()
            for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
                del sys.modules[module]
        return import_module(name)


def _declare_operators() -> None:
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _definitions.append(library)


def _line(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return (lines[0] if lines else type(exc).__name__)[:160]
