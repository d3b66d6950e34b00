"""The Dockerfiles, by hadolint and by rules of our own: no image is built here."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.deploy.files import (
    DEPLOY,
    DOCKERFILES,
    PINNED,
    ROOT,
    health_of,
    images,
    instructions,
    last,
    program,
    stages,
)

EVERY_IMAGE = [(file, name) for file in DOCKERFILES for name in images(file)]


def lint(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("hadolint"), "--no-color", "--failure-threshold", "info", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    result = lint(file)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("FROM debian:latest", "DL3007"),
        ("FROM debian", "DL3006"),
        ("FROM debian:12\nRUN pip install flask", "DL3042"),
        ("FROM debian:12\nADD x.txt /x.txt", "DL3020"),
        ("FROM debian:12\nUSER root", "DL3002"),
    ],
)
def test_hadolint_finds_what_is_wrong(line: str, rule: str, tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(f"{line}\n")
    result = lint(file)
    assert result.returncode != 0
    assert rule in result.stdout


def test_the_images_are_those_of_compose() -> None:
    assert images(DOCKERFILES[0]) == ["api", "api-gpu", "page", "models"]
    assert images(DOCKERFILES[1]) == [""]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_bases_are_pinned(file: Path) -> None:
    known = stages(file)
    for word, rest in instructions(file):
        base = rest.partition(" AS ")[0]
        if word == "FROM" and base not in known:
            assert PINNED.fullmatch(base), base


@pytest.mark.parametrize("base", ["debian", "debian:latest", "python:3", "x:stable", "p:3-slim"])
def test_moving_tags_are_not_pinned(base: str) -> None:
    assert not PINNED.fullmatch(base)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_nothing_comes_from_an_address(file: Path) -> None:
    for word, rest in instructions(file):
        assert word != "ADD"
        if word == "RUN":
            assert not re.search(r"https?://|\b(curl|wget|git)\b", rest), rest


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_packages_are_pinned_and_not_kept(file: Path) -> None:
    """By version, or by the project's constraints; without pip's cache."""
    for word, rest in instructions(file):
        for call in re.findall(r"pip (?:install|wheel) [^&]+", rest) if word == "RUN" else ():
            assert "--no-cache-dir" in call
            named = [part for part in call.split()[2:] if re.match(r'"?[a-z][\w\[\]-]*', part)]
            exact = all("==" in part for part in named)
            assert exact or "--constraint /constraints.txt" in call or "--no-deps" in call, call


def test_extras_of_the_images_exist() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = DOCKERFILES[0].read_text()
    named = {one for group in re.findall(r"whl\)\[([\w,]+)\]", text) for one in group.split(",")}
    assert {"service", "page"} <= named
    assert named <= set(known["optional-dependencies"])


@pytest.mark.parametrize(("file", "stage"), EVERY_IMAGE)
def test_images_run_as_nobody_of_the_host(file: Path, stage: str) -> None:
    assert last(file, stage, "USER") == "10001:10001"


@pytest.mark.parametrize(("file", "stage"), EVERY_IMAGE)
def test_images_tell_their_health(file: Path, stage: str) -> None:
    check = health_of(file, stage)
    assert bool(check) == (stage != "models")
    assert not check or check[:2] == ["python", "/opt/healthcheck.py"]


@pytest.mark.parametrize(("file", "stage"), EVERY_IMAGE)
def test_images_have_no_compiler_and_no_sources(file: Path, stage: str) -> None:
    """What is built is built in another stage."""
    for word, rest in stages(file)[stage]:
        if word == "COPY":
            allowed = ("--from=libraries", "--chmod=0444 deploy/", "--chmod=0555 docs/results")
            assert rest.startswith(allowed), rest
        assert word != "RUN" or "pip " not in rest


def test_the_context_holds_what_is_copied_and_no_secret() -> None:
    rules = (ROOT / ".dockerignore").read_text().split()
    taken = {rule.removeprefix("!").removesuffix("/**") for rule in rules if rule.startswith("!")}
    assert "**" in rules
    assert not any(".env" in one for one in taken)
    for file in DOCKERFILES:
        for word, rest in instructions(file):
            if word == "COPY" and "--from=" not in rest:
                for source in re.sub(r"--chmod=\d+ ", "", rest).split()[:-1]:
                    assert source.rstrip("/") in taken, source
    assert all((ROOT / one).exists() for one in taken)


def test_the_wheel_is_built_from_all_packages() -> None:
    copied = {
        rest.split("/")[0] for word, rest in stages(DOCKERFILES[0])["wheel"] if word == "COPY"
    }
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {one.rstrip("*") for one in found["packages"]["find"]["include"]} <= copied


def test_no_secret_is_committed() -> None:
    assert "/deploy/.env" in (ROOT / ".gitignore").read_text().splitlines()
    assert not re.search(r"^[A-Z_]+=.", (DEPLOY / ".env.example").read_text(), re.M)
