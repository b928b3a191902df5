"""1×1 convolutions on the GPU, as 2-D matrix products: alone, with batch norm behind it, and with ReLU6 at inference.

`device.use_tf32` says how exact the products are.
"""

from scratchnet.array import as_images, as_matrix
from scratchnet.device import get_array_module
from scratchnet.kernels.cuda.activation import shift_and_clip
from scratchnet.kernels.cuda.launch import sum_dtype
from scratchnet.kernels.cuda.norm import norm_gradient, normalise, normalise_and_add, row_statistics
from scratchnet.kernels.cuda.products import product
from scratchnet.kernels.cuda.rows import stored_like


def pointwise_forward(x, weight, stride):
    """(CONV.3); with x in bfloat16 the weight is rounded."""
    seen = x[:, :: stride[0], :: stride[1]]
    y = product(stored_like(_matrix(weight), x), seen.reshape(len(x), -1))
    return y.reshape(len(weight), *seen.shape[1:])


def pointwise_backward(dy, x, weight, stride, wants_dweight=True):
    """(CONV.5) to (CONV.7); dweight leaves in float32."""
    seen, grad, dweight = x[:, :: stride[0], :: stride[1]], dy.reshape(len(dy), -1), None
    if wants_dweight:
        dweight = product(grad, seen.reshape(len(x), -1).T, dtype=sum_dtype(x)).reshape(weight.shape)
    dseen = product(stored_like(_matrix(weight), x).T, grad).reshape(seen.shape)
    if stride == (1, 1):
        return dseen, dweight
    dx = get_array_module(x).zeros_like(x)
    dx[:, :: stride[0], :: stride[1]] = dseen
    return dx, dweight


# With batch norm behind it (fused/pointwise.py, fused/project.py) -------------------------------------------------------


def conv_norm_relu6_forward(x, weight, gamma, beta, eps):
    """The convolution's output is made and kept, as in fused/depthwise.py; five passes over the wide arrays.

    A covariance (FUSE.2) of numbers in 16 bits, or added up in float32, has too few digits to take a variance from that is
    small beside its entries. So the statistics are those of the stored numbers, as in PyTorch's mixed precision.
    """
    z, mean, var, inv_std, cache = _measured(x, weight, gamma, beta, eps)
    return as_images(normalise(z, mean, inv_std, gamma, beta, clip=True), x), mean, var, cache  # (DWF.2)


def conv_norm_relu6_backward(dy, cache):
    """(DWF.3) to (DWF.5), and two products; seven passes over the wide arrays."""
    return _backward(dy, cache, clip=True)


def project_forward(x, weight, gamma, beta, eps, shortcut=None):
    """A pass over x; over the narrow arrays four, and one for a shortcut."""
    z, mean, var, inv_std, cache = _measured(x, weight, gamma, beta, eps)
    if shortcut is None:
        y = normalise(z, mean, inv_std, gamma, beta, clip=False)
    else:
        y = normalise_and_add(z, mean, inv_std, gamma, beta, as_matrix(shortcut))  # (PROJ.2)
    return as_images(y, x), mean, var, cache


def project_backward(dy, cache):
    """Two passes over wide arrays, seven over narrow ones."""
    return _backward(dy, cache, clip=False)


def _measured(x, weight, gamma, beta, eps):
    """The convolution's output, its mean, variance and 1/√(variance + eps), and the cache."""
    rows, matrix = as_matrix(x), stored_like(_matrix(weight), x)
    z = product(matrix, rows)  # (PROJ.1)
    mean, var, inv_std, count = row_statistics(z, eps)  # (DWF.1)
    return z, mean, var, inv_std, (rows, matrix, z, mean, inv_std, gamma, beta, count)


def _backward(dy, cache, clip):
    """dx, dweight, dgamma and dbeta."""
    rows, matrix, z, mean, inv_std, gamma, beta, count = cache
    dz, dgamma, dbeta = norm_gradient(as_matrix(dy), z, mean, inv_std, gamma, beta, count, clip)
    dx, dweight = product(matrix.T, dz), product(dz, rows.T, dtype=sum_dtype(dz))  # (PROJ.3)
    return as_images(dx, dy), dweight.reshape(*matrix.shape, 1, 1), dgamma, dbeta


def clipped_product(x, weight, bias):
    """The product of (FUSE.5), and a pass over it in place."""
    y = product(stored_like(weight, x), x)
    shift_and_clip(y, bias)
    return y


def _matrix(weight):
    return weight.reshape(len(weight), -1)  # (O, C, 1, 1) -> (O, C)
