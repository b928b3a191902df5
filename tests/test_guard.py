"""Numbers that are no numbers: the first layer that makes one is named, forward or backward."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scratchnet as sn
from models import MobileNetV2
from scratchnet.branches import Residual
from scratchnet.training.guard import bad_parameter, first_bad_layer

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 3, 32, 32)).astype(np.float32)
LABELS = np.array([1, 5, 0, 9])


def network():
    return MobileNetV2(10, 0.1, rng=np.random.default_rng(1))


def leaves(model):
    return [(name, layer) for name, layer in model.named_modules() if not isinstance(layer, sn.Sequential)]


NAMES = [name for name, _ in leaves(network())]
WITH_WEIGHTS = [key for key, parameter in network().named_parameters() if parameter.data.ndim]


def test_a_sound_step_is_none():
    assert first_bad_layer(network(), sn.CrossEntropyLoss(), X, LABELS) is None


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(st.sampled_from(WITH_WEIGHTS), st.sampled_from([np.nan, np.inf, -np.inf]), st.randoms())
def test_a_bad_number_among_the_weights_names_their_layer(key, value, random):
    model = network()
    data = dict(model.named_parameters())[key].data.reshape(-1)
    data[random.randrange(data.size)] = value
    layer = key.rpartition(".")[0]
    assert first_bad_layer(model, sn.CrossEntropyLoss(), X, LABELS).startswith(f"the output of {layer} (")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(st.sampled_from(NAMES), st.sampled_from([np.nan, np.inf]))
def test_a_layer_whose_backward_goes_bad_is_named_and_none_after_it(name, value):
    model = network()
    layer = dict(model.named_modules())[name]
    right = layer.backward

    def wrong(dy):
        dx = right(dy).copy()
        dx[(0,) * dx.ndim] = value
        return dx

    layer.backward = wrong
    found = first_bad_layer(model, sn.CrossEntropyLoss(), X, LABELS)
    assert found == f"the gradient that comes back through {name} ({layer.name})"


def test_a_parameter_s_gradient_and_a_shortcut_and_the_loss_are_named():
    model = network()
    linear = model[-1][-1]
    right = linear.backward

    def wrong(dy):
        dx = right(dy)
        linear.bias.grad[2] = np.nan
        return dx

    linear.backward = wrong
    assert first_bad_layer(model, sn.CrossEntropyLoss(), X, LABELS) == "the gradient of classifier.1.bias (Linear)"

    large = np.full((2, 3, 4, 4), 3e38, np.float32)
    shortcut = sn.Sequential({"stem": Residual(sn.ReLU()), "pool": sn.GlobalAvgPool2d(), "flat": sn.Flatten()})
    with np.errstate(all="ignore"):
        assert (
            first_bad_layer(shortcut, sn.CrossEntropyLoss(), large, LABELS[:2] % 3) == "the output of stem (Residual)"
        )

    def broken(logits, labels):
        return np.float32(np.nan)

    assert first_bad_layer(network(), broken, X, LABELS) == "the loss"


def test_the_first_bad_gradient_is_the_last_in_order_and_an_overflowing_sum_is_none():
    parameters = list(network().named_parameters())
    assert bad_parameter(parameters) is None
    parameters[4][1].data[...] = -np.inf
    assert bad_parameter(parameters) == parameters[4][0]
    parameters[4][1].data[...] = 0
    for _, parameter in parameters:
        parameter.grad[...] = 3e38
    with np.errstate(over="ignore"):
        assert bad_parameter(parameters) is None
    parameters[3][1].grad[0] = np.inf
    parameters[7][1].grad[0] = np.nan
    with np.errstate(over="ignore"):
        assert bad_parameter(parameters) == f"the gradient of {parameters[7][0]}"
