"""Present: the last stage of the frame path, on the main thread, which owns the GL context.

Back ends are one module each: `glfw` (a window) and `offscreen`. They are imported only by
`open_presenter`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from overlay.closing import Closing
from overlay.frame import Picture, Pixels, Region, Size
from overlay.hud import HudView
from overlay.window import Window

#: How the names of renderers begin that have no GPU.
_SOFTWARE = ("llvmpipe", "softpipe", "swrast", "google swiftshader", "microsoft basic render")

Mode = Literal["over", "beside", "window", "fullscreen"]
Fit = Literal["fit", "integer", "fill", "stretch"]
Action = Literal[
    "toggle",  # show or hide the overlay
    "hud",  # off, compact, full
    "next",  # the next upscaler
    "source",  # while held: the plain source
    "screenshot",  # source and result as PNG
    "flight",  # save the flight recorder
    "pointer",  # release or confine the pointer
    "quit",
]


@dataclass(frozen=True, slots=True)
class Command:
    """Something the player asked for; `pressed` is False when a held key is let go."""

    action: Action
    pressed: bool = True


@dataclass(frozen=True, slots=True)
class Look:
    """How results are shown.

    Attributes:
        mode: "over" the game (borderless, click-through, topmost), "beside" it likewise,
            an ordinary "window", or "fullscreen".
        size: size of the picture in "over", "beside" and "window"; None = as large as the
            monitor allows ("over") or source size times `scale`.
        scale: of the source, used when `size` is None and not scaled to the monitor.
        monitor: index of the monitor, None = the one the game is on.
        fit: how the picture fills a surface of another aspect.
        filter: shader for the last, non-integer step ("bilinear", "bicubic", "lanczos").
        vsync: wait for the display's refresh when swapping.
        pointer: confine, hide and magnify the pointer when the overlay is larger than the game.
    """

    mode: Mode = "over"
    size: Size | None = None
    scale: float | None = None
    monitor: int | None = None
    fit: Fit = "fit"
    filter: str = "bicubic"
    vsync: bool = False
    pointer: bool = True


@dataclass(frozen=True, slots=True)
class Shown:
    """When a picture passed the presenter, in `perf_counter_ns`.

    Attributes:
        begin_ns: the presenter took it up.
        uploaded_ns: its pixels are with the GL (the call returned).
        drawn_ns: drawing was issued, before the swap.
        swapped_ns: the swap returned and, offscreen or without vsync, the GL had finished.
        gpu_ns: time of upload and drawing on the GPU by timer query, of an *earlier* picture
            (queries are read when ready, never waited for); 0 if unknown.
        gpu_start_ns: when that began, give or take `gpu_error_ns`; 0 if unknown.
    """

    begin_ns: int
    uploaded_ns: int
    drawn_ns: int
    swapped_ns: int
    gpu_ns: int = 0
    gpu_start_ns: int = 0
    gpu_error_ns: int = 0


class Presenter(Closing):
    """Shows pictures with the HUD. All methods but `wake` belong to the main thread."""

    #: The back end's name on the command line.
    name: str
    #: The GL renderer, for people.
    device: str
    #: Refresh rate of the monitor in use; 0 if there is none.
    refresh_hz: float

    @property
    def software(self) -> bool:
        """Whether OpenGL runs on the CPU, where each pixel of a shader is dear."""
        return self.device.lower().startswith(_SOFTWARE)

    @property
    def wants_host(self) -> bool:
        """Whether upscalers on CUDA should download their pictures; callable on any thread.

        OpenGL cannot take them from CUDA's memory: it runs on the CPU, or sharing memory was
        tried and failed. Pictures that stay on the device are shown all the same, but slower.
        """
        return self.software

    @abstractmethod
    def wait(self, timeout_s: float) -> list[Command]:
        """Sleep until `wake`, an event or `timeout_s`; handle events; give new commands.

        Raises:
            DisplayLost: the display server is gone.
        """

    @abstractmethod
    def wake(self) -> None:
        """Make `wait` return; callable on any thread, cheap."""

    @abstractmethod
    def follow(self, region: Region, visible: bool) -> None:
        """Place the surface for a game at `region`; hide it while the game is not `visible`."""

    @abstractmethod
    def target_size(self, source: Size) -> Size:
        """Size in pixels that a source of this size will cover on the surface."""

    @abstractmethod
    def show(self, picture: Picture, hud: HudView | None) -> Shown:
        """Draw the picture with the HUD on top and swap.

        A repaint of an old picture (a new HUD over a still game) is the same call.
        """

    @abstractmethod
    def grab(self) -> Pixels:
        """Read back what was shown last: uint8 BGRA, (H, W, 4), a new array."""

    @abstractmethod
    def close(self) -> None:
        """Release the pointer, the keys, the GL and the window, in this order; idempotent."""


def open_presenter(
    look: Look,
    game: Window | None = None,
    hotkeys: Mapping[str, str] | None = None,
    *,
    offscreen: bool = False,
    exclude_from_capture: bool = False,
) -> Presenter:
    """Open the window, or the surface in memory.

    Args:
        look: where and how to show.
        game: the window that is captured, which the overlay follows; None for a replay.
        hotkeys: action -> key over the defaults; None for no keys at all.
        offscreen: draw into memory; no window, no keys, no display needed.
        exclude_from_capture: hide the overlay from recorders (Windows).
    Raises:
        SettingsError: a hotkey or the monitor is wrong.
        DisplayLost: there is no display.
        BackendUnavailable, PresentError: there is no OpenGL 3.3.
    """
    if offscreen:
        from overlay.present.offscreen import OffscreenPresenter

        return OffscreenPresenter(look)
    from overlay.present.glfw import GlfwPresenter

    return GlfwPresenter(look, game, hotkeys, exclude_from_capture=exclude_from_capture)
