"""DownscaleData written: equal bytes however it is run, and what was left out."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from filelock import FileLock

from training import degrade as package
from training.dataset import check, find_pairs, read_png
from training.degrade.folder import degrade
from training.degrade.steps import apply, from_bytes, recipe_from_json, rounded
from training.errors import DataError

NAMES = ["doom_map01_0000", "doom_map01_0001", "quake_dm1_0000"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1080p frames of two splits, with a manifest."""
    root = tmp_path_factory.mktemp("source") / "GameEngineData"
    dice = np.random.default_rng(0)
    for split, names in (("train", NAMES[:2]), ("val", NAMES[2:])):
        folder = root / "1080p" / split
        folder.mkdir(parents=True)
        for name in names:
            small = dice.integers(0, 256, (54, 96, 3), np.uint8)
            picture = cv2.resize(small, (1920, 1080), interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(str(folder / f"{name}.png"), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    lines = [json.dumps({"name": name, "licence": "BSD-3-Clause"}) for name in NAMES]
    (root / "manifest.jsonl").write_text("\n".join(lines))
    return root / "1080p"


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in (root / "DownscaleData").rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): path.read_bytes() for path in files if path.name != ".lock"
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    root = tmp_path_factory.mktemp("made")
    assert degrade(root, "srgd-270p", 270, seed=4, source=source) == (3, [])
    return root


def test_bytes_do_not_depend_on_the_number_of_jobs(
    made: Path, source: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    degrade(
        tmp_path, "srgd-270p", 270, seed=4, jobs=2, source=source,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert contents(tmp_path) == contents(made)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert sorted(contents(made)) == [
        str(Path("DownscaleData", folder, split, f"{name}.png"))
        for folder in ("1080p", "270p")
        for split, name in zip(("train", "train", "val"), NAMES, strict=True)
    ] + [str(Path("DownscaleData", "manifest.jsonl"))]


def test_the_manifest_makes_the_frame_again(made: Path, source: Path) -> None:
    lines = (made / "DownscaleData" / "manifest.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["name"] for entry in entries] == NAMES
    entry = entries[2]
    assert (entry["game"], entry["episode"], entry["frame"]) == ("quake", "dm1", 0)
    assert (entry["split"], entry["licence"]) == ("val", "BSD-3-Clause")
    degraded = entry["degraded"]["270p"]
    assert degraded["seed"] == 4
    recipe = recipe_from_json(degraded["recipe"])
    high, low = (
        source / "val" / f"{NAMES[2]}.png",
        made / "DownscaleData/270p/val/quake_dm1_0000.png",
    )
    assert np.array_equal(rounded(apply(from_bytes(read_png(high)), recipe)), read_png(low))
    assert entry["sha256"]["270p"] == hashlib.sha256(low.read_bytes()).hexdigest()
    assert entry["source_sha256"] == hashlib.sha256(high.read_bytes()).hexdigest()
    recipes = [entry["degraded"]["270p"]["recipe"] for entry in entries]
    assert recipes[0] != recipes[1] != recipes[2]


def test_the_pairs_are_good(made: Path) -> None:
    pairs, problems = find_pairs(made, "DownscaleData", low=270, high=1080)
    assert [pair.name for pair in pairs] == NAMES[:2]
    assert problems == []
    assert check(made, "DownscaleData", thorough=False) == []


def test_a_killed_run_goes_on(made: Path, source: Path, tmp_path: Path) -> None:
    degrade(tmp_path, "srgd-270p", 270, seed=4, source=source)
    whole = contents(tmp_path)
    manifest = tmp_path / "DownscaleData" / "manifest.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text(lines[0] + lines[1] + lines[2][:50])  # killed while it wrote the third
    damaged = tmp_path / "DownscaleData" / "270p" / "train" / f"{NAMES[1]}.png"
    damaged.write_bytes(b"half a file")
    for folder in (damaged.parent, manifest.parent, manifest.parent / "1080p" / "train"):
        (folder / ".draft-abc").write_bytes(b"less")
    written, problems = degrade(tmp_path, "srgd-270p", 270, seed=4, source=source)
    assert written == 2
    assert [problem.name for problem in problems] == ["manifest.jsonl"]
    assert contents(tmp_path) == whole
    assert degrade(tmp_path, "srgd-270p", 270, seed=4, source=source) == (0, [])


def test_sizes_share_a_manifest_and_other_seeds_replace(source: Path, tmp_path: Path) -> None:
    only = {"source": source, "splits": ["val"]}
    degrade(tmp_path, "render", 270, **only)  # type: ignore[arg-type]
    degrade(tmp_path, "render", 540, **only)  # type: ignore[arg-type]
    manifest = tmp_path / "DownscaleData" / "manifest.jsonl"
    entry = json.loads(manifest.read_text())
    assert sorted(entry["sha256"]) == sorted(entry["degraded"]) == ["270p", "540p"]
    assert degrade(tmp_path, "render", 270, seed=1, **only) == (1, [])  # type: ignore[arg-type]
    again = json.loads(manifest.read_text())
    assert again["sha256"]["540p"] == entry["sha256"]["540p"]
    assert again["sha256"]["270p"] != entry["sha256"]["270p"]


def test_another_source_or_split_is_degraded_anew(source: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    target = given / "val" / f"{NAMES[2]}.png"
    target.parent.mkdir(parents=True)
    target.write_bytes((source / "val" / target.name).read_bytes())
    assert degrade(tmp_path, "render", 270, source=given) == (1, [])
    assert degrade(tmp_path, "render", 540, source=given) == (1, [])
    target.write_bytes((source / "train" / f"{NAMES[0]}.png").read_bytes())
    assert degrade(tmp_path, "render", 270, source=given) == (1, [])
    manifest = tmp_path / "DownscaleData" / "manifest.jsonl"
    entry = json.loads(manifest.read_text())
    assert sorted(entry["sha256"]) == sorted(entry["degraded"]) == ["270p"]  # 540p is of the other
    manifest.write_text(json.dumps(entry | {"split": "train"}) + "\n")
    assert degrade(tmp_path, "render", 270, source=given) == (1, [])
    assert json.loads(manifest.read_text())["split"] == "val"


def test_what_is_known_of_a_source_stays(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "DownscaleData"
    target = folder / "1080p" / "val" / f"{NAMES[2]}.png"
    target.parent.mkdir(parents=True)
    target.write_bytes((source / "val" / target.name).read_bytes())
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    entry = {"name": NAMES[2], "licence": "mine", "tick": 7, "sha256": {"1080p": digest}}
    entry["degraded"] = ["by hand, and wrong"]
    (folder / "manifest.jsonl").write_text(json.dumps(entry) + "\n")
    assert degrade(tmp_path, "render", 540) == (1, [])
    found = json.loads((folder / "manifest.jsonl").read_text())
    assert (found["licence"], found["tick"], found["sha256"]["1080p"]) == ("mine", 7, digest)
    assert sorted(found["sha256"]) == ["1080p", "540p"]
    assert check(tmp_path, "DownscaleData", thorough=True) == []


def test_bad_sources_are_reported_and_left_out(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "GameEngineData" / "1080p" / "train"
    folder.mkdir(parents=True)
    good = (source / "train" / f"{NAMES[0]}.png").read_bytes()
    (folder / f"{NAMES[0]}.png").write_bytes(good)
    (folder / "doom_map01_0007.png").write_bytes(good[:-100])
    (folder / "unnamed.png").write_bytes(good)
    cv2.imwrite(str(folder / "doom_map01_0008.png"), np.zeros((720, 1280, 3), np.uint8))
    written, problems = degrade(tmp_path, "render", 270)
    assert written == 1
    assert [problem.name for problem in problems] == [
        "doom_map01_0007", "doom_map01_0008", "unnamed",
    ]  # fmt: skip
    whats = [problem.what for problem in problems]
    assert ["truncated" in whats[0], "1280x720" in whats[1], "not named" in whats[2]] == [True] * 3
    assert not (tmp_path / "DownscaleData" / "1080p").exists()
    pairs, _ = find_pairs(tmp_path, "DownscaleData", low=270, high=1080)
    assert [pair.high for pair in pairs] == [folder / f"{NAMES[0]}.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a right there")
def test_a_source_behind_a_symbolic_link(source: Path, tmp_path: Path) -> None:
    given = tmp_path / "given" / "val"
    given.mkdir(parents=True)
    name = f"{NAMES[2]}.png"
    (tmp_path / name).write_bytes((source / "val" / name).read_bytes())
    (given / name).symlink_to(f"../../{name}")
    assert degrade(tmp_path / "data", "render", 540, source=given.parent) == (1, [])
    linked = tmp_path / "data" / "DownscaleData" / "1080p" / "val" / name
    assert not linked.is_symlink()
    assert linked.read_bytes() == (source / "val" / name).read_bytes()


def test_what_cannot_start(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no frames in .*1080p"):
        degrade(tmp_path, "render", 270)
    with pytest.raises(DataError, match="no size 1080p"):
        degrade(tmp_path, "render", 1080, source=source)
    with pytest.raises(DataError, match="no preset"):
        degrade(tmp_path, "nothing", 270, source=source)
    assert not (tmp_path / "DownscaleData").exists()
    (tmp_path / "DownscaleData").mkdir()
    with (
        FileLock(tmp_path / "DownscaleData" / ".lock"),
        pytest.raises(DataError, match="another process is writing"),
    ):
        degrade(tmp_path, "render", 270, source=source)


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    package.add_command(parser.add_subparsers())
    line = f"degrade --root {tmp_path} --preset render --low 540 --split val --jobs 1"
    arguments = parser.parse_args([*line.split(), "--source", str(source)])
    assert arguments.data_run(arguments) == 0
    assert capsys.readouterr().out == "1 frames written, 0 problems\n"
    assert (tmp_path / "DownscaleData" / "540p" / "val" / f"{NAMES[2]}.png").is_file()
