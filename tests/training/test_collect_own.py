"""Taking in the user's own pictures and videos, and SRGD."""

from __future__ import annotations

import io
import shutil
import struct
import sys
import tarfile
import zlib
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from training import cli
from training.collect.own import part_of_name
from training.dataset import check, find_pairs, read_manifest, read_png


@cache
def picture(number: int, height: int = 1080) -> np.ndarray:
    """Discs of all sizes, another picture for each number: uint8 BGR, 16:9."""
    dice = np.random.default_rng(number)
    pixels = np.full((1080, 1920, 3), 90, np.uint8)
    for radius in np.linspace(120, 4, 250):
        centre = (int(dice.integers(1920)), int(dice.integers(1080)))
        colour = [int(value) for value in dice.integers(0, 256, 3)]
        cv2.circle(pixels, centre, int(radius), colour, -1, cv2.LINE_AA)
    way = cv2.INTER_AREA if height < 1080 else cv2.INTER_CUBIC
    return cv2.resize(pixels, (height * 16 // 9, height), interpolation=way)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return path


def test_native_copies_become_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "My Game", tmp_path / "data"
    for number in range(3):
        for height in (270, 1080):
            save(source / f"{height}p" / f"shot {number}.png", picture(number, height))
    command = ["from-folder", str(source), "--out", str(out), "--licence", "mine"]
    assert cli.main([*command, "--split", "val"]) == 0
    pairs, problems = find_pairs(out, split="val", low=270, high=1080)
    assert not problems
    assert [pair.name for pair in pairs] == [f"own_my-game_{n:04d}" for n in range(3)]
    assert (read_png(pairs[1].high) == picture(1)).all()
    assert read_manifest(out / "GameEngineData")[0]["own_my-game_0001"]["licence"] == "mine"
    capsys.readouterr()
    assert cli.main([*command, "--split", "val"]) == 0
    assert "there, 3 frames" in capsys.readouterr().out


def test_shifted_copies_are_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        save(tmp_path / "src/270p" / f"{number}.png", picture(number, 270))
        save(tmp_path / "src/1080p" / f"{number}.png", np.roll(picture(number), 3, 1))
    command = ["from-folder", str(tmp_path / "src"), "--out", str(tmp_path)]
    assert cli.main(command) == 1
    assert "shifted by +3 right" in capsys.readouterr().out
    assert not list((tmp_path / "GameEngineData").rglob("*.png"))


def test_a_folder_that_changed_is_taken_in_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "shots", tmp_path / "data"
    save(tmp_path / "b.png", picture(2))
    save(source / "a.png", picture(1))
    command = ["from-folder", str(source), "--out", str(out), "--frames"]
    assert cli.main([*command, "2"]) == 0
    if sys.platform == "win32":  # where symbolic links need a right
        shutil.copyfile(tmp_path / "b.png", source / "b.png")
    else:
        (source / "b.png").symlink_to("../b.png")
    assert cli.main([*command, "1"]) == 0
    assert "there, 1 frames" in capsys.readouterr().out
    assert cli.main([*command, "2"]) == 0
    folder = out / "DownscaleData/1080p/train"
    assert [path.name for path in sorted(folder.iterdir())] == [
        "own_shots_0000.png",
        "own_shots_0001.png",
    ]
    assert not (folder / "own_shots_0001.png").is_symlink()
    assert (read_png(folder / "own_shots_0001.png") == picture(2)).all()
    with pytest.raises(SystemExit):
        cli.main([*command, "0"])
    assert "'0' is no number above 0" in capsys.readouterr().err


def test_high_resolution_alone_waits_for_degrade(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "shots", tmp_path / "data"
    save(source / "a.png", picture(1))
    save(source / "b.png", picture(2, 1440))
    save(source / "c.png", picture(3, 720))
    (source / "d.png").write_bytes(b"no picture")
    assert cli.main(["from-folder", str(source), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "overlay data degrade" in said.out
    assert "c.png: left out" in said.err
    assert "1280x720; HR must be 1920x1080" in said.err
    assert "d.png is not a PNG" in said.err
    folder = out / "DownscaleData/1080p/train"
    assert [path.name for path in sorted(folder.iterdir())] == [
        "own_shots_0000.png",
        "own_shots_0001.png",
    ]
    assert read_png(folder / "own_shots_0001.png").shape == (1080, 1920, 3)


def test_a_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    assert cli.main(["from-folder", str(tmp_path), "--out", str(tmp_path / "data")]) == 1
    assert "60000x60000, larger than" in capsys.readouterr().err


def test_nothing_to_take_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["from-folder", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "no PNG in" in capsys.readouterr().err
    assert cli.main(["from-video", str(tmp_path / "x.mp4"), "--out", str(tmp_path)]) == 1
    assert "no video" in capsys.readouterr().err
    (tmp_path / "y.mp4").write_bytes(b"nothing of the kind")
    assert cli.main(["from-video", str(tmp_path / "y.mp4"), "--out", str(tmp_path)]) == 1
    assert "cannot be read as a video" in capsys.readouterr().err
    assert cli.main(["srgd", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "no SRGD in" in capsys.readouterr().err
    with pytest.raises(Exception, match="no letter or digit"):
        part_of_name("__")


def test_every_nth_frame_of_a_video(tmp_path: Path) -> None:
    path = str(tmp_path / "play.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 30, (1920, 1080))
    assert writer.isOpened()
    pictures = [picture(number) for number in range(5)]
    for pixels in pictures:
        writer.write(pixels)
    writer.release()
    command = ["from-video", path, "--every", "2", "--out", str(tmp_path), "--game", "Quake III"]
    assert cli.main(command) == 0
    files = sorted((tmp_path / "DownscaleData/1080p/train").iterdir())
    assert [file.name for file in files] == [f"quake-iii_play_000{n}.png" for n in range(3)]
    for file, number in zip(files, (0, 2, 4), strict=True):
        assert cv2.PSNR(read_png(file), pictures[number]) > 25


def test_srgd_is_taken_in_by_project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both of its layouts; its frames of one shot are in both splits, here a project is in one."""
    source, out = tmp_path / "srgd", tmp_path / "data"
    for number, split in enumerate(("train", "val", "train")):
        for height in (270, 1080):
            name = f"SunTemple_shot.{number:04d}.png"
            save(source / f"GameEngineData/{height}p/{split}/{name}", picture(number, height))
    for height in (270, 1080):
        archive = source / f"data/GameEngineData/CitySample/train-{height}p.tar.gz"
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "w:gz") as tar:
            text = tarfile.TarInfo("broken.png")
            text.size = 5
            tar.addfile(text, io.BytesIO(b"hello"))
            for number in range(2):
                data = cv2.imencode(".png", picture(number + 7, height))[1].tobytes()
                for name in (f"x.{number}.png", "../evil.png"):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (source / "GameEngineData/270p/train/SunTemple_shot.0009.png").write_bytes(b"half")
    assert cli.main(["srgd", str(source), "--out", str(out), "--val", "SunTemple"]) == 0
    said = capsys.readouterr().err
    assert "SunTemple_shot.0009.png: left out" in said
    assert "broken.png: left out" in said
    pairs, problems = find_pairs(out, split="val", low=270, high=1080)
    assert not problems
    assert [pair.name for pair in pairs] == [f"suntemple_srgd_{n:04d}" for n in range(3)]
    pairs, _ = find_pairs(out, split="train", low=270, high=1080)
    assert {pair.game for pair in pairs} == {"citysample"}
    assert not list(tmp_path.rglob("evil.png"))
    assert not check(out, "GameEngineData", thorough=False)
