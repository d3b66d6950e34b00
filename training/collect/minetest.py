"""Minetest: views of generated worlds, test pictures, never trained on.

Nothing in such a world moves: time of day stands still, clouds, particles and animated textures are
off, liquids do not flow and nothing grows. So no clock has to be tamed; the game is started at each
size, a mod of ours puts the player at the same places, and the window is read when it no longer
changes. Textures are sampled without a filter and without mip levels, the game's default.

A world is generated from its seed, once for all sizes. What the game leaves to chance whatever the
seed, the leaves and fruit of trees, is settled before.

Debian packages: minetest (with Minetest Game in minetest-data), xvfb. The game's media are under
CC BY-SA 3.0 mainly, see /usr/share/doc/minetest-data/copyright; the frames are not part of
this repository.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from training.collect.align import Limits
from training.collect.packaged import debian_versions, private_display, run_program
from training.collect.runner import CollectError, Episode, Frame, Pixels, Runner, Size
from training.collect.splits import maps_of

FRAMES = 8
RANGE = 100  # nodes that are seen
#: A view counts when so many pictures in a row were the same, over so long.
STILL_FRAMES, STILL_S = 3, 1.5
#: How long the start, a place and a frame are waited for.
START_S, PLACE_S, FRAME_S = 300.0, 300.0, 1.0

STILL_WORLD = """\
num_emerge_threads = 1
server_unload_unused_data_timeout = 100000
abm_interval = 100000
nodetimer_interval = 100000
liquid_update = 100000
time_speed = 0
"""
WORLD_CONFIG = (
    STILL_WORLD
    + """\
bind_address = 127.0.0.1
port = {port}
fixed_map_seed = {seed}
mg_name = v7
mg_flags = nocaves,nodungeons,light,decorations,biomes
mgv7_spflags = mountains,ridges,nofloatlands,nocaverns
frames_seed = {seed}
frames_count = {count}
frames_range = {range}
"""
)
PLAY_CONFIG = (
    STILL_WORLD
    + """\
screen_w = {width}
screen_h = {height}
autosave_screensize = false
fullscreen = false
pause_on_lost_focus = false
fps_max = 10
fps_max_unfocused = 10
viewing_range = {range}
enable_sound = false
enable_clouds = false
enable_particles = false
enable_minimap = false
show_debug = false
node_highlighting = none
view_bobbing_amount = 0
fall_bobbing_amount = 0
show_statusline_on_connect = false
enable_damage = false
creative_mode = true
enable_dynamic_shadows = false
static_spawnpoint = {spawn}
max_block_generate_distance = 0
max_block_send_distance = {blocks}
max_simultaneous_block_sends_per_client = 1000
full_block_send_enable_min_time_from_building = 0
block_send_optimize_delay = 0
client_unload_unused_data_timeout = 100000
"""
)

#: Generates a world, writes its places ("x y z yaw down" a line, of the eye; radians) and ends.
PLAN_MOD = """\
local seed = tonumber(core.settings:get("frames_seed"))
local count = tonumber(core.settings:get("frames_count"))
local range = tonumber(core.settings:get("frames_range"))
local REACH = 60  -- nodes from the middle to places, at most
local LOW, HIGH = -32, 127  -- heights that are generated: edges of the generator's pieces

-- What chance leaves out of a tree is thrown once for each kind: the game would throw it anew in
-- every run, whatever the world's seed.
local function settle(parts, dice)
    for _, part in ipairs(parts) do
        part.prob = dice:next(0, 253) < part.prob and 254 or 0
    end
end

core.register_on_mods_loaded(function()
    local dice, names, all = PcgRandom(seed), {}, table.copy(core.registered_decorations)
    for name in pairs(all) do
        table.insert(names, name)
    end
    table.sort(names, function(a, b) return tostring(a) < tostring(b) end)
    core.clear_registered_decorations()
    for _, name in ipairs(names) do
        local decoration = all[name]
        if decoration.deco_type == "schematic" then
            local read = core.read_schematic(decoration.schematic, {write_yslice_prob = "all"})
            settle(read.data, dice)
            settle(read.yslice_prob, dice)
            decoration.schematic = read
        end
        core.register_decoration(decoration)
    end
end)

