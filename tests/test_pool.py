"""Average pooling: = reference, = PyTorch, backward = derivative, and what a mean promises."""

import functools

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st
from strategies import in_layout, layouts, normal, poolings, rngs, shapes

import scratchnet as sn
from scratchnet import reference
from scratchnet.layers.pool import (
    avg_pool2d_backward,
    avg_pool2d_forward,
    global_avg_pool2d_backward,
    global_avg_pool2d_forward,
)

ONES = functools.partial(np.ones, dtype="f4")
LARGE = poolings(elements=400)
WHOLE_WINDOWS = poolings(padding=(0, 0), ceil_mode=False)


def pool(x, p):
    """y and dx of dy, by the functions."""
    y, cache = avg_pool2d_forward(x, *p.options)
    return y, lambda dy: avg_pool2d_backward(dy, cache)


def global_pool(x):
    y, cache = global_avg_pool2d_forward(x)
    return y, lambda dy: global_avg_pool2d_backward(dy, cache)


def close(*compared, rtol=1e-12):
    """(got, want): equal shapes, and equal values to rtol of the largest number, or of 1 where it is smaller."""
    errors = []
    for got, want in compared:
        assert got.shape == np.shape(want)
        errors.append(float(np.abs(got - want).max(initial=0) / np.abs(want).max(initial=1)))
    target(max(errors))
    assert max(errors) <= rtol, errors


# Oracles --------------------------------------------------------------------------------------------------------------


@given(rngs(), poolings() | LARGE)
def test_forward_and_backward_are_the_reference(rng, p):
    x, dy = normal(rng, p.x_shape), normal(rng, p.y_shape)
    y, backward = pool(x, p)
    want = reference.avg_pool2d_forward(x, *p.options), reference.avg_pool2d_backward(dy, x, *p.options)
    close((y, want[0]), (backward(dy), want[1]))


@given(rngs(), shapes())
def test_global_forward_and_backward_are_the_reference(rng, shape):
    x, dy = normal(rng, shape), normal(rng, (*shape[:2], 1, 1))
    y, backward = global_pool(x)
    want = reference.global_avg_pool2d_forward(x), reference.global_avg_pool2d_backward(dy, x)
    close((y, want[0]), (backward(dy), want[1]))


@given(rngs(), poolings() | LARGE)
def test_the_layer_is_pytorch(torch, rng, p):
    x, dy, layer = normal(rng, p.x_shape), normal(rng, p.y_shape), p.layer()
    tensor = torch.from_numpy(x).requires_grad_()
    y = torch.nn.functional.avg_pool2d(tensor, *p.options)
    dx = torch.autograd.grad(y, tensor, torch.from_numpy(dy))[0]
    close((layer(x), y.detach().numpy()), (layer.backward(dy), dx.numpy()))


@given(rngs(), shapes())
def test_the_global_layer_is_pytorch(torch, rng, shape):
    x, dy, layer = normal(rng, shape), normal(rng, (*shape[:2], 1, 1)), sn.GlobalAvgPool2d()
    tensor = torch.from_numpy(x).requires_grad_()
    y = torch.nn.functional.adaptive_avg_pool2d(tensor, 1)
    dx = torch.autograd.grad(y, tensor, torch.from_numpy(dy))[0]
    close((layer(x), y.detach().numpy()), (layer.backward(dy), dx.numpy()))


CHECKS = [("complex-step", 1e-12, None), ("four-point", 1e-9, 8), ("finite-difference", 1e-7, 8)]


@pytest.mark.parametrize(("method", "rtol", "samples"), CHECKS)
@given(rngs(), poolings())
def test_backward_is_the_derivative(method, rtol, samples, rng, p):
    report = sn.gradcheck(p.layer(), normal(rng, p.x_shape), method=method, rng=rng, rtol=rtol, samples=samples)
    target(report.worst)
    assert report.worst <= rtol


@pytest.mark.parametrize(("method", "rtol", "samples"), CHECKS)
@given(rngs(), shapes())
def test_global_backward_is_the_derivative(method, rtol, samples, rng, shape):
    report = sn.gradcheck(sn.GlobalAvgPool2d(), normal(rng, shape), method=method, rng=rng, rtol=rtol, samples=samples)
    target(report.worst)
    assert report.worst <= rtol


# What a mean promises -------------------------------------------------------------------------------------------------


