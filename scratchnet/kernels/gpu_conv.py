"""Convolutions on the GPU: depthwise ones directly, all others as one 2-D matrix product, which cuBLAS computes.

CuPy hands a product of two matrices to cuBLAS as it is, transposed ones too, and copies what has more axes: so there is
never more than a matrix here, which is what an activation is (array.py). `array.use_tf32` says how exact the products are;
the covariance of (FUSE.2) and W K stay in float32 in any case, since a variance comes from them that may be small
beside their largest entries.
"""

import math

from scratchnet.array import as_images, as_matrix, full_precision, get_array_module, is_bfloat16
from scratchnet.kernels import register
from scratchnet.kernels.gpu import blocks, is_real, launch, reducing, sum_dtype, vector
from scratchnet.kernels.gpu_rows import row_statistics, row_sums_of, shift_and_clip, stored_like, widened
from scratchnet.windows import output_size

FOLD_THREADS = 64  # a block that goes over a row of weights, at most some hundred numbers


def geometry_of(x, weight, stride, padding, dilation):
    """(what the kernels take of sizes, the shape of y) for x (C, H, W, N) and weight (O, C/groups, KH, KW)."""
    out_size = tuple(map(output_size, x.shape[1:3], weight.shape[2:], stride, padding, dilation))
    sizes = *x.shape[1:], *out_size, *weight.shape[2:], *stride, *padding, *dilation
    return sizes, (len(weight), *out_size, x.shape[3])


def window(weight):
    """The window's side where there is a kernel for it, else 0."""
    return 3 if weight.shape[2:] == (3, 3) else 0


def _per_channel(maps):
    return math.prod(maps.shape[1:])


# Depthwise ------------------------------------------------------------------------------------------------------------


def _takes(x, weight, *_):
    return is_real(x) and len(x) == len(weight)


@register("cuda", _takes)
def depthwise_forward(x, weight, stride, padding, dilation):
    """(CONV.8), two passes: neighbouring taps are read from the cache."""
    geometry, out_shape = geometry_of(x, weight, stride, padding, dilation)
    y = get_array_module(x).empty(out_shape, x.dtype)
    launch("depthwise_forward", (window(weight),), blocks(_per_channel(y), len(x)), x, weight, y, *geometry)
    return y


@register("cuda", lambda dy, x, *geometry: _takes(x, *geometry))
def depthwise_backward(dy, x, weight, stride, padding, dilation):
    """(CONV.10) and (CONV.9), four passes."""
    sizes = stride, padding, dilation
    return input_gradient(dy, x, weight, *sizes), weight_gradient(dy, x, weight, *sizes)


def input_gradient(dy, x, weight, stride, padding, dilation):
    """Dx (C, H, W, N), every pixel by one thread."""
    geometry, _ = geometry_of(x, weight, stride, padding, dilation)
    dx = get_array_module(x).empty_like(x)
    grid = blocks(_per_channel(x), len(x))
    launch("depthwise_input_gradient", (window(weight),), grid, dy, weight, dx, *geometry)
    return dx


def weight_gradient(dy, x, weight, stride, padding, dilation):
    """Dweight, like weight: the blocks' parts, then their sum."""
    geometry, _ = geometry_of(x, weight, stride, padding, dilation)
    grid = reducing(_per_channel(dy), len(x))
    parts = get_array_module(x).empty((len(x), grid[0], *weight.shape[2:]), sum_dtype(x))
    launch("depthwise_weight_gradient", (9 if window(weight) else 1,), grid, dy, x, parts, *geometry)
    return row_sums_of(parts).reshape(weight.shape)


@register("cuda", lambda x, *geometry: _takes(x, *geometry))
def depthwise_relu6(x, weight, bias, stride, padding, dilation):
    """Bias and bounds in place (layers/folding.py)."""
    y = depthwise_forward(x, weight, stride, padding, dilation)
    shift_and_clip(y.reshape(len(y), -1), bias)  # (FOLD.2)
    return y


# By matrix products ---------------------------------------------------------------------------------------------------


@register("cuda", is_real)
def grouped_forward(x, weight, stride, padding, dilation, groups):
    """(CONV.2) in one launch, then one product a group."""
    _, out_shape = geometry_of(x, weight, stride, padding, dilation)
    cols = _im2col(x, weight, stride, padding, dilation)
    matrix = stored_like(weight.reshape(len(weight), -1), x)
    y = _for_each_group(lambda w, seen: w @ seen, groups, matrix, cols)  # (CONV.3)
    return y.reshape(out_shape)


