"""A device's clock on the host's: where an event of the GPU lies in `perf_counter_ns`.

The host cannot read the device's clock without a delay. But work does not begin before it was
asked for, and has ended when it is seen to be done; each bounds, from one side, the offset

    host time - device time

and costs nothing beyond two readings of the host's clock. The tightest bounds win: with both from
one exchange the error is at most half of the round trip (F. Cristian, "Probabilistic clock
synchronization", 1989; NTP's clock filter, RFC 5905, section 10, keeps the exchange of the smallest
delay likewise). Bounds of different times also bound how fast the two clocks drift apart, and
thereby how long each is of use (A. Duda et al., "Estimating global time in distributed systems",
1987). The result is a bound, not a guess, as long as the drift stays below `MAX_DRIFT`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from overlay.cuda import Cuda, Event, Stream
from overlay.frame import DeviceSpan, DeviceTimes

#: Crystal oscillators of PCs and graphics cards are within 50 ppm each, mostly within 20.
MAX_DRIFT = 100e-6
#: CUDA's events are that fine, by its documentation, 0.5 us; and our base of them.
RESOLUTION_NS = 1000

_WINDOW_NS = 500_000_000
_WINDOWS = 8


class Moment(NamedTuple):
    """A moment of the device on the host's clock, `perf_counter_ns`, give or take `error_ns`."""

    host_ns: int
    error_ns: int


class _Bound(NamedTuple):
    """At this time of the device, the offset is at least, or at most, so much; all in ns."""

    device_ns: int
    offset_ns: int


@dataclass(slots=True)
class _Window:
    """The tightest bounds of a stretch of time."""

    until_ns: int  # device time
    below: _Bound
    above: _Bound


class DeviceClock:
    """Learns how a device's clock runs; the last four seconds count. Not thread-safe.

    Args:
        resolution_ns: of the device's clock; part of every error.
    """

    def __init__(self, resolution_ns: int = RESOLUTION_NS) -> None:
        self._resolution_ns = resolution_ns
        self._windows: deque[_Window] = deque(maxlen=_WINDOWS)
        #: The least and the most that the offset changes, in ns per ns of the device.
        self.drift = (-MAX_DRIFT, MAX_DRIFT)

    def observe(self, asked_ns: int, begin_ns: int, end_ns: int, seen_ns: int) -> None:
        """Learn from work on the device; if it cannot be with what was known, start afresh.

        Args:
            asked_ns: host time before the work was asked for.
            begin_ns, end_ns: of the work, by the device's clock; the same for a mere reading.
            seen_ns: host time after the work was seen to be done.
        """
        below, above = _Bound(begin_ns, asked_ns - begin_ns), _Bound(end_ns, seen_ns - end_ns)
        if self._windows and not self._agrees(below, above):
            self.restart()  # the clock was set, or stood still: a reset, a suspend
        last = self._windows[-1] if self._windows else None
        if last is None or end_ns >= last.until_ns:
            if last is not None:
                self.drift = self._find_drift()
            self._windows.append(_Window(end_ns + _WINDOW_NS, below, above))
            return
        if below.offset_ns > last.below.offset_ns:
            last.below = below
        if above.offset_ns < last.above.offset_ns:
            last.above = above

    def restart(self) -> None:
        """Forget what was learned."""
        self._windows.clear()
        self.drift = (-MAX_DRIFT, MAX_DRIFT)

    def at(self, device_ns: int) -> Moment:
        """Find when a time of the device was.

        Raises:
            ValueError: nothing was observed yet.
        """
        if not self._windows:
            raise ValueError("the device's clock was not observed yet")
        low, high = self._least(device_ns), self._most(device_ns)
        error_ns = round(abs(high - low) / 2) + self._resolution_ns
        return Moment(device_ns + round((low + high) / 2), error_ns)

    def _least(self, device_ns: int) -> float:
        """The least that the offset may be at a time of the device."""
        slow, fast = self.drift
        return max(
            offset_ns + (device_ns - at_ns) * (slow if device_ns > at_ns else fast)
            for at_ns, offset_ns in (window.below for window in self._windows)
        )

    def _most(self, device_ns: int) -> float:
        """The most that the offset may be then."""
        slow, fast = self.drift
        return min(
            offset_ns + (device_ns - at_ns) * (fast if device_ns > at_ns else slow)
            for at_ns, offset_ns in (window.above for window in self._windows)
        )

    def _agrees(self, below: _Bound, above: _Bound) -> bool:
        slack = 2 * self._resolution_ns
        return (
            below.offset_ns <= self._most(below.device_ns) + slack
            and above.offset_ns >= self._least(above.device_ns) - slack
        )

    def _find_drift(self) -> tuple[float, float]:
        """Bound the drift: a line over time lies above all lower bounds and below all upper."""
        least, most = -MAX_DRIFT, MAX_DRIFT
        slack = 2 * self._resolution_ns
        for low in self._windows:
            for high in self._windows:
                distance = high.above.device_ns - low.below.device_ns
                rise = high.above.offset_ns - low.below.offset_ns + slack
                if distance > 0:
                    most = min(most, rise / distance)
                elif distance < 0:
                    least = max(least, rise / distance)
        return (least, most) if least <= most else (-MAX_DRIFT, MAX_DRIFT)


