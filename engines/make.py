"""From names to verified engines: locate, export, build, check, time, store.

One `Job` is one engine. Whatever goes wrong with it becomes its `Row`; the others go on.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from engines import frames, load, zoo
from engines.build import (
    DEFAULT_OPTIONS,
    Beside,
    Builder,
    Built,
    Options,
    Pixels,
    Progress,
    Request,
    Runner,
    open_builder,
    options_of,
)
from engines.cache import EngineCache, Entry, Identity, size_text
from engines.errors import BuilderMissing, CacheBusy, EngineError, EngineMismatch, WeightsMissing
from engines.spec import EXPORT_REVISION, ModelSpec, Precision, Size

if TYPE_CHECKING:
    from engines.graph import Difference
    from engines.load import Loaded, Located

log = logging.getLogger(__name__)

Status = Literal["built", "fresh", "failed", "unavailable", "offline"]

#: Stands for the sha256 of random weights.
RANDOM = "random"
#: Timing stops after so many seconds, or after `_RUNS` runs that together took `_ENOUGH_S`.
_LIMIT_S = 20.0
_ENOUGH_S = 1.0
_RUNS = 3
_MOST_RUNS = 500
#: So many game frames an engine is checked on, fewer if that takes longer than `_LIMIT_S`.
_CHECKED = 3


@dataclass(frozen=True, slots=True)
class Job:
    """One engine that is wanted.

    Attributes:
        model: as `load.locate` takes it.
        sizes: source sizes that the engine must take.
        backend: name of a builder.
        precision: None = the back end's own default.
        named: whether somebody asked for this very model, and did not say "all".
    """

    model: str
    sizes: tuple[Size, ...]
    backend: str
    precision: Precision | None = None
    named: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """What is the same for all jobs.

    Attributes:
        options: for the back ends.
        weights: folders in which users keep weights.
        frames: folder of game frames to calibrate and check with; None = the shipped ones.
        force: build also what is fresh.
        random: use seeded random weights for shapes that have none: good for timing alone.
    """

    options: Options = DEFAULT_OPTIONS
    weights: tuple[Path, ...] = ()
    frames: Path | None = None
    force: bool = False
    random: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a job; the fields are those of `--json`.

    Attributes:
        status: "built", "fresh" (it was there), "failed", "unavailable" (weights, package or
            device are missing), "offline" (a model that has no engines, see `engines.offline`).
        reason: why there is no engine; for "fresh" when it was built.
        build_s: seconds from the graph to the engine.
        engine_mb: its size in 10^6 bytes.
        ms_p50, ms_p95, fps, runs: of the whole engine, bytes to bytes; None where it cannot run.
        psnr: against PyTorch FP32 on game frames, dB, of what `checked` names; "inf" if equal.
        max_diff: the largest difference in the same comparison, in levels of 255.
        checked: "engine", or "graph" where the engine cannot run here.
        path: of the engine.
        note: for people.
    """

    model: str
    size: str
    backend: str
    precision: str
    status: Status
    reason: str = ""
    build_s: float | None = None
    engine_mb: float | None = None
    ms_p50: float | None = None
    ms_p95: float | None = None
    fps: float | None = None
    runs: int | None = None
    psnr: float | str | None = None
    max_diff: int | None = None
    checked: str = ""
    path: str | None = None
    note: str = ""
    named: bool = field(default=True, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Give the documented fields."""
        fields = asdict(self)
        del fields["named"]
        return fields


class Model:
    """A model on its way to engines: weights, graph and reference pictures, each made once.

    Args:
        reference: as `load.locate` takes it.
    """

    def __init__(self, reference: str, plan: Plan) -> None:
        self._plan = plan
        self.name = reference
        self.located = _locate(reference, plan)
        self._loaded: Loaded | None = None
        self._graphs: dict[tuple[tuple[Size, ...], str], bytes] = {}
        self._checked: dict[Size, list[Pixels]] = {}
        self._references: dict[tuple[Size, int], Pixels] = {}

    @property
    def loaded(self) -> Loaded:
        """The weights, read; needs PyTorch."""
        if self._loaded is None:
            if self.located.spec is not None and not self.located.files:
                self._loaded = load.random_weights(self.located.spec)
            else:
                self._loaded = load.read(self.located)
        return self._loaded

    @property
    def spec(self) -> ModelSpec:
        """The model's row; for a user's file known only once it is read."""
        return self.located.spec or self.loaded.spec

    def graph(self, sizes: tuple[Size, ...], precision: Precision) -> bytes:
        """Export."""
        from engines import export

        kind: Precision = "fp32" if precision == "int8" else precision
        if (sizes, kind) not in self._graphs:
            made = export.export(self.loaded, sizes, kind)
            self._graphs = {key: kept for key, kept in self._graphs.items() if key[0] == sizes}
            self._graphs[sizes, kind] = made
        return self._graphs[sizes, kind]

    def frames(self, size: Size) -> list[Pixels]:
        """All game frames of a size, read when called."""
        return frames.read(size, self._plan.frames)

    def checked(self, size: Size) -> list[Pixels]:
        """The game frames of a size that engines are checked on."""
        if size not in self._checked:
            self._checked[size] = frames.read(size, self._plan.frames, _CHECKED)
        return self._checked[size]

    def reference(self, size: Size, index: int) -> Pixels:
        """What PyTorch makes of a frame, in FP32."""
        from engines import graph

        if (size, index) not in self._references:
            frame = self.checked(size)[index]
            self._references[size, index] = graph.reference(self.loaded, frame)
        return self._references[size, index]


def _locate(reference: str, plan: Plan) -> Located:
    try:
        return load.locate(reference, plan.weights)
    except WeightsMissing:
        if not plan.random:
            raise
        spec = zoo.spec(reference.partition("@")[0])
        return load.Located(f"{spec.id}-random", spec, (), RANDOM, "random weights", None)


def identity(
    located: Located,
    builder: Builder,
    sizes: tuple[Size, ...],
    precision: Precision | None = None,
    options: Options = DEFAULT_OPTIONS,
) -> Identity:
    """Say what a fresh engine is made of; the graph's sha256 is left open.

    Raises:
        BuilderMissing: the back end's package or device is missing.
    """
    return Identity(
        model=located.name,
        model_sha256=located.sha256,
        export=f"r{EXPORT_REVISION}",
        onnx_sha256="",
        sizes=sizes,
        precision=precision or builder.precisions[0],
        backend=builder.name,
        backend_version=builder.bound_version(options),
        device=builder.device(options),
    )


def make(
    jobs: Sequence[Job],
    plan: Plan,
    cache: EngineCache,
    progress: Progress,
    begin: Callable[[Job], None] = lambda job: None,
) -> Iterator[Row]:
    """Make the engines that are wanted, one after the other; a row each.

    Args:
        jobs: sorted so that those of one model follow each other; its weights are read once.
        begin: told of each job before anything is done for it.
    """
    model: Model | None = None
    of = ""
    for job in jobs:
        begin(job)
        try:
            if why := _offline(job.model):
                yield _row(job, "offline", why)
                continue
            if model is None or of != job.model:
                model, of = None, ""
                model, of = Model(job.model, plan), job.model
            yield _make_one(job, model, plan, cache, progress)
        except (WeightsMissing, BuilderMissing) as exc:
            yield _row(job, "unavailable", str(exc))
        except EngineError as exc:
            yield _row(job, "failed", str(exc))
        except MemoryError:
            yield _row(job, "failed", "out of memory; a smaller size or model may fit")
        except Exception as exc:  # libraries: PyTorch's lack of memory is a RuntimeError, say
            log.debug("%s for %s", job.model, job.backend, exc_info=True)
            yield _row(job, "failed", _line(exc))


def _offline(reference: str) -> str:
    """Say why a model has no engines; "" if it may have."""
    if load.is_path(reference) or reference.startswith("hf:"):
        return ""
    spec = zoo.spec(reference.partition("@")[0])
    return spec.why_no_engine if spec.offline else ""


def _row(job: Job, status: Status, reason: str) -> Row:
    model = Path(job.model).name
    size = size_text(job.sizes)
    return Row(model, size, job.backend, job.precision or "", status, reason, named=job.named)


def _make_one(job: Job, model: Model, plan: Plan, cache: EngineCache, progress: Progress) -> Row:
    builder = open_builder(job.backend)
    builder.check()
    if job.precision is not None and job.precision not in builder.precisions:
        offered = ", ".join(builder.precisions)
        raise BuilderMissing(f"{builder.name} does not compute in {job.precision} (only {offered})")
    wanted = identity(model.located, builder, job.sizes, job.precision, plan.options)
    found, why = _fresh(cache, wanted, plan)
    if found is not None:
        return row_of(found, "fresh", f"built {found.built}", job.named)
    with _turn(cache, wanted, progress):
        found, why = _fresh(cache, wanted, plan)  # the one who held the lock may have built it
        if found is not None:
            return row_of(found, "fresh", f"built {found.built}", job.named)
        log.info("building %s for %s: %s", wanted.model, wanted.backend, why)
        entry = _build(wanted, builder, model, plan, cache, progress)
    return row_of(entry, "built", "", job.named)


@contextmanager
def _turn(cache: EngineCache, wanted: Identity, progress: Progress) -> Iterator[None]:
    """Hold the engine's lock; say so if another process has it."""
    try:
        with cache.lock(wanted, timeout_s=0):
            yield
            return
    except CacheBusy:
        log.info("waiting for another process that builds %s", wanted.model)
        progress("waiting for another build", None)
    with cache.lock(wanted):
        yield


def _fresh(cache: EngineCache, wanted: Identity, plan: Plan) -> tuple[Entry | None, str]:
    """Find the engine wanted, whole, or say why it is to be built."""
    if plan.force:
        return None, "it was asked for"
    found, why = cache.fresh(wanted)
    if found is None:
        return None, why
    if other := _otherwise(found, plan):
        return None, other
    try:
        cache.open(found)
    except EngineError as exc:
        return None, str(exc)
    return found, ""


def _otherwise(entry: Entry, plan: Plan) -> str:
    """Say in what an engine is not as the user asks for; "" if it is. Defaults ask for nothing."""
    options = plan.options
    calibrated = entry.options.get("frames", "")
    if entry.identity.precision == "int8" and plan.frames and calibrated != _folder(plan.frames):
        return f"it was calibrated with {calibrated or 'the shipped frames'}"
    built = asdict(options_of(entry.options))
    for name, value in asdict(options).items():
        if value not in (built[name], getattr(DEFAULT_OPTIONS, name)):
            return f"it was built with {name} = {built[name]}, not {value}"
    found = entry.report.get("int8_psnr")
    if isinstance(found, int | float) and found < options.int8_psnr:
        return f"int8 is {found} dB from FP32, and {options.int8_psnr:g} dB is asked for"
    return ""


def _build(
    wanted: Identity,
    builder: Builder,
    model: Model,
    plan: Plan,
    cache: EngineCache,
    progress: Progress,
) -> Entry:
    from engines import graph

    progress("reading the weights", None)
    spec = model.spec
    progress("exporting", None)
    onnx = model.graph(wanted.sizes, wanted.precision)
    if builder.name.startswith("tensorrt"):
        graph.check(onnx)
    timing = cache.timing_cache(builder.name, wanted.backend_version, wanted.device)
    request = Request(
        spec=spec, onnx=onnx, sizes=wanted.sizes, precision=wanted.precision,
        options=plan.options, frames=model.frames,
        timing_cache=timing.read_bytes() if timing.is_file() else b"",
    )  # fmt: skip
    start = time.perf_counter()
    built = builder.build(request, progress)
    seconds = time.perf_counter() - start
    checks, kept = _checked(built, builder, model, wanted, onnx, progress)
    if built.timing_cache:
        cache.write_timing_cache(timing, built.timing_cache)
    made = replace(wanted, onnx_sha256=_sha256(onnx))
    said = {**asdict(plan.options), "frames": _folder(plan.frames)}
    entry = Entry(
        sidecar=Path(), identity=made, reference=_lasting(model), scale=spec.scale,
        output=spec.output, licence=spec.licence, file="", sha256="", bytes=0, built="",
        seconds=seconds,
        checks=checks, report=built.report, options=said,
        note=_note(spec, model.located, wanted.sizes),
    )  # fmt: skip
    stored = cache.store(entry, built.engine)
    cache.keep(stored, kept)
    return stored


def _lasting(model: Model) -> str:
    """Give a reference that holds from any working directory."""
    path = Path(model.name).expanduser()
    return str(path.resolve()) if load.is_path(model.name) and path.exists() else model.name


def _folder(path: Path | None) -> str:
    return "" if path is None else str(path.resolve())


def _note(spec: ModelSpec, located: Located, sizes: tuple[Size, ...]) -> str:
    notes = []
    if spec.net_scale:
        notes.append(f"its x{spec.net_scale} net, then a resize")
    if len(sizes) > 1:
        notes.append(f"timed at {size_text(sizes[:1])}")
    if located.sha256 == RANDOM:
        notes.append("random weights: for timing only")
    return "; ".join(notes)


def _checked(
    built: Built,
    builder: Builder,
    model: Model,
    wanted: Identity,
    onnx: bytes,
    progress: Progress,
) -> tuple[dict[str, Any], bytes]:
    """Compare and time the engine; where it cannot run, compare its graph.

    Returns:
        What was found, and what makes the next opening quicker.
    Raises:
        BuildFailed: the pictures are too far from PyTorch's.
    """
    try:
        runner = builder.open(built.engine, model.spec, wanted.sizes, Beside(lambda: onnx))
    except BuilderMissing as exc:
        progress("checking the graph", None)
        facts = {"checked": "graph", "not_run": str(exc)}
        return {**_check_graph(model, wanted, onnx), **facts}, b""
    try:
        progress("checking", None)
        checks = check(runner, model, wanted)
        progress("timing", None)
        checks |= timed(runner, model.checked(wanted.sizes[0])[0])
        return {**checks, "checked": "engine"}, runner.kept()
    finally:
        runner.close()


def verified(cache: EngineCache, entry: Entry, model: Model) -> Row:
    """Compare and time a stored engine again.

    Raises:
        BuilderMissing: it cannot run here.
        EngineMismatch: it is damaged or stale.
        BuildFailed: it differs from PyTorch by more than the model's limits.
    """
    known = entry.identity
    builder = open_builder(known.backend)
    stale = known.differs(
        identity(model.located, builder, known.sizes, known.precision, options_of(entry.options))
    )
    if stale is not None:
        raise EngineMismatch(f"it is stale: {stale}")
    engine = cache.open(entry)
    beside = Beside(lambda: model.graph(known.sizes, known.precision), cache.kept(entry))
    runner = builder.open(engine.data, model.spec, known.sizes, beside)
    try:
        checks = check(runner, model, known)
        checks |= timed(runner, model.checked(known.sizes[0])[0])
        cache.keep(entry, runner.kept())
    finally:
        runner.close()
    return row_of(replace(entry, checks={**checks, "checked": "engine"}), "fresh", "")


def _check_graph(model: Model, wanted: Identity, onnx: bytes) -> dict[str, Any]:
    from engines import graph

    frames = [model.checked(size)[0] for size in wanted.sizes]
    references = [model.reference(size, 0) for size in wanted.sizes]
    difference = graph.difference(zip(graph.run(onnx, frames), references, strict=True))
    graph.require(difference, model.spec, wanted.precision)
    return _facts(difference)


def check(runner: Runner, model: Model, wanted: Identity) -> dict[str, Any]:
    """Compare an engine's pictures with PyTorch's.

    Returns:
        psnr in dB over all frames ("inf" if equal), max_diff and mean_diff in levels of 255.
    Raises:
        BuildFailed: they differ by more than the model's limits; int8 has its own, in PSNR.
    """
    from engines import graph

    difference = _difference(runner, model, wanted)
    if wanted.precision != "int8":
        graph.require(difference, model.spec, wanted.precision)
    return _facts(difference)


def _facts(difference: Difference) -> dict[str, Any]:
    psnr = difference.psnr
    return {
        "psnr": "inf" if psnr == float("inf") else round(psnr, 2),
        "max_diff": difference.max,
        "mean_diff": round(difference.mean, 4),
    }


def _difference(runner: Runner, model: Model, wanted: Identity) -> Difference:
    from engines import graph

    pairs: list[tuple[Pixels, Pixels]] = []
    start = time.perf_counter()
    for size in wanted.sizes:
        for index, frame in enumerate(model.checked(size)):
            if pairs and time.perf_counter() - start > _LIMIT_S:
                break
            pairs.append((runner(frame).copy(), model.reference(size, index)))
    return graph.difference(pairs)


def timed(runner: Runner, frame: Pixels) -> dict[str, Any]:
    """Time an engine, bytes to bytes, one frame at a time.

    Returns:
        ms_p50, ms_p95, fps (of the median) and runs.
    """
    took: list[float] = []
    start = time.perf_counter()
    while len(took) < _MOST_RUNS:
        before = time.perf_counter()
        runner(frame)
        now = time.perf_counter()
        took.append(1e3 * (now - before))
        spent = now - start
        if spent > _LIMIT_S or (len(took) >= _RUNS and spent > _ENOUGH_S):
            break
    p50, p95 = np.percentile(took, (50, 95))
    return {
        "ms_p50": round(float(p50), 2),
        "ms_p95": round(float(p95), 2),
        "fps": float(f"{1e3 / float(p50):.3g}"),
        "runs": len(took),
    }


def row_of(entry: Entry, status: Status, reason: str, named: bool = True) -> Row:
    """Give the row of a stored engine."""
    checks, known = entry.checks, entry.identity
    return Row(
        model=known.model,
        size=size_text(known.sizes),
        backend=known.backend,
        precision=known.precision,
        status=status,
        reason=reason,
        build_s=float(f"{entry.seconds:.3g}"),
        engine_mb=round(entry.bytes / 1e6, 2),
        ms_p50=checks.get("ms_p50"),
        ms_p95=checks.get("ms_p95"),
        fps=checks.get("fps"),
        runs=checks.get("runs"),
        psnr=checks.get("psnr"),
        max_diff=checks.get("max_diff"),
        checked=str(checks.get("checked", "")),
        path=str(entry.path),
        note=entry.note,
        named=named,
    )


def _line(exc: Exception) -> str:
    """Give an error that no message was written for in one line."""
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text}"[:300]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
