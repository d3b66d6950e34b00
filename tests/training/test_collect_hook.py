"""The preloaded library: time stands still between frames, and chance repeats."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from training.collect import supertuxkart
from training.collect.packaged import build_library, debian_versions, run_program
from training.collect.runner import CollectError

PROGRAM = """
import ctypes, threading, time
libc = ctypes.CDLL(None)
libc.srand(int.from_bytes(open("/dev/urandom", "rb").read(2), "big"))
print([libc.rand() for _ in range(3)])
start = time.monotonic()
print(int(time.time()))
libc.usleep(400_000_000)
print(round(time.monotonic() - start))
lock = threading.Condition()
with lock:
    print(lock.wait(60))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD")
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (Debian package gcc)")
def test_time_and_chance_are_the_same_in_every_run(tmp_path: Path) -> None:
    hook = build_library(supertuxkart.HERE / "gamehook.c", tmp_path)
    environment = {**os.environ, "LD_PRELOAD": str(hook), "HOOK_OUT": str(tmp_path / "frames")}
    said = [
        subprocess.run(
            [sys.executable, "-S", "-c", PROGRAM],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout.splitlines()
        for _ in range(2)
    ]
    assert said[0] == said[1]
    assert said[0][1:] == ["1700000000", "400", "False"]
    environment.pop("HOOK_OUT")
    plain = subprocess.run(
        [sys.executable, "-S", "-c", "import time; print(time.time())"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert float(plain.stdout) > 1.7e9 + 1e6


def test_frames_are_cut_by_size(tmp_path: Path) -> None:
    path = tmp_path / "frames.bgr"
    path.write_bytes(bytes(range(48)))
    first, second = supertuxkart._frames(path, (4, 2))
    assert first.shape == (2, 4, 3)
    assert second[0, 0].tolist() == [24, 25, 26]
    with pytest.raises(CollectError, match="did not draw at 5x2"):
        list(supertuxkart._frames(path, (5, 2)))
    with pytest.raises(CollectError, match="before it drew a frame"):
        list(supertuxkart._frames(tmp_path / "none", (4, 2)))


def test_a_program_that_fails_is_quoted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", "import sys; print('no sound card'); sys.exit(3)"]
    with pytest.raises(CollectError, match=r"ended with status 3: no sound card"):
        run_program(command, os.environ, log)
    with pytest.raises(CollectError, match="is not installed"):
        run_program([str(tmp_path / "game")], os.environ, log)
    assert debian_versions("no-such-package") == {}