@given(rngs(), poolings(count_include_pad=False))
def test_gradient_mass_is_conserved(rng, p):
    """Each dy is shared out among real pixels and nothing is lost: the sum of dx of a channel is the sum of dy."""
    x, dy = normal(rng, p.x_shape), normal(rng, p.y_shape)
    close((pool(x, p)[1](dy).sum(axis=(2, 3)), dy.sum(axis=(2, 3))))


@given(rngs(), WHOLE_WINDOWS)
def test_gradient_mass_is_conserved_without_padding_however_it_is_counted(rng, p):
    x, dy = normal(rng, p.x_shape), normal(rng, p.y_shape)
    close((pool(x, p)[1](dy).sum(axis=(2, 3)), dy.sum(axis=(2, 3))))


@given(rngs(), shapes())
def test_global_gradient_mass_is_conserved(rng, shape):
    x, dy = normal(rng, shape), normal(rng, (*shape[:2], 1, 1))
    close((global_pool(x)[1](dy).sum(axis=(2, 3)), dy[:, :, 0, 0]))


@given(rngs(), poolings(count_include_pad=False), st.floats(-3, 3))
def test_a_constant_picture_stays_that_constant(rng, p, value):
    y, _ = pool(np.full(p.x_shape, value), p)
    close((y, np.full(p.y_shape, value)))


@given(rngs(), poolings(ceil_mode=False, count_include_pad=True))
def test_padding_that_counts_is_zeros_around_x(rng, p):
    x, dy = normal(rng, p.x_shape), normal(rng, p.y_shape)
    (ph, pw), (height, width) = p.padding, p.x_shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    want_y, want_backward = pool(padded, p._replace(x_shape=padded.shape, padding=(0, 0)))
    y, backward = pool(x, p)
    close((y, want_y), (backward(dy), want_backward(dy)[:, :, ph : ph + height, pw : pw + width]))


@given(rngs(), WHOLE_WINDOWS)
def test_it_is_a_depthwise_convolution_with_equal_weights(rng, p):
    x, dy, channels = normal(rng, p.x_shape), normal(rng, p.y_shape), p.x_shape[1]
    conv = sn.Conv2d(channels, channels, p.kernel, p.stride, groups=channels, bias=False, dtype=np.float64)
    conv.weight.data[...] = 1 / (p.kernel[0] * p.kernel[1])
    y, backward = pool(x, p)
    close((y, conv(x)), (backward(dy), conv.backward(dy)))


@given(rngs(), shapes())
def test_global_is_one_window_of_the_whole_picture(rng, shape):
    x, dy = normal(rng, shape), normal(rng, (*shape[:2], 1, 1))
    layer = sn.AvgPool2d(shape[2:])
    y, backward = global_pool(x)
    close((y, layer(x)), (backward(dy), layer.backward(dy)))


@given(rngs(), poolings(), layouts())
def test_every_layout_gives_the_same_bits(rng, p, layout):
    x, dy = in_layout(normal(rng, p.x_shape), layout), in_layout(normal(rng, p.y_shape), layout)
    for layer, grad in ((p.layer(), dy), (sn.GlobalAvgPool2d(), in_layout(dy[:, :, :1, :1], layout))):
        y, dx = layer(x), layer.backward(grad)
        np.testing.assert_array_equal(y, layer(np.array(x, order="C")))
        np.testing.assert_array_equal(dx, layer.backward(np.array(grad, order="C")))


@given(rngs(), poolings())
def test_pictures_and_channels_do_not_see_each_other(rng, p):
    x, dy = normal(rng, p.x_shape), normal(rng, p.y_shape)
    y, backward = pool(x, p)
    dx = backward(dy)
    for n in range(p.x_shape[0]):
        for c in range(p.x_shape[1]):
            alone = np.s_[n : n + 1, c : c + 1]
            y_alone, backward_alone = pool(x[alone], p)
            np.testing.assert_array_equal(y_alone, y[alone])
            np.testing.assert_array_equal(backward_alone(dy[alone]), dx[alone])


def test_by_hand():
    """Windows of 2 × 3, stride 2, padding 1; the last column of windows hangs over the padding."""
    x = np.arange(12.0).reshape(1, 1, 3, 4)  # rows 0 1 2 3 · 4 5 6 7 · 8 9 10 11
    sums = np.array([[0 + 1, 1 + 2 + 3], [4 + 5 + 8 + 9, 5 + 6 + 7 + 9 + 10 + 11]])
    inside, padded = np.array([[2, 3], [4, 6]]), np.array([[6, 6], [6, 6]])
    for count_include_pad, counts in ((True, padded), (False, inside)):
        layer = sn.AvgPool2d((2, 3), 2, 1, False, count_include_pad)
        np.testing.assert_allclose(layer(x)[0, 0], sums / counts, rtol=1e-15)
    layer = sn.AvgPool2d(2, ceil_mode=True)
    np.testing.assert_array_equal(layer(x)[0, 0], [[2.5, 4.5], [8.5, 10.5]])  # the last row of windows is half empty
    dx = layer.backward(np.array([[[[4.0, 8.0], [2.0, 6.0]]]]))
    np.testing.assert_array_equal(dx[0, 0], [[1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 3, 3]])


