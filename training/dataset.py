"""Aligned frames on disk: found, paired, checked.

    <root>/{GameEngineData,DownscaleData}/{270p,360p,540p,1080p}/{train,val,test}/
        {game}_{episode}_{frame}.png        8 bit, colour; frame of four or more digits
    <root>/{GameEngineData,DownscaleData}/manifest.jsonl    one JSON object a frame

GameEngineData was rendered at each size, DownscaleData was degraded from 1080p, which lies beside
it or in GameEngineData.

A frame that is wrong is reported as a `Problem` and left out; it never stops the others, and is
never trained on. A sequence (game and episode) lies in one split only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import struct
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from training.errors import DataError

Pixels = NDArray[np.uint8]

KINDS = ("GameEngineData", "DownscaleData")
SPLITS = ("train", "val", "test")
HEIGHTS = (270, 360, 540, 1080)
#: (width, height) of the frames of each height.
SIZES = {270: (480, 270), 360: (640, 360), 540: (960, 540), 1080: (1920, 1080)}
#: Larger pictures are refused before they are decoded, and larger files before they are read.
MAX_SIDE = 8192
MAX_BYTES = 256 << 20
#: Longer lines of a manifest are not parsed.
MAX_LINE = 1 << 20
#: By how many HR pixels a sequence's median shift may differ from the one in the manifest, or from
#: none. Single frames with repeating texture read up to 0.7 though they are fine.
MAX_SHIFT = 0.5
#: More is not believed, whatever the manifest says. Renderers that sample the corners of pixels
#: read up to 1 for sequences that no whole-pixel shift makes better.
_MOST_RECORDED = 1.5
#: So many frames of a sequence are measured for its shift, evenly spread over it.
_SHIFT_FRAMES = 9
#: Standard deviation of the detail, of 255, below which there is nothing to align by.
_FLAT = 0.25

_NAME = re.compile(r"([^_]+)_([^_]+)_([0-9]{4,})")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_COLOUR = (2, 3, 6)  # true colour, palette, true colour with alpha


@dataclass(frozen=True, slots=True)
class Pair:
    """One frame at two sizes.

    Attributes:
        name: the file's, without its ending.
        game, episode, frame: the parts of the name; "", "" and a running number where a name of
            `split_folders` has no such parts.
        low, high: the files.
    """

    name: str
    game: str
    episode: str
    frame: int
    low: Path
    high: Path


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a frame, or all frames of a sequence, are left out.

    Attributes:
        name: of the frame, or "game_episode" for a whole sequence.
        path: of the file or folder it was found in.
        what: the reason, and what to do.
    """

    name: str
    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what} ({self.path})"


class Header(NamedTuple):
    """What the first chunk of a PNG says: pixels, bits a sample, colour type (PNG 3, 11.2.1)."""

    width: int
    height: int
    depth: int
    colour: int


# --- reading -------------------------------------------------------------------------------------


def read_png(path: Path) -> Pixels:
    """Read an 8-bit colour PNG as uint8 BGR (H, W, 3); alpha is dropped.

    The size in its header is checked before anything is decoded, and every chunk's checksum.

    Raises:
        DataError: it cannot be read, is truncated or damaged, too large, or no such PNG.
    """
    return decode_png(file_bytes(path), path)


def decode_png(data: bytes, path: Path) -> Pixels:
    """Decode what `read_png` reads; `path` is for the message."""
    header = _header(data[:33], path)
    if max(header.width, header.height) > MAX_SIDE:
        raise DataError(
            f"{path} is {header.width}x{header.height}, larger than {MAX_SIDE}x{MAX_SIDE}: "
            "no game frame; remove it"
        )
    _check_chunks(data, path)
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as exc:
        raise DataError(f"{path} cannot be decoded: {exc.err}; make it again") from exc
    if picture is None or picture.shape != (header.height, header.width, 3):
        raise DataError(f"{path} cannot be decoded: damaged; make it again")
    return picture.astype(np.uint8, copy=False)


