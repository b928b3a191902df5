"""Batch norm folded into the convolution before it: the same numbers, in a copy and on the way."""

import copy

import numpy as np
import pytest
from conformance import cut_small
from hypothesis import given
from hypothesis import strategies as st
from strategies import rngs

import scratchnet as sn
from models import MobileNetV2
from scratchnet.device import kind_of
from scratchnet.fused.inference import FoldedStep, depthwise_relu6

CONVOLUTIONS = [  # arguments of Conv2d, and (H, W)
    ((3, 7, 1), {}, (4, 5)),
    ((5, 3, 1), {"stride": 2}, (4, 5)),
    ((4, 4, 3), {"groups": 4, "padding": 1}, (6, 7)),
    ((4, 4, 3), {"groups": 4, "padding": 1, "stride": 2}, (7, 6)),
    ((4, 4, 3), {"groups": 4, "padding": 1}, (5, 23)),
    ((3, 6, 3), {"groups": 3, "padding": 1}, (5, 4)),
    ((3, 5, 3), {"padding": 1, "dilation": (1, 2)}, (5, 6)),
]


def random_state(net, rng):
    """Every parameter and statistic at random."""
    for name, value in net.state_dict().items():
        if "tracked" not in name:
            value[...] = rng.uniform(0.5, 2.0, value.shape) if "var" in name else rng.standard_normal(value.shape)
    return net


def network(rng, args, options, bias, relu6):
    layers = [sn.Conv2d(*args, **options, bias=bias, dtype=np.float64), sn.BatchNorm2d(args[1], dtype=np.float64)]
    return random_state(sn.Sequential(*layers, *([sn.ReLU6()] * relu6)), rng).eval()


def layer_by_layer(net, x):
    for layer in net:
        x = layer(x)
    return x


@given(rngs(), st.integers(2, 6), st.integers(2, 7), st.booleans())
def test_a_linear_layer_takes_the_batch_norm_behind_it(rng, ins, outs, bias):
    layers = sn.Linear(ins, outs, bias, dtype=np.float64), sn.BatchNorm1d(outs, dtype=np.float64)
    net = random_state(sn.Sequential(*layers, sn.ReLU(), sn.Linear(outs, 3, dtype=np.float64)), rng).eval()
    x = rng.standard_normal((3, ins))
    want, folded = layer_by_layer(net, x), net.fold_batch_norm()
    assert [(name, type(layer).__name__) for name, layer in folded.named_children()] == [
        ("0", "Linear"), ("2", "ReLU"), ("3", "Linear"),
    ]  # fmt: skip
    np.testing.assert_allclose(folded(x), want, rtol=0, atol=1e-12 * max(1, np.abs(want).max()))


def test_a_batch_norm_of_other_features_is_not_folded():
    net = sn.Sequential(sn.Linear(3, 5), sn.Flatten(), sn.BatchNorm1d(5), sn.Linear(5, 4), sn.BatchNorm1d(7)).eval()
    assert len(net.fold_batch_norm()) == len(net)


@given(rngs(), st.sampled_from(CONVOLUTIONS), st.integers(1, 3), st.booleans(), st.booleans())
def test_the_copy_and_the_step_are_the_layers(rng, case, n, bias, relu6):
    args, options, size = case
    net = network(rng, args, options, bias, relu6)
    x = sn.as_images(rng.standard_normal((args[0], *size, n)))
    want = layer_by_layer(net, x)
    folded = net.fold_batch_norm()
    for y in (net(x), folded(x)):
        np.testing.assert_allclose(y, want, rtol=0, atol=1e-12 * max(1, np.abs(want).max()))
    assert isinstance(net._plan.steps[0], FoldedStep) == isinstance(folded._plan.steps[0], FoldedStep) == relu6
    assert [name for name, _ in folded.named_children()] == ["0", "2"][: 1 + relu6]
    sn.use_kernels(False)
    np.testing.assert_allclose(folded(x), want, rtol=0, atol=1e-12 * max(1, np.abs(want).max()))
    sn.use_kernels(True)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("case", CONVOLUTIONS[2:5])
def test_the_kernel_is_the_function_when_cut_too(case, n, monkeypatch):
    cut_small(monkeypatch)
    (channels, *_), options, size = case
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((channels, *size, n)), rng.standard_normal((channels, 1, 3, 3))
    stride = (options.get("stride", 1),) * 2
    args = x, weight, rng.standard_normal(channels), stride, (1, 1), (1, 1)
    kernel = sn.kernels.choose(sn.kernels.Pair(depthwise_relu6), kind_of(x))
    assert kernel.version == "numpy"
    np.testing.assert_allclose(kernel.forward(*args), depthwise_relu6(*args), rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ["cifar", "blog", "imagenet"])
