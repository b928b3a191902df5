"""Right layers and wrong ones, for the tests of the checker: a backward is sabotaged in the way people get it wrong.

A term, a factor, a sign, an axis, a border, a `+=`.
"""

import re
from types import SimpleNamespace

import numpy as np
from strategies import far_apart, kink_free

import scratchnet as sn
from scratchnet.kernels import Pair
from scratchnet.layers.activation import relu_backward, relu_forward
from scratchnet.layers.conv import conv2d_backward, conv2d_forward, depthwise_backward, grouped_backward
from scratchnet.layers.conv_transpose import conv_transpose2d_backward
from scratchnet.layers.group_norm import group_norm_backward, layer_norm_backward
from scratchnet.layers.linear import linear_backward, linear_forward
from scratchnet.layers.loss import cross_entropy_backward, cross_entropy_forward
from scratchnet.layers.max_pool import max_pool2d_backward
from scratchnet.layers.norm import batch_norm_backward, frozen_batch_norm_backward
from scratchnet.layers.resize import between, resize_backward


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


def around():
    return sn.Residual(conv(4, 3, 3, padding=1), norm(3), shortcut=conv(4, 3, 1))


def excited():
    return sn.Multiply(sn.Sequential(), sn.Sequential(sn.GlobalAvgPool2d(), conv(4, 4, 1)))


def max_pool(**options):
    return sn.MaxPool2d((3, 2), (1, 2), (1, 0), **options)


def conv_transpose(groups=2, **options):
    return randomised(sn.ConvTranspose2d(4, 4, (3, 2), (2, 1), (1, 0), groups=groups, **options))


def upsample(**options):
    return sn.Upsample((7, 4), mode="bilinear", **options)


def group_norm():
    return randomised(sn.GroupNorm(2, 4, eps=0.01))


def layer_norm(shape=(4, 5, 3)):
    return randomised(sn.LayerNorm(shape, eps=1))  # of few numbers: differences want no steep slope


def features_norm():
    return randomised(sn.BatchNorm1d(7, eps=1))


APART = far_apart(np.random.default_rng(13), (2, 4, 5, 3))
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
    "MaxPool2d": (lambda: max_pool(ceil_mode=True), APART),
    "AdaptiveAvgPool2d": (lambda: sn.AdaptiveAvgPool2d((3, 4)), draw()),
    "ConvTranspose2d": (lambda: conv_transpose(dilation=(1, 2)), draw()),
    "Upsample": (lambda: upsample(), draw()),
    "GroupNorm": (lambda: group_norm(), draw()),
    "GroupNorm not affine": (lambda: sn.GroupNorm(2, 4, eps=0.01, affine=False), draw()),
    "LayerNorm": (lambda: layer_norm(), draw()),
    "LayerNorm of rows": (lambda: layer_norm(3), draw()),
    "BatchNorm1d": (lambda: features_norm(), draw(3, 7)),
    "BatchNorm1d eval": (lambda: features_norm().eval(), draw(3, 7)),
    "Flatten": (sn.Flatten, draw()),
    "Linear": (lambda: randomised(sn.Linear(7, 5)), draw(3, 7)),
    "Linear without bias": (lambda: randomised(sn.Linear(7, 5, bias=False)), draw(3, 7)),
    "Dropout": (dropout, draw()),
    "Dropout eval": (lambda: dropout().eval(), draw()),
    "Sequential": (net, draw()),
    "Residual": (lambda: sn.Residual(norm(), sn.Sequential(conv(4, 4, 1))), draw()),
    "Residual with a shortcut": (around, draw()),
    "Add": (lambda: sn.Add(conv(4, 3, 1), conv(4, 3, 3, padding=1), conv(4, 3, 1)), draw()),
    "Concat": (lambda: sn.Concat(norm(), sn.Sequential(), conv(4, 2, 1)), draw()),
    "Multiply": (lambda: sn.Multiply(sn.Sequential(), norm(), conv(4, 1, 1)), draw()),
    "Multiply, repeated": (excited, draw()),
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
        _, (x, mean, inv_std, weight, _) = self.take_cache(dy)
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
    _, (x, mean, inv_std, weight, m) = self.take_cache(dy)
    inv_std = 1 / np.sqrt(1 / inv_std**2 - self.eps)
    dx, dweight, dbias = batch_norm_backward(dy, (x, mean, inv_std, weight, m))
    self.weight.grad += dweight
    self.bias.grad += dbias
    return dx


