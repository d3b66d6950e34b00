"""A model's folder: safetensors, an ONNX graph, config.json for programs and a card for people."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines import load
from engines.errors import EngineError
from engines.hub.listing import CONFIG, is_safe
from engines.load import Located
from engines.spec import ModelSpec
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
    authors: str = "",
    datasets: Sequence[str] = (),
    onnx: bool = False,
) -> list[Path]:
    """Write a model's folder; give the files.

    Args:
        reference: a name of the zoo or a file, as `engines.load.locate` takes it.
        out: the folder.
        licence: SPDX identifier of the weights; needed for a user's file.
        metrics: JSON of a quality report, `{"results": [{"model": …, "psnr": …}]}`.
        provenance: Markdown that is added to the card; None: what is shipped with the model.
        data: what it was trained on, named in the card.
        authors: of the weights; "": those that the zoo names.
        datasets: "owner/name" on the Hub of what it was trained on.
        onnx: also make a graph, BGRA bytes of any size in, if none is shipped.
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
        stem = spec.id if located.spec else located.files[0].stem
        if not is_safe(stem):
            raise DataError(f"{stem!r} is no name for a published file; rename it")
        rows, measured_on = _results(metrics, stem, reference) if metrics else ([], "")
        if provenance is None and located.origin == "shipped":
            provenance = load.weights_folder() / "PROVENANCE.md"
        told = _text(provenance) if provenance else ""
        files = _write_files(located, spec, stem, out, onnx)
        about = _about(spec, licence, files)
        files.append(out / CONFIG)
        files[-1].write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    except EngineError as exc:
        raise DataError(str(exc)) from exc
    except OSError as exc:
        raise DataError(f"cannot write {exc.filename or out}: {exc.strerror}") from exc
    facts = {
        "name": stem,
        "architecture": spec.architecture,
        "parameters": f"{about['parameters']:,}",
        "scale": str(spec.scale),
        "licence": licence,
        "authors": authors or spec.author or "not stated",
        "origin": Path(reference).name if load.is_path(reference) else located.origin,
        "sha256": about["sha256"],
        "data": _data(data, bool(told)),
        "files": "\n".join(f"- `{file.name}`" for file in files),
        "provenance": f"\n## Provenance\n\n{_lowered(told)}" if told else "",
    }
    card = out / "README.md"
    card.write_text(model_card(facts, rows, measured_on, datasets), encoding="utf-8")
    return [card, *files]


def _write_files(located: Located, spec: ModelSpec, stem: str, out: Path, onnx: bool) -> list[Path]:
    """Write the weights, and the graph if there is one or it is wanted."""
    out.mkdir(parents=True, exist_ok=True)
    shipped = located.origin == "shipped" and spec.onnx
    files = [out / f"{stem}.safetensors"]
    if shipped or onnx:
        files.append(out / (spec.onnx if shipped else f"{stem}.onnx"))
    refuse_others(out, files)
    _write_weights(located, files[0])
    if shipped:
        shutil.copyfile(load.weights_folder() / spec.onnx, files[1])
    elif onnx:
        files[1].write_bytes(_graph(located))
    return files


def _graph(located: Located) -> bytes:
    """Make the graph of a net, for any size that is a multiple of what it takes."""
    from engines.export import export

    loaded = load.read(located)
    step = loaded.spec.size_multiple
    return export(loaded, ((32 * step, 24 * step), (16 * step, 20 * step)), "fp32")


def _about(spec: ModelSpec, licence: str, files: Sequence[Path]) -> dict[str, Any]:
    """Say what programs may want to know; `engines.hub` reads `weights` and `sha256`."""
    weights, *graphs = files
    return {
        "library_name": "sr-overlay",
        "architecture": spec.architecture,
        "shape": dict(spec.shape),
        "scale": spec.scale,
        "output": spec.output,
        "parameters": _parameters(weights),
        "licence": licence,
        "weights": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "onnx": [graph.name for graph in graphs],
    }


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


def _results(path: Path, stem: str, reference: str) -> tuple[list[dict[str, Any]], str]:
    """Read a report: its rows, in which the model is called by its stem, and what it measured."""
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
    named = [{**row, "model": _shown(row["model"], stem, reference)} for row in rows]
    frames, sequences = found.get("frames"), found.get("sequences")
    counted = type(frames) is int and type(sequences) is int
    return named, f"{frames} frames of {sequences} sequences" if counted else ""


def _shown(model: str, stem: str, reference: str) -> str:
    """Name a model of a report without the folders of this machine."""
    if model == reference:
        return stem
    return Path(model).name if load.is_path(model) else model


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
