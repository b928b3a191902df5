"""Compiled kernels: the layer files' functions on every shape, with NaN, and far from zero."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conformance import EPS32

import scratchnet as sn
from scratchnet import kernels
from scratchnet.array import as_images
from scratchnet.device import Kind
from scratchnet.fused.block import BlockStep
from scratchnet.fused.dense import DenseStep
from scratchnet.fused.depthwise import DepthwiseStep
from scratchnet.fused.front import FrontStep
from scratchnet.fused.inference import depthwise_relu6
from scratchnet.fused.pointwise import PointwiseStep
from scratchnet.fused.project import ProjectStep
from scratchnet.kernels import compiled
from scratchnet.layers.activation import RELU, RELU6
from scratchnet.layers.conv import DEPTHWISE, GROUPED, POINTWISE
from scratchnet.layers.norm import BATCH_NORM, FROZEN_BATCH_NORM
from scratchnet.layers.pool import GLOBAL_AVG_POOL2D
from scratchnet.parallel import cuts

ROOT = Path(__file__).parents[1]
needs_numba = pytest.mark.skipif(not compiled.PRESENT, reason="Numba is not installed")
C, E = 5, 21  # channels, and of an expansion: some slabs, the last one not full
SHAPES = [
    (C, 7, 9, 4),
    (C, 8, 6, 3),
    (C, 1, 6, 3),
    (C, 6, 1, 2),
    (C, 2, 3, 1),
    (C, 1, 1, 7),
    (C, 5, 4, 1),
]  # (C, H, W, N)


def window(stride):
    return (3, 3), (stride, stride), (1, 1), (1, 1)


class Call:
    """A pair with arguments for it, in float64; `dtype` makes them others."""

    def __init__(self, name, shape, stride=1, seed=0, x=None):
        self.name, self.facts = name, {}
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(shape) * rng.uniform(1, 3, (C, 1, 1, 1)) if x is None else x
        gamma, beta, mean = rng.uniform(1.5, 3, C), rng.uniform(0.5, 5.5, C), rng.standard_normal(C)
        geometry, weight = window(stride)[1:], rng.standard_normal((C, 1, 3, 3))
        wide = rng.standard_normal((E, C, 1, 1))
        norms = [(rng.uniform(1.5, 3, E), rng.uniform(0.5, 5.5, E), 1e-5) for _ in range(2)]
        stem, odd = rng.standard_normal((C, C, 3, 2)), ((1, stride), (2, 1), (2, 1))
        filters, project = rng.standard_normal((E, 1, 3, 3)), rng.standard_normal((3, E, 1, 1))
        block = (wide, *norms[0]), (filters, *norms[1]), (project, gamma[:3], beta[:3], 1e-5)
        shortcut = rng.standard_normal((3, *((size - 1) // stride + 1 for size in shape[1:3]), shape[3]))
        if name.startswith(("depthwise", "front", "block")):
            self.facts = {"window": window(stride)}
        if name in DENSE:
            self.facts = {"groups": 1, "terms": stem[0].size}
        if name == "shifted":  # as with more terms than strips take
            self.facts = {"groups": 1, "terms": 99, "window": ((3, 2), (1, 1), (2, 1), (2, 1))}
        self.plain, self.args = {
            "depthwise": (DEPTHWISE, (x, weight, *geometry)),
            "depthwise_norm_relu6": (DepthwiseStep.plain, (x, weight, gamma, beta, 1e-5, *geometry)),
            "depthwise_relu6": (kernels.Pair(depthwise_relu6), (x, weight, beta, *geometry)),
            "pointwise": (POINTWISE, (x, wide, (stride, stride))),
            "conv_norm_relu6": (PointwiseStep.plain, (as_images(x), wide, *norms[0])),
            "project": (ProjectStep.plain, (as_images(x), wide[:3], gamma[:3], beta[:3], 1e-5)),
            "project with shortcut": (
                ProjectStep.plain,
                (as_images(x), wide[:C], gamma, beta, 1e-5, as_images(x[::-1])),
            ),
            "front": (FrontStep.plain, (x, wide, *norms[0], filters, *norms[1], *geometry)),
            "block": (BlockStep.plain, (x, *block, *geometry)),
            "block with shortcut": (BlockStep.plain, (x, *block, *geometry, shortcut)),
            "grouped": (GROUPED, (x, stem, *odd, 1)),
            "shifted": (GROUPED, (x, stem, (1, 1), (2, 1), (2, 1), 1)),
            "dense_norm_relu6": (DenseStep.plain, (x, stem, gamma, beta, 1e-5, *odd)),
            "batch_norm": (BATCH_NORM, (as_images(x), gamma, beta, 1e-5)),
            "frozen_batch_norm": (FROZEN_BATCH_NORM, (as_images(x), gamma, beta, mean, gamma, 1e-5)),
            "relu": (RELU, (as_images(x),)),
            "relu6": (RELU6, (as_images(3 * x),)),
            "global_avg_pool2d": (GLOBAL_AVG_POOL2D, (as_images(x),)),
        }[name]

    def results(self, which, dtype, spoil=None, copy=True):
        """Everything that forward and backward return; `spoil` writes into a copy of dy."""
        with sn.use_kernels(which):
            pair = kernels.choose(self.plain, Kind("cpu", np.dtype(dtype).name), **self.facts)
        assert pair.version == (which or "plain")
        args = each_array(self.args, lambda array: array.astype(dtype, copy=copy))
        out = pair.forward(*args)
        out, rest = ([out], args) if isinstance(out, np.ndarray) else (list(out[:-1]), out[-1:])
        if pair.backward:
            dy = np.random.default_rng(1).standard_normal(out[0].shape[::-1]).transpose().astype(dtype)
            if spoil:
                spoil(dy)
            got = pair.backward(dy, *rest)
            out += [got] if isinstance(got, np.ndarray) else got
        assert {array.dtype for array in out} == {np.dtype(dtype)}
        return out


def each_array(args, change):
    """The arguments, and those in tuples, with their arrays changed."""
    return tuple(
        change(arg) if isinstance(arg, np.ndarray) else each_array(arg, change) if isinstance(arg, tuple) else arg
        for arg in args
    )


PAIRS = ("depthwise", "depthwise_norm_relu6", "depthwise_relu6", "batch_norm", "frozen_batch_norm", "relu", "relu6",
         "global_avg_pool2d", "pointwise", "conv_norm_relu6", "project", "project with shortcut", "front", "block",
         "block with shortcut", "shifted", "grouped", "dense_norm_relu6")  # fmt: skip
DENSE = PAIRS[-2:]
STRIDED = ("depthwise", "pointwise", "front", "block", *DENSE)
CALLS = [(name, stride) for name in PAIRS for stride in ((1, 2) if name.startswith(STRIDED) else (1,))]
each_pair = pytest.mark.parametrize(("name", "stride"), CALLS, ids=[f"{name}-{stride}" for name, stride in CALLS])


def worst(got, want):
    """The largest error of each array, over its largest number or that of dx where it is nothing but rounding."""
    floor = 1e-3 * max(np.abs(value).max() for value in want)
    return [np.abs(a - b).max() / max(np.abs(b).max(), floor) for a, b in zip(got, want, strict=True)]


def test_every_compiled_pair_is_tested_here():
    made = {row for row, versions in kernels.TABLE.items() if any(v.version == "compiled" for v in versions)}
    updates = {"sgd_updates", "adam_updates", "rmsprop_updates"}
    tested = {*PAIRS, *updates, "take_batch"} - {"project with shortcut", "block with shortcut", "shifted"}
    assert made == (tested if compiled.PRESENT else set())


@needs_numba
@each_pair
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_plain_function(name, stride, shape, dtype, monkeypatch):
    if name.startswith(("front", "block")) and stride == 2 and shape == (C, 2, 3, 1) and dtype == np.float32:
        pytest.skip("of two numbers a channel batch norm hands back 0: what float32 makes of it is rounding alone")
    call = Call(name, shape, stride)
    whole = call.results("compiled", dtype)
    monkeypatch.setattr(cuts, "PARALLEL_WORK", 0)
    sn.set_num_threads(3)
    for part, array in zip(call.results("compiled", dtype), whole, strict=True):
        np.testing.assert_array_equal(part, array)
    want = call.results(False, np.float64)
    ours, plain = (worst(call.results(which, dtype), want) for which in ("compiled", False))
    for mine, other in zip(ours, plain, strict=True):  # where gradients cancel, the plain function rounds as much
        assert mine <= (1e-11 if dtype == np.float64 else max(64 * EPS32, 8 * other))


@needs_numba
@each_pair
def test_what_is_read_only_may_be_read(name, stride):
    call = Call(name, (C, 5, 4, 1), stride)
    want = call.results("compiled", np.float64)
    call.args = each_array(call.args, lambda array: np.broadcast_to(array, array.shape))
    got = call.results("compiled", np.float64, spoil=lambda dy: dy.setflags(write=False), copy=False)
    for ours, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours, other)


@needs_numba
def test_where_loops_cannot_multiply_numpy_does(monkeypatch):
    """With another BLAS than they know."""
    monkeypatch.setattr(compiled, "multiplies", lambda: False)
    kernels._first.cache_clear()
    try:
        for name, version in (
            ("grouped", "numpy"),
            ("pointwise", "numpy"),
            ("front", "plain"),
            ("batch_norm", "compiled"),
        ):
            call = Call(name, (C, 7, 9, 4))
            assert kernels.choose(call.plain, Kind("cpu", "float32"), **call.facts).version == version
    finally:
        kernels._first.cache_clear()


@needs_numba
@pytest.mark.parametrize("name", DENSE)
def test_parts_of_many_pixels_give_the_same_for_any_number_of_threads(name):
    call = Call(name, (C, 40, 34, 20))
    want, results = call.results(False, np.float64), []
    for threads in (1, 2, 3):
        sn.set_num_threads(threads)
        results.append(call.results("compiled", np.float32))
    assert max(worst(results[0], want)) <= 64 * EPS32
    for others in zip(*results, strict=True):
        assert len({array.tobytes() for array in others}) == 1


@needs_numba
@pytest.mark.parametrize(
    ("ins", "options", "function", "version"),
    [
        (3, {}, "dense_norm_relu6", "compiled"),
        (3, {"kernel_size": 1, "padding": 0, "stride": 2}, "dense_norm_relu6", "compiled"),
        (8, {}, "relu6", "compiled"),  # 72 numbers in a sum
        (3, {"bias": True}, "relu6", "compiled"),
        (3, {"groups": 3}, "depthwise_norm_relu6", "compiled"),
    ],
)
def test_a_step_takes_a_stem(ins, options, function, version):
    net = sn.Sequential(
        sn.Conv2d(
            ins, 6 if "groups" not in options else 3, **({"kernel_size": 3, "padding": 1, "bias": False} | options)
        ),
        sn.BatchNorm2d(6 if "groups" not in options else 3),
        sn.ReLU6(),
    )
    assert str(sn.plan(net)).split()[-2:] == [function, version]
    with sn.use_kernels("numpy"):
        assert "dense_norm_relu6" not in str(sn.plan(net))
    assert "dense_norm_relu6" not in str(sn.plan(net.eval()))


RULES = [
    (sn.SGD, {}),
    (sn.SGD, {"momentum": 0.9}),
    (sn.SGD, {"momentum": 0.9, "nesterov": True}),
    (sn.Adam, {}),
    (sn.AdamW, {}),
    (sn.RMSprop, {}),
    (sn.RMSprop, {"centered": True, "momentum": 0.9}),
]


def some_parameters(dtype):
    """Of many sizes, with and without weight decay; the last two are not in one piece, and of another dtype."""
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(0.5, 1, shape).astype(dtype) for shape in ((7, 5), (3,), (40, 2, 9), (), (0,), (6, 4))]
    arrays[-1] = np.asfortranarray(arrays[-1])
    made = [sn.Parameter(array, decay=array.ndim > 1) for array in [*arrays, np.ones(3, np.float64)]]
    for parameter in made:
        parameter.grad += rng.standard_normal(parameter.data.shape)
    return made


@needs_numba
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("kind", "options"), RULES, ids=lambda case: getattr(case, "__name__", None))
def test_all_updates_in_one_call_are_those_of_every_parameter(kind, options, dtype, monkeypatch):
    from scratchnet.kernels.compiled import optimizer as loops

    results = []
    for which, piece, threads in ((False, 1, 1), ("compiled", loops.PIECE, 1), ("compiled", 7, 1), ("compiled", 7, 2)):
        sn.set_num_threads(threads)
        monkeypatch.setattr(loops, "PIECE", piece)
        monkeypatch.setattr(cuts, "PARALLEL_WORK", 0)
        parameters = some_parameters(dtype)
        places = [parameter.data for parameter in parameters]
        optimizer = kind(parameters, lr=0.1, weight_decay=0.1, **options)
        with sn.use_kernels(which):
            for k in range(3):
                optimizer.step()
                parameters[k].grad = parameters[k].grad * 2  # another array: the next step has to look there
        assert all(p.data is place for p, place in zip(parameters, places, strict=True))
        results.append([p.data for p in parameters] + [a for a in optimizer.state_dict().values() if a.ndim])
    want, first, *others = [[array for array in arrays if array.size] for arrays in results]
    assert max(worst(first, want)) <= (1e-14 if dtype == np.float64 else 8 * EPS32)
    for other in others:
        assert [array.tobytes() for array in other] == [array.tobytes() for array in first]


@needs_numba
def test_a_parameter_that_may_not_be_written_is_not():
    parameter = sn.Parameter(np.ones(3, np.float32))
    parameter.data.setflags(write=False)
    with pytest.raises(ValueError, match="read-only"):
        sn.SGD([sn.Parameter(np.ones(3, np.float32)), parameter], lr=0.1).step()


@needs_numba
@each_pair
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_seen_where_the_plain_function_shows_it(name, stride, bad):
    """In x; and in dy, also where y is held at a bound."""
    call = Call(name, (C, 7, 9, 4), stride)
    held = np.argwhere(call.results(False, np.float64)[0] == 0)

    def spoil(dy):
        dy[tuple(held[0] if len(held) else (0,) * 4)] = bad

    spoiled = Call(name, (C, 7, 9, 4), stride)
    spoiled.args[0][1, 2, 4, 0] = bad
    with np.errstate(all="ignore"):
        for case, change in ((call, spoil), (spoiled, None)):
            got, want = case.results("compiled", np.float32, change), case.results(False, np.float32, change)
            for ours, plain in zip(got, want, strict=True):
                seen, due = ~np.isfinite(ours), ~np.isfinite(plain)
                assert (seen | ~due).all()
                if not name.startswith(
                    ("depthwise", "dense", "front", "block")
                ):  # whose zeros between the rows of h make NaN of it for other taps
                    np.testing.assert_array_equal(seen, due)
                    np.testing.assert_allclose(ours[~due], plain[~due], rtol=1e-3, atol=1e-4)
            if np.isnan(bad) and (case is spoiled or case.plain.backward):
                assert any(np.isnan(value).any() for value in got)


@needs_numba
@pytest.mark.parametrize("name", ["batch_norm", "depthwise_norm_relu6", "conv_norm_relu6", "project", "front", "block"])
@pytest.mark.parametrize(("scale", "shift"), [(1e4, 0), (1, 1e4), (1e-4, 1e-2), (1, 0)])
def test_far_from_zero_it_is_as_near_to_float64_as_numpys_kernels(name, scale, shift):
    x = np.random.default_rng(2).standard_normal((C, 16, 16, 32)) * scale + shift
    call = Call(name, x.shape, x=x.astype(np.float32).astype(np.float64))
    want = call.results(False, np.float64)[:3]
    other = False if name in ("project", "front", "block") else "numpy"  # of which NumPy has none
    ours, numpys = (worst(call.results(which, np.float32)[:3], want) for which in ("compiled", other))
    for mine, other in zip(ours, numpys, strict=True):
        assert mine <= max(2 * other, 8 * EPS32)


@needs_numba
@pytest.mark.parametrize("shape", [(C, 16, 16, 32), (C, 7, 9, 5)])
@pytest.mark.parametrize("name", ["batch_norm", "depthwise_norm_relu6"])
def test_of_equal_numbers_far_from_zero_nothing_but_the_bias_is_left(name, shape):
    """The mean of many float32 numbers is rounded; 1/√eps would make 300 times as much of what it is off by."""
    call = Call(name, shape, x=np.full(shape, 1e4 / 3))
    if name.startswith("depthwise"):
        call.args[1][...] = np.eye(9)[4].reshape(3, 3)  # y = x before batch norm: padding would add other numbers
    y, mean, var, *_ = call.results("compiled", np.float32)
    bias = call.args[3 if name.startswith("depthwise") else 2].astype(np.float32)
    np.testing.assert_array_equal(var, 0)
    np.testing.assert_array_equal(mean, np.float32(1e4 / 3))
    assert (y == (bias[:, None, None, None] if name.startswith("depthwise") else bias[:, None, None])).all()


@needs_numba
@pytest.mark.parametrize("kink", [0.0, 6.0])
@pytest.mark.parametrize(
    ("name", "dbeta"),
    [("depthwise_norm_relu6", 6), ("dense_norm_relu6", 6), ("conv_norm_relu6", 6), ("front", 8), ("block", 10)],
)
def test_at_a_kink_of_relu6_nothing_comes_back(name, dbeta, kink):
    """Where gamma is 0 every number behind the (first) batch norm is beta, exactly."""
    call = Call(name, (C, 7, 9, 4))
    _, gamma, beta, *_ = call.args[1] if name == "block" else call.args[1:]
    gamma[...], beta[...] = 0, kink
    for which in ("compiled", False):
        results = call.results(which, np.float32)
        assert not results[dbeta].any() and not results[dbeta - 3].any()  # dbeta, and dx


@needs_numba
@pytest.mark.parametrize(
    ("options", "version"),
    [
        ({}, "compiled"),
        ({"stride": 2}, "compiled"),
        ({"stride": (1, 2)}, "numpy"),
        ({"stride": 3}, "numpy"),
        ({"padding": 2}, "numpy"),
        ({"dilation": 2, "padding": 1}, "numpy"),
        ({"kernel_size": 5}, "numpy"),
    ],
)
def test_a_window_that_is_not_compiled_is_numpys(options, version):
    options = {"kernel_size": 3, "padding": 1, "groups": 4, "bias": False} | options
    net = sn.Sequential(sn.Conv2d(4, 4, **options), sn.BatchNorm2d(4), sn.ReLU6())
    x = np.random.default_rng(0).standard_normal((2, 4, 9, 8)).astype(np.float32)
    for change, name in ((net.train, "depthwise_norm_relu6"), (net.eval, "depthwise_relu6")):
        change()
        assert str(sn.plan(net)).split()[-2:] == [name, version]
        got = net(x)
        with sn.use_kernels(False):
            np.testing.assert_allclose(got, net(x), rtol=0, atol=1e-4)
    assert str(sn.plan(net[0])).split()[-2:] == ["depthwise", version]
    two_filters = sn.Conv2d(4, 8, 3, padding=1, groups=4)
    assert str(sn.plan(two_filters)).split()[-2:] == ["depthwise", "plain"]


@needs_numba
def test_the_loops_are_python_too():
    """With Numba's own switch they run as what they are: no compiler between the text and the values."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    command += ["-k", "plain_function and 7 and not 6 or one_call"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout
