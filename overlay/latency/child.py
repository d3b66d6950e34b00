"""Start the self-test's two helper processes, and end them whatever happens.

A child's standard input is a pipe that nobody writes to. It ends when the parent closes it or
dies, also by SIGKILL, and then the child ends at once; so it works on every system. The child's
first line on standard output is one JSON object: what it made, or {"error": …}.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import overlay
from overlay.errors import DisplayLost, OverlayError

_READY_S = 30.0


class Child:
    """A helper process, from its start to the end of the `with` block.

    Args:
        module: run as `python -m`.
        arguments: for it.

    Raises:
        DisplayLost: it says that it cannot use the display.
        OverlayError: it ended, or said nothing for half a minute.
    """

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        root = str(Path(overlay.__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._name = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        try:
            #: What it said when it was ready.
            self.ready = self._first_line()
        except BaseException:
            self.stop()
            raise

    def _first_line(self) -> dict[str, Any]:
        lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        stream = self._process.stdout
        assert stream is not None
        reader = threading.Thread(target=lambda: lines.put(stream.readline()), daemon=True)
        reader.start()
        try:
            line = lines.get(timeout=_READY_S)
        except queue.Empty:
            raise OverlayError(f"{self._name} did not start in {_READY_S:.0f} s") from None
        if not line:
            raise OverlayError(f"{self._name} ended with status {self._process.wait()}")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise DisplayLost(str(said["error"]))
        return said

    @property
    def ended(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """End it now and wait for that; idempotent."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


@contextlib.contextmanager
def orderly_exit() -> Iterator[None]:
    """In the parent, on the main thread: let SIGTERM unwind the stack, so that all is cleaned up.

    Raises:
        SystemExit: with 143, when SIGTERM comes.
    """

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_parent() -> None:
    """In the child: end as soon as the parent closes our standard input or is gone.

    Ctrl+C reaches the whole group; it is the parent's to answer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 64):
                pass
        os._exit(0)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def say(**facts: object) -> None:
    """In the child: tell the parent that we are ready, or what is wrong."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()
