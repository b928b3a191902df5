"""The recorded step on the stand-in: the bits of the eager step, whatever changes from step to step, and planted faults.

The stand-in computes nothing while a stream is captured, keeps addresses alone, and hands memory out again: what a
recording forgets is seen in the numbers.
"""

import importlib
import json
import os
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import traffic
from conformance import ROWS, each_row
from device import (
    TAKEN,
    halved,
    held_in_bfloat16,
    held_to_the_cpu,
    on_a_few_shapes,
    on_the_host,
    train_on_a_few_shapes,
)
from hostmodule import has_compiler
from runs import rows_of
from strategies import in_layout

import scratchnet as sn
import train_cifar
from models import MobileNetV2
from scratchnet.array import to_device
from scratchnet.kernels.cuda import products
from scratchnet.program.flags import parse
from scratchnet.training import recorded, trainer
from scratchnet.training.average import WeightAverage
from scratchnet.training.checkpoint import load
from scratchnet.training.evaluation import evaluate
from scratchnet.training.optim import SGD
from scratchnet.training.recorded import Recorded, RecordedForward, RecordedStep
from scratchnet.training.trainer import train_step

pytestmark = [
    pytest.mark.skipif(not has_compiler(), reason="g++ is not installed"),
    pytest.mark.usefixtures("standin"),
]


def network(dropout=0.25):
    """A small one with all that a step may have: statistics, a shortcut, a stride, dropout, a classifier."""
    rng = np.random.default_rng(3)
    norm, dense = sn.BatchNorm2d, sn.Conv2d

    def conv(*sizes, **options):
        return dense(*sizes, bias=False, rng=rng, **options)

    inside = sn.Residual(conv(4, 8, 1), norm(8), sn.ReLU6(), conv(8, 8, 3, padding=1, groups=8), norm(8), sn.ReLU6(),
                         conv(8, 4, 1), norm(4))  # fmt: skip
    model = sn.Sequential(
        conv(3, 4, 3, stride=2, padding=1), norm(4), sn.ReLU6(), inside, sn.GlobalAvgPool2d(), sn.Flatten(),
        sn.Dropout(dropout, rng=rng), sn.Linear(4, 5, rng=rng),
    )  # fmt: skip
    return model.to("cuda")


def given(step, stored, n=8):
    """Pictures and labels of a step."""
    rng = np.random.default_rng((7, step))
    x = rng.standard_normal((n, 3, 8, 8)).astype(np.float32)
    x = halved(x) if stored else in_layout(x, "channel-major")
    return to_device(x, "cuda"), to_device(rng.integers(0, 5, n), "cuda")


