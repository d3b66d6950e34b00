"""What every upscaler promises; each back end's test supplies one to ask."""

from __future__ import annotations

import gc
import time
import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from overlay.frame import Frame, Picture, Region, Size
from overlay.infer import Upscaler

Pixels = NDArray[np.uint8]

SMALL = Size(48, 32)
OTHER = Size(34, 50)


def frame(size: Size = SMALL, seed: int = 0) -> Frame:
    shape = (size.height, size.width, 4)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return frame_of(pixels, seed)


def frame_of(pixels: Pixels, sequence: int = 0) -> Frame:
    region = Region(0, 0, pixels.shape[1], pixels.shape[0])
    return Frame(pixels, sequence, 1, 2, region)


def finish(upscaler: Upscaler, given: Frame) -> Picture:
    """Submit and wait."""
    upscaler.submit(given)
    return wait(upscaler)


def wait(upscaler: Upscaler) -> Picture:
    picture = upscaler.poll(5)
    assert picture is not None
    return picture


class UpscalerContract:
    """Inherit from it and give a fixture `upscaler`, which takes frames of SMALL and OTHER."""

    #: What its pictures are.
    kind = "bgra"

    @pytest.fixture
    def upscaler(self) -> Upscaler:
        raise NotImplementedError

    def test_it_has_names(self, upscaler: Upscaler) -> None:
        assert upscaler.model
        assert upscaler.backend
        assert upscaler.device
        assert upscaler.slots >= 1

    def test_a_frame_becomes_a_picture(self, upscaler: Upscaler) -> None:
        upscaler.warm_up(SMALL)
        assert upscaler.in_flight == 0
        assert upscaler.poll(0) is None
        given = frame()
        upscaler.submit(given)
        assert upscaler.in_flight == 1
        picture = wait(upscaler)
        assert upscaler.in_flight == 0
        assert upscaler.poll(0) is None
        assert picture.frame is given
        assert (picture.model, picture.backend) == (upscaler.model, upscaler.backend)
        assert picture.kind == self.kind
        assert picture.scale == upscaler.scale
        assert picture.size == Size(48 * upscaler.scale, 32 * upscaler.scale)
        assert picture.pixels.dtype == np.uint8
        assert picture.pixels.ndim == (2 if self.kind == "luma" else 3)
        assert picture.pixels.flags.c_contiguous
        assert 0 <= picture.infer_ns < 5e9
        assert picture.shader

    def test_polling_without_waiting_comes_to_the_picture(self, upscaler: Upscaler) -> None:
        upscaler.submit(frame())
        end = time.monotonic() + 10
        while (picture := upscaler.poll(0)) is None:
            assert upscaler.in_flight == 1
            assert time.monotonic() < end
            time.sleep(0.001)
        assert upscaler.in_flight == 0
        assert picture.pixels[..., :3].std() > 10

    def test_one_frame_too_many_is_a_mistake(self, upscaler: Upscaler) -> None:
        for seed in range(upscaler.slots):
            upscaler.submit(frame(seed=seed))
        with pytest.raises(RuntimeError, match="in flight"):
            upscaler.submit(frame())
        for seed in range(upscaler.slots):
            assert wait(upscaler).frame.sequence == seed

    def test_the_size_may_change_from_frame_to_frame(self, upscaler: Upscaler) -> None:
        for size in (SMALL, OTHER, SMALL):
            picture = finish(upscaler, frame(size))
            assert picture.size == Size(size.width * upscaler.scale, size.height * upscaler.scale)

    def test_results_depend_on_the_frame_alone(self, upscaler: Upscaler) -> None:
        first = finish(upscaler, frame(seed=1)).pixels.copy()
        other = finish(upscaler, frame(OTHER, seed=2)).pixels
        assert first.shape != other.shape
        assert (finish(upscaler, frame(seed=2)).pixels != first).any()
        assert (finish(upscaler, frame(seed=1)).pixels == first).all()

    def test_the_frame_is_only_read(self, upscaler: Upscaler) -> None:
        given = frame(seed=4)
        before = given.pixels.copy()
        finish(upscaler, given)
        assert (given.pixels == before).all()

    def test_a_picture_keeps_its_pixels_until_it_is_dropped(self, upscaler: Upscaler) -> None:
        held = finish(upscaler, frame(seed=1))
        before = held.pixels.copy()
        pictures = [finish(upscaler, frame(seed=seed)) for seed in range(2, 5)]
        assert (held.pixels == before).all()
        addresses = {picture.pixels.ctypes.data for picture in (held, *pictures)}
        assert len(addresses) == 4
        upscaler.close()
        assert (held.pixels == before).all()

    def test_buffers_are_used_again(self, upscaler: Upscaler) -> None:
        given = frame()
        addresses = {finish(upscaler, given).pixels.ctypes.data for _ in range(10)}
        assert len(addresses) <= 2

    def test_rows_may_be_padded_and_pixels_read_only(self, upscaler: Upscaler) -> None:
        given = frame(seed=3)
        expected = finish(upscaler, given).pixels.copy()
        wide = np.zeros((SMALL.height, SMALL.width + 16, 4), np.uint8)
        wide[:, : SMALL.width] = given.pixels
        for pixels in (wide[:, : SMALL.width], given.pixels.copy()):
            pixels.flags.writeable = False
            assert (finish(upscaler, frame_of(pixels)).pixels == expected).all()

    def test_many_frames_do_not_grow_the_heap(self, upscaler: Upscaler) -> None:
        given = frame()
        for _ in range(20):
            finish(upscaler, given)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(100):
            finish(upscaler, given)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert grown < 20_000

    def test_close_with_a_frame_in_flight_and_twice(self, upscaler: Upscaler) -> None:
        upscaler.submit(frame())
        upscaler.close()
        upscaler.close()
        assert upscaler.in_flight == 0

    def test_it_closes_before_it_was_ever_used(self, upscaler: Upscaler) -> None:
        upscaler.close()
        assert upscaler.in_flight == 0
