"""What is special to the nets and engines on the CPU, and to the fake; see test_contract."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from engines import load, zoo
from engines.archs.luma import LumaNet
from engines.build import Request, open_builder
from engines.build.openvino import EngineFile
from engines.errors import BuildFailed, EngineMismatch, EngineMissing, ModelInvalid
from engines.spec import Engine, Output
from engines.spec import Size as Pair
from overlay.errors import OverlayError, SettingsError
from overlay.frame import Frame, Size
from overlay.infer import Upscaler
from overlay.infer.openvino import OpenVinoEngine, OpenVinoUpscaler, interleave
from overlay.infer.resize import ResizeUpscaler
from tests import graphs
from tests.contracts import upscaler as contract
from tests.contracts.upscaler import OTHER, SMALL, Pixels, frame


def finish(upscaler: Upscaler, given: Frame) -> Pixels:
    """Submit, wait, and give a copy of the pixels."""
    return contract.finish(upscaler, given).pixels.copy()


def test_poll_does_not_wait_longer_than_told() -> None:
    with ResizeUpscaler("nearest", SMALL, Size(96, 64), delay_s=0.3) as slow:
        slow.submit(frame())
        start = time.perf_counter()
        assert slow.poll(0.02) is None
        assert time.perf_counter() - start < 0.2
        assert slow.in_flight == 1
        assert slow.poll(5) is not None


def test_resize_reaches_the_output_and_knows_its_filters() -> None:
    with ResizeUpscaler("default", Size(480, 270), Size(1000, 500)) as opened:
        assert (opened.scale, opened.model) == (3, "bicubic")
    with pytest.raises(SettingsError, match="no filter 'fsr1'"):
        ResizeUpscaler("fsr1", SMALL, SMALL)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_interleave_puts_blocks_in_their_places(scale: int) -> None:
    dice = np.random.default_rng(0)
    blocks = dice.integers(0, 256, (5, 7, scale * scale), dtype=np.uint8)
    picture = np.zeros((5 * scale, 7 * scale), np.uint8)
    interleave(blocks, picture)
    for y, x in np.ndindex(picture.shape):
        assert picture[y, x] == blocks[y // scale, x // scale, y % scale * scale + x % scale]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_openvino_gives_what_torch_gives(scale: int) -> None:
    spec = zoo.spec(f"default-x{scale}")
    given = frame(Size(61, 47))
    with OpenVinoUpscaler(spec) as opened:
        made = finish(opened, given)
    blocks = LumaNet(load.state_dict(spec))(torch.from_numpy(given.pixels)[None]).numpy()[0]
    expected = np.zeros_like(made)
    interleave(np.ascontiguousarray(blocks), expected)
    difference = np.abs(made.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_compiling_is_logged_once_per_size(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with OpenVinoUpscaler(zoo.spec("default-x2"), threads=1) as opened:
        assert opened.device == "CPU, 1 thread"
        for size in (SMALL, SMALL, Size(20, 20)):
            finish(opened, frame(size))
    lines = [r.message for r in caplog.records if r.message.startswith("compiled default-x2")]
    assert [line.split(" in ")[0] for line in lines] == [
        "compiled default-x2 for 48x32",
        "compiled default-x2 for 20x20",
    ]


def test_damaged_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = zoo.spec("default-x2")
    monkeypatch.setattr(load, "weights_folder", lambda: tmp_path)
    with pytest.raises(EngineMissing, match=r"default-x2\.onnx"):
        OpenVinoUpscaler(spec)
    (tmp_path / spec.onnx).write_bytes(b"not a model")
    with pytest.raises(ModelInvalid, match="damaged"):
        OpenVinoUpscaler(spec)
    fits = replace(spec, onnx_sha256=hashlib.sha256(b"not a model").hexdigest())
    with pytest.raises(ModelInvalid, match="OpenVINO cannot read") as caught:
        OpenVinoUpscaler(fits)
    assert "\n" not in str(caught.value)


def test_a_size_that_cannot_be_had_is_an_engine_error() -> None:
    with (
        OpenVinoUpscaler(zoo.spec("default-x2")) as opened,
        pytest.raises(BuildFailed, match="default-x2 cannot run on 0x4"),
    ):
        opened.warm_up(Size(0, 4))


def test_a_failing_inference_gives_up_its_frame_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        latency = 1.0

        def set_input_tensor(self, tensor: object) -> None: ...
        def start_async(self) -> None: ...
        def wait_for(self, timeout_ms: int) -> bool:
            raise RuntimeError("Exception from src/x.cpp:1:\nout of memory")

    with OpenVinoUpscaler(zoo.spec("default-x2"), threads=1) as opened:
        good = finish(opened, frame())
        working = opened._request
        monkeypatch.setattr(opened, "_request", Broken())
        opened.submit(frame())
        with pytest.raises(OverlayError, match="default-x2 failed on a frame: out of memory"):
            opened.poll(1)
        assert opened.in_flight == 0
        monkeypatch.setattr(opened, "_request", working)
        assert (finish(opened, frame()) == good).all()


def test_only_luma_models_run_here() -> None:
    with pytest.raises(ValueError, match="luma"):
        OpenVinoUpscaler(replace(zoo.spec("default-x2"), output="bgra"))


def test_importing_it_reports_nothing_to_anybody(tmp_path: Path) -> None:
    """OpenVINO's own telemetry would leave its client id in the home folder."""
    code = "import overlay.infer.openvino as o; print(o.ov.get_version())"
    env = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    assert done.stdout
    assert list(tmp_path.iterdir()) == []


