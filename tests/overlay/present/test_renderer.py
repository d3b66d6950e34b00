import gc

import numpy as np
import pytest

from overlay.errors import PresentError
from overlay.frame import BufferRing, Frame, Picture, Region, Size
from overlay.hud import HudView, Span
from overlay.present import programs, scaling
from overlay.present.gl import DEBUG, GL, check
from overlay.present.offscreen import open_context
from overlay.present.programs import Program
from overlay.present.renderer import CursorSprite, Renderer
from overlay.present.texture import Texture
from tests.contracts.presenter import SOURCE, picture_of, quarters

SURFACE = Size(128, 96)


@pytest.fixture(scope="module")
def context():
    context = open_context()
    yield context
    context.close()


@pytest.fixture
def renderer(context):
    renderer = Renderer()
    surface = Texture(Size(256, 256), "rgb")
    renderer.target = surface.framebuffer
    renderer.resize(SURFACE)
    yield renderer
    renderer.close()
    surface.delete()


@pytest.fixture
def uploads(monkeypatch):
    """The pixels of each upload."""
    done = []
    upload = Texture.upload

    def noted(self, pixels):
        done.append(pixels.copy())
        upload(self, pixels)

    monkeypatch.setattr(Texture, "upload", noted)
    return done


def flat(colour, size=SOURCE):
    pixels = np.empty((size.height, size.width, 4), np.uint8)
    pixels[:] = (*colour, 0)
    return pixels


def test_times_are_in_order(renderer):
    times = renderer.draw(picture_of(quarters()), None)
    assert 0 < times.uploaded_ns <= times.drawn_ns


def test_read_has_the_top_row_first_and_owns_its_memory(renderer):
    renderer.draw(picture_of(quarters()), None)
    first = renderer.read()
    np.testing.assert_array_equal(first[0, 0, :3], (255, 0, 0))
    np.testing.assert_array_equal(first[-1, 0, :3], (0, 0, 255))
    kept = first.copy()
    renderer.draw(picture_of(flat((1, 2, 3))), None)
    renderer.read()
    np.testing.assert_array_equal(first, kept)


# Uploads -----------------------------------------------------------------------------------


def test_a_repaint_uploads_nothing(renderer, uploads):
    picture = picture_of(quarters())
    renderer.draw(picture, None)
    first = renderer.read()
    renderer.draw(picture, None)
    assert len(uploads) == 1
    np.testing.assert_array_equal(renderer.read(), first)


def test_a_new_picture_in_the_same_buffer_is_uploaded(renderer):
    pixels = flat((9, 9, 9))
    renderer.draw(picture_of(pixels), None)
    pixels[:] = 77
    renderer.draw(picture_of(pixels), None)
    assert (renderer.read()[..., :3] == 77).all()


def test_a_buffer_reused_while_only_the_source_was_shown_is_uploaded(renderer):
    result = flat((9, 9, 9), SURFACE)
    renderer.draw(picture_of(quarters(), "bgra", result), None)
    renderer.draw(picture_of(quarters()), None)
    result[:] = 77
    renderer.draw(picture_of(quarters(), "bgra", result), None)
    assert (renderer.read()[..., :3] == 77).all()


def test_only_what_is_drawn_is_uploaded(renderer, uploads):
    result = picture_of(quarters(), "bgra", flat((5, 6, 7), SURFACE))
    renderer.draw(result, None)
    assert [pixels.shape for pixels in uploads] == [(96, 128, 4)]
    renderer.draw(picture_of(quarters()), None)  # the player looks at the source
    assert [pixels.shape for pixels in uploads] == [(96, 128, 4), (48, 64, 4)]
    renderer.draw(result, None)
    assert len(uploads) == 2
    assert (renderer.read()[..., :3] == (5, 6, 7)).all()
    luma = np.zeros((96, 128), np.uint8)
    renderer.draw(picture_of(quarters(), "luma", luma), None)
    assert [pixels.shape for pixels in uploads[2:]] == [(96, 128), (48, 64, 4)]


