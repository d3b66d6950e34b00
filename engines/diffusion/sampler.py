"""From noise to a latent in a few steps, and the loss by which a net learns to do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from torch import Tensor

from engines.diffusion.schedule import Schedule

if TYPE_CHECKING:
    from engines.diffusion.unet import SwinUnet

#: Takes a scaled x_t and the step, gives x0.
Denoiser = Callable[[Tensor, int], Tensor]
#: Noise is drawn in squares of this width.
_SQUARE = 64


def sample(
    denoise: Denoiser, y: Tensor, schedule: Schedule, noise: Callable[[int], Tensor]
) -> Tensor:
    """Draw a latent, by ancestral sampling from y and noise.

    Args:
        denoise: estimates x0.
        y: float [N, C, H, W]: the latent of the enlarged small picture.
        noise: gives standard normal noise like `y`: for number `schedule.steps` what is added
            to `y` at the start, for 1 to steps - 1 what the step of that number adds.
    Returns:
        As `y`; the last step adds no noise: it is what `denoise` gave last.
    """
    x = y + schedule.forward(schedule.steps - 1)[1] * noise(schedule.steps)
    for step in reversed(range(schedule.steps)):
        x0 = denoise(x * schedule.input_scale(step), step)
        of_x, of_x0, deviation = schedule.posterior(step)
        x = of_x * x + of_x0 * x0
        if step:
            x = x + deviation * noise(step)
    return x


def diffused(x0: Tensor, y: Tensor, schedule: Schedule, steps: Tensor, noise: Tensor) -> Tensor:
    """Draw from q(x_t | x0, y).

    Args:
        x0, y: float [N, C, H, W].
        steps: integers [N].
        noise: standard normal, like `x0`.
    """
    eta = _of_steps(schedule.eta, steps, x0)
    return x0 + eta * (y - x0) + schedule.kappa * eta.sqrt() * noise


def training_loss(
    net: SwinUnet,
    schedule: Schedule,
    x0: Tensor,
    y: Tensor,
    source: Tensor,
    steps: Tensor,
    noise: Tensor,
) -> Tensor:
    """Give the mean squared error of the net's estimate of x0, all steps alike.

    The 4-step net was trained with LPIPS of the decoded pictures besides.

    Args:
        x0, y: float [N, 3, H, W]: latents of the large and the enlarged small pictures.
        source: float RGB [N, 3, H, W], -1..1: the small pictures.
        steps: integers [N], one for each picture.
        noise: standard normal, like `x0`.
    """
    x = diffused(x0, y, schedule, steps, noise)
    scales = [schedule.input_scale(step) for step in range(schedule.steps)]
    return F.mse_loss(net(x * _of_steps(scales, steps, x), steps, source), x0)


def _of_steps(numbers: tuple[float, ...] | list[float], steps: Tensor, like: Tensor) -> Tensor:
    table = torch.tensor(numbers, dtype=like.dtype, device=like.device)
    return table[steps][:, None, None, None]


def picture_noise(
    seed: int, number: int, box: tuple[int, int, int, int], channels: int = 3
) -> NDArray[np.float32]:
    """Give the piece of an endless field of standard normal noise that lies in a box.

    Noise belongs to the place in the picture: chunks that overlap see the same, and so draw
    nearly the same picture where they do.

    Args:
        seed: of the picture, 0 or more.
        number: of the field: a step's, see `sample`.
        box: top, left, height, width; top and left 0 or more.
    Returns:
        float32 [channels, height, width].
    """
    top, left, height, width = box
    field = np.empty((channels, height, width), np.float32)
    for row in range(top // _SQUARE, (top + height - 1) // _SQUARE + 1):
        for column in range(left // _SQUARE, (left + width - 1) // _SQUARE + 1):
            generator = np.random.default_rng((seed, number, row, column))
            square = generator.standard_normal((channels, _SQUARE, _SQUARE), np.float32)
            of_square, y = _overlap(row * _SQUARE, top, height)
            along, x = _overlap(column * _SQUARE, left, width)
            field[:, y, x] = square[:, of_square, along]
    return field


def _overlap(square: int, start: int, length: int) -> tuple[slice, slice]:
    """Say which part of a square lies on a line, seen from the square and from the line."""
    first, last = max(square, start), min(square + _SQUARE, start + length)
    return slice(first - square, last - square), slice(first - start, last - start)
