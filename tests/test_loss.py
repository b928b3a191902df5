"""Cross entropy: = reference, = PyTorch; shifts change nothing, rows of the gradient sum to 0, no logit overflows."""

import math

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st
from strategies import in_layout, labels, layouts, normal, rngs

import scratchnet as sn
from scratchnet import reference, reference_elementwise
from scratchnet.layers.loss import (
    cross_entropy_backward,
    cross_entropy_forward,
    weighted_cross_entropy_backward,
    weighted_cross_entropy_forward,
)

SMOOTHING = st.sampled_from([0.0, 0.1, 0.5, 1.0])


class Batch:
    """Logits (N, K), labels (N,), label smoothing."""

    def __init__(self, rng, labels, classes, smoothing):
        self.logits = 3 * normal(rng, (len(labels), classes))
        self.labels, self.smoothing, self.rng = labels, smoothing, rng

    def __repr__(self):
        return f"Batch(logits={self.logits!r}, labels={self.labels!r}, smoothing={self.smoothing})"


@st.composite
def batches(draw, least=2, smoothing=SMOOTHING):
    n, classes = draw(st.integers(1, 5)), draw(st.integers(least, 7))
    return Batch(draw(rngs()), draw(labels(n, classes)), classes, draw(smoothing))


def close(got, want, rtol=1e-12, scale=0.0):
    assert np.shape(got) == np.shape(want)
    error, size = np.max(np.abs(got - want)), max(np.max(np.abs(want)), scale)
    assert error <= rtol * size
    return float(error / size) if error else 0.0


def loss_and_gradient(batch, logits=None, labels=None):
    criterion = sn.CrossEntropyLoss(batch.smoothing)
    loss = criterion(batch.logits if logits is None else logits, batch.labels if labels is None else labels)
    return loss, criterion.backward()


# The oracles ----------------------------------------------------------------------------------------------------------


@given(batches(least=1), layouts())
def test_is_the_reference(batch, layout):
    logits = in_layout(batch.logits, layout)
    loss, cache = cross_entropy_forward(logits, batch.labels, batch.smoothing)
    want = reference.cross_entropy_forward(logits, batch.labels, batch.smoothing)
    target(close(loss, want, scale=np.abs(logits).max()), label="loss")
    dlogits = cross_entropy_backward(1.0, cache)
    want = reference.cross_entropy_backward(logits, batch.labels, batch.smoothing)
    target(close(dlogits, want, scale=1 / len(batch.labels)), label="dlogits")


@given(batches(least=1), st.sampled_from([np.int64, np.int32, np.uint8]))
def test_is_pytorchs(torch, batch, integers):
    logits = torch.from_numpy(batch.logits.copy()).requires_grad_()
    want = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels), label_smoothing=batch.smoothing)
    want.backward()
    loss, dlogits = loss_and_gradient(batch, labels=batch.labels.astype(integers))
    close(loss, want.detach().numpy(), scale=np.abs(batch.logits).max())
    close(dlogits, logits.grad.numpy(), scale=1 / len(batch.labels))


@pytest.mark.parametrize("method", ["complex-step", "finite-difference", "four-point"])
@given(batches())
def test_backward_is_the_derivative(method, batch):
    def forward(logits):
        return cross_entropy_forward(logits, batch.labels, batch.smoothing)

    logits = np.tanh(batch.logits)  # a class that is all but certain has a gradient that is rounding: p - 1
    sn.gradcheck((forward, cross_entropy_backward), logits, method=method, rng=batch.rng)


# Properties -----------------------------------------------------------------------------------------------------------


@given(batches(), st.floats(-100, 100))
def test_a_shift_of_a_pictures_logits_changes_nothing(batch, common):
    shift = common + normal(batch.rng, (len(batch.labels), 1))  # each picture by another number
    loss, dlogits = loss_and_gradient(batch)
    shifted, dshifted = loss_and_gradient(batch, batch.logits + shift)
    close(shifted, loss, scale=100.0)  # a logit of 100 holds its digits in units of 100
    close(dshifted, dlogits, scale=100 / len(batch.labels))


@given(batches())
def test_rows_of_the_gradient_sum_to_0(batch):
    _, dlogits = loss_and_gradient(batch)
    close(dlogits.sum(axis=1), np.zeros(len(batch.labels)), scale=1 / len(batch.labels))


