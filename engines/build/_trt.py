"""What the builders for TensorRT and TensorRT-RTX share.

The two libraries have the same interface where it is used here, `Library`. A type checker sees
TensorRT's; the tests check this file against the real bindings of TensorRT 10 and 11 and of
TensorRT-RTX. Variables are annotated so that each use of a name is seen.
"""

# mypy: disable-error-code="import-untyped,import-not-found"
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import logging
import math
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from engines.build import Pixels, Progress, Request, Runner
from engines.build.cuda import Session
from engines.errors import BuilderMissing, BuildFailed, EngineError, EngineMismatch
from engines.spec import ModelSpec, Size

if TYPE_CHECKING:
    import onnx
    import tensorrt as trt
    from tensorrt import ILogger, IProgressMonitor
    from typing_extensions import override
else:
    ILogger = IProgressMonitor = object  # the library's class is added by `_derived`

    def override(method):
        return method


log = logging.getLogger("engines.build.tensorrt")

INPUT, OUTPUT = "bgra", "picture"
#: Bytes of an ONNX graph; the largest model of the zoo has an eighth of it.
MAX_ONNX = 1 << 29
_MAX_LINE = 300
#: Values of `ILogger.Severity`, 0 (internal error) to 4 (verbose).
_ERROR, _WARNING = 1, 2

_Kind = TypeVar("_Kind")


class Library(Protocol):
    """The module `tensorrt` or `tensorrt_rtx`, as far as both are used here."""

    Builder: type[trt.Builder]
    BuilderFlag: type[trt.BuilderFlag]
    Dims: type[trt.Dims]
    ILogger: type[trt.ILogger]
    IProgressMonitor: type[trt.IProgressMonitor]
    NetworkDefinitionCreationFlag: type[trt.NetworkDefinitionCreationFlag]
    OnnxParser: type[trt.OnnxParser]
    Runtime: type[trt.Runtime]


def installed(title: str, distributions: Iterable[str], install: str) -> str:
    """Give the version of a library, without importing it.

    Raises:
        BuilderMissing: none of its distributions is installed; says how to install it.
    """
    for name in distributions:
        try:
            return installed_version(name)
        except PackageNotFoundError:
            continue
    raise BuilderMissing(f"{title} is not installed: {install}")


# --- what the library says -----------------------------------------------------------------------


def tidy(message: str) -> str:
    """Make one line of a message of TensorRT's, without the places in its source."""
    message = re.sub(r"[. ]+In \w+ at /\S+?:\d+", "", message)
    message = re.sub(r"\w+::\w+: Error Code \d+: [\w ]+\((.*?)\)?$", r"\1", message)
    line = " ".join(message.split())
    return line if len(line) <= _MAX_LINE else line[: _MAX_LINE - 1] + "…"


class Log(ILogger):
    """Passes messages on to `logging`, and keeps the last errors, which `reason` gives.

    Errors are logged no higher than as information, as they end in an exception.
    """

    def __init__(self) -> None:
        super().__init__()
        self._errors: deque[str] = deque(maxlen=8)

    @override
    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        level = int(severity)
        if level <= _ERROR:
            self._errors.append(msg)
        log.log(logging.INFO if level <= _WARNING else logging.DEBUG, "%s", msg.strip())

    def clear(self) -> None:
        """Forget the errors of an earlier build."""
        self._errors.clear()

    def reason(self) -> str:
        """Give the last error in one line; one of CUDA's only if there is no other."""
        errors = [error for error in self._errors if "catchCudaError" not in error]
        return tidy((errors or list(self._errors) or ["no reason given"])[-1])


def _derived(kind: type[_Kind], base: type[object]) -> type[_Kind]:
    """Give `kind` as a class that is also derived from a class of the library."""
    return cast("type[_Kind]", type(kind.__name__, (kind, base), {}))


_loggers: dict[str, Log] = {}


def logger(library: Library, title: str) -> Log:
    """Give the one logger of a library: the first one it is given is the one that it keeps."""
    if title not in _loggers:
        _loggers[title] = _derived(Log, library.ILogger)()
    return _loggers[title]


