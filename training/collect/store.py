"""The collected sequences on disk: written whole or not at all, with a manifest.

    <root>/GameEngineData/270p/train/openarena_oa-dm1_0003.png     and so on, see training/dataset
    <root>/GameEngineData/manifest.jsonl      one JSON object a frame
    <root>/GameEngineData/dropped.jsonl       one JSON object a sequence that the gate dropped
    <root>/GameEngineData/.draft-…            sequences in the making; of no use to anyone else

A sequence is complete when the manifest lists it; files without an entry, and drafts, are of a run
that was killed, and are replaced by the next.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
from filelock import FileLock, Timeout

from training.collect.runner import CollectError, Episode, Pixels
from training.dataset import json_lines, read_manifest


def frame_name(episode: Episode, number: int) -> str:
    """Name a frame's files, without the ending."""
    return f"{episode.game}_{episode.name}_{number:04d}"


@dataclass(slots=True)
class Draft:
    """Frames of one sequence before they were judged.

    Attributes:
        files: number: {folder: PNG}.
        sums: number: {folder: sha256 of the PNG}.
        ticks: number: moment in the game.
    """

    folder: Path
    files: dict[int, dict[str, Path]] = field(default_factory=dict)
    sums: dict[int, dict[str, str]] = field(default_factory=dict)
    ticks: dict[int, int] = field(default_factory=dict)

    def write(self, number: int, folder: str, pixels: Pixels) -> None:
        """Write uint8 BGR (H, W, 3) as PNG."""
        made, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        assert made
        self.add(number, folder, data.tobytes())

    def add(self, number: int, folder: str, png: bytes) -> None:
        """Write a PNG as it is."""
        path = self.folder / folder / f"{number:04d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png)
        self.files.setdefault(number, {})[folder] = path
        self.sums.setdefault(number, {})[folder] = hashlib.sha256(png).hexdigest()

    def link(self, number: int, folder: str, png: Path) -> None:
        """Take a PNG that is there already, as a link if that is possible."""
        path = self.folder / folder / f"{number:04d}.png"
        path.parent.mkdir(exist_ok=True)
        try:
            os.link(png.resolve(), path)  # not a symbolic link itself
        except OSError:
            shutil.copyfile(png, path)
        self.files.setdefault(number, {})[folder] = path
        self.sums.setdefault(number, {})[folder] = _sha256(path)

    def keep(self, numbers: Iterable[int]) -> None:
        """Forget all other frames."""
        wanted = set(numbers)
        self.files = {n: files for n, files in sorted(self.files.items()) if n in wanted}


