"""Capture: the first stage of the frame path, on its own thread.

Back ends are one module each: `x11`, `mss`, `replay`, `wgc`, `dxcam`. They are imported only by
`open_source`.
"""

from __future__ import annotations

import logging
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib.util import find_spec
from typing import NamedTuple

from overlay.closing import Closing
from overlay.errors import BackendUnavailable, SettingsError
from overlay.frame import Frame, Region, Size
from overlay.window import Window, require_x_display

log = logging.getLogger(__name__)

BACKENDS = ("auto", "x11", "wgc", "dxcam", "mss", "replay")

# The distribution each back end needs, as it is named for pip.
_LIBRARIES = {"x11": "xcffib", "wgc": "windows-capture", "dxcam": "dxcam", "mss": "mss"}
_WINDOWS_1903 = 18362  # build number of the first Windows that captures windows by handle


class CaptureSource(Closing):
    """Frames of one window, region or recording.

    `grab` is called on one thread, the capture thread; the properties and `close` may be used
    from others.
    """

    #: The back end's name on the command line.
    name: str

    @abstractmethod
    def grab(self, timeout_s: float) -> Frame | None:
        """Wait for new content and capture it.

        Content that did not change gives no frame. A resize shows as a frame of another size.

        Args:
            timeout_s: how long to wait at most; 0 asks once.
        Returns:
            The newest frame, or None if nothing new came in time (a minimised window, say).
            Its buffer goes back to the source when the frame is no longer referenced.
        Raises:
            CaptureLost: for now; calling again may succeed.
            SourceClosed: the window closed or the recording ended.
        """

    @property
    @abstractmethod
    def region(self) -> Region:
        """The client area on the desktop, in physical pixels, as last seen; it follows moves."""

    @property
    @abstractmethod
    def visible(self) -> bool:
        """Whether the window is mapped and not minimised, as last seen."""

    @abstractmethod
    def close(self) -> None:
        """Stop capturing, make a waiting `grab` return soon, and free everything; idempotent."""


class Candidate(NamedTuple):
    """Whether a back end can be used here; `fix` is empty if it can, or if nothing helps."""

    name: str
    available: bool
    reason: str
    fix: str


def candidates(display: str | None = None) -> Iterator[Candidate]:
    """Say of each back end whether it works here, in the order in which `auto` tries them.

    Args:
        display: X display; None = $DISPLAY.
    """
    for name, check in (("x11", _check_x11), ("wgc", _check_wgc), ("dxcam", _check_dxcam)):
        yield _candidate(name, check, display)
    yield _candidate("mss", _check_mss, display)
    yield Candidate("replay", True, "pictures, videos and a pattern can be replayed anywhere", "")


def _candidate(name: str, check: _Check, display: str | None) -> Candidate:
    try:
        return Candidate(name, True, check(display), "")
    except BackendUnavailable as exc:
        # Our messages are "what is wrong; what to do" or "what is wrong: pip install ...".
        text = str(exc)
        mark = ": pip install" if ": pip install" in text else "; "
        reason, _, fix = text.partition(mark)
        return Candidate(name, False, reason, f"pip install{fix}" if "pip" in mark else fix)


def _check_x11(display: str | None) -> str:
    if sys.platform in ("win32", "darwin"):
        raise BackendUnavailable(f"X11 is not the window system of {sys.platform}")
    else:
        _require_library("x11", "xcffib")
        require_x_display(display)
        from overlay.capture.x11 import require_extensions
        from overlay.window.x11 import connect

        connection = connect(display)
        try:
            require_extensions(connection)
        finally:
            connection.disconnect()
        return "captures a window by event, also while it is covered"


def _check_wgc(display: str | None) -> str:
    if sys.platform != "win32":
        raise BackendUnavailable("Windows Graphics Capture works on Windows only")
    else:
        build = sys.getwindowsversion().build
        if build < _WINDOWS_1903:
            raise BackendUnavailable(
                f"this Windows (build {build}) cannot capture windows; update to Windows 10 "
                "version 1903"
            )
        _require_library("wgc", "windows_capture")
        return "captures a window by event, also while it is covered"


def _check_dxcam(display: str | None) -> str:
    if sys.platform != "win32":
        raise BackendUnavailable("Desktop Duplication works on Windows only")
    else:
        _require_library("dxcam", "dxcam")
        return "captures a region of a monitor, the overlay excluded"


def _check_mss(display: str | None) -> str:
    _require_library("mss", "mss")
    if sys.platform not in ("win32", "darwin"):
        require_x_display(display)
    return "polls a region of the screen; it sees the overlay if that lies over it"


_Check = Callable[[str | None], str]


def _require_library(backend: str, module: str) -> None:
    if find_spec(module) is None:
        library = _LIBRARIES[backend]
        raise BackendUnavailable(
            f"the capture back end {backend!r} needs {library}: pip install {library}"
        )


