"""Memory that is used again: a fresh large array costs a page fault every 4 KiB, more than the arithmetic on it.

`empty` hands out views of buffers that it keeps. A buffer is free again as soon as nobody holds a view of it, and Python
counts that: an array's views all hold a reference to the buffer itself. So an array that a user still holds is never
handed out again, and nothing has to be given back.
"""

import math
import sys
import threading

import numpy as np

_lock = threading.Lock()
_buffers: dict[int, list[np.ndarray]] = {}  # by their size, so that only a few have to be asked whether they are free
SMALL = 1 << 16  # bytes: below this NumPy's own allocation is as fast


def empty(shape, dtype):
    """An uninitialised C-contiguous array, in a buffer that nobody holds any more where there is one of this size."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < SMALL:
        return np.empty(shape, dtype)
    return _free_buffer(_size_class(size))[:size].view(dtype).reshape(shape)


def clear():
    """Forget every buffer; those that somebody holds live on until let go."""
    with _lock:
        _buffers.clear()


def _size_class(size):
    """The size rounded up to a number of three binary digits: at most a quarter too large."""
    step = 1 << size.bit_length() - 3
    return -(-size // step) * step


def _free_buffer(size):
    with _lock:
        kept = _buffers.setdefault(size, [])
        for buffer in kept:
            if sys.getrefcount(buffer) == _FREE:
                return buffer
        kept.append(np.empty(size, np.uint8))
        return kept[-1]


def _count_free():
    """What getrefcount says inside such a loop of a buffer that only the list holds; it differs between Pythons."""
    alone = [np.empty(1, np.uint8)]
    for buffer in alone:
        return sys.getrefcount(buffer)


_FREE = _count_free()
