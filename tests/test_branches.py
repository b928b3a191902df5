"""Branches: what they compute, in PyTorch's words and in loops; what walks a chain walks through them; what they keep."""

import copy
import gc
import weakref

import numpy as np
import pytest
from conformance import close, resnet_block, step
from device import halved, on_the_host
from hostmodule import has_compiler
from hypothesis import given
from hypothesis import strategies as st
from networks import Scale
from sabotage import changed, excited, joined, randomised, times
from snippets import block_with
from strategies import in_layout, layouts, normal, rngs, shapes

import scratchnet as sn
from scratchnet import reference_joins
from scratchnet.array import to_device
from scratchnet.fused.block import BlockStep
from scratchnet.fused.inference import FoldedStep
from scratchnet.fused.project import ProjectStep
from scratchnet.kernels import compiled
from scratchnet.layers.join import CONCAT, MULTIPLY, SUM
from scratchnet.plan import plan
from scratchnet.program.memory import bytes_per_picture, too_large
from scratchnet.steps import Fork, Join, LayerStep, Turn
from scratchnet.trace import trace, trace_step
from scratchnet.trace_table import table
from scratchnet.training.guard import first_bad_layer
from scratchnet.training.trainer import train_step

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 6, 8))


def conv(*sizes):
    return randomised(sn.Conv2d(*sizes, dtype=np.float64))


def norm(channels=4):
    return randomised(sn.BatchNorm2d(channels, eps=0.01, dtype=np.float64))


# Networks from parts ------------------------------------------------------------------------------------------------------


def conv_norm(ins, outs, kernel=1, stride=1, padding=0, relu=True, dtype=np.float64):
    convolution = sn.Conv2d(ins, outs, kernel, stride, padding, bias=False, dtype=dtype, rng=RNG)
    return sn.Sequential(convolution, sn.BatchNorm2d(outs, dtype=dtype), *[sn.ReLU6()] * relu)


def head(features, dtype=np.float64):
    return [sn.GlobalAvgPool2d(), sn.Flatten(), sn.Linear(features, 5, dtype=dtype, rng=RNG)]


def unet(dtype=np.float64):
    """Two levels. Up is a convolution with as much padding as doubles the size."""
    f = {"dtype": dtype}
    deep = sn.Sequential(conv_norm(6, 8, 2, 2, **f), conv_norm(8, 6, 2, 1, (2, 3), **f))  # (3, 4) -> (1, 2) -> (4, 7)
    deep = sn.Sequential({"across": deep, "crop": sn.Conv2d(6, 6, (2, 4), dtype=dtype, rng=RNG)})
    lower = sn.Sequential({
        "down": conv_norm(4, 6, 2, 2, **f), "skip": sn.Concat({"keep": sn.Sequential(), "deep": deep}),
        "up": conv_norm(12, 3, 2, 1, (2, 3), **f), "crop": sn.Conv2d(3, 3, (1, 2), dtype=dtype, rng=RNG),
    })  # fmt: skip
    top = sn.Concat({"keep": sn.Sequential(), "lower": lower})
    return randomised(sn.Sequential({"stem": conv_norm(4, 4, 3, 1, 1, **f), "top": top,
                                     "head": sn.Sequential(*head(7, dtype))}))  # fmt: skip


def inception(dtype=np.float64):
    f = {"dtype": dtype}
    block = sn.Concat({
        "branch1": conv_norm(4, 2, **f),
        "branch2": sn.Sequential(conv_norm(4, 3, **f), conv_norm(3, 5, 3, 1, 1, **f)),
        "branch3": sn.Sequential(conv_norm(4, 2, **f), conv_norm(2, 3, 5, 1, 2, **f)),
        "branch4": sn.Sequential(sn.AvgPool2d(3, 1, 1), conv_norm(4, 4, **f)),
    })  # fmt: skip
    return randomised(sn.Sequential({"block": block, "head": sn.Sequential(*head(14, dtype))}))


class SqueezeExcitation(sn.Multiply):
    """With torchvision's names, as `branches` allows it."""

    def __init__(self, channels, inner, dtype):
        make = {"dtype": dtype, "rng": RNG}
        super().__init__({
            "avgpool": sn.GlobalAvgPool2d(), "fc1": sn.Conv2d(channels, inner, 1, **make), "activation": sn.ReLU(),
            "fc2": sn.Conv2d(inner, channels, 1, **make), "scale_activation": sn.ReLU6(),
        })  # fmt: skip

    def branches(self):
        return [[], [name for name, _ in self.named_children()]]


def excitation(dtype=np.float64):
    layers = {"stem": conv_norm(4, 6, 3, 1, 1, dtype=dtype), "se": SqueezeExcitation(6, 3, dtype)}
    return randomised(sn.Sequential(layers | {"head": sn.Sequential(*head(6, dtype))}))


def resnet(dtype=np.float64):
    block = resnet_block(np.random.default_rng(1), dtype)
    plain = sn.Residual({"conv1": sn.Conv2d(3, 3, 3, padding=1, dtype=dtype, rng=RNG)}, after=sn.ReLU())
    return randomised(sn.Sequential({"layer1": sn.Sequential(block, plain), "head": sn.Sequential(*head(3, dtype))}))


