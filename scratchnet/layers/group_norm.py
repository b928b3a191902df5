"""Normalising each picture by itself: a set of its numbers to mean 0 and variance 1, then scaled and shifted.

Batch norm (norm.py) takes one channel of all pictures together; these take one picture, and of it
    LayerNorm    the numbers along its last axes: of a vector all F, of a picture all of (C, H, W), or each row along W
    GroupNorm    those of a group of its channels, C/groups · H · W numbers
Nothing passes from one picture to another, so train and eval mode are the same, and several ranks have nothing to exchange.

In both x falls into sets of M numbers. Forward, for one set
    m  = Σ x / M                                                                  (LN.1)
    v  = Σ (x - m)² / M                                                           (LN.2)
    x̂  = (x - m) · s,   s = 1 / √(v + eps)                                        (LN.3)
    y  = weight · x̂ + bias                                                        (LN.4)
where weight and bias have numbers of their own within a set: one a channel (GroupNorm) or one a place (LayerNorm). So
this is where the backward differs from batch norm's: the weight stands inside the sums, with
    g  = weight · dy          what comes to x̂, since ∂yⱼ/∂x̂ⱼ = weightⱼ             (LN.5)
x̂ follows x as in batch norm, by itself, through m and through v, whose derivation is in norm.py:
    dx = s · ( g  -  Σ g / M  -  x̂ · Σ g x̂ / M )                                  (LN.6)
A number of weight or bias is in many sets, and its gradient the sum over all places where it is:
    dweight = Σ dy · x̂                                                            (LN.7)
    dbias   = Σ dy                                                                (LN.8)
Sources: Ba, Kiros and Hinton 2016, §3; Wu and He 2018, §3.
"""

import numpy as np

from scratchnet import kernels
from scratchnet.array import as_images, as_maps
from scratchnet.module import Module, Parameter
from scratchnet.parameter import add_gradients
from scratchnet.windows import is_count


def normalise(x, axes, eps):
    """Each set of x, which lies along `axes`, to mean 0 and variance 1; also its mean and 1/√(variance + eps)."""
    mean = x.mean(axis=axes, keepdims=True)  # (LN.1)
    centred = x - mean
    var = (centred * centred).mean(axis=axes, keepdims=True)  # (LN.2) this form stays exact far from zero
    inv_std = 1 / (var + eps) ** 0.5
    return centred * inv_std, mean, inv_std  # (LN.3)


def normalise_backward(grad, xhat, inv_std, axes):
    """dx of `normalise` from what comes to x̂."""
    through_mean = grad.mean(axis=axes, keepdims=True)
    through_var = xhat * (grad * xhat).mean(axis=axes, keepdims=True)
    return inv_std * (grad - through_mean - through_var)  # (LN.6)


def layer_norm_forward(x, weight, bias, axes, eps):
    """Normalise along the last axes of x.

    Args:
        x: (N, …).
        weight, bias: of the sizes of the last axes, or None.
        axes: how many those are; the first, of the pictures, is none of them.
        eps: added to the variance, in the units of x squared.

    Returns:
        y, shaped like x, and the cache for `layer_norm_backward`.
    """
    maps = as_maps(x)  # (N, C, H, W) -> (C, H, W, N)
    last = tuple(range(maps.ndim - 1 - axes, maps.ndim - 1))
    y, mean, inv_std = normalise(maps, last, eps)
    if weight is not None:
        y = weight[..., None] * y  # (LN.4): (…, 1) has one number for all pictures
    if bias is not None:
        y = y + bias[..., None]
    return as_images(y), (maps, mean, inv_std, weight, bias is not None, last)


def layer_norm_backward(dy, cache):
    """Gradients of `layer_norm_forward`: dx like dy; dweight and dbias, or None for one that there is not."""
    maps, mean, inv_std, weight, has_bias, last = cache
    grad = as_maps(dy)
    xhat = (maps - mean) * inv_std  # (LN.3) again: x is kept anyway, x̂ would be one more activation
    others = tuple(axis for axis in range(grad.ndim) if axis not in last)
    dbias = grad.sum(axis=others) if has_bias else None  # (LN.8)
    dweight = None if weight is None else (grad * xhat).sum(axis=others)  # (LN.7)
    to_xhat = grad if weight is None else weight[..., None] * grad  # (LN.5)
    return as_images(normalise_backward(to_xhat, xhat, inv_std, last)), dweight, dbias


def group_norm_forward(x, weight, bias, groups, eps):
    """Normalise each group of channels of each picture.

    Args:
        x: (N, C, …).
        weight, bias: (C,), or both None.
        groups: how many, of equally many channels that follow one another.
        eps: added to the variance, in the units of x squared.

    Returns:
        y, shaped like x, and the cache for `group_norm_backward`.
    """
    maps = as_maps(x)  # (N, C, H, W) -> (C, H, W, N)
    xhat, mean, inv_std = normalise(maps.reshape(groups, -1, len(x)), 1, eps)  # (C, H, W, N) -> (G, M, N)
    y = xhat.reshape(len(maps), -1)
    if weight is not None:
        y = weight[:, None] * y + bias[:, None]  # (LN.4) on (C, H·W·N)
    return as_images(y, x), (maps, mean, inv_std, weight)


