"""Train a net: `python -m training.train training/configs/default-x4.toml`.

One loop: aligned crops in, a weighted sum of loss terms, Adam, and an average of the folded
weights over the last steps as the result. It runs in stages, each of which begins from the
average of the one before. Everything random comes from the seed and the number of the step, so a
run that was killed and is resumed gives, on a CPU, the same bits as one that was not.

    OUT/<name>.safetensors    the weights to use: `engines` opens them
    OUT/checkpoint.pt         all that --resume needs
    OUT/curve.csv             loss, rate, PSNR by step
    OUT/samples.png           validation crops: bicubic, the net, the truth

Several processes, a GPU each: `torchrun --nproc-per-node 2 -m training.train CONFIG`.
"""

# ruff: noqa: T201 - a command-line program

from __future__ import annotations

import argparse
import logging
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from training import checkpoints, config, nets
from training.config import Config, ConfigError
from training.errors import DataError
from training.loader import Batch, Crops, Episode, ahead, open_frames
from training.tracking import Curve, Tracker
from training.trainer import Trainer, World, joined, rate_at
from training.validate import Score, Validation, write_png

log = logging.getLogger(__name__)

#: Repetitions of a measurement, of which the median is taken.
_TURNS = 5


class Interrupted(Exception):
    """A signal asked the run to stop; the checkpoint is written."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Remembers SIGINT and SIGTERM, so that a step is finished first."""

    number = 0

    def __enter__(self) -> Signals:
        kinds = (signal.SIGINT, signal.SIGTERM)
        self._before = [(kind, signal.signal(kind, self._note)) for kind in kinds]
        return self

    def __exit__(self, *error: object) -> None:
        for kind, handler in self._before:
            signal.signal(kind, handler)

    def _note(self, number: int, frame: object) -> None:
        self.number = number


class Run:
    """A training run in a folder.

    Args:
        settings: the configuration.
        out: folder of the run.
        world: the processes that train together.
        resume: go on from the checkpoint in `out`, if there is one.
        track: use MLflow if it is installed.
    Raises:
        DataError: the configuration, the data or the checkpoint cannot be used.
    """

    def __init__(
        self, settings: Config, out: Path, world: World, *, resume: bool, track: bool
    ) -> None:
        self.config, self.world = settings, world
        self.first = world.rank == 0
        self._checkpoint = out / "checkpoint.pt"
        self.result = out / f"{settings.name}.safetensors"
        self._samples = out / "samples.png"
        if self._checkpoint.exists() and not resume:
            raise ConfigError(f"{out} holds a run: --resume goes on with it; or give another --out")
        self.trainer = Trainer(settings, world)
        if self._checkpoint.exists():
            checkpoints.restore(self._checkpoint, settings, self.trainer.load_state)
            say(self.first, f"resumed at step {self.trainer.step_number}")
        self.episodes = frames_of(settings, self.trainer, world)
        if self.first:
            out.mkdir(parents=True, exist_ok=True)
            self._validation = Validation(settings, self.trainer.student.colour)
            columns = ["step", "stage", "rate", "loss", *vars_of(settings.loss)]
            columns += ["critic", "psnr", "bicubic"]
            self._curve = Curve(out / "curve.csv", columns, self.trainer.step_number)
            self._tracker = Tracker(settings, out, track)

    def go(self) -> None:
        """Train to the end.

        Raises:
            Interrupted: a signal came; the run can be resumed.
            TrainingFailed: the loss is not a number any more.
        """
        status = "FAILED"
        try:
            with Signals() as signals:
                for stage in range(self.trainer.stage, len(self.config.stages)):
                    if stage != self.trainer.stage:
                        self.trainer.begin(stage)
                    self._stage(signals)
            self._finish()
            status = "FINISHED"
        except Interrupted:
            status = "KILLED"
            raise
        finally:
            if self.first:
                self._tracker.end(status)
                self._curve.close()

    def _stage(self, signals: Signals) -> None:
        """Train the rest of the stage in progress."""
        trainer, settings = self.trainer, self.config.train
        length = self.config.lengths()[trainer.stage]
        crops = crops_of(self.config, trainer, self.episodes)
        cut = partial(crops.batch, size=settings.batch, part=self.world.part(settings.batch))
        first, end = trainer.step_number, trainer.step_number + length - trainer.done
        say(self.first, f"stage {trainer.stage}: steps {first} to {end}, {len(crops)} frames")
        self._clock = time.perf_counter(), first
        for batch in ahead(cut, first, end, self.config.data.workers):
            trainer.step(batch)
            step = trainer.step_number
            score = self._score(step) if due(step, self.config.validate.every) else None
            ended = trainer.done == length
            if step % settings.log == 0 or score or ended:
                self._log(score)
            number = signals.number
            if self.world.size > 1:  # all stop at the same step
                number = self.world.any(number) if step % 10 == 0 or ended else 0
            if step % settings.checkpoint == 0 or ended or number:
                self._save()
            if number:
                raise Interrupted(number)

    def _score(self, step: int) -> Score | None:
        if not self.first or not len(self._validation):
            return None
        net = nets.deployed(self.config.net, self.trainer.average).to(self.trainer.device)
        write_png(self._samples, self._validation.sample(net))
        return self._validation.score(net)

    def _log(self, score: Score | None) -> None:
        """Print and keep the means since the last time."""
        trainer, stage = self.trainer, self.config.stages[self.trainer.stage]
        means = trainer.take_means()
        if not self.first:
            return
        now, step = time.perf_counter(), trainer.step_number
        speed = (step - self._clock[1]) / max(now - self._clock[0], 1e-9)
        self._clock = now, step
        rate = rate_at(trainer.done - 1, self.config.lengths()[trainer.stage], stage)
        row = {"step": step, "stage": trainer.stage, "rate": rate, **means}
        text = f"{step:7}  loss {means.get('loss', math.nan):.6f}  {speed:.1f} steps/s"
        if score:
            row |= {"psnr": score.psnr, "bicubic": score.bicubic}
            text += f"  {score}"
        self._curve.add(row)
        self._tracker.row(row)
        say(True, text)

    def _save(self) -> None:
        """Write checkpoint and weights."""
        if self.first:
            checkpoints.save(self._checkpoint, self.config, self.trainer.state())
            nets.save(self.result, self.config.net, self.trainer.average)

    def _finish(self) -> None:
        """Validate the result and give all to the tracker."""
        if not self.first:
            return
        score = self._score(self.trainer.step_number)
        nets.save(self.result, self.config.net, self.trainer.average)
        say(True, f"{self.result}{f': {score}' if score else ''}")
        self._tracker.file(self.result)
        if score:
            self._tracker.file(self._samples)
        self._tracker.model(self.result, self.config.net.architecture)


