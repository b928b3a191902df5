"""Ranks compute together what one process computes, in the order of the ranks, and end together.

`over_ranks.py` is what runs on every rank. It is started a few times only, and asked for many things each time.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hostmodule import has_compiler
from snippets import block_with

import scratchnet as sn
from scratchnet.parallel import ranks, world

HERE = Path(__file__).parent
SAME = 1e-10  # of an array's largest number, in float64
SLOW = os.environ.get("SCRATCHNET_SLOW") == "1"
SIZES = (2, 3, 4) if SLOW else (2, 3)
# MPICH's mpiexec kills all ranks when a signal kills one: a shell ends with a number instead. Then it sends all of them
# SIGUSR1, which would end them too.
PATIENT = ("sh", "-c", 'trap "" USR1; "$@"; exit $?', "sh")


def mpiexec():
    """The one that came with this Python's packages, or any other; None where there is none."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


over_mpi = pytest.mark.skipif(
    mpiexec() is None or find_spec("mpi4py") is None,
    reason="mpi4py or mpiexec is not installed: the extra fast has both",
)
each_size = pytest.mark.parametrize("size", SIZES)


def started(size, *rounds, **environment):
    """The finished process of so many ranks."""
    quiet = "-disable-auto-cleanup"  # else it kills a rank that is about to say why another one ended
    python = [*PATIENT, sys.executable, str(HERE / "over_ranks.py")]
    command = [mpiexec(), quiet, "-n", str(size), *python, *rounds]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )


@functools.cache
def found(size, *rounds):
    """{check: what came out} of some rounds on so many ranks."""
    done = started(size, *rounds)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


ALL = "seam", "layers", "fused", "alike_channels", "networks", "local", "bits"


def of_round(size, name, *rounds):
    """{check: what came out} of one round, of those that share a start."""
    all_of = found(size, *(rounds or ALL))
    return {key.removeprefix(f"{name}: "): value for key, value in all_of.items() if key.startswith(f"{name}: ")}


def alike(values):
    """The checks that came out further apart than rounding, the worst of them first."""
    assert values
    numbers = {name: value for name, value in values.items() if name != "seconds"}
    return sorted(((v, k) for k, v in numbers.items() if not v <= SAME), reverse=True)


# What one process computes --------------------------------------------------------------------------------------------


@over_mpi
@each_size
@pytest.mark.parametrize("name", ["layers", "fused", "alike_channels", "networks"])
def test_ranks_compute_what_one_process_computes(size, name):
    values = of_round(size, name)
    rows = 200 if SLOW or size == 2 else 100  # over three ranks with the best kernels alone
    assert len(values) > {"layers": rows, "fused": 6, "alike_channels": 2, "networks": 5}[name]
    assert alike(values) == []


@over_mpi
@pytest.mark.skipif(not has_compiler(), reason="g++ is not installed")
def test_on_the_device_too():
    """The kernels for the GPU, as host code, and CuPy's stand-in."""
    for size in (2, 3) if SLOW else (2,):
        values = of_round(size, "cuda", "cards", "cuda")
        assert len(values) > 20
        assert alike(values) == []


@over_mpi
@pytest.mark.skipif(not has_compiler(), reason="g++ is not installed")
def test_the_cards_sum_the_gradients_to_the_bits_of_the_host():
    """By NCCL where each rank has a card of its own, and every rank has it; here a stand-in for it as well."""
    values = of_round(2, "cards", "cards", "cuda")
    for name in ("no NCCL", "NCCL", "one card", "a stub"):
        assert values[f"{name}, idle False: other bits"] == values[f"{name}, idle True: other bits"] == 0
        assert values[f"{name}: calls"] == [5 if name == "NCCL" else 0, True, True]


@over_mpi
@each_size
def test_batch_norm_of_each_rank_by_itself(size):
    values = of_round(size, "local")
    for which in (False, "numpy"):
        assert values[f"running statistics, kernels {which}"] <= SAME
        assert values[f"own values, kernels {which}"] <= SAME
        assert values[f"from the whole batch's, kernels {which}"] > 0.01
        assert values[f"a network's from the whole batch's, kernels {which}"] > 0.01
        assert values[f"ranks with other weights, kernels {which}"] == 0


@over_mpi
@each_size
def test_all_ranks_and_two_runs_have_the_same_bits(size):
    values = of_round(size, "bits")
    assert values["ranks with other bits"] == 0
    assert values["dtypes"] == ["float32", "int64"]
    if size == 3 or SLOW:
        assert found(size, "bits")["bits: digest"] == values["digest"]


# The seam -------------------------------------------------------------------------------------------------------------


@over_mpi
@each_size
def test_the_seam(size):
    values = of_round(size, "seam")
    for name, value in values.items():
        if name.endswith(("other bits", "wrong")):
            assert value == 0, name
        if name.startswith("moments"):
            assert value <= 1e-14, name
    last = size - 1
    assert sum(name.endswith("wrong") for name in values) > 2 * size + 2
    assert values["several sums"] == [[1.5 * size, 2.5 * size], [0.5 * size, size], "float32", [1.5, 2.5]]
    assert values["a number and a 0-d array"] == [0.25 * size, "float32", [], 3 * size]
    assert values["alone"] == [0, 1, [0, 4], 2.5]
    assert values["largest"] == 1.5 * last
    assert values["from the first"] == [{"made on": 0}, 1]
    assert values["differ"] == list(range(1, size, 2))
    assert values["too few numbers"] == (
        "0.0 BatchNorm2d: needs more than one value per channel in training mode, all ranks have one"
    )


