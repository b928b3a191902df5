"""One table of every module: a row is a layer with its options. `test_conformance.py` has the checks that every row passes.

A new layer, option or container is tested by adding a row to ROWS. A new kernel is tested by the rows that run it: there is
a check that some row does.
"""

import copy
import functools
import inspect
import math
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from strategies import far_apart, in_layout, kink_free, normal

import scratchnet as sn
from models.mobilenetv2 import inverted_residual
from scratchnet.device import get_array_module
from scratchnet.kernels import compiled
from scratchnet.parallel import cuts

CPU_KERNELS = ("numpy", "compiled") if compiled.PRESENT else ("numpy",)
EPS32 = float(np.finfo(np.float32).eps)
SMOOTH = ("complex-step", "four-point", "finite-difference")


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        make: (rng, dtype) -> Module.
        shape: of x; sizes that all differ.
        least: the smallest H and W that the layer takes.
        pictures: the smallest N that it takes.
        draw: (rng, shape) -> x.
        cut: compute it in parts as small as they get.
        samples: how many elements of each array the gradient check takes; None takes all.
        methods: of the gradient check; differences need a picture whose every rectifier input is away from the kinks.
        ulps: how far float32 may be from float64, in units of 2^-23 of the largest number of an array.
    """

    name: str
    make: Callable
    shape: tuple
    least: tuple = (1, 1)
    pictures: int = 1
    draw: Callable = normal
    cut: bool = False
    samples: int | None = None
    methods: tuple = SMOOTH
    ulps: int = 32


class Criterion(sn.Module):
    """A loss as a module of one argument.

    Attributes:
        first: which picture of the batch x begins with.
        target: (array module, x's shape, first) -> integers.
    """

    first = 0

    def __init__(self, loss, target):
        self.loss, self.target = loss, target

    def forward(self, x):
        return self.loss(x, self.target(get_array_module(x), getattr(x, "shape", (1, 1)), self.first))

    def backward(self, dloss):
        return self.loss.backward(dloss)


def classes(xp, shape, first):
    """Labels 0, 2, 4, … modulo the number of classes."""
    return (xp.arange(shape[0]) + first) * 2 % shape[1]


def numbers(count, step=1):
    """A target of x's shape: 0, step, …, count - 1 steps, and again."""

    def target(xp, shape, first):
        each = math.prod(shape[1:])
        return ((xp.arange(shape[0] * each) + first * each) % count * step).reshape(shape)

    return target


def criterion(target, loss, *args, weights=None, **options):
    """A factory of a Criterion; `weights`: (the name of an argument, its array)."""

    def make(rng, dtype):
        given = {weights[0]: np.array(weights[1], dtype)} if weights else {}
        return Criterion(loss(*args, **options, **given), target)

    return make


def conv(*args, path=None, **options):
    """A factory of one Conv2d, on a path that is not its first choice where one is named."""

    def make(rng, dtype):
        layer = sn.Conv2d(*args, **options, dtype=dtype, rng=rng)
        if path:
            layer.path = path
        return layer

    return make


def chain(*makers, container=sn.Sequential):
    """A factory of a container: each maker is (rng, dtype) -> Module, or makes a Module without arguments."""

    def make(rng, dtype):
        return container(*(maker(rng, dtype) if inspect.isfunction(maker) else maker() for maker in makers))

    return make


def norm(channels, layer=sn.BatchNorm2d, **options):
    return lambda rng, dtype: layer(channels, **options, dtype=dtype)


def dropout(p):
    return lambda rng, dtype: sn.Dropout(p, rng=np.random.default_rng(5))


def linear(*args, **options):
    return lambda rng, dtype: sn.Linear(*args, **options, dtype=dtype, rng=rng)


def only(layer, *args, **options):
    return lambda rng, dtype: layer(*args, **options)


def conv_transpose(*args, **options):
    return lambda rng, dtype: sn.ConvTranspose2d(*args, **options, dtype=dtype, rng=rng)


def group_norm(*args, **options):
    return lambda rng, dtype: sn.GroupNorm(*args, **options, dtype=dtype)


def block(ins, outs, t, stride):
    """MobileNetV2's, the expansion always there."""
    return lambda rng, dtype: inverted_residual(ins, outs, t, stride, True, dtype=dtype, rng=rng)


def resnet_block(rng, dtype):
    """With torchvision's names."""
    make = {"bias": False, "dtype": dtype, "rng": rng}
    layers = {
        "conv1": sn.Conv2d(4, 3, 3, 2, 1, **make), "bn1": sn.BatchNorm2d(3, dtype=dtype), "relu1": sn.ReLU(),
        "conv2": sn.Conv2d(3, 3, 3, 1, 1, **make), "bn2": sn.BatchNorm2d(3, dtype=dtype), "relu2": sn.ReLU(),
        "downsample": sn.Sequential(sn.Conv2d(4, 3, 1, 2, **make), sn.BatchNorm2d(3, dtype=dtype)),
    }  # fmt: skip
    return sn.Residual(layers, shortcut="downsample", after="relu2")


def named(rng, dtype):
    inner = sn.Sequential({"conv": sn.Conv2d(4, 3, 1, dtype=dtype, rng=rng), "pool": sn.GlobalAvgPool2d()})
    return sn.Sequential({"features": inner, "flatten": sn.Flatten(), "head": sn.Linear(3, 2, dtype=dtype, rng=rng)})


ODD = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}  # everything different along H and W
POOL = only(sn.AvgPool2d, 2, 1, 1)
RUN = (norm(4), sn.ReLU6, conv(4, 4, (3, 2), **ODD, groups=4, bias=False), norm(4), sn.ReLU, POOL)
EXPAND, DEPTHWISE, PROJECT = conv(3, 6, 1, bias=False), conv(6, 6, 3, padding=1, groups=6, bias=False), conv(6, 3, 1)
BLOCK = (EXPAND, norm(6), sn.ReLU6, DEPTHWISE, norm(6), sn.ReLU6, PROJECT)
STEM = (conv(4, 6, (3, 2), **ODD, bias=False), norm(6), sn.ReLU6)
X = (2, 4, 5, 3)
THIN, EVEN = conv(4, 3, 1, bias=False), conv(4, 4, 1, bias=False)
PROJECTIONS = [chain(conv(4, 3, 1, bias=False), norm(3)) for _ in "ab"]
INNER = chain(norm(3), chain(sn.Sequential, conv(3, 2, 3, padding=1), container=sn.Concat), conv(5, 4, 1))
NESTED = chain(sn.Sequential, INNER, container=sn.Concat)
EXCITED = chain(sn.Sequential, chain(sn.GlobalAvgPool2d, conv(4, 2, 1), conv(2, 4, 1)), container=sn.Multiply)