def group_norm_backward(dy, cache):
    """Gradients of `group_norm_forward`: dx like dy; dweight and dbias (C,), or None where there are none."""
    maps, mean, inv_std, weight = cache
    sets = len(mean), -1, dy.shape[0]
    grad = as_maps(dy).reshape(len(maps), -1)  # (N, C, H, W) -> (C, H·W·N)
    xhat = (maps.reshape(sets) - mean) * inv_std  # (LN.3) again
    dweight = dbias = None
    if weight is not None:
        dbias = grad.sum(axis=1)  # (LN.8)
        dweight = (grad * xhat.reshape(grad.shape)).sum(axis=1)  # (LN.7)
        grad = weight[:, None] * grad  # (LN.5)
    return as_images(normalise_backward(grad.reshape(sets), xhat, inv_std, 1), dy), dweight, dbias


LAYER_NORM = kernels.Pair(layer_norm_forward, layer_norm_backward)
GROUP_NORM = kernels.Pair(group_norm_forward, group_norm_backward)


class GroupNorm(Module):
    """Normalise each of `num_groups` groups of channels of each picture: (N, num_channels, …), of any number of axes.

    Attributes:
        weight, bias: (C,), ones and zeros at first; weight decay leaves both alone; None with `affine=False`.

    Raises:
        ValueError: groups that do not divide the channels; x of another number of channels.
    """

    def __init__(self, num_groups, num_channels, eps=1e-5, affine=True, *, dtype=np.float32):
        if not (is_count(num_groups) and is_count(num_channels) and num_channels % num_groups == 0):
            raise ValueError(
                "GroupNorm: num_channels must be a positive multiple of num_groups, "
                f"got {num_channels!r} and num_groups {num_groups!r}"
            )
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, float(eps)
        self.weight = Parameter(np.ones(num_channels, dtype), decay=False) if affine else None
        self.bias = Parameter(np.zeros(num_channels, dtype), decay=False) if affine else None

    def forward(self, x):
        """Normalise x."""
        self.require(x)
        if x.shape[1] != self.num_channels:
            raise ValueError(f"{self.name}: expected {self.num_channels} input channels, got x of shape {x.shape}")
        weight, bias = (parameter and parameter.data for parameter in (self.weight, self.bias))
        y, cache = group_norm_forward(x, weight, bias, self.num_groups, self.eps)
        self.save_cache(cache, y)
        return y

    def backward(self, dy):
        """Return dx; add dweight and dbias."""
        dx, dweight, dbias = group_norm_backward(dy, self.take_cache(dy))
        if self.weight:
            add_gradients((self.weight, self.bias), (dweight, dbias))
        return dx

    def pair(self, kind):
        """(LN.1) to (LN.8), a set being a group."""
        return GROUP_NORM

    def extra_repr(self):  # noqa: D102
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}" + ", affine=False" * (self.weight is None)


class LayerNorm(Module):
    """Normalise each picture along its last axes, whose sizes are `normalized_shape`.

    `LayerNorm(F)` is for (N, F), `LayerNorm((C, H, W))` for whole pictures, `LayerNorm(W)` for each of their rows.

    Attributes:
        weight, bias: of normalized_shape, ones and zeros at first; weight decay leaves both alone; None with
            `elementwise_affine=False`, and `bias=False` leaves out the bias alone.

    Raises:
        ValueError: a normalized_shape that is no int or tuple of ints; x whose sizes, N not counted, do not end so.
    """

    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, bias=True, *, dtype=np.float32):
        shape = tuple(normalized_shape) if isinstance(normalized_shape, (tuple, list)) else (normalized_shape,)
        if not shape or not all(map(is_count, shape)):
            raise ValueError(
                f"LayerNorm: normalized_shape must be an int of at least 1 or some of them, got {normalized_shape!r}"
            )
        self.normalized_shape, self.eps = shape, float(eps)
        self.weight = Parameter(np.ones(shape, dtype), decay=False) if elementwise_affine else None
        self.bias = Parameter(np.zeros(shape, dtype), decay=False) if elementwise_affine and bias else None

    def check(self, x):
        """Raise ValueError or TypeError for an x that forward cannot take."""
        self.require(x)
        shape = self.normalized_shape
        if x.ndim == len(shape) + 1:
            self.require(x, "N", *shape)
        if x.shape[1:][-len(shape) :] != shape:
            raise ValueError(
                f"{self.name}: expected x of shape (N, …) that ends with {shape}, got x of shape {x.shape}"
            )

    def forward(self, x):
        """Normalise x."""
        self.check(x)
        weight, bias = (parameter and parameter.data for parameter in (self.weight, self.bias))
        y, cache = layer_norm_forward(x, weight, bias, len(self.normalized_shape), self.eps)
        self.save_cache(cache, y)
        return y

    def backward(self, dy):
        """Return dx; add dweight and dbias."""
        dx, dweight, dbias = layer_norm_backward(dy, self.take_cache(dy))
        if self.weight:
            add_gradients((self.weight, self.bias), (dweight, dbias))
        return dx

    def pair(self, kind):
        """(LN.1) to (LN.8), a set being what lies along the last axes."""
        return LAYER_NORM

    def extra_repr(self):  # noqa: D102
        said = f"{self.normalized_shape}, eps={self.eps}"
        if self.weight is None:
            return f"{said}, elementwise_affine=False"
        return said + ", bias=False" * (self.bias is None)
