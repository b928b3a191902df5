"""U-Net: down to small pictures with many channels and up again, with what was seen on the way down put beside.

Source: Ronneberger, Fischer, Brox 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation", figure 1. As is
usual today the 3×3 convolutions pad, so that the output has the input's size, and have batch norm (the paper: neither).

A level is what the next one is inside of, so the network is written as it is drawn:

    level = Concat(x itself, [max pooling, two convolutions, level below, transposed convolution]), two convolutions
"""

import numpy as np

import scratchnet as sn


class UNet(sn.Sequential):
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

    def __init__(self, in_channels=3, out_channels=1, channels=16, levels=3, *, dtype=np.float32, rng=None):
        if levels < 1:
            raise ValueError(f"UNet: levels must be at least 1, got {levels!r}")
        make = {"dtype": dtype, "rng": np.random.default_rng() if rng is None else rng}
        super().__init__({
            "first": double(in_channels, channels, **make),
            "level": level(channels, levels, **make),
            "last": sn.Conv2d(channels, out_channels, 1, **make),
        })  # fmt: skip


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
