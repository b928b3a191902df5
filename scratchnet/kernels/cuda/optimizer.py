"""The optimizers' updates on the GPU, one launch each (training/optim.py)."""

import math

from scratchnet.kernels.cuda.launch import blocks, launch


def sgd_update(data, grad, velocity, lr, momentum, nesterov, weight_decay):
    """One pass."""
    grid = blocks(data.size)
    if velocity is None:
        launch("sgd", (), grid, data, grad, lr, weight_decay, data.size)
    else:
        launch("sgd_momentum", (nesterov,), grid, data, grad, velocity, lr, momentum, weight_decay, data.size)


def adam_update(data, grad, mean, square, step, lr, betas, eps, weight_decay):
    """One pass."""
    beta1, beta2 = betas
    rates = lr / (1 - beta1**step), beta1, beta2, 1 - beta1, 1 - beta2, 1 / math.sqrt(1 - beta2**step)
    launch("adam", (), blocks(data.size), data, grad, mean, square, *rates, eps, weight_decay, data.size)
