"""Scale a texture with a named shader, in one pass or two.

Belongs to the thread that owns the GL context. The shaders say in their own files what they do.
"""

from __future__ import annotations

from dataclasses import dataclass

from overlay.frame import Region, Size
from overlay.present.gl import GL
from overlay.present.programs import Program
from overlay.present.texture import Texture

#: FSR 1's sharpening in stops; 0 is the strongest, AMD's samples start at 0.2.
SHARPENING_STOPS = 0.2

_CUBICS = {
    "bicubic": {"B": "0.0", "C": "0.5"},
    "mitchell": {"B": "(1.0 / 3.0)", "C": "(1.0 / 3.0)"},
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a pass draws.

    Attributes:
        framebuffer: its name; 0 is a window's.
        region: the part of it to cover, from its top left corner.
        height: of the whole framebuffer, in pixels.
        upwards: whether rows run from the bottom (surfaces) or from the top (textures).
    """

    framebuffer: int
    region: Region
    height: int
    upwards: bool

    @classmethod
    def of(cls, texture: Texture) -> Target:
        """All of a texture."""
        width, height = texture.size
        return cls(texture.framebuffer, Region(0, 0, width, height), height, False)


class Scaler:
    """Programs and intermediate textures; both are made on first need and kept.

    Raises:
        PresentError: the driver refuses a shader or a texture (from any method that draws).
    """

    def __init__(self) -> None:
        self._programs: dict[str, Program] = {}
        self._between: dict[str, Texture] = {}

    def scale(self, texture: Texture, target: Target, shader: str) -> None:
        """Draw a texture over the target's region with one of `overlay.infer.SHADERS`.

        At equal sizes the picture is copied; where a side shrinks, all shaders give way to an
        area filter, which does not alias.
        """
        size, out = texture.size, target.region.size
        if size == out:
            self._pass("nearest", texture, target)
        elif out.width < size.width or out.height < size.height:
            self._pass("area", texture, target)
        elif shader == "nearest":
            whole = out.width % size.width == 0 and out.height % size.height == 0
            self._pass("nearest" if whole else "sharp", texture, target)
        elif shader == "lanczos":
            wide = self.between("lanczos", Size(out.width, size.height))
            self._pass("lanczos-x", texture, Target.of(wide))
            self._pass("lanczos-y", wide, target)
        elif shader == "fsr1":
            large = self.between("fsr1", out)
            self._pass("easu", texture, Target.of(large))
            self._pass("rcas", large, target, sharpness=2.0**-SHARPENING_STOPS)
        else:
            self._pass(shader, texture, target)

    def merge(self, source: Texture, luma: Texture, target: Target) -> None:
        """Draw a net's luma with the source's chroma; the region is as large as `luma`."""
        GL.glActiveTexture(GL.GL_TEXTURE1)
        GL.glBindTexture(GL.GL_TEXTURE_2D, luma.id)
        GL.glActiveTexture(GL.GL_TEXTURE0)
        self._pass("merge", source, target)

    def blend(self, sprite: Texture, target: Target) -> None:
        """Draw a picture with premultiplied alpha over what is there, bilinear."""
        GL.glEnable(GL.GL_BLEND)
        GL.glBlendFuncSeparate(GL.GL_ONE, GL.GL_ONE_MINUS_SRC_ALPHA, GL.GL_ZERO, GL.GL_ONE)
        self._pass("sprite", sprite, target)
        GL.glDisable(GL.GL_BLEND)

    def _pass(self, name: str, texture: Texture, target: Target, **uniforms: float) -> None:
        region = target.region
        program = self._programs.get(name) or self._program(name)
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, target.framebuffer)
        lowest = target.height - region.top - region.height if target.upwards else region.top
        GL.glViewport(region.left, lowest, region.width, region.height)
        program.use()
        program.set("up", float(target.upwards))
        program.set("size", *map(float, texture.size))
        program.set("out_size", *map(float, region.size))
        for uniform, value in uniforms.items():
            program.set(uniform, value)
        GL.glBindTexture(GL.GL_TEXTURE_2D, texture.id)
        GL.glDrawArrays(GL.GL_TRIANGLES, 0, 3)

    def _program(self, name: str) -> Program:
        file, defines = name, {}
        if name in _CUBICS:
            file, defines = "cubic", _CUBICS[name]
        elif name in ("lanczos-x", "lanczos-y"):
            file, defines = "lanczos", {"FIRST": "1"} if name == "lanczos-x" else {}
        program = Program(file, defines=defines, units={"image": 0, "detail": 1})
        self._programs[name] = program
        return program

    def between(self, name: str, size: Size) -> Texture:
        """Give the texture of this name to draw into, made anew when its size changes."""
        texture = self._between.get(name)
        if texture is None or texture.size != size:
            if texture is not None:
                texture.delete()
            texture = self._between[name] = Texture(size, "rgb")
        return texture

    def close(self) -> None:
        """Free everything; the context must be current."""
        for program in self._programs.values():
            program.delete()
        for texture in self._between.values():
            texture.delete()
        self._programs.clear()
        self._between.clear()
