"""What --data takes: each kind is recognised, read to the same arrays, and refused in one sentence where it is wrong."""

import gzip
import os
import pickle
import sys

import numpy as np
import pytest
from cifar_files import FAKE, python2_pickle, python_files, tar_of, write_files

from scratchnet.data import cifar, folders
from scratchnet.data.dataset import mean_and_std
from scratchnet.data.files import DataError
from scratchnet.data.folders import load_folders
from scratchnet.data.pictures import PictureError, read_picture
from scratchnet.data.readers import load_pictures

COUNTS = {"CIFAR-10": [3] * 6, "CIFAR-100": [7, 4]}


def small(form):
    """The form, with a few records in each file, and pictures and labels for them."""
    form = form._replace(files=dict(zip(form.files, COUNTS[form.name], strict=True)))
    rng, total = np.random.default_rng(5), sum(form.files.values())
    return form, rng.integers(0, 256, (total, 3, 32, 32), np.uint8), rng.integers(0, len(form.classes), total)


def files_of(form, images, labels):
    if form.version == "Python":
        return python_files(form, images, labels)
    heads = [labels[:, None] // 5] * (len(form.classes) == 100) + [labels[:, None]]
    table, at, found = np.concatenate([*heads, images.reshape(len(images), -1)], axis=1).astype(np.uint8), 0, {}
    for name, count in form.files.items():
        found[name] = table[at : at + count].tobytes()
        at += count
    return found


@pytest.fixture
def forms(monkeypatch):
    """The four forms with few records, in their place in the table."""
    found = [small(form) for form in cifar.FORMS]
    few = {(form.name, form.version): form for form, *_ in found}
    load = cifar.load
    monkeypatch.setattr(cifar, "load", lambda place, form: load(place, few[form.name, form.version]))
    return found


def test_there_are_100_classes_in_order():
    assert len(set(cifar.CIFAR100)) == 100 and list(cifar.CIFAR100) == sorted(cifar.CIFAR100)
    assert (cifar.CIFAR100[0], cifar.CIFAR100[53], cifar.CIFAR100[99]) == ("apple", "orange", "worm")


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("place", ["", "folder", "archive", "packed", "other"])
def test_each_form_gives_the_same_arrays(forms, tmp_path, which, place):
    form, images, labels = forms[which]
    files = files_of(form, images, labels)
    if place in ("archive", "packed"):
        tar = gzip.compress(tar_of(files, f"{form.folder}/"))
        (tmp_path / form.archive).write_bytes(tar)
    else:
        write_files(tmp_path / (form.folder if place == "folder" else place), files)
    train, test, note = load_pictures(tmp_path / {"packed": form.archive, "other": "other"}.get(place, ""))
    cut = len(labels) - COUNTS[form.name][-1]
    for part, rows in ((train, slice(0, cut)), (test, slice(cut, None))):
        np.testing.assert_array_equal(part.images, images[rows])
        np.testing.assert_array_equal(part.labels, labels[rows])
        assert part.labels.dtype == np.int64 and (part.classes, part.name) == (form.classes, form.name)
    assert note == ""


def test_python_3_may_have_pickled_it_too(forms, tmp_path):
    form, images, labels = forms[1]
    for name, raw in files_of(form, images, labels).items():
        (tmp_path / name).write_bytes(pickle.dumps(pickle.loads(raw, encoding="latin1"), 2))
    np.testing.assert_array_equal(load_pictures(tmp_path)[0].images, images[:15])


WRONG = {
    "a list": ([1, bytes(9300)], "is a pickle of a list, expected a dict"),
    "no data": ({b"data": None}, r"has no 'data' as an array \(3, 3072\) uint8, got NoneType"),
    "floats": ({b"data": np.zeros((3, 384))}, r"has no 'data' .* got \(3, 384\) float64"),
    "another size": ({b"data": np.zeros((4, 3072), np.uint8)}, r"has no .* got \(4, 3072\) uint8"),
    "no labels": ({b"labels": None}, "has no 'labels' as a list of 3 whole numbers"),
    "few labels": ({b"labels": [1, 2]}, "has no 'labels' as a list of 3 whole numbers"),
    "labels of text": ({b"labels": [1, 2, "3"]}, "has no 'labels' as a list of 3 whole numbers"),
    "true": ({b"labels": [1, 2, True]}, "has no 'labels' as a list of 3 whole numbers"),
    "a label too many": ({b"labels": [1, 10, 3]}, "has label 10 in record 1; CIFAR-10's are 0 to 9"),
    "a negative label": ({b"labels": [1, 2, -5]}, "has label -1 in record 2; CIFAR-10's are 0 to 9"),
    "a large label": ({b"labels": [2**40, 2, 3]}, "has label 2147483648 in record 0"),
    "a huge label": ({b"labels": [2**80, 2, 3]}, "is no pickle .* it has a number of 11 bytes, expected at most 9"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_pickle_of_something_else_is_refused_by_name(forms, tmp_path, case):
    form, images, labels = forms[1]
    files = files_of(form, images, labels)
    change, message = WRONG[case]
    good = {b"data": images[:3].reshape(3, -1), b"labels": [1, 2, 3], b"long enough": bytes(9300)}
    value = change if isinstance(change, list) else {**good, **change}
    files["data_batch_1"] = python2_pickle(value)
    write_files(tmp_path, files)
    with pytest.raises(DataError, match=rf"^data_batch_1 in \S+ {message}"):
        load_pictures(tmp_path)


@pytest.mark.parametrize("size", [3 * 3072 - 1, 3 * (2 * 3072 + 1024) + 4097])
def test_a_python_file_that_cannot_hold_the_records_is_not_read(forms, tmp_path, monkeypatch, size):
    form, images, labels = forms[1]
    write_files(tmp_path, files_of(form, images, labels) | {"test_batch": bytes(size)})
    with pytest.raises(DataError, match=rf"test_batch has {size:,} bytes; expected 9,216 to 25,600"):
        load_pictures(tmp_path)


def test_what_lies_side_by_side_is_one_data_set_or_refused(forms, tmp_path):
    for which in (1, 0):
        write_files(tmp_path / forms[which][0].folder, files_of(*forms[which]))
    assert load_pictures(tmp_path)[0].name == "CIFAR-10", "in two versions"
    write_files(tmp_path / forms[2][0].folder, files_of(*forms[2]))
    with pytest.raises(
        DataError, match="holds several data sets; expected one: name .*cifar-10-batches-bin or .*cifar-100"
    ):
        load_pictures(tmp_path)


def test_nothing_is_refused_with_what_there_could_be(tmp_path):
    with pytest.raises(
        DataError, match="holds no data; expected one of: CIFAR-10, binary .*CIFAR-100, Python .*a folder for"
    ):
        load_pictures(tmp_path)
    write_files(tmp_path, {"train.bin": b""})
    with pytest.raises(DataError, match="train.bin has 0 bytes; expected exactly 153,700,000"):
        load_pictures(tmp_path)
    write_files(tmp_path / "ten", FAKE)
    with pytest.raises(DataError, match="data_batch_1.bin has 9,219 bytes"):
        load_pictures(tmp_path / "ten")


# Class folders --------------------------------------------------------------------------------------------------------


def paint(folder, counts, sizes=((32, 32),), seed=0):
    """Class folders of PNG and JPEG pictures: {class: how many}."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            h, w = sizes[k % len(sizes)]
            pixels = rng.integers(0, 256, (h, w, 3), np.uint8)
            image.fromarray(pixels).save(folder / name / f"{k:03}.{('png', 'JPG', 'jpeg')[k % 3]}")


def test_the_classes_are_the_folders_and_a_tenth_of_each_is_held_out(tmp_path):
    paint(tmp_path / "pets", {"dog": 21, "cat": 8, "ähre": 2}, ((32, 32), (40, 20), (9, 50)))
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / "pets" / "cat" / ".hidden.png").write_text("not a picture")
    (tmp_path / "pets" / ".git").mkdir()
    (tmp_path / "pets" / "labels.csv").write_text("a,b")
    train, test, note = load_pictures(tmp_path / "pets", size=20)
    assert train.classes == test.classes == ("cat", "dog", "ähre") and train.name == "pets" and "a tenth" in note
    assert np.bincount(test.labels).tolist() == [1, 2, 1] and np.bincount(train.labels).tolist() == [7, 19, 1]
    paths = sorted((tmp_path / "pets").glob("*/[0-9]*"))
    want = {read_picture(path, 20).tobytes(): train.classes.index(path.parent.name) for path in paths}
    for part in (train, test):
        assert part.images.shape[1:] == (3, 20, 20) and part.labels.dtype == np.int64
        assert [want.pop(picture.tobytes()) for picture in part.images] == part.labels.tolist()
    assert not want, "every picture once"
    again = load_folders(tmp_path / "pets", 20, threads=3)
    assert (again[0].images == train.images).all() and (again[1].labels == test.labels).all()


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_division_of_ones_own_is_kept(tmp_path, name):
    paint(tmp_path / "train", {"a": 3, "b/deep/er": 2})
    paint(tmp_path / name, {"b": 1, "a": 1}, seed=1)
    train, test, note = load_pictures(tmp_path)
    assert (train.labels.tolist(), test.labels.tolist(), note) == ([0, 0, 0, 1, 1], [0, 1], f"tested on {name}/")
    np.testing.assert_array_equal(test.images[1], read_picture(tmp_path / name / "b" / "000.png"))
    if name == "test":
        paint(tmp_path / "val", {"a": 1, "b": 1})
        assert load_pictures(tmp_path)[2] == "tested on test/, val/ is not used"
    paint(tmp_path / name, {"c": 1})
    with pytest.raises(DataError, match=rf"train and \S+{name} have other classes \(c\); expected the same in both"):
        load_pictures(tmp_path)


def test_a_class_may_be_called_train_and_train_alone_is_divided(tmp_path):
    paint(tmp_path / "vehicles", {"train": 2, "train/fast": 1, "bus": 2})
    assert load_pictures(tmp_path / "vehicles")[0].classes == ("bus", "train")
    paint(tmp_path / "alone" / "train", {"a": 2, "b": 2})
    train, test, note = load_pictures(tmp_path / "alone")
    assert (train.classes, train.name, len(test.labels)) == (("a", "b"), "alone", 2) and "a tenth" in note


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"cat": 3}, "has one class folder alone, cat; expected two or more"),
        ({"cat": 3, "dog": 0}, "dog has no PNG or JPEG pictures; expected 2 or more"),
        ({"cat": 3, "dog": 1}, "dog has one picture; expected 2 or more, one to train and one to test on"),
        ({"cat": 0, "dog": 0}, "has no PNG or JPEG picture in its 2 folders; expected a folder for each class"),
        ({"cat": 3, "a\nb": 3}, r"has a class folder 'a\\nb'; expected up to 100 printable characters"),
        (
            {"train/a": 1, "train/b": 1, "test/a": 1, "test/b": 0},
            "b has no PNG or JPEG pictures; expected 1 or more, or",
        ),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_by_name(tmp_path, counts, message):
    paint(tmp_path, counts)
    with pytest.raises(DataError, match=message):
        load_pictures(tmp_path)


def test_pictures_in_other_formats_are_not_left_out_in_silence(tmp_path):
    paint(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "x.webp").write_bytes(b"RIFF")
    with pytest.raises(
        DataError, match=r"a has 1 pictures that are neither PNG nor JPEG, such as x\.webp; expected those"
    ):
        load_pictures(tmp_path)


@pytest.mark.parametrize("threads", [1, 4])
def test_damaged_pictures_refuse_the_set_and_the_first_ones_are_named(tmp_path, threads):
    paint(tmp_path, {"a": 9, "b": 9})
    for name in ("a/000.png", "a/003.png", "b/000.png", "b/004.JPG"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    with pytest.raises(
        DataError, match=r"has 4 of 18 pictures .* a/000\.png cannot .* a/003\.png .* b/000\.png .*; …\."
    ):
        load_folders(tmp_path, threads=threads)
    with pytest.raises(DataError, match="^[^\n]*$"):
        load_folders(tmp_path, threads=threads)


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    paint(tmp_path, {"a": 5, "b": 5})
    monkeypatch.setattr(folders, "decode", None)
    with pytest.raises(DataError, match=r"10 pictures of 1000×1000 take about 0\.1 GiB, .* --image-size 129 fits"):
        load_folders(tmp_path, 1000, room=1e6)
    monkeypatch.undo()
    assert len(load_folders(tmp_path, 129, room=1e6)[0].labels) == 8


def test_reading_is_followed_and_an_interrupt_ends_it(tmp_path, monkeypatch):
    paint(tmp_path, {"a": 30, "b": 30})
    seen = []

    def follow(pictures, count):
        for picture in pictures:
            seen.append(count)
            yield picture
            if len(seen) == stop_after:
                raise KeyboardInterrupt

    stop_after = None
    load_folders(tmp_path, follow=follow)
    assert seen == [60] * 60
    seen.clear()
    stop_after, read = 3, []
    monkeypatch.setattr(folders, "decode", lambda path, size: read.append(path) or np.zeros((3, size, size), np.uint8))
    with pytest.raises(KeyboardInterrupt):
        load_folders(tmp_path, follow=follow)
    assert len(seen) == 3


def test_without_pillow_one_line_says_what_to_install_before_anything_is_listed(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(PictureError, match="needs Pillow: pip install pillow$"):
        load_pictures(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    paint(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a").chmod(0)
    with pytest.raises(DataError, match="cannot list .*a: Permission denied"):
        load_pictures(tmp_path)
    (tmp_path / "a").chmod(0o700)


def test_mean_and_deviation_are_those_of_all_pixels_whatever_their_order():
    images = np.random.default_rng(0).integers(0, 256, (2500, 3, 4, 4), np.uint8)
    images[:, 1] //= 3
    images[:, 2] = 77
    mean, std = mean_and_std(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 2, 3)), rtol=0, atol=5.1e-5)
    np.testing.assert_allclose(std[:2], (images / 255).std(axis=(0, 2, 3))[:2], rtol=0, atol=5.1e-5)
    assert std[2] == 1.0 and mean_and_std(images[::-1]) == (mean, std) and round(mean[0], 4) == mean[0]
