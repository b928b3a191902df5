"""The optimizers' updates on the GPU, a launch each (training/optim.py, adaptive.py)."""

import math

from scratchnet.kernels.cuda.launch import blocks, launch


def sgd_update(data, grad, velocity, lr, momentum, nesterov, weight_decay):
    """One pass."""
    grid = blocks(data.size)
    if velocity is None:
        launch("sgd", (), grid, data, grad, lr, weight_decay, data.size)
    else:
        launch("sgd_momentum", (nesterov,), grid, data, grad, velocity, lr, momentum, weight_decay, data.size)


def rmsprop_update(data, grad, square, mean, velocity, lr, alpha, eps, momentum, weight_decay):
    """One pass."""
    slots = (grad if slot is None else slot for slot in (mean, velocity))  # what is not there is not read or written
    template, rates = (mean is not None, velocity is not None), (lr, alpha, 1 - alpha, eps, momentum, weight_decay)
    launch("rmsprop", template, blocks(data.size), data, grad, square, *slots, *rates, data.size)


def adam_update(data, grad, mean, square, step, lr, betas, eps, weight_decay):
    """One pass."""
    beta1, beta2 = betas
    rates = lr / (1 - beta1**step), beta1, beta2, 1 - beta1, 1 - beta2, 1 / math.sqrt(1 - beta2**step)
    launch("adam", (), blocks(data.size), data, grad, mean, square, *rates, eps, weight_decay, data.size)
