"""DownscaleData written from 1080p frames: the same bytes for the same seed, however it is run.

    <root>/DownscaleData/{270p,360p,540p}/{split}/{name}.png
    <root>/DownscaleData/manifest.jsonl     one JSON object a frame: the source's entry, and for
                                            each size the recipe, the seed and the sha256

Killed and started again, it goes on: what the manifest has, and whose bytes are still those, is
not made again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from filelock import FileLock, Timeout

from training.dataset import (
    KINDS,
    SIZES,
    SPLITS,
    Problem,
    decode_png,
    file_bytes,
    frame_parts,
    read_manifest,
)
from training.degrade.presets import draw, generator
from training.degrade.steps import apply, from_bytes, rounded
from training.errors import DataError

#: Windows cannot wait for more processes than this.
_MOST_JOBS = 61
#: Of the source's manifest, what a degraded frame keeps.
_KEPT = ("licence", "versions", "attribution")


@dataclass(frozen=True, slots=True)
class Task:
    """One frame to degrade: `source` (1920x1080) to `target`."""

    name: str
    split: str
    source: Path
    target: Path
    preset: str
    low: int
    seed: int


@dataclass(frozen=True, slots=True)
class Made:
    """What was written, or, with `problem`, why nothing was."""

    task: Task
    recipe: dict[str, Any]
    sha256: str
    source_sha256: str
    problem: Problem | None = None


def degrade(
    root: Path,
    preset: str,
    low: int,
    *,
    seed: int = 0,
    jobs: int = 1,
    splits: Iterable[str] = SPLITS,
    source: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, list[Problem]]:
    """Write one size of DownscaleData.

    Args:
        root: of the data.
        preset: one of `presets.PRESETS`.
        low: height of the frames to write.
        seed: of the recipes; each is drawn from it and the frame's name.
        jobs: processes; at most two frames of each are in memory.
        splits: of `SPLITS`; those without frames are passed over.
        source: holds `{split}/{name}.png`, 1920x1080; None: DownscaleData/1080p (wins for equal
            names) and GameEngineData/1080p. Another folder's are linked into DownscaleData/1080p.
        progress: called with how many are done, of how many.
    Returns:
        How many were written, and the frames that were not, and why.
    Raises:
        DataError: no frames, no such preset or size, another process writes there, a full disk.
    """
    if low not in SIZES or low == 1080:
        raise DataError(f"no size {low}p to degrade to; there are 270, 360 and 540")
    draw(preset, generator(seed, ""), low / 1080)  # complain now, not for every frame
    folder = root / "DownscaleData"
    folders = [source] if source else [root / kind / "1080p" for kind in KINDS]
    found = _sources(folders, splits)
    if not found:
        looked = " and ".join(map(str, folders))
        raise DataError(f"no frames in {looked}; give the folder that holds train, val or test")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            for draft in (*folder.glob("*p/*/.draft-*"), *folder.glob(".draft-*")):
                if draft.is_file():  # of a run that was killed
                    draft.unlink()
            known, problems = read_manifest(folder)
            entries = {n: e for f in folders for n, e in read_manifest(f.parent)[0].items()}
            tasks = [Task(path.stem, split, path, folder / f"{low}p" / split / path.name,
                          preset, low, seed) for split, path in found]  # fmt: skip
            todo = [task for task in tasks if not _is_done(task, known.get(task.name, {}))]
            written = 0
            with (folder / "manifest.jsonl").open(
                "a", encoding="utf-8", errors="replace"
            ) as manifest:
                for done, made in enumerate(_all_made(todo, jobs), 1 + len(tasks) - len(todo)):
                    if made.problem:
                        problems.append(made.problem)
                    else:
                        name = made.task.name
                        known[name] = _entry(made, known.get(name, {}), entries.get(name, {}))
                        manifest.write(_line(known[name]))
                        manifest.flush()
                        _link_source(made.task, root)
                        written += 1
                    progress(done, len(tasks))
            _replace(folder / "manifest.jsonl", "".join(_line(known[n]) for n in sorted(known)))
    except OSError as exc:
        raise DataError(f"cannot write {exc.filename or folder}: {exc.strerror}") from exc
    return written, sorted(problems, key=lambda problem: problem.name)


def make(task: Task) -> Made:
    """Degrade one frame and write it; the file is complete or not there."""
    try:
        data = file_bytes(task.source)
        picture = decode_png(data, task.source)
        if (picture.shape[1], picture.shape[0]) != SIZES[1080]:
            shape = f"{picture.shape[1]}x{picture.shape[0]}"
            raise DataError(f"{task.source} is {shape}, must be 1920x1080")
        if frame_parts(task.name) is None:
            raise DataError("is not named {game}_{episode}_{frame}.png; rename it")
    except DataError as exc:
        return Made(task, {}, "", "", Problem(task.name, task.source, str(exc)))
    recipe = draw(task.preset, generator(task.seed, task.name), task.low / 1080)
    low = rounded(apply(from_bytes(picture), recipe))
    encoded, png = cv2.imencode(".png", low)
    assert encoded
    assert low.shape[1::-1] == SIZES[task.low]
    task.target.parent.mkdir(parents=True, exist_ok=True)
    _replace(task.target, png.tobytes())
    sums = [hashlib.sha256(each).hexdigest() for each in (png.tobytes(), data)]
    return Made(task, recipe.as_json(), sums[0], sums[1])


def _all_made(tasks: list[Task], jobs: int) -> Iterator[Made]:
    """Make all tasks; with several processes in the order in which they are done."""
    threads = cv2.getNumThreads()
    if min(jobs, len(tasks)) <= 1:
        cv2.setNumThreads(1)
        try:
            yield from map(make, tasks)
        finally:
            cv2.setNumThreads(threads)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks of running threads
    jobs = min(jobs, len(tasks), _MOST_JOBS)
    with ProcessPoolExecutor(jobs, context, _start_worker) as pool:
        waiting = iter(tasks)
        running: set[Future[Made]] = set()
        try:
            while True:
                for task in waiting:
                    running.add(pool.submit(make, task))
                    if len(running) >= 2 * jobs:
                        break
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        except BrokenProcessPool as exc:
            raise DataError(
                f"one of {jobs} processes was killed, perhaps for want of memory; go on with "
                "fewer --jobs"
            ) from exc
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that hands out work
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that hands out work is killed: its queue would not tell."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _sources(folders: Iterable[Path], splits: Iterable[str]) -> list[tuple[str, Path]]:
    """Give (split, file) of every frame, sorted; of equal ones that of the last folder."""
    files = {(split, path.name): path for folder in folders for split in splits
             for path in (folder / split).glob("*.png")}  # fmt: skip
    return [(split, files[split, name]) for split, name in sorted(files)]


def _is_done(task: Task, entry: Mapping[str, Any]) -> bool:
    """Whether the manifest has this very degradation, and the file is the one it describes."""
    size = f"{task.low}p"
    made = _part(_part(entry, "degraded"), size)
    if (_part(made, "recipe").get("preset"), made.get("seed")) != (task.preset, task.seed):
        return False
    try:
        source, target = (_sha256(path) for path in (task.source, task.target))
    except OSError:
        return False
    same = (source, target) == (entry.get("source_sha256"), _part(entry, "sha256").get(size))
    return same and entry.get("split") == task.split


def _entry(made: Made, before: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a frame: what is known of it stays, if it is of the same source."""
    task, size = made.task, f"{made.task.low}p"
    sums = _part(before, "sha256")
    if made.source_sha256 not in (before.get("source_sha256"), sums.get("1080p")):
        before, sums = {}, {}
    game, episode, frame = frame_parts(task.name) or ("", "", "0")
    described = {"recipe": made.recipe, "seed": task.seed}
    return {
        **{key: source[key] for key in _KEPT if key in source},
        **before,
        "name": task.name,
        "game": game,
        "episode": episode,
        "frame": int(frame),
        "split": task.split,
        "source_sha256": made.source_sha256,
        "sha256": dict(sorted({**sums, size: made.sha256}.items())),
        "degraded": dict(sorted({**_part(before, "degraded"), size: described}.items())),
    }


def _part(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Give an object in a manifest's entry; an empty one where there is none."""
    part = entry.get(key)
    return part if isinstance(part, dict) else {}


def _link_source(task: Task, root: Path) -> None:
    """Put a source from elsewhere beside its LR, as a link where possible."""
    if task.source.parents[1] in [root / kind / "1080p" for kind in KINDS]:
        return
    target = root / "DownscaleData" / "1080p" / task.split / task.source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and _sha256(target) == _sha256(task.source):
        return
    target.unlink(missing_ok=True)
    try:
        os.link(task.source.resolve(), target)  # not a symbolic link itself
    except OSError:
        _replace(target, task.source.read_bytes())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as exc:
        raise DataError(f"another process is writing to {folder}; wait for it") from exc


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False, sort_keys=True) + "\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(path: Path, data: bytes | str) -> None:
    """Write a file at once: whoever reads it sees the old one or the new one."""
    data = data.encode("utf-8", "replace") if isinstance(data, str) else data
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
