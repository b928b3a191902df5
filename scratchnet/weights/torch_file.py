"""What `torch.save` wrote, read without PyTorch: by a machine that executes nothing (`scratchnet/unpickle.py`).

A file is a pickle of dicts and lists in which a tensor is a call: `_rebuild_tensor_v2(storage, offset, size, stride, …)`,
the storage being named by a key. Two formats have been written:
    zip       since PyTorch 1.6: `<folder>/data.pkl`, one member `<folder>/data/<key>` a storage, nothing compressed, and
              `<folder>/byteorder`. A member has a CRC-32, so that damage is noticed.
    legacy    before: a magic number, a version, a dict about the machine, the pickle, the list of all keys, then each
              storage as a count and its numbers. Nothing tells whether a number is damaged. The weights that torchvision
              published first are such files.
What is in one is believed only once it is checked: a name in the pickle has to be in `_GLOBALS`, a storage in the file as
long as the pickle says, a tensor within its storage and with no more numbers than it. The arrays are views of the
storages, as the tensors were, so that no file takes more memory than some times its length.
"""

import functools
import io
import math
import zipfile
from typing import Any, NamedTuple

import numpy as np

from scratchnet.unpickle import UnpickleError, load, load_next

MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # the pickle of the legacy format's number
MOST_PICKLE = 2**22  # bytes of data.pkl; an instruction of one makes a value of 64 or more
HIDDEN = "."  # what newer versions of PyTorch add is named .format_version and the like
ENCODING = "utf-8"  # of the text that Python 2 wrote
ENTRIES = ("state_dict", "model", "model_state_dict")  # where a training run's checkpoint has the network
SAVE = "in PyTorch, torch.save(model.state_dict(), path) writes a file that is read"


class _StorageType(NamedTuple):
    """A class of torch's: what its numbers are."""

    dtype: str  # NumPy's, but "bfloat16", which NumPy does not have

    def stored(self, order: str) -> np.dtype:
        """NumPy's dtype of the bytes in a file of this byte order, "<" or ">"."""
        return np.dtype(order + ("u2" if self.dtype == "bfloat16" else self.dtype))


class _Storage(NamedTuple):
    """A vector of numbers in the file."""

    kind: _StorageType
    key: str
    length: int


class _Tensor(NamedTuple):
    """Where a tensor's numbers are in its storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _OrderedDict(dict):
    """`collections.OrderedDict`; its attributes, such as a state_dict's `_metadata`, are let go."""

    def build(self, state):
        """Take what was kept beside the items."""


def _ordered_dict():
    return _OrderedDict()  # to be filled: the class itself would copy what it is given


def _rebuild_tensor(storage=None, offset=None, size=None, stride=None, *rest):
    """`torch._utils._rebuild_tensor_v2`; what follows is about autograd."""
    if not isinstance(storage, _Storage) or not all(map(_counts, ((offset,), size, stride))):
        raise UnpickleError("it has a tensor whose storage, offset, size or stride is none")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=False)) if count else 0
    if len(size) != len(stride) or count > storage.length or count and last >= storage.length:
        raise UnpickleError(
            f"it has a tensor of size {str(size)[:60]}, stride {str(stride)[:60]} and offset {str(offset)[:20]}, "
            f"which does not lie in its storage of {storage.length} numbers"
        )
    return _Tensor(storage, offset, size, stride)


def _rebuild_parameter(tensor=None, *rest):
    """`torch._utils._rebuild_parameter`: the tensor; what follows is about autograd."""
    if not isinstance(tensor, _Tensor):
        raise UnpickleError("it has a parameter that is no tensor")
    return tensor


def _counts(values):
    """Whether it is a tuple of whole numbers from 0, as many as a tensor has dimensions at most."""
    return (
        isinstance(values, tuple) and len(values) <= 32 and all(type(value) is int and value >= 0 for value in values)
    )


