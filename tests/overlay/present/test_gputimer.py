"""The GPU timer: times of drawing on the host's clock, never the garbage of a query not run."""

import time

import numpy as np
import pytest

from overlay.frame import Frame, Picture, Region, Size
from overlay.present import Look, Shown
from overlay.present.gl import GL, GL_3_2
from overlay.present.gputimer import GpuTimer
from overlay.present.offscreen import OffscreenPresenter, open_context


@pytest.fixture
def context():
    context = open_context()
    yield context
    context.close()


def shows(count: int) -> list[Shown]:
    pixels = np.zeros((27, 48, 4), np.uint8)
    with OffscreenPresenter(Look(size=Size(480, 270))) as presenter:
        found = []
        for n in range(count):
            frame = Frame(pixels, n, 0, 0, Region(0, 0, 48, 27))
            picture = Picture(frame, "source", pixels, 1, "m", "b", "bicubic")
            found.append(presenter.show(picture, None))
    return found


def test_drawing_is_placed_where_its_frame_was_drawn() -> None:
    shown = shows(30)
    placed = [one for one in shown if one.gpu_start_ns]
    assert len(placed) > 20
    for one in placed:
        start_ns, error_ns = one.gpu_start_ns, one.gpu_error_ns
        assert 0 < error_ns < 20_000_000
        assert any(
            frame.begin_ns - error_ns <= start_ns
            and start_ns + one.gpu_ns <= frame.swapped_ns + error_ns
            for frame in shown
            if frame is not one
        )
    assert max(one.gpu_ns for one in shown) > 0


def test_nothing_is_known_of_the_first() -> None:
    first = shows(1)[0]
    assert (first.gpu_ns, first.gpu_start_ns, first.gpu_error_ns) == (0, 0, 0)


class FakeClock:
    """OpenGL whose clock is behind the host's, and whose time stamps are what the test says."""

    def __init__(self, monkeypatch, stamps_ns: list[int]) -> None:
        self.behind_ns, self.stamps_ns = 5 * 10**12, stamps_ns
        self.ready = True
        monkeypatch.setattr(GL_3_2, "glGetInteger64v", self.now)
        monkeypatch.setattr(GL, "glQueryCounter", lambda *_: None)
        monkeypatch.setattr(GL, "glGetQueryObjectuiv", self.is_ready)
        monkeypatch.setattr(GL, "glGetQueryObjectui64v", self.result)

    def now(self, _name, target) -> None:
        target._obj.value = time.perf_counter_ns() - self.behind_ns

    def is_ready(self, _query, _name, target) -> None:
        target._obj.value = self.ready

    def result(self, _query, _name, target) -> None:
        target._obj.value = self.stamps_ns.pop(0)


def test_another_clock_is_mapped(context, monkeypatch) -> None:
    timer = GpuTimer()
    clock = FakeClock(monkeypatch, [])
    timer.begin()
    begun_ns = time.perf_counter_ns()
    time.sleep(0.003)
    timer.end()
    clock.stamps_ns += [begun_ns - clock.behind_ns, begun_ns + 1_000_000 - clock.behind_ns]
    timer.begin()
    span = timer.latest
    assert abs(span.start_ns - begun_ns) <= span.error_ns
    assert span.duration_ns == 1_000_000
    timer.delete()


@pytest.mark.parametrize(
    ("first_ns", "last_ns"),
    [
        (-(10**9), 10),  # before the frame began
        (10**6, 10**15),  # ends long after now
        (10**9, 10**9 + 5),  # begins after now
        (100, 50),  # ends before it begins
    ],
)
def test_garbage_is_left_out(context, monkeypatch, first_ns, last_ns) -> None:
    timer = GpuTimer()
    clock = FakeClock(monkeypatch, [])
    timer.begin()
    begun_ns = time.perf_counter_ns() - clock.behind_ns
    timer.end()
    clock.stamps_ns += [begun_ns + first_ns, begun_ns + last_ns]
    timer.begin()
    assert timer.latest == (0, 0, 0)
    timer.delete()


def test_a_device_that_is_behind_is_not_waited_for(context, monkeypatch) -> None:
    timer = GpuTimer(depth=2)
    clock = FakeClock(monkeypatch, [])
    clock.ready = False
    for _ in range(9):
        timer.begin()
        timer.end()
    assert timer.latest == (0, 0, 0)
    timer.delete()


def test_without_time_stamps_nothing_is_timed(context, monkeypatch) -> None:
    def no_bits(_target, _name, bits) -> None:
        bits._obj.value = 0

    monkeypatch.setattr(GL, "glGetQueryiv", no_bits)
    timer = GpuTimer()
    for _ in range(3):
        timer.begin()
        timer.end()
    assert timer.latest == (0, 0, 0)
    timer.delete()
