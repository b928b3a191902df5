"""Adaptive pooling and upsampling: = reference, = PyTorch, backward = derivative, and what means and copies promise."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import assume, given, target
from hypothesis import strategies as st
from strategies import normal, pairs, rngs, shapes

import scratchnet as sn
from scratchnet import reference_windows as reference
from scratchnet.layers.resize import between, bins, nearest, resize_backward, resize_forward

MODES = [("nearest", None), ("bilinear", None), ("bilinear", False), ("bilinear", True)]
FACTORS = st.floats(0.3, 4) | st.integers(1, 4) | st.integers(2, 40).map(lambda tenths: tenths / 10)
CHECKS = pytest.mark.parametrize(
    ("method", "rtol", "samples"),
    [("complex-step", 1e-12, None), ("four-point", 1e-9, 8), ("finite-difference", 1e-7, 8)],
)


def close(*compared, rtol=1e-12):
    """(got, want): equal shapes, and equal values to rtol of the largest number, or of 1 where it is smaller."""
    errors = []
    for got, want in compared:
        assert got.shape == np.shape(want)
        errors.append(float(np.abs(got - want).max() / np.abs(want).max(initial=1)))
    target(max(errors))
    assert max(errors) <= rtol, errors


def step(layer, rng, x):
    """y, dy and dx."""
    y = layer(x)
    dy = normal(rng, y.shape)
    return y, dy, layer.backward(dy)


def pytorchs(torch, layer, x, dy):
    tensor = torch.from_numpy(x).requires_grad_()
    y = layer(tensor)
    return y.detach().numpy(), torch.autograd.grad(y, tensor, torch.from_numpy(dy))[0].numpy()


# Adaptive average pooling -----------------------------------------------------------------------------------------------


@given(rngs(), shapes(most=7), pairs(1, 8))
def test_adaptive_pooling_is_the_reference(rng, shape, size):
    x = normal(rng, shape)
    y, cache = resize_forward(x, *map(bins, shape[2:], size))
    dy = normal(rng, y.shape)
    want = reference.adaptive_avg_pool2d_forward(x, size), reference.adaptive_avg_pool2d_backward(dy, x)
    close((y, want[0]), (resize_backward(dy, cache), want[1]))


@given(rngs(), shapes(most=7), st.integers(1, 8) | pairs(1, 8) | st.tuples(st.none(), st.integers(1, 8)))
def test_adaptive_pooling_is_pytorch(torch, rng, shape, size):
    x = normal(rng, shape)
    y, dy, dx = step(sn.AdaptiveAvgPool2d(size), rng, x)
    theirs = pytorchs(torch, torch.nn.AdaptiveAvgPool2d(size), x, dy)
    close((y, theirs[0]), (dx, theirs[1]))


@given(rngs(), shapes(most=7), pairs(1, 8))
def test_adaptive_pooling_conserves_the_gradient_and_a_constant(rng, shape, size):
    layer = sn.AdaptiveAvgPool2d(size)
    _, dy, dx = step(layer, rng, normal(rng, shape))
    close((dx.sum(axis=(2, 3)), dy.sum(axis=(2, 3))), (layer(np.full(shape, 3.0)), np.full((*shape[:2], *size), 3.0)))


@given(rngs(), shapes(most=3), pairs(1, 3))
def test_bins_that_fit_are_average_pooling(rng, shape, kernel):
    x = normal(rng, (*shape[:2], shape[2] * kernel[0], shape[3] * kernel[1]))
    y, dy, dx = step(sn.AdaptiveAvgPool2d(shape[2:]), rng, x)
    pool = sn.AvgPool2d(kernel)
    close((y, pool(x)), (dx, pool.backward(dy)))


@pytest.mark.parametrize("size", [1, (1, 1), [1, 1]])
def test_one_bin_is_the_global_pool_itself(size):
    """So that a plan, the inference program and its kernels take it for what it is."""
    assert type(sn.AdaptiveAvgPool2d(size)) is type(sn.AdaptiveAvgPool2d(output_size=size)) is sn.GlobalAvgPool2d
    rng = np.random.default_rng(0)
    layers = (
        sn.Conv2d(3, 4, 1, rng=rng),
        sn.ReLU6(),
        sn.Conv2d(4, 5, 1, rng=rng),
        sn.ReLU6(),
        sn.AdaptiveAvgPool2d(size),
    )
    assert "global_avg_pool2d" in str(sn.plan(sn.Sequential(*layers)))
    net = sn.Sequential(*layers).eval()
    with sn.use_kernels("numpy"):
        assert "global_avg_pool2d" in str(sn.plan(net))
    if "program" in str(sn.plan(net)):  # where there are compiled kernels
        assert "program: mean" in str(sn.plan(net))


@pytest.mark.parametrize("size", [(3, 2), (1, 2), None, (None, 1)])
def test_other_sizes_are_copied_and_pickled(size):
    layer = sn.AdaptiveAvgPool2d(size)
    for twin in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is sn.AdaptiveAvgPool2d and twin.output_size == layer.output_size
    assert repr(sn.AdaptiveAvgPool2d((3, None))) == "AdaptiveAvgPool2d(output_size=(3, None))"


@CHECKS
@given(rngs(), shapes(), pairs(1, 5))
def test_adaptive_backward_is_the_derivative(method, rtol, samples, rng, shape, size):
    layer = sn.AdaptiveAvgPool2d(size)
    report = sn.gradcheck(layer, normal(rng, shape), method=method, rng=rng, rtol=rtol, samples=samples)
    assert report.worst <= rtol


# Upsampling -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "align_corners"), MODES)
@given(rngs(), shapes(most=7), pairs(1, 9))
def test_upsampling_is_the_reference(mode, align_corners, rng, shape, size):
    x = normal(rng, shape)
    y, dy, dx = step(sn.Upsample(size, mode=mode, align_corners=align_corners), rng, x)
    options = mode == "bilinear", bool(align_corners)
    want = reference.upsample_forward(x, size, *options), reference.upsample_backward(dy, x, *options)
    close((y, want[0]), (dx, want[1]))


@pytest.mark.parametrize(("mode", "align_corners"), MODES)
@given(rngs(), st.integers(1, 40), st.integers(1, 40), pairs(1, 70))
def test_upsampling_to_a_size_is_pytorch(torch, mode, align_corners, rng, height, width, size):
    x = normal(rng, (1, 2, height, width))
    y, dy, dx = step(sn.Upsample(size, mode=mode, align_corners=align_corners), rng, x)
    theirs = pytorchs(torch, torch.nn.Upsample(size, mode=mode, align_corners=align_corners), x, dy)
    close((y, theirs[0]), (dx, theirs[1]))


@pytest.mark.parametrize(("mode", "align_corners"), MODES)
@given(rngs(), st.integers(1, 20), st.integers(1, 20), FACTORS, FACTORS, st.booleans())
def test_upsampling_by_a_factor_is_pytorch(torch, mode, align_corners, rng, height, width, first, second, one):
    assume(int(height * first) and int(width * (first if one else second)))
    factor = float(first) if one else (float(first), float(second))
    x = normal(rng, (1, 2, height, width))
    y, dy, dx = step(sn.Upsample(None, factor, mode, align_corners), rng, x)
    theirs = pytorchs(torch, torch.nn.Upsample(None, factor, mode, align_corners), x, dy)
    close((y, theirs[0]), (dx, theirs[1]))


@pytest.mark.parametrize(("size", "factor"), [(8, 2.048487967482834), (41, 1.0000000001), (35, 7 / 5), (49, 6 / 7)])
def test_where_the_nearest_is_a_matter_of_rounding_pytorch_is_followed(torch, size, factor):
    x = np.arange(float(size)).reshape(1, 1, 1, size)
    theirs = torch.nn.Upsample(scale_factor=(1.0, factor))(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(sn.Upsample(scale_factor=(1, factor))(x), theirs)


@pytest.mark.parametrize(("mode", "align_corners"), MODES)
def test_a_factor_that_changes_no_size_changes_nothing(torch, mode, align_corners):
    x = np.arange(4.0).reshape(1, 1, 2, 2)
    options = None, (1.3, 1.25), mode, align_corners
    for layer in (sn.Upsample(*options), lambda x: torch.nn.Upsample(*options)(torch.from_numpy(x)).numpy()):
        np.testing.assert_array_equal(layer(x), x)


@CHECKS
@pytest.mark.parametrize(("mode", "align_corners"), MODES)
@given(rngs(), shapes(elements=60), pairs(1, 7))
def test_upsampling_backward_is_the_derivative(mode, align_corners, method, rtol, samples, rng, shape, size):
    layer = sn.Upsample(size, mode=mode, align_corners=align_corners)
    report = sn.gradcheck(layer, normal(rng, shape), method=method, rng=rng, rtol=rtol, samples=samples)
    assert report.worst <= rtol


@given(st.integers(1, 30), st.integers(1, 60), st.booleans())
def test_the_weights_of_a_pixel_add_up_to_one(size, count, corners):
    for table in (bins(size, count), nearest(size, count, size / count), between(size, count, size / count, corners)):
        assert len(table) == count
        for terms in table:
            assert sum(weight for _, weight in terms) == pytest.approx(1, abs=1e-15 * len(terms))
            assert all(0 <= q < size and weight > 0 for q, weight in terms)


def test_by_hand():
    row = np.array([0.0, 4.0, 8.0]).reshape(1, 1, 1, 3)
    for options, want in (
        ({}, [0, 0, 4, 4, 8, 8]),
        ({"mode": "bilinear"}, [0, 1, 3, 5, 7, 8]),
        ({"mode": "bilinear", "align_corners": True}, [0, 1.6, 3.2, 4.8, 6.4, 8]),
    ):
        np.testing.assert_allclose(sn.Upsample((1, 6), **options)(row)[0, 0, 0], want, rtol=1e-15)
    layer = sn.Upsample(scale_factor=(1, 2))
    layer(row)
    np.testing.assert_array_equal(layer.backward(np.arange(6.0).reshape(1, 1, 1, 6))[0, 0, 0], [1, 5, 9])
    np.testing.assert_array_equal(sn.AdaptiveAvgPool2d((1, 2))(row)[0, 0, 0], [2, 6])  # both have the middle pixel


def test_nan_stays_near_where_it_is():
    x = np.zeros((1, 1, 1, 6))
    x[..., 1] = np.nan
    np.testing.assert_array_equal(np.isnan(sn.AdaptiveAvgPool2d((1, 3))(x))[0, 0, 0], [True, False, False])
    np.testing.assert_array_equal(np.isnan(sn.Upsample((1, 12))(x))[0, 0, 0].nonzero()[0], [2, 3])


# Messages -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1, 2.0, (1, 2, 3), (2, "3"), True, ()])
def test_sizes_that_no_pooling_has(size):
    message = "^AdaptiveAvgPool2d: output_size must be an int of at least 1 or None, or a pair of them, got "
    if size is True:  # which is equal to 1
        assert type(sn.AdaptiveAvgPool2d(size)) is sn.GlobalAvgPool2d
        return
    with pytest.raises(ValueError, match=message):
        sn.AdaptiveAvgPool2d(size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"takes size or scale_factor, got size None and scale_factor None$"),
        ({"size": 4, "scale_factor": 2}, r"takes size or scale_factor, got size 4 and scale_factor 2$"),
        ({"size": 0}, r"size must be an int of at least 1 or a pair of them, got 0$"),
        ({"scale_factor": 0}, r"scale_factor must be a number above 0 or a pair of them, got 0$"),
        ({"scale_factor": (2, np.nan)}, r"scale_factor must be a number above 0 or a pair of them, got \(2, nan\)$"),
        ({"scale_factor": (1, 2, 3)}, r"scale_factor must be a number above 0 or a pair of them, got \(1, 2, 3\)$"),
        ({"size": 4, "mode": "bicubic"}, r"mode must be 'nearest' or 'bilinear', got 'bicubic'$"),
        ({"size": 4, "align_corners": False}, r"align_corners is an option of mode 'bilinear', got False$"),
    ],
)
def test_options_that_no_upsampling_has(options, message):
    with pytest.raises(ValueError, match=f"^Upsample: {message}"):
        sn.Upsample(**options)


def test_inputs_that_do_not_fit():
    for layer in (sn.Upsample(2), sn.AdaptiveAvgPool2d(2)):
        with pytest.raises(
            ValueError, match=rf"^{layer.name}: expected x of shape \(N, C, H, W\), got x of shape \(2, 3, 5\)"
        ):
            layer(np.ones((2, 3, 5), "f4"))
    with pytest.raises(ValueError, match=r"^up Upsample: scale_factor 0\.3 leaves nothing of 3 pixels along W$"):
        sn.Sequential({"up": sn.Upsample(scale_factor=(2, 0.3))})(np.ones((2, 3, 5, 3), "f4"))


def test_repr():
    assert repr(sn.Upsample(4)) == "Upsample(size=(4, 4), mode='nearest')"
    said = "Upsample(scale_factor=(2.0, 1.5), mode='bilinear', align_corners=True)"
    assert repr(sn.Upsample(None, (2, 1.5), "bilinear", True)) == said
