"""Who configured what: a session's id cannot be guessed, and belongs to the key that made it."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from service.errors import Refused
from service.schemas import Order

#: Most sessions; the longest unused goes first.
LIMIT = 10_000
#: Seconds after which an unused session ends.
LIFETIME_S = 24 * 3600


@dataclass(slots=True)
class _Session:
    order: Order
    owner: str
    used: float


class Sessions:
    """Orders by session. Thread-safe.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._sessions: OrderedDict[str, _Session] = OrderedDict()  # guarded; last used at the end

    def put(self, order: Order, owner: str, session: str | None) -> str:
        """Set a session's order.

        Args:
            order: what its requests get that do not say otherwise.
            owner: who asks: "" where no keys are needed.
            session: whose; None or one that is unknown: a new one.
        Returns:
            Its id.
        """
        with self._lock:
            self._expire()
            known = self._sessions.get(session or "")
            if session is None or known is None or known.owner != owner:
                session = secrets.token_urlsafe(24)
            self._sessions[session] = _Session(order, owner, self._clock())
            self._sessions.move_to_end(session)
            while len(self._sessions) > LIMIT:
                self._sessions.popitem(last=False)
            return session

    def get(self, session: str, owner: str) -> Order:
        """Give a session's order.

        Raises:
            Refused: there is none, or it is somebody else's.
        """
        with self._lock:
            self._expire()
            known = self._sessions.get(session)
            if known is None or known.owner != owner:
                raise Refused("there is no such session (any more): configure a model again")
            known.used = self._clock()
            self._sessions.move_to_end(session)
            return known.order

    def _expire(self) -> None:
        before = self._clock() - LIFETIME_S
        while self._sessions and next(iter(self._sessions.values())).used < before:
            self._sessions.popitem(last=False)

    def __len__(self) -> int:
        return len(self._sessions)
