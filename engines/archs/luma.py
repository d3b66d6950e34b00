"""The embedded default nets: plain 3x3 convolutions from luma to luma.

Two forms of one function:

* `TrainableLumaNet` is what `training.train` optimises. Each of its layers is a 3x3 kernel
  written as anchor + projection @ expansion (the linear blocks of SESR, Bhardwaj et al. 2022),
  collapsed into one kernel at every step, so training costs little more than the plain net. The
  anchors make the untrained net a bilinear upscale: training learns the residual.
* `LumaNet` is what is shipped: the collapsed kernels, uint8 BGRA in, uint8 luma out, with the
  colour conversion, scaling, rounding and clamping inside. `LumaPicture` is its form for GPUs.

Convolutions are "valid": the input is extended once by its own edge pixels, so no zero border
is ever seen, neither in training (whose crops have real neighbours) nor at run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

#: BT.601 full-range luma of B, G, R, A.
LUMA_OF_BGRA = (0.114, 0.587, 0.299, 0.0)


def dirac(inputs: int, outputs: int) -> Tensor:
    """Make a kernel [outputs, inputs, 3, 3] that copies channel i to channel i."""
    kernel = torch.zeros(outputs, inputs, 3, 3)
    for channel in range(min(inputs, outputs)):
        kernel[channel, channel, 1, 1] = 1.0
    return kernel


def bilinear_phases(scale: int) -> Tensor:
    """Make a kernel [scale*scale, 3, 3]: bilinear upscale with half-pixel centres, (dy, dx)."""
    line = torch.zeros(scale, 3)
    for phase in range(scale):
        offset = (phase + 0.5) / scale - 0.5
        line[phase, 1] = 1 - abs(offset)
        line[phase, 2 if offset > 0 else 0] += abs(offset)
    return torch.einsum("ai,bj->abij", line, line).reshape(scale * scale, 3, 3)


class CollapsibleConv(nn.Module):
    """A 3x3 convolution whose kernel is anchor + project @ expand.

    Args:
        inputs: channels in.
        outputs: channels out.
        anchor: fixed kernel [outputs, inputs, 3, 3] to which the learned part is added.
        width: channels between expansion and projection.
    """

    anchor: Tensor

    def __init__(self, inputs: int, outputs: int, anchor: Tensor, width: int = 64) -> None:
        super().__init__()
        self.register_buffer("anchor", anchor)
        self.expand = nn.Parameter(torch.randn(width, inputs, 3, 3) / (inputs * 9) ** 0.5)
        self.project = nn.Parameter(torch.randn(outputs, width) * (0.3 / width**0.5))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.rounding: nn.Module = nn.Identity()  # what training for int8 does to the kernel

    def kernel(self) -> Tensor:
        """Collapse to the kernel [outputs, inputs, 3, 3]."""
        return self.anchor + torch.einsum("ow,wihk->oihk", self.project, self.expand)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: [N, inputs, H, W] -> [N, outputs, H-2, W-2]."""
        return F.conv2d(x, self.rounding(self.kernel()), self.bias)

    def forward_expanded(self, x: Tensor) -> Tensor:
        """Convolve without collapsing; equal to `forward` but for rounding."""
        wide = F.conv2d(F.conv2d(x, self.expand), self.project[:, :, None, None], self.bias)
        return wide + F.conv2d(x, self.anchor)


class TrainableLumaNet(nn.Module):
    """Luma to luma, trainable.

    Args:
        scale: upscale factor.
        channels: feature channels.
        depth: number of 3x3 convolutions, the first and the last included.
        width: channels between expansion and projection of each.
    """

    def __init__(self, scale: int, channels: int = 16, depth: int = 4, width: int = 64) -> None:
        super().__init__()
        self.scale = scale
        tail = torch.zeros(scale * scale, channels, 3, 3)
        tail[:, 0] = bilinear_phases(scale)
        self.layers = nn.ModuleList(
            [
                CollapsibleConv(1, channels, dirac(1, channels), width),
                *(
                    CollapsibleConv(channels, channels, dirac(channels, channels), width)
                    for _ in range(depth - 2)
                ),
                CollapsibleConv(channels, scale * scale, tail, width),
            ]
        )

    @property
    def margin(self) -> int:
        """How many pixels of context each side loses."""
        return len(self.layers)

    def forward(self, luma: Tensor) -> Tensor:
        """Upscale.

        Args:
            luma: float [N, 1, H + 2*margin, W + 2*margin], 0..1.
        Returns:
            float [N, 1, H*scale, W*scale], about 0..1, not clamped.
        """
        x = luma
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return F.pixel_shuffle(self.layers[-1](x), self.scale)

    def restart(self, weights: Mapping[str, Tensor]) -> None:
        """Become the net that `folded` gave these weights, with the learned part at nothing.

        Raises:
            ValueError: the weights are of another shape.
        """
        kernels, biases = _checked(weights)
        if [k.shape for k in kernels] != [k.shape for k in self._kernels()]:
            raise ValueError("the weights to start from are of another scale, width or depth")
        for layer, kernel, bias in zip(self.layers, kernels, biases, strict=True):
            assert isinstance(layer, CollapsibleConv)
            layer.anchor.copy_(kernel)
            layer.project.data.zero_()
            layer.bias.data.copy_(bias)

    def _kernels(self) -> list[Tensor]:
        return [layer.kernel() for layer in self.layers if isinstance(layer, CollapsibleConv)]

    def folded(self) -> dict[str, Tensor]:
        """Collapse to the shipped weights: `conv<i>.weight` and `conv<i>.bias`, float32."""
        weights: dict[str, Tensor] = {}
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, CollapsibleConv)
            weights[f"conv{index}.weight"] = layer.kernel().detach().contiguous()
            weights[f"conv{index}.bias"] = layer.bias.detach().clone()
        return weights


