"""What machine a measurement ran on, and whether other work disturbed it."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: A block is "quiet" if other processes took less than this share of one core.
QUIET_CORES = 0.15


def describe() -> dict[str, Any]:
    """Name CPU, cores (those this process may use), system and Python version."""
    return {
        "cpu": _cpu_name(),
        "cores": _cores(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def load_average() -> float | None:
    """Give the system's load average over the last minute; None where there is none."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            return round(os.getloadavg()[0], 2)
    return None


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    else:
        return os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@dataclass(frozen=True, slots=True)
class CpuUse:
    """Processor time spent between two moments, in seconds of one core.

    Attributes:
        wall_s: the time between them.
        own_s: user and system time of this process, all its threads.
        all_s: of all processes of the machine; None where the system does not say.
    """

    wall_s: float
    own_s: float
    all_s: float | None

    @property
    def other_cores(self) -> float | None:
        """How many cores other processes kept busy, on average."""
        if self.all_s is None or self.wall_s <= 0:
            return None
        return max(0.0, (self.all_s - self.own_s) / self.wall_s)

    @property
    def verdict(self) -> str:
        """Give "quiet", "loaded" or "unknown"."""
        if self.other_cores is None:
            return "unknown"
        return "quiet" if self.other_cores < QUIET_CORES else "loaded"


class CpuClock:
    """Measures processor time from its construction on."""

    def __init__(self) -> None:
        self._began = _now()

    def use(self) -> CpuUse:
        """Give what was spent so far."""
        wall, own, everyone = (
            None if a is None or b is None else b - a
            for a, b in zip(self._began, _now(), strict=True)
        )
        assert wall is not None
        assert own is not None
        return CpuUse(wall, own, everyone)


def _now() -> tuple[float, float, float | None]:
    return time.perf_counter(), time.process_time(), _busy_s()


def _busy_s() -> float | None:
    """Sum user, nice, system, irq and softirq of all cores (proc_stat(5)), in seconds."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError), open("/proc/stat", encoding="ascii") as file:
            fields = [int(word) for word in file.readline().split()[1:]]
            user, nice, system, _idle, _iowait, irq, softirq = fields[:7]
            return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return None
