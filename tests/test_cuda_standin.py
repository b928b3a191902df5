"""The whole library on a stand-in for CuPy: the same values as on NumPy, and nothing that CuPy refuses or waits for.

The kernels that run here are the real ones, as host code (`tests/cuda/`).
"""

import copy
import sys

import numpy as np
import pytest
from hostmodule import has_compiler
from strategies import in_layout
from test_conformance import EPS32, ROWS, Case, close, each_row, step

import scratchnet as sn
from models import MobileNetV2
from scratchnet import flat, kernels
from scratchnet.array import to_device
from scratchnet.kernels import gpu
from scratchnet.training.optim import SGD, Adam, AdamW
from scratchnet.training.trainer import train_step

pytestmark = pytest.mark.skipif(not has_compiler(), reason="g++ is not installed")


@pytest.fixture(autouse=True)
def standin(monkeypatch):
    """The stand-in in CuPy's place, and grids so small that the loops in the kernels wrap."""
    import standin

    monkeypatch.setitem(sys.modules, "cupy", standin)
    monkeypatch.setattr(gpu, "THREADS", 32)
    monkeypatch.setattr(gpu, "BLOCKS", 6)
    monkeypatch.setattr(gpu, "REDUCING_BLOCKS", 6)
    standin.counts.clear()
    yield standin
    standin.counts.clear()


@pytest.fixture
def case(request):
    return Case(*request.param)


def on_the_host(values):
    return {name: to_device(value, "cpu") for name, value in values.items()}


def step_on_the_device(module, x, dy):
    """As `test_conformance.step`, on the device."""
    module = copy.deepcopy(module).to("cuda")
    x, dy = to_device(x, "cuda"), to_device(dy, "cuda") if dy.ndim else float(dy)
    module.zero_grad()
    arrays = {"y": module(x), "dx": module.backward(dy)}
    arrays |= {f"gradient of {name}": parameter.grad for name, parameter in module.named_parameters()}
    return on_the_host(arrays | module.state_dict())


@pytest.mark.parametrize("fast", [True, False], ids=["kernels", "plain"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@each_row()
def test_the_conformance_table(case, dtype, fast):
    module, x, dy = case.build(dtype)
    sn.use_kernels(fast)
    got = step_on_the_device(module, x, dy)
    sn.use_kernels(False)
    close(got, step(*case.build(np.float64)), 1e-11 if dtype == np.float64 else case.row.ulps * EPS32)
    assert {name: value.dtype for name, value in got.items()} == {
        name: np.int64 if name.endswith("num_batches_tracked") else dtype for name in got
    }


def test_every_kernel_for_the_gpu_is_run_by_a_row_or_a_step(monkeypatch):
    ran = set()
    pick = kernels.pick

    def watch(function, *args):
        ran.add(pick(function, *args))
        return pick(function, *args)

    monkeypatch.setattr(kernels, "pick", watch)
    for row in ROWS:
        for mode in ("train", "eval"):
            step_on_the_device(*Case(row, mode).build(np.float32))
        module, x, _ = Case(row, "eval").build(np.float32)
        module.eval().to("cuda")(to_device(x, "cuda"))
    for kind in (SGD, Adam):
        train(kind, "cuda", steps=1)
    on_gpu = [(name, kernel) for name, device, kernel in kernels.registered() if device == "cuda"]
    missing = [name for name, kernel in on_gpu if kernel not in ran]
    assert len(on_gpu) > 15 and not missing


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


def test_a_step_waits_for_nothing_and_copies_the_batch_alone(standin, capsys):
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
    assert counted[True]["launch"] < 950 < 4 * counted[True]["launch"] < counted[False]["launch"]


def test_dropout_copies_its_mask_as_well(standin):
    model = MobileNetV2(10, 0.1, "cifar", dropout=0.2, rng=np.random.default_rng(4)).to("cuda")
    x = to_device(in_layout(np.ones((6, 3, 16, 16), np.float32), "channel-major"), "cuda")
    standin.counts.clear()
    model(x)
    assert standin.counts["to device"] == 1


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
