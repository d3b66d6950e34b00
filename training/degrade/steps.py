"""The steps of a degradation: pure functions with their parameters, that a manifest can hold.

Pictures are float32 BGR (H, W, 3), 0..1; none is modified. What is random in a step is its seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from training.degrade import kernels
from training.errors import DataError

Picture = NDArray[np.float32]
Size = tuple[int, int]
Mode = Literal["area", "bilinear", "bicubic"]

#: BT.601, of B, G, R.
_LUMA = np.array([0.114, 0.587, 0.299], np.float32)
_MODES = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


@dataclass(frozen=True, slots=True)
class Blur:
    """A Gaussian (`shape` "gaussian", any `beta`) or plateau kernel; see `kernels`."""

    kind: ClassVar[str] = "blur"
    shape: Literal["gaussian", "plateau"]
    size: int
    sigma: tuple[float, float]
    angle: float = 0.0
    beta: float = 1.0

    def apply(self, picture: Picture, original: Size) -> Picture:
        """Blur, mirrored at the borders."""
        make = kernels.gaussian if self.shape == "gaussian" else kernels.plateau
        return _filtered(picture, make(self.size, self.sigma, self.angle, self.beta))


@dataclass(frozen=True, slots=True)
class Sinc:
    """The circular low-pass of `kernels.sinc`: ringing and overshoot."""

    kind: ClassVar[str] = "sinc"
    size: int
    cutoff: float

    def apply(self, picture: Picture, original: Size) -> Picture:
        """Filter, mirrored at the borders."""
        return _filtered(picture, kernels.sinc(self.size, self.cutoff))


@dataclass(frozen=True, slots=True)
class Resize:
    """Resize to `factor` times the original, not the current, size; cv2's, not anti-aliased."""

    kind: ClassVar[str] = "resize"
    mode: Mode
    factor: float

    def apply(self, picture: Picture, original: Size) -> Picture:
        """Resize; a bicubic's overshoot is kept."""
        size = scaled(original, self.factor)
        return cv2.resize(picture, size, interpolation=_MODES[self.mode]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class GaussianNoise:
    """Normal noise of standard deviation `sigma`, of 255; `grey`: the same in all channels."""

    kind: ClassVar[str] = "gaussian-noise"
    sigma: float
    grey: bool
    seed: int

    def apply(self, picture: Picture, original: Size) -> Picture:
        """Add it and clamp."""
        dice = np.random.default_rng(self.seed)
        channels = 1 if self.grey else picture.shape[2]
        noise = dice.standard_normal((*picture.shape[:2], channels), np.float32)
        return _clamped(picture + noise * np.float32(self.sigma / 255))


@dataclass(frozen=True, slots=True)
class PoissonNoise:
    """Shot noise, `scale` times as strong: variance scale^2 * value / levels.

    `levels` is the number of different 8-bit values in the picture, rounded up to a power of two
    (the paper's code), nearly always 256. `grey`: that of the luma, in all channels.
    """

    kind: ClassVar[str] = "poisson-noise"
    scale: float
    grey: bool
    seed: int

    def apply(self, picture: Picture, original: Size) -> Picture:
        """Add it and clamp."""
        dice = np.random.default_rng(self.seed)
        clean = _clamped(picture)
        if self.grey:
            clean = cv2.cvtColor(clean, cv2.COLOR_BGR2GRAY)[..., None].astype(np.float32)
        whole = rounded(clean)
        levels = 2.0 ** np.ceil(np.log2(np.count_nonzero(np.bincount(whole.ravel()))))
        value = whole / 255
        noise = dice.poisson(value * levels) / levels - value
        return _clamped(picture + (noise * self.scale).astype(np.float32))


@dataclass(frozen=True, slots=True)
class Jpeg:
    """JPEG of a `quality` of 1 to 100, chroma halved in both directions."""

    kind: ClassVar[str] = "jpeg"
    quality: int

    def apply(self, picture: Picture, original: Size) -> Picture:
        """Encode and decode."""
        options = [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        done, data = cv2.imencode(".jpg", rounded(picture), options)
        assert done
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None
        return from_bytes(decoded.astype(np.uint8, copy=False))


@dataclass(frozen=True, slots=True)
class Sample:
    """What a render at `1/step` of the size shows instead: the imitation of `render`.

    Surfaces come from a smaller mip level, filtered: the mean over a box of `width` LR pixels.
    Edges of geometry are not filtered at all: where the HR pixels about an LR pixel differ by
    more than `edge`, one HR pixel is taken (see `pointed`).
    """

    kind: ClassVar[str] = "sample"
    step: int
    width: float
    edge: float
    prefer: int

    def apply(self, picture: Picture, original: Size) -> Picture:
        """Sample; the picture must be a whole multiple of `step`."""
        if picture.shape[0] % self.step or picture.shape[1] % self.step:
            raise DataError(
                f"{picture.shape[1]}x{picture.shape[0]} cannot be sampled at every {self.step}th "
                "pixel; crop it to a multiple"
            )
        surface = boxed(picture, self.step, self.width)
        point = pointed(picture, self.step, self.prefer)
        mask = contrast(picture, self.step) > self.edge
        return np.where(mask[..., None], point, surface)


Step = Blur | Sinc | Resize | GaussianNoise | PoissonNoise | Jpeg | Sample
_STEPS: tuple[type[Step], ...] = (Blur, Sinc, Resize, GaussianNoise, PoissonNoise, Jpeg, Sample)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that is done to one picture, in order; equal recipes give equal pixels."""

    preset: str
    steps: tuple[Step, ...]

    def as_json(self) -> dict[str, Any]:
        """Give what `recipe_from_json` reads."""
        return {
            "preset": self.preset,
            "steps": [{"kind": step.kind, **asdict(step)} for step in self.steps],
        }


def recipe_from_json(data: Mapping[str, Any]) -> Recipe:
    """Read a recipe from a manifest.

    Raises:
        DataError: it is none.
    """
    kinds = {step.kind: step for step in _STEPS}
    try:
        steps = []
        for item in data["steps"]:
            values = {key: value for key, value in item.items() if key != "kind"}
            if "sigma" in values and isinstance(values["sigma"], list):
                values["sigma"] = tuple(values["sigma"])
            steps.append(kinds[item["kind"]](**values))
        return Recipe(str(data["preset"]), tuple(steps))
    except (KeyError, TypeError, AttributeError) as exc:
        raise DataError(f"no recipe of a degradation: {exc!r}; degrade the frames again") from exc


def apply(picture: Picture, recipe: Recipe) -> Picture:
    """Degrade a picture.

    Args:
        picture: float32 BGR (H, W, 3), 0..1; not modified.
        recipe: from `draw`.
    Returns:
        float32 BGR (h, w, 3), 0..1, of the size that the recipe ends with.
    """
    original = (picture.shape[1], picture.shape[0])
    for step in recipe.steps:
        picture = step.apply(picture, original)
    return _clamped(picture)


def from_bytes(picture: NDArray[np.uint8]) -> Picture:
    """Bring uint8 to float32, 0..1."""
    return picture.astype(np.float32) / np.float32(255)


def rounded(picture: Picture) -> NDArray[np.uint8]:
    """Bring 0..1 to uint8: clamped, and rounded to the nearest value."""
    return np.rint(_clamped(picture) * 255).astype(np.uint8)


def scaled(size: Size, factor: float) -> Size:
    """Give `factor` times a size, (width, height), rounded, at least 1x1."""
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def boxed(picture: Picture, step: int, width: float) -> Picture:
    """Take the mean over a box of `width` LR pixels about the middle of every LR pixel.

    Args:
        picture: float32 (H, W) or (H, W, C); mirrored at the borders.
        step: HR pixels to an LR pixel; a width of 1 is the area-averaged picture.
    """
    # The middle of an LR pixel's HR pixels lies at (step - 1) / 2 from the first of them.
    reach = int(np.ceil((width + 1) * step))
    taps = np.arange(-reach, reach + 1)
    middle = (step - 1) / 2
    left = np.maximum(taps - 0.5, middle - width * step / 2)
    right = np.minimum(taps + 0.5, middle + width * step / 2)
    kernel = np.clip(right - left, 0, None)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    smooth = cv2.sepFilter2D(picture, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
    return np.ascontiguousarray(smooth[::step, ::step]).astype(np.float32, copy=False)


def pointed(picture: Picture, step: int, prefer: int = 0) -> Picture:
    """Take the one HR pixel that is most like the middle of every LR pixel.

    Where `step` is odd, that is the HR pixel in the middle. Where it is even, the middle lies
    between four, of which one is nearest in luma to the other three: the side of an edge on which
    the middle lies. `prefer` (0 to 3) decides between two and two.
    """
    if step % 2:
        return np.ascontiguousarray(picture[step // 2 :: step, step // 2 :: step])
    near = (step // 2 - 1, step // 2)
    places = [(near[(prefer >> 1 & 1) ^ down], near[(prefer & 1) ^ right])
              for down in (0, 1) for right in (0, 1)]  # fmt: skip
    four = np.stack([picture[row::step, column::step] for row, column in places])
    luma = np.rint((four @ _LUMA if four.ndim == 4 else four) * 255)  # [4, h, w]
    far = np.abs(luma[:, None] - luma[None]).sum(axis=1)
    best = np.argmin(far, axis=0)[None]
    best = best[..., None] if four.ndim == 4 else best
    taken: Picture = np.take_along_axis(four, best, axis=0)[0]
    return taken


def contrast(picture: Picture, step: int) -> Picture:
    """Largest difference of luma, (h, w), 0..1, among the HR pixels of an LR pixel and the next."""
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) if picture.ndim == 3 else picture
    square = np.ones((step + 1, step + 1), np.uint8)
    most, least = (how(grey, square, anchor=(0, 0)) for how in (cv2.dilate, cv2.erode))
    return (most - least)[::step, ::step].astype(np.float32)


def _filtered(picture: Picture, kernel: kernels.Kernel) -> Picture:
    blurred = cv2.filter2D(picture, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return blurred.astype(np.float32, copy=False)


def _clamped(picture: Picture) -> Picture:
    return np.clip(picture, 0, 1).astype(np.float32, copy=False)
