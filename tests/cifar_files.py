"""Small CIFAR-10s for the tests: six files of three records each, and tar archives of them."""

import gzip
import tarfile

import numpy as np

from scratchnet.data.cifar import CIFAR10_BINARY
from scratchnet.data.cifar10 import load_cifar10

FILES, FOLDER, ARCHIVE = tuple(CIFAR10_BINARY.files), CIFAR10_BINARY.folder, CIFAR10_BINARY.archive

RECORDS = 3
SIZE = RECORDS * 3073


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
