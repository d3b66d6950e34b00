import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from overlay.frame import Size
from overlay.present import Command, Look
from overlay.present.offscreen import OffscreenPresenter
from tests.contracts.presenter import PresenterContract, picture_of, quarters


class TestContract(PresenterContract):
    @pytest.fixture
    def presenter(self):
        with OffscreenPresenter(Look(scale=2)) as presenter:
            yield presenter


def test_surface_takes_the_scale_of_the_picture():
    result = np.zeros((144, 192, 4), np.uint8)
    with OffscreenPresenter() as presenter:
        presenter.show(picture_of(quarters(), "bgra", result), None)
        assert presenter.grab().shape == (144, 192, 4)
        assert presenter.target_size(Size(64, 48)) == Size(192, 144)


def test_surface_size_can_be_set():
    with OffscreenPresenter(Look(size=Size(200, 96))) as presenter:
        assert presenter.target_size(Size(64, 48)) == Size(128, 96)
        presenter.show(picture_of(quarters()), None)
        shown = presenter.grab()
        assert shown.shape == (96, 200, 4)
        assert not shown[:, :36, :3].any()  # bars
        assert not shown[:, 164:, :3].any()
        assert shown[:, 36:164, :3].any(axis=2).all()


def test_commands_come_out_of_wait_once():
    with OffscreenPresenter() as presenter:
        presenter.command(Command("hud"))
        assert presenter.wait(10) == [Command("hud")]
        assert presenter.wait(0) == []


def test_many_contexts_after_one_another():
    for _ in range(3):
        with OffscreenPresenter(Look(scale=1)) as presenter:
            presenter.show(picture_of(quarters()), None)
            np.testing.assert_array_equal(presenter.grab()[..., :3], quarters()[..., :3])


PROGRAM = """
    import numpy as np
    from overlay.frame import Frame, Picture, Region
    from overlay.present import Look
    from overlay.present.offscreen import OffscreenPresenter

    pixels = np.full((8, 8, 4), 77, np.uint8)
    frame = Frame(pixels, 0, 0, 0, Region(0, 0, 8, 8))
    with OffscreenPresenter(Look(scale=2)) as presenter:
        presenter.show(Picture(frame, "source", pixels, 1, "fsr1", "opengl", "fsr1"), None)
        assert (presenter.grab()[..., :3] == 77).all()
        print(presenter.device)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="EGL is how Linux does without a display")
def test_needs_no_display():
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    program = [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM)]
    done = subprocess.run(program, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "OpenGL" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="hides libEGL and libGL from the loader")
def test_missing_gl_says_what_to_install():
    program = """
        import ctypes

        class Loader(ctypes.CDLL):
            def __init__(self, name, *args, **options):
                if name and ("GL" in name):
                    raise OSError(f"{name}: cannot open shared object file")
                super().__init__(name, *args, **options)

        ctypes.CDLL = Loader
        from overlay.errors import BackendUnavailable
        try:
            import overlay.present.offscreen
        except BackendUnavailable as exc:
            print(exc)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "apt install libegl1" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="EGL and GLX are Linux's")
@pytest.mark.display
def test_hidden_window_is_the_way_where_egl_is_missing(display, monkeypatch):
    from overlay.errors import BackendUnavailable
    from overlay.present import offscreen

    def missing():
        raise BackendUnavailable("EGL is not installed")

    monkeypatch.setattr(offscreen, "EglContext", missing)
    with OffscreenPresenter(Look(scale=1)) as presenter:
        presenter.show(picture_of(quarters()), None)
        np.testing.assert_array_equal(presenter.grab()[..., :3], quarters()[..., :3])


def test_no_way_at_all_is_an_error_that_names_them(monkeypatch):
    from overlay.errors import BackendUnavailable
    from overlay.present import offscreen

    def missing(reason):
        def refuse():
            raise BackendUnavailable(reason)

        return refuse

    monkeypatch.setattr(offscreen, "EglContext", missing("no libEGL"))
    monkeypatch.setattr(offscreen, "HiddenWindow", missing("no display"))
    with pytest.raises(BackendUnavailable, match="no display") as caught:
        OffscreenPresenter()
    assert offscreen.INSTALL_HINT in str(caught.value)
