"""Storage in bfloat16: the numbers are rounded to 8 bits where they lie in memory, and nowhere else.

NumPy has no bfloat16. The kernels are tested on uint16, the upper half of a float32, and rounded here by integer
arithmetic; the layers on ml_dtypes', as CuPy has it.
"""

import sys

import numpy as np
import pytest
from conformance import ROWS
from device import (
    HALF_ULP,
    TAKEN,
    case_in_bfloat16,
    halved,
    held_in_bfloat16,
    on_the_host,
    step_on_the_device,
    train_on_a_few_shapes,
)
from hostmodule import ORDERS, HostModule, has_compiler
from hypothesis import given
from hypothesis import strategies as st
from runs import rows_of
from strategies import in_layout, rngs

import scratchnet as sn
import train_cifar
from models import MobileNetV2
from scratchnet.array import to_device
from scratchnet.device import is_bfloat16
from scratchnet.kernels.cuda import front, many, pointwise
from scratchnet.kernels.cuda import launch as cuda_launch
from scratchnet.layers.conv import depthwise_backward, depthwise_forward
from scratchnet.layers.norm import batch_norm_backward, batch_norm_forward
from scratchnet.training.checkpoint import load
from scratchnet.training.optim import SGD
from scratchnet.training.trainer import train_step

pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.skipif(not has_compiler(), reason="g++ is not installed")


def stored(x):
    """float32 -> bfloat16 as uint16, to the nearest, ties to even: by NumPy's own rounding of integers."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.float64) / (1 << 16)
    return np.rint(bits).astype(np.uint16)


def read(halves):
    return (halves.astype(np.uint32) << 16).view(np.float32)


def launch(name, template, channels, *args, blocks=2, order=0, dtype="bfloat16"):
    kernel = cuda_launch.declared()[name]
    values = [
        arg if isinstance(arg, np.ndarray) else np.dtype(p.of(dtype)).type(arg)
        for p, arg in zip(kernel.arguments, args, strict=True)
    ]
    module = HostModule(
        cuda_launch.text(kernel.source), cuda_launch.OPTIONS, cuda_launch.instantiations(kernel.source, dtype)
    )
    module.get_function(cuda_launch.expression(name, dtype, *template))((blocks, channels), (64,), values, order=order)


def within(got, want, scale):
    """Half a unit of each stored number, and float32's own rounding of numbers as large as `scale`."""
    assert (np.abs(read(got) - want) <= np.abs(want) * HALF_ULP + 1e-5 * scale).all()


@given(st.lists(st.floats(width=32), min_size=8, max_size=8))
def test_rounding_is_to_the_nearest_even(values):
    x = np.array(values, np.float32)
    got = np.zeros((1, 8), np.uint16)
    code = cuda_launch.text("loss") + "template <class T> __global__ void k(const float* x, T* y) { *y = T(*x); }"
    kernel = HostModule(code, cuda_launch.OPTIONS, ("k<bfloat16>",)).get_function("k<bfloat16>")
    for i in range(8):
        kernel((1,), (1,), (x[i : i + 1], got[0, i : i + 1]))
    nan = np.isnan(x)
    assert np.isnan(read(got[0])[nan]).all()
    np.testing.assert_array_equal(got[0][~nan], stored(x[~nan]))


