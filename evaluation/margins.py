"""The smallest margin of tiles at which a model gives what it gives for the whole picture.

    python -m evaluation.margins --models realesrgan-x4plus,emt-x4

The whole picture, and the same in four tiles, with margins that grow until no level of 255 is
further than 1 from it. What is found is `measured_margin` of a row in `engines/zoo.py`; what is
run with tiles is at least that, see `engines.tiles.margin_of`.
"""

# ruff: noqa: T201 - a command-line program

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines import frames, load, nets, tiles
from engines.cli import parse_size
from engines.offline import levels_from_unit, unit_from_levels
from engines.spec import Size

Pixels = NDArray[np.uint8]
STEP = 8


def differences(
    net: nets.Net, pictures: Sequence[Pixels], smallest: int
) -> Iterator[tuple[int, int]]:
    """Compare tiles with the whole, for growing margins.

    Args:
        pictures: uint8 RGB (H, W, 3), each cut in two both ways.
        smallest: margin to begin with, in source pixels.
    Yields:
        A margin and the largest difference in levels of 255.
    """
    spec, step = net.spec, max(STEP, tiles.grid_of(net.spec))

    def run(piece: Pixels) -> Pixels:
        large = net.run(unit_from_levels(piece) * np.float32(255)) / np.float32(255)
        return levels_from_unit(np.atleast_3d(large), piece.dtype)

    whole = [tiles.upscaled(picture, spec, max(picture.shape), run) for picture in pictures]
    for margin in range(smallest, (spec.receptive_field or 512) + step, step):
        parts = [
            tiles.upscaled(picture, spec, -(-max(picture.shape) // 2), run, margin=margin)
            for picture in pictures
        ]
        pairs = zip(whole, parts, strict=True)
        yield margin, max(int(np.abs(a.astype(np.int16) - b).max()) for a, b in pairs)


def measured(net: nets.Net, pictures: Sequence[Pixels], start: int = 0) -> int | None:
    """Give the smallest margin from which on nothing is further than a level; None: none is."""
    smallest = None
    for margin, apart in differences(net, pictures, start):
        print(f"{net.spec.id}: margin {margin}: {apart} levels", flush=True)
        smallest = (smallest if smallest is not None else margin) if apart <= 1 else None
        if smallest is not None and margin >= smallest + STEP:
            break
    return smallest


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.margins")
    parser.add_argument("--models", required=True, help="names of the zoo, or files")
    parser.add_argument("--size", type=parse_size, default=(288, 160), help="of the pictures")
    parser.add_argument("--count", type=int, default=2, help="pictures (default 2)")
    parser.add_argument("--start", type=int, default=0, help="smallest margin that is tried")
    parser.add_argument("--frames", type=Path, help="folder of pictures; shipped ones without")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    pictures = _pictures(options.size, options.frames, options.count)
    for name in options.models.split(","):
        net = nets.open_net(load.read(load.locate(name)), options.device)
        print(f"{name}: {measured(net, pictures, options.start)}", flush=True)
    return 0


def _pictures(size: Size, folder: Path | None, count: int) -> list[Pixels]:
    found = frames.read(size, folder, count)
    return [np.ascontiguousarray(frame[..., 2::-1]) for frame in found]


if __name__ == "__main__":
    sys.exit(main())
