"""Where a picture lands on a surface: pure integer arithmetic, no drawing.

Regions are in surface pixels, origin at the top left corner of the surface; with "fill" they
reach over its edges.
"""

from __future__ import annotations

from overlay.frame import Region, Size
from overlay.present import Fit


def _share(length: int, part: int, whole: int) -> int:
    """Give length * part / whole, rounded half up, at least 1."""
    return max(1, (2 * length * part + whole) // (2 * whole))


def place(source: Size, surface: Size, fit: Fit) -> Region:
    """Place a picture of the source's aspect on a surface, centred.

    Args:
        source: size of the game's picture in pixels, at least 1x1.
        surface: size of the surface in pixels, at least 1x1.
        fit: "fit" = as large as fits with the aspect kept; "integer" = the largest whole multiple
            of the source that fits (as "fit" if not even the source itself does); "fill" = covers
            the surface with the aspect kept, cut at the edges; "stretch" = the surface.
    """
    if min(*source, *surface) < 1:
        raise ValueError(f"cannot place {source} on {surface}: a side is not positive")
    if fit == "stretch":
        return Region(0, 0, surface.width, surface.height)
    multiple = min(surface.width // source.width, surface.height // source.height)
    if fit == "integer" and multiple >= 1:
        width, height = source.width * multiple, source.height * multiple
    elif (source.width * surface.height >= source.height * surface.width) == (fit != "fill"):
        # the full width decides: a wide source inside, or a tall one that covers
        width, height = surface.width, _share(source.height, surface.width, source.width)
    else:
        width, height = _share(source.width, surface.height, source.height), surface.height
    return Region((surface.width - width) // 2, (surface.height - height) // 2, width, height)


def surface_from_source(placed: Region, source: Size, x: float, y: float) -> tuple[float, float]:
    """Map a point of the source to the surface; pixel (i, j) covers [i, i+1) x [j, j+1)."""
    return (
        placed.left + x * placed.width / source.width,
        placed.top + y * placed.height / source.height,
    )


def source_from_surface(placed: Region, source: Size, x: float, y: float) -> tuple[float, float]:
    """Map a point of the surface to the source: the inverse of `surface_from_source`."""
    return (
        (x - placed.left) * source.width / placed.width,
        (y - placed.top) * source.height / placed.height,
    )
