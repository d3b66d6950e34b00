"""Every model of SRGD from its published file to a picture, by the command; tiny, random weights.

The ids are the names that SRGD's configurations have. A row keeps all but its size: names of
files, checksums, the net's form, multiples and margins.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from engines import graph, load, offline, tiles, zoo
from engines import nets as torch_nets
from engines.build import Request
from engines.build.openvino import OpenVinoBuilder
from engines.cache import EngineCache, Entry
from engines.diffusion import resshift
from engines.diffusion.autoencoder import VqAutoencoder
from engines.diffusion.unet import SwinUnet
from engines.load import Located
from engines.offline_onnx import SIZES
from engines.spec import ModelSpec, Source
from overlay.cli import main
from overlay.files import enlarge
from tests.engines.diffusion import conftest as diffusion
from tests.engines.nets import TINY_EMT, bright_frame, picture_state

Pixels = NDArray[np.uint8]
#: Odd, so that x2plus has to extend it.
WIDTH, HEIGHT = 29, 23
RRDB = {"features": 8, "growth": 4, "blocks": 2}
COMPACT = {"features": 8, "convs": 3}


@dataclass(frozen=True)
class Variant:
    """One of the seed's models.

    Attributes:
        row: of the zoo.
        file: the published file; "" = the row's own.
        keys: under which it holds its tensors; all but the first have other values.
        shape: what is made smaller.
    """

    row: str
    keys: tuple[str, ...]
    shape: dict[str, int]
    file: str = ""


VARIANTS = {
    "RealESRGAN_x4plus": Variant("realesrgan-x4plus", ("params_ema",), RRDB),
    "RealESRNet_x4plus": Variant("realesrnet-x4plus", ("params_ema",), RRDB),
    "RealESRGAN_x4plus_anime_6B": Variant("realesrgan-x4plus-anime-6b", ("params_ema",), RRDB),
    "RealESRGAN_x2plus": Variant("realesrgan-x2plus", ("params_ema",), RRDB),
    "realesr-animevideov3": Variant("realesr-animevideov3-x4", ("params",), COMPACT),
    "realesr-general-x4v3": Variant("realesr-general-x4v3", ("params",), COMPACT),
    "RealESRGAN_x4plus_GameEngineData": Variant(
        "realesrgan-x4plus", ("params_ema", "params"), RRDB, "net_g_100000.pth"
    ),
    "EMT_x2": Variant("emt-x2", ("params",), TINY_EMT),
    "EMT_x3": Variant("emt-x3", ("params",), TINY_EMT),
    "EMT_x4": Variant("emt-x4", ("params",), TINY_EMT),
}
ARRIVES = pytest.mark.parametrize("name", VARIANTS)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache and weights of the test's own; nothing stays open."""
    for variable, folder in (("OVERLAY_CACHE", "cache"), (load.WEIGHTS_VARIABLE, "weights")):
        monkeypatch.setenv(variable, str(tmp_path / folder))
    (tmp_path / "weights").mkdir()
    enlarge._opened.cache_clear()
    yield
    enlarge._opened.cache_clear()


