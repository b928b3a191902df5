"""ReLU and ReLU6: exact everywhere, so every comparison here is `==`; the kinks one float at a time; NaN and inf."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import in_layout, kink_free, layouts, normal, rngs, shapes

import scratchnet as sn
from scratchnet import reference
from scratchnet.layers.activation import relu6_backward, relu6_forward, relu_backward, relu_forward

RECTIFIERS = {
    "ReLU": (sn.ReLU, relu_forward, relu_backward, reference.relu_forward, reference.relu_backward),
    "ReLU6": (sn.ReLU6, relu6_forward, relu6_backward, reference.relu6_forward, reference.relu6_backward),
}
ANY_SHAPE = st.one_of(shapes(), shapes().map(lambda shape: shape[:2]), shapes().map(lambda shape: shape[:3]))
EVERY_RECTIFIER = pytest.mark.parametrize("name", RECTIFIERS)
EVERY_DTYPE = pytest.mark.parametrize("dtype", [np.float32, np.float64])
ANY = float("nan")


def at_the_kinks(dtype):
    """Rows of (x, ReLU's y, whether dy passes, ReLU6's y, whether dy passes)."""
    zero, six = dtype(0), dtype(6)
    above_0, below_0 = np.nextafter(zero, dtype(1)), np.nextafter(zero, dtype(-1))
    above_6, below_6 = np.nextafter(six, dtype(7)), np.nextafter(six, dtype(5))
    normal_0 = np.finfo(dtype).tiny
    return [
        (-np.inf, 0, False, 0, False),
        (dtype(-6), 0, False, 0, False),
        (-normal_0, 0, False, 0, False),
        (below_0, 0, False, 0, False),
        (dtype(-0.0), 0, False, 0, False),
        (zero, 0, False, 0, False),
        (above_0, above_0, True, above_0, True),
        (normal_0, normal_0, True, normal_0, True),
        (below_6, below_6, True, below_6, True),
        (six, 6, True, 6, False),
        (above_6, above_6, True, 6, False),
        (dtype(1e30), dtype(1e30), True, 6, False),
        (np.inf, np.inf, True, 6, False),
        (ANY, ANY, True, ANY, True),
    ]


@EVERY_DTYPE
@EVERY_RECTIFIER
def test_values_and_gradients_at_the_kinks(name, dtype):
    rows = at_the_kinks(dtype)
    first = {"ReLU": 1, "ReLU6": 3}[name]
    x = np.array([row[0] for row in rows], dtype).reshape(2, 7, 1, 1)
    y = np.array([row[first] for row in rows], dtype).reshape(x.shape)
    passes = np.array([row[first + 1] for row in rows]).reshape(x.shape)
    dy = normal(np.random.default_rng(1), x.shape, dtype)
    layer = RECTIFIERS[name][0]()
    got, dx = layer(x), layer.backward(dy)
    assert got.dtype == dx.dtype == dtype
    np.testing.assert_array_equal(got, y)
    np.testing.assert_array_equal(dx, np.where(passes, dy, 0))


@EVERY_RECTIFIER
def test_a_nan_in_the_gradient_passes_where_x_did_and_nan_in_x_stays_one_number(name):
    layer = RECTIFIERS[name][0]()
    x = np.array([[1.0, np.nan, 5.0, 2.0]])
    np.testing.assert_array_equal(layer(x), x)
    dy = np.array([[np.nan, 3.0, -np.inf, 4.0]])
    np.testing.assert_array_equal(layer.backward(dy), dy)


@EVERY_RECTIFIER
@given(rng=rngs(), shape=ANY_SHAPE, x_layout=layouts(), dy_layout=layouts(), integers=st.booleans())
def test_is_the_reference(name, rng, shape, x_layout, dy_layout, integers):
    x = rng.integers(-3, 10, shape).astype(np.float64) if integers else kink_free(rng, shape)  # integers hit the kinks
    x, dy = in_layout(x, x_layout), in_layout(normal(rng, shape), dy_layout)
    _, forward, backward, reference_forward, reference_backward = RECTIFIERS[name]
    y, cache = forward(x)
    np.testing.assert_array_equal(y, reference_forward(x))
    np.testing.assert_array_equal(backward(dy, cache), reference_backward(dy, x))


@EVERY_DTYPE
@EVERY_RECTIFIER
@given(rng=rngs(), shape=ANY_SHAPE)
def test_is_pytorchs(torch, name, dtype, rng, shape):
    x = rng.integers(-3, 10, shape).astype(dtype) + rng.choice([0, 0.5], shape).astype(dtype)
    x[rng.random(shape) < 0.1] = np.nan
    dy = normal(rng, shape, dtype)
    xt = torch.from_numpy(x.copy()).requires_grad_()
    y = getattr(torch.nn, name)()(xt)
    y.backward(torch.from_numpy(dy))
    layer = RECTIFIERS[name][0]()
    np.testing.assert_array_equal(layer(x), y.detach().numpy())
    number = ~np.isnan(x)  # at a NaN, PyTorch's own ReLU6 gives dy or 0, by how its loop was vectorised
    np.testing.assert_array_equal(layer.backward(dy)[number], xt.grad.numpy()[number])


@EVERY_RECTIFIER
@given(rng=rngs(), shape=ANY_SHAPE)
def test_twice_is_once(name, rng, shape):
    """Idempotent: y is a fixed point, and a gradient that passes twice is one that passed once."""
    once, twice = RECTIFIERS[name][0](), sn.Sequential(RECTIFIERS[name][0](), RECTIFIERS[name][0]())
    x, dy = kink_free(rng, shape), normal(rng, shape)
    np.testing.assert_array_equal(twice(x), once(x))
    np.testing.assert_array_equal(twice.backward(dy), once.backward(dy))


@EVERY_RECTIFIER
@given(rng=rngs(), shape=ANY_SHAPE)
def test_larger_in_larger_out_and_the_gradient_is_the_slope(name, rng, shape):
    """Between two points on one side of the kinks, y moves by exactly slope·(x' - x)."""
    x, dy = kink_free(rng, shape, gap=2**-6), normal(rng, shape)
    x = np.round(x * 2**10) / 2**10  # so that x + step is exact
    layer = RECTIFIERS[name][0]()
    moved = layer(x + 2**-8) - layer(x)
    np.testing.assert_array_equal(layer.backward(dy), dy * moved / 2**-8)


@EVERY_RECTIFIER
@given(rng=rngs(), shape=ANY_SHAPE)
def test_complex_numbers_are_compared_by_their_real_part(name, rng, shape):
    """The complex step must cross no bound: real part as ever, imaginary part kept where x passes, else 0."""
    _, forward, backward, *_ = RECTIFIERS[name]
    real, imaginary = rng.integers(-3, 10, shape).astype(np.float64), normal(rng, shape)  # integers: on the kinks too
    y, cache = forward(real)
    passes = backward(np.ones(shape), cache)
    z, complex_cache = forward(real + 1j * imaginary)
    assert z.dtype == np.complex128
    np.testing.assert_array_equal(z.real, y)
    np.testing.assert_array_equal(z.imag, imaginary * passes)
    dy = normal(rng, shape) + 1j * normal(rng, shape)
    np.testing.assert_array_equal(backward(dy, complex_cache), dy * passes)


@EVERY_RECTIFIER
@pytest.mark.parametrize(("x", "message"), [
    (np.ones((2, 3, 4, 5), np.int64), r"^\w+: expected floating-point x, got int64: convert it with x.astype"),
    (np.ones((2, 3, 4, 5), bool), r"^\w+: expected floating-point x, got bool"),
    ([[1.0, 2.0]], r"^\w+: expected a NumPy or CuPy array .*, got list"),
])  # fmt: skip
def test_anything_but_floats_is_refused(name, x, message):
    with pytest.raises(TypeError, match=message.replace(r"\w+", name)):
        RECTIFIERS[name][0]()(x)


@EVERY_RECTIFIER
def test_a_dy_that_does_not_fit_is_refused_and_the_right_one_still_works(name):
    layer = RECTIFIERS[name][0]()
    x = kink_free(np.random.default_rng(0), (2, 3, 4, 5))
    layer(x)
    with pytest.raises(
        ValueError, match=rf"^{name}: expected dy of shape \(2, 3, 4, 5\), as forward returned, got \(2, 3\)"
    ):
        layer.backward(np.ones((2, 3)))
    with pytest.raises(TypeError, match=rf"^{name}: expected dy of dtype float64, as forward returned, got float32"):
        layer.backward(x.astype(np.float32))
    with pytest.raises(TypeError, match=rf"^{name}: expected dy to be an array of shape .*, got float"):
        layer.backward(1.0)
    assert layer.backward(x).shape == x.shape
    with pytest.raises(RuntimeError, match=rf"^{name}: nothing saved for backward \(no forward came before\)"):
        layer.backward(x)


@EVERY_RECTIFIER
def test_one_axis_is_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}: expected x of shape \(N, C, …\), got x of shape \(3,\)"):
        RECTIFIERS[name][0]()(np.ones(3))
