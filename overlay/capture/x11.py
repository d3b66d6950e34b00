"""Capture one X11 window: XComposite pixmap, MIT-SHM, XDamage.

On the capture thread; `close` and the properties also from others. The window is redirected
(Automatic), so that the X server keeps its pixels in a pixmap of its own, whatever covers it.
The server says by XDamage when something was drawn and copies the pixmap straight into a leased
buffer in shared memory; nothing is copied on our side, and nothing runs while nothing is drawn.

A new pixmap (after opening, mapping and every resize) starts as a copy of what was on the
*screen* there, which may be our overlay. The server reports damage for that copy too. So damage
from before the pixmap was named is thrown away, the game is asked to paint (Expose), and the
next damage is the first to be trusted.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xcffib
import xcffib.composite
import xcffib.damage
import xcffib.shm
import xcffib.xproto as xproto

from overlay.capture import CaptureSource
from overlay.errors import (
    BackendUnavailable,
    CaptureError,
    CaptureLost,
    DisplayLost,
    SourceClosed,
    WindowNotFound,
)
from overlay.frame import BufferRing, Frame, Pixels, Region, Size

assert sys.platform != "win32"

from overlay.window.x11 import (  # noqa: E402  (not there on Windows)
    Atoms,
    Connection,
    client_region,
    connect,
    is_minimised,
    root_window,
)

log = logging.getLogger(__name__)

ffi: Any = xcffib.ffi  # type: ignore[attr-defined]  # cffi's object, which xcffib works with

_ALL_PLANES = 0xFFFFFFFF
_EXTENSIONS = ("Composite", "DAMAGE", "MIT-SHM")
# How long the game has to paint a new pixmap before we ask again, or take it as it is.
_REPAINT_NS = 250_000_000
_SUBTRACTIONS = 5  # of damage, while a game draws faster than we ask
_RENAMES = 20  # tries to name the pixmap while the window keeps changing

_IPC_PRIVATE, _IPC_RMID, _IPC_CREAT = 0, 0, 0o1000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.shmget.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int]
_libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
_libc.shmat.restype = ctypes.c_void_p
_libc.shmdt.argtypes = [ctypes.c_void_p]
_libc.shmctl.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]


class X11DisplayLost(DisplayLost, CaptureError):
    """The X server closed the connection while capturing."""


class PreparedRequest:
    """A request that is sent for every frame, packed once.

    xcffib packs a request anew each time, which, on a core that has just been woken, takes as
    long as the copying of a frame.

    Args:
        extension: the module of the extension.
        call: makes the request of the extension object it is given.
    """

    def __init__(
        self, connection: Connection, extension: Any, call: Callable[[Any], object]
    ) -> None:
        self._connection = connection
        self._parts = ffi.new("struct iovec[4]")  # libxcb also writes before the part it is given
        self._request = ffi.new("xcb_protocol_request_t *")
        self._flags = 0
        self._data: Any = None
        self._lengths = 0, 0
        # The extension object sends to whatever it takes for its connection: to us, once.
        call(xcffib.extensions[extension.key][0](self, extension.key))

    def send_request(self, flags: int, parts: Any, request: Any) -> int:
        """Keep what xcffib has packed; its own memory is freed after this call."""
        self._flags = flags
        self._data = ffi.new("char[]", bytes(ffi.buffer(parts[0].iov_base, parts[0].iov_len)))
        self._lengths = parts[0].iov_len, parts[1].iov_len
        self._request[0] = request[0]
        return 0

    def send(self) -> int:
        """Send it; gives the number by which its reply is known."""
        data, padding = self._parts[2], self._parts[3]
        data.iov_base = self._data  # libxcb moves these on while it sends
        data.iov_len, padding.iov_len = self._lengths
        sequence = self._connection.send_request(self._flags, self._parts + 2, self._request)
        return int(sequence)


class SharedMemory:
    """A SysV shared memory segment, unmapped when the last array over it is gone.

    Not POSIX shared memory: xcffib cannot pass file descriptors to the server.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        size = int(np.prod(shape))
        self.id: int = _libc.shmget(_IPC_PRIVATE, size, _IPC_CREAT | 0o600)
        if self.id < 0:
            raise _no_memory("shmget", size)
        address = _libc.shmat(self.id, None, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            error = _no_memory("shmat", size)
            _libc.shmctl(self.id, _IPC_RMID, None)
            raise error
        self._address: int = address
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": "|u1",
            "data": (address, False),
        }

    def disown(self) -> None:
        """Let the kernel free it with the last process that maps it, even after SIGKILL."""
        _libc.shmctl(self.id, _IPC_RMID, None)

    def __del__(self) -> None:
        if getattr(self, "_address", None):
            _libc.shmdt(self._address)


