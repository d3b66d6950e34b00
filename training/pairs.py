"""Aligned LR/HR pairs from collected frames.

    data/openarena/<map>/<height>/<number>.png      from training.collect.openarena
    data/raycaster/<seed>/<height>/<number>.png     from training.collect.raycaster
    data/freedoom/<map>/<height>/<number>.png       from training.collect.freedoom

The split is by whole maps. Luma is BT.601 full-range, uint8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Plane = NDArray[np.float32]

#: Maps never trained on; all others are trained on.
HELD_OUT = ("aggressor", "ce1m7", "oa_dm6", "oacmpdm8")
#: (LR height, HR height) of the pairs of each scale; the first is the one that is reported.
HEIGHTS = {2: ((270, 540), (540, 1080)), 3: ((360, 1080),), 4: ((270, 1080),)}
#: Freedoom's renderer samples pixel corners: where in the 2160-line render, in its pixels
#: (down, right), the HR frame lies that fits the LR frame; found by trying all within +-2 HR
#: pixels for the best PSNR of cv2's bicubic. Keyed by (LR height, scale).
FREEDOOM_OFFSETS = {(270, 2): (3, 0), (540, 2): (1, 0), (360, 3): (2, 0), (270, 4): (3, -1)}


def luma(bgr: NDArray[np.uint8] | Plane) -> Plane:
    """BT.601 full-range luma, float32 (H, W), 0..255, of BGR or BGRA (H, W, 3 or 4)."""
    weights = np.array([0.114, 0.587, 0.299], np.float32)
    return bgr[..., :3].astype(np.float32) @ weights


def read(path: Path) -> Image:
    """Read a picture as uint8 BGR (H, W, 3).

    Raises:
        FileNotFoundError: there is none, or it is not a picture.
    """
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise FileNotFoundError(f"no readable picture at {path}")
    return picture.astype(np.uint8, copy=False)


def maps_of(root: Path, *, held_out: bool) -> list[str]:
    """Names of the collected maps of one side of the split, sorted."""
    names = sorted(folder.name for folder in root.iterdir() if (folder / "1080").is_dir())
    return [name for name in names if (name in HELD_OUT) == held_out]


def luma_stack(folder: Path) -> Image:
    """All frames of `folder` as uint8 luma (N, H, W), memory-mapped from a file made once."""
    files = sorted(folder.glob("*.png"))
    cache = folder.with_suffix(".luma.npy")
    if cache.exists():
        stack: Image = np.load(cache, mmap_mode="r")
        if len(stack) == len(files):
            return stack
    height, width = read(files[0]).shape[:2]
    made = np.lib.format.open_memmap(cache, "w+", np.uint8, (len(files), height, width))
    for index, file in enumerate(files):
        made[index] = np.rint(luma(read(file)))
    made.flush()
    return made


@dataclass(frozen=True, slots=True)
class Batch:
    """Aligned crops, uint8 luma: `low` (N, h + 2*margin, w + 2*margin), `high` (N, h*s, w*s)."""

    low: Image
    high: Image


class PairSampler:
    """Random aligned luma crops, for ever.

    Args:
        stacks: aligned (LR, HR) luma stacks, (N, H, W) and (N, H*scale, W*scale), uint8.
        scale: HR size / LR size.
        crop: side of the LR crop in pixels, without its margin.
        margin: LR pixels of context on each side that have no HR counterpart.
        seed: of the random choice; equal seeds give equal crops.
        shares: how often each stack is chosen; None: as often as it has frames.
    Raises:
        ValueError: stacks that do not match.
    """

    def __init__(
        self,
        stacks: Sequence[tuple[Image, Image]],
        scale: int,
        crop: int,
        margin: int,
        seed: int,
        shares: Sequence[float] | None = None,
    ) -> None:
        for low, high in stacks:
            expected = (len(low), low.shape[1] * scale, low.shape[2] * scale)
            if high.shape != expected:
                raise ValueError(f"HR frames are {high.shape}, expected {expected}")
        self._frames = [(low[i], high[i]) for low, high in stacks for i in range(len(low))]
        self._limits: NDArray[np.float64] | None = None  # upper, of each frame, in 0..1
        if shares is not None:
            each = [share / len(low) for (low, _), share in zip(stacks, shares, strict=True)]
            counts = [len(low) for low, _ in stacks]
            self._limits = np.cumsum(np.repeat(each, counts)) / sum(shares)
        self._scale, self._crop, self._margin = scale, crop, margin
        self._dice = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self._frames)

    def batch(self, size: int) -> Batch:
        """Draw `size` crops, each mirrored or transposed at random."""
        crops = [self._one() for _ in range(size)]
        return Batch(np.stack([low for low, _ in crops]), np.stack([high for _, high in crops]))

    def _frame(self) -> int:
        if self._limits is None:
            return int(self._dice.integers(len(self._frames)))
        return min(int(np.searchsorted(self._limits, self._dice.random())), len(self) - 1)

    def _one(self) -> tuple[Image, Image]:
        low, high = self._frames[self._frame()]
        s, m, side = self._scale, self._margin, self._crop
        top = int(self._dice.integers(m, low.shape[0] - side - m + 1))
        left = int(self._dice.integers(m, low.shape[1] - side - m + 1))
        small = low[top - m : top + side + m, left - m : left + side + m]
        large = high[top * s : (top + side) * s, left * s : (left + side) * s]
        vertical, horizontal = 1 - 2 * self._dice.integers(2, size=2)
        small, large = small[::vertical, ::horizontal], large[::vertical, ::horizontal]
        if self._dice.integers(2):
            small, large = small.T, large.T
        return small, large


def training_stacks(root: Path, scale: int) -> list[tuple[Image, Image]]:
    """Luma stacks of every training map at every size pair of `scale`.

    Raises:
        FileNotFoundError: nothing was collected; the message says how to.
    """
    names = maps_of(root, held_out=False) if root.is_dir() else []
    if not names:
        raise FileNotFoundError(
            f"no frames under {root}; make them with python -m training.collect.{root.name} "
            "(its docstring has the command)"
        )
    return [
        (luma_stack(root / name / str(small)), luma_stack(root / name / str(large)))
        for name in names
        for small, large in HEIGHTS[scale]
    ]


def held_out_pairs(root: Path, scale: int, every: int = 4) -> Iterator[tuple[str, Image, Image]]:
    """Give (name, LR, HR) of every n-th frame of the held-out maps, uint8 BGR (H, W, 3)."""
    small, large = HEIGHTS[scale][0]
    for name in maps_of(root, held_out=True):
        for file in sorted((root / name / str(small)).glob("*.png"))[::every]:
            twin = root / name / str(large) / file.name
            yield f"{name}/{file.stem}", read(file), read(twin)


def freedoom_pairs(root: Path, scale: int) -> Iterator[tuple[str, Image, Image]]:
    """Give (name, LR, HR) of every Freedoom frame, shift undone, uint8 BGR (H, W, 3).

    HR is every k-th pixel of the 2160-line render, taken from the offset at which it shows what
    LR shows: a native render without interpolation. Wrapped rows and columns are cut off.
    """
    small, large = HEIGHTS[scale][0]
    for file in sorted(root.glob(f"*/{small}/*.png")):
        low = read(file)
        huge = read(root / file.parent.parent.name / "2160" / file.name)
        high = shifted(huge, 2160 // large, FREEDOOM_OFFSETS[small, scale])
        edge = 4  # LR pixels
        yield (
            f"{file.parent.parent.name}/{file.stem}",
            low[edge:-edge, edge:-edge],
            high[edge * scale : -edge * scale, edge * scale : -edge * scale],
        )


def shifted(picture: Image, step: int, offset: tuple[int, int]) -> Image:
    """Take every `step`-th pixel from `offset` (down, right), wrapping at the borders."""
    rolled = np.roll(picture, (-offset[0], -offset[1]), (0, 1))
    return np.ascontiguousarray(rolled[::step, ::step])
