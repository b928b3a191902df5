"""Faults that a long training meets: kills, signals, terminals and disks that go away, bad numbers, too little memory.

SCRATCHNET_SLOW=1 makes the random kills a hundred, and tries each optimizer with each schedule.
"""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from runs import CHILD, ROOT, SMALL, child, content, few_pictures, run

import train_cifar
from scratchnet.program import data as program_data
from scratchnet.training import checkpoint, trainer

SLOW = os.environ.get("SCRATCHNET_SLOW") == "1"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
FOUR_STEPS = 108 // 25  # steps of an epoch


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(program_data, "draw_shapes", few_pictures)


class Killed(BaseException):
    """Ends a run in this process as a kill would: nothing is written any more."""


def after(step, act, monkeypatch):
    """`act(model)` before the given step, counted from 1, in the run that follows."""
    original, done = trainer.train_step, 0

    def counted(model, *args):
        nonlocal done
        done += 1
        if done == step:
            act(model)
        return original(model, *args)

    monkeypatch.setattr(trainer, "train_step", counted)


def die(_model):
    raise Killed


# Killed and resumed -----------------------------------------------------------------------------------------------------

SCHEDULES = ("constant", "cosine", "one-cycle", "multi-step")
WAYS = [
    ["--optimizer", optimizer, "--schedule", schedule, *more]
    for k, (optimizer, more) in enumerate((
        ("sgd", ["--ema", "0.9", "--augment", "crop-alternate"]),
        ("sgd", ["--momentum", "0", "--zero-init-residual"]),
        ("adam", ["--dropout", "0.5"]),
        ("adamw", ["--variant", "blog", "--image-size", "40", "--augment", "none"]),
    ))
    for schedule in (SCHEDULES if SLOW else SCHEDULES[k : k + 1])
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(way[1:4:2] + way[4:]))
def test_every_way_to_train_resumes_in_mid_epoch_to_the_same_bits(way, tmp_path, monkeypatch):
    flags = [*way, "--checkpoint-every", 2]
    assert run(*flags, "--out", tmp_path / "whole") == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        after(FOUR_STEPS + 4, die, patch)
        run(*flags, "--out", tmp_path / "killed")
    assert checkpoint.load(tmp_path / "killed" / "last.npz")[1]["batch"] == 2
    assert run(*flags, "--out", tmp_path / "killed", "--resume") == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_kills_at_random_moments_leave_the_bits_of_a_run_that_nobody_killed(tmp_path):
    """Each life lasts from nothing to a few steps; a run that is done begins anew, until there were so many kills."""
    assert child(0, 0, "--out", tmp_path / "whole", "--checkpoint-every", 1).returncode == 0
    wanted, rng = content(tmp_path / "whole"), np.random.default_rng(0)
    kills = runs = 0
    while kills < (100 if SLOW else 3) or runs == 0:
        out = tmp_path / f"run-{runs}"
        command = [sys.executable, "-c", CHILD, "0", "0", *SMALL, "--out", out, "--checkpoint-every", "1", "--resume"]
        life = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, cwd=ROOT)
        try:
            life.wait(0.6 + 1.4 * rng.random() if kills < 100 else 60)
        except subprocess.TimeoutExpired:
            life.kill()
            kills += 1
        _, errors = life.communicate()
        assert life.returncode in (0, -signal.SIGKILL), errors.decode()
        if life.returncode == 0:
            assert content(out) == wanted
            runs += 1
    print(f"{kills} kills, {runs} runs brought to their end, all with the same bits")


def test_two_signals_within_a_moment_still_save_whole_files(tmp_path, monkeypatch):
    def twice(_model):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    after(3, twice, monkeypatch)
    assert run("--out", tmp_path) == 128 + signal.SIGTERM
    assert checkpoint.load(tmp_path / "last.npz")[1]["batch"] == 3
    assert not list(tmp_path.glob("*.tmp.*"))


