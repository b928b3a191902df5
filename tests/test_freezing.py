"""Freezing: what is frozen gets no gradient and costs none, the others get theirs, and backward ends at the last one."""

import types

import numpy as np
import pytest
from conformance import CPU_KERNELS, close
from hostmodule import has_compiler
from hypothesis import given
from hypothesis import strategies as st
from networks import Scale, picture, tree
from snippets import block_with
from strategies import in_layout, normal

import scratchnet as sn
from models import MobileNetV2
from models.mobilenetv2 import conv_bn, inverted_residual
from scratchnet.array import to_device
from scratchnet.kernels import cpu as in_numpy
from scratchnet.kernels.cuda import launch
from scratchnet.layers.conv import depthwise_backward, grouped_backward, pointwise_backward
from scratchnet.layers.linear import linear_backward, linear_forward
from scratchnet.parallel import ranks
from scratchnet.steps import Fork
from scratchnet.trace import trace_step
from scratchnet.training.guard import first_bad_layer
from scratchnet.training.recorded import RecordedStep
from scratchnet.training.trainer import train_step

KERNELS = (False, *CPU_KERNELS)
KEPT = 7.0  # what a frozen gradient holds before, and after


def blocks(dtype=np.float64):
    """Everything that is computed as one: a stem, a block with a shortcut, one without, a head: (N, 3, 8, 6) -> (N, 5)."""
    rng = np.random.default_rng(0)
    make = {"dtype": dtype, "rng": rng}
    return sn.Sequential({
        "stem": conv_bn(3, 4, 3, 1, **make),
        "a": inverted_residual(4, 4, 3, 1, True, **make),
        "b": inverted_residual(4, 5, 2, 2, True, **make),
        "pool": sn.GlobalAvgPool2d(), "flatten": sn.Flatten(), "head": sn.Linear(5, 5, **make),
    })  # fmt: skip


def gradients(net, x, dy, frozen=()):
    """dx, and every gradient, where so many parameters are frozen, by number."""
    for k, parameter in enumerate(net.parameters()):
        parameter.requires_grad = k not in frozen
        parameter.grad[...] = KEPT if k in frozen else 0
    y = net(x)
    dx = net.backward(dy)
    assert y.shape == dy.shape
    return dx, {name: parameter.grad.copy() for name, parameter in net.named_parameters()}


# Networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", KERNELS)
@pytest.mark.parametrize("mode", ["train", "eval"])
@given(st.data())
def test_whatever_is_frozen_the_others_get_the_gradient_that_they_have_anyway(which, mode, data):
    net = data.draw(st.sampled_from([blocks, tree]))()
    count = len(list(net.parameters()))
    frozen = data.draw(st.sets(st.integers(0, count - 1)) | st.integers(1, count).map(lambda k: set(range(k))))
    net.train() if mode == "train" else net.eval(save=True)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x, dy = normal(rng, (4, 3, 8, 6), np.float64), rng.standard_normal((4, 5))
    states = [g for g in (vars(m).get("rng") for _, m in net.named_modules()) if g is not None]
    before = [g.bit_generator.state for g in states]
    with sn.use_kernels(which):
        want_dx, want = gradients(net, x, dy)
        for generator, state in zip(states, before, strict=True):
            generator.bit_generator.state = state
        dx, got = gradients(net, x, dy, frozen)
    assert (dx is None) == (0 < len(frozen) < count)
    if dx is not None:
        close({"dx": dx}, {"dx": want_dx}, 1e-10)
    for k, name in enumerate(want):
        if k in frozen and "scale" not in name:  # a layer of one's own, which adds by itself
            np.testing.assert_array_equal(got[name], KEPT)
    trained = [name for k, name in enumerate(want) if k not in frozen]
    scale = {"the largest of all": np.stack([abs(gradient).max() for gradient in want.values()])}
    close({name: got[name] for name in trained} | scale, {name: want[name] for name in trained} | scale, 1e-10)


