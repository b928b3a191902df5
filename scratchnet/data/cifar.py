"""CIFAR-10 and CIFAR-100 from their official files: found, checked, and read once into two arrays.

Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html. Either comes in a binary version, whose records are
one label byte (CIFAR-100: two, the coarse class and the fine one, which is used) and 3,072 pixel bytes, and in a Python
version, as torchvision keeps it, of pickled dicts of the same (`pickled_arrays.py` reads them). The pixels
are the red, green and blue plane, row by row, which is (3, 32, 32) as it stands. No archive is unpacked to disk: members
are looked up by their exact names and read into memory. Whatever is wrong with a file ends in a `DataError`.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scratchnet.data.dataset import Dataset
from scratchnet.data.files import DataError, expanded, one_line, read_sized
from scratchnet.data.pickled_arrays import read_pickle
from scratchnet.data.targz import read_members

PIXELS = 3 * 32 * 32
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
    forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
    mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree
    wolf woman worm""".split()
)


class Form(NamedTuple):
    """How a data set lies in files.

    name, version: of the data set and of the form, for messages.  classes: their names, in the order of the labels.
    folder, archive: as they are called officially.  files: name -> records in it; the last file is the one to test on.
    parse: (content of a file, records, what it is in words) -> images (records, 3, 32, 32) uint8, labels (records,).
    sizes: records -> least and most bytes of a file.
    """

    name: str
    version: str
    classes: tuple[str, ...]
    folder: str
    archive: str
    files: Mapping[str, int]
    parse: Callable[[bytes, int, str], tuple[np.ndarray, np.ndarray]]
    sizes: Callable[[int], tuple[int, int]]

    def expected(self) -> str:
        """What to look for, in words."""
        first, *_, last = self.files
        return f"{self.archive}, {self.folder}/ or {first} {'…' if len(self.files) > 2 else 'and'} {last}"


def load(folder_or_archive: str | os.PathLike[str], form: Form) -> tuple[Dataset, Dataset]:
    """Read all of a data set.

    Args:
        folder_or_archive: the archive, or a folder that holds it, or one that holds the files, themselves or in the folder
            that they officially come in.
        form: how it lies there.

    Returns:
        (train, test).

    Raises:
        DataError: a file is missing, has another size, is damaged, or holds a label that is none of a class.
    """
    path = expanded(folder_or_archive)
    place = locate(path, form)
    if place is None:
        raise DataError(f"{path} holds no {form.name}; expected {form.expected()} in it")
    ends = np.cumsum([*form.files.values()]).tolist()
    rows = {name: slice(end - count, end) for (name, count), end in zip(form.files.items(), ends, strict=True)}
    images, labels = np.empty((ends[-1], 3, 32, 32), np.uint8), np.empty(ends[-1], np.int64)
    missing = list(form.files)
    for name, raw in (_read_archive if place.is_file() else _read_folder)(place, form):
        if name not in missing:
            raise DataError(f"{place} holds {name} twice; expected each of the {_count(form)} once")
        missing.remove(name)
        where = f"{name} in {place}"
        images[rows[name]], found = form.parse(raw, form.files[name], where)
        bad = (found < 0) | (found >= len(form.classes))
        if bad.any():
            worst = int(bad.argmax())
            known = f"{form.name}'s are 0 to {len(form.classes) - 1}"
            raise DataError(f"{where} has label {found[worst]} in record {worst}; {known}")
        labels[rows[name]] = found
    if missing:
        what = f"the {_count(form)} of {form.name}'s {form.version} version"
        raise DataError(f"{place} lacks {', '.join(missing)}; expected {what}")
    cut = ends[-2]
    train = Dataset(images[:cut], labels[:cut], form.classes, form.name)
    return train, Dataset(images[cut:], labels[cut:], form.classes, form.name)


def locate(path: Path, form: Form) -> Path | None:
    """The folder of files or the archive that `load` would read at `path`; None if there is neither."""
    try:
        if path.is_file():
            return path
        for folder in (path, path / form.folder):
            if any((folder / name).exists() and not (folder / name).is_dir() for name in form.files):
                return folder
        return path / form.archive if (path / form.archive).is_file() else None
    except OSError as error:
        what = f"cannot look for {form.name} in {path}: {one_line(error)}; expected a readable folder"
        raise DataError(what) from error


