"""ResShift behind the protocol of offline models: pictures, seeds, chunks, files, refusals."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engines import cli, load, offline, zoo
from engines.diffusion import resshift
from engines.diffusion.autoencoder import VqAutoencoder
from engines.diffusion.resshift import ResShift
from engines.diffusion.schedule import Schedule
from engines.diffusion.unet import SwinUnet
from engines.errors import (
    BuilderMissing,
    EngineError,
    ModelInvalid,
    UnknownModel,
    UsageError,
    WeightsMissing,
)
from engines.offline import levels_from_unit, open_offline, unit_from_levels
from overlay.errors import SettingsError
from overlay.infer import check_model
from tests.engines.diffusion.conftest import AUTOENCODER, UNET

NET = "resshift_realsrx4_s15_v1.pth"
CODES = "autoencoder_vq_f4.safetensors"


def picture(height: int = 11, width: int = 19, dtype: type[Any] = np.uint8) -> np.ndarray:
    unit = np.random.default_rng(0).random((height, width, 3), np.float32)
    return levels_from_unit(unit, np.dtype(dtype))


# --- pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (8, 8), (11, 19), (40, 9)])
def test_any_size_is_enlarged_by_four(model: ResShift, size: tuple[int, int]) -> None:
    small = picture(*size)
    before = small.copy()
    large = model.upscale(small, chunk=16)
    assert (large.shape, large.dtype) == ((4 * size[0], 4 * size[1], 3), np.uint8)
    assert np.array_equal(small, before)
    assert large.std() > 0


def test_the_seed_decides_the_picture(model: ResShift) -> None:
    small = picture()
    first, again, other = (model.upscale(small, seed=seed, chunk=16) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert (first != other).mean() > 0.1


def test_the_three_types_are_one_picture(model: ResShift) -> None:
    unit = model.upscale(picture(dtype=np.uint8).astype(np.float32) / 255)
    assert (unit.dtype, unit.min() >= 0, unit.max() <= 1) == (np.float32, True, True)
    eight = model.upscale(picture(dtype=np.uint8))
    assert np.array_equal(eight, np.rint(unit * 255).astype(np.uint8))
    sixteen = model.upscale(picture(dtype=np.uint8).astype(np.uint16) * 257)
    assert sixteen.dtype == np.uint16
    assert np.abs(sixteen / 65535 - unit).max() < 1e-4


def test_levels_survive_the_way_there_and_back() -> None:
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
        line = np.arange(top + 1, dtype=dtype)[:, None, None].repeat(3, 2)
        unit = unit_from_levels(line)
        assert (unit[0, 0, 0], unit[-1, 0, 0]) == (0, 1)
        assert np.array_equal(levels_from_unit(unit, line.dtype), line)
    wild = np.array([[[-1.0, 0.5, 2.0]]], np.float32)
    assert unit_from_levels(wild).ravel().tolist() == [0, 0.5, 1]
    assert levels_from_unit(wild, np.dtype(np.uint8)).ravel().tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"not \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"not \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"not \(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.float64), "not float64"),
        (np.full((4, 4, 3), np.nan, np.float32), "NaN"),
    ],
)
def test_what_is_no_picture_is_refused(model: ResShift, wrong: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.upscale(wrong)


def test_seeds_and_chunks_that_cannot_be_are_refused(model: ResShift) -> None:
    with pytest.raises(ValueError, match="a seed is 0 or more, not -1"):
        model.upscale(picture(), seed=-1)
    for chunk in (-8, 4, 20):
        with pytest.raises(ValueError, match=f"multiples of 8, not {chunk}"):
            model.upscale(picture(), chunk=chunk)


class Seen(torch.nn.Module):
    """Stands for a net: keeps its input, gives what it is told."""

    def __init__(self, of: torch.nn.Module, answer: Callable[..., Tensor]) -> None:
        super().__init__()
        self.shape = of.shape
        self.device = torch.nn.Parameter(torch.zeros(1))
        self.answer = answer
        self.sources: list[Tensor] = []

    def forward(self, x: Tensor, steps: Tensor, source: Tensor) -> Tensor:
        self.sources.append(source)
        return self.answer(x)


class Plain(Seen):
    """An autoencoder that only changes the size; its latents are the colours."""

    def encode(self, large: Tensor) -> Tensor:
        self.sources.append(large)
        return torch.nn.functional.avg_pool2d(large, 4)

    def decode(self, latent: Tensor) -> Tensor:
        return self.answer(latent).repeat_interleave(4, 2).repeat_interleave(4, 3)


def plain_model(unet: SwinUnet, autoencoder: VqAutoencoder) -> tuple[ResShift, Seen, Plain]:
    """A model whose denoiser says: the small picture itself."""
    seen = Seen(unet, lambda x: seen.sources[-1])
    codes = Plain(autoencoder, lambda latent: latent)
    schedule = Schedule(3, 0.1)
    return ResShift("plain", schedule, seen, codes), seen, codes  # type: ignore[arg-type]


def test_colours_are_red_green_blue_from_minus_one_to_one(
    unet: SwinUnet, autoencoder: VqAutoencoder
) -> None:
    model, seen, codes = plain_model(unet, autoencoder)
    small = np.zeros((8, 8, 3), np.uint8)
    small[:] = (255, 127, 0)
    large = model.upscale(small)
    assert (large.reshape(-1, 3) == (255, 127, 0)).all()
    for told in (seen.sources[0], codes.sources[0]):
        colours = told.mean((0, 2, 3)).tolist()
        assert colours == pytest.approx([1, 127 / 255 * 2 - 1, -1], abs=1e-5)
    assert codes.sources[0].shape == (1, 3, 32, 32)


def test_the_picture_is_mirrored_to_a_multiple_and_cut_again(
    unet: SwinUnet, autoencoder: VqAutoencoder
) -> None:
    model, seen, _ = plain_model(unet, autoencoder)
    small = picture(5, 11)
    large = model.upscale(small)
    assert np.array_equal(large, small.repeat(4, 0).repeat(4, 1))
    source = seen.sources[0][0].permute(1, 2, 0).numpy() * 0.5 + 0.5
    mirrored = np.pad(small.astype(np.float32) / 255, ((0, 3), (0, 5), (0, 0)), "reflect")
    np.testing.assert_allclose(source, mirrored, atol=1e-6)


def test_a_large_picture_is_done_in_chunks_without_seams(
    unet: SwinUnet, autoencoder: VqAutoencoder
) -> None:
    model, seen, _ = plain_model(unet, autoencoder)
    small = picture(40, 61)
    told: list[float] = []
    large = model.upscale(small, chunk=16, progress=told.append)
    assert np.array_equal(large, small.repeat(4, 0).repeat(4, 1))
    assert {tuple(source.shape[2:]) for source in seen.sources} == {(16, 16)}
    assert len(told) == 3 * 5
    assert told[-1] == 1


def test_a_picture_smaller_than_a_chunk_is_one_chunk(model: ResShift) -> None:
    small = picture(16, 13)
    assert np.array_equal(model.upscale(small, chunk=16), model.upscale(small, chunk=64))


def test_too_little_memory_says_what_to_do(unet: SwinUnet, autoencoder: VqAutoencoder) -> None:
    def full(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model, seen, _ = plain_model(unet, autoencoder)
    seen.answer = full
    with pytest.raises(EngineError, match="chunks of 256; take smaller ones, 8 at least"):
        model.upscale(picture())


# --- files -----------------------------------------------------------------------------------


@pytest.fixture
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unet: SwinUnet, autoencoder: VqAutoencoder
) -> Path:
    """Files of the released names, with tiny nets in them."""
    monkeypatch.setattr(resshift, "UNET", UNET)
    monkeypatch.setattr(resshift, "AUTOENCODER", AUTOENCODER)
    torch.save(OrderedDict(unet.state_dict()), tmp_path / NET)
    for name in ("bicsrx4_opencv_s15", "bicsrx4_matlab_s15"):
        torch.save(OrderedDict(unet.state_dict()), tmp_path / f"resshift_{name}.pth")
    save_file(unet.state_dict(), tmp_path / "resshift_realsrx4_s4_v3.safetensors")
    save_file(autoencoder.state_dict(), tmp_path / CODES)
    offline._say_non_commercial.cache_clear()
    return tmp_path


def opened(folder: Path, name: str = "resshift-v1") -> offline.OfflineModel:
    return open_offline(name, (folder,), "cpu")


@pytest.mark.parametrize("name", resshift.VARIANTS)
def test_files_of_the_released_names_are_opened(
    folder: Path, name: str, unet: SwinUnet, autoencoder: VqAutoencoder
) -> None:
    model = opened(folder, name)
    assert isinstance(model, ResShift)
    assert (model.name, model.scale, model.schedule) == (name, 4, resshift.VARIANTS[name])
    alike = ResShift(name, resshift.VARIANTS[name], unet, autoencoder)
    assert np.array_equal(model.upscale(picture(), seed=4), alike.upscale(picture(), seed=4))


def test_the_licence_is_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for name in ("resshift-v1", "resshift-v3", "resshift-v1"):
            opened(folder, name)
    assert len(caplog.messages) == 1
    assert "not for commercial use: LicenseRef-S-Lab-1.0" in caplog.messages[0]
    assert "Zongsheng Yue" in caplog.messages[0]


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = NET) -> None:
    """Write the net's file again, after a change in place or with what `change` gives."""
    state = dict(torch.load(folder / NET, weights_only=True))
    content = change(state)
    torch.save(content if isinstance(content, dict) else state, folder / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("out.2.bias"), r"out\.2\.bias is absent, not 3"),
        (lambda state: state.update(extra=torch.zeros(2)), "extra is 2, not absent"),
        (
            lambda state: state.update({"out.2.bias": torch.zeros(4)}),
            r"out\.2\.bias is 4, not 3",
        ),
        (
            lambda state: state.pop("middle_block.1.blocks.1.attn_mask"),
            "attn_mask is absent, not 4x16x16",
        ),
        (lambda state: state.update({"out.2.bias": torch.full((3,), torch.nan)}), "NaN"),
    ],
    ids=["missing", "extra", "shape", "mask", "nan"],
)
def test_other_tensors_are_refused(
    folder: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    rewritten(folder, change)
    with pytest.raises(ModelInvalid, match=message) as caught:
        opened(folder)
    assert NET in str(caught.value)


def test_masks_and_positions_of_a_file_are_not_used(folder: Path) -> None:
    def spoilt(state: dict[str, Tensor]) -> None:
        for name in state:
            if name.endswith(("attn_mask", "relative_position_index")):
                state[name] = torch.full_like(state[name], 10**6)

    expected = opened(folder).upscale(picture(8, 8))
    rewritten(folder, spoilt)
    assert np.array_equal(opened(folder).upscale(picture(8, 8)), expected)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_training_leaves_around_the_tensors_is_taken_off(folder: Path, prefix: str) -> None:
    expected = opened(folder).upscale(picture(8, 8))
    rewritten(folder, lambda state: {"state_dict": {prefix + n: t for n, t in state.items()}})
    assert np.array_equal(opened(folder).upscale(picture(8, 8)), expected)


def test_weights_of_half_the_precision_are_computed_with_in_full(folder: Path) -> None:
    def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: t.half() if t.is_floating_point() else t for n, t in state.items()}

    rewritten(folder, halved)
    model = opened(folder)
    assert isinstance(model, ResShift)
    kept = torch.load(folder / NET, weights_only=True)
    for name, parameter in model._unet.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, kept[name].float())


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("echo run > run.txt",))


