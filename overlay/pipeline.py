"""The frame path put together; the only module that knows capture, infer and present.

    capture thread                    infer thread                     main thread
    grab ─► duplicate? ─► LatestFrame ─► submit … poll ─► LatestFrame ─► show + HUD ─► swap

A shader upscaler has no thread of its own: the capture thread puts its pictures straight into
the last slot. Each slot holds one item and the newest wins, so a slow stage costs frames and
never latency. Every captured frame ends as exactly one outcome in the trace.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from engines.errors import EngineError, EngineMismatch
from overlay.capture import CaptureSource
from overlay.capture.compare import same_pixels
from overlay.errors import CaptureLost, OverlayError, SourceClosed
from overlay.frame import Frame, Picture, Size
from overlay.hud import HudView
from overlay.infer import PLAIN, PLAIN_SOFTWARE, Upscaler
from overlay.present import Command, Presenter
from overlay.slot import LatestFrame
from overlay.trace import Outcome, Stage, Trace

log = logging.getLogger(__name__)

#: Waits after a transient capture error: (seconds, how often), the last for ever.
_RETRY = ((0.05, 20), (0.25, 40), (1.0, None))
#: An upscaler that fails this often in a row is replaced by the plain upscale.
_FAILURES = 3
#: How long a stage waits before it looks whether the run was stopped.
_TICK_S = 0.1
#: The HUD is repainted at most this often.
_HUD_S = 0.25


def _now(frame: Frame | None) -> Frame | None:
    """Give a frame that was kept back as if it had come now."""
    if frame is None:
        return None
    now_ns = time.perf_counter_ns()
    return replace(frame, ready_ns=now_ns, captured_ns=now_ns)


class Hud(Protocol):
    """Makes the HUD's text from the figures so far; called at most four times a second."""

    def __call__(self, picture: Picture, output: Size, notice: str) -> HudView | None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run ends by itself, and how often it presents.

    Attributes:
        frames: stop after so many captured frames.
        seconds: stop after so long.
        fps_cap: present at most so often.
        capture_cap: capture at most so often. A game that draws hundreds of frames a second
            would have most of them copied for nothing, on cores it could use itself.
    """

    frames: int | None = None
    seconds: float | None = None
    fps_cap: float | None = None
    capture_cap: float | None = None


def retry_wait_s(attempt: int) -> float:
    """Give the wait after the `attempt`-th transient error in a row (from 0), in seconds."""
    for wait_s, times in _RETRY:
        if times is None or attempt < times:
            return wait_s
        attempt -= times
    raise AssertionError("the last row of the retry table has no end")


class Pipeline:
    """One run: source to screen.

    Args:
        source, presenter, trace: opened by the caller, who also closes them.
        upscaler: warmed up; owned (and closed) by the pipeline from here on.
        reopen: opens another upscaler by name for a source size and an output size, warmed up;
            used by the hotkey, and by "default" when the sizes change. Runs on its own thread.
        cycle: names the hotkey goes through.
        hud: makes the HUD, or None for none.
        on_command: gets the commands the pipeline does not know (screenshot, flight, hud).
    """

    def __init__(
        self,
        source: CaptureSource,
        upscaler: Upscaler,
        presenter: Presenter,
        trace: Trace,
        *,
        limits: Limits = Limits(),
        reopen: Callable[[str, Size, Size], Upscaler] | None = None,
        name: str = "",
        cycle: tuple[str, ...] = (),
        hud: Hud | None = None,
        on_command: Callable[[Command, Picture | None], None] | None = None,
    ) -> None:
        self._source = source
        self._presenter = presenter
        self._trace = trace
        self._limits = limits
        self._reopen = reopen
        self._cycle = cycle
        self._hud = hud
        self._on_command = on_command
        self._upscaler = upscaler  # replaced by the infer thread or, inline, the capture thread
        self._next: Upscaler | None = None  # opened, waiting to be put in; see _offer
        self._offering = threading.Lock()
        self._frames: LatestFrame[Frame] = LatestFrame(self._superseded_frame)
        self._pictures: LatestFrame[Picture] = LatestFrame(self._superseded_picture, presenter.wake)
        self._stop = threading.Event()
        self._resume = threading.Event()  # cleared while the overlay is toggled off
        self._resume.set()
        self._error: BaseException | None = None  # first error of a thread; raised by run()
        self._opening: threading.Thread | None = None
        self._name = name  # what was asked for, "default" say
        self._notice = ""
        self._requested: str | None = None  # an upscaler to open as soon as the sizes are known
        self._captured = 0  # written by the capture thread
        self._again = False  # the last frame is to be upscaled again
        # Below: owned by the main thread.
        self._shown: Picture | None = None
        self._source_only = False
        self._plain: Picture | None = None  # the source of the shown picture, for `_visible`
        self._hud_view: HudView | None = None
        self._hud_at = 0.0
        self._due = 0.0  # next swap allowed by the frame cap
        self._place: tuple[object, ...] = ()
        self._sizes: tuple[Size, Size] | None = None  # for which "default" was chosen

    # Main thread ------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until the source closes, a limit is reached, or `stop`.

        Raises:
            SourceClosed: the source closed before any frame was shown.
            OverlayError, EngineError: what ended the run; the trace is complete all the same.
        """
        threads = [
            threading.Thread(target=self._guard, args=(self._capture,), name="capture"),
            threading.Thread(target=self._guard, args=(self._infer,), name="infer"),
        ]
        gc.collect()
        gc.freeze()  # what lives now lives on: later collections need not look at it
        try:
            for thread in threads:
                thread.start()
            self._present()
        finally:
            self.stop()
            for thread in threads:
                thread.join()
            self._finish()
            gc.unfreeze()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the run soon; frames in flight are still shown. Callable from any thread."""
        self._stop.set()
        self._resume.set()

    def announce(self, text: str) -> None:
        """Show a notice in the HUD, "" for none. Callable from any thread."""
        self._notice = text

    def request(self, name: str) -> None:
        """Put another upscaler in soon, by name. Callable from any thread."""
        self._requested = name
        self._presenter.wake()

    @property
    def model(self) -> str:
        """Name of the upscaler in use."""
        return self._upscaler.model

    @property
    def shown(self) -> Picture | None:
        """The picture shown last."""
        return self._shown

    @property
    def upscaler(self) -> Upscaler:
        """The upscaler in use."""
        return self._upscaler

    def _finish(self) -> None:
        if (opening := self._opening) is not None:
            opening.join()
        for upscaler in (self._upscaler, self._next):
            if upscaler is not None:
                upscaler.close()
        if (lost := self._pictures.take(0)) is not None:
            self._superseded_picture(lost)

    def _present(self) -> None:
        end = time.monotonic() + (self._limits.seconds or float("inf"))
        while not self._pictures.closed:
            now = time.monotonic()
            if now >= end:
                self.stop()
            for command in self._presenter.wait(self._wait_s(now, end)):
                self._obey(command)
            self._follow()
            self._grant()
            if time.monotonic() >= self._due:
                self._show()

    def _wait_s(self, now: float, end: float) -> float:
        wait_s = _HUD_S
        for moment in (end, self._due):
            if moment > now:
                wait_s = min(wait_s, moment - now)
        return wait_s

    def _follow(self) -> None:
        visible = self._source.visible and self._resume.is_set()
        place = (self._source.region, visible)
        if place != self._place:
            self._place = place
            self._presenter.follow(*place)

    def _show(self) -> None:
        picture = self._pictures.take(0)
        if picture is None:
            self._repaint()
            return
        if self._shown is not None and 0 <= picture.frame.id < self._shown.frame.id:
            self._superseded_picture(picture)  # the upscaler was changed: a late result
            return
        self._check_default(picture)
        self._shown = picture
        now = time.monotonic()
        if self._limits.fps_cap is not None:
            self._due = max(self._due, now - 1 / self._limits.fps_cap) + 1 / self._limits.fps_cap
        self._refresh_hud(now)
        self._swap(picture)

    def _swap(self, picture: Picture) -> None:
        row = picture.frame.id
        try:
            shown = self._presenter.show(self._visible(picture), self._hud_view)
        except BaseException:
            self._trace.end(row, Outcome.FAILED, "present")
            raise
        stamp = self._trace.stamp
        stamp(row, Stage.PRESENTING, shown.begin_ns)
        stamp(row, Stage.UPLOADED, shown.uploaded_ns)
        stamp(row, Stage.DRAWN, shown.drawn_ns)
        stamp(row, Stage.PRESENTED, shown.swapped_ns)
        output = self._presenter.target_size(picture.frame.size)
        self._trace.describe(
            row, picture, output, shown.gpu_ns, shown.gpu_start_ns, shown.gpu_error_ns
        )
        self._trace.end(row, Outcome.PRESENTED)

    def _repaint(self) -> None:
        """Draw the HUD's new text over a still game; such a swap is not a frame."""
        if self._shown is not None and self._refresh_hud(time.monotonic()):
            self._presenter.show(self._visible(self._shown), self._hud_view)

    def _visible(self, picture: Picture) -> Picture:
        """Give what is to be seen: the picture, or its plain source while that key is held."""
        if not self._source_only:
            return picture
        if self._plain is None or self._plain.frame is not picture.frame:
            frame = picture.frame
            self._plain = Picture(frame, "source", frame.pixels, 1, "source", "opengl", "bilinear")
        return self._plain

    def _refresh_hud(self, now: float) -> bool:
        if self._hud is None or self._shown is None or now - self._hud_at < _HUD_S:
            return False
        self._hud_at = now
        before = self._hud_view
        output = self._presenter.target_size(self._shown.frame.size)
        self._hud_view = self._hud(self._shown, output, self._notice)
        return self._hud_view is not before

    def redraw(self) -> None:
        """Show the last picture again with a fresh HUD (after a change of what it shows)."""
        self._hud_at = 0.0
        self._hud_view = None
        if self._shown is not None:
            self._refresh_hud(time.monotonic())
            self._presenter.show(self._visible(self._shown), self._hud_view)

    def _obey(self, command: Command) -> None:
        if command.action == "quit":
            self.stop()
        elif command.action == "toggle" and command.pressed:
            if self._resume.is_set():
                self._resume.clear()
            else:
                self._resume.set()
        elif command.action == "next" and command.pressed:
            self._next_upscaler()
        elif command.action == "source":
            self._source_only = command.pressed
            self.redraw()
        elif self._on_command is not None:
            self._on_command(command, self._shown)

    # Changing the upscaler --------------------------------------------------------------------

    def _next_upscaler(self) -> None:
        if not self._cycle or self._shown is None:
            return
        at = self._cycle.index(self._name) if self._name in self._cycle else -1
        self._change(self._cycle[(at + 1) % len(self._cycle)], self._shown.frame.size)

    def _grant(self) -> None:
        name, shown = self._requested, self._shown
        if name is not None and name != self._name:
            self._requested = None  # the player chose another meanwhile
        elif name is not None and shown is not None and self._change(name, shown.frame.size):
            self._requested = None

    def _check_default(self, picture: Picture) -> None:
        """Choose again after a change of sizes, for "default" and while a plain one stands in."""
        size = picture.frame.size
        sizes = (size, self._presenter.target_size(size))
        chooses = self._name == "default" or self._upscaler.stands_in
        if self._sizes is None or not chooses:
            self._sizes = sizes  # what was opened at the start
        elif sizes != self._sizes and self._change(self._name, size):
            self._sizes = sizes

    def _change(self, name: str, size: Size) -> bool:
        """Begin to open another upscaler; False if one is being opened already."""
        if self._reopen is None or self._opening is not None or self._next is not None:
            return False
        self._name = name
        self._notice = f"opening {name}"
        output = self._presenter.target_size(size)
        self._opening = threading.Thread(
            target=self._open, args=(name, size, output), name="open-upscaler", daemon=True
        )
        self._opening.start()
        return True

    def _open(self, name: str, size: Size, output: Size) -> None:
        assert self._reopen is not None
        try:
            self._offer(self._reopen(name, size, output))
            if self._notice == f"opening {name}":  # else `reopen` had something to say
                self._notice = ""
        except Exception as exc:  # whatever it is, the old one goes on
            known = isinstance(exc, OverlayError | EngineError)
            log.error("keeping %s: %s", self._upscaler.model, exc, exc_info=not known)
            self._notice = f"{name}: {exc}"
        finally:
            self._opening = None

    def _offer(self, fresh: Upscaler) -> None:
        """Let an upscaler be put in soon; one that still waits for that is given up for it."""
        with self._offering:
            late, self._next = self._next, fresh
        if late is not None:
            late.close()

    def _exchange(self) -> None:
        """Put the upscaler that was opened in the place of the old one, which must be idle."""
        with self._offering:
            fresh, self._next = self._next, None
        if fresh is not None:
            old, self._upscaler = self._upscaler, fresh
            self._again = True
            old.close()
            log.info("now using %s (%s)", fresh.model, fresh.backend)

    # Capture thread ---------------------------------------------------------------------------

    def _capture(self) -> None:
        try:
            self._capture_frames()
        except SourceClosed as exc:
            log.info("%s", exc)
            if self._captured == 0:
                raise
        finally:
            self._frames.close()

    def _capture_frames(self) -> None:
        previous: Frame | None = None
        held: Frame | None = None  # taken while the overlay was off; shown first when it is on
        attempt = 0
        period_s = 1 / self._limits.capture_cap if self._limits.capture_cap else 0.0
        due = 0.0  # the next capture, by the cap
        state: tuple[object, ...] = ()
        while not self._stop.is_set() and self._captured != self._limits.frames:
            if not self._resume.wait(_HUD_S):
                # Off: only the newest picture is kept, and moves and the end are noticed.
                with suppress(CaptureLost):
                    held = self._source.grab(0) or held
                continue
            if (early_s := due - time.monotonic()) > 0:
                self._stop.wait(early_s)
            try:
                frame = self._source.grab(0 if held is not None else _TICK_S) or _now(held)
                held = None
                attempt = 0
            except CaptureLost as exc:
                if attempt == 0:
                    log.warning("capture lost, trying again: %s", exc)
                self._stop.wait(retry_wait_s(attempt))
                attempt += 1
                continue
            if state != (state := (self._source.region, self._source.visible)):
                self._presenter.wake()  # it follows the window
            if self._stop.is_set():
                continue
            if frame is None:
                self._show_again(previous)
                continue
            self._captured += 1
            due = time.monotonic() + period_s
            frame.id = self._trace.begin(frame)
            if previous is not None and same_pixels(frame.pixels, previous.pixels):
                self._trace.end(frame.id, Outcome.DUPLICATE, "capture")
                continue
            previous = frame
            self._hand_on(frame)

    def _show_again(self, previous: Frame | None) -> None:
        """Give a game that stands still to an upscaler that has just been put in."""
        if self._upscaler.inline and self._next is not None:
            self._exchange()
        if self._again and previous is not None:
            self._again = False
            self._hand_on(replace(previous, id=-1))  # no new frame, so it has no row

    def _hand_on(self, frame: Frame) -> None:
        if frame.id >= 0:
            self._again = False
        upscaler = self._upscaler
        if upscaler.inline and self._next is not None:
            self._exchange()
            upscaler = self._upscaler
        if not upscaler.inline:
            self._frames.put(frame)
            return
        self._trace.stamp(frame.id, Stage.SUBMITTED, time.perf_counter_ns())
        upscaler.submit(frame)
        self._deliver(upscaler.poll(0))

    # Infer thread -----------------------------------------------------------------------------

    def _infer(self) -> None:
        failures = 0
        pending: list[Frame] = []  # submitted, oldest first; `slots` long at most
        try:
            while True:
                upscaler = self._upscaler
                if not upscaler.inline and self._next is not None and not pending:
                    self._exchange()
                    continue
                if len(pending) < upscaler.slots:
                    frame = self._frames.take(0 if pending else _TICK_S)
                    if frame is not None and not pending:
                        upscaler = self._upscaler  # it may have been exchanged meanwhile
                    if frame is not None:
                        failures = self._submit(upscaler, frame, pending, failures)
                    elif not pending:
                        if self._frames.closed:
                            return
                        continue
                failures = self._poll(upscaler, pending, failures)
        finally:
            for frame in pending:
                self._trace.end(frame.id, Outcome.FAILED, "infer")
            self._pictures.close()
            self._presenter.wake()

    def _submit(self, upscaler: Upscaler, frame: Frame, pending: list[Frame], failures: int) -> int:
        if upscaler.inline:  # it was exchanged while this frame lay in the slot
            self._superseded_frame(frame)
            return 0
        if not upscaler.download and self._presenter.wants_host:
            upscaler.download = True  # OpenGL cannot read what stays on the GPU
        self._trace.stamp(frame.id, Stage.SUBMITTED, time.perf_counter_ns())
        try:
            upscaler.submit(frame)
        except (OverlayError, EngineError) as exc:
            return self._failed(frame, exc, failures)
        pending.append(frame)
        return failures

    def _poll(self, upscaler: Upscaler, pending: list[Frame], failures: int) -> int:
        if not pending:
            return failures
        room = len(pending) < upscaler.slots
        try:
            picture = upscaler.poll(0.0005 if room else _TICK_S)
        except (OverlayError, EngineError) as exc:
            return self._failed(pending.pop(0), exc, failures)
        if picture is None:
            return failures
        pending.pop(0)
        self._deliver(picture)
        return 0

    def _deliver(self, picture: Picture | None) -> None:
        assert picture is not None, "an upscaler said it was done and gave nothing"
        self._trace.stamp(picture.frame.id, Stage.INFERRED, time.perf_counter_ns())
        self._pictures.put(picture)

    def _failed(self, frame: Frame, error: Exception, failures: int) -> int:
        """Give up on a frame; after some in a row, give up on the upscaler."""
        self._trace.end(frame.id, Outcome.FAILED, "infer")
        if failures == 0:
            log.error("%s failed on a frame: %s", self._upscaler.model, error)
        if self._reopen is None:
            return failures + 1
        if isinstance(error, EngineMismatch) and self._fits(frame.size):
            return 0
        if failures + 1 < _FAILURES:
            return failures + 1
        plain = PLAIN_SOFTWARE if self._presenter.software else PLAIN
        log.error("%s keeps failing; showing %s instead", self._upscaler.model, plain)
        self._notice = f"{self._upscaler.model} failed: {error}"
        self._offer(self._reopen(plain, frame.size, frame.size))
        self._name = plain
        return 0

    def _fits(self, size: Size) -> bool:
        """Open the engine for the game's new size; False if there is none."""
        assert self._reopen is not None
        if self._opening is not None or self._next is not None:
            return True  # what comes may fit; if not, it is asked again
        try:
            self._offer(self._reopen(self._name, size, self._presenter.target_size(size)))
        except Exception as exc:  # whatever it is, the plain upscale shows
            known = isinstance(exc, OverlayError | EngineError)
            log.error("%s", exc, exc_info=not known)
            return False
        return True

    # Any thread -------------------------------------------------------------------------------

    def _guard(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except BaseException as exc:  # a thread's error ends the run on the main thread
            if self._error is None:
                self._error = exc
            self.stop()
            self._frames.close()
            self._presenter.wake()

    def _superseded_frame(self, frame: Frame) -> None:
        self._trace.end(frame.id, Outcome.SUPERSEDED, "infer")

    def _superseded_picture(self, picture: Picture) -> None:
        self._trace.end(picture.frame.id, Outcome.SUPERSEDED, "present")
