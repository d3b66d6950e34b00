"""Small graphs in the form of the exported ones, made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.spec import ModelSpec, Size

#: Gives a graph's bytes; "width" and "height" are dynamic where the size is None.
ToyGraph = Callable[..., bytes]


@pytest.fixture
def toy_spec() -> ModelSpec:
    """What `toy_graph` is a model of."""
    return ModelSpec("toy-x2", "onnx", 2, "CC0-1.0", ())


@pytest.fixture
def toy_graph() -> ToyGraph:
    """Makes graphs; see `_graph`."""
    return _graph


def _graph(
    size: Size | None, *, layers: int = 3, channels: int = 16, uint8_transpose: bool = False
) -> bytes:
    """Make an FP16 net of random weights: uint8 BGRA in and out, x2.

    Args:
        uint8_transpose: turn the picture before its values become FP16, which TensorRT refuses.
    """
    rng = np.random.default_rng(7)
    constants: dict[str, NDArray[np.float16]] = {}
    nodes: list[onnx.NodeProto] = []

    def node(kind: str, name: str, *inputs: str, **attributes: Any) -> None:
        source = nodes[-1].output[0] if nodes else "bgra"
        nodes.append(helper.make_node(kind, [source, *inputs], [name], name, **attributes))

    def constant(name: str, value: NDArray[np.float16] | float) -> str:
        constants[name] = np.asarray(value, np.float16)
        return name

    if uint8_transpose:
        node("Transpose", "turn", perm=[0, 3, 1, 2])
    node("Cast", "to_half", to=TensorProto.FLOAT16)
    if not uint8_transpose:
        node("Transpose", "turn", perm=[0, 3, 1, 2])
    node("Mul", "to_unit", constant("unit", 1 / 255))
    for index in range(layers):
        shape = (16 if index == layers - 1 else channels, channels if index else 4, 3, 3)
        weights = (rng.standard_normal(shape) / 12).astype(np.float16)
        node("Conv", f"conv{index}", constant(f"weights{index}", weights), pads=[1, 1, 1, 1])
        if index < layers - 1:
            node("Relu", f"relu{index}")
    node("DepthToSpace", "shuffle", blocksize=2, mode="CRD")
    node("Mul", "to_levels", constant("levels", 255))
    node("Clip", "clamp", constant("low", 0), constant("high", 255))
    node("Add", "round", constant("half", 0.5))
    node("Transpose", "turn_back", perm=[0, 2, 3, 1])
    node("Cast", "picture", to=TensorProto.UINT8)
    width, height = size or ("width", "height")
    doubled = (None, None) if size is None else (size[1] * 2, size[0] * 2)
    source = helper.make_tensor_value_info("bgra", TensorProto.UINT8, [1, height, width, 4])
    target = helper.make_tensor_value_info("picture", TensorProto.UINT8, [1, *doubled, 4])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "toy", [source], [target], tensors),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data
