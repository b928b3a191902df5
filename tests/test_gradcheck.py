"""The checker is checked: it rejects every wrong backward below, names the array, and lets every right one pass.

A backward is sabotaged in the way people get it wrong: a term, a factor, a sign, an axis, a border, a `+=`.
"""

import contextlib
import copy
import functools
import io
import re
import textwrap
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import geometries, kink_free, normal, rngs

import scratchnet as sn
from scratchnet.layers.activation import relu_backward, relu_forward
from scratchnet.layers.conv import conv2d_backward, conv2d_forward, depthwise_backward, grouped_backward
from scratchnet.layers.linear import linear_backward, linear_forward
from scratchnet.layers.loss import cross_entropy_backward, cross_entropy_forward
from scratchnet.layers.norm import batch_norm_backward, batch_norm_forward

gradcheck_module = import_module("scratchnet.gradcheck")  # the attribute of that name is the function
METHODS = {"complex-step": 1e-12, "finite-difference": 1e-7, "four-point": 1e-9}
EVERY_METHOD = pytest.mark.parametrize("method", METHODS)


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


@EVERY_METHOD
@pytest.mark.parametrize("name", RIGHT)
def test_right_ones_pass_at_the_tightest_tolerance(name, method):
    make, x = RIGHT[name]
    report = sn.gradcheck(make(), x, method=method)
    assert (report.method, report.rtol) == (method, METHODS[method])
    assert report.worst <= METHODS[method]
    if not isinstance(make(), tuple):
        names = ["x", *(name for name, _ in make().named_parameters()), "adjoint test"]
        assert [row.name for row in report.rows] == names


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
        x, mean, inv_std, weight = self.take_cache(dy)
        grad, xhat = sn.as_matrix(dy), (sn.as_matrix(x) - mean) * inv_std
        dbias, dweight = grad.sum(axis=1, keepdims=True), (grad * xhat).sum(axis=1, keepdims=True)
        self.bias.grad += dbias[:, 0]
        self.weight.grad += dweight[:, 0]
        m = grad.shape[1]
        return sn.as_images(formula(weight[:, None] * inv_std, grad, dbias / m, xhat, dweight / m), dy)

    return backward


def norm_assigns(self, dy):
    dx, self.weight.grad[...], self.bias.grad[...] = batch_norm_backward(dy, self.take_cache(dy))
    return dx


def norm_forgets_eps(self, dy):
    x, mean, inv_std, weight = self.take_cache(dy)
    inv_std = 1 / np.sqrt(1 / inv_std**2 - self.eps)
    dx, dweight, dbias = batch_norm_backward(dy, (x, mean, inv_std, weight))
    self.weight.grad += dweight
    self.bias.grad += dbias
    return dx


def norm_is_never_frozen(self, dy):
    dx, dweight, dbias = batch_norm_backward(dy, self.take_cache(dy))
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
        maps, weight, _, stride, padding, dilation, _, _ = cache
        return sn.as_images(dx(np.ascontiguousarray(dy.transpose(1, 2, 3, 0)), maps, weight, stride, padding, dilation))

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
    return dy * (self.take_cache(dy) > 0)


def leaks(self, dy):
    return np.where(self.take_cache(dy) > 0, dy, 0.01 * dy)


def other_order(self, dy):
    shape = self.take_cache(dy)  # (C, H, W, N)
    channels, height, width, n = shape
    return dy.reshape(n, height, width, channels).transpose(0, 3, 1, 2)


def no_shortcut(self, dy):
    return sn.Sequential.backward(self, dy)


def only_shortcut(self, dy):
    sn.Sequential.backward(self, dy)
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


@EVERY_METHOD
@pytest.mark.parametrize("name", SABOTAGED)
def test_a_wrong_backward_is_rejected_by_name(name, method):
    make, x, message = SABOTAGED[name]
    with pytest.raises(sn.GradientMismatch, match=message):
        sn.gradcheck(make(), x, method=method)


