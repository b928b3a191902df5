"""The plan: what it says is what runs, it holds as long as nothing changes, and forward and backward belong together."""

import copy

import numpy as np
import pytest
from conformance import CPU_KERNELS
from networks import Scale, picture
from strategies import in_layout

import scratchnet as sn
from models import MobileNetV2
from scratchnet import kernels
from scratchnet.fused.depthwise import DepthwiseStep
from scratchnet.fused.front import FrontStep
from scratchnet.fused.inference import FoldedStep
from scratchnet.fused.pointwise import PointwiseStep
from scratchnet.fused.project import ProjectStep
from scratchnet.kernels import compiled
from scratchnet.plan import Plan
from scratchnet.steps import Fork, Join, LayerStep
from scratchnet.trace import trace
from scratchnet.training.guard import first_bad_layer


def block(dtype=np.float64):
    rng = np.random.default_rng(0)
    make = {"dtype": dtype, "rng": rng}
    return sn.Sequential({
        "stem": sn.Conv2d(3, 4, 3, padding=1, **make),
        "body": sn.Residual({
            "expand": sn.Sequential(sn.Conv2d(4, 6, 1, bias=False, **make), sn.BatchNorm2d(6, dtype=dtype), sn.ReLU6()),
            "filter": sn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False, **make),
            "norm": sn.BatchNorm2d(6, dtype=dtype),
            "relu": sn.ReLU6(),
            "project": sn.Conv2d(6, 4, 1, **make),
        }),
    })  # fmt: skip


def kinds(net, **options):
    return [(type(step), step.names) for step in sn.plan(net, **options).steps]


def test_the_steps_of_a_network_in_training_and_in_eval_mode():
    expand, depthwise = tuple(f"body.expand.{k}" for k in range(3)), ("body.filter", "body.norm", "body.relu")
    rest = [(LayerStep, ("body.project",)), (Join, ("body",))]
    net = block()
    start = [(LayerStep, ("stem",)), (Fork, ("body",))]
    with sn.use_kernels("numpy"):
        assert kinds(net) == [*start, (PointwiseStep, expand), (DepthwiseStep, depthwise), *rest]
    if compiled.PRESENT:
        assert kinds(net) == [*start, (FrontStep, expand + depthwise), *rest]
    assert kinds(net.eval()) == [*start, (FoldedStep, expand), (FoldedStep, depthwise), *rest]
    one_by_one = [*start, *((LayerStep, (name,)) for name in expand + depthwise), *rest]
    assert kinds(net.eval(save=True)) == one_by_one
    assert kinds(net.train(), fuse=False) == one_by_one
    with sn.use_kernels(False):
        assert kinds(net) == one_by_one


def test_the_plan_prints_what_runs():
    with sn.use_kernels("numpy"):
        text = str(sn.plan(block()))
    assert [line.split()[0] for line in text.splitlines()] == [
        "layers", "stem", "body", "body.expand.{0,1,2}", "body.{filter,norm,relu}", "body.project", "body"
    ]  # fmt: skip
    assert "Conv2d + BatchNorm2d + ReLU6  depthwise_norm_relu6  numpy" in text
    with sn.use_kernels(False):
        assert {line.split()[-1] for line in str(sn.plan(block())).splitlines()[1:] if "Conv2d" in line} == {"plain"}
    if compiled.PRESENT:
        text = str(sn.plan(block()))
        assert "body.{expand.0,expand.1,expand.2,filter,norm,relu}" in text and "front      compiled" in text


def test_a_shortcut_may_end_within_a_step():
    make = {"bias": False, "dtype": np.float32}
    net = sn.Residual(sn.Conv2d(3, 5, 1, **make), sn.Conv2d(5, 3, 1, **make), sn.BatchNorm2d(3), sn.ReLU())
    ends = sn.Residual(*net[:3])
    if compiled.PRESENT:
        assert [kind for kind, _ in kinds(net)] == [Fork, LayerStep, ProjectStep, LayerStep, Join]
        assert kinds(ends) == [(Fork, ("",)), (LayerStep, ("0",)), (ProjectStep, ("1", "2"))]
        assert "{1,2}   Conv2d + BatchNorm2d + Residual" in str(sn.plan(ends))
    wide = sn.Sequential({"body": sn.Residual(sn.Conv2d(3, 4, 1, **make), sn.BatchNorm2d(4))})
    with pytest.raises(
        ValueError, match=r"^body Residual: the layers turn x of shape \(2, 3, 5, 4\) into \(2, 4, 5, 4\)"
    ):
        wide(np.ones((2, 3, 5, 4), np.float32))


def test_what_is_printed_is_what_ran(kernels_that_ran):
    """Every pair that the plan of MobileNetV2 names was chosen in a step, and no other."""
    rng = np.random.default_rng(0)
    net = MobileNetV2(10, 0.1, rng=rng)
    lines = [line.split() for line in str(sn.plan(net)).splitlines()[1:]]
    net(in_layout(rng.standard_normal((2, 3, 32, 32)).astype(np.float32), "channel-major"))
    for version in CPU_KERNELS:
        ran = {pair.name for pair in kernels_that_ran if pair.version == version}
        assert ran == {words[-2] for words in lines if words[-1] == version}


# Kept as long as it holds ---------------------------------------------------------------------------------------------


