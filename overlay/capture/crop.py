"""Where a window's client area is within a picture of the whole window."""

from __future__ import annotations

from overlay.frame import Region, Size


def client_box(outer: Region, inner: Region, captured: Size) -> Region | None:
    """Find the client area in a captured picture of a window with its frame.

    Args:
        outer: the window with its frame but without its shadow, desktop coordinates.
        inner: the client area, desktop coordinates.
        captured: size of the picture, whose top left corner is that of `outer`. It is older
            than the regions while the window is being resized.
    Returns:
        What to cut out, relative to the picture and always within it; None if the client area
        is empty or not in the picture.
    """
    left = max(0, inner.left - outer.left)
    top = max(0, inner.top - outer.top)
    right = min(captured.width, inner.left - outer.left + inner.width)
    bottom = min(captured.height, inner.top - outer.top + inner.height)
    if right <= left or bottom <= top:
        return None
    return Region(left, top, right - left, bottom - top)
