"""A stem, batch norm and ReLU6 as one step: the same as the three layers, and its backward the derivative."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import rngs
from test_compiled import needs_numba
from test_fused_pointwise import everything

import scratchnet as sn
from scratchnet import kernels as table
from scratchnet.device import Kind
from scratchnet.fused.dense import DenseStep

GEOMETRIES = [  # kernel, stride, padding, dilation, (H, W)
    (3, 1, 1, 1, (7, 9)),
    (3, 2, 1, 1, (8, 7)),
    (1, 2, 0, 1, (5, 6)),
    (3, 1, 1, 1, (11, 3)),  # more rows than parts
    ((2, 3), (3, 2), (0, 2), (2, 1), (5, 6)),
]


def network(rng, kernel, stride, padding, dilation, dtype=np.float64):
    """The three layers, with parameters that put numbers on both sides of each bound."""
    conv = sn.Conv2d(3, 5, kernel, stride, padding, dilation, bias=False, dtype=dtype, rng=rng)
    net = sn.Sequential(conv, sn.BatchNorm2d(5, dtype=dtype), sn.ReLU6())
    net[1].weight.data[...] = rng.uniform(1.5, 3.0, 5)
    net[1].bias.data[...] = rng.uniform(0.5, 6.5, 5)
    return net


@needs_numba
@given(rng=rngs(), n=st.integers(2, 4), geometry=st.sampled_from(GEOMETRIES))
def test_it_is_the_three_layers(rng, n, geometry):
    *geometry, size = geometry
    x = sn.as_images(rng.standard_normal((3, *size, n)) + rng.uniform(-3, 3, (3, 1, 1, 1)))
    net = network(rng, *geometry)
    twin = copy.deepcopy(net)
    dy = rng.standard_normal(net(x).shape)
    assert isinstance(net._plan.steps[0], DenseStep)
    one = everything(net, x, dy)
    with sn.use_kernels(False):
        twin(x)  # as often as the other, for the running statistics
        assert len(twin._plan.steps) == 3
        three = everything(twin, x, dy)
    for name, value in three.items():
        scale = max(np.abs(value).max(), 1e-2)  # gradients that are truly 0 are judged by this
        assert np.abs(one[name] - value).max() <= 1e-10 * scale, name


@pytest.mark.parametrize("which", [False, pytest.param("compiled", marks=needs_numba)])
@given(rng=rngs(), geometry=st.sampled_from(GEOMETRIES))
def test_backward_is_the_derivative(which, rng, geometry):
    conv = network(rng, *geometry[:-1])[0]
    x, weight = rng.standard_normal((3, *geometry[-1], 4)), conv.weight.data
    gamma, beta = rng.uniform(0.5, 1.5, 5), rng.uniform(1.0, 3.0, 5)
    with sn.use_kernels(which):
        kinds = [Kind("cpu", name) for name in ("float64", "complex128")]
        facts = {"groups": 1, "terms": conv.multiply_adds}
        pairs = {kind.dtype: table.choose(DenseStep.plain, kind, **facts) for kind in kinds}
    assert pairs["float64"].version == (which or "plain")

    def forward(x, *parameters):
        y, _, _, cache = pairs[x.dtype.name].forward(x, *parameters, 1e-5, *conv.geometry)
        return y, (x.dtype.name, cache)

    def backward(dy, saved):
        return pairs[saved[0]].backward(dy, saved[1])

    report = sn.gradcheck((forward, backward), (x, weight, gamma, beta), rng=rng, samples=20)
    assert len(report.rows) == 5 and report.rtol == 1e-12
