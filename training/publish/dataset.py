"""Frames packed in SRGD's layout.

    OUT/data/{GameEngineData,DownscaleData}/{game}/{split}-{270p,…}.tar.gz   {episode}_{frame}.png
    OUT/data/{GameEngineData,DownscaleData}/manifest.jsonl

Equal frames give equal archives, whenever and by whomever they are packed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.dataset import (
    KINDS,
    SPLITS,
    Problem,
    check,
    file_bytes,
    frame_parts,
    read_manifest,
)
from training.errors import DataError
from training.publish.licences import is_free

UNKNOWN = "unknown"
#: Folders of frames; what else lies there was not checked.
_FOLDER = re.compile(r"(270|360|540|1080)p")


@dataclass(slots=True)
class Game:
    """What is published of one game, or left out.

    Attributes:
        licences, versions, presets: of its frames, sorted.
        archives: {(kind, split, folder): frames' files}, folder as "270p".
        episodes: {split: names of its sequences}.
    """

    name: str
    licences: set[str] = field(default_factory=set)
    versions: set[str] = field(default_factory=set)
    presets: set[str] = field(default_factory=set)
    archives: dict[tuple[str, str, str], list[Path]] = field(
        default_factory=lambda: defaultdict(list)
    )
    episodes: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    @property
    def is_free(self) -> bool:
        """Whether all its frames may be passed on."""
        return all(map(is_free, self.licences))

    def frames(self, split: str) -> int:
        """Count the frames of a split at the size that has most."""
        counts = (len(files) for (_, s, _), files in self.archives.items() if s == split)
        return max(counts, default=0)


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be published.

    Attributes:
        games: that are included, by name.
        left_out: games whose licence does not allow it.
        problems: frames that are left out.
        entries: {kind: manifest entries of the included frames, by name}.
    """

    games: dict[str, Game]
    left_out: dict[str, Game]
    problems: list[Problem]
    entries: dict[str, dict[str, dict[str, Any]]]


def plan(root: Path, *, include_all: bool = False) -> Plan:
    """Look through a data root; writes nothing.

    Args:
        root: of the data.
        include_all: also games whose licence is unknown or does not allow it.
    Raises:
        DataError: there are no frames, or none that may be published.
    """
    games: dict[str, Game] = {}
    problems: list[Problem] = []
    entries: dict[str, dict[str, dict[str, Any]]] = {}
    for kind in KINDS:
        if not (root / kind).is_dir():
            continue
        found = check(root, kind, thorough=False)
        problems += found
        entries[kind], _ = read_manifest(root / kind)
        _gather(root / kind, entries[kind], {problem.name for problem in found}, games)
    if not games:
        raise DataError(f"no frames in {root}; make them with overlay data collect")
    kept = {n: game for n, game in sorted(games.items()) if include_all or game.is_free}
    left_out = {n: game for n, game in sorted(games.items()) if n not in kept}
    if not kept:
        said = "; ".join(f"{n}: {', '.join(sorted(g.licences))}" for n, g in left_out.items())
        raise DataError(f"no game's licence lets its frames be passed on ({said}); see --all")
    packed = {path.stem for g in kept.values() for files in g.archives.values() for path in files}
    chosen = {
        kind: {name: known[name] for name in sorted(known) if name in packed}
        for kind, known in entries.items()
    }
    return Plan(kept, left_out, problems, chosen)


def _gather(
    folder: Path,
    known: Mapping[str, Mapping[str, Any]],
    bad: set[str],
    games: dict[str, Game],
) -> None:
    """Sort the frames of one kind into games; leaves out the bad ones, and whole sequences."""
    for path in sorted(folder.glob("*p/*/*.png")):
        parts = frame_parts(path.stem)
        split = path.parent.name
        size = path.parents[1].name
        if _FOLDER.fullmatch(size) is None:
            continue
        if parts is None or split not in SPLITS or {path.stem, "_".join(parts[:2])} & bad:
            continue
        game = games.setdefault(parts[0], Game(parts[0]))
        game.archives[folder.name, split, size].append(path)
        game.episodes[split].add(parts[1])
        entry = known.get(path.stem, {})
        game.licences.add(str(entry.get("licence") or UNKNOWN))
        versions = entry.get("versions")
        if isinstance(versions, dict):
            game.versions |= {f"{key} {value}" for key, value in versions.items()}
        game.presets |= _presets(entry)


def _presets(entry: Mapping[str, Any]) -> set[str]:
    """Give the presets by which a frame was degraded."""
    sizes = entry.get("degraded")
    made = sizes.values() if isinstance(sizes, dict) else ()
    recipes = [size.get("recipe") for size in made if isinstance(size, dict)]
    return {str(recipe.get("preset", UNKNOWN)) for recipe in recipes if isinstance(recipe, dict)}


def pack(
    chosen: Plan, out: Path, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Path]:
    """Write the archives and manifests; give their paths.

    Raises:
        DataError: `out` cannot be written, holds other archives, or a frame is not the one that its
            manifest describes.
    """
    archives = [
        (out / "data" / kind / game.name / f"{split}-{size}.tar.gz", files, (kind, size))
        for game in chosen.games.values()
        for (kind, split, size), files in sorted(game.archives.items())
    ]
    manifests = {out / "data" / kind / "manifest.jsonl" for kind in chosen.entries}
    refuse_others(out, manifests.union(path for path, _, _ in archives))
    written = []
    try:
        for done, (path, files, (kind, size)) in enumerate(archives, 1):
            write_archive(path, files, _sums(chosen.entries[kind], size))
            written.append(path)
            progress(done, len(archives))
        for kind, entries in chosen.entries.items():
            if entries:
                path = out / "data" / kind / "manifest.jsonl"
                lines = (
                    json.dumps(e, ensure_ascii=False, sort_keys=True) for e in entries.values()
                )
                text = "".join(f"{line}\n" for line in lines)
                path.write_text(text, encoding="utf-8", errors="replace")
                written.append(path)
    except OSError as exc:
        raise DataError(f"cannot write {exc.filename or out}: {exc.strerror}") from exc
    return written


def refuse_others(out: Path, planned: Collection[Path]) -> None:
    """Refuse a folder with data or weights of an earlier run: they would be uploaded too.

    Raises:
        DataError: there are some that are not `planned`.
    """
    others = sorted(
        path
        for path in out.rglob("*")
        if path.is_file()
        and path not in planned
        and (out / "data" in path.parents or path.suffix in (".safetensors", ".onnx"))
    )
    if others:
        raise DataError(f"{others[0]} is of another run; delete {out}, or give a new folder")


def _sums(entries: Mapping[str, Mapping[str, Any]], size: str) -> dict[str, str]:
    """Give the sha256 of frames' files of one size, by name, where the manifest states it."""
    sums = {name: entry.get("sha256") for name, entry in entries.items()}
    return {n: str(found[size]) for n, found in sums.items()
            if isinstance(found, dict) and size in found}  # fmt: skip


def write_archive(path: Path, files: Iterable[Path], sums: Mapping[str, str]) -> None:
    """Write a .tar.gz of `files` without their game's name: sorted, no times, no owners.

    Raises:
        DataError: the sha256 of one is not that of `sums`, by name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    try:
        with (
            draft.open("wb") as raw,
            gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for file in sorted(files, key=lambda file: file.name):
                data = file_bytes(file)
                expected = sums.get(file.stem)
                if expected and hashlib.sha256(data).hexdigest() != expected:
                    raise DataError(
                        f"{file} is not the one in manifest.jsonl; see overlay data check "
                        "--thorough"
                    )
                member = tarfile.TarInfo(file.name.partition("_")[2])
                member.size, member.mode = len(data), 0o644
                archive.addfile(member, io.BytesIO(data))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def counts(games: Sequence[Game]) -> Counter[str]:
    """Count frames by split, over all games."""
    found: Counter[str] = Counter()
    for game in games:
        found.update({split: game.frames(split) for split in SPLITS})
    return found
