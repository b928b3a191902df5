"""A convolution with few terms in its sums, such as the network's stem, batch norm and ReLU6 as one.

As in depthwise.py batch norm's scale a = γ/√(v + eps) is one number a channel of the output, and the convolution is linear
in its weight and in dz. So neither batch norm's output nor dz is ever made. With z the convolution's output as a matrix
(O × M), cols and W as in conv.py, statistics as in norm.py:

Forward
    z  = W · cols,    zc = z - μ                                                           (STEM.1)
    v  = Σ zc² / M,    s = 1/√(v + eps),    a = γ s                                        (STEM.2)
    y  = clip(a zc + β, 0, 6)                                                              (STEM.3)

Backward, from dy = ∂L/∂y
    g  = dy where 0 < y < 6, else 0                                                        (STEM.4)
    dβ = Σ g,    dγ = s Σ g zc         since ẑ = s zc                                       (STEM.5)
    h  = g - dβ/M - zc · s dγ/M        so that (BN.7) says dz = a h                         (STEM.6)
    dW = a (h · colsᵀ)                 by (CONV.5), the scale taken out of the sum           (STEM.7)
    dx = every entry of (a W)ᵀ · h, added to its pixel, by (CONV.6) and (CONV.7)             (STEM.8)
    Over several ranks μ, v and M, and dβ and dγ in (STEM.6), are those of all; every gradient is this rank's part.

A plan puts this in the place of the three layers where there is a kernel for it (`DenseStep`): the functions here make what
the three layers would.
"""

from scratchnet import kernels
from scratchnet.fused.step import MapsStep
from scratchnet.layers.activation import clip
from scratchnet.layers.conv import grouped_backward, grouped_forward
from scratchnet.layers.norm import centre
from scratchnet.parallel.ranks import pooled_sums


def dense_norm_relu6_forward(x, weight, gamma, beta, eps, stride, padding, dilation):
    """Convolve, normalise by the batch's own statistics, clip to [0, 6].

    Args:
        x: (C, H, W, N).
        weight: (O, C, KH, KW).
        gamma, beta: batch norm's weight and bias, (O,).
        eps: added to the variance.
        stride, padding, dilation: pairs (h, w), in pixels.

    Returns:
        y (O, OH, OW, N); mean and biased variance of the convolution's output, each (O,); the cache for the backward.
    """
    geometry = stride, padding, dilation
    z = grouped_forward(x, weight, *geometry, 1)
    rows = z.reshape(len(z), -1)  # (O, OH, OW, N) -> (O, M)
    centred, mean, var, m = centre(rows)  # (STEM.1)
    inv_std = 1 / (var + eps) ** 0.5  # (STEM.2)
    y = clip(gamma[:, None] * inv_std * centred + beta[:, None], 0, 6)  # (STEM.3)
    return y.reshape(z.shape), mean[:, 0], var[:, 0], (x, weight, centred, y, gamma, inv_std, m, geometry)


def dense_norm_relu6_backward(dy, cache):
    """Gradients of `dense_norm_relu6_forward`: dx (C, H, W, N), dweight like weight, dgamma and dbeta (O,)."""
    x, weight, centred, y, gamma, inv_std, m, (stride, padding, dilation) = cache
    g = dy.reshape(centred.shape) * ~((y.real <= 0) | (y.real >= 6))  # (STEM.4)
    dbeta, dgamma = g.sum(axis=1), inv_std[:, 0] * (g * centred).sum(axis=1)  # (STEM.5)
    all_dbeta, all_dgamma = pooled_sums(dbeta, dgamma)
    h = g - all_dbeta[:, None] / m - centred * (inv_std * all_dgamma[:, None] / m)  # (STEM.6)
    a = (gamma[:, None] * inv_std)[:, :, None, None]
    dx, products = grouped_backward(h.reshape(dy.shape), x, a * weight, stride, padding, dilation, 1)  # (STEM.8)
    return dx, a * products, dgamma, dbeta  # (STEM.7)


class DenseStep(MapsStep):
    """A convolution of one group without a bias, batch norm and ReLU6, where a kernel takes all three."""

    plain = kernels.Pair(dense_norm_relu6_forward, dense_norm_relu6_backward)
    needs_kernel = True

    @staticmethod
    def takes(conv):  # noqa: D102
        return conv.groups == 1 and conv.bias is None

    def pair(self, kind):  # noqa: D102
        conv = self.stages[0][0]
        return kernels.choose(self.plain, kind, groups=conv.groups, terms=conv.multiply_adds)
