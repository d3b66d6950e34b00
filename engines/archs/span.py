"""SPAN: "Swift Parameter-free Attention Network" (Wan et al. 2024), as it is run.

Trained, each convolution is 1x1, 3x3, 1x1 beside a 1x1 skip; the sum is one 3x3 convolution, and
only that is here. `fused` makes the one of the other. Parameter names are those of the released
files' `eval_conv`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

#: Mean colour (R, G, B) of the pictures it is trained with, 0..1.
MEAN = (0.4488, 0.4371, 0.4040)


class FusedConv(nn.Module):
    """One 3x3 convolution, under the name that it has in released files."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.eval_conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [N, inputs, H, W] to [N, outputs, H, W]."""
        y: Tensor = self.eval_conv(x)
        return y


class AttentionBlock(nn.Module):
    """Three convolutions whose output, point-symmetrically activated, is its own attention."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.c1_r = FusedConv(features, features)
        self.c2_r = FusedConv(features, features)
        self.c3_r = FusedConv(features, features)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Refine [N, features, H, W]; also gives what the first convolution gave, activated."""
        first = F.silu(self.c1_r(x))
        last = self.c3_r(F.silu(self.c2_r(first)))
        return (last + x) * (torch.sigmoid(last) - 0.5), first


class Span(nn.Module):
    """RGB to RGB.

    Args:
        features: channels between blocks.
        scale: output size / input size.
        norm: whether the mean colour is taken off first and the rest brought to -255..255.
    """

    mean: Tensor

    def __init__(self, features: int, scale: int, norm: bool = True) -> None:
        super().__init__()
        mean = torch.tensor(MEAN, device="cpu").reshape(1, 3, 1, 1)
        self.register_buffer("mean", mean if norm else None, persistent=False)
        self.conv_1 = FusedConv(3, features)
        self.block_1 = AttentionBlock(features)
        self.block_2 = AttentionBlock(features)
        self.block_3 = AttentionBlock(features)
        self.block_4 = AttentionBlock(features)
        self.block_5 = AttentionBlock(features)
        self.block_6 = AttentionBlock(features)
        self.conv_cat = nn.Conv2d(4 * features, features, 1)
        self.conv_2 = FusedConv(features, features)
        shuffle = nn.PixelShuffle(scale)
        self.upsampler = nn.Sequential(nn.Conv2d(features, 3 * scale**2, 3, padding=1), shuffle)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale.

        Args:
            x: float RGB [N, 3, H, W], 0..1.
        Returns:
            float RGB [N, 3, H*scale, W*scale], about 0..1, not clamped.
        """
        if self.mean is not None:
            x = (x - self.mean) * 255.0
        x = self.conv_1(x)
        first, _ = self.block_1(x)
        y, _ = self.block_2(first)
        y, _ = self.block_3(y)
        y, _ = self.block_4(y)
        y, _ = self.block_5(y)
        y, inner = self.block_6(y)
        y = self.conv_cat(torch.cat((x, self.conv_2(y), first, inner), 1))
        picture: Tensor = self.upsampler(y)
        return picture


def build(shape: Mapping[str, int]) -> nn.Module:
    """Make the net, with random weights; `shape` has features and scale, and norm if it is 0."""
    return Span(shape["features"], shape["scale"], bool(shape.get("norm", 1)))


def receptive_field(shape: Mapping[str, int]) -> int:
    """Tell how many source pixels away a source pixel can change an output pixel."""
    return 21


def shape_of(state: Mapping[str, Tensor]) -> dict[str, int] | None:
    """Tell the shape of the net that has these tensors (as trained, or fused); None: another net.

    Raises:
        ValueError: it is such a net, but not from RGB to RGB.
    """
    first = state.get("conv_1.sk.weight", state.get("conv_1.eval_conv.weight"))
    last = state.get("upsampler.0.weight")
    if first is None or last is None or "conv_cat.weight" not in state or first.dim() != 4:
        return None
    if first.shape[1] != 3:
        raise ValueError(f"takes {first.shape[1]} channels, not RGB")
    scale = isqrt(last.shape[0] // 3)
    if scale < 1 or last.shape[0] != 3 * scale**2:
        raise ValueError(f"its last layer has {last.shape[0]} channels, which are no RGB blocks")
    norm = {"norm": 0} if "no_norm" in state else {}
    return {"features": first.shape[0], "scale": scale, **norm}


def fused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make the tensors of this net of a trained one's; those of a fused one pass unchanged.

    Raises:
        ValueError: the parts of a convolution do not fit together.
    """
    convs = [name.removesuffix(".sk.weight") for name in state if name.endswith(".sk.weight")]
    parts = tuple(f"{conv}.{part}." for conv in convs for part in ("sk", "conv"))
    result = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(parts) and name != "no_norm"
    }
    for conv in convs:
        weight, bias = _fused_conv({part: state.get(f"{conv}.{part}") for part in _PARTS}, conv)
        result[f"{conv}.eval_conv.weight"], result[f"{conv}.eval_conv.bias"] = weight, bias
    return result


_PARTS = tuple(
    f"{layer}.{part}"
    for layer in ("sk", "conv.0", "conv.1", "conv.2")
    for part in ("weight", "bias")
)


def _fused_conv(parts: Mapping[str, Tensor | None], name: str) -> tuple[Tensor, Tensor]:
    """Multiply out 1x1 * 3x3 * 1x1 + 1x1; kernels are [outputs, inputs, height, width]."""
    found = [part.double() for part in parts.values() if part is not None]
    shapes = [tuple(part.shape) for part in found]
    outputs, inputs = shapes[0][:2] if shapes and len(shapes[0]) == 4 else (0, 0)
    wide, middle = 2 * inputs, 2 * outputs
    kernels = [
        (outputs, inputs, 1, 1), (wide, inputs, 1, 1), (middle, wide, 3, 3), (outputs, middle, 1, 1)
    ]  # fmt: skip
    if shapes != [shape for kernel in kernels for shape in (kernel, kernel[:1])]:
        raise ValueError(f"the parts of its convolution {name} do not fit together")
    skip, skip_bias, w1, b1, w2, b2, w3, b3 = found
    weight = torch.einsum("on,nmhw,mi->oihw", w3[:, :, 0, 0], w2, w1[:, :, 0, 0])
    weight[:, :, 1:2, 1:2] += skip
    bias = w3[:, :, 0, 0] @ (w2.sum((2, 3)) @ b1 + b2) + b3 + skip_bias
    return weight.float(), bias.float()