def due(step: int, every: int) -> bool:
    """Tell whether something is to be done at this step; never, if `every` is 0."""
    return every > 0 and step % every == 0


def vars_of(loss: config.Loss) -> list[str]:
    """Name the terms that count."""
    return [name for name in loss.__slots__ if getattr(loss, name)]


def say(wanted: bool, line: str) -> None:
    """Print a line; in one process only."""
    if wanted:
        print(line, flush=True)


def frames_of(settings: Config, trainer: Trainer, world: World) -> list[Episode]:
    """Open the training frames; the first process decodes them, the others wait for it."""
    if settings.train.batch % world.size:
        raise ConfigError(
            f"train.batch = {settings.train.batch} cannot be shared by {world.size} processes"
        )
    if world.size == 1:
        return open_frames(settings, trainer.colour)
    if world.rank == 0:
        episodes = open_frames(settings, trainer.colour)
        dist.barrier()
        return episodes
    dist.barrier()
    return open_frames(settings, trainer.colour)


def crops_of(settings: Config, trainer: Trainer, episodes: Sequence[Episode]) -> Crops:
    """Make the source of crops of the stage in progress."""
    stage, data = settings.stages[trainer.stage], settings.data
    shares = stage.shares or tuple(source.share for source in data.sources)
    margin = trainer.student.margin
    return Crops(episodes, settings.net.scale, data.crop, margin, settings.train.seed, shares)


def profile(settings: Config, world: World, steps: int) -> None:
    """Print how many steps a second there are with one batch for ever, and with the loader."""
    trainer = Trainer(settings, world)
    crops = crops_of(settings, trainer, frames_of(settings, trainer, world))
    cut = partial(crops.batch, size=settings.train.batch, part=world.part(settings.train.batch))
    same = cut(0)

    def rate(batches: Iterator[Batch], train: bool = True) -> float:
        start = _now(trainer.device)
        for batch in batches:
            if train:
                trainer.done = 0
                trainer.step(batch)
        return steps / (_now(trainer.device) - start)

    workers = settings.data.workers
    pure, loop, alone = [], [], []
    for turn in range(_TURNS + 1):  # in turns, as other programs may disturb
        first, end = turn * steps, (turn + 1) * steps
        pure.append(rate(same for _ in range(steps)))
        loop.append(rate(ahead(cut, first, end, workers)))
        alone.append(rate(ahead(cut, first, end, workers), train=False))
    one, two, three = (median(rates[1:]) for rates in (pure, loop, alone))  # the first: warm-up
    print(
        f"{trainer.device}, {_TURNS} times {steps} steps: {one:.1f} steps/s on one batch, "
        f"{two:.1f} with {workers} loader threads ({two / one:.0%}); the loader alone {three:.1f}"
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description="Train a net.")
    parser.add_argument("config", type=Path, help="TOML, see training/configs")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="train.steps=200, say"
    )
    parser.add_argument("--out", type=Path, help="default: data/runs/<name>")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in OUT")
    parser.add_argument("--no-mlflow", action="store_true", help="keep the CSV only")
    parser.add_argument("--profile", type=int, metavar="N", help="time N steps, train nothing")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("training").setLevel(logging.INFO)
    try:
        settings = config.read(options.config, options.set)
        if settings.train.threads:
            torch.set_num_threads(settings.train.threads)
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        with joined(settings.train.device) as world:
            if options.profile:
                profile(settings, world, options.profile)
                return 0
            out = options.out or Path("data/runs") / settings.name
            Run(settings, out, world, resume=options.resume, track=not options.no_mlflow).go()
    except DataError as exc:
        print(f"train: {exc}", file=sys.stderr)
        return exc.exit_code
    except Interrupted as exc:
        print("stopped; --resume goes on", file=sys.stderr)
        return 128 + exc.number
    except KeyboardInterrupt:  # before the first step, or after the last
        print("stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except OSError as exc:
        print(f"train: {exc}", file=sys.stderr)
        return DataError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
