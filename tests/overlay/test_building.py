"""Engines that are built while the overlay runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines.cache import EngineCache
from overlay import building
from overlay.building import BackgroundBuilds, Wanted
from overlay.cli import main
from overlay.frame import Size
from overlay.infer import measure_ms, open_upscaler
from overlay.infer.openvino import OpenVinoEngine, OpenVinoUpscaler

SIZE = Size(64, 48)


class Listener:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.ready: list[str] = []

    def announce(self, text: str) -> None:
        self.notices.append(text)

    def request(self, name: str) -> None:
        self.ready.append(name)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setenv("OVERLAY_CACHE", str(tmp_path / "cache"))
    return EngineCache()


@pytest.fixture
def builds() -> Iterator[BackgroundBuilds]:
    with BackgroundBuilds() as builds:
        yield builds


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def pretend(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let a build be this Python program."""
    monkeypatch.setattr(Wanted, "command", lambda self: [sys.executable, "-c", code])


@pytest.mark.slow
def test_a_build_ends_with_a_request_for_the_model(
    cache: EngineCache, builds: BackgroundBuilds
) -> None:
    listener = Listener()
    builds.attach(listener)
    builds.start("default-x2", SIZE, "onnxruntime")
    wait_for(lambda: bool(listener.ready))
    assert listener.ready == ["default-x2"]
    assert "building default-x2: exporting" in listener.notices
    assert listener.notices[-1] == ""
    assert len(cache.entries()) == 1


def test_what_was_ready_before_anyone_listened_is_told(
    monkeypatch: pytest.MonkeyPatch, builds: BackgroundBuilds
) -> None:
    pretend(monkeypatch, "pass")
    builds.start("net", SIZE, "auto")
    wait_for(lambda: builds._ready == "net")
    listener = Listener()
    builds.attach(listener)
    assert listener.ready == ["net"]


def test_a_build_that_fails_says_why_and_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, builds: BackgroundBuilds
) -> None:
    line = json.dumps({"done": {"status": "unavailable", "reason": "no weights"}})
    pretend(monkeypatch, f"import sys; print({line!r}, file=sys.stderr); sys.exit(5)")
    listener = Listener()
    builds.attach(listener)
    builds.start("net", SIZE, "auto")
    wait_for(lambda: listener.notices[-1] == "net cannot be built: no weights")
    pretend(monkeypatch, "pass")
    builds.start("net", SIZE, "auto")
    time.sleep(0.3)
    assert listener.ready == []
    builds.start("net", Size(80, 60), "auto")  # another size may do
    wait_for(lambda: listener.ready == ["net"])


def test_what_was_built_and_is_wanted_again_is_not_built_for_ever(
    monkeypatch: pytest.MonkeyPatch, builds: BackgroundBuilds
) -> None:
    pretend(monkeypatch, "pass")
    listener = Listener()
    builds.attach(listener)
    builds.start("net", SIZE, "auto")
    wait_for(lambda: listener.ready == ["net"])
    builds.start("net", SIZE, "auto")  # as it could not be opened
    assert listener.notices[-1] == "net was built, but cannot be opened; see the log"
    assert not builds._running()


def test_an_error_of_the_command_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, builds: BackgroundBuilds
) -> None:
    pretend(
        monkeypatch, "import sys; print('overlay: error: no disk', file=sys.stderr); sys.exit(5)"
    )
    listener = Listener()
    builds.attach(listener)
    builds.start("net", SIZE, "auto")
    wait_for(lambda: listener.notices[-1] == "net cannot be built: no disk")


def test_only_one_build_runs_at_a_time(
    monkeypatch: pytest.MonkeyPatch, builds: BackgroundBuilds
) -> None:
    started: list[str] = []
    real = building._spawn

    def spawn(command: list[str]) -> subprocess.Popen[str]:
        started.append(command[-1])
        return real(command)

    monkeypatch.setattr(building, "_spawn", spawn)
    pretend(monkeypatch, "import time; time.sleep(60)")
    for name in ("a", "b", "a"):
        builds.start(name, SIZE, "auto")
    assert len(started) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX priorities")
