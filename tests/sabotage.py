"""Right layers and wrong ones, for the tests of the checker: a backward is sabotaged in the way people get it wrong.

A term, a factor, a sign, an axis, a border, a `+=`.
"""

import re

import numpy as np
from strategies import kink_free

import scratchnet as sn
from scratchnet.layers.activation import relu_backward, relu_forward
from scratchnet.layers.conv import conv2d_backward, conv2d_forward, depthwise_backward, grouped_backward
from scratchnet.layers.linear import linear_backward, linear_forward
from scratchnet.layers.loss import cross_entropy_backward, cross_entropy_forward
from scratchnet.layers.norm import batch_norm_backward


def draw(*shape):
    """An input: (2, 4, 5, 3) unless said otherwise, away from the rectifiers' kinks."""
    return kink_free(np.random.default_rng(11), shape or (2, 4, 5, 3))


# Right ones -----------------------------------------------------------------------------------------------------------


def randomised(module, seed=3):
    """The module with every parameter and statistic drawn: zeros and ones hide what they multiply."""
    rng = np.random.default_rng(seed)
    for name, value in module.state_dict().items():
        if "tracked" not in name:
            value[...] = rng.uniform(0.5, 2, value.shape) * (1 if "var" in name else rng.choice([-1, 1], value.shape))
    return module


def conv(*args, **options):
    return randomised(sn.Conv2d(*args, **options))


def norm(channels=4):
    return randomised(sn.BatchNorm2d(channels, eps=0.01))


def dropout():
    return sn.Dropout(0.4, rng=np.random.default_rng(7))


def net():
    """A little of everything, with a shortcut and two dropouts on one generator."""
    rng = np.random.default_rng(9)
    block = sn.Residual(sn.Conv2d(4, 4, 3, padding=1, groups=4, rng=rng), sn.BatchNorm2d(4), sn.Dropout(0.3, rng=rng))
    head = sn.Sequential(sn.GlobalAvgPool2d(), sn.Flatten(), sn.Dropout(0.3, rng=rng), sn.Linear(4, 3, rng=rng))
    return randomised(sn.Sequential({"stem": sn.Conv2d(4, 4, 1, rng=rng), "block": block, "head": head}))


LABELS = np.array([2, 0, 4])


def cross_entropy(logits, smoothing=0.1):
    return cross_entropy_forward(logits, LABELS, smoothing)


def convolve(x, weight, bias, path="grouped"):
    return conv2d_forward(x, weight, bias, (2, 1), (1, 2), (1, 2), 2, path)


RIGHT = {
    "Conv2d pointwise": (lambda: conv(4, 3, 1, stride=(2, 1)), draw()),
    "Conv2d dense": (lambda: conv(4, 3, (3, 2), (2, 1), (1, 2), (1, 2)), draw()),
    "Conv2d grouped": (lambda: conv(4, 6, (2, 3), padding=1, groups=2), draw()),
    "Conv2d depthwise": (lambda: conv(4, 8, 3, stride=2, padding=1, groups=4), draw()),
    "BatchNorm2d": (norm, draw()),
    "BatchNorm2d eval": (lambda: norm().eval(), draw()),
    "ReLU": (sn.ReLU, draw()),
    "ReLU6": (sn.ReLU6, draw()),
    "AvgPool2d": (lambda: sn.AvgPool2d((3, 2), 2, 1, ceil_mode=True, count_include_pad=False), draw()),
    "GlobalAvgPool2d": (sn.GlobalAvgPool2d, draw()),
    "Flatten": (sn.Flatten, draw()),
    "Linear": (lambda: randomised(sn.Linear(7, 5)), draw(3, 7)),
    "Linear without bias": (lambda: randomised(sn.Linear(7, 5, bias=False)), draw(3, 7)),
    "Dropout": (dropout, draw()),
    "Dropout eval": (lambda: dropout().eval(), draw()),
    "Sequential": (net, draw()),
    "Residual": (lambda: sn.Residual(norm(), sn.Sequential(conv(4, 4, 1))), draw()),
    "a pair: cross_entropy": (lambda: (cross_entropy, cross_entropy_backward), draw(3, 5)),
    "a pair: relu": (lambda: (relu_forward, relu_backward), draw()),
    "a pair: linear": (lambda: (linear_forward, linear_backward), (draw(3, 7), draw(5, 7), draw(5))),
    "a pair: conv2d": (lambda: (convolve, conv2d_backward), (draw(), draw(6, 2, 3, 2), draw(6))),
}


