"""Dropout: one mask for both ways, the mean kept, nothing done in eval mode, and one source of randomness."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import in_layout, layouts, normal, rngs, shapes

import scratchnet as sn
from scratchnet import reference
from scratchnet.layers.dropout import dropout_backward, dropout_forward

P = st.sampled_from([0.1, 0.3, 0.5, 0.9])


def nonzero(rng, shape, dtype=np.float64):
    """Numbers that are not 0, so that a 0 in the output was dropped."""
    return (rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape)).astype(dtype)


def close(got, want, rtol=1e-12):
    assert got.shape == np.shape(want)
    assert np.max(np.abs(got - want)) <= rtol * np.max(np.abs(want), initial=0.0)


@given(rngs(), shapes(), P, layouts(), layouts())
def test_functions_are_the_reference(rng, shape, p, x_layout, dy_layout):
    x, dy, keep = (
        in_layout(nonzero(rng, shape), x_layout),
        in_layout(nonzero(rng, shape), dy_layout),
        rng.random(shape) >= p,
    )
    y, cache = dropout_forward(x, keep, p)
    close(y, reference.dropout_forward(x, keep, p))
    close(dropout_backward(dy, cache), reference.dropout_backward(dy, keep, p))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(rngs(), shapes(), P)
def test_one_mask_for_both_ways_and_what_is_kept_grows_by_1_over_1_minus_p(dtype, rng, shape, p):
    layer = sn.Dropout(p, rng=rng)
    x, dy = nonzero(rng, shape, dtype), nonzero(rng, shape, dtype)
    y, dx = layer(x), layer.backward(dy)
    assert y.dtype == dx.dtype == dtype
    assert np.array_equal(y == 0, dx == 0)
    kept = y != 0
    rtol = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(y[kept], x[kept] / (1 - p), rtol=rtol)
    np.testing.assert_allclose(dx[kept], dy[kept] / (1 - p), rtol=rtol)


@given(rngs(), P)
def test_mean_is_kept_and_a_fraction_p_is_dropped(rng, p):
    """Each within six standard deviations of a mean of so many independent draws."""
    x = rng.uniform(0.5, 2, (13, 7, 30, 29))
    y = sn.Dropout(p, rng=rng)(x)
    dropped = (y == 0).mean()
    assert abs(dropped - p) <= 6 * (p * (1 - p) / x.size) ** 0.5
    assert abs(y.mean() - x.mean()) <= 6 * ((x * x).mean() * p / (1 - p) / x.size) ** 0.5
    for axes in [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)]:  # every number by itself: no row or channel goes as one
        fractions = (y == 0).mean(axis=axes)
        assert np.abs(fractions - p).max() <= 6 * (p * (1 - p) * fractions.size / x.size) ** 0.5


@given(rngs(), shapes(), P, st.booleans())
def test_eval_is_the_identity_and_draws_nothing(rng, shape, p, save):
    layer = sn.Dropout(p, rng=rng).eval(save=save)
    x, dy = nonzero(rng, shape), nonzero(rng, shape)
    before = rng.bit_generator.state
    y = layer(x)
    assert y.dtype == x.dtype and np.array_equal(y, x)
    assert rng.bit_generator.state == before
    if save:
        assert np.array_equal(layer.backward(dy), dy)
    with pytest.raises(RuntimeError, match="^Dropout: nothing saved for backward"):
        layer.backward(dy)


@given(rngs(), shapes())
def test_p_0_drops_nothing_and_draws_nothing(rng, shape):
    layer = sn.Dropout(0.0, rng=rng)
    x, dy = nonzero(rng, shape), nonzero(rng, shape)
    before = rng.bit_generator.state
    assert np.array_equal(layer(x), x)
    assert np.array_equal(layer.backward(dy), dy)
    assert rng.bit_generator.state == before


@given(st.integers(0, 2**32 - 1), shapes(least=2), P)
def test_the_generator_is_the_only_source(seed, shape, p):
    """Same seed, same masks, step by step; NumPy's global generator is neither read nor moved."""
    rngs = np.random.default_rng(seed), np.random.default_rng(seed)
    first, second = (sn.Dropout(p, rng=rng) for rng in rngs)
    x, global_state = np.ones(shape), np.random.get_state()[1].tolist()
    state = rngs[0].bit_generator.state
    for _ in range(3):
        assert np.array_equal(first(x), second(x))
        assert rngs[0].bit_generator.state != state
        assert rngs[0].bit_generator.state == rngs[1].bit_generator.state
        state = rngs[0].bit_generator.state
    assert np.random.get_state()[1].tolist() == global_state


