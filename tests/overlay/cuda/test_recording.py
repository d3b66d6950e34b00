"""The fake sees what is missing: every wait left out, every access out of place."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import pytest

from overlay.cuda import CudaError, DeviceBuffer, Event, GlBuffer, Stream, Unsupported
from overlay.cuda.late import RUBBISH
from overlay.cuda.races import Allocation, Race
from overlay.cuda.recording import Forbidden, RecordingCuda
from overlay.frame import Pixels

SIZE = 64
FRAMES = 8


def frame(number: int) -> Pixels:
    return np.random.default_rng(number).integers(0, 256, SIZE, np.uint8)


class Pipeline:
    """Two slots, three streams, and a host that asks only in the end.

    Slots are used again while their last frame may be under way, so that every wait is needed.
    """

    def __init__(self, cuda: RecordingCuda, graphs: bool = True) -> None:
        self.cuda = cuda
        self.copy, self.compute = cuda.stream("copy"), cuda.stream("compute", urgent=True)
        self.download = cuda.stream("download")
        self.inputs = [cuda.buffer(SIZE, f"input {slot}") for slot in (0, 1)]
        self.outputs = [cuda.buffer(SIZE, f"output {slot}") for slot in (0, 1)]
        self.events = [
            [cuda.event(f"{name} {slot}") for name in ("uploaded", "inferred", "downloaded")]
            for slot in (0, 1)
        ]
        self.sources = [cuda.pinned((SIZE,), f"source {number}") for number in range(FRAMES)]
        self.targets = [cuda.pinned((SIZE,), f"target {number}") for number in range(FRAMES)]
        self.finished = cuda.event("finished")
        self.graphs = []
        if graphs:
            for slot in (0, 1):
                graph = cuda.captured(self.inference(slot), self.compute, f"inference {slot}")
                self.graphs.append(graph)

    def inference(self, slot: int) -> Callable[[], None]:
        source, target = self.inputs[slot], self.outputs[slot]

        def kernel() -> None:
            self.cuda.array(target)[:] = 255 - self.cuda.array(source)

        def enqueue() -> None:
            self.cuda.kernel(kernel, self.compute)

        return lambda: self.cuda.compute(enqueue, self.compute, [source], [target])

    def run(self) -> None:
        for number in range(FRAMES):
            self.sources[number][:] = frame(number)
            self.put(number)
        self.cuda.record(self.finished, self.download)
        while not self.cuda.done(self.finished):
            pass
        for number, target in enumerate(self.targets):
            assert np.array_equal(target, 255 - frame(number)), f"picture {number} is wrong"
            self.cuda.host_read(target)

    def put(self, number: int) -> None:
        cuda, slot = self.cuda, number % 2
        uploaded, inferred, downloaded = self.events[slot]
        cuda.wait(self.copy, inferred)
        cuda.upload(self.inputs[slot], self.sources[number], self.copy)
        cuda.record(uploaded, self.copy)
        cuda.wait(self.compute, uploaded)
        cuda.wait(self.compute, downloaded)
        if self.graphs:
            cuda.launch(self.graphs[slot], self.compute)
        else:
            self.inference(slot)()
        cuda.record(inferred, self.compute)
        cuda.wait(self.download, inferred)
        cuda.download(self.targets[number], self.outputs[slot], self.download)
        cuda.record(downloaded, self.download)


WAITS = [
    ("copy", "inferred 0"),
    ("copy", "inferred 1"),
    ("compute", "uploaded 0"),
    ("compute", "uploaded 1"),
    ("compute", "downloaded 0"),
    ("compute", "downloaded 1"),
    ("download", "inferred 0"),
    ("download", "inferred 1"),
    ("host", "finished"),
]


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_found_where_nothing_is_missing(seed: int, graphs: bool) -> None:
    with RecordingCuda(seed) as cuda:
        Pipeline(cuda, graphs).run()
        assert cuda.waits == set(WAITS)
        assert cuda.complaints == []


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("drop", WAITS)
def test_every_wait_is_missed(drop: tuple[str, str], graphs: bool) -> None:
    for seed in range(5):
        with RecordingCuda(seed, drop=drop) as cuda:
            with pytest.raises(AssertionError) as caught:
                Pipeline(cuda, graphs).run()
            assert caught.type is Race or drop[0] == "host"


@pytest.mark.parametrize("drop", WAITS)
def test_what_is_missing_shows_in_the_pixels(
    drop: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without the clocks: work is late, and in any order that the waits allow."""
    monkeypatch.setattr(Allocation, "note", lambda self, access: None)
    wrong = 0
    for seed in range(10):
        with RecordingCuda(seed, drop=drop) as cuda:
            try:
                Pipeline(cuda).run()
            except AssertionError:
                wrong += 1
            assert cuda.complaints == []
    assert wrong >= 3


