"""`PyCuda`: every name that it uses is in PyCUDA's source; what it says where things are missing.

PyCUDA is built from source against CUDA and cannot be imported without NVIDIA's driver, so its
source is read instead: what its C++ exports to Python, and what its Python adds.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from overlay.cuda import Cuda, CudaError, Unsupported, open_cuda
from overlay.cuda.recording import RecordingCuda
from overlay.errors import BackendUnavailable
from tests.games import strict
from tests.overlay.cuda.simulated import SimulatedPycuda
from tests.overlay.cuda.test_contract import open_pycuda

VERSION = "2026.1"
ADAPTER = Path(__file__).resolve().parents[3] / "overlay" / "cuda" / "pycuda.py"

#: What the adapter does with PyCUDA's objects, by their classes.
MEMBERS = {
    "Device": {
        "count",
        "name",
        "compute_capability",
        "total_memory",
        "retain_primary_context",
    },
    "Context": {"push", "pop", "synchronize"},
    "Stream": {"handle", "wait_for_event"},
    "Event": {"record", "query", "synchronize", "time_since"},
    "event_flags": {"DEFAULT", "DISABLE_TIMING"},
    "host_alloc_flags": {"PORTABLE"},
    "graphics_map_flags": {"WRITE_DISCARD"},
    "DeviceAllocation": {"__int__"},
    "RegisteredObject": {"map", "unregister"},
    "RegisteredMapping": {"device_ptr_and_size", "unmap"},
}
#: Those that it calls its own names.
OBJECTS = ("Device", "Context", "Stream", "Event", "RegisteredObject", "RegisteredMapping")
PARAMETERS = {
    "memcpy_htod_async": ["dest", "src", "stream"],
    "memcpy_dtoh_async": ["dest", "src", "stream"],
    "memcpy_dtod_async": ["dest", "src", "size", "stream"],
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack PyCUDA's source distribution."""
    folder = tmp_path_factory.mktemp("pycuda")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", ":all:", "--no-build-isolation", "-d", str(folder)]
    done = subprocess.run(
        [*command, f"pycuda=={VERSION}"], capture_output=True, text=True, timeout=100
    )
    if done.returncode != 0:
        if strict():
            pytest.fail(done.stderr[-500:])
        pytest.skip(f"PyCUDA's source cannot be had: {done.stderr[-200:]}")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / f"pycuda-{VERSION}"


def exported(source: Path) -> str:
    """Give the C++ that exports to Python, without comments."""
    files = sorted((source / "src" / "wrapper").glob("wrap_cuda*.cpp"))
    text = "\n".join(file.read_text() for file in files)
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def members(text: str, name: str) -> set[str]:
    """List what C++ exports in a class or enumeration."""
    start = re.search(rf'py::(?:class_|enum_)<[^"]*"{name}"', text)
    assert start is not None, f"PyCUDA has no {name}"
    body = text[start.end() :]
    body = body[: re.search(r"\n  \}\n|\n    ;\n", body).start()]  # type: ignore[union-attr]
    names = re.findall(r'(?:\.def|\.value|\.attr|\.add_property)\("(\w+)"', body)
    return {*names, *re.findall(r"DEF_SIMPLE_METHOD\((\w+)\)", body)}


def functions(source: Path) -> set[str]:
    """List what the module `pycuda.driver` has."""
    text = exported(source)
    names = re.findall(r'py::def\("(\w+)"', text)
    names += re.findall(r"DEF_SIMPLE_FUNCTION\((\w+)\)", text)
    names += re.findall(r"DECLARE_EXC\((\w+),", text)
    names += re.findall(r'py::(?:class_|enum_)<[^"]*"(\w+)"', text)
    driver = ast.parse((source / "pycuda" / "driver.py").read_text())
    return {*names, *(node.name for node in driver.body if isinstance(node, ast.FunctionDef))}


def uses() -> tuple[set[str], set[str], set[str]]:
    """List what our adapter takes from `driver`, from `gl`, and from PyCUDA's objects."""
    driver: set[str] = set()
    gl: set[str] = set()
    objects: set[str] = set()
    for node in ast.walk(ast.parse(ADAPTER.read_text())):
        if not isinstance(node, ast.Attribute):
            continue
        root = ast.unparse(node.value).split("[")[0]
        if root == "driver":
            driver.add(node.attr)
        elif root == "gl":
            gl.add(node.attr)
        elif root == "self._objects":
            objects.update({node.attr} - {"pop"})
        elif root in ("thing", "mapping", "device", "context", "self._context") or (
            root in ("driver.Context", "driver.Device")
        ):
            objects.add(node.attr)
    return driver, gl, objects


@pytest.mark.network
@pytest.mark.slow
def test_every_name_is_in_the_source(source: Path) -> None:
    text, (driver, gl, objects) = exported(source), uses()
    assert len(driver) >= 15
    assert driver <= functions(source)
    for name, used in MEMBERS.items():
        assert used <= members(text, name), name
    assert objects == set().union(*(MEMBERS[name] for name in OBJECTS))
    assert gl == {"RegisteredBuffer", "graphics_map_flags"}
    assigned = (source / "pycuda" / "gl" / "__init__.py").read_text()
    for name in gl:
        assert f"{name} = _drv.{name}\n" in assigned
    assert re.search(r'py::bases<registered_object> >\(\s*"RegisteredBuffer"', text)


