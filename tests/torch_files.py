"""Files as torch.save writes them, without PyTorch: the pickle's instructions put together by hand."""

import io
import struct
import zipfile
from typing import NamedTuple

import numpy as np

from scratchnet.weights.torch_file import MAGIC

STORAGES = {
    "f4": "Float", "f8": "Double", "f2": "Half", "?": "Bool", "u1": "Byte", "i1": "Char", "i2": "Short", "i4": "Int",
    "i8": "Long", "c8": "ComplexFloat", "c16": "ComplexDouble", "bfloat16": "BFloat16",
}  # fmt: skip
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


class Tensor(NamedTuple):
    """A tensor over the storage that is the `key`-th of a file; `dtype` as in `STORAGES`."""

    key: int
    size: tuple
    stride: tuple
    offset: int = 0


def tensors(state):
    """(name -> Tensor, [(dtype, numbers)]) of name -> array, each array a storage of its own."""
    places, storages = {}, []
    for k, (name, array) in enumerate(state.items()):
        stride = tuple(step // array.itemsize for step in np.empty(array.shape, array.dtype).strides)
        places[name] = Tensor(k, array.shape, stride)
        storages.append((array.dtype.str[1:].replace("b1", "?"), np.asarray(array, order="C").reshape(-1)))
    return places, storages


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def whole(value):
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def several(values):
    return b"(" + b"".join(map(whole, values)) + b"t"


def value_of(value, storages, legacy=False):
    """The instructions that make a value: dicts of tensors, text, numbers."""
    if isinstance(value, Tensor):
        dtype, numbers = storages[value.key]
        view = b"N" if legacy else b""
        key = b"(" + text("storage") + f"ctorch\n{STORAGES[dtype]}Storage\n".encode()
        key += text(str(value.key)) + text("cuda:0") + whole(len(numbers)) + view + b"tQ"
        places = whole(value.offset) + several(value.size) + several(value.stride)
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + key + places + b"\x89" + ORDERED_DICT + b"tR"
    if isinstance(value, dict):
        items = b"".join(
            value_of(key, storages, legacy) + value_of(entry, storages, legacy) for key, entry in value.items()
        )
        return ORDERED_DICT + b"(" + items + b"u" + b"}" + text("_metadata") + ORDERED_DICT + b"sb"
    if isinstance(value, list):
        return b"](" + b"".join(value_of(entry, storages, legacy) for entry in value) + b"e"
    return {str: text, int: whole, type(None): lambda _: b"N"}[type(value)](value)


def program(value, storages, legacy=False):
    """The pickle."""
    return b"\x80\x02" + value_of(value, storages, legacy) + b"."


def bytes_of(dtype, numbers, order="<"):
    return np.asarray(numbers).astype(order + ("u2" if dtype == "bfloat16" else dtype)).tobytes()


def zipped(members, compression=zipfile.ZIP_STORED):
    """A zip archive with these (name, bytes)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data, compression)
    return buffer.getvalue()


def members(value, storages, order="<", pickle=None):
    """The members of the zip format."""
    return [
        ("archive/data.pkl", program(value, storages) if pickle is None else pickle),
        ("archive/byteorder", b"little" if order == "<" else b"big"),
        *((f"archive/data/{k}", bytes_of(*storage, order)) for k, storage in enumerate(storages)),
        ("archive/version", b"3\n"),
        ("archive/.data/serialization_id", b"1" * 40),
    ]


def legacy(value, storages, order="<", pickle=None):
    """The format before 1.6."""
    machine = b"\x80\x02}(" + text("protocol_version") + whole(1001) + text("little_endian")
    machine += (b"\x88" if order == "<" else b"\x89") + b"u."
    data = MAGIC + b"\x80\x02M\xe9\x03." + machine + (program(value, storages, True) if pickle is None else pickle)
    data += b"\x80\x02](" + b"".join(text(str(k)) for k in range(len(storages))) + b"e."
    for dtype, numbers in storages:
        data += struct.pack(f"{order}q", len(numbers)) + bytes_of(dtype, numbers, order)
    return data
