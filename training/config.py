"""What a training run depends on: a TOML file, read into frozen dataclasses.

    name = "default-x4"            # of the result: <out>/<name>.safetensors
    [net]                          # what is trained, and from what
    [data]                         # root, crops; [[data.sources]] are mixed by share
    [train]                        # steps, batch, precision, checkpoints
    [[stages]]                     # one after the other; each takes a part of the steps
    [loss]                         # weights of the terms; 0 leaves a term out
    [gan] [teacher] [validate]

An unknown key, a wrong type or an impossible value raises `ConfigError`, which names the key.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from training.errors import DataError

#: (LR height, HR height) of the pairs of each scale.
HEIGHTS_OF = {2: ((270, 540), (540, 1080)), 3: ((360, 1080),), 4: ((270, 1080),)}


class ConfigError(DataError):
    """A configuration that cannot be used; names the key."""


def limits(default: float | None, least: float, most: float = math.inf) -> Any:
    """Declare a number with a default (None: it must be given) and its limits, both allowed."""
    metadata = {"limits": (least, most)}
    if default is None:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Net:
    """The net.

    Attributes:
        architecture: of `engines.archs`; "luma" is the form for CPUs.
        scale: output size / input size.
        features: channels between layers.
        depth: 3x3 convolutions ("luma"); those between the first and the last ("compact");
            blocks ("rrdb"). "span" has a fixed depth.
        growth: of the dense blocks of "rrdb".
        expand: channels of the linear blocks that each 3x3 kernel is trained through and that
            are folded for use (SESR, Bhardwaj et al. 2022); 0 trains plain kernels.
        edges: add Sobel and Laplacian branches to them (ECBSR, Zhang et al. 2021).
        start: a name of the zoo or a file to begin with; "": random weights. A Compact net of
            another scale begins as that net's picture, resized by area.
    """

    architecture: Literal["luma", "compact", "span", "rrdb"]
    scale: int = limits(None, 2, 4)
    features: int = limits(16, 1, 256)
    depth: int = limits(4, 1, 64)
    growth: int = limits(32, 1, 256)
    expand: int = limits(0, 0, 1024)
    edges: bool = False
    start: str = ""

    def check(self) -> None:
        """Refuse what cannot be."""
        if self.architecture == "luma" and self.depth < 2:
            raise ConfigError("net.depth must be at least 2 for luma")
        if self.architecture == "luma" and not self.expand:
            raise ConfigError("net.expand must be at least 1 for luma, which is always trained so")
        if self.edges and (self.architecture == "luma" or not self.expand):
            raise ConfigError("net.edges needs net.expand, and another architecture than luma")
        if self.architecture == "rrdb" and self.scale == 3:
            raise ConfigError("net.scale cannot be 3 for rrdb; choose 2 or 4")


@dataclass(frozen=True, slots=True)
class Source:
    """Frames to crop from.

    Attributes:
        kind: GameEngineData or DownscaleData.
        games: only these; empty: all.
        heights: (LR, HR) pairs; empty: all of the scale.
        share: how often a crop is from here, relative to the other shares; 0 for all sources:
            as often as each has frames.
    """

    kind: Literal["GameEngineData", "DownscaleData"] = "GameEngineData"
    games: tuple[str, ...] = ()
    heights: tuple[tuple[int, ...], ...] = ()
    share: float = limits(0.0, 0)

    def check(self) -> None:
        """Refuse what cannot be."""
        if any(len(pair) != 2 for pair in self.heights):
            raise ConfigError("data.sources.heights must be pairs, [[270, 1080]] say")


@dataclass(frozen=True, slots=True)
class Data:
    """Where crops come from.

    Attributes:
        root: folder of GameEngineData and DownscaleData.
        cache: folder of the decoded frames; "": `<root>/cache`.
        crop: side of an LR crop in pixels.
        sources: mixed by share.
        workers: threads that cut crops while the net is trained.
    """

    root: str = "data"
    cache: str = ""
    crop: int = limits(48, 8, 512)
    sources: tuple[Source, ...] = (Source(),)
    workers: int = limits(1, 0, 64)

    def check(self) -> None:
        """Refuse what cannot be."""
        if not self.sources:
            raise ConfigError("data.sources must not be empty")
        shares = [source.share for source in self.sources]
        if any(shares) and not all(shares):
            raise ConfigError("data.sources.share must be given for all sources, or for none")


@dataclass(frozen=True, slots=True)
class Train:
    """The run.

    Attributes:
        steps: of all stages together.
        batch: crops a step, of all processes together.
        seed: of weights and crops.
        threads: of PyTorch on the CPU; 0: its own choice. Small nets seldom gain from several.
        device: "auto": a GPU if there is one.
        precision: of the GPU's forward pass; the CPU computes in fp32.
        channels_last: memory layout of pictures.
        clip: largest norm of all gradients together; 0: no limit.
        average: decay of the average of the weights that is the result (EMA).
        checkpoint, log: every so many steps.
    """

    steps: int = limits(None, 1)
    batch: int = limits(8, 1, 4096)
    seed: int = limits(1, 0, 2**32 - 1)
    threads: int = limits(1, 0, 256)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = True
    clip: float = limits(0.0, 0)
    average: float = limits(0.999, 0, 0.99999999)
    checkpoint: int = limits(1000, 1)
    log: int = limits(100, 1)


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of the schedule; begins from the averaged weights of the one before.

    Attributes:
        part: of the steps, relative to the other stages' parts.
        rate: Adam's learning rate at its beginning.
        schedule: "cosine" falls to `floor` * rate; "multistep" halves at `milestones`.
        warm_up: steps at its beginning over which the rate rises.
        floor: smallest rate / rate.
        milestones: parts of the stage, 0..1.
        shares: of the sources, instead of theirs.
        quantise: train with int8 rounding in weights and activations (the finish for INT8).
    """

    part: float = limits(1.0, 0.001)
    rate: float = limits(1e-3, 1e-9, 1)
    schedule: Literal["cosine", "multistep", "constant"] = "cosine"
    warm_up: int = limits(200, 0)
    floor: float = limits(0.01, 0, 1)
    milestones: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    quantise: bool = False

    def check(self) -> None:
        """Refuse what cannot be."""
        if any(not 0 < milestone < 1 for milestone in self.milestones):
            raise ConfigError("stages.milestones must lie between 0 and 1")
        if any(share < 0 for share in self.shares) or (self.shares and not sum(self.shares)):
            raise ConfigError("stages.shares must not be negative, nor all 0")


