"""The loss and the optimizers' updates on the GPU, one or two launches each."""

import math

from scratchnet.array import as_images, as_matrix, get_array_module
from scratchnet.kernels import register
from scratchnet.kernels.gpu import blocks, is_real, launch, reducing
from scratchnet.kernels.gpu_rows import row_sums_of


@register("cuda", is_real)
def cross_entropy_forward(logits, labels, label_smoothing):
    """A thread a picture; the blocks' parts of the loss are added in order."""
    xp, z = get_array_module(logits), as_matrix(logits)  # (N, K) -> (K, N)
    classes, n = z.shape
    log_p, target = xp.empty_like(z), xp.empty_like(z)
    grid = reducing(n)
    parts = xp.empty((1, grid[0]), z.dtype)
    labels = labels.astype("int64", copy=False)
    launch("cross_entropy_forward", (), grid, z, labels, log_p, target, parts, label_smoothing, classes, n)
    return row_sums_of(parts).reshape(()), (log_p, target)


@register("cuda", lambda dloss, cache: is_real(cache[0]))
def cross_entropy_backward(dloss, cache):
    """One pass over all classes and pictures."""
    log_p, target = cache
    dz = get_array_module(log_p).empty_like(log_p)
    factor = dloss / log_p.shape[1]
    launch("cross_entropy_backward", (), blocks(dz.size), log_p, target, dz, factor, dz.size)
    return as_images(dz)


@register("cuda", is_real)
def sgd_update(data, grad, velocity, scratch, lr, momentum, nesterov, weight_decay):
    """One pass; `scratch` is not used."""
    grid = blocks(data.size)
    if velocity is None:
        launch("sgd", (), grid, data, grad, lr, weight_decay, data.size)
    else:
        launch("sgd_momentum", (nesterov,), grid, data, grad, velocity, lr, momentum, weight_decay, data.size)


@register("cuda", is_real)
def adam_update(data, grad, mean, square, scratch, step, lr, betas, eps, weight_decay):
    """One pass; `scratch` is not used."""
    beta1, beta2 = betas
    rates = lr / (1 - beta1**step), beta1, beta2, 1 - beta1, 1 - beta2, 1 / math.sqrt(1 - beta2**step)
    launch("adam", (), blocks(data.size), data, grad, mean, square, *rates, eps, weight_decay, data.size)


@register("cuda", lambda images, draws, scale, shift: images.dtype.name == "uint8" and scale.dtype.name == "float32")
def take_batch(images, draws, scale, shift):
    """One launch: a thread a pixel of the batch, which looks up where it comes from."""
    _, channels, h, w = images.shape
    n = draws.shape[1]
    out = get_array_module(images).empty((channels, h, w, n), scale.dtype)
    launch("take_batch", (), blocks(h * w * n, channels), images, draws, scale, shift, out, h, w, n, dtype="float32")
    return as_images(out)
