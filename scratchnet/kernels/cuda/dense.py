"""Convolution with a dense kernel on the GPU: the pixels under each window, then one 2-D product a group, by cuBLAS.

There is never more than a matrix here, which is what an activation is (array.py): cuBLAS takes it as it is, transposed
ones too. `device.use_tf32` says how exact the products are. With batch norm and ReLU6 (fused/dense.py) their passes are
those of norm.py. The classifier's products are at the end.
"""

import math

from scratchnet.array import as_images, as_matrix
from scratchnet.device import get_array_module
from scratchnet.kernels.cuda.depthwise import geometry_of
from scratchnet.kernels.cuda.launch import blocks, launch, sum_dtype
from scratchnet.kernels.cuda.norm import norm_gradient, normalise, row_statistics
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


def dense_norm_relu6_forward(x, weight, gamma, beta, eps, stride, padding, dilation):
    """The convolution's output is made and kept; three passes over it."""
    z = grouped_forward(x, weight, stride, padding, dilation, 1)  # (STEM.1)
    rows = z.reshape(len(z), -1)
    mean, var, inv_std, count = row_statistics(rows, eps)  # (STEM.2)
    saved = mean, inv_std, gamma, beta
    y = normalise(rows, *saved, clip=True)  # (STEM.3)
    return y.reshape(z.shape), mean, var, (x, weight, rows, saved, count, (stride, padding, dilation))


def dense_norm_relu6_backward(dy, cache):
    """Five passes, then those of the convolution's own backward."""
    x, weight, rows, (mean, inv_std, gamma, beta), count, (stride, padding, dilation) = cache
    grad = dy.reshape(rows.shape)
    dz, dgamma, dbeta = norm_gradient(grad, rows, mean, inv_std, gamma, beta, count, clip=True)  # (STEM.4)-(STEM.6)
    dx, dweight = grouped_backward(dz.reshape(dy.shape), x, weight, stride, padding, dilation, 1)
    return dx, dweight, dgamma, dbeta


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
