"""One video upscaled: what it is, its segments, and the file they become."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from overlay.errors import BackendUnavailable

try:
    import av
except ImportError as missing:
    raise BackendUnavailable(
        f"videos in files need PyAV ({missing}): pip install 'sr-overlay[files]'"
    ) from missing

from overlay.files import video_join
from overlay.files.enlarge import Wish, open_model, result_size
from overlay.files.errors import FileError, SourceDamaged
from overlay.files.images import MAX_RESULT
from overlay.files.video_encode import (
    MAX_SIDE,
    Codec,
    Coding,
    Where,
    choose_encoder,
    codec_for,
    quality,
)
from overlay.files.video_models import Enlarger, open_enlarger
from overlay.files.video_segments import Kept, Segment, Spent, cuts_of, made
from overlay.files.video_source import Clip, read_clip

log = logging.getLogger(__name__)

#: Told (share done, share that was there before, frames per second).
Progress = Callable[[float, float, float], None]
#: Makes segments of the numbers given, in any order, and tells how many frames are done.
Make = Callable[[list[int], Callable[[int], None]], Generator[Segment, None, None]]


@dataclass(frozen=True, slots=True)
class VideoWish:
    """How the result is encoded.

    Attributes:
        codec: "auto": VP9 in WebM, HEVC for more than 8 bits, else H.264.
        crf: constant quality, None = the codec's usual.
        encoder: "auto" = hardware where it works, else software.
        segment: frames between two cuts: lost at most when interrupted.
    """

    codec: Codec = "auto"
    crf: int | None = None
    encoder: Where = "auto"
    segment: int = 60


def upscale(
    source: Path,
    target: Path,
    wish: Wish,
    coded: VideoWish,
    progress: Progress = lambda share, before, rate: None,
    spent: Spent | None = None,
) -> None:
    """Upscale a video; the segments of an earlier, interrupted run of the same are taken.

    Args:
        target: its ending tells the container; replaced whole, or not at all.
        spent: filled, see `video_segments.made`.
    Raises:
        OverlayError: it cannot be read, done or written; finished segments stay.
        EngineError: the model cannot do it on this machine.
        OSError: the result cannot be written.
    """
    clip = read_clip(source)
    size, codec = prepared(clip, wish, open_model(wish, clip.size).scale, coded, target)
    with open_enlarger(clip, wish, size) as enlarger:
        coding = coding_for(clip, enlarger, codec, coded)
        kept = Kept(target, recipe(clip, enlarger.name, enlarger.sha256, wish, coding))
        cuts = cuts_of(clip, coding.length)

        def make(missing: list[int], told: Callable[[int], None]) -> Generator[Segment, None, None]:
            return made(clip, cuts, missing, enlarger, coding, lambda: told(1), spent)

        make_all(kept, clip, len(cuts), make, progress)
    finish(kept, clip, len(cuts), target)


def prepared(
    clip: Clip, wish: Wish, scale: int, coded: VideoWish, target: Path
) -> tuple[tuple[int, int], str]:
    """Say before anything is made what cannot be, and warn of what is lost.

    Args:
        scale: the model's.
    Returns:
        (width, height) of the result, and the codec.
    Raises:
        FileError, SettingsError: it cannot be made.
    """
    _warn(clip)
    size = even_size(clip, wish, scale)
    codec = codec_for(coded.codec, target.suffix.lower(), clip.depth > 8)
    _check_size(clip, scale, size, codec, target)
    video_join.check_container(clip, target)
    return size, codec


def finish(kept: Kept, clip: Clip, count: int, target: Path) -> None:
    """Join the `count` segments, which are all there, and take the folder away.

    Raises:
        FileError: they are not there, or hold nothing.
        OSError: the result cannot be written.
    """
    done = kept.done(count)
    came = sum(map(len, done.values()))
    if came != len(clip.times):
        log.warning("%s: of %d frames %d could be decoded", clip.path, len(clip.times), came)
    if len(done) < count:
        raise FileError(f"segments in {kept.folder} are gone: start again")
    _join(kept, clip, [done[number] for number in range(count)], target)
    kept.remove()


def coding_for(clip: Clip, enlarger: Enlarger, codec: str, coded: VideoWish) -> Coding:
    """Say how the result is encoded; tries hardware where it may.

    Raises:
        BackendUnavailable: hardware was asked for and there is none.
    """
    return coding_of(clip, enlarger.layout, enlarger.size, codec, coded)


def coding_of(
    clip: Clip, layout: str, size: tuple[int, int], codec: str, coded: VideoWish
) -> Coding:
    """Say how frames of a layout and size are encoded, see `coding_for`."""
    encoder = choose_encoder(codec, coded.encoder, layout, size)
    return Coding(
        codec, encoder, quality(codec, coded.crf), layout, size,
        clip.rate, clip.aspect, clip.colour, coded.segment,
    )  # fmt: skip


def even_size(clip: Clip, wish: Wish, scale: int = 0) -> tuple[int, int]:
    """Tell the size of the result: as for a picture, to even numbers, which 4:2:0 needs.

    Args:
        scale: the model's; 0 = open it and see.
    """
    size = result_size(wish, clip.size, scale or open_model(wish, clip.size).scale)
    width, height = (max(16, side + side % 2) for side in size)
    return width, height


def recipe(clip: Clip, name: str, sha256: str, wish: Wish, coding: Coding) -> dict[str, object]:
    """All that decides what the segments become; `name` and `sha256` are the model's."""
    about = clip.path.stat()
    return {
        "source": {
            "name": clip.path.name,
            "bytes": about.st_size,
            "modified_ns": about.st_mtime_ns,
            "frames": len(clip.times),
        },
        "model": {"name": name, "sha256": sha256},
        "wish": asdict(wish),
        "coding": asdict(coding),
        "pyav": av.__version__,
    }


