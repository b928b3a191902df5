"""A convolution with few terms in its sums, such as the network's stem, compiled: alone, and with batch norm and ReLU6.

As in kernels/cpu/dense.py the pixels that a few outputs read (CONV.2) are copied side by side, multiplied, and never leave
the inner cache. The loops are in strips.py. Rows of the output are cut into PARTS, whatever their number; each part adds up
dweight and dx by itself, and what the parts have is added in order.
"""

import numpy as np

from scratchnet.kernels.compiled import strips as loops
from scratchnet.kernels.compiled.blas import WITHOUT_PACKING, blas
from scratchnet.kernels.compiled.depthwise import flat, rows
from scratchnet.kernels.compiled.jit import everywhere
from scratchnet.kernels.compiled.norm import clipped, clipped_sums, moments_of
from scratchnet.kernels.cpu.buffers import empty
from scratchnet.parallel import ranks
from scratchnet.windows import output_size

PARTS = 8
STRIP = 1024  # numbers of a row of the output that are made at a time
COST = 12  # of a number that is gone over, in multiply-adds (`jit.everywhere`)


def grouped_forward(x, weight, stride, padding, dilation, groups):
    """(CONV.3), a strip at a time."""
    plan = _Cut(x, weight, stride, padding, dilation)
    z = plan.outputs()
    _convolve(plan, x, weight, z)
    return z


def grouped_backward(dy, x, weight, stride, padding, dilation, groups, wants_dweight=True):
    """(CONV.5) to (CONV.7), a strip at a time, whose cols serve both: where no dweight is wanted, it is thrown away."""
    plan = _Cut(x, weight, stride, padding, dilation)
    norm = np.zeros((len(weight), 5), x.dtype)
    dx, dweight = _differentiate(plan, dy, dy, norm, False, x, weight)
    return dx, dweight if wants_dweight else None


def dense_norm_relu6_forward(x, weight, gamma, beta, eps, stride, padding, dilation):
    """The convolution; its moments; y."""
    plan = _Cut(x, weight, stride, padding, dilation)
    z, y = plan.outputs(), plan.outputs()
    _convolve(plan, x, weight, z)  # (STEM.1)
    mean, var = moments_of(flat(z))
    mean, var, count = ranks.pooled_moments(mean, var, z[0].size)
    inv_std = clipped(flat(z), mean, var, gamma, beta, eps, flat(y))
    return y, mean, var, (x, weight, z, gamma, beta, mean, inv_std, count, (stride, padding, dilation))


def dense_norm_relu6_backward(dy, cache):
    """Two sums a channel; then dweight and dx, with h made a strip at a time."""
    x, weight, z, gamma, beta, mean, inv_std, count, (stride, padding, dilation) = cache
    dgamma, dbeta = clipped_sums(flat(dy), flat(z), mean, inv_std, gamma, beta)
    all_dgamma, all_dbeta = ranks.pooled_sums(dgamma, dbeta)
    a, m = gamma * inv_std, x.dtype.type(count)
    norm = np.stack([mean, a, beta, all_dbeta / m, inv_std * all_dgamma / m], axis=1)  # what h is made with (STEM.6)
    plan, scales = _Cut(x, weight, stride, padding, dilation), a.reshape(-1, 1, 1, 1)
    dx, products = _differentiate(plan, dy, z, norm, True, x, scales * weight)
    return dx, scales * products, dgamma, dbeta  # (STEM.7)


class _Cut:
    """How a convolution is cut into parts and strips."""

    def __init__(self, x, weight, stride, padding, dilation):
        height, width = map(output_size, x.shape[1:3], weight.shape[2:], stride, padding, dilation)
        n, terms = x.shape[3], weight[0].size
        self.shape, self.dtype = (len(weight), height, width, n), x.dtype
        self.geometry = *weight.shape[2:], *stride, *padding, *dilation, x.shape[2], width, n
        self.parts, self.terms = min(PARTS, height), terms
        self.pixels = max(1, min(STRIP, WITHOUT_PACKING // weight.size) // n)  # in a strip
        self.work = height * width * n * (weight.size + COST * (terms + len(weight)))

    def outputs(self):
        """An array for the output."""
        return empty(self.shape, self.dtype)

    def scratch(self, count):
        """So many rows of a strip, for a thread."""
        return (count, self.pixels * self.shape[3]), self.dtype


def _convolve(plan, x, weight, z):
    """Write z."""
    arrays = blas(x.dtype), rows(x), _matrix(weight), plan.geometry, plan.pixels, z.shape[1], flat(z), plan.parts
    everywhere(loops.forward, plan.parts, plan.work, *arrays, scratch=plan.scratch(plan.terms + len(z)))


def _differentiate(plan, dy, z, norm, fused, x, weight):
    """Dx, and the sums for dweight."""
    matrix, height = _matrix(weight), dy.shape[1]
    dmatrix = np.empty((plan.parts, *matrix.shape), x.dtype)
    dx = empty(x.shape, x.dtype)
    apart = empty((plan.parts if plan.parts > 1 else 0, *x.shape[:2], x[0, 0].size), x.dtype)
    kept = rows(x), np.ascontiguousarray(matrix.T), plan.geometry, plan.pixels, height
    arrays = (
        blas(x.dtype),
        flat(dy),
        flat(z),
        norm,
        fused,
        *kept,
        rows(dx)[None] if plan.parts == 1 else apart,
        dmatrix,
    )
    scratch = plan.scratch(plan.terms + len(matrix))
    everywhere(loops.backward, plan.parts, 2 * plan.work, *arrays, scratch=scratch)
    if plan.parts > 1:
        everywhere(loops.gather, x.shape[1], dx.size * COST, apart, plan.geometry, height, rows(dx))
    return dx, dmatrix.sum(axis=0).reshape(weight.shape)


def _matrix(weight):
    return np.ascontiguousarray(weight).reshape(len(weight), -1)  # (O, C, KH, KW) -> (O, K)
