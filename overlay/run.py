"""`overlay run`: open every stage, run the pipeline, say what happened."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from engines import zoo
from engines.errors import EngineMismatch, EngineMissing
from overlay import settings as options
from overlay.building import BackgroundBuilds
from overlay.capture import CaptureSource, open_source
from overlay.cli import add_config, add_json
from overlay.controls import Controls, flight_folder, screenshot_folder
from overlay.doctor import last_trace_note
from overlay.errors import OverlayError, SettingsError, WindowNotFound
from overlay.frame import Size
from overlay.infer import PLAIN, PLAIN_SOFTWARE, Upscaler, check_model, open_upscaler
from overlay.lock import WindowLock
from overlay.pipeline import Limits, Pipeline
from overlay.present import Look, Presenter, open_presenter
from overlay.present.screenshot import ScreenshotWriter, save_png
from overlay.settings import Configuration, Settings
from overlay.trace.flight import FlightRecorder
from overlay.trace.recorder import TraceRecorder
from overlay.trace.summary import Summary, summarise
from overlay.trace.table import Metadata
from overlay.window import Query, Window, find, open_desktop

log = logging.getLogger(__name__)

#: Threads hand over the interpreter this often; the default, 5 ms, is a third of a frame.
_SWITCH_S = 0.0005


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `overlay run`."""
    add_config(parser)
    options.add_arguments(parser)
    group = parser.add_argument_group("run")
    group.add_argument("--wait", type=float, default=0.0, metavar="S", help="wait for the window")
    group.add_argument("--frames", type=int, metavar="N", help="stop after N captured frames")
    group.add_argument("--seconds", type=float, metavar="S", help="stop after S seconds")
    group.add_argument("--screenshot", type=Path, metavar="PNG", help="save the last picture")
    add_json(group)  # type: ignore[arg-type]


def run(arguments: argparse.Namespace) -> int:
    """Run until the game closes, a limit, a key or a signal; print the summary."""
    limits = _limits(arguments)
    configuration = Configuration.load(arguments.config, arguments)
    with ExitStack() as stack:
        signals = stack.enter_context(Signals())
        window = find_window(configuration.base, configuration.given, arguments.wait)
        name = f"{window.title} {window.wm_class}" if window else ""
        settings = configuration.settings(name)
        session = open_session(stack, settings, window, limits)
        signals.pipeline = session.pipeline
        try:
            session.run()
        finally:
            session.finish()
        result = session.result()
        failed = _save_screenshot(session, arguments.screenshot)
    if arguments.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        sys.stdout.write(f"{session.summary}\n")
    if failed is not None:
        raise failed
    if signals.caught:
        return 128 + signals.caught
    # The trace is not whole, or what was asked for could not be built.
    return int(session.recorder.damage is not None or bool(session.builds.failure))


def _save_screenshot(session: Session, path: Path | None) -> OverlayError | None:
    """Save the last picture; give the error, if any, so that the figures come first."""
    if path is None or session.pipeline.shown is None:
        return None
    try:
        save_png(path, session.presenter.grab())
    except OverlayError as exc:
        return exc
    return None


def _limits(arguments: argparse.Namespace) -> Limits:
    for name in ("frames", "seconds"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise SettingsError(f"--{name} must be more than 0, not {value:g}")
    return Limits(arguments.frames, arguments.seconds)


def find_window(settings: Settings, given: dict[str, Any], wait_s: float = 0.0) -> Window | None:
    """Find the game's window, or None where the source needs none.

    Raises:
        SettingsError: nothing was said about which window, or two things at once.
        WindowNotFound: none matches within `wait_s`.
    """
    settings = Configuration(settings, (), given).settings("")
    query = Query(settings.title, settings.wm_class, settings.pid, settings.id)
    replay = settings.source.startswith("replay:")
    if replay or settings.region is not None:
        if query != Query() or settings.pick:
            what = "a replay" if replay else "--region"
            raise SettingsError(f"{what} needs no window: leave out either of the two")
        return None
    if settings.pick:
        with open_desktop() as desktop:
            return desktop.pick()
    if query == Query():
        raise SettingsError(
            "which window? give --window TITLE, --class, --pid, --id or --pick "
            "(overlay windows lists them), or --source replay:PATH"
        )
    deadline = time.monotonic() + wait_s
    with open_desktop() as desktop:
        while True:
            try:
                return find(desktop, query)
            except WindowNotFound:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.2)


@dataclass(slots=True)
class Session:
    """Every stage of one run, open."""

    settings: Settings
    recorder: TraceRecorder
    source: CaptureSource
    presenter: Presenter
    pipeline: Pipeline
    builds: BackgroundBuilds
    started: float

    def run(self) -> None:
        """Run the pipeline with a short switch interval (see `Pipeline.run`)."""
        before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        try:
            self.pipeline.run()
        finally:
            sys.setswitchinterval(before)

    def finish(self) -> None:
        """Complete the trace."""
        self.recorder.close()
        if self.settings.trace is not None:
            with suppress(OSError):  # only doctor --bundle needs it
                last_trace_note().write_text(str(self.settings.trace.absolute()))

    @property
    def summary(self) -> Summary:
        """The trace's figures so far."""
        return summarise(self.recorder)

    def result(self) -> dict[str, Any]:
        """Give the run's figures with the documented JSON fields."""
        upscaler, shown = self.pipeline.upscaler, self.pipeline.shown
        output = self.presenter.target_size(shown.frame.size) if shown else None
        return {
            **self.summary.to_json(),
            "seconds": round(time.monotonic() - self.started, 3),
            "model": upscaler.model,
            "backend": upscaler.backend,
            "device": upscaler.device,
            "renderer": self.presenter.device,
            "capture": self.source.name,
            "source_size": str(shown.frame.size) if shown else None,
            "output_size": str(output) if output else None,
            "trace": str(self.settings.trace) if self.settings.trace else None,
            "build_error": self.builds.failure or None,
        }


