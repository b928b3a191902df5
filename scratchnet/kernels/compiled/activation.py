"""ReLU, ReLU6 and global average pooling, compiled (layers/activation.py, layers/pool.py): one pass each."""

from scratchnet.array import as_images, as_maps, as_matrix
from scratchnet.kernels.compiled.jit import ONE, SIX, ZERO, bare, everywhere, jit, take
from scratchnet.kernels.compiled.rows import copy
from scratchnet.kernels.cpu.buffers import empty

COST = 10  # of a number, in multiply-adds (`jit.everywhere`)


def relu_forward(x):
    """One pass."""
    return _rectify(_rise, x)


def relu_backward(dy, cache):
    """One pass."""
    return _hold(_mask_low, dy, cache)


def relu6_forward(x):
    """One pass."""
    return _rectify(_clip, x)


def relu6_backward(dy, cache):
    """One pass."""
    return _hold(_mask, dy, cache)


def _rectify(loop, x):
    rows = as_matrix(x)
    y = empty(rows.shape, rows.dtype)
    everywhere(loop, len(rows), rows.size * COST, rows, y)
    y = as_images(y, x)
    return y, y


def _hold(loop, dy, cache):
    grad, y = as_matrix(dy), as_matrix(cache)
    dx = empty(grad.shape, grad.dtype)
    everywhere(loop, len(grad), grad.size * COST, grad, y, dx)
    return as_images(dx, dy)


def global_avg_pool2d_forward(x):
    """One pass."""
    maps = as_maps(x)
    pixels = maps.reshape(len(maps), -1, maps.shape[3])  # (C, H, W, N) -> (C, H·W, N)
    y = empty((len(maps), 1, 1, maps.shape[3]), maps.dtype)
    means, count = y.reshape(len(maps), -1), maps.dtype.type(pixels.shape[1])
    everywhere(_mean, len(pixels), pixels.size * COST, pixels, count, means)
    return as_images(y), (maps.shape, maps.dtype)


def global_avg_pool2d_backward(dy, cache):
    """One pass."""
    shape, dtype = cache
    dx = empty(shape, dtype)
    pixels, grad = dx.reshape(len(dx), -1, shape[3]), as_maps(dy).reshape(len(dx), -1)
    share = grad / dtype.type(pixels.shape[1])
    everywhere(_fill, len(pixels), pixels.size * COST, share, pixels)
    return as_images(dx)


@jit
def _rise(counter, x, y):
    x, y = bare(x), bare(y)
    c = take(counter)
    while c < len(x):
        row, out = x[c], y[c]
        for i in range(row.size):
            out[i] = max(row[i], ZERO)  # (RELU.1)
        c = take(counter)


@jit
def _mask_low(counter, dy, y, dx):
    dy, y, dx = bare(dy), bare(y), bare(dx)
    c = take(counter)
    while c < len(dx):
        grad, row, out = dy[c], y[c], dx[c]
        for i in range(row.size):
            out[i] = grad[i] * (ZERO if row[i] <= ZERO else ONE)  # (RELU.2)
        c = take(counter)


@jit
def _clip(counter, x, y):
    x, y = bare(x), bare(y)
    c = take(counter)
    while c < len(x):
        row, out = x[c], y[c]
        for i in range(row.size):
            out[i] = min(max(row[i], ZERO), SIX)  # (RELU6.1)
        c = take(counter)


@jit
def _mask(counter, dy, y, dx):
    dy, y, dx = bare(dy), bare(y), bare(dx)
    c = take(counter)
    while c < len(dx):
        grad, row, out = dy[c], y[c], dx[c]
        for i in range(row.size):
            out[i] = grad[i] * (ZERO if (row[i] <= ZERO) | (row[i] >= SIX) else ONE)  # (RELU6.2)
        c = take(counter)


@jit
def _mean(counter, x, count, y):
    x, y = bare(x), bare(y)
    c = take(counter)
    while c < len(x):
        out = y[c]
        out[:] = ZERO
        for p in range(x.shape[1]):
            row = x[c, p]
            for i in range(row.size):
                out[i] += row[i]
        for i in range(out.size):
            out[i] /= count  # (GPOOL.1)
        c = take(counter)


@jit
def _fill(counter, share, dx):
    share, dx = bare(share), bare(dx)
    c = take(counter)
    while c < len(dx):
        for p in range(dx.shape[1]):
            copy(share[c], dx[c, p])  # (GPOOL.2)
        c = take(counter)
