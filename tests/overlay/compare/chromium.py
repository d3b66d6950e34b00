"""A real browser, driven through the DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.games import dies_with_parent, require, stop_group

_NAMES = ("chromium", "chromium-browser", "google-chrome")
#: Puts the pipes where Chromium expects them: it reads commands from 3 and answers on 4.
_START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 20) for fd in sys.argv[1:3]]
for number, fd in zip((3, 4), ends):
    os.dup2(fd, number)
os.execvp(sys.argv[3], sys.argv[3:])
"""
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip
WIDTH, HEIGHT = 800, 600


class Browser:
    """One tab of 800x600.

    Args:
        commands, answers: the ends of the pipes.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._rest = b""
        self._number = 0
        self._session = ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)
        self.resize()

    def resize(self, ratio: float = 1) -> None:
        """Make the window 800x600 CSS pixels of so many device pixels each way."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=WIDTH, height=HEIGHT, deviceScaleFactor=ratio, mobile=False,
        )  # fmt: skip
        self.settle()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; give its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], deadline - time.monotonic())
            data = os.read(self._answers, 1 << 16) if ready else b""
            assert data, "the browser is gone, or says nothing"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def open(self, page: Path, fragment: str = "") -> None:
        """Load a page from a file, and forget what came before."""
        self._load("about:blank")  # else a change of the fragment alone would load nothing
        self.events.clear()
        self._load(page.as_uri() + fragment)
        self.settle()

    def _load(self, url: str) -> None:
        loader = self.call("Page.navigate", url=url)["loaderId"]
        deadline = time.monotonic() + 60
        while not any(
            event.get("method") == "Page.lifecycleEvent"
            and (event["params"]["loaderId"], event["params"]["name"]) == (loader, "load")
            for event in self.events
        ):
            assert time.monotonic() < deadline, f"{url} does not load"
            self.events.append(self._next())

    def run(self, code: str) -> Any:
        """Evaluate an expression in the page; promises are waited for."""
        found = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def settle(self) -> None:
        """Wait until the pictures are decoded and what was changed is on screen."""
        self.run(
            "Promise.all([...document.images].filter(i => i.src)"
            ".map(i => i.decode().catch(() => i.decode())))"  # of another src meanwhile
            ".then(() => new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f))))"
            ".then(() => 0)"
        )

    def screen(self) -> NDArray[np.uint8]:
        """Take a screenshot: uint8 RGB, (600, 800, 3)."""
        self.settle()
        data = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Tell where an element is: left, top, right, bottom."""
        left, top, right, bottom = self.run(
            f"(r => [r.left, r.top, r.right, r.bottom])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        return left, top, right, bottom

    def middle(self, selector: str) -> tuple[float, float]:
        """Tell where the middle of an element is."""
        left, top, right, bottom = self.box(selector)
        return (left + right) / 2, (top + bottom) / 2

    def mouse(self, *points: tuple[float, float]) -> None:
        """Press at the first point, move to the others, let go at the last."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [*points, points[-1]], strict=True):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1,
                clickCount=1,
            )  # fmt: skip
        self.settle()

    def finger(self, *points: tuple[float, float]) -> None:
        """Touch at the first point, move to the others, let go."""
        for number, (x, y) in enumerate(points):
            kind = "touchMove" if number else "touchStart"
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.settle()

    def key(self, name: str, shift: bool = False) -> None:
        """Press a key by its DOM name."""
        text = {"text": name} if len(name) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name,
                modifiers=8 if shift else 0, **more,
            )  # fmt: skip
        self.settle()

    def complaints(self) -> list[str]:
        """List errors, and requests for anything but the page and its own data."""
        self.run("0")
        found = []
        for event in self.events:
            method, told = event.get("method"), event.get("params", {})
            if method in ("Runtime.exceptionThrown", "Log.entryAdded"):
                found.append(json.dumps(told))
            if method == "Network.requestWillBeSent":
                url = told["request"]["url"]
                if not url.startswith(("file:", "data:", "about:")):
                    found.append(url)
        return found


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser of our own; where none is installed, see `tests.games.require`."""
    program = next((path for name in _NAMES if (path := shutil.which(name))), None)
    program = program or require(_NAMES[0], _NAMES[0])
    with contextlib.ExitStack() as stack:
        # Its processes end one after the other and may still write.
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        ends = [*os.pipe(), *os.pipe()]
        read_commands, commands, answers, write_answers = ends
        process = subprocess.Popen(
            dies_with_parent(
                [
                    *(sys.executable, "-c", _START, str(read_commands), str(write_answers)),
                    *(program, *_OPTIONS, f"--user-data-dir={folder}", "about:blank"),
                ]
            ),
            pass_fds=[read_commands, write_answers],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        stack.callback(stop_group, process)
        for end in (read_commands, write_answers):
            os.close(end)
        for end in (commands, answers):
            stack.callback(os.close, end)
        yield Browser(commands, answers)
