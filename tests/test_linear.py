"""Linear and Flatten: = reference, = PyTorch; what is linear is linear; Flatten is a view of (c, h, w) in order."""

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st
from strategies import in_layout, layouts, normal, rngs, shapes

import scratchnet as sn
from scratchnet import reference
from scratchnet.layers.linear import linear_backward, linear_forward

SIZES = st.lists(st.integers(1, 9), min_size=3, max_size=3, unique=True)  # N, F, O
BIAS = st.booleans()


def close(got, want, rtol=1e-12):
    assert got.shape == np.shape(want)
    error, size = np.max(np.abs(got - want)), np.max(np.abs(want))
    assert error <= rtol * size
    return float(error / size) if error else 0.0


def drawn(rng, sizes, dtype=np.float64):
    """x (N, F), weight (O, F), bias (O,), dy (N, O)."""
    n, features, outputs = sizes
    return [normal(rng, shape, dtype) for shape in ((n, features), (outputs, features), (outputs,), (n, outputs))]


def layer_for(weight, bias):
    layer = sn.Linear(*weight.shape[::-1], bias=bias is not None, dtype=weight.dtype)
    layer.weight.data[...] = weight
    if bias is not None:
        layer.bias.data[...] = bias
    return layer


@given(rngs(), SIZES, BIAS, layouts(), layouts())
def test_linear_is_the_reference(rng, sizes, has_bias, x_layout, dy_layout):
    x, weight, bias, dy = drawn(rng, sizes)
    x, dy, bias = in_layout(x, x_layout), in_layout(dy, dy_layout), bias if has_bias else None
    y, cache = linear_forward(x, weight, bias)
    target(close(y, reference.linear_forward(x, weight, bias)), label="y")
    dx, dweight, dbias = linear_backward(dy, cache)
    want = reference.linear_backward(dy, x, weight)
    target(close(dx, want[0]), label="dx")
    target(close(dweight, want[1]), label="dweight")
    if has_bias:
        assert np.abs(dbias - want[2]).max() <= 1e-12 * np.abs(dy).sum(axis=0).max()
    else:
        assert dbias is None


@given(rngs(), SIZES, BIAS)
def test_linear_is_pytorchs(torch, rng, sizes, has_bias):
    x, weight, bias, dy = drawn(rng, sizes)
    ours = layer_for(weight, bias if has_bias else None)
    theirs = torch.nn.Linear(*weight.shape[::-1], bias=has_bias).double()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})
    xt = torch.from_numpy(x).requires_grad_()
    y = theirs(xt)
    y.backward(torch.from_numpy(dy))
    close(ours(x), y.detach().numpy())
    close(ours.backward(dy), xt.grad.numpy())
    for name, parameter in theirs.named_parameters():
        got = dict(ours.named_parameters())[name].grad
        assert np.abs(got - parameter.grad.numpy()).max() <= 1e-12 * np.abs(dy).sum(axis=0).max() * np.abs(x).max()


@given(rngs(), SIZES)
def test_linear_is_affine_in_x_and_linear_in_the_weight(rng, sizes):
    x, weight, bias, _ = drawn(rng, sizes)
    other, other_weight, other_bias, _ = drawn(rng, sizes)
    a, b = rng.standard_normal(2)
    y = linear_forward(x, weight, bias)[0]
    scale = (
        (np.abs(weight).max() + np.abs(other_weight).max()) * (np.abs(x).max() + np.abs(other).max()) * 10 * sizes[1]
    )

    def equal(got, want):
        assert np.abs(got - want).max() <= 1e-13 * scale

    f = linear_forward(a * x + b * other, weight, None)[0]
    equal(f, a * (y - bias) + b * linear_forward(other, weight, None)[0])
    equal(
        linear_forward(x, a * weight + b * other_weight, a * bias + b * other_bias)[0],
        a * y + b * linear_forward(x, other_weight, other_bias)[0],
    )


@given(rngs(), SIZES)
def test_linear_is_a_pointwise_convolution_of_a_picture_with_one_pixel(rng, sizes):
    x, weight, bias, dy = drawn(rng, sizes)
    linear = layer_for(weight, bias)
    conv = sn.Conv2d(sizes[1], sizes[2], 1, dtype=np.float64)
    conv.weight.data[...], conv.bias.data[...] = weight[:, :, None, None], bias
    close(linear(x)[:, :, None, None], conv(x[:, :, None, None]))
    close(linear.backward(dy)[:, :, None, None], conv.backward(dy[:, :, None, None]))
    close(linear.weight.grad[:, :, None, None], conv.weight.grad)
    close(linear.bias.grad, conv.bias.grad)


@given(rngs(), SIZES, BIAS)
def test_linear_adds_its_gradients_and_keeps_float32(rng, sizes, has_bias):
    x, weight, bias, dy = drawn(rng, sizes, np.float32)
    layer = layer_for(weight, bias if has_bias else None)
    for gradient in layer.parameters():
        gradient.grad[...] = 1
    for _ in range(2):
        assert layer(x).dtype == layer.backward(dy).dtype == np.float32
    want = reference.linear_backward(dy, x, weight)
    assert layer.weight.grad.dtype == np.float32
    np.testing.assert_allclose(layer.weight.grad, 1 + 2 * want[1], rtol=0, atol=1e-6 * 100)
    if has_bias:
        np.testing.assert_allclose(layer.bias.grad, 1 + 2 * want[2], rtol=0, atol=1e-6 * 100)
    else:
        assert layer.bias is None and len(layer.parameters()) == 1


