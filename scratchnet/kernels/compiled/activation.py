"""ReLU6 and global average pooling, compiled (layers/activation.py, layers/pool.py): one pass each."""

from scratchnet.array import as_images, as_maps, as_matrix
from scratchnet.kernels.compiled.jit import ONE, SIX, ZERO, bare, channels, jit
from scratchnet.kernels.cpu.buffers import empty
from scratchnet.parallel.threads import parallel

COST = 10  # of a number, in multiply-adds (`jit.channels`)


def relu6_forward(x):
    """One pass."""
    rows = as_matrix(x)
    y = empty(rows.shape, rows.dtype)
    parallel(lambda part: _clip(rows, y, *part), channels(rows, COST))
    y = as_images(y, x)
    return y, y


def relu6_backward(dy, cache):
    """One pass."""
    grad, y = as_matrix(dy), as_matrix(cache)
    dx = empty(grad.shape, grad.dtype)
    parallel(lambda part: _mask(grad, y, dx, *part), channels(grad, COST))
    return as_images(dx, dy)


def global_avg_pool2d_forward(x):
    """One pass."""
    maps = as_maps(x)
    pixels = maps.reshape(len(maps), -1, maps.shape[3])  # (C, H, W, N) -> (C, H·W, N)
    y = empty((len(maps), 1, 1, maps.shape[3]), maps.dtype)
    means, count = y.reshape(len(maps), -1), maps.dtype.type(pixels.shape[1])
    parallel(lambda part: _mean(pixels, count, means, *part), channels(pixels, COST))
    return as_images(y), (maps.shape, maps.dtype)


def global_avg_pool2d_backward(dy, cache):
    """One pass."""
    shape, dtype = cache
    dx = empty(shape, dtype)
    pixels, grad = dx.reshape(len(dx), -1, shape[3]), as_maps(dy).reshape(len(dx), -1)
    share = grad / dtype.type(pixels.shape[1])
    parallel(lambda part: _fill(share, pixels, *part), channels(pixels, COST))
    return as_images(dx)


@jit
def _clip(x, y, first, end):
    x, y = bare(x), bare(y)
    for c in range(first, end):
        row, out = x[c], y[c]
        for i in range(row.size):
            out[i] = min(max(row[i], ZERO), SIX)  # (RELU6.1)


@jit
def _mask(dy, y, dx, first, end):
    dy, y, dx = bare(dy), bare(y), bare(dx)
    for c in range(first, end):
        grad, row, out = dy[c], y[c], dx[c]
        for i in range(row.size):
            out[i] = grad[i] * (ZERO if (row[i] <= ZERO) | (row[i] >= SIX) else ONE)  # (RELU6.2)


@jit
def _mean(x, count, y, first, end):
    x, y = bare(x), bare(y)
    for c in range(first, end):
        out = y[c]
        out[:] = ZERO
        for p in range(x.shape[1]):
            row = x[c, p]
            for i in range(row.size):
                out[i] += row[i]
        for i in range(out.size):
            out[i] /= count  # (GPOOL.1)


@jit
def _fill(share, dx, first, end):
    share, dx = bare(share), bare(dx)
    for c in range(first, end):
        for p in range(dx.shape[1]):
            dx[c, p] = share[c]  # (GPOOL.2)
