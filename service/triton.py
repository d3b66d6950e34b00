"""Models on a Triton server: gRPC, and shared memory where it is on this machine.

`TritonUpscaler` is an `Upscaler` like the overlay's own; `TritonBackend` offers the models of a
repository that `service.repository` wrote, each as two of the server's: bytes for pictures of 8
bits, and the FP32 twin for 16 bits and for tiles of large pictures. Colour is joined with a
net's luma here, as for a net in this process.

The server may go away and come back: what was in work fails with `TritonAway`, and the next
picture connects, loads and registers anew.

    TritonAway      the server cannot be reached, or did not answer in time
"""

# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from queue import LifoQueue
from typing import Any, Literal, TypeVar, cast

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from engines import nets, zoo
from engines.errors import EngineError, EngineMismatch, EngineMissing
from engines.offline import OfflineModel, Progress
from engines.offline_net import OfflineNet
from engines.spec import ModelSpec
from overlay.closing import Closing
from overlay.errors import BackendUnavailable, OverlayError, SettingsError
from overlay.frame import BufferRing, Frame, Picture, Size
from overlay.infer import Upscaler, warmed_up
from overlay.infer.chroma import ChromaMerger
from service.backends import Backend, LiveModel, Model, Offer
from service.backends import Pixels as RgbPixels
from service.errors import Unavailable
from service.repository import FLOAT, model_folder

log = logging.getLogger(__name__)

Array = NDArray[Any]
T = TypeVar("T")
SharedMode = Literal["auto", "on", "off"]

#: Longest wait for an answer that takes no work, in seconds.
_QUICK_S = 5.0
#: For so long the list of models is believed.
_FRESH_S = 5.0
#: Between attempts to connect, at most; an attempt itself fails at once where nobody listens.
_RECONNECT_MS = 1000
_LOCAL = ("127.0.0.1", "localhost", "[::1]")
#: What is said by a server that was restarted since the model was got ready.
_FORGOTTEN = ("shared memory region", "unknown model", "is not ready", "has no available versions")
#: Bytes held here for a model, besides those of its pictures.
_IDLE = 4 << 20


class TritonAway(BackendUnavailable):
    """The server cannot be reached, or did not answer in time; it may be back soon."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is, and how to talk to it.

    Attributes:
        address: host:port of its gRPC. Not encrypted and without a key: for this machine or a
            network that nobody else is in.
        shared: pass pixels in shared memory; "auto" = where the address is this machine, unless
            the server cannot open it (it may be in a container, or another user's).
        timeout_s: longest wait for a picture.
        load_s: longest wait until a model is loaded.
    """

    address: str = "127.0.0.1:8001"
    shared: SharedMode = "auto"
    timeout_s: float = 60.0
    load_s: float = 120.0

    def __post_init__(self) -> None:
        host, colon, port = self.address.rpartition(":")
        if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise SettingsError(
                f"Triton's address is host:port of its gRPC, 127.0.0.1:8001 say, not "
                f"{self.address!r}"
            )
        if "/" in host:
            raise SettingsError(f"Triton's address has no scheme: host:port, not {self.address!r}")
        if min(self.timeout_s, self.load_s) <= 0:
            raise SettingsError("Triton's time limits are more than 0 seconds")
        if self.shared not in ("auto", "on", "off"):
            raise SettingsError(f"shared memory is auto, on or off, not {self.shared!r}")

    @property
    def may_share(self) -> bool:
        """Whether shared memory is worth a try."""
        local = self.address.rpartition(":")[0] in _LOCAL
        return os.name == "posix" and (self.shared == "on" or (self.shared == "auto" and local))


