"""Depthwise convolution on the CPU, a few channels at a time: alone, with batch norm and ReLU6, and at inference.

With batch norm and ReLU6 (fused/depthwise.py) a slab goes through all three while it is in the cache: eight passes
forward, counted with the convolution's one, and ten and the two convolutions backward. The three layers by themselves
take eleven and fourteen, fetch the array from memory for each layer and write it back.

Measured, ns an element that enters, forward + backward, two threads, against the three layers in slabs of 8 MiB: 32×32 6.2
(9.2), 32×32 stride 2 2.5 (3.1), 16×16 5.3 (7.4), 8×8 4.8 (6.2), 4×4 4.1 (4.8); 1 MiB and 8 MiB are no faster than 2 MiB.
"""

import numpy as np

from scratchnet.kernels.cpu.activation import masked
from scratchnet.kernels.cpu.buffers import empty
from scratchnet.kernels.cpu.convolve import convolve, convolve_back, geometry_of, weight_gradient
from scratchnet.kernels.cpu.norm import in_two, row_sums
from scratchnet.parallel.cuts import slabs
from scratchnet.parallel.ranks import pooled_moments, pooled_sums
from scratchnet.parallel.threads import parallel

PASSES = 8  # over x, in the time that a convolution takes
FEW_COLUMNS = 16  # of a single picture, up to which it is convolved tap by tap


def depthwise_forward(x, weight, stride, padding, dilation):
    """A slab of channels at a time."""
    geometry = geometry_of(x.shape[1:3], weight.shape[2:], stride, padding, dilation)
    y = empty((len(x), *geometry.out_size, x.shape[3]), x.dtype)
    parallel(lambda c: convolve(y[c], x[c], weight[c], geometry), slabs(x, PASSES))
    return y


def depthwise_backward(dy, x, weight, stride, padding, dilation, wants_dweight=True):
    """A slab of channels at a time."""
    geometry = geometry_of(x.shape[1:3], weight.shape[2:], stride, padding, dilation)
    dx, dweight = empty(x.shape, x.dtype), np.empty_like(weight)

    def slab(c):
        convolve_back(dx[c], dy[c], weight[c], geometry)
        if wants_dweight:
            dweight[c] = weight_gradient(dy[c], x[c], weight[c], geometry)

    parallel(slab, slabs(x, 2 * PASSES))
    return dx, dweight if wants_dweight else None


def depthwise_norm_relu6_forward(x, weight, gamma, beta, eps, stride, padding, dilation):
    """A slab of channels at a time; z is centred in place."""
    geometry = geometry_of(x.shape[1:3], weight.shape[2:], stride, padding, dilation)
    z = empty((len(x), *geometry.out_size, x.shape[3]), x.dtype)
    centred, y = z.reshape(len(x), -1), empty((len(x), z[0].size), x.dtype)
    own_mean, own_var, inv_std = np.empty((3, len(x), 1), x.dtype)
    m = centred.shape[1]

    def moments(c):
        convolve(z[c], x[c], weight[c], geometry)
        rows = centred[c]
        own_mean[c, 0] = row_sums(rows) / m
        rows -= own_mean[c]
        own_var[c, 0] = np.vecdot(rows, rows) / m
        return rows

    def scale(c, rows, pooled):
        mean, var, _ = pooled
        inv_std[c] = 1 / (var[c] + eps) ** 0.5  # (DWF.1)
        if mean is not own_mean:
            rows += own_mean[c] - mean[c]
        out = np.multiply(rows, gamma[c, None] * inv_std[c], out=y[c])
        out += beta[c, None]
        np.clip(out, 0, 6, out=out)  # (DWF.2)

    mean, var, count = in_two(moments, lambda: pooled_moments(own_mean, own_var, m), scale, slabs(x, PASSES))
    cache = x, weight, centred, y, gamma, inv_std, count, (stride, padding, dilation)
    return y.reshape(z.shape), mean[:, 0], var[:, 0], cache


def depthwise_norm_relu6_backward(dy, cache):
    """A slab at a time; h is all that is made."""
    x, weight, centred, y, gamma, inv_std, m, sizes = cache
    geometry = geometry_of(x.shape[1:3], weight.shape[2:], *sizes)
    grad = dy.reshape(centred.shape)
    scale = gamma[:, None] * inv_std
    scaled = scale[:, :, None, None] * weight
    dx, dweight = empty(x.shape, x.dtype), np.empty_like(weight)
    dgamma, dbeta = sums = np.empty((2, len(x)), x.dtype)

    def products(c):
        h = masked(grad[c], y[c])  # (DWF.3)
        dbeta[c] = row_sums(h)
        dgamma[c] = np.vecdot(h, centred[c]) * inv_std[c, 0]  # (DWF.4)
        return h

    def gradient(c, h, pooled):
        all_dgamma, all_dbeta = pooled[:, c, None]
        part = np.multiply(centred[c], inv_std[c] * (all_dgamma / -m), out=empty(h.shape, x.dtype))
        part += all_dbeta / -m
        h += part  # (DWF.5)
        maps = h.reshape(dy[c].shape)
        convolve_back(dx[c], maps, scaled[c], geometry)
        dweight[c] = weight_gradient(maps, x[c], weight[c], geometry)

    in_two(products, lambda: pooled_sums(sums), gradient, slabs(x, PASSES))
    dweight *= scale[:, :, None, None]  # (DWF.6)
    return dx, dweight, dgamma, dbeta


def depthwise_relu6(x, weight, bias, stride, padding, dilation):
    """A slab at a time; bias and bounds in place (fused/inference.py)."""
    geometry = geometry_of(x.shape[1:3], weight.shape[2:], stride, padding, dilation)
    y = empty((len(x), *geometry.out_size, x.shape[3]), x.dtype)
    one_picture = x.shape[3] == 1 and x.shape[2] <= FEW_COLUMNS

    def slab(c):
        rows = y[c].reshape(len(y[c]), -1)
        if one_picture:
            rows.T[...] = _channels_last(x[c], weight[c], geometry)
        else:
            convolve(y[c], x[c], weight[c], geometry)
        rows += bias[c, None]
        np.clip(rows, 0, 6, out=rows)  # (FOLD.2)

    parallel(slab, slabs(x, PASSES))
    return y


def _channels_last(x, weight, geometry):
    """The convolution of one picture (C, H, W, 1), tap by tap (CONV.8), as a matrix (OH·OW, C).

    A product with a single column is no product: with the channels last, a tap is a multiplication of long rows. Measured
    for one picture, ms: 16×16, 192 channels 0.33 (as products 0.50); 8×8, 576: 0.20 (0.47); 4×4, 960: 0.11 (0.20).
    """
    pixels = np.ascontiguousarray(x[..., 0].transpose(1, 2, 0))  # (C, H, W) -> (H, W, C)
    taps = np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0))
    y = np.zeros((*geometry.out_size, len(x)), x.dtype)
    for i, out_rows, in_rows in geometry.row_moves:
        for j, to, seen in geometry.moves:
            y[out_rows, to] += pixels[in_rows, seen] * taps[i, j]
    return y.reshape(-1, len(x))
