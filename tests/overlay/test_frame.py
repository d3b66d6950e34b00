"""Buffers: leased, never shared, used again, and bounded."""

import numpy as np
import pytest

from overlay.frame import BufferRing, Frame, Picture, Region, Size, nothing


def test_a_buffer_returns_with_the_last_reference() -> None:
    ring = BufferRing.of_shape((2, 2, 4))
    lease = ring.take()
    buffer = lease.buffer
    frame = Frame(buffer, 0, 1, 2, Region(0, 0, 2, 2), lease)
    del lease
    assert ring.take().buffer is not buffer
    del frame
    assert ring.take().buffer is buffer


def test_held_buffers_are_distinct() -> None:
    ring = BufferRing.of_shape((1,))
    held = [ring.take() for _ in range(5)]
    assert len({id(lease.buffer) for lease in held}) == 5


def test_a_hoarding_stage_is_an_error_and_not_endless_memory() -> None:
    ring = BufferRing.of_shape((1,), limit=3)
    held = [ring.take() for _ in range(3)]
    with pytest.raises(RuntimeError, match="all 3 frame buffers"):
        ring.take()
    held.pop()
    assert ring.take().buffer.dtype == np.uint8


def test_size_is_width_by_height() -> None:
    frame = Frame(np.zeros((270, 480, 4), np.uint8), 0, 0, 0, Region(5, 6, 480, 270))
    assert str(frame.size) == "480x270"
    assert str(frame.region) == "480x270+5+6"


def test_a_picture_without_host_pixels_has_its_size_and_no_memory() -> None:
    pixels = nothing((2160, 3840, 4))
    frame = Frame(np.zeros((540, 960, 4), np.uint8), 0, 0, 0, Region(0, 0, 960, 540))
    picture = Picture(frame, "bgra", pixels, 4, "net", "test", "bicubic")
    assert picture.size == Size(3840, 2160)
    assert pixels.base is not None
    assert pixels.base.nbytes == 1
    assert not pixels.flags.writeable
