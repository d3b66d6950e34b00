"""The HTTP interface: `create_app(settings)`; `python -m service.api` runs it.

Routes are written here, their work is done elsewhere: see `service`. Nothing heavy runs on the
event loop.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
import websockets  # noqa: F401 - uvicorn does WebSockets with it, and says so only when asked
from fastapi import (
    APIRouter,
    Cookie,
    Depends,
    FastAPI,
    File,
    Form,
    Header,
    Query,
    Request,
    Security,
    UploadFile,
    WebSocket,
)
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import Field
from starlette.requests import HTTPConnection

from overlay import __version__
from service import pictures, replies, stream
from service.backends import Backend, open_backend
from service.configuring import MAX_BYTES, parse
from service.errors import Refused, ServiceError
from service.guard import Guard
from service.schemas import (
    MEDIA,
    Configured,
    Health,
    Info,
    Limits,
    ModelRow,
    Models,
    Order,
    Problem,
)
from service.settings import Settings
from service.state import ClientGone, Service, example
from service.workers import Stop, Stopped

log = logging.getLogger(__name__)

#: Name of the cookie with a session's id.
COOKIE = "overlay_session"
_COOKIE_S = 24 * 3600
#: Seconds that requests have to end at the server's end.
_GRACE_S = 10

_TEXT = """\
Overlay {version}: super-resolution for pictures and frames of games
model     {model}
back end  {backend}
send      POST /upscale/file, /upscale/batch, /upscale/example; frames: WS /upscale/stream
models    GET /models; choose one: ?model=NAME, or POST /configure_model/name
results   {formats}; at most {output}
read      GET {documentation}
"""

_FAULTS = {
    400: ("The request asks for what cannot be done; nothing has changed.",
          "potential output resolution (8640, 15360) is too large, max (4320, 7680)"),
    401: ("The API key is missing or wrong.", "an API key is needed, as X-API-Key or Bearer"),
    403: ("A web page of another origin asks.", "pages of other origins may not do this"),
    406: ("Accept takes none of the formats that are written.", "Accept takes none of image/png"),
    408: ("The body came too slowly.", "the body comes too slowly: it was not waited for"),
    413: ("The body is too large.", "the body is larger than 32 MiB: send a smaller file"),
    429: ("All slots and places in the queue are taken.", "2 pictures are in work and 16 wait"),
    503: ("The model cannot do it now.", "default-x4 cannot do it: too little memory"),
    504: ("It took too long.", "it took longer than 120 s: send a smaller picture"),
}  # fmt: skip
_RETRY = {
    "Retry-After": {
        "description": "Seconds after which trying again may help.",
        "schema": {"type": "integer"},
    }
}
_HEADERS = {
    "X-Model": ("The model that was used.", "string", "default-x4"),
    "X-Input-Size": ("WIDTHxHEIGHT of the picture.", "string", "480x270"),
    "X-Output-Size": ("WIDTHxHEIGHT of the result.", "string", "1920x1080"),
    "X-Queue-Ms": ("Waiting for a slot and for the model.", "number", 0.31),
    "X-Decode-Ms": ("Reading the picture.", "number", 4.2),
    "X-Infer-Ms": ("The model, and resampling to the size that is wanted.", "number", 31.5),
    "X-Encode-Ms": ("Writing the result.", "number", 120.7),
    "Server-Timing": ("The same for browsers.", "string", "queue;dur=0.31, decode;dur=4.20"),
}


def _faults(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe errors for the OpenAPI document."""
    described: dict[int | str, dict[str, Any]] = {}
    for status in (*statuses, 401, 403):
        text, detail = _FAULTS[status]
        described[status] = {
            "model": Problem,
            "description": text,
            "content": {"application/json": {"example": {"detail": detail}}},
        }
        if status in (429, 503):
            described[status]["headers"] = _RETRY
    return described


