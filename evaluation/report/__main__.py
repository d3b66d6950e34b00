"""Make the report of evaluations: tables, Pareto pictures, crops.

    python -m evaluation.report val-x4.json test-x4.json --latency bench.json --out DIR

Writes report.md, and for each result `<name>-pareto.png` and, where the frames are still there,
`<name>-crops-<n>.png`; pareto.html has all diagrams in one file without scripts.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2

from engines.errors import EngineError
from evaluation import results, upscale
from evaluation.baselines import BASELINES
from evaluation.metrics import FLICKER, METRICS
from evaluation.metrics.errors import EvaluationError
from evaluation.report import crops, pareto, seed
from overlay.errors import OverlayError
from overlay.trace.atomic import write_atomically
from training import dataset
from training.errors import DataError

_MAX_BYTES = 64 << 20
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 900px; margin: 2em auto; color: #222; }
svg { width: 100%; background: #fff; } svg text { font-size: 12px; fill: #333; }
.grid { stroke: #e3e3e3; } .front { fill: none; stroke: #009e73; stroke-dasharray: 6 4; }
.mid { text-anchor: middle; } .end { text-anchor: end; } .point:hover circle { r: 9; }
.point:hover text { font-weight: bold; } code { background: #f3f3f3; }
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.report", description="Tables and pictures of evaluations."
    )
    add = parser.add_argument
    add("results", type=Path, nargs="+", metavar="RESULT", help="of evaluation.evaluate --json")
    add("--latency", type=Path, nargs="*", default=(), metavar="BENCH", help="of overlay bench")
    add("--out", type=Path, required=True, metavar="DIR", help="folder, made if it is not there")
    add(
        "--metric",
        choices=(*METRICS, FLICKER.name),
        default="psnr",
        help="of the Pareto diagrams (default: psnr)",
    )
    add("--frames", type=int, default=2, metavar="N", help="of which crops are made (default: 2)")
    options = parser.parse_args(arguments)
    try:
        for path in report(options):
            sys.stdout.write(f"{path}\n")
    except (DataError, EngineError, OverlayError) as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 2
    return 0


def report(options: argparse.Namespace) -> Iterator[Path]:
    """Make all of it; gives the files as they are written.

    Raises:
        EvaluationError: a file is no result, or cannot be written.
    """
    found = {path.stem: results.read(path) for path in options.results}
    if len(found) < len(options.results):
        raise EvaluationError("two results have one file name; rename one of them")
    latency = [row for path in options.latency for row in latency_rows(path)]
    out: Path = options.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise EvaluationError(f"cannot write to {out}: {exc.strerror}") from exc
    pictures: dict[str, list[str]] = {name: [] for name in found}
    diagrams = []
    for name, result in found.items():
        points = pareto.points(result, options.metric, latency)
        if points:
            title = _title(name, result)
            path = out / f"{name}-pareto.png"
            write_atomically(path, pareto.png(points, options.metric, title))
            pictures[name].append(path.name)
            diagrams.append(f"<h2>{escape(title)}</h2>\n{pareto.svg(points, options.metric)}")
            yield path
        for path in _crops(name, result, out, options.frames):
            pictures[name].append(path.name)
            yield path
    if diagrams:
        write_atomically(out / "pareto.html", _html(diagrams).encode())
        yield out / "pareto.html"
    text = "\n".join(markdown(found, latency, pictures))
    write_atomically(out / "report.md", f"{text.rstrip()}\n".encode())
    yield out / "report.md"


def latency_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of `overlay bench --json`.

    Raises:
        EvaluationError: the file cannot be read, or is no such result.
    """
    needed = ("kind", "model", "backend", "device", "scale", "input_size", "output_size", "whole")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise EvaluationError(f"{path} is larger than {_MAX_BYTES >> 20} MiB: no benchmark")
        rows = json.loads(path.read_text("utf-8"))["rows"]
        good = [row for row in rows if all(key in row for key in needed)]
        for row in good:
            for part in ("whole", "upscale"):
                if not 0 < float(row[part]["ms"]["p50"]) < math.inf:
                    raise ValueError(f"{part} of {row['model']} took {row[part]['ms']['p50']} ms")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise EvaluationError(f"{path} is no result of overlay bench --json: {exc}") from exc
    return good