class Connection(Closing):
    """A client of one server, with its errors translated; for one thread."""

    def __init__(self, server: Server) -> None:
        self.server = server
        size = ("max_send_message_length", "max_receive_message_length")
        options = [(f"grpc.{name}", -1) for name in size]
        options += [
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS),
        ]
        self.client = triton.InferenceServerClient(server.address, channel_args=options)

    def ask(self, call: Callable[..., T], *arguments: object, limit_s: float = _QUICK_S) -> T:
        """Call a method of the client.

        Raises:
            TritonAway: there is no answer.
            EngineError: the answer is an error.
        """
        try:
            return call(*arguments, client_timeout=limit_s)
        except InferenceServerException as exc:
            raise self.translated(exc, limit_s) from exc

    def translated(self, exc: InferenceServerException, limit_s: float) -> Exception:
        """Make our error of the library's."""
        status, line = str(exc.status()), _line(exc)
        where = f"Triton at {self.server.address}"
        if "DEADLINE_EXCEEDED" in status:
            return TritonAway(f"{where} did not answer within {limit_s:g} s")
        if "UNAVAILABLE" in status or "CANCELLED" in status:
            return TritonAway(f"{where} is not there ({line}): start it, or wait")
        return EngineError(f"{where} says: {line}")

    def make_ready(self, model: str) -> None:
        """Load a model unless it is loaded.

        Raises:
            TritonAway: the server is not there.
            EngineMissing: it has no such model, or cannot load it.
        """
        self.ask(self.client.is_server_live)
        with suppress(EngineError):  # some versions say so of a model they do not know
            if self.ask(self.client.is_model_ready, model):
                return
        try:
            self.ask(self.client.load_model, model, limit_s=self.server.load_s)
        except EngineError as exc:
            raise EngineMissing(
                f"{model} cannot be loaded ({exc}): write it into the server's repository with "
                f"python -m service.repository --models {model.removesuffix(FLOAT)}, and start the "
                "server with --model-control-mode=explicit"
            ) from exc

    def close(self) -> None:
        """Close the channel."""
        self.client.close()


def _line(exc: InferenceServerException) -> str:
    lines = [line.strip() for line in str(exc.message()).splitlines() if line.strip()]
    return (lines or ["an error without a message"])[0][:300]


class _Shared:
    """Two blocks of shared memory that the server knows; unlinked at the latest on exit."""

    def __init__(self, connection: Connection, sizes: tuple[int, int]) -> None:
        self._connection = connection
        self.blocks: list[SharedMemory] = []
        self.names: list[str] = []
        try:
            for size in sizes:
                name = f"overlay-{os.getpid()}-{secrets.token_hex(8)}"
                block = SharedMemory(name, create=True, size=size)  # only this user may open it
                self.blocks.append(block)
                connection.ask(
                    connection.client.register_system_shared_memory, name, f"/{name}", size
                )
                self.names.append(name)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take the blocks back from the server, and unlink them."""
        while self.names:
            with suppress(TritonAway, EngineError):
                self._connection.ask(
                    self._connection.client.unregister_system_shared_memory,
                    self.names.pop(),
                    limit_s=1.0,
                )
        while self.blocks:
            block = self.blocks.pop()
            with suppress(FileNotFoundError):
                block.unlink()
            with suppress(BufferError):  # an array is still on it; it goes with that
                block.close()


class _Call:
    """One request: its end is told on a thread of the library."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.result: Any = None
        self.error: Any = None
        self.context: Any = None

    def __call__(self, result: Any, error: Any) -> None:
        self.result, self.error = result, error
        self.ended.set()


@dataclass(frozen=True, slots=True)
class Shape:
    """Input and output of a model for one size of pictures, with the batch of one."""

    given: tuple[int, ...]
    made: tuple[int, ...]