ROWS = [
    Row("pointwise", conv(4, 3, 1), X),
    Row("pointwise, stride", conv(4, 3, 1, stride=(2, 3), bias=False), X),
    Row("pointwise as dense", conv(4, 3, 1, stride=2, path="dense"), X),
    Row("pointwise as grouped", conv(4, 3, 1, stride=2, path="grouped"), X),
    Row("dense", conv(4, 3, (3, 2), **ODD), X, least=(1, 1)),
    Row("dense, no bias", conv(4, 3, (2, 3), bias=False), X, least=(2, 3)),
    Row("dense, many terms", conv(4, 3, (5, 4), padding=(2, 1)), X, least=(1, 2)),
    Row("dense, only padding is read", conv(4, 3, 1, stride=7, padding=3), X),
    Row("dense as grouped", conv(4, 3, (3, 2), **ODD, path="grouped"), X),
    Row("one channel", conv(1, 1, 3, padding=1), (2, 1, 5, 3)),
    Row("grouped", conv(4, 6, (3, 2), **ODD, groups=2), X),
    Row("grouped, no bias", conv(4, 6, (2, 3), groups=2, bias=False), X, least=(2, 3)),
    Row("grouped as dense", conv(4, 6, (3, 2), **ODD, groups=2, path="dense"), X),
    Row("grouped 1×1", conv(4, 6, 1, groups=2), X),
    Row("depthwise", conv(4, 4, 3, padding=1, groups=4), X),
    Row("depthwise, odd geometry", conv(4, 4, (3, 2), **ODD, groups=4), X),
    Row("depthwise, more than 64 pixels", conv(2, 2, 3, padding=1, groups=2, bias=False), (1, 2, 9, 8)),
    Row("depthwise, stride, more than 64 pixels", conv(2, 2, 3, stride=2, padding=1, groups=2), (1, 2, 9, 8)),
    Row("depthwise, two filters a channel", conv(4, 8, (3, 2), **ODD, groups=4), X),
    Row("depthwise as grouped", conv(4, 8, (3, 2), **ODD, groups=4, path="grouped"), X),
    Row("depthwise as dense", conv(4, 8, (3, 2), **ODD, groups=4, path="dense"), X),
    Row("batch norm", norm(4), X),
    Row("batch norm, one channel", norm(1, eps=0.1, momentum=0.3), (2, 1, 5, 3)),
    Row("ReLU", only(sn.ReLU), X, draw=functools.partial(kink_free, kinks=(0.0,))),
    Row("ReLU6", only(sn.ReLU6), X, draw=kink_free),
    Row("ReLU6 of features", only(sn.ReLU6), (3, 7), draw=kink_free),
    Row("average pool", only(sn.AvgPool2d, 2), X, least=(2, 2)),
    Row("average pool, every option", only(sn.AvgPool2d, (3, 2), 2, 1, True, False), X),
    Row("average pool, padding counts", only(sn.AvgPool2d, (2, 3), (3, 1), 1, True, True), X),
    Row("global average pool", only(sn.GlobalAvgPool2d), X),
    Row("max pool", only(sn.MaxPool2d, 2), X, least=(2, 2), draw=far_apart),
    Row("max pool, every option", only(sn.MaxPool2d, (3, 2), 2, 1, (1, 2), ceil_mode=True), X, draw=far_apart),
    Row("adaptive average pool", only(sn.AdaptiveAvgPool2d, (3, 4)), X),
    Row("transposed convolution", conv_transpose(4, 3, 2, 2), X),
    Row("transposed convolution, every option", conv_transpose(4, 6, (3, 2), (2, 3), (1, 0), 1, 2, dilation=(1, 2)), X),
    Row("transposed convolution, no bias", conv_transpose(4, 4, 3, groups=4, bias=False), X),
    Row("upsample", only(sn.Upsample, scale_factor=(2, 1.5)), X),
    Row("upsample to a size, bilinear", only(sn.Upsample, (7, 2), mode="bilinear"), X),
    Row("upsample, bilinear, corners", only(sn.Upsample, None, (1.5, 2), "bilinear", True), X),
    Row("group norm", group_norm(2, 4), X),
    Row("group norm, not affine", group_norm(1, 4, eps=0.1, affine=False), X),
    Row("layer norm", norm((4, 5, 3), sn.LayerNorm), X, least=(5, 3)),
    Row("layer norm, the last axis", norm(3, sn.LayerNorm, eps=0.1), X, least=(1, 3)),
    Row("layer norm of features, no bias", norm(7, sn.LayerNorm, bias=False), (3, 7)),
    Row("batch norm of features", norm(7, sn.BatchNorm1d), (3, 7), pictures=2),
    Row("batch norm of sequences", norm(4, sn.BatchNorm1d), (2, 4, 5), least=(2, 1)),
    Row("flatten", only(sn.Flatten), X),
    Row("linear", linear(7, 5), (3, 7)),
    Row("linear, no bias", linear(7, 1, bias=False), (3, 7)),
    Row("dropout", dropout(0.4), X),
    Row("dropout, p = 0", dropout(0.0), X),
    Row("Identity", only(sn.Identity), X),
    Row("Sigmoid", only(sn.Sigmoid), X),
    Row("Tanh", only(sn.Tanh), X),
    Row("SiLU", only(sn.SiLU), X),
    Row("GELU", only(sn.GELU), X),
    Row("GELU of features", only(sn.GELU), (3, 7)),
    Row("Softmax", only(sn.Softmax), (3, 7)),
    Row("Softmax of maps", only(sn.Softmax), X),
    Row("Softmax along W", only(sn.Softmax, -1), X),
    Row("LeakyReLU", only(sn.LeakyReLU, 0.2), X, draw=functools.partial(kink_free, kinks=(0.0,))),
    Row("Hardsigmoid", only(sn.Hardsigmoid), X, draw=functools.partial(kink_free, kinks=(-3.0, 3.0))),
    Row("Hardswish", only(sn.Hardswish), X, draw=functools.partial(kink_free, kinks=(-3.0, 3.0))),
    Row("1×1, norm, Hardswish", chain(conv(4, 6, 1, bias=False), norm(6), sn.Hardswish), X),
    Row("cross entropy", criterion(classes, sn.CrossEntropyLoss), (3, 5)),
    Row("cross entropy, smoothed", criterion(classes, sn.CrossEntropyLoss, 0.1), (3, 5)),
    Row("cross entropy, sum", criterion(classes, sn.CrossEntropyLoss, 0.1, reduction="sum"), (3, 5)),
    Row(
        "cross entropy, weights",
        criterion(classes, sn.CrossEntropyLoss, 0.1, weights=("weight", (1, 2, 0.5, 3, 1.5)), ignore_index=4),
        (3, 5),
    ),
    Row(
        "cross entropy, left out, sum", criterion(classes, sn.CrossEntropyLoss, ignore_index=2, reduction="sum"), (3, 5)
    ),
    Row("squared error", criterion(numbers(7), sn.MSELoss), X),
    Row("squared error, sum", criterion(numbers(7), sn.MSELoss, "sum"), (3, 5)),
    Row("absolute error", criterion(numbers(2, 6), sn.L1Loss), X, draw=kink_free),
    Row("absolute error, sum", criterion(numbers(2, 6), sn.L1Loss, reduction="sum"), (3, 5), draw=kink_free),
    Row("binary cross entropy", criterion(numbers(2), sn.BCEWithLogitsLoss), X),
    Row(
        "binary cross entropy, weights",
        criterion(numbers(2), sn.BCEWithLogitsLoss, weights=("pos_weight", (1, 2, 0.5, 3, 1.5)), reduction="sum"),
        (3, 5),
    ),
    Row("sequential", chain(conv(4, 2, 2, padding=1), sn.ReLU, sn.Flatten, dropout(0.3)), X),
    Row("sequential, empty", chain(), X),
    Row("named and nested", named, X),
    Row("residual", chain(conv(4, 4, 3, padding=1), container=sn.Residual), X),
    Row("residual, empty", chain(container=sn.Residual), X),
    Row("channelwise run", chain(*RUN), X),
    Row("channelwise run in slabs", chain(*RUN), X, cut=True),
    Row("residual in slabs", chain(*RUN[:2], container=sn.Residual), X, cut=True),
    Row("stem", chain(*STEM), X),
    Row("stem in parts", chain(*STEM), X, cut=True),
    Row("block with shortcut", block(2, 2, 2, 1), (2, 2, 4, 3)),
    Row("block, stride", block(2, 3, 2, 2), (2, 2, 6, 3)),
    Row("block in slabs", block(2, 2, 2, 1), (2, 2, 4, 3), cut=True),
    Row("1×1, norm, ReLU6", chain(EXPAND, norm(6), sn.ReLU6), (4, 3, 5, 7)),
    Row("depthwise, batch norm, ReLU6", chain(DEPTHWISE, norm(6), sn.ReLU6), (4, 6, 5, 3)),
    Row("depthwise, batch norm, ReLU6 in slabs", chain(DEPTHWISE, norm(6), sn.ReLU6), (4, 6, 5, 3), cut=True),
    Row("projection", chain(conv(4, 3, 1, bias=False), norm(3)), X),
    Row("projection with shortcut", chain(conv(4, 4, 1, bias=False), norm(4), container=sn.Residual), X),
    Row("shortcut with a convolution", resnet_block, (5, 4, 7, 3)),
    Row("projections added", chain(*PROJECTIONS, container=sn.Add), (5, 4, 3, 2)),
    Row("add", chain(conv(4, 3, 1), conv(4, 3, 3, padding=1), conv(4, 3, 1), container=sn.Add), X),
    Row("concat", chain(THIN, sn.Sequential, conv(4, 2, 3, padding=1, bias=False), container=sn.Concat), X),
    Row("concat of features", chain(linear(7, 2), linear(7, 3, bias=False), container=sn.Concat), (3, 7)),
    Row("concat in concat", chain(conv(4, 3, 1), NESTED), X),
    Row("multiply", chain(EVEN, conv(4, 1, 3, padding=1, bias=False), sn.Sequential, container=sn.Multiply), X),
    Row("squeeze and excitation", chain(EVEN, EXCITED), X),
    Row("large", chain(*BLOCK, container=sn.Residual), (20, 3, 17, 16), samples=3, methods=SMOOTH[:1], ulps=256),
    Row("large in slabs", chain(*BLOCK), (20, 3, 17, 16), cut=True, samples=3, methods=SMOOTH[:1], ulps=256),
]
MODES = {"train": sn.Module.train, "eval": lambda module: module.eval(save=True)}


