"""Convolutions with all that follows them, in one kernel where Triton is, else in plain PyTorch.

Pictures are [N, H, W, C], dense unless said otherwise: what PyTorch calls channels_last, seen
through its strides. Channels are padded with zeros to what tensor cores take. The plain forms
compute the same from the same packed weights, on any device and in any floating type.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

#: Who multiplies: "library" is cuDNN (or whatever `F.conv2d` calls), "triton" our own kernel.
Engine = Literal["library", "triton"]


@dataclass(frozen=True, slots=True)
class Tile:
    """How a kernel cuts its work.

    Attributes:
        pixels: output pixels of one program; a power of two from 16.
        warps: of one program, 4 or 8.
        stages: loads in flight.
    """

    pixels: int = 128
    warps: int = 4
    stages: int = 4


def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def _runs_triton(x: Tensor) -> bool:
    """Whether kernels can take this tensor; on the CPU they can in Triton's interpreter."""
    return has_triton() and (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")


def _triton() -> Any:
    from engines.fast import triton_kernels

    return triton_kernels


def padded(channels: int) -> int:
    """Round channels up to 16, 32, 48, 64, 128 …: what a kernel can multiply and store."""
    size = 16
    while size < channels:
        size *= 2
    return size


class Conv(nn.Module):
    """A convolution with stride 1 that keeps the size, packed; what follows it is inside.

    Args:
        weight: [outputs, inputs, 3, 3], or [4, outputs, inputs, 2, 2], one kernel for each
            pixel (dy, dx) of the blocks into which a picture enlarged by 2 is cut.
        bias: [outputs].
        slope: what negative numbers are multiplied by: one number, or one for each output.
        inputs: channels of the pictures it gets, at least the weight's; the rest is zero.
        outputs: channels of the pictures it makes; a power of two from 16.
    """

    weight: Tensor
    bias: Tensor
    slope: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor, slope: float | Tensor, inputs: int, outputs: int
    ) -> None:
        super().__init__()
        kernels = weight if weight.dim() == 5 else weight[None]
        phases, made, taken, self.taps = kernels.shape[:4]
        full = kernels.new_zeros(phases, self.taps, self.taps, inputs, outputs)
        full[..., :taken, :made] = kernels.permute(0, 3, 4, 2, 1)
        slopes = slope if isinstance(slope, Tensor) else weight.new_full((made,), slope)
        self.inputs, self.outputs, self.enlarges = inputs, outputs, phases == 4
        self.register_buffer("weight", full.reshape(phases, -1, outputs))
        self.register_buffer("bias", F.pad(bias, (0, outputs - made)))
        self.register_buffer("slope", F.pad(slopes, (0, outputs - made)))
        for phase in range(phases):
            packed = self.weight[phase].reshape(self.taps, self.taps, inputs, outputs)
            kernel = packed.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
            self.register_buffer(f"kernel{phase}", kernel)

    def kernel(self, phase: int) -> Tensor:
        """Give a kernel as PyTorch has it, [outputs, inputs, taps, taps]."""
        return self.get_buffer(f"kernel{phase}")


def phases(weight: Tensor) -> Tensor:
    """Fold "repeat each pixel 2x2, then convolve 3x3" into four 2x2 convolutions.

    Of the three rows of a kernel two always meet the same source row: those add up. 4/9 of the
    multiplications remain, and the enlarged picture is never made.

    Args:
        weight: [outputs, inputs, 3, 3].
    Returns:
        [4, outputs, inputs, 2, 2]; the first axis is the output pixel (dy, dx) in its block.
        The taps of dy = 0 are the rows y-1 and y, those of dy = 1 the rows y and y+1.
    """
    pairs = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # [phase, tap, row]
    pairs = pairs.to(weight)
    folded = torch.einsum("aty,bux,oiyx->aboitu", pairs, pairs, weight)
    return folded.reshape(4, *weight.shape[:2], 2, 2)


