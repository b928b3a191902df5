"""A folder of class folders of PNG and JPEG pictures, as torchvision's ImageFolder takes it: one's own data set.

    pets/cat/1.jpg  pets/cat/2.png  pets/dog/1.jpg …    a tenth of each class is held out to test on
    pets/train/cat/1.jpg …  pets/test/cat/7.jpg …       the division is one's own (`val/` where there is no `test/`)

The classes are the folders' names, sorted. Every picture becomes a square of one size (`read_picture`), and all of them
are held in memory, as bytes. Nothing is left out in silence: one picture that cannot be read refuses the set.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scratchnet.data.dataset import Dataset
from scratchnet.data.files import DataError, one_line
from scratchnet.data.pictures import PictureError, decode, quiet, require_pillow

READ = (".png", ".jpg", ".jpeg")
OTHER = (".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".heic", ".heif", ".avif", ".jp2", ".jfif", ".ico")
TESTS = ("test", "val")  # subfolders to test on, the first that is there
HELD_OUT = 0.1  # of each class, at least one picture, where there is no such folder
MOST_CLASSES = 10_000
NAMED = 3  # pictures that a message names


class Listing(NamedTuple):
    """The pictures of a set, before one of them is read: paths and what they show, sorted."""

    paths: list[Path]
    labels: np.ndarray
    classes: tuple[str, ...]


def has_classes(path: Path) -> bool:
    """Whether there are folders in a folder, which are then the classes."""
    return path.is_dir() and bool(_folders(path))


def load_folders(
    path: Path,
    size: int = 32,
    room: float | None = None,
    follow: Callable[[Iterable, int], Iterable] = lambda pictures, count: pictures,
    threads: int = 1,
) -> tuple[Dataset, Dataset, str]:
    """Read a folder of class folders.

    Args:
        path: the folder.
        size: side of the pictures in memory.
        room: bytes that they may take; None: any.
        follow: given what yields picture by picture, and how many there are, and yields the same: a bar.
        threads: that decode pictures at the same time.

    Returns:
        (train, test, how they were divided, in words). The pictures that are held out are the same in every run, whatever
        its seed, so that runs can be compared.

    Raises:
        DataError: there are fewer than two classes, or one has too few pictures, or they do not fit into memory, or some
            cannot be read: all are tried, and the first ones named.
        PictureError: Pillow is not installed.
    """
    require_pillow()
    try:
        listing, held_out, how = _divided(path)
    except OSError as error:
        raise DataError(f"cannot list {error.filename or path}: {one_line(error)}; expected folders to read") from error
    needs = 2 * 3.0 * size * size * len(listing.paths)  # dividing them makes a copy
    if room is not None and needs > room:
        fits = int((room / needs) ** 0.5 * size)
        raise DataError(
            f"{path}: {len(listing.paths):,} pictures of {size}×{size} take about {needs / 2**30:.1f} GiB, and "
            f"{room / 2**30:.1f} GiB are free: about --image-size {fits} fits"
        )
    images = _read(path, listing.paths, size, follow, threads)
    name = path.resolve().name or "pictures"
    train, test = (
        Dataset(images[chosen], listing.labels[chosen], listing.classes, name) for chosen in (~held_out, held_out)
    )
    return train, test, how


def _divided(path):
    """(`Listing` of all pictures, which of them to test on, how that was decided)."""
    test = next((path / name for name in TESTS if has_classes(path / name)), None)
    train_path = path / "train"
    if has_classes(train_path) and not _pictures(train_path, deep=False):
        if test:
            train, other = _listing(train_path), _listing(test)
            if other.classes != train.classes:
                odd = sorted({*other.classes} ^ {*train.classes})
                few = ", ".join(odd[:NAMED]) + (", …" if len(odd) > NAMED else "")
                raise DataError(f"{train_path} and {test} have other classes ({few}); expected the same in both")
            paths, labels = train.paths + other.paths, np.concatenate([train.labels, other.labels])
            unused = [f"{name}/" for name in TESTS if name != test.name and (path / name).is_dir()]
            how = f"tested on {test.name}/" + "".join(f", {name} is not used" for name in unused)
            return Listing(paths, labels, train.classes), np.arange(len(paths)) >= len(train.paths), how
        path = train_path
    listing = _listing(path, least=2)
    held_out = np.zeros(len(listing.paths), bool)
    rng = np.random.default_rng(0)
    for label in range(len(listing.classes)):
        (own,) = np.nonzero(listing.labels == label)
        held_out[rng.permutation(own)[: max(1, round(HELD_OUT * len(own)))]] = True
    return listing, held_out, "a tenth of each class held out to test on"


def _listing(path, least=1):
    classes = _folders(path)
    if len(classes) < 2:
        one = f"one class folder alone, {classes[0]}" if classes else "no class folders"
        raise DataError(f"{path} has {one}; expected two or more, each with the pictures of its class")
    if len(classes) > MOST_CLASSES:
        raise DataError(f"{path} has {len(classes):,} class folders; expected at most {MOST_CLASSES:,}")
    found = [_pictures(path / name) for name in classes]
    if not any(found):
        raise DataError(
            f"{path} has no PNG or JPEG picture in its {len(classes)} folders; expected a folder for each class"
        )
    for name, paths in zip(classes, found, strict=True):
        if not name.isprintable() or len(name) > 100:
            raise DataError(f"{path} has a class folder {name[:100]!r}; expected up to 100 printable characters")
        if len(paths) < least:
            number = "one picture" if paths else "no PNG or JPEG pictures"
            why = ", one to train and one to test on" if least > 1 else ""
            raise DataError(f"{path / name} has {number}; expected {least} or more{why}, or no such folder")
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(paths) for paths in found])
    return Listing([path for paths in found for path in paths], labels, tuple(classes))


def _folders(path):
    """The names of the folders in a folder, sorted; hidden ones are left out."""
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith((".", "__")))


def _pictures(folder, deep=True):
    """The PNG and JPEG files in a folder, and in those inside it, sorted; hidden ones are left out."""

    def refuse(error):
        raise error

    found: list[Path] = []
    other: list[Path] = []
    for place, inside, names in os.walk(folder, onerror=refuse):
        inside[:] = sorted(name for name in inside if not name.startswith((".", "__"))) if deep else []
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in READ + OTHER and not name.startswith("."):
                (found if suffix in READ else other).append(Path(place, name))
    if other:
        raise DataError(
            f"{folder} has {len(other):,} pictures that are neither PNG nor JPEG, such as {other[0].name}; expected those "
            "two: convert them, or take them away"
        )
    return found


def _read(folder, paths, size, follow, threads):
    images = np.empty((len(paths), 3, size, size), np.uint8)
    failures = []

    def read(k):
        try:
            images[k] = decode(paths[k], size)
        except PictureError as error:
            failures.append((k, str(error)))

    with quiet(), ThreadPoolExecutor(threads, thread_name_prefix="pictures") as pool:
        try:
            for _ in follow(pool.map(read, range(len(paths))), len(paths)):
                pass
        except BaseException:  # Ctrl-C, say: what has not begun never does
            pool.shutdown(cancel_futures=True)
            raise
    if failures:
        named = [text.removeprefix(f"{folder}{os.sep}") for _, text in sorted(failures)[:NAMED]]
        more = "; …" if len(failures) > NAMED else ""
        count = f"{len(failures):,} of {len(paths):,} pictures that cannot be used"
        raise DataError(f"{folder} has {count}: {'; '.join(named)}{more}. Replace them or take them away")
    return images