def test_every_layer_and_a_pair_is_sabotaged():
    layers = {type(make()).__name__ for make, _, _ in SABOTAGED.values()}
    modules = {
        name for name in sn.__all__ if isinstance(getattr(sn, name), type) and issubclass(getattr(sn, name), sn.Module)
    }
    assert layers - {"tuple"} == modules - {"Module", "CrossEntropyLoss"}  # the loss is sabotaged as a pair
    assert "tuple" in layers and len(SABOTAGED) >= 20


@given(rngs(), geometries(elements=40), st.sampled_from(["x", "weight", "bias"]), st.integers(0, 10**6))
def test_one_wrong_element_anywhere_is_found_and_named(rng, g, where, k):
    """Of any array, at any index, by 1e-9 of the largest gradient; the message has its index."""
    layer = g.layer(rng)
    size = {"x": int(np.prod(g.x_shape)), "weight": layer.weight.data.size, "bias": g.out_channels}[where]
    index = np.unravel_index(k % size, {"x": g.x_shape, "weight": g.weight_shape, "bias": (g.out_channels,)}[where])

    def off(gradient):
        gradient = gradient.copy()
        gradient[index] += 1e-9 * max(np.abs(gradient).max(), 1.0)
        return gradient

    wrong = changed(layer, dx=off) if where == "x" else changed(layer, **{where: off})
    at = re.escape(str(tuple(map(int, index))))
    with pytest.raises(sn.GradientMismatch, match=rf"the gradient of {where} \(.*\) is wrong at {at}:"):
        sn.gradcheck(wrong, normal(rng, g.x_shape), rng=rng)


# What the message says ------------------------------------------------------------------------------------------------


def hint_of(module, x=X):
    with pytest.raises(sn.GradientMismatch) as caught:
        sn.gradcheck(module, x)
    return str(caught.value)


def test_the_message_shows_index_both_values_ratio_and_error():
    message = hint_of(changed(norm(), bias=lambda g: g * np.array([1, 1, 3, 1])))
    found = re.match(
        r"BatchNorm2d: the gradient of bias \(4,\) is wrong at \(2,\): "
        r"backward says (\S+), the numeric derivative is (\S+) \(ratio 3, error (\S+) of the largest, allowed 1e-12\)"
        r"\. 1 of 4 elements differ: is a term missing",
        message,
    )
    assert found, message
    assert float(found[1]) == pytest.approx(3 * float(found[2]), rel=1e-12)
    assert 0 < float(found[3])


def test_hints():
    assert hint_of(changed(norm(), dx=times(7))).endswith(
        "Every element is 7 times too large: mean or sum? counted twice?"
    )
    assert "Every element is 0.0333333 times too large" in hint_of(changed(norm(), bias=times(1 / 30)))
    assert hint_of(changed(norm(), dx=times(-1))).endswith("Only the sign is wrong.")
    assert hint_of(changed(norm(), dx=times(0))).endswith("It is 0 everywhere: not connected, or never added to .grad?")
    flipped = changed(conv(4, 4, 3, groups=4), weight=lambda g: g[:, :, ::-1, ::-1].copy())
    assert hint_of(flipped).endswith("The same numbers stand in other places: transposed, flipped or shifted?")
    assert hint_of(changed(conv(4, 3, 3), dx=border_counts_twice)).endswith(
        f"{2 * 4 * 3} of {X.size} elements differ: is a term missing, or a border treated differently?"
    )


# What it reports ------------------------------------------------------------------------------------------------------


