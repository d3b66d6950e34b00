"""`overlay data publish`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from training.errors import DataError

#: What a dry run leaves in its folder.
_TREE, _OPERATIONS = "upload", "operations.jsonl"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{1,49}/[A-Za-z0-9][\w.-]{2,49}")


def add_publish(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `publish`."""
    parser = commands.add_parser(
        "publish",
        help="make data or a model ready for Hugging Face or Kaggle",
        description="Make data (in SRGD's layout) or a model ready for Hugging Face or Kaggle, "
        "with a card. Nothing leaves this machine without --upload. Needs --out or --dry-run.",
    )
    parser.add_argument("--to", required=True, choices=("huggingface", "kaggle"))
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="the folder of what to upload")
    where.add_argument(
        "--dry-run", type=Path, metavar="DIR",
        help="write DIR/upload, all that would be uploaded, and DIR/operations.jsonl, what would "
        "be done with it (Hugging Face)",
    )  # fmt: skip
    parser.add_argument("--root", type=Path, metavar="DIR", help="the data folder [data]")
    parser.add_argument(
        "--all", action="store_true", help="also games whose licence does not allow it"
    )
    parser.add_argument("--model", metavar="NAME|FILE", help="a model instead of the data")
    parser.add_argument("--licence", metavar="SPDX", help="of the model's weights")
    parser.add_argument("--metrics", type=Path, metavar="JSON", help="report for the model's card")
    parser.add_argument("--provenance", type=Path, metavar="MD", help="added to the model's card")
    parser.add_argument(
        "--onnx", action="store_true", help="add the model's ONNX graph, where none is shipped"
    )
    parser.add_argument("--authors", default="", metavar="TEXT", help="named in the card")
    parser.add_argument(
        "--dataset", action="append", default=[], metavar="OWNER/NAME",
        help="on Hugging Face, of what the model was trained on; may be repeated",
    )  # fmt: skip
    parser.add_argument("--repository", metavar="OWNER/NAME", help="where it is to go")
    parser.add_argument(
        "--upload", action="store_true",
        help="upload it, into a private repository if there is none (Hugging Face; hf auth login "
        "or HF_TOKEN)",
    )  # fmt: skip
    parser.set_defaults(data_run=_publish)


def _publish(arguments: argparse.Namespace) -> int:
    _check(arguments)
    out: Path = arguments.out or arguments.dry_run / _TREE
    if arguments.dry_run is not None and arguments.dry_run.is_dir():
        others = {path.name for path in arguments.dry_run.iterdir()} - {_TREE, _OPERATIONS}
        if others:
            raise DataError(
                f"{arguments.dry_run} holds something else; give a new or an empty folder"
            )
    if out.is_dir() and any(out.iterdir()) and not _is_ours(out):
        raise DataError(f"{out} holds something else; give a new or an empty folder")
    files = (_publish_model if arguments.model else _publish_data)(arguments, out)
    if arguments.to == "huggingface":
        _leave(arguments, out, files)
    else:
        sys.stdout.write(f"nothing was uploaded; {out} is what would be\n")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise DataError for options that do not go together."""
    for repository in (arguments.repository, *arguments.dataset):
        if repository is not None and not _REPOSITORY.fullmatch(repository):
            raise DataError(f"{repository!r} is no repository; give OWNER/NAME")
    if arguments.dry_run is not None and arguments.upload:
        raise DataError("--upload and --dry-run exclude each other; give --out DIR to upload")
    if arguments.to == "kaggle":
        if arguments.model:
            raise DataError("models go to Hugging Face; say --to huggingface")
        if arguments.dry_run is not None:
            raise DataError("--dry-run is for Hugging Face; --out uploads nothing to Kaggle")
        if arguments.upload:
            raise DataError(
                "upload to Kaggle with its own program: kaggle datasets create --dir-mode tar -p "
                f"{arguments.out}"
            )
    if arguments.upload and arguments.repository is None:
        raise DataError("--upload needs --repository OWNER/NAME")


def _leave(arguments: argparse.Namespace, out: Path, files: Sequence[Path]) -> None:
    """Upload the files, or say what that would be."""
    from training.publish.hub import Upload, upload, write_operations

    wanted = Upload(
        out, tuple(files), arguments.repository or "OWNER/NAME",
        "model" if arguments.model else "dataset",
    )  # fmt: skip
    if arguments.dry_run is not None:
        write_operations(wanted, arguments.dry_run / _OPERATIONS)
        sys.stdout.write(
            f"nothing was uploaded; {out} is what would be, and "
            f"{arguments.dry_run / _OPERATIONS} what would be done\n"
        )
    elif arguments.upload:
        done = upload(wanted)
        said = "uploaded to" if done.is_new else "nothing has changed at"
        sys.stdout.write(f"{said} {done.address}, commit {done.commit[:12]}\n")
    else:
        sys.stdout.write(f"nothing was uploaded; {out} is what would be\n")


def _is_ours(out: Path) -> bool:
    """Whether this command wrote the folder before."""
    card = out / "README.md"
    return card.is_file() and card.read_text(encoding="utf-8", errors="replace").startswith("---\n")


def _publish_data(arguments: argparse.Namespace, out: Path) -> list[Path]:
    from training.degrade.command import progress_bar
    from training.publish.cards import dataset_card, kaggle_metadata
    from training.publish.dataset import pack, plan

    chosen = plan(arguments.root or Path("data"), include_all=arguments.all)
    for problem in chosen.problems:
        sys.stdout.write(f"left out: {problem}\n")
    for name, game in chosen.left_out.items():
        licences = ", ".join(sorted(game.licences))
        sys.stdout.write(f"left out: {name}: its licence, {licences}, is not one to pass on\n")
    with progress_bar(" archives") as progress:
        files = pack(chosen, out, progress=progress)
    texts = {"README.md": dataset_card(chosen, arguments.authors)}
    if arguments.to == "kaggle":
        identifier = arguments.repository or "OWNER/game-frames"
        texts["dataset-metadata.json"] = kaggle_metadata(chosen, identifier)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    files += [out / name for name in texts]
    for path in files:
        sys.stdout.write(f"{path.relative_to(out)}  {path.stat().st_size} bytes\n")
    return files


def _publish_model(arguments: argparse.Namespace, out: Path) -> list[Path]:
    from training.publish.dataset import plan
    from training.publish.model import write_model

    files = write_model(
        arguments.model,
        out,
        licence=arguments.licence,
        metrics=arguments.metrics,
        provenance=arguments.provenance,
        data=plan(arguments.root, include_all=True) if arguments.root else None,
        authors=arguments.authors,
        datasets=arguments.dataset,
        onnx=arguments.onnx,
    )
    for path in files:
        sys.stdout.write(f"{path.name}  {path.stat().st_size} bytes\n")
    return files
