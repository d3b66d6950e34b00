"""The service as the page sees it: requests, checked answers, errors in plain words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

#: Larger answers are not read.
MAX_BYTES = 512 << 20
#: Ending of a result's file, by its media type.
ENDINGS = {
    "image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/tiff": ".tif",
    "image/bmp": ".bmp",
}  # fmt: skip
STAGES = ("queue", "decode", "infer", "encode")
#: Seconds to wait for an answer beyond those that the service itself allows.
_SPARE_S = 30.0

_FILE = re.compile(r'filename="([A-Za-z0-9_-][A-Za-z0-9._-]{0,120})"')
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


class ApiError(Exception):
    """The service did not do it; the text is for people."""


@dataclass(frozen=True, slots=True)
class Row:
    """A model, as GET /models has it."""

    id: str
    scale: int
    licence: str
    author: str
    notes: str
    available: bool
    reason: str
    denoise: bool


@dataclass(frozen=True, slots=True)
class About:
    """What GET /info and GET /models say.

    Attributes:
        model: the one to begin with.
        formats: media types of results.
        body_bytes: largest upload.
        request_s: longest time for one picture.
    """

    version: str
    backend: str
    model: str
    formats: tuple[str, ...]
    body_bytes: int
    output: str
    request_s: float
    models: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """An upscaled picture.

    Attributes:
        data: the file, byte for byte as it came.
        media: its type; `name` has the ending that belongs to it.
        source, size: (width, height) in pixels of what was sent and of the result.
        ms: by stage of `STAGES`, as the service measured it.
    """

    data: bytes
    media: str
    name: str
    model: str
    source: tuple[int, int]
    size: tuple[int, int]
    ms: Mapping[str, float]


class Api:
    """Asks the service.

    Args:
        url: of its root.
        key: "" where it needs none.
        transport: another way than the network.
    """

    def __init__(self, url: str, key: str = "", transport: httpx.BaseTransport | None = None):
        self._url = url
        self._key = key
        self._transport = transport

    def about(self) -> About:
        """Say what the service is, and what models it has.

        Raises:
            ApiError: it does not answer, or is something else.
        """
        info, models = self._json("/info"), self._json("/models")
        try:
            limits = info["limits"]
            return About(
                str(info["version"]), str(info["backend"]), str(models["default"]),
                tuple(media for media in info["formats"] if media in ENDINGS),
                int(limits["body_bytes"]), str(limits["output"]), float(limits["request_s"]),
                tuple(_row(row) for row in models["models"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as exc:
            raise self._stranger() from exc

    def example(self, order: Mapping[str, str], wait_s: float) -> Answer:
        """Upscale the service's own picture.

        Args:
            order: the query: model, format and so on.
            wait_s: the longest time that the service may take.
        Raises:
            ApiError: it cannot be done.
        """
        return self._picture("/upscale/example", order, wait_s, None)

    def file(
        self, name: str, data: bytes, media: str, order: Mapping[str, str], wait_s: float
    ) -> Answer:
        """Upscale a picture, see `example`."""
        return self._picture("/upscale/file", order, wait_s, (name, data, media))

    def _picture(
        self,
        path: str,
        order: Mapping[str, str],
        wait_s: float,
        sent: tuple[str, bytes, str] | None,
    ) -> Answer:
        files = None if sent is None else {"image_file": sent}
        data, headers = self._ask("POST", path, wait_s, params=dict(order), files=files)
        media = headers.get("content-type", "").partition(";")[0].strip()
        source, size = (_size(headers.get(f"x-{side}-size", "")) for side in ("input", "output"))
        if media not in ENDINGS or source is None or size is None:
            raise self._stranger()
        return Answer(
            data, media, _name(headers, media), headers.get("x-model", ""), source, size,
            {stage: _number(headers.get(f"x-{stage}-ms", "")) for stage in STAGES},
        )  # fmt: skip

    def _json(self, path: str) -> dict[str, Any]:
        data, _ = self._ask("GET", path, _SPARE_S)
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise self._stranger() from exc
        if not isinstance(found, dict):
            raise self._stranger()
        return found

    def _ask(
        self, method: str, path: str, wait_s: float, **options: Any
    ) -> tuple[bytes, httpx.Headers]:
        headers = {"X-API-Key": self._key} if self._key else {}
        timeout = httpx.Timeout(wait_s + _SPARE_S, connect=5)
        try:
            # Proxies are for the outside; the service is beside the page, or has its own address.
            with (
                httpx.Client(
                    base_url=self._url, timeout=timeout, trust_env=False, transport=self._transport
                ) as client,
                client.stream(
                    method, path, headers={"Accept": "*/*", **headers}, **options
                ) as answer,
            ):
                data = self._body(answer)
        except httpx.ConnectError as exc:
            raise ApiError(
                f"The service at {self._url} does not answer. Is it running? It is started with "
                "overlay serve."
            ) from exc
        except httpx.TimeoutException as exc:
            raise ApiError(
                f"The service at {self._url} took too long to answer: try again, with a smaller "
                "picture or a quicker model."
            ) from exc
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as exc:
            raise ApiError(f"The service at {self._url} broke off: {exc}. Try again.") from exc
        if answer.status_code != 200:
            raise ApiError(_refusal(answer.status_code, data, answer.headers))
        return data, answer.headers

    def _body(self, answer: httpx.Response) -> bytes:
        pieces = bytearray()
        for piece in answer.iter_bytes():
            pieces += piece
            if len(pieces) > MAX_BYTES:
                raise ApiError(f"The answer has more than {MAX_BYTES >> 20} MiB: it is not read.")
        return bytes(pieces)

    def _stranger(self) -> ApiError:
        return ApiError(
            f"What answers at {self._url} is not Overlay's service, or one of another version."
        )


def _row(row: Mapping[str, Any]) -> Row:
    return Row(
        str(row["id"]), int(row["scale"]), str(row["licence"]), str(row["author"]),
        str(row["notes"]), bool(row["available"]), str(row["reason"]), bool(row["denoise"]),
    )  # fmt: skip


def _size(text: str) -> tuple[int, int] | None:
    found = _SIZE.fullmatch(text)
    return (int(found[1]), int(found[2])) if found else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _name(headers: httpx.Headers, media: str) -> str:
    """Give the name that the service proposes, with the ending of what it is."""
    found = _FILE.search(headers.get("content-disposition", ""))
    name, ending = (found[1] if found else "upscaled"), ENDINGS[media]
    known = (ending, ".jpeg", ".tiff") if media in ("image/jpeg", "image/tiff") else (ending,)
    return name if name.lower().endswith(known) else name + ending


def _refusal(status: int, data: bytes, headers: httpx.Headers) -> str:
    """Say what the service said, and what to do."""
    detail = _detail(data)
    if status == 401:
        return "The service wants an API key, and not the one it got: enter it at the side."
    if status == 429:
        seconds = headers.get("retry-after", "")
        after = f"in {seconds} s" if seconds.isdecimal() else "later"
        return f"The service has no room for another picture now ({detail}): try again {after}."
    if status in (503, 504):
        return f"Not now: {detail}. Try again, or choose another model."
    if status >= 500:
        return f"The service failed (status {status}): {detail}. Its log says more."
    return f"The service refuses: {detail}."


def _detail(data: bytes) -> str:
    """Give an error's text: FastAPI's own are lists."""
    try:
        detail = json.loads(data[:65536])["detail"]
        if isinstance(detail, list):
            detail = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in detail)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return "it does not say why"
    return str(detail).rstrip(".")[:2000]
