"""The files of a run belong together: the best is believed only on this run's line, and nothing not finite is kept."""

import contextlib
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from runs import content, everything, make_tiny, tiny

import scratchnet as sn
from scratchnet.data.dataset import Dataset
from scratchnet.program import folder
from scratchnet.program.folder import FolderError, RunFolder
from scratchnet.training import checkpoint, trainer
from scratchnet.training.average import WeightAverage
from scratchnet.training.batches import Batches
from scratchnet.training.record import Record


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    make_tiny(monkeypatch)


def at_epoch(epoch, act, monkeypatch):
    """`act(record)` when the given epoch's row is taken in, in the runs that follow."""
    add = Record.add

    def acting(self, row):
        if row["epoch"] == epoch:
            act(self)
        return add(self, row)

    monkeypatch.setattr(Record, "add", acting)


# best.npz -------------------------------------------------------------------------------------------------------------


def test_the_best_of_a_line_that_was_given_up_is_not_tested(tmp_path, monkeypatch, capsys):
    older = []
    at_epoch(2, lambda record: older.append((tmp_path / "last.npz").read_bytes()), monkeypatch)
    assert tiny(tmp_path) == 0  # its best is epoch 2
    assert checkpoint.load(tmp_path / "best.npz")[1]["epoch"] == 2
    (tmp_path / "last.npz").write_bytes(older[0])  # in epoch 2, whose line the change makes another one
    capsys.readouterr()
    assert tiny(tmp_path, "--lr", "1e-9", "--resume-with-changes") == 0
    assert "best.npz is not what this run had after epoch 1: the best of the epochs so far is lost" in (
        capsys.readouterr().out
    )
    result, (_, header) = json.loads((tmp_path / "result.json").read_text()), checkpoint.load(tmp_path / "best.npz")
    assert header["config"]["lr"] == 1e-9 and result["best_sha256"] == header["checkpoint"]["sha256"]


def test_a_best_that_is_missing_is_made_again_from_the_last_state_where_that_is_the_best(tmp_path):
    sn.use_kernels("numpy")  # with their bits
    assert tiny(tmp_path, "--seed", 1) == 0  # its best is epoch 3
    before = everything(tmp_path)
    for damage in (lambda path: path.unlink(), lambda path: os.truncate(path, 999), lambda path: path.write_bytes(b"")):
        damage(tmp_path / "best.npz")
        assert tiny(tmp_path, "--seed", 1, "--resume") == 0
        assert everything(tmp_path) == before


def test_a_best_that_is_damaged_while_it_trains_costs_a_line_and_the_best_of_the_rest_is_tested(
    tmp_path, monkeypatch, capsys
):
    show = Record.show

    def damaging(self):
        show(self)
        if len(self.rows) == 2:  # whose best is epoch 2
            os.truncate(tmp_path / "best.npz", 999)

    monkeypatch.setattr(Record, "show", damaging)
    assert tiny(tmp_path) == 0
    assert (
        "best.npz is not a whole checkpoint: File is not a zip file: the best of the epochs" in capsys.readouterr().out
    )
    assert json.loads((tmp_path / "result.json").read_text())["best_epoch"] == 3


def test_a_best_that_is_damaged_after_the_last_epoch_gives_way_to_the_last_state(tmp_path, capsys):
    assert tiny(tmp_path) == 0
    os.truncate(tmp_path / "best.npz", 999)
    capsys.readouterr()
    for _ in range(2):
        assert tiny(tmp_path, "--resume") == 0
        said = capsys.readouterr().out
        assert "best.npz is not a whole checkpoint: " in said and "the last state is tested instead" in said
        result = json.loads((tmp_path / "result.json").read_text())
        assert (result["tested_epoch"], result["best_epoch"], result["best_sha256"]) == (3, None, None)


# What a reader looks at -------------------------------------------------------------------------------------------------

DAMAGE = {
    "a flipped bit": lambda data: data[:9] + bytes([data[9] ^ 4]) + data[10:],
    "line ends of Windows": lambda data: data.replace(b"\n", b"\r\n"),
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "a torn line": lambda data: data[:-9],
    "nothing": lambda data: b"",
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["metrics.csv", "config.json", "curves.png"])
def test_files_for_readers_are_set_right_whatever_happened_to_them(name, how, tmp_path):
    assert tiny(tmp_path, "--epochs", 1) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "log.txt"}
    (tmp_path / name).write_bytes(DAMAGE[how](before[name]))
    assert tiny(tmp_path, "--epochs", 1, "--resume") == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "log.txt"} == before


def test_the_lines_of_epochs_that_come_again_are_taken_out_of_the_log(tmp_path):
    assert tiny(tmp_path) == 0
    log = tmp_path / "log.txt"
    before = log.read_text()
    shutil.copy(tmp_path / "last.previous.npz", tmp_path / "last.npz")  # in the middle of epoch 3
    log.write_text(before + "epoch   2/3  train loss 2 is one that a user wrote\nepoch   3/3  train loss 1.2")
    assert tiny(tmp_path, "--resume") == 0
    lines = log.read_text().splitlines()
    assert sum(line.startswith("epoch   3/3") for line in lines) == 1 == sum("is one that" in line for line in lines)
    kept = [line for line in before.splitlines() if not line.startswith("epoch   3/3")]
    assert lines[: len(kept)] == kept


