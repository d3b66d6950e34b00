"""Exported graphs: the same pictures as PyTorch's, in the form that every back end takes."""

from __future__ import annotations

import copy
import logging
import math
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from engines import graph, load, zoo
from engines.archs.luma import LumaNet
from engines.errors import BuilderMissing, BuildFailed
from engines.export import export, publish
from engines.fp16 import halved
from engines.load import Loaded
from engines.spec import Precision
from tests.engines.nets import (
    SMALL,
    Pixels,
    conv_and_shuffle,
    exported,
    game_frame,
    resized_by_computed_sizes,
    small,
    user_graph,
)

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
SIZE = (42, 34)


def picture(data: bytes, bgra: Pixels) -> Pixels:
    """Run a graph on one frame."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["picture"], {"bgra": bgra[None]})[0][0], np.uint8)


def kinds_inside(data: bytes) -> dict[str, int]:
    """The element type of every value and weight."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data))
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_graph_gives_what_pytorch_gives(name: str, precision: Precision) -> None:
    loaded = small(name)
    data = exported(name, precision, SIZE)
    graph.check(data)
    found = graph.compare(data, loaded, [game_frame(*SIZE, index) for index in (1, 3)])
    graph.require(found, replace(loaded.spec, fp16_mean=0.05), precision)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_casts_touch_bytes_and_fp16_is_fp16_throughout(
    name: str, precision: Precision
) -> None:
    loaded = small(name)
    scale = loaded.spec.scale
    data = exported(name, precision, SIZE)
    model = onnx.load_from_string(data)
    nodes = model.graph.node
    assert (nodes[0].op_type, list(nodes[0].input)) == ("Cast", ["bgra"])
    assert (nodes[-1].op_type, list(nodes[-1].output)) == ("Cast", ["picture"])
    channels = [4] if loaded.spec.output == "bgra" else []
    shapes = [
        [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (model.graph.input[0], model.graph.output[0])
    ]
    assert shapes == [[1, 34, 42, 4], [1, 34 * scale, 42 * scale, *channels]]
    kinds = kinds_inside(data)
    wanted, other = TensorProto.FLOAT, TensorProto.FLOAT16
    if precision == "fp16":
        wanted, other = other, wanted
    scales = {node.input[2] for node in nodes if node.op_type == "Resize"}  # always FP32
    assert list(kinds.values()).count(wanted) > 10
    assert {key for key, kind in kinds.items() if kind == other} <= scales
    assert [key for key, kind in kinds.items() if kind == TensorProto.UINT8] == ["bgra", "picture"]


def test_pixel_shuffles_are_one_node_each() -> None:
    for name, scale in (("default-x3", 3), ("superultracompact-x2", 2)):
        model = onnx.load_from_string(exported(name, "fp16", SIZE))
        shuffles = [node for node in model.graph.node if node.op_type == "DepthToSpace"]
        assert len(shuffles) == 1
        options = {one.name: helper.get_attribute_value(one) for one in shuffles[0].attribute}
        assert options == {"blocksize": scale, "mode": b"CRD"}
        assert "Reshape" not in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("name", ["default-x2", "realesr-animevideov3-x3", "realesrgan-x2plus"])
def test_a_file_does_not_grow_with_the_frame(name: str) -> None:
    few, many = len(exported(name, "fp16", SIZE)), len(export(small(name), [(3840, 2160)], "fp16"))
    assert few > 10_000
    assert abs(many - few) < 200


@pytest.mark.parametrize("name", ["default-x2", "superultracompact-x2"])
def test_the_same_model_gives_the_same_bytes_without_a_trace_of_the_machine(name: str) -> None:
    first = exported(name, "fp16", SIZE)
    assert first == export(small(name), [SIZE], "fp16")
    folders = (str(Path.home()), str(Path.cwd()), str(Path(torch.__file__).parent), "/tmp")
    for trace in (*folders, ".py", "File ", "torch.", "namespace"):
        assert trace.encode() not in first
    model = onnx.load_from_string(first)
    assert (model.producer_name, model.producer_version) == ("sr-overlay", "")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_luma_pictures_are_the_shipped_net_s_blocks_put_together(precision: Precision) -> None:
    frame = game_frame(*SIZE)
    blocks = picture_of_blocks(frame, "default-x3")
    made = picture(exported("default-x3", precision, SIZE), frame)
    assert made.shape == (102, 126)
    apart = np.abs(made.astype(int) - blocks)
    assert apart.max() <= (1 if precision == "fp16" else 0)
    assert blocks.std() > 5


def picture_of_blocks(frame: Pixels, name: str) -> Pixels:
    """What the shipped graph gives, its blocks put together pixel by pixel."""
    session = onnxruntime.InferenceSession(load.onnx_bytes(zoo.spec(name)))
    blocks = np.asarray(session.run(None, {"bgra": frame[None]})[0][0])
    scale = math.isqrt(blocks.shape[-1])
    whole = np.empty((blocks.shape[0] * scale, blocks.shape[1] * scale), np.uint8)
    for index in range(scale * scale):
        whole[index // scale :: scale, index % scale :: scale] = blocks[..., index]
    return whole


def test_sizes_that_are_no_multiple_are_padded_with_the_edge_and_cropped() -> None:
    frame = game_frame(41, 33)
    wider = np.pad(frame, ((0, 1), (0, 1), (0, 0)), mode="edge")
    made = picture(exported("realesrgan-x2plus", "fp32", (41, 33)), frame)
    assert made.shape == (66, 82, 4)
    expected = picture(exported("realesrgan-x2plus", "fp32", SIZE), wider)[:66, :82]
    assert graph.difference([(made, expected)]).max <= 1


@pytest.mark.parametrize("name", ["default-x2", "realesr-animevideov3-x3", "realesrgan-x2plus"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_graph_takes_several_sizes(name: str, precision: Precision) -> None:
    loaded = small(name)
    sizes = ((32, 24), (40, 48))
    data = exported(name, precision, *sizes)
    graph.check(data)
    frames = [game_frame(*size) for size in (*sizes, (64, 32))]
    graph.require(graph.compare(data, loaded, frames), loaded.spec, precision)
    shape = onnx.load_from_string(data).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == [1, "height", "width", 4]


def test_several_sizes_that_need_padding_are_refused() -> None:
    with pytest.raises(BuildFailed, match=r"multiples of 2 .* 33x25; build one engine per size"):
        export(small("realesrgan-x2plus"), [(32, 24), (33, 25)], "fp32")


def test_no_size_is_a_caller_s_mistake() -> None:
    for sizes in ([], [(0, 8)]):
        with pytest.raises(ValueError, match="sizes must be positive"):
            export(small("default-x2"), sizes, "fp32")


def test_alpha_is_ignored_and_given_as_255() -> None:
    data = exported("superultracompact-x2", "fp16", SIZE)
    frame = game_frame(*SIZE)
    clear = frame.copy()
    clear[..., 3] = 7
    made = picture(data, clear)
    assert (made[..., 3] == 255).all()
    assert (made == picture(data, frame)).all()


class Shifted(nn.Module):
    """A net that gives its source again, brighter or darker: what leaves 0..1 is clamped."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("levels", [0.0, -0.4, 0.4, 0.6, 40.0, -300.0])
def test_values_are_rounded_and_clamped(levels: float, precision: Precision) -> None:
    row = replace(zoo.spec("compact-x2"), scale=1, shape=())
    loaded = replace(small("superultracompact-x2"), spec=row, module=Shifted(levels / 255))
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    frame = np.dstack((ramp, ramp.T, 255 - ramp, ramp))
    made = picture(export(loaded, [(16, 16)], precision), frame)
    expected = np.round(frame[..., :3] + np.float64(levels)).clip(0, 255)
    assert (made[..., :3] == expected).all()


def test_the_model_is_left_as_it_was() -> None:
    loaded = small("superultracompact-x2")
    assert loaded.module is not None
    before = copy.deepcopy(loaded.module.state_dict())
    export(loaded, [(24, 16)], "fp16")
    after = loaded.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not loaded.module.training


# --- users' graphs -----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sizes", [[(34, 26)], [(32, 24), (24, 32)]], ids=["fixed", "dynamic"])
def test_a_user_s_graph_gets_bytes_at_both_ends(
    sizes: list[tuple[int, int]], precision: Precision
) -> None:
    loaded = conv_and_shuffle()
    assert loaded.graph is not None
    before = loaded.graph.SerializeToString()
    data = export(loaded, sizes, precision)
    graph.check(data)
    found = graph.compare(data, loaded, [game_frame(*size) for size in sizes])
    graph.require(found, loaded.spec, precision)
    assert loaded.graph.SerializeToString() == before
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16}
    expected = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    assert floats.intersection(kinds_inside(data).values()) == {expected}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_user_s_fp16_graph_stays_fp16(precision: Precision) -> None:
    single = conv_and_shuffle()
    assert single.graph is not None
    loaded = replace(single, graph=halved(single.graph))
    data = export(loaded, [(34, 26)], precision)
    graph.check(data)
    graph.require(graph.compare(data, loaded, [game_frame(34, 26)]), loaded.spec, precision)
    casts = [node.op_type for node in onnx.load_from_string(data).graph.node].count("Cast")
    assert casts == (2 if precision == "fp16" else 4)


def test_names_in_a_user_s_graph_may_be_ours() -> None:
    loaded = conv_and_shuffle(names=("picture", "bgra"))
    data = export(loaded, [(24, 16)], "fp32")
    assert graph.compare(data, loaded, [game_frame(24, 16)]).max <= 1


def test_an_older_opset_is_brought_up() -> None:
    loaded = conv_and_shuffle(opset=11)
    data = export(loaded, [(24, 16)], "fp16")
    assert onnx.load_from_string(data).opset_import[0].version == 20
    assert graph.compare(data, loaded, [game_frame(24, 16)]).max <= 1


def test_a_graph_of_one_size_takes_no_other() -> None:
    loaded = conv_and_shuffle(size=(24, 16))
    assert graph.compare(export(loaded, [(24, 16)], "fp32"), loaded, [game_frame(24, 16)]).max <= 1
    for sizes in ([(32, 16)], [(24, 16), (48, 16)]):
        with pytest.raises(BuildFailed, match="takes pictures of 24x16 only"):
            export(loaded, sizes, "fp32")


def test_a_graph_of_two_inputs_is_refused() -> None:
    loaded = user_graph(helper.make_node("Add", ["input", "other"], ["output"]))
    assert loaded.graph is not None
    loaded.graph.graph.input.append(
        helper.make_tensor_value_info("other", TensorProto.FLOAT, [1, 3, 8, 8])
    )
    with pytest.raises(BuildFailed, match="2 inputs and 1 outputs"):
        export(loaded, [(8, 8)], "fp32")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sizes_that_a_graph_works_out_stay_exact(precision: Precision) -> None:
    loaded = resized_by_computed_sizes()
    frame = np.resize(game_frame(96, 8), (8, 2051, 4))  # 4102 has no FP16
    data = export(loaded, [(2051, 8)], precision)
    found = graph.compare(data, loaded, [frame])
    graph.require(found, loaded.spec, precision)


# --- what goes wrong ---------------------------------------------------------------------------


class Choosy(nn.Module):
    """A net whose way depends on the picture, which no graph can say."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if bool(x.mean() > 0.5) else x


def test_a_net_that_cannot_be_exported_is_refused_in_one_line() -> None:
    loaded = replace(small("superultracompact-x2"), module=Choosy())
    with pytest.raises(BuildFailed, match=r"superultracompact-x2 cannot be exported") as caught:
        export(loaded, [(8, 8)], "fp32")
    message = str(caught.value)
    assert "data-dependent" in message
    assert message.isprintable()
    assert len(message) < 400


def test_the_exporter_is_not_heard(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings(record=True) as heard, caplog.at_level(logging.INFO):
        warnings.simplefilter("always")
        export(small("superultracompact-x2"), [(24, 16)], "fp32")
    said = capfd.readouterr()
    assert (said.out, said.err, caplog.messages, [str(one.message) for one in heard]) == (
        "", "", [], []
    )  # fmt: skip


def test_without_pytorch_a_user_s_graph_is_exported_and_a_net_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net: Loaded = small("superultracompact-x2")
    mine = conv_and_shuffle()
    monkeypatch.setitem(sys.modules, "torch", None)
    assert export(mine, [(24, 16)], "fp16")
    with pytest.raises(BuilderMissing, match=r"needs PyTorch.*pip install"):
        export(net, [(24, 16)], "fp16")


def test_publishing_writes_the_files_of_a_default_net(tmp_path: Path) -> None:
    source = load.weights_folder() / "default-x2.safetensors"
    digests = publish(source, tmp_path)
    assert digests["default-x2.safetensors"] == zoo.spec("default-x2").sources[0].sha256
    session = onnxruntime.InferenceSession((tmp_path / "default-x2.onnx").read_bytes())
    frame = game_frame(17, 9)
    net = LumaNet(load.state_dict(zoo.spec("default-x2")))
    expected = net(torch.from_numpy(frame)[None]).numpy()
    made = np.asarray(session.run(None, {"bgra": frame[None]})[0])
    assert np.abs(made.astype(int) - expected).max() <= 1
