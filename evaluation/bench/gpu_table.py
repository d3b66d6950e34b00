"""The GPU suite's result as text and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evaluation.bench.gpu_methods import METHODS

Row = Mapping[str, Any]
NO_GPU = "no GPU: on the CPU the suite tests itself, and its times mean nothing"

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def text(result: Row) -> str:
    """Set the tables in columns."""
    return "\n\n".join([_head(result), *(_set(*table) for table in _tables(result))])


def markdown(result: Row) -> str:
    """Write the tables as Markdown."""
    parts = [f"# GPU benchmark\n\n{_head(result)}\n"]
    for title, names, rows in _tables(result):
        lines = [names, ["---"] * len(names), *rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"## {title}\n\n{body}\n")
    return "\n".join(parts)


def _head(result: Row) -> str:
    gpu = result.get("gpu")
    where = ", ".join(f"{key} {value}" for key, value in gpu.items()) if gpu else NO_GPU
    machine = result["machine"]
    return (
        f"{where}; {machine['cpu']}, {machine['cores']} cores, {machine['system']}; PyTorch "
        f"{result['torch']}, Triton {result['triton']}; commit {result['commit']}; "
        f"{result['date']}\n{result['command']}\n"
        "Each row: uint8 BGRA on the device to uint8 BGRA (or luma) on the device."
    )


def _tables(result: Row) -> Iterator[Table]:
    yield _ceilings(result)
    yield from _nets(result)
    yield _seed(result)
    if result["convolutions"]:
        yield _convolutions(result["convolutions"])
    if result["path"]:
        yield _path(result["path"])
    if result["reference"]:
        yield _reference(result["reference"])
    if result["memory"]:
        yield _memory(result["memory"])


def _ceilings(result: Row) -> Table:
    rows = [
        (name.rpartition("_tflops")[0] or name, f"{value:g}")
        for name, value in result["ceilings"].items()
    ]
    title = "Measured ceilings: matrix products in TFLOP/s, copies in GB/s"
    return title, ("what", "at most"), [list(row) for row in rows]


def _nets(result: Row) -> Iterator[Table]:
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in result["rows"]:
        key = row["model"], f"{row['width']}x{row['height']}"
        cases.setdefault(key, []).append(row)
    names = (
        "method", "p50 ms", "p95", "p99", "fps", "x fp32", "x tf32", "x compile", "TFLOP/s",
        "of matmul", "of copy", "PSNR dB", "max",
    )  # fmt: skip
    for (model, size), rows in cases.items():
        measured = [row for row in rows if row["status"] == "measured"]
        about = f", {measured[0]['weights']}, {measured[0]['gflop']:g} GFLOP" if measured else ""
        ordered = sorted(rows, key=lambda row: list(METHODS).index(row["method"]))
        yield f"{model}, {size}{about}", names, [_net_line(row, len(names)) for row in ordered]


def _net_line(row: Row, columns: int) -> list[str]:
    title = METHODS[row["method"]].title
    if row["status"] != "measured":
        return [title, f"not run: {row['reason']}", *[""] * (columns - 2)]
    times, apart = row["device_ms" if "device_ms" in row else "wall_ms"], row["against_fp32"]
    return [
        title, *(f"{times[name]:.3f}" for name in ("p50", "p95", "p99")),
        f"{row['per_second']:.1f}",
        *(_number(row, f"times_{name}") for name in ("fp32", "tf32", "compile")),
        f"{row['tflops']:.1f}", _percent(row, "share_of_matmul"), _percent(row, "share_of_copy"),
        f"{apart['psnr_db']:g}", f"{apart['max']}",
    ]  # fmt: skip


def _number(row: Row, name: str) -> str:
    return f"{row[name]:.2f}" if name in row else ""


def _percent(row: Row, name: str) -> str:
    return f"{100 * row[name]:.1f} %" if name in row else ""


def _seed(result: Row) -> Table:
    """Set the seed's table beside ours, with the same net and size."""
    seed = result["seed_table"]
    rows = [[f"{name} ({seed['machine']})", f"{s:.3f}"] for name, s in seed["seconds"].items()]
    for row in result["rows"]:
        same = (row["model"], row["width"], row["height"]) == ("realesrgan-x4plus", 480, 270)
        if same and row["status"] == "measured":
            times = row["device_ms" if "device_ms" in row else "wall_ms"]
            title = METHODS[row["method"]].title
            rows.append([f"{title} (this machine, in and out on it)", f"{times['p50'] / 1e3:.4f}"])
    return f"{seed['model']}, {seed['size']}", ("method", "seconds a frame"), rows


