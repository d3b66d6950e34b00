"""Engines from the cache: found by the model's name, checked to be fresh, opened."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

from engines import load, make, zoo
from engines.build import open_builder, options_of
from engines.cache import Damaged, EngineCache, Entry, size_text
from engines.errors import EngineError, EngineMissing, UnknownModel, WeightsMissing
from engines.load import INSTALL_BUILD
from engines.spec import Precision
from overlay.cuda import INSTALL as INSTALL_CUDA
from overlay.cuda import CudaError, shared_cuda
from overlay.errors import BackendUnavailable, OverlayError, SettingsError
from overlay.frame import Size
from overlay.infer import BUDGET_MS, INSTALL_CPU, Upscaler, warmed_up

log = logging.getLogger(__name__)

#: Back ends that open engines of the cache, in the order of "auto"; package and install line.
OPENABLE = {
    "tensorrt": ("tensorrt", INSTALL_CUDA),
    "tensorrt-rtx": ("tensorrt_rtx", INSTALL_CUDA),
    "openvino": ("openvino", INSTALL_CPU),
    "onnxruntime": (
        "onnxruntime",
        'pip install ".[onnx]" in the folder of this project, or onnxruntime-directml on Windows',
    ),
}
#: Those that need an NVIDIA GPU.
ON_GPU = ("tensorrt", "tensorrt-rtx", "torch-cuda")


@dataclass(frozen=True, slots=True)
class Wish:
    """How an upscaler is to be opened.

    Attributes:
        source: size of the game's frames.
        threads: of a CPU engine; 0 = all cores.
        filter: shader for what is left between the result and the size on screen.
        merge: OpenGL runs on the CPU: join luma and chroma before it.
        host: give pictures in host memory, as OpenGL cannot read the GPU's.
    """

    source: Size
    threads: int = 0
    filter: str = "bicubic"
    merge: bool = False
    host: bool = True


def is_known(name: str) -> bool:
    """Whether a name could be a model's: of the zoo, of the cache, a file or a repository."""
    if name.startswith("hf:") or load.is_path(name) or _exists(name):
        return True
    try:
        zoo.spec(name.partition("@")[0])
    except UnknownModel:
        return bool(EngineCache().of_model(name))
    return True


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long for a path, say
        return False


def open_engine(model: str, backend: str, wish: Wish) -> Upscaler:
    """Open a model: the best of its fresh engines, or on the GPU with PyTorch; warmed up.

    Args:
        model: name of the zoo or of the cache, a file, or hf:OWNER/NAME.
        backend: "auto", "torch-cuda" or one of `OPENABLE`. "auto" takes TensorRT, TensorRT-RTX,
            PyTorch on the GPU, else the fastest engine for the CPU.
    Raises:
        EngineMissing: there is no fresh engine; the message says why and how to build one.
        WeightsMissing: nor are there weights to build it from; says how to get them.
        EngineMismatch: the engine is damaged.
        BackendUnavailable: the back end's package or device is missing.
    """
    cache = EngineCache()
    known = _Known.of(cache, model)
    refused: list[str] = []
    for name in _groups(backend, refused):
        if name == ("torch-cuda",):
            upscaler = _try_torch(known, wish, refused)
        else:
            upscaler = _try_engines(cache, known, name, wish, refused)
        if upscaler is not None:
            if name[0] not in ON_GPU:
                _warn_of_gpu(known, refused)
            return upscaler
    if known.missing is not None:
        raise known.missing
    refused += _for_others(cache, known, backend)
    raise EngineMissing(
        f"no engine of {model} for {wish.source}: {'; '.join(refused) or 'it was not built'}. "
        f"Build it with overlay engines --models {model} --sizes {wish.source} "
        f"--backend {target(backend)}, or let overlay run --build do so while it shows the "
        "plain upscale"
    )


def _for_others(cache: EngineCache, known: _Known, backend: str) -> list[str]:
    """Name the back ends that have an engine of the model but were not asked."""
    tried = {name for group in _groups(backend, []) for name in group}
    stored = {
        entry.identity.backend for entry in cache.of_model(known.name) if isinstance(entry, Entry)
    }
    return [f"there is one for {name}, which was not asked" for name in sorted(stored - tried)]


