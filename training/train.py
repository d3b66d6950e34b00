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
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training import checkpoints, config, losses, nets
from training.config import Config, ConfigError, Stage
from training.discriminator import Discriminator
from training.errors import DataError
from training.loader import Batch, Colour, Crops, Episode, ahead, open_frames
from training.quantise import quantise
from training.tracking import Curve, Tracker
from training.validate import Score, Validation, write_png

log = logging.getLogger(__name__)

#: Repetitions of a measurement, of which the median is taken.
_TURNS = 5
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingFailed(DataError):
    """The training went wrong; says at which step, and what to change."""


@dataclass(frozen=True, slots=True)
class World:
    """The processes that train together; alone: rank 0 of 1."""

    rank: int = 0
    size: int = 1
    local: int = 0

    def part(self, batch: int) -> slice:
        """Tell which crops of a batch are this process's."""
        own = batch // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def any(self, value: int) -> int:
        """Give the largest value of all processes."""
        if self.size == 1:
            return value
        kind = "cuda" if dist.get_backend() == "nccl" else "cpu"
        shared = torch.tensor(value, device=kind)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared)


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun started; alone if it did not."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", size))
    if gpus:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if gpus else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), local)
    finally:
        dist.destroy_process_group()


def device_of(settings: config.Train, world: World) -> torch.device:
    """Choose the device.

    Raises:
        ConfigError: a GPU is wanted, and there is none.
    """
    there = torch.cuda.is_available() and world.local < torch.cuda.device_count()
    if settings.device == "cuda" and not there:
        raise ConfigError("train.device is cuda, and PyTorch sees no GPU for this process")
    if settings.device == "cpu" or not there:
        return torch.device("cpu")
    return torch.device("cuda", world.local)


def rate_at(step: int, length: int, stage: Stage) -> float:
    """Learning rate at a step of a stage: up over `warm_up`, then as `schedule` says."""
    warm = min(1.0, (step + 1) / stage.warm_up) if stage.warm_up else 1.0
    factor = 1.0
    if stage.schedule == "cosine":
        factor = max(0.5 * (1 + math.cos(math.pi * step / length)), stage.floor)
    elif stage.schedule == "multistep":
        factor = 0.5 ** sum(step >= milestone * length for milestone in stage.milestones)
    return stage.rate * warm * factor


# --- one step ------------------------------------------------------------------------------------