def test_the_report_is_a_table():
    report = sn.gradcheck(net(), X)
    assert isinstance(report, sn.GradcheckReport) and report.title == "Sequential"
    title, header, *lines = str(report).splitlines()
    assert title == "Sequential, complex-step, rtol 1e-12"
    assert header.split() == ["name", "shape", "checked", "worst", "error", "where"]
    assert len(lines) == len(report.rows) == 1 + len(net().parameters()) + 1
    shapes = {"x": X.shape} | {name: p.data.shape for name, p in net().named_parameters()} | {"adjoint test": ()}
    for line, row in zip(lines, report.rows, strict=True):
        assert row.shape == shapes.pop(row.name)
        columns = (row.name, str(row.shape), str(row.checked), f"{row.error:.1e}")
        assert re.fullmatch(rf"  {' +'.join(map(re.escape, columns))}  (\(.*\))?", line)
        assert row.checked == (8 if row.name == "adjoint test" else int(np.prod(row.shape)))
        assert row.name == "adjoint test" or (len(row.where) == len(row.shape) and str(row.where[0]) in line)
    assert not shapes
    assert report.worst == max(row.error for row in report.rows) < 1e-12


def test_samples_checks_so_many_of_each_array():
    report = sn.gradcheck(conv(4, 3, 3), X, samples=5)
    assert [(row.name, row.checked) for row in report.rows] == [
        ("x", 5),
        ("weight", 5),
        ("bias", 3),
        ("adjoint test", 8),
    ]
    assert report.rows[0].shape == X.shape
    asked = []

    class Counting(sn.Conv2d):
        def forward(self, x):
            asked.append(x)
            return super().forward(x)

    sn.gradcheck(Counting(4, 3, 3), X, samples=5, rng=np.random.default_rng(1))
    few = len(asked)
    sn.gradcheck(Counting(4, 3, 3), X, samples=50, rng=np.random.default_rng(1))
    assert len(asked) - few == few + 2 * 45  # one forward for each element of x and of the weight


def test_the_adjoint_test_sees_what_samples_left_out():
    """One wrong element among 120, two of them sampled: eight directions have all of them."""
    with pytest.raises(
        sn.GradientMismatch, match=r"^Conv2d: adjoint test failed: ⟨dy, J v⟩ = \S+ but ⟨Jᵀ dy, v⟩ = \S+$"
    ):
        sn.gradcheck(changed(conv(4, 3, 3), dx=one_element), X, samples=2)


def test_the_generator_given_draws_the_upstream_gradient():
    """Random, and another one for another generator; the same for the same."""
    seen = []

    class Watching(sn.ReLU):
        def backward(self, dy):
            seen.append(dy.copy())
            return super().backward(dy)

    def upstream(**options):
        seen.clear()
        sn.gradcheck(Watching(), X, **options)
        return seen[0]

    default, seven = upstream(), upstream(rng=np.random.default_rng(7))
    assert np.array_equal(default, upstream()) and np.array_equal(seven, upstream(rng=np.random.default_rng(7)))
    assert not np.array_equal(default, seven)
    assert len(np.unique(default)) == default.size and (default < 0).any()
    distinct = {dy.tobytes() for dy in seen}
    assert len(distinct) == 1 + gradcheck_module.DIRECTIONS  # the adjoint test has one of its own in each direction


def test_rtol_is_the_line():
    wrong = functools.partial(changed, dx=times(1 + 1e-6))
    assert sn.gradcheck(wrong(norm()), X, rtol=1e-4).rtol == 1e-4
    with pytest.raises(sn.GradientMismatch, match=r"allowed 1e-08"):
        sn.gradcheck(wrong(norm()), X, rtol=1e-8)
    with pytest.raises(sn.GradientMismatch, match=r"allowed 1e-18\)\. It is right but for rounding"):
        sn.gradcheck(norm(), X, rtol=1e-18)


@pytest.mark.parametrize("method", ["complex_step", "", None, "forward"])
def test_another_method_is_refused(method):
    message = rf"^gradcheck: method must be one of complex-step, finite-difference, four-point, got {method!r}$"
    with pytest.raises(ValueError, match=message):
        sn.gradcheck(sn.ReLU(), X, method=method)


# What it leaves alone -------------------------------------------------------------------------------------------------


