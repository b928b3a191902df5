"""A convolution with a dense kernel and stride 1, compiled: a matrix product for each column of the kernel.

In memory one pixel to the right is N numbers further (array.py). So what column j of the kernel reads for a row of outputs
is what column 0 reads, shifted by j·d·N numbers; and cols (CONV.2) need not be made. A panel has, for some numbers of a row
of outputs, the KH rows of pixels that their windows touch, in each channel, once and with the padding:
    panel[i·C + c, m] = x[c, p + i·d - pad, m + a - pad·N]        for outputs a, a + 1, … of row p      (SHIFT.1)
    Y[:, a : b] = Σ_j W_j · panel[:, j·d·N : j·d·N + b - a]       with W_j (O × KH·C) for column j       (SHIFT.2)

Where cols copy every pixel KH·KW times, a panel copies it KH times. Backward, with stride 1:
    dW_j = Σ dY[:, a : b] · panel[:, j·d·N : j·d·N + b - a]ᵀ      over all panels, by (CONV.5)           (SHIFT.3)
    dx = dy convolved with the weight turned by half a turn, d·(k - 1) - pad zeros around it             (SHIFT.4)
since the pixel that output p reads through row i of the kernel is read, the other way round, by (CONV.7) through row
k - 1 - i. Another stride is left to dense.py.

Measured on one core of an AMD EPYC with AVX-512, batch 128, ms of the CPU, forward and backward:

    channels      size      NumPy (cpu/dense.py)    cols (dense.py)    shifts
    16 → 16       32×32     18.5    49.7             9.6    22.0        7.8    15.9
    64 → 64       8×8        9.1    20.6             7.2    16.3        5.9    12.8, which is 100 GFLOP/s
    256 → 256     8×8        111     229             158     266        102     210

With 512 → 512 channels, 7×7, batch 32, NumPy is faster: 79 and 195, shifts 115 and 206.
"""

import numpy as np

from scratchnet.kernels.compiled.blas import blas, multiply, multiply_transposed
from scratchnet.kernels.compiled.depthwise import flat, rows
from scratchnet.kernels.compiled.jit import ZERO, bare, everywhere, jit, take
from scratchnet.kernels.compiled.rows import copy
from scratchnet.kernels.compiled.strips import rows_of
from scratchnet.kernels.cpu.buffers import empty
from scratchnet.windows import output_size

PARTS = 8  # of the sums for dweight, which are added in order
PIECE = 1024  # numbers of a row of outputs that are made at a time
COST = 12  # of a number that is copied, in multiply-adds (`jit.everywhere`)


def grouped_forward(x, weight, stride, padding, dilation, groups):
    """Y, a panel at a time."""
    return _convolve(x, weight, padding, dilation)


def grouped_backward(dy, x, weight, stride, padding, dilation, groups, wants_dweight=True):
    """dx by another convolution, dweight a panel at a time."""
    turned = weight[:, :, ::-1, ::-1].swapaxes(0, 1)  # (O, C, KH, KW) -> (C, O, KH, KW)
    around = tuple(d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True))
    dx = _convolve(dy, turned, around, dilation)  # (SHIFT.4)
    return dx, _gradient(dy, x, weight, padding, dilation) if wants_dweight else None


