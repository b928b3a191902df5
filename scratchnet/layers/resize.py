"""Pictures of another size: every pixel made is a weighted sum of a few neighbours, along H and along W by itself.

Along one axis let row p of a table list what makes pixel p: pixels q with weights a[p, q]. With a table R for the rows of
the picture and a table S for its columns
    y[p, r] = Σ_q R[p, q] · Σ_t S[r, t] · x[q, t]         or, as matrices,   y  = R x Sᵀ          (RESIZE.1)
for each picture and channel. It is linear in x, so that backward takes every weight the other way:
    dx[q, t] = Σ_p R[p, q] · Σ_r S[r, t] · dy[p, r]                          dx = Rᵀ dy S         (RESIZE.2)

Three layers are nothing but tables, for `size` pixels that become `count`, all as PyTorch has them. Adaptive average
pooling: the mean of a bin; neighbouring bins overlap by a pixel where count does not divide size
    a[p, q] = 1/length for q from ⌊p·size/count⌋ to just below ⌈(p + 1)·size/count⌉              (RESIZE.3)
Upsampling to the nearest pixel, from the left; `step` is how far apart in x are neighbours in y, size/count or 1/scale
    a[p, q] = 1 for q = ⌊p·step⌋                                                                 (RESIZE.4)
and bilinear, between the two pixels around the place u in x that pixel p comes from
    a[p, q] = 1 - |u - q| where that is above 0                                                  (RESIZE.5)
    u = p·(size - 1)/(count - 1)       align_corners: the centres of the outermost pixels stay   (RESIZE.6)
    u = max(0, (p + ½)·step - ½)       otherwise: the borders of the picture stay; a u beyond the last centre,
                                       where there is one pixel only, is that pixel              (RESIZE.7)
"""

import math
from numbers import Real

import numpy as np

from scratchnet import kernels
from scratchnet.array import as_images, as_maps
from scratchnet.device import get_array_module
from scratchnet.layers.pool import GlobalAvgPool2d
from scratchnet.module import Module
from scratchnet.windows import is_count, pair


def resize_forward(x, rows, columns):  # (RESIZE.1)
    """Weigh and add along H, then along W.

    Args:
        x: (N, C, H, W).
        rows, columns: the tables, a list of (q, weight) for every pixel that is made, along H and along W.

    Returns:
        y (N, C, OH, OW) and the cache for `resize_backward`.
    """
    maps = as_maps(x)  # (N, C, H, W) -> (C, H, W, N)
    y = maps
    for axis, table in ((1, rows), (2, columns)):
        y = _weighed(y, axis, len(table), [(p, q, weight) for p, terms in enumerate(table) for q, weight in terms])
    return as_images(y), (maps.shape, rows, columns)


def resize_backward(dy, cache):  # (RESIZE.2)
    """Gradient of `resize_forward`: dx (N, C, H, W)."""
    shape, rows, columns = cache
    dx = as_maps(dy)  # (N, C, OH, OW) -> (C, OH, OW, N)
    for axis, table in ((2, columns), (1, rows)):
        dx = _weighed(dx, axis, shape[axis], [(q, p, weight) for p, terms in enumerate(table) for q, weight in terms])
    return as_images(dx)


def _weighed(x, axis, count, terms):
    """For every term (p, q, weight) pixel q of x, times the weight, added to pixel p of `count` along an axis."""
    xp = get_array_module(x)
    y = xp.zeros((*x.shape[:axis], count, *x.shape[axis + 1 :]), x.dtype)
    seen, made = (xp.moveaxis(array, axis, 0) for array in (x, y))
    for p, q, weight in terms:
        made[p] += seen[q] if weight == 1 else weight * seen[q]  # 1 · x is x, and one pass less
    return y


RESIZE = kernels.Pair(resize_forward, resize_backward)


# Tables for one axis --------------------------------------------------------------------------------------------------


