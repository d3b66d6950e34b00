"""The GPU path on the recording fake: who waits for whom, whatever the order of the streams."""

from __future__ import annotations

import gc
import logging
import random
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress

import numpy as np
import pytest

from engines.errors import EngineMismatch
from overlay.cuda import CudaError, Event, Stream
from overlay.cuda.races import Race
from overlay.cuda.recording import RecordingCuda
from overlay.errors import OverlayError
from overlay.frame import BufferRing, Frame, Picture, Region, Size
from overlay.infer import Upscaler
from overlay.infer.gpu import GpuUpscaler
from tests.contracts.upscaler import OTHER, SMALL, UpscalerContract, finish, frame, wait
from tests.hostprogram import HostProgram, enlarged, host_upscaler

SEEDS = range(12)


class Source:
    """Captured frames of one size, in a ring of buffers that are written again and again."""

    def __init__(self, cuda: RecordingCuda, size: Size = SMALL) -> None:
        self._cuda, self._size = cuda, size
        self._ring = BufferRing.of_shape((size.height, size.width, 4), limit=6)
        self._dice = np.random.default_rng(0)
        self.count = 0

    def grab(self) -> Frame:
        lease = self._ring.take()
        self._cuda.host_write(lease.buffer)
        lease.buffer[...] = self._dice.integers(0, 256, lease.buffer.shape, np.uint8)
        self.count += 1
        return Frame(lease.buffer, self.count, 1, 2, Region(0, 0, *self._size), lease)

    def show_all(self, upscaler: GpuUpscaler) -> None:
        """Let the upscaler see every buffer, so that none is new in the loop."""
        frames = [self.grab() for _ in range(6)]
        for one in frames:
            check(finish(upscaler, one))


def check(picture: Picture, expected: np.ndarray | None = None) -> None:
    """Compare a picture in host memory with what it should be."""
    assert picture.device is None
    assert np.array_equal(
        picture.pixels, enlarged(picture.frame.pixels) if expected is None else expected
    )


class Presenter:
    """Copies pictures from the device, late, and holds on to the last one."""

    def __init__(self, cuda: RecordingCuda) -> None:
        self._cuda = cuda
        self._stream = cuda.stream("present")
        self._size = 4 * SMALL.width * SMALL.height * 4
        self._copies = [cuda.buffer(self._size, f"shown {i}") for i in range(120)]
        self._expected: list[np.ndarray] = []
        self._shown: Picture | None = None

    def show(self, picture: Picture) -> None:
        device = picture.device
        assert device is not None
        assert picture.pixels.shape == device.shape
        assert device.buffer.size == self._size
        self._cuda.wait(self._stream, device.ready)
        self._cuda.copy(self._copies[len(self._expected)], device.buffer, self._stream)
        self._cuda.record(device.released, self._stream)
        self._expected.append(enlarged(picture.frame.pixels))
        self._shown = picture

    def check(self) -> None:
        self._cuda.advance()
        for copy, expected in zip(self._copies, self._expected, strict=False):
            assert np.array_equal(self._cuda.array(copy).reshape(expected.shape), expected)
        assert len(self._expected) > 4


def run_host(cuda: RecordingCuda, seed: int, failing: bool = False) -> None:
    """Submit and poll in a random order; some frames fail."""
    dice = random.Random(seed)
    source = Source(cuda)
    calls = (("launch" if cuda.has_graphs else "compute", 1), ("download", 1), ("record", 5))
    with host_upscaler(cuda) as upscaler:
        source.show_all(upscaler)
        cuda.enter_loop()
        for _ in range(40):
            if upscaler.in_flight < 2 and dice.random() < 0.6:
                if fails := failing and dice.random() < 0.3:
                    cuda.fail(*dice.choice(calls))
                before = upscaler.in_flight
                with suppress(OverlayError) if failing else nullcontext():
                    upscaler.submit(source.grab())
                assert upscaler.in_flight == before or not fails
            elif (picture := upscaler.poll(0)) is not None:
                cuda.host_read(picture.pixels)
                check(picture)
        while upscaler.in_flight:
            picture = upscaler.poll(0)
            if picture is not None:
                check(picture)
        cuda.leave_loop()


