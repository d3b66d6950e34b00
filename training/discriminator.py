"""The discriminator of GAN training: a U-Net that judges every pixel.

After Schönfeld et al. 2020 ("A U-Net Based Discriminator for Generative Adversarial Networks") in
the form of Real-ESRGAN (Wang et al. 2021): three halvings and back with added skips, spectral
normalisation (Miyato et al. 2018) on all but the first and the last layer.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


def _conv(inputs: int, outputs: int, side: int = 3, stride: int = 1) -> nn.Module:
    return spectral_norm(nn.Conv2d(inputs, outputs, side, stride, 1, bias=False))


class Discriminator(nn.Module):
    """Pictures to one logit a pixel: positive for real ones.

    Args:
        channels: 3 for RGB, 1 for luma.
        features: of the first layer; doubled at each halving.
    """

    def __init__(self, channels: int, features: int = 64) -> None:
        super().__init__()
        f = features
        self.first = nn.Conv2d(channels, f, 3, padding=1)
        self.down = nn.ModuleList(_conv(f * 2**i, f * 2 ** (i + 1), 4, 2) for i in range(3))
        self.up = nn.ModuleList(_conv(f * 2 ** (i + 1), f * 2**i) for i in (2, 1, 0))
        self.last = nn.ModuleList((_conv(f, f), _conv(f, f)))
        self.logit = nn.Conv2d(f, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Judge.

        Args:
            x: float [N, channels, H, W], 0..1; H and W multiples of 8.
        Returns:
            float [N, 1, H, W].
        """
        x = _leaky(self.first(x))
        skips = []
        for layer in self.down:
            skips.append(x)
            x = _leaky(layer(x))
        for layer in self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = _leaky(layer(x)) + skips.pop()
        for layer in self.last:
            x = _leaky(layer(x))
        logit: Tensor = self.logit(x)
        return logit


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)
