"""ResNets: stacks of blocks that add what they compute to what they were given.

Source: He, Zhang, Ren, Sun 2016, "Deep Residual Learning for Image Recognition": Table 1 for pictures of 224×224, section
4.2 for CIFAR's of 32×32. The layers have torchvision's names, so that its state_dict loads here with no renaming.

    basic block         3×3, norm, ReLU, 3×3, norm, + x, ReLU                              figure 5, left
    bottleneck          1×1 to a quarter, 3×3, 1×1 back, each with norm, + x, ReLU         figure 5, right

Where a block changes the size or the channels, x goes through a 1×1 convolution with batch norm (the paper's option B; for
CIFAR the paper takes option A, zeros for the new channels, and so has 0.8 % less parameters). The stride of a bottleneck
is at its 3×3, as torchvision has it.
"""

import re
from typing import NamedTuple

import numpy as np

import scratchnet as sn
from scratchnet.layers.init import fan_in_uniform
from scratchnet.training.schema import number, one_of

from .network import Network


class Depth(NamedTuple):
    """What the networks do not share: blocks of each stage, whether bottlenecks, channels of the first, and the stem."""

    blocks: tuple[int, ...]
    bottleneck: bool = False
    channels: int = 64
    large: bool = True  # a 7×7 stem of stride 2 and a max pooling; else a 3×3 stem


DEPTHS = {
    18: Depth((2, 2, 2, 2)),
    34: Depth((3, 4, 6, 3)),
    50: Depth((3, 4, 6, 3), bottleneck=True),
    101: Depth((3, 4, 23, 3), bottleneck=True),
    **{6 * n + 2: Depth((n, n, n), channels=16, large=False) for n in (3, 5, 7, 9)},  # 20, 32, 44, 56: section 4.2
}
EXPANSION = 4  # of a bottleneck: channels that come out, over those of its 3×3


class ResNet(Network):
    """ResNet for pictures (N, 3, H, W) -> logits (N, num_classes).

    Args:
        depth: 18, 34, 50 or 101 for large pictures; 20, 32, 44 or 56 for CIFAR's.
        num_classes: number of logits.
        width_mult: factor on every channel count (Zagoruyko and Komodakis 2016 widen so).
        zero_init_residual: set the weight of each block's last batch norm to 0 at first (torchvision's name).
        dtype: of every parameter.
        rng: numpy.random.Generator for the initial weights; None takes fresh entropy.

    Raises:
        ValueError: another depth, or a width or class count that is not positive.
    """

    ARGUMENTS = {"depth": one_of(*DEPTHS), "width_mult": number(0.001, 100)}
    NAMES = {f"resnet{depth}": {"depth": depth} for depth in DEPTHS}
    BIASES = ("fc.bias",)

    def __init__(
        self, depth, num_classes=1000, width_mult=1.0, *, zero_init_residual=False, dtype=np.float32, rng=None,
    ):  # fmt: skip
        if depth not in DEPTHS:
            raise ValueError(f"ResNet: depth must be one of {', '.join(map(str, DEPTHS))}, got {depth!r}")
        self.require_positive(num_classes, width_mult)
        shape = DEPTHS[depth]
        make = {"dtype": dtype, "rng": np.random.default_rng() if rng is None else rng}
        channels, *inner = channel_table(shape, width_mult)
        stem = (7, 2, 3) if shape.large else (3, 1, 1)
        layers = {"conv1": sn.Conv2d(3, channels, *stem, bias=False, **make)}
        layers |= {"bn1": sn.BatchNorm2d(channels, dtype=dtype), "relu": sn.ReLU()}
        if shape.large:
            layers["maxpool"] = sn.MaxPool2d(3, 2, 1)
        block = bottleneck if shape.bottleneck else basic_block
        for stage, (count, width) in enumerate(zip(shape.blocks, inner, strict=True), 1):
            blocks = []
            for k in range(count):
                blocks.append(block(channels, width, 2 if stage > 1 and not k else 1, zero_init_residual, **make))
                channels = width * (EXPANSION if shape.bottleneck else 1)
            layers[f"layer{stage}"] = sn.Sequential(*blocks)
        linear = sn.Linear(channels, num_classes, **make)
        linear.weight.data[...] = fan_in_uniform((num_classes, channels), rng=make["rng"])  # PyTorch's, for either
        linear.bias.data[...] = fan_in_uniform((1, channels), rng=make["rng"])[0, 0]
        super().__init__(layers | {"avgpool": sn.AdaptiveAvgPool2d(1), "flatten": sn.Flatten(), "fc": linear})
        self.depth, self.num_classes, self.width_mult = depth, num_classes, width_mult

    @classmethod
    def guesses(cls, state):
        """The depth by the blocks that are there, the width by the channels of the first layer and before the last."""
        places = [re.fullmatch(r"layer([1-4])\.(\d{1,2})\.conv2\.weight", key) for key in state]
        blocks = [sum(place is not None and place[1] == str(k) for place in places) for k in range(1, 5)]
        stem, last = state.get("conv1.weight", np.empty(0)), state.get("fc.weight", np.empty(0))
        if stem.ndim != 4 or last.ndim != 2:
            raise ValueError("it has no conv1.weight and fc.weight of a ResNet")
        found = tuple(filter(None, blocks)), "layer1.0.conv3.weight" in state
        for depth, shape in DEPTHS.items():
            if found == (shape.blocks, shape.bottleneck):
                *_, inner = channel_table(shape, 1)
                widths = len(stem) / shape.channels, last.shape[1] / (inner * (EXPANSION if shape.bottleneck else 1))
                return [{"depth": depth, "width_mult": width} for width in widths]  # the second has more digits
        raise ValueError(f"it has {blocks} blocks in its four stages, as no ResNet here")

    @classmethod
    def sizes(cls, outputs, *, depth, width_mult):
        """Those of the first convolution, each block's last one, and the classifier."""
        shape = DEPTHS[depth]
        stem, *inner = channel_table(shape, width_mult)
        shapes = {"conv1.weight": (stem, 3, 7, 7) if shape.large else (stem, 3, 3, 3)}
        for stage, (count, width) in enumerate(zip(shape.blocks, inner, strict=True), 1):
            for k in range(count):
                if shape.bottleneck:
                    shapes[f"layer{stage}.{k}.conv3.weight"] = (EXPANSION * width, width, 1, 1)
                else:
                    shapes[f"layer{stage}.{k}.conv2.weight"] = (width, width, 3, 3)
        return shapes | {"fc.weight": (outputs, inner[-1] * (EXPANSION if shape.bottleneck else 1))}


