"""The checker is checked: it rejects every wrong backward of `sabotage.py`, names the array, and lets right ones pass."""

import contextlib
import copy
import functools
import io
import re
import signal
import subprocess
import sys
import textwrap
from importlib import import_module

import numpy as np
import pytest
import test_hard
import test_smooth
from hypothesis import given
from hypothesis import strategies as st
from sabotage import (
    AFFINE,
    FORMULAS,
    HIDDEN,
    LINEAR_X,
    ONES,
    RIGHT,
    SABOTAGED,
    X,
    border_counts_twice,
    broken,
    changed,
    conv,
    deep,
    draw,
    dropout,
    formula,
    net,
    no_mask,
    no_shortcut,
    norm,
    norm_is_never_frozen,
    one_element,
    per,
    times,
    wrong,
)
from strategies import geometries, normal, rngs

import scratchnet as sn
from models import MobileNetV2
from models.mobilenetv2 import inverted_residual
from scratchnet.gradcheck.point import move
from scratchnet.gradcheck.probe import Probe
from scratchnet.layers.linear import linear_backward, linear_forward
from scratchnet.layers.norm import batch_norm_backward, batch_norm_forward

gradcheck_module = import_module("scratchnet.gradcheck")  # the attribute of that name is the function
METHODS = {"complex-step": 1e-12, "finite-difference": 1e-7, "four-point": 1e-9}
EVERY_METHOD = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(autouse=True)
def numpy_kernels(all_kernels):
    """The sabotaged backwards read what the forwards of the layers' files save; NumPy's kernels save the same."""
    sn.use_kernels("numpy")


@EVERY_METHOD
@pytest.mark.parametrize("name", RIGHT)
def test_right_ones_pass_at_the_tightest_tolerance(name, method):
    make, x = RIGHT[name]
    report = sn.gradcheck(make(), x, method=method)
    assert (report.method, report.rtol) == (method, METHODS[method])
    assert report.worst <= METHODS[method]
    if not isinstance(make(), tuple):
        names = ["x", *(name for name, _ in make().named_parameters()), "adjoint test"]
        assert [row.name for row in report.rows] == names


# Wrong ones -----------------------------------------------------------------------------------------------------------


@EVERY_METHOD
@pytest.mark.parametrize("name", SABOTAGED)
def test_a_wrong_backward_is_rejected_by_name(name, method):
    make, x, message = SABOTAGED[name]
    with pytest.raises(sn.GradientMismatch, match=message):
        sn.gradcheck(make(), x, method=method)


def test_every_layer_and_a_pair_is_sabotaged():
    makers = [make for make, *_ in (*SABOTAGED.values(), *test_hard.SABOTAGED.values())]
    layers = {type(make()).__name__ for make in (*makers, *test_smooth.SABOTAGED.values())}
    modules = {
        name for name in sn.__all__ if isinstance(getattr(sn, name), type) and issubclass(getattr(sn, name), sn.Module)
    }
    losses = {name for name in modules if name.endswith("Loss")}  # sabotaged as pairs, beside their tests
    assert layers - {"tuple"} == modules - {"Module"} - losses and len(losses) == 4
    assert "tuple" in layers and len(SABOTAGED) >= 20


@EVERY_METHOD
@pytest.mark.parametrize("name", HIDDEN)
def test_a_backward_that_is_right_at_the_initial_values_only_is_rejected(name, method, monkeypatch):
    """It passes where nothing is drawn: a gain of 1 or a bias of 0 hides it."""
    make, x, where = HIDDEN[name]
    with pytest.raises(sn.GradientMismatch, match=wrong(where)):
        sn.gradcheck(make(), x, method=method)
    monkeypatch.setattr(gradcheck_module, "move", lambda probe, rng: None)
    sn.gradcheck(make(), x, method=method)


@EVERY_METHOD
@pytest.mark.parametrize("layer", FORMULAS)
def test_the_right_formulas_of_these_pass(layer, method):
    assert sn.gradcheck(formula(layer)(), X, method=method).worst <= METHODS[method]


