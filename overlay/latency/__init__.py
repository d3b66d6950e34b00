"""`overlay latency`: how long a frame takes from the game to the screen, measured on the screen.

A window draws numbered frames, the real overlay shows them, and the screen is read back and
decoded. It is a loop in software: what comes after the desktop's picture (the scan-out, the
cable, the panel) is not in it. Fields and definitions are in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from overlay import settings as options
from overlay.errors import SettingsError
from overlay.frame import Size
from overlay.settings import Settings, parse_size

if TYPE_CHECKING:
    from overlay.latency.selftest import Plan, Report

#: Exit code when no frame was seen.
NOTHING_SEEN = 3

_MODES = ("over", "beside", "fullscreen")
#: Longest the overlay may take to open, for which there must be numbers as well.
_OPENING_S = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `overlay latency`."""
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="measured time (default: 10)"
    )
    group.add_argument(
        "--source-size", default="480x270", metavar="WxH",
        help="size of the window that is captured (default: 480x270)",
    )  # fmt: skip
    group.add_argument(
        "--rate", dest="rate_hz", type=float, default=60.0, metavar="HZ",
        help="rate at which it draws (default: 60)",
    )  # fmt: skip
    group.add_argument(
        "--capture", default="auto", metavar="NAME", help="capture back end (default: auto)"
    )
    group.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_arguments(parser, ["upscaler", "picture", "hud"])


def plan(arguments: argparse.Namespace) -> Plan:
    """Check the options.

    Raises:
        SettingsError: with the option, its value and what is allowed.
    """
    from overlay.latency.code import LARGEST, NARROWEST_PX
    from overlay.latency.selftest import Plan

    try:
        size = parse_size(arguments.source_size)
    except ValueError as exc:
        raise SettingsError(f"--source-size: {arguments.source_size!r}: {exc}") from exc
    if size.width < NARROWEST_PX or size.height < 36:
        raise SettingsError(
            f"--source-size: {size} is too small; {NARROWEST_PX}x36 is the smallest"
        )
    seconds, rate_hz = arguments.seconds, arguments.rate_hz
    if not 1 <= rate_hz <= 240:
        raise SettingsError(f"--rate: expected 1 to 240 Hz, not {rate_hz:g}")
    longest = LARGEST / rate_hz - _OPENING_S
    if not 0.5 <= seconds <= longest:
        raise SettingsError(
            f"--seconds: expected 0.5 to {longest:.0f} at {rate_hz:g} Hz, not {seconds:g}"
        )
    return Plan(_settings(arguments), size, rate_hz, seconds)


def _settings(arguments: argparse.Namespace) -> Settings:
    """Take what was given; the rest as in `overlay run`, but 960x540 and the pointer left free."""
    given = options.from_arguments(arguments)
    if given.present not in _MODES:
        raise SettingsError(
            f"--present: the self-test looks at the screen where the overlay is known to be: "
            f"{', '.join(_MODES)}, not {given.present}"
        )
    if given.fit not in ("fit", "integer", "stretch"):
        raise SettingsError(f"--fit: {given.fit} cuts off the coded strip; use fit or stretch")
    if given.hud != "off" and given.hud_corner.startswith("bottom"):
        raise SettingsError(
            f"--hud-corner: {given.hud_corner} is where the coded strip is; choose a top corner"
        )
    output = given.output
    if output is None and given.scale is None and given.present != "fullscreen":
        output = Size(960, 540)
    pointer = given.pointer and "pointer" in arguments
    return replace(given, source=arguments.capture, output=output, pointer=pointer)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; exit code 3 if not one frame was seen on the screen."""
    wanted = plan(arguments)
    from overlay.latency.selftest import measure

    report = measure(wanted)
    if report.signal:
        return 128 + report.signal
    if arguments.json:
        sys.stdout.write(json.dumps(to_json(report), indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(text(report)) + "\n")
    if not report.latency.seen:
        sys.stderr.write(
            "overlay: error: not one frame was seen on the screen; is something above the overlay, "
            "or a screen saver on?\n"
        )
        return NOTHING_SEEN
    return 0


def to_json(report: Report) -> dict[str, object]:
    """Give the documented object of `--json`."""
    return {**report.latency.to_json(), **report.facts}


def text(report: Report) -> Iterator[str]:
    """Write the figures for people, line by line."""
    facts, found = report.facts, report.latency
    machine = facts["machine"]
    yield (
        f"{facts['source_size']} at {facts['rate_hz']:g} Hz -> {facts['model']} "
        f"({facts['backend']}, {facts['device']}) -> {facts['output_size']}, "
        f"{facts['present']}, HUD {facts['hud']}"
    )
    yield f"capture {facts['capture']}; OpenGL {facts['renderer']}"
    yield (
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_before']} before, "
        f"{machine['load_after']} after"
    )
    yield (
        f"{found.source_frames} frames drawn in {facts['seconds']:g} s ({found.source_fps:.1f} "
        f"fps): {found.seen} seen ({found.seen_fps:.1f} fps), {found.lost} lost, "
        f"{found.duplicated} duplicated"
    )
    if found.lost:
        where = ", ".join(f"{count} {name}" for name, count in found.lost_where.items() if count)
        yield f"lost: {where.replace('_', ' ')}"
    yield f"{'ms':<22}{'p50':>9}{'p95':>9}{'p99':>9}"
    rows = {"capture to screen": found.capture_to_screen_ms}
    rows |= {f"  {name.replace('_', ' ')}": value for name, value in found.stages_ms.items()}
    rows["probe period"] = found.probe_period_ms
    for name, value in rows.items():
        cells = (
            f"{'-' if p is None else format(p, '.2f'):>9}"
            for p in (value.p50, value.p95, value.p99)
        )
        yield f"{name:<22}{''.join(cells)}"
    yield "a loop in software: the scan-out and the panel are not in it"