def convolve(
    conv: Conv,
    x: Tensor,
    out: Tensor,
    *,
    growth: Tensor | None = None,
    skips: Sequence[Tensor] = (),
    skip_scale: float = 1.0,
    engine: Engine = "triton",
    tile: Tile | None = None,
) -> Tensor:
    """Convolve, add the bias, scale what is negative; then for each skip: scale and add it.

    Args:
        conv: its inputs are the channels of `x`, then the first ones of `growth`.
        x: [N, H, W, C].
        out: [N, H, W, conv.outputs], or twice as high and wide if `conv.enlarges`; is written;
            may be a slice of a larger picture's channels, and may be one of `skips`.
        growth: [N, H, W, at least conv.inputs - C]; must share the storage of `x` for "triton".
        skips: none, one or two pictures, shaped like `out`.
        skip_scale: the factor before each skip is added.
    Returns:
        `out`.
    """
    ours = engine == "triton" and _runs_triton(x)
    for phase in range(4 if conv.enlarges else 1):
        down, right = divmod(phase, 2)
        part = out[:, down::2, right::2] if conv.enlarges else out
        corner = (down - 1, right - 1) if conv.enlarges else (-1, -1)
        if ours:
            _launch(
                conv, phase, corner, x, part, growth, skips, skip_scale, tile or Tile()
            )  # fmt: skip
        else:
            total = _library(conv, phase, corner, x, growth)
            finish(total, conv.bias, conv.slope, part, skips=skips, skip_scale=skip_scale)
    return out


def _library(
    conv: Conv, phase: int, corner: tuple[int, int], x: Tensor, growth: Tensor | None
) -> Tensor:
    """Sum with `F.conv2d`, [N, H, W, outputs]; for 2x2 a view into one that is larger by 1."""
    if growth is not None and conv.inputs > x.shape[-1]:
        x = torch.cat((x, growth[..., : conv.inputs - x.shape[-1]]), -1)
    total = F.conv2d(x.permute(0, 3, 1, 2), conv.kernel(phase), padding=1).permute(0, 2, 3, 1)
    if conv.enlarges:
        top, left = corner[0] + 1, corner[1] + 1
        total = total[:, top : top + x.shape[1], left : left + x.shape[2]]
    return total