@given(rngs(), st.integers(1, 4), st.sampled_from([8, 30, 200]), st.booleans())
def test_batch_norm(rng, channels, m, far):
    x, dy = stored(rng.standard_normal((2, channels, m)) + 30 * far)
    weight, bias = rng.uniform(0.5, 2, (2, channels)).astype(np.float32)
    v, eps = (8 if m % 8 == 0 else 1), 1e-3
    given_ = (read(value).astype(np.float64).T for value in (x, dy))
    want_y, want_mean, want_var, cache = batch_norm_forward(next(given_), weight, bias, eps)
    want_dx, want_dweight, want_dbias = batch_norm_backward(next(given_), cache)
    parts, (mean, var, inv_std) = np.empty((channels, 2, 3), np.float32), np.empty((3, channels), np.float32)
    launch("row_moments", (v,), channels, x, parts, m)
    launch("combine_moments", (), channels, parts, mean, var, inv_std, eps, 2, blocks=1)
    np.testing.assert_allclose(mean, want_mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(var, want_var, rtol=1e-4, atol=1e-5)
    y, dx = np.zeros((2, channels, m), np.uint16)
    launch("normalise", (v, False), channels, x, mean, inv_std, weight, bias, y, m)
    within(y, want_y.T, 40)
    added = np.zeros_like(y)
    launch("normalise_and_add", (v,), channels, x, mean, inv_std, weight, bias, dy, added, m)  # rounded once
    within(added, want_y.T + read(dy), 80)
    products, (dweight, dbias) = np.empty((channels, 2, 2), np.float32), np.empty((2, channels), np.float32)
    launch("row_products", (v, False), channels, dy, x, mean, inv_std, weight, bias, products, m)
    others = np.empty((channels, 0), np.float32)
    launch("combine_products", (), channels, products, inv_std, dweight, dbias, others, 2, 0, blocks=1)
    size = np.abs(read(dy)).sum(axis=1).max()
    np.testing.assert_allclose(dbias, want_dbias, rtol=0, atol=1e-5 * size)
    np.testing.assert_allclose(dweight, want_dweight, rtol=0, atol=1e-4 * size)
    launch("norm_gradient", (v, False), channels, dy, x, mean, inv_std, weight, bias, dweight, dbias, dx, m)
    within(dx, want_dx.T, np.abs(weight * inv_std).max() * np.abs(read(dy)).max() * 10)


WINDOWS = [("slides", 3, (1, 1)), ("slides", 3, (2, 2)), ("any", 3, (2, 1)), ("any", 2, (1, 1))]


@given(
    rngs(), st.integers(0, ORDERS - 1), st.integers(1, 3), st.sampled_from([1, 6, 8, 40]), st.sampled_from(WINDOWS),
    st.booleans(),
)  # fmt: skip
def test_depthwise(rng, order, channels, n, kind, wide):
    way, k, stride = kind
    x = stored(rng.standard_normal((channels, 6, 5, n)))
    weight = rng.standard_normal((channels, 1, k, k)).astype(np.float32)
    options = stride, (1, 1), (1, 1)
    want_y = depthwise_forward(read(x), weight, *options)
    dy = stored(rng.standard_normal(want_y.shape))
    want_dx, want_dweight = depthwise_backward(read(dy), read(x), weight, *options)
    y, dx = np.zeros(want_y.shape, np.uint16), np.zeros(x.shape, np.uint16)
    parts, dweight = np.empty((channels, 2, k * k), np.float32), np.empty((channels, k * k), np.float32)
    sizes = *x.shape[1:], *want_y.shape[1:3]
    if way == "slides":
        template, sizes = (8 if wide and n % 8 == 0 else 1, stride[0]), (*sizes, 1, 1, 4)
        launch("window_forward", template, channels, x, weight, y, *sizes, order=order)
        launch("window_backward", template, channels, dy, x, weight, dx, parts, *sizes, order=order)
    else:
        sizes = *sizes, k, k, *stride, 1, 1, 1, 1
        launch("depthwise_forward", (), channels, x, weight, y, *sizes, order=order)
        launch("depthwise_input_gradient", (), channels, dy, weight, dx, *sizes, order=order)
        launch("depthwise_weight_gradient", (), channels, dy, x, parts, *sizes, order=order)
    within(y, want_y, 10)
    within(dx, want_dx, 10)
    launch("combine_sums", (), channels, parts, dweight, 2, k * k, blocks=1)
    np.testing.assert_allclose(dweight.reshape(weight.shape), want_dweight, rtol=0, atol=1e-5 * dy[0].size)


@given(rngs(), st.integers(0, ORDERS - 1), st.sampled_from([1, 6, 8, 40]), st.sampled_from([1, 2]), st.booleans())
def test_the_front_of_a_block(rng, order, n, stride, wide):
    """What float32's kernels give for the same numbers, rounded where it is stored."""
    wide_shape, h2 = (2, 5, 6, n), (5 - 1) // stride + 1
    deep_shape = 2, h2, (6 - 1) // stride + 1, n
    z1, dy2 = stored(rng.standard_normal(wide_shape)), stored(rng.standard_normal(deep_shape))
    weight = rng.standard_normal((2, 1, 3, 3)).astype(np.float32)
    per_channel = [
        rng.uniform(low, high, 2).astype(np.float32) for low, high in [(-1, 1), (0.5, 2), (1, 3), (0, 6)] * 2
    ]
    sums = rng.standard_normal((2, 2)).astype(np.float32)
    sizes = *wide_shape[1:], *deep_shape[1:3], 1, 1, 3

    z2, parts = np.zeros(deep_shape, np.uint16), np.empty((2, 2, 3), np.float32)
    want_z2, want_parts = np.zeros(deep_shape, np.float32), np.empty((2, 2, 3), np.float32)
    template = 8 if wide and n % 8 == 0 else 1, stride
    launch("front_forward", template, 2, z1, *per_channel[:4], weight, z2, parts, *sizes, order=order)
    arrays = *per_channel[:4], weight, want_z2, want_parts
    launch("front_forward", (1, stride), 2, read(z1), *arrays, *sizes, dtype="float32")
    within(z2, want_z2, 30)
    for rows in (parts, want_parts):  # the blocks share out the words otherwise: all together are the same
        rows[:, 0, 1] = (rows[:, :, 0] * rows[:, :, 1]).sum(axis=1) / rows[:, :, 0].sum(axis=1)
    np.testing.assert_allclose(parts[:, 0, 1], want_parts[:, 0, 1], rtol=1e-5, atol=1e-4)
    g, sums_of_g = np.zeros(wide_shape, np.uint16), np.empty((2, 2, 2 + 9), np.float32)
    want_g, want_sums = (np.zeros(a.shape, np.float32) for a in (g, sums_of_g))
    given_ = *per_channel[4:], *sums, *per_channel[:4], np.array([0, 1], np.int32), weight
    launch("front_backward", template, 2, dy2, z2, z1, *given_, g, sums_of_g, *sizes, order=order)
    arrays = read(dy2), read(z2), read(z1), *given_, want_g, want_sums
    launch("front_backward", (1, stride), 2, *arrays, *sizes, dtype="float32")
    within(g, want_g, 100)
    np.testing.assert_allclose(sums_of_g.sum(axis=1), want_sums.sum(axis=1), rtol=0, atol=1e-4 * dy2[0].size)


# The layers, and training, on the stand-in ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("row", [row for row in ROWS if row.name in TAKEN], ids=lambda row: row.name)
def test_layers_compute_on_it(standin, row, mode):
    got, x, dy = held_in_bfloat16(row, mode, TAKEN[row.name])
    assert got["dx"].dtype == x.dtype and got["y"].dtype == dy.dtype
    assert {value.dtype.name for name, value in got.items() if name not in ("y", "dx")} <= {"float32", "int64"}


@pytest.mark.parametrize("row", [row for row in ROWS if row.name not in TAKEN], ids=lambda row: row.name)
def test_what_has_no_kernel_for_it_says_so(standin, row):
    with pytest.raises(TypeError, match="got bfloat16 without a kernel for it: convert it with x.astype"):
        step_on_the_device(*case_in_bfloat16(row, "train"))


def test_on_a_cpu_and_without_kernels_it_is_refused(standin):
    module, x = sn.ReLU6(), halved(np.ones((2, 3, 4, 5), np.float32))
    with pytest.raises(TypeError, match="ReLU6: expected floating-point x, got bfloat16 without a kernel"):
        module(x)
    sn.use_kernels(False)
    with pytest.raises(TypeError, match="ReLU6: expected floating-point x, got bfloat16 without a kernel"):
        module(to_device(x, "cuda"))


def test_parameters_other_than_float32_are_refused(standin):
    norm = sn.BatchNorm2d(3, dtype=np.float64).to("cuda")
    with pytest.raises(TypeError, match="x is bfloat16 and the parameters are float64"):
        norm(to_device(halved(np.ones((2, 3, 4, 5), np.float32)), "cuda"))


def steps(standin, steps, stored=True):
    """Losses, state and counts of the last step of a narrow MobileNetV2."""
    rng = np.random.default_rng(3)
    model = MobileNetV2(10, 0.1, "cifar", dropout=0.0, rng=rng).to("cuda")
    criterion, optimizer = sn.CrossEntropyLoss(0.1), SGD(model.named_parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        x, labels = rng.standard_normal((16, 3, 16, 16)).astype(np.float32), rng.integers(0, 10, 16)
        x = halved(x) if stored else in_layout(x, "channel-major")
        standin.counts.clear()
        losses.append(train_step(model, criterion, optimizer, to_device(x, "cuda"), to_device(labels, "cuda"))[0])
    counts = dict(standin.counts)
    return [float(loss) for loss in losses], on_the_host(model.state_dict()), counts


def test_training(standin, capsys):
    """The forward is close to float32's. What 53 layers of few channels make of its rounding in backward says nothing."""
    losses, state, counts = steps(standin, 2)
    assert losses[0] == pytest.approx(steps(standin, 1, stored=False)[0][0], rel=0.02)
    assert all(value.dtype == np.float32 for name, value in state.items() if "num_batches" not in name)
    again = steps(standin, 2)
    assert again[0] == losses and all(again[1][name].tobytes() == state[name].tobytes() for name in state)
    with capsys.disabled():
        print("\na training step of MobileNetV2 in bfloat16:", counts)
    assert counts["to device"] == 2 and counts["launch"] < 520
    assert counts.get("to host", 0) == counts.get("copy", 0) == counts.get("batched", 0) == 0


def trained(seed, stored):
    """Losses of five steps of a block between a stem and a classifier, and how far each parameter has moved."""
    rng, norm = np.random.default_rng(seed), sn.BatchNorm2d

    def conv(*sizes, **options):
        return sn.Conv2d(*sizes, bias=False, rng=rng, **options)

    inside = sn.Residual(conv(4, 8, 1), norm(8), sn.ReLU6(), conv(8, 8, 3, padding=1, groups=8), norm(8), sn.ReLU6(),
                         conv(8, 4, 1), norm(4))  # fmt: skip
    stem = conv(3, 4, 3, stride=2, padding=1), norm(4), sn.ReLU6()
    model = sn.Sequential(*stem, inside, sn.GlobalAvgPool2d(), sn.Flatten(), sn.Linear(4, 5, rng=rng)).to("cuda")
    criterion, optimizer = sn.CrossEntropyLoss(0.1), SGD(model.named_parameters(), lr=0.05, momentum=0.9)
    before = np.concatenate([p.data.get().ravel() for p in model.parameters()])
    losses = []
    for _ in range(5):
        x, labels = halved(rng.standard_normal((16, 3, 8, 8)).astype(np.float32)), rng.integers(0, 5, 16)
        x = x if stored else in_layout(x.astype(np.float32), "channel-major")
        losses.append(train_step(model, criterion, optimizer, to_device(x, "cuda"), to_device(labels, "cuda"))[0])
    after = np.concatenate([p.data.get().ravel() for p in model.parameters()])
    return np.array([float(loss) for loss in losses]), after - before


def differences(seeds=range(9)):
    """Of the losses and of the ways, relative to float32's: the medians over seeds, which one bad draw does not move."""
    both = [(trained(seed, False), trained(seed, True)) for seed in seeds]
    losses = [np.abs(a - b).max() / a.mean() for (a, _), (b, _) in both]
    ways = [np.linalg.norm(a - b) / np.linalg.norm(a) for (_, a), (_, b) in both]
    return np.median(losses), np.median(ways)


def test_training_goes_the_way_of_float32(standin):
    """Measured 0.0007 and 0.055: twice as much is the limit."""
    losses, ways = differences()
    assert losses < 0.0014 and ways < 0.11


def turned(patch):
    original = many.in_bfloat16
    patch.setattr(many, "in_bfloat16", lambda w: None if (y := original(w)) is None else y[::-1].copy())


def half_forgotten(patch):
    """Where activations are in bfloat16, the gradients of 1×1 convolutions are halved."""
    original = pointwise.product

    def product(a, b, **options):
        y = original(a, b, **options)
        return 0.5 * y if options and is_bfloat16(a) else y

    patch.setattr(pointwise, "product", product)
    patch.setattr(front, "product", product)


@pytest.mark.parametrize("fault", [turned, half_forgotten], ids=lambda fault: fault.__name__)
def test_a_wrong_way_is_noticed(standin, monkeypatch, fault):
    fault(monkeypatch)
    assert differences(range(5))[1] > 0.11


def test_the_program(standin, tmp_path):
    for precision in ("float32", "bf16"):
        flags = ["--device", "cuda", "--precision", precision, "--flip-test", "--out", str(tmp_path / precision)]
        assert train_on_a_few_shapes(*flags) == 0
    loss, want = (rows_of(tmp_path / name)[0] for name in ("bf16", "float32"))
    assert loss["train_loss"] == pytest.approx(want["train_loss"], rel=0.05)
    assert loss["train_loss"] != want["train_loss"]
    assert load(tmp_path / "bf16" / "last.npz")[0]["model/features.0.0.weight"].dtype == np.float32


def test_without_ml_dtypes_the_program_says_what_to_install(standin, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert train_cifar.main(["--device", "cuda", "--precision", "bf16", "--sample"]) == 2
    assert "bfloat16 needs ml_dtypes: install the extra bf16" in capsys.readouterr().err
