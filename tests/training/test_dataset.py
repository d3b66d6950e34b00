"""Frames on disk: what is paired, what is reported and left out."""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from training import dataset
from training.dataset import HEIGHTS, SIZES, Problem, check, find_pairs, read_png, split_folders
from training.errors import DataError

Pixels = NDArray[np.uint8]

#: Cheap, and a frame that has no shift.
BLACK = np.zeros((1080, 1920, 3), np.uint8)


def texture(seed: int, side: int = 64) -> Pixels:
    """Smooth noise with detail enough to be aligned by, uint8 BGR 1920x1080."""
    dice = np.random.default_rng(seed)
    small = dice.integers(0, 256, (1080 // side * 4, 1920 // side * 4, 3), np.uint8)
    return cv2.resize(small, (1920, 1080), interpolation=cv2.INTER_CUBIC).astype(np.uint8)


def put(root: Path, split: str, name: str, high: Pixels, *, moved: int = 0) -> None:
    """Write one frame at all sizes and its line in the manifest; LR moved by HR pixels."""
    folder = root / "GameEngineData"
    sums = {}
    for height in HEIGHTS:
        picture = high if height == 1080 else np.roll(high, moved, axis=1)
        picture = cv2.resize(picture, SIZES[height], interpolation=cv2.INTER_AREA).astype(np.uint8)
        path = folder / f"{height}p" / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        sums[f"{height}p"] = hashlib.sha256(path.read_bytes()).hexdigest()
    with (folder / "manifest.jsonl").open("a") as file:
        file.write(json.dumps({"name": name, "split": split, "sha256": sums}) + "\n")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for frame in range(3):
        put(root, "train", f"doom_map01_{frame:04}", BLACK if frame else texture(frame))
    put(root, "val", "doom_map02_0000", BLACK)
    put(root, "train", "quake_dm1_0000", BLACK)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    for path in pristine.rglob("*.*"):
        copy = tmp_path / path.relative_to(pristine)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path


def low(root: Path, name: str, height: int = 270, split: str = "train") -> Path:
    return root / "GameEngineData" / f"{height}p" / split / f"{name}.png"


def names(root: Path, split: str = "train", **more: object) -> tuple[list[str], list[Problem]]:
    pairs, problems = find_pairs(root, "GameEngineData", split, low=270, high=1080, **more)  # type: ignore[arg-type]
    return [pair.name for pair in pairs], problems


ALL = ["doom_map01_0000", "doom_map01_0001", "doom_map01_0002", "quake_dm1_0000"]


def test_pairs_are_found_by_name(pristine: Path) -> None:
    pairs, problems = find_pairs(pristine, low=360, high=1080)
    assert [pair.name for pair in pairs] == ALL
    assert problems == []
    assert (pairs[1].game, pairs[1].episode, pairs[1].frame) == ("doom", "map01", 1)
    assert (pairs[1].low, pairs[1].high) == (
        low(pristine, ALL[1], 360),
        low(pristine, ALL[1], 1080),
    )
    assert names(pristine, "val") == (["doom_map02_0000"], [])
    assert names(pristine, games={"quake"}) == (["quake_dm1_0000"], [])


def test_nothing_is_wrong_with_good_data(pristine: Path) -> None:
    assert check(pristine, "GameEngineData", thorough=True) == []


def test_downscaled_frames_find_their_source(root: Path) -> None:
    folder = root / "DownscaleData" / "270p" / "train"
    folder.mkdir(parents=True)
    (folder / f"{ALL[3]}.png").write_bytes(low(root, ALL[3]).read_bytes())
    pairs, problems = find_pairs(root, "DownscaleData", low=270, high=1080, games=["quake"])
    assert [(p.low.parts[-4], p.high) for p in pairs] == [
        ("DownscaleData", low(root, ALL[3], 1080))
    ]
    assert problems == []
    assert check(root, "DownscaleData", thorough=False) == []
    (root / "DownscaleData" / "360p" / "train").mkdir(parents=True)
    (root / "DownscaleData" / "1080p" / "train").mkdir(parents=True)
    assert check(root, "DownscaleData", thorough=False) == []
    low(root, ALL[3], 1080).unlink()
    assert [p.name for p in check(root, "DownscaleData", thorough=False)] == [ALL[3]]
    with pytest.raises(DataError, match="no pairs of 270p and 540p in DownscaleData"):
        find_pairs(root, "DownscaleData", low=270, high=540)


def test_frames_of_another_source_are_not_paired(root: Path) -> None:
    """HR was collected anew since LR was degraded from it."""
    folder = root / "DownscaleData"
    (folder / "270p" / "train").mkdir(parents=True)
    lines = []
    for name, high in ((ALL[0], ALL[0]), (ALL[3], ALL[0])):
        (folder / "270p" / "train" / f"{name}.png").write_bytes(low(root, name).read_bytes())
        digest = hashlib.sha256(low(root, high, 1080).read_bytes()).hexdigest()
        lines.append(json.dumps({"name": name, "source_sha256": digest}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))
    pairs, problems = find_pairs(root, "DownscaleData", low=270, high=1080)
    assert [pair.name for pair in pairs] == [ALL[0]]
    assert [(p.name, "from another picture" in p.what) for p in problems] == [(ALL[3], True)]
    assert [p.name for p in check(root, "DownscaleData", thorough=False)] == [ALL[3]]
    (root / "GameEngineData" / "manifest.jsonl").unlink()  # nothing is known of the source
    assert check(root, "DownscaleData", thorough=False) == []
    (problem,) = check(root, "DownscaleData", thorough=True)
    assert (problem.name, "sha256" in problem.what) == (ALL[3], True)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def shrink(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((270, 479, 3), np.uint8))


def grey(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((270, 480), np.uint8))


def text(path: Path) -> None:
    path.write_text("no picture, but long enough to be read as a header")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "twin .*0001.png is missing"),
        (truncate, "truncated"),
        (shrink, "479x270, must be 480x270"),
        (grey, "8-bit grey"),
        (text, "not a PNG"),
    ],
)
def test_a_bad_frame_is_reported_and_skipped(root: Path, damage: object, message: str) -> None:
    damage(low(root, ALL[1]))  # type: ignore[operator]
    found, problems = names(root)
    assert found == [ALL[0], *ALL[2:]]
    assert [problem.name for problem in problems] == [ALL[1]]
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problems[0].what)
    checked = check(root, "GameEngineData", thorough=False)
    assert [problem.name for problem in checked] == [ALL[1]]


