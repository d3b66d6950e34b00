"""Every upscaler under the contract of the seam."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest

from engines import zoo
from engines.build import Request, open_builder
from engines.spec import Engine, Output
from overlay.frame import Size
from overlay.infer import Upscaler
from overlay.infer.onnxruntime import OnnxRuntimeUpscaler
from overlay.infer.opengl import ShaderUpscaler
from overlay.infer.openvino import OpenVinoEngine, OpenVinoUpscaler
from overlay.infer.resize import ResizeUpscaler
from tests import graphs
from tests.contracts.upscaler import OTHER, SMALL, UpscalerContract

Opener = Callable[[], Upscaler]


@cache
def engine(backend: str, output: Output) -> Engine:
    sizes = ((SMALL.width, SMALL.height), (OTHER.width, OTHER.height))
    request = Request(graphs.spec(2, output), graphs.graph(None, 2, output), sizes, "fp32")
    built = open_builder(backend).build(request, lambda what, done: None)
    return graphs.engine(backend, built.engine, *sizes, output=output)


def opened(request: pytest.FixtureRequest) -> Iterator[Upscaler]:
    opener: Opener = request.param
    with opener() as upscaler:
        yield upscaler


class TestSource(UpscalerContract):
    kind = "source"

    @pytest.fixture
    def upscaler(self) -> Iterator[Upscaler]:
        with ShaderUpscaler("fsr1") as upscaler:
            yield upscaler

    @pytest.mark.skip(reason="the pixels are the frame's own")
    def test_a_picture_keeps_its_pixels_until_it_is_dropped(self, upscaler: Upscaler) -> None: ...

    @pytest.mark.skip(reason="the pixels are the frame's own")
    def test_rows_may_be_padded_and_pixels_read_only(self, upscaler: Upscaler) -> None: ...


class TestLuma(UpscalerContract):
    kind = "luma"

    @pytest.fixture(
        params=[
            pytest.param(lambda: OpenVinoUpscaler(zoo.spec("default-x2"), 1), id="net-x2"),
            pytest.param(lambda: OpenVinoUpscaler(zoo.spec("default-x3"), 1), id="net-x3"),
            pytest.param(lambda: OpenVinoUpscaler(zoo.spec("default-x4"), 1), id="net-x4"),
            pytest.param(lambda: OpenVinoEngine(engine("openvino", "luma"), 1), id="openvino"),
            pytest.param(
                lambda: OnnxRuntimeUpscaler(engine("onnxruntime", "luma"), 1), id="onnxruntime"
            ),
        ]
    )
    def upscaler(self, request: pytest.FixtureRequest) -> Iterator[Upscaler]:
        yield from opened(request)


class TestBgra(UpscalerContract):
    @pytest.fixture(
        params=[
            pytest.param(lambda: ResizeUpscaler("bicubic", SMALL, Size(96, 64)), id="resize"),
            pytest.param(
                lambda: OpenVinoUpscaler(zoo.spec("default-x2"), 1, merge=True), id="net-merged"
            ),
            pytest.param(lambda: OpenVinoEngine(engine("openvino", "bgra"), 1), id="openvino"),
            pytest.param(
                lambda: OpenVinoEngine(engine("openvino", "luma"), 1, merge=True),
                id="openvino-merged",
            ),
            pytest.param(
                lambda: OnnxRuntimeUpscaler(engine("onnxruntime", "bgra"), 1), id="onnxruntime"
            ),
            pytest.param(
                lambda: OnnxRuntimeUpscaler(engine("onnxruntime", "luma"), 1, merge=True),
                id="onnxruntime-merged",
            ),
        ]
    )
    def upscaler(self, request: pytest.FixtureRequest) -> Iterator[Upscaler]:
        yield from opened(request)