class Runner(Closing):
    """One model of a server, one request at a time, for one size of pictures after another.

    Args:
        server: that has it.
        model: its name there.
        output: name of its output.
        dtype: of input and output.
    """

    def __init__(self, server: Server, model: str, output: str, dtype: type[np.generic]) -> None:
        self.model = model
        self.shares = server.may_share
        self._server = server
        self._output = output
        self._dtype = np.dtype(dtype)
        self._kind = {"uint8": "UINT8", "float32": "FP32"}[self._dtype.name]
        self._connection: Connection | None = None
        self._shape: Shape | None = None
        self._shared: _Shared | None = None
        self._call: _Call | None = None
        self._again = False  # whether the request in work may be sent a second time
        self.input: Array = np.empty(0)
        self._result: Array = np.empty(0)

    def prepare(self, shape: Shape) -> None:
        """Get ready for pictures of a shape; `input` is to be filled then.

        Raises:
            TritonAway, EngineError: the server or the model is not there, or does not take them.
        """
        if shape == self._shape:
            return
        self._forget()
        connection = self._connection = self._connection or Connection(self._server)
        connection.make_ready(self.model)
        self._check(connection, shape)
        if not self._try_shared(connection, shape):
            self.input = np.zeros(shape.given, self._dtype)
        self._shape = shape

    def _check(self, connection: Connection, shape: Shape) -> None:
        """See that the model is what it should be, before pixels are sent."""
        told = connection.ask(connection.client.get_model_metadata, self.model)
        wanted = (("bgra", shape.given), (self._output, shape.made))
        ports = (*told.inputs, *told.outputs)
        fits = len(ports) == len(wanted) and all(
            (port.name, port.datatype) == (name, self._kind) and _fits(port.shape, dims)
            for port, (name, dims) in zip(ports, wanted, strict=True)
        )
        if not fits:
            takes = ", ".join(f"{port.name} {port.datatype} {list(port.shape)}" for port in ports)
            raise EngineMismatch(
                f"{self.model} on Triton is for {takes[:300]}, not for pictures of "
                f"{shape.given[2]}x{shape.given[1]}: write the repository for this size, or for any"
            )

    def _try_shared(self, connection: Connection, shape: Shape) -> bool:
        if not self.shares:
            return False
        lengths = [int(np.prod(dims)) * self._dtype.itemsize for dims in (shape.given, shape.made)]
        try:
            self._shared = _Shared(connection, (lengths[0], lengths[1]))
        except (EngineError, OSError) as exc:
            if self._server.shared == "on":
                raise EngineError(f"no shared memory with Triton: {exc}") from exc
            log.info("no shared memory with Triton, pixels go over the network: %s", exc)
            self.shares = False
            return False
        first, second = self._shared.blocks
        self.input = np.ndarray(shape.given, self._dtype, first.buf)
        self._result = np.ndarray(shape.made, self._dtype, second.buf)
        return True

    def begin(self) -> None:
        """Send what is in `input`."""
        assert self._shape is not None, "prepare it first"
        self._again = True
        self._send()

    def _send(self) -> None:
        assert self._connection is not None
        given = triton.InferInput("bgra", list(self.input.shape), self._kind)
        wanted = triton.InferRequestedOutput(self._output)
        if self._shared:
            names = self._shared.names
            given.set_shared_memory(names[0], self.input.nbytes)
            wanted.set_shared_memory(names[1], self._result.nbytes)
        else:
            given.set_data_from_numpy(self.input)
        call = self._call = _Call()
        call.context = self._connection.client.async_infer(
            self.model, [given], call, outputs=[wanted], client_timeout=self._server.timeout_s
        )

    def poll(self, timeout_s: float) -> Array | None:
        """Wait for the result.

        Returns:
            It, valid until the next `begin`; None if it is not there yet.
        Raises:
            TritonAway, EngineError: it failed; `prepare` starts anew.
        """
        call = self._call
        if call is None or not call.ended.wait(timeout_s):
            return None
        self._call = None
        if call.error is None:
            return self._checked(call.result)
        text = str(call.error.message()).lower()
        if self._again and any(words in text for words in _FORGOTTEN):
            return self._second(timeout_s)
        assert self._connection is not None
        error = self._connection.translated(call.error, self._server.timeout_s)
        self._forget()
        raise error from call.error

    def _second(self, timeout_s: float) -> Array | None:
        """Send again what a server that was restarted does not know how to take."""
        self._again = False
        shape, pixels = self._shape, self.input.copy()
        assert shape is not None
        log.info("Triton was restarted: %s is got ready again", self.model)
        self._forget()
        self.prepare(shape)
        np.copyto(self.input, pixels)
        self._send()
        return self.poll(timeout_s)

    def _checked(self, result: Any) -> Array:
        assert self._shape is not None
        told = result.get_output(self._output)
        shape = tuple(told.shape) if told is not None else ()
        if shape != self._shape.made or told.datatype != self._kind:
            self._forget()
            raise EngineMismatch(f"{self.model} on Triton gave {shape}, which was not asked for")
        return self._result if self._shared else cast("Array", result.as_numpy(self._output))

    def run(self) -> Array:
        """`begin` and wait, see `poll`."""
        self.begin()
        while (made := self.poll(1.0)) is None:
            pass
        return made

    @property
    def busy(self) -> bool:
        """Whether a request is in work."""
        return self._call is not None

    def _forget(self) -> None:
        """Give up the buffers: a server that goes on with an old request must not write there."""
        if self._call is not None:
            self._call.context.cancel()
        self._call = self._shape = None
        self.input = self._result = np.empty(0)
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def close(self) -> None:
        """Give up what is in work, and the connection."""
        self._forget()
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _fits(told: Any, wanted: tuple[int, ...]) -> bool:
    dims = [int(length) for length in told]
    return len(dims) == len(wanted) and all(
        length in (-1, other) for length, other in zip(dims, wanted, strict=True)
    )


