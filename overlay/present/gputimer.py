"""When the GPU drew a frame, by OpenGL's time stamps, on the host's clock.

Belongs to the thread that owns the GL context.
"""

from __future__ import annotations

import ctypes
import time
from collections import deque
from typing import NamedTuple

import numpy as np

from overlay.present.gl import GL, GL_3_2
from overlay.trace.deviceclock import DeviceClock

#: Between two comparisons of the clocks; each takes some microseconds.
_COMPARE_NS = 100_000_000


class DrawSpan(NamedTuple):
    """Work of the GPU.

    Attributes:
        start_ns: `perf_counter_ns`, give or take `error_ns`; 0 if nothing is known yet.
        duration_ns: by OpenGL's clock.
    """

    start_ns: int = 0
    duration_ns: int = 0
    error_ns: int = 0


class _Running(NamedTuple):
    """A frame's two time stamps, and the host's time before the first was asked for."""

    first: int
    last: int
    begun_ns: int


class GpuTimer:
    """A ring of pairs of time stamps, read when they are ready and never waited for."""

    def __init__(self, depth: int = 4) -> None:
        bits = ctypes.c_int32()
        GL.glGetQueryiv(GL.GL_TIMESTAMP, GL.GL_QUERY_COUNTER_BITS, ctypes.byref(bits))
        pairs = depth if bits.value else 0
        self._idle = deque((_new_query(), _new_query()) for _ in range(pairs))
        self._running: deque[_Running] = deque()
        self._current: _Running | None = None
        self._clock = DeviceClock()
        self._compared_ns: int | None = None
        #: The latest frame that is known.
        self.latest = DrawSpan()

    def begin(self) -> None:
        """Read what is ready and take the first time stamp, unless all are still running."""
        now_ns = time.perf_counter_ns()
        if self._running and _is_ready(self._running[0].last):
            self._compare(now_ns)
            while self._running and _is_ready(self._running[0].last):
                self._read(self._running.popleft())
        self._current = None
        if self._idle:
            first, last = self._idle.popleft()
            GL.glQueryCounter(first, GL.GL_TIMESTAMP)
            self._current = _Running(first, last, now_ns)

    def end(self) -> None:
        """Take the second time stamp of the frame that `begin` started."""
        if self._current is not None:
            GL.glQueryCounter(self._current.last, GL.GL_TIMESTAMP)
            self._running.append(self._current)

    def delete(self) -> None:
        """Free the queries; the context must be current."""
        queries = [query for pair in self._idle for query in pair]
        queries += [query for one in self._running for query in (one.first, one.last)]
        GL.glDeleteQueries(len(queries), queries)

    def _compare(self, now_ns: int) -> None:
        """Read OpenGL's clock, now and then, and often at first."""
        if self._compared_ns is not None and now_ns - self._compared_ns < _COMPARE_NS:
            return
        for _ in range(1 if self._compared_ns is not None else 8):
            device = ctypes.c_int64()
            before_ns = time.perf_counter_ns()
            GL_3_2.glGetInteger64v(GL.GL_TIMESTAMP, ctypes.byref(device))
            after_ns = time.perf_counter_ns()
            self._clock.observe(before_ns, device.value, device.value, after_ns)
        self._compared_ns = now_ns

    def _read(self, frame: _Running) -> None:
        self._idle.append((frame.first, frame.last))
        first, last = _result(frame.first), _result(frame.last)
        start = self._clock.at(first)
        # llvmpipe gives garbage for a query that it never came to.
        earliest, latest = frame.begun_ns - start.error_ns, time.perf_counter_ns() + start.error_ns
        if earliest <= start.host_ns and 0 <= last - first <= latest - start.host_ns:
            self.latest = DrawSpan(start.host_ns, last - first, start.error_ns)


def _new_query() -> int:
    return int(np.ravel(GL.glGenQueries(1))[0])


def _is_ready(query: int) -> bool:
    ready = ctypes.c_uint32()
    GL.glGetQueryObjectuiv(query, GL.GL_QUERY_RESULT_AVAILABLE, ctypes.byref(ready))
    return bool(ready.value)


def _result(query: int) -> int:
    value = ctypes.c_uint64()
    GL.glGetQueryObjectui64v(query, GL.GL_QUERY_RESULT, ctypes.byref(value))
    return int(value.value)
