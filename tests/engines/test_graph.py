"""What TensorRT would refuse in a graph, and how far a graph is from PyTorch."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines import load, zoo
from engines.errors import BuildFailed
from engines.export import export
from engines.graph import Difference, check, compare, difference, reference, require
from engines.spec import Precision
from tests.engines.nets import (
    Pixels,
    conv_and_shuffle,
    exported,
    game_frame,
    resized_by_computed_sizes,
    small,
)

Constant = NDArray[np.generic] | None
STRETCH = np.array([1, 1, 2, 2], np.float32)


def one_node(
    operator: str, *constants: Constant, opset: int = 20, outputs: int = 1, **attributes: object
) -> bytes:
    """A graph that does one thing with the picture's planes, FP32 [1, 4, 8, 12]."""
    given = {f"c{index}": one for index, one in enumerate(constants) if one is not None}
    names = ["" if one is None else f"c{index}" for index, one in enumerate(constants)]
    results = [f"result{index}" for index in range(outputs)]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["bgra"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node(operator, ["planes", *names], results, "tested", **attributes),
            helper.make_node("Cast", ["result0"], ["again"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["again"], ["picture"], to=TensorProto.UINT8),
        ],
        "one",
        [helper.make_tensor_value_info("bgra", TensorProto.UINT8, [1, 8, 12, 4])],
        [helper.make_tensor_value_info("picture", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(one), name) for name, one in given.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture(scope="module")
def parses() -> Callable[[bytes], bool]:
    """TensorRT-RTX's own parser, which needs no GPU."""
    trt = pytest.importorskip("tensorrt_rtx")

    def parse(data: bytes) -> bool:
        logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
        network = trt.Builder(logger).create_network(0)
        return bool(trt.OnnxParser(network, logger).parse(data))

    return parse


#: Operators whose node needs nothing but the planes.
PLAIN = """
    Abs Celu Ceil Elu Erf Exp Floor Gelu GlobalAveragePool HardSigmoid HardSwish Identity LeakyRelu
    LogSoftmax Mish Neg Reciprocal ReduceL1 ReduceMean ReduceSumSquare Relu Round Selu Sigmoid Sign
    Softmax Softplus Softsign Sqrt Tanh ThresholdedRelu Transpose
""".split()  # noqa: SIM905
TAKEN = {
    **{operator: one_node(operator) for operator in PLAIN},
    "Swish": one_node("Swish", opset=24),
    "DepthToSpace": one_node("DepthToSpace", blocksize=2, mode="CRD"),
    "SpaceToDepth": one_node("SpaceToDepth", blocksize=2),
    "Resize cubic": one_node("Resize", None, STRETCH, mode="cubic"),
    "Resize linear": one_node(
        "Resize", None, STRETCH, mode="linear", coordinate_transformation_mode="align_corners"
    ),
    "Pad wrap": one_node("Pad", np.array([0, 0, 1, 1, 0, 0, 1, 1]), mode="wrap"),
    "Einsum": one_node("Einsum", equation="...cd->...dc"),
    "QuantizeLinear": one_node("QuantizeLinear", np.float32(1), np.int8(0)),
    "Cast to int64": one_node("Cast", to=TensorProto.INT64),
    "MaxPool": one_node("MaxPool", kernel_shape=[2, 2]),
}
REFUSED = {
    "NonZero": (one_node("NonZero"), r"tested \(NonZero\) is an operator"),
    "Bernoulli": (one_node("Bernoulli"), r"tested \(Bernoulli\) is an operator"),
    "uint8": (one_node("Cast", to=TensorProto.UINT8), r"tested \(Cast\) gives uint8"),
    "int16": (one_node("Cast", to=TensorProto.INT16), r"tested \(Cast\) computes in INT16"),
    "MaxPool": (one_node("MaxPool", kernel_shape=[2, 2], outputs=2), "places of the maxima"),
    "antialias": (
        one_node("Resize", None, STRETCH, mode="linear", antialias=1),
        "with antialiasing",
    ),
    "half_pixel_symmetric": (
        one_node(
            "Resize", None, STRETCH, coordinate_transformation_mode="half_pixel_symmetric"
        ),
        "places pixels as 'half_pixel_symmetric'",
    ),
    "policy": (
        one_node(
            "Resize", None, None, np.array([16, 24]),
            axes=[2, 3], keep_aspect_ratio_policy="not_larger", mode="linear",
        ),
        "policy 'not_larger'",
    ),
    "zero point": (
        one_node("QuantizeLinear", np.float32(1), np.int8(3)),
        "zero point that is not a constant 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_the_real_parser_takes(name: str, parses: Callable[[bytes], bool]) -> None:
    check(TAKEN[name])
    assert parses(TAKEN[name])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_the_real_parser_refuses(
    name: str, parses: Callable[[bytes], bool]
) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(BuildFailed, match=reason):
        check(data)
    assert not parses(data)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("default-x2", [(42, 34)]),
        ("superultracompact-x2", [(42, 34)]),
        ("span-x2", [(42, 34)]),
        ("realesrgan-x4plus", [(42, 34)]),
        ("realesrgan-x2plus", [(41, 33)]),
        ("realesrgan-x2plus", [(32, 24), (40, 48)]),
        ("realesr-animevideov3-x3", [(42, 34)]),
        ("realesr-animevideov3-x3", [(32, 24), (40, 48)]),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_our_exports_are_taken_by_both(
    name: str,
    sizes: list[tuple[int, int]],
    precision: Precision,
    parses: Callable[[bytes], bool],
) -> None:
    data = exported(name, precision, *sizes)
    check(data)
    assert parses(data)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_users_graphs_are_taken_by_both(
    precision: Precision, parses: Callable[[bytes], bool]
) -> None:
    for loaded in (conv_and_shuffle(), resized_by_computed_sizes()):
        data = export(loaded, [(24, 16)], precision)
        check(data)
        assert parses(data)


def test_the_shipped_graphs_are_for_cpus(parses: Callable[[bytes], bool]) -> None:
    data = load.onnx_bytes(zoo.spec("default-x2"))
    with pytest.raises(BuildFailed, match=r"\(Transpose\) takes uint8 bgra"):
        check(data)
    assert not parses(data)


def test_a_plane_folded_into_the_file_is_refused_and_a_large_weight_is_not() -> None:
    plane = np.ones((1, 6000, 8, 12), np.float32)
    with pytest.raises(BuildFailed, match=r"tested \(Concat\) takes a constant of 576000 numbers"):
        check(one_node("Concat", plane, axis=1))
    check(one_node("Conv", np.ones((4096, 4, 6, 6), np.float32)))


def test_a_plane_that_another_exporter_folded_in_is_refused() -> None:
    """The older exporter makes a constant as large as the picture of an alpha channel."""

    class WithAlpha(torch.nn.Module):
        def forward(self, bgra: torch.Tensor) -> torch.Tensor:
            x = bgra.float()[..., :3]
            return torch.cat((x, torch.full_like(x[..., :1], 255)), 3).to(torch.uint8)

    file = io.BytesIO()
    example = torch.zeros(1, 540, 960, 4, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            WithAlpha(), (example,), file, dynamo=False, opset_version=20,
            input_names=["bgra"], output_names=["picture"],
        )  # fmt: skip
    with pytest.raises(BuildFailed, match=r"a constant of 518400 numbers that is no weight"):
        check(file.getvalue())


def test_every_reason_is_named_once_and_not_too_many() -> None:
    model = onnx.load_from_string(one_node("Relu"))
    for index in range(9):
        model.graph.node.append(
            helper.make_node("NonZero", ["planes"], [f"n{index}"], f"node{index}")
        )
    with pytest.raises(BuildFailed, match=r"node0 \(NonZero\).*node5 .*; and 3 more$") as caught:
        check(model.SerializeToString())
    assert "\n" not in str(caught.value)


def test_another_interface_is_refused() -> None:
    model = onnx.load_from_string(one_node("Relu"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    with pytest.raises(BuildFailed, match="dynamic in height and width only"):
        check(model.SerializeToString())
    model = onnx.load_from_string(one_node("Relu"))
    model.graph.node[-1].output[0] = model.graph.output[0].name = "luma"
    with pytest.raises(BuildFailed, match="'picture' alone"):
        check(model.SerializeToString())


@pytest.mark.parametrize("data", [b"", b"no graph", b"\x08\x0a" + b"\0" * 9])
def test_what_is_no_graph_is_refused(data: bytes) -> None:
    with pytest.raises(BuildFailed, match=r"not valid ONNX|should be 'bgra'"):
        check(data)


# --- differences -------------------------------------------------------------------------------


def test_a_difference_is_in_levels_and_db() -> None:
    a = np.full((4, 5, 4), 100, np.uint8)
    b = a.copy()
    b[0, 0, 0] = 103
    b[0, 1, 1] = 99
    found = difference([(a, b), (b, a)])
    assert found.max == 3
    assert found.mean == pytest.approx(4 / 60)
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / (10 / 60)))
    assert difference([(a, a)]) == Difference(0, 0.0, math.inf)


def test_alpha_counts_only_for_the_largest_difference() -> None:
    a = np.full((4, 5, 4), 255, np.uint8)
    b = a.copy()
    b[..., 3] = 0
    assert difference([(a, b)]) == Difference(255, 0.0, math.inf)


def test_pictures_of_different_shapes_are_refused() -> None:
    a = np.zeros((4, 5, 4), np.uint8)
    with pytest.raises(BuildFailed, match="different shapes"):
        difference([(a, a[:, :4])])
    with pytest.raises(ValueError, match="no pictures"):
        difference([])


def swapped_colours(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if list(numpy_helper.to_array(tensor).flat) == [2, 1, 0]:
            tensor.CopyFrom(numpy_helper.from_array(np.array([0, 1, 2]), tensor.name))
            return


def not_rounded(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Round").op_type = "Floor"


def a_weight_changed(model: onnx.ModelProto) -> None:
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] += 2.0
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@pytest.mark.parametrize("damage", [swapped_colours, not_rounded, a_weight_changed])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_wrong_graph_is_found(
    damage: Callable[[onnx.ModelProto], None], precision: Precision
) -> None:
    loaded = conv_and_shuffle()
    model = onnx.load_from_string(export(loaded, [(48, 32)], precision))
    frames = [game_frame(48, 32)]
    require(compare(model.SerializeToString(), loaded, frames), loaded.spec, precision)
    damage(model)
    with pytest.raises(BuildFailed, match="differs from FP32 by up to"):
        require(compare(model.SerializeToString(), loaded, frames), loaded.spec, precision)


def test_limits_are_those_of_the_row() -> None:
    row = replace(zoo.spec("default-x2"), fp16_max=3, fp16_mean=0.2)
    require(Difference(1, 0.01, 60.0), row, "fp32")
    require(Difference(3, 0.2, 60.0), row, "fp16")
    for precision, found in (
        ("fp32", Difference(2, 0.0, 60.0)),
        ("fp32", Difference(1, 0.02, 60.0)),
        ("int8", Difference(2, 0.0, 60.0)),
        ("fp16", Difference(4, 0.0, 60.0)),
        ("fp16", Difference(1, 0.21, 60.0)),
        ("fp16", Difference(1, math.nan, 60.0)),
    ):
        with pytest.raises(BuildFailed, match=f"default-x2 in {precision} differs"):
            require(found, row, precision)  # type: ignore[arg-type]


# --- the reference -----------------------------------------------------------------------------


def test_the_reference_is_the_net_itself() -> None:
    loaded = small("superultracompact-x2")
    assert loaded.module is not None
    frame = game_frame(31, 17)
    rgb = torch.from_numpy(frame[..., [2, 1, 0]].copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        planes = loaded.module(rgb)[0]
    expected = (planes.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    made = reference(loaded, frame)
    assert made.dtype == np.uint8
    assert (made[..., [2, 1, 0]] == expected).all()
    assert (made[..., 3] == 255).all()


def test_the_reference_of_a_user_s_graph_is_that_graph() -> None:
    frame: Pixels = game_frame(24, 16)
    made = reference(resized_by_computed_sizes(), frame)
    expected = np.round(frame[..., :3].repeat(2, 0).repeat(2, 1) / np.float32(2))
    assert np.abs(made[..., :3] - expected).max() <= 1
    assert made.shape == (32, 48, 4)


def test_the_reference_pads_as_the_graph_does() -> None:
    loaded = small("realesrgan-x2plus")
    frame = game_frame(41, 33)
    wider = np.pad(frame, ((0, 1), (0, 1), (0, 0)), mode="edge")
    assert (reference(loaded, frame) == reference(loaded, wider)[:66, :82]).all()


def test_a_graph_that_does_not_run_is_refused() -> None:
    loaded = conv_and_shuffle()
    data = export(loaded, [(24, 16)], "fp32")
    with pytest.raises(BuildFailed, match="ONNX Runtime cannot run the graph"):
        compare(data, loaded, [game_frame(32, 16)])
    with pytest.raises(BuildFailed, match="ONNX Runtime does not take the graph"):
        compare(b"nothing", loaded, [game_frame(24, 16)])