# --- progress ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Phase:
    parent: str
    steps: int
    done: int = 0


class ProgressMonitor(IProgressMonitor):
    """Tells a `Progress` about the nested phases of a build; called from any thread.

    Attributes:
        raised: what the `Progress` raised, which ends the build.
    """

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._phases: dict[str, _Phase] = {}
        self._fraction = 0.0
        self._lock = threading.Lock()
        self.raised: BaseException | None = None

    @override
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: Any) -> None:
        with self._lock:
            self._phases[phase_name] = _Phase(parent_phase or "", max(1, int(num_steps)))
        self._tell(phase_name)

    @override
    def phase_finish(self, phase_name: str) -> None:
        with self._lock:
            self._phases.pop(phase_name, None)

    @override
    def step_complete(self, phase_name: str, step: Any) -> bool:
        with self._lock:
            if phase_name in self._phases:
                self._phases[phase_name].done = int(step) + 1
        self._tell(phase_name)
        return self.raised is None

    def _tell(self, phase_name: str) -> None:
        """Report a phase; an exception must not leave this method, the library would drop it."""
        try:
            with self._lock:
                if self.raised is None:
                    self._fraction = max(self._fraction, self._done(phase_name))
                    self._progress(phase_name, self._fraction)
        except BaseException as exc:
            self.raised = exc

    def _done(self, phase_name: str) -> float:
        """Give the part of the outermost phase (0..1) that is done, seen from an inner one."""
        part = 0.0
        while phase := self._phases.get(phase_name):
            part = min(1.0, (phase.done + part) / phase.steps)
            phase_name = phase.parent
        return part


# --- building ------------------------------------------------------------------------------------


def check_graph(data: bytes) -> None:
    """Check a graph before TensorRT's parser, which opens the files that a graph names, sees it.

    Raises:
        BuildFailed: it is too large, no ONNX, not valid, or keeps weights in other files.
        BuilderMissing: onnx is missing.
    """
    if len(data) > MAX_ONNX:
        raise BuildFailed(f"the ONNX graph has {len(data)} bytes, more than {MAX_ONNX}")
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as exc:
        install = 'pip install ".[build]" in the folder of this project'
        raise BuilderMissing(f"onnx is missing: {install}") from exc
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as exc:
        raise BuildFailed(f"this is not ONNX ({len(data)} bytes): {tidy(str(exc))}") from exc
    for tensor in _tensors(model.graph):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise BuildFailed(
                f"the ONNX graph keeps {tensor.name!r} in another file; put its weights inside"
            )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as exc:
        raise BuildFailed(f"the ONNX graph is not valid: {tidy(str(exc))}") from exc


