"""Inference: the second stage of the frame path.

An `Upscaler` turns frames into pictures. Engines run on the infer thread; shader upscalers
only name the program that the presenter runs, so they cost no thread hop (`inline`). Back ends
are one module each, imported only by `open_upscaler`.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from overlay.closing import Closing
from overlay.errors import BackendUnavailable, OverlayError, SettingsError
from overlay.frame import Frame, Picture, Region, Size
from overlay.settings import suggestion

if TYPE_CHECKING:
    from overlay.infer.find import Wish

log = logging.getLogger(__name__)

# `import openvino` reports itself to its maker through this package, under an id that it keeps
# in the home folder; where the package cannot be imported it does not.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

INSTALL_CPU = 'pip install ".[cpu]" in the folder of this project'

#: Names of the back ends on the command line.
BACKENDS = (
    "auto", "tensorrt", "tensorrt-rtx", "torch-cuda", "openvino", "cpu", "onnxruntime", "onnx",
    "opengl", "resize",
)  # fmt: skip
_ALIASES = {"cpu": "openvino", "onnx": "onnxruntime"}

#: The shader shown where there is no engine: the plain upscale; and where OpenGL runs on the
#: CPU, on which fsr1 takes longer than the nets do.
PLAIN = "fsr1"
PLAIN_SOFTWARE = "bilinear"

#: A net that `default` may choose must take less than this: 30 frames a second.
BUDGET_MS = 1000 / 30
#: A frame that takes longer than this is not waited for when upscalers are compared.
_PATIENCE_S = 10.0

#: Upscalers that run as shaders in the presenter (`default` nets are in `engines.zoo`).
#: `bicubic` is Catmull-Rom; `nearest` is exact integer steps, then box-filtered for the rest.
SHADERS = ("nearest", "bilinear", "bicubic", "mitchell", "lanczos", "fsr1")


class Upscaler(Closing):
    """Frames in, pictures out, asynchronously.

    All methods are called on one thread (the infer thread; the capture thread if `inline`).
    """

    #: The back end's name on the command line, "openvino" say.
    backend: str
    #: The model's id, "default-x2" say, or the shader's name.
    model: str
    #: Output size / input size; 1 where the presenter scales.
    scale: int
    #: What it runs on, for people: "CPU, 2 threads".
    device: str
    #: How many frames may be submitted and not yet polled.
    slots: int = 1
    #: Whether pictures are given in host memory; without it they may stay on a GPU.
    download: bool = True
    #: Whether it is shown only until the one that was asked for has been built.
    stands_in: bool = False
    #: Whether `submit` + `poll(0)` take no time, so that no thread of its own is needed.
    inline: bool = False

    @abstractmethod
    def warm_up(self, size: Size) -> None:
        """Get ready for frames of `size` (compile, allocate, run once).

        Raises:
            EngineError: the model cannot run at this size; the message says why.
        """

    @abstractmethod
    def submit(self, frame: Frame) -> None:
        """Start on `frame` and return at once; a new size warms up first.

        At most `slots` frames may be in flight; one more is a caller's mistake (RuntimeError).
        """

    @abstractmethod
    def poll(self, timeout_s: float) -> Picture | None:
        """Give the oldest finished picture, waiting up to `timeout_s`; None if there is none.

        The picture's buffer returns to the upscaler when the picture is no longer referenced.

        Raises:
            OverlayError: the inference failed; the frame it belonged to is given up.
        """

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """How many frames were submitted and not yet given back by `poll`."""

    def close(self) -> None:
        """Free everything; idempotent."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A back end as `auto` and `doctor` see it: usable or not, why, and what to do about it."""

    name: str
    available: bool
    reason: str
    fix: str = ""


