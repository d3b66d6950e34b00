"""Models on Hugging Face, downloaded by its own client; nothing in a repository is ever run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import BuilderMissing, EngineMissing, ModelInvalid, UnknownModel, WeightsMissing
from engines.load import MAX_BYTES

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

#: Endings of the files that are taken, the first preferred; safetensors hold no program.
_PREFERRED = ((".safetensors",), (".onnx",), (".pth", ".pt", ".ckpt"))
_REFERENCE = re.compile(r"hf:([\w][\w.-]*/[\w][\w.-]*)(?:/(.+))?", re.ASCII)
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Download:
    """A file that is on this machine now.

    Attributes:
        path: in the client's cache.
        origin: repository, file and the revision that it is of, for people.
    """

    path: Path
    origin: str


def fetch(reference: str, cache: Path | None = None) -> Download:
    """Download a model's file, or find it in the client's cache.

    The endpoint is that of the environment variable `HF_ENDPOINT`, if it is set.

    Args:
        reference: `hf:owner/name`, where the repository has one model file of the best kind it
            has (safetensors, else ONNX, else PyTorch), or `hf:owner/name/file`.
        cache: folder of the client's cache; None: its own choice.
    Raises:
        UnknownModel: the reference is not of this form.
        WeightsMissing: Hugging Face cannot be reached, and the file is not in the cache.
        EngineMissing: there is no such repository or file, or it is not public.
        ModelInvalid: it has no model file, several, or one that is too large.
        BuilderMissing: huggingface_hub is not installed.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None or ".." in reference or "\\" in reference:
        raise UnknownModel(f"{reference!r} is not of the form hf:owner/name or hf:owner/name/file")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as exc:
        raise BuilderMissing(
            f"{reference} needs huggingface_hub: pip install huggingface_hub"
        ) from exc
    repository, file = match[1], match[2]
    client = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        info = client.model_info(repository, files_metadata=True, timeout=_TIMEOUT_S)
    except errors.RepositoryNotFoundError as exc:
        raise EngineMissing(f"{reference}: no such repository, or it is not public") from exc
    except Exception as exc:  # its transport, and so the transport's errors, differ by version
        return _cached(reference, repository, file, cache, exc)
    name = _chosen(reference, info, file)
    try:
        path = client.hf_hub_download(
            repository, name, revision=info.sha, cache_dir=cache, etag_timeout=_TIMEOUT_S
        )
    except errors.EntryNotFoundError as exc:
        raise EngineMissing(f"{reference}: the repository has no file {name!r}") from exc
    except Exception as exc:  # as above
        return _cached(reference, repository, name, cache, exc)
    return Download(Path(path), f"hf:{repository}/{name} at {str(info.sha)[:12]}")


def _chosen(reference: str, info: ModelInfo, file: str | None) -> str:
    """Give the name of the one file to take."""
    files = {entry.rfilename: entry.size or 0 for entry in info.siblings or ()}
    names = [file] if file else _best(list(files))
    if len(names) != 1:
        listed = ", ".join(sorted(names)[:5]) or "none"
        raise ModelInvalid(
            f"{reference} holds {len(names)} model files of the kind to take ({listed}); "
            "name one: hf:owner/name/file"
        )
    if names[0] not in files:
        raise EngineMissing(f"{reference}: the repository has no file {names[0]!r}")
    if Path(names[0]).suffix.lower() not in {ending for kind in _PREFERRED for ending in kind}:
        raise ModelInvalid(f"{reference} is no model file that can be read")
    if files[names[0]] > MAX_BYTES:
        raise ModelInvalid(f"{reference}: {names[0]} is larger than {MAX_BYTES >> 30} GiB")
    return names[0]


def _best(names: list[str]) -> list[str]:
    """The files of the most preferred kind that there is."""
    for kind in _PREFERRED:
        found = [name for name in names if Path(name).suffix.lower() in kind]
        if found:
            return found
    return []


def _cached(
    reference: str, repository: str, file: str | None, cache: Path | None, failure: Exception
) -> Download:
    """Find what an earlier download left in the client's cache, else raise WeightsMissing."""
    for name, path, commit in _in_cache(repository, file, cache):
        return Download(path, f"hf:{repository}/{name} at {commit[:12]}")
    raise WeightsMissing(
        f"{reference} cannot be downloaded now ({_line(failure)}) and is not in the client's "
        "cache; get its file in another way and give its path"
    ) from failure


def _in_cache(
    repository: str, file: str | None, cache: Path | None
) -> Iterator[tuple[str, Path, str]]:
    """Give name, path and revision of the file in each revision that has it, the latest first."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        known = scan_cache_dir(cache).repos
    except CacheNotFound:
        return
    revisions = [
        revision
        for repo in known
        if repo.repo_id == repository and repo.repo_type == "model"
        for revision in repo.revisions
    ]
    for revision in sorted(revisions, key=lambda revision: -revision.last_modified):
        paths = {
            entry.file_path.relative_to(revision.snapshot_path).as_posix(): entry.file_path
            for entry in revision.files
        }
        names = [name for name in paths if name == file] if file else _best(list(paths))
        if len(names) == 1:
            yield names[0], paths[names[0]], revision.commit_hash


def _line(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return (lines[0] if lines else type(exc).__name__)[:160]
