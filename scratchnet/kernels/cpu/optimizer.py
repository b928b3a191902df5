"""The optimizers' updates on the CPU, in arrays that are used again (training/optim.py)."""

import math

import numpy as np

from scratchnet.kernels.cpu.buffers import empty


def sgd_update(data, grad, velocity, lr, momentum, nesterov, weight_decay):
    """Two to six passes."""
    first, second = (empty(data.shape, data.dtype) for _ in range(2))
    if weight_decay:
        np.multiply(data, weight_decay, out=first)
        grad = np.add(first, grad, out=first)  # (SGD.1)
    direction = grad
    if velocity is not None:
        velocity *= momentum
        velocity += grad  # (SGD.2)
        direction = velocity
    if nesterov:
        np.multiply(velocity, momentum, out=second)
        direction = np.add(second, grad, out=second)  # (SGD.3)
    data -= np.multiply(direction, lr, out=second)  # (SGD.4)


def adam_update(data, grad, mean, square, step, lr, betas, eps, weight_decay):
    """Twelve passes, two more with weight decay."""
    first, second = (empty(data.shape, data.dtype) for _ in range(2))
    beta1, beta2 = betas
    if weight_decay:
        np.multiply(data, weight_decay, out=first)
        grad = np.add(first, grad, out=first)  # (ADAM.1)
    mean *= beta1
    mean += np.multiply(grad, 1 - beta1, out=second)  # (ADAM.2)
    square *= beta2
    np.multiply(grad, grad, out=second)
    square += np.multiply(second, 1 - beta2, out=second)  # (ADAM.3)
    np.sqrt(square, out=second)
    second *= 1 / math.sqrt(1 - beta2**step)
    second += eps
    np.divide(mean, second, out=second)  # (ADAM.4)
    second *= lr / (1 - beta1**step)
    data -= second  # (ADAM.5)
