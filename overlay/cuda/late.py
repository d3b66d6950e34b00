"""A device that runs late: queues of work, and dice that say whose turn it is.

Nothing runs when it is put into a queue; `advance` takes from the queues in any order that their
waits allow. What was put in is logged, and its accesses are checked by `overlay.cuda.races`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from overlay.cuda.races import Access, Allocation, Race, Stamp, Timeline, join
from overlay.frame import Pixels

#: What memory holds before something was written to it.
RUBBISH = 0xCD
#: Device time of a copy, a program or a draw; events and waits take none.
WORK_MS = 0.25
#: How often the dice change their preference.
CHANGE = 0.1

#: The two timelines that are no streams.
HOST, OPENGL = 0, 1

#: Given the bytes that are read and those that are written.
Run = Callable[[list[Pixels], list[Pixels]], None]


@dataclass(slots=True, eq=False)
class Operation:
    """One thing that was asked for.

    Attributes:
        kind: "upload", "download", "copy", "compute", "record", "wait", "map", "unmap", "draw";
            on the host "done", "synchronize", "host read", "host write".
        stream: its name; "host" and "OpenGL" for the other two timelines.
        name: of the event or, for what a graph launched, of the graph.
        reads: names of the memory it reads.
        writes: names of the memory it writes.
        done: whether it has run.
        at_ms: device time at which it ended.
    """

    kind: str
    stream: str
    stamp: Stamp = field(repr=False)
    name: str = ""
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    done: bool = False
    at_ms: float = 0.0

    def before(self, other: Operation) -> bool:
        """Whether the other one surely starts after this one ended."""
        return self.stamp.before(other.stamp)

    def __str__(self) -> str:
        return _title(self.kind, self.stream, self.name, self.reads, self.writes)


def _title(kind: str, stream: str, name: str, reads: Sequence[str], writes: Sequence[str]) -> str:
    words = [kind, name, ", ".join(reads)]
    if writes:
        words.append(f"-> {', '.join(writes)}")
    return f"[{' '.join(filter(None, words))}] in {stream}"


class Range(NamedTuple):
    """Bytes of an allocation."""

    allocation: Allocation
    start: int
    end: int

    def pixels(self) -> Pixels:
        """Give them: uint8, (end - start,)."""
        return self.allocation.data[self.start : self.end]

    def overlaps(self, other: Range) -> bool:
        """Whether the two have a byte in common."""
        same = self.allocation is other.allocation
        return same and self.start < other.end and other.start < self.end


@dataclass(slots=True, eq=False)
class Work:
    """Work in a queue.

    Attributes:
        after: what must be done before it starts.
        run: None for events and the like.
    """

    operation: Operation
    after: Operation | None = None
    run: Run | None = None
    reads: list[Range] = field(default_factory=list)
    writes: list[Range] = field(default_factory=list)


@dataclass(slots=True)
class Queue:
    """What was put into a stream and has not run."""

    timeline: Timeline
    work: deque[Work] = field(default_factory=deque)


class LateDevice:
    """Queues, their clocks, and what they did.

    Attributes:
        log: everything that was put in, in that order.
        complaints: every error that was raised about it.
        queues: by handle; that of OpenGL is there from the start.
        host, opengl: the timelines of the two.
        running: the work that runs just now.
    """

    def __init__(self, seed: int) -> None:
        self.log: list[Operation] = []
        self.complaints: list[AssertionError] = []
        self.host = Timeline(HOST, "host")
        self.opengl = Timeline(OPENGL, "OpenGL")
        self.queues = {OPENGL: Queue(self.opengl)}
        self.running: Work | None = None
        self._dice = random.Random(seed)
        self._preferred: dict[int, float] = {}
        self._now_ms = 0.0

    def some(self) -> int:
        """Throw the dice: how far the device gets while the host asks it something."""
        return self._dice.randrange(4)

    def complain(self, error: AssertionError) -> AssertionError:
        """Remember an error, to be raised."""
        self.complaints.append(error)
        return error

    def advance(self, steps: int | None = None) -> int:
        """Let the device run up to `steps` operations, all by default; gives how many ran."""
        count = 0
        while steps is None or count < steps:
            queue = self._next()
            if queue is None:
                break
            self._run(queue.work.popleft())
            count += 1
        return count

    def _next(self) -> Queue | None:
        """Choose who runs: the same order of preference for a while, so that some fall behind.

        After S. Burckhardt et al., "A randomized scheduler with probabilistic guarantees of
        finding bugs", ASPLOS 2010.
        """
        if not self._preferred or self._dice.random() < CHANGE:
            self._preferred = {handle: self._dice.random() for handle in self.queues}
        ready = [handle for handle, queue in self.queues.items() if self._is_ready(queue)]
        if not ready:
            return None
        return self.queues[max(ready, key=lambda handle: self._preferred.get(handle, 0.5))]

    def _is_ready(self, queue: Queue) -> bool:
        if not queue.work:
            return False
        after = queue.work[0].after
        return after is None or after.done

    def _run(self, work: Work) -> None:
        operation = work.operation
        operation.done = True  # also if it fails: it is not in the queue any more
        if work.run is not None:
            self._now_ms += WORK_MS
            self.running = work
            try:
                work.run(
                    [one.pixels() for one in work.reads], [one.pixels() for one in work.writes]
                )
            finally:
                self.running = None
        operation.at_ms = self._now_ms

    def is_pending(self, memory: Range, kinds: tuple[str, ...] = ()) -> bool:
        """Whether work that touches these bytes, of these kinds or of any, has not run."""
        return any(
            memory.overlaps(one)
            for queue in self.queues.values()
            for work in queue.work
            if not kinds or work.operation.kind in kinds
            for one in (*work.reads, *work.writes)
        )

    def push(
        self,
        queue: Queue,
        kind: str,
        *,
        name: str = "",
        after: Operation | None = None,
        run: Run | None = None,
        reads: Sequence[Range] = (),
        writes: Sequence[Range] = (),
    ) -> Operation:
        """Put work into a queue.

        Raises:
            Race: it touches what earlier work touches that it is not ordered with.
        """
        timeline = queue.timeline
        if timeline is not self.opengl:
            join(timeline.clock, self.host.clock)
        operation = self.note(kind, timeline, name, reads, writes)
        queue.work.append(Work(operation, after, run, list(reads), list(writes)))
        return operation

    def note(
        self,
        kind: str,
        timeline: Timeline,
        name: str,
        reads: Sequence[Range],
        writes: Sequence[Range],
    ) -> Operation:
        """Log an operation and check its accesses.

        Raises:
            Race: as `push`.
        """
        operation = Operation(
            kind,
            timeline.name,
            timeline.tick(),
            name,
            tuple(one.allocation.name for one in reads),
            tuple(one.allocation.name for one in writes),
        )
        self.log.append(operation)
        title = str(operation)
        for ranges, is_write in ((reads, False), (writes, True)):
            for allocation, start, end in ranges:
                try:
                    allocation.note(Access(start, end, is_write, title, operation.stamp))
                except Race as exc:
                    raise self.complain(exc) from None
        return operation


def inside(part: Range, whole: Range) -> bool:
    """Whether all bytes of a range are in the other."""
    same = part.allocation is whole.allocation
    return same and whole.start <= part.start and part.end <= whole.end
