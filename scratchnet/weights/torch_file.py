"""What `torch.save` wrote, read without PyTorch: by a machine that executes nothing (`scratchnet/unpickle.py`).

A file is a pickle of dicts and lists in which a tensor is a call: `_rebuild_tensor_v2(storage, offset, size, stride, …)`,
the storage being named by a key. Two formats have been written:
    zip       since PyTorch 1.6: `<folder>/data.pkl`, one member `<folder>/data/<key>` a storage, nothing compressed, and
              `<folder>/byteorder`. A member has a CRC-32, so that damage is noticed.
    legacy    before: a magic number, a version, a dict about the machine, the pickle, the list of all keys, then each
              storage as a count and its numbers. Nothing tells whether a number is damaged. The weights that torchvision
              published first are such files.
What is in one is believed only once it is checked: a storage is in the file and as long as the pickle says, a tensor lies
within its storage and has no more numbers than it (torch_pickle.py). The arrays are views of the
storages, as the tensors were, so that no file takes more memory than some times its length.
"""

import functools
import io
import math
import zipfile
from typing import Any

import numpy as np

from scratchnet.training.archive import CheckpointError
from scratchnet.unpickle import UnpickleError, load, load_next
from scratchnet.weights.torch_pickle import GLOBALS, Storage, Storages, Tensor

MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # the pickle of the legacy format's number
MOST_PICKLE = 2**22  # bytes of data.pkl; an instruction of one makes a value of 64 or more
HIDDEN = "."  # what newer versions of PyTorch add is named .format_version and the like
ENCODING = "utf-8"  # of the text that Python 2 wrote
ENTRIES = ("state_dict", "model", "model_state_dict")  # where a training run's checkpoint has the network
SAVE = "in PyTorch, torch.save(model.state_dict(), path) writes a file that is read"


class _Zip:
    """The storages of the zip format."""

    def __init__(self, data: bytes):
        self.archive = zipfile.ZipFile(io.BytesIO(data))
        members = self.archive.infolist()
        self.members = {member.filename: member for member in members}
        folder = {name.partition("/")[0] for name in self.members}
        self.folder = folder.pop() if len(folder) == 1 else ""
        if f"{self.folder}/constants.pkl" in self.members:
            raise CheckpointError(f"it is a program (TorchScript), of which only PyTorch knows the weights: {SAVE}")
        if f"{self.folder}/data.pkl" not in self.members:
            raise ValueError("it has no data.pkl, as in every zip file of torch.save's")
        self._check(members, len(data))
        order = self.read("byteorder") if f"{self.folder}/byteorder" in self.members else b"little"
        if order not in (b"little", b"big"):
            raise ValueError(f"its byteorder is {order[:20]!r}, expected little or big")
        self.order = "<" if order == b"little" else ">"
        if self.members[f"{self.folder}/data.pkl"].file_size > MOST_PICKLE:
            raise ValueError(f"its data.pkl has more than {MOST_PICKLE:,} bytes")

    def _check(self, members, length):
        """Refuse what torch.save never writes, though zipfile would read it."""
        if len(self.members) < len(members):
            raise ValueError("a member is there twice")
        for member in members:
            name = member.filename.removeprefix(f"{self.folder}/")
            known = name in ("data.pkl", "byteorder", "version") or name.startswith(("data/", HIDDEN))
            if not known or member.filename != member.orig_filename:
                raise ValueError(f"it has a member {name[:60]!r}, which torch.save does not write")
            if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                raise ValueError("a member is compressed")  # and could be a bomb
        if sum(member.file_size for member in members) > length:
            raise ValueError("its members are said to be larger than the file")

    def read(self, name):
        """The bytes of a member."""
        return self.archive.read(f"{self.folder}/{name}")

    def pickle(self) -> Any:
        """The value of data.pkl."""
        return load(self.read("data.pkl"), GLOBALS, Storages(), ENCODING)

    def numbers(self, storage: Storage) -> np.ndarray:
        """The vector of a storage, as it is in the file."""
        dtype, name = storage.kind.stored(self.order), f"{self.folder}/data/{storage.key}"
        if name not in self.members or self.members[name].file_size != storage.length * dtype.itemsize:
            raise ValueError(f"it has no storage {storage.key[:20]!r} of {storage.length} numbers")
        return np.frombuffer(self.read(f"data/{storage.key}"), dtype)


