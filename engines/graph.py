"""ONNX graphs: what TensorRT would refuse in them, and how far they are from PyTorch.

`check` refuses what TensorRT's parsers refuse, node by node, on machines that have no TensorRT.
`compare` runs a graph in ONNX Runtime on the CPU against PyTorch in FP32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engines.errors import BuilderMissing, BuildFailed
from engines.load import INSTALL_BUILD
from engines.spec import ModelSpec, Precision

try:
    import onnx
    from onnx import TensorProto, numpy_helper
except ImportError as missing:
    raise BuilderMissing(f"checking graphs needs onnx ({missing}): {INSTALL_BUILD}") from missing

if TYPE_CHECKING:
    import onnxruntime  # type: ignore[import-untyped]

    from engines.load import Loaded

Pixels = NDArray[np.uint8]

#: What nets for pictures use of the operators that TensorRT's ONNX parsers take ("Supported ONNX
#: Operators", docs/operators.md of onnx/onnx-tensorrt); the newest ones are in TensorRT-RTX 1.7's
#: parser, against which this table is tested. What gives a size known only once the picture is
#: seen (NonZero, Loop) is left out: engines have one fixed size for each source size.
OPERATORS = frozenset(
    """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast CastLike Ceil Celu Clip Concat
    Constant ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div
    Dropout Einsum Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm
    GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
    GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization IsInf IsNaN
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LRN MatMul Max
    MaxPool Mean Min Mish Mod Mul Neg Not OneHot Or Pad Pow PRelu QuantizeLinear Range Reciprocal
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Selu Shape Shrink
    Sigmoid Sign Sin Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum
    Swish Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905 - a list of lines each would be as long as a page
)

#: Numbers that TensorRT computes with, or casts by itself.
_KINDS = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.DOUBLE,
        TensorProto.INT8,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.BOOL,
    }
)
_RESIZE_MODES = ("nearest", "linear", "cubic")
_RESIZE_COORDINATES = (
    "half_pixel",
    "pytorch_half_pixel",
    "tf_half_pixel_for_nn",
    "asymmetric",
    "align_corners",
)
#: Inputs that are weights, by operator: large ones are right there.
_WEIGHTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "BatchNormalization": (1, 2, 3, 4),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "QuantizeLinear": (0,),
    "DequantizeLinear": (0,),
}
#: A constant of more numbers than this that is no weight is a plane of a picture, folded in by
#: an exporter: it makes the file grow with the size of the frame.
_LARGEST_CONSTANT = 2**18
_MOST_REASONS = 6


def check(onnx_bytes: bytes) -> None:
    """Check that TensorRT's parsers would take a graph, without having them.

    Args:
        onnx_bytes: as `engines.export.export` makes them.
    Raises:
        BuildFailed: they would not; the message names each node and says why.
    """
    try:
        model = onnx.load_from_string(onnx_bytes)
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as exc:  # protobuf's and onnx's own errors have no common base
        raise BuildFailed(f"the graph is not valid ONNX: {str(exc).strip()[:200]}") from exc
    reasons = list(_Check(model).reasons())
    if reasons:
        more = len(reasons) - _MOST_REASONS
        listed = "; ".join(reasons[:_MOST_REASONS]) + (f"; and {more} more" if more > 0 else "")
        raise BuildFailed(f"TensorRT does not take {model.graph.name or 'the graph'}: {listed}")


