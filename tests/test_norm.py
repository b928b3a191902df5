"""Batch norm: what it promises about its output, its gradient and its running statistics; = reference, = PyTorch."""

import numpy as np
import pytest
from conformance import CPU_KERNELS
from hypothesis import given, target
from hypothesis import strategies as st
from strategies import geometries, in_layout, layouts, normal, rngs, shapes

import scratchnet as sn
from scratchnet import kernels, reference
from scratchnet.device import kind_of
from scratchnet.layers.norm import (
    BATCH_NORM,
    FROZEN_BATCH_NORM,
    batch_norm_backward,
    batch_norm_forward,
    frozen_batch_norm_backward,
    frozen_batch_norm_forward,
)

CHANNEL = (slice(None), None, None)  # (C,) -> (C, 1, 1), to go with (N, C, H, W)
EPS = st.sampled_from([1e-5, 1e-3, 0.1, 2.0])
BATCHES = shapes(per_channel=2)


def close(got, want, rtol=1e-12, scale=0.0):
    """Equal shapes, and equal to rtol of the largest number; `scale` is the largest one that went into the sum."""
    assert got.shape == np.shape(want)
    error, size = np.max(np.abs(got - want)), max(np.max(np.abs(want)), scale)
    assert error <= rtol * size
    return float(error / size) if error else 0.0


def activation(rng, shape, dtype=np.float64):
    """Per channel another mean and spread, and no two numbers nearly equal: their difference has digits to spare."""
    n, c, h, w = shape
    rows = rng.permuted(np.tile(np.arange(n * h * w, dtype=np.float64), (c, 1)), axis=1)
    rows = (rows + 0.5 * rng.random(rows.shape)) / rows.shape[1]
    rows = rows * rng.uniform(1, 4, (c, 1)) + rng.uniform(-2, 2, (c, 1))
    return rows.reshape(c, n, h, w).swapaxes(0, 1).astype(dtype)


@pytest.fixture(params=[False, *CPU_KERNELS], scope="module")
def run(request):
    """A function of the layer's file, by the kernels that are asked for: always of the pair that `choose` gives."""

    def run(function, *args):
        plain = next(pair for pair in (BATCH_NORM, FROZEN_BATCH_NORM) if function in pair)
        with sn.use_kernels(request.param):
            return kernels.choose(plain, kind_of(args[0]))[plain.index(function)](*args)

    return run


def affine(rng, channels, dtype=np.float64):
    """Weight and bias."""
    return rng.uniform(0.5, 2, channels).astype(dtype) * rng.choice([-1, 1], channels).astype(dtype), normal(
        rng, channels, dtype
    )


def moments(x):
    """Each channel's mean and biased variance, (C,)."""
    mean = x.mean(axis=(0, 2, 3))
    return mean, ((x - mean[CHANNEL]) ** 2).mean(axis=(0, 2, 3))


def largest_term(x, weight, dy, eps):
    """Of those that (BN.7) adds up, which may cancel: dx of two numbers is almost 0, whatever dy is."""
    return np.abs(weight / np.sqrt(moments(x)[1] + eps)).max() * np.abs(dy).max()


def layer_for(x, weight, bias, **options):
    layer = sn.BatchNorm2d(x.shape[1], dtype=x.dtype, **options)
    layer.weight.data[...], layer.bias.data[...] = weight, bias
    return layer


# The oracles ----------------------------------------------------------------------------------------------------------


@given(rngs(), BATCHES, EPS, layouts(), layouts())
def test_training_is_the_reference(run, rng, shape, eps, x_layout, dy_layout):
    if x_layout in ("broadcast", "constant"):  # equal numbers: the variance is rounding, and 1/√eps magnifies that
        x_layout = "contiguous"
    x, dy = in_layout(activation(rng, shape), x_layout), in_layout(normal(rng, shape), dy_layout)
    weight, bias = affine(rng, shape[1])
    y, mean, var, cache = run(batch_norm_forward, x, weight, bias, eps)
    forward = [
        close(*each) for each in zip((y, mean, var), reference.batch_norm_forward(x, weight, bias, eps), strict=True)
    ]
    dx, dweight, dbias = run(batch_norm_backward, dy, cache)
    want = reference.batch_norm_backward(dy, x, weight, eps)
    target(max(forward), label="forward")
    target(close(dx, want[0], scale=largest_term(x, weight, dy, eps)), label="dx")
    target(close(dweight, want[1], scale=np.abs(dy).max()), label="dweight")
    close(dbias, want[2], scale=np.abs(dy).max())