def _convolve(x, weight, padding, dilation):
    """Y (O, OH, OW, N) of x (C, H, W, N)."""
    height, width = map(output_size, x.shape[1:3], weight.shape[2:], (1, 1), padding, dilation)
    y = empty((len(weight), height, width, x.shape[3]), x.dtype)
    columns = np.ascontiguousarray(weight.transpose(3, 0, 2, 1)).reshape(weight.shape[3], len(weight), -1)
    geometry, piece, scratch = _geometry(x, weight, padding, dilation, width)
    work = y[0].size * (weight.size + COST * (columns.shape[2] + len(weight)))
    parts = height * -(-width * x.shape[3] // piece)
    arrays = blas(x.dtype), rows(x), columns, geometry, piece, height, flat(y)
    everywhere(_forward, parts, work, *arrays, scratch=scratch)
    return y


def _gradient(dy, x, weight, padding, dilation):
    """Dweight (O, C, KH, KW)."""
    height, width = dy.shape[1:3]
    geometry, piece, scratch = _geometry(x, weight, padding, dilation, width)
    (o, c, kh, kw), parts = weight.shape, min(PARTS, height)
    sums = np.empty((parts, kw, o, kh * c), x.dtype)
    work = dy[0].size * (weight.size + COST * (kh * c + o))
    arrays = blas(x.dtype), flat(dy), rows(x), geometry, piece, height, sums
    everywhere(_weight_gradient, parts, work, *arrays, scratch=scratch)
    return sums.sum(axis=0).reshape(kw, o, kh, c).transpose(1, 3, 2, 0)


def _geometry(x, weight, padding, dilation, width):
    """What the loops have to know, how many numbers of a row they do at a time, and the memory that a thread needs."""
    n, (o, c, kh, kw) = x.shape[3], weight.shape
    piece = min(PIECE, width * n)
    beyond = (kw - 1) * dilation[1] * n  # numbers of a panel that only later columns of the kernel read
    apart = (piece + beyond) // 16 * 16 + 32  # rows a power of two apart would share few places of the cache
    return (
        (kh, padding[0], padding[1] * n, dilation[0], dilation[1] * n, width * n),
        piece,
        ((o + kh * c, apart), x.dtype),
    )


@jit
def _forward(counter, found, x, columns, geometry, piece, height, y, scratch):
    """A piece of a row of y at a time; columns (KW, O, KH·C)."""
    x, columns, y, scratch = bare(x), bare(columns), bare(y), bare(scratch)
    shift, size = geometry[4], geometry[5]
    outs, pieces = len(y), (size + piece - 1) // piece
    k = take(counter)
    while k < height * pieces:
        p, a = k // pieces, k % pieces * piece
        wide = min(piece, size - a)
        _lay_out(x, p, a, wide + (len(columns) - 1) * shift, geometry, scratch, outs)
        out = scratch[:outs, :wide]
        for j in range(len(columns)):
            multiply(found, columns[j], scratch[outs:, j * shift : j * shift + wide], out, j > 0)  # (SHIFT.2)
        for o in range(outs):  # row by row to memory, which a product would go to in pieces
            copy(scratch[o, :wide], y[o, p * size + a : p * size + a + wide])
        k = take(counter)


@jit
def _weight_gradient(counter, found, dy, x, geometry, piece, height, sums, scratch):
    """What each part of the rows adds to dweight (parts, KW, O, KH·C)."""
    dy, x, sums, scratch = bare(dy), bare(x), bare(sums), bare(scratch)
    shift, size = geometry[4], geometry[5]
    outs, kw = len(dy), sums.shape[1]
    part = take(counter)
    while part < len(sums):
        first, end = rows_of(part, len(sums), height)
        for p in range(first, end):
            for a in range(0, size, piece):
                wide = min(piece, size - a)
                _lay_out(x, p, a, wide + (kw - 1) * shift, geometry, scratch, outs)
                for o in range(outs):
                    copy(dy[o, p * size + a : p * size + a + wide], scratch[o, :wide])
                for j in range(kw):
                    panel, more = scratch[outs:, j * shift : j * shift + wide], (p > first) | (a > 0)
                    multiply_transposed(found, scratch[:outs, :wide], panel, sums[part, j], more)  # (SHIFT.3)
        part = take(counter)


@jit
def _lay_out(x, p, a, wide, geometry, scratch, outs):
    """The panel for the outputs from a on of row p, so wide, into the rows of scratch from `outs` on."""
    kh, above, left, dilation, _, _ = geometry
    low = a - left  # where in a row of x the panel begins
    start = min(max(-low, 0), wide)  # of the panel: what comes before is padding, and so is what comes from stop on
    stop = min(max(x.shape[2] - low, start), wide)
    for i in range(kh):
        r = p + i * dilation - above  # (WIN.1), (SHIFT.1)
        for c in range(len(x)):
            row = scratch[outs + i * len(x) + c, :wide]
            if 0 <= r < x.shape[1]:
                row[:start] = ZERO
                copy(x[c, r, low + start : low + stop], row[start:stop])
                row[stop:] = ZERO
            else:
                row[:] = ZERO
