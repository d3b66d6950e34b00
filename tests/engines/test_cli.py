"""`overlay engines` and `build_engines.py`, with real weights and real back ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import engines
from engines import cli, frames, load, zoo
from engines.build.openvino import OpenVinoBuilder
from engines.cache import EngineCache, Entry
from overlay.cli import main

ROOT = Path(engines.__file__).parents[1]
#: Small, so that the 6-block RRDB takes a second.
SIZE = "64x48"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setenv("OVERLAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OVERLAY_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return EngineCache()


def engines_json(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, Any]:
    code = main(["engines", *options, "--json", "--progress", "none"])
    return code, json.loads(capsys.readouterr().out)["engines"]


def test_a_denoising_strength_is_for_its_model(capsys: pytest.CaptureFixture[str]) -> None:
    wish = ("--models", "realesr-general-x4v3", "--backend", "onnxruntime")
    for strength in ("0.3", "1"):
        _, (row,) = build(capsys, *wish, "--denoise", strength)
        assert row["status"] == "unavailable", "the weights are no package's"
        assert row["model"] == f"realesr-general-x4v3@{float(strength)}"
    _, (row,) = build(capsys, *wish, "--denoise", "1.5")
    assert "must be a number from 0 to 1" in row["reason"]
    assert main(["engines", "--models", "default-x2,span-x2", "--denoise", "0.3"]) == 2
    assert "strength is for realesr-general-x4v3, not for default-x2" in capsys.readouterr().err


def build(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, Any]:
    return engines_json(capsys, "--sizes", SIZE, *options)


@pytest.mark.slow
def test_three_families_are_built_for_every_back_end_and_then_are_fresh(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wish = (
        "--models", "default-x2,realesr-animevideov3-x4,realesrgan-x4plus-anime-6b",
        "--backend", "tensorrt-rtx,cpu,onnxruntime",
    )  # fmt: skip
    code, rows = build(capsys, *wish)
    assert code == 0, rows
    assert [row["status"] for row in rows] == ["built"] * 9
    for row in rows:
        assert row["size"] == SIZE
        assert row["build_s"] > 0
        assert row["engine_mb"] > 0.01
        assert row["psnr"] == "inf" or row["psnr"] > 55
        assert Path(row["path"]).is_file()
        ran = row["backend"] != "tensorrt-rtx"
        assert row["checked"] == ("engine" if ran else "graph")
        assert (row["ms_p50"] is not None) == ran
    code, again = build(capsys, *wish)
    assert code == 0
    assert [row["status"] for row in again] == ["fresh"] * 9
    assert [row["path"] for row in again] == [row["path"] for row in rows]


def test_the_script_is_the_same_as_the_command(tmp_path: Path) -> None:
    for program in ([str(ROOT / "build_engines.py")], ["-m", "overlay", "engines"]):
        done = subprocess.run(
            [sys.executable, *program, "--list"], capture_output=True, text=True, cwd=ROOT
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"0 engines, 0.0 MB in {os.environ['OVERLAY_CACHE']}\n"


def test_listing_needs_no_heavy_library() -> None:
    code = (
        "import sys; from overlay.cli import main; main(['engines', '--list']); "
        "print([m for m in ('torch', 'onnx', 'openvino', 'tensorrt_rtx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_model_asked_for_by_name_must_be_there_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, rows = build(capsys, "--models", "default-x2,realesrnet-x4plus", "--backend", "onnx")
    assert code == 5
    assert [row["status"] for row in rows] == ["built", "unavailable"]
    assert "RealESRNet_x4plus.pth" in rows[1]["reason"]


def test_what_cannot_be_had_does_not_fail_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tuple(row for row in zoo.ZOO if row.id in ("default-x3", "realesrnet-x4plus", "span-x2"))
    monkeypatch.setattr(zoo, "ZOO", few)
    code, rows = build(capsys, "--models", "all", "--backend", "onnx")
    assert code == 0
    assert [row["status"] for row in rows] == ["built", "unavailable"]
    assert "RealESRNet_x4plus.pth" in rows[1]["reason"]


def test_shapes_can_be_timed_with_random_weights(capsys: pytest.CaptureFixture[str]) -> None:
    wish = ("--models", "superultracompact-x2", "--backend", "onnx", "--random-weights")
    code, (row,) = build(capsys, *wish)
    assert (code, row["status"], row["model"]) == (0, "built", "superultracompact-x2-random")
    assert "for timing only" in row["note"]
    assert row["ms_p50"] > 0
    assert build(capsys, *wish)[1][0]["status"] == "fresh"
    assert build(capsys, *wish[:-1])[0] == 5


def test_an_engine_that_is_too_far_from_pytorch_is_not_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cache: EngineCache
) -> None:
    real = OpenVinoBuilder.open

    def wrong(self: OpenVinoBuilder, *facts: Any) -> Any:
        runner = real(self, *facts)
        monkeypatch.setattr(
            type(runner), "__call__", _brighter(type(runner).__call__), raising=True
        )
        return runner

    monkeypatch.setattr(OpenVinoBuilder, "open", wrong)
    code, (row,) = build(capsys, "--models", "default-x2", "--backend", "cpu")
    assert (code, row["status"]) == (5, "failed")
    assert "levels" in row["reason"]
    assert cache.entries() == []


def test_a_damaged_engine_is_built_again(
    capsys: pytest.CaptureFixture[str], cache: EngineCache
) -> None:
    wish = ("--models", "default-x2", "--backend", "onnxruntime")
    assert build(capsys, *wish)[0] == 0
    (entry,) = cache.entries()
    assert isinstance(entry, Entry)
    whole = entry.path.read_bytes()
    entry.path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    code, (row,) = build(capsys, *wish)
    assert (code, row["status"]) == (0, "built")
    assert entry.path.read_bytes() == whole


def test_an_engine_built_with_other_options_is_built_again_when_they_are_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wish = ("--models", "default-x2", "--backend", "cpu", "--precision", "int8")
    statuses = []
    for limit in ("40", "40", "90"):
        _, (row,) = build(capsys, *wish, "--int8-psnr", limit)
        statuses.append(row["status"])
    assert statuses == ["built", "fresh", "failed"]
    assert "90 dB is asked for" in row["reason"]
    rtx = ("--models", "default-x2", "--backend", "tensorrt-rtx")
    statuses = [build(capsys, *rtx, *level)[1][0]["status"] for level in ((), ("--level", "4"), ())]
    assert statuses == ["built", "built", "fresh"]


def test_an_error_that_nobody_foresaw_fails_its_engine_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def falls_over(*facts: Any) -> Any:
        raise RuntimeError("not enough memory:\nyou tried to allocate 9 GB")

    monkeypatch.setattr(OpenVinoBuilder, "build", falls_over)
    code, rows = build(capsys, "--models", "default-x2", "--backend", "cpu,onnxruntime")
    assert (code, [row["status"] for row in rows]) == (5, ["failed", "built"])
    assert rows[0]["reason"] == "RuntimeError: not enough memory: you tried to allocate 9 GB"


def test_a_folder_of_a_model_s_name_is_not_taken_for_its_weights(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "default-x2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert build(capsys, "--models", "default-x2", "--backend", "onnxruntime")[0] == 0
    assert [row["fresh"] for row in engines_json(capsys, "--list")[1]] == [True]


def _brighter(call: Any) -> Any:
    return lambda self, bgra: call(self, bgra) // 2


def test_a_stale_engine_is_listed_cleaned_and_built_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cache: EngineCache
) -> None:
    build(capsys, "--models", "default-x2,default-x3", "--backend", "cpu")
    _, before = engines_json(capsys, "--list")
    assert [row["fresh"] for row in before] == [True, True]
    with monkeypatch.context() as later:
        later.setattr(OpenVinoBuilder, "version", lambda self: "2099.1")
        _, stale = engines_json(capsys, "--list")
        assert [row["fresh"] for row in stale] == [False, False]
        assert "version of openvino changed" in stale[0]["reason"]
        _, (row,) = build(capsys, "--models", "default-x2", "--backend", "cpu")
        assert row["status"] == "built"
        assert main(["engines", "--clean"]) == 0
        assert "deleted 1 engine," in capsys.readouterr().out
    (left,) = cache.entries()
    assert isinstance(left, Entry)
    assert left.identity.backend_version == "2099.1"
    assert main(["engines", "--clean", "default-x2"]) == 0
    assert cache.entries() == []
    assert main(["engines", "--clean", "default-x2"]) == 5


def test_verify_runs_every_engine_again(
    capsys: pytest.CaptureFixture[str], cache: EngineCache
) -> None:
    build(capsys, "--models", "default-x2", "--backend", "cpu,tensorrt-rtx")
    code, rows = engines_json(capsys, "--verify")
    by_backend = {row["backend"]: row for row in rows}
    assert code == 0
    assert by_backend["openvino"]["psnr"] == "inf" or by_backend["openvino"]["psnr"] > 55
    assert by_backend["tensorrt-rtx"]["status"] == "unavailable"
    assert "no NVIDIA GPU" in by_backend["tensorrt-rtx"]["reason"]
    entry = next(e for e in cache.entries() if isinstance(e, Entry) and e.output == "luma")
    entry.path.write_bytes(entry.path.read_bytes()[:-1] + b"?")
    code, rows = engines_json(capsys, "--verify")
    assert code == 5
    assert any("damaged" in row["reason"] for row in rows)


def test_the_table_names_what_is_there_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    main(["engines", "--sizes", SIZE, "--models", "default-x2,span-x4", "--backend", "onnx"])
    heads, rule, first, second, *rest = capsys.readouterr().out.splitlines()
    assert heads.startswith("| model ")
    assert set(rule) <= set("|-: ")
    assert "built" in first
    assert "unavailable" in second
    assert len({len(heads), len(rule), len(first), len(second)}) == 1
    assert "- span-x4 (64x48 onnx" in "\n".join(rest)
    assert "span-x4 is a shape without weights" in "\n".join(rest)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--sizes", "480"), "'480' is no size"),
        (("--sizes", "4x4"), "'4x4' is no size"),
        (("--backend", "tensorflow"), "unknown back end 'tensorflow'"),
        (("--models", ","), "names nothing"),
        (("--models", "default-x2,defualt-x2"), "did you mean 'default-x2'"),
        (("--models", "all,default-x2"), "all cannot be joined"),
        (("--clean", ""), "--clean takes stale, all"),
    ],
)
def test_slips_are_usage_errors(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], told: str
) -> None:
    assert main(["engines", *options]) == 2
    assert told in capsys.readouterr().err


def test_default_stands_for_its_three_nets(capsys: pytest.CaptureFixture[str]) -> None:
    _, rows = build(capsys, "--models", "default", "--backend", "onnx")
    assert [row["model"] for row in rows] == ["default-x2", "default-x3", "default-x4"]


def test_a_file_may_have_a_comma_in_its_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shipped = load.weights_folder() / "default-x2.safetensors"
    path = tmp_path / "mine, all.safetensors"
    path.write_bytes(shipped.read_bytes())
    code, (row,) = build(capsys, "--models", str(path), "--backend", "onnx")
    assert (code, row["model"], row["status"]) == (0, "default-x2", "built")


def test_a_precision_that_a_back_end_lacks_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    code, (row,) = build(
        capsys, "--models", "default-x2", "--backend", "onnx", "--precision", "int8"
    )
    assert (code, row["status"]) == (5, "unavailable")
    assert "does not compute in int8" in row["reason"]


def test_auto_takes_what_can_build_and_run_here(capsys: pytest.CaptureFixture[str]) -> None:
    _, (row,) = build(capsys, "--models", "default-x2")
    assert row["backend"] == "openvino"  # there is no NVIDIA GPU, which TensorRT would need


def test_a_user_s_own_frames_are_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["engines", "--backend", "onnx", "--frames", str(tmp_path)]) == 2
    assert "holds no picture" in capsys.readouterr().err
    folder = str(frames.shipped_folder())
    assert build(
        capsys, "--models", "default-x2", "--backend", "onnx", "--frames", folder
    )[0] == 0  # fmt: skip


def test_no_more_pictures_are_read_than_are_checked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped = sorted(frames.shipped_folder().glob("*.png"))
    for index in range(9):
        (tmp_path / f"{index}.png").write_bytes(shipped[index % len(shipped)].read_bytes())
    read: list[str] = []
    real = frames._picture

    def picture(path: Path) -> frames.Pixels | None:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(frames, "_picture", picture)
    wish = ("--models", "default-x2", "--backend", "cpu,onnx", "--frames", str(tmp_path))
    assert build(capsys, *wish)[0] == 0
    assert read == ["0.png", "0.png", "1.png", "2.png"]  # the first to see that there is one


def test_progress_can_be_read_by_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    main([
        "engines", "--sizes", SIZE, "--models", "default-x2", "--backend", "onnx",
        "--json", "--progress", "lines",
    ])  # fmt: skip
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line[0] == "{"]
    assert {"exporting", "checking", "timing"} <= {line.get("doing") for line in told}
    assert told[-1]["done"]["status"] == "built"


def start(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "overlay", "engines", "--sizes", SIZE, "--backend", "onnx",
            "--json", "--progress", "lines", *options,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def test_two_builders_at_once_build_one_engine(cache: EngineCache) -> None:
    both = [start("--models", "default-x2") for _ in range(2)]
    rows = []
    for process in both:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        rows += json.loads(out)["engines"]
    assert sorted(row["status"] for row in rows) == ["built", "fresh"]
    assert len(cache.entries()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_build_that_is_ended_can_be_done_again(
    cache: EngineCache, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    process = start("--models", "realesr-animevideov3-x4")
    assert process.stderr is not None
    for line in process.stderr:
        if '"exporting"' in line:
            break
    time.sleep(0.5)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    assert cache.entries() == []
    assert cache.leftovers() == []
    code, (row,) = build(capsys, "--models", "default-x2", "--backend", "onnx")
    assert (code, row["status"]) == (0, "built")


def test_an_interrupt_that_a_library_swallows_ends_the_build(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallows(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            arguments[3]("the next step", None)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # the second does not wait
        yield cli.Row("net", SIZE, "onnxruntime", "", "failed", "no attribute 'exc'")
        raise AssertionError("the next engine was begun")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(cli.make, "make", swallows)
    code, rows = build(capsys, "--models", "default-x2", "--backend", "onnx")
    assert (code, rows) == (130, [])
    assert signal.getsignal(signal.SIGINT) is before


def test_sizes_are_read() -> None:
    assert cli.parse_size(" 480x270 ") == (480, 270)
