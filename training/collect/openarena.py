"""Record OpenArena episodes, and render each at several sizes frame by frame.

An episode is a demo: bots play, a spectator follows them. Played back with a fixed time step
and fixed random numbers (`detrand.c`) it shows the same frames at any window size, so the small
render and the large one are a true LR/HR pair: the LR was rasterised, not downscaled.

    python -m training.collect.openarena oa_dm1     records training/demos/oa_dm1.dm_71

A new map must be given a split in `training/collect/splits.py` too. Debian packages: openarena,
openarena-oacmp1, xvfb, gcc. The frames are under OpenArena's own
licence (GPL-2 or later) and are not part of this repository; only the demos are.
"""

from __future__ import annotations

import argparse
import mmap
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from training.collect.packaged import build_library, debian_versions, private_display, run_program
from training.collect.runner import (
    CollectError,
    Episode,
    Frame,
    Pixels,
    Runner,
    Size,
    dense_of,
)
from training.collect.splits import split_of

HERE = Path(__file__).parent
DEMOS = HERE.parent / "demos"
ENGINE = "/usr/lib/ioquake3/ioquake3"
#: Of dense sequences: after a second, 24 frames at 20 a second.
DENSE_FPS, DENSE_START, DENSE_FRAMES = 20.0, 20, 24
BOTS = ("grism", "kyonshi", "sarge", "major", "gargoyle", "merman")

HOST_GAME = """
seta com_maxfps 40
set bot_enable 1
set bot_nochat 1
set bot_minplayers 0
set g_gametype {gametype}
set fraglimit 0
set timelimit 0
set capturelimit 0
set sv_maxclients 12
set g_doWarmup 0
set activeAction "exec follow.cfg"
map {map_name}
"""

PLAY_DEMO = """
seta com_maxfps 0
seta cg_draw2D 0
seta cg_drawFPS 0
seta cg_drawGun 1
seta cg_fov 90
seta con_notifytime -1
seta cl_aviFrameRate {fps}
seta cl_aviMotionJpeg 0
seta r_flares 0
seta r_lodbias -2
seta r_texturemode GL_LINEAR_MIPMAP_LINEAR
seta cg_shadows 1
set activeAction "exec video.cfg"
set nextdemo "quit"
demo {demo}
"""


def follow_script(name: str, frames: int, changes: int = 6) -> str:
    """Console script: add bots, spectate, record `frames` frames while changing player."""
    lines = [f"addbot {bot} 3" for bot in BOTS]
    lines += ["team spectator", "wait 400", "follownext", "wait 60", f"record {name}"]
    for _ in range(changes):
        lines += [f"wait {frames // changes}", "follownext"]
    return "\n".join([*lines, "stoprecord", "quit", ""])


def video_script(frames: int | None) -> str:
    """Console script: draw the demo into a video, `frames` of it at least, None = to its end."""
    if frames is None:
        return "video frames\n"
    return f"video frames\nwait {2 * frames + 10}\nquit\n"  # it waits twice a frame


def run_engine(
    home: Path, script: str, size: Size, display: str, *, preload: Path | None = None
) -> None:
    """Run the game on `script` until it quits by itself.

    Args:
        home: private home folder of the game; `home/baseoa/run.cfg` is written.
        script: console commands.
        size: window (width, height) in pixels.
        display: X display.
        preload: library to preload.
    Raises:
        CollectError: the game did not end within `TIMEOUT_S`, or failed.
    """
    (home / "baseoa" / "run.cfg").write_text(script)
    cvars = {
        "com_basegame": "baseoa",
        "fs_basepath": "/usr/lib/openarena",
        "fs_homepath": home,
        "com_legacyprotocol": 71,
        "com_protocol": 71,
        "cl_motd": 0,
        "s_initsound": 0,
        "cl_renderer": "opengl1",
        "r_fullscreen": 0,
        "r_mode": -1,
        "r_customwidth": size[0],
        "r_customheight": size[1],
        "in_nograb": 1,
        "com_introplayed": 1,
        "com_ansiColor": 0,
    }
    command: list[str] = [ENGINE]
    for name, value in cvars.items():
        command += ["+set", name, str(value)]
    environment = dict(os.environ, DISPLAY=display, SDL_VIDEODRIVER="x11")
    if preload is not None:
        environment["LD_PRELOAD"] = str(preload)
    run_program([*command, "+exec", "run.cfg"], environment, home / "log.txt")


