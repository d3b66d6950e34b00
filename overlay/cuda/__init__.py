"""CUDA: the dozen operations that the GPU path needs, behind one class.

`Cuda` is the seam. `bindings` is the default (NVIDIA's cuda-bindings, wheels for Linux and
Windows, with OpenGL interop and graphs); `pycuda` does the same where it is what is installed
(built by hand; interop only if it was asked for, no graphs); `recording` is the fake: it runs
nothing, knows which operation waits for which, and tells of accesses that nothing keeps apart.

Streams, events, buffers and graphs are small objects that belong to the `Cuda` that made them and
live until it is closed, so nothing needs to be freed in the loop, and `close` frees in the
opposite order of making, also after an error. Only `synchronize`, `close` and the allocations
wait for the device: none of them belongs in the loop.
"""

from __future__ import annotations

import atexit
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import numpy as np

from overlay.closing import Closing
from overlay.errors import BackendUnavailable, OverlayError
from overlay.frame import Pixels

INSTALL = 'pip install ".[nvidia]" in the folder of this project'


class CudaError(OverlayError):
    """A CUDA call failed; the message names it and the status."""


class Unsupported(CudaError):
    """This binding of CUDA lacks the operation (graphs in pycuda, say)."""


@dataclass(frozen=True, slots=True)
class Device:
    """The GPU in use.

    Attributes:
        name: "NVIDIA GeForce RTX 4070", say.
        capability: compute capability, (8, 9) say.
        driver: the newest CUDA that the driver knows, "13.0" say.
        memory_bytes: of the whole GPU.
    """

    name: str
    capability: tuple[int, int]
    driver: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A queue of work on the device.

    Attributes:
        handle: the CUstream, for libraries (TensorRT, PyTorch's ExternalStream).
        name: for people and for the recording fake: "copy", "compute", "download".
    """

    handle: int
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """A mark in a stream; recording it again moves it."""

    handle: int
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class DeviceBuffer:
    """Memory on the device.

    Attributes:
        address: of its first byte.
        size: in bytes.
        name: for people and for the recording fake.
    """

    address: int
    size: int
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """Work that was captured from a stream, to be launched at once."""

    handle: int
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class GlBuffer:
    """An OpenGL buffer object that CUDA may write."""

    handle: int
    buffer: int
    size: int


#: What a `Cuda` makes; pixels are those of `pinned` and `pin`.
Made = Stream | Event | DeviceBuffer | Graph | GlBuffer | Pixels


def whole_bytes(pixels: Pixels) -> Pixels:
    """View contiguous pixels as bytes: uint8, (nbytes,).

    Raises:
        ValueError: they are not contiguous.
    """
    if not pixels.flags.c_contiguous:
        raise ValueError(f"copies need contiguous pixels, not strides {pixels.strides}")
    return pixels.reshape(-1).view(np.uint8)


def check_size(size: int, name: str) -> None:
    """Raise ValueError for an allocation of nothing."""
    if size <= 0:
        raise ValueError(f"{name}: an allocation of {size} bytes")


def check_copy(moved: Pixels | DeviceBuffer, other: DeviceBuffer) -> int:
    """Give the size of a copy, all of `moved`.

    Raises:
        ValueError: it does not fit the other side, or is not contiguous.
    """
    if isinstance(moved, DeviceBuffer):
        size = moved.size
    else:
        size = moved.nbytes
        if not moved.flags.c_contiguous:
            raise ValueError(f"copies need contiguous pixels, not strides {moved.strides}")
    if size > other.size:
        raise ValueError(f"{size} bytes do not fit {other.name}, {other.size} bytes")
    return size


class Cuda(Closing):
    """One device and what was made on it.

    Calls that enqueue (copies, `record`, `wait`, `launch`, `map_gl`, `unmap_gl`) return at once;
    what they do happens in the order of their stream. All methods may be called on any thread;
    those about OpenGL need the context current, on its thread.

    Raises:
        BackendUnavailable: from the constructor: package, driver or device are missing.
        CudaError: from any method: the call failed.
    """

    #: Its name: "cuda-bindings", "pycuda", "recording".
    name: str
    device: Device
    #: Whether `captured` works.
    has_graphs: bool
    #: Whether `register_gl` works.
    has_gl: bool

    # Streams and events

    @abstractmethod
    def stream(self, name: str, *, urgent: bool = False) -> Stream:
        """Make a stream that does not wait for the default one; `urgent` = highest priority."""

    @abstractmethod
    def event(self, name: str, *, timing: bool = False) -> Event:
        """Make an event; `timing` if `elapsed_ms` is to be asked of it."""

    @abstractmethod
    def record(self, event: Event, stream: Stream) -> None:
        """Set the mark after all that is in the stream now."""

    @abstractmethod
    def wait(self, stream: Stream, event: Event) -> None:
        """Let what comes next in the stream wait for the mark; one never recorded is passed."""

    @abstractmethod
    def done(self, event: Event) -> bool:
        """Whether the mark was reached; True if it was never recorded."""

    @abstractmethod
    def synchronize(self, event: Event) -> None:
        """Block until the mark is reached. Not in the loop."""

    @abstractmethod
    def elapsed_ms(self, start: Event, end: Event) -> float:
        """Device time between two marks that were reached, in ms."""

    # Memory

    @abstractmethod
    def pinned(self, shape: tuple[int, ...], name: str) -> Pixels:
        """Allocate page-locked host memory: zeros, uint8, of the shape; freed by `close`.

        An array that is still referred to then stays valid until it is not.
        """

    @abstractmethod
    def pin(self, pixels: Pixels) -> bool:
        """Page-lock memory that somebody else owns, until `close`; False if that is refused.

        Of an array that this device has pinned already: True.
        """

    @abstractmethod
    def buffer(self, size: int, name: str) -> DeviceBuffer:
        """Allocate memory on the device, in bytes."""

    @abstractmethod
    def upload(self, target: DeviceBuffer, source: Pixels, stream: Stream) -> None:
        """Copy host to device; `source` is contiguous, and pinned if the copy is to overlap."""

    @abstractmethod
    def download(self, target: Pixels, source: DeviceBuffer, stream: Stream) -> None:
        """Copy device to host; `target` is contiguous, and pinned if the copy is to overlap."""

    @abstractmethod
    def copy(self, target: DeviceBuffer, source: DeviceBuffer, stream: Stream) -> None:
        """Copy on the device, the size of `source`."""

    @abstractmethod
    def free(self, *made: Made) -> None:
        """Wait for the device and free these now, the last first: at a change of size, say.

        Not in the loop. What of it fails is logged, as in `close`.
        """

    # Graphs

    @abstractmethod
    def captured(self, enqueue: Callable[[], None], stream: Stream, name: str) -> Graph:
        """Capture what `enqueue` puts into the stream, without running it.

        Raises:
            Unsupported: `has_graphs` is False.
        """

    @abstractmethod
    def launch(self, graph: Graph, stream: Stream) -> None:
        """Put a graph's work into a stream."""

    # OpenGL

    @abstractmethod
    def register_gl(self, buffer: int, size: int) -> GlBuffer:
        """Register an OpenGL buffer object, once, to be overwritten by CUDA.

        Raises:
            Unsupported: this binding, driver or context cannot.
        """

    @abstractmethod
    def unregister_gl(self, buffer: GlBuffer) -> None:
        """End that, before the buffer object is deleted."""

    @abstractmethod
    def mapped(self, buffer: GlBuffer, stream: Stream) -> AbstractContextManager[DeviceBuffer]:
        """Map it for work in `stream`; unmapped at the end, after which OpenGL may read it."""

    # Programs

    def compute(
        self,
        enqueue: Callable[[], None],
        stream: Stream,
        reads: Sequence[DeviceBuffer],
        writes: Sequence[DeviceBuffer],
    ) -> None:
        """Put a program's work into a stream (TensorRT's enqueue, a PyTorch module).

        The real back ends only call `enqueue`; the recording fake notes what it touches.
        """
        enqueue()

    @abstractmethod
    def close(self) -> None:
        """Wait for the device, free everything in the opposite order of making; idempotent."""


_INSTALL_PYCUDA = "it must be built from source, and cuda-bindings does the same without"

#: Module, class, package and way to install of each back end, in the order of "auto".
_BACKENDS = {
    "cuda-bindings": ("overlay.cuda.bindings", "BindingsCuda", "cuda.bindings", INSTALL),
    "pycuda": ("overlay.cuda.pycuda", "PyCuda", "pycuda", _INSTALL_PYCUDA),
}


def open_cuda(name: str = "auto") -> Cuda:
    """Open the first NVIDIA GPU.

    Args:
        name: "auto" (cuda-bindings, else pycuda), "cuda-bindings" or "pycuda".
    Raises:
        BackendUnavailable: package, driver or device are missing; the message has reasons and fix.
    """
    if name not in ("auto", *_BACKENDS):
        raise BackendUnavailable(f"no CUDA back end {name!r} (one of auto, {', '.join(_BACKENDS)})")
    names = [one for one in _BACKENDS if name in (one, "auto")]
    there = [one for one in names if _is_installed(one)]
    reasons = []
    for one in there or names[:1]:  # what is missing beside what is there explains nothing
        try:
            return _opened(one)
        except BackendUnavailable as exc:
            reasons.append(str(exc))
    raise BackendUnavailable("; ".join(reasons))


def _is_installed(name: str) -> bool:
    try:
        return find_spec(_BACKENDS[name][2]) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def _opened(name: str) -> Cuda:
    module, kind, _, install = _BACKENDS[name]
    if not _is_installed(name):
        raise BackendUnavailable(f"{name} is not installed: {install}")
    try:
        found = import_module(module)
    except ImportError as exc:  # pycuda.driver without NVIDIA's driver, say
        raise BackendUnavailable(f"{name} cannot be loaded ({exc}): {install}") from exc
    cuda: Cuda = getattr(found, kind)()
    return cuda


class _Shared:
    """The device of this process: opened once, asked whether it still works at each use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cuda: Cuda | None = None
        self._refused: BackendUnavailable | None = None

    def get(self) -> Cuda:
        with self._lock:
            if self._refused is not None:
                raise BackendUnavailable(str(self._refused)) from self._refused
            if self._cuda is None:
                self._cuda = self._open()
            self._check(self._cuda)
            return self._cuda

    def _open(self) -> Cuda:
        try:
            cuda = open_cuda()
        except BackendUnavailable as exc:
            self._refused = exc  # the search for drivers takes a while, and would end alike
            raise
        atexit.register(cuda.close)
        try:
            self._probe = cuda.event("probe")
        except CudaError as exc:
            raise BackendUnavailable(f"the GPU cannot be used: {exc}") from exc
        return cuda

    def _check(self, cuda: Cuda) -> None:
        """Ask the device; one that failed says so at every call, until the process ends."""
        try:
            cuda.done(self._probe)
        except CudaError as exc:
            raise BackendUnavailable(
                f"the GPU failed and cannot be used again by this process ({exc}); "
                "start the program again"
            ) from exc


_shared = _Shared()


def shared_cuda() -> Cuda:
    """Open the GPU once for the whole process; closed when it ends; on any thread.

    Upscalers come and go while the presenter keeps buffers registered, so none of them owns it.

    Raises:
        BackendUnavailable: as `open_cuda`, or the device failed meanwhile.
    """
    return _shared.get()
