"""The luma net: its two forms agree, and torch, onnxruntime and OpenVINO agree."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from engines import load, zoo
from engines.archs.luma import LumaNet, LumaPicture, TrainableLumaNet, bilinear_phases
from engines.build.openvino import shared_core
from engines.export import onnx_model

CROPS = Path(__file__).parents[1] / "data" / "freedoom"
NAMES = ("default-x2", "default-x3", "default-x4")
Bytes = NDArray[np.uint8]


def random_net(scale: int, seed: int = 0) -> TrainableLumaNet:
    """A net as after some training: every parameter moved."""
    torch.manual_seed(seed)
    net = TrainableLumaNet(scale, channels=8, depth=3)
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


def noise(height: int, width: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)


def game_frame() -> Bytes:
    """A Freedoom crop, BGRA."""
    picture = cv2.imread(str(sorted(CROPS.glob("*-x4-lr.png"))[0]))
    assert picture is not None
    return cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA).astype(np.uint8)


@cache
def shipped(name: str) -> LumaNet:
    return LumaNet(load.state_dict(zoo.spec(name)))


def in_torch(net: LumaNet, bgra: Bytes) -> Bytes:
    return np.asarray(net(torch.from_numpy(bgra)[None])[0].numpy(), np.uint8)


def in_onnxruntime(model: bytes, bgra: Bytes) -> Bytes:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"bgra": bgra[None]})[0][0], np.uint8)


def in_openvino(model: bytes, bgra: Bytes) -> Bytes:
    core = shared_core()
    compiled = core.compile_model(
        core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return np.asarray(compiled([bgra[None]])[0][0], np.uint8)


def assert_within_one_level(a: Bytes, b: Bytes) -> None:
    assert a.shape == b.shape
    difference = np.abs(a.astype(int) - b)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_collapsed_layers_equal_expanded_ones(scale: int) -> None:
    net = random_net(scale)
    x = torch.rand(2, 1, 20, 24)
    for index, layer in enumerate(net.layers):
        expanded = layer.forward_expanded(x)
        torch.testing.assert_close(layer(x), expanded, rtol=1e-4, atol=1e-5)
        x = torch.relu(expanded)
        assert float(x.detach().std()) > 1e-3, f"layer {index} is dead; the comparison says nothing"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_shipped_form_equals_trainable_form(scale: int) -> None:
    net = random_net(scale)
    bgra = noise(20, 24)
    m = net.margin
    luma = torch.from_numpy(bgra[..., :3].astype(np.float32) @ np.float32([0.114, 0.587, 0.299]))
    with torch.no_grad():
        expected = net(luma[None, None] / 255)[0, 0] * 255
    blocks = in_torch(LumaNet(net.folded()), bgra)[m:-m, m:-m]
    h, w = blocks.shape[:2]
    picture = blocks.reshape(h, w, scale, scale).transpose(0, 2, 1, 3).reshape(h * scale, -1)
    assert_within_one_level(picture, expected.round().clamp(0, 255).byte().numpy())


def test_an_untrained_net_is_a_bilinear_upscale() -> None:
    net = TrainableLumaNet(4)
    for layer in net.layers:
        layer.project.data.zero_()
    bgra = np.repeat(noise(12, 12)[..., :1], 4, axis=-1)
    blocks = in_torch(LumaNet(net.folded()), bgra)
    picture = blocks.reshape(12, 12, 4, 4).transpose(0, 2, 1, 3).reshape(48, 48)
    expected = cv2.resize(bgra[..., 0], (48, 48), interpolation=cv2.INTER_LINEAR)
    assert np.abs(picture.astype(int) - expected).max() <= 1


def test_bilinear_phases_sum_to_one() -> None:
    for scale in (2, 3, 4):
        sums = bilinear_phases(scale).sum(dim=(1, 2))
        torch.testing.assert_close(sums, torch.ones(scale * scale))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("picture", [game_frame, lambda: noise(40, 56)], ids=["game", "noise"])
def test_backends_agree(name: str, picture: object) -> None:
    assert callable(picture)
    bgra: Bytes = picture()
    model = load.onnx_bytes(zoo.spec(name))
    expected = in_torch(shipped(name), bgra)
    assert_within_one_level(in_onnxruntime(model, bgra), expected)
    assert_within_one_level(in_openvino(model, bgra), expected)


@pytest.mark.parametrize(("height", "width"), [(271, 481), (1, 1), (7, 3)])
def test_any_size_works(height: int, width: int) -> None:
    bgra = noise(height, width)
    model = load.onnx_bytes(zoo.spec("default-x3"))
    expected = in_torch(shipped("default-x3"), bgra)
    assert expected.shape == (height, width, 9)
    assert_within_one_level(in_openvino(model, bgra), expected)
    assert_within_one_level(in_onnxruntime(model, bgra), expected)


@pytest.mark.parametrize("name", NAMES)
def test_alpha_is_ignored(name: str) -> None:
    a = noise(24, 24)
    b = a.copy()
    b[..., 3] = 255 - b[..., 3]
    net = shipped(name)
    assert (in_torch(net, a) == in_torch(net, b)).all()
    b[..., 2] = 255 - b[..., 2]
    assert (in_torch(net, a) != in_torch(net, b)).any()


@pytest.mark.parametrize("name", NAMES)
def test_borders_are_those_of_a_picture_continued_by_its_edge(name: str) -> None:
    bgra = game_frame()
    m = len(shipped(name).convs)
    wider = np.pad(bgra, ((m, m), (m, m), (0, 0)), mode="edge")
    expected = in_torch(shipped(name), wider)[m:-m, m:-m]
    assert_within_one_level(in_torch(shipped(name), bgra), expected)
    black = np.pad(bgra, ((m, m), (m, m), (0, 0)))
    assert (in_torch(shipped(name), black)[m:-m, m:-m] != expected).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [0, 1, 64, 128, 254, 255])
def test_flat_pictures_stay_flat(name: str, level: int) -> None:
    blocks = in_torch(shipped(name), np.full((16, 16, 4), level, np.uint8))
    assert np.abs(blocks.astype(int) - level).max() <= 2


def test_export_gives_the_graph_that_every_backend_takes() -> None:
    net = random_net(2)
    model = onnx_model(net.folded(), "tiny")
    operators = [node.op_type for node in model.graph.node]
    assert operators[:3] == ["Transpose", "Cast", "Pad"]
    assert operators[-4:] == ["Round", "Clip", "Cast", "Transpose"]
    kinds = {
        value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)
    }
    assert kinds == {onnx.TensorProto.UINT8}
    bgra = noise(13, 11)
    expected = in_torch(LumaNet(net.folded()), bgra)
    assert_within_one_level(in_onnxruntime(model.SerializeToString(), bgra), expected)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_form_for_gpus_puts_the_blocks_together(scale: int) -> None:
    net = LumaNet(random_net(scale).folded())
    bgra = noise(9, 7)
    planes = torch.from_numpy(bgra.transpose(2, 0, 1).astype(np.float32))[None]
    with torch.no_grad():
        picture = LumaPicture(net)(planes)[0, 0].round().clamp(0, 255).to(torch.uint8).numpy()
    blocks = in_torch(net, bgra)
    assert picture.shape == (9 * scale, 7 * scale)
    for index in range(scale * scale):
        assert (
            picture[index // scale :: scale, index % scale :: scale] == blocks[..., index]
        ).all()


def test_shipped_graphs_hold_no_trace_of_the_machine_they_were_made_on() -> None:
    for row in zoo.SHIPPED:
        data = load.onnx_bytes(row)
        assert b"/" not in data.replace(b"ai.onnx/", b"") or b".py" not in data
        assert len(onnx.load_from_string(data).metadata_props) == 0
