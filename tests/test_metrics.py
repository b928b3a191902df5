"""What a run measures: rows that survive kills and resumes, exact averages, curves that can be looked at."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchnet.training import atomic, metrics
from scratchnet.training.metrics import FIELDS, Average, MetricsLog, draw_curves

HEAD = "epoch,train_loss,train_acc,val_loss,val_acc,lr,seconds,images_per_second\n"


def row(epoch, value=0.5):
    return {"epoch": epoch} | {field: value * i for i, field in enumerate(FIELDS[1:], start=1)}


def written(path, *epochs):
    log = MetricsLog(path)
    for epoch in epochs:
        log.append(row(epoch))
    return log


# metrics.csv ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.floats(allow_nan=False), min_size=7, max_size=7), max_size=5))
def test_rows_come_back_with_all_their_digits(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("log") / "metrics.csv"
    rows = [dict(zip(FIELDS, [epoch, *numbers], strict=True)) for epoch, numbers in enumerate(values, start=1)]
    for one in rows:
        MetricsLog(path).append(one)
    assert MetricsLog(path).rows() == rows
    assert all(type(one["epoch"]) is int and type(one["lr"]) is float for one in MetricsLog(path).rows())


def test_a_log_is_plain_csv_with_one_line_an_epoch(tmp_path):
    written(tmp_path / "metrics.csv", 1, 2)
    line = "0.5,1.0,1.5,2.0,2.5,3.0,3.5\n"
    assert (tmp_path / "metrics.csv").read_text() == f"{HEAD}1,{line}2,{line}"


def test_numpy_numbers_and_nan_are_written_as_numbers(tmp_path):
    log = MetricsLog(tmp_path / "metrics.csv")
    log.append(row(np.int64(1), np.float32(0.1)) | {"val_loss": math.nan, "val_acc": math.inf})
    (read,) = log.rows()
    assert read["train_loss"] == float(np.float32(0.1))
    assert math.isnan(read["val_loss"]) and read["val_acc"] == math.inf


def test_no_file_has_no_rows_and_is_not_made_by_looking(tmp_path):
    log = MetricsLog(tmp_path / "metrics.csv")
    log.truncate_to(3)
    assert log.rows() == [] and list(tmp_path.iterdir()) == []


def test_a_log_torn_at_any_byte_keeps_its_whole_lines_and_goes_on(tmp_path):
    path = tmp_path / "metrics.csv"
    written(path, 1, 2)
    data = path.read_bytes()
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        log, whole = MetricsLog(path), max(data[:length].count(b"\n") - 1, 0)
        assert [one["epoch"] for one in log.rows()] == list(range(1, whole + 1))
        log.append(row(7))
        assert [one["epoch"] for one in MetricsLog(path).rows()] == [*range(1, whole + 1), 7]
        assert path.read_bytes().startswith(HEAD.encode())


def test_resuming_drops_the_rows_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.csv"
    log = written(path, 1, 2, 3)
    with path.open("a") as file:
        file.write("4,0.1")
    log.truncate_to(2)
    assert path.read_text() == HEAD + "".join(f"{epoch},0.5,1.0,1.5,2.0,2.5,3.0,3.5\n" for epoch in (1, 2))
    log.append(row(3))
    assert [one["epoch"] for one in log.rows()] == [1, 2, 3]
    log.truncate_to(0)
    assert log.rows() == [] and path.read_text() == HEAD


def test_rows_are_dropped_all_or_nothing(tmp_path, monkeypatch):
    log = written(tmp_path / "metrics.csv", 1, 2, 3)
    before = log.path.read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", fail)
    with pytest.raises(OSError, match="No space left on device: '.*metrics.csv'"):
        log.truncate_to(1)
    assert log.path.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_line_is_on_the_disk_when_append_returns_and_a_full_disk_is_named(tmp_path, monkeypatch):
    log, sizes = MetricsLog(tmp_path / "metrics.csv"), []
    with monkeypatch.context() as patch:
        patch.setattr(metrics.os, "fsync", lambda number: sizes.append(log.path.stat().st_size))
        log.append(row(1))
    assert sizes == [log.path.stat().st_size]

    def fail(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metrics.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left on device: '.*metrics.csv'"):
        log.append(row(2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch,loss\n1,2\n", "expected the first line 'epoch,train_loss,.*', got 'epoch,loss'"),
        ("hello", "expected the first line .*, got 'hello'"),
        (HEAD.replace(",lr", ""), "expected the first line"),
        (HEAD.replace("\n", ",extra\n"), "expected the first line"),
        (HEAD + "1,2,3\n", "expected a line of 8 numbers, got '1,2,3'"),
        (HEAD + "1,0,0,0,0,0,0,0,0\n", "expected a line of 8 numbers"),
        (HEAD + "1.5,0,0,0,0,0,0,0\n", "expected a line of 8 numbers"),
        (HEAD + "1,0,0,zero,0,0,0,0\n", "expected a line of 8 numbers"),
        (HEAD + "\n", "expected a line of 8 numbers, got ''"),
    ],
)
def test_a_file_that_is_no_log_is_refused_and_left_alone(tmp_path, text, message):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"metrics.csv: {message}"):
        MetricsLog(path)
    assert path.read_text() == text


def test_a_row_with_other_fields_is_refused_and_not_written(tmp_path):
    log = written(tmp_path / "metrics.csv", 1)
    for bad in (row(2) | {"extra": 1.0}, {"epoch": 2}):
        with pytest.raises(ValueError, match="a row has the fields epoch, train_loss, .*, got"):
            log.append(bad)
    assert len(log.rows()) == 1


# Averages -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 64)), min_size=1))
def test_an_average_over_batches_is_that_over_all_pictures(batches):
    average = Average()
    for value, count in batches:
        average.add(value, count)
    pictures = [value for value, count in batches for _ in range(count)]
    assert type(average.value) is float
    assert average.value == pytest.approx(math.fsum(pictures) / len(pictures), rel=1e-9, abs=1e-9)


def test_an_average_of_float32_values_is_summed_in_float64():
    average = Average()
    for _ in range(20_000):
        average.add(np.float32(0.1), 3)
    assert average.value == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_an_average_waits_for_the_value_only_when_it_is_read():
    class OnDevice:
        """A number that counts how often it is brought to the host, as a 0-d array on a GPU would be."""

        reads = 0

        def astype(self, dtype):
            assert dtype == "float64"
            return self

        __mul__ = __radd__ = __add__ = lambda self, other: self

        def __float__(self):
            OnDevice.reads += 1
            return 8.0

    average = Average()
    average.add(OnDevice(), 2)
    average.add(OnDevice(), 2)
    assert OnDevice.reads == 0
    assert average.value == 2.0 and OnDevice.reads == 1


def test_an_average_of_nothing_is_nan_and_a_batch_of_nothing_is_refused():
    assert math.isnan(Average().value)
    for count in (0, -1):
        with pytest.raises(ValueError, match=f"count must be at least 1, got {count}"):
            Average().add(1.0, count)


# Curves ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 2, 60])
def test_curves_are_a_png_that_shows_every_measure(tmp_path, epochs):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("matplotlib.image")
    rows = [row(epoch, value=epoch / epochs) for epoch in range(1, epochs + 1)]
    assert draw_curves(rows, tmp_path / "curves.png", "a title with $ and _") is True
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    pixels = np.round(255 * image.imread(tmp_path / "curves.png")[:, :, :3]).astype(int) @ [1 << 16, 1 << 8, 1]
    assert pixels.shape == (750, 1200)
    train, validation, single = 0x1F77B4, 0xD95F02, 0x444444
    for panel in (pixels[60:360, :600], pixels[60:360, 600:]):
        assert (panel == train).sum() > 20 and (panel == validation).sum() > 20, "points at least, in both colours"
    for panel in (pixels[420:, :600], pixels[420:, 600:]):
        assert (panel == single).sum() > 10


def test_curves_of_a_run_that_diverged_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [row(1), row(2, math.nan), row(3, math.inf) | {"epoch": 3, "lr": 0.0}]
    assert draw_curves(rows, tmp_path / "curves.png", "diverged")
    assert draw_curves([row(1, math.nan)], tmp_path / "curves.png", "diverged at once")


def test_drawing_leaves_pyplot_alone(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises
    assert draw_curves([row(1)], tmp_path / "curves.png", "title")


def test_nothing_is_drawn_without_matplotlib_or_rows(tmp_path, monkeypatch):
    assert draw_curves([], tmp_path / "curves.png", "title") is False
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # importing it raises ImportError
    assert draw_curves([row(1)], tmp_path / "curves.png", "title") is False
    assert list(tmp_path.iterdir()) == []