# Numbers that are not finite --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["model/1.running_var", "optimizer/square/6.weight", "average/0.bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_that_is_not_finite_is_ever_in_a_checkpoint(key, value, tmp_path, monkeypatch, capsys):
    step, done = trainer.train_step, []

    def poisoned(model, criterion, optimizer, *batch):
        done.append(step(model, criterion, optimizer, *batch))
        if len(done) == 6:  # before a checkpoint
            part, _, rest = key.partition("/")
            slots = dict(optimizer._named_slots())
            where = {"model": model.state_dict(), "optimizer": slots, "average": averages[-1]._average}[part]
            where[rest].reshape(-1)[-1] = value
        return done[-1]

    averages, update = [], WeightAverage.update
    monkeypatch.setattr(WeightAverage, "update", lambda self: averages.append(self) or update(self))
    monkeypatch.setattr(trainer, "train_step", poisoned)
    assert tiny(tmp_path) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"stopped: {key} is not finite in step 3 of epoch 2, at learning rate "), last
    for name in ("last.npz", "last.previous.npz", "best.npz"):
        arrays, _ = checkpoint.load(tmp_path / name)
        assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("rate", ["1e3", "1e20", "1e30"])
def test_a_rate_that_breaks_the_last_update_is_no_success(optimizer, rate, tmp_path):
    code = tiny(tmp_path, "--optimizer", optimizer, "--lr", rate, "--schedule", "constant", "--epochs", 1)
    found = [checkpoint.load(path)[0] for path in tmp_path.glob("*.npz")]
    assert code == (0 if (tmp_path / "result.json").exists() else 1) and (found or code)
    assert all(np.isfinite(array).all() for arrays in found for array in arrays.values())


# The folder -------------------------------------------------------------------------------------------------------------


def test_the_current_folder_is_not_moved_away_and_a_folder_without_a_name_is(tmp_path, monkeypatch):
    (tmp_path / "run" / "inside").mkdir(parents=True)
    (tmp_path / "run" / "config.json").touch()
    for here, out in (("run", "."), ("run/inside", ".."), ("run", tmp_path / "run")):
        monkeypatch.chdir(tmp_path / here)
        with pytest.raises(FolderError, match="holds an earlier run, and is or holds the current folder"):
            RunFolder(out, keep=False).__enter__()
    monkeypatch.chdir(tmp_path)
    with RunFolder("run/inside/..", keep=False):
        assert (tmp_path / "run.1" / "config.json").exists() and not (tmp_path / "run" / "config.json").exists()


def test_a_folder_that_is_moved_between_opening_and_locking_is_not_used(tmp_path, monkeypatch):

    flock, out = folder.fcntl.flock, tmp_path / "run"

    def moved_first(*args):
        if not (tmp_path / "moved").exists():
            out.rename(tmp_path / "moved")
        flock(*args)

    monkeypatch.setattr(folder.fcntl, "flock", moved_first)
    with RunFolder(out, keep=True) as held:
        held.check()
        assert (out / "run.lock").read_text() == f"{os.getpid()}\n" and (
            tmp_path / "moved" / "run.lock"
        ).read_text() == ""
        shutil.rmtree(out)
        with pytest.raises(FolderError, match="is no longer the folder in which this run began"):
            held.check()


# A Trainer of one's own -------------------------------------------------------------------------------------------------


class Quiet:
    """A console that says nothing."""

    def say(self, line):
        pass

    def follow(self, batches, title):
        return batches

    def bar(self, total, done, title):
        return contextlib.nullcontext(SimpleNamespace(n=0, update=int, set_postfix_str=lambda *_, **__: None))


def test_a_trainer_needs_no_title_and_leaves_before_step_to_whom_it_belongs(tmp_path):
    rng, seen = np.random.default_rng(0), []
    pictures = Dataset(rng.integers(0, 256, (9, 3, 4, 5), np.uint8), rng.integers(0, 2, 9), ("a", "b"), "noise")
    model = sn.Sequential(sn.GlobalAvgPool2d(), sn.Flatten(), sn.Linear(3, 2, rng=rng))
    optimizer = sn.SGD(model.named_parameters(), 0.1)
    optimizer.before_step = mine = lambda own: seen.append(max(abs(p.grad).max() for p in own.params.values()))
    batches = Batches(pictures, 4, seed=0), Batches(pictures, 4, seed=0, shuffle=False)
    run = trainer.Trainer(
        model, sn.CrossEntropyLoss(), optimizer, lambda step: 0.1, *batches,
        epochs=2, out=tmp_path, config={}, generator=rng, console=Quiet(),
    )  # fmt: skip
    assert optimizer.before_step is mine
    run.run()
    assert optimizer.before_step is mine and len(seen) == 2 * 3 and all(gradient > 0 for gradient in seen)
    assert content(tmp_path)[1]["epoch"] == 2
