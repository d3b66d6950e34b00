"""Frames in, frames out, over a WebSocket: the newest wins, and what is lost is counted.

A client sends pictures as binary messages. For each that is done it gets a JSON text and then the
picture. Frames that a newer one overtook while they waited are dropped.
"""

from __future__ import annotations

import asyncio
import time

from pydantic import ValidationError
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.configuring import explained
from service.errors import Busy, Forbidden, Refused, ServiceError
from service.guard import same_origin
from service.pictures import Result, wish_of
from service.schemas import Order
from service.state import Service
from service.workers import Stop

#: Codes of RFC 6455 with which a WebSocket is closed.
_UNSUPPORTED, _POLICY = 1003, 1008


class Newest:
    """A slot for one frame on the event loop, as `overlay.slot.LatestFrame` is for threads."""

    def __init__(self) -> None:
        self._filled = asyncio.Event()
        self._frame: tuple[int, bytes] | None = None
        self._count = 0
        self.dropped = 0

    def put(self, data: bytes) -> bool:
        """Offer a frame; tell whether it replaced one."""
        lost = self._frame is not None
        self.dropped += lost
        self._frame = (self._count, data)
        self._count += 1
        self._filled.set()
        return lost

    async def take(self) -> tuple[int, bytes]:
        """Wait for a frame; give its number, from 0, and the frame."""
        await self._filled.wait()
        self._filled.clear()
        frame, self._frame = self._frame, None
        assert frame is not None
        return frame


async def serve(socket: WebSocket, service: Service) -> None:
    """Do one WebSocket, from the handshake to its end."""
    try:
        order = _order(socket, service)
        wish = wish_of(order)
        await asyncio.to_thread(service.catalogue.find, wish.model)
        if service.streams >= service.settings.streams:
            raise Busy(f"{service.streams} other streams are open", 10)
    except ServiceError as exc:
        status = 401 if isinstance(exc, _NoKey) else exc.status
        answer = JSONResponse({"detail": str(exc)}, status, dict(exc.headers))
        await socket.send_denial_response(answer)
        return
    service.streams += 1
    service.metrics.streams.set(service.streams)
    try:
        await socket.accept()
        await _frames(socket, service, order)
    finally:
        service.streams -= 1
        service.metrics.streams.set(service.streams)


class _NoKey(ServiceError):
    """No key came with the handshake."""


def _order(socket: WebSocket, service: Service) -> Order:
    owner = service.keys.owner(socket.headers)
    if owner is None:
        raise _NoKey("an API key is needed, as X-API-Key or Bearer")
    if not same_origin(socket.headers, service.settings.cors_origins):
        raise Forbidden("pages of other origins may not open streams: see cors_origins")
    try:
        order = Order.model_validate(dict(socket.query_params))
    except ValidationError as exc:
        raise Refused(explained(exc)) from exc
    session = socket.headers.get("x-session") or socket.cookies.get("overlay_session")
    order = service.complete(order, session, owner)
    return order.over(Order(format="jpeg"))


async def _frames(socket: WebSocket, service: Service, order: Order) -> None:
    newest = Newest()
    tasks = {
        asyncio.create_task(_read(socket, service, newest)),
        asyncio.create_task(_answer(socket, service, order, newest)),
    }
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        code = next((task.result() for task in done), _POLICY)
        if code:
            await socket.close(code)
    except (WebSocketDisconnect, RuntimeError):  # closed while something was sent
        pass
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(socket: WebSocket, service: Service, newest: Newest) -> int:
    """Take frames until the client goes; give the code with which to close, 0: it is closed."""
    while True:
        try:
            message = await asyncio.wait_for(socket.receive(), service.settings.idle_s)
        except TimeoutError:
            return _POLICY
        if message["type"] == "websocket.disconnect":
            return 0
        data = message.get("bytes")
        if data is None:
            return _UNSUPPORTED
        if newest.put(data):
            service.metrics.dropped.inc()


async def _answer(socket: WebSocket, service: Service, order: Order, newest: Newest) -> int:
    while True:
        frame, data = await newest.take()
        came = time.perf_counter()

        def work(stop: Stop, data: bytes = data, came: float = came) -> Result:
            return service.upscale(data, order, stop, 1e3 * (time.perf_counter() - came))

        about: dict[str, object] = {"frame": frame}
        result = None
        try:
            result = await service.workers.run(work)
            about |= _about(result)
            service.metrics.observe(result.model, result.timings)
        except ServiceError as exc:
            about |= {"error": str(exc), "status": exc.status}
        about["dropped"] = newest.dropped
        async with asyncio.timeout(service.settings.idle_s):  # a client that does not read
            await socket.send_json(about)
            if result:
                await socket.send_bytes(result.data)
        service.metrics.frames.inc()


def _about(result: Result) -> dict[str, object]:
    return {
        "model": result.model,
        "media": result.media,
        "source": result.source,
        "size": result.size,
        "bytes": len(result.data),
        "ms": {name: round(took, 3) for name, took in result.timings.items()},
    }
