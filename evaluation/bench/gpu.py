"""`--suite gpu`: how fast nets are on an NVIDIA GPU, against PyTorch's own ways and the ceilings.

Needs PyTorch and numpy; what else there is (Triton, ONNX Runtime, TensorRT, cuda-bindings) adds
rows. Without a GPU everything runs on the CPU at tiny sizes, which tests the suite itself.

Tasks run in a second process (`gpu_worker`) that writes a line of JSON for each result. If it
dies, hangs, or loses the device, the next one goes on behind the task that did it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from overlay.errors import BackendUnavailable, OverlayError, SettingsError
from overlay.settings import parse_size

Row = dict[str, Any]

_ROOT = Path(__file__).parents[2]
_KEY_MODELS = ("realesrgan-x4plus", "realesr-animevideov3-x4")
#: What is run beyond the key models and the first size.
_FEW = ("fp32", "tf32", "fp16-cl", "graph", "direct", "direct-tuned", "stacked", "onnxruntime")
#: Needs the tiles that the convolutions choose.
_TUNED = "direct-tuned"
#: What the ratios are of: the first of the slow methods.
_COMPILE = "compile"
#: A task may take so long, from its beginning; torch.compile takes minutes on large nets.
_TASK_S = {"row": 60.0, "slow": 170.0, "path": 60.0, "convolutions": 120.0, "open": 180.0}
_OTHER_S = 45.0
#: Kinds of lines that are results.
_RESULTS = (
    "matmul", "copies", "convolutions", "row", "reference", "path", "memory", "open"
)  # fmt: skip
#: A new worker needs this to import PyTorch and start CUDA.
_START_S = 60.0

#: Measured by SRGD's authors, mean per image with reading and writing of it.
SEED_TABLE = {
    "model": "RealESRGAN_x4plus",
    "size": "480x270 to 1920x1080",
    "machine": "another machine: GTX 1660 Super 6 GB, whole images, as SRGD's README gives them",
    "seconds": {
        "PyTorch CUDA": 1.070,
        "ONNX CUDA": 1.072,
        "ONNX TensorRT": 0.947,
        "Triton TensorRT": 0.563,
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this suite has."""
    group = parser.add_argument_group("with --suite gpu")
    group.add_argument(
        "--device", default="auto", choices=("auto", "cuda", "cpu"),
        help="auto (default): a GPU if there is one, else cpu with --quick: tests the suite itself",
    )  # fmt: skip
    group.add_argument("--quick", action="store_true", help="fewer cases, models and runs")
    group.add_argument(
        "--out", type=Path, metavar="FILE", help="results as they come, a line of JSON each"
    )
    group.add_argument(
        "--budget", type=float, default=510.0, metavar="S",
        help="seconds for all; what does not fit is marked (default: 510)",
    )  # fmt: skip
    group.add_argument(
        "--resume", action="store_true",
        help="go on with the results in --out: only what was not measured yet",
    )  # fmt: skip
    group.add_argument("--methods", metavar="A,B", help="ways to run a net (default: all)")
    group.add_argument(
        "--weights", type=Path, metavar="DIR", help="weights in ncnn's format (.bin and .param)"
    )


@dataclass
class Plan:
    """What is to be done, most important first.

    Attributes:
        tasks: each has a "kind", and what `gpu_worker` wants for it.
    """

    device: str
    runs: int
    seconds: float
    weights: Path | None
    threads: int
    tasks: list[Row] = field(default_factory=list)

    def to_json(self) -> Row:
        weights = str(self.weights.resolve()) if self.weights else None
        return {
            "device": self.device, "runs": self.runs, "seconds": self.seconds,
            "weights": weights, "threads": self.threads, "tasks": self.tasks,
        }  # fmt: skip


