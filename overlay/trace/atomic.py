"""Write a file so that it is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from overlay.errors import TraceError


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` beside `path` and put it in its place in one step.

    An existing file is replaced; after an error it is as it was, and nothing is left beside it.

    Raises:
        TraceError: the file cannot be written.
    """
    draft = None
    try:
        handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with open(handle, "wb") as file:
            file.write(data)
        os.chmod(draft, 0o666 & ~_umask())
        os.replace(draft, path)
    except BaseException as exc:  # also when it is interrupted or terminated
        if draft is not None:
            with contextlib.suppress(OSError):
                os.unlink(draft)
        if not isinstance(exc, OSError):
            raise
        raise TraceError(f"cannot write {path}: {exc.strerror or exc}") from exc


def _umask() -> int:
    if os.name != "posix":
        return 0
    try:  # reading it through os.umask would change it for all threads for a moment
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except (OSError, ValueError, IndexError):
        pass
    return 0o022
