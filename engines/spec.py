"""What is known about a model before any of its files is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Output = Literal["luma", "bgra"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One row of the zoo.

    Attributes:
        id: name on the command line.
        architecture: module in `engines.archs`.
        scale: output size / input size.
        licence: SPDX identifier of the weights.
        weights: safetensors file in `engines/weights`.
        sha256: of `weights`, hexadecimal.
        onnx: ONNX file in `engines/weights`; input `bgra`, uint8 BGRA (1, H, W, 4), any H and W.
        onnx_sha256: of `onnx`, hexadecimal.
        output: what the graph gives, always uint8, a block of scale x scale output pixels per
            input pixel, (1, H, W, scale*scale*channels), the last axis (dy, dx, channel):
            "luma" BT.601 full-range luma, one channel; "bgra" four.
        size_multiple: width and height must be multiples of this.
        notes: for people.
    """

    id: str
    architecture: str
    scale: int
    licence: str
    weights: str
    sha256: str
    onnx: str
    onnx_sha256: str
    output: Output
    size_multiple: int = 1
    notes: str = ""
