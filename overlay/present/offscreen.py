"""Present into memory, without a window: for tests, benchmarks and machines without a display.

On Linux through EGL, which needs no display server; elsewhere, and where EGL is missing, in a
GLFW window that is never shown.
"""

from __future__ import annotations

import sys
import threading
import time

from overlay.errors import BackendUnavailable
from overlay.frame import Picture, Pixels, Region, Size
from overlay.hud import HudView
from overlay.present import Command, Look, Presenter, Shown
from overlay.present.egl import EglContext
from overlay.present.fit import place
from overlay.present.gl import GL, INSTALL_HINT
from overlay.present.hidden import HiddenWindow
from overlay.present.placement import DEFAULT_SCALE
from overlay.present.renderer import CursorSprite, Renderer
from overlay.present.texture import Texture


def open_context() -> EglContext | HiddenWindow:
    """Make a GL 3.3 core context without a visible window current on this thread.

    Raises:
        BackendUnavailable: no way is there; the message says what was tried and what to install.
    """
    tried = []
    for kind in (EglContext, HiddenWindow) if sys.platform == "linux" else (HiddenWindow,):
        try:
            return kind()
        except BackendUnavailable as exc:
            tried.append(str(exc))
    raise BackendUnavailable(f"no OpenGL without a window: {'; '.join(tried)}: {INSTALL_HINT}")


class OffscreenPresenter(Presenter):
    """Draws with the same renderer as a window, into a texture.

    The surface has the size of `look.size`, else of the source times `look.scale`, else of the
    last net's picture, else of twice the source.

    Args:
        look: how to show; `mode`, `monitor`, `vsync` and `pointer` mean nothing here.

    Raises:
        BackendUnavailable: there is no OpenGL 3.3; the message says what to install.
    """

    name = "offscreen"
    refresh_hz = 0.0

    def __init__(self, look: Look | None = None) -> None:
        self._look = look or Look()
        self._scale: float = DEFAULT_SCALE  # of the last net's pictures
        self._wake = threading.Event()
        self._commands: list[Command] = []
        self._context: EglContext | HiddenWindow | None = open_context()
        self._surface: Texture | None = None
        self._renderer = Renderer()
        self.device = self._renderer.device

    @property
    def renderer(self) -> Renderer:
        """What draws; its framebuffer holds what was shown last."""
        return self._renderer

    @property
    def wants_host(self) -> bool:
        return self.software or self._renderer.wants_host

    def wait(self, timeout_s: float) -> list[Command]:
        self._wake.wait(timeout_s)
        self._wake.clear()
        commands, self._commands = self._commands, []
        return commands

    def wake(self) -> None:
        self._wake.set()

    def command(self, command: Command) -> None:
        """Do as if the player had asked for this; callable on any thread."""
        self._commands.append(command)
        self._wake.set()

    def follow(self, region: Region, visible: bool) -> None:
        """Nothing to follow: the surface has no place on a desktop."""

    def adapt(self, look: Look) -> None:
        """Show the pictures to come in another way."""
        self._look = look

    def target_size(self, source: Size) -> Size:
        return place(source, self._surface_size(source), self._look.fit).size

    def _surface_size(self, source: Size) -> Size:
        look = self._look
        if look.size is not None:
            return look.size
        factor = look.scale if look.scale is not None else self._scale
        return Size(max(1, round(source.width * factor)), max(1, round(source.height * factor)))

    def _resize(self, size: Size) -> None:
        if self._surface is not None and self._surface.size == size:
            return
        if self._surface is not None:
            self._surface.delete()
        self._surface = Texture(size, "rgb")
        self._renderer.target = self._surface.framebuffer
        self._renderer.resize(size)

    def show(
        self,
        picture: Picture,
        hud: HudView | None,
        *,
        cursor: CursorSprite | None = None,
    ) -> Shown:
        begin_ns = time.perf_counter_ns()
        if picture.kind != "source":
            self._scale = picture.scale
        self._resize(self._surface_size(picture.frame.size))
        times = self._renderer.draw(picture, hud, fit=self._look.fit, cursor=cursor)
        GL.glFinish()
        done_ns = time.perf_counter_ns()
        return times.shown(begin_ns, done_ns)

    def grab(self) -> Pixels:
        return self._renderer.read()

    def close(self) -> None:
        if self._context is None:
            return
        self._renderer.close()
        if self._surface is not None:
            self._surface.delete()
        self._context.close()
        self._context = None
