"""The speed benchmark: what it picks, how it counts, and short runs of all of it."""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from engines import zoo
from engines.errors import EngineError, EngineMissing
from evaluation import bench
from evaluation.bench import frames, rounds
from evaluation.bench.cases import BASELINES, Cv2Resize, Wanted
from evaluation.bench.hud import view
from evaluation.bench.result import Result, row
from evaluation.bench.rounds import Samples, Waiter, disturbed
from overlay.errors import OverlayError, SettingsError
from overlay.frame import Frame, Picture, Region, Size
from overlay.infer import SHADERS
from overlay.latency.machine import CpuUse
from overlay.present import Shown


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words)


# --- options ------------------------------------------------------------------------------------


def test_the_default_is_every_net_at_every_size_up_to_1080p() -> None:
    plan = bench.wanted(parse())
    pairs = [(str(size), scale) for size, scale in plan.pairs()]
    assert pairs == [
        ("480x270", 2), ("480x270", 3), ("480x270", 4),
        ("640x360", 2), ("640x360", 3),
        ("960x540", 2),
    ]  # fmt: skip
    assert plan.models == ()
    assert not plan.every
    assert plan.threads >= 1


def test_all_means_every_shader_too() -> None:
    plan = bench.wanted(parse("--models", "all"))
    assert plan.every
    assert plan.models == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "480"], "--sizes: '480': expected WIDTHxHEIGHT"),
        (["--sizes", ","], "--sizes names no size"),
        (["--scales", "2,x"], "--scales: expected numbers from 1 to 8, not '2,x'"),
        (["--scales", "9"], "--scales: expected numbers from 1 to 8"),
        (["--frames", "0"], "--frames must be at least 1, not 0"),
        (["--threads", "-1"], "--threads: expected 0 to 256, not -1"),
        (["--quiet-wait", "-1"], "--quiet-wait: expected 0 to 3600 s, not -1"),
        (["--models", "bilinaer"], "unknown model 'bilinaer'.*did you mean 'bilinear'"),
        (["--source", "nonsense"], "--source: expected pattern or replay:PATH, not 'nonsense'"),
        (["--largest", "64x64", "--sizes", "64x36"], "nothing to measure"),
    ],
)
def test_bad_options(words: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        bench.run(parse("--frames", "1", *words))


def test_an_unwritable_file_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(OverlayError, match=r"cannot write .*: No such file or directory"):
        bench.run(parse("--markdown", str(tmp_path / "no" / "such.md")))


# --- frames -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 36), (200, 36), (64, 200), (300, 300)])
def test_pictures_are_cut_or_enlarged_to_size(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (100, 160, 4), np.uint8)
    before = picture.copy()
    got = frames.fitted(picture, Size(*size))
    assert got.shape == (size[1], size[0], 4)
    assert got.flags.c_contiguous
    assert got.flags.writeable
    assert np.array_equal(picture, before)


def test_a_cut_is_the_middle() -> None:
    picture = np.arange(100 * 160 * 4, dtype=np.uint32).astype(np.uint8).reshape(100, 160, 4)
    assert np.array_equal(frames.fitted(picture, Size(60, 20)), picture[40:60, 50:110])


def test_images_of_a_folder(tmp_path: Path) -> None:
    import cv2

    for index in range(3):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.full((30, 40, 3), 80 * index, np.uint8))
    found = frames.pictures(f"replay:{tmp_path}")
    assert [int(picture[0, 0, 0]) for picture in found] == [0, 80, 160]
    made = frames.frames(found, Size(20, 10))
    assert [frame.pixels.shape for frame in made] == [(10, 20, 4)] * 3


def test_the_pattern_moves() -> None:
    first, second = frames.pictures("pattern", 2)
    assert not np.array_equal(first, second)


# --- blocks and repeats -------------------------------------------------------------------------


def test_other_processes_disturb() -> None:
    assert not disturbed(CpuUse(1.0, 1.0, 1.1))
    assert disturbed(CpuUse(1.0, 1.0, 1.5))
    assert not disturbed(CpuUse(0.05, 0.05, 0.08))  # two ticks of the kernel's clock
    assert not disturbed(CpuUse(1.0, 1.0, None))


