"""The test games themselves do what the tests rely on."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest

from tests.games import FakeGame, crispy_doom, decode, minetest, picture

pytestmark = pytest.mark.display


def screenshot(display: str, window: int, size: tuple[int, int]) -> np.ndarray:
    import xcffib
    import xcffib.xproto

    connection = xcffib.connect(display)
    try:
        zpixmap = xcffib.xproto.ImageFormat.ZPixmap
        image = connection.core.GetImage(zpixmap, window, 0, 0, *size, 0xFFFFFFFF).reply()
        return np.frombuffer(image.data.buf(), np.uint8).reshape(size[1], size[0], 4)
    finally:
        connection.disconnect()


@pytest.mark.parametrize("depth", [24, 32])
def test_fake_game_draws_what_it_is_told(display: str, depth: int) -> None:
    with FakeGame(display, depth=depth, size=(320, 180)) as game:
        for number in (0, 1, 54321):
            game.draw(number)
            seen = screenshot(display, game.window_id, (320, 180))
            assert np.array_equal(seen[..., :3], picture(number, (320, 180)))
            assert decode(seen) == number


def test_decode_refuses_other_pictures() -> None:
    assert decode(np.full((270, 480, 4), 128, np.uint8)) == -1


def test_fake_game_reports_input(any_display: str) -> None:
    with FakeGame(any_display, pos=(200, 150)) as game:
        left, top, width, height = game.where()
        assert (width, height) == (480, 270)
        env = {**os.environ, "DISPLAY": any_display}
        subprocess.run(
            ["xdotool", "mousemove", str(left + 30), str(top + 40), "click", "1", "key", "a"],
            env=env,
            check=True,
            timeout=20,
        )
        event = game.wait_event("button_press", detail=1)
        assert (event["x"], event["y"]) == (30, 40)
        assert game.wait_event("key_press")["detail"] == 38


def test_fake_game_moves_and_resizes(display: str) -> None:
    with FakeGame(display) as game:
        game.move(300, 200)
        game.resize(400, 300)
        assert game.where() == (300, 200, 400, 300)


@pytest.mark.game
def test_crispy_doom_starts(display: str) -> None:
    with crispy_doom(display) as game:
        assert game.process.poll() is None
    assert game.process.poll() is not None


@pytest.mark.game
def test_minetest_starts(display: str) -> None:
    with minetest(display) as game:
        assert game.process.poll() is None
    assert game.process.poll() is not None
