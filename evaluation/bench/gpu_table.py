"""The GPU suite's result as text and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evaluation.bench.gpu_fp8 import LIMIT_DB
from evaluation.bench.gpu_methods import METHODS

Row = Mapping[str, Any]
NO_GPU = (
    "no NVIDIA GPU here: the suite tested itself on the CPU, at tiny sizes; its times mean "
    "nothing, and rows that need a GPU say so"
)

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
    if result["open"]:
        yield _opening(result["open"])
    losses = [row for row in result["rows"] if "loss" in row]
    if losses:
        yield _losses(losses)


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
            lines.append([*name, f"not run: {row['reason']}", *[""] * 9])
            continue
        whole, host = row["submit_to_result_ms"], row["submit_host_ms"]
        lines.append([
            *name, row["runs_on"], *(f"{whole[point]:.3f}" for point in ("p50", "p95", "p99")),
            f"{whole['p99'] / whole['p50']:.2f}", f"{host['p50']:.3f}", f"{host['p99']:.3f}",
            f"{row['per_second']:.1f}", f"{row['overlap']:.2f}" if "overlap" in row else "",
            f"{row['against_fp32']['psnr_db']:g}",
        ])  # fmt: skip
    names = ("model", "back end", "runs on", "submit→result p50 ms", "p95", "p99", "p99/p50",
             "submit host p50 ms", "p99", "fps, two in flight", "stages / period",
             "PSNR dB")  # fmt: skip
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
            lines.append([row["model"], f"not run: {row['reason']}", *[""] * 6])
            continue
        before, after = row["before"], row["after"]
        lines.append([
            row["model"], row["runs_on"], f"{row['frames']} of {row['wanted_frames']}",
            f"{before['used_mb']:g}", f"{row['most_used_mb']:g}", f"{after['used_mb']:g}",
            "flat" if row["flat"] else "grew", f"{after['host_mb'] - before['host_mb']:+.1f}",
        ])  # fmt: skip
    names = ("model", "runs on", "frames", "before MB", "most", "after", "", "on the host")
    return "Memory in use on the device, two frames in flight", names, lines


def _opening(rows: Sequence[Row]) -> Table:
    lines = []
    for row in rows:
        if row["status"] != "measured":
            lines.append([row["model"], f"not run: {row['reason']}", *[""] * 6])
            continue
        lines.append([
            row["model"], row["runs_on"], row["kernels"], f"{row['opened_s']:.2f}",
            f"{row['first_picture_s']:.2f}", f"{row['check_ms']:.2f}", f"{row['device_mb']:g}",
            f"{row['host_mb']:g}",
        ])  # fmt: skip
    names = ("model", "runs on", "kernels of Triton's", "opened s", "first picture s",
             "speed check ms", "device MB", "host MB")  # fmt: skip
    return "Opening, in a process of its own, from its beginning", names, lines


def _losses(rows: Sequence[Row]) -> Table:
    lines = []
    for row in rows:
        loss = row["loss"]
        lines.append([row["model"], METHODS[row["method"]].title, f"{loss['fp32_db']:.2f}",
                      f"{loss['loss_db']:.3f}", "yes" if loss["holds"] else "no"])  # fmt: skip
    title = f"What FP8 loses against FP32, of {LIMIT_DB:g} dB that are allowed"
    return title, ("model", "method", "FP32 PSNR dB", "loss dB", "holds"), lines


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