NETWORKS = {"unet": unet, "inception": inception, "excitation": excitation, "resnet": resnet}


def in_torch(torch, module):
    """The same in PyTorch, with autograd: the containers by their definitions."""
    nn = torch.nn

    class Joined(nn.Module):
        def __init__(self, kind, layers, branches, behind):
            super().__init__()
            self.kind, self.branches, self.behind = kind, branches, behind
            for name, layer in layers.items():
                self.add_module(name, layer)

        def run(self, names, x):
            for name in names:
                x = getattr(self, name)(x)
            return x

        def forward(self, x):
            ys = [self.run(names, x) for names in self.branches]
            y = ys[0]
            if self.kind is CONCAT:
                y = torch.cat(ys, 1)
            for other in ys[1:] if self.kind is not CONCAT else ():
                y = y + other if self.kind is SUM else y * other
            return self.run(self.behind, y)

    layers = {name: in_torch(torch, child) for name, child in module.named_children()}
    if isinstance(module, sn.Add | sn.Concat | sn.Multiply):
        return Joined(module.joined_by, layers, module.branches(), module.behind())
    if isinstance(module, sn.Sequential):
        result = nn.Sequential()
        for name, layer in layers.items():
            result.add_module(name, layer)
        return result
    if isinstance(module, sn.Conv2d):
        sizes = module.kernel_size, *module.geometry, module.groups, module.bias is not None
        stride, padding, dilation = module.geometry
        sizes = module.kernel_size, stride, padding, dilation, module.groups, module.bias is not None
        return nn.Conv2d(module.in_channels, module.out_channels, *sizes)
    if isinstance(module, sn.BatchNorm2d):
        return nn.BatchNorm2d(module.weight.data.size)
    if isinstance(module, sn.Linear):
        return nn.Linear(*module.weight.data.shape[::-1])
    return {"ReLU": nn.ReLU(), "ReLU6": nn.ReLU6(), "GlobalAvgPool2d": nn.AdaptiveAvgPool2d(1), "Flatten": nn.Flatten(),
            "AvgPool2d": nn.AvgPool2d(3, 1, 1)}[module.name]  # fmt: skip


@pytest.mark.parametrize("which", [True, "numpy", False])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_all_gradients_are_pytorchs(torch, name, mode, which):
    sn.use_kernels(which)
    ours = NETWORKS[name]()
    peer = in_torch(torch, ours).double()
    state = {key: torch.from_numpy(np.array(value)) for key, value in ours.state_dict().items()}
    assert list(state) == list(peer.state_dict())  # the same keys in the same order
    peer.load_state_dict(state)
    ours.train() if mode == "train" else ours.eval(save=True)
    getattr(peer, mode)()
    x = torch.from_numpy(X).requires_grad_()
    y = peer(x)
    dy = normal(np.random.default_rng(3), y.shape)
    y.backward(torch.from_numpy(dy))
    want = {"y": y, "dx": x.grad} | {f"gradient of {key}": p.grad for key, p in peer.named_parameters()}
    want = {key: value.detach().numpy() for key, value in (want | peer.state_dict()).items()}
    got = step(ours, X, dy)
    assert got.keys() == want.keys()
    largest = max(np.abs(value).max() for key, value in want.items() if key.startswith("gradient"))
    for key, value in got.items():  # a bias in front of batch norm has gradient 0: it is judged by the others
        scale = max(np.abs(want[key]).max(), largest if key.startswith("gradient") else 0)
        assert np.abs(value - want[key]).max() <= 1e-12 * scale, key


