"""The nets as they are trained, and the way from there to the nets that are run.

A 3x3 kernel is trained as anchor + projection @ expansion (the linear blocks of SESR, Bhardwaj
et al. 2022), on wish with Sobel and Laplacian branches (the edge-oriented block of ECBSR, Zhang et
al. 2021). All of that is linear, so the kernel is put together at every step (training costs
little more than the plain net) and `folded` gives the kernels alone: the weights that are
averaged, validated, saved and run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from torch.nn.utils import parametrize

from engines import archs, checkpoint, load
from engines.archs import compact
from engines.archs.luma import LumaNet, LumaPicture, TrainableLumaNet
from engines.errors import EngineError
from training.config import ConfigError, Net
from training.loader import Colour
from training.quantise import RoundedKernel

Weights = dict[str, Tensor]

#: Sobel down and right, and Laplacian.
EDGES = (
    ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    ((1, 0, -1), (2, 0, -2), (1, 0, -1)),
    ((0, 1, 0), (1, -4, 1), (0, 1, 0)),
)


class LinearBlock(nn.Module):
    """Add to a kernel [O, I, 3, 3] what linear branches beside it amount to.

    Args:
        inputs, outputs: I, O.
        expand: channels between expansion (3x3) and projection (1x1).
        edges: add fixed edge filters after a learned 1x1, scaled for each output channel.
    """

    filters: Tensor

    def __init__(self, inputs: int, outputs: int, expand: int, edges: bool) -> None:
        super().__init__()
        self.expand = nn.Parameter(torch.randn(expand, inputs, 3, 3) / (inputs * 9) ** 0.5)
        self.project = nn.Parameter(torch.randn(outputs, expand) * (0.3 / expand**0.5))
        self.edges = edges
        if edges:
            count = len(EDGES)
            self.register_buffer("filters", torch.tensor(EDGES, dtype=torch.float32) / 8)
            self.mix = nn.Parameter(torch.randn(count, outputs, inputs) / inputs**0.5)
            self.gain = nn.Parameter(0.01 * torch.randn(count, outputs))

    def forward(self, kernel: Tensor) -> Tensor:
        """Give the kernel that convolves as it and all branches together, in full precision."""
        with torch.autocast(kernel.device.type, enabled=False):
            return self._sum(kernel)

    def _sum(self, kernel: Tensor) -> Tensor:
        kernel = kernel + torch.einsum("ow,wihk->oihk", self.project, self.expand)
        if not self.edges:
            return kernel
        return kernel + torch.einsum("eo,eoi,ehk->oihk", self.gain, self.mix, self.filters)

    def clear(self) -> None:
        """Make the branches amount to nothing, so that they begin to learn from there."""
        self.project.data.zero_()
        if self.edges:
            self.gain.data.zero_()


@dataclass(frozen=True, slots=True)
class Student:
    """A net in training.

    Attributes:
        net: float [N, C, H + 2*margin, W + 2*margin], 0..1, to [N, C, H*scale, W*scale].
        margin: LR pixels of context that each side loses.
        colour: what C is.
    """

    net: nn.Module
    margin: int
    colour: Colour


def shape_of(net: Net) -> dict[str, int]:
    """Give the arguments of a net's architecture in `engines.archs`."""
    shape = {"features": net.features, "scale": net.scale}
    if net.architecture == "compact":
        shape["convs"] = net.depth
    if net.architecture == "rrdb":
        shape |= {"blocks": net.depth, "growth": net.growth}
    return shape


def build(config: Net, seed: int) -> Student:
    """Make a net to train, with the weights that it begins with.

    Raises:
        ConfigError: `config.start` cannot be read, or is another net.
    """
    torch.manual_seed(seed)
    if config.architecture == "luma":
        net: nn.Module = TrainableLumaNet(
            config.scale, config.features, config.depth, config.expand
        )
        student = Student(net, config.depth, "luma")
    else:
        net = archs.ARCHITECTURES[config.architecture].build(shape_of(config))
        if config.expand:
            _widen(net, config.expand, config.edges)
        student = Student(net, 0, "rgb")
    if config.start:
        try:
            restart(net, _rescaled(start_weights(config), config))
        except (ValueError, EngineError) as exc:
            raise ConfigError(f"net.start: {exc}") from exc
    return student


def _widen(net: nn.Module, expand: int, edges: bool) -> None:
    """Train every 3x3 kernel of a net through a linear block."""
    for module in list(net.modules()):
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            outputs, inputs = module.weight.shape[:2]
            block = LinearBlock(inputs, outputs, expand, edges)
            parametrize.register_parametrization(module, "weight", block)


