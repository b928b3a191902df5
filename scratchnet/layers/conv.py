"""Convolution: every output pixel is a weighted sum of the input pixels under a window.

    y[o, p, q] = bias[o] + Σ_cij weight[o, c, i, j] · x[c, p·s + i·d - pad, q·s + j·d - pad]      (CONV.1)

for each picture, with stride s, dilation d, zeros outside the picture, and c over the channels of o's group. A *tap* (i, j)
is one place of the window. There are three ways ("paths") to compute the sum; which is best depends on how many terms it
has. Source of the first: Chellapilla et al. 2006.

Dense and grouped. For each tap, write down the pixels that it reads at every output position, a row a (channel, tap):
    cols[c, i, j, p, q] = x[c, p·s + i·d - pad, q·s + j·d - pad]                                  (CONV.2)
Then (CONV.1) is one matrix product, with the weight as a matrix W of O × C·KH·KW; for several groups, one product for each:
    Y = W · cols + bias                                                                         (CONV.3)
Backward. Y is linear in bias, in W and in cols, so with dY = ∂L/∂Y
    dbias = Σ dY over positions             since bias[o] is added to all of row o                (CONV.4)
    dW    = dY · colsᵀ                      since ∂Y[o, m]/∂W[o, k] = cols[k, m]                  (CONV.5)
    dcols = Wᵀ · dY                         since ∂Y[o, m]/∂cols[k, m] = W[o, k]                  (CONV.6)
    dx    = every entry of dcols, added to the pixel that (CONV.2) copied it from                (CONV.7)

Pointwise (1×1, one group, no padding): cols is x itself, or its every s-th pixel.

Depthwise (as many groups as channels): the sum over c has one term, so that a matrix product would have nothing to add up.
Tap by tap instead:
    y[outside]  += weight[i, j] · x[inside]                                                      (CONV.8)
    dweight[i, j] = Σ dy[outside] · x[inside]                                                    (CONV.9)
    dx[inside]  += weight[i, j] · dy[outside]                                                    (CONV.10)
with the slices of `windows.taps`: `outside` are the outputs for which the tap reads a pixel, `inside` are these pixels.
"""

import numpy as np

from scratchnet import kernels
from scratchnet.array import as_images, as_maps
from scratchnet.device import get_array_module, kind_of
from scratchnet.layers.arguments import DEVICE, pytorch_arguments
from scratchnet.layers.blocks import block_diagonal, diagonal_blocks
from scratchnet.layers.init import fan_out_normal
from scratchnet.module import Module, Parameter
from scratchnet.parameter import add_gradients, is_trained
from scratchnet.windows import add_col2im, copy_im2col, is_count, output_size, padding_of, pair, require_room, taps


def conv2d_forward(x, weight, bias, stride, padding, dilation, groups, path):  # (CONV.1)
    """Convolve, one sum of products for every output pixel.

    Args:
        x: (N, C, H, W).
        weight: (O, C/groups, KH, KW).
        bias: (O,) or None.
        stride, padding, dilation: pairs (h, w), in pixels.
        groups: how many independent groups of channels.
        path: "pointwise", "depthwise", "grouped" or "dense": the way to compute it.

    Returns:
        y (N, O, OH, OW) and the cache for `conv2d_backward`.
    """
    maps = as_maps(x)  # (N, C, H, W) -> (C, H, W, N)
    full = block_diagonal(weight, groups) if path == "dense" else weight
    (forward, backward, _), options = path_pair(kind_of(x), weight, (stride, padding, dilation), groups, path)
    y = forward(maps, full, *options)
    if bias is not None:
        y += bias[:, None, None, None]
    return as_images(y), (backward, maps, full, options, bias is not None, groups, path)


