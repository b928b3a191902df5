"""The front of a block, compiled: 1×1 expansion, batch norm, ReLU6, depthwise 3×3, batch norm, ReLU6 (fused/front.py).

A few channels of the expansion at a time (a slab): their z1 is one matrix product, stays in the cache while the channels go
through the other five layers, and is gone before the next slab comes. Nothing as wide as the expansion goes over memory in
forward; in backward one array does, the gradient of z1, on its way to the product that makes dx of it.
"""

import math

import numpy as np

from scratchnet.kernels.compiled.blas import PANEL, blas, multiply, multiply_transposed
from scratchnet.kernels.compiled.convolve import convolve, convolve_back
from scratchnet.kernels.compiled.depthwise import SUMS, flat, outputs, ring_of, taps_of
from scratchnet.kernels.compiled.jit import bare, everywhere, jit, take, told
from scratchnet.kernels.compiled.pointwise import apart, centre, product
from scratchnet.kernels.compiled.rows import combine, masked_sums, moments, scale_and_clip
from scratchnet.parallel.cuts import few_rows

COST = 48  # of a number of z1, in multiply-adds, beside its product's


def front_forward(x, weight1, gamma1, beta1, eps1, weight2, gamma2, beta2, eps2, stride, padding, dilation):
    """Over x as often as there are slabs, in the cache where it is narrow; one pass over z2 and one over y2."""
    matrix, (centred, mean_x) = np.ascontiguousarray(weight1[:, :, 0, 0]), centre(flat(x))  # (FRONT.1)
    (z, sizes), y = outputs(x, stride, len(matrix)), outputs(x, stride, len(matrix))[0]
    statistics, few = np.empty((6, len(matrix)), x.dtype), few_rows(len(matrix), x[0].nbytes)
    arrays = centred, matrix, gamma1, beta1, eps1, taps_of(weight2), *sizes
    arrays += gamma2, beta2, eps2, flat(z), flat(y), statistics, few, x.shape[1], x[0].size
    everywhere(_forward, -(-len(z) // few), _work(matrix, x), blas(x.dtype), *arrays, scratch=_scratch(x, few))
    mean1, var1, inv_std1, mean2, var2, inv_std2 = statistics
    cache = (
        x.shape,
        centred,
        weight1,
        gamma1,
        beta1,
        mean1,
        inv_std1,
        weight2,
        z,
        gamma2,
        beta2,
        mean2,
        inv_std2,
        stride[0],
    )
    return y, mean1 + matrix @ mean_x, var1, mean2, var2, cache


def front_backward(dy, cache):
    """Two passes over dy and z2, three over the gradient of z1; over x as often as there are slabs, in the cache."""
    shape, x, weight1, gamma1, beta1, mean1, inv_std1, weight2, z, gamma2, beta2, mean2, inv_std2, stride = cache
    m, matrix = math.prod(shape[1:]), np.ascontiguousarray(weight1[:, :, 0, 0])
    few, dz1, dmatrix = few_rows(len(z), m * x.itemsize), apart(len(z), m, x.dtype), np.empty_like(matrix)
    dweight2, (dgamma1, dbeta1, dgamma2, dbeta2) = np.empty((len(z), 9), x.dtype), np.empty((4, len(z)), x.dtype)
    first = x, matrix, gamma1, beta1, mean1, inv_std1
    second = taps_of(weight2), shape[3], stride, z.shape[1], gamma2, beta2, mean2, inv_std2
    results = dz1, dmatrix, dgamma1, dbeta1, dweight2, dgamma2, dbeta2
    arrays, like = (flat(dy), flat(z), *first, *second, *results, few, shape[1], m), np.broadcast_to(x[0, 0], shape)
    everywhere(
        _backward, -(-len(z) // few), 2 * _work(matrix, like), blas(x.dtype), *arrays, scratch=_scratch(like, few)
    )
    dx = product(matrix.T, dz1, m).reshape(shape)  # (FRONT.6)
    return dx, dmatrix.reshape(weight1.shape), dgamma1, dbeta1, dweight2.reshape(weight2.shape), dgamma2, dbeta2


def _scratch(x, few):
    """For a thread: a slab of z1, and three padded rows."""
    (ring, width), dtype = ring_of(x)
    return (few * x[0].size + ring * width,), dtype


def _work(matrix, x):
    return x[0].size * (matrix.size + COST * len(matrix))


@jit
def _forward(
    counter, found, x, weight1, gamma1, beta1, eps1, weight2, n, stride, height2, gamma2, beta2, eps2, z, y, statistics,
    few, height, m, scratch,
):  # fmt: skip
    x, weight1, weight2, z, y, scratch = bare(x), bare(weight1), bare(weight2), bare(z), bare(y), bare(scratch)
    slab, ring = scratch[: few * m].reshape(few, m), scratch[few * m :].reshape(3, -1)
    mean1, var1, inv_std1, mean2, var2, inv_std2 = statistics
    first = take(counter) * few
    while first < len(weight1):
        last = min(first + few, len(weight1))
        multiply(found, weight1[first:last], x[:, :m], slab[: last - first], False)  # (FRONT.1)
        for c in range(first, last):
            z1 = slab[c - first]
            mean1[c], var1[c] = moments(z1)  # (BN.1), (BN.2)
            inv_std1[c] = 1.0 / np.sqrt(var1[c] + eps1)
            before = told(True), mean1[c], gamma1[c] * inv_std1[c], beta1[c]  # (FRONT.2)
            mean2[c], var2[c] = convolve(
                z1.reshape(height, -1), before, weight2[c], n, stride, height2, ring, z[c]
            )  # (CONV.8)
            inv_std2[c] = 1.0 / np.sqrt(var2[c] + eps2)  # (DWF.1)
            scale_and_clip(z[c], mean2[c], gamma2[c] * inv_std2[c], beta2[c], y[c])  # (DWF.2)
        first = take(counter) * few


@jit
def _backward(
    counter, found, dy, z, x, weight1, gamma1, beta1, mean1, inv_std1, weight2, n, stride, height2, gamma2, beta2, mean2,
    inv_std2, dz1, dweight1, dgamma1, dbeta1, dweight2, dgamma2, dbeta2, few, height, m, scratch,
):  # fmt: skip
    dy, z, x, weight1, weight2 = bare(dy), bare(z), bare(x), bare(weight1), bare(weight2)
    dz1, dweight1, dweight2, scratch = bare(dz1), bare(dweight1), bare(dweight2), bare(scratch)
    total = np.empty(SUMS)
    slab, ring = scratch[: few * m].reshape(few, m), scratch[few * m :].reshape(3, -1)
    count1, count2 = x.dtype.type(m), x.dtype.type(z.shape[1])
    columns = PANEL
    first = take(counter) * few
    while first < len(weight1):
        last = min(first + few, len(weight1))
        multiply(found, weight1[first:last], x[:, :m], slab[: last - first], False)  # (FRONT.1) again
        for c in range(first, last):
            a = gamma2[c] * inv_std2[c]
            s, q = masked_sums(dy[c], z[c], mean2[c], a, beta2[c])
            dbeta2[c] = s
            dgamma2[c] = inv_std2[c] * q  # (DWF.4)
            behind = told(True), mean2[c], a, beta2[c], dbeta2[c] / count2, inv_std2[c] * dgamma2[c] / count2
            before = told(True), mean1[c], gamma1[c] * inv_std1[c], beta1[c]
            z1, g = slab[c - first].reshape(height, -1), dz1[c, :m].reshape(height, -1)
            total[:] = 0.0
            convolve_back(dy[c], z[c], behind, z1, before, weight2[c] * a, n, stride, height2, ring, g, total)
            for k in range(9):
                dweight2[c, k] = total[k] * a  # (DWF.6)
            dbeta1[c] = total[9]
            dgamma1[c] = inv_std1[c] * total[10]  # (FRONT.4)
        for k in range(0, m, columns):
            end = min(k + columns, m)
            for c in range(first, last):
                g, through_mean, through_var = dz1[c, k:end], dbeta1[c] / count1, inv_std1[c] * dgamma1[c] / count1
                combine(g, slab[c - first, k:end], mean1[c], gamma1[c] * inv_std1[c], through_mean, through_var, g)
            multiply_transposed(found, dz1[first:last, k:end], x[:, k:end], dweight1[first:last], k > 0)  # (FRONT.5)
        first = take(counter) * few
