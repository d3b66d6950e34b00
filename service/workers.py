"""A fixed number of threads, a short queue before them, and 429 for the rest.

A slot is free again when its thread has ended, not when its client went: work that nobody waits
for ends at its next look at `Stop`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from overlay.closing import Closing
from service.errors import Busy, TimedOut

T = TypeVar("T")


class Stopped(Exception):
    """Nobody waits for this work any more."""


class Stop:
    """Tells a thread whether its work is still wanted; called with a share, it is a `Progress`."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """End the work at its next look."""
        self._event.set()

    def __call__(self, fraction: float = 0.0) -> None:
        if self._event.is_set():
            raise Stopped


class Workers(Closing):
    """Runs work off the event loop.

    All methods are called on the loop's thread.

    Args:
        slots: threads.
        queue: how many may wait.
        timeout_s: longest time from `run` to its result.
    """

    def __init__(self, slots: int, queue: int, timeout_s: float) -> None:
        self._threads = ThreadPoolExecutor(slots, "work")
        self._free = asyncio.Semaphore(slots)
        self._queue = queue
        self._timeout_s = timeout_s
        self.waiting = 0
        self.running = 0

    async def run(self, work: Callable[[Stop], T]) -> T:
        """Do work on a thread once one is free.

        Raises:
            Busy: the queue is full.
            TimedOut: it took too long; its thread is told to end.
        """
        stop = Stop()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._slot()
                future = asyncio.get_running_loop().run_in_executor(self._threads, work, stop)
                future.add_done_callback(self._ended)
                return await asyncio.shield(future)
        except TimeoutError as exc:
            raise TimedOut(
                f"it took longer than {self._timeout_s:g} s: send a smaller picture, or choose a "
                "quicker model"
            ) from exc
        finally:
            stop.set()

    async def _slot(self) -> None:
        if self._free.locked() and self.waiting >= self._queue:
            raise Busy(f"{self.running} pictures are in work and {self.waiting} wait")
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1

    def _ended(self, future: asyncio.Future[T]) -> None:
        self.running -= 1
        self._free.release()
        if not future.cancelled():
            future.exception()  # whoever waits has seen it too; others left

    def close(self) -> None:
        """Wait for the threads; what has not begun does not."""
        self._threads.shutdown(cancel_futures=True)
