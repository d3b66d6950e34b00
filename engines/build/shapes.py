"""The shapes of what goes into an engine and comes out of it."""

from __future__ import annotations

from engines.spec import Output, Size


def shapes(size: Size, scale: int, output: Output) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Give the shapes of `bgra` and `picture`, as `engines.build.Request` says.

    Args:
        size: (width, height) of the source in pixels.
        scale, output: as in `ModelSpec`.
    """
    width, height = size
    plane = (1, height * scale, width * scale)
    return (1, height, width, 4), (*plane, 4) if output == "bgra" else plane
