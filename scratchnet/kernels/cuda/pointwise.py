"""1×1 convolutions on the GPU, as 2-D matrix products: alone, with batch norm and ReLU6, and with ReLU6 at inference.

`device.use_tf32` says how exact the products are; the covariance of (FUSE.2) and W K stay in float32 in any case, since a
variance comes from them that may be small beside their largest entries.
"""

from scratchnet.array import as_images, as_matrix
from scratchnet.device import get_array_module, product
from scratchnet.kernels.cuda.activation import shift_and_clip
from scratchnet.kernels.cuda.launch import blocks, launch, reducing, vector
from scratchnet.kernels.cuda.norm import norm_gradient, normalise, row_statistics
from scratchnet.kernels.cuda.rows import row_sums_of, stored_like, widened

FOLD_THREADS = 64  # a block that goes over a row of weights, at most some hundred numbers


def pointwise_forward(x, weight, stride):
    """(CONV.3); with x in bfloat16 the weight is rounded."""
    seen = x[:, :: stride[0], :: stride[1]]
    y = product(stored_like(_matrix(weight), x), seen.reshape(len(x), -1))
    return y.reshape(len(weight), *seen.shape[1:])


def pointwise_backward(dy, x, weight, stride):
    """(CONV.5) to (CONV.7); dweight leaves in float32."""
    seen, grad = x[:, :: stride[0], :: stride[1]], dy.reshape(len(dy), -1)
    dweight = widened(product(grad, seen.reshape(len(x), -1).T)).reshape(weight.shape)
    dseen = product(stored_like(_matrix(weight), x).T, grad).reshape(seen.shape)
    if stride == (1, 1):
        return dseen, dweight
    dx = get_array_module(x).zeros_like(x)
    dx[:, :: stride[0], :: stride[1]] = dseen
    return dx, dweight


# With batch norm and ReLU6 (fused/pointwise.py) ----------------------------------------------------------------------


def conv_norm_relu6_forward(x, weight, gamma, beta, eps):
    """Over the wide array three passes, over the narrow one six: three products, five kernels."""
    xp, rows, matrix = get_array_module(x), as_matrix(x), _matrix(weight)
    mean_x, _, _ = row_statistics(rows, eps)
    channels, m = rows.shape
    centred = xp.empty_like(rows)
    v = vector(m, rows, centred)
    launch("subtract_mean", (v,), blocks(m // v, channels), rows, mean_x, centred, m)  # (FUSE.1)
    covariance = product(centred, centred.T, tf32=False)  # (FUSE.2), but for the 1/M, which fold_norm brings in
    mixed = product(matrix, covariance, tf32=False)
    mean, var, inv_std = (xp.empty(len(matrix), x.dtype) for _ in range(3))
    scaled = xp.empty_like(matrix)
    saved = mean, var, inv_std, scaled
    launch(
        "fold_norm", (), (1, len(matrix)), matrix, mixed, mean_x, gamma, *saved, eps, channels, m, threads=FOLD_THREADS
    )  # (FUSE.3), (FUSE.4)
    y = clipped_product(centred, scaled, beta)  # (FUSE.5)
    return as_images(y, x), mean, var, (y, centred, mixed, matrix, scaled, gamma, inv_std[:, None])


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
    products, dx = product(g, centred.T), product(scaled.T, g)  # (FUSE.8), and the first term of (FUSE.11)
    dweight, through = xp.empty_like(matrix), xp.empty_like(matrix)
    dgamma, column = xp.empty_like(gamma), xp.empty_like(gamma)
    given, made = (matrix, mixed, products, gamma, inv_std.reshape(-1), dbeta), (dweight, dgamma, through, column)
    launch("unfold_norm", (), (1, len(matrix)), *given, *made, channels, m, threads=FOLD_THREADS)  # (FUSE.9), (FUSE.10)
    wide, shift = product(product(matrix.T, through), centred), product(matrix.T, column)
    v = vector(m, dx, wide)
    launch("subtract_rows", (v,), blocks(m // v, channels), dx, wide, shift, m)  # (FUSE.11)
    return as_images(dx, dy), dweight.reshape(*matrix.shape, 1, 1), dgamma, dbeta


def stored_conv_norm_relu6_forward(x, weight, gamma, beta, eps):
    """The convolution's output is made and kept, as in fused/depthwise.py.

    The covariance of (FUSE.2) would leave its product in 8 bits, too few to take a variance from that is small beside
    them. So the statistics are those of the stored numbers themselves, as in PyTorch's mixed precision.
    """
    rows, matrix = as_matrix(x), _matrix(weight)
    z = product(stored_like(matrix, x), rows)
    mean, var, inv_std = row_statistics(z, eps)  # (DWF.1)
    y = normalise(z, mean, inv_std, gamma, beta, clip=True)  # (DWF.2)
    return as_images(y, x), mean, var, (rows, matrix, z, mean, inv_std, gamma, beta)


def stored_conv_norm_relu6_backward(dy, cache):
    """(DWF.6), the convolution being a matrix product here."""
    rows, matrix, z, mean, inv_std, gamma, beta = cache
    h, dgamma, dbeta = norm_gradient(as_matrix(dy), z, mean, inv_std, gamma, beta, clip=True)  # (DWF.3)-(DWF.5)
    a = (gamma * inv_std)[:, None]
    dx = product(stored_like(a * matrix, h).T, h)
    dweight = a * widened(product(h, rows.T))
    return as_images(dx, dy), dweight.reshape(*matrix.shape, 1, 1), dgamma, dbeta


def clipped_product(x, weight, bias):
    """The product of (FUSE.5), and a pass over it in place."""
    y = product(stored_like(weight, x), x)
    shift_and_clip(y, bias)
    return y


def _matrix(weight):
    return weight.reshape(len(weight), -1)  # (O, C, 1, 1) -> (O, C)
