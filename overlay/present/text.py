"""Draw the HUD's text."""

from __future__ import annotations

from overlay.frame import Region, Size
from overlay.hud import HudView
from overlay.present.texture import Texture


class TextDrawing:
    def draw(self, hud: HudView, surface: Size, target: int) -> None: ...
    def draw_sprite(self, texture: Texture, region: Region, surface: Size) -> None: ...
    def close(self) -> None: ...
