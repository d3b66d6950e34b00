"""The device's clock on the host's: the error stated is never exceeded, and it is small."""

from __future__ import annotations

import random
import time
from collections import deque

import numpy as np
import pytest

from overlay.cuda.recording import RecordingCuda
from overlay.frame import DeviceSpan
from overlay.trace.deviceclock import MAX_DRIFT, RESOLUTION_NS, CudaClock, DeviceClock

US, MS, S = 1000, 1_000_000, 1_000_000_000


class Device:
    """A clock with an offset and a drift of its own."""

    def __init__(self, drift: float, offset_ns: int = 123_456_789_012) -> None:
        self.drift, self.offset_ns = drift, offset_ns

    def ns(self, host_ns: float) -> int:
        return round(host_ns * (1 - self.drift)) - self.offset_ns


def play(clock: DeviceClock, device: Device, rng: random.Random, start_ns: int, seconds: float):
    """Give (device time, true host time) of frames at 60 a second, each after it was observed."""
    for number in range(round(seconds * 60)):
        asked = start_ns + number * S // 60
        begin = asked + round(rng.expovariate(1 / (80 * US))) + 3 * US
        end = begin + rng.randint(5 * MS, 9 * MS)
        seen = end + round(rng.expovariate(1 / (300 * US))) + 8 * US
        clock.observe(asked, device.ns(begin), device.ns(end), seen)
        yield device.ns(begin), begin
        yield device.ns(end), end


@pytest.mark.parametrize("drift_ppm", [0, 3, -20, 60, -99])
@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_a_bound_and_becomes_small(drift_ppm: int, seed: int) -> None:
    clock, device = DeviceClock(), Device(drift_ppm * 1e-6)
    errors, misses = [], []
    for device_ns, true_ns in play(clock, device, random.Random(seed), 77 * S, 20):
        found = clock.at(device_ns)
        misses.append(abs(found.host_ns - true_ns))
        errors.append(found.error_ns)
    assert all(miss <= error for miss, error in zip(misses, errors, strict=True))
    assert np.median(errors[-600:]) < 25 * US
    least, most = clock.drift
    assert least - 1e-9 <= drift_ppm * 1e-6 <= most + 1e-9
    assert most - least < 25e-6


def test_a_reading_is_as_good_as_half_its_round_trip() -> None:
    clock = DeviceClock(resolution_ns=0)
    clock.observe(1000, 50, 50, 1400)
    assert clock.at(50) == (1200, 200)
    clock.observe(2000, 1000, 1000, 2900)  # a slower one adds nothing but its share
    assert clock.at(1000).error_ns <= 200
    assert 200 < clock.at(50 + 10 * MS).error_ns <= 200 + 10 * MS * MAX_DRIFT + 1


def test_nothing_is_known_before_the_first_observation() -> None:
    with pytest.raises(ValueError, match="not observed"):
        DeviceClock().at(0)


def test_a_clock_that_was_set_is_learnt_anew() -> None:
    clock, rng = DeviceClock(), random.Random(1)
    before, after = Device(5e-6), Device(5e-6, offset_ns=99)
    for _ in play(clock, before, rng, 10 * S, 5):
        pass
    for device_ns, true_ns in play(clock, after, rng, 20 * S, 5):
        found = clock.at(device_ns)
        assert abs(found.host_ns - true_ns) <= found.error_ns


def test_a_pause_of_an_hour_costs_accuracy_but_not_truth() -> None:
    clock, rng, device = DeviceClock(), random.Random(2), Device(-15e-6)
    for start_ns in (10 * S, 3610 * S):
        for device_ns, true_ns in play(clock, device, rng, start_ns, 3):
            found = clock.at(device_ns)
            assert abs(found.host_ns - true_ns) <= found.error_ns
    assert found.error_ns < 50 * US


# CUDA's events ------------------------------------------------------------------------------


class TimedCuda(RecordingCuda):
    """The fake, with events at times that the test sets: float32 ms, as CUDA's are."""

    def __init__(self) -> None:
        super().__init__()
        self.at_ns: dict[int, int] = {}
        self.now_ns = 0

    def record(self, event, stream):
        super().record(event, stream)
        self.at_ns[event.handle] = self.now_ns

    def elapsed_ms(self, start, end):
        distance_ns = self.at_ns[end.handle] - self.at_ns[start.handle]
        assert distance_ns >= 0, "CUDA says nothing of negative ones"
        return float(np.float32(distance_ns / 1e6))


