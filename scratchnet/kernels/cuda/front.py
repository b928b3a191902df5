"""The front of a block on the GPU: 1×1 expansion, batch norm, ReLU6, depthwise 3×3, batch norm, ReLU6 (fused/front.py).

No cache of a GPU keeps a channel of a large batch from one layer to the next. But batch norm and ReLU6 of a number take
fewer instructions than its way to memory and back: so y₁ is made where z₁ is read, h of (DWF.5) where dy₂ and z₂ are, and
neither is ever stored. And what concerns all of z₁, its statistics and dz₁, follows from x, which is narrow, by the
identities of fused/pointwise.py. Passes over arrays as wide as the expansion, and behind the depthwise convolution (deep):

    forward     z₁ written; read                                     2 wide
                z₂ written; read; y₂ written                         3 deep
    backward    dy₂ and z₂ read for two sums; read                   4 deep
                z₁ read, a₁ g written; read for dW and for dX        4 wide

Forward, z₁ = W x being stored anyway, X need not be centred. From Σ x and X Xᵀ, added up in float32,
    μ₁ = W x̄,    v₁ = diag(W (X Xᵀ / M) Wᵀ) - μ₁²                                          (FUSE.3)
of z₁ as it is before it is rounded to bfloat16 (W is rounded first), or before TF32 rounds both factors.

Backward, a₁ g (FRONT.3) being what is stored, with t = dβ₁/M and τ = s₁ dγ₁/M of all ranks,
    dW = (a₁ g) Xᵀ - a₁ M (τ W X Xᵀ/M + (t - τ μ₁) x̄ᵀ)                                     (FUSE.10)
    dX = Wᵀ (a₁ g) - mix X + shift,    mix = Wᵀ (a₁ τ W),    shift = mix x̄ - Wᵀ a₁ (t + τ (W x̄ - μ₁))    (FUSE.11)
where W x̄ is this rank's mean of z₁, and μ₁ that of all ranks. The first is a product added to what stands behind the minus;
the second is one product, since x and two rows of ones are put behind a₁ g: so dX is rounded once.

Where channels of x are alike, the difference v₁ has few digits left (`cpu.pointwise`), and so has what is divided by it.
To look from here whether it has would be to wait for the device. So the device looks, for each channel of z₁ by itself: v₁
and eps are held to the most that the root of v₁ + μ₁² could be. For the channels that fail, kernels read z₁ for the
statistics, and make dz₁ in the place of g, as for batch norm alone; the others' blocks have nothing to do there.

Where a product of factors in bfloat16 is rounded to it (without nvmath-python), that way is taken for all channels.
"""

from scratchnet.device import get_array_module, is_bfloat16, tf32_enabled
from scratchnet.kernels.cuda.depthwise import geometry_of, sliding
from scratchnet.kernels.cuda.launch import blocks, launch, sum_dtype, vector
from scratchnet.kernels.cuda.norm import (
    normalise,
    parameter_gradients,
    products_of,
    row_moments,
    row_statistics,
    statistics,
    statistics_of_all,
    sums_of_all,
)
from scratchnet.kernels.cuda.products import product, why_eager
from scratchnet.kernels.cuda.rows import stored_like

ALIKE = 1 / 4  # of what v₁ would be if the channels of x had nothing in common; below it z₁ is read
ONES = 2  # rows
WORKERS = 512  # threads of a block that does by itself what is to be done for a channel


def front_forward(x, weight1, gamma1, beta1, eps1, weight2, gamma2, beta2, eps2, stride, padding, dilation):
    """Five passes, as said above. Kept are x, z₁ and z₂."""
    xp, rows = get_array_module(x), x.reshape(len(x), -1)
    matrix = stored_like(weight1.reshape(len(weight1), -1), x)
    z1 = product(matrix, rows)  # (FRONT.1), with its mean
    (mean1, var1, inv_std1, count1), known = expansion_statistics(z1, rows, matrix, eps1)
    maps = (len(z1), *x.shape[1:])
    _, out_shape = geometry_of(x, weight2, stride, padding, dilation)
    z2 = xp.empty(out_shape, x.dtype)
    v, grid, threads, sizes = sliding(out_shape, out_shape, x, padding, z1, z2)
    parts = xp.empty((len(z2), grid[0], 3), sum_dtype(x))
    first, window = (mean1, inv_std1, gamma1, beta1), (v, stride[0])
    launch("front_forward", window, grid, z1, *first, weight2, z2, parts, *sizes, threads=threads)
    deep = z2.reshape(len(z2), -1)
    mean2, var2, inv_std2, count2 = statistics(parts, eps2, deep.shape[1])  # (DWF.1)
    second = mean2, inv_std2, gamma2, beta2
    y2 = normalise(deep, *second, clip=True)
    expansion = rows, matrix, z1, first, known
    cache = expansion, count1, weight2, deep, second, count2, (maps, out_shape, stride, padding)
    return y2.reshape(out_shape), mean1, var1, mean2, var2, cache


