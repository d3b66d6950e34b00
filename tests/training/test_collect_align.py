"""The gate: what is aligned passes; what is shifted, late, black or damaged does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from training.collect.align import Limits, Verdict, judge, whole_shift
from training.dataset import Pixels

Change = Callable[[int, Pixels], Pixels]
FRAMES = 4


@cache
def wall() -> Pixels:
    """Many discs of all sizes and colours, 1100x540."""
    dice = np.random.default_rng(8)
    picture = np.full((540, 1100, 3), 90, np.uint8)
    for radius in np.linspace(60, 2, 900):
        centre = (int(dice.integers(1100)), int(dice.integers(540)))
        colour = [int(value) for value in dice.integers(0, 256, 3)]
        cv2.circle(picture, centre, int(radius), colour, -1, cv2.LINE_AA)
    return picture


def painting(number: int) -> Pixels:
    """The wall, seen from further right at each number: uint8 BGR, 960x540."""
    return np.ascontiguousarray(wall()[:, number * 24 : number * 24 + 960])


def sequence(root: Path, change: Change = lambda number, high: high) -> dict[int, dict[str, Path]]:
    """Write frames at 270p and 540p; `change` alters what becomes 540p."""
    files: dict[int, dict[str, Path]] = {}
    for number in range(FRAMES):
        high = painting(number)
        low = cv2.resize(high, (480, 270), interpolation=cv2.INTER_AREA)
        for folder, picture in (("270p", low), ("540p", change(number, high))):
            path = root / folder / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
            files.setdefault(number, {})[folder] = path
    return files


def verdict_on(root: Path, change: Change) -> Verdict:
    return judge(sequence(root, change))


def test_an_aligned_sequence_passes_with_its_figures(tmp_path: Path) -> None:
    verdict = judge(sequence(tmp_path))
    assert verdict.reason == ""
    assert verdict.left_out == {}
    figures = verdict.figures["270p->540p"]
    assert figures["whole_px"] == [0, 0]
    assert np.abs(figures["shift_px"]).max() < 0.05
    assert figures["psnr_db"] > 45


@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, -3)])
def test_a_shifted_sequence_is_dropped(tmp_path: Path, right: int, down: int) -> None:
    files = sequence(tmp_path, lambda _, high: np.roll(high, (down, right), (0, 1)))
    verdict = judge(files, Limits(psnr_db=0, frame_psnr_db=0))
    assert f"shifted by {right:+} right, {down:+} down" in verdict.reason
    assert verdict.figures["270p->540p"]["whole_px"] == [right, down]


def test_a_quarter_of_a_pixel_is_seen(tmp_path: Path) -> None:
    move = np.array([[1, 0, 0.25], [0, 1, 0]], np.float32)
    verdict = verdict_on(
        tmp_path,
        lambda _, high: cv2.warpAffine(
            high, move, (960, 540), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        ).astype(np.uint8),
    )
    assert "are shifted by +0." in verdict.reason
    assert verdict.figures["270p->540p"]["whole_px"] == [0, 0]
    assert verdict.figures["270p->540p"]["shift_px"] == pytest.approx([0.25, 0], abs=0.15)
    assert verdict.figures["270p->540p"]["fit_px"] == pytest.approx([0.25, 0], abs=0.1)


def test_a_late_sequence_is_dropped(tmp_path: Path) -> None:
    loose = Limits(psnr_db=0, frame_psnr_db=0, shift_px=99, whole_px=99, fit_px=99)
    verdict = judge(sequence(tmp_path, lambda number, _: painting(number + 1)), loose)
    assert "270p->540p are desynchronised: 3 of 4 frames" in verdict.reason


def test_another_place_is_dropped(tmp_path: Path) -> None:
    verdict = verdict_on(tmp_path, lambda _, high: np.ascontiguousarray(high[::-1]))
    assert "dB after downscaling" in verdict.reason


def test_a_black_sequence_is_dropped_and_a_black_frame_left_out(tmp_path: Path) -> None:
    verdict = verdict_on(tmp_path / "all", lambda _, high: high * np.uint8(0))
    assert "4 of 4 frames are bad; frame 0: nothing to see" in verdict.reason
    verdict = verdict_on(tmp_path / "one", lambda n, high: high * np.uint8(n != 3))
    assert verdict.reason == ""
    assert list(verdict.left_out) == [3]
    assert "nothing to see" in verdict.left_out[3]


def test_a_damaged_frame_is_left_out(tmp_path: Path) -> None:
    files = sequence(tmp_path)
    path = files[2]["540p"]
    path.write_bytes(path.read_bytes()[:5000])
    verdict = judge(files)
    assert verdict.reason == ""
    assert verdict.left_out[2].startswith("540p is truncated")  # no place on this machine


def smooth() -> Pixels:
    """Two flat halves and a slow passage between: nothing to align by, uint8 BGR, 960x540."""
    row = np.interp(np.arange(960), (400, 720), (60, 100)).astype(np.uint8)
    return np.broadcast_to(row[None, :, None], (540, 960, 3)).copy()


def test_frames_without_detail_do_not_open_the_gate(tmp_path: Path) -> None:
    def changed(number: int, high: Pixels) -> Pixels:
        return smooth() if number == 3 else np.roll(high, 2, 1)

    files = sequence(tmp_path, changed)
    small = cv2.resize(smooth(), (480, 270), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(files[3]["270p"]), small)
    loose = Limits(psnr_db=0, frame_psnr_db=0, fit_px=99, whole_px=99)
    verdict = judge(files, loose)
    assert verdict.left_out == {}
    assert "are shifted by +1.99" in verdict.reason
    json.dumps(verdict.figures, allow_nan=False)
    assert "too little detail" in judge({3: files[3]}, loose).reason


def test_each_limit_stands_alone(tmp_path: Path) -> None:
    open_ = Limits(shift_px=99, fit_px=99, whole_px=99, psnr_db=0, frame_psnr_db=0)
    moved = sequence(tmp_path / "moved", lambda _, high: np.roll(high, 2, 1))
    assert judge(moved, open_).reason == ""
    for key in ("shift_px", "fit_px", "whole_px"):
        reason = judge(moved, replace(open_, **{key: 1})).reason  # type: ignore[arg-type]
        assert reason.endswith(f"({key} at most 1)")
        assert reason.count("shifted") == 1
    bright = sequence(tmp_path / "bright", lambda n, high: high // 2 + np.uint8(30 * (n == 1)))
    small = {n: {"270p": files["270p"], "540p": files["540p"]} for n, files in bright.items()}
    for files in small.values():  # the same brightness but in frame 1
        low = cv2.imread(str(files["270p"]))
        assert low is not None
        cv2.imwrite(str(files["270p"]), low // 2)
    verdict = judge(small, replace(open_, frame_psnr_db=22))
    assert (verdict.reason, list(verdict.left_out)) == ("", [1])
    assert "differ: 18." in verdict.left_out[1]
    reason = judge({1: small[1]}, replace(open_, psnr_db=22)).reason
    assert reason.startswith("270p->540p differ: 18.")


@pytest.mark.parametrize(("share", "late"), [(0.7, True), (0.4, False)])
def test_what_is_nearer_to_the_next_moment_is_late(
    tmp_path: Path, share: float, late: bool
) -> None:
    def blended(number: int, high: Pixels) -> Pixels:
        after = painting(number + 1)
        return cv2.addWeighted(high, 1 - share, after, share, 0).astype(np.uint8)

    loose = Limits(psnr_db=0, frame_psnr_db=0, shift_px=99, whole_px=99, fit_px=99)
    assert ("desynchronised" in judge(sequence(tmp_path, blended), loose).reason) is late


def test_more_than_half_must_be_good(tmp_path: Path) -> None:
    def black(count: int) -> Verdict:
        return verdict_on(tmp_path / str(count), lambda n, high: high * np.uint8(n >= count))

    assert black(2).reason == ""
    assert "3 of 4 frames are bad" in black(3).reason


def test_no_frame_at_all_is_said() -> None:
    assert "there is no frame" in judge({}).reason


def test_whole_shifts_are_found_exactly() -> None:
    high = painting(0)
    low = cv2.resize(high, (480, 270), interpolation=cv2.INTER_AREA).astype(np.uint8)
    for right, down in ((0, 0), (-2, 1), (3, -3)):
        assert whole_shift(low, np.roll(high, (down, right), (0, 1))) == (right, down)
