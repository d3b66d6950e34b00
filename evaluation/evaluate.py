"""Quality of upscalers on pairs of frames: `python -m evaluation.evaluate`.

    python -m evaluation.evaluate --lr DIR --hr DIR --models default-x4 --json out.json
    python -m evaluation.evaluate --data data --split val --low 270 --high 1080 --models A,B

Interpolation and fsr1 always come along. One frame is in memory at a time. Definitions of the
metrics, of the intervals and of the JSON: docs/metrics.md.

Exit codes: 0 all of it; 1 a result in which frames or models are missing; 2 nothing to evaluate,
or not as asked for; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from evaluation import results, upscale
from evaluation.metrics import FLICKER, INSTALL_TRAIN, METRICS, Compare, open_metric
from evaluation.metrics.errors import EvaluationError, MetricUnavailable
from evaluation.metrics.flicker import Flicker
from evaluation.results import Frames, Result
from overlay.errors import BackendUnavailable, OverlayError
from overlay.latency import machine
from overlay.trace.atomic import write_atomically
from training import dataset
from training.collect import RUNNERS
from training.dataset import Pair, Problem
from training.errors import DataError

Pixels = NDArray[np.uint8]

#: Rows of every table.
ALWAYS = ("bilinear", "bicubic", "catmull-rom", "lanczos", "fsr1")
#: Measured unless others are named; those whose weights are missing are left out, with a line.
DEFAULT_METRICS = ("psnr", "psnr-y", "ssim", "lpips-alex", "haarpsi", "brisque")
SRGD_METRICS = ("psnr", "ssim", "lpips-vgg", "haarpsi", "brisque")
#: With `--sequences` and `--limit`, frames are taken in runs of so many.
_RUN = 4


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be evaluated; fields as the options."""

    models: tuple[str, ...]
    metrics: tuple[str, ...] | None
    against: tuple[str, ...]
    crop: int | None
    scale: int | None
    limit: int | None
    sequences: bool
    srgd_compatible: bool
    brisque_svm: Path | None
    seed: int
    device: str


# --- the data ------------------------------------------------------------------------------------


