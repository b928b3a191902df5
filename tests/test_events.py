"""--tensorboard: what TensorBoard reads is what the run measured, each point once, also after a stop and a resume."""

import json
import os
import sys

import pytest
from runs import make_tiny, rows_of, tiny

import scratchnet as sn
from scratchnet.program import events
from scratchnet.training import trainer

STEPS = 3  # an epoch


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    make_tiny(monkeypatch)
    sn.use_kernels("numpy")
    monkeypatch.setattr(events, "EVERY", 1)


@pytest.fixture
def read():
    """What TensorBoard finds in a folder: {tag: {step: value}}."""
    why = "event files are written and read by tensorboard: pip install -e '.[tensorboard]'"
    pytest.importorskip("tensorboard.summary.writer.event_file_writer", reason=why)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def scalars(folder):
        found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
        points = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
        assert all(len(dict(one)) == len(one) for one in points.values()), "a step stands there twice"
        return {tag: dict(one) for tag, one in points.items()}

    return scalars


def expected(out):
    rows, result = rows_of(out), json.loads((out / "result.json").read_text())
    names = {
        "loss/train": "train_loss",
        "loss/validation": "val_loss",
        "accuracy/train": "train_acc",
        "accuracy/validation": "val_acc",
    }
    want = {tag: {STEPS * int(row["epoch"]): row[field] for row in rows} for tag, field in names.items()}
    last = STEPS * len(rows)
    return want | {"loss/test": {last: result["test_loss"]}, "accuracy/test": {last: result["test_accuracy"]}}


def test_tensorboard_reads_the_rows_and_the_finer_curves(tmp_path, read, capsys):
    assert tiny(tmp_path, "--tensorboard") == 0
    found, want = read(tmp_path), expected(tmp_path)
    for tag, points in want.items():
        assert found[tag] == pytest.approx(points, rel=1e-6), tag
    fine = {"loss/step", "accuracy/step", "learning_rate", "pictures_per_second"}
    assert set(found) == fine | set(want) and all(list(found[tag]) == [*range(1, 10)] for tag in fine)
    for epoch, row in enumerate(rows_of(tmp_path)):
        steps = [found["loss/step"][k] for k in range(STEPS * epoch + 1, STEPS * epoch + STEPS + 1)]
        assert sum(steps) / STEPS == pytest.approx(row["train_loss"], rel=1e-5)
    assert found["learning_rate"][9] == pytest.approx(rows_of(tmp_path)[-1]["lr"])


def test_every_tenth_step_is_enough(tmp_path, read, monkeypatch):
    monkeypatch.setattr(events, "EVERY", 4)
    assert tiny(tmp_path, "--tensorboard") == 0
    assert list(read(tmp_path)["loss/step"]) == [1, 5, 9]


@pytest.mark.parametrize("stop", [2, 4, 5, 9])
def test_a_run_that_goes_on_says_nothing_twice(stop, tmp_path, read, monkeypatch):
    """Killed in a step, after points were written that no checkpoint knows (there is one every second step)."""
    step, done = trainer.train_step, 0

    def killed(*args):
        nonlocal done
        done += 1
        if done == stop:
            raise SystemExit("killed")
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", killed)
        patch.setattr(events.EventFiles, "close", lambda self: self._writer.flush())
        with pytest.raises(SystemExit):
            tiny(tmp_path, "--tensorboard")
    before = read(tmp_path)
    assert list(before.get("loss/step", {})) == [*range(1, stop)]
    assert tiny(tmp_path, "--tensorboard", "--resume") == 0
    found, want = read(tmp_path), expected(tmp_path)
    assert list(found["loss/step"]) == [*range(1, 10)]
    assert {tag: found[tag] for tag in want} == {tag: pytest.approx(points, rel=1e-6) for tag, points in want.items()}


def test_without_tensorboard_a_line_says_so_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    assert tiny(tmp_path, "--tensorboard") == 0
    assert capsys.readouterr().out.count(events.MISSING + "\n") == 1 and not (tmp_path / "tensorboard").exists()


def test_a_folder_that_cannot_be_made_ends_no_training(tmp_path, read, capsys):
    (tmp_path / "tensorboard").write_text("a file")
    assert tiny(tmp_path, "--tensorboard") == 0
    assert f"no event files for TensorBoard in {tmp_path / 'tensorboard'}: " in capsys.readouterr().out


def test_files_that_cannot_be_written_end_no_training(tmp_path, read, monkeypatch, capsys):
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    def full(self):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(EventFileWriter, "flush", full)
    monkeypatch.setattr(EventFileWriter, "__init__", lambda self, folder: None)
    monkeypatch.setattr(EventFileWriter, "add_event", lambda self, event: None)
    assert tiny(tmp_path, "--tensorboard") == 0
    said = capsys.readouterr().out
    assert said.count("TensorBoard's files cannot be written any more: No space left on device\n") == 1