def open_source(
    backend: str,
    *,
    window: Window | None = None,
    region: Region | None = None,
    path: str | None = None,
    rate_hz: float | None = 60.0,
    loop: bool = True,
    pattern_size: Size = Size(480, 270),  # noqa: B008  (immutable)
    seed: int = 0,
    display: str | None = None,
) -> CaptureSource:
    """Open a source of frames.

    Args:
        backend: a name in `BACKENDS`. `auto` takes the best one that works here for a window,
            a region or a path, whichever is given. A replay may be written in one word:
            "replay:PATH" or "replay:pattern", with "?loop=0", "?rate=30" or "?rate=max" and
            "?seed=1", joined by "&".
        window: the game; needed by `x11` and `wgc`. The region back ends take its region.
        region: what to capture with `dxcam` and `mss`; None = the window's.
        path: what to replay: a folder, a video file, or "pattern".
        rate_hz: of a replay (None = as fast as possible), and how often `mss` polls at most.
        loop: start a replay again at its end.
        pattern_size, seed: of the replayed pattern.
        display: X display; None = $DISPLAY.
    Raises:
        SettingsError: an unknown name, or what the back end needs was not given.
        BackendUnavailable: the back end does not work here; the message has the fix.
        CaptureError: there is nothing to capture.
    """
    name, _, place = backend.partition(":")
    if name not in BACKENDS or (place and name != "replay"):
        close = get_close_matches(name, BACKENDS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(BACKENDS)}"
        raise SettingsError(f"unknown capture back end {backend!r}; {hint}")
    if name == "auto":
        name = _choose(window, region, path, display)
    if name == "replay":
        from overlay.capture.replay import ReplaySource

        options = _ReplayOptions(path, rate_hz, loop, seed)
        if place:
            options = _replay_options(place, options)
        return ReplaySource(
            options.path,
            rate_hz=options.rate_hz,
            loop=options.loop,
            pattern_size=pattern_size,
            seed=options.seed,
        )
    if name in ("x11", "wgc"):
        if window is None:
            raise SettingsError(f"the capture back end {name!r} needs a window")
        return _open_window_source(name, window, display)
    area = region if region is not None else window.region if window is not None else None
    return _open_region_source(name, area, rate_hz, display)


def _open_window_source(name: str, window: Window, display: str | None) -> CaptureSource:
    if name == "x11":
        _check_x11(display)
        if sys.platform not in ("win32", "darwin"):
            from overlay.capture.x11 import X11Source

            return X11Source(window.id, display)
    _check_wgc(display)
    if sys.platform == "win32":
        from overlay.capture.wgc import WgcSource

        return WgcSource(window.id)
    raise AssertionError("a check passed on the wrong platform")


def _open_region_source(
    name: str, region: Region | None, rate_hz: float | None, display: str | None
) -> CaptureSource:
    if name == "dxcam":
        _check_dxcam(display)
        if region is None:
            raise SettingsError("the capture back end 'dxcam' needs a region or a window")
        if sys.platform == "win32":
            from overlay.capture.dxcam import DxcamSource

            return DxcamSource(region)
        raise AssertionError("a check passed on the wrong platform")
    _check_mss(display)
    from overlay.capture.mss import MssSource

    # Without a rate to keep to, as often as screens refresh.
    return MssSource(1 if region is None else region, rate_hz or 60.0, display)


def _choose(
    window: Window | None, region: Region | None, path: str | None, display: str | None
) -> str:
    """Choose the back end for what is to be captured, and log why."""
    if path is not None:
        log.info("capture back end: replay, because a path was given")
        return "replay"
    wanted = ("x11", "wgc") if window is not None and region is None else ()
    failed: list[tuple[str, str]] = []
    for candidate in candidates(display):
        if candidate.name not in (*wanted, "dxcam", "mss"):
            continue
        if candidate.name == "dxcam" and window is None and region is None:
            continue
        if candidate.available:
            log.info("capture back end: %s (%s)", candidate.name, candidate.reason)
            for name, reason in failed:
                log.info("capture back end %s was not taken: %s", name, reason)
            return candidate.name
        failed.append((candidate.name, candidate.reason))
    if sys.platform not in ("win32", "darwin"):
        require_x_display(display)
    tried = "; ".join(f"{name}: {reason}" for name, reason in failed)
    raise BackendUnavailable(f"nothing can be captured here ({tried})")


class _ReplayOptions(NamedTuple):
    path: str | None
    rate_hz: float | None
    loop: bool
    seed: int


def _replay_options(place: str, options: _ReplayOptions) -> _ReplayOptions:
    """Read "PATH?key=value&..."; what is not there stays as in `options`."""
    path, _, query = place.partition("?")
    options = options._replace(path=path or options.path)
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        try:
            if key == "loop" and value in ("0", "1"):
                options = options._replace(loop=value == "1")
            elif key == "rate":
                options = options._replace(rate_hz=None if value == "max" else float(value))
            elif key == "seed":
                options = options._replace(seed=int(value))
            else:
                raise ValueError("not an option")
        except ValueError as exc:
            raise SettingsError(
                f"replay option {part!r} is not one of loop=0, loop=1, rate=HZ, rate=max, seed=N"
            ) from exc
    return options
