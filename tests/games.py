"""Games to test against: a small one that does as it is told, and two real ones.

`FakeGame` starts this file as a program of its own (X11 through xcffib, no OpenGL, no toolkit)
and drives it over its standard input. What it draws is a pure function of a number and a size,
`picture(number, size)`, so that a test can compare captured pixels exactly.

`crispy_doom` and `minetest` start the real games in a window, wait until the picture changes,
and kill the whole process group in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Colour = tuple[int, int, int]  # blue, green, red
Rectangle = tuple[int, int, int, int, Colour]  # left, top, width, height, colour

BITS = 16


# --- what the small game draws ----------------------------------------------------------------


def layout(number: int, size: tuple[int, int]) -> list[Rectangle]:
    """List the rectangles of a picture, later ones on top.

    A background whose colour depends on the number, a white frame of one pixel (so that a
    capture that is off by one is noticed), and the number in binary as 16 blocks.
    """
    width, height = size
    background = ((number * 37 + 40) % 200, (number * 91 + 20) % 200, (number * 13 + 90) % 200)
    white = (255, 255, 255)
    rectangles: list[Rectangle] = [
        (0, 0, width, height, white),
        (1, 1, width - 2, height - 2, background),
    ]
    edges = [(column + 1) * width // (BITS + 2) for column in range(BITS + 1)]
    for bit in range(BITS):
        colour = (250, 250, 250) if number >> bit & 1 else (5, 5, 5)
        left, right = edges[bit], edges[bit + 1]
        rectangles.append((left, height // 3, right - left, height // 3, colour))
    return rectangles


def picture(number: int, size: tuple[int, int]) -> Any:
    """Paint what the small game shows for `number`: uint8 BGR, (H, W, 3)."""
    import numpy as np

    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for left, top, width, height, colour in layout(number, size):
        pixels[top : top + height, left : left + width] = colour
    return pixels


def decode(pixels: Any) -> int:
    """Read the number back from BGRA or BGR pixels of the small game; -1 if it is none.

    Works on scaled pictures too.
    """
    height, width = pixels.shape[:2]
    number = 0
    for bit in range(BITS):
        value = int(pixels[height // 2, int((bit + 1.5) * width / (BITS + 2)), 1])
        if 60 < value < 195:
            return -1
        number |= (value >= 195) << bit
    return number


# --- starting programs ------------------------------------------------------------------------


def strict() -> bool:
    """Whether a missing program is a failure; elsewhere it skips the test."""
    return bool(os.environ.get("CI")) or os.environ.get("OVERLAY_TEST_STRICT") == "1"


def require(program: str, package: str) -> str:
    """Find a program, or skip the test (fail it under CI)."""
    import pytest

    path = os.environ.get("PATH", "") + ":/usr/games"
    found = shutil.which(program, path=path)
    if found is not None:
        return found
    reason = f"{program} is not installed (Debian package {package})"
    if strict():
        pytest.fail(reason)
    pytest.skip(reason)


def dies_with_parent(command: list[str]) -> list[str]:
    """Prefix a command so that the kernel kills it with us, also after SIGKILL."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", *command] if setpriv else command


