"""Pictures straight from CUDA: as good as from the host, in the right order, or downloaded."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("OpenGL", reason="PyOpenGL is not installed")

from overlay.cuda.races import Race
from overlay.cuda.recording import RecordingCuda
from overlay.frame import DevicePicture, Frame, Picture, Region, Size, nothing
from overlay.hud import HudView, Span
from overlay.present import Look
from overlay.present.gl import GL
from overlay.present.interop import Interop
from overlay.present.offscreen import OffscreenPresenter, open_context
from overlay.present.renderer import Renderer
from overlay.present.texture import Texture
from tests.hostprogram import enlarged, host_upscaler

HUD = HudView(((Span("60 fps"),),))
SOURCE, SURFACE = Size(64, 48), Size(128, 96)


def warnings(caplog):
    """What users are told; other tests may have turned finer messages on."""
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


class MesaCuda(RecordingCuda):
    """The fake, over buffer objects of a real OpenGL: its memory goes there when it is unmapped."""

    def mapped(self, buffer, stream):
        return self._mapped_for_mesa(buffer, stream)

    @contextmanager
    def _mapped_for_mesa(self, buffer, stream):
        with super().mapped(buffer, stream) as target:
            yield target
        # OpenGL would wait for the unmapping by itself.
        unmapped = self.operations("unmap")[-1]
        while not unmapped.done:
            self.advance(1)
        held = self.array(target)
        GL.glBindBuffer(GL.GL_PIXEL_UNPACK_BUFFER, buffer.buffer)
        GL.glBufferSubData(GL.GL_PIXEL_UNPACK_BUFFER, 0, held.nbytes, held)
        GL.glBindBuffer(GL.GL_PIXEL_UNPACK_BUFFER, 0)


class Player:
    """An upscaler on the fake: writes a picture into device memory, as slots do."""

    def __init__(self, cuda: RecordingCuda, shape: tuple[int, ...]) -> None:
        self.cuda, self.shape = cuda, shape
        size = int(np.prod(shape))
        self.stream = cuda.stream("compute")
        self.buffer = cuda.buffer(size, "output 0")
        self.staging = cuda.pinned((size,), "staging")
        self.ready, self.released = cuda.event("ready"), cuda.event("released")

    def play(self, pixels: np.ndarray, source: np.ndarray) -> Picture:
        """Give the picture while it is still being made."""
        assert pixels.shape == self.shape
        made, cuda = pixels.tobytes(), self.cuda
        cuda.wait(self.stream, self.released)

        def kernel() -> None:
            cuda.array(self.buffer)[:] = np.frombuffer(made, np.uint8)

        cuda.compute(lambda: cuda.kernel(kernel, self.stream), self.stream, (), (self.buffer,))
        cuda.record(self.ready, self.stream)
        device = DevicePicture(cuda, self.buffer, self.shape, self.ready, self.released)
        return picture_of(nothing(self.shape), source, device)


def picture_of(pixels, source, device=None) -> Picture:
    height, width = source.shape[:2]
    frame = Frame(source, 0, 0, 0, Region(0, 0, width, height))
    kind = "luma" if pixels.ndim == 2 else "bgra"
    scale = pixels.shape[1] // width
    return Picture(frame, kind, pixels, scale, "net", "test", "bicubic", device=device)


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def shape_of(kind: str, size: Size, scale: int) -> tuple[int, ...]:
    plane = (size.height * scale, size.width * scale)
    return plane if kind == "luma" else (*plane, 4)


@pytest.fixture(scope="module")
def context():
    context = open_context()
    yield context
    context.close()


@pytest.fixture
def made_renderer(context):
    """Make renderers that draw into textures of their own; they are closed at the end."""
    made = []

    def make(surface: Size = SURFACE) -> Renderer:
        renderer, target = Renderer(), Texture(Size(512, 512), "rgb")
        renderer.target = target.framebuffer
        renderer.resize(surface)
        made.append((renderer, target))
        return renderer

    yield make
    for renderer, target in made:
        renderer.close()
        target.delete()


@pytest.fixture
def draws(monkeypatch):
    """Tell the fake of each time that OpenGL reads a shared buffer; the fixture counts them."""
    seen: list[int] = []
    share, upload = Interop._share, Texture.upload_buffer
    current: list[tuple[RecordingCuda, Interop]] = []

    def noted_share(self, picture):
        share(self, picture)
        current[:] = [(picture.cuda, self)]

    def noted_upload(self, buffer):
        cuda, interop = current[0]
        assert buffer == interop._shared.id
        cuda.draw_gl(interop._shared.registered)
        seen.append(buffer)
        upload(self, buffer)

    monkeypatch.setattr(Interop, "_share", noted_share)
    monkeypatch.setattr(Texture, "upload_buffer", noted_upload)
    return seen


# The picture -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bgra", "luma"])
@pytest.mark.parametrize(
    ("source", "scale", "surface"),
    [
        (SOURCE, 2, Size(128, 96)),  # one to one
        (SOURCE, 3, Size(128, 96)),  # scaled down
        (SOURCE, 2, Size(200, 120)),  # scaled up, with bars
        (Size(5, 3), 1, Size(31, 17)),  # rows that no alignment fits
        (Size(37, 29), 4, Size(300, 300)),
    ],
)
def test_the_same_picture_as_from_the_host(made_renderer, kind, source, scale, surface):
    pixels = noise(shape_of(kind, source, scale))
    plain = noise((source.height, source.width, 4), 1)
    host = made_renderer(surface)
    host.draw(picture_of(pixels, plain), HUD)
    wanted = host.read()
    with MesaCuda() as cuda:
        renderer = made_renderer(surface)
        renderer.draw(Player(cuda, pixels.shape).play(pixels, plain), HUD)
        np.testing.assert_array_equal(renderer.read(), wanted)
        renderer.close()
    assert not renderer.wants_host
    assert not cuda.complaints
    assert np.ptp(wanted[..., :3]) > 200


def test_a_repaint_copies_nothing(made_renderer, draws):
    pixels, plain = noise((96, 128, 4)), noise((48, 64, 4), 1)
    with MesaCuda() as cuda:
        renderer = made_renderer()
        picture = Player(cuda, pixels.shape).play(pixels, plain)
        renderer.draw(picture, None)
        first = renderer.read()
        before = sum(cuda.calls.values())
        source = Picture(picture.frame, "source", plain, 1, "source", "opengl", "bilinear")
        for shown, surface, hud in (
            (picture, Size(128, 96), HUD),
            (source, Size(128, 96), None),  # the player looks at the source
            (picture, Size(64, 48), HUD),
            (picture, Size(128, 96), None),
        ):
            renderer.resize(surface)
            renderer.draw(shown, hud)
        np.testing.assert_array_equal(renderer.read(), first)
        assert sum(cuda.calls.values()) == before
        assert len(draws) == 1
        renderer.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_run_waits_for_nothing_and_registers_once(made_renderer, draws, seed):
    plain = noise((48, 64, 4), 1)
    with MesaCuda(seed) as cuda:
        renderer = made_renderer()
        player = Player(cuda, (96, 128, 4))
        for number in range(12):
            pixels = noise((96, 128, 4), number)
            renderer.draw(player.play(pixels, plain), HUD)
            cuda.enter_loop()
            renderer.draw(picture_of(plain, plain), None)
            shown = player.play(pixels, plain)
            renderer.draw(shown, None)
            np.testing.assert_array_equal(renderer.read()[..., :3], pixels[..., :3])
        cuda.leave_loop()
        assert cuda.calls["register_gl"] == 1
        assert cuda.calls["synchronize"] == cuda.calls["done"] == 0
        assert len(draws) == 24
        renderer.close()
        assert cuda.calls["unregister_gl"] == 1
    assert not cuda.complaints


class Watchful(MesaCuda):
    """Sees to it that buffer objects exist as long as they are registered."""

    def unregister_gl(self, buffer):
        assert GL.glIsBuffer(buffer.buffer), "deleted before CUDA let go of it"
        super().unregister_gl(buffer)


def test_another_size_is_registered_anew_and_the_old_one_freed(made_renderer, draws):
    plain = noise((48, 64, 4), 1)
    with Watchful() as cuda:
        renderer = made_renderer()
        players = [Player(cuda, (96, 128, 4)), Player(cuda, (144, 192)), Player(cuda, (48, 64, 4))]
        made_before = cuda.device_bytes
        for _ in range(3):
            for player in players:
                pixels = noise(player.shape, 3)
                renderer.draw(player.play(pixels, plain), None)
                got = renderer.read()
                renderer.draw(picture_of(pixels, plain), None)
                np.testing.assert_array_equal(got, renderer.read())
                registered = cuda.calls["register_gl"] - cuda.calls["unregister_gl"]
                assert registered == 1
        renderer.close()
        assert cuda.calls["register_gl"] == cuda.calls["unregister_gl"] == 9
        assert cuda.device_bytes == made_before
        assert not any(GL.glIsBuffer(buffer) for buffer in draws)


def test_another_device_is_another_start(made_renderer):
    plain, pixels = noise((48, 64, 4), 1), noise((96, 128, 4))
    renderer = made_renderer()
    with Watchful() as first, Watchful() as second:
        for cuda in (first, second, first):
            renderer.draw(Player(cuda, pixels.shape).play(pixels, plain), None)
            np.testing.assert_array_equal(renderer.read()[..., :3], pixels[..., :3])
        assert first.calls["unregister_gl"] == second.calls["unregister_gl"] == 1
        renderer.close()


def test_closing_after_the_device_is_harmless(made_renderer):
    renderer = made_renderer()
    with MesaCuda() as cuda:
        renderer.draw(Player(cuda, (96, 128, 4)).play(noise((96, 128, 4)), quiet()), None)
    renderer.close()


def quiet() -> np.ndarray:
    return np.zeros((48, 64, 4), np.uint8)


# The order ---------------------------------------------------------------------------------


class EarlyRelease(MesaCuda):
    """Records `released` before the copy."""

    def copy(self, target, source, stream):
        self.late = lambda: MesaCuda.copy(self, target, source, stream)

    def record(self, event, stream):
        super().record(event, stream)
        if event.name == "released" and stream.name == "present":
            self.late()


class NoRelease(MesaCuda):
    """Never records `released`."""

    def record(self, event, stream):
        if event.name != "released":
            super().record(event, stream)


class LateUnmap(MesaCuda):
    """Unmaps only when the next one is mapped."""

    left = None

    def mapped(self, buffer, stream):
        if self.left is not None:
            self.left.__exit__(None, None, None)
        self.left = super().mapped(buffer, stream)
        target = self.left.__enter__()

        @contextmanager
        def still_mapped():
            yield target

        return still_mapped()


@pytest.mark.parametrize(
    ("cuda", "race"),
    [
        (lambda seed: MesaCuda(seed, drop=("present", "ready")), "nothing lets it wait"),
        (lambda seed: MesaCuda(seed, drop=("compute", "released")), "nothing lets it wait"),
        (NoRelease, "nothing lets it wait"),
        (EarlyRelease, "where it is not mapped|nothing lets it wait"),
        (LateUnmap, "still mapped"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_each_step_left_out_is_noticed(made_renderer, draws, cuda, race, seed):
    renderer, device = made_renderer(), cuda(seed)
    player = Player(device, (96, 128, 4))

    def play() -> None:
        for number in range(3):
            renderer.draw(player.play(noise((96, 128, 4), number), quiet()), None)

    with pytest.raises(Race, match=race):
        play()


def run_upscaler(cuda: MesaCuda, renderer: Renderer, frames: int) -> set[int]:
    """Submit, poll and draw as the pipeline does; gives the frames that were shown wrongly."""
    wrong = set()
    upscaler = host_upscaler(cuda, download=False)
    upscaler.warm_up(SOURCE)
    waiting: deque[Picture] = deque()
    for number in range(frames):
        pixels = noise((48, 64, 4), number)
        upscaler.submit(Frame(pixels, number, 0, 0, Region(0, 0, *SOURCE)))
        while upscaler.in_flight == upscaler.slots:
            picture = upscaler.poll(0)
            waiting += [picture] if picture is not None else []
        if len(waiting) > 1:
            picture = waiting.popleft()
            renderer.draw(picture, None)
            shown = renderer.read()[..., :3]
            if (shown != enlarged(picture.frame.pixels)[..., :3]).any():
                wrong.add(picture.frame.sequence)
    renderer.close()
    upscaler.close()
    return wrong


@pytest.mark.parametrize("seed", range(4))
def test_with_the_upscaler_every_frame_is_right(made_renderer, draws, seed):
    with MesaCuda(seed) as cuda:
        assert not run_upscaler(cuda, made_renderer(), 30)
        assert len(draws) > 25
        assert cuda.calls["download"] == 0
    assert not cuda.complaints
    waits = {(stream, event.split()[0]) for stream, event in cuda.waits}
    assert {("present", "inferred"), ("compute", "released")} <= waits


def test_with_the_upscaler_a_slot_that_is_not_waited_for_is_noticed(made_renderer, draws):
    """The wait for `inferred` is none in practice: the picture was seen to be done."""
    for slot in range(3):
        with (
            MesaCuda(drop=("compute", f"released {slot}")) as cuda,
            pytest.raises(Race, match="nothing lets it wait"),
        ):
            run_upscaler(cuda, made_renderer(), 30)


# Where it cannot be ------------------------------------------------------------------------


def test_no_sharing_is_said_once_and_pictures_are_downloaded(made_renderer, caplog):
    plain = noise((48, 64, 4), 1)
    with MesaCuda(gl=False) as cuda:
        renderer = made_renderer()
        player = Player(cuda, (96, 128, 4))
        with caplog.at_level(logging.INFO):
            for number in range(5):
                pixels = noise((96, 128, 4), number)
                renderer.draw(player.play(pixels, plain), None)
                np.testing.assert_array_equal(renderer.read()[..., :3], pixels[..., :3])
        assert len(warnings(caplog)) == 1
        assert "this device was made without OpenGL" in caplog.text
        assert renderer.wants_host
        assert cuda.calls["register_gl"] == 1
        luma = noise((144, 192))
        renderer.draw(Player(cuda, luma.shape).play(luma, plain), None)
        got = renderer.read()
        renderer.draw(picture_of(luma, plain), None)
        np.testing.assert_array_equal(got, renderer.read())
        assert not cuda.complaints
        renderer.close()


@pytest.mark.parametrize("call", ["copy", "map_gl", "unmap_gl", "record"])
def test_a_failure_later_on_loses_no_picture(made_renderer, caplog, call):
    plain = noise((48, 64, 4), 1)
    with MesaCuda() as cuda:
        renderer = made_renderer()
        player = Player(cuda, (96, 128, 4))
        for number in range(4):
            pixels = noise((96, 128, 4), number)
            picture = player.play(pixels, plain)
            if number == 2:
                cuda.fail(call)
            renderer.draw(picture, None)
            np.testing.assert_array_equal(renderer.read()[..., :3], pixels[..., :3])
            assert renderer.wants_host == (number >= 2)
        assert len(warnings(caplog)) == 1
        assert "cudaErrorUnknown" in caplog.text
        renderer.close()


def test_a_device_that_gives_nothing_shows_the_source(made_renderer, caplog):
    plain = noise((48, 64, 4), 1)
    with MesaCuda(gl=False) as cuda:
        renderer = made_renderer(Size(64, 48))
        player = Player(cuda, (96, 128, 4))
        for _ in range(3):
            picture = player.play(noise((96, 128, 4)), plain)
            cuda.fail("download")
            renderer.draw(picture, None)
            np.testing.assert_array_equal(renderer.read()[..., :3], plain[..., :3])
        assert len(warnings(caplog)) == 2  # no sharing, and no picture
        assert "showing the plain source" in caplog.text
        pixels = noise((96, 128, 4), 5)
        renderer.resize(Size(128, 96))
        renderer.draw(player.play(pixels, plain), None)
        np.testing.assert_array_equal(renderer.read()[..., :3], pixels[..., :3])
        renderer.close()


def test_a_device_that_hangs_is_given_up_soon(made_renderer, caplog, monkeypatch):
    class Stuck(MesaCuda):
        def done(self, event):
            return False

    monkeypatch.setattr("overlay.present.interop._DOWNLOAD_S", 0.02)
    plain = noise((48, 64, 4), 1)
    with Stuck(gl=False) as cuda:
        renderer = made_renderer(Size(64, 48))
        renderer.draw(Player(cuda, (96, 128, 4)).play(noise((96, 128, 4)), plain), None)
        np.testing.assert_array_equal(renderer.read()[..., :3], plain[..., :3])
        assert "did not leave the GPU within 0.02 s" in caplog.text
        renderer.close()


def test_the_presenter_says_what_it_wants():
    with MesaCuda(gl=False) as cuda, OffscreenPresenter(Look(scale=2)) as presenter:
        assert presenter.wants_host == presenter.software
        presenter.device = "NVIDIA GeForce RTX 4070/PCIe/SSE2, OpenGL 3.3.0"
        assert not presenter.wants_host
        presenter.show(Player(cuda, (96, 128, 4)).play(noise((96, 128, 4)), quiet()), None)
        assert presenter.wants_host


# The real thing ----------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["bgra", "luma"])
def test_a_picture_from_the_gpu_itself(kind):
    from overlay.cuda import open_cuda
    from overlay.errors import BackendUnavailable

    try:
        cuda = open_cuda()
    except BackendUnavailable as exc:
        pytest.skip(f"no CUDA: {exc}")
    with cuda, OffscreenPresenter(Look(scale=4)) as presenter:
        if "NVIDIA" not in presenter.device:
            pytest.skip(f"OpenGL is not NVIDIA's: {presenter.device}")
        source = noise((270, 480, 4), 1)
        shape = shape_of(kind, Size(480, 270), 4)
        stream, buffer = cuda.stream("compute"), cuda.buffer(int(np.prod(shape)), "output")
        staging = cuda.pinned(shape, "staging")
        ready, released = cuda.event("ready"), cuda.event("released")
        for number in range(5):
            pixels = noise(shape, number)
            presenter.show(picture_of(pixels, source), None)
            wanted = presenter.grab()
            cuda.synchronize(released)
            staging[:] = pixels
            cuda.wait(stream, released)
            cuda.upload(buffer, staging, stream)
            cuda.record(ready, stream)
            device = DevicePicture(cuda, buffer, shape, ready, released)
            presenter.show(picture_of(nothing(shape), source, device), None)
            np.testing.assert_array_equal(presenter.grab(), wanted)
        assert not presenter.wants_host
        presenter.close()