def test_a_missing_high_frame_is_reported(root: Path) -> None:
    low(root, ALL[0], 1080).unlink()
    found, problems = names(root)
    assert found == ALL[1:]
    assert "1080p/train/doom_map01_0000.png is missing" in problems[0].what.replace("\\", "/")


def test_a_sequence_in_two_splits_is_a_leak(root: Path) -> None:
    put(root, "val", "doom_map01_0009", BLACK)
    found, problems = names(root)
    assert found == ["quake_dm1_0000"]
    assert [(p.name, "train and val" in p.what) for p in problems] == [("doom_map01", True)]
    assert names(root, "val")[0] == ["doom_map02_0000"]
    assert [p.name for p in check(root, "GameEngineData", thorough=False)] == ["doom_map01"]


def test_a_leak_between_the_kinds_counts_too(root: Path) -> None:
    folder = root / "DownscaleData" / "270p" / "train"
    folder.mkdir(parents=True)
    (folder / "doom_map02_0000.png").write_bytes(low(root, ALL[0]).read_bytes())
    assert [problem.name for problem in names(root, "val")[1]] == ["doom_map02"]


def test_the_manifest_must_know_the_frame_and_its_split(root: Path) -> None:
    path = root / "GameEngineData" / "manifest.jsonl"
    lines = path.read_text().splitlines()
    lines[0] = lines[0].replace('"split": "train"', '"split": "test"')
    path.write_text("\n".join([lines[0], "{broken", "[1]", *lines[2:]]))
    found, problems = names(root)
    assert found == ALL[2:]
    assert [problem.name for problem in problems] == ["manifest.jsonl"] * 2 + ALL[:2]
    assert "line 2" in problems[0].what
    assert "belongs into 'test'" in problems[2].what
    assert "not in manifest.jsonl" in problems[3].what
    path.unlink()
    assert names(root) == (ALL, [])


def test_a_name_without_its_parts_is_reported(root: Path) -> None:
    for height in (270, 1080):
        low(root, ALL[0], height).rename(low(root, "doom_a_b_0000", height))
    found, problems = names(root)
    assert found == ALL[1:]
    assert [problem.name for problem in problems] == ["doom_a_b_0000"]


def test_changed_pixels_are_found_thoroughly(root: Path) -> None:
    path = low(root, ALL[2], 540)
    cv2.imwrite(str(path), read_png(path) + 1)
    assert check(root, "GameEngineData", thorough=False) == []
    (problem,) = check(root, "GameEngineData", thorough=True)
    assert (problem.name, problem.path) == (ALL[2], path)
    assert "sha256" in problem.what


def test_a_damaged_chunk_is_found_thoroughly(root: Path) -> None:
    path = low(root, ALL[2], 540)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (root / "GameEngineData" / "manifest.jsonl").unlink()
    assert check(root, "GameEngineData", thorough=False) == []
    (problem,) = check(root, "GameEngineData", thorough=True)
    assert "checksum" in problem.what


def test_a_shifted_sequence_is_found_thoroughly(root: Path) -> None:
    put(root, "train", "stk_hacienda_0000", texture(20), moved=2)
    assert check(root, "GameEngineData", thorough=False) == []
    problems = check(root, "GameEngineData", thorough=True)
    assert [problem.name for problem in problems] == ["stk_hacienda"] * 3
    assert all("-2.0" in problem.what for problem in problems)


