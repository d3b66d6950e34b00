"""PSNR of the models whose weights a package carries, on the shipped frames of Freedoom.

`python -m tests.overlay.files.golden` measures `golden.json` anew, as is needed after the frames
changed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from engines import zoo
from evaluation.metrics.fidelity import psnr
from overlay.cli import main

FRAMES = Path(__file__).parents[2] / "data" / "freedoom"
TABLE = Path(__file__).with_suffix(".json")
MODELS = [row for row in zoo.ZOO if any(source.kind == "package" for source in row.sources)]


def stems(scale: int) -> list[str]:
    """Name the frames of a scale: `map07-0012-x4`, of which there are an LR and an HR file."""
    return sorted(path.stem.removesuffix("-lr") for path in FRAMES.glob(f"*-x{scale}-lr.png"))


def measured(model: str, stem: str, folder: Path) -> float:
    """Upscale a frame by the command, and give the RGB PSNR of the file in dB."""
    out = folder / f"{stem}.png"
    wish = ["upscale", str(FRAMES / f"{stem}-lr.png"), "-o", str(out), "--model", model]
    assert main([*wish, "--device", "cpu", "--overwrite"]) == 0
    large, truth = (cv2.imread(str(path)) for path in (out, FRAMES / f"{stem}-hr.png"))
    assert large is not None
    assert truth is not None
    return psnr(large.astype(np.uint8), truth.astype(np.uint8))


def write() -> None:
    """Measure all anew."""
    table: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as folder:
        for row in MODELS:
            table[row.id] = {
                stem: round(measured(row.id, stem, Path(folder)), 3) for stem in stems(row.scale)
            }
            sys.stdout.write(f"{row.id}: {table[row.id]}\n")
    TABLE.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
