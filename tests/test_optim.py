"""Optimizers: PyTorch's numbers, in place, in the parameter's dtype, and resumable to the last bit."""

import copy
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scratchnet as sn
from scratchnet.module import Parameter
from scratchnet.training.optim import SGD, Adam, AdamW, RMSprop

SHAPES = ((3, 4, 2, 5), (7,), (), (6, 2))
SGD_CASES = [
    dict(),
    dict(weight_decay=0.1),
    dict(momentum=0.9),
    dict(momentum=0.9, weight_decay=0.1),
    dict(momentum=0.9, nesterov=True),
    dict(momentum=0.7, nesterov=True, weight_decay=0.1),
]
ADAM_CASES = [dict(), dict(weight_decay=0.1, betas=(0.8, 0.9), eps=1e-3), dict(betas=(0.0, 0.5), weight_decay=0.3)]
RMS_CASES = [
    dict(),
    dict(weight_decay=0.1, alpha=0.7, eps=1e-3),
    dict(momentum=0.8),
    dict(centered=True, alpha=0.9, eps=1e-2),
    dict(centered=True, momentum=0.6, weight_decay=0.2, eps=1e-2),
]
CASES = [(SGD, case) for case in SGD_CASES] + [(kind, case) for kind in (Adam, AdamW) for case in ADAM_CASES]
CASES += [(RMSprop, case) for case in RMS_CASES]


def make_parameters(dtype=np.float64, seed=0):
    """Parameters of `SHAPES` with values drawn; the second one takes no weight decay."""
    rng = np.random.default_rng(seed)
    return [Parameter(np.array(rng.standard_normal(s), dtype), decay=i != 1) for i, s in enumerate(SHAPES)]


def draw_gradients(parameters, rng):
    for parameter in parameters:
        parameter.grad[...] = rng.standard_normal(parameter.data.shape)


def train(optimizer, parameters, rng, steps):
    for _ in range(steps):
        draw_gradients(parameters, rng)
        optimizer.step()


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_fifty_steps_equal_pytorch_to_1e_12(kind, case):
    torch = pytest.importorskip("torch")
    parameters = make_parameters()
    twins = [torch.tensor(parameter.data.copy(), requires_grad=True) for parameter in parameters]
    decayed = [twin for twin, parameter in zip(twins, parameters, strict=True) if parameter.decay]
    groups = [{"params": decayed}, {"params": [twins[1]], "weight_decay": 0.0}]
    ours, theirs = kind(parameters, lr=0.05, **case), getattr(torch.optim, kind.__name__)(groups, lr=0.05, **case)
    rng = np.random.default_rng(1)
    for step in range(50):
        ours.lr = 0.05 * (1 + math.cos(step))  # a rate that changes, as under a schedule
        for group in theirs.param_groups:
            group["lr"] = ours.lr
        draw_gradients(parameters, rng)
        for parameter, twin in zip(parameters, twins, strict=True):
            twin.grad = torch.tensor(parameter.grad.copy())
        ours.step()
        theirs.step()
    for parameter, twin in zip(parameters, twins, strict=True):
        np.testing.assert_allclose(parameter.data, twin.detach().numpy(), rtol=1e-12, atol=1e-12)


def by_hand(
    kind, p, gradients, lr, momentum=0.0, nesterov=False, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0,
    alpha=0.99, centered=False,
):  # fmt: skip
    """The papers' rules for one number, in Python floats."""
    v = m = s = 0.0
    for t, g in enumerate(gradients, start=1):
        if kind is AdamW:
            p -= lr * weight_decay * p
        else:
            g += weight_decay * p
        if kind is SGD:
            v = momentum * v + g
            p -= lr * (g + momentum * v if nesterov else v)
        elif kind is RMSprop:
            m = alpha * m + (1 - alpha) * g
            s = alpha * s + (1 - alpha) * g * g
            v = momentum * v + g / (math.sqrt(max(s - m * m, 0) if centered else s) + eps)
            p -= lr * v
        else:
            m = betas[0] * m + (1 - betas[0]) * g
            s = betas[1] * s + (1 - betas[1]) * g * g
            p -= lr * (m / (1 - betas[0] ** t)) / (math.sqrt(s / (1 - betas[1] ** t)) + eps)
    return p