def front_backward(dy, cache):
    """Eight passes, as said above."""
    expansion, count1, weight2, z2, second, count2, (maps, out_shape, stride, padding) = cache
    rows, matrix, z1, first, known = expansion
    xp, grad = get_array_module(dy), dy.reshape(z2.shape)
    mean2, inv_std2, gamma2, beta2 = second
    dgamma2, dbeta2 = parameter_gradients(grad, z2, mean2, inv_std2, gamma2, beta2, clip=True)  # (DWF.3), (DWF.4)
    sums2 = sums_of_all(dgamma2, dbeta2, z2.shape[1], count2)
    mixed, *_, alike = known
    extra = 0 if mixed is None else len(rows) + ONES
    joined = xp.empty((len(z1) + extra, z1.shape[1]), z1.dtype)
    g = joined[: len(z1)]
    v, grid, threads, sizes = sliding(maps, out_shape, z1.reshape(maps), padding, grad, z2, z1, g)
    parts = xp.empty((len(z1), grid[0], 2 + 9), sum_dtype(z1))
    arrays = grad, z2, z1, *second, *sums2, *first, alike, weight2, g, parts
    launch("front_backward", (v, stride[0]), grid, *arrays, *sizes, threads=threads)
    dgamma1, dbeta1, dweight2 = products_of(parts, first[1])  # (FRONT.4), (DWF.6)
    sums1 = sums_of_all(dgamma1, dbeta1, z1.shape[1], count1)
    dx, dweight1 = expansion_gradient(joined, sums1, *expansion)
    dx, dweight1 = dx.reshape(len(rows), *maps[1:]), dweight1.reshape(*matrix.shape, 1, 1)
    return dx, dweight1, dgamma1, dbeta1, dweight2.reshape(weight2.shape), dgamma2, dbeta2


def expansion_statistics(z1, rows, matrix, eps):
    """`statistics` of z₁, and what the gradients want: (mixed, mean of each row of x, own mean of z₁, alike)."""
    xp, (wide, channels), m = get_array_module(rows), matrix.shape, rows.shape[1]
    if is_bfloat16(rows) and why_eager():
        return row_statistics(z1, eps), (None, None, None, xp.ones(wide, "int32"))
    parts = row_moments(rows)
    second = product(rows, rows.T, tf32=False, dtype=sum_dtype(rows))
    mixed, alike = xp.empty(matrix.shape, second.dtype), xp.empty(wide, "int32")
    mean_x, (mean, var, inv_std) = xp.empty(channels, second.dtype), (xp.empty(wide, second.dtype) for _ in range(3))
    arrays = matrix, second, parts, z1, mixed, mean_x, mean, var, inv_std, alike
    sizes = m, channels, parts.shape[1]
    launch("covariance_moments", (vector(m, z1),), (1, wide), *arrays, eps, ALIKE, *sizes, threads=WORKERS)
    return statistics_of_all(mean, var, inv_std, eps, m), (mixed, mean_x, mean, alike)


def expansion_gradient(joined, sums1, rows, matrix, z1, first, known):
    """dX and dW of the expansion and its batch norm, from a₁ g, or g of rows that are alike; it is used up."""
    (mean, inv_std, gamma, _), (dgamma, dbeta), (wide, m) = first, sums1, z1.shape
    xp, (g, behind) = get_array_module(rows), (joined[:wide], joined[wide:])
    mixed, mean_x, own_mean, alike = known
    v, saved = vector(m, z1, rows, joined), (mean, inv_std, gamma, dgamma, dbeta)
    arrays, grid = (z1, rows, alike, *saved, g, behind), blocks(m // v, len(joined))
    launch("alike_gradient", (v,), grid, *arrays, m, wide, len(rows))  # (BN.7)
    if mixed is None:
        return product(matrix.T, g), product(g, rows.T, dtype=sum_dtype(g))  # (FRONT.6), (FRONT.5) with X for X - x̄
    factor, dweight = xp.empty((len(joined), len(rows)), z1.dtype), xp.empty(matrix.shape, mixed.dtype)
    what = matrix, mixed, mean_x, alike, own_mean, *saved, factor, dweight
    coarse = tf32_enabled() and z1.dtype.name == "float32"
    launch("front_factor", (), (1, len(rows)), *what, m, wide, len(rows), coarse, threads=WORKERS)
    dweight = product(g, rows.T, dtype=sum_dtype(g), out=dweight)  # (FUSE.10)
    return product(factor.T, joined), dweight  # (FUSE.11)