def chosen(pairs: Sequence[Pair], limit: int | None, runs: bool) -> list[Pair]:
    """Take at most `limit` pairs, evenly spread; with `runs` in runs of consecutive ones."""
    if limit is None or limit >= len(pairs):
        return list(pairs)
    length = min(_RUN, limit) if runs else 1
    count = limit // length
    blocks = len(pairs) // length
    starts = [i * blocks // count * length for i in range(count)]
    return [pair for start in starts for pair in pairs[start : start + length]]


def sequence(pair: Pair) -> str:
    """Name what a frame is not independent of; a name that tells nothing stands for itself."""
    return f"{pair.game}_{pair.episode}" if pair.game else pair.name


def apart_in_time(pairs: Sequence[Pair], data: Path | None) -> frozenset[str]:
    """Name sequences whose frames follow each other in number only, not in time.

    Args:
        pairs: the frames.
        data: their data folder, whose manifest says how a game's frames were collected; without
            it, or an entry in it, nothing is known against them.
    """
    if data is None:
        return frozenset()
    entries, _ = dataset.read_manifest(data / "GameEngineData")
    found = set()
    for pair in pairs:
        settings = entries[pair.name].get("settings") if pair.name in entries else {"dense": True}
        dense = isinstance(settings, dict) and settings.get("dense")
        if pair.game in RUNNERS and not dense:
            found.add(sequence(pair))
    return frozenset(found)


def _read(pair: Pair, scale: int | None) -> tuple[Pixels, Pixels, int]:
    """Read uint8 BGR LR and HR, and what HR is larger by.

    Raises:
        DataError: one cannot be read, or they do not go together.
    """
    low, high = dataset.read_png(pair.low), dataset.read_png(pair.high)
    factor = high.shape[0] // low.shape[0]
    if high.shape != (low.shape[0] * factor, low.shape[1] * factor, 3):
        raise DataError(f"HR {_size(high)} is no whole multiple of LR {_size(low)}")
    if scale is not None and factor != scale:
        raise DataError(f"HR is {factor} times as large as LR, the others {scale} times")
    return low, high, factor


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


# --- the run -------------------------------------------------------------------------------------


class Evaluation:
    """Metrics and upscalers, opened; takes frames one by one.

    Args:
        wanted: what to do.
        apart: sequences without flicker, as their frames lie apart in time.
    Raises:
        EvaluationError: the device, or a metric that was named, cannot be used.
    """

    def __init__(self, wanted: Wanted, apart: Collection[str] = ()) -> None:
        _check_device(wanted.device)
        self._wanted = wanted
        self._apart = apart
        self.left_out: list[str] = []
        self._compare = self._open_metrics()
        names = dict.fromkeys((*ALWAYS, *wanted.models))
        self.rows = {name: Frames(name) for name in names}
        self._upscalers: dict[str, upscale.Upscaler] = {}
        self._flicker: dict[str, Flicker] = {}
        self.scale = wanted.scale
        self.sizes: tuple[str, str] = ("", "")  # of LR and HR of the last pair
        self.clusters: dict[str, str] = {}
        self._open = ExitStack()

    @property
    def metrics(self) -> list[str]:
        """Names of what is measured, in the order of the columns."""
        return [*self._compare, *([FLICKER.name] if self._wanted.sequences else [])]

    @property
    def crop(self) -> int:
        """HR pixels that are cut off each side; as many as the scale unless stated."""
        if self._wanted.crop is not None:
            return self._wanted.crop
        return 0 if self._wanted.srgd_compatible else self.scale or 0

    def _open_metrics(self) -> dict[str, Compare]:
        wanted = self._wanted
        usual = SRGD_METRICS if wanted.srgd_compatible else DEFAULT_METRICS
        opened = {}
        for name in wanted.metrics or usual:
            svm = wanted.brisque_svm if wanted.srgd_compatible and name == "brisque" else None
            try:
                opened[name] = open_metric(
                    name,
                    weights=svm,
                    srgd_compatible=wanted.srgd_compatible,
                    device=wanted.device,
                )
            except MetricUnavailable as exc:
                if wanted.metrics is not None:
                    raise
                self.left_out.append(f"{name}: {exc}")
        return opened

    def open_upscalers(self) -> None:
        """Open all; one that cannot be used gets a row that says why."""
        for name, row in self.rows.items():
            try:
                upscaler = upscale.open_upscaler(name, self._wanted.device)
            except BackendUnavailable as exc:
                row.status, row.reason = "skipped", _line(exc)
            except upscale.FAILURES as exc:
                row.status, row.reason = "failed", _line(exc)
            else:
                row.kind, row.about = upscaler.kind, upscaler.about
                self._upscalers[name] = self._open.enter_context(upscaler)

    def take(self, pair: Pair) -> None:
        """Evaluate one pair with all upscalers.

        Raises:
            DataError: the pair cannot be read or measured; nothing of it is kept.
        """
        low, high, self.scale = _read(pair, self.scale)
        if 2 * self.crop >= min(high.shape[:2]):
            raise DataError(f"a crop of {self.crop} leaves nothing of {_size(high)}")
        truth = self._cut(high)
        measured: dict[str, dict[str, float]] = {}
        for name, upscaler in list(self._upscalers.items()):
            try:
                if upscaler.scale not in (0, self.scale):
                    raise EvaluationError(
                        f"it enlarges {upscaler.scale} times, these pairs are {self.scale} times"
                    )
                picture = self._cut(upscaler(low, self.scale))
            except upscale.FAILURES as exc:
                self.rows[name].status, self.rows[name].reason = "failed", _line(exc)
                self._upscalers.pop(name).close()
                continue
            measured[name] = self._measured(name, picture, truth, pair)
        self.clusters[pair.name] = sequence(pair)
        self.sizes = _size(low), _size(high)
        for name, values in measured.items():
            self.rows[name].values[pair.name] = values

    def _cut(self, bgr: Pixels) -> Pixels:
        """Cut the border off, and give RGB."""
        crop = self.crop
        inner = bgr[crop : bgr.shape[0] - crop, crop : bgr.shape[1] - crop]
        return np.ascontiguousarray(inner[..., ::-1])

    def _measured(self, name: str, picture: Pixels, truth: Pixels, pair: Pair) -> dict[str, float]:
        try:
            values = {key: compare(picture, truth) for key, compare in self._compare.items()}
        except (ValueError, RuntimeError, MemoryError) as exc:
            raise DataError(f"it cannot be measured: {_line(exc)}") from exc
        if self._wanted.sequences and sequence(pair) not in self._apart:
            flicker = self._flicker.setdefault(name, Flicker())
            found = flicker(picture, truth, sequence(pair), pair.frame)
            if found is not None:
                values[FLICKER.name] = found
        return values

    @property
    def motion(self) -> float | None:
        """How much the truth changes between frames that flicker was measured on, in levels."""
        changes = next((f.motion for f in self._flicker.values() if f.motion), [])
        return round(sum(changes) / len(changes), 3) if changes else None

    def close(self) -> None:
        """Close all upscalers."""
        self._open.close()


def _check_device(name: str) -> None:
    """Raise EvaluationError if PyTorch has no such device here."""
    if name == "cpu":
        return
    try:
        import torch

        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError, ModuleNotFoundError) as exc:
        raise EvaluationError(f"--device {name} cannot be used here: {_line(exc)}") from exc


