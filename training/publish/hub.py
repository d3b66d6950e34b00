"""The upload to Hugging Face: the only part of publishing that leaves this machine.

By the hub's own client (extra `publish`). What is uploaded is a list of operations, which a dry
run writes down.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engines.errors import EngineError
from engines.hub import site
from training.errors import DataError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

#: How long the site may be silent.
_TIMEOUT_S = 60.0
_QUERY = re.compile(r"(?<=\S)\?[^\s'\"]+")
_INSTALL = 'pip install "sr-overlay[publish]"'


@dataclass(frozen=True, slots=True)
class Upload:
    """Files that go into a repository, in one commit.

    Attributes:
        folder: where they are; their names in the repository are relative to it.
        files: all of them; what else is in the folder stays here.
        repository: "owner/name".
    """

    folder: Path
    files: tuple[Path, ...]
    repository: str
    kind: Literal["dataset", "model"]

    def operations(self) -> list[dict[str, Any]]:
        """Say what is done, in this order, as JSON.

        Raises:
            DataError: a file cannot be read.
        """
        create = {"do": "create", "repository": self.repository, "kind": self.kind,
                  "private": True, "unless": "it exists"}  # fmt: skip
        commit = {
            "do": "commit",
            "to": "main",
            "message": self.message,
            "unless": "nothing changed",
        }
        return [create, *(self._addition(file) for file in sorted(self.files)), commit]

    @property
    def message(self) -> str:
        """The commit's."""
        return f"Publish the {self.kind} with Overlay"

    def _addition(self, file: Path) -> dict[str, Any]:
        name = file.relative_to(self.folder).as_posix()
        try:
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            return {"do": "add", "path": name, "bytes": file.stat().st_size, "sha256": digest}
        except OSError as exc:
            raise DataError(f"cannot read {file}: {exc.strerror}") from exc


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What became of it.

    Attributes:
        address: of the repository, for browsers.
        commit: its newest.
        is_new: whether there was anything to change.
    """

    address: str
    commit: str
    is_new: bool


def write_operations(wanted: Upload, path: Path) -> None:
    """Write what an upload would do, a JSON object a line.

    Raises:
        DataError: a file cannot be read, or `path` cannot be written.
    """
    lines = [json.dumps(operation, ensure_ascii=False) for operation in wanted.operations()]
    try:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as exc:
        raise DataError(f"cannot write {path}: {exc.strerror}") from exc


def upload(wanted: Upload) -> Uploaded:
    """Upload files as they are, into a private repository if there is none.

    What arrived stays there if it fails: to run it again sends the rest.

    Raises:
        DataError: huggingface_hub or a token is missing, or what the site said.
    """
    secret = ""
    try:
        if site.is_offline():
            raise DataError("HF_HUB_OFFLINE is set: nothing can be uploaded")
        secret = site.token() or ""
        if not secret:
            raise DataError(
                "no token of Hugging Face: log in with hf auth login, or set HF_TOKEN; it must be "
                "one that may write"
            )
        with _client(site.endpoint(), secret) as api, warnings.catch_warnings():
            # the client calls its HTTP library in a way that this one means to give up
            warnings.simplefilter("ignore", DeprecationWarning)
            return _sent(api, wanted)
    except EngineError as exc:
        raise DataError(str(exc)) from exc
    except DataError:
        raise
    except Exception as exc:  # the client's errors, and those of the HTTP library below it
        raise DataError(
            f"cannot upload {wanted.folder} to {wanted.repository}: "
            f"{_line(exc).replace(secret, '(the token)')}; {_advice(exc)}"
        ) from None  # what is below may show a request, and with it the token


@contextmanager
def _client(endpoint: str, secret: str) -> Iterator[HfApi]:
    """Open the hub's client: large files by LFS, nothing told about this machine."""
    try:
        import huggingface_hub
        from huggingface_hub import constants, get_session
    except ImportError as exc:
        raise DataError(f"huggingface_hub is missing: {_INSTALL}") from exc
    # Read from the environment when it is imported, which may have been before. Uploads by Xet,
    # its default, end at a server of its own, which no other endpoint has.
    told = {"HF_HUB_DISABLE_XET": True, "HF_HUB_DISABLE_TELEMETRY": True}
    before = {name: getattr(constants, name) for name in told if hasattr(constants, name)}
    session = get_session()
    if hasattr(session, "timeout"):
        session.timeout = _TIMEOUT_S  # it has none, and would wait for ever
    for name in before:
        setattr(constants, name, told[name])
    try:
        with _discreet():
            yield huggingface_hub.HfApi(endpoint=endpoint, token=secret)
    finally:
        for name, value in before.items():
            setattr(constants, name, value)


@contextmanager
def _discreet() -> Iterator[None]:
    """Keep signed addresses out of the log: the HTTP library names every request at INFO."""

    def unsigned(record: logging.LogRecord) -> bool:
        record.msg, record.args = _QUERY.sub("", record.getMessage()), ()
        return True

    chatty = [logging.getLogger(name) for name in ("httpx", "httpx2", "httpcore", "httpcore2")]
    levels = [logger.level for logger in chatty]
    retries = logging.getLogger("huggingface_hub.utils._http")
    retries.addFilter(unsigned)
    for logger in chatty:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        retries.removeFilter(unsigned)
        for logger, level in zip(chatty, levels, strict=True):
            logger.setLevel(level)


def _sent(api: HfApi, wanted: Upload) -> Uploaded:
    from huggingface_hub import CommitOperationAdd

    address = api.create_repo(wanted.repository, repo_type=wanted.kind, private=True, exist_ok=True)
    before = api.repo_info(wanted.repository, repo_type=wanted.kind)
    additions = [
        CommitOperationAdd(operation["path"], wanted.folder / operation["path"])
        for operation in wanted.operations()
        if operation["do"] == "add"
    ]
    done = api.create_commit(
        wanted.repository, additions, commit_message=wanted.message, repo_type=wanted.kind,
        parent_commit=before.sha,
    )  # fmt: skip
    return Uploaded(str(address), done.oid, done.oid != before.sha)


def _line(exc: BaseException) -> str:
    """Give an error in one line, with its cause: the client wraps what the site said.

    Addresses lose their queries: those of the store are signed, and let their reader write there.
    """
    text = _QUERY.sub("", " ".join(str(exc).split()))[:300] or type(exc).__name__
    cause = exc.__cause__
    return f"{text} {_line(cause)}" if isinstance(exc, RuntimeError) and cause else text


def _advice(exc: BaseException) -> str:
    status = getattr(getattr(exc, "response", None), "status_code", None)
    if status in (401, 403):
        return "log in with hf auth login, and a token that may write there"
    return "running it again sends what is missing"
