"""Kernels along the rows of an activation (C, M), as functions of arrays: statistics, sums, normalising, clipping.

What is kept a channel is of the dtype in which is computed: float32 where the rows are stored in bfloat16.
"""

from scratchnet.array import bfloat16_dtype, get_array_module, is_bfloat16
from scratchnet.kernels import register
from scratchnet.kernels.gpu import blocks, is_real, launch, reducing, sum_dtype, vector


def statistics(parts, eps):
    """Mean, biased variance and 1/√(variance + eps), each (C,), from a kernel's parts (C, blocks, 3)."""
    mean, var, inv_std = (get_array_module(parts).empty(len(parts), parts.dtype) for _ in range(3))
    launch("combine_moments", (), blocks(len(parts)), parts, mean, var, inv_std, eps, *parts.shape[:2])
    return mean, var, inv_std


def row_statistics(rows, eps):
    """`statistics` of the rows (C, M)."""
    v = vector(rows.shape[1], rows)
    grid = reducing(rows.shape[1] // v, len(rows))
    parts = get_array_module(rows).empty((len(rows), grid[0], 3), sum_dtype(rows))
    launch("row_moments", (v,), grid, rows, parts, rows.shape[1])
    return statistics(parts, eps)


def normalise(rows, mean, inv_std, weight, bias, clip):
    """Weight · (rows - mean) · inv_std + bias, clipped to [0, 6] or not."""
    y = get_array_module(rows).empty_like(rows)
    v = vector(rows.shape[1], rows, y)
    grid = blocks(rows.shape[1] // v, len(rows))
    launch("normalise", (v, clip), grid, rows, mean, inv_std, weight, bias, y, rows.shape[1])
    return y


def parameter_gradients(grad, rows, mean, inv_std, weight, bias, clip):
    """Dweight and dbias of `normalise`."""
    xp, (channels, m) = get_array_module(grad), rows.shape
    v = vector(m, grad, rows)
    grid = reducing(m // v, channels)
    parts = xp.empty((channels, grid[0], 2), sum_dtype(rows))
    launch("row_products", (v, clip), grid, grad, rows, mean, inv_std, weight, bias, parts, m)
    dweight, dbias = xp.empty(channels, sum_dtype(rows)), xp.empty(channels, sum_dtype(rows))
    launch("combine_products", (), blocks(channels), parts, inv_std, dweight, dbias, channels, grid[0])
    return dweight, dbias


def rows_gradient(grad, rows, mean, inv_std, weight, bias, dweight, dbias, clip):
    """Dx of `normalise` for statistics that follow x; with `clip`, dx without the factor weight · inv_std."""
    dx = get_array_module(grad).empty_like(rows)
    m = rows.shape[1]
    v = vector(m, grad, rows, dx)
    saved = mean, inv_std, weight, bias, dweight, dbias
    launch("norm_gradient", (v, clip), blocks(m // v, len(rows)), grad, rows, *saved, dx, m)
    return dx


def norm_gradient(grad, rows, mean, inv_std, weight, bias, clip):
    """Dx, dweight and dbias of `normalise`, dx as `rows_gradient` says."""
    saved = mean, inv_std, weight, bias
    dweight, dbias = parameter_gradients(grad, rows, *saved, clip)
    return rows_gradient(grad, rows, *saved, dweight, dbias, clip), dweight, dbias


@register("cuda", is_real)
def shift_and_clip(y, bias):
    """One pass, in place (FOLD.2)."""
    v = vector(y.shape[1], y)
    launch("clip_rows", (v,), blocks(y.shape[1] // v, len(y)), y, bias, y.shape[1])


def row_sums_of(parts):
    """The sum over blocks of parts (C, blocks, …), as (C, …)."""
    out = get_array_module(parts).empty((len(parts), *parts.shape[2:]), parts.dtype)
    width = max(1, out.size // len(parts))
    launch("combine_sums", (), blocks(out.size), parts, out, *parts.shape[:2], width)
    return out


def narrow(x):
    """Float32 x, rounded to bfloat16."""
    y = get_array_module(x).empty(x.shape, bfloat16_dtype())
    launch("narrow", (), blocks(x.size), x, y, x.size, dtype="bfloat16")
    return y


def stored_like(weight, x):
    """A weight, as a factor of a matrix product with x."""
    return narrow(weight) if is_bfloat16(x) and not is_bfloat16(weight) else weight


def widened(x):
    """X, of the dtype in which is computed: itself, but for bfloat16."""
    if not is_bfloat16(x):
        return x
    y = get_array_module(x).empty(x.shape, sum_dtype(x))
    launch("widen", (), blocks(x.size), x, y, x.size)
    return y