# --- words ---------------------------------------------------------------------------------------


def markdown(
    found: Mapping[str, Mapping[str, Any]],
    latency: Sequence[dict[str, Any]],
    pictures: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    """Write report.md, line by line."""
    yield "# Quality\n"
    yield (
        "Means over all frames ± half the width of their 95 % interval (bootstrap over sequences); "
        f"▼: worse than `{results.REFERENCE}`, p < {results.SIGNIFICANT}. ↑ higher is better, "
        "↓ lower is better. Definitions are below.\n"
    )
    for name, result in found.items():
        yield f"## {_title(name, result)}\n"
        yield f"`{result.get('command', '')}`, crop {result['crop']}, seed {result['seed']}\n"
        yield _machine(result)
        yield results.markdown_table(result)
        yield from _differences(result)
        for problem in result.get("problems", ())[:10]:
            yield f"- left out: {problem}"
        yield ""
        for picture in pictures.get(name, ()):
            yield f"![{picture.removesuffix('.png')}]({picture})\n"
    yield from _beside_the_seed(found, latency)
    yield from _definitions(found)


def _machine(result: Mapping[str, Any]) -> str:
    said = result.get("machine", {})
    return f"Machine: {said.get('cpu', '?')}, {said.get('cores', '?')} cores.\n"


def _title(name: str, result: Mapping[str, Any]) -> str:
    return (
        f"{name}: {result['lr_size']} to {result.get('hr_size', '?')}, {result.get('frames', '?')} "
        f"frames of {result.get('sequences', '?')} sequences"
    )


def _differences(result: Mapping[str, Any]) -> Iterator[str]:
    """Write what nets differ by from each baseline, in the metric's own sign."""
    nets = [row["model"] for row in result["results"] if row.get("kind") == "net"]
    for model in nets:
        pairs = [pair for pair in result["paired"] if pair["model"] == model]
        if not pairs:
            continue
        names = list(result["metrics"])
        yield f"`{model}` minus:\n"
        yield f"| | {' | '.join(names)} |"
        yield "|---|" + "---:|" * len(names)
        for other in dict.fromkeys(pair["against"] for pair in pairs):
            cells = {p["metric"]: _difference(p) for p in pairs if p["against"] == other}
            yield f"| `{other}` | {' | '.join(cells.get(name, '') for name in names)} |"
        yield ""


def _difference(pair: Mapping[str, Any]) -> str:
    name = pair["metric"]
    value = results.text(name, pair["difference"])
    sign = "" if value.startswith("-") else "+"
    mark = {"better": " ▲", "worse": " ▼"}.get(pair["verdict"], "")
    p = "" if pair["p"] is None else f" (p {pair['p']:.3f})"
    return f"{sign}{value}{p}{mark}"


def _beside_the_seed(
    found: Mapping[str, Mapping[str, Any]], latency: Sequence[dict[str, Any]]
) -> Iterator[str]:
    """Write the seed's two tables with our rows beside them."""
    yield "## The seed's tables beside ours\n"
    yield f"{seed.SOURCE}. {seed.DEFINITIONS} Other data than ours: rows of different data are not "
    yield "comparable. Ours are measured the same way where it says *SRGD-compatible*.\n"
    yield f"| data | model | {' | '.join(seed.METRICS)} | measured |"
    yield "|---|---|" + "---:|" * len(seed.METRICS) + "---|"
    for cells in seed.quality_rows():
        yield f"| seed | {' | '.join(cells)} | SRGD |"
    for name, result in found.items():
        how = "SRGD-compatible" if result.get("srgd_compatible") else "as defined below"
        for row in result["results"]:
            if row["status"] == "ok" and result["scale"] == 4:
                have = [results.text(m, row[m]) if m in row else "-" for m in seed.METRICS]
                yield f"| {name} | `{row['model']}` | {' | '.join(have)} | {how} |"
    yield ""
    yield f"{seed.SPEED_SOURCE}; ours: `upscale` p50 of `overlay bench`, host memory to result.\n"
    yield "| | back end | model | device | ms | fps |"
    yield "|---|---|---|---|---:|---:|"
    for cells in seed.speed_rows(list(latency)):
        yield f"| {' | '.join(cells)} |"
    yield ""


def _definitions(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "## Definitions\n"
    for name, result in found.items():
        for metric, definition in result["definitions"].items():
            yield f"- {name}, `{metric}`: {definition}"
    for name, (kernel, _) in BASELINES.items():
        yield f"- `{name}`: {kernel}"


def _html(diagrams: Sequence[str]) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Quality and latency</title><style>{_STYLE}</style></head>\n<body>"
        "<h1>Quality and latency</h1><p>Blue: nets; orange: shaders; grey: interpolation on the "
        "CPU. Dashed: what no other one beats in both. Put the pointer on a point for its figures."
        f"</p>\n{chr(10).join(diagrams)}\n</body></html>\n"
    )


# --- pictures ------------------------------------------------------------------------------------

#: HR pixels of a crop's side, and how many crops are beside each other.
_SIDE, _COLUMNS, _ZOOM = 240, 5, 1


def _crops(name: str, result: Mapping[str, Any], out: Path, count: int) -> Iterator[Path]:
    """Upscale some of the frames again and put crops beside each other."""
    frames = list(dict.fromkeys(row["name"] for row in result["per_image"]))
    step = max(1, len(frames) // max(1, count))
    for number, frame in enumerate(frames[step // 2 :: step][:count]):
        files = _files(result, frame)
        if files is None:
            continue
        try:
            low, high = map(dataset.read_png, files)
        except DataError:
            continue
        scale = int(result["scale"])
        side = min(_SIDE, *high.shape[:2]) // scale * scale
        corner = crops.busiest(high, side, scale)
        pictures = dict(_enlarged(result, frame, low, scale))
        sheet = crops.sheet({**pictures, "HR": high}, corner, side, _COLUMNS, _ZOOM)
        done, data = cv2.imencode(".png", sheet)
        if done:
            path = out / f"{name}-crops-{number + 1}.png"
            write_atomically(path, data.tobytes())
            yield path


def _files(result: Mapping[str, Any], frame: str) -> tuple[Path, Path] | None:
    """Find a frame's files; None if they are not on this machine."""
    low, high = Path(result.get("lr", "")), Path(result.get("hr", ""))
    paths = low / f"{frame}.png", high / f"{frame}.png"
    return paths if all(path.is_file() for path in paths) else None


def _enlarged(
    result: Mapping[str, Any], frame: str, low: crops.Pixels, scale: int
) -> Iterator[tuple[str, crops.Pixels]]:
    """Give the pictures with their captions: name and PSNR of this frame."""
    psnr = {
        row["model"]: f" {row['psnr']:.2f} dB"
        for row in result["per_image"]
        if row["name"] == frame and "psnr" in row
    }
    yield "LR, nearest", BASELINES["nearest"][1](low, scale)
    for row in result["results"]:
        if row["status"] != "ok" or row["model"] == "nearest":
            continue
        try:
            with upscale.open_upscaler(row["model"]) as upscaler:
                picture = upscaler(low, scale)
        except upscale.FAILURES:
            continue
        yield f"{Path(row['model']).name}{psnr.get(row['model'], '')}", picture


if __name__ == "__main__":
    sys.exit(main())
