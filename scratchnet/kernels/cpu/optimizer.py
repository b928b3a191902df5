"""The optimizers' updates on the CPU, in arrays that are used again (training/optim.py, adaptive.py)."""

import math

import numpy as np

from scratchnet.kernels.cpu.buffers import empty


def sgd_update(data, grad, velocity, lr, momentum, nesterov, weight_decay):
    """Two to six passes."""
    work = empty(data.shape, data.dtype)
    if weight_decay:
        decayed = np.multiply(data, weight_decay, out=empty(data.shape, data.dtype))
        grad = np.add(decayed, grad, out=decayed)  # (SGD.1)
    direction = grad
    if velocity is not None:
        velocity *= momentum
        velocity += grad  # (SGD.2)
        direction = velocity
    if nesterov:
        np.multiply(velocity, momentum, out=work)
        direction = np.add(work, grad, out=work)  # (SGD.3)
    data -= np.multiply(direction, lr, out=work)  # (SGD.4)


def rmsprop_update(data, grad, square, mean, velocity, lr, alpha, eps, momentum, weight_decay):
    """Nine passes, two more each with weight decay and momentum, five where it is centered."""
    work = empty(data.shape, data.dtype)
    if weight_decay:
        decayed = np.multiply(data, weight_decay, out=empty(data.shape, data.dtype))
        grad = np.add(decayed, grad, out=decayed)  # (RMS.1)
    square *= alpha
    np.multiply(grad, grad, out=work)
    square += np.multiply(work, 1 - alpha, out=work)  # (RMS.2)
    spread = square
    if mean is not None:
        mean *= alpha
        mean += np.multiply(grad, 1 - alpha, out=work)  # (RMS.3)
        np.multiply(mean, mean, out=work)
        np.subtract(square, work, out=work)
        spread = np.maximum(work, 0, out=work)  # (RMS.4)
    np.sqrt(spread, out=work)
    work += eps
    np.divide(grad, work, out=work)  # (RMS.5)
    direction = work
    if velocity is not None:
        velocity *= momentum
        velocity += work  # (RMS.6)
        direction = velocity
    data -= np.multiply(direction, lr, out=work)  # (RMS.7)


def adam_update(data, grad, mean, square, step, lr, betas, eps, weight_decay):
    """Twelve passes, two more with weight decay."""
    work = empty(data.shape, data.dtype)
    beta1, beta2 = betas
    if weight_decay:
        decayed = np.multiply(data, weight_decay, out=empty(data.shape, data.dtype))
        grad = np.add(decayed, grad, out=decayed)  # (ADAM.1)
    mean *= beta1
    mean += np.multiply(grad, 1 - beta1, out=work)  # (ADAM.2)
    square *= beta2
    np.multiply(grad, grad, out=work)
    square += np.multiply(work, 1 - beta2, out=work)  # (ADAM.3)
    np.sqrt(square, out=work)
    work *= 1 / math.sqrt(1 - beta2**step)
    work += eps
    np.divide(mean, work, out=work)  # (ADAM.4)
    work *= lr / (1 - beta1**step)
    data -= work  # (ADAM.5)