def _tensors(graph: onnx.GraphProto) -> Iterable[onnx.TensorProto]:
    """Give every constant of a graph and of the graphs inside it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _tensors(inner)


class Build:
    """One build: a network from a graph, its configuration, the engine.

    Attributes:
        network: as parsed.
        config: with one optimisation profile per size if the graph's size is dynamic; the back
            end adds what it knows.
    """

    def __init__(self, library: Library, title: str, request: Request) -> None:
        """Parse the graph.

        Raises:
            BuildFailed: the graph, a size or the precision cannot be used.
        """
        if request.precision == "int8":
            raise BuildFailed(f"{title} engines are fp16 or fp32 here, not int8; use openvino")
        check_graph(request.onnx)
        self._library, self._title, self._model = library, title, request.spec.id
        self._log = logger(library, title)
        self._log.clear()
        self._builder: trt.Builder = library.Builder(self._log)
        # Always on from TensorRT 11: types are the graph's, nothing is narrowed on its own.
        strongly_typed = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network: trt.INetworkDefinition = self._builder.create_network(strongly_typed)
        self._parse(request.onnx)
        self.config: trt.IBuilderConfig = self._builder.create_builder_config()
        if request.precision == "fp32":
            self.config.clear_flag(library.BuilderFlag.TF32)
        self._take_sizes(request.sizes)

    def failed(self, reason: str) -> BuildFailed:
        """Give the error of this build."""
        return BuildFailed(f"{self._title} cannot build {self._model}: {reason}")

    def _parse(self, graph: bytes) -> None:
        parser: trt.OnnxParser = self._library.OnnxParser(self.network, self._log)
        if not parser.parse(graph):
            errors = [parser_error(parser.get_error(i)) for i in range(min(3, parser.num_errors))]
            raise self.failed("; ".join(errors) or self._log.reason())

    def _take_sizes(self, sizes: tuple[Size, ...]) -> None:
        """Check the graph's input and output; add a profile per size where it is dynamic."""
        shapes: dict[str, tuple[int, ...]] = {}
        for i in range(self.network.num_inputs):
            shapes[self.network.get_input(i).name] = lengths(self.network.get_input(i).shape)
        names = [self.network.get_output(i).name for i in range(self.network.num_outputs)]
        if [*shapes, *names] != [INPUT, OUTPUT]:
            raise self.failed(
                f"the graph goes from {', '.join(shapes)} to {', '.join(names)}, "
                f"not from {INPUT} to {OUTPUT}"
            )
        if any(side < 1 for size in sizes for side in size):
            raise self.failed(f"the sizes {sizes} are not all positive")
        if -1 in shapes[INPUT]:
            for width, height in sizes:
                self._add_profile((1, height, width, 4))
        elif [shapes[INPUT]] != [(1, height, width, 4) for width, height in sizes]:
            wanted = ", ".join(f"{width}x{height}" for width, height in sizes)
            raise self.failed(f"the graph's input is {shapes[INPUT]}, and {wanted} is wanted")

    def _add_profile(self, shape: tuple[int, ...]) -> None:
        profile: trt.IOptimizationProfile = self._builder.create_optimization_profile()
        dims: trt.Dims = self._library.Dims(shape)
        profile.set_shape(INPUT, dims, dims, dims)
        if self.config.add_optimization_profile(profile) < 0:
            raise self.failed(f"the size {shape[2]}x{shape[1]} is refused: {self._log.reason()}")

    def run(self, progress: Progress) -> bytes:
        """Make the engine.

        Raises:
            BuildFailed: TensorRT says why.
            BaseException: what `progress` raised.
        """
        monitor = _derived(ProgressMonitor, self._library.IProgressMonitor)(progress)
        self.config.progress_monitor = monitor
        plan: trt.IHostMemory | None
        plan = self._builder.build_serialized_network(self.network, self.config)
        if monitor.raised is not None:
            raise monitor.raised
        if plan is None:
            raise self.failed(self._log.reason())
        return content(plan)


def parser_error(error: trt.ParserError) -> str:
    """Name the node that the parser refuses, and why, in one line."""
    lines = [line for line in error.desc().splitlines() if "catchCudaError" not in line]
    name = error.node_name()
    if len(lines) > 1 and lines[0].startswith("Invalid Node"):
        del lines[0]
    why = tidy(" ".join(lines)).removeprefix(f"{name}: ")
    if error.node() < 0:
        return why
    return f"node {error.node()}, {error.node_operator()} {name!r}: {why}"


def lengths(dims: trt.Dims) -> tuple[int, ...]:
    """Give a shape as a tuple; -1 is a length that is not fixed."""
    return tuple(dims[axis] for axis in range(len(dims)))


def content(memory: trt.IHostMemory) -> bytes:
    """Copy what a buffer of the library's holds."""
    return bytes(cast("Any", memory))


# --- running -------------------------------------------------------------------------------------


