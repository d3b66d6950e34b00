"""The CPU engine and the fake: the contract of the seam, and what is special to each."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engines import load, zoo
from engines.archs.luma import LumaNet
from engines.errors import BuildFailed, EngineMissing, ModelInvalid
from overlay.errors import OverlayError, SettingsError
from overlay.frame import Frame, Region, Size
from overlay.infer import Upscaler
from overlay.infer.openvino import OpenVinoUpscaler, interleave
from overlay.infer.resize import ResizeUpscaler

SMALL = Size(48, 32)


def frame(size: Size = SMALL, seed: int = 0) -> Frame:
    pixels = np.random.default_rng(seed).integers(
        0, 256, (size.height, size.width, 4), dtype=np.uint8
    )
    return Frame(pixels, seed, 1, 2, Region(0, 0, size.width, size.height))


@pytest.fixture(params=["default-x2", "default-x3", "default-x4", "resize"])
def upscaler(request: pytest.FixtureRequest) -> Iterator[Upscaler]:
    if request.param == "resize":
        opened: Upscaler = ResizeUpscaler("bicubic", SMALL, Size(96, 64))
    else:
        opened = OpenVinoUpscaler(zoo.spec(request.param), threads=1)
    with opened:
        yield opened


def finish(upscaler: Upscaler, frame: Frame) -> np.ndarray:
    """Submit, wait, and give a copy of the pixels."""
    upscaler.submit(frame)
    picture = upscaler.poll(5)
    assert picture is not None
    return picture.pixels.copy()


def test_a_frame_becomes_a_picture(upscaler: Upscaler) -> None:
    upscaler.warm_up(SMALL)
    assert upscaler.slots == 1
    assert not upscaler.inline
    assert upscaler.in_flight == 0
    assert upscaler.poll(0) is None
    given = frame()
    upscaler.submit(given)
    assert upscaler.in_flight == 1
    picture = upscaler.poll(5)
    assert picture is not None
    assert upscaler.in_flight == 0
    assert picture.frame is given
    assert picture.model == upscaler.model
    assert picture.backend == upscaler.backend
    assert picture.size == Size(48 * upscaler.scale, 32 * upscaler.scale)
    assert picture.pixels.dtype == np.uint8
    assert picture.kind == ("bgra" if upscaler.backend == "resize" else "luma")
    assert 0 < picture.infer_ns < 5e9


def test_a_second_frame_in_flight_is_a_mistake(upscaler: Upscaler) -> None:
    upscaler.submit(frame())
    with pytest.raises(RuntimeError, match="in flight"):
        upscaler.submit(frame())
    assert upscaler.poll(5) is not None


def test_the_size_may_change_from_frame_to_frame(upscaler: Upscaler) -> None:
    for size in (SMALL, Size(33, 51), SMALL):
        pixels = finish(upscaler, frame(size))
        assert pixels.shape[:2] == (size.height * upscaler.scale, size.width * upscaler.scale)


def test_results_depend_on_the_frame_alone(upscaler: Upscaler) -> None:
    first = finish(upscaler, frame(seed=1))
    other = finish(upscaler, frame(seed=2))
    assert (first != other).any()
    assert (finish(upscaler, frame(seed=1)) == first).all()


def test_a_picture_keeps_its_pixels_until_it_is_dropped(upscaler: Upscaler) -> None:
    upscaler.submit(frame(seed=1))
    held = upscaler.poll(5)
    assert held is not None
    before = held.pixels.copy()
    addresses = set()
    for seed in range(2, 8):
        upscaler.submit(frame(seed=seed))
        picture = upscaler.poll(5)
        assert picture is not None
        addresses.add(picture.pixels.ctypes.data)
    assert (held.pixels == before).all()
    assert held.pixels.ctypes.data not in addresses
    assert len(addresses) <= 2, "buffers must be used again"


def test_rows_may_be_padded_and_pixels_read_only(upscaler: Upscaler) -> None:
    given = frame(seed=3)
    expected = finish(upscaler, given)
    wide = np.zeros((SMALL.height, SMALL.width + 16, 4), np.uint8)
    wide[:, : SMALL.width] = given.pixels
    for pixels in (wide[:, : SMALL.width], given.pixels.copy()):
        pixels.flags.writeable = False
        assert (finish(upscaler, replace_pixels(given, pixels)) == expected).all()


def replace_pixels(given: Frame, pixels: np.ndarray) -> Frame:
    return Frame(pixels, given.sequence, given.ready_ns, given.captured_ns, given.region)


def test_close_with_a_frame_in_flight_and_twice(upscaler: Upscaler) -> None:
    upscaler.submit(frame())
    upscaler.close()
    upscaler.close()
    assert upscaler.in_flight == 0


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


def test_many_frames_do_not_grow_the_heap() -> None:
    import tracemalloc

    with OpenVinoUpscaler(zoo.spec("default-x2"), threads=1) as opened:
        given = frame()
        for _ in range(20):
            finish_without_copy(opened, given)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(200):
            finish_without_copy(opened, given)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    assert grown < 20_000


def finish_without_copy(upscaler: Upscaler, given: Frame) -> None:
    upscaler.submit(given)
    assert upscaler.poll(5) is not None


def test_importing_it_reports_nothing_to_anybody(tmp_path: Path) -> None:
    """OpenVINO's own telemetry would leave its client id in the home folder."""
    code = "import overlay.infer.openvino as o; print(o.ov.get_version())"
    env = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    assert done.stdout
    assert list(tmp_path.iterdir()) == []