def test_a_race_names_both(cuda: RecordingCuda) -> None:
    a, b = cuda.stream("a"), cuda.stream("b")
    buffer, pixels = cuda.buffer(SIZE, "the buffer"), cuda.pinned((SIZE,), "the pixels")
    cuda.upload(buffer, pixels, a)
    said = (
        r"\[download the buffer -> other\] in b reads the buffer, and nothing lets it wait for "
        r"\[upload the pixels -> the buffer\] in a, which writes it"
    )
    with pytest.raises(Race, match=said):
        cuda.download(cuda.pinned((SIZE,), "other"), buffer, b)
    assert len(cuda.complaints) == 1


@pytest.fixture
def cuda() -> RecordingCuda:
    return RecordingCuda()


@pytest.fixture
def stream(cuda: RecordingCuda) -> Stream:
    return cuda.stream("stream")


# The host ------------------------------------------------------------------------------------


def test_a_source_must_not_change_before_it_was_read(cuda: RecordingCuda, stream: Stream) -> None:
    buffer, pixels = cuda.buffer(SIZE, "buffer"), cuda.pinned((SIZE,), "pixels")
    cuda.upload(buffer, pixels, stream)
    pixels[3] = 1
    with pytest.raises(Race, match=r"the source of \[upload pixels -> buffer\].* was written"):
        cuda.advance()


def test_a_source_may_be_downloaded_first(cuda: RecordingCuda, stream: Stream) -> None:
    """What the device itself writes in between is no change by the host."""
    source, target = cuda.buffer(SIZE, "source"), cuda.buffer(SIZE, "target")
    pixels = cuda.pinned((SIZE,), "pixels")
    cuda.array(source)[:] = 5
    cuda.download(pixels, source, stream)
    cuda.upload(target, pixels, stream)
    cuda.advance()
    assert (cuda.array(target) == 5).all()


def test_a_copy_to_pageable_memory_waits(cuda: RecordingCuda, stream: Stream) -> None:
    """As the driver does; so all before it in the stream is over."""
    buffer, pixels = cuda.buffer(SIZE, "buffer"), cuda.pinned((SIZE,), "pixels")
    pageable = np.zeros(SIZE, np.uint8)
    pixels[:] = 5
    cuda.upload(buffer, pixels, stream)
    cuda.download(pageable, buffer, stream)
    assert (pageable == 5).all()
    cuda.host_write(pixels)


def test_the_host_says_what_it_does(cuda: RecordingCuda, stream: Stream) -> None:
    buffer, pixels = cuda.buffer(SIZE, "buffer"), cuda.pinned((SIZE,), "pixels")
    event = cuda.event("event")
    cuda.upload(buffer, pixels, stream)
    cuda.record(event, stream)
    cuda.host_read(pixels)
    with pytest.raises(Race, match=r"host write -> pixels\] in host .*upload pixels -> buffer"):
        cuda.host_write(pixels[5:6])
    cuda.synchronize(event)
    cuda.host_write(pixels)
    cuda.download(pixels, buffer, stream)
    with pytest.raises(Race, match="host read"):
        cuda.host_read(pixels)


