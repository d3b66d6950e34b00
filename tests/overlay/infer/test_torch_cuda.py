"""PyTorch on the GPU path: its numbers on the CPU, its order on the fake, all of it on a GPU.

The tests marked `gpu` need torch, numpy and cuda-bindings, and weights only where they are there.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from engines import fast, load, zoo
from engines.errors import BuilderMissing, EngineError, WeightsMissing
from engines.load import Loaded, Located
from evaluation.bench import gpu_nets
from evaluation.bench.gpu_path import LateTorch
from overlay.cuda import Cuda, DeviceBuffer, open_cuda
from overlay.cuda.recording import RecordingCuda
from overlay.errors import BackendUnavailable, OverlayError
from overlay.frame import Frame, Picture, Pixels, Region, Size
from overlay.infer import Upscaler, measure_ms, torch_cuda
from overlay.infer.gpu import GpuUpscaler
from overlay.infer.torch_cuda import PictureNet, QuickNet, TorchProgram, open_torch, upscaler
from tests.contracts.upscaler import OTHER, SMALL, UpscalerContract, finish, frame, wait
from tests.overlay.infer.test_gpu import TestContract as Contract

MODELS = ("default-x2", "default-x3", "default-x4", "realesr-animevideov3-x4")


def read(model: str) -> Loaded:
    """Read a model; random weights where its own, or what reads them, are not on this machine."""
    try:
        return load.read(load.locate(model))
    except (WeightsMissing, BuilderMissing, ImportError):  # platformdirs tells where they may be
        return load.random_weights(zoo.spec(model))


def scene(size: Size, seed: int = 0) -> Pixels:
    """A dark, smooth picture: as in games, most values are small and few are at the ends."""
    dice = torch.Generator().manual_seed(seed)
    shape = (1, 4, max(2, size.height // 9), max(2, size.width // 9))
    planes = F.interpolate(
        torch.rand(shape, generator=dice), (size.height, size.width), mode="bicubic"
    )
    levels = planes.clamp(0, 1) ** 2 * 200
    return np.ascontiguousarray(levels[0].permute(1, 2, 0).to(torch.uint8).numpy())


def frame_of(size: Size, seed: int) -> Frame:
    return Frame(scene(size, seed), seed, 1, 2, Region(0, 0, *size))


def exact(loaded: Loaded, bgra: Pixels) -> Pixels:
    """What the model gives on the CPU, in FP32."""
    with torch.inference_mode():
        picture: Pixels = PictureNet(loaded, torch.float32)(torch.from_numpy(bgra)[None])[0].numpy()
    return picture


def check_limits(found: Pixels, expected: Pixels, loaded: Loaded) -> None:
    """Compare with FP32, within what the model's row accepts of FP16."""
    assert found.shape == expected.shape
    apart = np.abs(found.astype(np.int16) - expected)
    colours = apart[..., :3] if apart.ndim == 3 else apart
    assert apart.max() <= loaded.spec.fp16_max
    assert colours.mean() <= loaded.spec.fp16_mean
    assert expected[..., :3].std() > 5, "there is something in the picture"


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [*MODELS, "realesr-animevideov3-x3"])
def test_in_fp32_it_gives_what_engines_are_measured_against(model: str) -> None:
    from engines import graph

    loaded = read(model)
    bgra = scene(Size(61, 47))
    found = graph.difference([(exact(loaded, bgra), graph.reference(loaded, bgra))])
    assert found.max <= 1
    assert found.mean < 1e-3


@pytest.mark.parametrize("model", MODELS)
def test_in_fp16_it_stays_within_the_model_s_limits(model: str) -> None:
    loaded = read(model)
    bgra = scene(Size(64, 36), 1)
    with torch.inference_mode():
        found = PictureNet(loaded)(torch.from_numpy(bgra)[None])[0].numpy()
    check_limits(found, exact(loaded, bgra), loaded)


