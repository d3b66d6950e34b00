"""`overlay run` as people start it: every upscaler, its JSON, its trace, its exit codes."""

from __future__ import annotations

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

from engines.zoo import SHIPPED
from overlay.infer import SHADERS
from overlay.run import Signals
from overlay.trace.csvfile import read_trace

MODELS = (*SHADERS, "default", *(spec.id for spec in SHIPPED))


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment without a display, whose state folder is ours."""
    kept = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    return {**kept, "XDG_STATE_HOME": str(tmp_path / "state")}


def overlay(env: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "overlay", *map(str, arguments)],
        env=env, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


def replay(tmp_path: Path, frames: int = 6) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for n in range(frames):
        small = rng.integers(0, 256, (27, 48, 3), np.uint8)
        picture = cv2.resize(small, (120, 68), interpolation=cv2.INTER_CUBIC)
        assert cv2.imwrite(str(folder / f"{n:03}.png"), picture)
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_every_upscaler_runs_offscreen_and_its_counts_add_up(
    tmp_path: Path, env: dict[str, str], model: str
) -> None:
    trace = tmp_path / "t.csv"
    done = overlay(
        env, "run", "--source", f"replay:{replay(tmp_path)}", "--model", model,
        "--present", "offscreen", "--frames", "60", "--trace", trace, "--json",
        "--screenshot", tmp_path / "last.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    frames = result["frames"]
    assert frames["captured"] == 60
    assert frames["captured"] == sum(
        frames[name] for name in ("presented", "duplicate", "superseded", "failed")
    )
    assert frames["presented"] > 0
    assert frames["failed"] == 0
    assert result["fps"] > 0
    assert 0 < result["capture_to_present_ms"]["p50"] <= result["capture_to_present_ms"]["p99"]
    if model != "default":
        assert result["model"] == model
    table = read_trace(trace)
    assert len(table) == 60
    assert table.damage is None
    used = result["model"]  # "default" may be a shader where the machine is too slow
    scale = int(used[-1]) if used.startswith("default-") else 2
    shot = cv2.imread(str(tmp_path / "last.png"))
    assert shot is not None
    assert shot.shape == (68 * scale, 120 * scale, 3)
    assert shot.std() > 20, "the picture is empty"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "which window"),
        (("--window", "no such game"), 4, "DISPLAY"),
        (("--source", "replay:/nowhere/at/all"), 3, "/nowhere/at/all"),
        (("--source", "replay:pattern", "--model", "defualt-x2"), 2, "did you mean"),
        (("--source", "replay:pattern", "--backend", "tensorflow"), 2, "unknown back end"),
        (("--source", "replay:pattern", "--backend", "openvino", "--model", "fsr1"), 2, "shader"),
        (("--source", "replay:pattern", "--cycle", "fsr1,fsr2"), 2, "fsr2"),
        (("--source", "replay:pattern", "--frames", "0"), 2, "--frames must be more than 0"),
        (("--source", "replay:pattern", "--trace", "/nowhere/t.csv"), 1, "/nowhere"),
        (("--source", "replay:pattern", "--trace", "/dev/full"), 1, "/dev/full"),
        (("--source", "replay:pattern", "--output", "0x0"), 2, "WIDTHxHEIGHT"),
        (("--source", "replay:pattern", "--config", "/nowhere/o.toml"), 2, "configuration"),
        (("--source", "laser"), 2, "laser"),
        (("--source", "replay:pattern", "--window", "x"), 2, "needs no window"),
        (("--region", "9x9+0+0", "--pid", "1"), 2, "needs no window"),
    ],
)
def test_a_mistake_is_one_line_and_the_right_exit_code(
    env: dict[str, str], arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = overlay(env, "run", "--present", "offscreen", "--frames", "3", *arguments)
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert done.returncode == code, done.stderr
    assert len(errors) == 1, done.stderr
    assert says in errors[0]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_without_a_display_a_window_cannot_be_shown(env: dict[str, str]) -> None:
    done = overlay(env, "run", "--source", "replay:pattern", "--frames", "3")
    assert done.returncode == 6, done.stderr
    assert "DISPLAY" in done.stderr


def test_a_missing_gl_library_is_said_with_the_fix(tmp_path: Path, env: dict[str, str]) -> None:
    """Files that are no libraries stand where the libraries would be found first."""
    for name in ("libEGL.so.1", "libOpenGL.so.0", "libGL.so.1", "libGLX.so.0"):
        (tmp_path / name).write_bytes(b"not a library")
    done = overlay(
        {**env, "LD_LIBRARY_PATH": str(tmp_path)},
        "run", "--source", "replay:pattern", "--present", "offscreen", "--frames", "3",
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "libGL" in done.stderr
    assert "apt install" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_gl_driver_is_said_with_the_fix(env: dict[str, str]) -> None:
    done = overlay(
        {**env, "__EGL_VENDOR_LIBRARY_FILENAMES": "/nowhere", "LIBGL_DRIVERS_PATH": "/nowhere"},
        "run", "--source", "replay:pattern", "--present", "offscreen", "--frames", "3",
        "--model", "bilinear",
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "OpenGL" in done.stderr
    assert "driver" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_model_is_refused(tmp_path: Path, env: dict[str, str]) -> None:
    """The package is copied, and its model's file cut short: exit code 5, one line."""
    import shutil

    import engines
    import overlay as package

    for module in (engines, package):
        source = Path(module.__file__).parent
        shutil.copytree(source, tmp_path / source.name, ignore=shutil.ignore_patterns("*.pyc"))
    model = tmp_path / "engines" / "weights" / "default-x2.onnx"
    model.write_bytes(model.read_bytes()[:1000])
    done = subprocess.run(
        [sys.executable, "-m", "overlay", "run", "--source", "replay:pattern", "--present",
         "offscreen", "--model", "default-x2", "--frames", "3"],
        env={**env, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path,
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "default-x2" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_replay_played_once_ends_well(tmp_path: Path, env: dict[str, str]) -> None:
    done = overlay(
        env, "run", "--source", f"replay:{replay(tmp_path)}", "--once", "--rate", "max",
        "--present", "offscreen", "--model", "bilinear", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"]["captured"] == 6


def test_a_screenshot_that_cannot_be_saved_does_not_cost_the_figures(env: dict[str, str]) -> None:
    done = overlay(
        env, "run", "--source", "replay:pattern", "--present", "offscreen", "--model", "bilinear",
        "--frames", "5", "--json", "--screenshot", "/proc/nowhere/last.png",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "/nowhere" in done.stderr
    assert json.loads(done.stdout)["frames"]["captured"] == 5


def test_a_library_that_does_not_load_is_reported_by_doctor(
    tmp_path: Path, env: dict[str, str]
) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: not found', name='cv2')")
    done = overlay({**env, "PYTHONPATH": str(tmp_path)}, "doctor")
    assert done.returncode == 4
    assert "cannot load cv2" in done.stdout
    assert "apt install libgl1" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("model", "code"), [("default", 0), ("default-x2", 4)])
def test_an_openvino_that_does_not_load(
    tmp_path: Path, env: dict[str, str], model: str, code: int
) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('libtbb.so.12: not found')")
    done = overlay(
        {**env, "PYTHONPATH": str(tmp_path)}, "run", "--source", "replay:pattern", "--present",
        "offscreen", "--model", model, "--frames", "5",
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "libtbb.so.12" in done.stderr
    assert ".[cpu]" in done.stderr


def test_a_signal_while_opening_ends_it_at_once() -> None:
    with Signals(), pytest.raises(SystemExit) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143


def test_settings_come_from_a_file(tmp_path: Path, env: dict[str, str]) -> None:
    config = tmp_path / "overlay.toml"
    config.write_text('model = "bicubic"\nscale = 3\nhud = "full"\n')
    done = overlay(
        env, "run", "--config", config, "--source", "replay:pattern", "--present", "offscreen",
        "--frames", "5", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["model"] == "bicubic"
    assert result["output_size"] == "1440x810"


def test_people_get_a_summary(env: dict[str, str]) -> None:
    done = overlay(
        env, "run", "--source", "replay:pattern", "--present", "offscreen", "--model", "bilinear",
        "--frames", "5",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "5 frames captured" in done.stdout
    assert "capture to present" in done.stdout
