"""Convolution with a dense kernel on the GPU: the pixels under each window, then one 2-D product a group, by cuBLAS.

There is never more than a matrix here, which is what an activation is (array.py): cuBLAS takes it as it is, transposed
ones too. `device.use_tf32` says how exact the products are. The classifier's products are at the end.
"""

import math

from scratchnet.array import as_images, as_matrix
from scratchnet.device import get_array_module
from scratchnet.kernels.cuda.depthwise import geometry_of
from scratchnet.kernels.cuda.launch import blocks, launch, sum_dtype
from scratchnet.kernels.cuda.products import product
from scratchnet.kernels.cuda.rows import stored_like


def grouped_forward(x, weight, stride, padding, dilation, groups):
    """(CONV.2) in one launch, then one product a group."""
    _, out_shape = geometry_of(x, weight, stride, padding, dilation)
    cols = _im2col(x, weight, stride, padding, dilation)
    matrix = stored_like(weight.reshape(len(weight), -1), x)
    y = _for_each_group(product, groups, matrix, cols)  # (CONV.3)
    return y.reshape(out_shape)


def grouped_backward(dy, x, weight, stride, padding, dilation, groups, wants_dweight=True):
    """Two products a group, then (CONV.7) in one launch."""
    geometry, _ = geometry_of(x, weight, stride, padding, dilation)
    grad, matrix = dy.reshape(len(dy), -1), stored_like(weight.reshape(len(weight), -1), x)
    dweight = None
    if wants_dweight:
        cols = _im2col(x, weight, stride, padding, dilation)
        dweight = _for_each_group(
            lambda g, seen: product(g, seen.T, dtype=sum_dtype(x)), groups, grad, cols
        )  # (CONV.5)
        dweight = dweight.reshape(weight.shape)
    dcols = _for_each_group(lambda w, g: product(w.T, g), groups, matrix, grad)  # (CONV.6)
    dx = get_array_module(x).empty_like(x)
    launch("col2im", (), blocks(math.prod(x.shape[1:]), len(x)), dcols, dx, *geometry)
    return dx, dweight


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


# A picture with one pixel (layers/linear.py) ----------------------------------------------------------------------------


def linear_forward(x, weight, bias):
    """(LIN.1)."""
    columns = as_matrix(x)  # (N, F) -> (F, N)
    y = product(weight, columns)
    if bias is not None:
        y += bias[:, None]
    return as_images(y), (columns, weight, bias is not None)


def linear_backward(dy, cache, wants=(True, True)):
    """(LIN.2) to (LIN.4)."""
    columns, weight, has_bias = cache
    grad = as_matrix(dy)  # (N, O) -> (O, N)
    dbias = grad.sum(axis=1) if has_bias and wants[1] else None
    return as_images(product(weight.T, grad)), product(grad, columns.T) if wants[0] else None, dbias
