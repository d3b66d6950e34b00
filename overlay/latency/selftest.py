"""Run the self-test: source window -> the real overlay -> probe, and gather what they stamped.

The overlay is opened by `overlay.run.open_session` and run by its pipeline on the main thread,
as `overlay run` does it; source and probe are processes of their own.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from overlay.capture import CaptureSource
from overlay.errors import OverlayError, PresentError
from overlay.frame import Frame, Region, Size
from overlay.latency import machine
from overlay.latency.child import Child, orderly_exit
from overlay.latency.code import NARROWEST_PX, columns, decode, strip_row
from overlay.latency.result import Latency, evaluate
from overlay.latency.stamps import Stamps
from overlay.pipeline import Limits
from overlay.present.fit import place
from overlay.present.placement import surface_region
from overlay.run import Session, Signals, look, open_session
from overlay.settings import Settings
from overlay.window import Query, find, open_desktop

#: Not counted: caches fill, clocks rise, and the HUD's first texts are laid out.
WARM_UP_S = 1.0
#: Goes on after the last frame that counts, so that it can still reach the screen.
_DRAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Attributes:
        settings: of the overlay.
        source_size: of the source window, in pixels.
        rate_hz: at which it draws.
        seconds: measured, after the warm-up.
    """

    settings: Settings
    source_size: Size
    rate_hz: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """What came out.

    Attributes:
        latency: the figures.
        facts: sizes, names and the machine, as in `--json`.
        signal: number of the signal that ended the run early; 0 if none did.
    """

    latency: Latency
    facts: dict[str, Any]
    signal: int = 0


class NumberedSource(CaptureSource):
    """A capture source that keeps the strip of each frame; nothing else is changed.

    It costs about 10 microseconds per frame, which count as the stage "wait". (Decoding here
    would cost 200: code that runs 60 times a second is never in the caches.)
    """

    def __init__(self, source: CaptureSource) -> None:
        self._source = source
        self.name = source.name
        self._strips: dict[int, bytes] = {}  # sequence number -> a row; the capture thread's

    def grab(self, timeout_s: float) -> Frame | None:
        frame = self._source.grab(timeout_s)
        if frame is not None:
            self._strips[frame.sequence] = frame.pixels[strip_row(len(frame.pixels))].tobytes()
        return frame

    def numbers(self) -> dict[int, int]:
        """Give sequence number -> the number in the frame's pixels, where it can be read."""
        found = {}
        for sequence, strip in self._strips.items():
            row = np.frombuffer(strip, np.uint8).reshape(-1, 4)
            if len(row) >= NARROWEST_PX and (number := decode(row[columns(len(row)), 1])):
                found[sequence] = number
        return found

    @property
    def region(self) -> Region:
        return self._source.region

    @property
    def visible(self) -> bool:
        return self._source.visible

    def close(self) -> None:
        self._source.close()


def measure(plan: Plan) -> Report:
    """Run the self-test once: a few seconds to start, the warm-up, then `plan.seconds`.

    Raises:
        DisplayLost: there is no display.
        OverlayError, EngineError: what `overlay run` would end with.
    """
    load_before = machine.load_average()
    with orderly_exit(), ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="overlay-latency-", ignore_cleanup_errors=True)
        )
        path = Path(folder) / "stamps"
        stamps = Stamps.create(path)
        source = stack.enter_context(_start_source(path, plan))
        with open_desktop() as desktop:
            window = find(desktop, Query(id=int(source.ready["window"])))
        limits = Limits(seconds=WARM_UP_S + plan.seconds + _DRAIN_S)
        session = open_session(stack, plan.settings, window, limits, NumberedSource)
        numbered = session.source
        assert isinstance(numbered, NumberedSource)
        picture = picture_region(session)
        arguments = ["--stamps", str(path), "--picture", str(picture)]
        probe = stack.enter_context(Child("overlay.latency.probe", arguments))
        signals = stack.enter_context(Signals(session.pipeline))
        clock = machine.CpuClock()
        begin_ns = time.perf_counter_ns() + int(WARM_UP_S * 1e9)
        try:
            session.run()
        finally:
            session.finish()
        used = clock.use()
        for name, child in (("source", source), ("probe", probe)):
            if not signals.caught and child.ended is not None:
                raise OverlayError(f"the self-test's {name} ended with status {child.ended}")
            child.stop()
        latency = evaluate(
            stamps.drawn,
            stamps.sightings(),
            session.recorder.table(),
            numbered.numbers(),
            trace_start_ns=session.recorder.start_ns,
            begin_ns=begin_ns,
            end_ns=begin_ns + int(plan.seconds * 1e9),
            unreadable=stamps.unreadable,
        )
        facts = _facts(plan, session, source, picture)
        facts["machine"] |= {
            "load_before": load_before,
            "load_after": machine.load_average(),
            "overlay_cores": round(used.own_s / used.wall_s, 2),
        }
        return Report(latency, facts, signals.caught)


def _start_source(path: Path, plan: Plan) -> Child:
    arguments = ["--stamps", str(path), "--size", str(plan.source_size)]
    return Child("overlay.latency.source", [*arguments, "--rate", str(plan.rate_hz)])


def picture_region(session: Session) -> Region:
    """Give where on the desktop the overlay shows the picture.

    Raises:
        PresentError: there is no monitor.
    """
    import glfw

    monitors = []
    for monitor in glfw.get_monitors():
        mode = glfw.get_video_mode(monitor)
        if mode:
            monitors.append(Region(*glfw.get_monitor_pos(monitor), *mode.size))
    if not monitors:
        raise PresentError("the desktop has no monitor; turn one on")
    wanted = look(session.settings)
    game = session.source.region
    surface = surface_region(wanted, game, monitors)
    inside = place(game.size, surface.size, wanted.fit)
    return Region(surface.left + inside.left, surface.top + inside.top, *inside.size)


def _facts(plan: Plan, session: Session, source: Child, picture: Region) -> dict[str, Any]:
    """Name what was measured; keys as in `--json`."""
    upscaler = session.pipeline.upscaler
    return {
        "seconds": plan.seconds,
        "warm_up_s": WARM_UP_S,
        "rate_hz": plan.rate_hz,
        "source_size": str(session.source.region.size),
        "output_size": str(picture.size),
        "model": upscaler.model,
        "backend": upscaler.backend,
        "device": upscaler.device,
        "capture": session.source.name,
        "present": plan.settings.present,
        "hud": plan.settings.hud,
        "vsync": plan.settings.vsync,
        "renderer": session.presenter.device,
        "source_renderer": source.ready["renderer"],
        "frames": session.summary.to_json()["frames"],
        "machine": machine.describe(),
    }
