"""What the names in a pickle of torch.save's stand for: descriptions of tensors, which are checked, and no numbers yet."""

import math
from typing import Any, NamedTuple

import numpy as np

from scratchnet.unpickle import UnpickleError


class StorageType(NamedTuple):
    """A class of torch's: what its numbers are."""

    dtype: str  # NumPy's, but "bfloat16", which NumPy does not have

    def stored(self, order: str) -> np.dtype:
        """NumPy's dtype of the bytes in a file of this byte order, "<" or ">"."""
        return np.dtype(order + ("u2" if self.dtype == "bfloat16" else self.dtype))


class Storage(NamedTuple):
    """A vector of numbers in the file."""

    kind: StorageType
    key: str
    length: int


class Tensor(NamedTuple):
    """Where a tensor's numbers are in its storage."""

    storage: Storage
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
    if not isinstance(storage, Storage) or not all(map(_counts, ((offset,), size, stride))):
        raise UnpickleError("it has a tensor whose storage, offset, size or stride is none")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=False)) if count else 0
    if len(size) != len(stride) or count > storage.length or count and last >= storage.length:
        raise UnpickleError(
            f"it has a tensor of size {str(size)[:60]}, stride {str(stride)[:60]} and offset {str(offset)[:20]}, "
            f"which does not lie in its storage of {storage.length} numbers"
        )
    return Tensor(storage, offset, size, stride)


def _rebuild_parameter(tensor=None, *rest):
    """`torch._utils._rebuild_parameter`: the tensor; what follows is about autograd."""
    if not isinstance(tensor, Tensor):
        raise UnpickleError("it has a parameter that is no tensor")
    return tensor


def _counts(values):
    """Whether it is a tuple of whole numbers from 0, as many as a tensor has dimensions at most."""
    return (
        isinstance(values, tuple) and len(values) <= 32 and all(type(value) is int and value >= 0 for value in values)
    )


GLOBALS = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
} | {
    f"torch.{name}Storage": StorageType(dtype)
    for name, dtype in {
        "Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "bfloat16", "Bool": "?", "Byte": "u1", "Char": "i1",
        "Short": "i2", "Int": "i4", "Long": "i8", "ComplexFloat": "c8", "ComplexDouble": "c16",
    }.items()
}  # fmt: skip


class Storages(dict):
    """The storages that a pickle refers to, by their names; called with what it refers to one by."""

    def __call__(self, key: Any) -> Storage:
        """The storage of ("storage", class, name, device, length), in the legacy format and a view, which is none."""
        if not isinstance(key, tuple) or len(key) not in (5, 6) or key[0] != "storage" or key[5:] not in ((), (None,)):
            raise UnpickleError("it refers to something outside of it that is no storage")
        _, kind, name, _, length = key[:5]
        if not isinstance(kind, StorageType) or type(name) is not str or not _counts((length,)):
            raise UnpickleError("it refers to a storage without a class, a name or a length")
        storage = Storage(kind, name, length)
        if self.setdefault(name, storage) != storage:
            raise UnpickleError("it has a storage of two classes or lengths")
        return storage
