"""`overlay upscale`: pictures, videos and folders of them, to files."""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engines.offline import BACKENDS
from overlay.cli import add_json
from overlay.errors import SettingsError
from overlay.files import batch
from overlay.files.batch import WRITTEN, Job, Plan, Spread, Summary

if TYPE_CHECKING:
    from overlay.files.cluster import Cluster
    from overlay.files.enlarge import Wish

#: As in `video_encode`, which needs PyAV.
_CODECS = ("auto", "h264", "hevc", "vp9")
_ENCODERS = ("auto", "hardware", "software")
#: Largest factor and side that can be asked for.
_MOST = 64
_MAX_SIDE = 65500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `overlay upscale`."""
    add = parser.add_argument
    add("sources", nargs="+", type=Path, metavar="IN", help="pictures, videos, folders")
    add("-o", "--out", type=Path, required=True, metavar="OUT", help="a file, or a folder")
    add(
        "--model", default="default",
        help="a name of overlay engines --list, a file, hf:OWNER/NAME; default: the shipped net "
        "that reaches the size wanted, x4 if none is",
    )  # fmt: skip
    add(
        "--denoise", type=float, metavar="0..1",
        help="of realesr-general-x4v3: 0 keeps the noise (default 0.5)",
    )  # fmt: skip
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--outscale", type=_factor, default=0.0, metavar="F", help="any factor")
    size.add_argument(
        "--target", type=_size, metavar="WxH", help="fit into this size, keeping the aspect"
    )
    add("--tile", type=_count, default=0, metavar="PX", help="tiles; 0 = by free memory")
    add("--seed", type=_count, default=0, help="of models that draw at random")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    add("--backend", choices=BACKENDS, default="auto")
    endings = [ending[1:] for kind in WRITTEN.values() for ending in kind]
    add("--format", choices=endings, help="of the results of its kind")
    add("--quality", type=_quality, default=95, help="of JPEG and WebP, 1 to 100 (default 95)")
    video = parser.add_argument_group("videos")
    video.add_argument(
        "--codec", choices=_CODECS, default="auto",
        help="auto: VP9 in WebM, HEVC for more than 8 bits, else H.264",
    )  # fmt: skip
    video.add_argument(
        "--crf", type=_crf, metavar="N",
        help="constant quality, lower is better (default: H.264 18, HEVC 20, VP9 24)",
    )  # fmt: skip
    video.add_argument(
        "--encoder", choices=_ENCODERS, default="auto", help="auto: hardware where it works"
    )
    video.add_argument(
        "--segment", type=_frames, default=60, metavar="FRAMES",
        help="between two cuts: what is lost at most when interrupted (default 60)",
    )  # fmt: skip
    add(
        "--ray", default="", metavar="ADDRESS",
        help="on a Ray cluster, of which this machine is part: HOST:PORT of its head, or auto; "
        "videos with --encoder software",
    )  # fmt: skip
    there = parser.add_mutually_exclusive_group()
    there.add_argument("--skip-existing", action="store_true", help="pass over what is done")
    there.add_argument("--overwrite", action="store_true", help="replace what is there")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Upscale; 1 if any file failed."""
    from overlay.files.enlarge import Wish

    wish = Wish(
        arguments.model, arguments.outscale, arguments.target, arguments.tile, arguments.seed,
        arguments.device, arguments.backend, arguments.denoise,
    )  # fmt: skip
    plan = batch.plan(
        arguments.sources, arguments.out, f".{arguments.format}" if arguments.format else ""
    )
    line = ProgressLine(len(plan.jobs))
    start = time.perf_counter()
    try:
        with (
            terminable(),
            _ready(arguments, wish, plan, line) as (do, spread),
            terminable(),  # Ray has taken the signal meanwhile
        ):
            summary = batch.work(
                plan, do, overwrite=arguments.overwrite, skip_existing=arguments.skip_existing,
                told=line.after, spread=spread,
            )  # fmt: skip
    except (KeyboardInterrupt, SystemExit):
        line.end()
        sys.stderr.write("overlay: interrupted; --skip-existing goes on behind what is done\n")
        raise
    finally:
        line.end()
    _report(summary, time.perf_counter() - start, arguments.json)
    return 1 if summary.failed else 0


@contextmanager
def _ready(
    arguments: argparse.Namespace, wish: Wish, plan: Plan, line: ProgressLine
) -> Iterator[tuple[Callable[[Job], None], Spread]]:
    """Open what is needed; give what does one job, and what does all."""
    if not arguments.ray:
        _try_model(wish, plan)
        yield lambda job: _do(job, wish, arguments, line), map
        return
    if arguments.encoder == "hardware":
        raise SettingsError("--ray encodes in software: leave out --encoder")
    from overlay.files.cluster import Cluster

    with Cluster(arguments.ray, wish) as cluster:
        yield lambda job: _do_there(job, cluster, arguments, line), cluster.spread


def _do_there(
    job: Job, cluster: Cluster, arguments: argparse.Namespace, line: ProgressLine
) -> None:
    """Do a job on a cluster; on a thread, beside others."""
    if job.kind == "image":
        cluster.picture(job.source, job.target, arguments.quality)
        return
    from overlay.files.video import VideoWish

    coded = VideoWish(arguments.codec, arguments.crf, "software", arguments.segment)
    with line.beside() as told:
        cluster.video(job.source, job.target, coded, told)


