"""What can be given as data to train on: a table, one row a kind, which says how it is recognised and how it is read."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from scratchnet.data import cifar
from scratchnet.data.dataset import Dataset
from scratchnet.data.files import DataError, expanded, one_line
from scratchnet.data.folders import has_classes, load_folders


class Reader(NamedTuple):
    """One kind of data.

    name: of the data set; two kinds may hold the same one.  what: to look for, in words.
    find: path -> where it is, at the path or inside; None: it is not.
    read: (place, options) -> train, test, and what else is to be known of them, in words.
    """

    name: str
    what: str
    find: Callable[[Path], Path | None]
    read: Callable[[Path, dict[str, Any]], tuple[Dataset, Dataset, str]]


def _find_cifar(path, *, form):
    if path.is_file():  # an archive under another name is taken for CIFAR-10's
        known = next((one for one in cifar.FORMS if one.archive == path.name), cifar.CIFAR10_BINARY)
        return path if form is known else None
    return cifar.locate(path, form)


def _read_cifar(place, options, *, form):
    return *cifar.load(place, form), ""


READERS = tuple(
    Reader(
        form.name, f"{form.name}, {form.version} version: {form.folder}/ or {form.archive}",
        partial(_find_cifar, form=form), partial(_read_cifar, form=form),
    )
    for form in cifar.FORMS
) + (
    Reader(
        "pictures", "pictures: a folder for each class, of PNG or JPEG files; in train/ and test/ or val/, or undivided",
        lambda path: path if has_classes(path) else None, lambda place, options: load_folders(place, **options),
    ),
)  # fmt: skip


def load_pictures(path: str | os.PathLike[str], **options: Any) -> tuple[Dataset, Dataset, str]:
    """Read whatever is at a path.

    Args:
        path: a folder, or an archive.
        options: of `load_folders`, for pictures that are not of one size already.

    Returns:
        (train, test, what else is to be known of them, in words, or "").

    Raises:
        DataError: there is none of `READERS`, or two different data sets, or what there is cannot be read.
        PictureError: Pillow is needed, and not installed.
    """
    path = expanded(path)
    try:
        found = [(reader, place) for reader in READERS[:-1] if (place := reader.find(path))]
        if not found and (place := READERS[-1].find(path)):
            found = [(READERS[-1], place)]
    except OSError as error:
        raise DataError(f"cannot look for pictures in {path}: {one_line(error)}; expected a readable folder") from error
    if not found:
        raise DataError(f"{path} holds no data; expected one of: {'; '.join(reader.what for reader in READERS)}")
    other = [place for reader, place in found if reader.name != found[0][0].name]
    if other:
        raise DataError(f"{path} holds several data sets; expected one: name {found[0][1]} or {other[0]}")
    reader, place = found[0]
    return reader.read(place, options)
