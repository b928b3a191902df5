"""Transposed convolution: = reference, = PyTorch, backward = derivative; and it is Conv2d's derivative, both ways."""

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st
from strategies import geometries, normal, pairs, rngs

import scratchnet as sn
from scratchnet import reference_windows as reference
from scratchnet.layers.conv import conv2d_backward, conv2d_forward
from scratchnet.layers.conv_transpose import conv_transpose2d_backward, conv_transpose2d_forward, spread_size

BIAS = st.booleans()


def output_padding(g):
    """What leads from the convolution's output back to a picture of its input's size."""
    least = map(spread_size, g.y_shape[2:], g.kernel, g.stride, g.padding, (0, 0), g.dilation)
    return tuple(size - small for size, small in zip(g.size, least, strict=True))


def options(g):
    return g.stride, g.padding, output_padding(g), g.dilation, g.groups


def drawn(g, rng):
    """x, weight, bias and dy of the transposed convolution whose output is like the input of g."""
    return [normal(rng, shape) for shape in (g.y_shape, g.weight_shape, g.in_channels, g.x_shape)]


def close(*compared, rtol=1e-12):
    """(got, want) pairs, to rtol of the largest number, or of 10 where that is smaller: sums of some ten numbers."""
    errors = []
    for got, want in compared:
        assert got.shape == np.shape(want)
        errors.append(float(np.abs(got - want).max() / np.abs(want).max(initial=10)))
    assert max(errors) <= rtol, errors


@given(rngs(), geometries() | geometries(elements=300), BIAS)
def test_forward_and_backward_are_the_reference(rng, g, has_bias):
    x, weight, bias, dy = drawn(g, rng)
    bias = bias if has_bias else None
    y, cache = conv_transpose2d_forward(x, weight, bias, *options(g))
    dx, dweight, dbias = conv_transpose2d_backward(dy, cache)
    assert y.shape == g.x_shape and (dbias is None) == (not has_bias)
    want = reference.conv_transpose2d_backward(dy, x, weight, g.stride, g.padding, g.dilation, g.groups)
    close((y, reference.conv_transpose2d_forward(x, weight, bias, *options(g))), (dx, want[0]), (dweight, want[1]))
    if has_bias:
        close((dbias, want[2]))


@given(rngs(), geometries(), pairs(0, 2), BIAS)
def test_the_layer_is_pytorch(torch, rng, g, more, has_bias):
    """Every output_padding that PyTorch takes, so that the last rows and columns may be read by no window."""
    more = tuple(min(m, max(s, d) - 1) for m, s, d in zip(more, g.stride, g.dilation, strict=True))
    least = map(spread_size, g.y_shape[2:], g.kernel, g.stride, g.padding, more, g.dilation)
    args = g.out_channels, g.in_channels, g.kernel, g.stride, g.padding, more, g.groups, has_bias, g.dilation
    ours = sn.ConvTranspose2d(*args, dtype=np.float64, rng=rng)
    x = normal(rng, g.y_shape)
    if min(least) < 1:
        with pytest.raises(ValueError, match=r"^ConvTranspose2d: padding .* leaves an output of"):
            ours(x)
        return
    theirs = torch.nn.ConvTranspose2d(*args).double()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for value in ours.state_dict().values():
        value[...] = normal(rng, value.shape)
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})
    tensor = torch.from_numpy(x).requires_grad_()
    y = theirs(tensor)
    dy = normal(rng, y.shape)
    y.backward(torch.from_numpy(dy))
    close((ours(x), y.detach().numpy()), (ours.backward(dy), tensor.grad.numpy()))
    gradients = dict(ours.named_parameters())
    close(*((gradients[name].grad, p.grad.numpy()) for name, p in theirs.named_parameters()))


@given(rngs(), geometries(), st.sampled_from(["dense", "grouped"]))
def test_it_is_the_derivative_of_a_convolution(rng, g, path):
    """(CONVT.2) to (CONVT.4): forward is its dx, dx is its forward, dweight is its dweight with the roles exchanged."""
    x, weight, _, dy = drawn(g, rng)
    y, cache = conv_transpose2d_forward(x, weight, None, *options(g))
    dx, dweight, _ = conv_transpose2d_backward(dy, cache)
    forward, convolution = conv2d_forward(dy, weight, None, *g.options, path)  # dy is the picture, and x the gradient
    backward, roles_exchanged, _ = conv2d_backward(x, convolution)
    close((y, backward), (dx, forward), (dweight, roles_exchanged))


