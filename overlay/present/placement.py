"""Where the overlay goes, and which point of it is which point of the game: pure functions.

All in physical pixels of the desktop (origin at the primary monitor's top left corner; monitors
left of it or above it have negative coordinates), so that monitors of different DPI need no
special treatment. How the picture sits inside its surface is `overlay.present.fit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overlay.errors import SettingsError
from overlay.frame import Region, Size
from overlay.present import Look
from overlay.present.fit import source_from_surface, surface_from_source

#: Scale in "beside" and "window" when neither a size nor a scale is asked for.
DEFAULT_SCALE = 2.0

Point = tuple[float, float]


def overlap_px(a: Region, b: Region) -> int:
    """Area that two regions share, in pixels."""
    width = min(a.left + a.width, b.left + b.width) - max(a.left, b.left)
    height = min(a.top + a.height, b.top + b.height) - max(a.top, b.top)
    return max(0, width) * max(0, height)


def _apart(a: Region, b: Region) -> int:
    """Squared distance between the edges of two regions; 0 if they touch."""
    across = max(0, a.left - b.left - b.width, b.left - a.left - a.width)
    down = max(0, a.top - b.top - b.height, b.top - a.top - a.height)
    return across * across + down * down


def monitor_index(game: Region, monitors: Sequence[Region]) -> int:
    """Choose the monitor the game is on: the largest overlap, else the nearest one."""
    if not monitors:
        raise ValueError("there is no monitor")
    return min(
        range(len(monitors)),
        key=lambda i: (-overlap_px(game, monitors[i]), _apart(game, monitors[i])),
    )


def chosen_monitor(look: Look, game: Region, monitors: Sequence[Region]) -> int:
    """Give the monitor of `look`, else the one the game is on.

    Raises:
        SettingsError: `look.monitor` is none of them.
    """
    if look.monitor is None:
        return monitor_index(game, monitors)
    if not 0 <= look.monitor < len(monitors):
        listing = ", ".join(f"{i} ({region})" for i, region in enumerate(monitors))
        raise SettingsError(f"there is no monitor {look.monitor}; there are: {listing}")
    return look.monitor


def shrunk(size: Size, room: Size) -> Size:
    """Make a size fit into `room`, keeping its aspect; never larger than it was."""
    factor = min(1.0, room.width / size.width, room.height / size.height)
    return Size(max(1, round(size.width * factor)), max(1, round(size.height * factor)))


def wanted_size(look: Look, source: Size, scale: float = DEFAULT_SCALE) -> Size:
    """Give the size that `look` asks for, before it is fitted to a monitor."""
    if look.size is not None:
        return look.size
    scale = look.scale if look.scale is not None else scale
    return Size(max(1, round(source.width * scale)), max(1, round(source.height * scale)))


def _within(left: float, top: float, size: Size, monitor: Region) -> Region:
    """Put a size at a place, moved so that it lies within the monitor."""
    right = monitor.left + monitor.width - size.width
    bottom = monitor.top + monitor.height - size.height
    return Region(
        max(monitor.left, min(round(left), right)),
        max(monitor.top, min(round(top), bottom)),
        *size,
    )


def _centred(size: Size, around: Region, monitor: Region) -> Region:
    return _within(
        around.left + (around.width - size.width) / 2,
        around.top + (around.height - size.height) / 2,
        size,
        monitor,
    )


def _beside(wanted: Size, game: Region, monitor: Region) -> Region:
    """Place a size right of, left of, below or above the game: the first that has the room.

    Where none has, the one that lets it be largest; where even that would be smaller than the
    game itself, the corner of the monitor that covers the least of the game.
    """
    right, bottom = monitor.left + monitor.width, monitor.top + monitor.height
    after, below = game.left + game.width, game.top + game.height
    middle, centre = game.left + game.width / 2, game.top + game.height / 2
    rooms = {
        "right": Size(right - after, monitor.height),
        "left": Size(game.left - monitor.left, monitor.height),
        "below": Size(monitor.width, bottom - below),
        "above": Size(monitor.width, game.top - monitor.top),
    }
    sizes = {side: shrunk(wanted, room) for side, room in rooms.items() if min(room) >= 1}
    side, size = max(sizes.items(), key=lambda item: item[1].width, default=("", Size(0, 0)))
    if size.width < min(game.width, wanted.width):
        size = shrunk(wanted, monitor.size)
        corners = [
            Region(left, top, *size)
            for left in (right - size.width, monitor.left)
            for top in (bottom - size.height, monitor.top)
        ]
        return min(corners, key=lambda corner: overlap_px(corner, game))
    left = {"right": after, "left": game.left - size.width}.get(side, middle - size.width / 2)
    top = {"below": below, "above": game.top - size.height}.get(side, centre - size.height / 2)
    return _within(left, top, size, monitor)


def surface_region(look: Look, game: Region, monitors: Sequence[Region]) -> Region:
    """Decide where the surface goes.

    - "over": the whole monitor, or `look.size` or `look.scale` centred on the game;
    - "beside": next to the game, or centred on the monitor if that is another one;
    - "window": centred on the monitor;
    - "fullscreen": the whole monitor.

    What does not fit the monitor is made smaller with its aspect kept.

    Raises:
        SettingsError: `look.monitor` does not exist.
    """
    index = chosen_monitor(look, game, monitors)
    monitor = monitors[index]
    if look.mode == "fullscreen" or (
        look.mode == "over" and look.size is None and look.scale is None
    ):
        return monitor
    wanted = wanted_size(look, game.size)
    elsewhere = overlap_px(game, monitor) == 0
    if look.mode == "beside" and not elsewhere:
        return _beside(wanted, game, monitor)
    size = shrunk(wanted, monitor.size)
    return _centred(size, monitor if look.mode != "over" else game, monitor)


@dataclass(frozen=True, slots=True)
class PointMap:
    """Which point of the overlay shows which point of the game.

    Points are continuous: pixel (i, j) covers [i, i+1) x [j, j+1). Points of the game count from
    the top left corner of its client area, points of the overlay are desktop coordinates.

    Attributes:
        game: client area on the desktop.
        surface: the overlay on the desktop.
        picture: where the picture lies on the surface, in surface pixels; may reach over it.
    """

    game: Region
    surface: Region
    picture: Region

    @property
    def identity(self) -> bool:
        """Whether every point is shown where it is, so that the pointer needs no help."""
        shown = Region(
            self.surface.left + self.picture.left,
            self.surface.top + self.picture.top,
            *self.picture.size,
        )
        return shown == self.game

    def overlay_from_game(self, x: float, y: float) -> Point:
        """Map a point of the game's client area to the desktop point that shows it."""
        x, y = surface_from_source(self.picture, self.game.size, x, y)
        return self.surface.left + x, self.surface.top + y

    def game_from_overlay(self, x: float, y: float) -> Point:
        """Map a desktop point to the point of the game it shows (may lie outside of it)."""
        return source_from_surface(
            self.picture, self.game.size, x - self.surface.left, y - self.surface.top
        )

    def shows(self, x: float, y: float) -> bool:
        """Whether the overlay shows a part of the game at this desktop point."""
        on_x, on_y = x - self.surface.left, y - self.surface.top
        game_x, game_y = self.game_from_overlay(x, y)
        return (
            0 <= on_x < self.surface.width
            and 0 <= on_y < self.surface.height
            and 0 <= game_x < self.game.width
            and 0 <= game_y < self.game.height
        )
