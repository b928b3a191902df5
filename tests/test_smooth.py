"""Smooth activations: = reference, = PyTorch, also far out; digits kept in both tails, no warning; softmax's axes."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sabotage import X_WRONG, X, broken, changed, times
from strategies import in_layout, layouts, normal, rngs, shapes

import scratchnet as sn
from scratchnet import reference_elementwise as reference
from scratchnet.layers import smooth
from scratchnet.layers.normal import COEFFICIENTS, normal_cdf, normal_density

SMOOTH = {"sigmoid": sn.Sigmoid, "tanh": sn.Tanh, "silu": sn.SiLU, "gelu": sn.GELU}
EVERY_ONE = pytest.mark.parametrize("name", SMOOTH)
EVERY_DTYPE = pytest.mark.parametrize("dtype", [np.float32, np.float64])
ANY_SHAPE = st.one_of(shapes(), shapes().map(lambda shape: shape[:2]), shapes().map(lambda shape: shape[:3]))
FAR = [
    0.0,
    1e-300,
    1e-20,
    1e-8,
    0.1,
    0.7518,
    1,
    3,
    6,
    8.3,
    9,
    17,
    20,
    37,
    38.6,
    41,
    88,
    104,
    709,
    746,
    1000,
    1e5,
    1e154,
    1.7e308,
]


def close(got, want, rtol=1e-12):
    """Equal to rtol of each number, or of 1 where it is smaller."""
    assert got.shape == want.shape
    assert np.all(np.abs(got - want) <= rtol * np.maximum(1, np.abs(want)))


# The oracles ----------------------------------------------------------------------------------------------------------


@EVERY_ONE
@given(rng=rngs(), shape=ANY_SHAPE, x_layout=layouts(), dy_layout=layouts())
def test_is_the_reference(name, rng, shape, x_layout, dy_layout):
    x, dy = in_layout(3 * normal(rng, shape), x_layout), in_layout(normal(rng, shape), dy_layout)
    layer = SMOOTH[name]()
    close(layer(x), reference.activation_forward(name, x), 1e-14)
    close(layer.backward(dy), reference.activation_backward(name, dy, x), 1e-14)


@EVERY_ONE
@given(rng=rngs())
def test_is_pytorchs_near_and_far(torch, name, rng):
    x = np.concatenate([FAR, np.negative(FAR), 5 * normal(rng, 100), 10.0 ** rng.uniform(-9, 3, 100)])[None]
    dy = normal(rng, x.shape)
    peer = torch.from_numpy(x.copy()).requires_grad_()
    want = getattr(torch.nn.functional, name)(peer)
    want.backward(torch.from_numpy(dy))
    layer = SMOOTH[name]()
    close(layer(x), want.detach().numpy())
    close(layer.backward(dy), peer.grad.numpy())


@EVERY_ONE
@given(rng=rngs())
def test_float32_is_float64_rounded_also_far_out(name, rng):
    """Any warning of an overflow is an error here."""
    far = [number for number in FAR if number < 3e38] + [3.4e38]
    x = np.concatenate([far, np.negative(far), 5 * normal(rng, 100)])[None].astype(np.float32)
    dy = normal(rng, x.shape, np.float32)
    single, double = SMOOTH[name](), SMOOTH[name]()
    got, want = single(x), double(x.astype(np.float64))
    dx, dwant = single.backward(dy), double.backward(dy.astype(np.float64))
    assert got.dtype == dx.dtype == np.float32
    close(got, want, 4e-7)
    close(dx, dwant, 4e-6)


@EVERY_DTYPE
def test_a_thousand_to_either_side(dtype):
    x, dy = np.array([[-1000, 1000]], dtype), np.array([[3, 5]], dtype)
    for name, y, dx in (
        ("sigmoid", [0, 1], [0, 0]),
        ("tanh", [-1, 1], [0, 0]),
        ("silu", [0, 1000], [0, 5]),
        ("gelu", [0, 1000], [0, 5]),
    ):
        layer = SMOOTH[name]()
        np.testing.assert_array_equal(layer(x), [y])
        np.testing.assert_array_equal(layer.backward(dy), [dx])


@EVERY_ONE
def test_nan_stays_visible(name):
    layer, x = SMOOTH[name](), np.array([[1.0, np.nan, -2.0]])
    assert np.isnan(layer(x)).tolist() == [[False, True, False]]
    assert np.isnan(layer.backward(np.array([[1.0, 1.0, np.nan]]))).tolist() == [[False, True, True]]


# The tails ------------------------------------------------------------------------------------------------------------


def exact_tail(a):
    """Φ(-a) and φ(a) for a ≥ 1, by the continued fraction of Mills's ratio with 40 digits, a exact."""
    with localcontext() as context:
        context.prec = 40
        a = Decimal(float(a))
        mills = a
        for k in range(600, 0, -1):
            mills = a + k / mills
        pi = Decimal("3.141592653589793238462643383279502884197")
        density = (-a * a / 2).exp() / (2 * pi).sqrt()
        return float(density / mills), float(density)


