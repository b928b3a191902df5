"""A small network with every kind of container, and a layer of one's own, for the tests of what modules are."""

import numpy as np
from strategies import normal

import scratchnet as sn


class Scale(sn.Module):
    """A layer of one's own: y = gain · x for each channel."""

    def __init__(self, channels, dtype=np.float64):
        self.gain = sn.Parameter(np.arange(1, channels + 1, dtype=dtype))

    def forward(self, x):
        self.require(x, "N", self.gain.data.size, "H", "W")
        y = self.gain.data[:, None, None] * x
        self.save_cache(x, y)
        return y

    def backward(self, dy):
        x = self.take_cache(dy)
        self.gain.grad += (dy * x).sum(axis=(0, 2, 3))
        return self.gain.data[:, None, None] * dy


def tree(dtype=np.float64, seed=0):
    """Every kind of container, several levels deep: (N, 3, H, W) -> (N, 5)."""
    make = {"dtype": dtype, "rng": np.random.default_rng(seed)}
    depthwise = sn.Sequential(
        sn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False, **make), sn.BatchNorm2d(4, dtype=dtype)
    )
    return sn.Sequential({
        "stem": sn.Sequential(sn.Conv2d(3, 4, 3, **make), sn.ReLU6()),
        "block": sn.Residual({"body": depthwise, "scale": Scale(4, dtype)}),
        "pool": sn.GlobalAvgPool2d(),
        "head": sn.Sequential(
            sn.Flatten(), sn.Dropout(0.2, rng=np.random.default_rng(1)), sn.Linear(4, 5, bias=False, **make)
        ),
    })  # fmt: skip


def picture(rng=None, dtype=np.float64):
    return normal(rng or np.random.default_rng(2), (2, 3, 7, 6), dtype)
