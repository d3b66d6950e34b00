"""What the player's keys do, and what the HUD shows: both act on a running session."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import platformdirs

from overlay.frame import Picture, Size
from overlay.hud import HudFigures, HudView, Level, hud_view
from overlay.pipeline import Pipeline
from overlay.present import Command, Presenter
from overlay.present.screenshot import ScreenshotWriter
from overlay.settings import Settings
from overlay.trace.flight import FlightRecorder
from overlay.trace.recorder import TraceRecorder

log = logging.getLogger(__name__)

#: The HUD's figures are over so many seconds.
_WINDOW_S = 5.0
_LEVELS: tuple[Level, ...] = ("off", "compact", "full")
#: How long the HUD says what a key did.
_NOTICE_S = 3.0


class Controls:
    """Obeys commands and makes the HUD; on the main thread.

    Args:
        flight, screenshots: opened and closed by the caller.
    """

    def __init__(
        self,
        settings: Settings,
        recorder: TraceRecorder,
        presenter: Presenter,
        flight: FlightRecorder,
        screenshots: ScreenshotWriter,
    ) -> None:
        self._settings = settings
        self._recorder = recorder
        self._presenter = presenter
        self._flight = flight
        self._screenshots = screenshots
        self._level: Level = settings.hud  # type: ignore[assignment]
        self._notice = ""
        self._notice_end = 0.0
        self.pipeline: Pipeline | None = None  # set once it exists

    def obey(self, command: Command, picture: Picture | None) -> None:
        """Do what a key asks for that the pipeline itself does not know."""
        if not command.pressed:
            return
        if command.action == "hud":
            self._level = _LEVELS[(_LEVELS.index(self._level) + 1) % len(_LEVELS)]
        elif command.action == "screenshot" and picture is not None:
            folder = self._screenshots.save(picture.frame.pixels, self._presenter.grab())
            self._say(f"screenshot: {folder}")
        elif command.action == "flight":
            self._flight.save()
            self._say("the last 30 s are being saved")
        if self.pipeline is not None:
            self.pipeline.redraw()

    def _say(self, text: str) -> None:
        self._notice, self._notice_end = text, time.monotonic() + _NOTICE_S

    def hud(self, picture: Picture, output: Size, notice: str) -> HudView | None:
        """Make the HUD from the figures of the last seconds."""
        if self._level == "off":
            return None
        live = self._recorder.window(_WINDOW_S)
        if not notice and time.monotonic() < self._notice_end:
            notice = self._notice
        refresh_hz = self._presenter.refresh_hz or 60.0
        device = self.pipeline.upscaler.device if self.pipeline else ""
        figures = HudFigures(
            output_fps=live.output_fps,
            source_fps=live.source_fps,
            frame_ms_p50=live.frame_time_p50_ms,
            frame_ms_p99=live.frame_time_p99_ms,
            latency_ms_p50=live.capture_to_present_p50_ms,
            latency_ms_p99=live.capture_to_present_p99_ms,
            stage_ms=tuple(live.stages_ms.items()),
            presented=live.counts.presented,
            duplicate=live.counts.duplicate,
            superseded=live.counts.superseded,
            failed=live.counts.failed,
            source=picture.frame.size,
            result=picture.size,
            output=output,
            model=picture.model,
            backend=picture.backend,
            device=device,
            budget_ms=1000 / refresh_hz,
            frame_times_ms=tuple(live.frame_times_ms),
            notice=notice,
        )
        return hud_view(figures, self._level, self._settings.hud_corner)  # type: ignore[arg-type]


def screenshot_folder(settings: Settings) -> Path:
    """Give the folder for screenshots: as set, else below the user's pictures."""
    return settings.screenshots or Path(platformdirs.user_pictures_path()) / "Overlay"


def flight_folder() -> Path:
    """Give the folder for the flight recorder's files, in the user's state folder."""
    return Path(platformdirs.user_state_path("sr-overlay")) / "flights"
