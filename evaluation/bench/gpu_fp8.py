"""FP8, as PyTorch offers it: convolutions as scaled products of E4M3 patches and kernels.

This measures what FP8 does to the picture, and what PyTorch's own way to it takes; the patches are
made in memory, nine numbers for one, so a kernel of ours would be quicker. The scale of a
convolution's inputs is one number, found on a frame; that of its weights one number an output
(Micikevicius et al. 2022, "FP8 formats for deep learning"). The first and the last convolution
stay in FP16.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from evaluation.bench.gpu_nets import Picture

#: The largest number of E4M3.
_MOST = 448.0
#: What may be lost against FP32, in dB of PSNR to the original.
LIMIT_DB = 0.1


class Fp8Conv(nn.Module):
    """A 3x3 convolution with stride 1 that keeps the size, from FP16 to FP16.

    Args:
        conv: channels that are multiples of 16.
        most: the largest absolute value among its inputs; larger ones are clamped.
    """

    def __init__(self, conv: nn.Conv2d, most: float) -> None:
        super().__init__()
        assert conv.bias is not None
        weight = conv.weight.float().permute(0, 2, 3, 1).flatten(1)  # [outputs, 9 * inputs]
        scales = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / _MOST
        self.shrink = _MOST / max(most, 1e-12)
        self.register_buffer("weight", (weight / scales).to(torch.float8_e4m3fn))
        self.register_buffer("gain", scales[:, 0] / self.shrink)
        self.register_buffer("bias", conv.bias.float())
        self.register_buffer("one", torch.ones((), device=weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve FP16 [1, C, H, W]."""
        sums = self._product(patches(self._shrunk(x)), self.get_buffer("weight"))
        y = torch.addcmul(self.get_buffer("bias"), sums, self.get_buffer("gain"))
        return y.to(x.dtype).reshape(1, *x.shape[2:], -1).permute(0, 3, 1, 2)

    def _shrunk(self, x: Tensor) -> Tensor:
        planes = x[0].permute(1, 2, 0).float() * self.shrink
        planes = planes.clamp(-_MOST, _MOST)  # what is larger is NaN to some versions
        return planes.to(torch.float8_e4m3fn)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply [M, K] by [N, K]: FP32 [M, N]."""
        if not a.is_cuda:
            return a.float() @ b.float().T
        one = self.get_buffer("one")
        scaled: Any = torch._scaled_mm
        product: Tensor = scaled(a, b.T, scale_a=one, scale_b=one, out_dtype=torch.float32)
        return product


def patches(planes: Tensor) -> Tensor:
    """Give each pixel's 3x3 neighbours, zeros beyond the edge: [H, W, C] to [H * W, 9 * C]."""
    numbers = planes.view(torch.uint8)  # PyTorch moves bytes, but knows no padding of FP8
    around = F.pad(numbers, (0, 0, 1, 1, 1, 1))
    nine = around.unfold(0, 3, 1).unfold(1, 3, 1).permute(0, 1, 3, 4, 2)
    return nine.reshape(-1, 9 * planes.shape[2]).view(planes.dtype)


def picture(net: nn.Module, frame: Tensor) -> Picture:
    """Make the FP8 form of a net.

    Args:
        net: in FP32; not changed.
        frame: uint8 BGRA [1, H, W, 4], on the device; what the scales are found on.
    Raises:
        ValueError: it has no convolutions that products of FP8 can do.
    """
    twin = copy.deepcopy(net).to(frame.device, torch.float16)
    twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    result = Picture(twin, torch.float16)
    names = _suitable(twin)
    most = _largest_inputs(result, names, frame)
    for name in names:
        parent, _, last = name.rpartition(".")
        conv = twin.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        setattr(twin.get_submodule(parent), last, Fp8Conv(conv, most[name]))
    return result


def _suitable(net: nn.Module) -> list[str]:
    convs = [(name, one) for name, one in net.named_modules() if isinstance(one, nn.Conv2d)]
    found = [
        name
        for name, conv in convs[1:-1]
        if conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.padding == (1, 1)
        and conv.groups == 1
        and conv.in_channels % 16 == conv.out_channels % 16 == 0
    ]
    if not found:
        raise ValueError("no 3x3 convolutions with multiples of 16 channels between the ends")
    return found


def _largest_inputs(result: Picture, names: list[str], frame: Tensor) -> dict[str, float]:
    most = dict.fromkeys(names, 0.0)

    def look(name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        most[name] = max(most[name], float(given[0].abs().amax()))

    hooks = [
        result.net.get_submodule(name).register_forward_pre_hook(partial(look, name))
        for name in names
    ]
    result(frame)
    for hook in hooks:
        hook.remove()
    return most


def loss(net: nn.Module, quick: Picture, frame: Tensor, scale: int) -> dict[str, object]:
    """Say what FP8 loses: PSNR against a frame of which the nets see a smaller one.

    Args:
        net: in FP32.
        quick: its FP8 form.
        frame: uint8 BGRA [1, H, W, 4], on the device; made `scale` times smaller by averaging.
        scale: of the net.
    Returns:
        `fp32_db`, `fp8_db`, `loss_db`, and whether the loss `holds` the limit.
    """
    height, width = (size // scale * scale for size in frame.shape[1:3])
    truth = frame[:, :height, :width, :3].float()
    low = F.avg_pool2d(truth.permute(0, 3, 1, 2), scale).round().permute(0, 2, 3, 1)
    low = F.pad(low, (0, 1), value=255.0).to(torch.uint8)
    exact = Picture(copy.deepcopy(net).to(frame.device), torch.float32)
    found = [_psnr(one(low)[..., :3].float(), truth) for one in (exact, quick)]
    lost = found[0] - found[1]
    return {
        "fp32_db": round(found[0], 3), "fp8_db": round(found[1], 3), "loss_db": round(lost, 3),
        "limit_db": LIMIT_DB, "holds": lost <= LIMIT_DB,
    }  # fmt: skip


def _psnr(found: Tensor, truth: Tensor) -> float:
    error = ((found - truth).double() ** 2).mean().clamp(min=1e-9)
    return float(10 * torch.log10(255**2 / error))