@given(st.floats(1.0, 37.0))
def test_the_normal_distribution_keeps_its_digits_below_0(a):
    cdf, density = exact_tail(a)
    x = np.array([-a, a])
    assert normal_cdf(x)[0] == pytest.approx(cdf, rel=1e-15)
    assert normal_cdf(x)[1] == pytest.approx(1 - cdf, rel=3e-16)
    np.testing.assert_allclose(normal_density(x), density, rtol=1e-15)


@given(st.floats(-1.0, 1.0))
def test_the_normal_distribution_around_0(x):
    assert normal_cdf(np.array([x]))[0] == pytest.approx(math.erfc(-x / math.sqrt(2)) / 2, rel=1e-15)
    assert normal_density(np.array([x]))[0] == pytest.approx(math.exp(-x * x / 2) / math.sqrt(2 * math.pi), rel=1e-15)


def test_the_normal_distribution_at_its_ends():
    x = np.array([0, -np.inf, np.inf, -39, 39])
    np.testing.assert_array_equal(normal_cdf(x), [0.5, 0, 1, 0, 1])
    np.testing.assert_array_equal(normal_density(x)[1:], 0)
    assert normal_cdf(np.array([-37.0]))[0] > 5e-300


def test_the_polynomial_is_exact_at_both_of_its_ends():
    """t = -1 is z = 0, t = 1 is z = ∞: f is 1 and 2/√π."""
    assert math.fsum((-1) ** k * c for k, c in enumerate(COEFFICIENTS)) == pytest.approx(1, abs=3e-16)
    assert math.fsum(COEFFICIENTS) == pytest.approx(2 / math.sqrt(math.pi), abs=3e-16)


@given(st.floats(-20, 20))
def test_a_complex_step_through_the_polynomial_gives_the_density(x):
    step = 1e-200
    assert normal_cdf(np.array([x + 1j * step]))[0].imag / step == pytest.approx(
        normal_density(np.array([x]))[0], rel=1e-12
    )


@given(st.floats(-700, 700))
def test_the_sigmoid_keeps_its_digits_below_0(x):
    assert smooth.sigmoid(np.array([x]))[0] == pytest.approx(reference.sigmoid(x), rel=1e-15)
    assert smooth.sigmoid(np.array([-abs(x)]))[0] > 0


def test_gelu_and_its_slope_keep_their_digits_below_0():
    layer, x = sn.GELU(), -np.arange(1.0, 37.0)[None]
    cdf, density = np.array([exact_tail(a) for a in -x[0]]).T
    np.testing.assert_allclose(layer(x)[0], x[0] * cdf, rtol=2e-15)
    np.testing.assert_allclose(layer.backward(np.ones_like(x))[0], cdf + x[0] * density, rtol=1e-14)


# Softmax --------------------------------------------------------------------------------------------------------------


