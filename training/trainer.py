"""A net in training: one step, its average, and all that is needed to go on from there.

The processes that train together are here, too: each takes its part of every batch, and their
gradients are averaged.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training import config, losses, nets
from training.config import Config, ConfigError, Stage
from training.discriminator import Discriminator
from training.errors import DataError
from training.loader import Batch, Colour
from training.quantise import quantise

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
def joined(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started, for `train.device`; alone if it did not."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    gpus = device != "cpu" and torch.cuda.device_count() >= local_size
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
        low, high = (tensor_of(pixels, self.device) for pixels in (batch.low, batch.high))
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


def tensor_of(pixels: Any, device: torch.device) -> Tensor:
    """uint8 (N, H, W, C) to float [N, C, H, W], 0..1, in channels-last memory."""
    tensor = torch.from_numpy(pixels)
    if device.type == "cuda":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.permute(0, 3, 1, 2).float().div_(255)