def test_what_a_new_linear_holds():
    layer = sn.Linear(7, 3, rng=np.random.default_rng(0))
    assert layer.weight.data.shape == (3, 7) and layer.weight.data.dtype == np.float32 and layer.weight.decay
    assert layer.bias.data.tolist() == [0, 0, 0] and layer.bias.data.dtype == np.float32 and not layer.bias.decay
    assert layer.weight.data.std() > 0


# Flatten --------------------------------------------------------------------------------------------------------------


@given(rngs(), st.one_of(shapes(), shapes().map(lambda s: s[:2]), shapes().map(lambda s: s[:3])), layouts(), layouts())
def test_flatten_names_c_h_w_one_index_and_backward_undoes_it(rng, shape, x_layout, dy_layout):
    x = in_layout(normal(rng, shape), x_layout)
    layer = sn.Flatten()
    y = layer(x)
    assert np.array_equal(y, np.array(x).reshape(shape[0], -1))  # C order: c slowest, w fastest, as torch.flatten(x, 1)
    dy = in_layout(normal(rng, y.shape), dy_layout)
    dx = layer.backward(dy)
    assert np.array_equal(dx, np.array(dy).reshape(shape))
    assert y.dtype == dx.dtype == np.float64


@given(rngs(), shapes())
def test_flatten_of_channel_major_is_a_view(rng, shape):
    """Both ways: of x as every layer leaves it, and of dy as Linear's backward leaves it."""
    layer = sn.Flatten()
    x = in_layout(normal(rng, shape), "channel-major")
    y = layer(x)
    assert np.shares_memory(x, y)
    dy = in_layout(normal(rng, y.shape), "channel-major")
    dx = layer.backward(dy)
    assert np.shares_memory(dy, dx)
    assert sn.as_matrix(dx).flags.c_contiguous and np.shares_memory(sn.as_matrix(dx), dy)  # channel-major again


def test_flatten_by_hand():
    x = np.arange(2 * 2 * 1 * 3).reshape(2, 2, 1, 3).astype(float)
    assert sn.Flatten()(x).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


# Messages -------------------------------------------------------------------------------------------------------------

BAD_INPUT = [
    (np.ones((2, 5)), ValueError, r"expected 7 input features, got x of shape \(2, 5\)"),
    (np.ones((2, 7, 1, 1)), ValueError, r"expected x of shape \(N, 7\), got x of shape \(2, 7, 1, 1\)"),
    (np.ones(7), ValueError, r"expected x of shape \(N, 7\), got x of shape \(7,\)"),
    (np.ones((0, 7)), ValueError, r"x of shape \(0, 7\) is empty, expected at least one picture"),
    (np.ones((2, 7), np.float32), TypeError, "x is float32 and the parameters are float64: convert one with x.astype"),
    (np.ones((2, 7), np.int64), TypeError, "expected floating-point x, got int64"),
    ([[1.0] * 7], TypeError, r"expected a NumPy or CuPy array \(N, 7\), got list"),
]


@pytest.mark.parametrize(("x", "error", "message"), BAD_INPUT)
def test_bad_input_of_linear_is_named(x, error, message):
    with pytest.raises(error, match=f"^Linear: {message}"):
        sn.Linear(7, 3, dtype=np.float64)(x)


@pytest.mark.parametrize(("layer", "name"), [(sn.Linear(6, 6, dtype=np.float64), "Linear"), (sn.Flatten(), "Flatten")])
def test_a_dy_that_does_not_fit_is_named_and_the_right_one_still_works(layer, name):
    x = np.ones((2, 6))
    layer(x)
    with pytest.raises(
        ValueError, match=rf"^{name}: expected dy of shape \(2, 6\), as forward returned, got \(6, 2\)$"
    ):
        layer.backward(np.ones((6, 2)))
    with pytest.raises(TypeError, match=rf"^{name}: expected dy of dtype float64, as forward returned, got float32$"):
        layer.backward(np.ones((2, 6), np.float32))
    with pytest.raises(TypeError, match=rf"^{name}: expected dy to be an array of shape \(2, 6\), got list$"):
        layer.backward([[1.0] * 6] * 2)
    assert layer.backward(x).shape == (2, 6)
    with pytest.raises(RuntimeError, match=rf"^{name}: nothing saved for backward \(no forward came before\)"):
        layer.backward(x)


@pytest.mark.parametrize(("x", "error", "message"), [
    (np.ones((2, 3, 4), np.int32), TypeError, "expected floating-point x, got int32"),
    (np.ones((2, 0, 4)), ValueError, r"x of shape \(2, 0, 4\) is empty"),
    ([[1.0]], TypeError, "expected a NumPy or CuPy array .*, got list"),
])  # fmt: skip
def test_bad_input_of_flatten_is_named(x, error, message):
    with pytest.raises(error, match=f"^Flatten: {message}"):
        sn.Flatten()(x)


@pytest.mark.parametrize("size", [0, -2, 2.0, True, None])
def test_a_number_of_features_that_is_none_is_named(size):
    with pytest.raises(ValueError, match=rf"^Linear: in_features must be an int of at least 1, got {size!r}$"):
        sn.Linear(size, 3)
    with pytest.raises(ValueError, match=rf"^Linear: out_features must be an int of at least 1, got {size!r}$"):
        sn.Linear(3, size)
