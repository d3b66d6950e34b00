"""Shader upscalers: nothing to infer, the presenter scales the frame's own pixels.

On whatever thread calls it; a frame passes through at once.
"""

from __future__ import annotations

from overlay.errors import SettingsError
from overlay.frame import Frame, Picture, Size
from overlay.infer import SHADERS, Upscaler


class ShaderUpscaler(Upscaler):
    """Hands frames on with the name of the shader that is to scale them.

    Args:
        shader: one of `SHADERS`.

    Raises:
        SettingsError: there is no such shader.
    """

    backend = "opengl"
    scale = 1
    device = "OpenGL, with the presenter"
    inline = True

    def __init__(self, shader: str) -> None:
        if shader not in SHADERS:
            raise SettingsError(f"no shader {shader!r}: choose from {', '.join(SHADERS)}")
        self.model = shader
        self._frame: Frame | None = None

    def warm_up(self, size: Size) -> None:
        """Nothing to prepare: programs are compiled at the first drawing."""

    def submit(self, frame: Frame) -> None:
        if self._frame is not None:
            raise RuntimeError("a frame is in flight already: poll first")
        self._frame = frame

    def poll(self, timeout_s: float) -> Picture | None:
        frame, self._frame = self._frame, None
        if frame is None:
            return None
        return Picture(frame, "source", frame.pixels, 1, self.model, self.backend, self.model)

    @property
    def in_flight(self) -> int:
        return int(self._frame is not None)

    def close(self) -> None:
        self._frame = None