class _Check:
    """One graph, its types inferred."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = graph = model.graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._constants = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
        values = (*graph.input, *graph.value_info, *graph.output)
        self._kinds = {value.name: value.type.tensor_type.elem_type for value in values}
        self._kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        self._inputs = {value.name for value in graph.input}
        self._outputs = {value.name for value in graph.output}
        for node in graph.node:
            if node.op_type == "Constant":
                self._constants[node.output[0]] = _numbers_in(node)

    def reasons(self) -> Iterator[str]:
        """Give what is wrong, first with the graph, then with each node."""
        yield from self._interface()
        for node in self._graph.node:
            name = f"{node.name or '(unnamed)'} ({node.op_type})"
            for reason in self._node(node):
                yield f"{name} {reason}"

    def _interface(self) -> Iterator[str]:
        for values, wanted in ((self._graph.input, "bgra"), (self._graph.output, "picture")):
            if [value.name for value in values] != [wanted]:
                yield f"its {[value.name for value in values]} should be {wanted!r} alone"
        for value in self._graph.input:
            fixed = [dim.dim_value > 0 for dim in value.type.tensor_type.shape.dim]
            if len(fixed) != 4 or not (fixed[0] and fixed[3]):
                yield f"its input {value.name} may be dynamic in height and width only"

    def _node(self, node: onnx.NodeProto) -> Iterator[str]:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            domain = f" of {node.domain}" if node.domain else ""
            yield f"is an operator{domain} that its parsers do not know"
            return
        yield from self._bytes(node)
        yield from self._numbers(node)
        yield from self._arguments(node)
        yield from self._folded(node)

    def _bytes(self, node: onnx.NodeProto) -> Iterator[str]:
        """uint8: only from the graph's input into a Cast, and from a Cast to its output."""
        for names, outside in ((node.input, self._inputs), (node.output, self._outputs)):
            for name in names:
                if self._kinds.get(name) != TensorProto.UINT8:
                    continue
                if node.op_type != "Cast" or name not in outside:
                    verb = "takes" if outside is self._inputs else "gives"
                    yield f"{verb} uint8 {name}, which only the first and the last Cast may"

    def _numbers(self, node: onnx.NodeProto) -> Iterator[str]:
        for name in (*node.input, *node.output):
            kind = self._kinds.get(name, TensorProto.UNDEFINED)
            if kind not in (*_KINDS, TensorProto.UINT8, TensorProto.UNDEFINED):
                yield f"computes in {TensorProto.DataType.Name(kind)} ({name})"

    def _arguments(self, node: onnx.NodeProto) -> Iterator[str]:
        options = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        text = {key: value.decode() for key, value in options.items() if isinstance(value, bytes)}
        if node.op_type == "Resize":
            yield from _resize(options, text)
        if node.op_type == "MaxPool" and len(node.output) > 1:
            yield "gives the places of the maxima, which is not supported"
        if node.op_type.startswith("Reduce") and len(node.input) > 1:
            axes = node.input[1]
            if axes and axes not in self._constants:
                yield f"wants its axes constant, not computed ({axes})"
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
            zero = self._weights.get(node.input[2])
            if zero is None or numpy_helper.to_array(zero).any():
                yield f"has a zero point that is not a constant 0 ({node.input[2]})"
        if any(isinstance(value, onnx.GraphProto) for value in options.values()):
            yield "holds a graph of its own"

    def _folded(self, node: onnx.NodeProto) -> Iterator[str]:
        for index, name in enumerate(node.input):
            numbers = self._constants.get(name, 0)
            weight = index in _WEIGHTS.get(node.op_type, ())
            if numbers > _LARGEST_CONSTANT and not weight:
                yield f"takes a constant of {numbers} numbers that is no weight ({name})"


def _resize(options: dict[str, object], text: dict[str, str]) -> Iterator[str]:
    mode = text.get("mode", "nearest")
    if mode not in _RESIZE_MODES:
        yield f"has mode {mode!r}, not one of {', '.join(_RESIZE_MODES)}"
    coordinates = text.get("coordinate_transformation_mode", "half_pixel")
    if coordinates not in _RESIZE_COORDINATES:
        yield f"places pixels as {coordinates!r}, not one of {', '.join(_RESIZE_COORDINATES)}"
    if options.get("antialias"):
        yield "resizes with antialiasing"
    if text.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        yield f"resizes with the policy {text['keep_aspect_ratio_policy']!r}"


def _numbers_in(node: onnx.NodeProto) -> int:
    """How many numbers a `Constant` holds."""
    value = onnx.helper.get_attribute_value(node.attribute[0])
    if isinstance(value, TensorProto):
        return math.prod(value.dims)
    return len(value) if isinstance(value, list) else 1