def test_a_basic_block_has_the_keys_of_torchvision():
    keys = list(resnet_block(np.random.default_rng(0), np.float32).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert keys == [
        "conv1.weight", *(f"bn1.{key}" for key in norm), "conv2.weight", *(f"bn2.{key}" for key in norm),
        "downsample.0.weight", *(f"downsample.1.{key}" for key in norm),
    ]  # fmt: skip


# Any tree of containers ---------------------------------------------------------------------------------------------------


def trees():
    """(container, children …) and leaves, all of which keep 3 channels but for Concat, behind which they are mixed."""
    leaf = st.sampled_from(["scale", "nothing", "gate"])
    kinds = st.sampled_from(["chain", "add", "concat", "multiply", "residual", "around"])
    return st.recursive(leaf, lambda inner: st.tuples(kinds, st.lists(inner, min_size=1, max_size=3)), max_leaves=8)


def build(tree, rng):
    if isinstance(tree, str):
        scale = Scale(3)
        scale.gain.data[...] = rng.uniform(0.5, 1.5, 3)
        return {"scale": scale, "nothing": sn.Sequential(), "gate": sn.GlobalAvgPool2d()}[tree]
    kind, inner = tree
    parts = [build(part, rng) for part in inner]
    if kind == "concat":
        return sn.Sequential(sn.Concat(*parts), sn.Conv2d(3 * len(parts), 3, 1, dtype=np.float64, rng=rng))
    if kind == "around":
        return sn.Residual(*parts[1:], shortcut=parts[0])
    kinds = {"chain": sn.Sequential, "add": sn.Add, "multiply": sn.Multiply, "residual": sn.Residual}
    return kinds[kind](*parts)


def by_definition(module, x):
    """y, and backward as a function, by recursion through the containers: no chain, no marks."""
    if isinstance(module, sn.Add | sn.Concat | sn.Multiply):
        found = [in_order([getattr(module, name) for name in names], x) for names in module.branches()]
        ys = [y for y, _ in found]
        loops = {id(SUM): "sum", id(CONCAT): "concat", id(MULTIPLY): "multiply"}[id(module.joined_by)]
        if loops != "multiply" and len({(*y.shape[:1], *y.shape[2:]) for y in ys}) > 1:
            raise ValueError("a picture and its mean")
        y = getattr(reference_joins, f"{loops}_forward")(*ys)

        def backward(dy):
            gradients = getattr(reference_joins, f"{loops}_backward")(dy, *ys)
            return sum(back(gradient) for (_, back), gradient in zip(found, gradients, strict=True))

        return y, backward
    if isinstance(module, sn.Sequential):
        return in_order([child for _, child in module.named_children()], x)
    return module.forward(x), module.backward


def in_order(layers, x):
    backwards = []
    for layer in layers:
        x, backward = by_definition(layer, x)
        backwards.append(backward)

    def all_back(dy):
        for backward in reversed(backwards):
            dy = backward(dy)
        return dy

    return x, all_back


@given(rngs(), trees(), layouts(), layouts())
def test_any_tree_of_containers_is_what_its_definition_says(rng, tree, x_layout, dy_layout):
    module = sn.Sequential(build(tree, rng))
    twin = copy.deepcopy(module)
    x = in_layout(normal(rng, (2, 3, 3, 1)), x_layout)
    try:
        want, backward = by_definition(twin, x)
    except ValueError:  # the containers must refuse it as well
        with pytest.raises(ValueError, match="gives shape|turn x of shape"):
            module(x)
        return
    dy = in_layout(normal(rng, want.shape), dy_layout)
    for _ in range(2):  # the second time by the plan that was kept
        module.zero_grad()
        y = module(x)
        dx = module.backward(dy)
    got = {"y": y, "dx": dx} | {name: p.grad for name, p in module.named_parameters()}
    want = {"y": want, "dx": backward(dy)} | {name: p.grad for name, p in twin.named_parameters()}
    close(got, want, 1e-11)


# The pairs of functions, beside loops -------------------------------------------------------------------------------------


@given(rngs(), shapes(), st.lists(st.integers(1, 3), min_size=1, max_size=3), layouts())
def test_concat_is_that_of_the_loops(rng, shape, channels, layout):
    ys = [normal(rng, (shape[0], c, *shape[2:])) for c in channels]
    hold_to_loops("concat", CONCAT, rng, ys, layout)


@given(rngs(), shapes(), st.integers(1, 3), layouts())
def test_sum_is_that_of_the_loops(rng, shape, count, layout):
    hold_to_loops("sum", SUM, rng, [normal(rng, shape) for _ in range(count)], layout)


@given(rngs(), shapes(), st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=3), layouts())
def test_multiply_is_that_of_the_loops(rng, shape, ones, layout):
    sizes = [[1 if one else size for one, size in zip(some, shape[1:], strict=True)] for some in ones]
    ys = [normal(rng, (shape[0], *some)) for some in sizes]
    hold_to_loops("multiply", MULTIPLY, rng, ys, layout)


