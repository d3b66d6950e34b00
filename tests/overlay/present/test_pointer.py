"""The pointer, confined and magnified, on a real X server with a real (XTEST) mouse."""

from __future__ import annotations

import ast
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import overlay.present.pointer as seam
from overlay.errors import DisplayLost
from overlay.frame import Region
from overlay.present.placement import PointMap
from overlay.present.pointer import CursorSprite, Pointer, open_pointer
from tests.games import FakeGame
from tests.overlay.present.player import OwnServer, Player, eventually, give_red_cursor

ROOT = Path(__file__).resolve().parents[3]
GAME = Region(500, 300, 480, 270)
OVERLAY = Region(260, 165, 960, 540)
POINTS = PointMap(GAME, OVERLAY, Region(0, 0, 960, 540))


@pytest.fixture
def player(display: str) -> Iterator[Player]:
    with Player(display) as player:
        yield player


@pytest.fixture
def game(display: str, player: Player) -> Iterator[FakeGame]:
    with FakeGame(display, pos=(GAME.left, GAME.top)) as game:
        yield game


@pytest.fixture
def pointer(game: FakeGame) -> Iterator[Pointer]:
    with open_pointer(game.window_id, lambda: None) as pointer:
        yield pointer


def inside(place: tuple[int, int]) -> bool:
    left, top = place[0] - GAME.left, place[1] - GAME.top
    return 0 <= left < GAME.width and 0 <= top < GAME.height


def test_sprite_geometry() -> None:
    sprite = CursorSprite(np.zeros((20, 10, 4), np.uint8), (3, 4), (100.0, 50.0), 1)
    assert sprite.corner == (97, 46)
    assert sprite.size == (10, 20)


