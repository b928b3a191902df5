"""Layer and group norm: = reference, = PyTorch, backward = derivative, and what they promise about each picture."""

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st
from strategies import far_apart, normal, rngs, shapes

import scratchnet as sn
from scratchnet import reference_windows as reference
from scratchnet.layers.group_norm import (
    group_norm_backward,
    group_norm_forward,
    layer_norm_backward,
    layer_norm_forward,
)

EPS = st.sampled_from([1e-5, 1e-3, 0.1, 2.0])
TRAILING = [(4, 3, 2), (3, 2), (2,)]  # what LayerNorm takes of (N, 4, 3, 2)
SHAPES = [(3, 4), (2, 4, 5), (3, 4, 5, 2), (2, 4, 1, 1), (1, 4, 2, 3), (2, 4, 2, 1, 3)]
CHECKS = pytest.mark.parametrize(
    ("method", "rtol", "samples"),
    [("complex-step", 1e-12, None), ("four-point", 1e-9, 8), ("finite-difference", 1e-7, 8)],
)


def close(*compared, rtol=1e-12, eps=1.0):
    """(got, want) pairs, to rtol of the largest number, or of what 1/√eps may make of the numbers that go in."""
    errors = []
    for got, want in compared:
        assert got.shape == np.shape(want)
        errors.append(float(np.abs(got - want).max() / np.abs(want).max(initial=10 / eps**0.5)))
    assert max(errors) <= rtol, errors


def layer_sets(shape, axes):
    """For each number of x whose set it is in, and which number of weight is for it: of the last axes."""
    numbers = np.arange(np.prod(shape)).reshape(shape)
    size = np.prod(shape[len(shape) - axes :])
    return numbers // size, numbers % size


def group_sets(shape, groups):
    n, c = shape[:2]
    pictures, channels = np.indices(shape)[:2]
    return pictures * groups + channels * groups // c, channels


@given(rngs(), shapes(), st.integers(1, 3), EPS, st.booleans(), st.booleans())
def test_layer_norm_is_the_reference(rng, shape, axes, eps, has_weight, has_bias):
    x, dy, last = normal(rng, shape) * 3 + 1, normal(rng, shape), shape[4 - axes :]
    weight, bias = normal(rng, last), normal(rng, last)
    given_ = weight if has_weight else None, bias if has_bias else None
    y, cache = layer_norm_forward(x, *given_, axes, eps)
    dx, dweight, dbias = layer_norm_backward(dy, cache)
    sets, places = layer_sets(shape, axes)
    flat = (weight if has_weight else np.ones(last)).ravel(), (bias if has_bias else np.zeros(last)).ravel()
    want = reference.normalise_backward(dy, x, sets, places, flat[0], eps)
    close((y, reference.normalise_forward(x, sets, places, *flat, eps)), (dx, want[0]), eps=eps)
    assert (dweight is None, dbias is None) == (not has_weight, not has_bias)
    for got, to in zip((dweight, dbias), want[1:], strict=True):
        if got is not None:
            close((got.ravel(), to), eps=eps)


@given(rngs(), st.sampled_from(SHAPES), st.sampled_from([1, 2, 4]), EPS, st.booleans())
def test_group_norm_is_the_reference(rng, shape, groups, eps, affine):
    x, dy = normal(rng, shape) * 3 + 1, normal(rng, shape)
    weight, bias = normal(rng, 4), normal(rng, 4)
    y, cache = group_norm_forward(x, *((weight, bias) if affine else (None, None)), groups, eps)
    dx, dweight, dbias = group_norm_backward(dy, cache)
    sets, places = group_sets(shape, groups)
    used = (weight, bias) if affine else (np.ones(4), np.zeros(4))
    want = reference.normalise_backward(dy, x, sets, places, used[0], eps)
    close((y, reference.normalise_forward(x, sets, places, *used, eps)), (dx, want[0]), eps=eps)
    assert (dweight is None) == (dbias is None) == (not affine)
    if affine:
        close((dweight, want[1]), (dbias, want[2]), eps=eps)


def held_to_pytorch(torch, rng, ours, theirs, shape, eps):
    theirs = theirs.double()
    assert [(name, value.shape) for name, value in ours.state_dict().items()] == [
        (name, tuple(value.shape)) for name, value in theirs.state_dict().items()
    ]
    for value in ours.state_dict().values():
        value[...] = normal(rng, value.shape)
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})
    x, dy = normal(rng, shape) * 3 + 1, normal(rng, shape)
    tensor = torch.from_numpy(x).requires_grad_()
    y = theirs(tensor)
    y.backward(torch.from_numpy(dy))
    close((ours(x), y.detach().numpy()), (ours.backward(dy), tensor.grad.numpy()), eps=eps)
    gradients = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        close((gradients[name].grad, parameter.grad.numpy()), eps=eps)