class Trainer:
    """A net, its average, its optimiser and, for the GAN term, a discriminator.

    Args:
        settings: the configuration.
        world: the processes that train together.

    Attributes:
        average: the folded weights, averaged: the result.
        stage, done: the stage in progress and its steps that are done.
        sums: of the loss and its terms since they were last taken, and their number.
    """

    def __init__(self, settings: Config, world: World) -> None:
        self.config, self.world = settings, world
        self.device = device_of(settings.train, world)
        self.average: nets.Weights = {}
        self.sums: dict[str, Tensor] = {}
        self.critic: nn.Module | None = None
        loss, self.teacher = settings.loss, None
        if settings.teacher.model:
            self.teacher = nets.open_teacher(settings.teacher.model, settings.net.scale)
            self.teacher.to(self.device)
        self._terms = {name: getattr(loss, name) for name in losses.TERMS if getattr(loss, name)}
        cuda = self.device.type == "cuda"
        self._dtype = _DTYPES[settings.train.precision] if cuda else torch.float32
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self._dtype == torch.float16)
        self.begin(0)
        if loss.gan:
            self._open_critic()

    @property
    def colour(self) -> Colour:
        """Colour of the crops: RGB for luma nets, too, if there is a teacher."""
        return "rgb" if self.teacher is not None else self.student.colour

    def begin(self, stage: int) -> None:
        """Begin a stage, from the average so far."""
        settings = self.config
        self.stage, self.done = stage, 0
        self.student = nets.build(settings.net, settings.train.seed + stage)
        net = self.student.net
        if self.average:
            nets.restart(net, {name: tensor.cpu() for name, tensor in self.average.items()})
        if settings.stages[stage].quantise:
            quantise(net)
        layout = torch.channels_last if settings.train.channels_last else torch.contiguous_format
        net.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.average = nets.folded(net)
        self.adam = torch.optim.Adam(net.parameters(), lr=0.0, betas=(0.9, 0.99), fused=True)
        self._net = self._parallel(net)

    def _open_critic(self) -> None:
        channels = 1 if self.student.colour == "luma" else 3
        self.critic = Discriminator(channels, self.config.gan.features).to(self.device)
        rate = self.config.gan.rate
        self._critic_adam = torch.optim.Adam(
            self.critic.parameters(), lr=rate, betas=(0.9, 0.99), fused=True
        )
        self._critic = self._parallel(self.critic)

    def _parallel(self, net: nn.Module) -> nn.Module:
        """Let the gradients of a net be averaged over all processes."""
        return DistributedDataParallel(net) if self.world.size > 1 else net

    @property
    def step_number(self) -> int:
        """Steps done, of all stages."""
        return sum(self.config.lengths()[: self.stage]) + self.done

    def step(self, batch: Batch) -> None:
        """Train on one batch."""
        stage, low, high, truth = self.config.stages[self.stage], *self._pictures(batch)
        for group in self.adam.param_groups:
            group["lr"] = rate_at(self.done, self.config.lengths()[self.stage], stage)
        with torch.autocast(
            self.device.type, self._dtype, enabled=self._dtype is not torch.float32
        ):
            output = self._net(low).float()
        weighted = self._weighted(output, high, truth)
        total = torch.stack(list(weighted.values())).sum()
        self.adam.zero_grad(set_to_none=True)
        self._scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        if self.config.train.clip:
            self._scaler.unscale_(self.adam)
            nn.utils.clip_grad_norm_(self.student.net.parameters(), self.config.train.clip)
        self._scaler.step(self.adam)
        if self.critic is not None and self.step_number >= self.config.gan.start:
            weighted["critic"] = self._train_critic(output.detach(), high)
        self._scaler.update()
        self._follow()
        self._add(total, weighted)
        self.done += 1

    def _pictures(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Bring a batch to the device: LR, HR, and the teacher's picture, [N, C, H, W], 0..1."""
        low, high = (_tensor(pixels, self.device) for pixels in (batch.low, batch.high))
        if self.teacher is None:
            return low, high, None
        with torch.no_grad():
            edge = self.student.margin * self.config.net.scale
            taught = self.teacher(low).clamp(0, 1)
            taught = taught[..., edge : taught.shape[2] - edge, edge : taught.shape[3] - edge]
        if self.student.colour == "luma":
            low, high, taught = (nets.luma_of(picture) for picture in (low, high, taught))
        return low, high, taught

    def _weighted(self, output: Tensor, high: Tensor, taught: Tensor | None) -> dict[str, Tensor]:
        """Give the terms of the loss, each times its weight."""
        loss = self.config.loss
        terms = {
            name: weight * losses.TERMS[name](output, high) for name, weight in self._terms.items()
        }
        if loss.perceptual:
            terms["perceptual"] = loss.perceptual * losses.perceptual(output, high)
        if taught is not None:
            terms["teacher"] = loss.teacher * losses.charbonnier(output, taught)
        if self.critic is not None and self.step_number >= self.config.gan.start:
            self.critic.requires_grad_(False)
            with torch.no_grad():
                real = self.critic(high)
            terms["gan"] = loss.gan * losses.fooled(self.config.gan.kind, self.critic(output), real)
            self.critic.requires_grad_(True)
        return terms

    def _train_critic(self, fake: Tensor, real: Tensor) -> Tensor:
        """Train the discriminator on one batch."""
        logits = self._critic(torch.cat((fake, real)))
        loss = losses.told_apart(self.config.gan.kind, *logits.chunk(2))
        self._critic_adam.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._critic_adam)
        return loss.detach()

    def _follow(self) -> None:
        """Take the weights of this step into the average."""
        keep = min(self.config.train.average, self.done / (self.done + 10))
        now = nets.folded(self.student.net)
        torch._foreach_lerp_(list(self.average.values()), [now[n] for n in self.average], 1 - keep)

    def _add(self, total: Tensor, weighted: Mapping[str, Tensor]) -> None:
        one = torch.ones((), dtype=torch.float64, device=self.device)
        for name, value in {"steps": one, "loss": total, **weighted}.items():
            before = self.sums.get(name, torch.zeros_like(one))
            self.sums[name] = before + value.detach().double()

    def take_means(self) -> dict[str, float]:
        """Give the means of the loss and its terms since the last call.

        Raises:
            TrainingFailed: the loss is not a number any more.
        """
        steps = float(self.sums.pop("steps", torch.ones(())))
        means = {name: float(value) / steps for name, value in self.sums.items()}
        self.sums = {}
        if not math.isfinite(means.get("loss", 0.0)):
            raise TrainingFailed(
                f"the loss is {means['loss']} at step {self.step_number}; lower stages.rate, or "
                "set train.clip, and begin again"
            )
        return means

    def state(self) -> dict[str, Any]:
        """Give all that `load_state` needs, as tensors, numbers and texts."""
        state = {
            "stage": self.stage,
            "done": self.done,
            "net": self.student.net.state_dict(),
            "average": self.average,
            "adam": self.adam.state_dict(),
            "scaler": self._scaler.state_dict(),
            "sums": self.sums,
            "random": torch.get_rng_state(),
        }
        if self.critic is not None:
            state["critic"] = self.critic.state_dict()
            state["critic_adam"] = self._critic_adam.state_dict()
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.average = {name: tensor.cpu() for name, tensor in state["average"].items()}
        self.begin(state["stage"])
        self.done = state["done"]
        self.student.net.load_state_dict(state["net"])
        self.average = {name: t.to(self.device) for name, t in state["average"].items()}
        self.adam.load_state_dict(state["adam"])
        self._scaler.load_state_dict(state["scaler"])
        self.sums = {name: tensor.to(self.device) for name, tensor in state["sums"].items()}
        torch.set_rng_state(state["random"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
            self._critic_adam.load_state_dict(state["critic_adam"])


def _tensor(pixels: Any, device: torch.device) -> Tensor:
    """uint8 (N, H, W, C) to float [N, C, H, W], 0..1, in channels-last memory."""
    tensor = torch.from_numpy(pixels)
    if device.type == "cuda":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.permute(0, 3, 1, 2).float().div_(255)


# --- the run -------------------------------------------------------------------------------------


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
        with joined() as world:
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
