"""The VQ autoencoder between pictures and ResShift's latents, a quarter of their size.

"High-Resolution Image Synthesis with Latent Diffusion Models" (Rombach et al. 2022), the model
"VQ-f4"; "Taming Transformers for High-Resolution Image Synthesis" (Esser et al. 2021).
Parameter names are those of the released file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from engines.diffusion.layers import GROUPS, Upsample

#: Most scores of attention, and most distances to codes, that are held at once.
_AT_ONCE = 1 << 26


@dataclass(frozen=True, slots=True)
class AutoencoderShape:
    """The sizes of an autoencoder; the defaults are the released ones.

    Attributes:
        channels: of the first level; a multiple of 32.
        multipliers: channels of each level over those of the first; each level has half the
            width and height of the one before.
        blocks: residual blocks of a level of the encoder; the decoder has one more.
        codes: entries of the code book.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 2
    codes: int = 8192

    @property
    def factor(self) -> int:
        """Width of a picture over that of its latent."""
        return 1 << (len(self.multipliers) - 1)


class ResnetBlock(nn.Module):
    """Two convolutions beside a skip."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = _norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Take [N, inputs, H, W]; give [N, outputs, H, W]."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        skip = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        z: Tensor = skip + y
        return z


class AttnBlock(nn.Module):
    """Attention of every pixel to every other, one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Take and give [N, channels, H, W]; scores are held for some rows at a time."""
        y = self.norm(x)
        q, k, v = (part(y).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        rows = max(1, _AT_ONCE // (len(x) * k.shape[1]))
        parts = [F.scaled_dot_product_attention(some, k, v) for some in torch.split(q, rows, 1)]
        y = torch.cat(parts, 1).transpose(1, 2).reshape(x.shape)
        z: Tensor = x + self.proj_out(y)
        return z


class Middle(nn.Module):
    """Attention between two residual blocks, at the smallest size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Take and give [N, channels, H, W]."""
        y: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return y


class Downsample(nn.Module):
    """Half the width and height; the border it adds is at the right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Take [N, channels, H, W]; give [N, channels, H/2, W/2]."""
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return y


class Level(nn.Module):
    """Residual blocks, then a change of size under the name `resize` unless it is ""."""

    def __init__(self, inputs: int, outputs: int, blocks: int, resize: str) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(outputs if number else inputs, outputs) for number in range(blocks)
        )
        self.resize = resize
        if resize:
            self.add_module(resize, (Downsample if resize == "downsample" else Upsample)(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Take [N, inputs, H, W]; give [N, outputs, H', W']."""
        for block in self.block:
            x = block(x)
        y: Tensor = self.get_submodule(self.resize)(x) if self.resize else x
        return y


class Encoder(nn.Module):
    """Picture to latent, before the code book."""

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__()
        widths = [shape.channels * multiplier for multiplier in (1, *shape.multipliers)]
        last = len(shape.multipliers) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                widths[level], widths[level + 1], shape.blocks, "downsample" if level < last else ""
            )
            for level in range(last + 1)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Take [N, 3, H*factor, W*factor]; give [N, 3, H, W]."""
        y = self.conv_in(x)
        for level in self.down:
            y = level(y)
        z: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(y))))
        return z


class Decoder(nn.Module):
    """Latent to picture, after the code book."""

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__()
        widths = [shape.channels * multiplier for multiplier in shape.multipliers]
        above = [*widths[1:], widths[-1]]  # channels that each level is given
        self.conv_in = nn.Conv2d(3, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(above[level], widths[level], shape.blocks + 1, "upsample" if level else "")
            for level in range(len(widths))
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Take [N, 3, H, W]; give [N, 3, H*factor, W*factor]."""
        y = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            y = level(y)
        z: Tensor = self.conv_out(F.silu(self.norm_out(y)))
        return z


class CodeBook(nn.Module):
    """Latent vectors that a decoder knows."""

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, 3)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def forward(self, x: Tensor) -> Tensor:
        """Replace each vector of [N, 3, H, W] by the nearest code."""
        codes = self.embedding.weight
        vectors = x.permute(0, 2, 3, 1).reshape(-1, codes.shape[1])
        parts = [
            # |x - c|^2 without |x|^2, which is the same for all codes c
            (codes.square().sum(1) - 2 * some @ codes.T).argmin(1)
            for some in torch.split(vectors, max(1, _AT_ONCE // len(codes)))
        ]
        nearest = self.embedding(torch.cat(parts))
        y: Tensor = nearest.reshape(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
        return y


class VqAutoencoder(nn.Module):
    """Pictures to latents and back.

    Args:
        shape: its sizes.
    """

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(shape)
        self.decoder = Decoder(shape)
        self.quantize = CodeBook(shape.codes)
        self.quant_conv = nn.Conv2d(3, 3, 1)
        self.post_quant_conv = nn.Conv2d(3, 3, 1)

    def encode(self, picture: Tensor) -> Tensor:
        """Give the latent, not yet replaced by codes: what ResShift works on.

        Args:
            picture: float RGB [N, 3, H, W], -1..1; H and W multiples of `shape.factor`.
        Returns:
            float [N, 3, H/factor, W/factor], of a variance of about 1.
        """
        y: Tensor = self.quant_conv(self.encoder(picture))
        return y

    def decode(self, latent: Tensor) -> Tensor:
        """Replace a latent's vectors by their nearest codes and give the picture.

        Args:
            latent: float [N, 3, H, W].
        Returns:
            float RGB [N, 3, H*factor, W*factor], about -1..1, not clamped.
        """
        y: Tensor = self.decoder(self.post_quant_conv(self.quantize(latent)))
        return y


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)