@pytest.mark.parametrize("size", [Size(33, 21), Size(32, 21), Size(32, 20)])
def test_sizes_that_the_net_does_not_take_are_padded_and_cropped(size: Size) -> None:
    from engines import graph

    loaded = load.random_weights(zoo.spec("realesrgan-x2plus"))
    few = replace(loaded.spec, shape=(("features", 8), ("growth", 4), ("blocks", 1), ("scale", 2)))
    loaded = load.random_weights(few)
    bgra = scene(size)
    found = graph.difference([(exact(loaded, bgra), graph.reference(loaded, bgra))])
    assert found.max <= 1
    assert found.mean < 1e-3


def test_the_net_given_is_not_changed() -> None:
    loaded = read("default-x2")
    assert loaded.module is not None
    before = {name: tensor.clone() for name, tensor in loaded.module.state_dict().items()}
    PictureNet(loaded)
    for name, tensor in loaded.module.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])


def test_onnx_graphs_are_refused() -> None:
    loaded = replace(read("default-x2"), module=None)
    with pytest.raises(EngineError, match=r"default-x2 is an ONNX graph, .* build an engine"):
        PictureNet(loaded)


def test_it_imports_no_torchvision() -> None:
    code = (
        "import sys, torch\n"
        "from engines import load\n"
        "from overlay.infer.torch_cuda import PictureNet\n"
        "PictureNet(load.read(load.locate('default-x2')))(torch.zeros(1, 8, 8, 4).byte())\n"
        "print({'torchvision', 'onnx', 'spandrel'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


# --- quick forms ----------------------------------------------------------------------------------


def small_rrdb(scale: int) -> Loaded:
    """A net with quick forms that takes milliseconds; its largest differences are accepted."""
    spec = zoo.spec(f"realesrgan-x{scale}plus")
    shape = (("features", 16), ("growth", 16), ("blocks", 1), ("scale", scale))
    return load.random_weights(replace(spec, shape=shape))


@pytest.mark.parametrize(
    ("model", "form"),
    [
        ("realesr-animevideov3-x4", "direct"), (4, "stacked"), (2, "stacked"), ("default-x2", ""),
    ],
)  # fmt: skip
def test_the_form_that_should_be_quickest_is_taken_if_it_is_right(
    model: str | int, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = read(model) if isinstance(model, str) else small_rrdb(model)
    plain = PictureNet(loaded)
    with caplog.at_level(logging.WARNING):
        net = torch_cuda.quickest(loaded, plain, "cpu")
    assert caplog.records == []
    assert (net.form if isinstance(net, QuickNet) else "") == form
    if not form:
        assert net is plain


def test_what_should_be_quickest_are_forms_of_those_nets() -> None:
    for architecture, form in fast.QUICKEST.items():
        assert architecture in fast.FORMS[form].architectures


def shifted(*arguments: Any) -> Any:
    """A quick form with a wrong bias."""
    form, net = MADE(*arguments)
    net.last.bias += 0.02
    return form, net


def failing(*arguments: Any) -> Any:
    raise KeyError("no such architecture\nand more")


MADE = fast.quickest


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (shifted, r"'direct': it differs by \d+ levels, \d\.\d+ in the mean, of 3 and 0\.1 that"),
        (failing, r": KeyError: 'no such architecture\\nand more'$"),
    ],
)
def test_a_form_that_is_wrong_or_fails_is_told_of_and_not_taken(
    made: Any, message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fast, "quickest", made)
    loaded = read("realesr-animevideov3-x4")
    plain = PictureNet(loaded)
    assert torch_cuda.quickest(loaded, plain, "cpu") is plain
    (record,) = caplog.records
    assert record.getMessage().startswith("realesr-animevideov3-x4 runs as the plain net; its form")
    assert re.search(message, record.getMessage())


