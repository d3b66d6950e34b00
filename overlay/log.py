"""Where log lines go: what a player should know to the terminal, everything to a rotating file."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from pathlib import Path

HANDLER = "overlay"  # the name of our handlers
_FORMAT = "%(asctime)s %(levelname)-7s %(threadName)-9s %(name)s: %(message)s"


def log_path() -> Path:
    """Give the log file in the user's state folder."""
    import platformdirs  # the GPU's tests need this module, where little is installed

    return Path(platformdirs.user_state_path("sr-overlay")) / "overlay.log"


def set_up(verbose: bool = False) -> None:
    """Log to the terminal (INFO and above, DEBUG if `verbose`) and to `log_path`.

    A folder that cannot be written costs the file, not the run. What an earlier call set up ends.
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if h.get_name() == HANDLER]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.DEBUG)
    logging.getLogger("OpenGL").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    terminal = logging.StreamHandler(sys.stderr)
    terminal.set_name(HANDLER)
    terminal.setLevel(logging.DEBUG if verbose else logging.INFO)
    terminal.setFormatter(logging.Formatter("overlay: %(message)s"))
    root.addHandler(terminal)
    path = log_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.handlers.RotatingFileHandler(
            path, maxBytes=1 << 20, backupCount=3, encoding="utf-8", delay=False
        )
    except OSError as exc:
        logging.getLogger(__name__).warning("no log file: %s: %s", path, exc.strerror)
        return
    file.set_name(HANDLER)
    file.setLevel(logging.DEBUG if verbose else logging.INFO)
    file.setFormatter(logging.Formatter(_FORMAT))
    root.addHandler(file)
