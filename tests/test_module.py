"""The contract of modules: what a tree holds, its modes, one forward for one backward."""

import copy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from networks import Scale, picture, tree
from strategies import normal, rngs

import scratchnet as sn

KEYS = [
    "stem.0.weight", "stem.0.bias",
    "block.body.0.weight",
    "block.body.1.weight", "block.body.1.bias",
    "block.body.1.running_mean", "block.body.1.running_var", "block.body.1.num_batches_tracked",
    "block.scale.gain",
    "head.2.weight",
]  # fmt: skip
PARAMETERS = [key for key in KEYS if "running" not in key and "tracked" not in key]


# What a tree holds ----------------------------------------------------------------------------------------------------


def test_state_dict_has_every_parameter_and_buffer_in_order_of_definition():
    net = tree()
    assert list(net.state_dict()) == KEYS
    assert [name for name, _ in net.named_parameters()] == PARAMETERS
    assert [id(p) for p in net.parameters()] == [id(p) for _, p in net.named_parameters()]


def test_state_dict_gives_the_arrays_themselves():
    net = tree()
    state = net.state_dict()
    for name, parameter in net.named_parameters():
        assert state[name] is parameter.data
    norm = net.block.body[1]
    assert state["block.body.1.running_var"] is norm.running_var
    before = {name: value.copy() for name, value in state.items()}
    net(picture())  # in training: the statistics move, in these very arrays
    assert not np.array_equal(state["block.body.1.running_mean"], before["block.body.1.running_mean"])
    assert state["block.body.1.num_batches_tracked"] == 1
    assert all(now is then for now, then in zip(net.state_dict().values(), state.values(), strict=True))


def test_order_and_names_are_pytorchs(torch):
    nn = torch.nn
    theirs = nn.Sequential()
    theirs.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6())
    theirs.body = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4))
    theirs.head = nn.Linear(4, 5)
    ours = sn.Sequential({
        "stem": sn.Sequential(sn.Conv2d(3, 4, 3), sn.ReLU6()),
        "body": sn.Sequential(sn.Conv2d(4, 4, 3, groups=4, bias=False), sn.BatchNorm2d(4)),
        "head": sn.Linear(4, 5),
    })  # fmt: skip
    want = [(name, tuple(value.shape)) for name, value in theirs.state_dict().items()]
    assert [(name, value.shape) for name, value in ours.state_dict().items()] == want
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    ours.load_state_dict(theirs.state_dict())  # tensors, as they are
    assert np.array_equal(ours.head.weight.data, theirs.head.weight.detach().numpy())


def test_named_modules_are_the_tree_depth_first():
    names = [name for name, _ in tree().named_modules()]
    assert names == [
        "", "stem", "stem.0", "stem.1", "block", "block.body", "block.body.0", "block.body.1", "block.scale",
        "pool", "head", "head.0", "head.1", "head.2",
    ]  # fmt: skip
    assert [name for name, _ in tree().named_modules("net")][:3] == ["net", "net.stem", "net.stem.0"]


def test_a_parameter_starts_with_gradient_0():
    parameter = sn.Parameter(np.arange(6, dtype=np.float32).reshape(3, 2))
    assert parameter.grad.shape == (3, 2) and parameter.grad.dtype == np.float32 and not parameter.grad.any()
    assert parameter.decay and not sn.Parameter(np.ones(2), decay=False).decay
    assert repr(parameter) == "Parameter(shape=(3, 2), dtype=float32)"


def test_sequential_names_indexes_and_opens_up():
    first, second, third = sn.ReLU(), sn.ReLU6(), Scale(2)
    net = sn.Sequential({"a": sn.Sequential(first, second), "b": sn.Residual(third)})
    assert len(net) == 2 and net[0] is net.a and net[-1] is net.b and net.a[1] is second
    start, *inside, end = list(net.chain())[2:]
    assert list(net.chain())[:2] == [("a.0", first), ("a.1", second)] and inside == [("b.0", third)]
    assert [(name, mark.container, mark.place) for name, mark in (start, end)] == [
        ("b", net.b, "open"),
        ("b", net.b, "close"),
    ]
    assert [name for name, _ in sn.Sequential(first, third).named_children()] == ["0", "1"]

    class Named(sn.Sequential):
        pass

    class Own(sn.Sequential):  # does something else: stays whole
        def backward(self, dy):
            return 2 * super().backward(dy)

    own = Own(first)
    assert list(sn.Sequential(own).chain()) == [("0", own)]
    assert list(sn.Sequential(Named(first)).chain()) == [("0.0", first)]