@given(batches(), st.sampled_from([np.float32, np.float64]))
def test_logits_of_ten_thousand_stay_finite(batch, dtype):
    """The loss is then the distance to the largest logit, and the gradient a difference of targets."""
    signs = batch.rng.choice([-1, 1], batch.logits.shape)
    logits = (1e4 * signs).astype(dtype)
    loss, dlogits = loss_and_gradient(batch, logits)
    n, classes = logits.shape
    wanted = (1 - batch.smoothing) * np.eye(classes)[batch.labels] + batch.smoothing / classes
    winners = logits == logits.max(axis=1, keepdims=True)
    p = winners / winners.sum(axis=1, keepdims=True)
    log_p = np.float64(logits) - logits.max(axis=1, keepdims=True) - np.log(winners.sum(axis=1, keepdims=True))
    eps = np.finfo(dtype).eps
    assert abs(loss + (wanted * log_p).sum() / n) <= 8 * eps * 2e4
    assert np.abs(dlogits - (p - wanted) / n).max() <= 8 * eps


@given(rngs(), st.integers(2, 9), st.integers(1, 5), SMOOTHING, st.floats(-50, 50))
def test_equal_logits_cost_log_k(rng, classes, n, smoothing, logit):
    """Nothing known about K classes: log K nats, whatever the labels and the smoothing; p is 1/K."""
    right = rng.integers(0, classes, n)
    criterion = sn.CrossEntropyLoss(smoothing)
    assert criterion(np.full((n, classes), logit), right) == pytest.approx(math.log(classes), rel=1e-12)
    wanted = (1 - smoothing) * np.eye(classes)[right] + smoothing / classes
    np.testing.assert_allclose(criterion.backward(), (1 / classes - wanted) / n, rtol=0, atol=1e-15)


@given(batches(least=3))
def test_classes_and_pictures_may_be_renamed(batch):
    loss, dlogits = loss_and_gradient(batch)
    n, classes = batch.logits.shape
    pictures, names = batch.rng.permutation(n), batch.rng.permutation(classes)
    renamed = np.argsort(names)[batch.labels][pictures]
    other, dother = loss_and_gradient(batch, batch.logits[pictures][:, names], renamed)
    close(other, loss, scale=np.abs(batch.logits).max())
    close(dother, dlogits[pictures][:, names], scale=1 / n)


@given(batches())
def test_loss_is_a_mean_over_pictures(batch):
    one_by_one = [
        loss_and_gradient(batch, batch.logits[k : k + 1], batch.labels[k : k + 1]) for k in range(len(batch.labels))
    ]
    loss, dlogits = loss_and_gradient(batch)
    close(loss, np.mean([each[0] for each in one_by_one]), scale=np.abs(batch.logits).max())
    close(dlogits, np.concatenate([each[1] for each in one_by_one]) / len(one_by_one), scale=1 / len(one_by_one))


def test_by_hand():
    """Logits (0, log 3): probabilities 1/4 and 3/4."""
    criterion = sn.CrossEntropyLoss()
    logits = np.array([[0.0, math.log(3)], [0.0, math.log(3)]])
    assert criterion(logits, np.array([0, 1])) == pytest.approx((math.log(4) + math.log(4 / 3)) / 2, rel=1e-15)
    np.testing.assert_allclose(criterion.backward(), [[-3 / 8, 3 / 8], [1 / 8, -1 / 8]], rtol=1e-15)
    smoothed = sn.CrossEntropyLoss(0.2)  # targets 0.9 and 0.1
    assert smoothed(logits[:1], np.array([0])) == pytest.approx(0.9 * math.log(4) + 0.1 * math.log(4 / 3), rel=1e-15)
    np.testing.assert_allclose(smoothed.backward(), [[0.25 - 0.9, 0.75 - 0.1]], rtol=1e-14)


# The contract ---------------------------------------------------------------------------------------------------------


@given(batches(), st.floats(-3, 3))
def test_backward_of_dloss_scales(batch, dloss):
    loss, dlogits = loss_and_gradient(batch)
    criterion = sn.CrossEntropyLoss(batch.smoothing)
    criterion(batch.logits, batch.labels)
    close(criterion.backward(dloss), dloss * dlogits, scale=1e-300)


@given(batches())
def test_float32_stays_float32(batch):
    loss, dlogits = loss_and_gradient(batch, batch.logits.astype(np.float32))
    assert loss.dtype == dlogits.dtype == np.float32
    want, dwant = loss_and_gradient(batch)
    bound = 8 * np.finfo(np.float32).eps * (np.abs(batch.logits).max() + batch.logits.shape[1])
    assert abs(loss - want) <= bound and np.abs(dlogits - dwant).max() <= bound / len(batch.labels)


