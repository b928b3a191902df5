"""Batch norm, compiled (layers/norm.py): two passes each way, a channel at a time; with and without ReLU6 behind it.

Where the sums are over ranks too (parallel/ranks.py), the channels' own sums are taken first, all of them, and exchanged;
the loop that uses them is told that it need not take them (`known`).
"""

import numpy as np

from scratchnet.array import as_images, as_matrix
from scratchnet.kernels.compiled.jit import ZERO, bare, everywhere, jit, take
from scratchnet.kernels.compiled.rows import combine, masked_sums, moments, products, scale, scale_add, scale_and_clip
from scratchnet.kernels.cpu.buffers import empty
from scratchnet.parallel import ranks

COST = 12  # of a number, in multiply-adds (`jit.everywhere`)


def batch_norm_forward(x, weight, bias, eps):
    """Sums of differences and of their squares; y."""
    y, mean, var, *kept = norm_add(as_matrix(x), weight, bias, eps)
    return as_images(y, x), mean, var, (x, mean, *kept, weight)


def batch_norm_backward(dy, cache):
    """Two sums; dx."""
    return _back(dy, *cache)


def frozen_batch_norm_forward(x, weight, bias, mean, var, eps):
    """One pass."""
    rows = as_matrix(x)
    y, inv_std = empty(rows.shape, rows.dtype), 1 / (var + eps) ** 0.5
    arrays = rows, weight, bias, mean, inv_std, y
    everywhere(_frozen_forward, len(rows), rows.size * COST // 3, *arrays)
    return as_images(y, x), (x, mean, inv_std, weight)


def frozen_batch_norm_backward(dy, cache):
    """Two sums; dx."""
    x, mean, inv_std, weight = cache
    return _back(dy, x, mean, inv_std, 0, weight)


def norm_add(x, weight, bias, eps, other=None):
    """Batch norm of x (C, M), and what is added to it: y; mean, variance, 1/√(variance + eps), and how many are a row's."""
    known, count = ranks.pools(), x.shape[1]
    y, (mean, var, inv_std) = empty(x.shape, x.dtype), np.empty((3, len(x)), x.dtype)
    if known:
        mean, var = moments_of(x)
        mean, var, count = ranks.pooled_moments(mean, var, count)
    arrays = x, weight, bias, eps, known, other is not None, y if other is None else other, y, mean, var, inv_std
    everywhere(_forward, len(x), x.size * COST, *arrays)
    return y, mean, var, inv_std, count


def norm_back(dy, x, weight, mean, inv_std, count, dx):
    """Write dx of (C, M) into an array that may have more columns; dweight and dbias. A count of 0: frozen statistics."""
    dweight, dbias = sums = np.empty((2, len(x)), x.dtype)
    known, pooled = count > 0 and ranks.pools(), sums
    if known:
        everywhere(_sums, len(x), x.size * COST, dy, x, mean, inv_std, dweight, dbias)
        pooled = ranks.pooled_sums(dweight, dbias)
    arrays = dy, x, weight, mean, inv_std, x.dtype.type(count), known, *pooled, dx, dweight, dbias
    everywhere(_backward, len(x), x.size * COST, *arrays)
    return dweight, dbias


def _back(dy, x, mean, inv_std, count, weight):
    grad = as_matrix(dy)
    dx = empty(grad.shape, grad.dtype)
    return as_images(dx, dy), *norm_back(grad, as_matrix(x), weight, mean, inv_std, count, dx)


def moments_of(z):
    """Mean and biased variance of each row (C, M)."""
    mean, var = np.empty((2, len(z)), z.dtype)
    everywhere(_moments, len(z), z.size * COST, z, mean, var)
    return mean, var


def clipped(z, mean, var, gamma, beta, eps, y):
    """Write batch norm and ReLU6 of z (C, M) into y; 1/√(variance + eps)."""
    inv_std = np.empty_like(mean)
    everywhere(_clipped, len(z), z.size * COST, z, mean, var, gamma, beta, eps, y, inv_std)
    return inv_std


def clipped_sums(dy, z, mean, inv_std, gamma, beta):
    """dgamma and dbeta of batch norm with ReLU6 behind it."""
    dgamma, dbeta = np.empty((2, len(z)), z.dtype)
    everywhere(_clipped_sums, len(z), z.size * COST, dy, z, mean, inv_std, gamma, beta, dgamma, dbeta)
    return dgamma, dbeta


@jit
def _moments(counter, x, mean, var):
    x = bare(x)
    c = take(counter)
    while c < len(x):
        mean[c], var[c] = moments(x[c])  # (BN.1), (BN.2)
        c = take(counter)


@jit
def _forward(counter, x, weight, bias, eps, known, adds, other, y, mean, var, inv_std):
    x, other, y = bare(x), bare(other), bare(y)
    c = take(counter)
    while c < len(x):
        if not known:
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
def _sums(counter, dy, x, mean, inv_std, dweight, dbias):
    dy, x = bare(dy), bare(x)
    c = take(counter)
    while c < len(x):
        s, q = products(dy[c], x[c], mean[c])
        dbias[c] = s  # (BN.5)
        dweight[c] = q * inv_std[c]  # (BN.6)
        c = take(counter)


@jit
def _backward(counter, dy, x, weight, mean, inv_std, count, known, all_dweight, all_dbias, dx, dweight, dbias):
    dy, x, dx = bare(dy), bare(x), bare(dx)
    c = take(counter)
    while c < len(x):
        out = dx[c, : x.shape[1]]
        if not known:  # then what is of all ranks is what is made here
            s, q = products(dy[c], x[c], mean[c])
            dbias[c] = s  # (BN.5)
            dweight[c] = q * inv_std[c]  # (BN.6)
        a = weight[c] * inv_std[c]
        if count == ZERO:
            scale(dy[c], ZERO, a, ZERO, out)  # (BN.8)
        else:
            through_mean, through_var = all_dbias[c] / count, inv_std[c] * all_dweight[c] / count
            combine(dy[c], x[c], mean[c], a, through_mean, through_var, out)  # (BN.7)
        c = take(counter)


# With ReLU6 behind it -------------------------------------------------------------------------------------------------


@jit
def _clipped(counter, z, mean, var, gamma, beta, eps, y, inv_std):
    z, y = bare(z), bare(y)
    c = take(counter)
    while c < len(z):
        inv_std[c] = 1.0 / np.sqrt(var[c] + eps)  # (DWF.1), (STEM.2)
        scale_and_clip(z[c], mean[c], gamma[c] * inv_std[c], beta[c], y[c])  # (DWF.2), (STEM.3)
        c = take(counter)


@jit
def _clipped_sums(counter, dy, z, mean, inv_std, gamma, beta, dgamma, dbeta):
    dy, z = bare(dy), bare(z)
    c = take(counter)
    while c < len(z):
        s, q = masked_sums(dy[c], z[c], mean[c], gamma[c] * inv_std[c], beta[c])
        dbeta[c] = s
        dgamma[c] = inv_std[c] * q  # (DWF.4), (STEM.5)
        c = take(counter)