def test_gradients_and_losses_equal_pytorch_s():
    torch = pytest.importorskip("torch")
    from benchmarks.torch_mobilenetv2 import TorchMobileNetV2

    rng = np.random.default_rng(3)
    ours = MobileNetV2(7, 0.25, "cifar", 0.0, dtype=np.float64, rng=rng)
    theirs = TorchMobileNetV2(7, 0.25, "cifar", 0.0).double()
    theirs.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in ours.state_dict().items()})
    for net in (ours, theirs):
        net.requires_grad_(False)
        net.features[9].requires_grad_(True)
        net.classifier.requires_grad_(True)
    frozen_norm = dict(theirs.named_parameters())["features.9.conv.0.1.weight"]
    frozen_norm.requires_grad = dict(ours.named_parameters())["features.9.conv.0.1.weight"].requires_grad = False
    x, labels = rng.standard_normal((6, 3, 24, 20)), rng.integers(0, 7, 6)
    criterion = sn.CrossEntropyLoss()
    loss = criterion(ours(x), labels)
    assert ours.backward(criterion.backward()) is None
    loss_t = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(labels))
    loss_t.backward()
    np.testing.assert_allclose(loss, loss_t.detach().numpy(), rtol=1e-12)
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    trained = 0
    for (name, p), twin in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert p.requires_grad == twin.requires_grad
        if p.requires_grad:
            trained += 1
            np.testing.assert_allclose(p.grad, twin.grad.numpy(), rtol=1e-9, atol=1e-9 * largest, err_msg=name)
        else:
            assert not p.grad.any()
    assert trained == 8 + 2
    for name, value in ours.state_dict().items():  # batch norm goes on to track, as there
        np.testing.assert_allclose(value, theirs.state_dict()[name].numpy(), rtol=1e-9, atol=1e-12)


# Where backward ends ----------------------------------------------------------------------------------------------------


class Spy(Scale):
    """Says that its backward was called."""

    def __init__(self, name, calls):
        super().__init__(3)
        self.title, self.calls = name, calls

    def backward(self, dy):
        self.calls.append(self.title)
        return super().backward(dy)


def spies(*names):
    calls = []
    return calls, [Spy(name, calls) for name in names]


@pytest.mark.parametrize(
    ("trained", "called"),
    [
        ("abcd", "dcba"),
        ("", "dcba"),
        ("d", "d"),
        ("b", "dcb"),
        ("c", "dc"),
        ("cd", "dc"),
        ("a", "dcba"),
        ("ad", "dcba"),
    ],
)
def test_nothing_is_computed_below_the_lowest_that_is_trained(trained, called):
    """Of a chain; of one whose b and c have a shortcut around them; of one whose b and c are branches."""
    for container in (sn.Sequential, sn.Residual, sn.Add):
        calls, (a, b, c, d) = spies(*"abcd")
        net = sn.Sequential(a, container(b, c), d)
        for layer in (a, b, c, d):
            layer.requires_grad_(layer.title in trained)
        x = picture()
        y = net(x)
        dx = net.backward(y)
        assert "".join(calls) == called
        assert (dx is None) == (trained not in ("abcd", ""))
        forks = [step for step in net._plan.steps if isinstance(step, Fork)]
        assert len(forks) == (container is not sn.Sequential)
        assert all((fork._x, fork._kept, fork._total) == (None, {}, None) for fork in forks)
        assert all(layer._cache is None for layer in (a, b, c, d)), "what no backward comes for is let go"
        with pytest.raises(RuntimeError, match="nothing saved for backward"):
            net.backward(y)


def test_a_change_is_seen_by_the_next_forward():
    calls, layers = spies(*"abc")
    net = sn.Sequential(*layers)
    seen = []
    for frozen in ((), (0,), (0, 1), (0, 1), ()):
        for k, layer in enumerate(layers):
            layer.gain.requires_grad = k not in frozen
        calls.clear()
        net.backward(net(picture()))
        seen.append("".join(calls))
    assert seen == ["cba", "cb", "c", "c", "cba"]
    net = blocks(np.float32)
    x = normal(np.random.default_rng(0), (4, 3, 8, 6), np.float32)
    for part in (net.stem, net.a, net.b):
        net(x), net(x)
        part.requires_grad_(False)
        net.backward(net(x))
        assert part[0].saves and not any(parameter.grad.any() for parameter in part.parameters())
        net.zero_grad()


class Twice(sn.Sequential):
    """A network inside a layer with a way of its own."""

    def forward(self, x):
        return 2 * super().forward(x)

    def backward(self, dy):
        dx = super().backward(2 * dy)
        return dx