KINKS = {sn.ReLU: (0,), sn.ReLU6: (0, 6), sn.LeakyReLU: (0,), sn.Hardsigmoid: (-3, 3), sn.Hardswish: (-3, 3)}


class Case(NamedTuple):
    """A row in a mode."""

    row: Row
    mode: str

    def build(self, dtype=np.float64, shape=None, off_kinks=False):
        """The module, x and dy, channel-major; the same numbers every time, to rounding to dtype."""
        state, x, dy = _numbers(self.row, self.mode, shape or self.row.shape, off_kinks)
        module = self.row.make(np.random.default_rng(0), dtype)
        module.load_state_dict(state)
        x, dy = (
            in_layout(value.astype(dtype), "channel-major") if value.ndim else value.astype(dtype) for value in (x, dy)
        )
        return MODES[self.mode](module), x, dy


@functools.cache
def _numbers(row, mode, shape, off_kinks):
    """A row's state, x and dy in float64; with every rectifier's input off its kinks where differences are taken."""
    rng = np.random.default_rng(zlib.crc32(row.name.encode()))
    module = MODES[mode](row.make(rng, np.float64))
    for value in module.state_dict().values():
        if value.ndim > 1:  # weights well away from 0, so that a difference's step is small beside them
            value[...] = rng.choice([-1, 1], value.shape) * rng.uniform(0.5, 1, value.shape)
        elif value.ndim == 1:  # around the zeros and ones that biases, scales and statistics start with
            value += rng.uniform(-0.5, 0.5, value.shape)
    state = copy.deepcopy(module.state_dict())
    for _ in range(10_000):
        x = row.draw(rng, shape)
        y, distance = _forward_and_distance_from_kinks(copy.deepcopy(module), x)
        if distance > (0.01 if off_kinks else 0):
            return state, x, normal(rng, np.shape(y))
    raise AssertionError(f"{row.name}: found no x of shape {shape} that keeps every rectifier's input off its kinks")