def planned(arguments: argparse.Namespace) -> Plan:
    """Make the plan.

    Raises:
        SettingsError: with the option, its value and what is allowed.
        BackendUnavailable: there is no PyTorch, or no GPU for it.
    """
    try:
        import torch

        from evaluation.bench.gpu_methods import METHODS
        from evaluation.bench.gpu_nets import MODELS
    except ImportError as exc:
        raise BackendUnavailable(
            f"--suite gpu needs PyTorch ({exc}): see https://pytorch.org/get-started"
        ) from exc
    if arguments.frames < 1:
        raise SettingsError(f"--frames must be at least 1, not {arguments.frames}")
    if not 1 <= arguments.budget <= 36_000:
        raise SettingsError(f"--budget: expected 1 to 36000 s, not {arguments.budget:g}")
    if arguments.resume and arguments.out is None:
        raise SettingsError("--resume goes on with the results in a file: name it with --out")
    no_gpu = not torch.cuda.is_available()
    if arguments.device == "cuda" and no_gpu:
        raise BackendUnavailable(
            f"PyTorch {torch.__version__} sees no NVIDIA GPU; --device cpu --quick tests the suite"
        )
    models = _chosen("--models", arguments.models, tuple(MODELS))
    methods = _chosen("--methods", arguments.methods, tuple(METHODS))
    on_cpu = arguments.device == "cpu" or (arguments.device == "auto" and no_gpu)
    quick = arguments.quick or (arguments.device == "auto" and no_gpu)
    plan = Plan(
        "cpu" if on_cpu else "cuda",
        runs=min(arguments.frames, 3 if on_cpu and quick else 10_000),
        seconds=0.2 if on_cpu and quick else 0.7 if quick else 1.5,
        weights=arguments.weights,
        threads=arguments.threads,
    )
    sizes = [(32, 24)] if on_cpu and quick else _sizes(arguments.sizes)[: 1 if quick else None]
    if on_cpu and quick and not arguments.models:
        models = ["realesr-animevideov3-x4", "default-x4"]
    plan.tasks = list(_tasks(models, sizes, methods, on_cpu, quick))
    return plan


def _chosen(option: str, text: str | None, known: Sequence[str]) -> list[str]:
    names = [word.strip() for word in (text or "").split(",") if word.strip()]
    if names in ([], ["all"]):
        return list(known)
    for name in names:
        if name not in known:
            raise SettingsError(
                f"{option}: the gpu suite does not know {name!r} (one of {', '.join(known)})"
            )
    return names


def _sizes(text: str) -> list[tuple[int, int]]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    try:
        sizes = [(size.width, size.height) for size in map(parse_size, words)]
    except ValueError as exc:
        raise SettingsError(f"--sizes: {text!r}: {exc}") from exc
    if not sizes:
        raise SettingsError("--sizes names no size; give 480x270, say")
    return sizes


def _tasks(
    models: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    methods: Sequence[str],
    on_cpu: bool,
    quick: bool,
) -> Iterator[Row]:
    """Give the tasks, most important first: what the targets are of, then all else."""
    from evaluation.bench.gpu_methods import METHODS

    small = on_cpu and quick
    first, (width, height) = sizes[:1], sizes[0]
    size: Row = {"width": width, "height": height}
    key = [name for name in models if name in _KEY_MODELS] or list(models[:1])
    others = [name for name in models if name not in key]
    fast = [name for name in methods if METHODS[name].quick and name != _TUNED]
    slow = [name for name in methods if not METHODS[name].quick and name != _COMPILE]
    tuned, compiled = ([name for name in methods if name == one] for one in (_TUNED, _COMPILE))
    few = [name for name in methods if name in _FEW]
    yield {"kind": "matmul", "sizes": [64] if small else [2048, 4096, 8192]}
    yield {"kind": "copies", "sizes": [1 << 20] if small else [1 << 26, 1 << 30]}
    yield from _rows(key, first, fast)
    yield from _paths(reversed(key), sizes[0])
    piece = (16, 12) if small else (96, 64)
    for name in (*key, *others):
        yield {"kind": "reference", "model": name, "width": piece[0], "height": piece[1]}
    yield from _rows(key[-1:], first, compiled)
    yield {"kind": "memory", "model": key[-1], **size,
           "wanted_frames": 12 if small else 10_000 if quick else 100_000,
           "limit_s": 10.0 if small else 30.0 if quick else 200.0}  # fmt: skip
    yield from _rows(key[:-1], first, compiled)
    backend = "openvino" if on_cpu else "torch-cuda"
    for name in dict.fromkeys(("default-x4", *([] if small else reversed(key)))):
        if name == "default-x4" or not on_cpu:
            yield {"kind": "open", "model": name, **size, "backend": backend}
    yield {"kind": "convolutions", **size}
    yield from _rows(key, first, tuned)
    yield from _rows(key[-1:], first, slow)
    yield from _rows(others, first, few)
    yield from _rows(key, sizes[1:], few)
    yield from _rows([] if quick else others, first, compiled)
    yield from _rows(others, sizes[1:], few)
    yield from _rows(key[:-1], first, slow)


def _rows(
    models: Iterable[str], sizes: Sequence[tuple[int, int]], methods: Sequence[str]
) -> Iterator[Row]:
    for width, height in sizes:
        for model in models:
            for method in methods:
                yield {
                    "kind": "row", "model": model, "width": width, "height": height,
                    "method": method,
                }  # fmt: skip


