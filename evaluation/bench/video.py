"""`overlay bench --suite video`: a video as `overlay upscale` makes it, and each stage alone.

What the stages allow together is the lower of two rates: of the slowest stage that has all cores
for itself, and of all of them sharing the cores, which is cores / (processor time of a frame
through all stages). The second counts where net and encoder are both on the CPU.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np

from engines import frames
from evaluation.bench.rounds import Waiter, disturbed
from overlay.files import video
from overlay.files.enlarge import Wish
from overlay.files.video_colour import Colour, frame_from_rgb
from overlay.files.video_encode import SegmentEncoder
from overlay.files.video_models import Enlarger, Item, open_enlarger
from overlay.files.video_segments import Spent, cuts_of
from overlay.files.video_source import Clip, FrameReader, read_clip
from overlay.frame import Size
from overlay.latency import machine
from overlay.latency.machine import CpuClock, CpuUse

Row = dict[str, Any]

STAGES = ("decode", "infer", "encode")
DEFAULT_MODELS = ("default-x4",)
_RATE = 30
#: Frames of the source between two views of the game.
_VIEW = 50
#: A measurement that other processes disturbed is repeated so often at most.
_REPEATS = 3


@dataclass(slots=True)
class Alone:
    """Times of one stage with all cores for itself, over all frames, in seconds."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Add what the body takes, on all threads."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.process_time() - cpu


@dataclass(slots=True)
class Case:
    """One model at one size.

    Attributes:
        frames: of the video.
        alone: each of `STAGES`.
        whole_s: of the whole command but for starting Python: looking at the source, opening the
            net, all frames, joining.
        spent: of the stages side by side; see `video_segments.Spent`.
        other_cores: how many cores other processes kept busy; None where it cannot be known.
    """

    model: str
    input: Size
    output: Size
    encoder: str
    frames: int
    cores: int
    alone: dict[str, Alone] = field(default_factory=lambda: {name: Alone() for name in STAGES})
    whole_s: float = 0.0
    spent: Spent = field(default_factory=Spent)
    other_cores: float | None = None

    def to_json(self) -> Row:
        """Give the documented fields, see docs/benchmarks.md."""
        cpu_s = sum(stage.cpu_s for stage in self.alone.values())
        slowest = self.frames / max(stage.wall_s for stage in self.alone.values())
        shared = self.frames * self.cores / cpu_s
        whole, running = self.frames / self.whole_s, self.spent.frames / self.spent.wall_s
        allowed = min(slowest, shared)
        return {
            "model": self.model,
            "input_size": str(self.input),
            "output_size": str(self.output),
            "encoder": self.encoder,
            "frames": self.frames,
            "whole_fps": round(whole, 2),
            "running_fps": round(running, 2),
            "alone_fps": {n: round(self.frames / s.wall_s, 2) for n, s in self.alone.items()},
            "cpu_ms": {n: round(1e3 * s.cpu_s / self.frames, 2) for n, s in self.alone.items()},
            "cpu_share": {n: round(s.cpu_s / cpu_s, 3) for n, s in self.alone.items()},
            "busy_share": {
                name: round(getattr(self.spent, f"{name}_s") / self.spent.wall_s, 3)
                for name in STAGES
            },
            "slowest_fps": round(slowest, 2),
            "shared_fps": round(shared, 2),
            "whole_of_allowed": round(whole / allowed, 3),
            "running_of_allowed": round(running / allowed, 3),
            "other_cores": None if self.other_cores is None else round(self.other_cores, 2),
        }


