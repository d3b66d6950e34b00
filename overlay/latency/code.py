"""The coded strip: a number written into a row of pixels so that a wrong reading is refused.

A strip is 32 blocks of equal width, dark or light: the number's 16-bit Gray code, lowest bit
first, and then the same 16 bits inverted. Because every bit is there twice, a row is read as a
number only if both halves agree:

- torn within the row (new pixels up to some column, old ones after it): if the tear lies in
  the first half, the second half is all old, so only the old number can pass; if in the second,
  only the new one. No third number can come out.
- half-blended with another frame: blocks that differ become grey and are refused.
- not a strip at all (black, white, another window): the halves do not mirror each other.

The Gray code makes neighbours differ in one bit, so that a smooth upscaler or a slow blend has
the fewest blocks to get wrong.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from overlay.frame import Pixels

BITS = 16
BLOCKS = 2 * BITS
#: The largest number a strip can hold.
LARGEST = (1 << BITS) - 1
#: Blocks narrower than four pixels cannot be told apart after scaling.
NARROWEST_PX = 4 * BLOCKS
#: The strip covers this share of the picture's height, at its bottom.
STRIP_SHARE = 24 / 270

#: Blocks between these values are neither dark nor light.
_DARK, _LIGHT = 80, 175
_WEIGHTS = 1 << np.arange(BITS)


def blocks(number: int) -> list[bool]:
    """Give the strip of a number from 0 to `LARGEST`: 32 blocks, True = light, left first."""
    if not 0 <= number <= LARGEST:
        raise ValueError(f"a strip holds 0 to {LARGEST}, not {number}")
    gray = number ^ number >> 1
    bits = [bool(gray >> bit & 1) for bit in range(BITS)]
    return bits + [not bit for bit in bits]


def columns(width: int) -> NDArray[np.intp]:
    """Give the middle column of each block in a row of `width` pixels: (32,).

    Raises:
        ValueError: the row is too narrow to tell the blocks apart.
    """
    if width < NARROWEST_PX:
        raise ValueError(f"a strip needs {NARROWEST_PX} pixels in width, not {width}")
    return ((np.arange(BLOCKS) + 0.5) * (width / BLOCKS)).astype(np.intp)


def strip_row(height: int) -> int:
    """Give the row in the middle of the strip, from the top of a picture of `height` rows."""
    return min(height - 1, int(height * (1 - STRIP_SHARE / 2)))


def decode(values: NDArray[np.uint8]) -> int | None:
    """Read the number from the brightness of its blocks.

    Args:
        values: uint8, (32,), one per block, as picked from a row with `columns`.
    Returns:
        The number, or None if the row is torn, blended or no strip.
    """
    light = values >= _LIGHT
    if not np.array_equal(light, values > _DARK):
        return None  # a block is grey
    if np.any(light[:BITS] == light[BITS:]):
        return None
    gray = int(_WEIGHTS @ light[:BITS])
    for shift in (8, 4, 2, 1):
        gray ^= gray >> shift
    return gray


def decode_pixels(pixels: Pixels) -> int | None:
    """Read the number of a whole picture: uint8 BGRA, (H, W, 4), of any size."""
    height, width = pixels.shape[:2]
    return decode(pixels[strip_row(height), columns(width), 1])
