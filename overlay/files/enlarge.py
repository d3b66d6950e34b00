"""A small picture to a large one: the model, then a filter for what is left."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines import load, zoo
from engines.chroma import LUMA_RGB
from engines.offline import Backend, OfflineModel, Progress, open_offline
from overlay.files.errors import FileError
from overlay.files.images import Picture, Pixels, check_target, transparent

#: The name that chooses among the shipped nets.
DEFAULT = "default"
#: Width in pixels of the neighbourhood from which invisible pixels take their colour.
_BLEED = 9


@dataclass(frozen=True, slots=True)
class Wish:
    """How to upscale.

    Attributes:
        model: as `engines.offline.open_offline` takes it, or `DEFAULT`.
        outscale: result size / source size; 0 = the model's.
        target: (width, height) within which the result is to fit, or None.
        tile: width and height of tiles in source pixels; 0 = by free memory.
        seed, device, backend: see `open_offline` and `OfflineModel.upscale`.
        denoise: strength for a model that takes one, see `engines.load.with_strength`; None = the
            model's own.
    """

    model: str = DEFAULT
    outscale: float = 0.0
    target: tuple[int, int] | None = None
    tile: int = 0
    seed: int = 0
    device: str = "auto"
    backend: Backend = "auto"
    denoise: float | None = None


def model_name(wish: Wish, size: tuple[int, int]) -> str:
    """Choose the model for a picture of `size`, (width, height).

    For `DEFAULT`, the shipped net of the smallest scale that reaches the wanted size, else x4;
    x4 too where no size is wanted.

    Raises:
        UnknownModel: a denoising strength is wanted of a model that takes none.
    """
    if wish.denoise is not None:
        return load.with_strength(wish.model, wish.denoise)
    if wish.model != DEFAULT:
        return wish.model
    if not wish.outscale and wish.target is None:
        return "default-x4"
    return zoo.default_for(size, result_size(wish, size, 1)).id


def result_size(wish: Wish, size: tuple[int, int], scale: int) -> tuple[int, int]:
    """Tell the size of the result.

    Args:
        size: (width, height) of the source.
        scale: the model's.
    """
    width, height = size
    factor = wish.outscale or float(scale)
    if wish.target is not None:
        factor = min(wish.target[0] / width, wish.target[1] / height)
    return max(1, round(width * factor)), max(1, round(height * factor))


@lru_cache(maxsize=3)
def _opened(name: str, device: str, backend: Backend) -> OfflineModel:
    return open_offline(name, device=device, backend=backend)


def open_model(wish: Wish, size: tuple[int, int]) -> OfflineModel:
    """Open the model for a picture of `size`; the last ones stay open.

    Raises:
        EngineError: as `open_offline`.
    """
    return _opened(model_name(wish, size), wish.device, wish.backend)


def enlarged(
    picture: Picture, path: Path, wish: Wish, progress: Progress = lambda fraction: None
) -> Picture:
    """Upscale a picture.

    Colours go through the model, alpha through a bicubic filter; invisible pixels take the colours
    of their neighbours first, so that nothing shows at edges. Grey goes through as grey RGB.

    Args:
        picture: not modified.
        path: where it is to be written.
    Returns:
        A picture of the same type and the same metadata.
    Raises:
        FileError: the result would be too large, or the format cannot hold it.
        EngineError: the model cannot do it on this machine.
    """
    model = open_model(wish, picture.size)
    size = result_size(wish, picture.size, model.scale)
    check_target(*size, transparent(picture), path)
    whole = picture.size[0] * model.scale, picture.size[1] * model.scale
    check_target(*whole, False, path.with_suffix(".png"))
    rgb: Any = np.repeat(picture.colour[..., None], 3, 2) if picture.grey else picture.colour
    if transparent(picture):
        rgb = _bled(rgb, picture.alpha)
    try:
        large: Pixels = model.upscale(rgb, seed=wish.seed, chunk=wish.tile, progress=progress)
    except ValueError as exc:  # a tile of a size that the model does not take, say
        raise FileError(f"{path}: {exc}") from exc
    large = resized(large, size, Image.Resampling.LANCZOS)
    if picture.grey:
        large = _levels(large.astype(np.float32) @ LUMA_RGB, large)
    alpha = picture.alpha
    if alpha is not None:
        alpha = resized(alpha, size, Image.Resampling.BICUBIC)
    return Picture(large, alpha, picture.icc, picture.exif)


def _bled(rgb: Pixels, alpha: Pixels | None) -> Pixels:
    """Give fully transparent pixels the mean colour of the visible ones around them."""
    assert alpha is not None
    seen = (alpha > 0).astype(np.float32)
    kernel = (_BLEED, _BLEED)
    total = cv2.blur(rgb.astype(np.float32) * seen[..., None], kernel)
    weight = cv2.blur(seen, kernel)
    filled = _levels((total / np.maximum(weight, 1e-6)[..., None]).astype(np.float32), rgb)
    taken = (alpha == 0) & (weight > 1e-4)
    result: Pixels = np.where(taken[..., None], filled, rgb)
    return result


def resized(pixels: Pixels, size: tuple[int, int], kernel: Image.Resampling) -> Pixels:
    """Resample (H, W) or (H, W, C) with Pillow's filters, which average where they shrink.

    Channel by channel in float, so that 16 bits stay.

    Args:
        size: (width, height) of the result.
    """
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    done = np.empty((size[1], size[0], planes.shape[2]), pixels.dtype)
    for channel in range(planes.shape[2]):
        plane = Image.fromarray(planes[..., channel].astype(np.float32))
        done[..., channel] = _levels(np.asarray(plane.resize(size, kernel), np.float32), pixels)
    return cast("Pixels", done[..., 0] if pixels.ndim == 2 else done)


def _levels(values: NDArray[np.float32], like: Pixels) -> Pixels:
    """Round to whole levels of the type that another array has."""
    clipped = np.rint(values).clip(0, np.iinfo(like.dtype).max)
    return cast("Pixels", clipped.astype(like.dtype))
