"""Model files: what is damaged is refused in one clear line."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from engines import load, zoo
from engines.archs.luma import LumaNet
from engines.errors import EngineMissing, ModelInvalid

SPEC = zoo.spec("default-x2")
WEIGHTS = SPEC.sources[0].name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the files of `SPEC`."""
    for name in (WEIGHTS, SPEC.onnx):
        (tmp_path / name).write_bytes((load.weights_folder() / name).read_bytes())
    return tmp_path


def test_weights_are_read(folder: Path) -> None:
    read = load.state_dict(SPEC, folder)
    expected = load_file(folder / WEIGHTS)
    assert read.keys() == expected.keys()
    assert all((read[name] == expected[name]).all() for name in read)
    assert LumaNet(read).scale == SPEC.scale


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
@pytest.mark.parametrize("what", ["weights", "onnx"])
def test_damaged_files_are_refused(folder: Path, damage: str, what: str) -> None:
    path = folder / {"weights": WEIGHTS, "onnx": SPEC.onnx}[what]
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": bytes(data[:-100]), "empty": b""}[damage])
    read = load.state_dict if what == "weights" else load.onnx_bytes
    with pytest.raises(ModelInvalid, match="damaged") as caught:
        read(SPEC, folder)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / SPEC.onnx).unlink()
    with pytest.raises(EngineMissing, match=r"default-x2\.onnx"):
        load.onnx_bytes(SPEC, folder)


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"\xff" * 64, b"\x08" + b"\0" * 7])
def test_what_is_no_safetensors_file_is_refused_even_if_its_hash_fits(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / WEIGHTS).write_bytes(content)
    source = replace(SPEC.sources[0], sha256=hashlib.sha256(content).hexdigest())
    spec = replace(SPEC, sources=(source,))
    with pytest.raises(ModelInvalid, match="not a safetensors file"):
        load.state_dict(spec, tmp_path)


def test_tensors_of_another_net_are_refused() -> None:
    weights = load.state_dict(SPEC)
    with pytest.raises(ValueError, match="expected conv0"):
        LumaNet({"a": weights["conv0.weight"], "b": weights["conv0.bias"]})
    with pytest.raises(ValueError, match="conv1 has shapes"):
        LumaNet({**weights, "conv1.weight": weights["conv1.weight"][:, :3]})
    last = max(int(name[4]) for name in weights)
    cut = {f"conv{last}.{part}": weights[f"conv{last}.{part}"][:3] for part in ("weight", "bias")}
    with pytest.raises(ValueError, match="3 outputs"):
        LumaNet({**weights, **cut})