def _grown(size: tuple[int, int], multiple: int) -> Size:
    return Size(size[0] + -size[0] % multiple, size[1] + -size[1] % multiple)


class TritonUpscaler(Upscaler):
    """A model of a Triton server, for frames of 8 bits.

    Where the net wants a multiple, frames are padded with their edge and pictures cut.

    Args:
        spec: of the model.
        server: that has it.
        filter: shader for what is left between the result and the size on screen.
        merge: join luma and chroma here and give "bgra" pictures of a luma net.
        name: on the server; "" = the model's id.
    """

    backend = "triton"

    def __init__(
        self,
        spec: ModelSpec,
        server: Server,
        filter: str = "bicubic",
        *,
        merge: bool = False,
        name: str = "",
    ) -> None:
        self.model = name or spec.id
        self.scale = spec.scale
        self._spec = spec
        self._filter = filter
        self._merge = merge and spec.output == "luma"
        self._runner = Runner(server, self.model, "picture", np.uint8)
        self.device = f"Triton at {server.address}"
        self._size: Size | None = None
        self._frame: Frame | None = None
        self._began_ns = 0

    def warm_up(self, size: Size) -> None:
        """Connect, load the model, share memory, run once.

        Raises:
            TritonAway: the server is not there, or does not answer.
            EngineError: it does not have the model, or not for this size.
        """
        if size != self._size:
            self._size = None
            self._prepare(size)
            self._runner.run()
            self._size = size

    def _prepare(self, size: Size) -> None:
        scale, colours = self.scale, (4,) if self._spec.output == "bgra" else ()
        wide = _grown(size, self._spec.size_multiple)
        large = (1, wide.height * scale, wide.width * scale, *colours)
        self._runner.prepare(Shape((1, wide.height, wide.width, 4), large))
        if size != self._size:
            shape = (size.height * scale, size.width * scale)
            self._merger = ChromaMerger(size, scale)
            bgra = self._merge or self._spec.output == "bgra"
            self._ring = BufferRing.of_shape((*shape, 4) if bgra else shape)

    def submit(self, frame: Frame) -> None:
        """Send a frame; its pixels are copied."""
        if self._frame is not None:
            raise RuntimeError("a frame is in flight; poll it before submitting the next")
        size = frame.size
        self._prepare(size)  # again after a failure
        self._size = size
        given = self._runner.input[0]
        given[: size.height, : size.width] = frame.pixels
        given[size.height :, : size.width] = frame.pixels[-1:]
        given[:, size.width :] = given[:, size.width - 1 : size.width]
        self._began_ns = time.perf_counter_ns()
        self._runner.begin()
        self._frame = frame

    def poll(self, timeout_s: float) -> Picture | None:
        """Wait up to `timeout_s` for the frame in flight and give its picture.

        Raises:
            TritonAway: the server went away, or did not answer in time.
            OverlayError: it failed.
        """
        frame, size = self._frame, self._size
        if frame is None or size is None:
            return None
        try:
            made = self._runner.poll(timeout_s)
        except EngineError as exc:
            self._frame = None
            raise OverlayError(f"{self.model} failed on a frame: {exc}") from exc
        except OverlayError:
            self._frame = None
            raise
        if made is None:
            return None
        self._frame = None
        took_ns = time.perf_counter_ns() - self._began_ns
        lease = self._ring.take()
        whole = made[0, : size.height * self.scale, : size.width * self.scale]
        if self._merge:
            self._merger.merge(frame.pixels, np.ascontiguousarray(whole), lease.buffer)
        else:
            np.copyto(lease.buffer, whole)
        return Picture(
            frame=frame,
            kind="bgra" if self._merge else self._spec.output,
            pixels=lease.buffer,
            scale=self.scale,
            model=self.model,
            backend=self.backend,
            shader=self._filter,
            lease=lease,
            infer_ns=took_ns,
        )

    @property
    def in_flight(self) -> int:
        """1 between `submit` and the `poll` that gives the picture, else 0."""
        return int(self._frame is not None)

    def close(self) -> None:
        """Give up what is in flight, and the connection."""
        self._frame = self._size = None
        self._runner.close()


