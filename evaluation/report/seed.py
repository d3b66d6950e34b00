"""The figures of SRGD, the project that this one started from, as it published them.

Its README and docs/METRICS.md: 3,600 pairs of GameEngineData, 270p to 1080p, whole pictures, piq
0.8.0 with the pictures in BGR order, means of per-image values. Its data is another than ours, so
the tables stand side by side and figures are not to be subtracted across them.
"""

from __future__ import annotations

from typing import Any

SOURCE = "SRGD's README: GameEngineData val, 3,600 pairs, 270p to 1080p"
METRICS = ("psnr", "ssim", "lpips-vgg", "haarpsi", "brisque")
#: model, then one value a metric of `METRICS`.
QUALITY = (
    ("RealESRGAN_x4plus pretrained", 23.5409, 0.7992, 0.3924, 0.5158, 26.5565),
    ("RealESRGAN_x4plus fine-tuned", 24.3873, 0.8348, 0.3009, 0.5625, 32.3198),
    ("EMT_x4 pretrained", 24.5443, 0.8231, 0.3889, 0.5417, 61.9432),
    ("ResShift_RealSRx4 pretrained", 23.0368, 0.7992, 0.4829, 0.5225, 13.0324),
)
SPEED_SOURCE = (
    "SRGD's README: RealESRGAN_x4plus, 270p to 1080p, GTX 1660 Super, mean per image with reading "
    "and writing of tensors, first one left out"
)
#: back end, seconds an image.
SPEED = (
    ("PyTorch CUDA", 1.070),
    ("ONNX CUDA", 1.072),
    ("ONNX TensorRT", 0.947),
    ("Triton TensorRT", 0.563),
)
DEFINITIONS = (
    "Seed: piq 0.8.0 on whole pictures in BGR order; SSIM of pictures averaged over 4x4 pixels "
    "(piq's default at 1080p), PSNR of at most 80 dB, LPIPS with VGG16, BRISQUE with piq's SVM. "
    "No interpolation was measured."
)


def quality_rows() -> list[list[str]]:
    """Rows of the seed's table of quality, as text."""
    return [[str(cell) for cell in row] for row in QUALITY]


def speed_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The seed's back ends, then those rows of a benchmark that have the same sizes, as text."""
    found = [
        ["seed", name, "RealESRGAN_x4plus", "GTX 1660 Super", f"{1e3 * s:.0f}", f"{1 / s:.2f}"]
        for name, s in SPEED
    ]
    for row in rows:
        if (row["input_size"], row["output_size"]) == ("480x270", "1920x1080"):
            ms = row["upscale"]["ms"]["p50"]
            found.append(
                [
                    "ours",
                    row["backend"],
                    row["model"],
                    row["device"],
                    f"{ms:.1f}",
                    f"{1e3 / ms:.1f}",
                ]
            )
    return found
