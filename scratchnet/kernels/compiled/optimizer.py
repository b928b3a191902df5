"""The optimizers' updates, compiled (training/optim.py): one pass over a parameter, its gradient and its slots."""

import math

import numpy as np

from scratchnet.kernels.compiled.jit import jit
from scratchnet.kernels.cpu import optimizer as in_numpy


def sgd_update(data, grad, velocity, lr, momentum, nesterov, weight_decay):
    """One pass."""
    if not _is_flat(data, velocity):
        in_numpy.sgd_update(data, grad, velocity, lr, momentum, nesterov, weight_decay)
        return
    slot = None if velocity is None else velocity.reshape(-1)
    lr, momentum, decay = map(data.dtype.type, (lr, momentum, weight_decay))
    _sgd(data.reshape(-1), np.ravel(grad), slot, lr, momentum, nesterov, weight_decay != 0, decay)


def adam_update(data, grad, mean, square, step, lr, betas, eps, weight_decay):
    """One pass."""
    if not _is_flat(data, mean, square):
        in_numpy.adam_update(data, grad, mean, square, step, lr, betas, eps, weight_decay)
        return
    beta1, beta2 = betas
    averages, rate = (beta1, 1 - beta1, beta2, 1 - beta2), lr / (1 - beta1**step)
    numbers = *averages, 1 / math.sqrt(1 - beta2**step), eps, rate, weight_decay
    slots = mean.reshape(-1), square.reshape(-1)
    _adam(data.reshape(-1), np.ravel(grad), *slots, *map(data.dtype.type, numbers), weight_decay != 0)


def _is_flat(*arrays):
    """Whether `reshape(-1)` is the array itself, so that what is written there is written."""
    return all(array is None or array.flags.c_contiguous for array in arrays)


@jit
def _sgd(data, grad, velocity, lr, momentum, nesterov, decays, weight_decay):
    for i in range(data.size):
        g = grad[i]
        if decays:
            g += weight_decay * data[i]  # (SGD.1)
        d = g
        if velocity is not None:
            v = momentum * velocity[i] + g  # (SGD.2)
            velocity[i] = v
            d = g + momentum * v if nesterov else v  # (SGD.3)
        data[i] -= lr * d  # (SGD.4)


@jit
def _adam(data, grad, mean, square, beta1, rest1, beta2, rest2, unbias, eps, rate, weight_decay, decays):
    for i in range(data.size):
        g = grad[i]
        if decays:
            g += weight_decay * data[i]  # (ADAM.1)
        m = beta1 * mean[i] + rest1 * g  # (ADAM.2)
        s = beta2 * square[i] + rest2 * (g * g)  # (ADAM.3)
        mean[i] = m
        square[i] = s
        data[i] -= rate * (m / (np.sqrt(s) * unbias + eps))  # (ADAM.4), (ADAM.5)
