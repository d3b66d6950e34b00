"""A window on the screen: the presenter of the live overlay, on the main thread.

GLFW makes the window and the GL context; what makes an overlay of it is in `surface`, the
pointer's part in `pointer`, the keys' in `hotkeys`. Each of these has a thread that wakes `wait`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from overlay.errors import BackendUnavailable, DisplayLost, PresentError
from overlay.frame import Picture, Pixels, Region, Size
from overlay.hud import HudView
from overlay.present import Action, Command, Look, Presenter, Shown
from overlay.present.gl import GL, INSTALL_HINT
from overlay.present.hotkeys import HELD, Hotkeys, bindings, open_hotkeys
from overlay.present.hotkeys.keys import Key, Modifier
from overlay.present.placement import (
    PointMap,
    chosen_monitor,
    monitor_index,
    surface_region,
)
from overlay.present.pointer import CursorSprite, Pointer, open_pointer
from overlay.present.renderer import CursorSprite as DrawnCursor
from overlay.present.renderer import DrawTimes, Renderer
from overlay.present.surface import open_surface
from overlay.window import Window

if sys.platform == "linux":
    # The wheel would take its Wayland library in a Wayland session. The overlay and the games
    # it captures are X11 windows, there with XWayland.
    os.environ["PYGLFW_LIBRARY_VARIANT"] = "x11"

try:
    import glfw
except ImportError as exc:
    raise BackendUnavailable(f"GLFW cannot be loaded ({exc}): pip install glfw") from exc

log = logging.getLogger(__name__)

#: A pointer that moves over a still game is redrawn at most this often, in seconds; while the
#: game's own pictures come at least that often, the pointer moves with them, for free.
_CURSOR_S = 0.008
_PICTURE_S = 0.04

_MODIFIERS: dict[Modifier, int] = {
    "shift": glfw.MOD_SHIFT,
    "ctrl": glfw.MOD_CONTROL,
    "alt": glfw.MOD_ALT,
    "super": glfw.MOD_SUPER,
}
_ALL_MODIFIERS = sum(_MODIFIERS.values())

GLFW: Any = glfw  # its stubs have no types for half of what is used here


class _Library:
    """GLFW itself, which is one per process: started by the first user, ended by the last."""

    users = 0
    last_error = ""

    @classmethod
    def start(cls) -> None:
        """Start GLFW.

        Raises:
            DisplayLost: there is no display.
        """
        GLFW.set_error_callback(cls._note)
        if cls.users == 0 and not GLFW.init():
            if sys.platform == "linux":
                from overlay.present.xclient import no_display

                raise DisplayLost(no_display())
            raise PresentError(f"GLFW does not start: {cls.last_error}")
        cls.users += 1

    @classmethod
    def stop(cls) -> None:
        cls.users -= 1
        if cls.users == 0:
            GLFW.terminate()

    @classmethod
    def _note(cls, code: int, text: bytes | str) -> None:
        cls.last_error = text.decode(errors="replace") if isinstance(text, bytes) else text
        log.debug("GLFW error %#x: %s", code, cls.last_error)


class GlfwPresenter(Presenter):
    """Shows results in a window of the desktop. Everything but `wake` is for the main thread.

    In the modes "window" and "fullscreen" the window is an ordinary one: it may have the focus,
    and then the hotkeys work in it without their modifiers too; closing it, or Escape in
    "fullscreen", is the command "quit".

    The "pointer" hotkey is obeyed here and reported like the others.

    Args:
        look: where and how to show.
        game: the game's window, which the overlay stays above and whose focus decides about the
            pointer; None if there is none (replay): the pointer is left alone.
        hotkeys: action -> key over the defaults; None for no keys at all.
        title: of the window.
        exclude_from_capture: hide the overlay from recorders (Windows).

    Raises:
        SettingsError: a hotkey or the monitor is wrong.
        DisplayLost: there is no display.
        BackendUnavailable: there is no OpenGL 3.3.
    """

    name = "glfw"

    def __init__(
        self,
        look: Look,
        game: Window | None = None,
        hotkeys: Mapping[str, str] | None = None,
        *,
        title: str = "Overlay",
        exclude_from_capture: bool = False,
    ) -> None:
        self._look = look
        self._floating = look.mode in ("over", "beside")
        self._keys = bindings(hotkeys) if hotkeys is not None else {}
        self._game = game.region if game else Region(0, 0, 640, 360)
        self._game_visible = False
        self._on_screen = False
        self._commands: deque[Command] = deque()  # from the window itself
        self._in_window: dict[int, Action] = {}  # GLFW key that is held ->
        self._last: tuple[Picture, HudView | None] | None = None
        self._cursor: CursorSprite | None = None
        self._drawn_cursor: DrawnCursor | None = None
        self._cursor_due = 0.0  # `perf_counter` in seconds, like the next
        self._picture_due = 0.0  # until then a new picture is expected
        self._stale = False  # the window's contents were lost; `wait` draws them again
        self._replace = False  # the monitors changed; `wait` finds a new place
        self._pointer: Pointer | None = None
        self._pointer_free = False
        self._hotkeys: Hotkeys | None = None
        self._closed = False
        self._stack = ExitStack()
        with ExitStack() as stack:
            _Library.start()
            stack.callback(self._unless_lost, _Library.stop)
            display = GLFW.get_x11_display() if sys.platform == "linux" else 0
            self._surface = open_surface(display, self.wake)
            stack.callback(self._surface.close)
            self._place = surface_region(look, self._game, self._monitors())
            self._window = self._create(title)
            stack.callback(self._unless_lost, lambda: GLFW.destroy_window(self._window))
            #: X11 window id or HWND of the overlay itself.
            self.window_id = self._native()
            if self._floating:
                self._surface.float_above(self.window_id, game.id if game else None)
            if exclude_from_capture:
                self._surface.exclude_from_capture(self.window_id)
            GLFW.make_context_current(self._window)
            GLFW.swap_interval(1 if look.vsync else 0)
            self._renderer = Renderer()
            stack.callback(self._unless_lost, self._renderer.close)
            self.device = self._renderer.device
            self.refresh_hz = 0.0
            self._move(self._place)
            if self._keys:
                self._hotkeys = open_hotkeys(self._keys, self.wake)
                stack.callback(self._hotkeys.close)
            if look.pointer and game is not None:
                self._pointer = self._open_pointer(game)
                if self._pointer is not None:
                    stack.callback(self._pointer.close)
            self._listen()
            stack.callback(self._unless_lost, lambda: GLFW.set_monitor_callback(None))
            if not self._floating:
                self._appear()
            self._check()
            self._stack = stack.pop_all()

    # Making the window ------------------------------------------------------------------------

    def _create(self, title: str) -> Any:
        """Create the hidden window with its context, at `_place`."""
        GLFW.default_window_hints()
        hints = {
            glfw.CONTEXT_VERSION_MAJOR: 3,
            glfw.CONTEXT_VERSION_MINOR: 3,
            glfw.OPENGL_PROFILE: glfw.OPENGL_CORE_PROFILE,
            glfw.OPENGL_FORWARD_COMPAT: 1,
            glfw.VISIBLE: 0,
            glfw.DEPTH_BITS: 0,
            glfw.STENCIL_BITS: 0,
            glfw.SCALE_TO_MONITOR: 0,
        }
        if self._floating:
            hints |= {
                glfw.DECORATED: 0,
                glfw.RESIZABLE: 0,
                glfw.FLOATING: 1,
                glfw.FOCUSED: 0,
                glfw.FOCUS_ON_SHOW: 0,
                glfw.MOUSE_PASSTHROUGH: 1,
            }
        elif self._look.mode == "fullscreen":
            hints |= {glfw.DECORATED: 0, glfw.RESIZABLE: 0, glfw.AUTO_ICONIFY: 0}
        for hint, value in hints.items():
            GLFW.window_hint(hint, value)
        GLFW.window_hint_string(glfw.X11_CLASS_NAME, "sr-overlay")
        GLFW.window_hint_string(glfw.X11_INSTANCE_NAME, "sr-overlay")
        window = GLFW.create_window(*self._place.size, title, None, None)
        if not window:
            if self._surface.lost:
                raise DisplayLost("the display server went away while the window was made")
            raise BackendUnavailable(
                f"no OpenGL 3.3 window: {_Library.last_error or 'no reason given'}; {INSTALL_HINT}"
            )
        return window

    def _native(self) -> int:
        if sys.platform == "win32":
            return int(GLFW.get_win32_window(self._window))
        else:
            return int(GLFW.get_x11_window(self._window))

    def _open_pointer(self, game: Window) -> Pointer | None:
        try:
            return open_pointer(game.id, self.wake)
        except BackendUnavailable as exc:
            log.warning("the pointer is not confined: %s", exc)
            return None

    def _listen(self) -> None:
        """Take notice of lost contents and monitors; of keys and closing of an ordinary window."""
        GLFW.set_window_refresh_callback(self._window, self._on_refresh)
        GLFW.set_monitor_callback(self._on_monitor)
        if not self._floating:
            GLFW.set_window_close_callback(self._window, self._on_close)
            GLFW.set_key_callback(self._window, self._on_key)
            GLFW.set_framebuffer_size_callback(self._window, self._on_size)

    def _on_close(self, window: object) -> None:
        GLFW.set_window_should_close(self._window, 0)
        self._commands.append(Command("quit"))

    def _on_key(self, window: object, key: int, scancode: int, action: int, mods: int) -> None:
        if action == glfw.PRESS:
            name = key_action(self._keys, key, mods)
            if name is None and key == glfw.KEY_ESCAPE and self._look.mode == "fullscreen":
                name = "quit"
            if name is not None:
                self._in_window[key] = name
                self._commands.append(Command(name))
        elif action == glfw.RELEASE:
            name = self._in_window.pop(key, None)
            if name is not None and name in HELD:
                self._commands.append(Command(name, pressed=False))

    def _on_size(self, window: object, width: int, height: int) -> None:
        if width > 0 and height > 0:
            left, top = GLFW.get_window_pos(self._window)
            self._place = Region(left, top, width, height)
            self._resize(self._place.size)
            self._stale = True

    def _on_refresh(self, window: object) -> None:
        self._stale = True

    def _on_monitor(self, monitor: object, event: int) -> None:
        self._replace = True

    # Following the game -----------------------------------------------------------------------

    def _monitors(self) -> list[Region]:
        """List the monitors, the primary first.

        Raises:
            DisplayLost: the display server is gone.
            PresentError: there is none.
        """
        found = []
        for monitor in GLFW.get_monitors() or ():
            mode = GLFW.get_video_mode(monitor)
            if mode:
                found.append(Region(*GLFW.get_monitor_pos(monitor), *mode.size))
        if not found:
            self._check()
            raise PresentError("the desktop has no monitor; turn one on")
        return found

    def _refresh_rate(self, index: int) -> float:
        mode = GLFW.get_video_mode(GLFW.get_monitors()[index])
        return float(mode.refresh_rate) if mode else 0.0

    def follow(self, region: Region, visible: bool) -> None:
        self._check()
        if region.width < 1 or region.height < 1:
            visible, region = False, self._game
        self._game, self._game_visible = region, visible
        if self._floating:
            place = surface_region(self._look, region, self._monitors())
            if place != self._place:
                self._move(place)
            if visible and not self._on_screen and self._last is not None:
                self._appear()  # not before there is a picture: it may cover the whole monitor
            elif not visible and self._on_screen:
                self._point()  # the pointer first: it must not be lost behind a hidden overlay
                GLFW.hide_window(self._window)
                self._on_screen = False
        self._point()
        self._check()

    def _move(self, place: Region) -> None:
        self._place = place
        GLFW.set_window_size(self._window, *place.size)
        GLFW.set_window_pos(self._window, place.left, place.top)
        self._resize(place.size)
        monitors = self._monitors()
        if self._floating:
            index = monitor_index(place, monitors)
        else:
            index = chosen_monitor(self._look, self._game, monitors)
        self.refresh_hz = self._refresh_rate(index)
        if self._on_screen and self._floating:
            self._surface.shown()

    def _resize(self, size: Size) -> None:
        """Tell GL and renderer the window's new size."""
        if size != self._renderer.surface:
            # Mesa's software drivers look at the window's size only after a swap; without one
            # pictures would go into a buffer of the old size, and out of sight.
            GLFW.swap_buffers(self._window)
            self._renderer.resize(size)

    def _appear(self) -> None:
        GLFW.show_window(self._window)
        self._on_screen = True
        # A window manager may place a window when it appears.
        if self._floating or self._look.mode == "fullscreen":
            GLFW.set_window_pos(self._window, self._place.left, self._place.top)
        if self._floating:
            # Set as a hint only, a window manager's frame would still eat the clicks.
            for on in (0, 1):
                GLFW.set_window_attrib(self._window, glfw.MOUSE_PASSTHROUGH, on)
            self._surface.shown()

    def _points(self) -> PointMap:
        """Map the game to where it is shown now."""
        picture = self._renderer.viewport(self._game.size, self._look.fit)
        return PointMap(self._game, self._place, picture)

    def _point(self) -> None:
        """Confine, watch or release the pointer, as the situation asks for."""
        if self._pointer is None:
            return
        points = self._points()
        if not self._game_visible or self._pointer_free:
            self._pointer.release()
        elif self._look.mode != "over" or self._last is None:
            self._pointer.watch(self._game)  # the game itself is in sight, and in reach
        elif points.identity:
            self._pointer.release()
        else:
            self._pointer.confine(self._game, points)

    def target_size(self, source: Size) -> Size:
        return self._renderer.viewport(source, self._look.fit).size

    # The loop ---------------------------------------------------------------------------------

    @property
    def wants_host(self) -> bool:
        return self.software or self._renderer.wants_host

    def wait(self, timeout_s: float) -> list[Command]:
        self._check()
        now = time.perf_counter()
        if self._cursor_moved():
            timeout_s = min(timeout_s, self._cursor_due - now)
        if timeout_s > 0 and not self._commands:
            GLFW.wait_events_timeout(timeout_s)
        else:
            GLFW.poll_events()
        self._check()
        if self._replace:
            self._replace = False
            self.follow(self._game, self._game_visible)
        commands = self._take_commands()
        if self._stale or (self._cursor_moved() and time.perf_counter() >= self._cursor_due):
            self._repaint()
        return commands

    def _take_commands(self) -> list[Command]:
        commands = list(self._commands)
        self._commands.clear()
        if self._hotkeys is not None:
            commands += self._hotkeys.events()
        for command in commands:
            if command.action == "pointer" and command.pressed:
                self._pointer_free = not self._pointer_free
                self._point()
        return commands

    def _cursor_moved(self) -> bool:
        """Whether the pointer on the screen is not what it should be, and can be redrawn."""
        if self._pointer is None or self._last is None or not self._on_screen:
            return False
        return self._pointer.sprite() is not self._cursor

    def _repaint(self) -> None:
        """Draw the last picture again, with the pointer where it is now."""
        self._stale = False
        if self._last is not None and self._on_screen:
            self.show(*self._last)

    def wake(self) -> None:
        GLFW.post_empty_event()

    # Drawing ----------------------------------------------------------------------------------

    def show(self, picture: Picture, hud: HudView | None) -> Shown:
        self._check()
        begin_ns = time.perf_counter_ns()
        last, self._last = self._last, (picture, hud)
        if last is None:
            if self._floating and self._game_visible and not self._on_screen:
                self._appear()
            self._point()  # not before: it is drawn from now on
        if last is None or last[0] is not picture:
            self._picture_due = begin_ns / 1e9 + _PICTURE_S
        self._place_cursor(picture.frame.size)
        times = self._draw()
        GLFW.swap_buffers(self._window)
        if not self._look.vsync:
            GL.glFinish()
        swapped_ns = time.perf_counter_ns()
        self._check()
        # A slow renderer must not spend all its time on a pointer that moves.
        spent_s = (swapped_ns - begin_ns) / 1e9
        self._cursor_due = max(self._picture_due, swapped_ns / 1e9 + max(_CURSOR_S, spent_s))
        return times.shown(begin_ns, swapped_ns)

    def _draw(self) -> DrawTimes:
        assert self._last is not None
        picture, hud = self._last
        return self._renderer.draw(picture, hud, fit=self._look.fit, cursor=self._drawn_cursor)

    def _place_cursor(self, source: Size) -> None:
        """Put the pointer's sprite where the surface shows its place in the game."""
        self._cursor = self._pointer.sprite() if self._pointer is not None else None
        if self._cursor is None:
            self._drawn_cursor = None
            return
        placed = self._renderer.viewport(source, self._look.fit)
        self._drawn_cursor = DrawnCursor(
            self._cursor.pixels, cursor_region(self._cursor, self._game.size, placed)
        )

    def grab(self) -> Pixels:
        self._check()
        if self._last is None:
            return self._renderer.read()
        # After a swap the back buffer is undefined, so it is drawn again.
        self._draw()
        pixels = self._renderer.read()
        self._check()
        return pixels

    # The end ----------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._surface.lost:
            raise DisplayLost("the display server is gone; start the overlay again when it is back")

    def _unless_lost(self, do: Callable[[], None]) -> None:
        """Skip what would need the display; the process' end frees it."""
        if not self._surface.lost:
            do()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._last = None
            self._stack.close()


def key_action(keys: Mapping[Action, Key], key: int, mods: int) -> Action | None:
    """Find what a key pressed in our own window means: with its modifiers, or without any.

    Args:
        keys: the hotkeys.
        key, mods: GLFW's numbers.
    """
    for action, wanted in keys.items():
        exact = sum(_MODIFIERS[modifier] for modifier in wanted.modifiers)
        if key == wanted.codes.glfw and mods & _ALL_MODIFIERS in (0, exact):
            return action
    return None


def cursor_region(sprite: CursorSprite, source: Size, placed: Region) -> Region:
    """Give where a sprite lands on the surface, magnified like the game.

    Args:
        sprite: in pixels of the game's client area.
        source: size of the client area.
        placed: where the picture of the client area lies on the surface.
    """
    across, down = placed.width / source.width, placed.height / source.height
    left, top = sprite.corner
    width, height = sprite.size
    return Region(
        round(placed.left + left * across),
        round(placed.top + top * down),
        max(1, round(width * across)),
        max(1, round(height * down)),
    )