@given(rngs(), geometries(elements=40), st.sampled_from(["x", "weight", "bias"]), st.integers(0, 10**6))
def test_one_wrong_element_anywhere_is_found_and_named(rng, g, where, k):
    """Of any array, at any index, by 1e-9 of the largest gradient; the message has its index."""
    layer = g.layer(rng)
    size = {"x": int(np.prod(g.x_shape)), "weight": layer.weight.data.size, "bias": g.out_channels}[where]
    index = np.unravel_index(k % size, {"x": g.x_shape, "weight": g.weight_shape, "bias": (g.out_channels,)}[where])

    def off(gradient):
        gradient = gradient.copy()
        gradient[index] += 1e-9 * max(np.abs(gradient).max(), 1.0)
        return gradient

    sabotaged = changed(layer, dx=off) if where == "x" else changed(layer, **{where: off})
    at = re.escape(str(tuple(map(int, index))))
    with pytest.raises(sn.GradientMismatch, match=rf"the gradient of {where} \(.*\) is wrong at {at}:"):
        sn.gradcheck(sabotaged, normal(rng, g.x_shape), rng=rng)


# What the message says ------------------------------------------------------------------------------------------------


def hint_of(module, x=X):
    with pytest.raises(sn.GradientMismatch) as caught:
        sn.gradcheck(module, x)
    return str(caught.value)


def test_the_message_shows_index_both_values_ratio_and_error():
    message = hint_of(changed(norm(), bias=lambda g: g * np.array([1, 1, 3, 1])))
    found = re.match(
        r"BatchNorm2d: the gradient of bias \(4,\) is wrong at \(2,\): "
        r"backward says (\S+), the numeric derivative is (\S+) \(ratio 3, error (\S+) of the largest, allowed 1e-12\)"
        r"\. 1 of 4 elements differ: is a term missing",
        message,
    )
    assert found, message
    assert float(found[1]) == pytest.approx(3 * float(found[2]), rel=1e-12)
    assert 0 < float(found[3])


def test_hints():
    assert hint_of(changed(norm(), dx=times(7))).endswith(
        "Every element is 7 times too large: mean or sum? counted twice?"
    )
    assert "Every element is 0.0333333 times too large" in hint_of(changed(norm(), bias=times(1 / 30)))
    assert hint_of(changed(norm(), dx=times(-1))).endswith("Only the sign is wrong.")
    assert hint_of(changed(norm(), dx=times(0))).endswith("It is 0 everywhere: not connected, or never added to .grad?")
    flipped = changed(conv(4, 4, 3, groups=4), weight=lambda g: g[:, :, ::-1, ::-1].copy())
    assert hint_of(flipped).endswith("The same numbers stand in other places: transposed, flipped or shifted?")
    assert hint_of(changed(conv(4, 3, 3), dx=border_counts_twice)).endswith(
        f"{2 * 4 * 3} of {X.size} elements differ: is a term missing, or a border treated differently?"
    )
    hidden = np.count_nonzero(X < 0)  # dy · dy·mask = (dy·mask)², yet a forgotten mask is no rounding
    assert f"{hidden} of {X.size} elements differ" in hint_of(broken(sn.ReLU(), no_mask))


BAD = {"gain": lambda p, x, dy: 2 * per(dy * x)}
FIRST = r"The first wrong layer, from the last one back: "


class Own(sn.Sequential):
    """A chain with a forward of its own, which only it knows to walk."""

    def forward(self, x):
        return 2 * super().forward(x)

    def backward(self, dy):
        return super().backward(2 * dy)


def bad():
    return formula(AFFINE, **BAD)()


