"""Kernels for the CPU: the layers' functions in few passes over memory, in NumPy alone.

What decides the time here is how often an element travels between memory and the core, so that every kernel counts its
passes. Costs measured on two AVX-512 cores, in ns an element and thread: multiply or add 0.11-0.15 in the cache, 0.36 a
copy beyond it; a row's sum by `x @ ones` 0.06-0.1 (`x.sum(1)`: 0.2); a row's dot product by `np.vecdot` 0.06-0.1; `np.clip`
0.13-0.2; `np.where` 4-6, so never. They take float32 and float64; complex numbers go to the layer files.
"""

import functools

import numpy as np

from scratchnet.array import as_images, as_matrix
from scratchnet.kernels import register
from scratchnet.kernels.buffers import empty
from scratchnet.slabs import split
from scratchnet.threads import parallel

REAL = (np.float32, np.float64)
CHUNK = 1 << 12  # columns of a matrix product that one thread computes at a time
PARALLEL_WORK = 1 << 24  # multiply-adds below which a product is done sooner than a second thread wakes
PASS = 8  # multiply-adds in the time that an operation on one number takes


def _is_real(x, *_):
    return x.dtype.type in REAL


# Batch norm ----------------------------------------------------------------------------------------------------------


@register("cpu", _is_real)
def batch_norm_forward(x, weight, bias, eps):
    """Five passes: sum, centre, sum of squares, scale, shift; the last three on a result that is still in the cache."""
    rows = as_matrix(x)
    mean = row_sums(rows)[:, None] / rows.shape[1]
    y = np.subtract(rows, mean, out=empty(rows.shape, rows.dtype))
    var = np.vecdot(y, y)[:, None] / rows.shape[1]
    inv_std = 1 / (var + eps) ** 0.5
    y *= weight[:, None] * inv_std
    y += bias[:, None]
    return as_images(y, x), mean[:, 0], var[:, 0], (x, mean, inv_std, weight)


@register("cpu", lambda dy, cache: _is_real(dy))
def batch_norm_backward(dy, cache):
    """Seven passes: two sums, and dx = a·dy + k·(x - mean) + c with three numbers a channel instead of x̂ itself."""
    x, mean, inv_std, weight = cache
    grad, m = as_matrix(dy), dy.size // dy.shape[1]
    dx = np.subtract(as_matrix(x), mean, out=empty(grad.shape, grad.dtype))
    dbias = row_sums(grad)
    dweight = np.vecdot(grad, dx) * inv_std[:, 0]
    a = weight[:, None] * inv_std
    dx *= -a * inv_std * (dweight[:, None] / m)
    dx += -a * (dbias[:, None] / m)
    dx += np.multiply(grad, a, out=empty(grad.shape, grad.dtype))
    return as_images(dx, dy), dweight, dbias


def row_sums(rows):
    """The sum of each row (C, M) -> (C,), as a product with ones: BLAS adds twice as fast as np.sum."""
    return rows @ _ones(rows.shape[1], rows.dtype)


@functools.lru_cache(64)
def _ones(count, dtype):
    return np.ones(count, dtype)


# Rectifiers ----------------------------------------------------------------------------------------------------------


@register("cpu", _is_real)
def relu6_forward(x):
    """One pass."""
    rows = as_matrix(x)
    y = as_images(np.clip(rows, 0, 6, out=empty(rows.shape, rows.dtype)), x)
    return y, y


@register("cpu", lambda dy, cache: _is_real(dy))
def relu6_backward(dy, cache):
    """Four passes, three of them over bytes: a product with a mask costs a tenth of `where`."""
    grad, y = as_matrix(dy), as_matrix(cache)
    at_bound = np.less_equal(y, 0, out=empty(y.shape, bool))
    at_bound |= np.greater_equal(y, 6, out=empty(y.shape, bool))
    inside = np.logical_not(at_bound, out=at_bound)
    return as_images(np.multiply(grad, inside, out=empty(grad.shape, grad.dtype)), dy)


# Shortcuts -----------------------------------------------------------------------------------------------------------


@register("cpu", lambda a, b: _is_real(a) and a.dtype == b.dtype)
def add(a, b):
    """One pass, a share of columns on each thread."""
    rows, other = as_matrix(a), as_matrix(b)
    total = empty(rows.shape, rows.dtype)

    def share(columns):
        np.add(rows[:, columns], other[:, columns], out=total[:, columns])

    parallel(share, _shares(rows.shape[1], 2 * PASS * len(rows)))
    return as_images(total, a)


# Matrix products, cut over the threads -------------------------------------------------------------------------------


@register("cpu", lambda x, weight, stride: _is_real(x))
def pointwise_forward(x, weight, stride):
    """W @ X, a chunk of columns at a time on each thread."""
    seen = np.ascontiguousarray(x[:, :: stride[0], :: stride[1]])
    y = empty((len(weight), *seen.shape[1:]), x.dtype)
    matmul(weight[:, :, 0, 0], seen.reshape(len(x), -1), y.reshape(len(weight), -1))
    return y