def _count(form):
    return f"{ {2: 'two', 6: 'six'}.get(len(form.files), len(form.files)) } files"


def _read_folder(folder: Path, form: Form) -> Iterator[tuple[str, bytes]]:
    for name, records in form.files.items():
        raw = read_sized(folder / name, *form.sizes(records), of="pictures")
        if raw is not None:  # load names everything that is missing in one go
            yield name, raw


def _read_archive(archive: Path, form: Form) -> Iterator[tuple[str, bytes]]:
    names = {f"{prefix}{form.folder}/{name}": name for name in form.files for prefix in ("", "./")}
    sizes = {path: form.sizes(form.files[name]) for path, name in names.items()}
    most = sum(form.sizes(records)[1] for records in form.files.values())
    for name, raw in read_members(archive, sizes, limit=most + (1 << 20)):
        yield names[name], raw


# The two versions -----------------------------------------------------------------------------------------------------


def _binary(raw, records, where, *, heads):
    """Records of `heads` label bytes, of which the last one counts, and the pixels."""
    table = np.frombuffer(raw, np.uint8).reshape(records, heads + PIXELS)
    return table[:, heads:].reshape(records, 3, 32, 32), table[:, heads - 1]


def _pickled(raw, records, where, *, key):
    """A dict with the pixels as an array and the labels as a list, beside names that are not used."""
    found = read_pickle(raw, where)
    data, labels = (found.get(name.encode(), found.get(name)) for name in ("data", key))  # Python 2's texts are bytes
    if type(data) is not np.ndarray or data.dtype != np.uint8 or data.shape != (records, PIXELS):
        got = f"{data.shape} {data.dtype}" if type(data) is np.ndarray else type(data).__name__
        raise DataError(f"{where} has no 'data' as an array ({records}, {PIXELS}) uint8, got {got}")
    if type(labels) is not list or len(labels) != records or any(type(label) is not int for label in labels):
        raise DataError(f"{where} has no {key!r} as a list of {records} whole numbers")
    return data.reshape(records, 3, 32, 32), np.array([min(max(label, -1), 1 << 31) for label in labels], np.int64)


def _binary_size(records, *, heads):
    return (records * (heads + PIXELS),) * 2


def _pickled_size(records):
    # with labels, and the names of files that they came from; Python 3 writes bytes above 127 as two in protocol 2
    return records * PIXELS, records * (2 * PIXELS + 1024) + 4096


_TEN = {**{f"data_batch_{i}": 10_000 for i in range(1, 6)}, "test_batch": 10_000}
_HUNDRED = {"train": 50_000, "test": 10_000}


def _binary_form(name, classes, folder, archive, files, heads):
    files = {f"{file}.bin": records for file, records in files.items()}
    parse, sizes = partial(_binary, heads=heads), partial(_binary_size, heads=heads)
    return Form(name, "binary", classes, folder, archive, files, parse, sizes)


def _python_form(name, classes, folder, archive, files, key):
    return Form(name, "Python", classes, folder, archive, files, partial(_pickled, key=key), _pickled_size)


CIFAR10_BINARY = _binary_form("CIFAR-10", CIFAR10, "cifar-10-batches-bin", "cifar-10-binary.tar.gz", _TEN, 1)
CIFAR10_PYTHON = _python_form("CIFAR-10", CIFAR10, "cifar-10-batches-py", "cifar-10-python.tar.gz", _TEN, "labels")
CIFAR100_BINARY = _binary_form("CIFAR-100", CIFAR100, "cifar-100-binary", "cifar-100-binary.tar.gz", _HUNDRED, 2)
CIFAR100_PYTHON = _python_form(
    "CIFAR-100", CIFAR100, "cifar-100-python", "cifar-100-python.tar.gz", _HUNDRED, "fine_labels"
)
FORMS = CIFAR10_BINARY, CIFAR10_PYTHON, CIFAR100_BINARY, CIFAR100_PYTHON
