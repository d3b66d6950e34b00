"""Draw pictures and the HUD: everything that needs a GL 3.3 core context and no window.

On the main thread, which owns the context; the presenters own context and swap.
"""

from __future__ import annotations

import ctypes
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from overlay.frame import Picture, Pixels, Region, Size
from overlay.hud import HudView
from overlay.present import Fit
from overlay.present.fit import place
from overlay.present.gl import GL, GL_1_1, check, renderer_name
from overlay.present.programs import Program


@dataclass(frozen=True, slots=True)
class CursorSprite:
    """The pointer as it is to be drawn, where the player sees it.

    Attributes:
        pixels: uint8 BGRA, (H, W, 4), premultiplied by alpha (what XFixes gives); a new object
            means new pixels, the same object is not uploaded again.
        region: where it lands, in surface pixels; may reach over the edges.
    """

    pixels: Pixels
    region: Region


@dataclass(frozen=True, slots=True)
class DrawTimes:
    """When `Renderer.draw` came past its two steps, in `perf_counter_ns`."""

    uploaded_ns: int
    drawn_ns: int


class Texture:
    """A texture of a fixed size for uint8 pictures; row 0 is the top.

    BGRA bytes are uploaded as if they were RGBA, which drivers take without conversion, and the
    sampler swaps the channels (a texture swizzle), so that shaders read RGB.
    """

    def __init__(self, size: Size, *, luma: bool = False, bgra: bool = False) -> None:
        self.size = size
        self._format = GL.GL_RED if luma else GL.GL_RGBA
        self._pixel_bytes = 1 if luma else 4
        self.id = int(GL.glGenTextures(1))
        GL.glBindTexture(GL.GL_TEXTURE_2D, self.id)
        inner = GL.GL_R8 if luma else GL.GL_RGBA8
        GL.glTexImage2D(
            GL.GL_TEXTURE_2D,
            0,
            inner,
            size.width,
            size.height,
            0,
            self._format,
            GL.GL_UNSIGNED_BYTE,
            None,
        )
        for side in (GL.GL_TEXTURE_WRAP_S, GL.GL_TEXTURE_WRAP_T):
            GL.glTexParameteri(GL.GL_TEXTURE_2D, side, GL.GL_CLAMP_TO_EDGE)
        for use in (GL.GL_TEXTURE_MIN_FILTER, GL.GL_TEXTURE_MAG_FILTER):
            GL.glTexParameteri(GL.GL_TEXTURE_2D, use, GL.GL_LINEAR)
        if bgra:
            GL.glTexParameteri(GL.GL_TEXTURE_2D, GL.GL_TEXTURE_SWIZZLE_R, GL.GL_BLUE)
            GL.glTexParameteri(GL.GL_TEXTURE_2D, GL.GL_TEXTURE_SWIZZLE_B, GL.GL_RED)
        check(f"allocate a texture of {size}")

    def upload(self, pixels: Pixels) -> None:
        """Fill the bound texture with uint8 (H, W, 4) or (H, W); rows may be padded."""
        step = self._pixel_bytes
        if pixels.strides[1] != step or pixels.strides[0] % step:
            pixels = np.ascontiguousarray(pixels)
        GL.glPixelStorei(GL.GL_UNPACK_ALIGNMENT, 1)
        GL.glPixelStorei(GL.GL_UNPACK_ROW_LENGTH, pixels.strides[0] // step)
        GL_1_1.glTexSubImage2D(
            GL.GL_TEXTURE_2D,
            0,
            0,
            0,
            self.size.width,
            self.size.height,
            self._format,
            GL.GL_UNSIGNED_BYTE,
            ctypes.c_void_p(pixels.ctypes.data),
        )
        GL.glPixelStorei(GL.GL_UNPACK_ROW_LENGTH, 0)

    def delete(self) -> None:
        GL.glDeleteTextures(1, [self.id])


class GpuTimer:
    """A ring of elapsed-time queries, read when they are ready and never waited for."""

    def __init__(self, depth: int = 4) -> None:
        self._idle = deque(int(np.ravel(GL.glGenQueries(1))[0]) for _ in range(depth))
        self._running: deque[int] = deque()
        self._current = 0
        #: The latest result in ns; 0 until there is one.
        self.latest_ns = 0

    def begin(self) -> None:
        """Read what is ready and start a query, unless all are still running."""
        value = ctypes.c_uint64()
        while self._running:
            ready = ctypes.c_uint32()
            GL.glGetQueryObjectuiv(
                self._running[0], GL.GL_QUERY_RESULT_AVAILABLE, ctypes.byref(ready)
            )
            if not ready.value:
                break
            GL.glGetQueryObjectui64v(self._running[0], GL.GL_QUERY_RESULT, ctypes.byref(value))
            self.latest_ns = int(value.value)
            self._idle.append(self._running.popleft())
        self._current = self._idle.popleft() if self._idle else 0
        if self._current:
            GL.glBeginQuery(GL.GL_TIME_ELAPSED, self._current)

    def end(self) -> None:
        """End the query that `begin` started."""
        if self._current:
            GL.glEndQuery(GL.GL_TIME_ELAPSED)
            self._running.append(self._current)

    def delete(self) -> None:
        queries = [*self._idle, *self._running]
        GL.glDeleteQueries(len(queries), queries)


class Renderer:
    """Draws into a framebuffer of the current context.

    Args:
        target: the framebuffer that stands for the surface; 0 is the window's.

    Raises:
        PresentError: the driver refuses a shader or a texture.
    """

    def __init__(self, target: int = 0) -> None:
        self.target = target
        self.device = renderer_name()
        self._surface = Size(1, 1)
        self._vao = int(GL.glGenVertexArrays(1))
        GL.glBindVertexArray(self._vao)
        self._timer = GpuTimer()
        self._plain = Program("plain", units={"image": 0})
        self._textures: dict[str, Texture] = {}
        self._uploaded: dict[str, Pixels] = {}
        check("set up the renderer")

    @property
    def surface(self) -> Size:
        """Size of the surface in pixels, as last told by `resize`."""
        return self._surface

    @property
    def gpu_ns(self) -> int:
        """GPU time of an earlier `draw` (upload and drawing), in ns; 0 until one is known."""
        return self._timer.latest_ns

    def resize(self, surface: Size) -> None:
        """Tell the size of the surface in pixels; cheap when it did not change."""
        self._surface = Size(max(1, surface.width), max(1, surface.height))

    def viewport(self, source: Size, fit: Fit = "fit") -> Region:
        """Where a picture of a game of this size lands, in surface pixels from the top left."""
        return place(source, self._surface, fit)

    def draw(
        self,
        picture: Picture,
        hud: HudView | None,
        *,
        fit: Fit = "fit",
        filter: str | None = None,
        cursor: CursorSprite | None = None,
        source_only: bool = False,
    ) -> DrawTimes:
        """Draw a picture, the HUD and the pointer on the surface; black where nothing is.

        The caller swaps or finishes. Pixels that are the same object as last time are not
        uploaded again, so a repaint with a new HUD costs no upload. The picture is kept
        referenced until the next one comes.

        Args:
            picture: what to show.
            hud: the HUD's state or None; the same object as last time costs no update.
            fit: how the picture fills the surface.
            filter: shader for what is left between a net's result and its size on the surface;
                None takes the picture's own.
            cursor: the pointer, drawn last; None for none.
            source_only: show the game's plain pixels (bilinear) instead of the result.
        """
        region = self.viewport(picture.frame.size, fit)
        self._timer.begin()
        pixels = picture.frame.pixels if source_only else picture.pixels
        texture = self._upload("result", pixels)
        uploaded_ns = time.perf_counter_ns()
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, self.target)
        if region.size != self._surface:
            GL.glViewport(0, 0, *self._surface)
            GL.glClearColor(0.0, 0.0, 0.0, 1.0)
            GL.glClear(GL.GL_COLOR_BUFFER_BIT)
        below = self._surface.height - region.top - region.height
        GL.glViewport(region.left, below, region.width, region.height)
        self._plain.use()
        self._plain.set("up", 1.0)
        GL.glBindTexture(GL.GL_TEXTURE_2D, texture.id)
        GL.glDrawArrays(GL.GL_TRIANGLES, 0, 3)
        self._timer.end()
        return DrawTimes(uploaded_ns, time.perf_counter_ns())

    def _upload(self, name: str, pixels: Pixels) -> Texture:
        size = Size(pixels.shape[1], pixels.shape[0])
        texture = self._textures.get(name)
        if texture is None or texture.size != size:
            if texture is not None:
                texture.delete()
            self._uploaded.pop(name, None)
            texture = self._textures[name] = Texture(size, luma=pixels.ndim == 2, bgra=True)
        if self._uploaded.get(name) is not pixels:
            GL.glBindTexture(GL.GL_TEXTURE_2D, texture.id)
            texture.upload(pixels)
            self._uploaded[name] = pixels
        return texture

    def read(self) -> Pixels:
        """Read the surface back: uint8 BGRA, (H, W, 4), row 0 on top, a new array.

        For a window call it before the swap, or after it only where the driver keeps the back
        buffer.
        """
        pixels = np.empty((self._surface.height, self._surface.width, 4), np.uint8)
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, self.target)
        GL.glPixelStorei(GL.GL_PACK_ALIGNMENT, 4)
        GL_1_1.glReadPixels(
            0,
            0,
            *self._surface,
            GL.GL_BGRA,
            GL.GL_UNSIGNED_BYTE,
            ctypes.c_void_p(pixels.ctypes.data),
        )
        return np.ascontiguousarray(pixels[::-1])

    def close(self) -> None:
        """Free everything; the context must still be current; idempotent."""
        for texture in self._textures.values():
            texture.delete()
        self._textures.clear()
        self._uploaded.clear()
        if self._vao:
            self._timer.delete()
            self._plain.delete()
            GL.glDeleteVertexArrays(1, [self._vao])
            self._vao = 0
