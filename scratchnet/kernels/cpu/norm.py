"""Batch norm on the CPU, a slab of channels at a time (layers/norm.py).

What follows a sum over the batch follows it while the slab is in the cache. Where the sum is over several ranks it is asked
for once, when all slabs have theirs: `in_two`.
"""

import functools

import numpy as np

from scratchnet.array import as_images, as_matrix
from scratchnet.kernels.cpu.buffers import empty
from scratchnet.parallel import ranks
from scratchnet.parallel.cuts import slabs
from scratchnet.parallel.ranks import pooled_moments, pooled_sums
from scratchnet.parallel.threads import parallel


def batch_norm_forward(x, weight, bias, eps):
    """Five passes: sum, centre, sum of squares, scale, shift."""
    rows = as_matrix(x)
    y, m = empty(rows.shape, rows.dtype), rows.shape[1]
    mean, var, inv_std = np.empty((3, len(rows), 1), rows.dtype)
    own = mean

    def moments(c):
        mean[c, 0] = row_sums(rows[c]) / rows.shape[1]  # (BN.1)
        out = np.subtract(rows[c], mean[c], out=y[c])
        var[c, 0] = np.vecdot(out, out) / rows.shape[1]  # (BN.2)
        return out

    def pool():
        nonlocal mean, var, m
        mean, var, m = pooled_moments(mean, var, m)

    def scale(c, out):
        inv_std[c] = 1 / (var[c] + eps) ** 0.5
        if mean is not own:
            out += own[c] - mean[c]
        out *= weight[c, None] * inv_std[c]  # (BN.3), (BN.4)
        out += bias[c, None]

    in_two(moments, pool, scale, slabs(rows, 5))
    return as_images(y, x), mean[:, 0], var[:, 0], (x, mean, inv_std, weight, m)


def batch_norm_backward(dy, cache):
    """Seven passes: two sums, and dx = a·dy + k·(x - mean) + c with three numbers a channel instead of x̂ itself."""
    x, mean, inv_std, weight, m = cache
    grad, rows = as_matrix(dy), as_matrix(x)
    dx = empty(grad.shape, grad.dtype)
    a = weight[:, None] * inv_std
    dweight, dbias = sums = np.empty((2, len(grad)), grad.dtype)

    def products(c):
        out = np.subtract(rows[c], mean[c], out=dx[c])
        dbias[c] = row_sums(grad[c])  # (BN.5)
        dweight[c] = np.vecdot(grad[c], out) * inv_std[c, 0]  # (BN.6)
        return out

    def pool():
        nonlocal sums
        sums = pooled_sums(sums)

    def gradient(c, out):
        all_dweight, all_dbias = sums[:, c, None]
        out *= -a[c] * inv_std[c] * (all_dweight / m)  # (BN.7)
        out += -a[c] * (all_dbias / m)
        out += np.multiply(grad[c], a[c], out=empty(out.shape, out.dtype))

    in_two(products, pool, gradient, slabs(grad, 7))
    return as_images(dx, dy), dweight, dbias


def in_two(first, pool, second, items):
    """For each item `second(item, first(item))`; over several ranks all of the first come first, and then `pool()`."""
    if ranks.size == 1:
        parallel(lambda item: second(item, first(item)), items)
        return
    found = parallel(first, items)
    pool()
    parallel(lambda pair: second(*pair), zip(items, found, strict=True))


def row_sums(rows):
    """The sum of each row (C, M) -> (C,), as a product with ones: BLAS adds twice as fast as np.sum."""
    return rows @ _ones(rows.shape[1], rows.dtype)


@functools.lru_cache(64)
def _ones(count, dtype):
    return np.ones(count, dtype)