def test_a_build_gives_way_to_the_game_and_ends_with_the_overlay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, "import time; time.sleep(60)")
    with BackgroundBuilds() as builds:
        builds.start("net", SIZE, "auto")
        process = builds._process
        assert process is not None
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 10
    assert process.returncode == -signal.SIGTERM
    assert "build" not in [thread.name for thread in threading.enumerate()]
    builds.start("net", SIZE, "auto")  # too late
    assert builds._process is process


def test_programs_in_the_working_directory_are_not_run(
    cache: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("overlay", "numpy", "argparse"):
        (tmp_path / f"{name}.py").write_text(f"open('ran', 'w').close()  # instead of {name}\n")
    monkeypatch.chdir(tmp_path)
    process = building._spawn(Wanted("--odd name", SIZE, "auto").command())
    with process:
        assert process.stderr is not None
        said = process.stderr.read()
    assert "unknown model '--odd name'" in said
    assert not Path("ran").exists()


@pytest.mark.slow
def test_the_overlay_shows_the_plain_upscale_until_the_engine_is_built(
    cache: EngineCache, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "overlay", "run", "--source", "replay:pattern", "--present",
        "offscreen", "--model", "default", "--backend", "onnxruntime", "--build", "--json",
        "--output", "960x540", "--rate", "10",
    ]  # fmt: skip
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        if "now using default-x2" in line:
            break
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=30)
    assert "now using default-x2 (onnxruntime)" in "".join(told), "".join(told) + rest
    assert "it was not built" in told[0]
    result = json.loads(out)
    assert (result["model"], result["backend"]) == ("default-x2", "onnxruntime")
    assert len(result["upscalers"]) == 2
    assert len(cache.entries()) == 1


def test_without_build_a_missing_engine_ends_the_run_and_says_what_to_do(
    cache: EngineCache, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "overlay", "run", "--source", "replay:pattern", "--present",
            "offscreen", "--model", "realesr-animevideov3-x4", "--frames", "5",
        ],
        capture_output=True, text=True, env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 5
    assert done.stderr.count("\n") <= 2
    assert "no engine of realesr-animevideov3-x4 for" in done.stderr
    assert "overlay engines --models realesr-animevideov3-x4 --sizes" in done.stderr


def test_a_model_without_weights_or_engine_says_how_to_get_them(
    cache: EngineCache, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "overlay", "run", "--source", "replay:pattern", "--present",
            "offscreen", "--model", "realesrnet-x4plus", "--frames", "5", "--build",
        ],
        capture_output=True, text=True, env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 5
    assert "RealESRNet_x4plus.pth" in done.stderr


@pytest.mark.slow
def test_the_int8_engine_of_a_shipped_net_is_taken_for_its_size(
    cache: EngineCache, capsys: pytest.CaptureFixture[str]
) -> None:
    wish = ("--models", "default-x2", "--sizes", "96x64", "--backend", "cpu")
    assert main(["engines", *wish, "--precision", "int8"]) == 0
    for size, kind in ((Size(96, 64), OpenVinoEngine), (Size(64, 48), OpenVinoUpscaler)):
        with open_upscaler("default-x2", source=size, output=size) as upscaler:
            assert type(upscaler) is kind
            assert measure_ms(upscaler, size) > 0


def test_a_failed_build_is_told_at_the_end(cache: EngineCache, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pth"
    broken.write_text("no weights")
    done = subprocess.run(
        [
            sys.executable, "-m", "overlay", "run", "--source", "replay:pattern", "--present",
            "offscreen", "--model", str(broken), "--build", "--seconds", "15", "--json",
        ],
        capture_output=True, text=True, env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert result["frames"]["presented"] > 0
    assert "broken.pth" in result["build_error"]
