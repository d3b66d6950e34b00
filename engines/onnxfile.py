"""A user's ONNX model: checked before anything is made of it, then tried on small pictures.

Limits: external data in the model's own folder only, no file above 2 GiB and no more than that
together; operators of ONNX itself only; one input and one output, float32 or float16 RGB
(N, 3, H, W); no tensor above 2^31 elements for a picture of 64x64. What such a picture needs cannot
always be told without running the model, and what reads and runs it is native code: both are done
in a process of their own, `python -P -m engines.onnxfile`, which may take 8 GiB of address space
(not limited on Windows) and two minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.errors import BuilderMissing, EngineMissing, ModelInvalid
from engines.load import INSTALL_BUILD, UNKNOWN_LICENCE
from engines.spec import ModelSpec, Source

try:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import TensorProto, helper
except ImportError as missing:
    raise BuilderMissing(f"reading ONNX needs onnx ({missing}): {INSTALL_BUILD}") from missing

if TYPE_CHECKING:
    import onnxruntime  # type: ignore[import-untyped]

#: Elements of the largest tensor that a graph may make of a picture of `_PROBE` x `_PROBE`.
_MAX_ELEMENTS = 1 << 31
_PROBE = 64
#: Bytes of a graph with its data; more cannot be handed on in one piece.
_MAX_TOTAL = (1 << 31) - (1 << 20)
_MAX_NODES = 100_000
#: For the process that tries a graph.
_MAX_ADDRESSES = 8 << 30
_TIMEOUT_S = 120.0
_DOMAINS = ("", "ai.onnx")
#: What width and height may have to be multiples of.
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)


def external_files(path: Path) -> tuple[Path, ...]:
    """List the files that hold a model's larger tensors, in order of name.

    Raises:
        EngineMissing: one of them is not there.
        ModelInvalid: the model is damaged, or names a file outside its folder.
    """
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise EngineMissing(f"cannot read the model file {path}: {exc.strerror}") from exc
    names = {_location(tensor) for tensor in _tensors(_parsed(content, path)) if _is_away(tensor)}
    return tuple(_inside(path, name) for name in sorted(names))


def read(
    name: str, path: Path, content: bytes, data: Mapping[Path, bytes], sha256: str
) -> tuple[ModelSpec, onnx.ModelProto]:
    """Check a model, find its scale and give it with all its data inside.

    Args:
        name: id for the model.
        path: of its file, for messages.
        content: of its file.
        data: content of the files that `external_files` lists.
        sha256: identity of all files.
    Raises:
        ModelInvalid: it is damaged, hostile, or no upscaler from RGB to RGB; says why.
        BuilderMissing: onnxruntime is not installed.
    """
    model = _parsed(content, path)
    try:
        _check_operators(model)
        for tensor in _tensors(model):
            _check_data(tensor, path, data)
        element = _check_ends(model)
        if model.ByteSize() > _MAX_TOTAL:
            raise ValueError("it is larger than 2 GiB")
        scale, multiple = _tried_apart(model, element)
    except ValueError as exc:
        raise ModelInvalid(f"{path} cannot be used: {exc}") from exc
    spec = ModelSpec(
        id=name,
        architecture="onnx",
        scale=scale,
        licence=UNKNOWN_LICENCE,
        sources=(Source("file", path.name, sha256),),
        size_multiple=multiple,
    )
    return spec, model


def _parsed(content: bytes, path: Path) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, RuntimeError, ValueError) as exc:
        raise ModelInvalid(f"{path} is not an ONNX model, or it is cut off") from exc
    if not model.graph.node or not model.opset_import:
        raise ModelInvalid(f"{path} is not an ONNX model: it has no graph")
    return model


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs in its nodes (branches, loop bodies)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer or inner.input or inner.output:
                    yield from _graphs(inner)


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor that holds numbers."""
    for graph in _graphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def _is_away(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


def _location(tensor: TensorProto) -> str:
    return next((e.value for e in tensor.external_data if e.key == "location"), "")


def _inside(path: Path, location: str) -> Path:
    """Give the data file of a model, which must be in the model's folder."""
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    odd = posix.is_absolute() or windows.drive or windows.root or ".." in windows.parts
    if not location or odd or "\0" in location:
        raise ModelInvalid(f"{path} wants the file {location[:80]!r}, which is not in its folder")
    file = path.parent / posix
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise ModelInvalid(f"{path} wants {location[:80]!r}, a link that leaves its folder")
    if not file.is_file():
        raise EngineMissing(f"{path} needs its data file {file.name}, which is not beside it")
    return file


def _check_operators(model: onnx.ModelProto) -> None:
    if model.functions:
        raise ValueError("it has functions of its own; inline them (onnx.inliner) first")
    if model.training_info:
        raise ValueError("it is made for training")
    odd = {entry.domain for entry in model.opset_import}.difference(_DOMAINS, {"ai.onnx.ml"})
    used = [node for graph in _graphs(model.graph) for node in graph.node]
    custom = next((node for node in used if node.domain not in _DOMAINS), None)
    if custom is not None:
        operator = f"{custom.domain}.{custom.op_type}"
        raise ValueError(f"its operator {operator[:80]} is not of ONNX itself")
    if len(used) > _MAX_NODES:
        raise ValueError(f"it has {len(used)} nodes, more than {_MAX_NODES}")
    for entry in [entry for entry in model.opset_import if entry.domain in odd]:
        model.opset_import.remove(entry)  # exporters list domains that nothing uses


def _check_data(tensor: TensorProto, path: Path, data: Mapping[Path, bytes]) -> None:
    """Check that a tensor has exactly its numbers, and bring them in if they are in a file."""
    what = f"its tensor {tensor.name[:80]!r}"
    if tensor.data_type == TensorProto.STRING or tensor.HasField("segment"):
        raise ValueError(f"{what} is not of numbers")
    if any(dim < 0 for dim in tensor.dims):
        raise ValueError(f"{what} has a negative size")
    try:
        size = prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:
        raise ValueError(f"{what} is of an unknown type") from None
    if _is_away(tensor):
        content = data.get(_inside(path, _location(tensor)), b"")
        offset, length = _range(tensor, size, what)
        if length != size or offset + length > len(content):
            raise ValueError(f"{what} does not fit into its data file ({len(content)} bytes)")
        tensor.raw_data = content[offset : offset + length]
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
        return
    if tensor.HasField("raw_data"):
        found = len(tensor.raw_data)
        if found != size and tensor.data_type not in _PACKED:
            raise ValueError(f"{what} has {found} bytes of numbers, not {size}")
    else:
        field = helper.tensor_dtype_to_field(tensor.data_type)
        found = len(getattr(tensor, field))
        count = prod(tensor.dims)
        if found < count and tensor.data_type not in _PACKED:
            raise ValueError(f"{what} has {found} numbers, not {count}")


#: Types of less than a byte, several of which share one.
_PACKED = {
    value for key, value in TensorProto.DataType.items() if key.endswith(("INT4", "T2", "E2M1"))
}


def _range(tensor: TensorProto, size: int, what: str) -> tuple[int, int]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    numbers = entries.get("offset", "0"), entries.get("length", str(size))
    if not all(number.isascii() and number.isdigit() and len(number) < 16 for number in numbers):
        raise ValueError(f"{what} is at no place in its data file")
    return int(numbers[0]), int(numbers[1])


def _check_ends(model: onnx.ModelProto) -> int:
    """Check input and output, and give their element type."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ValueError(f"it has {len(inputs)} inputs and {len(graph.output)} outputs, not 1 of 1")
    if any(inner.sparse_initializer for inner in _graphs(graph)):
        raise ValueError("it has sparse tensors")
    kinds = set()
    for value in (inputs[0], graph.output[0]):
        kind = value.type.tensor_type
        dims = kind.shape.dim
        if kind.elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            raise ValueError(f"{value.name[:80]!r} is not float32 or float16")
        if (kind.HasField("shape") or value is inputs[0]) and len(dims) != 4:
            raise ValueError(f"{value.name[:80]!r} has {len(dims)} axes, not 4 (N, 3, H, W)")
        if dims and dims[1].dim_value not in (0, 3):
            raise ValueError(f"{value.name[:80]!r} has {dims[1].dim_value} channels, not 3 (RGB)")
        if dims and dims[0].dim_value not in (0, 1):
            raise ValueError(f"{value.name[:80]!r} takes {dims[0].dim_value} pictures at a time")
        kinds.add(kind.elem_type)
    if len(kinds) != 1:
        raise ValueError("its input and output are of different types")
    return int(kinds.pop())


def _check_sizes(model: onnx.ModelProto) -> None:
    """Refuse what would need absurd memory for a small picture."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    constants = {tensor.name for tensor in probe.graph.initializer}
    value = next(value for value in probe.graph.input if value.name not in constants)
    for axis, length in enumerate((1, 3, _PROBE, _PROBE)):
        dim = value.type.tensor_type.shape.dim[axis]
        if not dim.dim_value:
            dim.dim_value = length
    del probe.graph.value_info[:]
    for dim in probe.graph.output[0].type.tensor_type.shape.dim:
        dim.Clear()
    try:
        onnx.checker.check_model(probe)
        inferred = onnx.shape_inference.infer_shapes(probe, data_prop=True)
    except Exception as exc:  # native code on hostile input: ValidationError, InferenceError, …
        raise ValueError(f"its graph is invalid ({_line(exc)})") from exc
    for graph in _graphs(inferred.graph):
        for value in (*graph.value_info, *graph.output):
            elements = prod(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
            if elements > _MAX_ELEMENTS:
                raise ValueError(
                    f"its tensor {value.name[:80]!r} has {elements} elements for a picture of "
                    f"{_PROBE}x{_PROBE}"
                )


@dataclass(frozen=True, slots=True)
class _Session:
    """A graph in onnxruntime."""

    session: onnxruntime.InferenceSession
    input: str
    element: int

    def scale(self, height: int, width: int) -> int:
        """Run it on a picture and give output size / input size; ValueError if it fails."""
        kind = np.float16 if self.element == TensorProto.FLOAT16 else np.float32
        picture = np.random.default_rng(0).random((1, 3, height, width)).astype(kind)
        try:
            result: Any = self.session.run(None, {self.input: picture})[0]
        except Exception as exc:  # onnxruntime's errors have no common base
            raise ValueError(f"onnxruntime cannot run it: {_line(exc)}") from exc
        scale = result.shape[2] // height if result.ndim == 4 else 0
        if result.shape != (1, 3, scale * height, scale * width) or not 1 <= scale <= 8:
            raise ValueError(
                f"it makes {'x'.join(map(str, result.shape))} of 1x3x{height}x{width}, "
                "which is not one picture 1 to 8 times as large"
            )
        if not np.isfinite(result).all():
            raise ValueError("it gives NaN or infinity for an ordinary picture")
        return int(scale)


def _tried_apart(model: onnx.ModelProto, element: int) -> tuple[int, int]:
    """Do `_check_sizes` and `_tried` in a process of its own."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "engines.onnxfile", str(element)],
            input=model.SerializeToString(),
            capture_output=True,
            timeout=_TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise ValueError(f"a picture of {_PROBE}x{_PROBE} takes it over {_TIMEOUT_S:g} s") from None
    except ValueError:
        raise ValueError(
            f"it crashes onnxruntime, or needs over {_MAX_ADDRESSES >> 30} GiB for a picture of "
            f"{_PROBE}x{_PROBE} (exit status {done.returncode})"
        ) from None
    if "missing" in answer:
        raise BuilderMissing(answer["missing"])
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["scale"], answer["multiple"]


def _main(element: int) -> None:
    """Try the model on standard input; the answer is one line of JSON."""
    if sys.platform != "win32":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = _MAX_ADDRESSES if hard == resource.RLIM_INFINITY else min(hard, _MAX_ADDRESSES)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    model = onnx.ModelProto()
    answer: dict[str, int | str]
    try:
        model.ParseFromString(sys.stdin.buffer.read())
        _check_sizes(model)
        scale, multiple = _tried(model, element)
        answer = {"scale": scale, "multiple": multiple}
    except BuilderMissing as exc:
        answer = {"missing": str(exc)}
    except MemoryError:
        answer = {"error": f"it needs over {_MAX_ADDRESSES >> 30} GiB for a small picture"}
    except ValueError as exc:
        answer = {"error": str(exc)}
    sys.stdout.write(json.dumps(answer))


def _tried(model: onnx.ModelProto, element: int) -> tuple[int, int]:
    """Find the scale, and what width and height must be multiples of."""
    session = _session(model, element)
    constants = {tensor.name for tensor in model.graph.initializer}
    value = next(value for value in model.graph.input if value.name not in constants)
    own = [dim.dim_value for dim in value.type.tensor_type.shape.dim[2:]]
    if any(own):
        height, width = (length or _PROBE for length in own)
        if height * width > 512 * 512:
            raise ValueError(f"it takes {width}x{height} only; export it with dynamic sizes")
        return session.scale(height, width), 1
    failure = ValueError()
    for multiple in _MULTIPLES:
        steps = max(1, 17 // multiple) | 1  # odd, so that nothing larger divides the size
        try:
            return session.scale(steps * multiple, (steps + 2) * multiple), multiple
        except ValueError as exc:
            failure = exc
    raise failure


def _session(model: onnx.ModelProto, element: int) -> _Session:
    try:
        import onnxruntime
    except ImportError as exc:
        raise BuilderMissing(f"trying an ONNX model needs onnxruntime: {INSTALL_BUILD}") from exc
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = min(4, os.cpu_count() or 1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as exc:  # as above
        raise ValueError(f"onnxruntime refuses it: {_line(exc)}") from exc
    return _Session(session, session.get_inputs()[0].name, element)


def _line(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return (lines[0] if lines else type(exc).__name__)[:160]


if __name__ == "__main__":
    _main(int(sys.argv[1]))