def open_on_gpu(model: str, wish: Wish) -> Upscaler | None:
    """Open a shipped net on an NVIDIA GPU; None where that is not to be had."""
    cache = EngineCache()
    known = _Known.of(cache, model)
    refused: list[str] = []
    for name in _groups("auto", refused):
        upscaler = None
        if name == ("torch-cuda",):
            upscaler = _try_torch(known, wish, refused)
        elif name[0] in ON_GPU:
            upscaler = _try_engines(cache, known, name, wish, refused)
        if upscaler is not None:
            return upscaler
    _warn_of_gpu(known, refused)
    return None


def _warn_of_gpu(known: _Known, refused: list[str]) -> None:
    """Say why a model does not run on the GPU that is there."""
    reasons = [reason for reason in refused if reason.startswith(ON_GPU)]
    if reasons:
        log.warning("%s does not run on the GPU: %s", known.name, "; ".join(reasons))


def open_quantised(model: str, wish: Wish) -> Upscaler | None:
    """Open the int8 engine that somebody built of a shipped net; None if there is no fresh one."""
    cache = EngineCache()
    found = [entry for entry in cache.of_model(model) if isinstance(entry, Entry)]
    if not any(entry.identity.precision == "int8" for entry in found):
        return None
    refused: list[str] = []
    upscaler = _try_engines(cache, _Known.of(cache, model), ("openvino",), wish, refused, "int8")
    if upscaler is None:
        log.warning("using the shipped net: %s", "; ".join(refused))
    return upscaler


def target(backend: str) -> str:
    """Name the back end to build for where there is no engine yet."""
    if backend == "torch-cuda":
        return "openvino"
    if backend != "auto":
        return backend
    usable = (name for name, (package, _) in OPENABLE.items() if find_spec(package))
    on_gpu = gpu_reason() == ""
    return next((name for name in usable if on_gpu or name not in ON_GPU), "openvino")


def gpu_reason() -> str:
    """Say why there is no NVIDIA GPU to be used; "" if there is one."""
    try:
        shared_cuda()
    except (BackendUnavailable, CudaError) as exc:
        return str(exc)
    return ""


def _groups(backend: str, refused: list[str]) -> Iterator[tuple[str, ...]]:
    """Give the back ends to be tried; those of one group compete by speed.

    Raises:
        BackendUnavailable: the one named needs a package or a device that is missing.
    """
    if backend != "auto":
        package, install = OPENABLE.get(backend, ("torch", INSTALL_BUILD))
        if not find_spec(package):
            raise BackendUnavailable(f"{backend} is not installed: {install}")
        if backend in ON_GPU and (reason := gpu_reason()):
            raise BackendUnavailable(reason)
        yield (backend,)
        return
    if reason := gpu_reason():
        _say_no_gpu(reason)
    else:
        yield from (
            (name,) for name in ("tensorrt", "tensorrt-rtx") if find_spec(OPENABLE[name][0])
        )
        if find_spec("torch"):
            yield ("torch-cuda",)
    on_cpu = tuple(name for name in ("openvino", "onnxruntime") if find_spec(OPENABLE[name][0]))
    if on_cpu:
        yield on_cpu
    else:
        lines = [f"{name}: {OPENABLE[name][1]}" for name in ("openvino", "onnxruntime")]
        refused.append(f"nothing that runs engines on the CPU is installed ({'; '.join(lines)})")


@cache
def _say_no_gpu(reason: str) -> None:
    """Say it once for each reason: upscalers are opened again and again."""
    log.info("no NVIDIA GPU is used: %s", reason)


def _try_torch(known: _Known, wish: Wish, refused: list[str]) -> Upscaler | None:
    if known.located is None:
        return None
    try:
        from overlay.infer.torch_cuda import open_torch

        upscaler = open_torch(known.located, shared_cuda(), wish.filter, download=wish.host)
        return warmed_up(upscaler, wish.source)
    except (EngineError, OverlayError, ImportError, OSError, RuntimeError) as exc:
        # Loading PyTorch's libraries may fail in any of these ways.
        refused.append(f"torch-cuda: {exc}")
        return None