@pytest.mark.parametrize(("recorded", "count"), [([-1.0, 0.0], 0), ([1.0, 0.0], 1), ("x", 1)])
def test_a_shift_that_collecting_found_is_no_news(
    tmp_path: Path, recorded: object, count: int
) -> None:
    put(tmp_path, "test", "doom_map01_0000", texture(20), moved=1)
    path = tmp_path / "GameEngineData" / "manifest.jsonl"
    entry = json.loads(path.read_text())
    for height in (360, 540):
        (tmp_path / "GameEngineData" / f"{height}p" / "test" / "doom_map01_0000.png").unlink()
        (tmp_path / "GameEngineData" / f"{height}p" / "test").rmdir()
        (tmp_path / "GameEngineData" / f"{height}p").rmdir()
    entry["alignment"] = {"270p->1080p": {"shift_px": recorded}}
    path.write_text(json.dumps(entry))
    assert len(check(tmp_path, "GameEngineData", thorough=True)) == count


@pytest.mark.parametrize("height", [270, 540])
def test_the_shift_is_measured_in_high_pixels(height: int) -> None:
    high = texture(3)
    down = cv2.resize(high, SIZES[height], interpolation=cv2.INTER_AREA).astype(np.uint8)
    moved = np.roll(high, (3, -1), (0, 1))
    assert dataset.shift(down, high) == pytest.approx((0, 0), abs=0.05)
    assert dataset.shift(down, moved) == pytest.approx((-1, 3), abs=0.1)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    end = chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + end)
    with pytest.raises(DataError, match="60000x60000, larger than 8192x8192"):
        read_png(path)


def test_reading_a_frame(tmp_path: Path, pristine: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.png"):
        read_png(tmp_path / "none.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(low(pristine, ALL[0]).read_bytes()[:-12])
    with pytest.raises(DataError, match="truncated"):
        read_png(cut)
    picture = np.zeros((4, 5, 3), np.uint8)
    picture[..., 0] = 200  # blue
    cv2.imwrite(str(tmp_path / "blue.png"), picture)
    assert np.array_equal(read_png(tmp_path / "blue.png"), picture)


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    cv2.imwrite(str(path), np.zeros((4, 5, 3), np.uint8))
    monkeypatch.setattr(dataset, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(DataError, match=r"large\.png is larger than"):
        read_png(path)


def test_a_large_shift_is_not_believed(tmp_path: Path) -> None:
    entry = {"alignment": {"270p->1080p": {"shift_px": [-2.0, 0.0]}}}
    assert dataset._recorded_shift(entry, 270) == (0, 0)
    entry["alignment"]["270p->1080p"]["shift_px"] = [-1.5, 10**400]
    assert dataset._recorded_shift(entry, 270) == (0, 0)


def test_folders_are_paired_by_name(tmp_path: Path) -> None:
    for folder, name, size in [
        ("lr", "a", (8, 6)), ("hr", "a", (32, 24)),
        ("lr", "doom_map01_0003", (8, 6)), ("hr", "doom_map01_0003", (16, 12)),
        ("lr", "odd", (8, 6)), ("hr", "odd", (32, 23)),
        ("hr", "alone", (32, 24)),
    ]:  # fmt: skip
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / f"{name}.png"
        cv2.imwrite(str(path), np.zeros((size[1], size[0], 3), np.uint8))
    pairs, problems = split_folders(tmp_path / "lr", tmp_path / "hr")
    assert [(p.name, p.game, p.episode, p.frame) for p in pairs] == [
        ("a", "", "", 0), ("doom_map01_0003", "doom", "map01", 3),
    ]  # fmt: skip
    assert [p.name for p in problems] == ["alone", "odd"]
    assert "no whole multiple" in problems[1].what
    with pytest.raises(DataError, match="cannot read the frames in"):
        split_folders(tmp_path / "lr", tmp_path / "none")


def test_the_command_says_what_it_found(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    dataset.add_command(parser.add_subparsers())
    arguments = parser.parse_args(["check", str(root)])
    assert arguments.data_run(arguments) == 0
    out = capsys.readouterr().out
    assert "GameEngineData 270p: train 4, val 1" in out
    assert out.endswith("no problems\n")
    truncate(low(root, ALL[1]))
    assert arguments.data_run(arguments) == 1
    assert f"{ALL[1]}: {low(root, ALL[1])} is truncated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "Other"}, "no such data: Other"),
        ({"split": "test"}, "no frames in .*test"),
        ({"low": 1080, "high": 270}, "no pairs of 1080p and 270p"),
        ({"low": 100}, "100p"),
    ],
)
def test_arguments_that_make_no_pair(
    pristine: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        find_pairs(pristine, **({"low": 270, "high": 1080} | change))  # type: ignore[arg-type]
