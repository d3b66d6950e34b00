"""GLSL programs from the files in `shaders/`: compiled once, with uniforms that remember.

Belongs to the thread that owns the GL context.
"""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable

from overlay.errors import PresentError
from overlay.present.gl import GL

VERSION = "#version 330 core\n"
_INCLUDE = re.compile(r'^#include "(\w+)"$', re.MULTILINE)


def shader_files() -> list[Traversable]:
    """List the files of `shaders/`."""
    folder = resources.files("overlay.present") / "shaders"
    return [file for file in folder.iterdir() if file.name.endswith(".glsl")]


def shader_text(name: str) -> str:
    """Read one file of `shaders/`, "bilinear" say, with what it includes."""
    text = (resources.files("overlay.present") / "shaders" / f"{name}.glsl").read_text("utf-8")
    return _INCLUDE.sub(lambda match: shader_text(match[1]), text)


def _compile(kind: int, name: str, defines: dict[str, str]) -> int:
    head = "".join(f"#define {key} {value}\n" for key, value in defines.items())
    shader = int(GL.glCreateShader(kind))
    GL.glShaderSource(shader, VERSION + head + shader_text(name))
    GL.glCompileShader(shader)
    if not GL.glGetShaderiv(shader, GL.GL_COMPILE_STATUS):
        raise PresentError(f"the shader {name}.glsl does not compile: {_log(shader)}")
    return shader


def _log(shader: int) -> str:
    text = GL.glGetShaderInfoLog(shader)
    return (text.decode(errors="replace") if isinstance(text, bytes) else str(text)).strip()


class Program:
    """A vertex and a fragment shader, linked.

    Args:
        fragment: name of the fragment shader's file, without suffix.
        vertex: likewise; the default covers the viewport with one triangle.
        defines: preprocessor constants for both.
        units: texture unit of each sampler uniform.

    Raises:
        PresentError: the driver refuses the shader; the message holds its log.
    """

    def __init__(
        self,
        fragment: str,
        vertex: str = "screen",
        defines: dict[str, str] | None = None,
        units: dict[str, int] | None = None,
    ) -> None:
        shaders = [
            _compile(GL.GL_VERTEX_SHADER, vertex, defines or {}),
            _compile(GL.GL_FRAGMENT_SHADER, fragment, defines or {}),
        ]
        self.id = int(GL.glCreateProgram())
        for shader in shaders:
            GL.glAttachShader(self.id, shader)
        GL.glLinkProgram(self.id)
        if not GL.glGetProgramiv(self.id, GL.GL_LINK_STATUS):
            log = GL.glGetProgramInfoLog(self.id)
            raise PresentError(f"the shader {fragment}.glsl does not link: {log!r}")
        for shader in shaders:
            GL.glDetachShader(self.id, shader)
            GL.glDeleteShader(shader)
        self._locations: dict[str, int] = {}
        self._values: dict[str, tuple[float, ...]] = {}
        if units:
            GL.glUseProgram(self.id)
            for name, unit in units.items():
                GL.glUniform1i(self._location(name), unit)

    def _location(self, name: str) -> int:
        if name not in self._locations:
            self._locations[name] = int(GL.glGetUniformLocation(self.id, name))
        return self._locations[name]

    def use(self) -> None:
        """Make this the current program."""
        GL.glUseProgram(self.id)

    def set(self, name: str, *values: float) -> None:
        """Set a float, vec2, vec3 or vec4 uniform of the current program, if it changed."""
        if self._values.get(name) == values:
            return
        self._values[name] = values
        setter = (GL.glUniform1f, GL.glUniform2f, GL.glUniform3f, GL.glUniform4f)[len(values) - 1]
        setter(self._location(name), *values)

    def delete(self) -> None:
        """Free the program; the context must be current."""
        GL.glDeleteProgram(self.id)
