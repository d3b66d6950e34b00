"""Print the quality of the default nets beside bicubic: `python -m training.evaluate_default`.

On frames never trained on: held-out OpenArena maps, and Freedoom (another game and renderer).
"""

# ruff: noqa: T201 - a command-line program

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from engines.archs.luma import LumaNet
from training import quality
from training.pairs import Image, freedoom_pairs, held_out_pairs

Upscale = Callable[[Image, int], Image]
COLUMNS = ("RGB PSNR dB", "Y PSNR dB", "SSIM-Y", "sharpness")


def luma_of(net: LumaNet, bgr: Image) -> Image:
    """Run the net on uint8 BGR (H, W, 3) and give uint8 luma (H*scale, W*scale)."""
    height, width = bgr.shape[:2]
    bgra = np.concatenate([bgr, np.zeros((height, width, 1), np.uint8)], axis=-1)
    with torch.inference_mode():
        phases = net(torch.from_numpy(bgra)[None]).numpy()[0]
    s = net.scale
    blocks = phases.reshape(height, width, s, s).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(blocks).reshape(height * s, width * s)


def upscaler(net: LumaNet) -> Upscale:
    """The whole picture: the net's luma, Catmull-Rom chroma."""
    return lambda bgr, scale: quality.with_luma(quality.catmull_rom(bgr, scale), luma_of(net, bgr))


def measure(picture: Image, truth: Image) -> tuple[float, float, float, float]:
    """The figures of `COLUMNS` for uint8 BGR pictures."""
    y, y_true = quality.video_luma(picture), quality.video_luma(truth)
    return (
        quality.psnr(picture, truth),
        quality.psnr(y, y_true),
        quality.ssim(y, y_true),
        quality.sharpness(picture, truth),
    )


def table(
    pairs: Iterable[tuple[str, Image, Image]], scale: int, methods: dict[str, Upscale]
) -> tuple[dict[str, np.ndarray], int]:
    """Mean figures of each method over the pairs, and how many pairs there were."""
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in methods}
    count = 0
    for _, low, high in pairs:
        count += 1
        for name, upscale in methods.items():
            rows[name].append(measure(upscale(low, scale), high))
    return {name: np.mean(figures, axis=0) for name, figures in rows.items()}, count


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate_default")
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), nargs="*", default=(2, 3, 4))
    parser.add_argument("--weights", type=Path, nargs="*", help="instead of the shipped ones")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--every", type=int, default=4, help="take every n-th held-out frame")
    options = parser.parse_args(arguments)
    shipped = Path(__file__).parent.parent / "engines" / "weights"
    print("| scale | frames | method | " + " | ".join(COLUMNS) + " |\n|" + "---|" * 7)
    for scale in options.scale:
        methods: dict[str, Upscale] = {
            "Catmull-Rom": lambda bgr, s: quality.to_bytes(quality.catmull_rom(bgr, s)),
            "cv2 cubic": quality.cv2_cubic,
        }
        for file in options.weights or [shipped / f"default-x{scale}.safetensors"]:
            methods[file.stem] = upscaler(LumaNet(load_file(file)))
        for title, pairs in (
            ("OpenArena", held_out_pairs(options.data / "openarena", scale, options.every)),
            ("Freedoom", freedoom_pairs(options.data / "freedoom", scale)),
        ):
            figures, count = table(pairs, scale, methods)
            for name, row in figures.items():
                cells = f"{row[0]:.2f} | {row[1]:.2f} | {row[2]:.4f} | {row[3]:.2f}"
                print(f"| x{scale} | {title} ({count}) | {name} | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
