"""The folder of the hub's own client, so that a file is on the disk once.

    models--OWNER--NAME/blobs/DIGEST
    models--OWNER--NAME/snapshots/COMMIT/FILE     a link to the blob, or a copy of it
    models--OWNER--NAME/refs/REVISION             the commit that a branch or tag was
    models--OWNER--NAME/overlay/COMMIT.json       ours: what the repository held

https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from engines.hub.listing import COMMIT, File, Listing, json_from_listing, listing_from_json
from engines.hub.site import home


def folder() -> Path:
    """The folder of the hub's client, as it finds it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if given := os.environ.get(name):
            return Path(os.path.expandvars(given)).expanduser()
    return home() / "hub"


class Cache:
    """What is on this machine of one repository."""

    def __init__(self, root: Path, repository: str) -> None:
        self._root = root / f"models--{repository.replace('/', '--')}"

    def commit(self, revision: str) -> str | None:
        """Give the commit that a revision was when it was last looked up."""
        if COMMIT.fullmatch(revision):
            return revision
        try:
            with (self._root / "refs" / revision).open(encoding="ascii", errors="replace") as file:
                commit = file.read(64).strip()
        except OSError:
            return None
        return commit if COMMIT.fullmatch(commit) else None

    def listing(self, commit: str) -> Listing | None:
        """Give what the repository held, if it was looked up from here."""
        try:
            text = (self._root / "overlay" / f"{commit}.json").read_text(encoding="utf-8")
            found = listing_from_json(text)
        except (OSError, ValueError):
            return None
        return found if found.commit == commit else None

    def snapshot(self, commit: str) -> Listing | None:
        """Give the files that are here, which another program may have downloaded."""
        top = self._root / "snapshots" / commit
        files = [
            File(path.relative_to(top).as_posix(), path.stat().st_size)
            for path in sorted(top.rglob("*"))
            if path.is_file()
        ]
        return Listing(commit, tuple(files)) if files else None

    def path(self, commit: str, file: File) -> Path | None:
        """Give where a file is, if it is here and whole."""
        path = self._root / "snapshots" / commit / file.name
        try:
            size = path.stat().st_size
        except OSError:
            return None
        return path if path.is_file() and file.size in (None, size) else None

    def draft(self) -> Path:
        """Name a new file to download into.

        Raises:
            OSError: its folder cannot be made.
        """
        blobs = self._root / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        return _new(blobs)

    def blob(self, file: File) -> Path | None:
        """Give a file's content, which may be here from another commit."""
        digest = file.sha256 or file.git_sha1
        path = self._root / "blobs" / digest
        if not digest or not path.is_file() or path.stat().st_size != file.size:
            return None
        return path

    def keep(self, commit: str, file: File, content: Path, sha256: str = "") -> Path:
        """Take in a file's content; give its place in the snapshot.

        Args:
            content: of `blob`; or of `draft`, in whose place is nothing afterwards.
            sha256: of `draft`.
        Raises:
            OSError: it cannot be written.
        """
        blob = content.with_name(file.sha256 or file.git_sha1 or sha256)
        if content != blob:
            os.replace(content, blob)
        path = self._root / "snapshots" / commit / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        link = _new(blob.parent)
        try:
            link.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:  # Windows lets few people make links
            shutil.copyfile(blob, link)
        os.replace(link, path)
        return path

    def remember(self, revision: str, listing: Listing) -> None:
        """Keep what a revision was, and what it held.

        Raises:
            OSError: it cannot be written.
        """
        (self._root / "snapshots" / listing.commit).mkdir(parents=True, exist_ok=True)
        _write(self._root / "overlay" / f"{listing.commit}.json", json_from_listing(listing))
        if not COMMIT.fullmatch(revision):
            _write(self._root / "refs" / revision, listing.commit)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _new(path.parents[1])
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def _new(folder: Path) -> Path:
    """Name a file that no other process has."""
    return folder / f"{os.getpid()}-{secrets.token_hex(8)}.incomplete"
