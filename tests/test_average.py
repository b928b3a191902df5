"""The running average of the weights: its formula, its place in the network, its state."""

import numpy as np
import pytest
from strategies import normal

import scratchnet as sn
from scratchnet.training.average import WeightAverage


def network(seed=0):
    rng = np.random.default_rng(seed)
    return sn.Sequential(sn.Conv2d(3, 4, 1, rng=rng), sn.BatchNorm2d(4), sn.ReLU6())


def change(model, rng):
    for parameter in model.parameters():
        parameter.data += normal(rng, parameter.data.shape).astype(np.float32)
    model(normal(rng, (2, 3, 4, 5)).astype(np.float32))  # the running statistics, and their counter


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_it_is_the_formula_for_every_weight_and_statistic(decay):
    rng, model = np.random.default_rng(1), network()
    average = WeightAverage(model, decay)
    want = {key: value.astype(np.float64) for key, value in model.state_dict().items()}
    for t in range(1, 15):
        change(model, rng)
        average.update()
        d = min(decay, (1 + t) / (10 + t))
        want = {key: d * want[key] + (1 - d) * value for key, value in model.state_dict().items()}
    got = average.state_dict()
    assert got.pop("updates") == 14
    assert int(got.pop("1.num_batches_tracked")) == 14, "a counter is copied"
    for key, value in got.items():
        np.testing.assert_allclose(value, want[key], rtol=1e-5, atol=1e-6)
        assert value.dtype == np.float32


def test_within_the_block_the_network_has_the_average_and_afterwards_its_own_bits():
    rng, model = np.random.default_rng(2), network()
    average = WeightAverage(model, 0.9)
    change(model, rng)
    average.update()
    own = {key: value.copy() for key, value in model.state_dict().items()}
    arrays = [parameter.data for parameter in model.parameters()]
    with pytest.raises(KeyError), average.in_place():
        for key, value in model.state_dict().items():
            np.testing.assert_array_equal(value, average.state_dict()[key])
        raise KeyError("also when the block fails")
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value, own[key])
    assert all(parameter.data is array for parameter, array in zip(model.parameters(), arrays, strict=True))


def test_it_goes_on_from_its_state_with_the_same_bits():
    rng, model = np.random.default_rng(3), network()
    one = WeightAverage(model, 0.9)
    change(model, rng)
    one.update()
    other = WeightAverage(network(5), 0.9)
    other.load_state_dict(one.state_dict())
    other.model.load_state_dict(model.state_dict())
    for average in (one, other):
        change(average.model, np.random.default_rng(4))
        average.update()
    for key, value in one.state_dict().items():
        np.testing.assert_array_equal(value, other.state_dict()[key])


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        WeightAverage(network(), decay)
