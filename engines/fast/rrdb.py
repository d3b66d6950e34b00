"""RRDBNet, made quick: no concatenations, no enlarged pictures, one kernel for each convolution.

A dense block's convolutions read the block's input and, beside it, the `growth` picture, into
whose channels each writes its own output: nothing is copied. What follows a convolution (bias,
activation, the scaled additions of one or two skips) happens where its sums are made.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engines.archs.rrdb import DenseBlock, ResidualBlock, Rrdb
from engines.fast import kernels
from engines.fast.kernels import Conv, Engine, Tile

_SLOPE = 0.2
_SKIP_SCALE = 0.2


class FastRrdb(nn.Module):
    """The same net: uint8 BGRA to uint8 BGRA.

    Args:
        net: its weights are copied.
        engine: who multiplies; see `engines.fast.kernels.Engine`.
        split: each picture of a dense block is convolved once for all later convolutions, whose
            sums are then added up, instead of being read again by each.
        fold: whether "repeat the pixels, convolve" becomes four 2x2 convolutions.
        tile: for "triton".
    """

    def __init__(
        self,
        net: Rrdb,
        engine: Engine = "triton",
        *,
        split: bool = False,
        fold: bool = True,
        tile: Tile | None = None,
    ) -> None:
        super().__init__()
        self.unshuffle, self.engine, self.tile = net.unshuffle, engine, tile
        first = net.conv_first
        features = first.weight.shape[0]
        if kernels.padded(features) != features:
            raise ValueError(f"{features} features: expected 16, 32, 64 or 128")
        self.taken = kernels.padded(first.weight.shape[1])
        self.first = _packed(first, 1.0, self.taken)
        self.body = nn.ModuleList(
            nn.ModuleList(_dense(part, split) for part in (block.rdb1, block.rdb2, block.rdb3))
            for block in net.body
            if isinstance(block, ResidualBlock)
        )
        self.conv_body = _packed(net.conv_body, 1.0, features)
        self.ups = nn.ModuleList(_up(conv, fold) for conv in (net.conv_up1, net.conv_up2))
        self.conv_hr = _packed(net.conv_hr, _SLOPE, features)
        last = net.conv_last
        assert last.bias is not None
        self.last = kernels.to_blocks(last.weight, last.bias, 1, features)

    def forward(self, bgra: Tensor) -> Tensor:
        """Upscale uint8 BGRA [N, H, W, 4] to [N, H*scale, W*scale, 4], alpha 255."""
        x = kernels.planes_of_bgra(bgra, self.last.weight.dtype, self.unshuffle, self.taken)
        return kernels.convolve_to_bgra(
            self.last, self._features(x), 1, None, engine=self.engine, tile=self.tile
        )

    def planes(self, rgb: Tensor) -> Tensor:
        """Do what the net itself does: float RGB [N, 3, H, W] to [N, 3, H*scale, W*scale]."""
        x = kernels.folded(rgb, self.unshuffle, self.taken)
        picture = kernels.blocks_to_picture(self.last, self._features(x), 1, None)
        return picture[..., :3].flip(-1).permute(0, 3, 1, 2)

    def _convolve(self, conv: nn.Module, x: Tensor, out: Tensor, *skips: Tensor) -> Tensor:
        assert isinstance(conv, Conv)
        return kernels.convolve(conv, x, out, skips=skips, engine=self.engine, tile=self.tile)

    def _features(self, x: Tensor) -> Tensor:
        """Run all convolutions but the last, at the size of the result."""
        space = _Space(x, self.first.outputs, self._grown())
        first = self._convolve(self.first, x, space.first)
        y = first
        for block in self.body:
            assert isinstance(block, nn.ModuleList)
            y = self._residual(block, y, space)
        y = self._convolve(self.conv_body, y, space.other(y), first)
        for up in self.ups:
            assert isinstance(up, Conv)
            if not up.enlarges:
                y = y.repeat_interleave(2, 1).repeat_interleave(2, 2)
            factor = 2 if up.enlarges else 1
            height, width = y.shape[1] * factor, y.shape[2] * factor
            y = self._convolve(up, y, y.new_empty((y.shape[0], height, width, up.outputs)))
        return self._convolve(self.conv_hr, y, torch.empty_like(y))

    def _grown(self) -> int:
        """How many channels the dense blocks add in all."""
        for block in self.body:
            assert isinstance(block, nn.ModuleList)
            dense = block[0]
            assert isinstance(dense, (DenseConvs, SplitConvs))
            return dense.grown
        return 0

    def _residual(self, block: nn.ModuleList, x: Tensor, space: _Space) -> Tensor:
        """Run three dense blocks; the last one also adds the residual block's own skip."""
        one, two = space.spare(x)
        y = x
        for dense, out, skips in zip(block, (one, two, one), ((), (), (x,)), strict=True):
            assert isinstance(dense, (DenseConvs, SplitConvs))
            y = dense(y, out, space.growth, skips, self.engine, self.tile)
        return y


class _Space:
    """The pictures of the trunk: made once, used by all blocks.

    Attributes:
        first: of the first convolution, needed until the end of the trunk.
        growth: the channels that the dense blocks add.
    """

    def __init__(self, x: Tensor, features: int, grown: int) -> None:
        shape = x.shape[:3]
        pixels = shape.numel()
        whole = x.new_empty(pixels * (4 * features + grown))
        self.first, *self._turns = (
            whole[i * pixels * features : (i + 1) * pixels * features].view(*shape, features)
            for i in range(4)
        )
        self.growth = whole[4 * pixels * features :].view(*shape, grown)

    def spare(self, used: Tensor) -> tuple[Tensor, Tensor]:
        """Give two pictures other than `used` and the first."""
        one, two = [turn for turn in self._turns if turn is not used][:2]
        return one, two

    def other(self, used: Tensor) -> Tensor:
        """Give a picture other than `used` and the first."""
        return self.spare(used)[0]


