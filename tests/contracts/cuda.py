"""What every `Cuda` promises; each back end's test supplies the stage to show it on."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import pytest

from overlay.cuda import Cuda, CudaError, DeviceBuffer, Event, Stream, Unsupported
from overlay.frame import Pixels


@dataclass
class GlMemory:
    """An OpenGL buffer object: its name, its size, and how to read it."""

    buffer: int
    size: int
    read: Callable[[Cuda], Pixels]


class Stage(ABC):
    """A way to open a device."""

    #: Bytes, of which a few must not fit the device at the same time.
    large = 1000

    @abstractmethod
    def open(self) -> Cuda:
        """Open it."""

    @abstractmethod
    def gl(self, size: int) -> AbstractContextManager[GlMemory]:
        """Make an OpenGL buffer object in a current context, or skip the test."""


def noise(size: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def finish(cuda: Cuda, stream: Stream) -> None:
    """Wait for a stream, not in the way of a loop."""
    event = cuda.event("finished")
    cuda.record(event, stream)
    cuda.synchronize(event)


def poll(cuda: Cuda, event: Event) -> None:
    deadline = time.monotonic() + 20
    while not cuda.done(event):
        assert time.monotonic() < deadline, f"{event.name} was never reached"


def filled(cuda: Cuda, pixels: Pixels, stream: Stream) -> DeviceBuffer:
    """Make a buffer that holds these pixels."""
    buffer = cuda.buffer(pixels.size, "filled")
    host = cuda.pinned(pixels.shape, "filling")
    host[:] = pixels
    cuda.upload(buffer, host, stream)
    finish(cuda, stream)
    return buffer


def contents(cuda: Cuda, buffer: DeviceBuffer, stream: Stream) -> Pixels:
    host = cuda.pinned((buffer.size,), "contents")
    cuda.download(host, buffer, stream)
    finish(cuda, stream)
    return host


class CudaContract:
    """Inherit from it and give a fixture `stage`."""

    @pytest.fixture
    def stage(self) -> Stage:
        raise NotImplementedError

    @pytest.fixture
    def cuda(self, stage: Stage) -> Iterator[Cuda]:
        with stage.open() as cuda:
            yield cuda

    @pytest.fixture
    def stream(self, cuda: Cuda) -> Stream:
        return cuda.stream("compute", urgent=True)

    def test_the_device_is_described(self, cuda: Cuda) -> None:
        assert cuda.name
        assert cuda.device.name
        assert cuda.device.memory_bytes > 1 << 28
        major, minor = cuda.device.driver.split(".")
        assert int(major) >= 0
        assert int(minor) >= 0
        assert len(cuda.device.capability) == 2

    # Copies

    @pytest.mark.parametrize("size", [1, 4097, 480 * 270 * 4])
    def test_bytes_come_back(self, cuda: Cuda, stream: Stream, size: int) -> None:
        source = filled(cuda, noise(size), stream)
        target = cuda.buffer(size, "target")
        cuda.copy(target, source, stream)
        assert np.array_equal(contents(cuda, target, stream), noise(size))

    def test_a_copy_is_as_long_as_its_pixels(self, cuda: Cuda, stream: Stream) -> None:
        buffer = filled(cuda, noise(1000), stream)
        some = cuda.pinned((10,), "some")
        some[:] = 7
        cuda.upload(buffer, some, stream)
        expected = noise(1000)
        expected[:10] = 7
        assert np.array_equal(contents(cuda, buffer, stream), expected)
        cuda.download(some, buffer, stream)
        finish(cuda, stream)
        assert np.array_equal(some, expected[:10])

    def test_host_memory_need_not_be_pinned(self, cuda: Cuda, stream: Stream) -> None:
        pixels = noise(5000).reshape(50, 25, 4)
        buffer = cuda.buffer(pixels.size, "buffer")
        cuda.upload(buffer, pixels, stream)
        back = np.zeros_like(pixels)
        cuda.download(back, buffer, stream)
        finish(cuda, stream)
        assert np.array_equal(back, pixels)

    def test_what_does_not_fit_is_refused(self, cuda: Cuda, stream: Stream) -> None:
        small, large = cuda.buffer(10, "small"), cuda.buffer(11, "large")
        pixels = cuda.pinned((11,), "pixels")
        with pytest.raises(ValueError, match="11 bytes do not fit small, 10 bytes"):
            cuda.upload(small, pixels, stream)
        with pytest.raises(ValueError, match="do not fit"):
            cuda.download(pixels, small, stream)
        with pytest.raises(ValueError, match="do not fit"):
            cuda.copy(small, large, stream)

    def test_pixels_with_gaps_are_refused(self, cuda: Cuda, stream: Stream) -> None:
        buffer, pixels = cuda.buffer(100, "buffer"), cuda.pinned((10, 10), "pixels")
        with pytest.raises(ValueError, match="contiguous"):
            cuda.upload(buffer, pixels[:, :5], stream)
        with pytest.raises(ValueError, match="contiguous"):
            cuda.download(pixels[:, :5], buffer, stream)

    # Memory

    def test_pinned_memory_is_zero(self, cuda: Cuda) -> None:
        pixels = cuda.pinned((27, 48, 4), "pixels")
        assert pixels.dtype == np.uint8
        assert pixels.shape == (27, 48, 4)
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable
        assert not pixels.any()

    def test_pinned_memory_outlives_the_device(self, stage: Stage) -> None:
        with stage.open() as cuda:
            pixels = cuda.pinned((1000,), "pixels")
            pixels[:] = noise(1000)
            part = pixels[500:]
        assert np.array_equal(pixels, noise(1000))
        del pixels
        assert np.array_equal(part, noise(1000)[500:])

    def test_memory_of_others_is_pinned_or_refused(self, cuda: Cuda, stream: Stream) -> None:
        pixels = noise(1 << 16)
        if cuda.pin(pixels):
            assert cuda.pin(pixels)
            assert not cuda.pin(pixels[4096:])
        buffer = cuda.buffer(pixels.size, "buffer")
        cuda.upload(buffer, pixels, stream)
        assert np.array_equal(contents(cuda, buffer, stream), noise(1 << 16))

    def test_nothing_cannot_be_allocated(self, cuda: Cuda) -> None:
        with pytest.raises(ValueError, match="buffer: an allocation of 0 bytes"):
            cuda.buffer(0, "buffer")
        with pytest.raises(ValueError, match="0 bytes"):
            cuda.pinned((0, 4), "pixels")

    def test_too_much_is_an_error_and_no_more(self, cuda: Cuda, stream: Stream) -> None:
        with pytest.raises(CudaError, match=r"(?i)memory"):
            cuda.buffer(1 << 50, "too much")
        assert np.array_equal(contents(cuda, filled(cuda, noise(9), stream), stream), noise(9))

    def test_what_is_freed_can_be_had_again(self, stage: Stage, cuda: Cuda, stream: Stream) -> None:
        for _ in range(12):
            buffer, event = cuda.buffer(stage.large, "large"), cuda.event("event")
            host = cuda.pinned((1000,), "host")
            cuda.upload(buffer, host, stream)
            cuda.free(buffer, event, host)
        with pytest.raises(ValueError, match="large is not of this device, or was freed"):
            cuda.free(buffer)

    # Events

    def test_a_mark_that_was_never_set_is_passed(self, cuda: Cuda, stream: Stream) -> None:
        event = cuda.event("event")
        assert cuda.done(event)
        cuda.synchronize(event)
        cuda.wait(stream, event)
        finish(cuda, stream)

    def test_a_mark_is_reached_and_moves(self, cuda: Cuda, stream: Stream) -> None:
        event, buffer = cuda.event("event"), cuda.buffer(1 << 20, "buffer")
        back = cuda.pinned((1 << 20,), "back")
        for value in range(5):
            pixels = cuda.pinned((1 << 20,), "pixels")
            pixels[:] = value
            cuda.upload(buffer, pixels, stream)
            cuda.download(back, buffer, stream)
            cuda.record(event, stream)
            poll(cuda, event)
            assert (back == value).all()

    def test_streams_wait_for_each_other(self, cuda: Cuda) -> None:
        """Two slots, three streams; the pixels of every frame are right."""
        size = 1 << 18
        streams = [cuda.stream(name) for name in ("copy", "compute", "download")]
        copy, compute, download = streams
        slots = [
            (
                cuda.pinned((size,), "source"),
                cuda.buffer(size, "input"),
                cuda.buffer(size, "output"),
                cuda.pinned((size,), "target"),
                [cuda.event(f"{name} {slot}") for name in ("uploaded", "inferred", "done")],
            )
            for slot in range(2)
        ]
        for frame in range(12):
            source, before, after, target, (uploaded, inferred, done) = slots[frame % 2]
            poll(cuda, done)
            if frame >= 2:
                assert np.array_equal(target, noise(size, frame - 2))
            source[:] = noise(size, frame)
            cuda.upload(before, source, copy)
            cuda.record(uploaded, copy)
            cuda.wait(compute, uploaded)
            cuda.compute(
                lambda a=after, b=before: cuda.copy(a, b, compute),  # type: ignore[misc]
                compute,
                [before],
                [after],
            )
            cuda.record(inferred, compute)
            cuda.wait(download, inferred)
            cuda.download(target, after, download)
            cuda.record(done, download)
        for stream in streams:
            finish(cuda, stream)

    def test_time_passes_on_the_device(self, cuda: Cuda, stream: Stream) -> None:
        start, end = cuda.event("start", timing=True), cuda.event("end", timing=True)
        source = filled(cuda, noise(1 << 22), stream)
        target = cuda.buffer(1 << 22, "target")
        cuda.record(start, stream)
        cuda.copy(target, source, stream)
        cuda.record(end, stream)
        cuda.synchronize(end)
        assert 0 < cuda.elapsed_ms(start, end) < 1000

    def test_no_time_without_timing_or_marks(self, cuda: Cuda, stream: Stream) -> None:
        timed, untimed = cuda.event("timed", timing=True), cuda.event("untimed")
        with pytest.raises(CudaError):
            cuda.elapsed_ms(timed, timed)
        for event in (timed, untimed):
            cuda.record(event, stream)
        finish(cuda, stream)
        with pytest.raises(CudaError):
            cuda.elapsed_ms(timed, untimed)

    # Graphs

    def test_a_graph_does_it_again(self, cuda: Cuda, stream: Stream) -> None:
        if not cuda.has_graphs:
            with pytest.raises(Unsupported, match="graphs"):
                cuda.captured(lambda: None, stream, "graph")
            return
        size = 5000
        source, target = filled(cuda, noise(size), stream), cuda.buffer(size, "target")
        middle, host = cuda.buffer(size, "middle"), cuda.pinned((size,), "host")

        def enqueue() -> None:
            cuda.copy(middle, source, stream)
            cuda.copy(target, middle, stream)

        kept = filled(cuda, noise(size, 1), stream)
        cuda.copy(target, kept, stream)
        graph = cuda.captured(enqueue, stream, "graph")
        # Nothing has run yet.
        assert np.array_equal(contents(cuda, target, stream), noise(size, 1))
        for seed in (2, 3, 4):
            host[:] = noise(size, seed)
            cuda.upload(source, host, stream)
            cuda.launch(graph, stream)
            cuda.launch(graph, stream)
            assert np.array_equal(contents(cuda, target, stream), noise(size, seed))

    def test_an_error_ends_the_capture(self, cuda: Cuda, stream: Stream) -> None:
        if not cuda.has_graphs:
            pytest.skip("no graphs")
        source, target = filled(cuda, noise(100), stream), cuda.buffer(100, "target")

        def fails() -> None:
            cuda.copy(target, source, stream)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            cuda.captured(fails, stream, "graph")
        graph = cuda.captured(lambda: cuda.copy(target, source, stream), stream, "graph")
        cuda.launch(graph, stream)
        assert np.array_equal(contents(cuda, target, stream), noise(100))

    def test_a_capture_takes_no_waiting(self, cuda: Cuda, stream: Stream) -> None:
        if not cuda.has_graphs:
            pytest.skip("no graphs")
        target, source = cuda.buffer(100, "target"), filled(cuda, noise(100), stream)
        event = cuda.event("event")

        def waits() -> None:
            cuda.copy(target, source, stream)
            cuda.record(event, stream)
            cuda.synchronize(event)

        with pytest.raises(CudaError, match="Capture"):
            cuda.captured(waits, stream, "graph")
        cuda.copy(target, source, stream)
        assert np.array_equal(contents(cuda, target, stream), noise(100))

    # OpenGL

    def test_opengl_shows_what_was_written(self, stage: Stage, cuda: Cuda, stream: Stream) -> None:
        with stage.gl(4096) as memory:
            registered = cuda.register_gl(memory.buffer, memory.size)
            for seed in range(3):
                source = filled(cuda, noise(4096, seed), stream)
                with cuda.mapped(registered, stream) as buffer:
                    assert buffer.size >= 4096
                    cuda.copy(buffer, source, stream)
                assert np.array_equal(memory.read(cuda), noise(4096, seed))
            cuda.unregister_gl(registered)
            with pytest.raises(ValueError, match="is not of this device, or was freed"):
                cuda.unregister_gl(registered)

    def test_an_error_ends_the_mapping(self, stage: Stage, cuda: Cuda, stream: Stream) -> None:
        with stage.gl(64) as memory:
            registered = cuda.register_gl(memory.buffer, memory.size)
            with pytest.raises(ZeroDivisionError), cuda.mapped(registered, stream):
                raise ZeroDivisionError
            source = filled(cuda, noise(64), stream)
            with cuda.mapped(registered, stream) as buffer:
                cuda.copy(buffer, source, stream)
            assert np.array_equal(memory.read(cuda), noise(64))
            cuda.unregister_gl(registered)

    def test_no_buffer_is_unsupported(self, stage: Stage, cuda: Cuda) -> None:
        if cuda.name == "recording":
            pytest.skip("it takes any number for a buffer object")
        with pytest.raises(Unsupported):
            cuda.register_gl(0xFFFF, 4096)

    # The end

    def test_any_thread_may_call(self, cuda: Cuda) -> None:
        found: list[Pixels] = []

        def work() -> None:
            stream = cuda.stream("elsewhere")
            found.append(contents(cuda, filled(cuda, noise(999), stream), stream))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        assert np.array_equal(found[0], noise(999))

    def test_closing_twice_is_harmless_and_ends_all(self, stage: Stage) -> None:
        cuda = stage.open()
        stream, event = cuda.stream("stream"), cuda.event("event", timing=True)
        buffer, pixels = cuda.buffer(100, "buffer"), cuda.pinned((100,), "pixels")
        cuda.upload(buffer, pixels, stream)
        cuda.close()
        cuda.close()
        calls: list[Callable[[], object]] = [
            lambda: cuda.stream("stream"),
            lambda: cuda.event("event"),
            lambda: cuda.record(event, stream),
            lambda: cuda.wait(stream, event),
            lambda: cuda.done(event),
            lambda: cuda.synchronize(event),
            lambda: cuda.elapsed_ms(event, event),
            lambda: cuda.pinned((1,), "pixels"),
            lambda: cuda.buffer(1, "buffer"),
            lambda: cuda.upload(buffer, pixels, stream),
            lambda: cuda.download(pixels, buffer, stream),
            lambda: cuda.copy(buffer, buffer, stream),
            lambda: cuda.free(buffer),
            lambda: cuda.captured(lambda: None, stream, "graph"),
        ]
        for call in calls:
            with pytest.raises(CudaError):
                call()

    def test_opening_again_and_again_is_harmless(self, stage: Stage) -> None:
        for seed in range(10):
            with stage.open() as cuda:
                stream = cuda.stream("stream")
                buffer = filled(cuda, noise(1000, seed), stream)
                assert np.array_equal(contents(cuda, buffer, stream), noise(1000, seed))
