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

`Sequential` puts this in the place of the three layers where it computes the same (`PointwiseStep`). Both identities are
exact; what differs from the three layers is rounding.
"""

import math

from scratchnet import kernels
from scratchnet.array import as_images, as_matrix, same_kind
from scratchnet.layers.activation import ReLU6, clip
from scratchnet.layers.conv import Conv2d
from scratchnet.layers.norm import BatchNorm2d
from scratchnet.slabs import Run, fusion
from scratchnet.windows import output_size


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
    centred, mean_x, covariance = kernels.run(centre, rows)
    mixed = kernels.run(product, matrix, covariance)  # W K
    mean, var = matrix @ mean_x, (mixed * matrix).sum(axis=1, keepdims=True)  # (FUSE.3)
    inv_std = 1 / (var + eps) ** 0.5
    scaled = gamma[:, None] * inv_std * matrix  # (FUSE.4)
    y = kernels.run(clipped_product, centred, scaled, beta)  # (FUSE.5)
    return as_images(y, x), mean[:, 0], var[:, 0], (y, centred, mixed, matrix, scaled, gamma, inv_std)


def conv_norm_relu6_backward(dy, cache):
    """Gradients of `conv_norm_relu6_forward`: dx (N, C, H, W), dweight (O, C, 1, 1), dgamma and dbeta (O,)."""
    y, centred, mixed, matrix, scaled, gamma, inv_std = cache
    dx, products, dbeta = kernels.run(masked_products, as_matrix(dy), y, centred, scaled)
    m = dy.size // dy.shape[1]
    dgamma = inv_std[:, 0] * (matrix * products).sum(axis=1)  # (FUSE.9)
    a = gamma[:, None] * inv_std
    through_var = inv_std * dgamma[:, None]
    dweight = a * (products - through_var * mixed)  # (FUSE.10)
    mix = kernels.run(product, matrix.T, a * through_var / m * matrix)
    shift = matrix.T @ (a * dbeta[:, None] / m)
    kernels.run(subtract_affine, dx, mix, centred, shift)  # (FUSE.11)
    return as_images(dx, dy), dweight[:, :, None, None], dgamma, dbeta


# What goes over whole arrays, the wide ones once each -----------------------------------------------------------------


def centre(rows):
    """Xc (C, M), x̄ (C, 1) and K (C, C) of X (C, M)."""
    mean = rows.mean(axis=1, keepdims=True)
    centred = rows - mean  # (FUSE.1)
    return centred, mean, centred @ centred.T / rows.shape[1]  # (FUSE.2)


def product(a, b):
    """A @ b, of weights: not wide, but with many channels as much work as what goes over the pixels."""
    return a @ b


def clipped_product(centred, scaled, beta):
    """Y (O, M) of (FUSE.5), from Xc (C, M), W' (O, C) and β (O,)."""
    return clip(scaled @ centred + beta[:, None], 0, 6)


def masked_products(grad, y, centred, scaled):
    """From dy and y (O, M): W'ᵀ g (C, M), the first term of (FUSE.11); P (O, C); dβ (O,)."""
    g = grad * ~((y.real <= 0) | (y.real >= 6))  # (FUSE.6)
    return scaled.T @ g, g @ centred.T, g.sum(axis=1)  # (FUSE.8), (FUSE.7)


def subtract_affine(dx, mix, centred, shift):
    """Take mix (C, C) · Xc and the column shift (C, 1) away from dx (C, M), in place."""
    dx -= mix @ centred
    dx -= shift


# As steps of a Sequential ---------------------------------------------------------------------------------------------


def norm_follows(conv, norm):
    """Whether this is a convolution with a batch norm for its channels behind it."""
    return type(conv) is Conv2d and type(norm) is BatchNorm2d and conv.out_channels == norm.weight.data.size


class ConvStep(Run):
    """A convolution and what follows it."""

    def outputs(self, x):
        """Numbers a channel of the convolution of x; 0 where it would not take x, and is to say itself why."""
        conv = self.layers[0][1]
        if not (self.fits(x, conv.in_channels) and x.ndim == 4 and same_kind(x, conv.weight.data) is None):
            return 0
        axes = zip(x.shape[2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)
        return len(x) * math.prod(max(0, output_size(*axis)) for axis in axes)


class FusedStep(ConvStep):
    """Convolution, batch norm and ReLU6 as one step, in training; without kernels one by one."""

    cache = None

    @classmethod
    def matches(cls, layers):
        """Whether these are three such layers, with a convolution that this step can take."""
        conv, norm, relu6 = layers
        return norm_follows(conv, norm) and norm.training and type(relu6) is ReLU6 and cls.fuses(conv)

    @staticmethod
    def fuses(conv):
        """Whether the step can take this convolution."""
        raise NotImplementedError

    @staticmethod
    def compute(x, conv, norm):
        """Y (N, O, OH, OW), mean and biased variance before batch norm (O,), and the cache for `differentiate`."""
        raise NotImplementedError

    @staticmethod
    def differentiate(dy, cache):
        """Dx, and the gradients of the convolution's weight and of batch norm's weight and bias."""
        raise NotImplementedError

    def forward(self, x):
        """Compute y, as the three layers would."""
        (_, conv), (_, norm), _ = self.layers
        self.cache = None
        if not (kernels.enabled() and self.outputs(x) > 1):  # batch norm wants two numbers
            return super().forward(x)
        for _, layer in self.layers:
            layer.drop_cache()
        y, mean, var, self.cache = self.compute(x, conv, norm)
        norm.track(mean, var, y.size // y.shape[1])
        self.expected = y.shape, y.dtype
        return y

    def backward(self, dy):
        """Return dx; add to the gradients of convolution and batch norm."""
        if self.cache is None:
            return super().backward(dy)
        (_, conv), (_, norm), _ = self.layers
        self.require_gradient(dy)
        cache, self.cache = self.cache, None
        dx, dweight, dgamma, dbeta = self.differentiate(dy, cache)
        conv.weight.grad += dweight
        norm.weight.grad += dgamma
        norm.bias.grad += dbeta
        return dx


@fusion(3)
class PointwiseStep(FusedStep):
    """A 1×1 convolution that does not narrow, batch norm and ReLU6."""

    @staticmethod
    def fuses(conv):
        """Whether it is a plain 1×1 convolution: the covariance of x must be the smaller one."""
        plain = (conv.path, conv.stride, conv.bias) == ("pointwise", (1, 1), None)
        return plain and conv.in_channels <= conv.out_channels

    @staticmethod
    def compute(x, conv, norm):
        """Y, mean, variance and cache."""
        parameters = conv.weight.data, norm.weight.data, norm.bias.data
        return kernels.run(conv_norm_relu6_forward, x, *parameters, norm.eps)

    @staticmethod
    def differentiate(dy, cache):
        """Dx and the gradients of the three parameters."""
        return kernels.run(conv_norm_relu6_backward, dy, cache)
