"""What two exercises are cut from, worked out: the library takes such sums and blocks apart into steps (steps.py, fused/).

A shortcut as one class, with the library's rule: x reaches the sum in two ways, so that what comes back is added.
An inverted residual block as one pair of functions: the eight pairs of the layers in a row, and backward in reverse.
Tests hold both to `Residual` and `models/mobilenetv2.py`.
"""

from scratchnet.layers.activation import relu6_backward, relu6_forward
from scratchnet.layers.conv import conv2d_backward, conv2d_forward
from scratchnet.layers.join import add, sum_backward
from scratchnet.layers.norm import batch_norm_backward, batch_norm_forward
from scratchnet.module import Module

EPS = 1e-5
POINTWISE = (1, 1), (0, 0), (1, 1), 1, "pointwise"  # stride, padding, dilation, groups, path


class Residual(Module):
    """A shortcut: y = s(x) + f(x), s being the shortcut's layer where there is one, else x itself.

    Attributes:
        body: f, a module.
        shortcut: s, a module or None.
    """

    def __init__(self, body, shortcut=None):
        self.body, self.shortcut = body, shortcut

    def forward(self, x):
        """Add what both ways give; the two modules save what they need themselves."""
        y = add(self.shortcut(x) if self.shortcut else x, self.body(x))
        self.save_cache(None, y)
        return y

    def backward(self, dy):
        """Return dx; the two modules add to their parameters' gradients themselves."""
        self.take_cache(dy)
        around, through = sum_backward(dy, 2)
        if self.shortcut:
            around = self.shortcut.backward(around)
        return add(around, self.body.backward(through))  # (JOIN.1)


def block_forward(x, w1, gamma1, beta1, w2, gamma2, beta2, w3, gamma3, beta3, stride):
    """Expand, filter each channel, project; add x where the shapes allow it.

    Args:
        x: (N, C, H, W).
        w1, gamma1, beta1: the expansion (E, C, 1, 1) and its batch norm's weight and bias, (E,).
        w2, gamma2, beta2: the depthwise convolution (E, 1, 3, 3), padding 1, and its batch norm's, (E,).
        w3, gamma3, beta3: the projection (O, E, 1, 1) and its batch norm's, (O,).
        stride: of the depthwise convolution, 1 or 2.

    Returns:
        y (N, O, OH, OW) and the cache for `block_backward`: those of the eight layers, and whether x was added.
    """
    z1, conv1 = conv2d_forward(x, w1, None, *POINTWISE)
    n1, *_, norm1 = batch_norm_forward(z1, gamma1, beta1, EPS)
    a1, relu1 = relu6_forward(n1)
    z2, conv2 = conv2d_forward(a1, w2, None, (stride, stride), (1, 1), (1, 1), len(w2), "depthwise")
    n2, *_, norm2 = batch_norm_forward(z2, gamma2, beta2, EPS)
    a2, relu2 = relu6_forward(n2)
    z3, conv3 = conv2d_forward(a2, w3, None, *POINTWISE)
    y, *_, norm3 = batch_norm_forward(z3, gamma3, beta3, EPS)
    shortcut = y.shape == x.shape
    if shortcut:
        y = add(y, x)
    return y, (conv1, norm1, relu1, conv2, norm2, relu2, conv3, norm3, shortcut)


def block_backward(dy, cache):
    """Gradients of `block_forward`: dx, dw1, dgamma1, dbeta1, dw2, dgamma2, dbeta2, dw3, dgamma3, dbeta3."""
    conv1, norm1, relu1, conv2, norm2, relu2, conv3, norm3, shortcut = cache
    dz3, dgamma3, dbeta3 = batch_norm_backward(dy, norm3)
    da2, dw3, _ = conv2d_backward(dz3, conv3)
    dn2 = relu6_backward(da2, relu2)
    dz2, dgamma2, dbeta2 = batch_norm_backward(dn2, norm2)
    da1, dw2, _ = conv2d_backward(dz2, conv2)
    dn1 = relu6_backward(da1, relu1)
    dz1, dgamma1, dbeta1 = batch_norm_backward(dn1, norm1)
    dx, dw1, _ = conv2d_backward(dz1, conv1)
    if shortcut:
        dx = add(dx, dy)  # (JOIN.1)
    return dx, dw1, dgamma1, dbeta1, dw2, dgamma2, dbeta2, dw3, dgamma3, dbeta3