def test_a_slice_of_a_sequential_is_one_of_the_same_layers():
    net = sn.Sequential({"a": Scale(3), "b": sn.ReLU(), "c": sn.ReLU6()})
    part = net[1:]
    assert type(part) is sn.Sequential and part.named_children() == [("b", net.b), ("c", net.c)]
    assert len(net[:0]) == 0 and list(net[::2]) == [net.a, net.c]
    x = picture()
    np.testing.assert_array_equal(net[0:2](x), net.b(net.a(x)))


def test_repr_shows_the_layers_as_they_were_made():
    body = sn.Residual(sn.Conv2d(4, 4, (3, 1), stride=2, groups=4, bias=False), sn.BatchNorm2d(4))
    net = sn.Sequential({"body": body, "head": sn.Linear(4, 2), "drop": sn.Dropout(0.3, rng=np.random.default_rng(0))})
    assert repr(net) == (
        "Sequential(\n  (body): Residual(\n"
        "    (0): Conv2d(4, 4, kernel_size=(3, 1), stride=(2, 2), groups=4, bias=False)\n"
        "    (1): BatchNorm2d(4, eps=1e-05, momentum=0.1)\n  )\n"
        "  (head): Linear(4, 2)\n  (drop): Dropout(p=0.3)\n)"
    )
    assert repr(sn.ReLU()) == "ReLU()" and repr(sn.AvgPool2d(2)).startswith("AvgPool2d(kernel_size=(2, 2)")


def test_sequential_of_nothing_changes_nothing():
    x = picture()
    assert sn.Sequential()(x) is x and sn.Sequential().backward(x) is x
    net = sn.Sequential(sn.Sequential(), sn.Residual())
    assert np.array_equal(net(x), 2 * x) and np.array_equal(net.backward(x), 2 * x)


# Loading --------------------------------------------------------------------------------------------------------------


def test_load_state_dict_copies_into_the_arrays():
    source, net = tree(seed=1), tree(seed=2)
    source(picture())
    arrays = net.state_dict()
    net.load_state_dict(source.state_dict())
    for name, value in net.state_dict().items():
        assert np.array_equal(value, source.state_dict()[name]), name
        assert value is arrays[name] and not np.shares_memory(value, source.state_dict()[name]), name
    x = picture()
    assert np.array_equal(net.eval()(x), source.eval()(x))


def test_load_state_dict_keeps_the_dtype_and_takes_lists():
    net = sn.BatchNorm2d(2)
    net.load_state_dict({
        "weight": [1.5, 2], "bias": np.array([3, 4]), "running_mean": np.array([0.1, 0.2]), "running_var": (5, 6),
        "num_batches_tracked": 9,
    })  # fmt: skip
    assert net.weight.data.tolist() == [1.5, 2] and net.running_var.tolist() == [5, 6] and net.num_batches_tracked == 9
    assert {value.dtype.name for value in net.state_dict().values()} == {"float32", "int64"}


def test_load_state_dict_not_strict_takes_what_fits():
    net, before = tree(), copy.deepcopy(tree()).state_dict()
    state = {"head.2.weight": np.full((5, 4), 3.0), "classifier.weight": np.ones(2)}
    missing, unexpected = keys = net.load_state_dict(state, strict=False)
    assert missing == [key for key in KEYS if key != "head.2.weight"] and unexpected == ["classifier.weight"]
    assert (keys.missing_keys, keys.unexpected_keys) == (missing, unexpected)
    assert net.load_state_dict(net.state_dict()) == ([], [])
    for name, value in net.state_dict().items():
        assert np.array_equal(value, np.full((5, 4), 3.0) if name == "head.2.weight" else before[name]), name


@pytest.mark.parametrize("path", ["best.npz", Path("best.npz")])
def test_a_path_in_the_place_of_a_state_names_the_right_call(path):
    with pytest.raises(
        TypeError, match=r"^Linear: expected a state .*, got the path 'best.npz': .*load_state_dict\(sn.load"
    ):
        sn.Linear(2, 3).load_state_dict(path)