def train(record, steps=50, stored=False, sizes=lambda step: 8, between=None):
    """Losses, logits and the whole state after some steps, with a rate that changes and averaged weights."""
    model, criterion = network(), sn.CrossEntropyLoss(0.1)
    optimizer = SGD(model.named_parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    average, said = WeightAverage(model, 0.9), []
    half = RecordedStep(model, criterion)
    for step in range(steps):
        optimizer.lr = 0.1 / (1 + step)
        x, labels = given(step, stored, sizes(step))
        if record:
            loss, logits = half(x, labels)
            optimizer.step()
        else:
            loss, logits = train_step(model, criterion, optimizer, x, labels)
        average.update()
        said.append((loss, logits))
        if between:
            between(step, model)
    state = model.state_dict() | optimizer.state_dict() | {f"average {k}": v for k, v in average.state_dict().items()}
    outputs = {f"{step} {k}": value for step, pair in enumerate(said) for k, value in enumerate(pair)}
    assert not record or half.why_not is None
    return on_the_host(state | outputs)


def same_bits(got, want):
    assert got.keys() == want.keys()
    return [name for name in want if got[name].tobytes() != want[name].tobytes()]


@pytest.mark.parametrize("form", ["float32", "tf32", "bfloat16"])
def test_fifty_steps_have_the_bits_of_eager_ones(gemm, standin, form):
    stored = form == "bfloat16"
    if stored:
        pytest.importorskip("ml_dtypes")
    with sn.use_tf32(form == "tf32"):
        want = train(False, stored=stored)
        standin.counts.clear()
        assert not same_bits(train(True, stored=stored), want)
    assert standin.counts["graph"] == 49
    assert (products.TF32 in gemm.products) == (form == "tf32")


def test_a_replay_is_few_launches_and_waits_for_nothing(gemm, standin):
    model, criterion = network(), sn.CrossEntropyLoss()
    SGD(model.named_parameters(), lr=0.1)
    half = RecordedStep(model, criterion)
    for step in range(3):
        x, labels = given(step, False)
        standin.counts.clear()
        half(x, labels)
    assert +standin.counts == {"graph": 1, "launch": 5, "to device": 1}  # three inputs, two results; dropout's mask


@pytest.mark.parametrize("stored", [False, True], ids=["float32", "bfloat16"])
def test_launches_of_a_step_of_mobilenet(gemm, standin, capsys, stored):
    if stored:
        pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(4)
    model = MobileNetV2(10, 0.1, "cifar", dropout=0.0, rng=rng).to("cuda")
    optimizer = SGD(model.named_parameters(), lr=0.05, momentum=0.9)
    half, x, labels = RecordedStep(model, sn.CrossEntropyLoss(0.1)), *given(0, stored)
    counted = []
    for _ in range(3):
        standin.counts.clear()
        half(x, labels)
        optimizer.step()
        counted.append(+standin.counts)
    with capsys.disabled():
        print("\na step of MobileNetV2: eager", counted[0], "recorded", counted[1], "replayed", counted[2])
    assert counted[0]["launch"] - 2 - 2 == counted[1]["recorded"] < 450  # a copy each of loss and logits; the optimizer
    assert counted[2] == {"graph": 1, "launch": 6}
    assert not any(counts["to host"] or counts["to device"] for counts in counted)


def test_other_sizes_have_recordings_of_their_own(gemm, standin):
    sizes = lambda step: 8 if step % 3 else 5  # noqa: E731
    want = train(False, 12, sizes=sizes)
    standin.counts.clear()
    assert not same_bits(train(True, 12, sizes=sizes), want)
    assert standin.counts["graph"] == 10


def unfreeze(step, model):
    """Change what a step is: freeze a layer's statistics, give dropout another rate, take the kernels away."""
    if step == 4:
        model[1].eval(save=True)
    if step == 8:
        model[1].train()
        model[6].p = 0.5
    if step == 12:
        weight = model[0].weight
        weight.data[...] = weight.data * 2


def test_a_network_that_changes_is_recorded_anew(gemm, standin):
    want = train(False, 16, between=unfreeze)
    standin.counts.clear()
    assert not same_bits(train(True, 16, between=unfreeze), want)
    assert standin.counts["graph"] == 13  # one eager step for each of three recordings


def test_what_changes_before_it_is_recorded_is_seen(gemm, standin):
    def change(step, model):
        model[6].train() if step > 2 else model[6].eval(save=True)

    want = train(False, 6, between=change)
    standin.counts.clear()
    assert not same_bits(train(True, 6, between=change), want)
    assert standin.counts["graph"] == 3


def test_arrays_that_an_optimizer_has_moved_are_recorded_anew(gemm):
    model, criterion = network(0.0), sn.CrossEntropyLoss()
    half = RecordedStep(model, criterion)
    for step in range(3):
        half(*given(step, False))
    optimizer = SGD(model.named_parameters(), lr=0.1)
    half(*given(3, False))
    before = model[0].weight.data.get()
    optimizer.step()
    assert (model[0].weight.data.get() != before).any()


def test_evaluation_is_recorded(gemm, standin):
    model = network()
    model.eval()
    forward = RecordedForward(model)
    for step in range(4):
        x, _ = given(step, False)
        assert forward(x).get().tobytes() == model(x).get().tobytes()
    assert standin.counts["graph"] == 3


def test_results_stay_what_they_were(gemm):
    model, criterion = network(), sn.CrossEntropyLoss()
    half = RecordedStep(model, criterion)
    losses = [half(*given(step, False))[0] for step in range(6)]
    assert len({float(loss) for loss in losses}) == 6


# Where nothing can be recorded ------------------------------------------------------------------------------------------


def test_without_nvmath_it_computes_as_ever_and_says_why(standin):
    model = network(0.0)
    half = RecordedStep(model, sn.CrossEntropyLoss())
    for step in range(3):
        half(*given(step, False))
    assert not standin.counts["graph"] and "nvmath-python is not installed" in half.why_not


def test_a_layer_that_cannot_be_recorded_is_computed_as_ever(gemm, standin):
    class Reads(sn.Module):
        def forward(self, x):
            return x * float(x.mean() > -100)

        def backward(self, dy):
            return dy

    model = sn.Sequential(sn.Conv2d(3, 2, 1, rng=np.random.default_rng(0)), Reads()).to("cuda")
    forward = Recorded(lambda x: (model(x),), model)
    for step in range(4):
        x, _ = given(step, False)
        assert forward(x)[0].get().tobytes() == model(x).get().tobytes()
    assert "CaptureError while it was recorded: 1 an array, or a number, is read" in forward.why_not
    assert not standin.counts["graph"]


def test_over_several_ranks_nothing_is_recorded(gemm, standin, monkeypatch):
    monkeypatch.setattr(recorded.ranks, "size", 2)
    calls = []
    forward = Recorded(lambda x: (calls.append(x), (x,))[1])
    for step in range(3):
        forward(given(step, False)[0])
    assert len(calls) == 3 and not standin.counts["graph"]


def test_on_the_cpu_it_is_simply_called():
    rng = np.random.default_rng(0)
    model = sn.Sequential(sn.Flatten(), sn.Linear(4, 3, rng=rng))
    half = RecordedStep(model, sn.CrossEntropyLoss())
    loss, logits = half(np.ones((2, 1, 2, 2), np.float32), np.array([0, 1]))
    assert logits.shape == (2, 3) and model[1].weight.grad.any() and loss.shape == ()


# Planted faults ---------------------------------------------------------------------------------------------------------


def forgets_inputs(patch):
    original = recorded._Recording.__call__

    def call(self, arrays):
        return original(self, self._inputs if self._graph else arrays)

    patch.setattr(recorded._Recording, "__call__", call)


def forgets_masks(patch):
    original = recorded._Recording._record

    def record(self, arrays):
        original(self, arrays)
        for fixed, draw in self._drawn:
            fixed[...] = self._cupy.asarray(draw())
        self._drawn = ()

    patch.setattr(recorded._Recording, "_record", record)


def drops_its_pool(patch):
    original = recorded._Recording._record

    def record(self, arrays):
        original(self, arrays)
        self._outputs = tuple(output.copy() for output in self._outputs)
        self._pool = None

    patch.setattr(recorded._Recording, "_record", record)


def forgets_what_modules_have(patch):
    patch.setattr(recorded._Recording, "still_holds", lambda self: True)


def computes_twice(patch):
    """The step that is recorded is computed before as well: statistics see its pictures twice."""
    original = recorded._Recording._record

    def record(self, arrays):
        self._function(*arrays)
        original(self, arrays)

    patch.setattr(recorded._Recording, "_record", record)


def forgets_statistics(patch):
    """They are tracked outside of the recording, once, instead of in every replay."""
    original = sn.BatchNorm2d.track

    def track(self, *moments):
        import standin

        if standin._thread.calls is None:
            original(self, *moments)

    patch.setattr(sn.BatchNorm2d, "track", track)


@pytest.mark.parametrize(
    "fault",
    [forgets_inputs, forgets_masks, drops_its_pool, forgets_what_modules_have, computes_twice, forgets_statistics],
    ids=lambda fault: fault.__name__,
)
def test_a_planted_fault_is_noticed(gemm, monkeypatch, fault):
    want = train(False, 12, between=unfreeze)
    fault(monkeypatch)
    assert same_bits(train(True, 12, between=unfreeze), want)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda cupy, x: float(x.sum()), "is read"),
        (lambda cupy, x: x.get(), "is read"),
        (lambda cupy, x: x @ x.T, "CuPy's own cuBLAS"),
        (lambda cupy, x: cupy.asarray(np.ones(3)), "a copy from the host"),
        (lambda cupy, x: cupy.cuda.get_current_stream().synchronize(), "a wait"),
        (lambda cupy, x: x + 1, "memory from outside of a pool"),
    ],
    ids=["number", "array", "product", "upload", "wait", "memory"],
)
def test_the_stand_in_refuses_it_while_a_stream_is_captured(standin, what, message):
    x, stream, pool = (
        standin.asarray(np.ones((2, 2))),
        standin.cuda.Stream(non_blocking=True),
        standin.cuda.MemoryPool(),
    )
    with stream, standin.cuda.using_allocator(None if "memory" in message else pool.malloc):
        stream.begin_capture()
        try:
            with pytest.raises(standin.CaptureError, match=message):
                what(standin, x)
        finally:
            stream.end_capture()


