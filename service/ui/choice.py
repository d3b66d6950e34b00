"""Models sorted by family, and how fast they were measured to be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.metrics.errors import EvaluationError
from evaluation.report.__main__ import latency_rows
from service.ui.client import Row

#: Families by the first word of their models' names.
_FAMILIES = {
    "default": "Overlay", "quality": "Overlay", "realesr": "Real-ESRGAN",
    "realesrgan": "Real-ESRGAN", "realesrnet": "Real-ESRGAN", "emt": "EMT",
    "resshift": "ResShift", "span": "SPAN", "compact": "Compact", "ultracompact": "Compact",
    "superultracompact": "Compact",
}  # fmt: skip
_MAX_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a model was on some machine.

    Attributes:
        ms: p50 of one frame.
        sizes: "480x270 to 1920x1080".
        where: back end, device and machine.
    """

    ms: float
    sizes: str
    where: str

    def __str__(self) -> str:
        return f"{self.ms:.1f} ms a frame (p50), {self.sizes}, {self.where}"


def name_of(row: Row) -> str:
    """Give a model's name without its scale."""
    return re.sub(rf"-x{row.scale}$", "", row.id)


def family_of(row: Row) -> str:
    """Name a model's family."""
    first = row.id.partition("-")[0]
    return _FAMILIES.get(first, first)


def sorted_out(rows: Iterable[Row]) -> dict[str, dict[str, dict[int, Row]]]:
    """Sort models: family, name, scale. What can be used here comes first."""
    found: dict[str, dict[str, dict[int, Row]]] = {}
    for row in sorted(rows, key=lambda row: not row.available):
        found.setdefault(family_of(row), {}).setdefault(name_of(row), {})[row.scale] = row
    return found


def first_of(rows: Sequence[Row], wanted: str) -> Row:
    """Choose what to begin with.

    Args:
        rows: at least one.
        wanted: the server's own choice; "default" fits to any scale.
    """
    usable = [row for row in rows if row.available] or list(rows)
    exact = [row for row in usable if row.id == wanted]
    return (exact or [row for row in usable if name_of(row) == wanted] or usable)[-1]


# --- measured speed ------------------------------------------------------------------------------


def speeds(folder: Path) -> dict[str, Speed]:
    """Find what benchmarks in a folder say; the fastest back end at the smallest size counts."""
    found: dict[str, tuple[int, Speed]] = {}
    for path in sorted(folder.rglob("*.json")):
        for model, speed in _speeds_in(path):
            width, _, height = speed.sizes.partition(" ")[0].partition("x")
            rank = int(width) * int(height)
            known = found.get(model)
            if known is None or (rank, speed.ms) < (known[0], known[1].ms):
                found[model] = rank, speed
    return {model: speed for model, (_, speed) in found.items()}


def _speeds_in(path: Path) -> list[tuple[str, Speed]]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            return []
        found = json.loads(path.read_text("utf-8"))
        cpu = found.get("machine", {}).get("cpu", "")
        return [_speed(row, cpu) for row in latency_rows(path) if row["kind"] == "net"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EvaluationError):
        return []  # another kind of result


def _speed(row: Mapping[str, Any], cpu: str) -> tuple[str, Speed]:
    for size in (row["input_size"], row["output_size"]):
        if not re.fullmatch(r"\d{1,5}x\d{1,5}", size):
            raise ValueError(f"{size!r} is no size")
    where = ", ".join(str(part) for part in (row["backend"], row["device"], cpu) if part)
    sizes = f"{row['input_size']} to {row['output_size']}"
    return str(row["model"]), Speed(float(row["upscale"]["ms"]["p50"]), sizes, where)
