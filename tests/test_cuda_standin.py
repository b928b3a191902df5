"""The whole library on a stand-in for CuPy: the same values as on NumPy, and nothing that CuPy refuses or waits for.

The kernels that run here are the real ones, as host code (`tests/cuda/`).
"""

import copy

import numpy as np
import pytest
import traffic
from conformance import close, each_row
from device import batches, held_to_the_cpu, on_the_host, run_every_kernel, train_on_a_few_shapes
from hostmodule import has_compiler
from runs import rows_of
from strategies import in_layout

import scratchnet as sn
import train_cifar
from models import MobileNetV2
from scratchnet import flat, kernels
from scratchnet.array import to_device
from scratchnet.device import Kind, bfloat16_dtype, product
from scratchnet.fused.front import FrontStep
from scratchnet.kernels.cuda import front as cuda_front
from scratchnet.training.checkpoint import load
from scratchnet.training.optim import SGD, Adam, AdamW
from scratchnet.training.trainer import train_step

pytestmark = [
    pytest.mark.skipif(not has_compiler(), reason="g++ is not installed"),
    pytest.mark.usefixtures("standin"),
]


@pytest.mark.parametrize("fast", [True, False], ids=["kernels", "plain"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@each_row()
def test_the_conformance_table(case, dtype, fast):
    got = held_to_the_cpu(case, dtype, fast, case.row.ulps)
    assert {name: value.dtype for name, value in got.items()} == {
        name: np.int64 if name.endswith("num_batches_tracked") else dtype for name in got
    }


def test_every_kernel_for_the_gpu_is_run(kernels_that_ran):
    pytest.importorskip("ml_dtypes")
    run_every_kernel()
    on_gpu = {version.pair for versions in kernels.TABLE.values() for version in versions if version.device == "cuda"}
    assert len(on_gpu) > 15 and not on_gpu - kernels_that_ran


# The front of a block ---------------------------------------------------------------------------------------------------


def front(rng, n, stride, dtype, ins=3, wide=7, size=(5, 6), eps=(1e-3, 1e-5)):
    """x, what `front_forward` takes behind it, and dy; a scale of batch norm that lets ReLU6 clip on both sides."""
    x = rng.standard_normal((ins, *size, n)) + rng.standard_normal((ins, 1, 1, 1))
    weights = rng.standard_normal((wide, ins, 1, 1)), rng.standard_normal((wide, 1, 3, 3))
    stages = [
        (weight, rng.uniform(1, 4, wide), rng.uniform(0, 6, wide), e) for weight, e in zip(weights, eps, strict=True)
    ]
    given = [x, *stages[0], *stages[1]]
    given = [value if isinstance(value, float) else value.astype(dtype) for value in given]
    dy = rng.standard_normal((wide, *((side - 1) // stride + 1 for side in size), n)).astype(dtype)
    return given, ((stride, stride), (1, 1), (1, 1)), dy


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 12])
def test_the_front_of_a_block_is_that_of_the_file(standin, n, stride):
    """With words and without, over shapes with fewer pictures than a word; not a copy and no waiting in it."""
    given, window, dy = front(np.random.default_rng(n), n, stride, np.float64)
    plain, fast = FrontStep.plain, kernels.choose(FrontStep.plain, Kind("cuda", "float64"), window=((3, 3), *window))
    assert fast.version == "cuda"
    *want, cache = plain.forward(*given, *window)
    want += plain.backward(dy, cache)
    there = [value if isinstance(value, float) else to_device(value, "cuda") for value in given]
    dy = to_device(dy, "cuda")
    standin.counts.clear()
    *got, cache = fast.forward(*there, *window)
    got += fast.backward(dy, cache)
    assert +standin.counts == {"launch": 16}
    assert len(got) == len(want) == 12
    for value, expected in zip(got, want, strict=True):
        assert value.shape == expected.shape and value.dtype == expected.dtype
        np.testing.assert_allclose(value.get(), expected, rtol=0, atol=1e-11 * max(1, np.abs(expected).max()))


def test_a_front_whose_channels_are_alike_keeps_its_digits():
    """Where a covariance has none left: channels that differ in their last digits only, as in float32."""
    given, window, dy = front(np.random.default_rng(1), 8, 1, np.float32)
    given[0][1:] = given[0][0] + 1e-4 * given[0][1:]
    given[1][:, 0] = -given[1][:, 1:].sum(axis=1)
    pair = kernels.choose(FrontStep.plain, Kind("cuda", "float32"), window=((3, 3), *window))
    exact = [value if isinstance(value, float) else value.astype(np.float64) for value in given]
    *_, want_var, _, _, _ = FrontStep.plain.forward(*exact, *window)
    there = [value if isinstance(value, float) else to_device(value, "cuda") for value in given]
    *_, var, _, _, _ = pair.forward(*there, *window)
    np.testing.assert_allclose(var.get(), want_var, rtol=1e-2)


ALIKE_IN = {  # what is done to x and to the expansion's weight
    "nothing": lambda x, w: None,
    "all but for noise": lambda x, w: (
        np.copyto(x[1:], x[0] + 1e-4 * x[1:]),
        np.copyto(w[:, 0], -w[:, 1:].sum(axis=1)),
    ),
    "all, with other weights": lambda x, w: np.copyto(x[1:], x[0] + 1e-4 * x[1:]),
    "constant but for noise": lambda x, w: np.copyto(x, 1 + 1e-4 * x),
    "two equal": lambda x, w: (np.copyto(x[1], x[0]), np.copyto(w[::2, 1], -w[::2, 0]), np.copyto(w[::2, 2:], 1e-2)),
    "far from 0": lambda x, w: np.copyto(x, x + 100),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ALIKE_IN)
def test_a_front_is_as_exact_as_if_it_read_its_expansion(gemm, monkeypatch, kind, dtype):
    """The bar is the way that takes statistics and gradients of every row from z1 and dz1. Never to take it would fail."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    kept = np.float32 if dtype == "float32" else bfloat16_dtype()
    pair = kernels.choose(FrontStep.plain, Kind("cuda", dtype), window=((3, 3), (1, 1), (1, 1), (1, 1)))

    def errors(alike):
        """Of each array the root of the mean square beside that of its numbers, over three draws."""
        monkeypatch.setattr(cuda_front, "ALIKE", alike)
        found = []
        for seed in range(3):
            given, window, dy = front(np.random.default_rng(seed), 16, 1, np.float32, 5, 12, eps=(1e-5, 1e-5))
            ALIKE_IN[kind](given[0], given[1][:, :, 0, 0])
            given[0], given[1], dy = (value.astype(kept) for value in (given[0], given[1], dy))
            exact = [value if isinstance(value, float) else value.astype(np.float64) for value in given]
            *want, cache = FrontStep.plain.forward(*exact, *window)
            want += FrontStep.plain.backward(dy.astype(np.float64), cache)
            given[1] = given[1].astype(np.float32)
            there = [value if isinstance(value, float) else to_device(value, "cuda") for value in given]
            *got, cache = pair.forward(*there, *window)
            got += pair.backward(to_device(dy, "cuda"), cache)
            pairs = zip(got, want, strict=True)
            found.append(
                [np.sqrt(((a.get().astype(float) - b) ** 2).mean() / max((b**2).mean(), 1e-30)) for a, b in pairs]
            )
        return np.mean(found, axis=0)

    used = cuda_front.ALIKE
    bar = 1.5 * errors(np.inf) + 3e-7
    assert (errors(used) <= bar).all()
    if kind in ("all but for noise", "constant but for noise", "far from 0") and dtype == "float32":
        assert not (errors(0) <= bar).all()


def test_a_plan_takes_a_block_in_two_steps():
    """Of the steps of a block the front and the projection have kernels here; the whole has none."""
    text = str(sn.plan(MobileNetV2(10, 0.1, "cifar", rng=np.random.default_rng(0)).to("cuda")))
    assert text.count("front of a block") == 16 == text.count("front      ") and "block_" not in text
    assert "inverted residual block" not in text and text.count("depthwise_norm_relu6") == 1
    assert text.count("project  ") == 17 and text.count("dense_norm_relu6") == 1


# A training step ------------------------------------------------------------------------------------------------------

OPTIONS = {
    SGD: {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    Adam: {"lr": 0.01, "weight_decay": 1e-3},
    AdamW: {"lr": 0.01, "weight_decay": 0.1},
}


def train(kind, device, steps=2, dtype=np.float64, look=None):
    """Some steps of a narrow MobileNetV2; its losses and its state."""
    rng = np.random.default_rng(4)
    model = MobileNetV2(10, 0.1, "cifar", dropout=0.2, dtype=dtype, rng=rng).to(device)
    criterion = sn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = kind(model.named_parameters(), **OPTIONS[kind])
    losses = []
    for _ in range(steps):
        x = in_layout(rng.standard_normal((6, 3, 16, 16)).astype(dtype), "channel-major")
        labels = rng.integers(0, 10, 6)
        if look:
            look.clear()
        loss, logits = train_step(model, criterion, optimizer, to_device(x, device), to_device(labels, device))
        losses.append(loss)
        assert logits.shape == (6, 10)
    return [float(loss) for loss in losses], on_the_host(model.state_dict() | optimizer.state_dict())


@pytest.mark.parametrize("kind", OPTIONS)
def test_training_is_that_of_the_cpu(kind):
    losses, state = train(kind, "cuda")
    sn.use_kernels(False)
    want_losses, want_state = train(kind, "cpu")
    np.testing.assert_allclose(losses, want_losses, rtol=1e-9)
    close(state, want_state, 1e-4 if kind is not SGD else 1e-8)  # Adam makes steps of gradients that are 0 to rounding


def test_two_runs_have_the_same_bits():
    first, second = (train(SGD, "cuda", dtype=np.float32) for _ in range(2))
    assert first[0] == second[0]
    assert all(first[1][name].tobytes() == second[1][name].tobytes() for name in first[1])


def test_a_step_waits_for_nothing_and_copies_the_batch_alone(standin, gemm, capsys):
    counted = {}
    for fast in (False, True):
        sn.use_kernels(fast)
        losses = []
        model_counts = standin.counts
        rng = np.random.default_rng(4)
        model = MobileNetV2(10, 0.1, "cifar", dropout=0.0, rng=rng).to("cuda")
        criterion, optimizer = sn.CrossEntropyLoss(0.1), SGD(model.named_parameters(), **OPTIONS[SGD])
        for _ in range(2):  # the first compiles
            x = in_layout(rng.standard_normal((6, 3, 16, 16)).astype(np.float32), "channel-major")
            labels = rng.integers(0, 10, 6)
            model_counts.clear()
            losses.append(train_step(model, criterion, optimizer, to_device(x, "cuda"), to_device(labels, "cuda"))[0])
        counted[fast] = dict(model_counts)
    with capsys.disabled():
        print("\na training step of MobileNetV2, plain:", counted[False], "\nwith kernels:", counted[True])
    for counts in counted.values():
        assert counts["to device"] == 2  # pictures and labels
        assert counts.get("to host", 0) == counts.get("copy", 0) == 0
    assert counted[True].get("batched", 0) == 0
    assert counted[True]["launch"] <= 450 < 4 * counted[True]["launch"] < counted[False]["launch"]


@pytest.mark.parametrize(
    ("width", "batch", "bfloat16", "launches", "gigabytes"),
    [(1.0, 512, True, 447, 15.8), (0.5, 128, True, 447, 2.26), (1.0, 512, False, 446, 31.5)],
)
def test_launches_and_bytes_of_a_step_of_full_size(monkeypatch, width, batch, bfloat16, launches, gigabytes):
    """At most as many as docs/results/gpu-proofs.md says."""
    pytest.importorskip("ml_dtypes")
    counts = traffic.count(monkeypatch, width, batch, bfloat16)
    assert sum(counts.launches.values()) <= launches
    assert sum(counts.moved.values()) <= gigabytes * 1e9


def test_bytes_are_those_of_the_arrays(monkeypatch):
    """Of the one depthwise convolution without an expansion, by hand: x and z, the weight, three numbers a block."""
    counts = traffic.count(monkeypatch, 1.0, 8, False)
    assert counts.launches["front_forward"] == 16 == counts.launches["front_backward"]
    assert counts.launches["window_moments"] == 1
    assert counts.moved["window_moments"] == 4 * (2 * 32 * 32 * 32 * 8 + 32 * 9 + 32 * 2 * 3)


def test_dropout_copies_its_mask_as_well(standin):
    model = MobileNetV2(10, 0.1, "cifar", dropout=0.2, rng=np.random.default_rng(4)).to("cuda")
    x = to_device(in_layout(np.ones((6, 3, 16, 16), np.float32), "channel-major"), "cuda")
    standin.counts.clear()
    model(x)
    assert standin.counts["to device"] == 1


def test_arrays_of_both_kinds_are_refused_with_the_way_out():
    model, x = small_network(), np.zeros((2, 3, 2, 2), np.float32)
    with pytest.raises(TypeError, match=r"x is on cpu and the parameters are on cuda: move one with sn.to_device"):
        model(x)
    with pytest.raises(TypeError, match=r"x is on cuda and the parameters are on cpu: move one with sn.to_device"):
        small_network().to("cpu")(to_device(x, "cuda"))
    with pytest.raises(TypeError, match="move the labels with sn.to_device"):
        sn.CrossEntropyLoss()(to_device(np.zeros((2, 3)), "cuda"), np.zeros(2, np.int64))


# Parameters side by side ----------------------------------------------------------------------------------------------


def small_network():
    rng = np.random.default_rng(0)
    return sn.Sequential(sn.Conv2d(3, 5, 1, rng=rng), sn.BatchNorm2d(5), sn.Flatten(), sn.Linear(20, 2, rng=rng)).to(
        "cuda"
    )


def test_parameters_lie_side_by_side_and_are_updated_in_two_launches(standin):
    model = small_network()
    before = on_the_host(model.state_dict())
    optimizer = SGD(model.named_parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    home = model[0].weight.home
    assert {id(p.home) for p in model.parameters()} == {id(home)}
    assert all(p.data.data.ptr % 64 == home.data.data.ptr % 64 for p in model.parameters())
    after = on_the_host(model.state_dict())
    assert all((after[name] == before[name]).all() for name in before)
    for p in model.parameters():
        p.grad += 1
    standin.counts.clear()
    optimizer.step()
    model.zero_grad()
    assert standin.counts["launch"] == 3
    assert not any(p.grad.get().any() for p in model.parameters())
    moved = on_the_host(model.state_dict())
    np.testing.assert_allclose(moved["0.weight"], before["0.weight"] * 0.99 - 0.1, rtol=1e-6)
    np.testing.assert_allclose(moved["0.bias"], before["0.bias"] - 0.1, rtol=1e-6)


def test_a_part_of_the_network_zeroes_its_own_gradients_only():
    model = small_network()
    SGD(model.named_parameters(), lr=0.1)
    for p in model.parameters():
        p.grad += 1
    model[0].zero_grad()
    assert not model[0].weight.grad.get().any() and model[3].weight.grad.get().all()


def test_a_copy_of_the_network_has_gradients_of_its_own():
    model = small_network()
    SGD(model.named_parameters(), lr=0.1)
    twin = copy.deepcopy(model)
    for p in [*model.parameters(), *twin.parameters()]:
        p.grad += 1
    twin.zero_grad()
    assert all(p.grad.get().all() for p in model.parameters())
    assert not any(p.grad.get().any() for p in twin.parameters())


def test_a_network_that_moves_away_needs_a_new_optimizer():
    model = small_network()
    optimizer = SGD(model.named_parameters(), lr=0.1)
    model.to("cpu").to("cuda")
    with pytest.raises(ValueError, match="make the optimizer after"):
        optimizer.step()
    SGD(model.named_parameters(), lr=0.1).step()


def test_a_second_optimizer_of_the_same_network_leaves_it_where_it_is():
    model = small_network()
    SGD(model.named_parameters(), lr=0.1)
    home = model[0].weight.home
    second = SGD(model.named_parameters(), lr=0.1)
    for p in model.parameters():
        p.grad += 1
    before = model[0].weight.data.get()
    second.step()
    assert model[0].weight.home is home
    np.testing.assert_allclose(model[0].weight.data.get(), before - 0.1, rtol=1e-6)


def test_on_the_cpu_nothing_is_laid_side_by_side():
    model = small_network().to("cpu")
    SGD(model.named_parameters(), lr=0.1)
    assert flat.lay_flat(dict(model.named_parameters())) is None and model[0].weight.home is None


# Batches made on the device -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False], ids=["kernels", "plain"])
@pytest.mark.parametrize(
    "options",
    [{}, {"augment": True}, {"augment": True, "alternate": True, "padding": 15}, {"augment": True, "image_size": 24}],
    ids=str,
)
def test_batches_on_the_device_are_those_of_the_cpu(options, fast):
    sn.use_kernels(fast)
    for k in (0, 1):
        pairs = list(zip(batches("cuda", **options).epoch(k), batches("cpu", **options).epoch(k), strict=True))
        assert len(pairs) == 4
        for (x, labels), (want_x, want_labels) in pairs:
            assert x.dtype == np.float32 and x.transpose(1, 2, 3, 0).flags.c_contiguous
            np.testing.assert_allclose(x.get(), want_x, rtol=0, atol=2e-6)
            np.testing.assert_array_equal(labels.get(), want_labels)


def test_a_batch_copies_its_random_numbers_and_labels_only(standin):
    made = batches("cuda", augment=True)
    standin.counts.clear()
    x, labels = next(iter(made.epoch(0, 3)))  # the last: no other is made ahead
    assert x.shape == (2, 3, 16, 18) and labels.shape == (2,)
    assert +standin.counts == {"to device": 2, "launch": 1}


def test_the_program_trains_as_on_the_cpu(tmp_path):
    results, losses = {}, []
    for device in ("cpu", "cuda"):
        sn.use_kernels(device == "cuda")
        arguments = ["--device", device, "--out", str(tmp_path / device), "--dropout", "0", "--checkpoint-every", "3"]
        assert train_on_a_few_shapes(*arguments) == 0
        arrays = load(tmp_path / device / "last.npz")[0]
        results[device] = {name: value for name, value in arrays.items() if name.startswith("model/")}
        losses.append(rows_of(tmp_path / device)[0]["train_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    for name, want in results["cpu"].items():  # float32, with pixels on the kinks: what is exact is tested above
        got = results["cuda"][name]
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=0.02 * max(1e-2, np.abs(want).max()), err_msg=name)


def test_a_precision_that_only_a_gpu_has(standin, capsys):
    assert train_cifar.main(["--device", "cpu", "--precision", "tf32", "--sample"]) == 2
    assert "--precision tf32 needs a GPU" in capsys.readouterr().err


def watch_products(standin, monkeypatch, seen):
    """Take down for every product whether it is one of TF32."""
    tf32, original = standin._core._routines_linalg.COMPUTE_TYPE_TF32, standin.ndarray.__matmul__

    def watch(a, b):
        seen.append(standin._core.get_compute_type(np.float32) == tf32)
        return original(a, b)

    monkeypatch.setattr(standin.ndarray, "__matmul__", watch)


def test_precision_is_that_of_a_product_and_nothing_is_left_switched(standin, monkeypatch):
    """Of CuPy's setting for the whole process nobody else may see anything, such as the thread that prepares batches."""
    setting, seen = standin._core.get_compute_type, []
    a = standin.asarray(np.ones((2, 3), np.float32))
    watch_products(standin, monkeypatch, seen)
    before = setting(np.float32)
    with sn.use_tf32(True):
        product(a, a.T)
        product(a, a.T, tf32=False)
        a @ a.T
        with sn.use_tf32(False):
            product(a, a.T)
        product(a, a.T)
    product(a, a.T)
    assert seen == [True, False, False, False, True, False] and setting(np.float32) == before


def test_a_gpu_net_multiplies_as_the_switch_says(standin, monkeypatch):
    """Switching in between forward and backward is harmless."""
    seen = []
    watch_products(standin, monkeypatch, seen)
    rng = np.random.default_rng(0)
    conv, norm = sn.Conv2d(3, 4, 1, bias=False, rng=rng), sn.BatchNorm2d(4)
    net = sn.Sequential(conv, norm, sn.ReLU6(), sn.Conv2d(4, 2, 3, rng=rng)).to("cuda")
    x = to_device(in_layout(rng.standard_normal((5, 3, 6, 4)).astype(np.float32), "channel-major"), "cuda")
    with sn.use_tf32(True):
        y = net(x)
    assert seen == [True, True]
    net.backward(y)
    assert seen[2:] == [False] * 4
