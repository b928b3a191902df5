"""Batch norm, compiled (layers/norm.py): two passes each way, a channel at a time."""

import numpy as np

from scratchnet.array import as_images, as_matrix
from scratchnet.kernels.compiled.jit import ZERO, bare, everywhere, jit, take
from scratchnet.kernels.compiled.rows import combine, moments, products, scale, scale_add
from scratchnet.kernels.cpu.buffers import empty

COST = 12  # of a number, in multiply-adds (`jit.everywhere`)


def batch_norm_forward(x, weight, bias, eps):
    """Sums of differences and of their squares; y."""
    y, mean, var, inv_std = norm_add(as_matrix(x), weight, bias, eps)
    return as_images(y, x), mean, var, (x, mean, inv_std, weight)


def batch_norm_backward(dy, cache):
    """Two sums; dx."""
    return _back(dy, cache, False)


def frozen_batch_norm_forward(x, weight, bias, mean, var, eps):
    """One pass."""
    rows = as_matrix(x)
    y, inv_std = empty(rows.shape, rows.dtype), 1 / (var + eps) ** 0.5
    arrays = rows, weight, bias, mean, inv_std, y
    everywhere(_frozen_forward, len(rows), rows.size * COST // 3, *arrays)
    return as_images(y, x), (x, mean, inv_std, weight)


def frozen_batch_norm_backward(dy, cache):
    """Two sums; dx."""
    return _back(dy, cache, True)


def norm_add(x, weight, bias, eps, other=None):
    """Batch norm of x (C, M), and what is added to it: y, mean, variance, 1/√(variance + eps)."""
    y, (mean, var, inv_std) = empty(x.shape, x.dtype), np.empty((3, len(x)), x.dtype)
    arrays = x, weight, bias, eps, other is not None, y if other is None else other, y, mean, var, inv_std
    everywhere(_forward, len(x), x.size * COST, *arrays)
    return y, mean, var, inv_std


def norm_back(dy, x, weight, mean, inv_std, dx, frozen=False):
    """Write dx of (C, M) into an array that may have more columns; dweight and dbias."""
    dweight, dbias = np.empty((2, len(x)), x.dtype)
    arrays = dy, x, weight, mean, inv_std, x.dtype.type(x.shape[1]), frozen, dx, dweight, dbias
    everywhere(_backward, len(x), x.size * COST, *arrays)
    return dweight, dbias


def _back(dy, cache, frozen):
    x, mean, inv_std, weight = cache
    grad = as_matrix(dy)
    dx = empty(grad.shape, grad.dtype)
    return as_images(dx, dy), *norm_back(grad, as_matrix(x), weight, mean, inv_std, dx, frozen)


@jit
def _forward(counter, x, weight, bias, eps, adds, other, y, mean, var, inv_std):
    x, other, y = bare(x), bare(other), bare(y)
    c = take(counter)
    while c < len(x):
        mean[c], var[c] = moments(x[c])  # (BN.1), (BN.2)
        inv_std[c] = 1.0 / np.sqrt(var[c] + eps)
        if adds:
            scale_add(x[c], mean[c], weight[c] * inv_std[c], bias[c], other[c], y[c])  # (PROJ.2)
        else:
            scale(x[c], mean[c], weight[c] * inv_std[c], bias[c], y[c])  # (BN.3), (BN.4)
        c = take(counter)


@jit
def _frozen_forward(counter, x, weight, bias, mean, inv_std, y):
    x, y = bare(x), bare(y)
    c = take(counter)
    while c < len(x):
        scale(x[c], mean[c], weight[c] * inv_std[c], bias[c], y[c])  # (BN.3), (BN.4)
        c = take(counter)


@jit
def _backward(counter, dy, x, weight, mean, inv_std, count, frozen, dx, dweight, dbias):
    dy, x, dx = bare(dy), bare(x), bare(dx)
    c = take(counter)
    while c < len(x):
        out = dx[c, : x.shape[1]]
        s, q = products(dy[c], x[c], mean[c])
        dbias[c] = s  # (BN.5)
        dweight[c] = q * inv_std[c]  # (BN.6)
        a = weight[c] * inv_std[c]
        if frozen:
            scale(dy[c], ZERO, a, ZERO, out)  # (BN.8)
        else:
            through_mean, through_var = dbias[c] / count, inv_std[c] * dweight[c] / count
            combine(dy[c], x[c], mean[c], a, through_mean, through_var, out)  # (BN.7)
        c = take(counter)
