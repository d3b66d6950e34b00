"""What was made on the device and must be freed, the last first."""

from __future__ import annotations

import logging
from collections.abc import Callable

from overlay.cuda import CudaError, Made

log = logging.getLogger(__name__)


class Releases:
    """How to free each thing; keeps what it knows alive, so that no address is used twice."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Made, Callable[[], object]]] = {}  # in the order of making

    def add(self, made: Made, release: Callable[[], object]) -> None:
        """Remember how to free a thing; `release` may raise CudaError."""
        self._known[id(made)] = (made, release)

    def __contains__(self, made: Made) -> bool:
        """Whether a thing is known and not yet freed."""
        return id(made) in self._known

    def take(self, made: Made) -> Callable[[], object]:
        """Forget a thing; gives how to free it.

        Raises:
            ValueError: it is unknown, or was taken before.
        """
        try:
            return self._known.pop(id(made))[1]
        except KeyError:
            raise ValueError(f"{describe(made)} is not of this device, or was freed") from None

    def free(self, *made: Made) -> None:
        """Free these, the last first; what fails is logged."""
        for one in reversed(made):
            release = self.take(one)
            try:
                release()
            except CudaError as exc:
                log.warning("CUDA could not free %s: %s", describe(one), exc)

    def free_all(self) -> None:
        """Free everything, the last first; what fails is logged."""
        while self._known:
            self.free(next(reversed(self._known.values()))[0])


def describe(made: Made) -> str:
    """Say what a thing is: "Stream copy", "host memory of 4096 bytes"."""
    name = getattr(made, "name", None)
    if name is not None:
        return f"{type(made).__name__} {name}"
    if hasattr(made, "nbytes"):
        return f"host memory of {made.nbytes} bytes"
    return f"OpenGL buffer {made.buffer}"  # type: ignore[union-attr]