# The program ------------------------------------------------------------------------------------------------------------


def test_the_program_has_the_same_bits_with_and_without(gemm, standin, tmp_path):
    kept, rows, graphs = {}, {}, {}
    for name, flags in {"recorded": [], "eager": ["--no-record"]}.items():
        standin.counts.clear()
        arguments = ["--device", "cuda", "--epochs", "2", "--ema", "0.9", "--out", str(tmp_path / name), *flags]
        assert train_on_a_few_shapes(*arguments) == 0
        kept[name], rows[name] = load(tmp_path / name / "last.npz")[0], rows_of(tmp_path / name)
        graphs[name] = standin.counts["graph"]
    assert not same_bits(kept["recorded"], kept["eager"])
    assert [row["val_loss"] for row in rows["recorded"]] == [row["val_loss"] for row in rows["eager"]]
    assert graphs["recorded"] > 4 and graphs["eager"] == 0
    assert len({(tmp_path / name / "result.json").read_text() for name in kept}) == 1


def test_the_test_and_a_checkpoints_are_recorded_and_say_the_same(gemm, standin, tmp_path, monkeypatch):
    """The last evaluation of a run, with the recordings of its validations; and that of --eval, with its own."""
    flags, graphs, found = ["--device", "cuda", "--flip-test"], [], []

    def counted(*args):
        standin.counts.clear()
        found.append(evaluate(*args))
        graphs.append(standin.counts["graph"])
        return found[-1]

    monkeypatch.setattr(train_cifar, "evaluate", counted)
    assert train_on_a_few_shapes(*flags, "--out", str(tmp_path)) == 0
    flags += ["--eval", str(tmp_path / "best.npz"), "--batch-size", "3"]
    assert on_a_few_shapes(*flags) == on_a_few_shapes(*flags, "--no-record") == 0
    assert min(graphs[:2]) > 0 == graphs[2]
    assert found[1].loss == found[2].loss == pytest.approx(found[0].loss, rel=1e-6)


