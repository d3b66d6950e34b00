"""The quick forms compute what the nets do: here in plain PyTorch and in Triton's interpreter.

`test_fast_gpu.py` runs them where they belong.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from engines import load, zoo
from engines.archs import span
from engines.archs.compact import Compact
from engines.archs.rrdb import Rrdb
from engines.fast import FORMS, Form, faster, kernels
from engines.fast.kernels import Conv
from tests.engines.nets import game_frame

ROOT = Path(__file__).parents[2]
COMPACT: list[Form] = ["epilogue", "direct"]
RRDB: list[Form] = ["epilogue", "folded", "split", "direct", "stacked"]


def lively(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give random weights that keep signals as large as trained ones do."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        spread = (1.5 / parameter[0].numel()) ** 0.5 if parameter.dim() == 4 else 0.2
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread
    return net.eval().requires_grad_(False)


def picture(number: int, height: int, width: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (number, height, width, 4)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def planes(bgra: Tensor) -> Tensor:
    return bgra[..., :3].flip(-1).permute(0, 3, 1, 2).float() / 255


def wanted(net: nn.Module, bgra: Tensor) -> Tensor:
    """What the net makes of a picture, uint8 BGR."""
    rgb: Tensor = net(planes(bgra)).clamp(0, 1) * 255
    return rgb.round().to(torch.uint8).permute(0, 2, 3, 1).flip(-1)


def assert_same(net: nn.Module, form: Form, bgra: Tensor) -> None:
    quick = faster(net, form, torch.float32)
    expected = net(planes(bgra))
    difference = (quick.planes(planes(bgra)) - expected).abs().max() / expected.abs().max()
    assert float(difference) < 1e-5
    result = quick(bgra)
    assert result.dtype == torch.uint8
    assert (result[..., :3].int() - wanted(net, bgra).int()).abs().max() <= 1
    assert (result[..., 3] == 255).all()


@pytest.mark.parametrize("form", COMPACT)
@pytest.mark.parametrize(("features", "scale"), [(16, 4), (24, 2), (64, 3)])
def test_compact(form: Form, features: int, scale: int) -> None:
    assert_same(lively(Compact(features, 3, scale)), form, picture(2, 9, 14))


@pytest.mark.parametrize("form", RRDB)
@pytest.mark.parametrize(("features", "growth", "scale"), [(64, 32, 4), (32, 16, 2), (16, 16, 1)])
def test_rrdb(form: Form, features: int, growth: int, scale: int) -> None:
    assert_same(lively(Rrdb(features, growth, 3, scale)), form, picture(2, 12, 8))


@pytest.mark.parametrize("form", COMPACT)
def test_released_compact_on_a_game_frame(form: Form) -> None:
    net = load.read(load.locate("realesr-animevideov3-x4")).module
    assert net is not None
    assert_same(net, form, torch.from_numpy(game_frame(40, 24))[None])


@pytest.mark.parametrize("form", RRDB)
def test_released_rrdb_on_a_game_frame(form: Form) -> None:
    net = load.read(load.locate("realesrgan-x4plus-anime-6b")).module
    assert net is not None
    assert_same(net, form, torch.from_numpy(game_frame(16, 12))[None])


@pytest.mark.parametrize("form", COMPACT)
def test_fp16_stays_within_the_models_limits(form: Form) -> None:
    spec = zoo.spec("realesr-animevideov3-x4")
    net = load.read(load.locate(spec.id)).module
    assert net is not None
    frame = torch.from_numpy(game_frame(40, 24))[None]
    difference = (faster(net, form)(frame)[..., :3].int() - wanted(net, frame).int()).abs()
    assert difference.max() <= spec.fp16_max
    assert difference.float().mean() <= spec.fp16_mean


def test_four_small_convolutions_are_one_of_an_enlarged_picture() -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    x = torch.rand(1, 3, 6, 7)
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, padding=1)
    folded = kernels.phases(weight)
    for phase in range(4):
        down, right = divmod(phase, 2)
        part = F.conv2d(x, folded[phase], padding=1)[:, :, down : down + 6, right : right + 7]
        assert torch.allclose(part, expected[:, :, down::2, right::2], atol=1e-5)


def test_channels_that_pad_stay_zero() -> None:
    conv = Conv(torch.randn(3, 3, 3, 3), torch.randn(3), 0.1, 16, 16)
    out = kernels.convolve(conv, torch.rand(1, 4, 5, 16), torch.full((1, 4, 5, 16), 7.0))
    assert (out[..., 3:] == 0).all()
    assert (out[..., :3] != 0).any()


def test_a_net_without_quick_forms_is_refused() -> None:
    with pytest.raises(ValueError, match="Span has no form 'direct'"):
        faster(span.Span(16, 2))
    with pytest.raises(ValueError, match="Compact has no form 'split'"):
        faster(Compact(16, 1, 2), "split")
    with pytest.raises(ValueError, match="48 features: expected 16, 32, 64 or 128"):
        faster(Rrdb(48, 16, 1, 4))


def test_every_form_is_of_a_net_that_has_it() -> None:
    assert [form for form in FORMS if "compact" in FORMS[form].architectures] == COMPACT
    assert [form for form in FORMS if "rrdb" in FORMS[form].architectures] == RRDB


def test_what_a_kernel_would_get_wrong_is_refused() -> None:
    conv = Conv(torch.zeros(16, 32, 3, 3), torch.zeros(16), 1.0, 32, 16)
    x, out = torch.zeros(1, 4, 4, 16), torch.zeros(1, 4, 4, 16)
    with pytest.raises(ValueError, match="views into one tensor"):
        kernels._distance(x, torch.zeros(1, 4, 4, 16))
    with pytest.raises(ValueError, match="x and skips must be dense"):
        kernels._check(conv, torch.zeros(1, 4, 4, 32)[..., :16], out, ())
    with pytest.raises(ValueError, match="shaped like the output"):
        kernels._check(conv, x, out, (torch.zeros(1, 2, 2, 16),))
    with pytest.raises(ValueError, match="without gaps"):
        kernels._check(conv, x, torch.zeros(2, 4, 4, 16)[:, :2], ())


_INTERPRETED = """
import torch
from engines.archs.compact import Compact
from engines.archs.rrdb import Rrdb
from engines.fast import kernels
from tests.engines import test_fast as t

assert kernels._runs_triton(torch.zeros(1))
for net in (Compact(16, 1, 4), Compact(24, 1, 3), Rrdb(16, 16, 1, 4), Rrdb(16, 16, 1, 2)):
    t.assert_same(t.lively(net), "direct", t.picture(2, 4, 6))
t.assert_same(t.lively(Rrdb(32, 16, 1, 4)), "stacked", t.picture(2, 4, 6))
t.assert_same(t.lively(Rrdb(16, 16, 1, 4)), "folded", t.picture(1, 4, 6))
print("the same")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_triton_kernels_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.stdout.strip() == "the same", done.stderr[-2000:]
