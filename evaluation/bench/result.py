"""A benchmark's result as JSON, as text and as Markdown; fields as in docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from evaluation.bench.capture import CaptureRow
from evaluation.bench.cases import Case, LeftOut
from evaluation.bench.hud import HudCost
from evaluation.bench.rounds import Samples
from overlay.frame import Size
from overlay.latency.machine import QUIET_CORES
from overlay.trace.summary import Json, Percentiles, percentiles


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of some frames, in ms; `fps` is 1000 / p50, `cpu_ms` the mean processor time."""

    ms: Percentiles
    least_ms: float
    cpu_ms: float | None

    @property
    def fps(self) -> float:
        return 1000 / self.ms.p50 if self.ms.p50 else 0.0

    def to_json(self) -> dict[str, Json]:
        percentile = self.ms.to_json()
        assert isinstance(percentile, dict)
        return {
            "ms": {**percentile, "min": round(self.least_ms, 4)},
            "fps": round(self.fps, 2),
            "cpu_ms": None if self.cpu_ms is None else round(self.cpu_ms, 3),
        }


@dataclass(frozen=True, slots=True)
class Row:
    """One upscaler at one size.

    Attributes:
        upscale: uint8 BGRA in host memory to an uint8 result; for shaders draw and finish.
        whole: the same with upload, draw and finish at the output size.
        other_cores: how many cores other processes kept busy; None where it cannot be known.
        verdict: "quiet", "loaded" or "unknown".
        repeated: blocks of frames measured again because other processes disturbed them.
    """

    kind: str
    model: str
    backend: str
    device: str
    scale: int
    input: Size
    output: Size
    runs: int
    upscale: Timing
    whole: Timing
    other_cores: float | None
    verdict: str
    repeated: int

    def to_json(self) -> dict[str, Json]:
        """Give the documented fields of `--json`."""
        return {
            "kind": self.kind,
            "model": self.model,
            "backend": self.backend,
            "device": self.device,
            "scale": self.scale,
            "input_size": str(self.input),
            "output_size": str(self.output),
            "runs": self.runs,
            "upscale": self.upscale.to_json(),
            "whole": self.whole.to_json(),
            "other_cores": None if self.other_cores is None else round(self.other_cores, 3),
            "verdict": self.verdict,
            "repeated": self.repeated,
        }


def row(case: Case, samples: Samples, renderer: str) -> Row:
    """Sum up one case."""
    upscaler, others = case.upscaler, samples.other_cores
    shader = case.kind == "shader"
    verdict = "unknown" if others is None else "quiet" if others < QUIET_CORES else "loaded"
    return Row(
        kind=case.kind,
        model=upscaler.model,
        backend=case.backend,
        device=renderer if shader else upscaler.device,
        scale=case.output.width // case.input.width,
        input=case.input,
        output=case.output,
        runs=len(samples.whole_ns),
        upscale=_timing(samples.upscale_ns, None if shader else samples.upscale_cpu_ns),
        whole=_timing(samples.whole_ns, samples.whole_cpu_ns),
        other_cores=others,
        verdict=verdict,
        repeated=samples.repeated,
    )


def _timing(wall_ns: list[int], cpu_ns: list[int] | None) -> Timing:
    wall_ms = np.array(wall_ns) / 1e6
    cpu_ms = None if cpu_ns is None else float(np.mean(cpu_ns)) / 1e6
    return Timing(percentiles(wall_ms), float(wall_ms.min()), cpu_ms)


@dataclass(frozen=True, slots=True)
class Result:
    """All that a run of `overlay bench` found out.

    Attributes:
        facts: command, source of the frames, thread counts, machine.
    """

    facts: dict[str, Any]
    rows: list[Row]
    left_out: list[LeftOut] = field(default_factory=list)
    capture: list[CaptureRow] = field(default_factory=list)
    hud: list[HudCost] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Give the documented object of `--json`."""
        return {
            **self.facts,
            "rows": [found.to_json() for found in self.rows],
            "left_out": [{"model": out.model, "reason": out.reason} for out in self.left_out],
            "capture": [found.to_json() for found in self.capture],
            "hud": [found.to_json() for found in self.hud],
        }

    def text(self) -> str:
        """Write it for people."""
        return "\n".join(self._lines(_plain_table))

    def markdown(self) -> str:
        """Write it for docs/results/."""
        return "\n".join(self._lines(_markdown_table)) + "\n"

    def _lines(self, table: _Table) -> Iterator[str]:
        machine = self.facts["machine"]
        yield (
            f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python "
            f"{machine['python']}; OpenGL {self.facts['renderer']}; {self.facts['threads']} threads"
        )
        yield ""
        yield (
            f"`{self.facts['command']}`; load average {machine['load_before']} before, "
            f"{machine['load_after']} after; frames from {self.facts['source']}"
        )
        yield ""
        yield from table(_HEAD, (_cells(found) for found in self.rows))
        if self.capture:
            yield ""
            yield from table(_CAPTURE_HEAD, (_capture_cells(found) for found in self.capture))
        if self.hud:
            yield ""
            yield from table(_HUD_HEAD, (_hud_cells(found) for found in self.hud))
        for out in self.left_out:
            yield ""
            yield f"Left out: {out.model}: {out.reason}"


_HEAD = [
    "input", "output", "upscaler", "back end", "upscale ms p50", "p95", "p99", "fps",
    "whole ms p50", "p95", "p99", "fps", "CPU ms", "machine",
]  # fmt: skip
_CAPTURE_HEAD = [
    "capture", "size", "frames", "ms p50", "p95", "p99", "drawn to captured p50", "p95",
    "identical", "missed",
]  # fmt: skip
_HUD_HEAD = ["HUD at", "glyphs", "without ms p50", "same text p50", "new text p50", "p95"]


def _cells(found: Row) -> list[str]:
    upscale, whole = found.upscale, found.whole
    others = "" if found.other_cores is None else f" ({found.other_cores:.2f} cores)"
    return [
        str(found.input), str(found.output), found.model, found.backend,
        *_three(upscale.ms), f"{upscale.fps:.0f}", *_three(whole.ms), f"{whole.fps:.0f}",
        _number(whole.cpu_ms), found.verdict + (others if found.verdict == "loaded" else ""),
    ]  # fmt: skip


def _capture_cells(found: CaptureRow) -> list[str]:
    late = found.drawn_to_captured_ms
    return [
        found.backend, str(found.size), str(found.frames), *_three(found.capture_ms),
        _number(late.p50), _number(late.p95), str(found.identical), str(found.missed),
    ]  # fmt: skip


def _hud_cells(found: HudCost) -> list[str]:
    values = (found.without_ms.p50, found.same_ms.p50, found.new_ms.p50, found.new_ms.p95)
    return [str(found.output), str(found.glyphs), *map(_number, values)]


def _three(value: Percentiles) -> list[str]:
    return [_number(value.p50), _number(value.p95), _number(value.p99)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 1 else f"{value:.2f}"


class _Table(Protocol):
    def __call__(self, head: list[str], rows: Iterable[list[str]]) -> Iterator[str]: ...


def _markdown_table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for cells in rows:
        yield f"| {' | '.join(cells)} |"


def _plain_table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        yield "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
