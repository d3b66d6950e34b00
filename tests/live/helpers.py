"""What the live tests share: a run of the real program, the screen, and where windows are."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import mss
import numpy as np
import xcffib
import xcffib.shape
import xcffib.xproto

from overlay.frame import Region
from overlay.trace import Outcome
from overlay.trace.csvfile import read_trace
from overlay.trace.table import TraceTable
from tests.games import MINETEST_CONFIG, RunningGame, dies_with_parent, require, stop_group
from tests.live.spied import MARKER, MARKER_PX, ROOM
from tests.overlay.present.player import Player, eventually

ROOT = Path(__file__).resolve().parents[2]
#: The machine may be busy with other things, so nothing here is about speed.
PATIENCE_S = 30.0
GAME_SIZE = (480, 270)
_KEYS = {"f1": 0xFFBE, "enter": 0xFF0D}


def wait_for(what: str, true: Callable[[], Any], timeout_s: float = PATIENCE_S) -> None:
    """Wait until something is true; fail with `what` if it never is."""
    assert eventually(true, timeout_s, 0.02), f"never happened in {timeout_s:g} s: {what}"


# --- the display ------------------------------------------------------------------------------


class Screen(Player):
    """A display: the player's keys and pointer, what is to be seen, and where windows are."""

    def __init__(self, display: str) -> None:
        super().__init__(display)
        self.display = display
        self._camera = mss.MSS(display=display)

    def close(self) -> None:
        self._camera.close()
        super().close()

    def __enter__(self) -> Screen:
        return self

    @property
    def managed(self) -> bool:
        """Whether a window manager runs."""
        name = "_NET_SUPPORTING_WM_CHECK"
        atom = self.core.InternAtom(False, len(name), name).reply().atom
        return len(self.core.GetProperty(False, self.root, atom, 0, 0, 1).reply().value) > 0

    def code(self, name: str) -> int:
        return self._codes[_KEYS[name]] if name in _KEYS else super().code(name)

    def title(self, window: int) -> str:
        """Give a window's title."""
        kind = xcffib.xproto.Atom.WM_NAME
        value = self.core.GetProperty(False, window, kind, 0, 0, 64).reply().value
        return bytes(value.buf()).decode(errors="replace")

    def windows(self) -> Iterator[int]:
        """List the windows on the root and those in them, which a manager's frames hold."""
        for window in self.core.QueryTree(self.root).reply().children:
            yield window
            with contextlib.suppress(xcffib.XcffibException):
                yield from self.core.QueryTree(window).reply().children

    def play(self, window: int) -> None:
        """Give a window the keyboard, and wait until it has it."""
        (self.activate if self.managed else self.focus)(window)
        wait_for("the window gets the focus", lambda: window in self.ancestors(self.focused))

    def picture(self, region: Region) -> Any:
        """Photograph a part of the screen as it is to be seen: uint8 BGR, (H, W, 3)."""
        box = dict(left=region.left, top=region.top, width=region.width, height=region.height)
        return np.asarray(self._camera.grab(box))[..., :3].copy()

    def region(self, window: int) -> Region:
        """Where a window's inside is on the desktop."""
        shape = self.core.GetGeometry(window).reply()
        spot = self.core.TranslateCoordinates(window, self.root, 0, 0).reply()
        return Region(spot.dst_x, spot.dst_y, shape.width, shape.height)

    def move_window(self, window: int, left: int, top: int) -> Region:
        """Move a window as near to a place as it goes; give where it came to rest."""
        mask = xcffib.xproto.ConfigWindow.X | xcffib.xproto.ConfigWindow.Y
        self.core.ConfigureWindow(window, mask, [left, top])
        self.core.GetInputFocus().reply()
        near = 40  # a window manager's frame

        def there() -> bool:
            place = self.region(window)
            return 0 <= place.left - left < near and 0 <= place.top - top < near

        wait_for(f"the window moves to {left}, {top}", there)
        return self.region(window)

    def ancestors(self, window: int) -> list[int]:
        """Give a window and those around it, up to below the root."""
        found = []
        while window not in (0, 1, self.root):
            found.append(window)
            window = self.core.QueryTree(window).reply().parent
        return found

    def viewable(self, window: int) -> bool:
        """Whether a window is mapped."""
        state = self.core.GetWindowAttributes(window).reply().map_state
        return bool(state == xcffib.xproto.MapState.Viewable)

    def overlay_window(self) -> int | None:
        """Find the overlay's window by its class; None if there is none."""
        found = []
        for window in self.core.QueryTree(self.root).reply().children:
            with contextlib.suppress(xcffib.XcffibException):
                kind = xcffib.xproto.Atom.WM_CLASS
                value = self.core.GetProperty(False, window, kind, 0, 0, 64).reply().value
                if b"sr-overlay" in bytes(value.buf()):
                    found.append(int(window))
        assert len(found) < 2, f"there are {len(found)} overlays"
        return found[0] if found else None

    def takes_input(self, window: int) -> bool:
        """Whether the pointer can hit any part of a window."""
        shape: Any = self.connection(xcffib.shape.key)
        kind = xcffib.shape.SK.Input
        return len(shape.GetRectangles(window, kind).reply().rectangles) > 0


