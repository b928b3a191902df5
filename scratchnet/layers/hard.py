"""Activations of straight pieces: cheaper than the smooth ones that they stand in for, with kinks where the pieces meet.

    LeakyReLU:    y = x where x > 0, else s·x            (LEAKY.1)      dx = dy where x > 0, else s·dy            (LEAKY.2)
    Hardsigmoid:  y = min(max(x + 3, 0), 6) / 6          (HSIG.1)       dx = dy / 6 where -3 < x < 3, else 0      (HSIG.2)
    Hardswish:    y = x · hardsigmoid(x)                 (HSWISH.1)     dx = dy · (0, x/3 + ½ or 1)               (HSWISH.2)

Hardsigmoid is the sigmoid's likeness in three pieces, Hardswish that of SiLU, a parabola between two straight lines. In
(HSWISH.2) by the product rule d(x·(x + 3)/6)/dx = (2x + 3)/6 = x/3 + ½ for -3 < x < 3; 0 below and 1 above.

At a kink, PyTorch's choices: LeakyReLU's slope is s at 0; Hardsigmoid's is 0 at -3 and 3; Hardswish's 0 at -3, 1 at 3.
LeakyReLU's y has x's sign, so that only y is kept, which the next layer keeps anyway; the other two keep x. NaN passes
through. Sources: Maas et al. 2013, §2 (LeakyReLU); Howard et al. 2019, §5.2 (the other two, of MobileNetV3).
"""

import math

from scratchnet import kernels
from scratchnet.array import as_images, as_matrix
from scratchnet.device import get_array_module
from scratchnet.layers.activation import Activation, clip
from scratchnet.layers.arguments import ignore_inplace
from scratchnet.module import Module


def leaky_relu_forward(x, negative_slope):
    """x where it is above 0, else negative_slope · x; returns y and the cache for `leaky_relu_backward`."""
    rows = as_matrix(x)
    y = as_images(get_array_module(x).where(rows.real <= 0, negative_slope * rows, rows), x)  # (LEAKY.1)
    return y, (y, negative_slope)


def leaky_relu_backward(dy, cache):
    """Gradient of `leaky_relu_forward`: dx like dy."""
    y, negative_slope = cache
    grad = as_matrix(dy)
    low = as_matrix(y).real <= 0
    return as_images(get_array_module(dy).where(low, negative_slope * grad, grad), dy)  # (LEAKY.2)


def hardsigmoid_forward(x):
    """Three straight pieces from 0 to 1, x of any shape (N, C, …); returns y and the cache for `hardsigmoid_backward`."""
    rows = as_matrix(x)
    return as_images(clip(rows + 3, 0, 6) / 6, x), rows  # (HSIG.1)


def hardsigmoid_backward(dy, cache):
    """Gradient of `hardsigmoid_forward`: dx like dy."""
    x = cache.real
    return as_images(as_matrix(dy) * ~((x <= -3) | (x >= 3)) / 6, dy)  # (HSIG.2)


def hardswish_forward(x):
    """x times its Hardsigmoid, x of any shape (N, C, …); returns y and the cache for `hardswish_backward`."""
    rows = as_matrix(x)
    return as_images(rows * (clip(rows + 3, 0, 6) / 6), x), rows  # (HSWISH.1)


def hardswish_backward(dy, cache):
    """Gradient of `hardswish_forward`: dx like dy."""
    xp = get_array_module(dy)
    grad, x = as_matrix(dy), cache.real
    slope = xp.where(x >= 3, xp.ones_like(x), cache / 3 + 0.5)
    return as_images(grad * slope * ~(x <= -3), dy)  # (HSWISH.2)


class LeakyReLU(Module):
    """x where it is above 0, else negative_slope · x: of any shape.

    Args:
        negative_slope: of at least 0, since y must tell where x lay.
        inplace: PyTorch's; accepted and ignored, since no layer writes into its input.

    Raises:
        ValueError: negative_slope is below 0, or no finite number.
        TypeError: x is anything but a floating-point array; inplace is no bool.
    """

    def __init__(self, negative_slope=0.01, inplace=False):
        if not 0 <= negative_slope < math.inf:
            raise ValueError(f"LeakyReLU: negative_slope must be a finite number of at least 0, got {negative_slope!r}")
        ignore_inplace("LeakyReLU", inplace)
        self.negative_slope = float(negative_slope)  # a NumPy scalar would make float32 float64

    def forward(self, x):
        """Compute y, shaped like x."""
        self.require(x)
        y, cache = leaky_relu_forward(x, self.negative_slope)
        self.save_cache(cache, y)
        return y

    def backward(self, dy):
        """Return dx."""
        return leaky_relu_backward(dy, self.take_cache(dy))

    def pair(self, kind):
        """(LEAKY.1), (LEAKY.2)."""
        return kernels.Pair(leaky_relu_forward, leaky_relu_backward)

    def extra_repr(self):  # noqa: D102
        return f"negative_slope={self.negative_slope}"


class Hardsigmoid(Activation):
    """min(max(x + 3, 0), 6) / 6 of x of any shape. Raises TypeError for anything but a floating-point array."""

    def pair(self, kind):
        """(HSIG.1), (HSIG.2)."""
        return kernels.Pair(hardsigmoid_forward, hardsigmoid_backward)


class Hardswish(Activation):
    """x · min(max(x + 3, 0), 6) / 6 of x of any shape. Raises TypeError for anything but a floating-point array."""

    def pair(self, kind):
        """(HSWISH.1), (HSWISH.2)."""
        return kernels.Pair(hardswish_forward, hardswish_backward)
