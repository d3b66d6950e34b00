"""Who comes before whom on streams, host and OpenGL: vector clocks, and the accesses they order.

Every timeline (a stream, the host, the OpenGL context) counts its operations, and knows up to
which count of every other timeline it comes after. Two operations are ordered if the later one's
clock has reached the earlier one's count (C. Fidge, "Timestamps in message-passing systems that
preserve the partial ordering", 1988; F. Mattern, "Virtual time and global states", 1989). Two
accesses to the same bytes, at least one of them writing, that nothing orders are a race.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from overlay.frame import Pixels

Clock = dict[int, int]


class Race(AssertionError):
    """Two accesses to the same memory that nothing orders; the message names both."""


def join(clock: Clock, other: Clock) -> None:
    """Let `clock` come after all that `other` comes after."""
    for timeline, count in other.items():
        if count > clock.get(timeline, 0):
            clock[timeline] = count


@dataclass(frozen=True, slots=True)
class Stamp:
    """One operation's place: the `count`-th of its timeline, after all that `clock` says."""

    timeline: int
    count: int
    clock: Clock

    def before(self, other: Stamp) -> bool:
        """Whether this operation has surely ended when the other one starts."""
        return other.clock.get(self.timeline, 0) >= self.count


@dataclass(slots=True)
class Timeline:
    """Operations that run one after another."""

    id: int
    name: str
    clock: Clock = field(default_factory=dict)

    def tick(self) -> Stamp:
        """Give the next operation its place."""
        count = self.clock.get(self.id, 0) + 1
        self.clock[self.id] = count
        return Stamp(self.id, count, dict(self.clock))


@dataclass(frozen=True, slots=True)
class Access:
    """Bytes `start` to `end` of an allocation, read or written by an operation."""

    start: int
    end: int
    writes: bool
    operation: str
    stamp: Stamp

    def conflicts(self, other: Access) -> bool:
        """Whether the order of the two matters."""
        overlap = self.start < other.end and other.start < self.end
        return overlap and (self.writes or other.writes)

    def hides(self, other: Access) -> bool:
        """Whether what races with the other one races with this one too."""
        covers = self.start <= other.start and other.end <= self.end
        return covers and (self.writes or not other.writes) and other.stamp.before(self.stamp)


@dataclass(slots=True)
class Allocation:
    """Memory with its contents and the last accesses to it.

    Attributes:
        data: uint8, (size,).
        name: for people.
    """

    data: Pixels
    name: str
    accesses: list[Access] = field(default_factory=list)

    def note(self, access: Access) -> None:
        """Add an access.

        Raises:
            Race: an earlier one is not ordered before it.
        """
        for earlier in self.accesses:
            if earlier.conflicts(access) and not earlier.stamp.before(access.stamp):
                raise Race(
                    f"{access.operation} {'writes' if access.writes else 'reads'} {self.name}, "
                    f"and nothing lets it wait for {earlier.operation}, "
                    f"which {'writes' if earlier.writes else 'reads'} it"
                )
        self.accesses = [one for one in self.accesses if not access.hides(one)]
        self.accesses.append(access)
