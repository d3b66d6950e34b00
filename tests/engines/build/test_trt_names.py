"""Every name of TensorRT's that our code uses exists in the real bindings, used as declared.

Full TensorRT cannot be installed here, but its Python bindings can, and load with a library of
nine empty functions in place of TensorRT. `pybind11-stubgen` then writes down what they declare,
and mypy checks our modules against that: for TensorRT 10 and 11, and for TensorRT-RTX as it is
installed. Nothing of NVIDIA's is kept.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

from tests.games import require, strict

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="makes libraries for Linux")

ROOT = Path(__file__).resolve().parents[3]
LIBRARIES = [
    pytest.param("10.16.1.11", marks=pytest.mark.network),
    pytest.param("11.4.0.106", marks=pytest.mark.network),
    "rtx",
]
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
CONFIG = """
[mypy]
strict = true
mypy_path = {stubs}
python_version = 3.11
cache_dir = {cache}
warn_unused_ignores = false
[mypy-tensorrt.*,tensorrt_rtx.*]
ignore_errors = true
[mypy-onnx.*,google.*,cuda.*]
follow_imports = skip
ignore_missing_imports = true
"""


def unavailable(reason: str) -> NoReturn:
    """Skip; under CI, fail."""
    if strict():
        pytest.fail(reason)
    pytest.skip(reason)


def run(command: list[str], **more: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env={**os.environ, **more}
    )
    if done.returncode != 0:
        unavailable(f"{command[:4]} failed: {done.stdout[-200:]}{done.stderr[-300:]}")
    return done.stdout


# --- what the bindings declare ------------------------------------------------------------------


def empty_libraries(folder: Path, major: str) -> None:
    """Write libraries that the bindings can be loaded with, and that do nothing."""
    source = folder / "empty.c"
    source.write_text("".join(f"void* {name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = folder / f"lib{name}.so.{major}"
        run([require("gcc", "gcc"), "-shared", "-fPIC", "-o", str(library), str(source)])


def repaired(stub: str) -> str:
    """Make the generated stub Python: parameters may be called `in`, `bool` is a constant."""
    lines = [line for line in stub.splitlines() if not line.startswith("bool: ")]
    for _ in range(20):
        wrong = syntax_error("\n".join(lines))
        if wrong == 0:
            return "\n".join(lines)
        line = re.sub(r"^(\s*def \w+)\(.*:$", r"\1(*args, **names):", lines[wrong - 1])
        lines[wrong - 1] = line
    pytest.fail(f"cannot repair the stub at {line!r}")


def syntax_error(source: str) -> int:
    """Give the line of the first syntax error, 0 if there is none."""
    try:
        ast.parse(source)
    except SyntaxError as exc:
        return exc.lineno or 1
    return 0


def declarations(package: str, module: str, folder: Path, **environment: str) -> str:
    """Give the stub of one module of the bindings."""
    command = [sys.executable, "-m", "pybind11_stubgen", package, "-o", str(folder)]
    run([*command, "--ignore-all-errors"], **environment)
    return repaired((folder / package / f"{module}.pyi").read_text())


@dataclass
class Bindings:
    """A library as mypy sees it.

    Attributes:
        folder: to work in.
        stubs: on mypy's path.
        modules: files of ours that use the library, without ending.
    """

    folder: Path
    stubs: Path
    modules: tuple[str, ...]

    def names(self) -> set[str]:
        """List all that the library declares."""
        stub = max((self.stubs.glob("*/__init__.pyi")), key=lambda file: file.stat().st_size)
        found = re.findall(r"^\s*(?:def (\w+)|class (\w+)|(\w+): )", stub.read_text(), re.MULTILINE)
        return {name for names in found for name in names if name}

    def write(self, name: str, content: str) -> None:
        (self.stubs / name).mkdir(parents=True)
        (self.stubs / name / "__init__.pyi").write_text(content)

    def errors(self, change: Callable[[str, str], str] = lambda name, source: source) -> list[str]:
        """Check our modules, each changed, and give mypy's messages about them."""
        source = self.folder / "source"
        shutil.rmtree(source, ignore_errors=True)
        for package in ("engines", "overlay"):
            shutil.copytree(
                ROOT / package, source / package, ignore=shutil.ignore_patterns("weights", "*.pyc")
            )
        for module in self.modules:
            file = source / f"{module}.py"
            file.write_text(change(module, file.read_text()))
        config = self.folder / "mypy.ini"
        config.write_text(CONFIG.format(stubs=self.stubs, cache=self.folder / "cache"))
        command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--no-pretty"]
        for module in self.modules:
            command += ["-m", module.replace("/", ".")]
        done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=100)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        ours = re.compile(rf"({'|'.join(self.modules)})\.py:\d+: error: ")
        return [line for line in done.stdout.splitlines() if ours.match(line)]


