"""GPU time of a frame by OpenGL's timer queries.

Belongs to the thread that owns the GL context.
"""

from __future__ import annotations

import ctypes
import time
from collections import deque

import numpy as np

from overlay.present.gl import GL


class GpuTimer:
    """A ring of elapsed-time queries, read when they are ready and never waited for."""

    def __init__(self, depth: int = 4) -> None:
        self._idle = deque(int(np.ravel(GL.glGenQueries(1))[0]) for _ in range(depth))
        self._running: deque[tuple[int, int]] = deque()  # query, host time of its begin
        self._current = 0
        self._begun_ns = 0
        #: The latest result in ns; 0 until there is one.
        self.latest_ns = 0

    def begin(self) -> None:
        """Read what is ready and start a query, unless all are still running."""
        value = ctypes.c_uint64()
        while self._running:
            ready = ctypes.c_uint32()
            GL.glGetQueryObjectuiv(
                self._running[0][0], GL.GL_QUERY_RESULT_AVAILABLE, ctypes.byref(ready)
            )
            if not ready.value:
                break
            query, begun_ns = self._running.popleft()
            GL.glGetQueryObjectui64v(query, GL.GL_QUERY_RESULT, ctypes.byref(value))
            # llvmpipe gives the time since boot for a query it never began.
            if value.value <= time.perf_counter_ns() - begun_ns:
                self.latest_ns = int(value.value)
            self._idle.append(query)
        self._current = self._idle.popleft() if self._idle else 0
        if self._current:
            self._begun_ns = time.perf_counter_ns()
            GL.glBeginQuery(GL.GL_TIME_ELAPSED, self._current)

    def end(self) -> None:
        """End the query that `begin` started."""
        if self._current:
            GL.glEndQuery(GL.GL_TIME_ELAPSED)
            self._running.append((self._current, self._begun_ns))

    def delete(self) -> None:
        queries = [*self._idle, *(query for query, _ in self._running)]
        GL.glDeleteQueries(len(queries), queries)
