"""Dropout: in training each number is dropped with probability p, so that no unit can rely on one other alone.

    y = x · keep / (1 - p)      keep drawn anew for every element, 1 with probability 1 - p     (DROP.1)
    dx = dy · keep / (1 - p)    the same mask: y is linear in x                                 (DROP.2)

Dividing by 1 - p leaves the mean as it is, so that eval mode is y = x. Several ranks draw the mask of the whole batch, each
of them, and take the rows of their own pictures: it is one process's mask, and their generators stay in step. Source:
Srivastava et al. 2014, §4 and §10.
"""

import numpy as np

from scratchnet import kernels
from scratchnet.array import as_images, as_matrix, drawn
from scratchnet.device import device_of
from scratchnet.layers.arguments import ignore_inplace
from scratchnet.module import Module
from scratchnet.parallel import ranks


def dropout_forward(x, keep, p):
    """Drop where `keep` (bool, shaped like x) is False; returns y and the cache for `dropout_backward`."""
    y = as_matrix(x) * as_matrix(keep) / (1 - p)  # (DROP.1)
    return as_images(y, x), (keep, p)


def dropout_backward(dy, cache):
    """Gradient of `dropout_forward`: dx like dy."""
    keep, p = cache
    return as_images(as_matrix(dy) * as_matrix(keep) / (1 - p), dy)  # (DROP.2)


class Dropout(Module):
    """Drop each element with probability p in training mode; y = x in eval mode.

    Args:
        p: in [0, 1).
        inplace: PyTorch's; accepted and ignored, since no layer writes into its input.
        rng: the numpy.random.Generator that draws the masks, on the CPU on every device, so that a run can be repeated;
            a fresh one where none is given, and then it cannot. Several ranks need one of the same seed on each.

    Raises:
        ValueError: p is outside [0, 1).
        TypeError: rng is no numpy.random.Generator; inplace is no bool.
    """

    def __init__(self, p=0.5, inplace=False, *, rng=None):
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p must be in [0, 1), got {p!r}")
        ignore_inplace("Dropout", inplace)
        rng = np.random.default_rng() if rng is None else rng
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"Dropout: rng must be a numpy.random.Generator, got {type(rng).__name__}")
        self.p, self.rng = float(p), rng  # a NumPy scalar would make float32 float64

    def forward(self, x):
        """Compute y, shaped like x."""
        self.require(x)
        if not self.training or self.p == 0:
            self.save_cache(None, x)
            return x
        first, total = ranks.place(len(x))
        shape = x.shape  # of the function below, which outlives x where a step is recorded

        def draw():
            return (self.rng.random((total, *shape[1:])) >= self.p)[first : first + shape[0]]

        keep = drawn(draw, shape, bool, device_of(x))
        y, cache = dropout_forward(x, keep, self.p)
        self.save_cache(cache, y)
        return y

    def backward(self, dy):
        """Return dx."""
        cache = self.take_cache(dy)
        return dy if cache is None else dropout_backward(dy, cache)

    def pair(self, kind):
        """(DROP.1), (DROP.2); none where nothing is dropped."""
        return kernels.Pair(dropout_forward, dropout_backward) if self.training and self.p else None

    def extra_repr(self):  # noqa: D102
        return f"p={self.p}"