def candidates() -> list[Candidate]:
    """List the back ends in the order in which `auto` tries them."""
    found = list(_gpu_candidates())
    if find_spec("openvino"):
        found.append(Candidate("openvino", True, f"OpenVINO {version('openvino')} is installed"))
    else:
        found.append(
            Candidate("openvino", False, "OpenVINO is not installed", f"run {INSTALL_CPU}")
        )
    if find_spec("onnxruntime"):
        found.append(Candidate("onnxruntime", True, "ONNX Runtime is installed, for engines"))
    else:
        fix = 'only for engines of that kind: pip install ".[onnx]" in the folder of this project'
        found.append(Candidate("onnxruntime", False, "ONNX Runtime is not installed", fix))
    found.append(Candidate("opengl", True, "shaders run wherever the presenter does"))
    return found


def _gpu_candidates() -> Iterator[Candidate]:
    from overlay.cuda import shared_cuda
    from overlay.infer.find import ON_GPU, gpu_reason

    reason, _, fix = gpu_reason().partition("; ")
    for name, package in zip(ON_GPU, ("tensorrt", "tensorrt_rtx", "torch"), strict=True):
        if reason:
            yield Candidate(name, False, reason, fix)
        elif find_spec(package):
            yield Candidate(name, True, f"{shared_cuda().device.name}")
        else:
            yield Candidate(name, False, f"{package} is not installed")


def open_upscaler(
    model: str,
    *,
    backend: str = "auto",
    source: Size,
    output: Size,
    threads: int = 0,
    filter: str = "bicubic",
    software_gl: bool = False,
    host: bool = True,
) -> Upscaler:
    """Open a model or shader by name, warmed up for frames of size `source`.

    Args:
        model: a shader of `SHADERS`; "default", which takes the smallest scale that reaches
            `output` and, with back end "auto", falls back to the shader fsr1 where no net is
            fast enough; or any model that has an engine in the cache: a name of `engines.zoo`,
            a file, hf:OWNER/NAME.
        backend: "auto", "tensorrt", "tensorrt-rtx", "torch-cuda", "openvino" (or "cpu"),
            "onnxruntime" (or "onnx"), "opengl", "resize".
        threads: of a CPU model; 0 = all cores.
        filter: shader for what is left between the result and the size on screen.
        software_gl: the presenter's OpenGL runs on the CPU: spare it what the host does cheaper.
        host: give pictures in host memory; without it a GPU's stay there for OpenGL to read.
    Raises:
        SettingsError: unknown model or back end, or a pair that does not go together.
        BackendUnavailable: the back end named cannot be used here.
        EngineError: the model's files are missing or damaged, or it has no fresh engine here.
    """
    backend = _ALIASES.get(backend, backend)
    if backend not in BACKENDS:
        hint = suggestion(backend, BACKENDS)
        raise SettingsError(f"unknown back end {backend!r} (one of {', '.join(BACKENDS)}){hint}")
    if backend == "resize":
        from overlay.infer.resize import ResizeUpscaler

        return warmed_up(ResizeUpscaler(model, source, output), source)
    if model in SHADERS:
        if backend not in ("auto", "opengl"):
            raise SettingsError(f"{model} is a shader; it runs in opengl, not in {backend}")
        return _open_shader(model)
    if backend == "opengl":
        raise SettingsError(f"{model} is a net; opengl runs {', '.join(SHADERS)}")
    check_model(model)
    from overlay.infer.find import Wish, open_engine

    wish = Wish(source, threads, filter, software_gl, host)
    if _is_embedded(model) and backend in ("auto", "openvino"):
        return _open_net(model, backend, output, wish, software_gl)
    if model == "default":
        from engines import zoo

        model = zoo.default_for(source, output).id
    return open_engine(model, backend, wish)


def _is_embedded(model: str) -> bool:
    """Whether a model comes with the program and runs without having been built."""
    from engines import zoo

    return model == "default" or any(spec.id == model for spec in zoo.SHIPPED)


def _open_shader(name: str) -> Upscaler:
    from overlay.infer.opengl import ShaderUpscaler

    return ShaderUpscaler(name)


