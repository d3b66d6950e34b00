"""`overlay upscale`: folders, sizes, what is kept, what fails, exit codes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from overlay.cli import main
from overlay.errors import SettingsError
from overlay.files import batch
from overlay.files.cli import progress_text
from overlay.files.enlarge import Wish, model_name, resized
from overlay.trace import atomic

FREEDOOM = Path(__file__).parents[2] / "data" / "freedoom"


def save(path: Path, width: int = 20, height: int = 12, mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(30, 220, width * height).reshape(height, width).astype(np.uint8)
    Image.fromarray(ramp).convert(mode).save(path, **options)
    return path


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def upscale(*arguments: object) -> int:
    return main(["upscale", *map(str, arguments)])


def test_a_game_frame_comes_close_to_the_truth(tmp_path: Path) -> None:
    source = FREEDOOM / "map07-0012-x4-lr.png"
    assert upscale(source, "-o", tmp_path / "large.png") == 0
    found = cv2.imread(str(tmp_path / "large.png"))
    truth = cv2.imread(str(FREEDOOM / "map07-0012-x4-hr.png"))
    small = cv2.imread(str(source))
    assert found is not None
    assert truth is not None
    assert small is not None
    assert found.shape == truth.shape
    bicubic = cv2.resize(small, truth.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    assert cv2.PSNR(found, truth) > cv2.PSNR(bicubic, truth)


def test_folders_keep_their_structure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("in/a.png", "in/deep/er/b.jpg", "in/c.gif"):
        save(tmp_path / name)
    (tmp_path / "in" / "notes.txt").write_text("not a picture")
    assert upscale(tmp_path / "in", "-o", tmp_path / "in" / "out", "--json") == 0
    out = tmp_path / "in" / "out"
    assert files(out) == ["a.png", "c.png", "deep/er/b.jpg"]
    assert size(out / "a.png") == (80, 48)
    found = json.loads(capsys.readouterr().out)
    assert len(found["done"]) == 3
    assert found["failed"] == found["skipped"] == []
    assert upscale(tmp_path / "in", "-o", out, "--skip-existing", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["done"], len(again["skipped"])) == ([], 3)


@pytest.mark.parametrize(
    ("options", "expected", "model"),
    [
        ((), (80, 48), "default-x4"),
        (("--outscale", "2"), (40, 24), "default-x2"),
        (("--outscale", "2.5"), (50, 30), "default-x3"),
        (("--outscale", "6"), (120, 72), "default-x4"),
        (("--target", "100x30"), (50, 30), "default-x3"),
        (("--target", "10x30"), (10, 6), "default-x2"),
    ],
)
def test_sizes(
    tmp_path: Path, options: tuple[str, ...], expected: tuple[int, int], model: str
) -> None:
    save(tmp_path / "a.png")
    assert upscale(tmp_path / "a.png", "-o", tmp_path / "out", *options) == 0
    assert size(tmp_path / "out" / "a.png") == expected
    wish = Wish()
    if options:
        target = tuple(map(int, options[1].split("x"))) if options[0] == "--target" else None
        wish = Wish(outscale=0.0 if target else float(options[1]), target=target)  # type: ignore[arg-type]
    assert model_name(wish, (20, 12)) == model


def test_grey_alpha_profile_and_depth_stay(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save(folder / "grey.png", mode="L")
    save(folder / "clear.png", mode="RGBA", icc_profile=b"a profile" * 20)
    deep = np.linspace(0, 65535, 20 * 12 * 3).reshape(12, 20, 3).astype(np.uint16)
    cv2.imwrite(str(folder / "deep.png"), deep)
    cv2.imwrite(str(folder / "deep.tif"), deep)
    assert upscale(folder, "-o", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "grey.png") as grey:
        assert grey.mode == "L"
    with Image.open(tmp_path / "out" / "clear.png") as clear:
        assert clear.mode == "RGBA"
        assert clear.info["icc_profile"] == b"a profile" * 20
        assert clear.getextrema()[3] == (255, 255)
    for name in ("deep.png", "deep.tif"):
        large = cv2.imread(str(tmp_path / "out" / name), cv2.IMREAD_UNCHANGED)
        assert large is not None
        assert large.dtype == np.uint16
        assert len(np.unique(large)) > 2000, "8 bits would leave 256"


def test_invisible_colours_do_not_bleed(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:, :8] = (200, 200, 200, 255)  # beside invisible black
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert upscale(tmp_path / "a.png", "-o", tmp_path / "b.png") == 0
    with Image.open(tmp_path / "b.png") as image:
        large = np.asarray(image)
    assert large[..., :3][large[..., 3] > 0].min() > 190
    assert large[0, 0, 3] == 255
    assert large[0, -1, 3] == 0


def test_the_filter_keeps_sixteen_bits_and_flat_areas() -> None:
    flat = np.full((9, 13, 3), 40_001, np.uint16)
    assert (resized(flat, (7, 5), Image.Resampling.LANCZOS) == 40_001).all()


# --- what goes wrong -----------------------------------------------------------------------------


def test_bad_files_do_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    save(folder / "good.png")
    (folder / "text.png").write_text("once upon a time")
    whole = save(folder / "half.png", 200, 100).read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    stack = [Image.new("L", (8, 8), level) for level in (0, 255)]
    stack[0].save(folder / "moving.gif", save_all=True, append_images=stack[1:])
    assert upscale(folder, "-o", tmp_path / "out") == 1
    told = capsys.readouterr()
    assert files(tmp_path / "out") == ["good.png"]
    assert told.out.startswith("1 done, 0 skipped, 3 failed")
    lines = told.err.splitlines()
    assert len(lines) == 3
    for name in ("half.png is damaged", "moving.gif has several frames", "text.png is no picture"):
        assert sum(name in line for line in lines) == 1, name


def test_two_files_for_one_name_are_both_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "a.jpg", "b.jpg"):
        save(tmp_path / "in" / name)
    assert upscale(tmp_path / "in", "-o", tmp_path / "out", "--format", "png") == 1
    assert files(tmp_path / "out") == ["b.png"]
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2
    assert all("would become" in line and "and so would" in line for line in err)


def test_what_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    there = tmp_path / "out" / "a.png"
    there.write_bytes(b"mine")
    assert upscale(tmp_path / "a.png", "-o", tmp_path / "out") == 1
    assert "is there already: --skip-existing or --overwrite" in capsys.readouterr().err
    assert there.read_bytes() == b"mine"
    assert upscale(tmp_path / "a.png", "-o", tmp_path / "out", "--skip-existing") == 0
    assert there.read_bytes() == b"mine"
    assert upscale(tmp_path / "a.png", "-o", tmp_path / "out", "--overwrite") == 0
    assert size(there) == (80, 48)


def test_sources_are_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = save(tmp_path / "a.png").read_bytes()
    assert upscale(tmp_path / "a.png", "-o", tmp_path, "--overwrite") == 1
    assert "is a source: choose another folder" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before


def test_a_full_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / "in" / name)
    replace = os.replace

    def full(draft: Path, path: Path) -> None:
        if path.name == "a.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(draft, path)

    monkeypatch.setattr(atomic.os, "replace", full)
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 1
    assert "a.png: No space left on device" in capsys.readouterr().err
    assert files(tmp_path / "out") == ["b.png"]


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also for root, whom no permission stops: a file is where the folder must be."""
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "sub" / "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("a file")
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 1
    assert "cannot write" in capsys.readouterr().err
    assert files(tmp_path / "out") == ["a.png", "sub"]


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="no permission stops this user"
)
def test_an_unwritable_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "out").mkdir(mode=0o500)
    assert upscale(tmp_path / "a.png", "-o", tmp_path / "out") == 1
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("{}/none", "-o", "{}/out"), 1, "none is no picture or video by its ending"),
        (("{}/a.mp4", "-o", "{}/out"), 1, "a.mp4 is not there"),
        (("{}/a.mp4", "-o", "{}/b.png"), 2, "is a video, and"),
        (("{}/a.png", "-o", "{}/b.mkv"), 2, "is a picture, and"),
        (("{}/empty", "-o", "{}/out"), 2, "no picture or video in"),
        (("{}/a.png", "-o", "{}/b.png", "--format", "jpg"), 2, "contradict each other"),
        (("{}/a.png", "-o", "{}/out", "--model", "defualt-x2"), 2, "did you mean 'default-x2'"),
        (("{}/a.png", "-o", "{}/out", "--model", "span-x2"), 5, "a shape without weights"),
        (("{}/a.png", "-o", "{}/out", "--backend", "openvino", "--device", "cuda"), 2, "OpenVINO"),
        (("{}/a.png", "-o", "{}/a.jpg", "--outscale", "50", "--target", "9x9"), 2, ""),
        (("{}/a.png", "-o", "{}/b.png", "--outscale", "0"), 2, "no factor above 0"),
        (("{}/a.png", "-o", "{}/b.png", "--target", "9by9"), 2, "no size such as"),
        (("{}/a.png", "-o", "{}/b.png", "--quality", "101"), 2, "a quality is 1 to 100"),
    ],
)
def test_exit_codes(
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    try:
        found = upscale(*(text.format(tmp_path) for text in arguments))
    except SystemExit as exc:  # argparse
        found = int(exc.code or 0)
    assert found == code
    assert message in capsys.readouterr().err


def test_formats_that_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot write '\.gif'"):
        batch.plan([tmp_path], tmp_path, ".gif")


def test_the_progress_line() -> None:
    assert progress_text(0, 0, 0.0, 4, 0.0) == "0/4 (0 %), 0.00 files/s, ? left"
    assert progress_text(2, 1, 0.5, 4, 3.0) == "2/4 (62 %), 0.50 files/s, 0:00:03 left"


def test_shipped_nets_load_no_pytorch(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    names = [str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")]
    code = (
        "import sys; from overlay.cli import main\n"
        f"code = main(['upscale', *{names!r}])\n"
        "print(code, 'torch' in sys.modules, 'onnx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False False", done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes without a signal")
def test_an_end_during_a_write_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(draft: Path, path: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    save(tmp_path / "in" / "a.png")
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(atomic.os, "replace", ended)
    with pytest.raises(SystemExit) as caught:
        upscale(tmp_path / "in", "-o", tmp_path / "out")
    assert caught.value.code == 128 + signal.SIGTERM
    assert files(tmp_path) == ["in/a.png"]
    assert signal.getsignal(signal.SIGTERM) is before