def hold_to_loops(name, pair, rng, ys, layout):
    ys = [in_layout(y, layout) for y in ys]
    y, cache = pair.forward(*ys)
    want = getattr(reference_joins, f"{name}_forward")(*ys)
    np.testing.assert_allclose(y, want, rtol=1e-13, atol=1e-13)
    dy = in_layout(normal(rng, want.shape), layout)
    gradients = pair.backward(dy, cache)
    assert len(gradients) == len(ys)
    for got, expected in zip(gradients, getattr(reference_joins, f"{name}_backward")(dy, *ys), strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


# The plan -----------------------------------------------------------------------------------------------------------------


def kinds(net):
    return [(type(step), step.names) for step in sn.plan(net).steps]


def bottleneck(container=None, dtype=np.float32):
    body = sn.Sequential(conv_norm(4, 6, dtype=dtype), conv_norm(6, 3, relu=False, dtype=dtype))
    around = conv_norm(4, 3, relu=False, dtype=dtype)
    return container(around, body) if container else sn.Residual({"body": body}, shortcut=around)


@pytest.mark.skipif(not compiled.PRESENT, reason="needs compiled kernels")
@pytest.mark.parametrize("container", [None, sn.Add])
def test_a_sum_of_two_ends_within_the_last_step(container):
    net = bottleneck(container)
    found = kinds(net)
    around, body = ("shortcut", "body") if container is None else ("0", "1")
    assert found[:3] == [
        (Fork, ("",)), (ProjectStep, (f"{around}.0", f"{around}.1")), (Turn, ("",)),
    ]  # fmt: skip
    assert found[-1] == (ProjectStep, (f"{body}.1.0", f"{body}.1.1")) and len(found) == 5
    assert sn.plan(net).steps[-1].fork is sn.plan(net).steps[0] or sn.plan(net).steps[-1].fork is not None
    assert [line.split("  ")[0] for line in str(sn.plan(net)).splitlines()[1:]][1] == f"{around}.{{0,1}}"
    x = in_layout(X.astype(np.float32), "channel-major")
    dy = normal(np.random.default_rng(5), (2, 3, 6, 8), np.float32)
    twin = copy.deepcopy(net)
    got = step(net, x, dy)
    sn.use_kernels(False)
    close(got, step(twin, x, dy), 1e-5)


@pytest.mark.skipif(not compiled.PRESENT, reason="needs compiled kernels")
def test_a_sum_ends_within_the_shortcut_where_that_is_the_last_branch():
    """f is x here: the one branch with layers is the first."""
    net = sn.Add(conv_norm(4, 4, relu=False), sn.Sequential())
    assert kinds(net) == [(Fork, ("",)), (ProjectStep, ("0.0", "0.1"))]
    twin, dy = copy.deepcopy(net), normal(np.random.default_rng(5), X.shape)
    got = step(net, X, dy)
    sn.use_kernels(False)
    close(got, step(twin, X, dy), 1e-12)
    message = r"^a Add: branch 1 gives shape \(2, 4, 6, 8\), branch 0 \(2, 3, 6, 8\): a sum needs equal shapes$"
    sn.use_kernels(True)
    with pytest.raises(ValueError, match=message):
        sn.Sequential({"a": sn.Add(conv_norm(4, 3, relu=False), sn.Sequential())})(X)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("container", [sn.Add, sn.Concat, sn.Multiply])
def test_no_step_and_no_program_adds_where_it_should_not(container, count, mode):
    """A projection at the end of what is no sum of two; in eval mode two convolutions are worth a program."""

    def projection():
        return sn.Sequential(conv_norm(4, 4), conv_norm(4, 4, relu=False))

    for first in (sn.Sequential, projection):
        net = sn.Sequential(conv(4, 4, 1), container(*(first() for _ in range(count - 1)), projection()))
        net = randomised(net.train(mode == "train"))
        twin, x = copy.deepcopy(net), in_layout(X, "channel-major")
        y = net(x)
        sn.use_kernels(False)
        np.testing.assert_allclose(y, twin(x), rtol=0, atol=1e-11 * np.abs(y).max())
        sn.use_kernels(True)


@pytest.mark.skipif(not compiled.PRESENT, reason="needs compiled kernels")
def test_blocks_and_fronts_are_found_in_branches():
    def block():
        return sn.Sequential(
            conv_norm(4, 8), sn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False, dtype=np.float64),
            sn.BatchNorm2d(8, dtype=np.float64), sn.ReLU6(), conv_norm(8, 4, relu=False),
        )  # fmt: skip

    net = sn.Concat(block(), sn.Residual(block()), sn.Sequential())
    assert [kind for kind, _ in kinds(net)] == [Fork, BlockStep, Turn, Fork, BlockStep, Join]
    eval_kinds = [kind for kind, _ in kinds(net.eval())]
    assert eval_kinds[0] is Fork and eval_kinds[-1] is Join and Turn in eval_kinds


def test_the_plan_prints_where_branches_begin_turn_and_end():
    sn.use_kernels(False)
    lines = [line.split() for line in str(sn.plan(inception())).splitlines()[1:]]
    marks = [line for line in lines if line[0] == "block"]
    turns = [["block", "Concat,", "next", "branch"]] * 3
    assert marks == [["block", "Concat"], *turns, ["block", "Concat", "concat", "plain"]]
    text = str(sn.plan(sn.Residual(conv(4, 4, 1), sn.ReLU())))
    assert "turn" not in text and text.count("Residual") == 2 and "add" in text


def test_a_branch_without_layers_takes_no_step():
    net = sn.Sequential({"c": sn.Concat(sn.Sequential(), sn.ReLU(), sn.Sequential(sn.Sequential()))})
    assert kinds(net) == [(Fork, ("c",)), (LayerStep, ("c.1",)), (Join, ("c",))]
    assert np.array_equal(net(X), np.concatenate([X, np.maximum(X, 0), X], axis=1))
    alone = sn.Concat(sn.Sequential(), sn.Sequential())
    assert kinds(alone) == [(Fork, ("",)), (Join, ("",))]
    assert np.array_equal(alone(X), np.concatenate([X, X], axis=1))
    assert np.array_equal(alone.backward(alone(X)), 2 * X)


def test_a_container_in_two_places_is_refused():
    shared = sn.Concat(sn.Sequential(), sn.Sequential())
    with pytest.raises(ValueError, match="^1 is the same Concat object as 0, .*: make two$"):
        sn.Sequential(shared, shared)
    relu = sn.ReLU()
    with pytest.raises(ValueError, match=r"^1\.0 is the same ReLU object as 0\.0"):
        sn.Add(sn.Sequential(relu), sn.Sequential(relu))


