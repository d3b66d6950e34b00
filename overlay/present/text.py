"""Draw a `HudView`: a panel, its text and its sparkline, in one instanced draw call.

Everything is a rectangle: the panel, each bar of the sparkline, and each glyph, which takes its
shape from an atlas. The atlas is drawn by OpenCV for the text size in use, so glyphs are never
scaled. Layout and atlas are pure numpy; only `TextDrawing` needs the GL context.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from overlay.frame import Pixels, Size
from overlay.hud import Colour, HudView, interval_colour
from overlay.present.gl import GL, GL_2_0, check, forget_errors
from overlay.present.programs import Program
from overlay.present.texture import Texture

Boxes = NDArray[np.float32]

#: The glyphs of the atlas, by index; others show as "?".
CHARACTERS = "".join(map(chr, range(32, 127))) + "→·"

#: sRGB, 0 to 1.
COLOURS: dict[Colour, tuple[float, float, float]] = {
    "white": (0.95, 0.96, 0.97),
    "grey": (0.62, 0.65, 0.69),
    "green": (0.46, 0.88, 0.52),
    "amber": (1.00, 0.76, 0.29),
    "red": (1.00, 0.42, 0.39),
}
_PANEL = (0.04, 0.05, 0.07, 0.74)
_RULE = (1.0, 1.0, 1.0, 0.35)

_INDEX = {character: index for index, character in enumerate(CHARACTERS)}
_UNKNOWN = _INDEX["?"]
_FINER = 5  # the atlas is drawn this much larger and shrunk: smooth edges
_SPARKLINE_LINES = 2


@dataclass(frozen=True, slots=True)
class Metrics:
    """Sizes of the text on a surface, in pixels.

    Attributes:
        cell: of one character; lines are one cell apart.
        padding: between panel and text; the panel keeps as far from the surface's edges.
    """

    cell: Size
    padding: int

    @classmethod
    def of(cls, surface: Size) -> Metrics:
        """Text of a 42nd of the height: 17 px at 720 lines, 26 at 1080, 51 at 2160."""
        height = min(72, max(14, round(surface.height / 42)))
        return cls(Size(max(7, round(height * 0.5)), height), max(4, height // 2))


def atlas(cell: Size) -> Pixels:
    """Draw all `CHARACTERS` side by side.

    Returns:
        uint8 coverage, (cell.height, cell.width * len(CHARACTERS)), host memory.
    """
    wide, high = cell.width * _FINER, cell.height * _FINER
    glyphs = [_glyph(character, wide, high) for character in CHARACTERS]
    small = [cv2.resize(glyph, cell, interpolation=cv2.INTER_AREA) for glyph in glyphs]
    return np.ascontiguousarray(np.hstack(small), np.uint8)


def _glyph(character: str, wide: int, high: int) -> Pixels:
    """Draw one character large: uint8 coverage, (high, wide)."""
    stroke = max(1, round(high * 0.09))
    if character in "→·":
        return _symbol(character, wide, high, stroke)
    font = cv2.FONT_HERSHEY_SIMPLEX
    (_, capital), _ = cv2.getTextSize("H", font, 10.0, 1)
    scale = 10.0 * 0.62 * high / capital
    (width, _), _ = cv2.getTextSize(character, font, scale, stroke)
    canvas = np.zeros((high, max(wide, width + 2 * stroke)), np.uint8)
    left = (canvas.shape[1] - width) // 2
    baseline = round(high * 0.76)
    cv2.putText(canvas, character, (left, baseline), font, scale, 255, stroke, cv2.LINE_AA)
    ink = np.flatnonzero(canvas.any(axis=0))
    if not ink.size:
        return np.zeros((high, wide), np.uint8)
    drawn = canvas[:, ink[0] : ink[-1] + 1]
    most = round(wide * 0.92)
    if drawn.shape[1] > most:
        drawn = np.asarray(cv2.resize(drawn, (most, high), interpolation=cv2.INTER_AREA), np.uint8)
    glyph = np.zeros((high, wide), np.uint8)
    left = (wide - drawn.shape[1]) // 2
    glyph[:, left : left + drawn.shape[1]] = drawn
    return glyph


def _symbol(character: str, wide: int, high: int, stroke: int) -> Pixels:
    """Draw what OpenCV's fonts lack."""
    glyph = np.zeros((high, wide), np.uint8)
    x, y, reach = wide // 2, round(high * 0.50), round(wide * 0.3)
    if character == "·":
        cv2.circle(glyph, (x, y), stroke, 255, cv2.FILLED, cv2.LINE_AA)
    else:
        tip = (x + round(wide * 0.4), y)
        cv2.line(glyph, (x - round(wide * 0.4), y), tip, 255, stroke, cv2.LINE_AA)
        for sign in (-1, 1):
            cv2.line(glyph, (tip[0] - reach, y + sign * reach), tip, 255, stroke, cv2.LINE_AA)
    return glyph


def boxes(hud: HudView, surface: Size) -> Boxes:
    """Lay a HUD out.

    Returns:
        float32, (N, 9): left, top, width, height in surface pixels, red, green, blue, alpha
        (0 to 1), and the glyph's index or -1 for a plain rectangle; in drawing order.
    """
    metrics = Metrics.of(surface)
    (wide, high), gap = metrics.cell, metrics.padding
    columns = max((sum(len(span.text) for span in line) for line in hud.lines), default=0)
    bars = _SPARKLINE_LINES if hud.sparkline else 0
    if bars:
        columns = max(columns, 24)
    panel = Size(columns * wide + 2 * gap, (len(hud.lines) + bars) * high + (2 + (bars > 0)) * gap)
    left = gap if hud.corner.endswith("left") else max(0, surface.width - panel.width - gap)
    top = gap if hud.corner.startswith("top") else max(0, surface.height - panel.height - gap)
    rows = [np.array([[left, top, *panel, *_PANEL, -1]], np.float32)]
    for number, line in enumerate(hud.lines):
        column = 0
        for span in line:
            x, y = left + gap + column * wide, top + gap + number * high
            rows.append(_text(span.text, COLOURS[span.colour], x, y, metrics.cell))
            column += len(span.text)
    if bars:
        strip = (left + gap, top + 2 * gap + len(hud.lines) * high, columns * wide, bars * high)
        rows.append(_sparkline(hud, *strip))
    return np.concatenate(rows)