def run(
    pairs: Sequence[Pair],
    problems: Sequence[Problem],
    wanted: Wanted,
    facts: Mapping[str, Any],
    data: Path | None = None,
) -> Result:
    """Evaluate.

    Args:
        pairs: what to evaluate on, sorted so that frames of a sequence follow each other.
        problems: what was left out already.
        wanted: models, metrics and so on.
        facts: more for the JSON: the command, the data.
        data: the data folder, if the pairs are of one.
    Raises:
        EvaluationError: a metric cannot be used, or no pair could be evaluated.
    """
    taken = chosen(pairs, wanted.limit, wanted.sequences)
    without = apart_in_time(taken, data) if wanted.sequences else frozenset()
    evaluation = Evaluation(wanted, without)
    said = [*map(str, problems), *(f"left out {line}" for line in evaluation.left_out)]
    said += [
        f"no flicker of {name}: its frames do not follow each other in time; those of "
        "overlay data collect --dense do"
        for name in sorted(without)
    ]
    try:
        evaluation.open_upscalers()
        for pair in _with_progress(taken):
            try:
                evaluation.take(pair)
            except DataError as exc:
                said.append(f"{pair.name}: {exc}")
    finally:
        evaluation.close()
    if not evaluation.clusters:
        raise EvaluationError(
            f"no pair could be evaluated: {said[-1]}" if said else "there are no pairs"
        )
    described = {**machine.describe(), "load_after": machine.load_average()}
    definitions = {name: _definition(name, wanted) for name in evaluation.metrics}
    return Result(
        facts={
            "machine": described,
            **facts,
            "lr_size": evaluation.sizes[0],
            "hr_size": evaluation.sizes[1],
            "crop": evaluation.crop,
            "motion": evaluation.motion,
            "srgd_compatible": wanted.srgd_compatible,
            "seed": wanted.seed,
            "metrics": evaluation.metrics,
            "definitions": definitions,
        },
        scale=evaluation.scale or 0,
        metrics=evaluation.metrics,
        rows=list(evaluation.rows.values()),
        clusters=evaluation.clusters,
        problems=said,
        against=tuple(dict.fromkeys((*ALWAYS, *wanted.against))),
        seed=wanted.seed,
    )


def _definition(name: str, wanted: Wanted) -> str:
    metric = results.metric(name)
    return metric.srgd if wanted.srgd_compatible and metric.srgd else metric.doc


