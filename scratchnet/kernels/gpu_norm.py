"""Batch norm, rectifiers, sums and pooling on the GPU: all of it bound by memory, in as few passes as there can be.

Passes over an activation, each a read or a write: batch norm forward 3 (statistics; normalise), backward 5 (two sums from
two arrays; dx from two). With the depthwise convolution in front and the ReLU6 behind (layers/fused_depthwise.py): forward
4, the statistics being taken while the convolution's output is in registers; backward 9, where mask and clip cost nothing
since both are made again from the convolution's output. y is not read at all.
"""

from scratchnet.array import as_images, as_maps, as_matrix, get_array_module
from scratchnet.kernels import register
from scratchnet.kernels.gpu import blocks, is_real, launch, reducing, sum_dtype, vector
from scratchnet.kernels.gpu_conv import geometry_of, input_gradient, weight_gradient, window
from scratchnet.kernels.gpu_rows import (
    norm_gradient,
    normalise,
    parameter_gradients,
    row_statistics,
    rows_gradient,
    statistics,
)


@register("cuda", is_real)
def batch_norm_forward(x, weight, bias, eps):
    """Three passes: statistics, then normalise."""
    rows = as_matrix(x)
    mean, var, inv_std = row_statistics(rows, eps)
    y = normalise(rows, mean, inv_std, weight, bias, clip=False)
    return as_images(y, x), mean, var, (x, mean[:, None], inv_std[:, None], weight)


@register("cuda", lambda dy, cache: is_real(dy))
def batch_norm_backward(dy, cache):
    """Five passes: the two sums, then dx."""
    x, mean, inv_std, weight = cache
    given = as_matrix(dy), as_matrix(x), mean.reshape(-1), inv_std.reshape(-1), weight
    dx, dweight, dbias = norm_gradient(*given, weight, clip=False)  # where nothing is clipped, no bias is read
    return as_images(dx, dy), dweight, dbias


@register("cuda", is_real)
def frozen_batch_norm_forward(x, weight, bias, mean, var, eps):
    """Two passes."""
    inv_std = 1 / (var + eps) ** 0.5
    y = normalise(as_matrix(x), mean, inv_std, weight, bias, clip=False)
    return as_images(y, x), (x, mean[:, None], inv_std[:, None], weight)


@register("cuda", lambda dy, cache: is_real(dy))
def frozen_batch_norm_backward(dy, cache):
    """Five passes: (BN.8) is (BN.7) where both sums are 0."""
    x, mean, inv_std, weight = cache
    given = as_matrix(dy), as_matrix(x), mean.reshape(-1), inv_std.reshape(-1), weight, weight
    none = get_array_module(dy).zeros_like(weight)
    dx = rows_gradient(*given, none, none, clip=False)
    return as_images(dx, dy), *parameter_gradients(*given, clip=False)


@register("cuda", is_real)
def track_statistics(running_mean, running_var, batches, mean, var, momentum, count):
    """One launch."""
    numbers, channels = (momentum, count / (count - 1)), len(mean)  # (BN.9), (BN.10)
    launch("track_statistics", (), blocks(channels), running_mean, running_var, batches, mean, var, *numbers, channels)


@register("cuda", is_real)
def relu6_forward(x):
    """Two passes."""
    rows = as_matrix(x)
    y = get_array_module(x).empty_like(rows)
    flat = rows.size
    v = vector(flat, rows, y)
    launch("relu6_forward", (v,), blocks(flat // v), rows, y, flat)
    y = as_images(y, x)
    return y, y


@register("cuda", lambda dy, cache: is_real(dy))
def relu6_backward(dy, cache):
    """Three passes."""
    grad, y = as_matrix(dy), as_matrix(cache)
    dx = get_array_module(dy).empty_like(grad)
    v = vector(grad.size, grad, y, dx)
    launch("relu6_backward", (v,), blocks(grad.size // v), grad, y, dx, grad.size)
    return as_images(dx, dy)


@register("cuda", lambda a, b: is_real(a) and a.dtype == b.dtype)
def add(a, b):
    """Three passes."""
    left, right = as_matrix(a), as_matrix(b)
    y = get_array_module(a).empty_like(left)
    v = vector(y.size, left, right, y)
    launch("add", (v,), blocks(y.size // v), left, right, y, y.size)
    return as_images(y, a)


@register("cuda", is_real)
def global_avg_pool2d_forward(x):
    """One pass. Of bfloat16 the means are float32, and so is what comes behind."""
    maps = as_maps(x)
    channels, height, width, n = maps.shape
    y = get_array_module(x).empty((channels, 1, 1, n), sum_dtype(x))
    launch("global_pool", (), blocks(n, channels), maps, y, height * width, n)
    return as_images(y), (maps.shape, maps.dtype)


@register("cuda", is_real)
def global_avg_pool2d_backward(dy, cache):
    """One pass."""
    grad, ((channels, height, width, n), dtype) = as_maps(dy), cache
    dx = get_array_module(dy).empty((channels, height, width, n), dtype)
    launch("global_pool_gradient", (), blocks(n, channels), grad, dx, height * width, n, dtype=dtype.name)
    return as_images(dx)


# Depthwise convolution, batch norm, ReLU6 -----------------------------------------------------------------------------


@register("cuda", lambda x, weight, *_: is_real(x) and len(x) == len(weight))
def depthwise_norm_relu6_forward(x, weight, gamma, beta, eps, stride, padding, dilation):
    """Four passes. The cache is its own: it keeps the convolution's output z as it is, with its means."""
    geometry, out_shape = geometry_of(x, weight, stride, padding, dilation)
    xp, per_channel = get_array_module(x), out_shape[1] * out_shape[2] * out_shape[3]
    z, grid = xp.empty(out_shape, x.dtype), reducing(per_channel, len(x))
    parts = xp.empty((len(x), grid[0], 3), sum_dtype(x))
    launch("depthwise_moments", (window(weight),), grid, x, weight, z, parts, *geometry)
    mean, var, inv_std = statistics(parts, eps)  # (DWF.1)
    y = normalise(z.reshape(len(x), -1), mean, inv_std, gamma, beta, clip=True)
    return y.reshape(z.shape), mean, var, (x, weight, z, mean, inv_std, gamma, beta, (stride, padding, dilation))


@register("cuda", lambda dy, cache: is_real(dy) and len(cache) == 8)
def depthwise_norm_relu6_backward(dy, cache):
    """Nine passes: two sums, h, dx, dweight; z and dy serve for the mask as well."""
    x, weight, z, mean, inv_std, gamma, beta, sizes = cache
    grad, rows = dy.reshape(len(dy), -1), z.reshape(len(z), -1)
    h, dgamma, dbeta = norm_gradient(grad, rows, mean, inv_std, gamma, beta, clip=True)  # (DWF.3)-(DWF.5)
    a, h = (gamma * inv_std)[:, None, None, None], h.reshape(dy.shape)
    dx = input_gradient(h, x, a * weight, *sizes)
    return dx, a * weight_gradient(h, x, weight, *sizes), dgamma, dbeta  # (DWF.6)
