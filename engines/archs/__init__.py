"""Network architectures; the only modules of this package that import torch.

`compact`, `emt`, `rrdb` and `span` take and give RGB, float [N, 3, H, W], 0..1, and have the
parameter names of the released files. Each has `build`, `shape_of` and `receptive_field`. `luma`
is what ships.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from engines.archs import compact, emt, rrdb, span

Shape = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a module of this package offers.

    Attributes:
        build: makes the net of a shape, with random weights.
        shape_of: tells the shape from the tensors; None: another architecture.
        receptive_field: how many source pixels away a source pixel can change an output pixel.
        size_multiple: what width and height must be multiples of.
    """

    build: Callable[[Shape], nn.Module]
    shape_of: Callable[[Mapping[str, Tensor]], dict[str, int] | None]
    receptive_field: Callable[[Shape], int]
    size_multiple: Callable[[Shape], int] = lambda shape: 1


#: By name, as in `ModelSpec.architecture`.
ARCHITECTURES = {
    "compact": Architecture(compact.build, compact.shape_of, compact.receptive_field),
    "emt": Architecture(emt.build, emt.shape_of, emt.receptive_field),
    "rrdb": Architecture(rrdb.build, rrdb.shape_of, rrdb.receptive_field, rrdb.size_multiple),
    "span": Architecture(span.build, span.shape_of, span.receptive_field),
}

#: Of nets that are trained in another form than they are run in: makes the one of the other.
_FUSED = {"emt": emt.fused, "span": span.fused}


class Resized(nn.Module):
    """A net, then a bicubic resize (a = -0.75, half-pixel centres, no antialiasing).

    Args:
        net: RGB to RGB.
        factor: size after / size before.
    """

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net = net
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Upscale [N, 3, H, W], then resize."""
        y = self.net(x)
        return F.interpolate(y, scale_factor=self.factor, mode="bicubic", align_corners=False)


def recognised(state: Mapping[str, Tensor]) -> tuple[str, dict[str, int]] | None:
    """Tell architecture and shape of the net that has these tensors; None: none of ours.

    Raises:
        ValueError: it is one of ours, but not from RGB to RGB.
    """
    for name, architecture in ARCHITECTURES.items():
        shape = architecture.shape_of(state)
        if shape is not None:
            return name, shape
    return None


def net_with(architecture: str, shape: Shape, state: Mapping[str, Tensor]) -> nn.Module:
    """Make a net and give it its weights.

    Nothing larger than `state` is allocated, whatever `shape` says.

    Args:
        architecture: one of `ARCHITECTURES`.
        shape: its arguments.
        state: tensors by parameter name, of any floating type.
    Returns:
        The net in float32, in inference mode, without gradients.
    Raises:
        ValueError: the tensors are not those of this net.
    """
    if architecture in _FUSED:
        state = _FUSED[architecture](state)
    with torch.device("meta"):
        net = ARCHITECTURES[architecture].build(shape)
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"its tensor {name[:80]} is {_shape(found.get(name))}, "
                f"not {_shape(expected.get(name))}"
            )
    floats = {name: tensor.detach().float().contiguous() for name, tensor in state.items()}
    net.load_state_dict(floats, assign=True)
    return net.eval().requires_grad_(False)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "a number"
