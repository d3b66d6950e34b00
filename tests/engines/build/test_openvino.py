"""OpenVINO engines: equal to the graph, refused when damaged or foreign, int8 only if near."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from engines import frames
from engines.build import Built, Options, Request, open_builder
from engines.build.openvino import EngineFile, OpenVinoBuilder, _frames, psnr
from engines.errors import BuilderMissing, BuildFailed, EngineMismatch
from engines.spec import Output, Precision, Size
from tests import graphs

Pixels = NDArray[np.uint8]

SMALL, OTHER = (48, 32), (34, 50)


def quiet(what: str, done: float | None) -> None: ...


def request(
    *sizes: Size,
    output: Output = "bgra",
    precision: Precision = "fp32",
    int8_psnr: float = 50,
) -> Request:
    graph = graphs.graph(sizes[0] if len(sizes) == 1 else None, 2, output)
    options = Options(int8_psnr=int8_psnr)
    return Request(graphs.spec(2, output), graph, sizes, precision, options, frames.read)


def build(wanted: Request) -> Built:
    return OpenVinoBuilder().build(wanted, quiet)


@pytest.fixture(scope="module")
def engine() -> bytes:
    return build(request(SMALL)).engine


def expected(graph: bytes, frame: Pixels) -> Pixels:
    """What the definition of ONNX says that comes out."""
    run = ReferenceEvaluator(onnx.load_from_string(graph)).run
    made: Pixels = run(None, {"bgra": frame[None]})[0][0]  # type: ignore[call-overload]
    return made


@pytest.mark.parametrize("output", ["bgra", "luma"])
@pytest.mark.parametrize("sizes", [(SMALL,), (SMALL, OTHER)])
def test_an_engine_gives_what_the_graph_gives(output: Output, sizes: tuple[Size, ...]) -> None:
    wanted = request(*sizes, output=output)
    built = build(wanted)
    with_sizes = OpenVinoBuilder().open(built.engine, wanted.spec, sizes)
    for size in (*sizes, sizes[0]):
        frame = frames.read(size)[1]
        made = with_sizes(frame)
        correct = expected(wanted.onnx, frame)
        assert made.shape == correct.shape
        difference = np.abs(made.astype(int) - correct)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3
    with_sizes.close()
    assert built.report["isa"]


def test_a_frame_may_be_read_only(engine: bytes) -> None:
    runner = OpenVinoBuilder().open(engine, graphs.spec(), (SMALL,))
    frame = frames.read(SMALL)[0]
    made = runner(frame).copy()
    frame.flags.writeable = False
    assert (runner(frame) == made).all()


def test_the_identity_names_version_and_cpu() -> None:
    builder = open_builder("cpu")
    assert isinstance(builder, OpenVinoBuilder)
    builder.check()
    assert builder.version() == version("openvino")
    device = builder.device(Options())
    assert set(device) == {"cpu", "isa"}
    assert all(device.values())
    assert device == builder.device(Options(level=5))


def test_the_file_is_read_back_as_it_was_written() -> None:
    file = EngineFile("1.2", "some CPU", {SMALL: b"one", OTHER: b"", (1, 1): bytes(1000)})
    again = EngineFile.parse(file.to_bytes())
    assert (again.version, again.cpu) == ("1.2", "some CPU")
    assert {size: bytes(blob) for size, blob in again.blobs.items()} == file.blobs


def test_damage_is_noticed_before_openvino_sees_it(engine: bytes) -> None:
    for length in (0, 5, 21, 22, 24, 26, 60, len(engine) // 2, len(engine) - 1):
        with pytest.raises(EngineMismatch, match="build it again"):
            EngineFile.parse(engine[:length])
    with pytest.raises(EngineMismatch, match="damaged"):
        EngineFile.parse(engine + b"x")
    dice = np.random.default_rng(0)
    for at in (22, 25, 26, 40, *dice.integers(300, len(engine), 20)):
        flipped = bytearray(engine)
        flipped[at] ^= 0x40
        with pytest.raises(EngineMismatch, match="build it again") as caught:
            EngineFile.parse(bytes(flipped))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}",
        b'{"blobs": []}',
        b'{"blobs": [1]}',
        b"[" * 5000,
        b'{"blobs": 3}',
        b"\xff",
        b'{"blobs": [{"width": 1, "height": 1, "bytes": 9}]}',
        b'{"blobs": [{"width": 1, "height": 1, "bytes": -9}]}',
    ],
)
def test_a_header_that_is_not_ours_is_refused(header: bytes) -> None:
    data = b"sr-overlay openvino 1\n" + struct.pack("<II", len(header), zlib.crc32(header)) + header
    with pytest.raises(EngineMismatch, match="damaged"):
        EngineFile.parse(data)


def test_foreign_engines_are_refused_with_the_reason(engine: bytes) -> None:
    file = EngineFile.parse(engine)
    here = version("openvino").encode()
    older = bytes(file.blobs[SMALL]).replace(here, b"1" * len(here))
    assert older != file.blobs[SMALL], "the blob names the version of OpenVINO"
    foreign = EngineFile("1111.1.1", "another CPU", {SMALL: older}).to_bytes()
    with pytest.raises(EngineMismatch, match=r"made by OpenVINO 1111.1.1 on another CPU") as caught:
        OpenVinoBuilder().open(foreign, graphs.spec(), (SMALL,))
    assert "\n" not in str(caught.value)
    garbage = EngineFile(file.version, file.cpu, {SMALL: b"no blob"}).to_bytes()
    with pytest.raises(EngineMismatch, match="OpenVINO cannot open this engine") as caught:
        OpenVinoBuilder().open(garbage, graphs.spec(), (SMALL,))
    assert "\n" not in str(caught.value)


def test_engines_for_something_else_are_refused(engine: bytes) -> None:
    builder = OpenVinoBuilder()
    with pytest.raises(EngineMismatch, match=r"is for 48x32, not for 34x50"):
        builder.open(engine, graphs.spec(), (SMALL, OTHER))
    for spec in (graphs.spec(3), graphs.spec(2, "luma")):
        with pytest.raises(EngineMismatch, match="another model"):
            builder.open(engine, spec, (SMALL,))
    runner = builder.open(engine, graphs.spec(), (SMALL,))
    with pytest.raises(EngineMismatch, match=r"not for 34x50"):
        runner(frames.read(OTHER)[0])
    graph = graphs.graph(SMALL)
    with pytest.raises(EngineMismatch, match="no engine for OpenVINO"):
        builder.open(graph, graphs.spec(), (SMALL,))


def test_a_graph_that_cannot_be_compiled_fails_in_one_line() -> None:
    wanted = request(SMALL)
    for graph in (b"", b"no graph", wanted.onnx[:-9]):
        with pytest.raises(BuildFailed, match=r"cannot build small-x2 for 48x32") as caught:
            build(replace(wanted, onnx=graph))
        assert "\n" not in str(caught.value)


def test_progress_is_told_and_ends_the_build() -> None:
    told: list[tuple[str, float | None]] = []
    OpenVinoBuilder().build(request(SMALL, OTHER), lambda *what: told.append(what))
    assert told == [("compiling for 48x32", 0.0), ("compiling for 34x50", 0.5)]

    def interrupt(what: str, done: float | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        OpenVinoBuilder().build(request(SMALL), interrupt)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = request(SMALL, precision="int8")
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "nncf", None)
        with pytest.raises(BuilderMissing, match=r"NNCF.*pip install .*build"):
            build(wanted)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BuilderMissing, match=r"OpenVINO.*pip install .*build"):
        OpenVinoBuilder().check()


# --- int8 ---------------------------------------------------------------------------------------


def test_int8_is_kept_if_it_is_near_and_reports_how_near() -> None:
    wanted = request(SMALL, OTHER, precision="int8", int8_psnr=45)
    built = build(wanted)
    assert built.report["int8_psnr"] >= 45  # type: ignore[operator]
    assert (built.report["frames_calibrated"], built.report["frames_checked"]) == (4, 2)
    plain = OpenVinoBuilder().open(build(request(SMALL, OTHER)).engine, wanted.spec, wanted.sizes)
    whole = OpenVinoBuilder().open(built.engine, wanted.spec, wanted.sizes)
    found = []
    for frame in frames.read(SMALL)[1::3]:
        found.append(psnr(whole(frame), plain(frame)))
    assert min(found) == pytest.approx(built.report["int8_psnr"], abs=0.01)
    assert max(found) < 90, "int8 is not the same as FP32"
    assert psnr(whole(frames.read(OTHER)[0]), plain(frames.read(OTHER)[0])) > 45


def test_int8_that_is_too_far_is_refused_with_the_figures() -> None:
    with pytest.raises(BuildFailed, match="int8 changes small-x2 too much") as caught:
        build(request(SMALL, precision="int8", int8_psnr=90))
    told = str(caught.value)
    for form in ("with all layers,", "with all but the last,", "with all but the first and last ("):
        assert f" dB {form}" in told
    assert "90 dB" in told
    assert "worst of 2" in told
    assert "\n" not in told


@pytest.mark.parametrize("count", [0, 1])
def test_int8_needs_game_frames(count: int) -> None:
    few = replace(request(SMALL, precision="int8"), frames=lambda size: frames.read(size)[:count])
    with pytest.raises(BuildFailed, match=rf"at least 2 game frames.*{count}; .*--frames"):
        build(few)


@pytest.mark.parametrize(("count", "checked"), [(2, 1), (3, 1), (6, 2), (36, 12), (100, 11)])
def test_frames_checked_are_not_calibrated_on(count: int, checked: int) -> None:
    def numbered(size: Size) -> Sequence[Pixels]:
        return [np.full((size[1], size[0], 4), index, np.uint8) for index in range(count)]

    calibration, others = _frames(replace(request(SMALL), frames=numbered))
    used = [int(frame[0, -1, 0]) for frame in calibration]
    assert used.pop() == 255, "the last is black and white"
    held_back = [int(frame[0, 0, 0]) for frame in others]
    assert len(held_back) == checked
    assert not set(used) & set(held_back)
    assert max(*used, *held_back) >= count - 3, "spread over all of them"


def test_psnr_is_that_of_the_colours() -> None:
    black = np.zeros((4, 4, 4), np.uint8)
    other = black.copy()
    other[..., 3] = 255
    assert psnr(black, other) == 100
    other[..., 0] = 10
    assert psnr(black, other) == pytest.approx(10 * np.log10(255**2 / (100 / 3)))
    assert psnr(other[..., 0], black[..., 0]) == pytest.approx(10 * np.log10(255**2 / 100))


@pytest.mark.slow
def test_building_is_silent_and_reports_nothing_to_anybody(tmp_path: Path) -> None:
    code = (
        "import sys; import engines.build.openvino; assert 'openvino' not in sys.modules\n"
        "from tests.engines.build.test_openvino import *\n"
        "build(request(SMALL, precision='int8', int8_psnr=20))\n"
    )
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []


SIGNAL_AFTER = """
import gc, signal, sys
from engines import zoo
from engines.build import openvino
from overlay.frame import Size
from overlay.infer import openvino as upscalers
if sys.argv[1] == "own":
    upscalers.shared_core = lambda: openvino.library().Core()
first, second = (upscalers.OpenVinoUpscaler(zoo.spec(f"default-x{scale}")) for scale in (2, 3))
for upscaler in (first, second):
    upscaler.warm_up(Size(64, 48))
del upscaler
first.close()
del first
gc.collect()
second.close()
del second
gc.collect()
signal.signal(signal.SIGTERM, lambda number, frame: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks")
def test_a_signal_after_upscalers_were_closed_does_not_crash() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_AFTER, "shared"], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "handled\n")