def channel_table(shape, width_mult):
    """Channels of the first convolution, and of each stage's 3×3 convolutions, of a `Depth`."""
    inner = [max(1, round(shape.channels * 2**stage * width_mult)) for stage in range(len(shape.blocks))]
    return inner[0], *inner


def basic_block(channels, out, stride, zero_init, *, dtype, rng):
    """Two 3×3 convolutions, the first with the stride, and a shortcut around them."""
    make = {"bias": False, "dtype": dtype, "rng": rng}
    layers = {"conv1": sn.Conv2d(channels, out, 3, stride, 1, **make), "bn1": sn.BatchNorm2d(out, dtype=dtype)}
    layers |= {"relu1": sn.ReLU(), "conv2": sn.Conv2d(out, out, 3, 1, 1, **make)}
    return _around(layers, "bn2", channels, out, stride, zero_init, make)


def bottleneck(channels, inner, stride, zero_init, *, dtype, rng):
    """A 1×1 convolution to few channels, a 3×3 one with the stride, a 1×1 one to many, and a shortcut around them."""
    make, out = {"bias": False, "dtype": dtype, "rng": rng}, inner * EXPANSION
    layers = {"conv1": sn.Conv2d(channels, inner, 1, **make), "bn1": sn.BatchNorm2d(inner, dtype=dtype)}
    layers |= {"relu1": sn.ReLU(), "conv2": sn.Conv2d(inner, inner, 3, stride, 1, **make)}
    layers |= {"bn2": sn.BatchNorm2d(inner, dtype=dtype), "relu2": sn.ReLU(), "conv3": sn.Conv2d(inner, out, 1, **make)}
    return _around(layers, "bn3", channels, out, stride, zero_init, make)


def _around(layers, last, channels, out, stride, zero_init, make):
    """The layers, a last batch norm, and the shortcut; ReLU behind the sum."""
    norm = sn.BatchNorm2d(out, dtype=make["dtype"])
    if zero_init:
        norm.weight.data[...] = 0
    layers |= {last: norm, "relu": sn.ReLU()}
    if stride == 1 and channels == out:
        return sn.Residual(layers, after="relu")
    shortcut = sn.Sequential(sn.Conv2d(channels, out, 1, stride, **make), sn.BatchNorm2d(out, dtype=make["dtype"]))
    return sn.Residual(layers | {"downsample": shortcut}, shortcut="downsample", after="relu")
