"""Rectifiers: they let a number pass, or hold it at a bound; the gradient passes where the number did.

    ReLU:   y = max(x, 0)            (RELU.1)        dx = dy where x > 0, else 0               (RELU.2)
    ReLU6:  y = min(max(x, 0), 6)    (RELU6.1)       dx = dy where 0 < x < 6, else 0           (RELU6.2)

Sources: Nair and Hinton 2010; Krizhevsky 2010 and Sandler et al. 2018 (the bound 6 keeps activations inside what low
precision can hold). At a kink every number between the slopes of the two sides is a subgradient; here it is 0 at 0 and
at 6, PyTorch's choice. y tells where x lay between the bounds, so that only y is kept, which the next layer keeps anyway.

NaN passes through both ways, so that a guard further on can see it: the mask is "not at a bound", and NaN is at neither.
The mask multiplies, so an infinite dy becomes NaN where x was held (0 · ∞): it would have stopped the run anyway.
"""

from scratchnet import kernels
from scratchnet.array import as_images, as_matrix
from scratchnet.device import get_array_module
from scratchnet.layers.arguments import ignore_inplace
from scratchnet.module import Parameterless


def relu_forward(x):
    """Compute max(x, 0) for x of any shape (N, C, …); returns y and the cache for `relu_backward`."""
    rows = as_matrix(x)
    y = as_images(clip(rows, 0, None), x)  # (RELU.1)
    return y, y


def relu_backward(dy, cache):
    """Gradient of `relu_forward`: dx like dy."""
    grad, y = as_matrix(dy), as_matrix(cache)
    return as_images(grad * ~(y.real <= 0), dy)  # (RELU.2)


def relu6_forward(x):
    """Compute min(max(x, 0), 6) for x of any shape (N, C, …); returns y and the cache for `relu6_backward`."""
    rows = as_matrix(x)
    y = as_images(clip(rows, 0, 6), x)  # (RELU6.1)
    return y, y


def relu6_backward(dy, cache):
    """Gradient of `relu6_forward`: dx like dy."""
    grad, y = as_matrix(dy), as_matrix(cache)
    return as_images(grad * ~((y.real <= 0) | (y.real >= 6)), dy)  # (RELU6.2)


def clip(x, low, high):
    """Clip, by the real part where x is complex: a complex step must not move the bounds."""
    xp = get_array_module(x)
    if x.dtype.kind != "c":
        return xp.clip(x, low, high)
    y = xp.where(x.real <= low, low, x)
    return y if high is None else xp.where(x.real >= high, high, y)


RELU = kernels.Pair(relu_forward, relu_backward)
RELU6 = kernels.Pair(relu6_forward, relu6_backward)


class Activation(Parameterless):
    """A layer that takes each number of x, of any shape, by itself.

    Args:
        inplace: PyTorch's; accepted and ignored, since no layer writes into its input.
    """

    def __init__(self, inplace=False):
        ignore_inplace(type(self).__name__, inplace)


class ReLU(Activation):
    """Clip x, of any shape, at 0 from below. Raises TypeError for anything but a floating-point array."""

    def pair(self, kind):
        """(RELU.1), (RELU.2)."""
        return kernels.choose(RELU, kind)


class ReLU6(Activation):
    """Clip x, of any shape, to [0, 6]. Raises TypeError for anything but a floating-point array."""

    takes_bfloat16 = True

    def pair(self, kind):
        """(RELU6.1), (RELU6.2)."""
        return kernels.choose(RELU6, kind)
