"""`overlay data degrade` and `overlay data measure-render`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from training.dataset import HEIGHTS, SPLITS, find_pairs, split_folders
from training.degrade.presets import PRESETS
from training.errors import DataError

_Commands = argparse._SubParsersAction


def add_degrade(commands: _Commands[argparse.ArgumentParser]) -> None:
    """Add `degrade`."""
    parser = commands.add_parser(
        "degrade",
        help="write DownscaleData: LR frames degraded from 1080p",
        description="Write DownscaleData: LR frames degraded from 1080p, each by a recipe of its "
        "own, drawn from the seed and its name. What was made before is kept.",
    )
    parser.add_argument("--root", type=Path, default=Path("data"), help="the data folder [data]")
    parser.add_argument("--preset", required=True, choices=tuple(PRESETS))
    parser.add_argument("--low", required=True, type=int, choices=HEIGHTS[:3], metavar="HEIGHT")
    parser.add_argument("--seed", type=int, default=0, help="of the recipes [0]")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes [all cores]"
    )
    parser.add_argument("--split", action="append", choices=SPLITS, help="only these [all]")
    parser.add_argument(
        "--source", type=Path, metavar="DIR", help="holds train, val, test of 1920x1080 PNGs"
    )
    parser.set_defaults(data_run=_degrade)


def _degrade(arguments: argparse.Namespace) -> int:
    from training.degrade.folder import degrade

    with progress_bar(" frames") as progress:
        written, problems = degrade(
            arguments.root,
            arguments.preset,
            arguments.low,
            seed=arguments.seed,
            jobs=arguments.jobs,
            splits=arguments.split or SPLITS,
            source=arguments.source,
            progress=progress,
        )
    for problem in problems:
        sys.stdout.write(f"{problem}\n")
    sys.stdout.write(f"{written} frames written, {len(problems)} problems\n")
    return 1 if problems else 0


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError as exc:
        raise DataError('tqdm is not installed: pip install "sr-overlay[train]"') from exc
    with tqdm(unit=unit) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def add_measure(commands: _Commands[argparse.ArgumentParser]) -> None:
    """Add `measure-render`."""
    parser = commands.add_parser(
        "measure-render",
        help="fit the preset `render` to rendered pairs",
        description="Fit the two parameters of the preset `render` to rendered pairs, of "
        "GameEngineData or of two folders with equal names.",
    )
    parser.add_argument("--root", type=Path, default=Path("data"), help="the data folder [data]")
    parser.add_argument("--low", type=int, default=270, choices=HEIGHTS[:3], metavar="HEIGHT")
    parser.add_argument("--split", default="train", choices=SPLITS)
    parser.add_argument("--game", action="append", help="only these games [all]")
    parser.add_argument("--lr", type=Path, metavar="DIR", help="LR pictures, instead of --root")
    parser.add_argument("--hr", type=Path, metavar="DIR", help="HR pictures, instead of --root")
    parser.add_argument("--frames", type=int, default=60, help="at most, evenly spread [60]")
    parser.set_defaults(data_run=_measure)


def _measure(arguments: argparse.Namespace) -> int:
    from training.degrade.render import measure, table

    if (arguments.lr is None) != (arguments.hr is None):
        raise DataError("--lr and --hr belong together: give both, or neither")
    if arguments.lr is not None:
        pairs, problems = split_folders(arguments.lr, arguments.hr)
    else:
        games = arguments.game
        pairs, problems = find_pairs(
            arguments.root, split=arguments.split, low=arguments.low, high=1080, games=games
        )
    step = max(1, len(pairs) // max(1, arguments.frames))
    fits, more = measure(pairs[::step][: max(1, arguments.frames)])
    for problem in (*problems, *more):
        sys.stdout.write(f"{problem}\n")
    if not fits:
        raise DataError("no pair could be measured; see overlay data check")
    sys.stdout.write(f"{len(fits)} of {len(pairs)} pairs\n{table(fits)}\n")
    return 0
