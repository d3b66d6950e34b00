"""Big pictures in tiles, each run with as much around it as the net sees.

Not blended: where a net sees no further than the margin, tiles give what the whole picture gives.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from math import isqrt
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.spec import ModelSpec

Level = TypeVar("Level", np.uint8, np.uint16, np.float32)

#: Smallest and largest tile that is chosen: width and height in source pixels.
SMALLEST = 32
_LARGEST = 1024
#: The smallest margins, in source pixels, at which tiles gave the whole picture within a level of
#: 255, of models that can see further than that: by `python -m evaluation.margins`, in steps of 8
#: (EMT: of its grid) on two frames of Freedoom, 224x128. All others get what they can see.
MEASURED = {"realesrgan-x4plus-anime-6b": 56, "emt-x2": 64, "emt-x4": 64}
#: Margins that are run with nets of these architectures: no less than any that was measured.
_MARGINS = {"rrdb": 64, "emt": 64}
#: Margin where nothing is known about a net.
_UNKNOWN = 64
#: What the places of tiles must be multiples of, where the net has a grid of its own.
_GRIDS = {"emt": 32}
#: Nets for which the opposite edge of a picture lies next to its edge. Pictures get a mirrored
#: border as wide as the margin, so that what lies there does not depend on the tile.
_WRAPPING = ("emt",)
#: Bytes at the peak per pixel of the source (with the margin) at x4: a third more than measured
#: on a CPU, see docs/files.md. Nets that are not here count as the hungriest.
_BYTES = {"luma": 2_000, "compact": 2_000, "span": 5_000, "rrdb": 20_000, "emt": 14_000}
#: Taken where a system does not tell how much memory is free.
_ASSUMED = 2 << 30


def margin_of(spec: ModelSpec) -> int:
    """Choose how many source pixels around a tile are run with it."""
    reach = spec.receptive_field or _UNKNOWN
    margin = min(reach, _MARGINS.get(spec.architecture, reach))
    return -(-margin // grid_of(spec)) * grid_of(spec)


def grid_of(spec: ModelSpec) -> int:
    """Tell what the places of a net's tiles must be multiples of."""
    return max(spec.size_multiple, _GRIDS.get(spec.architecture, 1))


def tile_for(spec: ModelSpec, free: int) -> int:
    """Choose the width and height of a net's tiles in source pixels, without the margin.

    Half of the free memory is filled: a tile with its margins takes a fixed number of bytes a
    pixel.

    Args:
        free: bytes.
    """
    side = isqrt(free // 2 // _BYTES.get(spec.architecture, max(_BYTES.values())))
    return max(SMALLEST, min(_LARGEST, side - 2 * margin_of(spec)))


def free_memory(device: str = "cpu") -> int:
    """Tell how many bytes are free on the host, or on PyTorch's device `cuda…`."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return _free_on_host()


if sys.platform == "win32":

    def _free_on_host() -> int:
        class Status(ctypes.Structure):  # MEMORYSTATUSEX
            _fields_ = (
                ("length", ctypes.c_uint32),
                ("load", ctypes.c_uint32),
                *((name, ctypes.c_uint64) for name in ("total", "free", *"abcde")),
            )

        status = Status(ctypes.sizeof(Status))
        told = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status.free) if told else _ASSUMED

else:

    def _free_on_host() -> int:
        """What the kernel calls available, or the control group leaves, whichever is less."""
        free = _ASSUMED
        try:
            for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
                if line.startswith("MemAvailable:"):
                    free = int(line.split()[1]) << 10
            group = Path("/sys/fs/cgroup")
            limit = int((group / "memory.max").read_text(encoding="ascii"))  # "max": no number
            free = min(free, limit - int((group / "memory.current").read_text(encoding="ascii")))
        except (OSError, ValueError, IndexError):
            pass
        return max(0, free)


def spans(length: int, tile: int, margin: int, grid: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut an axis.

    Args:
        length: in source pixels.
        tile: of each part.
        margin: added to it on both sides.
        grid: what the beginnings are multiples of; tile and margin are rounded up to it.
    Yields:
        (from, to) of a part and (from, to) of the part with its margins, in source pixels, which
        may lie outside.
    """
    tile, margin = (-(-number // grid) * grid for number in (tile, margin))
    for start in range(0, length, tile):
        stop = min(start + tile, length)
        yield start, stop, start - margin, stop + margin


def upscaled(
    picture: NDArray[Level],
    spec: ModelSpec,
    tile: int,
    run: Callable[[NDArray[Level]], NDArray[Level]],
    progress: Callable[[float], None] = lambda fraction: None,
    margin: int | None = None,
) -> NDArray[Level]:
    """Upscale tile by tile.

    Args:
        picture: (H, W, C), not modified.
        spec: of the net: its scale, margin and grid.
        tile: width and height in source pixels, without the margin.
        run: takes a piece (h, w, C) and gives (h*scale, w*scale, C).
        progress: told the finished share after every tile.
        margin: what is run with each tile on each side, in source pixels; None = `margin_of` it.
    Returns:
        (H*scale, W*scale, C) of the same type.
    """
    height, width, channels = picture.shape
    scale, grid = spec.scale, grid_of(spec)
    border = margin_of(spec) if spec.architecture in _WRAPPING else 0
    margin = margin_of(spec) if margin is None else margin
    if border:
        picture = np.pad(picture, ((border, border), (border, border), (0, 0)), "reflect")
    rows = list(spans(height, tile, margin, grid))
    columns = list(spans(width, tile, margin, grid))
    large = np.empty((height * scale, width * scale, channels), picture.dtype)
    for i, (top, bottom, above, below) in enumerate(rows):
        above = max(above, -border)
        for j, (left, right, before, after) in enumerate(columns):
            before = max(before, -border)
            piece = picture[above + border : below + border, before + border : after + border]
            part = run(np.ascontiguousarray(piece))
            y, x = (top - above) * scale, (left - before) * scale
            large[top * scale : bottom * scale, left * scale : right * scale] = part[
                y : y + (bottom - top) * scale, x : x + (right - left) * scale
            ]
            progress((i * len(columns) + j + 1) / (len(rows) * len(columns)))
    return large
