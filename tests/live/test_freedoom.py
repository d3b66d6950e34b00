"""The real program over the real Doom engine with Freedoom, covered from edge to edge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from tests.games import RunningGame, crispy_doom
from tests.live.helpers import (
    Overlay,
    Screen,
    assert_covered,
    assert_marker_on_screen,
    assert_shows_game,
    assert_trace_adds_up,
    box_of,
    difference,
    key_held,
    wait_for,
)
from tests.live.spied import MARKER_PX

pytestmark = [pytest.mark.game, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def screen(any_display: str) -> Iterator[Screen]:
    with Screen(any_display) as screen:
        yield screen


@pytest.fixture
def doom(screen: Screen) -> Iterator[RunningGame]:
    """Freedoom in the screen's corner, where that of the overlay lies over it."""
    with crispy_doom(screen.display) as game:
        screen.move_window(game.window_id, 0, 0)
        screen.play(game.window_id)
        yield game


def open_help(overlay: Overlay) -> set[int]:
    """Press F1: Doom's help, which stands still; give its pictures."""
    overlay.screen.tap("f1")
    return overlay.captured.wait_still()


@pytest.mark.parametrize("model", ["bilinear", "default-x2"])
def test_the_overlay_covers_the_game_and_never_captures_itself(
    screen: Screen, doom: RunningGame, tmp_path: Path, model: str
) -> None:
    with Overlay(
        screen, doom.window_id, tmp_path, "--model", model, "--hud", "off", marker=True
    ) as overlay:
        captured = overlay.captured
        assert_covered(overlay)
        captured.wait_changing(30)
        assert_marker_on_screen(overlay)

        # Keys reach the game, and the screen shows what it drew.
        frames = len(captured.notes())
        still = open_help(overlay)
        assert not still & {note.checksum for note in captured.notes()[:frames]}
        game = screen.region(doom.window_id)
        screen.move_to(game.left + 8, game.top + 8)  # the drawn pointer lies on the marker now
        if model == "bilinear":
            assert_shows_game(overlay)
        screen.tap("escape")
        captured.wait_changing()

        # So do clicks: in the help any button goes on.
        open_help(overlay)
        screen.click()
        captured.wait_changing()

        assert_marker_on_screen(overlay)
        assert_covered(overlay)
        result = overlay.end()
        assert [note for note in captured.notes() if note.marked] == []
        assert_trace_adds_up(overlay, result)
        assert set(result["upscalers"]) == {f"{model} ({result['backend']})"}
        assert result["output_size"] == "960x540"


def test_a_region_of_the_screen_does_contain_the_overlay(display: str, tmp_path: Path) -> None:
    """What the test above would see if the window itself were not captured."""
    with Screen(display) as screen, crispy_doom(display) as doom:
        screen.move_window(doom.window_id, 0, 0)
        screen.play(doom.window_id)
        options = ("--source", "mss", "--model", "bilinear", "--hud", "off")
        with Overlay(screen, doom.window_id, tmp_path, *options, marker=True) as overlay:
            assert_covered(overlay)
            assert_marker_on_screen(overlay)
            wait_for(
                "frames with the whole marker",
                lambda: any(n.marked >= MARKER_PX**2 for n in overlay.captured.notes()),
            )


def test_the_mouse_turns_the_player(screen: Screen, doom: RunningGame, tmp_path: Path) -> None:
    with Overlay(screen, doom.window_id, tmp_path, "--model", "bilinear") as overlay:
        captured = overlay.captured

        def changed(before: Any) -> float:
            return float((difference(before, captured.newest()) > 8).mean())

        open_help(overlay)
        screen.tap("escape")  # back to the attract mode's demo
        captured.wait_changing()
        screen.tap("escape")
        for _ in range(3):  # new game, first episode, the usual skill
            screen.tap("enter")
            pause(captured, 25)
        view = settle(captured)
        before = view()
        pause(captured, 15)
        assert changed(before) < 0.15  # nobody moves
        screen.move_by(60, 0)
        wait_for("the view turns", lambda: changed(before) > 0.35)
        assert_covered(overlay)
        overlay.end()


