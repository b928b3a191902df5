"""The contract of every layer: what every row of the table in `conformance.py` passes."""

import copy
import inspect
import pkgutil
import re
import sys
import threading
from contextlib import contextmanager
from importlib import import_module

import numpy as np
import pytest
from conformance import CPU_KERNELS, EPS32, MODES, ROWS, Case, Criterion, close, cut_small, each_row, same_bits, step
from strategies import LAYOUTS, in_layout, is_channel_major, normal

import scratchnet as sn
from models import MobileNetV2
from scratchnet import fused, kernels, layers
from scratchnet.array import as_maps
from scratchnet.data.dataset import Dataset
from scratchnet.parallel import cuts
from scratchnet.parallel.threads import Pool
from scratchnet.training.batches import Batches
from scratchnet.training.optim import SGD

EPS64 = float(np.finfo(np.float64).eps)
CUT_ULPS = 64  # a kernel may add up a row in another order when it is given fewer rows


@pytest.fixture
def case(request, monkeypatch):
    """Row and mode; its work is cut small if the row says so."""
    row, mode = request.param
    if row.cut:
        cut_small(monkeypatch)
    return Case(row, mode)


@pytest.fixture(params=CPU_KERNELS)
def cpu_kernels(request):
    """Once with NumPy's kernels and once with the compiled ones."""
    sn.use_kernels(request.param)


# Gradients ------------------------------------------------------------------------------------------------------------


@each_row()
def test_backward_is_the_complex_step(case):
    sn.use_kernels(False)
    check_gradients(case, "complex-step", 1e-12, case.row.samples)


@pytest.mark.usefixtures("cpu_kernels")
@each_row()
def test_backward_by_kernels_is_the_complex_step(case):
    check_gradients(case, "complex-step", 1e-12, case.row.samples or 10)  # and everything else by the adjoint test


@each_row(rows=[row for row in ROWS if "four-point" in row.methods])
def test_backward_is_the_four_point_difference(case):
    check_gradients(case, "four-point", 1e-9, samples=10, off_kinks=True)


@each_row(rows=[row for row in ROWS if "finite-difference" in row.methods])
def test_backward_is_the_central_difference(case):
    check_gradients(case, "finite-difference", 1e-7, samples=10, off_kinks=True)


def check_gradients(case, method, rtol, samples, **options):
    module, x, _ = case.build(**options)
    report = sn.gradcheck(module, x, method=method, rtol=rtol, rng=np.random.default_rng(1), samples=samples)
    assert report.worst <= rtol
    assert [row.name for row in report.rows] == ["x", *(name for name, _ in module.named_parameters()), "adjoint test"]


@each_row()
def test_gradients_accumulate(case):
    module, x, dy = case.build()
    want = step(module, x, dy)
    module, _, _ = case.build()
    before = {name: normal(np.random.default_rng(2), p.grad.shape) for name, p in module.named_parameters()}
    for name, parameter in module.named_parameters():
        parameter.grad[...] = before[name]
    module(x)
    module.backward(dy)
    for name, parameter in module.named_parameters():
        np.testing.assert_array_equal(parameter.grad, before[name] + want[f"gradient of {name}"], name)


# The one-shot cache ---------------------------------------------------------------------------------------------------


def is_chain_of_nothing(row):
    return row.name in ("sequential, empty", "residual, empty")


CACHING = [row for row in ROWS if not is_chain_of_nothing(row)]


def inside(module):
    """The module two containers down, so that a message must find the way: a.b, and on inside the module."""
    return sn.Sequential({"a": sn.Sequential({"b": module})})


def is_loss(row):
    return isinstance(row.make(np.random.default_rng(0), np.float64), Criterion)  # whose dloss is a number


@each_row(rows=[row for row in CACHING if not is_loss(row)])
def test_a_dy_that_does_not_fit_is_refused_and_the_right_one_still_works(case):
    module, x, dy = case.build()
    outer = inside(module)
    outer(x)
    with pytest.raises(ValueError, match=r"^a\.b.* \w+: expected dy of shape"):
        outer.backward(np.concatenate([dy, dy]))
    with pytest.raises(TypeError, match=r"^a\.b.* \w+: expected dy of dtype"):
        outer.backward(dy.astype(np.float32))
    outer.backward(dy)


