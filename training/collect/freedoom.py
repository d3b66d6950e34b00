"""Render Freedoom (ViZDoom) scenes at several sizes: test pictures, never trained on.

The engine is deterministic: the same seed and actions give the same world at every size. It
offers no 480x270 and no 960x540, so a copy of the engine with an edited mode table is started
through a wrapper that swaps the size in. Its renderer samples pixel corners instead of centres;
`training.pairs.freedoom_pair` undoes the shift this causes between small and large renders.

    pip install vizdoom==1.3.2
    python -m training.collect.freedoom --out data/freedoom

Freedoom's pictures are under a BSD-like licence.
"""

# ruff: noqa: T201 - a command-line program

from __future__ import annotations

import argparse
import json
import os
import random
import struct
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZES = ((480, 270), (640, 360), (960, 540), (1920, 1080), (3840, 2160))  # (width, height)
MAPS = ("MAP01", "MAP07", "MAP15", "MAP20", "E1M2", "E2M4", "E3M3", "E4M1")
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

WRAPPER = """#!/bin/bash
# The engine takes the first -width and -height it meets: replace those ViZDoom passes.
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    -width) arguments+=(-width "$VIZ_WIDTH"); shift 2;;
    -height) arguments+=(-height "$VIZ_HEIGHT"); shift 2;;
    *) arguments+=("$1"); shift;;
  esac
done
exec "{engine}" "${{arguments[@]}}"
"""


def patched_engine(package: Path, folder: Path) -> Path:
    """Copy the engine into `folder` with our sizes in its mode table; return the wrapper.

    Raises:
        RuntimeError: the mode table was not found (another ViZDoom version).
    """
    binary = bytearray((package / "vizdoom").read_bytes())
    key = b"".join(struct.pack("<HH", *m) for m in ((160, 120), (200, 125), (200, 150)))
    start = binary.find(key)
    if start < 0:
        raise RuntimeError("no mode table in the ViZDoom engine; use vizdoom==1.3.2")
    swaps = {(512, 288): (480, 270), (800, 450): (960, 540), (1600, 1200): (3840, 2160)}
    for old, new in swaps.items():
        at = binary.find(struct.pack("<HH", *old), start, start + 1000)
        binary[at : at + 4] = struct.pack("<HH", *new)
    home = folder / "engine"
    home.mkdir(parents=True, exist_ok=True)
    engine, wrapper = home / "vizdoom", home / "start.sh"
    engine.write_bytes(binary)
    wrapper.write_text(WRAPPER.format(engine=engine))
    engine.chmod(0o755)
    wrapper.chmod(0o755)
    for source, link in (
        (package / "vizdoom.pk3", home / "vizdoom.pk3"),
        (package.parent / "vizdoom.libs", folder / "vizdoom.libs"),  # RPATH=$ORIGIN/../
    ):
        if not link.is_symlink() and source.exists():
            link.symlink_to(source)
    return wrapper


def open_game(map_name: str, seed: int, size: tuple[int, int], folder: Path) -> Any:
    """Start the engine at `size` (width, height); a `vizdoom.DoomGame`, initialised."""
    vizdoom = import_module("vizdoom")  # not a dependency: needed by this collector alone

    package = Path(vizdoom.__path__[0])
    os.environ.update(VIZ_WIDTH=str(size[0]), VIZ_HEIGHT=str(size[1]))
    game = vizdoom.DoomGame()
    game.set_vizdoom_path(str(patched_engine(package, folder)))
    wad = "freedoom2.wad" if map_name.startswith("MAP") else "freedoom1.wad"
    game.set_doom_game_path(str(package / wad))
    game.set_doom_map(map_name)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_1920X1080)
    game.set_screen_format(vizdoom.ScreenFormat.BGR24)
    game.set_window_visible(False)
    game.set_seed(seed)
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
    game.set_depth_buffer_enabled(size == SIZES[0])
    game.init()
    return game


def cheat(game: Any) -> None:
    """Make the player immortal and armed."""
    for command in CHEATS:
        game.send_game_command(command)


def is_a_view(depth: np.ndarray, pixels: np.ndarray) -> bool:
    """Tell whether a frame shows more than a wall at arm's length."""
    near = float((depth < 3).mean())
    far = float(np.median(depth)) > 6 and float(np.percentile(depth, 90)) > 20
    return far and near < 0.3 and float(pixels.std()) > 18


def visit(game: Any, seed: int, want: set[int] | None, count: int) -> list[tuple[int, np.ndarray]]:
    """Warp from place to place and give the frames wanted as (number, uint8 BGR (H, W, 3)).

    Args:
        want: place numbers to show, or None to choose the first `count` good views (needs the
            depth buffer).
        count: how many frames at most.
    """
    cheat(game)
    game.make_action([0] * len(BUTTONS), 2)
    objects = game.get_state().objects
    places = sorted((round(o.position_x), round(o.position_y)) for o in objects)
    dice = random.Random(seed)
    frames: list[tuple[int, np.ndarray]] = []
    for number in range(count * 4 if want is None else max(want) + 1):
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
        shown = want is None or number in want
        game.advance_action(6, shown)
        if game.is_episode_finished():
            game.new_episode()
            cheat(game)
        elif shown:
            state = game.get_state()
            pixels = state.screen_buffer
            if want is not None or is_a_view(state.depth_buffer, pixels):
                frames.append((number, pixels.copy()))
        if want is None and len(frames) >= count:
            break
    return frames


def collect(map_name: str, out: Path, count: int, seed: int) -> list[int]:
    """Render `count` views of a map at every size to `out/MAP/<height>/<number>.png`."""
    want: set[int] | None = None
    for size in SIZES:
        game = open_game(map_name, seed, size, out)
        frames = visit(game, seed, want, count)
        game.close()
        want = {number for number, _ in frames} if want is None else want
        folder = out / map_name / str(size[1])
        folder.mkdir(parents=True, exist_ok=True)
        for number, pixels in frames:
            path = str(folder / f"{number:04d}.png")
            cv2.imwrite(path, pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return sorted(want or ())


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.collect.freedoom")
    parser.add_argument("maps", nargs="*", default=MAPS)
    parser.add_argument("--out", type=Path, default=Path("data/freedoom"))
    parser.add_argument("--count", type=int, default=5, help="views of each map")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args(arguments)
    for map_name in options.maps:
        numbers = collect(map_name, options.out.resolve(), options.count, options.seed)
        print(map_name, json.dumps(numbers), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