# --- how far a graph is from the net it was made of --------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """Between pictures.

    Attributes:
        max: the largest, in levels of 255.
        mean: of the absolute differences, in levels of 255; alpha does not count.
        psnr: over all pictures, dB; infinite if they are equal.
    """

    max: int
    mean: float
    psnr: float


def difference(pairs: Iterable[tuple[Pixels, Pixels]]) -> Difference:
    """Compare pictures.

    Args:
        pairs: uint8 BGRA (H, W, 4) or luma (H, W), both of a pair of one shape.
    Raises:
        BuildFailed: two pictures differ in shape.
        ValueError: there is no pair.
    """
    largest, total, squares, count = 0, 0.0, 0.0, 0
    for a, b in pairs:
        if a.shape != b.shape:
            raise BuildFailed(f"pictures of different shapes: {a.shape} and {b.shape}")
        apart = np.abs(a.astype(np.int16) - b)
        largest = max(largest, int(apart.max()))
        colours = apart[..., :3] if apart.ndim == 3 else apart
        total += float(colours.sum())
        squares += float(np.square(colours, dtype=np.float64).sum())
        count += colours.size
    if not count:
        raise ValueError("no pictures to compare")
    psnr = 10 * math.log10(255**2 * count / squares) if squares else math.inf
    return Difference(largest, total / count, psnr)


def compare(onnx_bytes: bytes, loaded: Loaded, frames: Sequence[Pixels]) -> Difference:
    """Run a graph in ONNX Runtime on the CPU and compare it with the model in FP32.

    Args:
        onnx_bytes: as `engines.export.export` makes them of `loaded`.
        loaded: the model.
        frames: uint8 BGRA (H, W, 4), of sizes the graph takes.
    Raises:
        BuildFailed: the graph does not run, or gives pictures of another shape.
        BuilderMissing: ONNX Runtime is not installed.
    """
    pictures = run(onnx_bytes, frames)
    return difference(
        (picture, reference(loaded, frame)) for picture, frame in zip(pictures, frames, strict=True)
    )


def run(onnx_bytes: bytes, frames: Sequence[Pixels]) -> list[Pixels]:
    """Run a graph in ONNX Runtime on the CPU; arguments and errors as `compare`.

    Returns:
        A picture for each frame: uint8 (H*scale, W*scale, 4) BGRA or (H*scale, W*scale) luma.
    """
    session = _session(onnx_bytes)
    return [_run(session, frame[None])[0] for frame in frames]


def reference(loaded: Loaded, bgra: Pixels) -> Pixels:
    """Upscale a frame as the model's authors would: what engines are measured against.

    PyTorch in FP32; for a user's ONNX file ONNX Runtime, on that very graph.

    Args:
        loaded: the model.
        bgra: uint8 BGRA (H, W, 4), any size; alpha is ignored.
    Returns:
        uint8 BGRA (H*scale, W*scale, 4) with alpha 255; for luma (H*scale, W*scale).
    Raises:
        BuildFailed: the user's graph does not run.
        BuilderMissing: PyTorch or, for a user's graph, ONNX Runtime is not installed.
    """
    spec = loaded.spec
    if spec.output == "luma":
        return _luma(loaded, bgra)
    height, width = bgra.shape[:2]
    multiple = spec.size_multiple
    wider = np.pad(bgra, ((0, -height % multiple), (0, -width % multiple), (0, 0)), mode="edge")
    rgb = np.ascontiguousarray(
        wider[None, ..., 2::-1].transpose(0, 3, 1, 2), np.float32
    ) / np.float32(255)
    planes = _planes(loaded, rgb)[0, :, : height * spec.scale, : width * spec.scale]
    levels = np.round(planes.clip(0, 1) * 255).astype(np.uint8)
    return np.dstack((*levels[::-1], np.full_like(levels[0], 255)))


def _planes(loaded: Loaded, rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run the net: float RGB [1, 3, H, W], 0..1, to [1, 3, H*scale, W*scale], not clamped."""
    if loaded.graph is not None:
        session = _session(loaded.graph.SerializeToString())
        half = session.get_inputs()[0].type == "tensor(float16)"
        return _run(session, rgb.astype(np.float16) if half else rgb).astype(np.float32)
    import torch

    assert loaded.module is not None
    with torch.inference_mode():
        planes: NDArray[np.float32] = loaded.module(torch.from_numpy(rgb)).numpy()
    return planes


def _luma(loaded: Loaded, bgra: Pixels) -> Pixels:
    """Run the shipped luma net, and put its blocks of pixels together."""
    import torch

    assert loaded.module is not None
    with torch.inference_mode():
        blocks = loaded.module(torch.from_numpy(bgra)[None])[0].numpy()
    height, width = bgra.shape[:2]
    scale = loaded.spec.scale
    rows = blocks.reshape(height, width, scale, scale).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(rows.reshape(height * scale, width * scale))


def require(found: Difference, spec: ModelSpec, precision: Precision) -> None:
    """Refuse a graph or engine that is too far from FP32.

    FP32 may round a few values to the next level; FP16 what the model's row says. An int8 engine
    is judged by its builder: here only its graph is, which is FP32.

    Raises:
        BuildFailed: it is.
    """
    largest, mean = (spec.fp16_max, spec.fp16_mean) if precision == "fp16" else (1, 0.01)
    if found.max > largest or not found.mean <= mean:
        raise BuildFailed(
            f"{spec.id} in {precision} differs from FP32 by up to {found.max} levels of 255 "
            f"({found.mean:.3f} on average), more than {largest} ({mean:g}) that is accepted"
        )


def _session(onnx_bytes: bytes) -> onnxruntime.InferenceSession:
    try:
        import onnxruntime
    except ImportError as exc:
        raise BuilderMissing(
            f"comparing graphs needs ONNX Runtime ({exc}): {INSTALL_BUILD}"
        ) from exc
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its warnings are about its own optimisations
    try:
        return onnxruntime.InferenceSession(onnx_bytes, options, ["CPUExecutionProvider"])
    except Exception as exc:  # its errors have no common base
        raise BuildFailed(f"ONNX Runtime does not take the graph: {str(exc)[:200]}") from exc


def _run(session: onnxruntime.InferenceSession, pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    try:
        (result,) = session.run(None, {session.get_inputs()[0].name: pixels})
    except Exception as exc:  # its errors have no common base
        raise BuildFailed(f"ONNX Runtime cannot run the graph: {str(exc)[:200]}") from exc
    return np.asarray(result)
