"""Smooth activations: where a rectifier has a kink these bend, so that the gradient changes little where x does.

    Sigmoid:  y = σ(x) = 1 / (1 + exp(-x))      (SIGMOID.1)     dx = dy · y · (1 - y)                    (SIGMOID.2)
    Tanh:     y = tanh(x)                       (TANH.1)        dx = dy · (1 - y) · (1 + y)              (TANH.2)
    SiLU:     y = x · σ(x)                      (SILU.1)        dx = dy · (σ(x) + y · (1 - σ(x)))        (SILU.2)
    GELU:     y = x · Φ(x)                      (GELU.1)        dx = dy · (Φ(x) + x · φ(x))              (GELU.2)

(SIGMOID.2) since dσ/dx = exp(-x)/(1 + exp(-x))² = σ(x)·σ(-x) and σ(-x) = 1 - σ(x); (TANH.2) since tanh' = 1 - tanh²; the
other two by the product rule, with Φ' = φ (`normal.py`). exp is taken of -|x| only, which cannot overflow:
    σ(x) = 1 / (1 + e) for x ≥ 0,   e / (1 + e) below,   e = exp(-|x|)                      (SIGMOID.3)
so σ(-100) is 3.7e-44 and not 0, in float64, and σ(±1000) is 0 or 1 without a warning.

Softmax turns the C numbers along one axis into shares that sum to 1. It is the one here whose y looks at other x:
    yₖ = exp(xₖ - max x) / Σⱼ exp(xⱼ - max x)                                               (SOFTMAX.1)
The maximum changes nothing and keeps exp from overflowing. From ∂yₖ/∂xⱼ = yₖ ([k = j] - yⱼ)
    dxⱼ = Σₖ dyₖ yₖ ([k = j] - yⱼ) = yⱼ · (dyⱼ - Σₖ dyₖ yₖ)                                  (SOFTMAX.2)

In front of a loss Softmax and Sigmoid are a mistake: CrossEntropyLoss and BCEWithLogitsLoss take what comes before them.
NaN passes through. An x of -∞, which only a network that has diverged has, makes NaN in SiLU and GELU (0 · ∞).
Sources: Elfwing et al. 2018 (SiLU; Ramachandran et al. 2017 call it Swish); Hendrycks and Gimpel 2016 (GELU, the exact
one); Bridle 1990 (Softmax).
"""

from scratchnet import kernels
from scratchnet.array import as_images, as_maps, as_matrix
from scratchnet.device import get_array_module
from scratchnet.layers.activation import Activation
from scratchnet.layers.arguments import accept
from scratchnet.layers.normal import magnitude, normal_cdf, normal_density
from scratchnet.module import Module, Parameterless


def sigmoid(x):
    """σ of every number of x."""
    xp = get_array_module(x)
    e = xp.exp(-magnitude(x))
    high = 1 / (1 + e)
    return xp.where(x.real < 0, e * high, high)  # (SIGMOID.3)


def sigmoid_forward(x):
    """σ of x of any shape (N, C, …); returns y and the cache for `sigmoid_backward`."""
    y = as_images(sigmoid(as_matrix(x)), x)  # (SIGMOID.1)
    return y, y


def sigmoid_backward(dy, cache):
    """Gradient of `sigmoid_forward`: dx like dy."""
    grad, y = as_matrix(dy), as_matrix(cache)
    return as_images(grad * y * (1 - y), dy)  # (SIGMOID.2)


def tanh_forward(x):
    """The hyperbolic tangent of x of any shape (N, C, …); returns y and the cache for `tanh_backward`."""
    y = as_images(get_array_module(x).tanh(as_matrix(x)), x)  # (TANH.1)
    return y, y


def tanh_backward(dy, cache):
    """Gradient of `tanh_forward`: dx like dy."""
    grad, y = as_matrix(dy), as_matrix(cache)
    return as_images(grad * (1 - y) * (1 + y), dy)  # (TANH.2)


def silu_forward(x):
    """x · σ(x), x of any shape (N, C, …); returns y and the cache for `silu_backward`."""
    rows = as_matrix(x)
    share = sigmoid(rows)
    return as_images(rows * share, x), (rows, share)  # (SILU.1)


def silu_backward(dy, cache):
    """Gradient of `silu_forward`: dx like dy."""
    rows, share = cache
    return as_images(as_matrix(dy) * (share + rows * share * (1 - share)), dy)  # (SILU.2)