class _Legacy:
    """The storages of the format before 1.6."""

    def __init__(self, data: bytes):
        self.data, self.at = data, len(MAGIC)
        version, machine = self._next(), self._next()
        if version != 1001 or not isinstance(machine, dict) or type(machine.get("little_endian")) is not bool:
            raise ValueError("it does not have version 1001 of PyTorch's format")
        self.order = "<" if machine["little_endian"] else ">"
        self.places: dict[str, int] = {}  # of each storage

    def _next(self, persistent=None):
        value, self.at = load_next(self.data[: self.at + MOST_PICKLE], self.at, GLOBALS, persistent, ENCODING)
        return value

    def pickle(self) -> Any:
        """The value of the main pickle; finds out where the storages are."""
        storages = Storages()
        value, keys = self._next(storages), self._next()
        if not isinstance(keys, list) or not all(type(key) is str for key in keys) or set(keys) != set(storages):
            raise ValueError("its list of storages does not have those of its tensors")
        for key in keys:
            dtype, count = storages[key].kind.stored(self.order), storages[key].length
            if self.data[self.at : self.at + 8] != count.to_bytes(8, "little" if self.order == "<" else "big"):
                raise ValueError(f"it has no storage {key[:20]!r} of {count} numbers")
            self.places[key] = self.at + 8
            self.at += 8 + count * dtype.itemsize
        if self.at != len(self.data) or len(self.places) < len(keys):
            raise ValueError("it is longer or shorter than its storages")
        return value

    def numbers(self, storage: Storage) -> np.ndarray:
        """The vector of a storage, as it is in the file."""
        return np.frombuffer(self.data, storage.kind.stored(self.order), storage.length, self.places[storage.key])


def decode(data: bytes) -> dict[str, np.ndarray]:
    """The state_dict in the bytes of a `.pth` file: name -> array, bfloat16 as float32, which has all its numbers.

    Where the file is the checkpoint of a training run, a dict with the state_dict under "state_dict", "model" or
    "model_state_dict" beside other things, that is taken; the other things' numbers are not even read.

    Raises:
        CheckpointError: it is such a file, and holds something else; the message says what would be read.
        ValueError: it is damaged, or no such file at all; other types come from zipfile.
    """
    file = _Legacy(data) if data.startswith(MAGIC) else _Zip(data)
    try:
        value = file.pickle()
    except UnpickleError as error:
        raise CheckpointError(f"its pickle is not read: {error}; {SAVE}") from error

    @functools.cache
    def numbers(storage):
        found = file.numbers(storage)
        if storage.kind.dtype == "bfloat16":  # the upper half of a float32
            return (found.astype(np.uint32) << 16).view(np.float32)
        return found.astype(storage.kind.dtype)  # a copy of one's own, in the machine's byte order

    def array(tensor):
        whole = numbers(tensor.storage)
        size = whole.itemsize
        strides = tuple(size * step for step in tensor.stride) if math.prod(tensor.size) else None
        offset = size * tensor.offset if strides is not None else 0
        return np.ndarray(tensor.size, whole.dtype, whole, offset, strides)

    return {key: array(tensor) for key, tensor in _state_in(value).items()}


def _state_in(value: Any) -> dict[str, Tensor]:
    """The state_dict that a value is, or has under one of `ENTRIES`."""

    def is_state(value):
        return isinstance(value, dict) and bool(value) and all(
            type(key) is str and isinstance(entry, Tensor) for key, entry in value.items()
        )  # fmt: skip

    if is_state(value):
        return value
    if isinstance(value, dict):
        found = [key for key in ENTRIES if is_state(value.get(key))]
        if len(found) == 1:
            return value[found[0]]
        entries = ", ".join(f"{str(key)[:30]!r} ({_what(entry)})" for key, entry in list(value.items())[:8])
        raise CheckpointError(
            f"it holds no state_dict, nor one under {', '.join(ENTRIES)}, but {entries or 'nothing'}; {SAVE}"
        )
    raise CheckpointError(f"it holds {_what(value)}, no state_dict; {SAVE}")


def _what(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {value.size}"
    if isinstance(value, dict | list | tuple):
        return f"a {'dict' if isinstance(value, dict) else type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
