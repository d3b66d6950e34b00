"""EMT: "Efficient Mixed Transformer for Single Image Super-Resolution" (Zheng et al. 2023).

Each block's first layers attend within striped windows, half of the channels in high ones and
half in wide ones, in every second layer shifted by half a window; the others mix pixels with
their four neighbours. Each is followed by two 1x1 convolutions whose inputs are shifted by one
pixel, a fifth of the channels in each direction.

This is the net as it is run: normalisations are multiplied into the convolutions before them by
`fused`. The other parameters have the names of the released files.

Pictures of any size: features are mirrored to whole windows inside the net, which the exporter
can follow with a height and width that are not known yet. Shifted windows and mixed pixels wrap
around, so opposite edges see each other a little, as in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

#: Mean colour (R, G, B) of the pictures it is trained with, 0..1.
MEAN = (0.4690, 0.4490, 0.4036)
#: (height, width) of the windows of each half of the channels; released files do not tell.
WINDOWS = ((32, 8), (8, 32))
#: Attention heads in each half; released files do not tell.
HEADS = 3
#: So many windows attend at once: their weights take 1024 * 256 * 256 numbers, 0.27 GB in FP32.
_AT_ONCE = 1024
#: A pixel and its neighbours in a 3x3 kernel: right, left, below, above, itself.
_PLACES = ((1, 2), (1, 0), (2, 1), (0, 1), (1, 1))


class MeanColour(nn.Module):
    """Takes the mean colour off or adds it: a fixed 1x1 convolution of 0..255."""

    weight: Tensor
    bias: Tensor

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(3).reshape(3, 3, 1, 1))
        self.register_buffer("bias", sign * 255 * torch.tensor(MEAN))

    def forward(self, x: Tensor) -> Tensor:
        """Shift [N, 3, H, W]."""
        return F.conv2d(x, self.weight, self.bias)


class ShiftedConv(nn.Conv2d):
    """A 1x1 convolution of features shifted by one pixel, zeros at the edges.

    The first fifth of the channels takes the pixel to the right, the next ones that to the left,
    below and above; the last stays.
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)
        mask = torch.zeros(inputs, 1, 3, 3)
        for place, (y, x) in enumerate(_PLACES):
            mask[place * (inputs // 5) : (place + 1) * (inputs // 5), 0, y, x] = 1
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [N, inputs, H, W] to [N, outputs, H, W]."""
        shifted = F.conv2d(x, self.mask, padding=1, groups=self.in_channels)
        return super().forward(shifted)


class Mlp(nn.Module):
    """Two shifted convolutions, `ratio` times as many channels between them."""

    def __init__(self, features: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = ShiftedConv(features, ratio * features)
        self.fc2 = ShiftedConv(ratio * features, features)

    def forward(self, x: Tensor) -> Tensor:
        """Refine [N, features, H, W]."""
        y: Tensor = self.fc2(F.silu(self.fc1(x)))
        return y


class PixelMixer(nn.Module):
    """What the next pixel differs by, around the edge, in turn in each direction; normalised.

    Args:
        features: channels; every fifth has no direction, and a constant takes its place.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.token_mixer = nn.Conv2d(features, features, 3, groups=features)

    def forward(self, x: Tensor) -> Tensor:
        """Refine [N, features, H, W]."""
        x = torch.cat((x[:, :, -1:], x, x[:, :, :1]), 2)
        x = torch.cat((x[..., -1:], x, x[..., :1]), 3)
        y: Tensor = self.token_mixer(x)
        return y


class StripedAttention(nn.Module):
    """Attention within windows; queries are keys, and products are not scaled.

    Args:
        features: channels, a multiple of twice the heads.
        heads: in each half of the channels.
        shifted: whether windows begin half a window later, around the edge.
    """

    def __init__(self, features: int, heads: int, shifted: bool) -> None:
        super().__init__()
        self.heads = heads
        self.shifted = shifted
        self.attn = nn.Sequential(nn.Conv2d(features, 2 * features, 1))
        self.proj = nn.Sequential(nn.Conv2d(features, features, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Refine [N, features, H, W]."""
        halves = self.attn(x).chunk(2, 1)
        done = [self._attended(half, *window) for half, window in zip(halves, WINDOWS, strict=True)]
        y: Tensor = self.proj(torch.cat(done, 1))
        return y

    def _attended(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """Attend within windows of `rows` x `columns`.

        Args:
            x: [N, C, H, W]; queries and values, each the channels of one head after another.
        Returns:
            [N, C / 2, H, W].
        """
        height, width = x.shape[2:]
        x = _mirrored(_mirrored(x, 2, rows), 3, columns)
        if self.shifted:
            x = x.roll((rows // 2, columns // 2), (2, 3))
        down, across = x.shape[2] // rows, x.shape[3] // columns
        # [N * 2 * heads, C', down, rows, across, columns], and each window's pixels in a row
        x = x.reshape(-1, x.shape[1] // (2 * self.heads), down, rows, across, columns)
        x = x.permute(0, 2, 4, 3, 5, 1)
        x = x.reshape(-1, 2, self.heads * down * across, rows * columns, x.shape[-1])
        y = _attention(x[:, 0], x[:, 1])
        y = y.reshape(-1, down, across, rows, columns, y.shape[-1]).permute(0, 5, 1, 3, 2, 4)
        y = y.reshape(len(x), -1, down * rows, across * columns)
        if self.shifted:
            y = y.roll((-(rows // 2), -(columns // 2)), (2, 3))
        return y[:, :, :height, :width]


def _mirrored(x: Tensor, axis: int, multiple: int) -> Tensor:
    """Extend an axis to a multiple by what lies before its end, and again if that is too short.

    For what is longer than the extension this is "reflect" padding.
    """
    length = x.shape[axis]
    if isinstance(length, int) and length % multiple == 0:  # no int: not known yet, in export
        return x
    longer = (length + multiple - 1) // multiple * multiple
    index = torch.arange(longer, device=x.device)
    period = torch.full_like(index, 2 * length - 2).clamp(min=1)
    index = index % period
    return x.index_select(axis, torch.minimum(index, period - index))


def _attention(query: Tensor, value: Tensor) -> Tensor:
    """softmax(query * query^T) * value, for [N, windows, pixels, C']."""
    windows = query.shape[1]
    if not isinstance(windows, int) or windows <= _AT_ONCE:  # as above
        return torch.softmax(query @ query.transpose(-2, -1), -1) @ value
    starts = range(0, windows, _AT_ONCE)
    parts = [(query[:, at : at + _AT_ONCE], value[:, at : at + _AT_ONCE]) for at in starts]
    return torch.cat([_attention(*part) for part in parts], 1)


class MixedBlock(nn.Module):
    """Layers that attend, then layers that mix pixels, an `Mlp` after each."""

    def __init__(self, features: int, layers: int, attending: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.sa_list = nn.ModuleList(
            StripedAttention(features, heads, shifted=index % 2 == 1)
            if index < attending
            else PixelMixer(features)
            for index in range(layers)
        )
        self.mlp_list = nn.ModuleList(Mlp(features, ratio) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Refine [N, features, H, W]."""
        for mixer, mlp in zip(self.sa_list, self.mlp_list, strict=True):
            x = x + mixer(x)
            x = x + mlp(x)
        return x


class Emt(nn.Module):
    """RGB to RGB.

    Args:
        features: channels between layers, a multiple of 5 and of twice the heads.
        blocks: of `layers` layers each.
        layers: in a block.
        attending: how many of them attend, the first ones.
        heads: of the attention, in each half of the channels.
        ratio: channels within an `Mlp` / features.
        scale: output size / input size.
    """

    def __init__(
        self,
        features: int,
        blocks: int,
        layers: int,
        attending: int,
        heads: int,
        ratio: int,
        scale: int,
    ) -> None:
        super().__init__()
        self.sub_mean = MeanColour(-1)
        self.add_mean = MeanColour(1)
        self.head = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.Sequential(
            *(MixedBlock(features, layers, attending, heads, ratio) for _ in range(blocks))
        )
        shuffle = nn.PixelShuffle(scale)
        self.tail = nn.Sequential(nn.Conv2d(features, 3 * scale**2, 3, padding=1), shuffle)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale.

        Args:
            x: float RGB [N, 3, H, W], 0..1, of any size.
        Returns:
            float RGB [N, 3, H*scale, W*scale], about 0..1, not clamped.
        """
        x = self.head(self.sub_mean(x * 255))
        x = x + self.body(x)
        y: Tensor = self.add_mean(self.tail(x)) / 255
        return y


def build(shape: Mapping[str, int]) -> nn.Module:
    """Make the net, with random weights; `shape` has the arguments of `Emt`."""
    return Emt(**shape)


def receptive_field(shape: Mapping[str, int]) -> int:
    """Tell how many source pixels away a source pixel can change an output pixel.

    Where neither is so near an edge that windows or shifts wrap around to the opposite one.
    """
    attending, layers = shape["attending"], shape["layers"]
    longest = max(max(window) for window in WINDOWS)
    in_block = attending * (longest - 1) + (layers - attending) + 2 * layers
    return shape["blocks"] * in_block + 2


def shape_of(state: Mapping[str, Tensor]) -> dict[str, int] | None:
    """Tell the shape of the net that has these tensors (as trained, or fused); None: another net.

    Heads and windows leave no trace in them, and are taken to be those of the paper.

    Raises:
        ValueError: it is such a net, but not from RGB to RGB, or of a width that cannot be.
    """
    first, last = state.get("head.weight"), state.get("tail.0.weight")
    inner = state.get("body.0.mlp_list.0.fc1.weight")
    mixes = any(name.endswith(_MIXERS) for name in state)
    if first is None or last is None or inner is None or not mixes or first.dim() != 4:
        return None
    features = first.shape[0]
    scale = isqrt(last.shape[0] // 3)
    if first.shape[1] != 3:
        raise ValueError(f"takes {first.shape[1]} channels, not RGB")
    if scale < 1 or last.shape[0] != 3 * scale**2:
        raise ValueError(f"its last layer has {last.shape[0]} channels, which are no RGB blocks")
    if features % (2 * HEADS) or features % 5:
        raise ValueError(f"has {features} features, not a multiple of 5 and of {2 * HEADS}")
    layers = [name for name in state if name.endswith(".fc1.mask")]
    in_first = [name for name in layers if name.startswith("body.0.")]
    attending = [name for name in state if name.endswith(".attn.0.weight")]
    return {
        "features": features,
        "blocks": len(layers) // max(1, len(in_first)),
        "layers": len(in_first),
        "attending": sum(name.startswith("body.0.") for name in attending),
        "heads": HEADS,
        "ratio": inner.shape[0] // features,
        "scale": scale,
    }


#: Ends of names of the kernels of a `PixelMixer`, as trained and fused.
_MIXERS = (".token_mixer.mask", ".token_mixer.weight")
#: Of a normalisation: its parts, and what is added to the variance.
_NORM = ("weight", "bias", "running_mean", "running_var")
_EPSILON = 1e-5


def fused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make the tensors of this net of a trained one's; those of a fused one pass unchanged.

    A trained mixer shifts by a kernel of one 1, takes its input off and normalises; where the
    shift is none that gives zeros, and their variance: only as one kernel, of zeros, does this
    stay exact in every precision.

    Raises:
        ValueError: the parts of a layer do not fit together.
    """
    result = dict(state)
    fuse = {".attn.1.running_var": _fuse_attention, ".norm.running_var": _fuse_mixer}
    for end, layer_fused in fuse.items():
        for name in state:
            if name.endswith(end):
                layer_fused(result, name.removesuffix(end))
    return result


def _fuse_attention(state: dict[str, Tensor], layer: str) -> None:
    conv = f"{layer}.attn.0"
    factor, offset = _normalisation(state, f"{layer}.attn.1")
    weight, bias = state.get(f"{conv}.weight"), state.get(f"{conv}.bias")
    if weight is None or bias is None or not len(weight) == len(bias) == len(factor):
        raise ValueError(f"the parts of its layer {layer} do not fit together")
    by_channel = factor.reshape(-1, *[1] * (weight.dim() - 1))
    state[f"{conv}.weight"] = (weight.double() * by_channel).float()
    state[f"{conv}.bias"] = (bias.double() * factor + offset).float()


def _fuse_mixer(state: dict[str, Tensor], layer: str) -> None:
    factor, offset = _normalisation(state, f"{layer}.norm")
    mask = state.pop(f"{layer}.token_mixer.mask", None)
    if mask is None or tuple(mask.shape) != (len(factor), 1, 3, 3):
        raise ValueError(f"the parts of its layer {layer} do not fit together")
    kernel = mask.double()
    kernel[:, :, 1, 1] -= 1
    state[f"{layer}.token_mixer.weight"] = (kernel * factor.reshape(-1, 1, 1, 1)).float()
    state[f"{layer}.token_mixer.bias"] = offset.float()


def _normalisation(state: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Take a normalisation out of `state`: what to multiply each channel by, and to add."""
    state.pop(f"{name}.num_batches_tracked", None)
    parts = [state.pop(f"{name}.{part}", None) for part in _NORM]
    found = [part.double() for part in parts if part is not None]
    if len(found) < len(parts) or any(p.shape != found[0].shape or p.dim() != 1 for p in found):
        raise ValueError(f"its normalisation {name} is incomplete")
    weight, bias, mean, variance = found
    if bool((variance < 0).any()):
        raise ValueError(f"its normalisation {name} has a negative variance")
    factor = weight / (variance + _EPSILON).sqrt()
    return factor, bias - mean * factor
