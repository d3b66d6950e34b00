"""Source and result beside each other, with figures if there is a reference."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from overlay.compare import measure
from overlay.compare.measure import Crop, Enlarge, Figures
from overlay.compare.page import Page
from overlay.compare.pairs import Pair
from overlay.errors import OverlayError

#: Larger results are compared in parts of this width and height, in pixels.
PART = (3840, 2160)
#: References with more pixels are not decoded.
MAX_PIXELS = 7680 * 4320
#: So many are compared at once, as each holds several pictures in memory.
_room = threading.BoundedSemaphore(2)


class NotCompared(Exception):
    """It cannot be shown or measured; the text says why."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is shown.

    Attributes:
        html: a page of its own.
        source, result: how far they are from the reference; None without one.
    """

    html: str
    source: Figures | None
    result: Figures | None


def compare(
    source: bytes,
    result: bytes,
    reference: bytes | None = None,
    enlarge: Enlarge = "bicubic",
    crop: Crop | None = None,
) -> Comparison:
    """Make the page and the figures.

    Args:
        source, result, reference: files.
        enlarge: how the source is brought to the result's size.
        crop: only this part, (left, top, width, height) in pixels of the largest.
    Raises:
        NotCompared: one of them cannot be read, or they do not belong together.
    """
    pictures = {"source": source, "result": result}
    if reference is not None:
        _check_reference(reference)
        pictures["reference"] = reference
    with _room, kept(pictures) as folder:
        pair = Pair("result", tuple(folder / name for name in pictures), tuple(pictures))
        try:
            found = measure.compare(pair, enlarge, crop)
        except OverlayError as exc:
            raise NotCompared(without_folder(str(exc), folder)) from exc
        except MemoryError as exc:
            raise NotCompared("there is too little memory to compare them") from exc
        page = Page("Source and result")
        page.add(found)
        if page.left_out:
            raise NotCompared("they are too large to be shown here")
        html = page.html([], []).decode()
    if reference is None:
        return Comparison(html, None, None)
    return Comparison(html, found.figures[0, 2], found.figures[1, 2])


def _check_reference(data: bytes) -> None:
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Exception as exc:  # decoders of hostile files raise whatever they run into
        raise NotCompared("the reference is no picture that can be read") from exc
    if width * height > MAX_PIXELS:
        raise NotCompared(f"the reference is {width}x{height}: more than 7680x4320 is not read")


def part_of(size: tuple[int, int], across: float, down: float) -> Crop | None:
    """Choose a part of a large picture.

    Args:
        size: (width, height) in pixels.
        across, down: where it lies, 0 to 1.
    Returns:
        None where all of it can be shown.
    """
    width, height = min(size[0], PART[0]), min(size[1], PART[1])
    if (width, height) == size:
        return None
    left, top = round((size[0] - width) * across), round((size[1] - height) * down)
    return left, top, width, height


# --- files ---------------------------------------------------------------------------------------


@contextmanager
def kept(contents: dict[str, bytes]) -> Iterator[Path]:
    """Write files into a folder that goes away; for what reads from paths only.

    Args:
        contents: by file name; never a name that a client chose.
    """
    with TemporaryDirectory(prefix="overlay-") as name:
        folder = Path(name)
        for file, data in contents.items():
            (folder / file).write_bytes(data)
        yield folder


def without_folder(text: str, folder: Path) -> str:
    """Take the folder out of a message."""
    return text.replace(f"{folder}/", "").replace(f"{folder}\\", "")
