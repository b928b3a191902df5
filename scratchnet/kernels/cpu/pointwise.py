"""1×1 convolutions on the CPU: by themselves, with batch norm and ReLU6 in training, and with ReLU6 at inference.

The wide arrays are gone over once each, a panel of columns at a time, so that what a product writes is used while it is in
the cache.

Where channels of x are nearly alike, a variance of (FUSE.3) is a small difference of large numbers, and loses digits that
the three layers keep. Were all C channels alike and all weights positive, it would be (Σ |W| σ)²; of channels that have
nothing in common it is about 1/C of that. Where one is below a sixteenth of the latter, the three layers are computed.
Over several ranks it is decided by numbers of all of them, so that all compute the same.
(In MobileNetV2 on CIFAR-10 at width 0.5 the smallest is five times above that, from the first step on.)
"""

import numpy as np

from scratchnet.array import as_images, as_matrix
from scratchnet.kernels.cpu.activation import masked, relu6_backward, relu6_forward
from scratchnet.kernels.cpu.buffers import empty
from scratchnet.kernels.cpu.norm import batch_norm_backward, batch_norm_forward, row_sums
from scratchnet.kernels.cpu.products import PANEL_BYTES, matmul, matmul_transposed
from scratchnet.parallel.cuts import PASS, panels, shares
from scratchnet.parallel.ranks import pooled_moments, pooled_sums
from scratchnet.parallel.threads import parallel

ALIKE = 1 / 16
FEW = 1 << 14  # columns that stay in the cache from their mean to their covariance


def pointwise_forward(x, weight, stride):
    """W @ X, a chunk of columns at a time on each thread."""
    seen = np.ascontiguousarray(x[:, :: stride[0], :: stride[1]])
    y = empty((len(weight), *seen.shape[1:]), x.dtype)
    matmul(weight[:, :, 0, 0], seen.reshape(len(x), -1), y.reshape(len(weight), -1))
    return y


def pointwise_backward(dy, x, weight, stride, wants_dweight=True):
    """dW = dY @ X.T as a sum over chunks of columns, in a fixed order; dX = W.T @ dY by chunks."""
    seen = x[:, :: stride[0], :: stride[1]]
    grad, dweight = dy.reshape(len(dy), -1), None
    if wants_dweight:
        dweight = matmul_transposed(grad, np.ascontiguousarray(seen).reshape(len(x), -1))[:, :, None, None]
    dx = empty(seen.shape, dy.dtype)
    matmul(np.ascontiguousarray(weight[:, :, 0, 0].T), grad, dx.reshape(len(x), -1))
    if stride != (1, 1):
        dx, dseen = np.zeros_like(x), dx
        dx[:, :: stride[0], :: stride[1]] = dseen
    return dx, dweight


# With batch norm and ReLU6 (fused/pointwise.py) -----------------------------------------------------------------------


def conv_norm_relu6_forward(x, weight, gamma, beta, eps):
    """Over x four passes, over y one.

    Over several ranks a message is saved against the layer's file: Xc stays about this rank's own x̄r, `left` says how far
    it is from x̄, and z's mean W x̄r and variance W Kr Wᵀ here are pooled as batch norm's are, (BN.11) and (BN.12). What
    the latter is for a variance, Mr/M (Kr + (x̄r - x̄)(x̄r - x̄)ᵀ) is for this rank's part of K.
    """
    rows, matrix = as_matrix(x), weight[:, :, 0, 0]
    centred, mean_x, left, covariance = _centre(rows)
    mixed = matmul(matrix, covariance)
    mean, var = matrix @ mean_x, np.vecdot(mixed, matrix)[:, None]  # (FUSE.3)
    own = np.concatenate([mean, mean_x]), np.concatenate([var[:, 0], covariance.diagonal()])[:, None]
    means, spread, m = pooled_moments(*own, rows.shape[1])
    if means is not own[0]:
        mean, var, moved = means[: len(mean)], spread[: len(var)], (means - own[0])[len(mean) :]
        left, mixed = left + moved, (mixed + (matrix @ moved) * moved.T) * (rows.shape[1] / m)
    alike = (abs(matrix) @ spread[len(var) :, 0] ** 0.5)[:, None]
    if not (var + eps >= ALIKE / len(rows) * alike**2).all():  # NaN goes to the three layers too
        return _three_layers_forward(x, matrix, gamma, beta, eps)
    inv_std = 1 / (var + eps) ** 0.5
    scaled = gamma[:, None] * inv_std * matrix  # (FUSE.4)
    y = clipped_product(centred, scaled, beta - (scaled @ left)[:, 0])  # (FUSE.5)
    cache = y, centred, left, mixed, matrix, scaled, gamma, inv_std, m
    return as_images(y, x), mean[:, 0], var[:, 0], (_folded_backward, cache)