def _forward_and_distance_from_kinks(module, x):
    distances = [np.inf]
    with pytest.MonkeyPatch.context() as patch:
        for layer, kinks in KINKS.items():

            def forward(self, x, kinks=kinks, original=layer.forward):
                distances.extend(np.abs(x - kink).min() for kink in kinks)
                return original(self, x)

            patch.setattr(layer, "forward", forward)
        with sn.use_kernels(False):  # no step may take the rectifiers' place
            return module(x), min(distances)


def cut_small(monkeypatch):
    """Cut everything that can be cut, into slabs of a channel or two."""
    monkeypatch.setattr(cuts, "SLAB_BYTES", 64)
    monkeypatch.setattr(cuts, "LEAST_ROWS", 1)
    monkeypatch.setattr(cuts, "PARALLEL_WORK", 0)


def each_row(modes=tuple(MODES), rows=ROWS):
    cases = [pytest.param((row, mode), id=f"{row.name}-{mode}") for row in rows for mode in modes]
    return pytest.mark.parametrize("case", cases, indirect=True)


def step(module, x, dy):
    """Forward and backward from gradients of 0: a copy of every array that comes out or is kept, by name."""
    module.zero_grad()
    arrays = {"y": module(x), "dx": module.backward(dy)}
    arrays |= {f"gradient of {name}": parameter.grad for name, parameter in module.named_parameters()}
    return {name: np.array(value) for name, value in (arrays | module.state_dict()).items()}


def same_bits(got, want):
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].dtype == want[name].dtype and got[name].shape == want[name].shape, name
        different = np.count_nonzero(got[name] != want[name])
        assert got[name].tobytes() == want[name].tobytes(), f"{different} of {want[name].size} numbers of {name} differ"


def close(got, want, rtol):
    """Equal to rtol of the largest number of each array; where that is tiny, of a thousandth of the largest of all."""
    floor = 1e-3 * max(np.abs(value).max() for value in want.values())
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].shape == want[name].shape, name
        error = np.abs(got[name].astype(np.float64) - want[name]).max() / max(np.abs(want[name]).max(), floor)
        assert error <= rtol, f"{name} is off by {error:.1e} of its largest number, allowed {rtol:.1e}"