def test_a_network_inside_a_layer_hands_dx_on_where_something_below_it_is_trained():
    calls, (a, b, c) = spies(*"abc")
    net = sn.Sequential(a, Twice(b, c))
    b.requires_grad_(False)
    x = picture()
    assert net.backward(net(x)) is None and calls == ["c", "b", "a"] and a.gain.grad.any()
    calls.clear()
    a.requires_grad_(False)
    assert net.backward(net(x)) is None and calls == ["c"]


def test_where_your_own_code_joins_networks_it_asks_for_dx():
    calls, (a, b, c) = spies(*"abc")
    body, head = sn.Sequential(a), sn.Sequential(b, c)
    b.requires_grad_(False)
    y = head(body(picture()))
    with pytest.raises(TypeError, match=r"^backward got None for dy: .* within sn\.wanting_dx\(\)$"):
        body.backward(head.backward(y))
    y = head(body(picture()))
    with sn.wanting_dx():
        dy = head.backward(y)
    assert body.backward(dy).shape == (2, 3, 7, 6) and a.gain.grad.any()


def test_a_frozen_part_in_eval_mode_saves_nothing_and_keeps_its_statistics():
    """How to fine-tune: the part below runs as at inference."""
    net = blocks(np.float32)
    fused = str(sn.plan(net))
    x = normal(np.random.default_rng(0), (4, 3, 8, 6), np.float32)
    for part in (net.stem, net.a, net.b):
        part.requires_grad_(False)
    statistics = {name: value.copy() for name, value in net.state_dict().items() if "running" in name}
    for mode in ("train", "eval"):
        for part in (net.stem, net.a, net.b):
            getattr(part, mode)()
        assert net.backward(net(x)) is None and net.head.weight.grad.any()
        moved = [not np.array_equal(net.state_dict()[name], value) for name, value in statistics.items()]
        assert any(moved) == all(moved) == (mode == "train")
        statistics = {name: net.state_dict()[name].copy() for name in statistics}
    assert str(sn.plan(net)) != fused and all(layer._cache is None for _, layer in net.named_modules())


def test_what_is_computed_as_one_gives_way_to_layers_where_a_convolution_in_it_is_frozen():
    net = blocks()
    kinds = lambda: [type(step).__name__ for step in sn.plan(net).steps]  # noqa: E731
    fused = kinds()
    expand, norm = net.b.conv[0][0].weight, net.b.conv[0][1].weight
    norm.requires_grad = False
    assert kinds() == fused, "batch norm's sums are in dx anyway"
    expand.requires_grad = False
    assert kinds() != fused and kinds().count("LayerStep") > fused.count("LayerStep")
    net.requires_grad_(False)
    net.head.requires_grad_(True)
    assert kinds() == fused, "no backward comes by"


def test_what_the_guide_shows_runs_and_changes_what_it_says():
    said = {}
    exec(block_with("requires_grad_").replace("0.5, rng", "0.1, rng"), said)
    model, fresh = said["model"], MobileNetV2(10, 0.1, rng=np.random.default_rng(0))
    for (name, value), start in zip(model.state_dict().items(), fresh.state_dict().values(), strict=True):
        part = name.split(".")
        frozen = part[0] == "features" and int(part[1]) < 12
        assert np.array_equal(value, start) == (frozen or not value.any()), name
    rates = [group["lr"] for group in said["optimizer"].param_groups]
    assert rates[0] == pytest.approx(rates[1] / 10) and rates[1] == said["optimizer"].lr


# Layers ---------------------------------------------------------------------------------------------------------------


class Counting(np.ndarray):
    """Counts products and sums of products."""

    counts: dict = {}

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        self.counts[ufunc.__name__, method] = self.counts.get((ufunc.__name__, method), 0) + 1
        plain = [value.view(np.ndarray) if isinstance(value, Counting) else value for value in inputs]
        found = getattr(ufunc, method)(*plain, **options)
        return found.view(Counting) if isinstance(found, np.ndarray) else found


GEOMETRY = (1, 1), (1, 1), (1, 1)
PATHS = {
    "pointwise": (pointwise_backward, (4, 3, 1, 1), ((1, 1),), 4, ("matmul", "__call__")),
    "grouped": (grouped_backward, (4, 3, 3, 3), (*GEOMETRY, 1), 4, ("matmul", "__call__")),
    "depthwise": (depthwise_backward, (3, 1, 3, 3), GEOMETRY, 3, ("multiply", "__call__")),
}


