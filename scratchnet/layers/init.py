"""Initial weights: random, and scaled so that a deep ReLU network neither fades out nor blows up.

One output of a layer is a sum of `fan_in` products, so its variance is fan_in · Var(w) · E[x²]. Half of a symmetric input
survives a ReLU, so Var(w) = 2/fan_in keeps the variance of activations from layer to layer; the same argument walked
backwards gives 2/fan_out for gradients (He et al. 2015, eq. 10 and 14).

With groups, an output channel sums over C/groups input channels only, and an input channel reaches O/groups output
channels: fans count those. (Counting all O channels for a depthwise convolution makes its weights √groups too small.)
"""

import numpy as np


def fans(shape, groups=1):
    """(fan_in, fan_out) of a weight of shape (O, C/groups, …): terms in one sum of forward, and of backward."""
    window = int(np.prod(shape[2:]))
    return shape[1] * window, shape[0] // groups * window


def he_normal(shape, groups=1, rng=None, dtype=np.float32):
    """A weight (O, C/groups, …) from N(0, 2/fan_in); without an rng (numpy.random.Generator) from fresh entropy."""
    return _normal(shape, (2 / fans(shape, groups)[0]) ** 0.5, rng, dtype)


def fan_out_normal(shape, groups=1, rng=None, dtype=np.float32):
    """A weight (O, C/groups, …) from N(0, 2/fan_out), the MobileNetV2 papers' choice for convolutions."""
    return _normal(shape, (2 / fans(shape, groups)[1]) ** 0.5, rng, dtype)


def fan_in_uniform(shape, groups=1, rng=None, dtype=np.float32):
    """A weight (O, C/groups, …) from U(-b, b) with b = 1/√fan_in: a sixth of He's variance; PyTorch's default."""
    rng = np.random.default_rng() if rng is None else rng
    bound = fans(shape, groups)[0] ** -0.5
    return rng.uniform(-bound, bound, shape).astype(dtype)  # drawn in float64, see `_normal`


def _normal(shape, std, rng, dtype):
    rng = np.random.default_rng() if rng is None else rng
    return (rng.standard_normal(shape) * std).astype(
        dtype
    )  # drawn in float64, so that every dtype gets the same weights
