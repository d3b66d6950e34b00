"""The gate: does a sequence show the same moments, at the same place, at every size?

Five measures, none of which trusts another: the sub-pixel shift by phase correlation and by least
squares, the best of all whole-pixel shifts, the PSNR of LR against area-downscaled HR, and the
comparison of each frame with its neighbours in time.

The limits are those at which the games' renders pass with room, and their shifted or late copies do
not (docs/data.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.dataset import Pixels, read_png, shift
from training.errors import DataError

#: Pairs of heights that are compared, where both are there.
PAIRS = ((270, 1080), (360, 1080), (540, 1080), (270, 540))
#: Whole-pixel shifts up to this many HR pixels are tried.
REACH = 3
#: So many frames are measured for their shifts, evenly spread over a sequence.
_SHIFT_FRAMES, _SEARCH_FRAMES = 9, 3
#: In time, frames are compared at this size.
_THUMB = (160, 90)


@dataclass(frozen=True, slots=True)
class Limits:
    """From which figures on a sequence, or one frame of it, is left out.

    Attributes:
        shift_px: most of a sequence's median shift by phase correlation, in HR pixels, in either
            direction.
        fit_px: most of its median shift by least squares.
        whole_px: most of its median best whole-pixel shift.
        psnr_db: least of its median PSNR, LR against area-downscaled HR (BGR).
        frame_psnr_db: least of that of a frame.
        luma_std: least standard deviation of a frame's luma: menus, fades and black.
        bad_frames: most of the share of frames that are left out.
        late_frames: most of the share of frames that fit a neighbour in time better.
    """

    shift_px: float = 0.1
    fit_px: float = 0.25
    whole_px: int = 1
    psnr_db: float = 28.0
    frame_psnr_db: float = 22.0
    luma_std: float = 10.0
    bad_frames: float = 0.5
    late_frames: float = 0.1


@dataclass(slots=True)
class Verdict:
    """What the gate found.

    Attributes:
        reason: why the sequence is dropped; "" if it may stay.
        left_out: frame: why it alone is left out.
        figures: "270p->1080p": {"shift_px": [right, down], "fit_px": …, "whole_px": …,
            "psnr_db": median}; empty if the sequence was dropped before they were measured.
        psnr: frame: {"270p->1080p": dB}.
    """

    reason: str = ""
    left_out: dict[int, str] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    psnr: dict[int, dict[str, float]] = field(default_factory=dict)


def judge(frames: Mapping[int, Mapping[str, Path]], limits: Limits | None = None) -> Verdict:
    """Judge one sequence.

    Args:
        frames: number: {folder ("270p", …): its PNG}, as the layout has them.
        limits: the game's; the usual ones if None.
    """
    limits = limits or Limits()
    verdict = Verdict()
    thumbs = []
    for number in sorted(frames):
        try:
            pictures = {folder: read_png(path) for folder, path in frames[number].items()}
        except DataError as exc:
            verdict.left_out[number] = _without_places(str(exc), frames[number])
            continue
        if flat := _flat(pictures, limits):
            verdict.left_out[number] = flat
            continue
        thumbs.append({folder: _thumb(picture) for folder, picture in pictures.items()})
        verdict.psnr[number] = _psnr(pictures)
        for pair, psnr in verdict.psnr[number].items():
            if psnr < limits.frame_psnr_db:
                verdict.left_out[number] = _too_different(pair, psnr, limits.frame_psnr_db)
    late = list(_late(thumbs, limits))
    good = [number for number in sorted(frames) if number not in verdict.left_out]
    if len(good) < len(frames) * (1 - limits.bad_frames) or not good:
        number, why = next(iter(verdict.left_out.items()), (0, "there is no frame"))
        count = f"{len(verdict.left_out)} of {len(frames)} frames are bad"
        verdict.reason = "; ".join([*late, count, f"frame {number}: {why}"])
        return verdict
    verdict.figures = _measure([frames[number] for number in good])
    for pair, figures in verdict.figures.items():
        values = [verdict.psnr[number][pair] for number in good]
        figures["psnr_db"] = round(float(np.median(values)), 2)
    verdict.reason = "; ".join([*late, *_beyond(verdict.figures, limits)])
    return verdict


def _without_places(message: str, files: Mapping[str, Path]) -> str:
    """Name files by their folder alone: a manifest is passed on, and the same on any machine."""
    for folder, path in files.items():
        message = message.replace(str(path), folder)
    return message


def pairs_of(folders: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Give (name, LR folder, HR folder) of each pair that can be made of these folders."""
    for low, high in PAIRS:
        if f"{low}p" in folders and f"{high}p" in folders:
            yield f"{low}p->{high}p", f"{low}p", f"{high}p"


def _grey(picture: Pixels) -> Pixels:
    return cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.uint8, copy=False)


def _downscaled(picture: Pixels, size: tuple[int, int]) -> Pixels:
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _thumb(picture: Pixels) -> NDArray[np.float32]:
    return _downscaled(_grey(picture), _THUMB).astype(np.float32)


def _psnr(pictures: Mapping[str, Pixels]) -> dict[str, float]:
    found = {}
    for pair, low, high in pairs_of(pictures):
        size = (pictures[low].shape[1], pictures[low].shape[0])
        found[pair] = round(cv2.PSNR(pictures[low], _downscaled(pictures[high], size)), 2)
    return found