def _headers(names: Mapping[str, tuple[str, str, object]]) -> dict[str, Any]:
    return {
        name: {"description": text, "schema": {"type": kind}, "example": value}
        for name, (text, kind, value) in names.items()
    }


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The picture, in the format that was asked for.",
        "content": {media: _BINARY for media in MEDIA.values()},
        "headers": _headers(_HEADERS),
    }
}
_WORK = (400, 406, 408, 413, 429, 503, 504)


def _service(connection: HTTPConnection) -> Service:
    service: Service = connection.app.state.service
    return service


def _session(
    x_session: Annotated[
        str | None,
        Header(max_length=100, description="Of POST /configure_model; goes before the cookie."),
    ] = None,
    overlay_session: Annotated[str | None, Cookie(max_length=100)] = None,
) -> str | None:
    return x_session or overlay_session


Here = Annotated[Service, Depends(_service)]
Session = Annotated[str | None, Depends(_session)]
Asked = Annotated[Order, Query()]
Accept = Annotated[str | None, Header(include_in_schema=False)]

#: Only said in the document: `guard` looks at keys, before any body is read.
_key = (
    Security(APIKeyHeader(name="X-API-Key", auto_error=False)),
    Security(HTTPBearer(auto_error=False)),
)
router = APIRouter()
locked = APIRouter()


class Named(Order):
    """The query of a configuration by name."""

    model: Annotated[None, Field(exclude=True, description="Not here: say config_name.")] = None
    config_name: Annotated[
        str,
        Field(max_length=100, description="Name of a model.", examples=["default-x4"]),
    ]


# --- about the server ----------------------------------------------------------------------------


@locked.get(
    "/info",
    response_model=Info,
    tags=["server"],
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_faults()},
)
async def info(service: Here, accept: Accept = None) -> Response:
    """Say what this server is and takes: JSON, or text where `Accept` likes that better."""
    settings = service.settings
    about = Info(
        name="overlay",
        version=__version__,
        backend=service.backend.name,
        model=settings.model,
        formats=list(MEDIA.values()),
        limits=Limits(
            body_bytes=settings.body_bytes,
            output=f"{pictures.LONG}x{pictures.SHORT}",
            batch=settings.batch,
            workers=settings.workers,
            queue=settings.queue,
            streams=settings.streams,
            request_s=settings.request_s,
        ),
        documentation="/docs",
    )
    if replies.prefers_text(accept):
        fields = about.model_dump() | {
            "formats": ", ".join(MEDIA),
            "output": about.limits.output,
        }
        return PlainTextResponse(_TEXT.format(**fields))
    return JSONResponse(about.model_dump())


@locked.get("/models", tags=["server"], responses=_faults())
async def models(service: Here) -> Models:
    """List the models, with their licences, and why some cannot be used here."""
    loaded = {name.partition("@")[0] for name in service.pool.loaded}
    offers = await asyncio.to_thread(service.catalogue.offers)
    rows = [
        ModelRow(
            id=one.id, scale=one.scale, licence=one.licence, author=one.author, notes=one.notes,
            available=one.available, reason=one.reason, loaded=one.id in loaded,
            denoise=one.denoise, live=one.live,
        )
        for one in offers
    ]  # fmt: skip
    return Models(default=service.settings.model, models=rows)


@router.get("/health", tags=["server"])
async def health() -> Health:
    """Say that the process answers."""
    return Health(status="ok")


@router.get("/ready", tags=["server"], responses={503: {"model": Health}})
async def ready(service: Here, response: Response) -> Health:
    """Say whether requests can be taken: the model of those that name none is open."""
    response.status_code = 200 if service.health.status == "ok" else 503
    return service.health


@locked.get(
    "/metrics",
    tags=["server"],
    response_class=PlainTextResponse,
    responses=_faults(),
)
async def metrics(service: Here) -> Response:
    """Give counts and times in Prometheus's text format."""
    kind = "text/plain; version=0.0.4; charset=utf-8"
    return Response(service.metrics.text(), headers={"Content-Type": kind})


# --- configuring ---------------------------------------------------------------------------------


