"""1×1 convolutions, compiled: by themselves, with batch norm and a shortcut, and with batch norm and ReLU6.

Products are cut so that a call of BLAS has its factors in the inner cache (blas.py): y by panels of columns, what is summed
over columns by a few rows at a time. Each part of a result is computed by one thread, in one order.
"""

import numpy as np

from scratchnet.array import as_images, as_matrix
from scratchnet.kernels.compiled.blas import PANEL, blas, multiply, multiply_transposed
from scratchnet.kernels.compiled.jit import ONE, ZERO, bare, everywhere, jit, take
from scratchnet.kernels.compiled.norm import clipped, clipped_sums, norm_add, norm_back
from scratchnet.kernels.compiled.rows import copy, masked_gradient, moments, place, scale, subtract
from scratchnet.kernels.cpu.buffers import empty
from scratchnet.parallel import ranks
from scratchnet.parallel.cuts import few_rows

PANEL_BYTES = 1 << 18
PASSES = 24  # over a row of a result, in multiply-adds


def pointwise_forward(x, weight, stride):
    """W @ X, a panel of columns at a time."""
    seen = np.ascontiguousarray(x[:, :: stride[0], :: stride[1]])
    y = product(weight[:, :, 0, 0], seen.reshape(len(x), -1))
    return y.reshape(-1, *seen.shape[1:])


