"""SuperTuxKart: laps driven by the computer on its race tracks.

The game has no recordings to play back, but it can be made deterministic: `gamehook.c` gives it a
clock that moves by one step a frame and one sequence of random numbers, and reads the frames it
draws before they are shown. The HUD is left out, as its layout depends on the size.

Debian packages: supertuxkart, xvfb, gcc. Dynamic lights and image-based lighting are off: they are
too slow without a GPU. Code and most data are under the GPL-3+, single tracks and textures under
CC-BY-SA, CC-BY and CC0, see /usr/share/doc/supertuxkart-data/copyright; the frames are not part of
this repository.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np

from training.collect.align import Limits
from training.collect.packaged import build_library, debian_versions, private_display, run_program
from training.collect.runner import CollectError, Episode, Frame, Pixels, Runner, Size
from training.collect.splits import maps_of

HERE = Path(__file__).parent
FRAMES = 16
STEP_NS = 33_333_333  # of game time a frame
START, EVERY = 180, 40  # frames: the start of the race is over; 1.3 s apart
#: Frames in which the game loads and shows its first pictures are always drawn.
SHOWN_FIRST = 10
#: `RaceGUI::renderGlobal(float)` and `RaceGUI::renderPlayerView(Camera const*)`.
HUD = ("_ZN7RaceGUI12renderGlobalEf", "_ZN7RaceGUI16renderPlayerViewEPK6Cameraf")
OPTIONS = (
    "--windowed",
    "--profile-laps=9",  # the computer drives
    "--numkarts=5",
    "--log=1",
    "--no-sound",
    "--disable-texture-compression",
    "--enable-hd-textures",
    "--anisotropic=0",  # Mesa 22.3's software renderer loops for ever on some triangles
    "--disable-ibl",
    "--disable-dynamic-lights",
)


class SuperTuxKart(Runner):
    """Drives each track once."""

    name = "supertuxkart"
    licence = "GPL-3.0-or-later, CC-BY-SA, CC-BY, CC0 (SuperTuxKart, by track and texture)"
    limits = Limits(psnr_db=24.0, frame_psnr_db=18.0)  # leaves are cut out without filtering

    def episodes(self, frames: int | None = None) -> list[Episode]:
        settings = {
            "tick": "1/30 s",
            "start": START,
            "every": EVERY,
            "hud": False,
            "options": list(OPTIONS),
        }
        return [
            Episode(self.name, name.replace("_", "-"), name, split, frames or FRAMES, 3, settings)
            for name, split in maps_of(self.name).items()
        ]

    def versions(self) -> dict[str, str]:
        if _program() is None:
            raise CollectError("SuperTuxKart is not installed: apt install supertuxkart xvfb gcc")
        return debian_versions("supertuxkart", "supertuxkart-data", "libgl1-mesa-dri")

    def render(self, episode: Episode, size: Size) -> Generator[Frame]:
        with tempfile.TemporaryDirectory(prefix="supertuxkart-") as folder:
            frames = Path(folder) / "frames.bgr"
            hook = build_library(HERE / "gamehook.c", Path(folder))
            environment = _environment(episode, Path(folder), hook, frames)
            command = [_program() or "supertuxkart", *OPTIONS]
            command += [f"--track={episode.map}", f"--seed={episode.seed}"]
            command += [f"--screensize={size[0]}x{size[1]}"]
            with private_display(*size) as display:
                run_program(command, environment | {"DISPLAY": display}, Path(folder) / "log.txt")
            for number, pixels in enumerate(_frames(frames, size)):
                yield Frame(number, START + number * EVERY, pixels)


def _program() -> str | None:
    return shutil.which("supertuxkart", path=f"{os.environ.get('PATH', '')}:/usr/games")


def _environment(episode: Episode, folder: Path, hook: Path, frames: Path) -> dict[str, str]:
    """Give the game a home of its own, and the hook its orders."""
    return {
        **os.environ,
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "SDL_VIDEODRIVER": "x11",
        "SDL_AUDIODRIVER": "dummy",
        "ALSOFT_DRIVERS": "null",
        "LIBGL_ALWAYS_SOFTWARE": "1",
        "LD_PRELOAD": str(hook),
        "HOOK_OUT": str(frames),
        "HOOK_STEP_NS": str(STEP_NS),
        "HOOK_START": str(START),
        "HOOK_EVERY": str(EVERY),
        "HOOK_COUNT": str(episode.frames),
        "HOOK_SKIP": str(SHOWN_FIRST),
        "HOOK_MUTE": ",".join(HUD),
    }


def _frames(path: Path, size: Size) -> Iterator[Pixels]:
    """Read frames of BGR bytes, top row first, one after the other."""
    length = size[0] * size[1] * 3
    try:
        with path.open("rb") as file:
            while len(data := file.read(length)) == length:
                yield np.frombuffer(data, np.uint8).reshape(size[1], size[0], 3).copy()
    except FileNotFoundError:
        raise CollectError("SuperTuxKart ended before it drew a frame") from None
    if data:
        raise CollectError(f"SuperTuxKart did not draw at {size[0]}x{size[1]}")