def test_frames_of_an_hour_keep_their_microseconds() -> None:
    with TimedCuda() as cuda:
        stream, device, rng = cuda.stream("copy"), Device(12e-6), random.Random(3)
        slots = [[cuda.event(f"mark {n}", timing=True) for n in range(6)] for _ in range(3)]
        cuda.now_ns = device.ns(10 * S)
        clock = CudaClock(cuda, stream)
        flying: deque[list[int]] = deque()
        for number in range(3600):
            at = [11 * S + number * S, 11 * S + number * S + 20 * US]
            for part in (300 * US, 10 * US, 5 * MS, 4 * US, 900 * US):
                at.append(at[-1] + part + rng.randrange(50 * US))
            for mark, true_ns in zip(slots[number % 3], at[1:], strict=True):
                cuda.now_ns = device.ns(true_ns)
                cuda.record(mark, stream)
            cuda.advance()
            flying.append(at)
            if len(flying) < 3:
                continue  # the next ones are submitted before this one is polled
            asked, *at = flying.popleft()
            marks = slots[(number - 2) % 3]
            pairs = ((marks[0], marks[1]), (marks[2], marks[3]), (marks[4], marks[5]))
            times = clock.times(asked, at[-1] + 60 * US, *pairs)
            spans = (times.upload, times.infer, times.download)
            for span, true_ns, end_ns in zip(spans, at[::2], at[1::2], strict=True):
                assert isinstance(span, DeviceSpan)
                assert abs(span.start_ns - true_ns) <= times.error_ns + RESOLUTION_NS
                assert span.duration_ns == pytest.approx(end_ns - true_ns, abs=2 * US)
        assert times.error_ns < 100 * US
        assert cuda.calls["record"] > 3600 * 6 + 500  # the base moved
        clock.close()
        clock.close()


@pytest.mark.parametrize("pause_s", [5, 20, 300, 7200])
def test_after_a_pause_the_stated_error_holds(pause_s: int) -> None:
    with TimedCuda() as cuda:
        stream, device = cuda.stream("copy"), Device(12e-6)
        marks = [cuda.event(f"mark {n}", timing=True) for n in range(4)]
        cuda.now_ns = device.ns(10 * S)
        clock = CudaClock(cuda, stream)
        rng, asked = random.Random(pause_s), 11 * S
        for number in range(3000):
            asked += 16 * MS + (number % 100 == 50) * rng.randrange(pause_s * S)
            at = [asked + US, asked + 300 * US, asked + 310 * US, asked + 5 * MS]
            for mark, true_ns in zip(marks, at, strict=True):
                cuda.now_ns = device.ns(true_ns)
                cuda.record(mark, stream)
            cuda.advance()
            times = clock.times(asked, at[-1] + US, (marks[0], marks[1]), (marks[2], marks[3]))
            for span, true_ns in zip((times.upload, times.infer), at[::2], strict=True):
                assert isinstance(span, DeviceSpan)
                assert abs(span.start_ns - true_ns) <= times.error_ns
        assert times.error_ns < 100 * US, "it is as fine as before once the base has moved"
        clock.close()


def test_without_a_download_there_is_no_time_of_it() -> None:
    with RecordingCuda() as cuda:
        stream = cuda.stream("copy")
        clock = CudaClock(cuda, stream)
        marks = [cuda.event(f"mark {n}", timing=True) for n in range(3)]
        for mark in marks:
            cuda.record(mark, stream)
        cuda.advance()
        cuda.enter_loop()
        times = clock.times(5 * S, 5 * S + MS, (marks[0], marks[1]), (marks[1], marks[2]))
        cuda.leave_loop()
        assert times.download is None
        assert times.upload is not None
        assert 5 * S <= times.upload.start_ns <= 5 * S + MS
        assert times.error_ns <= MS // 2 + RESOLUTION_NS


@pytest.mark.gpu
def test_a_real_device_is_where_it_was_asked_and_seen(monkeypatch) -> None:
    from overlay.cuda import open_cuda
    from overlay.errors import BackendUnavailable

    try:
        opened = open_cuda()
    except BackendUnavailable as exc:
        pytest.skip(f"no CUDA: {exc}")
    monkeypatch.setattr("overlay.trace.deviceclock._RENEW_MS", 20.0)
    with opened as cuda:
        stream = cuda.stream("copy")
        pixels, buffer = cuda.pinned((1080, 1920, 4), "pixels"), cuda.buffer(1080 * 1920 * 4, "b")
        marks = [cuda.event(f"mark {n}", timing=True) for n in range(3)]
        clock = CudaClock(cuda, stream)
        before_ns = 0
        for _ in range(200):
            asked_ns = time.perf_counter_ns()
            cuda.record(marks[0], stream)
            cuda.upload(buffer, pixels, stream)
            cuda.record(marks[1], stream)
            cuda.download(pixels, buffer, stream)
            cuda.record(marks[2], stream)
            while not cuda.done(marks[2]):
                time.sleep(0.0001)
            seen_ns = time.perf_counter_ns()
            times = clock.times(asked_ns, seen_ns, (marks[0], marks[1]), (marks[1], marks[2]))
            assert times.upload is not None
            assert times.infer is not None
            assert asked_ns - times.error_ns <= times.upload.start_ns
            assert times.infer.start_ns + times.infer.duration_ns <= seen_ns + times.error_ns
            assert times.error_ns <= (seen_ns - asked_ns) // 2 + RESOLUTION_NS
            assert times.upload.start_ns > before_ns
            before_ns = times.upload.start_ns
        print(f"placed to {times.error_ns / 1000:.1f} us")  # noqa: T201 (shown by -s)
        clock.close()
