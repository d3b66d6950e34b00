"""Kernels, noise, JPEG and recipes against their closed forms."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import cache

import cv2
import numpy as np
import pytest

from training.degrade.kernels import bessel_j1, gaussian, plateau, sinc
from training.degrade.presets import PRESETS, draw, generator
from training.degrade.steps import (
    Blur,
    GaussianNoise,
    Jpeg,
    Picture,
    PoissonNoise,
    Recipe,
    Resize,
    Sample,
    Sinc,
    Step,
    apply,
    boxed,
    contrast,
    pointed,
    recipe_from_json,
    rounded,
)
from training.errors import DataError

SIZE = (64, 48)


def flat(value: float, side: int = 200) -> Picture:
    return np.full((side, side, 3), value, np.float32)


def noisy(seed: int = 0, side: int = 48) -> Picture:
    return np.random.default_rng(seed).random((side, side, 3), np.float32)


def moments(kernel: np.ndarray) -> tuple[float, float, float]:
    """Variances to the right and down, and the covariance."""
    axis = np.arange(len(kernel)) - len(kernel) // 2
    x, y = np.meshgrid(axis, axis)
    return (kernel * x * x).sum(), (kernel * y * y).sum(), (kernel * x * y).sum()


# --- kernels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kernel",
    [
        gaussian(7, (0.2, 0.2)),
        gaussian(21, (3.0, 0.7), 0.4, 0.5),
        plateau(15, (2.0, 1.0), 1.1, 2.0),
        sinc(21, 1.0),
        sinc(7, np.pi),
    ],
)
def test_kernels_sum_to_one_and_are_symmetric(kernel: np.ndarray) -> None:
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    assert np.allclose(kernel, kernel[::-1, ::-1], atol=1e-15)


def test_gaussian_has_its_moments() -> None:
    across = moments(gaussian(41, (3.0, 1.5)))
    assert across == pytest.approx((9, 2.25, 0), abs=1e-3)
    angle = 0.5  # rotation of diag(9, 2.25)
    c, s = np.cos(angle), np.sin(angle)
    turned = (9 * c * c + 2.25 * s * s, 9 * s * s + 2.25 * c * c, (9 - 2.25) * c * s)
    assert moments(gaussian(41, (3.0, 1.5), angle)) == pytest.approx(turned, abs=1e-3)


def test_gaussian_equals_opencvs() -> None:
    line = cv2.getGaussianKernel(21, 2.5)
    assert np.allclose(gaussian(21, (2.5, 2.5)), line @ line.T, atol=1e-12)


def test_beta_shapes_the_top() -> None:
    plain = gaussian(21, (2, 2), beta=1.0)
    assert np.array_equal(plain, gaussian(21, (2, 2)))
    middle = 10
    # The ratio of two taps is exp(-q^beta / 2), q = (4/2)^2 = 4 at four pixels.
    for beta in (0.5, 1.0, 2.0):
        kernel = gaussian(21, (2, 2), beta=beta)
        assert kernel[middle, middle + 4] / kernel[middle, middle] == pytest.approx(
            np.exp(-(4**beta) / 2)
        )


def test_plateau_is_its_rational() -> None:
    kernel = plateau(21, (2, 1), beta=1.5)
    ratios = kernel[10, 12] / kernel[10, 10], kernel[12, 10] / kernel[10, 10]
    assert ratios == pytest.approx((1 / (1 + 1), 1 / (1 + 4**1.5)))
    wide = plateau(21, (6, 6), beta=4.0)
    assert wide[10, 13] / wide[10, 10] > 0.99  # flat within half of sigma
    assert wide[10, 19] / wide[10, 10] < 0.05


def test_bessel_function() -> None:
    x = np.array([0.0, 1.0, 3.8317059702075125, 10.0, 44.0])
    expected = [0, 0.44005058574493355, 0, 0.04347274616886144]
    assert bessel_j1(x)[:4] == pytest.approx(expected, abs=1e-12)
    special = pytest.importorskip("scipy.special")
    many = np.linspace(0, 70, 500)
    assert bessel_j1(many) == pytest.approx(special.j1(many), abs=1e-12)


@pytest.mark.parametrize("cutoff", [np.pi / 3, np.pi / 2, 2.5])
def test_sinc_cuts_off_at_its_frequency(cutoff: float) -> None:
    response = np.abs(np.fft.rfft2(sinc(201, cutoff), (512, 512)))[0]
    frequency = np.linspace(0, np.pi, len(response))
    passed, stopped = response[frequency < cutoff - 0.1], response[frequency > cutoff + 0.1]
    assert passed == pytest.approx(1, abs=0.07)
    assert stopped == pytest.approx(0, abs=0.06)
    half = frequency[np.argmax(response < 0.5)]
    assert half == pytest.approx(cutoff, abs=0.02)


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="odd, not 8"):
        gaussian(8, (1, 1))


# --- steps ---------------------------------------------------------------------------------------


def test_blur_is_the_convolution() -> None:
    point = np.zeros((31, 31, 3), np.float32)
    point[15, 15] = 1
    step = Blur("gaussian", 9, (1.5, 0.8), 0.3)
    blurred = step.apply(point, (31, 31))
    assert np.allclose(blurred[11:20, 11:20, 1], gaussian(9, (1.5, 0.8), 0.3), atol=1e-7)
    assert blurred.dtype == np.float32
    assert np.allclose(
        Sinc(9, 2.0).apply(point, (31, 31))[11:20, 11:20, 0], sinc(9, 2.0), atol=1e-7
    )


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_resize_is_relative_to_the_original(mode: str) -> None:
    picture = noisy()
    first = Resize(mode, 0.75).apply(picture, SIZE)  # type: ignore[arg-type]
    again = Resize(mode, 0.75).apply(first, SIZE)  # type: ignore[arg-type]
    assert first.shape == again.shape == (36, 48, 3)
    ramp = np.repeat(np.linspace(0, 1, 48, dtype=np.float32)[None, :, None], 48, 0).repeat(3, 2)
    small = Resize(mode, 0.5).apply(ramp, (48, 48))  # type: ignore[arg-type]
    assert np.allclose(
        small[12, 2:-2, 0], (ramp[0, ::2, 0] + ramp[0, 1::2, 0])[2:-2] / 2, atol=1e-6
    )


@pytest.mark.parametrize("grey", [False, True])
def test_gaussian_noise_has_its_deviation(grey: bool) -> None:
    noise = GaussianNoise(20, grey, 5).apply(flat(0.5), SIZE) - 0.5
    assert float(noise.mean()) == pytest.approx(0, abs=0.001)
    assert float(noise.std()) == pytest.approx(20 / 255, rel=0.02)
    correlation = np.corrcoef(noise[..., 0].ravel(), noise[..., 2].ravel())[0, 1]
    assert correlation == pytest.approx(1.0 if grey else 0.0, abs=0.02)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_poisson_noise_grows_with_the_value(scale: float, grey: bool) -> None:
    values = np.linspace(0.1, 0.7, 200, dtype=np.float32)
    picture = np.broadcast_to(values[:, None, None], (200, 4000, 3)).astype(np.float32)
    noise = PoissonNoise(scale, grey, 3).apply(picture, SIZE) - picture
    levels = 256 if len(np.unique(np.rint(values * 255))) > 128 else 128
    expected = scale**2 * values / levels
    found = noise[..., 1].var(axis=1)
    assert float((found / expected).mean()) == pytest.approx(1, abs=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.001)
    correlation = np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]
    assert correlation == pytest.approx(1.0 if grey else 0.0, abs=0.02)


def test_poisson_levels_are_a_power_of_two_not_below_the_values() -> None:
    """As in the released code: three different values make four levels."""
    picture = flat(0.5, 300)
    picture[0, 0], picture[0, 1] = 0.2, 0.8
    noise = PoissonNoise(0.1, False, 4).apply(picture, SIZE)[1:] - np.float32(0.5)
    assert float(noise.var()) == pytest.approx(0.1**2 * 0.5 / 4, rel=0.02)


def test_a_blur_mirrors_the_border() -> None:
    assert Blur("gaussian", 9, (2, 2)).apply(flat(0.5, 20), SIZE) == pytest.approx(0.5, abs=1e-6)
    picture = noisy()
    mirrored = np.pad(picture, ((4, 4), (4, 4), (0, 0)), "reflect")
    step = Blur("gaussian", 9, (2, 1), 0.5)
    assert np.allclose(step.apply(picture, SIZE), step.apply(mirrored, SIZE)[4:-4, 4:-4], atol=1e-6)


def test_noise_is_clamped_and_repeats() -> None:
    for step in (GaussianNoise(30, False, 1), PoissonNoise(3, False, 1)):
        for value in (0.0, 1.0):
            made = step.apply(flat(value), SIZE)
            assert made.min() >= 0
            assert made.max() <= 1
            assert np.array_equal(made, step.apply(flat(value), SIZE))
    other = GaussianNoise(30, False, 2).apply(flat(0.5), SIZE)
    assert not np.array_equal(other, GaussianNoise(30, False, 1).apply(flat(0.5), SIZE))


def test_jpeg_loses_more_at_lower_quality() -> None:
    picture = cv2.GaussianBlur(noisy(side=128), (0, 0), 2)
    errors = [float(np.mean((Jpeg(q).apply(picture, SIZE) - picture) ** 2)) for q in (30, 60, 95)]
    assert errors[0] > 1.5 * errors[1]
    assert errors[1] > 1.5 * errors[2]
    assert errors[2] < 1e-4
    _, encoded = cv2.imencode(".jpg", rounded(picture), [cv2.IMWRITE_JPEG_QUALITY, 30])
    assert np.array_equal(rounded(Jpeg(30).apply(picture, SIZE)), cv2.imdecode(encoded, 1))


def test_colours_stay_in_their_order() -> None:
    blue = flat(0.0, 48)
    blue[..., 0] = 0.8
    steps = (Blur("plateau", 7, (1, 1)), Resize("area", 0.5), Jpeg(90))
    made = apply(blue, Recipe("none", steps))
    assert made.shape == (24, 24, 3)
    assert made.mean(axis=(0, 1)) == pytest.approx((0.8, 0, 0), abs=0.02)


def test_bytes_are_rounded() -> None:
    picture = np.array([[[0.4 / 255, 0.6 / 255, 254.6 / 255]], [[-1, 2, 0.5]]], np.float32)
    assert rounded(picture).tolist() == [[[0, 1, 255]], [[0, 255, 128]]]


# --- the imitated render -------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_box_of_one_pixel_is_the_area(step: int) -> None:
    picture = noisy()
    area = cv2.resize(picture, (48 // step, 48 // step), interpolation=cv2.INTER_AREA)
    assert np.allclose(boxed(picture, step, 1.0), area, atol=1e-6)
    rows = np.repeat(np.arange(48, dtype=np.float32)[:, None], 48, 1)
    middles = np.arange(48 // step) * step + (step - 1) / 2
    assert boxed(rows, step, 1.7)[2:-2, 5] == pytest.approx(middles[2:-2], abs=1e-4)


def test_a_point_is_the_pixel_on_the_side_of_the_middle() -> None:
    picture = noisy()
    assert np.array_equal(pointed(picture, 3), picture[1::3, 1::3])
    edge = np.zeros((8, 8, 3), np.float32)
    edge[:, 2:] = 1  # between the four middle pixels of the first LR pixel: two and two
    assert [pointed(edge, 4, prefer)[0, 0, 0] for prefer in range(4)] == [0, 1, 0, 1]
    assert [pointed(edge.swapaxes(0, 1), 4, p)[0, 0, 0] for p in range(4)] == [0, 0, 1, 1]
    edge[1, 2] = 0  # three and one
    assert [pointed(edge, 4, prefer)[0, 0, 0] for prefer in range(4)] == [0, 0, 0, 0]


def test_edges_are_sampled_and_surfaces_smoothed() -> None:
    picture = flat(0.5, 48) + 0.02 * noisy()
    picture[:, 22:] += 0.4  # a little right of the middle of an LR pixel
    made = Sample(4, 1.5, 0.2, 0).apply(picture, (48, 48))
    assert made.shape == (12, 12, 3)
    where = contrast(picture, 4) > 0.2
    assert where.all(axis=0).tolist() == [False] * 5 + [True] + [False] * 6
    assert np.array_equal(made[~where], boxed(picture, 4, 1.5)[~where])
    assert np.array_equal(made[where], pointed(picture, 4)[where])
    with pytest.raises(DataError, match="50x48 cannot be sampled at every 4th"):
        Sample(4, 1.5, 0.2, 0).apply(np.zeros((48, 50, 3), np.float32), (50, 48))


# --- recipes -------------------------------------------------------------------------------------

FACTORS = {"realesrgan": 1 / 4, "srgd-270p": 1 / 4, "srgd-360p": 1 / 3, "srgd-540p": 1 / 2,
           "render": 1 / 4}  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_recipes_are_of_seed_and_name(preset: str) -> None:
    def drawn(seed: int, name: str) -> Recipe:
        return draw(preset, generator(seed, name), FACTORS[preset])

    assert drawn(1, "a") == drawn(1, "a")
    assert drawn(1, "a") != drawn(1, "b")
    assert drawn(1, "a") != drawn(2, "a")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_recipe_survives_the_manifest(preset: str) -> None:
    picture = noisy(side=96)
    for number in range(5):
        recipe = draw(preset, generator(0, str(number)), FACTORS[preset])
        again = recipe_from_json(json.loads(json.dumps(recipe.as_json())))
        assert again == recipe
        made = apply(picture, recipe)
        side = round(96 * FACTORS[preset])
        assert made.shape == (side, side, 3)
        assert made.dtype == np.float32
        assert np.array_equal(made, apply(picture, again))


def test_a_broken_recipe_is_refused() -> None:
    for broken in ({}, {"preset": "x", "steps": [{"kind": "explode"}]},
                   {"preset": "x", "steps": [{"kind": "jpeg", "q": 1}]}):  # fmt: skip
        with pytest.raises(DataError, match="no recipe of a degradation"):
            recipe_from_json(broken)


@cache
def papers() -> list[Recipe]:
    return [draw("realesrgan", generator(0, str(n)), 1 / 4) for n in range(4000)]


def fills(values: Iterable[float], low: float, high: float) -> bool:
    """Whether values lie between the limits, and come near to both."""
    found, margin = np.array(list(values)), 0.05 * (high - low)
    inside = low <= found.min() and found.max() <= high
    return bool(inside and found.min() < low + margin and found.max() > high - margin)


def second_stage(recipe: Recipe) -> tuple[Step | None, Resize, Step]:
    """Give its blur, where it has one, its resize and its noise."""
    steps = recipe.steps[4:]
    blur = None if isinstance(steps[0], Resize) else steps[0]
    resize, noise = steps[blur is not None :][:2]
    assert isinstance(resize, Resize)
    return blur, resize, noise


def check_noise(steps: list[Step], sigma: tuple[float, float], scale: tuple[float, float]) -> None:
    gaussians = [step for step in steps if isinstance(step, GaussianNoise)]
    poissons = [step for step in steps if isinstance(step, PoissonNoise)]
    assert len(gaussians) + len(poissons) == len(steps)
    assert len(gaussians) / len(steps) == pytest.approx(0.5, abs=0.06)
    assert sum(noise.grey for noise in (*gaussians, *poissons)) / len(steps) == pytest.approx(
        0.4, abs=0.06
    )
    assert fills((noise.sigma for noise in gaussians), *sigma)
    assert fills((noise.scale for noise in poissons), *scale)


def test_the_papers_second_stage() -> None:
    blurs, resizes, noises = zip(*map(second_stage, papers()), strict=True)
    assert sum(blur is not None for blur in blurs) / 4000 == pytest.approx(0.8, abs=0.03)
    kernels = [blur for blur in blurs if isinstance(blur, Blur)]
    assert fills((sigma for blur in kernels for sigma in blur.sigma), 0.2, 1.5)
    factors = np.array([resize.factor for resize in resizes]) / 0.25
    shares = [(factors > 1).mean(), (factors < 1).mean(), (factors == 1).mean()]
    assert shares == pytest.approx([0.3, 0.4, 0.3], abs=0.03)
    assert fills(factors, 0.3, 1.2)
    check_noise(list(noises), (1, 25), (0.05, 2.5))
    check_noise([recipe.steps[2] for recipe in papers()], (1, 30), (0.05, 3))


def test_the_papers_kernels_and_jpegs() -> None:
    for at in (0, 1):
        jpegs = [[step for step in r.steps if isinstance(step, Jpeg)][at] for r in papers()]
        assert fills((jpeg.quality for jpeg in jpegs), 30, 95)
    first = [recipe.steps[0] for recipe in papers()]
    sincs = [step for step in first if isinstance(step, Sinc)]
    assert fills((s.cutoff for s in sincs if s.size < 13), np.pi / 3, np.pi)
    assert fills((s.cutoff for s in sincs if s.size >= 13), np.pi / 5, np.pi)
    last = [step for r in papers() for step in r.steps[6:] if isinstance(step, Sinc)]
    assert fills((step.cutoff for step in last), np.pi / 3, np.pi)
    blurs = [step for step in first if isinstance(step, Blur)]
    assert fills((sigma for blur in blurs for sigma in blur.sigma), 0.2, 3)
    turned = [blur for blur in blurs if blur.sigma[0] != blur.sigma[1]]
    assert fills((blur.angle for blur in turned), -np.pi, np.pi)
    ratios = [blur.sigma[1] / blur.sigma[0] for blur in turned]
    assert min(ratios) < 0.5 < 2 < max(ratios)
    betas = np.array([b.beta for b in blurs if b.shape == "gaussian" and b.beta != 1])
    assert fills(betas, 0.5, 4)
    assert (betas < 1).mean() == pytest.approx(0.5, abs=0.06)
    betas = np.array([b.beta for b in blurs if b.shape == "plateau"])
    assert fills(betas, 1, 2)
    assert (betas == 1).mean() == pytest.approx(0.5, abs=0.06)  # as in the released code


def test_the_papers_probabilities() -> None:
    recipes = papers()
    first = Counter(recipe.steps[0].kind for recipe in recipes)
    assert first["sinc"] / 4000 == pytest.approx(0.1, abs=0.02)
    blurs = [recipe.steps[0] for recipe in recipes if isinstance(recipe.steps[0], Blur)]
    isotropic = sum(blur.sigma[0] == blur.sigma[1] for blur in blurs) / len(blurs)
    plateaus = sum(blur.shape == "plateau" for blur in blurs) / len(blurs)
    assert (isotropic, plateaus) == pytest.approx((0.45 + 0.12 + 0.12, 0.15), abs=0.03)
    assert all(0.2 <= blur.sigma[0] <= 3 and 7 <= blur.size <= 21 for blur in blurs)
    resizes = [recipe.steps[1] for recipe in recipes]
    factors = np.array([step.factor for step in resizes if isinstance(step, Resize)])
    shares = [(factors > 1).mean(), (factors < 1).mean(), (factors == 1).mean()]
    assert shares == pytest.approx([0.2, 0.7, 0.1], abs=0.03)
    assert factors.min() >= 0.15
    assert factors.max() <= 1.5
    gaussians = sum(isinstance(recipe.steps[2], GaussianNoise) for recipe in recipes) / 4000
    assert gaussians == pytest.approx(0.5, abs=0.03)
    ends = Counter(recipe.steps[-1].kind for recipe in recipes)
    # JPEG last in half; else the sinc in 0.8 of the rest, and the resize where there is none.
    shares = [ends[kind] / 4000 for kind in ("jpeg", "sinc", "resize")]
    assert shares == pytest.approx([0.5, 0.4, 0.1], abs=0.03)


@pytest.mark.parametrize(
    ("height", "size", "sigma", "scale", "quality"),
    [
        (270, 21, ((12, 20), (12, 17)), ((1.0, 1.3), (1.0, 1.2)), 60),
        (360, 15, ((5, 11), (5, 9)), ((0.6, 1.0), (0.6, 0.9)), 75),
        (540, 9, ((5, 9), (5, 7)), ((0.4, 0.8), (0.4, 0.7)), 90),
    ],
)
def test_the_seeds_parameters(
    height: int,
    size: int,
    sigma: tuple[tuple[float, float], ...],
    scale: tuple[tuple[float, float], ...],
    quality: int,
) -> None:
    preset, factor = f"srgd-{height}p", height / 1080
    recipes = [draw(preset, generator(1, str(n)), factor) for n in range(600)]
    for stage, most in ((0, 3.0), (1, 1.5)):
        blurs, _, noises, jpegs = (
            [recipe.steps[4 * stage + step] for recipe in recipes] for step in range(4)
        )
        assert {blur.size for blur in blurs} == {size}  # type: ignore[union-attr]
        assert fills((s for b in blurs if isinstance(b, Blur) for s in b.sigma), 0.2, most)
        assert set(jpegs) == {Jpeg(quality)}
        check_noise(noises, sigma[stage], scale[stage])


def test_the_seeds_order_and_parameters() -> None:
    for number in range(200):
        recipe = draw("srgd-360p", generator(3, str(number)), 1 / 3)
        blur, resize, noise, jpeg, blur2, resize2, noise2, jpeg2 = recipe.steps
        assert (blur.kind in ("blur", "sinc"), blur2.kind in ("blur", "sinc")) == (True, True)
        assert (blur.size, blur2.size) == (15, 15)  # type: ignore[union-attr]
        assert (jpeg, jpeg2) == (Jpeg(75), Jpeg(75))
        assert isinstance(resize, Resize)
        assert isinstance(resize2, Resize)
        assert resize.mode in ("area", "bilinear")
        assert (resize.factor, resize2.factor) == pytest.approx((2 / 3, 1 / 3))
        if isinstance(noise, GaussianNoise):
            assert 5 <= noise.sigma <= 11
        if isinstance(noise2, PoissonNoise):
            assert 0.6 <= noise2.scale <= 0.9


@pytest.mark.parametrize(
    ("preset", "factor", "message"),
    [
        ("none", 0.25, "no preset 'none'; there are realesrgan"),
        ("realesrgan", 2.0, "smaller than HR"),
        ("render", 0.3, "1/2, 1/3, 1/4 the size, not 0.3"),
    ],
)
def test_what_cannot_be_drawn(preset: str, factor: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        draw(preset, generator(0, "a"), factor)
