# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The Triton kernels of a merged stage.

Feature maps are in channels_last, (N, H, W, C), and 16 bit; sums are float32.
With ``PDL`` (programmatic dependent launch, from compute capability 9.0) a
kernel may start before the one before it has ended, and waits for its results.
"""
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def pointwise_kernel(x, weight, bias, out, rows, height, width, in_height,
                     in_width, cin, cout, POOL: tl.constexpr,
                     BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
                     PDL: tl.constexpr):
    """1x1 convolution, bias, maximum over 2x2 pixels, ReLU.

    A row of the product is a pixel of the input. With POOL the rows are
    ordered window by window, so that the four pixels of a window are in one
    tile. ``height`` and ``width`` are the output's.
    """
    m, n = tl.program_id(0), tl.program_id(1)
    row = m * BM + tl.arange(0, BM)
    columns = n * BN + tl.arange(0, BN)
    pixel = row
    if POOL:
        window, corner = row // 4, row % 4
        y, image = window // width % height, window // (height * width)
        # The input may have a last row or column that no window covers.
        pixel = ((image * in_height + y * 2 + corner // 2) * in_width +
                 window % width * 2 + corner % 2)
    k = tl.arange(0, BK)
    a = x + pixel[:, None].to(tl.int64) * cin + k[None, :]
    b = weight + columns[None, :] * cin + k[:, None]
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    valid = row[:, None] < rows
    sums = tl.zeros([BM, BN], tl.float32)
    for _ in range(0, cin, BK):
        sums = tl.dot(tl.load(a, mask=valid, other=0.0), tl.load(b), sums)
        a += BK
        b += BK
    size: tl.constexpr = BM // 4 if POOL else BM
    if POOL:
        sums = tl.max(tl.reshape(sums, [size, 4, BN]), 1)
        rows = rows // 4
    sums = tl.maximum(sums + tl.load(bias + columns)[None, :], 0.0)
    row_out = m * size + tl.arange(0, size)
    tl.store(out + row_out[:, None].to(tl.int64) * cout + columns[None, :],
             sums.to(out.dtype.element_ty), mask=row_out[:, None] < rows)


@triton.jit
def patch_kernel(x, weight, bias, out, rows, height, width, stride_n,
                 stride_c, stride_h, stride_w, C: tl.constexpr,
                 SIDE: tl.constexpr, COUT: tl.constexpr, BM: tl.constexpr,
                 BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr):
    """Convolution of patches that do not overlap (a stem), bias, ReLU.

    A row of the product is a patch, (C, SIDE, SIDE), padded to BK with zeros.
    """
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    image, y, column = (row // (height * width), row // width % height,
                        row % width)
    start = (image.to(tl.int64) * stride_n + y * SIDE * stride_h +
             column * SIDE * stride_w)
    inside = (k // (SIDE * SIDE) * stride_c + k // SIDE % SIDE * stride_h +
              k % SIDE * stride_w)
    b = tl.load(weight + columns[None, :] * BK + k[:, None])
    offset = tl.load(bias + columns)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    a = tl.load(x + start[:, None] + inside[None, :], other=0.0,
                mask=(row[:, None] < rows) & (k[None, :] < C * SIDE * SIDE))
    sums = tl.maximum(tl.dot(a.to(b.dtype), b) + offset[None, :], 0.0)
    tl.store(out + row[:, None].to(tl.int64) * COUT + columns[None, :],
             sums.to(out.dtype.element_ty), mask=row[:, None] < rows)


@triton.jit
def depthwise_kernel(x, weight, bias, out, height, width, channels,
                     SIDE: tl.constexpr, ROWS: tl.constexpr,
                     COLS: tl.constexpr, BC: tl.constexpr, PDL: tl.constexpr):
    """Depthwise convolution of stride 1 that keeps the size, and bias.

    A program has BC channels of ROWS x COLS pixels. A thread has all pixels
    of its channels in registers, so that it reads each input pixel once.
    ``weight`` is (SIDE, SIDE, channels).
    """
    tiles = tl.cdiv(width, COLS)
    top = tl.program_id(0) // tiles * ROWS
    left = tl.program_id(0) % tiles * COLS
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    image = tl.program_id(2).to(tl.int64) * height * width * channels
    taps = ()
    for i in tl.static_range(SIDE * SIDE):
        taps = taps + (tl.load(weight + i * channels + channel), )
    offset = tl.load(bias + channel)
    sums = ()
    for _ in tl.static_range(ROWS * COLS):
        sums = sums + (offset, )
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    for i in tl.static_range(ROWS + SIDE - 1):
        y = top + (i - SIDE // 2)
        line = ()
        for j in tl.static_range(COLS + SIDE - 1):
            column = left + (j - SIDE // 2)
            value = tl.load(
                x + image + (y * width + column) * channels + channel,
                mask=(y >= 0) & (y < height) & (column >= 0) &
                (column < width), other=0.0)
            line = line + (value.to(tl.float32), )
        updated = ()
        for row in tl.static_range(ROWS):
            for column in tl.static_range(COLS):
                total = sums[row * COLS + column]
                if i >= row and i - row < SIDE:
                    for j in tl.static_range(SIDE):
                        total += line[column + j] * taps[
                            (i - row) * SIDE + j].to(tl.float32)
                updated = updated + (total, )
        sums = updated
    for row in tl.static_range(ROWS):
        for column in tl.static_range(COLS):
            tl.store(
                out + image + ((top + row) * width + left + column) * channels
                + channel, sums[row * COLS + column].to(out.dtype.element_ty),
                mask=(top + row < height) & (left + column < width))


@triton.jit
def mean_kernel(x, out, pixels, C: tl.constexpr, BP: tl.constexpr,
                BC: tl.constexpr, PDL: tl.constexpr):
    """Mean over the pixels of each map, in float32."""
    channel = tl.program_id(0) * BC + tl.arange(0, BC)
    image = tl.program_id(1).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    sums = tl.zeros([BP, BC], tl.float32)
    for start in range(0, pixels, BP):
        pixel = start + tl.arange(0, BP)
        sums += tl.load(
            x + (image * pixels + pixel)[:, None] * C + channel[None, :],
            mask=pixel[:, None] < pixels, other=0.0).to(tl.float32)
    tl.store(out + image * C + channel, tl.sum(sums, 0) / pixels)


@triton.jit
def linear_kernel(x, weight, bias, out, COUT, CIN: tl.constexpr,
                  BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr):
    """A product with one row: reads the weight once, at memory speed."""
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    image = tl.program_id(1)
    valid = columns[:, None] < COUT
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    sums = tl.zeros([BN, BK], tl.float32)
    for start in range(0, CIN, BK):
        k = start + tl.arange(0, BK)
        sums += tl.load(
            weight + columns[:, None] * CIN + k[None, :], mask=valid,
            other=0.0).to(tl.float32) * tl.load(x + image * CIN + k)[None, :]
    total = tl.sum(sums, 1) + tl.load(bias + columns, columns < COUT)
    tl.store(out + image * COUT + columns, total, columns < COUT)
