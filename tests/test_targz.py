"""Reading an archive: a whole one gives its files, damage and lies give one sentence at once, and nothing is written."""

import gzip
import os
import tarfile
import time
import tracemalloc

import numpy as np
import pytest
from cifar_files import ARCHIVE, FAKE, FILES, FOLDER, RECORDS, SIZE, assert_is_fake, load, load_tar, member, tar_of

from scratchnet.data.files import DataError

SLOW = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("SCRATCHNET_SLOW") != "1", reason="slow: set SCRATCHNET_SLOW=1"),
]


@pytest.mark.parametrize("prefix", [f"{FOLDER}/", f"./{FOLDER}/"])
def test_the_archive_or_its_folder_is_read_whatever_else_is_in_it_and_in_any_order(tmp_path, prefix):
    extra = member(f"{FOLDER}/readme.html", b"<html>") + member(FOLDER, type=tarfile.DIRTYPE)
    backwards = dict(reversed(FAKE.items()))
    assert_is_fake(load_tar(tmp_path, tar_of(backwards, prefix, extra)))
    assert_is_fake(load(tmp_path))


def test_a_web_page_in_place_of_the_archive_is_refused(tmp_path):
    (tmp_path / ARCHIVE).write_text("<!DOCTYPE html><html>Sign in to the hotel's network</html>")
    with pytest.raises(DataError, match=r"begins with b'<!DOCTYPE.*\(a web page\?\) and is no gzip archive"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda packed: packed[:3] + b"\x08" + packed[4:10] + b"n" * (2 << 20) + b"\0" + packed[10:],
            "unpacks to more",
        ),
        (lambda packed: packed + b"PK", "is damaged .there are bytes behind its end"),
        (lambda packed: packed + gzip.compress(bytes(1 << 20)), "is damaged .there are bytes behind its end"),
        (lambda packed: packed[:-1], "is damaged .its end is missing"),
        (lambda packed: packed[:-8] + bytes(4) + packed[-4:], "is damaged .*incorrect data check"),
    ],
    ids=["a name of 2 MB", "bytes behind", "another archive behind", "an end missing", "another checksum"],
)
def test_what_gzip_adds_is_checked_too(tmp_path, change, message):
    (tmp_path / ARCHIVE).write_bytes(change(gzip.compress(tar_of(FAKE), 1)))
    with pytest.raises(DataError, match=f"{ARCHIVE} {message}"):
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
    "2^60 bytes elsewhere": (member("zeros", size=1 << 60), "unpacks to more than"),
    "2^60 bytes of header": (member("pax", size=1 << 60, type=b"x"), "unpacks to more than"),
    "fewer bytes than none": (member("zeros", size=-512), "unpacks to more than"),
    "80,000 digits": (member("pax", b"80012 size=" + b"9" * 80000 + b"\n", type=b"x"), f"lacks {FILES[0]}"),
    "10 GB": (member(f"{FOLDER}/{FILES[0]}", size=10 << 30), rf"has 10,737,418,240 bytes; expected exactly {SIZE:,}"),
    "10 GB elsewhere": (member("zeros", size=10 << 30) + bytes(2 << 20), "unpacks to more than"),
    "10 GB of name": (member("././@LongLink", size=10 << 30, type=b"L") + bytes(2 << 20), "unpacks to more than"),
    "10 GB of header": (member("pax", size=10 << 30, type=b"x") + bytes(2 << 20), "unpacks to more than"),
    "twice": (2 * member(f"{FOLDER}/{FILES[0]}", FAKE[FILES[0]]), f"holds {FILES[0]} twice"),
    "longer than all of it": (member("zeros", size=1 << 20), f"lacks {FILES[0]}"),
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