def stop_group(process: subprocess.Popen[Any], timeout_s: float = 3.0) -> None:
    """End a process started in its own session, with all it started."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sig)
        try:
            process.wait(timeout_s)
            break
        except subprocess.TimeoutExpired:
            continue
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


# --- the small game, seen from the test -------------------------------------------------------


class FakeGame:
    """A window that does as it is told.

    Args:
        display: X display to open the window on; None = $DISPLAY.
        title, wm_class, pos, size: of the window.
        depth: 24, or 32 for a window with an alpha channel.
        override: override-redirect, which the window manager leaves alone.
        border: width of the X border, which few programs still have.
        number: what it shows first.
    """

    def __init__(
        self,
        display: str | None = None,
        *,
        title: str = "Fake Game",
        wm_class: str = "fakegame",
        pos: tuple[int, int] = (100, 80),
        size: tuple[int, int] = (480, 270),
        depth: int = 24,
        override: bool = False,
        border: int = 0,
        number: int = 0,
    ) -> None:
        self.title = title
        self.display = display if display is not None else os.environ["DISPLAY"]
        command = [sys.executable, str(Path(__file__).resolve())]
        command += ["--title", title, "--wm-class", wm_class, "--depth", str(depth)]
        command += ["--border", str(border)]
        command += ["--pos", *map(str, pos), "--size", *map(str, size), "--number", str(number)]
        if override:
            command.append("--override")
        self._process = subprocess.Popen(
            dies_with_parent(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "DISPLAY": self.display},
            start_new_session=True,
            text=True,
            encoding="utf-8",
        )
        self.events: list[dict[str, Any]] = []  # guarded by _changed
        self._taken = 0  # guarded by _changed
        self._changed = threading.Condition()
        self._ended = False  # guarded by _changed
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.window_id = int(self.wait_event("ready", timeout_s=15)["window"])
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """The process that owns the window (setpriv replaces itself by it)."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            for line in self._process.stdout:
                with self._changed:
                    self.events.append(json.loads(line))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_event(self, kind: str, timeout_s: float = 5.0, **fields: Any) -> dict[str, Any]:
        """Wait for the next event of a kind with these fields; earlier events are passed over."""

        def find() -> dict[str, Any] | None:
            for index in range(self._taken, len(self.events)):
                event = self.events[index]
                if event["event"] == kind and all(event.get(k) == v for k, v in fields.items()):
                    self._taken = index + 1
                    return event
            return None

        with self._changed:
            found: dict[str, Any] | None = None

            def ready() -> bool:
                nonlocal found
                found = find()
                return found is not None or self._ended

            self._changed.wait_for(ready, timeout_s)
            if found is None:
                raise AssertionError(
                    f"no {kind!r} event {fields or ''} from the game in {timeout_s} s; "
                    f"got {self.events[-10:]}"
                )
            return found

    def _say(self, command: str) -> dict[str, Any]:
        """Send a command and wait until the X server has done it."""
        assert self._process.stdin is not None
        with self._changed:
            before = len(self.events)
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        deadline = time.monotonic() + 10
        with self._changed:
            while True:
                for event in self.events[before:]:
                    if event["event"] == "done" and event["command"] == command:
                        return event
                if self._ended or not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    raise AssertionError(f"the game did not answer {command!r}")

    def draw(self, number: int) -> None:
        """Show `picture(number)`."""
        self._say(f"draw {number}")

    def repeat(self) -> None:
        """Draw the same picture once more: damage without a change."""
        self._say("repeat")

    def animate(self, hz: float) -> None:
        """Count the number up at a rate from now on; 0 stops."""
        self._say(f"animate {hz}")

    def move(self, left: int, top: int) -> None:
        self._say(f"move {left} {top}")

    def resize(self, width: int, height: int) -> None:
        self._say(f"resize {width} {height}")

    def minimise(self) -> None:
        """Iconify; without a window manager, unmap."""
        self._say("minimise")

    def restore(self) -> None:
        self._say("restore")

    def raise_(self) -> None:
        self._say("raise")

    def rename(self, title: str) -> None:
        self._say(f"title {title}")
        self.title = title

    def where(self) -> tuple[int, int, int, int]:
        """Ask where the client area is on the desktop: left, top, width, height."""
        place = self._say("where")
        return place["left"], place["top"], place["width"], place["height"]

    def quit(self) -> None:
        """Close the window and end the program; idempotent."""
        if self._process.poll() is None:
            with contextlib.suppress(OSError, AssertionError):
                self._say("quit")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        self.kill()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(5)
        self._reader.join(5)
        stop_group(self._process)

    def __enter__(self) -> FakeGame:
        return self

    def __exit__(self, *_: object) -> None:
        self.quit()


