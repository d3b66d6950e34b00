"""Draw scenes of a small ray caster of our own at several sizes: aligned pairs of another kind.

OpenArena filters its textures; many games do not. This renderer samples texels without any
filter and without anti-aliasing, as the games of the nineties and their successors do, with
made-up textures, so that the nets see that kind of picture too. Every second scene has figures,
bars and a cross-hair over it, anti-aliased as a HUD is. Pixels are sampled at their centres, so any
two sizes are aligned exactly.

A frame is a scene of its own; an episode is a seed.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from training.collect.align import Limits
from training.collect.runner import Episode, Frame, Runner, Size
from training.collect.splits import maps_of

GRID = 24  # cells of the maze
TEXELS = 128  # side of a texture; coarser ones have texels of 2 x 2 or 4 x 4
SCENES = 150  # of each seed
EYE = 0.5  # height of the camera; walls are 1 high
CANVAS = (3840, 2160)  # the HUD is drawn on, then averaged down to any size
WORDS = ("HEALTH", "Ammo", "Lap", "SCORE", "fps", "Press E to open", "Level up!", "00:42", "x3")
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX)

Floats = NDArray[np.float32]
Texture = NDArray[np.float32]  # (TEXELS, TEXELS, 4): B, G, R 0..255, opacity 0 or 1


def noise(dice: np.random.Generator, side: int, finest: int) -> Floats:
    """Sum of random octaves, (side, side), 0..1; `finest` is the last octave's cell side."""
    total: Floats = np.zeros((side, side), np.float32)
    cell, weight = side // 4, 1.0
    fall = dice.uniform(0.5, 1.1)
    while cell >= finest:
        points = dice.random((side // cell, side // cell), dtype=np.float32)
        filter_ = cv2.INTER_NEAREST if dice.random() < 0.3 else cv2.INTER_CUBIC
        octave = cv2.resize(points, (side, side), interpolation=filter_)
        total += np.float32(weight) * octave.astype(np.float32)
        cell, weight = cell // 2, weight * fall
    low, high = float(total.min()), float(total.max())
    return ((total - low) / (high - low + 1e-6)).astype(np.float32)


def tiles(dice: np.random.Generator, side: int) -> Floats:
    """Bricks, planks or panels: factor (side, side), dark in the joints, lit on one edge."""
    width, height = (min(side, int(2 ** dice.integers(2, 8))) for _ in range(2))
    y, x = np.mgrid[:side, :side]
    x = x + (y // height % 2) * (width // 2) * int(dice.random() < 0.6)
    factor = np.ones((side, side), np.float32)
    factor *= (0.75 + 0.5 * dice.random((9, 16, 16))[0])[y // height % 16, x // width % 16]
    joint = int(dice.integers(1, 3))
    factor[(x % width < joint) | (y % height < joint)] *= dice.uniform(0.3, 0.8)
    factor[(x % width == joint) | (y % height == joint)] *= dice.uniform(1.0, 1.5)
    return factor


def texture(dice: np.random.Generator) -> Texture:
    """A random opaque texture of few shades: (TEXELS, TEXELS, 4)."""
    side = int(dice.choice((TEXELS // 4, TEXELS // 2, TEXELS)))
    tint = dice.uniform(0, 0.7)  # how far the colours are from grey
    dark, bright = (
        (1 - tint) * dice.uniform(low, high) + tint * dice.uniform(low, high, 3)
        for low, high in ((0, 90), (60, 255))
    )
    shade: Floats = noise(dice, side, int(2 ** dice.integers(0, 3)))
    if dice.random() < 0.7:
        shade *= tiles(dice, side) * dice.uniform(0.7, 1.1)
    if dice.random() < 0.6:  # grain, texel by texel, as in textures made of photographs
        shade *= 1 + dice.uniform(0.05, 0.5) * (dice.random((side, side), np.float32) - 0.5)
    shades = int(dice.integers(4, 24))
    stepped = np.rint(np.clip(shade, 0, 1) * shades) / shades
    colours = dark + (bright - dark) * stepped[..., None]
    if dice.random() < 0.3:  # a second material in blobs
        mask = noise(dice, side, 4) > dice.uniform(0.5, 0.8)
        colours[mask] = colours[mask] * dice.uniform(0.3, 1.2, 3)
    opaque = np.ones((side, side, 1))
    made = np.concatenate([np.clip(colours, 0, 255), opaque], axis=-1).astype(np.float32)
    return made.repeat(TEXELS // side, axis=0).repeat(TEXELS // side, axis=1)


def shaded(dice: np.random.Generator) -> Texture:
    """Soft light and shade in coarse texels, as figures drawn for small screens have."""
    side = int(dice.choice((TEXELS // 4, TEXELS // 2)))
    y, x = np.mgrid[:side, :side] / (side - 1) * 2 - 1
    light = noise(dice, side, int(dice.choice((4, 8)))) + dice.uniform(-0.5, 0.5) * (x + y)
    lines = np.abs(noise(dice, side, side // 8) - 0.5) < dice.uniform(0.01, 0.06)
    light = np.where(lines, dice.uniform(0, 0.3), light)
    colour = 255 * dice.uniform(0.5, 1) * (1 - dice.uniform(0, 0.6, 3))
    made = np.ones((side, side, 4), np.float32)
    made[..., :3] = np.clip(light[..., None] * colour, 0, 255)
    return made.repeat(TEXELS // side, axis=0).repeat(TEXELS // side, axis=1)


def sprite(dice: np.random.Generator) -> Texture:
    """A texture cut out along a random, mirrored outline."""
    made = shaded(dice) if dice.random() < 0.6 else texture(dice)
    y, x = np.mgrid[:TEXELS, :TEXELS] / (TEXELS - 1) * 2 - 1
    half = noise(dice, TEXELS, 4)
    outline = np.hypot(x, y * dice.uniform(0.7, 1.2)) + (half + half[:, ::-1] - 1) * 0.8
    made[..., 3] = outline < dice.uniform(0.5, 0.9)
    return made


def hud(dice: np.random.Generator) -> NDArray[np.uint8]:
    """Figures, words, bars and a cross-hair on nothing: uint8 BGRA of CANVAS' size."""
    width, height = CANVAS
    canvas = np.zeros((height, width, 4), np.uint8)
    for _ in range(int(dice.integers(2, 7))):
        colour = (*(int(c) for c in dice.integers(60, 256, 3)), 255)
        x = int(dice.choice((0.02, 0.4, 0.75)) * width + dice.integers(0, 200))
        y = int(dice.choice((0.08, 0.8, 0.93)) * height + dice.integers(-80, 80))
        if dice.random() < 0.3:  # a bar
            end = (x + int(dice.integers(200, 800)), y + int(dice.integers(24, 72)))
            cv2.rectangle(canvas, (x, y), end, colour, -1)
            cv2.rectangle(canvas, (x, y), end, (0, 0, 0, 255), 8)
            continue
        text = f"{dice.choice(WORDS)} {dice.integers(0, 1000)}"
        font, size = int(dice.choice(FONTS)), dice.uniform(2.4, 7.0)
        bold = int(size * dice.uniform(1.5, 3.5))
        if dice.random() < 0.6:  # an outline
            cv2.putText(canvas, text, (x, y), font, size, (0, 0, 0, 255), bold + 16, cv2.LINE_AA)
        cv2.putText(canvas, text, (x, y), font, size, colour, bold, cv2.LINE_AA)
    if dice.random() < 0.5:
        spot, white = (width // 2, height // 2), (255, 255, 255, 255)
        cv2.drawMarker(canvas, spot, white, cv2.MARKER_CROSS, int(dice.integers(60, 200)), 10)
    return canvas


@dataclass(frozen=True, slots=True)
class Billboard:
    """A sprite in the world: foot at (x, y), `height` high, `lift` above the floor."""

    x: float
    y: float
    height: float
    lift: float
    picture: int


class Scene:
    """A random place: maze, textures, sprites, light and camera, all from one seed."""

    def __init__(self, seed: int) -> None:
        dice = np.random.default_rng(seed)
        self.pictures = np.stack(
            [texture(dice) for _ in range(10)] + [sprite(dice) for _ in range(8)]
        )
        self.walls = np.where(
            dice.random((GRID, GRID)) < dice.uniform(0.1, 0.35),
            dice.integers(1, 7, (GRID, GRID)),
            0,
        )
        self.walls[[0, -1], :] = self.walls[:, [0, -1]] = 1
        free = np.argwhere(self.walls == 0)
        self.camera = free[dice.integers(len(free))] + dice.uniform(0.3, 0.7, 2)
        self.angle = dice.uniform(0, 2 * np.pi)
        self.horizon = dice.uniform(-0.1, 0.1)  # of the picture's height
        self.fog = dice.uniform(0.02, 0.3)
        self.light = dice.uniform(0.4, 1.3)
        self.sky = dice.random() < 0.4
        self.repeat = int(dice.integers(1, 4))  # textures a cell
        spots = free[dice.integers(len(free), size=14)] + dice.uniform(0.2, 0.8, (14, 2))
        self.billboards = [
            Billboard(x, y, dice.uniform(0.3, 0.9), dice.uniform(0, 0.2), int(picture))
            for (x, y), picture in zip(spots, dice.integers(10, 18, 14), strict=True)
        ]
        self.weapon = (int(dice.integers(10, 18)), dice.uniform(0.35, 0.7))
        self.hud = hud(dice) if dice.random() < 0.5 else None

    def render(self, width: int, height: int) -> NDArray[np.uint8]:
        """Draw the scene: uint8 BGR (height, width, 3)."""
        across = ((np.arange(width) + 0.5) / width * 2 - 1).astype(np.float32)  # tan, fov 90
        up = (0.5 + self.horizon - (np.arange(height) + 0.5) / height) * 2 * height / width
        slope = up[:, None].astype(np.float32)
        forward = np.array([np.cos(self.angle), np.sin(self.angle)])
        right = np.array([-forward[1], forward[0]])
        rays = forward + across[:, None] * right  # (W, 2), 1 long along the view axis
        distance, wall, along = self._cast(rays)
        picture = self._surfaces(rays.astype(np.float32), slope, distance, wall, along)
        self._draw_billboards(picture, across, slope, distance, forward, right)
        self._draw_weapon(picture, across, slope)
        self._draw_hud(picture)
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)

    def _cast(self, rays: NDArray[np.float64]) -> tuple[Floats, NDArray[np.int64], Floats]:
        """Walk the grid along each ray: wall distance, wall texture, place along the wall."""
        cell = np.floor(self.camera).astype(int) * np.ones((len(rays), 1), int)
        pace = 1 / np.maximum(np.abs(rays), 1e-9)
        step = np.where(rays < 0, -1, 1)
        ahead = np.where(rays < 0, self.camera - cell, cell + 1 - self.camera) * pace
        distance = np.zeros(len(rays))
        side = np.zeros(len(rays), int)
        walking = np.ones(len(rays), bool)
        rows = np.arange(len(rays))
        while walking.any():
            axis = np.where(ahead[:, 0] < ahead[:, 1], 0, 1)
            distance = np.where(walking, ahead[rows, axis], distance)
            side = np.where(walking, axis, side)
            move = walking.astype(int)
            cell[rows, axis] += step[rows, axis] * move
            ahead[rows, axis] += pace[rows, axis] * move
            walking &= self.walls[cell[:, 0], cell[:, 1]] == 0
        point = self.camera + rays * distance[:, None]
        along = point[rows, 1 - side] % 1.0
        wall = self.walls[cell[:, 0], cell[:, 1]]
        return np.maximum(distance, 1e-3).astype(np.float32), wall, along.astype(np.float32)

    def _surfaces(
        self,
        rays: Floats,
        slope: Floats,
        distance: Floats,
        wall: NDArray[np.int64],
        along: Floats,
    ) -> Floats:
        """Walls, floor and ceiling: float BGR (H, W, 3)."""
        level = EYE + slope * distance  # (H, W) height at which a pixel meets its wall
        is_floor, is_ceiling = level < 0, level >= 1
        steep = np.where(np.abs(slope) < 1e-4, 1e-4, slope)
        plane = np.where(is_floor, -EYE / steep, (1 - EYE) / steep)
        depth = np.where(is_floor | is_ceiling, np.abs(plane), distance)
        flat_x = self.camera[0] + rays[:, 0] * depth
        flat_y = self.camera[1] + rays[:, 1] * depth
        on_wall = ~(is_floor | is_ceiling)
        u = np.where(on_wall, along, flat_x) * self.repeat % 1.0
        v = np.where(on_wall, 1 - level, flat_y) * self.repeat % 1.0
        kind = np.where(on_wall, wall, np.where(is_floor, 7, 8))
        if self.sky:
            turn = np.arctan2(rays[:, 1], rays[:, 0]) * (4 / np.pi)
            u = np.where(is_ceiling, turn % 1.0, u)
            v = np.where(is_ceiling, (-slope * 1.2) % 1.0, v)
            kind = np.where(is_ceiling, 9, kind)
            depth = np.where(is_ceiling, 0, depth)
        shade = self.light / (1 + self.fog * depth)
        texels = self._texels(kind, u.astype(np.float32), v.astype(np.float32))
        return texels[..., :3] * self._levels(shade.astype(np.float32))[..., None]

    def _levels(self, shade: Floats) -> Floats:
        return np.asarray(np.rint(shade * 32) / 32, np.float32)

    def _texels(self, kind: NDArray[np.int64] | int, u: Floats, v: Floats) -> Floats:
        x = np.clip((u * TEXELS).astype(int), 0, TEXELS - 1)
        y = np.clip((v * TEXELS).astype(int), 0, TEXELS - 1)
        return np.asarray(self.pictures[kind, y, x])

    def _draw_billboards(
        self,
        picture: Floats,
        across: Floats,
        slope: Floats,
        distance: Floats,
        forward: NDArray[np.float64],
        right: NDArray[np.float64],
    ) -> None:
        seen = []
        for board in self.billboards:
            offset = np.array([board.x, board.y]) - self.camera
            depth = float(offset @ forward)
            if depth > 0.4:
                seen.append((depth, float(offset @ right), board))
        for depth, aside, board in sorted(seen, key=lambda entry: -entry[0]):
            u = (across * depth - aside) / board.height + 0.5
            v = 1 - (EYE + slope[:, 0] * depth - board.lift) / board.height
            columns = np.flatnonzero((u >= 0) & (u < 1) & (distance > depth))
            rows = np.flatnonzero((v >= 0) & (v < 1))
            shade = np.asarray(self.light / (1 + self.fog * depth), np.float32)
            self._paste(picture, board.picture, u, v, rows, columns, float(self._levels(shade)))

    def _draw_weapon(self, picture: Floats, across: Floats, slope: Floats) -> None:
        kind, size = self.weapon
        # The lower edge, not the last row's centre, which is elsewhere at every size.
        bottom = (self.horizon - 0.5) * 2 * len(slope) / len(across)
        u = across / size + 0.5
        v = 0.9 - (slope[:, 0] - bottom) / size
        columns = np.flatnonzero((u >= 0) & (u < 1))
        rows = np.flatnonzero((v >= 0) & (v < 1))
        self._paste(picture, kind, u, v, rows, columns, 1.0)

    def _draw_hud(self, picture: Floats) -> None:
        if self.hud is None:
            return
        height, width = picture.shape[:2]
        # Colours outside the marks are 0, so that the average is one of premultiplied colours.
        over = cv2.resize(self.hud, (width, height), interpolation=cv2.INTER_AREA)
        picture *= 1 - over[..., 3:].astype(np.float32) / 255
        picture += over[..., :3]

    def _paste(
        self,
        picture: Floats,
        kind: int,
        u: Floats,
        v: Floats,
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
        shade: float,
    ) -> None:
        if not len(rows) or not len(columns):
            return
        texels = self._texels(kind, u[columns][None, :], v[rows][:, None])
        area = np.ix_(rows, columns)
        opaque = texels[..., 3:] > 0
        picture[area] = np.where(opaque, texels[..., :3] * shade, picture[area])


class Raycaster(Runner):
    """Scenes of made-up places."""

    name = "raycaster"
    licence = "Apache-2.0 (made by this project)"
    limits = Limits(psnr_db=22.0, frame_psnr_db=18.0)  # unfiltered textures

    def episodes(self, frames: int | None = None) -> list[Episode]:
        return [
            Episode(
                self.name, name, name, split, frames or SCENES, int(name[4:]), {"tick": "scene"}
            )
            for name, split in maps_of(self.name).items()
        ]

    def versions(self) -> dict[str, str]:
        return {"raycaster": "4", "numpy": np.__version__, "opencv": cv2.__version__}

    def render(self, episode: Episode, size: Size) -> Generator[Frame]:
        assert episode.frames is not None
        for number in range(episode.frames):
            scene = Scene(episode.seed * 100_000 + number)
            yield Frame(number, number, scene.render(*size))