# Messages -----------------------------------------------------------------------------------------------------------------

A, B = "(2, 3, 6, 8)", "(2, 4, 6, 8)"
REFUSED = {
    "add": (lambda: sn.Add({"left": conv(4, 3, 1), "right": sn.Sequential()}),
            r"branch right gives shape \(2, 4, 6, 8\), branch left \(2, 3, 6, 8\): a sum needs equal shapes"),
    "shortcut": (lambda: sn.Residual(conv(4, 3, 1), shortcut=conv(4, 2, 1)),
                 r"what the layers make gives shape \(2, 3, 6, 8\), the shortcut \(2, 2, 6, 8\): a sum needs equal"),
    "concat": (lambda: sn.Concat({"skip": sn.Sequential(), "up": conv(4, 2, 3)}),
               r"branch up gives shape \(2, 2, 4, 6\), branch skip \(2, 4, 6, 8\): channels go behind channels where"),
    "multiply": (lambda: sn.Multiply(sn.Sequential(), sn.ReLU(), conv(4, 3, 1)),
                 r"branch 2 gives shape \(2, 3, 6, 8\), branch 0 \(2, 4, 6, 8\): a product needs equal sizes, or 1"),
    "flat": (lambda: sn.Multiply(sn.Sequential(), sn.Flatten()), r"branch 1 gives shape \(2, 192\), branch 0 \(2, 4,"),
    "concat of pictures": (lambda: sn.Concat(sn.Sequential(), First()), r"branch 1 gives shape \(1, 4, 6, 8\), branch 0 "),
    "multiply by one picture": (lambda: sn.Multiply(sn.Sequential(), First()), r"branch 1 gives shape \(1, 4, 6, 8\)"),
    "dtype": (lambda: sn.Concat(sn.Sequential(), Halves()), "branch 1 gives dtype float32, branch 0 float64: they need"),
}  # fmt: skip


class Halves(sn.Module):
    def forward(self, x):
        return x.astype(np.float32)


class First(sn.Module):
    def forward(self, x):
        return x[:1]


@pytest.mark.parametrize("which", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_together_is_refused_with_path_branch_and_shapes(name, which):
    sn.use_kernels(which)
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=rf"^a\.b {make().name}: {message}"):
        sn.Sequential({"a": sn.Sequential({"b": make()})})(X)


def test_an_error_in_a_branch_names_its_layer():
    net = sn.Sequential({"top": sn.Concat({"left": sn.ReLU(), "right": sn.Sequential(conv(3, 2, 1))})})
    with pytest.raises(ValueError, match=r"^top\.right\.0 Conv2d: expected 3 input channels, got x of shape \(2, 4,"):
        net(X)


def test_containers_that_cannot_be_are_refused():
    for kind in (sn.Add, sn.Concat, sn.Multiply):
        with pytest.raises(ValueError, match=f"^{kind.__name__}: expected at least one branch$"):
            kind()
        with pytest.raises(TypeError, match=f"^{kind.__name__}: branches have no slice"):
            kind(sn.ReLU(), sn.ReLU())[:1]
    assert isinstance(sn.Concat(sn.ReLU(), sn.ReLU6())[1], sn.ReLU6)
    with pytest.raises(ValueError, match="^Residual: shortcut='down' is none of the layers a, b$"):
        sn.Residual({"a": sn.ReLU(), "b": sn.ReLU()}, shortcut="down")
    with pytest.raises(ValueError, match="^Residual: after is given twice"):
        sn.Residual({"after": sn.ReLU()}, after=sn.ReLU())
    with pytest.raises(TypeError, match="^Residual: expected shortcut to be a Module, got int$"):
        sn.Residual(sn.ReLU(), shortcut=3)


def test_repr_says_what_is_around_and_what_is_behind():
    net = sn.Residual(sn.ReLU(), shortcut=sn.Sequential(sn.ReLU6()), after=sn.ReLU())
    assert repr(net) == (
        "Residual(\n  shortcut='shortcut', after='after'\n  (0): ReLU()\n  (shortcut): Sequential(\n    (0): ReLU6()\n  )\n"
        "  (after): ReLU()\n)"
    )
    assert repr(sn.Concat(sn.Sequential(), sn.ReLU())) == "Concat(\n  (0): Sequential()\n  (1): ReLU()\n)"


# What walks a chain -------------------------------------------------------------------------------------------------------


