"""One overlay per game window: a lock file that dies with its process."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import IO

import platformdirs

from overlay.closing import Closing
from overlay.errors import SettingsError


def _folder() -> Path:
    """Give a folder for locks: the user's state folder, else the system's temporary one."""
    try:
        return Path(platformdirs.user_state_path("sr-overlay", ensure_exists=True))
    except OSError:
        return Path(tempfile.mkdtemp(prefix="sr-overlay-"))  # a lock nobody else sees


class WindowLock(Closing):
    """Held while an overlay runs over a window.

    Args:
        name: what is locked, unique on this machine: display and window id, say.

    Raises:
        SettingsError: another overlay holds it; the message names its process.
    """

    def __init__(self, name: str) -> None:
        folder = _folder()
        safe = "".join(c if c.isalnum() else "_" for c in name)
        self._path = folder / f"{safe}.lock"
        self._file: IO[str] = self._path.open("a+", encoding="ascii")
        try:
            _lock(self._file)
        except OSError as exc:
            self._file.seek(0)
            owner = self._file.read(32).strip() or "unknown"
            self._file.close()
            raise SettingsError(
                f"an overlay already runs over this window (process {owner}); "
                "quit it first, or choose another window"
            ) from exc
        self._file.seek(0)
        self._file.truncate()
        self._file.write(str(os.getpid()))
        self._file.flush()

    def close(self) -> None:
        """Give the lock back; idempotent."""
        self._file.close()


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> None:
        file.seek(1 << 20)  # past the text, which others may then still read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: IO[str]) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
