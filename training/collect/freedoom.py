"""Freedoom (ViZDoom): views of eight maps, and short walks; test pictures, never trained on.

The engine takes one sample a pixel, without any filter, but walls, floors and the weapon each at
another corner of it: its own renders at 270 and 1080 lines lie 0.3 to 1.2 HR pixels apart, and not
everywhere alike. So it draws once, at 2160 lines, and every size takes every n-th pixel of that, as
a renderer that samples where it should would draw it. Nothing is averaged or interpolated.

The engine is deterministic: the same seed and actions give the same world at every size. It offers
no 2160 lines, so a copy of the engine with an edited mode table is started through a wrapper that
swaps the size in.

    pip install vizdoom==1.3.2

Freedoom's pictures are under a BSD licence.
"""

from __future__ import annotations

import math
import random
import struct
import tempfile
from collections.abc import Callable, Generator, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from training.collect.align import Limits
from training.collect.runner import (
    CollectError,
    Episode,
    Frame,
    Pixels,
    Runner,
    Size,
    dense_of,
)
from training.collect.splits import maps_of

CHEATS = ("god", "give weapons", "give ammo", "give keys")
BUTTONS = [
    "MOVE_FORWARD",
    "MOVE_BACKWARD",
    "MOVE_LEFT",
    "MOVE_RIGHT",
    "TURN_LEFT_RIGHT_DELTA",
    "LOOK_UP_DOWN_DELTA",
    "ATTACK",
    "USE",
    "SPEED",
    "SELECT_WEAPON2",
    "SELECT_WEAPON3",
    "SELECT_WEAPON4",
    "SELECT_WEAPON5",
    "SELECT_WEAPON6",
    "SELECT_WEAPON7",
]
HUGE: Size = (3840, 2160)
#: folder: which pixels of the huge render it gets: every n-th, from one. Each size's samples lie
#: half a pixel of the render above and to the left of its pixels' centres, so all sizes agree.
SAMPLES = {"270p": (8, 3), "360p": (6, 2), "540p": (4, 1), "1080p": (2, 0)}
SMALL: Size = (640, 360)  # at which views are chosen
#: A mode of the engine's table that is given up for ours.
SWAPPED_MODES = {(1600, 1200): HUGE}
VIEWS = 8  # of each map
#: Of dense sequences: 24 frames, every second of the 35 tics a second.
DENSE_FRAMES, DENSE_TICS = 24, 2
#: Walks that are tried, and how far one leads at least, in the map's units (a door is 64 wide).
WALKS, FAR = 60, 200.0

WRAPPER = """#!/bin/bash
# The engine takes the first -width and -height it meets: replace those ViZDoom passes.
cd "{folder}" || exit 1
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    -width) arguments+=(-width {width}); shift 2;;
    -height) arguments+=(-height {height}); shift 2;;
    *) arguments+=("$1"); shift;;
  esac
done
exec "{folder}/engine/vizdoom" "${{arguments[@]}}"
"""


class Freedoom(Runner):
    """Warps from place to place and keeps what is a view."""

    name = "freedoom"
    licence = "BSD-3-Clause (Freedoom)"
    sizes = (HUGE,)
    limits = Limits(psnr_db=26.0)  # unfiltered textures

    def episodes(self, frames: int | None = None) -> list[Episode]:
        samples = {folder: list(which) for folder, which in SAMPLES.items()}
        settings = {"tick": "place", "skill": 4, "hud": False, "weapon": True, "samples": samples}
        return [
            Episode(self.name, name.lower(), name, split, frames or VIEWS, 7, settings)
            for name, split in maps_of(self.name).items()
        ]

    def dense(self, frames: int | None = None) -> list[Episode]:
        how = {"tick": f"{DENSE_TICS}/35 s"}
        return dense_of(self.episodes(), frames or DENSE_FRAMES, how)

    def versions(self) -> dict[str, str]:
        return {"vizdoom": str(_vizdoom().__version__)}

    def render(self, episode: Episode, size: Size) -> Generator[Frame]:
        assert episode.frames is not None
        dense = bool(episode.settings.get("dense"))
        drawn = _walks if dense else _views
        wanted = {number for number, _ in _visit(drawn, episode, SMALL, None)}
        if not wanted:
            raise CollectError(f"{episode.map} has nothing to see by seed {episode.seed}")
        first = min(wanted) if dense else 0
        for number, pixels in _visit(drawn, episode, size, wanted):
            yield Frame(number - first, number - first, pixels)

    def pictures(self, size: Size, pixels: Pixels) -> dict[str, Pixels]:
        return {
            folder: np.ascontiguousarray(pixels[first::step, first::step])
            for folder, (step, first) in SAMPLES.items()
        }