def _do(job: Job, wish: Wish, arguments: argparse.Namespace, line: ProgressLine) -> None:
    if job.kind == "video":
        from overlay.files.video import VideoWish, upscale

        coded = VideoWish(arguments.codec, arguments.crf, arguments.encoder, arguments.segment)
        upscale(job.source, job.target, wish, coded, line.within_video)
        return
    from overlay.files import images
    from overlay.files.enlarge import enlarged

    picture = images.read(job.source)
    large = enlarged(picture, job.target, wish, line.within)
    images.write(large, job.target, arguments.quality)


@contextmanager
def terminable() -> Iterator[None]:
    """End as with Ctrl+C when terminated: nothing half-written stays. Main thread only."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _try_model(wish: Wish, plan: Plan) -> None:
    """Open the model once, so that what is wrong with it is said once and not for every file."""
    from overlay.files.enlarge import open_model

    if plan.jobs:
        open_model(wish, (1, 1))


def _report(summary: Summary, seconds: float, as_json: bool) -> None:
    for _, reason in summary.failed:
        sys.stderr.write(f"overlay: {reason}\n")
    if as_json:
        found = {
            "done": [str(path) for path in summary.done],
            "skipped": [str(path) for path in summary.skipped],
            "failed": [{"file": str(path), "why": why} for path, why in summary.failed],
            "seconds": round(seconds, 3),
        }
        sys.stdout.write(json.dumps(found) + "\n")
        return
    sys.stdout.write(
        f"{len(summary.done)} done, {len(summary.skipped)} skipped, {len(summary.failed)} failed "
        f"in {seconds:.1f} s\n"
    )


class ProgressLine:
    """One line that changes on a terminal: share done, files a second, time left.

    Args:
        total: number of files.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._shown = sys.stderr.isatty() and total > 0
        self._start = time.perf_counter()
        self._last = -math.inf
        self._before = 0  # files of which something became
        self._worked = 0.0  # of these, such as took time
        self._there = 0.0  # of the present file, what an earlier run did
        self._given = 0.0  # the same of all files before it
        self._beside: dict[object, float] = {}  # shares of videos done at once; `_lock` guards it
        self._lock = threading.Lock()

    def within(self, share: float) -> None:
        """Take the share of the present file that is done."""
        self._show(share)

    def within_video(self, share: float, there: float, rate: float) -> None:
        """Take the share that is done, of it what an earlier run did, and frames a second."""
        self._there = there
        self._show(share, f", {rate:.1f} fps")

    @contextmanager
    def beside(self) -> Iterator[Callable[[float, float, float], None]]:
        """Give what takes the share of one of several videos that are done at once."""
        key = object()

        def told(share: float, there: float, rate: float) -> None:
            with self._lock:
                self._beside[key] = share
                self._show(0.0)

        try:
            yield told
        finally:
            with self._lock:
                self._beside.pop(key, None)

    def after(self, summary: Summary) -> None:
        """Take what became of the files so far."""
        self._before += 1
        self._given += self._there
        self._there = 0.0
        self._worked = self._before - len(summary.skipped)
        self._show(0.0)

    def _show(self, share: float, more: str = "") -> None:
        now = time.perf_counter()
        if self._shown and now - self._last >= 0.1:
            self._last = now
            worked = self._worked - self._given - self._there
            share += sum(list(self._beside.values()))
            text = progress_text(self._before, worked, share, self._total, now - self._start)
            sys.stderr.write(f"\r{text}{more}\x1b[K")
            sys.stderr.flush()

    def end(self) -> None:
        """Take the line away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def progress_text(before: int, worked: float, share: float, total: int, seconds: float) -> str:
    """Say how far it is.

    Args:
        before: files that are through.
        worked: of these, those that were not skipped: only they tell the rate. Less what was done
            of a video before.
        share: of the present file that is done.
        total: number of files.
        seconds: since the start.
    """
    rate = (worked + share) / seconds if seconds > 0 else 0.0
    left = "?" if not rate else _clock((total - before - share) / rate)
    percent = 100 * (before + share) / total
    return f"{before}/{total} ({percent:.0f} %), {rate:.2f} files/s, {left} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor <= _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is no factor above 0, to {_MOST}")
    return factor


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 1920x1080")
    size = int(width[:9]), int(height[:9])
    if not 0 < min(size) <= max(size) <= _MAX_SIDE:
        raise argparse.ArgumentTypeError(f"sides of {text!r} must be 1 to {_MAX_SIDE}")
    return size


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0")
    return int(text)


def _crf(text: str) -> int:
    crf = _count(text)
    if not 1 <= crf <= 51:
        raise argparse.ArgumentTypeError(f"a constant quality is 1 to 51, not {text}")
    return crf


def _frames(text: str) -> int:
    frames = _count(text)
    if not 1 <= frames <= 100_000:
        raise argparse.ArgumentTypeError(f"a segment has 1 to 100000 frames, not {text}")
    return frames


def _quality(text: str) -> int:
    quality = _count(text)
    if not 1 <= quality <= 100:
        raise argparse.ArgumentTypeError(f"a quality is 1 to 100, not {text}")
    return quality
