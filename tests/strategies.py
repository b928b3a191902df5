"""What the property tests draw: the one set of strategies that all of them share.

Sizes and options are drawn by hypothesis, so that it can shrink them; the numbers come from a NumPy generator with a
drawn seed, which is fast, and shrinks to seed 0. In a test:

    @given(rngs(), geometries())                                @given(rngs(), shapes())
    def test_…(rng, g):                                         def test_…(rng, shape):
        x, weight, bias = g.arrays(rng)                             x = kink_free(rng, shape)
        y = conv2d_forward(x, weight, bias, *g.options, path)       y = relu6_forward(x)[0]

    rngs()           numpy.random.Generator, printed as default_rng(seed)
    shapes()         (N, C, H, W), few numbers, mostly all different, often with sizes of 1
    geometries()     `Geometry`: a convolution that is legal; any part can be held fixed by keyword
    poolings()       `Pooling`: average pooling that is legal, all options
    labels(n, k)     (n,) integers in [0, k)
    layouts()        a name of LAYOUTS; `in_layout(x, name)` is x in that memory layout
    kink_free(...)   numbers at least 0.01 away from every kink, on all sides of them: a function, since no number in it
                     is worth shrinking
    far_apart(...)   numbers of which no two are near to one another
"""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

import scratchnet as sn
from scratchnet.windows import output_size

# Numbers --------------------------------------------------------------------------------------------------------------


def rngs():
    """A numpy.random.Generator of its own for each case; a failing case prints it as `default_rng(seed)`."""
    return st.builds(np.random.default_rng, st.integers(0, 2**32 - 1))


def normal(rng, shape, dtype=np.float64):
    """Numbers of both signs around 0, of the order of 1."""
    return rng.standard_normal(shape).astype(dtype)


def kink_free(rng, shape, kinks=(0.0, 6.0), gap=1e-2, dtype=np.float64):
    """Numbers at least `gap` away from every kink by construction: each interval between kinks is drawn equally often.

    A difference quotient, or batch norm in front, may then move a number a little without crossing a kink.
    """
    edges = np.array([min(kinks) - 3.0, *sorted(kinks), max(kinks) + 3.0])
    side = rng.integers(0, len(edges) - 1, shape)
    low, high = edges[side] + 2 * gap, edges[side + 1] - 2 * gap  # twice: rounding to dtype must not eat the gap
    return (low + (high - low) * rng.random(shape)).astype(dtype)


def far_apart(rng, shape, gap=0.04):
    """No two numbers nearer than `gap`, in any order: a difference quotient then leaves the largest the largest."""
    count = int(np.prod(shape))
    return (gap * (rng.permutation(count) - count / 2)).reshape(shape)


def labels(n, classes, dtype=np.int64):
    """(n,) right classes in [0, classes)."""
    return st.lists(st.integers(0, classes - 1), min_size=n, max_size=n).map(lambda values: np.array(values, dtype))


# Sizes ----------------------------------------------------------------------------------------------------------------


@st.composite
def shapes(draw, least=1, most=5, elements=120, channels=None, per_channel=1):
    """(N, C, H, W): sizes in [least, most], mostly all different, with at most `elements` numbers in all.

    Args:
        draw: hypothesis's.
        least, most: bounds of every size (C's too, unless `channels` fixes it).
        elements: bound of the product.
        channels: C, when it is given.
        per_channel: the fewest numbers that a channel may hold; 2 for batch norm in training mode.
    """
    sizes = range(least, most + 1)
    c = draw(st.integers(least, most)) if channels is None else channels
    fits = [
        (n, c, h, w)
        for n in sizes for h in sizes for w in sizes
        if n * c * h * w <= elements and n * h * w >= per_channel
    ]  # fmt: skip
    return draw(st.sampled_from(_mostly_different(draw, fits)))


def _mostly_different(draw, candidates, sizes=lambda candidate: candidate):
    """Three times out of four the candidates with the most different sizes, since equal sizes hide swapped axes."""
    candidates = sorted(candidates, key=lambda candidate: int(np.prod(sizes(candidate))))  # shrinks to the first
    wish = draw(st.integers(0, 3))
    if wish == 0:
        return candidates
    dull = set() if wish == 1 else {1}  # half of the time a size of 1 counts for nothing
    most = max(len(set(sizes(candidate)) - dull) for candidate in candidates)
    return [candidate for candidate in candidates if len(set(sizes(candidate)) - dull) == most]


