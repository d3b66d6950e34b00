"""A real Triton server for the tests: the one inside the package nvidia-pytriton.

The package needs numpy below 2, so an environment of its own; docs/service-triton.md says how to
make it. OVERLAY_TRITON names its `tritonserver`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

VARIABLE = "OVERLAY_TRITON"
#: Until the server answers; its Python back end starts within seconds.
_START_S = 60.0


def binary() -> Path:
    """Give the program, or skip the test."""
    told = os.environ.get(VARIABLE, "")
    if not told or not Path(told).is_file():
        pytest.skip(f"{VARIABLE} names no tritonserver of nvidia-pytriton: docs/service-triton.md")
    return Path(told)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _environment(program: Path) -> dict[str, str]:
    """Let the stub find its Python's library and packages, and not those of the tests."""
    site = program.parents[3]  # <site>/pytriton/tritonserver/bin/tritonserver
    settings = (site.parents[2] / "pyvenv.cfg").read_text().splitlines()
    (home,) = (line.partition("=")[2].strip() for line in settings if line.startswith("home"))
    libraries = (Path(home).parent / "lib", site / "nvidia_pytriton.libs")
    return {
        "PATH": f"{site.parents[2] / 'bin'}:/usr/bin:/bin",
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "PYTHONPATH": str(site),
        "OMP_NUM_THREADS": "1",
    }


def _backends(program: Path, folder: Path) -> Path:
    """Put the Python back end together as the server wants it."""
    root = program.parents[1]
    python = folder / "python"
    if not python.exists():
        shutil.copytree(root / "backends" / "python", python)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
        shutil.copy(stub, python)
    return folder


class TritonProcess:
    """A server on loopback, of which a test may kill, stop and start again."""

    def __init__(self, program: Path, repository: Path, folder: Path, port: int = 0) -> None:
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.log = folder / "triton.log"
        self._prefix = f"overlay_test_{os.getpid()}_{self.port}"
        self._environment = _environment(program)
        self._command = [
            str(program), f"--model-repository={repository}",
            f"--backend-directory={_backends(program, folder / 'backends')}",
            "--model-control-mode=explicit", "--allow-http=false", "--allow-metrics=false",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            "--grpc-address=127.0.0.1", f"--grpc-port={self.port}", "--exit-timeout-secs=5",
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + _START_S
        client = triton.InferenceServerClient(self.address)
        try:
            while True:
                try:
                    if client.is_server_ready(client_timeout=1):
                        return
                except InferenceServerException:
                    pass
                if self._process.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"Triton did not start:\n{self.log.read_text()[-3000:]}")
                time.sleep(0.1)
        finally:
            client.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and its back ends."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
        for left in Path("/dev/shm").glob(f"{self._prefix}*"):  # a killed server's own
            left.unlink()
