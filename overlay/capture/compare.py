"""Compare pictures without allocating, to tell spurious damage from a new frame."""

from __future__ import annotations

import ctypes
import sys

from overlay.frame import Pixels

_memcmp = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcmp.restype = ctypes.c_int


def same_pixels(a: Pixels, b: Pixels) -> bool:
    """Tell whether two pictures are equal, byte by byte (alpha included).

    It stops at the first difference, allocates nothing of the pictures' size and releases the
    GIL meanwhile, so it may run on any thread.

    Args:
        a, b: uint8, C-contiguous; pictures of different shapes are different.
    Raises:
        ValueError: an array is not contiguous or not uint8.
    """
    for array in (a, b):
        if not array.flags.c_contiguous or array.itemsize != 1:
            raise ValueError(f"pixels must be contiguous uint8, not {array.dtype} {array.strides}")
    if a.shape != b.shape:
        return False
    return bool(_memcmp(a.ctypes.data, b.ctypes.data, a.nbytes) == 0)