class Geometry(NamedTuple):
    """A convolution: sizes of x and weight, and how the window moves. Sizes in pixels are pairs (h, w)."""

    n: int
    ins: int  # C / groups
    outs: int  # O / groups
    groups: int
    size: tuple[int, int]  # (H, W)
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def in_channels(self):
        return self.groups * self.ins

    @property
    def out_channels(self):
        return self.groups * self.outs

    @property
    def x_shape(self):
        """(N, C, H, W)."""
        return self.n, self.in_channels, *self.size

    @property
    def weight_shape(self):
        """(O, C/groups, KH, KW)."""
        return self.out_channels, self.ins, *self.kernel

    @property
    def y_shape(self):
        """(N, O, OH, OW)."""
        out = map(output_size, self.size, self.kernel, self.stride, self.padding, self.dilation)
        return self.n, self.out_channels, *out

    @property
    def options(self):
        """(stride, padding, dilation, groups): what follows x, weight, bias in `conv2d_forward`."""
        return self.stride, self.padding, self.dilation, self.groups

    def arrays(self, rng, dtype=np.float64):
        """x, weight and bias."""
        return tuple(normal(rng, shape, dtype) for shape in (self.x_shape, self.weight_shape, self.out_channels))

    def dy(self, rng, dtype=np.float64):
        """An upstream gradient, of y's shape."""
        return normal(rng, self.y_shape, dtype)

    def layer(self, rng, dtype=np.float64, bias=True):
        """The Conv2d, its bias drawn too (it starts as zeros)."""
        layer = sn.Conv2d(
            self.in_channels, self.out_channels, self.kernel, self.stride, self.padding, self.dilation, self.groups,
            bias, dtype=dtype, rng=rng,
        )  # fmt: skip
        if bias:
            layer.bias.data[...] = normal(rng, self.out_channels, dtype)
        return layer


def pairs(low, high):
    """A pair of ints in [low, high], equal or not."""
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def geometries(draw, *, elements=120, side=5, **fixed):
    """A legal `Geometry` with at most `elements` numbers in x and in weight each.

    Covers strides that leave a remainder, even kernels, dilation, padding beyond half of the kernel, different values
    for h and w, 1×1 and depthwise (one case in six at least each), groups and several filters a channel.

    Args:
        draw: hypothesis's.
        elements: bound on the numbers in x, and in weight; keeps a complex-step check of every element at some 30 ms.
        side: H and W are at most this, unless the kernel needs more.
        fixed: any field of `Geometry` but `size`, to hold it at a value, such as `stride=(1, 1)` or `groups=1`.
    """
    kind = draw(st.sampled_from(["any", "any", "any", "any", "depthwise", "pointwise"]))
    if kind == "pointwise":
        fixed = {"kernel": (1, 1), "padding": (0, 0), "groups": 1} | fixed
    if kind == "depthwise":
        fixed = {"ins": 1} | fixed
    kernel = fixed.get("kernel") or draw(pairs(1, 4))
    stride = fixed.get("stride") or draw(pairs(1, 3))
    dilation = fixed.get("dilation") or draw(pairs(1, 2))
    padding = fixed.get("padding") or draw(st.tuples(*(st.integers(0, k + 1) for k in kernel)))
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    least = [max(1, s - 2 * p) for s, p in zip(span, padding, strict=True)]  # or the kernel would not fit

    small = range(1, 5)
    height = draw(st.integers(least[0], max(least[0], side)))
    width = draw(st.integers(least[1], max(least[1], side)))
    if height == width and draw(st.integers(0, 3)) > 0:
        width += 1
    area, taps = height * width, kernel[0] * kernel[1]
    fits = [
        (n, ins, outs, groups)
        for n in _only(fixed, "n", small) for ins in _only(fixed, "ins", small)
        for outs in _only(fixed, "outs", small) for groups in _only(fixed, "groups", small)
        if n * ins * groups * area <= elements and outs * ins * groups * taps <= elements
        and (kind != "depthwise" or groups > 1 or "groups" in fixed)
    ]  # fmt: skip
    fits = fits or [tuple(_only(fixed, field, [1])[0] for field in ("n", "ins", "outs", "groups"))]
    # different: the sizes of every axis of x and of y
    fits = _mostly_different(draw, fits, lambda f: (f[0], f[1] * f[3], f[2] * f[3], height, width))
    return Geometry(*draw(st.sampled_from(fits)), (height, width), kernel, stride, padding, dilation)