def pointwise_backward(dy, x, weight, stride, wants_dweight=True):
    """dW = dY @ X.T, a few rows at a time; dX = W.T @ dY, a panel of columns at a time."""
    seen = x[:, :: stride[0], :: stride[1]]
    grad, dweight = np.ascontiguousarray(dy).reshape(len(dy), -1), None
    if wants_dweight:
        dmatrix = np.empty(weight.shape[:2], dy.dtype)
        few, arrays = (
            few_rows(len(grad), grad[0].nbytes),
            (grad, np.ascontiguousarray(seen).reshape(len(x), -1), dmatrix),
        )
        everywhere(_weight_gradient, -(-len(grad) // few), grad.size * len(x), blas(x.dtype), *arrays, few)
        dweight = dmatrix[:, :, None, None]
    dx = product(weight[:, :, 0, 0].T, grad).reshape(seen.shape)
    if stride != (1, 1):
        dx, dseen = np.zeros_like(x), dx
        dx[:, :: stride[0], :: stride[1]] = dseen
    return dx, dweight


def project_forward(x, weight, gamma, beta, eps, shortcut=None):
    """Over x one pass; over z three, two of them in the cache; over y one."""
    rows = as_matrix(x)
    z = product(weight[:, :, 0, 0], rows)  # (PROJ.1)
    y, mean, var, *kept = norm_add(z, gamma, beta, eps, None if shortcut is None else as_matrix(shortcut))
    return as_images(y, x), mean, var, (rows, weight, z, gamma, mean, *kept)


def project_backward(dy, cache):
    """Over dy and z two passes, over x and dx one."""
    rows, weight, z, gamma, mean, inv_std, count = cache
    dx, dz = empty(rows.shape, rows.dtype), apart(z.shape, z.dtype)
    dgamma, dbeta = norm_back(as_matrix(dy), z, gamma, mean, inv_std, count, dz)
    transposed, dtransposed = np.ascontiguousarray(weight[:, :, 0, 0].T), np.empty(weight.shape[1::-1], z.dtype)
    few, arrays = few_rows(len(rows), rows[0].nbytes), (dz, rows, transposed, dx, dtransposed)
    parts, work = -(-len(rows) // few), 2 * rows.size * len(z)
    everywhere(_both_gradients, parts, work, blas(z.dtype), *arrays, few, scratch=((few, PANEL), z.dtype))
    return as_images(dx, dy), np.ascontiguousarray(dtransposed.T)[:, :, None, None], dgamma, dbeta


def conv_norm_relu6_forward(x, weight, gamma, beta, eps):
    """A few rows of z at a time, with their moments; then y."""
    (centred, mean_x), matrix = centre(as_matrix(x)), np.ascontiguousarray(weight[:, :, 0, 0])
    z, y = (empty((len(matrix), x.size // x.shape[1]), x.dtype) for _ in range(2))
    mean, var = np.empty((2, len(z)), z.dtype)
    few, work = few_rows(len(z), z[0].nbytes), z.shape[1] * (matrix.size + PASSES * len(z))
    everywhere(_rows_of_z, -(-len(z) // few), work, blas(z.dtype), centred, matrix, z, mean, var, few)
    tracked, mean, var, count = moments_behind(matrix, mean_x, mean, var, z.shape[1])
    inv_std = clipped(z, mean, var, gamma, beta, eps, y)
    return as_images(y, x), tracked, var, (centred, mean_x, matrix, z, gamma, beta, mean, inv_std, count)


def conv_norm_relu6_backward(dy, cache):
    """Two sums a channel; then a few rows at a time the gradient of z, and the products with it."""
    centred, mean_x, matrix, z, gamma, beta, mean, inv_std, count = cache
    grad, dz, dmatrix = as_matrix(dy), apart(z.shape, z.dtype), np.empty_like(matrix)
    dgamma, dbeta = clipped_sums(grad, z, mean, inv_std, gamma, beta)
    pooled = ranks.pooled_sums(dgamma, dbeta)
    few, work = few_rows(len(z), z[0].nbytes), z.shape[1] * (matrix.size + PASSES * len(z))
    arrays = grad, z, centred, gamma, beta, mean, inv_std, z.dtype.type(count), *pooled, dz, dmatrix, few
    everywhere(_norm_relu6_back, -(-len(z) // few), work, blas(z.dtype), *arrays)
    if count != z.shape[1]:
        dmatrix += np.outer(dz[:, : z.shape[1]].sum(axis=1), mean_x)  # over all ranks the rows of dz sum to 0, not here
    return as_images(product(matrix.T, dz, z.shape[1]), dy), dmatrix[:, :, None, None], dgamma, dbeta


def centre(x):
    """Xc = X - x̄ of X (C, M), with its rows apart, and x̄ (C,) (FUSE.1): z has the more digits without a common mean."""
    centred, mean = apart(x.shape, x.dtype), np.empty(len(x), x.dtype)
    everywhere(_centre, len(x), x.size * PASSES, x, centred, mean)
    return centred, mean


def moments_behind(matrix, mean_x, mean, var, count):
    """Over all ranks the mean of W X, that of this rank's Z = W (X - x̄), the variance and the count, from this rank's of Z.

    Each rank has its own x̄, and sees the mean of all from there: in float64, since what x̄ took away may be far larger.
    """
    if not ranks.pools():
        return mean + matrix @ mean_x, mean, var, count
    shift = matrix.astype(np.float64) @ mean_x
    pooled, var, count = ranks.pooled_moments(mean + shift, var, count)
    return pooled.astype(mean.dtype), (pooled - shift).astype(mean.dtype), var, count


def product(a, b, columns=None, before=None):
    """a @ b for a wide b, or for so many columns of it, a panel of them at a time.

    Args:
        before: (mean, a, beta), each with a number for every row of b, where batch norm and ReLU6 come before the product.
    """
    a, columns = np.ascontiguousarray(a), columns or b.shape[1]
    out, width = empty((len(a), columns), b.dtype), max(64, PANEL_BYTES // b[:, 0].nbytes // 16 * 16)
    parts, scratch = -(-columns // width), ((len(b), width), b.dtype)
    mean, scales, beta = (np.zeros(len(b), b.dtype),) * 3 if before is None else before
    arrays = a, b, before is not None, mean, scales, beta, out
    everywhere(_product, parts, a.size * columns, blas(b.dtype), *arrays, scratch=scratch)
    return out


def gram(x, columns):
    """x xᵀ (C, C), of so many columns."""
    out, few = np.empty((len(x), len(x)), x.dtype), few_rows(len(x), x[0].nbytes)
    arrays = x[:, :columns], x[:, :columns], out, few
    everywhere(_weight_gradient, -(-len(x) // few), len(x) * len(x) * columns, blas(x.dtype), *arrays)
    return out


def less(x, other, shift):
    """x - other - shift, in the place of x (C, M), with a number for each row."""
    everywhere(_less, len(x), x.size * PASSES, x, other, shift)
    return x


def apart(shape, dtype):
    """An array with room for so many columns, and more: rows a power of two apart would share few places of the cache."""
    rows, columns = shape
    return empty((rows, columns // 16 * 16 + 32), dtype)


@jit
def _product(counter, found, a, b, clips, mean, scales, beta, out, panel):
    a, b, out, panel = bare(a), bare(b), bare(out), bare(panel)
    columns = panel.shape[1]
    k = take(counter) * columns
    while k < out.shape[1]:
        end = min(k + columns, out.shape[1])
        for r in range(len(b)):  # rows that lie a power of two apart push each other out of the cache
            place(b[r, k:end], (clips, mean[r], scales[r], beta[r]), panel[r, : end - k])
        multiply(found, a, panel[:, : end - k], out[:, k:end], False)
        k = take(counter) * columns


@jit
def _less(counter, x, other, shift):
    x, other = bare(x), bare(other)
    c = take(counter)
    while c < len(x):
        subtract(x[c], other[c], shift[c])
        c = take(counter)


@jit
def _centre(counter, x, centred, mean):
    x, centred = bare(x), bare(centred)
    c = take(counter)
    while c < len(x):
        mean[c] = moments(x[c])[0]
        scale(x[c], mean[c], ONE, ZERO, centred[c, : x.shape[1]])
        c = take(counter)


@jit
def _weight_gradient(counter, found, dy, x, dweight, few):
    dy, x, dweight = bare(dy), bare(x), bare(dweight)
    r = take(counter) * few
    while r < len(dy):
        to = min(r + few, len(dy))
        for k in range(0, x.shape[1], PANEL):
            end = min(k + PANEL, x.shape[1])
            multiply_transposed(found, dy[r:to, k:end], x[:, k:end], dweight[r:to], k > 0)  # (CONV.5)
        r = take(counter) * few


@jit
def _both_gradients(counter, found, dz, x, transposed, dx, dtransposed, few, panel):
    """A few channels of x: their dx, and their columns of dweight."""
    dz, x, transposed, dx, dtransposed = bare(dz), bare(x), bare(transposed), bare(dx), bare(dtransposed)
    panel = bare(panel)
    r = take(counter) * few
    while r < len(x):
        to = min(r + few, len(x))
        for k in range(0, x.shape[1], PANEL):
            end = min(k + PANEL, x.shape[1])
            multiply(found, transposed[r:to], dz[:, k:end], dx[r:to, k:end], False)  # (CONV.6)
            for c in range(r, to):
                copy(x[c, k:end], panel[c - r, : end - k])
            multiply_transposed(found, panel[: to - r, : end - k], dz[:, k:end], dtransposed[r:to], k > 0)  # (CONV.5)
        r = take(counter) * few


@jit
def _rows_of_z(counter, found, x, weight, z, mean, var, few):
    """z, and its moments."""
    x, weight, z = bare(x), bare(weight), bare(z)
    r = take(counter) * few
    while r < len(z):
        to = min(r + few, len(z))
        multiply(found, weight[r:to], x[:, : z.shape[1]], z[r:to], False)  # (CONV.3)
        for c in range(r, to):
            mean[c], var[c] = moments(z[c])  # (BN.1), (BN.2)
        r = take(counter) * few


@jit
def _norm_relu6_back(
    counter, found, dy, z, x, gamma, beta, mean, inv_std, count, all_dgamma, all_dbeta, dz, dweight, few
):
    dy, z, x, dz, dweight = bare(dy), bare(z), bare(x), bare(dz), bare(dweight)
    r = take(counter) * few
    while r < len(z):
        to = min(r + few, len(z))
        for c in range(r, to):
            a, terms = gamma[c] * inv_std[c], (all_dbeta[c] / count, inv_std[c] * all_dgamma[c] / count)
            masked_gradient(dy[c], z[c], mean[c], a, beta[c], terms[0], terms[1], dz[c, : z.shape[1]])  # (BN.7)
        for k in range(0, z.shape[1], PANEL):
            end = min(k + PANEL, z.shape[1])
            multiply_transposed(found, dz[r:to, k:end], x[:, k:end], dweight[r:to], k > 0)  # (CONV.5)
        r = take(counter) * few