def _warn(clip: Clip) -> None:
    if clip.colour.hdr:
        log.warning(
            "%s is HDR (%s): models have learnt from pictures without it; the light levels of "
            "its mastering display are left out", clip.path, clip.colour.hdr,
        )  # fmt: skip


def _check_size(clip: Clip, scale: int, size: tuple[int, int], codec: str, target: Path) -> None:
    if clip.size[0] * clip.size[1] * scale**2 > MAX_RESULT:
        raise FileError(
            f"{clip.path}: the model would make frames of {clip.size[0] * scale}x"
            f"{clip.size[1] * scale}: take one of a smaller scale"
        )
    if max(size) > MAX_SIDE[codec]:
        raise FileError(
            f"{target} would be {size[0]}x{size[1]}, and {codec} ends at {MAX_SIDE[codec]}: "
            "say a smaller --outscale or --target"
        )


def make_all(kept: Kept, clip: Clip, count: int, make: Make, progress: Progress) -> None:
    """Make those of `count` segments that are not there, and keep each as soon as it is done.

    Raises:
        OverlayError, EngineError, OSError: finished segments stay, unless the source is at fault.
    """
    there = kept.done(count)
    if there:
        log.info("%d of %d segments are there already", len(there), count)
    missing = [number for number in range(count) if number not in there]
    total = len(clip.times)
    before = min(sum(map(len, there.values())), total)
    frames, start = 0, time.perf_counter()

    def told(more: int) -> None:
        nonlocal frames
        frames += more
        rate = frames / (time.perf_counter() - start)
        progress(min(1.0, (before + frames) / total), before / total, rate)

    finished = len(there)
    try:
        with closing(make(missing, told)) as segments:
            for segment in segments:
                kept.keep(segment)
                finished += 1
    except BaseException as exc:
        if finished and not isinstance(exc, SourceDamaged):
            log.warning(
                "%d of %d segments stay in %s: the same command goes on",
                finished, count, kept.folder,
            )  # fmt: skip
        else:
            kept.remove()
        raise


def _join(kept: Kept, clip: Clip, times: list[list[int]], target: Path) -> None:
    draft = kept.folder / "joined"
    parts = [
        ((lambda number=number: kept.data(number)), shown) for number, shown in enumerate(times)
    ]
    parts = [part for part in parts if part[1]]
    if not parts:
        raise FileError(f"{clip.path} holds no frame that could be decoded")
    try:
        with draft.open("w+b") as file:
            video_join.join(clip, parts, file, target)
            file.flush()
            os.fsync(file.fileno())  # the parts are deleted next
        os.replace(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