@EVERY_METHOD
@pytest.mark.parametrize("mode", ["train", "eval", "eval that saves"])
def test_the_module_stays_as_it_is(mode, method):
    module = net().astype(np.float32)
    x = X.astype(np.float32)
    {"train": module.train, "eval": module.eval, "eval that saves": lambda: module.eval(save=True)}[mode]()
    rng = module.head[2].rng
    for parameter in module.parameters():
        parameter.grad[...] = 3
    y = module(x)
    arrays = [*module.state_dict().values(), *(p.grad for p in module.parameters()), x]
    before = copy.deepcopy(
        (arrays, rng.bit_generator.state, [vars(m).get("training") for _, m in module.named_modules()])
    )
    report = sn.gradcheck(module, x, method=method, samples=9)
    assert report.worst <= METHODS[method]
    after = arrays, rng.bit_generator.state, [vars(m).get("training") for _, m in module.named_modules()]
    assert all(
        np.array_equal(now, then) and now.dtype == then.dtype for now, then in zip(after[0], before[0], strict=True)
    )
    assert after[1:] == before[1:]
    assert all(now is value for now, value in zip(module.state_dict().values(), arrays, strict=False))
    assert {m.saves for _, m in module.named_modules()} == {mode != "eval"}
    if mode != "eval":
        assert module.backward(y).dtype == np.float32  # even the cache of the forward before


def test_arrays_of_a_pair_stay_as_they_are():
    arrays = LINEAR_X.copy(), draw(5, 7), draw(5)
    before = [array.copy() for array in arrays]
    sn.gradcheck((linear_forward, linear_backward), arrays)
    assert all(np.array_equal(now, then) for now, then in zip(arrays, before, strict=True))


def test_a_float32_module_is_checked_in_float64():
    module = net().astype(np.float32)
    assert sn.gradcheck(module, X.astype(np.float32)).worst < 1e-12
    assert sn.gradcheck(sn.ReLU(), [[1, -2], [3, 4]]).worst <= 1e-15  # integers in a list, too


def test_the_current_mode_is_checked():
    """Eval mode's derivative has no part through the statistics, training's has; each backward fails in the other."""
    sn.gradcheck(broken(norm(), norm_is_never_frozen), X)
    with pytest.raises(sn.GradientMismatch):
        sn.gradcheck(broken(norm().eval(), norm_is_never_frozen), X)


# Randomness, kinks, complex numbers -----------------------------------------------------------------------------------


def test_dropout_is_replayed_and_a_hidden_generator_is_not():
    """A generator that the module holds is set back before every forward; one that it does not hold cannot be."""
    hidden = np.random.default_rng(0)

    class Hidden(sn.Module):
        def forward(self, x):
            keep = hidden.random(x.shape) >= 0.4
            self.save_cache(keep, x)
            return x * keep

        def backward(self, dy):
            return dy * self.take_cache(dy)

    sn.gradcheck(dropout(), X)
    with pytest.raises(sn.GradientMismatch, match="^Hidden: "):
        sn.gradcheck(Hidden(), X)


@pytest.mark.parametrize(("kink", "layer"), [(0.0, sn.ReLU), (0.0, sn.ReLU6), (6.0, sn.ReLU6)])
def test_on_a_kink_a_complex_step_stays_on_the_layers_side_and_a_difference_straddles(kink, layer):
    """Backward has the slope of one side, 0, and so has the complex step, which never leaves the point.

    A central difference takes the mean of both slopes, 1/2: the checker says so, and so it must be kept off kinks.
    """
    x = X.copy()
    x[1, 2, 3, 2] = kink
    assert sn.gradcheck(layer(), x).worst <= 1e-15
    message = (
        rf"^{layer.__name__}: the gradient of x .* at \(1, 2, 3, 2\): backward says (0|-0), .* 1 of 120 elements differ"
    )
    for method in ("finite-difference", "four-point"):
        with pytest.raises(sn.GradientMismatch, match=message):
            sn.gradcheck(layer(), x, method=method)


