"""Triton's model repository, written from the zoo.

    <folder>/<model>/config.pbtxt       what Triton is to know
    <folder>/<model>/1/model.onnx       input `bgra` uint8, output `picture` uint8, or
    <folder>/<model>/1/model.plan       an engine of the cache, or
    <folder>/<model>/1/model.py         beside model.onnx, for the Python back end
    <folder>/<model>.float/...          the same net in FP32, `bgra` to `planes`: for pictures of
                                        16 bits, and for tiles of large ones

`python -m service.repository --models default-x2,default-x4 --backend python --out DIR` writes it;
`service.triton` is the client.
"""

# ruff: noqa: T201 - a command-line program

from __future__ import annotations

import argparse
import os
import re
import secrets
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from engines import load, zoo
from engines.cache import EngineCache, Entry, size_text
from engines.cli import parse_size
from engines.errors import BuilderMissing, BuildFailed, EngineError, EngineMissing, UsageError
from engines.spec import ModelSpec, Precision, Size
from service.pbtxt import ANY, Device, ModelConfig, Port

if TYPE_CHECKING:
    import onnx

Backend = Literal["onnx", "python", "tensorrt"]
Runtime = Literal["auto", "openvino", "onnxruntime"]

#: Of the folder of a model's FP32 twin.
FLOAT = ".float"
#: The first line of every `config.pbtxt` that is written here: only such a folder is replaced.
MARK = "# Written by python -m service.repository: a later run replaces this folder."
#: A graph exported for two sizes takes any; these suit all nets' multiples.
_ANY_SIZES: tuple[Size, ...] = ((64, 64), (128, 64))
#: Names of folders; no path, nothing hidden.
_SAFE = re.compile(r"[a-z0-9][a-z0-9._-]*(@[0-9.]+)?")


@dataclass(frozen=True, slots=True)
class Plan:
    """How models are to be served.

    Attributes:
        backend: Triton's: "python" is all that some servers have.
        sizes: of sources, (width, height); one: it alone is taken; several or none: any is, and
            the back end gets ready for those named.
        batch: the most pictures of a batch; 0 = none are gathered.
        delay_us: how long a request waits for others of its batch.
        instances: of every model, side by side.
        device: of the ONNX back end; the Python one is for CPUs, TensorRT for GPUs.
        threads: of an inference on the CPU; 0 = the runtime's choice.
        runtime: of the Python back end.
        precision: of the uint8 graph; of TensorRT, of the engine in the cache.
        twin: write the FP32 twin; not for TensorRT.
        weights: folders with users' weights, see `engines.load.locate`.
    """

    backend: Backend = "python"
    sizes: tuple[Size, ...] = ()
    batch: int = 4
    delay_us: int = 500
    instances: int = 1
    device: Device = "cpu"
    threads: int = 0
    runtime: Runtime = "auto"
    precision: Precision = "fp32"
    twin: bool = True
    weights: tuple[Path, ...] = ()

    @property
    def fixed(self) -> Size | None:
        """The one size that is taken; None if any is."""
        return self.sizes[0] if len(self.sizes) == 1 else None


def model_folder(reference: str) -> str:
    """Give the name under which the server knows a model, "realesr-general-x4v3@0.3" say.

    Raises:
        UnknownModel: the zoo has no such row.
        UsageError: the model is for single pictures in PyTorch only, or the name cannot be one.
    """
    plain, at, strength = reference.partition("@")
    spec = zoo.spec(plain)
    if spec.offline:
        raise UsageError(f"{spec.id} runs in PyTorch only, not in Triton: choose another model")
    name = f"{spec.id}{at}{strength}"
    if not _SAFE.fullmatch(name):
        raise UsageError(f"{reference!r} cannot be the name of a folder")
    return name


def write(reference: str, plan: Plan, folder: Path, cache: EngineCache | None = None) -> list[Path]:
    """Write one model, and its FP32 twin.

    Args:
        reference: of the zoo, a strength may follow.
        folder: the repository; made if need be.
        cache: in which TensorRT's engine is; the user's if None.
    Returns:
        The folders written. Each is complete when it appears; one that was written here before
        is replaced.
    Raises:
        UsageError: the plan cannot be, or a folder of this name is somebody else's.
        EngineError: there is no graph or engine of it.
    """
    name = model_folder(reference)
    spec = zoo.spec(reference.partition("@")[0])
    _check(spec, plan)
    if plan.backend == "tensorrt":
        return [_write_plan(name, spec, plan, folder, cache or EngineCache())]
    graph = _graph(reference, plan)
    eight, sixteen = (_config(name, spec, plan, twin) for twin in (False, True))
    made = [
        _place(folder, eight, _files(plan, picture_graph(graph, spec, plan.fixed, plan.batch > 0)))
    ]
    if plan.twin:
        source = graph
        if not spec.onnx and (plan.fixed or plan.precision != "fp32"):
            source = _graph(reference, replace(plan, sizes=(), precision="fp32"))
        made.append(
            _place(folder, sixteen, _files(plan, float_graph(source, spec, plan.batch > 0)))
        )
    return made