@dataclass(frozen=True, slots=True)
class Loss:
    """Weights of the terms, see `training.losses`; 0 leaves a term out."""

    mse: float = limits(0.0, 0)
    l1: float = limits(0.0, 0)
    charbonnier: float = limits(0.0, 0)
    gradient: float = limits(0.0, 0)
    frequency: float = limits(0.0, 0)
    ssim: float = limits(0.0, 0)
    perceptual: float = limits(0.0, 0)
    teacher: float = limits(0.0, 0)
    gan: float = limits(0.0, 0)

    def check(self) -> None:
        """Refuse what cannot be."""
        if not any(dataclasses.astuple(self)):
            raise ConfigError("loss has no term; give one of its weights, mse = 1.0 say")


@dataclass(frozen=True, slots=True)
class Gan:
    """The discriminator.

    Attributes:
        features: of its first layer.
        kind: "vanilla" (Goodfellow et al. 2014) or "relativistic" (Jolicoeur-Martineau 2018).
        rate: Adam's learning rate.
        start: step at which it begins to count.
    """

    features: int = limits(64, 1, 256)
    kind: Literal["vanilla", "relativistic"] = "vanilla"
    rate: float = limits(1e-4, 1e-9, 1)
    start: int = limits(0, 0)


@dataclass(frozen=True, slots=True)
class Teacher:
    """A bigger net to learn from: a name of the zoo or a file."""

    model: str = ""


@dataclass(frozen=True, slots=True)
class Validate:
    """Fixed crops of the validation split.

    Attributes:
        every: so many steps; 0: only at the end.
        crops: how many, spread over all sequences.
        side: of a crop, in LR pixels; its outermost 8 do not count.
        kind: GameEngineData or DownscaleData.
        split: never "test".
    """

    every: int = limits(1000, 0)
    crops: int = limits(32, 0, 4096)
    side: int = limits(96, 24, 1024)
    kind: Literal["GameEngineData", "DownscaleData"] = "GameEngineData"
    split: Literal["train", "val"] = "val"


