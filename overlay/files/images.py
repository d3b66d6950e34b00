"""One picture and what belongs to it, read from a file and written to one.

8-bit pixels go through Pillow; so do the headers, the EXIF data and the colour profile of all.
Pillow has no 16-bit colour: OpenCV decodes that, and `sixteen` writes it. Nothing is decoded
before the size in the header was checked.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.frames import MAX_PIXELS
from overlay.errors import BackendUnavailable, TraceError
from overlay.files import sixteen
from overlay.files.batch import ENDINGS
from overlay.files.errors import FileError
from overlay.trace.atomic import write_atomically

try:
    from PIL import ExifTags, Image, UnidentifiedImageError
except ImportError as missing:
    raise BackendUnavailable(
        f"pictures in files need Pillow ({missing}): pip install 'sr-overlay[files]'"
    ) from missing

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

#: Endings of files that are read.
READ = ENDINGS["image"]
#: Ending of each format that is written, and Pillow's name for it.
FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF",
    ".tiff": "TIFF", ".bmp": "BMP",
}  # fmt: skip
#: Larger files are not read.
MAX_BYTES = 1 << 30
#: Larger results are not made: 1.6 GB of 8-bit RGB.
MAX_RESULT = 1 << 29
#: Longest side that a format can hold.
_MAX_SIDE = {"JPEG": 65500, "WEBP": 16383}
#: Formats without alpha, and with 16 bits.
_OPAQUE = ("JPEG", "BMP")
_DEEP = ("PNG", "TIFF")
#: Pillow's modes with more than 8 bits, and those for which there is no way through RGB.
_WIDE = ("I;16", "I;16B", "I;16L", "I;16N")
_FOREIGN = {"CMYK": "CMYK", "LAB": "Lab", "YCbCr": "YCbCr", "I": "32-bit", "F": "floating-point"}
_PILLOW = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")  # JPEG also opens MPO
_BITS_PER_SAMPLE = 258
#: Tags of a TIFF that say something about the picture, not about how it is stored.
_ABOUT = (
    ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model,
    ExifTags.Base.Software, ExifTags.Base.DateTime, ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)  # fmt: skip


@dataclass(slots=True)
class Picture:
    """A picture, upright.

    Attributes:
        colour: uint8 or uint16, (H, W, 3) RGB, or (H, W) grey.
        alpha: (H, W) of the same type, or None.
        icc: colour profile, or b"".
        exif: what a camera noted, orientation 1.
    """

    colour: Pixels
    alpha: Pixels | None = None
    icc: bytes = b""
    exif: Image.Exif | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.colour.shape[1], self.colour.shape[0]

    @property
    def grey(self) -> bool:
        """Whether there is one channel of colour."""
        return self.colour.ndim == 2


# --- reading -------------------------------------------------------------------------------------


def read(path: Path) -> Picture:
    """Read a picture and turn it upright.

    Raises:
        FileError: it cannot be read, is damaged, too large, of several frames, or no such picture.
    """
    return decoded(content(path), path)


def decoded(data: bytes, path: Path) -> Picture:
    """Decode a picture and turn it upright.

    Args:
        data: content of a file.
        path: of the file, for messages.
    Raises:
        FileError: as `read`.
    """
    try:
        # Pillow warns of odd metadata, and of large pictures.
        with warnings.catch_warnings(action="ignore"), _opened(data, path) as image:
            _check(image, path)
            deep = _depth(image, data) == 16
            tiff = image.format == "TIFF"
            exif = _exif(image) if tiff else None
            image.load()  # OpenCV would give what it has of a truncated file
            exif = exif if tiff else _exif(image)  # a PNG's may lie behind the pixels
            icc = image.info.get("icc_profile") or b""
            picture = _deep(data, path) if deep else _shallow(image)
    except FileError:
        raise
    except MemoryError as exc:
        raise FileError(f"{path}: too little memory to read it") from exc
    except Exception as exc:  # decoders of hostile files raise whatever they run into
        raise FileError(f"{path} is damaged: {_line(exc)}") from exc
    picture.icc, picture.exif = icc, exif
    return _upright(picture, done=tiff)


def content(path: Path) -> bytes:
    """Read a file as it is.

    Raises:
        FileError: it cannot be read, or is too large.
    """
    try:
        if not path.is_file():
            raise FileError(f"{path} is not there, or is not a file")
        if path.stat().st_size > MAX_BYTES:
            raise FileError(f"{path} is larger than {MAX_BYTES >> 30} GiB")
        return path.read_bytes()
    except OSError as exc:
        raise FileError(f"cannot read {path}: {exc.strerror or exc}") from exc


def _opened(data: bytes, path: Path) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_PILLOW)
    except Image.DecompressionBombError as exc:  # twice what Pillow takes: more than we do
        raise FileError(f"{path}: {_too_large(_line(exc))}") from exc
    except UnidentifiedImageError as exc:
        kinds = ", ".join(READ)
        raise FileError(f"{path} is no picture that can be read ({kinds})") from exc


def _check(image: Image.Image, path: Path) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise FileError(f"{path}: {_too_large(f'{width}x{height}')}")
    # Not counted: a small file can list so many that counting takes minutes.
    several = bool(getattr(image, "is_animated", False))
    if several and image.format == "MPO":
        log.warning("%s holds several pictures; the first one, which viewers show, is taken", path)
    elif several:
        kind = "pages" if image.format == "TIFF" else "frames"
        raise FileError(f"{path} has several {kind}: save each one as a file of its own first")
    if image.mode in _FOREIGN:
        raise FileError(f"{path} is {_FOREIGN[image.mode]}: save it as RGB or grey first")


def _too_large(what: str) -> str:
    return f"{what}: pictures of more than {MAX_PIXELS} pixels are not read"


def _depth(image: Image.Image, data: bytes) -> int:
    """Tell the bits of a sample; Pillow reads 16-bit colour as 8-bit."""
    if image.format == "PNG":
        return data[24]  # IHDR's depth, after signature, length, name, width, height
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (1,))
        return int(max(bits) if isinstance(bits, tuple) else bits)
    return 8


def _deep(data: bytes, path: Path) -> Picture:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16 or decoded.ndim not in (2, 3):
        raise FileError(f"{path} is 16-bit of a kind that cannot be read: save it as PNG first")
    pixels = decoded.astype(np.uint16, copy=False)
    if pixels.ndim == 2:
        return Picture(pixels)
    colour: NDArray[np.uint16] = np.ascontiguousarray(pixels[..., 2::-1])
    alpha = np.ascontiguousarray(pixels[..., 3]) if pixels.shape[2] == 4 else None
    if data[:8] == sixteen.PNG_SIGNATURE and data[25] == sixteen.PNG_GREY_ALPHA:
        colour = np.ascontiguousarray(colour[..., 0])
    return Picture(colour, alpha)


def _shallow(image: Image.Image) -> Picture:
    clear = "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa")
    grey = image.mode in ("1", "L", "LA", "La")
    mode = ("LA" if clear else "L") if grey else ("RGBA" if clear else "RGB")
    pixels: NDArray[np.uint8] = np.array(image.convert(mode), np.uint8)
    if not clear:
        return Picture(pixels)
    colour = pixels[..., 0] if grey else pixels[..., :3]
    return Picture(np.ascontiguousarray(colour), np.ascontiguousarray(pixels[..., -1]))


def _exif(image: Image.Image) -> Image.Exif | None:
    try:
        exif = image.getexif()
        exif.get_ifd(ExifTags.IFD.Exif)
    except Exception as exc:  # damaged metadata are no reason to refuse a picture
        log.warning("EXIF data that cannot be read are left out: %s", _line(exc))
        return None
    return _about(exif) if image.format == "TIFF" else exif


def _about(exif: Image.Exif) -> Image.Exif:
    """Leave what a TIFF can hold besides its own tags."""
    kept = Image.Exif()
    for tag in (*_ABOUT, ExifTags.Base.Orientation):
        if tag in exif:
            kept[tag] = exif[tag]
    return kept


def _upright(picture: Picture, done: bool) -> Picture:
    """Turn as EXIF's orientation says (EXIF 2.32, 4.6.4), and say in EXIF that it is done.

    Args:
        done: it is: both libraries turn TIFFs.
    """
    if not picture.exif:
        return picture
    turned = 1 if done else picture.exif.get(ExifTags.Base.Orientation, 1)
    picture.colour = _turned(picture.colour, turned)
    if picture.alpha is not None:
        picture.alpha = _turned(picture.alpha, turned)
    if ExifTags.Base.Orientation in picture.exif:
        picture.exif[ExifTags.Base.Orientation] = 1
    return picture


def _turned(pixels: Pixels, orientation: object) -> Pixels:
    turns: dict[object, Any] = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels.swapaxes(0, 1)[:, ::-1],
        7: pixels.swapaxes(0, 1)[::-1, ::-1],
        8: pixels.swapaxes(0, 1)[::-1],
    }
    turned: Pixels = np.ascontiguousarray(turns.get(orientation, pixels))
    return turned


# --- writing -------------------------------------------------------------------------------------


def check_target(width: int, height: int, alpha: bool, path: Path) -> None:
    """Say before the work is done what the format cannot hold.

    Args:
        width, height: of the result in pixels.
        alpha: whether it has any transparency.
        path: of the result.
    Raises:
        FileError: it cannot be written.
    """
    kind = FORMATS[path.suffix.lower()]
    if width * height > MAX_RESULT:
        raise FileError(
            f"{path} would be {width}x{height}: results of more than {MAX_RESULT} pixels are not "
            "made; say a smaller --outscale or --target"
        )
    if max(width, height) > _MAX_SIDE.get(kind, max(width, height)):
        raise FileError(
            f"{path} would be {width}x{height}, and {kind} ends at {_MAX_SIDE[kind]}: --format png"
        )
    if alpha and kind in _OPAQUE:
        raise FileError(f"{path}: {kind} holds no transparency: --format png or webp")


def transparent(picture: Picture) -> bool:
    """Whether some of a picture is not opaque."""
    alpha = picture.alpha
    return alpha is not None and bool(alpha.min() < np.iinfo(alpha.dtype).max)


def write(picture: Picture, path: Path, quality: int) -> None:
    """Write a picture, whole or not at all; what is there is replaced.

    16 bits become 8 where the format has no more.

    Args:
        path: its ending, one of `FORMATS`, tells the format.
        quality: 1 to 100 of JPEG and WebP; WebP is lossless at 100.
    Raises:
        FileError: it cannot be written, or held by the format.
    """
    keep(encoded(picture, path, quality), path)


def encoded(picture: Picture, path: Path, quality: int) -> bytes:
    """Make the content of a file, see `write`.

    Raises:
        FileError: the format cannot hold the picture.
    """
    kind = FORMATS[path.suffix.lower()]
    check_target(*picture.size, transparent(picture), path)
    exif = _exif_bytes(picture, kind)
    try:
        if picture.colour.dtype == np.uint16 and kind in _DEEP:
            encode = sixteen.png if kind == "PNG" else sixteen.tiff
            return encode(_joined(picture), picture.icc, exif)
        return _encoded(picture, kind, quality, exif)
    except (OSError, ValueError, struct.error) as exc:
        raise FileError(f"{path} cannot be made: {_line(exc)}") from exc
    except MemoryError as exc:
        raise FileError(f"{path}: too little memory to encode it") from exc


def keep(data: bytes, path: Path) -> None:
    """Write a file, whole or not at all.

    Raises:
        FileError: it cannot be written.
    """
    try:
        write_atomically(path, data)
    except TraceError as exc:
        raise FileError(str(exc)) from exc


def _encoded(picture: Picture, kind: str, quality: int, exif: bytes) -> bytes:
    image = Image.fromarray(_eight(_joined(picture, kind not in _OPAQUE)))
    known: dict[str, dict[str, Any]] = {
        "PNG": {},
        "JPEG": {"quality": quality, "subsampling": 0 if quality >= 90 else 2},
        "WEBP": {"quality": quality, "lossless": quality == 100, "exact": True},
        "TIFF": {"compression": "tiff_adobe_deflate"},
        "BMP": {},
    }
    options = known[kind]
    if kind != "BMP":
        if picture.icc:
            options["icc_profile"] = picture.icc
        if exif:
            options["exif"] = exif
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _joined(picture: Picture, with_alpha: bool = True) -> Pixels:
    """Put colour and alpha into one array: (H, W), or (H, W, 2 to 4)."""
    if picture.alpha is None or not with_alpha:
        return picture.colour
    colour = picture.colour[..., None] if picture.grey else picture.colour
    joined: Pixels = np.concatenate([colour, picture.alpha[..., None]], 2)
    return joined


def _eight(pixels: Pixels) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return pixels.astype(np.uint8, copy=False)


def _exif_bytes(picture: Picture, kind: str) -> bytes:
    """Give the EXIF data with the new size in them; without a preview, which would be the old."""
    if not picture.exif:
        return b""
    try:
        if kind == "TIFF":
            return _about(picture.exif).tobytes()
        inner = picture.exif.get_ifd(ExifTags.IFD.Exif) if ExifTags.IFD.Exif in picture.exif else {}
        for tag, length in zip(
            (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight), picture.size, strict=True
        ):
            if tag in inner:
                inner[tag] = length
        return picture.exif.tobytes()
    except Exception as exc:  # as they came from a file
        log.warning("EXIF data that cannot be written are left out: %s", _line(exc))
        return b""


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