def _flat(pictures: Mapping[str, Pixels], limits: Limits) -> str:
    """Say why there is nothing to see; "" if there is."""
    flattest = min(float(_grey(picture).std()) for picture in pictures.values())
    if flattest > limits.luma_std:
        return ""
    return f"nothing to see: its luma varies by {flattest:.1f}, least is {limits.luma_std:g}"


def _too_different(pair: str, psnr: float, least: float) -> str:
    return f"{pair} differ: {psnr:.1f} dB after downscaling, least is {least:g}"


def _late(thumbs: list[dict[str, NDArray[np.float32]]], limits: Limits) -> Iterator[str]:
    """Say where LR shows the moment before or after HR's."""
    for pair, low, high in pairs_of(thumbs[0] if thumbs else {}):
        small = np.stack([thumb[low] for thumb in thumbs])
        large = np.stack([thumb[high] for thumb in thumbs])
        own = ((small - large) ** 2).mean((1, 2))
        late = np.zeros(len(thumbs), bool)
        for a, b in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            other = ((small[a] - large[b]) ** 2).mean((1, 2))
            late[a] |= other < 0.7 * own[a]
        if late.mean() > limits.late_frames:
            count = f"{late.sum()} of {len(late)} frames"
            yield f"{pair} are desynchronised: {count} fit a neighbour in time better"


def _spread(frames: list[Mapping[str, Path]], count: int) -> list[Mapping[str, Path]]:
    places = np.linspace(0, len(frames) - 1, min(count, len(frames)))
    return [frames[round(place)] for place in places]


def _measure(frames: list[Mapping[str, Path]]) -> dict[str, dict[str, Any]]:
    """Measure the shifts of each pair, (right, down) in HR pixels: medians over the sequence."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for key, method, count in (
        ("shift_px", shift, _SHIFT_FRAMES),
        ("fit_px", fitted_shift, _SHIFT_FRAMES),
        ("whole_px", whole_shift, _SEARCH_FRAMES),
    ):
        for files in _spread(frames, count):
            for pair, low, high in pairs_of(files):
                value = method(read_png(files[low]), read_png(files[high]))
                found.setdefault(pair, {}).setdefault(key, []).append(value)
    return {
        pair: {key: [round(value, 3) for value in _median(values)] for key, values in keys.items()}
        for pair, keys in found.items()
    }


def _median(values: list[tuple[float, float]]) -> list[float]:
    """Median in both directions of the frames that could be measured; [] if none could."""
    finite = [value for value in values if np.isfinite(value).all()]
    return [float(value) for value in np.median(finite, axis=0)] if finite else []


def whole_shift(low: Pixels, high: Pixels) -> tuple[float, float]:
    """Try all shifts within `REACH` and give the one at which downscaled HR is nearest to LR.

    Args:
        low, high: uint8 BGR; HR a whole multiple of LR.
    Returns:
        (right, down) in whole HR pixels: where HR's content lies relative to LR's.
    """
    reach = range(-REACH, REACH + 1)
    places = [(right, down) for down in reach for right in reach]
    errors = _errors(low, high, places)
    return places[int(np.argmin(errors))]


def fitted_shift(low: Pixels, high: Pixels) -> tuple[float, float]:
    """Fit a parabola to the squared error at -REACH, 0 and REACH in each direction.

    Arguments and result are those of `whole_shift`, to fractions of a pixel; 0 where the error does
    not rise to both sides.
    """
    places = [(0, 0), (-REACH, 0), (REACH, 0), (0, -REACH), (0, REACH)]
    here, left, right, up, down = _errors(low, high, places)

    def vertex(before: float, after: float) -> float:
        curve = before - 2 * here + after
        return REACH * (before - after) / (2 * curve) if curve > 0 else 0.0

    return vertex(left, right), vertex(up, down)


def _errors(low: Pixels, high: Pixels, places: list[tuple[int, int]]) -> list[float]:
    """Mean squared luma errors of HR, moved back by (right, down) and downscaled, to LR."""
    small, large = _grey(low), _grey(high)
    scale = large.shape[0] // small.shape[0]
    height, width = small.shape[0] - 4, small.shape[1] - 4
    inner = small[2:-2, 2:-2].astype(np.float32)
    errors = []
    for right, down in places:
        top, left = 2 * scale + down, 2 * scale + right
        part = large[top : top + height * scale, left : left + width * scale]
        there = _downscaled(part, (width, height)).astype(np.float32)
        errors.append(float(((there - inner) ** 2).mean()))
    return errors


def _beyond(figures: Mapping[str, Mapping[str, Any]], limits: Limits) -> Iterator[str]:
    """Say which figures are beyond the limits."""
    for pair, found in figures.items():
        for key in ("whole_px", "fit_px", "shift_px"):
            if not found[key]:
                yield f"{pair} have too little detail to be aligned by"
                continue
            (right, down), most = found[key], getattr(limits, key)
            if max(abs(right), abs(down)) > most:
                there = f"{right:+g} right, {down:+g} down"
                yield f"{pair} are shifted by {there} ({key} at most {most:g})"
        if found["psnr_db"] < limits.psnr_db:
            yield _too_different(pair, found["psnr_db"], limits.psnr_db)
