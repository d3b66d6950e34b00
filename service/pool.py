"""The loaded models: as many as fit into a memory budget, the least used closed first."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Lock, Semaphore

from overlay.closing import Closing
from service.backends import Backend, Model
from service.errors import Unavailable

log = logging.getLogger(__name__)

#: How often a thread that waits looks whether it still should.
_LOOK_S = 0.05


class _Entry:
    """A model of the pool.

    Attributes:
        lock: held while it is opened.
        slots: how many threads may use it; set when it is open.
        users: threads that have or wait for it; guarded by the pool.
        bytes: as estimated, then as it tells; guarded by the pool.
    """

    __slots__ = ("bytes", "lock", "model", "slots", "users")

    def __init__(self, bytes: int) -> None:
        self.lock = Lock()
        self.model: Model | None = None
        self.slots = Semaphore(1)
        self.users = 0
        self.bytes = bytes


class ModelPool(Closing):
    """Opens models once and lends them out.

    Args:
        backend: opens them; not closed with the pool.
        budget: bytes of all models together, as they estimate them.
    """

    def __init__(self, backend: Backend, budget: int) -> None:
        self._backend = backend
        self._budget = budget
        self._changed = Condition()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # guarded by _changed

    @property
    def loaded(self) -> dict[str, int]:
        """The open models and the bytes that each takes."""
        with self._changed:
            return {name: one.bytes for name, one in self._entries.items() if one.model}

    @contextmanager
    def lease(self, name: str, check: Callable[[], None] = lambda: None) -> Iterator[Model]:
        """Lend a model, opened first if need be.

        Args:
            name: as `Backend.open` takes it.
            check: called while waiting; what it raises ends that.
        Raises:
            Unavailable: it is larger than the whole budget.
            EngineError, OverlayError: it cannot be opened.
        """
        entry = self._pinned(name, check)
        try:
            _acquire(entry.lock, check)
            try:
                if entry.model is None:
                    self._open(name, entry)
            finally:
                entry.lock.release()
            assert entry.model is not None
            _acquire(entry.slots, check)
            try:
                yield entry.model
            finally:
                entry.slots.release()
        finally:
            self._unpin(name, entry)

    def _pinned(self, name: str, check: Callable[[], None]) -> _Entry:
        """Give a model's entry, which stays; wait for room if it is new."""
        wanted = 0
        while True:
            check()
            with self._changed:
                if entry := self._entries.get(name):
                    self._entries.move_to_end(name)
                    entry.users += 1
                    return entry
                if wanted:
                    self._evict(self._budget - wanted)
                    if self._used() + wanted <= self._budget:
                        entry = self._entries[name] = _Entry(wanted)
                        entry.users = 1
                        return entry
                    self._changed.wait(_LOOK_S)
                    continue
            wanted = self._estimate(name)  # not under the lock: it may look at files

    def _estimate(self, name: str) -> int:
        plain = name.partition("@")[0]
        wanted = next((one.bytes for one in self._backend.offers() if one.id == plain), 1)
        if wanted > self._budget:
            raise Unavailable(
                f"{name} takes {wanted >> 20} MiB, more than the {self._budget >> 20} MiB that "
                "this server has for models: choose a smaller one"
            )
        return max(1, wanted)

    def _open(self, name: str, entry: _Entry) -> None:
        start = time.perf_counter()
        model = self._backend.open(name)
        entry.slots = Semaphore(model.slots)
        with self._changed:
            entry.model, entry.bytes = model, max(entry.bytes, model.bytes)
        log.info("opened %s in %.1f s", name, time.perf_counter() - start)

    def _unpin(self, name: str, entry: _Entry) -> None:
        with self._changed:
            entry.users -= 1
            if entry.model is None and not entry.users:
                self._entries.pop(name, None)  # it could not be opened
            elif entry.model is not None:
                entry.bytes = max(entry.model.bytes, 1)
            self._evict(self._budget)
            self._changed.notify_all()

    def _used(self) -> int:
        return sum(entry.bytes for entry in self._entries.values())

    def _evict(self, budget: int) -> None:
        """Close idle models, the longest unused first, until the others fit."""
        idle = [name for name, entry in self._entries.items() if not entry.users]
        for name in idle:
            if self._used() <= budget:
                return
            entry = self._entries.pop(name)
            if entry.model is not None:
                entry.model.close()
                log.info("closed %s to make room", name)

    def close(self) -> None:
        """Close all models; nobody may have one."""
        with self._changed:
            while self._entries:
                _, entry = self._entries.popitem()
                if entry.model is not None:
                    entry.model.close()


def _acquire(lock: Lock | Semaphore, check: Callable[[], None]) -> None:
    """Take a lock, looking now and then whether it is still wanted."""
    while not lock.acquire(timeout=_LOOK_S):
        check()
