"""The whole path of a frame through the overlay's GPU upscalers, and memory over many frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from evaluation.bench import gpu_nets
from evaluation.bench.gpu_methods import NotHere
from evaluation.bench.gpu_nets import Model
from evaluation.bench.timing import Device, percentiles
from overlay.frame import DeviceSpan, DeviceTimes

Row = dict[str, Any]

#: Back ends of the whole path; "torch-cuda direct" runs our quick form instead of the net.
BACKENDS = ("torch-cuda", "torch-cuda direct", "tensorrt", "tensorrt-rtx")


def memory(device: Device, step: Callable[[], object], frames: int, seconds: float) -> Row:
    """Run `frames` frames, or as many as fit, and compare the device's memory."""
    step()
    device.synchronize()
    before, begin, done = _memory(device), time.perf_counter(), 0
    samples = [before]
    while done < frames and time.perf_counter() - begin < seconds:
        for _ in range(min(1000, frames - done)):
            step()
            done += 1
            if not device.is_cuda and time.perf_counter() - begin >= seconds:
                break
        device.synchronize()
        samples.append(_memory(device))
    used = [sample["used_mb"] for sample in samples]
    return {
        "frames": done, "wanted_frames": frames,
        "seconds": round(time.perf_counter() - begin, 2), "before": before, "after": samples[-1],
        "most_used_mb": max(used), "flat": used[-1] <= used[0] + 1,
    }  # fmt: skip


def _memory(device: Device) -> dict[str, float]:
    """What is in use on the whole device and by PyTorch, in MB; without a GPU our own."""
    if device.is_cuda:
        free, whole = torch.cuda.mem_get_info()
        ours = torch.cuda.memory_allocated()
        return {"used_mb": round((whole - free) / 1e6, 1), "torch_mb": round(ours / 1e6, 1)}
    with open("/proc/self/statm", encoding="ascii") as file:
        return {"used_mb": round(int(file.read().split()[1]) * 4096 / 1e6, 1), "torch_mb": 0.0}


def path(
    model: Model, net: nn.Module, backend: str, size: tuple[int, int], runs: int, seconds: float
) -> Row:
    """Time submit to result, first one frame at a time, then with two in flight.

    Raises:
        NotHere: the back end cannot run here.
    """
    from overlay.errors import OverlayError

    try:
        with _opened(model, net, backend, size) as upscaler:
            return _timed(upscaler, size, runs, seconds)
    except (OverlayError, ImportError) as exc:
        raise NotHere(str(exc)) from exc


@contextmanager
def _opened(model: Model, net: nn.Module, backend: str, size: tuple[int, int]) -> Iterator[Any]:
    from overlay.frame import Size

    name, _, form = backend.partition(" ")
    if name != "torch-cuda":
        from engines.errors import EngineError
        from overlay.infer import open_upscaler

        source = Size(*size)
        output = Size(source.width * model.scale, source.height * model.scale)
        try:
            upscaler = open_upscaler(model.id, backend=name, source=source, output=output)
        except EngineError as exc:
            raise NotHere(str(exc)) from exc
        try:
            yield upscaler
        finally:
            upscaler.close()
        return
    if not torch.cuda.is_available():
        raise NotHere("torch-cuda needs an NVIDIA GPU")
    from overlay.cuda import open_cuda

    cuda = open_cuda()
    try:
        upscaler = _torch(model, net, form, cuda)
        try:
            upscaler.warm_up(Size(*size))
            yield upscaler
        finally:
            upscaler.close()
    finally:
        cuda.close()


def _torch(model: Model, net: nn.Module, form: str, cuda: Any) -> Any:
    """Open the net of the other rows with torch-cuda, or its quick form."""
    from dataclasses import replace

    from engines import load, zoo
    from engines.archs.luma import LumaPicture
    from engines.fast import faster
    from overlay.infer.torch_cuda import upscaler

    module = net.net if isinstance(net, LumaPicture) else net
    loaded = replace(load.random_weights(zoo.spec(model.id)), module=module)
    if not form:
        return upscaler(loaded, cuda)
    try:
        return upscaler(loaded, cuda, net=faster(net, "direct"))
    except ValueError as exc:
        raise NotHere(str(exc)) from exc


def _timed(upscaler: Any, size: tuple[int, int], runs: int, seconds: float) -> Row:
    pixels = gpu_nets.frame_of(*size)[0][0].numpy()
    upscaler.warm_up(_frame(pixels, 0).size)
    for number in range(5):
        _one(upscaler, _frame(pixels, number))
    alone: list[float] = []
    device: list[Any] = []
    begin = time.perf_counter()
    while len(alone) < runs and (len(alone) < 5 or time.perf_counter() - begin < seconds):
        took_ms, picture = _one(upscaler, _frame(pixels, len(alone)))
        alone.append(took_ms)
        device.append(picture)
    submit, periods = _in_flight(upscaler, pixels, runs, seconds)
    stages = _stages(device)
    row: Row = {
        "runs": len(alone), "device": upscaler.device,
        "submit_to_result_ms": percentiles(alone),
        "submit_host_ms": percentiles(submit),
        "period_ms": percentiles(periods), "per_second": round(1e3 / float(np.mean(periods)), 2),
        "slots": upscaler.slots,
    }  # fmt: skip
    if stages:
        row["stages_ms"] = stages
        row["overlap"] = round(sum(stages.values()) / float(np.median(periods)), 3)
    return row


def _frame(pixels: Any, number: int) -> Any:
    from overlay.frame import Frame, Region

    now = time.perf_counter_ns()
    return Frame(pixels, number, now, now, Region(0, 0, pixels.shape[1], pixels.shape[0]))


def _one(upscaler: Any, frame: Any) -> tuple[float, Any]:
    """Give the time from submit to result, in ms, and the device's times of the stages."""
    begin = time.perf_counter_ns()
    upscaler.submit(frame)
    picture = None
    while picture is None:
        picture = upscaler.poll(1.0)
    return (time.perf_counter_ns() - begin) / 1e6, getattr(picture, "times", None)


def _in_flight(
    upscaler: Any, pixels: Any, runs: int, seconds: float
) -> tuple[list[float], list[float]]:
    """Keep all slots busy; gives host times of `submit` and the times between results, in ms."""
    submit: list[float] = []
    results: list[int] = []
    begin = time.perf_counter()
    while len(results) < runs + 5 and (
        len(results) < 10 or time.perf_counter() - begin < seconds
    ):  # fmt: skip
        while upscaler.in_flight < upscaler.slots:
            frame = _frame(pixels, len(submit))
            before = time.perf_counter_ns()
            upscaler.submit(frame)
            submit.append((time.perf_counter_ns() - before) / 1e6)
        if upscaler.poll(1.0) is not None:
            results.append(time.perf_counter_ns())
    while upscaler.in_flight:
        upscaler.poll(1.0)
    periods = np.diff(results)[3:] / 1e6
    return submit[2:], [float(period) for period in periods]


def _stages(times: Sequence[DeviceTimes | None]) -> dict[str, float]:
    """Medians of upload, inference and download on the device; none where it does not tell."""
    stages = {}
    for name in ("upload", "infer", "download"):
        spans: list[DeviceSpan | None] = [getattr(one, name) for one in times if one is not None]
        durations = [span.duration_ns for span in spans if span is not None]
        if durations:
            stages[name] = round(float(np.median(durations)) / 1e6, 4)
    return stages
