"""Checkpoints: errors that name the file, the last two, the parts of a run, and the command that shows one."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import number_of, numbered

import train_cifar
from scratchnet.training import archive, checkpoint
from scratchnet.training.checkpoint import CheckpointError, load, load_latest, save, save_rotating

ROOT = Path(__file__).parent.parent
ARRAYS = {
    "model/conv.weight": np.arange(6, dtype=np.float32).reshape(2, 1, 3),
    "optimizer/step": np.array(7, np.int64),
    "order": np.array([3, 1, 2], np.uint8),
}
HEADER = {"network": "cifar 0.5", "epoch": 3, "accuracy": 0.1 + 0.2, "rng": {"state": 2**127 + 1}, "note": None}


@pytest.mark.parametrize(
    ("arrays", "header", "message"),
    [
        ({"a": np.array([object()])}, {}, "array 'a' cannot be stored: expected numbers .* got object"),
        ({"a": np.array(["text"])}, {}, "array 'a' cannot be stored"),
        ({"a": [1, 2]}, {}, "array 'a' cannot be stored: .* got a list"),
        ({"a\\b": np.ones(1)}, {}, "cannot be the key"),
        ({"a\n": np.ones(1)}, {}, "cannot be the key"),
        ({"": np.ones(1)}, {}, "'' cannot be the key"),
        ({"__header__": np.ones(1)}, {}, "'__header__' cannot be the key"),
        ({}, {"a": np.float32(1)}, "header cannot be stored as JSON: .*float32"),
        ({}, {"a": float("nan")}, "header cannot be stored as JSON"),
        ({}, ["a"], "header cannot be stored as JSON"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_a_file_is_made(tmp_path, arrays, header, message):
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path / "a.npz", arrays, header)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (MemoryError(), "does not fit into the memory"),
        (OSError(errno.EIO, "Input/output error"), "cannot be read: Input/output error"),
        (RecursionError("too deep"), "not a whole checkpoint: too deep"),
    ],
)
def test_whatever_goes_wrong_inside_is_one_sentence_with_the_file(monkeypatch, failure, message):
    def fail(data):
        raise failure

    monkeypatch.setattr(checkpoint, "decode", fail)
    with pytest.raises(CheckpointError, match=f"{re.escape(__file__)} .*{message}"):
        load(__file__)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="none.npz cannot be read: No such file or directory"):
        load(tmp_path / "none.npz")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
def test_a_plain_npz_is_a_sentence(tmp_path, savez, capsys):
    savez(tmp_path / "a.npz", a=np.ones(3))
    assert train_cifar.main(["--eval", str(tmp_path / "a.npz")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "is not a whole checkpoint: its first member is not __header__.npy, as in every file of scratchnet's"
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    for path in (tmp_path / "a.npz", Path(os.devnull)):
        with pytest.raises(CheckpointError, match=f"{path} cannot be read: it is no regular file"):
            load(path)


def test_a_path_of_two_lines_is_one_line_in_a_message(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\\n\\x1bb.npz cannot be read: No such file or directory$"):
        load(tmp_path / "a\n\x1bb.npz")


def test_the_last_two_are_kept_and_the_latest_is_loaded(tmp_path):
    warnings = []
    assert load_latest(tmp_path, warnings.append) is None
    for number in (1, 2, 3):
        save_rotating(tmp_path, *numbered(number))
        found = load_latest(tmp_path, warnings.append)
        assert number_of(found) == number and found[2] == tmp_path / "last.npz"
    assert load(tmp_path / "last.previous.npz")[1]["number"] == 2
    assert sorted(os.listdir(tmp_path)) == ["last.npz", "last.previous.npz"] and warnings == []


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_or_missing_last_checkpoint_falls_back_with_one_line(tmp_path, damage):
    warnings = []
    for number in (1, 2):
        save_rotating(tmp_path, *numbered(number))
    if damage == "missing":
        (tmp_path / "last.npz").unlink()
    else:
        os.truncate(tmp_path / "last.npz", 5000)
    found = load_latest(tmp_path, warnings.append)
    assert number_of(found) == 1 and found[2] == tmp_path / "last.previous.npz"
    (line,) = warnings
    assert "\n" not in line and "last.npz" in line and "going on from" in line and "last.previous.npz" in line


def test_two_damaged_checkpoints_are_an_error_that_names_both(tmp_path):
    (tmp_path / "last.npz").write_bytes(b"")
    with pytest.raises(CheckpointError, match="last.npz is not a whole checkpoint"):
        load_latest(tmp_path, pytest.fail)
    (tmp_path / "last.previous.npz").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="last.npz is not .*last.previous.npz is not"):
        load_latest(tmp_path, pytest.fail)


def test_a_newer_format_is_not_passed_over_for_an_older_checkpoint(tmp_path, monkeypatch):
    save(tmp_path / "last.previous.npz", *numbered(1))
    monkeypatch.setattr(archive, "VERSION", 2)
    save(tmp_path / "last.npz", *numbered(2))
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="last.npz has format version 2"):
        load_latest(tmp_path, pytest.fail)


def test_only_leftovers_of_dead_processes_are_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    stay = [f"last.npz.tmp.{os.getppid()}", "last.npz.tmp.abc", f"tmp.{process.pid}", f"a.tmp.{10**30}"]
    for name in [*stay, f"best.npz.tmp.{process.pid}"]:
        (tmp_path / name).write_bytes(b"half")
    save_rotating(tmp_path, *numbered(1))
    assert sorted(os.listdir(tmp_path)) == sorted([*stay, "last.npz"])


def test_arrays_that_fit_pass_and_others_are_named(tmp_path):
    like = {f"w{i}": np.ones((i, 2), np.float32) for i in range(6)}
    archive.expect({key: value + 1 for key, value in like.items()}, like, "network")
    with pytest.raises(CheckpointError, match=r"^network: the arrays do not fit: 4 missing \('w0', 'w1', 'w2', …\)$"):
        archive.expect({key: like[key] for key in ("w4", "w5")}, like, "network")
    with pytest.raises(CheckpointError, match=r"1 unexpected \('extra'\)"):
        archive.expect(like | {"extra": np.ones(1)}, like, "network")
    with pytest.raises(CheckpointError, match=r"1 different \('w3' is float32 \(2, 3\), expected float32 \(3, 2\)\)"):
        archive.expect(like | {"w3": like["w3"].T}, like, "network")
    with pytest.raises(CheckpointError, match=r"'w3' is float64 \(3, 2\), expected float32 \(3, 2\)"):
        archive.expect(like | {"w3": like["w3"].astype(float)}, like, "network")


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_a_restored_generator_goes_on_with_the_same_draws(kind):
    rng, again = (np.random.Generator(getattr(np.random, kind)(seed)) for seed in (1, 2))
    rng.integers(100, size=7, dtype=np.uint32)  # an odd number of 32-bit draws leaves half of a 64-bit one
    state = json.loads(json.dumps(checkpoint.generator_state(rng)))
    checkpoint.restore_generator(again, state)
    for draw in (lambda g: g.integers(100, size=5, dtype=np.uint32), lambda g: g.permutation(50), lambda g: g.normal()):
        assert np.array_equal(draw(rng), draw(again))


def test_a_state_that_is_none_is_refused_and_the_generator_stays_as_it_is():
    pcg, twister = np.random.Generator(np.random.PCG64(0)), np.random.Generator(np.random.MT19937(0))
    state, other = checkpoint.generator_state(pcg), checkpoint.generator_state(twister)
    too_large = state | {"uinteger": 2**32 + 5}
    for bad in (other, {}, [], None, "PCG64", state | {"state": {"state": "x", "inc": 1}}, too_large):
        with pytest.raises(CheckpointError, match="generator state: expected the state of a PCG64, got"):
            checkpoint.restore_generator(pcg, bad)
        assert checkpoint.generator_state(pcg) == state
    fractions = other | {"state": {"key": [1.5] * 624, "pos": 3}}  # NumPy takes it and cuts them off
    for bad in (state, fractions, other | {"state": {"key": [1], "pos": 3}}):
        with pytest.raises(CheckpointError, match="generator state: expected the state of a MT19937, got"):
            checkpoint.restore_generator(twister, bad)
        assert checkpoint.generator_state(twister) == other


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "scratchnet.training.checkpoint", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_the_command_prints_what_is_inside(tmp_path):
    save(tmp_path / "a.npz", ARRAYS, HEADER)
    result = command(str(tmp_path / "a.npz"))
    assert (result.returncode, result.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines()[1:])
    assert lines["network"] == "cifar 0.5" and lines["epoch"] == "3" and lines["accuracy"].startswith("0.3")
    assert lines["arrays"] == "3, 35 bytes"
    assert lines["sha256"] == load(tmp_path / "a.npz")[1]["checkpoint"]["sha256"] + " (verified)"


def test_the_command_exits_2_with_one_line_for_a_bad_file(tmp_path):
    (tmp_path / "a.npz").write_bytes(archive.encode(ARRAYS, HEADER)[:-1])
    for arguments, message in (([str(tmp_path / "a.npz")], "a.npz is not a whole checkpoint"), ([], "usage:")):
        result = command(*arguments)
        assert result.returncode == 2 and result.stdout == ""
        assert message in result.stderr and result.stderr.count("\n") == 1