class LumaNet(nn.Module):
    """uint8 BGRA to uint8 luma: the shipped form.

    Args:
        weights: as `TrainableLumaNet.folded` gives; `conv0` has one input channel.
    Raises:
        ValueError: the tensors are not those of such a net.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        kernels, biases = _checked(weights)
        luma = torch.tensor(LUMA_OF_BGRA).reshape(1, 4, 1, 1)
        kernels[0] = kernels[0] * luma  # [C, 1, 3, 3] -> [C, 4, 3, 3]
        self.scale = round(kernels[-1].shape[0] ** 0.5)
        self.convs = nn.ModuleList()
        for kernel, bias in zip(kernels, biases, strict=True):
            conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3)
            conv.weight = nn.Parameter(kernel, requires_grad=False)
            # Trained on 0..1 and run on 0..255: a ReLU net scales if its biases do.
            conv.bias = nn.Parameter(bias * 255.0, requires_grad=False)
            self.convs.append(conv)

    def forward(self, bgra: Tensor) -> Tensor:
        """Upscale one frame.

        Args:
            bgra: uint8 BGRA [1, H, W, 4]; alpha is ignored.
        Returns:
            uint8 BT.601 full-range luma [1, H, W, scale*scale]: the last axis holds the
            output pixels (dy, dx) of each input pixel, dy outermost.
        """
        y = self.blocks(bgra.permute(0, 3, 1, 2).to(torch.float32))
        return y.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def blocks(self, planes: Tensor) -> Tensor:
        """Filter float BGRA [1, 4, H, W], 0..255, to luma [1, scale*scale, H, W], about 0..255."""
        margin = len(self.convs)
        x = F.pad(planes, (margin, margin, margin, margin), mode="replicate")
        for conv in self.convs[:-1]:
            x = F.relu(conv(x))
        y: Tensor = self.convs[-1](x)
        return y


class LumaPicture(nn.Module):
    """The same net for GPUs, which put the blocks together themselves.

    Args:
        net: its weights are shared.
    """

    def __init__(self, net: LumaNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, planes: Tensor) -> Tensor:
        """Upscale one frame.

        Args:
            planes: float BGRA [1, 4, H, W], 0..255; alpha is ignored.
        Returns:
            float BT.601 full-range luma [1, 1, H*scale, W*scale], about 0..255, neither rounded
            nor clamped.
        """
        return F.pixel_shuffle(self.net.blocks(planes), self.net.scale)


def is_luma(state: Mapping[str, Tensor]) -> bool:
    """Tell whether tensors are meant to be a `LumaNet`'s, by their first kernel."""
    first = state.get("conv0.weight")
    return first is not None and first.shape[1:] == (1, 3, 3)


def _checked(weights: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Give kernels and biases in order, or raise ValueError saying what is wrong."""
    depth = len(weights) // 2
    expected = {f"conv{i}.{part}" for i in range(depth) for part in ("weight", "bias")}
    if depth < 2 or set(weights) != expected:
        raise ValueError(f"expected conv0..convN weights and biases, found {sorted(weights)}")
    kernels = [weights[f"conv{i}.weight"].float() for i in range(depth)]
    biases = [weights[f"conv{i}.bias"].float() for i in range(depth)]
    inputs = 1
    for index, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        outputs = kernel.shape[0]
        if kernel.shape != (outputs, inputs, 3, 3) or bias.shape != (outputs,):
            shapes = _shape(kernel.shape), _shape(bias.shape)
            raise ValueError(f"conv{index} has shapes {shapes[0]} and {shapes[1]}")
        inputs = outputs
    if inputs not in (4, 9, 16):
        raise ValueError(f"the last convolution has {inputs} outputs, not 4, 9 or 16")
    return kernels, biases


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
