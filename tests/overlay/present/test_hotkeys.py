"""Hotkeys: their names, and real key presses on a real X server."""

from __future__ import annotations

import ast
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import overlay.present.hotkeys as seam
from overlay.errors import DisplayLost, SettingsError
from overlay.present import Command
from overlay.present.hotkeys import DEFAULTS, Hotkeys, bindings, open_hotkeys
from overlay.present.hotkeys.keys import CODES, Key, parse_key
from tests.games import FakeGame
from tests.overlay.present.player import Player, eventually

ROOT = Path(__file__).resolve().parents[3]


class TestNames:
    @pytest.mark.parametrize(
        ("text", "modifiers", "name"),
        [
            ("ctrl+alt+u", {"ctrl", "alt"}, "u"),
            (" Control + ALT + U ", {"ctrl", "alt"}, "u"),
            ("win+esc", {"super"}, "escape"),
            ("f9", set(), "f9"),
            ("shift+f12", {"shift"}, "f12"),
            ("ctrl+pgup", {"ctrl"}, "pageup"),
        ],
    )
    def test_parse(self, text: str, modifiers: set[str], name: str) -> None:
        assert parse_key(text) == Key(frozenset(modifiers), name)  # type: ignore[arg-type]

    def test_text_is_in_one_order(self) -> None:
        assert str(parse_key("shift+alt+ctrl+a")) == "ctrl+alt+shift+a"
        assert parse_key(str(parse_key("alt+ctrl+f5"))) == parse_key("ctrl+alt+f5")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("strg+a", r"'strg' is not a modifier"),
            ("crtl+a", r"'crtl' is not a modifier; did you mean 'ctrl'"),
            ("ctrl+pagedwn", r"'pagedwn' is not a key; did you mean 'pagedown'"),
            ("ctrl+alt", r"a key is missing after the modifiers"),
            ("ctrl+", r"'' is not a key; a hotkey looks like"),
            ("a", r"would take 'a' from the game"),
            ("shift+a", r"would take 'a' from the game"),
        ],
    )
    def test_mistakes_are_explained(self, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parse_key(text)

    def test_codes_are_those_of_the_systems(self) -> None:
        # X11/keysymdef.h, winuser.h and GLFW/glfw3.h
        assert CODES["f1"] == (0xFFBE, 0x70, 290)
        assert CODES["f24"] == (0xFFD5, 0x87, 313)
        assert CODES["num0"] == (0xFFB0, 0x60, 320)
        assert CODES["a"] == (0x61, 0x41, 65)
        for column in zip(*CODES.values(), strict=True):
            assert len(set(column)) == len(column)

    def test_codes_agree_with_glfw(self) -> None:
        import glfw

        names = {"num5": "KP_5", "pageup": "PAGE_UP", "pagedown": "PAGE_DOWN"}
        names |= {"print": "PRINT_SCREEN", "grave": "GRAVE_ACCENT"}
        for name, codes in CODES.items():
            if not name.startswith("num") or name in names:
                assert codes.glfw == getattr(glfw, "KEY_" + names.get(name, name.upper())), name


class TestBindings:
    def test_defaults_are_all_bound(self) -> None:
        assert {action: str(key) for action, key in bindings({}).items()} == DEFAULTS

    def test_own_keys_replace_defaults_and_nothing_turns_off(self) -> None:
        keys = bindings({"quit": "super+f4", "hud": "", "next": "none"})
        assert str(keys["quit"]) == "super+f4"
        assert "hud" not in keys
        assert "next" not in keys
        assert str(keys["toggle"]) == DEFAULTS["toggle"]

    @pytest.mark.parametrize(
        ("chosen", "message"),
        [
            ({"qit": "f9"}, "no action 'qit'; did you mean 'quit'"),
            ({"zzz": "f9"}, "no action 'zzz'; there are toggle, hud"),
            ({"quit": "ctrl+foo"}, "hotkeys: quit = 'ctrl\\+foo': 'foo' is not a key"),
            ({"quit": "alt+ctrl+h"}, r"ctrl\+alt\+h is given to both 'hud' and 'quit'"),
        ],
    )
    def test_mistakes_are_explained(self, chosen: dict[str, str], message: str) -> None:
        with pytest.raises(SettingsError, match=message):
            bindings(chosen)


@pytest.fixture
def player(display: str) -> Iterator[Player]:
    with Player(display) as player:
        yield player


def commands(hotkeys: Hotkeys, count: int) -> list[Command]:
    """Wait for `count` commands, and a moment for any that should not come."""
    found: list[Command] = []
    eventually(lambda: found.extend(hotkeys.events()) or len(found) >= count, 3)
    time.sleep(0.05)
    return found + hotkeys.events()


@pytest.mark.display
class TestX11:
    def test_work_while_the_game_has_the_keyboard(self, display: str, player: Player) -> None:
        woken = threading.Event()
        with (
            FakeGame(display) as game,
            open_hotkeys(bindings({"quit": "f9"}), woken.set) as hotkeys,
        ):
            player.focus(game.window_id)
            player.tap("ctrl", "alt", "h")
            assert woken.wait(3)
            player.tap("f9")
            player.tap("x")
            assert commands(hotkeys, 2) == [Command("hud"), Command("quit")]
            game.wait_event("key_release", detail=player.code("x"))
            pressed = [e["detail"] for e in game.events if e["event"] == "key_press"]
            assert player.code("x") in pressed
            assert player.code("f9") not in pressed  # the game never sees a hotkey
            assert player.code("h") not in pressed

    def test_other_modifiers_are_other_keys(self, player: Player) -> None:
        with open_hotkeys(bindings({}), lambda: None) as hotkeys:
            player.tap("ctrl", "h")
            player.tap("alt", "h")
            player.tap("ctrl", "alt", "shift", "h")
            player.tap("ctrl", "alt", "n")
            assert commands(hotkeys, 1) == [Command("next")]

    @pytest.mark.parametrize("lock", ["num", "caps"])
    def test_lock_keys_do_not_matter(self, player: Player, lock: str) -> None:
        with open_hotkeys(bindings({}), lambda: None) as hotkeys:
            player.tap(lock)
            try:
                state = player.core.QueryPointer(player.root).reply().mask
                assert state & 0xFF  # it is on
                player.tap("ctrl", "alt", "h")
                assert commands(hotkeys, 1) == [Command("hud")]
            finally:
                player.tap(lock)

    def test_hold_reports_the_release_and_no_repeat(self, player: Player) -> None:
        with open_hotkeys(bindings({}), lambda: None) as hotkeys:
            player.down("ctrl", "alt", "c")
            time.sleep(1.0)  # the server repeats a held key after 0.66 s
            player.up("alt", "ctrl")
            assert commands(hotkeys, 1) == [Command("source")]
            player.up("c")
            assert commands(hotkeys, 1) == [Command("source", pressed=False)]
            player.tap("ctrl", "alt", "n")
            assert commands(hotkeys, 1) == [Command("next")]  # nothing held: no release

    def test_a_taken_key_is_reported_and_left_out(
        self, player: Player, caplog: pytest.LogCaptureFixture
    ) -> None:
        player.core.GrabKeyChecked(False, player.root, 4 | 8, player.code("h"), 1, 1).check()
        with caplog.at_level(logging.WARNING), open_hotkeys(bindings({}), lambda: None) as hotkeys:
            assert [str(key) for key in hotkeys.taken.values()] == ["ctrl+alt+h"]
            assert "hud" not in hotkeys.bound
            assert len(hotkeys.bound) == len(DEFAULTS) - 1
            [record] = caplog.records
            assert "ctrl+alt+h (hud) is taken by another program" in record.getMessage()
            player.tap("ctrl", "alt", "h")
            player.tap("ctrl", "alt", "n")
            assert commands(hotkeys, 1) == [Command("next")]

    def test_keys_are_free_again_after_close(self, player: Player) -> None:
        hotkeys = open_hotkeys(bindings({}), lambda: None)
        hotkeys.close()
        hotkeys.close()
        with open_hotkeys(bindings({}), lambda: None) as again:
            assert again.taken == {}
            player.tap("ctrl", "alt", "h")
            assert commands(again, 1) == [Command("hud")]
        assert hotkeys.events() == []

    def test_keys_are_free_again_after_a_crash(self, display: str) -> None:
        code = (
            "import time; from overlay.present.hotkeys import *\n"
            "h = open_hotkeys(bindings({}), lambda: None)\n"
            "print(len(h.bound), flush=True); time.sleep(60)"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None
        assert int(process.stdout.readline()) == len(DEFAULTS)
        with open_hotkeys(bindings({}), lambda: None) as hotkeys:
            assert len(hotkeys.taken) == len(DEFAULTS)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()

        def free() -> bool:
            with open_hotkeys(bindings({}), lambda: None) as hotkeys:
                return not hotkeys.taken

        assert eventually(free)

    def test_no_thread_and_no_file_is_left(self, display: str) -> None:
        def count() -> tuple[int, int]:
            return threading.active_count(), len(os.listdir("/proc/self/fd"))

        open_hotkeys(bindings({}), lambda: None).close()
        before = count()
        for _ in range(5):
            open_hotkeys(bindings({}), lambda: None).close()
        assert count() == before

    def test_no_display(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DISPLAY", ":5999")
        with pytest.raises(DisplayLost, match=r"':5999' does not answer.*XWayland"):
            open_hotkeys(bindings({}), lambda: None)
        monkeypatch.delenv("DISPLAY")
        with pytest.raises(DisplayLost, match="DISPLAY is not set"):
            open_hotkeys(bindings({}), lambda: None)


def test_the_windows_back_end_implements_the_seam() -> None:
    tree = ast.parse(Path(seam.__file__).with_name("win32.py").read_text(encoding="utf-8"))
    [back_end] = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(b) == "Hotkeys" for b in node.bases)
    ]
    assert back_end.name == "Win32Hotkeys"
    methods = {node.name for node in back_end.body if isinstance(node, ast.FunctionDef)}
    assert methods >= Hotkeys.__abstractmethods__