@pytest.mark.parametrize(
    ("method", "rtol", "samples"),
    [("complex-step", 1e-12, None), ("four-point", 1e-9, 8), ("finite-difference", 1e-7, 8)],
)
@given(rngs(), geometries(), BIAS)
def test_backward_is_the_derivative(method, rtol, samples, rng, g, has_bias):
    args = (
        g.out_channels,
        g.in_channels,
        g.kernel,
        g.stride,
        g.padding,
        output_padding(g),
        g.groups,
        has_bias,
        g.dilation,
    )
    layer = sn.ConvTranspose2d(*args, dtype=np.float64, rng=rng)
    report = sn.gradcheck(layer, normal(rng, g.y_shape), method=method, rng=rng, rtol=rtol, samples=samples)
    target(report.worst)
    assert report.worst <= rtol


def test_by_hand():
    """Two pixels, 1 and 10, write windows 2 apart that overlap in one column; the last column is nobody's."""
    layer = sn.ConvTranspose2d(1, 1, (1, 3), 2, output_padding=(0, 1), dtype=np.float64)
    layer.weight.data[...], layer.bias.data[...] = [[[[1, 2, 3]]]], 100
    np.testing.assert_array_equal(layer(np.array([[[[1.0, 10.0]]]]))[0, 0, 0], [101, 102, 113, 120, 130, 100])
    dx = layer.backward(np.array([[[[1.0, 0, 100, 0, 0, 5000]]]]))
    np.testing.assert_array_equal(dx[0, 0, 0], [301, 100])
    np.testing.assert_array_equal(layer.weight.grad[0, 0, 0], [1 + 1000, 0, 100])
    np.testing.assert_array_equal(layer.bias.grad, [5101])


def test_the_initial_weights_keep_the_size_of_gradients():
    layer = sn.ConvTranspose2d(64, 32, 3, 2, groups=2, rng=np.random.default_rng(0))
    assert layer.weight.data.shape == (64, 16, 3, 3)
    assert layer.weight.data.var() == pytest.approx(2 / (16 * 9), rel=0.05)
    assert not layer.bias.data.any() and not layer.bias.decay and layer.weight.decay


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((4, 6, 0), {}, r"kernel_size must be an int of at least 1 or a pair of them, got 0$"),
        ((4, 6, 3, 0), {}, r"stride must be an int of at least 1 or a pair of them, got 0$"),
        ((4, 6, 3, 1, -1), {}, r"padding must be an int of at least 0 or a pair of them, got -1$"),
        ((4, 6, 3, 1, 0, "1"), {}, r"output_padding must be an int of at least 0 or a pair of them, got '1'$"),
        ((4, 6, 3), {"dilation": 0}, r"dilation must be an int of at least 1 or a pair of them, got 0$"),
        ((4, 6, 3), {"groups": 4}, r"out_channels must be a positive multiple of groups, got 6 and groups 4$"),
        ((0, 6, 3), {}, r"in_channels must be a positive multiple of groups, got 0 and groups 1$"),
        (
            (4, 6, 3, (3, 2), 0, (2, 2)),
            {},
            r"output_padding must be smaller than stride or dilation, got \(2, 2\) with stride \(3, 2\) and dilation .*",
        ),
    ],
)
def test_options_that_no_layer_has(args, options, message):
    with pytest.raises(ValueError, match=f"^ConvTranspose2d: {message}"):
        sn.ConvTranspose2d(*args, **options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4, 5), r"expected x of shape \(N, 4, H, W\), got x of shape \(2, 4, 5\)$"),
        ((2, 3, 5, 5), r"expected 4 input channels, got x of shape \(2, 3, 5, 5\)$"),
        ((2, 4, 3, 1), r"padding \(1, 1\) leaves an output of 2 × 0 pixels \(x of shape \(2, 4, 3, 1\)\)$"),
    ],
)
def test_inputs_that_do_not_fit(shape, message):
    with pytest.raises(ValueError, match=f"^up ConvTranspose2d: {message}"):
        sn.Sequential({"up": sn.ConvTranspose2d(4, 6, 2, padding=1)})(np.ones(shape, "f4"))


def test_repr():
    layer = sn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2, False)
    said = "ConvTranspose2d(4, 6, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1)"
    assert repr(layer) == f"{said}, groups=2, bias=False)"
