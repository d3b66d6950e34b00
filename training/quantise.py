"""The finish for INT8: training that feels the rounding of weights and activations.

Kernels are rounded to 255 levels for each output channel, symmetric about zero; what goes into a
convolution to 256 levels between its extremes, as OpenVINO and TensorRT do (Jacob et al. 2018).
Gradients pass straight through the rounding (Bengio et al. 2013). What is saved are the unrounded
weights: the builder of an INT8 engine rounds them, and finds its ranges from game frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from engines.archs.luma import CollapsibleConv

#: Kept of an extreme at each step at which it is not reached.
DECAY = 0.999


class RoundedKernel(nn.Module):
    """Round a kernel [O, I, H, W] symmetrically, a scale for each output channel.

    Args:
        bits: of a weight.
    """

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.most = 2 ** (bits - 1) - 1

    def forward(self, kernel: Tensor) -> Tensor:
        """Round; the shape stays."""
        largest = kernel.detach().abs().amax(dim=(1, 2, 3)).clamp_min(1e-8)
        zero = torch.zeros(len(kernel), dtype=torch.int32, device=kernel.device)
        return torch.fake_quantize_per_channel_affine(
            kernel, largest / self.most, zero, 0, -self.most, self.most
        )


class RoundedActivation(nn.Module):
    """Round a tensor between its extremes, which follow what is seen in training.

    Args:
        bits: of a number.
    """

    extremes: Tensor

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.most = 2**bits - 1
        self.register_buffer("extremes", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        """Round; the shape stays."""
        if self.training:
            self._follow(x.detach().float())
        low, high = self.extremes
        scale = ((high - low) / self.most).clamp_min(1e-8)
        zero = (-low / scale).round().to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, self.most)

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        """Widen the range at once, narrow it slowly; 0 is always in it."""
        seen = torch.stack((x.min().clamp_max(0), x.max().clamp_min(0)))
        slowly = self.extremes.lerp(seen, 1 - DECAY)
        low, high = torch.minimum(seen[0], slowly[0]), torch.maximum(seen[1], slowly[1])
        self.extremes.copy_(torch.stack((low, high)))


def quantise(net: nn.Module, bits: int = 8) -> None:
    """Make every convolution of a net round its weights and inputs, from now on."""
    device = next(net.parameters()).device
    for module in list(net.modules()):
        if isinstance(module, CollapsibleConv):
            module.rounding = RoundedKernel(bits)
        elif isinstance(module, nn.Conv2d):
            parametrize.register_parametrization(module, "weight", RoundedKernel(bits))
        else:
            continue
        module.add_module("rounded_input", RoundedActivation(bits).to(device))
        module.register_forward_pre_hook(_rounded_input)


def _rounded_input(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    rounded: Tensor = module.get_submodule("rounded_input")(inputs[0])
    return (rounded,)