@pytest.mark.parametrize("path", PATHS)
def test_the_plain_functions_leave_the_product_for_dweight_out(path):
    function, shape, options, outs, product = PATHS[path]
    rng = np.random.default_rng(0)
    x, weight, dy = rng.standard_normal((3, 5, 4, 2)), rng.standard_normal(shape), rng.standard_normal((outs, 5, 4, 2))
    counted, found = [], []
    for wants in (True, False):
        Counting.counts = {}
        found.append(function(dy.view(Counting), x, weight, *options, wants))
        counted.append(Counting.counts[product])
    assert counted[1] * 2 == counted[0]
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[1][1] is None


def test_linear_leaves_out_what_is_not_wanted():
    rng = np.random.default_rng(0)
    x, weight, dy = rng.standard_normal((5, 3)), rng.standard_normal((4, 3)), rng.standard_normal((5, 4))
    columns, _, has_bias = linear_forward(x, weight, np.zeros(4))[1]
    cache = columns, weight.view(Counting), has_bias
    for wants, products in (((True, True), 2), ((False, True), 1), ((True, False), 2), ((False, False), 1)):
        Counting.counts = {}
        dx, *others = linear_backward(dy, (columns.view(Counting), *cache[1:]), wants)
        assert Counting.counts["matmul", "__call__"] == products
        assert tuple(other is not None for other in others) == wants and dx.shape == x.shape


def forbidden(*_, **__):
    raise AssertionError("nobody wants it")


LAYERS = {
    "pointwise": lambda: sn.Conv2d(3, 5, 1, stride=2, dtype=np.float64, rng=np.random.default_rng(0)),
    "dense": lambda: sn.Conv2d(3, 5, 3, padding=1, dtype=np.float64, rng=np.random.default_rng(0)),
    "depthwise": lambda: sn.Conv2d(3, 3, 3, padding=1, groups=3, dtype=np.float64, rng=np.random.default_rng(0)),
}


