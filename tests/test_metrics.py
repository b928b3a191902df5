"""What a run measures: rows with all their digits, exact averages, curves that can be looked at."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import rows_of

from scratchnet.training import atomic
from scratchnet.training.metrics import FIELDS, Average, draw_curves, write_rows

HEAD = "epoch,train_loss,train_acc,val_loss,val_acc,lr,seconds,images_per_second\n"


def row(epoch, value=0.5):
    return {"epoch": epoch} | {field: value * i for i, field in enumerate(FIELDS[1:], start=1)}


# metrics.csv ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.floats(allow_nan=False), min_size=7, max_size=7), max_size=5))
def test_rows_come_back_with_all_their_digits(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("log")
    rows = [dict(zip(FIELDS, [epoch, *numbers], strict=True)) for epoch, numbers in enumerate(values, start=1)]
    write_rows(rows, folder / "metrics.csv")
    assert rows_of(folder) == rows


def test_the_file_is_plain_csv_with_one_line_an_epoch_whatever_was_there(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"\xef\xbb\xbfepoch\r\n\x80")
    write_rows([row(1), row(2, np.float32(0.5)) | {"epoch": np.int64(2)}], tmp_path / "metrics.csv")
    line = "0.5,1.0,1.5,2.0,2.5,3.0,3.5\n"
    assert (tmp_path / "metrics.csv").read_text() == f"{HEAD}1,{line}2,{line}"


def test_it_is_written_all_or_nothing_and_a_full_disk_is_named(tmp_path, monkeypatch):
    write_rows([row(1)], tmp_path / "metrics.csv")
    before = (tmp_path / "metrics.csv").read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", fail)
    with pytest.raises(OSError, match="No space left on device: '.*metrics.csv'"):
        write_rows([row(1), row(2)], tmp_path / "metrics.csv")
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("bad", [row(2) | {"extra": 1.0}, {"epoch": 2}])
def test_a_row_with_other_fields_is_refused_and_not_written(tmp_path, bad):
    with pytest.raises(ValueError, match="a row has the fields epoch, train_loss, .*, got"):
        write_rows([row(1), bad], tmp_path / "metrics.csv")
    assert list(tmp_path.iterdir()) == []


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
