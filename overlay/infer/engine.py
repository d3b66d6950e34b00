"""What the upscalers for OpenVINO and ONNX Runtime share."""

from __future__ import annotations

import os

from engines.errors import EngineMismatch
from engines.spec import Engine
from overlay.frame import Size


def available_threads() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_text(threads: int) -> str:
    """Give a number of threads for people: "2 threads"."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


def check_size(engine: Engine, size: Size) -> None:
    """Check that an engine takes frames of `size`.

    Raises:
        EngineMismatch: it does not.
    """
    if size not in engine.sizes:
        takes = ", ".join(f"{width}x{height}" for width, height in engine.sizes)
        raise EngineMismatch(
            f"the engine of {engine.model} was built for {takes}, and the frames are {size}: "
            f"build one for {size}"
        )
