"""Inference: batch norm is a part of the convolution before it, and ReLU6 is done while its output is at hand.

In eval mode batch norm is a fixed affine map per channel (BN.8), and a convolution z = W ⋆ x + b is linear in W and b:
    γ (z - μ) / √(v + eps) + β  =  W' ⋆ x + b'
    W' = a W,    b' = a (b - μ) + β,    a = γ / √(v + eps)        row o of W is scaled by a_o   (FOLD.1)
    y  = clip(W' ⋆ x + b', 0, 6)                                                               (FOLD.2)

A linear layer is such a convolution, of a picture with one pixel. `fold_batch_norm` writes W' and b' into a copy of a
network, once. In a network that is not folded the same is done on the way: `FoldedStep` takes the place of the layers in
eval mode, where nothing has to be saved.
"""

import copy
from collections import Counter
from itertools import pairwise

from scratchnet import kernels
from scratchnet.array import as_images, as_maps, as_matrix
from scratchnet.cache import located
from scratchnet.device import get_array_module, kind_of
from scratchnet.fused.pointwise import clipped_product
from scratchnet.fused.step import FusedStep, norm_follows
from scratchnet.layers.activation import ReLU6, clip
from scratchnet.layers.conv import Conv2d, conv2d_forward, depthwise_forward
from scratchnet.layers.linear import Linear
from scratchnet.layers.norm import BatchNorm1d
from scratchnet.module import Parameter


def fold_batch_norm(module):
    """A copy in eval mode in which every batch norm that directly follows a convolution or linear layer is a part of it.

    The layers keep their names, those in front have a bias, and those batch norms are gone. A layer that stands in two
    places is left as it is. The module does not change; the copy computes the same in eval mode, to rounding.
    """
    folded = copy.deepcopy(module).eval()
    places = Counter(id(part) for _, part in folded.named_modules())
    opened: set = set()
    for name, part in list(folded.named_modules()):
        if name not in opened:  # else an outer chain has been through it
            chain = list(part.chain(name))
            opened |= {".".join(inner.split(".")[:k]) for inner, _ in chain for k in range(1, inner.count(".") + 1)}
            for (_, conv), (inner, norm) in pairwise(chain):
                if (norm_follows(conv, norm) or norm_follows_linear(conv, norm)) and places[id(conv)] == 1:
                    weight, bias = folded_parameters(conv, norm)
                    conv.weight, conv.bias = Parameter(weight), Parameter(bias, decay=False)
                    _remove(folded, inner)
    return folded


def norm_follows_linear(linear, norm):
    """Whether this is a linear layer with a batch norm for its outputs behind it."""
    both = type(linear) is Linear and type(norm) is BatchNorm1d
    return both and len(linear.weight.data) == norm.weight.data.size


def folded_parameters(conv, norm):
    """W' and b' of a convolution, or linear layer, with the batch norm behind it."""
    a = norm.weight.data / (norm.running_var + norm.eps) ** 0.5
    bias = conv.bias.data if conv.bias else 0
    rows = a.reshape(-1, *[1] * (conv.weight.data.ndim - 1))  # (O,) -> (O, 1, 1, 1), or (O, 1)
    return rows * conv.weight.data, a * (bias - norm.running_mean) + norm.bias.data  # (FOLD.1)


def depthwise_relu6(x, weight, bias, stride, padding, dilation):
    """y for one filter a channel: x (C, H, W, N), weight (C, 1, KH, KW), bias (C,) -> (C, OH, OW, N)."""
    y = depthwise_forward(x, weight, stride, padding, dilation)
    return clip(y + bias[:, None, None, None], 0, 6)  # (FOLD.2)


def shift_and_clip(y, bias):
    """clip(y + bias, 0, 6) of y (O, M), in place (FOLD.2)."""
    y += bias[:, None]
    get_array_module(y).clip(y, 0, 6, out=y)


def _remove(part, name):
    *path, last = name.split(".")
    for step in path:
        part = getattr(part, step)
    delattr(part, last)


class FoldedStep(FusedStep):
    """A convolution, batch norm or none, and ReLU6, in a mode in which nothing is saved for backward."""

    saves = False

    @classmethod
    def matches(cls, layers):  # noqa: D102
        conv, *norm, relu6 = layers
        folding = type(conv) is Conv2d and all(norm_follows(conv, layer) for layer in norm)
        return folding and type(relu6) is ReLU6 and not any(layer.saves or layer.training for layer in layers)

    def _function(self):
        """The one function that computes all of it, or None where a convolution is followed by a pass of its own."""
        conv = self.layers[0]
        if conv.path == "pointwise" and conv.stride == (1, 1):
            return clipped_product
        return depthwise_relu6 if conv.path == "depthwise" and conv.in_channels == conv.out_channels else None

    def pair(self, kind):  # noqa: D102
        conv, function = self.layers[0], self._function()
        return kernels.choose(kernels.Pair(function), kind, window=conv.window) if function else conv.pair(kind)

    def forward(self, x):
        """Compute y, as the layers would."""
        conv, *norm, _ = self.layers
        with located(self.names[0]):
            conv.check(x)
        for layer in self.layers:
            layer.drop_cache()
        if norm:
            weight, bias = folded_parameters(conv, norm[0])
        else:
            weight, bias = conv.weight.data, conv.bias.data if conv.bias else 0 * conv.weight.data[:, 0, 0, 0]
        function, compute = self._function(), self.pair(kind_of(x)).forward
        if function is clipped_product:
            return as_images(compute(as_matrix(x), weight[:, :, 0, 0], bias), x)
        if function is depthwise_relu6:
            return as_images(compute(as_maps(x), weight, bias, *conv.geometry))
        options = *conv.geometry, conv.groups, conv.path
        y = as_maps(conv2d_forward(x, weight, None, *options)[0])
        kernels.run(shift_and_clip, y.reshape(len(y), -1), bias)
        return as_images(y)