@each_row(rows=CACHING)
def test_a_second_backward_raises(case):
    module, x, dy = case.build()
    outer = inside(module)
    with pytest.raises(RuntimeError, match=r"^a\.b(\.\w+)* \w+: nothing saved for backward \(no forward came before\)"):
        outer.backward(dy)
    outer(x)
    outer.backward(dy)
    with pytest.raises(RuntimeError, match=r"^a\.b(\.\w+)* \w+: nothing saved for backward \(no forward came before\)"):
        outer.backward(dy)
    outer(x)
    outer.backward(dy)  # and a new forward serves again


@each_row(modes=("train",), rows=CACHING)
def test_backward_after_eval_raises(case):
    module, x, dy = case.build()
    outer = inside(module)
    message = r"^a\.b(\.\w+)* \w+: nothing saved for backward \(the last forward ran in eval mode"
    outer(x)
    outer.eval()(x)
    with pytest.raises(RuntimeError, match=message):
        outer.backward(dy)
    outer.eval(save=True)(x)
    outer.backward(dy)
    outer.train()(x)
    outer.backward(dy)


@each_row(rows=CACHING)
def test_a_change_of_mode_or_dtype_drops_the_cache(case):
    for change in (sn.Module.eval, sn.Module.train, lambda module: module.astype(np.float64)):
        module, x, dy = case.build()
        outer = inside(module)
        outer(x)
        change(outer)
        with pytest.raises(RuntimeError, match=r"^a\.b(\.\w+)* \w+: nothing saved for backward"):
            outer.backward(dy)


# Hands off, dtype, memory ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cpu_kernels")
@each_row()
def test_x_dy_y_and_parameters_are_left_alone(case):
    module, x, dy = case.build(np.float32)
    kept = {"x": x, "dy": dy, "y": module(x)} | {name: p.data for name, p in module.named_parameters()}
    before = {name: np.array(value) for name, value in kept.items()}
    module.backward(dy)
    same_bits(kept, before)


@each_row()
def test_float32_stays_float32(case):
    sn.set_num_threads(1)
    module, x, dy = case.build(np.float32)
    with no_float64():
        arrays = step(module, x, dy)
    assert {name: value.dtype for name, value in arrays.items() if value.dtype != np.float32} == {
        name: np.int64 for name in arrays if name.endswith("num_batches_tracked")
    }


@pytest.mark.usefixtures("cpu_kernels")
@each_row()
def test_float32_is_float64_to_rounding(case):
    close(step(*case.build(np.float32)), step(*case.build(np.float64)), case.row.ulps * EPS32)


@each_row()
def test_y_and_dx_are_channel_major(case):
    module, x, dy = case.build()
    for x_order in ("channel-major", "contiguous"):
        y = module(in_layout(x, x_order))
        dx = module.backward(dy)
        keeps = (
            x_order == "contiguous"
            and isinstance(module, sn.Dropout | sn.Identity | sn.Sequential)
            and not is_computed(module)
        )
        assert y.ndim == 0 or keeps or is_channel_major(y)
        assert is_channel_major(dx)


def is_computed(module):
    """Whether the module makes a new array at all: eval-mode dropout and an empty chain hand x on."""
    if isinstance(module, sn.Dropout):
        return module.training and module.p > 0
    return len(module.named_children()) > 0


@pytest.mark.parametrize("layout", LAYOUTS)
@each_row()
def test_every_memory_layout_gives_the_same_bits(case, layout):
    module, x, dy = case.build()
    x, dy = in_layout(x, layout), in_layout(dy, layout) if dy.ndim else dy
    before = x.tobytes(), dy.tobytes()
    got = step(module, x, dy)
    assert before == (x.tobytes(), dy.tobytes())
    want = step(case.build()[0], np.array(x, order="C"), np.array(dy, order="C"))
    same_bits(got, want)


# Repeated runs, threads, cuts -----------------------------------------------------------------------------------------


@each_row()
def test_a_second_identical_run_gives_the_same_bits(case):
    module, x, dy = case.build(np.float32)
    start = copy.deepcopy(module)
    y = module(x)
    dx = module.backward(dy)
    first = {"y": y, "dx": dx}
    kept = {name: np.array(value) for name, value in first.items()}
    step(module, -x, dy)  # buffers that kernels keep are overwritten by now, what the first run returned is not
    same_bits(first, kept)
    again = step(start, x, dy)
    same_bits({name: again[name] for name in kept}, kept)
    same_bits(again, step(*case.build(np.float32)))