def test_a_plan_is_kept_and_dropped_when_what_it_depends_on_changes():
    net, x = block(), picture()
    changes = {
        "nothing": (lambda: None, True),
        "a layer's mode": (net.body.norm.eval, False),
        "the same mode again": (net.body.norm.eval, True),
        "kernels": (lambda: sn.use_kernels(False), False),
        "NumPy's kernels": (lambda: sn.use_kernels("numpy"), False),
        "the best kernels": (lambda: sn.use_kernels(True), CPU_KERNELS[-1] == "numpy"),
        "a path": (lambda: setattr(net.stem, "path", "grouped"), False),
        "another layer": (lambda: setattr(net.body, "relu", sn.ReLU()), False),
        "the dtype": (lambda: net.astype(np.complex128), False),
    }
    net(x)
    for what, (change, kept) in changes.items():
        before = net._plan
        change()
        net(x.astype(net.stem.weight.data.dtype))
        assert (net._plan is before) == kept, what


def test_switching_kernels_between_forward_and_backward_is_harmless():
    """Of a whole network, and of every layer by itself."""
    net, x = block(), picture()
    twin = copy.deepcopy(net)
    dy = np.random.default_rng(1).standard_normal(net(x).shape)
    want = net.backward(dy)
    for before, after in ((True, False), (False, True)):
        copied = copy.deepcopy(twin)
        with sn.use_kernels(before):
            copied(x)
        with sn.use_kernels(after):
            got = copied.backward(dy)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("inside", [lambda relu: (relu, sn.ReLU(), relu), lambda relu: (relu, sn.Residual(relu))])
def test_a_layer_in_two_places_is_refused_when_the_chain_is_built(inside):
    layers = inside(sn.ReLU6())
    with pytest.raises(ValueError, match=r"^[12](\.0)? is the same ReLU6 object as 0, .*: make two$"):
        sn.Sequential(*layers)
    net = sn.Sequential(sn.ReLU6(), sn.ReLU6())
    setattr(net, "1", net[0])
    with pytest.raises(ValueError, match="^1 is the same ReLU6 object as 0"):
        net(picture())


# One traversal --------------------------------------------------------------------------------------------------------


class Twice(sn.Sequential):
    """A subclass that computes in a way of its own: y = 2 f(x)."""

    def forward(self, x):
        return 2 * super().forward(x)

    def backward(self, dy):
        return super().backward(2 * dy)


def test_a_subclass_with_its_own_forward_is_one_step_for_plan_trace_and_guard():
    net = sn.Sequential({"a": Scale(3), "twice": Twice({"b": Scale(3)}), "c": sn.ReLU()})
    assert [step.names for step in sn.plan(net).steps] == [("a",), ("twice",), ("c",)]
    lines = trace(net, (3, 4, 5), np.float64)
    assert [(line.name, line.layer) for line in lines] == [("a", "Scale"), ("twice", "Twice"), ("c", "ReLU")]
    x = picture()
    want = np.maximum(2 * net.a.gain.data[:, None, None] * net.twice.b.gain.data[:, None, None] * x, 0)
    np.testing.assert_allclose(net(x), want, rtol=1e-12)
    net.twice.b.gain.data[...] = np.inf
    with np.errstate(all="ignore"):
        whole = sn.Sequential(net, sn.GlobalAvgPool2d(), sn.Flatten())
        found = first_bad_layer(whole, sn.CrossEntropyLoss(), x, np.array([0, 1]))
    assert found == "the output of 0.twice (Twice)"


def test_a_network_that_is_no_chain_is_one_step():
    assert len(sn.plan(Scale(3)).steps) == 1
    assert isinstance(sn.plan(Scale(3)), Plan)


# Pairs ----------------------------------------------------------------------------------------------------------------


def test_every_version_of_a_pair_has_both_functions_or_none():
    for row, versions in kernels.TABLE.items():
        assert versions, row
        assert len({version.pair.backward is None for version in versions}) == 1, row
        assert all(version.pair.name.endswith(row) for version in versions)


def test_switches_are_context_managers_and_put_back_what_was():
    with sn.use_kernels(False):
        assert not kernels.enabled()
        with sn.use_kernels(True):
            assert kernels.enabled()
        assert not kernels.enabled()
    assert kernels.enabled()


def test_nan_passes_a_fused_backward_as_it_passes_the_layers():
    """Whichever layers are computed as one, a bad number may not be lost on the way to the guard."""
    net, x = block(), picture()
    dy = np.ones_like(net(x))
    dy[0, 1, 2, 3] = np.nan
    x = x.copy()
    x[1, 2, 3, 0] = np.nan
    for bad_x, bad_dy in ((picture(), dy), (x, np.ones_like(dy))):
        results = []
        for fast in (True, False):
            with sn.use_kernels(fast):
                net.zero_grad()
                net(bad_x)
                results.append([np.isnan(net.backward(bad_dy)), *(np.isnan(p.grad) for p in net.parameters())])
        for got, want in zip(*results, strict=True):
            assert (got | ~want).all()
        assert results[0][0].any()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_fused_step_refuses_what_its_layers_refuse(mode):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    for name in ("expand", "filter"):
        net = block(np.float32).body
        chain = net.expand if name == "expand" else sn.Sequential(net.filter, net.norm, net.relu)
        getattr(chain, mode)()
        with pytest.raises(TypeError, match="Conv2d: expected floating-point x, got bfloat16 without a kernel for it"):
            chain(np.ones((2, chain[0].in_channels, 3, 5), bfloat16))
