"""The hand-off between two stages: one slot, the newest item wins.

If the consumer has not taken the pending item when the producer puts the next one, the pending
item is lost and counted: the consumer always gets the very latest frame, so that latency never
builds up in a queue.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestFrame(Generic[T]):
    """A thread-safe slot for one item.

    Args:
        on_superseded: called with each item that was overwritten, on the producer's thread.
        on_put: called after each `put`, on the producer's thread (to wake an event loop).
    """

    def __init__(
        self,
        on_superseded: Callable[[T], None] | None = None,
        on_put: Callable[[], None] | None = None,
    ) -> None:
        self._on_superseded = on_superseded
        self._on_put = on_put
        self._changed = Condition()
        self._item: T | None = None  # guarded by _changed
        self._closed = False  # guarded by _changed

    def put(self, item: T) -> None:
        """Offer `item`, replacing one that was not taken yet."""
        with self._changed:
            lost, self._item = self._item, item
            self._changed.notify()
        if lost is not None and self._on_superseded is not None:
            self._on_superseded(lost)
        if self._on_put is not None:
            self._on_put()

    def take(self, timeout_s: float | None = None) -> T | None:
        """Take the item, waiting for one; None after `timeout_s`, or when closed and empty."""
        with self._changed:
            if self._item is None and not self._closed:
                self._changed.wait_for(lambda: self._item is not None or self._closed, timeout_s)
            item, self._item = self._item, None
            return item

    def close(self) -> None:
        """Wake the consumer for good; an item still in the slot can be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether it is closed and empty: nothing more will come."""
        with self._changed:
            return self._closed and self._item is None