class TritonNet(nets.Net):
    """The FP32 twin of a model, for `OfflineNet`: tiles, 16 bits, nothing rounded."""

    def __init__(self, spec: ModelSpec, server: Server, name: str) -> None:
        self.spec = spec
        self.runtime = f"FP32 on Triton at {server.address}"
        self._runner = Runner(server, f"{name}{FLOAT}", "planes", np.float32)

    def run(self, rgb: nets.Floats) -> nets.Floats:
        """Run on a picture, see `Net`."""
        height, width = rgb.shape[:2]
        scale, colours = self.spec.scale, 3 if self.spec.output == "bgra" else 1
        wide = _grown((width, height), self.spec.size_multiple)
        large = (1, colours, wide.height * scale, wide.width * scale)
        self._runner.prepare(Shape((1, wide.height, wide.width, 4), large))
        more = ((0, wide.height - height), (0, wide.width - width), (0, 0))
        self._runner.input[0, ..., :3] = np.pad(rgb, more, mode="edge")[..., ::-1]
        self._runner.input[0, ..., 3] = 0
        planes = self._runner.run()[0, :, : height * scale, : width * scale]
        made: nets.Floats = (planes[0] if colours == 1 else planes.transpose(1, 2, 0)).copy()
        return made

    def close(self) -> None:
        """Give up the connection."""
        self._runner.close()


class _Deep(OfflineModel):
    """An `OfflineNet` over the twin, that can be closed."""

    def __init__(self, spec: ModelSpec, server: Server, name: str) -> None:
        self._net = TritonNet(spec, server, name)
        self._model = OfflineNet(name, self._net)
        self.name, self.scale = name, spec.scale

    def upscale(self, picture: Any, **options: Any) -> Any:
        """Upscale in tiles, see `OfflineModel`."""
        return self._model.upscale(picture, **options)

    def close(self) -> None:
        """Give up the connection."""
        self._net.close()


