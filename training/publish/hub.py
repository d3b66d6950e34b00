"""The upload to Hugging Face: the only part of publishing that leaves this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from training.errors import DataError


def upload(folder: Path, repository: str, kind: Literal["dataset", "model"]) -> str:
    """Upload a folder as it is, into a private repository if there is none; give its address.

    The user's token is found by huggingface_hub: `hf auth login`, or HF_TOKEN.

    Raises:
        DataError: huggingface_hub is missing, or what it said.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as exc:
        raise DataError('huggingface-hub is missing: pip install "sr-overlay[train]"') from exc
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        address = api.create_repo(repository, repo_type=kind, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, repo_type=kind)
    except Exception as exc:  # its own errors, and those of the HTTP library below it
        said = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise DataError(
            f"cannot upload {folder} to {repository}: {said}; log in with hf auth login"
        ) from exc
    return str(address)
