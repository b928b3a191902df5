"""The program on several ranks: the numbers of one, and every fault is one line, one exit code and no process left.

SCRATCHNET_SLOW=1 makes the random kills a hundred.
"""

import importlib.util
import json
import os
import re
import shutil
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from runs import ROOT, TINY, content, make_tiny, rows_of, tiny

import scratchnet as sn
from scratchnet.program.console import Console
from scratchnet.program.launch import run_as_ranks
from scratchnet.training import checkpoint

MPIEXEC = os.access(os.path.join(os.path.dirname(sys.executable), "mpiexec"), os.X_OK) or shutil.which("mpiexec")
WHY = "the extra fast is not installed: there is no " + ("mpiexec" if importlib.util.find_spec("mpi4py") else "mpi4py")
pytestmark = pytest.mark.skipif(not (MPIEXEC and importlib.util.find_spec("mpi4py")), reason=WHY)
KILLS = 100 if os.environ.get("SCRATCHNET_SLOW") == "1" else 5
STEPS = 108 // 36  # an epoch
SGD = ["--optimizer", "sgd"]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    make_tiny(monkeypatch)
    sn.use_kernels("numpy")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def command(flags, fault, rank, step, mark):
    """What a rank is started with."""
    return [sys.executable, str(ROOT / "tests" / "ranks_child.py"), fault, str(rank), str(step), str(mark), *flags]


@pytest.fixture
def go(tmp_path, capfd):
    """go(out, flags, count, fault, rank, step): (exit code, lines of output, lines of errors, seconds from the fault)."""

    def start(out, *flags, count=2, fault="none", rank=0, step=0):
        mark = tmp_path / "mark"
        mark.unlink(missing_ok=True)
        capfd.readouterr()
        what = [*TINY, "--out", str(out), "--ranks", str(count)] if out else []
        code = run_as_ranks(count, command([*what, *map(str, flags)], fault, rank, step, mark), Console())
        seconds = time.time() - mark.stat().st_mtime if mark.exists() else None
        said, errors = capfd.readouterr()
        if seconds is not None:
            last = errors or said.splitlines()[-1]
            print(f"{fault} on rank {rank} of {count}: all ended after {seconds:.1f} s, exit code {code}: {last}")
        return code, said.splitlines(), errors.splitlines(), seconds

    return start


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run on two ranks that nothing stopped: its folder, and what it comes to."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        flags = [*TINY, "--out", str(out), "--ranks", "2"]
        assert run_as_ranks(2, command(flags, "none", 0, 0, out / "mark"), Console()) == 0
    return SimpleNamespace(out=out, content=content(out))


def same_but_for_rounding(out, other):
    """Adam would take the sign of a gradient that is 0 but for rounding, that of a bias before batch norm."""
    (arrays, header), (more, other_header) = (checkpoint.load(place / "last.npz") for place in (out, other))
    assert arrays.keys() == more.keys()
    for key, array in arrays.items():
        np.testing.assert_allclose(array, more[key], rtol=1e-3, atol=2e-5, err_msg=key)
    for key in ("epoch", "batch", "generator"):
        assert header[key] == other_header[key]
    for row, other_row in zip(rows_of(out), rows_of(other), strict=True):
        for field in ("train_loss", "val_loss"):
            assert row[field] == pytest.approx(other_row[field], rel=1e-4), field
        for field in ("train_acc", "val_acc", "lr"):
            assert row[field] == other_row[field], field
    results = [json.loads((place / "result.json").read_text()) for place in (out, other)]
    assert results[0]["class_accuracy"] == results[1]["class_accuracy"]
    assert results[0]["test_loss"] == pytest.approx(results[1]["test_loss"], rel=1e-4)


# The numbers of one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "flags"),
    [(2, []), (3, ["--batch-size", "35", "--augment", "crop-flip"]), (4, ["--batch-size", "2", "--epochs", "1"])],
    ids=["two", "three-that-do-not-divide-it", "more-than-pictures"],
)
def test_ranks_train_and_test_as_one_does_and_one_of_them_speaks(count, flags, tmp_path, go):
    flags += SGD
    assert tiny(tmp_path / "one", *flags) == 0
    code, said, errors, _ = go(tmp_path / "ranks", *flags, count=count)
    assert (code, errors) == (0, [])
    same_but_for_rounding(tmp_path / "ranks", tmp_path / "one")
    assert (tmp_path / "ranks" / "log.txt").read_text().splitlines() == said
    assert sum(f"cpu, {count} ranks × 1 thread, kernels numpy" in line for line in said) == 1
    assert sum(line.startswith("Test accuracy") for line in said) == 1
    names = [sorted(path.name for path in (tmp_path / way).iterdir()) for way in ("ranks", "one")]
    assert names[0] == names[1]
    assert json.loads((tmp_path / "ranks" / "config.json").read_text())["ranks"] == count


def test_two_runs_on_as_many_ranks_have_the_same_bits(tmp_path, go, whole):
    assert go(tmp_path)[0] == 0
    assert content(tmp_path) == whole.content


def test_local_batch_norm_is_another_network_and_is_written_down(tmp_path, go, capfd):
    code, said, errors, _ = go(tmp_path, "--local-batch-norm", "--epochs", 1)
    assert (code, errors) == (0, []) and any("batch norm over each rank's own pictures" in line for line in said)
    assert json.loads((tmp_path / "config.json").read_text())["local_batch_norm"] is True
    assert tiny(tmp_path, "--epochs", 1, "--resume") == 2
    assert "local_batch_norm was True, now False" in capfd.readouterr().err


