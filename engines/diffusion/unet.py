"""ResShift's denoiser: a U-Net with Swin attention at every level, told the step and the source.

"ResShift: Efficient Diffusion Model for Image Super-resolution by Residual Shifting" (Yue et al.
2023, arXiv 2307.12348); residual blocks as in "Diffusion Models Beat GANs on Image
Synthesis" (Dhariwal & Nichol 2021), windows as in "Swin Transformer" (Liu et al. 2021).
Parameter and buffer names are those of the released files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from engines.diffusion.layers import GROUPS, Upsample

#: What is added to the score of a pair that must not see each other.
_APART = -100.0


@dataclass(frozen=True, slots=True)
class UnetShape:
    """The sizes of a net; the defaults are the released ones for real pictures at x4.

    Attributes:
        channels: of the first level; a multiple of 32.
        multipliers: channels of each level over those of the first; each level has half the
            width and height of the one before.
        blocks: residual blocks of a level on the way down; the way up has one more.
        trained_size: width and height of the latents in training, for which files hold masks.
        swin_channels: inside the attention layers; a multiple of 32 and of `head_channels`.
        swin_blocks: of an attention layer; every other one has its windows shifted by a half.
        head_channels: of one attention head.
        window: width and height of the windows.
        mlp_ratio: channels inside a Swin block's perceptron over those outside.
    """

    channels: int = 160
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    blocks: int = 2
    trained_size: int = 64
    swin_channels: int = 192
    swin_blocks: int = 2
    head_channels: int = 32
    window: int = 8
    mlp_ratio: int = 4

    @property
    def multiple(self) -> int:
        """What width and height of latents must be multiples of."""
        return self.window << (len(self.multipliers) - 1)


class ResBlock(nn.Module):
    """Two convolutions beside a skip; the step scales and shifts what is between them."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        first = nn.Conv2d(inputs, outputs, 3, padding=1)
        last = nn.Conv2d(outputs, outputs, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.in_layers = nn.Sequential(_norm(inputs), nn.SiLU(), first)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outputs))
        self.out_layers = nn.Sequential(_norm(outputs), nn.SiLU(), nn.Identity(), last)
        same = inputs == outputs
        self.skip_connection = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Take [N, inputs, H, W] and [N, embedding]; give [N, outputs, H, W]."""
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, 1)
        norm, *rest = self.out_layers
        y = norm(self.in_layers(x)) * (1 + scale) + shift
        for layer in rest:
            y = layer(y)
        z: Tensor = self.skip_connection(x) + y
        return z


class Downsample(nn.Module):
    """Half the width and height, by a convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Take [N, channels, H, W]; give [N, channels, H/2, W/2]."""
        y: Tensor = self.op(x)
        return y


class WindowAttention(nn.Module):
    """Attention among the pixels of a window, with a learnt bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        table = torch.zeros((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.register_buffer("relative_position_index", relative_positions(window))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend.

        Args:
            x: [N*windows, pixels, channels], those of one picture together.
            mask: [windows, pixels, pixels], added to the scores; None: nothing.
        Returns:
            As `x`.
        """
        count, pixels, channels = x.shape
        q, k, v = self.qkv(x).reshape(count, pixels, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.reshape(pixels, pixels, self.heads).permute(2, 0, 1)[None]
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(count // len(mask), 1, 1, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        z: Tensor = self.proj(y.transpose(1, 2).reshape(count, pixels, channels))
        return z


class Mlp(nn.Module):
    """Two layers on each pixel alone."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Take and give [N, channels, H, W]."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class SwinBlock(nn.Module):
    """Attention in windows that lie `shift` pixels to the lower right, then a perceptron."""

    attn_mask: Tensor | None

    def __init__(self, shape: UnetShape, shift: int, size: int) -> None:
        super().__init__()
        channels = shape.swin_channels
        self.window = shape.window
        self.shift = shift
        mask = shift_mask(size, size, shape.window, shift) if shift else None
        self.register_buffer("attn_mask", mask)
        self.norm1 = _norm(channels)
        self.attn = WindowAttention(channels, channels // shape.head_channels, shape.window)
        self.norm2 = _norm(channels)
        self.mlp = Mlp(channels, channels * shape.mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """Take and give [N, channels, H, W], H and W multiples of the window."""
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (2, 3))
        y = self.attn(windows_of(y, self.window), self._mask(x))
        y = picture_of(y, self.window, (x.shape[2], x.shape[3]))
        x = x + torch.roll(y, (self.shift, self.shift), (2, 3))
        z: Tensor = x + self.mlp(self.norm2(x))
        return z

    def _mask(self, x: Tensor) -> Tensor | None:
        if self.attn_mask is None:
            return None
        height, width = x.shape[2:]
        windows = (height // self.window) * (width // self.window)
        if height == width and windows == len(self.attn_mask):
            return self.attn_mask
        return shift_mask(height, width, self.window, self.shift).to(x.device)


class Projection(nn.Module):
    """A 1x1 convolution, under the name that it has in released files."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Take [N, inputs, H, W]; give [N, outputs, H, W]."""
        y: Tensor = self.proj(x)
        return y


class SwinLayer(nn.Module):
    """Swin blocks between two projections; there is no skip around them."""

    def __init__(self, shape: UnetShape, channels: int, size: int) -> None:
        super().__init__()
        self.patch_embed = Projection(channels, shape.swin_channels)
        self.patch_unembed = Projection(shape.swin_channels, channels)
        half = shape.window // 2 if size > shape.window else 0  # one window has no neighbours
        self.blocks = nn.ModuleList(
            SwinBlock(shape, half * (number % 2), size) for number in range(shape.swin_blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Take and give [N, channels, H, W]."""
        y = self.patch_embed(x)
        for block in self.blocks:
            y = block(y)
        z: Tensor = self.patch_unembed(y)
        return z


class Stage(nn.Sequential):
    """Layers in a row, of which the residual blocks are told the step."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        """Take [N, inputs, H, W] and [N, embedding]."""
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class SwinUnet(nn.Module):
    """The net: noisy latent, step and source in, clean latent out.

    Args:
        shape: its sizes.
    """

    def __init__(self, shape: UnetShape) -> None:
        super().__init__()
        self.shape = shape
        first, embedding = shape.channels, 4 * shape.channels
        self.time_embed = nn.Sequential(
            nn.Linear(first, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        widths: list[int] = []
        self.input_blocks = nn.ModuleList(self._down(embedding, widths))
        last = widths[-1]
        size = shape.trained_size >> (len(shape.multipliers) - 1)
        self.middle_block = Stage(
            ResBlock(last, last, embedding),
            SwinLayer(shape, last, size),
            ResBlock(last, last, embedding),
        )
        self.output_blocks = nn.ModuleList(self._up(embedding, widths))
        self.out = nn.Sequential(_norm(first), nn.SiLU(), nn.Conv2d(first, 3, 3, padding=1))

    def _down(self, embedding: int, widths: list[int]) -> Iterator[Stage]:
        """Make the way down; note the channels after each stage in `widths`."""
        shape = self.shape
        widths.append(shape.channels)
        yield Stage(nn.Conv2d(6, shape.channels, 3, padding=1))
        for level, multiplier in enumerate(shape.multipliers):
            channels = multiplier * shape.channels
            for number in range(shape.blocks):
                layers: list[nn.Module] = [ResBlock(widths[-1], channels, embedding)]
                if number == 0:
                    layers.append(SwinLayer(shape, channels, shape.trained_size >> level))
                widths.append(channels)
                yield Stage(*layers)
            if level < len(shape.multipliers) - 1:
                widths.append(channels)
                yield Stage(Downsample(channels))

    def _up(self, embedding: int, widths: list[int]) -> Iterator[Stage]:
        """Make the way up; each stage also takes what one on the way down gave."""
        shape = self.shape
        below = widths[-1]
        for level, multiplier in reversed(list(enumerate(shape.multipliers))):
            channels = multiplier * shape.channels
            for number in range(shape.blocks + 1):
                layers: list[nn.Module] = [ResBlock(below + widths.pop(), channels, embedding)]
                if number == 0:
                    layers.append(SwinLayer(shape, channels, shape.trained_size >> level))
                if level and number == shape.blocks:
                    layers.append(Upsample(channels))
                below = channels
                yield Stage(*layers)

    def forward(self, x: Tensor, steps: Tensor, source: Tensor) -> Tensor:
        """Estimate the clean latent.

        Args:
            x: float [N, 3, H, W]: the noisy latent, scaled to a variance of about 1; H and W
                multiples of `shape.multiple`.
            steps: integers [N]: from 0, the step with the least noise.
            source: float RGB [N, 3, H, W], -1..1: the small picture.
        Returns:
            float [N, 3, H, W].
        Raises:
            ValueError: H or W is no such multiple.
        """
        multiple = self.shape.multiple
        if x.shape[2] % multiple or x.shape[3] % multiple:
            raise ValueError(
                f"a latent of {x.shape[3]}x{x.shape[2]} is no multiple of {multiple} in both"
            )
        embedding = self.time_embed(step_embedding(steps, self.shape.channels))
        y = torch.cat((x, source), 1)
        kept = []
        for stage in self.input_blocks:
            y = stage(y, embedding)
            kept.append(y)
        y = self.middle_block(y, embedding)
        for stage in self.output_blocks:
            y = stage(torch.cat((y, kept.pop()), 1), embedding)
        z: Tensor = self.out(y)
        return z


def step_embedding(steps: Tensor, channels: int) -> Tensor:
    """Give cosines and sines of the step in falling frequencies, 1 to nearly 1/10000.

    "Attention Is All You Need" (Vaswani et al. 2017), section 3.5; cosines first.

    Args:
        steps: [N].
        channels: even.
    Returns:
        float32 [N, channels].
    """
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=steps.device) / half
    angles = steps[:, None].float() * torch.exp(-math.log(10_000) * exponents)
    return torch.cat((angles.cos(), angles.sin()), 1)


def windows_of(x: Tensor, window: int) -> Tensor:
    """Cut [N, C, H, W] into [N*windows, window*window, C], row by row."""
    count, channels, height, width = x.shape
    x = x.reshape(count, channels, height // window, window, width // window, window)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(-1, window * window, channels)


def picture_of(x: Tensor, window: int, size: tuple[int, int]) -> Tensor:
    """Put windows [N*windows, window*window, C] together to [N, C, H, W], `size` = (H, W)."""
    rows, columns = size[0] // window, size[1] // window
    x = x.reshape(-1, rows, columns, window, window, x.shape[-1])
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), x.shape[-1], *size)


def relative_positions(window: int) -> Tensor:
    """Number the relative position of each pair of a window's pixels.

    Returns:
        int64 [pixels, pixels] on the CPU, 0 to (2*window - 1)^2 - 1.
    """
    line = torch.arange(window, device="cpu")
    rows, columns = line.repeat_interleave(window), line.repeat(window)
    down = rows[:, None] - rows[None] + window - 1
    right = columns[:, None] - columns[None] + window - 1
    return down * (2 * window - 1) + right


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """Keep pixels of shifted windows apart as the released nets were trained to.

    In the lowest row of windows the columns left and right of the shift do not see each other;
    everywhere else all do. Swin's own mask parts what the shift brought together from opposite
    sides of the picture; the published code computes another one, and its nets learnt with that.

    Returns:
        float32 [windows, pixels, pixels] on the CPU: 0, and -100 for pairs that are kept apart.
    """
    right = (torch.arange(window, device="cpu") >= window - shift).repeat(window)
    pixels = window * window
    mask = torch.zeros(height // window, width // window, pixels, pixels, device="cpu")
    mask[-1] = (right[:, None] != right[None]).float() * _APART
    return mask.flatten(0, 1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)