@settings(deadline=None, max_examples=60)
@given(
    case=st.sampled_from(CASES),
    start=st.floats(-10, 10),
    gradients=st.lists(st.floats(-10, 10).map(lambda g: g if abs(g) > 1e-3 else 1.0), min_size=1, max_size=6),
    lr=st.floats(1e-4, 1.0),
)
def test_every_element_follows_the_rule_by_itself(case, start, gradients, lr):
    kind, options = case
    options = {"weight_decay": 0.0} | options
    parameter = Parameter(np.array([[start, 1.0, -start]]))
    optimizer = kind([parameter], lr, **options)
    for g in gradients:
        parameter.grad[...] = [[g, 0.5, -g]]
        optimizer.step()
    expected = by_hand(kind, start, gradients, lr, **options)
    constant = by_hand(kind, 1.0, [0.5] * len(gradients), lr, **options)
    np.testing.assert_allclose(parameter.data, [[expected, constant, -expected]], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, RMSprop])
def test_weight_decay_leaves_out_parameters_that_say_so(kind):
    kept, decayed = Parameter(np.ones(3), decay=False), Parameter(np.ones(3))
    kind([kept, decayed], lr=0.1, weight_decay=0.5).step()
    assert np.array_equal(kept.data, np.ones(3))
    assert (decayed.data < 1).all()


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_parameters_are_updated_in_place_and_gradients_are_only_read(kind, case):
    parameters = make_parameters()
    arrays, slab = [parameter.data for parameter in parameters], parameters[0].data[1:2]
    optimizer = kind(parameters, lr=0.1, **case)
    draw_gradients(parameters, np.random.default_rng(2))
    gradients = [parameter.grad.copy() for parameter in parameters]
    before = slab.copy()
    optimizer.step()
    assert all(parameter.data is array for parameter, array in zip(parameters, arrays, strict=True))
    assert not np.array_equal(slab, before), "a view of the parameter must see the step"
    assert all(np.array_equal(parameter.grad, g) for parameter, g in zip(parameters, gradients, strict=True))


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_float32_steps_have_the_bits_of_float32_arithmetic(kind, case):
    with_numpy_scalars = {
        key: tuple(map(np.float64, value))
        if isinstance(value, tuple)
        else value
        if value is True
        else np.float64(value)
        for key, value in case.items()
    }
    plain, scalars = make_parameters(np.float32), make_parameters(np.float32)
    train(kind(plain, lr=0.1, **case), plain, np.random.default_rng(3), 5)
    optimizer = kind(scalars, lr=np.float64(0.1), **with_numpy_scalars)
    train(optimizer, scalars, np.random.default_rng(3), 5)
    assert {parameter.data.dtype for parameter in scalars} == {np.dtype(np.float32)}
    assert {slot.dtype for key, slot in optimizer.state_dict().items() if key != "step"} <= {np.dtype(np.float32)}
    assert all(np.array_equal(a.data, b.data) for a, b in zip(plain, scalars, strict=True))


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_a_step_allocates_nothing_as_large_as_a_parameter(kind, case):
    parameters = [Parameter(np.ones(size, np.float32)) for size in (100_000, 50_000)]
    optimizer = kind(parameters, lr=0.1, **case)
    optimizer.step()
    tracemalloc.start()
    optimizer.step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_a_resumed_optimizer_goes_on_with_the_same_bits(kind, case):
    whole, broken = make_parameters(np.float32), make_parameters(np.float32)
    train(kind(whole, lr=0.1, **case), whole, np.random.default_rng(4), 12)

    rng = np.random.default_rng(4)
    first = kind(broken, lr=0.1, **case)
    train(first, broken, rng, 5)
    state = first.state_dict()
    again = make_parameters(np.float32, seed=9)
    for parameter, old in zip(again, broken, strict=True):
        parameter.data[...] = old.data
    train(first, broken, np.random.default_rng(99), 1)  # the state is a copy: this must not reach it
    second = kind(again, lr=0.1, **case)
    second.load_state_dict(state)
    assert second.steps == 5
    train(second, again, rng, 7)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(whole, again, strict=True))


