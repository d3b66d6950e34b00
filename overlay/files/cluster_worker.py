"""What runs on the machines of a cluster: pictures and segments of videos, bytes in, bytes out.

It needs no file that the command reads or writes, and knows nothing of Ray. The libraries for
pictures and videos are loaded by the method that needs them.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from engines import load, zoo
from engines.errors import EngineError
from overlay import __version__
from overlay.errors import OverlayError
from overlay.files.errors import FileError

if TYPE_CHECKING:
    from overlay.files.enlarge import Wish
    from overlay.files.video_encode import Coding
    from overlay.files.video_models import Enlarger
    from overlay.files.video_segments import Segment
    from overlay.files.video_source import Clip

#: Packages on which results depend.
_DECIDE = ("av", "numpy", "onnxruntime", "opencv-python", "openvino", "pillow", "torch")
#: Here an open file has a path, also after its name was taken away (Linux).
_OPEN_FILES = Path("/proc/self/fd")


@dataclass(frozen=True, slots=True)
class VideoTask:
    """A video of which segments are to be made.

    Attributes:
        key: what it is called between command and workers.
        clip: what it is; its path is the command's.
        coding, wish: how its segments are made.
    """

    key: str
    clip: Clip
    coding: Coding
    wish: Wish


def state(models: Sequence[str]) -> dict[str, str]:
    """Tell what decides results here.

    Args:
        models: as `load.locate` takes them.
    Returns:
        Versions and digests by what they are of; what is not here is left out, but for a model,
        which has the reason instead.
    """
    found = {"sr-overlay": __version__}
    for package in _DECIDE:
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            continue
    for model in models:
        try:
            found[f"the model {model}"] = load.locate(model).sha256
        except EngineError as exc:
            found[f"the model {model}"] = str(exc)
    return found


def difference(ours: dict[str, str], theirs: dict[str, str]) -> str:
    """Say in which of what both have they differ; "" = in nothing."""
    return "; ".join(
        f"{what} is {theirs[what]} there and {ours[what]} here"
        for what in ours
        if what in theirs and ours[what] != theirs[what]
    )


def models_for(wish: Wish) -> list[str]:
    """Name the models that may be needed, for whatever pictures.

    Raises:
        UnknownModel: a denoising strength is wanted of a model that takes none.
    """
    from overlay.files.enlarge import DEFAULT, model_name

    if wish.model == DEFAULT and wish.denoise is None:
        return [row.id for row in zoo.SHIPPED]
    return [model_name(wish, (1, 1))]


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Gather what is warned of meanwhile: the command says it."""
    texts: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    ear = Ear(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("overlay", "engines")]
    for logger in loggers:
        logger.addHandler(ear)
    try:
        yield texts
    finally:
        for logger in loggers:
            logger.removeHandler(ear)


class Worker:
    """Upscales for a command elsewhere; its methods are called one at a time.

    What they raise are OverlayError, EngineError and MemoryError; what they warn of is given
    beside the result.
    """

    def __init__(self) -> None:
        self._videos: dict[str, _Video] = {}
        self._enlarger: Enlarger | None = None
        self._key = ""  # of the video it is for

    def state(self, models: Sequence[str]) -> dict[str, str]:
        """Tell what decides results here, see `state`."""
        return state(models)

    def open(self, wish: Wish) -> list[str]:
        """Open the model once, so that what is wrong with it is said before any file is done."""
        from overlay.files.enlarge import open_model

        with _heard() as warnings:
            open_model(wish, (1, 1))
        return warnings

    def scale(self, wish: Wish, size: tuple[int, int]) -> tuple[int, list[str]]:
        """Tell the scale of the model for a picture of `size`, (width, height)."""
        from overlay.files.enlarge import open_model

        with _heard() as warnings:
            return open_model(wish, size).scale, warnings

    def picture(
        self, data: bytes, source: str, target: str, wish: Wish, quality: int
    ) -> tuple[bytes, list[str]]:
        """Upscale a picture.

        Args:
            data: content of the file.
            source, target: paths, for messages; the target's ending tells the format.
            quality: see `images.write`.
        Returns:
            The content of the result.
        """
        from overlay.files import images
        from overlay.files.enlarge import enlarged

        with _heard() as warnings:
            picture = images.decoded(data, Path(source))
            large = enlarged(picture, Path(target), wish)
            return images.encoded(large, Path(target), quality), warnings

    # --- videos ----------------------------------------------------------------------------------

    def begin(self, task: VideoTask) -> None:
        """Take a video, whose content follows by `receive`."""
        self.forget(task.key)
        try:
            self._videos[task.key] = _Video(task)
        except OSError as exc:
            raise _no_room(task, exc) from exc

    def receive(self, key: str, data: bytes) -> None:
        """Take the next piece of a video's content."""
        video = self._videos[key]
        try:
            video.file.write(data)
            video.file.flush()
        except OSError as exc:
            self.forget(key)
            raise _no_room(video.task, exc) from exc

    def segment(self, key: str, number: int) -> tuple[Segment, list[str]]:
        """Make one segment of a video that was received."""
        from overlay.files.video_segments import cuts_of, made

        video = self._videos[key]
        clip = replace(video.task.clip, path=video.path)
        with _heard() as warnings:
            try:
                enlarger = self._enlarger_for(key)
                cuts = cuts_of(clip, video.task.coding.length)
                (segment,) = made(clip, cuts, [number], enlarger, video.task.coding)
            except (OverlayError, EngineError) as exc:
                raise type(exc)(video.named(str(exc))) from exc
        return segment, [video.named(text) for text in warnings]

    def _enlarger_for(self, key: str) -> Enlarger:
        from overlay.files.video_models import open_enlarger

        if self._enlarger is None or self._key != key:
            self._close()
            task = self._videos[key].task
            self._enlarger = open_enlarger(task.clip, task.wish, task.coding.size)
            self._key = key
        return self._enlarger

    def _close(self) -> None:
        if self._enlarger is not None:
            self._enlarger.close()
        self._enlarger, self._key = None, ""

    def forget(self, key: str) -> None:
        """Drop a video's copy, if it is here."""
        if self._key == key:
            self._close()
        video = self._videos.pop(key, None)
        if video is not None:
            video.close()


def _no_room(task: VideoTask, error: OSError) -> FileError:
    return FileError(
        f"{task.clip.path}: a worker cannot keep a copy of it in {tempfile.gettempdir()}: "
        f"{error.strerror or error}; set TMPDIR for `ray start` there"
    )


class _Video:
    """A copy of a video; where the system can, it has no name, so that nothing of it can stay.

    Args:
        task: what is to be made of it.
    Raises:
        OSError: there is no place for it.
    """

    def __init__(self, task: VideoTask) -> None:
        self.task = task
        number, name = tempfile.mkstemp(prefix="overlay-")
        self.file: IO[Any] = os.fdopen(number, "wb")
        self._name = self.path = Path(name)
        if _OPEN_FILES.is_dir():
            self.path = _OPEN_FILES / str(number)
            self._name.unlink()

    def named(self, text: str) -> str:
        """Say the video's own path where the copy's is."""
        return text.replace(str(self.path), str(self.task.clip.path))

    def close(self) -> None:
        """Take it away."""
        with suppress(OSError):  # a full disk, which was said
            self.file.close()
        self._name.unlink(missing_ok=True)
