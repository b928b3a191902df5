"""A training step, measured: what is said of each part is what the arrays are, and it fits into 140 columns."""

import copy
import tracemalloc

import numpy as np
import pytest
from networks import Scale, picture, tree
from strategies import normal

import scratchnet as sn
from models import MobileNetV2, ResNet
from scratchnet.device import bfloat16_dtype
from scratchnet.held import arrays_of
from scratchnet.trace import TimedStep, trace, trace_step
from scratchnet.trace_table import table

KERNELS = [False, "numpy", True]


def batch(shape=(3, 16, 16), count=4, classes=10, dtype=np.float32):
    rng = np.random.default_rng(1)
    return normal(rng, (count, *shape), dtype), rng.integers(0, classes, count)


def mobilenet(variant, dtype=np.float32, width=0.1):
    return MobileNetV2(10, width, variant, 0.0, rng=np.random.default_rng(0), dtype=dtype)


def resnet(depth, width):
    return ResNet(depth, 10, width, rng=np.random.default_rng(0))


MODELS = {
    **{
        f"MobileNetV2 {variant}": lambda variant=variant: mobilenet(variant)
        for variant in ("imagenet", "cifar", "blog")
    },
    **{f"ResNet-{depth}": lambda depth=depth: resnet(depth, 0.25) for depth in (18, 20, 50)},
}


def root_mean_square(x):
    return np.sqrt(np.mean(np.square(x, dtype=np.float64)))


@pytest.mark.parametrize("which", KERNELS)
@pytest.mark.parametrize("name", MODELS)
def test_every_network_has_a_row_a_step_in_140_columns(name, which):
    with sn.use_kernels(which):
        model, (x, labels) = MODELS[name](), batch()
        steps = trace_step(model, sn.CrossEntropyLoss(), x, labels)
        lines = table(steps).splitlines()
        assert max(map(len, lines)) <= 140 and len(lines) == len(sn.plan(model).steps) + 5
    one_by_one = trace(model, x.shape[1:])
    work = sum(line.multiply_adds for line in one_by_one)
    assert sum(step.multiply_adds for step in steps) == work > 0
    assert lines[-3].split()[:2] == ["sum", f"{work / 1e6:,.3f}"]
    assert all(step.y > 0 and step.dx > 0 and step.forward_ms > 0 for step in steps)


@pytest.mark.parametrize("which", KERNELS)
def test_the_numbers_are_those_of_the_layers_one_by_one(which):
    model, (x, labels) = mobilenet("cifar", width=0.25), batch()
    for norm in (m for _, m in model.named_modules() if isinstance(m, sn.BatchNorm2d)):
        norm.weight.data *= 4  # so that ReLU6 has something to cut off above
    steps = steps_of(model, x, labels, which)
    with sn.use_kernels(False):
        twin, ys, dxs = copy.deepcopy(model), {}, {}
        planned, criterion, y = sn.plan(twin, fuse=False), sn.CrossEntropyLoss(), x
        for step in planned.steps:
            y = ys[step.names[0], step.layers[0].name, getattr(step, "place", "")] = step.forward(y)
        criterion(y, labels)
        dy = criterion.backward()
        for step in reversed(planned.steps):
            dy = dxs[step.names[0]] = step.backward(dy)
    parameters = dict(twin.named_parameters())
    fields = {name: [] for name in ("zeros", "sixes", "gradient")}
    for step in steps:
        inside = names_of(step)
        last = inside[-1].partition(".conv")[0] if "shortcut" in step.kind or "Residual" in step.kind else inside[-1]
        if step.kind != "Residual":
            y = next(y for (name, _, place), y in reversed(ys.items()) if name == last and place != "open")
            assert step.y == pytest.approx(root_mean_square(y), rel=1e-3)
            assert step.dx == pytest.approx(root_mean_square(dxs[inside[0]]), rel=1e-3)
        clipped = [y for (name, kind, _), y in ys.items() if name in inside and kind == "ReLU6"]
        if clipped:
            numbers = np.concatenate([y.ravel() for y in clipped])
            assert step.zeros == pytest.approx((numbers == 0).mean(), abs=1e-3)
            assert step.sixes == pytest.approx((numbers == 6).mean(), abs=1e-3)
        else:
            assert step.zeros is None and step.sixes is None
        own = [p for name, p in parameters.items() if name.rpartition(".")[0] in inside and step.kind != "Residual"]
        if own:
            gradient, weight = (
                np.concatenate([a.ravel() for a in arrays])
                for arrays in zip(*((p.grad, p.data) for p in own), strict=True)
            )
            assert step.gradient == pytest.approx(np.linalg.norm(gradient) / np.linalg.norm(weight), rel=1e-3)
        else:
            assert step.gradient is None
        for name, values in fields.items():
            values.append(getattr(step, name))
    assert all(len({*values} - {None}) > 3 for values in fields.values())


def steps_of(model, x, labels, which=True):
    with sn.use_kernels(which):
        return trace_step(model, sn.CrossEntropyLoss(), x, labels)


def names_of(step):
    head, _, inside = step.names.partition("{")
    return [head + part for part in inside.rstrip("}").split(",")]


@pytest.mark.parametrize("name", ["MobileNetV2 cifar", "MobileNetV2 imagenet", "ResNet-20"])
def test_what_is_kept_is_what_python_says_is_allocated(name):
    with sn.use_kernels(False):
        model, (x, labels) = MODELS[name](), batch((3, 32, 32), 16)
        kept = sum(step.kept for step in trace_step(model, sn.CrossEntropyLoss(), x, labels))
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            y = model(x)
            allocated = tracemalloc.get_traced_memory()[0] - before - y.nbytes
        finally:
            tracemalloc.stop()
    assert kept == pytest.approx(allocated, rel=0.03)