def test_one_process_sums_nothing_and_gives_back_what_it_is_given():
    mean, var = np.zeros(3), np.ones(3)
    assert ranks.pooled_moments(mean, var, 5) == (mean, var, 5) == ranks.moments_to_track(mean, var, 5)
    assert ranks.pooled_mean(mean, 5) == (mean, 5)
    for function in (ranks.sum_over_ranks, ranks.pooled_sums):
        assert function(mean) is mean
        assert [a is b for a, b in zip(function(mean, var), (mean, var), strict=True)] == [True, True]
    assert (ranks.rank, ranks.size, ranks.place(7), ranks.share(7)) == (0, 1, (0, 7), slice(0, 7))
    assert (ranks.largest(2), ranks.from_first(lambda: "made"), ranks.those_that_differ(b"x")) == (2, "made", [])
    parameter = sn.Parameter(mean)
    parameter.grad += 1
    ranks.sum_gradients([parameter])
    with ranks.without_weight():
        assert ranks.sum_over_ranks(3) == 3
    assert parameter.grad.tolist() == [1, 1, 1]
    assert ranks.speaks() and not ranks.traffic.messages


def test_who_was_started_alone_is_no_rank(monkeypatch):
    for name in ranks.STARTED_BY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    ranks.start()
    assert ranks.size == 1 and not ranks.was_started()
    monkeypatch.setenv("PMI_RANK", "0")
    assert ranks.was_started()
    with pytest.raises(ImportError):
        ranks.start()


def test_a_forked_child_is_no_rank(monkeypatch):
    monkeypatch.setattr(ranks, "rank", 2)
    monkeypatch.setattr(ranks, "size", 3)
    monkeypatch.setattr(ranks, "_world", object())
    ranks._after_fork()
    assert (ranks.rank, ranks.size, ranks._world) == (0, 1, None)


def test_within_alone_a_rank_is_the_only_one_also_after_an_error(monkeypatch):
    monkeypatch.setattr(ranks, "rank", 2)
    monkeypatch.setattr(ranks, "size", 3)
    with pytest.raises(KeyError), ranks.alone():
        assert (ranks.rank, ranks.size, ranks.sum_over_ranks(4)) == (0, 1, 4)
        raise KeyError
    assert (ranks.rank, ranks.size) == (2, 3)


# Faults ---------------------------------------------------------------------------------------------------------------

FAULTS = {
    "killed": "rank 2 (process ",
    "hanging": "rank 2 did not come within 1 s: it hangs, or is far too slow",
    "raising": "rank 2: ArithmeticError: no more numbers",
    "otherwise": "the ranks wait for one another since 1 s: they no longer do the same thing",
}


@over_mpi
@pytest.mark.parametrize("fault", FAULTS)
def test_when_a_rank_fails_all_end_and_say_why(fault, tmp_path):
    begun = time.monotonic()
    done = started(3, fault, RANKS_WAIT="1", RANKS_SAID=str(tmp_path))
    assert time.monotonic() - begun < 10 and done.returncode != 0
    said = [path.read_text() for path in sorted(tmp_path.iterdir())]
    assert len(said) > 1 and all(FAULTS[fault] in text for text in said), (said, done.stderr)


def test_a_suspended_run_accuses_nobody(monkeypatch):
    clock, looks = iter([0, 0.01, 0.2, 300, 300.2, 300.4]), iter([False] * 4 + [True])
    waiting = object.__new__(world.World)
    waiting.aside = SimpleNamespace(Iprobe=lambda tag: False)
    monkeypatch.setattr(waiting, "_find_the_dead", set)
    monkeypatch.setattr(waiting, "_accuse", lambda limit: pytest.fail("it was late"))
    monkeypatch.setattr(world, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: None))
    waiting._wait(SimpleNamespace(Test=lambda: next(looks)), 1)


# A training loop of one's own -----------------------------------------------------------------------------------------


@over_mpi
def test_the_loop_that_the_guide_shows_trains_the_same_network_on_two_ranks_as_on_one(tmp_path):
    script = tmp_path / "train.py"
    saved = "np.savez(sys.argv[1] + str(sn.ranks.rank), **model.state_dict())"
    code = "\n".join(["import sys", block_with("ranks.start()"), saved])
    script.write_text(code.replace("float32", "float64").replace("width_mult=0.5", "width_mult=0.1, dtype=np.float64"))
    command, environment = [sys.executable, str(script)], os.environ | {"PYTHONPATH": str(HERE.parent)}
    for name, start in (("one", []), ("two", [mpiexec(), "-n", "2"])):
        done = subprocess.run([*start, *command, str(tmp_path / name)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, first, second = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("one0", "two0", "two1"))
    for key, value in one.items():
        np.testing.assert_array_equal(first[key], second[key], key)
        np.testing.assert_allclose(first[key], value, rtol=1e-6, atol=1e-8, err_msg=key)
