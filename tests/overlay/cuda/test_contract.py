"""Every `Cuda` under the contract of the seam: the fake, the adapters over it, and real GPUs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest

from overlay.cuda import Cuda, bindings, open_cuda
from overlay.cuda.recording import RecordingCuda
from overlay.errors import BackendUnavailable
from overlay.frame import Pixels
from overlay.present.egl import EglContext
from tests.contracts.cuda import CudaContract, GlMemory, Stage
from tests.overlay.cuda.simulated import GL_SIZES, SimulatedPycuda, SimulatedRuntime


class FakeStage(Stage):
    """On the fake, or on what it stands behind."""

    seed = 0

    def __init__(self) -> None:
        self.recording = RecordingCuda(self.seed)

    def open(self) -> Cuda:
        self.seed += 1
        self.recording = RecordingCuda(self.seed)
        return self.recording

    @contextmanager
    def gl(self, size: int) -> Iterator[GlMemory]:
        (name,) = [name for name, one in GL_SIZES.items() if one == size]
        yield GlMemory(name, size, self._drawn)

    def _drawn(self, cuda: Cuda) -> Pixels:
        (registered,) = self.recording.registered
        pixels = self.recording.draw_gl(registered)
        self.recording.advance()
        return pixels


class TestRecording(CudaContract):
    @pytest.fixture(params=range(3))
    def stage(self, request: pytest.FixtureRequest) -> Stage:
        stage = FakeStage()
        stage.seed = 1000 * request.param
        return stage


class RuntimeStage(FakeStage):
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._monkeypatch = monkeypatch

    def open(self) -> Cuda:
        super().open()
        self._monkeypatch.setattr(bindings, "runtime", SimulatedRuntime(self.recording))
        return bindings.BindingsCuda()


class TestBindings(CudaContract):
    """`BindingsCuda` over a runtime that calls the real one too, where there is no driver."""

    @pytest.fixture
    def stage(self, monkeypatch: pytest.MonkeyPatch) -> Stage:
        return RuntimeStage(monkeypatch)


class PycudaStage(FakeStage):
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._monkeypatch = monkeypatch
        self.opened: list[SimulatedPycuda] = []

    def open(self) -> Cuda:
        super().open()
        simulated = SimulatedPycuda(self.recording)
        self.opened.append(simulated)
        return open_pycuda(simulated, self._monkeypatch)


def open_pycuda(simulated: SimulatedPycuda, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """Import the adapter anew, with a stand-in for the package."""
    for name, module in simulated.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "overlay.cuda.pycuda", raising=False)
    adapter: Any = importlib.import_module("overlay.cuda.pycuda")
    monkeypatch.delitem(sys.modules, "overlay.cuda.pycuda")
    cuda: Cuda = adapter.PyCuda()
    return cuda


class TestPycuda(CudaContract):
    """`PyCuda` over a package that minds its context, as the real one does."""

    @pytest.fixture
    def stage(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
        stage = PycudaStage(monkeypatch)
        yield stage
        for simulated in stage.opened:
            assert not any(simulated.current.values()), "a context is still current"
            assert simulated.leaks == []


# On a machine with a GPU --------------------------------------------------------------------------


class GpuStage(Stage):
    def __init__(self, name: str) -> None:
        self.name = name
        try:
            with open_cuda(name) as cuda:
                self.large = cuda.device.memory_bytes // 3
        except BackendUnavailable as exc:
            pytest.skip(str(exc))

    def open(self) -> Cuda:
        return open_cuda(self.name)

    @contextmanager
    def gl(self, size: int) -> Iterator[GlMemory]:
        try:
            context = EglContext()
        except BackendUnavailable as exc:
            pytest.skip(str(exc))
        from overlay.present.gl import GL

        buffer = int(GL.glGenBuffers(1))
        try:
            if b"NVIDIA" not in GL.glGetString(GL.GL_VENDOR):
                pytest.skip("OpenGL does not run on the NVIDIA GPU")
            GL.glBindBuffer(GL.GL_PIXEL_UNPACK_BUFFER, buffer)
            GL.glBufferData(GL.GL_PIXEL_UNPACK_BUFFER, size, None, GL.GL_STREAM_DRAW)

            def read(cuda: Cuda) -> Pixels:
                held = GL.glGetBufferSubData(GL.GL_PIXEL_UNPACK_BUFFER, 0, size)
                return np.asarray(held, np.uint8)

            yield GlMemory(buffer, size, read)
        finally:
            with suppress(Exception):
                GL.glDeleteBuffers(1, [buffer])
            context.close()


@pytest.mark.gpu
class TestBindingsOnGpu(CudaContract):
    @pytest.fixture
    def stage(self) -> Stage:
        return GpuStage("cuda-bindings")


@pytest.mark.gpu
class TestPycudaOnGpu(CudaContract):
    @pytest.fixture
    def stage(self) -> Stage:
        return GpuStage("pycuda")