def _check(spec: ModelSpec, plan: Plan) -> None:
    for size in plan.sizes:
        if any(length % spec.size_multiple for length in size):
            raise UsageError(
                f"{spec.id} takes multiples of {spec.size_multiple} pixels, not "
                f"{size_text([size])}; the client pads pictures, so write it for the next multiple"
            )
    if plan.backend == "python" and plan.device == "gpu":
        raise UsageError("the Python back end is for CPUs: leave out --device gpu")
    if plan.precision == "int8":
        raise UsageError("precision is fp32 or fp16, not int8")


# --- graphs --------------------------------------------------------------------------------------


def _graph(reference: str, plan: Plan) -> bytes:
    """Give a model's graph as `engines.export` makes it, or as it ships."""
    located = load.locate(reference, plan.weights)
    if located.spec is not None and located.spec.onnx:
        return load.onnx_bytes(located.spec)
    from engines.export import export

    sizes = plan.sizes if plan.fixed else _ANY_SIZES
    return export(load.read(located), sizes, plan.precision)


def picture_graph(
    graph: bytes, spec: ModelSpec, fixed: Size | None = None, batches: bool = True
) -> bytes:
    """Give a graph the interface of the repository.

    Args:
        graph: as `engines.export` makes it, or as it ships.
        fixed: (width, height) of the source; None = any.
        batches: N is open; else 1.
    Returns:
        ONNX: input `bgra`, uint8 (N, H, W, 4); output `picture`, uint8 (N, H*scale, W*scale, 4)
        BGRA or, for luma, (N, H*scale, W*scale).
    Raises:
        BuildFailed: the graph takes one picture at a time only.
    """
    from onnx import TensorProto, helper, load_from_string

    model = load_from_string(graph)
    nodes = model.graph.node
    if spec.onnx:
        place = max(index for index, node in enumerate(nodes) if node.op_type == "Cast")
        source = nodes[place].input[0]
        del nodes[place:]
        nodes.extend(_unblocked(source, "picture/luma", spec.scale))
        model.graph.initializer.append(
            helper.make_tensor("picture/one", TensorProto.INT64, [1], [1])
        )
        nodes.append(helper.make_node("Squeeze", ["picture/luma", "picture/one"], ["picture/rows"]))
        nodes.append(helper.make_node("Cast", ["picture/rows"], ["picture"], to=TensorProto.UINT8))
    dims = ("batch", "picture_height", "picture_width", 4)[: 4 if spec.output == "bgra" else 3]
    return _finished(model, "picture", TensorProto.UINT8, dims, spec, fixed, batches)


def float_graph(graph: bytes, spec: ModelSpec, batches: bool = True) -> bytes:
    """Make the twin, that rounds nothing.

    Args:
        graph: FP32, for any size, as `engines.export` makes it, or as it ships.
        batches: N is open; else 1.
    Returns:
        ONNX: input `bgra`, float32 (N, H, W, 4), 0..255; output `planes`, float32, 0..255: RGB
        (N, 3, H*scale, W*scale), clamped, or luma (N, 1, H*scale, W*scale), not clamped.
    Raises:
        BuildFailed: the graph takes one picture at a time only.
    """
    from onnx import TensorProto, helper, load_from_string

    from engines.export import in_floats

    model = load_from_string(in_floats(graph))
    result = model.graph.output[0].name
    if spec.onnx:
        model.graph.node.extend(_unblocked(result, "planes", spec.scale))
    else:
        model.graph.node.append(helper.make_node("Identity", [result], ["planes"]))
    channels = 3 if spec.output == "bgra" else 1
    dims = ("batch", channels, "picture_height", "picture_width")
    return _finished(model, "planes", TensorProto.FLOAT, dims, spec, None, batches)


