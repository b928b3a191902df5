"""A 1×1 convolution, batch norm and ReLU6 as one: batch norm disappears into the convolution's weight.

Seen by themselves the three are
    Z = W X,    ẑ = (z - μ) · s,    y = clip(γ ẑ + β, 0, 6)
with X (C × M) one column a pixel, Z (O × M), and μ, v, s = 1/√(v + eps) the statistics of each row of Z (norm.py). In an
inverted residual block O is 6 C: Z is by far the largest array, and batch norm goes over it a dozen times. None of that is
needed, since mean and variance of a linear map follow from those of its input, exactly.

Forward
    x̄ = Σ X / M,    Xc = X - x̄                                                             (FUSE.1)
    K = Xc Xcᵀ / M                     the covariance of X, only C × C                      (FUSE.2)
    v = diag(W K Wᵀ),    μ = W x̄       since Z - μ = W Xc                                   (FUSE.3)
    W' = a W,    a = γ s                                                                   (FUSE.4)
    Y = clip(W' Xc + β, 0, 6)          since γ ẑ = a (Z - μ) = W' Xc; Z is never made       (FUSE.5)

Backward, from dy = ∂L/∂y
    g  = dy where 0 < y < 6, else 0                                                        (FUSE.6)
    dβ = Σ g                                                                               (FUSE.7)
    P  = g Xcᵀ                         (O × C)                                              (FUSE.8)
    dγ = Σ g ẑ = s · Σ_c W ∘ P         since ẑ = s W Xc                                     (FUSE.9)
    Batch norm's own backward (BN.7) says dZ = a (g - dβ/M - ẑ dγ/M). It is put into the two products that the convolution
    wants, dW = dZ Xᵀ and dX = Wᵀ dZ, and multiplied out. The rows of dZ sum to 0, so X may be Xc in the first; the rows
    of Xc sum to 0, which takes the term with dβ away:
    dW = a (P - s dγ · W K)                                                                (FUSE.10)
    dX = W'ᵀ g - Wᵀ (a s dγ/M · W) Xc - Wᵀ (a dβ/M)                                         (FUSE.11)
    in which the second matrix is C × C and the third term one column: neither dZ nor g has to be kept.

Over several ranks (norm.py) x̄ and M are those of all. Xc has only this rank's columns, and its K, which is Xc Xcᵀ / M, is
this rank's part of the covariance: (FUSE.3) is linear in K, so that of all of it nothing needs to be sent but v, the sum of
the ranks' parts. With dβ and dγ of all ranks (FUSE.11) holds for this rank's columns. In (FUSE.10) rows sum to 0 over all
ranks only: what is left out there is not 0 on one rank, but in the sum of the ranks' dW it is. P and W K are parts too.

A plan puts this in the place of the three layers (`PointwiseStep`). Both identities are exact; what differs from the three
layers is rounding.
"""

from scratchnet.array import as_images, as_matrix
from scratchnet.fused.step import FusedStep
from scratchnet.kernels import Pair
from scratchnet.layers.activation import clip
from scratchnet.parallel.ranks import pooled_mean, pooled_sums


def conv_norm_relu6_forward(x, weight, gamma, beta, eps):
    """Convolve 1×1, normalise by the batch's own statistics, clip to [0, 6].

    Args:
        x: (N, C, H, W).
        weight: (O, C, 1, 1).
        gamma, beta: batch norm's weight and bias, (O,).
        eps: added to the variance.

    Returns:
        y (N, O, H, W); mean and biased variance of the convolution's output, each (O,); the cache for the backward.
    """
    rows, matrix = as_matrix(x), weight[:, :, 0, 0]  # (N, C, H, W) -> (C, M)
    mean_x, m = pooled_mean(rows.mean(axis=1, keepdims=True), rows.shape[1])
    centred = rows - mean_x  # (FUSE.1)
    mixed = matrix @ (centred @ centred.T / m)  # (FUSE.2): W K
    mean, var = matrix @ mean_x, pooled_sums((mixed * matrix).sum(axis=1, keepdims=True))  # (FUSE.3)
    inv_std = 1 / (var + eps) ** 0.5
    scaled = gamma[:, None] * inv_std * matrix  # (FUSE.4)
    y = clipped_product(centred, scaled, beta)  # (FUSE.5)
    return as_images(y, x), mean[:, 0], var[:, 0], (y, centred, mixed, matrix, scaled, gamma, inv_std, m)


def conv_norm_relu6_backward(dy, cache):
    """Gradients of `conv_norm_relu6_forward`: dx (N, C, H, W), dweight (O, C, 1, 1), dgamma and dbeta (O,)."""
    y, centred, mixed, matrix, scaled, gamma, inv_std, m = cache
    g = as_matrix(dy) * ~((y.real <= 0) | (y.real >= 6))  # (FUSE.6)
    dbeta = g.sum(axis=1)  # (FUSE.7)
    products = g @ centred.T  # (FUSE.8)
    dgamma = inv_std[:, 0] * (matrix * products).sum(axis=1)  # (FUSE.9)
    a = gamma[:, None] * inv_std
    all_dbeta, all_dgamma = pooled_sums(dbeta, dgamma)
    through_var = inv_std * all_dgamma[:, None]
    dweight = a * (products - through_var * mixed)  # (FUSE.10)
    mix, shift = matrix.T @ (a * through_var / m * matrix), matrix.T @ (a * all_dbeta[:, None] / m)
    dx = scaled.T @ g - mix @ centred - shift  # (FUSE.11)
    return as_images(dx, dy), dweight[:, :, None, None], dgamma, dbeta


def clipped_product(x, weight, bias):
    """Y (O, M) of (FUSE.5), from x (C, M), weight (O, C) and bias (O,)."""
    return clip(weight @ x + bias[:, None], 0, 6)


class PointwiseStep(FusedStep):
    """A plain 1×1 convolution that does not narrow (the covariance of x must be the smaller one), batch norm and ReLU6."""

    plain = Pair(conv_norm_relu6_forward, conv_norm_relu6_backward)

    @staticmethod
    def takes(conv):  # noqa: D102
        plain = (conv.path, conv.stride, conv.bias) == ("pointwise", (1, 1), None)
        return plain and conv.in_channels <= conv.out_channels

    def compute(self, forward, x):  # noqa: D102
        ((conv, norm),) = self.stages
        return forward(x, conv.weight.data, norm.weight.data, norm.bias.data, norm.eps)
