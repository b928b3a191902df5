"""Transposed convolution: every input pixel writes its window of the output; a convolution with its two sides exchanged.

A convolution (conv.py) reads a window for each pixel of its small picture; this layer writes it:
    y[o, p·s + i·d - pad, q·s + j·d - pad] += weight[c, o, i, j] · x[c, p, q]    over all c, i, j, p, q   (CONVT.1)
for each picture, with o over the channels of c's group, bias[o] everywhere, and what falls outside y left out.

So it is a convolution's derivative. Let K be the convolution with the same weight, (C, O/groups, KH, KW), and the same
options, from pictures like y to pictures like x: x̃ = K ỹ. (CONV.6) and (CONV.7) say that its dx is Kᵀ applied to its dy;
and (CONVT.1) is that same sum. From left to right in both:
    forward      y  = Kᵀ x  + bias          is Conv2d's dx                                       (CONVT.2)
    backward     dx = K dy                  is Conv2d's forward, since (Kᵀ)ᵀ = K                 (CONVT.3)
    dweight      = Σ x · (pixels of dy that the tap reads)      is Conv2d's dweight (CONV.5), the roles of its
                                                                picture and its gradient exchanged (CONVT.4)
    dbias        = Σ dy over positions                                                           (CONVT.5)
With cols (CONV.2) of dy, and matrices as there, one product a group:
    cols(y) = Wᵀ X,  each entry added to its pixel of y;    dX = W · cols(dY);    dW = X · cols(dY)ᵀ

Where the stride is above 1 several sizes of y lead to the same x̃, by (WIN.2). PyTorch's rule takes the smallest, and
`output_padding` more rows and columns at the end, which may be read by no window:
    (size - 1)·s - 2·pad + d·(kernel - 1) + 1 + output_padding                                   (CONVT.6)
Sources: Zeiler et al. 2010; Dumoulin and Visin 2016, §4.
"""

import math

import numpy as np

from scratchnet import kernels
from scratchnet.array import as_images, as_maps
from scratchnet.device import get_array_module
from scratchnet.layers.conv import im2col
from scratchnet.layers.init import he_normal
from scratchnet.module import Module, Parameter
from scratchnet.parameter import add_gradients, is_trained
from scratchnet.windows import add_col2im, is_count, pair