# Messages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((0,), r"^AvgPool2d: kernel_size must be an int of at least 1 or a pair of them, got 0$"),
        (((2, 2.0),), r"^AvgPool2d: kernel_size must be an int .* got \(2, 2\.0\)$"),
        ((2, 0), r"^AvgPool2d: stride must be an int of at least 1 or a pair of them, got 0$"),
        ((2, (1, 2, 3)), r"^AvgPool2d: stride must be an int .* got \(1, 2, 3\)$"),
        ((2, 1, -1), r"^AvgPool2d: padding must be an int of at least 0 or a pair of them, got -1$"),
        (
            (3, 1, 2),
            r"^AvgPool2d: padding may be at most half of the kernel, got padding \(2, 2\) and kernel_size \(3, 3\)$",
        ),
        (((4, 1), 1, (2, 1)), r"^AvgPool2d: padding may be at most half .* \(2, 1\) and kernel_size \(4, 1\)$"),
    ],
)
def test_options_that_no_pooling_has(args, message):
    with pytest.raises(ValueError, match=message):
        sn.AvgPool2d(*args)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (ONES((2, 3, 5)), ValueError, r"expected x of shape \(N, C, H, W\), got x of shape \(2, 3, 5\)$"),
        (np.ones((2, 3, 5, 5), int), TypeError, r"expected floating-point x, got int64: .*x\.astype\('float32'\)$"),
        ([[[[1.0]]]], TypeError, r"expected a NumPy or CuPy array \(N, C, H, W\), got list$"),
        (ONES((0, 3, 5, 5)), ValueError, r"x of shape \(0, 3, 5, 5\) is empty, expected at least one picture$"),
    ],
)
@pytest.mark.parametrize("layer", [sn.AvgPool2d(2), sn.GlobalAvgPool2d()], ids=lambda layer: layer.name)
def test_inputs_that_do_not_fit(layer, x, error, message):
    with pytest.raises(error, match=rf"^{layer.name}: {message}"):
        layer(x)
    with pytest.raises(error, match=rf"^features\.pool {layer.name}: {message}"):
        sn.Sequential({"features": sn.Sequential({"pool": layer})})(x)


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (
            (4, 9),
            (5,),
            r"the kernel spans 5 pixels along H, more than the padded input's 4 \(x of shape \(2, 3, 4, 9\), ",
        ),
        (
            (9, 2),
            (5, 1, 1),
            r"the kernel spans 5 pixels along W, more than the padded input's 4 .* padding 1\)$",
        ),
    ],
)
def test_a_kernel_larger_than_the_padded_input(size, options, message):
    with pytest.raises(ValueError, match="^AvgPool2d: " + message):
        sn.AvgPool2d(*options)(ONES((2, 3, *size)))


@pytest.mark.parametrize(
    ("dy", "error", "message"),
    [
        (
            ONES((2, 3, 2, 1)),
            ValueError,
            r"expected dy of shape \(2, 3, 2, 2\), as forward returned, got \(2, 3, 2, 1\)$",
        ),
        (np.ones((2, 3, 2, 2)), TypeError, r"expected dy of dtype float32, as forward returned, got float64$"),
    ],
)
def test_upstream_gradients_that_do_not_fit(dy, error, message):
    layer = sn.AvgPool2d(2)
    layer(ONES((2, 3, 5, 5)))
    with pytest.raises(error, match="^AvgPool2d: " + message):
        layer.backward(dy)


def test_the_stride_is_the_kernel_unless_said_otherwise():
    assert sn.AvgPool2d((2, 3)).stride == (2, 3)
    assert sn.AvgPool2d((2, 3), 1).stride == (1, 1)


def test_padding_counts_unless_said_otherwise():
    ones = np.ones((2, 1, 3, 4))
    assert sn.AvgPool2d(2, padding=1)(ones)[0, 0, 0, 0] == 0.25
    assert sn.AvgPool2d(2, padding=1, count_include_pad=False)(ones)[0, 0, 0, 0] == 1
