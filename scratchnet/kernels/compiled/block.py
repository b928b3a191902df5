"""An inverted residual block, compiled: its front and its projection, with batch norm and shortcut (fused/block.py).

Of the wide arrays only z2, what the depthwise convolution puts out, is ever stored. The projection reads it through batch
norm and ReLU6, a panel of columns at a time; backward makes the gradient of y2 a slab at a time, and uses it up at once.
"""

import numpy as np

from scratchnet.kernels.compiled.depthwise import flat
from scratchnet.kernels.compiled.front import run_backward, run_forward
from scratchnet.kernels.compiled.norm import norm_add, norm_back
from scratchnet.kernels.compiled.pointwise import apart, product


def block_forward(x, first, second, third, stride, padding, dilation, shortcut=None):
    """One pass over z2 to write it, one to read it; the rest as narrow as x."""
    weight3, gamma3, beta3, eps3 = third
    *moments, kept = run_forward(x, first, second, stride)
    two, z2 = kept[4], kept[2]
    z3 = product(weight3[:, :, 0, 0], z2, before=(two.mean, two.gamma * two.inv_std, two.beta))  # (DWF.2), (PROJ.1)
    y, mean3, var3, *norm3 = norm_add(z3, gamma3, beta3, eps3, None if shortcut is None else flat(shortcut))
    height, width = kept[5].height2, z2.shape[1] // (kept[5].height2 * x.shape[3])
    cache = kept, weight3, z3, gamma3, mean3, *norm3
    return y.reshape(-1, height, width, x.shape[3]), *moments, mean3, var3, cache


def block_backward(dy, cache):
    """Over z2 three passes, two of them in the cache; over the gradient of z1 three, of which one leaves the cache."""
    kept, weight3, z3, gamma3, mean3, inv_std3, count3 = cache
    dz3 = apart(z3.shape, z3.dtype)
    dgamma3, dbeta3 = norm_back(flat(dy), z3, gamma3, mean3, inv_std3, count3, dz3)
    matrix3 = np.ascontiguousarray(weight3[:, :, 0, 0].T)
    dmatrix3 = np.empty_like(matrix3)
    dx, *gradients = run_backward(np.empty((0, 0), dy.dtype), dz3, matrix3, dmatrix3, kept)
    return dx, *gradients, np.ascontiguousarray(dmatrix3.T).reshape(weight3.shape), dgamma3, dbeta3
