"""16-bit PNG and TIFF, written with what belongs to the picture.

Pillow has no 16-bit colour, and OpenCV before 4.12 writes no colour profile.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: PNG's colour type of grey with alpha, where OpenCV has none.
PNG_GREY_ALPHA = 4
#: PNG's colour type by channels.
_COLOUR = {1: 0, 2: PNG_GREY_ALPHA, 3: 2, 4: 6}
#: Bytes of one strip of a TIFF, about.
_STRIP = 1 << 20


def png(pixels: NDArray[np.generic], icc: bytes = b"", exif: bytes = b"") -> bytes:
    """Encode a PNG ("Portable Network Graphics", W3C 2003; eXIf of 2017).

    Rows hold their difference to the row above (filter 2).

    Args:
        pixels: uint16, (H, W) grey or (H, W, C): grey and alpha, RGB, RGBA.
        icc: colour profile.
        exif: with or without "Exif" and two zeros before it.
    """
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.full((height, rows.shape[1] + 1), 2, np.uint8)
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR[channels], 0, 0, 0)
    parts = [PNG_SIGNATURE, _chunk(b"IHDR", header)]
    if icc:
        parts.append(_chunk(b"iCCP", b"ICC\0\0" + zlib.compress(icc)))
    if exif:
        parts.append(_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
    parts += [_chunk(b"IDAT", zlib.compress(filtered.data, 6)), _chunk(b"IEND", b"")]
    return b"".join(parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def tiff(pixels: NDArray[np.generic], icc: bytes = b"", exif: bytes = b"") -> bytes:
    """Encode a TIFF (revision 6.0), little-endian, strips compressed with deflate.

    Args:
        pixels, icc: as of `png`.
        exif: not kept: its tags are a TIFF's own, and would have to be sorted in.
    Raises:
        ValueError: it does not fit into 4 GiB.
    """
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    values = pixels.astype("<u2").reshape(height, -1)
    rows = max(1, _STRIP // (2 * values.shape[1]))
    strips = [zlib.compress(values[at : at + rows].data, 6) for at in range(0, height, rows)]
    offsets, at = [], 8
    for strip in strips:
        offsets.append(at)
        at += len(strip) + len(strip) % 2
    fields: list[tuple[int, str, list[int] | bytes]] = [
        (256, "I", [width]), (257, "I", [height]), (258, "H", [16] * channels),
        (259, "H", [8]),  # deflate
        (262, "H", [2 if channels > 2 else 1]),  # RGB, or black is zero
        (273, "I", offsets), (277, "H", [channels]), (278, "I", [rows]),
        (279, "I", [len(strip) for strip in strips]),
        (284, "H", [1]),  # channels beside each other
    ]  # fmt: skip
    if channels in (2, 4):
        fields.append((338, "H", [2]))  # alpha, not multiplied into the colours
    if icc:
        fields.append((34675, "B", icc))
    body = b"".join(strip + b"\0" * (len(strip) % 2) for strip in strips)
    if 8 + len(body) + len(icc) + 16 * len(strips) + 4096 >= 1 << 32:
        raise ValueError("a TIFF cannot be larger than 4 GiB; --format png can")
    directory = _directory(fields, 8 + len(body))
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + directory


def _directory(fields: list[tuple[int, str, list[int] | bytes]], start: int) -> bytes:
    """Make the directory that begins at `start`, and after it what does not fit into it."""
    kinds = {"B": 7, "H": 3, "I": 4}
    head = struct.pack("<H", len(fields))
    away = b""
    away_at = start + 2 + 12 * len(fields) + 4
    for tag, kind, values in fields:
        data = (
            values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{kind}", *values)
        )
        head += struct.pack("<HHI", tag, kinds[kind], len(values))
        if len(data) <= 4:
            head += data.ljust(4, b"\0")
        else:
            head += struct.pack("<I", away_at + len(away))
            away += data + b"\0" * (len(data) % 2)
    return head + struct.pack("<I", 0) + away
