"""The flight recorder: the last seconds of the trace, saved when somebody asks or a frame is late.

It costs the frame path nothing: `save` only sets a flag, and late frames are found by looking
through the recorder's ring twice a second on a thread of its own, which also writes the files.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np

from overlay.closing import Closing
from overlay.errors import TraceError
from overlay.trace import Outcome, Stage
from overlay.trace.csvfile import write_trace
from overlay.trace.recorder import TraceRecorder

log = logging.getLogger(__name__)

_POLL_S = 0.5
_NAME = re.compile(r"flight-\d{8}-\d{6}-\d{6}-[a-z]+\.csv")


class FlightRecorder(Closing):
    """Saves the last seconds of a recorder's ring as trace files in a folder.

    Args:
        recorder: the trace of the run.
        folder: where files go; made when the first one is saved.
        seconds: how much is saved.
        late_ms: also save when a frame's capture to present took longer; None = never.
        cooldown_s: at least so long between two files that late frames caused.
        max_files, max_bytes: the oldest files beyond these are deleted; the newest stays.
        on_saved: called with each new file, on this recorder's thread.
    """

    def __init__(
        self,
        recorder: TraceRecorder,
        folder: Path,
        *,
        seconds: float = 30,
        late_ms: float | None = None,
        cooldown_s: float = 60,
        max_files: int = 20,
        max_bytes: int = 64 << 20,
        on_saved: Callable[[Path], None] | None = None,
    ) -> None:
        if seconds <= 0 or max_files < 1:
            raise ValueError(f"nothing to keep: seconds={seconds}, max_files={max_files}")
        self._recorder = recorder
        self._folder = folder
        self._seconds = seconds
        self._late_ms = late_ms
        self._cooldown_s = cooldown_s
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._on_saved = on_saved
        self._asked = False  # set on any thread, cleared on ours
        self._wake = threading.Event()
        self._closing = False
        self._seen = recorder.captured  # rows before this were looked at
        self._last_late_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="flight-recorder", daemon=True)
        self._thread.start()

    def save(self) -> None:
        """Ask for a file with what happened until now; returns at once, on any thread."""
        self._asked = True
        self._wake.set()

    def close(self) -> None:
        """Save what was asked for and end the thread; idempotent."""
        self._closing = True
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        # Without a limit for late frames there is nothing to poll for.
        timeout = None if self._late_ms is None else _POLL_S
        while not self._closing:
            self._wake.wait(timeout)
            self._wake.clear()
            self._look()
        self._look()

    def _look(self) -> None:
        late = self._late_ms is not None and self._found_late(self._late_ms)
        if self._asked:
            self._asked = False
            self._write("asked")
        elif late:
            self._last_late_s = time.monotonic()
            self._write("late")

    def _found_late(self, limit_ms: float) -> bool:
        """Look through the rows that ended since the last look; False while it is too soon."""
        table = self._recorder.table(self._seen)
        if len(table) == 0:
            return False
        # A frame still under way is looked at again, with those after it.
        pending = np.flatnonzero(table.outcome == Outcome.PENDING)
        self._seen = int(table.ids[pending[0]]) if len(pending) else int(table.ids[-1]) + 1
        last_s = self._last_late_s
        if last_s is not None and time.monotonic() - last_s < self._cooldown_s:
            return False
        return bool(np.any(table.between_ms(Stage.READY, Stage.PRESENTED) > limit_ms))

    def _write(self, why: str) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            at = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
            path = self._folder / f"flight-{at}-{why}.csv"
            write_trace(self._recorder.since(self._seconds), path)
            self._prune(path)
        except (OSError, TraceError) as exc:
            log.warning("the flight recorder cannot save: %s", exc)
            return
        log.info("the flight recorder saved the last %g s in %s", self._seconds, path)
        if self._on_saved is not None:
            self._on_saved(path)

    def _prune(self, newest: Path) -> None:
        files = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        sizes = {path: path.stat() for path in files}
        files.sort(key=lambda path: (path != newest, -sizes[path].st_mtime_ns, path.name))
        total = 0
        for index, path in enumerate(files):
            total += sizes[path].st_size
            if index and (index >= self._max_files or total > self._max_bytes):
                with contextlib.suppress(OSError):  # the next save tries again
                    path.unlink()