class DenseConvs(nn.Module):
    """A dense block whose convolutions read what is there and write beside it."""

    def __init__(self, block: DenseBlock) -> None:
        super().__init__()
        convs = [block.conv1, block.conv2, block.conv3, block.conv4, block.conv5]
        slopes = (_SLOPE, _SLOPE, _SLOPE, _SLOPE, 1.0)
        self.convs = nn.ModuleList(
            _packed(conv, slope, conv.weight.shape[1])
            for conv, slope in zip(convs, slopes, strict=True)
        )
        self.growth = block.conv1.weight.shape[0]
        self.grown = 4 * self.growth

    def forward(
        self,
        x: Tensor,
        out: Tensor,
        growth: Tensor,
        skips: tuple[Tensor, ...],
        engine: Engine,
        tile: Tile | None,
    ) -> Tensor:
        """Refine `x` into `out`, [N, H, W, features]; `skips` are added after the block's own."""
        for index, conv in enumerate(self.convs):
            assert isinstance(conv, Conv)
            last = index == len(self.convs) - 1
            start = index * self.growth
            target = out if last else growth[..., start : start + self.growth]
            kernels.convolve(
                conv, x, target, growth=growth, skips=(x, *skips) if last else (),
                skip_scale=_SKIP_SCALE, engine=engine, tile=tile,
            )  # fmt: skip
        return out


class SplitConvs(nn.Module):
    """A dense block by its inputs: each is convolved once, for all convolutions that read it.

    conv(cat(a, b)) = conv_a(a) + conv_b(b). Instead of 32 outputs at a time 64 to 192 are
    computed from each patch that was loaded; the sums of up to five pictures are added up.
    """

    def __init__(self, block: DenseBlock) -> None:
        super().__init__()
        convs = [block.conv1, block.conv2, block.conv3, block.conv4, block.conv5]
        self.features, self.growth = block.conv5.weight.shape[0], block.conv1.weight.shape[0]
        self.grown = 4 * self.growth
        start = 0
        for index, conv in enumerate(convs):
            end = self.features + index * self.growth
            kernel = torch.cat([later.weight[:, start:end] for later in convs[index:]])
            packed = kernel.permute(2, 3, 1, 0).reshape(-1, kernel.shape[0])
            layout = kernel.contiguous(memory_format=torch.channels_last)
            self.register_buffer(f"kernel{index}", layout)
            self.register_buffer(f"weight{index}", packed.contiguous())
            bias = conv.bias
            assert bias is not None
            self.register_buffer(f"bias{index}", bias.detach().clone())
            slope = torch.full_like(bias, _SLOPE if index < 4 else 1.0)
            self.register_buffer(f"slope{index}", slope)
            start = end

    def forward(
        self,
        x: Tensor,
        out: Tensor,
        growth: Tensor,
        skips: tuple[Tensor, ...],
        engine: Engine,
        tile: Tile | None,
    ) -> Tensor:
        """Refine `x` into `out`, [N, H, W, features]; `skips` are added after the block's own."""
        run = self._ours if kernels.can_grow(x, engine) else self._library
        return run(x, out, growth, (x, *skips), tile)

    def _library(
        self, x: Tensor, out: Tensor, growth: Tensor, skips: tuple[Tensor, ...], tile: Tile | None
    ) -> Tensor:
        y, total = x, x
        for index in range(5):
            kernel = self.get_buffer(f"kernel{index}")
            sums = nn.functional.conv2d(y.permute(0, 3, 1, 2), kernel, padding=1)
            sums = sums.permute(0, 2, 3, 1)
            total = total[..., self.growth :] + sums if index else sums
            made = self.growth if index < 4 else self.features
            y = kernels.finish(
                total[..., :made], self.get_buffer(f"bias{index}"),
                self.get_buffer(f"slope{index}"),
                out if index == 4 else out.new_empty((*out.shape[:3], made)),
                skips=skips if index == 4 else (), skip_scale=_SKIP_SCALE,
            )  # fmt: skip
        return out

    def _ours(
        self, x: Tensor, out: Tensor, growth: Tensor, skips: tuple[Tensor, ...], tile: Tile | None
    ) -> Tensor:
        sums = x.new_empty((*x.shape[:3], self.grown + self.features))
        y = x
        for index in range(5):
            start = index * self.growth
            target = growth[..., start : start + self.growth] if index < 4 else out
            kernels.grow(
                self.get_buffer(f"weight{index}"), y, sums, start,
                self.get_buffer(f"bias{index}"), self.get_buffer(f"slope{index}"), target,
                skips=skips if index == 4 else (), skip_scale=_SKIP_SCALE, tile=tile,
            )  # fmt: skip
            y = target
        return out


def _dense(block: nn.Module, split: bool) -> nn.Module:
    assert isinstance(block, DenseBlock)
    return SplitConvs(block) if split else DenseConvs(block)


def _packed(conv: nn.Conv2d, slope: float, inputs: int) -> Conv:
    assert conv.bias is not None
    return Conv(conv.weight, conv.bias, slope, inputs, kernels.padded(conv.weight.shape[0]))


def _up(conv: nn.Conv2d, fold: bool) -> Conv:
    assert conv.bias is not None
    features = conv.weight.shape[0]
    weight = kernels.phases(conv.weight) if fold else conv.weight
    return Conv(weight, conv.bias, _SLOPE, features, features)
