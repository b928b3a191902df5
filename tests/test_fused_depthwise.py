"""A depthwise convolution, batch norm and ReLU6 as one step: the same as the three layers, and only where it may be."""

import copy

import numpy as np
import pytest
from conformance import CPU_KERNELS
from hypothesis import given
from hypothesis import strategies as st
from strategies import rngs
from test_fused_pointwise import everything, is_fused

import scratchnet as sn
from scratchnet import kernels as table
from scratchnet.device import Kind, kind_of
from scratchnet.fused.depthwise import DepthwiseStep
from scratchnet.parallel import cuts

GEOMETRIES = [  # kernel, stride, padding, dilation, (H, W): narrow, a whole map, wide, and what none of the networks has
    (3, 1, 1, 1, (7, 9)),
    (3, 2, 1, 1, (8, 7)),
    (3, 1, 1, 1, (3, 4)),
    (3, 1, 1, 1, (6, 23)),
    ((2, 3), (1, 2), (0, 1), (2, 1), (5, 6)),
]


def network(rng, channels, kernel, stride, padding, dilation, dtype=np.float64):
    """The three layers, with parameters that put numbers on both sides of each bound."""
    layers = (
        sn.Conv2d(channels, channels, kernel, stride, padding, dilation, channels, bias=False, dtype=dtype, rng=rng),
        sn.BatchNorm2d(channels, dtype=dtype),
        sn.ReLU6(),
    )
    layers[1].weight.data[...] = rng.uniform(1.5, 3.0, channels)
    layers[1].bias.data[...] = rng.uniform(0.5, 6.5, channels)
    return sn.Sequential(*layers)


@pytest.fixture
def many_slabs(monkeypatch):
    monkeypatch.setattr(cuts, "SLAB_BYTES", 1 << 10)
    monkeypatch.setattr(cuts, "PARALLEL_WORK", 0)


@pytest.mark.usefixtures("many_slabs")
@pytest.mark.parametrize("kernels", CPU_KERNELS)
@given(rng=rngs(), n=st.integers(2, 4), c=st.integers(2, 5), geometry=st.sampled_from(GEOMETRIES))
def test_it_is_the_three_layers(kernels, rng, n, c, geometry):
    sn.use_kernels(kernels)
    *geometry, size = geometry
    x = sn.as_images(rng.standard_normal((c, *size, n)) + rng.uniform(-3, 3, (c, 1, 1, 1)))
    net = network(rng, c, *geometry)
    twin = copy.deepcopy(net)
    dy = sn.as_images(rng.standard_normal(net(x).transpose(1, 2, 3, 0).shape))
    one = everything(net, x, dy)
    sn.use_kernels(False)
    twin(x)  # as often as the other, for the running statistics
    three = everything(twin, x, dy)
    for name, value in three.items():
        scale = max(np.abs(value).max(), 1e-2)  # gradients that are truly 0 are judged by this
        assert np.abs(one[name] - value).max() <= 1e-10 * scale, name


@pytest.mark.usefixtures("many_slabs")
@pytest.mark.parametrize("kernels", [False, *CPU_KERNELS])
@given(rng=rngs(), geometry=st.sampled_from(GEOMETRIES))
def test_backward_is_the_derivative(kernels, rng, geometry):
    kernel, stride, padding, dilation, size = geometry
    conv = network(rng, 3, *geometry[:-1])[0]
    x, weight = rng.standard_normal((3, *size, 4)), conv.weight.data
    gamma, beta = rng.uniform(0.5, 1.5, 3), rng.uniform(1.0, 3.0, 3)

    with sn.use_kernels(kernels):
        kinds = [Kind("cpu", name) for name in ("float64", "complex128")]
        pairs = {kind.dtype: table.choose(DepthwiseStep.plain, kind, window=conv.window) for kind in kinds}

    def forward(x, *parameters):
        y, _, _, cache = pairs[x.dtype.name].forward(x, *parameters, 1e-5, *conv.geometry)
        return y, (x.dtype.name, cache)

    def backward(dy, saved):
        return pairs[saved[0]].backward(dy, saved[1])

    report = sn.gradcheck((forward, backward), (x, weight, gamma, beta), rng=rng, samples=20)
    assert len(report.rows) == 5 and report.rtol == 1e-12


