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
        sha256="e118cddf385c59ea8dac60f2b6b23aaeca7a529291d4dd3e81f0b94d418985fa",
        onnx="default-x2.onnx",
        onnx_sha256="4abe9f04a7909e6913148389faac7b99a4ac8fd0fb3fa7bc450e3574c2e45322",
        output="luma",
        notes="fast CPU net",
    ),
    ModelSpec(
        id="default-x3",
        architecture="luma",
        scale=3,
        licence="Apache-2.0",
        weights="default-x3.safetensors",
        sha256="0f2ebf194457342bd49ab28ee0f4c491d8e0900b8caa865cee8d507a3fbd69db",
        onnx="default-x3.onnx",
        onnx_sha256="7d04b305f31a0c40f7885a714b7fb34a0bfcf071d272454e880764160fc6e06b",
        output="luma",
        notes="fast CPU net",
    ),
    ModelSpec(
        id="default-x4",
        architecture="luma",
        scale=4,
        licence="Apache-2.0",
        weights="default-x4.safetensors",
        sha256="c1e70ea4a8502c1244858af65a6a3d90f56af7a100a63195a94bc8d56c86ff60",
        onnx="default-x4.onnx",
        onnx_sha256="950fda0a3248e6784968f53fd021efce5924be88b2694e644ada8d0d0babde31",
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
