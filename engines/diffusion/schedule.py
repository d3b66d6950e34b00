"""ResShift's schedule: how fast the residual is shifted and how much noise there is at each step.

With x0 the clean picture and y the enlarged small one (their latents, in fact), step t of T takes

    x_t = x_(t-1) + a_t (y - x0) + kappa sqrt(a_t) noise,    a_t = eta_t - eta_(t-1),  eta_0 = 0

so that q(x_t | x0, y) is normal with mean x0 + eta_t (y - x0) and variance kappa^2 eta_t
("ResShift", Yue et al. 2023, arXiv 2307.12348). Steps are counted from 0 here, as the nets are
told them: step s is t = s + 1. Numbers are Python floats, double precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Schedule:
    """A schedule; power and last level are those of all released nets, kappa of all but one.

    Attributes:
        steps: T, at least 2.
        least_noise: kappa sqrt(eta_1), the standard deviation of the noise after the first step
            (divided by kappa where that is above 1).
        kappa: standard deviation of the noise at eta = 1.
        power: above 1 most steps are near x0, below 1 near y.
        last: sqrt(eta_T).
    """

    steps: int
    least_noise: float
    kappa: float = 2.0
    power: float = 0.3
    last: float = 0.99

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"a schedule has 2 steps or more, not {self.steps}")
        if not 0 < self.first < self.last <= 1 or self.kappa <= 0 or self.power <= 0:
            raise ValueError(f"{self} is no schedule: eta must grow from above 0 to at most 1")

    @property
    def first(self) -> float:
        """sqrt(eta_1)."""
        return min(self.least_noise / self.kappa, self.least_noise)

    @cached_property
    def eta(self) -> tuple[float, ...]:
        """eta after each step: its root grows exponentially in (s / (T - 1))^power."""
        ratio = self.last / self.first
        grown = ((step / (self.steps - 1)) ** self.power for step in range(self.steps))
        return tuple((self.first * ratio**exponent) ** 2 for exponent in grown)

    def forward(self, step: int) -> tuple[float, float]:
        """Describe q(x_t | x0, y): how much of the residual y - x0 is in it, and its noise.

        Returns:
            Weight of the residual, standard deviation.
        """
        return self.eta[step], self.kappa * self.eta[step] ** 0.5

    def posterior(self, step: int) -> tuple[float, float, float]:
        """Describe q(x_(t-1) | x_t, x0, y), which does not depend on y.

        Returns:
            Weight of x_t, weight of x0, standard deviation; 0, 1 and 0 at step 0.
        """
        eta = self.eta[step]
        before = self.eta[step - 1] if step else 0.0
        gain = eta - before
        return before / eta, gain / eta, self.kappa * (before * gain / eta) ** 0.5

    def input_scale(self, step: int) -> float:
        """What x_t is multiplied with for the net: x0 has a variance of 1, the noise is added."""
        return float((self.kappa**2 * self.eta[step] + 1) ** -0.5)