def png_header(path: Path) -> Header:
    """Read a PNG's header, and look whether its end is there; decodes nothing.

    Raises:
        DataError: it cannot be read, is no PNG, not 8-bit colour, or truncated.
    """
    try:
        with path.open("rb") as file:
            header = _header(file.read(33), path)
            file.seek(max(0, file.seek(0, 2) - len(_END)))
            if file.read() != _END:
                raise DataError(f"{path} is truncated: it does not end as a PNG; make it again")
    except OSError as exc:
        raise DataError(f"cannot read {path}: {exc.strerror}") from exc
    return header


def file_bytes(path: Path) -> bytes:
    """Read a file of at most `MAX_BYTES`.

    Raises:
        DataError: it cannot be read, or is larger.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES >> 20} MiB: no game frame")
        return path.read_bytes()
    except OSError as exc:
        raise DataError(f"cannot read {path}: {exc.strerror}") from exc


def _header(data: bytes, path: Path) -> Header:
    if len(data) < 33 or data[:8] != _SIGNATURE or data[8:16] != b"\0\0\0\rIHDR":
        raise DataError(f"{path} is not a PNG")
    header = Header(*struct.unpack(">IIBB", data[16:26]))
    if header.depth != 8 or header.colour not in _COLOUR:
        kind = "grey" if header.colour in (0, 4) else f"of colour type {header.colour}"
        raise DataError(f"{path} is {header.depth}-bit {kind}; frames must be 8-bit colour PNGs")
    if not header.width or not header.height:
        raise DataError(f"{path} is empty: {header.width}x{header.height}")
    return header


def _check_chunks(data: bytes, path: Path) -> None:
    """Compare every chunk's checksum: decoders pass over some that are wrong."""
    view = memoryview(data)
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        (stored,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(view[at + 4 : end - 4]) != stored:
            raise DataError(f"{path} is damaged: a checksum differs at byte {at}; make it again")
        if data[at + 4 : at + 8] == b"IEND":
            return
        at = end
    raise DataError(f"{path} is truncated: it does not end as a PNG; make it again")


# --- pairing -------------------------------------------------------------------------------------


def find_pairs(
    root: Path,
    kind: str = "GameEngineData",
    split: str = "train",
    *,
    low: int,
    high: int,
    games: Collection[str] | None = None,
) -> tuple[list[Pair], list[Problem]]:
    """Pair the frames of one split at two sizes; decodes nothing.

    Args:
        root: holds the folders of `KINDS`.
        kind: one of `KINDS`; DownscaleData has pairs with 1080p only.
        split: one of `SPLITS`.
        low, high: heights, of `HEIGHTS`.
        games: only these; None for all.
    Returns:
        The pairs sorted by name, and what was left out and why: twins that are missing, wrong
        sizes, truncated files, names and splits that the manifest (where there is one) does not
        know, sequences in two splits.
    Raises:
        DataError: there is no such folder, or the arguments make no pair.
    """
    folder, twins = _folders(root, kind, split, low, high)
    known, problems = _manifest(root / kind)
    sources = _sources(root, kind)
    leaks = _leaks(root)
    reported = set()
    pairs = []
    twin_names = set() if twins[-1].parents[1] != root / kind else _names(twins[-1])
    for name in sorted(_names(folder) | twin_names):
        parts = frame_parts(name)
        if parts is not None and games is not None and parts[0] not in games:
            continue
        low_path, high_path = folder / f"{name}.png", _first(twins, f"{name}.png")
        what = "" if parts is not None else _BAD_NAME
        if parts is not None and (sequence := parts[:2]) in leaks:
            if sequence not in reported:
                reported.add(sequence)
                problems.append(_leak(sequence, leaks[sequence], folder))
            continue
        what = what or _against_manifest(name, split, known)
        if not what:
            what = _wrong(low_path, SIZES[low]) or _wrong(high_path, SIZES[high])
        if not what and kind == "DownscaleData":
            what = _other_source((known or {}).get(name, {}), sources.get(name, {}), high_path)
        if what or parts is None:
            problems.append(Problem(name, low_path, what))
        else:
            pairs.append(Pair(name, parts[0], parts[1], int(parts[2]), low_path, high_path))
    return pairs, problems


def split_folders(low: Path, high: Path) -> tuple[list[Pair], list[Problem]]:
    """Pair the PNGs of two folders by equal file names; decodes nothing.

    HR must be a whole multiple of LR, the same in both directions.

    Raises:
        DataError: one of the folders cannot be read.
    """
    pairs, problems = [], []
    for number, name in enumerate(sorted(_names(low) | _names(high))):
        low_path, high_path = low / f"{name}.png", high / f"{name}.png"
        try:
            what = _no_multiple(png_header(_there(low_path)), png_header(_there(high_path)))
        except DataError as exc:
            what = str(exc)
        if what:
            problems.append(Problem(name, low_path, what))
            continue
        game, episode, frame = frame_parts(name) or ("", "", str(number))
        pairs.append(Pair(name, game, episode, int(frame), low_path, high_path))
    return pairs, problems


_BAD_NAME = "is not named {game}_{episode}_{frame}.png, frame of four or more digits; rename it"


def _folders(root: Path, kind: str, split: str, low: int, high: int) -> tuple[Path, list[Path]]:
    """Give the LR folder and those in which HR is looked for, in that order."""
    if kind not in KINDS or split not in SPLITS or low not in SIZES or high not in SIZES:
        raise DataError(
            f"no such data: {kind}, {split}, {low}p and {high}p; there are {', '.join(KINDS)}; "
            f"{', '.join(SPLITS)}; heights {', '.join(map(str, HEIGHTS))}"
        )
    if low >= high or (kind == "DownscaleData" and high != 1080):
        raise DataError(f"no pairs of {low}p and {high}p in {kind}; choose other heights")
    folder = root / kind / f"{low}p" / split
    twins = [root / kind / f"{high}p" / split]
    if kind == "DownscaleData":  # its source may lie in either, and not all of it be degraded
        twins = [root / each / f"{high}p" / split for each in reversed(KINDS)]
    for needed in (folder, *(() if kind == "DownscaleData" else twins)):
        if not needed.is_dir():
            raise DataError(
                f"no frames in {needed}; make them with overlay data collect or degrade"
            )
    return folder, twins


def _names(folder: Path) -> set[str]:
    try:
        return {path.stem for path in folder.iterdir() if path.suffix == ".png"}
    except OSError as exc:
        raise DataError(f"cannot read the frames in {folder}: {exc.strerror}") from exc


def frame_parts(name: str) -> tuple[str, str, str] | None:
    """Split a name into game, episode and frame number; None if it has no such parts."""
    found = _NAME.fullmatch(name)
    return (found[1], found[2], found[3]) if found else None


def _first(folders: Sequence[Path], name: str) -> Path:
    """Give the file in the first folder that has it; in the last one if none has."""
    return next(
        (folder / name for folder in folders if (folder / name).is_file()), folders[-1] / name
    )


def _there(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"its twin {path} is missing")
    return path


def _wrong(path: Path, size: tuple[int, int]) -> str:
    """Say what is wrong with a frame's file as far as its header tells; "" if nothing."""
    try:
        header = png_header(_there(path))
    except DataError as exc:
        return str(exc)
    if header[:2] != size:
        width, height = size
        return f"{path} is {header.width}x{header.height}, must be {width}x{height}"
    return ""


def _no_multiple(low: Header, high: Header) -> str:
    scale = high.width // low.width
    if scale and (high.width, high.height) == (low.width * scale, low.height * scale):
        return ""
    return (
        f"{high.width}x{high.height} is no whole multiple of {low.width}x{low.height}; "
        "render or crop one of them"
    )


# --- the manifest, and leaks ---------------------------------------------------------------------


def read_manifest(folder: Path) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """Read `folder/manifest.jsonl`: the last line of each name; no file is an empty manifest.

    Lines that are no JSON object with a name are reported and passed over.

    Raises:
        DataError: the file cannot be read.
    """
    path = folder / "manifest.jsonl"
    frames: dict[str, dict[str, Any]] = {}
    problems = []
    for number, frame in json_lines(path):
        name = (frame or {}).get("name")
        if frame is not None and isinstance(name, str) and name.isprintable():
            frames[name] = frame
        else:
            what = f"line {number} is no JSON object with a name; remove it"
            problems.append(Problem("manifest.jsonl", path, what))
    return frames, problems


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Give (number, object) of each line that is not empty; none if there is no file.

    None stands for what is no JSON object, or longer than `MAX_LINE`.

    Raises:
        DataError: the file cannot be read.
    """
    number = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE):
                number += 1
                rest = line
                while len(rest) == MAX_LINE and not rest.endswith(b"\n"):
                    rest = file.readline(MAX_LINE)
                if line.strip():
                    yield number, _object(line) if rest is line else None
    except FileNotFoundError:
        return
    except OSError as exc:
        raise DataError(f"cannot read {path}: {exc.strerror}") from exc


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _manifest(folder: Path) -> tuple[dict[str, dict[str, Any]] | None, list[Problem]]:
    """Read the manifest; None where there is none."""
    frames, problems = read_manifest(folder)
    return (frames if (folder / "manifest.jsonl").is_file() else None), problems


def _against_manifest(name: str, split: str, known: Mapping[str, Mapping[str, Any]] | None) -> str:
    if known is None:
        return ""
    if name not in known:
        return "is not in manifest.jsonl: its collection was not finished; collect again"
    said = known[name].get("split", split)
    if said != split:
        return f"lies in {split}, and belongs into {said!r} by manifest.jsonl; move it"
    return ""


def _sources(root: Path, kind: str) -> dict[str, dict[str, Any]]:
    """Read the manifest of what DownscaleData was degraded from."""
    return read_manifest(root / "GameEngineData")[0] if kind == "DownscaleData" else {}


def _sums(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    sums = entry.get("sha256")
    return sums if isinstance(sums, dict) else {}


def _other_source(entry: Mapping[str, Any], source: Mapping[str, Any], high: Path) -> str:
    """Say if LR was degraded from another picture than HR is now, by the manifests' checksums."""
    beside = high.parents[2].name == "DownscaleData"
    now, then = _sums(entry if beside else source).get("1080p"), entry.get("source_sha256")
    if not isinstance(now, str) or not isinstance(then, str) or now == then:
        return ""
    return f"was degraded from another picture than {high} is now; degrade it again"


def _leaks(root: Path) -> dict[tuple[str, str], list[str]]:
    """Find the sequences in more than one split, over both kinds and all sizes."""
    splits: dict[tuple[str, str], set[str]] = defaultdict(set)
    for kind in KINDS:
        for folder in sorted((root / kind).glob("*p/*")):
            if folder.name in SPLITS and folder.is_dir():
                for parts in filter(None, map(frame_parts, _names(folder))):
                    splits[parts[:2]].add(folder.name)
    return {sequence: sorted(found) for sequence, found in splits.items() if len(found) > 1}


def _leak(sequence: tuple[str, str], splits: Sequence[str], folder: Path) -> Problem:
    what = f"the sequence is in {' and '.join(splits)}, a leak; keep it in one of them"
    return Problem("_".join(sequence), folder, what)


# --- checking ------------------------------------------------------------------------------------


def check(root: Path, kind: str, *, thorough: bool) -> list[Problem]:
    """Check every frame of one kind.

    Always: names, twins, headers and sizes, the manifest, sequences in two splits. Thoroughly:
    also every chunk and pixel is decoded, the sha256 in the manifest compared, and the shift
    between the sizes of each sequence measured.

    Raises:
        DataError: there is no such data.
    """
    folder = root / kind
    heights = [height for height in HEIGHTS if (folder / f"{height}p").is_dir()]
    if kind not in KINDS or not heights:
        raise DataError(f"no frames in {folder}; make them with overlay data collect or degrade")
    if kind == "DownscaleData":
        heights = sorted({*heights, 1080})
    known, problems = _manifest(folder)
    sources = _sources(root, kind)
    problems += [_leak(sequence, found, folder) for sequence, found in sorted(_leaks(root).items())]
    seen: set[str] = set()
    for split in SPLITS:
        names = set().union(*(_names(p) for h in heights if (p := _at(folder, h, split)).is_dir()))
        seen |= names
        for name in sorted(names):
            source = sources.get(name, {})
            problems += _check_frame(folder, split, name, heights, known, source, thorough=thorough)
    for name in sorted(set(known or ()) - seen):
        problems.append(
            Problem(name, folder, "is in manifest.jsonl, and has no file; collect again")
        )
    if thorough:
        problems += _check_shifts(root, kind, heights)
    return problems


def _at(folder: Path, height: int, split: str) -> Path:
    return folder / f"{height}p" / split


def _check_frame(
    folder: Path,
    split: str,
    name: str,
    heights: Sequence[int],
    known: Mapping[str, Mapping[str, Any]] | None,
    source: Mapping[str, Any],
    *,
    thorough: bool,
) -> Iterator[Problem]:
    """Check the files of one frame at all sizes; `source` is its entry in GameEngineData's."""
    first = _at(folder, heights[0], split) / f"{name}.png"
    what = _BAD_NAME if frame_parts(name) is None else _against_manifest(name, split, known)
    if what:
        yield Problem(name, first, what)
        return
    entry = (known or {}).get(name, {})
    sums = _sums(entry)
    if folder.name == "DownscaleData" and "source_sha256" in entry:
        sums = {**sums, "1080p": entry["source_sha256"]}
    for path, height in _files(folder, split, name, heights, sums):
        what = _wrong(path, SIZES[height])
        if not what and height == 1080 and folder.name == "DownscaleData":
            what = _other_source(entry, source, path)
        if not what and thorough:
            what = _damage(path, sums.get(path.parents[1].name))
        if what:
            yield Problem(name, path, what)


def _files(
    folder: Path, split: str, name: str, heights: Iterable[int], listed: Collection[str]
) -> Iterator[tuple[Path, int]]:
    """Give the files of a frame with their heights.

    DownscaleData's HR may lie in GameEngineData, and not every frame is degraded to every size.
    """
    file = f"{name}.png"
    for height in heights:
        path = _at(folder, height, split) / file
        if folder.name == "DownscaleData" and not path.is_file():
            if height == 1080:
                path = _at(folder.parent / "GameEngineData", height, split) / file
            elif f"{height}p" not in listed:
                continue
        yield path, height


def _damage(path: Path, expected: object) -> str:
    try:
        data = file_bytes(path)
        found = hashlib.sha256(data).hexdigest()
        if isinstance(expected, str) and found != expected:
            return (
                f"{path} has sha256 {found[:12]}, and {expected[:12]} by manifest.jsonl; "
                "make it again"
            )
        decode_png(data, path)
    except DataError as exc:
        return str(exc)
    return ""


def shift(low: Pixels, high: Pixels) -> tuple[float, float]:
    """Measure how far LR lies from HR, by phase correlation.

    Args:
        low: uint8 BGR (h, w, 3); brought to HR's size with cv2's bicubic.
        high: uint8 BGR (H, W, 3).
    Returns:
        (right, down), in HR pixels: where HR's content lies relative to LR's. NaN where there is
        too little to see in one of them.
    """
    height, width = high.shape[:2]
    large = cv2.resize(low, (width, height), interpolation=cv2.INTER_CUBIC)
    planes = []
    for picture in (large, high):
        grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.float32)
        plane = grey - cv2.GaussianBlur(grey, (0, 0), 8)
        if plane.std() < _FLAT:
            return np.nan, np.nan
        planes.append(plane)
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    (right, down), _ = cv2.phaseCorrelate(planes[0], planes[1], window)
    return float(right), float(down)


