"""`overlay windows`: list what could be captured."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from overlay.cli import add_json
from overlay.window import Window, open_desktop


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `overlay windows`."""
    parser.add_argument("--pick", action="store_true", help="pick one with a click")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """List the windows, topmost first."""
    with open_desktop() as desktop:
        windows = [desktop.pick()] if arguments.pick else desktop.windows()
    if arguments.json:
        sys.stdout.write(json.dumps({"windows": [asdict(w) for w in windows]}) + "\n")
        return 0
    rows = [("ID", "SIZE", "PID", "CLASS", "TITLE"), *map(_row, windows)]
    widths = [max(len(row[n]) for row in rows) for n in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)]
        sys.stdout.write("  ".join([*cells, row[4]]).rstrip() + "\n")
    return 0


def _row(window: Window) -> tuple[str, str, str, str, str]:
    size = str(window.region.size) if window.visible else "minimised"
    return f"{window.id:#x}", size, str(window.pid or "-"), window.wm_class, window.title