def test_a_signal_after_the_last_step_is_not_lost(tmp_path, monkeypatch):
    add = trainer.Record.add

    def interrupted(self, row):
        os.kill(os.getpid(), signal.SIGTERM)
        return add(self, row)

    monkeypatch.setattr(trainer.Record, "add", interrupted)
    assert run("--out", tmp_path, "--epochs", 1) == 143
    assert not (tmp_path / "result.json").exists()
    assert run("--out", tmp_path, "--epochs", 1, "--resume") == 0


def test_an_interrupt_outside_of_training_is_one_line(tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_cifar, "evaluate_test", interrupt)
    assert run("--out", tmp_path, "--epochs", 1) == 130
    assert capsys.readouterr().out.splitlines()[-1] == "stopped by SIGINT"


# Bad numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_bad_number_stops_within_a_step_names_the_layer_and_leaves_the_checkpoint(
    seed, tmp_path, monkeypatch, capsys
):
    rng = np.random.default_rng(seed)
    step = int(rng.integers(3, 2 * FOUR_STEPS + 1))
    hit = []

    def poison(model):
        keys = [key for key, _ in model.named_parameters()]
        hit.append(keys[rng.integers(len(keys))])
        data = dict(model.named_parameters())[hit[0]].data
        data.reshape(-1)[rng.integers(data.size)] = rng.choice([np.nan, np.inf, -np.inf])
        before.append((tmp_path / "last.npz").read_bytes())

    before = []
    after(step, poison, monkeypatch)
    assert run("--out", tmp_path, "--checkpoint-every", 1) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    epoch, batch = divmod(step - 1, FOUR_STEPS)
    layer = hit[0].rpartition(".")[0]
    assert last.startswith(f"stopped: the output of {layer} ("), last
    assert f"is not finite in step {batch + 1} of epoch {epoch + 1}" in last
    assert (tmp_path / "last.npz").read_bytes() == before[0]
    arrays, _ = checkpoint.load(tmp_path / "last.npz")
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_too_high_a_rate_stops_before_a_weight_is_bad(tmp_path, capsys):
    assert run("--out", tmp_path, "--lr", "1e6", "--schedule", "constant", "--epochs", 3, "--checkpoint-every", 1) in (
        0,
        1,
    )
    arrays, _ = checkpoint.load(tmp_path / "last.npz")
    assert all(np.isfinite(array).all() for array in arrays.values())


# Terminals, logs and memory -------------------------------------------------------------------------------------------