class TensorRtRunner(Runner):
    """An engine, a context and one stream; a frame is copied up, run, copied down."""

    def __init__(
        self,
        load: Callable[[], Library],
        title: str,
        engine: bytes,
        spec: ModelSpec,
        sizes: tuple[Size, ...],
        prepare: Callable[[trt.ICudaEngine], trt.IExecutionContext],
    ) -> None:
        """Open it.

        Args:
            load: imports the library; called when a GPU was found.
            prepare: makes the context.
        Raises:
            BuilderMissing: there is no GPU, or the library is missing.
            EngineMismatch: TensorRT does not take the engine, or the engine not a size.
            EngineError: CUDA fails.
        """
        session = Session(f"{title} engines run on NVIDIA GPUs only")
        self._session, self._title, self._spec = session, title, spec
        self._size: Size | None = None
        try:
            library = load()
            self._log = logger(library, title)
            self._log.clear()
            self._runtime: trt.Runtime = library.Runtime(self._log)
            opened: trt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(engine)
            if opened is None:
                raise EngineMismatch(f"{title} refuses this engine: {self._log.reason()}")
            self._engine: trt.ICudaEngine = opened
            context: trt.IExecutionContext | None = prepare(self._engine)
            if context is None:
                raise EngineMismatch(f"{title} cannot run this engine: {self._log.reason()}")
            self._context: trt.IExecutionContext = context
            self._profiles = {size: self._profile(size) for size in sizes}
            self._allocate(max(width * height for width, height in sizes))
        except BaseException:
            self.close()
            raise

    def _profile(self, size: Size) -> int:
        """Find the optimisation profile of a size."""
        shape = (1, size[1], size[0], 4)
        for index in range(self._engine.num_optimization_profiles):
            shapes: list[trt.Dims] = self._engine.get_tensor_profile_shape(INPUT, index)
            if lengths(shapes[1]) == shape:
                return index
        raise EngineMismatch(f"this {self._title} engine does not take {size[0]}x{size[1]}")

    def _allocate(self, pixels: int) -> None:
        """Allocate for source frames of so many pixels, and tell the context where."""
        channels = 1 if self._spec.output == "luma" else 4
        self._frame = self._session.pinned_memory(pixels * 4)
        self._picture = self._session.pinned_memory(pixels * self._spec.scale**2 * channels)
        self._input = self._session.device_memory(self._frame.nbytes)
        self._output = self._session.device_memory(self._picture.nbytes)
        for name, address in ((INPUT, self._input), (OUTPUT, self._output)):
            self._need(self._context.set_tensor_address(name, address), f"take {name}")

    def _need(self, done: bool, what: str) -> None:
        if not done:
            raise EngineError(f"this {self._title} engine cannot {what}: {self._log.reason()}")

    def _resize(self, size: Size) -> None:
        """Switch to another of the sizes."""
        if size not in self._profiles:
            raise EngineMismatch(f"this {self._title} engine is not for {size[0]}x{size[1]}")
        if len(self._profiles) > 1:
            stream, profile = self._session.stream, self._profiles[size]
            chosen = self._context.set_optimization_profile_async(profile, stream)
            self._need(chosen, f"choose profile {profile}")
        shape = (1, size[1], size[0], 4)
        self._need(self._context.set_input_shape(INPUT, shape), f"take the shape {shape}")
        channels = () if self._spec.output == "luma" else (4,)
        picture = (size[1] * self._spec.scale, size[0] * self._spec.scale, *channels)
        found = lengths(self._context.get_tensor_shape(OUTPUT))
        if found != (1, *picture):
            raise EngineMismatch(f"this {self._title} engine gives {found}, not {(1, *picture)}")
        self._size, self._shape = size, picture

    def __call__(self, bgra: Pixels) -> Pixels:
        size = (bgra.shape[1], bgra.shape[0])
        if size != self._size:
            self._size = None
            self._resize(size)
        frame = self._frame[: bgra.size]
        frame.reshape(bgra.shape)[...] = bgra
        picture = self._picture[: math.prod(self._shape)]
        self._session.upload(self._input, frame)
        self._need(self._context.execute_async_v3(self._session.stream), "run")
        self._session.download(picture, self._output)
        self._session.synchronize()
        return picture.reshape(self._shape)

    def close(self) -> None:
        # TensorRT's objects first, then the memory and the stream that they use. Each may be
        # missing: `__init__` ends here too when it fails.
        for name in ("_context", "_engine", "_runtime"):
            self.__dict__.pop(name, None)
        self._session.close()