def frames_of(avi: Path, size: Size) -> Iterator[Pixels]:
    """Give each raw frame of an ioquake3 AVI: uint8 BGR, (H, W, 3), top row first, a copy."""
    width, height = size
    length = width * height * 3
    with open(avi, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(b"movi") + 4
        while (at := data.find(b"00d", at)) >= 0 and at + 8 + length <= len(data):
            (chunk,) = struct.unpack("<I", data[at + 4 : at + 8])
            if data[at + 3 : at + 4] in (b"b", b"c") and chunk >= length:
                rows = np.frombuffer(data[at + 8 : at + 8 + length], np.uint8)
                yield rows.reshape(height, width, 3)[::-1]
                at += 8 + chunk
            else:
                at += 4


def new_home(folder: Path) -> Path:
    """Make a private game home under `folder`."""
    (folder / "baseoa" / "demos").mkdir(parents=True)
    return folder


def record(map_name: str, gametype: int, frames: int, out: Path) -> Path:
    """Record one episode in real time (40 frames a second) and return the demo file."""
    with tempfile.TemporaryDirectory() as folder, private_display(640, 480) as display:
        home = new_home(Path(folder) / "home")
        (home / "baseoa" / "follow.cfg").write_text(follow_script(map_name, frames))
        script = HOST_GAME.format(gametype=gametype, map_name=map_name)
        run_engine(home, script, (320, 180), display)
        (demo,) = (home / "baseoa" / "demos").glob("*.dm_*")
        target = out / f"{map_name}.dm_71"
        shutil.copyfile(demo, target)
    return target


class OpenArena(Runner):
    """Plays recorded demos back."""

    name = "openarena"
    licence = "GPL-2.0-or-later (OpenArena)"

    def __init__(self, demos: Path = DEMOS, fps: float = 2.0) -> None:
        self.demos, self.fps = demos, fps

    def episodes(self, frames: int | None = None) -> list[Episode]:
        return [
            Episode(
                self.name,
                demo.stem.replace("_", "-").lower(),
                demo.stem,
                split_of(self.name, demo.stem),
                frames,
                1,
                {"tick": "ms", "fps": self.fps, "hud": False, "lod_bias": -2, "antialiasing": 0},
            )
            for demo in sorted(self.demos.glob("*.dm_71"))
        ]

    def dense(self, frames: int | None = None) -> list[Episode]:
        how = {"fps": DENSE_FPS, "start": DENSE_START}
        return dense_of(self.episodes(), frames or DENSE_FRAMES, how)

    def versions(self) -> dict[str, str]:
        if not Path(ENGINE).exists():
            raise CollectError(
                f"OpenArena is not installed (no {ENGINE}): apt install openarena openarena-oacmp1 "
                "xvfb gcc"
            )
        return debian_versions("openarena", "openarena-oacmp1", "ioquake3", "libgl1-mesa-dri")

    def render(self, episode: Episode, size: Size) -> Generator[Frame]:
        demo = self.demos / f"{episode.map}.dm_71"
        with tempfile.TemporaryDirectory(prefix="openarena-") as folder:
            home = new_home(Path(folder) / "home")
            shutil.copyfile(demo, home / "baseoa" / "demos" / demo.name)
            fps, start = episode.settings["fps"], episode.settings.get("start", 0)
            end = None if episode.frames is None else start + episode.frames
            script = PLAY_DEMO.format(fps=fps, demo=demo.stem)
            (home / "baseoa" / "video.cfg").write_text(video_script(end))
            preload = build_library(HERE / "detrand.c", Path(folder))
            with private_display(*size) as display:
                run_engine(home, script, size, display, preload=preload)
            videos = sorted((home / "baseoa" / "videos").glob("*.avi"))
            pixels = (frame for video in videos for frame in frames_of(video, size))
            for number, frame in enumerate(islice(pixels, start, end)):
                yield Frame(number, round((start + number) * 1000 / fps), frame)


def main(arguments: Sequence[str] | None = None) -> int:
    """Record demos."""
    parser = argparse.ArgumentParser(prog="python -m training.collect.openarena")
    parser.add_argument("maps", nargs="+", help="bots play each; the demo is the episode")
    parser.add_argument(
        "--gametype", type=int, default=0, help="0 free for all, 4 capture the flag"
    )
    parser.add_argument("--frames", type=int, default=2400, help="at 40 a second")
    parser.add_argument("--out", type=Path, default=DEMOS)
    options = parser.parse_args(arguments)
    for map_name in options.maps:
        demo = record(map_name, options.gametype, options.frames, options.out)
        sys.stdout.write(f"{demo}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