@given(rngs(), shapes(), st.integers(1, 3), EPS, st.sampled_from([(True, True), (True, False), (False, True)]))
def test_the_layer_norm_is_pytorchs(torch, rng, shape, axes, eps, affine):
    args = shape[4 - axes :], eps, *affine
    held_to_pytorch(torch, rng, sn.LayerNorm(*args, dtype=np.float64), torch.nn.LayerNorm(*args), shape, eps)


@given(rngs(), st.integers(1, 5), st.integers(1, 9), EPS)
def test_the_layer_norm_of_features_is_pytorchs(torch, rng, n, features, eps):
    ours, theirs = sn.LayerNorm(features, eps, dtype=np.float64), torch.nn.LayerNorm(features, eps)
    held_to_pytorch(torch, rng, ours, theirs, (n, features), eps)


@given(rngs(), st.sampled_from(SHAPES), st.sampled_from([1, 2, 4]), EPS, st.booleans())
def test_the_group_norm_is_pytorchs(torch, rng, shape, groups, eps, affine):
    if np.prod(shape) > shape[0] * groups:  # more than a number a set, or PyTorch may refuse
        ours = sn.GroupNorm(groups, 4, eps, affine, dtype=np.float64)
        held_to_pytorch(torch, rng, ours, torch.nn.GroupNorm(groups, 4, eps, affine), shape, eps)


def layers(eps=1e-5):
    """Every kind of set of (N, 4, 3, 2)."""
    for shape in TRAILING:
        yield sn.LayerNorm(shape, eps, dtype=np.float64)
    yield sn.LayerNorm((4, 3, 2), eps, elementwise_affine=False)
    yield sn.LayerNorm(2, eps, bias=False, dtype=np.float64)
    for groups in (1, 2, 4):
        yield sn.GroupNorm(groups, 4, eps, dtype=np.float64)
    yield sn.GroupNorm(2, 4, eps, affine=False)


@CHECKS
@given(rngs())
def test_backward_is_the_derivative(method, rtol, samples, rng):
    x = far_apart(rng, (3, 4, 3, 2))  # where the two numbers of a set are nearly equal, its slope is steep
    options = {"method": method, "rng": rng, "rtol": rtol, "samples": samples}
    worst = [sn.gradcheck(layer, x, **options).worst for layer in layers(eps=1)]
    target(max(worst))
    assert max(worst) <= rtol


# What they promise ------------------------------------------------------------------------------------------------------


@given(rngs())
def test_each_set_has_mean_0_and_variance_1(rng):
    x = far_apart(rng, (3, 4, 3, 2)) * 5 + 100
    for layer in layers(eps=1e-12):
        groups = getattr(layer, "num_groups", None)
        y = layer(x).reshape(3, groups, -1) if groups else layer(x)
        axes = 2 if groups else tuple(range(-len(layer.normalized_shape), 0))
        np.testing.assert_allclose(y.mean(axis=axes), 0, atol=1e-10)
        np.testing.assert_allclose((y**2).mean(axis=axes), 1, atol=1e-9)


@given(rngs(), st.floats(-5, 5))
def test_dx_is_at_right_angles_to_a_shift_of_x_and_nearly_to_its_scale(rng, shift):
    """y stays what it is when x moves along itself or along a constant: so must the loss."""
    x, dy = normal(rng, (3, 4, 3, 2)), normal(rng, (3, 4, 3, 2))
    for layer in (sn.LayerNorm((4, 3, 2), 0.0, dtype=np.float64), sn.GroupNorm(1, 4, 0.0, dtype=np.float64)):
        y = layer(x)
        dx = layer.backward(dy)
        np.testing.assert_allclose(dx.sum(axis=(1, 2, 3)), 0, atol=1e-11)
        np.testing.assert_allclose((dx * x).sum(axis=(1, 2, 3)), 0, atol=1e-11)
        np.testing.assert_allclose(layer(3 * x + shift), y, atol=1e-11)