@given(rngs(), geometries(kernel=(3, 3), groups=1))
def test_a_dead_channel_sits_on_a_kink_and_a_complex_step_does_not_push_it_off(rng, g):
    """Pictures of zeros among others: zeros all the way, where h² of a larger h would open the rectifier by rounding."""
    x, _, _ = g.arrays(rng)
    x[rng.random(g.n) < 0.7] = 0
    sn.gradcheck(sn.Sequential(g.layer(rng, bias=False), sn.ReLU6()), x, rng=rng)


def test_nearer_to_a_kink_than_a_step_a_difference_crosses_it():
    x = X.copy()
    x[1, 2, 3, 2] = 1e-6
    assert sn.gradcheck(sn.ReLU(), x).worst <= 1e-15
    with pytest.raises(sn.GradientMismatch, match=r"at \(1, 2, 3, 2\)"):
        sn.gradcheck(sn.ReLU(), x, method="finite-difference")
    x[1, 2, 3, 2] = 1e-3
    sn.gradcheck(sn.ReLU(), x, method="finite-difference")


class Real(sn.Module):
    """y = |x|, computed in one of the ways that lose an imaginary part."""

    def __init__(self, way):
        self.way = way

    def forward(self, x):
        self.save_cache(np.sign(x), x)
        return self.way(x)

    def backward(self, dy):
        return dy * self.take_cache(dy)


def real_buffer(x):
    y = np.empty(x.shape)
    y[...] = np.sqrt(x * x)
    return y


WAYS = {
    "a ufunc without complex numbers": lambda x: np.hypot(x, 0),
    "a real buffer": real_buffer,
    "a real out=": lambda x: np.multiply(x, np.sign(x), out=np.empty(x.shape)),
    "a cast": lambda x: np.sqrt(x * x).astype(np.float64),
    "float()": lambda x: np.array([abs(float(v)) for v in x.ravel()]).reshape(x.shape),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_forward_that_takes_no_complex_numbers_is_sent_to_differences(way):
    message = r"^Real cannot compute on complex numbers \(.+\): use method='finite-difference'$"
    with pytest.raises(TypeError, match=message):
        sn.gradcheck(Real(WAYS[way]), X)
    assert sn.gradcheck(Real(WAYS[way]), X, method="finite-difference").worst <= 1e-7
    assert sn.gradcheck(Real(WAYS[way]), X, method="four-point").worst <= 1e-9


@pytest.mark.parametrize("way", [np.abs, lambda x: np.sqrt(x.real**2)])
def test_a_forward_that_drops_the_imaginary_part_in_silence_is_sent_to_differences(way):
    assert sn.gradcheck(Real(way), X, method="finite-difference").worst <= 1e-7
    with pytest.raises(TypeError, match="^Real .*complex.*use method='finite-difference'$"):
        sn.gradcheck(Real(way), X)


@EVERY_METHOD
def test_a_type_error_of_ones_own_is_not_blamed_on_complex_numbers(method):
    class Typo(sn.Module):
        def forward(self, x):
            return x + "1"

    with pytest.raises(TypeError) as caught:
        sn.gradcheck(Typo(), X, method=method)
    assert "complex" not in str(caught.value)


# A layer of one's own -------------------------------------------------------------------------------------------------


def test_the_docstrings_layer_runs_as_it_stands():
    lines = gradcheck_module.__doc__.splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith("    class "))
    last = next(k for k, line in enumerate(lines) if line.startswith("    print("))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(textwrap.dedent("\n".join(lines[first : last + 1])), {"sn": sn, "np": np})
    table = printed.getvalue().splitlines()
    assert table[0] == "Scale, complex-step, rtol 1e-12"
    assert [line.split()[0] for line in table[1:]] == ["name", "x", "gain", "adjoint"]