# Wrong ones -----------------------------------------------------------------------------------------------------------


def broken(layer, backward):
    """The layer with another backward, under its own name."""
    layer.__class__ = type(type(layer).__name__, (type(layer),), {"backward": backward})
    return layer


def changed(layer, dx=None, **gradients):
    """The layer with the right backward, and then dx or a parameter's gradient changed by a function."""
    right = type(layer).backward

    def backward(self, dy):
        before = [parameter.grad.copy() for parameter in self.parameters()]
        self.zero_grad()
        result = right(self, dy)
        for name, change in gradients.items():
            getattr(self, name).grad[...] = change(getattr(self, name).grad)
        for parameter, value in zip(self.parameters(), before, strict=True):
            parameter.grad += value
        return dx(result) if dx else result

    return broken(layer, backward)


def norm_backward(formula):
    """Batch norm with dx = formula(a = weight·s, dy, Σdy/M, x̂, Σdy·x̂/M), on (C, M) matrices."""

    def backward(self, dy):
        _, (x, mean, inv_std, weight) = self.take_cache(dy)
        grad, xhat = sn.as_matrix(dy), (sn.as_matrix(x) - mean) * inv_std
        dbias, dweight = grad.sum(axis=1, keepdims=True), (grad * xhat).sum(axis=1, keepdims=True)
        self.bias.grad += dbias[:, 0]
        self.weight.grad += dweight[:, 0]
        m = grad.shape[1]
        return sn.as_images(formula(weight[:, None] * inv_std, grad, dbias / m, xhat, dweight / m), dy)

    return backward


def norm_assigns(self, dy):
    dx, self.weight.grad[...], self.bias.grad[...] = batch_norm_backward(dy, self.take_cache(dy)[1])
    return dx


def norm_forgets_eps(self, dy):
    _, (x, mean, inv_std, weight) = self.take_cache(dy)
    inv_std = 1 / np.sqrt(1 / inv_std**2 - self.eps)
    dx, dweight, dbias = batch_norm_backward(dy, (x, mean, inv_std, weight))
    self.weight.grad += dweight
    self.bias.grad += dbias
    return dx


def norm_is_never_frozen(self, dy):
    dx, dweight, dbias = batch_norm_backward(dy, self.take_cache(dy)[1])
    self.weight.grad += dweight
    self.bias.grad += dbias
    return dx


def conv_dx(dx):
    """A convolution with dx(dy, maps, weight, geometry) on maps (C, H, W, N); the right gradients for the rest."""

    def backward(self, dy):
        cache = self.take_cache(dy)
        _, dweight, dbias = conv2d_backward(dy, cache)
        self.weight.grad += dweight
        self.bias.grad += dbias
        _, maps, weight, *_ = cache
        return sn.as_images(dx(np.ascontiguousarray(dy.transpose(1, 2, 3, 0)), maps, weight, *self.geometry))

    return backward


