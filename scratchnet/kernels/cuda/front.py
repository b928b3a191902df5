"""The front of a block on the GPU: 1×1 expansion, batch norm, ReLU6, depthwise 3×3, batch norm, ReLU6 (fused/front.py).

No cache of a GPU keeps a channel of a large batch from one layer to the next. But batch norm and ReLU6 of a number take
fewer instructions than its way to memory and back: so y₁ is made where z₁ is read, h of (DWF.5) where dy₂ and z₂ are, and
neither is ever stored. Passes over arrays as wide as the expansion, and behind the depthwise convolution (deep):

    forward     z₁ written; read for its statistics; read            3 wide
                z₂ written; read; y₂ written                         3 deep
    backward    dy₂ and z₂ read for two sums; read                   4 deep
                z₁ read, g written; both read, dz₁ written over g    5 wide
                dz₁ read for dW and for dX                           2 wide

The statistics are those of z₁ itself. A covariance (FUSE.2) would spare a pass, but loses a variance that is small beside
what it is the difference of, where the channels of x are alike. `cpu.pointwise` looks whether they are, and takes another
way. To look from here would be to wait for the device, in forward and, for (FUSE.10), in backward too. Of numbers in
bfloat16 both products by (FUSE.8)-(FUSE.11) have to come in float32 besides: `expansion_gradient` is where they belong.
"""

from scratchnet.device import get_array_module
from scratchnet.kernels.cuda.depthwise import geometry_of, sliding
from scratchnet.kernels.cuda.launch import launch, sum_dtype
from scratchnet.kernels.cuda.norm import (
    normalise,
    parameter_gradients,
    products_of,
    row_statistics,
    rows_gradient,
    statistics,
    sums_of_all,
)
from scratchnet.kernels.cuda.products import product
from scratchnet.kernels.cuda.rows import row_sums_of, stored_like


def front_forward(x, weight1, gamma1, beta1, eps1, weight2, gamma2, beta2, eps2, stride, padding, dilation):
    """Six passes, as said above. Kept are x, z₁ and z₂."""
    xp, rows = get_array_module(x), x.reshape(len(x), -1)
    matrix = stored_like(weight1.reshape(len(weight1), -1), x)
    z1 = product(matrix, rows)  # (FRONT.1), with its mean
    mean1, var1, inv_std1, count1 = row_statistics(z1, eps1)
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
    cache = rows, matrix, z1, first, count1, weight2, deep, second, count2, (maps, out_shape, stride, padding)
    return y2.reshape(out_shape), mean1, var1, mean2, var2, cache


def front_backward(dy, cache):
    """Eleven passes, as said above."""
    rows, matrix, z1, first, count1, weight2, z2, second, count2, (maps, out_shape, stride, padding) = cache
    xp, grad = get_array_module(dy), dy.reshape(z2.shape)
    mean2, inv_std2, gamma2, beta2 = second
    dgamma2, dbeta2 = parameter_gradients(grad, z2, mean2, inv_std2, gamma2, beta2, clip=True)  # (DWF.3), (DWF.4)
    sums2 = sums_of_all(dgamma2, dbeta2, z2.shape[1], count2)
    g = xp.empty_like(z1)
    v, grid, threads, sizes = sliding(maps, out_shape, z1.reshape(maps), padding, grad, z2, z1, g)
    weights, products = (xp.empty((len(z1), grid[0], k), sum_dtype(z1)) for k in (9, 2))
    arrays = grad, z2, z1, *second, *sums2, *first, weight2, g, weights, products
    launch("front_backward", (v, stride[0]), grid, *arrays, *sizes, threads=threads)
    dweight2 = row_sums_of(weights).reshape(weight2.shape)
    dgamma1, dbeta1 = products_of(products, first[1])  # (FRONT.4)
    sums1 = sums_of_all(dgamma1, dbeta1, z1.shape[1], count1)
    dx, dweight1 = expansion_gradient(g, rows, matrix, z1, first, sums1)
    dx, dweight1 = dx.reshape(len(rows), *maps[1:]), dweight1.reshape(*matrix.shape, 1, 1)
    return dx, dweight1, dgamma1, dbeta1, dweight2, dgamma2, dbeta2


def expansion_gradient(g, rows, matrix, z1, first, sums1):
    """dX and dW of the expansion and its batch norm, from g (FRONT.3), which is used up."""
    (mean, inv_std, gamma, beta), (dgamma, dbeta) = first, sums1
    dz = rows_gradient(g, z1, mean, inv_std, gamma, beta, dgamma, dbeta, clip=False, out=g)  # (BN.7)
    return product(matrix.T, dz), product(dz, rows.T, dtype=sum_dtype(dz))  # (FRONT.6), (FRONT.5) with X for X - x̄
