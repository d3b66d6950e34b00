"""What was measured, as a table and as JSON, and what was not."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from overlay.compare.pairs import Pair, shown

if TYPE_CHECKING:
    from overlay.compare.measure import Comparison, Figures

#: Names of the layers in JSON.
ROLES = ("a", "b", "reference")
_HEADS = ("PSNR dB", "SSIM", "mean", "largest")


@dataclass(slots=True)
class Report:
    """What became of the pairs.

    Attributes:
        alone: files without a partner.
        compared: what was measured; a layer's pixels are not kept.
        failed: (name, reason).
        left_out: names of pairs whose pictures had no room on the page.
    """

    alone: list[Path]
    compared: list[Row] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, pair: Pair, found: Comparison) -> None:
        """Take what was measured of a pair."""
        about = [f"{layer.own[0]}x{layer.own[1]}" for layer in found.layers]
        notes = [list(layer.notes) for layer in found.layers]
        size = f"{found.size[0]}x{found.size[1]}"
        self.compared.append(Row(pair, about, notes, size, found.figures))

    def problems(self) -> list[str]:
        """Say what could not be compared or shown."""
        alone = [f"{shown(str(path))} has no partner" for path in self.alone]
        hidden = [f"{name}: no room on the page, figures only" for name in self.left_out]
        return [*alone, *(shown(why) for _, why in self.failed), *hidden]

    def means(self) -> dict[tuple[int, int], dict[str, float | None]]:
        """Average over the pairs, by the indices of the layers."""
        found: dict[tuple[int, int], dict[str, float | None]] = {}
        for key in self.compared[0].figures if self.compared else ():
            values = [numbers(row.figures[key]) for row in self.compared]
            means: dict[str, float | None] = {}
            for name in values[0]:
                known = [v for each in values if (v := each[name]) is not None]
                means[name] = fmean(known) if known else None
            found[key] = means
        return found

    def averages(self) -> list[tuple[str, tuple[str, str, str, str]]]:
        """Write the means of several pairs, each with what it is of."""
        if len(self.compared) < 2:
            return []
        start = f"mean of {len(self.compared)}"
        return [
            (f"{start}, {ROLES[one]} against {ROLES[other]}", cells(found))
            for (one, other), found in self.means().items()
        ]

    def text(self) -> str:
        """Write a table: a line for every picture that was measured, and means of several pairs."""
        lines: list[tuple[str, ...]] = []
        above = []
        for row in self.compared:
            for label, size, notes in zip(row.pair.labels, row.sizes, row.notes, strict=True):
                if len(self.compared) == 1 or notes:
                    above.append(f"{label}: {', '.join([size, *notes])}")
            for (one, other), found in row.figures.items():
                names = f"{row.pair.labels[one]} against {row.pair.labels[other]}"
                lines.append((names, *cells(numbers(found))))
        lines += [(name, *found) for name, found in self.averages()]
        if not lines:
            return ""
        wide = max(len(line[0]) for line in lines)
        table = [
            f"{name:{wide}}" + "".join(f"  {cell:>8}" for cell in rest)
            for name, *rest in [("", *_HEADS), *lines]
        ]
        return "\n".join([*above, *table]) + "\n"

    def json(self, out: Path | None) -> str:
        """Write one JSON object; its fields are in docs/cli.md."""
        means = self.means() if len(self.compared) > 1 else {}
        found = {
            "pairs": [row.json() for row in self.compared],
            "means": [_named(key, values) for key, values in means.items()],
            "unpaired": [str(path) for path in self.alone],
            "failed": [{"pair": name, "why": why} for name, why in self.failed],
            "out": None if out is None else str(out),
        }
        return json.dumps(found) + "\n"


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of a pair.

    Attributes:
        pair: its names.
        sizes, notes: of every file, and what was done to it.
        size: at which they were compared.
        figures: by the indices of the layers.
    """

    pair: Pair
    sizes: list[str]
    notes: list[list[str]]
    size: str
    figures: dict[tuple[int, int], Figures]

    def json(self) -> dict[str, Any]:
        """Give what is in the JSON."""
        files = zip(ROLES, self.pair.paths, self.sizes, self.notes, strict=False)
        return {
            "name": self.pair.name,
            "size": self.size,
            "pictures": [
                {"picture": role, "file": str(path), "size": size, "notes": notes}
                for role, path, size, notes in files
            ],
            "figures": [_named(key, numbers(found)) for key, found in self.figures.items()],
        }


def numbers(found: Figures) -> dict[str, float | None]:
    """Give the figures by their names in JSON."""
    return {
        "psnr_db": round(found.psnr, 4),
        "ssim": None if found.ssim is None else round(found.ssim, 6),
        "mean_difference": round(found.mean, 4),
        "largest_difference": round(found.largest, 4),
        "different": round(found.share, 6),
    }


def _named(key: tuple[int, int], values: dict[str, float | None]) -> dict[str, Any]:
    return {"picture": ROLES[key[0]], "against": ROLES[key[1]], **values}


def cells(values: dict[str, float | None]) -> tuple[str, str, str, str]:
    """Write PSNR in dB, SSIM, mean and largest difference in levels of 255."""
    ssim = "-" if values["ssim"] is None else f"{values['ssim']:.4f}"
    psnr = "equal" if values["largest_difference"] == 0 else f"{values['psnr_db']:.2f}"
    return psnr, ssim, f"{values['mean_difference']:.2f}", f"{values['largest_difference']:.4g}"
