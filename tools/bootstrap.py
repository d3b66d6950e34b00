"""Make this clone ready to run: `python3 tools/bootstrap.py demo|serve|test|train`.

Uses only the standard library of the system's Python (3.11 or newer). Installs what is missing
and nothing else: Debian packages (as root), `.venv`, and the project with the extras it needs.
A second call that finds everything in place returns at once.
"""

from __future__ import annotations

import argparse
import ctypes
import glob
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "bootstrap.json"
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
PIP_NEEDED = (25, 1)  # the first with --group

#: What each target installs: extras of the project, dependency groups.
EXTRAS: dict[str, tuple[str, ...]] = {
    "demo": ("cpu",),
    "serve": ("cpu", "page", "service"),
    "test": (
        "build",
        "collect",
        "cpu",
        "files",
        "page",
        "plot",
        "ray",
        "service",
        "train",
        "triton",
    ),
    "train": ("collect", "cpu", "plot", "train"),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "demo": (),
    "serve": (),
    "test": ("dev",),
    "train": (),
}


class Stop(Exception):
    """Nothing more can be done here; the message says what to do."""


@dataclass(frozen=True)
class Need:
    """Something from the system: the Debian package that has it, and how to see that it is there.

    Probing the thing, not the package, accepts what was installed in any other way.
    """

    package: str
    present: Callable[[], bool]


def command(package: str, name: str) -> Need:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/games", "/usr/local/games"])
    return Need(package, lambda: shutil.which(name, path=path) is not None)


def library(package: str, name: str) -> Need:
    def present() -> bool:
        try:
            ctypes.CDLL(name)
        except OSError:
            return False
        return True

    return Need(package, present)


def data(package: str, *patterns: str) -> Need:
    return Need(package, lambda: any(glob.glob(pattern) for pattern in patterns))


def module(package: str, name: str) -> Need:
    def present() -> bool:
        importlib.invalidate_caches()
        return importlib.util.find_spec(name) is not None

    return Need(package, present)


PYTHON_NEEDS = (module("python3-venv", "ensurepip"),)
LIBRARY_NEEDS = (
    library("libgl1", "libGL.so.1"),
    library("libegl1", "libEGL.so.1"),
    library("libglib2.0-0", "libglib-2.0.so.0"),  # OpenCV
    library("libxcursor1", "libXcursor.so.1"),  # GLFW, as the next three
    library("libxrandr2", "libXrandr.so.2"),
    library("libxinerama1", "libXinerama.so.1"),
    library("libxi6", "libXi.so.6"),
)
GAME_NEEDS = (
    command("crispy-doom", "crispy-doom"),
    data("freedoom", "/usr/share/games/doom/freedoom1.wad"),
)
#: A display of our own, with OpenGL in software.
DISPLAY_NEEDS = (
    command("xvfb", "Xvfb"),
    command("xauth", "xauth"),
    command("openbox", "openbox"),
    data("libgl1-mesa-dri", "/usr/lib/*/dri/swrast_dri.so", "/usr/lib/*/dri/kms_swrast_dri.so"),
    data("libglx-mesa0", "/usr/lib/*/libGLX_mesa.so.0"),
)
TEST_NEEDS = (
    command("chromium", "chromium"),
    command("minetest", "minetest"),
    command("xdotool", "xdotool"),
)


def needs(target: str) -> list[Need]:
    """List what `target` needs from the system."""
    wanted = [*PYTHON_NEEDS, *LIBRARY_NEEDS]
    if target in ("demo", "test"):
        wanted += GAME_NEEDS
    if target == "test" or (target != "serve" and not os.environ.get("DISPLAY")):
        wanted += DISPLAY_NEEDS
    if target == "test":
        wanted += TEST_NEEDS
    return wanted


def say(text: str) -> None:
    print(f"bootstrap: {text}", flush=True)


