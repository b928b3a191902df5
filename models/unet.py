"""U-Net: down to small pictures with many channels and up again, with what was seen on the way down put beside.

Source: Ronneberger, Fischer, Brox 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation", figure 1. As is
usual today the 3×3 convolutions pad, so that the output has the input's size, and have batch norm (the paper: neither).

A level is what the next one is inside of, so the network is written as it is drawn:

    level = Concat(x itself, [max pooling, two convolutions, level below, transposed convolution]), two convolutions
"""

import numpy as np

import scratchnet as sn
from scratchnet.training.schema import whole

from .network import Network


class UNet(Network):
    """U-Net for pictures (N, in_channels, H, W) -> (N, out_channels, H, W); H and W must be multiples of 2^levels.

    Args:
        in_channels, out_channels: of x and y.
        channels: of the first convolutions; each level has twice as many as the one above.
        levels: how often the picture is halved.
        dtype: of every parameter.
        rng: numpy.random.Generator for the initial weights; None takes fresh entropy.

    Raises:
        ValueError: levels below 1, or sizes that are no ints of at least 1.
    """

    ARGUMENTS = {"in_channels": whole(1, 2**20), "channels": whole(1, 2**20), "levels": whole(1, 20)}
    OUTPUTS = "out_channels"
    BIASES = ("last.bias",)

    def __init__(self, in_channels=3, out_channels=1, channels=16, levels=3, *, dtype=np.float32, rng=None):
        if levels < 1:
            raise ValueError(f"UNet: levels must be at least 1, got {levels!r}")
        make = {"dtype": dtype, "rng": np.random.default_rng() if rng is None else rng}
        super().__init__({
            "first": double(in_channels, channels, **make),
            "level": level(channels, levels, **make),
            "last": sn.Conv2d(channels, out_channels, 1, **make),
        })  # fmt: skip
        self.in_channels, self.out_channels, self.channels, self.levels = in_channels, out_channels, channels, levels

    @classmethod
    def guesses(cls, state):
        """What the first convolution's shape says, and how deep the keys go."""
        first, levels = state.get("first.0.weight", np.empty(0)), 0
        while f"{'level.joined.below.' * (levels + 1)}up.weight" in state:
            levels += 1
        if first.ndim != 4 or not levels:
            raise ValueError("it has no first.0.weight and levels of a UNet")
        return [{"in_channels": first.shape[1], "channels": len(first), "levels": levels}]

    @classmethod
    def sizes(cls, outputs, *, in_channels, channels, levels):
        """Those of the first and the last convolution, and of each level's way up."""
        shapes = {"first.0.weight": (channels, in_channels, 3, 3), "last.weight": (outputs, channels, 1, 1)}
        for k in range(levels):
            shapes[f"{'level.joined.below.' * (k + 1)}up.weight"] = (channels * 2 ** (k + 1), channels * 2**k, 2, 2)
        return shapes


def double(channels, out, *, dtype, rng):
    """Two 3×3 convolutions, each with batch norm and ReLU."""
    make = {"padding": 1, "bias": False, "dtype": dtype, "rng": rng}
    return sn.Sequential(
        sn.Conv2d(channels, out, 3, **make), sn.BatchNorm2d(out, dtype=dtype), sn.ReLU(),
        sn.Conv2d(out, out, 3, **make), sn.BatchNorm2d(out, dtype=dtype), sn.ReLU(),
    )  # fmt: skip


def level(channels, levels, *, dtype, rng):
    """What is below a level, x beside it, and two convolutions of both: (N, channels, H, W) to the same."""
    make = {"dtype": dtype, "rng": rng}
    below = {"pool": sn.MaxPool2d(2), "down": double(channels, 2 * channels, **make)}
    if levels > 1:
        below["level"] = level(2 * channels, levels - 1, **make)
    below["up"] = sn.ConvTranspose2d(2 * channels, channels, 2, 2, **make)
    joined = sn.Concat({"skip": sn.Identity(), "below": sn.Sequential(below)})
    return sn.Sequential({"joined": joined, "convs": double(2 * channels, channels, **make)})