def test_a_view_counts_as_what_it_keeps_alive_and_nothing_twice():
    whole = np.zeros((10, 100))
    other = np.zeros(3)
    held = {"a": [whole[2:4], whole.T], "b": (lambda: other[1:], (whole,)), "c": {3: whole[0]}}
    assert sorted(array.nbytes for array in arrays_of(held).values()) == [24, 8000]


def test_fused_steps_keep_less():
    (x, labels), kept = batch((3, 16, 16), 16), {}
    for which in (False, True):
        kept[which] = sum(step.kept for step in steps_of(mobilenet("cifar"), x, labels, which))
    assert 0 < kept[True] < kept[False]


def test_the_network_stays_as_it_is_and_what_is_frozen_has_no_gradient():
    net = tree(np.float32)
    net.stem.requires_grad_(False)
    for parameter in net.parameters():
        parameter.grad += 1
    state = {key: value.copy() for key, value in net.state_dict().items()}
    drawn = net.head[1].rng.bit_generator.state if hasattr(net.head[1], "rng") else None
    steps = trace_step(net, sn.CrossEntropyLoss(), picture(dtype=np.float32), np.array([0, 3]))
    assert all(np.array_equal(value, state[key]) for key, value in net.state_dict().items())
    assert all((parameter.grad == 1).all() for parameter in net.parameters())
    assert drawn is None or net.head[1].rng.bit_generator.state == drawn
    assert steps[0].gradient is None and steps[0].dx is None and steps[0].backward_ms == 0
    assert steps[-1].gradient > 0 and steps[-1].dx > 0


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 0, 1), (2, 1, 1), ((2, 3), (0, 1), 2)])
def test_a_transposed_convolution_multiplies_as_often_as_the_convolution_that_it_turns_round(stride, padding, groups):
    turned = sn.ConvTranspose2d(4, 6, (3, 2), stride, padding, groups=groups)
    conv = sn.Conv2d(6, 4, (3, 2), stride, padding, groups=groups)
    y = turned(np.zeros((1, 4, 5, 7), np.float32))
    (line,) = trace(turned, (4, 5, 7))
    assert conv(y).shape == (1, 4, 5, 7) and line.shape_out == y.shape[1:]
    assert line.multiply_adds == trace(conv, y.shape[1:])[0].multiply_adds == 4 * 5 * 7 * 6 // groups * 6
    assert sn.summary(turned, (4, 5, 7)).multiply_adds == line.multiply_adds


def test_long_names_of_a_network_of_ones_own_keep_their_ends():
    class AVeryLongNameOfALayerThatSomebodyHasWritten(Scale):
        pass

    net = AVeryLongNameOfALayerThatSomebodyHasWritten(3, np.float32)
    for k in range(12):
        net = sn.Sequential({f"a_long_name_{k}": net})
    net = sn.Sequential(net, sn.GlobalAvgPool2d(), sn.Flatten())
    lines = table(trace_step(net, sn.CrossEntropyLoss(), *batch((3, 4, 5), classes=3))).splitlines()
    assert max(map(len, lines)) <= 140
    assert lines[2].startswith("…") and "a_long_name_1.a_long_name_0 AVeryLongNameOfALay… " in lines[2]


def test_the_widest_numbers_and_shapes_fit():
    wide = TimedStep(
        "features.{" + ",".join(f"{k}.conv.{k}" for k in range(100, 130)) + "}", "kind", "f" * 30, "version" * 3,
        (2048, 112, 112), (2048, 112, 112), 10**12, 123456.789, 123456.789, 1.234e-15, 1.234e-15, 1.0, 1.0, 1.2e30, 10**11,
    )  # fmt: skip
    lines = table([wide]).splitlines()
    assert max(map(len, lines)) <= 140 and "…" in lines[2]


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_on_a_gpu_it_says_the_same(standin, stored):
    head = sn.GlobalAvgPool2d(), sn.Flatten(), sn.Linear(8, 10, rng=np.random.default_rng(0))
    model, (x, labels) = sn.Sequential(mobilenet("cifar").features[:4], *head), batch((3, 16, 16))
    here = steps_of(model, x, labels, False)
    x, labels = (
        sn.to_device(array, "cuda") for array in (sn.as_images(np.ascontiguousarray(x.transpose(1, 2, 3, 0))), labels)
    )
    if stored == "bfloat16":
        x = x.astype(bfloat16_dtype())
    there = trace_step(copy.deepcopy(model).to("cuda"), sn.CrossEntropyLoss(), x, labels)
    loose = 1e-2 if stored == "float32" else 0.2
    assert "cuda" in {step.version for step in there} and max(map(len, table(there).splitlines())) <= 140
    assert sum(step.multiply_adds for step in there) == sum(step.multiply_adds for step in here)
    assert there[-1].y == pytest.approx(here[-1].y, rel=loose) and there[0].dx == pytest.approx(here[0].dx, rel=loose)
    shares = [[step.zeros for step in steps if step.zeros is not None] for steps in (here, there)]
    assert np.mean(shares[0]) == pytest.approx(np.mean(shares[1]), rel=0.05)
    assert 0 < sum(step.kept for step in there) < 2 * sum(step.kept for step in here)