def _convolutions(rows: Sequence[Row]) -> Table:
    """For each shape the library's time, and the best of ours."""
    lines = []
    shapes = sorted({(row["inputs"], row["outputs"]) for row in rows if "inputs" in row})
    for shape in shapes:
        same = [
            row for row in rows
            if "tflops" in row and (row["inputs"], row["outputs"]) == shape
        ]  # fmt: skip
        for by in ("library", "ours"):
            found = [row for row in same if row["by"] == by]
            if found:
                best = max(found, key=lambda row: float(row["tflops"]))
                lines.append([f"{shape[0]} → {shape[1]}", by, str(best.get("tile", "")),
                              f"{best['tflops']:g}"])  # fmt: skip
    lines += [["", "", "not run", row["reason"]] for row in rows if row["status"] == "not run"]
    return "Single 3x3 convolutions", ("channels", "by", "best tile", "TFLOP/s"), lines


def _path(rows: Sequence[Row]) -> Table:
    lines: list[Sequence[str]] = []
    for row in rows:
        name = [row["model"], row["backend"]]
        if row["status"] != "measured":
            lines.append([*name, f"not run: {row['reason']}", "", "", "", "", ""])
            continue
        whole, host = row["submit_to_result_ms"], row["submit_host_ms"]
        lines.append([
            *name, f"{whole['p50']:.3f}", f"{whole['p99']:.3f}",
            f"{whole['p99'] / whole['p50']:.2f}", f"{host['p50']:.3f}",
            f"{row['per_second']:.1f}", f"{row['overlap']:.2f}" if "overlap" in row else "",
        ])  # fmt: skip
    names = ("model", "back end", "submit→result p50 ms", "p99", "p99/p50", "submit host ms",
             "fps, two in flight", "stages / period")  # fmt: skip
    return "The whole path: host memory to host memory", names, lines


def _reference(rows: Sequence[Row]) -> Table:
    lines = []
    for row in rows:
        apart = row.get("against_cpu_fp32")
        said = [f"{apart['psnr_db']:g}", f"{apart['max']}"] if apart else [row["reason"], ""]
        lines.append([row["model"], *said])
    return "FP32 on the device against FP32 on the CPU", ("model", "PSNR dB", "max"), lines


def _memory(rows: Sequence[Row]) -> Table:
    lines = []
    for row in rows:
        if row["status"] != "measured":
            lines.append([row["model"], f"not run: {row['reason']}", "", "", ""])
            continue
        before, after = row["before"]["used_mb"], row["after"]["used_mb"]
        frames = f"{row['frames']} of {row['wanted_frames']}"
        lines.append([row["model"], frames, f"{before:g}", f"{after:g}",
                      "flat" if row["flat"] else "grew"])  # fmt: skip
    return "Memory", ("model", "frames", "before MB", "after MB", ""), lines


def _set(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, *rows]
    cells = [line[:1] if _is_note(line) else line for line in lines]
    widths = [max((len(line[i]) for line in cells if i < len(line)), default=0)
              for i in range(len(names))]  # fmt: skip

    def padded(line: Sequence[str]) -> str:
        return "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=False))

    return "\n".join([title, *(f"  {padded(line)}".rstrip() for line in lines)])


def _is_note(line: Sequence[str]) -> bool:
    return len(line) > 1 and line[1].startswith("not run")