def _text(text: str, paint: tuple[float, float, float], x: int, y: int, cell: Size) -> Boxes:
    rows = np.empty((len(text), 9), np.float32)
    rows[:, 0] = x + cell.width * np.arange(len(text))
    rows[:, 1:8] = (y, *cell, *paint, 1.0)
    rows[:, 8] = [_INDEX.get(character, _UNKNOWN) for character in text]
    visible: Boxes = rows[rows[:, 8] != _INDEX[" "]]
    return visible


def _sparkline(hud: HudView, left: int, top: int, width: int, height: int) -> Boxes:
    """One bar per frame time, the latest at the right, and a rule at the budget.

    The full height is twice the budget, or twice the median where frames take longer.
    """
    times = np.array(hud.sparkline[-(width // 2) :], np.float32)
    slots = max(60, len(times))
    edges = left + np.round(np.arange(slots - len(times), slots + 1) * (width / slots))
    full_ms = 2 * max(hud.budget_ms, float(np.median(times)) if len(times) else 0.0)
    tall = np.clip(np.round(times / full_ms * height), 1, height)
    rows = np.empty((len(times) + 1, 9), np.float32)
    rows[:-1, 0] = edges[:-1]
    rows[:-1, 1] = top + height - tall
    rows[:-1, 2] = np.maximum(1, np.diff(edges) - 1)
    rows[:-1, 3] = tall
    rows[:-1, 4:7] = [COLOURS[interval_colour(float(t), hud.budget_ms)] for t in times]
    rows[:-1, 7] = 0.9
    rows[:, 8] = -1
    rule = top + height - round(hud.budget_ms / full_ms * height)
    rows[-1, :8] = (left, rule, width, max(1, height // 40), *_RULE)
    return rows


class TextDrawing:
    """Draws HUDs; laid out again only when the view object or the surface changes."""

    def __init__(self) -> None:
        forget_errors()
        self._program = Program("glyphs", vertex="boxes", units={"image": 0})
        self._atlas: Texture | None = None
        self._drawn: tuple[HudView, Size] | None = None
        self._count = self._capacity = 0
        self._vao = int(GL.glGenVertexArrays(1))
        self._buffer = int(GL.glGenBuffers(1))
        GL.glBindVertexArray(self._vao)
        GL.glBindBuffer(GL.GL_ARRAY_BUFFER, self._buffer)
        for place, (count, first) in enumerate(((4, 0), (4, 4), (1, 8))):
            GL.glEnableVertexAttribArray(place)
            GL_2_0.glVertexAttribPointer(
                place, count, GL.GL_FLOAT, GL.GL_FALSE, 9 * 4, ctypes.c_void_p(first * 4)
            )
            GL.glVertexAttribDivisor(place, 1)
        check("set up the HUD")

    def draw(self, hud: HudView, surface: Size) -> None:
        """Draw over the bound framebuffer; leaves another vertex array bound."""
        GL.glBindVertexArray(self._vao)
        if self._drawn is None or self._drawn[0] is not hud or self._drawn[1] != surface:
            self._update(hud, surface)
        assert self._atlas is not None
        GL.glViewport(0, 0, *surface)
        GL.glEnable(GL.GL_BLEND)
        GL.glBlendFuncSeparate(GL.GL_SRC_ALPHA, GL.GL_ONE_MINUS_SRC_ALPHA, GL.GL_ZERO, GL.GL_ONE)
        self._program.use()
        self._program.set("surface", float(surface.width), float(surface.height))
        self._program.set("cell", *map(float, Metrics.of(surface).cell))
        GL.glBindTexture(GL.GL_TEXTURE_2D, self._atlas.id)
        GL.glDrawArraysInstanced(GL.GL_TRIANGLE_STRIP, 0, 4, self._count)
        GL.glDisable(GL.GL_BLEND)

    def _update(self, hud: HudView, surface: Size) -> None:
        cell = Metrics.of(surface).cell
        if self._atlas is None or self._atlas.size.height != cell.height:
            if self._atlas is not None:
                self._atlas.delete()
            pixels = atlas(cell)
            self._atlas = Texture(Size(pixels.shape[1], pixels.shape[0]), "luma")
            self._atlas.upload(pixels)
        rows = boxes(hud, surface)
        self._drawn, self._count = (hud, surface), len(rows)
        GL.glBindBuffer(GL.GL_ARRAY_BUFFER, self._buffer)
        if rows.nbytes > self._capacity:
            self._capacity = 2 * rows.nbytes
            GL.glBufferData(GL.GL_ARRAY_BUFFER, self._capacity, None, GL.GL_DYNAMIC_DRAW)
        GL.glBufferSubData(GL.GL_ARRAY_BUFFER, 0, rows.nbytes, rows)

    def close(self) -> None:
        """Free everything; the context must be current."""
        if self._atlas is not None:
            self._atlas.delete()
            self._atlas = None
        GL.glDeleteBuffers(1, [self._buffer])
        GL.glDeleteVertexArrays(1, [self._vao])
        self._program.delete()
