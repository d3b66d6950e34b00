"""How a net's luma and a video's chroma are joined."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from engines import frames, zoo
from overlay.files import video_colour
from overlay.files.enlarge import Wish
from overlay.files.video_colour import Colour
from overlay.files.video_models import LumaEnlarger, LumaJoint, RgbEnlarger
from overlay.files.video_source import FrameReader, read_clip
from tests.overlay.files.clips import write


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_chroma_lies_where_it_was(scale: int) -> None:
    """A ramp is linear interpolation's own: it must come out exactly, away from the borders.

    In pixels of luma, the centre of column x is at x + 1/2; chroma is on the left one of two.
    """
    across, down = np.arange(24) * 2 + 0.5, np.arange(16) * 2 + 1.0
    blue = np.repeat((40 + 3 * across)[None], 16, 0)
    red = np.repeat((50 + 4 * down)[:, None], 24, 1)
    joint = LumaJoint((48, 32), scale, Colour(6, True))
    planes = joint.joined(
        np.zeros((32 * scale, 48 * scale), np.uint8),
        np.rint(blue).astype(np.uint8), np.rint(red).astype(np.uint8),
    )  # fmt: skip
    found = planes[32 * scale :].reshape(2, 16 * scale, 24 * scale)
    large_across = (np.arange(24 * scale) * 2 + 0.5) / scale
    large_down = (np.arange(16 * scale) * 2 + 1.0) / scale
    inner = np.s_[2 * scale : -2 * scale]
    assert np.abs(found[0, 5, inner] - (40 + 3 * large_across[inner])).max() <= 1
    assert np.abs(found[1, inner, 5] - (50 + 4 * large_down[inner])).max() <= 1


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", sorted(video_colour.WEIGHTS))
def test_luma_of_every_matrix_from_that_of_bt601(matrix: int, full: bool) -> None:
    kr, kb = video_colour.WEIGHTS[matrix]
    for rgb in ((0.9, 0.2, 0.3), (0.1, 0.8, 0.4), (0.2, 0.3, 0.95)):
        red, green, blue = rgb
        luma = kr * red + (1 - kr - kb) * green + kb * blue
        chroma = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
        span, width = (255, 255) if full else (219, 224)
        planes = [np.full((4, 4), round(128 + width * level), np.uint8) for level in chroma]
        given = np.full((16, 16), round(255 * float(np.dot(rgb, (0.299, 0.587, 0.114)))), np.uint8)
        found = LumaJoint((8, 8), 2, Colour(matrix, full)).joined(given, *planes)[:16]
        assert np.abs(found - ((0 if full else 16) + span * luma)).max() <= 1.5


@pytest.mark.parametrize("colour", [(1, 1, 1, 1), (6, 2, 6, 6)])
def test_the_quick_way_gives_what_rgb_gives(tmp_path: Path, colour: tuple[int, ...]) -> None:
    picture = frames.read((96, 54))[2]
    rgb = np.ascontiguousarray(picture[..., 2::-1])
    source = write(tmp_path / "in.mp4", [rgb], colour=colour, options={"crf": "8"})
    clip = read_clip(source)
    spec = zoo.spec("default-x4")
    pictures = []
    for enlarger in (
        LumaEnlarger(clip, spec, (384, 216)),
        RgbEnlarger(clip, Wish(model="default-x4"), (384, 216)),
    ):
        with enlarger, FrameReader(clip) as reader:
            item = enlarger.prepare(next(reader.stretch(clip.times[0], None)))
            enlarger.run(item)
            frame = enlarger.finish(item)
        assert (frame.width, frame.height, frame.format.name) == (384, 216, "yuv420p")
        pictures.append(video_colour.rgb_from_frame(frame, clip.colour, "rgb24"))
    assert cv2.PSNR(*pictures) > 42
    assert np.abs(pictures[0].mean((0, 1)) - pictures[1].mean((0, 1))).max() < 1
