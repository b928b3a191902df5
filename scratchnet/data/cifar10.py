"""CIFAR-10 from its official binary files: found, downloaded and checked, read once into two arrays.

Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html. Six files (five to train on, one to test on) hold
10,000 records each; a record is one label byte and 3,072 pixel bytes: the red, green and blue plane, row by row, which
is (3, 32, 32) as it stands. No pickle is opened, and no archive is unpacked to disk: its members are looked up by their
exact names and read into memory. Whatever is wrong with a file ends in a `DataError`, one sentence for the user.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scratchnet.data.download import DownloadError, fetch
from scratchnet.data.files import DataError, one_line, open_regular, require_size
from scratchnet.data.targz import read_members

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Per channel (red, green, blue) over all pixels of the 50,000 training pictures, of a range of 1. Many scripts carry
# (0.2023, 0.1994, 0.2010) instead: that is the average of the pictures' own standard deviations, which leaves out how
# the pictures differ from one another, so that what it normalises has a standard deviation of 1.2 and not 1.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

RECORDS = 10_000  # a file
RECORD_BYTES = 1 + 3 * 32 * 32
FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
FOLDER = "cifar-10-batches-bin"
ARCHIVE = "cifar-10-binary.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
ARCHIVE_BYTES = 170_052_171
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


class Dataset(NamedTuple):
    """Pictures in memory and what they show.

    images: (N, 3, 32, 32) uint8, RGB.  labels: (N,) int64, indices into classes.  name: of the set, for logs.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 (64 hex digits) over pictures and labels: two data sets with equal fingerprints are equal."""
    digest = hashlib.sha256(repr(dataset.images.shape).encode())
    digest.update(np.ascontiguousarray(dataset.images).data)
    digest.update(np.ascontiguousarray(dataset.labels, "<i8").data)  # the same on a big-endian machine
    return digest.hexdigest()


def load_cifar10(folder_or_archive: str | os.PathLike[str], *, records: int = RECORDS) -> tuple[Dataset, Dataset]:
    """Read all of CIFAR-10.

    Args:
        folder_or_archive: the archive `cifar-10-binary.tar.gz`, or a folder that holds it, or one that holds the six
            `.bin` files, themselves or in `cifar-10-batches-bin/`.
        records: pictures a file; CIFAR-10 has 10,000.

    Returns:
        (train, test): 50,000 and 10,000 pictures.

    Raises:
        DataError: a file is missing, has another size, is damaged, or holds a label above 9.
    """
    path = _expanded(folder_or_archive)
    place = locate(path)
    if place is None:
        raise DataError(f"{path} holds no CIFAR-10; expected {ARCHIVE}, {FOLDER}/ or {FILES[0]} … {FILES[-1]} in it")
    images = np.empty((len(FILES) * records, 3, 32, 32), np.uint8)
    labels = np.empty(len(FILES) * records, np.int64)
    contents = _read_archive if place.is_file() else _read_folder
    missing = list(FILES)
    for name, raw in contents(place, records * RECORD_BYTES):
        if name not in missing:
            raise DataError(f"{place} holds {name} twice; expected each of the six files once")
        missing.remove(name)
        table = np.frombuffer(raw, np.uint8).reshape(records, RECORD_BYTES)
        worst = int(table[:, 0].argmax())
        if table[worst, 0] >= len(CLASSES):
            raise DataError(f"{name} in {place} has label {table[worst, 0]} in record {worst}; CIFAR-10's are 0 to 9")
        rows = slice(FILES.index(name) * records, (FILES.index(name) + 1) * records)
        images[rows] = table[:, 1:].reshape(records, 3, 32, 32)
        labels[rows] = table[:, 0]
    if missing:
        raise DataError(f"{place} lacks {', '.join(missing)}; expected the six files of CIFAR-10's binary version")
    cut = (len(FILES) - 1) * records
    train = Dataset(images[:cut], labels[:cut], CLASSES, "CIFAR-10")
    return train, Dataset(images[cut:], labels[cut:], CLASSES, "CIFAR-10")


def find_or_download(
    cache_dir: str | os.PathLike[str] | None = None,
    timeout: float = 10.0,
    progress: bool = True,
    *,
    url: str = URL,
    size: int = ARCHIVE_BYTES,
    sha256: str = ARCHIVE_SHA256,
) -> Path:
    """Where CIFAR-10 lies in the cache folder, downloaded if it is not there yet or damaged; for `load_cifar10`.

    The archive's hash is checked each time. Files that were unpacked there by hand are left to `load_cifar10`'s checks.

    Args:
        cache_dir: the folder; by default $SCRATCHNET_CACHE, or else `scratchnet` in $XDG_CACHE_HOME or `~/.cache`.
        timeout: seconds to wait for the first byte, all told, and then for every further one.
        progress: whether to show a bar, where standard error is a terminal.
        url, size, sha256: what to download, its length in bytes and its hash.

    Raises:
        DataError: it is not in the cache and cannot be downloaded; the message says why.
    """
    folder = _expanded(cache_dir or _default_cache())
    place = locate(folder)
    if place in (None, folder / ARCHIVE):
        place = folder / ARCHIVE
        try:
            fetch(url, place, size=size, sha256=sha256, timeout=timeout, progress=progress)
        except DownloadError as error:
            wrong = f"{place} is another file or damaged, and " if place.exists() else ""
            raise DataError(f"{wrong}cannot download CIFAR-10 from {url}: {error}") from error
    return place


def _default_cache():
    return os.environ.get("SCRATCHNET_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "scratchnet"


def _expanded(path):
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user, or a container's user without an entry in passwd and without $HOME
        raise DataError(f"{path} is in a home folder that cannot be found; expected a path without ~") from None


def locate(path: Path) -> Path | None:
    """The folder of `.bin` files or the archive that `load_cifar10` would read at `path`; None if there is neither."""
    try:
        if path.is_file():
            return path
        for folder in (path, path / FOLDER):
            if any((folder / name).exists() for name in FILES):
                return folder
        return path / ARCHIVE if (path / ARCHIVE).is_file() else None
    except OSError as error:
        raise DataError(f"cannot look for CIFAR-10 in {path}: {one_line(error)}; expected a readable folder") from error


def _read_folder(folder: Path, size: int) -> Iterator[tuple[str, bytes]]:
    for name in FILES:
        path = folder / name
        try:
            with open_regular(path) as file:
                require_size(path, os.fstat(file.fileno()).st_size, size)
                raw = file.read(size)
        except FileNotFoundError:
            continue  # load_cifar10 names everything that is missing in one go
        except OSError as error:
            raise DataError(f"cannot read {path}: {one_line(error)}; expected {size:,} bytes of pictures") from error
        require_size(path, len(raw), size)
        yield name, raw


def _read_archive(archive: Path, size: int) -> Iterator[tuple[str, bytes]]:
    names = {f"{prefix}{FOLDER}/{name}": name for name in FILES for prefix in ("", "./")}
    for name, raw in read_members(archive, names, size, limit=len(FILES) * size + (1 << 20)):
        yield names[name], raw