def _only(fixed, field, otherwise):
    return [fixed[field]] if field in fixed else otherwise


class Pooling(NamedTuple):
    """Average pooling: the shape of x, and every option. Sizes in pixels are pairs (h, w)."""

    x_shape: tuple[int, int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    ceil_mode: bool
    count_include_pad: bool

    @property
    def options(self):
        """What follows x in `avg_pool2d_forward`."""
        return self[1:]

    @property
    def y_shape(self):
        """(N, C, OH, OW)."""
        sides = zip(self.x_shape[2:], self.kernel, self.stride, self.padding, strict=True)
        return *self.x_shape[:2], *(output_size(*side, 1, self.ceil_mode) for side in sides)

    def layer(self):
        """The AvgPool2d."""
        return sn.AvgPool2d(*self.options)


@st.composite
def poolings(draw, *, elements=120, **fixed):
    """A legal `Pooling`; windows that overlap, leave gaps, hang over the border; `fixed` holds fields but x_shape."""
    kernel = fixed.get("kernel") or draw(pairs(1, 4))
    stride = fixed.get("stride") or draw(pairs(1, 5))
    padding = fixed.get("padding") or draw(st.tuples(*(st.integers(0, k // 2) for k in kernel)))
    least = [max(1, k - 2 * p) for k, p in zip(kernel, padding, strict=True)]
    height = draw(st.integers(least[0], least[0] + 4))
    width = draw(st.integers(least[1], least[1] + 4))
    if height == width and draw(st.integers(0, 3)) > 0:
        width += 1
    small = range(1, 5)
    fits = [(n, c, height, width) for n in small for c in small if n * c * height * width <= elements]
    shape = draw(st.sampled_from(_mostly_different(draw, fits or [(1, 1, height, width)])))
    modes = (fixed[mode] if mode in fixed else draw(st.booleans()) for mode in ("ceil_mode", "count_include_pad"))
    return Pooling(shape, kernel, stride, padding, *modes)


# Memory layouts -------------------------------------------------------------------------------------------------------


def _channel_major(x):
    """(N, C, …) in memory as (C, …, N): what every layer produces."""
    order = (*range(1, x.ndim), 0)
    return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))


def _channels_last(x):
    """(N, C, …) in memory as (N, …, C): PyTorch's channels_last."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def _sliced(x):
    """Every second row, third column, …, of something larger that is full of NaN elsewhere."""
    steps = [2 + axis % 2 for axis in range(x.ndim)]
    larger = np.full([size * step + 1 for size, step in zip(x.shape, steps, strict=True)], np.nan, x.dtype)
    view = larger[tuple(slice(1, None, step) for step in steps)]
    view[...] = x
    return view


def _negative(x):
    """Backwards in memory along every axis."""
    back = (slice(None, None, -1),) * x.ndim
    return x[back].copy()[back]


def _broadcast(x):
    """x's first picture, N times, but only once in memory: the batch axis has stride 0."""
    return np.broadcast_to(x[:1], x.shape)


def _constant(x):
    """x's first number everywhere, only once in memory: what the gradient of a mean or a sum looks like."""
    return np.broadcast_to(x.flat[0], x.shape)


def _read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {
    "contiguous": np.ascontiguousarray,
    "channel-major": _channel_major,
    "fortran": np.asfortranarray,
    "channels-last": _channels_last,
    "sliced": _sliced,
    "negative": _negative,
    "broadcast": _broadcast,
    "constant": _constant,
    "read-only": _read_only,
}


def is_channel_major(x):
    """Whether x (N, C, …) lies in memory as (C, …, N)."""
    return x.transpose(*range(1, x.ndim), 0).flags.c_contiguous


def in_layout(x, name):
    """x in a memory layout of LAYOUTS: an equal array of another memory order, strides or flags.

    "broadcast" and "constant" repeat a part of x, since only repeated numbers can share memory: compare what a layer
    makes of `z = in_layout(x, name)` with what it makes of `np.array(z, order="C")`, never of x.
    """
    return LAYOUTS[name](x)


def layouts():
    """A name of LAYOUTS."""
    return st.sampled_from(list(LAYOUTS))
