"""Readers of the files in deploy/."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from service.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = (DEPLOY / "Dockerfile", DEPLOY / "mlflow.Dockerfile")
COMPOSE = DEPLOY / "compose.yaml"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
#: With an exact version, and never a moving one.
PINNED = re.compile(r"[\w./-]+:(?!latest)[\w.-]*\d+\.\d+[\w.-]*|[\w./-]+:RELEASE\.[\dTZ-]+")


def program(name: str) -> str:
    """Find a program that came as a wheel, beside Python or in the path."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is missing: pip install --group dev"
    return found


def compose(*arguments: str, secrets: Path | None, file: Path = COMPOSE) -> tuple[int, str, str]:
    """Run docker-compose, without an engine and with these secrets alone."""
    env = {"PATH": os.environ["PATH"], "HOME": str(file.parent)}
    command = [program("docker-compose"), "--file", str(file)]
    command += ["--env-file", str(secrets) if secrets else os.devnull, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def services(profile: str, secrets: Path) -> dict[str, dict[str, Any]]:
    """Give a profile's services as Compose understands them."""
    code, out, err = compose("--profile", profile, "config", "--format", "json", secrets=secrets)
    assert code == 0, err
    found: dict[str, dict[str, Any]] = json.loads(out)["services"]
    return found


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


def settings_of(environ: dict[str, str]) -> Settings:
    """Read a container's variables as the service does."""
    assert all(name.startswith(PREFIX) for name in environ)
    return Settings.load(environ=environ)


Instruction = tuple[str, str]


def instructions(file: Path) -> list[Instruction]:
    """Give a Dockerfile's instructions, (`RUN`, the rest), lines joined, comments left out."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    parts = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(word.upper(), rest) for word, rest in parts]


def stages(file: Path) -> dict[str, list[Instruction]]:
    """Give each stage's instructions; the last one without a name is ""."""
    found: dict[str, list[Instruction]] = {}
    for word, rest in instructions(file):
        if word == "FROM":
            now = found.setdefault(rest.partition(" AS ")[2], [])
        now.append((word, rest))
    return found


def last(file: Path, stage: str, word: str) -> str | None:
    """Give what an instruction last said in a stage, or in those it is built on."""
    known = stages(file)
    said = [rest for each, rest in known[stage] if each == word]
    if said:
        return said[-1]
    base = known[stage][0][1].partition(" AS ")[0]
    return last(file, base, word) if base in known else None


def images(file: Path) -> list[str]:
    """List the stages that become images: nothing is built on them or copied from them."""
    text = file.read_text()
    return [
        name
        for name in stages(file)
        if not name or not re.search(rf"^FROM {name}\b|--from={name}\b", text, re.M)
    ]


def command_of(file: Path, stage: str) -> list[str]:
    said = last(file, stage, "CMD")
    assert said is not None
    command: list[str] = json.loads(said)
    return command


def health_of(file: Path, stage: str) -> list[str]:
    """Give a stage's health check, [] for none."""
    said = last(file, stage, "HEALTHCHECK")
    assert said is not None, f"{stage} says nothing of its health"
    if said == "NONE":
        return []
    check: list[str] = json.loads(said.partition(" CMD ")[2])
    return check
