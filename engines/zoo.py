"""The models there are. Imports nothing heavy: the command line lists and checks names here."""

from __future__ import annotations

from difflib import get_close_matches

from engines import load
from engines.errors import UnknownModel
from engines.spec import ModelSpec

#: Every model, the defaults in order of scale.
ZOO = (
    ModelSpec(
        id="default-x2",
        architecture="luma",
        scale=2,
        licence="Apache-2.0",
        weights="default-x2.safetensors",
        sha256="4a8524704c5f19a11fd3b51fe99205d2a188cf558726d70ac4281c2a0c6e88fb",
        onnx="default-x2.onnx",
        onnx_sha256="b95d123fce8fa411c4a910cfb898a9108990cf92ed4141b88a0e02185375db09",
        output="luma",
        notes="fast CPU net",
    ),
    ModelSpec(
        id="default-x3",
        architecture="luma",
        scale=3,
        licence="Apache-2.0",
        weights="default-x3.safetensors",
        sha256="07fc81a679df2ebf73cd8e3ab2e19aef15d5619b32a656d128a8b0cff0b14444",
        onnx="default-x3.onnx",
        onnx_sha256="96314b2154672f11b2d480e552f717de6f6ebfc78e95891c25872f70fce276c5",
        output="luma",
        notes="fast CPU net",
    ),
    ModelSpec(
        id="default-x4",
        architecture="luma",
        scale=4,
        licence="Apache-2.0",
        weights="default-x4.safetensors",
        sha256="c6e9663777391d7d67479b5ca6aee784012847e6577af393d9bccf5e437cb0af",
        onnx="default-x4.onnx",
        onnx_sha256="56c2006965bb85ccc77a832bcc2359e54a66ebf1973934e9ec83168edc1f981e",
        output="luma",
        notes="fast CPU net",
    ),
)

_BY_NAME = {row.id: row for row in ZOO}
_DEFAULTS = tuple(_BY_NAME[f"default-x{scale}"] for scale in (2, 3, 4))


def spec(name: str) -> ModelSpec:
    """Give the row of a model.

    Raises:
        UnknownModel: no model has this name; the message suggests the nearest one.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    near = get_close_matches(name, _BY_NAME, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UnknownModel(f"unknown model {name!r} (one of {', '.join(_BY_NAME)}){hint}")


def verify(spec: ModelSpec) -> None:
    """Check that a model's shipped files are there and whole.

    Raises:
        EngineMissing: a file is not there.
        ModelInvalid: a file is damaged.
    """
    load.onnx_bytes(spec)
    load.verified(load.weights_folder() / spec.weights, spec.sha256)


def default_for(source_size: tuple[int, int], output_size: tuple[int, int]) -> ModelSpec:
    """Choose the net for `default`.

    Args:
        source_size: (width, height) of the game in pixels.
        output_size: (width, height) of the picture on screen.
    Returns:
        The smallest scale that reaches output / source on both axes, else the largest.
    Raises:
        ValueError: a size is not positive.
    """
    if min(*source_size, *output_size) <= 0:
        raise ValueError(f"sizes must be positive, not {source_size} and {output_size}")
    ratio = max(output_size[0] / source_size[0], output_size[1] / source_size[1])
    for row in _DEFAULTS:
        if row.scale >= ratio:
            return row
    return _DEFAULTS[-1]