def test_the_program_says_once_why_nothing_is_recorded(standin, tmp_path, capsys):
    assert train_on_a_few_shapes("--device", "cuda", "--epochs", "2", "--out", str(tmp_path)) == 0
    said = capsys.readouterr()
    assert (said.out + said.err).count("steps are not recorded") == 1


def test_a_recorded_run_that_is_resumed_has_the_bits_of_one_that_was_not_stopped(gemm, tmp_path):
    """Its second part records anew; dropout, statistics and averages go on from the checkpoint."""
    flags = ["--device", "cuda", "--ema", "0.9", "--schedule", "constant"]
    assert train_on_a_few_shapes(*flags, "--epochs", "2", "--out", str(tmp_path / "whole")) == 0
    assert train_on_a_few_shapes(*flags, "--epochs", "1", "--out", str(tmp_path / "parts")) == 0
    more = ["--epochs", "2", "--out", str(tmp_path / "parts"), "--resume-with-changes"]
    assert train_on_a_few_shapes(*flags, *more) == 0
    assert not same_bits(load(tmp_path / "parts" / "last.npz")[0], load(tmp_path / "whole" / "last.npz")[0])


def test_the_guard_names_the_layer_that_it_names_without_recording(gemm, standin, monkeypatch, tmp_path, capsys):
    """The rate is so high that numbers overflow in a replay; where, is found by steps that are not recorded."""
    monkeypatch.setitem(trainer.SYNC_EVERY, "cuda", 1)
    said = []
    for name, more in {"recorded": [], "eager": ["--no-record"]}.items():
        flags = ["--device", "cuda", "--epochs", "4", "--lr", "1e30", "--schedule", "constant", *more]
        assert train_on_a_few_shapes(*flags, "--out", str(tmp_path / "run")) == 1
        both = capsys.readouterr()
        said.append(next(line for line in (both.out + both.err).splitlines() if "is not finite in step" in line))
        assert (standin.counts["graph"] > 0) == (name == "recorded")
        standin.counts.clear()
    assert said[0] == said[1] and "features" in said[0]