@register("cpu", lambda dy, x, weight, stride: _is_real(dy))
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


def matmul(a, b, out):
    """Out = a @ b for a wide b, its columns cut into chunks: the result of a chunk stays in the cache of its core."""
    work = a.size + PASS * (len(out) + len(b))
    parallel(lambda columns: np.matmul(a, b[:, columns], out=out[:, columns]), _chunks(work, b.shape[1]))


def matmul_transposed(a, b):
    """A @ b.T for wide a and b, as the sum of the products of their chunks, added in the order of the chunks."""
    chunks = _chunks(len(a) * len(b) + PASS * (len(a) + len(b)), b.shape[1])
    return sum(parallel(lambda columns: a[:, columns] @ b[:, columns].T, chunks))


def _chunks(work, columns):
    """The columns in an even number of chunks, or in one where there is too little work, in multiply-adds a column."""
    count = max(1, round(columns / CHUNK))
    return split(columns, count + count % 2 if work * columns > PARALLEL_WORK else 1)


# The wide half of a 1×1 convolution with batch norm and ReLU6 (layers/fused.py) ---------------------------------------

PANEL_BYTES = 2 << 20  # of the wide array: so many of its columns at a time stay in a core's cache
SHARES = 4  # parts in which the columns go to the threads; the same for any number of threads


@register("cpu", _is_real)
def centre(rows):
    """A share of columns on each thread; the means first, as sums of the shares' sums."""
    shares = _shares(rows.shape[1], len(rows) * (len(rows) + 4 * PASS))
    mean = sum(parallel(lambda columns: row_sums(rows[:, columns]), shares))[:, None] / rows.shape[1]
    centred = empty(rows.shape, rows.dtype)

    def share(columns):
        part = np.subtract(rows[:, columns], mean, out=centred[:, columns])
        return part @ part.T

    return centred, mean, sum(parallel(share, shares)) / rows.shape[1]


@register("cpu", _is_real)
def product(a, b):
    """Its columns on all threads."""
    out = np.empty((len(a), b.shape[1]), a.dtype)
    matmul(a, b, out)
    return out


@register("cpu", _is_real)
def subtract_affine(dx, mix, centred, shift):
    """A panel of columns at a time."""

    def share(columns):
        for panel in _panels(columns, dx):
            product = mix @ centred[:, panel]
            product += shift
            dx[:, panel] -= product

    parallel(share, _shares(dx.shape[1], len(dx) * (len(dx) + 4 * PASS)))


@register("cpu", _is_real)
def clipped_product(centred, scaled, beta):
    """A panel of columns at a time: the product lands in the cache, and y is all that goes over memory."""
    y = empty((len(scaled), centred.shape[1]), centred.dtype)

    def share(columns):
        for panel in _panels(columns, y):
            product = empty((len(y), panel.stop - panel.start), y.dtype)
            np.matmul(scaled, centred[:, panel], out=product)
            product += beta[:, None]
            np.clip(product, 0, 6, out=y[:, panel])

    parallel(share, _shares(y.shape[1], scaled.size + 4 * PASS * len(y)))
    return y


@register("cpu", _is_real)
def masked_products(grad, y, centred, scaled):
    """A panel at a time: the masked gradient is used up in both products while it is in the cache."""
    dx = empty(centred.shape, grad.dtype)
    transposed = np.ascontiguousarray(scaled.T)

    def share(columns):
        products, dbeta = np.zeros(scaled.shape, grad.dtype), np.zeros(len(grad), grad.dtype)
        for panel in _panels(columns, grad):
            g = masked(grad[:, panel], y[:, panel])  # (FUSE.6)
            products += g @ centred[:, panel].T
            dbeta += row_sums(g)
            np.matmul(transposed, g, out=dx[:, panel])
        return products, dbeta

    shares = parallel(share, _shares(grad.shape[1], 2 * scaled.size + 8 * PASS * len(grad)))
    return dx, sum(products for products, _ in shares), sum(dbeta for _, dbeta in shares)


def masked(grad, y):
    """Grad where 0 < y < 6, else 0."""
    inside = np.greater(y, 0, out=empty(y.shape, bool))
    inside &= np.less(y, 6, out=empty(y.shape, bool))
    return np.multiply(grad, inside, out=empty(y.shape, grad.dtype))


def _shares(columns, work):
    """The columns in SHARES parts, or in one where there is too little work, in multiply-adds a column."""
    return split(columns, SHARES if columns * work > PARALLEL_WORK else 1)


def _panels(columns, wide):
    """The columns of a share, in panels of about PANEL_BYTES of the wide array."""
    width = max(64, PANEL_BYTES // (len(wide) * wide.itemsize))
    return [slice(k, min(k + width, columns.stop)) for k in range(columns.start, columns.stop, width)]