local function middle(dice)
    for _ = 1, 1000 do
        local x, z = dice:next(-20, 20) * 80, dice:next(-20, 20) * 80
        local y = core.get_spawn_level(x, z)
        if y and y < 60 then
            return vector.new(x, 0, z)
        end
    end
    return vector.new(0, 0, 0)
end

local function ground(x, z)
    for y = HIGH - 15, 1, -1 do
        if core.get_node(vector.new(x, y, z)).name ~= "air" then
            return y
        end
    end
end

local function free(eye)
    for x = -1, 1 do for y = -2, 1 do for z = -1, 1 do
        if core.get_node(vector.offset(eye, x, y, z)).name ~= "air" then
            return false
        end
    end end end
    return true
end

-- More than sky, and little of it at arm's length.
local function is_a_view(eye, yaw, down)
    local near, hits, all = 0, 0, 0
    for side = -40, 40, 8 do for up = -24, 24, 8 do
        local a, b = yaw + math.rad(side), down - math.rad(up)
        local way = vector.new(-math.sin(a) * math.cos(b), -math.sin(b), math.cos(a) * math.cos(b))
        local hit = core.raycast(eye, eye + way * range * 0.9, false, true):next()
        all = all + 1
        if hit then
            hits = hits + 1
            if vector.distance(eye, hit.intersection_point) < 6 then
                near = near + 1
            end
        end
    end end
    return near < 0.12 * all and hits > 0.6 * all
end

local function places(dice, centre)
    local found = {}
    for _ = 1, 2000 * count do
        local x, z = centre.x + dice:next(-REACH, REACH), centre.z + dice:next(-REACH, REACH)
        local above = dice:next(2, 8)
        local yaw, down = math.rad(dice:next(0, 359)), math.rad(dice:next(-5, 20))
        local y = ground(x, z)
        local eye = y and vector.new(x, y + above, z)
        if #found < count and eye and free(eye) and is_a_view(eye, yaw, down) then
            table.insert(found, table.concat({x, y + above, z, yaw, down}, " "))
        end
    end
    return table.concat(found, "\\n")
end

core.after(0, function()
    local dice = PcgRandom(seed)
    local centre = middle(dice)
    local reach = REACH + range + 16
    local from = vector.new(centre.x - reach, LOW, centre.z - reach)
    local to = vector.new(centre.x + reach, HIGH, centre.z + reach)
    core.emerge_area(from, to, function(_, _, left)
        if left == 0 then
            core.safe_file_write(core.get_worldpath() .. "/places", places(dice, centre))
            core.request_shutdown()
        end
    end)
end)
"""

#: Takes a place from the file `asked` ("number x y z yaw down"), puts the player there and answers
#: with the number in the file `there`, with -1 when the player has come.
GUIDE_MOD = """\
local folder = core.get_worldpath() .. "/"

-- Of animations, the first picture stays.
local function still(tiles)
    local copies = {}
    for index, tile in pairs(tiles or {}) do
        copies[index] = tile
        if type(tile) == "table" and tile.animation then
            copies[index] = table.copy(tile)
            copies[index].animation.length = 1e5
            copies[index].animation.frame_length = 1e5
        end
    end
    return copies
end

core.register_on_mods_loaded(function()
    for name, node in pairs(core.registered_nodes) do
        core.override_item(name, {
            tiles = still(node.tiles), special_tiles = still(node.special_tiles),
        })
    end
end)

local function go(player, text)
    local n, x, y, z, yaw, down = unpack(text:split(" "))
    local height = player:get_properties().eye_height
    player:set_pos(vector.new(tonumber(x), tonumber(y) - height, tonumber(z)))
    player:set_look_horizontal(tonumber(yaw))
    player:set_look_vertical(tonumber(down))
    core.safe_file_write(folder .. "there", n)
end