def _open_net(model: str, backend: str, output: Size, wish: Wish, software_gl: bool) -> Upscaler:
    """Open a shipped net: on a GPU if "auto" finds one, else, without an engine, on the CPU."""
    from engines import zoo
    from overlay.infer.find import open_on_gpu, open_quantised

    source = wish.source
    plain = PLAIN_SOFTWARE if software_gl else PLAIN
    may_fall_back = model == "default" and backend == "auto"
    spec = zoo.default_for(source, output) if model == "default" else zoo.spec(model)
    if backend == "auto" and (on_gpu := open_on_gpu(spec.id, wish)):
        if not may_fall_back or _is_quick_on_gpu(on_gpu, source):
            return on_gpu
        on_gpu.close()
    try:
        from overlay.infer.openvino import OpenVinoUpscaler
    except ImportError as exc:
        reason = f"OpenVINO, which runs {spec.id} on the CPU, cannot be loaded"
        reason += f" ({exc}): {INSTALL_CPU}"
        if not may_fall_back:
            raise BackendUnavailable(reason) from exc
        log.warning("using the shader %s: %s", plain, reason)
        return _open_shader(plain)
    upscaler = open_quantised(spec.id, wish)
    if upscaler is None:
        net = OpenVinoUpscaler(spec, wish.threads, wish.filter, merge=software_gl)
        upscaler = warmed_up(net, source)
    if not may_fall_back:
        return upscaler
    if _is_quick(upscaler, source):
        return upscaler
    upscaler.close()
    log.warning("using the shader %s (--model %s runs the net all the same)", plain, spec.id)
    return _open_shader(plain)


def _is_quick(upscaler: Upscaler, source: Size) -> bool:
    """Measure whether an upscaler keeps the budget that `default` has, and say so."""
    took_ms = measure_ms(upscaler, source)
    took = f"{upscaler.model} on {upscaler.device}: {took_ms:.1f} ms a frame"
    if took_ms <= BUDGET_MS:
        log.info("chose %s", took)
        return True
    log.warning("not %s, more than %.0f ms", took, BUDGET_MS)
    return False


def _is_quick_on_gpu(upscaler: Upscaler, source: Size) -> bool:
    """Measure likewise on a GPU, which may fail on frames though it got ready."""
    from engines.errors import EngineError

    try:
        return _is_quick(upscaler, source)
    except (EngineError, OverlayError) as exc:
        log.warning("not %s on %s: %s", upscaler.model, upscaler.device, exc)
        return False


def check_model(name: str) -> None:
    """Check a name without opening anything.

    Raises:
        SettingsError: it is neither "default", nor a shader, nor can it be a model's; the
            message lists nets and shaders. Or it is a model for single pictures.
    """
    from engines import zoo
    from engines.errors import UnknownModel
    from overlay.infer.find import is_known

    if name == "default" or name in SHADERS:
        return
    if not is_known(name):
        known = ("default", *(spec.id for spec in zoo.ZOO if not spec.offline), *SHADERS)
        raise SettingsError(
            f"unknown model {name!r} (one of {', '.join(known)}, or a file)"
            f"{suggestion(name, known)}"
        )
    with suppress(UnknownModel):
        spec = zoo.spec(name.partition("@")[0])
        if spec.offline:
            raise SettingsError(spec.why_no_engine)


def warmed_up(upscaler: Upscaler, source: Size) -> Upscaler:
    """Give an upscaler that is ready for frames of a size; it is closed if that fails."""
    try:
        upscaler.warm_up(source)
    except BaseException:
        upscaler.close()
        raise
    return upscaler


def measure_ms(upscaler: Upscaler, source: Size, runs: int = 5) -> float:
    """Give the fastest of some runs on a grey frame, in ms: what the upscaler can do.

    Raises:
        OverlayError: it failed, or did not answer for `_PATIENCE_S`.
    """
    pixels = np.full((source.height, source.width, 4), 128, np.uint8)
    region = Region(0, 0, source.width, source.height)
    best = math.inf
    for run in range(runs):
        start = time.perf_counter_ns()
        upscaler.submit(Frame(pixels, run, start, start, region))
        while upscaler.in_flight:
            upscaler.poll(1.0)
            if time.perf_counter_ns() - start > _PATIENCE_S * 1e9:
                raise OverlayError(f"{upscaler.model} did not answer for {_PATIENCE_S:.0f} s")
        best = min(best, (time.perf_counter_ns() - start) / 1e6)
    return best
