"""A depthwise convolution, batch norm and ReLU6 as one: fewer passes over the array between them.

Batch norm's scale a = γ/√(v + eps) is one number a channel, and so is every step of this convolution, so that the scale
moves through it. With z the convolution's output (a row a channel), M numbers in a row, statistics as in norm.py:

Forward
    zc = z - μ,    v = Σ zc² / M,    s = 1/√(v + eps),    a = γ s                          (DWF.1)
    y = clip(a zc + β, 0, 6)                                                               (DWF.2)

Backward, from dy = ∂L/∂y
    g  = dy where 0 < y < 6, else 0                                                        (DWF.3)
    dβ = Σ g,    dγ = s Σ g zc         since ẑ = s zc                                       (DWF.4)
    Batch norm's own backward (BN.7) says dz = a h, with
    h  = g - dβ/M - zc · s dγ/M                                                            (DWF.5)
    and the convolution is linear in its weight and in dz, which leaves h as the only array to be made:
    dx = convᵀ(h; a weight),    dweight = a Σ h x      with conv.py's (CONV.10) and (CONV.9)  (DWF.6)

Over several ranks μ, v and M, and dβ and dγ in (DWF.5), are those of all (norm.py); every gradient is this rank's part.

Of the arrays in between only zc is kept. A plan puts this in the place of the three layers (`DepthwiseStep`).
"""

from scratchnet import kernels
from scratchnet.fused.step import MapsStep
from scratchnet.layers.activation import clip
from scratchnet.layers.conv import depthwise_backward, depthwise_forward
from scratchnet.layers.norm import centre
from scratchnet.parallel.ranks import pooled_sums


def depthwise_norm_relu6_forward(x, weight, gamma, beta, eps, stride, padding, dilation):
    """Convolve each channel by itself, normalise by the batch's own statistics, clip to [0, 6].

    Args:
        x: (C, H, W, N).
        weight: (C, 1, KH, KW).
        gamma, beta: batch norm's weight and bias, (C,).
        eps: added to the variance.
        stride, padding, dilation: pairs (h, w), in pixels.

    Returns:
        y (C, OH, OW, N); mean and biased variance of the convolution's output, each (C,); the cache for the backward.
    """
    geometry = stride, padding, dilation
    z = depthwise_forward(x, weight, *geometry)
    rows = z.reshape(len(z), -1)  # (C, OH, OW, N) -> (C, M)
    centred, mean, var, m = centre(rows)
    inv_std = 1 / (var + eps) ** 0.5  # (DWF.1)
    y = clip(gamma[:, None] * inv_std * centred + beta[:, None], 0, 6)  # (DWF.2)
    return y.reshape(z.shape), mean[:, 0], var[:, 0], (x, weight, centred, y, gamma, inv_std, m, geometry)


def depthwise_norm_relu6_backward(dy, cache):
    """Gradients of `depthwise_norm_relu6_forward`: dx (C, H, W, N), dweight like weight, dgamma and dbeta (C,)."""
    x, weight, centred, y, gamma, inv_std, m, geometry = cache
    grad = dy.reshape(centred.shape)
    g = grad * ~((y.real <= 0) | (y.real >= 6))  # (DWF.3)
    dbeta, dgamma = g.sum(axis=1), inv_std[:, 0] * (g * centred).sum(axis=1)  # (DWF.4)
    all_dbeta, all_dgamma = pooled_sums(dbeta, dgamma)
    h = g - all_dbeta[:, None] / m - centred * (inv_std * all_dgamma[:, None] / m)  # (DWF.5)
    a = (gamma[:, None] * inv_std)[:, :, None, None]
    dx, products = depthwise_backward(h.reshape(dy.shape), x, a * weight, *geometry)
    return dx, a * products, dgamma, dbeta  # (DWF.6)


class DepthwiseStep(MapsStep):
    """A depthwise convolution with one filter a channel and no bias, batch norm and ReLU6."""

    plain = kernels.Pair(depthwise_norm_relu6_forward, depthwise_norm_relu6_backward)

    @staticmethod
    def takes(conv):  # noqa: D102
        return conv.path == "depthwise" and conv.in_channels == conv.out_channels and conv.bias is None

    def pair(self, kind):  # noqa: D102
        return kernels.choose(self.plain, kind, window=self.stages[0][0].window)