def conv2d_backward(dy, cache, wants=(True, True)):
    """Gradients of `conv2d_forward`: dx (N, C, H, W), dweight like weight, dbias (O,) or None.

    Args:
        dy: (N, O, OH, OW).
        cache: of `conv2d_forward`.
        wants: whether dweight and dbias are; else they are None.
    """
    backward, maps, full, options, has_bias, groups, path = cache
    grad = as_maps(dy)  # (N, O, OH, OW) -> (O, OH, OW, N)
    dbias = grad.reshape(len(grad), -1).sum(axis=1) if has_bias and wants[1] else None  # (CONV.4)
    dx, dweight = backward(grad, maps, full, *options, wants[0])
    return as_images(dx), diagonal_blocks(dweight, groups) if path == "dense" and wants[0] else dweight, dbias


def path_pair(kind, weight, geometry, groups, path):
    """The pair of functions that computes a path, and what they take besides x and weight."""
    window = weight.shape[2:], *geometry
    if path == "pointwise":
        return kernels.choose(POINTWISE, kind), geometry[:1]
    if path == "depthwise":
        return kernels.choose(DEPTHWISE, kind, filters=len(weight) // groups, window=window), geometry
    products = 1 if path == "dense" else groups
    terms = weight.size // len(weight) * (groups // products)  # on the path "dense", zeros between the groups count too
    return kernels.choose(GROUPED, kind, groups=products, terms=terms, window=window), (*geometry, products)


# The paths, each on maps x (C, H, W, N), y (O, OH, OW, N). Where no dweight is wanted, x says only what shape dx has. ----


def grouped_forward(x, weight, stride, padding, dilation, groups):
    """One matrix product a group: x (C, H, W, N), weight (O, C/groups, KH, KW) -> y (O, OH, OW, N)."""
    out_size = _out_size(x, weight.shape, stride, padding, dilation)
    cols = im2col(x, weight, out_size, stride, padding, dilation)
    matrix = weight.reshape(groups, len(weight) // groups, -1)  # (O, C/G, KH, KW) -> (G, O/G, K)
    y = matrix @ cols.reshape(groups, matrix.shape[2], -1)  # (CONV.3): (G, O/G, K) @ (G, K, M)
    return y.reshape(len(weight), *out_size, -1)


def grouped_backward(dy, x, weight, stride, padding, dilation, groups, wants_dweight=True):
    """Gradients of `grouped_forward`: dx like x, dweight like weight or None."""
    matrix = weight.reshape(groups, len(weight) // groups, -1)
    grad = dy.reshape(groups, len(weight) // groups, -1)  # (O, OH, OW, N) -> (G, O/G, M)
    dweight = None
    if wants_dweight:
        # cols are made again: keeping them would cost KH·KW activations
        cols = im2col(x, weight, dy.shape[1:3], stride, padding, dilation)
        dmatrix = grad @ cols.reshape(groups, matrix.shape[2], -1).swapaxes(1, 2)  # (CONV.5)
        dweight = dmatrix.reshape(weight.shape)
    dcols = matrix.swapaxes(1, 2) @ grad  # (CONV.6)
    dx = get_array_module(x).zeros_like(x)
    shape = len(x), *weight.shape[2:], *dy.shape[1:]
    add_col2im(dcols.reshape(shape), dx, stride, padding, dilation)  # (CONV.7)
    return dx, dweight


def im2col(x, weight, out_size, stride, padding, dilation):  # (CONV.2)
    """The pixels that each tap reads at every output position: x (C, H, W, N) -> cols (C, KH, KW, OH, OW, N)."""
    cols = get_array_module(x).zeros((len(x), *weight.shape[2:], *out_size, x.shape[3]), x.dtype)
    copy_im2col(x, cols, stride, padding, dilation)
    return cols


def pointwise_forward(x, weight, stride):
    """A 1×1 convolution is one matrix product: x (C, H, W, N), weight (O, C, 1, 1) -> y (O, OH, OW, N)."""
    seen = x[:, :: stride[0], :: stride[1]]
    y = weight[:, :, 0, 0] @ seen.reshape(len(x), -1)  # (CONV.3): (O, C) @ (C, OH·OW·N)
    return y.reshape(len(weight), *seen.shape[1:])


def pointwise_backward(dy, x, weight, stride, wants_dweight=True):
    """Gradients of `pointwise_forward`: dx like x, dweight like weight or None."""
    seen = x[:, :: stride[0], :: stride[1]]
    grad, dweight = dy.reshape(len(dy), -1), None
    if wants_dweight:
        dweight = (grad @ seen.reshape(len(x), -1).T)[:, :, None, None]  # (CONV.5)
    dseen = (weight[:, :, 0, 0].T @ grad).reshape(seen.shape)  # (CONV.6)
    if stride == (1, 1):
        return dseen, dweight
    dx = get_array_module(x).zeros_like(x)
    dx[:, :: stride[0], :: stride[1]] = dseen  # (CONV.7)
    return dx, dweight


def depthwise_forward(x, weight, stride, padding, dilation):
    """Each channel with its own O/C filters: x (C, H, W, N), weight (O, 1, KH, KW) -> y (O, OH, OW, N)."""
    out_size = _out_size(x, weight.shape, stride, padding, dilation)
    filters = weight.reshape(len(x), -1, *weight.shape[2:], 1, 1, 1)  # (C, O/C, KH, KW, 1, 1, 1)
    y = get_array_module(x).zeros((*filters.shape[:2], *out_size, x.shape[3]), x.dtype)
    for i, j, outside, inside in taps(x.shape[1:3], out_size, weight.shape[2:], stride, padding, dilation):
        y.swapaxes(0, 1)[(slice(None), *outside)] += filters[:, :, i, j].swapaxes(0, 1) * x[inside]  # (CONV.8)
    return y.reshape(len(weight), *out_size, -1)


def depthwise_backward(dy, x, weight, stride, padding, dilation, wants_dweight=True):
    """Gradients of `depthwise_forward`: dx like x, dweight like weight or None."""
    filters = weight.reshape(len(x), -1, *weight.shape[2:], 1, 1, 1)
    grad = dy.reshape(len(x), -1, *dy.shape[1:]).swapaxes(0, 1)  # (O, OH, OW, N) -> (O/C, C, OH, OW, N)
    dx = get_array_module(x).zeros_like(x)
    dfilters = get_array_module(x).zeros_like(filters)
    for i, j, outside, inside in taps(x.shape[1:3], dy.shape[1:3], weight.shape[2:], stride, padding, dilation):
        seen = grad[(slice(None), *outside)]
        if wants_dweight:
            dfilters[:, :, i, j, 0, 0, 0] = (seen * x[inside]).sum(axis=(2, 3, 4)).T  # (CONV.9)
        dx[inside] += (filters[:, :, i, j].swapaxes(0, 1) * seen).sum(axis=0)  # (CONV.10)
    return dx, dfilters.reshape(weight.shape) if wants_dweight else None


POINTWISE = kernels.Pair(pointwise_forward, pointwise_backward)
DEPTHWISE = kernels.Pair(depthwise_forward, depthwise_backward)
GROUPED = kernels.Pair(grouped_forward, grouped_backward)


def _out_size(x, weight_shape, stride, padding, dilation):
    return tuple(map(output_size, x.shape[1:3], weight_shape[2:], stride, padding, dilation))


@pytorch_arguments(
    padding_mode=(("zeros",), "pad x before, with np.pad(x, …, mode='reflect'), say, and convolve with padding=0"),
    device=DEVICE,
)
class Conv2d(Module):
    """Convolution of (N, in_channels, H, W) with any kernel size, stride, padding, dilation and number of groups.

    `padding` may be PyTorch's "same" (y as large as x, for stride 1) or "valid" (none), too.

    Attributes:
        weight: (out_channels, in_channels/groups, KH, KW), from N(0, 2/fan_out) (`init.fan_out_normal`).
        bias: (out_channels,), zeros; None with `bias=False`.
        path: how it is computed; see the module's docstring. Settable where the geometry allows.

    Raises:
        ValueError: channels that groups do not divide, sizes that are no ints, a kernel larger than the padded input.
    """

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True,
        *, dtype=np.float32, rng=None,
    ):  # fmt: skip
        self.kernel_size = pair(kernel_size, "Conv2d: kernel_size", 1)
        self.stride = pair(stride, "Conv2d: stride", 1)
        self.dilation = pair(dilation, "Conv2d: dilation", 1)
        self.padding = padding_of(padding, "Conv2d: padding", self.kernel_size, self.stride, self.dilation)
        for what, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if not (is_count(groups) and is_count(channels) and channels % groups == 0):
                got = f"{channels} and groups {groups}"
                raise ValueError(f"Conv2d: {what} must be a positive multiple of groups, got {got}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = Parameter(fan_out_normal(shape, groups, rng, dtype))
        self.bias = Parameter(np.zeros(out_channels, dtype), decay=False) if bias else None
        self._path = self.paths()[0]

    def paths(self):
        """The paths that this geometry allows, the fastest first."""
        pointwise = self.kernel_size == (1, 1) and self.padding == (0, 0) and self.groups == 1
        depthwise = self.groups == self.in_channels > 1
        special = ["pointwise"] * pointwise + ["depthwise"] * depthwise
        return special + (["dense", "grouped"] if self.groups == 1 else ["grouped", "dense"])

    @property
    def path(self):  # noqa: D102 (an attribute: described by the class)
        return self._path

    @path.setter
    def path(self, path):
        if path not in (allowed := self.paths()):
            raise ValueError(f"Conv2d: path {path!r} does not fit this geometry, which allows {', '.join(allowed)}")
        self._path = path

    @property
    def takes_bfloat16(self):  # type: ignore[override]  # noqa: D102
        return self.bias is None and (self.path != "depthwise" or self.in_channels == self.out_channels)

    @property
    def multiply_adds(self):
        """Multiplications, each with its addition, for one number of the output."""
        return self.weight.data[0].size

    @property
    def geometry(self):
        """Stride, padding and dilation, as the functions take them."""
        return self.stride, self.padding, self.dilation

    @property
    def window(self):
        """Kernel, stride, padding and dilation, as `kernels.choose` takes them."""
        return self.kernel_size, *self.geometry

    def pair(self, kind):
        """That of the path."""
        return path_pair(kind, self.weight.data, self.geometry, self.groups, self.path)[0]

    def factors(self):
        """The weight, but for a depthwise one."""
        return () if self.path == "depthwise" else (self.weight.data,)

    def facts(self):
        """The path as well."""
        return *super().facts(), self.path, self.bias is None

    def check(self, x):
        """Raise ValueError or TypeError for an x that forward cannot take."""
        self.require(x, "N", self.in_channels, "H", "W")
        self.require_room(x.shape)

    def require_room(self, shape):
        """Raise ValueError where x of this shape has no room for the window."""
        require_room(self.name, shape, self.kernel_size, self.padding, self.dilation)

    def multiplied(self):
        """Weight and bias (or None) as forward multiplies with them: a subclass may round them."""
        return self.weight.data, self.bias.data if self.bias else None

    def forward(self, x):
        """Convolve x (N, C, H, W) -> (N, O, OH, OW)."""
        self.check(x)
        options = *self.geometry, self.groups, self.path
        y, cache = conv2d_forward(x, *self.multiplied(), *options)
        self.save_cache(cache, y)
        return y

    def backward(self, dy):
        """Return dx (N, C, H, W); add dweight and dbias, but for what is frozen."""
        wants = is_trained(self.weight), is_trained(self.bias)
        dx, dweight, dbias = conv2d_backward(dy, self.take_cache(dy), wants)
        add_gradients((self.weight, self.bias), (dweight, dbias))
        return dx

    def extra_repr(self):  # noqa: D102
        said = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        given = (("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1))
        said += [f"{name}={getattr(self, name)}" for name, usual in given if getattr(self, name) != usual]
        return ", ".join(said + ["bias=False"] * (self.bias is None))
