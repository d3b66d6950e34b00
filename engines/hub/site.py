"""The hub's HTTP API, as far as loading needs it.

`GET /api/models/OWNER/NAME/revision/REV?blobs=true` and `GET /OWNER/NAME/resolve/COMMIT/FILE`
(https://huggingface.co/docs/hub/api). The token goes to the endpoint alone, wherever it redirects
to, and stands in no message. Nothing that the other side sends is read without a limit of bytes
and of time.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import IO, BinaryIO, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from engines.errors import EngineMissing, ModelInvalid, UsageError
from engines.hub.listing import File, Listing, listing_from_json
from engines.load import MAX_BYTES

log = logging.getLogger(__name__)

T = TypeVar("T")

_ENDPOINT = "https://huggingface.co"
_TIMEOUT_S = 10.0  # without a byte
_TRIES = 3
_LONGEST_WAIT_S = 30.0
_MOST_REDIRECTS = 5
_MAX_LISTING = 16 << 20
#: A body may take this long, and then as long as its bytes do at this rate.
_GRACE_S, _SLOWEST = 30.0, 4096
_TOKEN = re.compile(r"[!-~]{1,512}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_sleep = time.sleep


class Unreachable(Exception):
    """The site cannot be used now; the message says why, in one line."""


class _Passing(Exception):
    """A fault that may be over at the next try, after `wait_s` if the site says so."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class _NotFollowed(HTTPRedirectHandler):
    """Leaves redirects to `Site`: urllib would read their bodies, and take the token along."""

    def http_error_302(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message
    ) -> None:
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def endpoint() -> str:
    """Give the address of the hub: that of HF_ENDPOINT, if it is set.

    Raises:
        UsageError: it is no http address.
    """
    address = (os.environ.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(address)
        sensible = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sensible = False
    if not sensible or "@" in address:
        raise UsageError("HF_ENDPOINT must be an address like https://huggingface.co")
    return address


def home() -> Path:
    """The hub's folder of this user, as its own client finds it."""
    if given := os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(given)).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "huggingface"


def token() -> str | None:
    """Find the user's token, as the hub's own client does: HF_TOKEN, else the file of a login.

    Raises:
        UsageError: it is no token; the message does not show it.
    """
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if text := os.environ.get(name, "").strip():
            return _checked(text, name)
    path = Path(os.environ.get("HF_TOKEN_PATH") or home() / "token").expanduser()
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            text = file.read(4096).strip()
    except OSError:
        return None
    return _checked(text, str(path)) if text else None


def _checked(text: str, where: str) -> str:
    if _TOKEN.fullmatch(text) is None:
        raise UsageError(f"what {where} holds is no token of Hugging Face; log in again")
    return text


def is_offline() -> bool:
    """Whether the user wants no network: HF_HUB_OFFLINE, as the hub's own client reads it."""
    return _is_on("HF_HUB_OFFLINE")


def is_anonymous() -> bool:
    """Whether the token is only for what needs one: HF_HUB_DISABLE_IMPLICIT_TOKEN."""
    return _is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN")


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")


