"""Evaluation: loss, accuracy, the confusion matrix, and the mirror image."""

import builtins

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.array import as_maps
from scratchnet.data.dataset import Dataset
from scratchnet.parallel import ranks
from scratchnet.training.batches import Batches
from scratchnet.training.evaluation import Evaluation, confusion_lines, draw_confusion, evaluate, mirror

CLASSES = ("left", "right", "none")


class Sides(sn.Module):
    """Logits that say which half of a picture is the brighter one."""

    def forward(self, x):
        half = x.shape[3] // 2
        left, right = x[..., :half].mean(axis=(1, 2, 3)), x[..., half:].mean(axis=(1, 2, 3))
        return np.stack([left, right, np.full_like(left, -9)], axis=1).astype(np.float32)


def pictures(count=23):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 3, 4, 6), np.uint8)
    return Dataset(images, rng.integers(0, 2, count), CLASSES, "halves")


def batches(dataset):
    return Batches(dataset, 5, seed=0, shuffle=False)


def test_it_counts_what_is_taken_for_what_over_batches_of_different_sizes():
    dataset, model = pictures(), Sides()
    x = next(Batches(dataset, 23, seed=0, shuffle=False).epoch(0))[0]
    logits = model(x)
    result = evaluate(model, sn.CrossEntropyLoss(), batches(dataset))
    want = np.zeros((3, 3), int)
    for label, said in zip(dataset.labels, logits.argmax(1), strict=True):
        want[label, said] += 1
    np.testing.assert_array_equal(result.confusion, want)
    assert result.accuracy == (logits.argmax(1) == dataset.labels).mean()
    assert result.loss == pytest.approx(float(sn.CrossEntropyLoss()(logits, dataset.labels)), rel=1e-6)
    assert model.training
    np.testing.assert_allclose(result.class_accuracy[:2], want.diagonal()[:2] / want.sum(1)[:2])
    assert np.isnan(result.class_accuracy[2])


def test_it_leaves_every_module_in_the_mode_in_which_it_was():
    rng = np.random.default_rng(3)
    model = sn.Sequential(sn.BatchNorm2d(3), sn.GlobalAvgPool2d(), sn.Flatten(), sn.Linear(3, 3, rng=rng))
    model.train()
    model[0].eval(save=True)  # frozen statistics, as in fine-tuning
    for change in (lambda: None, model.eval, lambda: model.eval(save=True), model.train):
        change()
        modes = [(module.training, module.saves) for _, module in model.named_modules()]
        evaluate(model, sn.CrossEntropyLoss(), batches(pictures()))
        assert [(module.training, module.saves) for _, module in model.named_modules()] == modes


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("number", [23, 2])
def test_the_sums_of_all_ranks_are_those_of_one(number, count, monkeypatch):
    """Of the last batch some ranks have no picture, and of two pictures some have none at all."""
    dataset, parts = pictures(number), []
    want = evaluate(Sides(), sn.CrossEntropyLoss(), batches(dataset))
    monkeypatch.setattr(ranks, "size", count)
    monkeypatch.setattr(ranks, "largest", lambda classes: 3)
    monkeypatch.setattr(ranks, "sum_over_ranks", lambda value: parts.append(value) or np.ones((3, 3)))
    monkeypatch.setattr(Evaluation, "__new__", lambda *_: None)
    for rank in range(count):
        monkeypatch.setattr(ranks, "rank", rank)
        evaluate(Sides(), sn.CrossEntropyLoss(), batches(dataset))
    np.testing.assert_array_equal(sum(parts[::2]), want.confusion)
    assert sum(parts[1::2]) / number == pytest.approx(want.loss, rel=1e-6)


def test_with_its_mirror_image_a_picture_has_no_sides():
    result = evaluate(Sides(), sn.CrossEntropyLoss(), batches(pictures()), flip=True)
    # both halves get one and the same logit: log(2) but for the third class
    assert result.loss == pytest.approx(np.log(2), abs=1e-3)


def test_a_mirror_image_is_channel_major_and_reversed():
    x = next(batches(pictures()).epoch(0))[0]
    flipped = mirror(x)
    np.testing.assert_array_equal(flipped, x[..., ::-1])
    assert as_maps(flipped).flags.c_contiguous


def test_the_table_names_each_class_and_its_share():
    result = Evaluation(1.0, 0.7, np.array([[3, 1, 0], [123456, 2, 0], [0, 0, 0]]))
    head, *rows = confusion_lines(result, CLASSES)
    assert head.split() == ["taken", "for", "left", "right", "none", "accuracy"]
    assert [row.split() for row in rows] == [
        ["left", "3", "1", "0", "0.7500"], ["right", "123456", "2", "0", "0.0000"], ["none", "0", "0", "0", "nan"],
    ]  # fmt: skip
    assert len({len(line) for line in (head, *rows)}) == 1


def test_the_picture_is_a_png_or_nothing_without_matplotlib(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    result = Evaluation(1.0, 0.7, np.array([[3, 1, 0], [6, 2, 0], [0, 0, 0]]))
    assert draw_confusion(result, CLASSES, tmp_path / "c.png", "a $title$")
    with image.open(tmp_path / "c.png") as drawn:
        assert drawn.size == (850, 750)
        shades = np.asarray(drawn.convert("L"))
    assert shades.min() < 60 and shades.max() == 255

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert not draw_confusion(result, CLASSES, tmp_path / "d.png", "title")
    assert not (tmp_path / "d.png").exists()


def test_of_many_classes_the_worst_ones_are_said_with_what_they_are_taken_for(tmp_path):
    classes = tuple(f"class {k}" for k in range(100))
    confusion = 10 * np.eye(100, dtype=np.int64)
    confusion[7] = 0
    confusion[7, [7, 8, 9, 3]] = 1, 6, 2, 1
    confusion[50, 51] = 10
    confusion[99] = 0  # no picture is of it
    result = Evaluation(1.0, 0.9, confusion)
    lines = confusion_lines(result, classes)
    assert lines[:3] == [
        "  of 100  accuracy  taken for",
        " class 7    0.1000  class 8 60 %, class 9 20 %, class 3 10 %",
        "class 50    0.5000  class 51 50 %",
    ]
    assert len(lines) == 21 and lines[3].split() == ["class", "0", "1.0000"] and "nan" not in "".join(lines)
    pytest.importorskip("matplotlib")
    assert draw_confusion(result, classes, tmp_path / "c.png", "many")
    assert draw_confusion(Evaluation(1.0, 1.0, np.eye(300)), tuple(map(str, range(300))), tmp_path / "d.png", "more")
