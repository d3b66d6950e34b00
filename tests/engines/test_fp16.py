"""FP32 graphs to FP16: weights, constants and computed numbers each in their own way."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.errors import BuildFailed
from engines.fp16 import halved
from tests.engines.nets import resized_by_computed_sizes, user_graph


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    typed = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    values = (*typed.graph.input, *typed.graph.value_info, *typed.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def half_of(*nodes: onnx.NodeProto, **weights: object) -> onnx.ModelProto:
    arrays = {name: np.asarray(value) for name, value in weights.items()}
    graph = user_graph(*nodes, weights=arrays).graph
    assert graph is not None
    return halved(graph)


def test_weights_and_values_become_half_and_the_original_stays() -> None:
    graph = user_graph(
        helper.make_node("Mul", ["input", "factor"], ["output"]),
        weights={"factor": np.float32(0.1).reshape(1)},
    ).graph
    assert graph is not None
    before = graph.SerializeToString()
    half = halved(graph)
    assert graph.SerializeToString() == before
    assert set(kinds(half).values()) == {TensorProto.FLOAT16}
    (weight,) = half.graph.initializer
    assert numpy_helper.to_array(weight) == np.float16(0.1)


def test_constant_nodes_of_every_kind_become_half() -> None:
    tensor = numpy_helper.from_array(np.full(1, 0.25, np.float32))
    half = half_of(
        helper.make_node("Constant", [], ["a"], value=tensor),
        helper.make_node("Constant", [], ["b"], value_float=2.0),
        helper.make_node("Constant", [], ["c"], value_floats=[1.0]),
        helper.make_node("Mul", ["input", "a"], ["x"]),
        helper.make_node("Mul", ["x", "b"], ["y"]),
        helper.make_node("Add", ["y", "c"], ["output"]),
    )
    assert set(kinds(half).values()) == {TensorProto.FLOAT16}
    assert [node.op_type for node in half.graph.node] == ["Mul", "Mul", "Add"]


def test_casts_of_the_picture_are_to_half() -> None:
    half = half_of(
        helper.make_node("Greater", ["input", "limit"], ["bright"]),
        helper.make_node("Cast", ["bright"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["input", "mask"], ["output"]),
        limit=np.float32(0.5),
    )
    assert kinds(half)["mask"] == TensorProto.FLOAT16


def test_what_onnx_wants_in_fp32_stays_so_even_when_it_is_shared() -> None:
    half = half_of(
        helper.make_node("Resize", ["input", "", "factors"], ["large"], mode="nearest"),
        helper.make_node("Reshape", ["factors", "shape"], ["plane"]),
        helper.make_node("Mul", ["large", "plane"], ["output"]),
        factors=np.array([1, 1, 2, 2], np.float32),
        shape=np.array([1, 1, 2, 2]),
    )
    found = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert found["factors"] == TensorProto.FLOAT
    assert kinds(half)["output"] == TensorProto.FLOAT16


def test_sizes_are_still_worked_out_in_fp32() -> None:
    graph = resized_by_computed_sizes().graph
    assert graph is not None
    found = kinds(halved(graph))
    assert (found["lengths"], found["longer"]) == (TensorProto.FLOAT, TensorProto.FLOAT)
    assert (found["darker"], found["output"]) == (TensorProto.FLOAT16, TensorProto.FLOAT16)


def test_a_computed_number_that_the_picture_meets_is_cast() -> None:
    half = half_of(
        helper.make_node("Shape", ["input"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["lengths"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["lengths"], ["longest"], keepdims=0),
        helper.make_node("Div", ["input", "longest"], ["x"]),
        helper.make_node("Mul", ["x", "longest"], ["output"]),
    )
    assert [node.op_type for node in half.graph.node].count("Cast") == 2
    assert kinds(half)["output"] == TensorProto.FLOAT16


def test_a_weight_that_fp16_cannot_hold_is_refused() -> None:
    node = helper.make_node("Mul", ["input", "gain"], ["output"])
    half_of(node, gain=np.float32(65504))
    with pytest.raises(BuildFailed, match=r"gain holds 1e\+05, more than FP16 can .* fp32"):
        half_of(node, gain=np.float32(100_000))


def test_graphs_in_graphs_are_refused() -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["input"], ["same"])],
        "inner",
        [],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT, None)],
    )
    node = helper.make_node(
        "If", ["yes"], ["output"], "choice", then_branch=inner, else_branch=inner
    )
    with pytest.raises(BuildFailed, match=r"choice \(If\) holds a graph of its own"):
        half_of(node, yes=np.array(True))
