"""Building: an exported graph in, an engine for one back end out.

A `Builder` is one back end, in the module of its name, imported only by `open_builder`. Builders
know nothing of weights, of the cache or of the command line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engines.errors import UsageError
from engines.spec import ModelSpec, Precision, Size

Pixels = NDArray[np.uint8]

#: Told what a build is doing and which part of that (0..1, None = unknown) is done. Raising in
#: it (KeyboardInterrupt, say) ends the build.
Progress = Callable[[str, float | None], None]

#: Back ends by name, in the order in which "auto" prefers them.
BACKENDS = ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")
ALIASES = {"cpu": "openvino", "onnx": "onnxruntime"}


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may say about a build; a back end takes what it has a use for.

    Attributes:
        targets: compute capabilities for tensorrt-rtx, "8.6" say; () = its default, Ampere
            and later.
        hardware_compatible: tensorrt: run on other GPUs of Ampere and later too.
        version_compatible: tensorrt: run with later versions of TensorRT too.
        strip_weights: tensorrt: leave the weights out; they are refitted when it is opened.
        level: tensorrt: builder optimisation level, 0 (quick build) to 5.
        int8_psnr: openvino: an int8 engine that is further than this (dB) from FP32 is refused.
    """

    targets: tuple[str, ...] = ()
    hardware_compatible: bool = False
    version_compatible: bool = False
    strip_weights: bool = False
    level: int = 3
    int8_psnr: float = 50.0


DEFAULT_OPTIONS = Options()


def options_of(facts: Mapping[str, object]) -> Options:
    """Read options that were stored; what is unknown or of another type is left at its default."""
    known = {name: value for name, value in asdict(DEFAULT_OPTIONS).items() if name in facts}
    stored = {name: facts[name] for name in known}
    if isinstance(targets := stored.get("targets"), list):
        stored["targets"] = tuple(str(target) for target in targets)
    kept = {name: value for name, value in stored.items() if type(value) is type(known[name])}
    return replace(DEFAULT_OPTIONS, **kept)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Request:
    """One engine to build.

    Attributes:
        spec: the model.
        onnx: the exported graph: input `bgra`, uint8 BGRA (1, H, W, 4), output `picture`, uint8
            (1, H*scale, W*scale, 4) or, for luma, (1, H*scale, W*scale). FP16 graphs compute in
            FP16 throughout; for int8 the graph is FP32.
        sizes: of the source, in pixels. One: the graph is of this size. Several: its height and
            width are dynamic, and the engine takes each of them.
        precision: what was asked for.
        options: what the user said.
        frames: uint8 BGRA (H, W, 4) game frames, for calibration and for checking it; made when
            called, each of the size given.
        timing_cache: what an earlier build for the same device left, b"" if none.
    """

    spec: ModelSpec
    onnx: bytes
    sizes: tuple[Size, ...]
    precision: Precision
    options: Options = DEFAULT_OPTIONS
    frames: Callable[[Size], Sequence[Pixels]] = lambda size: ()
    timing_cache: bytes = b""


@dataclass(frozen=True, slots=True)
class Built:
    """What a build gives.

    Attributes:
        engine: the file's content.
        report: facts for the sidecar, JSON values: layers, memory, differences found.
        timing_cache: for the next build on the same device, b"" if there is none.
    """

    engine: bytes
    report: Mapping[str, object] = field(default_factory=dict)
    timing_cache: bytes = b""


@dataclass(frozen=True, slots=True)
class Beside:
    """What lies beside an engine when it is opened.

    Attributes:
        graph: gives the graph it was built from, whose weights go into an engine that was built
            without its own; None where it cannot be had.
        kept: what `Runner.kept` gave when the engine was open before, b"" at first.
    """

    graph: Callable[[], bytes] | None = None
    kept: bytes = b""


NOTHING_BESIDE = Beside()


class Runner(ABC):
    """An engine open on this machine, one frame at a time: to check it and to time it."""

    @abstractmethod
    def __call__(self, bgra: Pixels) -> Pixels:
        """Upscale a frame.

        Args:
            bgra: uint8 BGRA (H, W, 4), contiguous, of a size the engine takes.
        Returns:
            uint8 (H*scale, W*scale, 4) BGRA or (H*scale, W*scale) luma; overwritten by the next.
        """

    def kept(self) -> bytes:
        """Give what makes the next opening on this machine quicker; b"" if there is nothing.

        TensorRT-RTX's runtime cache: what it compiled for this GPU.
        """
        return b""

    def close(self) -> None:  # noqa: B027 - most have nothing to free
        """Free everything; idempotent."""


class Builder(ABC):
    """One back end that makes engines."""

    #: Its name on the command line.
    name: ClassVar[str]
    #: What it can compute in, the default first.
    precisions: ClassVar[tuple[Precision, ...]]

    @abstractmethod
    def check(self) -> None:
        """Check that it can build here.

        Raises:
            BuilderMissing: a package, driver or device is missing; the message has the fix.
        """

    @abstractmethod
    def version(self) -> str:
        """Give the version of the back end that is installed."""

    def bound_version(self, options: Options) -> str:
        """Give the version, or the range of versions, that an engine with these options needs."""
        return self.version()

    @abstractmethod
    def device(self, options: Options) -> dict[str, str]:
        """Name what an engine made here is bound to, {"gpu": …, "sm": "8.9", "driver": …} say."""

    @abstractmethod
    def build(self, request: Request, progress: Progress) -> Built:
        """Make an engine.

        Raises:
            BuildFailed: it cannot be made; the message says why, in one line.
        """

    @abstractmethod
    def open(
        self,
        engine: bytes,
        spec: ModelSpec,
        sizes: tuple[Size, ...],
        beside: Beside = NOTHING_BESIDE,
    ) -> Runner:
        """Open an engine that `build` made, to check and time it.

        Raises:
            BuilderMissing: engines of this kind cannot run on this machine; says why.
            EngineMismatch: the engine is damaged, or of another version or device.
        """


#: Module and class of each back end.
_BUILDERS = {
    "tensorrt": ("engines.build.tensorrt", "TensorRtBuilder"),
    "tensorrt-rtx": ("engines.build.tensorrt_rtx", "TensorRtRtxBuilder"),
    "openvino": ("engines.build.openvino", "OpenVinoBuilder"),
    "onnxruntime": ("engines.build.onnxruntime", "OnnxRuntimeBuilder"),
}


def open_builder(name: str) -> Builder:
    """Give the builder of a back end; nothing heavy is imported before it is used.

    Raises:
        UsageError: there is no back end of this name.
    """
    try:
        module, kind = _BUILDERS[ALIASES.get(name, name)]
    except KeyError:
        known = ", ".join((*BACKENDS, *ALIASES))
        raise UsageError(f"unknown back end {name!r} (one of auto, {known})") from None
    builder: Builder = getattr(import_module(module), kind)()
    return builder
