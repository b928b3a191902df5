"""Activations in bfloat16, which halves what a GPU has to move: the two convolutions that need a way of their own then.

Activations and their gradients are stored in 16 bits, from the pictures to the last feature map. Parameters, their
gradients, batch norm's statistics and every sum are float32, and so is all that comes behind the global pooling. A matrix
product takes both factors in bfloat16, adds up in float32 and rounds once; weights are rounded on the way to it.
"""

from scratchnet.array import as_images, as_matrix, get_array_module, is_bfloat16
from scratchnet.kernels import register
from scratchnet.kernels.gpu_rows import norm_gradient, normalise, row_statistics, stored_like, widened


def takes(x, *_):
    """Whether x is stored in bfloat16."""
    return is_bfloat16(x)


@register("cuda", takes)
def pointwise_forward(x, weight, stride):
    """(CONV.3), the weight rounded."""
    seen = x[:, :: stride[0], :: stride[1]]
    y = stored_like(_matrix(weight), x) @ seen.reshape(len(x), -1)
    return y.reshape(len(weight), *seen.shape[1:])


@register("cuda", takes)
def pointwise_backward(dy, x, weight, stride):
    """(CONV.5) to (CONV.7); dweight leaves in float32."""
    seen, grad = x[:, :: stride[0], :: stride[1]], dy.reshape(len(dy), -1)
    dweight = widened(grad @ seen.reshape(len(x), -1).T).reshape(weight.shape)
    dseen = (stored_like(_matrix(weight), x).T @ grad).reshape(seen.shape)
    if stride == (1, 1):
        return dseen, dweight
    dx = get_array_module(x).zeros_like(x)
    dx[:, :: stride[0], :: stride[1]] = dseen
    return dx, dweight


@register("cuda", takes)
def conv_norm_relu6_forward(x, weight, gamma, beta, eps):
    """The convolution's output is made and kept, as in layers/fused_depthwise.py.

    The covariance of (FUSE.2) would leave its product in 8 bits, too few to take a variance from that is small beside
    them. So the statistics are those of the stored numbers themselves, as in PyTorch's mixed precision.
    """
    rows, matrix = as_matrix(x), _matrix(weight)
    z = stored_like(matrix, x) @ rows
    mean, var, inv_std = row_statistics(z, eps)  # (DWF.1)
    y = normalise(z, mean, inv_std, gamma, beta, clip=True)  # (DWF.2)
    return as_images(y, x), mean, var, (rows, matrix, z, mean, inv_std, gamma, beta)


@register("cuda", takes)
def conv_norm_relu6_backward(dy, cache):
    """(DWF.6), the convolution being a matrix product here."""
    rows, matrix, z, mean, inv_std, gamma, beta = cache
    h, dgamma, dbeta = norm_gradient(as_matrix(dy), z, mean, inv_std, gamma, beta, clip=True)  # (DWF.3)-(DWF.5)
    a = (gamma * inv_std)[:, None]
    dx = stored_like(a * matrix, h).T @ h
    dweight = a * widened(h @ rows.T)
    return as_images(dx, dy), dweight.reshape(*matrix.shape, 1, 1), dgamma, dbeta


def _matrix(weight):
    return weight.reshape(len(weight), -1)  # (O, C, 1, 1) -> (O, C)
