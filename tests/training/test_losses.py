"""The terms of the loss against values worked out by hand, and the discriminator."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.metrics import lpips, weights
from evaluation.metrics.fidelity import Ssim
from evaluation.metrics.lpips import Lpips
from training import losses
from training.config import ConfigError
from training.discriminator import Discriminator


def flat(level: float) -> torch.Tensor:
    return torch.full((1, 1, 8, 8), level)


def test_plain_terms_of_a_constant_error() -> None:
    a, b = flat(0.5), flat(0.75)
    assert losses.mse(a, b).item() == pytest.approx(0.0625)
    assert losses.l1(a, b).item() == pytest.approx(0.25)
    assert losses.charbonnier(a, b).item() == pytest.approx(math.hypot(0.25, 1e-3))
    assert losses.charbonnier(a, a).item() == pytest.approx(1e-3)
    assert losses.gradient(a, b).item() == 0


def test_gradient_of_a_ramp() -> None:
    across = torch.arange(8.0).expand(1, 1, 8, 8)  # 1 a pixel to the right, 0 down
    assert losses.gradient(3 * across, across).item() == pytest.approx(4.0)
    down = across.transpose(2, 3)
    assert losses.gradient(across, down).item() == pytest.approx(2.0)


def test_frequency_of_a_constant_error_lies_in_one_bin() -> None:
    a, b = flat(0.0), flat(0.5)
    # orthonormal: the mean's bin has 8 * 0.5, the other 8 * 5 - 1 of the half spectrum have none
    assert losses.frequency(a, b).item() == pytest.approx(8 * 0.5 / 40)


def test_frequency_does_not_see_shifts_and_sees_blur() -> None:
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert losses.frequency(picture, picture.roll(3, 2)).item() == pytest.approx(0, abs=1e-6)
    blurred = (picture + picture.roll(1, 2) + picture.roll(1, 3)) / 3
    assert losses.frequency(picture, blurred).item() > 0.05


def test_ssim_is_the_metric() -> None:
    a, b = (
        torch.randint(256, (1, 3, 40, 48), generator=torch.Generator().manual_seed(seed))
        for seed in (0, 1)
    )
    b = (a + b) // 2
    pictures = [x[0].permute(1, 2, 0).numpy().astype(np.uint8) for x in (a, b)]
    assert losses.ssim(a / 255, b / 255).item() == pytest.approx(1 - Ssim()(*pictures), abs=1e-5)


def test_terms_are_means_over_pictures() -> None:
    a, b = (torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    for name, term in losses.TERMS.items():
        one_by_one = torch.stack([term(x[None], y[None]) for x, y in zip(a, b, strict=True)])
        torch.testing.assert_close(term(a, b), one_by_one.mean(), msg=name)


@pytest.mark.parametrize("name", losses.TERMS)
def test_terms_lead_back_to_the_target(name: str) -> None:
    target = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    output = (target + 0.05 * torch.randn(target.shape)).requires_grad_()
    before = losses.TERMS[name](output, target)
    (slope,) = torch.autograd.grad(before, output)
    step = output - 0.1 * before.detach() / slope.square().sum() * slope
    assert losses.TERMS[name](step, target) < before
    assert torch.isfinite(
        torch.autograd.grad(losses.TERMS[name](output, output.detach()), output)[0]
    ).all()


def test_vanilla_gan_is_binary_cross_entropy() -> None:
    fake, real = torch.tensor([0.3, -1.2]), torch.tensor([2.0, -0.5])
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    ones, zeros = torch.ones(2), torch.zeros(2)
    torch.testing.assert_close(losses.fooled("vanilla", fake, real), bce(fake, ones))
    both = (bce(fake, zeros) + bce(real, ones)) / 2
    torch.testing.assert_close(losses.told_apart("vanilla", fake, real), both)


def test_relativistic_gan_compares_with_the_other_side() -> None:
    fake, real = torch.tensor([0.3, -1.2]), torch.tensor([2.0, -0.5])
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    ones, zeros = torch.ones(2), torch.zeros(2)
    more, less = fake - real.mean(), real - fake.mean()
    expected = (bce(more, ones) + bce(less, zeros)) / 2
    torch.testing.assert_close(losses.fooled("relativistic", fake, real), expected)
    expected = (bce(more, zeros) + bce(less, ones)) / 2
    torch.testing.assert_close(losses.told_apart("relativistic", fake, real), expected)


@pytest.mark.parametrize("kind", ["vanilla", "relativistic"])
def test_the_discriminator_learns_to_tell_sharp_from_soft(kind: str) -> None:
    torch.manual_seed(0)
    net = Discriminator(1, 8)
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(40):
        real = torch.rand(4, 1, 16, 16)
        fake = torch.nn.functional.avg_pool2d(real, 3, 1, 1)
        judged_fake, judged_real = net(torch.cat((fake, real))).chunk(2)
        loss = losses.told_apart(kind, judged_fake, judged_real)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert judged_real.shape == (4, 1, 16, 16)
    assert judged_real.mean() > judged_fake.mean() + 0.5
    assert loss < 0.6


def test_the_discriminator_is_spectrally_normal_and_repeats() -> None:
    torch.manual_seed(0)
    net = Discriminator(3, 8)
    for _ in range(30):
        net(torch.rand(1, 3, 16, 16))
    net.eval()
    for layer in (*net.down, *net.up, *net.last):
        kernel = layer.weight.detach().flatten(1)
        assert torch.linalg.matrix_norm(kernel, 2).item() == pytest.approx(1, abs=0.05)
    assert torch.linalg.matrix_norm(net.first.weight.detach().flatten(1), 2).item() != 1
    again = Discriminator(3, 8)
    again.load_state_dict(net.state_dict())
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(net(x), again.eval()(x))


def test_perceptual_says_where_its_weights_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVERLAY_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    losses._trunk.cache_clear()
    with pytest.raises(ConfigError, match=r"loss\.perceptual: the weights of lpips-vgg are not in"):
        losses.perceptual(torch.rand(1, 1, 32, 32), torch.rand(1, 1, 32, 32))


def test_perceptual_is_lpips_of_grey_for_luma(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    made = Lpips("vgg", {n: 0.05 * torch.rand(s) for n, s in lpips.shapes("vgg").items()})
    monkeypatch.setattr(weights, "lpips", lambda trunk: made)
    losses._trunk.cache_clear()
    a, b = torch.rand(1, 1, 32, 32, requires_grad=True), torch.rand(1, 1, 32, 32)
    assert losses.perceptual(a, a.detach()).item() == pytest.approx(0, abs=1e-6)
    distance = losses.perceptual(a, b)
    torch.testing.assert_close(distance, made(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)).mean())
    (slope,) = torch.autograd.grad(distance, a)
    assert torch.isfinite(slope).all()
    assert slope.abs().max() > 0
    losses._trunk.cache_clear()