def broken_states():
    state = {name: value + 1 for name, value in tree().state_dict().items()}
    last = KEYS[-1]
    yield (
        "missing",
        {key: value for key, value in state.items() if key != last},
        rf"1 missing keys \['{last}'\], 0 unexp",
    )
    yield (
        "unexpected",
        state | {"head.3.weight": np.ones(2)},
        r"0 missing keys \[\], 1 unexpected keys \['head.3.weight'\]",
    )
    yield "nothing", {}, r"10 missing keys \['stem.0.weight', 'stem.0.bias', 'block.body.0.weight'\], 0 unexpected"
    yield "shape", state | {last: np.ones((4, 5))}, rf"{last} has shape \(5, 4\), the state has \(4, 5\)"
    yield "broadcasts", state | {last: np.ones((1, 4))}, rf"{last} has shape \(5, 4\), the state has \(1, 4\)"
    yield "scalar", state | {last: 1.0}, rf"{last} has shape \(5, 4\), the state has \(\)"


@pytest.mark.parametrize(
    ("state", "message"), [case[1:] for case in broken_states()], ids=[c[0] for c in broken_states()]
)
def test_load_state_dict_that_fails_copies_nothing(state, message):
    net = tree()
    before = {name: value.copy() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=f"^Sequential: .*{message}"):
        net.load_state_dict(state)
    for name, value in net.state_dict().items():
        assert np.array_equal(value, before[name]), name


def test_not_strict_still_refuses_another_shape():
    with pytest.raises(ValueError, match=r"^Linear: weight has shape \(3, 2\), the state has \(2, 3\)"):
        sn.Linear(2, 3).load_state_dict({"weight": np.ones((2, 3))}, strict=False)


def test_load_state_dict_of_what_is_no_number_copies_nothing():
    net = sn.Linear(2, 3, dtype=np.float64)
    before = net.weight.data.copy()
    with pytest.raises((ValueError, TypeError), match="^Linear: bias"):
        net.load_state_dict({"weight": np.ones((3, 2)), "bias": ["a", "b", "c"]})
    assert np.array_equal(net.weight.data, before)


# Modes and conversions ------------------------------------------------------------------------------------------------


def test_modes_hold_for_the_whole_tree():
    net = tree()
    modes = [(net.train, (True, True)), (net.eval, (False, False)), (lambda: net.eval(save=True), (False, True))]
    modes += [(lambda: net.train(True), (True, True)), (lambda: net.train(False), (False, False))]
    assert {(part.training, part.saves) for _, part in net.named_modules()} == {(True, True)}
    for switch, mode in [*modes, *modes[::-1]]:
        assert switch() is net
        assert {(part.training, part.saves) for _, part in net.named_modules()} == {mode}


def test_training_eval_and_eval_that_saves():
    net, x = tree(), picture()
    y = net.train()(x)
    assert np.array_equal(net.backward(np.ones_like(y)).shape, x.shape)
    moved = net.block.body[1].running_mean.copy()
    kept = net.eval(save=True)(x)
    assert np.array_equal(net.eval()(x), kept)  # the same values, with and without saving
    assert np.array_equal(net.block.body[1].running_mean, moved)  # and no statistics moved
    with pytest.raises(
        RuntimeError, match=r"^head\.2 Linear: nothing saved for backward \(the last forward ran in eval mode"
    ):
        net.backward(kept)
    net.eval(save=True)(x)
    assert net.backward(kept).shape == x.shape


def test_eval_keeps_no_array_alive():
    net = tree()
    net(picture())
    net.eval()
    assert all(part._cache is None for _, part in net.named_modules())  # the switch itself drops what training saved
    net(picture())
    assert all(part._cache is None for _, part in net.named_modules())


@pytest.mark.parametrize("switch", ["eval", "train", "astype", "to"])
def test_a_switch_between_forward_and_backward_drops_the_cache(switch):
    net = tree()
    y = net(picture())
    {"eval": net.eval, "train": net.train, "astype": lambda: net.astype(np.float64), "to": lambda: net.to("cpu")}[
        switch
    ]()
    with pytest.raises(RuntimeError, match=r"^head\.2 Linear: nothing saved for backward"):
        net.backward(y)


def test_zero_grad_sets_every_gradient_to_0_in_place():
    net = tree()
    y = net(picture())
    net.backward(np.ones_like(y))
    gradients = [parameter.grad for parameter in net.parameters()]
    assert all(gradient.any() for gradient in gradients[-2:])
    net.zero_grad()
    assert all(
        p.grad is gradient and not gradient.any() for p, gradient in zip(net.parameters(), gradients, strict=True)
    )


