"""CIFAR-10, the data set that is trained on where no other is given: downloaded where it has to be, and its statistics.

The official archive of the binary version (data/cifar.py reads it, and the other versions) is looked for in a cache folder.
"""

import os
from pathlib import Path

from scratchnet.data import cifar
from scratchnet.data.cifar import CIFAR10_BINARY
from scratchnet.data.dataset import Dataset
from scratchnet.data.download import DownloadError, fetch
from scratchnet.data.files import DataError, expanded

# Per channel (red, green, blue) over all pixels of the 50,000 training pictures, of a range of 1. Many scripts carry
# (0.2023, 0.1994, 0.2010) instead: that is the average of the pictures' own standard deviations, which leaves out how
# the pictures differ from one another, so that what it normalises has a standard deviation of 1.2 and not 1.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

ARCHIVE = CIFAR10_BINARY.archive
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
ARCHIVE_BYTES = 170_052_171
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


def load_cifar10(folder_or_archive: str | os.PathLike[str], *, records: int = 10_000) -> tuple[Dataset, Dataset]:
    """Read all of CIFAR-10, in its binary version; `records` is how many pictures a file has. See `cifar.load`."""
    files = dict.fromkeys(CIFAR10_BINARY.files, records)
    return cifar.load(folder_or_archive, CIFAR10_BINARY._replace(files=files))


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
    folder = expanded(cache_dir or _default_cache())
    place = cifar.locate(folder, CIFAR10_BINARY)
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