def _unblocked(source: str, result: str, scale: int) -> list[onnx.NodeProto]:
    """Put the blocks that a shipped graph gives, [N, s * s, H, W], in their places."""
    from onnx import helper

    return [helper.make_node("DepthToSpace", [source], [result], blocksize=scale, mode="DCR")]


def _finished(
    model: onnx.ModelProto,
    output: str,
    kind: int,
    dims: tuple[str | int, ...],
    spec: ModelSpec,
    fixed: Size | None,
    batches: bool,
) -> bytes:
    """Name the lengths of input and output, and see that the graph takes batches."""
    import onnx

    width, height = fixed or ("width", "height")
    if batches and not _takes_batches(model, output, kind, len(dims), fixed or _ANY_SIZES[0]):
        raise BuildFailed(
            f"the graph of {spec.id} takes one picture at a time: write it with --batch 0"
        )
    lengths: dict[str | int, str | int] = {"batch": "batch" if batches else 1}
    if fixed:
        lengths["picture_width"] = fixed[0] * spec.scale
        lengths["picture_height"] = fixed[1] * spec.scale
    given = [lengths["batch"], height, width, 4]
    _set_ports(model, given, (output, kind, [lengths.get(dim, dim) for dim in dims]))
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as exc:
        raise BuildFailed(f"the graph of {spec.id} is invalid: {str(exc)[:200]}") from exc
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _set_ports(model: onnx.ModelProto, given: list[Any], made: tuple[str, int, list[Any]]) -> None:
    from onnx import helper

    graph = model.graph
    kind = graph.input[0].type.tensor_type.elem_type
    graph.input[0].CopyFrom(helper.make_tensor_value_info("bgra", kind, given))
    graph.output[0].CopyFrom(helper.make_tensor_value_info(*made))
    del graph.value_info[:]


