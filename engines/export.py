"""Nets to ONNX graphs: colour order, scaling, padding, rounding and clamping are inside.

`export` makes the graph that every back end builds from. A net, or a user's own graph, becomes a
core (float planes to float planes), and nodes around it turn uint8 BGRA into what the core wants
and back. TensorRT takes uint8 only into a first `Cast` and out of a last one, so nothing else
touches bytes.

`python -m engines.export data/runs/default-x2/default-x2.safetensors ...` publishes trained nets:
it writes them into `engines/weights` and prints their sha256 for the zoo. The default nets' graphs
are written, too; they take any height and width and give blocks of pixels, as is quickest on a CPU.
"""

# ruff: noqa: T201 - a command-line program too

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import BuilderMissing, BuildFailed
from engines.load import INSTALL_BUILD, weights_folder
from engines.spec import ModelSpec, Precision, Size

try:
    import onnx
    from onnx import TensorProto, helper, inliner, numpy_helper, version_converter
except ImportError as missing:
    raise BuilderMissing(f"exporting needs onnx ({missing}): {INSTALL_BUILD}") from missing

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engines.load import Loaded

Array = NDArray[Any]

OPSET = 20
_IR_VERSION = 10
#: Users' graphs of an earlier opset are converted to `OPSET`; the nodes around the core need it.
_OLDEST_OPSET = 13
#: Before every name of the core, so that none of them meets a name of the nodes around it.
_CORE = "net/"


def export(loaded: Loaded, sizes: Sequence[Size], precision: Precision) -> bytes:
    """Make the graph that engines are built from.

    Args:
        loaded: the model; not changed.
        sizes: of the source, (width, height) in pixels. One: the graph is of this size, and pads
            (with its edge pixels, to the right and below) and crops where the net wants a
            multiple. Several: height and width are dynamic.
        precision: "fp16" computes in FP16 throughout; for all others the graph is FP32, but for
            the inside of a user's own FP16 graph.
    Returns:
        ONNX: input `bgra`, uint8 (1, H, W, 4), alpha is ignored; output `picture`, uint8
        (1, H*scale, W*scale, 4) BGRA with alpha 255 or, for luma, (1, H*scale, W*scale). The same
        model gives the same bytes on the same machine, with nothing of the machine in them.
    Raises:
        BuildFailed: the net cannot be exported; says why in one line.
        BuilderMissing: PyTorch is not installed, and the model needs it.
    """
    spec = loaded.spec
    if not sizes or any(min(size) < 1 for size in sizes):
        raise ValueError(f"sizes must be positive and at least one, not {sizes}")
    _check_multiples(spec, sizes)
    core = _core(loaded, sizes)
    if precision == "fp16":
        from engines.fp16 import halved

        core = halved(core)
    try:
        kind = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
        model = _wrapped(core, spec, sizes, kind)
        _tidied(model, spec.id)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise BuildFailed(f"the {precision} graph of {spec.id} is invalid: {_line(exc)}") from exc
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def in_floats(graph: bytes) -> bytes:
    """Change the ends of a graph from bytes to float, so that nothing is rounded.

    Args:
        graph: as `export` makes them in FP32 with several sizes, or as they ship.
    Returns:
        ONNX: input `bgra`, float32 (1, H, W, 4), 0..255; one output, float32, 0..255 where it is
        colours: RGB (1, 3, H*scale, W*scale), clamped, or luma, not clamped: (1, 1, H*scale,
        W*scale), or (1, scale*scale, H, W) of a graph that ships.
    """
    model = onnx.load_from_string(graph)
    nodes = model.graph.node
    place = max(index for index, node in enumerate(nodes) if node.op_type == "Round")
    result = nodes[place].input[0]
    del nodes[place:]  # what follows takes the rounded picture to bytes
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, None))
    floats: bytes = model.SerializeToString()
    return floats


