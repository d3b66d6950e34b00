"""The times that the source and the probe write down, in one file that all processes map.

Every time is `time.perf_counter_ns`. It may be compared between processes because it is one
clock of the whole machine: CLOCK_MONOTONIC on Linux, QueryPerformanceCounter on Windows, which
both count from the boot.

A plain file, because `multiprocessing.shared_memory` is unlinked by the resource tracker of
whichever process ends first (before Python 3.13).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from overlay.latency.code import LARGEST

Times = NDArray[np.int64]

_NUMBERS = LARGEST + 1
_MOST_SIGHTINGS = 1 << 17
_HEADER = 8


class Sightings(NamedTuple):
    """What the probe saw, one row per change of the number on screen, in order.

    Attributes:
        number: int64, (n,).
        seen_ns: int64, (n,), after the look at the screen that showed it first.
        before_ns: int64, (n,), after the look before that one, which did not show it.
    """

    number: Times
    seen_ns: Times
    before_ns: Times


class Stamps:
    """One run's times. The source writes `drawn`, the probe calls `saw`; anyone may read.

    Args:
        path: the file; `create` makes it.
    """

    def __init__(self, path: Path) -> None:
        cells = np.memmap(path, np.int64, "r+", shape=(_cells(),))
        self._header = cells[:_HEADER]  # 0: sightings, 1: looks at the screen, 2: unreadable
        #: int64, (65536,): when each number was drawn; 0 = never.
        self.drawn: Times = cells[_HEADER : _HEADER + _NUMBERS]
        self._sightings = cells[_HEADER + _NUMBERS :].reshape(3, _MOST_SIGHTINGS)

    @classmethod
    def create(cls, path: Path) -> Stamps:
        """Make the file, all zero: 3.7 MB, sparse where the file system can."""
        with path.open("wb") as file:
            file.truncate(_cells() * 8)
        return cls(path)

    def saw(self, number: int, seen_ns: int, before_ns: int) -> None:
        """Write down that another number came up; what does not fit any more is left out."""
        at = int(self._header[0])
        if at < _MOST_SIGHTINGS:
            self._sightings[:, at] = number, seen_ns, before_ns
            self._header[0] = at + 1

    def looked(self, readable: bool) -> None:
        """Count a look at the screen that showed another row of pixels than the last."""
        self._header[1] += 1
        self._header[2] += not readable

    @property
    def unreadable(self) -> int:
        """How many of the rows that were looked at were torn, blended or no strip."""
        return int(self._header[2])

    def sightings(self) -> Sightings:
        """Copy what was seen so far."""
        number, seen_ns, before_ns = self._sightings[:, : int(self._header[0])].copy()
        return Sightings(number, seen_ns, before_ns)


def _cells() -> int:
    return _HEADER + _NUMBERS + 3 * _MOST_SIGHTINGS