@given(rngs(), ANY_SHAPE, layouts(), layouts(), st.data())
def test_softmax_is_the_reference_and_pytorchs_along_every_axis(torch, rng, shape, x_layout, dy_layout, data):
    dim = data.draw(st.integers(1, len(shape) - 1))
    dim = data.draw(st.sampled_from([dim, dim - len(shape)]))
    x, dy = in_layout(5 * normal(rng, shape), x_layout), in_layout(normal(rng, shape), dy_layout)
    layer = sn.Softmax(dim)
    y, dx = layer(x), layer.backward(dy)
    close(y, reference.softmax_forward(x, dim), 1e-14)
    close(dx, reference.softmax_backward(dy, x, dim), 1e-14)
    peer = torch.from_numpy(x.copy()).requires_grad_()
    want = torch.softmax(peer, dim)
    want.backward(torch.from_numpy(dy.copy()))
    close(y, want.detach().numpy())
    close(dx, peer.grad.numpy())


@EVERY_DTYPE
@given(rng=rngs(), shape=shapes())
def test_shares_sum_to_1_and_gradients_to_0_whatever_is_added(dtype, rng, shape):
    x, dy = normal(rng, shape, dtype), normal(rng, shape, dtype)
    eps = float(np.finfo(dtype).eps)
    layer = sn.Softmax()
    y, dx = layer(x), layer.backward(dy)
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=8 * eps)
    np.testing.assert_allclose(dx.sum(axis=1), 0, atol=32 * eps)
    np.testing.assert_allclose(layer(x + dtype(1000)), y, rtol=0, atol=1000 * eps)


@EVERY_DTYPE
def test_softmax_far_out(dtype):
    largest = np.finfo(dtype).max / 2
    layer = sn.Softmax()
    x = np.array([[1000, -1000, 1000], [-np.inf, 0, 0], [largest, -largest, 0]], dtype)
    np.testing.assert_array_equal(layer(x), [[0.5, 0, 0.5], [0, 0.5, 0.5], [1, 0, 0]])
    np.testing.assert_array_equal(layer.backward(np.ones_like(x)), np.zeros((3, 3)))


def test_softmax_by_hand():
    layer = sn.Softmax(dim=1)
    np.testing.assert_allclose(layer(np.log([[1.0, 2, 5]])), [[1 / 8, 2 / 8, 5 / 8]], rtol=1e-15)
    np.testing.assert_allclose(layer.backward(np.array([[8.0, 0, 0]])), [[7 / 8, -2 / 8, -5 / 8]], rtol=1e-15)
    assert repr(layer) == "Softmax(dim=1)"


@pytest.mark.parametrize("dim", [0, -4, 4, -5, 7])
def test_an_axis_that_is_none_or_the_batchs_is_named(dim):
    with pytest.raises(
        ValueError,
        match=rf"^Softmax: dim must be an axis of x behind the batch's, 1 to 3 or negative, "
        rf"got dim {dim} and x of shape \(2, 3, 4, 5\)$",
    ):
        sn.Softmax(dim)(np.ones((2, 3, 4, 5)))


@pytest.mark.parametrize("dim", [None, 1.0, True, (1,)])
def test_a_dim_that_is_no_int_is_named(dim):
    with pytest.raises(TypeError, match=r"^Softmax: dim must be an int, 1 for channels or classes, got "):
        sn.Softmax(dim)


def test_in_front_of_a_logarithm_softmax_is_cross_entropy():
    """Their gradients in a row are those of the one: (p - t) / N."""
    rng = np.random.default_rng(0)
    x, labels = normal(rng, (4, 5)), np.array([1, 0, 4, 2])
    layer, criterion = sn.Softmax(), sn.CrossEntropyLoss()
    p = layer(x)
    picked = np.eye(5)[labels]
    dx = layer.backward(-picked / p / 4)
    loss = criterion(x, labels)
    close(-np.log((p * picked).sum(axis=1)).mean(), loss)
    close(dx, criterion.backward())


