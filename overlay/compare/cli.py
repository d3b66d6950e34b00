"""`overlay compare`: figures of two pictures, or folders of them, and a picture or page to see."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from overlay.cli import add_json
from overlay.compare import pairs
from overlay.compare.pairs import Pair
from overlay.compare.report import Report
from overlay.errors import OverlayError, SettingsError, TraceError
from overlay.files.batch import Summary
from overlay.files.cli import ProgressLine
from overlay.files.errors import FileError
from overlay.trace.atomic import write_atomically
from overlay.trace.csvfile import is_same_file

if TYPE_CHECKING:
    from overlay.compare.measure import Comparison, Crop
    from overlay.compare.page import Page

_PAGES = (".html", ".htm")
_MODES = ("side", "wipe", "difference")
_EXAMPLES = """\
examples:
  overlay compare small.png large.png
  overlay compare a.png b.png --reference truth.png -o page.html
  overlay compare a.png b.png -o wipe.png --mode wipe --crop 200,100,160,90 --zoom 4
  overlay compare results/one results/two --reference truth -o all.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `overlay compare`."""
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("a", type=Path, metavar="A", help="a picture, or a folder of pictures")
    add("b", type=Path, metavar="B", help="another; of folders, files of one name belong together")
    add("--reference", type=Path, metavar="R", help="the truth: A and B are measured against it")
    add("-o", "--out", type=Path, metavar="OUT", help="a .png, or an .html page to look at them")
    add("--mode", choices=_MODES, help="what a PNG shows (default: side, beside each other)")
    add(
        "--enlarge", choices=("nearest", "bicubic"), default="nearest",
        help="how smaller pictures are brought to the size of the largest (default: nearest)",
    )  # fmt: skip
    add("--crop", type=_crop, metavar="X,Y,W,H", help="only this part, in pixels of the largest")
    add("--zoom", type=_whole(1, 32), metavar="N", help="enlarge every pixel of a PNG (default 1)")
    add("--at", type=_whole(0, 100), metavar="PERCENT", help="the line of a wipe (default 50)")
    add(
        "--levels", type=_whole(1, 255), default=0, metavar="N",
        help="end of the heat maps' scale, in levels of 255 (default: by the pictures)",
    )  # fmt: skip
    add("--overwrite", action="store_true", help="replace OUT if it is there")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare; 1 if a pair failed, a file has no partner or a page no room."""
    import_module("overlay.files.images")  # first, as it says how to install Pillow
    sources = [arguments.a, arguments.b]
    if arguments.reference is not None:
        sources.append(arguments.reference)
    out: Path | None = arguments.out
    _check_options(arguments)
    found, alone = pairs.find(sources)
    if out is not None:
        _check_out(out, arguments, found)
    report = Report(alone)
    page = _page(out, found)
    line = ProgressLine(len(found))
    try:
        for pair in found:
            _do(pair, arguments, page, report)
            line.after(Summary())
    finally:
        line.end()
    if page is not None and out is not None:
        _save_page(out, page, report)
    sys.stdout.write(report.json(out) if arguments.json else report.text())
    problems = report.problems()
    for text in problems:
        sys.stderr.write(f"overlay: {text}\n")
    return 1 if problems else 0


# --- options -------------------------------------------------------------------------------------


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse options that would do nothing."""
    out: Path | None = arguments.out
    ending = "" if out is None else out.suffix.lower()
    if out is not None and ending not in (".png", *_PAGES):
        raise SettingsError(f"--out must end in .png or .html, not {out.name!r}")
    given = [name for name in ("mode", "zoom", "at") if getattr(arguments, name) is not None]
    if given and ending != ".png":
        raise SettingsError(f"--{given[0]} is for a picture: --out with .png")
    if arguments.at is not None and arguments.mode != "wipe":
        raise SettingsError("--at is for --mode wipe")
    if arguments.levels and (out is None or arguments.mode in ("side", "wipe")):
        raise SettingsError("--levels is for heat maps: --mode difference, or a page")


def _check_out(out: Path, arguments: argparse.Namespace, found: list[Pair]) -> None:
    """Say before the work is done why the result cannot be written."""
    if arguments.a.is_dir() and out.suffix.lower() not in _PAGES:
        raise SettingsError(f"of folders there is a page: an --out with .html, not {out.name!r}")
    if out.exists():
        if any(is_same_file(out, path) for pair in found for path in pair.paths):
            raise FileError(f"{out} is one of the pictures: name another --out")
        if not arguments.overwrite or out.is_dir():
            raise FileError(f"{out} is there already: --overwrite, or name another --out")


def _crop(text: str) -> Crop:
    parts = [int(part) for part in text.split(",") if part.isascii() and part.isdigit()]
    if len(text) > 40 or text.count(",") != 3 or len(parts) != 4 or not min(parts[2:]):
        raise argparse.ArgumentTypeError(f"{text!r} is no part such as 100,50,64,64")
    return parts[0], parts[1], parts[2], parts[3]


def _whole(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text[:9]) <= most):
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} to {most}")
        return int(text)

    return number


# --- the work ------------------------------------------------------------------------------------


def _page(out: Path | None, found: list[Pair]) -> Page | None:
    if out is None or out.suffix.lower() not in _PAGES:
        return None
    from overlay.compare.page import Page

    return Page(found[0].name if len(found) == 1 else f"{len(found)} pairs")


def _do(pair: Pair, arguments: argparse.Namespace, page: Page | None, report: Report) -> None:
    """Compare one pair; of several, what fails does not stop the others."""
    from overlay.compare import measure

    alone = not arguments.a.is_dir()
    try:
        found = measure.compare(pair, arguments.enlarge, arguments.crop, arguments.levels)
        if page is not None:
            page.add(found)
        elif arguments.out is not None:
            _save_picture(found, arguments)
    except OverlayError as exc:
        if alone:
            raise
        report.failed.append((pair.name, str(exc)))
    except MemoryError as exc:
        if alone:
            raise FileError(f"{pair.name}: too little memory to compare it") from exc
        report.failed.append((pair.name, f"{pair.name}: too little memory"))
    else:
        report.add(pair, found)


def _save_picture(found: Comparison, arguments: argparse.Namespace) -> None:
    from overlay.compare import sheet
    from overlay.files.images import Picture, write

    zoom = arguments.zoom or 1
    if arguments.mode == "wipe":
        at = 50 if arguments.at is None else arguments.at
        pixels = sheet.wipe(found, zoom, at / 100)
    elif arguments.mode == "difference":
        pixels = sheet.differences(found, zoom)
    else:
        pixels = sheet.side_by_side(found, zoom)
    _make_folder(arguments.out)
    write(Picture(pixels), arguments.out, 95)


def _save_page(out: Path, page: Page, report: Report) -> None:
    if not report.compared:
        return
    if len(page.left_out) == len(report.compared):
        raise FileError(f"{page.left_out[0]} is too large for a page: --crop a part of it")
    report.left_out = page.left_out
    _make_folder(out)
    try:
        write_atomically(out, page.html(report.averages(), report.problems()))
    except TraceError as exc:
        raise FileError(str(exc)) from exc


def _make_folder(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise FileError(f"cannot make {out.parent}: {exc.strerror or exc}") from exc