def _check_multiples(spec: ModelSpec, sizes: Sequence[Size]) -> None:
    multiple = spec.size_multiple
    odd = [size for size in sizes if any(length % multiple for length in size)]
    if len(sizes) > 1 and odd:
        width, height = odd[0]
        raise BuildFailed(
            f"{spec.id} takes multiples of {multiple} pixels, and an engine for several sizes "
            f"cannot pad {width}x{height}; build one engine per size"
        )


# --- the core: float planes [1, C, H, W] to float planes ---------------------------------------


def _core(loaded: Loaded, sizes: Sequence[Size]) -> onnx.ModelProto:
    """Give the net as a graph of one input and one output, each name beginning with `_CORE`."""
    spec = loaded.spec
    fixed = _padded(sizes[0], spec.size_multiple) if len(sizes) == 1 else None
    if loaded.graph is not None:
        model = _core_of_graph(loaded.graph, spec, fixed)
    else:
        assert loaded.module is not None
        model = _core_of_module(loaded.module, spec, fixed)
    core: onnx.ModelProto = onnx.compose.add_prefix(model, _CORE)
    return core


def _core_of_module(module: nn.Module, spec: ModelSpec, fixed: Size | None) -> onnx.ModelProto:
    """Trace a net: RGB 0..1, or BGRA 0..255 for the luma net."""
    torch = _torch()
    from engines.archs.luma import LumaNet, LumaPicture

    if isinstance(module, LumaNet):
        module = LumaPicture(module).eval()
    multiple = spec.size_multiple
    dimensions = None
    if fixed is None:
        lengths = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
        dimensions = ({axis: multiple * one for axis, one in lengths.items()},)
    width, height = fixed or (16 * multiple, 12 * multiple)
    planes = torch.zeros(1, 4 if spec.output == "luma" else 3, height, width)
    try:
        return _traced(module, (planes,), ["planes"], ["upscaled"], dimensions)
    except MemoryError:
        raise
    except Exception as exc:  # tracing runs the net's own code, which may raise anything
        advice = "" if fixed else "; build one engine per size"
        raise BuildFailed(f"{spec.id} cannot be exported to ONNX: {_line(exc)}{advice}") from exc


def _traced(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    dimensions: Any,
) -> onnx.ModelProto:
    torch = _torch()
    with _quiet():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dimensions,
            verbose=False,
        )
    model: onnx.ModelProto = program.model_proto
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter warns and logs about itself from users."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _core_of_graph(graph: onnx.ModelProto, spec: ModelSpec, fixed: Size | None) -> onnx.ModelProto:
    """Take a user's graph and give its picture the size wanted."""
    try:
        model = inliner.inline_local_functions(graph)
        if _opset(model) < _OLDEST_OPSET:
            model = version_converter.convert_version(model, OPSET)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as exc:
        raise BuildFailed(
            f"{spec.id} is of ONNX opset {_opset(graph)} and cannot be brought to {OPSET} "
            f"({_line(exc)}); export it again with opset {OPSET}"
        ) from exc
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise BuildFailed(
            f"{spec.id} has {len(inputs)} inputs and {len(model.graph.output)} outputs, "
            "not one of each"
        )
    _resize_input(inputs[0], spec, fixed)
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    return model


def _resize_input(value: onnx.ValueInfoProto, spec: ModelSpec, fixed: Size | None) -> None:
    """Give a user's graph its input size.

    Raises:
        BuildFailed: it takes another size only.
    """
    dims = value.type.tensor_type.shape.dim
    wanted = (fixed[1], fixed[0]) if fixed else ("height", "width")
    for axis, length in zip((2, 3), wanted, strict=True):
        own = dims[axis].dim_value if len(dims) == 4 else 0
        if own and own != length:
            raise BuildFailed(
                f"{spec.id} takes pictures of {dims[3].dim_value or 'any'}x"
                f"{dims[2].dim_value or 'any'} only; export it with dynamic height and width"
            )
    kind = value.type.tensor_type.elem_type
    value.CopyFrom(helper.make_tensor_value_info(value.name, kind, [1, 3, *wanted]))


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if not entry.domain), 1)


# --- the nodes around it -----------------------------------------------------------------------