def run_device(cuda: RecordingCuda, seed: int) -> None:
    """The same with pictures that stay on the device and are shown late, or never."""
    dice = random.Random(seed)
    source = Source(cuda)
    presenter = Presenter(cuda)
    with host_upscaler(cuda, download=False) as upscaler:
        for _ in range(6):
            finish(upscaler, source.grab())
        slot: deque[Picture] = deque(maxlen=1)  # newest wins
        cuda.enter_loop()
        for _ in range(120):
            turn = dice.random()
            if upscaler.in_flight < 2 and turn < 0.4:
                upscaler.submit(source.grab())
            elif turn < 0.8 and (picture := upscaler.poll(0)) is not None:
                slot.append(picture)
                del picture
            elif slot:
                presenter.show(slot.pop())
        cuda.leave_loop()
        presenter.check()


RUNS: dict[str, Callable[[RecordingCuda, int], None]] = {
    "host": run_host,
    "failing": lambda cuda, seed: run_host(cuda, seed, failing=True),
    "device": run_device,
}


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "plain"])
@pytest.mark.parametrize("run", RUNS)
def test_pictures_are_right_in_any_order_of_the_streams(run: str, graphs: bool) -> None:
    for seed in SEEDS:
        with RecordingCuda(seed, graphs=graphs) as cuda:
            RUNS[run](cuda, seed)
            assert cuda.calls["launch" if graphs else "compute"] > 5
        assert cuda.complaints == []


# --- every wait is needed -----------------------------------------------------------------------

WAITS = [
    *(("copy", f"inferred {slot}") for slot in range(2)),
    *(("compute", f"uploaded {slot}") for slot in range(2)),
    *(("compute", f"released {slot}") for slot in range(2)),
    *(("download", f"inferred {slot}") for slot in range(2)),
    *(("host", f"released {slot}") for slot in range(2)),
    *(("host", f"inferred {slot}") for slot in range(2)),
]


def test_these_are_all_the_waits_there_are() -> None:
    seen = set()
    for run in RUNS.values():
        with RecordingCuda(0) as cuda:
            run(cuda, 0)
            seen |= cuda.waits
    wanted = {(stream, event) for stream, event in seen if event[-1] in "01"}
    assert wanted - {("host", "uploaded 0"), ("host", "uploaded 1")} == {
        *WAITS, *(("present", f"inferred {slot}") for slot in range(2))
    }  # fmt: skip


@pytest.mark.parametrize("wait", WAITS, ids=" ".join)
def test_a_wait_that_is_left_out_is_noticed(wait: tuple[str, str]) -> None:
    noticed: list[BaseException] = []
    for run in RUNS.values():
        for seed in SEEDS:
            cuda = RecordingCuda(seed, drop=wait)
            try:
                with cuda:
                    run(cuda, seed)
            except (AssertionError, OverlayError) as exc:
                noticed.append(exc)
            noticed += cuda.complaints
    if wait[0] == "host":  # times are asked of work that is not done
        assert any("cudaErrorNotReady" in str(one) for one in noticed)
    else:
        assert any(isinstance(one, Race) for one in noticed)


class Forgetful(RecordingCuda):
    """Leaves out each record of an event in the loop."""

    def __init__(self, seed: int, forgotten: str) -> None:
        super().__init__(seed)
        self.forgotten = forgotten

    def record(self, event: Event, stream: Stream) -> None:
        if not (self._in_loop and event.name == self.forgotten):
            super().record(event, stream)


@pytest.mark.parametrize("event", ["uploaded 0", "inferred 0", "released 0"])
def test_a_record_that_is_left_out_is_noticed(event: str) -> None:
    noticed = 0
    for seed in SEEDS:
        cuda = Forgetful(seed, event)
        try:
            with cuda:
                run_host(cuda, seed)
        except (AssertionError, OverlayError):
            noticed += 1
        noticed += len(cuda.complaints)
    assert noticed