def run_quietly(argv: Sequence[str], env: dict[str, str] | None = None) -> str | None:
    """Run a command; None if it worked, else the last lines of what it printed."""
    result = subprocess.run(
        argv,
        env=env,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode == 0:
        return None
    return "\n".join(result.stdout.strip().splitlines()[-6:])


def install_packages(target: str) -> None:
    """Install the Debian packages that are missing.

    Raises:
        Stop: it cannot be done; the message holds the command to run by hand.
    """
    missing = [need for need in needs(target) if not need.present()]
    if not missing:
        return
    names = " ".join(need.package for need in missing)
    if shutil.which("apt-get") is None:
        raise Stop(
            "this is not Debian or Ubuntu (no apt-get), so install what these Debian packages "
            f"hold in your system's way, then try again: {names}"
        )
    by_hand = f"apt-get update && apt-get install --no-install-recommends {names}"
    if os.geteuid() != 0:
        raise Stop(f"Debian packages are missing; run: sudo sh -c '{by_hand}'")
    say(f"installing Debian packages: {names}")
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    options = ["-qq", "-o", "DPkg::Lock::Timeout=300"]
    # A failing update is no reason to stop: one broken foreign source is enough for it.
    update = run_quietly(["apt-get", *options, "update"], env)
    install = run_quietly(
        ["apt-get", *options, "install", "-y", "--no-install-recommends", *names.split()], env
    )
    if install is not None:
        why = "\n".join(part for part in (update, install) if part)
        raise Stop(f"apt-get failed; is the network up? Try by hand: {by_hand}\n{why}")
    still = " ".join(need.package for need in missing if not need.present())
    if still:
        raise Stop(f"installed {still}, yet what is needed from it is not found (PATH? python3?)")


def pip_version() -> tuple[int, ...] | None:
    """Return the version of the environment's pip; None if there is none that works."""
    if not PYTHON.exists():
        return None
    asked = subprocess.run(
        [PYTHON, "-c", "import pip; print(pip.__version__)"],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode != 0:
        return None
    return tuple(int(part) for part in asked.stdout.split(".")[:2] if part.isdigit())


def digest() -> str:
    """Hash all that decides what the environment must hold."""
    summed = hashlib.sha256(sys.version.split()[0].encode())
    for file in (ROOT / "pyproject.toml", CONSTRAINTS, Path(__file__)):
        summed.update(file.read_bytes())
    for package in sorted(ROOT.glob("*/__init__.py")):  # an editable install lists them
        summed.update(package.parent.name.encode())
    return summed.hexdigest()


def up_to_date(target: str) -> bool:
    """Whether the environment was made from these files, for this target or a larger one."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    wanted = {*EXTRAS[target], *GROUPS[target]}
    return stamp["digest"] == digest() and wanted <= set(stamp["holds"])


def install_project(target: str) -> None:
    """Create `.venv` if need be and install the project into it, editable.

    Raises:
        Stop: pip failed; the message holds the end of what it said.
    """
    if up_to_date(target):
        return
    version = pip_version()
    if version is None:
        say(f"creating {VENV.name} with Python {sys.version.split()[0]}")
        failed = run_quietly([sys.executable, "-m", "venv", "--clear", str(VENV)])
        if failed is not None:
            raise Stop(f"cannot create {VENV}:\n{failed}")
        version = pip_version() or (0,)
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    if version < PIP_NEEDED:
        wanted = f"pip>={PIP_NEEDED[0]}.{PIP_NEEDED[1]}"
        failed = run_quietly([*pip, "--upgrade", wanted])
        if failed is not None:
            raise Stop(f"pip cannot fetch {wanted}; is a package index reached?\n{failed}")
    extras = ",".join(EXTRAS[target])
    say(f"installing the project with [{extras}]; the first time takes a few minutes")
    groups = [word for group in GROUPS[target] for word in ("--group", group)]
    failed = run_quietly(
        [*pip, "--constraint", str(CONSTRAINTS), "--editable", f".[{extras}]", *groups]
    )
    if failed is not None:
        raise Stop(f"pip failed; is a package index reached?\n{failed}")
    STAMP.write_text(json.dumps({"digest": digest(), "holds": [*EXTRAS[target], *GROUPS[target]]}))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make this clone ready for a make target.")
    parser.add_argument("target", choices=sorted(EXTRAS))
    target = parser.parse_args(argv).target
    try:
        if not sys.platform.startswith("linux"):
            raise Stop('this is for Linux; elsewhere: pip install -e ".[cpu]" (see README.md)')
        if sys.version_info < (3, 11):
            raise Stop(f"Python 3.11 or newer is needed, {sys.executable} is {sys.version}")
        install_packages(target)
        install_project(target)
    except Stop as stop:
        print(f"bootstrap: {stop}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