def test_nothing_in_a_file_is_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    rewritten(folder, lambda state: {**state, "out.2.bias": Evil()})
    with pytest.raises(ModelInvalid, match=r"wants to call.*nothing was run"):
        opened(folder)
    assert not Path("run.txt").exists()


def test_a_file_that_is_not_the_released_one_is_refused(folder: Path) -> None:
    rewritten(folder, lambda state: None, "resshift_realsrx4_s4_v3.pth")
    with pytest.raises(ModelInvalid, match=r"is not the released resshift_realsrx4_s4_v3\.pth"):
        opened(folder, "resshift-v3")


def test_a_file_that_changes_meanwhile_is_refused(folder: Path) -> None:
    located = load.locate("resshift-v1", (folder,))
    assert [path.name for path in located.files] == [NET, CODES]
    rewritten(folder, lambda state: state["out.2.bias"].add_(1))
    with pytest.raises(ModelInvalid, match="has changed"):
        resshift.open_resshift(located, "cpu")


@pytest.mark.parametrize("missing", [NET, CODES])
def test_missing_files_are_named_with_their_address(
    folder: Path, missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(load, "user_weights_folder", lambda: tmp_path / "none")
    monkeypatch.delenv(load.WEIGHTS_VARIABLE, raising=False)
    (folder / missing).unlink()
    with pytest.raises(WeightsMissing) as caught:
        opened(folder)
    stem = Path(missing).stem
    assert f"put {stem}.pth (https://github.com/zsyOAOA/ResShift/" in str(caught.value)
    assert ".safetensors" not in str(caught.value)


def test_names_that_cannot_be_opened(folder: Path) -> None:
    with pytest.raises(UsageError, match="runs in PyTorch only: leave out --backend"):
        open_offline("resshift-v3", (folder,), "cpu", "openvino")
    with pytest.raises(UnknownModel, match="did you mean 'resshift-v3'"):
        open_offline("resshift-v4")


def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(BuilderMissing, match="cannot use the device 'cuda:77'"):
        open_offline("resshift-v1", (folder,), "cuda:77")
    with pytest.raises(BuilderMissing, match="cannot use the device 'toaster'"):
        open_offline("resshift-v1", (folder,), "toaster")


def test_the_way_in_imports_nothing_heavy() -> None:
    code = "import sys, engines.offline; print([m for m in ('torch', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n"


# --- what else knows the rows ----------------------------------------------------------------


def test_the_rows_of_the_zoo() -> None:
    rows = [row for row in zoo.ZOO if row.offline]
    assert [row.id for row in rows] == list(resshift.VARIANTS)
    for row in rows:
        assert (row.scale, row.has_weights) == (4, True)
        assert "non-commercial" in row.licence
        assert f"_s{resshift.VARIANTS[row.id].steps}" in row.sources[0].name
        assert row.beside[0].name == "autoencoder_vq_f4.pth"
    assert zoo.spec("resshift_realsrx4_s4_v3").id == "resshift-v3"
    assert [row.sources[0].name for row in rows] == [
        "resshift_realsrx4_s15_v1.pth",
        "resshift_realsrx4_s4_v3.pth",
        "resshift_bicsrx4_opencv_s15.pth",
        "resshift_bicsrx4_matlab_s15.pth",
    ]


@pytest.mark.parametrize("name", ["resshift-v1", "ResShift_v3"])
def test_the_overlay_refuses_them_in_one_line(name: str) -> None:
    with pytest.raises(SettingsError, match=r"^resshift-v\d is offline: .* choose another model$"):
        check_model(name)


def test_the_overlay_s_exit_code_is_that_of_a_wrong_option() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "overlay",
            "run",
            "--model",
            "resshift-v3",
            "--source",
            "replay:pattern",
            "--present",
            "offscreen",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "resshift-v3 is offline" in done.stderr


def test_nets_that_run_live_are_not_refused() -> None:
    for name in ("default", "fsr1", "default-x4", "realesr-general-x4v3@0.3", "span-x2"):
        check_model(name)


def engines_command(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, Any]:
    import argparse

    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    code = cli.run(parser.parse_args([*options, "--json", "--progress", "none"]))
    return code, json.loads(capsys.readouterr().out)["engines"]


def test_there_are_no_engines_of_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, (row,) = engines_command(capsys, "--models", "resshift-v3", "--backend", "onnx")
    assert (code, row["status"], row["model"]) == (5, "offline", "resshift-v3")
    assert "there are no engines of it" in row["reason"]
    few = tuple(row for row in zoo.ZOO if row.offline)
    monkeypatch.setattr(zoo, "ZOO", few)
    for more in ((), ("--random-weights",)):
        _, rows = engines_command(capsys, "--models", "all", "--backend", "onnx", *more)
        assert [row["status"] for row in rows] == ["offline"] * len(few)
        assert not any(row["named"] for row in rows if "named" in row)


def test_they_are_not_read_as_nets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="resshift-v1 is offline"):
        load.read(load.locate("resshift-v1", (folder,)))
    row = zoo.spec("resshift-v3")
    digest = hashlib.sha256((folder / NET).read_bytes()).hexdigest()
    known = replace(row, sources=(replace(row.sources[0], sha256=digest),))
    monkeypatch.setattr(zoo, "ZOO", (known,))
    with pytest.raises(UsageError, match=f"{NET} is of resshift-v3, and resshift-v3 is offline"):
        load.locate(str(folder / NET))