@pytest.mark.parametrize("which", KERNELS)
@pytest.mark.parametrize("frozen", ["weight", "bias", "both"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_convolution_computes_what_is_wanted(kind, frozen, which, monkeypatch):
    layer, rng = LAYERS[kind](), np.random.default_rng(1)
    x = in_layout(rng.standard_normal((2, 3, 7, 6)), "channel-major")
    with sn.use_kernels(which):
        dy = rng.standard_normal(layer(x).shape)
        want = layer.backward(dy), layer.weight.grad.copy(), layer.bias.grad.copy()
        layer.zero_grad()
        layer.weight.requires_grad, layer.bias.requires_grad = frozen == "bias", frozen == "weight"
        if frozen != "bias":
            monkeypatch.setattr(in_numpy.pointwise, "matmul_transposed", forbidden)
            monkeypatch.setattr(in_numpy.depthwise, "weight_gradient", forbidden)
            if which == "compiled":
                from scratchnet.kernels.compiled import pointwise

                monkeypatch.setattr(pointwise, "_weight_gradient", None)
        layer(x)
        if frozen != "bias":
            monkeypatch.setattr(in_numpy.dense, "_cols", forbidden)
        dx = layer.backward(dy)
    np.testing.assert_allclose(dx, want[0], rtol=1e-12, atol=1e-13)
    for parameter, gradient in zip((layer.weight, layer.bias), want[1:], strict=True):
        expected = gradient if parameter.requires_grad else 0 * gradient
        np.testing.assert_allclose(parameter.grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_transposed_convolution_computes_no_gradient_of_what_is_frozen(frozen):
    rng = np.random.default_rng(0)
    layer, x = sn.ConvTranspose2d(4, 6, 3, 2, dtype=np.float64, rng=rng), normal(rng, (2, 4, 3, 5))
    dy = normal(rng, layer(x).shape)
    want = layer.backward(dy)
    grads = layer.weight.grad.copy(), layer.bias.grad.copy()
    layer.zero_grad()
    getattr(layer, frozen).requires_grad = False
    layer(x)
    maps = layer._cache[0][0]
    if frozen == "weight":
        maps[...] = np.nan  # which only the weight's gradient reads
    np.testing.assert_array_equal(layer.backward(dy), want)
    for name, gradient in zip(("weight", "bias"), grads, strict=True):
        np.testing.assert_array_equal(getattr(layer, name).grad, 0 * gradient if name == frozen else gradient)


@pytest.mark.parametrize("which", KERNELS)
def test_batch_norm_with_fixed_statistics_and_weights_needs_no_x(which):
    rng = np.random.default_rng(0)
    norm, x, dy = sn.BatchNorm2d(3, dtype=np.float64), picture(), normal(rng, (2, 3, 7, 6))
    norm.running_var[...], norm.weight.data[...] = rng.uniform(0.5, 2, (2, 3))
    norm.eval(save=True)
    with sn.use_kernels(which):
        norm(x)
        want = norm.backward(dy)
        norm.zero_grad()
        norm.requires_grad_(False)
        norm(x)
        (_, kept), *_ = norm._cache
        dx = norm.backward(dy)
    assert kept.size == 3, "a number a channel, not x"
    np.testing.assert_allclose(dx, want, rtol=1e-14)
    assert not norm.weight.grad.any() and not norm.bias.grad.any()


# What looks at networks -------------------------------------------------------------------------------------------------


def test_gradcheck_skips_what_is_frozen_and_still_checks_x():
    net = tree()
    net.stem.requires_grad_(False)
    report = sn.gradcheck(net, picture())
    checked = [row.name for row in report.rows]
    assert checked[0] == "x" and not any(name.startswith("stem") for name in checked) and len(checked) == 1 + 5 + 1
    assert not net.stem[0].weight.requires_grad

    class Wrong(Scale):
        def backward(self, dy):
            dx = super().backward(dy)
            self.gain.grad *= 1.5
            return dx

    wrong = Wrong(3)
    with pytest.raises(sn.GradientMismatch, match="gain"):
        sn.gradcheck(sn.Sequential(wrong, Scale(3)), picture())
    wrong.requires_grad_(False)
    sn.gradcheck(sn.Sequential(wrong, Scale(3)), picture())


def test_trace_and_guard_go_as_far_as_a_step_does():
    net = blocks(np.float32)
    for part in (net.stem, net.a):
        part.requires_grad_(False).eval()
    x, labels = normal(np.random.default_rng(0), (4, 3, 8, 6), np.float32), np.arange(4)
    lines = trace_step(net, sn.CrossEntropyLoss(), x, labels)
    assert lines[0].backward_ms == 0 and lines[-1].backward_ms > 0 and len(lines) == len(sn.plan(net).steps)
    assert first_bad_layer(net, sn.CrossEntropyLoss(), x, labels) is None
    net.head.weight.data[0, 0] = np.nan
    with np.errstate(all="ignore"):
        assert first_bad_layer(net, sn.CrossEntropyLoss(), x, labels) == "the output of head (Linear)"


def test_ranks_sum_what_is_trained(monkeypatch):
    net = tree()
    net.stem.requires_grad_(False)
    for parameter in net.parameters():
        parameter.grad[...] = 1
    monkeypatch.setattr(ranks, "size", 2)
    monkeypatch.setattr(ranks, "_world", types.SimpleNamespace(cards_for=lambda like: None))
    monkeypatch.setattr(ranks, "_sum_in_place", lambda flat: np.multiply(flat, 2, out=flat))
    ranks.sum_gradients(net.parameters())
    assert {parameter.grad.max() for parameter in net.stem.parameters()} == {1}
    assert {parameter.grad.min() for part in (net.block, net.head) for parameter in part.parameters()} == {2}


def test_requires_grad_is_pytorch_s():
    net = tree()
    assert net.requires_grad_(False) is net and not any(p.requires_grad for p in net.parameters())
    assert net.head.requires_grad_() is net.head
    assert net.num_parameters() == sum(p.data.size for p in net.parameters())
    assert net.num_parameters(trained_only=True) == 20
    assert sn.Parameter(np.ones(2)).requires_grad and not sn.Parameter(np.ones(2), requires_grad=False).requires_grad
    assert not net.astype(np.float32).stem[0].weight.requires_grad


# On a GPU -------------------------------------------------------------------------------------------------------------

on_the_standin = pytest.mark.skipif(not has_compiler(), reason="g++ is not installed")


@on_the_standin
@pytest.mark.parametrize("kind", [sn.SGD, sn.Adam, sn.RMSprop])
def test_side_by_side_a_group_is_two_launches_and_frozen_ones_none(standin, kind):
    def made(device):
        net = tree(np.float32).to(device)
        named = list(net.named_parameters())
        groups = [{"params": named[::2], "lr": 0.01}, {"params": named[1::2], "weight_decay": 0.5}]
        optimizer = kind(groups, lr=0.1, weight_decay=0.1)
        rng = np.random.default_rng(0)
        for _, parameter in named:
            parameter.grad[...] = to_device(rng.standard_normal(parameter.data.shape).astype(np.float32), device)
        return net, optimizer

    (net, optimizer), (other, same) = made("cuda"), made("cpu")
    cases = [((), 4), (("block.scale.gain",), 3), (("stem.0.bias", "block.body.1.weight"), 3)]
    for frozen, launches in [*cases, (("block.body.0.weight",), 5)]:  # which parts its neighbours
        for each, update in ((net, optimizer), (other, same)):
            for name, parameter in each.named_parameters():
                parameter.requires_grad = name not in frozen
            standin.counts.clear()
            update.step()
            assert standin.counts["launch"] == (launches if each is net else 0), frozen
    for name, value in other.state_dict().items():
        np.testing.assert_allclose(net.state_dict()[name].get(), value, rtol=1e-5, atol=1e-6, err_msg=name)


@on_the_standin
def test_a_recorded_step_is_recorded_anew_when_something_is_frozen(gemm, standin):
    def train(record):
        net, criterion = blocks(np.float32).to("cuda"), sn.CrossEntropyLoss()
        optimizer = sn.SGD(net.named_parameters(), lr=0.1, momentum=0.9)
        half, losses = RecordedStep(net, criterion), []
        for step in range(12):
            if step in (4, 8):
                net.stem.requires_grad_(step == 8)
                net.a.requires_grad_(step == 8)
            rng = np.random.default_rng(step)
            x = in_layout(rng.standard_normal((4, 3, 8, 6)).astype(np.float32), "channel-major")
            x, labels = to_device(x, "cuda"), to_device(rng.integers(0, 5, 4), "cuda")
            if record:
                loss, _ = half(x, labels)
                optimizer.step()
            else:
                loss, _ = train_step(net, criterion, optimizer, x, labels)
            losses.append(loss.get())
        assert half.why_not is None
        return losses, {name: value.get() for name, value in net.state_dict().items()}

    want, state = train(False)
    standin.counts.clear()
    got, same = train(True)
    assert standin.counts["graph"] == 9  # one eager step for each of three recordings
    assert [loss.tobytes() for loss in got] == [loss.tobytes() for loss in want]
    assert all(same[name].tobytes() == value.tobytes() for name, value in state.items())


@on_the_standin
def test_on_a_gpu_products_and_sums_are_left_out(standin, monkeypatch):
    launched = []
    monkeypatch.setattr(launch, "_function", wrap(launch._function, launched))
    launch._prepared.cache_clear()
    rng = np.random.default_rng(0)
    layers = [
        sn.Conv2d(3, 3, 3, dilation=2, groups=3, rng=rng),
        sn.Conv2d(3, 4, 3, rng=rng),
        sn.Conv2d(4, 2, 1, rng=rng),
    ]
    net = sn.Sequential(*layers, sn.Flatten(), sn.Linear(12, 3, rng=rng)).to("cuda")
    x = to_device(in_layout(rng.standard_normal((5, 3, 9, 8)).astype(np.float32), "channel-major"), "cuda")
    found = []
    for frozen in (False, True):
        net.requires_grad_(not frozen)
        net.zero_grad()
        launched.clear()
        y = net(x)
        found.append(net.backward(y).get())
        assert ("depthwise_weight_gradient" in launched) == (not frozen) == bool(net[0].weight.grad.get().any())
        assert launched.count("im2col") == 2 - frozen
    np.testing.assert_array_equal(*found)
    launch._prepared.cache_clear()


def wrap(function, launched):
    def wrapped(xp, name, dtype, template):
        found = function(xp, name, dtype, template)

        def run(*args):
            launched.append(name)
            return found(*args)

        return run

    return wrapped