_GLOBALS = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
} | {
    f"torch.{name}Storage": _StorageType(dtype)
    for name, dtype in {
        "Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "bfloat16", "Bool": "?", "Byte": "u1", "Char": "i1",
        "Short": "i2", "Int": "i4", "Long": "i8", "ComplexFloat": "c8", "ComplexDouble": "c16",
    }.items()
}  # fmt: skip


def _storage(key: Any) -> _Storage:
    """The storage that a pickle refers to: ("storage", class, key, device, count), in the legacy format and a view."""
    if not isinstance(key, tuple) or len(key) not in (5, 6) or key[0] != "storage" or key[5:] not in ((), (None,)):
        raise UnpickleError("it refers to something outside of it that is no storage")
    _, kind, name, _, count = key[:5]
    if not isinstance(kind, _StorageType) or type(name) is not str or not _counts((count,)):
        raise UnpickleError("it refers to a storage without a class, a name or a length")
    return _Storage(kind, name, count)


class _Zip:
    """The storages of the zip format."""

    def __init__(self, data: bytes):
        self.archive = zipfile.ZipFile(io.BytesIO(data))
        members = self.archive.infolist()
        self.members = {member.filename: member for member in members}
        folder = {name.partition("/")[0] for name in self.members}
        self.folder = folder.pop() if len(folder) == 1 else ""
        if f"{self.folder}/constants.pkl" in self.members:
            raise ValueError(f"it is a program (TorchScript), of which only PyTorch knows the weights: {SAVE}")
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
        return load(self.read("data.pkl"), _GLOBALS, _storage, ENCODING)

    def numbers(self, storage: _Storage) -> np.ndarray:
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
        value, self.at = load_next(self.data[: self.at + MOST_PICKLE], self.at, _GLOBALS, persistent, ENCODING)
        return value

    def pickle(self) -> Any:
        """The value of the main pickle; finds out where the storages are."""
        storages: dict[str, _Storage] = {}

        def persistent(key):
            storage = _storage(key)
            if storages.setdefault(storage.key, storage) != storage:
                raise UnpickleError("it has a storage of two classes or lengths")
            return storage

        value, keys = self._next(persistent), self._next()
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

    def numbers(self, storage: _Storage) -> np.ndarray:
        """The vector of a storage, as it is in the file."""
        return np.frombuffer(self.data, storage.kind.stored(self.order), storage.length, self.places[storage.key])


def decode(data: bytes) -> dict[str, np.ndarray]:
    """The state_dict in the bytes of a `.pth` file: name -> array, bfloat16 as float32, which has all its numbers.

    Where the file is the checkpoint of a training run, a dict with the state_dict under "state_dict", "model" or
    "model_state_dict" beside other things, that is taken; the other things' numbers are not even read.

    Raises:
        ValueError: it is no such file, it is damaged, or it holds something else. Other types come from zipfile.
    """
    file = _Legacy(data) if data.startswith(MAGIC) else _Zip(data)
    try:
        value = file.pickle()
    except UnpickleError as error:
        raise ValueError(f"its pickle is not read: {error}; {SAVE}") from error

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


def _state_in(value: Any) -> dict[str, _Tensor]:
    """The state_dict that a value is, or has under one of `ENTRIES`."""

    def is_state(value):
        return isinstance(value, dict) and bool(value) and all(
            type(key) is str and isinstance(entry, _Tensor) for key, entry in value.items()
        )  # fmt: skip

    if is_state(value):
        return value
    if isinstance(value, dict):
        found = [key for key in ENTRIES if is_state(value.get(key))]
        if len(found) == 1:
            return value[found[0]]
        entries = ", ".join(f"{str(key)[:30]!r} ({_what(entry)})" for key, entry in list(value.items())[:8])
        raise ValueError(
            f"it holds no state_dict, nor one under {', '.join(ENTRIES)}, but {entries or 'nothing'}; {SAVE}"
        )
    raise ValueError(f"it holds {_what(value)}, no state_dict; {SAVE}")


def _what(value: Any) -> str:
    if isinstance(value, _Tensor):
        return f"a tensor {value.size}"
    if isinstance(value, dict | list | tuple):
        return f"a {'dict' if isinstance(value, dict) else type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
