"""Ordinary nets for pictures in files: tiles, memory, 16 bits, and what runs them."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from engines import export, load, nets, offline_net, tiles, zoo
from engines.cache import EngineCache, Entry
from engines.errors import BuilderMissing, BuildFailed, EngineError, UsageError
from engines.offline import open_offline
from engines.offline_net import OfflineNet
from engines.spec import ModelSpec
from overlay.infer.merge import merge_luma
from tests.engines.nets import game_frame, random_net

Floats = NDArray[np.float32]
SMALL = {
    "realesrgan-x4plus": {"features": 8, "growth": 4, "blocks": 6},
    "realesrgan-x2plus": {"features": 8, "growth": 4, "blocks": 6},
    "realesr-animevideov3-x4": {"features": 16, "convs": 6},
    "realesr-animevideov3-x3": {"features": 16, "convs": 6},
    "span-x2": {},
    "emt-x4": {"features": 30, "blocks": 1, "layers": 3, "attending": 2},
}


def picture(width: int, height: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(game_frame(width, height)[..., 2::-1])


def small(name: str) -> OfflineNet:
    loaded = random_net(name, **SMALL[name])
    return OfflineNet(name, nets.open_net(loaded, "cpu"))


@pytest.mark.parametrize(("width", "height"), [(97, 61), (33, 70)])
@pytest.mark.parametrize("name", [*SMALL, "default-x4", "default-x3"])
def test_tiled_is_untiled(name: str, width: int, height: int) -> None:
    model = small(name) if name in SMALL else open_offline(name, device="cpu")
    source = picture(width, height)
    kept = source.copy()
    whole = model.upscale(source, chunk=1000)
    told: list[float] = []
    tiled = model.upscale(source, chunk=32, progress=told.append)
    assert whole.shape == (height * model.scale, width * model.scale, 3)
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    assert len(told) > 2
    assert told == sorted(told)
    assert told[-1] == 1
    assert (source == kept).all()


def test_without_margins_tiles_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_offline("default-x4", device="cpu")
    source = picture(97, 61)
    whole = model.upscale(source, chunk=1000)
    monkeypatch.setattr(tiles, "margin_of", lambda spec: 0)
    assert np.abs(whole.astype(int) - model.upscale(source, chunk=32)).max() > 1


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_default_nets_give_what_is_shown_live_whatever_runs_them(scale: int) -> None:
    source = picture(61, 35)
    name = f"default-x{scale}"
    in_openvino = open_offline(name, device="cpu", backend="openvino").upscale(source)
    for other in ("onnxruntime", "pytorch"):
        found = open_offline(name, device="cpu", backend=other).upscale(source)  # type: ignore[arg-type]
        assert np.abs(in_openvino.astype(int) - found).max() <= 1, other
    bgra = game_frame(61, 35)
    module = load.read(load.locate(name)).module
    assert module is not None
    blocks = module(torch.from_numpy(bgra)[None])[0].numpy()
    luma = blocks.reshape(35, 61, scale, scale).transpose(0, 2, 1, 3)
    shown = merge_luma(bgra, np.ascontiguousarray(luma).reshape(35 * scale, 61 * scale))
    assert np.abs(in_openvino.astype(int) - shown[..., 2::-1]).max() <= 1


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "pytorch"])
def test_sixteen_bits_are_more_than_eight(backend: str) -> None:
    ramp = np.linspace(20000, 22000, 64).astype(np.uint16)
    source = np.broadcast_to(ramp[None, :, None], (20, 64, 3)).copy()
    model = open_offline("default-x2", device="cpu", backend=backend)  # type: ignore[arg-type]
    large = model.upscale(source)
    assert large.dtype == np.uint16
    assert len(np.unique(large)) > 100, "8 bits would leave nine levels"
    coarse = model.upscale((source // 257).astype(np.uint8)).astype(int)
    assert np.abs(large / 257 - coarse).max() < 2


class Greedy(nets.Net):
    """Repeats pixels; fails above a size, as told."""

    runtime = "a test"

    def __init__(self, largest: int, error: Exception) -> None:
        self.spec = ModelSpec("greedy", "compact", 2, "", (), receptive_field=2)
        self.largest, self.error = largest, error
        self.sizes: list[tuple[int, int]] = []

    def run(self, rgb: Floats) -> Floats:
        self.sizes.append((rgb.shape[1], rgb.shape[0]))
        if max(rgb.shape) > self.largest:
            raise self.error
        return rgb.repeat(2, 0).repeat(2, 1)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes"),
    ],
)
def test_tiles_are_halved_when_memory_is_short(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    source = picture(300, 200)
    net = Greedy(80, error)
    with caplog.at_level(logging.WARNING):
        large = OfflineNet("greedy", net).upscale(source)
    assert (large == source.repeat(2, 0).repeat(2, 1)).all()
    assert max(net.sizes[-1]) <= 80
    assert "too little memory for tiles of 300: 150" in caplog.text


def test_the_smallest_tiles_must_fit() -> None:
    with pytest.raises(EngineError, match="not enough memory for tiles of 32"):
        OfflineNet("greedy", Greedy(20, MemoryError())).upscale(picture(300, 200))


def test_other_errors_are_not_taken_for_memory() -> None:
    net = Greedy(20, RuntimeError("shapes do not match"))
    with pytest.raises(EngineError, match="greedy failed: shapes do not match"):
        OfflineNet("greedy", net).upscale(picture(300, 200))
    assert len(net.sizes) == 1


def test_tiles_follow_the_free_memory() -> None:
    rrdb, luma = zoo.spec("realesrgan-x4plus"), zoo.spec("default-x4")
    assert tiles.tile_for(rrdb, 0) == tiles.SMALLEST
    assert tiles.tile_for(rrdb, 1 << 30) < tiles.tile_for(rrdb, 4 << 30)
    assert tiles.tile_for(luma, 64 << 30) == tiles.tile_for(luma, 32 << 30)
    assert tiles.tile_for(rrdb, 1 << 30) < tiles.tile_for(luma, 1 << 30)
    assert 1 << 20 < tiles.free_memory() < 1 << 50


def test_places_of_tiles_are_on_the_nets_grid() -> None:
    spec = replace(zoo.spec("realesrgan-x2plus"), receptive_field=5)
    starts: list[tuple[int, ...]] = list(tiles.spans(61, 15, tiles.margin_of(spec), 2))
    assert starts == [(0, 16, -6, 22), (16, 32, 10, 38), (32, 48, 26, 54), (48, 61, 42, 67)]


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), int)]
)
def test_other_arrays_are_refused(bad: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="a picture is"):
        OfflineNet("greedy", Greedy(99, MemoryError())).upscale(bad)


@pytest.fixture
def users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A net of a user's, and a cache of engines of the test's own."""
    monkeypatch.setenv("OVERLAY_CACHE", str(tmp_path / "cache"))
    module = small("realesr-animevideov3-x4")._net._net  # type: ignore[attr-defined]
    save_file(module.state_dict(), tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def test_onnxruntime_runs_what_was_exported_once(
    users_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = picture(41, 30).astype(np.uint16) * 257
    expected = open_offline(str(users_file), device="cpu", backend="pytorch").upscale(deep)
    model = open_offline(str(users_file), backend="onnxruntime")
    assert isinstance(model, OfflineNet)
    assert "ONNX Runtime" in model.about
    found = model.upscale(deep)
    assert found.dtype == np.uint16
    assert np.abs(found.astype(int) - expected).max() <= 8, "of 65535"
    (kept,) = EngineCache().entries()
    monkeypatch.setattr(export, "export", None)
    again = open_offline(str(users_file), backend="onnxruntime").upscale(deep, chunk=32)
    assert np.abs(again.astype(int) - expected).max() <= 8
    assert EngineCache().entries() == [kept]


def test_a_damaged_export_is_made_again(users_file: Path) -> None:
    source = picture(20, 10)
    expected = open_offline(str(users_file), backend="onnxruntime").upscale(source)
    (entry,) = EngineCache().entries()
    assert isinstance(entry, Entry)
    content = bytearray(entry.path.read_bytes())
    content[len(content) // 2] ^= 1
    entry.path.write_bytes(content)
    again = open_offline(str(users_file), backend="onnxruntime").upscale(source)
    assert (again == expected).all()


def test_a_net_that_cannot_be_exported_says_why(
    users_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(export, "_traced", fails)
    with pytest.raises(BuildFailed, match="cannot be exported to ONNX: no such operator"):
        open_offline(str(users_file), backend="onnxruntime")


def test_what_cannot_run_a_model_is_refused() -> None:
    with pytest.raises(UsageError, match="ONNX Runtime runs on the CPU here, default-x2 not on"):
        open_offline("default-x2", device="cuda", backend="onnxruntime")
    with pytest.raises(UsageError, match="OpenVINO runs the nets that come with the program"):
        open_offline("realesr-animevideov3-x4", device="cpu", backend="openvino")
    with pytest.raises(UsageError, match="default-x2 on cuda"):
        open_offline("default-x2", device="cuda", backend="openvino")
    with pytest.raises(BuilderMissing, match="cannot use the device 'toaster'"):
        open_offline("default-x2", device="toaster")


def test_shipped_nets_need_no_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        offline_net, "find_spec", lambda name: None if name == "torch" else object()
    )
    monkeypatch.setattr(nets, "TorchNet", None)
    model = open_offline("default-x2")
    assert isinstance(model, OfflineNet)
    assert "OpenVINO" in model.about


def test_a_users_onnx_file(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper = onnx.helper
    value = [1, 3, "h", "w"], [1, 3, "y", "x"]
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Resize", ["in", "", "by"], ["out"], mode="nearest")], "twice",
        [helper.make_tensor_value_info("in", kind, value[0])],
        [helper.make_tensor_value_info("out", kind, value[1])],
        [onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "by")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "twice.onnx")
    source = picture(50, 40)
    expected = cv2.resize(source, (100, 80), interpolation=cv2.INTER_NEAREST)
    for backend in ("auto", "onnxruntime"):
        found = open_offline(str(tmp_path / "twice.onnx"), backend=backend).upscale(  # type: ignore[arg-type]
            source, chunk=32
        )
        assert np.abs(found.astype(int) - expected).max() <= 1
    with pytest.raises(UsageError, match="ONNX files run on the CPU"):
        open_offline(str(tmp_path / "twice.onnx"), device="cuda")
