"""Depthwise convolution on the GPU: alone, with batch norm and ReLU6, and at inference.

With batch norm and ReLU6 (fused/depthwise.py) forward takes four passes over an activation, the statistics being taken
while the convolution's output is in registers, and backward nine.
"""

import math

from scratchnet.device import get_array_module
from scratchnet.kernels.cuda.activation import shift_and_clip
from scratchnet.kernels.cuda.launch import blocks, launch, reducing, sum_dtype
from scratchnet.kernels.cuda.norm import norm_gradient, normalise, statistics
from scratchnet.kernels.cuda.rows import row_sums_of
from scratchnet.windows import output_size


def depthwise_forward(x, weight, stride, padding, dilation):
    """(CONV.8), two passes: neighbouring taps are read from the cache."""
    geometry, out_shape = geometry_of(x, weight, stride, padding, dilation)
    y = get_array_module(x).empty(out_shape, x.dtype)
    launch("depthwise_forward", (window_of(weight),), blocks(_per_channel(y), len(x)), x, weight, y, *geometry)
    return y


def depthwise_backward(dy, x, weight, stride, padding, dilation):
    """(CONV.10) and (CONV.9), four passes."""
    sizes = stride, padding, dilation
    return input_gradient(dy, x, weight, *sizes), weight_gradient(dy, x, weight, *sizes)


def input_gradient(dy, x, weight, stride, padding, dilation):
    """dx (C, H, W, N), every pixel by one thread."""
    geometry, _ = geometry_of(x, weight, stride, padding, dilation)
    dx = get_array_module(x).empty_like(x)
    grid = blocks(_per_channel(x), len(x))
    launch("depthwise_input_gradient", (window_of(weight),), grid, dy, weight, dx, *geometry)
    return dx


def weight_gradient(dy, x, weight, stride, padding, dilation):
    """dweight, like weight: the blocks' parts, then their sum."""
    geometry, _ = geometry_of(x, weight, stride, padding, dilation)
    grid = reducing(_per_channel(dy), len(x))
    parts = get_array_module(x).empty((len(x), grid[0], *weight.shape[2:]), sum_dtype(x))
    launch("depthwise_weight_gradient", (9 if window_of(weight) else 1,), grid, dy, x, parts, *geometry)
    return row_sums_of(parts).reshape(weight.shape)


def depthwise_relu6(x, weight, bias, stride, padding, dilation):
    """Bias and bounds in place (fused/inference.py)."""
    y = depthwise_forward(x, weight, stride, padding, dilation)
    shift_and_clip(y.reshape(len(y), -1), bias)  # (FOLD.2)
    return y


def depthwise_norm_relu6_forward(x, weight, gamma, beta, eps, stride, padding, dilation):
    """Four passes. Kept is the convolution's output z as it is, with its means."""
    geometry, out_shape = geometry_of(x, weight, stride, padding, dilation)
    xp, per_channel = get_array_module(x), out_shape[1] * out_shape[2] * out_shape[3]
    z, grid = xp.empty(out_shape, x.dtype), reducing(per_channel, len(x))
    parts = xp.empty((len(x), grid[0], 3), sum_dtype(x))
    launch("depthwise_moments", (window_of(weight),), grid, x, weight, z, parts, *geometry)
    mean, var, inv_std, count = statistics(parts, eps, per_channel)  # (DWF.1)
    y = normalise(z.reshape(len(x), -1), mean, inv_std, gamma, beta, clip=True)
    cache = x, weight, z, mean, inv_std, gamma, beta, count, (stride, padding, dilation)
    return y.reshape(z.shape), mean, var, cache


def depthwise_norm_relu6_backward(dy, cache):
    """Nine passes: two sums, h, dx, dweight; z and dy serve for the mask as well."""
    x, weight, z, mean, inv_std, gamma, beta, count, sizes = cache
    grad, rows = dy.reshape(len(dy), -1), z.reshape(len(z), -1)
    h, dgamma, dbeta = norm_gradient(grad, rows, mean, inv_std, gamma, beta, count, clip=True)  # (DWF.3)-(DWF.5)
    a, h = (gamma * inv_std)[:, None, None, None], h.reshape(dy.shape)
    dx = input_gradient(h, x, a * weight, *sizes)
    return dx, a * weight_gradient(h, x, weight, *sizes), dgamma, dbeta  # (DWF.6)


def geometry_of(x, weight, stride, padding, dilation):
    """(what the kernels take of sizes, the shape of y) for x (C, H, W, N) and weight (O, C/groups, KH, KW)."""
    out_size = tuple(map(output_size, x.shape[1:3], weight.shape[2:], stride, padding, dilation))
    sizes = *x.shape[1:], *out_size, *weight.shape[2:], *stride, *padding, *dilation
    return sizes, (len(weight), *out_size, x.shape[3])


def window_of(weight):
    """The window's side where there is a kernel for it, else 0."""
    return 3 if weight.shape[2:] == (3, 3) else 0


def _per_channel(maps):
    return math.prod(maps.shape[1:])
