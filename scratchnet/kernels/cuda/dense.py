"""Convolution with a dense kernel on the GPU: the pixels under each window, then one 2-D product a group, by cuBLAS.

CuPy hands a product of two matrices to cuBLAS as it is, transposed ones too, and copies what has more axes: so there is
never more than a matrix here, which is what an activation is (array.py). `device.use_tf32` says how exact the products are.
"""

import math

from scratchnet.device import get_array_module, product
from scratchnet.kernels.cuda.depthwise import geometry_of
from scratchnet.kernels.cuda.launch import blocks, launch
from scratchnet.kernels.cuda.rows import stored_like, widened


def grouped_forward(x, weight, stride, padding, dilation, groups):
    """(CONV.2) in one launch, then one product a group."""
    _, out_shape = geometry_of(x, weight, stride, padding, dilation)
    cols = _im2col(x, weight, stride, padding, dilation)
    matrix = stored_like(weight.reshape(len(weight), -1), x)
    y = _for_each_group(product, groups, matrix, cols)  # (CONV.3)
    return y.reshape(out_shape)


def grouped_backward(dy, x, weight, stride, padding, dilation, groups):
    """Two products a group, then (CONV.7) in one launch."""
    geometry, _ = geometry_of(x, weight, stride, padding, dilation)
    grad, matrix = dy.reshape(len(dy), -1), stored_like(weight.reshape(len(weight), -1), x)
    cols = _im2col(x, weight, stride, padding, dilation)
    dweight = widened(_for_each_group(lambda g, seen: product(g, seen.T), groups, grad, cols))  # (CONV.5)
    dcols = _for_each_group(lambda w, g: product(w.T, g), groups, matrix, grad)  # (CONV.6)
    dx = get_array_module(x).empty_like(x)
    launch("col2im", (), blocks(math.prod(x.shape[1:]), len(x)), dcols, dx, *geometry)
    return dx, dweight.reshape(weight.shape)


def _for_each_group(multiply, groups, *matrices):
    """The rows of the matrices dealt out to the groups, a product of each, one below the other."""
    xp = get_array_module(matrices[0])
    parts = [multiply(*rows) for rows in zip(*(xp.split(matrix, groups) for matrix in matrices), strict=True)]
    return parts[0] if groups == 1 else xp.concatenate(parts)


def _im2col(x, weight, stride, padding, dilation):
    """cols (C·KH·KW, OH·OW·N)."""
    geometry, out_shape = geometry_of(x, weight, stride, padding, dilation)
    per_tap = math.prod(out_shape[1:])
    cols = get_array_module(x).empty((len(x) * math.prod(weight.shape[2:]), per_tap), x.dtype)
    launch("im2col", (), blocks(per_tap, len(x)), x, cols, *geometry)
    return cols
