"""Choosing and opening a back end."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

import overlay.capture
from overlay.capture import BACKENDS, CaptureSource, candidates, open_source
from overlay.errors import BackendUnavailable, CaptureError, SettingsError, SourceClosed
from overlay.frame import Region, Size
from overlay.window import Query, find, open_desktop
from tests.games import FakeGame


def test_the_seam_cannot_be_half_implemented() -> None:
    class Half(CaptureSource):
        def grab(self, timeout_s: float) -> None:
            return None

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]


def test_importing_the_seam_imports_no_back_end() -> None:
    code = (
        "import sys, overlay.capture, overlay.window\n"
        "heavy = {'xcffib', 'mss', 'cv2', 'dxcam', 'windows_capture'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x12", "unknown capture back end 'x12'; did you mean 'x11'"),
        ("nothing", "there are auto, x11, wgc, dxcam, mss, replay"),
        ("mss:1", "unknown capture back end 'mss:1'"),
        ("x11", "'x11' needs a window"),
        ("wgc", "'wgc' needs a window"),
        ("replay:pattern?lop=0", "replay option 'lop=0' is not one of loop=0"),
        ("replay:pattern?loop=2", "replay option 'loop=2' is not one of"),
        ("replay:pattern?rate=fast", "replay option 'rate=fast' is not one of"),
    ],
)
def test_wrong_settings(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        open_source(name)


def test_replay_in_one_word() -> None:
    with open_source("replay:pattern?loop=0&rate=max&seed=3", pattern_size=Size(32, 16)) as source:
        assert source.name == "replay"
        for _ in range(600):
            frame = source.grab(0)
            assert frame is not None
            assert frame.size == (32, 16)
        with pytest.raises(SourceClosed, match="came to its end"):
            source.grab(0)
    with (
        open_source("replay:pattern", rate_hz=None, seed=3, pattern_size=Size(32, 16)) as one,
        open_source("replay", path="pattern", rate_hz=None, pattern_size=Size(32, 16)) as other,
    ):
        same, different = one.grab(1), other.grab(1)
        assert same is not None
        assert different is not None
        assert (same.pixels != different.pixels).any()  # the seed arrived
    with pytest.raises(CaptureError, match="nothing to replay at /no/such/folder"):
        open_source("replay:/no/such/folder")


def test_missing_library_is_named_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay.capture, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="'mss' needs mss: pip install mss"):
        open_source("mss")
    found = {candidate.name: candidate for candidate in candidates(":1")}
    assert not found["mss"].available
    assert found["mss"].reason == "the capture back end 'mss' needs mss"
    assert found["mss"].fix == "pip install mss"


@pytest.mark.skipif(sys.platform == "win32", reason="about other systems than Windows")
def test_windows_back_ends_elsewhere() -> None:
    with pytest.raises(BackendUnavailable, match="Desktop Duplication works on Windows only"):
        open_source("dxcam", region=Region(0, 0, 10, 10))


@pytest.mark.skipif(sys.platform == "win32", reason="about X11")
def test_candidates_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    found = {candidate.name: candidate for candidate in candidates()}
    assert set(found) == set(BACKENDS) - {"auto"}
    assert [name for name, candidate in found.items() if candidate.available] == ["replay"]
    assert found["x11"].reason == "there is no X display: $DISPLAY is not set"
    assert found["x11"].fix.startswith("start from a desktop session")
    with pytest.raises(BackendUnavailable, match="no X display"):
        open_source("auto")


@pytest.mark.display
def test_candidates_with_a_display(display: str) -> None:
    found = {candidate.name: candidate for candidate in candidates(display)}
    assert [name for name, c in found.items() if c.available] == ["x11", "mss", "replay"]
    assert found["x11"].fix == ""
    assert "Windows only" in found["wgc"].reason


@pytest.mark.display
def test_auto_takes_the_best_for_what_is_given(
    display: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "overlay.capture")
    with FakeGame(display) as game, open_desktop(display) as desktop:
        window = find(desktop, Query(id=game.window_id))
        with open_source("auto", window=window, display=display) as source:
            assert source.name == "x11"
            assert source.grab(1) is not None
        assert "capture back end: x11 (captures a window by event" in caplog.text
        with open_source("x11", window=window, display=display) as source:
            assert source.region == window.region
        region = Region(10, 20, 30, 40)
        with open_source("auto", region=region, display=display) as source:
            assert source.name == "mss"
            assert source.region == region
        with open_source("mss", window=window, display=display) as source:
            assert source.region == window.region
        with open_source("mss", display=display) as source:
            assert source.region == Region(0, 0, 1920, 1080)
    with open_source("auto", path="pattern") as source:
        assert source.name == "replay"