@pytest.mark.usefixtures("cpu_kernels")
@each_row()
def test_one_two_and_three_threads_give_the_same_bits(case, monkeypatch):
    cut_small(monkeypatch)
    results = []
    for threads in (1, 2, 3):
        sn.set_num_threads(threads)
        module, x, dy = case.build(np.float32)
        results.append(step(sn.Sequential(module), x, dy))
    same_bits(results[1], results[0])
    same_bits(results[2], results[0])


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("slab_bytes", [1, 2000])
@each_row()
def test_cuts_change_nothing_but_rounding(case, slab_bytes, monkeypatch):
    monkeypatch.setattr(cuts, "SLAB_BYTES", slab_bytes)
    results = []
    for work in (1 << 60, 0):  # nothing is cut, everything is
        monkeypatch.setattr(cuts, "PARALLEL_WORK", work)
        module, x, dy = case.build()
        results.append(step(sn.Sequential(module), x, dy))
    close(results[1], results[0], CUT_ULPS * EPS64)


def test_the_rows_that_are_to_be_cut_are(monkeypatch):
    cut_small(monkeypatch)
    counts = []

    def watch(self, function, items, original=Pool.map):
        counts.append(len(items))
        return original(self, function, items)

    monkeypatch.setattr(Pool, "map", watch)
    for row in ROWS:
        if row.cut:
            module, x, dy = Case(row, "train").build()
            counts.clear()
            module(x)
            assert max(counts) > 1, row.name
            counts.clear()
            module.backward(dy)
            assert max(counts) > 1, row.name


# Shapes at the edge ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize(
    "axes", [(0,), (2,), (3,), (2, 3), (0, 2), (0, 3)], ids=lambda axes: "".join("NCHW"[a] for a in axes)
)
@each_row(rows=[row for row in ROWS if row.samples is None])
def test_axes_of_size_1(case, axes):
    least = case.row.pictures, 1, *case.row.least
    shape = tuple(least[axis] if axis in axes else size for axis, size in enumerate(case.row.shape))
    check_gradients(case, "complex-step", 1e-12, samples=2, shape=shape)


@each_row(rows=CACHING)
def test_an_empty_batch_is_a_clear_error(case):
    module, x, _ = case.build()
    with pytest.raises(
        ValueError, match=r"^a\.b(\.\w+)* \w+: x of shape \(0, .* is empty, expected at least one picture"
    ):
        inside(module)(x[:0])


def knows_its_channels(row):
    """Whether some parameter is of their number; layer norm along W takes any."""
    return row.make(np.random.default_rng(0), np.float64).parameters() and row.name != "layer norm, the last axis"


@each_row(modes=("train",), rows=[row for row in ROWS if knows_its_channels(row)])
def test_another_number_of_channels_is_a_clear_error(case, monkeypatch):
    cut_small(monkeypatch)
    module, x, _ = case.build()
    channels = x.shape[1]
    for wrong in (channels - 1, channels + 1, 2 * channels):
        x = in_layout(np.ones((len(x), wrong, *x.shape[2:])), "channel-major")
        what = "channels" if x.ndim == 4 else "features"
        message = rf"^a\.b(\.\w+)* \w+: expected {channels} input {what}, got x of shape {re.escape(str(x.shape))}$"
        if x.size:
            with pytest.raises(ValueError, match=message):
                inside(module)(x)


@each_row(modes=("train",), rows=CACHING)
def test_what_is_no_floating_point_array_is_a_clear_error(case):
    module, x, _ = case.build()
    for wrong, what in ((x.tolist(), "list"), (None, "NoneType"), (x.astype(int), "int64"), (1.0, "float")):
        with pytest.raises(TypeError, match=rf"^a\.b(\.\w+)* \w+: expected .*, got {what}"):
            inside(module)(wrong)


# The table itself -----------------------------------------------------------------------------------------------------


def layers_in_rows():
    for row in ROWS:
        yield from (module for _, module in row.make(np.random.default_rng(0), np.float64).named_modules())


def test_every_module_of_the_library_is_in_the_table():
    modules = {value for value in vars(sn).values() if inspect.isclass(value) and issubclass(value, sn.Module)}
    assert modules - {sn.Module} <= {type(layer) for layer in layers_in_rows()}


