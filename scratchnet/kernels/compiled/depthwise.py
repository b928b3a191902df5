"""Depthwise 3×3 convolution, padding 1, stride 1 or 2, compiled: alone, with batch norm and ReLU6, and at inference.

Arrays are (C, H, W·N): a row of pixels is W·N numbers and the next column N numbers further (array.py), so that one loop
goes over all of a row's columns and pictures. The loops are in convolve.py.
"""

import numpy as np

from scratchnet.kernels.compiled import convolve as loops
from scratchnet.kernels.compiled.jit import everywhere
from scratchnet.kernels.cpu.buffers import empty

COST = 32  # of a number of x, in multiply-adds (`jit.channels`)


def depthwise_forward(x, weight, stride, padding, dilation):
    """One pass."""
    z, sizes = _outputs(x, stride)
    arrays = _rows(x), _taps(weight), *sizes, _flat(z)
    everywhere(loops.forward, len(x), x.size * COST, *arrays, scratch=_ring(x))
    return z


def depthwise_backward(dy, x, weight, stride, padding, dilation):
    """One pass."""
    dx, dweight = empty(x.shape, x.dtype), np.zeros((len(x), 9), x.dtype)
    arrays = _flat(dy), _rows(x), _taps(weight), x.shape[3], stride[0], dy.shape[1], _rows(dx), dweight
    everywhere(loops.backward, len(x), x.size * COST, *arrays, scratch=_ring(x))
    return dx, dweight.reshape(weight.shape)


def depthwise_norm_relu6_forward(x, weight, gamma, beta, eps, stride, padding, dilation):
    """One pass over memory: the convolution, the sums and y while a channel is in the cache."""
    (z, sizes), y = _outputs(x, stride), _outputs(x, stride)[0]
    mean, var, inv_std = np.empty((3, len(x)), x.dtype)
    numbers = x.dtype.type(eps), x.dtype.type(z[0].size)
    arrays = _rows(x), _taps(weight), *sizes, gamma, beta, *numbers, _flat(z), _flat(y), mean, var, inv_std
    everywhere(loops.norm_relu6_forward, len(x), x.size * COST, *arrays, scratch=_ring(x))
    return y, mean, var, (x, weight, z, gamma, beta, mean, inv_std, stride[0])


def depthwise_norm_relu6_backward(dy, cache):
    """Two passes over dy and z, one over x and dx."""
    x, weight, z, gamma, beta, mean, inv_std, stride = cache
    dx, dweight = empty(x.shape, x.dtype), np.zeros((len(x), 9), x.dtype)
    dgamma, dbeta = np.empty((2, len(x)), x.dtype)
    kept = _flat(z), _rows(x), _taps(weight), x.shape[3], stride, z.shape[1], gamma, beta, mean, inv_std
    arrays = _flat(dy), *kept, x.dtype.type(z[0].size), _rows(dx), dweight, dgamma, dbeta
    everywhere(loops.norm_relu6_backward, len(x), x.size * COST, *arrays, scratch=_ring(x))
    return dx, dweight.reshape(weight.shape), dgamma, dbeta


def depthwise_relu6(x, weight, bias, stride, padding, dilation):
    """One pass (fused/inference.py)."""
    y, sizes = _outputs(x, stride)
    arrays = _rows(x), _taps(weight), *sizes, bias, _flat(y)
    everywhere(loops.relu6, len(x), x.size * COST, *arrays, scratch=_ring(x))
    return y


def _outputs(x, stride):
    """An array for the convolution's output, and what the loops have to know: N, the stride, OH."""
    height, width = ((size - 1) // stride[0] + 1 for size in x.shape[1:3])
    return empty((len(x), height, width, x.shape[3]), x.dtype), (x.shape[3], stride[0], height)


def _ring(x):
    """Three padded rows, for a thread."""
    return (3, (x.shape[2] + 2) * x.shape[3]), x.dtype


def _rows(maps):
    return maps.reshape(*maps.shape[:2], -1)  # (C, H, W, N) -> (C, H, W·N)


def _flat(maps):
    return maps.reshape(len(maps), -1)  # (C, H, W, N) -> (C, H·W·N)


def _taps(weight):
    return np.ascontiguousarray(weight).reshape(len(weight), 9)  # (C, 1, 3, 3) -> (C, 9)