@given(rngs(), shapes(), EPS, layouts(), layouts())
def test_frozen_is_the_reference(run, rng, shape, eps, x_layout, dy_layout):
    x, dy = in_layout(normal(rng, shape), x_layout), in_layout(normal(rng, shape), dy_layout)
    (weight, bias), mean, var = affine(rng, shape[1]), normal(rng, shape[1]), rng.uniform(0.1, 3, shape[1])
    y, cache = run(frozen_batch_norm_forward, x, weight, bias, mean, var, eps)
    close(y, reference.frozen_batch_norm_forward(x, weight, bias, mean, var, eps))
    want = reference.frozen_batch_norm_backward(dy, x, weight, mean, var, eps)
    for got, expected in zip(run(frozen_batch_norm_backward, dy, cache), want, strict=True):
        close(got, expected, scale=np.abs(dy).max())


@given(rngs(), BATCHES, EPS, st.floats(0, 1), st.booleans())
def test_layer_is_pytorchs(torch, rng, shape, eps, momentum, training):
    ours = sn.BatchNorm2d(shape[1], eps, momentum, dtype=np.float64)
    for name, value in ours.state_dict().items():
        if name != "num_batches_tracked":
            value[...] = rng.uniform(0.5, 2, shape[1])
    theirs = torch.nn.BatchNorm2d(shape[1], eps, momentum).double()
    theirs.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in ours.state_dict().items()})
    ours.train() if training else ours.eval(save=True)
    theirs.train(training)

    for _ in range(2):  # twice: gradients add up, and statistics move on
        x, dy = activation(rng, shape), normal(rng, shape)
        xt = torch.from_numpy(x.copy()).requires_grad_()
        y = theirs(xt)
        y.backward(torch.from_numpy(dy))
        close(ours(x), y.detach().numpy())
        scale = np.abs(dy).max() * 2 / np.sqrt(eps + min(moments(x)[1].min(), 0.5))
        close(ours.backward(dy), xt.grad.numpy(), scale=scale)
    close(ours.weight.grad, theirs.weight.grad.numpy(), scale=np.abs(dy).max())
    close(ours.bias.grad, theirs.bias.grad.numpy(), scale=np.abs(dy).max())
    for name, value in theirs.state_dict().items():
        close(ours.state_dict()[name], value.numpy())


# In training ----------------------------------------------------------------------------------------------------------


@given(rngs(), BATCHES, EPS)
def test_output_has_mean_bias_and_variance_weight_squared_but_for_eps(rng, shape, eps):
    x, (weight, bias) = activation(rng, shape), affine(rng, shape[1])
    mean, var = moments(layer_for(x, weight, bias, eps=eps)(x))
    v = moments(x)[1]
    close(mean, bias, scale=np.abs(weight).max())
    close(var, v / (v + eps) * weight**2)


@given(rngs(), BATCHES, EPS, st.floats(0.25, 4), st.booleans())
def test_scale_and_shift_of_the_input_change_nothing(rng, shape, eps, a, flip):
    """y(a·x + b; eps·a²) = y(x; eps), and by the chain rule dx is a times as large. A negative a flips y - bias."""
    x, dy, (weight, bias) = activation(rng, shape), normal(rng, shape), affine(rng, shape[1])
    a = -a if flip else a
    plain, moved = layer_for(x, weight, bias, eps=eps), layer_for(x, np.sign(a) * weight, bias, eps=eps * a * a)
    b = rng.uniform(-3, 3, shape[1])
    close(moved(a * x + b[CHANNEL]), plain(x))
    close(a * moved.backward(dy), plain.backward(dy), scale=largest_term(x, weight, dy, eps))
    close(np.sign(a) * moved.weight.grad, plain.weight.grad, scale=np.abs(dy).max())


@given(rngs(), BATCHES, EPS)
def test_gradient_has_no_part_along_what_batch_norm_takes_away(rng, shape, eps):
    """A shift of x changes nothing, so Σdx = 0; a stretch changes y only by way of eps: Σ dx·x̂ is that share."""
    x, dy, (weight, bias) = activation(rng, shape), normal(rng, shape), affine(rng, shape[1])
    layer = layer_for(x, weight, bias, eps=eps)
    xhat = (layer(x) - bias[CHANNEL]) / weight[CHANNEL]
    dx = layer.backward(dy)
    v, scale = moments(x)[1], largest_term(x, weight, dy, eps)
    close(dx.sum(axis=(0, 2, 3)), np.zeros(shape[1]), scale=scale)
    share = weight / np.sqrt(v + eps) * layer.weight.grad * eps / (v + eps)
    close((dx * xhat).sum(axis=(0, 2, 3)), share, scale=scale)


