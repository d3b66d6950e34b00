"""What the images start, started here as they do, and asked as their health checks do.

Only addresses, ports and folders are changed; images themselves are not built.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, DOCKERFILES, ROOT, command_of, documents, health_of
from tests.games import dies_with_parent, stop_group

KEY = "0123456789abcdef"
START_S = 90


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def here(command: list[str], port: int) -> list[str]:
    """Give a command of an image as it is run outside."""
    names = {
        "python": sys.executable,
        "0.0.0.0": "127.0.0.1",
        "8000": str(port),
        "8501": str(port),
        "/opt/healthcheck.py": str(DEPLOY / "healthcheck.py"),
        "/opt/results": str(ROOT / "docs" / "results"),
        "http://overlay-api:8000": "http://127.0.0.1:1",  # asked only when a browser comes
    }
    moved = [names.get(word, word) for word in command]
    return [re.sub(r"^(http://127\.0\.0\.1):8\d\d\d", rf"\1:{port}", word) for word in moved]


@contextmanager
def started(command: list[str], home: Path, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a service with the little that a container has."""
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT), **environ}
    env["OVERLAY_CACHE"] = str(home / "cache")
    log = home / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            dies_with_parent(command), env=env, cwd=home, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        stop_group(process)


def healthy(check: list[str], process: subprocess.Popen[bytes], home: Path) -> bool:
    """Ask as the engine does, until it is well, or the service has ended."""
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        if subprocess.run(check, capture_output=True, check=False).returncode == 0:
            return True
        time.sleep(0.5)
    sys.stdout.write((home / "log").read_text(errors="replace")[-3000:])
    return False


@pytest.mark.skipif(find_spec("fastapi") is None, reason="needs the extra service")
def test_the_api_starts_and_is_healthy(tmp_path: Path) -> None:
    port = free_port()
    command = here(command_of(DOCKERFILES[0], "api"), port)
    check = here(health_of(DOCKERFILES[0], "api"), port)
    environ = {"OVERLAY_SERVICE_API_KEYS": KEY, "OVERLAY_SERVICE_THREADS": "1"}
    assert subprocess.run(check, capture_output=True, check=False).returncode == 1
    with started(command, tmp_path, **environ) as process:
        assert healthy(check, process, tmp_path)
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/upscale/example", method="POST", headers={"X-API-Key": KEY}
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert answer.headers["Content-Type"] == "image/png"
        process.terminate()
        assert process.wait(30) in (0, -signal.SIGTERM)
        assert "Finished server process" in (tmp_path / "log").read_text()  # not merely killed


def test_the_api_s_images_start_the_same() -> None:
    assert command_of(DOCKERFILES[0], "api-gpu") == command_of(DOCKERFILES[0], "api")
    (pod,) = (
        one["spec"]["template"]["spec"]
        for one in documents(DEPLOY / "kubernetes" / "service.yaml")
        if one["kind"] == "Deployment"
    )
    api = next(one for one in pod["containers"] if one["name"] == "api")
    assert api["command"][:-1] == command_of(DOCKERFILES[0], "api")[:-1]  # then the port


@pytest.mark.skipif(find_spec("streamlit") is None, reason="needs the extra page")
def test_the_page_starts_and_is_healthy(tmp_path: Path) -> None:
    port = free_port()
    command = here(command_of(DOCKERFILES[0], "page"), port)
    check = here(health_of(DOCKERFILES[0], "page"), port)
    with started(command, tmp_path, OVERLAY_API_KEY=KEY) as process:
        assert healthy(check, process, tmp_path)


def test_the_repository_s_command_is_understood() -> None:
    """It is written by a test of its own; here only its options are read."""
    from service.repository import _parser

    said = _parser().parse_args(command_of(DOCKERFILES[0], "models")[3:])
    assert said.models.split(",") == ["default-x2", "default-x3", "default-x4"]
    assert str(said.out) == "/models"


FAKE = """#!/bin/sh
echo "$@"
echo "password ${MLFLOW_ADMIN_PASSWORD-taken away}"
ls -l "$MLFLOW_AUTH_CONFIG_PATH" | cut -c1-10
cat "$MLFLOW_AUTH_CONFIG_PATH"
"""
MLFLOW = {
    "MLFLOW_ADMIN_PASSWORD": "of-16-characters%",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "signs",
    "MLFLOW_BACKEND_STORE_URI": "sqlite:////tmp/x.db",
    "MLFLOW_ARTIFACTS_DESTINATION": "/tmp/x",
}


def start_mlflow(tmp_path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the image's command with a program in MLflow's place that tells what it got."""
    (tmp_path / "mlflow").write_text(FAKE)
    (tmp_path / "mlflow").chmod(0o755)
    command = here(command_of(DOCKERFILES[1], ""), 0)
    assert command[1] == "/opt/mlflow_start.py"
    command[1] = str(DEPLOY / "mlflow_start.py")
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TMPDIR": str(tmp_path), **environ}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_mlflow_is_started_with_accounts(tmp_path: Path) -> None:
    told = start_mlflow(tmp_path, **MLFLOW)
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert lines[0] == "server --app-name basic-auth --host 127.0.0.1 --port 5000"
    assert lines[1] == "password taken away"
    assert lines[2] == "-rw-------"
    assert "admin_password = of-16-characters%%" in lines
    assert "database_uri = sqlite:////tmp/x.db" in lines


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, "") for name in MLFLOW]
    + [("MLFLOW_ADMIN_PASSWORD", "short"), ("MLFLOW_ADMIN_PASSWORD", "two lines\nadmin = x")],
)
def test_mlflow_is_not_started_without_secrets(name: str, value: str, tmp_path: Path) -> None:
    told = start_mlflow(tmp_path, **{**MLFLOW, name: value})
    assert told.returncode == 2
    assert name in told.stderr
    assert not told.stdout


def test_a_health_check_says_what_is_wrong() -> None:
    check = [sys.executable, str(DEPLOY / "healthcheck.py"), f"http://127.0.0.1:{free_port()}/x"]
    told = subprocess.run(check, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "refused" in told.stderr
    assert subprocess.run(check[:2], capture_output=True, check=False).returncode == 2
