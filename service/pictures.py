"""One picture on its way: header, limits, decode, model, encode. On a worker's thread.

Everything that can be refused is refused by the header, before anything is decoded. Reading,
alpha, grey and 16 bits are those of `overlay upscale`, so both give the same pictures.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engines import zoo
from engines.chroma import LUMA_RGB
from engines.errors import EngineError, UnknownModel
from overlay.errors import OverlayError
from overlay.files import enlarge, images, sixteen
from overlay.files.errors import FileError
from overlay.files.images import Picture, Pixels
from service.errors import Refused, Unavailable
from service.pool import ModelPool
from service.schemas import MEDIA, Format, Order
from service.workers import Stop

#: Largest result: its longer and its shorter side in pixels.
LONG, SHORT = 7680, 4320
_ENDINGS: dict[Format, str] = {
    "png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif", "bmp": ".bmp",
}  # fmt: skip
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
_QUALITY = 95
#: Chunks of a PNG that are looked at; more are not a picture's.
_MAX_CHUNKS = 1 << 16


@dataclass(slots=True)
class Timings:
    """Milliseconds of a request's stages, in order."""

    queue: float = 0.0
    decode: float = 0.0
    infer: float = 0.0
    encode: float = 0.0

    def items(self) -> list[tuple[str, float]]:
        """List the stages."""
        return [(name, getattr(self, name)) for name in ("queue", "decode", "infer", "encode")]


@dataclass(slots=True)
class Result:
    """An upscaled picture.

    Attributes:
        data: the file.
        media: its type.
        ending: of its name, ".png" say.
        model: that made it.
        device: that it ran on.
        source, size: (width, height) before and after.
        timings: how long it took.
    """

    data: bytes
    media: str
    ending: str
    model: str
    device: str
    source: tuple[int, int]
    size: tuple[int, int]
    timings: Timings = field(default_factory=Timings)


def upscale(
    data: bytes,
    order: Order,
    pool: ModelPool,
    scale_of: Callable[[str], int],
    stop: Stop,
    queued_ms: float = 0.0,
) -> Result:
    """Upscale a file.

    Args:
        data: the file.
        order: complete: model and format are given.
        pool: of models.
        scale_of: tells the scale of a model, and raises Refused if it may not be used.
        stop: tells whether the result is still wanted.
        queued_ms: how long it has waited.
    Raises:
        Refused: it is no such picture, the result would be too large, or the format cannot hold
            it.
        Unavailable: the model cannot do it now.
    """
    timings = Timings(queue=queued_ms)
    clock = _Clock()
    try:
        plan = Plan.of(header_size(data), order, scale_of)
        picture = images.decoded(data, Path("the picture"))
        plan = Plan.of(picture.size, order, scale_of)  # a camera's picture may have been turned
        name, target = plan.model, plan.target
        ending = _ENDINGS[order.format or "png"]
        images.check_target(*target, images.transparent(picture), Path(f"the result{ending}"))
    except (FileError, EngineError) as exc:
        raise Refused(str(exc)) from exc
    timings.decode = clock.lap_ms()
    stop()
    try:
        with pool.lease(name, stop) as model:
            timings.queue += clock.lap_ms()
            large = _enlarged(
                picture, target, lambda rgb: model.upscale(rgb, seed=order.seed or 0, progress=stop)
            )
            device = model.device
    except (EngineError, OverlayError) as exc:
        raise Unavailable(f"{name} cannot do it: {exc}") from exc
    timings.infer = clock.lap_ms()
    stop()
    encoded = encode(large, order.format or "png", order.quality or _QUALITY)
    timings.encode = clock.lap_ms()
    media = MEDIA[order.format or "png"]
    return Result(encoded, media, ending, name, device, picture.size, large.size, timings)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done with a picture of some size.

    Attributes:
        model: with its denoising strength.
        target: (width, height) of the result.
    """

    model: str
    target: tuple[int, int]

    @classmethod
    def of(cls, size: tuple[int, int], order: Order, scale_of: Callable[[str], int]) -> Plan:
        """Plan, see `upscale`.

        Raises:
            Refused: the model may not be used, or the result would be too large.
            EngineError: the model takes no denoising strength.
        """
        wish = wish_of(order)
        model = enlarge.model_name(wish, size)
        scale = scale_of(model)
        target = enlarge.result_size(wish, size, scale)
        check_output(target)
        check_output((size[0] * scale, size[1] * scale))
        return cls(_one_spelling(model), target)


def _one_spelling(model: str) -> str:
    """Name a row as the zoo does, so that a model is opened and counted once."""
    plain, at, strength = model.partition("@")
    try:
        return zoo.spec(plain).id + at + strength
    except UnknownModel:  # another back end's
        return model


class _Clock:
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap_ms(self) -> float:
        """Give the milliseconds since the last call."""
        last, self._last = self._last, time.perf_counter()
        return 1e3 * (self._last - last)


def wish_of(order: Order) -> enlarge.Wish:
    """Give an order as `overlay upscale` takes it.

    Raises:
        Refused: it contradicts itself.
    """
    model = enlarge.DEFAULT if order.model is None else order.model
    if "@" in model:
        raise Refused(f"config {model!r} is not supported: say its strength as denoise")
    target = None
    if (order.width is None) != (order.height is None):
        raise Refused("width and height go together")
    if order.width is not None and order.height is not None:
        if order.outscale is not None:
            raise Refused("say either outscale, or width and height")
        target = (order.width, order.height)
    return enlarge.Wish(
        model, order.outscale or 0.0, target,
        seed=order.seed or 0, denoise=order.denoise,
    )  # fmt: skip


def check_output(size: tuple[int, int]) -> None:
    """Check the size of a result.

    Raises:
        Refused: it is too large.
    """
    if max(size) > LONG or min(size) > SHORT:
        raise Refused(
            f"potential output resolution ({size[1]}, {size[0]}) is too large, max "
            f"({SHORT}, {LONG}): send a smaller picture, or choose a smaller scale"
        )


def header_size(data: bytes) -> tuple[int, int]:
    """Read (width, height) from the header; nothing is decoded.

    Raises:
        Refused: it is no picture that is read, or something else is hidden behind it.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            size, kind = image.size, image.format
    except Image.DecompressionBombError as exc:
        raise Refused(f"the picture is too large: {exc}") from exc
    except Exception as exc:  # decoders of hostile files raise whatever they run into
        raise Refused(
            "incorrect img object: the file is no PNG, JPEG, WebP, TIFF, BMP or GIF that can be "
            "read"
        ) from exc
    if kind == "PNG" and _png_end(data) != len(data):
        raise Refused("the PNG is cut off, or something else follows it: save it again")
    return size