def test_trace_has_a_line_a_layer_and_one_for_a_join_that_is_no_sum():
    lines = {line.name: line for line in trace(unet(), (4, 6, 8), np.float64)}
    assert lines["top"].shape_out == (7, 6, 8) and lines["top.lower.skip"].shape_out == (12, 3, 4)
    assert lines["top.lower.skip.deep.across.0.0"].shape_in == (6, 3, 4)
    leaves = [name for name, layer in unet().named_modules() if not layer.named_children()]
    assert set(lines) == {"top", "top.lower.skip", *leaves} - {"top.keep", "top.lower.skip.keep"}
    assert sum(line.parameters for line in lines.values()) == sum(p.data.size for p in unet().parameters())
    # what the skips keep, beside the layer's own: 4·6·8 numbers of the upper one, 6·3·4 of the lower one
    assert lines["stem.0"].kept == 0 == lines["head.0"].kept and lines["top.lower.up.0"].kept == 192
    assert lines["top.lower.skip.deep.crop"].kept == 192 + 72
    lines = [line.name for line in trace(resnet(), (4, 6, 8), np.float64)]
    assert lines[:3] == ["layer1.0.downsample.0", "layer1.0.downsample.1", "layer1.0.conv1"] and "layer1.0" not in lines
    four = {line.name: line for line in trace(inception(), (4, 6, 8), np.float64)}
    assert four["block.branch3.0.0"].kept == 48 * (4 + 2 + 5)  # x, and what two branches gave


def test_memory_counts_what_a_join_makes_and_what_branches_keep():
    def small(make):
        return lambda width: make(np.float32)

    net = sn.Sequential(conv(3, 4, 1), sn.Concat(*[sn.Sequential()] * 2), conv(8, 2, 1)).astype(np.float32)
    sn.use_kernels(False)
    assert bytes_per_picture(net, (3, 8, 8)) == pytest.approx(0.75 * 4 * 64 * (4 + 8 + 2))
    chain = sn.Sequential(conv(3, 4, 1), conv(4, 4, 1), conv(4, 2, 1)).astype(np.float32)
    around = sn.Sequential(conv(3, 4, 1), sn.Residual(conv(4, 4, 1)), conv(4, 2, 1)).astype(np.float32)
    needed = []
    for model in (chain, around):
        line = too_large(lambda width, model=model: model, 1.0, 8, 4096, 1.0, testing=True)
        needed.append(int(line.split(" takes about ")[1].split(" MiB")[0].replace(",", "")))
    assert needed == [8, 12]  # x and y of 4 channels of 64 numbers each, 4 MiB for 4,096 pictures; and the shortcut's x


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_timed_with_its_marks(name):
    net = NETWORKS[name](np.float32)
    lines = trace_step(net, sn.CrossEntropyLoss(), X.astype(np.float32), np.array([0, 3]))
    planned = sn.plan(net).steps
    assert [line.kind for line in lines if "next branch" in line.kind] == [
        f"{step.layers[0].name}, next branch" for step in planned if type(step) is Turn
    ]
    assert len(lines) == len(planned) and table(lines).count("\n") == len(planned) + 4  # heads, sums and what they mean


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_number_that_is_none_is_found_in_any_branch(name):
    labels = np.array([0, 3])
    assert first_bad_layer(NETWORKS[name](), sn.CrossEntropyLoss(), X, labels) is None
    for key, _ in NETWORKS[name]().named_parameters():
        net = NETWORKS[name]()
        dict(net.named_parameters())[key].data.flat[0] = np.nan
        found = first_bad_layer(net, sn.CrossEntropyLoss(), X, labels)
        assert found.startswith(f"the output of {key.rpartition('.')[0]} ("), key
    for key, layer in NETWORKS[name]().named_modules():
        if key and not layer.named_children() and not (isinstance(layer, sn.Sequential)):
            net = NETWORKS[name]()
            broken = dict(net.named_modules())[key]
            right = type(broken).backward
            broken.backward = lambda dy, right=right, broken=broken: right(broken, dy) * np.inf
            found = first_bad_layer(net, sn.CrossEntropyLoss(), X, labels)
            assert found == f"the gradient that comes back through {key} ({layer.name})"


def test_a_join_that_overflows_is_named():
    large = np.full((2, 3, 4, 4), 3e38, np.float32)
    for container in (sn.Add, sn.Multiply):
        net = sn.Sequential({"both": container(sn.ReLU(), sn.ReLU()), "pool": sn.GlobalAvgPool2d(), "f": sn.Flatten()})
        with np.errstate(all="ignore"):
            found = first_bad_layer(net, sn.CrossEntropyLoss(), large, np.array([0, 1]))
        assert found == f"the output of both ({container.__name__})"


@pytest.mark.parametrize("wrong", ["left.1", "left.0", "right.0"])
def test_the_wrong_layer_in_a_branch_is_named(wrong):
    layers = {"left": sn.Sequential(conv(4, 3, 1), norm(3)), "right": sn.Sequential(conv(4, 3, 1), norm(3))}
    net = sn.Sequential({"stem": conv(4, 4, 1), "both": sn.Concat(layers)})
    changed(dict(net.both.named_modules())[wrong], weight=times(2))
    with pytest.raises(sn.GradientMismatch, match=rf"The first wrong layer, from the last one back: both\.{wrong} \("):
        sn.gradcheck(net, X[:, :, :3, :2])


def test_the_last_of_two_wrong_layers_is_named_whatever_branch_it_is_in():
    net = sn.Sequential(sn.Multiply(changed(norm(), weight=times(2)), changed(conv(4, 4, 1), weight=times(3))), norm())
    with pytest.raises(sn.GradientMismatch, match=r"from the last one back: 0\.1 \(Conv2d\)"):
        sn.gradcheck(net, X[:, :, :3, :2])


