"""A program for the recording fake: numpy on the host, when its turn on the device comes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engines.errors import EngineMismatch
from engines.spec import Output
from overlay.cuda import Cuda, DeviceBuffer, Stream
from overlay.cuda.recording import RecordingCuda
from overlay.frame import Pixels, Size
from overlay.infer.gpu import GpuUpscaler, Program


def enlarged(bgra: Pixels, scale: int = 2, output: Output = "bgra") -> Pixels:
    """Repeat the pixels, inverted: what `HostProgram` makes of a frame."""
    planes = 255 - (bgra if output == "bgra" else bgra[..., 1])
    return np.ascontiguousarray(planes.repeat(scale, 0).repeat(scale, 1))


class HostProgram(Program):
    """Runs a function of the host.

    Args:
        function: from uint8 (H, W, 4) to the picture.
        refuses: a size that it does not take.
    """

    title = "NumPy"

    def __init__(
        self, function: Callable[[Pixels], Pixels] = enlarged, refuses: Size | None = None
    ) -> None:
        self.function = function
        self.refuses = refuses
        self.captures = True
        self.events: list[str] = []
        self.fails: Exception | None = None

    def prepare(self, cuda: Cuda, size: Size, stream: Stream) -> None:
        assert isinstance(cuda, RecordingCuda)
        if size == self.refuses:
            raise EngineMismatch(f"not {size}")
        self.events.append(f"prepare {size}")
        self._cuda, self._size = cuda, size

    def enqueue(
        self, slot: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream
    ) -> None:
        if self.fails is not None:
            raise self.fails
        self.events.append(f"enqueue {slot}")
        cuda, size = self._cuda, self._size

        def run() -> None:
            frame = cuda.array(source)[: size.height * size.width * 4]
            picture = self.function(frame.reshape(size.height, size.width, 4))
            cuda.array(target)[: picture.size] = picture.reshape(-1)

        cuda.kernel(run, stream)

    def capturable(self, stream: Stream) -> bool:
        return self.captures

    def warmed(self) -> None:
        self.events.append("warmed")

    def close(self) -> None:
        self.events.append("close")


def host_upscaler(
    cuda: Cuda,
    program: Program | None = None,
    *,
    output: Output = "bgra",
    scale: int = 2,
    download: bool = True,
) -> GpuUpscaler:
    """Open a `GpuUpscaler` that runs on the host."""
    program = program or HostProgram(lambda bgra: enlarged(bgra, scale, output))
    return GpuUpscaler(
        cuda, program, model="toy", backend="recording", scale=scale, output=output,
        download=download,
    )  # fmt: skip
