"""A diffusion model so small that it runs in milliseconds, with seeded weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engines.diffusion.autoencoder import AutoencoderShape, VqAutoencoder
from engines.diffusion.resshift import VARIANTS, ResShift
from engines.diffusion.unet import SwinUnet, UnetShape

UNET = UnetShape(
    channels=32, multipliers=(1, 2), blocks=1, trained_size=16, swin_channels=32, swin_blocks=2,
    head_channels=32, window=4,
)  # fmt: skip
AUTOENCODER = AutoencoderShape(channels=32, multipliers=(1, 1, 1), blocks=1, codes=64)


def lively(net: nn.Module, seed: int) -> nn.Module:
    """Give weights with which signals stay as large as they are; the same on every machine."""
    for number, (_, parameter) in enumerate(sorted(net.named_parameters())):
        spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
        places = torch.arange(parameter.numel(), dtype=torch.float64)
        waves = torch.sin(places * places * 0.37 + number + seed) * 2**0.5
        parameter.data = (waves * spread).float().reshape(parameter.shape)
    return net.eval().requires_grad_(False)


@pytest.fixture
def unet() -> SwinUnet:
    net = SwinUnet(UNET)
    lively(net, 1)
    return net


@pytest.fixture
def autoencoder() -> VqAutoencoder:
    net = VqAutoencoder(AUTOENCODER)
    lively(net, 2)
    return net


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest, unet: SwinUnet, autoencoder: VqAutoencoder) -> ResShift:
    return ResShift(request.param, VARIANTS[request.param], unet, autoencoder)