def gelu_forward(x):
    """x · Φ(x), x of any shape (N, C, …); returns y and the cache for `gelu_backward`."""
    rows = as_matrix(x)
    share = normal_cdf(rows)
    return as_images(rows * share, x), (rows, share)  # (GELU.1)


def gelu_backward(dy, cache):
    """Gradient of `gelu_forward`: dx like dy."""
    rows, share = cache
    return as_images(as_matrix(dy) * (share + rows * normal_density(rows)), dy)  # (GELU.2)


def softmax_forward(x, dim):
    """Shares of exp(x) along an axis.

    Args:
        x: (N, C, …).
        dim: which axis of x, from 1 on: each picture by itself.

    Returns:
        y like x, and the cache for `softmax_backward`.
    """
    maps = as_maps(x)  # axis `dim` of x is axis dim - 1 here
    maps = get_array_module(x).exp(maps - maps.real.max(axis=dim - 1, keepdims=True))
    y = maps / maps.sum(axis=dim - 1, keepdims=True)  # (SOFTMAX.1)
    return as_images(y), (y, dim)


def softmax_backward(dy, cache):
    """Gradient of `softmax_forward`: dx like dy."""
    y, dim = cache
    grad = as_maps(dy)
    return as_images(y * (grad - (grad * y).sum(axis=dim - 1, keepdims=True)))  # (SOFTMAX.2)


class Sigmoid(Parameterless):
    """1 / (1 + exp(-x)) of x of any shape, between 0 and 1. Raises TypeError for anything but a floating-point array."""

    def pair(self, kind):
        """(SIGMOID.1), (SIGMOID.2)."""
        return kernels.Pair(sigmoid_forward, sigmoid_backward)


class Tanh(Parameterless):
    """tanh(x) of x of any shape, between -1 and 1. Raises TypeError for anything but a floating-point array."""

    def pair(self, kind):
        """(TANH.1), (TANH.2)."""
        return kernels.Pair(tanh_forward, tanh_backward)


class SiLU(Activation):
    """x · σ(x) of x of any shape, also called Swish. Raises TypeError for anything but a floating-point array."""

    def pair(self, kind):
        """(SILU.1), (SILU.2)."""
        return kernels.Pair(silu_forward, silu_backward)


class GELU(Parameterless):
    """x · Φ(x) of x of any shape, Φ the normal distribution's: by the error function, not by tanh.

    Raises:
        TypeError: x is anything but a floating-point array.
        ValueError: `approximate="tanh"`.
    """

    def __init__(self, approximate="none"):
        instead = "tanh was a faster way to nearly the same (within 5e-4): use approximate='none', the exact one"
        accept("GELU", "approximate", approximate, ("none",), instead)

    def pair(self, kind):
        """(GELU.1), (GELU.2)."""
        return kernels.Pair(gelu_forward, gelu_backward)


class Softmax(Module):
    """exp(x) along one axis, divided by its sum there.

    Args:
        dim: 1, the channels or classes; another axis of x, counted from the end where negative; not the batch's.

    Raises:
        ValueError: dim is no axis of x, or the batch's.
        TypeError: dim is no int; x is anything but a floating-point array.
    """

    def __init__(self, dim=1):
        if not isinstance(dim, int) or isinstance(dim, bool):
            raise TypeError(f"Softmax: dim must be an int, 1 for channels or classes, got {dim!r}")
        self.dim = dim

    def forward(self, x):
        """Compute y, shaped like x."""
        self.require(x)
        if self.dim % x.ndim == 0 or not -x.ndim <= self.dim < x.ndim:
            raise ValueError(
                f"{self.name}: dim must be an axis of x behind the batch's, 1 to {x.ndim - 1} or negative, "
                f"got dim {self.dim} and x of shape {x.shape}"
            )
        y, cache = softmax_forward(x, self.dim % x.ndim)
        self.save_cache(cache, y)
        return y

    def backward(self, dy):
        """Return dx."""
        return softmax_backward(dy, self.take_cache(dy))

    def pair(self, kind):
        """(SOFTMAX.1), (SOFTMAX.2)."""
        return kernels.Pair(softmax_forward, softmax_backward)

    def extra_repr(self):  # noqa: D102
        return f"dim={self.dim}"
