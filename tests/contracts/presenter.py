"""What every `Presenter` must do; a test module per back end subclasses `PresenterContract`."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from overlay.frame import Frame, Picture, PictureKind, Pixels, Region, Size
from overlay.hud import HudView, Span
from overlay.present import Presenter

SOURCE = Size(64, 48)


def picture_of(
    pixels: Pixels,
    kind: PictureKind = "source",
    result: Pixels | None = None,
    shader: str = "nearest",
) -> Picture:
    """Make a picture from BGRA pixels, with `result` for "bgra" and "luma"."""
    height, width = pixels.shape[:2]
    frame = Frame(pixels, 0, 0, 0, Region(0, 0, width, height))
    if result is None:
        return Picture(frame, kind, pixels, 1, shader, "test", shader)
    scale = result.shape[1] // width
    return Picture(frame, kind, result, scale, "net", "test", shader)


def quarters() -> Pixels:
    """A picture whose four quarters are blue, green, red and white: BGRA, (48, 64, 4)."""
    pixels = np.zeros((SOURCE.height, SOURCE.width, 4), np.uint8)
    pixels[:24, :32, 0] = pixels[:24, 32:, 1] = pixels[24:, :32, 2] = 255
    pixels[24:, 32:, :3] = 255
    return pixels


class PresenterContract:
    """Subclass it and give the fixture `presenter`, with Look(scale=2, fit="fit")."""

    @pytest.fixture
    def presenter(self) -> Presenter:
        raise NotImplementedError

    def test_names_its_renderer(self, presenter: Presenter) -> None:
        assert presenter.name
        assert "OpenGL" in presenter.device
        assert presenter.refresh_hz >= 0

    def test_shows_what_it_is_given(self, presenter: Presenter) -> None:
        presenter.follow(Region(0, 0, *SOURCE), True)
        presenter.show(picture_of(quarters()), None)
        shown = presenter.grab()
        assert shown.shape == (96, 128, 4)
        assert shown.dtype == np.uint8
        expected = np.repeat(np.repeat(quarters(), 2, axis=0), 2, axis=1)
        np.testing.assert_array_equal(shown[..., :3], expected[..., :3])

    def test_times_are_in_order_and_recent(self, presenter: Presenter) -> None:
        presenter.follow(Region(0, 0, *SOURCE), True)
        before = time.perf_counter_ns()
        shown = presenter.show(picture_of(quarters()), None)
        after = time.perf_counter_ns()
        stamps = (before, shown.begin_ns, shown.uploaded_ns, shown.drawn_ns, shown.swapped_ns)
        assert list(stamps) == sorted(stamps)
        assert shown.swapped_ns <= after
        assert shown.gpu_ns >= 0

    def test_hud_covers_its_corner_only_while_it_is_there(self, presenter: Presenter) -> None:
        presenter.follow(Region(0, 0, *SOURCE), True)
        picture = picture_of(np.full((48, 64, 4), 255, np.uint8))
        presenter.show(picture, None)
        plain = presenter.grab()
        presenter.show(picture, HudView(((Span("60"),),)))
        marked = presenter.grab()
        presenter.show(picture, None)
        assert marked[8:30, 8:30, :3].min() < 100
        assert (marked[-20:, -20:, :3] == 255).all()
        np.testing.assert_array_equal(presenter.grab(), plain)

    def test_tells_the_size_a_source_will_cover(self, presenter: Presenter) -> None:
        presenter.follow(Region(0, 0, *SOURCE), True)
        presenter.show(picture_of(quarters()), None)
        assert presenter.target_size(SOURCE) == Size(128, 96)

    def test_wait_ends_after_its_timeout(self, presenter: Presenter) -> None:
        presenter.wait(0.0)
        start = time.perf_counter()
        assert presenter.wait(0.05) == []
        assert 0.03 < time.perf_counter() - start < 5

    def test_wake_ends_a_wait_from_another_thread(self, presenter: Presenter) -> None:
        presenter.wait(0.0)
        timer = threading.Timer(0.05, presenter.wake)
        timer.start()
        start = time.perf_counter()
        presenter.wait(30)
        timer.join()
        assert time.perf_counter() - start < 10

    def test_close_twice_is_fine(self, presenter: Presenter) -> None:
        presenter.close()
        presenter.close()
