"""--watch: what the page is told is what the run measured, on one rank and on several, and once more after a resume."""

import base64
import http.client
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from runs import ROOT, TINY, everything, make_tiny, rows_of, tiny
from test_ranks_program import STEPS
from test_ranks_program import pytestmark as needs_ranks

import scratchnet as sn
from scratchnet.data.dataset import Dataset
from scratchnet.parallel import ranks
from scratchnet.program import data as program_data
from scratchnet.program import watch as watch_file
from scratchnet.program.png import png
from scratchnet.program.private import HOST
from scratchnet.program.setup import VALIDATION
from scratchnet.program.watch import PICTURES, POINTS, Watch, shown
from scratchnet.program.worst import Worst
from scratchnet.training import trainer
from scratchnet.training.batches import Batches, split
from scratchnet.training.evaluation import Evaluation
from scratchnet.training.metrics import FIELDS, Average

TIMES = ("seconds", "images_per_second")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    make_tiny(monkeypatch)
    sn.use_kernels("numpy")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def get(url, name):
    """What a page gets, as it asks for it; None where nobody answers."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=5)
    try:
        connection.request("GET", place.path + name)
        answer = connection.getresponse()
        assert answer.status == 200
        return json.loads(answer.read())
    except (ConnectionError, http.client.HTTPException):
        return None
    finally:
        connection.close()


class Page(threading.Thread):
    """Asks as a page does, until nobody answers."""

    def __init__(self):
        super().__init__(daemon=True)
        self.url, self.states, self.validations = None, [], {}

    def open(self, url):
        self.url = url
        self.start()

    def run(self):
        while state := get(self.url, "state"):
            if not self.states or state != self.states[-1]:
                self.states.append(state)
            if state["validation"] and state["validation"] not in self.validations:
                found = get(self.url, "validation")
                if found:
                    self.validations[found["epoch"]] = found
            time.sleep(0.05)


@pytest.fixture
def pages(monkeypatch):
    """The pages that open by themselves where a run serves one, in order."""
    opened = []

    def private(*args):
        made = original(*args)
        opened.append(Page())
        opened[-1].open(made.url)
        return made

    original = watch_file.Private
    monkeypatch.setattr(watch_file, "Private", private)
    return opened


def near(a, b):
    return a == pytest.approx(b, rel=1e-4)


def test_a_run_is_shown_as_it_is_and_how_it_ended(tmp_path, pages, capsys):
    assert tiny(tmp_path, "--watch") == 0
    (page,) = pages
    page.join(5)
    said, token = capsys.readouterr().out, urlsplit(page.url).path.strip("/")
    assert f"\nwatch     {page.url}\n" in said
    assert token not in (tmp_path / "log.txt").read_text() and token not in (tmp_path / "config.json").read_text()
    last, rows, result = page.states[-1], rows_of(tmp_path), json.loads((tmp_path / "result.json").read_text())
    assert (last["running"], last["why"], last["step"], last["steps"]) == ("finished", "", 3 * STEPS, 3 * STEPS)
    assert last["left"] is None and last["epochs"] == 3 and last["fields"] == [*FIELDS]
    assert [dict(zip(FIELDS, row, strict=True)) for row in last["rows"]] == [
        pytest.approx(row, rel=1e-4) for row in rows
    ]
    assert near(last["test"]["accuracy"], result["test_accuracy"]) and near(last["test"]["loss"], result["test_loss"])
    assert "on noise" in last["title"] and last["about"][0] == "108 training and 12 validation pictures"
    assert last["points"]["epoch"] == pytest.approx([k / 3 for k in range(1, 10)], rel=1e-4)
    for k, row in enumerate(rows):
        for fine, field in (("loss", "train_loss"), ("accuracy", "train_acc")):
            assert np.mean(last["points"][fine][3 * k : 3 * k + 3]) == pytest.approx(row[field], rel=1e-3)
    found = page.validations[3]
    table = np.array(found["confusion"])
    assert table.shape == (10, 10) and table.sum() == 12 and near(table.trace() / 12, rows[-1]["val_acc"])
    assert len(found["mistakes"]) == 12 - table.trace() > 0
    shares = [one["share"] for one in found["mistakes"]]
    assert shares == sorted(shares) and all(one["share"] <= one["share_said"] for one in found["mistakes"])
    assert all(
        table[found["classes"].index(one["label"]), found["classes"].index(one["said"])] for one in found["mistakes"]
    )


def test_a_run_has_the_same_bits_with_the_page_and_without_it_and_none_is_there_unasked(tmp_path, pages):
    assert tiny(tmp_path / "plain") == 0 and not pages
    assert tiny(tmp_path / "watched", "--watch") == 0 and pages[0].url
    assert everything(tmp_path / "plain") == everything(tmp_path / "watched")


def test_a_run_that_was_stopped_says_so_and_shows_all_its_epochs_when_it_goes_on(tmp_path, pages, monkeypatch):
    step, done = trainer.train_step, 0

    def interrupted(*args):
        nonlocal done
        done += 1
        if done == STEPS + 2:
            os.kill(os.getpid(), 2)
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", interrupted)
        assert tiny(tmp_path, "--watch") == 130
    pages[0].join(5)
    last = pages[0].states[-1]
    assert last["running"] == "stopped" and last["step"] == STEPS + 2
    assert last["why"] == "stopped by SIGINT; the same command with --resume goes on from here"
    assert tiny(tmp_path, "--watch", "--resume") == 0
    again = pages[1]
    again.join(5)
    first = next(state for state in again.states if state["running"] != "starting" or state["rows"])
    assert first["rows"][0][0] == 1 and len(again.states[-1]["rows"]) == 3
    assert again.states[-1]["points"]["epoch"] == pytest.approx([k / 3 for k in range(6, 10)], rel=1e-4)
    rows = rows_of(tmp_path)
    assert again.states[-1]["points"]["loss"][0] != pytest.approx(rows[1]["train_loss"], rel=1e-3)  # a step's own


def test_a_run_that_fails_says_why(tmp_path, pages, monkeypatch):
    def broken(*_):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(trainer, "train_step", broken)
    assert tiny(tmp_path, "--watch") == 1
    pages[0].join(5)
    assert pages[0].states[-1]["running"] == "stopped" and "9 GiB" in pages[0].states[-1]["why"]


def test_a_port_that_is_taken_is_one_line_and_moves_no_earlier_run(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        assert tiny(tmp_path, "--watch", port) == 2
    said, error = capsys.readouterr()
    assert re.fullmatch(
        rf"train_cifar.py: error: --watch: port {port} cannot be had \(Address already in use\): .*\n", error
    )
    assert not said and [path.name for path in tmp_path.rglob("*")] == ["config.json"]
    assert tiny(tmp_path, "--watch", 0) == 2 and "--watch must be at least 1" in capsys.readouterr().err


def test_a_port_of_ones_own_is_taken_and_free_again(tmp_path, capsys):
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
    for out in ("a", "b"):
        assert tiny(tmp_path / out, "--watch", port) == 0
        assert f"http://127.0.0.1:{port}/" in capsys.readouterr().out


@pytest.mark.parametrize("mark", [needs_ranks])
def test_on_two_ranks_the_first_serves_and_shows_the_pictures_of_both(mark, tmp_path):
    if mark.args[0]:
        pytest.skip(mark.kwargs["reason"])
    flags = [*TINY, "--out", tmp_path / "run", "--ranks", "2", "--watch"]
    child = [sys.executable, ROOT / "tests/ranks_child.py", "none", "0", "0", tmp_path / "mark", *flags]
    code = (
        "import sys; from scratchnet.program.console import Console; from scratchnet.program.launch import run_as_ranks\n"
        "sys.exit(run_as_ranks(2, sys.argv[1:], Console()))"
    )
    command = [sys.executable, "-c", code, *map(str, child)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    )
    page, lines = Page(), []
    with process:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("watch "):
                page.open(line.split()[1])
    assert process.returncode == 0 and "".join(lines).count("watch ") == 1
    page.join(5)
    last, found = page.states[-1], page.validations[3]
    assert last["running"] == "finished" and last["about"][1] == "2 ranks × 1 thread" and last["step"] == 3 * STEPS
    table, numbers = np.array(found["confusion"]), [one["number"] for one in found["mistakes"]]
    assert table.sum() == 12 and len({*numbers}) == len(numbers) == 12 - table.trace()
    assert min(numbers) < 6 <= max(numbers)  # the first rank saw six of them, and the other one the rest
    validation = split(program_data.draw_shapes(2)[0], VALIDATION, 2)[1]
    assert all(one["label"] == validation.classes[validation.labels[one["number"]]] for one in found["mistakes"])


# The parts -------------------------------------------------------------------------------------------------------------


def batches_of(count, size, classes=7):
    rng = np.random.default_rng(count)
    labels = rng.integers(0, classes, count)
    images = rng.integers(0, 256, (count, 3, 2, 2)).astype(np.uint8)
    names = tuple(f"class {k}" for k in range(classes))
    return (
        Batches(Dataset(images, labels, names, "noise"), size, shuffle=False),
        rng.normal(size=(count, classes)),
        labels,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 4, 23])
def test_the_worst_are_those_whose_class_is_least_likely_on_any_number_of_ranks(size, count, monkeypatch):
    batches, logits, labels = batches_of(count, 6)
    tables = []
    monkeypatch.setattr(ranks, "size", size)
    monkeypatch.setattr(ranks, "sum_over_ranks", lambda table: tables.append(table) or table)
    for rank in range(size):
        monkeypatch.setattr(ranks, "rank", rank)
        worst = Worst(batches, 5)
        for start in range(0, count, 6):
            here = slice(start, min(start + 6, count))
            mine = ranks.share(here.stop - here.start)
            if mine.stop > mine.start:
                worst.add(logits[here][mine], labels[here][mine])
        worst.take()
    monkeypatch.setattr(ranks, "sum_over_ranks", lambda table: sum(tables))
    found = Worst(batches, 5).take()
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = [k for k in range(count) if logits[k].argmax() != labels[k]]
    want = sorted(wrong, key=lambda k: shares[k, labels[k]])[:5]
    assert [m.picture for m in found] == want
    for mistake in found:
        k = mistake.picture
        assert (mistake.label, mistake.said) == (labels[k], logits[k].argmax())
        assert mistake.share == pytest.approx(shares[k, labels[k]])
        assert mistake.share_said == pytest.approx(shares[k].max())


def test_the_worst_on_a_gpu(standin):
    batches, logits, labels = batches_of(23, 6)
    found = []
    for where in ("cpu", "cuda"):
        worst = Worst(batches, 4)
        for start in range(0, 23, 6):
            worst.add(*(sn.to_device(array[start : start + 6], where) for array in (logits.astype(np.float32), labels)))
        standin.counts.clear()
        found.append(worst.take())
        assert worst.take() == []
    assert [m.picture for m in found[0]] == [m.picture for m in found[1]] and found[0]


def served(classes=3, count=5):
    """A `Watch` of a run that has begun, and what its page would get."""
    batches, logits, labels = batches_of(count, 4, classes)
    watch = Watch()
    watch._private = SimpleNamespace(url="here", close=lambda: None)
    record = SimpleNamespace(rows=[])
    watch.begin(
        SimpleNamespace(
            train=batches, validation=batches, epochs=1000, steps_done=0, config={"title": "<b>t"}, record=record
        ),
        [],
    )
    return watch, lambda: json.loads(watch._state_now()), (logits, labels), record


def look(step, **more):
    return {"step": step, "epoch": step / 2, "loss": 1.0, "accuracy": 0.5, "lr": 0.1, "images_per_second": 9.0} | more


def test_fine_curves_stay_short_and_keep_their_whole_length():
    watch, state, *_ = served()
    for step in range(1, 5 * POINTS):
        watch.step(look(step))
    epochs = state()["points"]["epoch"]
    assert POINTS / 3 < len(epochs) <= POINTS + 1 and epochs[0] == 0.5 and epochs[-1] > 2.4 * POINTS
    gaps = np.diff(epochs)
    assert gaps.min() == gaps.max() == 4


def test_time_left_leaves_the_first_step_out(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(watch_file.time, "monotonic", lambda: now[0])
    watch, state, *_ = served()
    watch.step(look(1))
    assert state()["left"] is None
    for step in (2, 3):
        now[0] += 2
        watch.step(look(step))
    assert state()["left"] == 2.0 * (2000 - 3)


def test_what_is_no_number_is_null_and_the_answer_is_made_once():
    watch, state, _, record = served()
    watch.step(look(2, loss=float("nan"), accuracy=float("inf")))
    record.rows.append(dict.fromkeys(FIELDS, float("nan")))
    watch.step(look(3))
    found = state()
    assert found["points"]["loss"] == [None, 1.0] and found["points"]["accuracy"][0] is None
    assert found["rows"] == [[None] * 8] and found["running"] == "training" and found["title"] == "<b>t"
    assert watch._state_now() is watch._state_now()


def test_of_many_classes_the_worst_are_said_in_lines():
    watch, state, (logits, labels), record = served(30, 40)
    watch.predicted(logits, labels)
    table = np.zeros((30, 30), np.int64)
    np.add.at(table, (labels, logits.argmax(axis=1)), 1)
    watch.epoch(4, {"epoch": 2}, Evaluation(1.0, 0.1, table))
    found = json.loads(watch._validation)
    assert found["confusion"] == [] and "taken for" in found["lines"][0] and len(found["lines"]) == 21
    assert len(found["mistakes"]) == PICTURES and state()["validation"] == 2


def test_an_end_waits_for_an_open_page_and_for_no_other():
    watch, state, *_ = served()
    start = time.monotonic()
    watch.end("finished", "")
    assert time.monotonic() - start < 0.5
    state()
    asks = threading.Timer(0.4, state)
    asks.start()
    start = time.monotonic()
    watch.end("finished", "")
    assert 0.3 < time.monotonic() - start < 2


@pytest.mark.parametrize("shape", [(3, 5, 4), (1, 1, 1), (1, 7, 2), (3, 96, 96)])
def test_a_png_is_read_back_by_pillow(shape):
    images = pytest.importorskip("PIL.Image", reason="Pillow, of the extra plot, reads PNG files")
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    with images.open(io.BytesIO(png(image))) as read:
        read.load()
        assert read.format == "PNG" and read.mode == {1: "L", 3: "RGB"}[shape[0]] and read.size == shape[:0:-1]
        pixels = np.asarray(read)
    assert np.array_equal(pixels.reshape(shape[1], shape[2], shape[0]).transpose(2, 0, 1), image)


@pytest.mark.parametrize(
    "image",
    [np.zeros((2, 3, 3), np.uint8), np.zeros((3, 3), np.uint8), np.zeros((3, 4, 4)), np.zeros((3, 0, 4), np.uint8)],
)
def test_what_is_no_picture_is_refused(image):
    with pytest.raises(ValueError, match=r"png: expected \(1 or 3, H, W\) of uint8, with at least one pixel, got \("):
        png(image)


def test_pictures_are_shown_at_most_so_large_and_floats_as_bytes():
    assert shown(np.zeros((2, 4, 4), np.uint8)) == "" == shown(np.zeros(4))
    floats = np.array([[[0.0, 0.5, 1.0, 2.0]]], np.float32)
    assert shown(floats) == shown(np.array([[[0, 128, 255, 255]]], np.uint8))
    large = base64.b64decode(shown(np.zeros((3, 200, 120), np.uint8)).partition(",")[2])
    assert (int.from_bytes(large[16:20], "big"), int.from_bytes(large[20:24], "big")) == (40, 67)


def test_the_recent_mean_is_of_what_came_since():
    mean = Average()
    assert np.isnan(mean.recent())
    mean.add(1.0, 3)
    mean.add(3.0, 1)
    assert mean.recent() == 1.5 and np.isnan(mean.recent())
    mean.add(7.0, 2)
    assert mean.recent() == 7.0 and mean.value == pytest.approx(20 / 6)