@register("cuda", lambda dy, *_: is_real(dy))
def grouped_backward(dy, x, weight, stride, padding, dilation, groups):
    """Two products a group, then (CONV.7) in one launch."""
    geometry, _ = geometry_of(x, weight, stride, padding, dilation)
    grad, matrix = dy.reshape(len(dy), -1), stored_like(weight.reshape(len(weight), -1), x)
    cols = _im2col(x, weight, stride, padding, dilation)
    dweight = widened(_for_each_group(lambda g, seen: g @ seen.T, groups, grad, cols))  # (CONV.5)
    dcols = _for_each_group(lambda w, g: w.T @ g, groups, matrix, grad)  # (CONV.6)
    dx = get_array_module(x).empty_like(x)
    launch("col2im", (), blocks(_per_channel(x), len(x)), dcols, dx, *geometry)
    return dx, dweight.reshape(weight.shape)


def _for_each_group(product, groups, *matrices):
    """The rows of the matrices dealt out to the groups, a product of each, one below the other."""
    xp = get_array_module(matrices[0])
    parts = [product(*rows) for rows in zip(*(xp.split(matrix, groups) for matrix in matrices), strict=True)]
    return parts[0] if groups == 1 else xp.concatenate(parts)


def _im2col(x, weight, stride, padding, dilation):
    """Cols (C·KH·KW, OH·OW·N)."""
    geometry, out_shape = geometry_of(x, weight, stride, padding, dilation)
    per_tap = math.prod(out_shape[1:])
    cols = get_array_module(x).empty((len(x) * math.prod(weight.shape[2:]), per_tap), x.dtype)
    launch("im2col", (), blocks(per_tap, len(x)), x, cols, *geometry)
    return cols


@register("cuda", is_real)
def clipped_product(centred, scaled, beta):
    """The product of (FUSE.5), and a pass over it in place."""
    y = stored_like(scaled, centred) @ centred
    shift_and_clip(y, beta)
    return y


# A 1×1 convolution, batch norm, ReLU6 (layers/fused.py) ----------------------------------------------------------------


@register("cuda", lambda x, *_: is_real(x) and not is_bfloat16(x))
def conv_norm_relu6_forward(x, weight, gamma, beta, eps):
    """Over the wide array three passes, over the narrow one six: three products, five kernels."""
    xp, rows, matrix = get_array_module(x), as_matrix(x), weight.reshape(len(weight), -1)
    mean_x, _, _ = row_statistics(rows, eps)
    channels, m = rows.shape
    centred = xp.empty_like(rows)
    v = vector(m, rows, centred)
    launch("subtract_mean", (v,), blocks(m // v, channels), rows, mean_x, centred, m)  # (FUSE.1)
    with full_precision(xp):
        mixed = matrix @ (centred @ centred.T)  # (FUSE.2), but for the 1/M, which fold_norm brings in
    mean, var, inv_std = (xp.empty(len(matrix), x.dtype) for _ in range(3))
    scaled = xp.empty_like(matrix)
    saved = mean, var, inv_std, scaled
    launch(
        "fold_norm", (), (1, len(matrix)), matrix, mixed, mean_x, gamma, *saved, eps, channels, m, threads=FOLD_THREADS
    )  # (FUSE.3), (FUSE.4)
    y = clipped_product(centred, scaled, beta)  # (FUSE.5)
    return as_images(y, x), mean, var, (y, centred, mixed, matrix, scaled, gamma, inv_std[:, None])


@register("cuda", lambda dy, cache: is_real(dy) and not is_bfloat16(dy))
def conv_norm_relu6_backward(dy, cache):
    """Over the wide arrays five passes: mask and sum, and two products with the masked gradient."""
    y, centred, mixed, matrix, scaled, gamma, inv_std = cache
    xp, grad, (channels, m) = get_array_module(dy), as_matrix(dy), centred.shape
    g = xp.empty_like(grad)
    v = vector(m, grad, y, g)
    grid = reducing(m // v, len(grad))
    parts = xp.empty((len(grad), grid[0]), dy.dtype)
    launch("mask_rows", (v,), grid, grad, y, g, parts, m)  # (FUSE.6)
    dbeta = row_sums_of(parts)  # (FUSE.7)
    products, dx = g @ centred.T, scaled.T @ g  # (FUSE.8), and the first term of (FUSE.11)
    dweight, through = xp.empty_like(matrix), xp.empty_like(matrix)
    dgamma, column = xp.empty_like(gamma), xp.empty_like(gamma)
    given, made = (matrix, mixed, products, gamma, inv_std.reshape(-1), dbeta), (dweight, dgamma, through, column)
    launch("unfold_norm", (), (1, len(matrix)), *given, *made, channels, m, threads=FOLD_THREADS)  # (FUSE.9), (FUSE.10)
    wide, shift = (matrix.T @ through) @ centred, matrix.T @ column
    v = vector(m, dx, wide)
    launch("subtract_rows", (v,), blocks(m // v, channels), dx, wide, shift, m)  # (FUSE.11)
    return as_images(dx, dy), dweight.reshape(*matrix.shape, 1, 1), dgamma, dbeta
