"""Checkpoints: all that a run needs to go on exactly where it was, in one file.

Written beside and moved into place, so that a run killed at any moment leaves a whole one. Read
with PyTorch's restricted reader: nothing in the file is run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from training.config import Config, ConfigError, flat

FORMAT = 1
#: Keys that may differ between a run and its resumption: what is computed does not depend on them.
FREE = ("data.root", "data.cache", "data.workers", "train.checkpoint", "validate.")


def save(path: Path, config: Config, state: dict[str, Any]) -> None:
    """Write a checkpoint.

    Args:
        path: of the file, which is replaced.
        config: of the run.
        state: tensors, numbers, texts, and lists and dicts of those.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        torch.save({"format": FORMAT, "config": flat(config), "state": state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def load(path: Path, config: Config) -> dict[str, Any]:
    """Read the state of a checkpoint, on the CPU.

    Raises:
        ConfigError: it is damaged, or of a run with another configuration; names the keys.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise KeyError("format")
        before, state = dict(content["config"]), dict(content["state"])
    except Exception as exc:  # a parser of whatever the file holds: anything may come out of it
        raise _unreadable(path, exc) from exc
    now = flat(config)
    different = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key) and not key.startswith(FREE)
    )
    if different:
        key = different[0]
        raise ConfigError(
            f"{path} is of a run with another {', '.join(different)} ({key} was "
            f"{before.get(key)!r}, is {now.get(key)!r}); resume with the same, or choose "
            "another --out"
        )
    return state


def restore(path: Path, config: Config, load_state: Callable[[Mapping[str, Any]], None]) -> None:
    """Read a checkpoint and let a trainer go on from it; errors as `load`."""
    state = load(path, config)
    try:
        load_state(state)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as exc:
        raise _unreadable(path, exc) from exc


def _unreadable(path: Path, exc: Exception) -> ConfigError:
    kind = type(exc).__name__
    return ConfigError(
        f"{path} is no checkpoint that can be read ({kind}); remove it to begin again"
    )
