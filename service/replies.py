"""Answers: which format a client takes, and pictures with what is known about them."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import IO, cast

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.errors import Unacceptable
from service.pictures import Result
from service.schemas import MEDIA, Format

#: Bytes that are sent at once.
_SLICE = 256 << 10
#: A batch's results are kept on disk from here.
_SPOOL = 32 << 20


def accepted(header: str | None) -> Format:
    """Choose the format by `Accept` (RFC 9110, 12.5.1): PNG if it is among the best.

    Raises:
        Unacceptable: none of those that are written is taken.
    """
    if not header or not header.strip():
        return "png"
    best: tuple[float, Format] | None = None
    for format, media in MEDIA.items():
        weight = _weight(header, media)
        if weight > 0 and (best is None or weight > best[0]):
            best = weight, format
    if best is None:
        raise Unacceptable(f"Accept takes none of {', '.join(MEDIA.values())}")
    return best[1]


def prefers_text(header: str | None) -> bool:
    """Whether plain text is liked better than JSON."""
    return bool(header) and _weight(header or "", "text/plain") > _weight(
        header or "", "application/json"
    )


def _weight(header: str, media: str) -> float:
    """Tell the weight that the most specific matching range has."""
    found = (-1, 0.0)
    for part in header.split(",")[:64]:
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if name in (media, f"{media.partition('/')[0]}/*", "*/*"):
            weights = [one[2:] for one in parameters if one.startswith("q=")]
            try:
                weight = float(weights[0]) if weights else 1.0
            except ValueError:
                weight = 0.0
            found = max(found, (2 - name.count("*"), weight))
    return found[1]


class PictureResponse(Response):
    """A picture, sent piece by piece, so that what is not sent yet is held once."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, see ASGI 3."""
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        view = memoryview(self.body)
        for at in range(0, len(view), _SLICE):
            piece = bytes(view[at : at + _SLICE])
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def picture(result: Result, name: str) -> Response:
    """Answer with a picture.

    Args:
        name: of the source file.
    """
    response = PictureResponse(result.data, media_type=result.media)
    sizes = (("X-Input-Size", result.source), ("X-Output-Size", result.size))
    for header, (width, height) in sizes:
        response.headers[header] = f"{width}x{height}"
    response.headers["X-Model"] = result.model
    for stage, took_ms in result.timings.items():
        response.headers[f"X-{stage.title()}-Ms"] = f"{took_ms:.2f}"
    response.headers["Server-Timing"] = ", ".join(
        f"{stage};dur={took_ms:.2f}" for stage, took_ms in result.timings.items()
    )
    file = f"{safe_stem(name)}-{result.model.replace('@', '-')}{result.ending}"
    response.headers["Content-Disposition"] = f'inline; filename="{file}"'
    return response


def safe_stem(name: str | None) -> str:
    """Make of a sent file name a harmless one: no folders, no dots before, plain letters."""
    last = re.split(r"[/\\]", name or "")[-1]
    stem = last.rpartition(".")[0] or last
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:64] or "picture"


class Batch:
    """The results of several pictures in a zip, with `report.json` about each."""

    def __init__(self) -> None:
        self._file = cast("IO[bytes]", SpooledTemporaryFile(_SPOOL))  # noqa: SIM115 - sent later
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)
        self._rows: list[dict[str, object]] = []

    @property
    def any_done(self) -> bool:
        """Whether there is a result."""
        return any(row["error"] is None for row in self._rows)

    @property
    def first_error(self) -> str:
        """The first thing that went wrong, or ""."""
        return next((str(row["error"]) for row in self._rows if row["error"]), "")

    def add(self, name: str, result: Result) -> None:
        """Add a picture's result."""
        file = f"{len(self._rows):04d}-{safe_stem(name)}{result.ending}"
        self._zip.writestr(file, result.data)
        self._rows.append(
            {
                "source": name,
                "result": file,
                "error": None,
                "model": result.model,
                "media": result.media,
                "input": result.source,
                "output": result.size,
                "ms": {stage: round(took, 3) for stage, took in result.timings.items()},
            }
        )

    def fail(self, name: str, error: str) -> None:
        """Note why there is no result of a picture."""
        self._rows.append({"source": name, "result": None, "error": error})

    def response(self) -> Response:
        """Answer with the zip."""
        self._zip.writestr("report.json", json.dumps(self._rows, indent=1))
        self._zip.close()
        size = self._file.seek(0, io.SEEK_END)
        headers = {
            "Content-Length": str(size),
            "Content-Disposition": 'attachment; filename="upscaled.zip"',
        }
        return StreamingResponse(self._pieces(), media_type="application/zip", headers=headers)

    def _pieces(self) -> Iterator[bytes]:
        with self._file as file:
            file.seek(0)
            while piece := file.read(_SLICE):
                yield piece

    def close(self) -> None:
        """Free it where it is not sent."""
        self._zip.close()
        self._file.close()