def test_every_path_of_a_convolution_is_in_the_table():
    convolutions = [layer for layer in layers_in_rows() if isinstance(layer, sn.Conv2d)]
    used = {(layer.paths()[0], layer.path) for layer in convolutions}
    assert used >= {(layer.paths()[0], path) for layer in convolutions for path in layer.paths()}
    assert {path for _, path in used} == {"pointwise", "depthwise", "grouped", "dense"}


# Kernels --------------------------------------------------------------------------------------------------------------


def plain_function(name):
    """The function of this name in a layer's file: what a kernel of this name is a faster version of."""
    files = [
        import_module(f"{package.__name__}.{info.name}")
        for package in (layers, fused)
        for info in pkgutil.iter_modules(package.__path__)
    ]
    others = "parameter", "training.optim", "training.adaptive", "training.augment"
    files += [import_module(f"scratchnet.{name}") for name in others]
    found = [vars(file)[name] for file in files if getattr(vars(file).get(name), "__module__", None) == file.__name__]
    assert len(found) == 1, f"{len(found)} files of layers define {name}"
    return found[0]


def test_a_kernel_has_the_name_and_parameters_of_a_plain_function():
    for row, versions in kernels.TABLE.items():
        for version in versions:
            for function in filter(None, version.pair[:2]):
                plain = plain_function(row + function.__name__.partition(row)[2])
                assert inspect.signature(function) == inspect.signature(plain), f"{function.__module__} {row}"


def test_every_kernel_for_the_cpu_is_run_by_a_row(kernels_that_ran):
    for which in CPU_KERNELS:
        sn.use_kernels(which)
        for row in ROWS:
            for mode in MODES:
                step(*Case(row, mode).build(np.float32))
            module, x, _ = Case(row, "eval").build(np.float32)
            module.eval()(x)
        for kind in (sn.SGD, sn.Adam, sn.RMSprop):
            kind([sn.Parameter(np.ones(3, np.float32))], lr=0.1).step()
        pictures = Dataset(np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2, np.int64), ("any",), "none")
        assert len(list(Batches(pictures, 2, seed=0).epoch(0))) == 1
    on_cpu = {version.pair for versions in kernels.TABLE.values() for version in versions if version.device == "cpu"}
    assert on_cpu and not on_cpu - kernels_that_ran


@pytest.mark.parametrize("which", CPU_KERNELS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@each_row()
def test_kernels_give_the_same_values_as_the_layer_files(case, dtype, which):
    results = []
    for allowed in (False, which):
        sn.use_kernels(allowed)
        results.append(step(*case.build(dtype)))
    close(results[1], results[0], 1e-12 if dtype == np.float64 else case.row.ulps * EPS32)


# No float64 in a float32 step -----------------------------------------------------------------------------------------


@contextmanager
def no_float64():
    """Fail when a function of the library returns, or holds in a local variable, anything of NumPy's float64.

    Python's own float is welcome: it does not widen an array.
    """
    found = set()

    def look(frame, event, returned):
        module = frame.f_globals.get("__name__", "")
        if event == "return" and (module.startswith("scratchnet") or module.startswith("models")):
            for name, value in [*frame.f_locals.items(), ("what it returns", returned)]:
                if any(leaf.dtype in (np.float64, np.complex128) for leaf in _leaves(value)):
                    found.add(f"{module}.{frame.f_code.co_name}: {name}")

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert not found, f"float64 in a float32 step: {sorted(found)}"


def _leaves(value):
    if isinstance(value, np.ndarray | np.generic):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)


@pytest.mark.parametrize("fast", [True, False], ids=["kernels", "plain"])
@pytest.mark.parametrize("variant", ["cifar", "blog"])
def test_a_training_step_of_mobilenetv2_is_float32_throughout(variant, fast):
    sn.use_kernels(fast)
    sn.set_num_threads(1)
    rng = np.random.default_rng(4)
    network = MobileNetV2(10, 0.1, variant, dropout=0.2, rng=rng)
    criterion = sn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = SGD(network.named_parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    x, labels = normal(rng, (3, 3, 32, 32), np.float32), np.array([1, 9, 4])
    with no_float64():
        loss = criterion(network(x), labels)
        dx = network.backward(criterion.backward())
        optimizer.step()
    arrays = [loss, dx, *(p.grad for p in network.parameters()), *network.state_dict().values()]
    assert {value.dtype for value in [*arrays, *optimizer.state_dict().values()]} == {np.dtype("f4"), np.dtype("i8")}
    assert all(as_maps(value).dtype == np.float32 for value in (x, dx))
