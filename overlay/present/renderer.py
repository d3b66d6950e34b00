"""Draw pictures, the HUD and the pointer: all that needs a GL 3.3 core context and no window.

On the main thread, which owns the context; the presenters own context and swap.
"""

from __future__ import annotations

import ctypes
import logging
import time
import weakref
from dataclasses import dataclass, replace

import numpy as np

from overlay.cuda import CudaError
from overlay.frame import Picture, Pixels, Region, Size
from overlay.hud import HudView
from overlay.present import Fit, Shown
from overlay.present.fit import place
from overlay.present.gl import GL, GL_1_1, check, forget_errors, renderer_name
from overlay.present.gputimer import DrawSpan, GpuTimer
from overlay.present.interop import Interop
from overlay.present.scaling import Scaler, Target
from overlay.present.text import TextDrawing
from overlay.present.texture import Texture, TextureKind

log = logging.getLogger(__name__)


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
    """When `Renderer.draw` came past its two steps, in `perf_counter_ns`.

    Attributes:
        gpu: when the GPU did an earlier one.
    """

    uploaded_ns: int
    drawn_ns: int
    gpu: DrawSpan

    def shown(self, begin_ns: int, swapped_ns: int) -> Shown:
        """Complete them with the presenter's own two."""
        start_ns, gpu_ns, error_ns = self.gpu
        return Shown(
            begin_ns, self.uploaded_ns, self.drawn_ns, swapped_ns, gpu_ns, start_ns, error_ns
        )


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
        self._interop = Interop()
        self._textures: dict[str, Texture] = {}
        #: Whose pixels a texture has: the picture, or the pointer's array. Both are used again
        #: by nobody as long as they are referenced.
        self._filled: dict[str, weakref.ref[Picture | Pixels]] = {}
        self._picture: Picture | None = None
        self._warned = False
        check("set up the renderer")

    @property
    def surface(self) -> Size:
        """Size of the surface in pixels, as last told by `resize`."""
        return self._surface

    @property
    def wants_host(self) -> bool:
        """Whether pictures had better be downloaded: OpenGL cannot share memory with CUDA."""
        return self._interop.failed

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
        cursor: CursorSprite | None = None,
    ) -> DrawTimes:
        """Draw a picture, the HUD and the pointer on the surface; black where nothing is.

        The caller swaps or finishes. The picture of last time is not uploaded again, so a repaint
        with a new HUD costs no upload. It stays referenced until the next one comes.

        Args:
            picture: what to show.
            hud: the HUD's state or None; the same object as last time costs no update.
            fit: how the picture fills the surface.
            cursor: the pointer, drawn last; None for none.
        """
        self._timer.begin()
        self._picture = picture  # so that its buffers stay leased
        result = None if picture.kind == "source" else self._result(picture)
        source = None
        if result is None or picture.kind == "luma":
            source = self._upload("source", picture, picture.frame.pixels, "bgra")
        uploaded_ns = time.perf_counter_ns()
        GL.glBindVertexArray(self._vao)
        target = self._clear(self.viewport(picture.frame.size, fit))
        if source is None:
            assert result is not None
            self._scaler.scale(result, target, picture.shader)
        elif result is None:
            self._scaler.scale(source, target, picture.shader)
        elif result.size == target.region.size:
            self._scaler.merge(source, result, target)
        else:
            merged = self._scaler.between("merged", result.size)
            self._scaler.merge(source, result, Target.of(merged))
            self._scaler.scale(merged, target, picture.shader)
        if hud is not None:
            self._text.draw(hud, self._surface)
            GL.glBindVertexArray(self._vao)
        if cursor is not None:
            sprite = self._upload("cursor", cursor.pixels, cursor.pixels, "bgra")
            self._scaler.blend(sprite, replace(target, region=cursor.region))
        self._timer.end()
        return DrawTimes(uploaded_ns, time.perf_counter_ns(), self._timer.latest)

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

    def _result(self, picture: Picture) -> Texture | None:
        """Give the result as a texture; None if the device that has it fails."""
        kind: TextureKind = "luma" if picture.kind == "luma" else "bgra"
        if picture.device is None:
            return self._upload("result", picture, picture.pixels, kind)
        texture = self._texture("result", picture.size, kind)
        if not self._has("result", picture):
            try:
                self._interop.fill(texture, picture.device)
            except CudaError as exc:
                if not self._warned:
                    self._warned = True
                    log.warning("showing the plain source, the result is not to be had: %s", exc)
                return None
            self._filled["result"] = weakref.ref(picture)
        return texture

    def _upload(
        self, name: str, owner: Picture | Pixels, pixels: Pixels, kind: TextureKind
    ) -> Texture:
        texture = self._texture(name, Size(pixels.shape[1], pixels.shape[0]), kind)
        if not self._has(name, owner):
            texture.upload(pixels)
            self._filled[name] = weakref.ref(owner)
        return texture

    def _texture(self, name: str, size: Size, kind: TextureKind) -> Texture:
        texture = self._textures.get(name)
        if texture is None or texture.size != size or texture.kind != kind:
            if texture is not None:
                texture.delete()
            self._filled.pop(name, None)
            texture = self._textures[name] = Texture(size, kind)
        return texture

    def _has(self, name: str, owner: Picture | Pixels) -> bool:
        filled = self._filled.get(name)
        return filled is not None and filled() is owner

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
        self._filled.clear()
        self._picture = None
        self._interop.close()
        self._scaler.close()
        self._text.close()
        self._timer.delete()
        GL.glDeleteVertexArrays(1, [self._vao])
        self._vao = 0
