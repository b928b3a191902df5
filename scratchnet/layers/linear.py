"""The classifier's end: a picture becomes one long vector, and every class a weighted sum of it.

    Y = W · X + bias            X (F × N), one column a picture                             (LIN.1)
    dbias = Σ dY over pictures                                                              (LIN.2)
    dW    = dY · Xᵀ             since ∂Y[o, n]/∂W[o, f] = X[f, n]                            (LIN.3)
    dX    = Wᵀ · dY             since ∂Y[o, n]/∂X[f, n] = W[o, f]                            (LIN.4)

(LIN.1) is a 1×1 convolution of a picture with one pixel. Flatten computes nothing: it only names (c, h, w) one index f.
Identity does not even do that.
"""

import numpy as np

from scratchnet import kernels
from scratchnet.array import as_images, as_maps, as_matrix
from scratchnet.device import kind_of
from scratchnet.layers.arguments import DEVICE, accept, pytorch_arguments
from scratchnet.layers.init import he_normal
from scratchnet.module import Module, Parameter
from scratchnet.parameter import add_gradients, is_trained
from scratchnet.windows import is_count


def linear_forward(x, weight, bias):
    """Compute (LIN.1): x (N, F), weight (O, F), bias (O,) or None -> y (N, O), and the cache for `linear_backward`."""
    columns = as_matrix(x)  # (N, F) -> (F, N)
    y = weight @ columns  # (LIN.1)
    if bias is not None:
        y = y + bias[:, None]
    return as_images(y), (columns, weight, bias is not None)


def linear_backward(dy, cache, wants=(True, True)):
    """Gradients of `linear_forward`: dx (N, F), dweight (O, F), dbias (O,) or None; None too where `wants` says no."""
    columns, weight, has_bias = cache
    grad = as_matrix(dy)  # (N, O) -> (O, N)
    dbias = grad.sum(axis=1) if has_bias and wants[1] else None  # (LIN.2)
    dweight = grad @ columns.T if wants[0] else None  # (LIN.3)
    dx = weight.T @ grad  # (LIN.4)
    return as_images(dx), dweight, dbias


@pytorch_arguments(device=DEVICE)
class Linear(Module):
    """A weighted sum of the features for each output: (N, in_features) -> (N, out_features).

    Attributes:
        weight: (out_features, in_features), drawn from N(0, 2/in_features) by `rng`.
        bias: (out_features,), zeros; None with `bias=False`.

    Raises:
        ValueError: x is not (N, in_features).
    """

    def __init__(self, in_features, out_features, bias=True, *, dtype=np.float32, rng=None):
        for what, size in (("in_features", in_features), ("out_features", out_features)):
            if not is_count(size):
                raise ValueError(f"Linear: {what} must be an int of at least 1, got {size!r}")
        self.weight = Parameter(he_normal((out_features, in_features), rng=rng, dtype=dtype))
        self.bias = Parameter(np.zeros(out_features, dtype), decay=False) if bias else None

    @property
    def multiply_adds(self):
        """Multiplications, each with its addition, for one number of the output."""
        return self.weight.data.shape[1]

    def multiplied(self):
        """Weight and bias (or None) as forward multiplies with them: a subclass may round them."""
        return self.weight.data, self.bias.data if self.bias else None

    def forward(self, x):
        """Compute y (N, out_features)."""
        self.require(x, "N", self.weight.data.shape[1])
        y, cache = self.pair(kind_of(x)).forward(x, *self.multiplied())
        self.save_cache(cache, y)
        return y

    def backward(self, dy):
        """Return dx (N, in_features); add dweight and dbias, but for what is frozen."""
        cache, wants = self.take_cache(dy), (is_trained(self.weight), is_trained(self.bias))
        dx, dweight, dbias = self.pair(kind_of(dy)).backward(dy, cache, wants)  # any version takes any other's cache
        add_gradients((self.weight, self.bias), (dweight, dbias))
        return dx

    def pair(self, kind):
        """(LIN.1) to (LIN.4)."""
        return kernels.choose(kernels.Pair(linear_forward, linear_backward), kind)

    def extra_repr(self):  # noqa: D102
        outs, ins = self.weight.data.shape
        return f"{ins}, {outs}" + ", bias=False" * (self.bias is None)


class Flatten(Module):
    """Name (c, h, w) one index, c·H·W + h·W + w as in PyTorch: (N, C, H, W) -> (N, C·H·W), a view when channel-major.

    `start_dim` and `end_dim` are PyTorch's; any but 1 and the last raise ValueError.
    """

    def __init__(self, start_dim=1, end_dim=-1):
        instead = "only all axes behind the batch's become one: for others reshape in a module of your own"
        accept("Flatten", "start_dim", start_dim, (1,), instead)
        accept("Flatten", "end_dim", end_dim, (-1,), instead)

    def forward(self, x):
        """Reshape x; any shape (N, C, …) with at least two axes."""
        self.require(x)
        maps = as_maps(x)
        y = as_images(maps.reshape(-1, x.shape[0]))  # (C, H, W, N) -> (C·H·W, N)
        self.save_cache(maps.shape, y)
        return y

    def backward(self, dy):
        """Return dx, of x's shape."""
        shape = self.take_cache(dy)
        return as_images(as_maps(dy).reshape(shape))


class Identity(Module):
    """Hand x, of any shape (N, C, …), on as it is: stands where a layer was or may come. Takes any arguments."""

    def __init__(self, *_, **__):
        pass

    def forward(self, x):
        """Return x itself."""
        self.require(x)
        self.save_cache(None, x)
        return x

    def backward(self, dy):
        """Return dy itself."""
        self.take_cache(dy)
        return dy