def _no_memory(call: str, size: int) -> BackendUnavailable:
    reason = os.strerror(ctypes.get_errno())
    return BackendUnavailable(
        f"no shared memory for a frame of {size} bytes ({call}: {reason}); see `sysctl kernel.shm*`"
    )


def require_extensions(connection: Connection) -> None:
    """Check that the X server can do what capture needs, and agree on versions with it.

    Raises:
        BackendUnavailable: it lacks an extension.
    """
    for name in _EXTENSIONS:
        if not connection.core.QueryExtension(len(name), name).reply().present:
            raise BackendUnavailable(
                f"this X server has no {name} extension; start it with `+extension {name}`, "
                "or capture a screen region with `mss`"
            )
    # The server refuses requests of an extension whose version was not agreed on.
    connection(xcffib.composite.key).QueryVersion(0, 4).reply()
    connection(xcffib.damage.key).QueryVersion(1, 1).reply()
    connection(xcffib.shm.key).QueryVersion().reply()


class X11Source(CaptureSource):
    """Frames of one X11 window, also while it is covered.

    Args:
        window_id: the window; its own pixels are captured, not its frame.
        display: X display; None = $DISPLAY.
    Raises:
        BackendUnavailable: no connection, a missing extension, no shared memory, or a window
            whose pixels are not 32 bits of BGR and something.
        WindowNotFound: there is no such window.
    """

    name = "x11"

    def __init__(self, window_id: int, display: str | None = None) -> None:
        self._window = window_id
        self._working = threading.Lock()  # held by grab, and by close while it frees
        self._closing = threading.Lock()  # guards the setting of _closed
        self._closed = threading.Event()
        self._freed = False  # guarded by _working
        self._gone = False
        self._visible = False
        self._pixmap = 0
        self._border = 0
        self._ring: BufferRing | None = None
        self._ring_size = Size(0, 0)
        self._segments: dict[int, int] = {}  # id of a ring's buffer -> its segment on the server
        self._copies: dict[int, PreparedRequest] = {}  # likewise: copies the pixmap into it
        self._pending_ns = 0  # when the damage that is not captured yet was read; 0 = none
        self._unpainted_since = 0  # 0, or when a pixmap was named that the game has not painted
        self._failures = 0  # captures in a row that failed because the window changed
        self._sequence = 0
        self._connection: Connection = connect(display)
        try:
            self._core = self._connection.core
            self._atoms = Atoms(self._connection)
            require_extensions(self._connection)
            with self._translated():
                self._open_window()
        except BaseException:
            self._connection.disconnect()
            raise
        self._wake_read, self._wake_write = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._connection.get_file_descriptor(), select.POLLIN)
        self._poll.register(self._wake_read, select.POLLIN)

    # --- the seam ---

    def grab(self, timeout_s: float) -> Frame | None:
        """Wait for the game to draw and capture its window; see `CaptureSource.grab`.

        Raises:
            CaptureLost: the window keeps changing faster than it can be followed.
            SourceClosed: the window or this source was closed.
            X11DisplayLost: the X server is gone.
        """
        deadline = time.perf_counter_ns() + int(timeout_s * 1e9)
        with self._working, self._translated():
            while True:
                if self._closed.is_set():
                    raise SourceClosed("the capture was closed")
                self._read_events()
                if self._gone:
                    raise SourceClosed(f"the game's window {self._window:#x} was closed")
                if self._pending_ns and self._visible:
                    frame = self._capture()
                    if frame is not None:
                        return frame
                    continue
                if not self._wait(deadline):
                    return None

    @property
    def region(self) -> Region:
        """The client area on the desktop, in physical pixels, as last seen by `grab`."""
        return self._region

    @property
    def visible(self) -> bool:
        """Whether the window is mapped and not minimised, as last seen by `grab`."""
        return self._visible

    def close(self) -> None:
        """Make a waiting `grab` return and give the window back to the server; idempotent.

        Frames that are still held stay valid.
        """
        with self._closing:
            if not self._closed.is_set():  # later, the pipe's number may be another file's
                self._closed.set()
                os.write(self._wake_write, b"x")
        with self._working:
            if self._freed:
                return
            self._freed = True
            with contextlib.suppress(xcffib.XcffibException):  # all of it dies with the server
                self._drop_ring()
                self._extension(xcffib.damage).Destroy(self._damage)
                if self._pixmap:
                    self._core.FreePixmap(self._pixmap)
                composite = self._extension(xcffib.composite)
                composite.UnredirectWindow(self._window, xcffib.composite.Redirect.Automatic)
                self._sync()
            self._connection.disconnect()
            os.close(self._wake_read)
            os.close(self._wake_write)

    # --- opening ---

    def _extension(self, module: Any) -> Any:
        return self._connection(module.key)

    def _open_window(self) -> None:
        try:
            attributes = self._core.GetWindowAttributes(self._window).reply()
        except xcffib.Error as exc:
            raise WindowNotFound(f"there is no X11 window {self._window:#x}") from exc
        self._require_bgr(attributes)
        events = xproto.EventMask.StructureNotify | xproto.EventMask.PropertyChange
        # Checked: a window that closes meanwhile must not be half opened.
        self._core.ChangeWindowAttributesChecked(
            self._window, xproto.CW.EventMask, [events]
        ).check()
        covered = self._is_covered()
        composite = self._extension(xcffib.composite)
        composite.RedirectWindowChecked(self._window, xcffib.composite.Redirect.Automatic).check()
        self._damage: int = self._connection.generate_id()
        self._extension(xcffib.damage).CreateChecked(
            self._damage, self._window, xcffib.damage.ReportLevel.NonEmpty
        ).check()
        self._shm = self._extension(xcffib.shm)
        self._subtract = PreparedRequest(
            self._connection,
            xcffib.damage,
            lambda extension: extension.Subtract(self._damage, 0, 0),
        )
        self._region = client_region(self._connection, self._window)
        # If nothing hid it, the copy of the screen is the game's present picture.
        self._look_again(trusted=not covered)

    def _require_bgr(self, attributes: Any) -> None:
        """Check that the window's pixels are 32 bits, blue first.

        Raises:
            BackendUnavailable: they are not.
        """
        setup = self._connection.get_setup()
        bits = {item.depth: item.bits_per_pixel for item in setup.pixmap_formats}
        for depth in (depth for screen in setup.roots for depth in screen.allowed_depths):
            for visual in depth.visuals:
                if visual.visual_id != attributes.visual:
                    continue
                masks = (visual.red_mask, visual.green_mask, visual.blue_mask)
                bgr = masks == (0xFF0000, 0xFF00, 0xFF) and setup.image_byte_order == 0
                if bgr and depth.depth in (24, 32) and bits.get(depth.depth) == 32:
                    return
                raise BackendUnavailable(
                    f"window {self._window:#x} has pixels of {depth.depth} bits with masks "
                    f"{', '.join(f'{mask:#x}' for mask in masks)}; only 8 bits per colour can be "
                    "captured: set the game or the desktop to 24-bit colour"
                )
        raise BackendUnavailable(
            f"window {self._window:#x} has no pixels of its own (it only takes input)"
        )

    # --- what the server tells ---

    def _read_events(self) -> None:
        """Take in all events that have come; notes damage, follows the window."""
        while True:
            try:
                event = self._connection.poll_for_event()
            except xcffib.ConnectionException:
                raise
            except xcffib.Error as error:
                # Of a request nobody waited for, about a window that has just gone or changed;
                # the events that follow say which.
                log.debug("X error while capturing: %r", error)
                continue
            if event is None:
                break
            self._handle(event)
        if self._unpainted_since and not self._pending_ns:
            self._nudge()

    def _handle(self, event: object) -> None:
        if isinstance(event, xcffib.damage.NotifyEvent):
            if not self._pending_ns:
                self._pending_ns = time.perf_counter_ns()
        elif isinstance(event, xproto.DestroyNotifyEvent):
            self._gone = self._gone or event.window == self._window
        elif isinstance(event, xproto.ConfigureNotifyEvent):
            size = Size(event.width, event.height)
            if size != self._ring_size or event.border_width != self._border:
                self._look_again()
            else:
                with self._window_may_be_gone():
                    # Asked for, because the event has the coordinates in the WM's frame.
                    self._region = client_region(self._connection, self._window)
        elif isinstance(event, xproto.UnmapNotifyEvent | xproto.MapNotifyEvent):
            # Asked for, because the event may be older than what is known.
            self._look_again()
        elif (
            isinstance(event, xproto.PropertyNotifyEvent)
            and event.atom == self._atoms["_NET_WM_STATE"]
        ):
            with self._window_may_be_gone():
                hidden = is_minimised(self._connection, self._window, self._atoms)
                if self._visible == hidden:
                    self._look_again()

    @contextlib.contextmanager
    def _window_may_be_gone(self) -> Iterator[None]:
        """Take an error about the window for its end: it closes between events."""
        try:
            yield
        except xcffib.ConnectionException:
            raise
        except xcffib.Error:
            self._gone = True

    def _look_again(self, trusted: bool = False) -> None:
        """Find out whether the window can be seen, and name its present pixmap.

        Args:
            trusted: the pixmap holds the game's picture already.
        """
        with self._window_may_be_gone():
            state = self._core.GetWindowAttributes(self._window).reply().map_state
            self._visible = state == xproto.MapState.Viewable and not is_minimised(
                self._connection, self._window, self._atoms
            )
        if self._visible and not self._gone:
            self._name_pixmap(trusted)

    def _name_pixmap(self, trusted: bool) -> None:
        """Take hold of the pixmap the server draws the window into now."""
        composite = self._extension(xcffib.composite)
        if self._pixmap:
            self._core.FreePixmap(self._pixmap)
            self._pixmap = 0
        pixmap = self._connection.generate_id()
        try:
            composite.NameWindowPixmapChecked(self._window, pixmap).check()
            shape = self._core.GetGeometry(pixmap)
            border = self._core.GetGeometry(self._window)
            shape, border = shape.reply(), border.reply()
            self._region = client_region(self._connection, self._window)
        except xcffib.ConnectionException:
            raise
        except xcffib.Error:
            self._visible = False  # unmapped or closed; an event will tell which
            return
        self._pixmap = pixmap
        self._copies.clear()
        self._border = border.border_width
        size = Size(shape.width - 2 * self._border, shape.height - 2 * self._border)
        self._region = Region(self._region.left, self._region.top, *size)
        if size != self._ring_size:
            self._new_ring(size)
        self._forget_damage()
        if trusted:
            self._pending_ns = time.perf_counter_ns()
        elif self._pixmap == pixmap:  # else the events just read led to a newer one
            self._ask_to_paint()

    def _forget_damage(self) -> None:
        """Throw away damage up to now, reported or not, so that the next is the game's.

        The server reports damage once and then no more until it is subtracted. So a report that
        is thrown away may be of damage from after the subtraction, and must be subtracted too:
        otherwise no further report would ever come.
        """
        kept: list[object] = []
        for _ in range(_SUBTRACTIONS):
            self._subtract.send()
            self._sync()
            events = list(self._queued_events())
            others = [e for e in events if not isinstance(e, xcffib.damage.NotifyEvent)]
            kept += others
            if len(others) == len(events):
                break
        self._pending_ns = 0
        for event in kept:
            self._handle(event)

    def _queued_events(self) -> Iterator[object]:
        """Give the events that have come, without the errors among them."""
        while True:
            try:
                event = self._connection.poll_for_event()
            except xcffib.ConnectionException:
                raise
            except xcffib.Error:
                continue
            if event is None:
                return
            yield event

    def _ask_to_paint(self) -> None:
        """Tell the game that its whole window was exposed."""
        self._unpainted_since = time.perf_counter_ns()
        size = self._ring_size
        synthetic: Any = xproto.ExposeEvent.synthetic  # an annotation xcffib lacks
        expose = synthetic(self._window, 0, 0, size.width, size.height, 0)
        # Not ClearArea, which would paint the background first.
        self._core.SendEvent(False, self._window, xproto.EventMask.Exposure, expose.pack())
        self._connection.flush()

    def _nudge(self) -> None:
        """Ask a game again that has not painted its new pixmap for long."""
        now = time.perf_counter_ns()
        if not self._visible or now - self._unpainted_since < _REPAINT_NS:
            return
        if self._is_covered():
            self._subtract.send()  # or damage that is not reported again hides the next
            self._ask_to_paint()
        else:
            # It paints only when it has something new (and did before we looked): what the
            # pixmap holds was on the screen with nothing above it, so it is the game's.
            self._unpainted_since = 0
            self._pending_ns = now

    def _is_covered(self) -> bool:
        """Ask whether any window lies above the game's, be it only over a part."""
        try:
            region = client_region(self._connection, self._window)
            root = root_window(self._connection)
            top = self._window
            while (parent := self._core.QueryTree(top).reply().parent) != root:
                top = parent
            siblings = list(self._core.QueryTree(root).reply().children)
            above = siblings[siblings.index(top) + 1 :]
        except xcffib.ConnectionException:
            raise
        except (xcffib.Error, ValueError):
            return True  # it is being moved about right now
        for sibling in above:
            with contextlib.suppress(xcffib.Error):
                attributes = self._core.GetWindowAttributes(sibling).reply()
                if (
                    attributes.map_state == xproto.MapState.Viewable
                    and attributes._class == xproto.WindowClass.InputOutput
                    and _overlap(region, client_region(self._connection, sibling))
                ):
                    return True
        return False

    # --- capturing ---

    def _new_ring(self, size: Size) -> None:
        self._drop_ring()
        self._ring_size = size
        self._ring = BufferRing(lambda: self._new_buffer(size))

    def _new_buffer(self, size: Size) -> Pixels:
        memory = SharedMemory((size.height, size.width, 4))
        segment = self._connection.generate_id()
        try:
            self._shm.AttachChecked(segment, memory.id, False).check()
        except xcffib.ConnectionException:
            raise
        except xcffib.Error as exc:
            raise BackendUnavailable(
                "the X server cannot share memory with this program; it must run on the same "
                "machine and in the same IPC namespace (containers: --ipc=host)"
            ) from exc
        finally:
            memory.disown()
        buffer: Pixels = np.asarray(memory)
        self._segments[id(buffer)] = segment
        return buffer

    def _drop_ring(self) -> None:
        """Let the server forget the buffers; those that frames still hold keep their pixels."""
        for segment in self._segments.values():
            self._shm.Detach(segment)
        self._segments.clear()
        self._copies.clear()
        self._ring = None
        self._ring_size = Size(0, 0)

    def _capture(self) -> Frame | None:
        """Copy the pixmap into a buffer; None if it has just been replaced."""
        assert self._ring is not None
        lease = self._ring.take()
        ready_ns, self._pending_ns = self._pending_ns, 0
        copy = self._copies.get(id(lease.buffer)) or self._prepare_copy(lease.buffer)
        # In this order: what is drawn during the copy is reported as new damage.
        self._subtract.send()
        sequence = copy.send()
        try:
            self._connection.wait_for_reply(sequence)
        except xcffib.ConnectionException:
            raise
        except xcffib.Error as error:
            log.debug("the window changed while it was captured: %r", error)
            self._follow()
            return None
        captured_ns = time.perf_counter_ns()
        self._unpainted_since = self._failures = 0
        frame = Frame(lease.buffer, self._sequence, ready_ns, captured_ns, self._region, lease)
        self._sequence += 1
        return frame

    def _prepare_copy(self, buffer: Pixels) -> PreparedRequest:
        """Pack the request that copies the present pixmap into a buffer of the present ring."""
        size, border, segment = self._ring_size, self._border, self._segments[id(buffer)]
        copy = PreparedRequest(
            self._connection,
            xcffib.shm,
            lambda extension: extension.GetImage(
                self._pixmap, border, border, size.width, size.height, _ALL_PLANES,
                xproto.ImageFormat.ZPixmap, segment, 0,
            ),
        )  # fmt: skip
        self._copies[id(buffer)] = copy
        return copy

    def _follow(self) -> None:
        """Catch up with a window that changes while it is captured.

        Raises:
            CaptureLost: it does not come to rest.
        """
        self._failures += 1
        if self._failures > _RENAMES:
            self._failures = 0
            raise CaptureLost(f"window {self._window:#x} cannot be captured at the moment")
        self._look_again()

    def _wait(self, deadline: int) -> bool:
        """Sleep until the server or `close` has something to say; False when time is up."""
        now = time.perf_counter_ns()
        if now >= deadline:
            return False
        until = deadline
        if self._unpainted_since and self._visible:
            until = min(until, max(now, self._unpainted_since + _REPAINT_NS))
        # Rounded up, so that it does not spin during the last millisecond.
        self._poll.poll(-(-(until - now) // 1_000_000))
        return True

    def _sync(self) -> None:
        """Wait until the server has done all that was asked of it."""
        self._core.GetInputFocus().reply()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except xcffib.ConnectionException as exc:
            raise X11DisplayLost("the X server closed the connection; is it still there?") from exc
        except xcffib.Error as exc:
            self._gone = self._gone or isinstance(exc, xproto.WindowError)
            if self._gone:
                raise SourceClosed(f"the game's window {self._window:#x} was closed") from exc
            raise CaptureLost(f"window {self._window:#x} cannot be captured now: {exc!r}") from exc


def _overlap(a: Region, b: Region) -> bool:
    return (
        a.left < b.left + b.width
        and b.left < a.left + a.width
        and a.top < b.top + b.height
        and b.top < a.top + a.height
    )
