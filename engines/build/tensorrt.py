"""TensorRT 10 and 11: engines for the GPU at hand, each layer timed on it.

Only names that both versions have are used. An engine is for this GPU, or with
`hardware_compatible` for those of Ampere and later, and for this version of TensorRT, or with
`version_compatible` for later ones too. Such an engine is made without the lean runtime that
TensorRT would otherwise put inside: that is native code, which opening an engine must not run.
"""

# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from engines.build import NOTHING_BESIDE, Beside, Builder, Built, Options, Progress, Request, cuda
from engines.build import _trt as shared
from engines.errors import BuilderMissing, BuildFailed, EngineMismatch
from engines.spec import ModelSpec, Precision, Size

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger(__name__)

TITLE = "TensorRT"
INSTALL = "pip install tensorrt (10 or later; NVIDIA's own index is asked for its libraries)"
DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
LEVELS = range(6)
_WISH = "TensorRT builds on the GPU that is to run the engine"
_MAX_KINDS = 24


class TensorRtBuilder(Builder):
    """Builds with `tensorrt`, on a GPU.

    Of the options it takes `hardware_compatible`, `version_compatible`, `strip_weights` and
    `level`.
    """

    name: ClassVar[str] = "tensorrt"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp16", "fp32")

    def check(self) -> None:
        self.version()
        cuda.gpu_runtime(_WISH)
        _library()

    def version(self) -> str:
        return shared.installed(TITLE, DISTRIBUTIONS, INSTALL)

    def device(self, options: Options) -> dict[str, str]:
        """Name this machine's GPU, or, for an engine that is not for it alone, which it is for.

        Raises:
            BuilderMissing: there is none.
        """
        facts = cuda.device_facts(_WISH)
        return {"compatible": "ampere and later"} if options.hardware_compatible else facts

    def bound_version(self, options: Options) -> str:
        version = self.version()
        return f"{version.partition('.')[0]}.x" if options.version_compatible else version

    def build(self, request: Request, progress: Progress) -> Built:
        cuda.gpu_runtime(_WISH)
        build = shared.Build(_library(), TITLE, request)
        _configure(build.config, request.options)
        _set_timing_cache(build.config, request.timing_cache)
        engine = build.run(progress)
        used: trt.ITimingCache = build.config.get_timing_cache()
        return Built(engine, _report(engine), shared.content(used.serialize()))

    def open(
        self,
        engine: bytes,
        spec: ModelSpec,
        sizes: tuple[Size, ...],
        beside: Beside = NOTHING_BESIDE,
    ) -> shared.TensorRtRunner:
        def prepare(opened: trt.ICudaEngine) -> trt.IExecutionContext:
            _refit(opened, beside.graph)
            return opened.create_execution_context()

        return shared.TensorRtRunner(_library, TITLE, engine, spec, sizes, prepare)


def _library() -> shared.Library:
    """Import it.

    Raises:
        BuilderMissing: it is not installed, or its native libraries are missing.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as exc:
        raise BuilderMissing(f"{TITLE} cannot be loaded ({exc}): {INSTALL}") from exc
    library: shared.Library = tensorrt
    return library


def _configure(config: trt.IBuilderConfig, options: Options) -> None:
    """Set what the user said, and what suits one stream and a report."""
    import tensorrt as trt

    if options.level not in LEVELS:
        raise BuildFailed(f"{TITLE} has optimisation levels 0 to 5, not {options.level}")
    config.builder_optimization_level = options.level
    config.max_aux_streams = 0  # less latency for one frame at a time, and simpler graphs
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    if options.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)


def _set_timing_cache(config: trt.IBuilderConfig, content: bytes) -> None:
    """Start from an earlier build's timings, or from none where they are of another device."""
    cache: trt.ITimingCache | None = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        log.info("the timing cache is of another device or version: starting a new one")
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _refit(engine: trt.ICudaEngine, graph: Callable[[], bytes] | None) -> None:
    """Put the weights of the graph into an engine that was built without.

    Raises:
        EngineMismatch: there is no graph, or it is not the engine's.
    """
    import tensorrt as trt

    if not engine.refittable or not engine.get_engine_stat(trt.EngineStat.STRIPPED_WEIGHTS_SIZE):
        return
    if graph is None:
        raise EngineMismatch(
            f"this {TITLE} engine was built without its weights; build it again with them"
        )
    said = shared.logger(_library(), TITLE)
    refitter: trt.Refitter = trt.Refitter(engine, said)
    parser: trt.OnnxParserRefitter = trt.OnnxParserRefitter(refitter, said)
    if not parser.refit_from_bytes(graph()) or not refitter.refit_cuda_engine():
        raise EngineMismatch(f"{TITLE} cannot put the weights back: {said.reason()}")


def _report(engine: bytes) -> dict[str, object]:
    """Give the facts of an engine: its layers and its memory, in bytes."""
    import tensorrt as trt

    runtime: trt.Runtime = trt.Runtime(shared.logger(_library(), TITLE))
    opened: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(engine)
    if opened is None:
        return {}
    inspector: trt.EngineInspector = opened.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return {
        "weights_bytes": opened.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE),
        "activation_bytes": opened.device_memory_size_v2,
        **layer_counts(text),
    }


def layer_counts(text: str) -> dict[str, object]:
    """Count the layers in an engine inspector's JSON by type and by the type of their output.

    Which layers are slow is not known: that takes profiling.
    """
    try:
        layers = list(json.loads(text)["Layers"])
    except (ValueError, TypeError, KeyError):
        return {}
    described: list[dict[str, Any]] = [layer for layer in layers if isinstance(layer, dict)]
    kinds = Counter(str(layer.get("LayerType", "unknown"))[:64] for layer in described)
    types = Counter(_output_type(layer) for layer in described)
    return {
        "layers": len(layers),
        "layer_kinds": dict(kinds.most_common(_MAX_KINDS)),
        "layer_types": dict(types.most_common(_MAX_KINDS)),
    }


_TYPES = {"float": "fp32", "half": "fp16", "bfloat16": "bf16"}


def _output_type(layer: dict[str, Any]) -> str:
    """Find the data type in the inspector's words: "Row major linear FP16 format", "Half"."""
    outputs = layer.get("Outputs") or [{}]
    first = outputs[0] if isinstance(outputs[0], dict) else {}
    words = str(first.get("Format/Datatype", first.get("Datatype", ""))).lower()
    pattern = r"\b(fp32|fp16|bf16|fp8|u?int8|int32|int64|bool|float|half|bfloat16)\b"
    found = re.search(pattern, words)
    return _TYPES.get(found[1], found[1]) if found else "unknown"
