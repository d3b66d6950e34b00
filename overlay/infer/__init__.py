"""Inference: the second stage of the frame path.

An `Upscaler` turns frames into pictures. Engines run on the infer thread; shader upscalers
only name the program that the presenter runs, so they cost no thread hop (`inline`). Back ends
are one module each, imported only by `open_upscaler`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from overlay.frame import Frame, Picture, Size

#: Upscalers that run as shaders in the presenter (`default` nets are in `engines.zoo`).
#: `bicubic` is Catmull-Rom; `nearest` is exact integer steps, then box-filtered for the rest.
SHADERS = ("nearest", "bilinear", "bicubic", "mitchell", "lanczos", "fsr1")


class Upscaler(ABC):
    """Frames in, pictures out, asynchronously.

    All methods are called on one thread (the infer thread; the capture thread if `inline`).
    """

    #: The back end's name on the command line, "openvino" say.
    backend: str
    #: The model's id, "default-x2" say, or the shader's name.
    model: str
    #: Output size / input size; 1 where the presenter scales.
    scale: int
    #: What it runs on, for people: "CPU, 2 threads".
    device: str
    #: How many frames may be submitted and not yet polled.
    slots: int = 1
    #: Whether `submit` + `poll(0)` take no time, so that no thread of its own is needed.
    inline: bool = False

    @abstractmethod
    def warm_up(self, size: Size) -> None:
        """Get ready for frames of `size` (compile, allocate, run once).

        Raises:
            EngineError: the model cannot run at this size; the message says why.
        """

    @abstractmethod
    def submit(self, frame: Frame) -> None:
        """Start on `frame` and return at once; a new size warms up first.

        At most `slots` frames may be in flight; one more is a caller's mistake (RuntimeError).
        """

    @abstractmethod
    def poll(self, timeout_s: float) -> Picture | None:
        """Give the oldest finished picture, waiting up to `timeout_s`; None if there is none.

        The picture's buffer returns to the upscaler when the picture is no longer referenced.

        Raises:
            OverlayError: the inference failed; the frame it belonged to is given up.
        """

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """How many frames were submitted and not yet given back by `poll`."""

    def close(self) -> None:  # noqa: B027 - most back ends have something to free, not all
        """Free everything; idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
