"""Presets, and how a recipe is drawn from one.

`realesrgan` has the paper's parameters (Wang et al., "Real-ESRGAN", ICCVW 2021, and its released
configuration for x4); `srgd-*` those of the dataset SRGD for each size, which drew once for a
whole folder and here are drawn for every picture; `render` imitates what a render at low
resolution shows, as measured by `render`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from training.degrade.steps import (
    Blur,
    GaussianNoise,
    Jpeg,
    Mode,
    PoissonNoise,
    Recipe,
    Resize,
    Sample,
    Sinc,
    Step,
)
from training.errors import DataError

Range = tuple[float, float]
_T = TypeVar("_T")

#: (shape, whether isotropic, whether beta is drawn, probability): the paper's section 3.2.
_KERNELS = (
    ("gaussian", True, False, 0.45),
    ("gaussian", False, False, 0.25),
    ("gaussian", True, True, 0.12),
    ("gaussian", False, True, 0.03),
    ("plateau", True, True, 0.12),
    ("plateau", False, True, 0.03),
)
_BETAS = {"gaussian": (0.5, 4.0), "plateau": (1.0, 2.0)}
_SINC = 0.1  # probability of a sinc instead of these
_GAUSSIAN, _GREY = 0.5, 0.4  # probabilities of Gaussian against Poisson, of grey noise


@dataclass(frozen=True, slots=True)
class Stage:
    """Blur, resize, noise and JPEG, once.

    Attributes:
        blur: probability of a blur.
        sizes: of its kernel, each as likely.
        sigma: of its kernel, pixels.
        modes: of the resize, each as likely.
        resize: probabilities of a larger, a smaller and the same size; None: none is drawn.
        factors: smallest and largest of the sizes drawn.
        sigma_noise: standard deviation of Gaussian noise, of 255.
        scale: of Poisson noise.
        quality: of JPEG.
    """

    blur: float
    sizes: tuple[int, ...]
    sigma: Range
    modes: tuple[Mode, ...]
    resize: tuple[float, float, float] | None
    factors: Range
    sigma_noise: Range
    scale: Range
    quality: tuple[int, int]


@dataclass(frozen=True, slots=True)
class TwoStage:
    """Two stages; `last` is the probability of a sinc at the end, None: ends with the second."""

    first: Stage
    second: Stage
    last: float | None


@dataclass(frozen=True, slots=True)
class Render:
    """Ranges of `steps.Sample`'s parameters for each step (HR size / LR size)."""

    width: dict[int, Range]
    edge: dict[int, Range]


_ALL: tuple[Mode, ...] = ("area", "bilinear", "bicubic")
_ODD = (7, 9, 11, 13, 15, 17, 19, 21)


def _srgd(size: int, noise: tuple[Range, Range], scale: tuple[Range, Range], jpeg: int) -> TwoStage:
    """SRGD's stages for one size; it had one kernel size and JPEG quality for each."""
    modes: tuple[Mode, ...] = ("bilinear", "area")
    first, second = (
        Stage(1.0, (size,), sigma, modes, None, (1, 1), noise[i], scale[i], (jpeg, jpeg))
        for i, sigma in enumerate(((0.2, 3.0), (0.2, 1.5)))
    )
    return TwoStage(first, second, None)


PRESETS: dict[str, TwoStage | Render] = {
    "realesrgan": TwoStage(
        Stage(
            blur=1.0,
            sizes=_ODD,
            sigma=(0.2, 3.0),
            modes=_ALL,
            resize=(0.2, 0.7, 0.1),
            factors=(0.15, 1.5),
            sigma_noise=(1, 30),
            scale=(0.05, 3.0),
            quality=(30, 95),
        ),
        Stage(
            blur=0.8,
            sizes=_ODD,
            sigma=(0.2, 1.5),
            modes=_ALL,
            resize=(0.3, 0.4, 0.3),
            factors=(0.3, 1.2),
            sigma_noise=(1, 25),
            scale=(0.05, 2.5),
            quality=(30, 95),
        ),
        last=0.8,
    ),
    "srgd-270p": _srgd(21, ((12, 20), (12, 17)), ((1.0, 1.3), (1.0, 1.2)), 60),
    "srgd-360p": _srgd(15, ((5, 11), (5, 9)), ((0.6, 1.0), (0.6, 0.9)), 75),
    "srgd-540p": _srgd(9, ((5, 9), (5, 7)), ((0.4, 0.8), (0.4, 0.7)), 90),
    "render": Render(
        width={2: (1.25, 1.75), 3: (1.75, 2.0), 4: (1.75, 2.0)},
        edge={2: (0.05, 0.15), 3: (0.15, 0.25), 4: (0.15, 0.3)},
    ),
}