def test_numpy_scalars_as_options_keep_float32():
    criterion = sn.CrossEntropyLoss(np.float64(0.1))
    loss = criterion(np.ones((2, 3), np.float32), np.array([0, 2]))
    assert loss.dtype == criterion.backward().dtype == np.float32


def test_a_numpy_scalar_as_dloss_keeps_float32():
    criterion = sn.CrossEntropyLoss()
    criterion(np.ones((2, 3), np.float32), np.array([0, 2]))
    assert criterion.backward(np.float64(0.5)).dtype == np.float32


def test_logits_and_labels_stay_as_they_are():
    logits, right = normal(np.random.default_rng(0), (4, 3)), np.array([2, 0, 1, 1])
    before = logits.copy(), right.copy()
    criterion = sn.CrossEntropyLoss(0.1)
    criterion(logits, right)
    criterion.backward()
    assert np.array_equal(logits, before[0]) and np.array_equal(right, before[1])


def test_one_forward_serves_one_backward():
    criterion = sn.CrossEntropyLoss()
    logits, right = np.ones((2, 3)), np.array([0, 2])
    with pytest.raises(RuntimeError, match=r"^CrossEntropyLoss: nothing saved for backward \(no forward came before\)"):
        criterion.backward()
    criterion(logits, right)
    criterion.backward()
    with pytest.raises(RuntimeError, match=r"^CrossEntropyLoss: nothing saved for backward \(no forward came before\)"):
        criterion.backward()
    criterion.eval()(logits, right)
    with pytest.raises(
        RuntimeError, match=r"^CrossEntropyLoss: nothing saved for backward \(the last forward ran in eval"
    ):
        criterion.backward()


LOGITS = np.ones((4, 3))
BAD_LABELS = [
    (np.array([0.0, 1, 2, 0]), TypeError, r"labels must be integers in \[0, 3\), got float64"),
    (np.array([0, np.nan, 2, 0]), TypeError, r"labels must be integers in \[0, 3\), got float64"),
    (np.array([True, False, True, False]), TypeError, r"labels must be integers in \[0, 3\), got bool"),
    (np.array([0, 1, 3, 0]), ValueError, r"labels must be in \[0, 3\), got 0 to 3"),
    (np.array([0, 1, -1, 2]), ValueError, r"labels must be in \[0, 3\), got -1 to 2"),
    (np.array([0, 1, 2]), ValueError, r"expected labels of shape \(4,\) for logits of shape \(4, 3\), got \(3,\)"),
    (
        np.array([[0], [1], [2], [0]]),
        ValueError,
        r"expected labels of shape \(4,\) for logits .*\(4, 3\), got \(4, 1\)",
    ),
    (
        np.eye(4, 3, dtype=np.int64),
        ValueError,
        r"expected labels of shape \(4,\) for logits .*\(4, 3\), got \(4, 3\)",
    ),
    ([0, 1, 2, 0], TypeError, "expected labels as an array of 4 integers, got list"),
    (None, TypeError, "expected labels as an array of 4 integers, got NoneType"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD_LABELS)
def test_bad_labels_are_named(bad, error, message):
    with pytest.raises(error, match=f"^CrossEntropyLoss: {message}$"):
        sn.CrossEntropyLoss()(LOGITS, bad)


# Pixels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4, 2, 5), (2, 3, 4), (2, 3, 2, 1, 3)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighs", [False, True])
@given(rng=rngs(), layout=layouts(), smoothing=SMOOTHING)
def test_a_pixel_is_a_picture_of_its_own(shape, reduction, weighs, rng, layout, smoothing):
    n, classes, *pixels = shape
    logits, right = in_layout(3 * normal(rng, shape), layout), rng.integers(0, classes, (n, *pixels))
    options = {"weight": rng.uniform(0.5, 2, classes), "ignore_index": right.flat[0]} if weighs else {}
    if weighs:
        right.flat[-1] = (right.flat[0] + 1) % classes  # not all are left out
    criterion = sn.CrossEntropyLoss(smoothing, reduction=reduction, **options)
    loss, dlogits = criterion(logits, right), criterion.backward()
    apart = np.moveaxis(logits, 1, -1).reshape(-1, classes)
    want, dwant = criterion(apart, right.reshape(-1)), criterion.backward()
    close(loss, want)
    close(np.moveaxis(dlogits, 1, -1).reshape(-1, classes), dwant)


def test_the_gradient_of_pixels_is_checked_too():
    rng = np.random.default_rng(0)
    logits, right = normal(rng, (3, 4, 2, 5)), rng.integers(0, 4, (3, 2, 5))
    criterion = sn.CrossEntropyLoss(0.1, ignore_index=2)

    def forward(z):
        loss = criterion(z, right)
        return loss, criterion

    assert sn.gradcheck((forward, lambda dloss, criterion: criterion.backward(dloss)), logits).worst < 1e-13


BAD_LOGITS = [
    (
        np.ones((4, 3, 1, 1)),
        ValueError,
        r"expected labels of shape \(4, 1, 1\) for logits of shape \(4, 3, 1, 1\), got \(4,\)",
    ),
    (np.ones(4), ValueError, r"expected x of shape \(N, C, …\), got x of shape \(4,\)"),
    (np.ones((0, 3)), ValueError, r"x of shape \(0, 3\) is empty"),
    (np.ones((4, 3), np.int64), TypeError, "expected floating-point x, got int64"),
    ([[1.0, 2, 3]] * 4, TypeError, r"expected a NumPy or CuPy array \(N, C, …\), got list"),
]


@pytest.mark.parametrize(("logits", "error", "message"), BAD_LOGITS)
def test_bad_logits_are_named(logits, error, message):
    with pytest.raises(error, match=f"^CrossEntropyLoss: {message}"):
        sn.CrossEntropyLoss()(logits, np.array([0, 1, 2, 0]))


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, float("nan"), 2])
def test_smoothing_out_of_range_is_named(smoothing):
    with pytest.raises(
        ValueError, match=rf"^CrossEntropyLoss: label_smoothing must be in \[0, 1\], got {smoothing!r}$"
    ):
        sn.CrossEntropyLoss(smoothing)


