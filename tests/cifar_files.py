"""Small CIFAR-10s for the tests: six files of three records each, and tar archives of them."""

import gzip
import io
import pickle
import tarfile
import types

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


class _Python2(pickle._Pickler):  # the pickler that is written in Python: what it writes for a type can be changed
    """Pickles as Python 2 did, in which CIFAR's Python versions are: texts and bytes are one, NumPy is an older one."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_text(self, value):
        raw = value if isinstance(value, bytes) else value.encode()
        short = len(raw) < 256
        self.write(
            pickle.SHORT_BINSTRING + bytes([len(raw)]) if short else pickle.BINSTRING + len(raw).to_bytes(4, "little")
        )
        self.write(raw)
        self.memoize(value)

    def save_name(self, value, name=None):
        module = value.__module__.replace("numpy._core", "numpy.core").replace("builtins", "__builtin__")
        self.write(pickle.GLOBAL + f"{module}\n{name or value.__name__}\n".encode())
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_text
    dispatch[type] = dispatch[types.FunctionType] = dispatch[types.BuiltinFunctionType] = save_name

    def save_global(self, value, name=None):
        self.save_name(value, name)


def python2_pickle(value):
    """A value of dicts, lists, texts, numbers and arrays as Python 2 pickles it with protocol 2."""
    file = io.BytesIO()
    _Python2(file, 2).dump(value)
    return file.getvalue()


def python_files(form, images, labels):
    """The files of a Python version, in order: {name: pickle}. Their records are as many as the form has."""
    found, at = {}, 0
    key = b"fine_labels" if len(form.classes) == 100 else b"labels"
    for name, records in form.files.items():
        rows = slice(at, at := at + records)
        found[name] = python2_pickle(
            {
                b"batch_label": b"batch 1 of 5",
                key: labels[rows].tolist(),
                b"data": images[rows].reshape(records, -1),
                b"filenames": [b"camion_s_%06d.png" % k for k in range(records)],
            }
        )
    return found
