"""The program, as a user runs it: on a few drawn pictures and a very narrow network."""

import csv
import json
import os
import re
import signal

import numpy as np
import pytest
from runs import ROOT, SMALL, child, content, few_pictures, run

import train_cifar
from scratchnet.data import cifar10
from scratchnet.kernels import compiled
from scratchnet.program import data as program_data
from scratchnet.program import flags
from scratchnet.program.folder import RunFolder
from scratchnet.training import checkpoint, trainer


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(program_data, "draw_shapes", few_pictures)


def test_a_run_writes_what_it_promises_and_names_its_data(tmp_path, capsys):
    assert run("--out", tmp_path) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(r"Test accuracy: [01]\.\d{4}", out.splitlines()[-1])
    assert "drawn shapes" in out.splitlines()[0]
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", out), "control characters in a log"
    assert (tmp_path / "log.txt").read_text() == out
    assert json.loads((tmp_path / "config.json").read_text())["data"]["name"] == "drawn shapes"
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["data"]["name"] == "drawn shapes" and f"{result['test_accuracy']:.4f}" in out.splitlines()[-1]
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == "epoch train_loss train_acc val_loss val_acc lr seconds images_per_second".split()
    assert {"last.npz", "best.npz"} <= {path.name for path in tmp_path.iterdir()}


def test_header_says_network_and_machine(tmp_path, capsys):
    run("--out", tmp_path, "--epochs", "1")
    header = capsys.readouterr().out
    for part in (
        "108 train + 12 validation + 40 test",
        "parameters",
        "million multiply-adds",
        "cpu, 1 thread, kernels",
        "seed 0",
    ):
        assert part in header


@pytest.mark.parametrize(("flags", "said"), [((), True), (("--model", "resnet20", "--width", "0.25"), False)])
def test_header_speaks_of_dropout_where_there_is_some(flags, said, tmp_path, capsys):
    run("--out", tmp_path, "--epochs", "1", *flags)
    assert ("label smoothing 0.1, dropout 0.2" in capsys.readouterr().out) == said


def test_without_numba_a_line_says_what_it_would_bring(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compiled, "why_not", lambda: "Numba is not installed")
    run("--out", tmp_path, "--epochs", "1")
    assert "Numba is not installed: with the extra fast, pip install -e '.[fast]', a step" in capsys.readouterr().out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The content of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert child(0, 0, "--out", folder, "--checkpoint-every", 2).returncode == 0
    return content(folder)


@pytest.mark.parametrize("stop_after", [3, 4, 7])
def test_a_killed_run_resumes_to_the_same_bits(stop_after, whole, tmp_path):
    broken = tmp_path / "broken"
    assert child(stop_after, signal.SIGKILL, "--out", broken, "--checkpoint-every", 2).returncode == -signal.SIGKILL
    resumed = child(0, 0, "--out", broken, "--checkpoint-every", 2, "--resume")
    assert resumed.returncode == 0 and "resuming" in resumed.stdout
    assert content(broken) == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_at_the_end_of_the_step(number, whole, tmp_path):
    broken = tmp_path / "broken"
    stopped = child(3, number, "--out", broken)
    assert stopped.returncode == 128 + number
    assert checkpoint.load(broken / "last.npz")[1]["batch"] == 3
    child(0, 0, "--out", broken, "--resume")
    assert content(broken) == whole