@given(rngs())
def test_gradients_of_two_backwards_add_up(rng):
    net = tree()
    net.head[1].p = 0.0  # dropout would draw another mask
    steps = [(picture(rng), normal(rng, (2, 5))) for _ in range(2)]
    singles = []
    for x, dy in steps:
        net.zero_grad()
        net(x)
        net.backward(dy)
        singles.append([p.grad.copy() for p in net.parameters()])
    net.zero_grad()
    for x, dy in steps:
        net(x)
        net.backward(dy)
    for parameter, one, two in zip(net.parameters(), *singles, strict=True):
        assert np.abs(parameter.grad - (one + two)).max() <= 1e-13 * (np.abs(one) + np.abs(two)).max()


def test_astype_converts_everything_that_is_a_float():
    net = tree()
    net(picture())
    before = {name: value.copy() for name, value in net.state_dict().items()}
    assert net.astype(np.float32) is net
    for name, value in net.state_dict().items():
        assert value.dtype == (np.int64 if "tracked" in name else np.float32), name
        assert np.array_equal(value, before[name].astype(value.dtype)), name
    assert {parameter.grad.dtype for parameter in net.parameters()} == {np.dtype(np.float32)}
    y = net(picture(dtype=np.float32))
    assert y.dtype == net.backward(y).dtype == np.float32
    assert net.state_dict()["block.body.1.num_batches_tracked"] == 2


def test_another_dtype_than_the_parameters_is_named_with_its_path():
    message = (
        r"^stem\.0 Conv2d: x is float32 and the parameters are float64: convert one with x\.astype\('float64'\) "
        r"or module\.astype\('float32'\)$"
    )
    with pytest.raises(TypeError, match=message):
        tree()(picture(dtype=np.float32))
    net = tree()
    net.head[2].astype(np.float32)
    with pytest.raises(TypeError, match=r"^head\.2 Linear: x is float64 and the parameters are float32"):
        net(picture())


def test_deepcopy_is_another_network_with_the_same_values():
    net = tree()
    net(picture())
    twin = copy.deepcopy(net)
    for (name, value), other in zip(net.state_dict().items(), twin.state_dict().values(), strict=True):
        assert np.array_equal(value, other) and not np.shares_memory(value, other), name
    x = picture(np.random.default_rng(9))
    y = net(x)
    net.backward(y)
    assert not any(p.grad.any() for p in twin.parameters())
    assert twin.block.body[1].num_batches_tracked == 1  # and its statistics stayed where they were
    assert np.array_equal(twin(x), y)  # the same dropout mask: the copy has a generator of its own, in the same state
    assert twin.block.body[1].num_batches_tracked == 2 and twin.block.body[1].num_batches_tracked.shape == ()


# One forward, one backward --------------------------------------------------------------------------------------------


def test_one_forward_serves_one_backward():
    net = tree()
    with pytest.raises(
        RuntimeError, match=r"^head\.2 Linear: nothing saved for backward \(no forward came before\): each"
    ):
        net.backward(np.ones((2, 5)))
    y = net(picture())
    net.backward(y)
    with pytest.raises(
        RuntimeError, match=r"^head\.2 Linear: nothing saved for backward \(no forward came before\): each"
    ):
        net.backward(y)


def test_backward_is_that_of_the_last_forward():
    net = sn.Sequential(Scale(3))
    net(picture())
    x = picture(np.random.default_rng(5))
    y = net(x)
    net.backward(y)
    assert np.array_equal(net[0].gain.grad, (y * x).sum(axis=(0, 2, 3)))


def test_a_module_used_twice_needs_two_forwards_of_its_own():
    """A layer keeps one cache: a second forward takes the place of the first, and no wrong gradient is returned."""
    layer = Scale(3)
    y = layer(layer(picture()))
    dy = layer.backward(y)
    with pytest.raises(RuntimeError, match="^Scale: nothing saved for backward .*each forward .* serves one backward$"):
        layer.backward(dy)


def test_a_parameter_shared_by_two_layers_gathers_both_gradients():
    """Tying the parameter, not the layer, works: each layer has its own cache, and backward adds."""
    first, second = Scale(3), Scale(3)
    second.gain = first.gain
    x, dy = picture(), picture(np.random.default_rng(5))
    net = sn.Sequential(first, second)
    net(x)
    net.backward(dy)
    want = 2 * first.gain.data * (dy * x).sum(axis=(0, 2, 3))  # ∂(gain²)/∂gain = 2 gain
    np.testing.assert_allclose(first.gain.grad, want, rtol=1e-13)
    twin = copy.deepcopy(net).astype(np.float32)
    assert twin[0].gain is twin[1].gain


