"""Nets made quick on NVIDIA GPUs, in PyTorch and Triton: Compact and RRDB.

`faster` takes a net of `engines.archs` and gives one that does the same from uint8 BGRA to uint8
BGRA. Each form computes the same numbers in plain PyTorch, on any device, so the algebra can be
checked without a GPU; which form is quickest is measured, not assumed (docs/results/gpu-notes.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

    from engines.fast.compact import FastCompact
    from engines.fast.kernels import Tile
    from engines.fast.rrdb import FastRrdb

Form = Literal["epilogue", "folded", "split", "direct", "stacked"]


@dataclass(frozen=True, slots=True)
class Step:
    """A form, for people.

    Attributes:
        title: what it adds to the one before.
        architectures: the nets that have it.
    """

    title: str
    architectures: tuple[str, ...]


#: In the order in which they were thought of.
FORMS: dict[Form, Step] = {
    "epilogue": Step(
        "cuDNN convolves; bias, activation and skips in one kernel after it; bytes in and out",
        ("compact", "rrdb"),
    ),
    "folded": Step(
        "the same, and enlarge-then-convolve as four 2x2 convolutions", ("rrdb",)
    ),
    "split": Step(
        "the same, and each picture convolved once for all later convolutions", ("rrdb",)
    ),
    "direct": Step(
        "our own convolution, which reads and writes in place and does all that follows",
        ("compact", "rrdb"),
    ),
    "stacked": Step(
        "both: our own convolution, of each picture once for all that read it", ("rrdb",)
    ),
}  # fmt: skip

#: Which form should be quickest, by architecture: arithmetic, until an NVIDIA GPU has measured it.
QUICKEST: dict[str, Form] = {"compact": "direct", "rrdb": "stacked"}


def quickest(
    net: nn.Module, kind: torch.dtype | None = None
) -> tuple[Form, FastCompact | FastRrdb] | None:
    """Make the form of a net that should be quickest.

    Args:
        net, kind: as `faster`.
    Returns:
        Its name and the net, on the device of `net`; None for nets that have no quick form.
    Raises:
        ValueError: the net is of a kind that has one, but its shape does not suit it.
    """
    from engines.archs.compact import Compact
    from engines.archs.rrdb import Rrdb

    for architecture, of in (("compact", Compact), ("rrdb", Rrdb)):
        if isinstance(net, of):
            form = QUICKEST[architecture]
            return form, faster(net, form, kind)
    return None


def faster(
    net: nn.Module,
    form: Form = "direct",
    kind: torch.dtype | None = None,
    tile: Tile | None = None,
) -> FastCompact | FastRrdb:
    """Make the quick form of a net.

    Args:
        net: a `Compact` or an `Rrdb`; not changed. Their weights decide the device.
        form: one of `FORMS` that the net has.
        kind: what to compute in; None: FP16.
        tile: how our own convolution cuts its work; None: as `Tile` says.
    Raises:
        ValueError: this net has no such form.
    """
    import torch

    from engines.archs.compact import Compact
    from engines.archs.rrdb import Rrdb
    from engines.fast.compact import FastCompact
    from engines.fast.rrdb import FastRrdb

    engine: Literal["triton", "library"] = "triton" if form in ("direct", "stacked") else "library"
    quick: FastCompact | FastRrdb
    if isinstance(net, Compact) and "compact" in FORMS[form].architectures:
        quick = FastCompact(net, engine, tile)
    elif isinstance(net, Rrdb):
        quick = FastRrdb(
            net, engine, split=form in ("split", "stacked"), fold=form != "epilogue", tile=tile
        )  # fmt: skip
    else:
        raise ValueError(f"{type(net).__name__} has no form {form!r}")
    for name, tensor in quick.named_buffers():
        if name.rpartition(".")[2].startswith(("weight", "kernel")):  # the rest is added in FP32
            tensor.data = tensor.data.to(kind or torch.float16)
    return quick.eval().requires_grad_(False)
