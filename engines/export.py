"""Weights to ONNX: `python -m engines.export data/runs/default-x2.safetensors ...`.

Writes safetensors and ONNX into `engines/weights` and prints their sha256 for the zoo. The graph
takes uint8 BGRA (1, H, W, 4) with any height and width and gives uint8; colour conversion,
scaling, rounding and clamping are inside.
"""

# ruff: noqa: T201 - a command-line program

from __future__ import annotations

import argparse
import hashlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engines.archs.luma import LumaNet
from engines.load import weights_folder

OPSET = 20


def onnx_model(weights: dict[str, Tensor], name: str) -> onnx.ModelProto:
    """Export a luma net.

    Args:
        weights: as `engines.archs.luma.LumaNet` takes them.
        name: of the graph.
    Returns:
        A model with input `bgra`, uint8 (1, height, width, 4), and output `luma`, uint8
        (1, height, width, scale*scale).
    """
    net = LumaNet(weights).eval()
    height = torch.export.Dim("height", min=8, max=8192)
    width = torch.export.Dim("width", min=8, max=8192)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the exporter's, about torch itself
        program = torch.onnx.export(
            net,
            (torch.zeros(1, 24, 32, 4, dtype=torch.uint8),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["bgra"],
            output_names=["luma"],
            dynamic_shapes={"bgra": {1: height, 2: width}},
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    return _tidied(model, name)


def _tidied(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Drop what the exporter records of this machine (source lines, traces)."""
    model.graph.name = name
    model.producer_name, model.producer_version = "sr-overlay", ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def publish(source: Path, folder: Path) -> dict[str, str]:
    """Write the shipped files of one net and give the sha256 of each by file name."""
    weights = load_file(source)
    name = source.stem
    save_file(weights, folder / f"{name}.safetensors")
    (folder / f"{name}.onnx").write_bytes(onnx_model(weights, name).SerializeToString())
    files = (f"{name}.safetensors", f"{name}.onnx")
    return {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m engines.export")
    parser.add_argument("weights", type=Path, nargs="+", help="trained <model id>.safetensors")
    parser.add_argument("--out", type=Path, default=weights_folder())
    options = parser.parse_args(arguments)
    for source in options.weights:
        for file, digest in publish(source, options.out).items():
            print(f"{digest}  {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