@given(rngs(), shapes(per_channel=2, least=2), EPS)
def test_order_of_the_batch_means_nothing(rng, shape, eps):
    x, dy, (weight, bias) = activation(rng, shape), normal(rng, shape), affine(rng, shape[1])
    order = rng.permutation(shape[0])
    plain, other = layer_for(x, weight, bias, eps=eps), layer_for(x, weight, bias, eps=eps)
    close(other(x[order]), plain(x)[order])
    close(other.backward(dy[order]), plain.backward(dy)[order], scale=largest_term(x, weight, dy, eps))
    for got, want in zip(other.state_dict().values(), plain.state_dict().values(), strict=True):
        close(got, want)
    close(other.weight.grad, plain.weight.grad, scale=np.abs(dy).max())


@given(rngs(), BATCHES, EPS)
def test_channels_do_not_see_each_other(rng, shape, eps):
    x, (weight, bias) = activation(rng, shape), affine(rng, shape[1])
    y = batch_norm_forward(x, weight, bias, eps)[0]
    for c in range(shape[1]):
        close(batch_norm_forward(x[:, c : c + 1], weight[c : c + 1], bias[c : c + 1], eps)[0], y[:, c : c + 1])


# Far from zero, and in float32 ----------------------------------------------------------------------------------------


def rounding(x, weight, bias, eps):
    """Stated bound on y's error: x, read to an ulp, costs ulp(x)/std of x̂; everything after that a few ulps of itself.

    E[x²] - E[x]² in place of (BN.2) would cost (mean/std)² ulps.
    """
    v = moments(np.float64(x))[1]
    in_stds = np.abs(x).max(axis=(0, 2, 3)) / np.sqrt(v + eps)
    return 8 * np.finfo(x.dtype).eps * (np.abs(weight) * (in_stds + np.sqrt(x.size)) + np.abs(bias))


@pytest.mark.parametrize(("dtype", "far"), [(np.float64, 2.0**20), (np.float32, 2.0**10)])  # 1e6 and 1e3 spreads away
@given(rngs(), BATCHES, EPS)
def test_far_from_zero_digits_are_lost_only_to_the_distance(run, dtype, far, rng, shape, eps):
    near = np.round(activation(rng, shape) * 256) / 256  # so that near + far is exact in both dtypes
    x, (weight, bias) = (near + far).astype(dtype), affine(rng, shape[1], dtype)
    assert (x - dtype(far) == near).all()
    y, mean, var, _ = run(batch_norm_forward, x, weight, bias, eps)
    want, near_mean, near_var = reference.batch_norm_forward(near, weight, bias, eps)
    assert y.dtype == mean.dtype == var.dtype == dtype
    assert (np.abs(y - want) <= rounding(x, weight, bias, eps)[CHANNEL]).all()
    assert (np.abs(np.float64(mean) - far - near_mean) <= 8 * np.finfo(dtype).eps * far).all()
    assert (np.abs(var - near_var) <= 64 * np.finfo(dtype).eps * far * near_var).all()


@given(rngs(), BATCHES, EPS)
def test_float32_is_float64_within_the_bound(run, rng, shape, eps):
    x, dy = activation(rng, shape, np.float32), normal(rng, shape, np.float32)
    weight, bias = affine(rng, shape[1], np.float32)
    y, _, _, cache = run(batch_norm_forward, x, weight, bias, eps)
    gradients = run(batch_norm_backward, dy, cache)
    assert {array.dtype for array in (y, *gradients)} == {np.dtype(np.float32)}
    assert (
        np.abs(y - reference.batch_norm_forward(x, weight, bias, eps)[0]) <= rounding(x, weight, bias, eps)[CHANNEL]
    ).all()
    bound = 32 * np.finfo(np.float32).eps * np.sqrt(x.size)  # a sum of M products, of numbers in standard deviations
    want = reference.batch_norm_backward(dy, x, weight, eps)
    for got, expected, scale in zip(
        gradients, want, (largest_term(x, weight, dy, eps), *[np.abs(dy).max()] * 2), strict=True
    ):
        assert (np.abs(got - expected) <= bound * max(scale, np.abs(expected).max())).all()


# Running statistics ---------------------------------------------------------------------------------------------------


