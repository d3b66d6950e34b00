"""Which files, where to, and what went wrong.

A plan is made before anything is opened. What a job does to its file is given by the caller, so
that other kinds of files can come beside pictures: `kind_of` is the one place that tells them
apart.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engines.errors import EngineError
from overlay.errors import OverlayError, SettingsError

log = logging.getLogger(__name__)

Kind = Literal["image", "video"]
#: Endings of the files that each kind has.
ENDINGS: dict[Kind, tuple[str, ...]] = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"),
    "video": (".mp4", ".m4v", ".mov", ".mkv", ".webm"),
}
#: Endings that can be written; a file with another one gets the first of its kind.
WRITTEN: dict[Kind, tuple[str, ...]] = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"),
    "video": ENDINGS["video"],
}
_ARTICLE: dict[Kind, str] = {"image": "a picture", "video": "a video"}
#: End of the names of folders in which parts of results wait for the rest.
PARTS = ".parts"


@dataclass(frozen=True, slots=True)
class Job:
    """One file.

    Attributes:
        kind: what it is taken for, by its ending.
        source, target: paths.
    """

    kind: Kind
    source: Path
    target: Path


@dataclass(slots=True)
class Summary:
    """What became of the files.

    Attributes:
        done: written, in order.
        skipped: were there already.
        failed: (source, reason).
    """

    done: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file.

    Attributes:
        job: of it.
        skipped: it was there already.
        reason: why it failed, or "".
    """

    job: Job
    skipped: bool = False
    reason: str = ""


#: Does all jobs, in whatever order, several at once or not: gives what became of them.
Spread = Callable[[Callable[[Job], Outcome], Sequence[Job]], Iterable[Outcome]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done.

    Attributes:
        jobs: in order.
        refused: (source, reason) of files that cannot be done, however they look inside.
    """

    jobs: list[Job]
    refused: list[tuple[Path, str]]


def kind_of(path: Path) -> Kind | None:
    """Tell by its ending what a file is; None: nothing that can be upscaled."""
    ending = path.suffix.lower()
    return next((kind for kind, endings in ENDINGS.items() if ending in endings), None)


def plan(sources: Sequence[Path], out: Path, ending: str = "") -> Plan:
    """Find the files and say where each goes.

    Args:
        sources: files, and folders, which are searched with all that is in them. Files of other
            kinds in folders are passed over.
        out: a file for one file, if its ending is that of a picture or video and no folder has
            its name; else a folder, in which each source's names stay as they are.
        ending: of the results of its kind, ".png" say; "" = the source's own.
    Raises:
        SettingsError: there is nothing to do, or not as asked for.
    """
    if ending and not any(ending in endings for endings in WRITTEN.values()):
        known = ", ".join(known for endings in WRITTEN.values() for known in endings)
        raise SettingsError(f"cannot write {ending!r}: one of {known}")
    found: list[tuple[Path, Path]] = []
    refused: list[tuple[Path, str]] = []
    for source in sources:
        if source.is_dir():
            found += [(file, file.relative_to(source)) for file in _walked(source, out)]
        elif kind_of(source) is None:
            kinds = ", ".join(known for endings in ENDINGS.values() for known in endings)
            refused.append((source, f"{source} is no picture or video by its ending ({kinds})"))
        else:
            found.append((source, Path(source.name)))
    if not found and not refused:
        raise SettingsError(f"no picture or video in {', '.join(map(str, sources))}")
    alone = len(sources) == 1 and not sources[0].is_dir()
    if alone and _is_file(out) and found:
        jobs = [_alone(found[0][0], out, ending)]
    else:
        jobs = [
            Job(kind, source, out / _renamed(name, kind, ending))
            for source, name in found
            if (kind := kind_of(source))
        ]
    return _without_clashes(jobs, refused)


def _is_file(out: Path) -> bool:
    written = any(out.suffix.lower() in endings for endings in WRITTEN.values())
    return written and not out.is_dir()


def _alone(source: Path, out: Path, ending: str) -> Job:
    kind = kind_of(source)
    assert kind is not None, "the others were refused"
    if ending and out.suffix.lower() != ending:
        raise SettingsError(f"{out} and --format {ending[1:]} contradict each other")
    if out.suffix.lower() not in WRITTEN[kind]:
        known = ", ".join(WRITTEN[kind])
        raise SettingsError(f"{source} is {_ARTICLE[kind]}, and {out} is not: one of {known}")
    return Job(kind, source, out)


def _walked(folder: Path, out: Path) -> Iterator[Path]:
    """List a folder's files, those in `out` not among them, in order of name."""

    def complain(error: OSError) -> None:
        log.warning("cannot look into %s: %s", error.filename, error.strerror)

    avoided = out.resolve()
    for where, folders, names in os.walk(folder, onerror=complain):
        here = Path(where)
        folders[:] = sorted(
            name
            for name in folders
            if (here / name).resolve() != avoided and not name.endswith(PARTS)
        )
        yield from (here / name for name in sorted(names) if kind_of(here / name))


def _renamed(name: Path, kind: Kind, ending: str) -> Path:
    own = name.suffix if name.suffix.lower() in WRITTEN[kind] else WRITTEN[kind][0]
    return name.with_suffix(ending if ending in WRITTEN[kind] else own)


def _without_clashes(jobs: list[Job], refused: list[tuple[Path, str]]) -> Plan:
    """Refuse all jobs that would write one file, and those that would write a source."""
    by_target: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        by_target[_key(job.target)].append(job)
    sources = {_key(job.source) for job in jobs}
    kept = []
    for job in jobs:
        others = [str(other.source) for other in by_target[_key(job.target)] if other is not job]
        if others:
            reason = f"{job.source} would become {job.target}, and so would {', '.join(others)}"
            refused.append((job.source, f"{reason}: do them one after the other"))
        elif _key(job.target) in sources:
            refused.append((job.source, f"{job.target} is a source: choose another folder"))
        else:
            kept.append(job)
    return Plan(kept, refused)


def _key(path: Path) -> str:
    return os.path.normcase(path.resolve())


def work(
    plan: Plan,
    do: Callable[[Job], None],
    *,
    overwrite: bool = False,
    skip_existing: bool = False,
    told: Callable[[Summary], None] = lambda summary: None,
    spread: Spread = map,
) -> Summary:
    """Do all jobs; what goes wrong with one does not stop the others.

    Args:
        do: makes a job's target of its source; raises OverlayError or EngineError.
        overwrite: replace targets that are there.
        skip_existing: pass over them; without either they are failures.
        told: called after every job.
        spread: does the jobs; `map` = one after the other.
    """
    summary = Summary(failed=list(plan.refused))

    def outcome(job: Job) -> Outcome:
        if job.target.exists() and not overwrite:
            if skip_existing:
                return Outcome(job, skipped=True)
            reason = f"{job.target} is there already: --skip-existing or --overwrite"
            return Outcome(job, reason=reason)
        return Outcome(job, reason=_failure(job, do))

    for found in spread(outcome, plan.jobs):
        if found.reason:
            summary.failed.append((found.job.source, found.reason))
        else:
            (summary.skipped if found.skipped else summary.done).append(found.job.target)
        told(summary)
    return summary


def _failure(job: Job, do: Callable[[Job], None]) -> str:
    """Do a job; say why it failed, or ""."""
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        do(job)
    except (OverlayError, EngineError) as exc:
        return str(exc)
    except MemoryError:
        return f"{job.source}: too little memory"
    except OSError as exc:
        return f"cannot write {job.target}: {exc.strerror or exc}"
    return ""
