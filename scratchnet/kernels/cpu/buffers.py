"""Memory that is used again: a fresh large array costs a page fault every 4 KiB, more than the arithmetic on it.

`empty` hands out arrays in buffers that it keeps. Every view of such an array holds a reference to the array, so that when
the array itself is gone nobody can see its numbers, and its buffer is free again: a weak reference tells that moment.
"""

import math
import os
import threading
import weakref

import numpy as np

SMALL = 1 << 15  # bytes: below this NumPy's own allocation is as fast


def _a_quarter_of_the_memory():
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 4 << 30


class _Memory(np.ndarray):
    """Bytes. As a type of its own it ends NumPy's chain of bases, so that a view of an array on it holds the array."""


class _Loan(weakref.ref):
    """Tells when an array is gone, and which memory it was on."""

    __slots__ = ("memory",)
    memory: _Memory


class Buffers:
    """Free buffers by their size, at most `cap` bytes of them."""

    def __init__(self, cap):
        self.cap, self.kept = cap, 0
        self._free: dict[int, list] = {}
        self._lent: dict[int, _Loan] = {}  # a weak reference has to live to tell
        self._lock = threading.RLock()  # an array may come back while the thread that frees it is in here

    def empty(self, shape, dtype):
        """An uninitialised C-contiguous array."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < SMALL:
            return np.empty(shape, dtype)
        size = _size_class(size)
        memory = None
        with self._lock:
            if free := self._free.get(size):
                memory = free.pop()
                self.kept -= size
        if memory is None:
            memory = _Memory(size, np.uint8)
        array = np.ndarray(shape, dtype, memory)
        loan = _Loan(array, self._take_back)
        loan.memory = memory
        self._lent[id(loan)] = loan
        return array

    def _take_back(self, loan):
        del self._lent[id(loan)]
        size = loan.memory.nbytes
        with self._lock:
            if self.kept + size <= self.cap:
                self.kept += size
                self._free.setdefault(size, []).append(loan.memory)

    def clear(self):
        """Give every free buffer back to the system; those in use live on until they are let go."""
        with self._lock:
            self._free.clear()
            self.kept = 0


def _size_class(size):
    """The size rounded up to a number of three binary digits: at most a quarter too large."""
    step = 1 << size.bit_length() - 3
    return -(-size // step) * step


_buffers = Buffers(_a_quarter_of_the_memory())
empty = _buffers.empty


def free_memory():
    """Give the memory back that is kept for the next step: on the CPU the library's buffers. Arrays in use are not touched.

    What is kept is at most a quarter of the machine's memory, and as much as the largest step needed.
    """
    _buffers.clear()
