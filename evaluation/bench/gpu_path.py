"""The whole path of a frame through the overlay's GPU upscalers, and memory over many frames.

Without a GPU the same code runs on the fake of the seam, at tiny sizes: that proves the code, and
its times mean nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.bench import gpu_nets
from evaluation.bench.gpu_methods import NotHere
from evaluation.bench.gpu_nets import Model
from evaluation.bench.timing import Device, percentiles
from overlay.cuda import Cuda, DeviceBuffer, Stream
from overlay.cuda.recording import RecordingCuda
from overlay.frame import DeviceSpan, DeviceTimes, Frame, Picture, Region, Size
from overlay.infer.torch_cuda import TorchProgram

Row = dict[str, Any]

#: Back ends of the whole path; "torch-cuda" alone takes the form that it takes unasked.
BACKENDS = (
    "torch-cuda", "torch-cuda plain", "torch-cuda epilogue", "torch-cuda direct",
    "torch-cuda stacked", "tensorrt", "tensorrt-rtx",
)  # fmt: skip
#: Memory is looked at after so many frames.
_EVERY = 10_000
#: What memory in use on the device may vary by, in MB: it is given out 2 MB at a time.
_VARIES_MB = 2.2


class LateTorch(TorchProgram):
    """Runs on the host, when its turn on the recording device comes."""

    cuda: RecordingCuda

    def prepare(self, cuda: Cuda, size: Size, stream: Stream) -> None:
        assert isinstance(cuda, RecordingCuda)
        self.cuda = cuda
        self._view = self._host_view
        super().prepare(cuda, size, stream)

    def _host_view(self, buffer: DeviceBuffer, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(self.cuda.array(buffer)).view(shape)

    def _run(self, bgra: Tensor, picture: Tensor, stream: Stream) -> None:
        def run() -> None:
            super(LateTorch, self)._run(bgra, picture, stream)

        self.cuda.kernel(run, stream)


@contextmanager
def opened(
    device: Device, model: Model, net: nn.Module, backend: str, size: tuple[int, int]
) -> Iterator[Any]:
    """Open an upscaler, warmed up.

    Args:
        device: on the CPU torch-cuda runs on the fake, in FP32.
        net: FP32; what torch-cuda runs. Engines are those of the cache.
        backend: one of `BACKENDS`.
    Raises:
        NotHere: the back end cannot run here.
    """
    from engines.errors import EngineError
    from overlay.errors import OverlayError

    name, _, form = backend.partition(" ")
    with ExitStack() as stack:
        try:
            if name != "torch-cuda":
                upscaler = stack.enter_context(_engine(model, name, size))
            else:
                cuda = stack.enter_context(_cuda(device))
                upscaler = stack.enter_context(_torch(device, model, net, form, cuda))
            upscaler.warm_up(Size(*size))
        except (EngineError, OverlayError, ImportError, ValueError) as exc:
            raise NotHere(str(exc)) from exc
        yield upscaler


def _engine(model: Model, backend: str, size: tuple[int, int]) -> Any:
    from overlay.infer import open_upscaler

    source = Size(*size)
    output = Size(source.width * model.scale, source.height * model.scale)
    return open_upscaler(model.id, backend=backend, source=source, output=output)


def _cuda(device: Device) -> Cuda:
    from overlay.cuda import open_cuda

    return open_cuda() if device.is_cuda else RecordingCuda()


def _torch(device: Device, model: Model, net: nn.Module, form: Any, cuda: Cuda) -> Any:
    """Open the net of the other rows with torch-cuda, in the form asked for, or its own."""
    from dataclasses import replace

    from engines import load, zoo
    from engines.archs.luma import LumaPicture
    from overlay.infer.torch_cuda import upscaler

    module = net.net if isinstance(net, LumaPicture) else net
    loaded = replace(load.random_weights(zoo.spec(model.id)), module=module)
    if device.is_cuda:
        return upscaler(loaded, cuda, form=form or None)
    return upscaler(
        loaded, cuda, form=form or None, kind=torch.float32, device="cpu", program=LateTorch
    )  # fmt: skip


# --- times ---------------------------------------------------------------------------------------


def path(upscaler: Any, size: tuple[int, int], runs: int, seconds: float, right: Tensor) -> Row:
    """Time submit to result, first one frame at a time, then with all slots busy.

    Args:
        upscaler: warmed up for frames of `size`.
        right: what FP32 makes of `gpu_nets.frame_of(size)`, to compare the last picture with.
    """
    pixels = gpu_nets.frame_of(*size)[0][0].numpy()
    for number in range(5):
        _one(upscaler, _frame(pixels, number))
    alone: list[float] = []
    times: list[DeviceTimes | None] = []
    begin = time.perf_counter()
    while len(alone) < runs and (len(alone) < 5 or time.perf_counter() - begin < seconds):
        took_ms, picture = _one(upscaler, _frame(pixels, len(alone)))
        alone.append(took_ms)
        times.append(picture.times)
    found = torch.from_numpy(picture.pixels.copy())[None]
    del picture  # its buffer is needed again
    submit, periods = _in_flight(upscaler, pixels, runs, seconds)
    stages = _stages(times)
    row: Row = {
        "runs": len(alone), "runs_in_flight": len(submit), "runs_on": upscaler.device,
        "submit_to_result_ms": percentiles(alone),
        "submit_host_ms": percentiles(submit),
        "period_ms": percentiles(periods), "per_second": round(1e3 / float(np.mean(periods)), 2),
        "slots": upscaler.slots, "against_fp32": gpu_nets.difference(found, right),
    }  # fmt: skip
    if stages:
        row["stages_ms"] = stages
        row["overlap"] = round(sum(stages.values()) / float(np.median(periods)), 3)
    return row


def _frame(pixels: Any, number: int) -> Frame:
    now = time.perf_counter_ns()
    return Frame(pixels, number, now, now, Region(0, 0, pixels.shape[1], pixels.shape[0]))


def _one(upscaler: Any, frame: Frame) -> tuple[float, Picture]:
    """Give the time from submit to result, in ms, and the picture."""
    begin = time.perf_counter_ns()
    upscaler.submit(frame)
    picture: Picture | None = None
    while picture is None:
        picture = upscaler.poll(1.0)
    return (time.perf_counter_ns() - begin) / 1e6, picture


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


# --- memory --------------------------------------------------------------------------------------


def memory(
    upscaler: Any, size: tuple[int, int], device: Device, frames: int, seconds: float
) -> Row:
    """Put frames through with all slots busy, and look at memory before, between and after.

    Args:
        upscaler: warmed up for frames of `size`.
        frames: so many, or as many as fit into `seconds`.
    """
    pixels = gpu_nets.frame_of(*size)[0][0].numpy()
    for number in range(2 * upscaler.slots):  # captured pixels are page-locked, the ring is there
        _one(upscaler, _frame(pixels, number))
    begin, done = time.perf_counter(), 0
    samples = [{"frames": 0, **in_use(device)}]
    while done < frames and time.perf_counter() - begin < seconds:
        many = min(_EVERY, frames - done)
        done += _through(upscaler, pixels, many, begin + seconds)
        samples.append({"frames": done, **in_use(device)})
    used = [sample["used_mb"] for sample in samples]
    row: Row = {
        "frames": done, "wanted_frames": frames, "runs_on": upscaler.device,
        "seconds": round(time.perf_counter() - begin, 2), "samples": samples,
        "before": samples[0], "after": samples[-1], "most_used_mb": max(used),
        "flat": max(used) - used[0] <= _VARIES_MB,
    }  # fmt: skip
    if done < frames:
        row["cut_short"] = f"{done} of {frames} frames fitted into {seconds:.0f} s"
    return row


def _through(upscaler: Any, pixels: Any, count: int, end: float) -> int:
    """Put `count` frames through, all slots busy, until `end`; gives how many came out."""
    given = taken = 0
    while taken < given or (given < count and time.perf_counter() < end):
        while given < count and upscaler.in_flight < upscaler.slots:
            upscaler.submit(_frame(pixels, given))
            given += 1
        if upscaler.poll(1.0) is not None:
            taken += 1
    return taken


def in_use(device: Device) -> dict[str, float]:
    """Say what is in use, in MB: on the whole device (0 without one), and by this process."""
    found = {"used_mb": 0.0, "host_mb": host_mb()}
    if device.is_cuda:
        free, whole = torch.cuda.mem_get_info()
        found["used_mb"] = round((whole - free) / 1e6, 1)
    return found


def host_mb() -> float:
    """Give this process's resident memory, in MB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return round(int(file.read().split()[1]) * 4096 / 1e6, 1)
