"""The quick forms on a real GPU, in Triton, against FP32 on the CPU.

`python -m evaluation.bench --suite gpu` measures them.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from engines.archs.compact import Compact
from engines.archs.rrdb import Rrdb
from engines.fast import Form, faster, kernels
from engines.fast.kernels import Conv, Tile
from evaluation.bench import ceilings
from evaluation.bench.gpu_methods import captured
from evaluation.bench.gpu_nets import MODELS, Picture, difference, frame_of, net_of
from evaluation.bench.timing import Device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU"),
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
    # PyTorch's and Triton's own warnings are not ours to fail on
    pytest.mark.filterwarnings("default"),
]

#: Largest and mean difference in levels, and the least PSNR, between FP16 and FP32.
LIMITS = {"compact": (3, 0.1, 55.0), "rrdb": (8, 0.15, 50.0)}


def assert_close(result: Tensor, right: Tensor, architecture: str) -> None:
    most, mean, psnr = LIMITS[architecture]
    apart = difference(result, right)
    assert apart["psnr_db"] >= psnr, apart
    assert apart["max"] <= most, apart
    assert apart["mean"] <= mean, apart
    assert (result[..., 3] == 255).all()


@pytest.mark.parametrize("form", ["epilogue", "folded", "split", "direct", "stacked"])
@pytest.mark.parametrize(
    "name", ["realesr-animevideov3-x4", "superultracompact-x4", "realesrgan-x4plus-anime-6b"]
)
def test_fp16_against_fp32_on_the_cpu(name: str, form: Form) -> None:
    model = MODELS[name]
    net, _ = net_of(model)
    if isinstance(net, Compact) and form in ("folded", "split", "stacked"):
        pytest.skip(f"Compact has no form {form!r}")
    frame, _ = frame_of(74, 50)
    right = Picture(net, torch.float32)(frame)
    result = faster(net.cuda(), form)(frame.cuda())
    assert_close(result, right, model.architecture)


@pytest.mark.parametrize("form", ["epilogue", "direct", "stacked"])
def test_fp32_is_the_same_net(form: Form) -> None:
    """Without FP16 nothing is left but the order of additions."""
    generator = torch.Generator().manual_seed(3)
    compact = [] if form == "stacked" else [Compact(64, 3, 2)]
    for net in (*compact, Rrdb(64, 32, 1, 4), Rrdb(64, 32, 1, 2)):
        for parameter in net.parameters():
            spread = (1.5 / parameter[0].numel()) ** 0.5 if parameter.dim() == 4 else 0.1
            parameter.data = torch.randn(parameter.shape, generator=generator) * spread
        net.eval().requires_grad_(False)
        bgra = torch.randint(0, 256, (2, 22, 36, 4), generator=generator, dtype=torch.uint8)
        right = Picture(net, torch.float32)(bgra)
        with ceilings.tf32(False):
            result = faster(net.cuda(), form, torch.float32, Tile(32, 4, 2))(bgra.cuda())
        assert difference(result, right)["max"] <= 1


@pytest.mark.parametrize("tile", ceilings.TILES, ids=str)
def test_every_tile_writes_all_pixels_and_nothing_else(tile: Tile) -> None:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(32, 96, 3, 3, generator=generator) / 30
    conv = Conv(weight, torch.randn(32, generator=generator), 0.2, 96, 32)
    whole = torch.randn(1, 37, 53, 64 + 128, generator=generator)
    x, growth = whole[..., :64].contiguous(), whole[..., 64:].contiguous()
    right = kernels.convolve(conv, x, torch.empty(1, 37, 53, 32), growth=growth)
    storage = torch.full((37 * 53 * 192,), torch.nan, dtype=torch.half, device="cuda")
    here = storage[: 37 * 53 * 64].view(1, 37, 53, 64)
    beside = storage[37 * 53 * 64 :].view(1, 37, 53, 128)
    here.copy_(x)
    beside[..., :32].copy_(growth[..., :32])
    on_gpu = Conv(weight, conv.bias, 0.2, 96, 32).cuda()
    on_gpu.weight = on_gpu.weight.half()
    out = beside[..., 32:64]
    kernels.convolve(on_gpu, here, out, growth=beside, tile=tile)
    assert (out.cpu().float() - right).abs().max() < 0.02
    assert torch.isnan(beside[..., 64:]).all()
    assert torch.equal(here.cpu(), x.half())


def test_a_graph_gives_what_plain_calls_give() -> None:
    net, _ = net_of(MODELS["realesr-animevideov3-x4"])
    quick = faster(net.cuda(), "direct")
    frame = frame_of(96, 64)[0].cuda()
    with torch.inference_mode():
        expected = quick(frame)
        step = captured(lambda: quick(frame), Device("cuda"))
        frame.copy_(frame.flip(1))
        first = step().clone()
        assert torch.equal(first, quick(frame))
        assert not torch.equal(first, expected)
        for _ in range(20):
            assert torch.equal(step(), first)
