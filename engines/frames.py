"""Game frames to check and calibrate engines with: shipped ones, or a folder of the user's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from importlib.resources import as_file, files
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.errors import ModelInvalid
from engines.spec import Size

Pixels = NDArray[np.uint8]

#: Pictures with more pixels than this are refused, frames and files.
MAX_PIXELS = 8192 * 8192
_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
#: So many of a folder's pictures are taken, evenly spread over it.
_MOST = 64


@cache
def shipped_folder() -> Path:
    """The folder of the shipped frames: six of Freedoom, 480x270."""
    with as_file(files("engines") / "samples") as folder:
        return folder


def read(size: Size, folder: Path | None = None, most: int = _MOST) -> list[Pixels]:
    """Read frames and bring them to one size.

    Args:
        size: of the frames given, (width, height). A larger picture is cut in its middle, a
            smaller one is enlarged first.
        folder: of pictures; the shipped ones if None.
        most: no more frames than this, the first ones.
    Returns:
        uint8 BGRA (height, width, 4), alpha 255, in the order of the files' names.
    Raises:
        ModelInvalid: the folder cannot be read or holds no picture.
    """
    pictures = islice(_pictures(folder or shipped_folder()), most)
    found = [_fitted(picture, size) for picture in pictures]
    if not found:
        kinds = ", ".join(sorted(_ENDINGS))
        raise ModelInvalid(f"{folder} holds no picture that can be read ({kinds})")
    return found


def _pictures(folder: Path) -> Iterator[Pixels]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)
    except OSError as exc:
        raise ModelInvalid(f"cannot read the frames in {folder}: {exc.strerror}") from exc
    step = max(1, len(paths) // _MOST)
    for path in paths[::step][:_MOST]:
        picture = _picture(path)
        if picture is not None:
            yield picture


def _picture(path: Path) -> Pixels | None:
    """Read a picture as BGRA; None if it is none, or absurdly large."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, cv2.error):  # OpenCV refuses more than 2^30 pixels before it allocates
        return None
    if picture is None or picture.shape[0] * picture.shape[1] > MAX_PIXELS:
        return None
    return cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA).astype(np.uint8, copy=False)


def _fitted(picture: Pixels, size: Size) -> Pixels:
    width, height = size
    factor = max(width / picture.shape[1], height / picture.shape[0])
    if factor > 1:
        cut = _middle(picture, math.ceil(width / factor), math.ceil(height / factor))
        picture = cv2.resize(cut, size, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    return np.ascontiguousarray(_middle(picture, width, height))


def _middle(picture: Pixels, width: int, height: int) -> Pixels:
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]
