"""Depthwise 3×3 convolution, padding 1, stride 1 or 2, compiled: alone, with batch norm and ReLU6, and at inference.

Arrays are (C, H, W·N): a row of pixels is W·N numbers and the next column N numbers further (array.py), so that one loop
goes over all of a row's columns and pictures (convolve.py). With batch norm and ReLU6 (fused/depthwise.py) a channel goes
through all three while it is in the cache. Forward keeps z; backward goes over dy and z once for the two sums and once for
h, which is made a row at a time and never stored.
"""

import numpy as np

from scratchnet.kernels.compiled.convolve import SUMS, convolve, convolve_back
from scratchnet.kernels.compiled.jit import SIX, ZERO, bare, everywhere, jit, take, told
from scratchnet.kernels.compiled.norm import clipped, clipped_sums
from scratchnet.kernels.cpu.buffers import empty
from scratchnet.parallel import ranks

COST = 32  # of a number of x, in multiply-adds (`jit.everywhere`)


def depthwise_forward(x, weight, stride, padding, dilation):
    """One pass."""
    z, sizes = outputs(x, stride)
    arrays = rows(x), taps_of(weight), *sizes, flat(z), *np.empty((2, len(x)), x.dtype)
    everywhere(_forward, len(x), x.size * COST, *arrays, scratch=ring_of(x))
    return z


def depthwise_backward(dy, x, weight, stride, padding, dilation, wants_dweight=True):
    """One pass, in which dweight is made on the way."""
    dx, dweight = empty(x.shape, x.dtype), np.empty((len(x), 9), x.dtype)
    arrays = flat(dy), rows(x), taps_of(weight), x.shape[3], stride[0], dy.shape[1], rows(dx), dweight
    everywhere(_backward, len(x), x.size * COST, *arrays, scratch=ring_of(x))
    return dx, dweight.reshape(weight.shape) if wants_dweight else None


def depthwise_norm_relu6_forward(x, weight, gamma, beta, eps, stride, padding, dilation):
    """The convolution and its moments; y."""
    (z, sizes), y = outputs(x, stride), outputs(x, stride)[0]
    mean, var = np.empty((2, len(x)), x.dtype)
    arrays = rows(x), taps_of(weight), *sizes, flat(z), mean, var
    everywhere(_forward, len(x), x.size * COST, *arrays, scratch=ring_of(x))
    mean, var, count = ranks.pooled_moments(mean, var, z[0].size)
    inv_std = clipped(flat(z), mean, var, gamma, beta, eps, flat(y))
    return y, mean, var, (x, weight, z, gamma, beta, mean, inv_std, count, stride[0])


def depthwise_norm_relu6_backward(dy, cache):
    """Two passes over dy and z, one over x and dx."""
    x, weight, z, gamma, beta, mean, inv_std, count, stride = cache
    dx, dweight = empty(x.shape, x.dtype), np.empty((len(x), 9), x.dtype)
    dgamma, dbeta = clipped_sums(flat(dy), flat(z), mean, inv_std, gamma, beta)
    pooled = ranks.pooled_sums(dgamma, dbeta)
    kept = flat(z), rows(x), taps_of(weight), x.shape[3], stride, z.shape[1], gamma, beta, mean, inv_std
    arrays = flat(dy), *kept, x.dtype.type(count), *pooled, rows(dx), dweight
    everywhere(_norm_relu6_backward, len(x), x.size * COST, *arrays, scratch=ring_of(x))
    return dx, dweight.reshape(weight.shape), dgamma, dbeta


def depthwise_relu6(x, weight, bias, stride, padding, dilation):
    """One pass (fused/inference.py)."""
    y, sizes = outputs(x, stride)
    arrays = rows(x), taps_of(weight), *sizes, bias, flat(y)
    everywhere(_relu6, len(x), x.size * COST, *arrays, scratch=ring_of(x))
    return y


def outputs(x, stride, channels=None):
    """An array for the convolution's output, and what the loops have to know: N, the stride, OH."""
    height, width = ((size - 1) // stride[0] + 1 for size in x.shape[1:3])
    shape = channels or len(x), height, width, x.shape[3]
    return empty(shape, x.dtype), (x.shape[3], stride[0], height)


def ring_of(x):
    """Three padded rows, for a thread."""
    return (3, (x.shape[2] + 2) * x.shape[3]), x.dtype


def rows(maps):
    """(C, H, W, N) -> (C, H, W·N)."""
    return maps.reshape(*maps.shape[:2], -1)


def flat(maps):
    """(C, H, W, N) -> (C, H·W·N)."""
    return maps.reshape(len(maps), -1)


def taps_of(weight):
    """(C, 1, 3, 3) -> (C, 9)."""
    return np.ascontiguousarray(weight).reshape(len(weight), 9)


@jit
def _forward(counter, x, weight, n, stride, height, z, mean, var, ring):
    """The convolution, and the moments of what it puts out."""
    x, weight, z, ring = bare(x), bare(weight), bare(z), bare(ring)
    c = take(counter)
    while c < len(z):
        none = ZERO * weight[c, 0]
        mean[c], var[c] = convolve(x[c], (told(False), none, none, none), weight[c], n, stride, height, ring, z[c])
        c = take(counter)


@jit
def _relu6(counter, x, weight, n, stride, height, bias, y, ring):
    """The convolution, a bias and the bounds."""
    x, weight, y, ring = bare(x), bare(weight), bare(y), bare(ring)
    c = take(counter)
    while c < len(y):
        none = ZERO * weight[c, 0]
        convolve(x[c], (told(False), none, none, none), weight[c], n, stride, height, ring, y[c])
        row, b = y[c], bias[c]
        for i in range(row.size):
            row[i] = min(max(row[i] + b, ZERO), SIX)  # (FOLD.2)
        c = take(counter)


@jit
def _backward(counter, dy, x, weight, n, stride, height, dx, dweight, ring):
    """Dx and dweight of the convolution alone."""
    dy, x, weight, dx, dweight, ring = bare(dy), bare(x), bare(weight), bare(dx), bare(dweight), bare(ring)
    total = np.empty(SUMS)
    c = take(counter)
    while c < len(dx):
        none = ZERO * weight[c, 0]
        before, behind = (told(False), none, none, none), (told(False), none, none, none, none, none)
        total[:] = 0.0
        convolve_back(dy[c], dy[c], behind, x[c], before, weight[c], n, stride, height, ring, dx[c], total)
        for k in range(9):
            dweight[c, k] = total[k]
        c = take(counter)


@jit
def _norm_relu6_backward(
    counter, dy, z, x, weight, n, stride, height, gamma, beta, mean, inv_std, count, dgamma, dbeta, dx, dweight, ring
):
    """Dx and dweight, with dgamma and dbeta known."""
    dy, z, x, weight, dx, dweight, ring = bare(dy), bare(z), bare(x), bare(weight), bare(dx), bare(dweight), bare(ring)
    total = np.empty(SUMS)
    c = take(counter)
    while c < len(dx):
        none = ZERO * weight[c, 0]
        a = gamma[c] * inv_std[c]
        behind = told(True), mean[c], a, beta[c], dbeta[c] / count, inv_std[c] * dgamma[c] / count
        total[:] = 0.0
        convolve_back(
            dy[c],
            z[c],
            behind,
            x[c],
            (told(False), none, none, none),
            weight[c] * a,
            n,
            stride,
            height,
            ring,
            dx[c],
            total,
        )
        for k in range(9):
            dweight[c, k] = total[k] * a  # (DWF.6)
        c = take(counter)
