"""Workers on a Ray cluster: where they run, which does what, and what happens when one is lost.

Each machine, or each GPU, gets one, with the model open in it (`cluster_worker`). Calls come from
any thread and wait there for a worker. One that is lost is opened anew while its machine is there,
and what it had goes to another.
"""

from __future__ import annotations

import io
import logging
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engines import load
from engines.errors import EngineError
from overlay.closing import Closing
from overlay.errors import BackendUnavailable, OverlayError, SettingsError
from overlay.files import cluster_worker
from overlay.files.cluster_worker import VideoTask, Worker
from overlay.files.enlarge import Wish
from overlay.files.errors import FileError, WorkersLost

try:
    import ray
    from ray import exceptions
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as missing:
    raise BackendUnavailable(
        f"--ray needs Ray ({missing}): pip install 'sr-overlay[ray]', here and on each machine"
    ) from missing

log = logging.getLogger(__name__)

#: Calls that a worker has at most: one at work, one waiting.
AT_ONCE = 2
#: Times that work is done again after its worker was lost.
_AGAIN = 3
#: Times in a row that opening a worker may fail.
_OPENINGS = 3
#: Time for the first worker to be ready; reading a model may take most of it.
_PATIENCE_S = 180.0
#: Time in which a cluster has to answer: to a connection, and to a question.
_CONNECT_S, _ANSWER_S = 5.0, 22.0
#: Waiting threads look this often whether all is over.
_LOOK_S = 0.5
#: Bytes in which videos are sent.
_PIECE = 1 << 24


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker runs.

    Attributes:
        node: Ray's name of the machine.
        host: the machine's own name.
        cpus, gpus: of Ray's, that the worker takes.
    """

    node: str
    host: str
    cpus: float
    gpus: float


def places_for(nodes: Sequence[dict[str, Any]], on_gpus: bool) -> list[Place]:
    """Say where workers run: one on each GPU, else one on each machine with all its CPUs.

    Args:
        nodes: as `ray.nodes()` gives them.
        on_gpus: the model runs on GPUs; each then gets its share of the machine's CPUs.
    """
    places = []
    for node in nodes:
        about = (node["NodeID"], str(node.get("NodeManagerHostname", node["NodeID"])))
        cpus = int(node["Resources"].get("CPU", 0))
        gpus = int(node["Resources"].get("GPU", 0))
        if not node["Alive"]:
            continue
        if on_gpus:
            places += [Place(*about, cpus // gpus, 1) for _ in range(gpus)]
        elif cpus:
            places.append(Place(*about, cpus, 0))
    return places


def wants_gpus(wish: Wish, there: bool) -> bool:
    """Whether the model is to run on GPUs; the shipped nets do so if they are told to.

    Args:
        there: the cluster has some.
    Raises:
        SettingsError: one of several was named: workers see one each.
    """
    if wish.device.startswith("cuda:"):
        raise SettingsError(f"--device {wish.device} cannot be with --ray: --device cuda")
    if wish.device != "auto":
        return wish.device == "cuda"
    models = cluster_worker.models_for(wish)
    shipped = all(model in _shipped() for model in models)
    return there and not shipped


def _shipped() -> set[str]:
    from engines import zoo

    return {row.id for row in zoo.SHIPPED}


class _Lost(Exception):
    """A worker went away; its work may be done by another."""


class _Ended(Exception):
    """All is over."""


@dataclass(slots=True, eq=False)
class _Slot:
    """A worker's place, and the worker in it.

    All but `sending` and what it guards is guarded by the cluster's condition.

    Attributes:
        place: where.
        actor: Ray's handle of the worker; None until it is ready.
        busy: calls that it has.
        done: calls that it answered.
        gone: why there is none any more, or "".
        sending: held while a video is sent to it.
        holds: keys of videos that it has.
    """

    place: Place
    actor: Any = None
    busy: int = 0
    done: int = 0
    gone: str = ""
    sending: threading.Lock = field(default_factory=threading.Lock)
    holds: set[str] = field(default_factory=set)


class Workers(Closing):
    """The workers of one command.

    Args:
        address: HOST:PORT of the cluster's head, or "auto"; this machine must be part of it.
        wish: how to upscale, the same for all files.
    Raises:
        SettingsError: the address or an option cannot be.
        BackendUnavailable: there is no such cluster, or no worker in it that can be used.
        EngineError: the model cannot be had, here or there.
    """

    def __init__(self, address: str, wish: Wish) -> None:
        self.wish = wish
        self.there = _for_workers(wish)
        models = cluster_worker.models_for(self.there)
        for model in models:
            load.locate(model)  # says what is wrong with it
        self._state = cluster_worker.state(models)
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._slots: list[_Slot] = []
        self._error: Exception | None = None  # of a worker that cannot be used; written once
        self._said: set[str] = set()
        self._stack = ExitStack()
        try:
            self._stack.enter_context(_connected(address))
            self._slots = self._found()
            self._openings = self.pool(len(self._slots))
            for slot in self._slots:
                self._openings.submit(self._open, slot)
            self._wait_for_one()
        except BaseException:
            self.close()
            raise

    def pool(self, size: int) -> ThreadPoolExecutor:
        """Give threads on which `call` may wait; they end when this is closed."""
        pool = ThreadPoolExecutor(size)
        self._stack.callback(pool.shutdown, cancel_futures=True)
        return pool

    @property
    def places(self) -> int:
        """Number of workers, if none is lost."""
        return len(self._slots)

    def close(self) -> None:
        """Stop what is going on and leave the cluster."""
        self._over.set()  # threads look at it, and are waited for
        self._stack.close()
        for slot in self._slots:
            log.info("a worker on %s did %d calls", slot.place.host, slot.done)
        self._slots = []

    # --- workers ---------------------------------------------------------------------------------

    def _found(self) -> list[_Slot]:
        nodes = _nodes()
        on_gpus = wants_gpus(self.wish, any(node["Resources"].get("GPU", 0) for node in nodes))
        places = places_for(nodes, on_gpus)
        if not places:
            what = "GPU: leave out --device" if on_gpus else "CPU"
            raise BackendUnavailable(f"no machine of the cluster has a {what}")
        log.info("%d places for workers on %d machines", len(places), len({p.node for p in places}))
        return [_Slot(place) for place in places]

    def _open(self, slot: _Slot) -> None:
        """Open a worker, and again if that fails; on a thread of its own."""
        why: Exception = WorkersLost("the machine is gone")
        for _ in range(_OPENINGS):
            actor = None
            try:
                if self._over.is_set() or not _is_alive(slot.place):
                    break
                actor = _started(slot.place)
                self._greet(actor)
                with self._changed:
                    slot.actor = actor
                    self._changed.notify_all()
                return
            except _Ended:
                return
            except (OverlayError, EngineError) as exc:
                why = exc
                _kill(actor)
                break
            except (_Lost, exceptions.RayError) as exc:
                why = WorkersLost(str(exc))
                _kill(actor)
            except Exception as exc:  # nobody reads this thread's result: the slot must be told
                why = WorkersLost(f"{type(exc).__name__}: {exc}")
                _kill(actor)
                break
        with self._changed:
            slot.gone = str(why)
            self._error = self._error or why
            self._changed.notify_all()
        if not self._over.is_set():
            log.warning("%s is not used: %s", slot.place.host, why)

    def _greet(self, actor: Any) -> None:
        """See that a worker gives what this machine would, and let it open the model.

        Raises:
            BackendUnavailable: it has other versions or another model.
        """
        theirs = self._answer(actor.state.remote(cluster_worker.models_for(self.there)))
        different = cluster_worker.difference(self._state, theirs)
        if different:
            raise BackendUnavailable(f"{different}: install the same on all machines")
        self._say(self._answer(actor.open.remote(self.there)))

    def _wait_for_one(self) -> None:
        end = time.monotonic() + _PATIENCE_S
        with self._changed:
            while not any(slot.actor for slot in self._slots):
                if all(slot.gone for slot in self._slots):
                    assert self._error is not None
                    if isinstance(self._error, WorkersLost):
                        raise BackendUnavailable(f"no worker can be used: {self._error}")
                    raise self._error
                if time.monotonic() > end:
                    raise BackendUnavailable(
                        f"no worker was ready within {_PATIENCE_S:.0f} s: other work may hold the "
                        "cluster's CPUs or GPUs (see `ray status`)"
                    )
                self._changed.wait(_LOOK_S)

    @contextmanager
    def _taken(self, path: Path, key: str) -> Iterator[tuple[_Slot, Any]]:
        """Lend the worker with the least to do, of equals one that has the video `key`."""
        with self._changed:
            while True:
                if self._over.is_set():
                    raise _Ended
                if all(slot.gone for slot in self._slots):
                    raise WorkersLost(f"{path}: no worker is left: {self._slots[0].gone}")
                free = [slot for slot in self._slots if slot.actor and slot.busy < AT_ONCE]
                if free:
                    break
                self._changed.wait(_LOOK_S)
            slot = min(free, key=lambda slot: (slot.busy, key not in slot.holds))
            slot.busy += 1
            actor = slot.actor
        try:
            yield slot, actor
        finally:
            with self._changed:
                slot.busy -= 1
                self._changed.notify_all()

    def _lose(self, slot: _Slot, actor: Any, why: _Lost) -> None:
        """Open another worker in the place of one that is lost; once, whoever noticed it."""
        with self._changed:
            if slot.actor is not actor:
                return
            slot.actor = None
            slot.holds = set()
        log.warning("a worker on %s is lost: %s", slot.place.host, why)
        _kill(actor)
        with suppress(RuntimeError):  # all is over
            self._openings.submit(self._open, slot)

    def _answer(self, reference: Any) -> Any:
        """Wait for a worker's answer; raises what it raised.

        Raises:
            _Lost: the worker is.
            _Ended: all is over.
        """
        while not self._over.is_set():
            try:
                return ray.get(reference, timeout=_LOOK_S)
            except exceptions.GetTimeoutError:
                continue
            except exceptions.RayTaskError as exc:
                cause = exc.cause
                if isinstance(cause, (OverlayError, EngineError, MemoryError)):
                    raise cause from None
                raise OverlayError(
                    f"a worker failed: unexpected {type(cause).__name__}: {_line(cause)}"
                ) from exc
            except exceptions.RayError as exc:
                raise _Lost(_reason(exc)) from exc
        raise _Ended

    def call(
        self, path: Path, name: str, *arguments: Any, video: tuple[VideoTask, int] | None = None
    ) -> Any:
        """Call a worker's method, another's if it is lost; say what it warned of.

        Args:
            path: of the file that it is about, for messages.
            video: that the worker must have, and its size in bytes.
        Raises:
            WorkersLost: too many were lost with this call.
        """
        for _ in range(1 + _AGAIN):
            with self._taken(path, video[0].key if video else "") as (slot, actor):
                try:
                    if video:
                        self._send(slot, actor, *video)
                    found, texts = self._answer(getattr(actor, name).remote(*arguments))
                except _Lost as lost:
                    self._lose(slot, actor, lost)
                    why = str(lost)
                    continue
                slot.done += 1
            self._say(texts)
            return found
        raise WorkersLost(f"{path}: given up: {1 + _AGAIN} workers were lost with it: {why}")

    def _send(self, slot: _Slot, actor: Any, task: VideoTask, size: int) -> None:
        """Send a video to a worker that has not got it."""
        with slot.sending:
            with self._changed:
                if slot.actor is not actor:
                    raise _Lost("its process ended")
                holds = slot.holds  # another set belongs to the next worker
            if task.key in holds:
                return
            self._answer(actor.begin.remote(task))
            sent = 0
            with task.clip.path.open("rb") as file:
                while data := file.read(_PIECE):
                    self._answer(actor.receive.remote(task.key, data))
                    sent += len(data)
            if sent != size:
                raise FileError(f"{task.clip.path} has changed meanwhile: start again")
            holds.add(task.key)

    def forget(self, key: str) -> None:
        """Let workers drop a video."""
        with self._changed:
            actors = [slot.actor for slot in self._slots if slot.actor and key in slot.holds]
        for actor in actors:
            with suppress(exceptions.RayError):
                actor.forget.remote(key)

    def _say(self, texts: Sequence[str]) -> None:
        """Say what workers warned of, each thing once."""
        with self._changed:
            new = [text for text in dict.fromkeys(texts) if text not in self._said]
            self._said.update(new)
        for text in new:
            log.warning("%s", text)


def _for_workers(wish: Wish) -> Wish:
    """Name a model's file so that it means the same in every folder."""
    if load.is_path(wish.model):
        return replace(wish, model=str(Path(wish.model).expanduser().resolve()))
    return wish