def test_defaults_are_pytorchs():
    """Each default written out gives the bits of the default left out: PyTorch's own tests are skipped without it."""
    adam = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
    spelt = [(SGD, {"lr": 0.1}, {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0})]
    rms = {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "centered": False}
    spelt += [(RMSprop, {}, rms)]
    spelt += [(Adam, {}, adam | {"weight_decay": 0.0}), (AdamW, {}, adam | {"weight_decay": 1e-2})]
    for kind, given_, defaults in spelt:
        out, written = make_parameters(), make_parameters()
        train(kind(out, **given_), out, np.random.default_rng(6), 3)
        train(kind(written, **given_, **defaults), written, np.random.default_rng(6), 3)
        assert all(np.array_equal(a.data, b.data) for a, b in zip(out, written, strict=True)), kind


def test_a_run_that_has_not_begun_can_be_resumed():
    optimizer = Adam(make_parameters())
    optimizer.load_state_dict(Adam(make_parameters()).state_dict())
    assert optimizer.steps == 0


def test_slots_are_named_after_the_parameters():
    a, b = Parameter(np.ones((2, 3))), Parameter(np.ones(4))
    centered = RMSprop([a], centered=True, momentum=0.5).state_dict()
    assert set(centered) == {"square/0", "mean/0", "momentum/0", "step"} and set(RMSprop([a]).state_dict()) < set(
        centered
    )
    assert set(SGD([a, b], 0.1).state_dict()) == {"step"}
    assert set(SGD(iter([a, b]), 0.1, momentum=0.5).state_dict()) == {"momentum/0", "momentum/1", "step"}
    state = Adam([("conv.weight", a), ("bn.bias", b)]).state_dict()
    shapes = {key: value.shape for key, value in state.items()}
    by_name = {
        f"{slot}/{name}": s for slot in ("mean", "square") for name, s in (("conv.weight", (2, 3)), ("bn.bias", (4,)))
    }
    assert shapes == by_name | {"step": ()}
    assert state["step"].dtype == np.int64


