"""Compact, made quick: as many kernels as convolutions, and the last one stores the picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engines.archs.compact import Compact
from engines.fast import kernels
from engines.fast.kernels import Conv, Engine, Tile


class FastCompact(nn.Module):
    """The same net: uint8 BGRA to uint8 BGRA.

    Args:
        net: its weights are copied.
        engine: who multiplies; see `engines.fast.kernels.Engine`.
        tile: for "triton".
    """

    def __init__(self, net: Compact, engine: Engine = "triton", tile: Tile | None = None) -> None:
        super().__init__()
        self.scale, self.engine, self.tile = net.scale, engine, tile
        *convs, last = (layer for layer in net.body if isinstance(layer, nn.Conv2d))
        slopes = [layer.weight for layer in net.body if isinstance(layer, nn.PReLU)]
        features = kernels.padded(last.in_channels)
        self.convs = nn.ModuleList()
        for conv, slope in zip(convs, slopes, strict=True):
            inputs = features if len(self.convs) else kernels.padded(3)
            self.convs.append(_packed(conv, slope, inputs, features))
        assert last.bias is not None
        self.last = kernels.to_blocks(last.weight, last.bias, self.scale, features)

    def forward(self, bgra: Tensor) -> Tensor:
        """Upscale uint8 BGRA [N, H, W, 4] to [N, H*scale, W*scale, 4], alpha 255."""
        x = kernels.planes_of_bgra(bgra, self.last.weight.dtype, 1, kernels.padded(3))
        return kernels.convolve_to_bgra(
            self.last, self._features(x), self.scale, bgra, engine=self.engine, tile=self.tile
        )

    def planes(self, rgb: Tensor) -> Tensor:
        """Do what the net itself does: float RGB [N, 3, H, W] to [N, 3, H*scale, W*scale]."""
        x = kernels.folded(rgb, 1, kernels.padded(3))
        base = torch.nn.functional.pad(rgb.flip(1).permute(0, 2, 3, 1), (0, 1))
        picture = kernels.blocks_to_picture(self.last, self._features(x), self.scale, base)
        return picture[..., :3].flip(-1).permute(0, 3, 1, 2)

    def _features(self, x: Tensor) -> Tensor:
        """Run all convolutions but the last; two pictures take turns."""
        shape = (*x.shape[:3], self.last.inputs)
        pictures = [x.new_empty(shape), x.new_empty(shape)]
        for index, conv in enumerate(self.convs):
            assert isinstance(conv, Conv)
            out = pictures[index % 2]
            x = kernels.convolve(conv, x, out, engine=self.engine, tile=self.tile)
        return x


def _packed(conv: nn.Conv2d, slope: Tensor, inputs: int, outputs: int) -> Conv:
    assert conv.bias is not None
    return Conv(conv.weight, conv.bias, slope, inputs, outputs)
