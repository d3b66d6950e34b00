"""The self-test's eye: looks at one row of the screen and notes when each number first shows.

A process of its own (`python -m overlay.latency.probe`). It polls, because that is the one way
to look at the screen that every system has; the time between looks is part of what it reports.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import mss
import numpy as np

from overlay.frame import Region
from overlay.latency.child import end_with_parent, say
from overlay.latency.code import columns, decode, strip_row
from overlay.latency.stamps import Stamps
from overlay.settings import parse_region

#: Rest between two looks. Shorter takes the processor from what is measured.
REST_S = 0.0003


def look_for_ever(screen: Any, picture: Region, stamps: Stamps) -> None:
    """Look at the strip's middle row of `picture`, again and again; never returns."""
    row = {
        "left": picture.left,
        "top": picture.top + strip_row(picture.height),
        "width": picture.width,
        "height": 1,
    }
    green = columns(picture.width) * 4 + 1
    before = b""
    number_before = None
    before_ns = time.perf_counter_ns()
    while True:
        raw = screen.grab(row).raw
        seen_ns = time.perf_counter_ns()
        if raw != before:
            before = bytes(raw)
            number = decode(np.frombuffer(before, np.uint8)[green])
            stamps.looked(number is not None)
            if number is not None and number != number_before:
                stamps.saw(number, seen_ns, before_ns)
                number_before = number
        before_ns = seen_ns
        time.sleep(REST_S)


def main() -> None:
    """Run as the parent asks; see `overlay.latency.child` for how it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stamps", type=Path, required=True)
    parser.add_argument("--picture", type=parse_region, required=True)
    arguments = parser.parse_args()
    end_with_parent()
    stamps = Stamps(arguments.stamps)
    try:
        with mss.MSS() as screen:
            say(backend=type(screen).__name__)
            look_for_ever(screen, arguments.picture, stamps)
    except mss.ScreenShotError as exc:
        say(error=f"the screen cannot be read: {exc}")


if __name__ == "__main__":
    main()
