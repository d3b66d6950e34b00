"""The terms of the loss. Pictures are float [N, C, H, W], 0..1; every term is a mean.

For renders of games squared error is the safe one: a small render is aliased, so that one LR
picture fits many HR ones. Squared error answers with their mean; L1 picks the likeliest edge, and
is worse than bicubic where it is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from training.config import ConfigError

Term = Callable[[Tensor, Tensor], Tensor]


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error."""
    squared: Tensor = (output - target).square()
    return squared.mean()


def l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error."""
    return (output - target).abs().mean()


def charbonnier(output: Tensor, target: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Mean of sqrt(error^2 + epsilon^2) (Lai et al. 2017): L1 without its corner."""
    squared: Tensor = (output - target).square()
    return (squared + epsilon**2).sqrt().mean()


def gradient(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the differences of neighbours, down and right: steep edges."""
    error = output - target
    slopes: Tensor = error.diff(dim=2).square().mean() + error.diff(dim=3).square().mean()
    return slopes


def frequency(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the amplitudes of the 2-D spectrum, orthonormal.

    Shifts of texture cost nothing, its lack does (as the focal frequency loss, Jiang et al. 2021,
    without its weights).
    """
    spectra = [torch.fft.rfft2(picture.float(), norm="ortho").abs() for picture in (output, target)]
    error: Tensor = spectra[0] - spectra[1]
    return error.abs().mean()


def ssim(output: Tensor, target: Tensor) -> Tensor:
    """1 - SSIM (Wang et al. 2004) of each channel: 11 x 11 Gaussian, sigma 1.5, inside the picture.

    Squared error answers doubt with less contrast; this keeps it.
    """
    a, b = output.float(), target.float()
    down, across = (_gaussian(side, a.device) for side in a.shape[-2:])
    maps = torch.stack([a, b, a * a + b * b, a * b])
    mean_a, mean_b, squares, product = down.T @ (maps @ across)  # quicker than convolutions
    both, apart = mean_a * mean_b, mean_a.square() + mean_b.square()
    luminance = (2 * both + 0.01**2) / (apart + 0.01**2)
    structure = (2 * (product - both) + 0.03**2) / (squares - apart + 0.03**2)
    similar: Tensor = (luminance * structure).mean()
    return 1 - similar


@cache
def _gaussian(side: int, device: torch.device) -> Tensor:
    """Give (side, side - 10): a column blurs one window of a row of pixels."""
    away = torch.arange(side, device=device)[:, None] - torch.arange(5, side - 5, device=device)
    weights = (-away.square() / (2 * 1.5**2)).exp() * (away.abs() <= 5)
    return weights / weights.sum(dim=0)


#: The terms that need nothing but output and target, by their key in the configuration.
TERMS: Mapping[str, Term] = {
    "mse": mse, "l1": l1, "charbonnier": charbonnier, "gradient": gradient, "frequency": frequency,
    "ssim": ssim,
}  # fmt: skip


@cache
def _trunk(device: torch.device) -> nn.Module:
    """Load LPIPS with VGG16.

    Raises:
        ConfigError: its weights are not on this machine; says how to get them.
    """
    from evaluation.metrics.errors import MetricUnavailable
    from evaluation.metrics.weights import lpips

    try:
        net = lpips("vgg")
    except MetricUnavailable as exc:
        raise ConfigError(f"loss.perceptual: {exc}") from exc
    return net.to(device).eval().requires_grad_(False)


def perceptual(output: Tensor, target: Tensor) -> Tensor:
    """LPIPS with VGG16 (Zhang et al. 2018); luma is judged as grey.

    Raises:
        ConfigError: its weights are not on this machine.
    """
    shape = (-1, 3, -1, -1)
    distance: Tensor = _trunk(output.device)(output.expand(shape), target.expand(shape))
    return distance.mean()


def fooled(kind: str, fake: Tensor, real: Tensor) -> Tensor:
    """What the net wants: logits of its pictures as those of real ones.

    Args:
        kind: "vanilla": binary cross-entropy; "relativistic": of each logit less the mean of the
            other side's (Jolicoeur-Martineau 2018).
        fake, real: logits.
    """
    if kind == "vanilla":
        return F.softplus(-fake).mean()
    return (F.softplus(-(fake - real.mean())) + F.softplus(real - fake.mean())).mean() / 2


def told_apart(kind: str, fake: Tensor, real: Tensor) -> Tensor:
    """What the discriminator wants; arguments as `fooled`."""
    if kind == "vanilla":
        return (F.softplus(fake) + F.softplus(-real)).mean() / 2
    return (F.softplus(fake - real.mean()) + F.softplus(-(real - fake.mean()))).mean() / 2