#: The events before and after a piece of work.
Marks = tuple[Event, Event]

#: CUDA gives distances of events as 32-bit floats of ms: fine to 0.25 us at this distance.
_RENEW_MS = 4000.0


def _coarseness_ns(distance_ns: int) -> int:
    """How wrong a distance of events may be by being a 32-bit float of ms.

    0 where `RESOLUTION_NS` covers it. It grows when no frame came for a while, as the base is
    renewed at frames.
    """
    distance_ms = abs(distance_ns) / 1e6
    if distance_ms <= 2 * _RENEW_MS:
        return 0
    return math.ceil(float(np.spacing(np.float32(distance_ms))) * 1e6)


class CudaClock:
    """Gives the times of a frame's events, made with timing, on the host's clock.

    Args:
        cuda: the device.
        stream: where frames begin: the one of the first event.
    """

    def __init__(self, cuda: Cuda, stream: Stream) -> None:
        self._cuda = cuda
        self._stream = stream
        #: What distances are measured from, and what will be next.
        self._base = cuda.event("clock 0", timing=True)
        self._next = cuda.event("clock 1", timing=True)
        self._base_ns = 0
        self._renewing = False
        self._closed = False
        self.clock = DeviceClock()
        cuda.record(self._base, stream)

    def times(
        self,
        asked_ns: int,
        seen_ns: int,
        upload: Marks,
        infer: Marks,
        download: Marks | None = None,
    ) -> DeviceTimes:
        """Give a frame's times, in order of the frames; never waits.

        Args:
            asked_ns: `perf_counter_ns` before the first of these events was recorded.
            seen_ns: `perf_counter_ns` after the last of them was seen to be done.
            upload, infer, download: events that were reached.
        Raises:
            CudaError: an event is unknown, or was not reached.
        """
        last = download or infer
        begin_ns, end_ns = self._device_ns(upload[0]), self._device_ns(last[1])
        coarse_ns = _coarseness_ns(end_ns - self._base_ns)
        self.clock.observe(asked_ns - coarse_ns, begin_ns, end_ns, seen_ns + coarse_ns)
        begin = self.clock.at(begin_ns)
        offset_ns = begin.host_ns - begin_ns
        times = DeviceTimes(
            self._span(upload, offset_ns),
            self._span(infer, offset_ns),
            self._span(download, offset_ns) if download else None,
            begin.error_ns + coarse_ns,
        )
        self._renew(begin_ns)
        return times

    def close(self) -> None:
        """Free its events; idempotent."""
        if not self._closed:
            self._closed = True
            self._cuda.free(self._base, self._next)

    def _device_ns(self, event: Event) -> int:
        return self._base_ns + round(self._cuda.elapsed_ms(self._base, event) * 1e6)

    def _span(self, marks: Marks, offset_ns: int) -> DeviceSpan:
        duration_ns = round(self._cuda.elapsed_ms(*marks) * 1e6)
        return DeviceSpan(self._device_ns(marks[0]) + offset_ns, duration_ns)

    def _renew(self, begin_ns: int) -> None:
        """Let distances be measured from a newer event, once the frames are past it."""
        if not self._renewing:
            if begin_ns - self._base_ns > _RENEW_MS * 1e6:
                self._cuda.record(self._next, self._stream)
                self._renewing = True
            return
        if not self._cuda.done(self._next):
            return
        next_ns = self._device_ns(self._next)
        if begin_ns > next_ns:
            if _coarseness_ns(next_ns - self._base_ns):
                self.clock.restart()  # what is told by the new base is apart by that much
            self._base, self._next = self._next, self._base
            self._base_ns = next_ns
            self._renewing = False
