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
    So dy loses its mean and its part along x̂: shifting or stretching x changes no y (but for eps), so L has no slope there.

With frozen statistics (eval mode) m and v are constants and only the first way is left:
    dx = weight · s · dy                                                          (BN.8)

The running statistics are averages that forget: with momentum μ, the weight of the newest batch,
    running_mean ← running_mean + μ (m - running_mean)                            (BN.9)
    running_var  ← running_var  + μ (v · M/(M-1) - running_var)                   (BN.10)
where M/(M-1) makes v the unbiased estimate, as in PyTorch.

Over several ranks (parallel/ranks.py), of which rank r has Mr of the M numbers of the row, with mean mr and variance vr, x
is still one row: m and v are sums over all of it. From each rank's own follow, exactly,
    M = Σ Mr,   m = Σ Mr mr / M                                                   (BN.11)
    v = Σ Mr (vr + (mr - m)²) / M                                                 (BN.12)
since Σ (x - m)² over a rank's numbers is Mr vr + Mr (mr - m)²: the term in between has the factor Σ (x - mr) = 0. In
backward xᵢ reaches the x̂ⱼ of every rank, through m and v. So the two sums in (BN.7), and its M, are those of all ranks; the
rest of it is a rank's own. dweight and dbias themselves are returned as each rank's part, as every gradient is: the parts
are added once a step, for all parameters together.
"""

import math

import numpy as np

from scratchnet import kernels, together
from scratchnet.array import as_images, as_matrix
from scratchnet.device import kind_of
from scratchnet.layers.arguments import DEVICE, pytorch_arguments
from scratchnet.module import Module, Parameter
from scratchnet.parallel import ranks
from scratchnet.parallel.ranks import moments_to_track, pooled_moments, pooled_sums
from scratchnet.parameter import add_gradients, is_trained
from scratchnet.windows import is_count


def centre(rows):
    """Rows (C, M) less the mean of each, that mean and the biased variance, each (C, 1), and M: those of all ranks."""
    mean = own = rows.mean(axis=1, keepdims=True)  # (BN.1)
    centred = rows - mean
    var = (centred * centred).mean(axis=1, keepdims=True)  # (BN.2) this form stays exact far from zero
    mean, var, m = pooled_moments(mean, var, rows.shape[1])  # (BN.11), (BN.12)
    return centred if mean is own else rows - mean, mean, var, m


def batch_norm_forward(x, weight, bias, eps):
    """Normalise with the statistics of this very batch, that of all ranks.

    Args:
        x: activations, (N, C, H, W), more than one value per channel.
        weight, bias: (C,).
        eps: added to the variance, in the units of x squared.

    Returns:
        y, shaped like x; the batch's mean and biased variance, each (C,); the cache for `batch_norm_backward`.
    """
    rows = as_matrix(x)  # (N, C, H, W) -> (C, M)
    centred, mean, var, m = centre(rows)
    inv_std = 1 / (var + eps) ** 0.5
    xhat = centred * inv_std  # (BN.3)
    y = weight[:, None] * xhat + bias[:, None]  # (BN.4)
    return as_images(y, x), mean[:, 0], var[:, 0], (x, mean, inv_std, weight, m)


def batch_norm_backward(dy, cache):
    """Gradients of `batch_norm_forward`: dx like dy (N, C, H, W), dweight and dbias (C,)."""
    x, mean, inv_std, weight, m = cache
    grad = as_matrix(dy)  # (N, C, H, W) -> (C, M)
    xhat = (as_matrix(x) - mean) * inv_std  # (BN.3) again: x is kept anyway, x̂ would be one more activation
    dbias = grad.sum(axis=1)  # (BN.5)
    dweight = (grad * xhat).sum(axis=1)  # (BN.6)
    all_dbias, all_dweight = pooled_sums(dbias, dweight)
    through_mean = all_dbias[:, None] / m
    through_var = xhat * (all_dweight[:, None] / m)
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


def fixed_batch_norm_backward(dy, scale):
    """(BN.8) alone, weight and bias being frozen too: dx like dy (N, C, H, W), from scale = weight · s, (C, 1)."""
    return as_images(scale * as_matrix(dy), dy), None, None  # (BN.8)


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


def track_all(rows):
    """`track_statistics` of several layers: rows of its arguments."""
    for row in rows:
        track_statistics(*row)


BATCH_NORM = kernels.Pair(batch_norm_forward, batch_norm_backward)
FROZEN_BATCH_NORM = kernels.Pair(frozen_batch_norm_forward, frozen_batch_norm_backward)
TRACK = kernels.Pair(track_all)


@pytorch_arguments(
    affine=((True,), "weight is 1 and bias 0 at first: with requires_grad_(False) they stay so"),
    track_running_stats=(
        (True,),
        "eval() normalises by the running statistics, train() by the batch's: stay in train()",
    ),
    device=DEVICE,
)
class BatchNorm(Module):
    """Batch normalisation of every channel, with running statistics for eval mode; a class says of which shapes.

    In training mode it takes the batch's statistics and tracks the running ones even where weight and bias are frozen
    (`requires_grad_(False)`), as in PyTorch: `eval()` of that layer, or of the part that it is in, stops that, and
    `eval(save=True)` where gradients have to come through.

    Attributes:
        shapes: the sizes of x behind (N, C), for each number of axes that x may have.
        weight, bias: (C,), ones and zeros at first; weight decay leaves both alone.
        running_mean, running_var: (C,), zeros and ones at first.
        num_batches_tracked: how many batches the running statistics have seen.
        momentum: the weight of the newest batch in them; the running variance is unbiased (both as in PyTorch).

    Raises:
        ValueError: x is of another shape, or holds one value per channel in training mode.
    """

    shapes: tuple[tuple[str, ...], ...] = ()
    takes_bfloat16 = True
    buffers = ("running_mean", "running_var", "num_batches_tracked")

    def __init__(self, num_features, eps=1e-5, momentum=0.1, *, dtype=np.float32):
        if not is_count(num_features):
            raise ValueError(f"{self.name}: num_features must be an int of at least 1, got {num_features!r}")
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
        """Raise ValueError where x of this shape holds too few values for statistics; several ranks' `track` may."""
        if ranks.size == 1 and math.prod(shape) == shape[1]:
            raise ValueError(
                f"{self.name}: needs more than one value per channel in training mode, got x of shape {shape}"
            )

    def forward(self, x):
        """Normalise x, by its own statistics in training mode and by the running ones in eval mode."""
        rest = min(self.shapes, key=lambda shape: abs(len(shape) + 2 - getattr(x, "ndim", 0)))
        self.require(x, "N", self.weight.data.size, *rest)
        forward, backward, _ = self.pair(kind_of(x))
        weight, bias = self.weight.data, self.bias.data
        if self.training:
            self.require_batch(x.shape)
            y, mean, var, cache = forward(x, weight, bias, self.eps)
            self.track(mean, var, x.size // x.shape[1])
        else:
            y, cache = forward(x, weight, bias, self.running_mean, self.running_var, self.eps)
            if x.dtype == weight.dtype and not (is_trained(self.weight) or is_trained(self.bias)):
                scale = weight / (self.running_var + self.eps) ** 0.5
                backward, cache = fixed_batch_norm_backward, scale[:, None]  # x is not kept for sums that nobody wants
        self.save_cache((backward, cache), y)
        return y

    def backward(self, dy):
        """Return dx; add dweight and dbias."""
        backward, cache = self.take_cache(dy)
        dx, dweight, dbias = backward(dy, cache)
        add_gradients((self.weight, self.bias), (dweight, dbias))
        return dx

    def track(self, mean, var, count):
        """Take the statistics of one more batch into the running ones, which are the same on all ranks.

        Args:
            mean, var: each (C,), as forward found them.
            count: values a channel on this rank.

        Raises:
            ValueError: all ranks together have one value a channel.
        """
        mean, var, count = moments_to_track(mean, var, count)
        if count == 1:
            raise ValueError(f"{self.name}: needs more than one value per channel in training mode, all ranks have one")
        running = self.running_mean, self.running_var, self.num_batches_tracked
        together.do(TRACK, [(*running, mean, var, self.momentum, count)])

    def extra_repr(self):  # noqa: D102
        return f"{self.weight.data.size}, eps={self.eps}, momentum={self.momentum}"


class BatchNorm2d(BatchNorm):
    """`BatchNorm` of (N, num_features, H, W), over N, H and W."""

    shapes = (("H", "W"),)


class BatchNorm1d(BatchNorm):
    """`BatchNorm` of (N, num_features), over N, or of (N, num_features, L), over N and L: rows of the same matrix."""

    shapes = ((), ("L",))