def start_weights(config: Net) -> Weights:
    """Read the folded weights of `config.start`; errors as `engines.load`."""
    located = load.locate(config.start)
    if config.architecture == "luma":
        path = located.files[0]
        return checkpoint.read(path.read_bytes(), path)
    module = load.read(located).module
    if module is None or isinstance(module, archs.Resized):
        raise ValueError(f"{config.start} is no net that can be trained")
    return dict(module.state_dict())


def _rescaled(weights: Weights, config: Net) -> Weights:
    """Take a Compact net's weights to the scale that is to be trained."""
    shape = compact.shape_of(weights) if config.architecture == "compact" else None
    if shape is None or shape["scale"] == config.scale:
        return weights
    return compact.rescaled(weights, config.scale)


def restart(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Become the net that has these folded weights, all branches at nothing.

    Raises:
        ValueError: the weights are those of another net.
    """
    if isinstance(net, TrainableLumaNet):
        net.restart(weights)
        return
    own = folded(net)
    different = [
        name
        for name in sorted(own.keys() | weights.keys())
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    ]
    if different:
        raise ValueError(
            f"the weights to start from are of another scale, width or depth ({different[0]})"
        )
    state = net.state_dict()
    for name, tensor in weights.items():
        module, _, last = name.rpartition(".")
        inner = f"{module}.parametrizations.{last}.original"
        state[inner if inner in state else name].copy_(tensor)
    for part in net.modules():
        if isinstance(part, LinearBlock):
            part.clear()


@torch.no_grad()
def folded(net: nn.Module) -> Weights:
    """Give the weights of the net that is run, float32, by the names it has there.

    Rounding for int8 is left out: the builder of an engine does that.
    """
    if isinstance(net, TrainableLumaNet):
        return net.folded()
    weights: Weights = {}
    for prefix, module in net.named_modules():
        if ".parametrizations" in prefix:
            continue
        dot = f"{prefix}." if prefix else ""
        for name, parameter in module.named_parameters(recurse=False):
            weights[dot + name] = parameter.detach().clone()
        if parametrize.is_parametrized(module):
            for name, chain in module.parametrizations.items():
                value: Tensor = chain.original
                for one in chain:
                    value = value if isinstance(one, RoundedKernel) else one(value)
                weights[dot + name] = value.detach().clone()
    return weights


class _LumaPlane(nn.Module):
    """The shipped luma net, fed with luma."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.picture = LumaPicture(LumaNet(weights))

    def forward(self, x: Tensor) -> Tensor:
        """Upscale [N, 1, H, W], 0..1."""
        y: Tensor = self.picture(x.expand(-1, 4, -1, -1) * 255)
        return y / 255


def deployed(config: Net, weights: Mapping[str, Tensor]) -> nn.Module:
    """Make the net that is run, on the CPU: float [N, C, H, W], 0..1, to [N, C, H*s, W*s]."""
    weights = {name: tensor.cpu() for name, tensor in weights.items()}
    if config.architecture == "luma":
        return _LumaPlane(weights).eval().requires_grad_(False)
    return archs.net_with(config.architecture, shape_of(config), weights)


def open_teacher(model: str, scale: int) -> nn.Module:
    """Open the net to learn from: RGB [N, 3, H, W], 0..1, to [N, 3, H*scale, W*scale].

    Raises:
        ConfigError: it cannot be read, is no RGB net of PyTorch's, or is of another scale.
    """
    try:
        loaded = load.read(load.locate(model))
    except EngineError as exc:
        raise ConfigError(f"teacher.model: {exc}") from exc
    if loaded.module is None or loaded.spec.output != "bgra":
        raise ConfigError(f"teacher.model {model!r} is no RGB net with weights of its own")
    if loaded.spec.scale != scale:
        raise ConfigError(
            f"teacher.model {model!r} enlarges by {loaded.spec.scale}, net.scale is {scale}"
        )
    return loaded.module


def luma_of(rgb: Tensor) -> Tensor:
    """BT.601 full-range luma [N, 1, H, W] of RGB [N, 3, H, W]."""
    return F.conv2d(rgb, rgb.new_tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1))


def save(path: Path, config: Net, weights: Mapping[str, Tensor]) -> None:
    """Write folded weights as safetensors, whole or not at all; equal weights, equal bytes."""
    shape = {key: value for key, value in asdict(config).items() if key != "start"}
    tensors = {name: weights[name].cpu().contiguous() for name in sorted(weights)}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(safetensors.torch.save(tensors, {"net": json.dumps(shape, sort_keys=True)}))
    os.replace(part, path)
