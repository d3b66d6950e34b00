"""Small ONNX graphs with the interface of the exported ones, for tests that need no real net."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.spec import Engine, ModelSpec, Output, Size


def spec(scale: int = 2, output: Output = "bgra") -> ModelSpec:
    """The row of a model that is not in the zoo."""
    return ModelSpec(f"small-x{scale}", "onnx", scale, "CC0-1.0", (), output=output)


def engine(backend: str, data: bytes, *sizes: Size, scale: int = 2, output: Output) -> Engine:
    """An engine as the cache gives it."""
    return Engine(f"small-x{scale}", scale, output, sizes, "fp32", backend, data)


def graph(
    size: Size | None, scale: int = 2, output: Output = "bgra", convolutions: int = 4
) -> bytes:
    """Make a net that adds seeded details to a nearest-neighbour upscale.

    Args:
        size: (width, height) of the source; None = dynamic.
        convolutions: 3x3, with ReLU between them.
    """
    dice = np.random.default_rng(scale)
    channels = 4 if output == "bgra" else 1
    constants: dict[str, NDArray[Any]] = {
        "level": np.float32(1 / 255),
        "levels": np.float32(255),
        "half": np.float32(0.5),
        "black": np.float32(0),
        "scales": np.array([1, 1, scale, scale], np.float32),
        "first": np.array([0], np.int64),
        "after": np.array([channels], np.int64),
        "axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["bgra"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "level"], ["x0"]),
        helper.make_node("Slice", ["x0", "first", "after", "axis"], ["plain"]),
    ]
    widths = [4, *[8] * (convolutions - 1), channels * scale**2]
    for i in range(convolutions):
        fan_in = 9 * widths[i]
        weight = dice.normal(0, (2 / fan_in) ** 0.5, (widths[i + 1], widths[i], 3, 3))
        if i + 1 == convolutions:
            weight *= 0.1
        constants[f"w{i}"] = weight.astype(np.float32)
        constants[f"b{i}"] = dice.normal(0, 0.02, widths[i + 1]).astype(np.float32)
        inputs = ["x0" if i == 0 else f"r{i}", f"w{i}", f"b{i}"]
        nodes.append(helper.make_node("Conv", inputs, [f"x{i + 1}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"x{i + 1}"], [f"r{i + 1}"]))
    nodes.pop()  # the last layer has no ReLU
    nodes += [
        helper.make_node("DepthToSpace", [f"x{convolutions}"], ["details"], blocksize=scale),
        helper.make_node(
            "Resize", ["plain", "", "scales"], ["large"], mode="nearest",
            coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        ),
        helper.make_node("Add", ["large", "details"], ["sum"]),
        helper.make_node("Mul", ["sum", "levels"], ["float"]),
        helper.make_node("Add", ["float", "half"], ["rounded"]),
        helper.make_node("Clip", ["rounded", "black", "levels"], ["clipped"]),
        helper.make_node("Transpose", ["clipped"], ["rows"], perm=[0, 2, 3, 1]),
    ]  # fmt: skip
    if output == "luma":
        constants["last"] = np.array([3], np.int64)
        nodes.append(helper.make_node("Squeeze", ["rows", "last"], ["flat"]))
    given = "rows" if output == "bgra" else "flat"
    nodes.append(helper.make_node("Cast", [given], ["picture"], to=TensorProto.UINT8))
    width, height = size or ("width", "height")
    large = [
        f"{length}*{scale}" if isinstance(length, str) else length * scale
        for length in (height, width)
    ]
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("bgra", TensorProto.UINT8, [1, height, width, 4])],
        [
            helper.make_tensor_value_info(
                "picture", TensorProto.UINT8, [1, *large, *([4] if channels == 4 else [])]
            )
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data