def test_what_waits_for_what_is_in_the_log() -> None:
    with RecordingCuda(1) as cuda, host_upscaler(cuda) as upscaler:
        finish(upscaler, frame())
        cuda.log.clear()
        finish(upscaler, frame())
        upload = cuda.operations("upload", "copy")[0]
        infer = cuda.operations("compute", "compute")[0]
        download = cuda.operations("download", "download")[0]
        done = cuda.operations("done")[-1]
        assert upload.before(infer)
        assert infer.before(download)
        assert download.before(done)
        assert not download.before(upload)


# --- two in flight, and no more -------------------------------------------------------------------


def test_two_frames_overlap_and_a_third_is_refused() -> None:
    with RecordingCuda(0) as cuda, host_upscaler(cuda) as upscaler:
        finish(upscaler, frame())
        cuda.log.clear()
        upscaler.submit(frame(seed=1))
        upscaler.submit(frame(seed=2))
        with pytest.raises(RuntimeError, match="2 frames are in flight"):
            upscaler.submit(frame(seed=3))
        second = cuda.operations("upload")[1]
        first = cuda.operations("compute")[0]
        assert not first.before(second), "the upload of one overlaps the inference of the other"
        assert not second.before(first)
        assert [wait(upscaler).frame.sequence for _ in range(2)] == [1, 2]


def test_nothing_is_allocated_and_nobody_waits_in_the_loop() -> None:
    with RecordingCuda(0) as cuda:
        source = Source(cuda)
        with host_upscaler(cuda) as upscaler:
            source.show_all(upscaler)
            before = (cuda.device_bytes, cuda.pinned_bytes)
            cuda.enter_loop()
            held = deque[Picture](maxlen=3)  # drawn, before the presenter, on the way
            for _ in range(200):
                upscaler.submit(source.grab())
                held.append(wait(upscaler))
            cuda.leave_loop()
            assert (cuda.device_bytes, cuda.pinned_bytes) == before
        assert cuda.complaints == []
        assert (cuda.device_bytes, cuda.pinned_bytes) == (0, 0), "closing frees everything"


def test_the_frame_is_held_until_its_upload_is_done() -> None:
    with RecordingCuda(0) as cuda, host_upscaler(cuda) as upscaler:
        source = Source(cuda)
        source.show_all(upscaler)
        given = source.grab()
        address = given.pixels.ctypes.data
        upscaler.submit(given)
        del given
        others = [source.grab() for _ in range(5)]
        assert address not in [other.pixels.ctypes.data for other in others]
        picture = wait(upscaler)
        assert picture.frame.pixels.ctypes.data == address


def test_a_new_first_buffer_is_pinned_once_and_read_where_it_is() -> None:
    with RecordingCuda(0) as cuda, host_upscaler(cuda) as upscaler:
        given = frame()
        for _ in range(3):
            finish(upscaler, given)
        assert cuda.calls["pin"] == 1
        upload = cuda.operations("upload", "copy")[-1]
        assert upload.reads == (f"host memory at {given.pixels.ctypes.data:#x}",)