def generator(seed: int, name: str) -> np.random.Generator:
    """Make the generator of one picture: equal seeds and names give equal draws anywhere."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def draw(preset: str, dice: np.random.Generator, factor: float) -> Recipe:
    """Draw all parameters for one picture; applies nothing.

    Args:
        preset: one of `PRESETS`.
        dice: from `generator`.
        factor: LR size / HR size, 1/4 for x4.
    Raises:
        DataError: there is no such preset, or none for this factor.
    """
    chosen = PRESETS.get(preset)
    if chosen is None:
        raise DataError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    if not 0 < factor < 1:
        raise DataError(f"LR must be smaller than HR, not {factor:g} times as large")
    if isinstance(chosen, Render):
        return Recipe(preset, (_sample(chosen, dice, factor),))
    if chosen.last is None:
        steps = _stage(chosen.first, dice, (1 + factor) / 2) + _stage(chosen.second, dice, factor)
        return Recipe(preset, tuple(steps))
    first = _stage(chosen.first, dice, 1.0)
    *second, jpeg = _stage(chosen.second, dice, factor)
    end: list[Step] = [Resize(_choice(dice, chosen.second.modes), factor)]
    if dice.random() < chosen.last:
        end.append(Sinc(_choice(dice, _ODD), dice.uniform(np.pi / 3, np.pi)))
    end = [*end, jpeg] if dice.random() < 0.5 else [jpeg, *end]
    return Recipe(preset, tuple(first + second + end))


def _stage(stage: Stage, dice: np.random.Generator, base: float) -> list[Step]:
    """Draw a stage; `base` times a drawn factor is the size it resizes to."""
    steps: list[Step] = []
    if dice.random() < stage.blur:
        steps.append(_kernel(stage, dice))
    steps.append(Resize(_choice(dice, stage.modes), base * _factor(stage, dice)))
    steps.append(_noise(stage, dice))
    low, high = stage.quality
    steps.append(Jpeg(int(dice.integers(low, high + 1))))
    return steps


def _kernel(stage: Stage, dice: np.random.Generator) -> Blur | Sinc:
    size = _choice(dice, stage.sizes)
    if dice.random() < _SINC:
        lowest = np.pi / 3 if size < 13 else np.pi / 5
        return Sinc(size, dice.uniform(lowest, np.pi))
    kind = int(dice.choice(len(_KERNELS), p=[kernel[3] for kernel in _KERNELS]))
    shape, isotropic, shaped, _ = _KERNELS[kind]
    first = dice.uniform(*stage.sigma)
    sigma = (first, first if isotropic else dice.uniform(*stage.sigma))
    angle = 0.0 if isotropic else dice.uniform(-np.pi, np.pi)
    beta = 1.0
    if shaped:  # as often below 1 as above
        low, high = _BETAS[shape]
        beta = dice.uniform(low, 1) if dice.random() < 0.5 else dice.uniform(1, high)
    return Blur("gaussian" if shape == "gaussian" else "plateau", size, sigma, angle, beta)


def _factor(stage: Stage, dice: np.random.Generator) -> float:
    if stage.resize is None:
        return 1.0
    kind = int(dice.choice(3, p=stage.resize))
    low, high = stage.factors
    return (dice.uniform(1, high), dice.uniform(low, 1), 1.0)[kind]


def _noise(stage: Stage, dice: np.random.Generator) -> GaussianNoise | PoissonNoise:
    grey = bool(dice.random() < _GREY)
    seed = int(dice.integers(2**53))  # JSON's numbers are exact up to there
    if dice.random() < _GAUSSIAN:
        return GaussianNoise(dice.uniform(*stage.sigma_noise), grey, seed)
    return PoissonNoise(dice.uniform(*stage.scale), grey, seed)


def _sample(chosen: Render, dice: np.random.Generator, factor: float) -> Sample:
    step = round(1 / factor)
    if abs(step * factor - 1) > 1e-9 or step not in chosen.width:
        wanted = ", ".join(f"1/{step}" for step in chosen.width)
        raise DataError(f"render was measured for LR of {wanted} the size, not {factor:g}")
    width, edge = dice.uniform(*chosen.width[step]), dice.uniform(*chosen.edge[step])
    return Sample(step, width, edge, int(dice.integers(4)))


def _choice(dice: np.random.Generator, values: tuple[_T, ...]) -> _T:
    return values[int(dice.integers(len(values)))]
