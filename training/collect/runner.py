"""The seam between games and the collector: episodes in, numbered frames out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.collect.align import Limits
from training.collect.splits import Split
from training.errors import DataError

Pixels = NDArray[np.uint8]
Size = tuple[int, int]  # (width, height)

SIZES: tuple[Size, ...] = ((480, 270), (640, 360), (960, 540), (1920, 1080))


class CollectError(DataError):
    """A game is missing, failed, or did not draw what it was asked for."""


@dataclass(frozen=True, slots=True)
class Episode:
    """A stretch of play that can be shown again: the same world, frame by frame, at any size.

    Args:
        game, name: in file names, so without "_".
        map: the game's own name of the place.
        split: of all its frames.
        frames: how many to draw at most; None = all there are.
        seed: of what is random in it.
        settings: what else decides the frames; JSON types.
    """

    game: str
    name: str
    map: str
    split: Split
    frames: int | None
    seed: int
    settings: dict[str, Any]


def dense_of(
    episodes: Iterable[Episode], frames: int, settings: Mapping[str, Any]
) -> list[Episode]:
    """Give each episode that is not trained on as a dense one; see `Runner.dense`.

    Args:
        frames: of each.
        settings: what differs from the episode's own.
    """
    return [
        replace(
            episode,
            name=f"{episode.name}-dense",
            frames=frames,
            settings=episode.settings | dict(settings) | {"dense": True},
        )
        for episode in episodes
        if episode.split != "train"
    ]


class Frame(NamedTuple):
    """One drawn frame.

    `number` is the same at every size; `tick` is the moment in the game, in the unit that the
    episode's settings name; `pixels` are uint8 BGR (H, W, 3), the receiver's to keep.
    """

    number: int
    tick: int
    pixels: Pixels


class Runner(ABC):
    """One game."""

    name: str
    licence: str
    #: Sizes that are drawn, the cheapest first.
    sizes: tuple[Size, ...] = SIZES
    limits = Limits()

    @abstractmethod
    def episodes(self, frames: int | None = None) -> list[Episode]:
        """List all episodes; `frames` is how many of each, None = the game's usual number."""

    def dense(self, frames: int | None = None) -> list[Episode]:
        """List stretches of frames that follow each other at ten a second of the game or more.

        They are for what happens in time, never trained on, and kept in a folder of their own:
        `settings["dense"]` is true.
        """
        return []

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Name the versions of what draws, by package.

        Raises:
            CollectError: the game is not installed; the message says how to.
        """

    @abstractmethod
    def render(self, episode: Episode, size: Size) -> Generator[Frame]:
        """Draw an episode at one size, in the order of the frames' numbers.

        May be called from several threads at once.

        Raises:
            CollectError: the game failed.
        """

    def pictures(self, size: Size, pixels: Pixels) -> dict[str, Pixels]:
        """Give what a frame drawn at `size` becomes: {folder: uint8 BGR}."""
        return {f"{size[1]}p": pixels}