@dataclass(frozen=True, slots=True)
class Config:
    """All of it."""

    name: str
    net: Net
    train: Train
    loss: Loss
    data: Data = Data()
    stages: tuple[Stage, ...] = (Stage(),)
    gan: Gan = Gan()
    teacher: Teacher = Teacher()
    validate: Validate = Validate()

    def check(self) -> None:
        """Refuse what does not fit together."""
        if Path(self.name).name != self.name or self.name in ("", "..") or "\0" in self.name:
            raise ConfigError(f"name must be a plain file name, not {self.name!r}")
        if not self.stages:
            raise ConfigError("stages must not be empty")
        for stage in self.stages:
            if stage.shares and len(stage.shares) != len(self.data.sources):
                raise ConfigError(
                    f"stages.shares has {len(stage.shares)} numbers for "
                    f"{len(self.data.sources)} data.sources"
                )
        if bool(self.loss.teacher) != bool(self.teacher.model):
            raise ConfigError("loss.teacher and teacher.model belong together; give both or none")
        if self.loss.gan and self.data.crop * self.net.scale % 8:
            raise ConfigError(
                f"data.crop * net.scale must be a multiple of 8 for loss.gan, not "
                f"{self.data.crop * self.net.scale}"
            )
        for source in self.data.sources:
            for low, high in source.heights:
                if high != low * self.net.scale:
                    raise ConfigError(
                        f"data.sources.heights: {low} to {high} is not net.scale = {self.net.scale}"
                    )

    def lengths(self) -> list[int]:
        """Give the steps of each stage; their sum is `train.steps`."""
        whole = sum(stage.part for stage in self.stages)
        ends = [
            round(self.train.steps * sum(stage.part for stage in self.stages[: i + 1]) / whole)
            for i in range(len(self.stages))
        ]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def read(path: Path, changes: Sequence[str] = ()) -> Config:
    """Read a configuration.

    Args:
        path: TOML.
        changes: "train.steps=200", each value as in TOML; text may do without quotes.
    Raises:
        ConfigError: it cannot be read or used; names the key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(f"{path} is no TOML: {exc}") from exc
    for change in changes:
        _set(table, change)
    try:
        return from_table(table)
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from None


def from_table(table: Mapping[str, Any]) -> Config:
    """Make a configuration of nested tables; errors as `read`."""
    return cast("Config", _made(Config, table, ""))


def to_table(config: Config) -> dict[str, Any]:
    """Give the nested tables of a configuration, with all defaults, as JSON takes them."""
    return dataclasses.asdict(config)


def flat(config: Config) -> dict[str, Any]:
    """Give every value by its dotted key; lists of tables by number: `stages.0.rate`."""
    result: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else name)
        elif isinstance(value, (tuple, list)) and value and isinstance(value[0], dict):
            for index, inner in enumerate(value):
                walk(inner, f"{key}.{index}")
        else:
            result[key] = value

    walk(to_table(config), "")
    return result


def _set(table: dict[str, Any], change: str) -> None:
    """Put one `key.path=value` into nested tables; a number picks a table of a list."""
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {change!r} is not of the form train.steps=200")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text
    *parents, last = key.strip().split(".")
    inner: Any = table
    for parent in parents:
        if isinstance(inner, list) and parent.isdigit() and int(parent) < len(inner):
            inner = inner[int(parent)]
        elif isinstance(inner, dict):
            inner = inner.setdefault(parent, {})
        else:
            raise ConfigError(f"--set {change!r}: there is no {parent!r} in {key!r}")
    if not isinstance(inner, dict):
        raise ConfigError(f"--set {change!r}: there is no table {'.'.join(parents)!r}")
    inner[last] = value


def _made(kind: type, table: object, where: str) -> object:
    """Make a dataclass of a table."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a table, not {table!r}")
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    values = {}
    for key, value in table.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in fields:
            near = get_close_matches(str(key), fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f" (one of {', '.join(fields)})"
            raise ConfigError(f"unknown key {name!r}{hint}")
        values[key] = _value(hints[key], value, name)
        _check_limits(fields[key], values[key], name)
    for name, one in fields.items():
        required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{where}.{name} is missing" if where else f"{name} is missing")
    made = kind(**values)
    if hasattr(made, "check"):
        made.check()
    return made


def _value(kind: Any, value: object, name: str) -> object:
    """Check one value and bring it to its type."""
    if dataclasses.is_dataclass(kind):
        return _made(cast("type", kind), value, name)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ConfigError(f"{name} must be one of {', '.join(get_args(kind))}, not {value!r}")
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name} must be a list, not {value!r}")
        inner = get_args(kind)[0]
        return tuple(_value(inner, one, name) for one in value)
    assert get_origin(kind) not in (Union, types.UnionType), "no field may be of several types"
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise ConfigError(f"{name} must be {words[kind]}, not {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} must be finite, not {value}")
    return value


def _check_limits(one: dataclasses.Field[Any], value: Any, name: str) -> None:
    least, most = one.metadata.get("limits", (None, None))
    if least is not None and not least <= value <= most:
        span = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise ConfigError(f"{name} must be {span}, not {value:g}")