# Weights of classes, labels that are left out, sums ---------------------------------------------------------------------


@given(batches(), st.booleans(), st.sampled_from([None, 0, 1, -100]), st.sampled_from(["mean", "sum"]), layouts())
def test_weights_and_labels_left_out_are_the_references_and_pytorchs(torch, batch, weighs, left_out, reduction, layout):
    n, classes = batch.logits.shape
    right = batch.labels.copy()
    if left_out is not None:
        right[batch.rng.random(n) < 0.3] = left_out
        if (right == left_out).all():
            right[0] = classes - 1 if left_out != classes - 1 else 0
    weight = batch.rng.uniform(0.1, 3, classes) if weighs else None
    criterion = sn.CrossEntropyLoss(batch.smoothing, weight=weight, ignore_index=left_out, reduction=reduction)
    logits = in_layout(batch.logits, layout)
    loss = criterion(logits, right)
    dlogits = criterion.backward()
    options = batch.smoothing, np.ones(classes) if weight is None else weight, left_out, reduction
    want = reference_elementwise.weighted_cross_entropy_forward(logits, right, *options)
    dwant = reference_elementwise.weighted_cross_entropy_backward(logits, right, *options)
    peer = torch.from_numpy(logits.copy()).requires_grad_()
    theirs = torch.nn.functional.cross_entropy(
        peer,
        torch.from_numpy(right),
        weight=None if weight is None else torch.from_numpy(weight),
        ignore_index=-100 if left_out is None else left_out,
        reduction=reduction,
        label_smoothing=batch.smoothing,
    )
    theirs.backward()
    size = np.abs(dwant).max()
    for value, gradient in ((want, dwant), (theirs.detach().numpy(), peer.grad.numpy())):
        close(loss, value, scale=3.0 * np.abs(logits).max())
        close(dlogits, gradient, scale=max(size, 1 / n))


