"""ONNX Runtime: the engine is the exported graph, checked, for any machine.

What it runs on is chosen when it is opened: the first of `PROVIDERS` that the installed package
has and that can run the graph.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engines.build import (
    NOTHING_BESIDE,
    Beside,
    Builder,
    Built,
    Options,
    Pixels,
    Progress,
    Request,
    Runner,
)
from engines.build.shapes import shapes
from engines.errors import BuilderMissing, BuildFailed, EngineError, EngineMismatch
from engines.spec import ModelSpec, Output, Precision, Size

if TYPE_CHECKING:
    import onnxruntime as ort

log = logging.getLogger(__name__)

#: Execution providers by our names, in the order in which "auto" tries them. OpenVINO's and
#: TensorRT's are left out: those libraries have back ends of their own here.
PROVIDERS = {
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
PACKAGE = "onnxruntime-directml" if sys.platform == "win32" else "onnxruntime"
INSTALL = f"pip install {PACKAGE}"

#: What a runtime must understand to open an engine; `engines.export` writes it.
GRAPH_VERSION = "opset 20, IR 10"


def library() -> Any:
    """Import ONNX Runtime.

    Raises:
        BuilderMissing: it cannot be imported.
    """
    try:
        import onnxruntime
    except ImportError as missing:
        raise BuilderMissing(f"ONNX Runtime cannot be loaded ({missing}): {INSTALL}") from missing
    return onnxruntime


def candidates(provider: str) -> list[str]:
    """Give the names of the providers to try.

    Args:
        provider: of `PROVIDERS`, or "auto".
    Raises:
        BuilderMissing: there is no provider of this name here.
    """
    present = library().get_available_providers()
    found = [name for name, full in PROVIDERS.items() if full in present]
    if provider == "auto":
        return found
    if provider not in found:
        raise BuilderMissing(
            f"ONNX Runtime has no provider {provider!r} here (only {', '.join(found)}): {INSTALL}"
        )
    return [provider]


def first_line(error: BaseException) -> str:
    """The first line of a message of ONNX Runtime's, without its number."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text.rpartition("[ONNXRuntimeError] : ")[2][:300]


class OnnxSession:
    """A graph open on one provider; pixels go in and come out where they are.

    Attributes:
        provider: of `PROVIDERS`.

    Args:
        data: the graph.
        provider: of `PROVIDERS`.
        threads: on the CPU; 0 = as many as there are cores.
    Raises:
        EngineMismatch: the graph is damaged.
        Exception: the provider cannot run it.
    """

    def __init__(self, data: bytes, provider: str, threads: int) -> None:
        self.provider = provider
        ort = library()
        full = PROVIDERS[provider]
        self._session = ort.InferenceSession(
            data, _options(ort, provider, threads), providers=[full], enable_fallback=0
        )
        if full not in self._session.get_providers():
            raise RuntimeError(f"{full} cannot be loaded")
        self._binding = self._session.io_binding()

    def check_ports(self, sizes: tuple[Size, ...], scale: int, output: Output) -> None:
        """Check that the graph is what the engine says.

        Raises:
            EngineMismatch: it is not.
        """
        nodes = (*self._session.get_inputs(), *self._session.get_outputs())
        for size in sizes:
            wanted = _ports(size, scale, output)
            found = [
                (node.name, node.type, _filled(node.shape, shape))
                for node, (_, _, shape) in zip(nodes, wanted, strict=False)
            ]
            if found != wanted:
                raise EngineMismatch(
                    f"this engine is for another model or size: it takes {_text(found)}, "
                    f"not {_text(wanted)}; build it again"
                )

    def run(self, bgra: Pixels, picture: Pixels) -> None:
        """Upscale a frame.

        Args:
            bgra: uint8 BGRA (H, W, 4), contiguous; read.
            picture: uint8 (H*scale, W*scale, 4) BGRA or (H*scale, W*scale) luma, contiguous;
                written.
        """
        binding = self._binding
        shapes = (1, *bgra.shape), (1, *picture.shape)
        binding.bind_input("bgra", "cpu", 0, np.uint8, shapes[0], bgra.ctypes.data)
        binding.bind_output("picture", "cpu", 0, np.uint8, shapes[1], picture.ctypes.data)
        self._session.run_with_iobinding(binding)