@pytest.mark.usefixtures("many_slabs")
@pytest.mark.parametrize("kernels", CPU_KERNELS)
def test_the_kernels_are_the_functions_and_leave_what_they_read(kernels):
    sn.use_kernels(kernels)
    rng = np.random.default_rng(0)
    net = network(rng, 5, 3, 1, 1, 1)
    x = rng.standard_normal((5, 7, 9, 4))
    args = x, net[0].weight.data, net[1].weight.data, net[1].bias.data, 1e-5, (1, 1), (1, 1), (1, 1)
    plain, kernel = DepthwiseStep.plain, table.choose(DepthwiseStep.plain, kind_of(x), window=net[0].window)
    assert kernel.version == kernels
    *ours, cache = kernel.forward(*args)
    *want, plain_cache = plain.forward(*args)
    dy = rng.standard_normal(ours[0].shape)
    want += plain.backward(dy, plain_cache)
    for _ in range(2):  # the first call changed nothing
        for mine, other in zip([*ours, *kernel.backward(dy, cache)], want, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-12)


def test_sequential_fuses_in_training_and_not_in_eval_mode_nor_without_kernels():
    rng = np.random.default_rng(0)
    net, x = network(rng, 3, 3, 1, 1, 1), rng.standard_normal((4, 3, 5, 2))
    net(x)
    assert isinstance(net._plan.steps[0], DepthwiseStep) and net[1].num_batches_tracked == 1
    net.eval(save=True)(x)
    assert not is_fused(net)
    sn.use_kernels(False)
    net.train()(x)
    assert not is_fused(net)


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        (lambda: (sn.Conv2d(3, 3, 3, groups=3), sn.BatchNorm2d(3), sn.ReLU6()), "a bias"),
        (lambda: (sn.Conv2d(3, 6, 3, groups=3, bias=False), sn.BatchNorm2d(6), sn.ReLU6()), "two filters a channel"),
        (lambda: (sn.Conv2d(3, 3, 3, bias=False), sn.BatchNorm2d(3), sn.ReLU6()), "a dense convolution"),
        (lambda: (sn.Conv2d(3, 3, 3, groups=3, bias=False), sn.BatchNorm2d(3), sn.ReLU()), "another rectifier"),
        (lambda: (sn.Conv2d(3, 3, 3, groups=3, bias=False), sn.BatchNorm2d(4), sn.ReLU6()), "channels that do not fit"),
    ],
)
def test_what_is_not_fused(layers, why):
    assert not DepthwiseStep.matches(list(layers())), why


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((2, 4, 3, 3)), r"^0 Conv2d: expected 3 input channels, got x of shape \(2, 4, 3, 3\)"),
        (np.ones((2, 3, 3)), r"^0 Conv2d: expected x of shape \(N, 3, H, W\)"),
        (np.ones((0, 3, 3, 3)), "^0 Conv2d: x of shape .* is empty"),
        (np.ones((2, 3, 2, 3)), "^0 Conv2d: the kernel spans 3 pixels along H"),
        (np.ones((2, 3, 3, 3), np.float32), "^0 Conv2d: x is float32 and the parameters are float64"),
        (np.ones((1, 3, 3, 3)), "^1 BatchNorm2d: needs more than one value per channel"),
    ],
)
def test_bad_input_is_refused_by_the_layer_whose_rule_it_breaks(x, message):
    with pytest.raises((ValueError, TypeError), match=message):
        network(np.random.default_rng(0), 3, 3, 1, 0, 1)(x)


@pytest.mark.usefixtures("many_slabs")
@pytest.mark.parametrize("kernels", CPU_KERNELS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_one_thread_and_two_give_the_same_bits(geometry, kernels):
    sn.use_kernels(kernels)
    *geometry, size = geometry
    results = []
    for threads in (1, 2):
        sn.set_num_threads(threads)
        rng = np.random.default_rng(0)
        net = network(rng, 13, *geometry, np.float32)
        x = sn.as_images(rng.standard_normal((13, *size, 16)).astype(np.float32))
        dy = sn.as_images(rng.standard_normal(net(x).transpose(1, 2, 3, 0).shape).astype(np.float32))
        results.append({name: value.tobytes() for name, value in everything(net, x, dy).items()})
    assert results[0] == results[1]


def test_a_channelwise_layer_behind_it_is_a_step_of_its_own():
    rng = np.random.default_rng(0)
    net = sn.Sequential(*network(rng, 3, 3, 1, 1, 1), sn.AvgPool2d(2))
    net(rng.standard_normal((4, 3, 6, 4)))
    assert [len(step.layers) for step in net._plan.steps] == [3, 1]
    net.backward(rng.standard_normal((4, 3, 3, 2)))