# --- real games -------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunningGame:
    """A real game whose window is up and whose picture changes."""

    process: subprocess.Popen[bytes]
    window_id: int
    title: str
    size: tuple[int, int]


CRISPY_CONFIG = """\
fullscreen 0
aspect_ratio_correct 1
integer_scaling 0
vga_porch_flash 0
force_software_renderer 1
crispy_hires 0
crispy_uncapped 1
crispy_fpslimit 60
crispy_vsync 0
crispy_widescreen 1
show_endoom 0
"""

MINETEST_CONFIG = """\
screen_w = {width}
screen_h = {height}
autosave_screensize = false
fullscreen = false
vsync = false
fps_max = 60
viewing_range = 40
enable_sound = false
enable_clouds = false
smooth_lighting = false
random_input = true
pause_on_lost_focus = false
"""


def _size_text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


@contextlib.contextmanager
def crispy_doom(
    display: str | None = None, size: tuple[int, int] = (480, 270), timeout_s: float = 45.0
) -> Iterator[RunningGame]:
    """Run Freedoom's attract loop in a window; it needs no input (about 4 s to start)."""
    program = require("crispy-doom", "crispy-doom")
    wad = Path("/usr/share/games/doom/freedoom1.wad")
    if not wad.exists():
        require(str(wad), "freedoom")
    with tempfile.TemporaryDirectory(prefix="overlay-doom-") as home:
        (Path(home) / "crispy.cfg").write_text(CRISPY_CONFIG)
        command = [program, "-iwad", str(wad), "-extraconfig", f"{home}/crispy.cfg"]
        command += ["-window", "-geometry", _size_text(size), "-nosound", "-nogui"]
        with _real_game(command, home, display, "Crispy Doom", size, timeout_s) as game:
            yield game


@contextlib.contextmanager
def minetest(
    display: str | None = None, size: tuple[int, int] = (480, 270), timeout_s: float = 90.0
) -> Iterator[RunningGame]:
    """Run Minetest's test world with random input (about 12 s to start)."""
    program = require("minetest", "minetest")
    with tempfile.TemporaryDirectory(prefix="overlay-minetest-") as home:
        world = Path(home) / "world"
        world.mkdir()
        (world / "world.mt").write_text("gameid = devtest\n")
        config = Path(home) / "minetest.conf"
        config.write_text(MINETEST_CONFIG.format(width=size[0], height=size[1]))
        command = [program, "--config", str(config), "--world", str(world)]
        command += ["--go", "--random-input"]
        with _real_game(command, home, display, r"Minetest .*\[", size, timeout_s) as game:
            yield game


