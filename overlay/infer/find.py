"""Engines from the cache: found by the model's name, checked to be fresh, opened."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from engines import load, make, zoo
from engines.build import Builder, open_builder
from engines.cache import EngineCache, Entry, Identity
from engines.errors import EngineError, EngineMissing, UnknownModel, WeightsMissing
from engines.spec import Engine
from overlay.errors import BackendUnavailable, SettingsError
from overlay.frame import Size
from overlay.infer import BUDGET_MS, INSTALL_CPU, Upscaler

log = logging.getLogger(__name__)

#: Back ends whose engines can be opened here, in the order in which "auto" looks for one, with
#: the package each needs.
OPENABLE = {"openvino": "openvino", "onnxruntime": "onnxruntime"}
INSTALL = {
    "openvino": INSTALL_CPU,
    "onnxruntime": 'pip install ".[onnx]" in the folder of this project, '
    "or onnxruntime-directml on Windows",
}


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


def open_engine(
    model: str, backend: str, source: Size, threads: int, filter: str, merge: bool
) -> Upscaler:
    """Open the fastest fresh engine of a model for a source size.

    Args:
        model: name of the zoo or of the cache, a file, or hf:OWNER/NAME.
        backend: "auto" or one of `OPENABLE`.
        threads, filter, merge: as the upscalers take them.
    Raises:
        EngineMissing: there is no fresh engine; the message says why and how to build one.
        WeightsMissing: nor are there weights to build it from; says how to get them.
        EngineMismatch: the engine is damaged.
        BackendUnavailable: the back end's package is missing.
    """
    cache = EngineCache()
    found, reasons = _search(cache, model, backend, source)
    if found is None:
        raise EngineMissing(
            f"no engine of {model} for {source}: {'; '.join(reasons)}. Build it with "
            f"overlay engines --models {model} --sizes {source} --backend {target(backend)}, "
            "or let overlay run --build do so while it shows the plain upscale"
        )
    took_ms = _milliseconds(found)
    if BUDGET_MS < took_ms < float("inf"):
        log.warning(
            "%s took %.0f ms a frame on this machine when it was built (%.2g frames a second), "
            "and about as long to open",
            model, took_ms, 1e3 / took_ms,
        )  # fmt: skip
    log.debug("opening %s", found.path)
    return _opened(cache.open(found), threads, filter, merge)


def open_quantised(
    model: str, source: Size, threads: int, filter: str, merge: bool
) -> Upscaler | None:
    """Open the int8 engine that somebody built of a shipped net; None if there is no fresh one."""
    cache = EngineCache()
    if not cache.of_model(model):
        return None
    located = load.locate(model)
    size = (source.width, source.height)
    wanted = make.identity(located, open_builder("openvino"), (size,), "int8")
    entry, why = cache.fresh(wanted)
    if entry is None:
        log.debug("no int8 engine of %s: %s", model, why)
        return None
    try:
        upscaler = _opened(cache.open(entry), threads, filter, merge)
        upscaler.warm_up(source)
    except EngineError as exc:
        log.warning("using the shipped net: %s", exc)
        return None
    return upscaler


def target(backend: str) -> str:
    """Name the back end to build for where there is no engine yet."""
    if backend != "auto":
        return backend
    return next((name for name, package in OPENABLE.items() if find_spec(package)), "openvino")


def _search(
    cache: EngineCache, model: str, backend: str, source: Size
) -> tuple[Entry | None, list[str]]:
    """Give the fastest of the fresh engines, else the reasons why there is none."""
    names = tuple(OPENABLE) if backend == "auto" else (backend,)
    usable = [name for name in names if find_spec(OPENABLE[name])]
    if not usable:
        lines = [f"{name} is not installed: {INSTALL[name]}" for name in names]
        raise BackendUnavailable("; ".join(lines))
    known, sha256, missing = _weights(cache, model)
    fresh, reasons = [], []
    for name in usable:
        for wanted in _wanted(open_builder(name), known, sha256, source):
            entry, why = cache.fresh(wanted)
            if entry is not None:
                fresh.append(entry)
            elif why != "it was not built":
                reasons.append(f"{name} {wanted.precision}: {why}")
    if missing is not None and not fresh:
        raise missing
    reasons += _elsewhere(cache, known, names)
    fresh.sort(key=_milliseconds)
    return (fresh[0] if fresh else None), reasons or ["it was not built"]


def _elsewhere(cache: EngineCache, model: str, names: tuple[str, ...]) -> list[str]:
    """Name the back ends that have an engine but were not asked, or cannot be shown."""
    stored = {entry.identity.backend for entry in cache.of_model(model) if isinstance(entry, Entry)}
    return [
        f"there is one for {name}, not for {' or '.join(names)}"
        for name in sorted(stored - {*names})
    ]


def _milliseconds(entry: Entry) -> float:
    took = entry.checks.get("ms_p50")
    return float(took) if isinstance(took, int | float) else float("inf")


def _weights(cache: EngineCache, model: str) -> tuple[str, str, WeightsMissing | None]:
    """Give a model's name in the cache and the sha256 of its weights.

    Without the weights the sha256 is "", so that an engine is taken as it is, and the error that
    says how to get them is given for the case that there is none.
    """
    try:
        located = load.locate(model)
    except WeightsMissing as exc:
        return _row_name(model), "", exc
    except UnknownModel as exc:
        if not cache.of_model(model):
            raise SettingsError(str(exc)) from exc
        return model, "", None  # a user's file, by the name that its engine has
    return located.name, located.sha256, None


def _row_name(model: str) -> str:
    """Give the name that engines of a row have, however the row was spelt."""
    name, _, strength = model.partition("@")
    spec = zoo.spec(name)
    return f"{spec.id}@{float(strength or 0.5):g}" if spec.blend else spec.id


def _wanted(builder: Builder, model: str, sha256: str, source: Size) -> Iterator[Identity]:
    located = load.Located(model, None, (), sha256, "", None)
    size = (source.width, source.height)
    for precision in builder.precisions:
        yield make.identity(located, builder, (size,), precision)


def _opened(engine: Engine, threads: int, filter: str, merge: bool) -> Upscaler:
    if engine.backend == "openvino":
        from overlay.infer.openvino import OpenVinoEngine

        return OpenVinoEngine(engine, threads, filter, merge=merge)
    from overlay.infer.onnxruntime import OnnxRuntimeUpscaler

    return OnnxRuntimeUpscaler(engine, threads, filter, merge=merge)
