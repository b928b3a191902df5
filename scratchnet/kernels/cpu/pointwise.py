"""1×1 convolutions on the CPU: by themselves, with batch norm and ReLU6 in training, and with ReLU6 at inference.

The wide arrays are gone over once each, a panel of columns at a time, so that what a product writes is used while it is in
the cache. Covariances are added up panel by panel, which keeps their rounding far below that of one long sum.
"""

import numpy as np

from scratchnet.array import as_images, as_matrix
from scratchnet.kernels.cpu.activation import masked
from scratchnet.kernels.cpu.buffers import empty
from scratchnet.kernels.cpu.norm import row_sums
from scratchnet.kernels.cpu.products import PANEL_BYTES, matmul, matmul_transposed
from scratchnet.parallel.cuts import PASS, panels, shares
from scratchnet.parallel.threads import parallel


def pointwise_forward(x, weight, stride):
    """W @ X, a chunk of columns at a time on each thread."""
    seen = np.ascontiguousarray(x[:, :: stride[0], :: stride[1]])
    y = empty((len(weight), *seen.shape[1:]), x.dtype)
    matmul(weight[:, :, 0, 0], seen.reshape(len(x), -1), y.reshape(len(weight), -1))
    return y


def pointwise_backward(dy, x, weight, stride):
    """DW = dY @ X.T as a sum over chunks of columns, in a fixed order; dX = W.T @ dY by chunks."""
    seen = np.ascontiguousarray(x[:, :: stride[0], :: stride[1]])
    grad = dy.reshape(len(dy), -1)
    dweight = matmul_transposed(grad, seen.reshape(len(x), -1))
    dx = empty(seen.shape, dy.dtype)
    matmul(np.ascontiguousarray(weight[:, :, 0, 0].T), grad, dx.reshape(len(x), -1))
    if stride != (1, 1):
        dx, dseen = np.zeros_like(x), dx
        dx[:, :: stride[0], :: stride[1]] = dseen
    return dx, dweight[:, :, None, None]


# With batch norm and ReLU6 (fused/pointwise.py) -----------------------------------------------------------------------


def conv_norm_relu6_forward(x, weight, gamma, beta, eps):
    """Over x three passes, over y one."""
    rows, matrix = as_matrix(x), weight[:, :, 0, 0]
    centred, mean_x, covariance = _centre(rows)
    mixed = matmul(matrix, covariance)
    mean, var = matrix @ mean_x, np.vecdot(mixed, matrix)[:, None]  # (FUSE.3)
    inv_std = 1 / (var + eps) ** 0.5
    scaled = gamma[:, None] * inv_std * matrix  # (FUSE.4)
    y = clipped_product(centred, scaled, beta)  # (FUSE.5)
    return as_images(y, x), mean[:, 0], var[:, 0], (y, centred, mixed, matrix, scaled, gamma, inv_std)


def conv_norm_relu6_backward(dy, cache):
    """Over dy and y one pass, over Xc and dx two."""
    y, centred, mixed, matrix, scaled, gamma, inv_std = cache
    dx, products, dbeta = _masked_products(as_matrix(dy), y, centred, scaled)
    m = centred.shape[1]
    dgamma = inv_std[:, 0] * np.vecdot(matrix, products)  # (FUSE.9)
    a, through_var = gamma[:, None] * inv_std, inv_std * dgamma[:, None]
    dweight = a * (products - through_var * mixed)  # (FUSE.10)
    mix, shift = matmul(matrix.T, a * through_var / m * matrix), matrix.T @ (a * dbeta[:, None] / m)

    def share(columns):
        for panel in panels(columns, dx[:, 0].nbytes, PANEL_BYTES):
            product = mix @ centred[:, panel]
            product += shift
            dx[:, panel] -= product  # (FUSE.11)

    parallel(share, shares(m, len(dx) * (len(dx) + 4 * PASS)))
    return as_images(dx, dy), dweight[:, :, None, None], dgamma, dbeta


def _centre(rows):
    """Xc, x̄ and K of X (C, M): the means first, as sums of the shares' sums."""
    parts = shares(rows.shape[1], len(rows) * (len(rows) + 4 * PASS))
    mean = sum(parallel(lambda columns: row_sums(rows[:, columns]), parts))[:, None] / rows.shape[1]
    centred = empty(rows.shape, rows.dtype)

    def share(columns):
        part = np.subtract(rows[:, columns], mean, out=centred[:, columns])  # (FUSE.1)
        return part @ part.T

    return centred, mean, sum(parallel(share, parts)) / rows.shape[1]  # (FUSE.2)


def _masked_products(grad, y, centred, scaled):
    """W'ᵀ g (C, M), P (O, C) and dβ (O,): the masked gradient of a panel is used up while it is in the cache."""
    dx = empty(centred.shape, grad.dtype)
    transposed = np.ascontiguousarray(scaled.T)

    def share(columns):
        products, dbeta = np.zeros(scaled.shape, grad.dtype), np.zeros(len(grad), grad.dtype)
        for panel in panels(columns, grad[:, 0].nbytes, PANEL_BYTES):
            g = masked(grad[:, panel], y[:, panel])  # (FUSE.6)
            products += g @ centred[:, panel].T  # (FUSE.8)
            dbeta += row_sums(g)  # (FUSE.7)
            np.matmul(transposed, g, out=dx[:, panel])  # (FUSE.11), its first term
        return products, dbeta

    parts = parallel(share, shares(grad.shape[1], 2 * scaled.size + 8 * PASS * len(grad)))
    return dx, sum(products for products, _ in parts), sum(dbeta for _, dbeta in parts)


def clipped_product(x, weight, bias):
    """A panel of columns at a time: the product lands in the cache, and y is all that goes over memory."""
    y = empty((len(weight), x.shape[1]), x.dtype)

    def share(columns):
        for panel in panels(columns, y[:, 0].nbytes, PANEL_BYTES):
            product = empty((len(y), panel.stop - panel.start), y.dtype)
            np.matmul(weight, x[:, panel], out=product)
            product += bias[:, None]
            np.clip(product, 0, 6, out=y[:, panel])

    parallel(share, shares(y.shape[1], weight.size + 4 * PASS * len(y)))
    return y
