"""LPIPS 0.1: distance of deep features, weighted as people judged (Zhang et al. 2018).

The trunks are AlexNet and VGG16 as trained on ImageNet; each of five layers is normalised along
its channels, differences are squared, weighted by the layer's `lin` and averaged over the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from evaluation.metrics.errors import MetricUnavailable
from evaluation.metrics.fidelity import Pixels

Trunk = Literal["alex", "vgg"]

#: Convolutions as (channels out, kernel, stride, padding, whether its ReLU is compared); "pool"
#: halves. Names in a file: trunk.<i>.weight, trunk.<i>.bias, lin.<j>.
_ALEX: tuple[Any, ...] = (
    (64, 11, 4, 2, True), "pool", (192, 5, 1, 2, True), "pool",
    (384, 3, 1, 1, True), (256, 3, 1, 1, True), (256, 3, 1, 1, True),
)  # fmt: skip
_VGG: tuple[Any, ...] = (
    (64, 3, 1, 1, False), (64, 3, 1, 1, True), "pool",
    (128, 3, 1, 1, False), (128, 3, 1, 1, True), "pool",
    (256, 3, 1, 1, False), (256, 3, 1, 1, False), (256, 3, 1, 1, True), "pool",
    (512, 3, 1, 1, False), (512, 3, 1, 1, False), (512, 3, 1, 1, True), "pool",
    (512, 3, 1, 1, False), (512, 3, 1, 1, False), (512, 3, 1, 1, True),
)  # fmt: skip
#: Side of the pooling window; its step is 2.
_POOL = {"alex": 3, "vgg": 2}
#: Smallest picture that has something left after all layers.
SMALLEST = {"alex": 31, "vgg": 16}
#: From 0..1 to what the trunks were trained on: ImageNet's mean and deviation of R, G and B.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def layers(trunk: Trunk) -> tuple[Any, ...]:
    """Describe a trunk, as at `_ALEX`."""
    return _ALEX if trunk == "alex" else _VGG


def shapes(trunk: Trunk) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a file, by name."""
    found: dict[str, tuple[int, ...]] = {}
    channels, conv, lin = 3, 0, 0
    for layer in layers(trunk):
        if layer == "pool":
            continue
        out, side, _, _, compared = layer
        found[f"trunk.{conv}.weight"] = (out, channels, side, side)
        found[f"trunk.{conv}.bias"] = (out,)
        if compared:
            found[f"lin.{lin}"] = (out,)
            lin += 1
        channels, conv = out, conv + 1
    return found


class Lpips(nn.Module):
    """The distance as a module; gradients flow to its inputs, its weights are fixed.

    Args:
        trunk: "alex" (the usual one for judging) or "vgg" (the usual one for training).
        weights: float32, by the names and of the `shapes` of the trunk.
    Raises:
        MetricUnavailable: the tensors are not those.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, trunk: Trunk, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        if {name: tuple(t.shape) for name, t in weights.items()} != shapes(trunk):
            raise MetricUnavailable(f"the weights are not those of LPIPS with {trunk}")
        self.trunk: Trunk = trunk
        for name, tensor in weights.items():
            self.register_buffer(name.replace(".", "_"), tensor.float())
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(_DEVIATION).reshape(1, 3, 1, 1))

    def features(self, rgb: Tensor) -> list[Tensor]:
        """Give the five layers, normalised along their channels; [N, 3, H, W] in 0..1."""
        x = (rgb - self.mean) / self.deviation
        found = []
        conv = 0
        for layer in layers(self.trunk):
            if layer == "pool":
                x = F.max_pool2d(x, _POOL[self.trunk], 2)
                continue
            _, _, stride, padding, compared = layer
            weight = self.get_buffer(f"trunk_{conv}_weight")
            x = F.conv2d(x, weight, self.get_buffer(f"trunk_{conv}_bias"), stride, padding).relu_()
            if compared:
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
            conv += 1
        return found

    def compare(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Distance [N] of what `features` gave."""
        total = a[0].new_zeros(a[0].shape[0])
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            squares = (one - other).square_().mean((2, 3))  # [N, C]
            total = total + squares @ self.get_buffer(f"lin_{index}")
        return total

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance [N] of RGB float [N, 3, H, W], 0..1."""
        return self.compare(self.features(a), self.features(b))


class LpipsMetric:
    """LPIPS of single pictures; the truth's features are kept for the next one with this truth.

    At 1920x1080 that and the work take about 0.5 GB with AlexNet and 3 GB with VGG16.

    Args:
        net: with its weights.
        device: PyTorch's, to compute on.
    """

    def __init__(self, net: Lpips, device: str = "cpu") -> None:
        self._net = net.to(device)
        self._device = device
        self._truth: Pixels | None = None

    @torch.inference_mode()
    def __call__(self, rgb: Pixels, truth: Pixels) -> float:
        """Compare uint8 RGB (H, W, 3), at least `SMALLEST` pixels a side; 0 for equal pictures."""
        least = SMALLEST[self._net.trunk]
        if min(rgb.shape[:2]) < least:
            raise ValueError(f"LPIPS needs {least}x{least} pixels, not {rgb.shape[:2]}")
        if truth is not self._truth:
            self._features: list[Tensor] = []  # freed before the next ones are made
            self._features, self._truth = self._net.features(self._tensor(truth)), truth
        return float(self._net.compare(self._net.features(self._tensor(rgb)), self._features))

    def _tensor(self, rgb: Pixels) -> Tensor:
        planes = np.ascontiguousarray(rgb.transpose(2, 0, 1))
        return torch.from_numpy(planes).to(self._device)[None].float() / 255
