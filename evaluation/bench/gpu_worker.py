"""Runs the tasks of the GPU suite in a process of its own, so that a crash costs one row.

Each result is one line of JSON, written when it is there: what was measured before a crash, a
hang or a kill stays. A task that fails is a row with the reason; if the device is lost with it,
this process ends with `LOST` and the next one goes on behind it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines.fast.kernels import Tile
from evaluation.bench import ceilings, flops, gpu_nets, gpu_open, gpu_path
from evaluation.bench.gpu_methods import METHODS, Case, NotHere
from evaluation.bench.gpu_nets import MODELS, Model, Picture
from evaluation.bench.timing import Device

#: Exit code: CUDA is unusable in this process.
LOST = 3

Row = dict[str, Any]

#: What a task that watches the budget leaves of it.
_SPARE_S = 5.0


@dataclass
class Worker:
    """What the tasks share; keeps the net of the last row only.

    Attributes:
        runs: timed runs of a row, at most.
        seconds: for them, at most.
        weights: a folder of weights.
        tile: the best one, if tiles were measured.
        until: when the budget is spent, by `time.time`.
    """

    device: Device
    runs: int
    seconds: float
    weights: Path | None
    tile: Tile | None = None
    until: float = float("inf")
    _nets: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    _right: dict[tuple[str, int, int], Tensor] = field(default_factory=dict)
    _counts: dict[tuple[object, ...], flops.Count] = field(default_factory=dict)

    def net(self, model: Model) -> tuple[nn.Module, str]:
        if model.id not in self._nets:
            self._nets = {model.id: gpu_nets.net_of(model, self.weights)}
        return self._nets[model.id]

    def right(self, model: Model, frame: Tensor) -> Tensor:
        """What FP32 without TF32 makes of the frame, on the device; on the CPU."""
        key = (model.id, *frame.shape[1:3])
        if key not in self._right:
            picture = Picture(_copied(self.net(model)[0], self.device), torch.float32)
            with ceilings.tf32(False):
                self._right = {key: picture(frame).cpu()}
        return self._right[key]

    def count(self, model: Model, frame: Tensor, kind: torch.dtype) -> flops.Count:
        """Count what the net must do for the frame."""
        key = (model.id, *frame.shape[1:3], kind)
        if key not in self._counts:
            channels = 4 if model.architecture == "luma" else 3
            net = self.net(model)[0]
            self._counts[key] = flops.count(net, 1, channels, *frame.shape[1:3], kind=kind)
        return self._counts[key]

    # Tasks: each gives its row, or several through `emit`

    def do_row(self, task: Row, emit: Callable[[Row], None]) -> None:
        """Time one method for one net at one size, and compare its picture."""
        model, method = MODELS[task["model"]], METHODS[task["method"]]
        net, origin = self.net(model)
        frame, source = gpu_nets.frame_of(task["width"], task["height"])
        frame = frame.to(self.device.name)
        torch.backends.cudnn.benchmark = True
        case = Case(model, net, frame, self.device, self.tile)
        with torch.inference_mode(), ceilings.tf32(method.kind == "tf32"):
            begin = time.perf_counter()
            step = method.prepare(case)
            result = step().clone()
            self.device.synchronize()
            ready_s = time.perf_counter() - begin
            timed = self.device.time(step, self.runs, self.seconds)
            right = self.right(model, frame)
            more = method.more(case) if method.more is not None else {}
        kind = torch.float32 if method.kind in ("fp32", "tf32") else torch.float16
        count = self.count(model, frame, kind)
        emit({
            **timed.to_json(), "ready_s": round(ready_s, 2), "weights": origin, "frame": source,
            "gflop": round(count.gflop, 2), "least_mb": round(count.least_bytes / 1e6, 2),
            "eager_mb": round(count.eager_bytes / 1e6, 2), "eager_kernels": count.kernels,
            "tflops": round(count.gflop / timed.best_ms, 4),
            "least_gb_s": round(count.least_bytes / timed.best_ms / 1e6, 2),
            "against_fp32": gpu_nets.difference(result, right), **more,
        })  # fmt: skip

    def do_reference(self, task: Row, emit: Callable[[Row], None]) -> None:
        """Compare FP32 on the device with FP32 on the CPU, on a piece of a frame."""
        model = MODELS[task["model"]]
        net, origin = self.net(model)
        frame, _ = gpu_nets.frame_of(task["width"], task["height"])
        on_device = Picture(_copied(net, self.device), torch.float32)
        with torch.inference_mode(), ceilings.tf32(False):
            result = on_device(frame.to(self.device.name))
            right = Picture(net, torch.float32)(frame)
        emit({"weights": origin, "against_cpu_fp32": gpu_nets.difference(result, right)})

    def do_matmul(self, task: Row, emit: Callable[[Row], None]) -> None:
        for size in task["sizes"]:
            for kind in ceilings.matmuls(self.device):
                emit(ceilings.matmul(self.device, kind, size))

    def do_copies(self, task: Row, emit: Callable[[Row], None]) -> None:
        for size in task["sizes"]:
            for row in ceilings.copies(self.device, size):
                emit(row)

    def do_convolutions(self, task: Row, emit: Callable[[Row], None]) -> None:
        torch.backends.cudnn.benchmark = True
        rows = []
        with torch.inference_mode():
            for row in ceilings.convolutions(self.device, task["height"], task["width"]):
                rows.append(row)
                emit(row)
        self.tile = ceilings.best_tile(rows)

    def do_memory(self, task: Row, emit: Callable[[Row], None]) -> None:
        """Put many frames through the upscaler and look whether memory grows."""
        model, size = MODELS[task["model"]], (task["width"], task["height"])
        net, origin = self.net(model)
        with gpu_path.opened(self.device, model, net, "torch-cuda", size) as upscaler:
            seconds = min(task["limit_s"], self.until - time.time() - _SPARE_S)
            found = gpu_path.memory(upscaler, size, self.device, task["wanted_frames"], seconds)
        emit({"weights": origin, **found})

    def do_path(self, task: Row, emit: Callable[[Row], None]) -> None:
        """Time the whole path of one back end."""
        model, size = MODELS[task["model"]], (task["width"], task["height"])
        net, origin = self.net(model)
        frame, source = gpu_nets.frame_of(*size)
        with torch.inference_mode():
            right = self.right(model, frame.to(self.device.name))
        with gpu_path.opened(self.device, model, net, task["backend"], size) as upscaler:
            found = gpu_path.path(upscaler, size, self.runs, self.seconds, right)
        emit({"weights": origin, "frame": source, **found})

    def do_open(self, task: Row, emit: Callable[[Row], None]) -> None:
        """Open in a process of its own, with no compiled kernels of Triton's, then with them."""
        scale = MODELS[task["model"]].scale
        if self.device.is_cuda:
            torch.cuda.empty_cache()
        with tempfile.TemporaryDirectory(prefix="overlay-bench-") as folder:
            for kernels in ("compiled", "kept"):
                row = gpu_open.measured(task, scale, Path(folder), self._used_mb)
                if "reason" in row:
                    raise NotHere(row["reason"])
                emit({"kernels": kernels, **row})

    def _used_mb(self) -> float:
        return gpu_path.in_use(self.device)["used_mb"]