def _png_end(data: bytes) -> int:
    """Tell where a PNG's last chunk ends; -1 if it has none."""
    at = len(sixteen.PNG_SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        if at + 12 > len(data):
            return -1
        length = int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        at += 12 + length
        if name == b"IEND":
            return at
    return -1


# The next does what `overlay.files.enlarge.enlarged` does, with a model from the pool; a test holds
# it to that.


def _enlarged(picture: Picture, size: tuple[int, int], run: Callable[[Pixels], Pixels]) -> Picture:
    rgb: Any = np.repeat(picture.colour[..., None], 3, 2) if picture.grey else picture.colour
    if images.transparent(picture):
        rgb = enlarge._bled(rgb, picture.alpha)
    large = enlarge.resized(run(rgb), size, Image.Resampling.LANCZOS)
    if picture.grey:
        large = enlarge._levels(large.astype(np.float32) @ LUMA_RGB, large)
    alpha = picture.alpha
    if alpha is not None:
        alpha = enlarge.resized(alpha, size, Image.Resampling.BICUBIC)
    return Picture(large, alpha, picture.icc, picture.exif)


def encode(picture: Picture, format: Format, quality: int) -> bytes:
    """Encode a picture; PNG with little compression, as most of the time goes there.

    Raises:
        Refused: the format cannot hold it.
    """
    kind = images.FORMATS[_ENDINGS[format]]
    try:
        if kind != "PNG" or picture.colour.dtype == np.uint16:
            return images.encoded(picture, Path(f"the result{_ENDINGS[format]}"), quality)
        exif = images._exif_bytes(picture, kind)
        file = io.BytesIO()
        image = Image.fromarray(images._eight(images._joined(picture)))
        image.save(file, "PNG", compress_level=1, icc_profile=picture.icc or None, exif=exif)
        return file.getvalue()
    except (FileError, OSError, ValueError) as exc:
        raise Refused(f"the result cannot be made: {exc}") from exc
    except MemoryError as exc:
        raise Unavailable("too little memory to encode the result") from exc