def _vizdoom() -> Any:
    try:
        return import_module("vizdoom")
    except ImportError as exc:
        raise CollectError(f"Freedoom needs ViZDoom ({exc}): pip install vizdoom==1.3.2") from exc


def _patched_engine(package: Path, folder: Path, size: Size) -> Path:
    """Copy the engine into `folder` with our sizes in its mode table; return the wrapper."""
    binary = bytearray((package / "vizdoom").read_bytes())
    key = b"".join(struct.pack("<HH", *m) for m in ((160, 120), (200, 125), (200, 150)))
    start = binary.find(key)
    places = {old: binary.find(struct.pack("<HH", *old), start) for old in SWAPPED_MODES}
    if start < 0 or any(not start < at < start + 1000 for at in places.values()):
        raise CollectError("no mode table in ViZDoom's engine; pip install vizdoom==1.3.2")
    for old, at in places.items():
        binary[at : at + 4] = struct.pack("<HH", *SWAPPED_MODES[old])
    home = folder / "engine"
    home.mkdir()
    engine, wrapper = home / "vizdoom", home / "start.sh"
    engine.write_bytes(binary)
    wrapper.write_text(WRAPPER.format(folder=folder, width=size[0], height=size[1]))
    engine.chmod(0o755)
    wrapper.chmod(0o755)
    (home / "vizdoom.pk3").symlink_to(package / "vizdoom.pk3")
    libraries = package.parent / "vizdoom.libs"  # RPATH=$ORIGIN/../vizdoom.libs
    if libraries.exists():
        (folder / "vizdoom.libs").symlink_to(libraries)
    return wrapper


def _open_game(episode: Episode, size: Size, folder: Path, *, depth: bool) -> Any:
    """Start the engine; a `vizdoom.DoomGame`, initialised."""
    vizdoom = _vizdoom()
    package = Path(vizdoom.__path__[0])
    game = vizdoom.DoomGame()
    game.set_vizdoom_path(str(_patched_engine(package, folder, size)))
    wad = "freedoom2.wad" if episode.map.startswith("MAP") else "freedoom1.wad"
    game.set_doom_game_path(str(package / wad))
    game.set_doom_map(episode.map)
    game.set_doom_config_path(str(folder / "vizdoom.ini"))
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_1920X1080)
    game.set_screen_format(vizdoom.ScreenFormat.BGR24)
    game.set_window_visible(False)
    game.set_seed(episode.seed)
    game.set_doom_skill(4)
    for off in ("hud", "minimal_hud", "crosshair", "messages", "screen_flashes"):
        getattr(game, f"set_render_{off}")(False)
    for on in ("weapon", "decals", "particles", "effects_sprites", "corpses"):
        getattr(game, f"set_render_{on}")(True)
    game.set_available_buttons([getattr(vizdoom.Button, name) for name in BUTTONS])
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_episode_timeout(0)
    game.set_episode_start_time(1)
    game.add_game_args("+cl_showsecretmessage 0 +con_midtime 0")
    game.set_objects_info_enabled(True)
    game.set_depth_buffer_enabled(depth)
    try:
        game.init()
    except Exception as exc:  # ViZDoom's own, of several types
        raise CollectError(f"ViZDoom's engine did not start: {exc}") from exc
    return game


def _cheat(game: Any) -> None:
    """Make the player immortal and armed."""
    for command in CHEATS:
        game.send_game_command(command)


def _is_a_view(depth: Pixels, pixels: Pixels) -> bool:
    """Tell whether a frame shows more than a wall at arm's length."""
    near = float((depth < 3).mean())
    far = float(np.median(depth)) > 6 and float(np.percentile(depth, 90)) > 20
    return far and near < 0.3 and float(pixels.std()) > 18


#: Gives numbered frames of a game; arguments: game, seed, numbers wanted or None, how many.
Drawn = Callable[[Any, int, set[int] | None, int], Iterator[tuple[int, Pixels]]]