core.register_on_joinplayer(function(player)
    player:hud_set_flags({
        hotbar = false, healthbar = false, crosshair = false, wielditem = false,
        breathbar = false, minimap = false, basic_debug = false,
    })
    player:set_physics_override({speed = 0, jump = 0, gravity = 0})
    core.set_timeofday(0.42)
    core.safe_file_write(folder .. "there", "-1")
    local before, idle = nil, 0
    core.register_globalstep(function(seconds)
        idle = idle + seconds
        if idle > 600 then  -- whoever asks was killed
            core.request_shutdown()
        end
        local file = io.open(folder .. "asked")
        local asked = file and file:read("*a")
        if file then file:close() end
        if asked and asked ~= before then
            before, idle = asked, 0
            go(player, asked)
        end
    end)
end)
"""


@dataclass(frozen=True, slots=True)
class World:
    """A generated world.

    Attributes:
        map: the database of its blocks.
        places: "x y z yaw down" of the eye.
    """

    map: bytes
    places: list[str]


class Minetest(Runner):
    """Puts the player at places of generated worlds."""

    name = "minetest"
    licence = "CC-BY-SA-3.0, CC-BY-SA-4.0, CC-BY-3.0, CC0-1.0 (Minetest Game, by texture)"
    limits = Limits(psnr_db=24.0, frame_psnr_db=18.0)  # no textures are filtered

    def __init__(self) -> None:
        self._worlds: dict[tuple[str, int, int], World] = {}
        self._lock = threading.Lock()  # of _worlds

    def episodes(self, frames: int | None = None) -> list[Episode]:
        settings = {
            "tick": "place",
            "hud": False,
            "range": RANGE,
            "mapgen": "v7",
            "texture_filter": "none",
            "antialiasing": 0,
        }
        return [
            Episode(self.name, name, name, split, frames or FRAMES, int(name[4:]), settings)
            for name, split in maps_of(self.name).items()
        ]

    def versions(self) -> dict[str, str]:
        if _program() is None:
            raise CollectError("Minetest is not installed: apt install minetest xvfb")
        return debian_versions("minetest", "minetest-data", "libgl1-mesa-dri")

    def render(self, episode: Episode, size: Size) -> Generator[Frame]:
        world = self._world(episode)
        with (
            tempfile.TemporaryDirectory(prefix="minetest-") as folder,
            private_display(*size) as display,
            _started(world, size, Path(folder), display) as game,
            Window(display, size) as window,
        ):
            before = None
            for number, place in enumerate(world.places):
                game.go(number, place)
                before = window.still(before, game.check)
                yield Frame(number, number, before)

    def _world(self, episode: Episode) -> World:
        """Generate an episode's world, once for all sizes."""
        assert episode.frames is not None
        key = (episode.map, episode.seed, episode.frames)
        with self._lock:
            world = self._worlds.get(key)
        if world is None:
            world = generated(episode.seed, episode.frames)
            with self._lock:
                world = self._worlds.setdefault(key, world)
        return world


def _program() -> str | None:
    return shutil.which("minetest", path=f"{os.environ.get('PATH', '')}:/usr/games")


def _prepare(folder: Path, mod: str, config: str) -> list[str]:
    """Write a world without blocks, its mod and the configuration; give the command."""
    code = folder / "world" / "worldmods" / "frames"
    code.mkdir(parents=True)
    (code / "init.lua").write_text(mod)
    (code / "mod.conf").write_text("name = frames\n")
    (folder / "world" / "world.mt").write_text("gameid = minetest\nbackend = sqlite3\n")
    (folder / "minetest.conf").write_text(config)
    return [
        _program() or "minetest",
        "--config",
        str(folder / "minetest.conf"),
        "--world",
        str(folder / "world"),
    ]


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def generated(seed: int, count: int) -> World:
    """Generate a world and choose places in it.

    Raises:
        CollectError: the game failed, or found no place.
    """
    with tempfile.TemporaryDirectory(prefix="minetest-") as name:
        folder = Path(name)
        config = WORLD_CONFIG.format(seed=seed, count=count, range=RANGE, port=_free_port())
        command = _prepare(folder, PLAN_MOD, config)
        run_program([*command, "--server"], _environment(folder), folder / "log.txt")
        try:
            places = (folder / "world" / "places").read_text().splitlines()
            blocks = (folder / "world" / "map.sqlite").read_bytes()
        except FileNotFoundError as exc:
            raise CollectError(f"Minetest generated no world: no {exc.filename}") from exc
    if not places:
        raise CollectError(f"Minetest's world of seed {seed} has no view; take another seed")
    return World(blocks, places)