def bins(size, count):
    """The mean of each bin."""
    edges = [(p * size // count, -(-(p + 1) * size // count)) for p in range(count)]
    return [[(q, 1 / (end - start)) for q in range(start, end)] for start, end in edges]  # (RESIZE.3)


def nearest(size, count, step):
    """The pixel from whose square it comes.

    PyTorch multiplies in float32, and takes a count of size or of 2 · size as exact: where the product is nearly a whole
    number the same is done here, or now and then another pixel would be taken.
    """
    exact = count in (size, 2 * size)
    return [
        [
            (min(p * size // count if exact else math.floor(np.float32(p) * np.float32(step)), size - 1), 1.0)
        ]  # (RESIZE.4)
        for p in range(count)
    ]


def between(size, count, step, align_corners):
    """The two pixels around the place that it comes from; one, where it comes from there."""
    table = []
    for p in range(count):
        if count == size:
            u = float(p)  # in PyTorch also by a factor that is not quite 1
        elif align_corners:
            u = p * (size - 1) / max(1, count - 1)  # (RESIZE.6)
        else:
            u = min(max(0.0, (p + 0.5) * step - 0.5), size - 1.0)  # (RESIZE.7)
        q = math.floor(u)
        table.append([(q + k, 1 - abs(u - q - k)) for k in (0, 1) if abs(u - q - k) < 1])  # (RESIZE.5)
    return table


# Layers ---------------------------------------------------------------------------------------------------------------


class Resize(Module):
    """A layer that its two tables are all of: `tables` makes them for a size of x."""

    def tables(self, height, width):
        """The table along H, and that along W."""
        raise NotImplementedError

    def forward(self, x):
        """Compute y (N, C, OH, OW) from x (N, C, H, W)."""
        self.require(x, "N", "C", "H", "W")
        y, cache = resize_forward(x, *self.tables(*x.shape[2:]))
        self.save_cache(cache, y)
        return y

    def backward(self, dy):
        """Return dx (N, C, H, W)."""
        return resize_backward(dy, self.take_cache(dy))

    def pair(self, kind):
        """(RESIZE.1), (RESIZE.2)."""
        return RESIZE


class AdaptiveAvgPool2d(Resize):
    """Average pooling to a given size, an int or a pair (h, w), whatever the size of x; None keeps x's.

    `AdaptiveAvgPool2d(1)` is PyTorch's name for `GlobalAvgPool2d()`, and makes one.

    Raises:
        ValueError: an output_size that is none of these.
    """

    def __new__(cls, output_size=None):  # noqa: D102
        one = output_size in (1, (1, 1), [1, 1])
        return GlobalAvgPool2d() if one else super().__new__(cls)  # whose size, and nothing else, `__init__` is to set

    def __init__(self, output_size):
        both = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
        if len(both) != 2 or not all(size is None or is_count(size) for size in both):
            raise ValueError(
                "AdaptiveAvgPool2d: output_size must be an int of at least 1 or None, or a pair of them, "
                f"got {output_size!r}"
            )
        self.output_size = tuple(both)

    def tables(self, height, width):
        """A bin for every pixel."""
        return tuple(bins(size, count or size) for size, count in zip((height, width), self.output_size, strict=True))

    def extra_repr(self):  # noqa: D102
        return f"output_size={self.output_size}"


class Upsample(Resize):
    """Pictures of another size, by the nearest pixel or bilinear; arguments and rounding as PyTorch has them.

    Attributes:
        size: (h, w) of the output, or None.
        scale_factor: (h, w), how much larger the output is, rounded down; or None. An int or float is for both.
        mode: "nearest" or "bilinear".
        align_corners: of bilinear: whether the centres of the outermost pixels stay where they are.

    Raises:
        ValueError: both of size and scale_factor, or none; numbers that are none; another mode; align_corners with
            "nearest"; an x that is scaled down to nothing.
    """

    def __init__(self, size=None, scale_factor=None, mode="nearest", align_corners=None):
        if (size is None) == (scale_factor is None):
            raise ValueError(
                f"Upsample: takes size or scale_factor, got size {size!r} and scale_factor {scale_factor!r}"
            )
        if mode not in ("nearest", "bilinear"):
            raise ValueError(f"Upsample: mode must be 'nearest' or 'bilinear', got {mode!r}")
        if mode == "nearest" and align_corners is not None:
            raise ValueError(f"Upsample: align_corners is an option of mode 'bilinear', got {align_corners!r}")
        self.size = None if size is None else pair(size, "Upsample: size", 1)
        self.scale_factor = None if scale_factor is None else _factors(scale_factor)
        self.mode, self.align_corners = mode, align_corners

    def tables(self, height, width):
        """By mode."""
        return tuple(self._table(axis, size) for axis, size in enumerate((height, width)))

    def _table(self, axis, size):
        factor = self.scale_factor and self.scale_factor[axis]
        count = self.size[axis] if self.size else math.floor(size * factor)
        if count < 1:
            raise ValueError(f"{self.name}: scale_factor {factor} leaves nothing of {size} pixels along {'HW'[axis]}")
        step = 1 / factor if factor else size / count
        return nearest(size, count, step) if self.mode == "nearest" else between(size, count, step, self.align_corners)

    def extra_repr(self):  # noqa: D102
        said = f"size={self.size}" if self.size else f"scale_factor={self.scale_factor}"
        return f"{said}, mode={self.mode!r}" + f", align_corners={self.align_corners}" * (
            self.align_corners is not None
        )


def _factors(value):
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    numbers = all(isinstance(v, Real) and not isinstance(v, bool) and 0 < float(v) < math.inf for v in both)
    if len(both) != 2 or not numbers:
        raise ValueError(f"Upsample: scale_factor must be a number above 0 or a pair of them, got {value!r}")
    return float(both[0]), float(both[1])