def _with_progress(pairs: Sequence[Pair]) -> Iterator[Pair]:
    """Go through pairs with a bar on the terminal, if there is one."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        return iter(pairs)
    return iter(tqdm(pairs, unit=" frames", disable=None))


def _line(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return (lines[0] if lines else type(exc).__name__)[:300]


# --- the command ---------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Make the parser."""
    made = argparse.ArgumentParser(
        prog="python -m evaluation.evaluate",
        description="Measure the quality of upscalers on pairs of frames. "
        f"{', '.join(ALWAYS)} always come along.",
    )
    add = made.add_argument
    add("--lr", type=Path, metavar="DIR", help="LR frames; pairs have equal file names")
    add("--hr", type=Path, metavar="DIR", help="HR frames, a whole multiple as large")
    add("--data", type=Path, metavar="ROOT", help="instead of --lr and --hr: the data folder")
    add("--kind", choices=dataset.KINDS, default="GameEngineData")
    add("--split", choices=dataset.SPLITS, default="val")
    add("--low", type=int, choices=dataset.HEIGHTS, default=270)
    add("--high", type=int, choices=dataset.HEIGHTS, default=1080)
    add("--games", type=_names, metavar="A,B", help="only these games of --data")
    add("--models", type=_names, default=(), metavar="A,B", help="names of the zoo, shaders, files")
    known = ", ".join(METRICS)
    add("--metrics", type=_names, metavar="A,B", help=f"of {known}")
    add("--against", type=_names, default=(), metavar="A,B",
        help="compare all with these rows too, besides those that always come along")  # fmt: skip
    add("--crop", type=_count, metavar="N", help="HR pixels cut off each side (default: the scale)")
    add("--scale", type=int, choices=range(1, 9), metavar="N", help="refuse other pairs")
    add("--limit", type=_positive, metavar="N", help="so many frames at most, evenly spread")
    add("--sequences", action="store_true", help="also measure flicker of consecutive frames")
    add("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    add("--device", default="cpu", help="PyTorch's, for nets and LPIPS (default: cpu)")
    add("--srgd-compatible", action="store_true",
        help="measure as the seed project did, mistakes included; crop 0")  # fmt: skip
    add("--brisque-svm", type=Path, metavar="FILE", help="for --srgd-compatible, LIBSVM's format")
    add("--json", type=Path, metavar="FILE", help="write all of it")
    add("--csv", type=Path, metavar="FILE", help="write one line a frame and model")
    add("--markdown", type=Path, metavar="FILE", help="write the table")
    add("--mlflow", action="store_true", help="log the means, and the JSON, to MLflow")
    return made


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is less than 0")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def pairs_of(options: argparse.Namespace) -> tuple[list[Pair], list[Problem], dict[str, Any]]:
    """Find the pairs that options name, what is wrong with others, and what to say of them.

    Raises:
        EvaluationError: neither two folders nor a data folder were named.
        DataError: a folder cannot be read.
    """
    if options.data is not None and options.lr is None and options.hr is None:
        pairs, problems = dataset.find_pairs(
            options.data, options.kind, options.split,
            low=options.low, high=options.high, games=options.games,
        )  # fmt: skip
        folder = options.data / options.kind
        lr, hr = (folder / f"{height}p" / options.split for height in (options.low, options.high))
    elif options.data is None and options.lr is not None and options.hr is not None:
        lr, hr = options.lr, options.hr
        pairs, problems = dataset.split_folders(lr, hr)
    else:
        raise EvaluationError("name either --lr and --hr, or --data")
    return pairs, problems, {"lr": str(lr), "hr": str(hr), "pairs": len(pairs)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return _evaluate(options, words)
    except (DataError, EngineError, OverlayError) as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 2
    except KeyboardInterrupt:
        return 130


def _evaluate(options: argparse.Namespace, words: Sequence[str]) -> int:
    for path in (options.json, options.csv, options.markdown):
        if path is not None and not path.resolve().parent.is_dir():
            raise EvaluationError(f"cannot write {path}: there is no such folder")
    if options.mlflow and find_spec("mlflow") is None:
        raise EvaluationError(f"--mlflow needs mlflow: {INSTALL_TRAIN}")
    if options.brisque_svm is not None and not options.srgd_compatible:
        raise EvaluationError("--brisque-svm is for --srgd-compatible; give that too")
    names = Wanted.__dataclass_fields__
    wanted = Wanted(**{name: getattr(options, name) for name in names})
    pairs, problems, facts = pairs_of(options)
    command = f"python -m evaluation.evaluate {shlex.join(words)}"
    facts = {"command": command, **facts}
    found = run(pairs, problems, wanted, facts, options.data).to_json()
    _write(found, options)
    sys.stdout.write(results.markdown_table(found))
    for problem in found["problems"]:
        sys.stderr.write(f"warning: {problem}\n")
    if options.mlflow:
        _log_to_mlflow(found)
    complete = all(row["status"] != "failed" for row in found["results"])
    return 0 if complete and not found["problems"] else 1


def _write(found: Mapping[str, Any], options: argparse.Namespace) -> None:
    if options.json is not None:
        write_atomically(options.json, json.dumps(found, indent=1).encode())
    if options.csv is not None:
        write_atomically(options.csv, results.csv_table(found).encode())
    if options.markdown is not None:
        write_atomically(options.markdown, results.markdown_table(found).encode())


def _log_to_mlflow(found: Mapping[str, Any]) -> None:
    """Log one run a model: means as metrics, definitions and data as parameters.

    Raises:
        EvaluationError: its store cannot be used.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    try:
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri("sqlite:///mlflow.db")
        mlflow.set_experiment("evaluation")
        for row in found["results"]:
            if row["status"] != "ok":
                continue
            with mlflow.start_run(run_name=row["model"]):
                mlflow.log_params(
                    {key: str(found[key])[:500] for key in ("lr", "hr", "scale", "crop", "frames")}
                )
                mlflow.log_metrics({name: row[name] for name in found["metrics"] if name in row})
                mlflow.log_dict(row, "result.json")
    except Exception as exc:  # MLflow raises anything; the results are written already
        raise EvaluationError(f"MLflow failed: {_line(exc)}; the results are written") from exc


if __name__ == "__main__":
    sys.exit(main())