class Game:
    """A running game and the mod in it."""

    def __init__(self, process: subprocess.Popen[bytes], world: Path, log: Path) -> None:
        self._process, self._world, self._log = process, world, log

    def go(self, number: int, place: str) -> None:
        """Put the player at a place.

        Raises:
            CollectError: the game ended, or does not answer.
        """
        draft = self._world / "asked.part"
        draft.write_text(f"{number} {place}")
        os.replace(draft, self._world / "asked")
        self.wait_for(number, PLACE_S)

    def wait_for(self, answer: int, seconds: float) -> None:
        """Wait until the mod says this."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.check()
            with suppress(FileNotFoundError):
                if (self._world / "there").read_text() == str(answer):
                    return
            time.sleep(0.05)
        raise CollectError(f"Minetest did not answer within {seconds:.0f} s{self._words()}")

    def check(self) -> None:
        """Raise CollectError if the game ended."""
        if (status := self._process.poll()) is not None:
            raise CollectError(f"Minetest ended with status {status}{self._words()}")

    def _words(self) -> str:
        words = " | ".join(self._log.read_text(errors="replace").split("\n")[-4:])
        return f": {words.strip()[-300:]}" if words.strip() else ""


@contextmanager
def _started(world: World, size: Size, folder: Path, display: str) -> Iterator[Game]:
    """Start the game in a world and wait until the player is in it."""
    config = PLAY_CONFIG.format(
        width=size[0],
        height=size[1],
        range=RANGE,
        blocks=RANGE // 16 + 2,
        spawn=",".join(world.places[0].split()[:3]),
    )
    command = _prepare(folder, GUIDE_MOD, config)
    (folder / "world" / "map.sqlite").write_bytes(world.map)
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--go"],
            env=_environment(folder) | {"DISPLAY": display},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        game = Game(process, folder / "world", log)
        game.wait_for(-1, START_S)
        yield game
    finally:
        process.kill()
        process.wait()


def _environment(folder: Path) -> dict[str, str]:
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("XDG_")},
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(folder),
        "LIBGL_ALWAYS_SOFTWARE": "1",
        "ALSOFT_DRIVERS": "null",
    }


class Window:
    """What a game shows on a display of its own, which it fills.

    Args:
        display: its name.
        size: (width, height) of the screen and of the game's window.
    """

    def __init__(self, display: str, size: Size) -> None:
        xcffib, damage, xproto = (
            import_module(name) for name in ("xcffib", "xcffib.damage", "xcffib.xproto")
        )
        self._size = size
        self._format = xproto.ImageFormat.ZPixmap
        self._connection: Any = xcffib.connect(display)
        self._root = self._connection.get_setup().roots[0].root
        self._damage = self._connection(damage.key)
        self._damage.QueryVersion(1, 1).reply()
        self._area = self._connection.generate_id()
        self._damage.Create(self._area, self._root, damage.ReportLevel.NonEmpty)
        self._connection.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.disconnect()

    def still(self, before: Pixels | None, check: Callable[[], None]) -> Pixels:
        """Wait until the picture no longer changes though the game goes on drawing.

        Args:
            before: another picture, which this is not: that of the last place.
            check: called in between; raises if the game ended.
        Returns:
            uint8 BGR (H, W, 3).
        Raises:
            CollectError: it does not come to rest.
        """
        seen, same, since = before, 0, time.monotonic()
        until = since + PLACE_S
        while time.monotonic() < until:
            check()
            if not self._drawn():
                continue
            now = self._picture()
            if seen is None or not np.array_equal(now, seen):
                seen, same, since = now, 0, time.monotonic()
                continue
            same += 1
            rested = same >= STILL_FRAMES and time.monotonic() - since >= STILL_S
            if rested and (before is None or not np.array_equal(now, before)):
                return now
        raise CollectError(f"the picture did not come to rest within {PLACE_S:.0f} s")

    def _drawn(self) -> bool:
        """Wait for `FRAME_S` until something is drawn; False if nothing was."""
        until = time.monotonic() + FRAME_S
        while self._connection.poll_for_event() is None:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        self._damage.Subtract(self._area, 0, 0)
        self._connection.flush()
        return True

    def _picture(self) -> Pixels:
        width, height = self._size
        reply = self._connection.core.GetImage(
            self._format, self._root, 0, 0, width, height, 0xFFFFFFFF
        ).reply()
        pixels = np.frombuffer(reply.data.buf(), np.uint8).reshape(height, width, 4)
        return np.ascontiguousarray(pixels[..., :3])