def test_that_it_ran_is_not_enough(cuda: RecordingCuda, stream: Stream) -> None:
    """The host must have asked: luck does not count."""
    buffer, pixels = cuda.buffer(SIZE, "buffer"), cuda.pinned((SIZE,), "pixels")
    cuda.download(pixels, buffer, stream)
    assert cuda.advance() == 1
    with pytest.raises(Race):
        cuda.host_read(pixels)


def test_nothing_runs_by_itself(cuda: RecordingCuda, stream: Stream) -> None:
    buffer, pixels = cuda.buffer(SIZE, "buffer"), cuda.pinned((SIZE,), "pixels")
    pixels[:] = 7
    cuda.upload(buffer, pixels, stream)
    assert (cuda.array(buffer) == RUBBISH).all()
    assert cuda.advance() == 1
    assert (cuda.array(buffer) == 7).all()
    cuda.download(pixels, buffer, stream)
    assert (pixels == RUBBISH).all()
    assert cuda.advance() == 1
    assert (pixels == 7).all()


def test_an_event_may_be_asked_for_ever(cuda: RecordingCuda, stream: Stream) -> None:
    """`done` lets the device run a little, so that a loop that polls comes to an end."""
    event, buffer = cuda.event("event"), cuda.buffer(SIZE, "buffer")
    for _ in range(50):
        cuda.copy(buffer, buffer, stream)
    cuda.record(event, stream)
    answers = [cuda.done(event) for _ in range(200)]
    assert not answers[0]
    assert answers[-1]
    assert answers == sorted(answers)


# The loop ------------------------------------------------------------------------------------


def test_the_loop_neither_waits_nor_allocates(cuda: RecordingCuda, stream: Stream) -> None:
    event, buffer, numbers = cuda.event("event"), cuda.buffer(SIZE, "buffer"), count(1)
    pageable = np.zeros(SIZE, np.uint8)
    calls: list[Callable[[], object]] = [
        lambda: cuda.synchronize(event),
        lambda: cuda.stream("stream"),
        lambda: cuda.event("event"),
        lambda: cuda.buffer(1, "buffer"),
        lambda: cuda.pinned((1,), "pixels"),
        lambda: cuda.captured(lambda: None, stream, "graph"),
        lambda: cuda.register_gl(1, SIZE),
        lambda: cuda.free(buffer),
        lambda: cuda.upload(buffer, pageable, stream),
        lambda: cuda.download(pageable, buffer, stream),
    ]
    cuda.enter_loop()
    for number, call in zip(numbers, calls, strict=False):
        with pytest.raises(Forbidden, match="in the loop"):
            call()
        assert len(cuda.complaints) == number
    cuda.leave_loop()
    for call in calls[:-3]:
        call()


# Graphs --------------------------------------------------------------------------------------


def test_a_graph_that_forks_is_refused(cuda: RecordingCuda, stream: Stream) -> None:
    other, event = cuda.stream("other"), cuda.event("event")

    def forks() -> None:
        cuda.record(event, stream)
        cuda.wait(other, event)

    with pytest.raises(CudaError, match="lets other wait for an event of the capture"):
        cuda.captured(forks, stream, "graph")


def test_a_capture_that_was_broken_fails_however_it_ends(
    cuda: RecordingCuda, stream: Stream
) -> None:
    def swallows() -> None:
        with pytest.raises(CudaError):
            cuda.buffer(1, "buffer")

    with pytest.raises(CudaError, match="Invalidated: graph calls buffer"):
        cuda.captured(swallows, stream, "graph")


def test_two_launches_of_a_graph_follow_each_other(cuda: RecordingCuda) -> None:
    """As CUDA promises, even in two streams."""
    a, b = cuda.stream("a"), cuda.stream("b")
    source, target = cuda.buffer(SIZE, "source"), cuda.buffer(SIZE, "target")
    graph = cuda.captured(lambda: cuda.copy(target, source, a), a, "graph")
    cuda.launch(graph, a)
    cuda.launch(graph, b)
    first, second = cuda.operations("copy")
    assert first.before(second)
    assert not second.before(first)
    assert (first.stream, second.stream, second.name) == ("a", "b", "graph")