def _launch(
    conv: Conv,
    phase: int,
    corner: tuple[int, int],
    x: Tensor,
    out: Tensor,
    growth: Tensor | None,
    skips: Sequence[Tensor],
    skip_scale: float,
    tile: Tile,
) -> None:
    number, height, width, channels = x.shape
    grown = conv.inputs - channels
    _check(conv, x, out, skips)
    offset = 0
    if grown:
        assert growth is not None
        offset = _distance(x, growth)
    first = skips[0] if skips else out
    second = skips[1] if len(skips) > 1 else first
    _triton().convolve[(-(-number * height * width // tile.pixels),)](
        x, offset, conv.weight[phase], conv.bias, conv.slope, first, second, out,
        number * height, height, width, *corner, out.stride(1), out.stride(2), skip_scale,
        X_CHANNELS=channels, GROWTH_CHANNELS=grown,
        GROWTH_PITCH=growth.shape[-1] if growth is not None and grown else 1,
        TAPS=conv.taps, SKIPS=len(skips),
        PIXELS=tile.pixels, OUTPUTS=conv.outputs, INPUTS=_step(channels, grown),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _step(channels: int, grown: int) -> int:
    """How many input channels are multiplied at once: 64, 32 or 16, whatever divides both."""
    for step in (64, 32, 16):
        if channels % step == 0 and grown % step == 0:
            return step
    raise ValueError(f"{channels} and {grown} channels: expected multiples of 16")


def _distance(x: Tensor, growth: Tensor) -> int:
    """How many numbers lie between the first of `x` and the first of `growth`."""
    if x.untyped_storage().data_ptr() != growth.untyped_storage().data_ptr():
        raise ValueError("x and growth must be views into one tensor")
    return int(growth.storage_offset() - x.storage_offset())


def _check(conv: Conv, x: Tensor, out: Tensor, skips: Sequence[Tensor]) -> None:
    """Refuse what a kernel would read or write wrongly."""
    largest = max(t.untyped_storage().nbytes() // t.element_size() for t in (x, out, *skips))
    if largest >= 1 << 31:
        raise ValueError("the picture is too large for the kernels' 32-bit addresses")
    if not x.is_contiguous() or not all(skip.is_contiguous() for skip in skips):
        raise ValueError("x and skips must be dense")
    if skips and (conv.enlarges or any(skip.shape != out.shape for skip in skips)):
        raise ValueError("skips must be shaped like the output")
    if out.stride(3) != 1 or out.stride(0) != out.shape[1] * out.stride(1):
        raise ValueError("the output's pictures must follow each other without gaps")


def finish(
    total: Tensor,
    bias: Tensor,
    slope: Tensor,
    out: Tensor,
    *,
    skips: Sequence[Tensor] = (),
    skip_scale: float = 1.0,
) -> Tensor:
    """Do to the sums of a convolution what `convolve` does to its own.

    Args:
        total: [N, H, W, C], without the bias; may be a view.
        out: written; may be a slice, and may be one of `skips`.
    """
    number, height, width, channels = total.shape
    follows = total.stride(3) == 1 and (
        number == 1 or total.stride(0) == height * total.stride(1)
    )  # fmt: skip
    if _runs_triton(total) and follows and channels & (channels - 1) == 0:
        first = skips[0] if skips else out
        second = skips[1] if len(skips) > 1 else first
        pixels = max(1, 4096 // channels)
        _triton().finish[(-(-number * height * width // pixels),)](
            total, total.stride(2), bias, slope, first, second, out,
            number * height, width, total.stride(1), out.stride(1), out.stride(2), skip_scale,
            SKIPS=len(skips), PIXELS=pixels, OUTPUTS=channels,
        )  # fmt: skip
        return out
    y = total + bias
    y = torch.where(y >= 0, y, y * slope)
    for skip in skips:
        y = y * skip_scale + skip
    return out.copy_(y)


def can_grow(x: Tensor, engine: Engine) -> bool:
    """Whether `grow` can take this picture."""
    return engine == "triton" and _runs_triton(x)


def grow(
    kernel: Tensor,
    x: Tensor,
    sums: Tensor,
    start: int,
    bias: Tensor,
    slope: Tensor,
    out: Tensor,
    *,
    skips: Sequence[Tensor] = (),
    skip_scale: float = 1.0,
    tile: Tile | None = None,
) -> None:
    """Convolve a picture at once for all convolutions that read it, in Triton.

    Args:
        kernel: packed, [9 * C, outputs]; the outputs are those of the next convolution, then
            those of the ones after it.
        x: [N, H, W, C]; may be a slice of a picture's channels.
        sums: [N, H, W, width], dense; what earlier pictures gave to columns from `start` on is
            added, unless `start` is 0; what is not complete yet is kept there.
        bias: of the outputs that are complete with this picture, the first ones.
        slope: as `bias`.
        out: for the complete ones; strides and skips as in `convolve`.
    """
    number, height, width, channels = x.shape
    outputs, made = kernel.shape[1], bias.shape[0]
    most = 1 << (outputs.bit_length() - 1)
    rest = outputs - most
    if rest & (rest - 1) or 0 < rest < 16:
        raise ValueError(f"{outputs} outputs: expected the sum of at most two powers of two")
    if not sums.is_contiguous() or x.stride(3) != 1 or x.stride(1) != width * x.stride(2):
        raise ValueError("sums must be dense, and the lines of x without gaps")
    first = skips[0] if skips else out
    second = skips[1] if len(skips) > 1 else first
    tile = tile or Tile(128, 8, 3)
    _triton().grow[(-(-number * height * width // tile.pixels),)](
        x, kernel, sums, bias, slope, first, second, out,
        number * height, height, width, start, out.stride(1), out.stride(2), skip_scale,
        X_CHANNELS=channels, X_PITCH=x.stride(2), MADE=made, WIDTH=sums.shape[-1],
        SKIPS=len(skips), HAS_SUMS=start > 0, PIXELS=tile.pixels, MOST=most, REST=rest,
        INPUTS=_step(channels, 0), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def convolve_to_bgra(
    conv: Conv,
    x: Tensor,
    scale: int,
    base: Tensor | None,
    *,
    engine: Engine = "triton",
    tile: Tile | None = None,
) -> Tensor:
    """Convolve to blocks of pixels; add the source, clamp, round, put the blocks together.

    Args:
        conv: as `to_blocks` makes it; its first 4 * scale * scale outputs are a block.
        x: [N, H, W, conv.inputs].
        base: the source, uint8 BGRA [N, H, W, 4], repeated over each block; None: not added.
    Returns:
        uint8 BGRA [N, H*scale, W*scale, 4], alpha 255 (with a base: 255 too).
    """
    number, height, width, channels = x.shape
    if engine == "triton" and _runs_triton(x):
        tile = tile or Tile()
        out = torch.empty(
            (number, height * scale, width * scale, 4), dtype=torch.uint8, device=x.device
        )
        _check(conv, x, x, ())
        _triton().convolve_to_bgra[(-(-number * height * width // tile.pixels),)](
            x, conv.weight[0], conv.bias, out if base is None else base, out,
            number * height, height, width, X_CHANNELS=channels, TAPS=conv.taps,
            SCALE=scale, BASE=base is not None, PIXELS=tile.pixels, OUTPUTS=conv.outputs,
            INPUTS=_step(channels, 0), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        return out
    return bytes_of(blocks_to_picture(conv, x, scale, base))


def blocks_to_picture(conv: Conv, x: Tensor, scale: int, base: Tensor | None) -> Tensor:
    """Do the same in plain PyTorch, neither clamped nor rounded: [N, H*scale, W*scale, 4]."""
    number, height, width, _ = x.shape
    blocks = (_library(conv, 0, (-1, -1), x, None) + conv.bias)[..., : 4 * scale**2]
    blocks = blocks.reshape(number, height, width, scale, scale, 4)
    if base is not None:
        source = base.to(blocks.dtype) / 255 if base.dtype == torch.uint8 else base
        blocks = blocks + source[:, :, :, None, None]
    shape = (number, height * scale, width * scale, 4)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(shape)


def bytes_of(picture: Tensor) -> Tensor:
    """Clamp 0..1 and round to uint8, halves upwards as the kernel does."""
    return (picture.float().clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def to_blocks(weight: Tensor, bias: Tensor, scale: int, inputs: int) -> Conv:
    """Pack a last convolution whose outputs are RGB blocks (c, dy, dx) as (dy, dx, BGRA).

    A block's row is then 4 * scale bytes in a row of memory. Alpha is 1.
    """
    taken = weight.shape[1]
    kernels = weight.reshape(3, scale, scale, taken, 3, 3).flip(0).permute(1, 2, 0, 3, 4, 5)
    biases = bias.reshape(3, scale, scale).flip(0).permute(1, 2, 0)
    kernels = F.pad(kernels, (0, 0, 0, 0, 0, 0, 0, 1))
    biases = F.pad(biases, (0, 1), value=1.0)
    outputs = 4 * scale**2
    return Conv(
        kernels.reshape(outputs, taken, 3, 3), biases.reshape(outputs), 1.0, inputs,
        padded(outputs),
    )  # fmt: skip


def planes_of_bgra(bgra: Tensor, kind: torch.dtype, fold: int, channels: int) -> Tensor:
    """Read bytes as a net wants them.

    Args:
        bgra: uint8 [N, H, W, 4]; alpha is ignored.
        kind: floating type of the result.
        fold: blocks of fold x fold pixels become one; height and width must be multiples.
        channels: of the result, at least 3 * fold * fold; a power of two.
    Returns:
        RGB, 0..1, [N, H/fold, W/fold, channels], channels (c, dy, dx), then zeros.
    """
    number, height, width, _ = bgra.shape
    if _runs_triton(bgra) and bgra.is_contiguous():
        shape = (number, height // fold, width // fold, channels)
        out = torch.empty(shape, dtype=kind, device=bgra.device)
        count = number * (height // fold) * (width // fold)
        _triton().planes_of_bgra[(-(-count // 128),)](
            bgra, out, count, width // fold, width, FOLD=fold, PIXELS=128, CHANNELS=channels
        )
        return out
    rgb = bgra[..., :3].flip(-1).permute(0, 3, 1, 2).to(kind) / 255
    return folded(rgb, fold, channels)


def folded(rgb: Tensor, fold: int, channels: int) -> Tensor:
    """Fold float RGB [N, 3, H, W] as `planes_of_bgra` does."""
    planes = F.pixel_unshuffle(rgb, fold) if fold > 1 else rgb
    planes = planes.permute(0, 2, 3, 1)
    return F.pad(planes, (0, channels - planes.shape[-1])).contiguous()
