"""Crops for training: frames decoded once, crops drawn by (seed, step), cut in the background.

`open_frames` decodes the frames of every sequence once into one memory-mapped file in the cache
folder, so that a crop costs a copy of its own pixels. `Crops.batch(step)` is a pure function of
the seed and the step: a run that is resumed sees what it would have seen. `ahead` calls it in
threads, some steps ahead of the net.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import psutil  # type: ignore[import-untyped]
from numpy.typing import NDArray

from training.config import HEIGHTS_OF, Config, ConfigError, Source
from training.dataset import Pair, find_pairs, read_png
from training.errors import DataError

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Colour = Literal["luma", "rgb"]
T = TypeVar("T")
#: Batches that are cut ahead of the net, for each thread.
AHEAD = 3
#: Problems that are printed one by one; the rest are counted.
_SHOWN = 20


def luma(bgr: Pixels) -> NDArray[np.float32]:
    """BT.601 full-range luma, float32 (H, W), 0..255, of uint8 BGR (H, W, 3)."""
    plane: NDArray[np.float32] = bgr.astype(np.float32) @ np.array([0.114, 0.587, 0.299], "f4")
    return plane


def planes(bgr: Pixels, colour: Colour) -> Pixels:
    """Bring uint8 BGR (H, W, 3) to what a net is trained on: uint8 (H, W, 1) luma or RGB."""
    if colour == "rgb":
        return np.ascontiguousarray(bgr[..., ::-1])
    return np.rint(luma(bgr)).astype(np.uint8)[..., None]


# --- frames, decoded once ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Episode:
    """The frames of one sequence at two sizes.

    Attributes:
        source: number of its source in the configuration.
        low, high: uint8 (N, H, W, C) and (N, H*scale, W*scale, C), memory-mapped.
        good: numbers of the frames that could be decoded at both sizes.
    """

    source: int
    low: Pixels
    high: Pixels
    good: tuple[int, ...]


def open_frames(config: Config, colour: Colour) -> list[Episode]:
    """Find and decode all training frames of a configuration; what is wrong is logged and skipped.

    Raises:
        DataError: a source has no frame at all; says how to get some.
    """
    root = Path(config.data.root)
    cache = Path(config.data.cache) if config.data.cache else root / "cache"
    found: list[Episode] = []
    skipped: list[str] = []
    for number, source in enumerate(config.data.sources):
        before = len(found)
        for pairs in _sequences(root, source, config.net.scale, skipped):
            low, low_bad = _stack([pair.low for pair in pairs], cache, colour)
            high, high_bad = _stack([pair.high for pair in pairs], cache, colour)
            bad = low_bad | high_bad
            skipped += [f"{pairs[i].name}: {what}" for i, what in bad.items()]
            good = tuple(i for i in range(len(pairs)) if i not in bad)
            if good:
                found.append(Episode(number, low, high, good))
        if len(found) == before:
            games = ", ".join(source.games) or "any game"
            raise DataError(
                f"no training frames of {games} in {root / source.kind} for scale "
                f"{config.net.scale}; make them with overlay data, or change data.sources"
            )
    _report(skipped)
    _touch(found)
    return found


def _touch(episodes: Sequence[Episode]) -> None:
    """Read a byte of every page, if all fit into memory: the first epoch is then as quick."""
    stacks = [stack for one in episodes for stack in (one.low, one.high)]
    if 2 * sum(stack.nbytes for stack in stacks) < psutil.virtual_memory().available:
        for stack in stacks:
            stack.reshape(-1)[:: mmap.PAGESIZE].max()


def _report(skipped: Sequence[str]) -> None:
    for line in skipped[:_SHOWN]:
        log.warning("skipped %s", line)
    if len(skipped) > _SHOWN:
        log.warning("skipped %d more frames", len(skipped) - _SHOWN)


def _sequences(
    root: Path, source: Source, scale: int, skipped: list[str]
) -> Iterator[Sequence[Pair]]:
    """Give the pairs of a source by sequence and size; `skipped` gets what is wrong."""
    heights = source.heights or HEIGHTS_OF[scale]
    if source.kind == "DownscaleData":
        heights = tuple(pair for pair in heights if pair[1] == 1080)
    for low, high in heights:
        pairs, problems = find_pairs(
            root, source.kind, "train", low=low, high=high, games=source.games or None
        )
        skipped += map(str, problems)
        by_name: dict[tuple[str, str], list[Pair]] = defaultdict(list)
        for pair in pairs:
            by_name[pair.game, pair.episode].append(pair)
        for name in sorted(by_name):
            yield by_name[name]


def _stack(files: Sequence[Path], cache: Path, colour: Colour) -> tuple[Pixels, dict[int, str]]:
    """Give frames as one uint8 (N, H, W, C), decoded once, and what is wrong with which.

    The file is named by the names, sizes and times of the frames, so that a changed frame makes
    another one.
    """
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    folder = files[0].parent
    identity = json.dumps([str(folder.resolve()), colour, stats]).encode()
    name = f"{files[0].stem.rpartition('_')[0]}-{folder.parent.name}-{colour}"
    path = cache / f"{name}-{hashlib.sha256(identity).hexdigest()[:16]}.npy"
    notes = path.with_suffix(".json")
    if not (path.is_file() and notes.is_file()):
        _decode(files, path, notes, colour)
    bad = {int(number): str(what) for number, what in json.loads(notes.read_text()).items()}
    stack: Pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    return stack, bad


def _decode(files: Sequence[Path], path: Path, notes: Path, colour: Colour) -> None:
    """Write the stack and the notes; both appear whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    bad: dict[int, str] = {}
    stack: np.memmap[Any, np.dtype[np.uint8]] | None = None
    for index, file in enumerate(files):
        try:
            picture = planes(read_png(file), colour)
        except DataError as exc:
            bad[index] = str(exc)
            continue
        if stack is None:
            shape = (len(files), *picture.shape)
            stack = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
        if picture.shape != stack.shape[1:]:
            bad[index] = f"{file} is of another size than the frames before it"
            continue
        stack[index] = picture
    if stack is None:
        stack = np.lib.format.open_memmap(part, "w+", np.uint8, (len(files), 1, 1, 1))
    stack.flush()
    os.replace(part, path)
    part.write_text(json.dumps(bad))
    os.replace(part, notes)