def test_without_triton_the_plain_net_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch_cuda.kernels, "has_triton", lambda: False)
    loaded = small_rrdb(4)
    plain = PictureNet(loaded)
    assert torch_cuda.quickest(loaded, plain, "cuda") is plain
    assert "'stacked': needs Triton, which is not installed" in caplog.text


@pytest.mark.parametrize("size", [Size(33, 21), Size(32, 21), Size(32, 20)])
def test_quick_forms_take_sizes_that_their_nets_do_not(size: Size) -> None:
    loaded = small_rrdb(2)
    net = torch_cuda._formed(loaded, "stacked", torch.float32, "cpu", False)
    bgra = scene(size)
    with torch.inference_mode():
        found = net(torch.from_numpy(bgra)[None])[0].numpy().astype(np.int16)
    expected = exact(loaded, bgra)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1
    assert expected[..., :3].std() > 5


class Refusing(nn.Module):
    """A quick form that fails on large frames."""

    error: Exception = ValueError("the picture is too large")
    calls = 0

    def forward(self, bgra: Tensor) -> Tensor:
        self.calls += 1
        if bgra.shape[2] > 40:
            raise self.error
        return torch.full((1, 2 * bgra.shape[1], 2 * bgra.shape[2], 4), 7, dtype=torch.uint8)


