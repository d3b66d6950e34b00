"""SRVGGNetCompact: the small net of Real-ESRGAN (Wang et al. 2021), 3x3 convolutions and PReLU.

Everything happens at the source's size; the last convolution's channels become pixels, which are
added to the source enlarged by repeating its pixels. Parameter names are those of the released
files.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn


class Compact(nn.Module):
    """RGB to RGB.

    Args:
        features: channels between the convolutions.
        convs: convolutions between the first and the last.
        scale: output size / input size.
    """

    def __init__(self, features: int, convs: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = [nn.Conv2d(3, features, 3, padding=1), nn.PReLU(features)]
        for _ in range(convs):
            layers += [nn.Conv2d(features, features, 3, padding=1), nn.PReLU(features)]
        layers.append(nn.Conv2d(features, 3 * scale**2, 3, padding=1))
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale.

        Args:
            x: float RGB [N, 3, H, W], 0..1.
        Returns:
            float RGB [N, 3, H*scale, W*scale], about 0..1, not clamped.
        """
        residual = F.pixel_shuffle(self.body(x), self.scale)
        return residual + F.interpolate(x, scale_factor=float(self.scale), mode="nearest")


def build(shape: Mapping[str, int]) -> nn.Module:
    """Make the net, with random weights; `shape` has features, convs and scale."""
    return Compact(shape["features"], shape["convs"], shape["scale"])


def receptive_field(shape: Mapping[str, int]) -> int:
    """Tell how many source pixels away a source pixel can change an output pixel."""
    return shape["convs"] + 2


def shape_of(state: Mapping[str, Tensor]) -> dict[str, int] | None:
    """Tell the shape of the net that has these tensors, None if it is another net.

    Raises:
        ValueError: it is such a net, but not from RGB to RGB.
    """
    first, slopes = state.get("body.0.weight"), state.get("body.1.weight")
    if first is None or slopes is None or first.dim() != 4 or slopes.dim() != 1:
        return None
    convs = (len(state) - 5) // 3
    last = state.get(f"body.{2 * convs + 2}.weight")
    if convs < 0 or last is None:
        return None
    if first.shape[1] != 3:
        raise ValueError(f"takes {first.shape[1]} channels, not RGB")
    scale = isqrt(last.shape[0] // 3)
    if scale < 1 or last.shape[0] != 3 * scale**2:
        raise ValueError(f"its last layer has {last.shape[0]} channels, which are no RGB blocks")
    return {"features": first.shape[0], "convs": convs, "scale": scale}


def rescaled(state: Mapping[str, Tensor], scale: int) -> dict[str, Tensor]:
    """Give the weights of the net whose picture is that of another, resized by area.

    Exact for any two scales: each source pixel's block is averaged within itself, which the last
    convolution can do, as it is linear.

    Args:
        state: of a `Compact`.
        scale: output size / input size of the new net.
    Raises:
        ValueError: `state` is that of another architecture.
    """
    shape = shape_of(state)
    if shape is None:
        raise ValueError("only a Compact net can be taken to another scale")
    last = f"body.{2 * shape['convs'] + 2}"
    mix = _overlaps(scale, shape["scale"]).to(state[f"{last}.weight"])
    resized = dict(state)
    for name in (f"{last}.weight", f"{last}.bias"):
        old = state[name]
        blocks = old.reshape(3, shape["scale"], shape["scale"], *old.shape[1:])
        new = torch.einsum("ai,bj,cij...->cab...", mix, mix, blocks)
        resized[name] = new.reshape(3 * scale**2, *old.shape[1:]).contiguous()
    return resized


def _overlaps(new: int, old: int) -> Tensor:
    """The share [new, old] that each old part of a line has in each new part."""
    start = torch.arange(new).reshape(-1, 1) * old
    part = torch.arange(old).reshape(1, -1) * new
    common = torch.minimum(start + old, part + new) - torch.maximum(start, part)
    return common.clamp(min=0) / old