class Power(sn.Module):
    """y = gain·gain·x: a parameter used twice, its gradient added in two terms."""

    def __init__(self, size):
        self.gain = sn.Parameter(np.random.default_rng(1).standard_normal(size))

    def forward(self, x):
        inner = self.gain.data * x
        y = self.gain.data * inner
        self.save_cache((x, inner), y)
        return y

    def backward(self, dy):
        x, inner = self.take_cache(dy)
        self.gain.grad += (dy * inner).sum(axis=0)
        dinner = dy * self.gain.data
        self.gain.grad += (dinner * x).sum(axis=0)
        return dinner * self.gain.data


@EVERY_METHOD
@given(rng=rngs(), n=st.integers(1, 9), size=st.integers(1, 9))
def test_a_gradient_added_in_two_terms_is_right(method, rng, n, size):
    """(a + b) + a + b is 2 (a + b) but for rounding."""
    sn.gradcheck(Power(size), normal(rng, (n, size)), method=method, rng=rng)


@pytest.mark.parametrize("term", ["first", "second"])
def test_a_gradient_assigned_in_one_of_two_terms_is_rejected(term):
    class Assigns(Power):
        def backward(self, dy):
            before = self.gain.grad.copy()
            x, inner = self.take_cache(dy)
            terms = (dy * inner).sum(axis=0), (dy * self.gain.data * x).sum(axis=0)
            self.gain.grad = terms[0] + (before if term == "second" else 0)
            self.gain.grad = terms[1] + (self.gain.grad if term == "first" else 0)
            return dy * self.gain.data**2

    with pytest.raises(sn.GradientMismatch, match=r"^Assigns: gain\.grad is not twice as large"):
        sn.gradcheck(Assigns(5), draw(3, 5))


def test_a_constant_has_gradient_0_and_a_backward_that_says_otherwise_is_rejected():
    class Constant(sn.Module):
        says = 0

        def forward(self, x):
            y = 0 * x + 1
            self.save_cache(None, y)
            return y

        def backward(self, dy):
            self.take_cache(dy)
            return self.says * dy

    assert sn.gradcheck(Constant(), X).worst == 0
    Constant.says = 1e-3
    for method in METHODS:
        with pytest.raises(
            sn.GradientMismatch, match=r"^Constant: the gradient of x .* numeric derivative is \S+ \(ratio"
        ):
            sn.gradcheck(Constant(), X, method=method)


@pytest.mark.parametrize(("returns", "message"), [
    (lambda dy: None, r"^Own: backward must return dx of shape \(3, 7\), got NoneType"),
    (lambda dy: dy.T, r"^Own: backward must return dx of shape \(3, 7\), got \(7, 3\)"),
    (lambda dy: dy.sum(axis=0), r"^Own: backward must return dx of shape \(3, 7\), got \(7,\)"),
])  # fmt: skip
def test_a_backward_that_returns_no_dx_is_named(returns, message):
    class Own(sn.Module):
        def forward(self, x):
            self.save_cache(None, x)
            return x + 0

        def backward(self, dy):
            self.take_cache(dy)
            return returns(dy)

    with pytest.raises(sn.GradientMismatch, match=message):
        sn.gradcheck(Own(), LINEAR_X)


def test_a_function_pair_must_return_a_gradient_for_each_array():
    with pytest.raises(ValueError, match="argument 2 is shorter than argument 1"):
        sn.gradcheck(
            (linear_forward, lambda dy, cache: linear_backward(dy, cache)[:2]), (LINEAR_X, draw(5, 7), draw(5))
        )


def test_the_pair_of_batch_norm_by_a_wrapper():
    """A forward that returns more than (y, cache), with options: two lines make a pair of it."""

    def forward(x, weight, bias):
        y, _, _, cache = batch_norm_forward(x, weight, bias, 0.01)
        return y, cache

    report = sn.gradcheck((forward, batch_norm_backward), (X, draw(4), draw(4)))
    assert [(row.name, row.shape) for row in report.rows[:3]] == [("x", X.shape), ("x1", (4,)), ("x2", (4,))]
