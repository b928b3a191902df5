"""The front of a block, compiled: 1×1 expansion, batch norm, ReLU6, depthwise 3×3, batch norm, ReLU6 (fused/front.py).

A few channels of the expansion at a time (a slab): their z1 is one matrix product, stays in the cache while the channels go
through the other five layers, and is gone before the next slab comes. Nothing as wide as the expansion goes over memory in
forward; in backward one array does, the gradient of z1, on its way to the product that makes dx of it.
"""

import math

import numpy as np

from scratchnet.kernels.compiled import slabs
from scratchnet.kernels.compiled.blas import PANEL, blas
from scratchnet.kernels.compiled.depthwise import flat, outputs, taps_of
from scratchnet.kernels.compiled.jit import everywhere
from scratchnet.kernels.compiled.norm import clipped, moments_of
from scratchnet.kernels.compiled.pointwise import apart, centre, gram, less, moments_behind, product
from scratchnet.kernels.cpu.buffers import empty
from scratchnet.kernels.cpu.pointwise import ALIKE
from scratchnet.parallel import ranks
from scratchnet.parallel.cuts import few_rows

COST = 48  # of a number of z1, in multiply-adds, beside its product's


def front_forward(x, weight1, gamma1, beta1, eps1, weight2, gamma2, beta2, eps2, stride, padding, dilation):
    """Over x as often as there are slabs, in the cache where it is narrow; over z2 two passes, over y2 one."""
    first, second = (weight1, gamma1, beta1, eps1), (weight2, gamma2, beta2, eps2)
    mean1, var1, mean2, var2, cache = run_forward(x, first, second, stride)
    y, z2 = outputs(x, stride, len(weight1))[0], cache[2]
    clipped(z2, mean2, var2, gamma2, beta2, eps2, flat(y))  # (DWF.2)
    return y, mean1, var1, mean2, var2, cache


def front_backward(dy, cache):
    """Two passes over dy and z2, three over the gradient of z1; over x as often as there are slabs, in the cache."""
    none = np.empty((0, 0), dy.dtype)
    return run_backward(flat(dy), none, none, none, cache)


