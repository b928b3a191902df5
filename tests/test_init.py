"""Initial weights: fans that count groups, the variance that He's argument asks for, one seed one weight."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import geometries, rngs

import scratchnet as sn
from scratchnet.layers.init import fan_in_uniform, fan_out_normal, fans, he_normal

SCHEMES = pytest.mark.parametrize(("scheme", "which"), [(he_normal, 0), (fan_out_normal, 1)], ids=["he", "fan_out"])


def test_pytorch_s_default_is_uniform_up_to_one_over_the_root_of_fan_in():
    weight = fan_in_uniform((40, 6, 3, 3), 2, np.random.default_rng(0))
    assert weight.dtype == np.float32 and 0.99 * 54**-0.5 < abs(weight).max() <= 54**-0.5
    assert weight.std() == pytest.approx(162**-0.5, rel=0.03) and abs(weight.mean()) < 0.005
    again = fan_in_uniform((40, 6, 3, 3), 2, np.random.default_rng(0), np.float64)
    np.testing.assert_array_equal(weight, again.astype(np.float32))


@given(geometries(stride=(1, 1), dilation=(1, 1)))
def test_fans_count_the_terms_of_a_sum(g):
    """With ones for everything, an output is its number of terms (away from padding), and so is a pixel's gradient."""
    big = (3 * g.kernel[0], 3 * g.kernel[1])
    layer = sn.Conv2d(g.in_channels, g.out_channels, g.kernel, groups=g.groups, bias=False, dtype=np.float64)
    layer.weight.data[...] = 1
    y = layer(np.ones((1, g.in_channels, *big)))
    dx = layer.backward(np.ones(y.shape))
    fan_in, fan_out = fans(g.weight_shape, g.groups)
    assert (y == fan_in).all()
    assert (dx[:, :, big[0] // 2, big[1] // 2] == fan_out).all()


@pytest.mark.parametrize(("shape", "groups", "want"), [
    ((6, 4), 1, (4, 6)),  # linear
    ((8, 4, 3, 5), 1, (4 * 15, 8 * 15)),
    ((12, 2, 3, 1), 4, (2 * 3, 3 * 3)),
    ((10, 1, 3, 3), 10, (9, 9)),  # depthwise
    ((20, 1, 3, 3), 10, (9, 18)),
])  # fmt: skip
def test_fans_by_hand(shape, groups, want):
    assert fans(shape, groups) == want


@SCHEMES
@given(rng=rngs(), outs=st.integers(1, 4), ins=st.integers(1, 5), groups=st.sampled_from([1, 3, 40]))
def test_weights_have_mean_0_and_variance_2_over_fan(scheme, which, rng, outs, ins, groups):
    """Within six standard deviations, of a mean of n numbers (σ/√n) and of a variance (σ²·√(2/n))."""
    shape = (40 * 3 * outs, ins, 4, 5)
    weight = scheme(shape, groups, rng)
    assert weight.shape == shape
    variance = 2 / fans(shape, groups)[which]
    assert abs(weight.mean(dtype=np.float64)) <= 6 * (variance / weight.size) ** 0.5
    assert abs((np.float64(weight) ** 2).mean() / variance - 1) <= 6 * (2 / weight.size) ** 0.5
    assert (
        abs((np.abs(weight) < variance**0.5).mean() - 0.6827) <= 6 * 0.4655 / weight.size**0.5
    )  # a normal distribution


@SCHEMES
@given(seed=st.integers(0, 2**32 - 1), g=geometries())
def test_one_seed_one_weight_in_every_dtype_up_to_rounding(scheme, which, seed, g):
    double = scheme(g.weight_shape, g.groups, np.random.default_rng(seed), np.float64)
    single = scheme(g.weight_shape, g.groups, np.random.default_rng(seed), np.float32)
    assert (double.dtype, single.dtype) == (np.float64, np.float32)
    assert np.array_equal(single, double.astype(np.float32))
    assert np.array_equal(double, scheme(g.weight_shape, g.groups, np.random.default_rng(seed), np.float64))


def test_without_a_generator_every_weight_is_new_and_the_default_is_float32():
    first, second = he_normal((3, 4)), he_normal((3, 4))
    assert first.dtype == np.float32 and not np.array_equal(first, second)


def test_the_generator_moves_on():
    rng = np.random.default_rng(0)
    assert not np.array_equal(he_normal((3, 4), 1, rng), he_normal((3, 4), 1, rng))


def test_which_layer_uses_which():
    """Conv2d by its fan out, with its groups; Linear by its fan in; both from the generator and in the dtype given."""
    conv = sn.Conv2d(6, 9, (2, 4), groups=3, dtype=np.float64, rng=np.random.default_rng(4))
    assert np.array_equal(conv.weight.data, fan_out_normal((9, 2, 2, 4), 3, np.random.default_rng(4), np.float64))
    linear = sn.Linear(6, 9, dtype=np.float64, rng=np.random.default_rng(4))
    assert np.array_equal(linear.weight.data, he_normal((9, 6), 1, np.random.default_rng(4), np.float64))


@pytest.mark.parametrize("depthwise", [False, True])
def test_signals_neither_fade_nor_blow_up(depthwise):
    """What it is for: ten layers of convolution and ReLU keep E[x²] and E[dx²]; √groups off: 32⁻¹⁰."""
    rng = np.random.default_rng(8)
    channels, groups = 32, 32 if depthwise else 1
    net = sn.Sequential(*(
        layer
        for _ in range(10)
        for layer in (sn.Conv2d(channels, channels, 3, padding=1, groups=groups, dtype=np.float64, rng=rng), sn.ReLU())
    ))  # fmt: skip
    x = rng.standard_normal((4, channels, 24, 23))
    y = net(x)
    dx = net.backward(rng.standard_normal(y.shape))
    assert 1e-3 < (y * y).mean() < 1e3 and 1e-3 < (dx * dx).mean() < 1e3


@SCHEMES
def test_one_group_unless_said_otherwise(scheme, which):
    assert fans((6, 4, 2, 3)) == fans((6, 4, 2, 3), 1)
    one, default = (scheme((6, 4, 2, 3), *groups, rng=np.random.default_rng(0)) for groups in ((1,), ()))
    assert np.array_equal(one, default)
