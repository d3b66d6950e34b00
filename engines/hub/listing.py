"""What a repository holds at one commit, and which of its files is the model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from engines.errors import EngineMissing, ModelInvalid
from engines.load import MAX_BYTES

COMMIT = re.compile(r"[0-9a-f]{40}")
#: The file that may say which of several files is the model, and what it is.
CONFIG = "config.json"
#: Largest `CONFIG` that is read, in bytes.
MAX_CONFIG = 64 << 10

#: Endings of the files that are taken, the first preferred; safetensors hold no program.
_PREFERRED = ((".safetensors",), (".onnx",), (".pth", ".pt", ".ckpt"))
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ODD = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')  # in no name that every system takes
_MOST_NAMED = 8
_SCALES = range(1, 9)


@dataclass(frozen=True, slots=True)
class File:
    """A file of a repository.

    Attributes:
        name: relative, with "/" between folders.
        size: in bytes; None if it is not known.
        sha256: of its content, of large files; "" if it is not known.
        git_sha1: git's name of its content, of small files; "" if it is not known.
    """

    name: str
    size: int | None = None
    sha256: str = ""
    git_sha1: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a repository at one commit."""

    commit: str
    files: tuple[File, ...]

    def file(self, name: str) -> File | None:
        """Give the file of this name."""
        return next((file for file in self.files if file.name == name), None)


@dataclass(frozen=True, slots=True)
class Hints:
    """What a repository's config.json says of itself; nothing relies on it but a choice.

    Attributes:
        weights: name of the model's file.
        sha256: of that file.
        architecture, scale: for people.
    """

    weights: str = ""
    sha256: str = ""
    architecture: str = ""
    scale: int = 0


def listing_from_json(text: bytes | str) -> Listing:
    """Read the hub's description of a repository; what it says of files too odd is left out.

    Raises:
        ValueError: it is no such description.
    """
    try:
        found = json.loads(text)
        commit, files = found["sha"], found["siblings"]
        if not isinstance(commit, str) or COMMIT.fullmatch(commit) is None:
            raise ValueError(f"{str(commit)[:50]!r} is no commit")
        return Listing(commit, tuple(_file(entry) for entry in files))
    except (KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ValueError(f"no description of a repository ({type(exc).__name__})") from exc


def json_from_listing(listing: Listing) -> str:
    """Write a description that `listing_from_json` reads."""
    files = [
        {
            "rfilename": file.name,
            "size": file.size,
            "blobId": file.git_sha1,
            "lfs": {"sha256": file.sha256} if file.sha256 else None,
        }
        for file in listing.files
    ]
    return json.dumps({"sha": listing.commit, "siblings": files})


def _file(entry: Mapping[str, Any]) -> File:
    name, size, lfs = entry["rfilename"], entry.get("size"), entry.get("lfs") or {}
    if not isinstance(name, str):
        raise ValueError("a file without a name")
    sha256, sha1 = str(lfs.get("sha256", "")), str(entry.get("blobId") or "")
    return File(
        name,
        size if type(size) is int and size >= 0 else None,
        sha256 if _SHA256.fullmatch(sha256) else "",
        # of a large file it is that of a few lines that stand for it
        sha1 if COMMIT.fullmatch(sha1) and not lfs else "",
    )


def hints_from_json(text: bytes) -> Hints:
    """Read a config.json, which may be of any program: what is not understood is left out."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return Hints()
    if not isinstance(found, dict):
        return Hints()
    texts = {
        key: value
        for key in ("weights", "sha256", "architecture")
        if isinstance(value := found.get(key), str) and value.isprintable() and len(value) <= 200
    }
    scale = found.get("scale")
    return Hints(**texts, scale=scale if type(scale) is int and scale in _SCALES else 0)


def is_safe(name: str) -> bool:
    """Whether a name stays inside the folder it is put into, on every system."""
    parts = name.split("/")
    return (
        len(name) <= 250
        and _ODD.search(name) is None
        and all(part.strip(". ") and not part.endswith((".", " ")) for part in parts)
    )


def is_model(name: str) -> bool:
    """Whether a file of this name is taken."""
    return any(PurePosixPath(name).suffix.lower() in kind for kind in _PREFERRED)


def candidates(listing: Listing) -> list[str]:
    """Name the files of the most preferred kind that there is."""
    for kind in _PREFERRED:
        found = [f.name for f in listing.files if PurePosixPath(f.name).suffix.lower() in kind]
        if found:
            return sorted(found)
    return []


def chosen(reference: str, listing: Listing, name: str | None, hints: Hints) -> File:
    """Give the one file to take.

    Args:
        reference: for messages.
        name: of the file that was asked for.
    Raises:
        EngineMissing: it has no file of this name.
        ModelInvalid: it has no model file or several, or the file is too large, has a name that
            leads elsewhere, or is not the one that config.json describes.
    """
    names = [name] if name else candidates(listing)
    if len(names) > 1 and hints.weights in names:
        names = [hints.weights]
    if len(names) != 1:
        raise ModelInvalid(_not_one(reference, listing, names))
    file = listing.file(names[0])
    if file is None:
        raise EngineMissing(
            f"{reference}: the repository has no file {names[0]!r}; it has {_listed(listing)}"
        )
    if not is_safe(file.name):
        raise ModelInvalid(f"{reference}: its file {file.name!r} has a name that leads elsewhere")
    if file.size is not None and file.size > MAX_BYTES:
        raise ModelInvalid(f"{reference}: {file.name} is larger than {MAX_BYTES >> 30} GiB")
    if hints.weights == file.name and hints.sha256 and file.sha256 not in ("", hints.sha256):
        raise ModelInvalid(
            f"{reference}: {CONFIG} describes other weights than {file.name}: sha256 "
            f"{hints.sha256[:12]}, not {file.sha256[:12]}; tell its owner"
        )
    return file


def _not_one(reference: str, listing: Listing, names: list[str]) -> str:
    if not names:
        return (
            f"{reference} has no model file (one of "
            f"{', '.join(ending for kind in _PREFERRED for ending in kind)}); "
            f"it has {_listed(listing)}"
        )
    return (
        f"{reference} has {len(names)} model files ({_shortened(names)}); "
        f"name one: {reference}/{names[0]}"
    )


def _listed(listing: Listing) -> str:
    return _shortened(sorted(file.name for file in listing.files)) or "no files"


def _shortened(names: list[str]) -> str:
    shown = ", ".join(ascii(name[:80])[1:-1] for name in names[:_MOST_NAMED])
    more = len(names) - _MOST_NAMED
    return f"{shown} and {more} more" if more > 0 else shown
