"""The CUDA device, through `cuda.bindings.runtime`: what it is, its memory, one stream.

Everything here raises a `BuilderMissing` of one line where there is no NVIDIA GPU. A TensorRT
object made without one can end the process, so this is always asked first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import BuilderMissing, EngineError

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

INSTALL = 'pip install ".[nvidia]" in the folder of this project'


def gpu_runtime(wish: str) -> ModuleType:
    """Give `cuda.bindings.runtime`, once it has found a GPU.

    Args:
        wish: what needs it, the start of the message: "TensorRT engines are built on the GPU
            that runs them", say.
    Raises:
        BuilderMissing: cuda-bindings or a GPU with its driver is missing.
    """
    try:
        from cuda.bindings import runtime  # type: ignore[import-untyped, unused-ignore]
    except ImportError as exc:
        raise BuilderMissing(f"{wish}, and cuda-bindings is missing ({exc}): {INSTALL}") from exc
    status, count = runtime.cudaGetDeviceCount()
    if status != runtime.cudaError_t.cudaSuccess:
        raise BuilderMissing(
            f"{wish}, and there is no NVIDIA GPU here ({status_text(runtime, status)}); "
            "with a GPU, install NVIDIA's driver, or a later one"
        )
    if not count:
        raise BuilderMissing(f"{wish}, and there is no NVIDIA GPU here (0 CUDA devices)")
    module: ModuleType = runtime
    return module


def status_text(runtime: Any, status: Any) -> str:
    """Say what a CUDA status is: "cudaErrorMemoryAllocation: out of memory"."""
    name = runtime.cudaGetErrorName(status)[1].decode()
    return f"{name}: {runtime.cudaGetErrorString(status)[1].decode()}"


def checked(runtime: Any, result: tuple[Any, ...], what: str) -> Any:
    """Give the value of a call, `(status, value)` or `(status,)`.

    Raises:
        EngineError: its status is not success.
    """
    if result[0] != runtime.cudaError_t.cudaSuccess:
        raise EngineError(f"CUDA failed to {what}: {status_text(runtime, result[0])}")
    return result[1] if len(result) > 1 else None


def device_facts(wish: str) -> dict[str, str]:
    """Name the GPU: {"gpu": its name, "sm": "8.9", "driver": "CUDA 13.0"}.

    "driver" is the latest CUDA that the driver supports, which is what engines depend on.

    Raises:
        BuilderMissing: as `gpu_runtime`.
    """
    runtime: Any = gpu_runtime(wish)
    found = checked(runtime, runtime.cudaGetDeviceProperties(0), "read the device's properties")
    version = checked(runtime, runtime.cudaDriverGetVersion(), "read the driver's version")
    return {
        "gpu": found.name.decode(),
        "sm": f"{found.major}.{found.minor}",
        "driver": f"CUDA {version // 1000}.{version % 1000 // 10}",
    }


class Session:
    """One stream, and memory for it; freed by `close`, the last first, even after an error."""

    def __init__(self, wish: str) -> None:
        """Make a stream, not the default one; `BuilderMissing` as `gpu_runtime`."""
        runtime: Any = gpu_runtime(wish)
        self._runtime = runtime
        self._stack = ExitStack()
        flags = runtime.cudaStreamNonBlocking
        stream = checked(runtime, runtime.cudaStreamCreateWithFlags(flags), "make a stream")
        self._free_later(runtime.cudaStreamDestroy, stream, "a stream")
        #: Its handle.
        self.stream = int(stream)

    def _free_later(self, free: Callable[[Any], tuple[Any, ...]], handle: Any, what: str) -> None:
        def release() -> None:
            status = free(handle)[0]
            if status != self._runtime.cudaError_t.cudaSuccess:
                log.warning("CUDA could not free %s: %s", what, status_text(self._runtime, status))

        self._stack.callback(release)

    def device_memory(self, size: int) -> int:
        """Allocate bytes on the device; gives the address."""
        result = self._runtime.cudaMalloc(size)
        address = checked(self._runtime, result, f"allocate {size} bytes on the GPU")
        self._free_later(self._runtime.cudaFree, address, f"{size} bytes on the GPU")
        return int(address)

    def pinned_memory(self, size: int) -> Pixels:
        """Allocate bytes of main memory, page-locked until `close`, valid as long as it is used."""
        array = np.empty(size, np.uint8)
        flags = self._runtime.cudaHostRegisterDefault
        result = self._runtime.cudaHostRegister(array.ctypes.data, size, flags)
        checked(self._runtime, result, f"pin {size} bytes of memory")
        unpin = self._runtime.cudaHostUnregister
        self._free_later(unpin, array.ctypes.data, f"{size} bytes of pinned memory")
        return array

    def upload(self, device: int, pinned: Pixels) -> None:
        """Queue a copy of all of `pinned` to an address on the device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(device, pinned.ctypes.data, pinned.nbytes, kind)

    def download(self, pinned: Pixels, device: int) -> None:
        """Queue a copy from an address on the device that fills `pinned`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(pinned.ctypes.data, device, pinned.nbytes, kind)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        result = self._runtime.cudaMemcpyAsync(target, source, size, kind, self.stream)
        checked(self._runtime, result, f"copy {size} bytes")

    def synchronize(self) -> None:
        """Wait for all that was queued."""
        checked(self._runtime, self._runtime.cudaStreamSynchronize(self.stream), "run an engine")

    def close(self) -> None:
        """Free everything; idempotent."""
        self._stack.close()