def test_eval_runs_on_all_ranks_and_repeats_the_test(go, whole):
    code, said, errors, _ = go(None, "--eval", whole.out / "best.npz", "--sample", "--threads", 1)
    trained = (whole.out / "log.txt").read_text().splitlines()
    assert (code, errors) == (0, []) and said[-2:] == trained[-2:] and said[-1].startswith("Test accuracy")


# Faults ------------------------------------------------------------------------------------------------------------------


def test_a_killed_rank_is_named_and_the_run_resumes_to_the_same_bits(tmp_path, go, whole):
    """Each life of a run ends with a kill, or the run is done, and another one begins; until there were so many kills."""
    rng, kills, runs = np.random.default_rng(), 0, 0
    while kills < KILLS or runs == 0:
        out, rank, step = tmp_path / f"run-{runs}", int(rng.integers(2)), int(rng.integers(1, 6))
        fault = {"fault": "kill", "rank": rank, "step": step} if kills < KILLS else {}
        code, said, errors, seconds = go(out, "--checkpoint-every", 1, "--resume", **fault)
        if seconds is None:
            assert (code, errors) == (0, []) and content(out) == whole.content
            runs += 1
            continue
        kills += 1
        assert code == 1 and seconds < 10, (rank, step, said)
        (error,) = errors
        assert re.fullmatch(
            rf"train_cifar.py: error: rank {rank} \(process \d+\) ended without a word: killed.*", error
        )


@pytest.mark.parametrize(("fault", "rank", "exit_code"), [("SIGTERM", 1, 143), ("SIGINT", 0, 130)])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(fault, rank, exit_code, tmp_path, go, whole):
    code, said, errors, seconds = go(tmp_path / "run", fault=fault, rank=rank, step=STEPS + 2)
    assert (code, errors) == (exit_code, []) and seconds < 10
    assert said[-1] == f"stopped by {fault}; the same command with --resume goes on from here"
    _, header = checkpoint.load(tmp_path / "run" / "last.npz")
    assert (header["epoch"], header["batch"]) == (1, 2)
    if fault == "SIGTERM":
        assert go(tmp_path / "run", "--resume")[0] == 0
        assert content(tmp_path / "run") == whole.content


@pytest.mark.parametrize(
    ("fault", "rank", "message"),
    [
        ("memory", 1, "rank 1: out of memory: Unable to allocate 9 GiB; a step with --batch-size 36 takes about"),
        ("disk", 1, "rank 1: cannot use a/file: No space left on device"),
        ("disk", 0, "cannot use a/file: No space left on device"),
        ("bug", 1, r"rank 1: ZeroDivisionError: by nothing \(ranks_child.py, line \d+\)"),
        (
            "bit",
            1,
            "rank 1: other weights than rank 0 after step 3 of epoch 2, by a fault of a machine or of this program",
        ),
    ],
)
def test_what_goes_wrong_on_one_rank_ends_all_with_one_line(fault, rank, message, tmp_path, go):
    code, _, errors, seconds = go(tmp_path, fault=fault, rank=rank, step=STEPS + 2)
    (error,) = errors
    assert code == 1 and seconds < 10 and re.match(f"train_cifar.py: error: {message}", error), error
    _, header = checkpoint.load(tmp_path / "last.npz")  # it is whole
    assert (header["epoch"], header["batch"]) == (1, 1)


def test_a_number_that_is_not_finite_on_one_rank_stops_all_before_the_update_and_the_layer_is_named(tmp_path, go):
    code, said, errors, seconds = go(tmp_path, "--checkpoint-every", 1, fault="nan", rank=1, step=STEPS + 2)
    assert (code, errors) == (1, []) and seconds < 10
    assert said[-1].startswith("stopped: the output of 0 (Conv2d) is not finite in step 2 of epoch 2")
    arrays, header = checkpoint.load(tmp_path / "last.npz")
    assert (header["epoch"], header["batch"]) == (1, 1) and all(np.isfinite(array).all() for array in arrays.values())


def test_a_rank_that_hangs_is_named_and_ended(tmp_path, go):
    code, _, (error,), seconds = go(tmp_path, "--rank-timeout", 1, fault="hang", rank=1, step=2)
    assert code == 1 and seconds < 10
    assert error.startswith("train_cifar.py: error: rank 1 did not come within 1 s")


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, go):
    code, said, (error,), _ = go(tmp_path / "run", "--ranks", "3")
    assert (code, said) == (2, []) and "--ranks 3: something like mpiexec has started 2 already" in error
    assert not (tmp_path / "run").exists()


def test_another_number_of_ranks_goes_on_says_so_and_is_written_down(tmp_path, go):
    assert go(tmp_path / "run", *SGD, fault="SIGTERM", rank=1, step=STEPS + 1)[0] == 143
    code, said, _, _ = go(tmp_path / "run", *SGD, "--resume", count=3)
    assert code == 0 and "resuming on another number of ranks (ranks was 2, now 3): the same but for rounding" in said
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["ranks"] == 3
    assert config["changes"] == [{"epoch": 1, "batch": 1, "changed": "ranks was 2, now 3"}]
    assert tiny(tmp_path / "one", *SGD) == 0
    same_but_for_rounding(tmp_path / "run", tmp_path / "one")
