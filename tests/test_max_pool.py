"""Max pooling: = reference, = PyTorch, also for ties, NaN and infinity; backward = derivative."""

import functools

import numpy as np
import pytest
from hypothesis import assume, given, target
from hypothesis import strategies as st
from strategies import far_apart, normal, pairs, rngs

import scratchnet as sn
from scratchnet import reference_windows as reference
from scratchnet.layers.max_pool import max_pool2d_backward, max_pool2d_forward
from scratchnet.windows import output_size, taps

ONES = functools.partial(np.ones, dtype="f4")
NAN, INF = np.nan, np.inf


@st.composite
def max_poolings(draw):
    """(shape of x, (kernel, stride, padding, dilation, ceil_mode)), sizes mostly different along H and W."""
    kernel, stride, dilation = draw(pairs(1, 4)), draw(pairs(1, 5)), draw(pairs(1, 3))
    padding = draw(st.tuples(*(st.integers(0, k // 2) for k in kernel)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    size = [draw(st.integers(side, side + 4)) for side in least]
    return (draw(st.integers(1, 3)), draw(st.integers(1, 3)), *size), (
        kernel,
        stride,
        padding,
        dilation,
        draw(st.booleans()),
    )


def out_size(shape, kernel, stride, padding, dilation, ceil_mode):
    return tuple(map(output_size, shape[2:], kernel, stride, padding, dilation, (ceil_mode,) * 2))


def values(rng, shape, special):
    """Few different numbers, so that most windows have ties; with `special` also NaN and both infinities."""
    return rng.choice([-1.0, 0.0, 2.0, *([NAN, INF, -INF] * special)], shape)


def pool(x, options):
    """y and dx of a dy, by the functions."""
    y, cache = max_pool2d_forward(x, *options)
    dy = normal(np.random.default_rng(y.size), y.shape)
    return y, dy, max_pool2d_backward(dy, cache)


def same(got, want):
    """y is copied, so that it is equal; dx is a sum."""
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_allclose(got[1], want[1], rtol=1e-12, atol=1e-12)


@given(rngs(), max_poolings(), st.booleans())
def test_forward_and_backward_are_the_reference(rng, drawn, special):
    shape, options = drawn
    x = values(rng, shape, special)
    y, dy, dx = pool(x, options)
    want = reference.max_pool2d_forward(x, *options)
    same((y, dx), (want, reference.max_pool2d_backward(dy, x, *options[:4])))


@given(rngs(), max_poolings(), st.booleans())
def test_the_layer_is_pytorch(torch, rng, drawn, special):
    shape, (kernel, stride, padding, dilation, ceil_mode) = drawn
    reads = np.zeros((1, *out_size(shape, *drawn[1])))
    for _, _, outside, _ in taps(shape[2:], reads.shape[1:], kernel, stride, padding, dilation):
        reads[outside] = 1
    assume(reads.all())  # where a window reads only padding PyTorch writes dy to a pixel that there is not
    x = values(rng, shape, special)
    ours = sn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    tensor = torch.from_numpy(x).requires_grad_()
    y = torch.nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode)(tensor)
    dy = normal(rng, y.shape)
    dx = torch.autograd.grad(y, tensor, torch.from_numpy(dy))[0]
    same((ours(x), ours.backward(dy)), (y.detach().numpy(), dx.numpy()))


@pytest.mark.parametrize(
    ("method", "rtol", "samples"),
    [("complex-step", 1e-12, None), ("four-point", 1e-9, 8), ("finite-difference", 1e-7, 8)],
)
@given(rngs(), max_poolings())
def test_backward_is_the_derivative(method, rtol, samples, rng, drawn):
    shape, (*window, ceil_mode) = drawn
    y = reference.max_pool2d_forward(np.zeros(shape), *window, ceil_mode)
    assume(np.isfinite(y).all())  # no difference of infinities
    layer = sn.MaxPool2d(*window, ceil_mode=ceil_mode)
    report = sn.gradcheck(layer, far_apart(rng, shape), method=method, rng=rng, rtol=rtol, samples=samples)
    target(report.worst)
    assert report.worst <= rtol


@given(rngs(), max_poolings())
def test_every_dy_goes_to_one_pixel_that_is_the_largest(rng, drawn):
    shape, options = drawn
    x = values(rng, shape, False)
    y, cache = max_pool2d_forward(x, *options)
    finite = np.isfinite(y)
    dx = max_pool2d_backward(finite.astype(float), cache)
    assert dx.sum() == finite.sum()
    assert set(x[dx > 0]) <= set(y[finite])
    np.testing.assert_array_equal(-reference.max_pool2d_forward(x, *options), -y)


def grid(*rows):
    return np.array(rows, float)[None, None]


@pytest.mark.parametrize(
    ("x", "options", "y", "dx"),
    [
        (grid([1, 1], [1, 1]), {}, [[1]], grid([1, 0], [0, 0])),
        (grid([0, 1], [1, 1]), {}, [[1]], grid([0, 1], [0, 0])),  # the first in the order of rows: not of columns
        (grid([0, 0], [1, 1]), {}, [[1]], grid([0, 0], [1, 0])),
        (grid([2, 2, 2], [2, 2, 2]), {"stride": 1}, [[2, 2]], grid([1, 1, 0], [0, 0, 0])),
        (grid([0, 3, 0], [0, 0, 0]), {"stride": 1}, [[3, 3]], grid([0, 2, 0], [0, 0, 0])),
        (grid([0.0, -0.0], [-0.0, 0.0]), {}, [[0]], grid([1, 0], [0, 0])),
        (grid([-INF, -INF], [-INF, -INF]), {}, [[-INF]], grid([1, 0], [0, 0])),
        (grid([NAN, INF], [NAN, 7]), {}, [[NAN]], grid([0, 0], [1, 0])),  # the last NaN, as in PyTorch
        (grid([-1, -2]), {"padding": 1}, [[-1, -2]], grid([1, 1])),  # padding is -∞, not 0
        (grid([-1]), {"padding": 1, "dilation": 2}, [[-INF]], grid([0])),  # a window around the only pixel
        (grid([1, 2, 3]), {"padding": (1, 0), "ceil_mode": True}, [[2, 3]], grid([0, 1, 1])),
    ],
)  # fmt: skip
def test_by_hand(x, options, y, dx):
    layer = sn.MaxPool2d(2, **options)
    np.testing.assert_array_equal(layer(x)[0, 0], y)
    np.testing.assert_array_equal(layer.backward(np.ones_like(layer(x))), dx)


def test_more_taps_than_a_byte_counts():
    x = far_apart(np.random.default_rng(3), (2, 1, 17, 18))
    for kernel in ((15, 17), (16, 16), (17, 18)):  # 255, 256 and 306 taps
        y, dy, dx = pool(x, (kernel, (1, 1), (0, 0), (1, 1), False))
        window = (kernel, (1, 1), (0, 0), (1, 1))
        same((y, dx), (reference.max_pool2d_forward(x, *window, False), reference.max_pool2d_backward(dy, x, *window)))


def test_an_infinite_gradient_stays_where_it_belongs():
    layer = sn.MaxPool2d(2)
    layer(grid([1, 2, 3, 4], [0, 0, 0, 0]))
    np.testing.assert_array_equal(layer.backward(grid([INF, 1])), grid([0, INF, 0, 1], [0, 0, 0, 0]))


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((0,), {}, r"kernel_size must be an int of at least 1 or a pair of them, got 0$"),
        ((2, 0), {}, r"stride must be an int of at least 1 or a pair of them, got 0$"),
        ((2, 1, -1), {}, r"padding must be an int of at least 0 or a pair of them, got -1$"),
        ((2, 1, 0, 1.5), {}, r"dilation must be an int of at least 1 or a pair of them, got 1\.5$"),
        ((3, 1, 2), {}, r"padding may be at most half of the kernel, got padding \(2, 2\) and kernel_size \(3, 3\)$"),
        ((2,), {"return_indices": True}, r"return_indices=True is not offered: a layer here returns one array$"),
    ],
)
def test_options_that_no_pooling_has(args, options, message):
    with pytest.raises(ValueError, match=f"^MaxPool2d: {message}"):
        sn.MaxPool2d(*args, **options)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (ONES((2, 3, 5)), ValueError, r"expected x of shape \(N, C, H, W\), got x of shape \(2, 3, 5\)$"),
        (np.ones((2, 3, 5, 5), int), TypeError, r"expected floating-point x, got int64: .*x\.astype\('float32'\)$"),
        (ONES((2, 3, 9, 4)), ValueError, r"the kernel spans 5 pixels along W, more than the padded input's 4 .*"),
    ],
)
def test_inputs_that_do_not_fit(x, error, message):
    layer = sn.MaxPool2d(3, dilation=2)
    with pytest.raises(error, match=f"^pool MaxPool2d: {message}"):
        sn.Sequential({"pool": layer})(x)


def test_the_stride_is_the_kernel_unless_said_otherwise():
    assert sn.MaxPool2d((2, 3)).stride == (2, 3)
    assert repr(sn.MaxPool2d(2, ceil_mode=True)) == (
        "MaxPool2d(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0), dilation=(1, 1), ceil_mode=True)"
    )