class Store:
    """The GameEngineData (or DownscaleData) folder of a data root.

    Safe for several threads and processes; no two make the same sequence.
    """

    def __init__(self, root: Path, kind: str = "GameEngineData") -> None:
        self.folder = root / kind
        self.folder.mkdir(parents=True, exist_ok=True)
        self._manifest = self.folder / "manifest.jsonl"
        self._dropped = self.folder / "dropped.jsonl"

    @contextmanager
    def draft(self, episode: Episode) -> Iterator[Draft]:
        """Give a place for a sequence's frames that is gone after the block.

        Raises:
            CollectError: another thread or process is making this sequence.
        """
        name = f"{episode.game}_{episode.name}"
        folder = self.folder / f".draft-{name}"
        try:
            lock = FileLock(self.folder / f".{name}.lock", timeout=0).acquire()
        except Timeout:
            raise CollectError(
                f"another process is collecting {name}; run this again when it is done"
            ) from None
        with lock:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            folder.mkdir()
            try:
                yield Draft(folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def entries(self, episode: Episode) -> list[dict[str, Any]]:
        """Read a sequence's manifest entries, in the order of their frames."""
        return [entry for entry in self.all_entries() if _is_of(entry, episode)]

    def all_entries(self) -> list[dict[str, Any]]:
        """Read the whole manifest."""
        return list(read_manifest(self.folder)[0].values())

    def dropped(self, episode: Episode) -> str:
        """Say why this very sequence was dropped before; "" if it was not."""
        for line in _lines(self._dropped):
            if _is_of(line, episode) and _same(line, episode):
                return str(line.get("reason", "for no stated reason"))
        return ""

    def complete(self, episode: Episode) -> bool:
        """Tell whether the manifest has this sequence, made alike, and all its files are whole."""
        entries = self.entries(episode)
        return bool(entries) and all(
            _same(entry, episode) and self._whole(entry) for entry in entries
        )

    def _whole(self, entry: Mapping[str, Any]) -> bool:
        sums = entry.get("sha256")
        if not isinstance(sums, dict) or not sums:
            return False
        try:
            return all(
                _sha256(self.path(folder, entry["split"], entry["name"])) == expected
                for folder, expected in sums.items()
            )
        except (OSError, ValueError):  # ValueError: no such path can be
            return False

    def path(self, folder: str, split: str, name: str) -> Path:
        """Give the place of a frame's file."""
        return self.folder / folder / split / f"{name}.png"

    def commit(self, episode: Episode, draft: Draft, facts: Mapping[str, Any]) -> None:
        """Put a sequence into its place and list it; what was there of it before goes.

        Args:
            facts: for each of its entries: versions, licence, alignment figures.
        """
        entries = []
        with self._locked():
            self._rewrite(self._manifest, episode, [])
            self._forget(episode)
            for number, files in draft.files.items():
                name = frame_name(episode, number)
                for folder, path in files.items():
                    target = self.path(folder, episode.split, name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(path, target)
                described = _described(episode) | {"tick": draft.ticks.get(number, number)}
                described |= {"name": name, "frame": number, "sha256": draft.sums[number]}
                entries.append(described | dict(facts))
            self._rewrite(self._manifest, episode, entries)
            self._rewrite(self._dropped, episode, [])

    def drop(self, episode: Episode, reason: str, facts: Mapping[str, Any]) -> None:
        """Note why a sequence is not there; what was there of it before goes."""
        with self._locked():
            self._rewrite(self._manifest, episode, [])
            self._forget(episode)
            self._rewrite(
                self._dropped, episode, [_described(episode) | {"reason": reason} | dict(facts)]
            )

    def _locked(self) -> FileLock:
        return FileLock(self.folder / ".lock")

    def _forget(self, episode: Episode) -> None:
        """Delete a sequence's files in all splits, listed or not."""
        for path in self.folder.glob(f"*p/*/{episode.game}_{episode.name}_*.png"):
            path.unlink()

    def _rewrite(self, path: Path, episode: Episode, entries: list[dict[str, Any]]) -> None:
        """Replace the lines of a sequence."""
        kept = [line for line in _lines(path) if not _is_of(line, episode)]
        if not (kept or entries or path.exists()):
            return
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [*kept, *entries])
        draft = path.with_name(f".{path.name}.part")
        try:
            draft.write_text(text, encoding="utf-8", errors="replace")
            os.replace(draft, path)
        except OSError as exc:
            draft.unlink(missing_ok=True)
            raise CollectError(f"cannot write {path}: {exc.strerror}") from exc


def _described(episode: Episode) -> dict[str, Any]:
    """Give what an entry says about its sequence."""
    return {
        "game": episode.game,
        "episode": episode.name,
        "split": episode.split,
        "map": episode.map,
        "seed": episode.seed,
        "settings": episode.settings,
        "asked": episode.frames,
    }


def _is_of(line: Mapping[str, Any], episode: Episode) -> bool:
    return (line.get("game"), line.get("episode")) == (episode.game, episode.name)


def _same(line: Mapping[str, Any], episode: Episode) -> bool:
    """Tell whether an entry's sequence was made as this episode would be, with no fewer frames."""
    had, wanted = line.get("asked"), episode.frames
    enough = had is None or (wanted is not None and isinstance(had, int) and wanted <= had)
    now = _described(episode)
    return enough and all(line.get(key) == now[key] for key in ("split", "map", "seed", "settings"))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [line for _, line in json_lines(path) if line is not None]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
