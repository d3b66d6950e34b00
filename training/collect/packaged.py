"""Running a packaged game: its display, its preloaded library, its end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from training.collect.runner import CollectError

TIMEOUT_S = 400


@contextmanager
def private_display(width: int = 1920, height: int = 1080) -> Iterator[str]:
    """Run Xvfb on a free display for the length of the block and give its name (`:N`).

    Raises:
        CollectError: it is not installed, or did not start.
    """
    read_end, write_end = os.pipe()
    command = ["Xvfb", "-displayfd", str(write_end), "-screen", "0", f"{width}x{height}x24"]
    try:
        server = subprocess.Popen(
            [*command, "-nolisten", "tcp"],
            pass_fds=(write_end,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C must not end it before the game
        )
    except FileNotFoundError:
        os.close(read_end)
        raise CollectError("Xvfb is not installed: apt install xvfb") from None
    finally:
        os.close(write_end)
    try:
        with os.fdopen(read_end) as answer:
            number = answer.readline().strip()
        if not number:
            raise CollectError("Xvfb did not start; is there room in /tmp?")
        yield f":{number}"
    finally:
        server.terminate()
        server.wait(10)


def run_program(command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """Run a game until it quits by itself.

    Args:
        log: what it says goes there.
    Raises:
        CollectError: it did not end within `TIMEOUT_S`, or failed; the message has its last words.
    """
    try:
        with open(log, "wb") as file:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=TIMEOUT_S,
                check=False,
            )
        ended = f"ended with status {done.returncode}" if done.returncode else ""
    except FileNotFoundError:
        raise CollectError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        ended = f"did not end within {TIMEOUT_S} s"
    if ended:
        words = " | ".join(log.read_text(errors="replace").split("\n")[-4:])
        raise CollectError(f"{Path(command[0]).name} {ended}: {words.strip()[-300:]}")


def build_library(source: Path, folder: Path) -> Path:
    """Compile a C file into a library to preload.

    Raises:
        CollectError: there is no compiler, or it failed.
    """
    library = folder / f"{source.stem}.so"
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise CollectError("there is no C compiler: apt install gcc libc6-dev") from None
    except subprocess.CalledProcessError as exc:
        raise CollectError(f"cannot compile {source}: {exc.stderr.strip()[-300:]}") from exc
    return library


def debian_versions(*packages: str) -> dict[str, str]:
    """Give the versions of Debian packages; those that are not installed are left out."""
    try:
        asked = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *packages],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return {}
    lines = (line.split() for line in asked.stdout.splitlines())
    return {words[0]: words[1] for words in lines if len(words) == 2}
