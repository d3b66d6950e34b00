"""Draw pictures, the HUD and the pointer: all that needs a GL 3.3 core context and no window.

On the main thread, which owns the context; the presenters own context and swap.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass, replace

import numpy as np

from overlay.frame import Picture, Pixels, Region, Size
from overlay.hud import HudView
from overlay.present import Fit
from overlay.present.fit import place
from overlay.present.gl import GL, GL_1_1, check, forget_errors, renderer_name
from overlay.present.gputimer import GpuTimer
from overlay.present.scaling import Scaler, Target
from overlay.present.text import TextDrawing
from overlay.present.texture import Texture, TextureKind


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


class Renderer:
    """Draws into a framebuffer of the current context.

    Args:
        target: the framebuffer that stands for the surface; 0 is the window's.

    Raises:
        PresentError: the driver refuses a shader or a texture (also from `draw`, which makes
            both on first need).
    """

    def __init__(self, target: int = 0) -> None:
        forget_errors()
        self.target = target
        self.device = renderer_name()
        self._surface = Size(1, 1)
        self._vao = int(GL.glGenVertexArrays(1))
        GL.glBindVertexArray(self._vao)
        self._timer = GpuTimer()
        self._scaler = Scaler()
        self._text = TextDrawing()
        self._textures: dict[str, Texture] = {}
        self._uploaded: dict[str, Pixels] = {}
        self._picture: Picture | None = None
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
        uploaded again, so a repaint with a new HUD costs no upload. The picture stays referenced
        until the next one comes.

        Args:
            picture: what to show.
            hud: the HUD's state or None; the same object as last time costs no update.
            fit: how the picture fills the surface.
            filter: shader for what is left between a net's result and its size on the surface;
                None takes the picture's own.
            cursor: the pointer, drawn last; None for none.
            source_only: show the game's plain pixels (bilinear) instead of the result.
        """
        self._timer.begin()
        if picture is not self._picture:
            # Buffers are used again: the same array is the same pixels only in one picture,
            # which is kept here so that its buffers stay leased.
            self._uploaded.pop("source", None)
            self._uploaded.pop("result", None)
            self._picture = picture
        plain = source_only or picture.kind == "source"
        source = result = None
        if plain or picture.kind == "luma":
            source = self._upload("source", picture.frame.pixels, "bgra")
        if not plain:
            result = self._upload(
                "result", picture.pixels, "luma" if picture.kind == "luma" else "bgra"
            )
        uploaded_ns = time.perf_counter_ns()
        GL.glBindVertexArray(self._vao)
        target = self._clear(self.viewport(picture.frame.size, fit))
        last = filter or picture.shader
        if source is None:
            assert result is not None
            self._scaler.scale(result, target, last)
        elif result is None:
            self._scaler.scale(source, target, "bilinear" if source_only else picture.shader)
        elif result.size == target.region.size:
            self._scaler.merge(source, result, target)
        else:
            merged = self._scaler.between("merged", result.size)
            self._scaler.merge(source, result, Target.of(merged))
            self._scaler.scale(merged, target, last)
        if hud is not None:
            self._text.draw(hud, self._surface)
            GL.glBindVertexArray(self._vao)
        if cursor is not None:
            sprite = self._upload("cursor", cursor.pixels, "bgra")
            self._scaler.blend(sprite, replace(target, region=cursor.region))
        self._timer.end()
        return DrawTimes(uploaded_ns, time.perf_counter_ns())

    def _clear(self, region: Region) -> Target:
        """Blacken the surface where the region leaves it open."""
        covers = (
            region.left <= 0
            and region.top <= 0
            and region.left + region.width >= self._surface.width
            and region.top + region.height >= self._surface.height
        )
        if not covers:
            GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, self.target)
            GL.glClearColor(0.0, 0.0, 0.0, 1.0)
            GL.glClear(GL.GL_COLOR_BUFFER_BIT)
        return Target(self.target, region, self._surface.height, True)

    def _upload(self, name: str, pixels: Pixels, kind: TextureKind) -> Texture:
        size = Size(pixels.shape[1], pixels.shape[0])
        texture = self._textures.get(name)
        if texture is None or texture.size != size or texture.kind != kind:
            if texture is not None:
                texture.delete()
            self._uploaded.pop(name, None)
            texture = self._textures[name] = Texture(size, kind)
        if self._uploaded.get(name) is not pixels:
            texture.upload(pixels)
            self._uploaded[name] = pixels
        return texture

    def read(self) -> Pixels:
        """Read the surface back: uint8 BGRA, (H, W, 4), row 0 on top, a new array.

        Of a window it is the back buffer: read between `draw` and the swap.
        """
        pixels = np.empty((self._surface.height, self._surface.width, 4), np.uint8)
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, self.target)
        GL.glPixelStorei(GL.GL_PACK_ALIGNMENT, 4)
        GL_1_1.glReadPixels(
            *(0, 0, *self._surface),
            GL.GL_BGRA,
            GL.GL_UNSIGNED_BYTE,
            ctypes.c_void_p(pixels.ctypes.data),
        )
        return np.ascontiguousarray(pixels[::-1])

    def close(self) -> None:
        """Free everything; the context must still be current; idempotent."""
        if not self._vao:
            return
        # Mesa's software rasteriser frees a timer query with the context while its threads may
        # still write to it: the heap is corrupted, and the process ends some time later.
        GL.glFinish()
        for texture in self._textures.values():
            texture.delete()
        self._textures.clear()
        self._uploaded.clear()
        self._picture = None
        self._scaler.close()
        self._text.close()
        self._timer.delete()
        GL.glDeleteVertexArrays(1, [self._vao])
        self._vao = 0
