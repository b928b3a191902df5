"""Batch normalisation: every channel to mean 0 and variance 1 over the batch, then scaled and shifted.

Source: Ioffe and Szegedy 2015, Algorithm 1. An activation is a matrix with one row per channel and M = H·W·N
columns; batch norm treats each row by itself, so what follows is about one row x of M numbers.

Forward, training
    m  = Σ x / M                                                                  (BN.1)
    v  = Σ (x - m)² / M                                                           (BN.2)
    x̂  = (x - m) · s,   s = 1 / √(v + eps)                                        (BN.3)
    y  = weight · x̂ + bias                                                        (BN.4)

Backward, from dy = ∂L/∂y, walking up from (BN.4)
    dbias   = Σ dy            because ∂yⱼ/∂bias = 1                                (BN.5)
    dweight = Σ dy · x̂        because ∂yⱼ/∂weight = x̂ⱼ                             (BN.6)

    xᵢ reaches x̂ⱼ in three ways: itself (i = j), through the mean, and through the variance. From (BN.1)-(BN.3)
        ∂m/∂xᵢ = 1/M,   ∂v/∂xᵢ = 2 (xᵢ - m) / M,   ∂s/∂xᵢ = -½ s³ ∂v/∂xᵢ = -s² x̂ᵢ / M
        ∂x̂ⱼ/∂xᵢ = s · ( [i = j]  -  1/M  -  x̂ᵢ x̂ⱼ / M )
    and summing dyⱼ · weight · ∂x̂ⱼ/∂xᵢ over j leaves the two sums that (BN.5) and (BN.6) already hold:
    dx = weight · s · ( dy - dbias/M - x̂ · dweight/M )                            (BN.7)

With frozen statistics (eval mode) m and v are constants and only the first way is left:
    dx = weight · s · dy                                                          (BN.8)

The running statistics are averages that forget: with momentum μ, the weight of the newest batch,
    running_mean ← running_mean + μ (m - running_mean)                            (BN.9)
    running_var  ← running_var  + μ (v · M/(M-1) - running_var)                   (BN.10)
where M/(M-1) makes v the unbiased estimate, as in PyTorch.
"""

import math

import numpy as np

from scratchnet import kernels
from scratchnet.array import as_images, as_matrix
from scratchnet.device import kind_of
from scratchnet.module import Module, Parameter
from scratchnet.windows import is_count


def batch_norm_forward(x, weight, bias, eps):
    """Normalise with the statistics of this very batch.

    Args:
        x: activations, (N, C, H, W), more than one value per channel.
        weight, bias: (C,).
        eps: added to the variance, in the units of x squared.

    Returns:
        y, shaped like x; the batch's mean and biased variance, each (C,); the cache for `batch_norm_backward`.
    """
    rows = as_matrix(x)  # (N, C, H, W) -> (C, M)
    mean = rows.mean(axis=1, keepdims=True)  # (BN.1)
    centred = rows - mean
    var = (centred * centred).mean(axis=1, keepdims=True)  # (BN.2) this form stays exact far from zero
    inv_std = 1 / (var + eps) ** 0.5
    xhat = centred * inv_std  # (BN.3)
    y = weight[:, None] * xhat + bias[:, None]  # (BN.4)
    return as_images(y, x), mean[:, 0], var[:, 0], (x, mean, inv_std, weight)


def batch_norm_backward(dy, cache):
    """Gradients of `batch_norm_forward`: dx like dy (N, C, H, W), dweight and dbias (C,)."""
    x, mean, inv_std, weight = cache
    grad = as_matrix(dy)  # (N, C, H, W) -> (C, M)
    m = grad.shape[1]
    xhat = (as_matrix(x) - mean) * inv_std  # (BN.3) again: x is kept anyway, x̂ would be one more activation
    dbias = grad.sum(axis=1)  # (BN.5)
    dweight = (grad * xhat).sum(axis=1)  # (BN.6)
    through_mean = dbias[:, None] / m
    through_var = xhat * (dweight[:, None] / m)
    dx = weight[:, None] * inv_std * (grad - through_mean - through_var)  # (BN.7)
    return as_images(dx, dy), dweight, dbias


def frozen_batch_norm_forward(x, weight, bias, mean, var, eps):
    """(BN.3) and (BN.4) with given statistics, each (C,): an affine map per channel."""
    inv_std = 1 / (var[:, None] + eps) ** 0.5
    xhat = (as_matrix(x) - mean[:, None]) * inv_std
    return as_images(weight[:, None] * xhat + bias[:, None], x), (x, mean[:, None], inv_std, weight)


