"""Depthwise convolution on the GPU: alone, with batch norm and ReLU6, and at inference.

With batch norm and ReLU6 (fused/depthwise.py) forward takes four passes over an activation, the statistics being taken
while the convolution's output is in registers, and backward eight: dx and dweight, from the same two arrays, are one
launch.
"""

import math

from scratchnet.device import get_array_module
from scratchnet.kernels.cuda.activation import shift_and_clip
from scratchnet.kernels.cuda.launch import blocks, launch, reducing, sum_dtype, vector
from scratchnet.kernels.cuda.norm import norm_gradient, normalise, statistics
from scratchnet.kernels.cuda.rows import row_sums_of
from scratchnet.windows import output_size

ROWS = 8  # of a map that a thread slides down: two more are read, mostly from the cache, and there are threads enough
THREADS = 128  # of a block that slides, at most: each has many registers


def depthwise_forward(x, weight, stride, padding, dilation):
    """(CONV.8), two passes: neighbouring taps are read from the cache."""
    y, _ = _convolved(x, weight, stride, padding, dilation, moments=False)
    return y


def depthwise_backward(dy, x, weight, stride, padding, dilation, wants_dweight=True):
    """(CONV.10) and (CONV.9), three passes; six where no thread can slide. One that slides makes dweight on the way."""
    geometry, _ = geometry_of(x, weight, stride, padding, dilation)
    xp, dx = get_array_module(x), get_array_module(x).empty_like(x)
    if slides(weight, stride, dilation):
        v, grid, threads, sizes = sliding(x.shape, dy.shape, x, padding, dy, x, dx)
        parts = xp.empty((len(x), grid[0], 9), sum_dtype(x))
        launch("window_backward", (v, stride[0]), grid, dy, x, weight, dx, parts, *sizes, threads=threads)
    else:
        launch("depthwise_input_gradient", (), blocks(_per_channel(x), len(x)), dy, weight, dx, *geometry)
        grid = reducing(_per_channel(dy), len(x))
        parts = xp.empty((len(x), grid[0], *weight.shape[2:]), sum_dtype(x))
        if wants_dweight:
            launch("depthwise_weight_gradient", (), grid, dy, x, parts, *geometry)
    return dx, row_sums_of(parts).reshape(weight.shape) if wants_dweight else None


def depthwise_relu6(x, weight, bias, stride, padding, dilation):
    """Bias and bounds in place (fused/inference.py)."""
    y = depthwise_forward(x, weight, stride, padding, dilation)
    shift_and_clip(y.reshape(len(y), -1), bias)  # (FOLD.2)
    return y


def depthwise_norm_relu6_forward(x, weight, gamma, beta, eps, stride, padding, dilation):
    """Four passes. Kept is the convolution's output z as it is, with its means."""
    z, (parts,) = _convolved(x, weight, stride, padding, dilation, moments=True)
    mean, var, inv_std, count = statistics(parts, eps, _per_channel(z))  # (DWF.1)
    y = normalise(z.reshape(len(x), -1), mean, inv_std, gamma, beta, clip=True)
    cache = x, weight, z, mean, inv_std, gamma, beta, count, (stride, padding, dilation)
    return y.reshape(z.shape), mean, var, cache


def depthwise_norm_relu6_backward(dy, cache):
    """Eight passes: two sums, dz, then dx and dweight; z and dy serve for the mask as well."""
    x, weight, z, mean, inv_std, gamma, beta, count, sizes = cache
    grad, rows = dy.reshape(len(dy), -1), z.reshape(len(z), -1)
    dz, dgamma, dbeta = norm_gradient(grad, rows, mean, inv_std, gamma, beta, count, clip=True)  # (DWF.3)-(DWF.5)
    return *depthwise_backward(dz.reshape(dy.shape), x, weight, *sizes), dgamma, dbeta


def _convolved(x, weight, stride, padding, dilation, moments):
    """y, and a list: of its moments as a kernel leaves them, (C, blocks, 3), where they are wanted."""
    geometry, out_shape = geometry_of(x, weight, stride, padding, dilation)
    xp, what = get_array_module(x), "moments" if moments else "forward"
    y, slid = xp.empty(out_shape, x.dtype), slides(weight, stride, dilation)
    if slid:
        v, grid, threads, geometry = sliding(out_shape, out_shape, x, padding, x, y)
    else:
        grid = (reducing if moments else blocks)(_per_channel(y), len(x))
    parts = [xp.empty((len(x), grid[0], 3), sum_dtype(x))] if moments else []
    arrays = x, weight, y, *parts
    if slid:
        launch(f"window_{what}", (v, stride[0]), grid, *arrays, *geometry, threads=threads)
    else:
        launch(f"depthwise_{what}", (), grid, *arrays, *geometry)
    return y, parts


def slides(weight, stride, dilation):
    """Whether there is a kernel whose threads slide over this window: 3×3, of stride 1 or 2, without dilation."""
    return weight.shape[2:] == (3, 3) and stride in ((1, 1), (2, 2)) and dilation == (1, 1)


def sliding(over, out_shape, x, padding, *arrays):
    """How such a kernel is launched.

    Args:
        over: shape (C, H, W, N) of the maps down whose columns the threads slide: y forward, x backward.
        out_shape: of y.
        x: (C, H, W, N).
        padding: (h, w).
        arrays: all those with N pictures a pixel.

    Returns:
        How many pictures a thread takes, the grid, a block's threads, and what the kernel takes of sizes.
    """
    channels, h, w, n = over
    v = vector(n, *arrays)
    columns = max(1, math.ceil(h / ROWS) * w * (n // v))
    threads = min(THREADS, 32 * math.ceil(columns / 32))
    return v, (math.ceil(columns / threads), channels), threads, (*x.shape[1:], *out_shape[1:3], *padding, ROWS)


def geometry_of(x, weight, stride, padding, dilation):
    """(what the kernels take of sizes, the shape of y) for x (C, H, W, N) and weight (O, C/groups, KH, KW)."""
    out_size = tuple(map(output_size, x.shape[1:3], weight.shape[2:], stride, padding, dilation))
    sizes = *x.shape[1:], *out_size, *weight.shape[2:], *stride, *padding, *dilation
    return sizes, (len(weight), *out_size, x.shape[3])


def _per_channel(maps):
    return math.prod(maps.shape[1:])