def start(tmp_path, **streams):
    command = [sys.executable, "-c", CHILD, "0", "0", *SMALL, "--out", tmp_path]
    return subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, **streams)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_log_disk_is_no_reason_to_stop(tmp_path):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    life = start(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, errors = life.communicate(timeout=120)
    assert life.returncode == 0 and b"Test accuracy" in out and not errors


def test_a_reader_that_leaves_is_no_reason_to_stop_and_the_log_is_whole(tmp_path):
    read, write = os.pipe()
    life = start(tmp_path, stdout=write, stderr=write)
    os.close(write)
    os.close(read)
    assert life.wait(120) == 0
    assert "Test accuracy: " in (tmp_path / "log.txt").read_text().splitlines()[-1]


def test_a_terminal_that_is_closed_is_no_reason_to_stop(tmp_path):
    pid, terminal = pty.fork()
    if pid == 0:  # in the child, with the terminal as its own
        os.chdir(ROOT)
        command = [sys.executable, "-c", CHILD, "0", "0", *SMALL, "--epochs", "3", "--out", str(tmp_path)]
        os.execvpe(sys.executable, command, ENVIRONMENT)
    seen = b""
    while b"epoch   1/3" not in seen:
        seen += os.read(terminal, 4096)
    os.close(terminal)  # the kernel sends SIGHUP
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert b"epoch 1/3:" in seen, "the bar moved while there was a terminal"
    log = (tmp_path / "log.txt").read_text()
    assert "epoch   3/3" in log and "Test accuracy: " in log.splitlines()[-1] and "\x1b" not in log


LITTLE_MEMORY = """
import resource, sys
import train_cifar
from runs import few_pictures
from scratchnet.program import data as program_data
program_data.draw_shapes = few_pictures
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize:"))
resource.setrlimit(resource.RLIMIT_AS, (1024 * used + (int(sys.argv[1]) << 20),) * 2)
if sys.argv[2] == "try":
    train_cifar.make_parts.__globals__["too_large"] = lambda *_: None
sys.exit(train_cifar.main(sys.argv[3:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
def test_too_little_memory_names_the_batch_size_the_buffer_and_what_fits(tmp_path):
    def limited(megabytes, batch_size, out, way="ask"):
        flags = [*SMALL, "--width", "0.5", "--image-size", "64", "--epochs", "1", "--out", str(out)]
        command = [sys.executable, "-c", LITTLE_MEMORY, str(megabytes), way, *flags, "--batch-size", str(batch_size)]
        environment = ENVIRONMENT | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120)

    refused = limited(1000, 100, tmp_path / "a")
    assert refused.returncode == 2 and not (tmp_path / "a").exists()
    assert " MiB are free: about --batch-size " in refused.stderr
    stopped = limited(1000, 100, tmp_path / "a", "try")
    assert stopped.returncode == 1, stopped.stderr
    (line,) = stopped.stderr.splitlines()
    assert "Unable to allocate" in line and "a step with --batch-size 100 takes about" in line
    assert line == (tmp_path / "a" / "log.txt").read_text().splitlines()[-1]
    fits = int(line.rpartition("about --batch-size ")[2].removesuffix(" fits"))
    assert 4 < fits <= 50
    assert limited(1000, fits, tmp_path / "b").returncode == 0


# What may change ----------------------------------------------------------------------------------------------------------


def test_more_epochs_are_explained_and_accepted_when_asked_for(tmp_path, capsys):
    run("--out", tmp_path, "--epochs", 1)
    before = content(tmp_path)
    assert run("--out", tmp_path, "--epochs", 3, "--resume") == 2
    error = capsys.readouterr().err
    assert "epochs was 1, now 3" in error and "The schedule spreads over all epochs" in error
    assert "--resume-with-changes" in error and content(tmp_path) == before
    assert run("--out", tmp_path, "--epochs", 3, "--lr", "0.01", "--resume-with-changes") == 0
    assert "resuming with changes: " in capsys.readouterr().out
    _, header = checkpoint.load(tmp_path / "last.npz")
    assert header["epoch"] == 3
    (change,) = header["config"]["changes"]
    assert change["epoch"] == 1 and "lr was 0.02, now 0.01" in change["changed"]
    assert json.loads((tmp_path / "config.json").read_text())["changes"] == [change]
    assert run("--out", tmp_path, "--epochs", 3, "--lr", "0.01", "--resume") == 0, (
        "the changed command is the command now"
    )


def test_fewer_epochs_than_are_done_are_refused(tmp_path, capsys):
    run("--out", tmp_path)
    assert run("--out", tmp_path, "--epochs", 1, "--resume-with-changes") == 2
    assert "has 2 whole epochs behind it already, got 1" in capsys.readouterr().err


def test_another_batch_size_goes_on_at_the_same_share_of_the_epoch(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        after(4, die, patch)
        run("--out", tmp_path, "--checkpoint-every", 2)
    assert run("--out", tmp_path, "--batch-size", 12, "--resume-with-changes") == 0
    assert checkpoint.load(tmp_path / "last.npz")[1]["config"]["changes"][0]["batch"] == 2 * 25 // 12


def test_another_network_is_refused_whatever_is_asked_for(tmp_path, capsys):
    run("--out", tmp_path, "--epochs", 1)
    assert run("--out", tmp_path, "--epochs", 1, "--width", "0.2", "--resume-with-changes") == 2
    assert "of another network or optimizer" in capsys.readouterr().err