def source(path: Path, size: Size, count: int) -> Path:
    """Write the video that is measured: views of Freedoom that move sideways, in H.264.

    Args:
        count: frames, at 30 a second.
    """
    views = [np.ascontiguousarray(view[..., 2::-1]) for view in frames.read(size)]
    colour = Colour(1, False, 1, 1)
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=_RATE, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = size.width, size.height, "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_range = colour.matrix, colour.range
        for number in range(count):
            view = views[number // _VIEW % len(views)]
            frame = frame_from_rgb(np.roll(view, 2 * number, 1), colour, "yuv420p", size)
            frame.pts, frame.time_base = number, Fraction(1, _RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def measure(
    models: Sequence[str], sizes: Sequence[Size], count: int, quiet_wait_s: float = 0.0
) -> dict[str, Any]:
    """Measure every model at every size.

    Args:
        count: frames of each video.
        quiet_wait_s: so long in all it may wait for a quiet machine.
    Raises:
        EngineError, OverlayError: a model cannot be opened or run.
    """
    waiter = Waiter(quiet_wait_s)
    waiter.wait()
    before = machine.load_average()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            clip = source(Path(folder) / f"{size}.mp4", size, count)
            rows += [_measured(model, clip, waiter).to_json() for model in models]
    return {
        "machine": {
            **machine.describe(),
            "load_before": before,
            "load_after": machine.load_average(),
        },
        "pyav": av.__version__,
        "segment": video.VideoWish().segment,
        "rows": rows,
    }


def _measured(model: str, path: Path, waiter: Waiter) -> Case:
    for attempt in range(_REPEATS + 1):
        case, use = _measure(model, path)
        if attempt == _REPEATS or not disturbed(use) or not waiter.wait():
            break
    case.other_cores = use.other_cores
    return case


def _measure(model: str, path: Path) -> tuple[Case, CpuUse]:
    wish, coded = Wish(model=model), video.VideoWish(encoder="software")
    clip = read_clip(path)
    size = video.even_size(clip, wish)
    clock = CpuClock()
    with open_enlarger(clip, wish, size) as enlarger:
        coding = video.coding_for(clip, enlarger, "h264", coded)
        case = Case(
            enlarger.name, Size(*clip.size), Size(*size), coding.encoder, len(clip.times),
            machine.describe()["cores"],
        )  # fmt: skip
        for cut in cuts_of(clip, coding.length):
            _stage_by_stage(case, clip, cut, enlarger, SegmentEncoder(coding))
    target = path.with_name("large.mp4")
    start = time.perf_counter()
    video.upscale(path, target, wish, coded, spent=case.spent)
    case.whole_s = time.perf_counter() - start
    target.unlink()
    return case, clock.use()


def _stage_by_stage(
    case: Case, clip: Clip, cut: tuple[int, int | None], enlarger: Enlarger, encoder: SegmentEncoder
) -> None:
    """Take one segment through the stages, one after the other."""
    with FrameReader(clip) as reader:
        list(reader.stretch(clip.times[0], cut[0]))  # so that it need not be sought
        items: list[Item] = []
        with case.alone["decode"].clock():
            items += (enlarger.prepare(frame) for frame in reader.stretch(*cut))
    for item in items:
        with case.alone["infer"].clock():
            enlarger.run(item)
        if hasattr(item.large, "pixels"):  # the net's own, of which there are few
            item.large = SimpleNamespace(pixels=item.large.pixels.copy())
    with case.alone["encode"].clock():
        for item in items:
            encoder.add(enlarger.finish(item))
        encoder.end()


def text(result: dict[str, Any]) -> str:
    """Set the result as Markdown, which reads as text too."""
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD))]
    lines += [_line(_cells(row)) for row in result["rows"]]
    return "\n".join([_facts(result), "", *lines]) + "\n"


_HEAD = (
    "model", "input", "output", "whole fps", "running fps", "decode alone fps", "infer alone fps",
    "encode alone fps", "CPU ms decode / infer / encode", "CPU share %", "slowest alone fps",
    "sharing the cores fps", "whole of allowed %", "running of allowed %", "other cores",
)  # fmt: skip


def _cells(row: Row) -> Iterator[str]:
    yield from (row["model"], row["input_size"], row["output_size"])
    yield from (f"{row['whole_fps']:.1f}", f"{row['running_fps']:.1f}")
    yield from (f"{row['alone_fps'][name]:.1f}" for name in STAGES)
    yield " / ".join(f"{row['cpu_ms'][name]:.1f}" for name in STAGES)
    yield " / ".join(f"{100 * row['cpu_share'][name]:.0f}" for name in STAGES)
    yield from (f"{row['slowest_fps']:.1f}", f"{row['shared_fps']:.1f}")
    yield from (f"{100 * row[f'{name}_of_allowed']:.0f}" for name in ("whole", "running"))
    yield "?" if row["other_cores"] is None else f"{row['other_cores']:.2f}"


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _facts(result: dict[str, Any]) -> str:
    about = result["machine"]
    return (
        f"{about['cpu']}, {about['cores']} cores, {about['system']}, Python {about['python']}, "
        f"PyAV {result['pyav']}; load before {about['load_before']}, after {about['load_after']}; "
        f"segments of {result['segment']} frames"
    )
