"""A 1×1 convolution, batch norm and ReLU6 as one step: the same as the three layers, and only where it may be."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import rngs

import scratchnet as sn
from scratchnet import kernels as table
from scratchnet.device import Kind, kind_of
from scratchnet.fused.pointwise import PointwiseStep, clipped_product
from scratchnet.fused.step import FusedStep
from scratchnet.kernels.cpu import pointwise
from scratchnet.parallel import cuts

SIZES = st.tuples(*(st.integers(1, most) for most in (4, 5, 4, 3)))  # N, C, H, W


def network(rng, channels, outs, dtype=np.float64, shift=0.5):
    """The three layers, with parameters that put numbers on both sides of each bound."""
    layers = (
        sn.Conv2d(channels, outs, 1, bias=False, dtype=dtype, rng=rng),
        sn.BatchNorm2d(outs, dtype=dtype),
        sn.ReLU6(),
    )
    layers[1].weight.data[...] = rng.uniform(1.5, 3.0, outs)
    layers[1].bias.data[...] = rng.uniform(0.0, 6.0, outs) + shift
    return sn.Sequential(*layers)


def everything(net, x, dy):
    """Y, dx, gradients and statistics of one step."""
    net.zero_grad()
    y = net(x)
    dx = net.backward(dy)
    return {"y": y, "dx": dx, **{n: p.grad.copy() for n, p in net.named_parameters()}, **net.state_dict()}


def is_fused(net):
    return isinstance(net._plan.steps[0], FusedStep)


@given(rngs(), SIZES, st.integers(0, 4))
def test_it_is_the_three_layers(rng, size, more):
    n, c, h, w = size
    x = rng.standard_normal((n + 1, c, h, w)) + rng.uniform(-3, 3, (1, c, 1, 1))
    net = network(rng, c, c + more)
    dy = rng.standard_normal((n + 1, c + more, h, w))
    twin = copy.deepcopy(net)
    one = everything(net, x, dy)
    sn.use_kernels(False)
    three = everything(twin, x, dy)
    sn.use_kernels(True)
    for name, value in three.items():
        scale = max(np.abs(value).max(), 1e-2)  # gradients that are truly 0 are judged by this
        assert np.abs(one[name] - value).max() <= 1e-10 * scale, name


@pytest.mark.parametrize("kernels", [True, False])
@given(rng=rngs())
def test_backward_is_the_derivative(kernels, rng):
    x, weight = rng.standard_normal((3, 4, 5, 2)), rng.standard_normal((7, 4, 1, 1))
    gamma, beta = rng.uniform(0.5, 1.5, 7), rng.uniform(1.0, 3.0, 7)

    with sn.use_kernels(kernels):
        pairs = {name: table.choose(PointwiseStep.plain, Kind("cpu", name)) for name in ("float64", "complex128")}

    def forward(x, *parameters):
        y, _, _, cache = pairs[x.dtype.name].forward(x, *parameters, 1e-5)
        return y, (x.dtype.name, cache)

    def backward(dy, saved):
        return pairs[saved[0]].backward(dy, saved[1])

    report = sn.gradcheck((forward, backward), (x, weight, gamma, beta), rng=rng)
    assert len(report.rows) == 5 and report.rtol == 1e-12


def test_sequential_fuses_in_training_and_not_in_eval_mode_nor_without_kernels():
    rng = np.random.default_rng(0)
    net, x = network(rng, 3, 5), rng.standard_normal((4, 3, 5, 2))
    net(x)
    assert is_fused(net) and net[1].num_batches_tracked == 1
    net.eval(save=True)(x)
    assert not is_fused(net)
    sn.use_kernels(False)
    net.train()(x)
    assert not is_fused(net)


def test_as_many_outputs_as_inputs_are_fused():
    rng = np.random.default_rng(0)
    net = network(rng, 3, 3)
    net(rng.standard_normal((4, 3, 5, 2)))
    assert is_fused(net)


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        (lambda: (sn.Conv2d(3, 5, 1), sn.BatchNorm2d(5), sn.ReLU6()), "a bias"),
        (lambda: (sn.Conv2d(3, 5, 1, stride=2, bias=False), sn.BatchNorm2d(5), sn.ReLU6()), "a stride"),
        (lambda: (sn.Conv2d(3, 5, 3, bias=False), sn.BatchNorm2d(5), sn.ReLU6()), "a window"),
        (lambda: (sn.Conv2d(3, 2, 1, bias=False), sn.BatchNorm2d(2), sn.ReLU6()), "fewer outputs than inputs"),
        (lambda: (sn.Conv2d(3, 5, 1, bias=False), sn.BatchNorm2d(5), sn.ReLU()), "another rectifier"),
        (lambda: (sn.Conv2d(3, 5, 1, bias=False), sn.BatchNorm2d(4), sn.ReLU6()), "channels that do not fit"),
    ],
)
def test_what_is_not_fused(layers, why):
    assert not PointwiseStep.matches(list(layers())), why


def test_a_dense_path_is_not_fused():
    net = network(np.random.default_rng(0), 3, 5)
    assert PointwiseStep.matches(list(net))
    net[0].path = "dense"
    assert not PointwiseStep.matches(list(net))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((2, 4, 3, 3)), r"^0 Conv2d: expected 3 input channels, got x of shape \(2, 4, 3, 3\)"),
        (np.ones((2, 3, 3)), r"^0 Conv2d: expected x of shape \(N, 3, H, W\)"),
        (np.ones((0, 3, 3, 3)), "^0 Conv2d: x of shape .* is empty"),
        (np.ones((2, 3, 3, 3), np.float32), "^0 Conv2d: x is float32 and the parameters are float64"),
        (np.ones((1, 3, 1, 1)), "^1 BatchNorm2d: needs more than one value per channel"),
        ([[1.0]], "^0 Conv2d: expected a NumPy or CuPy array"),
    ],
)
def test_bad_input_is_refused_by_the_layer_whose_rule_it_breaks(x, message):
    with pytest.raises((ValueError, TypeError), match=message):
        network(np.random.default_rng(0), 3, 5)(x)


def test_backward_is_one_shot_and_checks_dy():
    rng = np.random.default_rng(0)
    net, x = network(rng, 3, 5), rng.standard_normal((4, 3, 5, 2))
    y = net(x)
    with pytest.raises(ValueError, match=r"^2 ReLU6: expected dy of shape \(4, 5, 5, 2\), .* got \(4, 5, 2, 5\)"):
        net.backward(y.swapaxes(2, 3))
    net.backward(y)
    with pytest.raises(RuntimeError, match="^2 ReLU6: nothing saved for backward"):
        net.backward(y)


def test_float32_stays_float32_and_inputs_stay_as_they_are():
    rng = np.random.default_rng(0)
    net, x = network(rng, 3, 5, np.float32), rng.standard_normal((4, 3, 5, 2)).astype(np.float32)
    before = x.copy()
    for name, value in everything(net, x, np.ones((4, 5, 5, 2), np.float32)).items():
        assert value.dtype == (np.int64 if "tracked" in name else np.float32), name
    assert np.array_equal(x, before)


@pytest.mark.parametrize("channels", [(3, 5), (24, 144)])
def test_one_thread_and_two_give_the_same_bits_also_in_many_panels(channels, monkeypatch):
    many_panels(monkeypatch, 1 << 12)
    results = []
    for threads in (1, 2):
        sn.set_num_threads(threads)
        rng = np.random.default_rng(0)
        net, x = network(rng, *channels, np.float32), rng.standard_normal((16, channels[0], 9, 7)).astype(np.float32)
        dy = rng.standard_normal((16, channels[1], 9, 7)).astype(np.float32)
        results.append({name: value.tobytes() for name, value in everything(net, x, dy).items()})
    assert results[0] == results[1]


def many_panels(monkeypatch, panel_bytes):
    monkeypatch.setattr(pointwise, "PANEL_BYTES", panel_bytes)
    monkeypatch.setattr(cuts, "PARALLEL_WORK", 0)


def test_the_kernels_are_the_functions_in_panels_and_leave_what_they_read(monkeypatch):
    many_panels(monkeypatch, 1 << 10)
    rng = np.random.default_rng(0)
    x, weight = sn.as_images(rng.standard_normal((4, 11, 1, 47))), rng.standard_normal((9, 4, 1, 1))
    args = x, weight, rng.uniform(0.5, 2, 9), rng.uniform(0, 3, 9), 1e-3
    plain, kernel = PointwiseStep.plain, table.choose(PointwiseStep.plain, kind_of(x))
    assert kernel is not plain
    *ours, cache = kernel.forward(*args)
    *want, plain_cache = plain.forward(*args)
    dy = sn.as_images(rng.standard_normal((9, 11, 1, 47)))
    want += plain.backward(dy, plain_cache)
    for _ in range(2):  # the first call changed nothing
        for mine, other in zip([*ours, *kernel.backward(dy, cache)], want, strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-12 * np.abs(other).max())
    rows, scaled, beta = rng.standard_normal((4, 517)), rng.standard_normal((9, 4)), rng.uniform(0, 3, 9)
    got = table.choose(table.Pair(clipped_product), kind_of(rows)).forward(rows, scaled, beta)
    np.testing.assert_allclose(got, clipped_product(rows, scaled, beta), rtol=0, atol=1e-12)


# Digits ---------------------------------------------------------------------------------------------------------------

ULPS = 32 * 2.0**-23  # what either way may be off by chance, of the largest number of an array


def one_step(net, x, dy, fused):
    """Everything that a step gives: as a chain, which fuses, or layer by layer."""
    net.zero_grad()
    plan = sn.plan(net, fuse=fused)
    assert len(plan.steps) == (1 if fused else 3)
    y = plan.forward(x)
    dx = plan.backward(dy)
    return {"y": y, "dx": dx, **{n: p.grad.copy() for n, p in net.named_parameters()}, **net.state_dict()}


@given(
    rng=rngs(),
    size=st.tuples(st.integers(2, 8), st.integers(2, 9), st.integers(3, 6), st.integers(3, 5)),  # N, C, H, W
    more=st.integers(0, 9),
    scale=st.sampled_from([1e-4, 1e-2, 1, 10, 1e4]),
    shift=st.sampled_from([0, 1, 10, 1e4]),
    apart=st.sampled_from([None, 1, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 0]),
)
def test_it_is_at_most_four_times_as_far_from_float64_as_the_three_layers(rng, size, more, scale, shift, apart):
    """Also where all channels are nearly alike, and a variance is a small difference of large numbers."""
    n, c, h, w = size
    x = rng.standard_normal((c, h, w, n)) * (1 if apart is None else apart)
    x = sn.as_images((scale * (x + (apart is not None) * rng.standard_normal((h, w, n))) + shift).astype(np.float32))
    net = network(rng, c, c + more, np.float32)
    exact = copy.deepcopy(net).astype(np.float64)
    z = sn.as_matrix(exact[1](exact[0](x.astype(np.float64))))
    off_kinks = (abs(z) > 0.02) & (abs(z - 6) > 0.02)  # which side of a kink rounding puts z on is chance
    dy = sn.as_images(rng.standard_normal((c + more, h, w, n)) * off_kinks.reshape(-1, h, w, n))
    exact[1].load_state_dict({k: v for k, v in net[1].state_dict().items()})
    want = one_step(exact, x.astype(np.float64), dy, fused=False)
    results = [one_step(copy.deepcopy(net), x, dy.astype(np.float32), fused) for fused in (True, False)]
    for name, value in want.items():
        size = max(np.abs(value).max(), 1e-30)
        fused, three = (np.abs(result[name] - value).max() / size for result in results)
        assert fused <= 4 * three + ULPS, f"{name}: {fused:.1e} of the largest number, the three layers {three:.1e}"


def test_channels_that_are_nearly_alike_are_computed_by_the_three_layers():
    rng = np.random.default_rng(0)
    net, same = network(rng, 4, 9), rng.standard_normal((5, 1, 6, 4))
    net[0].weight.data[3] -= net[0].weight.data[3].mean()  # an output in which what all channels share cancels
    for apart, way in ((1.0, "_folded_backward"), (1e-3, "_three_layers_backward")):
        x = same + apart * rng.standard_normal((5, 4, 6, 4))
        with sn.use_kernels("numpy"):
            pair = table.choose(PointwiseStep.plain, kind_of(x))
        *_, (backward, _) = pair.forward(x, net[0].weight.data, net[1].weight.data, net[1].bias.data, 1e-5)
        assert backward.__name__ == way
