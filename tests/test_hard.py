"""LeakyReLU, Hardsigmoid, Hardswish: = reference, = PyTorch; the kinks one float at a time; the negative slope's rules."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sabotage import X_WRONG, broken, changed, times
from strategies import in_layout, kink_free, layouts, normal, rngs, shapes

import scratchnet as sn
from scratchnet import reference_elementwise as reference

SLOPES = (0.0, 0.01, 0.2, 1.0, 1.5)
HARD = {"hardsigmoid": sn.Hardsigmoid, "hardswish": sn.Hardswish}
EVERY_ONE = pytest.mark.parametrize("name", HARD)
EVERY_DTYPE = pytest.mark.parametrize("dtype", [np.float32, np.float64])
ANY_SHAPE = st.one_of(shapes(), shapes().map(lambda shape: shape[:2]))


def close(got, want, rtol=1e-14):
    assert got.shape == want.shape
    assert np.all(np.abs(got - want) <= rtol * np.maximum(1, np.abs(want)))


def drawn(rng, shape, integers):
    return rng.integers(-5, 6, shape).astype(np.float64) if integers else 3 * normal(rng, shape)  # integers: the kinks


@EVERY_ONE
@given(rng=rngs(), shape=ANY_SHAPE, x_layout=layouts(), dy_layout=layouts(), integers=st.booleans())
def test_is_the_reference(name, rng, shape, x_layout, dy_layout, integers):
    x, dy = in_layout(drawn(rng, shape, integers), x_layout), in_layout(normal(rng, shape), dy_layout)
    layer = HARD[name]()
    close(layer(x), reference.activation_forward(name, x))
    close(layer.backward(dy), reference.activation_backward(name, dy, x))


@given(rngs(), ANY_SHAPE, layouts(), layouts(), st.booleans(), st.sampled_from(SLOPES))
def test_leaky_relu_is_the_reference(rng, shape, x_layout, dy_layout, integers, slope):
    x, dy = in_layout(drawn(rng, shape, integers), x_layout), in_layout(normal(rng, shape), dy_layout)
    layer = sn.LeakyReLU(slope)
    np.testing.assert_array_equal(layer(x), reference.leaky_relu_forward(x, slope))
    np.testing.assert_array_equal(layer.backward(dy), reference.leaky_relu_backward(dy, x, slope))


def around(dtype, *kinks):
    """Each kink with the floats beside it; zeros of both signs; the smallest and the largest numbers."""
    tiny, largest = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    found = [0.0, -0.0, tiny, -tiny, 1000, -1000, largest, -largest, 2.5, -2.5]
    for kink in map(dtype, kinks):
        found += [kink, np.nextafter(kink, dtype(9)), np.nextafter(kink, dtype(-9))]
    return np.array(found, dtype)[None]


@EVERY_DTYPE
@pytest.mark.parametrize("name", [*HARD, *SLOPES[:4]])
def test_is_pytorchs_at_the_kinks_and_far_out(torch, name, dtype):
    """Subgradients too. Overflow would warn, which is an error here."""
    x = around(dtype, -3, 0, 3)
    dy = normal(np.random.default_rng(1), x.shape, dtype)
    peer = torch.from_numpy(x.copy()).requires_grad_()
    if name in HARD:
        layer, want = HARD[name](), getattr(torch.nn.functional, name)(peer)
    else:
        layer, want = sn.LeakyReLU(name), torch.nn.functional.leaky_relu(peer, name)
    want.backward(torch.from_numpy(dy))
    y, dx = layer(x), layer.backward(dy)
    assert y.dtype == dx.dtype == dtype
    rtol = 4 * float(np.finfo(dtype).eps)
    sixth = 4e-8 if name == "hardsigmoid" else 0  # PyTorch's 1/6 there has the digits of float32 in float64, too
    finite = np.isfinite(want.detach().numpy())  # PyTorch's Hardswish overflows at the largest number, ours does not
    np.testing.assert_allclose(y[finite], want.detach().numpy()[finite], rtol=rtol, atol=rtol)
    assert np.isfinite(y).all() and np.count_nonzero(~finite) <= 1
    np.testing.assert_allclose(dx, peer.grad.numpy(), rtol=max(rtol, sixth), atol=rtol)
    np.testing.assert_array_equal(dx == 0, peer.grad.numpy() == 0)


@EVERY_ONE
@given(rng=rngs(), shape=ANY_SHAPE)
def test_is_pytorchs_relu6_put_together(torch, name, rng, shape):
    x, dy = kink_free(rng, shape, kinks=(-3.0, 3.0)), normal(rng, shape)
    peer = torch.from_numpy(x.copy()).requires_grad_()
    want = torch.nn.functional.relu6(peer + 3) / 6 * (peer if name == "hardswish" else 1)
    want.backward(torch.from_numpy(dy))
    layer = HARD[name]()
    close(layer(x), want.detach().numpy())
    close(layer.backward(dy), peer.grad.numpy())


def test_by_hand():
    x, dy = np.array([[-4.0, -3, -1.5, 0, 1.5, 3, 4]]), np.array([[1.0, 2, 3, 6, 12, 24, 48]])
    for layer, y, dx in (
        (sn.Hardsigmoid(), [0, 0, 0.25, 0.5, 0.75, 1, 1], [0, 0, 0.5, 1, 2, 0, 0]),
        (sn.Hardswish(), [0, 0, -0.375, 0, 1.125, 3, 4], [0, 0, 0, 3, 12, 24, 48]),
        (sn.LeakyReLU(0.5), [-2, -1.5, -0.75, 0, 1.5, 3, 4], [0.5, 1, 1.5, 3, 12, 24, 48]),
    ):
        np.testing.assert_allclose(layer(x)[0], y, rtol=1e-15)
        np.testing.assert_allclose(layer.backward(dy)[0], dx, rtol=1e-15)
    assert sn.LeakyReLU().negative_slope == 0.01 and repr(sn.LeakyReLU(0.2)) == "LeakyReLU(negative_slope=0.2)"


@pytest.mark.parametrize("layer", [sn.LeakyReLU(), *(make() for make in HARD.values())], ids=repr)
def test_nan_stays_visible(layer):
    assert np.isnan(layer(np.array([[1.0, np.nan, -2.0]]))).tolist() == [[False, True, False]]
    assert np.isnan(layer.backward(np.array([[1.0, 1.0, np.nan]]))).tolist()[0][2]


@pytest.mark.parametrize("slope", [-0.01, float("inf"), float("nan")])
def test_a_slope_that_y_could_not_be_read_by_is_named(slope):
    with pytest.raises(
        ValueError, match=rf"^LeakyReLU: negative_slope must be a finite number of at least 0, got {slope!r}$"
    ):
        sn.LeakyReLU(slope)


def test_a_numpy_scalar_as_slope_keeps_float32():
    layer, x = sn.LeakyReLU(np.float64(0.3)), -np.ones((2, 3), np.float32)
    assert layer(x).dtype == layer.backward(x).dtype == np.float32


@given(rngs(), shapes())
def test_a_slope_of_0_is_relu_and_of_1_the_identity(rng, shape):
    x, dy = normal(rng, shape), normal(rng, shape)
    zero, relu, one = sn.LeakyReLU(0.0), sn.ReLU(), sn.LeakyReLU(1.0)
    assert np.array_equal(zero(x), relu(x)) and np.array_equal(zero.backward(dy), relu.backward(dy))
    assert np.array_equal(one(x), x) and np.array_equal(one.backward(dy), dy)


# Sabotaged ------------------------------------------------------------------------------------------------------------

HARD_X = kink_free(np.random.default_rng(12), (2, 4, 5, 3), kinks=(-3.0, 0.0, 3.0))


def wrong_hard(formula):
    def backward(self, dy):
        _, rows = self.take_cache(dy)
        return formula(dy, sn.as_images(rows, dy))

    return backward


def wrong_leaky(formula):
    def backward(self, dy):
        y, slope = self.take_cache(dy)
        return formula(dy, y, slope)

    return backward


SABOTAGED = {
    "leaky: a relu": (sn.LeakyReLU, wrong_leaky(lambda dy, y, s: dy * (y > 0))),
    "leaky: not masked": (sn.LeakyReLU, wrong_leaky(lambda dy, y, s: dy)),
    "leaky: sides exchanged": (sn.LeakyReLU, wrong_leaky(lambda dy, y, s: np.where(y > 0, s * dy, dy))),
    "leaky: sign of the slope": (sn.LeakyReLU, wrong_leaky(lambda dy, y, s: np.where(y > 0, dy, -s * dy))),
    "hardsigmoid: a sixth forgotten": (sn.Hardsigmoid, wrong_hard(lambda dy, x: dy * (np.abs(x) < 3))),
    "hardsigmoid: not masked": (sn.Hardsigmoid, wrong_hard(lambda dy, x: dy / 6)),
    "hardsigmoid: ReLU6's bounds": (sn.Hardsigmoid, wrong_hard(lambda dy, x: dy / 6 * ((x > 0) & (x < 6)))),
    "hardswish: the first factor": (sn.Hardswish, wrong_hard(lambda dy, x: dy * np.clip((x + 3) / 6, 0, 1))),
    "hardswish: a half forgotten": (
        sn.Hardswish, wrong_hard(lambda dy, x: dy * np.where(x > 3, 1, np.where(x < -3, 0, x / 3))),
    ),
    "hardswish: nothing above": (
        sn.Hardswish, wrong_hard(lambda dy, x: dy * np.where(np.abs(x) < 3, x / 3 + 0.5, 0)),
    ),
    "hardswish: no end above": (sn.Hardswish, wrong_hard(lambda dy, x: dy * np.where(x < -3, 0, x / 3 + 0.5))),
}  # fmt: skip


@pytest.mark.parametrize("name", SABOTAGED)
def test_a_sabotaged_backward_is_rejected(name):
    make, backward = SABOTAGED[name]
    sn.gradcheck(make(), HARD_X)
    with pytest.raises(sn.GradientMismatch, match=X_WRONG):
        sn.gradcheck(broken(make(), backward), HARD_X)
    with pytest.raises(sn.GradientMismatch, match=X_WRONG):
        sn.gradcheck(changed(make(), dx=times(1.001)), HARD_X)