def swap_halves(gradient, axis=0):
    return np.roll(gradient, gradient.shape[axis] // 2, axis)


def off_by_one(dy, maps, weight, stride, padding, dilation):
    return np.roll(depthwise_backward(dy, maps, weight, stride, padding, dilation)[0], 1, axis=2)


def padding_off_by_one(dy, maps, weight, stride, padding, dilation):
    return depthwise_backward(dy, maps, weight, stride, (padding[0], padding[1] - 1), dilation)[0]


def stride_for_dilation(dy, maps, weight, stride, padding, dilation):
    return depthwise_backward(dy, maps, weight, dilation, padding, stride)[0]


def no_flip(dy, maps, weight, stride, padding, dilation):
    return depthwise_backward(dy, maps, np.ascontiguousarray(weight[:, :, ::-1, ::-1]), stride, padding, dilation)[0]


def no_transpose(dy, maps, weight, stride, padding, dilation):
    return grouped_backward(dy, maps, np.ascontiguousarray(weight.swapaxes(0, 1)), stride, padding, dilation, 1)[0]


def border_counts_twice(dx):
    dx = dx.copy()
    dx[:, :, -1] *= 2
    return dx


def pool_by_whole_window(self, dy):
    geometry, count = self.take_cache(dy)
    y_maps = np.ascontiguousarray(dy.transpose(1, 2, 3, 0)) * count / np.prod(self.kernel_size)
    self.save_cache((geometry, count), dy)
    return sn.AvgPool2d.backward(self, sn.as_images(y_maps))


def another_mask(self, dy):
    keep, p = self.take_cache(dy)
    return dy * (self.rng.random(keep.shape) >= p) / (1 - p)


def no_mask(self, dy):
    self.take_cache(dy)
    return dy


def mask_without_scale(self, dy):
    keep, _ = self.take_cache(dy)
    return dy * keep


def passes_where_positive(self, dy):
    return dy * (self.take_cache(dy)[1] > 0)


def leaks(self, dy):
    return np.where(self.take_cache(dy)[1] > 0, dy, 0.01 * dy)


def other_order(self, dy):
    shape = self.take_cache(dy)  # (C, H, W, N)
    channels, height, width, n = shape
    return dy.reshape(n, height, width, channels).transpose(0, 3, 1, 2)


def no_shortcut(self, dy):
    return sn.Residual.backward(self, dy) - dy


def only_shortcut(self, dy):
    sn.Residual.backward(self, dy)
    return dy


def forward_order(self, dy):
    for _, layer in self.named_children():
        dy = layer.backward(dy)
    return dy


def changes_x(self, dy):
    dx, dweight, _ = linear_backward(dy, cache := self.take_cache(dy))
    self.weight.grad += dweight
    cache[0][...] *= 2  # the columns of x, a view of it
    return dx


def changes_dy(self, dy):
    keep, p = self.take_cache(dy)
    dy *= keep
    dy /= 1 - p
    return dy


def linear_assigns(self, dy):
    dx, dweight, dbias = linear_backward(dy, self.take_cache(dy))
    self.weight.grad += dweight
    self.bias.grad = dbias
    return dx


def deep(layer, name="1"):
    """The layer two containers down."""
    return sn.Sequential({"block": sn.Residual({"0": conv(4, 4, 1), name: layer})})


def times(factor):
    return lambda gradient: gradient * factor


def one_nan(gradient):
    gradient = gradient.copy()
    gradient.flat[-1] = np.nan
    return gradient


def one_element(gradient):
    gradient = gradient.copy()
    gradient.flat[7] *= 1 + 1e-4
    return gradient


def linear_pair(**wrong):
    def backward(dy, cache):
        gradients = dict(zip(("dx", "dweight", "dbias"), linear_backward(dy, cache), strict=True))
        return tuple(wrong.get(name, times(1))(gradient) for name, gradient in gradients.items())

    return linear_forward, backward


def loss_pair(change):
    return cross_entropy, lambda dloss, cache: change(cross_entropy_backward(dloss, cache), dloss, cache)


def unsmoothed(dlogits, dloss, cache):
    return (np.exp(cache[0]) - (cache[1] > 0.5)).T / len(LABELS) * dloss


def x_is(shape):
    """The start of the message for x, with its title left open."""
    return rf"^\w+: the gradient of x {re.escape(str(shape))} is wrong at"


X, LINEAR_X, LOGITS = draw(), draw(3, 7), draw(3, 5)
X_WRONG = x_is(X.shape)
LOSS_WRONG = r"^cross_entropy: the gradient of x \(3, 5\) is wrong at"


def wrong(name):
    return rf"^\w+: the gradient of {re.escape(name)} \("


SABOTAGED = {
    # name: (the module, its x, what the message must say)
    "batch norm: zeros": (lambda: changed(norm(), dx=times(0)), X, X_WRONG),
    "batch norm: ×7": (lambda: changed(norm(), dx=times(7)), X, X_WRONG),
    "batch norm: variance term missing": (
        lambda: broken(norm(), norm_backward(lambda a, dy, mean, xhat, var: a * (dy - mean))), X, X_WRONG,
    ),
    "batch norm: mean term missing": (
        lambda: broken(norm(), norm_backward(lambda a, dy, mean, xhat, var: a * (dy - xhat * var))), X, X_WRONG,
    ),
    "batch norm: 2.001 for 2": (
        lambda: broken(norm(), norm_backward(lambda a, dy, mean, xhat, var: a * (dy - mean - xhat * var * 2.001 / 2))),
        X, X_WRONG,
    ),
    "batch norm: M - 1 for M": (
        lambda: broken(norm(), norm_backward(lambda a, dy, mean, xhat, var: a * (dy - mean - xhat * var * 30 / 29))),
        X, X_WRONG,
    ),
    "batch norm: weight forgotten": (
        lambda: broken(norm(), norm_backward(lambda a, dy, mean, xhat, var: abs(a) * (dy - mean - xhat * var))),
        X, X_WRONG,
    ),
    "batch norm: eps forgotten": (lambda: broken(norm(), norm_forgets_eps), X, X_WRONG),
    "batch norm: dweight of a mean": (lambda: changed(norm(), weight=times(1 / 30)), X, wrong("weight")),
    "batch norm: dweight in reverse": (lambda: changed(norm(), weight=lambda g: g[::-1].copy()), X, wrong("weight")),
    "batch norm: dbias not added": (lambda: changed(norm(), bias=times(0)), X, wrong("bias")),
    "batch norm: += forgotten": (lambda: broken(norm(), norm_assigns), X, r"^BatchNorm2d: weight\.grad is not twice"),
    "batch norm: eval as in training": (lambda: broken(norm().eval(), norm_is_never_frozen), X, X_WRONG),
    "batch norm: a NaN": (
        lambda: changed(norm(), weight=one_nan), X,
        wrong("weight") + r"4,\) is wrong at \(3,\): backward says nan.* Not every element is finite",
    ),
    "conv: groups of dweight swapped": (
        lambda: changed(conv(4, 6, 3, groups=2), weight=swap_halves), X, wrong("weight"),
    ),
    "conv: groups of dx swapped": (
        lambda: changed(conv(4, 6, 3, groups=2), dx=lambda dx: swap_halves(dx, 1)), X, X_WRONG,
    ),
    "conv: dx a pixel off": (lambda: broken(conv(4, 4, 3, padding=1, groups=4), conv_dx(off_by_one)), X, X_WRONG),
    "conv: padding off by one": (
        lambda: broken(conv(4, 4, 3, padding=1, groups=4), conv_dx(padding_off_by_one)), X, X_WRONG,
    ),
    "conv: stride and dilation exchanged": (
        lambda: broken(conv(4, 4, 2, (2, 1), 1, (1, 2), groups=4), conv_dx(stride_for_dilation)), X, X_WRONG,
    ),
    "conv: flip forgotten in depthwise dx": (
        lambda: broken(conv(4, 4, 3, padding=1, groups=4), conv_dx(no_flip)), X, X_WRONG,
    ),
    "conv: W for Wᵀ": (lambda: broken(conv(4, 4, (3, 2)), conv_dx(no_transpose)), X, X_WRONG),
    "conv: KH and KW of dweight swapped": (
        lambda: changed(conv(4, 3, 3), weight=lambda g: g.swapaxes(2, 3).copy()), X, wrong("weight"),
    ),
    "conv: in and out of dweight swapped": (
        lambda: changed(conv(4, 4, 1), weight=lambda g: g.swapaxes(0, 1).copy()), X, wrong("weight"),
    ),
    "conv: dbias a mean over positions": (lambda: changed(conv(4, 3, 3), bias=times(1 / 12)), X, wrong("bias")),
    "conv: last row twice": (lambda: changed(conv(4, 3, 3), dx=border_counts_twice), X, X_WRONG),
    "conv: one weight off by 1e-4": (lambda: changed(conv(4, 3, 3), weight=one_element), X, wrong("weight")),
    "relu: not masked": (lambda: broken(sn.ReLU(), no_mask), X, X_WRONG),
    "relu: leaks": (lambda: broken(sn.ReLU(), leaks), X, X_WRONG),
    "relu6: no upper bound": (lambda: broken(sn.ReLU6(), passes_where_positive), X, X_WRONG),
    "avg pool: a sum": (lambda: changed(sn.AvgPool2d(2), dx=times(4)), X, X_WRONG),
    "avg pool: border divided by the whole window": (
        lambda: broken(sn.AvgPool2d(3, 2, 1, count_include_pad=False), pool_by_whole_window), X, X_WRONG,
    ),
    "global avg pool: of the batch too": (lambda: changed(sn.GlobalAvgPool2d(), dx=times(1 / 3)), X, X_WRONG),
    "flatten: (h, w, c)": (lambda: broken(sn.Flatten(), other_order), X, X_WRONG),
    "linear: sign": (lambda: changed(randomised(sn.Linear(7, 5)), dx=times(-1)), LINEAR_X, x_is((3, 7))),
    "linear: dweight transposed": (
        lambda: changed(randomised(sn.Linear(7, 7)), weight=lambda g: g.T.copy()), LINEAR_X, wrong("weight"),
    ),
    "linear: dbias a mean": (lambda: changed(randomised(sn.Linear(7, 5)), bias=times(1 / 3)), LINEAR_X, wrong("bias")),
    "linear: += forgotten, the bias": (
        lambda: broken(randomised(sn.Linear(7, 5)), linear_assigns), LINEAR_X, r"^Linear: bias\.grad is not twice",
    ),
    "linear: x changed in place": (
        lambda: broken(randomised(sn.Linear(7, 5, bias=False)), changes_x), np.asfortranarray(LINEAR_X),
        "^Linear: x was changed in place",
    ),
    "dropout: another mask": (lambda: broken(dropout(), another_mask), X, X_WRONG),
    "dropout: no mask": (lambda: broken(dropout(), no_mask), X, X_WRONG),
    "dropout: scale forgotten": (lambda: broken(dropout(), mask_without_scale), X, X_WRONG),
    "dropout: dy changed in place": (lambda: broken(dropout(), changes_dy), X, "^Dropout: dy was changed in place"),
    "residual: shortcut forgotten": (lambda: broken(sn.Residual(conv(4, 4, 1)), no_shortcut), X, X_WRONG),
    "residual: body forgotten": (lambda: broken(sn.Residual(conv(4, 4, 1)), only_shortcut), X, X_WRONG),
    "sequential: not reversed": (
        lambda: broken(sn.Sequential(sn.ReLU6(), conv(4, 4, 3, padding=1)), forward_order), X, X_WRONG,
    ),
    "sequential: not reversed, two linears": (
        lambda: broken(
            sn.Sequential(randomised(sn.Linear(7, 7, bias=False), 1), randomised(sn.Linear(7, 7, bias=False), 2)),
            forward_order,
        ), LINEAR_X, x_is((3, 7)),
    ),
    "two containers down: dweight": (
        lambda: deep(changed(norm(), weight=times(2))), X, r"^Sequential: the gradient of block\.1\.weight \(4,\)",
    ),
    "two containers down: += forgotten": (
        lambda: deep(broken(norm(), norm_assigns), "bn"), X, r"^Sequential: block\.bn\.weight\.grad is not twice",
    ),
    "cross entropy: mean forgotten": (lambda: loss_pair(lambda d, *_: d * 3), LOGITS, LOSS_WRONG),
    "cross entropy: smoothing forgotten": (lambda: loss_pair(unsmoothed), LOGITS, LOSS_WRONG),
    "cross entropy: dloss ignored": (
        lambda: loss_pair(lambda d, dloss, cache: cross_entropy_backward(1.0, cache)), LOGITS, LOSS_WRONG,
    ),
    "a pair: second array": (
        lambda: linear_pair(dweight=times(1.5)), (LINEAR_X, draw(5, 7), draw(5)),
        r"^linear_forward: the gradient of x1 \(5, 7\) is wrong",
    ),
    "a pair: third array": (
        lambda: linear_pair(dbias=times(0)), (LINEAR_X, draw(5, 7), draw(5)),
        r"^linear_forward: the gradient of x2 \(5,\) is wrong",
    ),
    "a pair: first array": (
        lambda: linear_pair(dx=times(1 + 1e-5)), (LINEAR_X, draw(5, 7), draw(5)),
        r"^linear_forward: the gradient of x \(3, 7\) is wrong",
    ),
}  # fmt: skip
