"""NumPy's arrays in pickles, as its versions 1 and 2 write them: the table `NUMPY` for `unpickle`.

Only arrays of numbers are made, and only where shape and dtype come to as many bytes as the file has for them: an array of
objects would hold pointers that the file names.
"""

import re

import numpy as np

from scratchnet.data.unpickle import Allowed, Refused


class _Kind:
    """A dtype, whose byte order BUILD sets."""

    def __init__(self, dtype):
        self.dtype = dtype


def _make_kind(code, align=False, copy=False):
    code = code.decode("ascii") if type(code) is bytes else code
    if type(code) is not str or not re.fullmatch("b1|[iu][1248]|f[248]", code):
        raise Refused(f"an array of {str(code)[:20]!r}")
    return _Kind(np.dtype(code))


def _set_kind(kind, state):
    version, order, *rest = state
    order = order.decode("ascii") if type(order) is bytes else order
    if order not in ("<", ">", "|", "=") or rest[:3] != [None, None, None]:  # fields or a subarray
        raise Refused("an array of records")
    kind.dtype = kind.dtype.newbyteorder(order)


def _empty_array(subtype, shape, code):
    if subtype is not _ARRAY:
        raise Refused("an array of a class of its own")
    return np.empty(0, np.uint8)


def _set_array(array, state):
    version, shape, kind, fortran, data = state
    _require_size(shape, kind, data)
    if array.size:
        raise Refused("an array that is filled twice")
    array.__setstate__((1, shape, kind.dtype, bool(fortran), data))


def _array_of(data, kind, shape, order):
    _require_size(shape, kind, data)
    return np.frombuffer(data, kind.dtype).reshape(shape, order="F" if order == "F" else "C")


def _require_size(shape, kind, data):
    """Refuse an array whose shape and dtype do not come to as many bytes as there are."""
    if type(kind) is not _Kind or type(data) is not bytes or type(shape) is not tuple or len(shape) > 8:
        raise Refused("an array that is none of numbers")
    size = kind.dtype.itemsize
    for side in shape:
        if type(side) is not int or not 0 <= side < 1 << 40:
            raise ValueError(f"an array with a side of {side}")
        size *= side
    if size != len(data):
        raise ValueError(f"an array {shape} of {kind.dtype} with {len(data):,} bytes")


def _encode(text, encoding):
    """What Python 3 writes for bytes in protocol 2."""
    if type(text) is not str or encoding not in ("latin1", b"latin1"):
        raise Refused("a text in another encoding")
    return text.encode("latin-1")


def _no_bytes():
    """What Python 3 writes for b"" in protocol 2."""
    return b""


_ARRAY = object()
NUMPY = Allowed(
    names={
        f"{module} {name}": stands
        for modules, name, stands in (
            (("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct", _empty_array),
            (("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer", _array_of),
            (("numpy",), "ndarray", _ARRAY),
            (("numpy",), "dtype", _make_kind),
            (("_codecs",), "encode", _encode),
            (("__builtin__", "builtins"), "bytes", _no_bytes),
        )
        for module in modules
    },
    states={np.ndarray: _set_array, _Kind: _set_kind},
)