def test_a_wrong_join_is_named_where_each_layer_is_right():
    bad = joined(excited(), lambda dy, gradients, cache: (gradients[0], 2 * gradients[1]))
    net = sn.Sequential(conv(4, 4, 1), sn.Residual({"se": bad, "relu": sn.ReLU()}), norm())
    with pytest.raises(sn.GradientMismatch, match=r"from the last one back: 1\.se \(Multiply\): the gradient of x"):
        sn.gradcheck(net, X[:, :, :3, :2])
    with pytest.raises(
        sn.GradientMismatch, match=r"Each of its layers is right alone: is it how Multiply joins them\?$"
    ):
        sn.gradcheck(bad, X[:, :, :3, :2])


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_norm_is_folded_inside_branches(name):
    net = NETWORKS[name]().eval()
    folded = sn.fold_batch_norm(net)
    assert not any(isinstance(layer, sn.BatchNorm2d) for _, layer in folded.named_modules())
    assert any(isinstance(layer, sn.BatchNorm2d) for _, layer in net.named_modules())
    for which in (True, "numpy", False):
        sn.use_kernels(which)
        np.testing.assert_allclose(folded(X), net(X), rtol=1e-11, atol=1e-12)
    sn.use_kernels("numpy")
    assert name == "resnet" or FoldedStep in {type(step) for step in sn.plan(net).steps}


def test_a_layer_that_was_folded_away_may_still_be_named_by_branches():
    class Around(sn.Add):
        def branches(self):
            return [["conv", "norm"], ["other"]]

    net = Around({"conv": conv(4, 4, 1), "norm": norm(), "other": conv(4, 4, 1)}).eval()
    folded = sn.fold_batch_norm(net)
    assert [name for name, _ in folded.named_children()] == ["conv", "other"]
    np.testing.assert_allclose(folded(X), net(X), rtol=1e-12, atol=1e-12)


def test_batch_norm_is_not_folded_across_a_mark():
    """What is behind a convolution in memory need not be behind it in the network."""
    net = sn.Sequential(
        conv(4, 4, 1), sn.Add(norm(), sn.Sequential(conv(4, 4, 1))), norm(), sn.Residual(conv(4, 4, 1), after=norm())
    )
    net = net.eval()
    folded = sn.fold_batch_norm(net)
    assert sum(isinstance(layer, sn.BatchNorm2d) for _, layer in folded.named_modules()) == 3
    np.testing.assert_allclose(folded(X), net(X), rtol=1e-12)


# What is kept, and for how long -------------------------------------------------------------------------------------------


def owner(array):
    """The array whose memory it is."""
    return array if array.base is None else owner(array.base)


class Watch(sn.Module):
    """Hands on a copy of x, channel-major, and remembers it weakly."""

    def forward(self, x):
        y = in_layout(x.copy(), "channel-major")
        self.seen = weakref.ref(owner(y))
        self.save_cache(None, y)
        return y

    def backward(self, dy):
        self.take_cache(dy)
        dx = in_layout(dy.copy(), "channel-major")
        self.seen_back = weakref.ref(owner(dx))
        return dx


@pytest.mark.parametrize("container", [sn.Add, sn.Concat, sn.Multiply])
def test_nothing_is_kept_in_eval_mode_nor_after_backward(container):
    watches = [Watch() for _ in range(4)]
    net = sn.Sequential(watches[0], container(watches[1], sn.Sequential(watches[2], watches[3]), sn.Sequential()))
    alive = lambda: [k for k, watch in enumerate(watches) if watch.seen() is not None]  # noqa: E731
    net.eval()(X)
    gc.collect()
    assert alive() == []
    net.train()
    y = net(X)
    gc.collect()
    assert alive() == ([0, 1, 3] if container is sn.Multiply else [])
    dx = net.backward(y)
    gc.collect()
    assert (
        alive() == []
        and [watch.seen_back() is not None and watch is not watches[0] for watch in watches] == [False] * 4
    )
    net(X)
    net.eval()
    gc.collect()
    assert alive() == [] and dx.shape == X.shape


def test_what_a_failed_forward_left_is_not_taken_for_the_next():
    net = sn.Sequential(sn.Concat(sn.ReLU(), conv(4, 3, 1), sn.Sequential()))
    with pytest.raises(ValueError, match="expected 4 input channels"):
        net(X[:, :3])
    want = step(copy.deepcopy(net), X, dy := normal(np.random.default_rng(1), (2, 11, 6, 8)))
    close(step(net, X, dy), want, 1e-15)
    with pytest.raises(RuntimeError, match="^0 Concat: nothing saved for backward"):
        net.backward(dy)
    net(X)
    with pytest.raises(ValueError, match=r"^0 Concat: expected dy of shape \(2, 11, 6, 8\)"):
        net.backward(dy[:1])
    close({"dx": net.backward(dy)}, {"dx": want["dx"]}, 1e-15)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_between_forward_and_backward_is_whole(name):
    net, twin = NETWORKS[name](), NETWORKS[name]()
    twin.load_state_dict(net.state_dict())
    dy = normal(np.random.default_rng(1), (2, 5))
    want = step(twin, X, dy)
    net(X)
    copied = copy.deepcopy(net)
    net.backward(dy)
    for parameter in copied.parameters():
        parameter.data += 0  # its own
    assert np.array_equal(copied.backward(dy), want["dx"])
    assert all(np.array_equal(p.grad, want[f"gradient of {key}"]) for key, p in copied.named_parameters())
    assert all(p.grad is not q.grad for p, q in zip(net.parameters(), copied.parameters(), strict=True))


