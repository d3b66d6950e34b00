import numpy as np
import pytest

from overlay.errors import SettingsError
from overlay.frame import Frame, Region, Size
from overlay.infer import SHADERS
from overlay.infer.opengl import ShaderUpscaler


def frame_of(value):
    pixels = np.full((4, 6, 4), value, np.uint8)
    return Frame(pixels, value, 0, 0, Region(0, 0, 6, 4))


@pytest.mark.parametrize("shader", SHADERS)
def test_hands_on_the_frames_own_pixels(shader):
    with ShaderUpscaler(shader) as upscaler:
        upscaler.warm_up(Size(6, 4))
        frame = frame_of(7)
        upscaler.submit(frame)
        assert upscaler.in_flight == 1
        picture = upscaler.poll(0)
        assert upscaler.in_flight == 0
    assert picture.frame is frame
    assert picture.pixels is frame.pixels
    assert (picture.kind, picture.scale) == ("source", 1)
    assert (picture.model, picture.shader, picture.backend) == (shader, shader, "opengl")
    assert upscaler.inline
    assert upscaler.slots == 1


def test_each_picture_comes_once():
    upscaler = ShaderUpscaler("fsr1")
    assert upscaler.poll(0) is None
    upscaler.submit(frame_of(1))
    assert upscaler.poll(0).frame.sequence == 1
    assert upscaler.poll(0) is None


def test_a_second_frame_in_flight_is_refused():
    upscaler = ShaderUpscaler("nearest")
    upscaler.submit(frame_of(1))
    with pytest.raises(RuntimeError, match="in flight"):
        upscaler.submit(frame_of(2))


def test_close_lets_the_frame_go():
    upscaler = ShaderUpscaler("nearest")
    upscaler.submit(frame_of(1))
    upscaler.close()
    upscaler.close()
    assert upscaler.in_flight == 0
    assert upscaler.poll(0) is None


def test_unknown_shader_names_the_known_ones():
    with pytest.raises(SettingsError, match=r"'hq4x'.*fsr1"):
        ShaderUpscaler("hq4x")
