"""The Windows back ends, which cannot be imported here: by their syntax trees."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import overlay.capture
import overlay.window
from overlay.capture import CaptureSource
from overlay.capture.crop import client_box
from overlay.frame import Region, Size
from overlay.window import Desktop
from tests.overlay.capture.windows_api import public_api

CAPTURE = Path(overlay.capture.__file__).parent
WINDOW = Path(overlay.window.__file__).parent
SNAPSHOT = json.loads(Path(__file__).with_name("windows_api.json").read_text())

# What the back ends' variables hold, in terms of the packages' classes.
HOLDS = {
    "wgc": {
        "windows_capture": "",
        "capture": "WindowsCapture.",
        "control": "CaptureControl.",
        "self._control": "CaptureControl.",
        "frame": "Frame.",
    },
    "dxcam": {
        "dxcam": "",
        "camera": "DXCamera.",
        "self._camera": "DXCamera.",
        "camera._output": "Output.",
    },
}
PACKAGE = {"wgc": "windows_capture", "dxcam": "dxcam"}


def class_in(path: Path, name: str) -> ast.ClassDef:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)


@pytest.mark.parametrize(
    ("path", "name", "seam"),
    [
        (CAPTURE / "wgc.py", "WgcSource", CaptureSource),
        (CAPTURE / "dxcam.py", "DxcamSource", CaptureSource),
        (CAPTURE / "x11.py", "X11Source", CaptureSource),
        (CAPTURE / "mss.py", "MssSource", CaptureSource),
        (CAPTURE / "replay.py", "ReplaySource", CaptureSource),
        (WINDOW / "win32.py", "Win32Desktop", Desktop),
        (WINDOW / "x11.py", "X11Desktop", Desktop),
    ],
)
def test_back_ends_implement_exactly_the_seam(path: Path, name: str, seam: type) -> None:
    node = class_in(path, name)
    assert [ast.unparse(base) for base in node.bases] == [seam.__name__]
    members = {m.name: m for m in node.body if isinstance(m, ast.FunctionDef)}
    public = {member for member in members if not member.startswith("_")}
    assert public == set(seam.__abstractmethods__)  # type: ignore[attr-defined]
    for member in public:
        wanted = inspect.getattr_static(seam, member)
        is_property = isinstance(wanted, property)
        decorators = [ast.unparse(d) for d in members[member].decorator_list]
        assert decorators == (["property"] if is_property else [])
        function = wanted.fget if is_property else wanted
        parameters = [argument.arg for argument in members[member].args.args]
        assert parameters == list(inspect.signature(function).parameters)
    if seam is CaptureSource:
        names = [ast.unparse(n) for n in node.body if isinstance(n, ast.Assign)]
        assert f"name = '{path.stem}'" in names


def uses(backend: str, api: dict[str, Any]) -> list[str]:
    """Check every use of a package by a back end; gives the names used."""
    names: dict[str, list[str]] = api[PACKAGE[backend]]["names"]
    tree = ast.parse((CAPTURE / f"{backend}.py").read_text(encoding="utf-8"))
    options = {
        key.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict) and len(node.keys) > 1
        for key in node.keys
        if isinstance(key, ast.Constant)
    }
    used = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        prefix = HOLDS[backend].get(ast.unparse(node.value))
        if prefix is None:
            continue
        name = f"{prefix}{node.attr}"
        constructor = f"{name}.__init__"
        assert name in names or constructor in names, f"{PACKAGE[backend]} has no {name}"
        used.append(name)
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        prefix = HOLDS[backend].get(ast.unparse(call.func.value))
        if prefix is None:
            continue
        name = f"{prefix}{call.func.attr}"
        parameters = names.get(name, names.get(f"{name}.__init__", []))
        given = {keyword.arg for keyword in call.keywords if keyword.arg}
        if any(keyword.arg is None for keyword in call.keywords):
            given |= options
        assert given <= set(parameters), f"{name} takes {parameters}, not {given}"
    return used


@pytest.mark.parametrize("backend", ["wgc", "dxcam"])
def test_what_we_use_exists_in_the_package(backend: str) -> None:
    used = uses(backend, SNAPSHOT)
    expected = {
        "wgc": {
            "WindowsCapture",
            "WindowsCapture.event",
            "WindowsCapture.start_free_threaded",
            "CaptureControl.stop",
            "Frame.frame_buffer",
        },
        "dxcam": {"create", "DXCamera.grab_view", "DXCamera.release", "Output.desc"},
    }
    assert expected[backend] <= set(used)


@pytest.mark.parametrize(
    ("backend", "name"), [("wgc", "Frame.frame_buffer"), ("dxcam", "DXCamera.grab_view")]
)
def test_a_renamed_function_would_be_noticed(backend: str, name: str) -> None:
    api = json.loads(json.dumps(SNAPSHOT))
    del api[PACKAGE[backend]]["names"][name]
    with pytest.raises(AssertionError, match=f"has no {name}"):
        uses(backend, api)
    api = json.loads(json.dumps(SNAPSHOT))
    factory = {"wgc": "WindowsCapture.__init__", "dxcam": "create"}[backend]
    option = {"wgc": "draw_border", "dxcam": "backend"}[backend]
    api[PACKAGE[backend]]["names"][factory].remove(option)
    with pytest.raises(AssertionError, match=r"takes .*, not"):
        uses(backend, api)


@pytest.mark.network
def test_what_we_use_exists_in_the_newest_packages(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--platform", "win_amd64", "--python-version", "3.11"]
    command += ["--dest", str(tmp_path), "windows-capture", "dxcam"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if done.returncode != 0:
        pytest.skip(f"the packages cannot be downloaded: {done.stderr[-300:]}")
    for wheel in tmp_path.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    api = public_api(tmp_path / "unpacked")
    for backend in HOLDS:
        assert uses(backend, api)


@pytest.mark.parametrize(
    ("outer", "inner", "captured", "box"),
    [
        # an ordinary window: one pixel of frame, a title bar above
        ((100, 50, 482, 302), (101, 81, 480, 270), (482, 302), (1, 31, 480, 270)),
        # borderless: everything
        ((0, 0, 1920, 1080), (0, 0, 1920, 1080), (1920, 1080), (0, 0, 1920, 1080)),
        # on a monitor left of the first
        ((-1500, -20, 502, 302), (-1499, 11, 500, 270), (502, 302), (1, 31, 500, 270)),
        # maximised: the frame lies outside the screen and is not in the picture
        ((0, 0, 1920, 1040), (0, 23, 1920, 1017), (1920, 1040), (0, 23, 1920, 1017)),
        # the client area reaches beyond the visible frame
        ((8, 8, 100, 100), (0, 20, 116, 88), (100, 100), (0, 12, 100, 88)),
        # being enlarged: the picture is still the old one
        ((0, 0, 802, 632), (1, 31, 800, 600), (482, 302), (1, 31, 481, 271)),
        # nothing to see
        ((0, 0, 100, 100), (0, 0, 0, 0), (100, 100), None),
        ((0, 0, 100, 100), (200, 0, 50, 50), (100, 100), None),
    ],
)
def test_client_area_within_the_picture(
    outer: tuple[int, ...],
    inner: tuple[int, ...],
    captured: tuple[int, int],
    box: tuple[int, ...] | None,
) -> None:
    found = client_box(Region(*outer), Region(*inner), Size(*captured))
    assert found == (None if box is None else Region(*box))