# A layer of one's own -------------------------------------------------------------------------------------------------


def test_a_layer_of_ones_own_needs_only_module():
    net = sn.Sequential({"a": sn.ReLU(), "own": Scale(3)})
    assert list(net.state_dict()) == ["own.gain"]
    x = picture()
    assert np.array_equal(net(x), np.maximum(x, 0) * np.array([1.0, 2, 3])[:, None, None])
    assert str(sn.gradcheck(net, x + 1e-3)).count("own.gain") == 1
    with pytest.raises(ValueError, match=r"^own Scale: expected 3 input channels, got x of shape \(2, 4, 5, 6\)$"):
        net(np.ones((2, 4, 5, 6)))


def test_a_module_of_modules_of_ones_own():
    class Twice(sn.Module):
        def __init__(self):
            self.first, self.second = Scale(3), sn.Residual(Scale(3))

        def forward(self, x):
            return self.second(self.first(x))

        def backward(self, dy):
            return self.first.backward(self.second.backward(dy))

    net = sn.Sequential(Twice())
    assert list(net.state_dict()) == ["0.first.gain", "0.second.0.gain"]
    assert net.eval()[0].second[0].saves is False
    sn.gradcheck(net, picture())


def test_a_module_without_a_method_says_which():
    class Empty(sn.Module):
        pass

    with pytest.raises(NotImplementedError, match="^Empty has no forward$"):
        Empty()(picture())
    with pytest.raises(NotImplementedError, match="^Empty has no backward$"):
        Empty().backward(picture())


REFUSED = [
    ([[1.0, 2]], TypeError, r"expected a NumPy or CuPy array \(N, 3, H, W\), got list"),
    (1.0, TypeError, r"expected a NumPy or CuPy array \(N, 3, H, W\), got float"),
    (None, TypeError, r"expected a NumPy or CuPy array \(N, 3, H, W\), got NoneType"),
    (np.float64(1), TypeError, r"expected a NumPy or CuPy array \(N, 3, H, W\), got float64"),
    (np.ones((2, 3)), ValueError, r"expected x of shape \(N, 3, H, W\), got x of shape \(2, 3\)"),
    (np.ones((2, 4, 1, 1)), ValueError, r"expected 3 input channels, got x of shape \(2, 4, 1, 1\)"),
    (np.ones((0, 3, 1, 1)), ValueError, r"x of shape \(0, 3, 1, 1\) is empty, expected at least one picture"),
    (np.ones((2, 3, 0, 1)), ValueError, r"x of shape \(2, 3, 0, 1\) is empty"),
    (
        np.ones((2, 3, 1, 1), int),
        TypeError,
        r"expected floating-point x, got int64: convert it with x\.astype\('float32'\)",
    ),
    (np.full((2, 3, 1, 1), "a"), TypeError, "expected floating-point x, got <U1"),
    (np.ones((2, 3, 1, 1), np.float32), TypeError, "x is float32 and the parameters are float64: convert one"),
    (np.ones((2, 3, 1, 1), np.float16), TypeError, "x is float16 and the parameters are float64: convert one"),
]


@pytest.mark.parametrize(("x", "error", "message"), REFUSED)
def test_require_refuses_what_forward_cannot_take(x, error, message):
    with pytest.raises(error, match=f"^Scale: {message}"):
        Scale(3)(x)


@pytest.mark.parametrize(("dy", "error", "message"), [
    (np.ones((2, 3, 1, 2)), ValueError, r"expected dy of shape \(2, 3, 2, 1\), .* returned, got \(2, 3, 1, 2\)"),
    (np.ones((2, 3, 2, 1), np.float32), TypeError, "expected dy of dtype float64, as forward returned, got float32"),
    (np.ones((2, 3, 2, 1), complex), TypeError, "expected dy of dtype float64, as forward returned, got complex128"),
    (1.0, TypeError, r"expected dy to be an array of shape \(2, 3, 2, 1\), got float"),
    ([1.0], TypeError, r"expected dy to be an array of shape \(2, 3, 2, 1\), got list"),
])  # fmt: skip
def test_a_dy_that_does_not_fit_is_refused_and_leaves_the_cache(dy, error, message):
    layer = Scale(3)
    layer(np.ones((2, 3, 2, 1)))
    with pytest.raises(error, match=f"^Scale: {message}$"):
        layer.backward(dy)
    assert not layer.gain.grad.any()
    layer.backward(np.ones((2, 3, 2, 1)))
