"""Engines built while the overlay runs: in a process of its own, at low priority."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from overlay.closing import Closing
from overlay.frame import Size
from overlay.infer.find import target

log = logging.getLogger(__name__)

#: How long a build that was told to end may take to do so.
_PATIENCE_S = 5.0


class Audience(Protocol):
    """Who hears of builds: the pipeline."""

    def announce(self, text: str) -> None:
        """Show a notice."""

    def request(self, name: str) -> None:
        """Use a model from now on."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An engine to build: model, source size, back end."""

    model: str
    size: Size
    backend: str

    def command(self) -> list[str]:
        """Give the command line that builds it."""
        return [
            sys.executable, "-P", "-m", "overlay", "engines", f"--models={self.model}",
            "--sizes", str(self.size), "--backend", target(self.backend),
            "--json", "--progress", "lines",
        ]  # fmt: skip


class BackgroundBuilds(Closing):
    """At most one build at a time; what is wanted meanwhile is asked for again later.

    Attributes:
        failure: what the last build that failed said; "" if none did.
    """

    def __init__(self) -> None:
        self.failure = ""
        self._audience: Audience | None = None
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._tried: dict[Wanted, str] = {}  # what to say when it is wanted again
        self._ready: str | None = None
        self._notice = ""
        self._lock = threading.Lock()
        self._closed = False

    def attach(self, audience: Audience) -> None:
        """Tell somebody from now on, beginning with what is known already."""
        with self._lock:
            self._audience = audience
        audience.announce(self._notice)
        if self._ready is not None:
            audience.request(self._ready)

    def start(self, name: str, size: Size, backend: str, model: str | None = None) -> None:
        """Begin to build, unless that runs already or was tried before.

        Args:
            name: what the audience is to use when it is built.
            model: what to build, if that has another name.
        """
        wanted = Wanted(model or name, size, backend)
        with self._lock:
            if self._closed or self._running():
                return
            if wanted in self._tried:
                self._say(self._tried[wanted])
                return
            self._say(f"building {wanted.model} for {size}")
            self._process = _spawn(wanted.command())
            self._thread = threading.Thread(
                target=self._follow, args=(name, wanted, self._process), name="build", daemon=True
            )
            self._thread.start()

    def _running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _follow(self, name: str, wanted: Wanted, process: subprocess.Popen[str]) -> None:
        with process:
            reason = self._listen(wanted, process)
        code = process.returncode
        if self._closed:
            return
        self._thread = None  # another may be started by what follows
        if code == 0:
            log.info("built %s for %s", wanted.model, wanted.size)
            self._tried[wanted] = f"{wanted.model} was built, but cannot be opened; see the log"
            self._say("")
            self._tell_ready(name)
            return
        log.error("building %s for %s failed: %s", wanted.model, wanted.size, reason)
        self._tried[wanted] = f"{wanted.model} cannot be built: {reason}"
        self.failure = self._tried[wanted]
        self._say(self._tried[wanted])

    def _listen(self, wanted: Wanted, process: subprocess.Popen[str]) -> str:
        """Hand on what the build says until it ends; give the reason it named last."""
        reason = "the build ended without a word"
        assert process.stderr is not None
        for line in process.stderr:
            told = _parsed(line)
            if "doing" in told:
                self._say(f"building {wanted.model}: {_step(told)}")
            elif "done" in told:
                reason = str(told["done"].get("reason", ""))
            elif line.startswith("overlay: error:"):
                reason = line.partition("error:")[2].strip()
            elif line.strip():
                log.debug("build: %s", line.rstrip())
        return reason

    def _tell_ready(self, name: str) -> None:
        with self._lock:
            self._ready, audience = name, self._audience
        if audience is not None:
            audience.request(name)

    def _say(self, text: str) -> None:
        self._notice = text
        if self._audience is not None:
            self._audience.announce(text)

    def close(self) -> None:
        """End the build that runs; idempotent. It leaves nothing half-written."""
        with self._lock:
            self._closed = True
            process, thread = self._process, self._thread
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        if thread is not None:
            thread.join(_PATIENCE_S)


def _spawn(command: Sequence[str]) -> subprocess.Popen[str]:
    """Start a process whose work gives way to the game's; it finds this very package."""
    paths = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.BELOW_NORMAL_PRIORITY_CLASS
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, errors="replace", creationflags=flags,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )  # fmt: skip
    if sys.platform != "win32":
        os.setpriority(os.PRIO_PROCESS, process.pid, 10)
    return process


def _parsed(line: str) -> dict[str, Any]:
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _step(told: dict[str, Any]) -> str:
    fraction = told.get("fraction")
    part = f" {100 * fraction:.0f} %" if isinstance(fraction, int | float) else ""
    return f"{told['doing']}{part}"
