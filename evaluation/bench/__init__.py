"""`overlay bench`: how fast the upscalers are here, beside bilinear and bicubic.

Definitions of every figure are in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.bench import gpu
from overlay.errors import OverlayError, SettingsError
from overlay.frame import Size
from overlay.settings import parse_size

if TYPE_CHECKING:
    from evaluation.bench.cases import Wanted
    from evaluation.bench.result import Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `overlay bench`."""
    parser.add_argument(
        "--suite", default="upscalers", choices=("upscalers", "gpu", "video"),
        help="upscalers as the overlay runs them (default); gpu: nets on an NVIDIA GPU by "
        "themselves, against PyTorch's own ways; video: a video in a file, and each stage alone",
    )  # fmt: skip
    parser.add_argument(
        "--models", metavar="A,B",
        help="names, or all (every net and shader); default: every net; bilinear and bicubic "
        "always come along",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", default="480x270,640x360,960x540", metavar="WxH,…",
        help="input sizes (default: 480x270,640x360,960x540)",
    )  # fmt: skip
    parser.add_argument(
        "--scales", default="2,3,4", metavar="N,…", help="output / input size (default: 2,3,4)"
    )
    parser.add_argument(
        "--largest", default="1920x1080", metavar="WxH",
        help="larger outputs are left out (default: 1920x1080)",
    )  # fmt: skip
    parser.add_argument(
        "--frames", type=int, default=200, metavar="N", help="timed frames a row (default: 200)"
    )
    parser.add_argument(
        "--source", default="pattern", metavar="NAME",
        help="pattern, or replay:PATH with images or a video (default: pattern)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="of nets and cv2, 0 = all cores"
    )
    parser.add_argument("--capture", action="store_true", help="also time the capture of a window")
    parser.add_argument("--hud", action="store_true", help="also time the HUD")
    parser.add_argument(
        "--quiet-wait", type=float, default=0.0, metavar="S",
        help="wait up to S seconds in all for a quiet machine, and repeat what was disturbed",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables here")
    gpu.add_arguments(parser)


def wanted(arguments: argparse.Namespace) -> Wanted:
    """Check the options.

    Raises:
        SettingsError: with the option, its value and what is allowed.
    """
    from evaluation.bench.cases import Wanted

    if arguments.frames < 1:
        raise SettingsError(f"--frames must be at least 1, not {arguments.frames}")
    if not 0 <= arguments.threads <= 256:
        raise SettingsError(f"--threads: expected 0 to 256, not {arguments.threads}")
    if not 0 <= arguments.quiet_wait <= 3600:
        raise SettingsError(f"--quiet-wait: expected 0 to 3600 s, not {arguments.quiet_wait:g}")
    try:
        scales = tuple(int(word) for word in _words(arguments.scales))
    except ValueError:
        scales = ()
    if not scales or not all(1 <= scale <= 8 for scale in scales):
        raise SettingsError(f"--scales: expected numbers from 1 to 8, not {arguments.scales!r}")
    sizes = tuple(_size("--sizes", word) for word in _words(arguments.sizes))
    if not sizes:
        raise SettingsError("--sizes names no size; give 480x270, say")
    models = tuple(_words(arguments.models or ""))
    every = "all" in models
    return Wanted(
        models=() if every else models,
        every=every,
        sizes=sizes,
        scales=scales,
        largest=_size("--largest", arguments.largest),
        threads=arguments.threads or _cores(),
    )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _size(option: str, text: str) -> Size:
    try:
        return parse_size(text)
    except ValueError as exc:
        raise SettingsError(f"{option}: {text!r}: {exc}") from exc


def _cores() -> int:
    from overlay.latency.machine import describe

    return int(describe()["cores"])


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and write the Markdown file if asked for."""
    if arguments.suite == "gpu":
        return gpu.run(arguments)
    plan = wanted(arguments)
    if arguments.markdown is not None:
        _check_writable(arguments.markdown)
    if arguments.suite == "video":
        return _run_video(plan, arguments)
    result = measure(plan, arguments)
    if arguments.json:
        sys.stdout.write(json.dumps(result.to_json(), indent=2) + "\n")
    else:
        sys.stdout.write(result.text() + "\n")
    if arguments.markdown is not None:
        arguments.markdown.write_text(result.markdown(), encoding="utf-8")
    return 0


def _run_video(plan: Wanted, arguments: argparse.Namespace) -> int:
    from evaluation.bench import video

    models = plan.models or video.DEFAULT_MODELS
    found = video.measure(models, plan.sizes, arguments.frames, arguments.quiet_wait)
    found = {"command": _command(), **found}
    table = video.text(found)
    sys.stdout.write(json.dumps(found, indent=2) + "\n" if arguments.json else table)
    if arguments.markdown is not None:
        arguments.markdown.write_text(table, encoding="utf-8")
    return 0


def _check_writable(path: Path) -> None:
    """Say that the file cannot be written before minutes were spent, not after."""
    try:
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as exc:
        raise OverlayError(f"cannot write {path}: {exc.strerror}; choose another file") from exc


def measure(plan: Wanted, arguments: argparse.Namespace) -> Result:
    """Run everything that was asked for.

    Raises:
        BackendUnavailable: there is no OpenGL, or a model that was named cannot run.
        EngineError: a model that was named is missing or damaged.
        OverlayError: `--capture` without a display.
    """
    import cv2

    from evaluation.bench import capture, cases, frames, hud, result, rounds
    from overlay.latency import machine
    from overlay.present.offscreen import OffscreenPresenter

    load_before = machine.load_average()
    found = frames.pictures(arguments.source)
    by_size = {size: frames.frames(found, size) for size in plan.sizes}
    captured = [
        row
        for size in (plan.sizes if arguments.capture else ())
        for row in capture.measure_capture(size, arguments.frames)
    ]
    threads_before = cv2.getNumThreads()
    cv2.setNumThreads(plan.threads)
    try:
        with ExitStack() as stack:
            presenter = stack.enter_context(OffscreenPresenter())
            renderer = presenter.device
            opened, left_out = cases.open_cases(stack, plan, presenter.software)
            samples = rounds.measure(
                opened, by_size, presenter, arguments.frames,
                quiet_wait_s=arguments.quiet_wait, progress=_progress,
            )  # fmt: skip
            rows = [result.row(*pair, renderer) for pair in zip(opened, samples, strict=True)]
            outputs = {case.output: case.input for case in opened} if arguments.hud else {}
            costs = [
                hud.measure_hud(by_size[size], output, presenter, arguments.frames)
                for output, size in outputs.items()
            ]
    finally:
        cv2.setNumThreads(threads_before)
    facts = {
        "command": _command(),
        "source": arguments.source,
        "frames": arguments.frames,
        "threads": plan.threads,
        "renderer": renderer,
        "machine": {
            **machine.describe(),
            "load_before": load_before,
            "load_after": machine.load_average(),
        },
    }
    return result.Result(facts, rows, left_out, captured, costs)


def _command() -> str:
    """Give the command line as it can be typed again; of paths the last part."""
    words = [word.rsplit(os.sep, 1)[-1] if os.path.isabs(word) else word for word in sys.argv[1:]]
    return shlex.join(["overlay", *words])


def _progress(done: int, of: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\rround {done} of {of}" + ("\n" if done == of else ""))
        sys.stderr.flush()