# --- crops ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """Aligned crops, uint8: `low` (N, h + 2*margin, w + 2*margin, C), `high` (N, h*s, w*s, C)."""

    low: Pixels
    high: Pixels


class Crops:
    """Random aligned crops, each mirrored or transposed at random.

    Args:
        sequences: to crop from, as `open_frames` gives them.
        scale: HR size / LR size.
        side: of the LR crop in pixels, without its margin.
        margin: LR pixels of context on each side that have no HR counterpart.
        seed: of everything that is random.
        shares: how often each source is taken, relative to the others; empty, or all 0: as often
            as it has frames.
    Raises:
        DataError: frames that do not match, or are smaller than a crop.
        ConfigError: a share for a source without frames.
    """

    def __init__(
        self,
        sequences: Sequence[Episode],
        scale: int,
        side: int,
        margin: int,
        seed: int,
        shares: Sequence[float] = (),
    ) -> None:
        for one in sequences:
            n, height, width, channels = one.low.shape
            if one.high.shape != (n, height * scale, width * scale, channels):
                raise DataError(f"HR frames are {one.high.shape}, LR frames {one.low.shape}")
            if min(height, width) < side + 2 * margin:
                raise DataError(
                    f"frames of {width}x{height} are smaller than a crop of {side} with a margin "
                    f"of {margin}; make data.crop smaller"
                )
        self._frames = [(one.low[i], one.high[i]) for one in sequences for i in one.good]
        weights = _weights([(one.source, len(one.good)) for one in sequences], shares)
        self._limits = np.cumsum(weights) / np.sum(weights)
        self._scale, self._side, self._margin, self._seed = scale, side, margin, seed

    def __len__(self) -> int:
        return len(self._frames)

    def batch(self, step: int, size: int, part: slice = slice(None)) -> Batch:
        """Cut the crops of one step: equal arguments and seeds give equal crops.

        Args:
            step: number of the step.
            size: of the whole batch.
            part: which of its crops are wanted; each of several processes takes its own.
        """
        dice = np.random.default_rng((self._seed, step)).random((size, 4))
        crops = [self._cut(*(float(one) for one in row)) for row in dice[part]]
        return Batch(np.stack([low for low, _ in crops]), np.stack([high for _, high in crops]))

    def _cut(self, frame: float, down: float, right: float, way: float) -> tuple[Pixels, Pixels]:
        """Cut one crop; the arguments are 0..1."""
        number = min(int(np.searchsorted(self._limits, frame, side="right")), len(self) - 1)
        low, high = self._frames[number]
        s, m, side = self._scale, self._margin, self._side
        top = m + int(down * (low.shape[0] - side - 2 * m + 1))
        left = m + int(right * (low.shape[1] - side - 2 * m + 1))
        small = low[top - m : top + side + m, left - m : left + side + m]
        large = high[top * s : (top + side) * s, left * s : (left + side) * s]
        return turned(small, int(8 * way)), turned(large, int(8 * way))


def _weights(frames: Sequence[tuple[int, int]], shares: Sequence[float]) -> NDArray[np.float64]:
    """Give the weight of each frame.

    Args:
        frames: source and number of frames of each sequence.
        shares: of the sources.
    """
    counts: dict[int, int] = defaultdict(int)
    for source, count in frames:
        counts[source] += count
    if any(shares):
        empty = [i for i, share in enumerate(shares) if share and not counts[i]]
        if empty:
            raise ConfigError(f"data.sources.{empty[0]} has a share and no frames")
        each = [shares[source] / counts[source] for source, _ in frames]
    else:
        each = [1.0] * len(frames)
    return np.repeat(each, [count for _, count in frames])


def turned(picture: Pixels, way: int) -> Pixels:
    """Mirror and transpose (H, W, C) in one of eight ways; a view."""
    picture = picture[:: 1 - 2 * (way & 1), :: 1 - (way & 2)]
    return picture.swapaxes(0, 1) if way & 4 else picture


def ahead(make: Callable[[int], T], first: int, end: int, workers: int) -> Iterator[T]:
    """Give `make(step)` of the steps first..end-1 in order, made in threads ahead of time.

    Args:
        make: called from any thread, in any order.
        first, end: the steps.
        workers: threads; 0: made here, when asked for.
    """
    if workers == 0:
        yield from map(make, range(first, end))
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="crops")
    try:
        coming: deque[Future[T]] = deque()
        for step in range(first, end):
            coming.append(pool.submit(make, step))
            if len(coming) > AHEAD * workers:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