def frozen_batch_norm_backward(dy, cache):
    """Gradients of `frozen_batch_norm_forward`, shaped as those of `batch_norm_backward`."""
    x, mean, inv_std, weight = cache
    grad = as_matrix(dy)
    xhat = (as_matrix(x) - mean) * inv_std
    dx = weight[:, None] * inv_std * grad  # (BN.8)
    return as_images(dx, dy), (grad * xhat).sum(axis=1), grad.sum(axis=1)


def track_statistics(running_mean, running_var, batches, mean, var, momentum, count):
    """Take the statistics of one more batch into the running ones, in place.

    Args:
        running_mean, running_var: (C,).
        batches: how many there were, a 0-d integer array.
        mean, var: of the batch, (C,), the variance biased.
        momentum: the weight of the batch.
        count: values a channel, more than one.
    """
    running_mean += momentum * (mean - running_mean)  # (BN.9)
    running_var += momentum * (var * (count / (count - 1)) - running_var)  # (BN.10)
    batches += 1


BATCH_NORM = kernels.Pair(batch_norm_forward, batch_norm_backward)
FROZEN_BATCH_NORM = kernels.Pair(frozen_batch_norm_forward, frozen_batch_norm_backward)


class BatchNorm2d(Module):
    """Batch normalisation of (N, C, H, W) over N, H and W, with running statistics for eval mode.

    Attributes:
        weight, bias: (C,), ones and zeros at first; weight decay leaves both alone.
        running_mean, running_var: (C,), zeros and ones at first.
        num_batches_tracked: how many batches the running statistics have seen.
        momentum: the weight of the newest batch in them; the running variance is unbiased (both as in PyTorch).

    Raises:
        ValueError: x is not (N, num_features, H, W), or holds one value per channel in training mode.
    """

    takes_bfloat16 = True
    buffers = ("running_mean", "running_var", "num_batches_tracked")

    def __init__(self, num_features, eps=1e-5, momentum=0.1, *, dtype=np.float32):
        if not is_count(num_features):
            raise ValueError(f"BatchNorm2d: num_features must be an int of at least 1, got {num_features!r}")
        self.weight = Parameter(np.ones(num_features, dtype), decay=False)
        self.bias = Parameter(np.zeros(num_features, dtype), decay=False)
        self.running_mean = np.zeros(num_features, dtype)
        self.running_var = np.ones(num_features, dtype)
        self.num_batches_tracked = np.zeros((), np.int64)
        self.eps, self.momentum = float(eps), float(momentum)  # a NumPy scalar would make float32 float64

    def pair(self, kind):
        """By the batch's statistics, or by the running ones."""
        return kernels.choose(BATCH_NORM if self.training else FROZEN_BATCH_NORM, kind)

    def require_batch(self, shape):
        """Raise ValueError where x of this shape holds too few values for statistics."""
        if math.prod(shape) == shape[1]:
            raise ValueError(
                f"{self.name}: needs more than one value per channel in training mode, got x of shape {shape}"
            )

    def forward(self, x):
        """Normalise x, by its own statistics in training mode and by the running ones in eval mode."""
        self.require(x, "N", self.weight.data.size, "H", "W")
        forward, backward, _ = self.pair(kind_of(x))
        weight, bias = self.weight.data, self.bias.data
        if self.training:
            self.require_batch(x.shape)
            y, mean, var, cache = forward(x, weight, bias, self.eps)
            self.track(mean, var, x.size // x.shape[1])
        else:
            y, cache = forward(x, weight, bias, self.running_mean, self.running_var, self.eps)
        self.save_cache((backward, cache), y)
        return y

    def backward(self, dy):
        """Return dx; add dweight and dbias."""
        backward, cache = self.take_cache(dy)
        dx, dweight, dbias = backward(dy, cache)
        self.weight.grad += dweight
        self.bias.grad += dbias
        return dx

    def track(self, mean, var, count):
        """Take the statistics of one more batch, each (C,), of `count` values a channel, into the running ones."""
        running = self.running_mean, self.running_var, self.num_batches_tracked
        kernels.run(track_statistics, *running, mean, var, self.momentum, count)

    def extra_repr(self):  # noqa: D102
        return f"{self.weight.data.size}, eps={self.eps}, momentum={self.momentum}"
