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
from scratchnet.kernels.compiled.pointwise import apart, centre, product
from scratchnet.parallel.cuts import few_rows

COST = 48  # of a number of z1, in multiply-adds, beside its product's


def front_forward(x, weight1, gamma1, beta1, eps1, weight2, gamma2, beta2, eps2, stride, padding, dilation):
    """Over x as often as there are slabs, in the cache where it is narrow; one pass over z2 and one over y2."""
    y = outputs(x, stride, len(weight1))[0]
    *moments, cache = run_forward(x, (weight1, gamma1, beta1, eps1), (weight2, gamma2, beta2, eps2), stride, flat(y))
    return y, *moments, cache


def front_backward(dy, cache):
    """Two passes over dy and z2, three over the gradient of z1; over x as often as there are slabs, in the cache."""
    none = np.empty((0, 0), dy.dtype)
    return run_backward(flat(dy), none, none, none, cache)


def run_forward(x, first, second, stride, y):
    """Both stages, each (weight, gamma, beta, eps); y2 is written where y (E, M2) has room for it.

    Returns:
        mean and variance of each; the cache for `run_backward`.
    """
    (weight1, gamma1, beta1, eps1), (weight2, gamma2, beta2, eps2) = first, second
    matrix, (centred, mean_x) = np.ascontiguousarray(weight1[:, :, 0, 0]), centre(flat(x))  # (FRONT.1)
    z, (n, step, height2) = outputs(x, stride, len(matrix))
    mean1, var1, inv_std1, mean2, var2, inv_std2 = np.empty((6, len(matrix)), x.dtype)
    one = slabs.Stage(matrix, gamma1, beta1, mean1, inv_std1)
    two = slabs.Stage(taps_of(weight2), gamma2, beta2, mean2, inv_std2)
    sizes = slabs.Sizes(few_rows(len(z), x[0].nbytes), n, step, x.shape[1], height2, x[0].size)
    arrays = centred, one, eps1, var1, two, eps2, var2, sizes, flat(z), y
    scratch = (sizes.few * sizes.m + _ring(x.shape),), x.dtype
    everywhere(slabs.forward, -(-len(z) // sizes.few), _work(matrix, x.shape), blas(x.dtype), *arrays, scratch=scratch)
    kept = x.shape, centred, flat(z), one, two, sizes, weight1.shape, weight2.shape
    return mean1 + matrix @ mean_x, var1, mean2, var2, kept


def run_backward(dy, dz3, matrix3, dmatrix3, cache):
    """dx and the gradients of both stages; with a projection behind it from dz3, and dmatrix3 is written."""
    shape, x, z, one, two, sizes, shape1, shape2 = cache
    dz1 = apart((len(z), sizes.m), z.dtype)
    gradients1, gradients2 = (
        (np.empty_like(stage.weight), np.empty_like(stage.gamma), np.empty_like(stage.beta)) for stage in (one, two)
    )
    arrays = dy, dz3, matrix3, dmatrix3, z, x, one, two, sizes, dz1, gradients1, gradients2
    size = sizes.few * sizes.m + _ring(shape) + (sizes.few * (z.shape[1] + PANEL) if len(matrix3) else 0)
    work = 2 * _work(one.weight, shape) + 2 * matrix3.size * z.shape[1]
    parts, scratch = -(-len(z) // sizes.few), ((size,), z.dtype)
    everywhere(slabs.backward, parts, work, blas(z.dtype), *arrays, scratch=scratch)
    dx = product(one.weight.T, dz1, sizes.m).reshape(shape)  # (FRONT.6)
    (dweight1, *rest1), (dweight2, *rest2) = gradients1, gradients2
    return dx, dweight1.reshape(shape1), *rest1, dweight2.reshape(shape2), *rest2


def _ring(shape):
    """Numbers of three padded rows."""
    return 3 * (shape[2] + 2) * shape[3]


def _work(matrix, shape):
    return math.prod(shape[1:]) * (matrix.size + COST * len(matrix))
