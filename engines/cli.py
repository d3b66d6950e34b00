"""`python build_engines.py`, the same as `overlay engines`: build, list, verify, clean."""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from engines import make, zoo
from engines.build import ALIASES, BACKENDS, Options, Progress, open_builder, options_of
from engines.cache import Damaged, EngineCache, Entry, size_text
from engines.errors import BuilderMissing, EngineError, EngineMissing, UsageError
from engines.make import Job, Model, Plan, Row
from engines.spec import Precision, Size
from engines.table import as_table

if TYPE_CHECKING:
    from engines.load import Located

DEFAULT_SIZES = "480x270"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    what = parser.add_argument_group("what to build")
    what.add_argument(
        "--models", default="default-x2,default-x3,default-x4", metavar="A,B,…",
        help="names of the zoo, all, files, folders or hf:OWNER/NAME (default: %(default)s)",
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
    if arguments.clean:
        return _clean(cache, arguments)
    if arguments.verify:
        return _verify(cache, arguments)
    return _build(cache, arguments)


# Building -----------------------------------------------------------------------------------


def _build(cache: EngineCache, arguments: argparse.Namespace) -> int:
    jobs = _jobs(arguments)
    rows = []
    with _shown(arguments, len(jobs)) as shown:
        for row in make.make(jobs, _plan(arguments), cache, shown.phase):
            rows.append(row)
            shown.done(row)
    if arguments.json:
        facts = {"cache": str(cache.folder), "engines": [row.to_json() for row in rows]}
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        sys.stdout.write(as_table(rows))
    missing = [row for row in rows if row.named and row.status in ("failed", "unavailable")]
    return EngineMissing.exit_code if missing or not _any_there(rows) else 0


def _any_there(rows: Sequence[Row]) -> bool:
    return any(row.status in ("built", "fresh") for row in rows)


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    """List the engines that were asked for, a model's together."""
    sizes = _sizes(arguments)
    groups = [tuple(sizes)] if arguments.one_engine else [(size,) for size in sizes]
    names = _names(arguments.models)
    named = "all" not in names
    every = [row.id for row in zoo.ZOO if row.has_weights or arguments.random_weights]
    models = names if named else every
    precision = None if arguments.precision == "auto" else cast("Precision", arguments.precision)
    return [
        Job(model, group, backend, precision, named)
        for model in models
        for group in groups
        for backend in _backends(arguments.backend)
    ]


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
            builder.check()
            if name.startswith("tensorrt"):  # of no use without a GPU
                gpu_runtime(f"{name} was not chosen")
        except BuilderMissing as exc:
            reasons.append(f"{name}: {exc}")
            continue
        logging.getLogger(__name__).info("chose %s (%s)", name, "; ".join(reasons) or "the first")
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

    def phase(self, text: str, fraction: float | None) -> None:
        """Show what is being done."""

    def done(self, row: Row) -> None:
        """Show that an engine is finished."""


class _Lines(_Shown):
    """A JSON object a line on stderr, for programs."""

    def phase(self, text: str, fraction: float | None) -> None:
        sys.stderr.write(json.dumps({"doing": text, "fraction": fraction}) + "\n")
        sys.stderr.flush()

    def done(self, row: Row) -> None:
        sys.stderr.write(json.dumps({"done": row.to_json()}) + "\n")
        sys.stderr.flush()


class _Bar(_Shown):
    """A bar on stderr that counts engines and names the step."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def phase(self, text: str, fraction: float | None) -> None:
        part = "" if fraction is None else f" {100 * fraction:.0f} %"
        self._bar.set_postfix_str(text + part)

    def done(self, row: Row) -> None:
        self._bar.update()
        if row.status == "built":
            self._bar.write(f"{row.model} {row.size} {row.backend}: built", file=sys.stderr)


@contextmanager
def _shown(arguments: argparse.Namespace, count: int) -> Iterator[_Shown]:
    if arguments.progress == "lines":
        yield _Lines()
    elif arguments.progress == "bar" and sys.stderr.isatty():
        from tqdm import tqdm  # type: ignore[import-untyped]

        with tqdm(total=count, unit="engine", leave=False, file=sys.stderr) as bar:
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
    total += sum(path.stat().st_size for path in leftovers)
    sys.stdout.write(f"{len(found)} engines, {total / 1e6:.1f} MB in {cache.folder}\n")
    if leftovers:
        sys.stdout.write(f"{len(leftovers)} files of builds that did not end (--clean)\n")
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
        return f"cannot be compared: {exc}" if known.model_sha256 != "random" else ""
    try:
        builder = open_builder(known.backend)
        options = options_of(entry.options)
        wanted = make.identity(located, builder, known.sizes, known.precision, options)
    except EngineError as exc:
        return f"cannot be compared: {exc}"
    return known.differs(wanted) or ""


def _listed(entry: Entry | Damaged, reason: str) -> dict[str, Any]:
    if isinstance(entry, Damaged):
        return {"sidecar": str(entry.sidecar), "fresh": False, "reason": reason}
    row = make.row_of(entry, "fresh", reason).to_json()
    return {**row, "sidecar": str(entry.sidecar), "fresh": not reason, "built": entry.built}


def _list_line(entry: Entry | Damaged, reason: str) -> str:
    state = f"stale: {reason}" if reason else "fresh"
    if isinstance(entry, Damaged):
        return f"{entry.sidecar.parent.name}/{entry.sidecar.stem}  damaged: {entry.reason}"
    known = entry.identity
    return (
        f"{known.model}  {size_text(known.sizes)}  {known.backend} {known.backend_version}  "
        f"{known.precision}  {entry.bytes / 1e6:.1f} MB  {entry.built}  {state}"
    )


def _clean(cache: EngineCache, arguments: argparse.Namespace) -> int:
    which = arguments.clean
    freed = count = 0
    for entry in cache.entries():
        of_model = entry.sidecar.parent.name == which
        if (
            which == "all"
            or of_model
            or (which == "stale" and stale_reason(entry, arguments.weights))
        ):
            freed += cache.remove(entry)
            count += 1
    if not count and which not in ("all", "stale"):
        raise EngineMissing(f"there is no engine of {which!r} in {cache.folder}")
    for path in cache.leftovers():
        freed += path.stat().st_size
        path.unlink(missing_ok=True)
    sys.stdout.write(f"deleted {count} engines, {freed / 1e6:.1f} MB, in {cache.folder}\n")
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
    if arguments.json:
        sys.stdout.write(json.dumps({"engines": [row.to_json() for row in rows]}) + "\n")
    else:
        sys.stdout.write(as_table(rows))
    return EngineMissing.exit_code if any(row.status == "failed" for row in rows) else 0


def _verified(cache: EngineCache, entry: Entry | Damaged, plan: Plan, progress: Progress) -> Row:
    if isinstance(entry, Damaged):
        return Row(entry.sidecar.parent.name, "", "", "", "failed", entry.reason)
    known = entry.identity
    row = make.row_of(entry, "fresh", "")
    try:
        progress(f"verifying {known.model}", None)
        return make.verified(cache, entry, Model(entry.reference, plan))
    except BuilderMissing as exc:
        return replace(row, status="unavailable", reason=str(exc))
    except EngineError as exc:
        return replace(row, status="failed", reason=str(exc))
