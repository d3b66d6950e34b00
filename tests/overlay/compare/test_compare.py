"""`overlay compare`: figures, sizes, pairs, pictures, exit codes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from evaluation.metrics import open_metric
from overlay.cli import main
from overlay.compare import measure, pairs, sheet
from overlay.errors import SettingsError
from overlay.trace import atomic

FREEDOOM = Path(__file__).parents[2] / "data" / "freedoom"
LOW, HIGH = (min(FREEDOOM.glob(f"*-x4-{size}.png")) for size in ("lr", "hr"))


def save(path: Path, pixels: Any, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    (image.convert(mode) if mode else image).save(path)
    return path


def noise(width: int, height: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def compare(*arguments: object) -> int:
    return main(["compare", *map(str, arguments)])


def figures(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    assert compare(*arguments, "--json") == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    found: list[dict[str, Any]] = pair["figures"]
    return found


def pixels(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# --- figures -------------------------------------------------------------------------------------


def test_figures_are_those_of_the_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = pixels(HIGH)
    large = cv2.resize(pixels(LOW), truth.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    a, b = save(tmp_path / "a.png", large), save(tmp_path / "b.png", 255 - truth)
    one, other = figures(capsys, a, b, "--reference", HIGH)
    for found, picture in ((one, large), (other, 255 - truth)):
        assert found["psnr_db"] == pytest.approx(open_metric("psnr")(picture, truth), abs=1e-3)
        assert found["ssim"] == pytest.approx(open_metric("ssim")(picture, truth), abs=1e-5)
    assert (one["picture"], one["against"]) == ("a", "reference")
    assert one["ssim"] > 0.5 > other["ssim"]
    (plain,) = figures(capsys, a, HIGH)
    assert {**plain, "against": "reference"} == one


def test_squares_give_what_the_whole_picture_gives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    a, b = save(tmp_path / "a.png", noise(150, 70)), save(tmp_path / "b.png", noise(150, 70, 1))
    pair = pairs.Pair("p", (a, b), ("a", "b"))
    whole = measure.compare(pair, "nearest")
    monkeypatch.setattr(measure, "_SQUARE", 16)
    parts = measure.compare(pair, "nearest")
    before, after = whole.figures[0, 1], parts.figures[0, 1]
    assert after.ssim == pytest.approx(before.ssim, abs=1e-7)
    assert after.psnr == pytest.approx(before.psnr)
    assert (after.histogram == before.histogram).all()
    assert before.histogram.sum() == 150 * 70
    maps = [measure.heat(*each.layers, 64) for each in (whole, parts)]
    assert (maps[0] == maps[1]).all()


def test_differences_in_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = np.full((12, 20, 3), 100, np.uint8)
    b = a.copy()
    b[0, :12] = (100, 97, 110)  # 12 of 240 pixels
    (found,) = figures(capsys, save(tmp_path / "a.png", a), save(tmp_path / "b.png", b))
    assert found["largest_difference"] == 10
    assert found["mean_difference"] == pytest.approx(13 * 12 / 720, abs=1e-4)
    assert found["different"] == 0.05
    assert found["psnr_db"] == pytest.approx(10 * np.log10(255**2 * 720 / (12 * 109)), abs=1e-3)


def test_equal_and_tiny_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = save(tmp_path / "a.png", noise(10, 30))
    b = save(tmp_path / "b.bmp", noise(10, 30))
    assert compare(a, b) == 0
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[-4:] == ["equal", "-", "0.00", "0"], "SSIM needs windows of 11 pixels"
    (found,) = figures(capsys, a, b)
    assert (found["psnr_db"], found["ssim"]) == (100, None)


def test_grey_depths_and_alpha_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    level = np.linspace(0, 255, 15 * 12).astype(np.uint8).reshape(12, 15)
    grey = save(tmp_path / "grey.png", level)
    colour = save(tmp_path / "colour.png", level, "RGB")
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), np.repeat(level[..., None], 3, 2).astype(np.uint16) * 257)
    opaque = save(tmp_path / "opaque.png", level, "RGBA")
    for other in (colour, deep, opaque):
        assert figures(capsys, grey, other)[0]["largest_difference"] == 0, other
    cv2.imwrite(str(deep), np.repeat(level[..., None], 3, 2).astype(np.uint16) * 257 // 2)
    finer = figures(capsys, grey, deep)[0]["mean_difference"]
    wide = level.astype(int)
    assert finer == pytest.approx(np.mean(wide - wide * 257 // 2 / 257), abs=1e-3)
    faint = np.dstack([level, level, level, np.full_like(level, 0)])
    clear = save(tmp_path / "clear.png", faint)
    assert compare(clear, grey, "--json") == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert pair["pictures"][0]["notes"] == ["transparent, laid over grey 128"]
    want = np.abs(level.astype(float) - 128)
    assert pair["figures"][0]["mean_difference"] == pytest.approx(want.mean(), abs=1e-3)
    assert pair["figures"][0]["largest_difference"] == 128


def test_a_level_of_sixteen_bits_is_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.arange(20 * 14 * 3, dtype=np.uint16).reshape(14, 20, 3) * 60
    cv2.imwrite(str(tmp_path / "a.png"), values)
    cv2.imwrite(str(tmp_path / "b.tif"), values + 1)
    (found,) = figures(capsys, tmp_path / "a.png", tmp_path / "b.tif")
    assert found["largest_difference"] == pytest.approx(1 / 257, abs=1e-4)
    assert found["different"] == 1
    assert 96 < found["psnr_db"] < 97


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_smaller_is_enlarged(
    tmp_path: Path, order: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    small = noise(20, 12)
    files = [
        save(tmp_path / "small.png", small),
        save(tmp_path / "large.png", small.repeat(3, 0).repeat(3, 1)),
    ]
    files = [files[index] for index in order]
    assert compare(*files, "--json") == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert pair["size"] == "60x36"
    notes = {Path(each["file"]).name: each["notes"] for each in pair["pictures"]}
    assert notes == {"small.png": ["enlarged to 60x36 (nearest)"], "large.png": []}
    assert pair["figures"][0]["largest_difference"] == 0
    assert figures(capsys, *files, "--enlarge", "bicubic")[0]["largest_difference"] > 10


def test_sizes_that_rounding_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """270 lines of 1083x1000, say, are 250 and not 249.3."""
    small = save(tmp_path / "small.png", noise(270, 250))
    large = save(tmp_path / "large.png", noise(1083, 1000))
    assert compare(small, large) == 0
    assert "enlarged to 1083x1000" in capsys.readouterr().out
    other = save(tmp_path / "other.png", noise(270, 240))
    assert compare(other, large) == 1
    assert "other.png is 270x240 and the largest is 1083x1000" in capsys.readouterr().err


def test_a_crop_is_in_pixels_of_the_largest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = noise(20, 12)
    large = small.repeat(2, 0).repeat(2, 1)
    large[20:, 30:] = 0
    files = save(tmp_path / "a.png", small), save(tmp_path / "b.png", large)
    assert figures(capsys, *files, "--crop", "0,0,30,24")[0]["largest_difference"] == 0
    assert figures(capsys, *files, "--crop", "28,0,12,24")[0]["largest_difference"] > 0
    assert compare(*files, "--crop", "30,0,11,5") == 2
    assert "--crop 30,0,11,5 is not within a.png and b.png, 40x24" in capsys.readouterr().err


# --- pictures ------------------------------------------------------------------------------------


def test_side_by_side(tmp_path: Path) -> None:
    a, b, r = (noise(330, 20, seed) for seed in range(3))
    files = [
        save(tmp_path / f"{name}.png", each) for name, each in zip("abr", (a, b, r), strict=True)
    ]
    assert compare(*files[:2], "--reference", files[2], "-o", tmp_path / "new" / "out.png") == 0
    found = pixels(tmp_path / "new" / "out.png")
    for number, picture in enumerate((a, b, r)):
        left = number * 338
        assert (found[-20:, left : left + 330] == picture).all()
    assert (found[-20:, 330:338] == found[0, 0]).all()
    head = found[:-20]
    for left in (0, 338, 676):  # words above each
        assert (head[:, left : left + 330].max(2) > 200).sum() > 30


def test_small_pictures_get_room_for_words(tmp_path: Path) -> None:
    a, b = noise(5, 4), noise(5, 4, 1)
    files = save(tmp_path / "a.png", a), save(tmp_path / "b.png", b)
    assert compare(*files, "-o", tmp_path / "out.png", "--zoom", 8) == 0
    found = pixels(tmp_path / "out.png")
    assert found.shape[1] == 2 * 320 + 8
    assert (found[-32:, 140:180] == a.repeat(8, 0).repeat(8, 1)).all()


@pytest.mark.parametrize(("at", "column"), [("25", 90), ("0", 0), ("100", 360)])
def test_a_wipe_has_both_halves(tmp_path: Path, at: str, column: int) -> None:
    a, b = noise(360, 10), noise(360, 10, 1)
    files = save(tmp_path / "a.png", a), save(tmp_path / "b.png", b)
    assert compare(*files, "-o", tmp_path / "w.png", "--mode", "wipe", "--at", at) == 0
    found = pixels(tmp_path / "w.png")[-10:]
    assert (found[:, : max(0, column - 2)] == a[:, : max(0, column - 2)]).all()
    assert (found[:, column + 2 :] == b[:, column + 2 :]).all()
    if 0 < column < 360:
        assert (found[:, column - 1 : column + 1] == 255).all()
        assert (found[:, [column - 2, column + 1 + 0]][:, 0] == 0).all()


def test_heat_maps_and_their_scale(tmp_path: Path) -> None:
    a = np.zeros((20, 400, 3), np.uint8)
    b = a.copy()
    b[:, 100:200, 1] = 32
    b[:, 200:300, 2] = 64
    b[:, 300:, 0] = 200
    files = save(tmp_path / "a.png", a), save(tmp_path / "b.png", b)
    out = ("-o", tmp_path / "heat.png", "--mode", "difference", "--overwrite")
    assert compare(*files, *out, "--levels", 64) == 0
    found = pixels(tmp_path / "heat.png")
    row = next(line for line in found if (line[300:400] == sheet.HEAT[255]).all())
    assert (row[:100] == sheet.HEAT[0]).all()
    assert (row[100:200] == sheet.HEAT[128]).all()
    assert (row[200:] == sheet.HEAT[255]).all()
    assert (found == sheet.HEAT[40]).all(2).any(), "the legend has the colours between"
    assert sheet.HEAT[0].max() < 10
    lightness = sheet.HEAT @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(lightness) > -1).all(), "brighter is more"


@pytest.mark.parametrize(
    ("difference", "share", "end", "beyond"),
    [(0, 1.0, 4, False), (3, 1.0, 4, False), (5, 1.0, 8, False), (200, 1.0, 255, False),
     (200, 0.0005, 4, True), (200, 0.002, 255, False)],
)  # fmt: skip
def test_where_the_scale_ends(
    tmp_path: Path, difference: int, share: float, end: int, beyond: bool
) -> None:
    a = np.zeros((100, 100, 3), np.uint8)
    b = a.copy()
    b.reshape(-1, 3)[: round(share * 10_000), 2] = difference
    files = save(tmp_path / "a.png", a), save(tmp_path / "b.png", b)
    found = measure.compare(pairs.Pair("p", files, ("a", "b")), "nearest")
    assert (found.end, found.beyond) == (end, beyond)
    assert sheet.scale_text(found, end) == (f"{end} or more" if beyond else str(end))


def test_long_names_are_cut_and_figures_are_not() -> None:
    font = sheet.ImageFont.load_default(14)
    text = "a-very-long-name-" * 20 + "end.png"
    cut = sheet._shortened(text, font, 300)
    assert font.getlength(cut) <= 300
    assert cut.startswith("a-very-long")
    assert cut.endswith("end.png")
    assert sheet._shortened("short", font, 300) == "short"
    figures = measure.Figures(23.456, 0.98765, 1, 2, 1, np.zeros(256, np.int64))
    assert font.getlength(sheet.figures_text(figures)) < sheet._LEAST - 2 * sheet._PAD


# --- folders -------------------------------------------------------------------------------------


def test_folders_are_paired_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, truth = (tmp_path / name for name in ("one", "two", "truth"))
    for name in ("a.png", "deep/b.png", "alone.png"):
        save(one / name, noise(16, 12))
    save(one / "c.png", noise(16, 12, 1))
    for name in ("a.png", "deep/b.bmp", "c.png"):
        save(two / name, noise(16, 12, 2))
    for name in ("a.png", "deep/b.png", "c.png"):
        save(truth / name, noise(16, 12))
    (one / "notes.txt").write_text("no picture")
    out = tmp_path / "all.html"
    assert compare(one, two, "--reference", truth, "-o", out, "--json") == 1
    told = capsys.readouterr()
    assert told.err.splitlines() == [f"overlay: {one / 'alone.png'} has no partner"]
    found = json.loads(told.out)
    assert [pair["name"] for pair in found["pairs"]] == ["a.png", "c.png", str(Path("deep/b.png"))]
    assert found["unpaired"] == [str(one / "alone.png")]
    assert found["pairs"][2]["pictures"][1]["file"] == str(two / "deep" / "b.bmp")
    first, second = found["means"]
    assert (first["picture"], second["picture"], first["against"]) == ("a", "b", "reference")
    each = [pair["figures"][0]["psnr_db"] for pair in found["pairs"]]
    assert first["psnr_db"] == pytest.approx(np.mean(each))
    assert out.read_text().count('type="application/json"') == 3
    assert "alone.png has no partner" in out.read_text()
    assert "mean of 3, b against reference" in out.read_text()
    (one / "alone.png").unlink()
    assert compare(one, two) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("one/a.png against two/a.png")
    assert lines[-1].startswith("mean of 3, a against b")


def test_doubtful_partners_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for name in ("a.png", "b.png", "b.bmp"):
        save(one / name, noise(8, 8))
    for name in ("a.png", "a.bmp", "b.gif"):
        save(two / name, noise(8, 8))
    assert compare(one, two, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [pair["name"] for pair in found["pairs"]] == ["a.png"]
    names = [Path(path).name for path in found["unpaired"]]
    assert sorted(names) == ["a.bmp", "b.bmp", "b.gif", "b.png"]


def test_what_fails_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        for name in ("bad.png", "good.png", "wide.png"):
            save(folder / name, noise(16, 12))
    (two / "bad.png").write_bytes(b"no picture")
    save(two / "wide.png", noise(99, 12))
    assert compare(one, two, "-o", tmp_path / "all.html", "--json") == 1
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert [pair["name"] for pair in found["pairs"]] == ["good.png"]
    assert [each["pair"] for each in found["failed"]] == ["bad.png", "wide.png"]
    assert len(told.err.splitlines()) == 2
    assert "bad.png is no picture" in (tmp_path / "all.html").read_text()
    for name in ("good.png", "wide.png"):
        (two / name).write_bytes(b"no picture")
    assert compare(one, two, "-o", tmp_path / "none.html") == 1
    assert not (tmp_path / "none.html").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux only")
def test_names_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        for name in ("bad\udcff.png", "good\udcff\x1b[31m.png", "alone\n.png"):
            save(folder / name, noise(16, 12))
    (one / "alone\n.png").unlink()
    (two / "bad\udcff.png").write_bytes(b"no picture")
    assert compare(one, two, "-o", tmp_path / "all.html") == 1
    told = capsys.readouterr()
    assert "good\ufffd\ufffd[31m.png against" in told.out
    assert "\x1b" not in told.out + told.err
    assert len(told.err.splitlines()) == 2
    assert "bad\ufffd.png is no picture" in (tmp_path / "all.html").read_text()
    good = "good\udcff\x1b[31m.png"
    assert compare(one / good, two / good, "-o", tmp_path / "side.png") == 0


def test_names_that_are_equal_get_their_folders(tmp_path: Path) -> None:
    assert pairs.labels([Path("x/a.png"), Path("y/b.png")]) == ("a.png", "b.png")
    assert pairs.labels([Path("x/a.png"), Path("y/a.png")]) == ("x/a.png", "y/a.png")
    same = tmp_path / "a.png"
    assert pairs.labels([same, same]) == (str(same), str(same))
    assert pairs.shown("a\x1b[31m\udcff.png") == "a\ufffd[31m\ufffd.png"


# --- what goes wrong -----------------------------------------------------------------------------


def test_what_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = save(tmp_path / "a.png", noise(16, 12)), save(tmp_path / "b.png", noise(16, 12))
    for name in ("out.png", "out.html"):
        out = tmp_path / name
        out.write_bytes(b"mine")
        assert compare(a, b, "-o", out) == 1
        assert "is there already: --overwrite" in capsys.readouterr().err
        assert out.read_bytes() == b"mine"
        assert compare(a, b, "-o", out, "--overwrite") == 0
        assert out.read_bytes() != b"mine"
    before = a.read_bytes()
    (tmp_path / "link.png").symlink_to(a)
    for out in (a, tmp_path / "link.png"):
        assert compare(a, b, "-o", out, "--overwrite") == 1
        assert "is one of the pictures" in capsys.readouterr().err
    assert a.read_bytes() == before
    (tmp_path / "folder.html").mkdir()
    assert compare(a, b, "-o", tmp_path / "folder.html", "--overwrite") == 1


@pytest.mark.parametrize("name", ["out.png", "out.html"])
def test_a_full_disk(
    tmp_path: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = save(tmp_path / "a.png", noise(16, 12)), save(tmp_path / "b.png", noise(16, 12))

    def full(draft: Path, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "replace", full)
    assert compare(a, b, "-o", tmp_path / name) == 1
    assert f"{name}: No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_results_that_would_be_too_large(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = save(tmp_path / "a.png", noise(4, 300)), save(tmp_path / "b.png", noise(4, 300))
    monkeypatch.setattr(sheet, "MAX_RESULT", 2 * 2 * 320 * 300)
    for mode in ("side", "wipe", "difference"):
        out = tmp_path / f"{mode}.png"
        assert compare(a, b, "-o", out, "--mode", mode) == 0
        code = compare(a, b, "-o", out, "--mode", mode, "--zoom", 3, "--overwrite")
        assert code == 1, mode
        assert "too large for one picture: --crop" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("{}/a.png", "{}/none.png"), 1, "none.png is not there"),
        (("{}/a.png", "{}/text.png"), 1, "text.png is no picture"),
        (("{}/a.png", "{}/empty"), 2, "is a folder and"),
        (("{}/empty", "{}/empty"), 2, "no picture has a partner"),
        (("{}/a.png", "{}/a.png", "-o", "{}/out.jpg"), 2, "must end in .png or .html"),
        (("{}", "{}", "-o", "{}/out.png"), 2, "an --out with .html"),
        (("{}/a.png", "{}/a.png", "--mode", "wipe"), 2, "--mode is for a picture"),
        (("{}/a.png", "{}/a.png", "-o", "{}/o.html", "--zoom", "2"), 2, "--zoom is for a picture"),
        (("{}/a.png", "{}/a.png", "-o", "{}/o.png", "--at", "2"), 2, "--at is for --mode wipe"),
        (("{}/a.png", "{}/a.png", "--levels", "9"), 2, "--levels is for heat maps"),
        (("{}/a.png", "{}/a.png", "--levels", "256"), 2, "no number from 1 to 255"),
        (("{}/a.png", "{}/a.png", "--zoom", "0"), 2, "no number from 1 to 32"),
        (("{}/a.png", "{}/a.png", "--crop", "1,2,3"), 2, "no part such as"),
        (("{}/a.png", "{}/a.png", "--crop", "1,2,0,3"), 2, "no part such as"),
        (("{}/a.png", "{}/a.png", "--crop", "1,-2,5,3"), 2, "no part such as"),
        (("{}/a.png", "{}/a.png", "-o", "{}/a.png/x.png"), 1, "cannot make"),
    ],
)
def test_exit_codes(
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tmp_path / "a.png", noise(16, 12))
    (tmp_path / "text.png").write_text("once upon a time")
    (tmp_path / "empty").mkdir()
    try:
        found = compare(*(text.format(tmp_path) for text in arguments))
    except SystemExit as exc:  # argparse
        found = int(exc.code or 0)
    assert found == code
    assert message in capsys.readouterr().err


def test_pairs_need_both(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no picture has a partner"):
        pairs.find([tmp_path, tmp_path])


def test_it_needs_no_pytorch_and_says_how_to_install_pillow(tmp_path: Path) -> None:
    a = save(tmp_path / "a.png", noise(16, 12))
    code = (
        "import sys; from overlay.cli import main\n{}\n"
        f"code = main(['compare', {str(a)!r}, {str(a)!r}, '-o', {str(tmp_path / 'o.html')!r}])\n"
        "print(code, 'torch' in sys.modules, 'onnx' in sys.modules)"
    )
    for before, last in (("", "0 False False"), ("sys.modules['PIL'] = None", "4 False False")):
        program = [sys.executable, "-c", code.format(before)]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        assert done.stdout.splitlines()[-1] == last, done.stderr
    assert "pip install 'sr-overlay[files]'" in done.stderr