def modules_of(library: str) -> tuple[str, ...]:
    """Name the files of ours that use a library: to build engines, and to show what they make."""
    build, infer = Path("engines/build"), Path("overlay/infer")
    files = (build / "_trt", build / library, infer / "_trt_program", infer / library)
    return tuple(file.as_posix() for file in files)


@pytest.fixture(scope="module", params=LIBRARIES)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    """The bindings of each library in turn."""
    if find_spec("pybind11_stubgen") is None:
        unavailable("pybind11-stubgen is not installed")
    folder = tmp_path_factory.mktemp(f"trt-{request.param}")
    if request.param == "rtx":
        if find_spec("tensorrt_rtx") is None:
            unavailable("tensorrt-rtx-cu13 is not installed")
        found = Bindings(folder, folder / "stubs", modules_of("tensorrt_rtx"))
        stub = declarations("tensorrt_rtx_bindings", "tensorrt_rtx", folder / "out")
        found.write("tensorrt_rtx", stub)
        found.write("tensorrt", "from tensorrt_rtx import *\n")
        return found
    packages, libraries = folder / "packages", folder / "libraries"
    libraries.mkdir()
    empty_libraries(libraries, request.param.split(".")[0])
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    requirement = f"tensorrt-cu13-bindings=={request.param}"
    run([*install, "--only-binary=:all:", "--target", str(packages), requirement])
    found = Bindings(folder, folder / "stubs", modules_of("tensorrt"))
    environment = {"LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(packages)}
    found.write(
        "tensorrt", declarations("tensorrt_bindings", "tensorrt", folder / "out", **environment)
    )
    return found


# --- the checks ---------------------------------------------------------------------------------


def test_every_name_we_use_is_in_the_bindings(bindings: Bindings) -> None:
    assert bindings.errors() == []


@pytest.mark.parametrize(
    "name", ["build_serialized_network", "step_complete", "STRONGLY_TYPED", "ILogger", "OnnxParser"]
)
def test_one_renamed_name_is_noticed(bindings: Bindings, name: str) -> None:
    """As if TensorRT had another name for it, in a call, an override or an import."""
    assert bindings.errors(lambda module, source: re.sub(rf"\b{name}\b", "other", source))


@dataclass(frozen=True)
class Use:
    """An attribute in our source: `name` ends at byte `end` of line `last`."""

    module: str
    first: int
    last: int
    end: int
    name: str

    def found_in(self, errors: list[str]) -> bool:
        lines = range(self.first, self.last + 1)
        places = tuple(f"{self.module}.py:{line}: " for line in lines)
        return any(e.startswith(places) and f"{self.name}_other" in e for e in errors)


def uses(module: str, source: str, names: set[str]) -> Iterator[Use]:
    """List the attributes of a module of ours that are named as something of the library's."""
    tree = ast.parse(source)
    # About ONNX: these two use nothing of TensorRT's.
    tree.body = [x for x in tree.body if getattr(x, "name", "") not in ("check_graph", "_tensors")]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr not in names:
            continue
        root = node.value.id if isinstance(node.value, ast.Name) else ""
        if root == "log" or (root == "self" and isinstance(node.ctx, ast.Store)):
            continue
        line, end = node.end_lineno or 0, node.end_col_offset or 0
        yield Use(module, node.lineno, line, end, node.attr)


def renamed(source: str, chosen: list[Use]) -> str:
    lines = source.encode().splitlines(keepends=True)
    for use in sorted(chosen, key=lambda use: (use.last, use.end), reverse=True):
        line = lines[use.last - 1]
        lines[use.last - 1] = line[: use.end] + b"_other" + line[use.end :]
    return b"".join(lines).decode()


def test_mypy_sees_every_attribute(bindings: Bindings) -> None:
    """Rename all: where mypy finds nothing even so, a type is unknown and nothing is checked.

    An unknown name makes what follows from it unknown too, so what mypy does not find is renamed
    again without the rest.
    """
    names = bindings.names()
    todo: list[Use] = []
    for module in bindings.modules:
        source = (ROOT / f"{module}.py").read_text()
        todo += uses(module, source, names)
    assert len(todo) > 50
    while todo:
        chosen = todo

        def change(module: str, source: str, chosen: list[Use] = chosen) -> str:
            return renamed(source, [use for use in chosen if use.module == module])

        errors = bindings.errors(change)
        todo = [use for use in chosen if not use.found_in(errors)]
        unseen = ", ".join(f"{use.module}:{use.first} {use.name}" for use in todo)
        assert len(todo) < len(chosen), unseen
