"""OpenGL for the whole program: the only module that imports PyOpenGL.

PyOpenGL settles at its import through which library it looks up functions, and asks that library
which context is current. Here both are decided once:

- Linux: through EGL where libEGL is installed (`PYOPENGL_PLATFORM=egl`). With libglvnd, which
  every current distribution has, the functions found this way follow whatever context is
  current on the thread, so GLX windows made by GLFW and EGL contexts without any display work in
  one process. Without libEGL PyOpenGL's own choice (GLX) stays. `PYOPENGL_PLATFORM` set by the
  user wins.
- Elsewhere PyOpenGL's own choice.

A consequence: under a GLX context PyOpenGL believes that no context is current, so wrappers that
keep Python objects per context (`glVertexAttribPointer`, client-side arrays) raise. `GL_1_1`,
`GL_2_0` and `GL_3_2` hold the bare functions, which take integers, addresses and ctypes objects
only.

Errors are not checked after each call, which would double the cost of a frame; creation code
calls `check`. `OVERLAY_GL_DEBUG=1` in the environment turns PyOpenGL's checks on.
"""

from __future__ import annotations

import ctypes
import os
import sys

from overlay.errors import BackendUnavailable, PresentError

INSTALL_HINT = (
    "install a graphics driver"
    if sys.platform == "win32"
    else "apt install libegl1 libopengl0 libgl1-mesa-dri, or install the GPU's driver"
)


def _loads(*names: str) -> bool:
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


if sys.platform == "linux":
    if "PYOPENGL_PLATFORM" not in os.environ and _loads("libEGL.so.1"):
        os.environ["PYOPENGL_PLATFORM"] = "egl"
    if not _loads("libOpenGL.so.0", "libGL.so.1"):
        raise BackendUnavailable(
            f"OpenGL is not installed (no libOpenGL.so.0 or libGL.so.1): {INSTALL_HINT}"
        )

import OpenGL  # type: ignore[import-untyped]  # noqa: E402

DEBUG = os.environ.get("OVERLAY_GL_DEBUG", "") not in ("", "0")
OpenGL.ERROR_CHECKING = DEBUG
OpenGL.ERROR_LOGGING = False
OpenGL.ERROR_ON_COPY = False

try:
    from OpenGL import GL
    from OpenGL.raw.GL.VERSION import GL_1_1, GL_2_0, GL_3_2  # type: ignore[import-untyped]
except (ImportError, AttributeError, OSError) as exc:
    raise BackendUnavailable(f"PyOpenGL cannot be loaded ({exc}): {INSTALL_HINT}") from exc

__all__ = [
    "DEBUG",
    "GL",
    "GL_1_1",
    "GL_2_0",
    "GL_3_2",
    "INSTALL_HINT",
    "check",
    "forget_errors",
    "renderer_name",
]


def forget_errors() -> None:
    """Drop errors noted so far, so that a following `check` speaks of what lies between.

    Frames are drawn without checks; an error of theirs must not be blamed on a later creation.
    """
    for _ in range(16):  # a lost context may give errors for ever
        if not GL.glGetError():
            return


def check(what: str) -> None:
    """Raise if the GL has noted an error since it was last asked.

    Raises:
        PresentError: with `what` failed and the error's name.
    """
    code = int(GL.glGetError())
    if code != 0:
        names = {0x500: "invalid enum", 0x501: "invalid value", 0x502: "invalid operation"}
        names |= {0x505: "out of memory", 0x506: "incomplete framebuffer"}
        raise PresentError(f"OpenGL could not {what}: {names.get(code, hex(code))}")


def renderer_name() -> str:
    """Name the GL renderer and version of the current context, for people."""
    renderer = GL.glGetString(GL.GL_RENDERER) or b"unknown renderer"
    version = GL.glGetString(GL.GL_VERSION) or b""
    return f"{renderer.decode(errors='replace')}, OpenGL {version.decode(errors='replace')}"
