"""What ResShift's two networks have in common."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

#: Channels are normalised in so many groups.
GROUPS = 32


class Upsample(nn.Module):
    """Twice the width and height: each value four times, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Take [N, channels, H, W]; give [N, channels, 2*H, 2*W]."""
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y