def test_sizes_that_a_form_cannot_take_go_through_the_plain_net(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loaded = small_rrdb(2)
    net = QuickNet("refusing", Refusing(), PictureNet(loaded, torch.float32))
    large, small = scene(Size(42, 20)), scene(Size(40, 20))
    with torch.inference_mode():
        for _ in range(2):
            assert np.array_equal(net(torch.from_numpy(large)[None])[0], exact(loaded, large))
            assert (net(torch.from_numpy(small)[None]) == 7).all()
    assert net.quick.calls == 3
    (record,) = caplog.records
    assert "'refusing' does not: ValueError: the picture is too large" in record.getMessage()


def test_failures_of_the_device_are_not_hidden() -> None:
    quick = Refusing()
    quick.error = torch.OutOfMemoryError("CUDA out of memory")
    net = QuickNet("refusing", quick, PictureNet(small_rrdb(2), torch.float32))
    with pytest.raises(torch.OutOfMemoryError):
        net(torch.from_numpy(scene(Size(42, 20)))[None])


# --- the order, on the fake -----------------------------------------------------------------------


def on_host(loaded: Loaded, cuda: Cuda, **more: Any) -> GpuUpscaler:
    return upscaler(loaded, cuda, device="cpu", kind=torch.float32, program=LateTorch, **more)


def test_two_slots_give_what_the_net_gives() -> None:
    loaded = read("default-x2")
    for seed in range(6):
        with RecordingCuda(seed) as cuda, on_host(loaded, cuda) as opened:
            assert opened.backend == "torch-cuda"
            assert opened.model == "default-x2"
            assert opened.device == f"recording, FP32, PyTorch {torch.__version__}"
            pictures = []
            for turn in range(6):
                opened.submit(frame(SMALL if turn < 4 else OTHER, seed=turn))
                if opened.in_flight == 2:
                    pictures.append(wait(opened))
            pictures.append(wait(opened))
            for picture in pictures:
                assert picture.kind == "luma"
                assert np.array_equal(picture.pixels, exact(loaded, picture.frame.pixels))
            assert cuda.calls["captured"] == 4
        assert cuda.complaints == []


def test_a_form_can_be_asked_for() -> None:
    loaded = small_rrdb(4)
    for form in ("plain", "epilogue", "direct", "stacked"):
        with RecordingCuda(2) as cuda, on_host(loaded, cuda, form=form) as opened:
            named = "" if form == "plain" else f" {form},"
            assert opened.device == f"recording, FP32,{named} PyTorch {torch.__version__}"
            picture = finish(opened, frame_of(Size(24, 16), 1))
            apart = picture.pixels.astype(np.int16) - exact(loaded, picture.frame.pixels)
            assert np.abs(apart).max() <= 1
        assert cuda.complaints == []
    with RecordingCuda() as cuda, pytest.raises(ValueError, match="LumaNet has no form 'direct'"):
        on_host(read("default-x2"), cuda, form="direct")


def test_its_speed_is_measured_as_that_of_nets_on_the_cpu() -> None:
    with RecordingCuda(2) as cuda, on_host(read("default-x2"), cuda) as opened:
        opened.warm_up(SMALL)
        assert 0 < measure_ms(opened, SMALL, runs=3) < 5e3
        assert opened.in_flight == 0
        assert cuda.calls["launch"] == 3
    assert cuda.complaints == []


def test_a_failure_of_pytorch_s_gives_up_its_frame_only(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = read("default-x2")
    run = LateTorch._run

    def broken(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmuch")

    with RecordingCuda(0, graphs=False) as cuda, on_host(loaded, cuda) as opened:
        finish(opened, frame())
        monkeypatch.setattr(LateTorch, "_run", broken)
        with pytest.raises(
            OverlayError,
            match=r"failed on a frame: PyTorch: CUDA out of memory\. Tried to allocate$",
        ):
            opened.submit(frame())
        monkeypatch.setattr(LateTorch, "_run", run)
        picture = finish(opened, frame())
        assert np.array_equal(picture.pixels, exact(loaded, picture.frame.pixels))


class TestTorch(Contract):
    kind = "luma"
    left_behind = 30_000  # PyTorch keeps small objects of its own

    @pytest.fixture
    def upscaler(self) -> Iterator[Upscaler]:
        with RecordingCuda(5) as cuda:
            with on_host(read("default-x2"), cuda) as opened:
                yield opened
            assert cuda.complaints == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so() -> None:
    located = load.locate("default-x2")
    with RecordingCuda(0) as cuda, pytest.raises(BackendUnavailable) as caught:
        open_torch(located, cuda)
    said = str(caught.value)
    assert f"PyTorch {torch.__version__}" in said
    assert "sees no NVIDIA GPU; install PyTorch with CUDA" in said
    assert "\n" not in said


def test_rows_without_files_get_random_weights() -> None:
    spec = zoo.spec("superultracompact-x2")
    loaded = torch_cuda.read(Located(f"{spec.id}-random", spec, (), "random", "random", None))
    assert loaded.module is not None


# --- on a GPU -------------------------------------------------------------------------------------

LARGE = Size(480, 270)


def on_gpu(test: Any) -> Any:
    """Mark what needs a GPU; warnings of Triton's and of PyTorch's compiler are their own."""
    return pytest.mark.gpu(pytest.mark.filterwarnings("default")(test))


@pytest.fixture
def gpu() -> Iterator[Cuda]:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no NVIDIA GPU")
    try:
        cuda = open_cuda()
    except BackendUnavailable as exc:
        pytest.skip(str(exc))
    with cuda:
        yield cuda


class NoGraphs:
    """A device whose graphs are not used."""

    has_graphs = False

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cuda, name)


class Copier:
    """Takes pictures that stayed on the device as the presenter does, in a stream of its own."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._stream = cuda.stream("present", urgent=True)
        self._copied = cuda.event("copied")

    def pixels(self, picture: Picture) -> Pixels:
        device = picture.device
        assert device is not None
        target = self._cuda.buffer(device.buffer.size, "shown")
        shown = self._cuda.pinned(device.shape, "shown")
        self._cuda.wait(self._stream, device.ready)
        self._cuda.copy(target, device.buffer, self._stream)
        self._cuda.record(device.released, self._stream)
        self._cuda.download(shown, target, self._stream)
        self._cuda.record(self._copied, self._stream)
        self._cuda.synchronize(self._copied)
        pixels = shown.copy()
        self._cuda.free(target, shown)
        return pixels


@on_gpu
@pytest.mark.parametrize("path", ["graphs", "plain", "device"])
@pytest.mark.parametrize("model", MODELS)
def test_gpu_every_path_gives_what_the_cpu_gives(gpu: Cuda, model: str, path: str) -> None:
    loaded = read(model)
    cuda: Any = NoGraphs(gpu) if path == "plain" else gpu
    with upscaler(loaded, cuda, download=path != "device") as opened:
        copier = Copier(gpu)
        waiting: deque[Picture] = deque()
        for seed in range(6):
            opened.submit(frame_of(LARGE, seed))
            if opened.in_flight == 2:
                waiting.append(wait(opened))
            while len(waiting) > 1:
                check_gpu_picture(waiting.popleft(), loaded, copier)
        waiting.append(wait(opened))
        for picture in waiting:
            check_gpu_picture(picture, loaded, copier)


def check_gpu_picture(picture: Picture, loaded: Loaded, copier: Copier) -> None:
    pixels = picture.pixels if picture.device is None else copier.pixels(picture)
    check_limits(pixels, exact(loaded, picture.frame.pixels), loaded)
    times = picture.times
    assert times is not None
    assert times.upload is not None
    assert times.infer is not None
    assert 0 < picture.infer_ns == times.infer.duration_ns < 1e9
    assert times.infer.start_ns >= times.upload.start_ns


@on_gpu
@pytest.mark.parametrize("model", ["realesr-animevideov3-x4", "realesrgan-x4plus-anime-6b"])
def test_gpu_the_quick_form_is_taken_and_right(
    gpu: Cuda, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    net, _ = gpu_nets.net_of(gpu_nets.MODELS[model])  # lively, also where its weights are not here
    loaded = replace(load.random_weights(zoo.spec(model)), module=net)
    form = fast.QUICKEST[loaded.spec.architecture]
    with upscaler(loaded, gpu) as opened:
        assert f", {form}," in opened.device, caplog.text
        for seed, size in enumerate((Size(160, 90), Size(97, 61))):
            picture = finish(opened, frame_of(size, seed))
            check_limits(picture.pixels, exact(loaded, picture.frame.pixels), loaded)
        assert all(slot.graph is not None for slot in opened._all)


@on_gpu
def test_gpu_graphs_are_used_and_sizes_change(gpu: Cuda) -> None:
    loaded = read("realesr-animevideov3-x4")
    with upscaler(loaded, gpu) as opened:
        for turn in range(6):
            given = frame_of(LARGE if turn % 2 else Size(97, 61), turn)
            picture = finish(opened, given)
            check_limits(picture.pixels, exact(loaded, given.pixels), loaded)
        assert all(slot.graph is not None for slot in opened._all)


@on_gpu
@pytest.mark.parametrize("download", [True, False])
def test_gpu_two_thousand_frames_two_in_flight_in_flat_memory(gpu: Cuda, download: bool) -> None:
    loaded = read("realesr-animevideov3-x4")
    frames = [frame_of(LARGE, seed) for seed in range(6)]
    with upscaler(loaded, gpu, download=download) as opened:
        expected = [first_pixels(gpu, finish(opened, given)) for given in frames]
        copier = Copier(gpu)
        torch.cuda.synchronize()
        memory = torch.cuda.mem_get_info()[0]
        most = 0
        for turn in range(2000):
            opened.submit(frames[turn % 6])
            most = max(most, opened.in_flight)
            if opened.in_flight == 2:
                picture = wait(opened)
                if turn % 100 == 1:
                    pixels = picture.pixels if download else copier.pixels(picture)
                    assert np.array_equal(pixels, expected[picture.frame.sequence])
        picture = wait(opened)
        assert most == 2
        assert opened.in_flight == 0
        torch.cuda.synchronize()
        assert abs(torch.cuda.mem_get_info()[0] - memory) < 1 << 21


def first_pixels(cuda: Cuda, picture: Picture) -> Pixels:
    return picture.pixels.copy() if picture.device is None else Copier(cuda).pixels(picture)


@on_gpu
@pytest.mark.slow
def test_gpu_compiled_gives_what_the_cpu_gives(gpu: Cuda) -> None:
    loaded = read("realesr-animevideov3-x4")
    with upscaler(loaded, gpu, compiled=True) as opened:
        for seed in range(3):
            given = frame_of(LARGE, seed)
            picture = finish(opened, given)
            check_limits(picture.pixels, exact(loaded, given.pixels), loaded)


@on_gpu
class TestGpu(UpscalerContract):
    kind = "luma"

    @pytest.fixture
    def upscaler(self, gpu: Cuda) -> Iterator[Upscaler]:
        with upscaler(read("default-x2"), gpu) as opened:
            yield opened


def test_a_net_of_another_form_can_take_its_place() -> None:
    class Doubled(nn.Module):
        def forward(self, bgra: Tensor) -> Tensor:
            return bgra.repeat_interleave(2, 1).repeat_interleave(2, 2)

    program = LateTorch(Doubled(), 2, False, "doubled", device="cpu")
    with (
        RecordingCuda(1) as cuda,
        GpuUpscaler(
            cuda, program, model="doubled", backend="torch-cuda", scale=2, output="bgra"
        ) as opened,
    ):
        given = frame()
        doubled = given.pixels.repeat(2, 0).repeat(2, 1)
        assert np.array_equal(finish(opened, given).pixels, doubled)


class Pool:
    """Stands for PyTorch's pool: freed while any is in use, the real one ends the process."""

    in_use = 0
    freed: list[int] = []  # noqa: RUF012 - how many were in use then

    def __del__(self) -> None:
        Pool.freed.append(Pool.in_use)

    @classmethod
    @contextmanager
    def used(cls, pool: Pool) -> Iterator[None]:
        cls.in_use += 1
        try:
            yield
        finally:
            cls.in_use -= 1


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> type[Pool]:
    monkeypatch.setattr(Pool, "freed", [])
    monkeypatch.setattr(torch.cuda, "MemPool", Pool)
    monkeypatch.setattr(torch.cuda, "use_mem_pool", Pool.used)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle: handle)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return Pool


def program_with_a_pool(cuda: Cuda) -> TorchProgram:
    program = TorchProgram(nn.Identity(), 1, False, "nothing", device="cpu")
    program._on_gpu = True
    program.prepare(cuda, SMALL, cuda.stream("compute"))
    return program


def test_no_pool_is_freed_while_another_is_in_use(pools: type[Pool]) -> None:
    with RecordingCuda() as cuda:
        stream = cuda.stream("compute")
        opening, playing = program_with_a_pool(cuda), program_with_a_pool(cuda)
        with opening._in(stream):
            playing.prepare(cuda, OTHER, stream)
            playing.close()
            assert pools.freed == []
        assert pools.freed == [0, 0]
        opening.close()
        assert pools.freed == [0, 0, 0]


def test_a_device_that_is_lost_does_not_keep_it_from_closing(
    pools: type[Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with RecordingCuda() as cuda:
        program = program_with_a_pool(cuda)
        monkeypatch.setattr(torch.cuda, "empty_cache", fails)
        with pytest.raises(OverlayError, match="PyTorch: CUDA error: an illegal memory access"):
            program.prepare(cuda, OTHER, cuda.stream("compute"))
        program.close()


def test_cudnn_s_setting_is_what_it_was_once_nobody_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two threads, of which the one that began later ends later."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    begun, other_is_done = threading.Event(), threading.Event()
    during: list[bool] = []

    def later() -> None:
        with torch_cuda._TRIALS.on():
            begun.set()
            assert other_is_done.wait(10)
            during.append(torch.backends.cudnn.benchmark)

    with torch_cuda._TRIALS.on():
        thread = threading.Thread(target=later)
        thread.start()
        assert begun.wait(10)
        assert torch.backends.cudnn.benchmark is True
    other_is_done.set()
    thread.join(10)
    assert during == [True]
    assert torch.backends.cudnn.benchmark is False


def test_nobody_else_s_settings_of_cudnn_are_touched(pools: type[Pool]) -> None:
    seen: list[tuple[bool, bool]] = []

    class Look(nn.Module):
        def forward(self, bgra: Tensor) -> Tensor:
            seen.append((torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark))
            return bgra

    with RecordingCuda() as cuda, torch.backends.cudnn.flags(deterministic=True):
        program = program_with_a_pool(cuda)
        program._upscale = Look()
        tensor = torch.zeros(1)
        program._run(tensor, tensor.clone(), cuda.stream("compute"))
        program.close()
    assert seen == [(True, True)]


def test_pytorch_s_work_goes_into_the_stream_it_is_given(
    pools: type[Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    current, seen = [0], []

    @contextmanager
    def chosen(handle: int) -> Iterator[None]:
        current.append(handle)
        yield
        current.pop()

    class Look(nn.Module):
        def forward(self, bgra: Tensor) -> Tensor:
            seen.append((current[-1], Pool.in_use))
            return bgra

    with RecordingCuda() as cuda:
        monkeypatch.setattr(torch.cuda, "stream", chosen)
        program, stream = program_with_a_pool(cuda), cuda.stream("compute")
        program._upscale = Look()
        tensor = torch.zeros(1)
        program._run(tensor, tensor.clone(), stream)
        program.close()
    assert seen == [(stream.handle, 1)], "and with memory of its own"


def test_tensors_over_buffers_are_made_before_anything_is_enqueued() -> None:
    made: list[str] = []

    def view(buffer: DeviceBuffer, shape: tuple[int, ...]) -> Tensor:
        made.append(buffer.name)
        return torch.zeros(shape, dtype=torch.uint8)

    with RecordingCuda() as cuda:
        stream, size = cuda.stream("compute"), SMALL.width * SMALL.height * 4
        buffers = [cuda.buffer(size, name) for name in ("one", "two")]
        program = TorchProgram(nn.Identity(), 1, False, "same", device="cpu", view=view)
        program.prepare(cuda, SMALL, stream)
        program.attach(1, *buffers)
        assert sorted(made) == ["one", "two"]
        program.enqueue(1, *buffers, stream)
        assert len(made) == 2


def test_nothing_is_looked_at_first_in_a_capture() -> None:
    begun: list[str] = []

    class Looking(LateTorch):
        def enqueue(self, slot: int, *rest: Any) -> None:
            begun.append("enqueue")
            super().enqueue(slot, *rest)

        def _host_view(self, buffer: DeviceBuffer, shape: tuple[int, ...]) -> Tensor:
            begun.append("view")
            return super()._host_view(buffer, shape)

    with (
        RecordingCuda() as cuda,
        upscaler(
            read("default-x2"), cuda, device="cpu", kind=torch.float32, program=Looking
        ) as opened,
    ):
        opened.warm_up(SMALL)
        assert begun == ["view"] * 4 + ["enqueue"] * 3
        assert cuda.calls["captured"] == 2


def test_memory_that_pytorch_cannot_see_is_one_of_our_errors() -> None:
    def refused(buffer: DeviceBuffer, shape: tuple[int, ...]) -> Tensor:
        raise RuntimeError("The specified pointer resides on host memory")

    with RecordingCuda() as cuda:
        stream, buffer = cuda.stream("compute"), cuda.buffer(SMALL.width * SMALL.height * 4, "one")
        program = TorchProgram(nn.Identity(), 1, False, "one", device="cpu", view=refused)
        program.prepare(cuda, SMALL, stream)
        with pytest.raises(OverlayError, match="PyTorch: The specified pointer"):
            program.enqueue(0, buffer, buffer, stream)
        with pytest.raises(OverlayError, match="PyTorch: The specified pointer"):
            program.attach(0, buffer, buffer)
