"""`overlay data publish`."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from training.errors import DataError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{1,49}/[A-Za-z0-9][\w.-]{2,49}")


def add_publish(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `publish`."""
    parser = commands.add_parser(
        "publish",
        help="make data or a model ready for Hugging Face or Kaggle",
        description="Make data (in SRGD's layout) or a model ready for Hugging Face or Kaggle, "
        "with a card. Nothing leaves this machine without --upload.",
    )
    parser.add_argument("--to", required=True, choices=("huggingface", "kaggle"))
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="what to upload")
    parser.add_argument("--root", type=Path, metavar="DIR", help="the data folder [data]")
    parser.add_argument(
        "--all", action="store_true", help="also games whose licence does not allow it"
    )
    parser.add_argument("--model", metavar="NAME|FILE", help="a model instead of the data")
    parser.add_argument("--licence", metavar="SPDX", help="of the model's weights")
    parser.add_argument("--metrics", type=Path, metavar="JSON", help="report for the model's card")
    parser.add_argument("--provenance", type=Path, metavar="MD", help="added to the model's card")
    parser.add_argument("--repository", metavar="OWNER/NAME", help="where it is to go")
    parser.add_argument("--upload", action="store_true", help="upload it (Hugging Face only)")
    parser.set_defaults(data_run=_publish)


def _publish(arguments: argparse.Namespace) -> int:
    repository: str | None = arguments.repository
    if repository is not None and not _REPOSITORY.fullmatch(repository):
        raise DataError(f"{repository!r} is no repository; give OWNER/NAME")
    if arguments.upload and (repository is None or arguments.to == "kaggle"):
        raise DataError(
            "--upload needs --repository OWNER/NAME"
            if arguments.to == "huggingface"
            else "upload to Kaggle with its own program: kaggle datasets create --dir-mode tar -p "
            f"{arguments.out}"
        )
    if arguments.out.is_dir() and any(arguments.out.iterdir()) and not _is_ours(arguments.out):
        raise DataError(f"{arguments.out} holds something else; give a new or an empty folder")
    if arguments.model:
        _publish_model(arguments)
    else:
        _publish_data(arguments)
    if arguments.upload and repository:
        from training.publish.hub import upload

        kind = "model" if arguments.model else "dataset"
        address = upload(arguments.out, repository, "model" if kind == "model" else "dataset")
        sys.stdout.write(f"uploaded to {address}\n")
    else:
        sys.stdout.write(f"nothing was uploaded; {arguments.out} is what would be\n")
    return 0


def _is_ours(out: Path) -> bool:
    """Whether this command wrote the folder before."""
    card = out / "README.md"
    return card.is_file() and card.read_text(encoding="utf-8", errors="replace").startswith("---\n")


def _publish_data(arguments: argparse.Namespace) -> None:
    from training.degrade.command import progress_bar
    from training.publish.cards import dataset_card, kaggle_metadata
    from training.publish.dataset import pack, plan

    chosen = plan(arguments.root or Path("data"), include_all=arguments.all)
    for problem in chosen.problems:
        sys.stdout.write(f"left out: {problem}\n")
    for name, game in chosen.left_out.items():
        licences = ", ".join(sorted(game.licences))
        sys.stdout.write(f"left out: {name}: its licence, {licences}, is not one to pass on\n")
    out: Path = arguments.out
    with progress_bar(" archives") as progress:
        files = pack(chosen, out, progress=progress)
    texts = {"README.md": dataset_card(chosen)}
    if arguments.to == "kaggle":
        identifier = arguments.repository or "OWNER/game-frames"
        texts["dataset-metadata.json"] = kaggle_metadata(chosen, identifier)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    for path in (*files, *(out / name for name in texts)):
        sys.stdout.write(f"{path.relative_to(out)}  {path.stat().st_size} bytes\n")


def _publish_model(arguments: argparse.Namespace) -> None:
    from training.publish.dataset import plan
    from training.publish.model import write_model

    if arguments.to == "kaggle":
        raise DataError("models go to Hugging Face; say --to huggingface")
    files = write_model(
        arguments.model,
        arguments.out,
        licence=arguments.licence,
        metrics=arguments.metrics,
        provenance=arguments.provenance,
        data=plan(arguments.root, include_all=True) if arguments.root else None,
    )
    for path in files:
        sys.stdout.write(f"{path.name}  {path.stat().st_size} bytes\n")