def _visit(
    drawn: Drawn, episode: Episode, size: Size, wanted: set[int] | None
) -> Iterator[tuple[int, Pixels]]:
    """Go from place to place and give the frames wanted.

    Args:
        drawn: `_views` or `_walks`.
        wanted: numbers of the frames to show, or None to choose `episode.frames` good ones, by the
            depth buffer.
    """
    assert episode.frames is not None
    with tempfile.TemporaryDirectory(prefix="freedoom-") as folder:
        game = _open_game(episode, size, Path(folder), depth=wanted is None)
        try:
            yield from drawn(game, episode.seed, wanted, episode.frames)
        finally:
            game.close()


def _views(
    game: Any, seed: int, wanted: set[int] | None, count: int
) -> Iterator[tuple[int, Pixels]]:
    places = _places(game)
    dice = random.Random(seed)
    found = 0
    for number in range(8 * count + 8 if wanted is None else max(wanted, default=-1) + 1):
        shown = wanted is None or number in wanted
        _go(game, places, dice, shown)
        if game.is_episode_finished():
            game.new_episode()
            _cheat(game)
        elif shown:
            state = game.get_state()
            pixels = state.screen_buffer
            if wanted is not None or _is_a_view(state.depth_buffer, pixels):
                found += 1
                yield number, pixels.copy()
        if wanted is None and found >= count:
            return


def _walks(
    game: Any, seed: int, wanted: set[int] | None, count: int
) -> Iterator[tuple[int, Pixels]]:
    """Walk `count` steps from each place; give the first walk that is all views, or that wanted.

    A frame's number is walk * count + step.
    """
    places = _places(game)
    dice = random.Random(seed)
    for walk in range(WALKS if wanted is None else max(wanted) // count + 1):
        shown = wanted is None or walk * count in wanted
        _go(game, places, dice, shown)
        start, frames = _position(game), []
        for state in _steps(game, dice, count, shown):
            pixels = state.screen_buffer
            if wanted is not None or _is_a_view(state.depth_buffer, pixels):
                frames.append(pixels.copy())
        if game.is_episode_finished():
            game.new_episode()
            _cheat(game)
        elif len(frames) == count and math.dist(start, _position(game)) > FAR:
            yield from enumerate(frames, walk * count)
            return


def _steps(game: Any, dice: random.Random, count: int, shown: bool) -> Iterator[Any]:
    """Walk on and turn a little; give the state after each step, if it is shown."""
    turn = dice.uniform(-1.5, 1.5)  # degrees a tic
    for _ in range(count):
        turn = min(max(turn + dice.uniform(-0.3, 0.3), -2), 2)
        game.set_action([1, 0, 0, 0, turn, *[0] * (len(BUTTONS) - 5)])
        game.advance_action(DENSE_TICS, shown)
        if shown and not game.is_episode_finished():
            yield game.get_state()


def _position(game: Any) -> tuple[float, float]:
    variables = _vizdoom().GameVariable
    x, y = (game.get_game_variable(v) for v in (variables.POSITION_X, variables.POSITION_Y))
    return float(x), float(y)


def _places(game: Any) -> list[tuple[int, int]]:
    """Begin, and list where things stand."""
    _cheat(game)
    game.make_action([0] * len(BUTTONS), 2)
    objects = game.get_state().objects
    return sorted((round(o.position_x), round(o.position_y)) for o in objects)


def _go(game: Any, places: list[tuple[int, int]], dice: random.Random, shown: bool) -> None:
    """Warp to a place, turn, take a weapon, let some time pass, walk a little, perhaps shoot."""
    x, y = places[dice.randrange(len(places))]
    game.send_game_command(f"warp {x} {y}")
    turn: list[float] = [0] * len(BUTTONS)
    turn[4], turn[5] = dice.uniform(-180, 180), dice.uniform(-8, 8)
    turn[9 + dice.randrange(6)] = 1
    game.set_action(turn)
    game.advance_action(1, False)
    game.set_action([0] * len(BUTTONS))
    game.advance_action(dice.randrange(3, 20), False)
    walk = [dice.random() < 0.7, 0, dice.random() < 0.2, dice.random() < 0.2]
    game.set_action([*walk, dice.uniform(-3, 3), 0, dice.random() < 0.4, *[0] * 8])
    game.advance_action(6, shown)
