"""Rows of engines as a table: aligned for a terminal, and valid Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.make import Row

_HEADS = (
    "model", "size", "back end", "precision", "status", "build s", "engine MB", "p50 ms",
    "p95 ms", "fps", "runs", "PSNR dB", "max diff", "checked",
)  # fmt: skip
_NUMBERS = 5  # columns from here on are aligned to the right


def as_table(rows: Sequence[Row]) -> str:
    """Give the table, then a line for each row that has something to say."""
    if not rows:
        return "nothing to do\n"
    cells = [_HEADS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADS))]
    lines = [_line(line, widths) for line in cells]
    rule = [
        "-" * width if column < _NUMBERS else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    lines.insert(1, f"| {' | '.join(rule)} |")
    notes = [f"- {name}: {text}" for name, text in _remarks(rows)]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if column < _NUMBERS else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"


def _cells(row: Row) -> tuple[str, ...]:
    numbers = (
        row.build_s, row.engine_mb, row.ms_p50, row.ms_p95, row.fps, row.runs, row.psnr,
        row.max_diff,
    )  # fmt: skip
    texts = ("" if number is None else str(number) for number in numbers)
    return (row.model, row.size, row.backend, row.precision, row.status, *texts, row.checked)


def _remarks(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Give what there is to say about each engine, the same thing about a model once."""
    said: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if text := _remark(row):
            what = " ".join(part for part in (row.size, row.backend, row.precision) if part)
            said.setdefault((row.model, text), []).append(what)
    return [(f"{model} ({', '.join(whats)})", text) for (model, text), whats in said.items()]


def _remark(row: Row) -> str:
    reason = "" if row.status == "fresh" and not row.reason.startswith("not") else row.reason
    return "; ".join(part for part in (reason, row.note) if part)