def _options(ort: Any, provider: str, threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised too
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The game runs on the same cores: threads that wait for work must not spin.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if provider == "directml":
        options.enable_mem_pattern = False  # as DirectML demands
    return options


_Ports = list[tuple[str, str, tuple[object, ...]]]


def _ports(size: Size, scale: int, output: Output) -> _Ports:
    """Give name, type and shape of an engine's input and output."""
    given, made = shapes(size, scale, output)
    return [("bgra", "tensor(uint8)", given), ("picture", "tensor(uint8)", made)]


def _filled(shape: list[Any], wanted: tuple[object, ...]) -> tuple[object, ...]:
    """Put the lengths wanted where a graph's are open."""
    if len(shape) != len(wanted):
        return tuple(shape)
    pairs = zip(shape, wanted, strict=True)
    return tuple(length if isinstance(length, int) else other for length, other in pairs)


def _text(ports: _Ports) -> str:
    """Give ports for people: "bgra uint8 1x270x480x4 to picture uint8 1x1080x1920x4"."""
    return " to ".join(
        f"{name} {kind[7:-1]} {'x'.join(map(str, shape))}" for name, kind, shape in ports
    )


def open_session(
    data: bytes,
    sizes: tuple[Size, ...],
    scale: int,
    output: Output,
    provider: str = "auto",
    threads: int = 0,
) -> OnnxSession:
    """Open a graph on the first provider that runs it; on all but the CPU a trial shows that.

    Args:
        sizes: that it has to take.
        scale, output: as in `ModelSpec`.
        provider: of `PROVIDERS`, or "auto".
        threads: on the CPU; 0 = as many as there are cores.
    Raises:
        BuilderMissing: ONNX Runtime is not installed, or the provider cannot run the graph.
        EngineMismatch: the graph is damaged, or for another model or size.
    """
    names = candidates(provider)
    for name in names:
        try:
            session = OnnxSession(data, name, threads)
            session.check_ports(sizes, scale, output)
            if name != "cpu":
                _try(session, sizes[0], scale, output)
            return session
        except EngineError:
            raise
        except Exception as exc:  # ONNX Runtime's errors have no common base
            if name == "cpu":
                raise EngineMismatch(f"ONNX Runtime cannot run this: {first_line(exc)}") from exc
            log.warning("ONNX Runtime cannot run this with %s: %s", name, first_line(exc))
            failed = f"ONNX Runtime's provider {name} cannot run this: {first_line(exc)}"
    raise BuilderMissing(failed if names else f"ONNX Runtime has no provider here: {INSTALL}")


def _try(session: OnnxSession, size: Size, scale: int, output: Output) -> None:
    given, made = shapes(size, scale, output)
    session.run(np.zeros(given[1:], np.uint8), np.zeros(made[1:], np.uint8))


class OnnxRuntimeBuilder(Builder):
    """Checks the graph, where ONNX Runtime is installed; the file runs wherever that is."""

    name: ClassVar[str] = "onnxruntime"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16")

    def check(self) -> None:
        """Nothing is needed to build: the graph is the engine."""

    def version(self) -> str:
        return GRAPH_VERSION

    def device(self, options: Options) -> dict[str, str]:
        return {}

    def build(self, request: Request, progress: Progress) -> Built:
        progress("checking the graph", None)
        try:
            self.open(request.onnx, request.spec, request.sizes).close()
        except BuilderMissing as exc:
            log.info("the graph of %s is not checked: %s", request.spec.id, exc)
            return Built(request.onnx)
        except EngineMismatch as exc:
            raise BuildFailed(f"the graph of {request.spec.id} does not run: {exc}") from exc
        return Built(request.onnx)

    def open(
        self,
        engine: bytes,
        spec: ModelSpec,
        sizes: tuple[Size, ...],
        beside: Beside = NOTHING_BESIDE,
    ) -> OnnxRuntimeRunner:
        session = open_session(engine, sizes, spec.scale, spec.output)
        return OnnxRuntimeRunner(session, spec)


class OnnxRuntimeRunner(Runner):
    """An engine open on the provider that was chosen."""

    def __init__(self, session: OnnxSession, spec: ModelSpec) -> None:
        self.provider = session.provider
        self._session = session
        self._spec = spec
        self._picture: Pixels = np.zeros(0, np.uint8)

    def __call__(self, bgra: Pixels) -> Pixels:
        height, width = bgra.shape[:2]
        shape = shapes((width, height), self._spec.scale, self._spec.output)[1][1:]
        if self._picture.shape != shape:
            self._picture = np.zeros(shape, np.uint8)
        try:
            self._session.run(np.ascontiguousarray(bgra), self._picture)
        except Exception as exc:  # ONNX Runtime's errors have no common base
            raise EngineMismatch(
                f"this engine of {self._spec.id} does not run on {width}x{height}: "
                f"{first_line(exc)}"
            ) from exc
        return self._picture