def _check_shifts(root: Path, kind: str, heights: Sequence[int]) -> Iterator[Problem]:
    """Measure every sequence at every size against 1080p, and compare with the manifest."""
    known, _ = read_manifest(root / kind)
    for split in SPLITS:
        for low in heights:
            if low == 1080 or not _at(root / kind, low, split).is_dir():
                continue
            try:
                pairs, _ = find_pairs(root, kind, split, low=low, high=1080)
            except DataError:  # no 1080p: reported as missing twins
                continue
            sequences: dict[tuple[str, str], list[Pair]] = defaultdict(list)
            for pair in pairs:
                sequences[pair.game, pair.episode].append(pair)
            for sequence, members in sequences.items():
                right, down = median_shift(members)
                expected = _recorded_shift(known.get(members[0].name, {}), low)
                if max(abs(right - expected[0]), abs(down - expected[1])) > MAX_SHIFT:
                    what = (
                        f"the sequence at {low}p is shifted against 1080p by {right:+.2f} right, "
                        f"{down:+.2f} down, and should be by {expected[0]:+.2f}, "
                        f"{expected[1]:+.2f} HR pixels; collect it again"
                    )
                    yield Problem("_".join(sequence), members[0].low.parent, what)


def _recorded_shift(entry: Mapping[str, Any], low: int) -> tuple[float, float]:
    """Read a sequence's shift at collecting from a frame's entry; zeros where there is none."""
    try:
        right, down = map(float, entry["alignment"][f"{low}p->1080p"]["shift_px"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0.0, 0.0
    believed = max(abs(right), abs(down)) <= _MOST_RECORDED
    return (right, down) if believed else (0.0, 0.0)


def median_shift(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Median of `shift` over frames spread over a sequence; flat and damaged ones are passed over.

    Returns:
        (right, down), in HR pixels; zeros if no frame could be measured.
    """
    step = max(1, len(pairs) // _SHIFT_FRAMES)
    found = []
    for pair in pairs[::step][:_SHIFT_FRAMES]:
        try:
            measured = shift(read_png(pair.low), read_png(pair.high))
        except DataError:  # reported as damaged
            continue
        if np.isfinite(measured[0]):
            found.append(measured)
    if not found:
        return 0.0, 0.0
    right, down = np.median(np.array(found), axis=0)
    return float(right), float(down)


# --- the command ---------------------------------------------------------------------------------


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `check`."""
    parser = commands.add_parser(
        "check",
        help="look for frames that are missing, damaged, leaking or misaligned",
        description="Look for frames that are missing, damaged, in two splits, or misaligned.",
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="the data folder")
    parser.add_argument(
        "--thorough", action="store_true", help="decode all, compare checksums, measure shifts"
    )
    run: Callable[[argparse.Namespace], int] = _run
    parser.set_defaults(data_run=run)


def _run(arguments: argparse.Namespace) -> int:
    root: Path = arguments.root
    kinds = [kind for kind in KINDS if (root / kind).is_dir()]
    if not kinds:
        raise DataError(f"no {' or '.join(KINDS)} in {root}; make it with overlay data collect")
    count = 0
    for kind in kinds:
        problems = check(root, kind, thorough=arguments.thorough)
        count += len(problems)
        for problem in problems:
            sys.stdout.write(f"{problem}\n")
        for height in HEIGHTS:
            sizes = ((s, _at(root / kind, height, s)) for s in SPLITS)
            counts = [
                f"{split} {len(_names(folder))}" for split, folder in sizes if folder.is_dir()
            ]
            if counts:
                sys.stdout.write(f"{kind} {height}p: {', '.join(counts)}\n")
    sys.stdout.write(f"{count} problems\n" if count else "no problems\n")
    return 1 if count else 0
