"""`overlay doctor`: what works on this machine, why not, and what to do about it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import platformdirs

from engines.errors import EngineError
from overlay import __version__
from overlay.cli import REPAIR, add_config, add_json
from overlay.errors import OverlayError, SettingsError
from overlay.log import log_path

State = Literal["ok", "warning", "missing", "elsewhere"]

_PACKAGES = (
    "numpy", "opencv-python", "glfw", "PyOpenGL", "mss", "xcffib", "dxcam", "windows-capture",
    "openvino", "onnxruntime", "torch", "tensorrt", "tensorrt-rtx-cu13", "cuda-bindings",
    "matplotlib",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Check:
    """One capability: its state, the reason, and the fix where something can be done."""

    name: str
    state: State
    reason: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `overlay doctor`."""
    add_config(parser)
    parser.add_argument(
        "--bundle", nargs="?", const=Path("overlay-support.zip"), type=Path, metavar="ZIP",
        help="write report, log, settings and last trace into an archive (no pictures)",
    )  # fmt: skip
    parser.add_argument("--trace", type=Path, metavar="CSV", help="trace to put into the bundle")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the report; exit 4 if nothing could be shown here."""
    checks = report()
    if arguments.json:
        sys.stdout.write(json.dumps(_as_json(checks)) + "\n")
    else:
        sys.stdout.write(_as_text(checks))
    if arguments.bundle:
        _bundle(arguments.bundle, checks, arguments.config, arguments.trace)
        sys.stdout.write(f"wrote {arguments.bundle}\n" if not arguments.json else "")
    return 4 if any(c.state == "missing" and c.name in _NEEDED for c in checks) else 0


#: Without these no overlay can be shown.
_NEEDED = ("display", "opengl")


def report() -> list[Check]:
    """Try each capability, for real where that is quick."""
    return [check for probe in _PROBES for check in _guarded(probe)]


def _guarded(probe: Callable[[], Iterator[Check]]) -> list[Check]:
    found: list[Check] = []
    try:
        found.extend(probe())
    except (OverlayError, EngineError) as exc:
        reason, _, fix = str(exc).partition(": ")
        found.append(Check(probe.__name__.strip("_"), "missing", reason, fix))
    except (ImportError, OSError) as exc:
        what = f"cannot load {getattr(exc, 'name', None) or 'a library'}: {exc}"
        found.append(Check(probe.__name__.strip("_"), "missing", what, REPAIR))
    return found


def _machine() -> Iterator[Check]:
    cores = os.cpu_count() or 1
    yield Check("overlay", "ok", f"{__version__}, Python {platform.python_version()}")
    yield Check("system", "ok", f"{platform.platform()}, {_cpu_name()}, {cores} cores")


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _packages() -> Iterator[Check]:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    yield Check("packages", "ok", ", ".join(found))


def _display() -> Iterator[Check]:
    from overlay.window import open_desktop

    with open_desktop() as desktop:
        count = len(desktop.windows())
    where = os.environ.get("DISPLAY", "") if sys.platform == "linux" else "desktop"
    yield Check("display", "ok", f"{where}, {count} windows")
    if os.environ.get("XDG_SESSION_TYPE") == "wayland":
        yield Check(
            "wayland", "warning", "games that run under XWayland work; native Wayland ones do not",
            "start the game with XWayland (SDL_VIDEODRIVER=x11), or see docs/platforms.md",
        )  # fmt: skip


def _opengl() -> Iterator[Check]:
    from overlay.frame import Size
    from overlay.present import Look
    from overlay.present.offscreen import OffscreenPresenter

    with OffscreenPresenter(Look(mode="over", size=Size(64, 64))) as presenter:
        device = presenter.device
    slow = "llvmpipe" in device or "softpipe" in device
    yield Check(
        "opengl", "warning" if slow else "ok", device,
        "install the GPU's driver: OpenGL runs on the CPU here" if slow else "",
    )  # fmt: skip


def _pointer() -> Iterator[Check]:
    if sys.platform == "linux":
        from overlay.window.x11 import connect

        connection = connect(None)
        try:
            for name in ("XFIXES", "XInputExtension"):
                there = connection.core.QueryExtension(len(name), name).reply().present
                yield Check(
                    f"pointer: {name}",
                    "ok" if there else "warning",
                    "the X server has it" if there else "the X server lacks it",
                    "" if there else "the pointer stays free; use another X server",
                )
        finally:
            connection.disconnect()
    else:
        yield Check("pointer and hotkeys", "ok", "part of the system")


def _capture() -> Iterator[Check]:
    from overlay.capture import candidates

    for found in candidates():
        state: State = "ok" if found.available else "missing"
        if found.reason.endswith("on Windows only") and sys.platform != "win32":
            state = "elsewhere"
        yield Check(f"capture {found.name}", state, found.reason, found.fix)


def _upscalers() -> Iterator[Check]:
    from overlay.infer import SHADERS, candidates

    for found in candidates():
        state: State = "ok" if found.available else "missing"
        yield Check(f"back end {found.name}", state, found.reason, found.fix)
    yield Check("shaders", "ok", ", ".join(SHADERS))


def _models() -> Iterator[Check]:
    from engines import zoo

    for spec in zoo.SHIPPED:
        try:
            zoo.verify(spec)
        except EngineError as exc:
            yield Check(f"model {spec.id}", "missing", str(exc), "install sr-overlay again")
        else:
            yield Check(f"model {spec.id}", "ok", f"x{spec.scale}, {spec.licence}")


def _engines() -> Iterator[Check]:
    from engines.build import BACKENDS, open_builder
    from engines.cache import EngineCache, Entry

    for name in BACKENDS:
        builder = open_builder(name)
        try:
            builder.check()
            yield Check(f"engines for {name}", "ok", f"can be built ({builder.version()})")
        except EngineError as exc:
            reason, fix = _apart(str(exc))
            yield Check(f"engines for {name}", "missing", reason, fix)
    cache = EngineCache()
    found = cache.entries()
    whole = [entry for entry in found if isinstance(entry, Entry)]
    size = sum(entry.bytes for entry in whole) / 1e6
    damaged = len(found) - len(whole)
    text = f"{len(whole)} engines, {size:.1f} MB in {cache.folder}"
    fix = "overlay engines --list says why, --clean deletes them"
    if damaged:
        yield Check("engines", "warning", f"{text}; {damaged} damaged", fix)
    else:
        yield Check("engines", "ok", text)


def _apart(message: str) -> tuple[str, str]:
    """Part what is missing from what to do about it; what a library said may hold colons."""
    reason, *fix = re.split(r"[:;] (?=pip install|with a GPU)", message, maxsplit=1)
    return reason, "".join(fix)


def _folders() -> Iterator[Check]:
    path = log_path()
    writable = os.access(path.parent, os.W_OK)
    yield Check("log", "ok" if writable else "warning", str(path))


_PROBES: tuple[Callable[[], Iterator[Check]], ...] = (
    _machine, _packages, _display, _pointer, _opengl, _capture, _upscalers, _models, _engines,
    _folders,
)  # fmt: skip


def _as_json(checks: list[Check]) -> dict[str, Any]:
    return {"version": __version__, "checks": [asdict(check) for check in checks]}


def _as_text(checks: list[Check]) -> str:
    marks = {"ok": "ok     ", "warning": "warning", "missing": "MISSING", "elsewhere": "-      "}
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{marks[check.state]}  {check.name:{width}}  {check.reason}")
        if check.fix:
            lines.append(f"{'':9}{'':{width}}  -> {check.fix}")
    return "\n".join(lines) + "\n"


def _bundle(path: Path, checks: list[Check], config: Path | None, trace: Path | None) -> None:
    """Write the support archive: text only, never pictures.

    Raises:
        SettingsError: it cannot be written.
    """
    files = [("config.toml", config), ("trace.csv", trace or _last_trace())]
    files += [(p.name, p) for p in sorted(log_path().parent.glob("overlay.log*"))]
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("report.json", json.dumps(_as_json(checks), indent=2))
            archive.writestr("report.txt", _as_text(checks))
            archive.writestr("written.txt", time.strftime("%Y-%m-%dT%H:%M:%S%z\n"))
            for name, file in files:
                if file is not None and file.is_file():
                    archive.write(file, name)
    except OSError as exc:
        raise SettingsError(f"cannot write the bundle {path}: {exc.strerror}") from exc


def last_trace_note() -> Path:
    """Give the file that remembers where the last run wrote its trace."""
    return Path(platformdirs.user_state_path("sr-overlay")) / "last-trace"


def _last_trace() -> Path | None:
    try:
        return Path(last_trace_note().read_text(encoding="utf-8").strip())
    except OSError:
        return None
