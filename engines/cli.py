"""`python build_engines.py`, the same as `overlay engines`: build, list, verify, clean."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast, get_args

from engines import frames, load, make, zoo
from engines.build import ALIASES, BACKENDS, Options, Progress, open_builder, options_of
from engines.cache import Damaged, EngineCache, Entry, size_text
from engines.errors import (
    BuilderMissing,
    EngineError,
    EngineMissing,
    ModelInvalid,
    UsageError,
    WeightsMissing,
)
from engines.make import Job, Model, Plan, Row
from engines.spec import Precision, Size
from engines.table import as_table

if TYPE_CHECKING:
    from engines.load import Located

log = logging.getLogger(__name__)

#: How the reason begins where a stored engine cannot be compared with what it was made of.
_UNKNOWN = "cannot be compared"
DEFAULT_SIZES = "480x270"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    what = parser.add_argument_group("what to build")
    what.add_argument(
        "--models", default="default", metavar="A,B,…",
        help="names of the zoo, default (its three nets), all, files, folders or "
        "hf:OWNER/NAME[@REVISION][/FILE] "
        "(default: %(default)s)",
    )  # fmt: skip
    what.add_argument(
        "--denoise", type=float, metavar="0..1",
        help="of realesr-general-x4v3: 0 keeps the noise (default 0.5)",
    )  # fmt: skip
    what.add_argument(
        "--sizes", metavar="WxH,…", help=f"sizes of the game's picture (default: {DEFAULT_SIZES})"
    )
    what.add_argument("--window", metavar="RE", help="the size of the window with this title")
    what.add_argument(
        "--backend", default="auto", metavar="NAME,…",
        help=f"auto, or any of {', '.join((*BACKENDS, *ALIASES))} (default: %(default)s)",
    )  # fmt: skip
    what.add_argument(
        "--precision", default="auto", choices=("auto", *get_args(Precision)),
        help="auto = the back end's own (default: %(default)s)",
    )  # fmt: skip
    what.add_argument("--one-engine", action="store_true", help="one engine for all the sizes")
    what.add_argument("--force", action="store_true", help="build also what is fresh")
    what.add_argument(
        "--random-weights", action="store_true",
        help="random weights for models whose weights are missing: for timing only",
    )  # fmt: skip
    _add_folders(parser)
    _add_backend_options(parser)
    other = parser.add_argument_group("instead of building")
    one = other.add_mutually_exclusive_group()
    one.add_argument("--list", action="store_true", help="say what is in the cache, and why stale")
    one.add_argument("--verify", action="store_true", help="compare what is in the cache again")
    one.add_argument(
        "--clean", nargs="?", const="stale", metavar="stale|all|NAME",
        help="delete engines: stale and damaged ones, all, or those of a model",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--progress", choices=("bar", "lines", "none"), default="bar",
        help="lines = a JSON object a line on stderr (default: %(default)s)",
    )  # fmt: skip


def _add_folders(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("folders")
    group.add_argument(
        "--weights", type=Path, action="append", default=[], metavar="DIR",
        help="folder with weights; may be given several times (also: OVERLAY_WEIGHTS)",
    )  # fmt: skip
    group.add_argument(
        "--frames", type=Path, metavar="DIR", help="pictures of your game, to calibrate and check"
    )
    group.add_argument(
        "--cache", type=Path, metavar="DIR", help="where engines are kept (also: OVERLAY_CACHE)"
    )


def _add_backend_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options of back ends")
    group.add_argument(
        "--targets", default="", metavar="8.6,8.9,…",
        help="tensorrt-rtx: compute capabilities (default: Ampere and later)",
    )  # fmt: skip
    group.add_argument(
        "--hardware-compatible", action="store_true",
        help="tensorrt: for all GPUs of Ampere and later, slower",
    )  # fmt: skip
    group.add_argument(
        "--version-compatible",
        action="store_true",
        help="tensorrt: for later TensorRT versions too",
    )
    group.add_argument(
        "--strip-weights", action="store_true", help="tensorrt: without the weights, refitted later"
    )
    group.add_argument(
        "--level", type=int, default=3, choices=range(6), help="tensorrt: 0 quick … 5 thorough"
    )
    group.add_argument(
        "--int8-psnr", type=float, default=50.0, metavar="DB",
        help="int8: refuse what is further from FP32 (default: %(default)s)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; give the exit code."""
    cache = EngineCache(arguments.cache)
    if arguments.list:
        return _list(cache, arguments)
    if arguments.clean is not None:
        return _clean(cache, arguments)
    if arguments.verify:
        return _verify(cache, arguments)
    return _build(cache, arguments)


