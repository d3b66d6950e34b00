"""One device for the process: opened once, refused once it has failed."""

from __future__ import annotations

import threading
import time

import pytest

import overlay.cuda
from overlay.cuda import Cuda, CudaError
from overlay.cuda.recording import RecordingCuda
from overlay.errors import BackendUnavailable


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> overlay.cuda._Shared:
    fresh = overlay.cuda._Shared()
    monkeypatch.setattr(overlay.cuda, "_shared", fresh)
    monkeypatch.setattr("atexit.register", lambda function: function)
    return fresh


def test_two_first_callers_open_one_device(
    shared: overlay.cuda._Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Cuda] = []

    def slow() -> Cuda:
        time.sleep(0.05)
        opened.append(RecordingCuda())
        return opened[-1]

    monkeypatch.setattr(overlay.cuda, "open_cuda", slow)
    threads = [threading.Thread(target=overlay.cuda.shared_cuda) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert len(opened) == 1
    assert overlay.cuda.shared_cuda() is opened[0]
    opened[0].close()


def test_a_device_that_failed_is_refused(
    shared: overlay.cuda._Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RecordingCuda() as cuda:
        monkeypatch.setattr(overlay.cuda, "open_cuda", lambda: cuda)
        assert overlay.cuda.shared_cuda() is cuda

        def fails(event: object) -> bool:
            raise CudaError("cudaEventQuery failed: cudaErrorIllegalAddress")

        monkeypatch.setattr(cuda, "done", fails)
        with pytest.raises(BackendUnavailable, match=r"cudaErrorIllegalAddress.*start the program"):
            overlay.cuda.shared_cuda()


def test_a_missing_device_is_looked_for_once(
    shared: overlay.cuda._Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def missing() -> Cuda:
        asked.append(1)
        raise BackendUnavailable("there is no driver")

    monkeypatch.setattr(overlay.cuda, "open_cuda", missing)
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="there is no driver"):
            overlay.cuda.shared_cuda()
    assert len(asked) == 1