def run_forward(x, first, second, stride):
    """Both stages, each (weight, gamma, beta, eps).

    Returns:
        mean and variance of each; the cache for `run_backward`, whose third is z2.
    """
    (weight1, gamma1, beta1, eps1), (weight2, gamma2, beta2, eps2) = first, second
    matrix, (centred, mean_x) = np.ascontiguousarray(weight1[:, :, 0, 0]), centre(flat(x))  # (FRONT.1)
    z, (n, step, height2) = outputs(x, stride, len(matrix))
    sizes = slabs.Sizes(few_rows(len(z), x[0].nbytes), n, step, x.shape[1], height2, x[0].size)
    mean1, var1, inv_std1, mean2, var2 = np.empty((5, len(matrix)), x.dtype)
    known, mixed, count1 = ranks.pools(), None, sizes.m
    if known:
        mean1, var1, mixed = _moments_ahead(centred, matrix, sizes.m)
        tracked1, mean1, var1, count1 = moments_behind(matrix, mean_x, mean1, var1, sizes.m)
    one = slabs.Stage(matrix, gamma1, beta1, mean1, inv_std1)
    two = slabs.Stage(taps_of(weight2), gamma2, beta2, mean2, np.empty_like(mean2))
    arrays = centred, known, one, eps1, var1, two, var2, sizes, flat(z)
    scratch = (sizes.few * sizes.m + _ring(x.shape),), x.dtype
    everywhere(slabs.forward, -(-len(z) // sizes.few), _work(matrix, x.shape), blas(x.dtype), *arrays, scratch=scratch)
    if not known:
        tracked1 = mean1 + matrix @ mean_x
    mean2, var2, count2 = ranks.pooled_moments(mean2, var2, z[0].size)
    two = two._replace(mean=mean2, inv_std=1 / np.sqrt(var2 + eps2))  # (DWF.1)
    counts = np.array([count1, count2], x.dtype)
    kept = x.shape, centred, flat(z), one, two, sizes, weight1.shape, weight2.shape, counts, (mean_x, mixed)
    return tracked1, var1, mean2, var2, kept


def run_backward(dy, dz3, matrix3, dmatrix3, cache):
    """dx and the gradients of both stages; with a projection behind it from dz3, and dmatrix3 is written."""
    shape, x, z, one, two, sizes, shape1, shape2, counts, (mean_x, mixed) = cache
    dz1, none = apart((len(z), sizes.m), z.dtype), np.empty((0, 0), z.dtype)
    sums1, sums2 = (slabs.Sums(*map(np.empty_like, (stage.weight, stage.gamma, stage.beta))) for stage in (one, two))
    parts, work = -(-len(z) // sizes.few), 2 * _work(one.weight, shape) + 2 * matrix3.size * z.shape[1]
    found, own = blas(z.dtype), sizes.few * sizes.m + _ring(shape)
    panel = sizes.few * PANEL if len(matrix3) else 0
    if mixed is None:
        arrays = dy, dz3, matrix3, dmatrix3, z, x, one, two, sizes, counts, dz1, sums1, sums2
        scratch = (own + panel + (sizes.few * z.shape[1] if len(matrix3) else 0),), z.dtype
        everywhere(slabs.backward, parts, work, found, *arrays, scratch=scratch)
        dweight1, dx = sums1.weight, product(one.weight.T, dz1, sizes.m)  # (FRONT.6)
    else:
        dys = empty(z.shape, z.dtype) if len(matrix3) else dy
        behind = dz3, matrix3, dmatrix3, z, two, sizes, dys, sums2
        everywhere(slabs.behind, parts, work, found, *behind, scratch=((own + panel,), z.dtype))
        all2 = slabs.Sums(none, *ranks.pooled_sums(sums2.gamma, sums2.beta))
        front = dys, z, x, one, two, sizes, counts, all2, dz1, sums1, sums2
        everywhere(slabs.front, parts, work, found, *front, scratch=((own,), z.dtype))
        all1 = slabs.Sums(none, *ranks.pooled_sums(sums1.gamma, sums1.beta))
        dweight1, dx = _from_g(dz1, x, one, sizes.m, counts[0], sums1, all1, mean_x, mixed)
    dx = dx.reshape(shape)
    return dx, dweight1.reshape(shape1), *sums1[1:], sums2.weight.reshape(shape2), *sums2[1:]


def _moments_ahead(centred, matrix, m):
    """Mean and variance of this rank's Z1 before it is made, from the covariance of X (FUSE.3); and W K of (FUSE.2).

    Where channels of x are nearly alike that has too few digits, as kernels/cpu/pointwise.py explains: then Z1 is made.
    """
    covariance = gram(centred, m) / m
    mixed = matrix @ covariance
    var = np.vecdot(mixed, matrix)
    alike = abs(matrix) @ np.sqrt(covariance.diagonal())
    if (var >= ALIKE / len(covariance) * alike**2).all():
        return np.zeros_like(var), var, mixed
    return *moments_of(product(matrix, centred, m)), mixed


def _from_g(g, x, one, m, count, sums, pooled, mean_x, mixed):
    """dweight and dx of the expansion from g, as in fused/pointwise.py: dz1 = a (g - dβ/M - (z1 - μ1) s dγ/M) is not made.

    With Xc of this rank's own mean x̄, z1 - μ1 is W Xc less a number a channel, which makes a third term of (FUSE.11); and
    the rows of dz1 sum to 0 over all ranks only, so that X is not Xc in dW = dZ1 Xᵀ: what dz1 sums to here comes back.
    """
    a, through_mean = one.gamma * one.inv_std, pooled.beta / count
    through_var = one.inv_std * pooled.gamma / count
    dweight = a[:, None] * (sums.weight - (m * through_var)[:, None] * mixed)  # (FUSE.10)
    rest = sums.beta - m * (through_mean - one.mean * through_var)  # Σ dz1 / a on this rank, where Σ W Xc = 0
    dweight += np.outer(a * rest, mean_x)
    scaled = a[:, None] * one.weight
    mix = one.weight.T @ (through_var[:, None] * scaled)
    shift = scaled.T @ (through_mean - one.mean * through_var)
    dx = product(scaled.T, g, m)
    return dweight, less(dx, product(mix, x, m), shift)  # (FUSE.11)


def _ring(shape):
    """Numbers of three padded rows."""
    return 3 * (shape[2] + 2) * shape[3]


def _work(matrix, shape):
    return math.prod(shape[1:]) * (matrix.size + COST * len(matrix))