# Building -----------------------------------------------------------------------------------


def _build(cache: EngineCache, arguments: argparse.Namespace) -> int:
    plan = _plan(arguments)
    if plan.frames is not None:  # better now than after an hour
        try:
            frames.read((16, 16), plan.frames, most=1)
        except ModelInvalid as exc:
            raise UsageError(f"--frames: {exc}") from exc
    jobs = _jobs(arguments)
    rows: list[Row] = []
    with (
        _shown(arguments, len(jobs)) as shown,
        _interrupts() as interrupted,
        suppress(KeyboardInterrupt),
    ):

        def step(text: str, fraction: float | None) -> None:
            if interrupted():
                raise KeyboardInterrupt
            shown.phase(text, fraction)

        for row in make.make(jobs, plan, cache, step, shown.begin):
            if not (interrupted() and row.status == "failed"):
                rows.append(row)
                shown.done(row)
            if interrupted():
                break
    _print(arguments, cache, rows)
    if interrupted():
        kept = sum(row.status in ("built", "fresh") for row in rows)
        sys.stderr.write(f"interrupted; {kept} of {len(jobs)} engines are finished and kept\n")
        return 130
    return EngineMissing.exit_code if _is_short(rows) else 0


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Say whether SIGINT came; the first one raises nothing, the second KeyboardInterrupt.

    In the middle of its imports PyTorch may swallow a KeyboardInterrupt, or abort on it.
    """
    caught = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal caught
        if caught:
            raise KeyboardInterrupt
        caught = True
        os.write(2, b"\nending after this step; once more ends it at once\n")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: caught
    finally:
        signal.signal(signal.SIGINT, before)


def _is_short(rows: Sequence[Row]) -> bool:
    """Whether an engine that was asked for is missing, or there is none at all."""
    missing = [
        row
        for row in rows
        if row.status == "failed" or (row.named and row.status in ("unavailable", "offline"))
    ]
    return bool(missing) or not any(row.status in ("built", "fresh") for row in rows)


def _print(arguments: argparse.Namespace, cache: EngineCache, rows: Sequence[Row]) -> None:
    if arguments.json:
        facts = {"cache": str(cache.folder), "engines": [row.to_json() for row in rows]}
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        sys.stdout.write(as_table(rows, _columns()))


def _columns() -> int | None:
    """Width of the terminal; None where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    """List the engines that were asked for, a model's together."""
    sizes = _sizes(arguments)
    groups = [tuple(sizes)] if arguments.one_engine else [(size,) for size in sizes]
    models, named = _models(arguments)
    backends = _backends(arguments.backend)
    precision = None if arguments.precision == "auto" else cast("Precision", arguments.precision)
    return [
        Job(model, group, backend, precision, named)
        for model in models
        for group in groups
        for backend in backends
    ]


def _models(arguments: argparse.Namespace) -> tuple[list[str], bool]:
    """Name the models, and say whether they were asked for one by one.

    Raises:
        UsageError: a name is neither a row's nor could be a file's.
    """
    text = arguments.models
    names = [text] if Path(text).is_file() else _names(text)  # a file's name may hold a comma
    if arguments.denoise is not None:
        names = [load.with_strength(name, arguments.denoise) for name in names]
    if "all" in names:
        if len(names) > 1:
            raise UsageError("all cannot be joined with other names")
        return [row.id for row in zoo.ZOO if row.has_weights or arguments.random_weights], False
    models: list[str] = []
    for name in names:
        if name == "default":
            models += [row.id for row in zoo.SHIPPED]
            continue
        if not (load.is_path(name) or name.startswith("hf:")):
            zoo.spec(name.partition("@")[0])
        models.append(name)
    return list(dict.fromkeys(models)), True


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"{text!r} names nothing")
    return list(dict.fromkeys(names))


def _sizes(arguments: argparse.Namespace) -> list[Size]:
    sizes = [parse_size(text) for text in _names(arguments.sizes)] if arguments.sizes else []
    if arguments.window:
        sizes.append(_window_size(arguments.window))
    return list(dict.fromkeys(sizes)) or [parse_size(DEFAULT_SIZES)]


def parse_size(text: str) -> Size:
    """Read `WIDTHxHEIGHT` in pixels, "480x270" say.

    Raises:
        UsageError: it is no size.
    """
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip().lower())
    if not match or not all(16 <= int(number) <= 8192 for number in match.groups()):
        raise UsageError(f"{text!r} is no size: WIDTHxHEIGHT, each from 16 to 8192, like 480x270")
    return int(match[1]), int(match[2])