def released(folder: Path, spec: ModelSpec, source: Source, variant: Variant, seed: int) -> Source:
    """Write a checkpoint as it is published, and give its source with the checksum."""
    content = {key: picture_state(spec, seed + 7 * n) for n, key in enumerate(variant.keys)}
    path = folder / (variant.file or source.name)
    torch.save(content, path)
    return replace(source, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def prepared(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a variant's files and shrink its row; give what `--model` is to be."""
    variant = VARIANTS[name]
    row = zoo.spec(variant.row if variant.file else name)
    assert row.id == variant.row
    shape = {**variant.shape, "scale": row.scale}
    row = replace(row, shape=tuple({**dict(row.shape), **shape}.items()))
    files = [source for source in row.sources if source.kind == "file"]
    sources = tuple(released(folder, row, source, variant, 1) for source in files)
    if variant.file:
        return str(folder / variant.file)
    blend = released(folder, row, row.blend, variant, 2) if row.blend else None
    row = replace(row, sources=sources, blend=blend)
    monkeypatch.setitem(zoo._BY_NAME, row.id, row)
    monkeypatch.setattr(zoo, "ZOO", tuple(row if old.id == row.id else old for old in zoo.ZOO))
    return name


def source_picture(folder: Path) -> Path:
    """A piece of a Freedoom frame."""
    path = folder / "small.png"
    Image.fromarray(np.ascontiguousarray(bright_frame(WIDTH, HEIGHT)[..., 2::-1])).save(path)
    return path


def upscaled(source: Path, model: str, *options: str) -> NDArray[Any]:
    """What the command makes of a picture."""
    out = source.with_name("large.png")
    assert main(["upscale", str(source), "-o", str(out), "--model", model, *options]) == 0
    with Image.open(out) as image:
        return np.asarray(image)


def expected(located: Located, frame: Pixels) -> Pixels:
    """What PyTorch makes of a BGRA frame in FP32, BGRA."""
    return graph.reference(load.read(located), frame)


def expected_in_files(located: Located, frame: Pixels) -> Pixels:
    """The same with the border that pictures get for EMT, which joins opposite edges."""
    spec = load.read(located).spec
    border = tiles.margin_of(spec) if spec.architecture == "emt" else 0
    wide = np.pad(frame, ((border, border), (border, border), (0, 0)), "reflect")
    top, below, right = (spec.scale * length for length in (border, *frame.shape[:2]))
    return expected(located, wide)[top : top + below, top : top + right]


@ARRIVES
def test_from_checkpoint_to_picture(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = prepared(name, tmp_path / "weights", monkeypatch)
    located = load.locate(model)
    scale = load.read(located).spec.scale
    picture = expected_in_files(located, bright_frame(WIDTH, HEIGHT))[..., 2::-1]
    assert picture.shape == (HEIGHT * scale, WIDTH * scale, 3)
    assert picture.std() > 8, "a flat picture compares nothing"
    assert ((picture == 0) | (picture == 255)).mean() < 0.1, "nor does one of black and white"
    source = source_picture(tmp_path)
    for backend in ("onnxruntime", "pytorch"):
        large = upscaled(source, model, "--backend", backend, "--overwrite")
        assert np.abs(large.astype(int) - picture).max() <= 1, backend
    (entry,) = EngineCache().entries()
    assert isinstance(entry, Entry)
    runs_in_openvino(located, EngineCache().open(entry).data)


def runs_in_openvino(located: Located, onnx: bytes) -> None:
    """Build an engine for the CPU of an exported graph, and run a frame through it."""
    spec = load.read(located).spec
    builder = OpenVinoBuilder()
    built = builder.build(Request(spec, onnx, SIZES, "fp32"), lambda what, done: None)
    runner = builder.open(built.engine, spec, SIZES)
    frame = bright_frame(*SIZES[0])
    large = runner(frame).copy()
    runner.close()
    assert np.abs(large.astype(int) - expected(located, frame)).max() <= 1


def test_a_fine_tuned_checkpoint_is_read_as_its_running_mean(tmp_path: Path) -> None:
    """As BasicSR's trainer leaves it: the mean beside the last weights; read by shape alone."""
    folder = tmp_path / "weights"
    with pytest.MonkeyPatch.context() as patch:
        model = prepared("RealESRGAN_x4plus_GameEngineData", folder, patch)
    loaded = load.read(load.locate(model))
    assert (loaded.spec.architecture, loaded.spec.scale) == ("rrdb", 4)
    assert dict(loaded.spec.shape) == {**RRDB, "scale": 4}
    both = torch.load(model, weights_only=True)
    assert loaded.module is not None
    found = loaded.module.state_dict()
    assert torch.equal(found["conv_first.weight"], both["params_ema"]["conv_first.weight"])
    assert not torch.equal(found["conv_first.weight"], both["params"]["conv_first.weight"])


def test_the_denoising_strength_blends_the_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = prepared("realesr-general-x4v3", tmp_path / "weights", monkeypatch)
    source = source_picture(tmp_path)
    found = {}
    for strength in ("", "0", "0.5", "1"):
        options = ["--denoise", strength] if strength else []
        found[strength] = upscaled(source, model, "--overwrite", *options).astype(int)
    assert (found[""] == found["0.5"]).all()
    assert np.abs(found["0"] - found["1"]).mean() > 2
    row = zoo.spec(model)
    assert row.blend is not None
    files = [tmp_path / "weights" / name for name in (row.sources[0].name, row.blend.name)]
    main_weights, wdn = (torch.load(file, weights_only=True)["params"] for file in files)
    blended = {key: 0.3 * main_weights[key] + 0.7 * wdn[key] for key in wdn}
    torch.save({"params": blended}, tmp_path / "blended.pth")
    by_hand = upscaled(source, str(tmp_path / "blended.pth"), "--overwrite").astype(int)
    for backend in ("pytorch", "onnxruntime"):
        options = ["--denoise", "0.3", "--overwrite", "--backend", backend]
        assert np.abs(upscaled(source, model, *options) - by_hand).max() <= 1
    capsys.readouterr()
    for other in ("default", "realesrgan-x4plus", str(tmp_path / "blended.pth")):
        large = tmp_path / "none.png"
        wish = [str(source), "-o", str(large), "--model", other, "--denoise", "0.3"]
        assert main(["upscale", *wish]) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1
        assert "a denoising strength is for realesr-general-x4v3, not for" in told[0]
        assert not large.exists()


# --- depth, alpha and grey through a net that makes colours --------------------------------------

COLOURED = "realesr-animevideov3-x4"


#: What is invisible of a picture with alpha; the net sees 18 pixels far.
CLEAR, SEES = 10, 19


@cache
def kinds() -> dict[str, NDArray[Any]]:
    """One picture in all forms, RGB(A) or grey."""
    small = np.ascontiguousarray(bright_frame(61, 40)[..., 2::-1])
    grey = np.ascontiguousarray(small[..., 1])
    alpha = np.full((*grey.shape, 1), 255, np.uint8)
    alpha[:, :CLEAR] = 0
    deep = np.uint16(257)
    return {
        "rgb.png": small,
        "rgb16.png": small * deep,
        "rgb16.tif": small * deep,
        "rgba.png": np.dstack((small, alpha)),
        "rgba16.png": np.dstack((small, alpha)) * deep,
        "grey.png": grey,
        "grey16.png": grey * deep,
        "grey16.tif": grey * deep,
    }


def saved(path: Path, pixels: NDArray[Any]) -> Path:
    order = {2: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}
    if pixels.ndim == 3:
        pixels = pixels[..., order[pixels.shape[2]]]
    assert cv2.imwrite(str(path), pixels)
    return path


def opened(path: Path) -> NDArray[Any]:
    """Read with all its bits, RGB(A) or grey."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    if pixels.ndim == 2:
        return pixels
    return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]


def expected_of(pixels: NDArray[Any]) -> NDArray[Any]:
    """What PyTorch makes of a picture, in levels of 255: RGB, or the luma of grey."""
    levels = pixels / (257 if pixels.dtype == np.uint16 else 1)
    rgb = np.dstack([levels] * 3) if levels.ndim == 2 else levels[..., :3]
    large = torch_nets.open_net(load.read(load.locate(COLOURED)), "cpu").run(
        np.ascontiguousarray(rgb, np.float32)
    )
    large = large.clip(0, 255)
    return large @ np.array([0.299, 0.587, 0.114]) if levels.ndim == 2 else large


@pytest.mark.parametrize("kind", kinds())
def test_depth_alpha_and_grey_pass_through_a_net_for_colours(kind: str, tmp_path: Path) -> None:
    pixels = kinds()[kind]
    source = saved(tmp_path / f"in.{kind}", pixels)
    out = tmp_path / f"out.{kind}"
    assert main(["upscale", str(source), "-o", str(out), "--model", COLOURED]) == 0
    large, truth = opened(out), expected_of(pixels)
    assert large.dtype == pixels.dtype
    assert large.shape == (160, 244, *pixels.shape[2:])
    deep = 257 if pixels.dtype == np.uint16 else 1
    levels = large / deep
    if kind.startswith("rgba"):
        alpha = levels[..., 3]
        assert (alpha[:, 4 * CLEAR + 8 :] == 255).all()
        assert (alpha[:, : 4 * CLEAR - 8] == 0).all()
        assert len(np.unique(alpha)) > 2, "an edge is enlarged softly"
        visible = slice(4 * (CLEAR + SEES), None)
        levels, truth = levels[:, visible, :3], truth[:, visible]
    assert truth.std() > 15
    # Half a level for each rounding: to colours, and of grey to luma again.
    roundings = 2 if kind.startswith("grey") else 1
    assert np.abs(levels - truth).max() <= 0.51 * roundings / deep + 0.005


# --- ResShift ------------------------------------------------------------------------------------

RESSHIFT = {
    "ResShift_RealSRx4": ("resshift-v1", "resshift_realsrx4_s15.pth"),
    "resshift_realsrx4_s15_v1": ("resshift-v1", "resshift_realsrx4_s15_v1.pth"),
    "resshift_realsrx4_s4_v3": ("resshift-v3", "resshift_realsrx4_s4_v3.safetensors"),
    "ResShift_BicSRx4_OpenCV": ("resshift-bicsrx4-opencv", "resshift_bicsrx4_opencv_s15.pth"),
    "ResShift_BicSRx4_Matlab": ("resshift-bicsrx4-matlab", "resshift_bicsrx4_matlab_s15.pth"),
}


@pytest.fixture
def nets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], resshift.ResShift]:
    """Put tiny nets into files of released names; gives the model that they are."""
    monkeypatch.setattr(resshift, "UNET", diffusion.UNET)
    monkeypatch.setattr(resshift, "AUTOENCODER", diffusion.AUTOENCODER)
    offline._say_non_commercial.cache_clear()

    def made(name: str) -> resshift.ResShift:
        row, file = RESSHIFT[name]
        unet, codes = SwinUnet(diffusion.UNET), VqAutoencoder(diffusion.AUTOENCODER)
        for seed, net in enumerate((unet, codes)):
            diffusion.lively(net, seed)
        folder = tmp_path / "weights"
        save = save_file if file.endswith(".safetensors") else torch.save
        save(dict(unet.state_dict()), folder / file)
        save_file(codes.state_dict(), folder / "autoencoder_vq_f4.safetensors")
        return resshift.ResShift(row, resshift.VARIANTS[row], unet, codes)

    return made


@pytest.mark.parametrize("name", RESSHIFT)
def test_resshift_from_checkpoint_to_picture(
    name: str, tmp_path: Path, nets: Callable[[str], resshift.ResShift],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    model = nets(name)
    source = source_picture(tmp_path)
    out = tmp_path / "large.png"
    written = []
    with caplog.at_level(logging.WARNING):
        for seed in (3, 3, 4):
            # 16 source pixels a chunk: four chunks, which overlap
            wish = ["--model", name, "--seed", str(seed), "--tile", "16", "--overwrite"]
            assert main(["upscale", str(source), "-o", str(out), *wish]) == 0
            written.append(out.read_bytes())
            enlarge._opened.cache_clear()
    assert written[0] == written[1], "a seed gives the same bytes"
    assert written[0] != written[2], "another seed another picture"
    with Image.open(source) as image:
        small = np.asarray(image)
    with Image.open(out) as image:
        large = np.asarray(image)
    assert (large == model.upscale(small, seed=4, chunk=16)).all()
    assert large.shape == (HEIGHT * 4, WIDTH * 4, 3)
    assert large.std() > 4, "a flat picture compares nothing"
    licences = [text for text in caplog.messages if "not for commercial use" in text]
    assert len(licences) == 1, "said once, not for every picture"


def test_resshift_is_refused_by_what_cannot_run_it(
    tmp_path: Path, nets: Callable[[str], resshift.ResShift], capsys: pytest.CaptureFixture[str]
) -> None:
    nets("ResShift_RealSRx4")
    source = source_picture(tmp_path)
    for wish, message in (
        (["--backend", "onnxruntime"], "runs in PyTorch only"),
        (["--denoise", "0.5"], "strength is for realesr-general-x4v3, not for"),
    ):
        out = str(tmp_path / "none.png")
        assert main(["upscale", str(source), "-o", out, "--model", "ResShift_RealSRx4", *wish]) == 2
        assert message in capsys.readouterr().err