def open_session(
    stack: ExitStack,
    settings: Settings,
    window: Window | None,
    limits: Limits | None = None,
    tap: Callable[[CaptureSource], CaptureSource] | None = None,
) -> Session:
    """Open trace, source, presenter and upscaler, in this order, on `stack`.

    The trace comes first: a path that cannot be written ends the run before it changed anything.

    Args:
        tap: put around the source, to look at its frames.
    """
    limits = limits or Limits()
    cycle = _cycle(settings)
    if window is not None:
        # Window ids are unique on one display only.
        stack.enter_context(WindowLock(f"{os.environ.get('DISPLAY', '')}-window-{window.id}"))
    facts: Metadata = {"application": "overlay", "vsync": settings.vsync}  # no window titles
    recorder = stack.enter_context(TraceRecorder(settings.trace, facts))
    source = stack.enter_context(_open_source(settings, window))
    source = tap(source) if tap else source
    exclude = settings.exclude_from_capture or sees_overlay(source, settings)
    presenter = stack.enter_context(
        open_presenter(
            look(settings), window, settings.hotkeys,
            offscreen=settings.present == "offscreen",
            exclude_from_capture=exclude,
        )
    )  # fmt: skip
    presenter.follow(source.region, source.visible)

    builds = stack.enter_context(BackgroundBuilds())

    def reopen(name: str, source: Size, output: Size) -> Upscaler:
        backend = settings.backend if name == settings.model else "auto"
        try:
            return _open(settings, name, backend, source, output, presenter)
        except (EngineMissing, EngineMismatch) as exc:
            if not settings.build:
                raise
            log.warning("%s; building it", str(exc).partition(". Build it")[0])
            model = zoo.default_for(source, output).id if name == "default" else name
            builds.start(name, source, backend, model)
            plain = PLAIN_SOFTWARE if presenter.software else PLAIN
            shown = _open(settings, plain, "auto", source, output, presenter)
            shown.stands_in = True
            return shown

    size = source.region.size
    upscaler = stack.enter_context(reopen(settings.model, size, presenter.target_size(size)))
    controls = _controls(stack, settings, recorder, presenter)
    pipeline = Pipeline(
        source, upscaler, presenter, recorder,
        limits=Limits(
            limits.frames, limits.seconds, settings.fps_cap,
            settings.capture_cap if window is not None else None,
        ),
        reopen=reopen, name=settings.model, cycle=cycle,
        hud=controls.hud, on_command=controls.obey,
    )  # fmt: skip
    controls.pipeline = pipeline
    builds.attach(pipeline)
    return Session(settings, recorder, source, presenter, pipeline, builds, time.monotonic())


def _open(
    settings: Settings, name: str, backend: str, source: Size, output: Size, presenter: Presenter
) -> Upscaler:
    return open_upscaler(
        name, backend=backend, source=source, output=output,
        threads=settings.threads, filter=settings.filter,
        software_gl=presenter.software, host=presenter.wants_host,
    )  # fmt: skip


def sees_overlay(source: CaptureSource, settings: Settings) -> bool:
    """Say whether the source captures what is on the screen, and so the overlay too.

    On Windows the overlay can be excluded from that; on X11 it cannot, which is said once.
    """
    if source.name not in ("dxcam", "mss") or settings.present == "offscreen":
        return False
    if sys.platform != "win32" and settings.present in ("over", "fullscreen"):
        log.warning(
            "%s captures the screen, with the overlay where it lies over the game: "
            "use --source x11, or --present beside",
            source.name,
        )
    return sys.platform == "win32"


def _open_source(settings: Settings, window: Window | None) -> CaptureSource:
    backend, _, path = settings.source.partition(":")
    return open_source(
        backend, window=window, region=settings.region, path=path or None,
        rate_hz=settings.rate, loop=not settings.once,
    )  # fmt: skip


def _controls(
    stack: ExitStack, settings: Settings, recorder: TraceRecorder, presenter: Presenter
) -> Controls:
    flight = FlightRecorder(recorder, flight_folder(), late_ms=settings.flight_late_ms)
    return Controls(
        settings,
        recorder,
        presenter,
        stack.enter_context(flight),
        stack.enter_context(ScreenshotWriter(screenshot_folder(settings))),
    )


def _cycle(settings: Settings) -> tuple[str, ...]:
    """Read and check the names the hotkey goes through; the model asked for is one of them."""
    names = [name.strip() for name in settings.cycle.split(",") if name.strip()]
    for name in (settings.model, *names):
        check_model(name)
    return (*names,) if settings.model in names else (settings.model, *names)


def look(settings: Settings) -> Look:
    """Give the presenter's part of the settings."""
    return Look(
        mode="over" if settings.present == "offscreen" else settings.present,  # type: ignore[arg-type]
        size=settings.output,
        scale=settings.scale,
        monitor=settings.monitor,
        fit=settings.fit,  # type: ignore[arg-type]
        filter=settings.filter,
        vsync=settings.vsync,
        pointer=settings.pointer,
    )


class Signals:
    """While open, SIGINT and SIGTERM end the run in good order; a second one ends it at once.

    Args:
        pipeline: what runs; None while it is being opened, when one signal is enough.
    """

    def __init__(self, pipeline: Pipeline | None = None) -> None:
        self.pipeline = pipeline
        self._before: dict[int, Any] = {}
        self.caught = 0

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.caught or self.pipeline is None:
            raise SystemExit(128 + number)
        self.caught = number
        self.pipeline.stop()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
