"""Convolution with a dense kernel on the CPU, such as the network's 3×3 stem: a strip of output rows at a time.

The layer's file writes down, for every output pixel, all the pixels that its window reads: nine times the picture, made in
memory, read once by a matrix product and thrown away. A strip of a few output rows needs the same numbers for these rows
only, and they never leave the cache. Strips are shared out over the threads.

A strip that starts at output row a is a convolution of its own, with stride·a less padding above it (`windows.py`), so that
geometry and copying are `windows.copy_im2col` and its reverse. Neighbouring strips read rows in common; so each share adds
up its dx in rows of its own, and these are added at the end, in order.

Measured, 3 → 32 channels, ms, plain → in strips, medians of three; forward, backward. 2 threads: 32×32, batch 128: 9.1 →
6.0, 18.1 → 11.8; 96×96, stride 2, batch 64: 11.1 → 6.8, 25.9 → 13.8. One thread: 8.9 → 6.7, 18.1 → 15.1; 14.4 → 10.0,
26.7 → 26.2. A convolution with several groups has no kernel.
"""

import numpy as np

from scratchnet.kernels.cpu.buffers import empty
from scratchnet.kernels.cpu.products import PANEL_BYTES
from scratchnet.parallel.cuts import PASS, panels, shares
from scratchnet.parallel.threads import parallel
from scratchnet.windows import add_col2im, copy_im2col, output_size


def grouped_forward(x, weight, stride, padding, dilation, groups):
    """(CONV.3) on a strip of rows: the product is written straight into its rows of y."""
    out_size = tuple(map(output_size, x.shape[1:3], weight.shape[2:], stride, padding, dilation))
    y = empty((len(weight), *out_size, x.shape[3]), x.dtype)
    matrix = weight.reshape(len(weight), -1)  # (O, C, KH, KW) -> (O, K)

    def share(rows):
        for strip in _strips(rows, matrix, y):
            cols = _cols(x, weight, strip, y.shape[2], stride, padding, dilation)
            np.matmul(matrix, cols.reshape(matrix.shape[1], -1), out=_matrix(y, strip))

    parallel(share, _shares(matrix, y))
    return y


def grouped_backward(dy, x, weight, stride, padding, dilation, groups, wants_dweight=True):
    """(CONV.5) to (CONV.7) on a strip of rows."""
    matrix = weight.reshape(len(weight), -1)
    transposed = np.ascontiguousarray(matrix.T)

    def share(rows):
        seen = _rows_read(rows, x, weight, stride, padding, dilation)
        dx, dmatrix = np.zeros_like(x[:, seen]), np.zeros_like(matrix)
        for strip in _strips(rows, matrix, dy):
            grad = _matrix(dy, strip)
            if wants_dweight:
                cols = _cols(x, weight, strip, dy.shape[2], stride, padding, dilation)
                dmatrix += grad @ cols.reshape(matrix.shape[1], -1).T  # (CONV.5)
            else:
                cols = empty((len(x), *weight.shape[2:], strip.stop - strip.start, *dy.shape[2:]), x.dtype)
            np.matmul(transposed, grad, out=cols.reshape(matrix.shape[1], -1))  # (CONV.6); cols have done their work
            above = padding[0] - strip.start * stride[0] + seen.start, padding[1]
            add_col2im(cols, dx, stride, above, dilation)  # (CONV.7)
        return seen, dx, dmatrix

    parts = parallel(share, _shares(matrix, dy))
    dx = np.zeros_like(x)
    for seen, part, _ in parts:
        dx[:, seen] += part
    return dx, sum(dmatrix for _, _, dmatrix in parts).reshape(weight.shape) if wants_dweight else None


def _shares(matrix, y):
    """The rows of y (O, OH, OW, N) in shares."""
    return shares(y.shape[1], y[0, 0].size * (matrix.size + PASS * sum(matrix.shape)))


def _strips(rows, matrix, y):
    """The rows of a share, a few at a time: so many that their cols take about PANEL_BYTES."""
    return panels(rows, matrix.shape[1] * y[0, 0].nbytes, PANEL_BYTES, least=1)


def _cols(x, weight, strip, columns, stride, padding, dilation):
    """(CONV.2) for some rows of the output, (C, KH, KW, rows, OW, N)."""
    cols = empty((len(x), *weight.shape[2:], strip.stop - strip.start, columns, x.shape[3]), x.dtype)
    cols.fill(0)
    copy_im2col(x, cols, stride, (padding[0] - strip.start * stride[0], padding[1]), dilation)
    return cols


def _rows_read(rows, x, weight, stride, padding, dilation):
    """The rows of x that some rows of the output read, the padding left out."""
    first = rows.start * stride[0] - padding[0]
    last = (rows.stop - 1) * stride[0] - padding[0] + (weight.shape[2] - 1) * dilation[0]
    start = min(max(first, 0), x.shape[1])
    return slice(start, max(start, min(last + 1, x.shape[1])))


def _matrix(y, strip):
    """Some rows of y (O, OH, OW, N), as a matrix (O, …): a view."""
    return y[:, strip].reshape(len(y), -1)
