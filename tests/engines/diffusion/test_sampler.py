"""Sampling against closed forms; noise that belongs to its place; a tiny net that learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from engines.diffusion.resshift import VARIANTS
from engines.diffusion.sampler import diffused, picture_noise, sample, training_loss
from engines.diffusion.schedule import Schedule
from engines.diffusion.unet import SwinUnet
from tests.engines.diffusion.conftest import UNET

each = pytest.mark.parametrize("schedule", VARIANTS.values(), ids=VARIANTS)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@each
def test_a_perfect_denoiser_s_answer_is_the_result(schedule: Schedule) -> None:
    x0, y = drawn(0, 1, 3, 8, 8), drawn(1, 1, 3, 8, 8)
    result = sample(lambda x, step: x0, y, schedule, lambda n: drawn(n, 1, 3, 8, 8))
    assert torch.equal(result, x0)


@each
def test_every_step_is_taken_once_and_noise_is_asked_for_by_number(schedule: Schedule) -> None:
    steps: list[int] = []
    numbers: list[int] = []

    def denoise(x: Tensor, step: int) -> Tensor:
        steps.append(step)
        return torch.zeros_like(x)

    def noise(number: int) -> Tensor:
        numbers.append(number)
        return torch.zeros(1, 1, 1, 1)

    sample(denoise, torch.zeros(1, 1, 1, 1), schedule, noise)
    assert steps == list(reversed(range(schedule.steps)))
    assert numbers == list(reversed(range(1, schedule.steps + 1)))


@each
def test_the_chain_back_has_the_moments_of_the_closed_form(schedule: Schedule) -> None:
    """Started from y instead of x0 + eta_T (y - x0), which moves each mean by a known part."""
    x0, y = 0.5, -1.0
    count = 40_000
    seen: list[Tensor] = []

    def denoise(x: Tensor, step: int) -> Tensor:
        seen.append(x / schedule.input_scale(step))
        return torch.full_like(x, x0)

    sample(denoise, torch.full((1, 1, 1, count), y), schedule, lambda n: drawn(n, 1, 1, 1, count))
    for step, x in zip(reversed(range(schedule.steps)), seen, strict=True):
        eta = schedule.eta[step]
        mean = x0 + eta / schedule.eta[-1] * (y - x0)
        deviation = schedule.kappa * eta**0.5
        error = deviation / count**0.5  # of the mean; that of the deviation is error / sqrt(2)
        assert x.mean().item() == pytest.approx(mean, abs=5 * error + 1e-6)
        assert x.std().item() == pytest.approx(deviation, abs=5 * error)


@each
def test_diffused_latents_have_the_moments_of_q(schedule: Schedule) -> None:
    count = 40_000
    steps = torch.arange(schedule.steps)
    x0 = torch.full((schedule.steps, 1, 1, count), 0.5)
    y = torch.full_like(x0, -1.0)
    x = diffused(x0, y, schedule, steps, drawn(3, *x0.shape))
    for step in range(schedule.steps):
        of_residual, deviation = schedule.forward(step)
        error = deviation / count**0.5
        assert x[step].mean().item() == pytest.approx(0.5 - 1.5 * of_residual, abs=5 * error)
        assert x[step].std().item() == pytest.approx(deviation, abs=5 * error)


def test_noise_belongs_to_the_place() -> None:
    whole = picture_noise(3, 2, (0, 0, 200, 300))
    assert whole.shape == (3, 200, 300)
    for box in ((0, 0, 64, 64), (63, 1, 2, 130), (100, 170, 100, 130), (64, 128, 64, 64)):
        top, left, height, width = box
        piece = picture_noise(3, 2, box)
        assert np.array_equal(piece, whole[:, top : top + height, left : left + width])


def test_noise_differs_by_seed_and_number_and_place() -> None:
    box = (0, 0, 64, 64)
    fields = [picture_noise(*key, box).ravel() for key in ((0, 1), (0, 2), (1, 1), (1, 0))]
    fields += [picture_noise(0, 1, (0, 64, 64, 64)).ravel(), picture_noise(0, 1, box)[0].ravel()]
    for i, first in enumerate(fields[:5]):
        for second in fields[i + 1 : 5]:
            assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
    assert np.array_equal(fields[0][: 64 * 64], fields[5])


def test_noise_is_standard_normal() -> None:
    field = picture_noise(7, 1, (0, 0, 512, 512))
    assert abs(field.mean()) < 5 / field.size**0.5
    assert abs(field.std() - 1) < 5 / (2 * field.size) ** 0.5
    assert 0.0024 < (np.abs(field) > 3).mean() < 0.0030


class Told(torch.nn.Module):
    """Answers zero, and keeps what it was told."""

    def forward(self, x: Tensor, steps: Tensor, source: Tensor) -> Tensor:
        self.told = x, steps, source
        return torch.zeros_like(x)


@each
def test_the_loss_is_the_squared_error_of_x0(schedule: Schedule) -> None:
    net = Told()
    x0, y, noise = (drawn(n, 2, 3, 8, 8) for n in range(3))
    source = drawn(3, 2, 3, 8, 8)
    steps = torch.tensor([0, schedule.steps - 1])
    loss = training_loss(net, schedule, x0, y, source, steps, noise)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(x0.square().mean().item(), rel=1e-5)
    x, told_steps, told_source = net.told
    assert told_steps is steps
    assert told_source is source
    for number, step in enumerate((0, schedule.steps - 1)):
        of_residual, deviation = schedule.forward(step)
        noisy = x0[number] + of_residual * (y - x0)[number] + deviation * noise[number]
        torch.testing.assert_close(x[number], noisy * schedule.input_scale(step))


def test_a_tiny_net_learns_and_then_samples_what_it_learnt() -> None:
    """x0 is y with its colours in another order: the loss must fall to a third in 40 steps."""
    schedule = VARIANTS["resshift-v3"]
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SwinUnet(UNET)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)

    def pairs(count: int) -> tuple[Tensor, Tensor]:
        coarse = torch.randn(count, 3, 4, 4, generator=generator)
        y = F.interpolate(coarse, scale_factor=4, mode="bilinear") * 1.5
        return y.flip(1), y

    losses = []
    for _ in range(40):
        x0, y = pairs(4)
        steps = torch.randint(schedule.steps, (4,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        loss = training_loss(net, schedule, x0, y, y / 3, steps, noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < losses[0] / 3

    net.eval().requires_grad_(False)
    x0, y = pairs(1)
    result = sample(
        lambda x, step: net(x, torch.tensor([step]), y / 3),
        y,
        schedule,
        lambda n: drawn(n, *y.shape),
    )
    assert F.mse_loss(result, x0) < 0.4 * F.mse_loss(y, x0)