# --- engines ------------------------------------------------------------------------------------


def engine_of(*sizes: Pair, output: Output = "bgra") -> Engine:
    request = Request(graphs.spec(2, output), graphs.graph(None, 2, output), sizes, "fp32")
    built = open_builder("openvino").build(request, lambda what, done: None)
    return graphs.engine("openvino", built.engine, *sizes, output=output)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_of(SMALL, OTHER)


def test_an_engine_gives_what_its_runner_gives(engine: Engine) -> None:
    runner = open_builder("openvino").open(engine.data, graphs.spec(), engine.sizes)
    with OpenVinoEngine(engine, threads=1) as opened:
        for size in (SMALL, OTHER):
            assert (finish(opened, frame(size)) == runner(frame(size).pixels)).all()
        assert (opened.backend, opened.device) == ("openvino", "CPU, 1 thread")
        assert (opened.model, opened.scale) == ("small-x2", 2)


def test_merged_luma_has_the_luma_and_the_colours() -> None:
    engine = engine_of(SMALL, output="luma")
    given = frame()
    given.pixels[:] = cv2.GaussianBlur(given.pixels, (0, 0), 6)
    with OpenVinoEngine(engine, 1) as plain, OpenVinoEngine(engine, 1, merge=True) as merged:
        luma, bgra = finish(plain, given), finish(merged, given)
    assert (luma.ndim, bgra.shape) == (2, (*luma.shape, 4))
    again = cv2.cvtColor(bgra, cv2.COLOR_BGR2GRAY)
    assert np.abs(again.astype(int) - luma).mean() < 2


def test_an_engine_writes_into_the_buffer_that_is_shown(engine: Engine) -> None:
    with OpenVinoEngine(engine, threads=1) as opened:
        opened.warm_up(SMALL)
        given = frame()
        opened.submit(given)
        assert opened._input is not None
        assert opened._input.data.ctypes.data == given.pixels.ctypes.data
        picture = contract.wait(opened)
        assert opened._request is not None
        target = opened._request.get_output_tensor().data
        assert picture.pixels.ctypes.data == target.ctypes.data


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_chosen_when_it_is_opened(engine: Engine, threads: int) -> None:
    with OpenVinoEngine(engine, threads) as opened:
        compiled = opened._open(SMALL)
    assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


def test_a_size_that_the_engine_does_not_take_is_a_mismatch(engine: Engine) -> None:
    with OpenVinoEngine(engine, threads=1) as opened:
        good = finish(opened, frame())
        with pytest.raises(
            EngineMismatch, match=r"small-x2 was built for 48x32, 34x50, and the frames are 50x34"
        ):
            opened.submit(frame(Size(50, 34)))
        assert opened.in_flight == 0
        assert (finish(opened, frame()) == good).all(), "and it goes on with those it takes"


def test_damaged_and_foreign_engines_are_refused_in_one_line(engine: Engine) -> None:
    bad = {
        engine.data[:-1]: "damaged",
        b"x": "no engine for OpenVINO",
        graphs.graph(SMALL): "no engine for OpenVINO",
        engine_of(SMALL).data: "is for 48x32, not for 34x50",
    }
    for data, reason in bad.items():
        with pytest.raises(EngineMismatch, match=reason) as caught:
            OpenVinoEngine(replace(engine, data=data))
        assert "\n" not in str(caught.value)
    other = EngineFile("1.0", "another CPU", {SMALL: b"a blob", OTHER: b""}).to_bytes()
    with (
        OpenVinoEngine(replace(engine, data=other)) as opened,
        pytest.raises(EngineMismatch, match=r"made by OpenVINO 1\.0 on another CPU"),
    ):
        opened.warm_up(SMALL)
    with (
        OpenVinoEngine(replace(engine, scale=3)) as opened,
        pytest.raises(EngineMismatch, match="another model"),
    ):
        opened.warm_up(SMALL)


def test_a_frame_that_fails_gives_its_buffer_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def set_input_tensor(self, tensor: object) -> None: ...
        def set_output_tensor(self, tensor: object) -> None: ...
        def start_async(self) -> None: ...
        def wait_for(self, timeout_ms: int) -> bool:
            raise RuntimeError("no memory")

    with OpenVinoEngine(engine, threads=1) as opened:
        good = finish(opened, frame())
        working = opened._request
        monkeypatch.setattr(opened, "_request", Broken())
        for _ in range(30):
            opened.submit(frame())
            with pytest.raises(OverlayError, match="small-x2 failed on a frame: no memory"):
                opened.poll(1)
        monkeypatch.setattr(opened, "_request", working)
        assert (finish(opened, frame()) == good).all()