@locked.post(
    "/configure_model/name", tags=["configure"], responses=_faults(*_WORK[:1], 429, 503, 504)
)
async def configure_by_name(
    request: Request,
    service: Here,
    session: Session,
    named: Annotated[Named, Query()],
    response: Response,
) -> Configured:
    """Choose the model, and how to upscale, for this client's session alone.

    The answer holds the session's id, also as a cookie. If anything is wrong, nothing changes.
    """
    chosen = named.model_dump(exclude={"config_name", "model"}, exclude_none=True)
    order = Order(model=named.config_name, **chosen)
    return await _configure(request, service, session, order, response)


@locked.post(
    "/configure_model/file", tags=["configure"], responses=_faults(400, 408, 413, 429, 503, 504)
)
async def configure_by_file(
    request: Request,
    service: Here,
    session: Session,
    response: Response,
    config_file: Annotated[
        UploadFile,
        File(
            description="YAML or TOML: model, and any of outscale, width and height, format, "
            "quality, denoise, seed."
        ),
    ],
) -> Configured:
    """Do the same with a file, `model: default-x2` say."""
    data = await config_file.read(MAX_BYTES + 1)
    name, media = config_file.filename or "", config_file.content_type or ""
    order = await asyncio.to_thread(parse, data, media, name)
    return await _configure(request, service, session, Order(**order.model_dump()), response)


async def _configure(
    request: Request, service: Service, session: str | None, order: Order, response: Response
) -> Configured:
    pictures.wish_of(order)
    scale, licence = await service.work(request, lambda stop, _: service.configure(order, stop))
    session = service.sessions.put(order, request.state.owner, session)
    response.set_cookie(
        COOKIE, session, max_age=_COOKIE_S, httponly=True, samesite="strict",
        secure=request.url.scheme == "https",
    )  # fmt: skip
    response.headers["X-Session"] = session
    return Configured(session=session, configuration=order, scale=scale, licence=licence)


# --- upscaling -----------------------------------------------------------------------------------


@locked.post(
    "/upscale/example",
    tags=["upscale"],
    response_class=Response,
    responses={**_PICTURE, **_faults(*(set(_WORK) - {408, 413}))},
)
async def upscale_example(
    request: Request, service: Here, session: Session, asked: Asked, accept: Accept = None
) -> Response:
    """Upscale a frame of Freedoom, 480x270, that comes with the server."""
    order = _complete(request, service, session, asked, accept)
    return await _upscaled(request, service, example(), order, "freedoom.png")


@locked.post(
    "/upscale/file",
    tags=["upscale"],
    response_class=Response,
    responses={**_PICTURE, **_faults(*_WORK)},
)
async def upscale_file(
    request: Request,
    service: Here,
    session: Session,
    asked: Asked,
    image_file: Annotated[UploadFile, File(description="PNG, JPEG, WebP, TIFF, BMP or GIF.")],
    model: Annotated[
        str | None, Form(max_length=100, description="As in the query.", examples=["default-x4"])
    ] = None,
    accept: Accept = None,
) -> Response:
    """Upscale a picture. Alpha, grey, 16 bits, colour profile and EXIF are kept."""
    asked = _with_model(asked, model)
    order = _complete(request, service, session, asked, accept)
    data = await _content(image_file)
    return await _upscaled(request, service, data, order, image_file.filename or "")