@given(rngs(), st.lists(BATCHES, min_size=1, max_size=4), st.sampled_from([0.0, 0.1, 0.3, 1.0]))
def test_running_statistics_are_the_closed_form_average(rng, batches, momentum):
    channels = batches[0][1]
    layer = sn.BatchNorm2d(channels, momentum=momentum, dtype=np.float64)
    layer.running_mean[...], layer.running_var[...] = normal(rng, channels), rng.uniform(0.5, 2, channels)
    first = layer.running_mean.copy(), layer.running_var.copy()
    buffers = layer.running_mean, layer.running_var
    steps = [activation(rng, (n, channels, h, w)) for n, _, h, w in batches]  # sizes differ, so M/(M-1) does too
    for x in steps:
        layer(x)
    ages = [momentum * (1 - momentum) ** (len(steps) - 1 - k) for k in range(len(steps))]
    forgotten = (1 - momentum) ** len(steps)
    mean = forgotten * first[0] + sum(age * x.mean(axis=(0, 2, 3)) for age, x in zip(ages, steps, strict=True))
    var = forgotten * first[1] + sum(age * x.var(axis=(0, 2, 3), ddof=1) for age, x in zip(ages, steps, strict=True))
    close(layer.running_mean, mean, scale=2.0)
    close(layer.running_var, var)
    assert layer.num_batches_tracked == len(steps) and layer.num_batches_tracked.dtype == np.int64
    assert layer.running_mean is buffers[0] and layer.running_var is buffers[1]  # a state_dict taken earlier stays good


def test_running_variance_is_unbiased():
    """(0.9 · 1 + 0.1 · 5/3): PyTorch's number; the biased variance, 5/4, would give 1.025."""
    layer = sn.BatchNorm2d(1, dtype=np.float64)
    layer(np.array([1.0, 2, 3, 4]).reshape(2, 1, 1, 2))
    assert layer.running_var == pytest.approx([1.0666666666666667], rel=1e-15)
    assert layer.running_mean == pytest.approx([0.25], rel=1e-15)


