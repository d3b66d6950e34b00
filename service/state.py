"""One server's parts, and how a request's order is completed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from importlib import resources
from typing import Any, TypeVar

from starlette.requests import Request

from engines.errors import EngineError
from overlay.errors import OverlayError
from overlay.files import enlarge
from service import pictures
from service.backends import Backend
from service.catalogue import Catalogue
from service.errors import Busy, Refused, TimedOut, Unavailable
from service.guard import Keys
from service.metrics import Metrics
from service.pool import ModelPool
from service.schemas import Health, Order
from service.sessions import Sessions
from service.settings import Settings
from service.workers import Stop, Workers

log = logging.getLogger(__name__)

#: Pause between two attempts to get ready.
_AGAIN_S = 5.0

T = TypeVar("T")


class ClientGone(Exception):
    """Nobody waits for the answer."""


class Service:
    """The parts of a server; nothing is loaded before `start`."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self.settings = settings
        self.backend = backend
        self.catalogue = Catalogue(backend, settings.models)
        self.pool = ModelPool(backend, settings.memory_mib << 20)
        self.workers = Workers(settings.workers, settings.queue, settings.request_s)
        self.sessions = Sessions()
        self.keys = Keys(settings.api_keys)
        self.metrics = Metrics(self.workers, self.pool)
        self.streams = 0
        self.health = Health(status="starting")
        self._starting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the model of requests that name none, while health can be asked already."""
        self._starting = asyncio.create_task(self._warm())

    async def _warm(self) -> None:
        """Try until it is ready, unless it cannot ever be: a Triton server may start later."""
        while True:
            try:
                await self._try()
            except (Busy, TimedOut, Unavailable) as exc:
                self._broken(exc)
                await asyncio.sleep(_AGAIN_S)
            except Exception as exc:  # nobody else reads this task's result
                self._broken(exc)
                return
            else:
                self.health = Health(status="ok")
                return

    async def _try(self) -> None:
        order = self.complete(Order(), None, "")
        if self.settings.warm:
            await self.workers.run(lambda stop: self.upscale(example(), order, stop))
        else:
            await asyncio.to_thread(self.catalogue.find, order.model or enlarge.DEFAULT)

    def _broken(self, exc: Exception) -> None:
        if self.health.status != "broken":
            log.error("not ready: %s", exc)
        self.health = Health(status="broken", reason=str(exc))

    async def stop(self) -> None:
        """Let what is in work end, and close the models."""
        self.health = Health(status="stopping")
        if self._starting:
            self._starting.cancel()
        await asyncio.to_thread(self.workers.close)
        await asyncio.to_thread(self.pool.close)
        self.backend.close()

    def complete(self, order: Order, session: str | None, owner: str) -> Order:
        """Fill in what an order leaves open: from the session, else from the server.

        Raises:
            Refused: there is no such session.
        """
        if session is not None:
            order = order.over(self.sessions.get(session, owner))
        return order.over(Order(model=self.settings.model))

    def upscale(
        self, data: bytes, order: Order, stop: Stop, queued_ms: float = 0.0
    ) -> pictures.Result:
        """Upscale one file on a worker's thread, see `pictures.upscale`."""
        return pictures.upscale(data, order, self.pool, self.catalogue.scale_of, stop, queued_ms)

    def configure(self, order: Order, stop: Stop) -> tuple[int, str]:
        """Open the model that an order names, on a worker's thread.

        Returns:
            Its scale and the licence of its weights.
        Raises:
            Refused: it cannot be had; nothing has changed.
        """
        wish = pictures.wish_of(order)
        offer = self.catalogue.find(wish.model)
        try:
            name = enlarge.model_name(wish, (480, 270))
            with self.pool.lease(name, stop):
                return offer.scale, offer.licence
        except (EngineError, OverlayError) as exc:
            raise Refused(f"something went wrong with model configuration: {exc}") from exc

    async def work(self, request: Request, work: Callable[[Stop, float], T]) -> T:
        """Do a request's work on a thread, for as long as its client is there.

        Args:
            work: takes how long it waited, in milliseconds.
        Raises:
            ClientGone: the client went; the slot is free as soon as the work has noticed.
            Busy, TimedOut: see `Workers.run`.
        """
        began = time.perf_counter()

        def timed(stop: Stop) -> T:
            return work(stop, 1e3 * (time.perf_counter() - began))

        return await unless_gone(request, self.workers.run(timed))


async def unless_gone(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """Await an answer while its client is there.

    Raises:
        ClientGone: it is not; the answer was cancelled.
    """
    working = asyncio.create_task(answer)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def example() -> bytes:
    """Give the example picture, a PNG of a frame of Freedoom."""
    return (resources.files("service") / "example" / "freedoom.png").read_bytes()
