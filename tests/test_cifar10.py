"""Reading CIFAR-10: every whole form gives the same arrays, what is wrong gives one sentence."""

import os

import numpy as np
import pytest
from cifar_files import (
    ARCHIVE,
    FAKE,
    FILES,
    FOLDER,
    RECORDS,
    SIZE,
    assert_is_fake,
    fake_files,
    load,
    load_tar,
    tar_of,
    write_files,
)

from scratchnet.data import cifar, files, targz
from scratchnet.data.cifar10 import find_or_download, load_cifar10
from scratchnet.data.dataset import Dataset, fingerprint
from scratchnet.data.files import DataError


def test_a_data_set_of_the_real_size_is_read_in_order_and_by_planes(tmp_path):
    contents = fake_files(10_000)
    write_files(tmp_path, contents)
    train, test = load_cifar10(tmp_path)
    assert train.images.shape == (50_000, 3, 32, 32) and test.images.shape == (10_000, 3, 32, 32)
    assert train.name == test.name == "CIFAR-10" and train.classes[3] == test.classes[3] == "cat"
    for record, part, row in ((12_345, train, 12_345), (57, test, 57)):
        raw = contents[FILES[record // 10_000] if part is train else FILES[5]][record % 10_000 * 3073 :][:3073]
        assert part.labels[row] == raw[0]
        assert part.images[row, 1, 2, 3] == raw[1 + 1024 + 2 * 32 + 3]  # green plane, row 2, column 3


@pytest.mark.parametrize("below", ["", FOLDER])
def test_a_folder_is_read_that_holds_the_files_or_their_folder(tmp_path, below):
    write_files(tmp_path / below, FAKE)
    assert_is_fake(load(tmp_path))
    assert_is_fake(load(str(tmp_path)))


def test_the_fingerprint_changes_with_any_pixel_or_label_and_with_nothing_else():
    images, labels = np.zeros((4, 3, 32, 32), np.uint8), np.arange(4)
    dataset = Dataset(images, labels, ("a",), "x")
    other_order = np.asfortranarray(images)
    assert fingerprint(dataset) == fingerprint(Dataset(other_order, labels.astype(np.int32), ("b",), "y"))
    pixel, label = images.copy(), labels.copy()
    pixel[3, 2, 31, 31] = 1
    label[3] = 4
    reshaped = images.reshape(4, 3, 16, 64)
    changed = [dataset._replace(images=pixel), dataset._replace(labels=label), dataset._replace(images=reshaped)]
    assert len({fingerprint(d) for d in [dataset, *changed]}) == 4


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1, 10 << 30])
def test_a_file_of_another_size_is_refused_unread_by_name_and_both_sizes(tmp_path, monkeypatch, size):
    write_files(tmp_path, FAKE)
    os.truncate(tmp_path / FILES[0], size)  # beyond its end: sparse zeros
    monkeypatch.setattr(cifar.np, "frombuffer", None)
    with pytest.raises(DataError, match=rf"{FILES[0]} has {size:,} bytes; expected exactly {SIZE:,}"):
        load(tmp_path)


def test_missing_files_are_all_named(tmp_path):
    write_files(tmp_path, {name: FAKE[name] for name in FILES if name not in (FILES[1], FILES[5])})
    with pytest.raises(DataError, match=rf"lacks {FILES[1]}, {FILES[5]}; expected the six files"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", ""])
def test_a_folder_without_cifar10_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=rf"holds no CIFAR-10; expected {ARCHIVE}, {FOLDER}/ or"):
        load(tmp_path / name)


@pytest.mark.parametrize("make", ["mkdir", "mkfifo"])
@pytest.mark.parametrize("name", [FILES[0], ARCHIVE])
def test_a_folder_or_pipe_in_place_of_a_file_is_refused_at_once(tmp_path, monkeypatch, make, name):
    write_files(tmp_path, FAKE)
    (tmp_path / name).unlink(missing_ok=True)
    getattr(os, make)(tmp_path / name)
    form = cifar.CIFAR10_BINARY._replace(files=dict.fromkeys(FILES, RECORDS))  # read as if it changed after the look
    contents = cifar._read_archive(tmp_path / name, form) if name == ARCHIVE else cifar._read_folder(tmp_path, form)
    with pytest.raises(DataError, match=f"cannot read .*{name}: it is no regular file; expected"):
        next(contents)


def test_a_home_folder_that_nobody_has_is_named(monkeypatch):
    with pytest.raises(DataError, match="~nobody-here/x is in a home folder that cannot be found; expected a path"):
        load("~nobody-here/x")
    for variable in ("HOME", "SCRATCHNET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a container's user has no entry there
    with pytest.raises(DataError, match="~/.cache/scratchnet is in a home folder that cannot be found"):
        find_or_download()


@pytest.mark.parametrize("label", [10, 255])
@pytest.mark.parametrize("packed", [False, True])
def test_a_label_above_9_is_refused_with_its_place(tmp_path, label, packed):
    content = bytearray(FAKE[FILES[4]])
    content[2 * 3073] = label
    changed = {**FAKE, FILES[4]: bytes(content)}
    with pytest.raises(DataError, match=rf"{FILES[4]} in .* has label {label} in record 2; CIFAR-10's are 0 to 9"):
        if packed:
            load_tar(tmp_path, tar_of(changed))
        write_files(tmp_path, changed)
        load(tmp_path)


def test_an_unreadable_place_is_named(tmp_path, monkeypatch):
    write_files(tmp_path, FAKE)

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "open_regular", refuse)
    monkeypatch.setattr(targz, "open_regular", refuse)
    with pytest.raises(DataError, match=rf"cannot read .*{FILES[0]}: Permission denied; expected {SIZE:,} bytes"):
        load(tmp_path)
    with pytest.raises(DataError, match=rf"cannot read .*{FILES[0]}: Permission denied; expected a .tar.gz"):
        load(tmp_path / FILES[0])
    monkeypatch.setattr(cifar.Path, "is_file", refuse)
    with pytest.raises(DataError, match="cannot look for CIFAR-10 in .*: Permission denied"):
        load(tmp_path)