def pause(captured: Any, frames: int) -> None:
    """Let the game draw so many frames."""
    start = len(captured.notes())
    wait_for(f"{frames} frames", lambda: len(captured.notes()) >= start + frames)


def settle(captured: Any) -> Any:
    """Wait until little of the picture changes any more: the level has begun."""

    def calm() -> bool:
        before = captured.newest()
        pause(captured, 15)
        return bool((difference(before, captured.newest()) > 8).mean() < 0.1)

    wait_for("the player stands still", calm)
    return captured.newest


def test_hotkeys_work_while_the_game_has_the_keyboard(
    screen: Screen, doom: RunningGame, tmp_path: Path
) -> None:
    options = ("--model", "nearest", "--cycle", "nearest,fsr1", "--hud", "off", "--no-pointer")
    with Overlay(screen, doom.window_id, tmp_path, *options) as overlay:
        captured = overlay.captured
        open_help(overlay)
        assert_shows_game(overlay, cv2.INTER_NEAREST)

        # Hold to compare: the plain source is scaled smoothly.
        with key_held(screen, "ctrl", "alt", "c"):
            assert_shows_game(overlay, cv2.INTER_LINEAR)
        assert_shows_game(overlay, cv2.INTER_NEAREST)

        # The screenshot is a pair: what was captured and what is shown.
        screen.tap("ctrl", "alt", "s")
        wait_for("two pictures", lambda: len(list(overlay.screenshots.glob("*.png"))) == 2)
        source, result = (
            cv2.imread(str(next(overlay.screenshots.glob(f"*-{part}.png"))))
            for part in ("source", "result")
        )
        assert source is not None
        assert result is not None
        wait_for("the captured picture", lambda: not difference(source, captured.newest()).any())
        assert not difference(result, source.repeat(2, axis=0).repeat(2, axis=1)).any()

        # The HUD: off, compact, full.
        def hud_px() -> int:
            """How far down the picture differs from the game's own."""
            large = captured.newest().repeat(2, axis=0).repeat(2, axis=1)
            box = box_of(difference(overlay.picture(), large)[:, :300] > 30)
            return box.top + box.height if box else 0

        screen.tap("ctrl", "alt", "h")
        wait_for("the compact HUD", lambda: 20 < hud_px() < 80)
        screen.tap("ctrl", "alt", "h")
        wait_for("the full HUD", lambda: 120 < hud_px() < 300)
        screen.tap("ctrl", "alt", "h")
        wait_for("no HUD", lambda: hud_px() == 0)

        # Off: the game itself is to be seen. And on again.
        place = screen.region(doom.window_id)
        screen.tap("ctrl", "alt", "o")
        wait_for("the overlay is hidden", lambda: not screen.viewable(overlay.window_id))
        wait_for(
            "the game is on the screen",
            lambda: not difference(screen.picture(place), captured.newest()).any(),
        )
        screen.tap("ctrl", "alt", "o")
        wait_for("the overlay is back", lambda: screen.viewable(overlay.window_id))
        assert_covered(overlay)
        assert_shows_game(overlay, cv2.INTER_NEAREST)

        # Another upscaler.
        screen.tap("ctrl", "alt", "n")
        trace = tmp_path / "trace.csv"
        wait_for("frames by fsr1", lambda: b",fsr1,opengl" in trace.read_bytes())

        result = overlay.end()  # by its key, too
        assert_trace_adds_up(overlay, result)
        assert set(result["upscalers"]) == {"nearest (opengl)", "fsr1 (opengl)"}
        table = overlay.trace()
        assert {("nearest", "opengl"), ("fsr1", "opengl")} <= set(table.labels)
    screen.tap("escape")