# --- Ray -----------------------------------------------------------------------------------------


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Be part of a cluster; what Ray prints goes to the log, as the output is the command's."""
    _check(address)
    with redirect_stdout(_Sink()):
        try:
            with warnings.catch_warnings(action="ignore"):  # of Ray's own future
                ray.init(address, log_to_driver=False, configure_logging=False)
        except (exceptions.RayError, ConnectionError, RuntimeError, ValueError) as exc:
            raise BackendUnavailable(f"no Ray cluster at {address}: {_line(exc)}") from exc
        try:
            yield
        finally:
            ray.shutdown()


def _check(address: str) -> None:
    """Ask a cluster whether it is there: connecting to none would take minutes.

    Raises:
        SettingsError: the address cannot be.
        BackendUnavailable: there is none.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "status"]
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or "/" in host or not (port.isascii() and port.isdigit()):
            raise SettingsError(
                f"--ray {address}: HOST:PORT of the cluster's head (6379 unless it was said), or "
                "auto, on a machine of the cluster (`ray start --address=HOST:PORT` makes it one)"
            )
        try:
            socket.create_connection((host, int(port)), _CONNECT_S).close()
        except (OSError, OverflowError) as exc:
            raise BackendUnavailable(f"no Ray cluster at {address}: {_line(exc)}") from exc
        command += ["--address", address]
    try:
        asked = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ANSWER_S,
            errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired as exc:
        raise BackendUnavailable(
            f"no Ray cluster at {address}: what is there did not answer in {_ANSWER_S:.0f} s"
        ) from exc
    if asked.returncode:
        said = (asked.stderr.strip().splitlines() or ["`ray status` failed"])[-1][:300]
        raise BackendUnavailable(f"no Ray cluster at {address}: {said}")


class _Sink(io.TextIOBase):
    """Takes what Ray prints about its machines; that one is lost is said by us."""

    def write(self, text: str) -> int:
        if text.strip():
            log.debug("ray: %s", text.strip().splitlines()[0][:300])
        return len(text)


def _started(place: Place) -> Any:
    options: Any = {
        "num_cpus": place.cpus,
        "num_gpus": place.gpus,
        "max_restarts": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(place.node, soft=False),
    }
    return ray.remote(Worker).options(**options).remote()


def _kill(actor: Any) -> None:
    if actor is not None:
        with suppress(exceptions.RayError, ValueError):
            ray.kill(actor)


def _nodes() -> list[dict[str, Any]]:
    listed: Callable[[], list[dict[str, Any]]] = ray.nodes
    return listed()


def _is_alive(place: Place) -> bool:
    return any(node["NodeID"] == place.node and node["Alive"] for node in _nodes())


def _reason(error: BaseException) -> str:
    """Say in a few words why a worker is lost: Ray takes many."""
    text = str(error)
    if "ModuleNotFoundError" in text:
        return "sr-overlay is not installed for the Python with which Ray runs there"
    if isinstance(error, exceptions.OutOfMemoryError) or "due to the node running low" in text:
        return "there is too little memory there"
    if "node has died" in text or isinstance(error, exceptions.ActorUnschedulableError):
        return "its machine is gone"
    if isinstance(error, exceptions.ActorUnavailableError):
        return "it cannot be reached"
    return "its process ended" if "actor is dead" in text.lower() else _line(error)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
