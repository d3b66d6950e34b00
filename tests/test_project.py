"""The project around the code: packaging, import cost, and what its papers promise."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import overlay
from overlay.settings import Configuration

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = ("torch", "cv2", "glfw", "OpenGL", "openvino", "onnx", "matplotlib", "mss", "xcffib")


def loaded_by(statement: str) -> set[str]:
    """Give the top-level modules that a fresh interpreter has after `statement`."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps([*sys.modules]))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr
    return {name.partition(".")[0] for name in json.loads(result.stdout)}


@pytest.mark.parametrize("name", ["overlay", "overlay.cli", "overlay.settings", "engines"])
def test_importing_pulls_in_nothing_heavy(name: str) -> None:
    assert loaded_by(f"import {name}").isdisjoint(HEAVY)


def test_the_check_for_heavy_modules_can_fail() -> None:
    assert "cv2" in loaded_by("import cv2")


def test_importing_the_package_alone_loads_no_numpy() -> None:
    assert "numpy" not in loaded_by("import overlay")


def tracked() -> list[Path]:
    """List the files that git knows; without git (a source archive) there is nothing to check."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


#: Paths of the machine something was written on.
MACHINE_PATHS = re.compile(r"/(?:root|home/\w+)/|[A-Z]:\\Users\\|" + re.escape(f"{ROOT}/"), re.A)


def test_no_tracked_file_names_a_path_of_some_machine() -> None:
    found = []
    for file in tracked():
        data = file.read_bytes()
        if b"\0" in data[:8192] or file == Path(__file__):
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if MACHINE_PATHS.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line", ["cd /root/x", "/home/ann/game.png", r"C:\Users\Ann\x", f"{ROOT}/x"]
)
def test_machine_paths_are_recognised(line: str) -> None:
    assert MACHINE_PATHS.search(line)


def test_no_tracked_file_is_large() -> None:
    # `test_shipped_files_stay_small` watches over the weights together.
    others = [file for file in tracked() if file.parent.name != "weights"]
    assert not [file for file in others if file.stat().st_size > 1 << 20]


# --- packaging --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Build the wheel from the tracked files alone and list what is in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for file in tracked():
        packed = {"weights", "samples"} & {*file.parts}
        if packed or file.suffix in {".py", ".toml", ".md", ".glsl"}:
            copy = source / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    for name in ("LICENSE", "overlay/py.typed"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    built = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps"),
            *("--no-build-isolation", "--no-index", "-w", str(folder), str(source)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file).namelist()


def test_the_wheel_has_shaders_weights_and_types(wheel: list[str]) -> None:
    shipped = {
        str(file.relative_to(ROOT))
        for file in tracked()
        if file.suffix == ".glsl"
        or file.parent in (ROOT / "engines" / "weights", ROOT / "engines" / "samples")
    }
    assert shipped
    assert any(name.endswith(".glsl") for name in shipped)
    assert any(name.startswith("engines/weights/") for name in shipped)
    assert any(name.startswith("engines/samples/") for name in shipped)
    assert (shipped | {"overlay/py.typed"}) <= set(wheel)


def test_the_wheel_has_every_module_and_no_test(wheel: list[str]) -> None:
    modules = {
        str(file.relative_to(ROOT))
        for file in tracked()
        if file.suffix == ".py"
        and file.relative_to(ROOT).parts[0]
        in {"overlay", "engines", "training", "evaluation", "service"}
    }
    assert modules <= set(wheel)
    assert not [name for name in wheel if name.startswith(("tests/", "tools/"))]


def test_the_wheel_has_the_licences(wheel: list[str]) -> None:
    assert {"LICENSE", "THIRD_PARTY.md"} <= {
        name.rpartition("/")[2] for name in wheel if ".dist-info/" in name
    }


EXTRAS = set(PYPROJECT["project"]["optional-dependencies"])
NAMED_EXTRA = re.compile(r"sr-overlay\[([\w,]+)\]|pip install (?:-e )?\S?\.\[([\w,]+)\]")


def named_extras(text: str) -> set[str]:
    groups = [first or second for first, second in NAMED_EXTRA.findall(text)]
    return {extra for group in groups for extra in group.split(",")}


def test_extras_named_anywhere_exist() -> None:
    named: dict[str, set[str]] = {}
    for file in tracked():
        if file.suffix in {".py", ".md"} and file != Path(__file__):
            for extra in named_extras(file.read_text()):
                named.setdefault(extra, set()).add(str(file.relative_to(ROOT)))
    assert "cpu" in named
    assert {extra: files for extra, files in named.items() if extra not in EXTRAS} == {}


def test_extras_are_recognised() -> None:
    assert named_extras("pip install 'sr-overlay[cpu,plot]'") == {"cpu", "plot"}
    assert named_extras('pip install -e ".[train]"') == {"train"}


def test_pinned_versions_belong_to_declared_dependencies() -> None:
    project = PYPROJECT["project"]
    declared = [*project["dependencies"], *PYPROJECT["dependency-groups"]["dev"]]
    for extra in project["optional-dependencies"].values():
        declared += extra
    names = {re.split(r"[\[<>=;\s]", line)[0].lower() for line in declared}
    lines = (ROOT / "tools" / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if "==" in line and line[0] != "#"}
    assert pinned <= names
    assert "torch" in pinned


# --- bootstrap and checks ---------------------------------------------------------------------


def script(name: str) -> ModuleType:
    """Load a script of the project that is in no package."""
    spec = importlib.util.spec_from_file_location(f"project_{Path(name).stem}", ROOT / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bootstrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    module = script("tools/bootstrap.py")
    monkeypatch.setattr(module, "STAMP", tmp_path / "bootstrap.json")
    return module


def names_of(needs: list[Any]) -> set[str]:
    return {need.package for need in needs}


def test_bootstrap_brings_a_display_only_where_there_is_none(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    assert "xvfb" not in names_of(bootstrap.needs("demo"))
    assert "xvfb" in names_of(bootstrap.needs("test"))
    monkeypatch.delenv("DISPLAY")
    assert {"xvfb", "openbox", "crispy-doom", "freedoom"} <= names_of(bootstrap.needs("demo"))


def test_bootstrap_probes_see_what_is_there_and_what_is_not(bootstrap: ModuleType) -> None:
    assert bootstrap.module("x", "json").present()
    assert not bootstrap.module("x", "no_such_module_here").present()
    assert bootstrap.command("x", "sh").present()
    assert not bootstrap.command("x", "no-such-program-here").present()
    assert not bootstrap.library("x", "libnosuchthing.so.9").present()
    assert not bootstrap.data("x", "/no/such/*/file").present()


@pytest.mark.parametrize(
    ("apt", "user", "message"),
    [
        (None, 0, "not Debian.*then try again: nothing-like-it"),
        ("/usr/bin/apt-get", 1000, "run: sudo sh -c 'apt-get .*install.* nothing-like-it'"),
    ],
)
def test_bootstrap_says_what_to_do_by_hand(
    bootstrap: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    apt: str | None,
    user: int,
    message: str,
) -> None:
    missing = bootstrap.Need("nothing-like-it", lambda: False)
    monkeypatch.setattr(bootstrap, "needs", lambda _target: [missing])
    monkeypatch.setattr(shutil, "which", lambda *_args, **_kwargs: apt)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(bootstrap.Stop, match=message):
        bootstrap.install_packages("demo")


def test_bootstrap_is_done_when_nothing_changed(bootstrap: ModuleType) -> None:
    assert not bootstrap.up_to_date("demo")
    bootstrap.STAMP.write_text(json.dumps({"digest": bootstrap.digest(), "holds": ["cpu"]}))
    assert bootstrap.up_to_date("demo")
    assert not bootstrap.up_to_date("test"), "it holds less than the tests need"
    bootstrap.STAMP.write_text(json.dumps({"digest": "of other files", "holds": ["cpu"]}))
    assert not bootstrap.up_to_date("demo")
    bootstrap.STAMP.write_text("damaged")
    assert not bootstrap.up_to_date("demo")


def test_check_runs_all_steps_and_names_what_failed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    check = script("check.py")
    good, bad = ["pip", "--version"], ["no_such_module_here"]
    monkeypatch.setattr(check, "steps", lambda *_: {"one": bad, "two": good, "three": bad})
    assert check.main([]) == 1
    out = capfd.readouterr().out
    assert "-- two: ok" in out
    assert re.search(r"^check: FAILED after \d+ s: one, three$", out, re.M)
    monkeypatch.setattr(check, "steps", lambda *_: {"two": good})
    assert check.main([]) == 0
    assert re.search(r"^check: all passed in \d+ s$", capfd.readouterr().out, re.M)


@pytest.mark.parametrize(("ci", "strict"), [("true", "1"), ("", "unset")])
def test_check_is_strict_in_ci(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ci: str, strict: str
) -> None:
    check = script("check.py")
    told = tmp_path / "told"
    (tmp_path / "tell.py").write_text(
        "import os\n"
        f"open({str(told)!r}, 'w').write(os.environ.get('OVERLAY_TEST_STRICT', 'unset'))\n"
    )
    monkeypatch.setattr(check, "steps", lambda *_: {"tell": ["tell"]})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    monkeypatch.delenv("OVERLAY_TEST_STRICT", raising=False)
    assert check.main([]) == 0
    assert told.read_text() == strict


# --- papers -----------------------------------------------------------------------------------


def test_changelog_has_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert overlay.__version__ in headings


def test_make_targets_in_the_papers_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for paper in ("README.md", "CONTRIBUTING.md", "docs/develop.md"):
        used = re.findall(r"(?:`|^)make ([\w -]+)", (ROOT / paper).read_text(), re.M)
        assert {target for line in used for target in line.split()} <= targets, paper
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:45])
    assert "make demo" in first_screen
    assert "make test" in first_screen


def test_links_in_the_papers_lead_somewhere() -> None:
    dead = []
    for paper in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)", paper.read_text()):
            if "://" not in link and not (paper.parent / link).exists():
                dead.append(f"{paper.relative_to(ROOT)}: {link}")
    assert not dead


def test_files_named_in_the_papers_exist() -> None:
    gone = []
    for paper in (ROOT / "docs" / "develop.md", ROOT / "CONTRIBUTING.md", ROOT / "THIRD_PARTY.md"):
        for name in re.findall(
            r"`((?:overlay|engines|training|tests|tools|docs)/[\w./]*)`", paper.read_text()
        ):
            if not (ROOT / name).exists():
                gone.append(f"{paper.name}: {name}")
    assert not gone


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "make test" in script
    assert "set -euo pipefail" in script


def test_commands_in_the_readme_are_understood() -> None:
    """Every `overlay SUBCOMMAND --option` in README must parse (shown by --help)."""
    text = (ROOT / "README.md").read_text()
    used: dict[str, set[str]] = {}
    for line in re.findall(r"^\s*overlay ([a-z].*)$", text, re.M):
        words = line.split("#")[0].split()
        subcommand = " ".join(words[: 2 if words[0] == "trace" else 1])
        used.setdefault(subcommand, set()).update(w for w in words if w.startswith("--"))
    assert used
    for subcommand, options in used.items():
        helped = subprocess.run(
            [sys.executable, "-m", "overlay", *subcommand.split(), "--help"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert helped.returncode == 0, subcommand
        unknown = {name for name in options if name not in helped.stdout}
        assert not unknown, subcommand


def test_the_configuration_in_the_readme_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    file = tmp_path / "overlay.toml"
    file.write_text(text)
    found = Configuration.load(file, argparse.Namespace())
    assert found.settings("Freedoom").present == "window"
    assert found.settings("Minetest").present == "over"
