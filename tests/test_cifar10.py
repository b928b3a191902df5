"""Reading CIFAR-10: every whole form gives the same arrays, every damage gives one sentence and writes nothing."""

import gzip
import os
import tarfile
import time
import tracemalloc

import numpy as np
import pytest

from scratchnet.data import cifar10
from scratchnet.data.cifar10 import ARCHIVE, FILES, FOLDER, DataError, Dataset, fingerprint, load_cifar10

RECORDS = 3
SIZE = RECORDS * 3073
SLOW = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("SCRATCHNET_SLOW") != "1", reason="slow: set SCRATCHNET_SLOW=1"),
]


def fake_files(records=RECORDS, seed=0):
    """Six files in CIFAR-10's layout, of random bytes: {name: bytes}."""
    tables = np.random.default_rng(seed).integers(0, 256, (6, records, 3073), np.uint8)
    tables[:, :, 0] %= 10
    return {name: table.tobytes() for name, table in zip(FILES, tables, strict=True)}


def write_files(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def member(name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def tar_of(files, prefix=f"{FOLDER}/", extra=b""):
    return extra + b"".join(member(prefix + name, content) for name, content in files.items()) + bytes(10240)


def load(path):
    return load_cifar10(path, records=RECORDS)


def load_tar(folder, tar):
    (folder / ARCHIVE).write_bytes(gzip.compress(tar, 1))
    return load(folder / ARCHIVE)


FAKE = fake_files()
EXPECTED = np.stack([np.frombuffer(content, np.uint8).reshape(RECORDS, 3073) for content in FAKE.values()])


def assert_is_fake(sets):
    for dataset, tables in zip(sets, (EXPECTED[:5], EXPECTED[5:]), strict=True):
        records = tables.reshape(-1, 3073)
        np.testing.assert_array_equal(dataset.labels, records[:, 0])
        np.testing.assert_array_equal(dataset.images.reshape(-1, 3072), records[:, 1:])
        assert dataset.labels.dtype == np.int64 and dataset.images.dtype == np.uint8


def test_a_data_set_of_the_real_size_is_read_in_order_and_by_planes(tmp_path):
    files = fake_files(10_000)
    write_files(tmp_path, files)
    train, test = load_cifar10(tmp_path)
    assert train.images.shape == (50_000, 3, 32, 32) and test.images.shape == (10_000, 3, 32, 32)
    assert train.name == test.name == "CIFAR-10" and train.classes[3] == test.classes[3] == "cat"
    for record, part, row in ((12_345, train, 12_345), (57, test, 57)):
        raw = files[FILES[record // 10_000] if part is train else FILES[5]][record % 10_000 * 3073 :][:3073]
        assert part.labels[row] == raw[0]
        assert part.images[row, 1, 2, 3] == raw[1 + 1024 + 2 * 32 + 3]  # green plane, row 2, column 3


@pytest.mark.parametrize("below", ["", FOLDER])
def test_a_folder_is_read_that_holds_the_files_or_their_folder(tmp_path, below):
    write_files(tmp_path / below, FAKE)
    assert_is_fake(load(tmp_path))
    assert_is_fake(load(str(tmp_path)))


@pytest.mark.parametrize("prefix", [f"{FOLDER}/", f"./{FOLDER}/"])
def test_the_archive_or_its_folder_is_read_whatever_else_is_in_it_and_in_any_order(tmp_path, prefix):
    extra = member(f"{FOLDER}/readme.html", b"<html>") + member(FOLDER, type=tarfile.DIRTYPE)
    backwards = dict(reversed(FAKE.items()))
    assert_is_fake(load_tar(tmp_path, tar_of(backwards, prefix, extra)))
    assert_is_fake(load(tmp_path))


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
    monkeypatch.setattr(cifar10.Path, "read_bytes", None)
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
def test_a_folder_or_pipe_in_place_of_a_file_is_refused_and_never_opened(tmp_path, make):
    write_files(tmp_path, FAKE)
    (tmp_path / FILES[0]).unlink()
    getattr(os, make)(tmp_path / FILES[0])
    with pytest.raises(DataError, match=f"{FILES[0]} is no regular file"):
        load(tmp_path)


@pytest.mark.parametrize("label", [10, 255])
@pytest.mark.parametrize("packed", [False, True])
def test_a_label_above_9_is_refused_with_its_place(tmp_path, label, packed):
    content = bytearray(FAKE[FILES[4]])
    content[2 * 3073] = label
    files = {**FAKE, FILES[4]: bytes(content)}
    with pytest.raises(DataError, match=rf"{FILES[4]} in .* has label {label} in record 2; CIFAR-10's are 0 to 9"):
        if packed:
            load_tar(tmp_path, tar_of(files))
        write_files(tmp_path, files)
        load(tmp_path)


def test_a_web_page_in_place_of_the_archive_is_refused(tmp_path):
    (tmp_path / ARCHIVE).write_text("<!DOCTYPE html><html>Sign in to the hotel's network</html>")
    with pytest.raises(DataError, match=r"begins with b'<!DOCTYPE.*\(a web page\?\) and is no gzip archive"):
        load(tmp_path)


LIES = {  # tar members in place of data_batch_1.bin, and what is said about them
    "../": (member(f"../{FOLDER}/{FILES[0]}", FAKE[FILES[0]]), f"lacks {FILES[0]}"),
    "inner ../": (member(f"{FOLDER}/../{FOLDER}/{FILES[0]}", FAKE[FILES[0]]), f"lacks {FILES[0]}"),
    "absolute": (member(f"/{FOLDER}/{FILES[0]}", FAKE[FILES[0]]), f"lacks {FILES[0]}"),
    **{
        kind: (member(f"{FOLDER}/{FILES[0]}", type=code, linkname="/etc/passwd"), "is a link, device or sparse file")
        for kind, code in {
            "symbolic link": b"2",
            "hard link": b"1",
            "device": b"3",
            "pipe": b"6",
            "sparse": b"S",
        }.items()
    },
    "10 GB": (member(f"{FOLDER}/{FILES[0]}", size=10 << 30), rf"has 10,737,418,240 bytes; expected exactly {SIZE:,}"),
    "10 GB elsewhere": (member("zeros", size=10 << 30) + bytes(2 << 20), "unpacks to more than"),
    "10 GB of name": (member("././@LongLink", size=10 << 30, type=b"L") + bytes(2 << 20), "unpacks to more than"),
    "10 GB of header": (member("pax", size=10 << 30, type=b"x") + bytes(2 << 20), "unpacks to more than"),
    "twice": (2 * member(f"{FOLDER}/{FILES[0]}", FAKE[FILES[0]]), f"holds {FILES[0]} twice"),
    "no tar": (b"just text" * 1000, "is damaged"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_archive_that_lies_is_refused_quickly_and_writes_nothing(tmp_path, monkeypatch, lie):
    monkeypatch.chdir(tmp_path)
    extra, message = LIES[lie]
    rest = {name: FAKE[name] for name in FILES[1:]}
    (tmp_path / "in").mkdir()
    start = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"^\S+{ARCHIVE} {message}|^{FOLDER}/{FILES[0]} in .*{ARCHIVE} {message}"):
        load_tar(tmp_path / "in", tar_of(rest, extra=extra))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - start < 5 and peak < 20e6
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["in", f"in/{ARCHIVE}"]


def damaged(data, rng):
    """`data` with one random damage: cut short, a bit flipped, bytes added, or a stretch overwritten."""
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 600))
    noise = rng.bytes(length)
    flipped = bytes([data[at] ^ 1 << int(rng.integers(8))])
    return [
        data[:at],
        data[:at] + flipped + data[at + 1 :],
        data[:at] + noise + data[at:],
        data[:at] + noise + data[at + length :],
    ][rng.integers(4)]


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=SLOW)])
def test_a_damaged_archive_is_refused_or_gives_the_very_same_pictures(tmp_path, count):
    packed = gzip.compress(tar_of(FAKE), 1)
    for seed in range(count):
        (tmp_path / ARCHIVE).write_bytes(damaged(packed, np.random.default_rng(seed)))
        try:
            sets = load(tmp_path)
        except DataError as error:
            assert "\n" not in str(error) and ARCHIVE in str(error)
        else:
            assert_is_fake(sets)  # the gzip header's time or name, say


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=SLOW)])
def test_a_damaged_tar_in_an_intact_gzip_file_is_refused_or_read_as_it_stands(tmp_path, count):
    tar = tar_of(FAKE, extra=member("pax", b"20 path=something\n\n", type=b"x") + member("old", b"1"))
    for seed in range(count):
        rng = np.random.default_rng(seed)
        head = damaged(tar[:2560], rng) + tar[2560:] if seed % 2 else damaged(tar, rng)
        try:
            train, test = load_tar(tmp_path, head)
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert len(train.images) == 5 * RECORDS and len(test.images) == RECORDS
            assert max(train.labels.max(), test.labels.max()) < 10
    assert os.listdir(tmp_path) == [ARCHIVE]


def test_an_unreadable_place_is_named(tmp_path, monkeypatch):
    write_files(tmp_path, FAKE)

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cifar10.Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=rf"cannot read .*{FILES[0]}: Permission denied; expected {SIZE:,} bytes"):
        load(tmp_path)
    monkeypatch.setattr(cifar10.Path, "is_file", refuse)
    with pytest.raises(DataError, match="cannot look for CIFAR-10 in .*: Permission denied"):
        load(tmp_path)