def conv_transpose2d_forward(x, weight, bias, stride, padding, output_padding, dilation, groups):  # (CONVT.1)
    """Write a weighted window for every input pixel (CONVT.1).

    Args:
        x: (N, C, H, W).
        weight: (C, O/groups, KH, KW).
        bias: (O,) or None.
        stride, padding, output_padding, dilation: pairs (h, w), in pixels.
        groups: how many independent groups of channels.

    Returns:
        y (N, O, OH, OW) and the cache for `conv_transpose2d_backward`.
    """
    maps = as_maps(x)  # (N, C, H, W) -> (C, H, W, N)
    kernel = weight.shape[2:]
    out_size = tuple(map(spread_size, maps.shape[1:3], kernel, stride, padding, output_padding, dilation))
    matrix = weight.reshape(groups, len(weight) // groups, -1)  # (C, O/G, KH, KW) -> (G, C/G, K)
    cols = matrix.swapaxes(1, 2) @ maps.reshape(groups, matrix.shape[1], -1)  # (G, K, C/G) @ (G, C/G, M)
    y = get_array_module(maps).zeros((weight.shape[1] * groups, *out_size, maps.shape[3]), maps.dtype)
    add_col2im(cols.reshape(len(y), *kernel, *maps.shape[1:]), y, stride, padding, dilation)  # (CONVT.2)
    if bias is not None:
        y += bias[:, None, None, None]
    return as_images(y), (maps, weight, bias is not None, stride, padding, dilation, groups)


def conv_transpose2d_backward(dy, cache, wants=(True, True)):
    """Gradients of `conv_transpose2d_forward`: dx (N, C, H, W), dweight like weight, dbias (O,) or None.

    None too where `wants` says that the weight's or the bias's is not wanted.
    """
    maps, weight, has_bias, stride, padding, dilation, groups = cache
    grad = as_maps(dy)  # (N, O, OH, OW) -> (O, OH, OW, N)
    dbias = grad.reshape(len(grad), -1).sum(axis=1) if has_bias and wants[1] else None  # (CONVT.5)
    matrix = weight.reshape(groups, len(weight) // groups, -1)
    cols = im2col(grad, weight, maps.shape[1:3], stride, padding, dilation).reshape(groups, matrix.shape[2], -1)
    dx = matrix @ cols  # (CONVT.3): (G, C/G, K) @ (G, K, M)
    dweight = None
    if wants[0]:
        dmatrix = maps.reshape(groups, matrix.shape[1], -1) @ cols.swapaxes(1, 2)  # (CONVT.4)
        dweight = dmatrix.reshape(weight.shape)
    return as_images(dx.reshape(maps.shape)), dweight, dbias


def spread_size(size, kernel, stride, padding, output_padding, dilation):
    """How long y is along one axis; below 1 where the padding takes all of it away."""
    return (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1 + output_padding  # (CONVT.6)


CONV_TRANSPOSE2D = kernels.Pair(conv_transpose2d_forward, conv_transpose2d_backward)


class ConvTranspose2d(Module):
    """Transposed convolution of (N, in_channels, H, W), also called deconvolution; arguments as PyTorch has them.

    Attributes:
        weight: (in_channels, out_channels/groups, KH, KW), drawn by `rng` from N(0, 2/fan_out) as Conv2d's is; fan_out,
            the numbers of y that a number of x reaches, is out_channels/groups · KH · KW.
        bias: (out_channels,), zeros; None with `bias=False`.

    Raises:
        ValueError: channels that groups do not divide, sizes that are no ints, an output_padding that is not smaller than
            stride or dilation, an input so small that padding leaves no output.
    """

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, output_padding=0, groups=1, bias=True,
        dilation=1, *, dtype=np.float32, rng=None,
    ):  # fmt: skip
        self.kernel_size = pair(kernel_size, "ConvTranspose2d: kernel_size", 1)
        self.stride = pair(stride, "ConvTranspose2d: stride", 1)
        self.padding = pair(padding, "ConvTranspose2d: padding", 0)
        self.output_padding = pair(output_padding, "ConvTranspose2d: output_padding", 0)
        self.dilation = pair(dilation, "ConvTranspose2d: dilation", 1)
        for what, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if not (is_count(groups) and is_count(channels) and channels % groups == 0):
                got = f"{channels} and groups {groups}"
                raise ValueError(f"ConvTranspose2d: {what} must be a positive multiple of groups, got {got}")
        if any(o >= max(s, d) for o, s, d in zip(self.output_padding, self.stride, self.dilation, strict=True)):
            raise ValueError(
                f"ConvTranspose2d: output_padding must be smaller than stride or dilation, got {self.output_padding} "
                f"with stride {self.stride} and dilation {self.dilation}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.weight = Parameter(
            he_normal((in_channels, out_channels // groups, *self.kernel_size), rng=rng, dtype=dtype)
        )
        self.bias = Parameter(np.zeros(out_channels, dtype), decay=False) if bias else None

    @property
    def geometry(self):
        """Stride, padding, output padding and dilation, as the functions take them."""
        return self.stride, self.padding, self.output_padding, self.dilation

    def work(self, inside, outside):
        """Every number of x is multiplied with all weights of its channel (CONVT.1), also where y ends."""
        return self.weight.data[0].size * math.prod(inside)

    def forward(self, x):
        """Compute y (N, O, OH, OW) from x (N, C, H, W)."""
        self.require(x, "N", self.in_channels, "H", "W")
        out_size = tuple(map(spread_size, x.shape[2:], self.kernel_size, *self.geometry))
        if min(out_size) < 1:
            raise ValueError(
                f"{self.name}: padding {self.padding} leaves an output of {out_size[0]} × {out_size[1]} pixels "
                f"(x of shape {x.shape})"
            )
        bias = self.bias.data if self.bias else None
        options = *self.geometry, self.groups
        y, cache = conv_transpose2d_forward(x, self.weight.data, bias, *options)
        self.save_cache(cache, y)
        return y

    def backward(self, dy):
        """Return dx (N, C, H, W); add dweight and dbias, but for what is frozen."""
        cache, wants = self.take_cache(dy), (is_trained(self.weight), is_trained(self.bias))
        dx, dweight, dbias = conv_transpose2d_backward(dy, cache, wants)
        add_gradients((self.weight, self.bias), (dweight, dbias))
        return dx

    def pair(self, kind):
        """(CONVT.2) to (CONVT.5)."""
        return CONV_TRANSPOSE2D

    def extra_repr(self):  # noqa: D102
        said = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        given = (("padding", (0, 0)), ("output_padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1))
        said += [f"{name}={getattr(self, name)}" for name, usual in given if getattr(self, name) != usual]
        return ", ".join(said + ["bias=False"] * (self.bias is None))
