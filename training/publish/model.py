"""A model's folder: safetensors, the ONNX graph that is shipped with it, and a card."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines import load
from engines.errors import EngineError
from engines.load import Located
from training.errors import DataError
from training.publish.cards import model_card
from training.publish.dataset import Plan, refuse_others

_MOST = 4 << 20  # bytes of a report or a provenance file


def write_model(
    reference: str,
    out: Path,
    *,
    licence: str | None = None,
    metrics: Path | None = None,
    provenance: Path | None = None,
    data: Plan | None = None,
) -> list[Path]:
    """Write a model's folder; give the files.

    Args:
        reference: a name of the zoo or a file, as `engines.load.locate` takes it.
        out: the folder.
        licence: SPDX identifier of the weights; needed for a user's file.
        metrics: JSON of a quality report, `{"results": [{"model": …, "psnr": …}]}`.
        provenance: Markdown that is added to the card; None: what is shipped with the model.
        data: what it was trained on, named in the card.
    Raises:
        DataError: the model cannot be read, has no licence, a file is no such report, or `out`
            holds other weights or data.
    """
    try:
        located = load.locate(reference)
        spec = located.spec or load.read(located).spec
        licence = licence or (spec.licence if spec.licence != load.UNKNOWN_LICENCE else None)
        if licence is None:
            raise DataError(f"the licence of {reference} is not known; give it with --licence")
        rows = _results(metrics) if metrics else []
        if provenance is None and located.origin == "shipped":
            provenance = load.weights_folder() / "PROVENANCE.md"
        told = _text(provenance) if provenance else ""
        out.mkdir(parents=True, exist_ok=True)
        stem = spec.id if located.spec else Path(reference).stem
        weights = out / f"{stem}.safetensors"
        refuse_others(out, {weights, *([out / spec.onnx] if spec.onnx else [])})
        _write_weights(located, weights)
        files = [weights]
        if located.origin == "shipped" and spec.onnx:
            files.append(out / spec.onnx)
            shutil.copyfile(load.weights_folder() / spec.onnx, files[-1])
    except EngineError as exc:
        raise DataError(str(exc)) from exc
    except OSError as exc:
        raise DataError(f"cannot write {exc.filename or out}: {exc.strerror}") from exc
    facts = {
        "name": stem,
        "architecture": spec.architecture,
        "parameters": f"{_parameters(weights):,}",
        "scale": str(spec.scale),
        "licence": licence,
        "origin": spec.author
        or (Path(reference).name if load.is_path(reference) else located.origin),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "data": _data(data, bool(told)),
        "files": "\n".join(f"- `{file.name}`" for file in files),
        "provenance": f"\n## Provenance\n\n{_lowered(told)}" if told else "",
    }
    card = out / "README.md"
    card.write_text(model_card(facts, rows), encoding="utf-8")
    return [card, *files]


def _write_weights(located: Located, target: Path) -> None:
    """Copy safetensors as they are; write others' tensors as read."""
    if len(located.files) == 1 and located.files[0].suffix == ".safetensors":
        shutil.copyfile(located.files[0], target)
        return
    from safetensors.torch import save_file

    module = load.read(located).module
    if module is None:
        raise DataError(f"{located.name} is an ONNX graph, not weights; give the weights' file")
    draft = target.with_name(f".{target.name}.part")
    save_file({k: v.contiguous() for k, v in sorted(module.state_dict().items())}, draft)
    os.replace(draft, target)


def _parameters(path: Path) -> int:
    """Count the numbers in a safetensors file by its header."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(min(length, _MOST)))
    count = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            number = 1
            for side in tensor["shape"]:
                number *= side
            count += number
    return count


def _results(path: Path) -> list[Mapping[str, Any]]:
    try:
        found = json.loads(_text(path))
        rows = found["results"]
        if not all(isinstance(row, dict) and isinstance(row["model"], str) for row in rows):
            raise TypeError("a row has no model")
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise DataError(
            f'{path} is no quality report, {{"results": [{{"model": …, "psnr": …}}]}}; '
            "make one with python -m evaluation.evaluate --json"
        ) from exc
    return list(rows)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST:
            raise DataError(f"{path} is larger than {_MOST >> 20} MiB")
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as exc:
        raise DataError(f"cannot read {path}: {exc.strerror}") from exc


def _lowered(markdown: str) -> str:
    """Put headings two levels lower."""
    lines = (f"##{line}" if line.startswith("#") else line for line in markdown.splitlines())
    return "\n".join(lines) + "\n"


def _data(plan: Plan | None, told: bool) -> str:
    if plan is None:
        return "See the provenance below." if told else "Not stated."
    lines = []
    for game in (*plan.games.values(), *plan.left_out.values()):
        count = game.frames("train")
        if count:
            licences = "; ".join(sorted(game.licences))
            sequences = len(game.episodes["train"])
            lines.append(f"- {game.name}: {count} frames of {sequences} sequences; {licences}")
    return "\n".join(["Trained on frames of:", "", *lines]) if lines else "Not stated."
