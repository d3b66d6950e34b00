"""Which pictures belong together, and what to call them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from overlay.errors import SettingsError
from overlay.files.batch import kind_of


@dataclass(frozen=True, slots=True)
class Pair:
    """Pictures to be compared.

    Attributes:
        name: of the pair.
        paths: A, B, and the truth if there is one.
        labels: what each is called.
    """

    name: str
    paths: tuple[Path, ...]
    labels: tuple[str, ...]


def find(sources: Sequence[Path]) -> tuple[list[Pair], list[Path]]:
    """Pair files, or folders by the names in them.

    Files of folders, which are searched with all that is in them, belong together if their paths
    within the folders are equal, or differ in the ending only and nothing else could be meant.

    Args:
        sources: A, B, and the truth if there is one.
    Returns:
        The pairs in order of name, and the files that have no partner.
    Raises:
        SettingsError: some are folders and some are not, or there is nothing to compare.
    """
    folders = [source for source in sources if source.is_dir()]
    if not folders:
        name = f"{shown(sources[0].name)} and {shown(sources[1].name)}"
        return [Pair(name, tuple(sources), labels(sources))], []
    if len(folders) < len(sources):
        other = next(source for source in sources if not source.is_dir())
        raise SettingsError(f"{folders[0]} is a folder and {other} is not: compare like with like")
    return _matched(sources)


def _matched(folders: Sequence[Path]) -> tuple[list[Pair], list[Path]]:
    listed = [_Names(folder) for folder in folders]
    pairs: list[Pair] = []
    paired: set[Path] = set()
    for name in listed[0].paths:
        partners = [names.partner(name, listed[0]) for names in listed]
        found = [path for path in partners if path is not None]
        if len(found) == len(folders):
            paths = tuple(folder / path for folder, path in zip(folders, found, strict=True))
            pairs.append(Pair(shown(str(name)), paths, labels(paths)))
            paired.update(paths)
    every = [
        folder / path for folder, names in zip(folders, listed, strict=True) for path in names.paths
    ]
    if not pairs:
        raise SettingsError(f"no picture has a partner in {', '.join(map(str, folders[1:]))}")
    return pairs, [path for path in every if path not in paired]


class _Names:
    """The pictures of a folder, by their paths in it."""

    def __init__(self, folder: Path) -> None:
        found = (path for path in folder.rglob("*") if kind_of(path) == "image")
        self.paths = sorted(path.relative_to(folder) for path in found)
        self.whole = frozenset(self.paths)
        self.by_stem: dict[PurePath, list[PurePath]] = defaultdict(list)
        for path in self.paths:
            self.by_stem[path.with_suffix("")].append(path)

    def partner(self, name: PurePath, own: _Names) -> PurePath | None:
        """Find what belongs to `name`, which is one of `own`."""
        if name in self.whole:
            return name
        stem = name.with_suffix("")
        theirs = [path for path in self.by_stem.get(stem, ()) if path not in own.whole]
        mine = [path for path in own.by_stem[stem] if path not in self.whole]
        return theirs[0] if len(mine) == len(theirs) == 1 else None


def labels(paths: Sequence[Path]) -> tuple[str, ...]:
    """Call files by their names, and by as many folders as it takes to tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, parts))):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return tuple(map(shown, names))
    return tuple(shown(str(path)) for path in paths)


def shown(name: str) -> str:
    """Replace what a terminal or a page would not show as it is."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in name)