def _copied(net: nn.Module, device: Device) -> nn.Module:
    import copy

    return copy.deepcopy(net).to(device.name)


def _why(exc: Exception) -> Row:
    """Give the reason in one line and, where it was not foreseen, the end of the traceback."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    text = lines[0][:300] if lines else "no message"
    if isinstance(exc, NotHere):
        return {"reason": text}
    trace = "".join(traceback.format_exception(exc))
    return {"reason": f"{type(exc).__name__}: {text}", "traceback": trace[-2000:]}


def _alive(device: Device) -> bool:
    """Whether CUDA still answers; an illegal access breaks it for good."""
    try:
        device.synchronize()
        if device.is_cuda:
            torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def work(worker: Worker, tasks: list[Row], start: int, out: Path) -> int:
    """Do the tasks from `start` on; gives the exit code."""
    with out.open("a", encoding="utf-8") as file:

        def write(row: Row) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        for index, task in enumerate(tasks[start:], start):
            write({"kind": "begin", "task": index})
            begin = time.perf_counter()
            try:
                do = getattr(worker, f"do_{task['kind']}")
                do(task, lambda row, task=task: write({**task, "status": "measured", **row}))
            except Exception as exc:  # whatever it is, the next row may work
                write({**task, "status": "not run", **_why(exc)})
            took_s = round(time.perf_counter() - begin, 2)
            write({"kind": "end", "task": index, "took_s": took_s})
            if not _alive(worker.device):
                return LOST
    return 0


def main() -> int:
    """Run as a process: the plan is a JSON file."""
    parser = argparse.ArgumentParser()
    for name in ("plan", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--start", type=int, required=True)
    arguments = parser.parse_args()
    plan = json.loads(arguments.plan.read_text(encoding="utf-8"))
    tile = Tile(*plan["tile"]) if plan.get("tile") else None
    weights = Path(plan["weights"]) if plan.get("weights") else None
    worker = Worker(Device(plan["device"]), plan["runs"], plan["seconds"], weights, tile)
    worker.until = plan.get("until", worker.until)
    if plan.get("threads"):
        torch.set_num_threads(plan["threads"])
    return work(worker, plan["tasks"], arguments.start, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