@given(rngs(), BATCHES, st.sampled_from([0.1, 0.7]))
def test_running_statistics_are_the_references(rng, shape, momentum):
    x = activation(rng, shape)
    layer = sn.BatchNorm2d(shape[1], momentum=momentum, dtype=np.float64)
    before = layer.running_mean.copy(), layer.running_var.copy()
    layer(x)
    want = reference.running_statistics(*before, *moments(x), x.size // shape[1], momentum)
    close(layer.running_mean, want[0], scale=2.0)
    close(layer.running_var, want[1])


@given(rngs(), BATCHES)
def test_eval_uses_the_statistics_and_leaves_them(rng, shape):
    layer = sn.BatchNorm2d(shape[1], dtype=np.float64)
    layer(activation(rng, shape))
    before = {name: value.copy() for name, value in layer.state_dict().items()}
    x = activation(rng, shape)
    y = layer.eval()(x)
    for name, value in layer.state_dict().items():
        assert np.array_equal(value, before[name]), name
    assert np.array_equal(layer.eval()(x[:1]), y[:1])  # a picture's values do not depend on its batch


# In eval mode ---------------------------------------------------------------------------------------------------------


@given(rngs(), shapes(), EPS)
def test_eval_is_an_affine_map_of_each_channel(rng, shape, eps):
    """y = slope·x + shift, so f(x + z) - f(z) = slope·x for every z; and backward multiplies by the same slope."""
    layer = sn.BatchNorm2d(shape[1], eps, dtype=np.float64)
    layer.weight.data[...], layer.bias.data[...] = affine(rng, shape[1])
    layer.running_mean[...], layer.running_var[...] = normal(rng, shape[1]), rng.uniform(0.2, 3, shape[1])
    slope = layer.weight.data / np.sqrt(layer.running_var + eps)
    shift = layer.bias.data - slope * layer.running_mean
    x, dy = normal(rng, shape), normal(rng, shape)
    layer.eval(save=True)
    close(layer(x), slope[CHANNEL] * x + shift[CHANNEL], scale=np.abs(slope).max())
    close(layer.backward(dy), slope[CHANNEL] * dy)
    close(layer.bias.grad, dy.sum(axis=(0, 2, 3)), scale=np.abs(dy).max())
    xhat = (x - layer.running_mean[CHANNEL]) / np.sqrt(layer.running_var + eps)[CHANNEL]
    close(layer.weight.grad, (dy * xhat).sum(axis=(0, 2, 3)), scale=np.abs(dy).max())


@given(rngs(), geometries())
def test_eval_folds_into_the_convolution_before_it(rng, g):
    """BN(W * x + b) = (slope·W) * x + (slope·b + shift): what an exporter does; also the gradient of x is the same."""
    conv, folded = g.layer(rng), g.layer(rng)
    norm = sn.BatchNorm2d(g.out_channels, dtype=np.float64)
    norm.weight.data[...], norm.bias.data[...] = affine(rng, g.out_channels)
    norm.running_mean[...], norm.running_var[...] = normal(rng, g.out_channels), rng.uniform(0.2, 3, g.out_channels)
    slope = norm.weight.data / np.sqrt(norm.running_var + norm.eps)
    folded.weight.data[...] = slope[:, None, None, None] * conv.weight.data
    folded.bias.data[...] = slope * (conv.bias.data - norm.running_mean) + norm.bias.data
    both = sn.Sequential(conv, norm).eval(save=True)
    x, dy = normal(rng, g.x_shape), g.dy(rng)
    terms = np.abs(slope).max() * np.abs(conv.weight.data).max()  # of a sum that may cancel
    close(both(x), folded(x), scale=terms * np.abs(x).max())
    close(both.backward(dy), folded.backward(dy), scale=terms * np.abs(dy).max())


# The contract ---------------------------------------------------------------------------------------------------------


@given(rngs(), BATCHES)
def test_gradients_add_up(rng, shape):
    layer = sn.BatchNorm2d(shape[1], dtype=np.float64)
    want = np.zeros(shape[1]), np.zeros(shape[1])
    for k in range(3):
        x, dy = activation(rng, shape), normal(rng, shape)
        layer.eval(save=True) if k == 1 else layer.train()
        y = layer(x)
        want[0][...] += (dy * y).sum(axis=(0, 2, 3))  # weight is 1 and bias 0, so y is x̂
        want[1][...] += dy.sum(axis=(0, 2, 3))
        layer.backward(dy)
    close(layer.weight.grad, want[0], scale=np.abs(dy).max())
    close(layer.bias.grad, want[1], scale=np.abs(dy).max())


def test_what_a_new_layer_holds():
    layer = sn.BatchNorm2d(3)
    assert {name: (value.tolist(), value.dtype.name) for name, value in layer.state_dict().items()} == {
        "weight": ([1, 1, 1], "float32"),
        "bias": ([0, 0, 0], "float32"),
        "running_mean": ([0, 0, 0], "float32"),
        "running_var": ([1, 1, 1], "float32"),
        "num_batches_tracked": (0, "int64"),
    }
    assert not layer.weight.decay and not layer.bias.decay
    assert (layer.eps, layer.momentum) == (1e-5, 0.1)


@pytest.mark.parametrize("channels", [0, -1, 2.0, True, "3"])
def test_a_number_of_channels_that_is_none_is_named(channels):
    message = rf"^BatchNorm2d: num_features must be an int of at least 1, got {channels!r}$"
    with pytest.raises(ValueError, match=message):
        sn.BatchNorm2d(channels)


BAD_INPUT = [
    ((2, 5, 4, 3), ValueError, r"^BatchNorm2d: expected 7 input channels, got x of shape \(2, 5, 4, 3\)$"),
    ((2, 7), ValueError, r"^BatchNorm2d: expected x of shape \(N, 7, H, W\), got x of shape \(2, 7\)$"),
    ((1, 7, 1, 1), ValueError, r"^BatchNorm2d: needs more than one value per channel .*x of shape \(1, 7, 1, 1\)$"),
    ((0, 7, 4, 3), ValueError, r"^BatchNorm2d: x of shape \(0, 7, 4, 3\) is empty"),
]


@pytest.mark.parametrize(("shape", "error", "message"), BAD_INPUT)
def test_a_wrong_shape_is_named_and_nothing_moves(shape, error, message):
    layer = sn.BatchNorm2d(7)
    with pytest.raises(error, match=message):
        layer(np.ones(shape, np.float32))
    assert layer.num_batches_tracked == 0 and not layer.running_mean.any()


def test_one_value_per_channel_is_fine_in_eval_mode():
    x = np.arange(1, 8, dtype=np.float32).reshape(1, 7, 1, 1)
    close(sn.BatchNorm2d(7, eps=0.0).eval()(x), x)


def test_another_dtype_is_named():
    with pytest.raises(TypeError, match=r"^BatchNorm2d: x is float64 and the parameters are float32: convert one with"):
        sn.BatchNorm2d(7)(np.ones((2, 7, 4, 3)))
    with pytest.raises(TypeError, match=r"^BatchNorm2d: expected floating-point x, got int64"):
        sn.BatchNorm2d(7)(np.ones((2, 7, 4, 3), np.int64))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_one_forward_serves_one_backward(mode):
    layer = sn.BatchNorm2d(2, dtype=np.float64)
    layer.eval() if mode == "eval" else layer.train()
    x = normal(np.random.default_rng(0), (3, 2, 4, 5))
    layer(x)
    if mode == "train":
        layer.backward(x)
    why = "eval mode, which saves nothing" if mode == "eval" else "no forward came before"
    with pytest.raises(RuntimeError, match=rf"^BatchNorm2d: nothing saved for backward \(.*{why}\)"):
        layer.backward(x)


def test_numpy_scalars_as_options_keep_float32():
    layer = sn.BatchNorm2d(3, np.float64(1e-5), np.float64(0.1))
    x = normal(np.random.default_rng(0), (2, 3, 4, 5), np.float32)
    assert layer(x).dtype == layer.backward(x).dtype == layer.eval()(x).dtype == np.float32


# Batch norm of features and sequences -----------------------------------------------------------------------------------

ROWS = st.sampled_from([(5, 3), (2, 4), (3, 2, 4), (1, 3, 5), (4, 1, 2)])


@given(rngs(), ROWS, EPS, st.floats(0.05, 1), st.booleans())
def test_1d_is_2d_of_pictures_with_one_row(rng, shape, eps, momentum, training):
    """The same bits: it is the same matrix."""
    weight, bias = affine(rng, shape[1])
    outcomes = []
    for layer, more in ((sn.BatchNorm1d, ()), (sn.BatchNorm2d, (1,) * (4 - len(shape)))):
        norm = layer(shape[1], eps, momentum, dtype=np.float64)
        norm.weight.data[...], norm.bias.data[...] = weight, bias
        norm.running_var += np.arange(shape[1])
        norm.train() if training else norm.eval(save=True)
        numbers = np.random.default_rng(shape[0])
        x, dy = (numbers.standard_normal(shape).reshape(*shape, *more) for _ in range(2))
        y = norm(x)
        outcomes.append([y.reshape(shape), norm.backward(dy).reshape(shape), norm.weight.grad, norm.bias.grad])
        outcomes[-1] += [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    for got, want in zip(*outcomes, strict=True):
        np.testing.assert_array_equal(got, want)


@given(rngs(), ROWS, EPS, st.booleans())
def test_1d_is_pytorchs(torch, rng, shape, eps, training):
    ours, theirs = (
        sn.BatchNorm1d(shape[1], eps, 0.3, dtype=np.float64),
        torch.nn.BatchNorm1d(shape[1], eps, 0.3).double(),
    )
    ours.weight.data[...], ours.bias.data[...] = affine(rng, shape[1])
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in ours.state_dict().items()})
    ours.train() if training else ours.eval(save=True)
    theirs.train(training)
    x, dy = activation(rng, (*shape, 1, 1)[:4]).reshape(shape), normal(rng, shape)
    tensor = torch.from_numpy(x).requires_grad_()
    y = theirs(tensor)
    y.backward(torch.from_numpy(dy))
    close(ours(x), y.detach().numpy())
    scale = float(np.abs(dy).max() / eps**0.5)
    close(ours.backward(dy), tensor.grad.numpy(), scale=scale)
    for name, parameter in theirs.named_parameters():
        close(dict(ours.named_parameters())[name].grad, parameter.grad.numpy(), scale=float(np.abs(dy).sum()))
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[name], value.numpy(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 5), r"expected 7 input features, got x of shape \(3, 5\)$"),
        ((3, 5, 2), r"expected 7 input features, got x of shape \(3, 5, 2\)$"),
        ((3, 7, 2, 2), r"expected x of shape \(N, 7, L\), got x of shape \(3, 7, 2, 2\)$"),
        ((7,), r"expected x of shape \(N, 7\), got x of shape \(7,\)$"),
        ((1, 7), r"needs more than one value per channel in training mode, got x of shape \(1, 7\)$"),
    ],
)
def test_1d_inputs_that_do_not_fit(shape, message):
    with pytest.raises(ValueError, match=f"^BatchNorm1d: {message}"):
        sn.BatchNorm1d(7)(np.ones(shape, np.float32))
    with pytest.raises(ValueError, match=r"^BatchNorm1d: num_features must be an int of at least 1, got 0$"):
        sn.BatchNorm1d(0)
