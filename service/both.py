"""Service and page together: `python -m service.both`, which `make serve` calls.

Two processes of their own, so that neither slows the other's event loop; they end together.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType

#: Seconds for the service to answer, and for a process to end when it is asked to.
_START_S = 120.0
_END_S = 15.0


class _Ended(Exception):
    """It is time to end; holds the exit code."""

    def __init__(self, code: int) -> None:
        self.code = code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both until Ctrl-C, SIGTERM, or the end of either; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m service.both", description="The service and its page, on this machine."
    )
    parser.add_argument("--port", type=int, default=8000, help="of the service (default: 8000)")
    parser.add_argument("--page-port", type=int, default=8501, help="default: 8501")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _terminated)
    url = f"http://127.0.0.1:{options.port}"
    try:
        with ExitStack() as stack:
            api = _start(stack, "service.api", "--port", options.port)
            _wait_for(api, url)
            page = _start(stack, "service.ui", "--api", url, "--port", options.page_port)
            _wait_for_either(api, page)
    except _Ended as end:
        return end.code
    return 1


def _terminated(number: int, frame: FrameType | None) -> None:
    raise _Ended(128 + number)


def _start(stack: ExitStack, module: str, *options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", module, *map(str, options)]
    # Ctrl-C is for this process alone, which ends the others in order and without a traceback.
    process = subprocess.Popen(command, start_new_session=True)
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, gently if it can be."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], url: str) -> None:
    """Wait until the service answers.

    Raises:
        _Ended: it ended before, or does not answer.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise _Ended(process.returncode or 1)
        try:
            with opener.open(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    sys.stderr.write(f"overlay: error: the service does not answer at {url}\n")
    raise _Ended(1)


def _wait_for_either(*processes: subprocess.Popen[bytes]) -> None:
    """Wait until one of them ends.

    Raises:
        _Ended: one did, with its exit code.
    """
    while True:
        for process in processes:
            if process.poll() is not None:
                raise _Ended(process.returncode or 1)
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
