"""Squared, absolute and binary cross entropy errors: = reference, = PyTorch, also far out; reductions, messages."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import in_layout, layouts, normal, rngs, shapes

import scratchnet as sn
from scratchnet import reference_elementwise as reference
from scratchnet.layers.elementwise_loss import (
    bce_with_logits_loss_backward,
    bce_with_logits_loss_forward,
    l1_loss_backward,
    l1_loss_forward,
    mse_loss_backward,
    mse_loss_forward,
)
from scratchnet.layers.smooth import sigmoid

LOSSES = {"mse_loss": sn.MSELoss, "l1_loss": sn.L1Loss, "bce_with_logits_loss": sn.BCEWithLogitsLoss}
NAMES = {"mse_loss": "mse_loss", "l1_loss": "l1_loss", "bce_with_logits_loss": "binary_cross_entropy_with_logits"}
EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)
EVERY_DTYPE = pytest.mark.parametrize("dtype", [np.float32, np.float64])
REDUCTIONS = st.sampled_from(["mean", "sum"])
ANY_SHAPE = st.one_of(shapes(), shapes().map(lambda shape: shape[:2]), shapes().map(lambda shape: shape[:3]))


def close(got, want, rtol=1e-12):
    """Equal to rtol of the largest number."""
    assert np.shape(got) == np.shape(want)
    assert np.max(np.abs(got - want)) <= rtol * max(np.max(np.abs(want)), 1e-300)


def drawn(name, rng, shape):
    """x and a target: probabilities for binary cross entropy; of the others some differences are 0."""
    if name == "bce_with_logits_loss":
        return 4 * normal(rng, shape), np.where(rng.random(shape) < 0.5, rng.integers(0, 2, shape), rng.random(shape))
    x = normal(rng, shape)
    return x, np.where(rng.random(shape) < 0.3, x, normal(rng, shape))


def step(criterion, x, target):
    return criterion(x, target), criterion.backward()


# The oracles ----------------------------------------------------------------------------------------------------------


@EVERY_LOSS
@given(rng=rngs(), shape=ANY_SHAPE, reduction=REDUCTIONS, x_layout=layouts(), target_layout=layouts())
def test_is_the_reference(name, rng, shape, reduction, x_layout, target_layout):
    x, target = drawn(name, rng, shape)
    x, target = in_layout(x, x_layout), in_layout(target, target_layout)
    loss, dx = step(LOSSES[name](reduction=reduction), x, target)
    close(loss, reference.elementwise_loss_forward(name, x, target, reduction))
    close(dx, reference.elementwise_loss_backward(name, x, target, reduction))


@EVERY_LOSS
@given(rng=rngs(), shape=ANY_SHAPE, reduction=REDUCTIONS, far=st.booleans())
def test_is_pytorchs_near_and_far(torch, name, rng, shape, reduction, far):
    x, target = drawn(name, rng, shape)
    if far:
        x = x * 10.0 ** rng.integers(-12, 4, shape)
    peer = torch.from_numpy(x.copy()).requires_grad_()
    want = getattr(torch.nn.functional, NAMES[name])(peer, torch.from_numpy(target), reduction=reduction)
    want.backward()
    loss, dx = step(LOSSES[name](reduction=reduction), x, target)
    close(loss, want.detach().numpy())
    close(dx, peer.grad.numpy())


@given(rngs(), st.one_of(shapes(), shapes().map(lambda shape: shape[:2])), REDUCTIONS, st.booleans())
def test_pos_weight_is_pytorchs_and_the_references(torch, rng, shape, reduction, one_number):
    x, target = drawn("bce_with_logits_loss", rng, shape)
    channels = (shape[1],) + (1,) * (len(shape) - 2)
    weight = np.full(channels, 2.5) if one_number else rng.uniform(0.1, 4, channels)
    loss, dx = step(sn.BCEWithLogitsLoss(2.5 if one_number else weight, reduction), x, target)
    close(loss, reference.elementwise_loss_forward("bce_with_logits_loss", x, target, reduction, weight))
    close(dx, reference.elementwise_loss_backward("bce_with_logits_loss", x, target, reduction, weight))
    peer = torch.from_numpy(x.copy()).requires_grad_()
    want = torch.nn.functional.binary_cross_entropy_with_logits(
        peer, torch.from_numpy(target), pos_weight=torch.from_numpy(weight), reduction=reduction
    )
    want.backward()
    close(loss, want.detach().numpy())
    close(dx, peer.grad.numpy())


# By hand, and far out -------------------------------------------------------------------------------------------------


def test_by_hand():
    x, target = np.array([[1.0, 5.0], [2.0, -1.0]]), np.array([[4.0, 5.0], [0.0, 0.0]])
    for kind, mean, dmean in ((sn.MSELoss, 14 / 4, [[-6, 0], [4, -2]]), (sn.L1Loss, 6 / 4, [[-1, 0], [1, -1]])):
        for reduction, times in (("mean", 1), ("sum", 4)):
            loss, dx = step(kind(reduction=reduction), x, target)
            assert loss == times * mean
            np.testing.assert_array_equal(dx, np.array(dmean) * times / 4)
    x, target = np.log([[3.0, 1 / 3]]), np.array([[1, 1]])  # p = 3/4, 1/4
    loss, dx = step(sn.BCEWithLogitsLoss(), x, target)
    assert loss == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, rel=1e-15)
    np.testing.assert_allclose(dx, [[-1 / 8, -3 / 8]], rtol=1e-15)
    loss, dx = step(sn.BCEWithLogitsLoss(10, reduction="sum"), x, target)
    assert loss == pytest.approx(10 * (math.log(4 / 3) + math.log(4)), rel=1e-15)
    np.testing.assert_allclose(dx, [[-10 / 4, -30 / 4]], rtol=1e-15)


@EVERY_DTYPE
def test_logits_of_a_thousand_cost_what_they_are_off_and_warn_of_nothing(dtype):
    x = np.array([[1000, -1000, 1000, -1000]], dtype)
    loss, dx = step(sn.BCEWithLogitsLoss(reduction="sum"), x, np.array([[1, 0, 0, 1]], dtype))
    assert loss == 2000 and loss.dtype == dx.dtype == dtype
    np.testing.assert_array_equal(dx, [[0, 0, 1, -1]])


@given(st.floats(20, 700))
def test_a_good_prediction_keeps_its_digits(x):
    """Its loss and its gradient are exp(-x), which p = 1 to rounding knows nothing of."""
    loss, dx = step(sn.BCEWithLogitsLoss(), np.array([[x]]), np.array([[1.0]]))
    want = math.log1p(math.exp(-x))
    assert loss == pytest.approx(want, rel=1e-14) and dx[0, 0] == pytest.approx(-sigmoid(np.array([-x]))[0], rel=1e-14)
    assert loss > 0 > dx[0, 0]


# The contract ---------------------------------------------------------------------------------------------------------


@EVERY_LOSS
@given(rng=rngs(), shape=ANY_SHAPE, reduction=REDUCTIONS, dloss=st.floats(-3, 3))
def test_backward_of_dloss_scales_and_nothing_is_written_into(name, rng, shape, reduction, dloss):
    x, target = drawn(name, rng, shape)
    before = x.copy(), target.copy()
    criterion = LOSSES[name](reduction=reduction)
    _, dx = step(criterion, x, target)
    criterion(x, target)
    np.testing.assert_allclose(criterion.backward(dloss), dloss * dx, rtol=1e-14, atol=1e-300)
    assert np.array_equal(x, before[0]) and np.array_equal(target, before[1])


@EVERY_LOSS
@pytest.mark.parametrize("target_dtype", [np.float64, np.float32, np.int64, np.uint8, bool])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_float32_stays_float32_whatever_the_targets_are(name, target_dtype, reduction):
    x = np.array([[0.5, -1], [2, 0.25]], np.float32)
    target = np.array([[1, 0], [0, 1]]).astype(target_dtype)
    criterion = LOSSES[name](reduction=reduction)
    loss = criterion(x, target)
    assert loss.dtype == criterion.backward(np.float64(0.5)).dtype == np.float32 and np.ndim(loss) == 0
    close(loss, LOSSES[name](reduction=reduction)(x.astype(np.float64), target), 1e-6)


def test_a_float64_pos_weight_keeps_float32():
    x = np.ones((2, 3), np.float32)
    for weight in (np.float64(2), np.array([1.0, 2, 3]), np.array(2.0), 2):
        loss, dx = step(sn.BCEWithLogitsLoss(weight), x, x)
        assert loss.dtype == dx.dtype == np.float32


def test_pos_weight_is_a_buffer():
    criterion = sn.BCEWithLogitsLoss(np.array([1.0, 2, 3]))
    assert list(criterion.state_dict()) == ["pos_weight"]
    assert criterion.astype(np.float32).pos_weight.dtype == np.float32
    assert sn.BCEWithLogitsLoss(2.0).state_dict() == {} and sn.BCEWithLogitsLoss().pos_weight == 1


@EVERY_LOSS
def test_one_forward_serves_one_backward(name):
    criterion, x = LOSSES[name](), np.ones((2, 3))
    said = f"^{LOSSES[name].__name__}: nothing saved for backward"
    with pytest.raises(RuntimeError, match=said):
        criterion.backward()
    step(criterion, x, x)
    with pytest.raises(RuntimeError, match=said):
        criterion.backward()
    criterion.eval()(x, x)
    with pytest.raises(RuntimeError, match=said):
        criterion.backward()


X = np.ones((2, 3))
BAD_TARGETS = [
    ([[1.0, 1, 1]] * 2, TypeError, r"expected target as an array of shape \(2, 3\), got list"),
    (None, TypeError, r"expected target as an array of shape \(2, 3\), got NoneType"),
    (np.ones((2, 3), complex), TypeError, "target must be real numbers, got complex128"),
    (np.array([["a"] * 3] * 2), TypeError, "target must be real numbers, got <U1"),
    (np.ones((3, 2)), ValueError, r"expected target of x's shape \(2, 3\), got \(3, 2\)"),
    (np.ones((2, 1)), ValueError, r"expected target of x's shape \(2, 3\), got \(2, 1\)"),
    (np.ones(3), ValueError, r"expected target of x's shape \(2, 3\), got \(3,\)"),
]


@EVERY_LOSS
@pytest.mark.parametrize(("target", "error", "said"), BAD_TARGETS)
def test_bad_targets_are_named(name, target, error, said):
    with pytest.raises(error, match=f"^{LOSSES[name].__name__}: {said}$"):
        LOSSES[name]()(X, target)


@EVERY_LOSS
@pytest.mark.parametrize(("x", "error", "said"), [
    (np.ones(3), ValueError, r"expected x of shape \(N, C, …\), got x of shape \(3,\)"),
    (np.ones((2, 3), int), TypeError, "expected floating-point x, got int64"),
    (np.ones((0, 3)), ValueError, r"x of shape \(0, 3\) is empty"),
])  # fmt: skip
def test_bad_x_is_named(name, x, error, said):
    with pytest.raises(error, match=f"^{LOSSES[name].__name__}: {said}"):
        LOSSES[name]()(x, x)


@pytest.mark.parametrize(("bad", "said"), [(1.5, "0.0 to 1.5"), (-0.1, "-0.1 to 0.0"), (np.nan, "nan to nan")])
def test_targets_that_are_no_probabilities_are_named(bad, said):
    target = np.array([[0, bad]])
    with pytest.raises(ValueError, match=rf"^BCEWithLogitsLoss: target must be probabilities in \[0, 1\], got {said}$"):
        sn.BCEWithLogitsLoss()(np.ones((1, 2)), target)


@pytest.mark.parametrize("weight", [np.ones(2), np.ones((3, 1)), np.ones((1, 3))])
def test_a_pos_weight_that_does_not_fit_is_named(weight):
    said = rf"expected pos_weight of shape \(3,\) for x of shape \(2, 3\), got {re.escape(str(weight.shape))}"
    with pytest.raises(ValueError, match=f"^BCEWithLogitsLoss: {said}$"):
        sn.BCEWithLogitsLoss(weight)(X, X)


def test_a_pos_weight_that_is_a_list_is_named():
    with pytest.raises(TypeError, match=r"^BCEWithLogitsLoss: pos_weight must be a number or an array, got \[1, 2\]$"):
        sn.BCEWithLogitsLoss([1, 2])


@pytest.mark.parametrize("kind", [*LOSSES.values(), sn.CrossEntropyLoss])
@pytest.mark.parametrize(("reduction", "why"), [("none", ": a loss is one number here"), ("avg", "$"), (None, "$")])
def test_other_reductions_are_named(kind, reduction, why):
    said = f"reduction must be 'mean' or 'sum', got {reduction!r}{why}"
    with pytest.raises(ValueError, match=f"^{kind.__name__}: {said}"):
        kind(reduction=reduction)


def test_a_network_learns_by_each():
    """A step against the gradient lowers the loss; only that of the right sign does."""
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((8, 5)), rng.integers(0, 2, (8, 3))
    for kind in LOSSES.values():
        net, criterion = sn.Linear(5, 3, dtype=np.float64, rng=np.random.default_rng(1)), kind()
        optimizer = sn.SGD(net.parameters(), lr=0.1)
        losses = []
        for _ in range(5):
            net.zero_grad()
            losses.append(float(criterion(net(x), target)))
            net.backward(criterion.backward())
            optimizer.step()
        assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


# Sabotaged ------------------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(7)
T = RNG.integers(0, 2, (4, 3))
Z = T + RNG.choice([-1, 1], T.shape) * RNG.uniform(0.1, 2, T.shape)  # away from the targets, L1's kinks
W = np.array([0.5, 2, 3])[:, None]  # (C, 1), as maps are


def bce(x):
    return bce_with_logits_loss_forward(x, T, W, "mean")


def of_parts(formula):
    """A backward of binary cross entropy by another formula of x, w·t and 1 - t."""
    return lambda dloss, cache: sn.as_images(formula(*cache[:3]) * (dloss / cache[3]))


PAIRS = {
    "mse": (lambda x: mse_loss_forward(x, T, "mean"), mse_loss_backward),
    "mse, sum": (lambda x: mse_loss_forward(x, T, "sum"), mse_loss_backward),
    "l1": (lambda x: l1_loss_forward(x, T, "mean"), l1_loss_backward),
    "bce": (bce, bce_with_logits_loss_backward),
}
SABOTAGED = {
    "mse: 2 forgotten": ("mse", lambda dloss, cache: mse_loss_backward(dloss, cache) / 2),
    "mse: mean forgotten": ("mse", lambda dloss, cache: mse_loss_backward(dloss, (cache[0], 1))),
    "mse: mean over pictures": ("mse", lambda dloss, cache: mse_loss_backward(dloss, (cache[0], len(T)))),
    "mse: sign": ("mse", lambda dloss, cache: -mse_loss_backward(dloss, cache)),
    "mse: dloss ignored": ("mse", lambda dloss, cache: mse_loss_backward(1.0, cache)),
    "mse, sum: a mean": ("mse, sum", lambda dloss, cache: mse_loss_backward(dloss, (cache[0], T.size))),
    "l1: the squared error's": ("l1", mse_loss_backward),
    "l1: |d|": ("l1", lambda dloss, cache: np.abs(l1_loss_backward(dloss, cache))),
    "l1: mean forgotten": ("l1", lambda dloss, cache: l1_loss_backward(dloss, (cache[0], 1))),
    "bce: w forgotten": ("bce", of_parts(lambda z, there, absent: sigmoid(z) - (1 - absent))),
    "bce: w on both": ("bce", of_parts(lambda z, there, absent: W * (sigmoid(z) - (1 - absent)))),
    "bce: w t for the sigmoid": ("bce", of_parts(lambda z, there, absent: sigmoid(z) - there)),
    "bce: sign": ("bce", of_parts(lambda z, there, absent: there * sigmoid(-z) - absent * sigmoid(z))),
    "bce: through the sigmoid again": (
        "bce", of_parts(lambda z, there, absent: (absent * sigmoid(z) - there * sigmoid(-z)) * sigmoid(z) * sigmoid(-z)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("method", ["complex-step", "four-point"])
def test_backward_is_the_derivative(name, method):
    sn.gradcheck(PAIRS[name], Z, method=method)


@pytest.mark.parametrize("name", SABOTAGED)
def test_a_sabotaged_backward_is_rejected(name):
    of, backward = SABOTAGED[name]
    with pytest.raises(sn.GradientMismatch, match=r"the gradient of x \(4, 3\) is wrong at"):
        sn.gradcheck((PAIRS[of][0], backward), Z)