def test_graphs_can_be_missing() -> None:
    cuda = RecordingCuda(graphs=False)
    assert not cuda.has_graphs
    with pytest.raises(Unsupported, match="without graphs"):
        cuda.captured(lambda: None, cuda.stream("stream"), "graph")


# Programs ------------------------------------------------------------------------------------


def test_a_program_touches_what_it_names(cuda: RecordingCuda, stream: Stream) -> None:
    named, other = cuda.buffer(SIZE, "named"), cuda.buffer(SIZE, "other")

    def run(kernel: Callable[[], None]) -> None:
        def enqueue() -> None:
            cuda.kernel(kernel, stream)

        cuda.compute(enqueue, stream, [named], [])
        cuda.advance()

    run(lambda: np.testing.assert_equal(cuda.array(named), RUBBISH))
    with pytest.raises(Race, match="touches other, which it does not name"):
        run(lambda: np.testing.assert_equal(cuda.array(other), RUBBISH))
    with pytest.raises(ValueError, match="read-only"):
        run(lambda: cuda.array(named).fill(0))


def test_kernels_belong_to_compute(cuda: RecordingCuda, stream: Stream) -> None:
    other = cuda.stream("other")
    with pytest.raises(RuntimeError, match="outside compute"):
        cuda.kernel(lambda: None, stream)
    with pytest.raises(RuntimeError, match="in other, in compute\\(\\) for stream"):
        cuda.compute(lambda: cuda.kernel(lambda: None, other), stream, [], [])


def test_what_a_real_program_enqueues_unseen_is_noted(cuda: RecordingCuda, stream: Stream) -> None:
    a, b = cuda.buffer(SIZE, "a"), cuda.buffer(SIZE, "b")
    cuda.compute(lambda: None, stream, [a], [b])
    (operation,) = cuda.operations("compute")
    assert (operation.reads, operation.writes) == (("a",), ("b",))
    with pytest.raises(Race, match="copy"):
        cuda.copy(a, b, cuda.stream("other"))


# OpenGL --------------------------------------------------------------------------------------


@pytest.fixture
def shared(cuda: RecordingCuda) -> GlBuffer:
    return cuda.register_gl(7, SIZE)


def test_opengl_draws_after_the_unmapping_only(
    cuda: RecordingCuda, stream: Stream, shared: GlBuffer
) -> None:
    source = cuda.buffer(SIZE, "source")
    with cuda.mapped(shared, stream) as target:
        cuda.copy(target, source, stream)
        with pytest.raises(Race, match="OpenGL draws OpenGL buffer 7, still mapped"):
            cuda.draw_gl(shared)
    cuda.draw_gl(shared)
    (copied,), (drawn,) = cuda.operations("copy"), cuda.operations("draw")
    assert copied.before(drawn)


def test_work_in_another_stream_is_not_covered_by_the_mapping(
    cuda: RecordingCuda, stream: Stream, shared: GlBuffer
) -> None:
    other, source = cuda.stream("other"), cuda.buffer(SIZE, "source")
    with cuda.mapped(shared, stream) as target, pytest.raises(Race, match="map"):
        cuda.copy(target, source, other)


def test_work_must_be_over_before_the_unmapping(
    cuda: RecordingCuda, stream: Stream, shared: GlBuffer
) -> None:
    other, source, event = cuda.stream("other"), cuda.buffer(SIZE, "source"), cuda.event("event")

    def work() -> None:
        with cuda.mapped(shared, stream) as target:
            cuda.record(event, stream)
            cuda.wait(other, event)
            cuda.copy(target, source, other)

    with pytest.raises(Race, match="unmap"):
        work()


@pytest.mark.parametrize("seed", range(10))
def test_the_next_mapping_waits_for_the_drawing(seed: int) -> None:
    cuda = RecordingCuda(seed)
    stream, shared = cuda.stream("stream"), cuda.register_gl(7, SIZE)
    pixels = [cuda.pinned((SIZE,), f"pixels {value}") for value in range(5)]
    drawn = []
    for value, source in enumerate(pixels):
        source[:] = value
        with cuda.mapped(shared, stream) as target:
            cuda.upload(target, source, stream)
        drawn.append(cuda.draw_gl(shared))
    cuda.advance()
    assert [int(pixels[0]) for pixels in drawn] == [0, 1, 2, 3, 4]


