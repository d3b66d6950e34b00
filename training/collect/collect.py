"""`overlay data collect`: let games draw their episodes at every size, and keep what is aligned."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from training.collect import RUNNERS, open_runner
from training.collect.align import Limits, Verdict, judge
from training.collect.runner import CollectError, Episode, Runner
from training.collect.store import Draft, Store
from training.errors import DataError

#: `--small`: game: (episodes, frames of each); nothing that has to be installed as root.
SMALL = {"freedoom": (("map01", "e1m2"), 8), "raycaster": (("seed1",), 16)}


class Bar(Protocol):
    """What is used of tqdm."""

    def update(self, n: int) -> object: ...
    def write(self, s: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Task:
    """One episode to collect."""

    runner: Runner
    episode: Episode


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one episode.

    Attributes:
        what: "kept", "there" (already), "dropped" or "failed".
        reason: why it was dropped or failed, or which frames were left out.
        paired: whether there is LR.
    """

    task: Task
    what: str
    frames: int = 0
    reason: str = ""
    paired: bool = True


def tasks_of(
    games: Sequence[str],
    episodes: Sequence[str] = (),
    frames: int | None = None,
    *,
    dense: bool = False,
) -> list[Task]:
    """List what to collect.

    Args:
        games: names of `RUNNERS`.
        episodes: only these; empty for all.
        frames: of each episode at most; None for the game's usual number.
        dense: the sequences whose frames follow each other in time, instead of the usual ones.
    Raises:
        DataError: no such game or episode.
    """
    tasks = []
    for game in games:
        runner = open_runner(game)
        found = runner.dense(frames) if dense else runner.episodes(frames)
        tasks += [Task(runner, episode) for episode in found]
    known = {task.episode.name for task in tasks}
    if unknown := set(episodes) - known:
        raise DataError(
            f"no episode {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}"
        )
    return [task for task in tasks if not episodes or task.episode.name in episodes]


def collect(
    task: Task, store: Store, *, retry: bool = False, drawn: Callable[[int], object] = int
) -> Outcome:
    """Collect one episode, unless it is there.

    Args:
        retry: also when the gate dropped it before.
        drawn: called with 1 after each picture.
    """
    runner, episode = task.runner, task.episode
    if store.complete(episode):
        return Outcome(task, "there", len(store.entries(episode)))
    if not retry and (reason := store.dropped(episode)):
        return Outcome(task, "dropped", 0, f"{reason} (before; --retry tries again)")
    try:
        facts = {"versions": runner.versions(), "licence": runner.licence}
        with store.draft(episode) as draft:
            _draw(runner, episode, draft, drawn)
            return keep_if_good(task, store, draft, facts, runner.limits)
    except CollectError as exc:
        return Outcome(task, "failed", 0, str(exc))
    except OSError as exc:  # a full disk, no permission
        return Outcome(task, "failed", 0, f"{exc.filename or store.folder}: {exc.strerror}")


def keep_if_good(
    task: Task, store: Store, draft: Draft, facts: dict[str, Any], limits: Limits
) -> Outcome:
    """Let the gate judge a drawn sequence; keep its good frames, or note why it is dropped."""
    verdict = judge(draft.files, limits)
    facts = facts | _figures(verdict)
    if verdict.reason:
        store.drop(task.episode, verdict.reason, facts)
        return Outcome(task, "dropped", 0, verdict.reason)
    draft.keep(set(draft.files) - set(verdict.left_out))
    store.commit(task.episode, draft, facts)
    reason = "; ".join(f"frame {n} left out: {why}" for n, why in verdict.left_out.items())
    return Outcome(task, "kept", len(draft.files), reason, paired=bool(verdict.figures))


def _figures(verdict: Verdict) -> dict[str, Any]:
    left_out = {str(number): why for number, why in verdict.left_out.items()}
    return {"alignment": verdict.figures, "left_out": left_out}


def _draw(runner: Runner, episode: Episode, draft: Draft, drawn: Callable[[int], object]) -> None:
    """Draw an episode at every size; frames that are not there at all of them are forgotten."""
    folders: set[str] = set()
    for size in runner.sizes:
        with closing(runner.render(episode, size)) as frames:
            for frame in frames:
                if frame.pixels.shape != (size[1], size[0], 3):
                    shape = frame.pixels.shape
                    raise CollectError(f"{episode.game} drew {shape}, not {size[0]}x{size[1]}")
                draft.ticks[frame.number] = frame.tick
                for folder, picture in runner.pictures(size, frame.pixels).items():
                    draft.write(frame.number, folder, picture)
                    folders.add(folder)
                drawn(1)
    if not draft.files:
        raise CollectError(f"{episode.game} drew no frame of {episode.name}")
    draft.keep(number for number, files in draft.files.items() if set(files) == folders)


