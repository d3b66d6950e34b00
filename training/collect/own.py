"""Take in what is there already: the user's own pictures and videos, and SRGD.

    overlay data from-folder SRC    SRC/{270p,360p,540p,1080p}/*.png, the same frame under one name;
                                    or SRC/*.png, which are HR only
    overlay data from-video FILE    HR only
    overlay data srgd SRC           SRGD's local layout or its archives; SRC "hf" downloads these

Frames with LR go through the gate into GameEngineData. HR alone goes into DownscaleData/1080p,
where `overlay data degrade` makes the LR for it.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from training.collect.align import Limits
from training.collect.collect import Outcome, Task, keep_if_good, positive, progress_bar
from training.collect.runner import CollectError, Episode, Frame, Pixels, Runner, Size
from training.collect.splits import Split
from training.collect.store import Store
from training.dataset import HEIGHTS, MAX_BYTES, MAX_SIDE, SIZES, png_header, read_png
from training.errors import DataError

KIND = "GameEngineData"
FULL: Size = SIZES[1080]
#: SRGD renders LR with other settings (anti-aliasing, textures, shadows) than HR.
SRGD_LIMITS = Limits(shift_px=0.5, psnr_db=20.0, frame_psnr_db=14.0)
SRGD_LICENCE = "Apache-2.0 (SRGD, epishchik)"
_SPLIT_NAMES = ("train", "val", "test")


class Given(Runner):
    """Frames that somebody else has drawn."""

    def __init__(self, name: str, licence: str, limits: Limits | None = None) -> None:
        self.name, self.licence = name, licence
        self.limits = limits or Limits()

    def episodes(self, frames: int | None = None) -> list[Episode]:
        return []

    def versions(self) -> dict[str, str]:
        return {}

    def render(self, episode: Episode, size: Size) -> Generator[Frame]:
        raise CollectError(f"{episode.game} cannot be drawn again")


def part_of_name(text: str) -> str:
    """Make a text fit to be the game or the episode in a frame's name.

    Raises:
        DataError: nothing is left of it.
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name:
        raise DataError(f"{text!r} has no letter or digit to make a name of; name it otherwise")
    return name


def take(
    runner: Given,
    episode: Episode,
    files: Mapping[int, Mapping[str, Path]],
    root: Path,
) -> Outcome:
    """Take one sequence of PNGs in, if it is not there: linked, judged, listed.

    Args:
        files: number: {folder: PNG of that folder's size}.
    """
    small = any(len(folders) > 1 for folders in files.values())
    store = Store(root, "GameEngineData" if small else "DownscaleData")
    task = Task(runner, episode)
    if store.complete(episode):
        return Outcome(task, "there", len(store.entries(episode)))
    with store.draft(episode) as draft:
        for number, folders in files.items():
            for folder, path in folders.items():
                draft.link(number, folder, path)
        wanted = max((set(folders) for folders in files.values()), key=len)
        for number, folders in files.items():
            if set(folders) != wanted:
                have, others = (", ".join(sorted(each)) for each in (folders, wanted))
                sys.stderr.write(f"frame {number}: left out: in {have}, others in {others}\n")
        draft.keep(number for number, folders in files.items() if set(folders) == wanted)
        facts: dict[str, Any] = {"versions": {}, "licence": runner.licence}
        return keep_if_good(task, store, draft, facts, runner.limits)


