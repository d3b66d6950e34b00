"""Record OpenArena episodes, and render each at several sizes frame by frame.

An episode is a demo: bots play, a spectator follows them. Played back with a fixed time step
and fixed random numbers (`detrand.c`) it shows the same frames at any window size, so the small
render and the large one are a true LR/HR pair: the LR was rasterised, not downscaled.

    python -m training.collect.openarena record oa_dm1 --gametype 0
    python -m training.collect.openarena render training/demos/*.dm_71 --out data/openarena

Debian packages: openarena, openarena-oacmp1, xvfb, gcc. The frames are under OpenArena's own
licence (GPL-2 or later) and are not part of this repository; only the demos are.
"""

# ruff: noqa: T201 - a command-line program

from __future__ import annotations

import argparse
import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from training.collect.display import private_display

HERE = Path(__file__).parent
DEMOS = HERE.parent / "demos"
ENGINE = "/usr/lib/ioquake3/ioquake3"
SIZES = ((480, 270), (640, 360), (960, 540), (1920, 1080))  # (width, height)
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
set activeAction "video frames"
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


def run_engine(
    home: Path, script: str, size: tuple[int, int], display: str, *, preload: Path | None = None
) -> None:
    """Run the game on `script` until it quits by itself.

    Args:
        home: private home folder of the game; `home/baseoa/run.cfg` is written.
        script: console commands.
        size: window (width, height) in pixels.
        display: X display.
        preload: library to preload.
    Raises:
        RuntimeError: the game did not end within ten minutes or failed.
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
    command = [ENGINE]
    for name, value in cvars.items():
        command += ["+set", name, str(value)]
    environment = dict(os.environ, DISPLAY=display, SDL_VIDEODRIVER="x11")
    if preload is not None:
        environment["LD_PRELOAD"] = str(preload)
    with open(home / "log.txt", "w") as log:
        done = subprocess.run(
            [*command, "+exec", "run.cfg"], env=environment, stdout=log, stderr=log, timeout=600
        )
    if done.returncode != 0:
        raise RuntimeError(f"ioquake3 ended with {done.returncode}, see {home / 'log.txt'}")


def frames_of(avi: Path, size: tuple[int, int]) -> Iterator[np.ndarray]:
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


def build_preload(folder: Path) -> Path:
    """Compile `detrand.c` into `folder`."""
    library = folder / "detrand.so"
    source = str(HERE / "detrand.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def render(demo: Path, out: Path, fps: float, sizes: Sequence[tuple[int, int]] = SIZES) -> int:
    """Render one demo at every size.

    Args:
        demo: `MAP.dm_71`.
        out: frames go to `out/MAP/<height>/<number>.png`, BGR as cv2 writes it.
        fps: frames a second of game time.
        sizes: window sizes (width, height).
    Returns:
        Frames that exist at every size; surplus ones are removed.
    """
    counts = []
    with tempfile.TemporaryDirectory() as folder, private_display() as display:
        preload = build_preload(Path(folder))
        for size in sizes:
            home = new_home(Path(folder) / f"home{size[1]}")
            shutil.copyfile(demo, home / "baseoa" / "demos" / demo.name)
            script = PLAY_DEMO.format(fps=fps, demo=demo.stem)
            run_engine(home, script, size, display, preload=preload)
            target = out / demo.stem / str(size[1])
            target.mkdir(parents=True, exist_ok=True)
            count = 0
            for avi in sorted((home / "baseoa" / "videos").glob("*.avi")):
                for frame in frames_of(avi, size):
                    path = str(target / f"{count:04d}.png")
                    cv2.imwrite(path, frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])
                    count += 1
            shutil.rmtree(home)
            counts.append(count)
    for size in sizes:
        for surplus in sorted((out / demo.stem / str(size[1])).glob("*.png"))[min(counts) :]:
            surplus.unlink()
    return min(counts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.collect.openarena")
    commands = parser.add_subparsers(dest="command", required=True)
    rec = commands.add_parser("record", help="bots play a map; the demo is the episode")
    rec.add_argument("maps", nargs="+")
    rec.add_argument("--gametype", type=int, default=0, help="0 free for all, 4 capture the flag")
    rec.add_argument("--frames", type=int, default=2400, help="at 40 a second")
    rec.add_argument("--out", type=Path, default=DEMOS)
    ren = commands.add_parser("render", help="draw demos at every size")
    ren.add_argument("demos", nargs="+", type=Path)
    ren.add_argument("--fps", type=float, default=1.0, help="frames a second of game time")
    ren.add_argument("--out", type=Path, default=Path("data/openarena"))
    options = parser.parse_args(arguments)
    if options.command == "record":
        for map_name in options.maps:
            print(record(map_name, options.gametype, options.frames, options.out), flush=True)
    else:
        for demo in options.demos:
            print(demo.stem, render(demo, options.out, options.fps), "frames", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
