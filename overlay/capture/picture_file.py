"""Read picture files as BGRA, and their sizes before decoding."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np

from overlay.errors import CaptureError
from overlay.frame import Pixels, Size

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
MAX_PIXELS = 64 * 1024 * 1024  # two 8K frames; beyond it is a mistake or an attack
MAX_FILE_BYTES = 512 * 1024 * 1024

# JPEG markers that start a frame (SOF0-15 without DHT, JPG and DAC).
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset(range(0xD0, 0xD9)) | {0x01}


def picture_size(data: bytes) -> Size | None:
    """Read the size from the header of a PNG, JPEG, WebP or BMP file; None if it has none."""
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return Size(*struct.unpack_from(">II", data, 16))
        if data.startswith(b"BM"):
            width, height = struct.unpack_from("<ii", data, 18)
            return Size(abs(width), abs(height))
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data)
        if data.startswith(b"\xff\xd8"):
            return _jpeg_size(data)
    except (struct.error, IndexError):
        pass
    return None


def _webp_size(data: bytes) -> Size | None:
    kind = data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little")
        height = int.from_bytes(data[27:30], "little")
        return Size(width + 1, height + 1)
    if kind == b"VP8L":
        bits = int(struct.unpack_from("<I", data, 21)[0])
        return Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Size(width & 0x3FFF, height & 0x3FFF)
    return None


def _jpeg_size(data: bytes) -> Size | None:
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker in _JPEG_BARE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return Size(width, height)
        at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    return None


def read_picture(path: Path) -> Pixels:
    """Decode a picture file.

    Grey becomes equal blue, green and red; 16 bits become 8, rounded; the alpha channel is kept
    as it is, 255 where the file has none. Orientation marks of cameras are ignored.

    Returns:
        uint8 BGRA, (H, W, 4), contiguous, owned by the caller.
    Raises:
        CaptureError: the file cannot be read, is no picture, or is absurdly large.
    """
    try:
        length = path.stat().st_size
        if length > MAX_FILE_BYTES:
            raise CaptureError(f"{path} has {length >> 20} MiB, too much for a picture")
        data = path.read_bytes()
    except OSError as exc:
        raise CaptureError(f"cannot read the picture {path}: {exc.strerror}") from exc
    size = picture_size(data)
    if size is None:
        raise CaptureError(f"{path} is not a PNG, JPEG, WebP or BMP picture, or is damaged")
    if size.width * size.height > MAX_PIXELS:
        raise CaptureError(f"the picture {path} is {size}, more than {MAX_PIXELS >> 20} Mpixels")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as exc:
        raise CaptureError(f"cannot decode the picture {path}: {exc.err}") from exc
    if pixels is None or pixels.size == 0:
        raise CaptureError(f"cannot decode the picture {path}: it is damaged")
    return bgra_from(pixels, path)


def bgra_from(pixels: np.ndarray, path: Path) -> Pixels:
    """Convert what OpenCV decoded: grey, BGR or BGRA, uint8 or uint16.

    Raises:
        CaptureError: another number of channels or type.
    """
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=1 / 257)  # 65535 = 255 * 257
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if pixels.dtype != np.uint8 or channels not in (1, 3, 4):
        raise CaptureError(
            f"{path} has {channels} channels of {pixels.dtype}; not a screen picture"
        )
    if channels == 1:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGRA)
    elif channels == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2BGRA)
    result: Pixels = np.ascontiguousarray(pixels, np.uint8)
    return result