def conv_norm_relu6_backward(dy, cache):
    """As forward found fit."""
    backward, saved = cache
    return backward(dy, saved)


def _folded_backward(dy, saved):
    """Over dy and y one pass, over Xc and dx two."""
    y, centred, left, mixed, matrix, scaled, gamma, inv_std, m = saved
    dx, products, dbeta = _masked_products(as_matrix(dy), y, centred, scaled)
    products -= dbeta[:, None] * left.T
    dgamma = inv_std[:, 0] * np.vecdot(matrix, products)  # (FUSE.9)
    all_dbeta, all_dgamma = pooled_sums(dbeta, dgamma)
    a, through_var = gamma[:, None] * inv_std, inv_std * all_dgamma[:, None]
    dweight = a * (products - through_var * mixed)  # (FUSE.10)
    mix = matmul(matrix.T, a * through_var / m * matrix)
    shift = matrix.T @ (a * all_dbeta[:, None] / m) - mix @ left

    def share(columns):
        for panel in panels(columns, dx[:, 0].nbytes, PANEL_BYTES):
            product = mix @ centred[:, panel]
            product += shift
            dx[:, panel] -= product  # (FUSE.11)

    parallel(share, shares(centred.shape[1], len(dx) * (len(dx) + 4 * PASS)))
    return as_images(dx, dy), dweight[:, :, None, None], dgamma, dbeta


def _centre(rows):
    """Xc of X (C, M), x̄ (C, 1), what rounding left of the mean in Xc (C, 1), and K: of this rank, the means first."""
    parts = shares(rows.shape[1], len(rows) * (len(rows) + 4 * PASS))
    mean = sum(parallel(lambda columns: row_sums(rows[:, columns]), parts))[:, None] / rows.shape[1]
    centred = empty(rows.shape, rows.dtype)

    def share(columns):
        sums, covariance = np.zeros((len(rows), 1), rows.dtype), np.zeros((len(rows), len(rows)), rows.dtype)
        for few in panels(columns, 1, FEW):
            part = np.subtract(rows[:, few], mean, out=centred[:, few])  # (FUSE.1)
            sums[:, 0] += row_sums(part)
            covariance += part @ part.T
        return sums, covariance

    found = parallel(share, parts)
    left, covariance = (sum(part[k] for part in found) / rows.shape[1] for k in range(2))
    return centred, mean + left, left, covariance - left @ left.T  # (FUSE.2)


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
    return dx, *(sum(part[k] for part in parts) for k in range(2))


def _three_layers_forward(x, matrix, gamma, beta, eps):
    """(CONV.3), batch norm and ReLU6, one after the other."""
    rows = as_matrix(x)
    z = as_images(matmul(matrix, rows), x)
    y, mean, var, norm = batch_norm_forward(z, gamma, beta, eps)
    y, clipped = relu6_forward(y)
    return y, mean, var, (_three_layers_backward, (rows, matrix, norm, clipped))


def _three_layers_backward(dy, saved):
    rows, matrix, norm, clipped = saved
    dz, dgamma, dbeta = batch_norm_backward(relu6_backward(dy, clipped), norm)
    grad = as_matrix(dz)
    dweight, dx = matmul_transposed(grad, rows), matmul(np.ascontiguousarray(matrix.T), grad)  # (CONV.5), (CONV.6)
    return as_images(dx, dy), dweight[:, :, None, None], dgamma, dbeta


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