class TritonModel(Model):
    """A model of a server, for several threads: Triton gathers their pictures into batches.

    Args:
        name: of the model, and on the server.
        server: that has it.
        slots: how many pictures may be under way at once.
        tile: of large pictures and those of 16 bits, in source pixels.
        unload: tell the server to unload it at the end.
    """

    def __init__(
        self, name: str, spec: ModelSpec, server: Server, slots: int, tile: int, unload: bool
    ) -> None:
        self.name, self.scale, self.slots = name, spec.scale, slots
        self.device = f"Triton at {server.address}"
        self._spec, self._server, self._unload = spec, server, unload
        self._deep: list[_Deep] = []
        self._lanes = [
            LiveModel(name, spec.scale, self._open_live, self._open_deep, tile)
            for _ in range(slots)
        ]
        self._free: LifoQueue[LiveModel] = LifoQueue()  # the one used last is ready for its size
        for lane in self._lanes:
            self._free.put(lane)
        with Connection(server) as connection:
            connection.make_ready(name)

    def _open_live(self, size: Size) -> Upscaler:
        net = TritonUpscaler(self._spec, self._server, merge=True, name=self.name)
        return warmed_up(net, size)

    def _open_deep(self) -> OfflineModel:
        self._deep.append(_Deep(self._spec, self._server, self.name))
        return self._deep[-1]

    @property
    def bytes(self) -> int:
        """Of the pictures under way; the net itself is in the server."""
        return _IDLE + sum(lane.bytes for lane in self._lanes)

    def upscale(self, picture: RgbPixels, *, seed: int, progress: Progress) -> RgbPixels:
        """Upscale, see `Model`."""
        lane = self._free.get()
        try:
            return lane.upscale(picture, seed=seed, progress=progress)
        finally:
            self._free.put(lane)

    def close(self) -> None:
        """Close the connections."""
        for lane in self._lanes:
            lane.close()
        while self._deep:
            self._deep.pop().close()
        if self._unload:
            self._unload = False
            with Connection(self._server) as connection:
                for name in (self.name, f"{self.name}{FLOAT}"):
                    with suppress(TritonAway, EngineError):
                        connection.ask(connection.client.unload_model, name)


class TritonBackend(Backend):
    """The models of a Triton server that the zoo knows.

    Args:
        server: that has them.
        slots: pictures of a model under way at once: what Triton can gather into a batch.
        tile: of large pictures, in source pixels.
        unload: tell the server to unload what is closed here; only where nobody else uses it.
    """

    name = "triton"

    def __init__(
        self, server: Server, *, slots: int = 2, tile: int = 256, unload: bool = False
    ) -> None:
        if slots < 1 or tile < 1:
            raise SettingsError(f"slots and tile are 1 or more, not {slots} and {tile}")
        self._server, self._slots, self._tile, self._unload = server, slots, tile, unload
        self._lock = threading.Lock()
        self._connection = Connection(server)  # guarded by _lock
        self._offers: tuple[Offer, ...] = ()  # guarded by _lock
        self._until = 0.0  # guarded by _lock; believed until then

    def offers(self) -> tuple[Offer, ...]:
        """List what is in the repository.

        Raises:
            Unavailable: the server was never there.
        """
        with self._lock:
            if time.monotonic() >= self._until:
                try:
                    self._offers = self._asked()
                except TritonAway as exc:
                    if not self._offers:
                        raise Unavailable(str(exc)) from exc
                    log.warning("the list of models may be old: %s", exc)
                self._until = time.monotonic() + _FRESH_S
            return self._offers

    def _asked(self) -> tuple[Offer, ...]:
        index = self._connection.ask(self._connection.client.get_model_repository_index)
        states = {one.name: one for one in index.models}
        names = {name.partition("@")[0] for name in states}
        rows = [row for row in zoo.ZOO if row.id in names]
        return tuple(_offer(row, states.get(row.id)) for row in rows)

    def open(self, model: str) -> Model:
        """Open a model: the server loads it if it has not."""
        spec = zoo.spec(model.partition("@")[0])
        name = model_folder(model)
        return TritonModel(name, spec, self._server, self._slots, self._tile, self._unload)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _offer(row: ModelSpec, told: Any) -> Offer:
    broken = (
        told is not None and told.state == "UNAVAILABLE" and told.reason not in ("", "unloaded")
    )
    reason = "the server could not load it; its log says more" if broken else ""
    return Offer(
        row.id, row.scale, row.licence, row.author, row.notes, not broken, reason, _IDLE,
        denoise=row.blend is not None,
    )  # fmt: skip
