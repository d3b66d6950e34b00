"""The trace: one row per captured frame, stamped at every arrow of the frame path.

Rows live in a ring of preallocated columns; a writer thread turns finished rows into CSV.
All times are `time.perf_counter_ns`.

`recorder` holds the ring and the fake, `NullTrace`; `csvfile` writes and reads files, `flight`
saves the last seconds on demand; `table`, `summary`, `convert` and `plot` work on what was
recorded, and `cli` is their command line. docs/trace.md defines every column and figure.
"""

from __future__ import annotations

from abc import abstractmethod
from enum import IntEnum

from overlay.closing import Closing
from overlay.frame import Frame, Picture, Size


class Stage(IntEnum):
    """The stamps of a row, in frame order."""

    READY = 0  # the source said that new content was there
    CAPTURED = 1  # its pixels are in host memory
    SUBMITTED = 2  # the upscaler began
    INFERRED = 3  # the upscaler's result is there
    PRESENTING = 4  # the presenter took it up
    UPLOADED = 5  # its pixels are with the GL
    DRAWN = 6  # drawing was issued
    PRESENTED = 7  # the swap returned


class GpuPart(IntEnum):
    """A frame's work on the GPU, in frame order."""

    UPLOAD = 0  # CUDA: the frame to the device
    INFER = 1  # CUDA
    DOWNLOAD = 2  # CUDA: the result to the host; none where OpenGL takes it from the device
    DRAW = 3  # OpenGL: upload and drawing, of an earlier frame


class Outcome(IntEnum):
    """What became of a captured frame; each ends as exactly one of the last four."""

    PENDING = 0
    PRESENTED = 1
    DUPLICATE = 2  # damage was reported, but no pixel changed
    SUPERSEDED = 3  # a newer frame took its place in a slot
    FAILED = 4  # a stage gave up on it


class Trace(Closing):
    """Where the stages write their stamps. Any method may be called on any thread."""

    @abstractmethod
    def begin(self, frame: Frame) -> int:
        """Open the row of a captured frame (READY and CAPTURED are taken from it).

        Returns:
            The row's id: 0, 1, 2, … in order of capture.
        """

    @abstractmethod
    def stamp(self, row: int, stage: Stage, at_ns: int) -> None:
        """Write one time stamp. Rows that left the ring are ignored."""

    @abstractmethod
    def describe(
        self,
        row: int,
        picture: Picture,
        output: Size,
        gpu_ns: int = 0,
        gpu_start_ns: int = 0,
        gpu_error_ns: int = 0,
    ) -> None:
        """Note what made the picture of this row, when, and its size on screen.

        Args:
            gpu_ns, gpu_start_ns, gpu_error_ns: of an earlier drawing, as in `Shown`.
        """

    @abstractmethod
    def end(self, row: int, outcome: Outcome, reason: str = "") -> None:
        """Close the row; `reason` says in a word which stage dropped it and why."""

    @abstractmethod
    def close(self) -> None:
        """Write what is not written yet; rows still pending end as FAILED; idempotent."""