def test_waiting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy:
        def use(self) -> CpuUse:
            return CpuUse(0.25, 0.0, 0.5)

    monkeypatch.setattr(rounds, "CpuClock", Busy)
    waits: list[float] = []
    monkeypatch.setattr(rounds.time, "sleep", waits.append)
    waiter = Waiter(1.0)
    assert not waiter.wait()
    assert waits == [0.25] * 4
    assert not waiter.wait()
    assert len(waits) == 4
    assert not Waiter(0).wait()


class FakePresenter:
    """Takes no time and shows nothing."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def adapt(self, look: object) -> None:
        pass

    def show(self, picture: Picture, hud: None) -> Shown:
        import time

        self.shown.append(f"{picture.model}{picture.scale}")
        now = time.perf_counter_ns()
        return Shown(now, now, now, now + 1)


def one_frame() -> Frame:
    return Frame(np.zeros((36, 64, 4), np.uint8), 0, 0, 0, Region(0, 0, 64, 36))


def cv2_cases() -> list[rounds.Case]:
    cases = []
    for name in BASELINES:
        upscaler = Cv2Resize(name, 2, 1)
        upscaler.warm_up(Size(64, 36))
        cases.append(rounds.Case("cv2", upscaler, Size(64, 36), Size(128, 72)))
    return cases


def test_cases_are_measured_in_turn() -> None:
    presenter = FakePresenter()
    by_size = {Size(64, 36): [one_frame()]}
    found = rounds.measure(cv2_cases(), by_size, presenter, 50)  # type: ignore[arg-type]
    assert [len(samples.whole_ns) for samples in found] == [50, 50]
    assert [len(samples.upscale_cpu_ns) for samples in found] == [50, 50]
    changes = [a for a, b in zip(presenter.shown, presenter.shown[1:], strict=False) if a != b]
    assert changes == ["bilinear2", "bicubic2"] * 2 + ["bilinear2"]  # three rounds


def test_disturbed_blocks_are_repeated_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy:
        def use(self) -> CpuUse:
            return CpuUse(1.0, 0.0, 2.0)

    monkeypatch.setattr(rounds, "CpuClock", Busy)
    monkeypatch.setattr(Waiter, "wait", lambda self: True)
    by_size = {Size(64, 36): [one_frame()]}
    found = rounds.measure(cv2_cases(), by_size, FakePresenter(), 20)  # type: ignore[arg-type]
    assert [samples.repeated for samples in found] == [3, 3]
    assert [len(samples.whole_ns) for samples in found] == [20, 20]
    assert found[0].other_cores == 2.0
    assert row(cv2_cases()[0], found[0], "GL").verdict == "loaded"


def test_rows_sum_up_all_frames() -> None:
    samples = Samples()
    block = np.array([[1_000_000, 3_000_000], [2_000_000, 6_000_000], [5, 7], [9, 11]], np.int64)
    samples.add(block, CpuUse(10.0, 9.0, 9.5))
    found = row(cv2_cases()[1], samples, "GL")
    assert found.upscale.ms.p50 == pytest.approx(2)
    assert found.upscale.fps == pytest.approx(500)
    assert found.whole.ms.p50 == pytest.approx(4)
    assert found.whole.least_ms == pytest.approx(2)
    assert found.whole.cpu_ms == pytest.approx(10 / 1e6)
    assert (found.model, found.backend, found.scale, found.runs) == ("bicubic", "cv2", 2, 2)
    assert found.verdict == "quiet"


def test_cv2_gives_what_cv2_gives() -> None:
    import cv2

    upscaler = Cv2Resize("bicubic", 3, 2)
    upscaler.warm_up(Size(64, 36))
    frame = one_frame()
    frame.pixels[:] = np.random.default_rng(5).integers(0, 256, frame.pixels.shape, np.uint8)
    upscaler.submit(frame)
    picture = upscaler.poll(0)
    assert picture is not None
    assert np.array_equal(
        picture.pixels, cv2.resize(frame.pixels, (192, 108), interpolation=cv2.INTER_CUBIC)
    )
    assert upscaler.in_flight == 0
    assert upscaler.device == "CPU, 2 threads"


def test_the_hud_of_the_benchmark_changes() -> None:
    assert view(1) != view(2)
    assert view(1) == view(1)


# --- short runs ---------------------------------------------------------------------------------


def broken_nets() -> set[str]:
    """Name the nets that cannot run here."""
    if find_spec("openvino") is None:
        return {spec.id for spec in zoo.SHIPPED}
    broken = set()
    for spec in zoo.SHIPPED:
        try:
            zoo.verify(spec)
        except EngineError:
            broken.add(spec.id)
    return broken


def test_every_shader_and_every_net(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    words = ["--models", "all", "--sizes", "64x36", "--frames", "5", "--hud", "--json"]
    assert bench.run(parse(*words, "--markdown", str(path))) == 0
    said = json.loads(capsys.readouterr().out)
    rows = {(r["backend"], r["model"], r["scale"]): r for r in said["rows"]}
    assert len(rows) == len(said["rows"])
    expected = {("opengl", name, scale) for name in SHADERS for scale in (2, 3, 4)}
    expected |= {("cv2", name, scale) for name in BASELINES for scale in (2, 3, 4)}
    broken = broken_nets()
    forms = ("openvino", "openvino, merged") if "llvmpipe" in said["renderer"] else ("openvino",)
    whole = [spec for spec in zoo.SHIPPED if spec.id not in broken]
    expected |= {(form, spec.id, spec.scale) for spec in whole for form in forms}
    assert rows.keys() == expected
    assert {out["model"] for out in said["left_out"]} == broken
    for found in rows.values():
        _check_row(found)
    assert len(said["hud"]) == 3
    for cost in said["hud"]:
        assert cost["without_ms"]["p50"] > 0
        assert cost["new_ms"]["p50"] > 0
        assert cost["glyphs"] > 20
    assert said["machine"]["cpu"]
    assert said["threads"] >= 1
    assert said["capture"] == []
    text = path.read_text(encoding="utf-8")
    assert text.count("\n| 64x36 |") == len(rows)
    assert "| input | output | upscaler |" in text


def _check_row(found: dict[str, object]) -> None:
    assert found["runs"] == 5
    assert found["input_size"] == "64x36"
    assert found["output_size"] == f"{64 * found['scale']}x{36 * found['scale']}"  # type: ignore[operator]
    assert found["verdict"] in ("quiet", "loaded", "unknown")
    for part in ("upscale", "whole"):
        timing = found[part]
        assert isinstance(timing, dict)
        ms = timing["ms"]
        assert 0 < ms["min"] <= ms["p50"] <= ms["p95"] <= ms["p99"]
        assert timing["fps"] == pytest.approx(1000 / ms["p50"], rel=0.02)
    assert found["upscale"]["ms"]["p50"] <= found["whole"]["ms"]["p50"]  # type: ignore[index]
    assert (found["upscale"]["cpu_ms"] is None) == (found["kind"] == "shader")  # type: ignore[index]


def test_a_net_that_was_named_and_is_missing_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openvino")
    from engines import load

    def missing(spec: object) -> bytes:
        raise EngineMissing("cannot read the model file for a test")

    monkeypatch.setattr(load, "onnx_bytes", missing)
    with pytest.raises(EngineMissing, match="for a test"):
        bench.run(parse("--models", "default-x2", "--sizes", "64x36", "--frames", "1"))


@pytest.mark.display
@pytest.mark.usefixtures("display")
def test_capture(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--capture", "--models", "bilinear", "--scales", "2", "--sizes", "480x270"]
    assert bench.run(parse(*words, "--frames", "5", "--json")) == 0
    x11, mss = json.loads(capsys.readouterr().out)["capture"]
    assert (x11["backend"], mss["backend"]) == ("x11", "mss")
    for found in (x11, mss):
        assert found["frames"] == 5
        assert found["size"] == "480x270"
        assert 0 < found["capture_ms"]["p50"] <= found["capture_ms"]["p99"]
        assert 0 < found["drawn_to_captured_ms"]["p50"] < 500
        assert found["missed"] >= 0
    assert x11["identical"] == 0


def test_the_text_has_every_table() -> None:
    samples = Samples()
    samples.add(np.full((4, 3), 1_500_000, np.int64), CpuUse(1.0, 1.0, None))
    facts = {
        "command": "overlay bench", "source": "pattern", "frames": 3, "threads": 2,
        "renderer": "GL", "machine": {
            "cpu": "C", "cores": 2, "system": "L", "python": "3", "load_before": 0.1,
            "load_after": None,
        },
    }  # fmt: skip
    plan = Wanted((), False, (Size(64, 36),), (2,), Size(1920, 1080), 2)
    assert plan.pairs() == [(Size(64, 36), 2)]
    result = Result(facts, [row(cv2_cases()[0], samples, "GL")])
    assert "1.50" in result.text()
    assert "unknown" in result.text()
    assert result.to_json()["rows"][0]["other_cores"] is None
