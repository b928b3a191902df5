"""Pickles of plain values and NumPy's arrays, as Python 2 and 3 write them, read by a machine that executes nothing.

The machine is `scratchnet/unpickle.py`; here is its table for arrays. Only arrays of numbers are made, and only where shape
and dtype come to as many bytes as the file has for them: an array of objects would hold pointers that the file names. What
functions of the table make is a few times as long as the file at most, however often it calls them.
"""

import re

import numpy as np

from scratchnet.data.files import DataError
from scratchnet.unpickle import UnpickleError, load

ROOM = 4  # bytes that calls may make, as a multiple of the pickle's length


def read_pickle(raw, what):
    """The dict that a pickle describes, with arrays, lists, texts, bytes and numbers in it.

    Args:
        raw: the pickle, all of it and nothing behind it; texts of Python 2 come as bytes.
        what: the file, in words: it opens the message.

    Raises:
        DataError: it is damaged, no dict, or has what is no plain value; nothing was executed.
    """
    try:
        found = load(raw, _table(ROOM * len(raw)))
    except UnpickleError as error:
        raise DataError(f"{what} is no pickle of plain values and arrays of numbers: {error}") from None
    if type(found) is not dict:
        raise DataError(f"{what} is a pickle of a {type(found).__name__}, expected a dict")
    return {key: value.array if type(value) is _Array else value for key, value in found.items()}


class _Kind:
    """A dtype, whose byte order comes behind it."""

    def __init__(self, dtype):
        self.dtype = dtype

    def build(self, state):
        """Take (version, byte order, no fields, …)."""
        _, order, *rest = state
        order = order.decode("ascii") if type(order) is bytes else order
        if order not in ("<", ">", "|", "=") or rest[:3] != [None, None, None]:  # a subarray, or fields
            raise UnpickleError("it has an array of records")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An array, whose content comes behind it."""

    array = None

    def __init__(self, take):
        self._take = take

    def build(self, state):
        """Take (version, shape, dtype, whether in Fortran's order, bytes)."""
        _, shape, kind, fortran, data = state
        if self.array is not None:
            raise UnpickleError("it fills an array twice")
        if type(kind) is not _Kind or type(data) is not bytes or type(shape) is not tuple or len(shape) > 8:
            raise UnpickleError("it has an array that is none of numbers")
        size = kind.dtype.itemsize
        for side in shape:
            if type(side) is not int or not 0 <= side < 1 << 40:
                raise UnpickleError(f"it has an array with a side of {side}")
            size *= side
        if size != len(data):
            raise UnpickleError(f"it has an array {shape} of {kind.dtype} with {len(data):,} bytes")
        self._take(size)
        numbers = np.frombuffer(data, kind.dtype).astype(kind.dtype.newbyteorder("="))
        self.array = numbers.reshape(shape, order="F" if fortran else "C")


_NDARRAY = "numpy.ndarray"  # a value that nobody can call


def _table(room):
    """What a pickle may name, for one reading: the calls share `room` bytes."""
    left = room

    def take(size):
        nonlocal left
        left -= size
        if left < 0:
            raise UnpickleError("it makes more of its bytes than it has")

    def kind(code, align=False, copy=False):
        code = code.decode("ascii") if type(code) is bytes else code
        if type(code) is not str or not re.fullmatch("b1|[iu][1248]|f[248]", code):
            raise UnpickleError(f"it has an array of {str(code)[:20]!r}")
        return _Kind(np.dtype(code))

    def reconstruct(subtype, shape, code):
        if subtype is not _NDARRAY:
            raise UnpickleError("it has an array of a class of its own")
        return _Array(take)

    def encode(text, encoding):
        """What Python 3 writes for bytes in protocol 2."""
        if type(text) is not str or encoding not in ("latin1", b"latin1"):
            raise UnpickleError("it has text that is in another encoding")
        take(len(text))
        return text.encode("latin-1")

    core = {f"numpy.{place}.multiarray._reconstruct": reconstruct for place in ("core", "_core")}
    empty = {f"{place}.bytes": lambda: b"" for place in ("__builtin__", "builtins")}
    return {**core, **empty, "numpy.ndarray": _NDARRAY, "numpy.dtype": kind, "_codecs.encode": encode}