def norm_is_never_frozen(self, dy):
    dx, dweight, dbias = batch_norm_backward(dy, (*self.take_cache(dy)[1][:4], dy.size // dy.shape[1]))
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


def pool_chosen(change):
    """Max pooling with another tap for each window: change(taps, kernel)."""

    def backward(self, dy):
        geometry, chosen = self.take_cache(dy)
        return max_pool2d_backward(dy, (geometry, change(chosen, self.kernel_size)))

    return backward


def in_order_of_columns(chosen, kernel):
    i, j = np.divmod(chosen, kernel[1])
    return j * kernel[0] + i


def pool_to_all(self, dy):
    """Every pixel of the window gets dy."""
    geometry, chosen = self.take_cache(dy)
    return sum(max_pool2d_backward(dy, (geometry, np.full_like(chosen, k))) for k in range(np.prod(self.kernel_size)))


def one_window_a_pixel(self, dy):
    """A pixel that is the largest of several windows is forgotten in all but the last."""
    geometry, chosen = self.take_cache(dy)
    dx, counts = max_pool2d_backward(dy, (geometry, chosen)), max_pool2d_backward(np.ones_like(dy), (geometry, chosen))
    return np.where(counts > 1, dx / np.maximum(counts, 1), dx)


def resized(change):
    """A layer of tables with others in backward: change(self, tables)."""

    def backward(self, dy):
        shape, *tables = self.take_cache(dy)
        return resize_backward(dy, (shape, *change(self, tables)))

    return backward


def half_open(self, tables):
    """Bins that end where the next one begins."""
    return [
        [
            [(q, weight) for q, weight in terms if p + 1 == len(table) or q < table[p + 1][0][0]]
            for p, terms in enumerate(table)
        ]
        for table in tables
    ]


def other_corners(self, tables):
    sizes = [max(q for terms in table for q, _ in terms) + 1 for table in tables]
    return [between(size, len(table), size / len(table), True) for size, table in zip(sizes, tables, strict=True)]


def transposed(**wrong):
    """A transposed convolution with what its backward takes or gives changed: weight, x, dx or dweight."""

    def backward(self, dy):
        maps, weight, *rest = self.take_cache(dy)
        cache = wrong.get("x", times(1))(maps), wrong.get("weight", times(1))(weight), *rest
        dx, dweight, dbias = conv_transpose2d_backward(dy, cache)
        self.weight.grad += wrong.get("dweight", times(1))(dweight)
        self.bias.grad += dbias
        return wrong.get("dx", times(1))(dx)

    return backward


def sets_backward(name, dx):
    """Layer or group norm with another dx(g, x̂, s, weight): arrays (sets, M) but for the weight, which is like g."""
    right = {"GroupNorm": group_norm_backward, "LayerNorm": layer_norm_backward}[name]

    def backward(self, dy):
        maps, mean, inv_std, weight, *_ = cache = self.take_cache(dy)
        _, dweight, dbias = right(dy, cache)
        add_to(self, dweight, dbias)
        grad = np.ascontiguousarray(dy.transpose(1, 2, 3, 0))  # (C, H, W, N)
        groups = len(mean) if name == "GroupNorm" else 1
        wide = weight[:, None, None] if name == "GroupNorm" else weight
        wide = np.broadcast_to(wide[..., None], grad.shape)
        sets = groups, -1, grad.shape[3]
        xhat = (maps.reshape(sets) - mean.reshape(groups, 1, -1)) * inv_std.reshape(groups, 1, -1)
        result = dx(grad.reshape(sets), xhat, inv_std.reshape(groups, 1, -1), wide.reshape(sets))
        return sn.as_images(result.reshape(maps.shape))

    return backward


def too_few(a, dy, mean, xhat, var):
    """Three pictures, divided by 2."""
    return a * (dy - (mean + xhat * var) * 3 / 2)


def add_to(layer, dweight, dbias):
    layer.weight.grad += dweight
    layer.bias.grad += dbias


def m(values):
    """The mean of each set."""
    return values.mean(axis=1, keepdims=True)


def as_batch_norm(dy, xhat, s, weight):
    return weight * s * (dy - m(dy) - xhat * m(dy * xhat))


def without_mean(dy, xhat, s, weight):
    return s * (weight * dy - xhat * m(weight * dy * xhat))


def without_variance(dy, xhat, s, weight):
    return s * (weight * dy - m(weight * dy))


def of_all_pictures(dy, xhat, s, weight):
    g = weight * dy
    return s * (g - g.mean(axis=(1, 2), keepdims=True) - xhat * (g * xhat).mean(axis=(1, 2), keepdims=True))


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


def joined(container, backward):
    """The container, joining with another backward: (dy, what the right one gives, cache) -> a gradient for each branch."""
    forward, right = container.joined_by[:2]
    pair = Pair(forward, lambda dy, cache: tuple(backward(dy, right(dy, cache), cache)))
    container.__class__ = type(type(container).__name__, (type(container),), {"joined_by": pair})
    return container


def mean_of_repeats(dy, gradients, cache):
    return [g * np.prod(np.array(g.shape) / dy.shape) for g in gradients]


def own_factor(dy, gradients, cache):
    return [dy * sn.as_images(part) for part in cache]


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
    "max pool: to every pixel of the window": (lambda: broken(max_pool(), pool_to_all), APART, X_WRONG),
    "max pool: taps in the order of columns": (
        lambda: broken(max_pool(), pool_chosen(in_order_of_columns)), APART, X_WRONG,
    ),
    "max pool: always the first pixel": (
        lambda: broken(max_pool(), pool_chosen(lambda chosen, kernel: 0 * chosen + kernel[1])), APART, X_WRONG,
    ),
    "max pool: = for +=": (lambda: broken(max_pool(), one_window_a_pixel), APART, X_WRONG),
    "adaptive pool: a sum": (lambda: changed(sn.AdaptiveAvgPool2d((5, 1)), dx=times(3)), X, X_WRONG),
    "adaptive pool: bins do not overlap": (
        lambda: broken(sn.AdaptiveAvgPool2d((3, 2)), resized(half_open)), X, X_WRONG,
    ),
    "upsample: the corners' way": (lambda: broken(upsample(), resized(other_corners)), X, X_WRONG),
    "upsample: nearest": (
        lambda: broken(upsample(), resized(lambda self, tables: [[[max(t, key=lambda e: e[1])] for t in table]
                                                                 for table in tables])), X, X_WRONG,
    ),
    "upsample: the upper pixel only": (
        lambda: broken(upsample(), resized(lambda self, tables: [[t[:1] for t in table] for table in tables])),
        X, X_WRONG,
    ),
    "transposed conv: flipped": (
        lambda: broken(conv_transpose(), transposed(weight=lambda w: w[:, :, ::-1, ::-1])), X, X_WRONG,
    ),
    "transposed conv: groups of dx swapped": (
        lambda: broken(conv_transpose(), transposed(dx=lambda dx: swap_halves(dx, 1))), X, X_WRONG,
    ),
    "transposed conv: in and out of the weight swapped": (
        lambda: broken(conv_transpose(1), transposed(weight=lambda w: w.swapaxes(0, 1))), X, X_WRONG,
    ),
    "transposed conv: dweight of another picture": (
        lambda: broken(conv_transpose(), transposed(x=lambda maps: np.roll(maps, 1, 3))), X, wrong("weight"),
    ),
    "transposed conv: in and out of dweight swapped": (
        lambda: broken(conv_transpose(1), transposed(dweight=lambda g: g.swapaxes(0, 1))), X, wrong("weight"),
    ),
    "transposed conv: dbias a mean": (lambda: changed(conv_transpose(), bias=times(1 / 12)), X, wrong("bias")),
    "group norm: weight outside of the sums": (
        lambda: broken(group_norm(), sets_backward("GroupNorm", as_batch_norm)), X, X_WRONG,
    ),
    "group norm: mean term missing": (
        lambda: broken(group_norm(), sets_backward("GroupNorm", without_mean)), X, X_WRONG,
    ),
    "group norm: sums over all pictures": (
        lambda: broken(group_norm(), sets_backward("GroupNorm", of_all_pictures)), X, X_WRONG,
    ),
    "group norm: dweight of the other group": (
        lambda: changed(group_norm(), weight=swap_halves), X, wrong("weight"),
    ),
    "layer norm: weight outside of the sums": (
        lambda: broken(layer_norm(), sets_backward("LayerNorm", as_batch_norm)), X, X_WRONG,
    ),
    "layer norm: variance term missing": (
        lambda: broken(layer_norm(), sets_backward("LayerNorm", without_variance)), X, X_WRONG,
    ),
    "layer norm: dbias a mean over pictures": (lambda: changed(layer_norm(), bias=times(1 / 2)), X, wrong("bias")),
    "layer norm: dweight one number": (
        lambda: changed(layer_norm(), weight=lambda g: np.full_like(g, g.mean())), X, wrong("weight"),
    ),
    "batch norm of features: M - 1 for M": (
        lambda: broken(features_norm(), norm_backward(too_few)), LINEAR_X, x_is((3, 7)),
    ),
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
    "residual: the shortcut's layers forgotten": (
        lambda: joined(around(), lambda dy, gradients, cache: (0 * dy, dy)), X, X_WRONG,
    ),
    "add: shared out": (lambda: joined(sn.Add(norm(), norm()), lambda dy, g, cache: (dy / 2, dy / 2)), X, X_WRONG),
    "add: the last branch alone": (
        lambda: joined(sn.Add(norm(), conv(4, 4, 1)), lambda dy, g, cache: (0 * dy, dy)), X, X_WRONG,
    ),
    "concat: branches exchanged": (
        lambda: joined(sn.Concat(norm(), conv(4, 4, 1)), lambda dy, g, cache: g[::-1]), X, X_WRONG,
    ),
    "concat: a channel off": (
        lambda: joined(sn.Concat(norm(), sn.Sequential()), lambda dy, g, cache: [np.roll(v, 1, 1) for v in g]),
        X, X_WRONG,
    ),
    "multiply: as a sum": (lambda: joined(sn.Multiply(norm(), norm()), lambda dy, g, cache: (dy, dy)), X, X_WRONG),
    "multiply: its own factor": (lambda: joined(sn.Multiply(norm(), conv(4, 4, 1)), own_factor), X, X_WRONG),
    "multiply: a mean over repeats": (lambda: joined(excited(), mean_of_repeats), X, X_WRONG),
    "multiply: the gate is a constant": (
        lambda: joined(excited(), lambda dy, g, cache: (g[0], 0 * g[1])), X, X_WRONG,
    ),
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


# Wrong ones that are right at the initial values: a gain of 1, a bias of 0, a running variance of 1 -----------------------


class Formula(sn.Module):
    """A layer of one's own: forward(p, x), and gradients[name](p, x, dy) for x and every parameter, p having them all."""

    def __init__(self, forward, gradients, buffers=(), **start):
        self.y, self.gradients, self.buffers = forward, gradients, buffers
        for name, value in start.items():
            setattr(self, name, np.array(value, float) if name in buffers else sn.Parameter(np.array(value, float)))

    def _values(self):
        return SimpleNamespace(**{name: getattr(value, "data", value) for name, value in vars(self).items()}
                               | {name: getattr(self, name) for name in self.buffers})  # fmt: skip

    def forward(self, x):
        y = self.y(self._values(), x)
        self.save_cache(x, y)
        return y

    def backward(self, dy):
        x = self.take_cache(dy)
        for name, parameter in self.named_parameters():
            parameter.grad += self.gradients[name](self._values(), x, dy)
        return self.gradients["x"](self._values(), x, dy)


def per(values):
    """The sum over all but the channels, (N, C, H, W) -> (C, 1, 1)."""
    return values.sum(axis=(0, 2, 3))[:, None, None]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


ONES, ZEROS = np.ones((4, 1, 1)), np.zeros((4, 1, 1))
AFFINE = (
    lambda p, x: p.gain * x + p.shift,
    {"x": lambda p, x, dy: p.gain * dy, "gain": lambda p, x, dy: per(dy * x), "shift": lambda p, x, dy: per(dy)},
    {"gain": ONES, "shift": ZEROS},
)
FROZEN = (
    lambda p, x: p.gain * (x - p.running_mean) / p.running_var**0.5,
    {
        "x": lambda p, x, dy: p.gain * dy / p.running_var**0.5,
        "gain": lambda p, x, dy: per(dy * (x - p.running_mean)) / p.running_var**0.5,
    },
    {"gain": ONES, "running_mean": ZEROS, "running_var": ONES, "buffers": ("running_mean", "running_var")},
)
MIX = (
    lambda p, x: np.einsum("oc,nchw->nohw", p.weight, x),
    {
        "x": lambda p, x, dy: np.einsum("oc,nohw->nchw", p.weight, dy),
        "weight": lambda p, x, dy: np.einsum("nohw,nchw->oc", dy, x),
    },
    {"weight": np.eye(4)},
)
SHIFTED = (
    lambda p, x: p.gain * (x + p.shift),
    {
        "x": lambda p, x, dy: p.gain * dy,
        "gain": lambda p, x, dy: per(dy * (x + p.shift)),
        "shift": lambda p, x, dy: per(p.gain * dy),
    },
    {"gain": ONES, "shift": ZEROS},
)
SQUARED = (
    lambda p, x: p.gain**2 * x,
    {"x": lambda p, x, dy: p.gain**2 * dy, "gain": lambda p, x, dy: per(2 * p.gain * dy * x)},
    {"gain": ONES},
)
TEMPERATURE = (
    lambda p, x: x / p.t,
    {"x": lambda p, x, dy: dy / p.t, "t": lambda p, x, dy: -(dy * x).sum() / p.t**2},
    {"t": 1},
)
SWISH = (
    lambda p, x: x * sigmoid(p.beta * x),
    {
        "x": lambda p, x, dy: dy * (sigmoid(p.beta * x) + p.beta * x * sigmoid(p.beta * x) * sigmoid(-p.beta * x)),
        "beta": lambda p, x, dy: per(dy * x * x * sigmoid(p.beta * x) * sigmoid(-p.beta * x)),
    },
    {"beta": ONES},
)
PRELU = (
    lambda p, x: np.where(x.real > 0, x, p.slope * x),
    {"x": lambda p, x, dy: dy * np.where(x > 0, 1, p.slope), "slope": lambda p, x, dy: per(dy * np.where(x > 0, 0, x))},
    {"slope": ONES / 4},
)
REZERO = (
    lambda p, x: x + p.alpha * x * x,
    {"x": lambda p, x, dy: dy * (1 + 2 * p.alpha * x), "alpha": lambda p, x, dy: (dy * x * x).sum()},
    {"alpha": 0},
)
PARABOLA = (
    lambda p, x: (x + p.shift) ** 2,
    {"x": lambda p, x, dy: 2 * dy * (x + p.shift), "shift": lambda p, x, dy: per(2 * dy * (x + p.shift))},
    {"shift": ZEROS},
)
POSITIVE = (  # takes no negative width: log and square root
    lambda p, x: x * np.sqrt(p.width) + np.log(p.width),
    {
        "x": lambda p, x, dy: dy * np.sqrt(p.width),
        "width": lambda p, x, dy: per(dy * (x / 2 / np.sqrt(p.width) + 1 / p.width)),
    },
    {"width": ONES},
)
FORMULAS = (AFFINE, FROZEN, MIX, SHIFTED, SQUARED, TEMPERATURE, SWISH, PRELU, REZERO, PARABOLA, POSITIVE)


def formula(layer, **wrong):
    forward, gradients, start = layer
    return lambda: Formula(forward, gradients | wrong, **start)


def fresh_norm(frozen=False, **wrong):
    """A new batch norm with gradients x, weight or bias by other formulas, on (C, M) matrices."""

    def backward(self, dy):
        _, cache = self.take_cache(dy)
        x, mean, s, weight = cache[:4]
        right = dict(zip(("x", "weight", "bias"), RULES[self.training](dy, cache), strict=True))
        n = SimpleNamespace(dy=sn.as_matrix(dy), x=sn.as_matrix(x), mean=mean, s=s, dx=sn.as_matrix(right["x"]))
        n.weight, n.bias, n.eps, n.xhat = weight[:, None], self.bias.data[:, None], self.eps, (n.x - mean) * s
        got = right | {name: rule(n) if name == "x" else rule(n).sum(axis=1) for name, rule in wrong.items()}
        self.weight.grad += got["weight"]
        self.bias.grad += got["bias"]
        return sn.as_images(got["x"], dy) if "x" in wrong else got["x"]

    return lambda: broken(sn.BatchNorm2d(4).eval() if frozen else sn.BatchNorm2d(4), backward)


RULES = {True: batch_norm_backward, False: frozen_batch_norm_backward}


def bias_decays(layer):
    right = type(layer).backward

    def backward(self, dy):
        self.bias.grad += 0.1 * self.bias.data
        return right(self, dy)

    return broken(layer, backward)


def linear_of_the_first_weight():
    layer = sn.Linear(7, 5)
    first = layer.weight.data.copy()

    def backward(self, dy):
        columns, _, has_bias = self.take_cache(dy)
        dx, dweight, dbias = linear_backward(dy, (columns, first, has_bias))
        self.weight.grad += dweight
        self.bias.grad += dbias
        return dx

    return broken(layer, backward)


def conv_of_the_first_weight():
    layer = sn.Conv2d(4, 4, 3, padding=1, groups=4)
    first = layer.weight.data.astype(float)
    return broken(layer, conv_dx(lambda dy, maps, weight, *geometry: depthwise_backward(dy, maps, first, *geometry)[0]))


def zero_linear():
    layer = sn.Linear(7, 5)
    layer.weight.data[...] = 0
    return changed(layer, dx=times(0))


HIDDEN = {
    # name: (the module at its initial values, x, the array that is wrong)
    "batch norm: weight forgotten in dx": (fresh_norm(x=lambda n: n.dx / n.weight), X, "x"),
    "batch norm: weight twice in dx": (fresh_norm(x=lambda n: n.dx * n.weight), X, "x"),
    "batch norm: all channels by the first one's weight": (
        fresh_norm(x=lambda n: n.dx / n.weight * n.weight[0]), X, "x",
    ),
    "batch norm: dweight of y": (fresh_norm(weight=lambda n: n.dy * (n.weight * n.xhat + n.bias)), X, "weight"),
    "batch norm: dweight of y without its bias": (fresh_norm(weight=lambda n: n.dy * n.weight * n.xhat), X, "weight"),
    "batch norm: dweight of y / weight": (
        fresh_norm(weight=lambda n: n.dy * (n.xhat + n.bias / n.weight)), X, "weight",
    ),
    "batch norm: dbias times weight": (fresh_norm(bias=lambda n: n.dy * n.weight), X, "bias"),
    "batch norm eval: weight forgotten in dx": (fresh_norm(True, x=lambda n: n.dy * n.s), X, "x"),
    "batch norm eval: a variance of 1 in dx": (
        fresh_norm(True, x=lambda n: n.dy * n.weight / (1 + n.eps) ** 0.5), X, "x",
    ),
    "batch norm eval: mean forgotten in dweight": (fresh_norm(True, weight=lambda n: n.dy * n.x * n.s), X, "weight"),
    "batch norm eval: a variance of 1 in dweight": (
        fresh_norm(True, weight=lambda n: n.dy * (n.x - n.mean) / (1 + n.eps) ** 0.5), X, "weight",
    ),
    "batch norm eval: dbias times weight": (fresh_norm(True, bias=lambda n: n.dy * n.weight), X, "bias"),
    "linear: the bias decays in backward": (lambda: bias_decays(sn.Linear(7, 5)), LINEAR_X, "bias"),
    "linear: dx by the first weight": (linear_of_the_first_weight, LINEAR_X, "x"),
    "linear: no dx of a weight of 0": (zero_linear, LINEAR_X, "x"),
    "conv: the bias decays in backward": (lambda: bias_decays(sn.Conv2d(4, 3, 3)), X, "bias"),
    "conv: dx by the first weight": (conv_of_the_first_weight, X, "x"),
    "scale: gain forgotten": (formula(AFFINE, x=lambda p, x, dy: dy), X, "x"),
    "scale: dgain of y": (formula(AFFINE, gain=lambda p, x, dy: per(dy * (p.gain * x + p.shift))), X, "gain"),
    "scale: dshift times gain": (formula(AFFINE, shift=lambda p, x, dy: per(p.gain * dy)), X, "shift"),
    "shifted scale: shift forgotten in dgain": (formula(SHIFTED, gain=lambda p, x, dy: per(dy * x)), X, "gain"),
    "shifted scale: gain forgotten in dshift": (formula(SHIFTED, shift=lambda p, x, dy: per(dy)), X, "shift"),
    "squared gain: 2 for 2·gain": (formula(SQUARED, gain=lambda p, x, dy: per(2 * dy * x)), X, "gain"),
    "temperature: 1 for 1/t²": (formula(TEMPERATURE, t=lambda p, x, dy: -(dy * x).sum()), X, "t"),
    "swish: β forgotten in dx": (
        formula(SWISH, x=lambda p, x, dy: dy * (sigmoid(p.beta * x) + x * sigmoid(p.beta * x) * sigmoid(-p.beta * x))),
        X, "x",
    ),
    "prelu: its first slope": (formula(PRELU, x=lambda p, x, dy: dy * np.where(x > 0, 1, 0.25)), X, "x"),
    "rezero: the branch forgotten": (formula(REZERO, x=lambda p, x, dy: dy), X, "x"),
    "parabola: shift forgotten": (formula(PARABOLA, shift=lambda p, x, dy: per(2 * dy * x)), X, "shift"),
    "mixing matrix: forgotten": (formula(MIX, x=lambda p, x, dy: dy), X, "x"),
    "mixing matrix: not transposed": (
        formula(MIX, x=lambda p, x, dy: np.einsum("co,nohw->nchw", p.weight, dy)), X, "x",
    ),
    "positive width: forgotten in dx": (formula(POSITIVE, x=lambda p, x, dy: dy), X, "x"),
    "frozen norm: variance forgotten": (formula(FROZEN, x=lambda p, x, dy: p.gain * dy), X, "x"),
    "frozen norm: mean forgotten in dgain": (
        formula(FROZEN, gain=lambda p, x, dy: per(dy * x) / p.running_var**0.5), X, "gain",
    ),
}  # fmt: skip
