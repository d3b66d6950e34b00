"""`overlay demo`: Freedoom in a small window and the overlay over it, with nothing to set up.

Not part of the frame path: it starts the game, and a display where there is none, and then
`overlay run` in a process of its own, as a player would. Everything it started ends with it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from overlay.errors import (
    BackendUnavailable,
    CaptureError,
    DisplayLost,
    OverlayError,
    PresentError,
    SettingsError,
)
from overlay.frame import Pixels, Size
from overlay.settings import parse_size

log = logging.getLogger(__name__)

GAME_SIZE = Size(480, 270)
SCREEN = Size(1280, 720)
#: Its software renderer is faster than GL on a CPU. Uncapped it draws as often as it can: a CPU
#: that upscales as well has nothing to spare for more than Doom's own 35 frames a second.
GAME_CONFIG = """\
fullscreen 0
aspect_ratio_correct 1
integer_scaling 0
vga_porch_flash 0
force_software_renderer 1
crispy_hires 0
crispy_uncapped {uncapped}
crispy_fpslimit 60
crispy_vsync 0
crispy_widescreen 1
show_endoom 0
"""
_IWADS = ("freedoom1.wad", "freedoom2.wad")
_IWAD_FOLDERS = ("/usr/share/games/doom", "/usr/local/share/games/doom", "/usr/share/doom")
_XA_WINDOW = 33  # the predefined atom
_HEADLESS_S = 12.0
_START_S = 120.0  # for each thing started; a cold, busy disk is slow
_STOP_S = 15.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `overlay demo`."""
    parser.add_argument(
        "--out", type=Path, default=Path("demo-out"), metavar="DIR",
        help="folder for screenshot, trace and summary (default: demo-out)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, metavar="N",
        help="how long it runs (default: 12 without a display, else until it is closed)",
    )  # fmt: skip
    parser.add_argument("--model", default="default", metavar="NAME", help="model or shader")
    parser.add_argument("--scale", type=float, default=2.0, metavar="X", help="of the game's size")
    parser.add_argument(
        "--present", choices=("over", "beside", "window", "fullscreen"), default="over",
        help="where the picture goes (default: over)",
    )  # fmt: skip
    parser.add_argument(
        "--headless", action="store_true", help="start a display of its own even if there is one"
    )
    parser.add_argument(
        "--screen", type=parse_size, default=SCREEN, metavar="WxH",
        help=f"size of that display (default: {SCREEN})",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Run the demo; `options` as `add_arguments` makes them.

    Returns:
        The exit code: 0 only if screenshot, trace and summary are there and hold frames.
    Raises:
        OverlayError: the game, a tool or the display is missing, or the overlay failed.
    """
    if platform.system() != "Linux":
        raise SettingsError(
            "the demo needs Linux with X11; here start any game in a window, "
            'then: overlay run --window "PART OF ITS TITLE"'
        )
    game, iwad = find_game()
    folder: Path = options.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("screenshot.png", "trace.csv", "summary.json", "summary.txt"):
        (folder / name).unlink(missing_ok=True)
    with ExitStack() as stack:
        for number in map(signal.Signals.__getitem__, ("SIGTERM", "SIGHUP")):
            stack.callback(signal.signal, number, signal.signal(number, _terminate))
        # A shell that starts it in the background lets it ignore this one.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        stack.callback(signal.signal, signal.SIGINT, before)
        code = _play(stack, options, game, iwad, folder)
    if code == 0:
        _report(folder)
    return code


def find_game() -> tuple[str, Path]:
    """Find Crispy Doom and Freedoom's data.

    Raises:
        BackendUnavailable: one of them is not installed; the message says how to.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/games", "/usr/local/games"])
    game = shutil.which("crispy-doom", path=path)
    folders = [*filter(None, [os.environ.get("DOOMWADDIR")]), *_IWAD_FOLDERS]
    iwads = (Path(folder, name) for folder in folders for name in _IWADS)
    iwad = next((file for file in iwads if file.is_file()), None)
    if game is None or iwad is None:
        missing = " and ".join(
            name for name, found in (("Crispy Doom", game), ("Freedoom", iwad)) if not found
        )
        raise BackendUnavailable(
            f"the demo's game is not installed ({missing}); "
            "run: apt-get install --no-install-recommends crispy-doom freedoom"
        )
    return game, iwad


def _play(
    stack: ExitStack, options: argparse.Namespace, game: str, iwad: Path, folder: Path
) -> int:
    headless = options.headless or not os.environ.get("DISPLAY")
    seconds: float | None = options.seconds
    env = dict(os.environ)
    if headless:
        seconds = seconds or _HEADLESS_S
        env = _start_display(stack, env, options.screen)
    player = _start_game(stack, env, game, iwad, uncapped=not headless)
    argv = [
        *("--pid", str(player.pid), "--wait", f"{_START_S:g}"),
        *("--model", options.model, "--scale", f"{options.scale:g}"),
        *("--present", options.present, "--hud", "full"),
        *("--trace", str(folder / "trace.csv"), "--json"),
    ]
    if seconds:
        argv += ["--seconds", f"{seconds:g}"]
    if not headless:
        argv += ["--screenshot", str(folder / "screenshot.png")]
        log.info("press Ctrl+C here, or the overlay's quit hotkey, to end the demo")
    out = stack.enter_context((folder / "summary.json").open("wb"))
    overlay = _start(stack, [sys.executable, "-m", "overlay", "run", *argv], env, stdout=out)
    _wait_for_frame(overlay, player, folder / "trace.csv")
    if headless:
        assert seconds is not None
        _photograph(env, overlay, 0.75 * seconds, folder / "screenshot.png")
        return overlay.wait()
    return _wait_for_player(overlay)


def _wait_for_frame(
    overlay: subprocess.Popen[bytes], player: subprocess.Popen[bytes], trace: Path
) -> None:
    """Wait until the overlay has shown a frame, or ended."""
    while overlay.poll() is None:
        if trace.exists() and b",presented," in trace.read_bytes():
            return
        if player.poll() is not None:
            raise CaptureError(
                f"the game ended by itself (exit code {player.returncode}) before it was seen; "
                "run crispy-doom by hand to see why"
            )
        time.sleep(0.1)


def _wait_for_player(overlay: subprocess.Popen[bytes]) -> int:
    """Wait for the overlay to end; an interrupt ends it, as here nothing else need to."""
    try:
        return overlay.wait()
    except KeyboardInterrupt:
        overlay.send_signal(signal.SIGINT)
    try:
        code = overlay.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        raise OverlayError(f"the overlay did not end {_STOP_S:g} s after the interrupt") from None
    return 0 if code == 130 else code


def _terminate(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _start(
    stack: ExitStack,
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    stdout: Any = subprocess.DEVNULL,
    stderr: Any = None,
    pass_fds: tuple[int, ...] = (),
) -> subprocess.Popen[bytes]:
    """Start a process that ends with `stack`, in a session of its own: Ctrl+C is for us alone."""
    process = subprocess.Popen(
        argv,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
    )

    def stop() -> None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(stop)
    return process


def _start_display(stack: ExitStack, env: Mapping[str, str], size: Size) -> dict[str, str]:
    """Start Xvfb and a window manager; return the environment for what runs on it."""
    for tool, package in (("Xvfb", "xvfb"), ("openbox", "openbox")):
        if shutil.which(tool) is None:
            raise BackendUnavailable(
                f"there is no display, and no {tool} to make one; "
                f"run: apt-get install --no-install-recommends {package}"
            )
    read, write = os.pipe()
    pipe = stack.enter_context(os.fdopen(read))
    argv = ["Xvfb", "-displayfd", str(write), "-screen", "0", f"{size}x24", "-noreset"]
    argv += ["-nolisten", "tcp", "+extension", "Composite", "+extension", "GLX"]
    env = {k: v for k, v in env.items() if k not in ("WAYLAND_DISPLAY", "XAUTHORITY")}
    _start(stack, argv, env, stderr=subprocess.DEVNULL, pass_fds=(write,))
    os.close(write)
    ready, _, _ = select.select([pipe], [], [], _START_S)
    number = pipe.readline().strip() if ready else ""
    if not number:
        raise PresentError("Xvfb did not start; run `Xvfb :99` by hand to see why")
    env = {**env, "DISPLAY": f":{number}", "XDG_SESSION_TYPE": "x11"}
    _start(stack, ["openbox", "--sm-disable"], env, stderr=subprocess.DEVNULL)
    if not wait_for_manager(env["DISPLAY"]):
        raise PresentError("openbox did not come up; run it by hand to see why")
    return env


def _start_game(
    stack: ExitStack, env: Mapping[str, str], game: str, iwad: Path, *, uncapped: bool
) -> subprocess.Popen[bytes]:
    """Start the game, silent, with a home folder of its own, so that no save is touched."""
    home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overlay-demo-")))
    config = home / "crispy.cfg"
    config.write_text(GAME_CONFIG.format(uncapped=int(uncapped)))
    env = {k: v for k, v in env.items() if k not in ("XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    if "XAUTHORITY" not in env and (Path.home() / ".Xauthority").exists():
        env["XAUTHORITY"] = str(Path.home() / ".Xauthority")
    env |= {
        "HOME": str(home),
        "SDL_AUDIODRIVER": "dummy",
        "ALSOFT_DRIVERS": "null",
        "SDL_VIDEODRIVER": "x11",
    }
    argv = [game, "-iwad", str(iwad), "-extraconfig", str(config), "-window"]
    argv += ["-geometry", str(GAME_SIZE), "-nosound", "-nogui"]
    return _start(stack, argv, env, stderr=subprocess.DEVNULL)


def wait_for_manager(display: str, timeout_s: float = _START_S) -> bool:
    """Wait until the window manager of `display` manages windows; whether it does in time.

    Its announcement (_NET_SUPPORTING_WM_CHECK) is not enough: openbox announces itself before it
    has read its files, and a window that asks to be mapped meanwhile may wait for ever. So a
    window of ours asks, again and again, until it is mapped.
    """
    import xcffib
    import xcffib.xproto as xproto  # it registers the core protocol

    connect: Any = xcffib.connect
    try:
        connection = connect(display=display)
    except xcffib.ConnectionException as exc:
        raise DisplayLost(f"cannot connect to the display {display}") from exc
    core, screen = connection.core, connection.get_setup().roots[0]
    end = time.monotonic() + timeout_s
    try:
        name = "_NET_SUPPORTING_WM_CHECK"
        atom = core.InternAtom(False, len(name), name).reply().atom
        while not core.GetProperty(False, screen.root, atom, _XA_WINDOW, 0, 1).reply().value_len:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        window = connection.generate_id()
        place = (screen.root_depth, window, screen.root, 0, 0, 1, 1, 0)
        core.CreateWindow(*place, xproto.WindowClass.InputOutput, screen.root_visual, 0, [])
        mapped = xproto.MapState.Viewable
        while time.monotonic() < end:
            core.UnmapWindow(window)
            core.MapWindow(window)
            for _ in range(10):
                time.sleep(0.05)
                if core.GetWindowAttributes(window).reply().map_state == mapped:
                    return True
        return False
    finally:
        connection.disconnect()  # takes the window with it


def _photograph(
    env: Mapping[str, str], overlay: subprocess.Popen[bytes], after_s: float, picture: Path
) -> None:
    """Save a picture of the whole display, with the overlay on it, `after_s` from now."""
    import mss
    import mss.tools

    end = time.monotonic() + after_s
    while overlay.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    if overlay.poll() is None:
        with mss.MSS(display=env["DISPLAY"]) as screen:
            shot = screen.grab(screen.monitors[0])
            mss.tools.to_png(shot.rgb, shot.size, output=str(picture))


def _report(folder: Path) -> None:
    """Check what the run left, and say where it is and what it tells.

    Raises:
        OverlayError: something is missing or empty.
    """
    import cv2

    from overlay.trace.csvfile import read_trace
    from overlay.trace.summary import summarise

    missing = [
        name
        for name in ("screenshot.png", "trace.csv", "summary.json")
        if not (folder / name).is_file() or not (folder / name).stat().st_size
    ]
    if missing:
        raise OverlayError(f"the demo left no {' and no '.join(missing)} in {folder}")
    summary = json.loads((folder / "summary.json").read_bytes())
    frames = summary["frames"]
    if not frames["presented"]:
        raise OverlayError(f"the overlay presented no frame: {frames}")
    picture: Any = cv2.imread(str(folder / "screenshot.png"))
    if picture is None or is_blank(picture):
        raise OverlayError(f"the screenshot {folder / 'screenshot.png'} shows nothing")
    told = str(summarise(read_trace(folder / "trace.csv")))
    (folder / "summary.txt").write_text(told + "\n")
    latency = summary["capture_to_present_ms"]
    lines = [
        told,
        "",
        f"Freedoom at {GAME_SIZE}: {summary['fps']:.1f} frames a second shown, capture to "
        f"present {latency['p50']:.1f} ms (p50), {latency['p95']:.1f} ms (p95)",
        *(f"{what:<11}{folder / name}" for what, name in _RESULTS),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


_RESULTS = (
    ("screenshot", "screenshot.png"),
    ("trace", "trace.csv"),
    ("summary", "summary.txt"),
    ("the same", "summary.json"),
)


def is_blank(picture: Pixels) -> bool:
    """Whether a picture, (H, W, 3) uint8, has (nearly) one colour only."""
    return float(np.std(picture, axis=(0, 1)).max()) < 4.0
