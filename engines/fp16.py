"""FP32 graphs to FP16: every value that depends on the picture, every weight.

TensorRT is strongly typed: it computes in what the graph says. So the graph itself is rewritten,
not merely marked, and no FP32 is left between input and output. What does not depend on the
picture (sizes worked out from `Shape`, say) stays as it is: FP16 has no whole numbers above 2048.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.onnx_pb import NodeProto

from engines.errors import BuildFailed

#: Inputs that ONNX wants in FP32 whatever the rest is, by operator.
_ALWAYS_FP32 = {"Resize": (1, 2), "Upsample": (1,)}
#: These give the size of what they take, not what is in it.
_SIZES = ("Shape", "Size")
_LARGEST = float(np.finfo(np.float16).max)


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make an FP16 copy of an FP32 graph.

    Args:
        model: with FP32 inputs and outputs, without subgraphs.
    Returns:
        The same graph with FP16 inputs and outputs.
    Raises:
        BuildFailed: a weight is too large for FP16, or the graph has subgraphs.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    _refuse_subgraphs(graph)
    del graph.value_info[:]
    conversion = _Conversion(half)
    nodes = [part for node in graph.node for part in conversion.converted(node)]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(conversion.halves)
    _drop_unused(graph)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return half


class _Conversion:
    """One graph on its way: what is known of its values, and the FP16 twins made so far."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.halves: list[onnx.TensorProto] = []
        self._picture = _from_picture(graph)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and (tensor := _value_of(node)) is not None:
                self._constants[node.output[0]] = tensor
        self._floats = _float_values(model, self._constants)
        self._twins: dict[str, str] = {}

    def converted(self, node: NodeProto) -> list[NodeProto]:
        """Give the node in FP16, after a `Cast` for each FP32 size it computes with."""
        if not self._picture.intersection(node.output):
            return [node]
        casts: list[NodeProto] = []
        for index, name in enumerate(node.input):
            kept = index in _ALWAYS_FP32.get(node.op_type, ()) or name in self._picture
            if not kept and name in self._floats:
                node.input[index] = self._twin(name, casts)
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        return [*casts, node]

    def _twin(self, name: str, casts: list[NodeProto]) -> str:
        """Name the FP16 twin of a weight or of a computed number, made if it is not there yet."""
        if name not in self._twins:
            twin = self._twins[name] = f"{name}.fp16"
            if name in self._constants:
                self.halves.append(_half(self._constants[name], twin))
            else:
                casts.append(
                    helper.make_node("Cast", [name], [twin], name=twin, to=TensorProto.FLOAT16)
                )
        return self._twins[name]


def _half(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    if np.isfinite(largest) and largest > _LARGEST:
        raise BuildFailed(
            f"{tensor.name or name} holds {largest:.3g}, more than FP16 can ({_LARGEST:.0f}); "
            "build it in fp32"
        )
    return numpy_helper.from_array(values.astype(np.float16), name)


def _from_picture(graph: onnx.GraphProto) -> set[str]:
    """Name the values that depend on what is in the picture, not only on its size."""
    found = {value.name for value in graph.input}
    for node in graph.node:
        if node.op_type not in _SIZES and found.intersection(node.input):
            found.update(node.output)
    return found


def _float_values(model: onnx.ModelProto, constants: dict[str, onnx.TensorProto]) -> set[str]:
    """Name the weights and the computed values of FP32."""
    typed = onnx.shape_inference.infer_shapes(model)
    computed = {
        value.name
        for value in typed.graph.value_info
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    weights = {name for name, one in constants.items() if one.data_type == TensorProto.FLOAT}
    return computed | weights


def _value_of(node: NodeProto) -> onnx.TensorProto | None:
    """Give what a `Constant` holds, None for kinds that are not numbers."""
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor: onnx.TensorProto = attribute.t
        return tensor
    numbers = {"value_float": attribute.f, "value_floats": list(attribute.floats)}
    if attribute.name not in numbers:
        return None
    return numpy_helper.from_array(np.array(numbers[attribute.name], np.float32), node.output[0])


def _refuse_subgraphs(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise BuildFailed(
                f"{node.name or node.op_type} ({node.op_type}) holds a graph of its own, which "
                "cannot be made FP16; build it in fp32"
            )


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Drop the FP32 weights and `Constant`s that nothing takes any more."""
    used = {name for node in graph.node for name in node.input}
    used.update(value.name for value in graph.output)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    nodes = [n for n in graph.node if n.op_type != "Constant" or n.output[0] in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.node[:]
    graph.node.extend(nodes)