class _Chain:
    """Nodes in a row, each taking what the one before it gave.

    Args:
        name: before the names of the nodes and tensors.
        first: tensor that the first node takes.
    """

    def __init__(self, name: str, first: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.last = first
        self._name = name

    def add(self, operator: str, *constants: Array, **attributes: Any) -> None:
        """Append a node; `constants` are its inputs after the first."""
        name = f"{self._name}{len(self.nodes)}_{operator}"
        names = [f"{name}_{index}" for index in range(len(constants))]
        self.constants += map(numpy_helper.from_array, constants, names)
        self.nodes.append(
            helper.make_node(operator, [self.last, *names], [name], name=name, **attributes)
        )
        self.last = name


def _wrapped(
    core: onnx.ModelProto, spec: ModelSpec, sizes: Sequence[Size], kind: int
) -> onnx.ModelProto:
    """Put the nodes that turn BGRA bytes into planes of `kind` and back around a core."""
    graph = core.graph
    before, after = _Chain("before/", "bgra"), _Chain("after/", graph.output[0].name)
    padding = _padding(spec, sizes)
    crop = sizes[0] if any(padding) else None
    _to_planes(before, spec, kind, padding)
    if graph.input[0].type.tensor_type.elem_type != kind:  # a user's own FP16 graph
        before.add("Cast", to=TensorProto.FLOAT16)
        after.add("Cast", to=kind)
    _to_bytes(after, spec, kind, crop)
    _rename_input(graph, graph.input[0].name, before.last)
    after.nodes[-1].output[0] = "picture"
    width, height = sizes[0] if len(sizes) == 1 else ("width", "height")
    made = helper.make_graph(
        [*before.nodes, *graph.node, *after.nodes],
        spec.id,
        [helper.make_tensor_value_info("bgra", TensorProto.UINT8, [1, height, width, 4])],
        [_picture_info(spec, sizes)],
        [*before.constants, *graph.initializer, *after.constants],
    )
    opsets = [entry for entry in core.opset_import if entry.domain in {n.domain for n in made.node}]
    return helper.make_model(made, opset_imports=opsets, ir_version=_IR_VERSION)


def _to_planes(chain: _Chain, spec: ModelSpec, kind: int, padding: Size) -> None:
    """uint8 BGRA [1, H, W, 4] to planes: RGB 0..1, or BGRA 0..255 for luma."""
    chain.add("Cast", to=kind)
    chain.add("Transpose", perm=[0, 3, 1, 2])
    if spec.output == "bgra":
        chain.add("Gather", _integers(2, 1, 0), axis=1)
        chain.add("Div", _number(255, kind))
    if any(padding):
        width, height = padding
        chain.add("Pad", _integers(0, 0, 0, 0, 0, 0, height, width), mode="edge")


def _to_bytes(chain: _Chain, spec: ModelSpec, kind: int, crop: Size | None) -> None:
    """Planes to uint8: RGB [1, 3, H, W] to BGRA [1, H, W, 4], luma [1, 1, H, W] to [1, H, W]."""
    if crop:
        width, height = crop
        end = _integers(height * spec.scale, width * spec.scale)
        chain.add("Slice", _integers(0, 0), end, _integers(2, 3))
    if spec.output == "bgra":
        chain.add("Clip", _number(0, kind), _number(1, kind))
        chain.add("Mul", _number(255, kind))
        chain.add("Round")
        chain.add("Gather", _integers(2, 1, 0), axis=1)
        chain.add("Pad", _integers(0, 0, 0, 0, 0, 1, 0, 0), _number(255, kind))  # alpha
        chain.add("Transpose", perm=[0, 2, 3, 1])
    else:
        chain.add("Round")
        chain.add("Clip", _number(0, kind), _number(255, kind))
        chain.add("Squeeze", _integers(1))
    chain.add("Cast", to=TensorProto.UINT8)


def _picture_info(spec: ModelSpec, sizes: Sequence[Size]) -> onnx.ValueInfoProto:
    width: int | str = "picture_width"
    height: int | str = "picture_height"
    if len(sizes) == 1:
        width, height = (length * spec.scale for length in sizes[0])
    shape = [1, height, width, *([4] if spec.output == "bgra" else [])]
    return helper.make_tensor_value_info("picture", TensorProto.UINT8, shape)


def _padded(size: Size, multiple: int) -> Size:
    width, height = (-(-length // multiple) * multiple for length in size)
    return width, height


def _padding(spec: ModelSpec, sizes: Sequence[Size]) -> Size:
    if len(sizes) > 1:
        return 0, 0
    (width, height), padded = sizes[0], _padded(sizes[0], spec.size_multiple)
    return padded[0] - width, padded[1] - height


def _rename_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _integers(*values: int) -> Array:
    return np.array(values, np.int64)


def _number(value: float, kind: int) -> Array:
    return np.array(value, helper.tensor_dtype_to_np_dtype(kind))


# --- bytes that say nothing of the machine -----------------------------------------------------


def _tidied(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Drop what the exporter records of this machine (source lines, traces); check what is left."""
    graph = model.graph
    graph.name, graph.doc_string = name, ""
    model.producer_name, model.producer_version = "sr-overlay", ""
    model.doc_string, model.domain, model.model_version = "", "", 0
    del model.metadata_props[:]
    del graph.metadata_props[:]
    del graph.value_info[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    return model


def _line(exc: BaseException) -> str:
    """Give the first line of what lies behind an error; the exporter wraps it in advice."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    lines = [line.strip() for line in str(exc).splitlines()]
    return next((line for line in lines if line), type(exc).__name__)[:200]


# --- the shipped default nets ------------------------------------------------------------------


def onnx_model(weights: Mapping[str, Tensor], name: str) -> onnx.ModelProto:
    """Export a luma net in the form that ships: any height and width, blocks of pixels.

    Args:
        weights: as `engines.archs.luma.LumaNet` takes them.
        name: of the graph.
    Returns:
        A model with input `bgra`, uint8 (1, height, width, 4), and output `luma`, uint8
        (1, height, width, scale*scale).
    """
    torch = _torch()
    from engines.archs.luma import LumaNet

    lengths = {
        axis: torch.export.Dim(side, min=8, max=8192)
        for axis, side in ((1, "height"), (2, "width"))
    }
    example = (torch.zeros(1, 24, 32, 4, dtype=torch.uint8),)
    net = LumaNet(weights).eval()
    return _tidied(_traced(net, example, ["bgra"], ["luma"], {"bgra": lengths}), name)


def publish(source: Path, folder: Path) -> dict[str, str]:
    """Write the shipped files of one net and give the sha256 of each by file name.

    A luma net becomes safetensors and ONNX. Any other is for engines that are built on the user's
    machine: safetensors alone, in half precision, as GPUs compute.
    """
    from safetensors.torch import load_file, save_file

    weights = load_file(source)
    name = source.stem
    files = [f"{name}.safetensors"]
    folder.mkdir(parents=True, exist_ok=True)
    if "conv0.weight" in weights:
        save_file(weights, folder / files[0])
        files.append(f"{name}.onnx")
        (folder / files[1]).write_bytes(onnx_model(weights, name).SerializeToString())
    else:
        save_file({key: value.half() for key, value in weights.items()}, folder / files[0])
    return {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files}


def _torch() -> Any:
    """PyTorch, which only a user's own graph can do without.

    Raises:
        BuilderMissing: it is not installed.
    """
    try:
        import torch
        import torch.onnx
    except ImportError as exc:
        raise BuilderMissing(f"exporting a net needs PyTorch ({exc}): {INSTALL_BUILD}") from exc
    return torch


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m engines.export")
    parser.add_argument("weights", type=Path, nargs="+", help="trained <model id>.safetensors")
    parser.add_argument("--out", type=Path, default=weights_folder())
    options = parser.parse_args(arguments)
    for source in options.weights:
        for file, digest in publish(source, options.out).items():
            print(f"{digest}  {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