def _paths(models: Iterable[str], size: tuple[int, int]) -> Iterator[Row]:
    from evaluation.bench.gpu_path import BACKENDS

    for model in models:
        for backend in BACKENDS:
            yield {
                "kind": "path", "model": model, "width": size[0], "height": size[1],
                "backend": backend,
            }  # fmt: skip


# --- running -------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print one JSON object or tables; gives the exit code."""
    plan = planned(arguments)
    with tempfile.TemporaryDirectory(prefix="overlay-bench-") as folder:
        out = arguments.out or Path(folder) / "results.jsonl"
        done = _begun(out, arguments.resume)
        plan.tasks = [task for task in plan.tasks if not any(_is_of(row, task) for row in done)]
        facts = describe(plan.device, plan)
        _append(out, {"kind": "facts", **facts})
        supervise(plan, out, arguments.budget, Path(folder))
        rows = read(out)
    result = summed_up(facts, rows)
    from evaluation.bench import gpu_table

    text = gpu_table.text(result)
    sys.stdout.write((json.dumps(result, indent=2) if arguments.json else text) + "\n")
    if plan.device == "cpu":
        sys.stderr.write(f"{gpu_table.NO_GPU}\n")
    if arguments.markdown is not None:
        arguments.markdown.write_text(gpu_table.markdown(result), encoding="utf-8")
    return 0 if any(row["status"] == "measured" for row in result["rows"]) else 1


def _begun(out: Path, resume: bool) -> list[Row]:
    """Begin a file of results, or go on with one: gives the measured rows that stay in it.

    Raises:
        OverlayError: it cannot be written, or read.
    """
    try:
        rows = read(out) if resume and out.exists() else []
        kept = [row for row in _told(rows) if _is_final(row)]
        out.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it holds no text"
        raise OverlayError(f"cannot write {out}: {why}; choose another file") from exc
    return kept


def _told(rows: Sequence[Row]) -> list[Row]:
    """Leave out the rows of tasks that began and did not end: there would be more of them."""
    told: list[Row] = []
    under_way: list[Row] | None = None
    for row in rows:
        if row["kind"] == "begin":
            under_way = []
        elif row["kind"] == "end":
            told += under_way or []
            under_way = None
        else:
            (told if under_way is None else under_way).append(row)
    return told


def _is_final(row: Row) -> bool:
    return row.get("status") == "measured" and "cut_short" not in row


def _is_of(row: Row, task: Row) -> bool:
    """Whether a result is one of this task's."""
    return all(row.get(name) == value for name, value in task.items())


def supervise(plan: Plan, out: Path, budget_s: float, folder: Path) -> None:
    """Do all tasks, with as many workers as it takes, until the budget is spent."""
    file = folder / "plan.json"
    end = time.monotonic() + budget_s
    start = 0
    state = {**plan.to_json(), "until": time.time() + budget_s}
    reason = f"the budget of {budget_s:g} s was spent before its turn"
    while start < len(plan.tasks) and time.monotonic() < end:
        state["tile"] = _best_tile(read(out))
        file.write_text(json.dumps(state), encoding="utf-8")
        ended_how = _watch(_worker(file, out, start), plan, out, start, end)
        begun, ended = _progress(read(out), start)
        if begun is None:
            reason = f"no worker could start: {ended_how}"
            break
        if ended != begun:
            _fail(out, plan.tasks[begun], ended_how)
        start = begun + 1
    for task in plan.tasks[start:]:
        _fail(out, task, reason)


def _worker(plan: Path, out: Path, start: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "evaluation.bench.gpu_worker",
        "--plan", str(plan), "--out", str(out.resolve()), "--start", str(start),
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=_ROOT, stdout=sys.stderr)


def _watch(
    worker: subprocess.Popen[bytes], plan: Plan, out: Path, start: int, end: float
) -> str:  # fmt: skip
    """Wait for a worker; kill one that hangs, or when the time is over. Says how it ended."""
    task, since, allowed = start - 1, time.monotonic(), _START_S
    try:
        while (code := worker.poll()) is None:
            time.sleep(0.1)
            begun, ended = _progress(read(out), start)
            if begun is not None and begun != task:
                task, since, allowed = begun, time.monotonic(), _allowed(plan.tasks[begun])
            elif begun is not None and ended == begun:
                allowed, since = _START_S, time.monotonic()
            now = time.monotonic()
            if now > end:
                return "the budget was spent while it ran"
            if now - since > allowed:
                return f"stopped after {allowed:.0f} s"
        return f"the process ended with {code}" if code else ""
    finally:
        if worker.poll() is None:
            worker.kill()
        worker.wait()