NAMED = {
    "deep": (lambda: deep(changed(norm(), weight=times(2))), r"block\.1 \(BatchNorm2d\): the gradient of weight \(4,\)"),
    "the last of two": (
        lambda: sn.Sequential(bad(), sn.ReLU(), sn.Residual({"a": sn.Sequential(bad(), conv(4, 4, 1)), "b": sn.ReLU()})),
        r"2\.a\.0 \(Formula\): the gradient of gain",
    ),
    "its dx": (
        lambda: sn.Sequential(conv(4, 4, 1), changed(norm(), dx=times(3)), dropout()),
        r"1 \(BatchNorm2d\): the gradient of x .* Every element is 3 times too large",
    ),
    "+= forgotten": (
        lambda: sn.Sequential(sn.ReLU(), changed(conv(4, 4, 1), bias=lambda g: g + 1)),
        r"1 \(Conv2d\): the gradient of bias",
    ),
    "a container": (
        lambda: sn.Sequential(conv(4, 4, 1), broken(sn.Residual(norm(), sn.ReLU()), no_shortcut)),
        r"1 \(Residual\): the gradient of x",
    ),
    "a forward of its own": (
        lambda: sn.Sequential(Own(conv(4, 4, 1), bad()), sn.ReLU()), r"0 \(Own\): the gradient of 1\.gain",
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", ["complex-step", "finite-difference"])
@pytest.mark.parametrize("name", NAMED)
def test_the_wrong_layer_of_a_network_is_named(name, method):
    make, layer = NAMED[name]
    with pytest.raises(sn.GradientMismatch, match=rf"^Sequential: the gradient of .+ {FIRST}{layer}"):
        sn.gradcheck(make(), X, method=method, samples=20)


def test_the_wrong_layer_of_mobilenets_blocks_is_named():
    class Small(sn.Sequential):  # a chain's class without a forward of its own, as MobileNetV2 is
        def __init__(self):
            make = {"always_expand": True, "dtype": np.float32, "rng": np.random.default_rng(2)}
            super().__init__(
                {"stem": conv(4, 2, 1), "blocks": sn.Sequential(*(inverted_residual(2, 2, 2, 1, **make) for _ in "ab"))}
            )

    network = Small()
    changed(network.blocks[0].conv[1][1], weight=times(2))
    message = rf"^Small: .+ {FIRST}blocks\.0\.conv\.1\.1 \(BatchNorm2d\): the gradient of weight \("
    with pytest.raises(sn.GradientMismatch, match=message):
        sn.gradcheck(network, X, samples=9)


@pytest.mark.parametrize("method", ["complex-step", "finite-difference"])
def test_a_rectifier_on_its_kink_is_not_taken_for_the_wrong_layer(method):
    """Behind a rectifier half of the numbers are 0, the next one's kink, which a difference straddles."""
    net = sn.Sequential(bad(), sn.ReLU(), sn.ReLU6())
    with pytest.raises(sn.GradientMismatch, match=rf"{FIRST}0 \(Formula\)"):
        sn.gradcheck(net, X, method=method)


def test_where_every_layer_is_right_the_container_is_to_blame():
    message = r"^Residual: the gradient of x .* Each of its layers is right alone: is it how Residual joins them\?$"
    with pytest.raises(sn.GradientMismatch, match=message):
        sn.gradcheck(broken(sn.Residual(norm(), sn.ReLU()), no_shortcut), X)
    assert "layer" not in hint_of(changed(norm(), dx=times(7)))


@pytest.mark.parametrize(("hold", "message"), [
    (lambda: [sn.ReLU(), sn.Linear(7, 7)], r"Net\.net\.layers is a list: its ReLU is not registered"),
    (lambda: (1, sn.Linear(7, 7)), r"Net\.net\.layers is a tuple: its Linear is not registered"),
    (lambda: {"a": [sn.Linear(7, 7)]}, r"Net\.net\.layers is a dict: its Linear is not registered"),
    (lambda: [sn.Parameter(np.ones(7))], r"Net\.net\.layers is a list: its Parameter is not registered"),
])  # fmt: skip
def test_layers_in_a_plain_list_are_named(hold, message):
    class Net(sn.Module):
        def forward(self, x):
            return self.net.forward(x)

        def backward(self, dy):
            return self.net.backward(dy)

    net = Net()
    net.net = sn.Sequential(sn.Linear(7, 5))
    net.also = [net.net, net.net[0], 1, "text"]  # a second name for what is registered is none
    sn.gradcheck(net, LINEAR_X)
    net.net(LINEAR_X.astype(np.float32))  # the steps that a chain keeps are its own business
    net.net.layers = hold()
    with pytest.raises(ValueError, match=f"^{message}, put it in a Sequential or assign it as an attribute$"):
        sn.gradcheck(net, LINEAR_X)


# Where it checks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_every_number_is_drawn_and_a_deep_networks_activations_stay_in_range(mode):
    """Without the draw some ReLU6 of the blog's network in eval mode see nothing above 1e-8; none may be at its bounds."""
    seen = []

    class Watching(sn.ReLU6):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    for variant in ("cifar", "blog"):
        network = MobileNetV2(7, 0.25, variant, dtype=np.float64, rng=np.random.default_rng(3))
        for _, part in network.named_modules():
            if type(part) is sn.ReLU6:
                part.__class__ = Watching
        network.train() if mode == "train" else network.eval()
        probe = Probe(network, normal(np.random.default_rng(4), (3, 3, 32, 24)))
        move(probe, np.random.default_rng(5))
        for name, value in (probe.module.state_dict() | {"": np.ones(())}).items():
            before = dict(network.state_dict()).get(name)
            assert before is None or "tracked" in name or not np.any(value == before), name
            assert "running_var" not in name or (value > 0).all()
        seen.clear()
        probe.forward()
        assert len(seen) > 30
        assert all(0.1 < x.std() < 10 and (x > 0).mean() > 0.1 and (x < 6).mean() > 0.7 for x in seen)


@pytest.mark.parametrize(("start", "forward"), [
    (1.0, lambda p, x: x * np.log(p.w)),
    (0.9, lambda p, x: x * np.sqrt(1 - p.w)),
    (0.0, lambda p, x: x * np.arccosh(1 + p.w)),
])  # fmt: skip
def test_a_draw_that_a_layer_does_not_take_is_drawn_nearer(start, forward):
    """Only positive, only below 1, only not negative: a y that is not finite is no place for a check."""
    probe = Probe(formula((forward, {}, {"w": start * ONES}))(), X)
    move(probe, np.random.default_rng(0))
    assert np.isfinite(probe.forward()).all() and not np.any(probe.parameters()["w"] == start)


def test_where_no_draw_is_taken_the_values_stay():
    def forward(p, x):
        if not (p.w == 1).all():
            raise ValueError("only ones")
        return p.w * x

    layer = formula((forward, {"x": lambda p, x, dy: dy, "w": lambda p, x, dy: per(dy * x)}, {"w": ONES}))()
    probe = Probe(layer, X)
    move(probe, np.random.default_rng(0))
    assert (probe.parameters()["w"] == 1).all() and np.array_equal(probe.forward(), X)


def test_a_difference_that_meets_a_kink_is_taken_again_elsewhere():
    """A rectifier behind drawn parameters: among so many numbers some draw puts one within the step of its kink."""
    net = sn.Sequential(norm(), sn.ReLU(), norm(), sn.ReLU6())
    assert all(sn.gradcheck(net, X, method="four-point", rng=np.random.default_rng(k)).worst <= 1e-9 for k in range(9))


def test_every_forward_starts_from_the_same_buffers():
    """A norm by the running average of the square, this batch included: a state that moved on would be another function."""

    class Running(sn.Module):
        buffers = ("square", "count")

        def __init__(self):
            self.square, self.count = np.ones(4), np.zeros((), int)

        def forward(self, x):
            old, self.count = self.square, self.count + 1
            self.square = 0.9 * old + 0.1 * (x * x).mean(axis=(0, 2, 3))
            y = x / self.square[:, None, None] ** 0.5
            self.save_cache((x, self.square[:, None, None].copy()), y)
            return y

        def backward(self, dy):
            x, square = self.take_cache(dy)
            return dy / square**0.5 - 0.1 * x * per(dy * x) / square**1.5 / (x.size / 4)

    layer = Running()
    assert sn.gradcheck(layer, X).worst < 1e-12 and layer.count == 0 and (layer.square == 1).all()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize(("where", "call"), [("forward", 4), ("backward", 2)])
def test_whatever_happens_the_module_stays_as_it_is(where, call, error):
    calls = []

    class Fails(sn.ReLU):
        def forward(self, x):
            return self.count("forward", super().forward(x))

        def backward(self, dy):
            return self.count("backward", super().backward(dy))

        def count(self, name, result):
            calls.append(name)
            if calls.count(where) == call:  # past the draw, and in the middle of the check
                raise error
            return result

    network = sn.Sequential(norm(), Fails())
    arrays = [*network.state_dict().values(), *(p.grad for p in network.parameters())]
    network[0].weight.grad[...] = 3
    before = [value.tobytes() for value in arrays]
    with pytest.raises(error):
        sn.gradcheck(network, X)
    assert calls.count(where) == call and [value.tobytes() for value in arrays] == before


# What it reports ------------------------------------------------------------------------------------------------------


def test_the_report_is_a_table():
    report = sn.gradcheck(net(), X)
    assert isinstance(report, sn.GradcheckReport) and report.title == "Sequential"
    title, header, *lines = str(report).splitlines()
    assert title == "Sequential, complex-step, rtol 1e-12"
    assert header.split() == ["name", "shape", "checked", "worst", "error", "where"]
    assert len(lines) == len(report.rows) == 1 + len(net().parameters()) + 1
    shapes = {"x": X.shape} | {name: p.data.shape for name, p in net().named_parameters()} | {"adjoint test": ()}
    for line, row in zip(lines, report.rows, strict=True):
        assert row.shape == shapes.pop(row.name)
        columns = (row.name, str(row.shape), str(row.checked), f"{row.error:.1e}")
        assert re.fullmatch(rf"  {' +'.join(map(re.escape, columns))}  (\(.*\))?", line)
        assert row.checked == (8 if row.name == "adjoint test" else int(np.prod(row.shape)))
        assert row.name == "adjoint test" or (len(row.where) == len(row.shape) and str(row.where[0]) in line)
    assert not shapes
    assert report.worst == max(row.error for row in report.rows) < 1e-12


def test_samples_checks_so_many_of_each_array():
    report = sn.gradcheck(conv(4, 3, 3), X, samples=5)
    assert [(row.name, row.checked) for row in report.rows] == [
        ("x", 5),
        ("weight", 5),
        ("bias", 3),
        ("adjoint test", 8),
    ]
    assert report.rows[0].shape == X.shape
    asked = []

    class Counting(sn.Conv2d):
        def forward(self, x):
            asked.append(x)
            return super().forward(x)

    sn.gradcheck(Counting(4, 3, 3), X, samples=5, rng=np.random.default_rng(1))
    few = len(asked)
    sn.gradcheck(Counting(4, 3, 3), X, samples=50, rng=np.random.default_rng(1))
    assert len(asked) - few == few + 2 * 45  # one forward for each element of x and of the weight


def test_the_adjoint_test_sees_what_samples_left_out():
    """One wrong element among 120, two of them sampled: eight directions have all of them."""
    with pytest.raises(
        sn.GradientMismatch, match=r"^Conv2d: adjoint test failed: ⟨dy, J v⟩ = \S+ but ⟨Jᵀ dy, v⟩ = \S+$"
    ):
        sn.gradcheck(changed(conv(4, 3, 3), dx=one_element), X, samples=2)


def test_the_generator_given_draws_the_upstream_gradient():
    """Random, and another one for another generator; the same for the same."""
    seen = []

    class Watching(sn.ReLU):
        def backward(self, dy):
            seen.append(dy.copy())
            return super().backward(dy)

    def upstream(**options):
        seen.clear()
        sn.gradcheck(Watching(), X, **options)
        return seen[0]

    default, seven = upstream(), upstream(rng=np.random.default_rng(7))
    assert np.array_equal(default, upstream()) and np.array_equal(seven, upstream(rng=np.random.default_rng(7)))
    assert not np.array_equal(default, seven)
    assert len(np.unique(default)) == default.size and (default < 0).any()
    distinct = {dy.tobytes() for dy in seen}
    assert len(distinct) == 1 + gradcheck_module.DIRECTIONS  # the adjoint test has one of its own in each direction


def test_rtol_is_the_line():
    off = functools.partial(changed, dx=times(1 + 1e-6))
    assert sn.gradcheck(off(norm()), X, rtol=1e-4).rtol == 1e-4
    with pytest.raises(sn.GradientMismatch, match=r"allowed 1e-08"):
        sn.gradcheck(off(norm()), X, rtol=1e-8)
    with pytest.raises(sn.GradientMismatch, match=r"allowed 1e-18\)\. It is right but for rounding"):
        sn.gradcheck(norm(), X, rtol=1e-18)


@pytest.mark.parametrize("method", ["complex_step", "", None, "forward"])
def test_another_method_is_refused(method):
    message = rf"^gradcheck: method must be one of complex-step, finite-difference, four-point, got {method!r}$"
    with pytest.raises(ValueError, match=message):
        sn.gradcheck(sn.ReLU(), X, method=method)


# What it leaves alone -------------------------------------------------------------------------------------------------


@EVERY_METHOD
@pytest.mark.parametrize("mode", ["train", "eval", "eval that saves"])
def test_the_module_stays_as_it_is(mode, method):
    module = net().astype(np.float32)
    x = X.astype(np.float32)
    {"train": module.train, "eval": module.eval, "eval that saves": lambda: module.eval(save=True)}[mode]()
    rng = module.head[2].rng
    for parameter in module.parameters():
        parameter.grad[...] = 3
    y = module(x)
    arrays = [*module.state_dict().values(), *(p.grad for p in module.parameters()), x]
    before = copy.deepcopy(
        (arrays, rng.bit_generator.state, [vars(m).get("training") for _, m in module.named_modules()])
    )
    report = sn.gradcheck(module, x, method=method, samples=9)
    assert report.worst <= METHODS[method]
    after = arrays, rng.bit_generator.state, [vars(m).get("training") for _, m in module.named_modules()]
    assert all(
        np.array_equal(now, then) and now.dtype == then.dtype for now, then in zip(after[0], before[0], strict=True)
    )
    assert after[1:] == before[1:]
    assert all(now is value for now, value in zip(module.state_dict().values(), arrays, strict=False))
    assert {m.saves for _, m in module.named_modules()} == {mode != "eval"}
    if mode != "eval":
        assert module.backward(y).dtype == np.float32  # even the cache of the forward before


def test_arrays_of_a_pair_stay_as_they_are():
    arrays = LINEAR_X.copy(), draw(5, 7), draw(5)
    before = [array.copy() for array in arrays]
    sn.gradcheck((linear_forward, linear_backward), arrays)
    assert all(np.array_equal(now, then) for now, then in zip(arrays, before, strict=True))


def test_a_float32_module_is_checked_in_float64():
    module = net().astype(np.float32)
    assert sn.gradcheck(module, X.astype(np.float32)).worst < 1e-12
    assert sn.gradcheck(sn.ReLU(), [[1, -2], [3, 4]]).worst <= 1e-15  # integers in a list, too


def test_the_current_mode_is_checked():
    """Eval mode's derivative has no part through the statistics, training's has; each backward fails in the other."""
    sn.gradcheck(broken(norm(), norm_is_never_frozen), X)
    with pytest.raises(sn.GradientMismatch):
        sn.gradcheck(broken(norm().eval(), norm_is_never_frozen), X)


# Randomness, kinks, complex numbers -----------------------------------------------------------------------------------


def test_dropout_is_replayed_and_a_hidden_generator_is_not():
    """A generator that the module holds is set back before every forward; one that it does not hold cannot be."""
    hidden = np.random.default_rng(0)

    class Hidden(sn.Module):
        def forward(self, x):
            keep = hidden.random(x.shape) >= 0.4
            self.save_cache(keep, x)
            return x * keep

        def backward(self, dy):
            return dy * self.take_cache(dy)

    sn.gradcheck(dropout(), X)
    with pytest.raises(sn.GradientMismatch, match="^Hidden: "):
        sn.gradcheck(Hidden(), X)


@pytest.mark.parametrize(("kink", "layer"), [(0.0, sn.ReLU), (0.0, sn.ReLU6), (6.0, sn.ReLU6)])
def test_on_a_kink_a_complex_step_stays_on_the_layers_side_and_a_difference_straddles(kink, layer):
    """Backward has the slope of one side, 0, and so has the complex step, which never leaves the point.

    A central difference takes the mean of both slopes, 1/2: the checker says so, and so it must be kept off kinks.
    """
    x = X.copy()
    x[1, 2, 3, 2] = kink
    assert sn.gradcheck(layer(), x).worst <= 1e-15
    message = (
        rf"^{layer.__name__}: the gradient of x .* at \(1, 2, 3, 2\): backward says (0|-0), .* 1 of 120 elements differ"
    )
    for method in ("finite-difference", "four-point"):
        with pytest.raises(sn.GradientMismatch, match=message):
            sn.gradcheck(layer(), x, method=method)


@given(rngs(), geometries(kernel=(3, 3), groups=1))
def test_a_dead_channel_sits_on_a_kink_and_a_complex_step_does_not_push_it_off(rng, g):
    """Pictures of zeros among others: zeros all the way, where h² of a larger h would open the rectifier by rounding."""
    x, _, _ = g.arrays(rng)
    x[rng.random(g.n) < 0.7] = 0
    sn.gradcheck(sn.Sequential(g.layer(rng, bias=False), sn.ReLU6()), x, rng=rng)


def test_nearer_to_a_kink_than_a_step_a_difference_crosses_it():
    x = X.copy()
    x[1, 2, 3, 2] = 1e-6
    assert sn.gradcheck(sn.ReLU(), x).worst <= 1e-15
    with pytest.raises(sn.GradientMismatch, match=r"at \(1, 2, 3, 2\)"):
        sn.gradcheck(sn.ReLU(), x, method="finite-difference")
    x[1, 2, 3, 2] = 1e-3
    sn.gradcheck(sn.ReLU(), x, method="finite-difference")


class Real(sn.Module):
    """y = |x|, computed in one of the ways that lose an imaginary part."""

    def __init__(self, way):
        self.way = way

    def forward(self, x):
        self.save_cache(np.sign(x), x)
        return self.way(x)

    def backward(self, dy):
        return dy * self.take_cache(dy)


def real_buffer(x):
    y = np.empty(x.shape)
    y[...] = np.sqrt(x * x)
    return y


WAYS = {
    "a ufunc without complex numbers": lambda x: np.hypot(x, 0),
    "a real buffer": real_buffer,
    "a real out=": lambda x: np.multiply(x, np.sign(x), out=np.empty(x.shape)),
    "a cast": lambda x: np.sqrt(x * x).astype(np.float64),
    "np.dot(out=)": lambda x: np.sqrt(np.dot((x * x).reshape(-1, 3), np.eye(3), out=np.empty((40, 3)))).reshape(
        x.shape
    ),
    "its own check": lambda x: np.sqrt(x * x) if x.dtype == float else float("float64 only"),
    "float()": lambda x: np.array([abs(float(v)) for v in x.ravel()]).reshape(x.shape),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_forward_that_takes_no_complex_numbers_is_sent_to_differences(way):
    message = r"^Real cannot compute on complex numbers \(.+\): use method='finite-difference'$"
    with pytest.raises(TypeError, match=message):
        sn.gradcheck(Real(WAYS[way]), X)
    assert sn.gradcheck(Real(WAYS[way]), X, method="finite-difference").worst <= 1e-7
    assert sn.gradcheck(Real(WAYS[way]), X, method="four-point").worst <= 1e-9


SILENT = {
    "np.abs": np.abs,
    ".real": lambda x: np.sqrt(x.real**2),
    "np.sign": lambda x: np.sign(x) * x,  # z²/|z| has a derivative, twice as large as that of |x|
    "np.vdot": lambda x: np.sqrt(np.reshape([np.vdot(v, v) for v in x.ravel()], x.shape)),
    "np.linalg.norm": lambda x: np.linalg.norm(x[..., None], axis=-1),
    "np.var": lambda x: np.var([x, -x], axis=0) ** 0.5,
    "a little of it": lambda x: np.sqrt(x * x) + 1e-4 * (np.abs(x) - np.sqrt(x * x)),
}


@pytest.mark.parametrize("samples", [None, 2])
@pytest.mark.parametrize("way", SILENT)
def test_a_forward_that_is_not_complex_differentiable_is_sent_to_differences(way, samples):
    """A function that takes a complex number and gives a wrong one: in a network the layer is named."""
    assert sn.gradcheck(Real(SILENT[way]), X, method="finite-difference").worst <= 1e-7
    message = (
        r"Real\)? cannot compute on complex numbers \(.*np\.abs, .* not complex-differentiable\): use method='finite"
    )
    for module, start in (
        (Real(SILENT[way]), ""),
        (sn.Sequential(conv(4, 4, 1), Real(SILENT[way])), r"Sequential: 1 \("),
    ):
        with pytest.raises(TypeError, match=f"^{start}{message}-difference'$"):
            sn.gradcheck(module, X, samples=samples)


def test_a_wrong_backward_of_such_a_forward_is_a_mismatch_that_a_difference_is_quoted_in():
    wrong = changed(Real(np.abs), dx=times(2))
    assert re.search(
        r"A difference gives \S+, neither of the two: .*np\.abs.*method='finite-difference'", hint_of(wrong)
    )
    with pytest.raises(sn.GradientMismatch, match="Every element is 2 times too large"):
        sn.gradcheck(wrong, X, method="finite-difference")


def test_the_adjoint_test_asks_a_difference_too():
    """One |x| among 120 numbers, which samples leave out."""

    def one(x):
        return np.where(np.arange(X.size).reshape(X.shape) == 7, np.abs(x), x)

    class One(sn.Module):
        def forward(self, x):
            y = one(x)
            self.save_cache(np.where(one(np.ones_like(x) * -1) > 0, np.sign(x), 1), y)
            return y

        def backward(self, dy):
            return dy * self.take_cache(dy)

    with pytest.raises(TypeError, match="a difference agrees with backward"):
        sn.gradcheck(One(), X, samples=1)


@EVERY_METHOD
def test_a_type_error_of_ones_own_is_not_blamed_on_complex_numbers(method):
    class Typo(sn.Module):
        def forward(self, x):
            return x + "1"

    with pytest.raises(TypeError) as caught:
        sn.gradcheck(Typo(), X, method=method)
    assert "complex" not in str(caught.value)


# A layer of one's own -------------------------------------------------------------------------------------------------


def test_the_docstrings_layer_runs_as_it_stands():
    lines = gradcheck_module.__doc__.splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith("    class "))
    last = next(k for k, line in enumerate(lines) if line.startswith("    print("))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(textwrap.dedent("\n".join(lines[first : last + 1])), {"sn": sn, "np": np})
    table = printed.getvalue().splitlines()
    assert table[0] == "Scale, complex-step, rtol 1e-12"
    assert [line.split()[0] for line in table[1:]] == ["name", "x", "gain", "adjoint"]


class Power(sn.Module):
    """y = gain·gain·x: a parameter used twice, its gradient added in two terms."""

    def __init__(self, size):
        self.gain = sn.Parameter(np.random.default_rng(1).standard_normal(size))

    def forward(self, x):
        inner = self.gain.data * x
        y = self.gain.data * inner
        self.save_cache((x, inner), y)
        return y

    def backward(self, dy):
        x, inner = self.take_cache(dy)
        self.gain.grad += (dy * inner).sum(axis=0)
        dinner = dy * self.gain.data
        self.gain.grad += (dinner * x).sum(axis=0)
        return dinner * self.gain.data


@EVERY_METHOD
@given(rng=rngs(), n=st.integers(1, 9), size=st.integers(1, 9))
def test_a_gradient_added_in_two_terms_is_right(method, rng, n, size):
    """(a + b) + a + b is 2 (a + b) but for rounding."""
    sn.gradcheck(Power(size), normal(rng, (n, size)), method=method, rng=rng)


@pytest.mark.parametrize("term", ["first", "second"])
def test_a_gradient_assigned_in_one_of_two_terms_is_rejected(term):
    class Assigns(Power):
        def backward(self, dy):
            before = self.gain.grad.copy()
            x, inner = self.take_cache(dy)
            terms = (dy * inner).sum(axis=0), (dy * self.gain.data * x).sum(axis=0)
            self.gain.grad = terms[0] + (before if term == "second" else 0)
            self.gain.grad = terms[1] + (self.gain.grad if term == "first" else 0)
            return dy * self.gain.data**2

    with pytest.raises(sn.GradientMismatch, match=r"^Assigns: gain\.grad is not twice as large"):
        sn.gradcheck(Assigns(5), draw(3, 5))


def test_a_constant_has_gradient_0_and_a_backward_that_says_otherwise_is_rejected():
    class Constant(sn.Module):
        says = 0

        def forward(self, x):
            y = 0 * x + 1
            self.save_cache(None, y)
            return y

        def backward(self, dy):
            self.take_cache(dy)
            return self.says * dy

    assert sn.gradcheck(Constant(), X).worst == 0
    Constant.says = 1e-3
    for method in METHODS:
        with pytest.raises(
            sn.GradientMismatch, match=r"^Constant: the gradient of x .* numeric derivative is \S+ \(ratio"
        ):
            sn.gradcheck(Constant(), X, method=method)


@pytest.mark.parametrize(("returns", "message"), [
    (lambda dy: None, r"^Own: backward must return dx of shape \(3, 7\), got NoneType"),
    (lambda dy: dy.T, r"^Own: backward must return dx of shape \(3, 7\), got \(7, 3\)"),
    (lambda dy: dy.sum(axis=0), r"^Own: backward must return dx of shape \(3, 7\), got \(7,\)"),
])  # fmt: skip
def test_a_backward_that_returns_no_dx_is_named(returns, message):
    class Own(sn.Module):
        def forward(self, x):
            self.save_cache(None, x)
            return x + 0

        def backward(self, dy):
            self.take_cache(dy)
            return returns(dy)

    with pytest.raises(sn.GradientMismatch, match=message):
        sn.gradcheck(Own(), LINEAR_X)


def test_a_function_pair_must_return_a_gradient_for_each_array():
    with pytest.raises(ValueError, match="argument 2 is shorter than argument 1"):
        sn.gradcheck(
            (linear_forward, lambda dy, cache: linear_backward(dy, cache)[:2]), (LINEAR_X, draw(5, 7), draw(5))
        )


def test_the_pair_of_batch_norm_by_a_wrapper():
    """A forward that returns more than (y, cache), with options: two lines make a pair of it."""

    def forward(x, weight, bias):
        y, _, _, cache = batch_norm_forward(x, weight, bias, 0.01)
        return y, cache

    report = sn.gradcheck((forward, batch_norm_backward), (X, draw(4), draw(4)))
    assert [(row.name, row.shape) for row in report.rows[:3]] == [("x", X.shape), ("x1", (4,)), ("x2", (4,))]


# python -m scratchnet.gradcheck ---------------------------------------------------------------------------------------


def run(*arguments, **options):
    command = [sys.executable, "-m", "scratchnet.gradcheck", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_the_command_helps_and_refuses_what_it_does_not_know():
    out, error = (helped := run("--help")).communicate(timeout=60)
    assert helped.returncode == 0 and out.startswith("usage: python -m scratchnet.gradcheck") and not error
    for arguments in (["--sample", "3"], ["conv"]):
        out, error = (refused := run(*arguments)).communicate(timeout=60)
        assert refused.returncode == 2 and not out
        assert error == f"python -m scratchnet.gradcheck: takes nothing but --help, got {' '.join(arguments)}\n"


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="pipes are closed in another way here")
def test_a_reader_that_leaves_ends_the_command_without_a_word():
    command = run()
    assert command.stdout.readline().startswith("checked ")
    command.stdout.close()
    assert command.stderr.read() == "" and command.wait(timeout=60) == -signal.SIGPIPE
    command.stderr.close()
