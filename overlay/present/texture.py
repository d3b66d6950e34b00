"""Textures that pictures are uploaded to or drawn into.

Belongs to the thread that owns the GL context.
"""

from __future__ import annotations

import ctypes
from typing import Literal

import numpy as np

from overlay.errors import PresentError
from overlay.frame import Pixels, Size
from overlay.present.gl import GL, GL_1_1, check, forget_errors

TextureKind = Literal["bgra", "luma", "rgb"]


class Texture:
    """A texture of a fixed size for pictures; row 0 is the top.

    BGRA bytes are uploaded as if they were RGBA, which drivers take without conversion, and the
    sampler swaps the channels (a texture swizzle), so that shaders read RGB.

    Args:
        size: in pixels.
        kind: "bgra" and "luma" for uint8 uploads; "rgb" to draw into.
    """

    def __init__(self, size: Size, kind: TextureKind) -> None:
        forget_errors()
        self.size = size
        self.kind = kind
        self._pixel_bytes = 1 if kind == "luma" else 4
        self._format = GL.GL_RED if kind == "luma" else GL.GL_RGBA
        inner = GL.GL_R8 if kind == "luma" else GL.GL_RGBA8
        two_d, form, byte = GL.GL_TEXTURE_2D, self._format, GL.GL_UNSIGNED_BYTE
        self.id = int(GL.glGenTextures(1))
        GL.glBindTexture(two_d, self.id)
        GL.glTexImage2D(two_d, 0, inner, size.width, size.height, 0, form, byte, None)
        for side in (GL.GL_TEXTURE_WRAP_S, GL.GL_TEXTURE_WRAP_T):
            GL.glTexParameteri(two_d, side, GL.GL_CLAMP_TO_EDGE)
        for use in (GL.GL_TEXTURE_MIN_FILTER, GL.GL_TEXTURE_MAG_FILTER):
            GL.glTexParameteri(two_d, use, GL.GL_NEAREST)
        if kind == "bgra":
            GL.glTexParameteri(two_d, GL.GL_TEXTURE_SWIZZLE_R, GL.GL_BLUE)
            GL.glTexParameteri(two_d, GL.GL_TEXTURE_SWIZZLE_B, GL.GL_RED)
        self.framebuffer = self._framebuffer() if kind == "rgb" else 0
        check(f"allocate a texture of {size}")

    def _framebuffer(self) -> int:
        target = int(GL.glGenFramebuffers(1))
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, target)
        GL.glFramebufferTexture2D(
            GL.GL_FRAMEBUFFER, GL.GL_COLOR_ATTACHMENT0, GL.GL_TEXTURE_2D, self.id, 0
        )
        if GL.glCheckFramebufferStatus(GL.GL_FRAMEBUFFER) != GL.GL_FRAMEBUFFER_COMPLETE:
            raise PresentError(f"OpenGL cannot draw into a {self.kind} texture of {self.size}")
        return target

    def upload(self, pixels: Pixels) -> None:
        """Fill the texture with uint8 (H, W, 4) or (H, W) of its size; rows may be padded."""
        step = self._pixel_bytes
        row = pixels.strides[0]
        if pixels.strides[1] != step or row % step or row < step * self.size.width:
            pixels = np.ascontiguousarray(pixels)
            row = pixels.strides[0]
        GL.glPixelStorei(GL.GL_UNPACK_ROW_LENGTH, row // step)
        self._fill(pixels.ctypes.data)
        GL.glPixelStorei(GL.GL_UNPACK_ROW_LENGTH, 0)

    def upload_buffer(self, buffer: int) -> None:
        """Fill the texture from an OpenGL buffer object that holds its rows without padding."""
        GL.glBindBuffer(GL.GL_PIXEL_UNPACK_BUFFER, buffer)
        self._fill(0)
        GL.glBindBuffer(GL.GL_PIXEL_UNPACK_BUFFER, 0)

    def _fill(self, address: int) -> None:
        """Fill it from an address, or an offset into the buffer object that is bound."""
        GL.glBindTexture(GL.GL_TEXTURE_2D, self.id)
        GL.glPixelStorei(GL.GL_UNPACK_ALIGNMENT, 1)
        GL_1_1.glTexSubImage2D(
            GL.GL_TEXTURE_2D,
            *(0, 0, 0, self.size.width, self.size.height),  # level, left, top, size
            self._format,
            GL.GL_UNSIGNED_BYTE,
            ctypes.c_void_p(address),
        )

    def delete(self) -> None:
        """Free it; the context must be current."""
        if self.framebuffer:
            GL.glDeleteFramebuffers(1, [self.framebuffer])
        GL.glDeleteTextures(1, [self.id])