def _takes_batches(model: onnx.ModelProto, output: str, kind: int, rank: int, size: Size) -> bool:
    """Follow the shapes of two pictures through a graph."""
    import onnx

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    _set_ports(probe, [2, size[1], size[0], 4], (output, kind, [None] * rank))
    try:
        followed = onnx.shape_inference.infer_shapes(probe, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return False
    found = followed.graph.output[0].type.tensor_type.shape.dim
    return bool(len(found) == rank and found[0].dim_value == 2)


# --- configuration -------------------------------------------------------------------------------


def _config(name: str, spec: ModelSpec, plan: Plan, twin: bool) -> ModelConfig:
    """Describe a model, or its twin, which takes any size."""
    width, height = (None if twin else plan.fixed) or (ANY, ANY)
    large = [length * spec.scale if length != ANY else ANY for length in (height, width)]
    if twin:
        output = Port("planes", "FP32", (3 if spec.output == "bgra" else 1, *large))
    else:
        output = Port("picture", "UINT8", (*large, *((4,) if spec.output == "bgra" else ())))
    backends = {"onnx": "onnxruntime", "python": "python", "tensorrt": "tensorrt"}
    files = {"onnx": "model.onnx", "python": "model.py", "tensorrt": "model.plan"}
    return ModelConfig(
        name=name + (FLOAT if twin else ""),
        backend=cast('Literal["onnxruntime", "python", "tensorrt"]', backends[plan.backend]),
        file=files[plan.backend],
        input=Port("bgra", "FP32" if twin else "UINT8", (height, width, 4)),
        output=output,
        batch=plan.batch,
        delay_us=plan.delay_us,
        instances=plan.instances,
        device="gpu" if plan.backend == "tensorrt" else plan.device,
        warm_up=() if twin else plan.sizes,
        parameters=tuple(_parameters(plan).items()),
    )


def _parameters(plan: Plan) -> dict[str, str]:
    if plan.backend == "python":
        return {"runtime": plan.runtime, "threads": str(plan.threads)}
    if plan.backend == "onnx" and plan.threads:
        return {"intra_op_thread_count": str(plan.threads)}
    return {}


def _files(plan: Plan, graph: bytes) -> dict[str, bytes]:
    files = {"model.onnx": graph}
    if plan.backend == "python":
        files["model.py"] = (resources.files("service") / "triton_model.py").read_bytes()
    return files


def _write_plan(name: str, spec: ModelSpec, plan: Plan, folder: Path, cache: EngineCache) -> Path:
    """Serve an engine of the cache: of one picture, so several run side by side instead.

    Raises:
        EngineMissing: there is none for the one size.
    """
    if plan.fixed is None:
        raise UsageError("a TensorRT plan is for the sizes it was built for: name one, 480x270 say")
    located = load.locate(name, plan.weights)
    for entry in cache.of_model(located.name):
        if not isinstance(entry, Entry) or plan.fixed not in entry.identity.sizes:
            continue
        known = entry.identity
        same = (known.backend, known.precision) == ("tensorrt", plan.precision)
        if same and known.model_sha256 == located.sha256:
            config = _config(name, spec, replace(plan, batch=0, sizes=(plan.fixed,)), False)
            return _place(folder, config, {"model.plan": cache.open(entry).data})
    raise EngineMissing(
        f"no TensorRT engine of {name} for {size_text(plan.sizes)} in {plan.precision}: build it "
        f"on the server's GPU, with the server's TensorRT: overlay engines --models {name} "
        f"--sizes {size_text(plan.sizes)} --backend tensorrt --precision {plan.precision}"
    )


# --- the folder ----------------------------------------------------------------------------------


def _place(folder: Path, config: ModelConfig, files: dict[str, bytes]) -> Path:
    """Write a model's folder beside its place, then move it there.

    Raises:
        UsageError: what is there was not written here.
        EngineError: it cannot be written.
    """
    final = folder / config.name
    draft = folder / f".{config.name}.{secrets.token_hex(4)}.draft"
    _check_own(final)
    try:
        version = draft / "1"
        version.mkdir(parents=True)
        for name, data in files.items():
            _write_file(version / name, data)
        _write_file(draft / "config.pbtxt", f"{MARK}\n{config.text()}".encode())
        _swap(draft, final)
    except OSError as exc:
        raise EngineError(f"cannot write {final}: {exc.strerror or exc}") from exc
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return final


def _swap(draft: Path, final: Path) -> None:
    """Put a folder in the place of another; two renames, between which there is neither."""
    old = draft.with_suffix(".old")
    with suppress(FileNotFoundError):
        final.rename(old)
    try:
        draft.rename(final)
    except OSError:
        with suppress(FileNotFoundError):
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_own(final: Path) -> None:
    if not (final.exists() or final.is_symlink()):
        return
    own = False
    if not final.is_symlink():
        with suppress(OSError), (final / "config.pbtxt").open(encoding="utf-8") as file:
            own = file.read(len(MARK)) == MARK
    if not own:
        raise UsageError(
            f"{final} was not written by this program, and is kept: choose another --out, or "
            "move it away"
        )


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


# --- command line --------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.repository", description="Write Triton's model repository."
    )
    parser.add_argument("--models", required=True, metavar="NAME,…", help="of the zoo")
    parser.add_argument(
        "--sizes", default="any", metavar="WxH,…",
        help="of sources; one: it alone is taken (default: any)",
    )  # fmt: skip
    parser.add_argument("--backend", choices=("onnx", "python", "tensorrt"), default="python")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the repository")
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="0 = no batches")
    parser.add_argument("--delay-us", type=int, default=500, metavar="N", help="wait for a batch")
    parser.add_argument("--instances", type=int, default=1, metavar="N", help="side by side")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="of --backend onnx")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="on the CPU; 0 = all")
    parser.add_argument(
        "--runtime", choices=("auto", "openvino", "onnxruntime"), default="auto",
        help="of --backend python",
    )  # fmt: skip
    parser.add_argument("--precision", choices=("fp32", "fp16"), default=None)
    parser.add_argument("--no-twin", action="store_true", help="8 bits only")
    parser.add_argument("--weights", type=Path, action="append", default=[], metavar="DIR")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = _parser()
    said = parser.parse_args(arguments)
    names: list[str] = [name for name in said.models.split(",") if name]
    default = "fp16" if said.backend == "tensorrt" else "fp32"
    try:
        if min(said.batch, said.delay_us, said.threads) < 0 or said.instances < 1:
            raise UsageError("--batch, --delay-us, --threads are 0 or more, --instances 1 or more")
        sizes = () if said.sizes == "any" else tuple(map(parse_size, said.sizes.split(",")))
        plan = Plan(
            said.backend, sizes, said.batch, said.delay_us, said.instances, said.device,
            said.threads, said.runtime, cast("Precision", said.precision or default),
            not said.no_twin, tuple(said.weights),
        )  # fmt: skip
        for name in dict.fromkeys(names):
            for path in write(name, plan, said.out):
                print(path)
    except ModuleNotFoundError as exc:
        missing = BuilderMissing(f"the graphs need {exc.name}: {load.INSTALL_BUILD}")
        return _failed(missing)
    except EngineError as exc:
        return _failed(exc)
    return 0


def _failed(error: EngineError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
