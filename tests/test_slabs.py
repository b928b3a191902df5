"""Slabs: every channel once, the same bits on any number of threads, and nothing that a layer can tell from no slabs.

The pictures here are small, so `small_slabs` makes the slabs smaller still.
"""

import copy
import re
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, rngs, shapes

import scratchnet as sn
from scratchnet import slabs


@contextmanager
def small_slabs(nbytes=256):
    """As if a cache held so little; 0: no slabs at all, since nothing is large enough."""
    sizes = {"SLAB_BYTES": nbytes, "PARALLEL_BYTES": nbytes // 4} if nbytes else {"PARALLEL_BYTES": 1 << 40}
    with mock.patch.multiple(slabs, **sizes):
        yield


def channel_major(x):
    return np.ascontiguousarray(x.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2)


def picture(rng, shape, dtype=np.float64):
    return channel_major(normal(rng, shape, dtype))


# How an activation is cut ---------------------------------------------------------------------------------------------


@given(shapes(most=9, elements=3000), st.sampled_from([16, 100, 256, 4096]), st.sampled_from([1, 2, 3, 16]))
def test_cut_covers_every_channel_once_and_does_not_ask_for_threads(shape, nbytes, threads):
    x = channel_major(np.zeros(shape))
    with small_slabs(nbytes):
        sn.set_num_threads(threads)
        rows = slabs.cut(x)
        sn.set_num_threads(2)
        assert rows == slabs.cut(x)
    covered = [c for part in rows for c in range(shape[1])[part]]
    assert covered == list(range(shape[1]))
    sizes = [part.stop - part.start for part in rows]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    if len(rows) > 1:
        assert len(rows) % 2 == 0 or len(rows) == shape[1]  # an equal share for two cores
        assert (
            len(rows) == shape[1] or max(sizes) * x.nbytes / shape[1] <= nbytes + x.nbytes / shape[1]
        )  # fits the cache


def test_cut_leaves_whole_what_is_small_or_not_channel_major(monkeypatch):
    monkeypatch.setattr(slabs, "SLAB_BYTES", 4 << 20)
    monkeypatch.setattr(slabs, "PARALLEL_BYTES", 1 << 20)
    large = np.zeros((8, 16, 64, 64), np.float32)
    assert slabs.cut(large) == [slice(0, 16)]
    assert slabs.cut(channel_major(large)) == [slice(0, 8), slice(8, 16)]
    assert slabs.cut(channel_major(np.zeros((8, 16, 64, 640), np.float32))) == [
        slice(0, 2), slice(2, 5), slice(5, 8), slice(8, 10), slice(10, 13), slice(13, 16)
    ]  # fmt: skip
    small = channel_major(np.zeros((8, 16, 63, 64), np.float32))
    assert slabs.cut(small) == slabs.cut(small, 10) == [slice(0, 16)]
    assert len(slabs.cut(small, 11)) == 2  # small, but more is to be done with it
    assert slabs.cut(channel_major(large), 9) == [slice(0, 16)]
    assert slabs.cut(channel_major(np.zeros((8, 1, 640, 64), np.float32))) == [slice(0, 1)]


@given(st.integers(1, 50), st.integers(1, 60))
def test_split(size, count):
    parts = slabs.split(size, count)
    assert [k for part in parts for k in range(size)[part]] == list(range(size))
    lengths = [part.stop - part.start for part in parts]
    assert len(parts) == min(size, count) and min(lengths) >= 1 and max(lengths) - min(lengths) <= 1


def test_neighbours_that_are_channelwise_are_joined():
    depthwise, dense = sn.Conv2d(4, 4, 3, groups=4), sn.Conv2d(4, 4, 1)
    layers = [dense, sn.BatchNorm2d(4), sn.ReLU6(), depthwise, dense, sn.AvgPool2d(2), sn.Flatten()]
    steps = slabs.join_runs(enumerate(layers))
    assert [[name for name, _ in step.layers] for step in steps] == [[0], [1, 2, 3], [4], [5], [6]]
    assert [step.channelwise for step in steps] == [False, True, False, True, False]


# The same as without --------------------------------------------------------------------------------------------------


@st.composite
def chains(draw, channels):
    """A function of a seed that builds a chain of channelwise layers, the same one every time."""
    kinds = draw(st.lists(st.sampled_from(["norm", "relu", "relu6", "depthwise", "pool"]), min_size=1, max_size=5))
    kinds += draw(st.sampled_from([[], ["global"]]))

    def build(seed, dtype=np.float64):
        rng = np.random.default_rng(seed)
        make = {
            "norm": lambda: sn.BatchNorm2d(channels, dtype=dtype),
            "relu": sn.ReLU,
            "relu6": sn.ReLU6,
            "depthwise": lambda: sn.Conv2d(channels, channels, 3, padding=1, groups=channels, dtype=dtype, rng=rng),
            "pool": lambda: sn.AvgPool2d(2, 1, 1),
            "global": sn.GlobalAvgPool2d,
        }
        net = sn.Sequential(*(make[kind]() for kind in kinds))
        for parameter in net.parameters():
            parameter.data[...] = rng.uniform(0.5, 2, parameter.data.shape)
        return net

    build.__qualname__ = f"chain of {', '.join(kinds)}"
    return build


def everything(net, x, dy, frozen, nbytes, threads):
    """Y, dx, and every gradient, parameter and buffer after one step."""
    net.eval(save=True) if frozen else net.train()
    sn.set_num_threads(threads)
    with small_slabs(nbytes):
        y, dx = net(x), net.backward(dy)
    return [y, dx, *(p.grad for p in net.parameters()), *net.state_dict().values()]


@given(st.data(), rngs(), shapes(least=2, most=9, elements=700, per_channel=8), st.integers(0, 99), st.booleans())
def test_slabs_change_nothing_but_rounding(data, rng, shape, seed, frozen):
    build, x = data.draw(chains(shape[1])), picture(rng, shape)
    dy = picture(rng, build(seed)(x).shape)
    whole = everything(build(seed), x, dy, frozen, 0, 2)
    cut = [everything(build(seed), x, dy, frozen, 256, threads) for threads in (1, 2, 3)]
    for want, first, *others in zip(whole, *cut, strict=True):
        assert first.shape == want.shape and first.dtype == want.dtype
        assert np.abs(first - want).max() <= 1e-12 * max(np.abs(want).max(), np.abs(dy).max())
        for other in others:  # on 1, 2 and 3 threads: not a bit of difference
            assert np.array_equal(first, other)


@given(rngs())
def test_a_cut_network_stays_float32_and_channel_major(rng):
    net = sn.Sequential(sn.BatchNorm2d(6), sn.ReLU6(), sn.Conv2d(6, 6, 3, padding=1, groups=6))
    with small_slabs():
        x = picture(rng, (3, 6, 5, 4), np.float32)
        y = net(x)
        assert len(net._steps[0].caches) > 1
        dx = net.backward(y)
    for array in (y, dx):
        assert array.dtype == np.float32 and np.shares_memory(sn.as_matrix(array), array)


def test_a_step_of_large_pictures_is_cut_and_counted_once():
    """With the sizes as they are: one step, one more batch tracked, whatever the number of slabs."""
    x = picture(np.random.default_rng(0), (16, 16, 64, 64), np.float32)
    norm = sn.BatchNorm2d(16)
    net = sn.Sequential(norm, sn.ReLU6())
    counter = norm.num_batches_tracked
    y = net(x)
    assert len(net._steps[0].caches) == 2 and norm.num_batches_tracked == 1 and norm.num_batches_tracked is counter
    np.testing.assert_allclose(norm.running_mean, 0.1 * x.mean(axis=(0, 2, 3)), atol=1e-6)
    net.backward(y)
    np.testing.assert_allclose(norm.bias.grad, (y * (y > 0) * (y < 6)).sum(axis=(0, 2, 3)), rtol=1e-4)


def test_a_slab_of_a_layer_is_a_view_of_it():
    norm = sn.BatchNorm2d(5, dtype=np.float64)
    first, second = norm.slab(slice(0, 2)), norm.slab(slice(2, 5))
    assert np.shares_memory(second.weight.data, norm.weight.data) and second.weight.data.shape == (3,)
    second.weight.grad += 2
    second.running_mean += 3
    assert norm.weight.grad.tolist() == [0, 0, 2, 2, 2] and norm.running_mean.tolist() == [0, 0, 3, 3, 3]
    for part in (first, second):
        part(picture(np.random.default_rng(0), (2, part.weight.data.size, 3, 4)))
    assert norm.num_batches_tracked == 1 and second.num_batches_tracked == 1 and norm._cache is None
    conv = sn.Conv2d(6, 6, 3, groups=6, bias=False, dtype=np.float64)
    part = conv.slab(slice(1, 4))
    assert (part.in_channels, part.out_channels, part.groups, part.bias) == (3, 3, 3, None)
    assert np.shares_memory(part.weight.data, conv.weight.data) and conv.groups == 6


def test_eval_saves_nothing_in_slabs_either():
    with small_slabs():
        net = sn.Sequential({"a": sn.Sequential(sn.ReLU(), sn.BatchNorm2d(6, dtype=np.float64))}).eval()
        y = net(picture(np.random.default_rng(0), (3, 6, 5, 4)))
        assert len(net._steps[0].caches) > 1
        with pytest.raises(
            RuntimeError, match=r"^a\.1 BatchNorm2d: nothing saved for backward \(the last forward ran in eval"
        ):
            net.backward(y)


# Errors ---------------------------------------------------------------------------------------------------------------


class Shut(sn.Module):
    """A channelwise layer that refuses."""

    channelwise = True

    def __init__(self, when):
        self.when = when

    def forward(self, x):
        if self.when == "forward":
            raise ValueError("Shut: no")
        return x

    def backward(self, dy):
        raise ValueError("Shut: no")


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("when", ["forward", "backward"])
def test_an_error_inside_a_slab_names_its_layer(when, threads):
    sn.set_num_threads(threads)
    net = sn.Sequential({"features": sn.Residual({"conv": sn.Sequential(sn.ReLU(), Shut(when), sn.ReLU6())})})
    x = picture(np.random.default_rng(0), (3, 8, 5, 4))
    with small_slabs(), pytest.raises(ValueError, match=r"^features\.conv\.1 Shut: no$"):
        y = net(x)
        assert len(net.features._steps[0].caches) > 1
        net.backward(y)


def test_one_forward_serves_one_backward_in_slabs_too():
    net, x = sn.Sequential(sn.ReLU(), sn.ReLU6()), picture(np.random.default_rng(0), (3, 8, 5, 4))
    with small_slabs():
        net(x)
        net.backward(x)
        with pytest.raises(RuntimeError, match=r"^1 ReLU6: nothing saved for backward \(no forward came before\)"):
            net.backward(x)


@pytest.mark.parametrize("channels", [6, 10])
@pytest.mark.parametrize("kind", ["BatchNorm2d", "Conv2d"])
def test_another_number_of_channels_is_refused_before_it_is_cut(kind, channels):
    """Too few for x would be cut short in silence, and a message must show x's own shape."""
    layers = {
        "BatchNorm2d": sn.BatchNorm2d(channels, dtype=np.float64),
        "Conv2d": sn.Conv2d(channels, channels, 3, groups=channels, dtype=np.float64),
    }
    with small_slabs():
        net = sn.Sequential(sn.ReLU(), layers[kind])
        with pytest.raises(
            ValueError, match=rf"^1 {kind}: expected {channels} input channels, got x of shape \(3, 8, 5, 4\)$"
        ):
            net(picture(np.random.default_rng(0), (3, 8, 5, 4)))


@pytest.mark.parametrize("shape", [(3, 12, 5, 4), (3, 6, 5, 4), (3, 8, 4, 5)])
def test_another_shape_of_dy_is_refused_before_it_is_cut(shape):
    """Too many channels would come back as memory that nobody wrote."""
    with small_slabs():
        net = sn.Sequential(sn.ReLU(), sn.ReLU6())
        net(picture(np.random.default_rng(0), (3, 8, 5, 4)))
        with pytest.raises(
            ValueError, match=rf"^1 ReLU6: expected dy of shape \(3, 8, 5, 4\), .*, got {re.escape(str(shape))}$"
        ):
            net.backward(picture(np.random.default_rng(0), shape))


@pytest.mark.parametrize("x", [[[1.0]], np.ones(3), np.float64(1), None])
def test_what_is_no_activation_is_refused_by_the_first_layer(x):
    with pytest.raises((TypeError, ValueError), match="^0 ReLU: expected"):
        sn.Sequential(sn.ReLU())(x)


@pytest.mark.parametrize("switch", ["eval", "train", "astype", "to"])
def test_a_switch_between_forward_and_backward_drops_the_slabs_caches(switch):
    """As without slabs; after astype the old views would take the gradients, and nobody would see them."""
    with small_slabs():
        net = sn.Sequential(sn.BatchNorm2d(8, dtype=np.float64), sn.ReLU6())
        y = net(picture(np.random.default_rng(0), (3, 8, 5, 4)))
        {"eval": net.eval, "train": net.train, "astype": lambda: net.astype(np.float64), "to": lambda: net.to("cpu")}[
            switch
        ]()
        with pytest.raises(RuntimeError, match="^1 ReLU6: nothing saved for backward"):
            net.backward(y)


def test_a_deepcopy_between_forward_and_backward_takes_its_own_gradients():
    with small_slabs():
        net = sn.Sequential(sn.BatchNorm2d(8, dtype=np.float64), sn.ReLU6())
        y = net(picture(np.random.default_rng(0), (3, 8, 5, 4)))
        twin = copy.deepcopy(net)
        net.backward(y), twin.backward(y)
    assert net[0].bias.grad.all()
    assert np.array_equal(twin[0].bias.grad, net[0].bias.grad)
