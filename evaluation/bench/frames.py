"""The frames that a benchmark feeds to every upscaler, made before anything is timed."""

from __future__ import annotations

import time

import cv2
import numpy as np

from overlay.capture import open_source
from overlay.errors import SettingsError, SourceClosed
from overlay.frame import Frame, Pixels, Region, Size

#: Different frames per size, gone through again and again.
COUNT = 8


def pictures(source: str, count: int = COUNT) -> list[Pixels]:
    """Read the first frames of a replay.

    Args:
        source: "pattern", or "replay:PATH" with a folder of images or a video.
    Returns:
        1 to `count` pictures, uint8 BGRA, (H, W, 4), of any sizes.
    Raises:
        SettingsError: `source` is something else.
        CaptureError: nothing can be read there.
    """
    kind, _, path = source.partition(":")
    if source == "pattern":
        path = "pattern"
    elif kind != "replay" or not path:
        raise SettingsError(f"--source: expected pattern or replay:PATH, not {source!r}")
    found: list[Pixels] = []
    with open_source("replay", path=path, rate_hz=None, loop=False) as replay:
        while len(found) < count:
            try:
                frame = replay.grab(1.0)
            except SourceClosed:
                break
            if frame is not None:
                found.append(frame.pixels.copy())
    if not found:
        raise SettingsError(f"--source: {source} has no frames")
    return found


def fitted(picture: Pixels, size: Size) -> Pixels:
    """Cut the middle out of a picture; one that is too small is enlarged first.

    Args:
        picture: uint8 BGRA, (H, W, 4); not modified.
    Returns:
        uint8 BGRA, (size.height, size.width, 4), contiguous, a new array.
    """
    height, width = picture.shape[:2]
    factor = max(1.0, size.width / width, size.height / height)
    if factor > 1:
        width, height = round(width * factor), round(height * factor)
        width, height = max(width, size.width), max(height, size.height)
        enlarged = np.empty((height, width, 4), np.uint8)
        cv2.resize(picture, (width, height), enlarged, interpolation=cv2.INTER_LINEAR)
        picture = enlarged
    left, top = (width - size.width) // 2, (height - size.height) // 2
    return np.array(picture[top : top + size.height, left : left + size.width], order="C")


def frames(found: list[Pixels], size: Size) -> list[Frame]:
    """Make frames of one size from the pictures of `pictures`."""
    now = time.perf_counter_ns()
    region = Region(0, 0, size.width, size.height)
    return [
        Frame(fitted(picture, size), index, now, now, region) for index, picture in enumerate(found)
    ]
