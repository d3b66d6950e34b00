"""Model files: found, verified by their sha256, read. Never pickle."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import EngineMissing, ModelInvalid
from engines.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


@cache
def weights_folder() -> Path:
    """The folder of the shipped model files."""
    with as_file(files("engines") / "weights") as folder:
        return folder


def verified(path: Path, sha256: str) -> bytes:
    """Read a model file and check it.

    Raises:
        EngineMissing: there is no such file.
        ModelInvalid: its sha256 is not `sha256`.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise EngineMissing(f"cannot read the model file {path}: {exc.strerror}") from exc
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ModelInvalid(
            f"the model file {path} is damaged: {len(data)} bytes with sha256 {found[:12]}, "
            f"expected {sha256[:12]}; reinstall sr-overlay"
        )
    return data


def onnx_bytes(spec: ModelSpec, folder: Path | None = None) -> bytes:
    """Read and verify a model's shipped ONNX file; errors as `verified`."""
    return verified((folder or weights_folder()) / spec.onnx, spec.onnx_sha256)


def state_dict(spec: ModelSpec, folder: Path | None = None) -> dict[str, Tensor]:
    """Read and verify a model's shipped weights; errors as `verified`.

    Raises:
        ModelInvalid: also when the file is not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    source = next(source for source in spec.sources if source.kind == "shipped")
    path = (folder or weights_folder()) / source.name
    data = verified(path, source.sha256)
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError) as exc:
        raise ModelInvalid(f"{path} is not a safetensors file: {exc}") from exc