class Site:
    """The hub, for one user."""

    def __init__(self, address: str, secret: str | None = None) -> None:
        self._address = address
        self._secret = secret
        self._open = build_opener(_NotFollowed).open

    def listing(self, reference: str, repository: str, revision: str) -> Listing:
        """Ask what a repository holds.

        Args:
            reference: for messages.
            revision: a branch, a tag or a commit.
        Raises:
            Unreachable: the site cannot be used now.
            EngineMissing: there is no such repository or revision, or this user may not read it.
            ModelInvalid: the answer makes no sense.
        """
        url = f"{self._address}/api/models/{repository}/revision/{quote(revision, safe='')}"
        content = self._tried(lambda: self._text(f"{url}?blobs=true", reference))
        try:
            return listing_from_json(content)
        except ValueError as exc:
            raise ModelInvalid(f"{reference}: {self._host()} gives {exc}") from exc

    def download(
        self, reference: str, repository: str, commit: str, file: File, target: Path
    ) -> str:
        """Write a file of a repository to `target`; give its sha256.

        It is compared with the digest that the repository gave of the file, else with the ETag.

        Raises:
            Unreachable, EngineMissing: as `listing`.
            ModelInvalid: it is larger than said, or not what the repository says it is.
            OSError: `target` cannot be written.
        """
        url = f"{self._address}/{repository}/resolve/{commit}/{quote(file.name)}"

        def once() -> str:
            with target.open("wb") as out:
                return self._body(url, reference, file, out)

        return self._tried(once)

    def _tried(self, once: Callable[[], T]) -> T:
        for attempt in range(_TRIES):
            try:
                return once()
            except _Passing as exc:
                wait_s = 2.0**attempt if exc.wait_s is None else exc.wait_s
                if attempt == _TRIES - 1 or wait_s > _LONGEST_WAIT_S:
                    raise Unreachable(str(exc)) from exc
                _sleep(wait_s)
        raise AssertionError

    def _text(self, url: str, reference: str) -> bytes:
        with self._opened(url, reference) as response:
            content = b"".join(_chunks(response, _MAX_LISTING, reference))
            said = response.headers.get("Content-Length", "")
        if said.isdecimal() and len(content) < int(said):
            raise _Passing(f"the answer ended after {len(content)} of {said} bytes")
        return content

    def _body(self, url: str, reference: str, file: File, out: BinaryIO) -> str:
        with self._opened(url, reference) as response:
            size, expected = file.size, file.sha256 or _etag(response.headers)
            said = response.headers.get("Content-Length", "")
            if size is None and said.isdecimal():
                size = int(said)
            sha256 = hashlib.sha256()
            sha1 = hashlib.sha1(b"blob %d\0" % (file.size or 0), usedforsecurity=False)
            done = 0
            for chunk in _chunks(response, MAX_BYTES if size is None else size, reference):
                out.write(chunk)
                sha256.update(chunk)
                sha1.update(chunk)
                done += len(chunk)
        if size is not None and done < size:
            raise _Passing(f"{file.name} ended after {done} of {size} bytes")
        if expected and sha256.hexdigest() != expected:
            raise _altered(reference, file, sha256.hexdigest(), expected)
        if not expected and file.git_sha1 and sha1.hexdigest() != file.git_sha1:
            raise _altered(reference, file, sha1.hexdigest(), file.git_sha1)
        if not expected and not file.git_sha1:
            log.warning("%s: the site gives no digest of %s", reference, file.name)
        return sha256.hexdigest()

    def _opened(self, url: str, reference: str) -> http.client.HTTPResponse:
        """Open a URL and follow its redirects.

        Raises:
            _Passing, Unreachable, EngineMissing
        """
        home_origin = _origin(self._address)
        for _ in range(_MOST_REDIRECTS + 1):
            request = Request(url, headers={"User-Agent": "sr-overlay"})
            if self._secret and _origin(url) == home_origin:
                request.add_header("Authorization", f"Bearer {self._secret}")
            try:
                response: http.client.HTTPResponse = self._open(request, timeout=_TIMEOUT_S)
                return response
            except HTTPError as exc:
                with exc:
                    if exc.code not in (301, 302, 303, 307, 308):
                        raise self._failure(exc, reference) from exc
                    url = _followed(url, exc.headers.get("Location") or "")
            except (OSError, ValueError, http.client.HTTPException) as exc:
                raise Unreachable(f"{urlsplit(url).hostname}: {_reason(exc)}") from exc
        raise Unreachable(f"{self._host()} redirects in a circle")

    def _failure(self, error: HTTPError, reference: str) -> Exception:
        """Say what an answer of 4xx or 5xx means."""
        what = error.headers.get("X-Error-Code") or ""
        if error.code == 429 or error.code >= 500 or error.code == 408:
            wait = error.headers.get("Retry-After") or ""
            seconds = float(wait) if wait.isdecimal() else None
            later = f", to be asked again in {wait} s" if seconds is not None else ""
            return _Passing(f"{self._host()} answers {error.code}{later}", seconds)
        if error.code in (401, 403) or what in ("RepoNotFound", "GatedRepo"):
            may = "is not open to your account" if self._secret else "is private"
            return EngineMissing(
                f"{reference}: no such repository, or it {may} ({error.code}); "
                "hf auth login, or HF_TOKEN, names an account"
            )
        if error.code == 404:
            missing = {"RevisionNotFound": "such revision", "EntryNotFound": "such file"}
            return EngineMissing(f"{reference}: no {missing.get(what, 'such repository')}")
        return Unreachable(f"{self._host()} answers {error.code}")

    def _host(self) -> str:
        return urlsplit(self._address).hostname or ""


def _chunks(response: http.client.HTTPResponse, most: int, reference: str) -> Iterator[bytes]:
    """Read a body, no more than `most` bytes of it.

    Raises:
        ModelInvalid: there is more.
        Unreachable: it is too slow.
        _Passing: the connection broke.
    """
    start, done = time.perf_counter(), 0
    while True:
        try:
            chunk = response.read1(1 << 16)
        except (OSError, http.client.HTTPException) as exc:
            raise _Passing(f"the connection broke after {done} bytes: {_reason(exc)}") from exc
        if not chunk:
            return
        done += len(chunk)
        if done > most:
            raise ModelInvalid(f"{reference}: the site sends more than the {most} bytes it said")
        if time.perf_counter() - start > _GRACE_S + done / _SLOWEST:
            raise Unreachable(f"only {done} bytes came in {time.perf_counter() - start:.0f} s")
        yield chunk


def _followed(url: str, location: str) -> str:
    """Give the address of a redirect.

    Raises:
        Unreachable: it is not one to follow.
    """
    try:
        target = urljoin(url, location)
        old, new = urlsplit(url), urlsplit(target)
        _origin(target)
    except ValueError as exc:
        raise Unreachable("the site redirects to no address") from exc
    allowed = ("https",) if old.scheme == "https" else ("http", "https")
    if not location or new.scheme not in allowed or not new.hostname:
        raise Unreachable(f"{old.hostname} redirects to {new.scheme or 'no'} address")
    return target


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _etag(headers: Message) -> str:
    """Give the sha256 that the hub sends as the ETag of large files; "" if it is none."""
    tag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
    return tag if _SHA256.fullmatch(tag) else ""


def _altered(reference: str, file: File, found: str, expected: str) -> ModelInvalid:
    return ModelInvalid(
        f"{reference}: {file.name} came with the digest {found[:12]}, and the repository says "
        f"{expected[:12]}; it was not kept, try again"
    )


def _reason(exc: BaseException) -> str:
    """Give the cause of a transport's error in one line; no address, no header."""
    cause = exc.reason if isinstance(exc, URLError) else exc
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    if isinstance(cause, TimeoutError):
        return "timed out"
    return type(cause).__name__