@locked.post(
    "/upscale/batch",
    tags=["upscale"],
    response_class=Response,
    responses={
        200: {
            "description": "A zip of the results, and report.json about each: source, result, "
            "error, model, media, input, output, ms.",
            "content": {"application/zip": _BINARY},
        },
        **_faults(*_WORK),
    },
)
async def upscale_batch(
    request: Request,
    service: Here,
    session: Session,
    asked: Asked,
    image_files: Annotated[list[UploadFile], File(min_length=1, description="Pictures.")],
    model: Annotated[str | None, Form(max_length=100, description="As in the query.")] = None,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """Upscale several pictures in one slot; what cannot be done is said in the report."""
    if len(image_files) > service.settings.batch:
        raise Refused(f"a batch has {service.settings.batch} pictures at most")
    order = _complete(request, service, session, _with_model(asked, model), None)
    sources = [(file.filename or "", await _content(file)) for file in image_files]
    return await service.work(request, lambda stop, queued: _batch(service, sources, order, stop))


def _batch(
    service: Service, sources: list[tuple[str, bytes]], order: Order, stop: Stop
) -> Response:
    batch = replies.Batch()
    try:
        for name, data in sources:
            stop()
            try:
                result = service.upscale(data, order, stop)
            except ServiceError as exc:
                batch.fail(name, str(exc))
                continue
            service.metrics.observe(result.model, result.timings)
            batch.add(name, result)
        if not batch.any_done:
            raise Refused(f"no picture could be done: {batch.first_error}")
        return batch.response()
    except BaseException:
        batch.close()
        raise


@locked.websocket("/upscale/stream")
async def upscale_stream(socket: WebSocket, service: Here) -> None:
    """Upscale frames, see `service.stream`."""
    await stream.serve(socket, service)


def _with_model(asked: Order, model: str | None) -> Order:
    if not model:
        return asked
    if asked.model not in (None, model):
        raise Refused(f"the query says model {asked.model!r}, the form {model!r}")
    return asked.model_copy(update={"model": model})


def _complete(
    request: Request, service: Service, session: str | None, asked: Order, accept: str | None
) -> Order:
    order = service.complete(asked, session, request.state.owner)
    pictures.wish_of(order)
    return order if order.format else order.over(Order(format=replies.accepted(accept)))


async def _content(file: UploadFile) -> bytes:
    """Give what was sent for a picture.

    Raises:
        Refused: it was not sent as one.
    """
    if not (file.content_type or "").startswith("image/"):
        sent = file.content_type or "nothing"
        raise Refused(f"file type of {sent!r} is not supported: send it as image/png, say")
    return await file.read()


async def _upscaled(
    request: Request, service: Service, data: bytes, order: Order, name: str
) -> Response:
    result = await service.work(
        request, lambda stop, queued: service.upscale(data, order, stop, queued)
    )
    service.metrics.observe(result.model, result.timings)
    return replies.picture(result, name)


# --- the application -----------------------------------------------------------------------------


def create_app(settings: Settings | None = None, backend: Backend | None = None) -> FastAPI:
    """Make the application; nothing is loaded before it starts.

    Args:
        settings: None = from the environment.
        backend: None = the one that the settings name.
    Raises:
        SettingsError: a setting cannot be.
    """
    settings = Settings.load() if settings is None else settings
    service = Service(settings, backend or open_backend(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="Overlay",
        version=__version__,
        summary="Super-resolution for pictures and frames of games.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(router)
    app.include_router(locked, dependencies=_key if settings.api_keys else ())
    app.add_exception_handler(ServiceError, _told)
    app.add_exception_handler(ClientGone, _unheard)
    app.add_exception_handler(Stopped, _unheard)
    app.add_middleware(Guard, settings=settings, keys=service.keys, metrics=service.metrics)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["X-API-Key", "X-Session", "Authorization"],
            expose_headers=[*_HEADERS, "X-Session", "Retry-After", "Content-Disposition"],
        )
    return app


def make_server(
    settings: Settings, app: FastAPI | None = None, *, access_log: bool = False
) -> uvicorn.Server:
    """Make the server for an application; its `run` serves.

    Args:
        app: None = one of these settings.
        access_log: write a line for each request.
    """
    config = uvicorn.Config(
        app or create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=access_log,
        server_header=False,
        ws="websockets-sansio",
        ws_max_size=settings.body_bytes,
        ws_max_queue=2,
        ws_per_message_deflate=False,  # pictures are compressed, and bombs are not wanted
        timeout_graceful_shutdown=_GRACE_S,
    )
    return uvicorn.Server(config)


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return JSONResponse({"detail": str(error)}, error.status, dict(error.headers))


async def _unheard(request: Request, error: Exception) -> Response:
    """Nobody reads this; the log and the counts do."""
    return Response(status_code=499)


if __name__ == "__main__":
    from overlay.cli import main

    sys.exit(main(["serve", *sys.argv[1:]]))