@pytest.mark.parametrize("pinnable", [True, False])
def test_other_frames_are_copied_first_and_it_is_said_once(
    pinnable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with RecordingCuda(0, pinnable=pinnable) as cuda, host_upscaler(cuda) as upscaler:
        wide = np.random.default_rng(1).integers(0, 256, (SMALL.height, 90, 4), np.uint8)
        pixels = wide[:, : SMALL.width] if pinnable else np.ascontiguousarray(wide[:, :48])
        given = Frame(pixels, 0, 1, 2, Region(0, 0, *SMALL))
        upscaler.warm_up(SMALL)
        if not pinnable:
            finish(upscaler, given)
        cuda.enter_loop()
        for _ in range(4):
            check(finish(upscaler, given))
        cuda.leave_loop()
    said = [r.message for r in caplog.records if "copied on the host first" in r.message]
    assert said == [
        f"captured frames {'are not contiguous' if pinnable else 'cannot be page-locked'}: "
        "each is copied on the host first"
    ]
    assert cuda.complaints == []


def test_buffers_without_end_are_not_pinned_without_end() -> None:
    with RecordingCuda(0) as cuda, host_upscaler(cuda) as upscaler:
        frames = [frame(seed=seed) for seed in range(50)]
        for one in frames:
            check(finish(upscaler, one))
        assert cuda.calls["pin"] == 32


# --- sizes, graphs --------------------------------------------------------------------------------


def test_a_graph_is_captured_per_slot_after_one_plain_run_and_again_for_a_size() -> None:
    program = HostProgram()
    with RecordingCuda(0) as cuda, host_upscaler(cuda, program) as upscaler:
        upscaler.warm_up(SMALL)
        ready = ["enqueue 0", "warmed", "enqueue 0", "enqueue 1"]
        assert program.events == ["prepare 48x32", *ready]
        for seed in range(3):
            check(finish(upscaler, frame(seed=seed)))
        assert program.events[5:] == []
        program.events.clear()
        finish(upscaler, frame(OTHER))
        assert program.events == ["prepare 34x50", *ready]
        assert cuda.calls["captured"] == 4
    assert program.events[-1] == "close"


def test_a_size_may_change_with_frames_in_flight() -> None:
    for seed in SEEDS:
        with RecordingCuda(seed) as cuda, host_upscaler(cuda) as upscaler:
            for turn in range(6):
                upscaler.submit(frame(OTHER if turn % 2 else SMALL, seed=turn))
                if upscaler.in_flight == 2:
                    check(wait(upscaler))
            check(wait(upscaler))
            upscaler.warm_up(SMALL)
            memory = cuda.device_bytes
            for size in (OTHER, SMALL, OTHER, SMALL):
                check(finish(upscaler, frame(size)))
            assert cuda.device_bytes == memory
        assert cuda.complaints == []


def test_pictures_on_the_device_outlive_their_size_and_their_upscaler() -> None:
    with RecordingCuda(3) as cuda:
        upscaler = host_upscaler(cuda, download=False)
        held = [finish(upscaler, frame(seed=seed)) for seed in range(3)]
        finish(upscaler, frame(OTHER))
        upscaler.close()
        for picture in held:
            assert picture.device is not None
            shown = cuda.array(picture.device.buffer).reshape(picture.device.shape)
            assert np.array_equal(shown, enlarged(picture.frame.pixels))
        held.clear()
        del picture
        assert (cuda.device_bytes, cuda.pinned_bytes) == (0, 0)


def test_a_size_may_change_with_pictures_on_the_device() -> None:
    with RecordingCuda(4) as cuda, host_upscaler(cuda, download=False) as upscaler:
        for turn in range(8):
            upscaler.submit(frame(OTHER if turn % 2 else SMALL, seed=turn))
            if upscaler.in_flight == 2:
                picture = wait(upscaler)
                expected = enlarged(picture.frame.pixels)
                assert picture.device is not None
                assert picture.device.shape == picture.pixels.shape == expected.shape
                shown = cuda.array(picture.device.buffer).reshape(picture.device.shape)
                assert np.array_equal(shown, expected)
                del picture
    assert cuda.complaints == []


def test_a_size_that_fails_after_pictures_were_added_frees_each_once() -> None:
    with RecordingCuda(4) as cuda:
        program = HostProgram(refuses=OTHER)
        with host_upscaler(cuda, program) as upscaler:
            held = [finish(upscaler, frame(seed=seed)) for seed in range(8)]
            for _ in range(2):
                with pytest.raises(EngineMismatch):
                    upscaler.warm_up(OTHER)
            for picture in held:
                check(picture)
            check(finish(upscaler, frame()))
        assert (cuda.device_bytes, cuda.pinned_bytes) == (0, 0)


def test_a_presenter_that_hoards_pictures_is_told_so() -> None:
    with RecordingCuda(3) as cuda, host_upscaler(cuda, download=False) as upscaler:
        held = [finish(upscaler, frame(seed=seed)) for seed in range(5)]
        with pytest.raises(OverlayError, match="all 5 pictures of toy on the GPU are held"):
            upscaler.submit(frame())
        held.pop()
        assert finish(upscaler, frame()).device is not None


def test_pictures_can_come_to_the_host_from_some_frame_on() -> None:
    with RecordingCuda(3) as cuda, host_upscaler(cuda, download=False) as upscaler:
        assert finish(upscaler, frame()).device is not None
        upscaler.submit(frame(seed=1))
        upscaler.download = True
        upscaler.submit(frame(seed=2))
        assert wait(upscaler).device is not None
        check(wait(upscaler))
        check(finish(upscaler, frame(seed=3)))
    assert cuda.complaints == []


def test_a_size_that_is_refused_leaves_the_others() -> None:
    program = HostProgram(refuses=OTHER)
    with RecordingCuda(0) as cuda, host_upscaler(cuda, program) as upscaler:
        check(finish(upscaler, frame()))
        with pytest.raises(EngineMismatch, match="not 34x50"):
            upscaler.submit(frame(OTHER))
        assert upscaler.in_flight == 0
        check(finish(upscaler, frame()))


def test_without_graphs_it_says_why_and_runs_plainly(caplog: pytest.LogCaptureFixture) -> None:
    with RecordingCuda(0) as cuda, host_upscaler(cuda) as upscaler:
        cuda.fail("captured", 2)
        check(finish(upscaler, frame()))
        assert cuda.calls["launch"] == 0
    assert "toy runs without CUDA graphs: cudaErrorUnknown" in caplog.text
    program = HostProgram()
    program.captures = False
    with RecordingCuda(0) as cuda, host_upscaler(cuda, program) as upscaler:
        check(finish(upscaler, frame()))
        assert cuda.calls["captured"] == 0


# --- errors ---------------------------------------------------------------------------------------

SUBMITS = ("wait", "record", "upload", "launch", "download")


@pytest.mark.parametrize("method", [*SUBMITS, "done", "elapsed_ms"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4, 5, 6])
def test_a_frame_that_fails_is_given_up_and_the_next_ones_are_right(method: str, nth: int) -> None:
    for seed in range(6):
        with RecordingCuda(seed) as cuda:
            source = Source(cuda)
            with host_upscaler(cuda) as upscaler:
                source.show_all(upscaler)
                cuda.fail(method, nth)
                said = []
                for _ in range(12):
                    try:
                        upscaler.submit(source.grab())
                        check(wait(upscaler))
                    except OverlayError as exc:
                        said.append(str(exc))
                    assert upscaler.in_flight == 0
                assert len(said) == 1
                assert "toy failed on a frame" in said[0]
                assert "\n" not in said[0]
        assert cuda.complaints == []


def test_failing_without_end_holds_no_frames_and_no_pictures() -> None:
    with RecordingCuda(0) as cuda:
        source = Source(cuda)
        with host_upscaler(cuda) as upscaler:
            source.show_all(upscaler)
            for _ in range(40):
                cuda.fail("download")
                with pytest.raises(OverlayError, match="failed on a frame"):
                    upscaler.submit(source.grab())
                cuda.advance()
            check(finish(upscaler, source.grab()))


def test_a_device_that_is_stuck_gets_no_more_frames() -> None:
    class Stuck(RecordingCuda):
        stuck = False

        def done(self, event: Event) -> bool:
            return not self.stuck and super().done(event)

    with Stuck(0) as cuda:
        source = Source(cuda)
        with host_upscaler(cuda) as upscaler:
            source.show_all(upscaler)
            cuda.stuck = True
            for _ in range(4):
                cuda.fail("download")
                with pytest.raises(OverlayError, match="failed on a frame"):
                    upscaler.submit(source.grab())
            for _ in range(10):
                with pytest.raises(OverlayError, match="busy with frames that were given up"):
                    upscaler.submit(source.grab())
            cuda.stuck = False
            cuda.advance()
            check(finish(upscaler, source.grab()))
    assert cuda.complaints == []


def test_a_device_that_is_lost_ends_it_in_one_line() -> None:
    cuda = RecordingCuda(0)
    upscaler = host_upscaler(cuda)
    finish(upscaler, frame())
    upscaler.submit(frame())
    cuda.close()
    with pytest.raises(OverlayError, match="toy failed on a frame: done: the device was closed"):
        upscaler.poll(1)
    with pytest.raises(OverlayError, match="toy cannot go on: record: the device was closed"):
        upscaler.submit(frame())
    upscaler.close()
    assert upscaler.in_flight == 0


def test_a_program_that_fails_is_given_up_frame_by_frame() -> None:
    program = HostProgram()
    with RecordingCuda(0, graphs=False) as cuda, host_upscaler(cuda, program) as upscaler:
        check(finish(upscaler, frame()))
        program.fails = OverlayError("no memory")
        with pytest.raises(OverlayError, match="toy failed on a frame: no memory"):
            upscaler.submit(frame())
        program.fails = None
        check(finish(upscaler, frame(seed=2)))


@pytest.mark.parametrize("method", ["stream", "event", "buffer", "pinned", "synchronize"])
def test_a_failure_while_getting_ready_frees_what_was_made(method: str) -> None:
    with RecordingCuda(0) as cuda:
        if method == "stream":
            cuda.fail(method, 2)
            with pytest.raises(CudaError):
                host_upscaler(cuda)
            return
        with host_upscaler(cuda) as upscaler:
            cuda.fail(method)
            with pytest.raises(CudaError, match="cudaErrorUnknown"):
                upscaler.warm_up(SMALL)
            check(finish(upscaler, frame()))
        assert (cuda.device_bytes, cuda.pinned_bytes) == (0, 0)


def test_closing_waits_for_what_is_in_flight() -> None:
    for seed in SEEDS:
        with RecordingCuda(seed) as cuda:
            source = Source(cuda)
            upscaler = host_upscaler(cuda)
            source.show_all(upscaler)
            upscaler.submit(source.grab())
            upscaler.submit(source.grab())
            upscaler.close()
            source.grab()  # nothing reads its buffers any more
            assert upscaler.in_flight == 0
            assert (cuda.device_bytes, cuda.pinned_bytes) == (0, 0)
        assert cuda.complaints == []


# --- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("download", [True, False])
def test_the_device_s_times_are_on_the_host_s_clock(download: bool) -> None:
    with RecordingCuda(0) as cuda, host_upscaler(cuda, download=download) as upscaler:
        upscaler.warm_up(SMALL)
        before = time.perf_counter_ns()
        picture = finish(upscaler, frame())
        times = picture.times
        assert times is not None
        assert times.upload is not None
        assert times.infer is not None
        assert times.upload.duration_ns == 250_000
        assert picture.infer_ns == times.infer.duration_ns == 250_000
        assert times.infer.start_ns == times.upload.start_ns + 250_000
        assert (times.download is not None) == download
        if times.download is not None:
            assert times.download == (times.infer.start_ns + 250_000, 250_000)
        assert before - 1e9 < times.upload.start_ns < time.perf_counter_ns()
        assert times.error_ns >= 0


# --- the contract ---------------------------------------------------------------------------------


class TestContract(UpscalerContract):
    #: Bytes that 150 frames may leave behind.
    left_behind = 10_000

    @pytest.fixture
    def upscaler(self) -> Iterator[Upscaler]:
        with RecordingCuda(5) as cuda:
            with host_upscaler(cuda) as upscaler:
                yield upscaler
            assert cuda.complaints == []

    def test_many_frames_do_not_grow_the_heap(self, upscaler: Upscaler) -> None:
        assert isinstance(upscaler, GpuUpscaler)
        cuda = upscaler._cuda
        assert isinstance(cuda, RecordingCuda)
        given = frame()

        def traced(count: int) -> int:
            for _ in range(count):
                finish(upscaler, given)
                cuda.log.clear()  # the fake's, which grows
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        before = traced(50)
        grown = traced(150) - before
        tracemalloc.stop()
        assert grown < self.left_behind


class TestLumaContract(TestContract):
    kind = "luma"

    @pytest.fixture
    def upscaler(self) -> Iterator[Upscaler]:
        with RecordingCuda(6) as cuda:
            with host_upscaler(cuda, output="luma", scale=3) as upscaler:
                yield upscaler
            assert cuda.complaints == []


def test_the_fake_tells_of_a_race_at_all() -> None:
    with RecordingCuda(0) as cuda:
        stream, other = cuda.stream("a"), cuda.stream("b")
        buffer = cuda.buffer(4, "buffer")
        pinned = cuda.pinned((4,), "pinned")
        cuda.upload(buffer, pinned, stream)
        with pytest.raises(Race):
            cuda.download(pinned, buffer, other)
