"""The Triton kernels; imported only where Triton is, called only by `engines.fast.kernels`.

All pictures are pixel after pixel ("NHWC"), rows without gaps; `rows` counts the rows of all
pictures of a batch. Sums are FP32.

Numbers that follow from a picture's size are not specialised on, so that a kernel is compiled
once and not again for each size; what decides how memory is read is a constexpr or a stride.
"""

# Triton's language is Python in syntax only.
# mypy: ignore-errors
# ruff: noqa: N803, N806 - constexpr names in capitals are Triton's own convention

from __future__ import annotations

import triton
import triton.language as tl

_SIZES = ("pixels", "rows", "height", "width", "source_width", "top", "left")


def _kernel(function):
    """Compile a function for all sizes at once."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    sizes = [name for name in names if name in _SIZES]
    return triton.jit(function, do_not_specialize=sizes)


@triton.jit
def _convolved(
    x, growth_offset, weight, pixel, rows, height, width, top, left,
    X_CHANNELS: tl.constexpr, GROWTH_CHANNELS: tl.constexpr, GROWTH_PITCH: tl.constexpr,
    TAPS: tl.constexpr,
    PIXELS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """Multiply patches by kernels: the sum [PIXELS, OUTPUTS], without bias.

    Input channels are the X_CHANNELS of `x`, then GROWTH_CHANNELS of a second picture that lies
    `growth_offset` numbers after it, GROWTH_PITCH numbers a pixel. `weight` is
    [TAPS*TAPS*(X_CHANNELS + GROWTH_CHANNELS), OUTPUTS]; the tap (0, 0) is the pixel at
    (top, left) from the output's. One loop over all taps and channels, so that the compiler can
    load ahead.
    """
    CHANNELS: tl.constexpr = X_CHANNELS + GROWTH_CHANNELS
    STEPS: tl.constexpr = CHANNELS // INPUTS
    row = pixel // width
    line = row % height
    column = pixel % width
    k = tl.arange(0, INPUTS)
    n = tl.arange(0, OUTPUTS)
    total = tl.zeros((PIXELS, OUTPUTS), tl.float32)
    for step in range(0, TAPS * TAPS * STEPS):
        tap = step // STEPS
        channel = (step % STEPS) * INPUTS
        down = tap // TAPS + top
        right = tap % TAPS + left
        inside = (row < rows) & (line + down >= 0) & (line + down < height)
        inside = inside & (column + right >= 0) & (column + right < width)
        in_x = channel < X_CHANNELS
        pitch = tl.where(in_x, X_CHANNELS, GROWTH_PITCH)
        start = tl.where(in_x, channel, growth_offset + channel - X_CHANNELS)
        place = (pixel + down * width + right) * pitch
        a = tl.load(x + start + place[:, None] + k[None, :], mask=inside[:, None], other=0.0)
        b = tl.load(weight + (step * INPUTS + k[:, None]) * OUTPUTS + n[None, :])
        total = tl.dot(a, b, total, input_precision="ieee")
    return total


@_kernel
def convolve(
    x, growth_offset, weight, bias, slope, first, second, out,
    rows, height, width, top, left, out_row, out_column, skip_scale,
    X_CHANNELS: tl.constexpr, GROWTH_CHANNELS: tl.constexpr, GROWTH_PITCH: tl.constexpr,
    TAPS: tl.constexpr, SKIPS: tl.constexpr,
    PIXELS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """Convolve, add the bias, scale what is negative, then SKIPS times: scale and add.

    `first` and `second` have OUTPUTS numbers a pixel; `out` has its own strides.
    """
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    n = tl.arange(0, OUTPUTS)
    y = _convolved(
        x, growth_offset, weight, pixel, rows, height, width, top, left,
        X_CHANNELS, GROWTH_CHANNELS, GROWTH_PITCH, TAPS, PIXELS, OUTPUTS, INPUTS,
    )  # fmt: skip
    y += tl.load(bias + n)[None, :].to(tl.float32)
    y = tl.where(y >= 0, y, y * tl.load(slope + n)[None, :].to(tl.float32))
    row = pixel // width
    there = (row < rows)[:, None]
    same = pixel[:, None] * OUTPUTS + n[None, :]
    if SKIPS >= 1:
        y = y * skip_scale + tl.load(first + same, mask=there, other=0.0).to(tl.float32)
    if SKIPS >= 2:
        y = y * skip_scale + tl.load(second + same, mask=there, other=0.0).to(tl.float32)
    place = row * out_row + (pixel % width) * out_column
    tl.store(out + place[:, None] + n[None, :], y.to(out.dtype.element_ty), mask=there)


@triton.jit
def _store_grown(
    y, sums, bias, slope, first, second, out, pixel, rows, width, start, column,
    out_row, out_column, skip_scale,
    MADE: tl.constexpr, WIDTH: tl.constexpr, HAS_SUMS: tl.constexpr, SKIPS: tl.constexpr,
):  # fmt: skip
    """Finish some columns of `grow`: those before MADE are complete, the others are kept."""
    row = pixel // width
    there = (row < rows)[:, None]
    place = pixel[:, None] * WIDTH + (start + column)[None, :]
    if HAS_SUMS:
        y += tl.load(sums + place, mask=there, other=0.0).to(tl.float32)
    complete = column < MADE
    tl.store(sums + place, y.to(sums.dtype.element_ty), mask=there & (column >= MADE)[None, :])
    made = there & complete[None, :]
    y += tl.load(bias + column, mask=complete, other=0.0)[None, :].to(tl.float32)
    slopes = tl.load(slope + column, mask=complete, other=0.0)
    y = tl.where(y >= 0, y, y * slopes[None, :].to(tl.float32))
    same = pixel[:, None] * MADE + column[None, :]
    if SKIPS >= 1:
        y = y * skip_scale + tl.load(first + same, mask=made, other=0.0).to(tl.float32)
    if SKIPS >= 2:
        y = y * skip_scale + tl.load(second + same, mask=made, other=0.0).to(tl.float32)
    target = (row * out_row + (pixel % width) * out_column)[:, None] + column[None, :]
    tl.store(out + target, y.to(out.dtype.element_ty), mask=made)


@_kernel
def grow(
    x, weight, sums, bias, slope, first, second, out,
    rows, height, width, start, out_row, out_column, skip_scale,
    X_CHANNELS: tl.constexpr, X_PITCH: tl.constexpr, MADE: tl.constexpr, WIDTH: tl.constexpr,
    SKIPS: tl.constexpr, HAS_SUMS: tl.constexpr,
    PIXELS: tl.constexpr, MOST: tl.constexpr, REST: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """Convolve one picture for all convolutions that read it: MOST + REST outputs.

    A patch is loaded once for all of them. `sums` is [pixels, WIDTH]: columns from `start` on
    are this picture's outputs; what earlier pictures gave is added (HAS_SUMS). The first MADE
    are complete then: bias, slope and skips as in `convolve`, and stored in `out`.
    """
    STEPS: tl.constexpr = X_CHANNELS // INPUTS
    OUTPUTS: tl.constexpr = MOST + REST
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row = pixel // width
    line = row % height
    column = pixel % width
    k = tl.arange(0, INPUTS)
    n = tl.arange(0, MOST)
    total = tl.zeros((PIXELS, MOST), tl.float32)
    if REST:
        m = MOST + tl.arange(0, REST)
        others = tl.zeros((PIXELS, REST), tl.float32)
    for step in range(0, 9 * STEPS):
        tap = step // STEPS
        down = tap // 3 - 1
        right = tap % 3 - 1
        inside = (row < rows) & (line + down >= 0) & (line + down < height)
        inside = inside & (column + right >= 0) & (column + right < width)
        place = (pixel + down * width + right) * X_PITCH + (step % STEPS) * INPUTS
        a = tl.load(x + place[:, None] + k[None, :], mask=inside[:, None], other=0.0)
        kernel = weight + (step * INPUTS + k[:, None]) * OUTPUTS
        total = tl.dot(a, tl.load(kernel + n[None, :]), total, input_precision="ieee")
        if REST:
            others = tl.dot(a, tl.load(kernel + m[None, :]), others, input_precision="ieee")
    _store_grown(
        total, sums, bias, slope, first, second, out, pixel, rows, width, start, n,
        out_row, out_column, skip_scale, MADE, WIDTH, HAS_SUMS, SKIPS,
    )  # fmt: skip
    if REST:
        _store_grown(
            others, sums, bias, slope, first, second, out, pixel, rows, width, start, m,
            out_row, out_column, skip_scale, MADE, WIDTH, HAS_SUMS, SKIPS,
        )  # fmt: skip


@_kernel
def convolve_to_bgra(
    x, weight, bias, base, out, rows, height, width,
    X_CHANNELS: tl.constexpr, TAPS: tl.constexpr,
    SCALE: tl.constexpr, BASE: tl.constexpr,
    PIXELS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """Convolve to blocks of SCALE x SCALE pixels (dy, dx, BGRA) and store them as bytes.

    With BASE the source's pixel, uint8 BGRA, is added to each pixel of its block.
    """
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    n = tl.arange(0, OUTPUTS)
    y = _convolved(
        x, 0, weight, pixel, rows, height, width, -1, -1,
        X_CHANNELS, 0, 1, TAPS, PIXELS, OUTPUTS, INPUTS,
    )  # fmt: skip
    y += tl.load(bias + n)[None, :].to(tl.float32)
    row = pixel // width
    there = (row < rows)[:, None] & (n < 4 * SCALE * SCALE)[None, :]
    if BASE:
        source = tl.load(base + pixel[:, None] * 4 + (n % 4)[None, :], mask=there, other=0)
        y += source.to(tl.float32) / 255.0
    y = tl.minimum(tl.maximum(y, 0.0), 1.0) * 255.0 + 0.5
    down = n // (4 * SCALE)
    target = (row[:, None] * SCALE + down[None, :]) * (width * 4 * SCALE)
    target += (pixel % width)[:, None] * (4 * SCALE) + (n % (4 * SCALE))[None, :]
    tl.store(out + target, y.to(tl.int32).to(tl.uint8), mask=there)


@_kernel
def finish(
    y, y_column, bias, slope, first, second, out,
    rows, width, y_row, out_row, out_column, skip_scale,
    SKIPS: tl.constexpr, PIXELS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Do what `convolve` does after its sum, with a sum that a library made."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    n = tl.arange(0, OUTPUTS)
    row = pixel // width
    column = pixel % width
    there = (row < rows)[:, None]
    place = row * y_row + column * y_column
    z = tl.load(y + place[:, None] + n[None, :], mask=there, other=0.0).to(tl.float32)
    z += tl.load(bias + n)[None, :].to(tl.float32)
    z = tl.where(z >= 0, z, z * tl.load(slope + n)[None, :].to(tl.float32))
    same = pixel[:, None] * OUTPUTS + n[None, :]
    if SKIPS >= 1:
        z = z * skip_scale + tl.load(first + same, mask=there, other=0.0).to(tl.float32)
    if SKIPS >= 2:
        z = z * skip_scale + tl.load(second + same, mask=there, other=0.0).to(tl.float32)
    target = row * out_row + column * out_column
    tl.store(out + target[:, None] + n[None, :], z.to(out.dtype.element_ty), mask=there)


@_kernel
def planes_of_bgra(
    bgra, out, pixels, width, source_width,
    FOLD: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Read bytes: RGB, 0..1, blocks of FOLD x FOLD pixels folded into channels (c, dy, dx)."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    n = tl.arange(0, CHANNELS)
    colour = n // (FOLD * FOLD)
    down = (n % (FOLD * FOLD)) // FOLD
    row = (pixel // width)[:, None] * FOLD + down[None, :]
    column = (pixel % width)[:, None] * FOLD + (n % FOLD)[None, :]
    place = (row * source_width + column) * 4 + (2 - colour)[None, :]
    real = (pixel < pixels)[:, None] & (colour < 3)[None, :]
    y = tl.load(bgra + place, mask=real, other=0).to(tl.float32) / 255.0
    target = pixel[:, None] * CHANNELS + n[None, :]
    tl.store(out + target, y.to(out.dtype.element_ty), mask=(pixel < pixels)[:, None])