# Sabotaged ------------------------------------------------------------------------------------------------------------


def wrong_activation(formula):
    """A backward by another formula of dy and what forward saved."""

    def backward(self, dy):
        _, cache = self.take_cache(dy)
        cache = cache if isinstance(cache, tuple) else (cache,)
        rows = [value if value.ndim == dy.ndim else sn.as_images(value, dy) for value in cache]
        return formula(dy, *rows)

    return backward


def wrong_softmax(formula):
    def backward(self, dy):
        y, _ = self.take_cache(dy)
        return formula(dy, sn.as_images(y))

    return backward


SABOTAGED = {
    "sigmoid: 1 - y forgotten": lambda: broken(sn.Sigmoid(), wrong_activation(lambda dy, y: dy * y)),
    "sigmoid: of x, not of y": lambda: broken(sn.Sigmoid(), wrong_activation(lambda dy, y: dy * y * (1 - y) ** 2)),
    "sigmoid: sign": lambda: changed(sn.Sigmoid(), dx=times(-1)),
    "tanh: y for y²": lambda: broken(sn.Tanh(), wrong_activation(lambda dy, y: dy * (1 - y))),
    "tanh: the sigmoid's": lambda: broken(sn.Tanh(), wrong_activation(lambda dy, y: dy * y * (1 - y))),
    "silu: only the first factor": lambda: broken(sn.SiLU(), wrong_activation(lambda dy, x, s: dy * s)),
    "silu: only the second factor": lambda: broken(sn.SiLU(), wrong_activation(lambda dy, x, s: dy * x * s * (1 - s))),
    "silu: x forgotten": lambda: broken(sn.SiLU(), wrong_activation(lambda dy, x, s: dy * (s + s * (1 - s)))),
    "gelu: only the first factor": lambda: broken(sn.GELU(), wrong_activation(lambda dy, x, s: dy * s)),
    "gelu: x forgotten": lambda: broken(sn.GELU(), wrong_activation(lambda dy, x, s: dy * (s + normal_density(x)))),
    "gelu: φ without √(2π)": lambda: broken(
        sn.GELU(), wrong_activation(lambda dy, x, s: dy * (s + x * np.exp(-x * x / 2)))
    ),
    "gelu: that of 1.702": lambda: broken(
        sn.GELU(),
        wrong_activation(lambda dy, x, s: dy * smooth.sigmoid(1.702 * x) * (1 + 1.702 * x * smooth.sigmoid(-1.702 * x))),
    ),
    "softmax: each by itself": lambda: broken(sn.Softmax(), wrong_softmax(lambda dy, y: dy * y * (1 - y))),
    "softmax: the sum forgotten": lambda: broken(sn.Softmax(), wrong_softmax(lambda dy, y: dy * y)),
    "softmax: dy not weighed": lambda: broken(
        sn.Softmax(), wrong_softmax(lambda dy, y: y * (dy - dy.sum(axis=1, keepdims=True)))
    ),
    "softmax: another axis": lambda: broken(
        sn.Softmax(), wrong_softmax(lambda dy, y: y * (dy - (dy * y).sum(axis=2, keepdims=True)))
    ),
    "identity: zeros": lambda: changed(sn.Identity(), dx=times(0)),
}  # fmt: skip


@pytest.mark.parametrize("name", SABOTAGED)
def test_a_sabotaged_backward_is_rejected(name):
    with pytest.raises(sn.GradientMismatch, match=X_WRONG):
        sn.gradcheck(SABOTAGED[name](), X)


# Identity -------------------------------------------------------------------------------------------------------------


def test_identity_hands_on_what_it_is_given_and_takes_any_arguments():
    layer = sn.Identity(54, unused_argument1=0.1)
    x, dy = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    assert layer(x) is x and layer.backward(dy) is dy
    with pytest.raises(RuntimeError, match="^Identity: nothing saved for backward"):
        layer.backward(dy)
