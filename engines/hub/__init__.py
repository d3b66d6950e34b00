"""Models on Hugging Face; nothing in a repository is ever run.

`listing` chooses among a repository's files, `site` asks for them, `cache` keeps them.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from engines.errors import CacheError, ModelInvalid, UnknownModel, WeightsMissing
from engines.hub import cache as caches
from engines.hub import site as sites
from engines.hub.cache import Cache
from engines.hub.listing import (
    COMMIT,
    CONFIG,
    MAX_CONFIG,
    File,
    Hints,
    Listing,
    candidates,
    chosen,
    hints_from_json,
    is_model,
    is_safe,
)
from engines.hub.site import Site, Unreachable

log = logging.getLogger(__name__)

_NAME = r"[\w][\w.-]*"
_REFERENCE = re.compile(rf"hf:({_NAME}/{_NAME})(?:@({_NAME}))?(?:/(.+))?", re.ASCII)
_MAIN = "main"


@dataclass(frozen=True, slots=True)
class Download:
    """A file that is on this machine now.

    Attributes:
        path: in the cache of the hub's client.
        origin: repository, file and the commit that it is of, for people.
    """

    path: Path
    origin: str


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A reference, taken apart; `revision` and `file` are None where it names none."""

    reference: str
    repository: str
    revision: str | None
    file: str | None

    @property
    def is_settled(self) -> bool:
        """Whether what was found once is what is wanted for ever: no branch or tag is named."""
        return self.revision is None or COMMIT.fullmatch(self.revision) is not None


def fetch(reference: str, cache: Path | None = None) -> Download:
    """Download a model's file, or find it where an earlier download left it.

    A repository is looked up once: later, `hf:owner/name` is the commit it was then, without the
    network. A branch or tag, `hf:owner/name@main`, is looked up at each call, where the network
    allows it. HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and HF_HOME are as of the hub's own client.

    Args:
        reference: `hf:owner/name`, where the repository has one model file of the best kind it
            has (safetensors, else ONNX, else PyTorch), or its config.json names it as `weights`;
            or `hf:owner/name/file`. After the name, `@` and a branch, tag or commit.
        cache: folder; None: that of the hub's own client.
    Raises:
        UnknownModel: the reference is not of this form.
        WeightsMissing: Hugging Face cannot be reached, and the file is not in the cache.
        EngineMissing: there is no such repository, revision or file, or this user may not read it.
        ModelInvalid: it has no model file, several, or one that is too large, has a name that
            leads elsewhere, or is not what the repository says it is.
        CacheError: the cache cannot be written.
        UsageError: HF_ENDPOINT or the token makes no sense.
    """
    wanted = _wanted(reference)
    store = Cache(caches.folder() if cache is None else cache, wanted.repository)
    try:
        return _fetched(wanted, store)
    except OSError as exc:
        raise CacheError(
            f"cannot write {exc.filename or caches.folder()}: {exc.strerror}; HF_HOME names "
            "another folder"
        ) from exc


def _wanted(reference: str) -> _Wanted:
    match = _REFERENCE.fullmatch(reference)
    if match is None or "--" in match[1] or (match[3] and not is_safe(match[3])):
        raise UnknownModel(
            f"{reference!r} is not of the form hf:owner/name or hf:owner/name/file, "
            "with @revision after the name if need be"
        )
    if match[3] and not is_model(match[3]):
        raise ModelInvalid(f"{reference} is no model file that can be read")
    return _Wanted(reference, match[1], match[2], match[3])


def _fetched(wanted: _Wanted, store: Cache) -> Download:
    listing = _known(wanted, store) if wanted.is_settled else None
    looked_up = listing is None
    try:
        if listing is None:
            listing = _site().listing(wanted.reference, wanted.repository, wanted.revision or _MAIN)
    except Unreachable as exc:
        listing = _known(wanted, store) or _left(wanted, store)
        if listing is None:
            raise _missing(wanted, exc) from exc
        looked_up = False
        log.info("%s: %s; taking what is in the cache", wanted.reference, exc)
    hints = _hints(wanted, store, listing)
    file = chosen(wanted.reference, listing, wanted.file, hints)
    path = store.path(listing.commit, file)
    if path is None:
        try:
            path = _downloaded(wanted, store, listing.commit, file)
        except Unreachable as exc:
            raise _missing(wanted, exc) from exc
    elif not looked_up and wanted.revision is None:
        log.info(
            "%s is of an earlier download; hf:%s@%s looks for a newer one",
            wanted.reference, wanted.repository, _MAIN,
        )  # fmt: skip
    if looked_up:
        store.remember(wanted.revision or _MAIN, listing)
    return Download(path, _origin(wanted, listing.commit, file, hints))


def _site() -> Site:
    """Open the site.

    Raises:
        Unreachable: the user wants no network.
    """
    if sites.is_offline():
        raise Unreachable("HF_HUB_OFFLINE is set")
    return Site(sites.endpoint(), None if sites.is_anonymous() else sites.token())


def _known(wanted: _Wanted, store: Cache) -> Listing | None:
    """Give what the repository held when it was last looked up."""
    commit = store.commit(wanted.revision or _MAIN)
    return store.listing(commit) if commit else None


def _left(wanted: _Wanted, store: Cache) -> Listing | None:
    """Give what another program downloaded of the repository."""
    commit = store.commit(wanted.revision or _MAIN)
    return store.snapshot(commit) if commit else None


def _missing(wanted: _Wanted, cause: Unreachable) -> WeightsMissing:
    return WeightsMissing(
        f"{wanted.reference} cannot be downloaded now ({cause}) and is not in the cache; get its "
        "file in another way and give its path"
    )


def _hints(wanted: _Wanted, store: Cache, listing: Listing) -> Hints:
    """Read config.json, if there is one of a sensible size; nothing, if it cannot be had."""
    file = listing.file(CONFIG)
    if file is None or not file.size or file.size > MAX_CONFIG:
        return Hints()
    if wanted.file is None and not candidates(listing):
        return Hints()  # there is nothing to choose from
    try:
        path = store.path(listing.commit, file) or _downloaded(wanted, store, listing.commit, file)
        return hints_from_json(path.read_bytes())
    except Unreachable as exc:
        log.info("%s: its %s is not read: %s", wanted.reference, CONFIG, exc)
        return Hints()


def _downloaded(wanted: _Wanted, store: Cache, commit: str, file: File) -> Path:
    """Bring a file into the cache.

    Raises:
        Unreachable, EngineMissing, ModelInvalid: as `Site.download`.
        OSError: the cache cannot be written.
    """
    if (blob := store.blob(file)) is not None:
        return store.keep(commit, file, blob)
    site = _site()
    draft = store.draft()
    try:
        sha256 = site.download(wanted.reference, wanted.repository, commit, file, draft)
        return store.keep(commit, file, draft, sha256)
    finally:
        draft.unlink(missing_ok=True)


def _origin(wanted: _Wanted, commit: str, file: File, hints: Hints) -> str:
    said = ""
    if hints.weights == file.name and hints.architecture and hints.scale:
        said = f" (by its {CONFIG}: {hints.architecture}, x{hints.scale})"
    return f"hf:{wanted.repository}/{file.name} at {commit[:12]}{said}"