def test_a_whole_network_computes_the_same_without_batch_norm(variant):
    rng = np.random.default_rng(0)
    net = MobileNetV2(10, 0.25, variant, dtype=np.float64, rng=rng)
    x = rng.standard_normal((3, 3, 32, 32))
    for _ in range(3):
        net(x)  # running statistics that are none of zeros and ones
    before = copy.deepcopy(net.state_dict())
    folded = net.fold_batch_norm()
    assert net.training and not folded.training
    net.eval(save=True)  # every layer by itself
    want = net(x)
    np.testing.assert_allclose(folded(x), want, rtol=0, atol=1e-11 * np.abs(want).max())
    np.testing.assert_allclose(net.eval()(x), want, rtol=0, atol=1e-11 * np.abs(want).max())
    assert not [name for name, part in folded.named_modules() if isinstance(part, sn.BatchNorm2d)]
    assert folded.features[1].conv[0][0].bias is not None
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name], name)
    again = folded.fold_batch_norm()
    np.testing.assert_array_equal(again(x), folded(x))


def test_what_cannot_be_folded_stays():
    chains = [
        [sn.BatchNorm2d(3), sn.Conv2d(3, 4, 1)],  # before the convolution
        [sn.Conv2d(3, 4, 1), sn.ReLU6(), sn.BatchNorm2d(4)],  # not directly behind it
        [sn.Linear(3, 4), sn.Flatten(), sn.BatchNorm2d(4)],
    ]
    for chain in chains:
        folded = sn.Sequential(*chain).fold_batch_norm()
        assert [type(layer) for layer in folded] == [type(layer) for layer in chain]
    alone = sn.fold_batch_norm(sn.BatchNorm2d(3))
    assert isinstance(alone, sn.BatchNorm2d) and not alone.training


class TwoChains(sn.Module):
    """A network that is no chain, of two chains with one convolution in both."""

    def __init__(self):
        shared = sn.Conv2d(3, 3, 1)
        self.left = sn.Sequential(sn.Conv2d(3, 3, 1), sn.BatchNorm2d(3), shared, sn.BatchNorm2d(3))
        self.right = sn.Sequential({"a": sn.Residual(shared, sn.BatchNorm2d(3))})


def test_a_convolution_in_two_places_stays_and_chains_inside_other_modules_are_folded():
    folded = sn.fold_batch_norm(TwoChains())
    assert [name for name, _ in folded.left.named_children()] == ["0", "2", "3"]
    assert [name for name, _ in folded.right.a.named_children()] == ["0", "1"]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((2, 4, 3, 3)), r"^0 Conv2d: expected 3 input channels, got x of shape \(2, 4, 3, 3\)"),
        (np.ones((2, 3, 2, 3)), "^0 Conv2d: the kernel spans 3 pixels along H"),
        (np.ones((2, 3, 3, 3), np.float32), "^0 Conv2d: x is float32 and the parameters are float64"),
        (np.ones((0, 3, 3, 3)), "^0 Conv2d: x of shape .* is empty"),
    ],
)
def test_bad_input_is_refused_by_the_layer(x, message):
    net = network(np.random.default_rng(0), (3, 3, 3), {"groups": 3}, False, True)
    for any_of_them in (net, net.fold_batch_norm()):
        with pytest.raises((ValueError, TypeError), match=message):
            any_of_them(x)


def test_backward_says_that_nothing_was_saved():
    net = network(np.random.default_rng(0), (3, 5, 1), {}, False, True)
    y = net(np.ones((2, 3, 3, 4)))
    with pytest.raises(RuntimeError, match="^2 ReLU6: nothing saved for backward .the last forward ran in eval mode"):
        net.backward(y)
    net.eval(save=True)
    net.backward(net(np.ones((2, 3, 3, 4))))


def test_one_picture_has_the_same_logits_alone():
    rng = np.random.default_rng(0)
    net = MobileNetV2(10, 0.25, dtype=np.float64, rng=rng).eval()
    x = rng.standard_normal((3, 3, 32, 32))
    want = net(x)
    for k in range(3):
        np.testing.assert_allclose(net(x[k : k + 1]), want[k : k + 1], rtol=0, atol=1e-10 * np.abs(want).max())