def test_the_last_picture_keeps_its_buffer_and_no_other_does(renderer):
    ring = BufferRing.of_shape((48, 64, 4), limit=2)

    def picture():
        lease = ring.take()
        frame = Frame(lease.buffer, 0, 0, 0, Region(0, 0, 64, 48), lease)
        return Picture(frame, "source", lease.buffer, 1, "nearest", "test", "nearest")

    for _ in range(10):  # one buffer is with the renderer, one with the new picture
        renderer.draw(picture(), None)
    gc.collect()
    held = ring.take()
    with pytest.raises(RuntimeError, match="held"):
        ring.take()
    del held


@pytest.mark.parametrize(
    "view",
    [
        lambda big: big[8:56, 16:80],  # rows with a gap: no copy needed
        lambda big: big[8:56, 80:16:-1],
        lambda big: big[56:8:-1, 16:80],
        lambda big: big[::2, ::2][:48, :64],
    ],
)
def test_pictures_need_not_be_contiguous(renderer, view):
    big = np.random.default_rng(0).integers(0, 256, (100, 130, 4), np.uint8)
    pixels = view(big)
    renderer.resize(Size(64, 48))
    renderer.draw(picture_of(pixels), None, fit="stretch")
    np.testing.assert_array_equal(renderer.read()[..., :3], pixels[..., :3])


@pytest.mark.parametrize("width", [1, 3, 61])
def test_rows_of_any_width(renderer, width):
    luma = np.random.default_rng(0).integers(0, 256, (7, width), np.uint8)
    grey = np.full((7, width, 4), 128, np.uint8)
    renderer.resize(Size(width, 7))
    renderer.draw(picture_of(grey, "luma", luma), None)
    np.testing.assert_array_equal(renderer.read()[..., 1], luma)


def test_nothing_is_made_anew_while_sizes_stay(renderer, monkeypatch):
    def frames():
        for shader in ("fsr1", "lanczos", "nearest"):
            yield picture_of(quarters(), shader=shader)
        yield picture_of(quarters(), "luma", np.zeros((144, 192), np.uint8), "fsr1")
        yield picture_of(quarters(), "bgra", flat((1, 2, 3), SURFACE))

    hud = HudView(((Span("60"),),))
    for _ in range(2):
        for picture in frames():
            renderer.draw(picture, hud)
        monkeypatch.setattr(Program, "__init__", None)  # a call would raise
    # "result" is luma for one of them and colour for the other: only this one texture changes
    made = []
    create = Texture.__init__
    monkeypatch.setattr(
        Texture, "__init__", lambda self, *a, **k: (made.append(a), create(self, *a, **k))[1]
    )
    for picture in frames():
        renderer.draw(picture, hud)
    assert [kind for _, kind in made] == ["luma", "bgra"]


# Placement ---------------------------------------------------------------------------------


def test_bars_are_black_also_after_a_full_picture(renderer):
    renderer.draw(picture_of(flat((200, 200, 200))), None)
    tall = picture_of(flat((10, 20, 30), Size(24, 48)))
    renderer.draw(tall, HudView(((Span("x"),),), corner="top-right"))
    renderer.draw(tall, None)
    shown = renderer.read()[..., :3]
    assert not shown[:, :40].any()
    assert not shown[:, 88:].any()
    assert (shown[:, 40:88] == (10, 20, 30)).all()


def test_fill_cuts_the_edges_evenly(renderer):
    pixels = flat((0, 0, 0), Size(10, 30))
    pixels[10:20, :, 1] = 255
    renderer.resize(Size(100, 100))
    renderer.draw(picture_of(pixels), None, fit="fill")  # 100 x 300 of it
    assert (renderer.read()[..., :3] == (0, 255, 0)).all()


def test_integer_leaves_a_frame(renderer):
    renderer.resize(Size(140, 100))
    assert renderer.viewport(Size(64, 48), "integer") == Region(6, 2, 128, 96)
    renderer.draw(picture_of(flat((255, 255, 255))), None, fit="integer")
    shown = renderer.read()[..., 1]
    assert (shown[2:98, 6:134] == 255).all()
    assert int(shown.astype(np.int64).sum()) == 128 * 96 * 255


def test_the_filter_of_the_picture_scales_what_is_left(renderer):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 4), np.uint8)
    renderer.draw(picture_of(quarters(), "bgra", pixels, shader="bilinear"), None)
    bilinear = renderer.read()
    renderer.draw(picture_of(quarters(), "bgra", pixels, shader="nearest"), None)
    nearest = renderer.read()
    np.testing.assert_array_equal(nearest[::2, ::2, :3], pixels[..., :3])
    assert (bilinear != nearest).any()


