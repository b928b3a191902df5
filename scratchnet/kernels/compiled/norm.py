"""Batch norm, compiled (layers/norm.py): forward three passes, backward two, a channel at a time."""

import numpy as np

from scratchnet.array import as_images, as_matrix
from scratchnet.kernels.compiled.jit import BLOCK, ZERO, bare, channels, jit
from scratchnet.kernels.cpu.buffers import empty
from scratchnet.parallel.threads import parallel

COST = 12  # of a number, in multiply-adds (`jit.channels`)


def batch_norm_forward(x, weight, bias, eps):
    """Sum; sums of differences and of their squares; y."""
    rows = as_matrix(x)
    y, (mean, var, inv_std) = empty(rows.shape, rows.dtype), np.empty((3, len(rows)), rows.dtype)
    eps, count = rows.dtype.type(eps), rows.dtype.type(rows.shape[1])
    arrays = rows, weight, bias, eps, count, y, mean, var, inv_std
    parallel(lambda part: _forward(*arrays, *part), channels(rows, COST))
    return as_images(y, x), mean, var, (x, mean, inv_std, weight)


def batch_norm_backward(dy, cache):
    """Two sums; dx."""
    return _back(dy, cache, False)


def frozen_batch_norm_forward(x, weight, bias, mean, var, eps):
    """One pass."""
    rows = as_matrix(x)
    y, inv_std = empty(rows.shape, rows.dtype), 1 / (var + eps) ** 0.5
    arrays = rows, weight, bias, mean, inv_std, y
    parallel(lambda part: _frozen_forward(*arrays, *part), channels(rows, COST // 3))
    return as_images(y, x), (x, mean, inv_std, weight)


def frozen_batch_norm_backward(dy, cache):
    """Two sums; dx."""
    return _back(dy, cache, True)


def _back(dy, cache, frozen):
    x, mean, inv_std, weight = cache
    grad, rows = as_matrix(dy), as_matrix(x)
    dx, (dweight, dbias) = empty(grad.shape, grad.dtype), np.empty((2, len(grad)), grad.dtype)
    arrays = grad, rows, weight, mean, inv_std, grad.dtype.type(grad.shape[1]), frozen, dx, dweight, dbias
    parallel(lambda part: _backward(*arrays, *part), channels(grad, COST))
    return as_images(dx, dy), dweight, dbias


@jit
def _forward(x, weight, bias, eps, count, y, mean, var, inv_std, first, end):
    x, y = bare(x), bare(y)
    for c in range(first, end):
        mean[c] = _sums(x[c], ZERO)[0] / count  # (BN.1)
        s, q = _sums(x[c], mean[c])
        shift = s / count  # what rounding has left of the mean
        mean[c] += shift
        var[c] = max(q / count - shift * shift, 0.0)  # (BN.2)
        inv_std[c] = 1.0 / np.sqrt(var[c] + eps)
        _scale(x[c], mean[c], weight[c] * inv_std[c], bias[c], y[c])  # (BN.3), (BN.4)


@jit
def _frozen_forward(x, weight, bias, mean, inv_std, y, first, end):
    x, y = bare(x), bare(y)
    for c in range(first, end):
        _scale(x[c], mean[c], weight[c] * inv_std[c], bias[c], y[c])  # (BN.3), (BN.4)


@jit
def _backward(dy, x, weight, mean, inv_std, count, frozen, dx, dweight, dbias, first, end):
    dy, x, dx = bare(dy), bare(x), bare(dx)
    for c in range(first, end):
        s, q = _products(dy[c], x[c], mean[c])
        dbias[c] = s  # (BN.5)
        dweight[c] = q * inv_std[c]  # (BN.6)
        a = weight[c] * inv_std[c]
        if frozen:
            _scale(dy[c], ZERO, a, ZERO, dx[c])  # (BN.8)
        else:
            through_mean, through_var = dbias[c] / count, inv_std[c] * dweight[c] / count
            _combine(dy[c], x[c], mean[c], a, through_mean, through_var, dx[c])  # (BN.7)


# Rows -----------------------------------------------------------------------------------------------------------------


@jit
def _sums(x, centre):
    """Σ (x - centre) and Σ (x - centre)²."""
    s = q = 0.0
    for k in range(0, x.size, BLOCK):
        part = x[k : k + BLOCK]
        t = u = ZERO
        for i in range(part.size):
            d = part[i] - centre
            t += d
            u += d * d
        s += t
        q += u
    return s, q


@jit
def _products(dy, x, mean):
    """Σ dy and Σ dy (x - mean)."""
    s = q = 0.0
    for k in range(0, x.size, BLOCK):
        grad, part = dy[k : k + BLOCK], x[k : k + BLOCK]
        t = u = ZERO
        for i in range(part.size):
            t += grad[i]
            u += grad[i] * (part[i] - mean)
        s += t
        q += u
    return s, q


@jit
def _scale(x, mean, a, bias, y):
    for i in range(x.size):
        y[i] = a * (x[i] - mean) + bias


@jit
def _combine(dy, x, mean, a, through_mean, through_var, dx):
    for i in range(x.size):
        dx[i] = a * (dy[i] - through_mean - (x[i] - mean) * through_var)
