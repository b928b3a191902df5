"""Average pooling: every output is the mean of the pixels under a window.

    y[p, q] = Σ_ij x[pixel that tap (i, j) reads at (p, q)] / count[p, q]                        (POOL.1)
    dx[pixel] = Σ over the windows that read it, dy[p, q] / count[p, q]                          (POOL.2)

for each picture and channel. A window at the border may hang over it; count is then the number of positions of the window
inside the padded picture (count_include_pad) or inside the picture itself (PyTorch's two conventions):
    count[p, q] = rows in reach of p · columns in reach of q                                     (POOL.3)

Global average pooling is the one window that is the whole picture:
    y = Σ x / (H·W)                                                                             (GPOOL.1)
    dx = dy / (H·W) for every pixel                                                             (GPOOL.2)
Sources: LeCun et al. 1998, §II.B; Lin et al. 2014, §3.2 (global).
"""

import numpy as np

from scratchnet import kernels
from scratchnet.array import as_images, as_maps
from scratchnet.device import get_array_module
from scratchnet.module import Module, Parameterless
from scratchnet.windows import output_size, pair, require_room, taps

NO_DILATION = (1, 1)


def avg_pool2d_forward(x, kernel_size, stride, padding, ceil_mode, count_include_pad):
    """Average over windows (POOL.1).

    Args:
        x: (N, C, H, W).
        kernel_size, stride, padding: pairs (h, w), in pixels; padding at most half of the kernel.
        ceil_mode: whether a last window may hang over the padded picture.
        count_include_pad: whether the padding counts as pixels of value 0.

    Returns:
        y (N, C, OH, OW) and the cache for `avg_pool2d_backward`.
    """
    maps = as_maps(x)  # (N, C, H, W) -> (C, H, W, N)
    in_size = maps.shape[1:3]
    out_size = tuple(map(output_size, in_size, kernel_size, stride, padding, NO_DILATION, (ceil_mode,) * 2))
    rows, cols = map(_reach, in_size, out_size, kernel_size, stride, padding, (count_include_pad,) * 2)
    count = get_array_module(maps).asarray(np.outer(rows, cols)[:, :, None].astype(maps.real.dtype))  # (POOL.3)
    geometry = in_size, out_size, kernel_size, stride, padding
    y = get_array_module(maps).zeros((len(maps), *out_size, maps.shape[3]), maps.dtype)
    for _, _, outside, inside in taps(*geometry):
        y[outside] += maps[inside]
    y /= count  # (POOL.1)
    return as_images(y), (geometry, count)


def avg_pool2d_backward(dy, cache):
    """Gradient of `avg_pool2d_forward`: dx (N, C, H, W)."""
    geometry, count = cache
    grad = as_maps(dy)  # (N, C, OH, OW) -> (C, OH, OW, N)
    dx = get_array_module(grad).zeros((len(grad), *geometry[0], grad.shape[3]), grad.dtype)
    share = grad / count
    for _, _, outside, inside in taps(*geometry):
        dx[inside] += share[outside]  # (POOL.2)
    return as_images(dx)


def _reach(size, count, kernel, stride, padding, include_pad):
    """For each of `count` windows along one axis, how many of its positions are averaged over."""
    start = np.arange(count) * stride - padding
    end = np.minimum(start + kernel, size + padding)  # a window of ceil_mode ends where the padding does
    return end - start if include_pad else np.minimum(end, size) - np.maximum(start, 0)


def require_half(layer, padding, kernel):
    """Raise ValueError for more padding than half of the kernel, both pairs: PyTorch's rule."""
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(
            f"{layer}: padding may be at most half of the kernel, got padding {padding} and kernel_size {kernel}"
        )


def global_avg_pool2d_forward(x):
    """Average each picture's channel: (N, C, H, W) -> y (N, C, 1, 1), and the cache for `global_avg_pool2d_backward`."""
    maps = as_maps(x)  # (N, C, H, W) -> (C, H, W, N)
    y = maps.mean(axis=(1, 2), keepdims=True)  # (GPOOL.1)
    return as_images(y), (maps.shape, maps.dtype)


def global_avg_pool2d_backward(dy, cache):
    """Gradient of `global_avg_pool2d_forward`: dx (N, C, H, W)."""
    (channels, height, width, n), dtype = cache
    share = as_maps(dy) / (height * width)
    dx = get_array_module(dy).empty((channels, height, width, n), dtype)
    dx[...] = share  # (GPOOL.2): (C, 1, 1, N) -> (C, H, W, N)
    return as_images(dx)


AVG_POOL2D = kernels.Pair(avg_pool2d_forward, avg_pool2d_backward)
GLOBAL_AVG_POOL2D = kernels.Pair(global_avg_pool2d_forward, global_avg_pool2d_backward)


class AvgPool2d(Module):
    """Average pooling of (N, C, H, W), with PyTorch's meaning of every option.

    Raises:
        ValueError: sizes that are no ints, padding above half of the kernel, a kernel larger than the padded input.
    """

    def __init__(self, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
        self.kernel_size = pair(kernel_size, "AvgPool2d: kernel_size", 1)
        self.stride = self.kernel_size if stride is None else pair(stride, "AvgPool2d: stride", 1)
        self.padding = pair(padding, "AvgPool2d: padding", 0)
        require_half(self.name, self.padding, self.kernel_size)
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad

    def forward(self, x):
        """Pool x (N, C, H, W) -> (N, C, OH, OW)."""
        self.require(x, "N", "C", "H", "W")
        require_room(self.name, x.shape, self.kernel_size, self.padding, NO_DILATION)
        options = self.stride, self.padding, self.ceil_mode, self.count_include_pad
        y, cache = avg_pool2d_forward(x, self.kernel_size, *options)
        self.save_cache(cache, y)
        return y

    def backward(self, dy):
        """Return dx (N, C, H, W)."""
        return avg_pool2d_backward(dy, self.take_cache(dy))

    def pair(self, kind):
        """(POOL.1), (POOL.2)."""
        return AVG_POOL2D

    def extra_repr(self):  # noqa: D102
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class GlobalAvgPool2d(Parameterless):
    """The mean of each channel of each picture: (N, C, H, W) -> (N, C, 1, 1). Raises ValueError for another shape."""

    shape = "N", "C", "H", "W"
    takes_bfloat16 = True  # and gives float32

    def pair(self, kind):
        """(GPOOL.1), (GPOOL.2)."""
        return kernels.choose(GLOBAL_AVG_POOL2D, kind)