DAMAGES = {
    "missing .*'mean/0'": lambda state: state.pop("mean/0"),
    "unexpected .*'mean/9'": lambda state: state.update({"mean/9": np.ones(2)}),
    r"'square/1' is float64 \(8,\), expected float64 \(7,\)": lambda state: state.update({"square/1": np.ones(8)}),
    r"'square/1' is float32 \(7,\), expected float64": lambda state: state.update({"square/1": np.ones(7, np.float32)}),
    "'step' is float64": lambda state: state.update({"step": np.array(3.0)}),
    "'mean/0' is a list": lambda state: state.update({"mean/0": [1.0]}),
    "step must be at least 0, got -1": lambda state: state.update({"step": np.array(-1)}),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(message):
    parameters = make_parameters()
    optimizer = Adam(parameters)
    train(optimizer, parameters, np.random.default_rng(5), 3)
    before = optimizer.state_dict()
    state = {key: value + 1 for key, value in before.items()}
    state = {key: np.asarray(value, before[key].dtype) for key, value in state.items()}
    DAMAGES[message](state)
    with pytest.raises(ValueError, match=f"state of Adam.*{message}"):
        optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert all(np.array_equal(before[key], after[key]) for key in before)


BAD = [
    (lambda p: SGD([p], lr=-1), r"SGD: lr must be in \[0, inf\), got -1"),
    (lambda p: SGD([p], lr=math.nan), "lr must be .*, got nan"),
    (lambda p: SGD([p], lr=math.inf), "lr must be .*, got inf"),
    (lambda p: SGD([p], lr=0.1, momentum=1), r"momentum must be in \[0, 1\), got 1"),
    (lambda p: SGD([p], lr=0.1, momentum=-0.1), "momentum must be .*, got -0.1"),
    (lambda p: SGD([p], lr=0.1, nesterov=True), "^SGD: nesterov needs a momentum above 0, got 0$"),
    (lambda p: SGD([p], lr=0.1, weight_decay=-1), r"weight_decay must be in \[0, inf\), got -1"),
    (lambda p: Adam([p], betas=(1.0, 0.9)), r"Adam: betas\[0\] must be in \[0, 1\), got 1.0"),
    (lambda p: AdamW([p], betas=(0.9, -0.1)), r"AdamW: betas\[1\] must be in \[0, 1\), got -0.1"),
    (lambda p: Adam([p], betas=(0.9,)), "^Adam: betas must be two numbers"),
    (lambda p: Adam([p], eps=-1e-8), "eps must be .*, got -1e-08"),
    (lambda p: RMSprop([p], alpha=1), r"RMSprop: alpha must be in \[0, 1\), got 1"),
    (lambda p: RMSprop([p], momentum=-1), r"RMSprop: momentum must be in \[0, 1\), got -1"),
    (lambda p: setattr(SGD([p], lr=0.1), "lr", -0.1), "SGD: lr must be"),
    (lambda p: SGD([p.data], lr=0.1), "SGD: params must hold Parameters .* got a ndarray"),
    (lambda p: Adam([]), "Adam: there are no parameters"),
    (lambda p: SGD([p, p], lr=0.1), "SGD: parameter '1' is given twice"),
    (lambda p: SGD([("a", p), ("a", Parameter(np.ones(2)))], lr=0.1), "parameter 'a' is given twice"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_hyper_parameters_are_refused_in_one_sentence(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(Parameter(np.ones(2)))


def test_a_parameter_that_was_converted_afterwards_is_refused_by_name():
    a, b = Parameter(np.ones(2)), Parameter(np.ones(3))
    optimizer = SGD([("a", a), ("b", b)], lr=0.1)
    b.data, b.grad = b.data.astype(np.float32), b.grad.astype(np.float32)
    with pytest.raises(ValueError, match="SGD: parameter 'b' changed its device, dtype or shape"):
        optimizer.step()
    assert np.array_equal(a.data, np.ones(2)) and optimizer.steps == 0


@pytest.mark.parametrize("kind", [SGD, Adam, RMSprop])
def test_a_copy_of_an_optimizer_updates_its_own_parameters(kind):
    """A kernel may know where the arrays lie: not those of a copy."""
    parameter = Parameter(np.ones(4))
    optimizer = kind([parameter], lr=0.5)
    parameter.grad[...] = 1
    optimizer.step()
    kept = parameter.data.copy()
    twin, other = copy.deepcopy((optimizer, parameter))
    twin.step()
    np.testing.assert_array_equal(parameter.data, kept)
    assert (other.data < kept).all()


@pytest.mark.parametrize("which", [False, "numpy", True])
def test_a_variance_below_0_counts_as_0(which):
    parameter = Parameter(np.ones(3))
    optimizer = RMSprop([parameter], lr=0.1, alpha=0.5, eps=0.1, centered=True)
    state = {"square/0": np.full(3, 0.5), "mean/0": np.ones(3), "step": np.array(1)}
    optimizer.load_state_dict(state)
    parameter.grad[...] = 1
    with sn.use_kernels(which):
        optimizer.step()  # s = 0.75, m = 1
    np.testing.assert_allclose(parameter.data, 1 - 0.1 * 1 / 0.1, atol=1e-15)


def test_a_variance_that_rounding_makes_negative_is_0():
    """PyTorch's centered RMSprop takes the root of it, which is NaN."""
    parameter = Parameter(np.ones(200, np.float32))
    optimizer = RMSprop([parameter], lr=1e-3, alpha=0.5, eps=0.1, centered=True)
    parameter.grad[...] = np.random.default_rng(0).uniform(0.5, 2, 200)
    seen = []
    for _ in range(60):
        optimizer.step()
        state = optimizer.state_dict()
        seen.append((state["square/0"] - state["mean/0"] ** 2).min())
    assert min(seen) < 0 and np.isfinite(parameter.data).all()


# Groups ---------------------------------------------------------------------------------------------------------------


def in_groups(parameters):
    """The first two with a rate and a decay of their own."""
    return [{"params": parameters[:2], "lr": 0.005, "weight_decay": 0.3}, {"params": iter(parameters[2:])}]


@pytest.mark.parametrize("which", [False, "numpy", True])
@pytest.mark.parametrize(("kind", "case"), CASES)
def test_groups_under_a_schedule_equal_pytorch(kind, case, which):
    torch = pytest.importorskip("torch")
    parameters = make_parameters()
    parameters[1].decay = True
    twins = [torch.tensor(parameter.data.copy(), requires_grad=True) for parameter in parameters]
    ours = kind(in_groups(parameters), lr=0.05, **case)
    theirs = getattr(torch.optim, kind.__name__)(in_groups(twins), lr=0.05, **case)
    rng = np.random.default_rng(1)
    with sn.use_kernels(which):
        for step in range(12):
            ours.lr = 0.05 * (1.1 + math.cos(step))
            for group, share in zip(theirs.param_groups, (0.1, 1.0), strict=True):
                group["lr"] = share * ours.lr
            if step == 6:
                for groups in (ours.param_groups, theirs.param_groups):
                    groups[1]["weight_decay"] = 0.01
            draw_gradients(parameters, rng)
            for parameter, twin in zip(parameters, twins, strict=True):
                twin.grad = torch.tensor(parameter.grad.copy())
            ours.step()
            theirs.step()
    for parameter, twin in zip(parameters, twins, strict=True):
        np.testing.assert_allclose(parameter.data, twin.detach().numpy(), rtol=1e-11, atol=1e-11)


def test_momentum_and_betas_of_a_group_equal_pytorch_s():
    torch = pytest.importorskip("torch")
    own = {SGD: {"momentum": 0.5}, Adam: {"betas": (0.5, 0.7), "eps": 1e-2}, RMSprop: {"alpha": 0.3, "centered": True}}
    for kind, options in own.items():
        parameters = make_parameters()
        parameters[1].decay = True
        twins = [torch.tensor(parameter.data.copy(), requires_grad=True) for parameter in parameters]
        ours = kind([{"params": parameters[:1]} | options, {"params": parameters[1:]}], lr=0.05)
        theirs = getattr(torch.optim, kind.__name__)([{"params": twins[:1]} | options, {"params": twins[1:]}], lr=0.05)
        rng = np.random.default_rng(1)
        for _ in range(6):
            draw_gradients(parameters, rng)
            for parameter, twin in zip(parameters, twins, strict=True):
                twin.grad = torch.tensor(parameter.grad.copy())
            ours.step()
            theirs.step()
        for parameter, twin in zip(parameters, twins, strict=True):
            np.testing.assert_allclose(parameter.data, twin.detach().numpy(), rtol=1e-11, atol=1e-11)


def test_a_group_s_rate_keeps_its_ratio_to_the_optimizer_s():
    a, b = make_parameters()[:2]
    optimizer = SGD([{"params": a, "lr": 0.007}, {"params": [b]}], lr=0.1)
    rates = lambda: [group["lr"] for group in optimizer.param_groups]  # noqa: E731
    assert rates() == [0.007, 0.1] and optimizer.param_groups[0]["params"] == [a]
    optimizer.lr = 0.0
    assert rates() == [0.0, 0.0]
    with pytest.raises(ValueError, match="keeps its ratio to the optimizer's, which is 0: set that first, got 0.5"):
        optimizer.param_groups[1]["lr"] = 0.5
    for value in (0.25, 0.7, 0.1):
        optimizer.lr = value
    assert 0.1 * (0.007 / 0.1) != 0.007
    assert rates() == [0.007, 0.1], "no rounding adds up: the rate is a function of the optimizer's alone"
    optimizer.param_groups[1]["lr"] = 0.2
    optimizer.lr = 0.05
    np.testing.assert_allclose(rates(), [0.0035, 0.1], rtol=1e-15)
    assert optimizer.lr == 0.05


def test_without_groups_there_is_one_with_all_that_can_be_set():
    a = make_parameters()[0]
    (group,) = Adam([a]).param_groups
    assert dict(group) == {"params": [a], "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    assert repr(group) == repr(dict(group))
    group["lr"], group["betas"] = np.float64(0.5), (0.5, 0.25)
    assert type(group["lr"]) is float and group["betas"] == (0.5, 0.25)


GROUP_FAULTS = [
    (
        lambda a, b: SGD([{"params": a, "rate": 1}], lr=0.1),
        "SGD: a parameter group has lr, .* to set, got 'rate'",
    ),
    (lambda a, b: SGD([{"lr": 1.0}], lr=0.1), "SGD: a parameter group is a dict with 'params', got one with lr"),
    (lambda a, b: SGD([{"params": a, "lr": -1.0}], lr=0.1), r"SGD: lr must be in \[0, inf\), got -1.0"),
    (lambda a, b: SGD([{"params": a, "nesterov": True}], lr=0.1), "SGD: nesterov needs a momentum above 0"),
    (lambda a, b: SGD([{"params": [a, b]}, {"params": b}], lr=0.1), "SGD: parameter '2' is given twice"),
    (lambda a, b: SGD([{"params": []}], lr=0.1), "SGD: there are no parameters to optimize"),
    (lambda a, b: SGD([{"params": a}, b], lr=0.1), "params must hold Parameters .* got a dict"),
    (
        lambda a, b: SGD([a], lr=0.1).param_groups[0].update(momentum=0.5),
        "momentum is used or is not from the first step",
    ),
    (lambda a, b: SGD([a], lr=0.1).param_groups[0].update(params=[b]), "has lr, .* to set, got 'params'"),
    (lambda a, b: Adam([a]).param_groups[0].update(betas=(0.5, 2)), r"Adam: betas\[1\] must be in \[0, 1\), got 2"),
    (lambda a, b: Adam([a]).param_groups[0].pop("eps"), "Adam: a parameter group has its 'eps' for good"),
]


def test_what_is_refused_changes_nothing():
    (group,) = SGD([Parameter(np.ones(2))], lr=0.1, momentum=0.5, nesterov=True).param_groups
    before = dict(group)
    for key, value in (("momentum", 0.0), ("lr", -1.0), ("momentum", 1.0), ("rate", 1.0)):
        with pytest.raises(ValueError, match="^SGD: "):
            group[key] = value
        assert dict(group) == before


@pytest.mark.parametrize(("make", "message"), GROUP_FAULTS)
def test_a_group_that_cannot_be_is_refused_in_one_sentence(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(Parameter(np.ones(2)), Parameter(np.ones(3)))


@pytest.mark.parametrize("kind", [SGD, Adam, RMSprop])
def test_groups_are_in_no_state_and_are_resumed_with_the_same_bits(kind):
    options = {} if kind is Adam else {"momentum": 0.9}

    def make(parameters):
        named = [(f"p{k}", parameter) for k, parameter in enumerate(parameters)]
        return kind(in_groups(named), lr=0.1, **options)

    def go(optimizer, parameters, rng, steps):
        for _ in range(steps):
            optimizer.lr = 0.1 / (1 + optimizer.steps)
            train(optimizer, parameters, rng, 1)

    whole, broken, again = (make_parameters(np.float32, seed) for seed in (0, 0, 9))
    go(make(whole), whole, np.random.default_rng(4), 9)
    rng, first = np.random.default_rng(4), make(broken)
    go(first, broken, rng, 4)
    plain = kind([(f"p{k}", parameter) for k, parameter in enumerate(again)], lr=0.1, **options)
    assert list(plain.state_dict()) == list(first.state_dict())
    second = make(again)
    for parameter, old in zip(again, broken, strict=True):
        parameter.data[...] = old.data
    second.load_state_dict(first.state_dict())
    go(second, again, rng, 5)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(whole, again, strict=True))


# Frozen ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("which", [False, "numpy", True])
@pytest.mark.parametrize(("kind", "case"), CASES)
def test_frozen_parameters_stay_as_they_are(kind, case, which, before):
    parameters = make_parameters()
    parameters[0].requires_grad = not before
    optimizer = kind(parameters, lr=0.1, **case | {"weight_decay": 0.1})
    parameters[0].requires_grad = False
    kept = [parameter.data.copy() for parameter in parameters]
    with sn.use_kernels(which):
        train(optimizer, parameters, np.random.default_rng(0), 3)
        assert np.array_equal(parameters[0].data, kept[0])
        assert not any(array.any() for key, array in optimizer.state_dict().items() if key.endswith("/0"))
        assert not any(np.array_equal(p.data, k) for p, k in zip(parameters[1:], kept[1:], strict=True))
        parameters[0].requires_grad = True
        train(optimizer, parameters, np.random.default_rng(1), 1)
        assert not np.array_equal(parameters[0].data, kept[0])


def test_where_all_are_frozen_a_step_is_nothing():
    parameter = Parameter(np.ones(2), requires_grad=False)
    SGD([parameter], lr=0.1, weight_decay=0.1).step()
    assert np.array_equal(parameter.data, np.ones(2))