@contextlib.contextmanager
def _real_game(
    command: list[str],
    home: str,
    display: str | None,
    title: str,
    size: tuple[int, int],
    timeout_s: float,
) -> Iterator[RunningGame]:
    name = display if display is not None else os.environ["DISPLAY"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
    env |= {
        "HOME": home,
        "DISPLAY": name,
        "PATH": env.get("PATH", "") + ":/usr/games",
        "SDL_AUDIODRIVER": "dummy",
        "SDL_VIDEODRIVER": "x11",
        "ALSOFT_DRIVERS": "null",
        "XDG_RUNTIME_DIR": home,
    }
    log = Path(home) / "game.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            dies_with_parent(command),
            env=env,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        window, text = _wait_until_changing(process, name, title, size, timeout_s, log)
        yield RunningGame(process, window, text, size)
    finally:
        stop_group(process)


def _wait_until_changing(
    process: subprocess.Popen[bytes],
    display: str,
    title: str,
    size: tuple[int, int],
    timeout_s: float,
    log: Path,
) -> tuple[int, str]:
    import re
    import zlib

    import xcffib
    import xcffib.xproto as xproto

    connection = xcffib.connect(display)
    seen: set[int] = set()
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            for window, text in _titles(connection):
                if not re.search(title, text):
                    continue
                with contextlib.suppress(xcffib.XcffibException):
                    shape = connection.core.GetGeometry(window).reply()
                    if (shape.width, shape.height) != size:
                        continue
                    image = connection.core.GetImage(
                        xproto.ImageFormat.ZPixmap, window, 0, 0, *size, 0xFFFFFFFF
                    ).reply()
                    seen.add(zlib.crc32(image.data.buf()))
                    if len(seen) >= 4:
                        return window, text
            time.sleep(0.1)
    finally:
        connection.disconnect()
    tail = log.read_text(errors="replace")[-800:]
    raise AssertionError(
        f"no changing window {title!r} of {_size_text(size)} in {timeout_s} s "
        f"(exit status {process.poll()}, {len(seen)} pictures seen); output ends:\n{tail}"
    )


def _titles(connection: Any) -> list[tuple[int, str]]:
    import xcffib

    def children(window: int, depth: int) -> Iterator[int]:
        try:
            below = connection.core.QueryTree(window).reply().children
        except xcffib.XcffibException:
            return
        for child in below:
            yield child
            if depth < 3:
                yield from children(child, depth + 1)

    atom = connection.core.InternAtom(False, 7, "WM_NAME").reply().atom
    found = []
    for window in children(connection.get_setup().roots[0].root, 0):
        with contextlib.suppress(xcffib.XcffibException):
            value = connection.core.GetProperty(False, window, atom, 0, 0, 256).reply().value
            if len(value):
                found.append((window, bytes(value.buf()).decode("utf-8", "replace")))
    return found


# --- the small game itself --------------------------------------------------------------------


class _Program:
    """The window of the small game; runs in its own process."""

    def __init__(self, options: argparse.Namespace) -> None:
        import xcffib
        import xcffib.xproto as xproto

        self.xcffib, self.xproto = xcffib, xproto
        self.connection = xcffib.connect()
        self.core = self.connection.core
        self.screen = self.connection.get_setup().roots[0]
        self.size = tuple(options.size)
        self.depth = options.depth
        self.number = options.number
        self.hz = 0.0
        self.window = self._create(options)
        self.gc = self.connection.generate_id()
        self.core.CreateGC(self.gc, self.window, xproto.GC.GraphicsExposures, [0])
        self.core.MapWindow(self.window)
        self._wait_until_mapped(options.override)
        if not options.override and not self._managed():
            # Nobody else gives it the keyboard, which a game that ended may have left to nobody.
            revert = xproto.InputFocus.PointerRoot
            self.core.SetInputFocus(revert, self.window, xproto.Time.CurrentTime)
        self.render()
        self.sync()
        self.report("ready", window=self.window)

    def _wait_until_mapped(self, override: bool) -> None:
        """Wait until the window stays where it is; a window manager frames it first."""
        self.connection.flush()
        while not isinstance(self.connection.wait_for_event(), self.xproto.MapNotifyEvent):
            pass
        state = self.atom("WM_STATE")
        for _ in range(200):
            reply = self.core.GetProperty(False, self.window, state, 0, 0, 2).reply()
            if override or not self._managed() or len(reply.value):
                return
            time.sleep(0.01)

    def _create(self, options: argparse.Namespace) -> int:
        xproto = self.xproto
        visual, colormap = self.screen.root_visual, self.screen.default_colormap
        if options.depth != self.screen.root_depth:
            for depth in self.screen.allowed_depths:
                if depth.depth == options.depth:
                    visual = next(v.visual_id for v in depth.visuals if v._class == 4)
            colormap = self.connection.generate_id()
            self.core.CreateColormap(0, colormap, self.screen.root, visual)
        window = self.connection.generate_id()
        events = xproto.EventMask
        mask = events.KeyPress | events.KeyRelease | events.ButtonPress | events.ButtonRelease
        mask |= events.PointerMotion | events.Exposure | events.StructureNotify
        self.core.CreateWindow(
            options.depth,
            window,
            self.screen.root,
            *options.pos,
            *options.size,
            options.border,
            xproto.WindowClass.InputOutput,
            visual,
            # No background, like SDL and GLFW: the server must not paint for the game.
            xproto.CW.BackPixmap
            | xproto.CW.BorderPixel
            | xproto.CW.OverrideRedirect
            | xproto.CW.EventMask
            | xproto.CW.Colormap,
            [0, 0, int(options.override), mask, colormap],
        )
        self._text(window, "_NET_WM_NAME", "UTF8_STRING", options.title)
        self._text(window, "WM_NAME", "STRING", options.title)
        klass = f"{options.wm_class}\0{options.wm_class}\0"
        self._text(window, "WM_CLASS", "STRING", klass)
        self._cardinals(window, "_NET_WM_PID", "CARDINAL", [os.getpid()])
        # flags 1 | 4: the position and size were chosen by the user, so the WM keeps them.
        hints = [1 | 4, *options.pos, *options.size] + [0] * 13
        self._cardinals(window, "WM_NORMAL_HINTS", "WM_SIZE_HINTS", hints)
        return window

    def atom(self, name: str) -> int:
        return int(self.core.InternAtom(False, len(name), name).reply().atom)

    def _text(self, window: int, name: str, kind: str, text: str) -> None:
        data = text.encode()
        self.core.ChangeProperty(
            self.xproto.PropMode.Replace, window, self.atom(name), self.atom(kind), 8, len(data),
            data,
        )  # fmt: skip

    def _cardinals(self, window: int, name: str, kind: str, values: list[int]) -> None:
        self.core.ChangeProperty(
            self.xproto.PropMode.Replace, window, self.atom(name), self.atom(kind), 32,
            len(values), values,
        )  # fmt: skip

    def sync(self) -> None:
        self.core.GetInputFocus().reply()

    def report(self, event: str, **fields: Any) -> None:
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()

    def render(self) -> None:
        """Draw into a pixmap and copy it over in one go, so that nobody sees half a picture."""
        xproto = self.xproto
        pixmap = self.connection.generate_id()
        self.core.CreatePixmap(self.depth, pixmap, self.window, *self.size)
        alpha = 0xFF000000 if self.depth == 32 else 0
        for left, top, width, height, (blue, green, red) in layout(self.number, self.size):
            self.core.ChangeGC(
                self.gc, xproto.GC.Foreground, [alpha | red << 16 | green << 8 | blue]
            )
            shape = xproto.RECTANGLE.synthetic(left, top, width, height)
            self.core.PolyFillRectangle(pixmap, self.gc, 1, [shape])
        self.core.CopyArea(pixmap, self.window, self.gc, 0, 0, 0, 0, *self.size)
        self.core.FreePixmap(pixmap)
        self.connection.flush()

    def _managed(self) -> bool:
        name = self.atom("_NET_SUPPORTING_WM_CHECK")
        reply = self.core.GetProperty(False, self.screen.root, name, 0, 0, 1).reply()
        return len(reply.value) > 0

    def _to_root(self, kind: str, values: list[int]) -> None:
        data = self.xproto.ClientMessageData.synthetic(values, "IIIII")
        event = self.xproto.ClientMessageEvent.synthetic(32, self.window, self.atom(kind), data)
        mask = self.xproto.EventMask
        self.core.SendEvent(
            False,
            self.screen.root,
            mask.SubstructureRedirect | mask.SubstructureNotify,
            event.pack(),
        )

    def command(self, line: str) -> bool:
        """Do one command; False ends the program."""
        xproto = self.xproto
        word, _, rest = line.partition(" ")
        answer: dict[str, Any] = {}
        if word == "draw":
            self.number = int(rest)
            self.render()
        elif word == "repeat":
            self.render()
        elif word == "animate":
            self.hz = float(rest)
        elif word == "move":
            mask = xproto.ConfigWindow.X | xproto.ConfigWindow.Y
            self.core.ConfigureWindow(self.window, mask, [int(v) for v in rest.split()])
        elif word == "resize":
            mask = xproto.ConfigWindow.Width | xproto.ConfigWindow.Height
            self.core.ConfigureWindow(self.window, mask, [int(v) for v in rest.split()])
        elif word == "minimise" and self._managed():
            self._to_root("WM_CHANGE_STATE", [3, 0, 0, 0, 0])
        elif word == "minimise":
            self.core.UnmapWindow(self.window)
        elif word == "restore":
            self.core.MapWindow(self.window)
        elif word == "raise":
            stack = xproto.ConfigWindow.StackMode
            self.core.ConfigureWindow(self.window, stack, [xproto.StackMode.Above])
        elif word == "title":
            self._text(self.window, "_NET_WM_NAME", "UTF8_STRING", rest)
            self._text(self.window, "WM_NAME", "STRING", rest)
        elif word == "where":
            shape = self.core.GetGeometry(self.window).reply()
            spot = self.core.TranslateCoordinates(self.window, self.screen.root, 0, 0).reply()
            answer = dict(left=spot.dst_x, top=spot.dst_y, width=shape.width, height=shape.height)
        elif word == "quit":
            self.core.DestroyWindow(self.window)
        else:
            raise ValueError(f"unknown command {line!r}")
        self.sync()
        self.report("done", command=line, **answer)
        return word != "quit"

    def handle(self, event: Any) -> None:
        xproto = self.xproto
        places = dict(
            x=getattr(event, "event_x", 0),
            y=getattr(event, "event_y", 0),
            root_x=getattr(event, "root_x", 0),
            root_y=getattr(event, "root_y", 0),
        )
        # The press and release events share a base class, so the order of these tests matters.
        kinds = {
            xproto.KeyPressEvent: "key_press",
            xproto.KeyReleaseEvent: "key_release",
            xproto.ButtonPressEvent: "button_press",
            xproto.ButtonReleaseEvent: "button_release",
            xproto.MotionNotifyEvent: "motion",
        }
        kind = kinds.get(type(event))
        if kind is not None:
            self.report(kind, detail=event.detail, state=event.state, **places)
        elif isinstance(event, xproto.ConfigureNotifyEvent):
            if (event.width, event.height) != self.size:
                self.size = (event.width, event.height)
                self.render()
        elif isinstance(event, xproto.ExposeEvent) and event.count == 0:
            self.render()

    def run(self) -> None:
        waiting = selectors.DefaultSelector()
        waiting.register(self.connection.get_file_descriptor(), selectors.EVENT_READ)
        waiting.register(0, selectors.EVENT_READ)
        typed = b""
        due = 0.0
        while True:
            timeout = None
            if self.hz > 0:
                now = time.monotonic()
                if now >= due:
                    self.number += 1
                    self.render()
                    due = max(due + 1 / self.hz, now)
                timeout = max(0.0, due - now)
            while (event := self.connection.poll_for_event()) is not None:
                self.handle(event)
            self.connection.flush()
            ready = {key.fd for key, _ in waiting.select(timeout)}
            if 0 in ready:
                data = os.read(0, 65536)
                if not data:
                    return
                *lines, typed = (typed + data).split(b"\n")
                if not all([self.command(line.decode()) for line in lines]):
                    return


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--title", default="Fake Game")
    parser.add_argument("--wm-class", default="fakegame")
    parser.add_argument("--pos", type=int, nargs=2, default=[100, 80])
    parser.add_argument("--size", type=int, nargs=2, default=[480, 270])
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--border", type=int, default=0)
    parser.add_argument("--number", type=int, default=0)
    parser.add_argument("--override", action="store_true")
    _Program(parser.parse_args()).run()


if __name__ == "__main__":
    _main()
