"""The GPU timer: durations of drawing, never the garbage of a query that did not run."""

import numpy as np

from overlay.frame import Frame, Picture, Region, Size
from overlay.present import Look
from overlay.present.offscreen import OffscreenPresenter


def test_times_are_no_longer_than_the_run() -> None:
    pixels = np.zeros((27, 48, 4), np.uint8)
    found = []
    with OffscreenPresenter(Look(size=Size(480, 270))) as presenter:
        for n in range(30):
            frame = Frame(pixels, n, 0, 0, Region(0, 0, 48, 27))
            picture = Picture(frame, "source", pixels, 1, "m", "b", "bicubic")
            found.append(presenter.show(picture, None).gpu_ns)
    assert max(found) > 0
    assert max(found) < 60e9
