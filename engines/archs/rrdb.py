"""RRDBNet: the large net of ESRGAN (Wang et al. 2018) and Real-ESRGAN (Wang et al. 2021).

Residual blocks of dense blocks at the source's size, then twice: repeat the pixels, convolve.
The net always enlarges by 4; the nets of x2 and x1 first fold blocks of 2x2 and 4x4 pixels into
channels. Parameter names are those of Real-ESRGAN's released files.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

#: Scale of the net by the channels of its first convolution.
_SCALES = {3: 4, 12: 2, 48: 1}


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _activated(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def _enlarged(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees what all before it gave."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _conv(features, growth)
        self.conv2 = _conv(features + growth, growth)
        self.conv3 = _conv(features + 2 * growth, growth)
        self.conv4 = _conv(features + 3 * growth, growth)
        self.conv5 = _conv(features + 4 * growth, features)

    def forward(self, x: Tensor) -> Tensor:
        """Refine [N, features, H, W]."""
        x1 = _activated(self.conv1(x))
        x2 = _activated(self.conv2(torch.cat((x, x1), 1)))
        x3 = _activated(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = _activated(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        x5: Tensor = self.conv5(torch.cat((x, x1, x2, x3, x4), 1))
        return x5 * 0.2 + x


class ResidualBlock(nn.Module):
    """Three dense blocks ("RRDB")."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(features, growth)
        self.rdb2 = DenseBlock(features, growth)
        self.rdb3 = DenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        """Refine [N, features, H, W]."""
        y: Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return y * 0.2 + x


class Rrdb(nn.Module):
    """RGB to RGB.

    Args:
        features: channels between blocks.
        growth: channels that each convolution of a dense block adds.
        blocks: residual blocks.
        scale: 4, 2 or 1; sizes must be multiples of 4 / scale.
    """

    def __init__(self, features: int, growth: int, blocks: int, scale: int) -> None:
        super().__init__()
        self.unshuffle = 4 // scale
        self.conv_first = _conv(3 * self.unshuffle**2, features)
        self.body = nn.Sequential(*(ResidualBlock(features, growth) for _ in range(blocks)))
        self.conv_body = _conv(features, features)
        self.conv_up1 = _conv(features, features)
        self.conv_up2 = _conv(features, features)
        self.conv_hr = _conv(features, features)
        self.conv_last = _conv(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale.

        Args:
            x: float RGB [N, 3, H, W], 0..1.
        Returns:
            float RGB [N, 3, H*scale, W*scale], about 0..1, not clamped.
        """
        if self.unshuffle > 1:
            x = F.pixel_unshuffle(x, self.unshuffle)
        x = self.conv_first(x)
        x = x + self.conv_body(self.body(x))
        x = _activated(self.conv_up1(_enlarged(x)))
        x = _activated(self.conv_up2(_enlarged(x)))
        y: Tensor = self.conv_last(_activated(self.conv_hr(x)))
        return y


def build(shape: Mapping[str, int]) -> nn.Module:
    """Make the net, with random weights; `shape` has features, growth, blocks and scale."""
    return Rrdb(shape["features"], shape["growth"], shape["blocks"], shape["scale"])


def size_multiple(shape: Mapping[str, int]) -> int:
    """Tell what width and height must be multiples of."""
    return 4 // shape["scale"]


def receptive_field(shape: Mapping[str, int]) -> int:
    """Tell how many source pixels away a source pixel can change an output pixel."""
    return (15 * shape["blocks"] + 4) * size_multiple(shape)


def shape_of(state: Mapping[str, Tensor]) -> dict[str, int] | None:
    """Tell the shape of the net that has these tensors, None if it is another net.

    Raises:
        ValueError: it is such a net, but not from RGB to RGB.
    """
    first, dense = state.get("conv_first.weight"), state.get("body.0.rdb1.conv1.weight")
    last = state.get("conv_last.weight")
    if first is None or dense is None or last is None or "conv_up2.weight" not in state:
        return None
    if first.dim() != 4 or dense.dim() != 4:
        return None
    if first.shape[1] not in _SCALES or last.shape[0] != 3:
        raise ValueError(f"takes {first.shape[1]} channels and gives {last.shape[0]}, not RGB")
    return {
        "features": first.shape[0],
        "growth": dense.shape[0],
        "blocks": sum(name.endswith(".rdb1.conv1.weight") for name in state),
        "scale": _SCALES[first.shape[1]],
    }