def _window_size(title: str) -> Size:
    from overlay.window import Query, find, open_desktop

    with open_desktop() as desktop:
        region = find(desktop, Query(title)).region
    return region.width, region.height


def _backends(text: str) -> list[str]:
    """Name the builders that were asked for; "auto" is the best that can build here."""
    if text != "auto":
        return list(dict.fromkeys(open_builder(name).name for name in _names(text)))
    from engines.build.cuda import gpu_runtime

    reasons = []
    for name in BACKENDS:
        builder = open_builder(name)
        try:
            if name.startswith("tensorrt"):  # of no use without a GPU
                gpu_runtime(f"{name} is for NVIDIA GPUs")
            builder.check()
            if name == "onnxruntime" and not find_spec("onnxruntime"):
                raise BuilderMissing(f"ONNX Runtime is not installed: {load.INSTALL_BUILD}")
        except BuilderMissing as exc:
            reasons.append(f"{name}: {exc}")
            continue
        log.info("building for %s (--backend chooses another)", name)
        log.debug("not chosen: %s", "; ".join(reasons))
        return [name]
    raise BuilderMissing(f"no back end can build here: {'; '.join(reasons)}")


def _plan(arguments: argparse.Namespace) -> Plan:
    options = Options(
        targets=tuple(t.strip() for t in arguments.targets.split(",") if t.strip()),
        hardware_compatible=arguments.hardware_compatible,
        version_compatible=arguments.version_compatible,
        strip_weights=arguments.strip_weights,
        level=arguments.level,
        int8_psnr=arguments.int8_psnr,
    )
    return Plan(
        options, tuple(arguments.weights), arguments.frames, arguments.force,
        arguments.random_weights,
    )  # fmt: skip


# Progress -----------------------------------------------------------------------------------


class _Shown:
    """Where progress goes: nowhere."""

    def begin(self, job: Job) -> None:
        """Show which engine is next."""

    def phase(self, text: str, fraction: float | None) -> None:
        """Show what is being done."""

    def done(self, row: Row) -> None:
        """Show that an engine is finished."""


class _Lines(_Shown):
    """A JSON object a line on stderr, for programs."""

    _last: tuple[str, int] = ("", -1)

    def phase(self, text: str, fraction: float | None) -> None:
        now = (text, round(100 * (fraction or 0)))
        if now == self._last:
            return
        self._last = now
        sys.stderr.write(json.dumps({"doing": text, "fraction": fraction}) + "\n")
        sys.stderr.flush()

    def done(self, row: Row) -> None:
        sys.stderr.write(json.dumps({"done": row.to_json()}) + "\n")
        sys.stderr.flush()