def test_a_plan_is_kept_and_made_anew_when_branches_change():
    net = inception()
    net(X)
    before = net._plan
    net(X), net(X)
    assert net._plan is before
    net.block.branch1 = sn.Sequential(conv(4, 3, 1))
    with pytest.raises(ValueError, match="Linear: expected 14 input features, got x of shape"):
        net(X)
    assert net._plan is not before


def test_a_subclass_with_its_own_forward_stays_one_layer():
    class Own(sn.Concat):
        def forward(self, x):
            return 2 * super().forward(x)

        def backward(self, dy):
            return super().backward(2 * dy)

    net = sn.Sequential(Own(sn.ReLU(), sn.Sequential()), sn.ReLU())
    assert kinds(net) == [(LayerStep, ("0",)), (LayerStep, ("1",))]
    assert sn.gradcheck(net, X[:, :, :3, :2]).worst < 1e-12
    assert plan(net[0]).steps[0].layers == (net[0],)


# On a GPU: the stand-in ---------------------------------------------------------------------------------------------------


def on_the_device():
    """(N, 3, 8, 8) -> (N, 5) by every join: a skip, an excitation, a sum of two projections."""
    make = {"bias": False, "rng": np.random.default_rng(2)}
    gate = sn.Sequential(sn.GlobalAvgPool2d(), sn.Conv2d(7, 7, 1, **make), sn.ReLU6())
    branches = [sn.Sequential(sn.Conv2d(7, 4, 1, **make), sn.BatchNorm2d(4)) for _ in "ab"]
    return sn.Sequential(
        sn.Conv2d(3, 4, 3, 2, 1, **make), sn.BatchNorm2d(4), sn.ReLU6(),
        sn.Concat(sn.Sequential(), sn.Sequential(sn.Conv2d(4, 3, 3, 1, 1, **make), sn.BatchNorm2d(3), sn.ReLU6())),
        sn.Multiply(sn.Sequential(), gate), sn.Add(*branches), *head(4, np.float32),
    ).to("cuda")  # fmt: skip


@pytest.mark.skipif(not has_compiler(), reason="g++ is not installed")
@pytest.mark.parametrize("stored", [False, True], ids=["float32", "bfloat16"])
def test_recorded_steps_have_the_bits_of_eager_ones(gemm, standin, stored):
    if stored:
        pytest.importorskip("ml_dtypes")
    results = []
    for record in (False, True):
        model, criterion = randomised(on_the_device().to("cpu"), seed=4).to("cuda"), sn.CrossEntropyLoss()
        optimizer = sn.SGD(model.named_parameters(), lr=0.01)
        recorded, found = sn.RecordedStep(model, criterion), {}
        standin.counts.clear()
        for k in range(6):
            x = normal(np.random.default_rng(k), (6, 3, 8, 8), np.float32)
            x = halved(x) if stored else in_layout(x, "channel-major")
            given = to_device(x, "cuda"), to_device(np.arange(6) % 5, "cuda")
            loss, logits = recorded(*given) if record else train_step(model, criterion, optimizer, *given)
            optimizer.step() if record else None
            found |= {f"loss {k}": loss, f"logits {k}": logits}
        assert recorded.why_not is None and standin.counts["graph"] == 5 * record
        results.append(on_the_host(found | model.state_dict()))
    eager, replayed = results
    assert [name for name in eager if eager[name].tobytes() != replayed[name].tobytes()] == []
    assert len({float(eager[f"loss {k}"]) for k in range(6)}) == 6


@pytest.mark.skipif(not has_compiler(), reason="g++ is not installed")
def test_joins_copy_nothing_and_wait_for_nothing(standin):
    """A concatenation is a launch a branch, and its backward only views."""
    net = sn.Concat(sn.Sequential(), sn.Sequential(), sn.Sequential())
    x = to_device(in_layout(X, "channel-major"), "cuda")
    standin.counts.clear()
    y = net(x)
    assert +standin.counts == {"launch": 3}
    standin.counts.clear()
    net.backward(y)
    assert +standin.counts == {"launch": 2}  # the sum of three


# The guide ----------------------------------------------------------------------------------------------------------------


def test_the_network_that_the_guide_shows_computes_what_it_says():
    names = {}
    exec(block_with("sn.Concat("), names)
    assert names["scores"].shape == (8, 10, 32, 32) and names["dx"].shape == names["x"].shape
