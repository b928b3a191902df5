"""Max pooling: every output is the largest of the pixels under a window, and only that pixel gets the gradient.

    k[p, q]   = the tap whose pixel is the largest of those that the window at (p, q) reads     (MAXPOOL.1)
    y[p, q]   = x[pixel that tap k[p, q] reads at (p, q)]                                       (MAXPOOL.2)
    dx[pixel] = Σ of dy[p, q] over the windows whose tap k[p, q] reads that very pixel          (MAXPOOL.3)

for each picture and channel. Where x moves a little, k stays what it is, so y is that one pixel of x: its slope is 1 there
and 0 elsewhere, which is (MAXPOOL.3). k is kept for backward, a byte a window for up to 255 taps; x is not.

Where pixels are equal every way to share dy is a subgradient; here, as in PyTorch, all of it goes to the first of them in
the order of the rows of the window. NaN is larger than every number, so that it stays visible; of several the last in that
order counts, again as in PyTorch. Padding is -∞, the smallest there is, so it is never made and never chosen: a window
that reads nothing else, which takes dilation to build, is -∞ and passes nothing back.

So taps are walked from the last to the first. A pixel takes the place of the best so far unless it is smaller, so that of
equal ones the first in order stays; and unless that is NaN already.
Source: Ranzato et al. 2007, §3; Scherer et al. 2010.
"""

import numpy as np

from scratchnet import kernels
from scratchnet.array import as_images, as_maps
from scratchnet.device import get_array_module
from scratchnet.layers.pool import require_half
from scratchnet.module import Module
from scratchnet.windows import output_size, pair, require_room, taps


def max_pool2d_forward(x, kernel_size, stride, padding, dilation, ceil_mode):
    """The largest number under each window; of complex ones by the real part.

    Args:
        x: (N, C, H, W).
        kernel_size, stride, padding, dilation: pairs (h, w), in pixels; padding at most half of the kernel.
        ceil_mode: whether a last window may hang over the padded picture.

    Returns:
        y (N, C, OH, OW) and the cache for `max_pool2d_backward`.
    """
    maps = as_maps(x)  # (N, C, H, W) -> (C, H, W, N)
    xp, in_size = get_array_module(maps), maps.shape[1:3]
    out_size = tuple(map(output_size, in_size, kernel_size, stride, padding, dilation, (ceil_mode,) * 2))
    geometry = in_size, out_size, kernel_size, stride, padding, dilation
    count = kernel_size[0] * kernel_size[1]
    y = xp.full((len(maps), *out_size, maps.shape[3]), -np.inf, maps.dtype)
    chosen = xp.full(y.shape, count, np.min_scalar_type(count))  # a tap that there is not
    for i, j, outside, inside in reversed(list(taps(*geometry))):
        seen, best = maps[inside], y[outside]
        better = ~(seen.real < best.real) & (best == best)  # NaN is not < and not ==
        y[outside] = xp.where(better, seen, best)  # (MAXPOOL.2)
        chosen[outside] = xp.where(better, i * kernel_size[1] + j, chosen[outside])  # (MAXPOOL.1)
    return as_images(y), (geometry, chosen)


def max_pool2d_backward(dy, cache):
    """Gradient of `max_pool2d_forward`: dx (N, C, H, W)."""
    geometry, chosen = cache
    grad, xp = as_maps(dy), get_array_module(dy)  # (N, C, OH, OW) -> (C, OH, OW, N)
    dx = xp.zeros((len(grad), *geometry[0], grad.shape[3]), grad.dtype)
    for i, j, outside, inside in taps(*geometry):
        dx[inside] += xp.where(chosen[outside] == i * geometry[2][1] + j, grad[outside], 0)  # (MAXPOOL.3)
    return as_images(dx)


MAX_POOL2D = kernels.Pair(max_pool2d_forward, max_pool2d_backward)


class MaxPool2d(Module):
    """Max pooling of (N, C, H, W), with PyTorch's meaning of every option, of ties and of NaN.

    Raises:
        ValueError: sizes that are no ints, padding above half of the kernel, a kernel larger than the padded input;
            `return_indices=True`, which no layer here could take.
    """

    def __init__(self, kernel_size, stride=None, padding=0, dilation=1, return_indices=False, ceil_mode=False):
        self.kernel_size = pair(kernel_size, "MaxPool2d: kernel_size", 1)
        self.stride = self.kernel_size if stride is None else pair(stride, "MaxPool2d: stride", 1)
        self.padding = pair(padding, "MaxPool2d: padding", 0)
        self.dilation = pair(dilation, "MaxPool2d: dilation", 1)
        require_half(self.name, self.padding, self.kernel_size)
        if return_indices:
            raise ValueError("MaxPool2d: return_indices=True is not offered: a layer here returns one array")
        self.ceil_mode = ceil_mode

    def forward(self, x):
        """Pool x (N, C, H, W) -> (N, C, OH, OW)."""
        self.require(x, "N", "C", "H", "W")
        require_room(self.name, x.shape, self.kernel_size, self.padding, self.dilation)
        options = self.stride, self.padding, self.dilation, self.ceil_mode
        y, cache = max_pool2d_forward(x, self.kernel_size, *options)
        self.save_cache(cache, y)
        return y

    def backward(self, dy):
        """Return dx (N, C, H, W)."""
        return max_pool2d_backward(dy, self.take_cache(dy))

    def pair(self, kind):
        """(MAXPOOL.1) to (MAXPOOL.3)."""
        return MAX_POOL2D

    def extra_repr(self):  # noqa: D102
        options = "stride", "padding", "dilation", "ceil_mode"
        return f"kernel_size={self.kernel_size}, " + ", ".join(f"{name}={getattr(self, name)}" for name in options)
