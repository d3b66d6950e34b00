"""Fixtures for all tests: displays of our own, with and without a window manager.

How to use them:

- `display` (session): our own Xvfb, 1920x1080x24, no window manager. `$DISPLAY` names it from
  the first use to the end of the session, so that GLFW, mss and subprocesses find it.
- `openbox` (session): a second Xvfb with openbox. It yields the display's name and does not
  touch `$DISPLAY`: pass the name on (`X11Source(window, display=openbox)`), or put it into the
  environment of a subprocess.
- `any_display`: runs the test on both.
- `tests.games` has the games: `FakeGame`, `crispy_doom`, `minetest`. `tests` is a package, so
  that `from tests.games import FakeGame` works however pytest is started.

A missing program skips the test; with CI set, or OVERLAY_TEST_STRICT=1, it fails it.
The X server chooses a free display number itself (-displayfd), so sessions can run in parallel.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from overlay import log
from tests.games import dies_with_parent, require, stop_group

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # plain `pytest` does not add the root, `python -m pytest` does
    sys.path.insert(0, str(ROOT))

# The GLFW wheel would choose Wayland in a Wayland session, where our display is not.
os.environ["PYGLFW_LIBRARY_VARIANT"] = "x11"


if sys.platform == "win32":
    collect_ignore_glob = ["**/test_x11*.py"]


@pytest.fixture(autouse=True)
def no_log_handler_stays() -> Iterator[None]:
    """Take away what a run in this process set up: its stream is closed after the test."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in [h for h in root.handlers if h.get_name() == log.HANDLER]:
        if handler not in before:
            root.removeHandler(handler)
            handler.close()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m gpu`, read only files with such tests: a machine for them has little else.

    PyTorch, NumPy and cuda-bindings are enough; engines are built where onnx is, too.
    """
    if config.option.markexpr != "gpu":
        return None
    if collection_path == ROOT / "tests" / "engines" / "build" and find_spec("onnx") is None:
        return True
    if collection_path.suffix != ".py":
        return None
    return "mark.gpu" not in collection_path.read_text(encoding="utf-8") or None


@contextlib.contextmanager
def xvfb(size: str = "1920x1080x24") -> Iterator[str]:
    """Run an X server of our own and yield its display name."""
    with xvfb_process(size) as (name, _):
        yield name


@contextlib.contextmanager
def xvfb_process(
    size: str = "1920x1080x24",
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run an X server of our own that the test may kill; yield its display name and process."""
    program = require("Xvfb", "xvfb")
    read_end, write_end = os.pipe()
    command = [program, "-displayfd", str(write_end), "-screen", "0", size]
    command += ["+extension", "GLX", "+extension", "Composite", "+extension", "RANDR"]
    command += ["-noreset", "-nolisten", "tcp"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            dies_with_parent(command),
            pass_fds=[write_end],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        os.close(write_end)
        try:
            number = b""
            deadline = time.monotonic() + 30
            while not number.endswith(b"\n"):
                ready, _, _ = select.select([read_end], [], [], deadline - time.monotonic())
                data = os.read(read_end, 64) if ready else b""
                if not data:
                    log.seek(0)
                    pytest.fail(f"Xvfb did not start: {log.read()[-500:]!r}")
                number += data
            yield f":{int(number)}", process
        finally:
            os.close(read_end)
            stop_group(process)


@pytest.fixture(scope="session")
def display() -> Iterator[str]:
    """Our own X display without a window manager; `$DISPLAY` names it."""
    before = os.environ.get("DISPLAY")
    with xvfb() as name:
        os.environ["DISPLAY"] = name
        try:
            yield name
        finally:
            if before is None:
                del os.environ["DISPLAY"]
            else:
                os.environ["DISPLAY"] = before


@pytest.fixture(scope="session")
def openbox() -> Iterator[str]:
    """Our own X display with the window manager openbox; `$DISPLAY` is left alone."""
    program = require("openbox", "openbox")
    with xvfb() as name, tempfile.TemporaryDirectory(prefix="overlay-openbox-") as home:
        env = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
        process = subprocess.Popen(
            dies_with_parent([program]),
            env={**env, "DISPLAY": name, "HOME": home},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_for_window_manager(name, process)
            yield name
        finally:
            stop_group(process)


def _wait_for_window_manager(name: str, process: subprocess.Popen[bytes]) -> None:
    import xcffib
    import xcffib.xproto

    connection = xcffib.connect(name)
    try:
        check = "_NET_SUPPORTING_WM_CHECK"
        atom = connection.core.InternAtom(False, len(check), check).reply().atom
        root = connection.get_setup().roots[0].root
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and process.poll() is None:
            if len(connection.core.GetProperty(False, root, atom, 0, 0, 1).reply().value):
                return
            time.sleep(0.05)
        pytest.fail(f"openbox did not start on {name} (exit status {process.poll()})")
    finally:
        connection.disconnect()


@pytest.fixture(params=["bare", "openbox"])
def any_display(request: pytest.FixtureRequest) -> str:
    """Each of the two displays in turn: without and with a window manager."""
    name: str = request.getfixturevalue("display" if request.param == "bare" else "openbox")
    return name