@pytest.mark.network
@pytest.mark.slow
def test_arguments_are_in_their_places(source: Path) -> None:
    text = exported(source)
    for name, expected in PARAMETERS.items():
        found = re.search(rf'py::def\("{name}", \w+,(.*?)\);', text, re.DOTALL)
        assert found is not None, name
        assert re.findall(r'"(\w+)"', found[1]) == expected
    driver = ast.parse((source / "pycuda" / "driver.py").read_text())
    zeros = next(node for node in driver.body if getattr(node, "name", "") == "pagelocked_zeros")
    assert isinstance(zeros, ast.FunctionDef)
    names = [argument.arg for argument in zeros.args.args]
    assert names[:2] == ["shape", "dtype"]
    assert "mem_flags" in names
    assert re.search(r'\("Stream", py::init<unsigned int>\(py::arg\("flags"\)=0\)\)', text)


@pytest.mark.network
@pytest.mark.slow
def test_a_name_that_is_not_there_is_noticed(source: Path) -> None:
    assert "memcpy_htod_later" not in functions(source)
    assert "record" not in members(exported(source), "Stream")
    with pytest.raises(AssertionError, match="has no Graph"):
        members(exported(source), "Graph")


# What is missing ------------------------------------------------------------------------------


@pytest.fixture
def simulated() -> SimulatedPycuda:
    return SimulatedPycuda(RecordingCuda())


@pytest.fixture
def cuda(simulated: SimulatedPycuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    with open_pycuda(simulated, monkeypatch) as cuda:
        yield cuda


def test_graphs_and_pinning_are_refused(cuda: Cuda) -> None:
    assert not cuda.has_graphs
    with pytest.raises(Unsupported, match="PyCUDA has no CUDA graphs; cuda-bindings has"):
        cuda.captured(lambda: None, cuda.stream("stream"), "graph")

    assert not cuda.pin(np.zeros(100, np.uint8))
    assert cuda.pin(cuda.pinned((100,), "pixels"))


def test_a_build_without_opengl_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated = SimulatedPycuda(RecordingCuda(), gl=False)
    with open_pycuda(simulated, monkeypatch) as cuda:
        assert not cuda.has_gl
        with pytest.raises(Unsupported, match="was built without OpenGL"):
            cuda.register_gl(1, 4096)


def test_no_device_is_unavailable(
    simulated: SimulatedPycuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated.count = 0
    with pytest.raises(BackendUnavailable, match="no NVIDIA GPU"):
        open_pycuda(simulated, monkeypatch)


def test_a_package_that_needs_the_driver_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `import pycuda.driver` fails without libcuda."""

    def import_module(name: str) -> Any:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr("overlay.cuda.find_spec", lambda name: object())
    monkeypatch.setattr("overlay.cuda.import_module", import_module)
    with pytest.raises(BackendUnavailable, match=r"pycuda cannot be loaded \(libcuda\.so\.1"):
        open_cuda("pycuda")


def test_errors_are_translated(cuda: Cuda, simulated: SimulatedPycuda) -> None:
    stream = cuda.stream("stream")
    simulated.recording.fail("record")
    with pytest.raises(CudaError, match="failed: cudaErrorUnknown"):
        cuda.record(cuda.event("event"), stream)
    assert not any(simulated.current.values())


def test_pinned_memory_is_freed_on_any_thread(
    simulated: SimulatedPycuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_pycuda(simulated, monkeypatch) as cuda:
        held = [cuda.pinned((100,), "pixels")]
    held[0][:] = 1
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert simulated.leaks == []
    assert not any(simulated.current.values())


def test_freed_in_the_opposite_order_also_after_an_error(
    cuda: Cuda, simulated: SimulatedPycuda, caplog: pytest.LogCaptureFixture
) -> None:
    freed: list[int] = []
    free = simulated.objects.free

    def record(number: int) -> None:
        freed.append(number)
        free(number)

    simulated.objects.free = record  # type: ignore[method-assign]
    made = [cuda.stream("stream").handle, cuda.buffer(100, "buffer").address]
    cuda.register_gl(2, 64)
    made.append(cuda.buffer(100, "another").address)
    simulated.recording.fail("unregister_gl")
    cuda.close()
    assert freed == made[::-1]
    assert "OpenGL buffer 2" in caplog.text


def test_the_device_is_idle_before_anything_is_freed(
    cuda: Cuda, simulated: SimulatedPycuda
) -> None:
    done: list[str] = []
    context, free = simulated.modules()["pycuda.driver"].Context, simulated.objects.free

    def record(number: int) -> None:
        done.append("free")
        free(number)

    context.synchronize = lambda: done.append("synchronize")
    simulated.objects.free = record  # type: ignore[method-assign]
    buffer = cuda.buffer(100, "buffer")
    cuda.buffer(100, "another")
    cuda.free(buffer)
    assert done == ["synchronize", "free"]
    cuda.close()
    assert done == ["synchronize", "free"] * 2