def _allowed(task: Row) -> float:
    from evaluation.bench.gpu_methods import METHODS

    if task["kind"] == "row" and not METHODS[task["method"]].quick:
        return _TASK_S["slow"]
    if task["kind"] == "memory":
        return float(task["limit_s"]) + _OTHER_S
    return _TASK_S.get(task["kind"], _OTHER_S)


def _progress(rows: Sequence[Row], start: int) -> tuple[int | None, int | None]:
    """Tell which task began last, and which ended last, of those from `start` on."""

    def last(kind: str) -> int | None:
        found = [row["task"] for row in rows if row["kind"] == kind and row["task"] >= start]
        return int(found[-1]) if found else None

    return last("begin"), last("end")


def _best_tile(rows: Sequence[Row]) -> list[int] | None:
    from evaluation.bench import ceilings

    tile = ceilings.best_tile([row for row in rows if row["kind"] == "convolutions"])
    return [tile.pixels, tile.warps, tile.stages] if tile else None


def _fail(out: Path, task: Row, reason: str) -> None:
    _append(out, {**task, "status": "not run", "reason": reason})


def _append(out: Path, row: Row) -> None:
    """Write a line; behind one that a killed worker left unfinished, on a line of its own."""
    with out.open("r+b") as file:
        if file.seek(0, 2):
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")


def read(out: Path) -> list[Row]:
    """Read the results so far; a line that is not whole is left out."""
    rows = []
    for line in out.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


# --- what was found ------------------------------------------------------------------------------


def describe(device: str, plan: Plan) -> Row:
    """Name machine, versions, commit and command."""
    import torch

    from overlay.latency import machine

    facts: Row = {
        "command": "python -m evaluation.bench " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "commit": _output("git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD"),
        "device": device,
        "runs": plan.runs,
        "seconds_a_row": plan.seconds,
        "machine": machine.describe(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "cuda_bindings": _version("cuda-bindings"),
        "python": platform.python_version(),
    }
    if device == "cuda":
        facts["gpu"] = _gpu()
    return facts


def _gpu() -> Row:
    import torch

    query = (
        "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    )
    line = _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "-i", "0")
    values = [word.strip() for word in line.split(",")] if line else []
    told = dict(zip(query.split(","), values, strict=False))
    cudnn: Any = torch.backends.cudnn
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda, "cudnn": cudnn.version(), **told,
    }  # fmt: skip


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def summed_up(facts: Row, lines: Sequence[Row]) -> Row:
    """Sort the results, and add ratios to the baselines and shares of the ceilings."""
    kinds: dict[str, list[Row]] = {
        kind: [line for line in lines if line["kind"] == kind] for kind in _RESULTS
    }
    ceilings = _ceilings(kinds)
    from evaluation.bench.gpu_table import NO_GPU

    note = {} if facts["device"] == "cuda" else {"note": NO_GPU}
    return {
        "suite": "gpu", **note, **facts, "ceilings": ceilings, "seed_table": SEED_TABLE,
        "rows": [_with_shares(row, kinds["row"], ceilings) for row in kinds["row"]],
        **{kind: kinds[kind] for kind in kinds if kind != "row"},
    }  # fmt: skip


def _ceilings(kinds: dict[str, list[Row]]) -> dict[str, float]:
    """Give the best product of each kind in TFLOP/s, and the best copies in GB/s."""
    best: dict[str, float] = {}
    for kind, name, value in (("matmul", "of", "tflops"), ("copies", "copy", "gb_s")):
        for row in kinds[kind]:
            if value in row:
                label = f"{row[name]}_{value}"
                best[label] = max(best.get(label, 0.0), row[value])
    return best


def _with_shares(row: Row, rows: Sequence[Row], ceilings: dict[str, float]) -> Row:
    from evaluation.bench.gpu_methods import BASELINES, METHODS

    if row["status"] != "measured":
        return row
    result = dict(row)
    ceiling = ceilings.get(f"{METHODS[row['method']].kind}_tflops")
    if ceiling:
        result["share_of_matmul"] = round(row["tflops"] / ceiling, 4)
    copy = ceilings.get("device_gb_s")
    if copy:
        result["share_of_copy"] = round(row["least_gb_s"] / copy, 4)
    for name in BASELINES:
        base = _twin(row, name, rows)
        if base is not None:
            result[f"times_{name}"] = round(_ms(base) / _ms(row), 3)
    return result


def _twin(row: Row, method: str, rows: Sequence[Row]) -> Row | None:
    """Find the same net and size with another method."""
    same = ("model", "width", "height")
    for other in rows:
        its = other["method"] == method and other["status"] == "measured"
        if its and all(other[name] == row[name] for name in same):
            return other
    return None


def _ms(row: Row) -> float:
    times = row["device_ms"] if "device_ms" in row else row["wall_ms"]
    return float(times["p50"])
