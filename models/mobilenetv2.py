"""MobileNetV2: inverted residual blocks, each a narrow-wide-narrow sandwich around a depthwise convolution.

Source: Sandler, Howard, Zhu, Zhmoginov, Chen 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", Table 2.
The network is a chain, so that it is a `Sequential`; its backward is the one it inherits.

A block with expansion t: 1×1 convolution to t times the channels -> 3×3 depthwise -> 1×1 convolution back, each with
batch norm, ReLU6 after the first two (the last is linear: a ReLU in few channels would lose too much, §3.2; chapter 10 of
docs/course measures it). A shortcut joins input and output where the stride is 1 and the channels match.
"""

from typing import NamedTuple

import numpy as np

import scratchnet as sn
from scratchnet.layers.init import fan_in_uniform
from scratchnet.training.schema import number, one_of

from .network import Network

# expansion t, output channels c, repeats n (Table 2); the stride of each row's first block is the variant's
BLOCKS = [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280


class Variant(NamedTuple):
    """What the three variants do not share."""

    stem_kernel: int
    stem_stride: int
    strides: tuple[int, ...]  # of the first block of each row of BLOCKS
    divisor: int  # channels are rounded to multiples of this
    head_grows_only: bool  # whether the head keeps 1280 channels below width 1
    always_expand: bool  # whether a block with t = 1 has the 1×1 expansion too
    default_init: bool  # weights as PyTorch's layers have them by default, in place of the paper's
    conv_classifier: bool  # a 1×1 convolution in place of dropout and a linear layer


VARIANTS = {
    # the paper's, as torchvision builds it: its state_dict loads here with no renaming
    "imagenet": Variant(3, 2, (1, 2, 2, 2, 1, 2, 1), 8, True, False, False, False),
    # the same for 32×32 pictures: two strides less, 32×32 -> 4×4
    "cifar": Variant(3, 1, (1, 1, 2, 2, 1, 2, 1), 8, True, False, False, False),
    # the network of the blog post that this project implements
    "blog": Variant(1, 2, (1, 2, 2, 2, 1, 2, 1), 1, False, True, True, True),
}


class MobileNetV2(Network):
    """MobileNetV2 for pictures (N, 3, H, W) -> logits (N, num_classes).

    Args:
        num_classes: number of logits.
        width_mult: factor on every channel count.
        variant: "cifar", "imagenet" or "blog", see `VARIANTS`. Keys and shapes of the first two's `state_dict` are
            torchvision's (`features.1.conv.0.0.weight`, …, `classifier.1.bias`).
        dropout: probability before the classifier (the blog variant has none).
        zero_init_residual: set the weight of each residual branch's last batch norm to 0 at first (Goyal et al. 2017,
            section 5.1; torchvision's name), so that the network begins as a shallow one.
        dtype: of every parameter.
        rng: numpy.random.Generator for the initial weights and for dropout; None takes fresh entropy.

    Raises:
        ValueError: an unknown variant, or a width or class count that is not positive.
    """

    ARGUMENTS = {"width_mult": number(0.001, 100), "variant": one_of(*VARIANTS), "dropout": number(0, 0.999)}
    NAMES = {"mobilenetv2": {}}
    BIASES = "classifier.1.bias", "classifier.bias"
    OTHERWISE = "of any width from 0.01 to 5"

    def __init__(
        self, num_classes=10, width_mult=1.0, variant="cifar", dropout=0.2,
        *, zero_init_residual=False, dtype=np.float32, rng=None,
    ):  # fmt: skip
        if variant not in VARIANTS:
            raise ValueError(f"MobileNetV2: variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        self.require_positive(num_classes, width_mult)
        rng = np.random.default_rng() if rng is None else rng
        v = VARIANTS[variant]
        make = {"dtype": dtype, "rng": rng}

        rows, head = block_table(width_mult, v)
        features = [conv_bn(3, rows[0][0], v.stem_kernel, v.stem_stride, **make)]
        features += [inverted_residual(*row, v.always_expand, **make) for row in rows]
        features.append(conv_bn(rows[-1][1], head, 1, 1, **make))

        layers = {"features": sn.Sequential(*features), "pool": sn.GlobalAvgPool2d()}
        if v.conv_classifier:
            layers |= {"classifier": sn.Conv2d(head, num_classes, 1, **make), "flatten": sn.Flatten()}
        else:
            linear = sn.Linear(head, num_classes, **make)
            linear.weight.data[...] = 0.01 * rng.standard_normal(linear.weight.data.shape)  # torchvision's N(0, 0.01²)
            layers |= {"flatten": sn.Flatten(), "classifier": sn.Sequential(sn.Dropout(dropout, rng=rng), linear)}
        super().__init__(layers)
        if v.default_init:
            for _, module in self.named_modules():
                if isinstance(module, sn.Conv2d):
                    weight = module.weight.data
                    weight[...] = fan_in_uniform(weight.shape, module.groups, rng)  # the classifier's bias stays 0
        if zero_init_residual:
            for _, module in self.named_modules():
                if isinstance(module, sn.Residual):
                    module[0][-1].weight.data[...] = 0
        self.variant, self.width_mult, self.num_classes, self.dropout = variant, width_mult, num_classes, dropout

    @classmethod
    def guesses(cls, state):
        """Every width that may be; shapes do not tell strides, so that torchvision's keys are taken for "imagenet"."""
        variant = "blog" if "classifier.weight" in state else "imagenet"
        widths = dict.fromkeys(
            n / parts for parts in (1, 4, 10, 20, 100) for n in range(1, 5 * parts)
        )  # round ones first
        return [{"width_mult": width, "variant": variant, "dropout": 0.2} for width in widths]

    @classmethod
    def sizes(cls, num_classes, *, width_mult, variant, dropout):
        """The shapes of the projections, the head and the classifier: no other width has all of them."""
        v = VARIANTS[variant]
        rows, head = block_table(width_mult, v)
        shapes = {f"features.{len(rows) + 1}.0.weight": (head, rows[-1][1], 1, 1)}
        for k, (channels, out, t, _) in enumerate(rows, 1):
            place = 2 if t != 1 or v.always_expand else 1  # of the projection
            shapes[f"features.{k}.conv.{place}.weight"] = (out, t * channels, 1, 1)
        if v.conv_classifier:
            return shapes | {"classifier.weight": (num_classes, head, 1, 1)}
        return shapes | {"classifier.1.weight": (num_classes, head)}


def block_table(width_mult, variant):
    """(input channels, output channels, expansion, stride) of each block of a `Variant`, and the head's channels."""
    v, rows = variant, []
    channels = round_channels(STEM_CHANNELS * width_mult, v.divisor)
    for (t, c, n), stride in zip(BLOCKS, v.strides, strict=True):
        out = round_channels(c * width_mult, v.divisor)
        for k in range(n):
            rows.append((channels, out, t, stride if k == 0 else 1))
            channels = out
    return rows, round_channels(HEAD_CHANNELS * (max(1.0, width_mult) if v.head_grows_only else width_mult), v.divisor)


def round_channels(channels, divisor):
    """The nearest multiple of `divisor`, but never below 90 % of `channels`; for divisor 1 the integer part."""
    if divisor == 1:
        return max(1, int(channels))
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def conv_bn(in_channels, out_channels, kernel, stride, groups=1, *, dtype, rng):
    """Convolution that keeps the size (but for its stride), batch norm, ReLU6."""
    padding = (kernel - 1) // 2
    options = {"stride": stride, "padding": padding, "groups": groups, "bias": False}  # batch norm has the bias
    conv = sn.Conv2d(in_channels, out_channels, kernel, **options, dtype=dtype, rng=rng)
    return sn.Sequential(conv, sn.BatchNorm2d(out_channels, dtype=dtype), sn.ReLU6())


def inverted_residual(in_channels, out_channels, t, stride, always_expand, *, dtype, rng):
    """The block of Table 1: expand, filter each channel, project; with a shortcut where the shapes allow one.

    Args:
        in_channels, out_channels: of the narrow ends.
        t: how many times as wide it is inside.
        stride: of the depthwise convolution.
        always_expand: whether a block with t = 1 has the 1×1 expansion too.
        dtype, rng: as `MobileNetV2` takes them.
    """
    make = {"dtype": dtype, "rng": rng}
    wide = in_channels * t
    expand = [conv_bn(in_channels, wide, 1, 1, **make)] if t != 1 or always_expand else []
    depthwise = conv_bn(wide, wide, 3, stride, groups=wide, **make)
    project = sn.Conv2d(wide, out_channels, 1, bias=False, **make)
    body = sn.Sequential(*expand, depthwise, project, sn.BatchNorm2d(out_channels, dtype=dtype))
    container = sn.Residual if stride == 1 and in_channels == out_channels else sn.Sequential
    return container({"conv": body})
