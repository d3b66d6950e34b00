"""What is special to engines with ONNX Runtime; see test_contract."""

from __future__ import annotations

import logging
import sys
import threading
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

from engines import export, frames, load
from engines import graph as graph_tools
from engines.build import Request, open_builder
from engines.errors import BuildFailed, EngineMismatch
from engines.spec import Engine, Output
from overlay.errors import BackendUnavailable, OverlayError
from overlay.frame import Frame, Lease, Size
from overlay.infer import Upscaler
from overlay.infer.onnxruntime import OnnxRuntimeUpscaler
from overlay.infer.openvino import OpenVinoEngine
from tests import graphs
from tests.contracts import upscaler as contract
from tests.contracts.upscaler import OTHER, SMALL, Pixels, frame, frame_of


def engine_of(output: Output = "bgra") -> Engine:
    graph = graphs.graph(None, 2, output)
    return graphs.engine("onnxruntime", graph, SMALL, OTHER, output=output)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_of()


def finish(upscaler: Upscaler, given: Frame) -> Pixels:
    return contract.finish(upscaler, given).pixels.copy()


def test_an_engine_gives_what_its_runner_gives(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    runner = open_builder("onnxruntime").open(engine.data, graphs.spec(), engine.sizes)
    with (
        caplog.at_level(logging.INFO),
        OnnxRuntimeUpscaler(engine, threads=1, provider="cpu") as opened,
    ):
        for size in (SMALL, OTHER):
            assert (finish(opened, frame(size)) == runner(frame(size).pixels)).all()
        assert (opened.backend, opened.device) == ("onnxruntime", "CPU, 1 thread, ONNX Runtime")
        assert (opened.model, opened.scale) == ("small-x2", 2)
    assert "opened small-x2 with cpu" in caplog.text


def test_merged_luma_has_the_luma_and_the_colours() -> None:
    engine = engine_of("luma")
    given = frame()
    given.pixels[:] = cv2.GaussianBlur(given.pixels, (0, 0), 6)
    with (
        OnnxRuntimeUpscaler(engine, 1) as plain,
        OnnxRuntimeUpscaler(engine, 1, merge=True) as merged,
    ):
        luma, bgra = finish(plain, given), finish(merged, given)
    assert (luma.ndim, bgra.shape) == (2, (*luma.shape, 4))
    again = cv2.cvtColor(bgra, cv2.COLOR_BGR2GRAY)
    assert np.abs(again.astype(int) - luma).mean() < 2


def test_submitting_does_not_wait(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with OnnxRuntimeUpscaler(engine, 1) as opened:
        opened.warm_up(SMALL)
        go = threading.Event()
        run = opened._run

        def held_up(pixels: Pixels, lease: Lease) -> None:
            assert go.wait(10)
            run(pixels, lease)

        monkeypatch.setattr(opened, "_run", held_up)
        opened.submit(frame())
        assert opened.poll(0) is None
        assert opened.poll(0.05) is None
        assert opened.in_flight == 1
        go.set()
        assert contract.wait(opened).infer_ns > 0


def test_the_worker_lets_python_run() -> None:
    """A frame of some hundred ms: this thread goes on meanwhile."""
    size = Size(960, 540)
    engine = graphs.engine("onnxruntime", graphs.graph(None), size, output="bgra")
    with OnnxRuntimeUpscaler(engine, 1) as opened:
        opened.warm_up(size)
        given = frame(size)
        steps = 0
        opened.submit(given)
        while opened.poll(0) is None:
            steps += 1
            time.sleep(0)
        assert steps > 10


def test_a_size_that_the_engine_does_not_take_is_a_mismatch(engine: Engine) -> None:
    with OnnxRuntimeUpscaler(engine, threads=1) as opened:
        good = finish(opened, frame())
        with pytest.raises(
            EngineMismatch, match=r"small-x2 was built for 48x32, 34x50, and the frames are 50x34"
        ):
            opened.submit(frame(Size(50, 34)))
        assert opened.in_flight == 0
        assert (finish(opened, frame()) == good).all(), "and it goes on with those it takes"


def test_damaged_engines_are_refused_in_one_line(engine: Engine) -> None:
    for data in (b"", b"no graph", engine.data[:-3], graphs.graph(SMALL)):
        with pytest.raises(EngineMismatch) as caught:
            OnnxRuntimeUpscaler(replace(engine, data=data))
        assert "\n" not in str(caught.value)


def test_what_is_missing_is_a_back_end_that_cannot_be_used(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendUnavailable, match="no provider 'x' here"):
        OnnxRuntimeUpscaler(engine, provider="x")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailable, match=r"cannot be loaded.*pip install onnxruntime"):
        OnnxRuntimeUpscaler(engine)


def test_a_frame_that_fails_gives_its_buffer_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(pixels: Pixels, lease: Lease) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 6 : device lost\nsecond line")

    with OnnxRuntimeUpscaler(engine, threads=1) as opened:
        good = finish(opened, frame())
        with monkeypatch.context() as context:
            context.setattr(opened, "_run", broken)
            for _ in range(30):
                opened.submit(frame())
                with pytest.raises(OverlayError, match=r"failed on a frame: 6 : device lost$"):
                    opened.poll(5)
                assert opened.in_flight == 0
        assert (finish(opened, frame()) == good).all()


@pytest.mark.slow
def test_a_real_net_gives_what_torch_gives_on_both_back_ends() -> None:
    loaded = load.read(load.locate("realesr-animevideov3-x4"))
    size = Size(96, 64)
    given = frames.read(size)[1]
    correct = graph_tools.reference(loaded, given)
    fp32, fp16 = (export.export(loaded, [size], kind) for kind in ("fp32", "fp16"))

    def request(graph: bytes) -> Request:
        return Request(loaded.spec, graph, (size,), "fp32", frames=frames.read)

    for backend, graph, kind in (
        ("openvino", fp32, OpenVinoEngine),
        ("onnxruntime", fp32, OnnxRuntimeUpscaler),
        ("onnxruntime", fp16, OnnxRuntimeUpscaler),
    ):
        built = open_builder(backend).build(request(graph), lambda what, done: None)
        engine = Engine(loaded.spec.id, 4, "bgra", (size,), "fp32", backend, built.engine)
        with kind(engine, threads=2) as opened:
            made = finish(opened, frame_of(given))
        difference = np.abs(made.astype(int) - correct)
        assert difference.max() <= (1 if graph is fp32 else loaded.spec.fp16_max)
        assert difference.mean() < loaded.spec.fp16_mean

    too_far = replace(request(fp32), precision="int8")
    with pytest.raises(BuildFailed, match=r"int8 changes realesr-animevideov3-x4 too much: 3\d"):
        open_builder("openvino").build(too_far, lambda what, done: None)
