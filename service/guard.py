"""What stands before the routes, as ASGI middleware: keys, the body's size and pace, counts.

Nothing of a body is read before the key was checked, and never more of it than is taken.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import time
from collections.abc import Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Busy, Refused, ServiceError, TooLarge, TooSlow
from service.metrics import Metrics
from service.settings import Settings

log = logging.getLogger(__name__)

#: Paths that need no key.
OPEN = ("/health", "/ready", "/docs", "/openapi.json", "/docs/oauth2-redirect", "/redoc")
#: Encodings of form fields; others can take minutes to decode, or give what is no text.
_CHARSETS = ("", "utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1")
_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")


class Keys:
    """The API keys; none: everybody may."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._keys = tuple(key.encode() for key in keys)

    def owner(self, headers: Mapping[str, str]) -> str | None:
        """Tell whose request it is: a digest of the key, "" without keys; None: nobody's."""
        if not self._keys:
            return ""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        sent = headers.get("x-api-key") or (bearer if scheme.lower() == "bearer" else "")
        given = sent.strip().encode("utf-8", "replace")
        # All are compared, so that the time tells nothing.
        matches = [secrets.compare_digest(given, key) for key in self._keys]
        return hashlib.sha256(given).hexdigest() if any(matches) else None


def same_origin(headers: Mapping[str, str], allowed: tuple[str, ...]) -> bool:
    """Whether a request is of no web page, of one of this server's, or of an allowed one."""
    origin = headers.get("origin")
    if origin is None or origin in allowed:
        return True
    try:
        return urlsplit(origin).netloc == headers.get("host", "")
    except ValueError:  # no address at all
        return False


def _charset(headers: Headers) -> str:
    """The encoding that the body's type names; Starlette would decode fields with any."""
    _, options = parse_options_header(headers.get("content-type", ""))
    return options.get(b"charset", b"").decode("latin-1").lower()


class Guard:
    """The middleware.

    Args:
        app: what it stands before.
        settings: limits and keys.
        metrics: counts answers.
    """

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._keys = keys
        self._metrics = metrics
        self._uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Do one request, see ASGI 3."""
        if scope["type"] != "http":  # a WebSocket's route looks after itself
            await self._app(scope, receive, send)
            return
        sent = _Sent(scope, send, self._metrics)
        headers = Headers(scope=scope)
        owner = self._keys.owner(headers)
        if owner is None and scope["path"] not in OPEN and scope["method"] != "OPTIONS":
            needs = {"WWW-Authenticate": "Bearer", "Connection": "close"}
            await sent.refuse(401, "an API key is needed, as X-API-Key or Bearer", needs)
            return
        scope.setdefault("state", {})["owner"] = owner or ""
        if scope["method"] not in _WITH_BODY:
            await self._app(scope, receive, sent)
            return
        if not same_origin(headers, self._settings.cors_origins):
            text = "pages of other origins may not do this: see cors_origins"
            await sent.refuse(403, text, {"Connection": "close"})
            return
        await self._with_body(scope, headers, receive, sent)

    async def _with_body(
        self, scope: Scope, headers: Headers, receive: Receive, sent: _Sent
    ) -> None:
        settings = self._settings
        try:
            claimed = headers.get("content-length", "0")
            if not claimed.isdecimal() or int(claimed[:20]) > settings.body_bytes:
                raise _too_large(settings)
            if _charset(headers) not in _CHARSETS:
                raise Refused("the body's charset is not taken: send UTF-8")
            if self._uploads >= settings.uploads:
                raise Busy(f"{self._uploads} other bodies are being read")
        except ServiceError as exc:
            await sent.refuse(exc.status, str(exc), {**exc.headers, "Connection": "close"})
            return
        body = _Body(receive, settings, self._leave)
        self._uploads += 1
        self._metrics.uploads.set(self._uploads)
        try:
            await self._app(scope, body, sent)
        finally:
            body.end()

    def _leave(self) -> None:
        self._uploads -= 1
        self._metrics.uploads.set(self._uploads)


def _too_large(settings: Settings) -> TooLarge:
    return TooLarge(f"the body is larger than {settings.body_mib} MiB: send a smaller file")


class _Body:
    """A body that ends in time and below the limit; as `receive`."""

    def __init__(self, receive: Receive, settings: Settings, leave: Any) -> None:
        self._receive = receive
        self._settings = settings
        self._leave = leave
        self._until = time.monotonic() + settings.body_s
        self._read = 0
        self._ended = False

    def end(self) -> None:
        """Say that no more is read; idempotent."""
        if not self._ended:
            self._ended = True
            self._leave()

    async def __call__(self) -> Message:
        if self._ended:
            return await self._receive()
        left = min(self._settings.stall_s, self._until - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        except TimeoutError:
            slow = TooSlow("the body comes too slowly: it was not waited for")
            raise _http(slow) from None
        self._read += len(message.get("body", b""))
        if self._read > self._settings.body_bytes:
            raise _http(_too_large(self._settings))
        if message["type"] != "http.request" or not message.get("more_body", False):
            self.end()
        return message


def _http(error: ServiceError) -> HTTPException:
    """Make the one kind of error that FastAPI lets through while it reads a body."""
    return HTTPException(error.status, str(error), dict(error.headers))


class _Sent:
    """`send` that adds headers, counts, and can refuse by itself."""

    def __init__(self, scope: Scope, send: Send, metrics: Metrics) -> None:
        self._scope = scope
        self._send = send
        self._metrics = metrics

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("X-Content-Type-Options", "nosniff")
            headers.setdefault("Cache-Control", "no-store")
            route: MutableMapping[str, Any] | Any = self._scope.get("route")
            path = getattr(route, "path", "other")
            self._metrics.requests.labels(path, str(message["status"])).inc()
        await self._send(message)

    async def refuse(self, status: int, detail: str, headers: Mapping[str, str]) -> None:
        """Answer without asking the routes."""
        data = json.dumps({"detail": detail}).encode()
        sent = {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in sent.items()]
        await self({"type": "http.response.start", "status": status, "headers": raw})
        await self({"type": "http.response.body", "body": data})
