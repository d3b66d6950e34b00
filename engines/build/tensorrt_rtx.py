"""TensorRT for RTX: engines for many GPUs, made ahead of time, on any machine.

The driver's GPU finishes such an engine when it is opened, in seconds at first. What it compiles
then is its runtime cache, which belongs beside the engine: it is valid for one GPU, operating
system and version of TensorRT-RTX, and is read and kept by whoever opens the engine.
"""

# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from engines.build import NOTHING_BESIDE, Beside, Builder, Built, Options, Progress, Request
from engines.build import _trt as shared
from engines.errors import BuilderMissing, BuildFailed
from engines.spec import ModelSpec, Precision, Size

if TYPE_CHECKING:
    import tensorrt_rtx as trt

TITLE = "TensorRT-RTX"
INSTALL = 'pip install ".[nvidia]" in the folder of this project'
DISTRIBUTIONS = ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx")

#: Compute capabilities that engines can be made for, with the names of the GPUs.
TARGETS = {
    "7.5": "RTX 20",
    "8.0": "A100",
    "8.6": "RTX 30",
    "8.9": "RTX 40",
    "12.0": "RTX 50",
    "12.1": "DGX Spark",
}


class TensorRtRtxBuilder(Builder):
    """Builds with `tensorrt_rtx`; needs no GPU to build, one to run.

    Of the options it takes `targets`; without any the engine is for Ampere and later. Weights
    cannot be stripped, nor engines be compatible with other versions, without a GPU.
    """

    name: ClassVar[str] = "tensorrt-rtx"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp16", "fp32")

    def check(self) -> None:
        _library()

    def version(self) -> str:
        return shared.installed(TITLE, DISTRIBUTIONS, INSTALL)

    def device(self, options: Options) -> dict[str, str]:
        """Name the compute capabilities an engine is for, whatever GPU is here.

        Raises:
            BuildFailed: a target is not one of `TARGETS`.
        """
        return {"targets": ",".join(known_targets(options.targets)) or "ampere and later"}

    def build(self, request: Request, progress: Progress) -> Built:
        targets = known_targets(request.options.targets)
        library = _library()
        build = shared.Build(library, TITLE, request)
        _configure(build.config, targets)
        layers = build.network.num_layers
        engine = build.run(progress)
        return Built(engine, {"network_layers": layers, **self.device(request.options)})

    def open(
        self,
        engine: bytes,
        spec: ModelSpec,
        sizes: tuple[Size, ...],
        beside: Beside = NOTHING_BESIDE,
    ) -> RtxRunner:
        """Open an engine; see `Builder.open`. A runtime cache of another machine is ignored."""
        return RtxRunner(engine, spec, sizes, beside.kept)


class RtxRunner(shared.TensorRtRunner):
    """An engine open with a runtime cache."""

    def __init__(
        self, engine: bytes, spec: ModelSpec, sizes: tuple[Size, ...], runtime_cache: bytes
    ) -> None:
        """See `TensorRtRtxBuilder.open`."""

        def prepare(opened: trt.ICudaEngine) -> trt.IExecutionContext:
            config: trt.IRuntimeConfig = opened.create_runtime_config()
            cache: trt.IRuntimeCache = config.create_runtime_cache()
            if runtime_cache:
                cache.deserialize(runtime_cache)
            config.set_runtime_cache(cache)
            self._cache: trt.IRuntimeCache = cache
            return opened.create_execution_context(config)

        super().__init__(_library, TITLE, engine, spec, sizes, prepare)

    def kept(self) -> bytes:
        """Give the runtime cache: what was compiled for this machine so far."""
        serialized: trt.IHostMemory = self._cache.serialize()
        return shared.content(serialized)

    def close(self) -> None:
        self.__dict__.pop("_cache", None)
        super().close()


def known_targets(targets: tuple[str, ...]) -> tuple[str, ...]:
    """Give compute capabilities in the order of `TARGETS`, each once.

    Raises:
        BuildFailed: one is not in `TARGETS`; the message lists them.
    """
    for target in targets:
        if target not in TARGETS:
            known = ", ".join(f"{name} ({gpus})" for name, gpus in TARGETS.items())
            why = (
                ": it is not for data-centre GPUs of Hopper, use tensorrt"
                if target == "9.0"
                else ""
            )
            raise BuildFailed(f"{TITLE} has no target {target!r}{why}; there are {known}")
    return tuple(target for target in TARGETS if target in targets)


def _library() -> shared.Library:
    """Import it.

    Raises:
        BuilderMissing: it is not installed, or cannot be loaded.
    """
    try:
        import tensorrt_rtx
    except (ImportError, OSError) as exc:
        raise BuilderMissing(f"{TITLE} cannot be loaded ({exc}): {INSTALL}") from exc
    library: shared.Library = tensorrt_rtx
    return library


def _configure(config: trt.IBuilderConfig, targets: tuple[str, ...]) -> None:
    """Set what only TensorRT-RTX has. No timing cache: with one, a GPU is needed."""
    import tensorrt_rtx as trt

    # The engine allocates nothing while it runs, so that a stream can be captured in a graph.
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    capabilities: dict[str, trt.ComputeCapability] = {
        "7.5": trt.ComputeCapability.SM75,
        "8.0": trt.ComputeCapability.SM80,
        "8.6": trt.ComputeCapability.SM86,
        "8.9": trt.ComputeCapability.SM89,
        "12.0": trt.ComputeCapability.SM120,
        "12.1": trt.ComputeCapability.SM121,
    }
    if targets:
        config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if not config.set_compute_capability(capabilities[target], index):
            raise BuildFailed(f"{TITLE} refuses the target {target}")