def test_two_runs_of_one_seed_are_bit_identical_and_of_two_seeds_are_not(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("--out", tmp_path / name, "--seed", seed, "--epochs", 1)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a")[0] != content(tmp_path / "c")[0]


def test_eval_repeats_the_test_accuracy(tmp_path, capsys):
    run("--out", tmp_path)
    trained = capsys.readouterr().out.splitlines()[-2:]
    assert train_cifar.main(["--eval", str(tmp_path / "best.npz")]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == trained


def test_eval_says_each_class_and_the_averaged_weights_and_takes_the_mirror_image(tmp_path, capsys):
    run("--out", tmp_path, "--ema", "0.5", "--flip-test")
    trained = capsys.readouterr().out.splitlines()[-16:]
    assert train_cifar.main(["--eval", str(tmp_path / "best.npz"), "--flip-test"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-2:] == trained[-2:] and "mirror image" in out[-3] and "averaged weights" in out[1]
    rows = [line for line in out if line.split()[0] in ("disc", "checkerboard")]
    assert len(rows) == 2 and all(len(row.split()) == 12 for row in rows)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["class_accuracy"]["disc"] == pytest.approx(float(rows[0].split()[-1]), abs=5e-5)
    assert result["best_sha256"] == checkpoint.load(tmp_path / "best.npz")[1]["checkpoint"]["sha256"]
    assert train_cifar.main(["--eval", str(tmp_path / "best.npz")]) == 0
    plain = capsys.readouterr().out.splitlines()
    assert plain[-2] != out[-2] and "mirror image" not in plain[-3], "another loss without it"


def test_predict_names_three_classes_a_picture(tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    run("--out", tmp_path)
    _, test = few_pictures(0)
    for k in range(2):
        image.fromarray(test.images[k].transpose(1, 2, 0)).save(tmp_path / f"{k}.png")
    capsys.readouterr()
    files = [str(tmp_path / f"{k}.png") for k in range(2)]
    assert train_cifar.main(["--predict", str(tmp_path / "best.npz"), *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, file in zip(lines, files, strict=True):
        found = re.fullmatch(re.escape(file) + r": (.+) (\S+) %, (.+) (\S+) %, (.+) (\S+) %", line).groups()
        assert len(set(found[::2])) == 3 and set(found[::2]) <= set(test.classes)
        assert 100 >= float(found[1]) >= float(found[3]) >= float(found[5]) >= 0

    args = flags.parse(SMALL, "")
    model, _ = train_cifar.load_model(tmp_path / "best.npz", args, "cpu")
    x, _ = next(train_cifar.make_batches(args, test, shuffle=False).epoch(0))
    best = model.eval()(x)[:2].argmax(1)
    assert [line.split(": ")[1].rsplit(" ", 8)[0].split(",")[0].rsplit(" ", 1)[0] for line in lines] == [
        test.classes[k] for k in best
    ]


def test_a_new_run_moves_the_earlier_one_aside(tmp_path, capsys):
    out = tmp_path / "run"
    run("--out", out, "--epochs", 1, "--seed", 1)
    before = content(out)
    run("--out", out, "--epochs", 1, "--seed", 2)
    assert f"moved to {out}.1" in capsys.readouterr().out
    assert content(tmp_path / "run.1") == before


def test_resume_without_a_checkpoint_starts_at_the_beginning(tmp_path, capsys):
    assert run("--out", tmp_path, "--epochs", 1, "--resume") == 0
    assert "nothing to resume" in capsys.readouterr().out


def test_no_download_is_said_loudly_and_the_sample_is_drawn(tmp_path, capsys, monkeypatch):
    def no_network():
        raise cifar10.DataError("cannot download CIFAR-10: no route to host")

    monkeypatch.setattr(cifar10, "find_or_download", no_network)
    assert train_cifar.main([*SMALL[1:], "--epochs", "1", "--out", str(tmp_path)]) == 0
    loud = capsys.readouterr().out.splitlines()[0]
    assert "NO CIFAR-10" in loud and "no route to host" in loud and "DRAWN SHAPES" in loud


def test_a_diverging_run_stops_with_one_line_and_exit_code_1(tmp_path, capsys):
    assert run("--out", tmp_path, "--lr", "1e30", "--schedule", "constant") == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"stopped: the output of features\.\d.* is not finite in step [23] of epoch 1", last), last
    assert "at learning rate 1e+30: try a lower --lr" in last


def test_a_folder_that_goes_away_is_one_line_and_exit_code_1(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path / "last.npz"))

    monkeypatch.setattr(trainer.checkpoint, "save_rotating", full)
    assert run("--out", tmp_path) == 1
    error = capsys.readouterr().err
    assert f"cannot use {tmp_path / 'last.npz'}: No space left on device" in error and error.count("\n") == 1


def test_missing_and_damaged_data_are_one_sentence(tmp_path, capsys):
    assert train_cifar.main(["--data", str(tmp_path / "nothing")]) == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err
    (tmp_path / "data_batch_1.bin").write_bytes(b"too short")
    assert train_cifar.main(["--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path) in error and error.count("\n") == 1


def test_resume_refuses_another_run_and_names_the_difference(tmp_path, capsys):
    run("--out", tmp_path, "--epochs", 1)
    before = content(tmp_path)
    assert run("--out", tmp_path, "--epochs", 1, "--resume", "--width", "0.2") == 2
    assert "width was 0.1, now 0.2" in capsys.readouterr().err
    assert content(tmp_path) == before, "nothing is lost"


def test_resume_refuses_a_checkpoint_of_another_network(tmp_path, capsys):
    run("--out", tmp_path, "--epochs", 1)
    arrays, header = checkpoint.load(tmp_path / "last.npz")
    arrays["model/features.0.0.weight"] = np.zeros((3, 3), np.float32)
    checkpoint.save(tmp_path / "last.npz", arrays, header)
    assert run("--out", tmp_path, "--epochs", 1, "--resume") == 2
    assert "features.0.0.weight" in capsys.readouterr().err


def test_a_second_run_on_the_same_folder_is_refused(tmp_path, capsys):
    with RunFolder(tmp_path, keep=False):
        assert run("--out", tmp_path) == 2
    assert f"another run (process {os.getpid()}) is writing to {tmp_path}" in capsys.readouterr().err


def test_train_step_is_short_and_is_what_readme_shows():
    source = (ROOT / "scratchnet" / "training" / "step.py").read_text()
    step = re.search(r"def train_step.*?return loss, logits\n", source, re.S).group()
    assert step in (ROOT / "README.md").read_text()
    assert len(step.splitlines()) <= 10
    assert trainer.train_step.__name__ == "train_step"


@pytest.mark.parametrize(
    "command",
    [
        'python3 -m venv .venv && .venv/bin/pip install -e ".[fast]" && .venv/bin/python train_cifar.py',
        'python3 -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/pytest',
    ],
)
def test_readme_shows_each_command_in_a_block_of_its_own(command):
    assert f"```\n{command}\n```\n" in (ROOT / "README.md").read_text()
