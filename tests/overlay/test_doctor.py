"""`overlay doctor` and `overlay windows`: true reports, stable JSON, a bundle without pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from overlay import doctor
from tests.games import FakeGame


def overlay(
    tmp_path: Path, display: str | None, *arguments: str
) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    env |= {"XDG_STATE_HOME": str(tmp_path)} | ({"DISPLAY": display} if display else {})
    return subprocess.run(
        [sys.executable, "-m", "overlay", *arguments], env=env, cwd=tmp_path,
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


@pytest.mark.display
def test_all_is_well_with_a_display(tmp_path: Path, display: str) -> None:
    done = overlay(tmp_path, display, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["display"]["state"] == "ok"
    assert checks["capture x11"]["state"] == "ok"
    assert checks["capture wgc"]["state"] == "elsewhere"
    assert checks["opengl"]["state"] in ("ok", "warning")
    assert checks["back end openvino"]["state"] == "ok"
    assert checks["model default-x2"]["state"] == "ok"


def test_without_a_display_it_says_so_with_the_fix(tmp_path: Path) -> None:
    done = overlay(tmp_path, None, "doctor")
    assert done.returncode == 4
    lines = done.stdout.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("MISSING  display"))
    assert "DISPLAY" in lines[at + 1]
    assert lines[at + 1].strip().startswith("->")


@pytest.mark.parametrize(
    ("message", "reason", "fix"),
    [
        ("X is not installed: pip install x", "X is not installed", "pip install x"),
        (
            "X cannot be loaded (libx.so: no such file): pip install x",
            "X cannot be loaded (libx.so: no such file)",
            "pip install x",
        ),
        (
            "there is no GPU (cudaErrorNoDevice: none); with a GPU, install the driver",
            "there is no GPU (cudaErrorNoDevice: none)",
            "with a GPU, install the driver",
        ),
        ("there is no GPU here", "there is no GPU here", ""),
    ],
)
def test_reason_and_fix_are_parted(message: str, reason: str, fix: str) -> None:
    assert doctor._apart(message) == (reason, fix)


def test_the_bundle_holds_report_log_settings_and_trace(tmp_path: Path) -> None:
    (tmp_path / "o.toml").write_text('model = "fsr1"\n')
    run = overlay(
        tmp_path, None, "run", "--source", "replay:pattern", "--present", "offscreen", "--model",
        "bilinear", "--frames", "5", "--trace", "mine.csv",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    done = overlay(tmp_path, None, "doctor", "--bundle", "b.zip", "--config", "o.toml")
    assert "wrote b.zip" in done.stdout
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        names = set(archive.namelist())
        assert {"report.json", "report.txt", "config.toml", "trace.csv", "overlay.log"} <= names
        assert not [name for name in names if name.endswith((".png", ".jpg"))]
        assert archive.read("trace.csv") == (tmp_path / "mine.csv").read_bytes()
        assert json.loads(archive.read("report.json"))["checks"]


def test_an_unwritable_bundle_is_one_line(tmp_path: Path) -> None:
    done = overlay(tmp_path, None, "doctor", "--bundle", "/nowhere/b.zip")
    assert done.returncode == 2
    assert "cannot write the bundle /nowhere/b.zip" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.display
def test_windows_are_listed(tmp_path: Path, display: str) -> None:
    with FakeGame(display=display, title="Grün & Co", size=(320, 180), pos=(50, 60)) as game:
        done = overlay(tmp_path, display, "windows", "--json")
        text = overlay(tmp_path, display, "windows")
    assert done.returncode == 0, done.stderr
    found = [w for w in json.loads(done.stdout)["windows"] if w["id"] == game.window_id]
    assert found == [
        {
            "id": game.window_id,
            "title": "Grün & Co",
            "wm_class": found[0]["wm_class"],
            "pid": game.pid,
            "region": {"left": 50, "top": 60, "width": 320, "height": 180},
            "visible": True,
        }
    ]
    line = next(line for line in text.stdout.splitlines() if "Grün & Co" in line)
    assert "320x180" in line
    assert hex(game.window_id) in line
