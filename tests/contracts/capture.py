"""What every capture back end promises; each back end's test supplies the stage to show it on."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from overlay.capture import CaptureSource
from overlay.errors import SourceClosed
from overlay.frame import Frame, Region, Size


def shared_memory_segments() -> int:
    """Count the SysV segments of the machine that our processes made."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return sum(int(line.split()[4]) == os.getpid() for line in lines)  # cpid


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def nothing_leaks() -> Iterator[None]:
    files, segments = open_files(), shared_memory_segments()
    yield
    assert open_files() == files
    assert shared_memory_segments() == segments


class Stage(ABC):
    """Something to capture that a test can change."""

    size = Size(480, 270)

    @abstractmethod
    def open(self) -> CaptureSource:
        """Open a source on it."""

    @abstractmethod
    def change(self) -> None:
        """Show something else; a recording does so by itself."""

    @abstractmethod
    def region(self) -> Region:
        """Where it truly is."""

    #: False for recordings, which always have something new.
    can_rest = True


def take(source: CaptureSource, timeout_s: float = 5.0) -> Frame:
    frame = source.grab(timeout_s)
    assert frame is not None, f"no frame in {timeout_s} s"
    return frame


class CaptureContract:
    """Inherit from it and give a fixture `stage`."""

    @pytest.fixture
    def stage(self) -> Stage:
        raise NotImplementedError

    def open(self, stage: Stage) -> AbstractContextManager[CaptureSource]:
        return stage.open()

    def test_first_grab_gives_the_present_picture(self, stage: Stage) -> None:
        with self.open(stage) as source:
            before = time.perf_counter_ns()
            frame = take(source)
            after = time.perf_counter_ns()
        assert frame.size == stage.size
        assert frame.pixels.dtype == np.uint8
        assert frame.pixels.shape == (stage.size.height, stage.size.width, 4)
        assert frame.pixels.flags.c_contiguous
        assert frame.sequence == 0
        assert frame.id == -1
        assert frame.ready_ns <= frame.captured_ns <= after
        assert frame.captured_ns >= before
        assert frame.pixels[..., :3].std() > 10  # a picture, not a blank

    def test_region_is_where_it_is(self, stage: Stage) -> None:
        with self.open(stage) as source:
            frame = take(source)
            assert frame.region == source.region == stage.region()
            assert source.visible is True

    def test_frames_have_names_numbers_and_times_in_order(self, stage: Stage) -> None:
        with self.open(stage) as source:
            assert source.name
            frames = [take(source)]
            for _ in range(5):
                stage.change()
                frames.append(take(source))
        for earlier, later in pairwise(frames):
            assert later.sequence > earlier.sequence
            assert later.ready_ns > earlier.ready_ns
            assert later.captured_ns >= later.ready_ns
            assert not np.array_equal(earlier.pixels, later.pixels)

    def test_held_frames_keep_their_pixels(self, stage: Stage) -> None:
        with self.open(stage) as source:
            held, copies = [], []
            for _ in range(8):
                frame = take(source)
                held.append(frame)
                copies.append(frame.pixels.copy())
                stage.change()
            addresses = {frame.pixels.ctypes.data for frame in held}
            assert len(addresses) == len(held)
            for frame, copy in zip(held, copies, strict=True):
                assert np.array_equal(frame.pixels, copy)
        # Also after the source is closed.
        for frame, copy in zip(held, copies, strict=True):
            assert np.array_equal(frame.pixels, copy)

    def test_buffers_are_used_again(self, stage: Stage) -> None:
        with self.open(stage) as source:
            addresses = set()
            for _ in range(30):
                addresses.add(take(source).pixels.ctypes.data)
                stage.change()
            assert len(addresses) <= self.most_buffers

    most_buffers = 3

    def test_nothing_new_gives_no_frame_and_keeps_the_timeout(self, stage: Stage) -> None:
        if not stage.can_rest:
            pytest.skip("a recording always has something new")
        with self.open(stage) as source:
            take(source)
            while source.grab(0.3) is not None:
                pass
            for timeout_s in (0.0, 0.2):
                started = time.perf_counter()
                assert source.grab(timeout_s) is None
                assert timeout_s - 0.002 <= time.perf_counter() - started < timeout_s + 0.3

    def test_close_wakes_a_waiting_grab(self, stage: Stage) -> None:
        source = stage.open()
        ended: list[BaseException | None] = []
        waiting = threading.Event()

        def wait() -> None:
            try:
                while True:
                    source.grab(0.0 if not waiting.is_set() else 30.0)
                    waiting.set()
            except BaseException as exc:
                ended.append(exc)

        thread = threading.Thread(target=wait)
        thread.start()
        assert waiting.wait(5)
        time.sleep(0.1)
        started = time.perf_counter()
        source.close()
        thread.join(5)
        assert not thread.is_alive()
        assert time.perf_counter() - started < 1.0
        assert isinstance(ended[0], SourceClosed)

    def test_closing_twice_is_harmless_and_ends_grabbing(self, stage: Stage) -> None:
        source = stage.open()
        take(source)
        source.close()
        source.close()
        for _ in range(2):
            with pytest.raises(SourceClosed, match="closed"):
                source.grab(0.1)
        assert source.region.size == stage.size

    def test_opening_and_closing_leaks_nothing(self, stage: Stage) -> None:
        for _ in range(2):  # what libraries load on first use is no leak
            with self.open(stage) as source:
                take(source)
        with nothing_leaks():
            for _ in range(50):
                with self.open(stage) as source:
                    take(source)