@pytest.mark.display
class TestX11:
    def test_the_fence_stops_every_move(self, pointer: Pointer, player: Player) -> None:
        player.move_to(600, 400)
        pointer.confine(GAME, POINTS)
        assert pointer.confined
        for move, place in [
            ((-2000, 0), (500, 400)),
            ((5000, 0), (979, 400)),
            ((0, -5000), (979, 300)),
            ((0, 5000), (979, 569)),
            ((-3000, -2000), (500, 300)),
        ]:
            player.move_by(*move)
            assert player.place == place

    @pytest.mark.parametrize("left_top", [(500, 300), (5, 5), (1430, 800)])
    def test_no_slanted_move_slips_through(
        self, pointer: Pointer, player: Player, left_top: tuple[int, int]
    ) -> None:
        game = Region(*left_top, 480, 270)
        pointer.confine(game, PointMap(game, OVERLAY, POINTS.picture))
        dice = random.Random(1)
        for _ in range(500):  # barriers with ends lose one move in ten
            x = game.left + dice.randrange(game.width)
            y = game.top + dice.randrange(game.height)
            player.move_to(x, y)
            reach = 10 ** dice.uniform(0, 3.5)
            dx, dy = (round(dice.uniform(-reach, reach)) for _ in "xy")
            player.move_by(dx, dy)
            place = player.place
            assert 0 <= place[0] - game.left < game.width, (x, y, dx, dy, place)
            assert 0 <= place[1] - game.top < game.height, (x, y, dx, dy, place)

    def test_a_jump_over_the_fence_comes_back(self, pointer: Pointer, player: Player) -> None:
        player.move_to(600, 400)
        pointer.confine(GAME, POINTS)
        player.move_to(1500, 310)
        assert eventually(lambda: player.place == (979, 310))
        assert eventually(lambda: pointer.position() == (479, 10))

    def test_a_pointer_on_the_overlay_moves_to_what_it_sees(
        self, pointer: Pointer, player: Player
    ) -> None:
        player.move_to(OVERLAY.left + 20, OVERLAY.top + 31)
        pointer.confine(GAME, POINTS)
        assert player.place == (GAME.left + 10, GAME.top + 15)
        assert pointer.position() == (10, 15)

    def test_a_pointer_elsewhere_moves_to_the_nearest_point(
        self, pointer: Pointer, player: Player
    ) -> None:
        player.move_to(1800, 310)
        pointer.confine(GAME, POINTS)
        assert player.place == (979, 310)

    def test_release_leaves_it_where_it_was_seen(self, pointer: Pointer, player: Player) -> None:
        player.move_to(GAME.left + 100, GAME.top + 50)
        pointer.confine(GAME, POINTS)
        pointer.release()
        assert not pointer.confined
        assert pointer.position() is None
        assert pointer.sprite() is None
        assert player.place == (OVERLAY.left + 201, OVERLAY.top + 101)
        player.move_by(900, 0)
        assert player.place[0] == OVERLAY.left + 1101

    def test_the_fence_moves_with_the_game(self, pointer: Pointer, player: Player) -> None:
        player.move_to(600, 400)
        pointer.confine(GAME, POINTS)
        there = Region(900, 600, 480, 270)
        pointer.confine(there, PointMap(there, Region(600, 400, 960, 540), POINTS.picture))
        assert player.place == (900, 600)
        player.move_by(3000, 3000)
        assert player.place == (1379, 869)

    def test_a_game_partly_off_the_screen(self, pointer: Pointer, player: Player) -> None:
        region = Region(-100, -50, 480, 270)
        player.move_to(10, 10)
        pointer.confine(region, PointMap(region, Region(0, 0, 960, 540), POINTS.picture))
        player.move_by(3000, 3000)
        assert player.place == (379, 219)
        player.move_by(-3000, -3000)
        assert player.place == (0, 0)
        assert eventually(lambda: pointer.position() == (100, 50))

    def test_position_follows_and_wakes(self, game: FakeGame, player: Player) -> None:
        woken = threading.Event()
        with open_pointer(game.window_id, woken.set) as pointer:
            player.move_to(600, 400)
            pointer.watch(GAME)
            assert pointer.position() == (100, 100)
            assert not pointer.confined
            woken.clear()
            start = time.perf_counter()
            player.move_by(7, 9)
            assert woken.wait(2)
            assert time.perf_counter() - start < 0.5
            assert eventually(lambda: pointer.position() == (107, 109))
            player.move_to(GAME.left - 1, 400)  # not confined: it may leave
            assert eventually(lambda: pointer.position() is None)

    def test_a_still_pointer_costs_no_wake(self, game: FakeGame, player: Player) -> None:
        wakes = []
        with open_pointer(game.window_id, lambda: wakes.append(1)) as pointer:
            player.move_to(600, 400)
            pointer.confine(GAME, POINTS)
            time.sleep(0.1)
            wakes.clear()
            time.sleep(0.3)
            assert wakes == []
            first = pointer.sprite()
            assert first is not None
            assert pointer.sprite() is first

    def test_the_shape_is_the_games(self, display: str, player: Player) -> None:
        with FakeGame(display, pos=(GAME.left, GAME.top)) as game:
            player.move_to(600, 400)
            with open_pointer(game.window_id, lambda: None) as pointer:
                pointer.confine(GAME, POINTS)
                before = pointer.sprite()
                assert before is not None
                give_red_cursor(player, game.window_id)

                def changed() -> bool:
                    sprite = pointer.sprite()
                    return sprite is not None and sprite.serial != before.serial

                assert eventually(changed)
                sprite = pointer.sprite()
                assert sprite is not None
                assert sprite.pixels.dtype == np.uint8
                assert sprite.pixels.shape == (8, 16, 4)
                assert sprite.hotspot == (5, 2)
                assert sprite.pixels[3, 3].tolist() == [0, 0, 255, 255]  # BGRA

    def test_focus_decides(self, display: str, game: FakeGame, player: Player) -> None:
        with (
            FakeGame(display, title="Other", pos=(1200, 700)) as other,
            open_pointer(game.window_id, lambda: None) as pointer,
        ):
            player.focus(game.window_id)
            player.move_to(600, 400)
            pointer.confine(GAME, POINTS)
            assert pointer.confined
            player.focus(other.window_id)
            assert eventually(lambda: not pointer.confined)
            player.move_by(800, 0)
            assert player.place == (1400, 400)
            player.focus(game.window_id)
            assert eventually(lambda: pointer.confined)
            assert player.place == (979, 400)

    def test_focus_under_a_window_manager(self, openbox: str, monkeypatch: object) -> None:
        assert isinstance(monkeypatch, pytest.MonkeyPatch)
        monkeypatch.setenv("DISPLAY", openbox)
        with (
            Player(openbox) as player,
            FakeGame(openbox, pos=(500, 300)) as game,
            FakeGame(openbox, title="Other", pos=(1200, 700)) as other,
            open_pointer(game.window_id, lambda: None) as pointer,
        ):
            region = Region(*game.where())
            player.activate(game.window_id)
            assert eventually(lambda: player.focused == game.window_id)
            pointer.confine(region, PointMap(region, OVERLAY, POINTS.picture))
            assert eventually(lambda: pointer.confined)
            player.activate(other.window_id)
            assert eventually(lambda: not pointer.confined)
            player.activate(game.window_id)
            assert eventually(lambda: pointer.confined)
            game.minimise()
            assert eventually(lambda: not pointer.confined)
            game.restore()
            player.activate(game.window_id)
            assert eventually(lambda: pointer.confined)
            game.kill()
            assert eventually(lambda: not pointer.confined)

    def test_the_real_pointer_is_invisible_while_confined(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Look into the server's frame buffer: grabbed pictures never contain the pointer."""
        with OwnServer("-fbdir", str(tmp_path)) as server:
            raw = np.memmap(tmp_path / "Xvfb_screen0", np.uint8, "r")  # an XWD file
            header = raw[:100].view(">u4")
            start, width, height = int(header[0] + 12 * header[19]), 1280, 800
            pixels = raw[start : start + 4 * width * height].reshape(height, width, 4)

            def red() -> int:
                return int((pixels[..., :3] == (0, 0, 255)).all(axis=2).sum())

            monkeypatch.setenv("DISPLAY", server.name)
            with Player(server.name) as player, FakeGame(server.name, pos=(500, 300)) as game:
                give_red_cursor(player, game.window_id)
                player.move_to(700, 400)
                assert eventually(lambda: red() == 16 * 8)
                with open_pointer(game.window_id, lambda: None) as pointer:
                    pointer.confine(GAME, POINTS)
                    assert eventually(lambda: red() == 0)
                    pointer.release()
                    player.move_to(700, 400)
                    assert eventually(lambda: red() == 16 * 8)
                process = self.confine_elsewhere(game)
                assert eventually(lambda: red() == 0)
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                assert eventually(lambda: red() == 16 * 8)

    @staticmethod
    def confine_elsewhere(game: FakeGame) -> subprocess.Popen[bytes]:
        """Confine the pointer in a process of its own."""
        code = (
            "import sys, time; from overlay.frame import Region\n"
            "from overlay.present.pointer import open_pointer\n"
            "from overlay.present.placement import PointMap\n"
            "game = Region(500, 300, 480, 270)\n"
            "p = open_pointer(int(sys.argv[1]), lambda: None)\n"
            "p.confine(game, PointMap(game, Region(0, 0, 960, 540), Region(0, 0, 960, 540)))\n"
            "print(p.confined, flush=True); time.sleep(60)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(game.window_id)], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout is not None
        with process.stdout as output:
            assert output.readline() == b"True\n"
        return process

    def test_a_crash_releases_it(self, game: FakeGame, player: Player) -> None:
        process = self.confine_elsewhere(game)
        assert inside(player.place)
        player.move_by(3000, 0)
        assert player.place[0] == 979
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

        def free() -> bool:
            player.move_by(3000, 0)
            return player.place[0] > 979

        assert eventually(free)

    def test_close_is_idempotent_and_leaves_nothing(self, game: FakeGame, player: Player) -> None:
        def count() -> tuple[int, int]:
            return threading.active_count(), len(os.listdir("/proc/self/fd"))

        player.move_to(600, 400)
        open_pointer(game.window_id, lambda: None).close()
        before = count()
        for _ in range(5):
            pointer = open_pointer(game.window_id, lambda: None)
            pointer.confine(GAME, POINTS)
            pointer.close()
            pointer.close()
        assert count() == before
        player.move_by(3000, 0)
        assert player.place[0] > 979

    def test_no_display(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DISPLAY", ":5999")
        with pytest.raises(DisplayLost, match="does not answer"):
            open_pointer(1, lambda: None)


def test_the_windows_back_end_implements_the_seam() -> None:
    tree = ast.parse(Path(seam.__file__).with_name("win32.py").read_text(encoding="utf-8"))
    [back_end] = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(b) == "Pointer" for b in node.bases)
    ]
    assert back_end.name == "Win32Pointer"
    methods = {node.name for node in back_end.body if isinstance(node, ast.FunctionDef)}
    assert methods >= Pointer.__abstractmethods__
