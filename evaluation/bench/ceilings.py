"""What a device can do at most, measured: matrix products, copies, and convolutions of our shapes.

A share of a ceiling is always a share of what was measured in the same run, never of a data sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from engines.fast import kernels
from engines.fast.kernels import Conv, Tile
from evaluation.bench.timing import Device, Timed

#: Inputs and outputs of the convolutions in dense blocks of RRDB, and of Compact (64, 64).
CONVOLUTIONS = ((64, 32), (96, 32), (128, 32), (160, 32), (192, 64), (64, 64))
#: Those of them for which tiles are tried: each tile is compiled anew for each.
TILED = ((96, 32), (192, 64), (64, 64))
#: What is tried for our own convolution; the first is what it takes unasked.
TILES = (
    Tile(),
    *(
        Tile(pixels, warps, stages)
        for pixels, warps in ((64, 4), (128, 4), (128, 8), (256, 8))
        for stages in (3, 4)
        if Tile(pixels, warps, stages) != Tile()
    ),
)

Row = dict[str, Any]


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let FP32 products and convolutions use TF32, or not, for a while."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def matmuls(device: Device) -> tuple[str, ...]:
    """Name the kinds of products that the device has."""
    kinds = ("fp16", "tf32", "fp32")
    has_fp8 = device.is_cuda and torch.cuda.get_device_capability() >= (8, 9)
    return (*kinds, "fp8") if has_fp8 else kinds


def matmul(device: Device, kind: str, size: int) -> Row:
    """Multiply two random matrices of size x size; `kind` is one of `matmuls`."""
    if kind == "fp8":
        step = _fp8_product(device, size)
    else:
        dtype = torch.float16 if kind == "fp16" else torch.float32
        a, b = (torch.randn(size, size, device=device.name).to(dtype) for _ in range(2))
        step = partial(torch.mm, a, b, out=torch.empty_like(a))
    with tf32(kind == "tf32"):
        timed = device.time(step, 20, 0.5)
    return {
        "of": kind, "size": size, **timed.to_json(),
        "tflops": round(2 * size**3 / timed.best_ms / 1e9, 4),
    }  # fmt: skip


def _fp8_product(device: Device, size: int) -> Callable[[], object]:
    a, b = (torch.randn(size, size, device=device.name).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=device.name)
    product: Any = torch._scaled_mm
    return partial(product, a, b.T, scale_a=one, scale_b=one, out_dtype=torch.float16)


def copies(device: Device, size: int) -> list[Row]:
    """Copy `size` bytes on the device, to it and from it; the host's memory is page-locked."""
    there, other = (torch.ones(size, dtype=torch.uint8, device=device.name) for _ in range(2))
    here = torch.ones(size, dtype=torch.uint8, pin_memory=device.is_cuda)
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "device": (lambda: other.copy_(there), 2 * size),  # read and written
        "upload": (lambda: there.copy_(here, non_blocking=True), size),
        "download": (lambda: here.copy_(there, non_blocking=True), size),
    }
    rows = []
    for name, (step, moved) in ways.items():
        timed = device.time(step, 20, 0.5)
        rate = round(moved / timed.best_ms / 1e6, 2)
        rows.append({"copy": name, "bytes": size, **timed.to_json(), "gb_s": rate})
    return rows


def convolutions(device: Device, height: int, width: int) -> Iterator[Row]:
    """Time single convolutions, cuDNN's and ours with every tile."""
    kind = torch.float16 if device.is_cuda else torch.float32
    for inputs, outputs in CONVOLUTIONS:
        flop = 2 * 9 * inputs * outputs * height * width
        x = torch.randn(1, height, width, inputs, device=device.name).to(kind)
        conv = Conv(torch.randn(outputs, inputs, 3, 3) / 24, torch.randn(outputs), 0.2, inputs,
                    outputs).to(device.name)  # fmt: skip
        conv.weight, conv.kernel0 = conv.weight.to(kind), conv.kernel(0).to(kind)
        out = torch.empty(1, height, width, outputs, device=device.name, dtype=kind)
        planes, kernel = x.permute(0, 3, 1, 2), conv.kernel(0)
        row = {"inputs": inputs, "outputs": outputs, "height": height, "width": width}
        timed = device.time(lambda: F.conv2d(planes, kernel, padding=1), 20, 0.1)  # noqa: B023
        yield {**row, "by": "library", **_rate(timed, flop)}
        if not (device.is_cuda and kernels.has_triton()):
            continue
        for tile in TILES if (inputs, outputs) in TILED else TILES[:1]:
            yield {**row, "by": "ours", "tile": [tile.pixels, tile.warps, tile.stages],
                   **_ours(device, conv, x, out, tile, flop)}  # fmt: skip


def _ours(
    device: Device, conv: Conv, x: torch.Tensor, out: torch.Tensor, tile: Tile, flop: int
) -> Row:
    try:
        timed = device.time(lambda: kernels.convolve(conv, x, out, tile=tile), 20, 0.1)
    except Exception as exc:  # too little shared memory for this tile, say: no RuntimeError
        return {"reason": (str(exc).splitlines() or [type(exc).__name__])[0][:200]}
    return _rate(timed, flop)


def _rate(timed: Timed, flop: int) -> Row:
    return {**timed.to_json(), "tflops": round(flop / timed.best_ms / 1e9, 4)}


def best_tile(rows: list[Row]) -> Tile | None:
    """Choose the tile that takes the least time for all convolutions together."""
    totals: dict[tuple[int, int, int], list[float]] = {}
    for row in rows:
        shape = row.get("inputs"), row.get("outputs")
        if row.get("by") == "ours" and "device_ms" in row and shape in TILED:
            totals.setdefault(tuple(row["tile"]), []).append(row["device_ms"]["p50"])
    most = max((len(times) for times in totals.values()), default=0)
    complete = {tile: sum(times) for tile, times in totals.items() if len(times) == most}
    return Tile(*min(complete, key=lambda tile: complete[tile])) if complete else None