def test_every_forward_draws_anew_and_a_state_put_back_repeats():
    rng = np.random.default_rng(5)
    layer, x = sn.Dropout(0.5, rng=rng), np.ones((3, 4, 5, 6))
    state = rng.bit_generator.state
    first, second = layer(x), layer(x)
    assert not np.array_equal(first, second)
    rng.bit_generator.state = state
    assert np.array_equal(layer(x), first)
    other = sn.Dropout(0.5, rng=rng)  # two layers on one generator take turns
    assert np.array_equal(other(x), second)


@given(st.integers(0, 2**32 - 1), shapes(), layouts(), P)
def test_the_mask_depends_on_the_shape_alone(seed, shape, layout, p):
    """Not on the memory layout, the dtype, or the values."""
    x = in_layout(nonzero(np.random.default_rng(0), shape), layout)
    want = sn.Dropout(p, rng=np.random.default_rng(seed))(np.ones(shape)) != 0
    assert np.array_equal(sn.Dropout(p, rng=np.random.default_rng(seed))(x) != 0, want)
    assert np.array_equal(sn.Dropout(p, rng=np.random.default_rng(seed))(x.astype(np.float32)) != 0, want)


@pytest.mark.parametrize("threads", [1, 3])
def test_nor_on_cuts_and_threads(threads):
    """A network large enough to be cut, with dropout among the layers that are cut."""
    sn.set_num_threads(threads)
    x = normal(np.random.default_rng(2), (8, 10, 40, 41), np.float32)
    net = sn.Sequential(sn.ReLU(), sn.Dropout(0.4, rng=np.random.default_rng(3)), sn.ReLU6())
    y = net(x)
    keep = np.random.default_rng(3).random(x.shape) >= 0.4
    np.testing.assert_allclose(y, np.clip(np.maximum(x, 0) * keep / np.float32(0.6), 0, 6), rtol=1e-6)


@pytest.mark.parametrize("p", [1, 1.0, 1.5, -0.1, float("nan"), float("inf")])
def test_p_out_of_range_is_named(p):
    with pytest.raises(ValueError, match=rf"^Dropout: p must be in \[0, 1\), got {p!r}$"):
        sn.Dropout(p, rng=np.random.default_rng(0))


def test_half_is_dropped_unless_said_otherwise():
    assert sn.Dropout(rng=np.random.default_rng(0)).p == 0.5


@pytest.mark.parametrize("rng", [7, np.random.RandomState(0), np.random])
def test_anything_but_a_generator_is_refused(rng):
    with pytest.raises(TypeError, match=rf"^Dropout: rng must be a numpy.random.Generator, got {type(rng).__name__}$"):
        sn.Dropout(0.5, rng=rng)


def test_without_a_generator_each_layer_draws_a_fresh_one():
    x, (first, second) = np.ones((2, 3, 8, 9)), (sn.Dropout(0.5), sn.Dropout(0.5))
    assert first.rng is not second.rng
    masks = [layer(x) != 0 for layer in (first, second, first)]
    assert not np.array_equal(masks[0], masks[1]) and not np.array_equal(masks[0], masks[2])
    assert all(0.1 < mask.mean() < 0.9 for mask in masks)


def test_integers_and_a_wrong_dy_are_refused():
    layer = sn.Dropout(0.5, rng=np.random.default_rng(0))
    with pytest.raises(TypeError, match="^Dropout: expected floating-point x, got int64"):
        layer(np.ones((2, 3), np.int64))
    layer(np.ones((2, 3, 4, 5)))
    with pytest.raises(
        ValueError, match=r"^Dropout: expected dy of shape \(2, 3, 4, 5\), as forward returned, got \(5,\)"
    ):
        layer.backward(np.ones(5))


def test_a_numpy_scalar_as_p_keeps_float32():
    y = sn.Dropout(np.float64(0.25), rng=np.random.default_rng(0))(np.ones((2, 3, 4, 5), np.float32))
    assert y.dtype == np.float32
