"""Count what a net must do: multiplications, bytes, kernels; by running it on no data at all.

PyTorch's "meta" device runs every operator for its shapes only, so that counting a net at full
size takes milliseconds and no memory.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_CONVOLUTIONS = ("aten.convolution", "aten._convolution", "aten.conv2d")


@dataclass(frozen=True, slots=True)
class Count:
    """What one run of a net takes.

    Attributes:
        macs: multiplications with an addition, of convolutions alone; two FLOPs each.
        least_bytes: read and written if each convolution does all that follows it: its inputs,
            weights and outputs once.
        eager_bytes: read and written if each operator is a pass of its own over its tensors.
        kernels: operators that are no mere views: about as many kernels as eager PyTorch starts.
    """

    macs: int
    least_bytes: int
    eager_bytes: int
    kernels: int

    @property
    def gflop(self) -> float:
        return 2 * self.macs / 1e9


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what every operator does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = self.least = self.eager = self.kernels = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not _is_view(func):
            moved = sum(_bytes(value) for value in (*args, result))
            self.kernels += 1
            self.eager += moved
            if str(func).startswith(_CONVOLUTIONS):
                self.macs += _macs(args, result)
                self.least += moved
        return result


def _is_view(func: Any) -> bool:
    """Whether an operator only looks at its input in another way, or only asks for memory."""
    if "empty" in str(func):
        return True
    aliases = [value.alias_info for value in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (list, tuple)):
        return sum(_bytes(one) for one in value)
    return 0


def _macs(args: Sequence[Any], result: Tensor) -> int:
    kernel: Tensor = args[1]  # [outputs, inputs / groups, height, width]
    return result.numel() * kernel[0].numel()


def count(net: nn.Module, *shape: int, kind: torch.dtype = torch.float16) -> Count:
    """Count a net; it is not changed.

    Args:
        net: from one float tensor.
        shape: of its input, [1, 3, 270, 480] say.
        kind: what it computes in; decides the bytes.
    """
    twin = copy.deepcopy(net).to(device="meta", dtype=kind)
    counter = _Counter()
    planes = torch.empty(shape, dtype=kind, device="meta")
    with torch.inference_mode(), counter:
        twin(planes)
    return Count(counter.macs, counter.least, counter.eager, counter.kernels)
