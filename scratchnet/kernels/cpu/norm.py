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
    own_mean, own_var, inv_std = np.empty((3, len(rows), 1), rows.dtype)

    def moments(c):
        own_mean[c, 0] = row_sums(rows[c]) / m  # (BN.1)
        out = np.subtract(rows[c], own_mean[c], out=y[c])
        own_var[c, 0] = np.vecdot(out, out) / m  # (BN.2)
        return out

    def scale(c, out, pooled):
        mean, var, _ = pooled
        inv_std[c] = 1 / (var[c] + eps) ** 0.5
        if mean is not own_mean:
            out += own_mean[c] - mean[c]
        out *= weight[c, None] * inv_std[c]  # (BN.3), (BN.4)
        out += bias[c, None]

    mean, var, count = in_two(moments, lambda: pooled_moments(own_mean, own_var, m), scale, slabs(rows, 5))
    return as_images(y, x), mean[:, 0], var[:, 0], (x, mean, inv_std, weight, count)


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

    def gradient(c, out, pooled):
        all_dweight, all_dbias = pooled[:, c, None]
        out *= -a[c] * inv_std[c] * (all_dweight / m)  # (BN.7)
        out += -a[c] * (all_dbias / m)
        out += np.multiply(grad[c], a[c], out=empty(out.shape, out.dtype))

    in_two(products, lambda: pooled_sums(sums), gradient, slabs(grad, 7))
    return as_images(dx, dy), dweight, dbias


def in_two(first, pool, second, items):
    """For each item `second(item, first(item), pooled)`, and `pooled`: what `pool()` gives, of all ranks.

    For one rank that is the very arrays which `first` writes, an item at a time. Over several all of the first come first.
    """
    if ranks.size == 1:
        pooled = pool()
        parallel(lambda item: second(item, first(item), pooled), items)
        return pooled
    found = parallel(first, items)
    pooled = pool()
    parallel(lambda pair: second(*pair, pooled), zip(items, found, strict=True))
    return pooled


def row_sums(rows):
    """The sum of each row (C, M) -> (C,), as a product with ones: BLAS adds twice as fast as np.sum."""
    return rows @ _ones(rows.shape[1], rows.dtype)


@functools.lru_cache(64)
def _ones(count, dtype):
    return np.ones(count, dtype)
