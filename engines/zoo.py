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
        sha256="9703041e52058e6e64da1de2edad4981edd7f2ddcfac5a570d900bed641e866c",
        onnx="default-x2.onnx",
        onnx_sha256="1ef9f19cb9dd94bca105d0a94bf839c2e9f5405347a6f44e77960f72ffd6108c",
        output="luma",
        notes="fast CPU net",
    ),
    ModelSpec(
        id="default-x3",
        architecture="luma",
        scale=3,
        licence="Apache-2.0",
        weights="default-x3.safetensors",
        sha256="9894e0a60062ac022dc2726df5a3149ce059170b17ddc9a3506cebbc9f5c3449",
        onnx="default-x3.onnx",
        onnx_sha256="94fdc613d00b2087786bd999bc3e5c639bce45e6cbbcc8583367e96c39df5bc7",
        output="luma",
        notes="fast CPU net",
    ),
    ModelSpec(
        id="default-x4",
        architecture="luma",
        scale=4,
        licence="Apache-2.0",
        weights="default-x4.safetensors",
        sha256="bcc35b33f59d46a36d2519afafde5baf32a0edf9b33f8e84065d6f9aebbb73b5",
        onnx="default-x4.onnx",
        onnx_sha256="7f2bf35e7ebbbb728bed1c0a435a87124f542923a7ffd6e2950dbd55618347eb",
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
