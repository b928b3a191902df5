"""Batch norm on the GPU, bound by memory, in as few passes as there can be.

Passes over an activation, each a read or a write: forward 3 (statistics; normalise), backward 5 (two sums from two arrays;
dx from two). `clip` puts the ReLU6 behind it into the same passes: y is not read at all, since mask and clip are made again
from x. What is kept a channel, such as a mean, is float32 where the rows are stored in bfloat16.

Over several ranks (layers/norm.py) statistics and the two sums of the backward are those of all, and `count` is their M. A
kernel divides the sums by its own number of columns: so it is given sums that are smaller by as much as this is.
"""

from scratchnet.array import as_images, as_matrix
from scratchnet.device import get_array_module
from scratchnet.kernels.cuda.launch import blocks, launch, reducing, sum_dtype, vector
from scratchnet.kernels.cuda.rows import combine
from scratchnet.parallel.ranks import pooled_moments, pooled_sums


def batch_norm_forward(x, weight, bias, eps):
    """Three passes: statistics, then normalise."""
    rows = as_matrix(x)
    mean, var, inv_std, count = row_statistics(rows, eps)
    y = normalise(rows, mean, inv_std, weight, bias, clip=False)
    return as_images(y, x), mean, var, (x, mean[:, None], inv_std[:, None], weight, count)


def batch_norm_backward(dy, cache):
    """Five passes: the two sums, then dx."""
    x, mean, inv_std, weight, count = cache
    given = as_matrix(dy), as_matrix(x), mean.reshape(-1), inv_std.reshape(-1), weight
    dx, dweight, dbias = norm_gradient(*given, weight, count, clip=False)  # where nothing is clipped, no bias is read
    return as_images(dx, dy), dweight, dbias


def frozen_batch_norm_forward(x, weight, bias, mean, var, eps):
    """Two passes."""
    inv_std = 1 / (var + eps) ** 0.5
    y = normalise(as_matrix(x), mean, inv_std, weight, bias, clip=False)
    return as_images(y, x), (x, mean[:, None], inv_std[:, None], weight)


def frozen_batch_norm_backward(dy, cache):
    """Five passes: (BN.8) is (BN.7) where both sums are 0."""
    x, mean, inv_std, weight = cache
    given = as_matrix(dy), as_matrix(x), mean.reshape(-1), inv_std.reshape(-1), weight, weight
    none = get_array_module(dy).zeros_like(weight)
    dx = rows_gradient(*given, none, none, clip=False)
    return as_images(dx, dy), *parameter_gradients(*given, clip=False)


# Along the rows of an activation (C, M) ---------------------------------------------------------------------------------


def statistics(parts, eps, count):
    """Mean, biased variance and 1/√(variance + eps), each (C,), and how many numbers they are of, over all ranks.

    Args:
        parts: a kernel's, (C, blocks, 3), of this rank's `count` numbers a channel.
        eps: added to the variance.
        count: this rank's numbers a channel.
    """
    mean, var, inv_std = (get_array_module(parts).empty(len(parts), parts.dtype) for _ in range(3))
    combine("combine_moments", parts, mean, var, inv_std, eps, parts.shape[1])
    return statistics_of_all(mean, var, inv_std, eps, count)


def statistics_of_all(mean, var, inv_std, eps, count):
    """`statistics`, from those of this rank."""
    own = mean
    mean, var, count = pooled_moments(mean, var, count)
    return mean, var, inv_std if mean is own else 1 / (var + eps) ** 0.5, count


def row_statistics(rows, eps):
    """`statistics` of the rows (C, M)."""
    return statistics(row_moments(rows), eps, rows.shape[1])


def row_moments(rows):
    """Parts (C, blocks, 3) of the rows (C, M)."""
    v = vector(rows.shape[1], rows)
    grid = reducing(rows.shape[1] // v, len(rows))
    parts = get_array_module(rows).empty((len(rows), grid[0], 3), sum_dtype(rows))
    launch("row_moments", (v,), grid, rows, parts, rows.shape[1])
    return parts


def normalise(rows, mean, inv_std, weight, bias, clip):
    """Weight · (rows - mean) · inv_std + bias, clipped to [0, 6] or not."""
    y = get_array_module(rows).empty_like(rows)
    v = vector(rows.shape[1], rows, y)
    grid = blocks(rows.shape[1] // v, len(rows))
    launch("normalise", (v, clip), grid, rows, mean, inv_std, weight, bias, y, rows.shape[1])
    return y


def normalise_and_add(rows, mean, inv_std, weight, bias, shortcut):
    """Weight · (rows - mean) · inv_std + bias + shortcut."""
    y = get_array_module(rows).empty_like(rows)
    v = vector(rows.shape[1], rows, shortcut, y)
    grid = blocks(rows.shape[1] // v, len(rows))
    launch("normalise_and_add", (v,), grid, rows, mean, inv_std, weight, bias, shortcut, y, rows.shape[1])
    return y


def parameter_gradients(grad, rows, mean, inv_std, weight, bias, clip):
    """dweight and dbias of `normalise`."""
    channels, m = rows.shape
    v = vector(m, grad, rows)
    grid = reducing(m // v, channels)
    parts = get_array_module(grad).empty((channels, grid[0], 2), sum_dtype(rows))
    launch("row_products", (v, clip), grid, grad, rows, mean, inv_std, weight, bias, parts, m)
    dweight, dbias, _ = products_of(parts, inv_std)
    return dweight, dbias


def products_of(parts, inv_std):
    """dweight and dbias from a kernel's parts (C, blocks, 2 + k), and the sums (C, k) of what is behind them."""
    (channels, count, width), xp = parts.shape, get_array_module(parts)
    sizes = channels, channels, (channels, width - 2)
    dweight, dbias, others = (xp.empty(size, parts.dtype) for size in sizes)
    combine("combine_products", parts, inv_std, dweight, dbias, others, count, width - 2)
    return dweight, dbias, others


def rows_gradient(grad, rows, mean, inv_std, weight, bias, dweight, dbias, clip):
    """dx of `normalise` for statistics that follow x."""
    dx, m = get_array_module(grad).empty_like(rows), rows.shape[1]
    v = vector(m, grad, rows, dx)
    saved = mean, inv_std, weight, bias, dweight, dbias
    launch("norm_gradient", (v, clip), blocks(m // v, len(rows)), grad, rows, *saved, dx, m)
    return dx


def norm_gradient(grad, rows, mean, inv_std, weight, bias, count, clip):
    """dx, dweight and dbias of `normalise` for statistics that follow x."""
    saved = mean, inv_std, weight, bias
    dweight, dbias = parameter_gradients(grad, rows, *saved, clip)
    all_dweight, all_dbias = sums_of_all(dweight, dbias, rows.shape[1], count)
    return rows_gradient(grad, rows, *saved, all_dweight, all_dbias, clip), dweight, dbias


def sums_of_all(dweight, dbias, m, count):
    """Both sums over all ranks, for a kernel that divides by its own m columns where there are `count` in all."""
    sums = pooled_sums(dweight, dbias)
    return sums if count == m else [total * (m / count) for total in sums]
