"""Measure the cases in rounds, and notice when other processes disturbed it.

One block is some frames of one case; one round is a block of every case. A B C A B C … lets a
machine that grows slower or busier in the course of a run hit all cases alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evaluation.bench.cases import Case
from overlay.frame import Frame, Size
from overlay.latency.machine import QUIET_CORES, CpuClock, CpuUse
from overlay.present import Look
from overlay.present.offscreen import OffscreenPresenter

#: Timed frames in a block; the frames before them warm caches and make the textures.
_BLOCK, _WARM = 20, 2
#: A block is repeated so often at most.
_REPEATS = 3
#: The kernel counts the processor time of others in ticks; so much may be rounding.
_ROUNDING_S = 0.03


@dataclass(slots=True)
class Samples:
    """The timed frames of one case.

    Attributes:
        upscale_ns, whole_ns: per frame, wall time.
        upscale_cpu_ns, whole_cpu_ns: per frame, user and system time of all our threads.
        wall_s, other_s: over the blocks: wall time, processor time of other processes.
        known: whether the system tells what other processes take.
        repeated: blocks that were thrown away and measured again.
    """

    upscale_ns: list[int] = field(default_factory=list)
    whole_ns: list[int] = field(default_factory=list)
    upscale_cpu_ns: list[int] = field(default_factory=list)
    whole_cpu_ns: list[int] = field(default_factory=list)
    wall_s: float = 0.0
    other_s: float = 0.0
    known: bool = True
    repeated: int = 0

    def add(self, block: NDArray[np.int64], use: CpuUse) -> None:
        """Take a block: int64, (4, frames), in the order of the attributes."""
        lists = (self.upscale_ns, self.whole_ns, self.upscale_cpu_ns, self.whole_cpu_ns)
        for values, new in zip(lists, block.tolist(), strict=True):
            values += new
        self.wall_s += use.wall_s
        if use.other_cores is None:
            self.known = False
        else:
            self.other_s += use.other_cores * use.wall_s

    @property
    def other_cores(self) -> float | None:
        """How many cores other processes kept busy meanwhile."""
        return self.other_s / self.wall_s if self.known and self.wall_s else None


class Waiter:
    """Waits for a quiet machine, so long in all at most.

    Args:
        budget_s: 0 never waits and so never repeats a block.
    """

    def __init__(self, budget_s: float) -> None:
        self._left_s = budget_s

    def wait(self) -> bool:
        """Wait until others take next to nothing; False once the budget is spent."""
        while self._left_s > 0:
            clock = CpuClock()
            time.sleep(min(0.25, self._left_s))
            use = clock.use()
            self._left_s -= use.wall_s
            if not disturbed(use):
                return True
        return False


def disturbed(use: CpuUse) -> bool:
    """Whether other processes took more than `QUIET_CORES`, beyond what is rounding."""
    return use.other_cores is not None and (
        use.other_cores * use.wall_s > _ROUNDING_S + QUIET_CORES * use.wall_s
    )


def measure(
    cases: list[Case],
    frames: dict[Size, list[Frame]],
    presenter: OffscreenPresenter,
    count: int,
    *,
    quiet_wait_s: float = 0.0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Samples]:
    """Time `count` frames of every case, interleaved.

    Args:
        frames: per input size, gone through in turn.
        presenter: draws the results at each case's output size.
        quiet_wait_s: so long in all it may wait for a quiet machine.
        progress: called after each round with rounds done and rounds in all.
    Returns:
        Samples in the order of the cases.
    """
    found = [Samples() for _ in cases]
    waiter = Waiter(quiet_wait_s)
    waiter.wait()
    rounds = -(-count // _BLOCK)
    for done in range(rounds):
        size = min(_BLOCK, count - done * _BLOCK)
        for case, samples in zip(cases, found, strict=True):
            presenter.adapt(Look(size=case.output))
            _measure_block(case, frames[case.input], presenter, size, samples, waiter)
        progress(done + 1, rounds)
    return found


def _measure_block(
    case: Case,
    frames: list[Frame],
    presenter: OffscreenPresenter,
    size: int,
    samples: Samples,
    waiter: Waiter,
) -> None:
    for attempt in range(_REPEATS + 1):
        for index in range(_WARM):
            _time_frame(case, frames[index % len(frames)], presenter)
        clock = CpuClock()
        block = np.array(
            [_time_frame(case, frames[i % len(frames)], presenter) for i in range(size)], np.int64
        )
        use = clock.use()
        if attempt == _REPEATS or not disturbed(use) or not waiter.wait():
            samples.add(block.T, use)
            return
        samples.repeated += 1


def _time_frame(
    case: Case, frame: Frame, presenter: OffscreenPresenter
) -> tuple[int, int, int, int]:
    """Upscale and draw one frame.

    A shader's upscaling is the drawing: from the end of the upload until the GL has finished.
    Its processor time cannot be told from the upload's and is given as 0.
    """
    cpu_ns, begin_ns = time.process_time_ns(), time.perf_counter_ns()
    picture = case.upscale(frame)
    upscaled_ns, upscaled_cpu_ns = time.perf_counter_ns(), time.process_time_ns()
    shown = presenter.show(picture, None)
    whole_cpu_ns = time.process_time_ns() - cpu_ns
    whole_ns = shown.swapped_ns - begin_ns
    if case.kind == "shader":
        return shown.swapped_ns - shown.uploaded_ns, whole_ns, 0, whole_cpu_ns
    return upscaled_ns - begin_ns, whole_ns, upscaled_cpu_ns - cpu_ns, whole_cpu_ns