class _Bar(_Shown):
    """A bar on stderr that counts engines and names the step."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def begin(self, job: Job) -> None:
        name = Path(job.model).name
        self._bar.set_description_str(f"{name} {size_text(job.sizes)} {job.backend}", refresh=False)

    def phase(self, text: str, fraction: float | None) -> None:
        part = "" if fraction is None else f" {100 * fraction:.0f} %"
        self._bar.set_postfix_str(text + part)

    def done(self, row: Row) -> None:
        self._bar.update()


@contextmanager
def _shown(arguments: argparse.Namespace, count: int) -> Iterator[_Shown]:
    if arguments.progress == "lines":
        yield _Lines()
    elif arguments.progress == "bar" and sys.stderr.isatty():
        from tqdm import tqdm  # type: ignore[import-untyped]
        from tqdm.contrib.logging import logging_redirect_tqdm  # type: ignore[import-untyped]

        form = "{desc} [{n_fmt}/{total_fmt}, {elapsed}] {postfix}"
        with (
            logging_redirect_tqdm(),
            tqdm(total=count, bar_format=form, leave=False, file=sys.stderr) as bar,
        ):
            yield _Bar(bar)
    else:
        yield _Shown()


# The cache ----------------------------------------------------------------------------------


def _list(cache: EngineCache, arguments: argparse.Namespace) -> int:
    found = [(entry, stale_reason(entry, arguments.weights)) for entry in cache.entries()]
    leftovers = cache.leftovers()
    if arguments.json:
        facts = [_listed(entry, reason) for entry, reason in found]
        text = json.dumps({"cache": str(cache.folder), "engines": facts}) + "\n"
        sys.stdout.write(text)
        return 0
    for entry, reason in found:
        sys.stdout.write(_list_line(entry, reason) + "\n")
    total = sum(entry.bytes for entry, _ in found if isinstance(entry, Entry))
    total += sum(file_size(path) for path in leftovers)
    sys.stdout.write(f"{counted(len(found), 'engine')}, {total / 1e6:.1f} MB in {cache.folder}\n")
    if leftovers:
        files = counted(len(leftovers), "file")
        sys.stdout.write(f"{files} of builds that did not end (--clean deletes them)\n")
    return 0


def counted(number: int, noun: str) -> str:
    """Write "1 engine", "2 engines"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def file_size(path: Path) -> int:
    """Give a file's size in bytes, 0 if it is gone meanwhile."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def stale_reason(entry: Entry | Damaged, weights: Sequence[Path] = ()) -> str:
    """Say why an engine would be refused here; "" if it is fresh."""
    if isinstance(entry, Damaged):
        return entry.reason
    from engines import load

    known = entry.identity
    try:
        located: Located = load.locate(entry.reference, tuple(weights))
    except EngineError as exc:
        return f"{_UNKNOWN}: {exc}" if known.model_sha256 != make.RANDOM else ""
    try:
        builder = open_builder(known.backend)
        options = options_of(entry.options)
        wanted = make.identity(located, builder, known.sizes, known.precision, options)
    except EngineError as exc:
        return f"{_UNKNOWN}: {exc}"
    return known.differs(wanted) or ""


def _listed(entry: Entry | Damaged, reason: str) -> dict[str, Any]:
    if isinstance(entry, Damaged):
        return {"sidecar": str(entry.sidecar), "fresh": False, "reason": reason}
    row = make.row_of(entry, "fresh", reason).to_json()
    return {**row, "sidecar": str(entry.sidecar), "fresh": not reason, "built": entry.built}


def _list_line(entry: Entry | Damaged, reason: str) -> str:
    state = "fresh" if not reason else reason if _UNKNOWN in reason else f"stale: {reason}"
    if isinstance(entry, Damaged):
        return f"{entry.sidecar.parent.name}/{entry.sidecar.stem}  damaged: {entry.reason}"
    known = entry.identity
    took = entry.checks.get("ms_p50")
    return "  ".join([
        f"{known.model:26}", size_text(known.sizes),
        f"{known.backend} {known.backend_version} {known.precision}", *known.device.values(),
        f"{entry.bytes / 1e6:.2f} MB", *([f"{took} ms"] if took else []), entry.built, state,
    ])  # fmt: skip


def _clean(cache: EngineCache, arguments: argparse.Namespace) -> int:
    which = arguments.clean
    if not which:
        raise UsageError("--clean takes stale, all, or the name of a model")
    freed = count = 0
    for entry in cache.entries():
        reason = stale_reason(entry, arguments.weights) if which == "stale" else ""
        stale = reason and _UNKNOWN not in reason
        if which == "all" or entry.sidecar.parent.name == which or stale:
            freed += cache.remove(entry)
            count += 1
    if not count and which not in ("all", "stale"):
        raise EngineMissing(f"there is no engine of {which!r} in {cache.folder}")
    freed += cache.sweep(everything=which == "all")
    sys.stdout.write(
        f"deleted {counted(count, 'engine')}, {freed / 1e6:.1f} MB, in {cache.folder}\n"
    )
    return 0


def _verify(cache: EngineCache, arguments: argparse.Namespace) -> int:
    """Run each engine of the cache beside PyTorch; exit 5 if one fails."""
    plan = _plan(arguments)
    rows = []
    entries = cache.entries()
    with _shown(arguments, len(entries)) as shown:
        for entry in entries:
            row = _verified(cache, entry, plan, shown.phase)
            rows.append(row)
            shown.done(row)
    _print(arguments, cache, rows)
    return EngineMissing.exit_code if any(row.status == "failed" for row in rows) else 0


def _verified(cache: EngineCache, entry: Entry | Damaged, plan: Plan, progress: Progress) -> Row:
    if isinstance(entry, Damaged):
        name = f"{entry.sidecar.parent.name}/{entry.sidecar.stem}"
        return Row(name, "", "", "", "failed", entry.reason)
    known = entry.identity
    row = make.row_of(entry, "fresh", "")
    try:
        progress(f"verifying {known.model}", None)
        if known.model_sha256 == make.RANDOM:
            plan = replace(plan, random=True)
        return make.verified(cache, entry, Model(entry.reference, plan))
    except (BuilderMissing, WeightsMissing) as exc:
        return replace(row, status="unavailable", reason=str(exc))
    except EngineError as exc:
        return replace(row, status="failed", reason=str(exc))
