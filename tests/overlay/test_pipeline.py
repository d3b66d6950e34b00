"""The pipeline: counts add up, newest wins, faults end well or heal by themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from engines.errors import EngineError, EngineMismatch
from overlay.capture import CaptureSource
from overlay.errors import CaptureLost, DisplayLost, SourceClosed
from overlay.frame import Frame, Picture, Pixels, Region, Size
from overlay.hud import HudView
from overlay.infer import Upscaler
from overlay.pipeline import Limits, Pipeline, retry_wait_s
from overlay.present import Command, Presenter, Shown
from overlay.trace import Outcome, Stage
from overlay.trace.recorder import Counts, TraceRecorder

SIZE = Size(8, 4)
REGION = Region(10, 20, 8, 4)


class ScriptedSource(CaptureSource):
    """Plays a list: a number is a frame of that grey, an error is raised, None is a quiet moment,
    and a region the same with a window that moved there."""

    name = "scripted"

    def __init__(
        self,
        script: Iterable[int | Exception | Region | None],
        period_s: float = 0.0,
        may_come: Callable[[int], bool] = lambda shown: True,
        *,
        waits: bool = False,
    ) -> None:
        """`may_come(n)`: whether the frame after the n-th may come now; `waits`: none comes
        before all earlier ones have ended, however slow the machine (see `run`)."""
        self._script = iter(script)
        self._may_come = may_come
        self._period_s = period_s
        self.waits = waits
        self.pending: Callable[[], int] = int
        self.sequence = 0
        self.visible_now = True
        self.region_now = REGION

    def grab(self, timeout_s: float) -> Frame | None:
        time.sleep(self._period_s)
        wait_for(lambda: self._may_come(self.sequence))
        wait_for(lambda: not self.waits or self.pending() == 0)
        step = next(self._script, SourceClosed("the script ended"))
        if isinstance(step, Exception):
            raise step
        if isinstance(step, Region):
            self.region_now = step
            return None
        if step is None:
            return None
        self.sequence += 1
        now = time.perf_counter_ns()
        size = self.region_now.size
        pixels = np.full((size.height, size.width, 4), step % 256, np.uint8)
        return Frame(pixels, self.sequence, now, now, self.region_now)

    @property
    def region(self) -> Region:
        return self.region_now

    @property
    def visible(self) -> bool:
        return self.visible_now

    def close(self) -> None:
        pass


class FakeUpscaler(Upscaler):
    """Gives the frame back after `delay_s`; fails on the greys in `fails_on`."""

    backend = "fake"
    scale = 1
    device = "test"

    def __init__(
        self,
        model: str = "fake",
        delay_s: float = 0.0,
        *,
        slots: int = 1,
        inline: bool = False,
        fails_on: frozenset[int] = frozenset(),
    ) -> None:
        self.model = model
        self.slots = slots
        self.inline = inline
        self._delay_s = delay_s
        self._fails_on = fails_on
        self._pending: list[tuple[float, Frame]] = []
        self.most_in_flight = 0
        self.closed = False

    def warm_up(self, size: Size) -> None:
        pass

    def submit(self, frame: Frame) -> None:
        if len(self._pending) >= self.slots:
            raise RuntimeError("too many frames in flight")
        self._pending.append((time.monotonic() + self._delay_s, frame))
        self.most_in_flight = max(self.most_in_flight, len(self._pending))

    def poll(self, timeout_s: float) -> Picture | None:
        if not self._pending:
            return None
        wait_s = self._pending[0][0] - time.monotonic()
        if wait_s > 0:
            time.sleep(min(wait_s, timeout_s))
        if self._pending[0][0] > time.monotonic():
            return None
        frame = self._pending.pop(0)[1]
        if int(frame.pixels[0, 0, 0]) in self._fails_on:
            raise EngineError("the device fell over")
        return Picture(frame, "source", frame.pixels, 1, self.model, "fake", "bilinear")

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    def close(self) -> None:
        self.closed = True


class FakePresenter(Presenter):
    """Notes what it is told; runs a script of commands at given numbers of shown pictures."""

    name = "fake"
    device = "test"
    refresh_hz = 0.0

    def __init__(self, delay_s: float = 0.0, commands: dict[int, Command] | None = None) -> None:
        self._wake = threading.Event()
        self._delay_s = delay_s
        self._commands = commands or {}
        self.pictures: list[Picture] = []
        self.latest = 0  # sequence of the picture shown last
        self.huds: list[HudView | None] = []
        self.places: list[tuple[Region, bool]] = []
        self.fails_at: tuple[int, Exception] | None = None

    def wait(self, timeout_s: float) -> list[Command]:
        self._wake.wait(timeout_s)
        self._wake.clear()
        command = self._commands.pop(len(self.pictures), None)
        return [command] if command else []

    def wake(self) -> None:
        self._wake.set()

    def follow(self, region: Region, visible: bool) -> None:
        self.places.append((region, visible))

    def target_size(self, source: Size) -> Size:
        return Size(source.width * 2, source.height * 2)

    def show(self, picture: Picture, hud: HudView | None) -> Shown:
        if self.fails_at and len(self.pictures) == self.fails_at[0]:
            raise self.fails_at[1]
        begin = time.perf_counter_ns()
        time.sleep(self._delay_s)
        self.pictures.append(picture)
        self.latest = picture.frame.sequence
        self.huds.append(hud)
        now = time.perf_counter_ns()
        return Shown(begin, now, now, now)

    def grab(self) -> Pixels:
        return np.zeros((8, 16, 4), np.uint8)

    def close(self) -> None:
        pass

    def has_shown(self, sequence: int) -> bool:
        return self.latest >= sequence


def run(
    source: CaptureSource,
    upscaler: Upscaler,
    presenter: Presenter,
    **options: object,
) -> tuple[Counts, TraceRecorder, Pipeline]:
    recorder = TraceRecorder()
    if isinstance(source, ScriptedSource):
        source.pending = lambda: recorder.counts().pending
    pipeline = Pipeline(source, upscaler, presenter, recorder, **options)  # type: ignore[arg-type]
    try:
        pipeline.run()
    finally:
        recorder.close()
        counts = recorder.counts()
        assert counts.pending == 0
        assert counts.captured == (
            counts.presented + counts.duplicate + counts.superseded + counts.failed
        )
    return counts, recorder, pipeline


@pytest.mark.parametrize("inline", [True, False])
def test_every_frame_of_a_slow_source_is_shown_in_order(inline: bool) -> None:
    presenter = FakePresenter()
    source = ScriptedSource(range(1, 21), may_come=presenter.has_shown)
    counts, _, _ = run(source, FakeUpscaler(inline=inline), presenter)
    assert (counts.captured, counts.presented) == (20, 20)
    assert [int(p.pixels[0, 0, 0]) for p in presenter.pictures] == list(range(1, 21))


def test_stamps_are_in_frame_order() -> None:
    _, recorder, _ = run(ScriptedSource(range(1, 9), 0.01), FakeUpscaler(), FakePresenter())
    table = recorder.table()
    for early, late in zip(list(Stage)[:-1], list(Stage)[1:], strict=True):
        assert (table.between_ms(early, late) >= 0).all(), (early, late)


def test_an_unchanged_frame_is_a_duplicate_and_not_inferred() -> None:
    presenter = FakePresenter()
    counts, recorder, _ = run(ScriptedSource([1, 1, 2, 2, 2, 1], 0.05), FakeUpscaler(), presenter)
    assert (counts.presented + counts.superseded, counts.duplicate) == (3, 3)
    assert recorder.outcome(1) is Outcome.DUPLICATE
    assert recorder.outcome(5) is Outcome.PRESENTED


def test_a_slow_upscaler_gets_the_newest_frame() -> None:
    presenter = FakePresenter()
    source = ScriptedSource(range(1, 101), period_s=0.002)
    counts, _, _ = run(source, FakeUpscaler(delay_s=0.03), presenter)
    shown = [int(p.pixels[0, 0, 0]) for p in presenter.pictures]
    assert counts.superseded > 50
    assert shown == sorted(set(shown))
    assert shown[-1] == 100, "the last frame is never lost"


def test_a_slow_presenter_supersedes_pictures() -> None:
    presenter = FakePresenter(delay_s=0.03)
    source = ScriptedSource(range(1, 61), period_s=0.003)
    counts, _, _ = run(source, FakeUpscaler(inline=True), presenter)
    assert 0 < counts.presented < 60
    assert int(presenter.pictures[-1].pixels[0, 0, 0]) == 60


def test_two_slots_overlap_and_no_more() -> None:
    upscaler = FakeUpscaler(delay_s=0.02, slots=2)
    counts, _, _ = run(ScriptedSource(range(1, 61), 0.003), upscaler, FakePresenter())
    assert upscaler.most_in_flight == 2
    assert upscaler.closed
    assert counts.failed == 0


def test_frames_limits_what_is_captured_and_drains() -> None:
    limits = Limits(frames=7)
    counts, _, _ = run(
        ScriptedSource(range(1, 100), 0.005), FakeUpscaler(), FakePresenter(), limits=limits
    )
    assert counts.captured == 7


def test_seconds_end_a_run() -> None:
    start = time.monotonic()
    run(
        ScriptedSource(range(1, 10**6), 0.005), FakeUpscaler(), FakePresenter(),
        limits=Limits(seconds=0.3),
    )  # fmt: skip
    assert 0.25 <= time.monotonic() - start < 5


def test_the_frame_cap_presents_less_often() -> None:
    source = ScriptedSource(range(1, 101), 0.005)
    counts, _, _ = run(
        source, FakeUpscaler(inline=True), FakePresenter(), limits=Limits(fps_cap=20)
    )
    assert 5 <= counts.presented <= 25
    assert counts.superseded == 100 - counts.presented


def test_the_capture_cap_leaves_frames_of_a_fast_game_alone() -> None:
    source = ScriptedSource(range(1, 10**6))
    counts, recorder, _ = run(
        source, FakeUpscaler(inline=True), FakePresenter(),
        limits=Limits(seconds=0.5, capture_cap=50),
    )  # fmt: skip
    assert 5 <= counts.captured <= 26
    assert recorder.outcome(0) is Outcome.PRESENTED


def test_a_lost_capture_comes_back_by_itself() -> None:
    script = [1, CaptureLost("resized"), CaptureLost("resized"), 2]
    presenter = FakePresenter()
    source = ScriptedSource(script, 0.01, presenter.has_shown)
    counts, _, _ = run(source, FakeUpscaler(), presenter)
    assert counts.presented == 2


def test_the_retry_table_slows_down_and_never_ends() -> None:
    waits = [retry_wait_s(n) for n in range(1000)]
    assert waits == sorted(waits)
    assert waits[0] < 0.1
    assert waits[-1] == 1.0


def test_a_source_that_closes_before_any_frame_is_an_error() -> None:
    with pytest.raises(SourceClosed, match="the script ended"):
        run(ScriptedSource([None]), FakeUpscaler(), FakePresenter())


def test_one_failed_inference_costs_one_frame() -> None:
    upscaler = FakeUpscaler(fails_on=frozenset({3}))
    presenter = FakePresenter()
    source = ScriptedSource(range(1, 8), 0.05, lambda n: presenter.has_shown(n - 1))
    counts, recorder, _ = run(source, upscaler, presenter)
    assert (counts.failed, counts.presented) == (1, 6)
    assert recorder.outcome(2) is Outcome.FAILED


def test_a_broken_upscaler_is_replaced_by_the_plain_upscale() -> None:
    presenter = FakePresenter()
    broken = FakeUpscaler("net", fails_on=frozenset(range(5, 200)))
    counts, _, pipeline = run(
        ScriptedSource(range(1, 41), waits=True), broken, presenter,
        reopen=lambda name, source, output: FakeUpscaler(name, inline=True),
    )  # fmt: skip
    assert counts.failed in (3, 4)  # one may come before the exchange
    assert counts.presented >= 36
    assert pipeline.model == "fsr1"
    assert broken.closed


@pytest.mark.parametrize("first_inline", [True, False])
def test_the_hotkey_changes_the_upscaler_without_a_pause(first_inline: bool) -> None:
    presenter = FakePresenter(commands={10: Command("next"), 25: Command("next")})
    first = FakeUpscaler("a", inline=first_inline)
    made: list[FakeUpscaler] = []

    def reopen(name: str, source: Size, output: Size) -> FakeUpscaler:
        assert (source, output) == (SIZE, Size(16, 8))
        time.sleep(0.05)
        made.append(FakeUpscaler(name, inline=(name == "a") is first_inline))
        return made[-1]

    counts, _, _ = run(
        ScriptedSource(range(1, 81), 0.01), first, presenter,
        reopen=reopen, name="a", cycle=("a", "b"),
    )  # fmt: skip
    names = [p.model for p in presenter.pictures]
    assert [n for n, m in zip(names, [None, *names], strict=False) if n != m] == ["a", "b", "a"]
    assert counts.failed == 0
    assert first.closed
    assert all(u.closed for u in made)


def test_an_upscaler_that_cannot_be_opened_leaves_the_old_one() -> None:
    presenter = FakePresenter(commands={5: Command("next")})

    def reopen(name: str, source: Size, output: Size) -> FakeUpscaler:
        raise EngineError("no such engine")

    counts, _, pipeline = run(
        ScriptedSource(range(1, 31), 0.0, presenter.has_shown), FakeUpscaler("a"), presenter,
        reopen=reopen, name="a", cycle=("a", "b"),
    )  # fmt: skip
    assert counts.presented == 30
    assert pipeline.model == "a"


def test_default_chooses_again_after_a_resize() -> None:
    presenter = FakePresenter()
    script = [*range(1, 11), Region(0, 0, 6, 6), *range(11, 41)]
    source = ScriptedSource(script, 0.005, presenter.has_shown)
    asked: list[Size] = []

    def reopen(name: str, size: Size, output: Size) -> FakeUpscaler:
        asked.append(size)
        return FakeUpscaler(name)

    run(source, FakeUpscaler("x"), presenter, reopen=reopen, name="default")
    assert asked == [Size(6, 6)]


class FixedSize(FakeUpscaler):
    """An engine: takes frames of one size."""

    def __init__(self, model: str, size: Size) -> None:
        super().__init__(model)
        self._size = size

    def submit(self, frame: Frame) -> None:
        if frame.size != self._size:
            raise EngineMismatch(f"built for {self._size}, not for {frame.size}")
        super().submit(frame)


def test_an_engine_of_another_size_is_opened_after_a_resize() -> None:
    presenter = FakePresenter()
    script = [*range(1, 11), Region(0, 0, 6, 6), *range(11, 41)]
    source = ScriptedSource(script, waits=True)
    counts, _, pipeline = run(
        source, FixedSize("net", SIZE), presenter, name="net",
        reopen=lambda name, size, output: FixedSize(name, size),
    )  # fmt: skip
    assert counts.failed in (1, 2)  # the one that showed it, and one before the exchange
    assert counts.presented >= 37
    assert (pipeline.model, presenter.pictures[-1].frame.size) == ("net", Size(6, 6))


def test_without_an_engine_of_the_new_size_the_plain_upscale_is_shown() -> None:
    def reopen(name: str, size: Size, output: Size) -> FakeUpscaler:
        if name == "net":
            raise EngineError("there is no engine")
        return FakeUpscaler(name, inline=True)

    presenter = FakePresenter()
    script = [*range(1, 11), Region(0, 0, 6, 6), *range(11, 41)]
    source = ScriptedSource(script, waits=True)
    counts, _, pipeline = run(source, FixedSize("net", SIZE), presenter, name="net", reopen=reopen)
    assert pipeline.model == "fsr1"
    assert counts.failed in (3, 4)  # one may come before the exchange
    assert counts.presented >= 36


def test_a_failure_of_any_kind_after_a_resize_shows_the_plain_upscale() -> None:
    def reopen(name: str, size: Size, output: Size) -> FakeUpscaler:
        if name == "net":
            raise RuntimeError("the library fell over")
        return FakeUpscaler(name, inline=True)

    presenter = FakePresenter()
    script = [*range(1, 11), Region(0, 0, 6, 6), *range(11, 41)]
    source = ScriptedSource(script, waits=True)
    counts, _, pipeline = run(source, FixedSize("net", SIZE), presenter, name="net", reopen=reopen)
    assert pipeline.model == "fsr1"
    assert counts.failed in (3, 4)  # one may come before the exchange
    assert counts.presented >= 36


def test_a_resize_while_another_upscaler_is_opened_leaves_none_open() -> None:
    opening, made = threading.Event(), list[FakeUpscaler]()

    def reopen(name: str, size: Size, output: Size) -> FakeUpscaler:
        opening.set()
        time.sleep(0.1)
        made.append(FixedSize(name, size))
        return made[-1]

    presenter = FakePresenter(commands={5: Command("next")})
    script = [*range(1, 11), Region(0, 0, 6, 6), *range(11, 151)]
    source = ScriptedSource(script, 0.005, lambda shown: shown < 10 or opening.is_set())
    _, _, pipeline = run(
        source, FixedSize("net", SIZE), presenter,
        name="net", reopen=reopen, cycle=("net", "other"),
    )  # fmt: skip
    assert pipeline.model == "other"
    assert presenter.pictures[-1].frame.size == Size(6, 6)
    assert len(made) > 1
    assert all(upscaler.closed for upscaler in made)


def test_an_engine_that_became_ready_takes_the_place_of_the_one_that_stands_in() -> None:
    plain = FakeUpscaler("fsr1", inline=True)
    plain.stands_in = True
    made: list[Size] = []

    def reopen(name: str, size: Size, output: Size) -> FakeUpscaler:
        made.append(size)
        return FakeUpscaler(name)

    def requests(command: Command, picture: Picture | None) -> None:
        pipelines[0].announce("building net")
        pipelines[0].request("net")

    presenter = FakePresenter(commands={10: Command("screenshot")})
    recorder = TraceRecorder()
    source = ScriptedSource(range(1, 61), 0.005)
    pipelines = [
        Pipeline(source, plain, presenter, recorder, name="net", reopen=reopen, on_command=requests)
    ]
    pipelines[0].run()
    recorder.close()
    assert made == [SIZE]
    names = [picture.model for picture in presenter.pictures]
    assert (names[0], names[-1]) == ("fsr1", "net")
    assert plain.closed


def test_a_stand_in_is_replaced_after_a_resize_if_there_is_an_engine() -> None:
    plain = FakeUpscaler("fsr1", inline=True)
    plain.stands_in = True
    presenter = FakePresenter()
    script = [*range(1, 11), Region(0, 0, 6, 6), *range(11, 41)]
    _, _, pipeline = run(
        ScriptedSource(script, 0.005, presenter.has_shown), plain, presenter, name="net",
        reopen=lambda name, size, output: FixedSize(name, size),
    )  # fmt: skip
    assert pipeline.model == "net"


def test_quit_ends_the_run() -> None:
    presenter = FakePresenter(commands={3: Command("quit")})
    counts, _, _ = run(ScriptedSource(range(1, 10**6), 0.005), FakeUpscaler(), presenter)
    assert 3 <= counts.presented < 50


def test_toggle_hides_and_stops_capturing_until_toggled_again() -> None:
    presenter = FakePresenter(commands={3: Command("toggle")})
    source = ScriptedSource(range(1, 10**6), 0.005)
    recorder = TraceRecorder()
    pipeline = Pipeline(source, FakeUpscaler(inline=True), presenter, recorder)
    thread = threading.Thread(target=pipeline.run)
    thread.start()
    wait_for(lambda: (REGION, False) in presenter.places)
    time.sleep(0.1)
    captured = recorder.counts().captured
    time.sleep(0.2)
    assert recorder.counts().captured <= captured + 1
    presenter._commands[len(presenter.pictures)] = Command("toggle")
    wait_for(lambda: recorder.counts().captured > captured + 5)
    pipeline.stop()
    thread.join(5)
    assert not thread.is_alive()


def test_a_game_that_closes_while_the_overlay_is_off_ends_the_run() -> None:
    presenter = FakePresenter(commands={3: Command("toggle")})
    steps = iter(range(1, 6))

    def script() -> Iterable[int | None]:
        yield from steps
        wait_for(lambda: (REGION, False) in presenter.places)
        yield None

    source = ScriptedSource(script(), 0.01)
    counts, _, _ = run(source, FakeUpscaler(inline=True), presenter)
    assert counts.presented >= 3


def test_what_changed_while_the_overlay_was_off_is_shown_when_it_is_on() -> None:
    presenter = FakePresenter(commands={3: Command("toggle")})
    source = ScriptedSource([1, 2, 3, 4, *[None] * 10**4], 0.01, presenter.has_shown)
    pipeline = Pipeline(source, FakeUpscaler(inline=True), presenter, TraceRecorder())
    thread = threading.Thread(target=pipeline.run)
    thread.start()
    wait_for(lambda: (REGION, False) in presenter.places)
    source._may_come = lambda shown: True
    wait_for(lambda: source.sequence == 4)
    time.sleep(0.1)
    presenter._commands[len(presenter.pictures)] = Command("toggle")
    wait_for(lambda: presenter.latest == 4)
    pipeline.stop()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("first_inline", [True, False])
def test_a_still_game_is_shown_by_the_next_upscaler(first_inline: bool) -> None:
    presenter = FakePresenter(commands={1: Command("next")})

    def reopen(name: str, source: Size, output: Size) -> FakeUpscaler:
        return FakeUpscaler(name, inline=not first_inline)

    counts, _, pipeline = run(
        ScriptedSource([1, *[None] * 100], 0.01), FakeUpscaler("a", inline=first_inline),
        presenter, reopen=reopen, name="a", cycle=("a", "b"),
    )  # fmt: skip
    assert pipeline.model == "b"
    assert [p.model for p in presenter.pictures] == ["a", "b"]
    assert counts.captured == counts.presented == 1


def test_default_follows_a_second_resize_during_the_first() -> None:
    presenter = FakePresenter()
    asked: list[Size] = []

    def reopen(name: str, size: Size, output: Size) -> FakeUpscaler:
        asked.append(size)
        time.sleep(0.1)
        return FakeUpscaler(name)

    script = [1, 2, Region(0, 0, 6, 6), 3, Region(0, 0, 9, 9), *range(4, 40)]
    source = ScriptedSource(script, 0.01, presenter.has_shown)
    run(source, FakeUpscaler("x"), presenter, reopen=reopen, name="default")
    assert asked == [Size(6, 6), Size(9, 9)]


def test_holding_the_source_key_shows_the_source() -> None:
    presenter = FakePresenter(commands={5: Command("source", True), 15: Command("source", False)})
    counts, _, _ = run(
        ScriptedSource(range(1, 41), 0.01, presenter.has_shown), FakeUpscaler("net"), presenter
    )
    names = [p.model for p in presenter.pictures]
    assert names[0] == names[-1] == "net"
    assert 5 <= names.count("source") <= 20
    assert counts.presented == 40


def test_other_commands_reach_their_handler_with_the_picture() -> None:
    got: list[tuple[Command, Picture | None]] = []
    presenter = FakePresenter(commands={4: Command("screenshot")})
    run(
        ScriptedSource(range(1, 11), 0.01), FakeUpscaler(), presenter,
        on_command=lambda command, picture: got.append((command, picture)),
    )  # fmt: skip
    assert len(got) == 1
    assert got[0][0].action == "screenshot"
    assert got[0][1] is not None


def test_a_lost_display_ends_the_run_with_a_complete_trace() -> None:
    presenter = FakePresenter()
    presenter.fails_at = (5, DisplayLost("the server is gone"))
    with pytest.raises(DisplayLost, match="the server is gone"):
        run(ScriptedSource(range(1, 10**6), 0.005), FakeUpscaler(), presenter)
    assert not [t for t in threading.enumerate() if t.name in ("capture", "infer")]


def test_a_bug_in_a_stage_ends_the_run_and_is_told() -> None:
    with pytest.raises(ZeroDivisionError):
        run(ScriptedSource([1, 2, ZeroDivisionError("bug")], 0.01), FakeUpscaler(), FakePresenter())


def test_the_presenter_follows_the_window_without_frames() -> None:
    presenter = FakePresenter()
    script = [1, None, Region(50, 60, 8, 4), *[None] * 40]
    source = ScriptedSource(script, 0.01, presenter.has_shown)
    run(source, FakeUpscaler(), presenter)
    assert presenter.places == [(REGION, True), (Region(50, 60, 8, 4), True)]


def test_the_hud_is_repainted_over_a_still_game_and_that_is_no_frame() -> None:
    presenter = FakePresenter()
    views: list[HudView] = []

    def hud(picture: Picture, output: Size, notice: str) -> HudView:
        views.append(HudView(()))
        return views[-1]

    counts, _, _ = run(ScriptedSource([1, *[None] * 90], 0.01), FakeUpscaler(), presenter, hud=hud)
    assert counts.captured == counts.presented == 1
    assert 3 <= len(presenter.pictures) <= 6
    assert len({id(view) for view in presenter.huds}) == len(presenter.huds)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
