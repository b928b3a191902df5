"""CIFAR-10 from its official binary files: found, downloaded and checked, read once into two arrays.

Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html. Six files (five to train on, one to test on) hold
10,000 records each; a record is one label byte and 3,072 pixel bytes: the red, green and blue plane, row by row, which
is (3, 32, 32) as it stands. No pickle is opened, and no archive is unpacked to disk: its members are looked up by their
exact names and read into memory. Whatever is wrong with a file ends in a `DataError`, one sentence for the user.
"""

import gzip
import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scratchnet.data.download import DownloadError, fetch

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


class DataError(ValueError):
    """The data is missing, damaged or not what it should be; the message is one sentence for the user."""


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
    path = Path(folder_or_archive).expanduser()
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
    """Where CIFAR-10 lies in the cache folder, downloaded if it is not there yet; for `load_cifar10`.

    Args:
        cache_dir: the folder; by default $SCRATCHNET_CACHE, or else `scratchnet` in $XDG_CACHE_HOME or `~/.cache`.
        timeout: seconds to wait for the first byte, all told, and then for every further one.
        progress: whether to show a bar, where standard error is a terminal.
        url, size, sha256: what to download, its length in bytes and its hash.

    Raises:
        DataError: it is not in the cache and cannot be downloaded; the message says why.
    """
    try:
        folder = Path(cache_dir or _default_cache()).expanduser()
    except RuntimeError as error:  # no HOME, and no entry for the user, as in a container's --user
        raise DataError("there is no home folder to keep it in; set SCRATCHNET_CACHE to a folder") from error
    place = locate(folder)
    if place is None:
        place = folder / ARCHIVE
        try:
            fetch(url, place, size=size, sha256=sha256, timeout=timeout, progress=progress)
        except DownloadError as error:
            raise DataError(f"cannot download CIFAR-10 from {url}: {error}") from error
    return place


def _default_cache():
    return os.environ.get("SCRATCHNET_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "scratchnet"


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
        raise DataError(f"cannot look for CIFAR-10 in {path}: {_line(error)}; expected a readable folder") from error


def _read_folder(folder: Path, size: int) -> Iterator[tuple[str, bytes]]:
    for name in FILES:
        path = folder / name
        try:
            if not path.exists():
                continue  # load_cifar10 names everything that is missing in one go
            if not path.is_file():  # a pipe would block, a device might never end
                raise DataError(f"{path} is no regular file; expected {size:,} bytes of pictures")
            _require_size(path, path.stat().st_size, size)
            raw = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {path}: {_line(error)}; expected {size:,} bytes of pictures") from error
        _require_size(path, len(raw), size)
        yield name, raw


def _read_archive(archive: Path, size: int) -> Iterator[tuple[str, bytes]]:
    names = {f"{prefix}{FOLDER}/{name}": name for name in FILES for prefix in ("", "./")}
    try:
        with open(archive, "rb") as file:
            start = file.read(16)
        _require_gzip(archive, start)
        with gzip.open(archive) as unzipped:
            stream = _AtMost(unzipped, len(FILES) * size + (1 << 20), archive)
            # "r|" reads from front to back and cannot be sent backwards or round in circles by a forged header.
            with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
                for member in tar:
                    if member.name in names:
                        yield names[member.name], _read_member(tar, member, archive, size)
            while stream.read(1 << 18):  # the checksum over everything stands at the very end
                pass
    except DataError:
        raise
    except Exception as error:  # gzip, zlib and tarfile have no closed list of what damage makes them raise
        message = f"{archive} is damaged ({_line(error)}); expected an intact {ARCHIVE}: delete it and get it again"
        raise DataError(message) from error


def _read_member(tar, member, archive, size):
    where = f"{member.name} in {archive}"
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise DataError(f"{where} is a link, device or sparse file; expected a regular file of {size:,} bytes")
    _require_size(where, member.size, size)
    raw = tar.extractfile(member).read(size)
    _require_size(where, len(raw), size)
    return raw


class _AtMost:
    """A stream that refuses to decompress to more than `limit` bytes, be they to read or to skip."""

    def __init__(self, stream, limit, archive):
        self.stream, self.limit, self.archive, self.count = stream, limit, archive, 0

    def read(self, size):
        data = self.stream.read(size)
        self.count += len(data)
        if self.count > self.limit:
            raise DataError(f"{self.archive} unpacks to more than {self.limit:,} bytes; CIFAR-10 does not")
        return data


def _require_size(what, size, expected):
    if size != expected:
        raise DataError(f"{what} has {size:,} bytes; expected exactly {expected:,}")


def _require_gzip(what, start):
    if start[:2] != b"\x1f\x8b":
        hint = " (a web page?)" if start.lstrip()[:1] == b"<" else ""
        raise DataError(f"{what} begins with {start[:16]!r}{hint} and is no gzip archive; expected {ARCHIVE}")


def _line(error):
    """What an exception says, in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