def test_the_benchmarks_tables(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    gpu = importlib.import_module("gpu")
    times = {gpu.PEER: (14.7, 70.0), "scratchnet, bfloat16, recorded": (7.35, 1.0)}
    assert gpu.step_table(times, 512)[3] == "| scratchnet, bfloat16, recorded | 7.35 | 69,660 | 2.00 | 1.0 |"
    lines = gpu.kernel_table([(0.5, 2, "short"), (2.0, 4, "long"), (0.0, 1, "host")])
    assert lines[0].startswith("2.50 ms in 6 kernels") and [line[:7] for line in lines[2:]] == ["| long ", "| short"]


@pytest.mark.skipif(os.environ.get("SCRATCHNET_SLOW") != "1", reason="SCRATCHNET_SLOW=1 runs it")
def test_the_benchmark_runs_through(gemm, standin, monkeypatch, tmp_path):
    """Every part of it but the peers' and the profiler's, with kernels that compute nothing."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    gpu = importlib.import_module("gpu")
    traffic._replace(monkeypatch, traffic.Counts(Counter(), Counter()))
    pool = SimpleNamespace(free_all_blocks=lambda: None)
    monkeypatch.setitem(vars(standin), "get_default_memory_pool", lambda: pool)
    monkeypatch.setattr(gpu, "cupy_ms", lambda cupy, step, seconds: [step(), step(), (2.0, 0.1)][2])
    monkeypatch.setattr(gpu, "torch_ms", lambda *_: (4.0, 60.0))
    monkeypatch.setattr(gpu, "machine", lambda: "a card.")
    report, commands = tmp_path / "gpu.md", []
    report.write_text(f"known\n{gpu.MARK}what was measured before")
    monkeypatch.setattr(gpu, "REPORT", report)

    def run(command, **_):
        commands.append(command)
        given = parse(command[2:], "") if "train_cifar.py" in command else None
        if given:
            result = {"test_accuracy": 0.9, "test_loss": 0.3, "best_epoch": 100, "data": {"name": "x", "sha256": "y"}}
            (given.out / "result.json").write_text(json.dumps(result))
            assert (given.preset, given.epochs, given.batch_size, given.precision) == ("gpu", 100, 512, "bf16")
        return SimpleNamespace(returncode=0, stdout="416 passed", stderr="")

    monkeypatch.setattr(gpu.subprocess, "run", run)
    flags = ["--width", "0.1", "--batch", "8", "--data", str(tmp_path), "--out", str(tmp_path)]
    monkeypatch.setattr(gpu.sys, "argv", ["gpu.py", *flags, "--only", "tests", "steps", "kernels", "accuracy"])
    with np.errstate(all="ignore"), warnings.catch_warnings():  # numbers that nobody computed
        warnings.simplefilter("ignore")
        try:
            gpu.main()
        finally:
            traffic.forget_kernels()  # those of later tests have to compute
    text = report.read_text()
    assert text.startswith(f"known\n{gpu.MARK}") and "before" not in text and "Failed" not in text
    assert "| scratchnet, bfloat16, recorded | 2.00 | 4,000 | 2.00 | 0.1 |" in text and "| float32 | GB/s" in text
    assert "Test accuracy 0.9000" in text and len(commands) == 2
    assert gpu.MARK in (Path(__file__).parents[1] / "docs" / "results" / "gpu.md").read_text(encoding="utf-8")


# Products ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", ["", "a", "b", "ab"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_products(gemm, standin, dtype, turned):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((3, 5)).astype(kind), rng.standard_normal((5, 4)).astype(kind)
    want = a.astype("float64") @ b.astype("float64")
    on_device = [
        standin.asarray(np.ascontiguousarray(x.T)).T if name in turned else standin.asarray(x)
        for name, x in (("a", a), ("b", b))
    ]
    standin.counts.clear()
    y = products.product(*on_device)
    assert y.dtype.name == dtype and +standin.counts == {"launch": 1}
    np.testing.assert_allclose(y.get().astype("float64"), want, rtol=0, atol=0.03 if dtype == "bfloat16" else 1e-6)
    wide = "float64" if dtype == "float64" else "float32"
    total = standin.asarray(np.full((3, 4), 2, wide))
    assert products.product(*on_device, out=total) is total
    np.testing.assert_allclose(total.get(), want + 2, rtol=0, atol=1e-6)


@each_row()
def test_the_conformance_table_by_gemm(case, gemm):
    held_to_the_cpu(case, np.float32, True, case.row.ulps)


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in TAKEN], ids=lambda row: row.name)
def test_layers_in_bfloat16_by_gemm(gemm, row):
    held_in_bfloat16(row, "train", TAKEN[row.name])


def test_products_without_nvmath_are_cupys(standin):
    a, b = (standin.asarray(np.random.default_rng(k).standard_normal((3, 3))) for k in (0, 1))
    total = standin.asarray(np.ones((3, 3)))
    products.product(a, b.T, out=total)
    np.testing.assert_allclose(total.get(), 1 + a.get() @ b.get().T)


def test_a_product_that_is_rounded_says_so_itself(gemm, standin):
    a = standin.asarray(np.full((2, 2), 1 + 2.0**-12, np.float32))
    with sn.use_tf32(True):
        assert float(products.product(a, a)[0, 0]) == 2
        assert float(products.product(a, a, tf32=False)[0, 0]) > 2
    assert gemm.products == [products.TF32, products.FLOAT32]
