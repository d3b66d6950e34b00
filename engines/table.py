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
#: What is left out of a narrow terminal, first the first.
_LEAST = ("checked", "runs", "max diff", "build s", "p95 ms", "engine MB", "precision", "PSNR dB")
_NUMBERS = 5  # columns from here on are aligned to the right


def as_table(rows: Sequence[Row], columns: int | None = None) -> str:
    """Give the table, then a line for each row that has something to say.

    Args:
        columns: leave out what matters least until lines are no longer than this; None = all.
    """
    if not rows:
        return "nothing to do\n"
    cells = [_HEADS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADS))]
    shown = _fitting(widths, columns)
    lines = [_line(line, widths, shown) for line in cells]
    rule = [
        "-" * widths[column] if column < _NUMBERS else "-" * (widths[column] - 1) + ":"
        for column in shown
    ]
    lines.insert(1, f"| {' | '.join(rule)} |")
    notes = [f"- {name}: {text}" for name, text in _remarks(rows)]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def _fitting(widths: Sequence[int], columns: int | None) -> list[int]:
    shown = list(range(len(_HEADS)))
    for name in _LEAST:
        if columns is None or sum(widths[column] + 3 for column in shown) < columns:
            break
        shown.remove(_HEADS.index(name))
    return shown


def _line(cells: Sequence[str], widths: Sequence[int], shown: Sequence[int]) -> str:
    padded = [
        cells[column].ljust(widths[column])
        if column < _NUMBERS
        else cells[column].rjust(widths[column])
        for column in shown
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
