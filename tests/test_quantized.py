"""8 bits: grids, the straight-through gradient, and whole numbers that are those of the simulation, all of them."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, rngs

import scratchnet as sn
from models import MobileNetV2
from scratchnet.array import as_maps
from scratchnet.data.cifar10 import MEAN, STD
from scratchnet.data.shapes import draw_shapes
from scratchnet.layers.activation import relu6_backward, relu6_forward
from scratchnet.layers.conv import conv2d_backward, conv2d_forward
from scratchnet.layers.linear import linear_backward
from scratchnet.quantized import IntegerNetwork, Quantize, __main__, calibrate, grid_of, prepare, quantize
from scratchnet.quantized.integer import Join, Mean, Product
from scratchnet.quantized.scheme import multiplier, quantized, row_numbers, row_steps, snapped
from scratchnet.quantized.simulated import QuantizedConv2d, QuantizedLinear
from scratchnet.training.batches import Batches

RANGES = st.tuples(st.floats(-50, 50), st.floats(-50, 50)).map(sorted).filter(lambda ends: ends[1] - ends[0] > 1e-3)


# Grids ------------------------------------------------------------------------------------------------------------------


@given(rngs(), RANGES)
def test_a_number_within_the_ends_is_off_by_half_a_step_and_zero_by_nothing(rng, ends):
    layer = Quantize(*ends)
    low, high = layer.grid.ends
    assert low <= 0 <= high and low <= min(0, ends[0]) + layer.step and high >= max(0, ends[1]) - layer.step
    x = sn.as_images(rng.uniform(low, high, (3, 5, 4, 2)))
    x[0, 0, 0, 0] = 0
    y = layer(x)
    assert y[0, 0, 0, 0] == 0
    assert np.abs(y - x).max() <= layer.step * (0.5 + 1e-9)
    assert len(np.unique(np.rint(y / layer.step))) <= 256
    np.testing.assert_array_equal(layer(y), y)  # what lies on the grid stays


def test_behind_relu6_nothing_is_measured():
    assert Quantize(0.0, 6.0).grid == (6 / 255, 0)
    assert grid_of(2.0, 3.0) == (3 / 255, 0) and grid_of(0.0, 0.0).step > 0
    assert grid_of(-6.0, 0.0) == (6 / 255, 255)


@given(rngs())
def test_a_multiplier_is_odd_and_next_to_the_factor(rng):
    factors = np.exp(rng.uniform(-25, 10, 50))
    m, n = multiplier(factors)
    assert (m % 2 == 1).all() and (m > 1 << 23).all() and (m < 1 << 24).all()
    np.testing.assert_allclose(np.ldexp(m.astype(float), -n), factors, rtol=2.0**-22)
    for k in (-1, 1):  # found again from what rounding makes of it
        again = multiplier(snapped(factors) * (1 + k * 2.0**-52))
        np.testing.assert_array_equal(again, (m, n))


@given(rngs(), st.sampled_from([(5, 3, 2, 4), (4, 7)]))
def test_weights_have_a_step_a_row_and_the_largest_is_127(rng, shape):
    weight, bias = rng.standard_normal(shape) * np.exp(rng.uniform(-5, 5, (shape[0], *[1] * (len(shape) - 1)))), None
    weight[1] = 0
    steps = row_steps(weight, 0.02, 0.03)
    numbers = row_numbers(weight, steps).reshape(shape[0], -1)
    assert (np.abs(numbers).max(axis=1) == np.where(np.arange(shape[0]) == 1, 0, 127)).all()
    rounded, bias = quantized(weight, rng.standard_normal(shape[0]), 0.02, 0.03)
    columns = steps.reshape(-1, *[1] * (len(shape) - 1))
    assert (np.abs(rounded - weight) <= columns * (0.5 + 1e-6)).all()
    whole = bias / (steps * 0.02)
    np.testing.assert_allclose(whole, np.rint(whole), atol=1e-9)


# The gradient that goes straight through --------------------------------------------------------------------------------


@given(rngs())
def test_behind_relu6_the_gradient_is_its_own(rng):
    x, dy = sn.as_images(rng.uniform(-3, 9, (4, 5, 3, 2))), sn.as_images(normal(rng, (4, 5, 3, 2)))
    layer = Quantize(0.0, 6.0)
    y = layer(x)
    assert np.abs(y - x.clip(0, 6)).max() <= layer.step * (0.5 + 1e-9)
    np.testing.assert_array_equal(layer.backward(dy), relu6_backward(dy, relu6_forward(x)[1]))


def test_the_gradients_of_weights_are_those_of_the_rounded_layers():
    rng = np.random.default_rng(3)
    net = sn.Sequential(
        sn.Conv2d(3, 4, 3, 2, 1, rng=rng), sn.ReLU6(), sn.GlobalAvgPool2d(), sn.Flatten(), sn.Linear(4, 5)
    )
    net.load_state_dict({key: rng.standard_normal(value.shape) for key, value in net.state_dict().items()})
    x, dy = normal(rng, (6, 3, 8, 5)), normal(rng, (6, 5))
    net.astype(np.float64)
    simulated = quantize(net, [(x, None)]).train()
    simulated.zero_grad()
    y = simulated(x)
    conv, linear = (
        next(v for _, v in simulated.named_modules() if type(v) is kind) for kind in (QuantizedConv2d, QuantizedLinear)
    )
    grids = [layer for _, layer in simulated.named_modules() if isinstance(layer, Quantize)]
    dx = simulated.backward(dy)

    # the same by hand, through the functions of the layers' files
    x1 = grids[0].grid.numbers(x) * grids[0].step - grids[0].grid.zero * grids[0].step
    weight, bias = conv.multiplied()
    z, cache = conv2d_forward(x1, weight, bias, *conv.geometry, 1, "dense")
    h = grids[1].grid.numbers(z) * grids[1].step
    pooled = h.mean(axis=(2, 3))
    seen = (grids[2].grid.numbers(pooled) - grids[2].grid.zero) * grids[2].step
    weight2, bias2 = linear.multiplied()
    np.testing.assert_allclose(y, seen @ weight2.T + bias2, atol=1e-12)
    dseen, dweight2, dbias2 = linear_backward(dy, (np.ascontiguousarray(seen.T), weight2, True))
    low, high = grids[2].grid.ends
    dh = np.broadcast_to((dseen * ((pooled > low) & (pooled < high)))[:, :, None, None] / (h[0, 0].size), h.shape)
    dx1, dweight, dbias = conv2d_backward(dh * ((z > 0) & (z < 6)), cache)
    low, high = grids[0].grid.ends
    for got, want in (
        (linear.weight.grad, dweight2), (linear.bias.grad, dbias2), (conv.weight.grad, dweight), (conv.bias.grad, dbias),
        (dx, dx1 * ((x > low) & (x < high))),
    ):  # fmt: skip
        assert np.abs(want).max() > 0.01
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_fine_tuning_makes_the_loss_smaller():
    rng = np.random.default_rng(0)
    shapes, _ = draw_shapes(seed=0)
    shapes = shapes._replace(images=shapes.images[:320], labels=shapes.labels[:320])
    net = sn.Sequential(
        sn.Conv2d(3, 8, 3, 2, 1, bias=False, rng=rng), sn.BatchNorm2d(8), sn.ReLU6(), sn.GlobalAvgPool2d(), sn.Flatten(),
        sn.Linear(8, 10, rng=rng),
    )  # fmt: skip
    batches = Batches(shapes, 32, seed=0, mean=MEAN, std=STD)
    for x, _ in batches.epoch(0):
        net(x)
    simulated = quantize(net, [next(iter(batches.epoch(0)))])

    def loss():
        criterion = sn.CrossEntropyLoss()
        return np.mean([criterion(simulated(x), labels) for x, labels in batches.epoch(0)])

    before = loss()
    assert __main__.fine_tune(simulated, batches, 3, 0.05) is simulated and not simulated.training
    assert loss() < before - 0.1


# Whole numbers ------------------------------------------------------------------------------------------------------------


def trained_a_little(net, rng, shape):
    """With weights and statistics that are not those of the first day."""
    for name, value in net.state_dict().items():
        if name.endswith(("weight", "bias")):
            value += 0.3 * value.std() * rng.standard_normal(value.shape) + 0.05 * rng.standard_normal(value.shape)
    for _, module in net.named_modules():
        if isinstance(module, sn.BatchNorm2d):
            module.momentum = 1.0  # its statistics are then those of the last batch
    for _ in range(2):
        net(normal(rng, shape).astype(np.float32))
    return net.eval()


def network(kind, rng):
    if kind == "by hand":  # every kind of convolution, no activation, two sums
        inner = [sn.Conv2d(6, 6, 3, 1, 1, groups=2, rng=rng), sn.BatchNorm2d(6)]
        return sn.Sequential(
            sn.Conv2d(3, 6, (3, 2), (2, 1), (1, 0), rng=rng), sn.ReLU(), sn.Residual(*inner),
            sn.Residual(sn.Conv2d(6, 6, 1, rng=rng), sn.ReLU6(), sn.Conv2d(6, 6, 3, 1, 1, groups=6, rng=rng)),
            sn.GlobalAvgPool2d(), sn.Flatten(), sn.Linear(6, 5, rng=rng), sn.Linear(5, 4, rng=rng),
        )  # fmt: skip
    net = MobileNetV2(7, 0.1, kind.removesuffix(" ReLU"), rng=rng)
    if kind.endswith("ReLU"):
        for _, module in net.named_modules():
            for name, child in module.named_children():
                if type(child) is sn.ReLU6:
                    setattr(module, name, sn.ReLU())
    return net


@pytest.mark.parametrize("kind", ["cifar", "imagenet", "blog", "cifar ReLU", "by hand"])
@pytest.mark.parametrize("seed", range(3))
def test_every_whole_number_is_the_simulations(kind, seed, monkeypatch):
    rng = np.random.default_rng(seed)
    shape = (5, 3, 32, 33) if kind == "by hand" else (5, 3, 64, 64) if kind == "imagenet" else (5, 3, 32, 32)
    net = trained_a_little(network(kind, rng), rng, shape)
    simulated = quantize(net, [(normal(rng, shape).astype(np.float32), None)]).astype(np.float64)
    numbers, forward = [], Quantize.forward

    def recording(layer, x):
        y = forward(layer, x)
        numbers.append(np.rint(as_maps(y) / layer.step + layer.grid.zero))
        return y

    monkeypatch.setattr(Quantize, "forward", recording)
    x = normal(rng, shape)
    logits = simulated(x)
    whole = IntegerNetwork(simulated)
    found = whole.numbers(whole.start.numbers(as_maps(x)).astype(np.int32))
    assert len(found) == len(numbers) + 1 and all(q.dtype == np.int32 for q in found[:-1])
    for part, q, want in zip([None, *(p for p in whole.parts if len(p))], found, numbers, strict=False):
        assert (q.reshape(want.shape) != want).sum() == 0, part
        assert len(np.unique(q)) > (20 if q.size > 2000 else 3)  # it does say something
    np.testing.assert_allclose(whole(x), logits, rtol=1e-12, atol=1e-13)
    assert {type(p) for p in whole.parts} >= {Product, Mean} | ({Join} if kind != "blog" else {Product})
    assert whole.nbytes < sum(v.nbytes for v in net.state_dict().values()) / 2


@pytest.mark.parametrize("kind", ["cifar", "by hand"])
def test_the_quotient_of_two_steps_is_a_multiplier(kind):
    rng = np.random.default_rng(4)
    net = trained_a_little(network(kind, rng), rng, (4, 3, 32, 33))
    parts = IntegerNetwork(quantize(net, [(normal(rng, (4, 3, 32, 33)).astype(np.float32), None)])).parts
    pairs = [(part.a, part.y) for part in parts if isinstance(part, Join)]
    pairs += [(part.b, part.y) for part in parts if isinstance(part, Join)]
    pairs += [(part.x, part.y) for part in parts if isinstance(part, Mean)]
    assert len(pairs) > 4
    for before, behind in pairs:
        factor = before.step / behind.step
        assert abs(snapped(factor) / factor - 1) < 1e-15  # 2^-24 where nobody sees to it


def test_eight_bits_say_nearly_what_floats_say():
    rng = np.random.default_rng(1)
    net = trained_a_little(network("by hand", rng), rng, (9, 3, 32, 33))
    x = normal(rng, (9, 3, 32, 33)).astype(np.float32)
    want = net(x)
    got = IntegerNetwork(quantize(net, [(x, None)]))(x)
    assert got.dtype == np.float32
    assert np.abs(got - want).max() < 0.03 * np.abs(want).max()
    assert 0 < np.abs(got - want).max()


def test_the_network_itself_stays_as_it_is():
    rng = np.random.default_rng(2)
    net = MobileNetV2(10, 0.1, rng=rng)
    before = copy.deepcopy(net.state_dict())
    x = normal(rng, (2, 3, 32, 32)).astype(np.float32)
    quantize(net, [(x, None)])
    assert net.training
    for key, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


# What is refused ---------------------------------------------------------------------------------------------------------


def test_errors_say_what_is_wrong():
    rng = np.random.default_rng(0)
    net = sn.Sequential(sn.Conv2d(3, 4, 1, rng=rng), sn.ReLU6(), sn.AvgPool2d(2), sn.Conv2d(4, 2, 1, rng=rng))
    with pytest.raises(ValueError, match=r"^2 AvgPool2d: cannot be computed in 8 bits"):
        prepare(net)
    with pytest.raises(ValueError, match="no convolution and no linear layer"):
        prepare(sn.Sequential(sn.ReLU6()))
    simulated = prepare(sn.Sequential(sn.Conv2d(3, 4, 1, rng=rng), sn.ReLU6(), sn.Conv2d(4, 2, 1, rng=rng)))
    with pytest.raises(RuntimeError, match=r"input_grid Quantize: the range of its numbers is not known.*calibrate"):
        simulated(normal(rng, (2, 3, 4, 5)).astype(np.float32))
    with pytest.raises(ValueError, match="no batch came"):
        calibrate(simulated, [])
    with pytest.raises(ValueError, match=r"expected what quantize\(…\) makes, got Sequential"):
        IntegerNetwork(sn.Sequential(sn.Conv2d(3, 4, 1, rng=rng)))
    calibrate(simulated, [(normal(rng, (2, 3, 4, 5)).astype(np.float32), None)])
    simulated[1].bias.data[1] = 1e8
    with pytest.raises(ValueError, match="0 QuantizedConv2d: its sums may come to .* 32 bits do not hold"):
        IntegerNetwork(simulated)


def test_the_command_refuses_what_is_no_checkpoint(tmp_path, capsys):
    path = tmp_path / "x.npz"
    path.write_bytes(b"none")
    assert __main__.main([str(path), "--data", str(tmp_path)]) == 2
    assert "its first bytes are those of no format that is read" in capsys.readouterr().err