def collect_all(
    tasks: Iterable[Task], store: Store, bar: Bar, *, jobs: int = 1, retry: bool = False
) -> list[Outcome]:
    """Collect episodes, `jobs` at a time; what each came to is said above the bar."""
    outcomes = []
    pool = ThreadPoolExecutor(jobs)
    try:
        waiting = [
            pool.submit(collect, task, store, retry=retry, drawn=bar.update) for task in tasks
        ]
        for done in as_completed(waiting):
            outcome = done.result()
            outcomes.append(outcome)
            episode = outcome.task.episode
            why = f": {outcome.reason}" if outcome.reason else ""
            count = f", {outcome.frames} frames" if outcome.frames else ""
            bar.write(f"{episode.game} {episode.name}: {outcome.what}{count}{why}")
    finally:
        pool.shutdown(cancel_futures=True)
    return outcomes


def check_kind(store: Store, *, dense: bool) -> None:
    """Refuse a folder that has the other kind of sequences.

    Raises:
        DataError: means over both would be of neither.
    """
    for entry in store.all_entries():
        settings = entry.get("settings")
        if dense != bool(isinstance(settings, dict) and settings.get("dense")):
            has, wanted = ("single", "dense") if dense else ("dense", "single")
            raise DataError(
                f"{store.folder} has {has} frames ({entry.get('name')}) and takes no {wanted} "
                "ones: name another folder by --out"
            )


def summary(store: Store) -> str:
    """Count the frames of each game and split, as text."""
    counts = Counter(
        (str(entry.get("game", "?")), str(entry.get("split", "?"))) for entry in store.all_entries()
    )
    return "\n".join(f"{game} {split}: {count} frames" for (game, split), count in counts.items())


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `collect`."""
    parser = commands.add_parser(
        "collect",
        help="let games draw frames at all sizes",
        description="Let games draw the same frames at 270p, 360p, 540p and 1080p. What is there "
        "already is kept, and what was interrupted goes on.",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="data folder (default: data; data/dense)"
    )
    parser.add_argument(
        "--games", default=",".join(RUNNERS), metavar="A,B,…", help="default: %(default)s"
    )
    parser.add_argument("--episodes", default="", metavar="A,B,…", help="default: all")
    parser.add_argument("--frames", type=positive, metavar="N", help="of each episode at most")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="episodes at a time")
    parser.add_argument("--retry", action="store_true", help="also what the gate dropped before")
    parser.add_argument(
        "--small", action="store_true", help="a few frames of Freedoom and the ray caster: a trial"
    )
    parser.add_argument(
        "--dense",
        action="store_true",
        help="frames that follow each other at 17 or 20 a second, for flicker; not for training",
    )
    parser.add_argument("--list", action="store_true", help="only say what there is to collect")
    run: Callable[[argparse.Namespace], int] = _run
    parser.set_defaults(data_run=run)


def positive(text: str) -> int:
    """Read an argument that is a number of things."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.small and arguments.dense:
        raise DataError("--small has no dense sequences; leave one of both out")
    if arguments.small:
        tasks = [
            task
            for game, (episodes, frames) in SMALL.items()
            for task in tasks_of([game], episodes, frames)
        ]
    else:
        names = _list(arguments.games), _list(arguments.episodes)
        tasks = tasks_of(*names, arguments.frames, dense=arguments.dense)
    if arguments.list:
        for episode in (task.episode for task in tasks):
            sys.stdout.write(f"{episode.game} {episode.name} {episode.split}\n")
        return 0
    store = Store(arguments.out or Path("data/dense" if arguments.dense else "data"))
    check_kind(store, dense=arguments.dense)
    with progress_bar() as bar:
        outcomes = collect_all(tasks, store, bar, jobs=arguments.jobs, retry=arguments.retry)
    sys.stdout.write(f"{summary(store)}\n")
    found = {outcome.what for outcome in outcomes}
    return 1 if "failed" in found or found == {"dropped"} else 0


def progress_bar() -> Any:
    """Open a bar that counts pictures; a `tqdm.tqdm`.

    Raises:
        DataError: tqdm is not installed.
    """
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError as exc:
        raise DataError('tqdm is not installed: pip install "sr-overlay[train]"') from exc
    return tqdm(unit=" pictures", disable=None)


def _list(text: str) -> list[str]:
    return [part for part in text.split(",") if part]