def test_a_mapped_address_does_not_last(
    cuda: RecordingCuda, stream: Stream, shared: GlBuffer
) -> None:
    source = cuda.buffer(SIZE, "source")
    with cuda.mapped(shared, stream) as target:
        graph = cuda.captured(lambda: cuda.copy(target, source, stream), stream, "graph")
    with pytest.raises(Race, match="is used where it is not mapped"):
        cuda.copy(target, source, stream)
    with cuda.mapped(shared, stream), pytest.raises(Race, match="is used where it is not mapped"):
        cuda.launch(graph, stream)


def test_opengl_can_be_missing() -> None:
    cuda = RecordingCuda(gl=False)
    assert not cuda.has_gl
    with pytest.raises(Unsupported, match="without OpenGL"):
        cuda.register_gl(1, SIZE)


# Failures and memory -------------------------------------------------------------------------


def test_a_call_fails_when_told_to(cuda: RecordingCuda, stream: Stream, shared: GlBuffer) -> None:
    event = cuda.event("event")
    cuda.record(event, stream)
    cuda.fail("record", nth=2)
    cuda.fail("map_gl")
    cuda.record(event, stream)
    with pytest.raises(CudaError, match="cudaErrorUnknown: record was told to fail"):
        cuda.record(event, stream)
    cuda.record(event, stream)
    with pytest.raises(CudaError, match="map_gl"), cuda.mapped(shared, stream):
        pytest.fail("mapped")
    with cuda.mapped(shared, stream):
        pass


def test_memory_is_counted(cuda: RecordingCuda, stream: Stream, shared: GlBuffer) -> None:
    assert (cuda.device_bytes, cuda.pinned_bytes) == (0, 0)
    buffer, pixels = cuda.buffer(100, "buffer"), cuda.pinned((10, 2), "pixels")
    others = np.zeros(7, np.uint8)
    assert cuda.pin(others)
    assert (cuda.device_bytes, cuda.pinned_bytes) == (100, 27)
    cuda.free(buffer, pixels)
    assert (cuda.device_bytes, cuda.pinned_bytes) == (0, 7)
    with pytest.raises(CudaError, match=r"buffer .* is no memory of this device, or was freed"):
        cuda.copy(buffer, buffer, stream)
    assert not RecordingCuda(pinnable=False).pin(others)


def test_bytes_outside_of_a_buffer_are_refused(cuda: RecordingCuda, stream: Stream) -> None:
    buffer = cuda.buffer(SIZE, "buffer")
    beyond = DeviceBuffer(buffer.address + 1, SIZE, "beyond")
    with pytest.raises(CudaError, match=r"beyond .* is no memory of this device"):
        cuda.copy(buffer, beyond, stream)


def test_parts_of_a_buffer_are_apart(cuda: RecordingCuda, stream: Stream) -> None:
    buffer, other = cuda.buffer(SIZE, "buffer"), cuda.stream("other")
    half = SIZE // 2
    left = DeviceBuffer(buffer.address, half, "left")
    right = DeviceBuffer(buffer.address + half, half, "right")
    pixels = cuda.pinned((half,), "pixels")
    cuda.upload(left, pixels, stream)
    cuda.upload(right, pixels, other)
    with pytest.raises(Race):
        cuda.upload(left, pixels, other)


def test_the_history_stays_short(cuda: RecordingCuda, stream: Stream) -> None:
    buffer, pixels = cuda.buffer(SIZE, "buffer"), cuda.pinned((SIZE,), "pixels")
    event = Event(0, "")
    for _ in range(200):
        cuda.upload(buffer, pixels, stream)
        cuda.download(pixels, buffer, stream)
        event = cuda.event("event")
        cuda.record(event, stream)
        while not cuda.done(event):
            pass
        cuda.host_read(pixels)
    held = [*cuda._device.values(), *cuda._pinned.values()]
    assert max(len(one.accesses) for one in held) <= 3