# --- the program ------------------------------------------------------------------------------


class Note(NamedTuple):
    """A captured frame: its number from 1, when it came, and what is in it.

    Attributes:
        at_ms: by `time.monotonic`.
        checksum: of its colours.
        marked: how many pixels have the marker's colour.
    """

    number: int
    at_ms: int
    checksum: int
    marked: int


class Captured:
    """What the program captured so far."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def notes(self) -> list[Note]:
        """List all frames, the first first."""
        try:
            text = (self._folder / "frames.log").read_text()
        except FileNotFoundError:
            return []
        lines = text[: text.rfind("\n") + 1].splitlines()
        return [Note(*map(int, line.split())) for line in lines]

    def newest(self) -> Any:
        """Give the pixels of the newest frame: uint8 BGR, (H, W, 3)."""
        head = np.memmap(self._folder / "newest.head", np.int64, "r", shape=(3,))
        pixels = np.memmap(self._folder / "newest.raw", np.uint8, "r", shape=(ROOM,))
        while True:
            before, width, height = head.tolist()
            copy = pixels[: width * height * 4].reshape(height, width, 4)[..., :3].copy()
            if before % 2 == 0 and before == int(head[0]):
                return copy

    def checksums_since(self, number: int) -> set[int]:
        """Give the different pictures among the frames after the `number`-th."""
        return {note.checksum for note in self.notes()[number:]}

    def wait_changing(self, distinct: int = 10) -> None:
        """Wait until so many different pictures came, counted from now."""
        start = len(self.notes())
        wait_for(
            f"{distinct} different frames", lambda: len(self.checksums_since(start)) >= distinct
        )

    def wait_still(self, pictures: int = 2) -> set[int]:
        """Wait until a second goes by with so few different pictures; give them.

        Two, because the skull beside Doom's menus blinks.
        """
        start = time.monotonic_ns() // 1_000_000
        found: set[int] = set()

        def still() -> bool:
            nonlocal found
            notes = self.notes()
            begin = max(start, notes[-1].at_ms - 1000)
            last = [note for note in notes if note.at_ms >= begin]
            found = {note.checksum for note in last}
            return (
                len(last) >= 8 and last[-1].at_ms - last[0].at_ms > 800 and len(found) <= pictures
            )

        wait_for("a still picture", still)
        return found


class Overlay:
    """The program over a game's window, started as a player starts it.

    Args:
        screen: where it runs.
        window: the game's.
        folder: for its files; everything that it keeps for a user goes there too.
        options: of `overlay run`.
        marker: paint the marker into its corner.
    """

    def __init__(
        self, screen: Screen, window: int, folder: Path, *options: str, marker: bool = False
    ) -> None:
        self.screen = screen
        self.game = window
        self.captured = Captured(folder)
        self.screenshots = folder / "screenshots"
        self._trace = folder / "trace.csv"
        self._errors = (folder / "errors.txt").open("w+b")
        folder.chmod(0o700)
        env = {key: value for key, value in os.environ.items() if key != "MARKER"}
        env |= {"DISPLAY": screen.display, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
        for name in ("RUNTIME_DIR", "STATE_HOME", "CACHE_HOME", "CONFIG_HOME", "DATA_HOME"):
            env[f"XDG_{name}"] = str(folder)
        if marker:
            env["MARKER"] = "1"
        command = [sys.executable, "-X", "faulthandler"]
        command += [str(Path(__file__).with_name("spied.py")), str(folder), "run"]
        command += ["--id", str(window), "--scale", "2", "--json", "--trace", str(self._trace)]
        command += ["--screenshots", str(self.screenshots), *options]
        self.process = subprocess.Popen(
            dies_with_parent(command),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        try:
            wait_for("the overlay shows its first frame", self._is_up)
        except AssertionError as exc:
            exc.add_note(self._state())
            self.kill()
            raise
        except BaseException:
            self.kill()
            raise
        window_id = screen.overlay_window()
        assert window_id is not None
        self.window_id = window_id
        self.region = screen.region(window_id)

    def _is_up(self) -> bool:
        assert self.process.poll() is None, f"the overlay ended: {self.errors}"
        window = self.screen.overlay_window()
        if window is None or not self.screen.viewable(window) or not self.captured.notes():
            return False
        return b",presented," in self._trace.read_bytes()

    def _state(self) -> str:
        window = self.screen.overlay_window()
        shown = window is not None and self.screen.viewable(window)
        code = self.process.poll()
        if code is None:  # where it hangs: faulthandler tells on stderr
            self.process.send_signal(signal.SIGABRT)
            self.process.wait()
        return (
            f"exit status {code}, window {window} (viewable: {shown}), "
            f"captured {self.captured.notes()[-3:]}, said: {self.errors}"
        )

    @property
    def errors(self) -> str:
        """What it said on stderr."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def picture(self) -> Any:
        """Photograph the screen where the overlay is: uint8 BGR, (H, W, 3)."""
        return self.screen.picture(self.region)

    def end(self) -> dict[str, Any]:
        """Press the quit hotkey; give what `--json` printed. It must end well."""
        self.screen.tap("ctrl", "alt", "q")
        return self.ended()

    def ended(self) -> dict[str, Any]:
        """Wait for its end, which must be a good one; give what `--json` printed."""
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, self.errors
        result: dict[str, Any] = json.loads(out)
        return result

    def trace(self) -> TraceTable:
        """Read the trace."""
        return read_trace(self._trace)

    def kill(self) -> None:
        """End it as a crash would; idempotent."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        if not self._errors.closed:
            self._errors.close()

    def __enter__(self) -> Overlay:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


# --- a game that stands still -----------------------------------------------------------------

# Small enough a text for the whole pause menu to be seen; a day without end.
_STILL = """
gui_scaling = 0.5
hud_scaling = 0.5
time_speed = 0
"""


@contextlib.contextmanager
def still_minetest(screen: Screen, home: Path) -> Iterator[RunningGame]:
    """Run Minetest's test world, obeying the player (unlike `tests.games.minetest`)."""
    program = require("minetest", "minetest")
    world = home / "world"
    world.mkdir()
    (world / "world.mt").write_text("gameid = devtest\n")
    config = home / "minetest.conf"
    text = MINETEST_CONFIG.format(width=GAME_SIZE[0], height=GAME_SIZE[1])
    config.write_text(text.replace("random_input = true", "random_input = false") + _STILL)
    env = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
    env |= {"HOME": str(home), "DISPLAY": screen.display, "ALSOFT_DRIVERS": "null"}
    with (home / "game.log").open("wb") as log:
        process = subprocess.Popen(
            dies_with_parent([program, "--config", str(config), "--world", str(world), "--go"]),
            env=env,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    found: list[int] = []

    def plays() -> bool:
        assert process.poll() is None, (home / "game.log").read_text(errors="replace")[-800:]
        for window in screen.windows():
            with contextlib.suppress(xcffib.XcffibException):
                if "[Singleplayer]" in screen.title(window) and screen.viewable(window):
                    found.append(window)
                    return True
        return False

    try:
        wait_for("Minetest shows its world", plays, 90)
        yield RunningGame(process, found[0], screen.title(found[0]), GAME_SIZE)
    finally:
        stop_group(process)


# --- what holds for every run -----------------------------------------------------------------


def assert_covered(overlay: Overlay) -> None:
    """Every pixel of the game lies under the overlay, which takes neither focus nor clicks."""
    screen, window = overlay.screen, overlay.window_id
    game, shown = screen.region(overlay.game), screen.region(window)
    assert shown.left <= game.left
    assert shown.top <= game.top
    assert shown.left + shown.width >= game.left + game.width
    assert shown.top + shown.height >= game.top + game.height
    order = list(screen.core.QueryTree(screen.root).reply().children)  # the lowest first
    assert order.index(window) > order.index(screen.ancestors(overlay.game)[-1])
    attributes = screen.core.GetWindowAttributes(window).reply()
    assert attributes.override_redirect
    assert attributes.map_state == xcffib.xproto.MapState.Viewable
    assert not screen.takes_input(window)
    assert window not in screen.ancestors(screen.focused)


def assert_marker_on_screen(overlay: Overlay) -> Region:
    """The marker is to be seen where it lies over the game; give this part of the screen."""
    game, shown = overlay.screen.region(overlay.game), overlay.region
    left, top = max(game.left, shown.left), max(game.top, shown.top)
    common = Region(left, top, shown.left + MARKER_PX - left, shown.top + MARKER_PX - top)
    assert min(common.size) >= 10, f"the overlay's corner does not lie over the game: {common}"
    assert (overlay.screen.picture(common) == MARKER).all()
    return common


def assert_trace_adds_up(overlay: Overlay, result: dict[str, Any]) -> None:
    """One row for each captured frame, and the same counts everywhere."""
    trace = overlay.trace()
    assert trace.damage is None
    counts = result["frames"]
    assert counts["captured"] == len(trace) == len(set(trace.ids.tolist()))
    assert counts["pending"] == 0
    for outcome in (Outcome.PRESENTED, Outcome.DUPLICATE, Outcome.SUPERSEDED, Outcome.FAILED):
        assert counts[outcome.name.lower()] == trace.count(outcome)
    parts = ("presented", "duplicate", "superseded", "failed")
    assert sum(counts[name] for name in parts) == counts["captured"]
    assert counts["failed"] == 0
    # The frame that came when the run was told to end may be left out.
    assert 0 <= len(overlay.captured.notes()) - counts["captured"] <= 1


def assert_shows_game(overlay: Overlay, shader: int = cv2.INTER_LINEAR) -> None:
    """The screen comes to show what was captured, twice as large, except for the marker.

    For a game that stands still (or blinks); cursor and HUD must be off.
    """

    def same() -> bool:
        shown = overlay.picture()
        large = cv2.resize(overlay.captured.newest(), shown.shape[1::-1], interpolation=shader)
        apart = difference(shown, large) > 6
        apart[:MARKER_PX, :MARKER_PX] = False
        return bool(apart.mean() < 0.001)

    wait_for("the screen shows the captured picture", same)


def difference(a: Any, b: Any) -> Any:
    """Give how far two pictures are apart: float, (H, W), levels of 255, the worst channel."""
    return np.abs(a.astype(np.int16) - b.astype(np.int16)).max(axis=-1)


def box_of(mask: Any) -> Region | None:
    """Give the smallest region around the set pixels, None if there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return None
    left, top = int(columns[0]), int(rows[0])
    return Region(left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)


@contextlib.contextmanager
def key_held(screen: Screen, *names: str) -> Iterator[None]:
    """Keep keys down."""
    screen.down(*names)
    try:
        yield
    finally:
        screen.up(*reversed(names))