# The pointer -------------------------------------------------------------------------------


def test_cursor_is_blended_where_it_belongs(renderer):
    sprite = np.zeros((4, 4, 4), np.uint8)
    sprite[:, :2] = (0, 0, 255, 255)  # opaque red, then half a white, premultiplied
    sprite[:, 2:] = (128, 128, 128, 128)
    cursor = CursorSprite(sprite, Region(20, 10, 16, 16))
    renderer.draw(picture_of(flat((0, 100, 0))), None, cursor=cursor)
    shown = renderer.read()[..., :3].astype(int)
    assert (shown[10:26, 20:26] == (0, 0, 255)).all()
    assert np.abs(shown[10:26, 30:36] - (128, 178, 128)).max() <= 1
    shown[10:26, 20:36] = (0, 100, 0)
    assert (shown == (0, 100, 0)).all()


def test_cursor_over_the_edge_and_its_new_shape(renderer):
    white = np.full((4, 4, 4), 255, np.uint8)
    picture = picture_of(flat((0, 0, 0)))
    renderer.draw(picture, None, cursor=CursorSprite(white, Region(-4, 92, 8, 8)))
    shown = renderer.read()[..., :3]
    assert (shown[92:, :4] == 255).all()
    assert not shown[:92].any()
    assert not shown[:, 4:].any()
    renderer.draw(picture, None, cursor=CursorSprite(white // 2, Region(0, 0, 4, 4)))
    assert (renderer.read()[:4, :4, :3] == 127).all()


def test_same_cursor_is_uploaded_once(renderer, uploads):
    sprite = np.full((4, 4, 4), 255, np.uint8)
    for left in range(3):
        picture = picture_of(quarters())
        renderer.draw(picture, None, cursor=CursorSprite(sprite, Region(left, 0, 4, 4)))
    assert [pixels.shape for pixels in uploads].count((4, 4, 4)) == 1


# Life --------------------------------------------------------------------------------------


def test_gpu_time_comes_from_an_earlier_picture(renderer):
    assert renderer.draw(picture_of(quarters()), None).gpu == (0, 0, 0)
    for _ in range(20):
        times = renderer.draw(picture_of(quarters(), shader="fsr1"), None)
        renderer.read()
    assert 0 < times.gpu.duration_ns < 10**9


def test_shader_that_does_not_compile_shows_the_log(context, monkeypatch):
    text = programs.shader_text

    def broken(name):
        return text(name).replace("rgb", "oops") if name == "nearest" else text(name)

    monkeypatch.setattr(programs, "shader_text", broken)
    renderer = Renderer()
    renderer.resize(SURFACE)
    with pytest.raises(PresentError, match=r"(?s)nearest.glsl does not compile.*oops"):
        renderer.draw(picture_of(quarters(), shader="nearest"), None)
    renderer.close()


@pytest.mark.skipif(DEBUG, reason="PyOpenGL itself raises then")
def test_an_error_of_a_frame_is_not_blamed_on_the_next_texture(context):
    GL.glEnable(0xFFFF)
    Texture(Size(4, 4), "rgb").delete()
    GL.glEnable(0xFFFF)
    with pytest.raises(PresentError, match="draw: invalid enum"):
        check("draw")


@pytest.mark.skipif(DEBUG, reason="PyOpenGL itself raises then")
def test_size_beyond_the_driver_is_an_error(context):
    with pytest.raises(PresentError, match="10000000x1"):
        Texture(Size(10_000_000, 1), "bgra")


def test_close_twice(context):
    renderer = Renderer()
    renderer.close()
    renderer.close()


def test_every_shader_file_is_used():
    files = {path.name[:-5] for path in programs.shader_files()}
    used = {"screen", "boxes", "glyphs"}  # vertex shaders and text
    used |= {"fetch", "linear"}  # included
    used |= {"nearest", "sharp", "area", "bilinear", "cubic", "lanczos", "easu", "rcas"}
    used |= {"merge", "sprite"}
    assert files == used


def test_sharpening_is_in_the_range_of_the_description():
    assert 0 <= scaling.SHARPENING_STOPS <= 2
