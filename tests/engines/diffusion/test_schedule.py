"""ResShift's schedule against the paper's formulas and against Bayes' rule."""

from __future__ import annotations

import math

import pytest

from engines.diffusion.resshift import VARIANTS
from engines.diffusion.schedule import Schedule

SCHEDULES = [*VARIANTS.values(), Schedule(9, 0.1, kappa=0.5, power=2.0, last=0.9)]
IDS = [*VARIANTS, "kappa below 1"]
each = pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)


def test_the_released_schedules() -> None:
    assert {name: (s.steps, s.least_noise, s.kappa) for name, s in VARIANTS.items()} == {
        "resshift-v1": (15, 0.04, 2.0),
        "resshift-v3": (4, 0.2, 2.0),
        "resshift-bicsrx4-opencv": (15, 0.04, 1.0),
        "resshift-bicsrx4-matlab": (15, 0.04, 2.0),
    }
    for schedule in VARIANTS.values():
        assert (schedule.power, schedule.last) == (0.3, 0.99)


@each
def test_eta_is_the_paper_s(schedule: Schedule) -> None:
    last, first = schedule.last**2, schedule.eta[0]
    base = math.exp(math.log(last / first) / (2 * (schedule.steps - 1)))
    for t in range(1, schedule.steps + 1):
        exponent = ((t - 1) / (schedule.steps - 1)) ** schedule.power * (schedule.steps - 1)
        root = math.sqrt(first) * base**exponent
        assert schedule.eta[t - 1] == pytest.approx(root**2, rel=1e-12)
    assert schedule.eta[-1] == pytest.approx(last, rel=1e-12)
    assert list(schedule.eta) == sorted(set(schedule.eta))


def test_the_least_noise_is_what_its_name_says() -> None:
    assert VARIANTS["resshift-v1"].forward(0)[1] == pytest.approx(0.04)
    assert VARIANTS["resshift-v3"].forward(0)[1] == pytest.approx(0.2)
    assert SCHEDULES[-1].first == 0.1


@each
def test_steps_one_after_the_other_give_the_marginal(schedule: Schedule) -> None:
    shifted = variance = 0.0
    before = 0.0
    for step in range(schedule.steps):
        gain = schedule.eta[step] - before
        shifted, variance = shifted + gain, variance + schedule.kappa**2 * gain
        before = schedule.eta[step]
        of_residual, deviation = schedule.forward(step)
        assert of_residual == pytest.approx(shifted)
        assert deviation**2 == pytest.approx(variance)


@each
def test_the_posterior_is_that_of_bayes(schedule: Schedule) -> None:
    x0, y, x_t = 0.7, -1.3, 0.4
    for step in range(1, schedule.steps):
        before, now = schedule.eta[step - 1], schedule.eta[step]
        # x_(t-1) is normal given x0 and y; x_t is x_(t-1) and something, plus noise.
        prior_mean = x0 + before * (y - x0)
        prior_precision = 1 / (schedule.kappa**2 * before)
        seen = x_t - (now - before) * (y - x0)
        precision = 1 / (schedule.kappa**2 * (now - before))
        variance = 1 / (prior_precision + precision)
        mean = variance * (prior_precision * prior_mean + precision * seen)
        of_x, of_x0, deviation = schedule.posterior(step)
        assert of_x * x_t + of_x0 * x0 == pytest.approx(mean, rel=1e-9)
        assert deviation**2 == pytest.approx(variance, rel=1e-9)


@each
def test_the_last_step_gives_x0_alone(schedule: Schedule) -> None:
    assert schedule.posterior(0) == (0.0, 1.0, 0.0)


@each
def test_inputs_of_variance_one_stay_so(schedule: Schedule) -> None:
    for step in range(schedule.steps):
        variance = 1 + schedule.forward(step)[1] ** 2
        assert schedule.input_scale(step) ** 2 * variance == pytest.approx(1)


@pytest.mark.parametrize(
    ("steps", "noise", "more"),
    [(1, 0.1, {}), (4, 0.0, {}), (4, 3.0, {}), (4, 0.2, {"last": 1.5}), (4, 0.2, {"power": 0.0})],
)
def test_what_is_no_schedule_is_refused(steps: int, noise: float, more: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="schedule"):
        Schedule(steps, noise, **more)
