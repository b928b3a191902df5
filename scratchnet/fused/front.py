"""The front of an inverted residual block as one: 1×1 expansion, batch norm, ReLU6, depthwise, batch norm, ReLU6.

The expansion makes its input several times wider; from there to the depthwise convolution's output, row c needs row c
alone. So a few channels at a time can be made, go through all six layers while they are in the cache, and be forgotten: of
the wide arrays only two are ever stored, what the depthwise convolution puts out (z₂) and what comes behind it (y₂).

With X (C × M) one column a pixel, z₁ a row of the expansion, μ₁, v₁ its mean and variance, s₁ = 1/√(v₁ + eps), a₁ = γ₁ s₁:

Forward
    Z₁ = W (X - x̄)      batch norm takes a row's mean away, whatever it is; without x̄, the mean of each row of X, float32
                        has the more digits for the rest                                   (FRONT.1)
    y₁ = clip(a₁ (z₁ - μ₁) + β₁, 0, 6)      on the way into the convolution                (FRONT.2)
    z₂ = w ⋆ y₁, y₂ = clip(a₂ (z₂ - μ₂) + β₂, 0, 6)        as in depthwise.py, (DWF.2)

Backward, from dy₂, with z₁ and y₁ made again by (FRONT.1) and (FRONT.2): a product costs less than memory does
    dβ₂, dγ₂, dw and dy₁ by (DWF.3)-(DWF.6)
    g  = dy₁ where 0 < y₁ < 6, else 0                                                      (FRONT.3)
    dβ₁ = Σ g,    dγ₁ = s₁ Σ g (z₁ - μ₁)                                                    (FRONT.4)
    dz₁ by batch norm's own backward (BN.7): a₁ (g - dβ₁/M - (z₁ - μ₁) s₁ dγ₁/M)
    dW = dZ₁ (X - x̄)ᵀ   the rows of dZ₁ sum to 0                                           (FRONT.5)
    dX = Wᵀ dZ₁                                                                            (FRONT.6)
    Over several ranks the rows of dZ₁ sum to 0 over all of them, not over one. In (FRONT.5) that takes away the same x̄ from
    every rank's X, and leaves the sum of their dW as it is: so x̄ is the mean over all ranks, as μ₁ and v₁ are.

Where no cache keeps a channel for so long, as on a GPU, z₁ is stored as well, and what is made of a number alone is made
where the number is read: y₁ by (FRONT.2), and the gradient (DWF.5) behind the convolution. (FUSE.3) gives μ₁ and v₁
without another look at Z₁, and (FUSE.8)-(FUSE.11) both products without dZ₁. A plan puts this in the place of the six
layers (`FrontStep`) where a kernel computes it.
"""

from scratchnet import kernels
from scratchnet.fused.depthwise import DepthwiseStep, depthwise_norm_relu6_backward, depthwise_norm_relu6_forward
from scratchnet.fused.step import MapsStep
from scratchnet.layers.activation import clip
from scratchnet.layers.norm import centre
from scratchnet.parallel.ranks import pooled_mean, pooled_sums


def front_forward(x, weight1, gamma1, beta1, eps1, weight2, gamma2, beta2, eps2, stride, padding, dilation):
    """Expand, normalise, clip; convolve each channel by itself, normalise, clip.

    Args:
        x: (C, H, W, N).
        weight1: of the expansion, (E, C, 1, 1); gamma1, beta1, eps1: of its batch norm, (E,), (E,), a number.
        weight2: of the depthwise convolution, (E, 1, KH, KW); gamma2, beta2, eps2: of its batch norm.
        stride, padding, dilation: of the depthwise convolution, pairs (h, w), in pixels.

    Returns:
        y (E, OH, OW, N); mean and biased variance of both convolutions' outputs, each (E,); the cache for the backward.
    """
    matrix, rows = weight1[:, :, 0, 0], x.reshape(len(x), -1)  # (C, H, W, N) -> (C, M)
    mean_x, _ = pooled_mean(rows.mean(axis=1, keepdims=True), rows.shape[1])
    columns = rows - mean_x
    z = matrix @ columns  # (FRONT.1)
    centred, mean, var, m = centre(z)  # the mean is 0, but for rounding
    inv_std = 1 / (var + eps1) ** 0.5
    a = gamma1[:, None] * inv_std
    y = clip(a * centred + beta1[:, None], 0, 6)  # (FRONT.2)
    behind = weight2, gamma2, beta2, eps2, stride, padding, dilation
    y2, mean2, var2, saved = depthwise_norm_relu6_forward(y.reshape(-1, *x.shape[1:]), *behind)
    return (
        y2,
        (mean + matrix @ mean_x)[:, 0],
        var[:, 0],
        mean2,
        var2,
        (columns, matrix, centred, y, a, inv_std, m, saved, x.shape),
    )


def front_backward(dy, cache):
    """Gradients of `front_forward`: dx like x, and dweight, dgamma and dbeta of the first and of the second convolution."""
    columns, matrix, centred, y, a, inv_std, m, saved, shape = cache
    dy1, dweight2, dgamma2, dbeta2 = depthwise_norm_relu6_backward(dy, saved)
    g = dy1.reshape(y.shape) * ~((y.real <= 0) | (y.real >= 6))  # (FRONT.3)
    dbeta, dgamma = g.sum(axis=1), inv_std[:, 0] * (g * centred).sum(axis=1)  # (FRONT.4)
    all_dbeta, all_dgamma = pooled_sums(dbeta, dgamma)
    dz = a * (g - all_dbeta[:, None] / m - centred * (inv_std * all_dgamma[:, None] / m))  # (BN.7)
    dweight = dz @ columns.T  # (FRONT.5)
    dx = (matrix.T @ dz).reshape(shape)  # (FRONT.6)
    return dx, dweight[:, :, None, None], dgamma, dbeta, dweight2, dgamma2, dbeta2


class FrontStep(MapsStep):
    """A plain 1×1 convolution and a depthwise one, neither with a bias, each with batch norm and ReLU6."""

    title = "front of a block"
    plain = kernels.Pair(front_forward, front_backward)
    pattern = MapsStep.pattern * 2
    needs_kernel = True

    @staticmethod
    def takes(expansion, depthwise):  # noqa: D102
        plain = (expansion.path, expansion.stride, expansion.bias) == ("pointwise", (1, 1), None)
        return plain and DepthwiseStep.takes(depthwise)

    def pair(self, kind):  # noqa: D102
        return kernels.choose(self.plain, kind, window=self.stages[1][0].window)