def fitted(picture: Pixels, path: Path) -> Pixels:
    """Bring a 16:9 picture of at least 1080 lines to 1920x1080, by area; `path` is for messages.

    Raises:
        DataError: it is smaller, or of another shape.
    """
    height, width = picture.shape[:2]
    if (width, height) == FULL:
        return picture
    if height < FULL[1] or abs(width * FULL[1] - height * FULL[0]) > FULL[0]:
        raise DataError(
            f"{path} is {width}x{height}; HR must be 1920x1080, or larger and 16:9: capture at "
            "that size"
        )
    return cv2.resize(picture, FULL, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


# --- a folder ------------------------------------------------------------------------------------


def from_folder(source: Path, root: Path, episode: Episode, licence: str) -> Outcome:
    """Take a folder of pictures in as one sequence, numbered in the order of their names.

    Raises:
        DataError: there is no picture that can be used.
    """
    folders = {f"{h}p": source / f"{h}p" for h in HEIGHTS if (source / f"{h}p").is_dir()}
    if not folders:
        folders = {"1080p": source}
    if "1080p" not in folders or not folders["1080p"].is_dir():
        raise DataError(f"no folder of HR pictures: {folders.get('1080p', source / '1080p')}")
    names = sorted(path.name for path in folders["1080p"].glob("*.png"))[: episode.frames]
    if not names:
        raise DataError(f"no PNG in {folders['1080p']}; convert other formats to PNG first")
    pictures = _fingerprint(path / name for path in folders.values() for name in names)
    episode = replace(episode, settings=episode.settings | {"pictures": pictures})
    with tempfile.TemporaryDirectory(prefix="from-folder-") as work:
        files: dict[int, dict[str, Path]] = {}
        for number, name in enumerate(names):
            try:
                found = {f: path / name for f, path in folders.items() if (path / name).exists()}
                files[number] = _checked(found, Path(work) / f"{number:04d}.png")
            except DataError as exc:
                sys.stderr.write(f"{name}: left out: {exc}\n")
        if not files:
            raise DataError(f"no picture in {source} can be used")
        return take(Given(episode.game, licence), episode, files, root)


def _fingerprint(files: Iterable[Path]) -> str:
    """Tell whether files are others than before, by names and lengths."""
    known = [(f"{p.parent.name}/{p.name}", p.stat().st_size) for p in files if p.is_file()]
    return hashlib.sha256(repr(known).encode("utf-8", "replace")).hexdigest()[:16]


def _checked(found: Mapping[str, Path], work: Path) -> dict[str, Path]:
    """Look at sizes before anything is decoded; a larger HR is brought to 1080p in `work`."""
    for folder, path in found.items():
        header = png_header(path)
        height = int(folder.rstrip("p"))
        if max(header.width, header.height) > MAX_SIDE:
            raise DataError(f"{path} is {header.width}x{header.height}, larger than {MAX_SIDE}")
        if height != 1080 and (header.width, header.height) != SIZES[height]:
            raise DataError(f"{path} is {header.width}x{header.height}, must be {SIZES[height]}")
    full = found["1080p"]
    if (png_header(full).width, png_header(full).height) == FULL:
        return dict(found)
    smaller = fitted(read_png(full), full)
    cv2.imwrite(str(work), smaller, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return {**found, "1080p": work}


# --- a video -------------------------------------------------------------------------------------


def from_video(source: Path, root: Path, episode: Episode, licence: str, every: int) -> Outcome:
    """Take every n-th frame of a video in, as HR.

    Raises:
        DataError: it cannot be read, or is of another size.
    """
    store = Store(root, "DownscaleData")
    task = Task(Given(episode.game, licence), episode)
    if store.complete(episode):
        return Outcome(task, "there", len(store.entries(episode)))
    with store.draft(episode) as draft, progress_bar() as bar:
        for number, picture in enumerate(_video_frames(source, every, episode.frames)):
            draft.ticks[number] = number * every
            draft.write(number, "1080p", fitted(picture, source))
            bar.update(1)
        facts: dict[str, Any] = {"versions": {"opencv": cv2.__version__}, "licence": licence}
        return keep_if_good(task, store, draft, facts, Limits())


def _video_frames(source: Path, every: int, most: int | None) -> Iterator[Pixels]:
    if not source.is_file():
        raise DataError(f"no video {source}")
    video = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG)
    try:
        width = int(video.get(cv2.CAP_PROP_FRAME_WIDTH))
        height = int(video.get(cv2.CAP_PROP_FRAME_HEIGHT))
        if not video.isOpened() or not width or not height:
            raise DataError(f"{source} cannot be read as a video; convert it to MP4 (H.264)")
        if max(width, height) > MAX_SIDE:
            raise DataError(f"{source} is {width}x{height}, larger than {MAX_SIDE}")
        given = number = 0
        while (most is None or given < most) and video.grab():
            if number % every == 0:
                found, picture = video.retrieve()
                if not found:
                    return
                given += 1
                yield np.asarray(picture, np.uint8)
            number += 1
    finally:
        video.release()


# --- SRGD ----------------------------------------------------------------------------------------


def from_srgd(
    source: Path, root: Path, val: set[str], frames: int | None = None
) -> Iterator[Outcome]:
    """Take SRGD in, one sequence a project.

    SRGD splits by frame, so that frames of one shot are on both sides; here a project goes into
    one split whole: `val` if it is named there, else train.

    Raises:
        DataError: there is nothing in SRGD's layout.
    """
    with tempfile.TemporaryDirectory(prefix=".srgd-", dir=_made(root)) as work:
        projects = _srgd_local(source / KIND)
        archives = source / "data" / KIND
        for folder in sorted(p for p in archives.glob("*") if p.is_dir()):
            projects[folder.name] = _unpacked(folder, Path(work) / folder.name)
        if not projects:
            raise DataError(f"no SRGD in {source}: neither {KIND}/270p/train nor data/{KIND}")
        for project, named in sorted(projects.items()):
            game = part_of_name(project)
            split: Split = "val" if game in val else "train"
            settings = {"tick": "frame", "source": "SRGD"}
            episode = Episode(game, "srgd", project, split, frames, 0, settings)
            chosen = sorted(named)[:frames]
            files = {number: named[name] for number, name in enumerate(chosen)}
            yield take(Given(game, SRGD_LICENCE, SRGD_LIMITS), episode, files, root)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _srgd_local(folder: Path) -> dict[str, dict[str, dict[str, Path]]]:
    """Find {project: {frame: {folder: file}}} in {height}p/{train,val}/{project}_{frame}.png."""
    found: dict[str, dict[str, dict[str, Path]]] = defaultdict(lambda: defaultdict(dict))
    for height in HEIGHTS:
        for split in _SPLIT_NAMES:
            for path in (folder / f"{height}p" / split).glob("*_*.png"):
                project, _, frame = path.stem.partition("_")
                if project and _fits(path, height):
                    found[project][frame][f"{height}p"] = path
    return {project: dict(frames) for project, frames in found.items()}


def _unpacked(project: Path, work: Path) -> dict[str, dict[str, Path]]:
    """Unpack {split}-{height}p.tar.gz: the PNGs in them, by their bare names, and nothing else."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for height in HEIGHTS:
        for split in _SPLIT_NAMES:
            archive = project / f"{split}-{height}p.tar.gz"
            if archive.is_file():
                for path in _members(archive, work / f"{height}p"):
                    if _fits(path, height):
                        found[path.stem][f"{height}p"] = path
    return dict(found)


def _fits(path: Path, height: int) -> bool:
    """Whether a frame has the size of its folder; what is no frame at all is reported."""
    try:
        return png_header(path)[:2] == SIZES[height]
    except DataError as exc:
        sys.stderr.write(f"{path.name}: left out: {exc}\n")
        return False


def _members(archive: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                name = Path(member.name).name
                if not (member.isfile() and name.endswith(".png") and member.size <= MAX_BYTES):
                    continue
                data = tar.extractfile(member)
                assert data is not None
                (folder / name).write_bytes(data.read())
                yield folder / name
    except (tarfile.TarError, EOFError, OSError, ValueError) as exc:  # a name with a zero byte
        raise DataError(f"cannot unpack {archive}: {exc}; download it again") from exc


def download_srgd(repository: str, projects: list[str], cache: Path) -> Path:
    """Download SRGD's archives of some projects from Hugging Face; give the folder.

    Raises:
        DataError: huggingface-hub is not installed, or the download failed.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as exc:
        raise DataError('huggingface-hub is missing: pip install "sr-overlay[train]"') from exc
    wanted = [f"data/{KIND}/{project}/*.tar.gz" for project in projects or ["*"]]
    try:
        folder = snapshot_download(
            repository, repo_type="dataset", local_dir=cache, allow_patterns=wanted
        )
    except Exception as exc:  # its own errors, and those of the HTTP library below it
        raise DataError(f"cannot download {repository} from Hugging Face: {exc}") from exc
    return Path(folder)


# --- the commands --------------------------------------------------------------------------------


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `from-folder`, `from-video` and `srgd`."""
    folder = commands.add_parser("from-folder", help="take in pictures of your own")
    folder.add_argument("source", type=Path, metavar="DIR", help="PNGs, or folders 270p…1080p")
    _add_common(folder, _run_folder)
    video = commands.add_parser("from-video", help="take in frames of a video of your own")
    video.add_argument("source", type=Path, metavar="FILE", help="a video of 1080 lines or more")
    video.add_argument(
        "--every", type=positive, default=30, metavar="N", help="default: %(default)s"
    )
    _add_common(video, _run_video)
    srgd = commands.add_parser("srgd", help="take in SRGD, the dataset this project began with")
    srgd.add_argument("source", metavar="DIR|hf", help="a local copy; hf downloads (large!)")
    srgd.add_argument("--projects", default="", metavar="A,B,…", help="to download; default: all")
    srgd.add_argument("--val", default="", metavar="A,B,…", help="projects to validate on")
    srgd.add_argument("--frames", type=positive, metavar="N", help="of each project at most")
    srgd.add_argument("--repository", default="epishchik/SRGD", help="default: %(default)s")
    srgd.add_argument("--out", type=Path, default=Path("data"), metavar="DIR", help="data folder")
    run: Callable[[argparse.Namespace], int] = _run_srgd
    srgd.set_defaults(data_run=run)


def _add_common(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("--out", type=Path, default=Path("data"), metavar="DIR", help="data folder")
    parser.add_argument("--game", default="own", help="name in the files (default: %(default)s)")
    parser.add_argument("--episode", help="name in the files; default: the source's")
    parser.add_argument("--split", default="train", choices=_SPLIT_NAMES)
    parser.add_argument("--frames", type=positive, metavar="N", help="at most")
    parser.add_argument("--licence", default="unknown: the user's own", help="for the manifest")
    parser.set_defaults(data_run=run)


def _episode(arguments: argparse.Namespace, settings: dict[str, Any]) -> Episode:
    source: Path = arguments.source.resolve()
    name = part_of_name(arguments.episode or source.stem)
    return Episode(
        part_of_name(arguments.game),
        name,
        source.name,
        arguments.split,
        arguments.frames,
        0,
        settings,
    )


def _run_folder(arguments: argparse.Namespace) -> int:
    episode = _episode(arguments, {"tick": "picture"})
    return _said(from_folder(arguments.source, arguments.out, episode, arguments.licence))


def _run_video(arguments: argparse.Namespace) -> int:
    episode = _episode(arguments, {"tick": "video frame", "every": arguments.every})
    return _said(
        from_video(arguments.source, arguments.out, episode, arguments.licence, arguments.every)
    )


def _run_srgd(arguments: argparse.Namespace) -> int:
    projects = [name for name in arguments.projects.split(",") if name]
    if arguments.source == "hf":
        cache = arguments.out / "srgd"
        source = download_srgd(arguments.repository, projects, cache)
    else:
        source = Path(arguments.source)
    val = {part_of_name(name) for name in arguments.val.split(",") if name}
    outcomes = from_srgd(source, arguments.out, val, arguments.frames)
    return max([_said(outcome) for outcome in outcomes])


def _said(outcome: Outcome) -> int:
    episode = outcome.task.episode
    why = f": {outcome.reason}" if outcome.reason else ""
    sys.stdout.write(
        f"{episode.game} {episode.name}: {outcome.what}, {outcome.frames} frames{why}\n"
    )
    if outcome.what == "kept" and not outcome.paired:
        sys.stdout.write("HR only: make the LR for it with overlay data degrade\n")
    return 1 if outcome.what == "dropped" else 0
