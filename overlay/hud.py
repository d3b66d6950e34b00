"""What the HUD says: pure functions from figures to coloured text, no drawing.

The presenter draws a `HudView` inside the frame it presents anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Corner = Literal["top-left", "top-right", "bottom-left", "bottom-right"]
Level = Literal["off", "compact", "full"]
Colour = Literal["white", "grey", "green", "amber", "red"]


@dataclass(frozen=True, slots=True)
class Span:
    """A run of text in one colour (printable ASCII and a few symbols)."""

    text: str
    colour: Colour = "white"


@dataclass(frozen=True, slots=True)
class HudView:
    """One state of the HUD; a new object means new text, the same object means no change.

    Attributes:
        lines: text lines from top to bottom, each a row of spans.
        sparkline: the latest frame times in ms, oldest first; empty for none.
        budget_ms: the frame budget, drawn as a line across the sparkline.
        corner: where it stands.
    """

    lines: tuple[tuple[Span, ...], ...]
    sparkline: tuple[float, ...] = ()
    budget_ms: float = 1000 / 60
    corner: Corner = "top-left"