@given(rngs())
def test_pictures_do_not_see_each_other_and_modes_are_alike(rng):
    x, dy = normal(rng, (3, 4, 3, 2)), normal(rng, (3, 4, 3, 2))
    for layer in layers():
        y, dx = layer(x), layer.backward(dy)
        layer.eval(save=True)
        for n in range(3):
            np.testing.assert_allclose(layer(x[n : n + 1]), y[n : n + 1], rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(layer.backward(dy[n : n + 1]), dx[n : n + 1], rtol=1e-11, atol=1e-13)


@given(rngs(), EPS)
def test_one_group_is_layer_norm_and_a_group_a_channel_batch_norm_of_one_picture(rng, eps):
    x, dy = normal(rng, (1, 4, 3, 2)), normal(rng, (1, 4, 3, 2))
    pairs = (
        (sn.GroupNorm(1, 4, eps, affine=False), sn.LayerNorm((4, 3, 2), eps, elementwise_affine=False)),
        (sn.GroupNorm(4, 4, eps, dtype=np.float64), sn.BatchNorm2d(4, eps, dtype=np.float64)),
    )
    for ours, other in pairs:
        close((ours(x), other(x)), (ours.backward(dy), other.backward(dy)), eps=eps)


def test_by_hand():
    """Two pictures of two numbers, ±1 and ±3 around their means; eps makes the roots 2 and √12."""
    layer = sn.LayerNorm(2, eps=3, dtype=np.float64)
    layer.weight.data[...], layer.bias.data[...] = [2, 4], [10, 20]
    np.testing.assert_allclose(layer(np.array([[4.0, 6], [7, 1]])), [[9, 22], [10 + 6 / 12**0.5, 20 - 12 / 12**0.5]])
    dx = layer.backward(np.array([[1.0, 0], [0, 0]]))
    # g = (2, 0), its mean 1, x̂ = (-½, ½), Σ g x̂ / 2 = -½: s (g - 1 + x̂/2) = ½ (2 - 1 - ¼, 0 - 1 + ¼)
    np.testing.assert_allclose(dx, [[0.375, -0.375], [0, 0]])
    np.testing.assert_allclose(layer.weight.grad, [-0.5, 0])
    np.testing.assert_allclose(layer.bias.grad, [1, 0])


def test_one_number_a_set_is_its_bias():
    layer = sn.GroupNorm(4, 4)
    layer.bias.data[...] = [1, 2, 3, 4]
    x = np.full((2, 4), 7, np.float32)
    np.testing.assert_array_equal(layer(x), [[1, 2, 3, 4]] * 2)
    assert not layer.backward(np.ones_like(x)).any()


def test_weight_decay_leaves_them_alone():
    for layer in (sn.GroupNorm(2, 4), sn.LayerNorm(4)):
        assert [(p.decay, p.data.dtype) for p in layer.parameters()] == [(False, np.float32)] * 2


# Messages -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: sn.GroupNorm(3, 4),
            r"GroupNorm: num_channels must be a positive multiple of num_groups, got 4 and num_groups 3$",
        ),
        (
            lambda: sn.GroupNorm(0, 4),
            r"GroupNorm: num_channels must be a positive multiple of num_groups, got 4 and num_groups 0$",
        ),
        (lambda: sn.LayerNorm(0), r"LayerNorm: normalized_shape must be an int of at least 1 or some of them, got 0$"),
        (
            lambda: sn.LayerNorm(()),
            r"LayerNorm: normalized_shape must be an int of at least 1 or some of them, got \(\)$",
        ),
        (lambda: sn.LayerNorm((3, 2.0)), r"LayerNorm: normalized_shape must be .* got \(3, 2\.0\)$"),
    ],
)
def test_options_that_no_layer_has(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (sn.GroupNorm(2, 4), (2, 6, 3), r"GroupNorm: expected 4 input channels, got x of shape \(2, 6, 3\)$"),
        (sn.LayerNorm((4, 3)), (2, 5, 3), r"LayerNorm: expected 4 input features, got x of shape \(2, 5, 3\)$"),
        (
            sn.LayerNorm((4, 3)),
            (2, 4, 5),
            r"LayerNorm: expected x of shape \(N, …\) that ends with \(4, 3\), got x of shape \(2, 4, 5\)$",
        ),
        (
            sn.LayerNorm(3),
            (2, 4, 5, 2),
            r"LayerNorm: expected x of shape \(N, …\) that ends with \(3,\), got x of shape",
        ),
        (
            sn.LayerNorm((2, 3)),
            (2, 3),
            r"LayerNorm: expected x of shape \(N, …\) that ends with \(2, 3\), got x of shape",
        ),
    ],
)
def test_inputs_that_do_not_fit(layer, shape, message):
    with pytest.raises(ValueError, match=f"^norm {message}"):
        sn.Sequential({"norm": layer})(np.ones(shape, "f4"))


def test_repr():
    assert repr(sn.GroupNorm(2, 4)) == "GroupNorm(2, 4, eps=1e-05)"
    assert repr(sn.GroupNorm(2, 4, affine=False)) == "GroupNorm(2, 4, eps=1e-05, affine=False)"
    assert repr(sn.LayerNorm(4, bias=False)) == "LayerNorm((4,), eps=1e-05, bias=False)"
    assert repr(sn.LayerNorm((4, 2), 0.1, False)) == "LayerNorm((4, 2), eps=0.1, elementwise_affine=False)"