def test_weights_by_hand():
    """Logits (0, log 3): probabilities 1/4 and 3/4; the mean is divided by the weights of the labels."""
    logits, right, weight = np.array([[0.0, math.log(3)]] * 3), np.array([0, 1, 9]), np.array([2.0, 6.0])
    criterion = sn.CrossEntropyLoss(weight=weight, ignore_index=9)
    assert criterion(logits, right) == pytest.approx((2 * math.log(4) + 6 * math.log(4 / 3)) / 8, rel=1e-15)
    want = np.array([[-2 * 0.75, 2 * 0.75], [6 * 0.25, -6 * 0.25], [0, 0]])
    np.testing.assert_allclose(criterion.backward(), want / 8, rtol=1e-14, atol=1e-16)
    summed = sn.CrossEntropyLoss(weight=weight, ignore_index=9, reduction="sum")
    assert summed(logits, right) == pytest.approx(2 * math.log(4) + 6 * math.log(4 / 3), rel=1e-15)
    np.testing.assert_allclose(summed.backward(2.0), 2 * want, rtol=1e-14, atol=1e-16)


@given(batches(), st.floats(-3, 3))
def test_a_sum_is_the_mean_times_the_pictures(batch, dloss):
    loss, dlogits = loss_and_gradient(batch)
    criterion = sn.CrossEntropyLoss(batch.smoothing, reduction="sum")
    n = len(batch.labels)
    close(criterion(batch.logits, batch.labels), n * loss)
    close(criterion.backward(dloss), n * dloss * dlogits, scale=1e-300)
    criterion(batch.logits.astype(np.float32), batch.labels)
    assert criterion.backward(np.float64(dloss)).dtype == np.float32


def test_weights_are_a_buffer_and_float64_ones_keep_float32():
    criterion = sn.CrossEntropyLoss(weight=np.array([1.0, 2, 3]))
    assert list(criterion.state_dict()) == ["weight"] and sn.CrossEntropyLoss().state_dict() == {}
    loss = criterion(np.ones((2, 3), np.float32), np.array([0, 2]))
    assert loss.dtype == criterion.backward().dtype == np.float32


WRONG_OPTIONS = [
    (lambda: sn.CrossEntropyLoss(weight=[1.0, 2, 3]), TypeError, r"weight must be a floating-point array \(K,\), got \["),
    (lambda: sn.CrossEntropyLoss(weight=np.arange(3)), TypeError, r"weight must be a floating-point array \(K,\)"),
    (lambda: sn.CrossEntropyLoss(weight=np.ones((3, 1))), TypeError, r"weight must be a floating-point array \(K,\)"),
    (
        lambda: sn.CrossEntropyLoss(np.ones(3)), TypeError,
        "label_smoothing must be a number, got an array: weights are weight=…$",
    ),
    (
        lambda: sn.CrossEntropyLoss(weight=np.ones(2))(LOGITS, np.array([0, 1, 2, 0])), ValueError,
        r"expected weight of shape \(3,\), got \(2,\)$",
    ),
    (
        lambda: sn.CrossEntropyLoss(ignore_index=1)(LOGITS, np.ones(4, int)), ValueError,
        "every label is ignore_index, or of weight 0: there is no mean$",
    ),
    (
        lambda: sn.CrossEntropyLoss(ignore_index=-100)(LOGITS, np.array([0, 1, -100, 3])), ValueError,
        r"labels must be in \[0, 3\), got 0 to 3$",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), WRONG_OPTIONS)
def test_bad_options_are_named(make, error, message):
    with pytest.raises(error, match=f"^CrossEntropyLoss: {message}"):
        make()


def weighted(logits):
    return weighted_cross_entropy_forward(logits, np.array([0, 2, 1, 2]), 0.1, np.array([1, 2.0, 4]), 1, "mean")


SABOTAGED = {
    "Σ t forgotten": lambda log_p, target, n: (np.exp(log_p) - target) / n,
    "by the pictures": lambda log_p, target, n: (np.exp(log_p) * target.sum(axis=0) - target) / 4,
    "a sum": lambda log_p, target, n: np.exp(log_p) * target.sum(axis=0) - target,
    "unweighted": lambda log_p, target, n: (np.exp(log_p) - (target > 0.5)) / n,
    "the sum over pictures": lambda log_p, target, n: (np.exp(log_p) * target.sum(axis=1)[:, None] - target) / n,
}


@pytest.mark.parametrize("name", SABOTAGED)
def test_a_sabotaged_backward_of_weights_is_rejected(name):
    logits = normal(np.random.default_rng(1), (4, 3))
    sn.gradcheck((weighted, weighted_cross_entropy_backward), logits)
    with pytest.raises(sn.GradientMismatch, match=r"^weighted: the gradient of x \(4, 3\) is wrong at"):
        sn.gradcheck((weighted, lambda dloss, cache: dloss * SABOTAGED[name](*cache).T), logits)