def _try_engines(
    cache: EngineCache,
    known: _Known,
    names: tuple[str, ...],
    wish: Wish,
    refused: list[str],
    precision: Precision | None = None,
) -> Upscaler | None:
    """Open the fastest of the fresh engines that opens; note why others do not."""
    for entry in _fresh(cache, known, names, wish.source, refused, precision):
        try:
            upscaler = warmed_up(_opened(cache, entry, wish), wish.source)
        except (EngineError, OverlayError) as exc:
            refused.append(f"{entry.identity.backend}: {exc}")
            continue
        took_ms = _milliseconds(entry)
        if BUDGET_MS < took_ms < float("inf"):
            log.warning(
                "%s took %.0f ms a frame on this machine when it was built (%.2g frames a second)",
                known.name, took_ms, 1e3 / took_ms,
            )  # fmt: skip
        return upscaler
    return None


def _fresh(
    cache: EngineCache,
    known: _Known,
    names: tuple[str, ...],
    source: Size,
    refused: list[str],
    precision: Precision | None,
) -> list[Entry]:
    """List the fresh engines for these back ends and a size, the fastest first."""
    found = []
    for entry in cache.of_model(known.name):
        if isinstance(entry, Damaged):
            refused.append(f"{entry.sidecar.stem}: {entry.reason}")
            continue
        built = entry.identity
        if built.backend not in names or precision not in (None, built.precision):
            continue
        if why := _why_not(entry, known, source):
            refused.append(f"{built.backend} {built.precision}: {why}")
        else:
            found.append(entry)
    return sorted(found, key=_milliseconds)


def _why_not(entry: Entry, known: _Known, source: Size) -> str:
    built = entry.identity
    if (source.width, source.height) not in built.sizes:
        return f"it was built for {size_text(built.sizes)}"
    weights = load.Located(known.name, None, (), known.sha256, "", None)
    try:
        wanted = make.identity(
            weights, open_builder(built.backend), built.sizes, built.precision,
            options_of(entry.options),
        )  # fmt: skip
    except EngineError as exc:
        return str(exc)
    stale = built.differs(wanted)
    return f"it is stale: {stale}" if stale else ""


def _milliseconds(entry: Entry) -> float:
    took = entry.checks.get("ms_p50")
    return float(took) if isinstance(took, int | float) else float("inf")


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a model: its name in the cache, and its weights if they are here.

    Without the weights `sha256` is "", so that an engine is taken as it is, and `missing` says
    how to get them for the case that there is none.
    """

    name: str
    sha256: str = ""
    located: load.Located | None = None
    missing: WeightsMissing | None = None

    @classmethod
    def of(cls, cache: EngineCache, model: str) -> _Known:
        try:
            located = load.locate(model)
        except WeightsMissing as exc:
            return cls(_row_name(model), missing=exc)
        except UnknownModel as exc:
            if not cache.of_model(model):
                raise SettingsError(str(exc)) from exc
            return cls(model)  # a user's file, by the name that its engine has
        return cls(located.name, located.sha256, located)


def _row_name(model: str) -> str:
    """Give the name that engines of a row have, however the row was spelt."""
    if model.startswith("hf:"):
        return model  # no engine has it: theirs are named after the file
    name, _, strength = model.partition("@")
    spec = zoo.spec(name)
    return f"{spec.id}@{float(strength or 0.5):g}" if spec.blend else spec.id


def _opened(cache: EngineCache, entry: Entry, wish: Wish) -> Upscaler:
    engine = cache.open(entry)
    if engine.backend == "tensorrt":
        from overlay.infer.tensorrt import open_tensorrt

        return open_tensorrt(
            engine, shared_cuda(), wish.filter, download=wish.host, graph=partial(_graph, entry)
        )
    if engine.backend == "tensorrt-rtx":
        from overlay.infer.tensorrt_rtx import open_tensorrt_rtx

        return open_tensorrt_rtx(
            engine, shared_cuda(), wish.filter, download=wish.host,
            kept=cache.kept(entry), keep=partial(cache.keep, entry),
        )  # fmt: skip
    if engine.backend == "openvino":
        from overlay.infer.openvino import OpenVinoEngine

        return OpenVinoEngine(engine, wish.threads, wish.filter, merge=wish.merge)
    from overlay.infer.onnxruntime import OnnxRuntimeUpscaler

    return OnnxRuntimeUpscaler(engine, wish.threads, wish.filter, merge=wish.merge)


def _graph(entry: Entry) -> bytes:
    """Export the graph of an engine again, for one that was built without its weights.

    Raises:
        EngineError: the weights, or the libraries that read them, are missing.
    """
    model = make.Model(entry.reference, make.Plan())
    return model.graph(entry.identity.sizes, entry.identity.precision)
