"""An OpenGL 3.3 core context in a GLFW window that is never shown.

The context belongs to the main thread, as GLFW's windows do.
"""

from __future__ import annotations

import warnings
from typing import Any

import glfw

from overlay.errors import BackendUnavailable


class HiddenWindow:
    """A current OpenGL context; draw into a framebuffer object.

    Raises:
        BackendUnavailable: there is no display, or its driver has no OpenGL 3.3.
    """

    def __init__(self) -> None:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self._window = self._open()
        if not self._window:
            reason = "; ".join(str(warning.message) for warning in said) or "no reason given"
            raise BackendUnavailable(f"GLFW gives no OpenGL 3.3 window ({reason})")
        glfw.make_context_current(self._window)

    @staticmethod
    def _open() -> Any:
        if not glfw.init():
            return None
        glfw.default_window_hints()
        glfw.window_hint(glfw.VISIBLE, glfw.FALSE)
        glfw.window_hint(glfw.CONTEXT_VERSION_MAJOR, 3)
        glfw.window_hint(glfw.CONTEXT_VERSION_MINOR, 3)
        glfw.window_hint(glfw.OPENGL_PROFILE, glfw.OPENGL_CORE_PROFILE)
        return glfw.create_window(16, 16, "sr-overlay", None, None)

    def close(self) -> None:
        """Destroy the window; idempotent. GLFW itself stays, as other windows may use it."""
        if self._window:
            glfw.destroy_window(self._window)
            self._window = None
